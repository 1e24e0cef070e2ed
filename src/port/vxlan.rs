//! `vxlan` ports: frames in UDP datagrams to switches elsewhere (RFC 7348).
//!
//! Receiving is by endpoints, one a local address and UDP port, that many ports share: a socket a worker, among which the kernel
//! shares out the outer flows. Sending is by the remotes, each a port of its own to the pipeline (see [`crate::tunnel`]). A
//! worker has several sockets to send from, chosen by the inner flow, so that the outer source port tells flows
//! apart to whoever spreads them over paths on the way (RFC 7348, section 5).
//!
//! Frames of one flow and one length leave by one system call; the kernel cuts them apart (`UDP_SEGMENT`).

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use socket2::SockAddr;

use super::{Health, Inbound, PortQueue, Received, refused};
use crate::batch::{BATCH_FRAMES, Batch};
use crate::bridge::vlan::TPID_8021Q;
use crate::frame::{ADDRESSES_LEN, Outgoing, TAG_LEN};
use crate::offload::VNET_HDR_LEN;
use crate::offload::coalesce::Coalescer;
use crate::spec::Netns;
use crate::stats::{Counters, DropReason};
use crate::sys::udp::{self, Datagrams, PAYLOAD_MAX, SEGMENTS_MAX, Sharing, UdpSocket};
use crate::sys::{self, netns};
use crate::tunnel::{Network, Origin, arrival, vxlan};

/// Sockets that one worker sends from, at one endpoint.
const SENDERS: usize = 8;

/// Longest payload of a frame that fits a packet of `mtu` bytes to `remote`: less its IP, UDP and VXLAN headers and the frame's own.
#[must_use]
pub const fn inner_mtu(mtu: u32, remote: IpAddr) -> u32 {
    let ip = if remote.is_ipv4() { 20 } else { 40 };
    mtu.saturating_sub(ip + 16 + 14)
}

/// Where tunnels arrive: ports that agree in this share their sockets.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Place {
    /// The namespace of the underlay; `None` is the switch's own.
    pub netns: Option<Netns>,
    /// Address of this host in it.
    pub local: IpAddr,
    /// UDP port.
    pub port: u16,
}

/// The sockets of an endpoint.
#[derive(Debug)]
pub struct Endpoint {
    senders: Vec<Arc<[UdpSocket]>>,
}

/// Opens an endpoint: its receiving queues, one a worker, and what remotes send by.
///
/// # Errors
/// The address and the kernel's answer.
pub fn open_endpoint(
    place: &Place,
    workers: usize,
) -> Result<(Vec<Box<dyn PortQueue>>, Endpoint), sys::Error> {
    let target = place.netns.as_ref().map(netns::open).transpose()?;
    let address = SocketAddr::new(place.local, place.port);
    let cannot = |source: io::Error| match source.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) => sys::Error::refused(
            io::ErrorKind::InvalidInput,
            format!("{} is no address of this host{}; give --local one that is", place.local, place.within()),
        ),
        Some(libc::EADDRINUSE) => sys::Error::refused(
            io::ErrorKind::AlreadyExists,
            format!(
                "UDP port {} of {}{} is taken, perhaps by the kernel's vxlan; choose another --dstport",
                place.port,
                place.local,
                place.within()
            ),
        ),
        _ => sys::Error::new(format!("cannot receive at {address}{}", place.within()), source),
    };
    let open = || {
        // Others of the same user may share an address with those below, so ask first whether somebody has it.
        drop(UdpSocket::bind(address, Sharing::Alone)?);
        let receivers = (0..workers)
            .map(|_| UdpSocket::bind(address, Sharing::Shared))
            .collect::<io::Result<Vec<_>>>()?;
        receivers.iter().for_each(UdpSocket::coalesce);
        let any = SocketAddr::new(place.local, 0);
        let some = || {
            (0..SENDERS).map(|_| UdpSocket::bind(any, Sharing::SendOnly)).collect::<io::Result<Arc<[_]>>>()
        };
        let senders = (0..workers).map(|_| some()).collect::<io::Result<Vec<_>>>()?;
        Ok((receivers, senders))
    };
    let opened = netns::run_in(target.as_ref().map(AsFd::as_fd), open).and_then(|opened| opened);
    let (receivers, senders) = opened.map_err(cannot)?;
    let queue = |socket| Box::new(EndpointQueue::new(socket)) as Box<dyn PortQueue>;
    Ok((receivers.into_iter().map(queue).collect(), Endpoint { senders }))
}

impl Place {
    fn within(&self) -> String {
        self.netns.as_ref().map_or(String::new(), |netns| format!(" in namespace '{netns}'"))
    }

    /// MTU of frames' payload to each of some remotes: what fits one packet; `None` where there is no way.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn inner_mtus(&self, remotes: &[IpAddr]) -> Result<Vec<Option<u32>>, sys::Error> {
        let target = self.netns.as_ref().map(netns::open).transpose()?;
        let probe = |&remote: &IpAddr| Some(inner_mtu(udp::path_mtu(self.local, remote).ok()?, remote));
        netns::run_in(target.as_ref().map(AsFd::as_fd), || remotes.iter().map(probe).collect())
            .map_err(|source| sys::Error::new(format!("cannot look for ways{}", self.within()), source))
    }
}

impl Endpoint {
    /// The ways out to a remote, one a worker.
    #[must_use]
    pub fn remote(&self, vni: u32, to: SocketAddr) -> Vec<Box<dyn PortQueue>> {
        let queue = |sockets: &Arc<[UdpSocket]>| {
            let (sockets, to) = (Arc::clone(sockets), SockAddr::from(to));
            Box::new(RemoteQueue { sockets, to, header: vxlan::header(vni), too_big: usize::MAX, singles: 0 })
                as Box<dyn PortQueue>
        };
        self.senders.iter().map(queue).collect()
    }
}

/// One worker's way in.
#[derive(Debug)]
struct EndpointQueue {
    socket: UdpSocket,
    buffer: Box<[u8]>,
    /// Datagrams in the buffer that are still to be looked at, and where they begin.
    rest: Option<(Datagrams, usize)>,
    /// Reads that one call may still make.
    reads: usize,
    /// Whether the last read found nothing.
    drained: bool,
    /// Datagrams that the kernel dropped, as last read.
    dropped: u32,
}

impl EndpointQueue {
    fn new(socket: UdpSocket) -> EndpointQueue {
        EndpointQueue {
            socket,
            buffer: vec![0; 1 << 16].into(),
            rest: None,
            reads: 0,
            drained: false,
            dropped: 0,
        }
    }

    /// Moves the next frame to the batch, as many segments of one flow as follow one another. False, and nothing is
    /// moved, if it is not of the batch's port or the batch is full.
    fn unpack(&mut self, batch: &mut Batch, inbound: &Inbound<'_>) -> bool {
        let Some((datagrams, datagram)) = self.next() else { return true };
        let Some((network, origin, vni, frame)) = sort(datagram, &datagrams, inbound) else {
            self.advance();
            return true;
        };
        if batch.is_full() || batch.origin.is_some_and(|(before, _)| before != origin) {
            return false;
        }
        batch.origin = Some((origin, datagrams.source));
        let unfinished = arrival::offload(frame, network.frame_max);
        let Some(mut coalescer) = Coalescer::start(batch.spare(), frame) else {
            network.shared.counters[inbound.worker].drop_frame(DropReason::RxTruncated);
            self.advance();
            return true;
        };
        self.advance();
        if !unfinished.needs_csum {
            self.coalesce(&mut coalescer, vni, datagrams.source, inbound);
        }
        let len = coalescer.finish();
        if let (true, Some(header)) = (unfinished.needs_csum, batch.spare().first_chunk_mut()) {
            unfinished.to_virtio(header);
        }
        if batch.take(len, None).is_err() {
            network.shared.counters[inbound.worker].drop_frame(DropReason::BadOffload);
        }
        true
    }

    /// Appends what follows, for as long as it can be appended. One GSO frame of 64 KiB comes in two calls' datagrams.
    fn coalesce(&mut self, coalescer: &mut Coalescer<'_>, vni: u32, source: IpAddr, inbound: &Inbound<'_>) {
        while self.rest.is_some() || self.read(inbound) {
            match self.next() {
                Some((datagrams, datagram)) if datagrams.source == source => match vxlan::parse(datagram) {
                    Some((same, frame)) if same == vni && coalescer.push(frame) => self.advance(),
                    _ => break,
                },
                _ => break,
            }
        }
    }

    /// Reads more datagrams; whether there were any.
    fn read(&mut self, inbound: &Inbound<'_>) -> bool {
        while self.reads > 0 {
            self.reads -= 1;
            match self.socket.receive(&mut self.buffer) {
                Ok(Some(datagrams)) => {
                    self.rest = Some((datagrams, 0));
                    return true;
                }
                Ok(None) => {
                    self.drained = true;
                    return false;
                }
                // The network told of an earlier datagram; the next call reads on.
                Err(_) => inbound.counters.drop_frame(DropReason::RxError),
            }
        }
        false
    }

    /// The next datagram of those read.
    fn next(&self) -> Option<(Datagrams, &[u8])> {
        let (datagrams, at) = self.rest?;
        Some((datagrams, &self.buffer[at..(at + datagrams.size).min(datagrams.len)]))
    }

    /// That one is done with.
    fn advance(&mut self) {
        self.rest = self.rest.take().and_then(|(datagrams, at)| {
            let at = at + datagrams.size;
            (at < datagrams.len).then_some((datagrams, at))
        });
    }
}

/// Whose a datagram is, and the frame in it; one that is nobody's is counted.
fn sort<'d, 'n>(
    datagram: &'d [u8],
    datagrams: &Datagrams,
    inbound: &Inbound<'n>,
) -> Option<(&'n Network, Origin, u32, &'d [u8])> {
    let drop = |counters: &Counters, reason| {
        counters.drop_frame(reason);
        None
    };
    let Some((vni, frame)) = vxlan::parse(datagram) else {
        return drop(inbound.counters, DropReason::BadTunnelHeader);
    };
    let Some(network) = inbound.demux.and_then(|demux| demux.network(vni)) else {
        return drop(inbound.counters, DropReason::UnknownVni);
    };
    let Some(origin) = network.origin(&datagrams.source) else {
        return drop(&network.shared.counters[inbound.worker], DropReason::UnknownRemote);
    };
    Some((network, origin, vni, frame))
}

impl PortQueue for EndpointQueue {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn receive(&mut self, batch: &mut Batch, inbound: &Inbound<'_>) -> Received {
        (self.reads, self.drained) = (BATCH_FRAMES, false);
        while self.rest.is_some() || (!self.drained && self.read(inbound)) {
            if !self.unpack(batch, inbound) {
                return Received::More;
            }
        }
        if self.drained { Received::Drained } else { Received::More }
    }

    fn take_missed(&mut self) -> u64 {
        let dropped = self.socket.dropped();
        u64::from(dropped.wrapping_sub(std::mem::replace(&mut self.dropped, dropped)))
    }

    fn transmit(&mut self, frames: &[Outgoing<'_>], counters: &Counters) -> Health {
        // Nobody sends to an endpoint.
        counters.drop_frames(DropReason::TxError, frames.len() as u64);
        Health::Alive
    }
}

/// One worker's way to one remote.
#[derive(Debug)]
struct RemoteQueue {
    sockets: Arc<[UdpSocket]>,
    to: SockAddr,
    header: [u8; vxlan::HEADER_LEN],
    /// The shortest frame that the kernel would not take several of at once: longer than the path's MTU, mostly.
    too_big: usize,
    /// Frames that left by themselves for that reason, until it is tried again.
    singles: u32,
}

/// Frames sent singly before several at once are tried again.
const SINGLES: u32 = 10_000;

impl RemoteQueue {
    /// How many of `frames` can leave by one call: one flow, one length, but the last may be shorter.
    fn run(&mut self, frames: &[Outgoing<'_>], flow: usize) -> usize {
        let len = frames[0].frame_len();
        let most = (PAYLOAD_MAX / (len + vxlan::HEADER_LEN)).min(SEGMENTS_MAX);
        if len >= self.too_big {
            self.singles += 1;
            if self.singles >= SINGLES {
                (self.singles, self.too_big) = (0, usize::MAX);
            }
            return 1;
        }
        let mut run = 1;
        while let Some(next) = frames.get(run).filter(|_| run < most) {
            if next.frame_len() > len || self.flow(next) != flow {
                break;
            }
            run += 1;
            if next.frame_len() < len {
                break;
            }
        }
        run
    }

    /// Which socket a frame's flow leaves by.
    #[inline]
    fn flow(&self, frame: &Outgoing<'_>) -> usize {
        flow_hash(frame) % self.sockets.len()
    }

    fn send(&self, frames: &[Outgoing<'_>], flow: usize) -> io::Result<()> {
        let mut slices: ArrayVec<IoSlice<'_>, { SEGMENTS_MAX * 5 }> = ArrayVec::new();
        for frame in frames {
            slices.push(IoSlice::new(&self.header));
            let [_, pieces @ ..] = frame.slices();
            slices.extend(pieces.into_iter().filter(|piece| !piece.is_empty()).map(IoSlice::new));
        }
        let size = u16::try_from(frames[0].frame_len() + vxlan::HEADER_LEN).ok().filter(|_| frames.len() > 1);
        self.sockets[flow].send(&slices, size, &self.to)
    }
}

/// A number that is the same for all frames of an inner flow: of its addresses and, for what is neither fragmented nor has options,
/// its ports.
fn flow_hash(frame: &Outgoing<'_>) -> usize {
    let (addresses, rest) = match frame {
        Outgoing::Whole { bytes, .. } => bytes[VNET_HDR_LEN..].split_at(ADDRESSES_LEN),
        Outgoing::Segment { head, .. } => head[VNET_HDR_LEN..].split_at(ADDRESSES_LEN),
        Outgoing::Pieces { addresses, rest, .. } => (*addresses, *rest),
    };
    let mix = |hash: u64, bytes: &[u8]| {
        let word = bytes.first_chunk().map_or(0, |chunk| u64::from_ne_bytes(*chunk));
        (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    };
    let mut hash = mix(mix(1, addresses), &addresses[addresses.len().min(4)..]);
    // With its tag in place or apart from it, a frame is of the same flow.
    let rest = if rest.starts_with(&TPID_8021Q.to_be_bytes()) {
        rest.get(TAG_LEN..).unwrap_or_default()
    } else {
        rest
    };
    let has_ports = |protocol: Option<&u8>| protocol.is_some_and(|protocol| matches!(protocol, 6 | 17 | 132));
    match rest {
        // IPv4: addresses, and the ports behind a plain header.
        [0x08, 0x00, 0x45, _, _, _, _, _, fragment, offset, ..] => {
            hash = mix(hash, rest.get(14..).unwrap_or_default());
            if (fragment & 0x3f, *offset) == (0, 0) && has_ports(rest.get(11)) {
                hash = mix(hash, rest.get(18..).unwrap_or_default());
            }
        }
        [0x86, 0xdd, ..] => {
            for at in [10, 18, 26, 34] {
                hash = mix(hash, rest.get(at..).unwrap_or_default());
            }
            if has_ports(rest.get(8)) {
                let ports = rest.get(42..46).and_then(|ports| ports.first_chunk());
                hash =
                    mix(hash, &u64::from(ports.map_or(0, |ports| u32::from_ne_bytes(*ports))).to_ne_bytes());
            }
        }
        _ => {}
    }
    usize::from((hash >> 48) as u16)
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
            let flow = self.flow(first);
            let run = self.run(left, flow);
            let (now, later) = left.split_at(run);
            match self.send(now, flow) {
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
                        Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => DropReason::Unreachable,
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
