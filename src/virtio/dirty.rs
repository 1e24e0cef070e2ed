//! Which pages of a guest's memory we wrote, for the live migration of the guest.
//!
//! The front end shares a bitmap with us, one bit for a page of 4096 bytes of guest physical address
//! (QEMU's `docs/interop/vhost-user.rst`, "Migration"). While the guest runs on, the front end reads and clears it, and sends the pages
//! again that are marked. So a page is written first and marked afterwards, by an atomic OR, which is always done: a look at whether the bit is set
//! already could be older than the write.
//!
//! The bitmap is mapped as a guest's memory is, with the same checks. A log that has no bit for a page, or whose file shrinks, is a
//! [`Fault::Log`]: a guest would lose that page at its new place.

use std::fs::File;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::volatile_memory::{VolatileMemory, VolatileSlice};

use super::Fault;
use super::memory::{Area, GuestMemory, MemoryError, RegionSpec, Share};

/// Bytes that a bit stands for.
const PAGE: u64 = 4096;

/// The bitmap of a guest.
#[derive(Debug)]
pub struct DirtyLog {
    memory: GuestMemory,
    bits: Area,
}

impl DirtyLog {
    /// A bitmap of `len` bytes that begins at `offset` of a file.
    ///
    /// # Errors
    /// As of [`GuestMemory::with`].
    pub fn new(share: &Share, file: File, offset: u64, len: u64) -> Result<DirtyLog, MemoryError> {
        let spec = RegionSpec { guest_addr: 0, user_addr: 0, len, file_offset: offset };
        let memory = GuestMemory::none(share).with(spec, file)?;
        let bits = memory.guest(0, usize::MAX).ok_or(MemoryError::Range(len, 0))?;
        Ok(DirtyLog { memory, bits })
    }

    /// Marks the pages of `len` bytes at a guest physical address, which are written.
    ///
    /// # Errors
    /// There is no bit for one of them, or the file has shrunk.
    #[inline]
    pub fn mark(&self, addr: u64, len: usize) -> Result<(), Fault> {
        let Some(pages) = pages(addr, len).ok_or(Fault::Log)? else { return Ok(()) };
        let bits = self.memory.slice(self.bits).ok_or(Fault::Log)?;
        // Before the first is marked.
        byte(&bits, *pages.end())?;
        for page in pages {
            byte(&bits, page)?.fetch_or(1 << (page % 8), Ordering::SeqCst);
        }
        if self.memory.is_broken() { Err(Fault::Log) } else { Ok(()) }
    }
}

/// Pages of `len` bytes at an address; none of no bytes. `None` is an address that no guest has.
fn pages(addr: u64, len: usize) -> Option<Option<RangeInclusive<u64>>> {
    let Some(rest) = u64::try_from(len).ok()?.checked_sub(1) else { return Some(None) };
    Some(Some(addr / PAGE..=addr.checked_add(rest)? / PAGE))
}

/// The byte of the bitmap that has a page's bit.
#[inline]
fn byte<'a>(bits: &'a VolatileSlice<'_>, page: u64) -> Result<&'a AtomicU8, Fault> {
    let index = usize::try_from(page / 8).map_err(|_| Fault::Log)?;
    bits.get_atomic_ref(index).map_err(|_| Fault::Log)
}

/// What a ring marks, and in which bitmap.
#[derive(Clone, Debug)]
pub struct RingLog {
    /// The bitmap.
    pub log: Arc<DirtyLog>,
    /// Whether what is written into buffers is marked (`VHOST_F_LOG_ALL`).
    pub buffers: bool,
    /// Where the used ring is for the log, if what is written there is marked (`VHOST_VRING_F_LOG`).
    pub used: Option<u64>,
}

impl RingLog {
    /// Marks `len` bytes of the used ring.
    ///
    /// # Errors
    /// As of [`DirtyLog::mark`].
    #[inline]
    pub fn used(&self, offset: usize, len: usize) -> Result<(), Fault> {
        let Some(start) = self.used else { return Ok(()) };
        let addr = u64::try_from(offset).ok().and_then(|offset| start.checked_add(offset));
        self.log.mark(addr.ok_or(Fault::Log)?, len)
    }

    /// Marks the first `written` bytes of these pieces of a guest's memory.
    ///
    /// # Errors
    /// As of [`DirtyLog::mark`].
    pub fn buffers(&self, memory: &GuestMemory, pieces: &[Area], written: usize) -> Result<(), Fault> {
        let mut rest = if self.buffers { written } else { 0 };
        for piece in pieces {
            if rest == 0 {
                break;
            }
            let len = piece.len.min(rest);
            self.log.mark(memory.addr(*piece).ok_or(Fault::Memory)?, len)?;
            rest -= len;
        }
        Ok(())
    }
}
