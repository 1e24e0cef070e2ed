//! Shared memory whose file shrinks under us.
//!
//! Touching a page of a mapping behind the end of its file is a SIGBUS, and a guest's memory file belongs to somebody else. Checking
//! its length before each access would be a system call and still a race; insisting on `F_SEAL_SHRINK` would refuse huge page
//! files. So watched mappings survive: the handler puts zeroed pages of our own in the place of the whole mapping, marks it broken, and the access goes
//! on. Whoever uses the mapping looks at [`Watch::is_broken`] and stops.
//!
//! A SIGBUS anywhere else is handed to whoever handled it before, so a real fault still ends the process.
//!
//! This is the one place with state of the whole process, because a signal handler has nothing else.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Mappings that can be watched at a time.
const WATCHES_MAX: usize = 16_384;

static SLOTS: [Slot; WATCHES_MAX] = [const { Slot::FREE }; WATCHES_MAX];
static BEFORE: OnceLock<Result<libc::sigaction, i32>> = OnceLock::new();

#[derive(Debug)]
struct Slot {
    taken: AtomicBool,
    /// Odd while the two below change: a handler must not take the length of one mapping for another's.
    version: AtomicUsize,
    start: AtomicUsize,
    /// 0: not watched (yet, or any more).
    len: AtomicUsize,
    broken: AtomicBool,
}

impl Slot {
    /// For the initial value of the table alone.
    #[allow(clippy::declare_interior_mutable_const)]
    const FREE: Slot = Slot {
        taken: AtomicBool::new(false),
        version: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        broken: AtomicBool::new(false),
    };
}

impl Slot {
    fn set(&self, start: usize, len: usize) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.start.store(start, Ordering::SeqCst);
        self.len.store(len, Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// The mapping, unless it changes just now; then it is not one that somebody is touching.
    fn get(&self) -> Option<(usize, usize)> {
        let version = self.version.load(Ordering::SeqCst);
        let mapping = (self.start.load(Ordering::SeqCst), self.len.load(Ordering::SeqCst));
        (version.is_multiple_of(2) && self.version.load(Ordering::SeqCst) == version).then_some(mapping)
    }
}

/// A mapping that survives its file. Must go before the mapping does.
#[derive(Debug)]
pub(crate) struct Watch(&'static Slot);

impl Watch {
    /// Watches a mapping of whole pages that the caller owns for as long as the watch lives.
    ///
    /// # Errors
    /// Too many are watched, or the kernel refuses the handler.
    pub(crate) fn new(mapping: &vm_memory::MmapRegion) -> io::Result<Watch> {
        match BEFORE.get_or_init(install) {
            Ok(_) => {}
            Err(errno) => return Err(io::Error::from_raw_os_error(*errno)),
        }
        let free = |slot: &&Slot| {
            slot.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        let slot = SLOTS.iter().find(free).ok_or(io::ErrorKind::OutOfMemory)?;
        slot.broken.store(false, Ordering::Relaxed);
        slot.set(mapping.as_ptr().addr(), mapping.size());
        Ok(Watch(slot))
    }

    /// Whether its file has shrunk: what is read there is not what was written.
    #[inline]
    pub(crate) fn is_broken(&self) -> bool {
        self.0.broken.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.set(0, 0);
        self.0.taken.store(false, Ordering::Release);
    }
}

/// Returns what handled the signal before, or why the kernel refused.
fn install() -> Result<libc::sigaction, i32> {
    // SAFETY: sigaction is plain data for which zeros are valid.
    let (mut new, mut before) = unsafe { (std::mem::zeroed::<libc::sigaction>(), std::mem::zeroed()) };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    new.sa_sigaction = handler as *const () as usize;
    new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: both pointers are to live values; the handler calls only what may be called in one.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const new, &raw mut before) } {
        0 => Ok(before),
        _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)),
    }
}

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo_t to an SA_SIGINFO handler, and SIGBUS fills the address.
    let (address, fault) = unsafe { ((*info).si_addr().addr(), (*info).si_code > 0) };
    for slot in &SLOTS {
        let Some((start, len)) = slot.get().filter(|_| fault) else { continue };
        if len == 0 || !(start..start + len).contains(&address) {
            continue;
        }
        // SAFETY: errno is this thread's own; mmap is a bare system call, and it replaces a mapping whose owner has it watched because
        // it only ever looks at it as memory that others change.
        unsafe {
            let errno = *libc::__errno_location();
            let pages = libc::mmap(
                std::ptr::without_provenance_mut(start),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
                -1,
                0,
            );
            *libc::__errno_location() = errno;
            if pages != libc::MAP_FAILED {
                slot.broken.store(true, Ordering::Relaxed);
                return;
            }
        }
    }
    // Not ours: the same fault comes again, to whom it came before.
    // SAFETY: the pointer is to a sigaction that the kernel wrote, or to zeros, which are the default action.
    unsafe {
        let default = std::mem::zeroed();
        let before = BEFORE.get().and_then(|before| before.as_ref().ok()).unwrap_or(&default);
        libc::sigaction(libc::SIGBUS, before, std::ptr::null_mut());
        if !fault {
            // Somebody sent the signal: nothing comes again by itself.
            libc::raise(libc::SIGBUS);
        }
    }
}
