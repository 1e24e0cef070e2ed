//! The forwarding database: which port a station is behind (IEEE 802.1Q clause 8.8), shared by all workers
//! without a lock.
//!
//! One table a bridge. A lookup reads one cache line, seldom two; learning a station that is known on the
//! same port since the same second reads the same line and writes nothing, so that in the common case no line
//! moves between cores. Everything else (new, moved, a second has passed) is a CAS or two.
//!
//! - `value.rs`: the two words of an entry: key = address and VLAN, value = port, kind, last-seen second,
//!   fingerprint.
//! - `table.rs`: buckets of a cache line, two-choice hashing, the states of a slot and why they are safe.
//! - `fair.rs`: what happens when the table is full, and how often stations may move.
//! - This file: the operations, in the workers' terms (look up, learn) and the control side's (add, remove,
//!   age, flush, list).
//!
//! **Threads.** Every method may be called from any thread at any time. [`Fdb::lookup`] and [`Fdb::learn`]
//! are bounded: they never wait for a preempted thread, at worst a station is not learned from this frame.
//! Walks ([`Fdb::expire`], [`Fdb::flush`], [`Fdb::iter`]) see every entry that is there throughout, and may
//! or may not see one that comes or goes meanwhile. An expired entry is found until the next [`Fdb::expire`], or until
//! [`Fdb::expire_part`] comes by it.
//!
//! **Size.** Fixed, with at least as many buckets as stations: a quarter full at most. Half full would do for
//! memory, but then about one station in 40,000 finds both of its buckets full, and a table that takes
//! "65,536 stations" and loses one of them for no visible reason is worth less than 2 MiB. Untouched pages
//! cost nothing. To resize, make another table and [`Fdb::copy_to`] it.
//!
//! **Not here.** Which addresses may be learned (no group addresses), what a drop is called, ageing of 0
//! ("learn nothing") and port ids that must not be reused while a worker may still learn from them: the
//! caller's.
//!
//! Rejected: `hashbrown` behind a lock or sharded locks (every frame writes the lock's line), epoch-based
//! maps (a garbage collector for 16-byte entries), RCU copies (a flood of new stations copies the table each
//! time). `benches/fdb.rs` keeps the comparison. On a virtual EPYC core, learning one warm address and
//! looking up another took 9 ns together (64 stations; 14 ns in batches among 64 Ki, the table full), which
//! is twice what single-threaded `hashbrown` takes; but with two threads it stays so, where `hashbrown` under
//! a read-write lock goes from 9 to 55 ns for the lookup alone. A flooding port costs 0.2 µs an address.

mod fair;
mod table;
mod value;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;

use std::alloc::{Layout, handle_alloc_error};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use self::fair::{Newcomer, Ports, Scope};
pub use self::table::Hash;
use self::table::{Placed, Slot, Table};
use self::value::Value;
pub use self::value::{Entry, Key, Kind, Tick};
use crate::addr::PortId;
use crate::bridge::sync::{spin_loop, yield_now};

/// Most stations a table can be made for: 16 Mi, in 1 GiB.
pub const MAX: u32 = 1 << 24;

/// Longest ageing time told apart from a clock behind, in seconds (97 days less one).
pub const MAX_AGEING_SECS: u32 = (1 << 23) - 86_400;

/// Fewest buckets: with less, two keys' choices are too few.
const MIN_BUCKETS: usize = 16;

/// How often learning starts over when other threads change the same entry, before it lets this frame pass.
const LEARN_TRIES: usize = if cfg!(loom) { 2 } else { 8 };

/// What learning from a frame did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Learned {
    /// Nothing to do: known on this port since this second (or another thread is changing this entry right
    /// now).
    Known,
    /// Known on this port; it is younger now.
    Refreshed,
    /// Known on another port; it is on this one now.
    Moved {
        /// Where it was.
        from: PortId,
    },
    /// New.
    Added,
    /// A static or local entry says it is on another port; that stands.
    Refused(Kind),
    /// New, but the table is full and nobody is over their share, or the key is 0. Not learned.
    Full,
    /// Known on another port, and too many stations moved to this port in this second. The entry stays.
    MoveLimited,
}

/// Why a static or local entry was not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InsertError {
    /// No room, and nothing in the way that may be evicted.
    #[error("the forwarding database is full of entries that may not be evicted")]
    Full,
    /// A local entry has this address.
    #[error("the address belongs to an internal port")]
    Local,
    /// Key 0 (00:00:00:00:00:00 in VLAN 0) stands for an empty slot.
    #[error("00:00:00:00:00:00 is not a station's address")]
    NotAStation,
}

/// What has happened to a table since it was made. Every count wraps at 2^64.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Stations that moved to another port.
    pub moves: u64,
    /// Moves that were not made: too many in a second.
    pub moves_limited: u64,
    /// Entries removed to make room for another.
    pub evictions: u64,
    /// Stations not learned: full, nobody over their share.
    pub full: u64,
    /// Frames whose source a static or local entry puts behind another port.
    pub conflicts: u64,
}

/// Counts that slow paths write, on a line of their own: the rest of [`Fdb`] is only read.
#[derive(Default)]
#[repr(align(128))]
struct Stats {
    /// Entries, and reservations about to become one. Never above `max`.
    len: AtomicU32,
    /// The bucket where the next search for a victim starts, modulo the table.
    hand: AtomicUsize,
    /// The bucket where the next part of the table is looked through for old entries, modulo the table.
    sweep: AtomicUsize,
    moves: AtomicU64,
    moves_limited: AtomicU64,
    evictions: AtomicU64,
    full: AtomicU64,
    conflicts: AtomicU64,
}

/// How an attempt to add a key ended.
enum Added {
    Done,
    /// Somebody else has, or had, the key: look again.
    Taken,
    Full,
}

/// The stations of one bridge.
pub struct Fdb {
    table: Table,
    max: u32,
    ports: Ports,
    stats: Stats,
}

impl fmt::Debug for Fdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fdb").field("len", &self.len()).field("max", &self.max).finish_non_exhaustive()
    }
}

impl Fdb {
    /// An empty table for `max` stations (taken into 1…[`MAX`]), with a secret seed.
    ///
    /// # Errors
    /// No memory: 64 bytes a station, rounded up to a power of two, of which only what is used is ever
    /// touched.
    pub fn try_new(max: u32) -> io::Result<Fdb> {
        let random = RandomState::new();
        Fdb::build(max, buckets_for(max), [random.hash_one(1), random.hash_one(2)])
    }

    /// The same for sizes that are not somebody else's choice: without memory it ends the process.
    #[must_use]
    pub fn new(max: u32) -> Fdb {
        Fdb::try_new(max).unwrap_or_else(|_| handle_alloc_error(Layout::new::<Fdb>()))
    }

    /// With a known seed, for tests that must repeat. Whoever knows the seed can fill a bucket.
    #[must_use]
    pub fn with_seed(max: u32, seed: u64) -> Fdb {
        Fdb::build(max, buckets_for(max), spread(seed))
            .unwrap_or_else(|_| handle_alloc_error(Layout::new::<Fdb>()))
    }

    fn build(max: u32, buckets: usize, seed: [u64; 2]) -> io::Result<Fdb> {
        let max = max.clamp(1, MAX);
        let table = Table::new(buckets, seed)?;
        Ok(Fdb { table, max, ports: Ports::new(max)?, stats: Stats::default() })
    }

    /// Where in this table a key belongs. Worth computing once a frame.
    #[inline]
    #[must_use]
    pub fn hash(&self, key: Key) -> Hash {
        self.table.hash(key)
    }

    /// Starts loading the line where the key most likely is.
    #[inline]
    pub fn prefetch(&self, hash: Hash) {
        self.table.prefetch(hash);
    }

    /// Where a station is.
    #[inline]
    #[must_use]
    pub fn lookup(&self, key: Key, hash: Hash) -> Option<Entry> {
        self.table.get(key, hash).map(Value::entry)
    }

    /// A frame from station `key` came in by `port`. The caller has checked that it is a station's address.
    #[inline]
    pub fn learn(&self, key: Key, hash: Hash, port: PortId, now: Tick) -> Learned {
        let value = Value::new(port, Kind::Dynamic, now, hash.fingerprint());
        if self.table.get(key, hash) == Some(value) {
            return Learned::Known;
        }
        self.learn_news(key, hash, value)
    }

    #[cold]
    #[inline(never)]
    fn learn_news(&self, key: Key, hash: Hash, value: Value) -> Learned {
        for _ in 0..LEARN_TRIES {
            let done = match self.table.find(key, hash) {
                Some((slot, old)) => self.learn_again(slot, old, value),
                None => match self.add(key, hash, value, Newcomer::Learned(value.port())) {
                    Added::Done => Some(Learned::Added),
                    Added::Full => {
                        self.stats.full.fetch_add(1, Ordering::Relaxed);
                        Some(Learned::Full)
                    }
                    Added::Taken => None,
                },
            };
            match done {
                Some(learned) => return learned,
                None => spin_loop(),
            }
        }
        Learned::Known
    }

    /// The station is known as `old`. `None` if that changed meanwhile.
    fn learn_again(&self, slot: &Slot, old: Value, value: Value) -> Option<Learned> {
        if old.port() == value.port() {
            if old.kind() != Kind::Dynamic || value.seen().since(old.seen()) <= 0 {
                return Some(Learned::Known);
            }
            return slot.replace(old, value).then_some(Learned::Refreshed);
        }
        if old.kind() != Kind::Dynamic {
            self.stats.conflicts.fetch_add(1, Ordering::Relaxed);
            return Some(Learned::Refused(old.kind()));
        }
        if !self.ports.may_move(value.port(), value.seen()) {
            self.stats.moves_limited.fetch_add(1, Ordering::Relaxed);
            return Some(Learned::MoveLimited);
        }
        if !self.exchange(slot, old, value) {
            return None;
        }
        self.stats.moves.fetch_add(1, Ordering::Relaxed);
        Some(Learned::Moved { from: old.port() })
    }

    /// Adds or replaces a configured entry; returns what it replaced. A full table loses its oldest dynamic
    /// entry.
    ///
    /// # Errors
    /// Full of static and local entries; or a local entry has this address.
    pub fn insert_static(&self, key: Key, port: PortId) -> Result<Option<Entry>, InsertError> {
        self.insert_fixed(key, port, Kind::Static)
    }

    /// Adds or replaces an entry for an address of an `internal` port; returns what it replaced. A full table
    /// loses its oldest dynamic entry.
    ///
    /// # Errors
    /// Full of static and local entries.
    pub fn insert_local(&self, key: Key, port: PortId) -> Result<Option<Entry>, InsertError> {
        self.insert_fixed(key, port, Kind::Local)
    }

    fn insert_fixed(&self, key: Key, port: PortId, kind: Kind) -> Result<Option<Entry>, InsertError> {
        if key.raw() == 0 {
            return Err(InsertError::NotAStation);
        }
        let hash = self.hash(key);
        let value = Value::new(port, kind, Tick::default(), hash.fingerprint());
        // Control side: it can afford to wait for a worker preempted in the middle of the same key.
        loop {
            match self.table.find(key, hash) {
                Some((_, old)) if old.kind() == Kind::Local && kind == Kind::Static => {
                    return Err(InsertError::Local);
                }
                Some((slot, old)) => {
                    if self.exchange(slot, old, value) {
                        return Ok(Some(old.entry()));
                    }
                }
                None => match self.add(key, hash, value, Newcomer::Fixed) {
                    Added::Done => return Ok(None),
                    Added::Full => return Err(InsertError::Full),
                    Added::Taken => yield_now(),
                },
            }
        }
    }

    /// Forgets a station, of whatever kind. False if it is not known.
    pub fn remove(&self, key: Key) -> bool {
        let hash = self.hash(key);
        while let Some((slot, value)) = self.table.find(key, hash) {
            if self.discard(slot, value) {
                return true;
            }
        }
        false
    }

    /// Forgets dynamic entries not heard for `ageing_secs` (at most [`MAX_AGEING_SECS`]) or longer; returns
    /// how many. Meant to be called about once a second, and at least once a day.
    pub fn expire(&self, now: Tick, ageing_secs: u32) -> usize {
        self.expire_part(now, ageing_secs, usize::MAX)
    }

    /// The same in one part of the table, the next at each call: as many buckets as wanted, which are as many
    /// stations and 64 bytes each.
    pub fn expire_part(&self, now: Tick, ageing_secs: u32, buckets: usize) -> usize {
        let start = self.stats.sweep.fetch_add(buckets, Ordering::Relaxed);
        let ageing_secs = ageing_secs.min(MAX_AGEING_SECS);
        self.forget(self.table.window(start, buckets), |_, entry| {
            entry.kind == Kind::Dynamic && entry.age_secs(now) >= ageing_secs
        })
    }

    /// Forgets every entry, of whatever kind, for which `forget` is true; returns how many. It is asked again
    /// when an entry changed in between.
    pub fn flush(&self, forget: impl FnMut(Key, Entry) -> bool) -> usize {
        self.forget(self.table.slots(), forget)
    }

    fn forget<'a>(
        &self,
        slots: impl Iterator<Item = &'a Slot>,
        mut forget: impl FnMut(Key, Entry) -> bool,
    ) -> usize {
        let mut gone = 0;
        for slot in slots {
            while let Some((key, value)) = self.table.read(slot) {
                if !forget(key, value.entry()) {
                    break;
                }
                if self.discard(slot, value) {
                    gone += 1;
                    break;
                }
            }
        }
        gone
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Key, Entry)> + '_ {
        self.table.slots().filter_map(|slot| self.table.read(slot)).map(|(key, value)| (key, value.entry()))
    }

    /// Copies every entry (and the number of ports, whose remotes they are, and what has happened so far) to another table; returns how
    /// many were refused. Fixed entries go first, then dynamic ones from the oldest to the newest, under the other table's fair shares:
    /// of what it evicts on the way nothing is said. What is learned here meanwhile may be missed.
    pub fn copy_to(&self, other: &Fdb) -> usize {
        other.ports.set_number(self.ports.number());
        let mut entries: Vec<_> = self.iter().collect();
        entries.iter().for_each(|(_, entry)| other.set_device(entry.port, self.ports.device(entry.port)));
        let newest = entries.iter().map(|(_, entry)| entry.last_seen).reduce(later).unwrap_or_default();
        entries.sort_by_key(|(_, entry)| {
            (entry.kind == Kind::Dynamic, std::cmp::Reverse(newest.since(entry.last_seen)))
        });
        let refused = |(key, entry): &(Key, Entry)| match entry.kind {
            Kind::Static => other.insert_static(*key, entry.port).is_err(),
            Kind::Local => other.insert_local(*key, entry.port).is_err(),
            Kind::Dynamic => {
                other.learn(*key, other.hash(*key), entry.port, entry.last_seen) == Learned::Full
            }
        };
        let refused = entries.iter().filter(|entry| refused(entry)).count();
        let counts = self.counters();
        other.stats.moves.store(counts.moves, Ordering::Relaxed);
        other.stats.moves_limited.store(counts.moves_limited, Ordering::Relaxed);
        other.stats.evictions.store(counts.evictions, Ordering::Relaxed);
        other.stats.full.store(counts.full, Ordering::Relaxed);
        other.stats.conflicts.store(counts.conflicts, Ordering::Relaxed);
        refused
    }

    /// Tells how many ports share the table, a tunnel with all its remotes being one: each may have `max / number` stations
    /// before it has to give when the table is full. 1 in a new table: nobody is ever over their share.
    pub fn set_ports(&self, number: u32) {
        self.ports.set_number(number);
    }

    /// Tells that a port is a remote of `device`, with which it shares; itself in a new table. To be told before stations are
    /// learned behind it.
    pub fn set_device(&self, port: PortId, device: PortId) {
        self.ports.set_device(port, device);
    }

    /// Entries of one port, of every kind.
    #[must_use]
    pub fn port_len(&self, port: PortId) -> u32 {
        self.ports.count(port)
    }

    /// Entries of every kind.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.stats.len.load(Ordering::Relaxed)
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Most entries it will hold.
    #[must_use]
    pub fn max(&self) -> u32 {
        self.max
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counters {
            moves: read(&self.stats.moves),
            moves_limited: read(&self.stats.moves_limited),
            evictions: read(&self.stats.evictions),
            full: read(&self.stats.full),
            conflicts: read(&self.stats.conflicts),
        }
    }

    /// A new key: capacity first, then a slot.
    fn add(&self, key: Key, hash: Hash, value: Value, newcomer: Newcomer) -> Added {
        if key.raw() == 0 || !self.claim() && !self.evict(newcomer, hash, Scope::Table) {
            return Added::Full;
        }
        self.ports.enter(value.port());
        let mut added = Added::Full;
        for _ in 0..LEARN_TRIES {
            match self.table.place(key, hash, value) {
                Placed::Done => return Added::Done,
                Placed::Taken => added = Added::Taken,
                // Both buckets full in a table that is not: one goes, and the table is smaller by one.
                Placed::NoRoom if self.evict(newcomer, hash, Scope::Buckets) => {
                    self.unclaim();
                    continue;
                }
                Placed::NoRoom => {}
            }
            break;
        }
        self.ports.leave(value.port());
        self.unclaim();
        added
    }

    /// Takes one of `max` places.
    fn claim(&self) -> bool {
        let room = |len| (len < self.max).then_some(len + 1);
        self.stats.len.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok()
    }

    fn unclaim(&self) {
        self.stats.len.fetch_sub(1, Ordering::Relaxed);
    }

    /// Changes a live entry, and the counts of ports with it.
    fn exchange(&self, slot: &Slot, old: Value, value: Value) -> bool {
        self.ports.enter(value.port());
        let done = slot.replace(old, value);
        self.ports.leave(if done { old.port() } else { value.port() });
        done
    }

    /// Removes a live entry, and its counts with it.
    fn discard(&self, slot: &Slot, value: Value) -> bool {
        let done = slot.remove(value);
        if done {
            self.ports.leave(value.port());
            self.unclaim();
        }
        done
    }
}

/// One for each station at least, a power of two.
fn buckets_for(max: u32) -> usize {
    (max.clamp(1, MAX) as usize).next_power_of_two().max(MIN_BUCKETS)
}

/// Two words from one (`SplitMix64`).
fn spread(seed: u64) -> [u64; 2] {
    [1, 2].map(|i: u64| {
        let mut z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    })
}

/// The later of two moments modulo 2^24.
fn later(a: Tick, b: Tick) -> Tick {
    if a.since(b) > 0 { a } else { b }
}
