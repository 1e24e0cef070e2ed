//! Who may have how much: capacity, fair shares, and the budget of moves.
//!
//! **Fair eviction** (after Open vSwitch's `lib/mac-learning`, made for many writers). A device is what operators know
//! as a port: a port, or a tunnel port with all of its remotes, each of which has a port id. A device's share is the
//! table's size divided by the number of devices. In a full table
//! - a newcomer from a device over its share takes the place of that device's own oldest entry, never another's;
//! - else it takes the place of the oldest entry of a device over its share, the one with the most first;
//! - if nobody is over their share it is not learned.
//!
//! So a device that floods made-up addresses ends up recycling its own entries, and a device within its share can
//! always learn. Packets with made-up senders, which become remotes of a tunnel, change nothing in that: shares for each
//! remote gave eight such senders the whole table. Among the entries of one device those of the remote that has the most
//! go first, so that its remotes come out alike; none of them has a claim against the others. "Oldest" is approximate: the oldest seen in both of the newcomer's buckets and in a window
//! behind a hand that moves on with every search. A search that finds nothing is bounded, and the next one
//! goes on where it ended, so a station that keeps sending is learned in the end. Exact order would need a
//! list that every refresh writes to.
//!
//! **Moves** are bounded for each device that stations move *to*: [`MOVES_PER_TICK`] a second. Two ports in a
//! loop bounce the table's cache lines at most that often, while a full table of the default size still moves
//! over in 16 s. One budget for the whole table was rejected: who spoofs the addresses of others would spend
//! it, and their owners could not take them back. With one for each port, what a thief takes in a second one
//! victim can take back in the same second. It bounds the cost of spoofing; it is no defence against it.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Fdb;
use super::table::{Hash, Slot};
use super::value::{Kind, Tick, Value};
use crate::addr::PortId;
use crate::sys::mem::{Zeroable, Zeroed};

/// Stations that may move to one device in a second.
pub(super) const MOVES_PER_TICK: u32 = 4096;

/// How far the clocks of two workers may be apart, in seconds. What looks further behind is half the ticks' range ago: a
/// port that nothing moved to for months.
const CLOCK_BEHIND: std::ops::RangeInclusive<i32> = -60..=0;

/// Buckets every search for a victim looks at: at a quarter full, 32 slots hold eight entries to choose from.
const WINDOW_LEAST: usize = 8;
/// Buckets looked at when the first found nothing and the newcomer has a claim.
const WINDOW_MOST: usize = 64;
/// Victims that may be snatched away before giving up.
const EVICT_TRIES: usize = 4;

/// What is kept of a port id. All of it is written on slow paths only.
struct Port {
    /// Entries of every kind in the lower half; above it the id of the device that they are counted for, combined with the
    /// port's own by exclusive or, so that zero stands for the port itself. One word, so that each change of the count knows
    /// for which device it counts.
    entries: AtomicU64,
    /// Entries of the ids whose device this is. A moment behind them: it may even be a few below zero.
    device_entries: AtomicU32,
    /// Tick in the upper half, moves to this device in that tick in the lower.
    moves: AtomicU64,
}

// SAFETY: integers only; nothing to drop.
unsafe impl Zeroable for Port {}

/// Entries of each port and device, and the share each device may have.
pub(super) struct Ports {
    /// One for every possible id: 1.5 MiB of addresses, of which only the pages of ports that exist are ever
    /// touched.
    ports: Zeroed<Port>,
    max: u32,
    number: AtomicU32,
}

/// The device in the upper half of [`Port::entries`].
#[expect(clippy::cast_possible_truncation, reason = "an id has 16 bits")]
fn device_in(entries: u64, port: PortId) -> PortId {
    PortId((entries >> 32) as u16 ^ port.0)
}

impl Ports {
    pub(super) fn new(max: u32) -> io::Result<Ports> {
        Ok(Ports { ports: Zeroed::new(1 << 16)?, max, number: AtomicU32::new(1) })
    }

    pub(super) fn number(&self) -> u32 {
        self.number.load(Ordering::Relaxed)
    }

    pub(super) fn set_number(&self, number: u32) {
        self.number.store(number.max(1), Ordering::Relaxed);
    }

    pub(super) fn share(&self) -> u32 {
        (self.max / self.number()).max(1)
    }

    /// Entries of a port id.
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    pub(super) fn count(&self, port: PortId) -> u32 {
        self.ports[port.index()].entries.load(Ordering::Relaxed) as u32
    }

    /// Entries of a device.
    pub(super) fn count_device(&self, device: PortId) -> u32 {
        let count = self.ports[device.index()].device_entries.load(Ordering::Relaxed);
        count.cast_signed().max(0).unsigned_abs()
    }

    pub(super) fn device(&self, port: PortId) -> PortId {
        device_in(self.ports[port.index()].entries.load(Ordering::Relaxed), port)
    }

    /// From now on a port's entries count for this device, those that it has among them.
    pub(super) fn set_device(&self, port: PortId, device: PortId) {
        let marked = u64::from(device.0 ^ port.0) << 32;
        let change = |entries: u64| {
            (device_in(entries, port) != device).then_some(marked | entries & u64::from(u32::MAX))
        };
        let entries = &self.ports[port.index()].entries;
        if let Ok(before) = entries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change) {
            #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
            let count = before as u32;
            self.total(device_in(before, port)).fetch_sub(count, Ordering::Relaxed);
            self.total(device).fetch_add(count, Ordering::Relaxed);
        }
    }

    fn total(&self, device: PortId) -> &AtomicU32 {
        &self.ports[device.index()].device_entries
    }

    /// Before an entry becomes visible, so that whoever removes it finds it counted.
    pub(super) fn enter(&self, port: PortId) {
        let before = self.ports[port.index()].entries.fetch_add(1, Ordering::Relaxed);
        self.total(device_in(before, port)).fetch_add(1, Ordering::Relaxed);
    }

    /// After an entry is gone, or did not come to be.
    pub(super) fn leave(&self, port: PortId) {
        let before = self.ports[port.index()].entries.fetch_sub(1, Ordering::Relaxed);
        self.total(device_in(before, port)).fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether a station may move to `port`; takes one from its device's budget. A thread whose clock is behind draws
    /// on the later second.
    pub(super) fn may_move(&self, port: PortId, now: Tick) -> bool {
        let spend = |state: u64| {
            let (tick, used) = (Tick((state >> 32) as u32), (state & 0xffff_ffff) as u32);
            if CLOCK_BEHIND.contains(&now.since(tick)) {
                (used < MOVES_PER_TICK).then_some(state + 1)
            } else {
                Some(u64::from(now.0) << 32 | 1)
            }
        };
        self.ports[self.device(port).index()]
            .moves
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend)
            .is_ok()
    }
}

/// For whom an entry has to go.
#[derive(Clone, Copy, Debug)]
pub(super) enum Newcomer {
    /// A station heard on this port: its device's fair share.
    Learned(PortId),
    /// A configured one: any dynamic entry may go.
    Fixed,
}

/// Where the entry that goes may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scope {
    /// In the newcomer's own buckets, for room.
    Buckets,
    /// Anywhere, for capacity.
    Table,
}

/// Which entries may go: decided once, then applied to every slot looked at.
#[derive(Clone, Copy)]
enum Rule {
    /// Those of a device.
    Of(PortId),
    OverShare(u32),
    Any,
}

/// The best entry to remove so far.
struct Victim<'a> {
    slot: &'a Slot,
    value: Value,
    /// Entries of its device where devices compete, then those of its port.
    crowd: (u32, u32),
}

impl Victim<'_> {
    /// The fuller device or remote first, then the older entry.
    fn before(&self, other: &Victim<'_>) -> bool {
        self.crowd > other.crowd
            || self.crowd == other.crowd && other.value.seen().since(self.value.seen()) > 0
    }
}

impl Fdb {
    /// Removes one dynamic entry in favour of `newcomer`; its place in [`Fdb::len`] passes to the caller.
    /// False if nothing may go, or nothing was found within bounds.
    pub(super) fn evict(&self, newcomer: Newcomer, hash: Hash, scope: Scope) -> bool {
        let share = self.ports.share();
        // A device just at its share has no claim to more: it is worth a short look only.
        let (rule, entitled) = match newcomer {
            Newcomer::Fixed => (Rule::Any, true),
            Newcomer::Learned(port) => {
                let device = self.ports.device(port);
                match self.ports.count_device(device).cmp(&share) {
                    std::cmp::Ordering::Greater => (Rule::Of(device), true),
                    std::cmp::Ordering::Equal => (Rule::OverShare(share), false),
                    std::cmp::Ordering::Less => (Rule::OverShare(share), true),
                }
            }
        };
        for _ in 0..EVICT_TRIES {
            let Some(victim) = self.victim(rule, entitled, hash, scope) else { return false };
            if victim.slot.remove(victim.value) {
                self.ports.leave(victim.value.port());
                self.stats.evictions.fetch_add(1, Ordering::Relaxed);
                return true;
            }
        }
        false
    }

    fn victim(&self, rule: Rule, entitled: bool, hash: Hash, scope: Scope) -> Option<Victim<'_>> {
        let mut best = None;
        self.table.candidates(hash).for_each(|slot| self.consider(slot, rule, &mut best));
        match (scope, rule) {
            (Scope::Buckets, _) => {}
            // Configured by hand and rarely: worth a walk, and certain.
            (Scope::Table, Rule::Any) => {
                self.table.slots().for_each(|slot| self.consider(slot, rule, &mut best));
            }
            (Scope::Table, _) => {
                let most = if entitled { WINDOW_MOST } else { WINDOW_LEAST };
                for _ in 0..most / WINDOW_LEAST {
                    let start = self.stats.hand.fetch_add(WINDOW_LEAST, Ordering::Relaxed);
                    self.table
                        .window(start, WINDOW_LEAST)
                        .for_each(|slot| self.consider(slot, rule, &mut best));
                    if best.is_some() {
                        break;
                    }
                }
            }
        }
        best
    }

    fn consider<'a>(&self, slot: &'a Slot, rule: Rule, best: &mut Option<Victim<'a>>) {
        let Some(value) = slot.value().filter(|value| value.kind() == Kind::Dynamic) else { return };
        let port = value.port();
        let device = self.ports.device(port);
        let crowd = match rule {
            Rule::Of(own) if device == own => 0,
            Rule::Of(_) => return,
            Rule::OverShare(share) => match self.ports.count_device(device) {
                count if count > share => count,
                _ => return,
            },
            Rule::Any => self.ports.count_device(device),
        };
        let crowd = (crowd, self.ports.count(port));
        let victim = Victim { slot, value, crowd };
        if best.as_ref().is_none_or(|best| victim.before(best)) {
            *best = Some(victim);
        }
    }
}
