//! `dgram` ports: a frame a Unix datagram, to and from one peer, as QEMU's `-netdev dgram` has them.
//!
//! The switch's socket is connected to the peer's while somebody is there ([`endpoint`]), as a stream's is: then the port is up, the kernel
//! takes nothing from others, and a worker sends without a path to be looked up. A worker that is refused says that the device is gone; the
//! control side finds the peer that comes next. Sending each frame by the peer's path was rejected: it costs a look-up a frame, and goes
//! wherever a link there leads at that moment.
//!
//! What waits when the connection is made may be anybody's. Until all of that has been read, each datagram's sender is asked for, and what is
//! not the peer's is dropped. Of a peer who was the first to send, the kernel says which user he is, and what is his has to be from that user; a name
//! is anybody's who takes it, in a mount namespace of his own or while the peer has not got it yet. Throwing all of it away was rejected: what the
//! peer sent himself is what made him the peer, and a guest would send its first ARP request again after a second.
//!
//! A send that finds nobody has the kernel disconnect the socket, before the control side knows. So after each batch it is asked whether there still is a
//! peer; if not, the batch may be anybody's.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Health, Inbound, OpenPort, PortQueue, Received, refused};
use crate::batch::{BATCH_FRAMES, Batch};
use crate::frame::Outgoing;
use crate::offload::VNET_HDR_LEN;
use crate::stats::{Counters, DropReason};
use crate::sys::unix::{self, Sender};

pub mod endpoint;

/// A socket that is connected to its peer's.
#[derive(Debug)]
pub struct Connected {
    /// It.
    pub socket: Arc<OwnedFd>,
    /// The user whose peer it is, from whom what waited has to be; `None`: from anybody with the peer's name.
    pub uid: Option<libc::uid_t>,
}

/// Opens a port around a connected socket, for `workers` workers.
///
/// # Errors
/// It is not connected.
pub fn open(connected: &Connected, mtu: u32, workers: usize) -> io::Result<OpenPort> {
    let Connected { socket, uid } = connected;
    let reader = socket.as_raw_fd().unsigned_abs() as usize % workers.max(1);
    let peer = Sender::peer_of(socket.as_fd(), *uid)?;
    let queue = |worker| {
        let socket = Arc::clone(socket);
        let queue = DgramQueue { socket, receives: worker == reader, sorts_for: Some(peer) };
        Box::new(queue) as Box<dyn PortQueue>
    };
    Ok(OpenPort::of_socket((0..workers).map(queue).collect(), mtu))
}

#[derive(Debug)]
struct DgramQueue {
    socket: Arc<OwnedFd>,
    /// One worker's does.
    receives: bool,
    /// The peer, while others' may wait beside his.
    sorts_for: Option<Sender>,
}

impl DgramQueue {
    /// The length of the next datagram, and whether it is the peer's.
    #[inline]
    fn next(&mut self, room: &mut [u8]) -> io::Result<Option<(usize, bool)>> {
        let socket = self.socket.as_fd();
        let Some(peer) = &self.sorts_for else {
            return Ok(unix::receive(socket, room)?.map(|len| (len, true)));
        };
        let next = unix::receive_sorted(socket, room, peer)?;
        if next.is_none() {
            // Others cannot have sent since it is connected.
            self.sorts_for = None;
        }
        Ok(next)
    }

    /// Reads what waits, as much as fits.
    #[inline]
    fn fill(&mut self, batch: &mut Batch, inbound: &Inbound<'_>) -> Received {
        // Bounded by tries, not by frames taken: a sender of nonsense must not keep the worker here.
        for _ in 0..BATCH_FRAMES {
            if batch.is_full() {
                break;
            }
            let (header, room) = batch.spare().split_at_mut(VNET_HDR_LEN);
            header.fill(0);
            let room_len = room.len();
            match self.next(room) {
                Ok(Some((_, false))) => inbound.counters.drop_frame(DropReason::UnknownRemote),
                Ok(Some((len, _))) if len > room_len => inbound.counters.drop_frame(DropReason::RxTruncated),
                Ok(Some((len, _))) => {
                    if batch.take(len, None).is_err() {
                        inbound.counters.drop_frame(DropReason::BadOffload);
                    }
                }
                Ok(None) => return Received::Drained,
                // That the peer let go of us is no frame.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(_) => inbound.counters.drop_frame(DropReason::RxError),
            }
        }
        Received::More
    }
}

impl PortQueue for DgramQueue {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.receives.then(|| self.socket.as_fd())
    }

    fn receive(&mut self, batch: &mut Batch, inbound: &Inbound<'_>) -> Received {
        if !self.receives {
            return Received::Drained;
        }
        let received = self.fill(batch, inbound);
        // A send that found nobody has disconnected it, whichever worker's that was: from then on it is anybody's.
        if !batch.frames.is_empty() && !unix::is_connected(self.socket.as_fd()) {
            inbound.counters.drop_frames(DropReason::UnknownRemote, batch.frames.len() as u64);
            batch.clear();
            return Received::Gone;
        }
        received
    }

    fn transmit(&mut self, frames: &[Outgoing<'_>], counters: &Counters) -> Health {
        let mut health = Health::Alive;
        for frame in frames {
            let slices = frame.slices().map(IoSlice::new);
            match unix::send_connected(self.socket.as_fd(), &slices[1..]) {
                Ok(Some(_)) => counters.sent(frame.frame_len(), frame.segments()),
                Ok(None) => counters.drop_frame(DropReason::TxFull),
                Err(error) if is_nobody(&error) => {
                    counters.drop_frame(DropReason::PortDown);
                    health = Health::Gone;
                }
                Err(error) => counters.drop_frame(refused(&error)),
            }
        }
        health
    }
}

/// Whether nobody is behind the peer's socket any more.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECONNREFUSED | libc::ENOTCONN | libc::ECONNRESET))
}

#[cfg(test)]
mod tests;
