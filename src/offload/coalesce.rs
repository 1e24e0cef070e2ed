//! Generic receive offload in software: TCP segments that come in a row become one frame of up to 64 KiB again.
//!
//! For a port where every frame costs more than its bytes, and where frames come many at once: a tunnel's, where one receive
//! call brings many datagrams of one outer flow, each with a frame inside. What was merged crosses the switch as one frame
//! and enters a TAP device whole; for a port that cannot take it, [`Segmenter`](super::segment::Segmenter) cuts it again.
//!
//! What is merged is what Linux merges (`inet_gro_receive`, `ipv6_gro_receive`, `tcp_gro_receive`): segments in order, equal in
//! every header field that a segmenter copies, equal in length but for the last and not tiny, their IPv4 identification counting up or, with
//! DF, constant. So cutting gives back the same segments byte for byte, with two exceptions. A constant identification counts up
//! afterwards, as it does in Linux; with DF it means nothing (RFC 6864, section 4.1). And Ethernet padding is gone; Linux would
//! not merge a padded frame.
//!
//! Checksums are verified before anything is merged: the merged frame gets a new one, which would hide that a
//! segment was broken. What is not merged passes unchanged, right or wrong.
//!
//! A [`Coalescer`] has one frame in the making. The caller finishes it at the first frame that does not fit, so order is kept and
//! nothing waits. Rejected: several flows at a time, as in Linux. That pays where a network card mixes flows; a tunnel's
//! sender chooses its source port by the inner flow (RFC 7348, section 5), so one outer flow is mostly one inner flow.
//!
//! The first frame is parsed when a second one comes, so a frame by itself costs a copy. Headers are compared before any byte of
//! payload is looked at.

use std::ops::Range;

use super::checksum::Sum;
use super::segment::pseudo_header;
use super::{
    Gso, Layout, MAX_HEADERS_LEN, MAX_TCP_SEGMENTS, Offload, VNET_HDR_LEN, is_tcp_segment_size, low16,
};
use crate::wire::layers::{Layers, protocol};
use crate::wire::{ethernet, ipv4, ipv6, tcp};

#[cfg(test)]
mod tests;

/// Flags that segments may have. The others say something about one segment alone.
const FLAGS: u8 = tcp::ACK | tcp::ECE | ENDS;
/// Flags that the last segment may have: nothing is appended behind them.
const ENDS: u8 = tcp::PSH | tcp::FIN;

/// A frame in the making in the caller's buffer: the room for its offload header, then the frame.
#[derive(Debug)]
pub struct Coalescer<'a> {
    header: &'a mut [u8; VNET_HDR_LEN],
    room: &'a mut [u8],
    /// Of the first frame, in bytes, padding included.
    first_len: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The first frame was not looked at.
    Unread,
    /// Nothing can be merged with it.
    Alone,
    /// A segment, and those appended to it.
    Flow(Flow),
}

impl<'a> Coalescer<'a> {
    /// Copies `frame` into `buffer`, behind the first [`VNET_HDR_LEN`] bytes. `None` when it does not fit.
    ///
    /// The frame may grow as far as the buffer reaches, but no longer than an IP packet can be.
    #[inline]
    #[must_use]
    pub fn start(buffer: &'a mut [u8], frame: &[u8]) -> Option<Coalescer<'a>> {
        let (header, room) = buffer.split_first_chunk_mut()?;
        room.get_mut(..frame.len())?.copy_from_slice(frame);
        Some(Coalescer { header, room, first_len: frame.len(), state: State::Unread })
    }

    /// Appends the payload of `frame` if it is the next segment of the same flow. If not, says `false` and leaves all as it was.
    #[inline]
    #[must_use]
    pub fn push(&mut self, frame: &[u8]) -> bool {
        if let State::Unread = self.state {
            self.state = Flow::of(&self.room[..self.first_len]).map_or(State::Alone, State::Flow);
        }
        match &mut self.state {
            State::Flow(flow) => flow.append(self.room, frame),
            _ => false,
        }
    }

    /// Writes the offload header and puts the frame's headers right. Returns the length of the frame, in bytes.
    ///
    /// A frame that stayed alone is unchanged, and its offload header all zero.
    #[inline]
    #[must_use]
    pub fn finish(self) -> usize {
        let (offload, len) = match self.state {
            State::Flow(flow) if flow.segments > 1 => (flow.offload, flow.finish(self.room)),
            _ => (Offload::default(), self.first_len),
        };
        offload.to_virtio(self.header);
        len
    }
}

/// The segments merged so far.
#[derive(Debug)]
struct Flow {
    layout: Layout,
    /// Of the merged frame.
    offload: Offload,
    /// Sum over the pseudo-header but for the length.
    pseudo_sum: Sum,
    /// Payload bytes of each segment but the last.
    size: usize,
    /// Of the merged frame, in bytes.
    len: usize,
    segments: usize,
    /// Nothing can be appended.
    ended: bool,
    /// Of the segment to come.
    next_seq: u32,
    /// Of the last segment.
    ipv4_id: u16,
    /// By how much the identification grows with each segment, once there are two.
    id_step: u16,
}

impl Flow {
    /// Of its first segment. `None` when nothing can be merged with it. Its checksums are not verified yet.
    fn of(frame: &[u8]) -> Option<Flow> {
        let layers = Layers::parse(&frame[..frame.len().min(MAX_HEADERS_LEN)])?;
        let Layers { ipv4, l3, l4, .. } = layers;
        let options = ipv4 && l4 - l3 != ipv4::MIN_HEADER_LEN;
        if layers.protocol != protocol::TCP || layers.fragment || layers.extensions || options {
            return None;
        }
        let first = Segment::read(frame, ipv4, l3, l4)?;
        if first.flags & ENDS != 0 {
            return None;
        }
        let size = first.frame.len() - first.payload;
        // Nobody would take the merged frame, and so small ones do not come in long rows.
        if !is_tcp_segment_size(size, first.payload - l4) {
            return None;
        }
        let layout = Layout { ipv4, l3, l4, payload: first.payload, extensions: false, outer: None };
        let offload = Offload {
            needs_csum: true,
            csum_start: low16(l4),
            csum_offset: tcp::CHECKSUM_OFFSET,
            gso: if ipv4 { Gso::Tcp4 } else { Gso::Tcp6 },
            gso_size: low16(size),
            hdr_len: low16(first.payload),
            ..Offload::default()
        };
        Some(Flow {
            layout,
            offload,
            pseudo_sum: pseudo_header(frame, &layout, &offload),
            size,
            len: first.frame.len(),
            segments: 1,
            ended: false,
            next_seq: first.seq.wrapping_add(u32::from(low16(size))),
            ipv4_id: first.ipv4_id,
            id_step: 0,
        })
    }

    /// Appends `frame` to the segments in `room`, if it is the next one.
    fn append(&mut self, room: &mut [u8], frame: &[u8]) -> bool {
        if self.ended {
            return false;
        }
        let Layout { ipv4, l3, l4, .. } = self.layout;
        let Some(next) = Segment::read(frame, ipv4, l3, l4) else { return false };
        let payload = &next.frame[next.payload..];
        let len = self.len + payload.len();
        if !self.precedes(&next, room)
            || payload.len() > self.size
            || self.segments == MAX_TCP_SEGMENTS
            || len - l3 > usize::from(u16::MAX)
            || len > room.len()
        {
            return false;
        }
        let first_intact = self.segments > 1 || self.is_intact(&room[..self.len]);
        if !first_intact || !self.is_intact(next.frame) {
            return false;
        }
        room[self.len..len].copy_from_slice(payload);
        room[l4 + tcp::field::FLAGS] |= next.flags & ENDS;
        self.ended = next.flags & ENDS != 0 || payload.len() < self.size;
        self.len = len;
        self.segments += 1;
        self.next_seq = next.seq.wrapping_add(u32::from(low16(payload.len())));
        self.id_step = next.ipv4_id.wrapping_sub(self.ipv4_id);
        self.ipv4_id = next.ipv4_id;
        true
    }

    /// Whether `next` is of this flow and follows its last segment; `room` has the headers of the first.
    fn precedes(&self, next: &Segment<'_>, room: &[u8]) -> bool {
        let step = next.ipv4_id.wrapping_sub(self.ipv4_id);
        (step == 1 || step == 0 && next.dont_fragment)
            && (self.segments == 1 || step == self.id_step)
            && next.seq == self.next_seq
            && next.payload == self.layout.payload
            && self.same_headers(&room[..next.payload], &next.frame[..next.payload])
    }

    /// Whether two segments' headers are equal in all that does not change from segment to segment.
    fn same_headers(&self, first: &[u8], next: &[u8]) -> bool {
        let Layout { ipv4, l3, l4, .. } = self.layout;
        let (ip, ip_checksum) = if ipv4 {
            (ipv4::field::TOTAL_LEN.start..ipv4::field::ID.end, ipv4::field::CHECKSUM)
        } else {
            (ipv6::field::PAYLOAD_LEN, ipv6::HEADER_LEN..ipv6::HEADER_LEN)
        };
        let flags = l4 + tcp::field::FLAGS;
        let varying = [
            at(l3, ip),
            at(l3, ip_checksum),
            at(l4, tcp::field::SEQ),
            flags..flags + 1,
            at(l4, tcp::field::CHECKSUM),
        ];
        let mut start = 0;
        for field in varying {
            if first[start..field.start] != next[start..field.start] {
                return false;
            }
            start = field.end;
        }
        first[start..] == next[start..] && (first[flags] ^ next[flags]) & !ENDS == 0
    }

    /// Whether the checksums of `frame` are right: a segment without padding, whose headers are where the first's are.
    fn is_intact(&self, frame: &[u8]) -> bool {
        let Layout { ipv4, l3, l4, .. } = self.layout;
        let pseudo_sum = self.pseudo_sum.word(low16(frame.len() - l4));
        (!ipv4 || is_checksum(Sum::default(), &frame[l3..l4], ipv4::field::CHECKSUM))
            && is_checksum(pseudo_sum, &frame[l4..], tcp::field::CHECKSUM)
    }

    /// Makes the headers those of the merged frame. Returns its length, in bytes.
    fn finish(&self, room: &mut [u8]) -> usize {
        let Layout { ipv4, l3, l4, .. } = self.layout;
        let ip_len = self.len - l3;
        let header = &mut room[l3..l4];
        if !ipv4 {
            if let Some(header) = header.first_chunk_mut() {
                ipv6::set_payload_len(header, low16(ip_len - ipv6::HEADER_LEN));
            }
        } else {
            if let Some(header) = header.first_chunk_mut() {
                ipv4::set_total_len(header, low16(ip_len));
            }
            ipv4::fill_checksum(header);
        }
        let sum = self.pseudo_sum.word(low16(self.len - l4)).fold();
        room[l4..][tcp::field::CHECKSUM].copy_from_slice(&sum);
        self.len
    }
}

/// A TCP segment with payload, fit to be merged by its lengths and flags.
struct Segment<'a> {
    /// Without padding.
    frame: &'a [u8],
    /// Where the payload begins.
    payload: usize,
    seq: u32,
    flags: u8,
    /// 0 with IPv6, which has none.
    ipv4_id: u16,
    /// Always, with IPv6.
    dont_fragment: bool,
}

impl<'a> Segment<'a> {
    /// Of a frame whose IP header is at `l3` and whose TCP header is at `l4`.
    fn read(frame: &'a [u8], ipv4: bool, l3: usize, l4: usize) -> Option<Segment<'a>> {
        let packet = frame.get(l3..)?;
        let (ip_len, ipv4_id, dont_fragment) = if ipv4 {
            let ip = ipv4::Header::from_slice(packet).ok()?;
            (usize::from(ip.total_len()), ip.identification(), ip.dont_fragment())
        } else {
            let ip = ipv6::Header::from_slice(packet).ok()?;
            (ipv6::HEADER_LEN + usize::from(ip.payload_length()), 0, true)
        };
        // More behind the packet than padding may be a trailer that somebody reads.
        if ip_len != packet.len() && packet.len() > ethernet::MIN_PAYLOAD_LEN {
            return None;
        }
        let frame = frame.get(..l3 + ip_len)?;
        let tcp = tcp::Header::from_slice(frame.get(l4..)?).ok()?;
        let payload = l4 + tcp.slice().len();
        let flags = tcp.slice()[tcp::field::FLAGS];
        if payload == frame.len() || flags & !FLAGS != 0 {
            return None;
        }
        Some(Segment { frame, payload, seq: tcp.sequence_number(), flags, ipv4_id, dont_fragment })
    }
}

/// A header's field in the frame.
const fn at(header: usize, field: Range<usize>) -> Range<usize> {
    header + field.start..header + field.end
}

/// Whether `field` of `bytes` is what a sender computes from the rest and from `sum`.
///
/// Not whether all of it sums up to 0xFFFF: of the two zeros that would allow (RFC 1624, section 3), only one is ever computed.
fn is_checksum(sum: Sum, bytes: &[u8], field: Range<usize>) -> bool {
    let sum = sum.bytes(&bytes[..field.start]).bytes(&bytes[field.end..]);
    bytes[field] == sum.checksum()
}
