//! Header views against etherparse's parser of whole packets.

#![allow(missing_docs)]

mod common;

use common::Input;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use vswitch::wire::ethernet::Ethernet;
use vswitch::wire::icmp;
use vswitch::wire::layers::{Layers, protocol};
use vswitch::wire::{arp, ndisc};

/// Never a panic; never an offset outside; the same answer from a header window as from the whole frame; and
/// etherparse's, where it has one.
#[test]
fn layers_are_where_etherparse_sees_them() {
    bolero::check!().with_type::<Input>().with_iterations(5000).for_each(|input| {
        let frame = common::frame(input);
        if let Some(ethernet) = Ethernet::new_checked(&frame) {
            let _ = (ethernet.dst(), ethernet.src(), ethernet.tag());
            assert!(ethernet.payload().is_none_or(|(_, at)| at <= frame.len()));
        }
        let Some(layers) = Layers::parse(&frame) else { return };
        assert!(layers.l3 < layers.l4 && layers.l4 <= frame.len(), "{layers:?}");
        assert_eq!(Layers::parse(&frame[..layers.l4]), Some(layers), "from a window");
        compare(&frame, &layers);
    });
}

/// Never a panic; an answer is as long as it says, parses, goes back to where its question came from, and is not answered.
#[test]
fn answers_are_good_frames() {
    bolero::check!().with_type::<(Input, u16, u16)>().with_iterations(5000).for_each(|(input, mtu, room)| {
        let frame = common::frame(input);
        let mut answer = vec![0; usize::from(*room)];
        let Some(len) = icmp::too_big(&frame, (*mtu).into(), &mut answer) else { return };
        let answer = &answer[..len];
        assert_eq!((&answer[..6], &answer[6..12]), (&frame[6..12], &frame[..6]));
        // Quotes of what was cut short are no longer whole packets, but the answer itself is.
        let packet = SlicedPacket::from_ethernet(answer).expect("it parses");
        assert!(packet.net.is_some() && packet.transport.is_some(), "{answer:02x?}");
        assert_eq!(icmp::too_big(answer, (*mtu).into(), &mut [0; 1500]), None);
    });
}

fn compare(frame: &[u8], layers: &Layers) {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else { return };
    let (ipv4, fragment, protocol) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => (true, ip.payload().fragmented, ip.payload_ip_number()),
        Some(NetSlice::Ipv6(ip)) => (false, ip.payload().fragmented, ip.payload().ip_number),
        _ => return,
    };
    assert_eq!((layers.ipv4, layers.fragment), (ipv4, fragment), "{layers:?}");
    let (transport, expected) = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.slice(), protocol::TCP),
        Some(TransportSlice::Udp(udp)) => (udp.slice(), protocol::UDP),
        _ => return,
    };
    assert_eq!(protocol.0, expected);
    // etherparse also steps over IPv4's authentication header, which stays a protocol of its own here.
    if layers.protocol == expected {
        assert_eq!(frame[layers.l4..].as_ptr(), transport.as_ptr(), "{layers:?}");
    }
}

/// Never a panic; what is read of ARP is what is there; and what is read of neighbour discovery etherparse finds valid, too.
#[test]
fn neighbours_are_read_or_not() {
    bolero::check!().with_type::<(bool, u8, Vec<u8>)>().with_iterations(5000).for_each(
        |(good, kind, bytes)| {
            if let Some(packet) = arp::parse(bytes) {
                assert_eq!(packet.to_bytes()[..], bytes[..28]);
            }
            let mut packet = bytes.clone();
            if *good {
                let target = [0xfe; 16];
                let body = [&[135 + (kind & 1), 0, 0, 0, kind & 0xe0, 0, 0, 0], &target[..], bytes].concat();
                let body = &body[..body.len().min(1000)];
                let [.., high, low] = body.len().to_be_bytes();
                packet = [&[0x60, 0, 0, 0, high, low, 58, 255], &[0xfd; 16][..], &[0xfc; 16], body].concat();
                let icmp = etherparse::Icmpv6Type::Unknown {
                    type_u8: packet[40],
                    code_u8: 0,
                    bytes5to8: [packet[44], 0, 0, 0],
                };
                let sum = icmp.calc_checksum([0xfd; 16], [0xfc; 16], &packet[48..]).unwrap_or_default();
                packet[42..44].copy_from_slice(&sum.to_be_bytes());
            }
            let Some(message) = ndisc::parse(&packet) else {
                return assert!(!good || !bytes.is_empty(), "one without options is good");
            };
            let len = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            let body = etherparse::Icmpv6Slice::from_slice(&packet[40..40 + len]);
            let valid = body.is_ok_and(|body| {
                body.is_checksum_valid(message.source.octets(), message.destination.octets())
            });
            assert!(valid, "{message:?}");
            assert!(!message.target.is_multicast() && packet[48..64] == message.target.octets());
        },
    );
}
