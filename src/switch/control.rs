//! What the operator asked for, and how it is carried out.
//!
//! One [`Control`] behind one mutex. Every change goes the same way: check everything that can be checked, open what has to be
//! opened, build the new topology, hand it to the workers, and only when all of them run on it, close and forget
//! what is no longer used. Whatever fails before the hand-over changes nothing.
//!
//! Here: bridges and ports. `stations.rs`: the forwarding databases. `neighbours.rs`: who has which
//! address. `streams.rs`: peers of ports on sockets. `announce.rs`: what interfaces tell their
//! neighbours. `rings.rs`: rings that the kernel stops filling. `wires.rs`, `above.rs`: interfaces
//! that are one wire, or carry others. `world.rs`: what happens to interfaces by itself.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Instant;

mod above;
mod announce;
mod neighbours;
mod rings;
mod silence;
mod stations;
mod streams;
mod tunnels;
mod wires;
mod world;

pub(super) use silence::silence;
use streams::Endpoint;
use tunnels::{Changes, Queues, Tunnels};
use world::{RETRY_FIRST, RETRY_MAX, RETRY_MIN};

use super::crew::Crew;
use super::disposal;
use super::identity::Identity;
use super::namespaces::{Namespaces, Place, same_place};
use super::{Error, Missing};
use crate::addr::PortId;
use crate::bridge::fdb::{self, Fdb, Key, Kind};
use crate::bridge::neighbours::Neighbours;
use crate::bridge::vlan::VlanPolicy;
use crate::offload::Capabilities;
use crate::port::backoff::Backoff;
use crate::port::{self, OpenPort, Preparation};
use crate::spec::{BridgeSpec, Meeting, PortKind, PortSettings, PortSpec, Shared, TunnelSettings, VlanMode};
use crate::stats::DropReason;
use crate::status::{BridgeStatus, Peer, PortCounters, PortState, PortStatus};
use crate::sys;
use crate::sys::netlink::Link;
use crate::topology::{self, PORTS_MAX, PortShared, Topology};
use crate::virtio::room::Pool;
use crate::worker::Applied;

#[derive(Debug)]
pub(super) struct Control {
    pub(super) crew: Crew,
    namespaces: Namespaces,
    inspection: above::Inspection,
    generation: u64,
    bridges: Vec<Bridge>,
    ports: BTreeMap<PortId, Port>,
    /// Order of creation of the next port.
    sequence: u64,
    tunnels: Tunnels,
    news: neighbours::News,
    announcements: announce::Announcements,
    /// What the addresses of interfaces are made of.
    pub(super) identity: Identity,
    /// What is opened before ports come and what is left for later.
    preparation: Preparation,
    /// Packet ports on whose interfaces the host is to be silenced.
    awake: Vec<silence::Awake>,
    /// Ids of removed ports that a worker may still know, until all workers have reached this generation.
    retired: Vec<(PortId, u64)>,
    /// What guests share with us.
    guest_memory: Arc<Pool>,
}

#[derive(Debug)]
struct Bridge {
    spec: BridgeSpec,
    fdb: Arc<Fdb>,
    neighbours: Arc<Neighbours>,
}

#[derive(Debug)]
struct Port {
    spec: PortSpec,
    sequence: u64,
    shared: Arc<PortShared>,
    capabilities: Capabilities,
    queues: usize,
    /// Kernel memory of its rings, which is never swapped out.
    ring_bytes: u64,
    /// Undone when the port closes.
    keep: Vec<std::os::fd::OwnedFd>,
    /// Its rings that the kernel may stop filling.
    watches: Vec<sys::packet::Watch>,
    /// The connection to a guest, and whether it was up when it was looked at last.
    guest: Option<(port::vhost_user::Link, bool)>,
    /// Whether workers hold queues of it.
    open: bool,
    /// Whether its interface was made for it ([`Missing::Leave`]), so that neither stays without the other.
    leaves: bool,
    /// The interface, as last heard of.
    link: Option<Link>,
    /// What is on top of the interface, and gets no frames.
    above: above::Above,
    /// Frames that overflowed its queue towards us.
    missed: u64,
    /// What the kernel's own count of them said when it was read last.
    missed_seen: u64,
    /// Why it has no device or no peer, as last told to the operator.
    complaint: Option<String>,
    /// Whether the last try to open it was refused, other than for want of what it waits for.
    failed: bool,
    /// When it is tried again; `None`: at once.
    retry: Option<Backoff>,
    /// Of a port on a socket: where its peers come from.
    endpoint: Option<Endpoint>,
}

impl Port {
    /// Whether the switch made its device.
    fn is_tap(&self) -> bool {
        matches!(self.spec.kind, PortKind::Tap(_) | PortKind::Internal(_))
    }

    /// Whether its device stays when its descriptors are closed, unless the kernel is told to remove it.
    fn has_lasting_device(&self) -> bool {
        self.leaves || matches!(&self.spec.kind, PortKind::Macvtap(spec) if spec.lower.is_some())
    }

    /// What overflowed its queue towards us was lost before any worker could count it; the kernel tells as long as there
    /// is the device.
    fn count_missed(&mut self, namespaces: &Namespaces) {
        if let Some(dropped) = self.dropped(namespaces).filter(|dropped| *dropped > self.missed_seen) {
            self.missed += dropped - self.missed_seen;
            self.missed_seen = dropped;
        }
    }

    /// The kernel's count of what it dropped on the way to the program that holds the device, others before us among them.
    fn dropped(&self, namespaces: &Namespaces) -> Option<u64> {
        let (place, _) = self.interface().filter(|_| self.open)?;
        let (link, netlink) = (self.link.as_ref()?, namespaces.get(&place)?);
        match self.spec.kind {
            PortKind::Tap(_) | PortKind::Internal(_) => netlink.tx_dropped(link.index).ok(),
            PortKind::Macvtap(_) => netlink.rx_dropped(link.index).ok(),
            _ => None,
        }
    }

    /// It has its device, or the socket that its peers come to.
    fn opened(&mut self) {
        self.open = true;
        self.is_fine();
    }

    /// Nothing is refused to it any more.
    fn is_fine(&mut self) {
        self.failed = false;
        self.complaint = None;
        self.retry = None;
    }

    /// A try to open it was refused; whether that is news. Without what it waits for it is looked at again soon, and after another
    /// refusal in a while, longer each time.
    fn refused(&mut self, error: &Error, now: Instant) -> bool {
        self.failed = !matches!(error, Error::NotFound(_));
        if self.failed || self.has_lasting_device() {
            let first = if self.has_lasting_device() { RETRY_MIN } else { RETRY_FIRST };
            self.retry.get_or_insert_with(|| Backoff::starting_with(first, RETRY_MAX)).failed(now);
        }
        let complaint = Some(error.to_string());
        let is_news = self.complaint != complaint;
        self.complaint = complaint;
        is_news
    }

    /// Whether it may be tried now.
    fn is_due(&self, now: Instant) -> bool {
        !self.open && self.retry.as_ref().and_then(Backoff::due).is_none_or(|due| due <= now)
    }

    /// Why it carries no frames, without its name in front.
    fn reason(&self) -> Option<String> {
        let complaint = self.complaint.as_ref().filter(|_| !self.open)?;
        let named = format!("port '{}': ", self.spec.name);
        Some(complaint.strip_prefix(&named).unwrap_or(complaint).to_owned())
    }

    /// The interface it is made of, and where.
    fn interface(&self) -> Option<(Place, &str)> {
        interface(&self.spec.kind)
    }

    /// The namespace it is in, or its underlay.
    fn place(&self) -> Option<Place> {
        match &self.spec.kind {
            PortKind::Tunnel(spec) => Some(spec.netns.clone()),
            _ => self.interface().map(|(place, _)| place),
        }
    }

    fn state(&self) -> PortState {
        match (&self.spec.kind, self.open, &self.link) {
            (_, false, _) if self.failed => PortState::Failed,
            (_, false, _) if self.endpoint.is_some() => PortState::Down,
            (_, false, _) => PortState::Gone,
            (PortKind::VhostUser(_), true, _) => match &self.guest {
                Some((guest, _)) if guest.is_up() => PortState::Up,
                _ => PortState::Down,
            },
            (PortKind::Mem(_) | PortKind::Tunnel(_), true, _) => PortState::Up,
            (_, true, _) if self.on_socket() => PortState::Up,
            (_, true, Some(link)) if link.up && link.running => PortState::Up,
            (_, true, _) => PortState::Down,
        }
    }
}

fn interface(kind: &PortKind) -> Option<(Place, &str)> {
    kind.interface().map(|(place, name)| (place.clone(), name))
}

/// Name of the interface that was there before the port, and whose coming brings the port back.
fn awaited(kind: &PortKind) -> Option<&str> {
    kind.awaited()
}

/// What a port would have of one that is there already, as far as names tell.
///
/// An interface may have several names, and others tomorrow. So a port that has its interface is asked only by whoever
/// wants to make one of that name; who wants one that exists is compared by the kernel's index, when it is opened
/// (`wires.rs`).
fn clash<'a>(port: &Port, spec: &'a PortSpec) -> Option<Shared<'a>> {
    let Some(link) = port.link.as_ref().filter(|_| port.open) else {
        return port.spec.shares(spec, same_place);
    };
    let (place, ifname) = spec.kind.interface()?;
    let made = spec.kind.lower().is_some() || spec.kind.awaited().is_none();
    let same = made && link.name == ifname && same_place(port.spec.kind.interface()?.0, place);
    same.then_some(Shared { ifname, below: false })
}

/// Says so of a port that has the interface, or one above it.
fn taken(ifname: impl std::fmt::Display, below: bool, port: &Port) -> Error {
    Error::Exists(format!(
        "interface {ifname} is {}port '{1}' of bridge '{2}' already; remove that first with: vswitchctl port del {1}",
        if below { "below " } else { "" },
        port.spec.name,
        port.spec.bridge
    ))
}

impl Control {
    pub(super) fn new(crew: Crew, namespaces: Namespaces) -> Control {
        Control {
            crew,
            namespaces,
            inspection: above::Inspection::default(),
            generation: 0,
            bridges: Vec::new(),
            ports: BTreeMap::new(),
            sequence: 0,
            tunnels: Tunnels::default(),
            news: neighbours::News::default(),
            announcements: announce::Announcements::default(),
            identity: Identity::default(),
            preparation: Preparation::default(),
            awake: Vec::new(),
            retired: Vec::new(),
            guest_memory: Arc::new(Pool::new(None)),
        }
    }

    /// Before there are ports.
    pub(super) fn set_guest_memory_max(&mut self, bytes: Option<u64>) {
        self.guest_memory = Arc::new(Pool::new(bytes));
    }

    // ---- bridges ----

    pub(super) fn add_bridge(&mut self, spec: BridgeSpec) -> Result<(), Error> {
        check_name("bridge", &spec.name)?;
        check_bridge(&spec)?;
        if self.bridges.iter().any(|bridge| bridge.spec.name == spec.name) {
            return Err(Error::Exists(format!(
                "bridge '{0}' exists already; change it with: vswitchctl bridge set {0} …",
                spec.name
            )));
        }
        let fdb = new_fdb(&spec)?;
        self.bridges.push(Bridge { spec, fdb, neighbours: Arc::default() });
        drop(self.publish(&[], Vec::new()));
        Ok(())
    }

    pub(super) fn set_bridge(&mut self, spec: BridgeSpec) -> Result<(), Error> {
        let index = self.bridge(&spec.name)?;
        check_bridge(&spec)?;
        let mapped = self.members(&spec.name).find(|(_, port)| is_mapped(&port.spec.kind));
        if let (false, Some((_, port))) = (spec.vlan_filtering, mapped) {
            return Err(Error::Invalid(format!(
                "bridge '{}' has to filter VLANs while port '{1}' maps them to VNIs; remove that first with: \
                 vswitchctl port del {1}",
                spec.name, port.spec.name
            )));
        }
        let statics = self.statics_under(index, &spec)?;
        let neighbours = self.neighbours_under(index, &spec)?;
        let size_changed = self.bridges[index].spec.fdb_max != spec.fdb_max;
        let resized = size_changed.then(|| new_fdb(&spec)).transpose()?;
        let bridge = &mut self.bridges[index];
        let before = std::mem::replace(&mut bridge.spec, spec);
        if let Some(neighbours) = neighbours {
            bridge.neighbours = Arc::new(neighbours);
        }
        let rekeyed = before.vlan_filtering != bridge.spec.vlan_filtering
            || before.default_pvid != bridge.spec.default_pvid;
        if let Some(resized) = resized {
            bridge.fdb.copy_to(&resized);
            bridge.fdb = resized;
        }
        drop(self.publish(&[], Vec::new()));
        if rekeyed {
            self.rekey(index, &statics);
        }
        self.refresh_locals(index);
        Ok(())
    }

    pub(super) fn del_bridge(&mut self, name: &str, with_ports: bool) -> Result<(), Error> {
        let index = self.bridge(name)?;
        let members: Vec<PortId> = self.members(name).map(|(id, _)| id).collect();
        if !members.is_empty() && !with_ports {
            let names: Vec<_> = self.members(name).map(|(_, port)| port.spec.name.as_str()).collect();
            return Err(Error::Invalid(format!(
                "bridge '{name}' has ports ({}); delete them first, or add --with-ports",
                names.join(", ")
            )));
        }
        self.bridges.remove(index);
        self.close(&members);
        Ok(())
    }

    pub(super) fn bridges(&self) -> Vec<BridgeStatus> {
        let of = |bridge: &Bridge| {
            let mut ports: Vec<_> = self.members(&bridge.spec.name).map(|(_, port)| port).collect();
            ports.sort_by_key(|port| port.sequence);
            BridgeStatus {
                spec: bridge.spec.clone(),
                fdb_used: bridge.fdb.len(),
                fdb_counters: bridge.fdb.counters(),
                ports: ports.into_iter().map(|port| port.spec.name.clone()).collect(),
            }
        };
        self.bridges.iter().map(of).collect()
    }

    fn bridge(&self, name: &str) -> Result<usize, Error> {
        self.bridges.iter().position(|bridge| bridge.spec.name == name).ok_or_else(|| {
            let existing = self.bridges.iter().map(|bridge| bridge.spec.name.as_str());
            Error::not_found("bridge", name, existing)
        })
    }

    fn members(&self, bridge: &str) -> impl Iterator<Item = (PortId, &Port)> {
        self.ports.iter().filter(move |(_, port)| port.spec.bridge == bridge).map(|(&id, port)| (id, port))
    }

    // ---- ports ----

    pub(super) fn add_port(&mut self, spec: PortSpec, missing: Missing) -> Result<(), Error> {
        check_name("port", &spec.name)?;
        let bridge = self.bridge(&spec.bridge)?;
        self.check_vlan(&spec.name, bridge, &spec.kind, &spec.settings)?;
        check_tunnel(&spec.name, &spec.kind, &spec.settings)?;
        if let Some(port) = self.ports.values().find(|port| port.spec.name == spec.name) {
            return Err(Error::Exists(format!(
                "port '{0}' exists already in bridge '{1}'; change it with: vswitchctl port set {0} …",
                spec.name, port.spec.bridge
            )));
        }
        self.check_interface(&spec)?;
        port::check(&spec.kind, self.crew.len()).map_err(|error| Error::port(&spec.name, error))?;
        self.check_tunnel_free(&spec)?;
        let id = self.free_id()?;
        let sequence = self.sequence;
        let mut port = Port {
            shared: Arc::new(PortShared::new(self.crew.len(), 0, false)),
            spec,
            sequence,
            capabilities: Capabilities::default(),
            queues: 0,
            ring_bytes: 0,
            keep: Vec::new(),
            watches: Vec::new(),
            guest: None,
            open: false,
            leaves: missing == Missing::Leave,
            link: None,
            above: above::Above::default(),
            missed: 0,
            missed_seen: 0,
            complaint: None,
            failed: false,
            retry: None,
            endpoint: None,
        };
        let add = match self.open(id, &mut port) {
            Ok(add) => add,
            Err(error @ Error::NotFound(_)) if matches!(missing, Missing::Wait | Missing::Keep) => {
                tracing::warn!("{error}; the port waits");
                port.refused(&error, Instant::now());
                Vec::new()
            }
            Err(error) if missing == Missing::Keep => {
                tracing::warn!("{error}; the port has failed and is tried again");
                port.refused(&error, Instant::now());
                Vec::new()
            }
            Err(error) => {
                drop(self.forget_tunnel(id));
                self.release_namespaces();
                return Err(error);
            }
        };
        self.sequence += 1;
        self.ports.insert(id, port);
        drop(self.publish(&[], add));
        self.refresh_locals(bridge);
        Ok(())
    }

    /// Opens a port; returns the workers' queues.
    fn open(&mut self, id: PortId, port: &mut Port) -> Result<Queues, Error> {
        if let PortKind::Tunnel(tunnel) = port.spec.kind.clone() {
            let named = |error| Error::port(&port.spec.name, error);
            self.claim_far_ends(id, &tunnel, &port.spec.settings.tunnel)?;
            self.namespaces.enter(&tunnel.netns).map_err(named)?;
            let queues = self.open_tunnel(id, &port.spec, &tunnel)?;
            // What was marked as gone is a new port to the workers.
            let shared = PortShared::new(self.crew.len(), 0, false);
            shared.continue_from(&port.shared);
            port.shared = Arc::new(shared);
            port.queues = self.crew.len();
            port.opened();
            return Ok(queues);
        }
        if port.on_socket() {
            return self.open_on_socket(id, port);
        }
        self.check_wire(&port.spec)?;
        self.check_above(&port.spec)?;
        let named = |error| Error::port(&port.spec.name, error);
        let kind = self.identity.dress(&port.spec);
        let opened = port::open_prepared(&kind, self.crew.len(), &mut self.preparation).map_err(named)?;
        let ifindex = opened.ifindex;
        let queues = self.attach(port, opened)?;
        self.silence_later(id, port, ifindex);
        if port.is_tap() {
            self.announcements.begin(id);
        }
        Ok(vec![(id, queues)])
    }

    /// Refuses an interface that is a port already. The one pair that makes sense is a TAP of one bridge whose host end is a
    /// packet port of another; on the same bridge its frames would go round for ever.
    fn check_interface(&self, spec: &PortSpec) -> Result<(), Error> {
        if let Some((port, shared)) =
            self.ports.values().find_map(|port| Some((port, spec.kind.shares_socket(&port.spec.kind)?)))
        {
            let holder = &port.spec.name;
            let what = match shared {
                Meeting::File(path) => format!("socket {} is port '{holder}' already", path.display()),
                Meeting::Tcp(address) => format!("{address} is where port '{holder}' listens already"),
            };
            let instead = if matches!(shared, Meeting::File(_)) { "--path" } else { "--listen" };
            return Err(Error::Exists(format!(
                "{what}; choose another {instead}, or remove that first with: vswitchctl port del {holder}"
            )));
        }
        match self.ports.values().find_map(|port| Some((port, clash(port, spec)?))) {
            None => Ok(()),
            Some((port, clash)) => Err(taken(format_args!("'{}'", clash.ifname), clash.below, port)),
        }
    }

    /// Takes over what was opened for a port; returns the workers' queues. Whatever can fail comes first: a port that is refused here is as it
    /// was, and what was opened for it goes.
    fn attach(
        &mut self,
        port: &mut Port,
        mut opened: OpenPort,
    ) -> Result<Vec<Box<dyn port::PortQueue>>, Error> {
        let link = match (interface(&port.spec.kind), opened.ifindex) {
            (Some((place, _)), Some(index)) => {
                let named = |error| Error::port(&port.spec.name, error);
                let netlink = self.namespaces.enter(&place).map_err(named)?;
                // The monitor listens from here on; what vanished before is not there, and must not count as down.
                let gone =
                    || sys::Error::refused(io::ErrorKind::NotFound, "its interface vanished meanwhile");
                Some(netlink.link_by_index(index).map_err(named)?.ok_or_else(gone).map_err(named)?)
            }
            _ => None,
        };
        let mtu = link.as_ref().map_or(opened.mtu, |link| link.mtu);
        let carriers = opened.link.as_ref().map_or(0, port::vhost_user::Link::carriers);
        // A new device is a new port to the workers, but it goes on counting where the old one ended.
        let shared = Arc::new(PortShared::new(self.crew.len() + carriers, mtu, opened.strict_mtu));
        if let Some(guest) = &mut opened.link {
            let what = || format!("port '{}': cannot serve its front end", port.spec.name);
            let pool = Arc::clone(&self.guest_memory);
            guest
                .start(Arc::clone(&shared), pool)
                .map_err(|source| Error::System { what: what(), source })?;
        }
        shared.continue_from(&port.shared);
        port.link = link;
        port.shared = shared;
        port.capabilities = opened.capabilities;
        port.queues = opened.receiving;
        port.ring_bytes = opened.queues.iter().map(|queue| queue.ring_bytes()).sum();
        port.keep = opened.keep;
        port.watches = opened.watches;
        port.above = above::Above::default();
        if let Some(guest) = opened.link {
            port.guest = Some((guest, false));
        }
        if let Some(made) = opened.made {
            made.keep();
        }
        port.opened();
        port.missed_seen = port.dropped(&self.namespaces).unwrap_or(0);
        Ok(opened.queues)
    }

    pub(super) fn set_port(&mut self, name: &str, settings: PortSettings) -> Result<(), Error> {
        let id = self.port(name)?;
        let bridge = self.bridge(&self.ports[&id].spec.bridge)?;
        check_tunnel(name, &self.ports[&id].spec.kind, &settings)?;
        if self.ports[&id].spec.settings.vlan != settings.vlan {
            self.check_vlan(name, bridge, &self.ports[&id].spec.kind, &settings)?;
        }
        let Some(port) = self.ports.get_mut(&id) else { return Err(self.no_port(name)) };
        port.retry = None;
        let vlans_changed = port.spec.settings.vlan != settings.vlan;
        let before = std::mem::replace(&mut port.spec.settings, settings);
        match self.change_remotes(id, &before.tunnel) {
            Ok(Changes { gone, replaced, queues }) => {
                drop(self.publish(&[&gone[..], &replaced].concat(), queues));
                self.forget_ids(&gone.into_iter().collect());
            }
            Err(error) => {
                if let Some(port) = self.ports.get_mut(&id) {
                    port.spec.settings = before;
                }
                return Err(error);
            }
        }
        if vlans_changed {
            // Stations of VLANs that it no longer carries would draw frames that egress then drops.
            let policy = self.policy(id);
            let gone = |key: Key| policy.leaves(key.vid()) == crate::bridge::vlan::Leaves::Not;
            let filtering = self.bridges[bridge].spec.vlan_filtering;
            let devices = self.ids_of(id);
            self.bridges[bridge].fdb.flush(|key, entry| {
                devices.contains(&entry.port) && entry.kind == Kind::Dynamic && filtering && gone(key)
            });
            self.refresh_locals(bridge);
        }
        Ok(())
    }

    pub(super) fn del_port(&mut self, name: &str) -> Result<(), Error> {
        let id = self.port(name)?;
        self.close(&[id]);
        Ok(())
    }

    /// Removes every port and what was made for them.
    pub(super) fn close_all(&mut self) {
        let ids: Vec<PortId> = self.ports.keys().copied().collect();
        self.close(&ids);
    }

    /// Removes ports, and the stations behind them.
    fn close(&mut self, ids: &[PortId]) {
        let mut ports: Vec<Port> = ids.iter().filter_map(|id| self.ports.remove(id)).collect();
        let remotes = ids.iter().flat_map(|&id| self.forget_tunnel(id)).collect::<Vec<_>>();
        let leaving: HashSet<PortId> = ids.iter().copied().chain(remotes).collect();
        let all: Vec<PortId> = leaving.iter().copied().collect();
        let released = self.publish(&all, Vec::new());
        self.forget_ids(&leaving);
        self.delete_devices(&ports);
        let of_packet = |port: &&mut Port| matches!(port.spec.kind, PortKind::Packet(_));
        let silence = ports.iter_mut().filter(of_packet).flat_map(|port| port.keep.drain(..)).collect();
        release(released, silence);
        // A front end may hold up the end of its threads for a second or two: not one after the other.
        disposal::dispose(ports.iter_mut().filter_map(|port| port.guest.take()).collect());
        drop(ports);
        self.release_namespaces();
    }

    /// A TAP device goes when its queues are closed, but one after the other, 20 ms each. Many in one namespace go at once when
    /// the kernel is told so before. A macvtap device, and one whose fd somebody else holds, goes only when the kernel is told.
    fn delete_devices(&self, ports: &[Port]) {
        let mut devices: HashMap<Place, Vec<&Link>> = HashMap::new();
        let mut lasting: HashSet<Place> = HashSet::new();
        for port in ports.iter().filter(|port| port.open && (port.is_tap() || port.has_lasting_device())) {
            if let (Some((place, _)), Some(link)) = (port.interface(), &port.link) {
                if port.has_lasting_device() {
                    lasting.insert(place.clone());
                }
                devices.entry(place).or_default().push(link);
            }
        }
        for (place, links) in
            devices.iter().filter(|(place, links)| links.len() > 1 || lasting.contains(place))
        {
            let Some(netlink) = self.namespaces.get(place) else { continue };
            match netlink.del_links(links) {
                Err(error) if lasting.contains(place) => tracing::warn!("{error}"),
                // They go all the same, only slower.
                Err(error) => tracing::debug!("{error}"),
                Ok(()) => {}
            }
        }
    }

    pub(super) fn ports(&mut self) -> Vec<PortStatus> {
        self.catch_up();
        self.crew.count_missed();
        self.ports.values_mut().for_each(|port| port.count_missed(&self.namespaces));
        let mut peers = self.peers(self.ports.iter());
        let mut ports: Vec<_> = self.ports.iter().collect();
        ports.sort_by_key(|(_, port)| port.sequence);
        ports.into_iter().map(|(id, port)| self.port_status(*id, port, peers.remove(id))).collect()
    }

    /// The other ends of those that are veths. The names of namespaces are gone through once a namespace, not once a port.
    fn peers<'a>(&self, ports: impl Iterator<Item = (&'a PortId, &'a Port)>) -> HashMap<PortId, Peer> {
        let mut places: HashMap<Place, (Vec<PortId>, Vec<Link>)> = HashMap::new();
        for (&id, port) in ports {
            if let (Some((place, _)), Some(link)) = (port.interface(), &port.link) {
                let (ids, links) = places.entry(place).or_default();
                ids.push(id);
                links.push(link.clone());
            }
        }
        let mut found = HashMap::new();
        for (place, (ids, links)) in places {
            let peers = self.namespaces.get(&place).and_then(|netlink| netlink.peers_of(&links).ok());
            let peers = ids.into_iter().zip(peers.into_iter().flatten());
            found.extend(peers.filter_map(|(id, peer)| Some((id, peer?))));
        }
        found
    }

    /// One of them, for much less work when there are many.
    pub(super) fn port_named(&mut self, name: &str) -> Result<PortStatus, Error> {
        self.catch_up();
        self.crew.count_missed();
        let id = self.port(name)?;
        let Some(port) = self.ports.get_mut(&id) else { return Err(self.no_port(name)) };
        port.count_missed(&self.namespaces);
        let port = &self.ports[&id];
        Ok(self.port_status(id, port, self.peers(std::iter::once((&id, port))).remove(&id)))
    }

    fn port_status(&self, id: PortId, port: &Port, peer: Option<Peer>) -> PortStatus {
        let link = port.link.as_ref().filter(|_| port.open);
        PortStatus {
            spec: port.spec.clone(),
            ifname: port.interface().map(|(_, name)| link.map_or(name, |link| &link.name).to_owned()),
            ifindex: link.map(|link| link.index),
            mac: link.and_then(|link| link.mac),
            mtu: link.map(|link| link.mtu).or_else(|| port.spec.kind.mtu()).or_else(|| self.tunnels.mtu(id)),
            state: port.state(),
            reason: port.reason(),
            queues: port.queues,
            ring_bytes: if port.open { port.ring_bytes } else { 0 },
            peer,
            remotes: self.tunnels.status(id),
            peers: port.endpoint.as_ref().map(|endpoint| endpoint.status(Instant::now())),
            hint: self
                .tunnels
                .hint(id, port)
                .or_else(|| port.guest.as_ref()?.0.hint())
                .or_else(|| port.hint())
                .or_else(|| port.ring_hint())
                .or_else(|| self.interface_hint(port)),
            counters: {
                let mut counters = counters(&port.shared);
                count(&mut counters, DropReason::RxMissed, port.missed);
                self.add_tunnel_counters(id, &mut counters);
                counters
            },
        }
    }

    fn port(&self, name: &str) -> Result<PortId, Error> {
        let found = self.ports.iter().find(|(_, port)| port.spec.name == name);
        found.map(|(&id, _)| id).ok_or_else(|| self.no_port(name))
    }

    fn no_port(&self, name: &str) -> Error {
        Error::not_found("port", name, self.ports.values().map(|port| port.spec.name.as_str()))
    }

    fn free_id(&mut self) -> Result<PortId, Error> {
        self.free_id_beside(&[])
    }

    /// An id that is none of `taken` either.
    fn free_id_beside(&mut self, taken: &[PortId]) -> Result<PortId, Error> {
        self.release_ids();
        let retired: HashSet<PortId> = self.retired.iter().map(|&(id, _)| id).collect();
        (0..PORTS_MAX)
            .filter_map(|id| u16::try_from(id).ok().map(PortId))
            .find(|id| {
                !self.ports.contains_key(id)
                    && !self.tunnels.has(*id)
                    && !retired.contains(id)
                    && !taken.contains(id)
            })
            .ok_or_else(|| {
                Error::Invalid(format!("the switch has {PORTS_MAX} ports, its most; delete one first"))
            })
    }

    /// Ids that no worker knows any more may stand for other ports, once what a late worker learned is forgotten.
    fn release_ids(&mut self) {
        let reached = self.crew.generation();
        let released = self.retired.extract_if(.., |(_, generation)| *generation <= reached);
        let released = released.map(|(id, _)| id).collect();
        self.forget_ids(&released);
    }

    fn check_vlan(
        &self,
        port: &str,
        bridge: usize,
        kind: &PortKind,
        settings: &PortSettings,
    ) -> Result<(), Error> {
        let spec = &self.bridges[bridge].spec;
        let mapped = is_mapped(kind);
        if mapped && settings.vlan != VlanMode::Default {
            return Err(Error::Invalid(format!(
                "port '{port}' cannot have VLAN options: its VLANs are those that it maps to VNIs; leave them out"
            )));
        }
        if !spec.vlan_filtering && (mapped || settings.vlan != VlanMode::Default) {
            return Err(Error::Invalid(format!(
                "port '{port}' cannot have VLAN options: bridge '{0}' does not filter VLANs; \
                 turn it on with: vswitchctl bridge set {0} --vlan-filtering on",
                spec.name
            )));
        }
        if let VlanMode::Trunk { vids, native: None } = &settings.vlan
            && vids.is_empty()
        {
            return Err(Error::Invalid(format!("port '{port}': a trunk needs at least one VLAN")));
        }
        Ok(())
    }

    fn policy(&self, id: PortId) -> VlanPolicy {
        let Some(port) = self.ports.get(&id) else { return VlanPolicy::default() };
        let default_pvid = self.bridge(&port.spec.bridge).map(|index| self.bridges[index].spec.default_pvid);
        default_pvid
            .map_or_else(|_| VlanPolicy::default(), |pvid| VlanPolicy::new(&port.spec.vlan_mode(), pvid))
    }

    fn release_namespaces(&mut self) {
        let used: HashSet<Place> = self.ports.values().filter_map(Port::place).collect();
        self.namespaces.retain(|place| used.contains(place));
    }

    /// Builds the topology and has every worker run on it. What is returned holds the queues of ports in `remove`, and
    /// dropping it closes them.
    #[must_use]
    fn publish(
        &mut self,
        remove: &[PortId],
        add: Vec<(PortId, Vec<Box<dyn port::PortQueue>>)>,
    ) -> Vec<Applied> {
        self.generation += 1;
        let topology = Arc::new(self.topology());
        self.share_out(&topology);
        let applied = self.crew.apply(&topology, remove, add);
        if self.crew.generation() < self.generation {
            // A port that only lost its device keeps its id.
            let removed = remove.iter().filter(|id| !self.ports.contains_key(id) && !self.tunnels.has(**id));
            self.retired.extend(removed.map(|&id| (id, self.generation)));
        }
        applied
    }

    /// Has each bridge's stations shared out by device: the remotes of a tunnel, whoever named them, are one port's.
    fn share_out(&self, topology: &Topology) {
        let mut devices = vec![0_u32; self.bridges.len()];
        for port in topology.ports.iter().flatten() {
            self.bridges[port.bridge].fdb.set_device(port.id, port.device);
            devices[port.bridge] += u32::from(port.id == port.device);
        }
        for (bridge, devices) in self.bridges.iter().zip(devices) {
            bridge.fdb.set_ports(devices);
        }
    }

    fn topology(&self) -> Topology {
        let last = self.ports.keys().next_back().copied().max(self.tunnels.last_id());
        let slots = last.map_or(0, |id| id.index() + 1);
        let mut ports: Vec<Option<topology::Port>> = Vec::new();
        ports.resize_with(slots, || None);
        let mut bridges: Vec<_> = self.bridges.iter().map(Bridge::for_workers).collect();
        for (&id, port) in self.ports.iter().filter(|(_, port)| port.open) {
            let Ok(bridge) = self.bridge(&port.spec.bridge) else { continue };
            if port.spec.settings.tunnel.neigh_suppress {
                bridges[bridge].neighbours = Some(Arc::clone(&self.bridges[bridge].neighbours));
            }
            if let PortKind::Tunnel(_) = port.spec.kind {
                bridges[bridge].members.extend(self.flooded(id));
                for port in self.tunnel_ports(id, port, bridge) {
                    let slot = port.id.index();
                    ports[slot] = Some(port);
                }
                continue;
            }
            bridges[bridge].members.push(id);
            let settings = &port.spec.settings;
            let vlan = VlanPolicy::new(&settings.vlan, self.bridges[bridge].spec.default_pvid);
            ports[id.index()] = Some(topology::Port {
                learning: settings.learning,
                flood: settings.flood,
                isolated: settings.isolated,
                hairpin: settings.hairpin,
                capabilities: port.capabilities,
                ..topology::Port::new(id, bridge, vlan, Arc::clone(&port.shared))
            });
        }
        Topology { generation: self.generation, bridges, ports, endpoints: self.endpoints() }
    }
}

impl Bridge {
    fn for_workers(&self) -> topology::Bridge {
        topology::Bridge {
            fdb: Arc::clone(&self.fdb),
            learning: self.spec.ageing_secs > 0,
            filtering: self.spec.vlan_filtering,
            neighbours: None,
            members: Vec::new(),
        }
    }
}

/// Closes what workers have given up, as much as possible at the same time, and ends the silence of
/// packet ports' interfaces.
fn release(released: Vec<Applied>, silence: Vec<std::os::fd::OwnedFd>) {
    let mut things: Vec<Box<dyn Send>> = Vec::new();
    for Applied { released, before } in released {
        things.extend(released.into_iter().map(|queue| Box::new(queue) as Box<dyn Send>));
        drop(before);
    }
    if silence.len() >= sys::bpf::MANY {
        // The kernel holds the lock of all interfaces while it ends the silence, and sockets need
        // it.
        disposal::dispose(things);
        sys::bpf::end_silence(silence);
    } else {
        sys::thread::both(|| disposal::dispose(things), || drop(silence));
    }
}

/// Whether VLANs are networks to it.
fn is_mapped(kind: &PortKind) -> bool {
    matches!(kind, PortKind::Tunnel(tunnel) if tunnel.vlans().is_some())
}

/// Sums the workers' counters.
fn counters(shared: &PortShared) -> PortCounters {
    let mut sum = PortCounters::default();
    for worker in &shared.counters {
        sum.rx_frames += worker.rx_frames.get();
        sum.rx_bytes += worker.rx_bytes.get();
        sum.rx_segments += worker.rx_segments.get();
        sum.tx_frames += worker.tx_frames.get();
        sum.tx_bytes += worker.tx_bytes.get();
        sum.tx_segments += worker.tx_segments.get();
        sum.tx_fragmented += worker.tx_fragmented.get();
        sum.mss_clamped += worker.mss_clamped.get();
        sum.neigh_answered += worker.neigh_answered.get();
        DropReason::ALL.iter().for_each(|&reason| count(&mut sum, reason, worker.drops(reason)));
    }
    sum
}

fn count(counters: &mut PortCounters, reason: DropReason, frames: u64) {
    if frames > 0 {
        *counters.drops.entry(reason.name()).or_default() += frames;
    }
}

fn new_fdb(spec: &BridgeSpec) -> Result<Arc<Fdb>, Error> {
    let what =
        format!("bridge '{}': no memory for {} stations; choose a smaller fdb_max", spec.name, spec.fdb_max);
    Fdb::try_new(spec.fdb_max).map(Arc::new).map_err(|source| Error::System { what, source })
}

fn is(wanted: &Option<String>, name: &str) -> bool {
    wanted.as_deref().is_none_or(|wanted| wanted == name)
}

/// Names go into paths, tables and metrics: 1 to 63 visible ASCII characters without '/', quotes and backslash.
fn check_name(what: &str, name: &str) -> Result<(), Error> {
    let fine = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | '\\' | '"' | '\'');
    if name.is_empty() || name.len() > 63 || !name.chars().all(fine) {
        return Err(Error::Invalid(format!(
            "'{}' is not a {what} name: use 1 to 63 visible ASCII characters without slashes and quotes",
            name.escape_debug()
        )));
    }
    Ok(())
}

/// Refuses remotes that none can be, and any at a port that is no tunnel.
fn check_tunnel(name: &str, kind: &PortKind, settings: &PortSettings) -> Result<(), Error> {
    let wrong = |error| Error::Invalid(format!("port '{name}': {error}"));
    match kind {
        PortKind::Tunnel(spec) => spec.check(&settings.tunnel).map_err(wrong),
        _ if settings.tunnel == TunnelSettings::default() => Ok(()),
        _ => Err(wrong(
            "'remote', 'strict-remotes', 'guard-local', 'neigh-suppress', 'df' and 'mss-clamp' are for tunnel ports; \
             leave them out"
                .into(),
        )),
    }
}

fn check_bridge(spec: &BridgeSpec) -> Result<(), Error> {
    let name = &spec.name;
    if spec.fdb_max == 0 || spec.fdb_max > fdb::MAX {
        return Err(Error::Invalid(format!(
            "bridge '{name}': fdb_max {} is not in 1 to {}",
            spec.fdb_max,
            fdb::MAX
        )));
    }
    if spec.ageing_secs > fdb::MAX_AGEING_SECS {
        return Err(Error::Invalid(format!(
            "bridge '{name}': ageing_secs {} is more than {}",
            spec.ageing_secs,
            fdb::MAX_AGEING_SECS
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::mem::MemPort;
    use crate::switch::Options;

    /// A control side of one worker, with an empty bridge.
    pub(super) fn control(bridge: BridgeSpec) -> Control {
        let poll = mio::Poll::new().expect("epoll");
        let bell = Arc::new(mio::Waker::new(poll.registry(), mio::Token(0)).expect("eventfd"));
        let (events, _inbox) = crossbeam_channel::unbounded();
        let options = Options { workers: Some(1), ..Options::default() };
        let crew = Crew::start(&options, &events, &bell).expect("a worker");
        let mut control = Control::new(crew, Namespaces::new(poll.registry().try_clone().expect("epoll")));
        control.add_bridge(bridge).expect("added");
        control
    }

    /// What a worker that is late with a topology learns must not be believed of another port.
    #[test]
    fn an_id_that_a_late_worker_knows_is_not_given_again() {
        let mut control = control(BridgeSpec::new("br0"));
        let add = |control: &mut Control, name: &str| {
            let memory = MemPort::new(Capabilities::default(), 1500).expect("an eventfd");
            let spec = PortSpec {
                name: name.into(),
                bridge: "br0".into(),
                kind: PortKind::Mem(memory),
                settings: PortSettings::default(),
            };
            control.add_port(spec, Missing::Refuse).expect("added");
            control.port(name).expect("there")
        };
        let first = add(&mut control, "first");
        control.del_port("first").expect("deleted");
        assert!(control.retired.is_empty(), "every worker was in time");

        // As if one had not been.
        control.retired.push((first, control.generation + 2));
        let station = Key::new(crate::addr::MacAddr([2, 0, 0, 0, 0, 1]), 0);
        control.bridges[0].fdb.insert_static(station, first).expect("room");
        assert_ne!(add(&mut control, "second"), first);
        assert_eq!(control.bridges[0].fdb.len(), 1);
        drop(control.publish(&[], Vec::new()));
        assert_eq!(add(&mut control, "third"), first);
        assert_eq!(control.bridges[0].fdb.len(), 0, "what the late worker learned is forgotten");
    }
}
