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

/// CPUs this process may run on.
#[must_use]
pub fn available_cpus() -> usize {
    let allowed = sched_getaffinity(Pid::from_raw(0))
        .map_or(0, |set| (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).count());
    allowed.max(1)
}
