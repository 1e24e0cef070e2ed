//! Ringing an eventfd that somebody else has, too, without ever waiting.
//!
//! write(2) sleeps while an eventfd's counter is full and `O_NONBLOCK` is off. Whoever sent us the eventfd can bring about both at any time, because
//! flags belong to the open file and not to our descriptor of it: checking first is a race. The kernel itself adds to a counter without waiting
//! (a full one stays full, and is readable all the same), and Linux AIO has it do so: an operation with `IOCB_FLAG_RESFD` rings when it is complete, and
//! polling `/dev/null` is complete at once.
//!
//! It takes 640 ns where write(2) takes 265 (2-core virtual machine, Linux 6.18). An io_uring with a registered eventfd takes 440 to 500, but is a ring for each
//! eventfd, and containers and hardened hosts often refuse it. A second thread that writes would itself be held up, and a
//! signal to whoever has been writing for long ends the wait only after it held up others.
//!
//! Where there is no AIO (a seccomp filter, or `fs.aio-max-nr` is used up), what is left is to set `O_NONBLOCK` before each write: a front end then has
//! to win a race to hold us up. Each thread says whether it is so ([`Hindrance`]), for others to tell.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use vmm_sys_util::aio::{IOCB_FLAG_RESFD, IoContext, IoControlBlock, IoEvent};

/// `IOCB_CMD_POLL` (`linux/aio_abi.h`, Linux 4.18), which the library lacks.
const IOCB_CMD_POLL: u16 = 5;
/// Completions taken at a time.
const REAPED: usize = 64;

thread_local! {
    // Rings go from thread to thread, and those that ring are few. So a context is a thread's, shared with nobody.
    static CALLER: RefCell<Thread> = RefCell::default();
}

#[derive(Default)]
struct Thread {
    /// Or why it has none.
    caller: Option<Result<Caller, Errno>>,
    hindrance: Hindrance,
}

/// Why whoever is rung by a thread may hold it up, as of when it last rang or was prepared. Read by others without a lock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hindrance(Arc<AtomicI32>);

impl Hindrance {
    /// `None`: nobody can.
    pub(crate) fn get(&self) -> Option<Errno> {
        let number = self.0.load(Ordering::Relaxed);
        (number != 0).then(|| Errno::from_raw(number))
    }

    #[inline]
    fn set(&self, done: Result<(), Errno>) {
        let number = done.err().map_or(0, |errno| errno as i32);
        if self.0.load(Ordering::Relaxed) != number {
            self.0.store(number, Ordering::Relaxed);
        }
    }
}

/// A context of Linux AIO whose completions tell nobody anything: they are taken when there is no room for more.
#[derive(Debug)]
struct Caller {
    context: IoContext,
    null: File,
}

impl Caller {
    fn new() -> Result<Caller, Errno> {
        Caller::make().map_err(|error| errno(&error))
    }

    fn make() -> io::Result<Caller> {
        // The kernel rounds up to a page of completions.
        let caller = Caller { context: IoContext::new(1)?, null: File::open("/dev/null")? };
        // A kernel that has AIO may lack this operation.
        let own = nix::sys::eventfd::EventFd::new()?;
        caller.ring(own.as_fd())?;
        Ok(caller)
    }

    #[inline]
    #[allow(clippy::cast_sign_loss, reason = "descriptors and flags are not negative")]
    fn ring(&self, bell: BorrowedFd<'_>) -> io::Result<()> {
        let mut poll = IoControlBlock {
            aio_lio_opcode: IOCB_CMD_POLL,
            aio_fildes: self.null.as_raw_fd() as u32,
            aio_buf: libc::POLLIN as u64,
            aio_flags: IOCB_FLAG_RESFD,
            aio_resfd: bell.as_raw_fd() as u32,
            ..IoControlBlock::default()
        };
        match self.context.submit(&[&mut poll]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done.map(drop),
        }
        self.reap()?;
        self.context.submit(&[&mut poll]).map(drop)
    }

    #[cold]
    fn reap(&self) -> io::Result<()> {
        let mut done = [IoEvent::default(); REAPED];
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        while self.context.get_events(0, &mut done, Some(&mut now))? == REAPED {}
        Ok(())
    }
}

/// Makes this thread's context, which may take long, unless it has one. One that could not be made is tried again. Returns what tells whether it has
/// one from now on.
pub(crate) fn prepare() -> Hindrance {
    CALLER.with_borrow_mut(|Thread { caller, hindrance }| {
        if !matches!(caller, Some(Ok(_))) {
            let made = caller.insert(Caller::new());
            hindrance.set(made.as_ref().map(drop).map_err(|&errno| errno));
        }
        hindrance.clone()
    })
}

/// Rings an eventfd, whatever its flags and its counter. A thread that did not [`prepare`] does it now.
///
/// # Errors
/// It was rung in the way that may wait, and why.
#[inline]
pub(crate) fn ring(bell: &impl AsFd) -> Result<(), Errno> {
    let bell = bell.as_fd();
    let rung = CALLER.try_with(|thread| {
        let Thread { caller, hindrance } = &mut *thread.borrow_mut();
        let rung = match caller.get_or_insert_with(Caller::new) {
            Ok(caller) => caller.ring(bell).map_err(|error| errno(&error)),
            Err(errno) => Err(*errno),
        };
        hindrance.set(rung);
        rung
    });
    // A thread that ends has none any more.
    rung.unwrap_or(Err(Errno::ESRCH)).inspect_err(|_| write(bell))
}

#[cold]
fn write(bell: BorrowedFd<'_>) {
    let _ = super::set_nonblocking(&bell).and_then(|()| super::write(bell, &1u64.to_ne_bytes()));
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// What a front end can do to an eventfd at any time.
#[cfg(test)]
pub(crate) fn make_blocking(bell: &impl AsRawFd) {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    // SAFETY: the descriptor is open for as long as its owner is borrowed.
    let bell = unsafe { BorrowedFd::borrow_raw(bell.as_raw_fd()) };
    fcntl(bell, FcntlArg::F_SETFL(OFlag::empty())).expect("an eventfd");
}

/// Takes AIO from this thread for good, as a seccomp filter of the whole process would.
#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small constants")]
pub(crate) fn forbid() {
    const NR: u32 = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
    let code = |code: u32, k, jt, jf| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NR, 0, 0),
        code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_io_setup as u32, 0, 1),
        code(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0, 0),
        code(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: a live program of as many instructions as it says; it is this thread's alone.
    let done = unsafe {
        (libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        })
    };
    assert_eq!(done, (0, 0), "{}", io::Error::last_os_error());
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::*;

    /// Does something that must not wait.
    fn at_once<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, told) = mpsc::channel();
        std::thread::spawn(move || done.send(what()));
        told.recv_timeout(Duration::from_secs(10)).expect("not held up")
    }

    #[test]
    fn nobody_is_held_up_by_a_full_counter() {
        let bell = EventFd::from_flags(EfdFlags::empty()).expect("an eventfd, blocking");
        bell.write(u64::MAX - 1).expect("full");
        let bell = at_once(move || {
            assert_eq!(prepare().get(), None, "this kernel has AIO");
            (0..3).for_each(|_| ring(&bell).expect("rung"));
            bell
        });
        assert_eq!(bell.read().expect("readable"), u64::MAX, "it stays full");
    }

    #[test]
    fn each_ring_is_heard() {
        // More than fit among completions that nobody took.
        const RINGS: u64 = 10_000;
        let bell = EventFd::from_flags(EfdFlags::empty()).expect("an eventfd, blocking");
        let bell = at_once(move || {
            (0..RINGS).for_each(|_| ring(&bell).expect("rung"));
            bell
        });
        assert_eq!(bell.read().expect("readable"), RINGS);
    }

    #[test]
    fn without_asynchronous_io_it_is_rung_and_said() {
        let bell = EventFd::from_flags(EfdFlags::empty()).expect("an eventfd, blocking");
        let bell = at_once(move || {
            forbid();
            assert_eq!(ring(&bell), Err(Errno::EPERM));
            assert_eq!(prepare().get(), Some(Errno::EPERM));
            bell.write(u64::MAX - 2).expect("full");
            assert_eq!(ring(&bell), Err(Errno::EPERM), "nobody has made it blocking again");
            bell
        });
        assert_eq!(bell.read().expect("readable"), u64::MAX - 1);
    }
    #[test]
    fn what_could_be_made_later_is_said_no_more() {
        use crate::sys::sigbus::tests::in_child;
        // Descriptors are the whole process's.
        if !in_child("sys::caller::tests::what_could_be_made_later_is_said_no_more") {
            return;
        }
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a live rlimit.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
        let set = |limit: libc::rlimit| {
            // SAFETY: a live rlimit.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
        };
        set(libc::rlimit { rlim_cur: 0, ..limit });
        let (older, newer) = (prepare(), prepare());
        assert_eq!((older.get(), newer.get()), (Some(Errno::EMFILE), Some(Errno::EMFILE)));
        set(limit);
        assert_eq!(prepare().get(), None);
        assert_eq!((older.get(), newer.get()), (None, None));
    }
}
