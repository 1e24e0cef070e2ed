//! Who may have how much: capacity, fair shares, and the budget of moves.
//!
//! **Fair eviction** (after Open vSwitch's `lib/mac-learning`, made for many writers). A port's share is the
//! table's size divided by the number of ports. In a full table
//! - a newcomer from a port over its share takes the place of that port's own oldest entry, never another's;
//! - else it takes the place of the oldest entry of a port over its share, the one with the most first;
//! - if nobody is over their share it is not learned.
//!
//! So a port that floods made-up addresses ends up recycling its own entries, and a port within its share can
//! always learn. "Oldest" is approximate: the oldest seen in both of the newcomer's buckets and in a window
//! behind a hand that moves on with every search. A search that finds nothing is bounded, and the next one
//! goes on where it ended, so a station that keeps sending is learned in the end. Exact order would need a
//! list that every refresh writes to.
//!
//! **Moves** are bounded for each port that stations move *to*: [`MOVES_PER_TICK`] a second. Two ports in a
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

/// Stations that may move to one port in a second.
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

/// What is kept of a port. All of it is written on slow paths only.
struct Port {
    /// Entries, of every kind.
    count: AtomicU32,
    /// Tick in the upper half, moves in that tick in the lower.
    moves: AtomicU64,
}

// SAFETY: integers only; nothing to drop.
unsafe impl Zeroable for Port {}

/// Entries of each port and the share each may have.
pub(super) struct Ports {
    /// One for every possible id: a MiB of addresses, of which only the pages of ports that exist are ever
    /// touched.
    ports: Zeroed<Port>,
    max: u32,
    number: AtomicU32,
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

    pub(super) fn count(&self, port: PortId) -> u32 {
        self.ports[port.index()].count.load(Ordering::Relaxed)
    }

    /// Before an entry becomes visible, so that whoever removes it finds it counted.
    pub(super) fn enter(&self, port: PortId) {
        self.ports[port.index()].count.fetch_add(1, Ordering::Relaxed);
    }

    /// After an entry is gone, or did not come to be.
    pub(super) fn leave(&self, port: PortId) {
        self.ports[port.index()].count.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether a station may move to `port`; takes one from its budget. A thread whose clock is behind draws
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
        self.ports[port.index()].moves.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }
}

/// For whom an entry has to go.
#[derive(Clone, Copy, Debug)]
pub(super) enum Newcomer {
    /// A station heard on this port: fair shares.
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
    Of(PortId),
    OverShare(u32),
    Any,
}

/// The best entry to remove so far.
struct Victim<'a> {
    slot: &'a Slot,
    value: Value,
    /// Entries of its port.
    crowd: u32,
}

impl Victim<'_> {
    /// The fuller port first, then the older entry.
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
        // A port just at its share has no claim to more: it is worth a short look only.
        let (rule, entitled) = match newcomer {
            Newcomer::Fixed => (Rule::Any, true),
            Newcomer::Learned(port) => match self.ports.count(port).cmp(&share) {
                std::cmp::Ordering::Greater => (Rule::Of(port), true),
                std::cmp::Ordering::Equal => (Rule::OverShare(share), false),
                std::cmp::Ordering::Less => (Rule::OverShare(share), true),
            },
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
        let crowd = match rule {
            Rule::Of(port) if value.port() == port => 0,
            Rule::Of(_) => return,
            Rule::OverShare(share) => match self.ports.count(value.port()) {
                count if count > share => count,
                _ => return,
            },
            Rule::Any => self.ports.count(value.port()),
        };
        let victim = Victim { slot, value, crowd };
        if best.as_ref().is_none_or(|best| victim.before(best)) {
            *best = Some(victim);
        }
    }
}
