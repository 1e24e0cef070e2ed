//! The per-core loop: receive a batch, run it to completion, look for the next.
//!
//! A worker owns its queues outright. What it shares with others is behind no lock: the topology it was given last
//! (immutable), the FDBs (atomics) and its counters (it is their only writer). Changes arrive as a [`Command`] with
//! a `mio` waker; the worker applies it between two batches and hands back the queues of ports that left, so that file
//! descriptors are closed by the control side, after every worker has let go. (By a worker itself only if it was so late that
//! nobody waits for it any more.)
//!
//! **How it waits.** A queue that brought frames is *hot*: it is read directly, without asking epoll, for a while after the
//! last frame. Waking a sleeping worker costs more than handling a frame, and while traffic is a conversation the next
//! frame is tens of microseconds away; this halves the round trip of a kernel bridge. How long follows from whether it
//! pays, as in KVM's halt polling: a sleep that ended within [`SPIN_MAX`] should have been spun through, and the next one
//! is; each longer sleep halves the time. When nothing is hot the worker sleeps in epoll, so idle costs nothing. At most
//! all CPUs but one spin at a time, else the spinners would take the CPU from the programs whose frames they are
//! waiting for. For the same reason a spinning worker yields, and one whose CPU is needed by others sleeps instead for a
//! while: where programs wait for a CPU, nothing is gained by being awake early.

use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::addr::PortId;
use crate::batch::Batch;
use crate::bridge::fdb::Tick;
use crate::bridge::neighbours::Heard;
use crate::pipeline::{self, Context, Outbox, Workshop};
use crate::port::{Inbound, PortQueue, Received};
use crate::stats::{Counter, Counters, DropReason};
use crate::switch::PollMode;
use crate::topology::{PORTS_MAX, Topology};
use crate::tunnel::Origin;

use crowd::Crowd;

mod crowd;

/// How long after its last frame a worker keeps looking before it sleeps, at most. Programs at both ends may have to be
/// woken before the next frame comes, each on an idle CPU, which takes a virtual machine 20 to 60 µs.
pub const SPIN_MAX: Duration = Duration::from_micros(200);
/// And at least: the rest of a burst comes within this.
const SPIN_MIN: Duration = Duration::from_micros(10);
/// For so long nobody spins on a CPU that others need.
const REST: Duration = Duration::from_millis(10);
/// Turns of the loop between two looks at epoll while some queue is hot.
const TURNS_PER_POLL: u32 = 16;
/// And at most this long, for many busy ports make long turns.
const POLL_EVERY: Duration = Duration::from_micros(500);

/// News of neighbours that a worker tells in a second, at most: anybody can make up addresses.
const SECOND_NEIGHBOURS: u32 = 1000;
/// Least time between two strangers that are told of.
const BETWEEN_STRANGERS: Duration = Duration::from_millis(10);

const WAKER: Token = Token(PORTS_MAX);

/// What the control side tells a worker.
#[derive(Debug)]
pub enum Command {
    /// Run on this from now on.
    Apply {
        /// The new picture.
        topology: Arc<Topology>,
        /// Queues to give up: their ports left, or come back with new queues.
        remove: Vec<PortId>,
        /// This worker's queues of new ports.
        add: Vec<(PortId, Box<dyn PortQueue>)>,
        /// Where to acknowledge.
        done: Sender<Applied>,
    },
    /// Look for frames that the kernel dropped, and count them.
    CountMissed {
        /// Where to say that it is done.
        done: Sender<()>,
    },
    /// The kernel seems to have stopped filling the ring of this port's queue: leave it, if so.
    LeaveRing {
        /// The port.
        port: PortId,
        /// Frames that it had delivered when it was looked at.
        delivered: u64,
        /// Where to say whether it did.
        done: Sender<bool>,
    },
    /// End.
    Stop,
}

/// A worker has swapped.
#[derive(Debug)]
pub struct Applied {
    /// Queues it no longer uses, to be closed when every worker has answered.
    pub released: Vec<Box<dyn PortQueue>>,
    /// What it ran on before: the last reference may hold a table of many megabytes, which is not freed between two batches.
    pub before: Arc<Topology>,
}

/// What a worker tells the control side.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A port's device has vanished. Told once a worker.
    PortGone(PortId),
    /// A frame came to a tunnel port from a remote that it does not know.
    Stranger(PortId, IpAddr),
    /// A frame told of a neighbour that is not known.
    Neighbour(Heard),
}

/// What workers share.
#[derive(Debug)]
pub struct Shared {
    /// When the switch started: tick 0.
    pub epoch: Instant,
    /// How to wait.
    pub poll: PollMode,
    /// Workers that may still begin to spin.
    pub spin_permits: AtomicUsize,
    /// One a worker.
    pub status: Vec<Status>,
}

/// What a worker shows of itself; it is the only writer.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Status {
    /// Turns that brought frames.
    pub busy_turns: Counter,
    /// Times it went to sleep.
    pub sleeps: Counter,
    /// Generation of its topology.
    pub generation: AtomicU64,
}

/// The state of one worker thread.
#[derive(Debug)]
pub struct Worker {
    index: usize,
    shared: Arc<Shared>,
    poll: Poll,
    waker: Arc<Waker>,
    commands: Receiver<Command>,
    events: Sender<Event>,
    bell: Arc<Waker>,
    topology: Arc<Topology>,
    queues: Vec<Option<Box<dyn PortQueue>>>,
    /// Ports whose queue may have frames, in order of service.
    hot: Vec<Hot>,
    /// How long a queue without frames stays hot: between [`SPIN_MIN`] and [`SPIN_MAX`].
    spin: Duration,
    outbox: Outbox,
    workshop: Workshop,
    batch: Batch,
    /// When a stranger was told of last.
    told: Option<Instant>,
    /// The second in which neighbours were told of last, how many, and when the control side was woken for it.
    neighbours_told: (Tick, u32, Option<Instant>),
}

#[derive(Clone, Copy, Debug)]
struct Hot {
    port: PortId,
    /// Frames came since [`Worker::cool`] looked last.
    fresh: bool,
    /// When that was found the last time.
    since: Instant,
    /// Whether epoll would tell of new frames. Not of a queue that is read all the time: each frame would pay for it, on
    /// its sender's side.
    watched: bool,
}

impl Worker {
    /// A worker without ports.
    ///
    /// # Errors
    /// When epoll or eventfd cannot be had.
    pub fn new(
        index: usize,
        shared: Arc<Shared>,
        commands: Receiver<Command>,
        events: Sender<Event>,
        bell: Arc<Waker>,
    ) -> std::io::Result<Worker> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        Ok(Worker {
            index,
            shared,
            poll,
            waker,
            commands,
            events,
            bell,
            topology: Arc::default(),
            queues: Vec::new(),
            hot: Vec::with_capacity(PORTS_MAX),
            spin: SPIN_MAX,
            outbox: Outbox::default(),
            workshop: Workshop::default(),
            batch: Batch::default(),
            told: None,
            neighbours_told: (Tick(0), 0, None),
        })
    }

    /// What ends this worker's sleep after a command was sent.
    #[must_use]
    pub fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// Runs until told to stop.
    pub fn run(mut self) {
        let mut ready = Events::with_capacity(256);
        let mut spinning = false;
        let mut turn = 0u32;
        let mut polled = Instant::now();
        let mut rest_until = polled;
        let mut crowd = Crowd::new(polled);
        loop {
            if !self.commands.is_empty() && !self.obey() {
                break;
            }
            let now = Instant::now();
            turn = turn.wrapping_add(1);
            let look_at_epoll =
                turn.is_multiple_of(TURNS_PER_POLL) || now.duration_since(polled) > POLL_EVERY;
            if self.serve(now) {
                self.shared.status[self.index].busy_turns.add(1);
                if look_at_epoll {
                    // Or one busy port would keep every port hot that ever had a frame.
                    self.cool(now, self.spin);
                    self.stop_watching();
                    self.ask_epoll(&mut ready, Some(Duration::ZERO));
                    polled = now;
                }
                continue;
            }
            self.cool(now, self.spin);
            let stay_awake = match self.shared.poll {
                PollMode::Busy => true,
                PollMode::Wait => false,
                PollMode::Adaptive => {
                    !self.hot.is_empty() && now >= rest_until && (spinning || self.may_spin())
                }
            };
            if stay_awake {
                spinning = self.shared.poll == PollMode::Adaptive;
                if look_at_epoll || self.hot.is_empty() {
                    self.ask_epoll(&mut ready, Some(Duration::ZERO));
                    polled = now;
                } else {
                    // Not a pause: the program that was just woken may be waiting for this very CPU.
                    let before = Instant::now();
                    std::thread::yield_now();
                    let back = Instant::now();
                    if crowd.needs_cpu(before, back) {
                        rest_until = back + REST;
                    }
                }
                continue;
            }
            if std::mem::take(&mut spinning) {
                self.shared.spin_permits.fetch_add(1, Ordering::Relaxed);
            }
            // Nothing waits in any hot queue, and epoll tells what comes from now on.
            self.cool(now, Duration::ZERO);
            self.shared.status[self.index].sleeps.add(1);
            let asleep = Instant::now();
            self.ask_epoll(&mut ready, (!self.hot.is_empty()).then_some(POLL_EVERY));
            polled = Instant::now();
            self.spin = if polled.duration_since(asleep) < SPIN_MAX {
                SPIN_MAX
            } else {
                (self.spin / 2).max(SPIN_MIN)
            };
        }
        if spinning {
            self.shared.spin_permits.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn may_spin(&self) -> bool {
        let take = |permits: usize| permits.checked_sub(1);
        self.shared.spin_permits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Asks epoll who has frames, waiting up to `wait`.
    fn ask_epoll(&mut self, ready: &mut Events, wait: Option<Duration>) {
        if let Err(error) = self.poll.poll(ready, wait) {
            if error.kind() != std::io::ErrorKind::Interrupted {
                tracing::error!(worker = self.index, %error, "epoll failed");
                std::thread::sleep(Duration::from_millis(10));
            }
            return;
        }
        let now = Instant::now();
        for event in ready.iter().filter(|event| event.token() != WAKER) {
            // Tokens are port ids, see [`register`].
            #[allow(clippy::cast_possible_truncation)]
            let port = PortId(event.token().0 as u16);
            match self.hot.iter_mut().find(|hot| hot.port == port) {
                Some(hot) => hot.fresh = true,
                None => self.hot.push(Hot { port, fresh: true, since: now, watched: true }),
            }
        }
    }

    /// Reads every hot queue once; whether there was any frame.
    fn serve(&mut self, now: Instant) -> bool {
        let mut worked = false;
        let mut slot = 0;
        while slot < self.hot.len() {
            let port = self.hot[slot].port;
            match self.serve_port(port, now) {
                Served::Frames => {
                    self.hot[slot].fresh = true;
                    worked = true;
                }
                Served::Nothing => {}
                Served::Gone => {
                    self.let_go(port);
                    self.hot.swap_remove(slot);
                    continue;
                }
            }
            slot += 1;
        }
        worked
    }

    fn serve_port(&mut self, id: PortId, now: Instant) -> Served {
        let Some(Some(queue)) = self.queues.get_mut(id.index()) else { return Served::Gone };
        let inbound = match self.topology.port(id) {
            Some(port) => {
                Inbound { counters: &port.shared.counters[self.index], demux: None, worker: self.index }
            }
            None => match self.topology.endpoints.get(&id) {
                Some(endpoint) => Inbound {
                    counters: &endpoint.shared.counters[self.index],
                    demux: Some(&endpoint.demux),
                    worker: self.index,
                },
                None => return Served::Gone,
            },
        };
        self.batch.clear();
        let received = queue.receive(&mut self.batch, &inbound);
        let worked = !self.batch.frames.is_empty();
        let (received_by, lent) = (id, self.batch.is_lent());
        let id = match self.batch.origin {
            None => id,
            Some((Origin::Remote(remote), _)) => remote,
            Some((Origin::Stranger(port), address)) => {
                self.stranger(port, address, now);
                port
            }
        };
        let port = self.topology.port(id);
        let bridge = port.and_then(|port| self.topology.bridges.get(port.bridge));
        if let (true, Some(port), Some(bridge)) = (worked, port, bridge) {
            let seconds = now.duration_since(self.shared.epoch).as_secs();
            let tick = Tick(u32::try_from(seconds).unwrap_or(u32::MAX));
            let mut context = Context {
                topology: &self.topology,
                port,
                bridge,
                worker: self.index,
                now: tick,
                outbox: &mut self.outbox,
                queues: &mut self.queues,
                workshop: &mut self.workshop,
            };
            pipeline::run(&mut context, &mut self.batch);
            if !self.outbox.heard.is_empty() {
                self.tell_neighbours(tick, now);
            }
        }
        if lent {
            self.batch.forget_lent();
            if let Some(Some(queue)) = self.queues.get_mut(received_by.index()) {
                queue.take_back();
            }
        }
        match received {
            Received::Gone => Served::Gone,
            Received::More => Served::Frames,
            Received::Drained if worked => Served::Frames,
            Received::Drained => Served::Nothing,
        }
    }

    /// Tells of a remote that nobody knows, not too often: anybody can make up addresses.
    fn stranger(&mut self, port: PortId, address: IpAddr, now: Instant) {
        if self.told.is_some_and(|told| now.duration_since(told) < BETWEEN_STRANGERS) {
            return;
        }
        self.told = Some(now);
        let _ = self.events.send(Event::Stranger(port, address));
        let _ = self.bell.wake();
    }

    /// Tells of neighbours that are not known, not too often. The control side looks by itself several times a second.
    #[cold]
    fn tell_neighbours(&mut self, tick: Tick, now: Instant) {
        let (second, told, woken) = &mut self.neighbours_told;
        if *second != tick {
            (*second, *told) = (tick, 0);
        }
        for heard in self.outbox.heard.drain(..) {
            if *told < SECOND_NEIGHBOURS {
                *told += 1;
                let _ = self.events.send(Event::Neighbour(heard));
            }
        }
        if woken.is_none_or(|woken| now.duration_since(woken) >= BETWEEN_STRANGERS) {
            *woken = Some(now);
            let _ = self.bell.wake();
        }
    }

    /// Leaves queues that have been silent for `spin` to epoll.
    fn cool(&mut self, now: Instant, spin: Duration) {
        let mut slot = 0;
        while let Some(hot) = self.hot.get_mut(slot) {
            if std::mem::take(&mut hot.fresh) {
                hot.since = now;
            }
            let hot = *hot;
            // One that epoll does not take back stays hot, or nobody would ever look at it again.
            if now.duration_since(hot.since) < spin || !self.watch(hot) {
                slot += 1;
            } else {
                self.hot.swap_remove(slot);
            }
        }
    }

    /// Has epoll tell of new frames again, and of those that came meanwhile; whether it will.
    fn watch(&mut self, hot: Hot) -> bool {
        match self.queues.get_mut(hot.port.index()) {
            Some(Some(queue)) if !hot.watched => {
                queue.listen(true);
                register(&self.poll, self.index, hot.port, &**queue)
            }
            _ => true,
        }
    }

    /// Has epoll say nothing of hot queues any more.
    fn stop_watching(&mut self) {
        for hot in self.hot.iter_mut().filter(|hot| hot.watched) {
            if let Some(Some(queue)) = self.queues.get_mut(hot.port.index()) {
                deregister(&self.poll, &**queue);
                queue.listen(false);
                hot.watched = false;
            }
        }
    }

    /// A device has vanished: stop listening, say so once.
    fn let_go(&mut self, id: PortId) {
        let Some(port) = self.topology.port(id) else { return };
        port.shared.gone.store(true, Ordering::Relaxed);
        if let Some(Some(queue)) = self.queues.get(id.index()) {
            deregister(&self.poll, &**queue);
        }
        let _ = self.events.send(Event::PortGone(id));
        let _ = self.bell.wake();
    }

    /// Carries out what the control side sent; `false` is the end.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Stop => return false,
                Command::CountMissed { done } => {
                    self.count_missed();
                    let _ = done.send(());
                }
                Command::LeaveRing { port, delivered, done } => {
                    let queue = self.queues.get_mut(port.index()).and_then(Option::as_mut);
                    let _ = done.send(queue.is_some_and(|queue| queue.leave_ring(delivered)));
                }
                Command::Apply { topology, remove, add, done } => {
                    let before = Arc::clone(&self.topology);
                    let released = self.apply(topology, &remove, add);
                    let _ = done.send(Applied { released, before });
                }
            }
        }
        true
    }

    fn apply(
        &mut self,
        topology: Arc<Topology>,
        remove: &[PortId],
        add: Vec<(PortId, Box<dyn PortQueue>)>,
    ) -> Vec<Box<dyn PortQueue>> {
        let mut released = Vec::new();
        for id in remove {
            let Some(mut queue) = self.queues.get_mut(id.index()).and_then(Option::take) else { continue };
            let endpoint = || self.topology.endpoints.get(id).map(|endpoint| &endpoint.shared);
            if let Some(shared) = self.topology.port(*id).map(|port| &port.shared).or_else(endpoint) {
                count_late(&shared.counters[self.index], &mut *queue);
            }
            deregister(&self.poll, &*queue);
            released.push(queue);
        }
        // Once for all of them: a thousand may leave in one go.
        self.hot.retain(|hot| self.queues.get(hot.port.index()).is_some_and(Option::is_some));
        self.queues.resize_with(topology.ports.len().max(self.queues.len()), || None);
        self.outbox.resize(self.queues.len());
        self.topology = topology;
        let now = Instant::now();
        for (id, mut queue) in add {
            queue.prepare();
            let watched = register(&self.poll, self.index, id, &*queue);
            self.queues[id.index()] = Some(queue);
            // Frames may have come before epoll was told to look.
            self.hot.push(Hot { port: id, fresh: true, since: now, watched });
        }
        self.shared.status[self.index].generation.store(self.topology.generation, Ordering::Release);
        released
    }

    fn count_missed(&mut self) {
        for (port, queue) in self.topology.ports.iter().zip(&mut self.queues) {
            if let (Some(port), Some(queue)) = (port, queue) {
                count_late(&port.shared.counters[self.index], &mut **queue);
            }
        }
        for (id, endpoint) in &self.topology.endpoints {
            if let Some(Some(queue)) = self.queues.get_mut(id.index()) {
                count_late(&endpoint.shared.counters[self.index], &mut **queue);
            }
        }
    }
}

/// Counts what a queue knows of only when it is asked.
fn count_late(counters: &Counters, queue: &mut dyn PortQueue) {
    counters.drop_frames(DropReason::RxMissed, queue.take_missed());
    counters.drop_frames(DropReason::TxError, queue.take_lost());
}

enum Served {
    Frames,
    Nothing,
    Gone,
}

/// Whether epoll watches the queue now, if there is anything to watch.
fn register(poll: &Poll, worker: usize, id: PortId, queue: &dyn PortQueue) -> bool {
    let Some(fd) = queue.fd() else { return true };
    let mut source = SourceFd(&fd.as_raw_fd());
    let registered = poll.registry().register(&mut source, Token(id.index()), Interest::READABLE);
    if let Err(error) = &registered {
        tracing::error!(worker, port = id.0, %error, "cannot watch the port");
    }
    registered.is_ok()
}

fn deregister(poll: &Poll, queue: &dyn PortQueue) {
    // Not registered, or its fd already forgotten by epoll: either way it is not watched.
    if let Some(fd) = queue.fd() {
        let _ = poll.registry().deregister(&mut SourceFd(&fd.as_raw_fd()));
    }
}
