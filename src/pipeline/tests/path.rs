//! Tunnels whose path takes less than stations send: what is answered, fragmented outside, cut to fit, clamped.

use etherparse::{Icmpv4Type, Icmpv6Type, SlicedPacket, TransportSlice};

use super::lab::{Arrival, Lab, NO_OFFLOADS, Setup, frame_of, station, tagged, trunk, vid};
use crate::pipeline::answer::SECOND_ANSWERS;
use crate::spec::{Df, VlanMode};
use crate::stats::DropReason;
use crate::wire::ipv4;

/// Longest frame that fits the path.
const FITS: u32 = 1464;

/// Stations at port 0 and tunnels at the others, which are told apart from ports by `group`.
fn lab(tunnels: u16, df: Df) -> Lab {
    let setup = Setup { capabilities: NO_OFFLOADS, ..Setup::default() };
    let mut lab = Lab::new(false, &vec![setup; usize::from(tunnels) + 1]);
    (1..=tunnels).for_each(|port| dig(&mut lab, port, df));
    lab
}

/// Makes a port a tunnel.
fn dig(lab: &mut Lab, port: u16, df: Df) {
    let port = lab.port_mut(port);
    (port.group, port.df) = (1, Some(df));
    port.shared.set_path_max(FITS);
}

/// UDP in IPv4, `len` bytes of frame, with or without DF.
fn v4(len: usize, df: bool) -> Vec<u8> {
    let mut frame = frame_of(len, station(2), station(1), 7);
    let total = u16::try_from(len - 14).expect("fits").to_be_bytes();
    let flags = if df { ipv4::DF } else { 0 };
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14..34].copy_from_slice(&[
        0x45, 0, total[0], total[1], 0, 1, flags, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    ipv4::fill_checksum(&mut frame[14..34]);
    let udp = u16::try_from(len - 34).expect("fits").to_be_bytes();
    frame[34..42].copy_from_slice(&[0, 1, 0, 2, udp[0], udp[1], 0, 0]);
    frame
}

/// UDP in IPv6.
fn v6(len: usize) -> Vec<u8> {
    let mut frame = frame_of(len, station(2), station(1), 7);
    let payload = u16::try_from(len - 54).expect("fits").to_be_bytes();
    frame[12..22].copy_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, payload[0], payload[1], 17, 64]);
    for (at, last) in [(22, 1), (38, 2)] {
        frame[at..at + 16].copy_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    frame[54..62].copy_from_slice(&[0, 1, 0, 2, payload[0], payload[1], 0, 0]);
    frame
}

/// A SYN that announces segments of 1460 bytes.
fn syn() -> Vec<u8> {
    let mut frame = v4(58, true);
    frame[23] = 6;
    ipv4::fill_checksum(&mut frame[14..34]);
    frame[34..58].copy_from_slice(&[
        0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 180,
    ]);
    let sum = etherparse::TcpHeaderSlice::from_slice(&frame[34..]).expect("valid");
    let sum = sum.calc_checksum_ipv4_raw([10, 0, 0, 1], [10, 0, 0, 2], &[]).expect("short");
    frame[50..52].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The MTU that an answer tells of.
fn told(answer: &[u8]) -> u32 {
    match SlicedPacket::from_ethernet(answer).expect("it parses").transport.expect("ICMP") {
        TransportSlice::Icmpv4(icmp) => match icmp.icmp_type() {
            Icmpv4Type::DestinationUnreachable(
                etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu },
            ) => next_hop_mtu.into(),
            other => panic!("{other:?}"),
        },
        TransportSlice::Icmpv6(icmp) => match icmp.icmp_type() {
            Icmpv6Type::PacketTooBig { mtu } => mtu,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// What one frame comes to: the MTU told to its sender, whether it left, what is counted of it.
fn fate(df: Df, frame: Vec<u8>) -> (Option<u32>, bool, u64, Vec<(DropReason, u64)>) {
    let mut lab = lab(1, df);
    lab.hear(0, frame.clone());
    let mut sent = lab.sent();
    let left = sent.pop().expect("two ports");
    assert!(left.is_empty() || left == [frame], "as it came");
    let answers = sent.pop().expect("two ports");
    assert!(answers.len() <= 1);
    let fragmented = lab.counters(1).tx_fragmented.get();
    (answers.first().map(|answer| told(answer)), !left.is_empty(), fragmented, lab.drops(1))
}

#[test]
fn by_mode_and_frame() {
    let (fits, too_long) = (1464, 1465);
    let passes = (None, true, 0, vec![]);
    let fragmented = (None, true, 1, vec![]);
    let dropped = |told| (told, false, 0, vec![(DropReason::TooBig, 1)]);
    for df in [Df::Inherit, Df::Set, Df::Unset] {
        for frame in [v4(fits, true), v4(fits, false), v6(fits), frame_of(fits, station(2), station(1), 0)] {
            assert_eq!(fate(df, frame), passes, "{df:?}");
        }
    }
    let other = || frame_of(too_long, station(2), station(1), 0);
    for (df, frame, expected) in [
        (Df::Inherit, v4(too_long, true), dropped(Some(1450))),
        (Df::Inherit, v6(too_long), dropped(Some(1450))),
        (Df::Inherit, v4(too_long, false), fragmented.clone()),
        (Df::Inherit, other(), fragmented.clone()),
        (Df::Inherit, tagged(0x8100, 5, &v4(fits, true)), dropped(Some(1446))),
        (Df::Inherit, tagged(0x8100, 5, &v4(fits - 4, true)), passes),
        (Df::Set, v4(too_long, true), dropped(Some(1450))),
        (Df::Set, v4(too_long, false), dropped(Some(1450))),
        (Df::Set, v6(too_long), dropped(Some(1450))),
        (Df::Set, other(), dropped(None)),
        (Df::Unset, v4(too_long, true), fragmented.clone()),
        (Df::Unset, v6(too_long), fragmented.clone()),
        (Df::Unset, other(), fragmented),
    ] {
        assert_eq!(fate(df, frame.clone()), expected, "{df:?} {:02x?}", &frame[..24]);
    }
}

/// Every link carries IPv6 packets of 1280 bytes, if need be in fragments of its own (RFC 8200, section 5).
#[test]
fn a_path_of_less_than_ipv6_needs() {
    for df in [Df::Inherit, Df::Set] {
        let mut lab = lab(1, df);
        lab.port_mut(1).shared.set_path_max(14 + 1000);
        lab.hear(0, v6(14 + 1281));
        lab.hear(0, v6(14 + 1280));
        let sent = lab.sent();
        let answers: Vec<u32> = sent[0].iter().map(|answer| told(answer)).collect();
        if df == Df::Inherit {
            assert_eq!((answers, sent[1].len()), (vec![1280], 1));
        } else {
            assert_eq!((answers, sent[1].len()), (vec![], 0), "nobody can be told of so little");
        }
    }
}

/// Who floods is told once, whatever the number of tunnels; those that take it get it.
#[test]
fn a_flood_is_answered_once() {
    let mut lab = lab(3, Df::Inherit);
    lab.port_mut(3).shared.set_path_max(9000);
    let frames = [v4(1500, true).into(), v4(1400, true).into(), v4(1500, true).into()];
    lab.arrive(0, &frames);
    assert_eq!(lab.sent_counts(), [2, 1, 1, 3]);
    assert_eq!((lab.drops(1), lab.drops(2)), (vec![(DropReason::TooBig, 2)], vec![(DropReason::TooBig, 2)]));
}

/// An answer has the tag of its question, and the MTU counts the tag with which the frame would have left.
#[test]
fn tags_that_are_added_or_removed_count() {
    let access = Setup { vlan: VlanMode::Access(vid(10)), capabilities: NO_OFFLOADS, ..Setup::default() };
    let tagging = Setup { vlan: trunk(&[10], None), ..access.clone() };
    for (from, to, question, mtu) in [
        (&access, &tagging, v4(1500, true), 1446),
        (&tagging, &access, tagged(0x8100, 10, &v4(1500, true)), 1450),
    ] {
        let mut lab = Lab::new(true, &[from.clone(), to.clone()]);
        dig(&mut lab, 1, Df::Inherit);
        lab.hear(0, question.clone());
        let sent = lab.sent();
        assert_eq!((sent[0].len(), sent[1].len()), (1, 0));
        assert_eq!((told(&sent[0][0]), &sent[0][0][12..14]), (mtu, &question[12..14]));
        // That much does fit.
        let ipv4 = 14 + usize::try_from(mtu).expect("small");
        let fitting = v4(ipv4, true);
        let fitting = if question.len() > 1500 { tagged(0x8100, 10, &fitting) } else { fitting };
        lab.hear(0, fitting);
        assert_eq!(lab.sent_counts(), [0, 1]);
    }
}

/// UDP to be cut: its boundaries are kept, so segments that do not fit are treated like frames.
#[test]
fn segments_of_udp() {
    for (df, size, answers, left, fragmented) in
        [(true, 1472, 1, 0, 0), (false, 1472, 0, 3, 2), (true, 1422, 0, 3, 0)]
    {
        let mut frame = v4(42 + 2 * size + 100, df);
        // The sum over the pseudo-header, as senders leave it.
        let udp_len = u16::try_from(frame.len() - 34).expect("fits");
        let sum = crate::offload::checksum::pseudo_header(&frame[14..], true, 17).word(udp_len).fold();
        frame[40..42].copy_from_slice(&sum);
        let [size_low, size_high] = u16::try_from(size).expect("fits").to_le_bytes();
        let header = [1, 5, 42, 0, size_low, size_high, 34, 0, 6, 0];
        let mut lab = lab(1, Df::Inherit);
        lab.arrive(0, &[Arrival { header, bytes: frame, tag: None }]);
        assert_eq!(lab.sent_counts(), [answers, left], "DF {df}, {size}");
        assert_eq!(lab.counters(1).tx_fragmented.get(), fragmented);
        assert_eq!(lab.drops(1), vec![(DropReason::TooBig, 1); answers]);
    }
}

/// TCP to be cut is cut to fit, and nobody is told anything.
#[test]
fn segments_of_tcp_are_made_to_fit() {
    let mut frame = v4(54 + 4000, true);
    frame[23] = 6;
    ipv4::fill_checksum(&mut frame[14..34]);
    frame[34..54].copy_from_slice(&[0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 16, 0xff, 0xff, 0, 0, 0, 0]);
    let header = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0];
    let mut lab = lab(1, Df::Set);
    lab.arrive(0, &[Arrival { header, bytes: frame, tag: None }]);
    let sent = lab.sent();
    assert!(sent[0].is_empty() && sent[1].iter().all(|segment| segment.len() <= FITS as usize));
    assert_eq!((sent[1].len(), lab.drops(1)), (3, vec![]));
}

#[test]
fn answers_are_limited() {
    let mut lab = lab(1, Df::Inherit);
    let frames = vec![v4(1500, true).into(); 64];
    let batches = SECOND_ANSWERS / 32 + 10;
    let mut answers = 0;
    for _ in 0..batches {
        lab.arrive(0, &frames);
        answers += lab.sent_counts()[0];
    }
    assert_eq!(answers, SECOND_ANSWERS as usize);
    assert_eq!(lab.drops(1), [(DropReason::TooBig, 64 * u64::from(batches))], "never uncounted");
}

/// Both ways, and only where it is asked for; a copy that leaves elsewhere is as it came.
#[test]
fn connections_are_clamped() {
    let mss = |frame: &[u8]| u16::from_be_bytes([frame[56], frame[57]]);
    let right = |frame: &[u8]| {
        let header = etherparse::TcpHeaderSlice::from_slice(&frame[34..]).expect("valid");
        let sum = header.calc_checksum_ipv4_raw([10, 0, 0, 1], [10, 0, 0, 2], &[]);
        sum == Ok(header.checksum())
    };
    let mut lab = lab(2, Df::Inherit);
    lab.port_mut(1).mss_clamp = true;
    lab.hear(0, syn());
    let sent = lab.sent();
    assert_eq!((mss(&sent[1][0]), mss(&sent[2][0])), (1410, 1460));
    assert!(right(&sent[1][0]) && right(&sent[2][0]));
    assert_eq!((lab.counters(1).mss_clamped.get(), lab.counters(2).mss_clamped.get()), (1, 0));

    // Unfinished, as a local sender leaves it; and in order with others.
    let mut unfinished = syn();
    let sum = crate::offload::checksum::pseudo_header(&unfinished[14..], true, 6).word(24).fold();
    unfinished[50..52].copy_from_slice(&sum);
    let header = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0];
    let plain = v4(100, true);
    lab.arrive(
        0,
        &[plain.clone().into(), Arrival { header, bytes: unfinished, tag: None }, plain.clone().into()],
    );
    let sent = lab.sent();
    assert_eq!((&sent[1][0], &sent[1][2]), (&plain, &plain));
    assert!(mss(&sent[1][1]) == 1410 && right(&sent[1][1]) && right(&sent[2][1]));

    // Out of the tunnel, to a port that has nothing to do with it.
    let mut back = syn();
    back[..12].rotate_left(6);
    for (port, expected) in [(1, 1410), (2, 1460)] {
        lab.hear(port, back.clone());
        let sent = lab.sent();
        assert!(mss(&sent[0][0]) == expected && right(&sent[0][0]), "{port}");
    }
    assert_eq!((lab.counters(1).mss_clamped.get(), lab.counters(2).mss_clamped.get()), (3, 0));
}
