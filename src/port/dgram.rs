//! `dgram` ports: a frame a Unix datagram, to and from one peer, as QEMU's `-netdev dgram` has them.
//!
//! Whether anybody is behind the peer's path is only known by sending, so the port is always up; what is sent to nobody is dropped
//! (`port_down`). Each datagram is sent by the peer's path: a connected socket would have to be connected again whenever the peer is
//! started anew, and until then refuse what comes from it.
//!
//! Whoever may write to the switch's socket may send into the port: its file's permissions are the fence.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Health, Inbound, OpenPort, PortQueue, Received, check_mtu, refused};
use crate::batch::{BATCH_FRAMES, Batch};
use crate::frame::Outgoing;
use crate::offload::{Capabilities, VNET_HDR_LEN};
use crate::spec::DgramSpec;
use crate::stats::{Counters, DropReason};
use crate::sys;
use crate::sys::unix::{self, PeerAddress, SockType, SocketFile};

/// Bytes that wait for the peer to read them, at most.
const SEND_BUFFER_BYTES: i32 = 1 << 20;

pub(super) fn open(spec: &DgramSpec, workers: usize) -> Result<OpenPort, sys::Error> {
    check_mtu(spec.mtu)?;
    let peer = PeerAddress::new(&spec.peer)?;
    let (fd, file) = unix::bind_at(&spec.path, SockType::Datagram, spec.mode)?;
    unix::set_send_buffer(&fd, SEND_BUFFER_BYTES);
    let reader = fd.as_raw_fd().unsigned_abs() as usize % workers.max(1);
    let socket = Arc::new(DgramSocket { fd, peer, _file: file });
    let queue = |worker| {
        Box::new(DgramQueue { socket: Arc::clone(&socket), receives: worker == reader }) as Box<dyn PortQueue>
    };
    Ok(OpenPort {
        queues: (0..workers).map(queue).collect(),
        receiving: 1,
        capabilities: Capabilities::default(),
        ifindex: None,
        mtu: spec.mtu,
        strict_mtu: false,
        keep: Vec::new(),
        link: None,
    })
}

#[derive(Debug)]
struct DgramSocket {
    fd: OwnedFd,
    peer: PeerAddress,
    _file: SocketFile,
}

#[derive(Debug)]
struct DgramQueue {
    socket: Arc<DgramSocket>,
    /// One worker's does.
    receives: bool,
}

impl PortQueue for DgramQueue {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.receives.then(|| self.socket.fd.as_fd())
    }

    fn receive(&mut self, batch: &mut Batch, inbound: &Inbound<'_>) -> Received {
        if !self.receives {
            return Received::Drained;
        }
        // Bounded by tries, not by frames taken: a sender of nonsense must not keep the worker here.
        for _ in 0..BATCH_FRAMES {
            if batch.is_full() {
                break;
            }
            let (header, room) = batch.spare().split_at_mut(VNET_HDR_LEN);
            header.fill(0);
            let room_len = room.len();
            match unix::receive(self.socket.fd.as_fd(), room) {
                Ok(Some(len)) if len > room_len => inbound.counters.drop_frame(DropReason::RxTruncated),
                Ok(Some(len)) => {
                    if batch.take(len, None).is_err() {
                        inbound.counters.drop_frame(DropReason::BadOffload);
                    }
                }
                Ok(None) => return Received::Drained,
                Err(_) => inbound.counters.drop_frame(DropReason::RxError),
            }
        }
        Received::More
    }

    fn transmit(&mut self, frames: &[Outgoing<'_>], counters: &Counters) -> Health {
        for frame in frames {
            let slices = frame.slices().map(IoSlice::new);
            match unix::send_to(self.socket.fd.as_fd(), &slices[1..], &self.socket.peer) {
                Ok(Some(_)) => counters.sent(frame.frame_len(), frame.segments()),
                Ok(None) => counters.drop_frame(DropReason::TxFull),
                Err(error) => counters.drop_frame(unsent(&error)),
            }
        }
        Health::Alive
    }
}

/// Why a datagram was not sent.
fn unsent(error: &io::Error) -> DropReason {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::ENOENT) => DropReason::PortDown,
        _ => refused(error),
    }
}
