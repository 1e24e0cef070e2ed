//! Frames whose senders left work to do, between ports of every ability.

use proptest::prelude::*;

use super::lab::{Arrival, Lab, NO_OFFLOADS, Setup, station, tagged, trunk, vid};
use super::reference::{Claim, Reference, finish, ip_offset, pseudo_sum};
use crate::addr::MacAddr;
use crate::offload::Capabilities;
use crate::spec::VlanMode;
use crate::stats::DropReason;

fn capabilities() -> impl Strategy<Value = Capabilities> {
    any::<[bool; 4]>().prop_map(|[csum, tso4, tso6, uso]| Capabilities { csum, tso4, tso6, uso })
}

/// What a sender left to do.
#[derive(Clone, Copy, Debug)]
enum Left {
    Nothing,
    Checksum,
    Segments(u16),
}

/// A TCP or UDP packet in a frame with tags, and the header that a sender who can leave work would give it.
fn packet() -> impl Strategy<Value = (Vec<u8>, Claim)> {
    let left = prop_oneof![
        Just(Left::Nothing),
        Just(Left::Checksum),
        (500u16..1461).prop_map(Left::Segments),
        (500u16..1461).prop_map(Left::Segments)
    ];
    let tags = proptest::collection::vec((0u16..16).prop_map(|priority| priority << 12 | 10), 0..3);
    let to = prop_oneof![Just(station(2)), Just(MacAddr::BROADCAST), Just(station(9))];
    let fields = (any::<bool>(), any::<bool>(), 0usize..4, any::<u8>(), any::<u32>());
    (to, tags, fields, proptest::collection::vec(any::<u8>(), 1..5000), left).prop_map(
        |(to, tags, (ipv4, udp, options, flags, number), payload, left)| {
            let mut transport = vec![0; if udp { 8 } else { 20 + 4 * options }];
            transport[..4].copy_from_slice(&[0x30, 0x39, 0xd4, 0x31]);
            if udp {
                transport[4..6].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
            } else {
                transport[4..8].copy_from_slice(&number.to_be_bytes());
                (transport[12], transport[13]) = ((5 + options as u8) << 4, flags);
            }
            transport.extend(&payload);
            let frame = ip_frame(to, ipv4, if udp { 17 } else { 6 }, number as u16, &transport);
            let frame = tags.into_iter().fold(frame, |frame, tci| tagged(0x8100, tci, &frame));
            leave_work(frame, udp, transport.len(), transport.len() - payload.len(), left)
        },
    )
}

fn ip_frame(to: MacAddr, ipv4: bool, protocol: u8, id: u16, transport: &[u8]) -> Vec<u8> {
    let mut frame = [&to.0[..], &station(1).0, if ipv4 { &[8, 0] } else { &[0x86, 0xdd] }].concat();
    if ipv4 {
        let len = (20 + transport.len() as u16).to_be_bytes();
        let id = id.to_be_bytes();
        let mut header =
            [0x45, 0, len[0], len[1], id[0], id[1], 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        frame.extend(header);
    } else {
        let len = (transport.len() as u16).to_be_bytes();
        frame.extend([0x60, 0, 0, 0, len[0], len[1], protocol, 64]);
        frame.extend([0xfd; 16].iter().chain(&[0xfe; 16]));
    }
    frame.extend(transport);
    frame
}

/// The frame as its sender hands it over, with `left` still to do.
fn leave_work(mut frame: Vec<u8>, udp: bool, ip_len: usize, headers: usize, left: Left) -> (Vec<u8>, Claim) {
    let ip = ip_offset(&frame);
    let l4 = frame.len() - ip_len;
    let mut claim = Claim {
        needs_csum: true,
        csum_start: l4 as u16,
        csum_offset: if udp { 6 } else { 16 },
        ..Claim::default()
    };
    let pseudo = pseudo_sum(&frame, ip, if udp { 17 } else { 6 }, ip_len);
    let field = l4 + usize::from(claim.csum_offset);
    frame[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
    match left {
        Left::Checksum => (frame, claim),
        Left::Nothing => (finish(&frame, &claim).remove(0), Claim::default()),
        Left::Segments(size) => {
            claim.gso = if udp {
                5
            } else if frame[ip] >> 4 == 4 {
                1
            } else {
                4
            };
            claim.gso_size = size;
            claim.hdr_len = (l4 + headers) as u16;
            (frame, claim)
        }
    }
}

fn mode() -> impl Strategy<Value = VlanMode> {
    prop_oneof![
        Just(VlanMode::Access(vid(10))),
        Just(trunk(&[10, 20], None)),
        Just(trunk(&[20], Some(10))),
        Just(VlanMode::Access(vid(20))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever the ports can take, in whatever VLANs, and wherever the ends of frames are: the frames on the wire in the end are those that a sender without
    /// offloads would have sent, through the reference bridge.
    #[test]
    fn what_arrives_does_not_depend_on_what_ports_can_do(
        filtering: bool,
        lends: bool,
        ports in proptest::collection::vec((mode(), capabilities()), 2..5),
        packets in proptest::collection::vec(packet(), 1..6),
    ) {
        let setup = |(vlan, capabilities): &(VlanMode, Capabilities)| {
            Setup { vlan: vlan.clone(), capabilities: *capabilities, ..Setup::default() }
        };
        let setups: Vec<Setup> = ports.iter().map(setup).collect();
        let (mut lab, mut reference) = (Lab::new(filtering, &setups), Reference::new(filtering, &setups));
        if lends {
            lab = lab.lending();
        }
        let arrivals: Vec<Arrival> = packets
            .iter()
            .map(|(bytes, claim)| Arrival { header: claim.write(), bytes: bytes.clone(), tag: None })
            .collect();
        lab.arrive(0, &arrivals);
        for (bytes, claim) in &packets {
            finish(bytes, claim).iter().for_each(|frame| reference.hear(0, frame));
        }
        for (port, setup) in setups.iter().enumerate() {
            let sent = lab.take(port as u16);
            let mut arrived = Vec::new();
            for sent in &sent {
                let claim = Claim::read(&sent.header);
                let can = setup.capabilities;
                prop_assert!(can.csum || !claim.needs_csum, "an unfinished checksum to a port that cannot finish it");
                let taken = [(1, can.tso4), (4, can.tso6), (5, can.uso)];
                prop_assert!(claim.gso == 0 || taken.contains(&(claim.gso, true)));
                let wire = finish(&sent.bytes, &claim);
                prop_assert_eq!(sent.segments as usize, wire.len());
                arrived.extend(wire);
            }
            prop_assert_eq!(&arrived, &reference.sent[port], "by port {}", port);
            let counters = lab.counters(port as u16);
            prop_assert_eq!(counters.tx_frames.get(), sent.len() as u64);
            prop_assert_eq!(counters.tx_segments.get(), arrived.len() as u64);
        }
    }

    /// Headers that lie, on frames of anything: dropped under a reason or sent, each copy once; never a panic; and a port
    /// without offloads gets nothing unfinished.
    #[test]
    fn hostile_headers_are_harmless(
        filtering: bool,
        ports in proptest::collection::vec((mode(), capabilities()), 2..4),
        frames in proptest::collection::vec(hostile(), 1..20),
    ) {
        let setups: Vec<Setup> = ports
            .iter()
            .map(|(vlan, capabilities)| Setup { vlan: vlan.clone(), capabilities: *capabilities, ..Setup::default() })
            .collect();
        let mut lab = Lab::new(filtering, &setups);
        lab.arrive(0, &frames);
        let taken = lab.counters(0).rx_frames.get() + refused(&lab);
        prop_assert_eq!(taken, frames.len() as u64);
        for (port, setup) in setups.iter().enumerate() {
            for sent in lab.take(port as u16) {
                let claim = Claim::read(&sent.header);
                let end = usize::from(claim.csum_start) + usize::from(claim.csum_offset) + 2;
                prop_assert!(!claim.needs_csum || end <= sent.bytes.len());
                prop_assert!(setup.capabilities.csum || !claim.needs_csum && claim.gso == 0);
            }
        }
    }
}

/// Frames that were not even taken into a batch: port 0 sends none here, so all its `bad_offload` are that.
fn refused(lab: &Lab) -> u64 {
    lab.counters(0).drops(DropReason::BadOffload)
}

/// A good packet with its header or its bytes bent, or noise.
fn hostile() -> impl Strategy<Value = Arrival> {
    let bent =
        (packet(), proptest::collection::vec((0usize..90, any::<u8>()), 0..6), any::<Option<[u8; 4]>>());
    let bent = bent.prop_map(|((mut bytes, claim), bends, tag)| {
        let mut header = claim.write();
        for (at, value) in bends {
            if at < 10 {
                header[at] = value;
            } else if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        Arrival { header, bytes, tag }
    });
    let noise = (any::<[u8; 10]>(), proptest::collection::vec(any::<u8>(), 0..200), any::<Option<[u8; 4]>>());
    prop_oneof![4 => bent, 1 => noise.prop_map(|(header, bytes, tag)| Arrival { header, bytes, tag })]
}

/// A tag in front of the transport header moves where its checksum is, and a tag that goes moves it back.
#[test]
fn offsets_follow_tags() {
    let port = |vlan| Setup { vlan, ..Setup::default() };
    let setups = [port(VlanMode::Access(vid(10))), port(trunk(&[10], None))];
    let plain = ip_frame(MacAddr::BROADCAST, true, 17, 1, &[0, 1, 0, 2, 0, 12, 0, 0, 1, 2, 3, 4]);
    let claim = Claim { needs_csum: true, csum_start: 34, csum_offset: 6, ..Claim::default() };
    let shifted = Claim { csum_start: 38, ..claim };
    let with_tag = tagged(0x8100, 10, &plain);
    let mut lab = Lab::new(true, &setups);
    lab.arrive(0, &[Arrival { header: claim.write(), bytes: plain.clone(), tag: None }]);
    let sent = lab.take(1).remove(0);
    assert_eq!((sent.bytes, sent.header), (with_tag.clone(), shifted.write()));
    lab.arrive(1, &[Arrival { header: shifted.write(), bytes: with_tag, tag: None }]);
    let sent = lab.take(0).remove(0);
    assert_eq!((sent.bytes, sent.header), (plain.clone(), claim.write()));
    lab.arrive(1, &[Arrival { header: claim.write(), bytes: plain.clone(), tag: Some([0x81, 0, 0, 10]) }]);
    let sent = lab.take(0).remove(0);
    assert_eq!((sent.bytes, sent.header), (plain, claim.write()), "beside the frame, then in it, then gone");
}

/// Segments that are cut here must fit the port's MTU; a frame that is still to be cut need not.
#[test]
fn segments_too_long_for_the_port_are_dropped_one_by_one() {
    let port = |capabilities| Setup { capabilities, mtu: 1000, ..Setup::default() };
    let can = Capabilities { tso4: true, csum: true, ..NO_OFFLOADS };
    let mut lab = Lab::new(false, &[Setup::default(), port(NO_OFFLOADS), port(can)]);
    let mut transport = vec![0; 20];
    transport[12] = 5 << 4;
    transport.resize(20 + 3100, 7);
    let frame = ip_frame(MacAddr::BROADCAST, true, 6, 1, &transport);
    let (bytes, claim) = leave_work(frame, false, 3120, 20, Left::Segments(1200));
    lab.arrive(0, &[Arrival { header: claim.write(), bytes, tag: None }]);
    // 1,200 and 1,200 bytes are too long with their headers, 700 are not.
    assert_eq!(lab.take(1).iter().map(|sent| sent.bytes.len()).collect::<Vec<_>>(), [754]);
    assert_eq!(lab.drops(1), [(DropReason::TooLong, 2)]);
    assert_eq!(lab.take(2).len(), 1);
    assert_eq!((lab.counters(0).rx_segments.get(), lab.counters(2).tx_segments.get()), (3, 3));
}

/// More segments than a batch has frames, and than the workshop holds at once.
#[test]
fn the_longest_frames_are_cut_in_order() {
    for (payload, size) in [(65_000, 500), (65_000, 60_000), (65_000, 48)] {
        let mut lab =
            Lab::new(false, &[Setup::default(), Setup { capabilities: NO_OFFLOADS, ..Setup::default() }]);
        let mut transport = vec![0; 20];
        transport[12] = 5 << 4;
        transport.extend((0..payload).map(|i| (i % 251) as u8));
        let frame = ip_frame(MacAddr::BROADCAST, true, 6, 1, &transport);
        let (bytes, claim) = leave_work(frame, false, transport.len(), 20, Left::Segments(size));
        lab.arrive(0, &vec![Arrival { header: claim.write(), bytes: bytes.clone(), tag: None }; 2]);
        let wire = finish(&bytes, &claim);
        assert_eq!(lab.sent()[1], [wire.clone(), wire].concat());
    }
}

/// Whatever the ports can take: a frame that would become a packet a byte ends where it came in.
#[test]
fn a_frame_of_tiny_segments_goes_nowhere() {
    let mut lab = Lab::new(
        false,
        &[Setup::default(), Setup { capabilities: NO_OFFLOADS, ..Setup::default() }, Setup::default()],
    );
    let mut transport = vec![0; 20];
    transport[12] = 5 << 4;
    transport.resize(20 + 2000, 7);
    let frame = ip_frame(MacAddr::BROADCAST, true, 6, 1, &transport);
    for size in [1, 47] {
        let (bytes, claim) = leave_work(frame.clone(), false, transport.len(), 20, Left::Segments(size));
        lab.arrive(0, &[Arrival { header: claim.write(), bytes, tag: None }]);
    }
    assert_eq!(lab.drops(0), [(DropReason::BadOffload, 2)]);
    assert_eq!([lab.take(1).len(), lab.take(2).len()], [0, 0]);
}
