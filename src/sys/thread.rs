//! Threads: how they are had, where they run, and the machine's limits on this process.
//!
//! Every thread of this crate and of `vswitchd` is started by [`spawn`] or [`spawn_scoped`].
//! `std::thread::spawn` and `Scope::spawn` panic where the kernel has no thread to give; these two
//! say so by an error that callers can tell from others ([`is_lacking`]).

use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Pins the calling thread to one CPU.
///
/// # Errors
/// EINVAL when the CPU does not exist or the process may not use it.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Runs both at the same time, `second` on another thread; one after the other when there is no
/// thread to be had.
pub fn both<A, B: Send>(first: impl FnOnce() -> A, second: impl FnOnce() -> B + Send) -> (A, B) {
    let job = std::sync::Mutex::new(Some(second));
    let take = || job.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    std::thread::scope(|scope| {
        let run = || take().map(|second| second());
        let thread = spawn_scoped(scope, "both", run);
        let first = first();
        let second = match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(_) => take().map(|second| second()),
        };
        match second {
            Some(second) => (first, second),
            None => unreachable!("it runs once, here or there"),
        }
    })
}

/// CPUs this process may run on.
#[must_use]
pub fn available_cpus() -> usize {
    let allowed = sched_getaffinity(Pid::from_raw(0))
        .map_or(0, |set| (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).count());
    allowed.max(1)
}

/// The kernel gave no thread.
#[derive(Debug, thiserror::Error)]
#[error(
    "no thread can be had ({0}): end something, or raise pids.max (TasksMax= of the unit) or RLIMIT_NPROC"
)]
struct Lacking(io::Error);

fn lacking(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), Lacking(error))
}

/// Starts a thread.
///
/// # Errors
/// The kernel gave none; [`is_lacking`] tells this error from others.
pub fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(run).map_err(lacking)
}

/// Starts a thread of a scope.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    run: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().name(name.to_owned()).spawn_scoped(scope, run).map_err(lacking)
}

/// Whether something failed because the kernel gave no thread. That passes: it can be tried again.
#[must_use]
pub fn is_lacking(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Lacking>())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_not_given_is_told_from_other_errors() {
        let refused = || io::Error::from_raw_os_error(libc::EAGAIN);
        let error = lacking(refused());
        assert!(is_lacking(&error) && !is_lacking(&refused()));
        assert!(error.to_string().starts_with("no thread can be had (Resource temporarily unavailable"));
        assert_eq!(
            spawn("named", || std::thread::current().name().map(str::to_owned)).unwrap().join().unwrap(),
            Some("named".to_owned())
        );
    }
}
