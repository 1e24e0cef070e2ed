//! Which chains were taken and not given back, kept where a crash of ours does not reach (QEMU's
//! `docs/interop/vhost-user.rst`, "Inflight I/O tracking", split virtqueues).
//!
//! The front end keeps a file for us that has a region a ring: a flag, a counter and a link for each chain, by its head. The next
//! vswitchd gets it back, and knows from it and from the used ring what was under way. Each value is written after those it relies on, so whatever the last one was, the
//! region tells the truth:
//!
//! 1. A chain is taken: its counter, then its flag.
//! 2. It is given back: linked to the chain given back before it, and then the head of that list. The driver does not see it yet.
//! 3. The used index is shown: from here on the driver has them.
//! 4. The flags of all that was shown, then the index that was shown.
//!
//! An index in the region that is behind the ring's tells of a crash after 3: the flags of the chains between are taken down first. What has its flag
//! after that is taken again before anything else, in the order of its counters.
//!
//! The region's bytes are the front end's, so they may be anything. They choose among the heads of one ring and nothing else: heads are
//! checked, walks are bounded, and what makes no sense is a [`Fault::Inflight`]. A process dies between two instructions, with all before done, so the order of
//! the program is enough; [`Ordering::Release`] keeps the compiler to it.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::AtomicInteger;
use vm_memory::volatile_memory::{VolatileMemory, VolatileSlice};

use super::Fault;
use super::memory::{Area, GuestMemory, MemoryError, RegionSpec, Share};

/// Regions begin at multiples of this: a cache line, so that rings of two workers have none in common.
const ALIGN: usize = 64;

/// Of a region: features (0, 64 bits), version, how many chains there are room for, head of the list, used index.
const HEADER_LEN: usize = 16;
const VERSION: usize = 8;
const HEADS: usize = 10;
const LAST: usize = 12;
const USED: usize = 14;
/// Of a chain: whether it is in flight, padding, the link, the counter.
const CHAIN_LEN: usize = 16;
const LINK: usize = 6;
const COUNTER: usize = 8;

const NEW: u16 = 0;
const VERSION_1: u16 = 1;

/// The file of a device.
#[derive(Debug)]
pub struct InflightFile {
    memory: GuestMemory,
    rings: u16,
    size: u16,
}

impl InflightFile {
    /// Bytes for so many rings of so many descriptors.
    #[must_use]
    pub fn len(rings: u16, size: u16) -> u64 {
        u64::from(rings) * region_len(size) as u64
    }

    /// A new one, whose length cannot be changed.
    ///
    /// # Errors
    /// The kernel has none to give.
    pub fn create(rings: u16, size: u16) -> io::Result<File> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"vswitch-inflight", flags)?);
        file.set_len(InflightFile::len(rings, size))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(file)
    }

    /// One that a front end has kept: `len` bytes from `offset` on, for so many rings of at most `size` descriptors. Not more of it is mapped than
    /// they need.
    ///
    /// # Errors
    /// It is too short for them, or cannot be mapped.
    pub fn new(
        share: &Share,
        file: File,
        offset: u64,
        len: u64,
        rings: u16,
        size: u16,
    ) -> Result<InflightFile, MemoryError> {
        let end = InflightFile::len(rings, size);
        if len < end {
            return Err(MemoryError::Short { file: len, end });
        }
        let spec = RegionSpec { guest_addr: 0, user_addr: 0, len: end, file_offset: offset };
        let memory = GuestMemory::none(share).with(spec, file)?;
        Ok(InflightFile { memory, rings, size })
    }

    /// The record of a ring; none for one that the file has no room for.
    #[must_use]
    pub fn ring(self: &Arc<Self>, index: usize) -> Option<Inflight> {
        let index = u16::try_from(index).ok().filter(|&index| index < self.rings)?;
        let len = region_len(self.size);
        let area = self.memory.guest(u64::from(index) * len as u64, len)?;
        Some(Inflight { file: Arc::clone(self), area, counter: 0, last: 0 })
    }
}

fn region_len(size: u16) -> usize {
    (HEADER_LEN + CHAIN_LEN * usize::from(size)).next_multiple_of(ALIGN)
}

/// The record of one ring.
#[derive(Debug)]
pub struct Inflight {
    file: Arc<InflightFile>,
    area: Area,
    /// For the next chain that is taken.
    counter: u64,
    /// Head of the list: what was given back last.
    last: u16,
}

impl Inflight {
    /// Puts in order what is there for a ring of `size` descriptors with this used index. Returns the heads that are to be taken again, the oldest first; `None` if
    /// nothing was recorded of this ring.
    ///
    /// # Errors
    /// The region is another one's, or makes no sense.
    pub fn recover(&mut self, size: u16, used: u16) -> Result<Option<Vec<u16>>, Fault> {
        let region = self.region()?;
        if size > self.file.size {
            return Err(Fault::Inflight);
        }
        match region.load::<AtomicU16>(VERSION)? {
            NEW => return self.begin(used).map(|()| None),
            VERSION_1 if region.load::<AtomicU16>(HEADS)? == self.file.size => {}
            _ => return Err(Fault::Inflight),
        }
        let shown = used.wrapping_sub(region.load::<AtomicU16>(USED)?);
        if shown > size {
            // Of a ring that is no more: the guest was started again meanwhile.
            return self.begin(used).map(|()| None);
        }
        let last = region.load::<AtomicU16>(LAST)?;
        region.take_down(last, shown)?;
        region.store::<AtomicU16>(USED, used)?;
        let mut heads = Vec::new();
        for head in 0..size {
            let chain = region.chain(head)?;
            if region.load::<AtomicU8>(chain)? != 0 {
                heads.push((region.load::<AtomicU64>(chain + COUNTER)?, head));
            }
        }
        heads.sort_unstable();
        let counter = heads.last().map_or(0, |&(counter, _)| counter.wrapping_add(1));
        (self.counter, self.last) = (counter, last);
        Ok(Some(heads.into_iter().map(|(_, head)| head).collect()))
    }

    /// Nothing is in flight.
    fn begin(&mut self, used: u16) -> Result<(), Fault> {
        let region = self.region()?;
        region.store::<AtomicU16>(VERSION, NEW)?;
        for head in 0..self.file.size {
            region.store::<AtomicU8>(region.chain(head)?, 0)?;
        }
        region.store::<AtomicU16>(HEADS, self.file.size)?;
        region.store::<AtomicU16>(LAST, 0)?;
        region.store::<AtomicU16>(USED, used)?;
        region.store::<AtomicU16>(VERSION, VERSION_1)?;
        (self.counter, self.last) = (0, 0);
        Ok(())
    }

    /// Forgets the ring: it has stopped in order, and nothing of it is in flight.
    pub fn forget(&mut self) {
        // Whoever cannot write there could not read it either.
        let _ = self.region().and_then(|region| region.store::<AtomicU16>(VERSION, NEW));
    }

    /// A chain is taken. One that is taken again keeps its place in the order.
    ///
    /// # Errors
    /// It is none of the ring's.
    #[inline]
    pub fn take(&mut self, head: u16) -> Result<(), Fault> {
        let region = self.region()?;
        let chain = region.chain(head)?;
        if region.load::<AtomicU8>(chain)? == 0 {
            region.store::<AtomicU64>(chain + COUNTER, self.counter)?;
            region.store::<AtomicU8>(chain, 1)?;
            self.counter = self.counter.wrapping_add(1);
        }
        Ok(())
    }

    /// A chain is given back, but not shown yet.
    ///
    /// # Errors
    /// It is none of the ring's.
    #[inline]
    pub fn give_back(&mut self, head: u16) -> Result<(), Fault> {
        let region = self.region()?;
        region.store::<AtomicU16>(region.chain(head)? + LINK, self.last)?;
        region.store::<AtomicU16>(LAST, head)?;
        self.last = head;
        Ok(())
    }

    /// The driver sees the used index `now`, and before it saw `before`.
    ///
    /// # Errors
    /// Somebody else wrote nonsense into the region, or its file has shrunk.
    #[inline]
    pub fn shown(&mut self, before: u16, now: u16) -> Result<(), Fault> {
        let region = self.region()?;
        region.take_down(self.last, now.wrapping_sub(before))?;
        region.store::<AtomicU16>(USED, now)?;
        if self.file.memory.is_broken() { Err(Fault::Inflight) } else { Ok(()) }
    }

    #[inline]
    fn region(&self) -> Result<Region<'_>, Fault> {
        let bytes = self.file.memory.slice(self.area).ok_or(Fault::Inflight)?;
        Ok(Region { bytes, size: self.file.size })
    }
}

/// The bytes of a ring's record.
struct Region<'a> {
    bytes: VolatileSlice<'a>,
    size: u16,
}

impl Region<'_> {
    /// Where the record of a chain is.
    #[inline]
    fn chain(&self, head: u16) -> Result<usize, Fault> {
        if head < self.size { Ok(HEADER_LEN + CHAIN_LEN * usize::from(head)) } else { Err(Fault::Inflight) }
    }

    #[inline]
    fn load<T: AtomicInteger>(&self, offset: usize) -> Result<T::V, Fault> {
        let place = self.bytes.get_atomic_ref::<T>(offset).map_err(|_| Fault::Inflight)?;
        Ok(place.load(Ordering::Acquire))
    }

    #[inline]
    fn store<T: AtomicInteger>(&self, offset: usize, value: T::V) -> Result<(), Fault> {
        #[cfg(test)]
        crash::step();
        let place = self.bytes.get_atomic_ref::<T>(offset).map_err(|_| Fault::Inflight)?;
        place.store(value, Ordering::Release);
        Ok(())
    }

    /// Takes down the flags of the `count` chains from the head of the list on.
    #[inline]
    fn take_down(&self, mut head: u16, count: u16) -> Result<(), Fault> {
        // A driver that breaks rules may have had more shown than its ring has.
        for _ in 0..count.min(self.size) {
            let chain = self.chain(head)?;
            self.store::<AtomicU8>(chain, 0)?;
            head = self.load::<AtomicU16>(chain + LINK)?;
        }
        Ok(())
    }
}

/// Heads that are taken again before those in the available ring.
#[derive(Debug, Default)]
pub struct Again {
    heads: Vec<u16>,
    next: usize,
}

impl Again {
    /// These, in this order.
    #[must_use]
    pub fn new(heads: Vec<u16>) -> Again {
        Again { heads, next: 0 }
    }

    /// How many are left.
    #[inline]
    #[must_use]
    pub fn len(&self) -> u16 {
        // There are at most as many as descriptors.
        u16::try_from(self.heads.len() - self.next).unwrap_or(u16::MAX)
    }

    /// Whether none is left: nearly always.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.next == self.heads.len()
    }

    /// The head so many places behind the next one.
    #[inline]
    #[must_use]
    pub fn get(&self, ahead: usize) -> Option<u16> {
        self.heads.get(self.next + ahead).copied()
    }

    /// Goes on by so many chains; returns how many of them are not of these.
    #[inline]
    pub fn advance(&mut self, chains: u16) -> u16 {
        let taken = chains.min(self.len());
        self.next += usize::from(taken);
        chains - taken
    }
}

/// Tests end us between any two values that are written.
#[cfg(test)]
pub(super) mod crash {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    thread_local!(static STEPS: Cell<Option<u32>> = const { Cell::new(None) });

    struct Crash;

    /// Does `work`, or a part of it: it ends before the value number `steps` is written. Whether it did all.
    pub(in super::super) fn after(steps: u32, work: impl FnOnce()) -> bool {
        STEPS.set(Some(steps));
        let done = catch_unwind(AssertUnwindSafe(work));
        STEPS.set(None);
        match done {
            Ok(()) => true,
            Err(payload) if payload.is::<Crash>() => false,
            Err(payload) => resume_unwind(payload),
        }
    }

    pub(in super::super) fn step() {
        if STEPS.get() == Some(0) {
            // Not a panic that is told.
            resume_unwind(Box::new(Crash));
        }
        STEPS.set(STEPS.get().map(|steps| steps - 1));
    }
}
