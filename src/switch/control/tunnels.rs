//! Tunnel ports: their endpoints, and their remotes, each of which is a port to the workers.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Control, Port, count, counters};
use crate::addr::{PortId, VlanId};
use crate::bridge::fdb::{Entry, Key, Kind, Tick};
use crate::bridge::vlan;
use crate::offload::Capabilities;
use crate::port::PortQueue;
use crate::port::tunnel::{Place, SendOptions, Senders, Way};
use crate::spec::{Df, PortKind, PortSettings, PortSpec, TunnelSettings, TunnelSpec};
use crate::stats::{Counters, DropReason};
use crate::status::{PortCounters, RemoteStatus};
use crate::switch::Error;
use crate::switch::namespaces::same_place;
use crate::topology::{self, PortShared};
use crate::tunnel::{Demux, Network};

/// Remotes that a switch gets to know by their frames, at most: anybody can make up addresses, and each takes an id.
const STRANGERS_MAX: usize = 512;
/// A stranger that sent nothing for so long is forgotten at the earliest.
const STRANGER_AGEING_SECS_MIN: u32 = 60;
/// MTU of a way that is not known yet, and of most stations.
const ETHERNET_MTU: u32 = 1500;
/// Ways that are looked at again in a second, at most.
const PROBES: usize = 256;
/// Bytes of an untagged Ethernet header.
const ETH_HEADER_BYTES: u32 = 14;
/// Bytes of a tag.
const TAG_BYTES: u32 = 4;
/// Every tunnel port is in one group: what comes by one is not flooded into another.
const GROUP: u16 = 1;

/// New queues for the workers, by id.
pub(super) type Queues = Vec<(PortId, Vec<Box<dyn PortQueue>>)>;

/// What follows for the workers from a change of settings.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Ids to let go of, whose stations are to be forgotten when no worker knows them any more.
    pub(super) gone: Vec<PortId>,
    /// Ids that come back with new queues.
    pub(super) replaced: Vec<PortId>,
    /// The new queues.
    pub(super) queues: Queues,
}

#[derive(Debug, Default)]
pub(super) struct Tunnels {
    endpoints: BTreeMap<PortId, Endpoint>,
    /// What open tunnel ports send from.
    outlets: BTreeMap<PortId, Outlet>,
    remotes: BTreeMap<PortId, Remote>,
    /// What remotes that left have counted, by the port they were of.
    departed: Vec<(PortId, Arc<PortShared>)>,
    /// The same, added up when no worker counts there any more.
    folded: BTreeMap<PortId, PortCounters>,
    /// The remote whose way was looked at last.
    probed: Option<PortId>,
}

#[derive(Debug)]
struct Endpoint {
    place: Place,
    counters: Arc<[Counters]>,
}

#[derive(Debug)]
struct Outlet {
    place: Place,
    options: SendOptions,
    senders: Vec<Arc<Senders>>,
    /// The interface that all is to leave by, if one was named.
    ifindex: Option<u32>,
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
    /// Frames that had come from it when more had than before, and when that was.
    heard: (u64, Tick),
    shared: Arc<PortShared>,
}

/// Whether both are one, however their namespace is spelled.
fn same(one: &Place, other: &Place) -> bool {
    let bare = |place: &Place| Place { netns: None, ..place.clone() };
    bare(one) == bare(other) && same_place(&one.netns, &other.netns)
}

/// Whether a port's tunnel arrives at `there`.
fn arrives_at(port: &Port, there: &Place) -> bool {
    let PortKind::Tunnel(spec) = &port.spec.kind else { return false };
    same(&Place::of(spec), there) || Place::of_group(spec).is_some_and(|place| same(&place, there))
}

/// What of a packet of `mtu` bytes is left to the payload of a frame in it.
fn inner_mtu(spec: &TunnelSpec, mtu: u32) -> u32 {
    mtu.saturating_sub(spec.overhead()).min(spec.mtu.unwrap_or(u32::MAX))
}

/// Longest frame with so much payload, as it is before it is wrapped.
fn frame_max(spec: &TunnelSpec, mtu: u32) -> u32 {
    let tag = if spec.vlans().is_some() { TAG_BYTES } else { 0 };
    mtu + ETH_HEADER_BYTES + tag
}

/// What an operator should know of a way that takes less than stations usually send.
fn hint(name: &str, df: Df, spec: &TunnelSpec, remote: &Remote) -> Option<String> {
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
    Some(format!(
        "port '{name}': frames with up to {mtu} bytes of payload fit one packet to {}; {longer}; better give the \
         stations MTU {mtu}, or the underlay MTU {}",
        remote.address,
        ETHERNET_MTU + spec.overhead()
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

    /// Adds up what departed remotes have counted, where no worker can count any more.
    fn fold(&mut self) {
        let folded = &mut self.folded;
        self.departed.retain_mut(|(port, shared)| {
            let left_alone = Arc::get_mut(shared).is_some();
            if left_alone {
                folded.entry(*port).or_default().add(&counters(shared));
            }
            !left_alone
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
        let PortKind::Tunnel(spec) = &port.spec.kind else { return None };
        hint(&port.spec.name, port.spec.settings.tunnel.df, spec, self.least(id)?)
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
        spec: &TunnelSpec,
        ids: &[PortId],
    ) {
        let known = ids.iter().filter_map(|id| Some((*id, self.remotes.get(id)?.address)));
        let (ids, addresses): (Vec<_>, Vec<_>) = known.unzip();
        let Ok(mtus) = Place::of(spec).path_mtus(&addresses) else { return };
        let before = self.least(port).map(|remote| remote.mtu);
        for (id, mtu) in ids.into_iter().zip(mtus) {
            if let (Some(mtu), Some(remote)) = (mtu, self.remotes.get_mut(&id)) {
                let mtu = inner_mtu(spec, mtu);
                (remote.mtu, remote.probed) = (mtu, true);
                remote.shared.set_path_max(frame_max(spec, mtu));
            }
        }
        // One line, however many ways change at once, and none for each stranger.
        let least = self.least(port).filter(|remote| before != Some(remote.mtu));
        if let Some(hint) = least.and_then(|remote| hint(name, settings.df, spec, remote)) {
            tracing::info!("{hint}");
        }
    }

    /// The highest id in use.
    pub(super) fn last_id(&self) -> Option<PortId> {
        self.remotes.keys().next_back().max(self.endpoints.keys().next_back()).copied()
    }
}

impl Control {
    /// Opens what a tunnel port needs: its endpoints, unless another port has them already, what it sends from, and a way to each
    /// remote. Its remotes have their ids even if that fails, so that a port which waits can have static entries.
    pub(super) fn open_tunnel(
        &mut self,
        port: PortId,
        whole: &PortSpec,
        spec: &TunnelSpec,
    ) -> Result<Queues, Error> {
        self.check_taken(&whole.name, spec, &whole.settings.tunnel)?;
        for address in spec.far_ends(&whole.settings.tunnel) {
            if !self.tunnels.of(port).any(|(_, remote)| remote.address == address) {
                self.claim_remote(port, spec, address, false)?;
            }
        }
        let mut queues = match self.open_places(port, whole, spec) {
            Ok(queues) => queues,
            Err(error) => {
                drop(self.forget_endpoints(port));
                return Err(error);
            }
        };
        queues.extend(self.ways(port, spec, &whole.settings.tunnel));
        let ids = self.tunnels.ids_of(port);
        self.tunnels.probe(port, &whole.name, &whole.settings.tunnel, spec, &ids);
        Ok(queues)
    }

    /// Opens a tunnel port's endpoints and what it sends from.
    fn open_places(&mut self, port: PortId, whole: &PortSpec, spec: &TunnelSpec) -> Result<Queues, Error> {
        let named = |error| Error::port(&whole.name, error);
        let mut queues = Queues::new();
        for place in std::iter::once(Place::of(spec)).chain(Place::of_group(spec)) {
            if self.tunnels.endpoints.values().any(|endpoint| same(&endpoint.place, &place)) {
                continue;
            }
            let receivers = place.open(self.crew.len()).map_err(named)?;
            let id = self.free_id_beside(&[port])?;
            let counters = (0..self.crew.len()).map(|_| Counters::default()).collect();
            self.tunnels.endpoints.insert(id, Endpoint { place, counters });
            queues.push((id, receivers));
        }
        let (place, options) = (Place::of(spec), SendOptions::of(spec));
        let mut outlets = self.tunnels.outlets.values();
        let shared = outlets.find(|outlet| outlet.options == options && same(&outlet.place, &place));
        let senders = match shared {
            Some(outlet) => outlet.senders.clone(),
            None => place.senders(&options, self.crew.len()).map_err(named)?,
        };
        let ifindex = place.ifindex().map_err(named)?;
        self.tunnels.outlets.insert(port, Outlet { place, options, senders, ifindex });
        Ok(queues)
    }

    /// Refuses a network that is another port's. Two may have one number if both say whose frames they take, and nobody's twice.
    fn check_taken(&self, name: &str, spec: &TunnelSpec, settings: &TunnelSettings) -> Result<(), Error> {
        let place = Place::of(spec);
        for other in self.ports.values().filter(|other| other.spec.name != name && arrives_at(other, &place))
        {
            let PortKind::Tunnel(there) = &other.spec.kind else { continue };
            let taken = there.ids();
            let id = spec
                .ids()
                .into_iter()
                .map(|(id, _)| id)
                .find(|id| taken.iter().any(|(other, _)| other == id));
            let theirs = &other.spec.settings.tunnel;
            let apart = settings.strict_remotes
                && theirs.strict_remotes
                && !there.far_ends(theirs).any(|end| spec.far_ends(settings).any(|other| other == end));
            if let (Some(id), false) = (id, apart) {
                let at = spec.udp.as_ref().map_or_else(
                    || spec.local.to_string(),
                    |udp| SocketAddr::new(spec.local, udp.dstport).to_string(),
                );
                return Err(Error::Exists(format!(
                    "{id} at {at} is port '{0}' already; remove that first with: vswitchctl port del {0} (or give both \
                     --strict-remotes on, and remotes of their own)",
                    other.spec.name
                )));
            }
        }
        Ok(())
    }

    /// Makes a tunnel port's remotes those of its settings, which were `before`; the others do not notice.
    pub(super) fn change_remotes(&mut self, port: PortId, before: &TunnelSettings) -> Result<Changes, Error> {
        let Some(Port { spec, .. }) = self.ports.get(&port) else { return Ok(Changes::default()) };
        let PortKind::Tunnel(tunnel) = spec.kind.clone() else { return Ok(Changes::default()) };
        let settings = spec.settings.tunnel.clone();
        self.check_taken(&spec.name, &tunnel, &settings)?;
        let spec = tunnel;
        let wanted: Vec<IpAddr> = spec.far_ends(&settings).collect();
        let leaves = |remote: &Remote| {
            let asked_for = before.remotes.contains(&remote.address) || settings.strict_remotes;
            asked_for && !wanted.contains(&remote.address)
        };
        let gone: Vec<PortId> =
            self.tunnels.of(port).filter(|(_, remote)| leaves(remote)).map(|(id, _)| id).collect();
        self.check_unused(&gone)?;
        let mut claimed = Vec::new();
        for &address in &wanted {
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
            remote.learned &= !wanted.contains(&remote.address);
        }
        let replaced = if settings.df == before.df { Vec::new() } else { self.tunnels.ids_of(port) };
        let mut queues = self.ways(port, &spec, &settings);
        queues.retain(|(id, _)| claimed.contains(id) || replaced.contains(id));
        self.probe(port, &self.tunnels.ids_of(port));
        Ok(Changes { gone, replaced, queues })
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
        spec: &TunnelSpec,
        address: IpAddr,
        learned: bool,
    ) -> Result<PortId, Error> {
        let id = self.free_id_beside(&[port])?;
        let shared = PortShared::new(self.crew.len(), u32::from(u16::MAX), false);
        let mtu = inner_mtu(spec, ETHERNET_MTU);
        shared.set_path_max(frame_max(spec, mtu));
        let heard = (0, self.crew.now());
        let remote = Remote { port, address, learned, mtu, probed: false, heard, shared: Arc::new(shared) };
        self.tunnels.remotes.insert(id, remote);
        Ok(id)
    }

    /// The workers' ways to the remotes of a port, if it is open.
    fn ways(&self, port: PortId, spec: &TunnelSpec, settings: &TunnelSettings) -> Queues {
        let Some(outlet) = self.tunnels.outlets.get(&port) else { return Queues::new() };
        let way = |remote: &Remote| Way::new(spec, settings.df, remote.address).queues(&outlet.senders);
        self.tunnels.of(port).map(|(id, remote)| (id, way(remote))).collect()
    }

    /// Finds out what fits the ways to some of a port's remotes.
    fn probe(&mut self, port: PortId, ids: &[PortId]) {
        let Some(Port { spec, .. }) = self.ports.get(&port) else { return };
        if let PortKind::Tunnel(tunnel) = &spec.kind {
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
            self.follow_device(port);
            self.probe(port, &ids);
        }
    }

    /// Sockets are bound to the device that had the name then; when it is gone, or another has the name, the port is, too.
    fn follow_device(&mut self, port: PortId) {
        let Some(outlet) = self.tunnels.outlets.get(&port).filter(|outlet| outlet.place.dev.is_some()) else {
            return;
        };
        if outlet.place.ifindex().is_ok_and(|index| index != outlet.ifindex) {
            self.lose(vec![port]);
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
        self.tunnels.folded.remove(&port);
        ids.extend(self.forget_endpoints(port));
        ids
    }

    /// Forgets what `port` sent from, and endpoints at which nothing but it arrived.
    fn forget_endpoints(&mut self, port: PortId) -> Vec<PortId> {
        self.tunnels.outlets.remove(&port);
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
        let PortKind::Tunnel(tunnel) = spec.kind.clone() else { return };
        let known = self.tunnels.of(port).any(|(_, remote)| remote.address == address);
        let strangers = self.tunnels.remotes.values().filter(|remote| remote.learned).count();
        if known || strangers >= STRANGERS_MAX || spec.settings.tunnel.strict_remotes {
            return;
        }
        let settings = spec.settings.tunnel.clone();
        if let Ok(id) = self.claim_remote(port, &tunnel, address, true) {
            let mut ways = self.ways(port, &tunnel, &settings);
            ways.retain(|(remote, _)| *remote == id);
            drop(self.publish(&[], ways));
        }
    }

    /// Forgets strangers that have sent nothing for their bridge's ageing time and have no station behind them. To be called
    /// each second.
    pub(in crate::switch) fn forget_strangers(&mut self) {
        self.forget_strangers_at(self.crew.now());
    }

    fn forget_strangers_at(&mut self, now: Tick) {
        let mut silent = Vec::new();
        for (&id, remote) in self.tunnels.remotes.iter_mut().filter(|(_, remote)| remote.learned) {
            let frames = counters(&remote.shared).rx_frames;
            if frames != remote.heard.0 {
                remote.heard = (frames, now);
            }
            let Some(port) = self.ports.get(&remote.port) else { continue };
            let Some(bridge) = self.bridges.iter().find(|bridge| bridge.spec.name == port.spec.bridge) else {
                continue;
            };
            let ageing_secs = bridge.spec.ageing_secs.max(STRANGER_AGEING_SECS_MIN);
            if now.0.saturating_sub(remote.heard.1.0) >= ageing_secs && bridge.fdb.port_len(id) == 0 {
                silent.push(id);
            }
        }
        if !silent.is_empty() {
            self.tunnels.retire(|id, _| silent.contains(id));
            drop(self.publish(&silent, Vec::new()));
            self.forget_ids(&silent.into_iter().collect());
        }
        self.tunnels.fold();
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
            neigh_suppress: tunnel.neigh_suppress,
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
        if let PortKind::Tunnel(spec) = &port.spec.kind {
            let mtu = self.tunnels.mtu(id).unwrap_or_else(|| inner_mtu(spec, ETHERNET_MTU));
            port.shared.set_path_max(frame_max(spec, mtu));
        }
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
                let PortKind::Tunnel(spec) = &known.spec.kind else { continue };
                if !arrives_at(known, &endpoint.place) {
                    continue;
                }
                let mtu = self.tunnels.mtu(port).unwrap_or_else(|| inner_mtu(spec, ETHERNET_MTU));
                let network = |vlan: Option<VlanId>| Network {
                    port,
                    shared: Arc::clone(&known.shared),
                    remotes: self.tunnels.of(port).map(|(id, remote)| (remote.address, id)).collect(),
                    frame_max: (mtu + ETH_HEADER_BYTES) as usize,
                    strict: known.spec.settings.tunnel.strict_remotes,
                    tag: vlan.map(|vlan| vlan::tag(vlan.get(), 0)),
                };
                spec.ids().into_iter().for_each(|(id, vlan)| demux.insert(id, network(vlan)));
            }
            (id, topology::Endpoint { demux, counters: Arc::clone(&endpoint.counters) })
        };
        self.tunnels.endpoints.iter().map(endpoint).collect()
    }

    /// Adds what a port's remotes have counted; and what was nobody's at its endpoint, to the oldest port there.
    pub(super) fn add_tunnel_counters(&self, id: PortId, port: &Port, sum: &mut PortCounters) {
        let PortKind::Tunnel(spec) = &port.spec.kind else { return };
        for (_, remote) in self.tunnels.of(id) {
            sum.add(&counters(&remote.shared));
        }
        if let Some(folded) = self.tunnels.folded.get(&id) {
            sum.add(folded);
        }
        for (_, shared) in self.tunnels.departed.iter().filter(|(port, _)| *port == id) {
            sum.add(&counters(shared));
        }
        let place = Place::of(spec);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::MacAddr;
    use crate::spec::{BridgeSpec, UdpSpec};
    use crate::switch::{Crew, Missing, Namespaces, Options};
    use crate::tunnel::encapsulation::Header;

    /// A stranger goes when it is silent and nobody is behind it; what it counted stays.
    #[test]
    fn strangers_are_forgotten() {
        let poll = mio::Poll::new().expect("epoll");
        let bell = Arc::new(mio::Waker::new(poll.registry(), mio::Token(0)).expect("eventfd"));
        let (events, _inbox) = crossbeam_channel::unbounded();
        let options = Options { workers: Some(1), ..Options::default() };
        let crew = Crew::start(&options, &events, &bell).expect("a worker");
        let mut control = Control::new(crew, Namespaces::new(poll.registry().try_clone().expect("epoll")));
        control.add_bridge(BridgeSpec { ageing_secs: 0, ..BridgeSpec::new("br0") }).expect("added");
        let local: IpAddr = [127, 0, 0, 1].into();
        let free = std::net::UdpSocket::bind((local, 0)).and_then(|socket| socket.local_addr());
        let dstport = free.expect("a free port").port();
        let udp = UdpSpec { dstport, srcport_range: None, csum: true };
        let kind =
            PortKind::Tunnel(TunnelSpec { udp: Some(udp), ..TunnelSpec::new(Header::Vxlan, 42, local) });
        let remotes = vec![[127, 0, 0, 2].into()];
        let tunnel = TunnelSettings { remotes, ..TunnelSettings::default() };
        let settings = PortSettings { tunnel, ..PortSettings::default() };
        let spec = PortSpec { name: "vx0".into(), bridge: "br0".into(), kind, settings };
        control.add_port(spec, Missing::Refuse).expect("added");
        let port = control.port("vx0").expect("there");
        let remotes = |control: &Control| control.tunnels.of(port).count();

        control.meet(port, [127, 0, 0, 3].into());
        let met = control.tunnels.of(port).find(|(_, remote)| remote.learned);
        let (id, shared) = met.map(|(id, remote)| (id, Arc::clone(&remote.shared))).expect("met");
        shared.counters[0].rx_frames.add(7);
        drop(shared);
        control.forget_strangers_at(Tick(100));
        control.forget_strangers_at(Tick(159));
        assert_eq!(remotes(&control), 2, "it was heard 59 s ago");
        let station = Key::new(MacAddr([2, 0, 0, 0, 0, 1]), 0);
        control.bridges[0].fdb.insert_static(station, id).expect("room");
        control.forget_strangers_at(Tick(160));
        assert_eq!(remotes(&control), 2, "a station is behind it");
        assert!(control.bridges[0].fdb.remove(station));
        control.bridges[0].spec.ageing_secs = 300;
        control.forget_strangers_at(Tick(399));
        assert_eq!(remotes(&control), 2, "its bridge remembers longer");
        control.forget_strangers_at(Tick(400));
        assert_eq!(remotes(&control), 1, "who is configured stays");
        assert!(control.tunnels.departed.is_empty(), "and its counts are added up");
        let received = |control: &mut Control| control.port_named("vx0").map(|port| port.counters.rx_frames);
        assert_eq!(received(&mut control).ok(), Some(7));
        control.meet(port, [127, 0, 0, 3].into());
        assert_eq!(remotes(&control), 2, "it is met again");
        control.close_all();
        assert!(control.tunnels.folded.is_empty());
        control.crew.stop();
    }
}
