//! How a new topology is handed over, in every order that shuttle can think of.
//!
//! This is a model: the channels, wakers and Arcs of `src/worker.rs`, `src/switch/crew.rs` and `src/switch/control.rs` in
//! shuttle's own threads, because the real ones sleep in epoll, which shuttle cannot see into. It follows
//! them step by step and must be changed with them:
//!
//! - control: build the topology, send every worker its `Apply`, wake it, collect all acknowledgements; then close the
//!   devices of ports that left, flush the stations behind them, and only then use their ids again;
//! - worker: look for commands, serve its queues on the topology it has (learn, send), and sleep until woken when
//!   nothing is left to do; acknowledge with the queues it gives up, after the new topology has replaced the old.
//!
//! Not in the model: a worker that is more than two seconds late (ids then rest, see `Control::release_ids`), and when a worker
//! takes a queue out of its epoll.
//!
//! What must hold: no worker touches a closed device; after the flush nothing is learned for the port that left, even if
//! its id is taken again at once; nobody keeps the old topology; nobody sleeps through a command (a deadlock to shuttle).
//! `src/pipeline/tests/switch.rs` does the same to the real thing, without control over the order.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

use std::collections::BTreeMap;

use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::sync::mpsc::{Receiver, Sender, channel};
use shuttle::sync::{Arc, Condvar, Mutex};
use shuttle::thread;

type PortId = usize;
/// Which device a station was heard on; no two ports ever have the same.
type Device = u32;

/// A sticky doorbell, as an eventfd in epoll is.
#[derive(Default)]
struct Waker {
    rung: Mutex<bool>,
    bell: Condvar,
}

impl Waker {
    fn wake(&self) {
        *self.rung.lock().unwrap() = true;
        self.bell.notify_one();
    }

    fn sleep(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.bell.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// One worker's queue of a device that all workers share.
struct Queue {
    device: Device,
    open: Arc<AtomicBool>,
    /// Frames that wait to be received.
    waiting: u32,
}

impl Queue {
    fn touch(&self) {
        assert!(self.open.load(Ordering::SeqCst), "a closed device is used");
    }
}

struct Topology {
    ports: Vec<PortId>,
    /// The stations of the bridge: on which port each device's was heard.
    fdb: Arc<Mutex<BTreeMap<Device, PortId>>>,
}

enum Command {
    Apply {
        topology: Arc<Topology>,
        remove: Vec<PortId>,
        add: Vec<(PortId, Queue)>,
        done: Sender<Vec<Queue>>,
    },
    Stop,
}

struct Worker {
    commands: Receiver<Command>,
    waker: Arc<Waker>,
    topology: Arc<Topology>,
    queues: BTreeMap<PortId, Queue>,
}

impl Worker {
    fn run(mut self) {
        loop {
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Stop => return,
                    Command::Apply { topology, remove, add, done } => {
                        let released = remove.iter().filter_map(|id| self.queues.remove(id)).collect();
                        self.topology = topology;
                        self.queues.extend(add);
                        let _ = done.send(released);
                    }
                }
            }
            if !self.serve() {
                self.waker.sleep();
            }
        }
    }

    /// One frame of each queue that has some: learned, then sent by every other port.
    fn serve(&mut self) -> bool {
        let ports: Vec<PortId> = self.queues.keys().copied().collect();
        let mut worked = false;
        for from in ports {
            if !self.topology.ports.contains(&from) {
                continue;
            }
            let Some(queue) = self.queues.get_mut(&from).filter(|queue| queue.waiting > 0) else { continue };
            queue.touch();
            queue.waiting -= 1;
            worked = true;
            let device = queue.device;
            self.topology.fdb.lock().unwrap().insert(device, from);
            let others = self.topology.ports.iter().filter(|&&to| to != from);
            others.filter_map(|to| self.queues.get(to)).for_each(Queue::touch);
        }
        worked
    }
}

/// What the control side does when it should not yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Haste {
    None,
    /// Closes before every worker has answered.
    Close,
    /// Flushes before every worker has answered.
    Flush,
    /// Does not wake.
    Silence,
}

struct Control {
    haste: Haste,
    workers: Vec<(Sender<Command>, Arc<Waker>, thread::JoinHandle<()>)>,
    fdb: Arc<Mutex<BTreeMap<Device, PortId>>>,
    ports: BTreeMap<PortId, (Device, Arc<AtomicBool>)>,
    devices: Device,
}

impl Control {
    fn start(workers: usize, haste: Haste) -> Control {
        let fdb = Arc::new(Mutex::new(BTreeMap::new()));
        let hire = |_| {
            let (sender, commands) = channel();
            let waker = Arc::new(Waker::default());
            let topology = Arc::new(Topology { ports: Vec::new(), fdb: Arc::clone(&fdb) });
            let worker = Worker { commands, waker: Arc::clone(&waker), topology, queues: BTreeMap::new() };
            (sender, waker, thread::spawn(move || worker.run()))
        };
        let workers = (0..workers).map(hire).collect();
        Control { haste, workers, fdb, ports: BTreeMap::new(), devices: 0 }
    }

    fn add_port(&mut self, id: PortId) {
        self.devices += 1;
        let open = Arc::new(AtomicBool::new(true));
        self.ports.insert(id, (self.devices, Arc::clone(&open)));
        self.publish(None, Some((id, self.devices, open)));
    }

    fn del_port(&mut self, id: PortId) {
        let (device, open) = self.ports.remove(&id).expect("a port");
        if self.haste == Haste::Close {
            open.store(false, Ordering::SeqCst);
        }
        if self.haste == Haste::Flush {
            self.flush(id);
        }
        self.publish(Some(id), None);
        open.store(false, Ordering::SeqCst);
        if self.haste != Haste::Flush {
            self.flush(id);
        }
        assert!(!self.fdb.lock().unwrap().contains_key(&device), "learned after the flush");
    }

    fn flush(&self, id: PortId) {
        self.fdb.lock().unwrap().retain(|_, port| *port != id);
    }

    fn publish(&self, remove: Option<PortId>, add: Option<(PortId, Device, Arc<AtomicBool>)>) {
        let ports = self.ports.keys().copied().collect();
        let topology = Arc::new(Topology { ports, fdb: Arc::clone(&self.fdb) });
        let (done, answers) = channel();
        for (commands, waker, _) in &self.workers {
            let queue = |(id, device, open): &(PortId, Device, Arc<AtomicBool>)| {
                (*id, Queue { device: *device, open: Arc::clone(open), waiting: 2 })
            };
            let apply = Command::Apply {
                topology: Arc::clone(&topology),
                remove: remove.into_iter().collect(),
                add: add.iter().map(queue).collect(),
                done: done.clone(),
            };
            commands.send(apply).unwrap();
            if self.haste != Haste::Silence {
                waker.wake();
            }
        }
        let released: Vec<_> = self.workers.iter().map(|_| answers.recv().expect("an answer")).collect();
        assert_eq!(released.iter().flatten().count(), if remove.is_some() { self.workers.len() } else { 0 });
        assert_eq!(Arc::strong_count(&topology), self.workers.len() + 1, "nobody runs on another");
    }

    fn stop(self) {
        for (commands, waker, _) in &self.workers {
            commands.send(Command::Stop).unwrap();
            waker.wake();
        }
        self.workers.into_iter().for_each(|(_, _, thread)| thread.join().unwrap());
    }
}

/// Two ports; one leaves under traffic, its id is taken at once, and that port leaves, too.
fn scene(haste: Haste) {
    let mut control = Control::start(2, haste);
    control.add_port(0);
    control.add_port(1);
    control.del_port(1);
    control.add_port(1);
    control.del_port(1);
    let known: Vec<PortId> = control.fdb.lock().unwrap().values().copied().collect();
    assert!(known.iter().all(|&id| id == 0));
    control.stop();
}

fn in_many_orders(haste: Haste) {
    shuttle::check_random(move || scene(haste), 3000);
    shuttle::check_pct(move || scene(haste), 3000, 3);
}

#[test]
fn a_topology_is_handed_over() {
    in_many_orders(Haste::None);
}

#[test]
#[should_panic(expected = "a closed device is used")]
fn closing_before_all_have_answered_would_be_seen() {
    in_many_orders(Haste::Close);
}

#[test]
#[should_panic(expected = "learned after the flush")]
fn flushing_before_all_have_answered_would_be_seen() {
    in_many_orders(Haste::Flush);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_worker_that_is_not_woken_would_be_seen() {
    in_many_orders(Haste::Silence);
}
