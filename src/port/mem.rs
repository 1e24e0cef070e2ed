//! `mem` ports: two queues in memory, for tests and benches.
//!
//! A [`MemPort`] is the far end: it gives frames to the switch and takes what the switch sends. Its queues are bounded like
//! a device's; what the switch sends into a full one is dropped under `tx_full`. With several workers the
//! first one receives.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Health, Inbound, OpenPort, PortQueue, Received};
use crate::batch::{BATCH_FRAMES, Batch, FRAME_MAX};
use crate::frame::Outgoing;
use crate::offload::{Capabilities, Offload, VNET_HDR_LEN};
use crate::stats::{Counters, DropReason};

/// A frame outside the switch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemFrame {
    /// From the destination address on, without FCS.
    pub bytes: Vec<u8>,
    /// What its sender left to do.
    pub offload: Offload,
}

/// The far end of a port in memory. Clones are the same port.
#[derive(Clone, Debug)]
pub struct MemPort(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    capabilities: Capabilities,
    mtu: u32,
    to_switch: (Sender<MemFrame>, Receiver<MemFrame>),
    from_switch: (Sender<MemFrame>, Receiver<MemFrame>),
    /// Readable while frames wait for the switch.
    bell: OwnedFd,
}

impl PartialEq for MemPort {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for MemPort {}

impl MemPort {
    /// Frames that a queue of either direction holds.
    pub const QUEUE_FRAMES: usize = 4096;

    /// A port that takes from the switch what `capabilities` says.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new(capabilities: Capabilities, mtu: u32) -> std::io::Result<MemPort> {
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(MemPort(Arc::new(Inner {
            capabilities,
            mtu,
            to_switch: bounded(Self::QUEUE_FRAMES),
            from_switch: bounded(Self::QUEUE_FRAMES),
            bell: bell.as_fd().try_clone_to_owned()?,
        })))
    }

    /// Gives a frame to the switch; `false` when the queue is full or the frame longer than any device's.
    #[must_use]
    pub fn send(&self, frame: MemFrame) -> bool {
        if frame.bytes.len() > FRAME_MAX || self.0.to_switch.0.try_send(frame).is_err() {
            return false;
        }
        self.ring()
    }

    /// Takes a frame that the switch sent, waiting up to `timeout`.
    #[must_use]
    pub fn receive(&self, timeout: std::time::Duration) -> Option<MemFrame> {
        self.0.from_switch.1.recv_timeout(timeout).ok()
    }

    fn ring(&self) -> bool {
        let Ok(bell) = self.0.bell.try_clone() else { return false };
        // EAGAIN is a counter at its maximum: it rings already.
        std::fs::File::from(bell).write_all(&1u64.to_ne_bytes()).is_ok()
    }

    pub(super) fn open(&self, workers: usize) -> OpenPort {
        let queue = |receives| MemQueue { port: self.clone(), receives };
        OpenPort {
            queues: (0..workers).map(|w| Box::new(queue(w == 0)) as Box<dyn PortQueue>).collect(),
            receiving: 1,
            capabilities: self.0.capabilities,
            ifindex: None,
            mtu: self.0.mtu,
            strict_mtu: false,
            keep: Vec::new(),
            watches: Vec::new(),
            link: None,
            made: None,
        }
    }
}

#[derive(Debug)]
struct MemQueue {
    port: MemPort,
    receives: bool,
}

impl PortQueue for MemQueue {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.receives.then(|| self.port.0.bell.as_fd())
    }

    fn receive(&mut self, batch: &mut Batch, inbound: &Inbound<'_>) -> Received {
        let counters = inbound.counters;
        // Silence the bell first: who rings after this is heard by the loop below or rings again.
        let _ = crate::sys::read(self.port.0.bell.as_fd(), &mut [0; 8]);
        // Bounded by tries, not by frames taken: a sender of nonsense must not keep the worker here.
        for _ in 0..BATCH_FRAMES {
            if batch.is_full() {
                break;
            }
            let Ok(frame) = self.port.0.to_switch.1.try_recv() else { return Received::Drained };
            // As a device would: what the frame says of itself is checked, not believed.
            let (header, rest) = batch.spare().split_at_mut(VNET_HDR_LEN);
            if let Some(header) = header.first_chunk_mut() {
                frame.offload.to_virtio(header);
            }
            rest[..frame.bytes.len()].copy_from_slice(&frame.bytes);
            if batch.take(frame.bytes.len(), None).is_err() {
                counters.drop_frame(DropReason::BadOffload);
            }
        }
        Received::More
    }

    fn transmit(&mut self, frames: &[Outgoing<'_>], counters: &Counters) -> Health {
        for frame in frames {
            let slices = frame.slices();
            let [header, bytes @ ..] = slices;
            let len = frame.frame_len();
            let offload = header.first_chunk().and_then(|header| Offload::from_virtio(header, len).ok());
            let frame_out = MemFrame { bytes: bytes.concat(), offload: offload.unwrap_or_default() };
            match self.port.0.from_switch.0.try_send(frame_out) {
                Ok(()) => counters.sent(len, frame.segments()),
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                    counters.drop_frame(DropReason::TxFull)
                }
            }
        }
        Health::Alive
    }
}
