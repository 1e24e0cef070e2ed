//! Sending: one worker's way to one remote.
//!
//! Each flow leaves by one of the worker's sockets. Frames of one flow and one length leave by one system call; the kernel cuts
//! them apart (`UDP_SEGMENT`).

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use arrayvec::ArrayVec;
use socket2::SockAddr;

use std::os::fd::BorrowedFd;

use super::Senders;
use crate::batch::Batch;
use crate::bridge::vlan::TPID_8021Q;
use crate::frame::{ADDRESSES_LEN, Outgoing, TAG_LEN};
use crate::offload::VNET_HDR_LEN;
use crate::port::{Health, Inbound, PortQueue, Received, refused};
use crate::spec::{Df, Networks, Tos, TunnelSpec};
use crate::stats::{Counters, DropReason};
use crate::sys::underlay::{PAYLOAD_MAX, SEGMENTS_MAX};
use crate::tunnel::ecn;
use crate::tunnel::encapsulation::{Header, LEN_MAX};
use crate::tunnel::flow::Flow;

/// Frames sent singly before several at once are tried again.
const SINGLES: u32 = 10_000;
/// Pieces of a frame: as many as [`Outgoing`] has, and one more where a tag is left out.
const PIECES_MAX: usize = 4;
/// A slice for each, and for the header.
const SLICES_MAX: usize = SEGMENTS_MAX * (PIECES_MAX + 1);

/// How a remote is reached; the same for all workers.
#[derive(Debug)]
pub struct Way {
    to: SockAddr,
    header: Header,
    networks: Networks,
    tos: Tos,
    df: Df,
    /// Packets sent so far, where they are numbered.
    sequence: AtomicU32,
    /// What timestamps count from.
    epoch: Instant,
}

impl Way {
    /// To a remote of a tunnel, or its group.
    #[must_use]
    pub fn new(spec: &TunnelSpec, df: Df, to: std::net::IpAddr) -> Arc<Way> {
        let port = spec.udp.as_ref().map_or(0, |udp| udp.dstport);
        Arc::new(Way {
            to: SockAddr::from(SocketAddr::new(to, port)),
            header: spec.header,
            networks: spec.networks.clone(),
            tos: spec.tos,
            df,
            sequence: AtomicU32::new(0),
            epoch: Instant::now(),
        })
    }

    /// The workers' ways out.
    #[must_use]
    pub fn queues(self: &Arc<Way>, senders: &[Arc<Senders>]) -> Vec<Box<dyn PortQueue>> {
        let queue = |senders: &Arc<Senders>| {
            let (way, senders) = (Arc::clone(self), Arc::clone(senders));
            Box::new(RemoteQueue { way, senders, too_big: usize::MAX, singles: 0 }) as Box<dyn PortQueue>
        };
        senders.iter().map(queue).collect()
    }

    /// The number of a frame's network; `None` if it has none.
    #[inline]
    fn number(&self, frame: &Outgoing<'_>) -> Option<u32> {
        match &self.networks {
            Networks::One(number) => Some(*number),
            Networks::ByVlan(map) => {
                let vid = tci(frame)? & 0xfff;
                let at = map.binary_search_by_key(&vid, |(vlan, _)| vlan.get()).ok()?;
                Some(map[at].1)
            }
        }
    }

    /// The pieces of a frame as it is sent: without offload header, and without the tag where that says nothing that the number does not.
    #[inline]
    fn pieces<'f>(&self, frame: &'f Outgoing<'_>) -> ArrayVec<&'f [u8], PIECES_MAX> {
        let [_, pieces @ ..] = frame.slices();
        let strip = matches!(self.networks, Networks::ByVlan(_));
        let mut kept = ArrayVec::new();
        let mut keep = |piece: &'f [u8]| {
            if !piece.is_empty() {
                kept.push(piece);
            }
        };
        let mut start = 0;
        for piece in pieces {
            if strip && start < ADDRESSES_LEN + TAG_LEN {
                let (before, behind) = piece.split_at(ADDRESSES_LEN.saturating_sub(start).min(piece.len()));
                let tag = (ADDRESSES_LEN + TAG_LEN).saturating_sub(start + before.len());
                keep(before);
                keep(&behind[tag.min(behind.len())..]);
            } else {
                keep(piece);
            }
            start += piece.len();
        }
        kept
    }
}

/// Tag control information of a frame's 802.1Q tag.
fn tci(frame: &Outgoing<'_>) -> Option<u16> {
    let behind_addresses = |bytes: &[u8]| bytes.get(VNET_HDR_LEN + ADDRESSES_LEN..)?.first_chunk().copied();
    let [a, b, c, d] = match frame {
        Outgoing::Pieces { tag: Some(tag), .. } => *tag,
        Outgoing::Pieces { rest, .. } => *rest.first_chunk::<TAG_LEN>()?,
        Outgoing::Whole { bytes, .. } => behind_addresses(bytes)?,
        Outgoing::Segment { head, .. } => behind_addresses(head)?,
    };
    (u16::from_be_bytes([a, b]) == TPID_8021Q).then_some(u16::from_be_bytes([c, d]))
}

/// One worker's way to one remote.
#[derive(Debug)]
struct RemoteQueue {
    way: Arc<Way>,
    senders: Arc<Senders>,
    /// The shortest frame that the kernel would not take several of at once: longer than the path's MTU, mostly.
    too_big: usize,
    /// Frames that left by themselves for that reason, until it is tried again.
    singles: u32,
}

/// What frames that leave by one call have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Class {
    socket: usize,
    whole: bool,
    tos: u8,
}

impl RemoteQueue {
    #[inline]
    fn class(&self, frame: &Outgoing<'_>) -> Class {
        let flow = Flow::of(frame);
        let whole = match self.way.df {
            Df::Inherit => flow.whole,
            Df::Set => true,
            Df::Unset => false,
        };
        let tos = match self.way.tos {
            Tos::Inherit => flow.tos,
            Tos::Fixed(tos) => tos & !ecn::MASK | flow.tos & ecn::MASK,
        };
        let whole = whole && !self.senders.whole.is_empty();
        Class { socket: usize::from(flow.number) % self.senders.divisible.len(), whole, tos }
    }

    /// How many of `frames` can leave by one call: one class, one length, but the last may be shorter.
    fn run(&mut self, frames: &[Outgoing<'_>], class: Class) -> usize {
        let len = frames[0].frame_len();
        if !self.senders.segments {
            return 1;
        }
        if len >= self.too_big {
            self.singles += 1;
            if self.singles >= SINGLES {
                (self.singles, self.too_big) = (0, usize::MAX);
            }
            return 1;
        }
        let most = (PAYLOAD_MAX / (len + self.way.header.len())).min(SEGMENTS_MAX);
        let mut run = 1;
        while let Some(next) = frames.get(run).filter(|_| run < most) {
            if next.frame_len() > len || self.class(next) != class || self.way.number(next).is_none() {
                break;
            }
            run += 1;
            if next.frame_len() < len {
                break;
            }
        }
        run
    }

    /// Sends frames that have a network, in one call.
    fn send(&self, frames: &[Outgoing<'_>], class: Class) -> io::Result<()> {
        let Way { header, sequence, epoch, .. } = &*self.way;
        let sequenced = header.has_sequence();
        #[allow(clippy::cast_possible_truncation, reason = "it comes round")]
        let timestamp = if sequenced { (epoch.elapsed().as_micros() / 100) as u32 } else { 0 };
        let mut headers: ArrayVec<ArrayVec<u8, LEN_MAX>, SEGMENTS_MAX> = ArrayVec::new();
        let mut len = 0;
        for frame in frames {
            let pieces = self.way.pieces(frame);
            let sequence = if sequenced { sequence.fetch_add(1, Ordering::Relaxed) } else { 0 };
            let number = self.way.number(frame).unwrap_or_default();
            headers.push(header.write(number, sequence, timestamp, &pieces));
            if len == 0 {
                len = header.len() + pieces.iter().map(|piece| piece.len()).sum::<usize>();
            }
        }
        let mut slices: ArrayVec<IoSlice<'_>, SLICES_MAX> = ArrayVec::new();
        for (frame, header) in frames.iter().zip(&headers) {
            slices.push(IoSlice::new(header));
            slices.extend(self.way.pieces(frame).into_iter().map(IoSlice::new));
        }
        let size = u16::try_from(len).ok().filter(|_| frames.len() > 1);
        let sockets = if class.whole { &self.senders.whole } else { &self.senders.divisible };
        sockets[class.socket].send(&slices, size, class.tos, &self.way.to)
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
        let mut left = frames;
        while let Some(first) = left.first() {
            if self.way.number(first).is_none() {
                counters.drop_frame(DropReason::VlanEgress);
                left = &left[1..];
                continue;
            }
            let class = self.class(first);
            let run = self.run(left, class);
            let (now, later) = left.split_at(run);
            let mut sent = self.send(now, class);
            if let (1, true, Err(error)) = (run, class.whole, &sent)
                && error.raw_os_error() == Some(libc::EMSGSIZE)
                && self.way.df == Df::Inherit
            {
                // It fitted a moment ago, or nobody could have been told: rather in fragments than not at all.
                sent = self.send(now, Class { whole: false, ..class });
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
