//! The lock-free core: buckets of slots, and the four things that can happen to a slot.
//!
//! A slot is two words, a key and a value, and is always in one of these states:
//!
//! ```text
//!                CAS key 0→K                store value V
//!   Empty (0,0) ───────────▶ Reserved (K,0) ─────────────▶ Live (K,V) ⟲ CAS V→V'
//!       ▲                        │ withdraw                    │ CAS value V→0
//!       └────────────────────────┴───────── Dying (K,0) ◀──────┘
//!                 store key 0
//! ```
//!
//! Invariants:
//! - A slot with a key and no value has exactly one owner, the thread whose CAS made it so; nobody else
//!   writes to it. A live entry never changes its slot, so whoever looks for a key that is there finds it.
//! - Two words tear. A reader may see the key of one entry and the value of the one that took its place, so
//!   every value carries 20 bits of the key's hash and readers compare them. Changes of a live entry are CAS
//!   on the whole value, so a change meant for the entry before fails too. What is left is a collision of 20
//!   bits and of port, kind and tick, inside one slot, inside the few nanoseconds between a read and a CAS:
//!   harmless (one station is looked up wrongly or learned again), and nobody outside can aim for it, the
//!   hash being seeded.
//! - A key is live in one slot at most. Who reserved a slot looks through both buckets for the same key
//!   before publishing. Between the reservation and that look there is a `SeqCst` fence, so of two threads at
//!   least one sees the other (Dekker). Seeing a *live* rival, or a reserved one in an earlier slot,
//!   withdraws; the earlier one waits for the later to withdraw. "The later position withdraws" alone would
//!   not do: the later one may have looked before the earlier reserved, and publish.

use std::io;

use super::value::{Key, Value};
use crate::bridge::sync::{AtomicU64, Ordering, fence, spin_loop};
use crate::sys::mem;

/// Slots of a bucket: as many as fit a cache line. (loom's exhaustive search wants a small world.)
const WAYS: usize = if cfg!(loom) { 2 } else { 4 };

/// A key goes to its first bucket while that has fewer than this many entries. Measured by simulation of a
/// full table (4 slots a station): nine in ten entries are found in the first bucket and none fails to find
/// room in sixty fills of 131,072 stations; 3 gives 98% but loses a station in thirty fills, plain two-choice
/// gives 77%.
const FIRST_WHILE_BELOW: usize = WAYS / 2;

/// How often an earlier reservation looks whether the later rival has withdrawn, before it withdraws too. The
/// rival is a few instructions away from it, unless it was preempted.
const PATIENCE: usize = if cfg!(loom) { 2 } else { 64 };

/// A key's hash in one table: names both buckets and the fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hash(u64);

impl Hash {
    /// 20 bits that the bucket indices (below a million buckets) do not use.
    #[inline]
    pub(super) fn fingerprint(self) -> u64 {
        self.0 >> 44
    }
}

/// One place for a station.
pub(super) struct Slot {
    key: AtomicU64,
    value: AtomicU64,
}

impl Slot {
    /// The value, if the slot is live.
    #[inline]
    pub(super) fn value(&self) -> Option<Value> {
        Value::from_raw(self.value.load(Ordering::Acquire))
    }

    /// Live to live: a refresh or a move. False if the value is no longer `old`.
    pub(super) fn replace(&self, old: Value, new: Value) -> bool {
        self.value.compare_exchange(old.raw(), new.raw(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Live to empty. False if the value is no longer `old`; true for one thread only.
    pub(super) fn remove(&self, old: Value) -> bool {
        let dying = self.value.compare_exchange(old.raw(), 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if dying {
            self.clear();
        }
        dying
    }

    /// Empty to reserved: true makes the caller its owner.
    fn reserve(&self, key: Key) -> bool {
        self.key.load(Ordering::Relaxed) == 0
            && self.key.compare_exchange(0, key.raw(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Reserved or dying to empty, by the owner. Release: whoever reserves the slot next sees the value gone.
    fn clear(&self) {
        self.key.store(0, Ordering::Release);
    }

    fn holds(&self, key: Key) -> bool {
        self.key.load(Ordering::Acquire) == key.raw()
    }

    /// Its place in the order that decides between rivals.
    fn position(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

/// One cache line of slots.
#[repr(align(64))]
pub(super) struct Bucket([Slot; WAYS]);

#[cfg(not(loom))]
const _: () = assert!(size_of::<Bucket>() == 64);

// SAFETY: integers only: zero is the empty slot, the alignment is 64, and nothing to drop.
#[cfg(not(loom))]
unsafe impl mem::Zeroable for Bucket {}

impl Bucket {
    /// Bit i is set if slot i holds `key`. Without branches: which slot it is cannot be predicted, that there
    /// is one can.
    #[inline]
    fn matches(&self, key: Key) -> u32 {
        let mut mask = 0;
        for (i, slot) in self.0.iter().enumerate() {
            mask |= u32::from(slot.holds(key)) << i;
        }
        mask
    }

    /// More than one slot matches only while one of them is reserved or dying.
    #[inline(always)]
    fn find(&self, key: Key, hash: Hash) -> Option<(&Slot, Value)> {
        let mut mask = self.matches(key);
        while mask != 0 {
            let slot = &self.0[mask.trailing_zeros() as usize % WAYS];
            if let Some(value) = slot.value()
                && value.fingerprint() == hash.fingerprint()
            {
                return Some((slot, value));
            }
            mask &= mask - 1;
        }
        None
    }

    fn used(&self) -> usize {
        self.0.iter().filter(|slot| slot.key.load(Ordering::Relaxed) != 0).count()
    }
}

#[cfg(not(loom))]
type Buckets = mem::Zeroed<Bucket>;
#[cfg(loom)]
type Buckets = Box<[Bucket]>;

/// How an attempt to place a new key ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Placed {
    /// It is live.
    Done,
    /// Another thread has placed, or is placing or removing, the same key: look again.
    Taken,
    /// All slots of both buckets are in use.
    NoRoom,
}

enum Rival {
    None,
    /// Reserved, in a later slot: it will see us and withdraw, or publish.
    Behind,
    /// Live, or reserved in an earlier slot.
    Ahead,
}

/// All buckets of a table.
pub(super) struct Table {
    buckets: Buckets,
    seed: [u64; 2],
}

impl Table {
    /// `buckets` is a power of two.
    pub(super) fn new(buckets: usize, seed: [u64; 2]) -> io::Result<Table> {
        debug_assert!(buckets.is_power_of_two());
        #[cfg(not(loom))]
        let buckets = mem::Zeroed::new(buckets)?;
        #[cfg(loom)]
        let buckets = (0..buckets)
            .map(|_| {
                Bucket(std::array::from_fn(|_| Slot { key: AtomicU64::new(0), value: AtomicU64::new(0) }))
            })
            .collect();
        // An even multiplier would lose bits of the key.
        Ok(Table { buckets, seed: [seed[0], seed[1] | 1] })
    }

    /// A folded multiplication (all bits of the 128-bit product of two secrets and the key), and a second one. After
    /// the first, addresses in sequence, as a farm of virtual machines has them, would still lie in sequence, and with
    /// one seed in a hundred so unevenly that some found both of their buckets full.
    #[inline]
    pub(super) fn hash(&self, key: Key) -> Hash {
        let [xor, factor] = self.seed;
        Hash(fold(fold(key.raw() ^ xor, factor), factor))
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "masked")]
    fn first(&self, hash: Hash) -> &Bucket {
        &self.buckets[hash.0 as usize & (self.buckets.len() - 1)]
    }

    /// Differs from the first in the lowest bit at least, unless the table has a single bucket.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "masked")]
    fn second(&self, hash: Hash) -> &Bucket {
        let index = hash.0 ^ (hash.0 >> 20 | 1);
        &self.buckets[index as usize & (self.buckets.len() - 1)]
    }

    #[inline]
    pub(super) fn prefetch(&self, hash: Hash) {
        mem::prefetch(self.first(hash));
    }

    /// The value of a key at this moment. The second bucket is out of line: nine in ten are in the first.
    #[inline]
    pub(super) fn get(&self, key: Key, hash: Hash) -> Option<Value> {
        match self.first(hash).find(key, hash) {
            Some((_, value)) => Some(value),
            None => self.get_second(key, hash),
        }
    }

    #[inline(never)]
    fn get_second(&self, key: Key, hash: Hash) -> Option<Value> {
        self.second(hash).find(key, hash).map(|(_, value)| value)
    }

    /// The live slot of a key and its value at this moment.
    pub(super) fn find(&self, key: Key, hash: Hash) -> Option<(&Slot, Value)> {
        self.first(hash).find(key, hash).or_else(|| self.second(hash).find(key, hash))
    }

    /// Makes `key` live with `value`, unless somebody else has it.
    pub(super) fn place(&self, key: Key, hash: Hash, value: Value) -> Placed {
        let (first, second) = (self.first(hash), self.second(hash));
        let used = first.used();
        let order =
            if used < FIRST_WHILE_BELOW || used <= second.used() { [first, second] } else { [second, first] };
        match order.into_iter().flat_map(|bucket| &bucket.0).find(|slot| slot.reserve(key)) {
            Some(slot) => self.publish(slot, key, hash, value),
            None => Placed::NoRoom,
        }
    }

    /// Reserved to live, or back to empty if the key has a rival.
    fn publish(&self, slot: &Slot, key: Key, hash: Hash, value: Value) -> Placed {
        fence(Ordering::SeqCst);
        for _ in 0..PATIENCE {
            match self.rival(slot, key, hash) {
                Rival::None => {
                    slot.value.store(value.raw(), Ordering::Release);
                    return Placed::Done;
                }
                Rival::Behind => spin_loop(),
                Rival::Ahead => break,
            }
        }
        slot.clear();
        Placed::Taken
    }

    fn rival(&self, mine: &Slot, key: Key, hash: Hash) -> Rival {
        let mut rival = Rival::None;
        for slot in self.candidates(hash) {
            if std::ptr::eq(slot, mine) || !slot.holds(key) {
                continue;
            }
            if slot.position() < mine.position() || slot.value().is_some() {
                return Rival::Ahead;
            }
            rival = Rival::Behind;
        }
        rival
    }

    /// All slots where a key may be.
    pub(super) fn candidates(&self, hash: Hash) -> impl Iterator<Item = &Slot> {
        [self.first(hash), self.second(hash)].into_iter().flat_map(|bucket| &bucket.0)
    }

    /// The slots of `count` buckets in a row from bucket `start` on, both taken modulo the table.
    pub(super) fn window(&self, start: usize, count: usize) -> impl Iterator<Item = &Slot> {
        let mask = self.buckets.len() - 1;
        (0..count.min(mask + 1)).flat_map(move |i| &self.buckets[start.wrapping_add(i) & mask].0)
    }

    /// All slots.
    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.buckets.iter().flat_map(|bucket| &bucket.0)
    }

    /// Key and value of a slot if it is live, never of two entries. `None` too when the slot keeps changing
    /// hands.
    pub(super) fn read(&self, slot: &Slot) -> Option<(Key, Value)> {
        for _ in 0..PATIENCE {
            let key = Key::from_raw(slot.key.load(Ordering::Acquire));
            if key.raw() == 0 {
                return None;
            }
            let value = slot.value()?;
            if value.fingerprint() == self.hash(key).fingerprint() {
                return Some((key, value));
            }
        }
        None
    }
}

/// The halves of the 128-bit product, one over the other.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the two halves are what is wanted")]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}
