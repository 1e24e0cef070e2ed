//! Where a thread runs, and the machine's limits on this process.

use std::io;

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
        let thread = std::thread::Builder::new().name("both".into()).spawn_scoped(scope, run);
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
