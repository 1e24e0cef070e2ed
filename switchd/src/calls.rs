//! Calls into the daemon, which may wait, from the control thread, which may not.
//!
//! A call may wait for the kernel, for workers or for another change, so it runs on one of [`THREADS`] threads. They are
//! started with the program and kept: a call never needs a new one. (tokio's own threads for this end after ten idle
//! seconds, and where the next cannot be had, because of `RLIMIT_NPROC` or `pids.max`, `spawn_blocking` panics.) More
//! would be of no use: changes are serialised, and whatever reads waits for a change under way.
//!
//! Calls wait in a queue of [`WAITING_MAX`]. What finds it full is refused ([`Failed::Busy`]). A call that has begun ends,
//! also when whoever asked has gone: half a change would be worse than all of it. Those that wait when the daemon
//! [ends](Threads::end) are forgotten.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use vswitch::sys::thread;

use crate::daemon::Daemon;

/// Threads that calls run on.
pub const THREADS: usize = 8;
/// Calls that wait for a thread, at most: more than connections of the control and attach sockets can make together.
pub const WAITING_MAX: usize = 256;

type Call = Box<dyn FnOnce(&Daemon) + Send>;

/// Why a call has no result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failed {
    /// It was not begun: too many wait, or the daemon ends.
    Busy,
    /// It panicked.
    Panicked,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failed::Busy => "vswitchd has too many requests under way: try again",
            Failed::Panicked => "the request failed inside vswitchd: see its log",
        })
    }
}

/// The way to the threads; clones lead to the same.
#[derive(Clone, Debug)]
pub struct Calls(Arc<Queue>);

impl Calls {
    /// Runs `work` on a thread, also when the result is not waited for.
    ///
    /// # Errors
    /// [`Failed`]; a panic is in the log.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Daemon) -> T + Send + 'static,
    ) -> Result<T, Failed> {
        let (done, outcome) = oneshot::channel();
        let call = move |daemon: &Daemon| {
            let result = catch_unwind(AssertUnwindSafe(|| work(daemon)));
            let result = result.map_err(|panic| {
                tracing::error!("a request panicked: {}", text_of(&*panic));
                Failed::Panicked
            });
            // Nobody may wait for it any more.
            drop(done.send(result));
        };
        if !self.0.put(Box::new(call)) {
            return Err(Failed::Busy);
        }
        outcome.await.unwrap_or(Err(Failed::Busy))
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}

/// What waits for a thread.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Call>,
    ends: bool,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("waiting", &self.state().waiting.len()).finish_non_exhaustive()
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic is done while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was room.
    fn put(&self, call: Call) -> bool {
        let mut state = self.state();
        if state.ends || state.waiting.len() >= WAITING_MAX {
            return false;
        }
        state.waiting.push_back(call);
        drop(state);
        self.bell.notify_one();
        true
    }

    /// The next call, when there is one; `None` is the end.
    fn next(&self) -> Option<Call> {
        let idle = |state: &mut State| !state.ends && state.waiting.is_empty();
        let mut state = self.bell.wait_while(self.state(), idle).unwrap_or_else(PoisonError::into_inner);
        if state.ends { None } else { state.waiting.pop_front() }
    }

    fn end(&self) {
        let mut state = self.state();
        state.ends = true;
        let forgotten = std::mem::take(&mut state.waiting);
        drop(state);
        self.bell.notify_all();
        drop(forgotten);
    }
}

/// The threads; they end when this is dropped.
#[derive(Debug)]
pub struct Threads {
    queue: Arc<Queue>,
    /// A message never comes; it ends with the last thread.
    ended: Receiver<()>,
}

impl Threads {
    /// Starts them; they call `daemon`. One is enough to go on with.
    ///
    /// # Errors
    /// Not one can be had.
    pub fn start(daemon: &Arc<Daemon>) -> io::Result<(Calls, Threads)> {
        let queue = Arc::new(Queue::default());
        let (alive, ended) = mpsc::channel::<()>();
        for number in 0..THREADS {
            let (queue, daemon, alive) = (Arc::clone(&queue), Arc::clone(daemon), alive.clone());
            let run = move || {
                while let Some(call) = queue.next() {
                    call(&daemon);
                }
                // In this order, so that the daemon is not held any more when the end is seen.
                drop(daemon);
                drop(alive);
            };
            match thread::spawn(&format!("control-{number}"), run) {
                Ok(_) => {}
                Err(error) if number == 0 => return Err(error),
                Err(error) => {
                    tracing::warn!("{number} instead of {THREADS} threads serve requests: {error}");
                    break;
                }
            }
        }
        Ok((Calls(Arc::clone(&queue)), Threads { queue, ended }))
    }

    /// Begins no more calls, and waits for those under way. Whether they have ended within this time.
    #[must_use]
    pub fn end(self, within: Duration) -> bool {
        self.queue.end();
        self.ended.recv_timeout(within) == Err(RecvTimeoutError::Disconnected)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.queue.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DaemonSection;
    use crate::control::model::Model;

    fn daemon() -> Arc<Daemon> {
        Arc::new(Daemon::new(Arc::new(Model::default()), &DaemonSection::default()))
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn calls_are_answered_and_a_panic_is_no_end() {
        let daemon = daemon();
        let (calls, threads) = Threads::start(&daemon).unwrap();
        for _ in 0..2 * THREADS {
            assert_eq!(wait(calls.run(|_| -> u32 { panic!("on purpose") })), Err(Failed::Panicked));
        }
        assert_eq!(wait(calls.run(|daemon| daemon.bridges().len())), Ok(0));
        assert!(threads.end(Duration::from_secs(10)));
        assert_eq!(Arc::strong_count(&daemon), 1, "no thread has it any more");
        assert_eq!(wait(calls.run(|_| ())), Err(Failed::Busy), "none is begun after the end");
    }

    #[test]
    fn what_finds_the_queue_full_is_refused_at_once() {
        let (calls, threads) = Threads::start(&daemon()).unwrap();
        let gate = Arc::new(Mutex::new(()));
        let shut = gate.lock().unwrap();
        wait(async {
            let mut asked = Vec::new();
            for _ in 0..THREADS + WAITING_MAX + 20 {
                let (calls, gate) = (calls.clone(), Arc::clone(&gate));
                let mut asking = Box::pin(async move { calls.run(move |_| drop(gate.lock())).await });
                // Asked, and not waited for.
                let first =
                    std::future::poll_fn(|context| std::task::Poll::Ready(asking.as_mut().poll(context)));
                match first.await {
                    std::task::Poll::Ready(refused) => assert_eq!(refused, Err(Failed::Busy)),
                    std::task::Poll::Pending => asked.push(asking),
                }
            }
            let held = asked.len();
            assert!((WAITING_MAX..=WAITING_MAX + THREADS).contains(&held), "{held}");
            drop(shut);
            for asking in asked {
                assert_eq!(asking.await, Ok(()));
            }
        });
        assert!(threads.end(Duration::from_secs(10)));
    }

    #[test]
    fn those_that_wait_at_the_end_are_forgotten() {
        let (calls, threads) = Threads::start(&daemon()).unwrap();
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        wait(async {
            let ask = || {
                let (calls, gate) = (calls.clone(), Arc::clone(&gate));
                Box::pin(async move {
                    calls
                        .run(move |_| gate.lock().unwrap_or_else(PoisonError::into_inner).recv().is_ok())
                        .await
                })
            };
            let mut asked: Vec<_> = (0..THREADS + 5).map(|_| ask()).collect();
            for asking in &mut asked {
                std::future::poll_fn(|context| {
                    assert!(asking.as_mut().poll(context).is_pending());
                    std::task::Poll::Ready(())
                })
                .await;
            }
            while calls.0.state().waiting.len() > 5 {
                std::thread::sleep(Duration::from_millis(1));
            }
            calls.0.end();
            drop(release);
            let mut outcomes = Vec::new();
            for asking in asked {
                outcomes.push(asking.await);
            }
            assert!(outcomes.contains(&Err(Failed::Busy)), "{outcomes:?}");
        });
        assert!(threads.end(Duration::from_secs(10)));
    }
}
