//! Generic segmentation offload in software: one frame of up to 64 KiB becomes many.
//!
//! What has to change from segment to segment is what Linux changes (`tcp_gso_segment`, `__udp_gso_segment`,
//! `inet_gso_segment`): IPv4 total length, identification and header checksum, IPv6 payload length, TCP sequence
//! number, FIN and PSH only on the last segment, CWR only on the first (RFC 3168, section 6.1.2), UDP length, and the
//! TCP or UDP checksum over all of it. Everything else is copied: addresses, tags, options, extension headers, ports.
//!
//! A [`Segmenter`] keeps one copy of the headers and writes them anew for each segment into the caller's buffer; payload is summed where
//! it is and handed on as a slice ([`Segmenter::next_split`]), or copied behind its headers ([`Segmenter::next_into`]). Nothing is
//! allocated.
//!
//! The pseudo-header's sum is computed from the addresses, whatever the sender left in the checksum field. With IPv6
//! extension headers it is taken from that field instead: behind a routing header, the destination that counts is not
//! the one in the IP header (RFC 8200, section 8.1).

use super::checksum::{self, Sum};
use super::{BadOffload, Gso, Layout, MAX_HEADERS_LEN, Offload, layout, low16};
use crate::wire::layers::protocol;
use crate::wire::{ipv4, ipv6, tcp, udp};

/// How far the checksum of a segment is finished.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Checksum {
    /// Ready for a wire.
    #[default]
    Complete,
    /// The field holds the pseudo-header's sum; [`Segmenter::segment_offload`] describes it.
    Partial,
}

/// Cuts one frame into segments.
#[derive(Debug)]
pub struct Segmenter<'a> {
    headers: [u8; MAX_HEADERS_LEN],
    payload: &'a [u8],
    layout: Layout,
    tcp: bool,
    checksum: Checksum,
    gso_size: usize,
    /// Payload bytes already sent.
    sent: usize,
    /// Of the whole frame.
    ipv4_id: u16,
    tcp_seq: u32,
    /// Sum over the IPv4 header but for length, identification and checksum.
    ipv4_sum: Sum,
    /// Sum over the pseudo-header but for the length.
    pseudo_sum: Sum,
}

impl<'a> Segmenter<'a> {
    /// Of a whole frame with its tags in place.
    ///
    /// # Errors
    /// The headers are not what `offload` claims; see [`check_headers`](super::check_headers).
    pub fn new(frame: &'a [u8], offload: &Offload, checksum: Checksum) -> Result<Segmenter<'a>, BadOffload> {
        Segmenter::with_head(&[], frame, offload, checksum)
    }

    /// Of a frame that is `head` followed by `rest`: the addresses and the tag that the port wants, say, and everything
    /// behind. `offload` describes the two together; `head` holds no payload.
    ///
    /// # Errors
    /// The headers are not what `offload` claims; see [`check_headers`](super::check_headers).
    pub fn with_head(
        head: &[u8],
        rest: &'a [u8],
        offload: &Offload,
        checksum: Checksum,
    ) -> Result<Segmenter<'a>, BadOffload> {
        let mut headers = [0; MAX_HEADERS_LEN];
        let frame_len = head.len() + rest.len();
        let (for_head, for_rest) = headers.split_at_mut_checked(head.len()).ok_or(BadOffload::Headers)?;
        for_head.copy_from_slice(head);
        let taken = rest.len().min(for_rest.len());
        for_rest[..taken].copy_from_slice(&rest[..taken]);
        let window = &headers[..head.len() + taken];

        let layout = layout(window, frame_len, offload)?;
        let payload = layout
            .payload
            .checked_sub(head.len())
            .and_then(|at| rest.get(at..))
            .ok_or(BadOffload::Headers)?;
        let pseudo_sum = pseudo_header(window, &layout, offload);
        // The outer checksum is over the inner one.
        let outer_checksum = layout.outer.is_some_and(|outer| outer.checksum);
        let checksum = if outer_checksum { Checksum::Complete } else { checksum };
        let mut segmenter = Segmenter {
            headers,
            payload,
            layout,
            tcp: offload.gso != Gso::Udp,
            checksum,
            gso_size: usize::from(offload.gso_size),
            sent: 0,
            ipv4_id: 0,
            tcp_seq: 0,
            ipv4_sum: Sum::default(),
            pseudo_sum,
        };
        segmenter.take_fields();
        Ok(segmenter)
    }

    /// Has segments of TCP be at most `frame_max` bytes long; a stream has no boundaries that would have to be kept.
    pub fn limit(&mut self, frame_max: usize) {
        let most = frame_max.saturating_sub(self.layout.payload);
        if self.tcp && most > 0 {
            self.gso_size = self.gso_size.min(most);
        }
    }

    /// Takes out of the headers what is set anew in every segment.
    fn take_fields(&mut self) {
        let Layout { ipv4, l3, l4, payload, .. } = self.layout;
        if ipv4 && let Some(header) = self.headers[l3..].first_chunk_mut() {
            self.ipv4_id = u16::from_be_bytes([header[4], header[5]]);
            ipv4::set_total_len(header, 0);
            ipv4::set_id(header, 0);
            ipv4::set_checksum(header, [0, 0]);
            self.ipv4_sum = Sum::of(&self.headers[l3..l4]);
        }
        if self.tcp
            && let Some(&[_, _, _, _, a, b, c, d]) = self.headers[l4..payload].first_chunk()
        {
            self.tcp_seq = u32::from_be_bytes([a, b, c, d]);
        }
        let field = self.checksum_field();
        self.headers[field..field + 2].fill(0);
    }

    /// Where the checksum is in every segment, in bytes from its start.
    const fn checksum_field(&self) -> usize {
        let offset = if self.tcp { tcp::CHECKSUM_OFFSET } else { udp::CHECKSUM_OFFSET };
        self.layout.l4 + offset as usize
    }

    /// Length of the longest segment, in bytes: how large a buffer [`Segmenter::next_into`] needs.
    #[must_use]
    pub fn segment_size_max(&self) -> usize {
        self.layout.payload + self.gso_size.min(self.payload.len())
    }

    /// What every segment still needs.
    #[must_use]
    pub fn segment_offload(&self) -> Offload {
        match self.checksum {
            Checksum::Complete => Offload { csum_valid: true, ..Offload::default() },
            Checksum::Partial => Offload {
                needs_csum: true,
                csum_start: low16(self.layout.l4),
                csum_offset: if self.tcp { tcp::CHECKSUM_OFFSET } else { udp::CHECKSUM_OFFSET },
                ..Offload::default()
            },
        }
    }

    /// Writes the next segment to the start of `out` and returns its length in bytes. `None` after the last one, and
    /// when `out` is shorter than the segment ([`Segmenter::segment_size_max`] never is); that one is still to come then.
    #[inline]
    pub fn next_into(&mut self, out: &mut [u8]) -> Option<usize> {
        let len = self.layout.payload + self.left().min(self.gso_size);
        let (head, room) = out.get_mut(..len)?.split_at_mut(self.layout.payload);
        let index = self.sent / self.gso_size;
        room.copy_from_slice(self.next_split(head)?);
        if let Some(outer) = &self.layout.outer {
            outer.finish(&mut out[..len], index);
        }
        Some(len)
    }

    /// Writes only the headers of the next segment to the start of `head`, [`Segmenter::head_len`] bytes, and returns its payload,
    /// which stays where it is. Not for what is in a tunnel whose headers have a checksum over the payload. `None` as
    /// for [`Segmenter::next_into`].
    #[inline]
    pub fn next_split(&mut self, head: &mut [u8]) -> Option<&'a [u8]> {
        let left = self.left();
        if left == 0 {
            return None;
        }
        let header_len = self.layout.payload;
        let piece = &self.payload[self.sent..self.sent + left.min(self.gso_size)];
        let headers = head.get_mut(..header_len)?;
        headers.copy_from_slice(&self.headers[..header_len]);
        self.set_ip(headers, piece.len());
        self.set_transport(headers, piece.len(), piece.len() == left);

        let transport_len = low16(header_len - self.layout.l4 + piece.len());
        let pseudo_sum = self.pseudo_sum.word(transport_len);
        let checksum = match self.checksum {
            Checksum::Partial => pseudo_sum.fold(),
            Checksum::Complete => {
                // The header's length is even, as sums want it.
                let sum = pseudo_sum.bytes(&headers[self.layout.l4..]).bytes(piece);
                if self.tcp { sum.checksum() } else { sum.udp_checksum() }
            }
        };
        let field = self.checksum_field();
        headers[field..field + 2].copy_from_slice(&checksum);
        self.sent += piece.len();
        Some(piece)
    }

    /// Length of the headers of every segment, in bytes.
    #[must_use]
    pub fn head_len(&self) -> usize {
        self.layout.payload
    }

    fn left(&self) -> usize {
        self.payload.len() - self.sent
    }

    fn set_ip(&self, headers: &mut [u8], piece_len: usize) {
        let ip_len = headers.len() - self.layout.l3 + piece_len;
        let header = &mut headers[self.layout.l3..];
        if !self.layout.ipv4 {
            if let Some(header) = header.first_chunk_mut() {
                ipv6::set_payload_len(header, low16(ip_len - ipv6::HEADER_LEN));
            }
        } else if let Some(header) = header.first_chunk_mut() {
            // Not more than MAX_TCP_SEGMENTS.
            let id = self.ipv4_id.wrapping_add(low16(self.sent / self.gso_size));
            let total_len = low16(ip_len);
            ipv4::set_total_len(header, total_len);
            ipv4::set_id(header, id);
            ipv4::set_checksum(header, self.ipv4_sum.word(total_len).word(id).checksum());
        }
    }

    fn set_transport(&self, headers: &mut [u8], piece_len: usize, last: bool) {
        let header = &mut headers[self.layout.l4..];
        if !self.tcp {
            if let Some(header) = header.first_chunk_mut() {
                udp::set_len(header, low16(udp::HEADER_LEN + piece_len));
            }
        } else if let Some(header) = header.first_chunk_mut() {
            // A frame's payload is shorter than 64 KiB.
            tcp::set_seq(header, self.tcp_seq.wrapping_add(u32::from(low16(self.sent))));
            if !last {
                tcp::clear_flags(header, tcp::FIN | tcp::PSH);
            }
            if self.sent != 0 {
                tcp::clear_flags(header, tcp::CWR);
            }
        }
    }
}

/// The sum over the pseudo-header of a frame that needs segmentation, but for the length (RFC 9293, section 3.1;
/// RFC 768; RFC 8200, section 8.1). `head` contains all the headers of `layout`.
pub(super) fn pseudo_header(head: &[u8], layout: &Layout, offload: &Offload) -> Sum {
    if layout.extensions {
        let field = layout.l4 + usize::from(offload.csum_offset);
        // The length the sender counted is the IP header's; adding the complement subtracts it (RFC 1624).
        let header = &head[layout.l3..];
        let payload_len = u16::from_be_bytes([header[4], header[5]]);
        let len = payload_len.wrapping_sub(low16(layout.l4 - layout.l3 - ipv6::HEADER_LEN));
        return Sum::of(&head[field..field + 2]).word(!len);
    }
    let protocol = if offload.gso == Gso::Udp { protocol::UDP } else { protocol::TCP };
    checksum::pseudo_header(&head[layout.l3..], layout.ipv4, protocol)
}
