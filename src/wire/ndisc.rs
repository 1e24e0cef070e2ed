//! Neighbour discovery for IPv6 over Ethernet: solicitations and advertisements (RFC 4861, RFC 2464 section 6).
//!
//! Messages behind extension headers are not looked at: nobody sends them so, and RFC 6980 forbids fragments.

use std::net::Ipv6Addr;

use etherparse::icmpv6::{NdpOptionSlice, NdpOptionsIterator};

use super::ethernet::EtherType;
use super::ipv6;
use super::layers::protocol::ICMPV6;
use crate::addr::MacAddr;
use crate::offload::checksum::{Sum, pseudo_header};

/// ICMPv6 type of a solicitation.
pub const SOLICITATION: u8 = 135;
/// ICMPv6 type of an advertisement.
pub const ADVERTISEMENT: u8 = 136;
/// What a message of the link itself has, for no router lets it pass.
pub const HOP_LIMIT: u8 = 255;

/// Type, code, checksum, flags and target, in bytes.
const FIXED_LEN: usize = 24;
/// A link-layer address option, in bytes: type, length in units of eight bytes, MAC address.
const OPTION_LEN: usize = 8;
/// Type of the target link-layer address option.
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
/// An advertisement as [`Advertisement::write`] makes it, from the IPv6 header on.
pub const ADVERTISEMENT_LEN: usize = ipv6::HEADER_LEN + FIXED_LEN + OPTION_LEN;

const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// All nodes of the link (RFC 4291, section 2.7.1), and where such a packet goes on Ethernet.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// A frame by which everybody learns that `address` is at `mac` (RFC 4861, section 7.2.6).
#[must_use]
pub fn unsolicited(mac: MacAddr, address: Ipv6Addr, router: bool) -> Vec<u8> {
    let packet = Advertisement { target: address, destination: ALL_NODES, mac, router }.write();
    [&ALL_NODES_MAC[..], &mac.0, &EtherType::IPV6.0.to_be_bytes(), &packet].concat()
}

/// A valid solicitation or advertisement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Who sends it.
    pub source: Ipv6Addr,
    /// To whom.
    pub destination: Ipv6Addr,
    /// Whose link-layer address is asked for, or told.
    pub target: Ipv6Addr,
    /// Which of both.
    pub kind: Kind,
}

/// What a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// "Where is the target?"
    Solicitation {
        /// Link-layer address of the source, if it says so.
        source_mac: Option<MacAddr>,
    },
    /// "The target is here."
    Advertisement {
        /// The target is a router.
        router: bool,
        /// Known otherwise, it is to be changed.
        overrides: bool,
        /// Link-layer address of the target, if it says so.
        target_mac: Option<MacAddr>,
    },
}

/// Whether an IPv6 packet may be a message, by two bytes of it.
#[inline]
#[must_use]
pub fn may_be(packet: &[u8]) -> bool {
    packet.get(6) == Some(&ICMPV6)
        && matches!(packet.get(ipv6::HEADER_LEN), Some(&(SOLICITATION | ADVERTISEMENT)))
}

/// The message that is an IPv6 packet; padding may follow. `None` for every other one and what is not valid (RFC 4861, sections
/// 7.1.1 and 7.1.2).
#[must_use]
pub fn parse(packet: &[u8]) -> Option<Message> {
    if !may_be(packet) {
        return None;
    }
    let header = ipv6::Header::from_slice(packet).ok()?;
    let body = packet.get(ipv6::HEADER_LEN..)?.get(..usize::from(header.payload_length()))?;
    let (fixed, options) = body.split_at_checked(FIXED_LEN)?;
    let sum = pseudo_header(packet, false, ICMPV6).word(header.payload_length()).bytes(body);
    if header.hop_limit() != HOP_LIMIT || fixed[1] != 0 || sum.checksum() != [0, 0] {
        return None;
    }
    let target = Ipv6Addr::from(*fixed[8..].first_chunk()?);
    let (source, destination) = (header.source_addr(), header.destination_addr());
    let (source_mac, target_mac) = link_layer_addresses(options)?;
    let kind = if fixed[0] == SOLICITATION {
        // Who has no address yet asks everybody who may have it, and cannot be answered by his link-layer address.
        if source.is_unspecified() && (!is_solicited_node(destination) || source_mac.is_some()) {
            return None;
        }
        Kind::Solicitation { source_mac }
    } else {
        if destination.is_multicast() && fixed[4] & SOLICITED != 0 {
            return None;
        }
        Kind::Advertisement {
            router: fixed[4] & ROUTER != 0,
            overrides: fixed[4] & OVERRIDE != 0,
            target_mac,
        }
    };
    (!target.is_multicast()).then_some(Message { source, destination, target, kind })
}

/// The source's and the target's, from a message's options. `None` when an option has no length or ends outside.
fn link_layer_addresses(options: &[u8]) -> Option<(Option<MacAddr>, Option<MacAddr>)> {
    let (mut source, mut target) = (None, None);
    for option in NdpOptionsIterator::from_slice(options) {
        match option.ok()? {
            NdpOptionSlice::SourceLinkLayerAddress(option) => {
                source = option.link_layer_address().try_into().ok().map(MacAddr);
            }
            NdpOptionSlice::TargetLinkLayerAddress(option) => {
                target = option.link_layer_address().try_into().ok().map(MacAddr);
            }
            _ => {}
        }
    }
    Some((source, target))
}

/// ff02::1:ff00:0/104 (RFC 4291, section 2.7.1).
fn is_solicited_node(address: Ipv6Addr) -> bool {
    address.octets().starts_with(&[0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff])
}

/// An answer to a solicitation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Advertisement {
    /// Who was asked for.
    pub target: Ipv6Addr,
    /// Who asked.
    pub destination: Ipv6Addr,
    /// The target's link-layer address.
    pub mac: MacAddr,
    /// The target is a router.
    pub router: bool,
}

impl Advertisement {
    /// The packet, with the target as its sender and overriding; solicited, unless it is for a group.
    #[must_use]
    pub fn write(&self) -> [u8; ADVERTISEMENT_LEN] {
        let mut packet = [0; ADVERTISEMENT_LEN];
        let (header, body) = packet.split_at_mut(ipv6::HEADER_LEN);
        // All of it is behind the IPv6 header.
        #[allow(clippy::cast_possible_truncation)]
        let len = (FIXED_LEN + OPTION_LEN) as u16;
        header[0] = 0x60;
        header[ipv6::field::PAYLOAD_LEN].copy_from_slice(&len.to_be_bytes());
        (header[6], header[7]) = (ICMPV6, HOP_LIMIT);
        header[8..24].copy_from_slice(&self.target.octets());
        header[24..].copy_from_slice(&self.destination.octets());
        body[0] = ADVERTISEMENT;
        let solicited = if self.destination.is_multicast() { 0 } else { SOLICITED };
        body[4] = solicited | OVERRIDE | if self.router { ROUTER } else { 0 };
        body[8..FIXED_LEN].copy_from_slice(&self.target.octets());
        body[FIXED_LEN..][..2].copy_from_slice(&[TARGET_LINK_LAYER_ADDRESS, 1]);
        body[FIXED_LEN + 2..].copy_from_slice(&self.mac.0);
        let sum: Sum = pseudo_header(header, false, ICMPV6).word(len).bytes(body);
        body[2..4].copy_from_slice(&sum.checksum());
        packet
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) const A: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    pub(crate) const B: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
    pub(crate) const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    /// The address that everybody who may have `target` listens to.
    pub(crate) fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
        let [.., a, b, c] = target.octets();
        Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
    }

    /// A message of that type with flags and options, its checksum right.
    pub(crate) fn message(
        (kind, flags): (u8, u8),
        [source, destination, target]: [Ipv6Addr; 3],
        options: &[u8],
    ) -> Vec<u8> {
        let body = [&[kind, 0, 0, 0, flags, 0, 0, 0], &target.octets()[..], options].concat();
        let len = u16::try_from(body.len()).expect("short");
        let [high, low] = len.to_be_bytes();
        let mut packet = vec![0x60, 0, 0, 0, high, low, ICMPV6, HOP_LIMIT];
        packet.extend([source.octets(), destination.octets()].concat());
        packet.extend(body);
        seal(&mut packet);
        packet
    }

    /// Makes the checksum right.
    fn seal(packet: &mut [u8]) {
        packet[42..44].fill(0);
        let len = u16::from_be_bytes([packet[4], packet[5]]);
        let sum = pseudo_header(packet, false, ICMPV6).word(len).bytes(&packet[40..]);
        packet[42..44].copy_from_slice(&sum.checksum());
    }

    pub(crate) fn solicitation(source: Ipv6Addr, target: Ipv6Addr, mac: Option<MacAddr>) -> Vec<u8> {
        let option = mac.map_or(Vec::new(), |mac| [&[1, 1][..], &mac.0].concat());
        message((SOLICITATION, 0), [source, solicited_node(target), target], &option)
    }

    #[test]
    fn a_solicitation_is_read() {
        let packet = solicitation(A, B, Some(MAC));
        let kind = Kind::Solicitation { source_mac: Some(MAC) };
        let wanted = Message { source: A, destination: solicited_node(B), target: B, kind };
        assert_eq!(parse(&packet), Some(wanted));
        assert_eq!(parse(&[&packet[..], &[0; 6]].concat()), Some(wanted), "with padding");
        assert!(
            parse(&solicitation(Ipv6Addr::UNSPECIFIED, B, None)).is_some(),
            "duplicate address detection"
        );
    }

    #[test]
    fn an_advertisement_to_the_byte() {
        let packet = Advertisement { target: A, destination: B, mac: MAC, router: true }.write();
        let wanted = message((ADVERTISEMENT, 0xe0), [A, B, A], &[2, 1, 2, 0, 0, 0, 0, 1]);
        assert_eq!(packet[..], wanted);
        let sealed = etherparse::Icmpv6Slice::from_slice(&packet[40..]).expect("a message");
        assert!(sealed.is_checksum_valid(A.octets(), B.octets()), "as etherparse sees it");
        let kind = Kind::Advertisement { router: true, overrides: true, target_mac: Some(MAC) };
        assert_eq!(parse(&packet), Some(Message { source: A, destination: B, target: A, kind }));
        let host = Advertisement { target: A, destination: B, mac: MAC, router: false }.write();
        assert_eq!(host[44], 0x60);
        let frame = unsolicited(MAC, A, true);
        let wanted = message((ADVERTISEMENT, 0xa0), [A, ALL_NODES, A], &[2, 1, 2, 0, 0, 0, 0, 1]);
        assert_eq!(frame[..14], [0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x86, 0xdd]);
        assert_eq!(frame[14..], wanted);
        assert!(parse(&frame[14..]).is_some());
    }

    /// RFC 4861, sections 7.1.1 and 7.1.2, one by one.
    #[test]
    fn what_is_not_valid_is_not_read() {
        let good = solicitation(A, B, Some(MAC));
        let spoilt = |change: &dyn Fn(&mut Vec<u8>), sealed: bool| {
            let mut packet = good.clone();
            change(&mut packet);
            if sealed {
                seal(&mut packet);
            }
            parse(&packet)
        };
        assert!(spoilt(&|_| {}, true).is_some());
        assert_eq!(spoilt(&|packet| packet[7] = 254, true), None, "hop limit");
        assert_eq!(spoilt(&|packet| packet[43] ^= 1, false), None, "checksum");
        assert_eq!(spoilt(&|packet| packet[41] = 1, true), None, "code");
        assert_eq!(spoilt(&|packet| packet[5] = 23, false), None, "length");
        assert_eq!(spoilt(&|packet| packet[48] = 0xff, true), None, "a group as target");
        assert_eq!(spoilt(&|packet| packet[65] = 0, true), None, "an option without length");
        assert_eq!(spoilt(&|packet| packet[65] = 2, true), None, "an option that ends outside");
        assert_eq!(spoilt(&|packet| packet.truncate(70), false), None, "cut short");
        assert_eq!(spoilt(&|packet| packet[6] = 0, true), None, "extension headers");
        let nobody = Ipv6Addr::UNSPECIFIED;
        assert_eq!(parse(&solicitation(nobody, B, Some(MAC))), None, "nobody's link-layer address");
        assert_eq!(parse(&message((SOLICITATION, 0), [nobody, B, B], &[])), None, "nobody asks one");
        let group = solicited_node(B);
        assert_eq!(parse(&message((ADVERTISEMENT, 0x60), [A, group, A], &[])), None, "solicited by a group");
        assert!(parse(&message((ADVERTISEMENT, 0x20), [A, group, A], &[])).is_some());
    }

    proptest! {
        /// Never a panic, and what a valid message says stands in it.
        #[test]
        fn any_bytes(tail in proptest::collection::vec(any::<u8>(), 0..64), advertisement: bool, cut in 0usize..140) {
            let kind = if advertisement { ADVERTISEMENT } else { SOLICITATION };
            let mut packet = message((kind, 0x20), [A, solicited_node(B), B], &tail);
            if let Some(message) = parse(&packet) {
                prop_assert_eq!((message.source, message.target), (A, B));
            }
            packet.truncate(cut);
            let _ = parse(&packet);
            let _ = parse(&tail);
        }
    }
}
