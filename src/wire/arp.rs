//! ARP for IPv4 over Ethernet (RFC 826), and its reverse (RFC 903) as far as it announces where a station is.

/// What a packet says.
pub use etherparse::ArpEthIpv4Packet as Packet;
/// What its sender wants.
pub use etherparse::ArpOperation as Operation;
use etherparse::{ArpHardwareId, ArpPacketSlice, EtherType};

use crate::addr::MacAddr;

/// The packet that `payload` begins with; padding may follow. `None` when it is cut short or about other addresses.
#[must_use]
pub fn parse(payload: &[u8]) -> Option<Packet> {
    let slice = ArpPacketSlice::from_slice(payload).ok()?;
    let ours = slice.hw_addr_type() == ArpHardwareId::ETHERNET && slice.proto_addr_type() == EtherType::IPV4;
    Some(Packet {
        operation: slice.operation(),
        sender_mac: slice.sender_hw_addr().try_into().ok().filter(|_| ours)?,
        sender_ipv4: slice.sender_protocol_addr().try_into().ok()?,
        target_mac: slice.target_hw_addr().try_into().ok()?,
        target_ipv4: slice.target_protocol_addr().try_into().ok()?,
    })
}

/// The answer to `request`: who is asked for is at `mac`.
#[must_use]
pub fn reply(request: &Packet, mac: MacAddr) -> Packet {
    Packet {
        operation: Operation::REPLY,
        sender_mac: mac.0,
        sender_ipv4: request.target_ipv4,
        target_mac: request.sender_mac,
        target_ipv4: request.sender_ipv4,
    }
}

/// Ethernet's shortest frame, without its checksum.
const SHORTEST: usize = 60;
const RARP: [u8; 2] = [0x80, 0x35];
const REVERSE_REQUEST: Operation = Operation(3);

/// A frame to all by which switches learn that `mac` is where it comes from: a reverse request for its own address, as QEMU sends it for guests that
/// moved.
#[must_use]
pub fn announcement(mac: MacAddr) -> [u8; SHORTEST] {
    let packet = Packet {
        operation: REVERSE_REQUEST,
        sender_mac: mac.0,
        sender_ipv4: [0; 4],
        target_mac: mac.0,
        target_ipv4: [0; 4],
    };
    to_all(mac, RARP, &packet)
}

/// A frame by which everybody learns that `address` is at `mac` (RFC 5227, section 3).
#[must_use]
pub fn gratuitous(mac: MacAddr, address: std::net::Ipv4Addr) -> [u8; SHORTEST] {
    let packet = Packet {
        operation: Operation::REQUEST,
        sender_mac: mac.0,
        sender_ipv4: address.octets(),
        target_mac: [0; 6],
        target_ipv4: address.octets(),
    };
    to_all(mac, EtherType::ARP.0.to_be_bytes(), &packet)
}

fn to_all(mac: MacAddr, ethertype: [u8; 2], packet: &Packet) -> [u8; SHORTEST] {
    let mut frame = [0; SHORTEST];
    let parts = [&MacAddr::BROADCAST.0[..], &mac.0, &ethertype, &packet.to_bytes()];
    for (place, byte) in frame.iter_mut().zip(parts.into_iter().flatten()) {
        *place = *byte;
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REQUEST: [u8; 28] =
        [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2];

    #[test]
    fn a_request_and_its_reply_to_the_byte() {
        let request = parse(&[&REQUEST[..], &[0; 18]].concat()).expect("a request with padding");
        assert_eq!((request.operation, request.to_bytes()), (Operation::REQUEST, REQUEST));
        let reply = reply(&request, MacAddr([2, 0, 0, 0, 0, 2])).to_bytes();
        assert_eq!(
            reply,
            [0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 2, 10, 0, 0, 2, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1]
        );
    }

    #[test]
    fn an_announcement_to_the_byte() {
        let frame = announcement(MacAddr([2, 0, 0, 0, 0, 1]));
        let head = [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 0x80, 0x35];
        let body = [0, 1, 8, 0, 6, 4, 0, 3, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(frame[..], [&head[..], &body, &[0; 18]].concat());
    }

    #[test]
    fn a_gratuitous_request_to_the_byte() {
        let frame = gratuitous(MacAddr([2, 0, 0, 0, 0, 1]), [10, 0, 0, 1].into());
        let head = [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6];
        let body = [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1];
        assert_eq!(frame[..], [&head[..], &body, &[0; 18]].concat());
    }

    #[test]
    fn other_addresses_are_not_read() {
        for (at, value) in [(0, 1), (1, 6), (2, 9), (3, 1), (4, 8), (4, 5), (5, 16), (5, 3)] {
            let mut packet = [&REQUEST[..], &[0; 40]].concat();
            packet[at] = value;
            assert_eq!(parse(&packet), None, "byte {at} is {value}");
        }
        assert_eq!(parse(&REQUEST[..27]), None);
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_is_there(bytes in proptest::collection::vec(any::<u8>(), 0..80), good: bool) {
            let mut bytes = bytes;
            if good && bytes.len() >= 8 {
                bytes[..6].copy_from_slice(&REQUEST[..6]);
            }
            if let Some(packet) = parse(&bytes) {
                prop_assert_eq!(&packet.to_bytes()[..], &bytes[..28]);
            } else {
                prop_assert!(bytes.len() < 28 || bytes[..6] != REQUEST[..6]);
            }
        }
    }
}
