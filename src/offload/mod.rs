//! Checksums and segmentation that a sender left for later.
//!
//! A Linux sender hands over frames with unfinished checksums and of up to 64 KiB, described by a
//! `virtio_net_hdr` (virtio 1.2, section 5.1.6). [`Offload`] is that description, normalised: every frame in
//! the switch carries one. Ports say with [`Capabilities`] what they can take; what a port cannot take is
//! finished here.
//!
//! The way of a frame through this module:
//! 1. a port receives it with a header: [`Offload::from_virtio`]; nearly always that is all;
//! 2. a tag that travelled beside the frame is put in: [`Offload::shifted`];
//! 3. if it needs segmentation, its headers are compared with what was claimed, once, at the port that brought it:
//!    [`Offload::admit`];
//! 4. a tag is pushed or popped on the way: [`Offload::shifted`];
//! 5. the leaving port [`takes`](Capabilities::takes) it as it is ([`Offload::to_virtio`]), or it is finished first:
//!    [`checksum::finish`], or [`segment::Segmenter`].
//!
//! Frames of more than 64 KiB become several at the port that brought them, see [`big`].
//!
//! Frames that came one by one and were one frame at their sender become that again with [`coalesce::Coalescer`], at the
//! port that brought them.
//!
//! Nothing here allocates, and no content of a frame or header makes it panic or reach outside the frame.

pub mod big;
pub mod checksum;
pub mod coalesce;
pub mod mss;
pub mod segment;
mod tunnel;
mod virtio;

#[cfg(test)]
mod tests;

pub use virtio::VNET_HDR_LEN;

use crate::wire::layers::{Layers, protocol};
use crate::wire::{ipv4, ipv6, tcp, udp};

/// Kind of segmentation a frame still needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Gso {
    /// None: the frame is one frame.
    #[default]
    None = 0,
    /// TCP over IPv4 (`VIRTIO_NET_HDR_GSO_TCPV4`).
    Tcp4 = 1,
    /// TCP over IPv6 (`VIRTIO_NET_HDR_GSO_TCPV6`).
    Tcp6 = 4,
    /// UDP segmentation, IPv4 or IPv6 by the header (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    Udp = 5,
}

/// What a frame still needs before it can be on a wire.
///
/// Offsets count from the first byte of the Ethernet header and include any VLAN tags in the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offload {
    /// The checksum at `csum_start + csum_offset` holds only the pseudo-header's sum; the sum over
    /// `csum_start..` is missing. Always set when `gso` is not `None`.
    pub needs_csum: bool,
    /// The receiver need not verify the checksum (`VIRTIO_NET_HDR_F_DATA_VALID`).
    pub csum_valid: bool,
    /// Where the checksummed part begins (the TCP or UDP header), in bytes.
    pub csum_start: u16,
    /// Where in it the checksum field is, in bytes.
    pub csum_offset: u16,
    /// Segmentation still to be done.
    pub gso: Gso,
    /// TCP carries CWR that only the first segment may keep (`VIRTIO_NET_HDR_GSO_ECN`).
    pub ecn: bool,
    /// The segmentation is of the packet inside a tunnel that the sender built, which no port's header can say.
    pub tunnel: bool,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
    /// Length of all headers, in bytes; a hint, 0 when unknown.
    pub hdr_len: u16,
}

/// What a port can take from the switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// Frames with an unfinished checksum.
    pub csum: bool,
    /// TCP over IPv4 of up to 64 KiB.
    pub tso4: bool,
    /// TCP over IPv6 of up to 64 KiB.
    pub tso6: bool,
    /// UDP segmentation, IPv4 and IPv6.
    pub uso: bool,
}

/// Headers of a frame that needs segmentation are at most this long, in bytes. Four tags, IPv6 with a few extension
/// headers and TCP with all its options make 150.
pub const MAX_HEADERS_LEN: usize = 512;
/// Least bytes of TCP options and payload together in each segment of a frame that is to be cut: Linux's `TCP_MIN_SND_MSS`.
/// No Linux sender goes below, whatever its peer or the path asks for. Without a bound, one frame becomes thousands of
/// packets, once for each port and remote it leaves by.
pub const MIN_TCP_SEGMENT_BYTES: usize = 48;
/// Most segments of one TCP frame: 64 KiB at [`MIN_TCP_SEGMENT_BYTES`] with the options that connections usually have (12 bytes)
/// are 1,820.
pub const MAX_TCP_SEGMENTS: usize = 2048;
/// Most segments of one UDP frame: Linux's `UDP_MAX_SEGMENTS`, beyond which it refuses a frame.
pub const MAX_UDP_SEGMENTS: usize = 128;

/// Why a frame's offload description is not believed. The frame is to be dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadOffload {
    /// The kind of segmentation is unknown here, or ECN was asked for without TCP.
    #[error("unknown gso_type {0}")]
    UnknownGso(u8),
    /// The segment size is 0 or 65535, or less than [`MIN_TCP_SEGMENT_BYTES`] allows.
    #[error("gso_size {0} is not a segment size")]
    GsoSize(u16),
    /// The checksum is not inside the frame, or inside its Ethernet and IP headers.
    #[error("the checksum's place is not in the frame's payload")]
    ChecksumRange,
    /// The checksum asked for is not the transport header's.
    #[error("the checksum's place is not the transport header's")]
    ChecksumField,
    /// Segmentation of something that is not TCP or UDP over IP as claimed.
    #[error("the headers are not of the protocol that gso_type claims")]
    Protocol,
    /// Segmentation of an IP fragment.
    #[error("a fragment cannot be segmented")]
    Fragment,
    /// The headers do not end inside the frame or are longer than [`MAX_HEADERS_LEN`].
    #[error("the headers are cut short or too long")]
    Headers,
    /// The IP header's length is not the frame's.
    #[error("the IP length is not the frame's")]
    Length,
    /// More segments than [`MAX_TCP_SEGMENTS`] or [`MAX_UDP_SEGMENTS`].
    #[error("too many segments")]
    Segments,
    /// A checksum of a frame that needs segmentation first.
    #[error("the frame needs segmentation first")]
    Unsegmented,
}

/// Where the parts of a frame begin that needs segmentation, in bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// IPv4 if true, else IPv6.
    pub ipv4: bool,
    /// The IP header.
    pub l3: usize,
    /// The TCP or UDP header.
    pub l4: usize,
    /// The payload.
    pub payload: usize,
    /// IPv6 extension headers stand between `l3` and `l4`.
    extensions: bool,
    /// The headers of the tunnel in which `l3`, `l4` and `payload` are.
    outer: Option<tunnel::Outer>,
}

/// What has to be done to a frame before a port takes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Takes {
    /// Nothing.
    AsIs,
    /// Complete the checksum: [`checksum::finish`].
    FinishChecksum,
    /// Cut it into segments: [`segment::Segmenter`].
    Segment,
}

impl Capabilities {
    /// What has to be done to a frame before this port takes it.
    #[inline]
    #[must_use]
    pub const fn takes(&self, offload: &Offload) -> Takes {
        let segments = match offload.gso {
            Gso::None => true,
            Gso::Tcp4 => self.tso4,
            Gso::Tcp6 => self.tso6,
            Gso::Udp => self.uso,
        };
        if !segments || offload.tunnel || (!self.csum && !matches!(offload.gso, Gso::None)) {
            Takes::Segment
        } else if offload.needs_csum && (!self.csum || offload.csum_offset == checksum::SCTP_CHECKSUM_OFFSET)
        {
            // SCTP's CRC32c cannot be told from a sum in a virtio header: nobody else would finish it right.
            Takes::FinishChecksum
        } else {
            Takes::AsIs
        }
    }

    /// How far segments for this port have to be finished.
    #[inline]
    #[must_use]
    pub const fn segment_checksum(&self) -> segment::Checksum {
        if self.csum { segment::Checksum::Partial } else { segment::Checksum::Complete }
    }
}

impl Offload {
    /// The same for the frame with `delta` bytes more (a tag pushed: 4) or less (popped: -4) before its IP header.
    #[inline]
    #[must_use]
    pub const fn shifted(mut self, delta: i8) -> Offload {
        if self.csum_start != 0 {
            self.csum_start = self.csum_start.saturating_add_signed(delta as i16);
        }
        if self.hdr_len != 0 {
            self.hdr_len = self.hdr_len.saturating_add_signed(delta as i16);
        }
        self
    }

    /// How many wire frames a frame of `frame_len` bytes stands for. Exact for what passed [`Offload::admit`].
    #[inline]
    #[must_use]
    pub fn segments(&self, frame_len: usize) -> u32 {
        if self.gso == Gso::None {
            1
        } else {
            self.pieces(frame_len.saturating_sub(usize::from(self.hdr_len)))
        }
    }

    fn pieces(&self, payload_len: usize) -> u32 {
        let count = payload_len.div_ceil(usize::from(self.gso_size).max(1));
        u32::try_from(count).unwrap_or(u32::MAX).max(1)
    }

    /// Admits a received frame of `frame_len` bytes, `head` being the bytes it starts with (all headers at least; the
    /// payload may be elsewhere). Does nothing unless it needs segmentation. Then it checks the headers as
    /// [`check_headers`] does, and puts right what senders leave out and receivers insist on:
    /// - no checksum was asked for: the pseudo-header's sum is put in, and it is;
    /// - IPv4 with a zero header checksum or total length, IPv6 with a zero payload length: filled in;
    /// - a payload that fits one segment: not segmentation any more, unless it is in a tunnel;
    /// - `hdr_len` is made exact, which [`Offload::segments`] counts on.
    ///
    /// # Errors
    /// The frame is to be dropped: the headers are not what was claimed. Nothing was changed.
    #[inline]
    pub fn admit(&mut self, head: &mut [u8], frame_len: usize) -> Result<(), BadOffload> {
        if self.gso == Gso::None { Ok(()) } else { self.admit_gso(head, frame_len) }
    }

    fn admit_gso(&mut self, head: &mut [u8], frame_len: usize) -> Result<(), BadOffload> {
        let window = head.len().min(MAX_HEADERS_LEN);
        let head = &mut head[..window];
        let no_csum = self.csum_start == 0;
        let mut offload = *self;
        if no_csum {
            let layers = Layers::parse(head).ok_or(BadOffload::Headers)?;
            if layers.extensions {
                // A routing header may change the pseudo-header's destination; only the sender knows the sum.
                return Err(BadOffload::ChecksumField);
            }
            offload.csum_start = u16::try_from(layers.l4).map_err(|_| BadOffload::Headers)?;
        }
        let layout = layout(head, frame_len, &offload)?;

        let ip_payload_len = frame_len - layout.l4;
        if no_csum {
            let field = layout.l4 + usize::from(offload.csum_offset);
            let sum = segment::pseudo_header(head, &layout, &offload).word(low16(ip_payload_len));
            head[field..field + 2].copy_from_slice(&sum.fold());
        }
        fill_ip_length(&mut head[layout.l3..layout.l4], frame_len - layout.l3);

        offload.hdr_len = low16(layout.payload);
        offload.tunnel = layout.outer.is_some();
        if !offload.tunnel && frame_len - layout.payload <= usize::from(offload.gso_size) {
            offload = Offload { gso: Gso::None, ecn: false, gso_size: 0, hdr_len: 0, ..offload };
        }
        *self = offload;
        Ok(())
    }
}

/// Fills in a missing IP length or IPv4 header checksum. `header` is the IP header with options or extensions.
fn fill_ip_length(header: &mut [u8], ip_len: usize) {
    if header[0] >> 4 == 6 {
        if header[ipv6::field::PAYLOAD_LEN] == [0, 0]
            && let Some(fixed) = header.first_chunk_mut()
        {
            ipv6::set_payload_len(fixed, low16(ip_len - ipv6::HEADER_LEN));
        }
        return;
    }
    let no_length = header[ipv4::field::TOTAL_LEN] == [0, 0];
    if no_length && let Some(fixed) = header.first_chunk_mut() {
        ipv4::set_total_len(fixed, low16(ip_len));
    }
    if no_length || header[ipv4::field::CHECKSUM] == [0, 0] {
        ipv4::fill_checksum(header);
    }
}

/// A length that was checked to fit its 16-bit field.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "asserted")]
fn low16(len: usize) -> u16 {
    debug_assert!(len <= usize::from(u16::MAX));
    len as u16
}

/// Checks that the headers of a whole frame are what `offload` claims, and says where they are.
///
/// Only for frames that need segmentation: everything Linux checks before it segments, checked by parsing. A frame
/// that passes is neither refused by `tun` or `AF_PACKET` nor dropped by a receiver for the claim's sake.
///
/// # Errors
/// The frame is to be dropped.
pub fn check_headers(frame: &[u8], offload: &Offload) -> Result<Layout, BadOffload> {
    layout(frame, frame.len(), offload)
}

/// [`check_headers`] of a frame of which `head` is the beginning.
fn layout(head: &[u8], frame_len: usize, offload: &Offload) -> Result<Layout, BadOffload> {
    let head = &head[..head.len().min(MAX_HEADERS_LEN).min(frame_len)];
    let layers = Layers::parse(head).ok_or(BadOffload::Headers)?;
    let (expected, csum_offset) = match offload.gso {
        Gso::Tcp4 | Gso::Tcp6 => (protocol::TCP, tcp::CHECKSUM_OFFSET),
        Gso::Udp => (protocol::UDP, udp::CHECKSUM_OFFSET),
        Gso::None => return Err(BadOffload::UnknownGso(0)),
    };
    if layers.fragment {
        return Err(BadOffload::Fragment);
    }
    let (outer, layers) = if usize::from(offload.csum_start) > layers.l4 {
        let (outer, inner) = tunnel::open(head, &layers, offload, frame_len)?;
        (Some(outer), inner)
    } else {
        (None, layers)
    };
    let version_ok = match offload.gso {
        Gso::Tcp4 => layers.ipv4,
        Gso::Tcp6 => !layers.ipv4,
        _ => true,
    };
    if !version_ok || layers.protocol != expected {
        return Err(BadOffload::Protocol);
    }
    if layers.fragment {
        return Err(BadOffload::Fragment);
    }
    if usize::from(offload.csum_start) != layers.l4 || offload.csum_offset != csum_offset {
        return Err(BadOffload::ChecksumField);
    }
    let transport = head.get(layers.l4..).ok_or(BadOffload::Headers)?;
    let transport_len = if expected == protocol::TCP {
        tcp::Header::from_slice(transport).map_err(|_| BadOffload::Headers)?.slice().len()
    } else {
        udp::Header::from_slice(transport).map_err(|_| BadOffload::Headers)?.slice().len()
    };
    let payload = layers.l4 + transport_len;
    check_ip_len(&layers, frame_len)?;
    check_segments(transport_len, frame_len - payload, offload)?;
    let Layers { ipv4, l3, l4, extensions, .. } = layers;
    Ok(Layout { ipv4, l3, l4, payload, extensions, outer })
}

/// The segment size and the number of segments, for a payload of so many bytes behind a transport header of so many.
fn check_segments(transport_len: usize, payload_len: usize, offload: &Offload) -> Result<(), BadOffload> {
    let size = usize::from(offload.gso_size);
    let cut = payload_len > size;
    let tcp = offload.gso != Gso::Udp;
    if size == 0 || tcp && cut && !is_tcp_segment_size(size, transport_len) {
        return Err(BadOffload::GsoSize(offload.gso_size));
    }
    let most = if tcp { MAX_TCP_SEGMENTS } else { MAX_UDP_SEGMENTS };
    if payload_len > size * most { Err(BadOffload::Segments) } else { Ok(()) }
}

/// Whether TCP may be cut into segments of `size` bytes of payload behind a header of `tcp_header_len` bytes.
pub(crate) const fn is_tcp_segment_size(size: usize, tcp_header_len: usize) -> bool {
    size + tcp_header_len >= MIN_TCP_SEGMENT_BYTES + tcp::MIN_HEADER_LEN
}

/// Whether the packet's length fits its field, and is what is there if it is filled in.
fn check_ip_len(layers: &Layers, frame_len: usize) -> Result<(), BadOffload> {
    let ip_len = frame_len - layers.l3;
    let max_ip_len = usize::from(u16::MAX) + if layers.ipv4 { 0 } else { ipv6::HEADER_LEN };
    if ip_len > max_ip_len || layers.ip_len.is_some_and(|declared| declared != ip_len) {
        return Err(BadOffload::Length);
    }
    Ok(())
}

/// How many wire frames `frame` stands for, by its headers: 1 if it needs no segmentation or is not what
/// `offload` claims.
#[must_use]
pub fn segment_count(frame: &[u8], offload: &Offload) -> u32 {
    match check_headers(frame, offload) {
        Ok(layout) => offload.pieces(frame.len() - layout.payload),
        Err(_) => 1,
    }
}
