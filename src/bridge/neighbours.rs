//! Neighbours: which MAC address an IP address is at, so that the switch can answer ARP requests and neighbour
//! solicitations itself instead of flooding them into tunnels (RFC 9161 describes it for EVPN).
//!
//! Workers read a snapshot that is part of the topology, and tell the control side what is new ([`Heard`]); it keeps the
//! table and publishes the next snapshot. Only when a neighbour was last heard changes in place. Neighbours are few and seldom new,
//! so copying the map is cheap; a table like the forwarding database's, which workers write, would be much machinery for
//! a frame in a thousand.
//!
//! Nothing here says where a station is: that is the forwarding database's, and whom it does not know is not answered for.
//!
//! **What is known may be out of date.** An address may come back with another MAC address, at a station that does not
//! announce it; then each answer sends the asker to a dead station again. So a learned neighbour is answered for only while
//! two things hold ([`Neighbour::is_current`]):
//! - it told its address itself, by ARP or neighbour discovery, in the last [`ANSWERED_SECS`] seconds. The next question
//!   goes out; its answer counts for another [`ANSWERED_SECS`]. So each switch floods at most one question for an
//!   address in that time, as long as the address is in use;
//! - no unicast question to it is without an answer. Hosts ask that way whether a neighbour is alive before they ask
//!   everybody again (RFC 4861, section 7.3; Linux does so for ARP, too).
//!
//! Rejected: to count any frame of the station as news of its address (an address that moves between two stations which
//! both live would be answered for wrongly for the ageing time); probes of the switch's own (it has no address to send them
//! from, and the hosts' are there); memory of whom the switch answered, a word an asker.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use hashbrown::HashMap;

use super::fdb::Tick;
use crate::addr::{MacAddr, PortId};
use crate::spec::BridgeSpec;

/// Configured neighbours of a bridge, at most.
pub const NEIGHBOURS_MAX: usize = 4096;
/// Learned ones, at most. A port can have as many as are free then, so that no one takes all the room of the others.
pub const LEARNED_MAX: usize = 8192;

/// A learned neighbour is answered for as long after it told its address, in seconds. As Linux's hosts believe an answer.
pub const ANSWERED_SECS: u32 = 30;

/// VLAN (0 in a bridge that does not filter) and address.
pub type Place = (u16, IpAddr);

/// What is known of an address.
#[derive(Debug)]
pub struct Neighbour {
    /// Where it is.
    pub mac: MacAddr,
    /// The port that it was heard by. `None` is configured: frames do not change it, and it does not age.
    pub heard_by: Option<PortId>,
    /// Whether it is a router; `None` is not known yet. Hosts give up a router that is said to be none (RFC 4861, section 7.2.5).
    pub router: Option<bool>,
    /// Second when it was last heard.
    seen: AtomicU32,
    /// It was asked whether it is alive, and has not answered.
    doubted: AtomicBool,
}

impl Neighbour {
    /// One heard now, or configured.
    #[must_use]
    pub fn new(mac: MacAddr, heard_by: Option<PortId>, router: Option<bool>, now: Tick) -> Neighbour {
        Neighbour { mac, heard_by, router, seen: AtomicU32::new(now.0), doubted: AtomicBool::new(false) }
    }

    /// Whether it is configured.
    #[inline]
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        self.heard_by.is_none()
    }

    /// It was heard again.
    #[inline]
    pub fn refresh(&self, now: Tick) {
        if self.seen.load(Ordering::Relaxed) != now.0 {
            self.seen.store(now.0, Ordering::Relaxed);
        }
        if self.doubted.load(Ordering::Relaxed) {
            self.doubted.store(false, Ordering::Relaxed);
        }
    }

    /// It was asked whether it is alive, or another station claims its address: until it is heard again, what is known
    /// of it is not repeated.
    #[inline]
    pub fn doubt(&self) {
        self.doubted.store(true, Ordering::Relaxed);
    }

    /// Whether it may be answered for: it is configured, or told its address lately and is not in doubt.
    #[inline]
    #[must_use]
    pub fn is_current(&self, now: Tick) -> bool {
        self.is_fixed() || self.age_secs(now) < ANSWERED_SECS && !self.doubted.load(Ordering::Relaxed)
    }

    /// Seconds since it was last heard; 0 for a configured one.
    #[must_use]
    pub fn age_secs(&self, now: Tick) -> u32 {
        // A worker's clock may be a little ahead.
        if self.is_fixed() { 0 } else { now.0.saturating_sub(self.seen.load(Ordering::Relaxed)) }
    }
}

/// The neighbours of one bridge. A copy shares when each was last heard.
#[derive(Clone, Debug, Default)]
pub struct Neighbours(HashMap<Place, Arc<Neighbour>>);

impl Neighbours {
    /// What is known of an address.
    #[inline]
    #[must_use]
    pub fn get(&self, place: &Place) -> Option<&Neighbour> {
        self.0.get(place).map(|neighbour| &**neighbour)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Place, &Neighbour)> {
        self.0.iter().map(|(place, neighbour)| (place, &**neighbour))
    }

    /// Adds or replaces one; whether there was room.
    pub fn insert(&mut self, place: Place, neighbour: Neighbour) -> bool {
        let alike = |other: &Arc<Neighbour>| other.heard_by == neighbour.heard_by;
        let replaces = self.0.get(&place).is_some_and(alike);
        let free = if neighbour.is_fixed() {
            NEIGHBOURS_MAX
        } else {
            LEARNED_MAX - self.0.values().filter(|other| !other.is_fixed()).count()
        };
        if !replaces && self.0.values().filter(|other| alike(other)).count() >= free {
            return false;
        }
        self.0.insert(place, Arc::new(neighbour));
        true
    }

    /// Forgets those for which `forget` is true; returns how many.
    pub fn forget(&mut self, mut forget: impl FnMut(&Place, &Neighbour) -> bool) -> usize {
        let before = self.0.len();
        self.0.retain(|place, neighbour| !forget(place, neighbour));
        before - self.0.len()
    }

    /// Moves the configured ones to where `place` says, and forgets the others.
    #[must_use]
    pub fn moved(&self, place: impl Fn(&Place) -> Place) -> Neighbours {
        let fixed = self.0.iter().filter(|(_, neighbour)| neighbour.is_fixed());
        Neighbours(fixed.map(|(old, neighbour)| (place(old), Arc::clone(neighbour))).collect())
    }
}

/// A frame told of a neighbour that is not known, or known otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heard {
    /// The port it came by.
    pub port: PortId,
    /// The VLAN it belongs to.
    pub vid: u16,
    /// Whose address it told.
    pub address: IpAddr,
    /// And that address.
    pub mac: MacAddr,
    /// Whether it is a router, if the frame said so.
    pub router: Option<bool>,
}

/// Whether one host, that a bridge can know of, may have this address.
#[must_use]
pub fn is_host(address: IpAddr) -> bool {
    let odd = match address {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
    };
    !odd && !address.is_unspecified() && !address.is_multicast() && !address.is_loopback()
}

/// Where a static neighbour in VLAN `vid` is when a bridge's settings change from `now` to `then`.
#[must_use]
pub fn follow(vid: u16, now: &BridgeSpec, then: &BridgeSpec) -> u16 {
    match (now.vlan_filtering, then.vlan_filtering) {
        (_, false) => 0,
        (true, true) if vid != now.default_pvid.get() => vid,
        _ => then.default_pvid.get(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By which port, or configured.
    fn neighbour(port: Option<u16>) -> Neighbour {
        Neighbour::new(MacAddr([2, 0, 0, 0, 0, 1]), port.map(PortId), Some(false), Tick(5))
    }

    fn place(n: u32) -> Place {
        (0, IpAddr::V4((0x0a00_0000 + n).into()))
    }

    #[test]
    fn nobody_takes_all_the_room() {
        let mut table = Neighbours::default();
        let mut next = 0;
        let mut learn = |table: &mut Neighbours, port: Option<u16>| {
            let mut learned = 0;
            while table.insert(place(next), neighbour(port)) {
                (next, learned) = (next + 1, learned + 1);
            }
            learned
        };
        assert_eq!(learn(&mut table, Some(1)), LEARNED_MAX / 2, "as many as are free");
        assert_eq!(learn(&mut table, Some(2)), LEARNED_MAX / 4);
        assert_eq!(learn(&mut table, Some(1)), 0);
        assert!(table.insert(place(0), neighbour(Some(1))), "but who is known may change");
        assert_eq!(learn(&mut table, None), NEIGHBOURS_MAX, "and there is room for configured ones");
        assert_eq!(table.forget(|_, neighbour| !neighbour.is_fixed()), LEARNED_MAX * 3 / 4);
        assert_eq!(table.iter().count(), NEIGHBOURS_MAX);
    }

    #[test]
    fn a_copy_shares_when_each_was_last_heard() {
        let mut table = Neighbours::default();
        table.insert(place(1), neighbour(Some(1)));
        table.insert(place(2), neighbour(None));
        let copy = table.clone();
        copy.get(&place(1)).expect("there").refresh(Tick(8));
        let age = |n| table.get(&place(n)).map(|neighbour| neighbour.age_secs(Tick(10)));
        assert_eq!((age(1), age(2)), (Some(2), Some(0)));
        let moved = table.moved(|&(_, address)| (7, address));
        assert_eq!(moved.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [(7, place(2).1)]);
    }

    #[test]
    fn what_is_old_or_in_doubt_is_not_repeated() {
        let learned = neighbour(Some(1));
        assert!(
            learned.is_current(Tick(5 + ANSWERED_SECS - 1)) && !learned.is_current(Tick(5 + ANSWERED_SECS))
        );
        learned.doubt();
        assert!(!learned.is_current(Tick(6)));
        learned.refresh(Tick(6));
        assert!(learned.is_current(Tick(6)));
        let fixed = neighbour(None);
        fixed.doubt();
        assert!(fixed.is_current(Tick(1000)));
    }

    #[test]
    fn configured_ones_follow_the_default_vlan() {
        let spec = |vlan_filtering, pvid| BridgeSpec {
            vlan_filtering,
            default_pvid: crate::addr::VlanId::new(pvid).expect("in range"),
            ..BridgeSpec::new("br0")
        };
        assert_eq!(follow(0, &spec(false, 1), &spec(true, 5)), 5);
        assert_eq!(follow(10, &spec(true, 1), &spec(false, 1)), 0);
        assert_eq!(
            (follow(1, &spec(true, 1), &spec(true, 5)), follow(7, &spec(true, 1), &spec(true, 5))),
            (5, 7)
        );
    }

    #[test]
    fn hosts_addresses() {
        for good in ["10.0.0.1", "169.254.0.1", "fe80::1", "fd00::1"] {
            assert!(is_host(good.parse().expect("an address")), "{good}");
        }
        for bad in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(!is_host(bad.parse().expect("an address")), "{bad}");
        }
    }
}
