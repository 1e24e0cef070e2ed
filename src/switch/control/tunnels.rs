//! Tunnel ports: their endpoints, and their remotes, each of which is a port to the workers.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Control, Port, count, counters};
use crate::addr::PortId;
use crate::bridge::fdb::{Entry, Key, Kind};
use crate::offload::Capabilities;
use crate::port::PortQueue;
use crate::port::vxlan::{self, Place};
use crate::spec::{Df, PortKind, PortSettings, PortSpec, TunnelSettings, VxlanSpec};
use crate::stats::{Counters, DropReason};
use crate::status::{PortCounters, RemoteStatus};
use crate::switch::Error;
use crate::switch::namespaces::same_place;
use crate::topology::{self, PortShared};
use crate::tunnel::{Demux, Network};

/// Remotes that a switch gets to know by their frames, at most: anybody can make up addresses, and each takes an id.
const STRANGERS_MAX: usize = 512;
/// MTU of a way that is not known yet, and of most stations.
const ETHERNET_MTU: u32 = 1500;
/// Ways that are looked at again in a second, at most.
const PROBES: usize = 256;
/// Bytes of an untagged Ethernet header.
const ETH_HEADER_BYTES: u32 = 14;
/// Every tunnel port is in one group: what comes by one is not flooded into another.
const GROUP: u16 = 1;

/// New queues for the workers, by id.
pub(super) type Queues = Vec<(PortId, Vec<Box<dyn PortQueue>>)>;

#[derive(Debug, Default)]
pub(super) struct Tunnels {
    endpoints: BTreeMap<PortId, Endpoint>,
    remotes: BTreeMap<PortId, Remote>,
    /// What remotes that left have counted, by the port they were of.
    departed: Vec<(PortId, Arc<PortShared>)>,
    /// The remote whose way was looked at last.
    probed: Option<PortId>,
}

#[derive(Debug)]
struct Endpoint {
    place: Place,
    sockets: vxlan::Endpoint,
    counters: Arc<[Counters]>,
}

#[derive(Debug)]
struct Remote {
    /// The tunnel port.
    port: PortId,
    address: IpAddr,
    /// Not configured: known by its frames.
    learned: bool,
    /// What fits one packet on the way to it.
    mtu: u32,
    /// Whether that was found out.
    probed: bool,
    shared: Arc<PortShared>,
}

fn place(spec: &VxlanSpec) -> Place {
    Place { netns: spec.netns.clone(), local: spec.local, port: spec.dstport }
}

/// Whether both are one, however their namespace is spelled.
fn same(one: &Place, other: &Place) -> bool {
    (one.local, one.port) == (other.local, other.port) && same_place(&one.netns, &other.netns)
}

/// Whether a port's tunnel arrives at `there`.
fn arrives_at(port: &Port, there: &Place) -> bool {
    matches!(&port.spec.kind, PortKind::Vxlan(spec) if same(&place(spec), there))
}

/// MTU inside a way that is not known.
fn default_mtu(address: IpAddr) -> u32 {
    vxlan::inner_mtu(ETHERNET_MTU, address)
}

/// What an operator should know of a way that takes less than stations usually send.
fn hint(name: &str, df: Df, remote: &Remote) -> Option<String> {
    let mtu = remote.mtu;
    if !remote.probed || mtu >= ETHERNET_MTU {
        return None;
    }
    let longer = match df {
        Df::Inherit => {
            "longer ones go in fragments, and those that may not be fragmented are answered with 'packet too big'"
        }
        Df::Set => "longer ones are answered with 'packet too big'",
        Df::Unset => "longer ones go in fragments",
    };
    let overhead = ETHERNET_MTU - default_mtu(remote.address);
    Some(format!(
        "port '{name}': frames with up to {mtu} bytes of payload fit one packet to {}; {longer}; better give the \
         stations MTU {mtu}, or the underlay MTU {}",
        remote.address,
        ETHERNET_MTU + overhead
    ))
}

impl Tunnels {
    pub(super) fn has(&self, id: PortId) -> bool {
        self.endpoints.contains_key(&id) || self.remotes.contains_key(&id)
    }

    /// The tunnel port that a remote is of.
    pub(super) fn port_of(&self, id: PortId) -> Option<(PortId, IpAddr)> {
        self.remotes.get(&id).map(|remote| (remote.port, remote.address))
    }

    fn of(&self, port: PortId) -> impl Iterator<Item = (PortId, &Remote)> {
        self.remotes.iter().filter(move |(_, remote)| remote.port == port).map(|(&id, remote)| (id, remote))
    }

    /// Removes remotes; what they have counted stays with their port.
    fn retire(&mut self, leaves: impl Fn(&PortId, &Remote) -> bool) {
        let departed = &mut self.departed;
        self.remotes.retain(|id, remote| {
            let leaves = leaves(id, remote);
            if leaves {
                departed.push((remote.port, Arc::clone(&remote.shared)));
            }
            !leaves
        });
    }

    /// The ids of a port's remotes.
    pub(super) fn ids_of(&self, port: PortId) -> Vec<PortId> {
        self.of(port).map(|(id, _)| id).collect()
    }

    /// Least MTU of the ways to a port's remotes.
    pub(super) fn mtu(&self, port: PortId) -> Option<u32> {
        self.of(port).map(|(_, remote)| remote.mtu).min()
    }

    /// What an operator should know of the ways of a port: of the one that takes least.
    pub(super) fn hint(&self, id: PortId, port: &Port) -> Option<String> {
        hint(&port.spec.name, port.spec.settings.tunnel.df, self.least(id)?)
    }

    pub(super) fn status(&self, port: PortId) -> Vec<RemoteStatus> {
        let status = |(_, remote): (_, &Remote)| RemoteStatus {
            address: remote.address,
            learned: remote.learned,
            mtu: remote.mtu,
            counters: counters(&remote.shared),
        };
        let mut all: Vec<_> = self.of(port).map(status).collect();
        all.sort_by_key(|remote| remote.address);
        all
    }

    /// The remote of a port whose way takes least, of those that were looked at.
    fn least(&self, port: PortId) -> Option<&Remote> {
        let probed = self.of(port).map(|(_, remote)| remote).filter(|remote| remote.probed);
        probed.min_by_key(|remote| remote.mtu)
    }

    /// Finds out what fits the ways to some remotes of one port; where there is no way now, what was known stays.
    fn probe(
        &mut self,
        port: PortId,
        name: &str,
        settings: &TunnelSettings,
        spec: &VxlanSpec,
        ids: &[PortId],
    ) {
        let known = ids.iter().filter_map(|id| Some((*id, self.remotes.get(id)?.address)));
        let (ids, addresses): (Vec<_>, Vec<_>) = known.unzip();
        let Ok(mtus) = place(spec).inner_mtus(&addresses) else { return };
        let before = self.least(port).map(|remote| remote.mtu);
        for (id, mtu) in ids.into_iter().zip(mtus) {
            if let (Some(mtu), Some(remote)) = (mtu, self.remotes.get_mut(&id)) {
                (remote.mtu, remote.probed) = (mtu, true);
                remote.shared.set_path_max(mtu + ETH_HEADER_BYTES);
            }
        }
        // One line, however many ways change at once, and none for each stranger.
        let least = self.least(port).filter(|remote| before != Some(remote.mtu));
        if let Some(hint) = least.and_then(|remote| hint(name, settings.df, remote)) {
            tracing::info!("{hint}");
        }
    }

    /// The highest id in use.
    pub(super) fn last_id(&self) -> Option<PortId> {
        self.remotes.keys().next_back().max(self.endpoints.keys().next_back()).copied()
    }
}

impl Control {
    /// Opens what a tunnel port needs: its endpoint, unless another port has it already, and a way to each remote. Its remotes have
    /// their ids even if that fails, so that a port which waits can have static entries.
    pub(super) fn open_tunnel(
        &mut self,
        port: PortId,
        whole: &PortSpec,
        spec: &VxlanSpec,
    ) -> Result<Queues, Error> {
        let place = place(spec);
        let taken = |other: &&Port| {
            let vni = matches!(&other.spec.kind, PortKind::Vxlan(other) if other.vni == spec.vni);
            vni && other.spec.name != whole.name && arrives_at(other, &place)
        };
        if let Some(other) = self.ports.values().find(taken) {
            return Err(Error::Exists(format!(
                "VNI {0} at {1} is port '{2}' already; remove that first with: vswitchctl port del {2}",
                spec.vni,
                SocketAddr::new(spec.local, spec.dstport),
                other.spec.name
            )));
        }
        for &address in &whole.settings.tunnel.remotes {
            if !self.tunnels.of(port).any(|(_, remote)| remote.address == address) {
                self.claim_remote(port, spec, address, false)?;
            }
        }
        let mut queues = Queues::new();
        let endpoint = match self.endpoint_of(spec) {
            Some(id) => id,
            None => {
                let named = |error| Error::port(&whole.name, error);
                let (receivers, sockets) = vxlan::open_endpoint(&place, self.crew.len()).map_err(named)?;
                let id = self.free_id_beside(&[port])?;
                let counters = (0..self.crew.len()).map(|_| Counters::default()).collect();
                self.tunnels.endpoints.insert(id, Endpoint { place, sockets, counters });
                queues.push((id, receivers));
                id
            }
        };
        let ids = self.tunnels.ids_of(port);
        queues.extend(ids.iter().filter_map(|&id| self.way(id, endpoint, spec)));
        self.tunnels.probe(port, &whole.name, &whole.settings.tunnel, spec, &ids);
        Ok(queues)
    }

    /// Makes a tunnel port's remotes those of its settings, which were `before`; the others do not notice. Returns the ids to
    /// remove, whose stations are to be forgotten when no worker knows them any more, and the queues to add.
    pub(super) fn change_remotes(
        &mut self,
        port: PortId,
        before: &TunnelSettings,
    ) -> Result<(Vec<PortId>, Queues), Error> {
        let Some(Port { spec, open, .. }) = self.ports.get(&port) else { return Ok(Default::default()) };
        let (settings, open) = (spec.settings.tunnel.clone(), *open);
        let PortKind::Vxlan(spec) = spec.kind.clone() else { return Ok(Default::default()) };
        let leaves = |remote: &Remote| {
            let asked_for = before.remotes.contains(&remote.address) || settings.strict_remotes;
            asked_for && !settings.remotes.contains(&remote.address)
        };
        let gone: Vec<PortId> =
            self.tunnels.of(port).filter(|(_, remote)| leaves(remote)).map(|(id, _)| id).collect();
        self.check_unused(&gone)?;
        let mut claimed = Vec::new();
        for &address in &settings.remotes {
            if self.tunnels.of(port).any(|(_, remote)| remote.address == address) {
                continue;
            }
            match self.claim_remote(port, &spec, address, false) {
                Ok(id) => claimed.push(id),
                Err(error) => {
                    self.tunnels.remotes.retain(|id, _| !claimed.contains(id));
                    return Err(error);
                }
            }
        }
        // Nothing can be refused from here on.
        self.tunnels.retire(|id, _| gone.contains(id));
        for remote in self.tunnels.remotes.values_mut().filter(|remote| remote.port == port) {
            remote.learned &= !settings.remotes.contains(&remote.address);
        }
        let endpoint = self.endpoint_of(&spec).filter(|_| open);
        let way = |id| endpoint.and_then(|endpoint| self.way(id, endpoint, &spec));
        let added = claimed.into_iter().filter_map(way).collect();
        self.probe(port, &self.tunnels.ids_of(port));
        Ok((gone, added))
    }

    /// Refuses to remove a remote that a static entry is behind.
    fn check_unused(&self, remotes: &[PortId]) -> Result<(), Error> {
        for bridge in &self.bridges {
            let used =
                |(_, entry): &(Key, Entry)| entry.kind == Kind::Static && remotes.contains(&entry.port);
            if let Some((key, _)) = bridge.fdb.iter().find(used) {
                return Err(Error::Invalid(format!(
                    "static entry {0} is behind that remote; remove it first with: vswitchctl fdb del {0} --bridge {1}",
                    key.mac(),
                    bridge.spec.name
                )));
            }
        }
        Ok(())
    }

    fn endpoint_of(&self, spec: &VxlanSpec) -> Option<PortId> {
        let place = place(spec);
        self.tunnels.endpoints.iter().find(|(_, endpoint)| same(&endpoint.place, &place)).map(|(&id, _)| id)
    }

    /// The remote of a tunnel port that a static entry is to be behind.
    pub(super) fn remote_for(&self, port: PortId, address: Option<IpAddr>) -> Result<PortId, Error> {
        let name = self.ports.get(&port).map_or("", |port| &port.spec.name);
        let all: Vec<_> = self.tunnels.of(port).collect();
        let found = match address {
            Some(address) => all.iter().find(|(_, remote)| remote.address == address),
            None => {
                let mut configured = all.iter().filter(|(_, remote)| !remote.learned);
                configured.next().filter(|_| configured.next().is_none())
            }
        };
        found.map(|&(id, _)| id).ok_or_else(|| {
            let existing: Vec<String> = all.iter().map(|(_, remote)| remote.address.to_string()).collect();
            let what = address
                .map_or("say behind which remote with --remote".to_owned(), |ip| format!("no remote {ip}"));
            Error::Invalid(format!("port '{name}': {what}; existing: {}", existing.join(", ")))
        })
    }

    /// Gives a remote its id.
    fn claim_remote(
        &mut self,
        port: PortId,
        spec: &VxlanSpec,
        address: IpAddr,
        learned: bool,
    ) -> Result<PortId, Error> {
        let id = self.free_id_beside(&[port])?;
        let shared = PortShared::new(self.crew.len(), u32::from(u16::MAX), false);
        let mtu = default_mtu(spec.local);
        shared.set_path_max(mtu + ETH_HEADER_BYTES);
        let remote = Remote { port, address, learned, mtu, probed: false, shared: Arc::new(shared) };
        self.tunnels.remotes.insert(id, remote);
        Ok(id)
    }

    /// The workers' ways to a remote.
    fn way(
        &self,
        id: PortId,
        endpoint: PortId,
        spec: &VxlanSpec,
    ) -> Option<(PortId, Vec<Box<dyn PortQueue>>)> {
        let remote = self.tunnels.remotes.get(&id)?;
        let endpoint = self.tunnels.endpoints.get(&endpoint)?;
        Some((id, endpoint.sockets.remote(spec.vni, SocketAddr::new(remote.address, spec.dstport))))
    }

    /// Finds out what fits the ways to some of a port's remotes.
    fn probe(&mut self, port: PortId, ids: &[PortId]) {
        let Some(Port { spec, .. }) = self.ports.get(&port) else { return };
        if let PortKind::Vxlan(tunnel) = &spec.kind {
            self.tunnels.probe(port, &spec.name, &spec.settings.tunnel, tunnel, ids);
        }
    }

    /// Looks again at some ways, in turn: routes and MTUs change. To be called each second.
    pub(in crate::switch) fn probe_next(&mut self) {
        let open = |port: &PortId| self.ports.get(port).is_some_and(|port| port.open);
        let all = self.tunnels.remotes.iter().filter(|(_, remote)| open(&remote.port));
        let (before, after): (Vec<_>, Vec<_>) =
            all.map(|(&id, remote)| (id, remote.port)).partition(|&(id, _)| Some(id) <= self.tunnels.probed);
        let mut ports = BTreeMap::<PortId, Vec<PortId>>::new();
        for (id, port) in after.into_iter().chain(before).take(PROBES) {
            self.tunnels.probed = Some(id);
            ports.entry(port).or_default().push(id);
        }
        for (port, ids) in ports {
            self.probe(port, &ids);
        }
    }

    /// Closes a tunnel port whose underlay is gone. Its remotes keep their ids, and with them their static entries; strangers are
    /// forgotten. Returns the ids that workers are to let go of, and those that stand for nothing any more.
    pub(super) fn shut_tunnel(&mut self, port: PortId) -> (Vec<PortId>, Vec<PortId>) {
        let mut all = self.tunnels.ids_of(port);
        let strangers =
            self.tunnels.of(port).filter(|(_, remote)| remote.learned).map(|(id, _)| id).collect();
        self.tunnels.retire(|_, remote| remote.port == port && remote.learned);
        all.extend(self.forget_endpoints(port));
        (all, strangers)
    }

    /// Forgets a tunnel port's remotes, and its endpoint if it was the last there. Returns their ids.
    pub(super) fn forget_tunnel(&mut self, port: PortId) -> Vec<PortId> {
        let mut ids = self.tunnels.ids_of(port);
        self.tunnels.remotes.retain(|_, remote| remote.port != port);
        self.tunnels.departed.retain(|(departed, _)| *departed != port);
        ids.extend(self.forget_endpoints(port));
        ids
    }

    /// Forgets endpoints at which nothing but `port` arrived.
    fn forget_endpoints(&mut self, port: PortId) -> Vec<PortId> {
        let ports = &self.ports;
        let mut gone = Vec::new();
        self.tunnels.endpoints.retain(|&id, endpoint| {
            let mut others = ports.iter().filter(|(id, other)| **id != port && other.open);
            let used = others.any(|(_, other)| arrives_at(other, &endpoint.place));
            if !used {
                gone.push(id);
            }
            used
        });
        gone
    }

    /// A frame came to a tunnel port from a remote that it did not know: from now on stations are learned behind it.
    pub(in crate::switch) fn meet(&mut self, port: PortId, address: IpAddr) {
        let Some(Port { spec, open: true, .. }) = self.ports.get(&port) else { return };
        let PortKind::Vxlan(tunnel) = spec.kind.clone() else { return };
        let known = self.tunnels.of(port).any(|(_, remote)| remote.address == address);
        let strangers = self.tunnels.remotes.values().filter(|remote| remote.learned).count();
        if known || strangers >= STRANGERS_MAX || spec.settings.tunnel.strict_remotes {
            return;
        }
        let Some(endpoint) = self.endpoint_of(&tunnel) else { return };
        if let Ok(id) = self.claim_remote(port, &tunnel, address, true) {
            let way = self.way(id, endpoint, &tunnel);
            drop(self.publish(&[], way.into_iter().collect()));
        }
    }

    /// The remotes of an open tunnel port, and the port itself for frames from strangers, as the workers see them.
    pub(super) fn tunnel_ports(&self, id: PortId, port: &Port, bridge: usize) -> Vec<topology::Port> {
        let PortSettings { learning, flood, isolated, hairpin, ref tunnel, .. } = port.spec.settings;
        let make = |id, device, learning, shared: &Arc<PortShared>| topology::Port {
            id,
            device,
            group: GROUP,
            guard_local: tunnel.guard_local,
            df: Some(tunnel.df),
            mss_clamp: tunnel.mss_clamp,
            bridge,
            learning,
            flood,
            isolated,
            hairpin,
            vlan: self.policy(device),
            capabilities: Capabilities::default(),
            shared: Arc::clone(shared),
        };
        // Of strangers' ways nothing is known.
        let mtu = self.tunnels.mtu(id).or_else(|| match &port.spec.kind {
            PortKind::Vxlan(spec) => Some(default_mtu(spec.local)),
            _ => None,
        });
        port.shared.set_path_max(mtu.unwrap_or(ETHERNET_MTU) + ETH_HEADER_BYTES);
        let remotes = self.tunnels.of(id).map(|(remote, known)| make(remote, id, learning, &known.shared));
        std::iter::once(make(id, id, false, &port.shared)).chain(remotes).collect()
    }

    /// Those of a tunnel port's remotes that get what is flooded.
    pub(super) fn flooded(&self, port: PortId) -> impl Iterator<Item = PortId> {
        self.tunnels.of(port).filter(|(_, remote)| !remote.learned).map(|(id, _)| id)
    }

    pub(super) fn endpoints(&self) -> hashbrown::HashMap<PortId, topology::Endpoint> {
        let endpoint = |(&id, endpoint): (&PortId, &Endpoint)| {
            let mut demux = Demux::default();
            for (&port, known) in self.ports.iter().filter(|(_, port)| port.open) {
                if let PortKind::Vxlan(spec) = &known.spec.kind
                    && arrives_at(known, &endpoint.place)
                {
                    let remotes = self.tunnels.of(port).map(|(id, remote)| (remote.address, id)).collect();
                    let frame_max =
                        self.tunnels.mtu(port).unwrap_or(default_mtu(spec.local)) + ETH_HEADER_BYTES;
                    let frame_max = frame_max as usize;
                    let strict = known.spec.settings.tunnel.strict_remotes;
                    demux.insert(
                        spec.vni,
                        Network { port, shared: Arc::clone(&known.shared), remotes, frame_max, strict },
                    );
                }
            }
            (id, topology::Endpoint { demux, counters: Arc::clone(&endpoint.counters) })
        };
        self.tunnels.endpoints.iter().map(endpoint).collect()
    }

    /// Adds what a port's remotes have counted; and what was nobody's at its endpoint, to the oldest port there.
    pub(super) fn add_tunnel_counters(&self, id: PortId, port: &Port, sum: &mut PortCounters) {
        let PortKind::Vxlan(spec) = &port.spec.kind else { return };
        for (_, remote) in self.tunnels.of(id) {
            sum.add(&counters(&remote.shared));
        }
        for (_, shared) in self.tunnels.departed.iter().filter(|(port, _)| *port == id) {
            sum.add(&counters(shared));
        }
        let place = place(spec);
        let oldest =
            self.ports.values().filter(|other| arrives_at(other, &place)).map(|other| other.sequence).min();
        let oldest = oldest == Some(port.sequence);
        let endpoint = self.tunnels.endpoints.values().find(|endpoint| same(&endpoint.place, &place));
        if let (true, Some(endpoint)) = (oldest, endpoint) {
            for &reason in DropReason::ALL {
                count(sum, reason, endpoint.counters.iter().map(|worker| worker.drops(reason)).sum());
            }
        }
    }
}
