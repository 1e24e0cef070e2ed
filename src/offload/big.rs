//! BIG TCP: one TCP frame of more than 64 KiB becomes several of up to 64 KiB, each still to be segmented.
//!
//! Linux stations whose interface has a `gso_max_size` (IPv6) or `gso_ipv4_max_size` above 64 KiB hand over such frames, of up to
//! 512 KiB. No length field of IP can say how long they are: IPv4's total length is 0, and so is IPv6's payload length, with
//! a hop-by-hop header behind it that has the length (RFC 2675), which the newest kernels leave out. Nor is there a port that
//! could be trusted to take them: TAPs and guests take 64 KiB, and what a packet socket takes depends on its interface.
//!
//! So they are cut where they come in, in multiples of their segment size, and nothing behind that knows of them: what
//! arrives at a port that segments is the same, byte for byte, as without BIG TCP. Rejected: carrying them whole from packet
//! port to packet port. Every length in the switch would be of another kind, for the few stations that gain from it.
//!
//! A [`Big`] knows all headers. The payload is not looked at, so that it can be received where it is to lie:
//! [`crate::batch::Batch::big_room`].

use super::checksum::{self, Sum};
use super::{BadOffload, Gso, MAX_HEADERS_LEN, Offload, VNET_HDR_LEN, is_tcp_segment_size, low16};
use crate::wire::layers::{Layers, protocol};
use crate::wire::{ipv4, ipv6, tcp};

/// Longest frame, in bytes: Linux's `GSO_MAX_SIZE`, and its headers.
pub const BIG_FRAME_MAX: usize = 8 * 65_535 + MAX_HEADERS_LEN;
/// Most pieces of one frame. Each but the last has more than half of 64 KiB of payload, or one more segment would fit.
pub const BIG_PIECES_MAX: usize = 18;

/// Longest IP packet of a piece.
const PACKET_MAX: usize = 65_535;
/// A hop-by-hop header with a jumbo payload option and nothing else, in bytes.
const JUMBO_LEN: usize = 8;
const HOP_BY_HOP: u8 = 0;
/// Where IPv6's next header is, in bytes from its start.
const NEXT_HEADER: usize = 6;

/// How a frame is cut.
#[derive(Clone, Debug)]
pub struct Big {
    headers: [u8; MAX_HEADERS_LEN],
    /// Of a piece, in bytes.
    headers_len: usize,
    /// As they were received, in bytes.
    received_len: usize,
    ipv4: bool,
    l3: usize,
    l4: usize,
    offload: Offload,
    payload_len: usize,
    /// Payload bytes of each piece but the last.
    piece_len: usize,
    /// Sum over the pseudo-header but for the length.
    pseudo_sum: Sum,
}

/// A piece: what part of the payload it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Where it begins, in bytes.
    pub at: usize,
    /// Its length, in bytes.
    pub len: usize,
}

impl Big {
    /// Of a frame of `frame_len` bytes that came with this offload header; `head` is the beginning, all headers at least.
    ///
    /// # Errors
    /// It is not TCP that is to be segmented, or its headers are not what was claimed.
    pub fn of(header: &[u8; VNET_HDR_LEN], head: &[u8], frame_len: usize) -> Result<Big, BadOffload> {
        let mut offload = Offload::from_virtio(header, frame_len)?;
        let head = &head[..head.len().min(MAX_HEADERS_LEN).min(frame_len)];
        let mut headers = [0; MAX_HEADERS_LEN];
        headers[..head.len()].copy_from_slice(head);
        let mut layers = Layers::parse(head).ok_or(BadOffload::Headers)?;
        let jumbo = !layers.ipv4 && layers.extensions;
        if jumbo {
            is_jumbo(&head[layers.l3..], frame_len - layers.l3)?;
            headers.copy_within(layers.l3 + ipv6::HEADER_LEN + JUMBO_LEN.., layers.l3 + ipv6::HEADER_LEN);
            headers[layers.l3 + NEXT_HEADER] = protocol::TCP;
            layers.l4 = layers.l3 + ipv6::HEADER_LEN;
            offload.csum_start = offload.csum_start.saturating_sub(low16(JUMBO_LEN));
        }
        let removed = if jumbo { JUMBO_LEN } else { 0 };
        match (offload.gso, layers.ipv4) {
            (Gso::Tcp4, true) | (Gso::Tcp6, false) if layers.protocol == protocol::TCP => {}
            _ => return Err(BadOffload::Protocol),
        }
        if layers.fragment {
            return Err(BadOffload::Fragment);
        }
        if layers.ip_len.is_some() {
            return Err(BadOffload::Length);
        }
        // 0: no checksum was asked for, and it is all the same.
        let csum_start =
            usize::from(offload.csum_start) + if offload.csum_start == 0 { layers.l4 } else { 0 };
        if csum_start != layers.l4 {
            return Err(BadOffload::ChecksumField);
        }
        let headers_here = &headers[..head.len() - removed];
        let transport = headers_here.get(layers.l4..).ok_or(BadOffload::Headers)?;
        let tcp_len = tcp::Header::from_slice(transport).map_err(|_| BadOffload::Headers)?.slice().len();
        let headers_len = layers.l4 + tcp_len;
        let received_len = headers_len + removed;
        let payload_len = frame_len.checked_sub(received_len).ok_or(BadOffload::Headers)?;
        let size = usize::from(offload.gso_size);
        let segments = (PACKET_MAX - (headers_len - layers.l3)) / size.max(1);
        if segments == 0 || !is_tcp_segment_size(size, tcp_len) {
            return Err(BadOffload::GsoSize(offload.gso_size));
        }
        if frame_len > BIG_FRAME_MAX || payload_len == 0 {
            return Err(BadOffload::Length);
        }
        offload.csum_start = low16(layers.l4);
        offload.hdr_len = low16(headers_len);
        let Layers { ipv4, l3, l4, .. } = layers;
        let pseudo_sum = checksum::pseudo_header(&headers[l3..], ipv4, protocol::TCP);
        let piece_len = segments * size;
        Ok(Big {
            headers,
            headers_len,
            received_len,
            ipv4,
            l3,
            l4,
            offload,
            payload_len,
            piece_len,
            pseudo_sum,
        })
    }

    /// Length of the headers of each piece, in bytes.
    #[must_use]
    pub fn headers_len(&self) -> usize {
        self.headers_len
    }

    /// Length of the headers as they were received, in bytes: a jumbo payload option is not in the pieces.
    #[must_use]
    pub fn received_len(&self) -> usize {
        self.received_len
    }

    /// What each piece has of the payload; at most [`BIG_PIECES_MAX`].
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + use<> {
        let (len, step) = (self.payload_len, self.piece_len);
        (0..len.div_ceil(step))
            .map(move |index| Piece { at: index * step, len: step.min(len - index * step) })
    }

    /// Writes a piece's offload header and headers to `out`, which is as long as they are.
    pub fn write(&self, piece: Piece, out: &mut [u8]) {
        let Some((header, out)) = out.split_first_chunk_mut() else { return };
        out.copy_from_slice(&self.headers[..self.headers_len]);
        let first = piece.at == 0;
        let last = piece.at + piece.len == self.payload_len;
        Offload { ecn: self.offload.ecn && first, ..self.offload }.to_virtio(header);
        let packet_len = self.headers_len - self.l3 + piece.len;
        let ip = &mut out[self.l3..self.l4];
        if self.ipv4 {
            if let Some(fixed) = ip.first_chunk_mut() {
                let id = u16::from_be_bytes([fixed[4], fixed[5]]);
                // Identifications wrap, and there are fewer segments than those.
                let id = id.wrapping_add(low16(piece.at / usize::from(self.offload.gso_size)));
                ipv4::set_total_len(fixed, low16(packet_len));
                ipv4::set_id(fixed, id);
            }
            ipv4::fill_checksum(ip);
        } else if let Some(fixed) = ip.first_chunk_mut() {
            ipv6::set_payload_len(fixed, low16(packet_len - ipv6::HEADER_LEN));
        }
        if let Some(fixed) = out[self.l4..].first_chunk_mut() {
            let [a, b, c, d] = [4, 5, 6, 7].map(|at| fixed[at]);
            let at = u32::try_from(piece.at).unwrap_or(u32::MAX);
            tcp::set_seq(fixed, u32::from_be_bytes([a, b, c, d]).wrapping_add(at));
            if !last {
                tcp::clear_flags(fixed, tcp::FIN | tcp::PSH);
            }
            if !first {
                tcp::clear_flags(fixed, tcp::CWR);
            }
            let sum = self.pseudo_sum.word(low16(self.headers_len - self.l4 + piece.len)).fold();
            fixed[tcp::field::CHECKSUM].copy_from_slice(&sum);
        }
    }
}

/// Whether an IPv6 packet of so many bytes has a hop-by-hop header of a jumbo payload and no other extension header.
fn is_jumbo(packet: &[u8], packet_len: usize) -> Result<(), BadOffload> {
    let jumbo = packet.get(ipv6::HEADER_LEN..).and_then(|rest| rest.first_chunk::<JUMBO_LEN>());
    let (Some(&[next, 0, 0xc2, 4, a, b, c, d]), Some(&HOP_BY_HOP)) = (jumbo, packet.get(NEXT_HEADER)) else {
        return Err(BadOffload::Protocol);
    };
    if next != protocol::TCP {
        return Err(BadOffload::Protocol);
    }
    let declared = u32::from_be_bytes([a, b, c, d]) as usize;
    if declared + ipv6::HEADER_LEN == packet_len { Ok(()) } else { Err(BadOffload::Length) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::segment::{Checksum, Segmenter};
    use super::super::tests::{Field, Model, cut, gso_models};
    use super::*;
    use crate::batch::Batch;

    /// A frame as a sender with BIG TCP hands it over, with or without the hop-by-hop header: the model's headers, a longer payload.
    fn build(model: &Model, gso_size: u16, hop_by_hop: bool) -> (Vec<u8>, [u8; VNET_HDR_LEN]) {
        let mut frame = Model { payload: vec![0; 1], ..model.clone() }.build(Field::PseudoHeader);
        frame.pop();
        frame.extend(&model.payload);
        let (l3, l4) = (model.l3(), model.l4());
        let mut offload = model.offload(gso_size);
        if model.ipv4 {
            frame[l3 + 2..l3 + 4].fill(0);
            ipv4::fill_checksum(&mut frame[l3..l4]);
        } else {
            frame[l3 + 4..l3 + 6].fill(0);
            if hop_by_hop {
                let len = u32::try_from(frame.len() - l4 + JUMBO_LEN).expect("small").to_be_bytes();
                frame[l3 + NEXT_HEADER] = HOP_BY_HOP;
                frame.splice(l4..l4, [6, 0, 0xc2, 4, len[0], len[1], len[2], len[3]]);
                offload = offload.shifted(8);
            }
        }
        let mut header = [0; VNET_HDR_LEN];
        offload.to_virtio(&mut header);
        (frame, header)
    }

    fn big_models() -> impl Strategy<Value = (Model, u16, bool)> {
        let payload_len = 65_600_usize..520_000;
        (gso_models(), payload_len, 48_u16..65_000, any::<bool>())
            .prop_filter("TCP", |((model, _), ..)| model.tcp)
            .prop_map(|((mut model, _), len, gso_size, hop_by_hop)| {
                model.extensions.clear();
                model.payload = (0..len).map(|i| (i * 7 + i / 251).to_le_bytes()[0]).collect();
                (model, gso_size, hop_by_hop)
            })
    }

    /// The frame into a batch, as a port does it. What it becomes, and on a wire.
    fn arrive(frame: &[u8], header: &[u8; VNET_HDR_LEN], tag: Option<[u8; 4]>) -> Result<Batch, BadOffload> {
        let big = Big::of(header, &frame[..frame.len().min(MAX_HEADERS_LEN)], frame.len())?;
        let mut batch = Batch::default();
        let mut payload = &frame[big.received_len()..];
        for room in batch.big_room(&big) {
            let (here, rest) = payload.split_at(room.len());
            room.copy_from_slice(here);
            payload = rest;
        }
        assert!(payload.is_empty());
        batch.take_big(&big, tag)?;
        Ok(batch)
    }

    fn on_a_wire(batch: &Batch) -> Vec<Vec<u8>> {
        let segments = |frame: &crate::frame::Frame| {
            let bytes = batch.bytes(frame);
            if frame.offload.gso == Gso::None {
                let mut bytes = bytes.to_vec();
                checksum::finish(&mut bytes, &frame.offload).expect("in range");
                return vec![bytes];
            }
            let mut segmenter = Segmenter::new(bytes, &frame.offload, Checksum::Complete).expect("admitted");
            cut(&mut segmenter)
        };
        batch.frames.iter().flat_map(segments).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// In two steps, it becomes what a sender without offloads would have sent.
        #[test]
        fn pieces_are_the_same_segments((model, gso_size, hop_by_hop) in big_models()) {
            let (frame, header) = build(&model, gso_size, hop_by_hop);
            let batch = arrive(&frame, &header, None).expect("admitted");
            for frame in &batch.frames {
                prop_assert!(frame.len() <= crate::batch::FRAME_MAX);
                prop_assert!(frame.offload.gso == Gso::None || frame.offload.gso_size == gso_size);
            }
            let segments: Vec<_> =
                model.segments(gso_size).iter().map(|segment| segment.build(Field::Complete)).collect();
            prop_assert!(on_a_wire(&batch) == segments);
            // And with a tag that the kernel took out.
            let tagged = arrive(&frame, &header, Some([0x81, 0, 0, 5])).expect("admitted");
            let tag = |mut frame: Vec<u8>| { frame.splice(12..12, [0x81, 0, 0, 5]); frame };
            prop_assert!(on_a_wire(&tagged) == segments.into_iter().map(tag).collect::<Vec<_>>());
        }

        /// Whatever is in the headers, nothing panics.
        #[test]
        fn any_headers((model, gso_size, hop_by_hop) in big_models(), changes in prop::collection::vec((0_usize..110, any::<u8>()), 0..4)) {
            let (mut frame, mut header) = build(&model, gso_size, hop_by_hop);
            for (at, value) in changes {
                if at < VNET_HDR_LEN { header[at] = value } else { frame[at - VNET_HDR_LEN] = value }
            }
            let _ = arrive(&frame, &header, None);
        }
    }

    #[test]
    fn what_is_not_big_tcp_is_refused() {
        let model = Model { payload: vec![7; 100_000], ..super::super::tests::model(false, true, 1) };
        let (frame, header) = build(&model, 1428, true);
        let check = |change: &dyn Fn(&mut Vec<u8>, &mut [u8; VNET_HDR_LEN])| {
            let (mut frame, mut header) = (frame.clone(), header);
            change(&mut frame, &mut header);
            arrive(&frame, &header, None).err()
        };
        assert_eq!(check(&|_, _| ()), None);
        assert_eq!(check(&|_, header| header[1] = 1), Some(BadOffload::Protocol));
        assert_eq!(
            check(&|_, header| *header = [0; VNET_HDR_LEN]),
            Some(BadOffload::Protocol),
            "not to be cut"
        );
        assert_eq!(check(&|_, header| (header[4], header[5]) = (1, 0)), Some(BadOffload::GsoSize(1)));
        assert_eq!(check(&|_, header| header[6] += 2), Some(BadOffload::ChecksumField));
        assert_eq!(
            check(&|frame, _| frame[18] = 1),
            Some(BadOffload::Length),
            "a length that it cannot have"
        );
        assert_eq!(check(&|frame, _| frame[61] ^= 1), Some(BadOffload::Length), "another jumbo length");
        assert_eq!(check(&|frame, _| frame[54] = 17), Some(BadOffload::Protocol));
        assert_eq!(check(&|frame, _| frame[56] = 1), Some(BadOffload::Protocol), "another option");
    }
}
