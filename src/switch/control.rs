//! What the operator asked for, and how it is carried out.
//!
//! One [`Control`] behind one mutex. Every change goes the same way: check everything that can be checked, open what has to be
//! opened, build the new topology, hand it to the workers, and only when all of them run on it, close and forget
//! what is no longer used. Whatever fails before the hand-over changes nothing.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::crew::Crew;
use super::namespaces::{Namespaces, News, Place};
use super::{Error, FdbFilter, Missing};
use crate::addr::{MacAddr, PortId};
use crate::bridge::fdb::{self, Fdb, Key, Kind};
use crate::bridge::vlan::VlanPolicy;
use crate::offload::Capabilities;
use crate::port::{self, OpenPort};
use crate::spec::{BridgeSpec, PortKind, PortSettings, PortSpec, VlanMode};
use crate::stats::DropReason;
use crate::status::{BridgeStatus, FdbEntry, FdbState, PortCounters, PortState, PortStatus};
use crate::sys;
use crate::sys::netlink::{Link, LinkEvent, Netlink};
use crate::topology::{self, PORTS_MAX, PortShared, Topology};

#[derive(Debug)]
pub(super) struct Control {
    pub(super) crew: Crew,
    namespaces: Namespaces,
    generation: u64,
    bridges: Vec<Bridge>,
    ports: BTreeMap<PortId, Port>,
    /// Order of creation of the next port.
    sequence: u64,
}

#[derive(Debug)]
struct Bridge {
    spec: BridgeSpec,
    fdb: Arc<Fdb>,
}

#[derive(Debug)]
struct Port {
    spec: PortSpec,
    sequence: u64,
    shared: Arc<PortShared>,
    capabilities: Capabilities,
    queues: usize,
    /// Undone when the port closes.
    keep: Vec<std::os::fd::OwnedFd>,
    /// Whether workers hold queues of it.
    open: bool,
    /// The interface, as last heard of.
    link: Option<Link>,
}

impl Port {
    /// The interface it is made of, and where.
    fn interface(&self) -> Option<(Place, &str)> {
        interface(&self.spec.kind)
    }

    fn state(&self) -> PortState {
        match (&self.spec.kind, self.open, &self.link) {
            (_, false, _) => PortState::Gone,
            (PortKind::Mem(_), true, _) => PortState::Up,
            (_, true, Some(link)) if link.up && link.running => PortState::Up,
            (_, true, _) => PortState::Down,
        }
    }
}

fn interface(kind: &PortKind) -> Option<(Place, &str)> {
    match kind {
        PortKind::Tap(spec) | PortKind::Internal(spec) => Some((spec.netns.clone(), &spec.ifname)),
        PortKind::Packet(spec) => Some((spec.netns.clone(), &spec.ifname)),
        PortKind::Mem(_) => None,
    }
}

impl Control {
    pub(super) fn new(crew: Crew, namespaces: Namespaces) -> Control {
        Control { crew, namespaces, generation: 0, bridges: Vec::new(), ports: BTreeMap::new(), sequence: 0 }
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
        self.bridges.push(Bridge { spec, fdb });
        self.publish(&[], Vec::new());
        Ok(())
    }

    pub(super) fn set_bridge(&mut self, spec: BridgeSpec) -> Result<(), Error> {
        let index = self.bridge(&spec.name)?;
        check_bridge(&spec)?;
        let size_changed = self.bridges[index].spec.fdb_max != spec.fdb_max;
        let resized = size_changed.then(|| new_fdb(&spec)).transpose()?;
        let bridge = &mut self.bridges[index];
        let before = std::mem::replace(&mut bridge.spec, spec);
        let mode_changed = before.vlan_filtering != bridge.spec.vlan_filtering;
        if let Some(resized) = resized {
            bridge.fdb.copy_to(&resized);
            bridge.fdb = resized;
        }
        self.publish(&[], Vec::new());
        if mode_changed || before.default_pvid != self.bridges[index].spec.default_pvid {
            self.rekey(index);
        }
        self.refresh_locals(index);
        Ok(())
    }

    /// After a change of mode or default PVID: dynamic entries are forgotten, static ones follow their port's VLAN.
    fn rekey(&mut self, index: usize) {
        let Bridge { spec, fdb } = &self.bridges[index];
        let statics: Vec<_> = fdb.iter().filter(|(_, entry)| entry.kind == Kind::Static).collect();
        fdb.flush(|_, entry| entry.kind != Kind::Local);
        for (key, entry) in statics {
            let vid = match (spec.vlan_filtering, key.vid()) {
                (false, _) => 0,
                (true, 0) => self.default_vid(entry.port).unwrap_or(0),
                (true, vid) => vid,
            };
            if let Err(error) = fdb.insert_static(Key::new(key.mac(), vid), entry.port) {
                tracing::error!("bridge '{}': static entry {} is lost: {error}", spec.name, key.mac());
            }
        }
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
        let removed: Vec<_> = members.iter().filter_map(|id| self.ports.remove(id)).collect();
        self.bridges.remove(index);
        self.publish(&members, Vec::new());
        drop(removed);
        self.release_namespaces();
        Ok(())
    }

    pub(super) fn bridges(&self) -> Vec<BridgeStatus> {
        let of = |bridge: &Bridge| {
            let mut ports: Vec<_> = self.members(&bridge.spec.name).map(|(_, port)| port).collect();
            ports.sort_by_key(|port| port.sequence);
            BridgeStatus {
                spec: bridge.spec.clone(),
                fdb_used: bridge.fdb.len(),
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
        self.check_vlan(&spec.name, bridge, &spec.settings)?;
        if let Some(port) = self.ports.values().find(|port| port.spec.name == spec.name) {
            return Err(Error::Exists(format!(
                "port '{0}' exists already in bridge '{1}'; change it with: vswitchctl port set {0} …",
                spec.name, port.spec.bridge
            )));
        }
        // The one pair that makes sense: a TAP of one bridge whose host end is a packet port of another.
        let packet = |kind: &PortKind| matches!(kind, PortKind::Packet(_));
        let taken = interface(&spec.kind);
        let same = |port: &&Port| {
            taken.is_some() && port.interface() == taken && (packet(&port.spec.kind) || !packet(&spec.kind))
        };
        if let (Some(port), Some((_, ifname))) = (self.ports.values().find(same), &taken) {
            return Err(Error::Exists(format!("interface '{ifname}' is port '{}' already", port.spec.name)));
        }
        let id = self.free_id()?;
        let opened = match port::open(&spec.kind, self.crew.len()) {
            Ok(opened) => Some(opened),
            Err(error) if missing == Missing::Wait && error.is_not_found() => {
                tracing::warn!("port '{}' waits: {error}", spec.name);
                None
            }
            Err(error) => return Err(Error::port(&spec.name, error)),
        };
        let sequence = self.sequence;
        let mut port = Port {
            shared: Arc::new(PortShared::new(self.crew.len(), 0, false)),
            spec,
            sequence,
            capabilities: Capabilities::default(),
            queues: 0,
            keep: Vec::new(),
            open: false,
            link: None,
        };
        let add = match opened {
            Some(opened) => {
                let attached = self.attach(&mut port, opened);
                if attached.is_err() {
                    self.release_namespaces();
                }
                vec![(id, attached?)]
            }
            None => Vec::new(),
        };
        self.sequence += 1;
        self.ports.insert(id, port);
        self.publish(&[], add);
        self.refresh_locals(bridge);
        Ok(())
    }

    /// Takes over what was opened for a port; returns the workers' queues.
    fn attach(&mut self, port: &mut Port, opened: OpenPort) -> Result<Vec<Box<dyn port::PortQueue>>, Error> {
        port.link = match (interface(&port.spec.kind), opened.ifindex) {
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
        let mtu = port.link.as_ref().map_or(opened.mtu, |link| link.mtu);
        // A new device is a new port to the workers, but it goes on counting where the old one ended.
        let shared = PortShared::new(self.crew.len(), mtu, opened.strict_mtu);
        shared.continue_from(&port.shared);
        port.shared = Arc::new(shared);
        port.capabilities = opened.capabilities;
        port.queues = opened.receiving;
        port.keep = opened.keep;
        port.open = true;
        Ok(opened.queues)
    }

    pub(super) fn set_port(&mut self, name: &str, settings: PortSettings) -> Result<(), Error> {
        let id = self.port(name)?;
        let bridge = self.bridge(&self.ports[&id].spec.bridge)?;
        if self.ports[&id].spec.settings.vlan != settings.vlan {
            self.check_vlan(name, bridge, &settings)?;
        }
        let Some(port) = self.ports.get_mut(&id) else { return Err(self.no_port(name)) };
        let vlans_changed = port.spec.settings.vlan != settings.vlan;
        port.spec.settings = settings;
        self.publish(&[], Vec::new());
        if vlans_changed {
            // Stations of VLANs that it no longer carries would draw frames that egress then drops.
            let policy = self.policy(id);
            let gone = |key: Key| policy.leaves(key.vid()) == crate::bridge::vlan::Leaves::Not;
            let filtering = self.bridges[bridge].spec.vlan_filtering;
            self.bridges[bridge].fdb.flush(|key, entry| {
                entry.port == id && entry.kind == Kind::Dynamic && filtering && gone(key)
            });
            self.refresh_locals(bridge);
        }
        Ok(())
    }

    pub(super) fn del_port(&mut self, name: &str) -> Result<(), Error> {
        let id = self.port(name)?;
        let Some(port) = self.ports.remove(&id) else { return Err(self.no_port(name)) };
        self.publish(&[id], Vec::new());
        if let Ok(bridge) = self.bridge(&port.spec.bridge) {
            self.bridges[bridge].fdb.flush(|_, entry| entry.port == id);
        }
        drop(port);
        self.release_namespaces();
        Ok(())
    }

    pub(super) fn ports(&mut self) -> Vec<PortStatus> {
        self.catch_up();
        self.crew.count_missed();
        let mut ports: Vec<_> = self.ports.values().collect();
        ports.sort_by_key(|port| port.sequence);
        ports.into_iter().map(|port| self.port_status(port)).collect()
    }

    /// One of them, for much less work when there are many.
    pub(super) fn port_named(&mut self, name: &str) -> Result<PortStatus, Error> {
        self.catch_up();
        self.crew.count_missed();
        Ok(self.port_status(&self.ports[&self.port(name)?]))
    }

    fn port_status(&self, port: &Port) -> PortStatus {
        let netlink = port.interface().and_then(|(place, _)| self.namespaces.get(&place));
        let peer = match (&port.link, netlink) {
            (Some(link), Some(netlink)) => netlink.peer_of(link).ok().flatten(),
            _ => None,
        };
        let link = port.link.as_ref().filter(|_| port.open);
        PortStatus {
            spec: port.spec.clone(),
            ifname: port.interface().map(|(_, name)| link.map_or(name, |link| &link.name).to_owned()),
            ifindex: link.map(|link| link.index),
            mac: link.and_then(|link| link.mac),
            mtu: link.map(|link| link.mtu),
            state: port.state(),
            queues: port.queues,
            peer,
            counters: {
                let mut counters = counters(&port.shared);
                let tap = matches!(port.spec.kind, PortKind::Tap(_) | PortKind::Internal(_));
                if let (true, Some(link), Some(netlink)) = (tap, link, netlink) {
                    // What overflowed the TAP's queue towards us was lost before any worker could count it.
                    count(&mut counters, DropReason::RxMissed, netlink.tx_dropped(link.index).unwrap_or(0));
                }
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

    fn free_id(&self) -> Result<PortId, Error> {
        (0..PORTS_MAX)
            .filter_map(|id| u16::try_from(id).ok().map(PortId))
            .find(|id| !self.ports.contains_key(id))
            .ok_or_else(|| {
                Error::Invalid(format!("the switch has {PORTS_MAX} ports, its most; delete one first"))
            })
    }

    fn check_vlan(&self, port: &str, bridge: usize, settings: &PortSettings) -> Result<(), Error> {
        let spec = &self.bridges[bridge].spec;
        if !spec.vlan_filtering && settings.vlan != VlanMode::Default {
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
            .map_or_else(|_| VlanPolicy::default(), |pvid| VlanPolicy::new(&port.spec.settings.vlan, pvid))
    }

    // ---- stations ----

    pub(super) fn fdb(&self, filter: &FdbFilter) -> Result<Vec<FdbEntry>, Error> {
        self.check_filter(filter)?;
        let now = self.crew.now();
        let mut entries = Vec::new();
        for bridge in self.bridges.iter().filter(|bridge| is(&filter.bridge, &bridge.spec.name)) {
            for (key, entry) in bridge.fdb.iter() {
                let Some(port) = self.ports.get(&entry.port) else { continue };
                if !is(&filter.port, &port.spec.name) || filter.vlan.is_some_and(|vid| vid != key.vid()) {
                    continue;
                }
                entries.push(FdbEntry {
                    mac: key.mac(),
                    vlan: key.vid(),
                    bridge: bridge.spec.name.clone(),
                    port: port.spec.name.clone(),
                    state: match entry.kind {
                        Kind::Dynamic => FdbState::Dynamic,
                        Kind::Static => FdbState::Static,
                        Kind::Local => FdbState::Local,
                    },
                    age_secs: entry.age_secs(now),
                });
            }
        }
        entries.sort_by(|a, b| (&a.bridge, a.vlan, a.mac).cmp(&(&b.bridge, b.vlan, b.mac)));
        Ok(entries)
    }

    pub(super) fn fdb_add(&mut self, mac: MacAddr, port: &str, vlan: Option<u16>) -> Result<(), Error> {
        if !mac.is_station() {
            return Err(Error::Invalid(format!(
                "'{mac}' is not a station's address: it is a group address or zero"
            )));
        }
        let id = self.port(port)?;
        let bridge = &self.bridges[self.bridge(&self.ports[&id].spec.bridge)?];
        let vid = match (bridge.spec.vlan_filtering, vlan) {
            (false, None | Some(0)) => 0,
            (false, Some(_)) => return Err(self.unaware(&bridge.spec.name)),
            (true, Some(vid)) => {
                if self.policy(id).leaves(vid) == crate::bridge::vlan::Leaves::Not {
                    return Err(Error::Invalid(format!("port '{port}' does not carry VLAN {vid}")));
                }
                vid
            }
            (true, None) => self.default_vid(id).ok_or_else(|| {
                Error::Invalid(format!("port '{port}' is a trunk without native VLAN; say which with --vlan"))
            })?,
        };
        match bridge.fdb.insert_static(Key::new(mac, vid), id) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::Invalid(format!("bridge '{}': {mac}: {error}", bridge.spec.name))),
        }
    }

    pub(super) fn fdb_del(&mut self, mac: MacAddr, bridge: &str, vlan: Option<u16>) -> Result<(), Error> {
        let bridge = &self.bridges[self.bridge(bridge)?];
        let wanted = |key: Key| key.mac() == mac && vlan.is_none_or(|vid| vid == key.vid());
        if bridge.fdb.iter().any(|(key, entry)| wanted(key) && entry.kind == Kind::Local) {
            return Err(Error::Invalid(format!(
                "{mac} is the address of an internal port of bridge '{}'; it goes with the port",
                bridge.spec.name
            )));
        }
        if bridge.fdb.flush(|key, entry| wanted(key) && entry.kind != Kind::Local) == 0 {
            let place = vlan.map_or(String::new(), |vid| format!(" in VLAN {vid}"));
            return Err(Error::NotFound(format!(
                "bridge '{0}' does not know {mac}{place}; see: vswitchctl fdb show --bridge {0}",
                bridge.spec.name
            )));
        }
        Ok(())
    }

    pub(super) fn fdb_flush(&mut self, filter: &FdbFilter) -> Result<usize, Error> {
        self.check_filter(filter)?;
        let port = filter.port.as_deref().map(|name| self.port(name)).transpose()?;
        let bridges = self.bridges.iter().filter(|bridge| is(&filter.bridge, &bridge.spec.name));
        let flush = |bridge: &Bridge| {
            bridge.fdb.flush(|key, entry| {
                entry.kind == Kind::Dynamic
                    && port.is_none_or(|id| id == entry.port)
                    && filter.vlan.is_none_or(|vid| vid == key.vid())
            })
        };
        Ok(bridges.map(flush).sum())
    }

    fn check_filter(&self, filter: &FdbFilter) -> Result<(), Error> {
        filter.bridge.as_deref().map(|name| self.bridge(name)).transpose()?;
        filter.port.as_deref().map(|name| self.port(name)).transpose()?;
        Ok(())
    }

    fn unaware(&self, bridge: &str) -> Error {
        Error::Invalid(format!(
            "bridge '{bridge}' does not filter VLANs, so its stations have none; leave --vlan out, or turn it on with: \
             vswitchctl bridge set {bridge} --vlan-filtering on"
        ))
    }

    /// The VLAN of untagged frames of a port.
    fn default_vid(&self, id: PortId) -> Option<u16> {
        self.policy(id).classify(None)
    }

    /// Makes the addresses of a bridge's internal ports its local entries, and nothing else.
    fn refresh_locals(&self, index: usize) {
        let Bridge { spec, fdb } = &self.bridges[index];
        let mut wanted = HashSet::new();
        for (id, port) in self.members(&spec.name) {
            let mac = port.link.as_ref().filter(|_| port.open).and_then(|link| link.mac);
            let (PortKind::Internal(_), Some(mac)) = (&port.spec.kind, mac) else { continue };
            if spec.vlan_filtering {
                let policy = self.policy(id);
                wanted.extend(policy.vids().map(|vid| (Key::new(mac, vid), id)));
            } else {
                wanted.insert((Key::new(mac, 0), id));
            }
        }
        fdb.flush(|key, entry| entry.kind == Kind::Local && !wanted.contains(&(key, entry.port)));
        for (key, id) in wanted {
            if let Err(error) = fdb.insert_local(key, id) {
                tracing::error!("bridge '{}': local entry {}: {error}", spec.name, key.mac());
            }
        }
    }

    // ---- the world ----

    /// Follows what happened to interfaces and namespaces; brings back packet ports whose interface is there again.
    pub(super) fn catch_up(&mut self) {
        for (place, news) in self.namespaces.news() {
            match news {
                News::Link(LinkEvent::Changed(link)) => self.link_changed(&place, link),
                News::Link(LinkEvent::Removed { index, .. }) => self.link_removed(&place, index),
                News::Link(LinkEvent::Overrun) => self.reread(&place),
                News::Vanished => {
                    let inside = |port: &Port| port.interface().is_some_and(|(there, _)| there == place);
                    let lost =
                        self.ports.iter().filter(|(_, port)| inside(port)).map(|(&id, _)| id).collect();
                    self.lose(lost);
                }
            }
        }
        self.regain();
    }

    /// Workers found the devices of these ports gone. An id may stand for another port by now, whose device is not.
    pub(super) fn lose_if_gone(&mut self, mut ids: Vec<PortId>) {
        ids.retain(|id| self.ports.get(id).is_some_and(|port| port.shared.is_gone()));
        self.lose(ids);
    }

    /// Devices of these ports are gone.
    fn lose(&mut self, ids: Vec<PortId>) {
        let mut lost = Vec::new();
        let mut keep = Vec::new();
        for id in ids {
            let Some(port) = self.ports.get_mut(&id).filter(|port| port.open) else { continue };
            tracing::warn!("port '{}': its interface is gone", port.spec.name);
            port.shared.gone.store(true, Ordering::Relaxed);
            port.open = false;
            port.link = None;
            keep.append(&mut port.keep);
            lost.push(id);
        }
        if lost.is_empty() {
            return;
        }
        self.publish(&lost, Vec::new());
        drop(keep);
        lost.iter().for_each(|&id| self.forget_stations(id));
        (0..self.bridges.len()).for_each(|bridge| self.refresh_locals(bridge));
    }

    fn link_changed(&mut self, place: &Place, link: Link) {
        let index = link.index;
        let of = |port: &Port| {
            port.interface().is_some_and(|(there, _)| there == *place)
                && port.link.as_ref().is_some_and(|known| known.index == index)
        };
        let Some((&id, port)) = self.ports.iter_mut().find(|(_, port)| of(port)) else { return };
        port.shared.set_mtu(link.mtu);
        let was_up = port.state() == PortState::Up;
        let readdressed = port.link.as_ref().is_some_and(|known| known.mac != link.mac);
        port.link = Some(link);
        let (name, state) = (&port.spec.name, port.state());
        if was_up != (state == PortState::Up) {
            tracing::info!("port '{name}' is {}", if was_up { "down" } else { "up" });
        }
        let bridge = port.spec.bridge.clone();
        if was_up && state != PortState::Up {
            self.forget_stations(id);
        }
        if let (true, Ok(index)) = (readdressed, self.bridge(&bridge)) {
            self.refresh_locals(index);
        }
    }

    fn link_removed(&mut self, place: &Place, index: u32) {
        // A TAP that was moved to another namespace is still ours: its fds say when it is gone.
        let of = |port: &Port| {
            matches!(port.spec.kind, PortKind::Packet(_))
                && port.interface().is_some_and(|(there, _)| there == *place)
                && port.link.as_ref().is_some_and(|known| known.index == index)
        };
        let lost = self.ports.iter().filter(|(_, port)| of(port)).map(|(&id, _)| id).collect();
        self.lose(lost);
    }

    /// Events were lost: compare everything.
    fn reread(&mut self, place: &Place) {
        let Some(Ok(links)) = self.namespaces.get(place).map(Netlink::links) else { return };
        let indices: HashSet<u32> = links.iter().map(|link| link.index).collect();
        let known =
            self.ports.values().filter(|port| port.interface().is_some_and(|(there, _)| there == *place));
        let missing: Vec<u32> = known
            .filter_map(|port| port.link.as_ref())
            .map(|link| link.index)
            .filter(|i| !indices.contains(i))
            .collect();
        links.into_iter().for_each(|link| self.link_changed(place, link));
        missing.into_iter().for_each(|index| self.link_removed(place, index));
    }

    /// Packet ports come back by themselves when an interface of their name appears; so does a TAP that was never made, for
    /// want of its namespace.
    fn regain(&mut self) {
        let lost: Vec<PortId> = self
            .ports
            .iter()
            .filter(|(_, port)| {
                !port.open && (port.queues == 0 || matches!(port.spec.kind, PortKind::Packet(_)))
            })
            .map(|(&id, _)| id)
            .collect();
        for id in lost {
            let Some(port) = self.ports.get(&id) else { continue };
            let Some((place, name)) = port.interface() else { continue };
            if place.as_ref().is_some_and(|ns| crate::sys::netns::identity(ns).is_none()) {
                continue;
            }
            let present = self.namespaces.enter(&place).and_then(|netlink| netlink.link(name));
            let wanted = matches!(port.spec.kind, PortKind::Packet(_));
            if !present.is_ok_and(|link| link.is_some() == wanted) {
                continue;
            }
            // In and out of the map, because `attach` needs all of `self`.
            let Some(mut port) = self.ports.remove(&id) else { continue };
            let opened = port::open(&port.spec.kind, self.crew.len())
                .map_err(|error| Error::port(&port.spec.name, error));
            let back = opened.and_then(|opened| self.attach(&mut port, opened));
            let name = port.spec.name.clone();
            self.ports.insert(id, port);
            match back {
                Ok(queues) => {
                    self.publish(&[], vec![(id, queues)]);
                    (0..self.bridges.len()).for_each(|bridge| self.refresh_locals(bridge));
                    tracing::info!("port '{name}' is back");
                }
                Err(error) => tracing::debug!("{error}"),
            }
        }
    }

    /// Dynamic entries of a port that is down or gone would only draw frames into a hole.
    fn forget_stations(&self, id: PortId) {
        let Some(bridge) = self.ports.get(&id).and_then(|port| self.bridge(&port.spec.bridge).ok()) else {
            return;
        };
        self.bridges[bridge].fdb.flush(|_, entry| entry.port == id && entry.kind == Kind::Dynamic);
    }

    /// Forgets stations not heard for their bridge's ageing time.
    pub(super) fn expire(&self) {
        let now = self.crew.now();
        for bridge in self.bridges.iter().filter(|bridge| !bridge.fdb.is_empty()) {
            bridge.fdb.expire(now, bridge.spec.ageing_secs);
        }
    }

    fn release_namespaces(&mut self) {
        let used: HashSet<Place> =
            self.ports.values().filter_map(|port| port.interface().map(|(place, _)| place)).collect();
        self.namespaces.retain(|place| used.contains(place));
    }

    /// Builds the topology and has every worker run on it.
    fn publish(&mut self, remove: &[PortId], add: Vec<(PortId, Vec<Box<dyn port::PortQueue>>)>) {
        self.generation += 1;
        let topology = Arc::new(self.topology());
        for (bridge, built) in self.bridges.iter().zip(&topology.bridges) {
            bridge.fdb.set_ports(u32::try_from(built.members.len()).unwrap_or(u32::MAX).max(1));
        }
        self.crew.apply(&topology, remove, add);
    }

    fn topology(&self) -> Topology {
        let slots = self.ports.keys().next_back().map_or(0, |id| id.index() + 1);
        let mut ports: Vec<Option<topology::Port>> = Vec::new();
        ports.resize_with(slots, || None);
        let mut bridges: Vec<_> = self.bridges.iter().map(Bridge::for_workers).collect();
        for (&id, port) in self.ports.iter().filter(|(_, port)| port.open) {
            let Ok(bridge) = self.bridge(&port.spec.bridge) else { continue };
            bridges[bridge].members.push(id);
            let settings = &port.spec.settings;
            ports[id.index()] = Some(topology::Port {
                id,
                bridge,
                learning: settings.learning,
                flood: settings.flood,
                isolated: settings.isolated,
                hairpin: settings.hairpin,
                vlan: VlanPolicy::new(&settings.vlan, self.bridges[bridge].spec.default_pvid),
                capabilities: port.capabilities,
                shared: Arc::clone(&port.shared),
            });
        }
        Topology { generation: self.generation, bridges, ports }
    }
}

impl Bridge {
    fn for_workers(&self) -> topology::Bridge {
        topology::Bridge {
            fdb: Arc::clone(&self.fdb),
            learning: self.spec.ageing_secs > 0,
            filtering: self.spec.vlan_filtering,
            members: Vec::new(),
        }
    }
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
