//! The worker threads, seen from the control side.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use mio::Waker;

use super::{Options, PollMode};
use crate::addr::PortId;
use crate::port::PortQueue;
use crate::status::WorkerStatus;
use crate::sys::thread;
use crate::topology::Topology;
use crate::worker::{Applied, Command, Event, Shared, Status, Worker};

/// How long the control side waits for a worker. A batch takes well under a millisecond.
const PATIENCE: Duration = Duration::from_secs(2);

/// The workers of a switch.
#[derive(Debug)]
pub(super) struct Crew {
    shared: Arc<Shared>,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    cpu: Option<usize>,
    commands: Sender<Command>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Crew {
    /// Starts the workers; what they have to tell arrives at `events`, and rings `bell`.
    pub(super) fn start(options: &Options, events: &Sender<Event>, bell: &Arc<Waker>) -> io::Result<Crew> {
        let number = options.workers.unwrap_or_else(thread::available_cpus).max(1);
        let shared = Arc::new(Shared {
            epoch: Instant::now(),
            poll: options.poll,
            spin_permits: AtomicUsize::new(spinners(number, options.poll)),
            status: (0..number).map(|_| Status::default()).collect(),
        });
        let mut crew = Crew { shared, members: Vec::with_capacity(number) };
        for index in 0..number {
            let cpu = (!options.cpus.is_empty()).then(|| options.cpus[index % options.cpus.len()]);
            let member = crew.hire(index, cpu, events.clone(), Arc::clone(bell))?;
            crew.members.push(member);
        }
        Ok(crew)
    }

    fn hire(
        &self,
        index: usize,
        cpu: Option<usize>,
        events: Sender<Event>,
        bell: Arc<Waker>,
    ) -> io::Result<Member> {
        let (commands, inbox) = unbounded();
        let worker = Worker::new(index, Arc::clone(&self.shared), inbox, events, bell)?;
        let waker = worker.waker();
        let (placed, outcome) = crossbeam_channel::bounded(1);
        let run = move || {
            let place = cpu.map_or(Ok(()), thread::pin_to);
            let stay = place.is_ok();
            let _ = placed.send(place);
            if stay {
                let _end = EndWithMe;
                worker.run();
            }
        };
        let thread = thread::spawn(&format!("worker-{index}"), run)?;
        outcome.recv().map_err(io::Error::other)??;
        Ok(Member { cpu, commands, waker, thread: Some(thread) })
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Seconds since the switch started.
    pub(super) fn now(&self) -> crate::bridge::fdb::Tick {
        let seconds = self.shared.epoch.elapsed().as_secs();
        crate::bridge::fdb::Tick(u32::try_from(seconds).unwrap_or(u32::MAX))
    }

    /// Hands every worker the new topology, and returns when all of them run on it, with the queues of ports in
    /// `remove`: closed earlier, the number of an fd that another worker still writes to could be reused under it.
    /// `add` has a queue for each worker.
    pub(super) fn apply(
        &self,
        topology: &Arc<Topology>,
        remove: &[PortId],
        add: Vec<(PortId, Vec<Box<dyn PortQueue>>)>,
    ) -> Vec<Applied> {
        let mut shares: Vec<Vec<_>> = self.members.iter().map(|_| Vec::new()).collect();
        for (id, queues) in add {
            for (share, queue) in shares.iter_mut().zip(queues) {
                share.push((id, queue));
            }
        }
        let (done, answers) = unbounded();
        for (member, add) in self.members.iter().zip(shares) {
            member.tell(Command::Apply {
                topology: Arc::clone(topology),
                remove: remove.to_vec(),
                add,
                done: done.clone(),
            });
        }
        drop(done);
        self.await_all(&answers, "run on the new topology")
    }

    /// The topology that every worker has reached.
    pub(super) fn generation(&self) -> u64 {
        let of = |status: &Status| status.generation.load(Ordering::Acquire);
        self.shared.status.iter().map(of).min().unwrap_or(u64::MAX)
    }

    /// Has every worker count the frames that the kernel dropped on their way to it.
    pub(super) fn count_missed(&self) {
        let (done, answers) = unbounded();
        for member in &self.members {
            member.tell(Command::CountMissed { done: done.clone() });
        }
        drop(done);
        self.await_all(&answers, "count missed frames");
    }

    /// Has one worker leave the ring of a port that the kernel has stopped filling; whether it did.
    pub(super) fn leave_ring(&self, worker: usize, port: PortId, delivered: u64) -> bool {
        let Some(member) = self.members.get(worker) else { return false };
        let (done, answer) = unbounded();
        member.tell(Command::LeaveRing { port, delivered, done });
        answer.recv_timeout(PATIENCE).unwrap_or(false)
    }

    fn await_all<T>(&self, answers: &Receiver<T>, what: &str) -> Vec<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut answered = Vec::with_capacity(self.len());
        while answered.len() < self.len() {
            match answers.recv_deadline(deadline) {
                Ok(answer) => answered.push(answer),
                Err(error) => {
                    // What it was sent stays alive with it (it holds its own reference), so waiting longer is safe, too.
                    let silent = self.len() - answered.len();
                    tracing::error!("{silent} of {} workers did not {what} in time: {error}", self.len());
                    break;
                }
            }
        }
        answered
    }

    pub(super) fn status(&self) -> Vec<WorkerStatus> {
        let of = |(member, status): (&Member, &Status)| WorkerStatus {
            cpu: member.cpu,
            busy_turns: status.busy_turns.get(),
            sleeps: status.sleeps.get(),
            generation: status.generation.load(Ordering::Acquire),
        };
        self.members.iter().zip(&self.shared.status).map(of).collect()
    }

    /// Ends the threads; their queues close with them.
    pub(super) fn stop(&mut self) {
        for member in &self.members {
            member.tell(Command::Stop);
        }
        for member in &mut self.members {
            if member.thread.take().is_some_and(|thread| thread.join().is_err()) {
                tracing::error!("a worker panicked");
            }
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Member {
    fn tell(&self, command: Command) {
        // A worker that ended has dropped its end; whoever waits for its answer says so.
        let _ = self.commands.send(command);
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake a worker");
        }
    }
}

/// A switch without one of its workers would say "up" and forward nothing of that worker's flows, for ever: it had better
/// end and be started again.
struct EndWithMe;

impl Drop for EndWithMe {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a worker panicked; the process ends");
            std::process::abort();
        }
    }
}

/// How many workers may spin at once: all CPUs but one, so that the programs whose frames they wait for can run.
fn spinners(workers: usize, poll: PollMode) -> usize {
    match poll {
        PollMode::Adaptive => workers.min(thread::available_cpus().saturating_sub(1)),
        PollMode::Busy | PollMode::Wait => 0,
    }
}
