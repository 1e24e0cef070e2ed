//! Tunnel ports: their endpoints, and their remotes, each of which is a port to the workers.
//!
//! `paths.rs`: what fits the ways to remotes. `strangers.rs`: remotes that nobody configured.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

mod paths;
mod remotes;
mod strangers;

use remotes::Remotes;

use super::{Control, Port, count, counters};
use crate::addr::{PortId, VlanId};
use crate::bridge::fdb::{Entry, Key, Kind, Tick};
use crate::bridge::vlan;
use crate::port::PortQueue;
use crate::port::tunnel::{self, Place, SendOptions, Senders};
use crate::spec::{Clash, PortKind, PortSettings, PortSpec, TunnelSettings, TunnelSpec};
use crate::stats::DropReason;
use crate::status::{PortCounters, RemoteStatus};
use crate::switch::Error;
use crate::switch::namespaces::same_place;
use crate::sys;
use crate::topology::{self, PortShared};
use crate::tunnel::wrap::Numbering;
use crate::tunnel::{Demux, Network};

/// MTU of a way that is not known yet, and of most stations.
const ETHERNET_MTU: u32 = 1500;
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
    remotes: Remotes,
    /// Strangers that have no ids yet.
    met: Vec<(PortId, IpAddr)>,
    /// When operators were last told that there are too many.
    crowded: Option<Instant>,
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
    /// What is nobody's is counted here.
    shared: Arc<PortShared>,
    /// Packets that the kernel could not put together from fragments before those that are counted here.
    failures_before: u64,
}

impl Endpoint {
    /// Packets that the kernel could not put together from fragments, for the whole namespace.
    fn failures(&self) -> u64 {
        self.place.reassembly_failures().saturating_sub(self.failures_before)
    }

    /// Whether the kernel counts the fragments of both as one.
    fn fragments_with(&self, other: &Endpoint) -> bool {
        let (one, other) = (&self.place, &other.place);
        one.local.is_ipv4() == other.local.is_ipv4() && same_place(&one.netns, &other.netns)
    }
}

#[derive(Debug)]
struct Outlet {
    /// Where its packets arrive.
    endpoints: Vec<PortId>,
    place: Place,
    options: SendOptions,
    senders: Vec<Arc<Senders>>,
    /// What stands and falls with its interface.
    bound: Place,
    /// That interface, if there is a certain one.
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
    numbering: Arc<Numbering>,
    /// Whether that was found out.
    probed: bool,
    /// Frames that had come from it when more had than before, and when that was.
    heard: (u64, Tick),
    shared: Arc<PortShared>,
}

/// Whether both are one, however their namespace is spelled.
fn same(one: &Place, other: &Place) -> bool {
    one.encapsulation == other.encapsulation
        && (one.local, one.port, one.group) == (other.local, other.port, other.group)
        && one.dev == other.dev
        && same_place(&one.netns, &other.netns)
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

impl Tunnels {
    pub(super) fn has(&self, id: PortId) -> bool {
        self.endpoints.contains_key(&id) || self.remotes.get(id).is_some()
    }

    /// Whether there are strangers without ids.
    pub(super) fn has_met(&self) -> bool {
        !self.met.is_empty()
    }

    /// The tunnel port that a remote is of.
    pub(super) fn port_of(&self, id: PortId) -> Option<(PortId, IpAddr)> {
        self.remotes.get(id).map(|remote| (remote.port, remote.address))
    }

    fn of(&self, port: PortId) -> impl Iterator<Item = (PortId, &Remote)> {
        self.remotes.of(port)
    }

    /// Removes remotes; what they have counted stays with their port.
    fn retire(&mut self, ids: &[PortId]) {
        let left = ids.iter().filter_map(|&id| self.remotes.remove(id));
        self.departed.extend(left.map(|remote| (remote.port, remote.shared)));
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

    /// Forgets what `port` sent from, and endpoints at which nothing but it arrived; what they have counted stays with it.
    fn forget_endpoints(&mut self, port: PortId) -> Vec<PortId> {
        self.outlets.remove(&port);
        let unused = |id: &PortId| !self.outlets.values().any(|outlet| outlet.endpoints.contains(id));
        let gone: Vec<PortId> = self.endpoints.keys().copied().filter(unused).collect();
        for id in &gone {
            let counts = self.counts_fragments(*id);
            let Some(endpoint) = self.endpoints.remove(id) else { continue };
            if counts {
                let folded = self.folded.entry(port).or_default();
                count(folded, DropReason::OuterFragments, endpoint.failures());
                // Another goes on where this one ended.
                let next = self.endpoints.values_mut().find(|other| endpoint.fragments_with(other));
                if let Some(next) = next {
                    next.failures_before = next.place.reassembly_failures();
                }
            }
            self.departed.push((port, endpoint.shared));
        }
        gone
    }

    /// Whether the fragments of a namespace are counted at this endpoint: it is one number for all of them.
    fn counts_fragments(&self, id: PortId) -> bool {
        let Some(endpoint) = self.endpoints.get(&id) else { return false };
        let first = self.endpoints.iter().find(|(_, other)| endpoint.fragments_with(other));
        first.is_some_and(|(&first, _)| first == id)
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
        self.remotes.last_id().max(self.endpoints.keys().next_back().copied())
    }
}

impl Control {
    /// Gives the remotes of a tunnel port their ids, before anything is opened: a port that waits can have static entries.
    pub(super) fn claim_far_ends(
        &mut self,
        port: PortId,
        spec: &TunnelSpec,
        settings: &TunnelSettings,
    ) -> Result<(), Error> {
        for address in spec.far_ends(settings) {
            if !self.tunnels.remotes.has(port, address) {
                self.claim_remote(port, spec, address, false)?;
            }
        }
        Ok(())
    }

    /// Opens what a tunnel port needs: its endpoints, unless another port has them already, what it sends from, and a way to each
    /// remote.
    pub(super) fn open_tunnel(
        &mut self,
        port: PortId,
        whole: &PortSpec,
        spec: &TunnelSpec,
    ) -> Result<Queues, Error> {
        self.check_taken(&whole.name, spec, &whole.settings.tunnel)?;
        let mut queues = match self.open_places(port, whole, spec) {
            Ok(queues) => queues,
            Err(error) => {
                drop(self.tunnels.forget_endpoints(port));
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
        let bound = Place::of_group(spec).unwrap_or_else(|| Place::of(spec));
        let ifindex = bound.ifindex().map_err(named)?;
        let (mut queues, mut endpoints) = (Queues::new(), Vec::new());
        for place in std::iter::once(Place::of(spec)).chain(Place::of_group(spec)) {
            let mut known = self.tunnels.endpoints.iter();
            if let Some((&id, _)) = known.find(|(_, endpoint)| same(&endpoint.place, &place)) {
                endpoints.push(id);
                continue;
            }
            let receivers = place.open(self.crew.len()).map_err(named)?;
            let id = self.free_id_beside(&[port])?;
            let shared = Arc::new(PortShared::new(self.crew.len(), 0, false));
            let failures_before = place.reassembly_failures();
            self.tunnels.endpoints.insert(id, Endpoint { place, shared, failures_before });
            endpoints.push(id);
            queues.push((id, receivers));
        }
        let (place, options) = (Place::of(spec), SendOptions::of(spec));
        let mut outlets = self.tunnels.outlets.values();
        let shared = outlets.find(|outlet| outlet.options == options && same(&outlet.place, &place));
        let senders = match shared {
            Some(outlet) => outlet.senders.clone(),
            None => {
                let here = |endpoint: &&Endpoint| {
                    endpoint.place.local == place.local && same_place(&endpoint.place.netns, &place.netns)
                };
                let taken = self.tunnels.endpoints.values().filter(here);
                let taken: Vec<u16> = taken.map(|endpoint| endpoint.place.port).collect();
                place.senders(&options, &taken, self.crew.len()).map_err(named)?
            }
        };
        if bound.ifindex().map_err(named)? != ifindex {
            return Err(named(sys::Error::refused(
                io::ErrorKind::NotFound,
                "its interface changed meanwhile",
            )));
        }
        self.tunnels.outlets.insert(port, Outlet { endpoints, place, options, senders, bound, ifindex });
        Ok(queues)
    }

    /// Refuses a new tunnel that cannot be there together with another port.
    pub(super) fn check_tunnel_free(&self, spec: &PortSpec) -> Result<(), Error> {
        match &spec.kind {
            PortKind::Tunnel(tunnel) => self.check_taken(&spec.name, tunnel, &spec.settings.tunnel),
            _ => Ok(()),
        }
    }

    /// Refuses what cannot be there together with another port.
    fn check_taken(&self, name: &str, spec: &TunnelSpec, settings: &TunnelSettings) -> Result<(), Error> {
        for other in self.ports.values().filter(|other| other.spec.name != name) {
            let PortKind::Tunnel(there) = &other.spec.kind else { continue };
            let Some(clash) = spec.clash(settings, there, &other.spec.settings.tunnel) else { continue };
            if !same_place(&spec.netns, &there.netns) {
                continue;
            }
            let at = spec.udp.as_ref().map_or_else(
                || format!("GRE at {}", spec.local),
                |udp| format!("UDP port {} of {}", udp.dstport, spec.local),
            );
            let what = match clash {
                Clash::Network(id) => format!(
                    "{id} at {at} is port '{0}' already; remove that first with: vswitchctl port del {0} (or give both \
                     --strict-remotes on, and remotes of their own)",
                    other.spec.name
                ),
                Clash::Sockets => format!(
                    "{at} is port '{0}' already, of type {1} and {2}; give the same, or remove it first with: vswitchctl port del {0}",
                    other.spec.name,
                    there.type_name(),
                    there.dev.as_ref().map_or("without --dev".to_owned(), |dev| format!("with --dev {dev}"))
                ),
            };
            return Err(Error::Exists(what));
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
            if self.tunnels.remotes.has(port, address) {
                continue;
            }
            match self.claim_remote(port, &spec, address, false) {
                Ok(id) => claimed.push(id),
                Err(error) => {
                    claimed.into_iter().for_each(|id| drop(self.tunnels.remotes.remove(id)));
                    return Err(error);
                }
            }
        }
        // Nothing can be refused from here on.
        self.tunnels.retire(&gone);
        for id in self.tunnels.ids_of(port) {
            if let Some(remote) = self.tunnels.remotes.get_mut(id) {
                remote.learned &= !wanted.contains(&remote.address);
            }
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
            if let Some((key, entry)) = bridge.fdb.iter().find(used) {
                let remote = self.tunnels.remotes.get(entry.port);
                let port = remote.and_then(|remote| self.ports.get(&remote.port));
                let vlan =
                    if bridge.spec.vlan_filtering { format!(" --vlan {}", key.vid()) } else { String::new() };
                return Err(Error::Invalid(format!(
                    "port '{0}': static entry {2} is behind remote {1}; remove it first with: vswitchctl fdb del {2} --bridge {3}{vlan}",
                    port.map_or("", |port| &port.spec.name),
                    remote.map_or(String::new(), |remote| remote.address.to_string()),
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
            let mut existing: Vec<IpAddr> = all.iter().map(|(_, remote)| remote.address).collect();
            existing.sort_unstable();
            let existing: Vec<String> = existing.iter().map(IpAddr::to_string).collect();
            let what = address.map_or_else(
                || "give 'remote', the one that the station is behind".to_owned(),
                |ip| format!("no remote {ip}"),
            );
            Error::Invalid(if existing.is_empty() {
                format!("port '{name}' has no remote; add one with: vswitchctl port set {name} --remote IP")
            } else {
                format!("port '{name}': {what}; existing: {}", existing.join(", "))
            })
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
        let numbering = Arc::default();
        let remote =
            Remote { numbering, port, address, learned, mtu, probed: false, heard, shared: Arc::new(shared) };
        self.tunnels.remotes.insert(id, remote);
        Ok(id)
    }

    /// The workers' ways to the remotes of a port, if it is open.
    fn ways(&self, port: PortId, spec: &TunnelSpec, settings: &TunnelSettings) -> Queues {
        let Some(outlet) = self.tunnels.outlets.get(&port) else { return Queues::new() };
        let way = |remote: &Remote| {
            let own = (&remote.numbering, &remote.shared);
            tunnel::queues(spec, settings.df, remote.address, own, &outlet.senders)
        };
        self.tunnels.of(port).map(|(id, remote)| (id, way(remote))).collect()
    }

    /// Closes a tunnel port whose underlay is gone. Its remotes keep their ids, and with them their static entries; strangers are
    /// forgotten. Returns the ids that workers are to let go of, and those that stand for nothing any more.
    pub(super) fn shut_tunnel(&mut self, port: PortId) -> (Vec<PortId>, Vec<PortId>) {
        let mut all = self.tunnels.ids_of(port);
        let strangers: Vec<PortId> =
            self.tunnels.of(port).filter(|(_, remote)| remote.learned).map(|(id, _)| id).collect();
        self.tunnels.retire(&strangers);
        all.extend(self.tunnels.forget_endpoints(port));
        (all, strangers)
    }

    /// Forgets a tunnel port's remotes, and its endpoint if it was the last there. Returns their ids.
    pub(super) fn forget_tunnel(&mut self, port: PortId) -> Vec<PortId> {
        let mut ids = self.tunnels.ids_of(port);
        ids.extend(self.tunnels.forget_endpoints(port));
        ids.iter().for_each(|&id| drop(self.tunnels.remotes.remove(id)));
        self.tunnels.departed.retain(|(departed, _)| *departed != port);
        self.tunnels.folded.remove(&port);
        ids
    }

    /// The remotes of an open tunnel port, and the port itself for frames from strangers, as the workers see them.
    pub(super) fn tunnel_ports(&self, id: PortId, port: &Port, bridge: usize) -> Vec<topology::Port> {
        let PortSettings { learning, flood, isolated, hairpin, ref tunnel, .. } = port.spec.settings;
        let make = |id, device, learning, shared: &Arc<PortShared>| topology::Port {
            device,
            group: GROUP,
            guard_local: tunnel.guard_local,
            df: Some(tunnel.df),
            mss_clamp: tunnel.mss_clamp,
            neigh_suppress: tunnel.neigh_suppress,
            learning,
            flood,
            isolated,
            hairpin,
            ..topology::Port::new(id, bridge, self.policy(device), Arc::clone(shared))
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
            let arriving = self.tunnels.outlets.iter().filter(|(_, outlet)| outlet.endpoints.contains(&id));
            for (&port, _) in arriving {
                let Some(known) = self.ports.get(&port) else { continue };
                let PortKind::Tunnel(spec) = &known.spec.kind else { continue };
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
            (id, topology::Endpoint { demux, shared: Arc::clone(&endpoint.shared) })
        };
        self.tunnels.endpoints.iter().map(endpoint).collect()
    }

    /// Adds what a port's remotes have counted; and what was nobody's at its endpoints, to the oldest port there.
    pub(super) fn add_tunnel_counters(&self, id: PortId, sum: &mut PortCounters) {
        for (_, remote) in self.tunnels.of(id) {
            sum.add(&counters(&remote.shared));
        }
        if let Some(folded) = self.tunnels.folded.get(&id) {
            sum.add(folded);
        }
        for (_, shared) in self.tunnels.departed.iter().filter(|(port, _)| *port == id) {
            sum.add(&counters(shared));
        }
        let Some(outlet) = self.tunnels.outlets.get(&id) else { return };
        for endpoint in &outlet.endpoints {
            let there = |other: &PortId| self.tunnels.outlets[other].endpoints.contains(endpoint);
            let oldest = self.tunnels.outlets.keys().filter(|other| there(other));
            let oldest = oldest.min_by_key(|other| self.ports.get(other).map(|port| port.sequence));
            if let (Some(known), true) = (self.tunnels.endpoints.get(endpoint), oldest == Some(&id)) {
                sum.add(&counters(&known.shared));
                if self.tunnels.counts_fragments(*endpoint) {
                    count(sum, DropReason::OuterFragments, known.failures());
                }
            }
        }
    }
}
