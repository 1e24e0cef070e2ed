use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;

const ROOM: usize = 14 + 8 + 1280;

/// From 02:…:01 to 02:…:02, with tags and an EtherType as given.
fn link(tags: &[[u8; 4]], ethertype: [u8; 2]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1][..], &tags.concat(), &ethertype].concat()
}

/// UDP in IPv4 from 10.0.0.1 to 10.0.0.2 with DF.
fn ipv4_frame(tags: &[[u8; 4]], payload_len: usize) -> Vec<u8> {
    let total = u16::try_from(28 + payload_len).expect("fits").to_be_bytes();
    let mut packet = vec![0x45, 0, total[0], total[1], 0, 7, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ipv4::fill_checksum(&mut packet);
    let udp_len = u16::try_from(8 + payload_len).expect("fits").to_be_bytes();
    packet.extend([0, 1, 0, 2, udp_len[0], udp_len[1], 0, 0]);
    packet.resize(28 + payload_len, 0x5a);
    [link(tags, [8, 0]), packet].concat()
}

/// UDP in IPv6 from fd00::1 to fd00::2, behind extension headers as given.
fn ipv6_frame(next: u8, extensions: &[u8], payload_len: usize) -> Vec<u8> {
    let len = u16::try_from(extensions.len() + 8 + payload_len).expect("fits").to_be_bytes();
    let mut frame = link(&[], [0x86, 0xdd]);
    frame.extend([0x60, 0, 0, 0, len[0], len[1], next, 64]);
    for last in [1, 2] {
        frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    frame.extend(extensions);
    frame.extend([0, 1, 0, 2, 0, 8, 0, 0]);
    frame.resize(frame.len() + payload_len, 0xa5);
    frame
}

fn answer(frame: &[u8], mtu: u32) -> Option<Vec<u8>> {
    let mut room = [0xee; ROOM];
    too_big(frame, mtu, &mut room).map(|len| room[..len].to_vec())
}

/// Parses an answer to `frame`, checks every checksum and that it would not be answered itself.
fn check(frame: &[u8], mtu: u32, answer: &[u8]) {
    let packet = SlicedPacket::from_ethernet(answer).expect("it parses");
    let (MacAddrs(to, from), MacAddrs(asked_of, asked_by)) = (addresses(answer), addresses(frame));
    assert_eq!((to, from), (asked_by, asked_of));
    let l3 = Layers::parse(frame).expect("IP").l3;
    assert_eq!(answer[12..l3], frame[12..l3], "the same tags");
    match (packet.net.expect("IP"), packet.transport.expect("ICMP")) {
        (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
            let header = ip.header();
            assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
            assert_eq!(header.source()[..], frame[l3 + 16..l3 + 20]);
            assert_eq!(header.destination()[..], frame[l3 + 12..l3 + 16]);
            let told = DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            };
            assert_eq!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(told));
            assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()));
            assert!(frame[l3..].starts_with(icmp.payload()));
            assert!(usize::from(header.total_len()) <= IPV4_ANSWER_MAX);
        }
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            let header = ip.header();
            assert_eq!(header.source()[..], frame[l3 + 24..l3 + 40]);
            assert_eq!(header.destination()[..], frame[l3 + 8..l3 + 24]);
            assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu });
            let sum = icmp.icmp_type().calc_checksum(header.source(), header.destination(), icmp.payload());
            assert_eq!(Ok(icmp.checksum()), sum);
            assert!(frame[l3..].starts_with(icmp.payload()));
            assert!(answer.len() - l3 <= IPV6_ANSWER_MAX);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(too_big(answer, mtu, &mut [0; ROOM]), None, "an error is not answered");
}

#[derive(PartialEq, Debug)]
struct MacAddrs<'a>(&'a [u8], &'a [u8]);

fn addresses(frame: &[u8]) -> MacAddrs<'_> {
    MacAddrs(&frame[..6], &frame[6..12])
}

#[test]
fn ipv4_to_the_byte() {
    let frame = ipv4_frame(&[], 1472);
    let answer = answer(&frame, 1450).expect("an answer");
    assert_eq!(answer.len(), 14 + 576);
    #[rustfmt::skip]
    let expected = [
        2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0,
        0x45, 0xc0, 0x02, 0x40, 0, 0, 0, 0, 64, 1, 0x63, 0xfb, 10, 0, 0, 2, 10, 0, 0, 1,
        3, 4, 0x2d, 0xc3, 0, 0, 0x05, 0xaa,
    ];
    assert_eq!(answer[..expected.len()], expected);
    assert_eq!(answer[expected.len()..], frame[14..14 + 576 - 28]);
    check(&frame, 1450, &answer);
}

#[test]
fn ipv6_to_the_byte() {
    let frame = ipv6_frame(17, &[], 1452);
    let answer = answer(&frame, 1430).expect("an answer");
    assert_eq!(answer.len(), 14 + 1280);
    #[rustfmt::skip]
    let expected = [
        2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd,
        0x60, 0, 0, 0, 0x04, 0xd8, 58, 64,
        0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
        0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
        2, 0,
    ];
    assert_eq!(answer[..expected.len()], expected);
    assert_eq!(answer[58..62], 1430_u32.to_be_bytes());
    assert_eq!(answer[62..], frame[14..14 + 1280 - 48]);
    check(&frame, 1430, &answer);
}

#[test]
fn tags_come_back() {
    let tags = [[0x88, 0xa8, 0xe0, 10], [0x81, 0, 0, 20]];
    for count in 0..=2 {
        let frame = ipv4_frame(&tags[..count], 1472);
        check(&frame, 1446, &answer(&frame, 1446).expect("an answer"));
    }
}

/// A frame that still is to be cut: only its beginning is quoted, with the length it has.
#[test]
fn what_is_there_is_quoted() {
    for payload in [0, 1, 500, 520, 521, 60_000] {
        let frame = ipv4_frame(&[], payload);
        let answer = answer(&frame, 1450).expect("an answer");
        assert_eq!(answer.len(), 14 + (28 + frame.len() - 14).min(576));
        check(&frame, 1450, &answer);
    }
    // Padding of the frame is no part of the packet.
    let frame = ipv4_frame(&[], 10);
    let padded = [&frame[..], &[0; 40]].concat();
    assert_eq!(answer(&padded, 1450), answer(&frame, 1450));
    // Nor does a declared length reach behind what is there.
    assert_eq!(answer(&ipv4_frame(&[], 1400)[..60], 1450).map(|answer| answer.len()), Some(14 + 28 + 46));
}

#[test]
fn who_is_not_answered() {
    let good = ipv4_frame(&[], 1472);
    let (source, destination) = (14 + 12, 14 + 16);
    for (at, address) in [
        (source, [0, 0, 0, 0]),
        (source, [0, 1, 2, 3]),
        (source, [127, 0, 0, 1]),
        (source, [224, 0, 0, 1]),
        (source, [255, 255, 255, 255]),
        (destination, [239, 1, 1, 1]),
        (destination, [255, 255, 255, 255]),
        (destination, [127, 0, 0, 1]),
        (destination, [0, 0, 0, 0]),
    ] {
        let mut frame = good.clone();
        frame[at..at + 4].copy_from_slice(&address);
        assert_eq!(answer(&frame, 1450), None, "{address:?}");
    }
    let mut group = good.clone();
    group[0] = 1;
    assert_eq!(answer(&group, 1450), None, "an Ethernet group");
    assert_eq!(answer(&good, 67), None);
    assert!(answer(&good, 68).is_some());

    let mut fragment = good.clone();
    fragment[14 + 6..14 + 8].copy_from_slice(&[0x20, 0]);
    assert!(answer(&fragment, 1450).is_some(), "the first");
    fragment[14 + 6..14 + 8].copy_from_slice(&[0x20, 1]);
    assert_eq!(answer(&fragment, 1450), None);

    let mut icmp = good.clone();
    icmp[14 + 9] = protocol::ICMP;
    for kind in 0..=255 {
        icmp[14 + 20] = kind;
        assert_eq!(answer(&icmp, 1450).is_none(), matches!(kind, 3..=5 | 11 | 12), "type {kind}");
    }
    assert_eq!(answer(&icmp[..14 + 20], 1450), None, "a kind that cannot be seen");
    assert_eq!(answer(&link(&[], [8, 6]), 1450), None, "not IP");
    assert_eq!(too_big(&good, 1450, &mut [0; 14 + 27]), None, "no room");
}

#[test]
fn who_is_not_answered_in_ipv6() {
    let good = ipv6_frame(17, &[], 1452);
    let (source, destination) = (14 + 8, 14 + 24);
    let loopback = Ipv6Addr::LOCALHOST.octets();
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
    for at in [source, destination] {
        for address in [[0; 16], loopback, all_nodes] {
            let mut frame = good.clone();
            frame[at..at + 16].copy_from_slice(&address);
            assert_eq!(answer(&frame, 1430), None, "{address:?}");
        }
    }
    assert_eq!(answer(&good, 1279), None);
    assert!(answer(&good, 1280).is_some());

    let mut icmp = good.clone();
    icmp[14 + 6] = protocol::ICMPV6;
    for kind in 0..=255 {
        icmp[14 + 40] = kind;
        assert_eq!(answer(&icmp, 1430).is_none(), kind < 128 || kind == 137, "type {kind}");
    }
    // Hop-by-hop options, then a fragment header.
    for (offset, answered) in [([0, 1], true), ([0, 8], false), ([0xff, 0xf8], false)] {
        let extensions = [44, 0, 1, 4, 0, 0, 0, 0, 17, 0, offset[0], offset[1], 0, 0, 0, 9];
        let frame = ipv6_frame(0, &extensions, 1400);
        assert_eq!(answer(&frame, 1430).is_some(), answered, "{offset:?}");
    }
}

proptest! {
    /// No frame makes it panic; what is answered gets an answer that is right to the last checksum.
    #[test]
    fn any_frame(
        ipv4: bool,
        payload_len in 0..2000_usize,
        patches in proptest::collection::vec((0..80_usize, any::<u8>()), 0..6),
        keep in 0..2100_usize,
        mtu in 0..9000_u32,
        room in 0..1400_usize,
    ) {
        let mut frame = if ipv4 { ipv4_frame(&[], payload_len) } else { ipv6_frame(17, &[], payload_len) };
        for (at, value) in patches {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(keep);
        let mut answer = vec![0; room];
        if let Some(len) = too_big(&frame, mtu, &mut answer) {
            check(&frame, mtu, &answer[..len]);
        }
    }

    #[test]
    fn any_bytes(frame: Vec<u8>, mtu: u32) {
        let _ = too_big(&frame, mtu, &mut [0; ROOM]);
    }
}
