//! ICMP and ICMPv6 errors that say "too long for the way" (RFC 792, 1191 and 1812; RFC 4443, section 3.2).
//!
//! Where a tunnel's path takes less than a station sends, the switch answers in the name of the packet's destination, as
//! Linux's tunnels do (`iptunnel_pmtud_build_icmp`): the switch has no address of its own in the station's network, and the
//! destination is who the sender expects to hear from. The answer is the frame that brings it, Ethernet addresses swapped, with
//! the tags of its question.
//!
//! Nobody is answered who could not have asked, or who would answer in turn: ICMP errors, fragments but the first, and
//! what comes from or goes to anything but one host (RFC 1812, section 4.3.2.7; RFC 4443, section 2.4).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use etherparse::Ipv6ExtensionSlice;

use super::layers::{Layers, protocol};
use super::{ethernet, ipv4, ipv6};
use crate::offload::checksum::{Sum, pseudo_header};

/// Least MTU of IPv4 (RFC 791).
pub const IPV4_MTU_MIN: u32 = 68;
/// Least MTU of IPv6 (RFC 8200, section 5).
pub const IPV6_MTU_MIN: u32 = 1280;

/// Type, code, checksum, and four bytes that depend on the type.
const HEADER_LEN: usize = 8;
/// An answer in IPv4 is at most this long, in bytes from the IP header on (RFC 1812, section 4.3.2.3).
const IPV4_ANSWER_MAX: usize = 576;
/// The same of IPv6 (RFC 4443, section 2.4 (c)).
const IPV6_ANSWER_MAX: usize = 1280;
/// Hops that an answer may take.
const TTL: u8 = 64;
/// Internetwork control (RFC 1812, section 4.3.2.5).
const TOS: u8 = 0xc0;

/// Destination unreachable, in ICMP.
const UNREACHABLE: u8 = 3;
/// "Fragmentation needed and DF set", a code of it.
const FRAGMENTATION_NEEDED: u8 = 4;
/// Packet too big, in ICMPv6.
const PACKET_TOO_BIG: u8 = 2;

/// Writes to the start of `answer` the frame that tells the sender of `frame` that packets of up to `mtu` bytes fit. Returns its length;
/// `None` if there is nobody to tell, if no host could do with so little, or if `answer` is too short.
///
/// `frame` may be cut short behind its headers: what there is of it is quoted.
#[must_use]
pub fn too_big(frame: &[u8], mtu: u32, answer: &mut [u8]) -> Option<usize> {
    let layers = Layers::parse(frame)?;
    let packet = &frame[layers.l3..];
    let packet = &packet[..layers.ip_len.unwrap_or(packet.len()).min(packet.len())];
    let destination = ethernet::Ethernet::new_checked(frame)?.dst();
    let hosts = if layers.ipv4 { ipv4_hosts(packet) } else { ipv6_hosts(packet) };
    if destination.is_multicast()
        || !hosts
        || is_icmp_error(frame, &layers)
        || is_later_fragment(packet, &layers)
    {
        return None;
    }
    let (link, rest) = answer.split_at_mut_checked(layers.l3)?;
    link.copy_from_slice(&frame[..layers.l3]);
    link[ethernet::field::DST].copy_from_slice(&frame[ethernet::field::SRC]);
    link[ethernet::field::SRC].copy_from_slice(&frame[ethernet::field::DST]);
    let len = if layers.ipv4 { ipv4_answer(packet, mtu, rest) } else { ipv6_answer(packet, mtu, rest) };
    len.map(|len| layers.l3 + len)
}

fn ipv4_answer(packet: &[u8], mtu: u32, answer: &mut [u8]) -> Option<usize> {
    if mtu < IPV4_MTU_MIN {
        return None;
    }
    let room = answer.len().min(IPV4_ANSWER_MAX);
    let quoted = room.checked_sub(ipv4::MIN_HEADER_LEN + HEADER_LEN)?.min(packet.len());
    let len = ipv4::MIN_HEADER_LEN + HEADER_LEN + quoted;
    let (header, message) = answer[..len].split_at_mut(ipv4::MIN_HEADER_LEN);
    // A next hop's MTU that does not fit the field would not be too small for any packet.
    let [_, _, mtu_high, mtu_low] = mtu.min(u16::MAX.into()).to_be_bytes();
    message[..HEADER_LEN].copy_from_slice(&[
        UNREACHABLE,
        FRAGMENTATION_NEEDED,
        0,
        0,
        0,
        0,
        mtu_high,
        mtu_low,
    ]);
    message[HEADER_LEN..].copy_from_slice(&packet[..quoted]);
    let checksum = Sum::of(message).checksum();
    message[2..4].copy_from_slice(&checksum);

    let total = u16::try_from(len).ok()?.to_be_bytes();
    header[..ipv4::field::ADDRS.start].copy_from_slice(&[
        0x45,
        TOS,
        total[0],
        total[1],
        0,
        0,
        0,
        0,
        TTL,
        protocol::ICMP,
        0,
        0,
    ]);
    swap_addresses(packet, header, ipv4::field::ADDRS);
    ipv4::fill_checksum(header);
    Some(len)
}

fn ipv6_answer(packet: &[u8], mtu: u32, answer: &mut [u8]) -> Option<usize> {
    if mtu < IPV6_MTU_MIN {
        return None;
    }
    let room = answer.len().min(IPV6_ANSWER_MAX);
    let quoted = room.checked_sub(ipv6::HEADER_LEN + HEADER_LEN)?.min(packet.len());
    let len = ipv6::HEADER_LEN + HEADER_LEN + quoted;
    let (header, message) = answer[..len].split_at_mut(ipv6::HEADER_LEN);
    let payload_len = u16::try_from(message.len()).ok()?;
    header[..ipv6::field::ADDRS.start].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, protocol::ICMPV6, TTL]);
    header[ipv6::field::PAYLOAD_LEN].copy_from_slice(&payload_len.to_be_bytes());
    swap_addresses(packet, header, ipv6::field::ADDRS);

    message[..4].copy_from_slice(&[PACKET_TOO_BIG, 0, 0, 0]);
    message[4..HEADER_LEN].copy_from_slice(&mtu.to_be_bytes());
    message[HEADER_LEN..].copy_from_slice(&packet[..quoted]);
    let checksum = pseudo_header(header, false, protocol::ICMPV6).word(payload_len).bytes(message).checksum();
    message[2..4].copy_from_slice(&checksum);
    Some(len)
}

/// The answer has the addresses of the packet, the other way round.
fn swap_addresses(packet: &[u8], header: &mut [u8], at: Range<usize>) {
    let addresses = &mut header[at.clone()];
    addresses.copy_from_slice(&packet[at]);
    let (source, destination) = addresses.split_at_mut(addresses.len() / 2);
    source.swap_with_slice(destination);
}

/// Whether an IPv4 packet is from one host to one host, neither of them this or none.
fn ipv4_hosts(packet: &[u8]) -> bool {
    let host = |at: Range<usize>| {
        packet.get(at).and_then(|bytes| bytes.first_chunk()).is_some_and(|&bytes: &[u8; 4]| {
            let address = Ipv4Addr::from(bytes);
            // 0.0.0.0/8 is "this network" (RFC 1122, section 3.2.1.3).
            let none = bytes[0] == 0 || address.is_loopback();
            !none && !address.is_multicast() && !address.is_broadcast()
        })
    };
    host(12..16) && host(16..20)
}

/// The same of an IPv6 packet.
fn ipv6_hosts(packet: &[u8]) -> bool {
    let host = |at: Range<usize>| {
        packet.get(at).and_then(|bytes| bytes.first_chunk()).is_some_and(|&bytes: &[u8; 16]| {
            let address = Ipv6Addr::from(bytes);
            !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
        })
    };
    host(8..24) && host(24..40)
}

/// Whether it is an ICMP error, or of a kind that cannot be seen.
fn is_icmp_error(frame: &[u8], layers: &Layers) -> bool {
    let kind = frame.get(layers.l4);
    match layers.protocol {
        // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
        protocol::ICMP if layers.ipv4 => kind.is_none_or(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12)),
        // Every type below 128 is an error, and a redirect is not to be answered either.
        protocol::ICMPV6 if !layers.ipv4 => kind.is_none_or(|&kind| kind < 128 || kind == 137),
        _ => false,
    }
}

/// Whether it is a fragment, and not the first: it says nothing of whose it is.
fn is_later_fragment(packet: &[u8], layers: &Layers) -> bool {
    if !layers.fragment {
        return false;
    }
    if layers.ipv4 {
        return ipv4::Header::from_slice(packet).is_ok_and(|header| header.fragments_offset().value() != 0);
    }
    let extensions = packet.get(ipv6::HEADER_LEN..layers.l4 - layers.l3).unwrap_or_default();
    let first = packet.get(6).map(|&next| next.into());
    let parsed = first.and_then(|first| ipv6::Extensions::from_slice(first, extensions).ok());
    parsed.is_none_or(|(extensions, ..)| {
        extensions.into_iter().any(|extension| {
            matches!(extension, Ipv6ExtensionSlice::Fragment(it) if it.fragment_offset().value() != 0)
        })
    })
}

#[cfg(test)]
mod tests;
