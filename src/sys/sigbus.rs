//! Shared memory whose file shrinks under us.
//!
//! Touching a page of a mapping behind the end of its file is a SIGBUS, and a guest's memory file belongs to somebody else. Checking
//! its length before each access would be a system call and still a race; insisting on `F_SEAL_SHRINK` would refuse huge page
//! files. So watched mappings survive: the handler puts zeroed pages of our own in the place of the whole mapping, marks it broken, and the access goes
//! on. Whoever uses the mapping looks at [`Watch::is_broken`] and stops.
//!
//! The kernel may refuse those pages, where it promises no more memory than it has (`vm.overcommit_memory=2`) or we have none left. So each watch has one page
//! of a file of ours, allocated beforehand. Shared mappings of files are not counted as promises: the whole mapping becomes one of that file behind its end, which can
//! have any length and any size of pages before it, and then each page that is touched becomes the one that is there.
//!
//! The kernel lets a process map 65,530 pieces of memory (`vm.max_map_count`), and one guest may have hundreds of regions. So there is a number of watches for each port that
//! nobody else can have, and what is beyond comes out of a common store ([`Share`]), of which none gets more than is left for others.
//!
//! A SIGBUS anywhere else is handed to whoever handled it before, so a real fault still ends the process.
//!
//! This is the one place with state of the whole process, because a signal handler has nothing else.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::topology::PORTS_MAX;

/// Length of the page that a watch has.
const PAGE: usize = 4096;
/// Mappings that each port can have watched: eight regions, as a front end has that knows of no more, a dirty log, and records of what is in flight.
const EACH: usize = 10;
/// And so many that are common to all.
const COMMON_MAX: usize = 8192;
/// Mappings that can be watched at a time.
const WATCHES_MAX: usize = PORTS_MAX * EACH + COMMON_MAX;

/// How many mappings have ever broken.
static BROKEN: AtomicUsize = AtomicUsize::new(0);
/// How many of the common watches are taken.
static COMMON: AtomicUsize = AtomicUsize::new(0);
static SLOTS: [Slot; WATCHES_MAX] = [const { Slot::FREE }; WATCHES_MAX];
static INSTALLED: OnceLock<Installed> = OnceLock::new();

struct Installed {
    /// What handled the signal before.
    before: libc::sigaction,
    /// A page a slot, those that have been taken.
    pages: File,
}

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
    fn set(&self, watched: Watched) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.start.store(watched.start, Ordering::SeqCst);
        self.len.store(watched.len, Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// What it watches, unless that changes just now; then it is not one that somebody is touching.
    fn get(&self) -> Option<Watched> {
        let version = self.version.load(Ordering::SeqCst);
        let watched =
            Watched { start: self.start.load(Ordering::SeqCst), len: self.len.load(Ordering::SeqCst) };
        (version.is_multiple_of(2) && self.version.load(Ordering::SeqCst) == version).then_some(watched)
    }
}

/// A mapping.
#[derive(Clone, Copy)]
struct Watched {
    start: usize,
    len: usize,
}

impl Watched {
    const NOTHING: Watched = Watched { start: 0, len: 0 };

    fn covers(&self, address: usize) -> bool {
        address.checked_sub(self.start).is_some_and(|distance| distance < self.len)
    }

    /// Makes an address of it one that can be touched, by `page` of this file if it has to be. Whether it worked.
    ///
    /// # Safety
    /// The mapping is one whose owner has it watched.
    unsafe fn mend(self, address: usize, broken: bool, pages: &File, page: usize) -> bool {
        let (Watched { start, len }, pages) = (self, pages.as_raw_fd());
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: as of `put`, of which the caller knows.
        unsafe {
            if !broken && put(start, len, anonymous, -1, 0) {
                return true;
            }
            // A broken one is a mapping of that file behind its end.
            (broken || put(start, len, libc::MAP_SHARED, pages, PAGE * WATCHES_MAX))
                && put(address & !(PAGE - 1), PAGE, libc::MAP_SHARED, pages, PAGE * page)
        }
    }
}

/// Maps something in the place of what is there. A bare system call, for a signal handler.
///
/// # Safety
/// What is there is only ever looked at as memory that others change.
unsafe fn put(start: usize, len: usize, flags: libc::c_int, fd: libc::c_int, offset: usize) -> bool {
    let (place, access) = (std::ptr::without_provenance_mut(start), libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: the caller knows of what is replaced.
    let pages = unsafe {
        libc::mmap(place, len, access, flags | libc::MAP_FIXED, fd, offset.cast_signed() as libc::off_t)
    };
    pages != libc::MAP_FAILED
}

/// What one port has of the watches: their number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Share(Arc<AtomicUsize>);

impl Share {
    /// Takes one more, unless it is a common one and fewer would be left than the port has of those.
    fn take(&self) -> io::Result<Place> {
        let own = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        let beyond = own.saturating_sub(EACH);
        let common = if beyond > 0 { COMMON.fetch_add(1, Ordering::Relaxed) + 1 } else { 0 };
        // Given back with it.
        let place = Place(self.clone());
        if common + beyond <= COMMON_MAX {
            return Ok(place);
        }
        let why = format!(
            "{own} mappings of one guest are too many beside those of others; give the guest fewer memory slots, or end others"
        );
        Err(io::Error::new(io::ErrorKind::OutOfMemory, why))
    }
}

/// One of a share's.
#[derive(Debug)]
struct Place(Share);

impl Drop for Place {
    fn drop(&mut self) {
        if self.0.0.fetch_sub(1, Ordering::Relaxed) > EACH {
            COMMON.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A mapping that survives its file. Must go before the mapping does.
#[derive(Debug)]
pub(crate) struct Watch {
    slot: &'static Slot,
    _place: Place,
}

impl Watch {
    /// Watches a mapping of whole pages that the caller owns for as long as the watch lives.
    ///
    /// # Errors
    /// The share has too many, or the kernel refuses the handler.
    pub(crate) fn new(mapping: &vm_memory::MmapRegion, share: &Share) -> io::Result<Watch> {
        let place = share.take()?;
        let Installed { pages, .. } = installed()?;
        let free = |slot: &Slot| {
            slot.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        let page = SLOTS.iter().position(free).ok_or(io::ErrorKind::OutOfMemory)?;
        let watch = Watch { slot: &SLOTS[page], _place: place };
        // Written, not only made that long: it has to be there when there is no other.
        pages.write_all_at(&[0; PAGE], (PAGE * page) as u64)?;
        watch.slot.broken.store(false, Ordering::Relaxed);
        watch.slot.set(Watched { start: mapping.as_ptr().addr(), len: mapping.size() });
        Ok(watch)
    }

    /// For memory that belongs to no file, in an interpreter that has no signals.
    #[cfg(miri)]
    pub(crate) fn of_nothing() -> Watch {
        Watch { slot: &SLOTS[0], _place: Share::default().take().expect("one of few") }
    }

    /// Whether its file has shrunk: what is read there is not what was written.
    #[inline]
    pub(crate) fn is_broken(&self) -> bool {
        self.slot.broken.load(Ordering::Relaxed)
    }
}

/// How many mappings have ever broken: while this stays, what was whole is whole.
#[inline]
pub(crate) fn broken() -> usize {
    BROKEN.load(Ordering::Acquire)
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.slot.set(Watched::NOTHING);
        self.slot.taken.store(false, Ordering::Release);
    }
}

/// The handler, which is installed by the first who needs it. A kernel that had no descriptor left for it is asked again.
fn installed() -> io::Result<&'static Installed> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    match INSTALLED.get() {
        Some(installed) => Ok(installed),
        None => install().map(|new| INSTALLED.get_or_init(|| new)),
    }
}

fn install() -> io::Result<Installed> {
    let pages = memfd_create(c"vswitch", MFdFlags::MFD_CLOEXEC)?.into();
    // SAFETY: sigaction is plain data for which zeros are valid.
    let (mut new, mut before) = unsafe { (std::mem::zeroed::<libc::sigaction>(), std::mem::zeroed()) };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    new.sa_sigaction = handler as *const () as usize;
    new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: both pointers are to live values; the handler calls only what may be called in one.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const new, &raw mut before) } {
        0 => Ok(Installed { before, pages }),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo_t to an SA_SIGINFO handler, and SIGBUS fills the address.
    let (address, fault) = unsafe { ((*info).si_addr().addr(), (*info).si_code > 0) };
    let installed = INSTALLED.get();
    for (page, slot) in SLOTS.iter().enumerate() {
        let Some(installed) = installed else { break };
        let Some(watched) = slot.get().filter(|watched| fault && watched.covers(address)) else { continue };
        // SAFETY: errno is this thread's own; the mapping is watched.
        unsafe {
            let errno = *libc::__errno_location();
            let mended = watched.mend(address, slot.broken.load(Ordering::Relaxed), &installed.pages, page);
            *libc::__errno_location() = errno;
            if mended {
                slot.broken.store(true, Ordering::Relaxed);
                BROKEN.fetch_add(1, Ordering::Release);
                return;
            }
        }
    }
    // Not ours: the same fault comes again, to whom it came before.
    // SAFETY: the pointer is to a sigaction that the kernel wrote, or to zeros, which are the default action.
    unsafe {
        let default = std::mem::zeroed();
        let before = installed.map_or(&default, |installed| &installed.before);
        libc::sigaction(libc::SIGBUS, before, std::ptr::null_mut());
        if !fault {
            // Somebody sent the signal: nothing comes again by itself.
            libc::raise(libc::SIGBUS);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::Command;

    use super::*;

    const IN_CHILD: &str = "VSWITCH_SIGBUS_CHILD";
    const LEN: usize = 64 * PAGE;

    /// Whether this is a process of the test's own, which is given by its module and name; else one is made, and has to end well.
    pub(crate) fn in_child(test: &str) -> bool {
        if std::env::var_os(IN_CHILD).is_some() {
            return true;
        }
        let mut child = Command::new(std::env::current_exe().expect("this program"));
        let done = child.args([test, "--exact", "--test-threads=1"]).env(IN_CHILD, "1").output();
        let done = done.expect("a child");
        assert!(done.status.success(), "{done:?}");
        assert!(String::from_utf8_lossy(&done.stdout).contains("1 passed"), "{done:?}");
        false
    }

    /// Takes of the common watches all that can be taken.
    pub(crate) fn use_up() -> Vec<impl Sized> {
        let greedy = |_| {
            let share = Share::default();
            std::iter::from_fn(move || share.take().ok())
        };
        (0..100).flat_map(greedy).collect()
    }

    fn mapping() -> (File, vm_memory::MmapRegion) {
        let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).expect("a file"));
        file.set_len(LEN as u64).expect("that long");
        let shared = file.try_clone().expect("another handle");
        let mapping = vm_memory::MmapRegion::from_file(vm_memory::FileOffset::new(file, 0), LEN);
        (shared, mapping.expect("mapped"))
    }

    /// A limit that only private memory that can be written counts against: then the kernel refuses it, as it does where it promises no more
    /// than it has.
    fn set_private_memory(limit: libc::rlim_t) {
        let limit = libc::rlimit { rlim_cur: limit, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: a live rlimit.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) }, 0);
    }

    #[test]
    fn a_mapping_survives_without_memory_for_another() {
        // The limit is of the whole process.
        if !in_child("sys::sigbus::tests::a_mapping_survives_without_memory_for_another") {
            return;
        }
        let (shared, mapping) = mapping();
        let watch = Watch::new(&mapping, &Share::default()).expect("watched");
        let read = |offset: usize| {
            // SAFETY: inside the mapping.
            unsafe { mapping.as_ptr().add(offset).read_volatile() }
        };
        let write = |offset: usize, byte: u8| {
            // SAFETY: inside the mapping.
            unsafe { mapping.as_ptr().add(offset).write_volatile(byte) }
        };
        write(5 * PAGE, 7);
        shared.set_len(0).expect("shorter");
        set_private_memory(PAGE as libc::rlim_t);
        let first = read(5 * PAGE);
        write(5 * PAGE + 1, 8);
        let second = read(LEN - 1);
        write(0, 9);
        set_private_memory(libc::RLIM_INFINITY);
        assert_eq!((first, second), (0, 0));
        assert!(watch.is_broken());
    }

    #[test]
    fn ports_that_take_all_they_can_leave_others_theirs() {
        // So are the watches.
        if !in_child("sys::sigbus::tests::ports_that_take_all_they_can_leave_others_theirs") {
            return;
        }
        let (_file, mapping) = mapping();
        let greedy = || {
            let share = Share::default();
            std::iter::from_fn(|| Watch::new(&mapping, &share).ok()).collect::<Vec<_>>()
        };
        let first = greedy();
        assert_eq!(first.len(), EACH + COMMON_MAX / 2);
        let others: Vec<_> = (0..100).map(|_| greedy()).collect();
        assert_eq!(others[0].len(), EACH + COMMON_MAX / 4);
        assert_eq!(others[99].len(), EACH, "the common ones are used up");
        // What is given back is there again, and what was refused was not kept.
        drop(others);
        assert_eq!(greedy().len(), EACH + COMMON_MAX / 4);
        drop(first);
        assert_eq!(greedy().len(), EACH + COMMON_MAX / 2);
    }
}
