//! Where frames come in and go out.
//!
//! A port kind is one file here that opens the device and implements [`PortQueue`], a variant of
//! [`crate::spec::PortKind`], and a line in [`open`]. The control side opens a port into one queue a worker; a queue
//! then moves to its worker, which alone uses it, and comes back to the control side to be closed.

use std::fmt::Debug;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::batch::Batch;
use crate::frame::Outgoing;
use crate::offload::Capabilities;
use crate::spec::{PortKind, StreamAddress};
use crate::stats::{Counters, DropReason};
use crate::sys::{self, unix};
use crate::tunnel::Demux;

pub(crate) mod backoff;
pub mod dgram;
mod macvtap;
mod made;
pub mod mem;
mod packet;
pub mod stream;
mod tap;
pub mod tunnel;
pub mod vde;
pub mod vhost_user;

pub use made::Made;
pub use packet::Preparation;
pub(crate) use packet::warn_of_host;

/// One worker's way in and out of one port.
pub trait PortQueue: Send + Debug {
    /// What becomes readable when frames wait; `None` when this queue only sends.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Makes what belongs to the thread that uses it from now on, and may take long to make. Not on the fast path.
    fn prepare(&mut self) {}

    /// Appends waiting frames to the batch until it is full or nothing waits.
    fn receive(&mut self, batch: &mut Batch, inbound: &Inbound<'_>) -> Received;

    /// Sends the frames in order; each is counted, as sent or as dropped.
    fn transmit(&mut self, frames: &[Outgoing<'_>], counters: &Counters) -> Health;

    /// Whether somebody waits for [`PortQueue::fd`] from now on, or reads the queue all the time. Waiting must end for what came before.
    fn listen(&mut self, _on: bool) {}

    /// All of a batch that leaves by it was given to [`PortQueue::transmit`], in one call or several.
    fn flush(&mut self) {}

    /// Whether it sends frames whose end is still in a guest's memory.
    fn takes_lent(&self) -> bool {
        false
    }

    /// What it lent of the batch it received last is not needed any more. Called after such a batch has left.
    fn take_back(&mut self) {}

    /// Frames that the kernel dropped on their way to us since the last call. Not on the fast path.
    fn take_missed(&mut self) -> u64 {
        0
    }

    /// Frames that were counted as sent and could not be sent after all, since the last call. Not on the fast path.
    fn take_lost(&mut self) -> u64 {
        0
    }

    /// Kernel memory that is mapped for it and never swapped out, in bytes. Not on the fast path.
    fn ring_bytes(&self) -> u64 {
        0
    }

    /// Gives up a ring that it shares with the kernel, if the kernel has stopped filling it;
    /// whether it did. Not on the fast path.
    fn leave_ring(&mut self, _delivered: u64) -> bool {
        false
    }
}

/// What receiving needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Inbound<'a> {
    /// Where drops are counted.
    pub counters: &'a Counters,
    /// Whose the frames are, at an endpoint of several ports.
    pub demux: Option<&'a Demux>,
    /// Index of the worker that receives.
    pub worker: usize,
}

/// How a receive call ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// Nothing waits any more.
    Drained,
    /// The batch is full, or as many were looked at as it holds; more may wait.
    More,
    /// The device is gone.
    Gone,
}

/// Whether the device still exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// It does, up or down.
    Alive,
    /// It does not.
    Gone,
}

/// A port that the control side has opened.
#[derive(Debug)]
pub struct OpenPort {
    /// One a worker.
    pub queues: Vec<Box<dyn PortQueue>>,
    /// How many of them receive.
    pub receiving: usize,
    /// What it takes unfinished.
    pub capabilities: Capabilities,
    /// Index of the interface behind it, in its namespace.
    pub ifindex: Option<u32>,
    /// MTU in bytes when it was opened.
    pub mtu: u32,
    /// Whether untagged frames must fit the MTU exactly.
    pub strict_mtu: bool,
    /// Undone when closed.
    pub keep: Vec<OwnedFd>,
    /// Rings that the kernel may stop filling.
    pub watches: Vec<sys::packet::Watch>,
    /// The connection to a guest, to be started when the port is known.
    pub link: Option<vhost_user::Link>,
    /// The device that was made for it and would stay when its descriptors are closed. Dropping it removes the device, so a port that
    /// is not taken over after all leaves none.
    pub made: Option<Made>,
}

impl OpenPort {
    /// A port that is one socket, of which a frame is a frame: nothing is left to the peer.
    fn of_socket(queues: Vec<Box<dyn PortQueue>>, mtu: u32) -> OpenPort {
        OpenPort {
            queues,
            receiving: 1,
            capabilities: Capabilities::default(),
            ifindex: None,
            mtu,
            strict_mtu: false,
            keep: Vec::new(),
            watches: Vec::new(),
            link: None,
            made: None,
        }
    }
}

/// Refuses what no kernel could open: names, paths and numbers that are none. Looks at nothing but the request.
///
/// # Errors
/// The rule that was broken.
pub(crate) fn check(kind: &PortKind, workers: usize) -> Result<(), sys::Error> {
    match kind {
        PortKind::Tap(spec) | PortKind::Internal(spec) => tap::check(spec, workers),
        PortKind::Packet(spec) => sys::check_known_ifname(&spec.ifname),
        PortKind::Macvtap(spec) => macvtap::check(spec, workers),
        PortKind::VhostUser(spec) => vhost_user::check(spec),
        PortKind::Stream(spec) => check_mtu(spec.mtu).and_then(|()| match &spec.address {
            StreamAddress::Unix(path) => unix::check_path(path),
            StreamAddress::Tcp(_) => Ok(()),
        }),
        PortKind::Dgram(spec) => {
            let mut paths = std::iter::once(&spec.path).chain(&spec.peer);
            check_mtu(spec.mtu).and_then(|()| paths.try_for_each(|path| unix::check_path(path)))
        }
        PortKind::Vde(spec) => check_mtu(spec.mtu).and_then(|()| vde::check_folder(&spec.path)),
        PortKind::Tunnel(_) | PortKind::Mem(_) => Ok(()),
    }
}

/// Opens a port for `workers` workers.
///
/// # Errors
/// Names the interface or namespace and the operation that failed.
pub fn open(kind: &PortKind, workers: usize) -> Result<OpenPort, sys::Error> {
    open_prepared(kind, workers, &mut Preparation::default())
}

/// As [`open`], with what was opened before it.
///
/// # Errors
/// As [`open`].
pub fn open_prepared(
    kind: &PortKind,
    workers: usize,
    preparation: &mut Preparation,
) -> Result<OpenPort, sys::Error> {
    match kind {
        PortKind::Tap(spec) | PortKind::Internal(spec) => tap::open(spec, workers),
        PortKind::Packet(spec) => packet::open(spec, workers, preparation),
        PortKind::Macvtap(spec) => macvtap::open(spec, workers),
        PortKind::VhostUser(spec) => vhost_user::open(spec, workers),
        PortKind::Mem(port) => Ok(port.open(workers)),
        // Of endpoints and remotes, which the control side opens one by one.
        PortKind::Tunnel(_) => {
            Err(sys::Error::refused(io::ErrorKind::Unsupported, "a tunnel port has no queues of its own"))
        }
        // Opened around each connection, see `stream::open` and `dgram::open`.
        PortKind::Stream(_) | PortKind::Dgram(_) | PortKind::Vde(_) => {
            Err(sys::Error::refused(io::ErrorKind::Unsupported, "a port on a socket is its connection"))
        }
    }
}

/// Refuses an MTU of which frames would not fit where they are received.
fn check_mtu(mtu: u32) -> Result<(), sys::Error> {
    let what = format!("an MTU of {mtu} bytes is more than 65535");
    if mtu <= 65_535 { Ok(()) } else { Err(sys::Error::refused(io::ErrorKind::InvalidInput, what)) }
}

/// Why a frame was not sent, from what a socket said.
fn refused(error: &io::Error) -> DropReason {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => DropReason::TxFull,
        Some(libc::ENETDOWN) => DropReason::PortDown,
        Some(libc::EMSGSIZE) => DropReason::TooLong,
        _ => DropReason::TxError,
    }
}

/// Errors that mean the device itself is no more.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV | libc::ENXIO | libc::ENOLINK))
}
