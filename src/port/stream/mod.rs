//! `stream` ports: frames in a byte stream to one peer, over a Unix socket or TCP, as QEMU's `-netdev stream` speaks it. No privileges and no
//! devices of the kernel's.
//!
//! A connection is what a device is to other ports: while there is none the port is down, workers do not know of it, and nothing is learned
//! behind it. The control side accepts or connects ([`endpoint`]) and opens a port around each connection ([`open`]); a worker that reads
//! its end says that the device is gone, as it would of an interface. So workers never wait for a peer, however it behaves.
//!
//! A connection has one reader, a worker. Every worker writes to it, one at a time: the one lock on the way of a frame, taken once a batch,
//! because a frame that had to wait for room must be finished before the next begins ([`framing`]). The peer knows no offloads: frames
//! are finished before.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Health, Inbound, OpenPort, PortQueue, Received};
use crate::batch::{BATCH_FRAMES, Batch};
use crate::frame::Outgoing;
use crate::offload::VNET_HDR_LEN;
use crate::stats::{Counters, DropReason};
use crate::sys;
use crate::sys::unix::{self, Notice};

pub mod endpoint;
pub mod framing;

use framing::{Deframer, Outbound};

/// Bytes that wait for a peer which is slow, at most. What it does not take in time is dropped, as a device's queue would.
const SEND_BUFFER_BYTES: i32 = 1 << 20;

/// A connection to a peer.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    notice: Notice,
    outbound: Mutex<Outbound>,
    /// Whether half a frame waits for room, for the reader, which is told when there is.
    stuck: AtomicBool,
}

impl Connection {
    /// Takes over a socket that is connected.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn new(socket: OwnedFd) -> io::Result<Connection> {
        sys::set_nonblocking(&socket)?;
        unix::set_send_buffer(&socket, SEND_BUFFER_BYTES);
        let notice = Notice::new(&socket)?;
        Ok(Connection { socket, notice, outbound: Mutex::default(), stuck: AtomicBool::new(false) })
    }

    /// Whether the peer has closed it, or it broke.
    #[must_use]
    pub fn is_hung_up(&self) -> bool {
        unix::is_hung_up(&self.socket)
    }

    fn write<T>(&self, work: impl FnOnce(&mut Outbound) -> T) -> T {
        // Whoever panicked with it has ended the process.
        let mut outbound = self.outbound.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut outbound);
        let stuck = outbound.is_stuck();
        if stuck != self.stuck.load(Ordering::Relaxed) {
            self.stuck.store(stuck, Ordering::Relaxed);
            // A connection that has gone needs no notice.
            let _ = self.notice.of_room(&self.socket, stuck);
        }
        result
    }
}

/// Opens a port around a connection, for `workers` workers.
#[must_use]
pub fn open(connection: &Arc<Connection>, mtu: u32, workers: usize) -> OpenPort {
    // Spreads the reading of many ports over the workers.
    let reader = connection.socket.as_raw_fd().unsigned_abs() as usize % workers.max(1);
    let queue = |worker| {
        let inbound = (worker == reader).then(Deframer::default);
        Box::new(StreamQueue { connection: Arc::clone(connection), inbound }) as Box<dyn PortQueue>
    };
    OpenPort::of_socket((0..workers).map(queue).collect(), mtu)
}

#[derive(Debug)]
struct StreamQueue {
    connection: Arc<Connection>,
    /// At the worker that reads.
    inbound: Option<Deframer>,
}

impl PortQueue for StreamQueue {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inbound.as_ref().map(|_| self.connection.notice.as_fd())
    }

    fn receive(&mut self, batch: &mut Batch, inbound: &Inbound<'_>) -> Received {
        let Some(deframer) = &mut self.inbound else { return Received::Drained };
        let connection = &*self.connection;
        if connection.stuck.load(Ordering::Relaxed) {
            // That the peer has gone is read below.
            let _ = connection.write(|outbound| outbound.flush(|slices| connection.send(slices)));
        }
        // Each read but the last brings at least one frame, or a part of the longest.
        for _ in 0..BATCH_FRAMES {
            loop {
                if batch.is_full() {
                    return Received::More;
                }
                match deframer.next_frame() {
                    Ok(Some(frame)) => {
                        let spare = batch.spare();
                        spare[..VNET_HDR_LEN].fill(0);
                        spare[VNET_HDR_LEN..VNET_HDR_LEN + frame.len()].copy_from_slice(frame);
                        if batch.take(frame.len(), None).is_err() {
                            inbound.counters.drop_frame(DropReason::BadOffload);
                        }
                    }
                    Ok(None) => break,
                    Err(framing::BadLength) => {
                        inbound.counters.drop_frame(DropReason::BadLength);
                        return Received::Gone;
                    }
                }
            }
            match sys::read(connection.socket.as_fd(), deframer.spare()) {
                Ok(Some(len @ 1..)) => deframer.filled(len),
                Ok(None) => return Received::Drained,
                Ok(Some(0)) | Err(_) => return Received::Gone,
            }
        }
        Received::More
    }

    fn transmit(&mut self, frames: &[Outgoing<'_>], counters: &Counters) -> Health {
        let connection = &*self.connection;
        connection.write(|outbound| outbound.send(frames, counters, |slices| connection.send(slices)));
        // That it has ended is for the reader to say, behind what it has still to read.
        Health::Alive
    }
}

impl Connection {
    fn send(&self, slices: &[io::IoSlice<'_>]) -> io::Result<Option<usize>> {
        unix::send_connected(self.socket.as_fd(), slices)
    }
}

#[cfg(test)]
mod tests;
