//! Tunnel ports: their endpoints, and their remotes, each of which is a port to the workers.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Control, Port, count, counters};
use crate::addr::PortId;
use crate::bridge::fdb::{Entry, Key, Kind, Tick};
use crate::offload::Capabilities;
use crate::port::PortQueue;
use crate::port::vxlan::{self, Place};
use crate::spec::{PortKind, PortSettings, PortSpec, TunnelSettings, VxlanSpec};
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
/// MTU of a way that is not known yet.
const ETHERNET_MTU: u32 = 1500;
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
    /// The same, added up when no worker counts there any more.
    folded: BTreeMap<PortId, PortCounters>,
    /// Ports whose ways were looked at again.
    probed: usize,
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
    /// Frames that had come from it when more had than before, and when that was.
    heard: (u64, Tick),
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
        queues.extend(self.tunnels.ids_of(port).into_iter().filter_map(|id| self.way(id, endpoint, spec)));
        self.probe(port, spec);
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
        self.probe(port, &spec);
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
        shared.set_segment_max(mtu + ETH_HEADER_BYTES);
        let heard = (0, self.crew.now());
        let remote = Remote { port, address, learned, mtu, heard, shared: Arc::new(shared) };
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

    /// Finds out what fits the ways to a port's remotes; where there is no way now, what was known stays.
    fn probe(&mut self, port: PortId, spec: &VxlanSpec) {
        let name = self.ports.get(&port).map_or("", |port| &port.spec.name);
        let addresses: Vec<IpAddr> = self.tunnels.of(port).map(|(_, remote)| remote.address).collect();
        let Ok(mtus) = place(spec).inner_mtus(&addresses) else { return };
        let remotes = self.tunnels.remotes.values_mut().filter(|remote| remote.port == port);
        for (remote, mtu) in remotes.zip(mtus) {
            let Some(mtu) = mtu else { continue };
            if mtu != remote.mtu && mtu < ETHERNET_MTU {
                tracing::info!(
                    "port '{name}': frames with more than {mtu} bytes of payload go to {} in fragments",
                    remote.address
                );
            }
            remote.mtu = mtu;
            remote.shared.set_segment_max(mtu + ETH_HEADER_BYTES);
        }
    }

    /// Looks again at the ways of one tunnel port after the other: routes and MTUs change. To be called each second.
    pub(in crate::switch) fn probe_next(&mut self) {
        let open = |port: &Port| port.open && matches!(port.spec.kind, PortKind::Vxlan(_));
        let all: Vec<PortId> = self.ports.iter().filter(|(_, port)| open(port)).map(|(&id, _)| id).collect();
        if let Some(&port) = all.get(self.tunnels.probed % all.len().max(1))
            && let PortKind::Vxlan(spec) = self.ports[&port].spec.kind.clone()
        {
            self.probe(port, &spec);
        }
        self.tunnels.probed = self.tunnels.probed.wrapping_add(1);
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
        if let Some(folded) = self.tunnels.folded.get(&id) {
            sum.add(folded);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::MacAddr;
    use crate::spec::BridgeSpec;
    use crate::switch::{Crew, Missing, Namespaces, Options};

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
        let kind = PortKind::Vxlan(VxlanSpec { vni: 42, local, dstport, netns: None });
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
