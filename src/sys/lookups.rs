//! Threads for calls that may wait for a file system.
//!
//! Looking up a path can take for ever: a FUSE daemon that does not answer, an NFS server that is away, an autofs mount. Whoever sends
//! to a socket of ours may give such a path. So nothing looks one up while it holds a lock that others need: the call runs on a thread
//! of its own, and whoever wants the answer waits a moment for it ([`SOON`]). Nearly always it has come by then. If not, the answer is
//! asked for again later ([`LookUp`]), or given up ([`within`]).
//!
//! A thread that hangs cannot be ended before the process, and hangs in a file system, not in a value of ours. So their number is
//! bounded for the whole process, here: [`THREADS_MAX`]. One that is idle stays for a while, because datagram sockets are looked at
//! four times a second; without work there are none.
//!
//! Rejected: `openat2` with `RESOLVE_CACHED` says whether a look-up would wait, but not whether the calls that follow do (`fstat`,
//! `connect`), which a FUSE daemon can hold up as well. Recognising file systems by their type ends with the next new one.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

/// How long an answer is waited for that nearly always comes at once.
const SOON: Duration = Duration::from_millis(10);
/// How long a call that was asked for may take, while the one who asked waits: longer than a busy disk, shorter than patience.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// Threads at most, those that hang among them.
const THREADS_MAX: usize = 32;
/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

struct Pool {
    /// Never more jobs than threads that wait for one.
    jobs: (Sender<Job>, Receiver<Job>),
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    threads: usize,
    /// Of them, those that wait for a job and have none coming.
    idle: usize,
}

static POOL: LazyLock<Pool> = LazyLock::new(|| Pool { jobs: unbounded(), state: Mutex::default() });

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        // Numbers; each change is one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a thread do it; gives it back where there is none.
    fn start(&'static self, job: Job) -> Result<(), (Job, io::Error)> {
        let mut state = self.state();
        if state.idle > 0 {
            state.idle -= 1;
            // The pool has both ends.
            let _ = self.jobs.0.send(job);
            return Ok(());
        }
        if state.threads >= THREADS_MAX {
            let busy = format!("{THREADS_MAX} look-ups wait for file systems that do not answer");
            return Err((job, io::Error::new(io::ErrorKind::ResourceBusy, busy)));
        }
        // It takes this job first, as one that was idle would.
        let thread = super::thread::spawn("look-up", || self.work());
        match thread {
            Ok(_) => {
                state.threads += 1;
                let _ = self.jobs.0.send(job);
                Ok(())
            }
            Err(error) => Err((job, error)),
        }
    }

    fn work(&self) {
        loop {
            match self.jobs.1.recv_timeout(IDLE) {
                Ok(job) => {
                    // One that panics has no answer, which its asker is told.
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                    self.state().idle += 1;
                }
                Err(_) => {
                    let mut state = self.state();
                    // Else a job is on its way.
                    if state.idle > 0 {
                        state.idle -= 1;
                        state.threads -= 1;
                        return;
                    }
                }
            }
        }
    }
}

/// An answer that is to come.
#[derive(Debug)]
struct Pending<T>(Receiver<T>);

fn start<T: Send + 'static>(
    what: impl FnOnce() -> T + Send + 'static,
) -> Result<Pending<T>, (Job, io::Error)> {
    let (answer, answers) = bounded(1);
    // What nobody waits for any more is dropped here, where that may take its time.
    let job: Job = Box::new(move || drop(answer.send(what())));
    POOL.start(job).map(|()| Pending(answers))
}

/// Paths at which something that was given up is still under way.
static UNDER_WAY: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Removes its path from there.
struct UnderWay(PathBuf);

impl UnderWay {
    fn all() -> MutexGuard<'static, BTreeSet<PathBuf>> {
        UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        Self::all().remove(&self.0);
    }
}

/// Does something at `path` that may wait for its file system, but no longer than `patience`; what becomes of it then is dropped by
/// the thread that does it. Until then nothing else is begun at that path: what is tried again and again takes one thread.
///
/// # Errors
/// `TimedOut`, also at once where the last one still hangs; `ResourceBusy`: too many hang already; or there is no thread to be had.
pub(crate) fn within<T: Send + 'static>(
    path: &Path,
    patience: Duration,
    what: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    if !UnderWay::all().insert(path.to_owned()) {
        return Err(unanswered());
    }
    let under_way = UnderWay(path.to_owned());
    let work = move || {
        let answer = what();
        drop(under_way);
        answer
    };
    let pending = start(work).map_err(|(_, error)| error)?;
    pending.0.recv_timeout(patience).map_err(|error| match error {
        RecvTimeoutError::Timeout => unanswered(),
        RecvTimeoutError::Disconnected => io::Error::other("a look-up panicked"),
    })
}

/// Removes something, and waits for that no longer than `patience`. Where there is no thread to be had it is done right here.
pub(crate) fn remove_within(patience: Duration, what: impl FnOnce() + Send + 'static) {
    match start(what) {
        Ok(pending) => drop(pending.0.recv_timeout(patience)),
        Err((_, error)) if error.kind() == io::ErrorKind::ResourceBusy => {}
        Err((job, _)) => job(),
    }
}

/// A file system took too long.
pub(crate) fn unanswered() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "its file system does not answer")
}

/// Something that is looked up again and again, once at a time.
#[derive(Debug)]
pub(crate) struct LookUp<T> {
    pending: Option<(Pending<T>, Instant)>,
    /// The last one was not answered at once: nothing is waited for.
    is_slow: bool,
}

// Not derived, because of `T`.
impl<T> Default for LookUp<T> {
    fn default() -> Self {
        LookUp { pending: None, is_slow: false }
    }
}

impl<T: Send + 'static> LookUp<T> {
    /// The answer to what was asked before, if that is still to come, else to `what`. `None`: not yet; ask again.
    ///
    /// # Errors
    /// As [`LookUp::answer`]; or there is no thread to be had, or too many hang.
    pub(crate) fn ask(&mut self, what: impl FnOnce() -> T + Send + 'static) -> io::Result<Option<T>> {
        if self.pending.is_none() {
            self.pending = Some((start(what).map_err(|(_, error)| error)?, Instant::now()));
        }
        self.answer()
    }

    /// The answer to what was asked before. `None`: not yet, or nothing was.
    ///
    /// # Errors
    /// `TimedOut`: it takes long. It still may come.
    pub(crate) fn answer(&mut self) -> io::Result<Option<T>> {
        let Some((pending, since)) = &self.pending else { return Ok(None) };
        let patience = if self.is_slow { Duration::ZERO } else { SOON };
        match pending.0.recv_timeout(patience) {
            Ok(answer) => {
                self.is_slow = since.elapsed() > SOON;
                self.pending = None;
                Ok(Some(answer))
            }
            Err(RecvTimeoutError::Timeout) => {
                self.is_slow = true;
                if since.elapsed() > PATIENCE { Err(unanswered()) } else { Ok(None) }
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.pending = None;
                Err(io::Error::other("a look-up panicked"))
            }
        }
    }

    /// Whether something that was asked is not answered yet.
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_takes_its_time_is_had_later() {
        let (answer, wait) = bounded(1);
        let mut look = LookUp::default();
        let begun = Instant::now();
        for _ in 0..3 {
            let wait: Receiver<u32> = wait.clone();
            assert_eq!(look.ask(move || wait.recv().expect("told")).expect("a thread"), None);
        }
        assert!(begun.elapsed() < Duration::from_secs(5) && look.is_pending());
        answer.send(7).expect("it waits");
        let given =
            std::iter::repeat_with(|| look.ask(|| 8).expect("a thread")).take(10_000).flatten().next();
        assert!(given == Some(7), "the first question's: {given:?}");
    }

    #[test]
    fn what_hangs_is_given_up() {
        let (_never, wait) = bounded::<()>(1);
        let (here, there) = (Path::new("/a"), Path::new("/b"));
        let given_up = within(here, Duration::from_millis(1), move || wait.recv());
        assert_eq!(given_up.map(drop).map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        // The next ones there take no thread, and no time.
        for _ in 0..2 * THREADS_MAX {
            let again = within(here, Duration::from_secs(3600), || ());
            assert_eq!(again.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        }
        assert_eq!(within(there, Duration::from_secs(10), || 5).expect("in time"), 5);
        assert_eq!(within(there, Duration::from_secs(10), || 6).expect("in time"), 6);
    }
}
