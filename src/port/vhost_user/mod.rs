//! `vhost-user` ports: the network card of a guest, without a kernel between.
//!
//! The guest's front end (QEMU, DPDK's virtio-user) shares the guest's memory and its virtqueues with us over a Unix socket
//! (QEMU's `docs/interop/vhost-user.rst`). A thread a port speaks that protocol (`link.rs`, `device.rs`); workers own the rings ([`crate::virtio`]).
//!
//! **One copy.** A long frame's end stays in the memory of the guest that sent it, and is copied from there to where it goes: between two guests that
//! is all the copying there is. Until its batch has left, the ring is lending, and its chains are not given back.
//!
//! **A thread of its own.** A port may have one that does all of this in the workers' place, so that none of them waits for memory of the guest's (`own.rs`).
//!
//! **Who has a ring.** It lies in a slot behind a mutex, taken once a batch, and once more after one to which it lent. From a slot's transmit queue only one worker
//! takes frames, and a receive queue is that of all workers with more workers than queues; the protocol's thread takes the mutex to put a ring in or out, which is
//! rare and short, and waits for a ring that is lending. So a ring that has been taken out is used by nobody, whatever the workers do at that moment, and no hand-over of the
//! topology is needed when a guest boots. Which slots have a ring is also in two atomic words, so that an empty port costs a load.
//!
//! Queues have the guest's names: what it sends comes out of a *transmit* queue, what we send goes into a *receive* queue.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::errno::Errno;

use super::{Health, Inbound, OpenPort, PortQueue, Received};
use crate::addr::MacAddr;
use crate::batch::Batch;
use crate::frame::Outgoing;
use crate::offload::{Capabilities, VNET_HDR_LEN};
use crate::spec::VhostUserSpec;
use crate::stats::{Counters, DropReason};
use crate::sys;
use crate::sys::bells::Bells;
use crate::sys::caller::{self, Hindrance};
use crate::virtio::Fault;
use crate::virtio::net::{NetRing, Outcome};
use crate::virtio::ring::Budget;
use crate::wire::arp;

mod device;
mod link;
mod messages;
mod own;

pub use link::Link;
use own::Own;

/// Most queue pairs of a port: bits of a word.
pub const PAIRS_MAX: u16 = 64;
/// Queue pairs that a guest may use unless told otherwise. One that is not used costs nothing.
pub const PAIRS_DEFAULT: u16 = 16;

/// Refuses a path or a number of queues that is none.
pub(super) fn check(spec: &VhostUserSpec) -> Result<(), sys::Error> {
    let pairs = spec.queues.unwrap_or(PAIRS_DEFAULT);
    if !(1..=PAIRS_MAX).contains(&pairs) {
        let what = format!("{pairs} queues; a vhost-user port takes 1 to {PAIRS_MAX}");
        return Err(sys::Error::refused(io::ErrorKind::InvalidInput, what));
    }
    sys::unix::check_path(&spec.path)
}

pub(super) fn open(spec: &VhostUserSpec, workers: usize) -> Result<OpenPort, sys::Error> {
    check(spec)?;
    let pairs = spec.queues.unwrap_or(PAIRS_DEFAULT);
    // Guests with one queue each are shared out among the workers.
    let first = spec.path.as_os_str().as_encoded_bytes().iter().map(|&byte| usize::from(byte)).sum();
    // With a thread of its own, that is the one user of its rings.
    let users = if spec.own_thread { 1 } else { workers };
    let rings = Rings::new(usize::from(pairs), users, first)
        .map_err(|source| sys::Error::new("cannot make an epoll instance", source))?;
    let rings = Arc::new(rings);
    let queue = |worker| Box::new(Queue::new(Arc::clone(&rings), worker, workers)) as Box<dyn PortQueue>;
    let (own, queues) = if spec.own_thread {
        let (own, queues) = Own::new(&rings, workers, first)
            .map_err(|source| sys::Error::new("cannot make an eventfd", source))?;
        (Some(own), queues)
    } else {
        (None, (0..workers).map(queue).collect())
    };
    Ok(OpenPort {
        queues,
        receiving: usize::from(pairs),
        // What of these holds is seen when a guest has come.
        capabilities: Capabilities { csum: true, tso4: true, tso6: true, uso: true },
        ifindex: None,
        mtu: spec.mtu(),
        strict_mtu: false,
        keep: Vec::new(),
        watches: Vec::new(),
        link: Some(Link::open(spec, rings, own)?),
        made: None,
    })
}

/// One of a pair of virtqueues.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// The guest receives by it.
    Receive,
    /// The guest sends by it.
    Transmit,
}

/// A virtqueue's place: even indices are receive queues (virtio 1.2, section 5.1.2).
#[derive(Clone, Copy, Debug)]
struct QueueIndex {
    pair: usize,
    kind: Kind,
}

impl QueueIndex {
    fn new(index: usize) -> QueueIndex {
        let kind = if index.is_multiple_of(2) { Kind::Receive } else { Kind::Transmit };
        QueueIndex { pair: index / 2, kind }
    }
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Slot {
    ring: Mutex<Held>,
    /// Rung when a ring that is waited for is not lending any more.
    rests: Condvar,
}

/// What is in a slot.
#[derive(Debug, Default)]
struct Held {
    ring: Option<NetRing>,
    /// Whether somebody waits until the ring, which lends memory to the batch that a worker has in hand, has taken it back.
    awaited: bool,
}

impl Slot {
    /// For the worker that takes frames from it, which knows what it has in hand, and for those that put frames into it.
    fn lock(&self) -> MutexGuard<'_, Held> {
        // A worker that panics ends the process; the protocol's thread leaves a ring or none.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For whoever puts a ring in or takes one out: with nothing lent. A batch is soon through.
    fn lock_at_rest(&self) -> MutexGuard<'_, Held> {
        let mut held = self.lock();
        while held.ring.as_ref().is_some_and(NetRing::is_lending) {
            held.awaited = true;
            held = self.rests.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        held
    }

    /// Has the ring take back what it lent.
    fn take_back(&self) {
        let mut held = self.lock();
        if let Some(ring) = &mut held.ring {
            ring.take_back();
        }
        if std::mem::take(&mut held.awaited) {
            self.rests.notify_all();
        }
    }
}

/// What workers and the protocol's thread share of a port.
#[derive(Debug)]
struct Rings {
    receive: Box<[Slot]>,
    transmit: Box<[Slot]>,
    /// Pairs that have a ring in them: a bit each.
    receive_live: AtomicU64,
    transmit_live: AtomicU64,
    /// One a worker: rung by guests.
    bells: Box<[Bells]>,
    /// The worker that takes what comes by the first pair.
    first: usize,
    /// A guest's address that is to be announced; 0: none.
    announced: AtomicU64,
    /// Why memory of the guest was refused, until some is taken.
    refusal: Mutex<Option<String>>,
    /// Whether threads have a way to ring that never waits: one a worker, and then the protocol's.
    callers: Box<[OnceLock<Hindrance>]>,
}

impl Rings {
    fn new(pairs: usize, workers: usize, first: usize) -> io::Result<Rings> {
        let slots = || (0..pairs).map(|_| Slot::default()).collect();
        Ok(Rings {
            receive: slots(),
            transmit: slots(),
            receive_live: AtomicU64::new(0),
            transmit_live: AtomicU64::new(0),
            bells: (0..workers).map(|_| Bells::new()).collect::<io::Result<_>>()?,
            first: first % workers.max(1),
            announced: AtomicU64::new(0),
            refusal: Mutex::default(),
            callers: (0..=workers).map(|_| OnceLock::new()).collect(),
        })
    }

    fn pairs(&self) -> usize {
        self.receive.len()
    }

    fn slot(&self, index: QueueIndex) -> (&Slot, &AtomicU64) {
        match index.kind {
            Kind::Receive => (&self.receive[index.pair], &self.receive_live),
            Kind::Transmit => (&self.transmit[index.pair], &self.transmit_live),
        }
    }

    /// The worker that takes what comes by a pair.
    fn worker_of(&self, pair: usize) -> usize {
        (pair + self.first) % self.bells.len()
    }

    fn bells_of(&self, index: QueueIndex) -> Option<&Bells> {
        // Nobody waits for a guest to make room.
        (index.kind == Kind::Transmit).then(|| &self.bells[self.worker_of(index.pair)])
    }

    /// Gives a ring to the workers, which look at it at once.
    fn put(&self, index: QueueIndex, ring: NetRing) {
        let (slot, live) = self.slot(index);
        let before = slot.lock_at_rest().ring.replace(ring);
        live.fetch_or(1 << index.pair, Ordering::Release);
        drop(before);
        if let Some(bells) = self.bells_of(index) {
            bells.ring();
        }
    }

    /// Takes a ring from the workers: when this returns, none uses it.
    fn take(&self, index: QueueIndex) -> Option<NetRing> {
        let (slot, live) = self.slot(index);
        live.fetch_and(!(1 << index.pair), Ordering::Relaxed);
        slot.lock_at_rest().ring.take()
    }

    /// Has the network told where a guest is now, at the next look of the worker that takes what comes by the first pair.
    fn announce(&self, mac: MacAddr) {
        self.announced.store(mac.to_u64(), Ordering::Relaxed);
        self.bells[self.worker_of(0)].ring();
    }

    /// The announcement that waits for a worker.
    #[inline]
    fn take_announcement(&self, worker: usize) -> Option<MacAddr> {
        if self.announced.load(Ordering::Relaxed) == 0 || worker != self.worker_of(0) {
            return None;
        }
        Some(MacAddr::from_u64(self.announced.swap(0, Ordering::Relaxed)))
    }

    /// A ring that broke stays in its slot, so that it can be told why, but is looked at no more.
    #[cold]
    fn retire(&self, index: QueueIndex) {
        self.slot(index).1.fetch_and(!(1 << index.pair), Ordering::Relaxed);
    }

    /// Whether the guest receives and sends.
    fn is_live(&self) -> bool {
        self.receive_live.load(Ordering::Relaxed) != 0 && self.transmit_live.load(Ordering::Relaxed) != 0
    }

    /// Why rings have stopped, by the number of the virtqueue.
    fn faults(&self) -> Vec<(usize, Fault)> {
        let all = (0..2 * self.pairs()).filter_map(|number| {
            let (slot, _) = self.slot(QueueIndex::new(number));
            Some((number, slot.lock().ring.as_ref()?.fault()?))
        });
        all.collect()
    }

    /// Makes what a worker needs to ring front ends, which is this thread for as long as there is the port; `None`: the protocol's thread.
    fn prepare(&self, worker: Option<usize>) {
        let _ = self.callers[worker.unwrap_or(self.bells.len())].set(caller::prepare());
    }

    /// Why memory of the guest was refused, if what it shared last was.
    fn refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_refusal(&self, refusal: Option<String>) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
    }

    /// Why a front end could hold up a thread that rings it, if it could.
    fn hindrance(&self) -> Option<Errno> {
        self.callers.iter().find_map(|caller| caller.get()?.get())
    }
}

/// One worker's way in and out.
#[derive(Debug)]
struct Queue {
    rings: Arc<Rings>,
    worker: usize,
    /// Pairs whose frames this worker takes: a bit each.
    mine: u64,
    /// The pair to begin with, so that none of a busy guest's is left out.
    turn: usize,
    /// Whether the worker waits for kicks.
    listening: bool,
    /// Pairs that lend memory to the batch in hand: a bit each.
    lending: u64,
    /// What may still be done for the frames of the batch in hand.
    sending: Budget,
}

impl Queue {
    fn new(rings: Arc<Rings>, worker: usize, workers: usize) -> Queue {
        let is_mine = |&pair: &usize| rings.worker_of(pair) == worker % workers;
        let mine = (0..rings.pairs()).filter(is_mine).fold(0, |mine, pair| mine | 1 << pair);
        Queue {
            rings,
            worker,
            mine,
            turn: 0,
            listening: true,
            lending: 0,
            sending: Budget::new(Budget::SENDING),
        }
    }
}

impl Drop for Queue {
    /// The front end is still there. Once it hangs up, it goes by what the guest was shown.
    fn drop(&mut self) {
        for pair in bits(self.mine) {
            self.rings.transmit[pair].lock().ring.iter_mut().for_each(NetRing::leave);
        }
    }
}

/// Puts a frame into the batch as though the guest had sent it: a request that nobody answers, from which switches learn.
#[cold]
fn announce(mac: MacAddr, batch: &mut Batch) {
    let frame = arp::announcement(mac);
    let (header, rest) = batch.spare().split_at_mut(VNET_HDR_LEN);
    header.fill(0);
    rest[..frame.len()].copy_from_slice(&frame);
    // There is nothing in the header to be wrong.
    let _ = batch.take(frame.len(), None);
}

/// The bits of a word from one on, all once.
fn bits_from(word: u64, first: usize) -> impl Iterator<Item = usize> {
    let before = 1u64.checked_shl(u32::try_from(first).unwrap_or(u64::BITS)).map_or(u64::MAX, |bit| bit - 1);
    bits(word & !before).chain(bits(word & before))
}

fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let next = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(next)
    })
}

impl PortQueue for Queue {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.rings.bells[self.worker].as_fd())
    }

    fn prepare(&mut self) {
        self.rings.prepare(Some(self.worker));
    }

    fn listen(&mut self, on: bool) {
        self.listening = on;
        if !on {
            // The rings are told at the next look.
            return;
        }
        let bells = &self.rings.bells[self.worker];
        bells.silence();
        let live = self.rings.transmit_live.load(Ordering::Acquire) & self.mine;
        for pair in bits(live) {
            // What waits, or has broken, is for the next look.
            if self.rings.transmit[pair].lock().ring.as_mut().is_some_and(|ring| ring.wait().unwrap_or(true))
            {
                bells.ring();
            }
        }
    }

    fn receive(&mut self, batch: &mut Batch, inbound: &Inbound<'_>) -> Received {
        if self.listening {
            self.rings.bells[self.worker].silence();
        }
        if !batch.is_full()
            && let Some(mac) = self.rings.take_announcement(self.worker)
        {
            announce(mac, batch);
        }
        let live = self.rings.transmit_live.load(Ordering::Acquire) & self.mine;
        let mut received = Received::Drained;
        let mut budget = Budget::new(Budget::RECEIVING);
        for pair in bits_from(live, self.turn) {
            if batch.is_full() || budget.is_spent() {
                return Received::More;
            }
            // Held until the ring is retired: another may be put in its place.
            let mut slot = self.rings.transmit[pair].lock();
            let Some(ring) = slot.ring.as_mut() else { continue };
            let outcome = ring.receive(batch, inbound.counters, &mut budget, self.listening);
            if ring.is_lending() {
                self.lending |= 1 << pair;
            }
            match outcome {
                Ok(Outcome::Drained) => {}
                Ok(Outcome::More) => {
                    received = Received::More;
                    self.turn = pair + 1;
                    if batch.frames.is_empty() {
                        // Nothing but nonsense: the next pair's is for the next turn.
                        return received;
                    }
                }
                Err(_) => {
                    inbound.counters.drop_frame(DropReason::BadRing);
                    self.rings.retire(QueueIndex { pair, kind: Kind::Transmit });
                }
            }
        }
        received
    }

    fn transmit(&mut self, frames: &[Outgoing<'_>], counters: &Counters) -> Health {
        let live = self.rings.receive_live.load(Ordering::Acquire);
        let down = || counters.drop_frames(DropReason::PortDown, frames.len() as u64);
        if live == 0 {
            down();
            return Health::Alive;
        }
        // A worker stays with one, so that a flow stays in order.
        let nth = self.worker % live.count_ones() as usize;
        let Some(pair) = bits(live).nth(nth) else { return Health::Alive };
        let mut slot = self.rings.receive[pair].lock();
        match &mut slot.ring {
            Some(ring) => {
                if ring.transmit(frames, counters, &mut self.sending).is_err() {
                    self.rings.retire(QueueIndex { pair, kind: Kind::Receive });
                }
            }
            None => down(),
        }
        Health::Alive
    }

    fn flush(&mut self) {
        self.sending = Budget::new(Budget::SENDING);
    }

    fn takes_lent(&self) -> bool {
        true
    }

    fn take_back(&mut self) {
        for pair in bits(std::mem::take(&mut self.lending)) {
            self.rings.transmit[pair].take_back();
        }
    }
}

/// An eventfd that a front end sent.
type Eventfd = Arc<OwnedFd>;

#[cfg(test)]
mod tests;
