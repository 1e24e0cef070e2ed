//! Receiving: one worker's share of what arrives at an endpoint.

use std::os::fd::{AsFd, BorrowedFd};

use crate::batch::{BATCH_FRAMES, Batch};
use crate::frame::Outgoing;
use crate::offload::VNET_HDR_LEN;
use crate::offload::coalesce::Coalescer;
use crate::port::{Health, Inbound, PortQueue, Received};
use crate::stats::{Counters, DropReason};
use crate::sys::underlay::{Datagrams, UnderlaySocket};
use crate::tunnel::encapsulation::{Encapsulation, NetworkId};
use crate::tunnel::{Network, Origin, arrival, ecn};

/// One worker's way in.
#[derive(Debug)]
pub(super) struct EndpointQueue {
    socket: UnderlaySocket,
    encapsulation: Encapsulation,
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

/// A frame in its datagram, and whose it is.
struct Parcel<'d, 'n> {
    network: &'n Network,
    origin: Origin,
    id: NetworkId,
    frame: &'d [u8],
}

impl EndpointQueue {
    pub(super) fn new(socket: UnderlaySocket, encapsulation: Encapsulation) -> EndpointQueue {
        EndpointQueue {
            socket,
            encapsulation,
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
        let Some(parcel) = self.sort(datagram, &datagrams, inbound) else {
            self.advance();
            return true;
        };
        if batch.is_full() || batch.origin.is_some_and(|(before, _)| before != parcel.origin) {
            return false;
        }
        let Parcel { network, origin, id, frame } = parcel;
        batch.origin = Some((origin, datagrams.source));
        let counters = &network.shared.counters[inbound.worker];
        let unfinished = arrival::offload(frame, network.frame_max);
        let Some(mut coalescer) = Coalescer::start(batch.spare(), frame) else {
            counters.drop_frame(DropReason::RxTruncated);
            self.advance();
            return true;
        };
        self.advance();
        if !unfinished.needs_csum {
            self.coalesce(&mut coalescer, id, &datagrams, inbound);
        }
        let len = coalescer.finish();
        if let (true, Some(header)) = (unfinished.needs_csum, batch.spare().first_chunk_mut()) {
            unfinished.to_virtio(header);
        }
        if ecn::matters(datagrams.tos)
            && !ecn::merge(&mut batch.spare()[VNET_HDR_LEN..][..len], datagrams.tos)
        {
            counters.drop_frame(DropReason::Congested);
        } else if batch.take(len, network.tag).is_err() {
            counters.drop_frame(DropReason::BadOffload);
        }
        true
    }

    /// Appends what follows, for as long as it can be appended. One GSO frame of 64 KiB comes in two calls' datagrams.
    fn coalesce(
        &mut self,
        coalescer: &mut Coalescer<'_>,
        id: NetworkId,
        first: &Datagrams,
        inbound: &Inbound<'_>,
    ) {
        while self.rest.is_some() || self.read(inbound) {
            let Some((datagrams, datagram)) = self.next() else { break };
            if (datagrams.source, datagrams.tos) != (first.source, first.tos) {
                break;
            }
            match self.encapsulation.parse(datagram) {
                Some((same, frame)) if same == id && coalescer.push(frame) => self.advance(),
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
                    self.rest = Some((datagrams, datagrams.start));
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

    /// Whose a datagram is, and the frame in it; one that is nobody's is counted.
    fn sort<'d, 'n>(
        &self,
        datagram: &'d [u8],
        datagrams: &Datagrams,
        inbound: &Inbound<'n>,
    ) -> Option<Parcel<'d, 'n>> {
        let Some((id, frame)) = self.encapsulation.parse(datagram) else {
            inbound.counters.drop_frame(DropReason::BadTunnelHeader);
            return None;
        };
        let networks = inbound.demux.map_or(&[][..], |demux| demux.networks(id));
        let Some(first) = networks.first() else {
            inbound.counters.drop_frame(DropReason::UnknownVni);
            return None;
        };
        let found = networks.iter().find_map(|network| Some((network, network.origin(&datagrams.source)?)));
        let Some((network, origin)) = found else {
            first.shared.counters[inbound.worker].drop_frame(DropReason::UnknownRemote);
            return None;
        };
        Some(Parcel { network, origin, id, frame })
    }
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
