//! How long a cache line takes from one CPU to another and back.
//!
//! Two threads, each on a CPU of its own, take turns at adding one to a word. Where CPUs have a cache in common that is some tens of
//! nanoseconds, elsewhere several hundred; and the CPUs of a virtual machine may be moved from the one place to the other while it
//! runs. Whatever two threads hand each other then takes longer, the same for every contender.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::args::Args;

/// Measurements, of which the median is taken, and the length of each.
const RUNS: usize = 5;
const RUN: Duration = Duration::from_millis(20);

/// Round trips between two looks at the clock.
const BETWEEN: u32 = 256;

/// The word, with its line (and the one that is fetched along with it) to itself.
#[derive(Default)]
#[repr(align(128))]
struct Word(AtomicU32);

/// Measures between CPU `--from` and CPU `--to`.
pub(crate) fn run(args: &Args) -> Result<String, String> {
    let (from, to) = (args.or("from", 0)?, args.or("to", 1)?);
    let (word, over) = (Word::default(), AtomicBool::new(false));
    let (word, over) = (&word.0, &over);
    pin(from)?;
    let mut nanos = thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        scope.spawn(move || {
            let pinned = pin(to);
            let answers = pinned.is_ok();
            // The receiver outlives this thread.
            let _ = tell.send(pinned);
            if answers {
                answer(word, over);
            }
        });
        told.recv().map_err(|e| format!("CPU {to}: {e}"))??;
        let nanos: Vec<f64> = (0..RUNS).map(|_| round_trip_ns(word)).collect();
        over.store(true, Ordering::Relaxed);
        Ok::<_, String>(nanos)
    })?;
    nanos.sort_by(f64::total_cmp);
    Ok(format!("{{\"line_ns\": {:.1}}}", nanos[RUNS / 2]))
}

/// Keeps the thread on a CPU.
fn pin(cpu: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|e| format!("CPU {cpu}: {}", io::Error::from(e)))
}

/// Makes odd numbers even, until it is over.
fn answer(word: &AtomicU32, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let now = word.load(Ordering::Acquire);
        if now % 2 == 1 {
            word.store(now.wrapping_add(1), Ordering::Release);
        }
        std::hint::spin_loop();
    }
}

/// Makes even numbers odd for a while; nanoseconds for each that was answered.
fn round_trip_ns(word: &AtomicU32) -> f64 {
    let began = Instant::now();
    let mut trips = 0u32;
    loop {
        for _ in 0..BETWEEN {
            let next = word.load(Ordering::Relaxed).wrapping_add(1);
            word.store(next, Ordering::Release);
            while word.load(Ordering::Acquire) == next {
                std::hint::spin_loop();
            }
        }
        trips += BETWEEN;
        let elapsed = began.elapsed();
        if elapsed >= RUN {
            return elapsed.as_secs_f64() * 1e9 / f64::from(trips);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Args {
        Args::parse(text.split_whitespace().map(str::to_owned)).unwrap()
    }

    #[test]
    fn a_line_goes_to_and_fro() {
        if thread::available_parallelism().unwrap().get() < 2 {
            return;
        }
        let json = run(&parse("")).unwrap();
        let nanos: f64 = json.trim_start_matches("{\"line_ns\": ").trim_end_matches('}').parse().unwrap();
        assert!(nanos > 1.0, "{json}");
    }

    #[test]
    fn a_cpu_that_is_not_there_is_named() {
        assert!(run(&parse("--to 1023")).unwrap_err().starts_with("CPU 1023: "));
        assert!(run(&parse("--from 1023")).unwrap_err().starts_with("CPU 1023: "));
        assert!(run(&parse("--to 1000000")).unwrap_err().starts_with("CPU 1000000: "));
    }
}
