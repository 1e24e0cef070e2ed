//! Closing what the kernel takes long to close.
//!
//! A packet socket waits for one or two of the kernel's grace periods when it is closed, 8 ms each
//! on a kernel of 250 ticks a second, with a ring for one more. Waiting is all it does, and those
//! who wait at the same time wait for the same one: hence threads, which live as long as the call.
//! Rejected: leaving it to the end of the process, where the kernel closes one after the other.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;

use crate::sys::thread::spawn_scoped;

/// Threads at most. With more, the kernel's own work between the waits is what takes the time.
const THREADS: usize = 64;

/// Drops everything, several at a time, and returns when it is done.
pub(super) fn dispose<T: Send>(things: Vec<T>) {
    let helpers = things.len().saturating_sub(1).min(THREADS);
    let things = Mutex::new(things.into_iter());
    let next = || things.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || while next().is_some() {};
    thread::scope(|scope| {
        for _ in 0..helpers {
            // With fewer threads, or none, it takes longer.
            if spawn_scoped(scope, "close", work).is_err() {
                break;
            }
        }
        work();
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Counted<'a>(&'a AtomicUsize);

    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn everything_is_dropped_when_it_returns() {
        for number in [0, 1, 2, 63, 1000] {
            let dropped = AtomicUsize::new(0);
            super::dispose((0..number).map(|_| Counted(&dropped)).collect());
            assert_eq!(dropped.load(Ordering::Relaxed), number);
        }
    }
}
