//! The world: interfaces that change, vanish and come back, and namespaces that go.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Control, Port, awaited, release};
use crate::addr::PortId;
use crate::spec::PortKind;
use crate::status::PortState;
use crate::switch::Error;
use crate::switch::namespaces::{News, Place};
use crate::sys::netlink::{Link, LinkEvent, Netlink};

/// Time until a device is made again that could not be used: making and removing it is itself news, after which the ports that are gone are
/// looked at again.
pub(super) const RETRY_MIN: Duration = Duration::from_secs(1);
/// Of one that leaves nothing behind.
pub(super) const RETRY_FIRST: Duration = Duration::from_millis(250);
/// After some tries.
pub(super) const RETRY_MAX: Duration = Duration::from_secs(30);

impl Control {
    /// Follows what happened to interfaces and namespaces; brings back ports whose interface is there again.
    pub(in crate::switch) fn catch_up(&mut self) {
        for (place, news) in self.namespaces.news() {
            match news {
                News::Link(LinkEvent::Changed(link)) => self.link_changed(&place, link),
                News::Link(LinkEvent::Removed { index, .. }) => self.link_removed(&place, index),
                News::Link(LinkEvent::Overrun) => self.reread(&place),
                News::Vanished => {
                    let inside = |port: &Port| port.place().as_ref() == Some(&place);
                    let lost =
                        self.ports.iter().filter(|(_, port)| inside(port)).map(|(&id, _)| id).collect();
                    self.lose(lost);
                }
            }
        }
        self.follow_guests();
        self.regain();
        self.look_above();
    }

    /// Stations of a guest that has gone are behind nothing.
    fn follow_guests(&mut self) {
        let mut left = Vec::new();
        for (&id, port) in &mut self.ports {
            let Some((guest, was_up)) = &mut port.guest else { continue };
            let is_up = guest.is_up();
            if std::mem::replace(was_up, is_up) == is_up {
                continue;
            }
            tracing::info!("port '{}' is {}", port.spec.name, if is_up { "up" } else { "down" });
            if !is_up {
                left.push(id);
            }
        }
        left.into_iter().for_each(|id| self.forget_stations(id));
    }

    /// Workers found the devices of these ports gone. An id may stand for another port by now, whose device is not.
    pub(in crate::switch) fn lose_if_gone(&mut self, mut ids: Vec<PortId>) {
        ids.retain(|id| self.ports.get(id).is_some_and(|port| port.shared.is_gone()));
        self.lose(ids);
    }

    /// Devices of these ports are gone.
    pub(super) fn lose(&mut self, ids: Vec<PortId>) {
        let mut lost = Vec::new();
        let mut keep = Vec::new();
        for id in ids {
            let Some(port) = self.ports.get_mut(&id).filter(|port| port.open) else { continue };
            match (&port.endpoint, &port.spec.kind) {
                (Some(_), _) => tracing::info!("port '{}' is down: its peer has gone", port.spec.name),
                (None, PortKind::Tunnel(_)) => {
                    tracing::warn!("port '{}': its underlay is gone", port.spec.name);
                }
                (None, _) if port.leaves => {
                    tracing::info!("port '{}' leaves with its interface", port.spec.name);
                }
                (None, _) => tracing::warn!("port '{}': its interface is gone", port.spec.name),
            }
            port.shared.gone.store(true, Ordering::Relaxed);
            port.open = false;
            port.link = None;
            keep.append(&mut port.keep);
            lost.push(id);
        }
        let leaving: Vec<PortId> = lost.extract_if(.., |id| self.ports[id].leaves).collect();
        if !leaving.is_empty() {
            self.close(&leaving);
        }
        if lost.is_empty() {
            return;
        }
        let mut all = lost.clone();
        let mut strangers = HashSet::new();
        for &id in &lost {
            let (ids, unknown) = self.shut_tunnel(id);
            all.extend(ids);
            strangers.extend(unknown);
        }
        let released = self.publish(&all, Vec::new());
        release(released, Vec::new());
        drop(keep);
        for id in &lost {
            // Not while workers have its queues: then anybody may send, and would be taken for the peer.
            if let Some(endpoint) = self.ports.get_mut(id).and_then(|port| port.endpoint.as_mut()) {
                endpoint.ended(Instant::now());
            }
        }
        self.forget_ids(&strangers);
        lost.iter().for_each(|&id| self.forget_stations(id));
        (0..self.bridges.len()).for_each(|bridge| self.refresh_locals(bridge));
    }

    /// An interface may be two ports: a TAP of one bridge, and a packet port of another on its host end.
    fn link_changed(&mut self, place: &Place, link: Link) {
        let of = |port: &Port| {
            port.interface().is_some_and(|(there, _)| there == *place)
                && port.link.as_ref().is_some_and(|known| known.index == link.index)
        };
        let ids: Vec<PortId> = self.ports.iter().filter(|(_, port)| of(port)).map(|(&id, _)| id).collect();
        ids.into_iter().for_each(|id| self.port_changed(id, link.clone()));
    }

    fn port_changed(&mut self, id: PortId, link: Link) {
        let Some(port) = self.ports.get_mut(&id) else { return };
        port.shared.set_mtu(link.mtu);
        let was_up = port.state() == PortState::Up;
        if port.leaves && link.is_abandoned() {
            tracing::info!("port '{}' leaves: nobody holds its interface any more", port.spec.name);
            port.link = Some(link);
            self.close(&[id]);
            return;
        }
        // The kernel tells of an interface when something is put on top of it, wherever that is.
        port.above.is_stale = true;
        let readdressed = port.link.as_ref().is_some_and(|known| known.mac != link.mac);
        port.link = Some(link);
        let (name, state) = (&port.spec.name, port.state());
        if was_up != (state == PortState::Up) {
            tracing::info!("port '{name}' is {}", if was_up { "down" } else { "up" });
        }
        if port.is_tap() && (readdressed || !was_up && state == PortState::Up) {
            self.announcements.begin(id);
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
            awaited(&port.spec.kind).is_some()
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

    /// Packet and macvtap ports come back by themselves when the interface appears that they stand on; so does a TAP that was never made, for
    /// want of its namespace.
    fn regain(&mut self) {
        let now = Instant::now();
        let lost: Vec<PortId> = self
            .ports
            .iter()
            .filter(|(_, port)| {
                port.is_due(now)
                    && !port.on_socket()
                    && (port.failed
                        || port.queues == 0
                        || awaited(&port.spec.kind).is_some()
                        || matches!(port.spec.kind, PortKind::Tunnel(_)))
            })
            .map(|(&id, _)| id)
            .collect();
        for id in lost {
            let Some(port) = self.ports.get(&id) else { continue };
            let place = port.place();
            if place.iter().flatten().any(|ns| crate::sys::netns::identity(ns).is_none()) {
                self.waits(id);
                continue;
            }
            if let (Some(place), Some((_, name))) = (place, port.interface()) {
                let awaited = awaited(&port.spec.kind);
                let name = awaited.unwrap_or(name);
                let present = self.namespaces.enter(&place).and_then(|netlink| netlink.link(name));
                let waits = awaited.is_some();
                if !present.is_ok_and(|link| link.is_some() == waits) {
                    if waits {
                        // What comes next is another, and may do.
                        self.waits(id);
                    } else {
                        self.ports.entry(id).and_modify(|port| port.retry = None);
                    }
                    continue;
                }
            }
            let _ = self.reopen(id, now);
        }
    }

    /// What a port waits for is not there: whatever was refused to it before was something else's.
    fn waits(&mut self, id: PortId) {
        self.ports.entry(id).and_modify(|port| {
            port.retry = None;
            if std::mem::take(&mut port.failed) {
                port.complaint = None;
            }
        });
    }

    /// Tries a port without a device again, because an operator says so.
    pub(in crate::switch) fn retry_port(&mut self, name: &str) -> Result<(), Error> {
        let id = self.port(name)?;
        match self.ports.get(&id) {
            Some(port) if !port.open && port.endpoint.is_none() => self.reopen(id, Instant::now()),
            _ => Ok(()),
        }
    }

    /// Opens a port that has no device, and tells what came of it where that is news.
    fn reopen(&mut self, id: PortId, now: Instant) -> Result<(), Error> {
        // In and out of the map, because `attach` needs all of `self`.
        let Some(mut port) = self.ports.remove(&id) else { return Ok(()) };
        let back = self.open(id, &mut port);
        let name = port.spec.name.clone();
        self.ports.insert(id, port);
        match back {
            Ok(queues) => {
                drop(self.publish(&[], queues));
                (0..self.bridges.len()).for_each(|bridge| self.refresh_locals(bridge));
                tracing::info!("port '{name}' is back");
                Ok(())
            }
            Err(error) => {
                // Tried again and again, told once.
                if self.ports.get_mut(&id).is_some_and(|port| port.refused(&error, now)) {
                    tracing::warn!("port '{name}' cannot come back yet: {error}");
                }
                Err(error)
            }
        }
    }
}
