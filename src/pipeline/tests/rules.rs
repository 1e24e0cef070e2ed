//! The rules of a learning switch one by one, and every drop reason.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::lab::{Arrival, FINISHED, Lab, NO_OFFLOADS, Setup, frame, frame_of, station, tagged, trunk, vid};
use crate::addr::{MacAddr, PortId};
use crate::batch::{BATCH_FRAMES, FRAME_MAX};
use crate::bridge::fdb::{Fdb, Key, Tick};
use crate::spec::VlanMode;
use crate::stats::DropReason;
use crate::topology::Bridge;

const ALL: MacAddr = MacAddr::BROADCAST;
const GROUP: MacAddr = MacAddr([0x01, 0, 0x5e, 0, 0, 5]);

fn with(change: impl Fn(&mut Setup)) -> Setup {
    let mut setup = Setup::default();
    change(&mut setup);
    setup
}

#[test]
fn stations_are_learned_and_then_reached_alone() {
    let mut lab = Lab::plain(3);
    lab.hear(0, frame(station(2), station(1), 0));
    assert_eq!(lab.sent_counts(), [0, 1, 1], "an unknown station is searched everywhere");
    lab.hear(1, frame(station(1), station(2), 0));
    assert_eq!(lab.sent_counts(), [1, 0, 0]);
    lab.hear(0, frame(station(2), station(1), 0));
    assert_eq!(lab.sent_counts(), [0, 1, 0]);
    lab.hear(0, frame(ALL, station(1), 0));
    lab.hear(0, frame(GROUP, station(1), 0));
    assert_eq!(lab.sent_counts(), [0, 2, 2], "groups are everybody");
}

#[test]
fn bad_sources_are_dropped_and_not_learned() {
    let mut lab = Lab::plain(2);
    for source in [GROUP, ALL, MacAddr::ZERO] {
        lab.hear(0, frame(station(2), source, 0));
    }
    assert_eq!((lab.sent_counts(), lab.drops(0)), (vec![0, 0], vec![(DropReason::BadSource, 3)]));
    assert!(lab.fdb().is_empty());
}

#[test]
fn link_local_frames_stay_on_their_link() {
    let mut lab = Lab::plain(2);
    for last in 1..=15 {
        lab.hear(0, frame(MacAddr([0x01, 0x80, 0xc2, 0, 0, last]), station(last), 0));
    }
    assert_eq!((lab.sent_counts(), lab.drops(0)), (vec![0, 0], vec![(DropReason::LinkLocal, 15)]));
    assert_eq!(lab.at(station(1), 0), None, "PAUSE frames are not learned from");
    assert!((2..=15).all(|last| lab.at(station(last), 0) == Some(0)), "the others are");
    // Without a spanning tree the bridge group address is a group like others; so is the one after the range.
    lab.hear(0, frame(MacAddr([0x01, 0x80, 0xc2, 0, 0, 0]), station(1), 0));
    lab.hear(0, frame(MacAddr([0x01, 0x80, 0xc2, 0, 0, 0x10]), station(1), 0));
    assert_eq!(lab.sent_counts(), [0, 2]);
}

#[test]
fn nothing_is_reflected_unless_the_port_is_a_hairpin() {
    for hairpin in [false, true] {
        let mut lab = Lab::new(false, &[with(|port| port.hairpin = hairpin), Setup::default()]);
        lab.hear(0, frame(ALL, station(1), 0));
        assert_eq!(lab.sent_counts(), [usize::from(hairpin), 1]);
        lab.hear(0, frame(station(1), station(2), 0));
        lab.hear(0, frame(station(1), station(1), 0));
        assert_eq!(
            lab.sent_counts(),
            [if hairpin { 2 } else { 0 }, 0],
            "to a station on the same port, to oneself"
        );
        let drops = if hairpin { vec![] } else { vec![(DropReason::SamePort, 2)] };
        assert_eq!(lab.drops(0), drops);
    }
}

#[test]
fn isolated_ports_reach_only_the_others() {
    let isolated = with(|port| port.isolated = true);
    let mut lab = Lab::new(false, &[isolated.clone(), isolated, Setup::default()]);
    lab.hear(1, frame(ALL, station(2), 0));
    assert_eq!(lab.sent_counts(), [0, 0, 1]);
    lab.hear(0, frame(station(2), station(1), 0));
    assert_eq!((lab.sent_counts(), lab.drops(0)), (vec![0, 0, 0], vec![(DropReason::Isolated, 1)]));
    lab.hear(2, frame(ALL, station(3), 0));
    lab.hear(0, frame(station(3), station(1), 0));
    assert_eq!(lab.sent_counts(), [1, 1, 1]);
}

#[test]
fn flood_off_stops_unknown_unicast_only() {
    let mut lab = Lab::new(false, &[Setup::default(), with(|port| port.flood = false), Setup::default()]);
    lab.hear(0, frame(station(9), station(1), 0));
    assert_eq!(lab.sent_counts(), [0, 0, 1]);
    lab.hear(0, frame(ALL, station(1), 0));
    lab.hear(0, frame(GROUP, station(1), 0));
    assert_eq!(lab.sent_counts(), [0, 2, 2]);
    lab.hear(1, frame(station(9), station(2), 0));
    assert_eq!(lab.sent_counts(), [1, 0, 1], "what it sends itself is not concerned");
    lab.hear(0, frame(station(2), station(1), 0));
    assert_eq!(lab.sent_counts(), [0, 1, 0]);
}

#[test]
fn where_learning_is_off_nothing_is_learned() {
    let mut lab = Lab::new(false, &[with(|port| port.learning = false), Setup::default(), Setup::default()]);
    lab.hear(0, frame(ALL, station(1), 0));
    assert_eq!((lab.at(station(1), 0), lab.sent_counts()), (None, vec![0, 1, 1]));
    lab.hear(1, frame(station(1), station(2), 0));
    assert_eq!((lab.at(station(2), 0), lab.sent_counts()), (Some(1), vec![1, 0, 1]));
    lab.topology.bridges[0].learning = false;
    lab.hear(2, frame(station(2), station(3), 0));
    assert_eq!(
        (lab.at(station(3), 0), lab.sent_counts()),
        (None, vec![0, 1, 0]),
        "but it looks up what it knows"
    );
}

#[test]
fn stations_move_and_age() {
    let mut lab = Lab::plain(3);
    lab.hear(0, frame(ALL, station(1), 0));
    lab.hear(1, frame(ALL, station(1), 0));
    lab.sent();
    lab.hear(2, frame(station(1), station(3), 0));
    assert_eq!(lab.sent_counts(), [0, 1, 0]);
    lab.now = Tick(299);
    lab.hear(2, frame(ALL, station(3), 0));
    lab.fdb().expire(Tick(300), 300);
    assert_eq!((lab.at(station(1), 0), lab.at(station(3), 0)), (None, Some(2)));
}

#[test]
fn static_and_local_entries_neither_move_nor_age() {
    let mut lab = Lab::plain(3);
    lab.fdb().insert_static(Key::new(station(1), 0), PortId(0)).unwrap();
    lab.fdb().insert_local(Key::new(station(2), 0), PortId(1)).unwrap();
    for stolen in [station(1), station(2)] {
        lab.hear(2, frame(ALL, stolen, 0));
    }
    assert_eq!(lab.sent_counts(), [2, 2, 0], "frames from the thief are still forwarded");
    lab.fdb().expire(Tick(1_000_000), 300);
    lab.hear(2, frame(station(1), station(3), 0));
    lab.hear(2, frame(station(2), station(3), 0));
    assert_eq!(lab.sent_counts(), [1, 1, 0]);
}

#[test]
fn what_is_learned_in_a_batch_counts_from_the_next_frame_on() {
    let mut lab = Lab::plain(3);
    lab.hear(1, frame(ALL, station(2), 0));
    lab.sent();
    // To 5 while unknown; then 5 speaks from the same port; then to 5 again.
    let batch = [
        frame(station(5), station(1), 0).into(),
        frame(station(2), station(5), 1).into(),
        frame(station(5), station(1), 2).into(),
    ];
    lab.arrive(0, &batch);
    let payloads: Vec<Vec<u8>> =
        lab.sent().iter().map(|sent| sent.iter().map(|bytes| bytes[20]).collect()).collect();
    assert_eq!(payloads, [vec![], vec![0, 1], vec![0]]);
    assert_eq!(lab.drops(0), [(DropReason::SamePort, 1)]);
}

#[test]
fn every_port_sends_in_the_order_of_arrival() {
    let mut lab = Lab::plain(4);
    for port in 1..4 {
        lab.hear(port, frame(ALL, station(port as u8), 0));
    }
    lab.sent();
    let to = |i: usize| [station(1), ALL, station(2), station(9), station(1), GROUP, station(3)][i % 7];
    let batch: Vec<Arrival> =
        (0..BATCH_FRAMES).map(|i| frame(to(i), station(0x10), i as u8).into()).collect();
    lab.arrive(0, &batch);
    for (port, sent) in lab.sent().into_iter().enumerate().skip(1) {
        let wanted = (0..BATCH_FRAMES).filter(|&i| {
            let to = to(i);
            to == station(port as u8) || to == station(9) || to.is_multicast()
        });
        let payloads: Vec<usize> = sent.iter().map(|bytes| usize::from(bytes[20])).collect();
        assert_eq!(payloads, wanted.collect::<Vec<_>>(), "port {port}");
    }
}

#[test]
fn order_holds_where_some_frames_are_finished_in_software() {
    let mut lab = Lab::new(false, &[Setup::default(), with(|port| port.capabilities = NO_OFFLOADS)]);
    let batch: Vec<Arrival> = (0..20u8)
        .map(|i| {
            let mut header = FINISHED;
            if i % 3 == 0 {
                (header[0], header[6], header[8]) = (1, 34, 6);
            }
            Arrival { header, bytes: frame(ALL, station(1), i), tag: None }
        })
        .collect();
    lab.arrive(0, &batch);
    let sent = lab.take(1);
    assert_eq!(sent.iter().map(|sent| sent.bytes[20]).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
}

#[test]
fn batches_and_frames_of_every_size() {
    for count in [0, 1, 2, 64, 65] {
        let mut lab = Lab::plain(3);
        lab.arrive(0, &vec![frame(ALL, station(1), 7).into(); count]);
        assert_eq!(lab.sent_counts(), [0, count, count]);
        assert_eq!(lab.counters(0).rx_frames.get(), count as u64);
    }
    for len in [14, 60, 64, 512, 1514, 1518, 9018, 65_549, FRAME_MAX] {
        let setup = Setup { mtu: FRAME_MAX as u32, ..Setup::default() };
        let mut lab = Lab::new(false, &[setup.clone(), setup]);
        let bytes = frame_of(len, station(2), station(1), 0xa5);
        lab.arrive(0, &vec![bytes.clone().into(); 5]);
        assert_eq!(lab.sent()[1], vec![bytes; 5], "{len} bytes");
        let (received, sent) = (lab.counters(0), lab.counters(1));
        assert_eq!((received.rx_frames.get(), received.rx_bytes.get()), (5, 5 * len as u64));
        assert_eq!(
            (sent.tx_frames.get(), sent.tx_bytes.get(), sent.tx_segments.get()),
            (5, 5 * len as u64, 5)
        );
    }
    let mut lab = Lab::plain(2);
    let runts: Vec<Arrival> = (0..14).map(|len| frame_of(len, ALL, station(1), 0).into()).collect();
    lab.arrive(0, &runts);
    assert_eq!((lab.sent_counts(), lab.drops(0)), (vec![0, 0], vec![(DropReason::Runt, 14)]));
    assert!(lab.fdb().is_empty());
}

#[test]
fn a_tag_taken_out_by_the_kernel_is_put_back() {
    for len in [14, 60, 1514] {
        let mut lab = Lab::plain(2);
        let bytes = frame_of(len, ALL, station(1), 3);
        let tag = [0x81, 0x00, 0xa0, 0x07];
        lab.arrive(
            0,
            &[Arrival { header: FINISHED, bytes: bytes.clone(), tag: Some(tag) }, bytes.clone().into()],
        );
        assert_eq!(lab.sent()[1], [tagged(0x8100, 0xa007, &bytes), bytes]);
    }
    let mut lab = Lab::plain(2);
    lab.arrive(0, &[Arrival { header: FINISHED, bytes: vec![0; 11], tag: Some([0x81, 0, 0, 1]) }]);
    assert_eq!(lab.drops(0), [(DropReason::Runt, 1)]);
}

#[test]
fn frames_too_long_for_a_port_are_dropped_there() {
    // The outermost tag is not counted, one behind it is; a packet socket knows of 802.1Q alone.
    for (strict_mtu, longest) in [(false, [1518, 1522, 1522, 1522]), (true, [1514, 1518, 1514, 1518])] {
        let port = with(|port| (port.mtu, port.strict_mtu) = (1500, strict_mtu));
        let mut lab = Lab::new(false, &[Setup::default(), port, Setup::default()]);
        for extra in [0, 1] {
            let [plain, q, ad, q_in_q] = longest.map(|len| len + extra);
            let of = |len: usize| frame_of(len, ALL, station(1), 0);
            lab.arrive(
                0,
                &[
                    of(plain).into(),
                    tagged(0x8100, 5, &of(q - 4)).into(),
                    tagged(0x88a8, 5, &of(ad - 4)).into(),
                    tagged(0x8100, 5, &tagged(0x8100, 6, &of(q_in_q - 8))).into(),
                ],
            );
        }
        assert_eq!(lab.sent_counts(), [0, 4, 8]);
        assert_eq!((lab.drops(0), lab.drops(1)), (vec![], vec![(DropReason::TooLong, 4)]));
    }
}

#[test]
fn a_tag_counts_where_it_is_added_or_removed() {
    let access =
        with(|port| (port.vlan, port.mtu, port.strict_mtu) = (VlanMode::Access(vid(10)), 1500, true));
    let tagging = with(|port| (port.vlan, port.mtu, port.strict_mtu) = (trunk(&[10], None), 1500, true));
    let mut lab = Lab::new(true, &[access.clone(), tagging.clone()]);
    lab.hear(0, frame_of(1514, ALL, station(1), 0));
    lab.hear(0, frame_of(1515, ALL, station(1), 0));
    assert_eq!((lab.sent_counts(), lab.drops(1)), (vec![0, 1], vec![(DropReason::TooLong, 1)]));
    let mut lab = Lab::new(true, &[tagging, access]);
    lab.hear(0, tagged(0x8100, 10, &frame_of(1514, ALL, station(1), 0)));
    lab.hear(0, tagged(0x8100, 10, &frame_of(1515, ALL, station(1), 0)));
    assert_eq!((lab.sent_counts(), lab.drops(1)), (vec![0, 1], vec![(DropReason::TooLong, 1)]));
}

#[test]
fn an_entry_whose_port_has_left_floods() {
    let mut lab = Lab::plain(3);
    lab.hear(2, frame(ALL, station(3), 0));
    lab.sent();
    lab.topology.ports[2] = None;
    lab.topology.bridges[0].members.pop();
    lab.hear(0, frame(station(3), station(1), 0));
    assert_eq!(lab.sent_counts(), [0, 1, 0]);
    lab.fdb().flush(|_, _| true);
    let key = Key::new(station(3), 0);
    lab.fdb().learn(key, lab.fdb().hash(key), PortId(4000), Tick::default());
    lab.hear(0, frame(station(3), station(1), 0));
    assert_eq!(lab.sent_counts(), [0, 1, 0], "nor is an id beyond the table one");
}

/// A station that an operator has put behind a port is nowhere else while the port's device is gone.
#[test]
fn a_static_entry_whose_port_is_gone_drops() {
    let mut lab = Lab::plain(3);
    lab.fdb().insert_static(Key::new(station(3), 0), PortId(2)).unwrap();
    lab.topology.ports[2] = None;
    lab.topology.bridges[0].members.pop();
    lab.hear(0, frame(station(3), station(1), 0));
    assert_eq!(lab.sent_counts(), [0, 0, 0]);
    assert_eq!(lab.drops(0), [(DropReason::PortGone, 1)]);
}

#[test]
fn bridges_do_not_mix() {
    let mut lab = Lab::plain(4);
    lab.topology.bridges[0].members.truncate(2);
    let other = Bridge {
        fdb: std::sync::Arc::new(Fdb::with_seed(100, 1)),
        learning: true,
        filtering: false,
        neighbours: None,
        members: vec![PortId(2), PortId(3)],
    };
    lab.topology.bridges.push(other);
    lab.port_mut(2).bridge = 1;
    lab.port_mut(3).bridge = 1;
    // A stale entry: its port moved to the other bridge.
    let key = Key::new(station(3), 0);
    lab.fdb().learn(key, lab.fdb().hash(key), PortId(2), Tick::default());
    lab.hear(0, frame(station(3), station(1), 0));
    lab.hear(0, frame(ALL, station(1), 0));
    assert_eq!(lab.sent_counts(), [0, 2, 0, 0]);
}

/// A port that no longer works loses its frames, each counted, and the others lose none.
#[test]
fn a_port_that_is_gone_counts_what_it_loses() {
    let mut lab = Lab::plain(4);
    lab.port_mut(1).shared.gone.store(true, Ordering::Relaxed);
    lab.lose_queue(2);
    lab.arrive(0, &vec![frame(ALL, station(1), 0).into(); 3]);
    assert_eq!(lab.sent_counts(), [0, 0, 0, 3]);
    let lost = vec![(DropReason::PortGone, 3)];
    assert_eq!((lab.drops(1), lab.drops(2), lab.drops(3)), (lost.clone(), lost, vec![]));
}

/// Every reason that a frame can be dropped for without a device is provoked once; the rest is listed.
#[test]
fn every_drop_reason_is_counted() {
    let mut seen = HashSet::new();
    let mut note = |lab: &Lab, port: u16, reason: DropReason| {
        assert_eq!(lab.drops(port), [(reason, 1)], "{}", reason.name());
        seen.insert(reason.name());
    };
    let unaware = |frames: &[(u16, Vec<u8>)], setups: [Setup; 2]| {
        let mut lab = Lab::new(false, &setups);
        frames.iter().for_each(|(port, bytes)| lab.hear(*port, bytes.clone()));
        lab
    };
    let plain = || [Setup::default(), Setup::default()];
    let one = |bytes: Vec<u8>| unaware(&[(0, bytes)], plain());
    note(&one(vec![0; 13]), 0, DropReason::Runt);
    note(&one(frame(ALL, GROUP, 0)), 0, DropReason::BadSource);
    note(&one(frame(MacAddr([1, 0x80, 0xc2, 0, 0, 2]), station(1), 0)), 0, DropReason::LinkLocal);
    note(&one(frame(station(1), station(1), 0)), 0, DropReason::SamePort);
    note(
        &unaware(&[(0, frame(ALL, station(1), 0))], [Setup::default(), with(|port| port.mtu = 20)]),
        1,
        DropReason::TooLong,
    );
    let isolated = with(|port| port.isolated = true);
    let mut lab = Lab::new(false, &[isolated.clone(), isolated.clone()]);
    lab.hear(0, frame(ALL, station(1), 0));
    note(&lab, 0, DropReason::NoEgress);
    lab.hear(1, frame(station(1), station(2), 0));
    note(&lab, 1, DropReason::Isolated);
    let mut lab = Lab::plain(2);
    lab.lose_queue(1);
    lab.hear(0, frame(ALL, station(1), 0));
    note(&lab, 1, DropReason::PortGone);
    let mut lab = Lab::plain(2);
    lab.arrive(0, &[Arrival { header: [0, 77, 0, 0, 0, 0, 0, 0, 0, 0], ..frame(ALL, station(1), 0).into() }]);
    note(&lab, 0, DropReason::BadOffload);

    let access = |n| with(|port| port.vlan = VlanMode::Access(vid(n)));
    let native = with(|port| port.vlan = trunk(&[10], Some(20)));
    let inner = tagged(0x8100, 10, &frame(ALL, station(1), 0));
    for (from, to, bytes, port, reason) in [
        (access(10), access(10), tagged(0x8100, 10, &frame(ALL, station(1), 0)), 0, DropReason::VlanIngress),
        (
            access(10),
            access(10),
            tagged(0x88a8, 10, &frame(ALL, station(1), 0)),
            0,
            DropReason::VlanUnsupported,
        ),
        (access(20), native, tagged(0x8100, 0, &inner), 1, DropReason::DoubleTag),
    ] {
        let mut lab = Lab::new(true, &[from, to]);
        lab.hear(0, bytes);
        note(&lab, port, reason);
    }
    let mut lab = Lab::new(true, &[access(10), access(20)]);
    lab.fdb().insert_static(Key::new(station(2), 10), PortId(1)).unwrap();
    lab.hear(0, frame(station(2), station(1), 0));
    note(&lab, 0, DropReason::VlanEgress);

    let mut lab = Lab::plain(2);
    lab.hear(1, frame(ALL, station(2), 0));
    (lab.port_mut(0).group, lab.port_mut(0).guard_local) = (1, true);
    lab.hear(0, frame(ALL, station(2), 0));
    note(&lab, 0, DropReason::Guarded);

    let mut lab = Lab::plain(2);
    lab.hear(1, frame(ALL, station(2), 0));
    (lab.port_mut(0).group, lab.port_mut(1).group) = (1, 1);
    lab.hear(0, frame(station(2), station(1), 0));
    note(&lab, 0, DropReason::SplitHorizon);

    // `tx_full` is in `switch.rs`, where there is a queue to fill, and `too_big` in `path.rs`. The rest only a device can cause.
    let elsewhere = [
        "tx_full",
        "tx_error",
        "port_down",
        "rx_truncated",
        "rx_error",
        "rx_missed",
        "rx_undescribed",
        "bad_ring",
        "bad_tunnel_header",
        "unknown_vni",
        "unknown_remote",
        "unreachable",
        "congested",
        "outer_fragments",
        "bad_length",
        "too_big",
    ];
    for reason in DropReason::ALL {
        assert!(seen.contains(reason.name()) != elsewhere.contains(&reason.name()), "{}", reason.name());
    }
}

/// What comes by a tunnel leaves by none, flooded or not.
#[test]
fn nothing_goes_from_tunnel_to_tunnel() {
    let mut lab = Lab::plain(4);
    for remote in 1..4 {
        lab.port_mut(remote).group = 1;
    }
    lab.port_mut(2).device = PortId(1);
    lab.hear(1, frame(ALL, station(1), 0));
    assert_eq!(lab.sent_counts(), [1, 0, 0, 0]);
    lab.hear(0, frame(ALL, station(9), 0));
    assert_eq!(lab.sent_counts(), [0, 1, 1, 1]);
    lab.hear(2, frame(ALL, station(2), 0));
    lab.hear(3, frame(ALL, station(3), 0));
    lab.sent();
    lab.hear(1, frame(station(2), station(1), 0));
    assert_eq!(lab.sent_counts(), [0, 0, 0, 0], "another remote of the same port");
    lab.hear(1, frame(station(3), station(1), 0));
    assert_eq!(lab.sent_counts(), [0, 0, 0, 0], "another tunnel port");
}

proptest! {
    /// Tags, odd EtherTypes, lengths: where VLANs are not filtered, everything is payload.
    #[test]
    fn without_filtering_bytes_never_change(
        tail in proptest::collection::vec(any::<u8>(), 0..40),
        ethertype in prop_oneof![Just(0x8100u16), Just(0x88a8), Just(0x9100), Just(0x0800), any::<u16>()],
        tag: Option<[u8; 4]>,
    ) {
        let mut lab = Lab::plain(2);
        let bytes = [&station(2).0[..], &station(1).0, &ethertype.to_be_bytes(), &tail].concat();
        lab.arrive(0, &[Arrival { header: FINISHED, bytes: bytes.clone(), tag }]);
        let wanted = tag.map_or(bytes.clone(), |tag| [&bytes[..12], &tag, &bytes[12..]].concat());
        let sent = lab.take(1);
        prop_assert_eq!(sent.len(), 1);
        prop_assert_eq!((&sent[0].bytes, sent[0].header), (&wanted, FINISHED));
    }
}
