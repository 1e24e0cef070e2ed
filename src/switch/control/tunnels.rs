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
use crate::spec::{PortKind, PortSettings, PortSpec, TunnelSettings, VxlanSpec};
use crate::stats::{Counters, DropReason};
use crate::status::{PortCounters, RemoteStatus};
use crate::switch::Error;
use crate::topology::{self, PortShared};
use crate::tunnel::{Demux, Network};

/// Remotes that a port gets to know by their frames, at most.
const STRANGERS_MAX: usize = 1024;
/// MTU inside where the way is not known yet: Ethernet's, less the headers around.
const DEFAULT_MTU: u32 = 1450;
/// Every tunnel port is in one group: what comes by one is not flooded into another.
const GROUP: u16 = 1;

/// New queues for the workers, by id.
pub(super) type Queues = Vec<(PortId, Vec<Box<dyn PortQueue>>)>;

#[derive(Debug, Default)]
pub(super) struct Tunnels {
    endpoints: BTreeMap<PortId, Endpoint>,
    remotes: BTreeMap<PortId, Remote>,
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
    shared: Arc<PortShared>,
}

fn place(spec: &VxlanSpec) -> Place {
    Place { netns: spec.netns.clone(), local: spec.local, port: spec.dstport }
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
    /// Opens what a tunnel port needs: its endpoint, unless another port has it already, and a way to each remote. Nothing is
    /// changed when that fails.
    pub(super) fn open_tunnel(
        &mut self,
        port: PortId,
        whole: &PortSpec,
        spec: &VxlanSpec,
    ) -> Result<Queues, Error> {
        let name = whole.name.as_str();
        let named = |error| Error::port(name, error);
        let place = place(spec);
        let same = |other: &&Port| match &other.spec.kind {
            PortKind::Vxlan(other) => other.vni == spec.vni && self::place(other) == place,
            _ => false,
        };
        if let Some(other) = self.ports.values().filter(|other| other.spec.name != name).find(same) {
            return Err(Error::Exists(format!(
                "VNI {0} at {1} is port '{2}' already; remove that first with: vswitchctl port del {2}",
                spec.vni,
                SocketAddr::new(spec.local, spec.dstport),
                other.spec.name
            )));
        }
        let mut queues = Queues::new();
        let endpoint = match self.endpoint_of(spec) {
            Some(id) => id,
            None => {
                let (receivers, sockets) = vxlan::open_endpoint(&place, self.crew.len()).map_err(named)?;
                let id = self.free_id_beside(&[port])?;
                let counters = (0..self.crew.len()).map(|_| Counters::default()).collect();
                self.tunnels.endpoints.insert(id, Endpoint { place, sockets, counters });
                queues.push((id, receivers));
                id
            }
        };
        for &remote in &whole.settings.tunnel.remotes {
            match self.add_remote(port, endpoint, (name, spec), remote, false) {
                Ok(queue) => queues.push(queue),
                Err(error) => {
                    drop(self.forget_tunnel(port));
                    return Err(error);
                }
            }
        }
        Ok(queues)
    }

    /// Makes a tunnel port's remotes those of its settings, which were `before`; the others do not notice. Returns the ids to
    /// remove and the queues to add.
    pub(super) fn change_remotes(
        &mut self,
        port: PortId,
        before: &TunnelSettings,
    ) -> Result<(Vec<PortId>, Queues), Error> {
        let Some(Port { spec, open: true, .. }) = self.ports.get(&port) else {
            return Ok(Default::default());
        };
        let (name, wanted) = (spec.name.clone(), spec.settings.tunnel.remotes.clone());
        let PortKind::Vxlan(spec) = spec.kind.clone() else { return Ok(Default::default()) };
        let Some(endpoint) = self.endpoint_of(&spec) else { return Ok(Default::default()) };
        let gone =
            |remote: &Remote| before.remotes.contains(&remote.address) && !wanted.contains(&remote.address);
        let gone: Vec<PortId> =
            self.tunnels.of(port).filter(|(_, remote)| gone(remote)).map(|(id, _)| id).collect();
        self.check_unused(&gone)?;
        let mut added = Queues::new();
        for &address in wanted.iter().filter(|address| !before.remotes.contains(address)) {
            let known = self
                .tunnels
                .remotes
                .values_mut()
                .find(|known| known.port == port && known.address == address);
            if let Some(known) = known {
                known.learned = false;
                continue;
            }
            match self.add_remote(port, endpoint, (&name, &spec), address, false) {
                Ok(queue) => added.push(queue),
                Err(error) => {
                    for (id, _) in &added {
                        self.tunnels.remotes.remove(id);
                    }
                    return Err(error);
                }
            }
        }
        for id in &gone {
            self.tunnels.remotes.remove(id);
        }
        for bridge in &self.bridges {
            bridge.fdb.flush(|_, entry| gone.contains(&entry.port));
        }
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
        self.tunnels.endpoints.iter().find(|(_, endpoint)| endpoint.place == place).map(|(&id, _)| id)
    }

    /// The remote of a tunnel port that a static entry is to be behind.
    pub(super) fn remote_for(&self, port: PortId, address: Option<IpAddr>) -> Result<PortId, Error> {
        let name = self.ports.get(&port).map_or("", |port| &port.spec.name);
        let all: Vec<_> = self.tunnels.of(port).collect();
        let found = match address {
            Some(address) => all.iter().find(|(_, remote)| remote.address == address),
            None => all.first().filter(|_| all.len() == 1),
        };
        found.map(|&(id, _)| id).ok_or_else(|| {
            let existing: Vec<String> = all.iter().map(|(_, remote)| remote.address.to_string()).collect();
            let what = address
                .map_or("say behind which remote with --remote".to_owned(), |ip| format!("no remote {ip}"));
            Error::Invalid(format!("port '{name}': {what}; existing: {}", existing.join(", ")))
        })
    }

    fn add_remote(
        &mut self,
        port: PortId,
        endpoint: PortId,
        (name, spec): (&str, &VxlanSpec),
        address: IpAddr,
        learned: bool,
    ) -> Result<(PortId, Vec<Box<dyn PortQueue>>), Error> {
        let id = self.free_id_beside(&[port])?;
        // One that cannot be reached now may be later.
        let mtu = place(spec).inner_mtu(address).unwrap_or(DEFAULT_MTU);
        if mtu < 1500 {
            tracing::info!(
                "port '{name}': frames with more than {mtu} bytes of payload go to {address} in fragments; \
                 better give the stations an MTU of {mtu}"
            );
        }
        let shared = PortShared::new(self.crew.len(), u32::from(u16::MAX), false);
        shared.set_segment_max(mtu + 14);
        let Some(endpoint) = self.tunnels.endpoints.get(&endpoint) else {
            return Err(Error::NotFound(format!("the endpoint of {address} is gone")));
        };
        let queues = endpoint.sockets.remote(spec.vni, SocketAddr::new(address, spec.dstport));
        self.tunnels.remotes.insert(id, Remote { port, address, learned, mtu, shared: Arc::new(shared) });
        Ok((id, queues))
    }

    /// Forgets a tunnel port's remotes, and its endpoint if it was the last there. Returns their ids.
    pub(super) fn forget_tunnel(&mut self, port: PortId) -> Vec<PortId> {
        if self.tunnels.endpoints.is_empty() {
            return Vec::new();
        }
        let mut ids: Vec<PortId> = self.tunnels.of(port).map(|(id, _)| id).collect();
        self.tunnels.remotes.retain(|_, remote| remote.port != port);
        let used: Vec<Place> = self
            .ports
            .iter()
            .filter(|(id, other)| **id != port && other.open)
            .filter_map(|(_, other)| match &other.spec.kind {
                PortKind::Vxlan(spec) => Some(place(spec)),
                _ => None,
            })
            .collect();
        let unused = |(_, endpoint): &(&PortId, &Endpoint)| !used.contains(&endpoint.place);
        let gone: Vec<PortId> = self.tunnels.endpoints.iter().filter(unused).map(|(&id, _)| id).collect();
        self.tunnels.endpoints.retain(|id, _| !gone.contains(id));
        ids.extend(gone);
        ids
    }

    /// A frame came to a tunnel port from a remote that it did not know: from now on stations are learned behind it.
    pub(in crate::switch) fn meet(&mut self, port: PortId, address: IpAddr) {
        let Some(Port { spec, open: true, .. }) = self.ports.get(&port) else { return };
        let PortKind::Vxlan(tunnel) = spec.kind.clone() else { return };
        let known = self.tunnels.of(port).any(|(_, remote)| remote.address == address);
        let strangers = self.tunnels.of(port).filter(|(_, remote)| remote.learned).count();
        if known || strangers >= STRANGERS_MAX {
            return;
        }
        let name = spec.name.clone();
        let Some(endpoint) = self.endpoint_of(&tunnel) else { return };
        if let Ok(queue) = self.add_remote(port, endpoint, (&name, &tunnel), address, true) {
            drop(self.publish(&[], vec![queue]));
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
                    && place(spec) == endpoint.place
                {
                    let remotes = self.tunnels.of(port).map(|(id, remote)| (remote.address, id)).collect();
                    let frame_max = self.tunnels.mtu(port).unwrap_or(DEFAULT_MTU) as usize + 18;
                    let strict = known.spec.settings.tunnel.strict_remotes;
                    demux.insert(spec.vni, Network { port, remotes, frame_max, strict });
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
        let place = place(spec);
        let at_place = self.ports.values().filter(|other| match &other.spec.kind {
            PortKind::Vxlan(other) => self::place(other) == place,
            _ => false,
        });
        let oldest = at_place.map(|other| other.sequence).min() == Some(port.sequence);
        let endpoint = self.tunnels.endpoints.values().find(|endpoint| endpoint.place == place);
        if let (true, Some(endpoint)) = (oldest, endpoint) {
            for &reason in DropReason::ALL {
                count(sum, reason, endpoint.counters.iter().map(|worker| worker.drops(reason)).sum());
            }
        }
    }
}
