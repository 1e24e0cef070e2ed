//! Tunnel ports: their endpoints, and their remotes, each of which is a port to the workers.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Control, Port, count, counters};
use crate::addr::PortId;
use crate::offload::Capabilities;
use crate::port::PortQueue;
use crate::port::vxlan::{self, Place};
use crate::spec::{PortKind, PortSettings, VxlanSpec};
use crate::stats::{Counters, DropReason};
use crate::status::{PortCounters, RemoteStatus};
use crate::switch::Error;
use crate::topology::{self, PortShared};
use crate::tunnel::{Demux, Network};

/// Remotes that a port gets to know by their frames, at most.
const STRANGERS_MAX: usize = 1024;
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

    /// The remote of a port that a static entry is behind, if only one can be meant.
    pub(super) fn only_remote(&self, port: PortId) -> Option<PortId> {
        let mut configured = self.of(port).filter(|(_, remote)| !remote.learned);
        configured.next().filter(|_| configured.next().is_none()).map(|(id, _)| id)
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
        self.remotes.keys().next_back().copied()
    }
}

impl Control {
    /// Opens what a tunnel port needs: its endpoint, unless another port has it already, and a way to each remote. Nothing is
    /// changed when that fails.
    pub(super) fn open_tunnel(&mut self, port: PortId, name: &str, spec: &VxlanSpec) -> Result<Queues, Error> {
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
        // A remote that cannot be reached now may be later.
        let mtus: Vec<u32> = spec.remotes.iter().map(|&remote| place.inner_mtu(remote).unwrap_or(1450)).collect();
        let existing = self.tunnels.endpoints.iter().find(|(_, endpoint)| endpoint.place == place);
        let mut queues = Queues::new();
        let endpoint = match existing {
            Some((&id, _)) => id,
            None => {
                let (receivers, sockets) = vxlan::open_endpoint(&place, self.crew.len()).map_err(named)?;
                let id = self.free_id_beside(&[port])?;
                let counters = (0..self.crew.len()).map(|_| Counters::default()).collect();
                self.tunnels.endpoints.insert(id, Endpoint { place, sockets, counters });
                queues.push((id, receivers));
                id
            }
        };
        for (&remote, mtu) in spec.remotes.iter().zip(mtus) {
            match self.add_remote(port, endpoint, spec, remote, mtu, false) {
                Ok(queue) => queues.push(queue),
                Err(error) => {
                    drop(self.forget_tunnel(port));
                    return Err(error);
                }
            }
            if mtu < 1500 {
                tracing::info!(
                    "port '{name}': frames of more than {mtu} bytes go to {remote} in fragments; \
                     better give the stations an MTU of {mtu}"
                );
            }
        }
        Ok(queues)
    }

    fn add_remote(
        &mut self,
        port: PortId,
        endpoint: PortId,
        spec: &VxlanSpec,
        address: IpAddr,
        mtu: u32,
        learned: bool,
    ) -> Result<(PortId, Vec<Box<dyn PortQueue>>), Error> {
        let id = self.free_id_beside(&[port])?;
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
        let place = place(&tunnel);
        let endpoint = self.tunnels.endpoints.iter().find(|(_, endpoint)| endpoint.place == place);
        let Some((&endpoint, _)) = endpoint else { return };
        let mtu = place.inner_mtu(address).unwrap_or(1450);
        if let Ok(queue) = self.add_remote(port, endpoint, &tunnel, address, mtu, true) {
            drop(self.publish(&[], vec![queue]));
        }
    }

    /// The remotes of an open tunnel port, and the port itself for frames from strangers, as the workers see them.
    pub(super) fn tunnel_ports(&self, id: PortId, port: &Port, bridge: usize) -> Vec<topology::Port> {
        let PortSettings { learning, flood, isolated, hairpin, .. } = port.spec.settings;
        let make = |id, device, learning, shared: &Arc<PortShared>| topology::Port {
            id,
            device,
            group: GROUP,
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
                    let frame_max = self.tunnels.mtu(port).unwrap_or(1450) as usize + 18;
                    demux.insert(spec.vni, Network { port, remotes, frame_max });
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
