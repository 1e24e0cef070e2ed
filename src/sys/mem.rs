//! Memory the kernel hands out zeroed, and cache hints.
//!
//! Big shared tables are mapped rather than allocated: their pages cost nothing until they are touched, and
//! all-zero bytes are their valid empty state, so a table of a million stations exists at once and an idle
//! one stays small. (`alloc_zeroed` with an alignment above 16 writes the zeros itself and so touches every
//! page.)

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use vm_memory::MmapRegion;
use vm_memory::volatile_memory::VolatileSlice;

/// Bytes of a cache line.
const LINE: usize = 64;
/// Mappings from this size on ask for huge pages: below it the TLB copes, and small pages stay untouched
/// longer.
const HUGE_FROM_BYTES: usize = 16 << 20;

/// A type of which all-zero bytes are a valid value.
///
/// # Safety
///
/// All-zero bytes must be a valid value, the alignment at most 4096, and dropping a value must do nothing.
pub(crate) unsafe trait Zeroable {}

/// A fixed-length slice of zeroed memory.
pub(crate) struct Zeroed<T: Zeroable> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its memory and gives out only `&T`, like a `Box<[T]>`.
unsafe impl<T: Zeroable + Send> Send for Zeroed<T> {}
// SAFETY: as above.
unsafe impl<T: Zeroable + Sync> Sync for Zeroed<T> {}

impl<T: Zeroable> Zeroed<T> {
    /// `len` zeroed values.
    ///
    /// # Errors
    /// The kernel has no memory for them, or the address space no room.
    pub(crate) fn new(len: usize) -> io::Result<Zeroed<T>> {
        let size = len.max(1).checked_mul(size_of::<T>().max(1)).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new anonymous mapping touches no memory that exists.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        let Some(start) = NonNull::new(start).filter(|p| p.as_ptr() != libc::MAP_FAILED) else {
            return Err(io::Error::last_os_error());
        };
        if size >= HUGE_FROM_BYTES {
            // SAFETY: exactly the mapping made above. A refusal only means small pages.
            unsafe { libc::madvise(start.as_ptr(), size, libc::MADV_HUGEPAGE) };
        }
        Ok(Zeroed { start: start.cast(), len })
    }
}

impl<T: Zeroable> Deref for Zeroed<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `new` mapped `len` values, page aligned, zeroed (valid by `Zeroable`), and they live as
        // long as `self`; no `&mut` to them is ever made.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Zeroable> Drop for Zeroed<T> {
    fn drop(&mut self) {
        // The same size as in `new`; it cannot overflow, it did not then.
        let size = self.len.max(1) * size_of::<T>().max(1);
        // SAFETY: the mapping made by `new`; nobody borrows from `self` any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), size) };
    }
}

impl<T: Zeroable> fmt::Debug for Zeroed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Zeroed({} x {})", self.len, std::any::type_name::<T>())
    }
}

/// Bytes of memory and swap that the machine has, huge pages included; 0 where the kernel does not tell.
pub(crate) fn machine_bytes() -> u64 {
    if cfg!(miri) {
        // An interpreter does not know the call.
        return 0;
    }
    // SAFETY: sysinfo is plain data for which zeros are valid; the kernel writes it.
    let about = unsafe {
        let mut about = std::mem::zeroed::<libc::sysinfo>();
        if libc::sysinfo(&raw mut about) != 0 {
            return 0;
        }
        about
    };
    let unit = u64::from(about.mem_unit);
    about.totalram.saturating_add(about.totalswap).saturating_mul(unit)
}

/// A part of a file of memory that others map, too. The library's own mappings of files keep the file open.
#[derive(Debug)]
pub(crate) struct SharedPages(MmapRegion);

impl SharedPages {
    /// `size` bytes of a file from `start` on, both in whole pages of whatever size it has.
    ///
    /// # Errors
    /// The kernel does not map it.
    pub(crate) fn new(file: &File, start: u64, size: usize) -> io::Result<SharedPages> {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
        let start = libc::off_t::try_from(start).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping touches no memory that exists.
        let pages = unsafe { libc::mmap(std::ptr::null_mut(), size, access, flags, file.as_raw_fd(), start) };
        if pages == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: exactly the mapping made above, which lives as long as this value.
        let region = unsafe { MmapRegion::build_raw(pages.cast(), size, access, flags) };
        Ok(SharedPages(region.map_err(io::Error::other)?))
    }

    /// Of no file, for an interpreter that knows of none.
    #[cfg(miri)]
    pub(crate) fn of_nothing(size: usize) -> SharedPages {
        SharedPages(MmapRegion::new(size).expect("mapped"))
    }
}

impl Deref for SharedPages {
    type Target = MmapRegion;

    #[inline]
    fn deref(&self) -> &MmapRegion {
        &self.0
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        if !self.0.owned() {
            // SAFETY: the mapping made by `new`; nobody borrows from `self` any more.
            unsafe { libc::munmap(self.0.as_ptr().cast(), self.0.size()) };
        }
    }
}

/// Asks for the cache line of `place`, to be read soon: into the second-level cache, because a first level that has
/// all its two dozen misses under way forgets what else it is asked for, and a batch asks for 128 lines.
#[inline(always)]
pub(crate) fn prefetch<T>(place: &T) {
    let place = std::ptr::from_ref(place);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(place.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint; it reads and writes nothing the program can see.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) place, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = place;
}

/// A pointer into each cache line of the first `len` bytes, for hints alone.
#[inline(always)]
fn lines(place: &VolatileSlice<'_>, len: usize) -> impl Iterator<Item = *const u8> {
    let start = place.ptr_guard().as_ptr();
    (0..len.min(place.len())).step_by(LINE).map(move |line| start.wrapping_add(line))
}

/// Asks for the first `len` bytes of memory that others may write at the same time, to be read soon. Unlike [`prefetch`] into the first
/// level: what is asked for is a few lines at a time.
#[inline(always)]
pub(crate) fn prefetch_bytes(place: &VolatileSlice<'_>, len: usize) {
    for place in lines(place, len) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint; SSE is part of x86-64.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(place.cast());
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a hint; it reads and writes nothing the program can see.
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{}]", in(reg) place, options(nostack, readonly, preserves_flags));
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = place;
    }
}

/// The same for memory to be written soon, which takes it from the caches of other CPUs.
#[inline(always)]
pub(crate) fn prefetch_bytes_to_write(place: &VolatileSlice<'_>, len: usize) {
    for place in lines(place, len) {
        // An interpreter does not know it.
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: a hint; every x86-64 knows the instruction, if only as one that does nothing.
        unsafe {
            std::arch::asm!("prefetchw [{}]", in(reg) place, options(nostack, readonly, preserves_flags));
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a hint; it reads and writes nothing the program can see.
        unsafe {
            std::arch::asm!("prfm pstl1keep, [{}]", in(reg) place, options(nostack, readonly, preserves_flags));
        }
        #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
        let _ = place;
    }
}

/// The same for a frame behind a header that will most likely not be written: a line with nothing else in it is asked for to be read.
#[inline(always)]
pub(crate) fn prefetch_frame_to_write(place: &VolatileSlice<'_>, header_len: usize, len: usize) {
    let first = LINE - place.ptr_guard().as_ptr().addr() % LINE;
    match place.offset(first) {
        Ok(rest) if first <= header_len => {
            prefetch_bytes(place, 1);
            prefetch_bytes_to_write(&rest, len.saturating_sub(first));
        }
        _ => prefetch_bytes_to_write(place, len),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, reason = "tests")]

    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[repr(align(64))]
    struct Line(AtomicU64);
    // SAFETY: zero is a valid integer, 64 divides a page, no drop.
    unsafe impl Zeroable for Line {}

    #[test]
    fn what_does_not_fit_is_an_error() {
        assert!(Zeroed::<Line>::new(usize::MAX / 64).is_err());
        assert!(Zeroed::<Line>::new(usize::MAX).is_err());
    }

    #[test]
    fn zeroed_memory_is_zero_aligned_and_writable() {
        for len in [0, 1, 3, (HUGE_FROM_BYTES / 64) + 1] {
            let lines = Zeroed::<Line>::new(len).expect("memory");
            assert_eq!(lines.len(), len);
            assert_eq!(lines.as_ptr().addr() % 64, 0);
            if let Some(last) = lines.last() {
                assert_eq!(last.0.load(Ordering::Relaxed), 0);
                last.0.store(7, Ordering::Relaxed);
                prefetch(last);
                assert_eq!(last.0.load(Ordering::Relaxed), 7);
            }
        }
    }
}
