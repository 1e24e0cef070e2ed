//! Sending: one worker's way to one remote.
//!
//! Each flow leaves by one of the worker's sockets. Frames of one flow and one length leave by one system call; the kernel cuts
//! them apart (`UDP_SEGMENT`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use socket2::SockAddr;

use super::Senders;
use crate::batch::Batch;
use crate::frame::Outgoing;
use crate::port::{Health, Inbound, PortQueue, Received, refused};
use crate::spec::{Df, TunnelSpec};
use crate::stats::{Counters, DropReason};
use crate::sys::underlay::PAYLOAD_MAX;
use crate::topology::PortShared;
use crate::tunnel::wrap::{Class, Headers, Numbering, Slices, Stamps, Wrapper};

/// Frames sent singly before several at once are tried again.
const SINGLES: u32 = 10_000;

/// The workers' ways to a remote of a tunnel, or to its group.
#[must_use]
pub fn queues(
    spec: &TunnelSpec,
    df: Df,
    to: IpAddr,
    (numbering, shared): (&Arc<Numbering>, &Arc<PortShared>),
    senders: &[Arc<Senders>],
) -> Vec<Box<dyn PortQueue>> {
    let port = spec.udp.as_ref().map_or(0, |udp| udp.dstport);
    let to = SockAddr::from(SocketAddr::new(to, port));
    let wrapper = Arc::new(Wrapper::new(spec, df));
    let queue = |senders: &Arc<Senders>| {
        Box::new(RemoteQueue {
            wrapper: Arc::clone(&wrapper),
            numbering: Arc::clone(numbering),
            shared: Arc::clone(shared),
            to: to.clone(),
            senders: Arc::clone(senders),
            too_big: usize::MAX,
            singles: 0,
        }) as Box<dyn PortQueue>
    };
    senders.iter().map(queue).collect()
}

/// One worker's way to one remote.
#[derive(Debug)]
struct RemoteQueue {
    wrapper: Arc<Wrapper>,
    numbering: Arc<Numbering>,
    shared: Arc<PortShared>,
    to: SockAddr,
    senders: Arc<Senders>,
    /// The shortest frame that the kernel would not take several of at once: longer than the path's MTU, mostly.
    too_big: usize,
    /// Frames that left by themselves for that reason, until it is tried again.
    singles: u32,
}

impl RemoteQueue {
    /// How many of `frames` can leave by one call.
    fn run(&mut self, frames: &[Outgoing<'_>], class: Class) -> usize {
        if !self.senders.segments {
            return 1;
        }
        if frames[0].frame_len() >= self.too_big {
            self.singles += 1;
            if self.singles >= SINGLES {
                (self.singles, self.too_big) = (0, usize::MAX);
            }
            return 1;
        }
        self.wrapper.run(frames, class, PAYLOAD_MAX)
    }

    fn send(&self, frames: &[Outgoing<'_>], class: Class, stamps: Option<&mut Stamps<'_>>) -> io::Result<()> {
        let (mut headers, mut slices) = (Headers::new(), Slices::new());
        let len = self.wrapper.wrap(frames, stamps, &mut headers, &mut slices);
        let size = u16::try_from(len).ok().filter(|_| frames.len() > 1);
        // With IPv6 only the sender fragments. What does not fit is here because it may be fragmented.
        let fits = frames[0].frame_len() <= self.shared.frame_max();
        let whole = class.whole && fits && !self.senders.whole.is_empty();
        let sockets = if whole { &self.senders.whole } else { &self.senders.divisible };
        sockets[usize::from(class.flow) % sockets.len()].send(&slices, size, class.tos, &self.to)
    }
}

impl PortQueue for RemoteQueue {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn receive(&mut self, _batch: &mut Batch, _inbound: &Inbound<'_>) -> Received {
        Received::Drained
    }

    fn transmit(&mut self, frames: &[Outgoing<'_>], counters: &Counters) -> Health {
        let numbering = self.wrapper.is_numbered().then(|| Arc::clone(&self.numbering));
        let mut stamps = numbering.as_deref().map(Numbering::lock);
        let mut left = frames;
        while let Some(first) = left.first() {
            let Some(class) = self.wrapper.class(first) else {
                counters.drop_frame(DropReason::VlanEgress);
                left = &left[1..];
                continue;
            };
            let run = self.run(left, class);
            let (now, later) = left.split_at(run);
            let mut sent = self.send(now, class, stamps.as_mut());
            if let (1, true, Err(error)) = (run, class.whole, &sent)
                && error.raw_os_error() == Some(libc::EMSGSIZE)
                && self.wrapper.inherits_df()
            {
                // It fitted a moment ago: rather in fragments than not at all.
                sent = self.send(now, Class { whole: false, ..class }, stamps.as_mut());
                counters.tx_fragmented.add(u64::from(sent.is_ok()));
            }
            match sent {
                Ok(()) => now.iter().for_each(|frame| counters.sent(frame.frame_len(), frame.segments())),
                Err(error)
                    // EIO: the way is by IPsec, or by a device without checksums.
                    if run > 1
                        && matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO)) =>
                {
                    self.too_big = self.too_big.min(first.frame_len());
                    continue;
                }
                Err(error) => {
                    let reason = match error.raw_os_error() {
                        // EINVAL: the address that it is to leave from is not this host's any more.
                        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL) => DropReason::Unreachable,
                        // The path takes less than a moment ago, or nothing that long at all.
                        Some(libc::EMSGSIZE) => DropReason::TooBig,
                        _ => refused(&error),
                    };
                    counters.drop_frames(reason, run as u64);
                }
            }
            left = later;
        }
        Health::Alive
    }
}
