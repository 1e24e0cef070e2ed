//! How many bytes of guests' memory a switch maps: in each port, and in all of them.
//!
//! A mapping costs address space at once, of which a process has 128 TiB. It costs page tables for what is touched, at most 1/512 of it, and
//! pages of the file itself where the switch is the first to touch one: those are charged to the switch. A front end chooses how long its files
//! are and where its buffers lie in them, and a sparse file costs it nothing. So what is mapped is bounded, by bytes and before it is mapped.
//!
//! What is mapped is not memory that is used, and guests may have more than there is (overcommitted, or to be plugged in later). So
//! unless told otherwise the bound is a multiple of the machine's memory. That keeps page tables small; the pages that the switch is
//! the first to touch are bounded by a port's own bound alone.
//!
//! A port that was given no bound of its own takes at most a quarter of the whole, and nothing that would leave the others less than it
//! has then. So no number of such ports keeps a small guest out, however many they are.
//!
//! Rejected: limits of the process (`RLIMIT_AS`), which refuse whoever comes last, be it the switch itself.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::memory::MemoryError;
use crate::sys;
use crate::sys::sigbus::{self, Watch};

/// What all ports may map, of the machine's memory and swap, unless told otherwise.
const OF_MACHINE: u64 = 8;
/// But at least this, on small machines.
const AUTO_MIN: u64 = 8 << 30;
/// Half of the address space of a process (x86-64 with four levels of page tables).
pub const POOL_MAX: u64 = 64 << 40;
/// What a port without a bound of its own has at most of all.
const PART: u64 = 4;

/// Bytes of guests' memory that the ports of a switch map.
#[derive(Debug)]
pub struct Pool {
    max: u64,
    mapped: AtomicU64,
}

impl Pool {
    /// At most so many bytes; `None`: eight times the machine's memory and swap. Never more than [`POOL_MAX`].
    #[must_use]
    pub fn new(max: Option<u64>) -> Pool {
        let auto = || sys::mem::machine_bytes().saturating_mul(OF_MACHINE).max(AUTO_MIN);
        Pool { max: max.unwrap_or_else(auto).min(POOL_MAX), mapped: AtomicU64::new(0) }
    }

    /// Bytes that are mapped now.
    #[must_use]
    pub fn mapped(&self) -> u64 {
        self.mapped.load(Ordering::Relaxed)
    }

    /// Counts `bytes` more, unless that is more than all may have and `left` beside.
    fn add(&self, bytes: u64, left: u64) -> bool {
        let add = |mapped: u64| {
            let now = mapped.checked_add(bytes)?;
            (now.checked_add(left)? <= self.max).then_some(now)
        };
        self.mapped.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }
}

/// What one front end has: its memory, its log and its records together. Clones are the same share.
#[derive(Clone, Debug)]
pub struct Share(Arc<Owned>);

#[derive(Debug)]
struct Owned {
    pool: Arc<Pool>,
    /// The port's own bound, if it was given one.
    max: Option<u64>,
    mapped: AtomicU64,
    /// Its number of mappings, which are bounded, too.
    watches: sigbus::Share,
}

impl Share {
    /// None yet, of a port that may have `max` bytes; `None`: its part of the pool.
    #[must_use]
    pub fn new(pool: &Arc<Pool>, max: Option<u64>) -> Share {
        let (pool, mapped, watches) = (Arc::clone(pool), AtomicU64::new(0), sigbus::Share::default());
        Share(Arc::new(Owned { pool, max, mapped, watches }))
    }

    /// Bytes that are to be mapped. They are given back when the claim is dropped.
    pub(super) fn claim(&self, bytes: u64) -> Result<Claim, MemoryError> {
        let Owned { pool, max, mapped, .. } = &*self.0;
        let before = mapped.load(Ordering::Relaxed);
        let now = before.saturating_add(bytes);
        let most = max.unwrap_or(pool.max / PART);
        if now > most {
            return Err(MemoryError::TooMuch { more: bytes, has: before, most });
        }
        if !pool.add(bytes, if max.is_some() { 0 } else { now }) {
            return Err(MemoryError::AllTaken { more: bytes, taken: pool.mapped(), most: pool.max });
        }
        mapped.fetch_add(bytes, Ordering::Relaxed);
        Ok(Claim { share: self.clone(), bytes })
    }

    pub(super) fn watch(&self, pages: &vm_memory::MmapRegion) -> std::io::Result<Watch> {
        Watch::new(pages, &self.0.watches)
    }
}

impl Default for Share {
    /// Of a pool that no other port has.
    fn default() -> Share {
        Share::new(&Arc::new(Pool::new(None)), None)
    }
}

/// Bytes of a share, as long as they are mapped.
#[derive(Debug)]
pub(super) struct Claim {
    share: Share,
    bytes: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Owned { pool, mapped, .. } = &*self.share.0;
        mapped.fetch_sub(self.bytes, Ordering::Relaxed);
        pool.mapped.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A number of bytes as people read it: `1.5 GiB`.
pub(crate) struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let power = self.0.max(1).ilog2() / 10;
        let (shift, unit) = (10 * power, UNITS[power as usize]);
        // In 1/1024 of the unit.
        let rest = (self.0 & ((1 << shift) - 1)) >> shift.saturating_sub(10);
        match rest * 10 / 1024 {
            tenths if power > 0 && tenths > 0 => write!(f, "{}.{tenths} {unit}", self.0 >> shift),
            _ => write!(f, "{} {unit}", self.0 >> shift),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn pool(max: u64) -> Arc<Pool> {
        Arc::new(Pool::new(Some(max)))
    }

    #[test]
    fn a_port_has_its_part_and_gives_it_back() {
        let pool = pool(64 * MIB);
        let share = Share::new(&pool, None);
        let first = share.claim(10 * MIB).expect("its part");
        assert!(matches!(
            share.claim(7 * MIB),
            Err(MemoryError::TooMuch { more, has, most }) if (more, has, most) == (7 * MIB, 10 * MIB, 16 * MIB)
        ));
        assert_eq!(pool.mapped(), 10 * MIB, "what was refused is not kept");
        let second = share.claim(6 * MIB).expect("exactly its part");
        drop(first);
        let _third = share.claim(10 * MIB).expect("given back");
        drop(second);
        assert_eq!(pool.mapped(), 10 * MIB);
        assert!(share.claim(u64::MAX).is_err());
    }

    #[test]
    fn ports_that_take_all_they_can_leave_others_theirs() {
        let pool = pool(64 * MIB);
        let greedy = |_| {
            let share = Share::new(&pool, None);
            std::iter::from_fn(move || share.claim(MIB / 16).ok()).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = (0..6).map(greedy).collect();
        assert!(pool.mapped() < 64 * MIB);
        let small = Share::new(&pool, None);
        small.claim(MIB).expect("a small guest boots all the same");
        // Who was given a bound is not told to leave anything.
        let named = Share::new(&pool, Some(20 * MIB));
        drop(all.pop());
        let left = 64 * MIB - pool.mapped();
        let claim = named.claim(left).expect("all that is left");
        assert!(matches!(small.claim(1), Err(MemoryError::AllTaken { .. })));
        drop((claim, all));
        assert_eq!(pool.mapped(), 0);
    }

    #[test]
    fn a_bound_is_never_more_than_there_are_addresses() {
        assert_eq!(Pool::new(Some(u64::MAX)).max, POOL_MAX);
        let auto = Pool::new(None).max;
        assert!(auto >= AUTO_MIN && auto >= sys::mem::machine_bytes().min(POOL_MAX));
    }

    #[test]
    fn bytes_are_told_in_units() {
        let told = |bytes: u64| Bytes(bytes).to_string();
        assert_eq!(told(0), "0 bytes");
        assert_eq!(told(1023), "1023 bytes");
        assert_eq!(told(1024), "1 KiB");
        assert_eq!(told(3 * MIB / 2), "1.5 MiB");
        assert_eq!(told(1 << 40), "1 TiB");
        assert_eq!(told((1 << 40) - 1), "1023.9 GiB");
        assert_eq!(told(u64::MAX), "15.9 EiB");
    }
}
