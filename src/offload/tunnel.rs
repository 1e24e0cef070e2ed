//! Segmentation of what is inside a tunnel that the sender built.
//!
//! A station that runs VXLAN, Geneve, GRE or IP-in-IP itself behind a veth hands over the whole of it at once: Linux leaves
//! it to the device, and a veth leaves it to whoever comes next. A `virtio_net_hdr` then names the inner packet's
//! segmentation and checksum and says nothing of the outer headers. No such frame can be passed on as it is; it is cut here,
//! for every port (Linux does the same where a device cannot: `skb_udp_tunnel_segment`, `gre_gso_segment`).
//!
//! What kind of tunnel it is does not matter. The inner transport header is where the checksum starts; the inner IP header ends
//! there and must be right to the byte about its length. Between it and the outer IP header everything is copied: the
//! tunnel's header, the inner Ethernet header. Only UDP outside has a length and a checksum of its own.

use super::checksum::pseudo_header;
use super::{BadOffload, Gso, Offload, check_ip_len, low16};
use crate::wire::layers::{Layers, protocol};
use crate::wire::{ipv4, ipv6, udp};

/// GRE flags of fields that are another in every packet: checksum, routing, sequence number (RFC 2784, 2890).
const GRE_VARIABLE: u8 = 0xd0;

/// The outer headers of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Outer {
    ipv4: bool,
    l3: usize,
    l4: usize,
    udp: bool,
    /// UDP, and with a checksum.
    pub(super) checksum: bool,
    /// Of the first segment.
    ipv4_id: u16,
}

/// The inner packet of a frame with these outer layers, `frame_len` bytes long, of which `head` is the beginning.
///
/// # Errors
/// There is no tunnel, or none that can be cut.
pub(super) fn open(
    head: &[u8],
    outer: &Layers,
    offload: &Offload,
    frame_len: usize,
) -> Result<(Outer, Layers), BadOffload> {
    let l4 = head.get(outer.l4..).ok_or(BadOffload::Headers)?;
    match (outer.protocol, l4) {
        (protocol::UDP | protocol::IPV4 | protocol::IPV6, _) => {}
        (protocol::GRE, [flags, ..]) if flags & GRE_VARIABLE == 0 => {}
        (protocol::GRE, _) => return Err(BadOffload::Protocol),
        _ => return Err(BadOffload::ChecksumField),
    }
    check_ip_len(outer, frame_len)?;
    let inner = inner(head, outer.l4, offload, frame_len).ok_or(BadOffload::ChecksumField)?;
    let udp = outer.protocol == protocol::UDP;
    if udp && inner.l3 < outer.l4 + udp::HEADER_LEN {
        return Err(BadOffload::Headers);
    }
    let word = |at: usize| head.get(at..at + 2).map_or(0, |word| u16::from_be_bytes([word[0], word[1]]));
    let checksum = udp && word(outer.l4 + usize::from(udp::CHECKSUM_OFFSET)) != 0;
    if checksum && outer.extensions {
        // A routing header may change the destination that the checksum is over.
        return Err(BadOffload::ChecksumField);
    }
    let outer = Outer {
        ipv4: outer.ipv4,
        l3: outer.l3,
        l4: outer.l4,
        udp,
        checksum,
        ipv4_id: if outer.ipv4 { word(outer.l3 + ipv4::field::ID.start) } else { 0 },
    };
    Ok((outer, inner))
}

/// The IP header that ends where the checksum starts, behind `from`.
fn inner(head: &[u8], from: usize, offload: &Offload, frame_len: usize) -> Option<Layers> {
    let l4 = usize::from(offload.csum_start);
    let expected = if offload.gso == Gso::Udp { protocol::UDP } else { protocol::TCP };
    let fits = |layers: &Layers| {
        layers.l4 == l4 && layers.protocol == expected && layers.ip_len == Some(frame_len - layers.l3)
    };
    let at = |len: usize| l4.checked_sub(len).filter(|&at| at >= from);
    let v4 = |words: usize| {
        let at = at(words * 4)?;
        Layers::ipv4(head.get(at..)?, at).filter(fits)
    };
    let v6 = || {
        let at = at(ipv6::HEADER_LEN)?;
        Layers::ipv6(head.get(at..)?, at).filter(fits)
    };
    let v4 = || (5..=15).find_map(v4);
    match offload.gso {
        Gso::None => None,
        Gso::Tcp4 => v4(),
        Gso::Tcp6 => v6(),
        Gso::Udp => v4().or_else(v6),
    }
}

impl Outer {
    /// Makes the outer headers those of segment number `index`, all of whose other bytes are as they will be sent.
    pub(super) fn finish(&self, segment: &mut [u8], index: usize) {
        let ip_len = segment.len() - self.l3;
        let header = &mut segment[self.l3..self.l4];
        if !self.ipv4 {
            if let Some(header) = header.first_chunk_mut() {
                ipv6::set_payload_len(header, low16(ip_len - ipv6::HEADER_LEN));
            }
        } else {
            if let Some(header) = header.first_chunk_mut() {
                ipv4::set_total_len(header, low16(ip_len));
                // Not more than MAX_TCP_SEGMENTS.
                ipv4::set_id(header, self.ipv4_id.wrapping_add(low16(index)));
            }
            ipv4::fill_checksum(header);
        }
        if !self.udp {
            return;
        }
        let len = low16(segment.len() - self.l4);
        if let Some(header) = segment[self.l4..].first_chunk_mut() {
            udp::set_len(header, len);
        }
        if self.checksum {
            let pseudo = pseudo_header(&segment[self.l3..], self.ipv4, protocol::UDP).word(len);
            segment[self.l4..][udp::field::CHECKSUM].fill(0);
            let checksum = pseudo.bytes(&segment[self.l4..]).udp_checksum();
            segment[self.l4..][udp::field::CHECKSUM].copy_from_slice(&checksum);
        }
    }
}
