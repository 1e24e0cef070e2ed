//! A thread of a port's own that does all that touches its guest's memory.
//!
//! Whoever touches memory that a front end shares waits in the page fault for as long as the front end likes to make it: the kernel lets
//! nobody have a page of a file of which a part is being taken away (`fallocate` with `FALLOC_FL_PUNCH_HOLE`), and taking
//! gigabytes away takes most of a second. A worker that waits there serves no port of any bridge. The kernel has no access that fails instead:
//! - A seal (`F_SEAL_FUTURE_WRITE`) forbids holes, but also the balloon of a guest, and that a vswitchd which is started again maps the
//!   file; and QEMU seals its files against further seals.
//! - Pages that are locked or populated beforehand (`mlock`, `MADV_POPULATE_WRITE`) go with the hole all the same.
//! - Looking first (`mincore`, `RWF_NOWAIT`) is a system call a frame, and a race.
//!
//! So for guests that are not trusted this far, the port has a thread ([`Own`]) that takes frames out of the guest's rings and puts
//! frames into them. It is the one user of the rings' [`Queue`]s. Between it and each worker is a [`Pipe`], whose lock nobody holds while
//! memory of the guest is touched; workers have [`Relay`]s in the place of queues. The thread that waits then keeps its own port's frames
//! waiting, and nobody else's.
//!
//! The price: a copy more, and a wake-up more for each burst. Frames that do not fit a pipe towards the guest are dropped there (`tx_full`); those
//! of the guest stay in its ring until there is room.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arrayvec::ArrayVec;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Queue, Rings};
use crate::batch::{BATCH_BYTES, BATCH_FRAMES, Batch, FRAME_MAX};
use crate::frame::Outgoing;
use crate::offload::VNET_HDR_LEN;
use crate::port::{Health, Inbound, PortQueue, Received};
use crate::stats::{Counters, DropReason};
use crate::topology::PortShared;

/// Before each frame of a pipe: its length without offload header, and the wire frames it stands for; 32 bits each.
const RECORD_LEN: usize = 8;
/// What a batch takes of a pipe at most.
const ONE_BATCH: usize = BATCH_BYTES + FRAME_MAX + BATCH_FRAMES * (RECORD_LEN + VNET_HDR_LEN);
/// Bytes of a pipe.
const PIPE_LEN: usize = 2 * ONE_BATCH;

/// Frames on their way between a worker and the thread, in order. Its buffers are made once and change places.
#[derive(Debug)]
struct Pipe(Mutex<Vec<u8>>);

impl Pipe {
    fn new() -> Pipe {
        Pipe(Mutex::new(Vec::with_capacity(PIPE_LEN)))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Takes all that is there, for an empty buffer.
    fn take(&self, empty: &mut Vec<u8>) {
        empty.clear();
        std::mem::swap(&mut *self.lock(), empty);
    }
}

/// Appends a frame, with its offload header, in as many pieces as it has; `false`: there is no room.
fn append<'a>(
    bytes: &mut Vec<u8>,
    len: usize,
    segments: u32,
    slices: impl IntoIterator<Item = &'a [u8]>,
) -> bool {
    if bytes.len() + RECORD_LEN + VNET_HDR_LEN + len > PIPE_LEN {
        return false;
    }
    // Less than a pipe.
    #[allow(clippy::cast_possible_truncation)]
    let len = len as u32;
    bytes.extend(len.to_ne_bytes());
    bytes.extend(segments.to_ne_bytes());
    slices.into_iter().for_each(|slice| bytes.extend_from_slice(slice));
    true
}

/// The frame that begins at `at`, with its offload header, and what it stands for; and where the next one begins.
fn next(bytes: &[u8], at: usize) -> Option<(&[u8], u32, usize)> {
    let (words, rest) = bytes.get(at..)?.split_at_checked(RECORD_LEN)?;
    let [len, segments] =
        [&words[..4], &words[4..]].map(|word| word.first_chunk().map_or(0, |w| u32::from_ne_bytes(*w)));
    let len = VNET_HDR_LEN + len as usize;
    Some((rest.get(..len)?, segments, at + RECORD_LEN + len))
}

/// What the thread and the workers share.
#[derive(Debug)]
struct Shared {
    /// From the guest, to the worker that takes them.
    inward: Pipe,
    /// Towards the guest, one a worker.
    outward: Box<[Pipe]>,
    /// Wakes that worker.
    worker_bell: EventFd,
    /// Whether it waits for its bell.
    worker_listens: AtomicBool,
    /// Wakes the thread.
    bell: EventFd,
    /// Whether it sleeps.
    sleeps: AtomicBool,
    /// Whether it does so until there is room for frames from the guest.
    is_held_up: AtomicBool,
    ends: AtomicBool,
}

impl Shared {
    fn wake(&self) {
        if self.sleeps.load(Ordering::SeqCst) && self.sleeps.swap(false, Ordering::SeqCst) {
            // Nobody else has it: one that is full is heard already, and does not block.
            let _ = self.bell.write(1);
        }
    }
}

/// One worker's end of the pipes.
#[derive(Debug)]
struct Relay {
    shared: Arc<Shared>,
    worker: usize,
    /// Whether it takes what the guest sends.
    receives: bool,
    /// What it has taken out of the pipe, and how far it got.
    taken: Vec<u8>,
    at: usize,
    listening: bool,
}

impl Relay {
    fn silence(&self) {
        let _ = self.shared.worker_bell.read();
    }

    fn has_more(&self) -> bool {
        self.at < self.taken.len() || !self.shared.inward.is_empty()
    }
}

impl PortQueue for Relay {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.receives.then(|| self.shared.worker_bell.as_fd())
    }

    fn listen(&mut self, on: bool) {
        if !self.receives {
            return;
        }
        self.listening = on;
        self.shared.worker_listens.store(on, Ordering::SeqCst);
        if on {
            self.silence();
            if self.has_more() {
                let _ = self.shared.worker_bell.write(1);
            }
        }
    }

    fn receive(&mut self, batch: &mut Batch, inbound: &Inbound<'_>) -> Received {
        if !self.receives {
            return Received::Drained;
        }
        if self.listening {
            self.silence();
        }
        if self.at >= self.taken.len() {
            self.at = 0;
            self.shared.inward.take(&mut self.taken);
            if self.taken.is_empty() {
                return Received::Drained;
            }
            if self.shared.is_held_up.swap(false, Ordering::SeqCst) {
                self.shared.wake();
            }
        }
        while !batch.is_full() {
            let Some((frame, _, after)) = next(&self.taken, self.at) else { break };
            batch.spare()[..frame.len()].copy_from_slice(frame);
            if batch.take(frame.len() - VNET_HDR_LEN, None).is_err() {
                inbound.counters.drop_frame(DropReason::BadOffload);
            }
            self.at = after;
        }
        if self.has_more() { Received::More } else { Received::Drained }
    }

    fn transmit(&mut self, frames: &[Outgoing<'_>], counters: &Counters) -> Health {
        let mut refused = 0;
        let mut bytes = self.shared.outward[self.worker].lock();
        for frame in frames {
            if !append(&mut bytes, frame.frame_len(), frame.segments(), frame.slices()) {
                refused += 1;
            }
        }
        drop(bytes);
        if refused > 0 {
            counters.drop_frames(DropReason::TxFull, refused);
        }
        self.shared.wake();
        Health::Alive
    }
}

/// The thread, as its port has it. Dropping it ends the thread, or leaves it alone if it waits for its front end for longer than `GRACE`.
#[derive(Debug)]
pub(super) struct Own {
    shared: Arc<Shared>,
    rings: Arc<Rings>,
    thread: Option<(JoinHandle<()>, Receiver<()>)>,
}

impl Own {
    /// A port's, whose rings no worker uses, and the workers' ends. `first` takes what the guest sends.
    pub(super) fn new(
        rings: &Arc<Rings>,
        workers: usize,
        first: usize,
    ) -> io::Result<(Own, Vec<Box<dyn PortQueue>>)> {
        let eventfd = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let shared = Arc::new(Shared {
            inward: Pipe::new(),
            outward: (0..workers).map(|_| Pipe::new()).collect(),
            worker_bell: eventfd()?,
            worker_listens: AtomicBool::new(true),
            bell: eventfd()?,
            sleeps: AtomicBool::new(false),
            is_held_up: AtomicBool::new(false),
            ends: AtomicBool::new(false),
        });
        let relay = |worker| {
            let receives = worker == first % workers;
            let taken = Vec::with_capacity(if receives { PIPE_LEN } else { 0 });
            let shared = Arc::clone(&shared);
            Box::new(Relay { shared, worker, receives, taken, at: 0, listening: true }) as Box<dyn PortQueue>
        };
        let relays = (0..workers).map(relay).collect();
        Ok((Own { shared, rings: Arc::clone(rings), thread: None }, relays))
    }

    /// Begins; counts with the last of the port's counters, which no worker has.
    pub(super) fn start(&mut self, port: Arc<PortShared>) -> io::Result<()> {
        let (shared, rings) = (Arc::clone(&self.shared), Arc::clone(&self.rings));
        let (ends, ended) = crossbeam_channel::bounded(0);
        let run = move || {
            // Told by going, however the thread ends.
            let _ends: crossbeam_channel::Sender<()> = ends;
            if let Some(counters) = port.counters.last() {
                Carrier::new(shared, &rings).run(counters);
            }
        };
        let handle = crate::sys::thread::spawn("vhost-user-own", run)?;
        self.thread = Some((handle, ended));
        Ok(())
    }

    /// Whether it carries frames.
    pub(super) fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|(thread, _)| !thread.is_finished())
    }

    /// Ends it within this time; `false`: it is left alone.
    pub(super) fn end(&mut self, grace: Duration) -> bool {
        let Some((handle, ended)) = self.thread.take() else { return true };
        self.shared.ends.store(true, Ordering::SeqCst);
        let _ = self.shared.bell.write(1);
        if ended.recv_timeout(grace) == Err(RecvTimeoutError::Timeout) {
            return false;
        }
        if handle.join().is_err() {
            tracing::error!("the thread of a vhost-user port panicked");
        }
        true
    }
}

/// What the thread works with.
struct Carrier {
    shared: Arc<Shared>,
    /// As workers would have them: the first takes from the guest, each puts into its receive queues what comes from its worker.
    queues: Vec<Queue>,
    batch: Batch,
    taken: Vec<u8>,
}

impl Carrier {
    fn new(shared: Arc<Shared>, rings: &Arc<Rings>) -> Carrier {
        let workers = shared.outward.len();
        let queues = (0..workers).map(|worker| Queue::new(Arc::clone(rings), worker, workers)).collect();
        Carrier { shared, queues, batch: Batch::default(), taken: Vec::with_capacity(PIPE_LEN) }
    }

    fn run(mut self, counters: &Counters) {
        self.queues[0].prepare();
        self.queues[0].listen(false);
        while !self.shared.ends.load(Ordering::SeqCst) {
            let inward = self.take_from_guest(counters);
            let outward = self.give_to_guest(counters);
            if !inward && !outward {
                self.sleep();
            }
        }
    }

    /// Frames from the guest, unless its worker has not come for the last; whether there may be more.
    fn take_from_guest(&mut self, counters: &Counters) -> bool {
        if !self.has_room() {
            return false;
        }
        self.batch.clear();
        let inbound = Inbound { counters, demux: None, worker: 0 };
        let received = self.queues[0].receive(&mut self.batch, &inbound);
        if self.batch.is_lent() {
            self.batch.fetch();
            self.queues[0].take_back();
        }
        if self.batch.frames.is_empty() {
            return received == Received::More;
        }
        let mut bytes = self.shared.inward.lock();
        for frame in &self.batch.frames {
            let whole = self.batch.with_header(frame);
            // There is room for a batch.
            append(&mut bytes, frame.len(), u32::from(frame.segments), [whole]);
        }
        drop(bytes);
        if self.shared.worker_listens.load(Ordering::SeqCst) {
            let _ = self.shared.worker_bell.write(1);
        }
        true
    }

    fn has_room(&self) -> bool {
        self.shared.inward.lock().len() + ONE_BATCH <= PIPE_LEN
    }

    /// Frames from all workers; whether there were any.
    fn give_to_guest(&mut self, counters: &Counters) -> bool {
        let mut any = false;
        for (pipe, queue) in self.shared.outward.iter().zip(&mut self.queues) {
            pipe.take(&mut self.taken);
            let mut at = 0;
            while at < self.taken.len() {
                let mut frames = ArrayVec::<_, BATCH_FRAMES>::new();
                while let Some((bytes, segments, after)) = next(&self.taken, at)
                    && frames.try_push(Outgoing::Whole { bytes, segments }).is_ok()
                {
                    at = after;
                }
                if frames.is_empty() {
                    break;
                }
                queue.transmit(&frames, counters);
                queue.flush();
                any = true;
            }
        }
        any
    }

    /// Until there is something to do, on either side.
    fn sleep(&mut self) {
        self.shared.sleeps.store(true, Ordering::SeqCst);
        let has_room = self.has_room();
        self.shared.is_held_up.store(!has_room, Ordering::SeqCst);
        if has_room {
            self.queues[0].listen(true);
        }
        let waits = self.shared.outward.iter().any(|pipe| !pipe.is_empty());
        if !waits && !self.shared.ends.load(Ordering::SeqCst) && has_room == self.has_room() {
            let mut fds = ArrayVec::<_, 2>::new();
            fds.push(PollFd::new(self.shared.bell.as_fd(), PollFlags::POLLIN));
            // A guest whose frames there is no room for may kick as it likes.
            if let (true, Some(kicks)) = (has_room, self.queues[0].fd()) {
                fds.push(PollFd::new(kicks, PollFlags::POLLIN));
            }
            let _ = poll(&mut fds, PollTimeout::NONE);
        }
        self.shared.sleeps.store(false, Ordering::SeqCst);
        let _ = self.shared.bell.read();
        if has_room {
            self.queues[0].listen(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_through_a_pipe_in_order_until_it_is_full() {
        let pipe = Pipe::new();
        let frame = [[7; VNET_HDR_LEN].as_slice(), &[1; 60], &[2; 4]];
        let mut sent = 0;
        while append(&mut pipe.lock(), 64, sent, frame) {
            sent += 1;
        }
        assert!(sent as usize >= 2 * BATCH_FRAMES, "{sent}");
        let mut taken = Vec::with_capacity(PIPE_LEN);
        pipe.take(&mut taken);
        assert!(pipe.is_empty() && taken.len() <= PIPE_LEN && taken.capacity() == PIPE_LEN);
        let (mut at, mut received) = (0, 0);
        while let Some((bytes, segments, after)) = next(&taken, at) {
            assert_eq!((bytes, segments), (&frame.concat()[..], received));
            (at, received) = (after, received + 1);
        }
        assert_eq!((at, received), (taken.len(), sent));
        // The buffers change places, and neither is made anew.
        pipe.take(&mut taken);
        assert!(taken.is_empty() && pipe.lock().capacity() == PIPE_LEN);
    }
}
