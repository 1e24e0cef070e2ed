//! What a frame out of a datagram still needs.
//!
//! A sender on the same host (behind a veth) leaves the inner checksum to a device that never comes, and hands over TCP of up to 64 KiB
//! as one datagram; to a socket the kernel says neither. Both can be seen: an unfinished checksum field holds
//! the pseudo-header's sum, and finishing one that only looks like it gives the same bytes again. A frame longer than
//! anything that fits the way here was never cut; TCP may be cut anywhere.

use crate::offload::checksum::pseudo_header;
use crate::offload::{Gso, Offload, is_tcp_segment_size};
use crate::wire::layers::{Layers, protocol};
use crate::wire::{tcp, udp};

/// Longest untagged frame of the usual MTU, which every port takes.
const ETHERNET_FRAME: usize = 1514;

/// What `frame` still needs, when frames of more than `len_max` bytes do not fit the way it came.
#[must_use]
pub fn offload(frame: &[u8], len_max: usize) -> Offload {
    unfinished(frame, len_max).unwrap_or_default()
}

fn unfinished(frame: &[u8], len_max: usize) -> Option<Offload> {
    let layers = Layers::parse(frame).filter(|layers| !layers.fragment && !layers.extensions)?;
    let transport = frame.get(layers.l4..)?;
    let (csum_offset, payload) = match layers.protocol {
        protocol::TCP => (tcp::CHECKSUM_OFFSET, tcp::Header::from_slice(transport).ok()?.slice().len()),
        protocol::UDP => (udp::CHECKSUM_OFFSET, udp::HEADER_LEN),
        _ => return None,
    };
    let transport_len = layers.ip_len?.checked_sub(layers.l4 - layers.l3)?;
    let pseudo = pseudo_header(frame.get(layers.l3..)?, layers.ipv4, layers.protocol);
    let pseudo = pseudo.word(u16::try_from(transport_len).ok()?);
    let field = usize::from(csum_offset);
    if *transport.get(field..field + 2)? != pseudo.fold() {
        return None;
    }
    let headers = layers.l4 + payload;
    // Nor does it hurt to cut what would just have fit.
    let len_max = len_max.min(ETHERNET_FRAME);
    let cut = layers.protocol == protocol::TCP
        && frame.len() > len_max
        && is_tcp_segment_size(len_max.saturating_sub(headers), payload);
    Some(Offload {
        needs_csum: true,
        csum_start: u16::try_from(layers.l4).ok()?,
        csum_offset,
        gso: match (cut, layers.ipv4) {
            (false, _) => Gso::None,
            (true, true) => Gso::Tcp4,
            (true, false) => Gso::Tcp6,
        },
        gso_size: if cut { u16::try_from(len_max - headers).ok()? } else { 0 },
        hdr_len: if cut { u16::try_from(headers).ok()? } else { 0 },
        ..Offload::default()
    })
}
