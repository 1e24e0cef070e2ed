//! Random bridges and frames: the pipeline against the reference, and batches against one frame at a time.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::lab::{Arrival, Lab, Setup, tagged, trunk, vid};
use super::reference::Reference;
use crate::addr::MacAddr;
use crate::spec::VlanMode;
use crate::stats::Counters;

/// Few addresses, so that they meet: stations, groups, reserved groups, nobody.
fn address() -> impl Strategy<Value = MacAddr> {
    prop_oneof![
        12 => (1u8..7).prop_map(super::lab::station),
        2 => Just(MacAddr::BROADCAST),
        1 => Just(MacAddr([0x01, 0, 0x5e, 1, 2, 3])),
        1 => (0u8..17).prop_map(|last| MacAddr([0x01, 0x80, 0xc2, 0, 0, last])),
        1 => Just(MacAddr::ZERO),
    ]
}

fn source() -> impl Strategy<Value = MacAddr> {
    prop_oneof![20 => (1u8..7).prop_map(super::lab::station), 1 => address()]
}

/// VLAN ids of the ports below, priority tags, and strangers.
fn tci() -> impl Strategy<Value = u16> {
    let vid = prop_oneof![Just(0u16), Just(1), Just(10), Just(20), Just(30), Just(99), Just(4095)];
    (vid, 0u16..16).prop_map(|(vid, priority)| vid | priority << 12)
}

fn tag() -> impl Strategy<Value = (u16, u16)> {
    (prop_oneof![9 => Just(0x8100u16), 1 => Just(0x88a8)], tci())
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![9 => Just(46usize), 1 => 0usize..60];
    (address(), source(), proptest::collection::vec(tag(), 0..3), body, any::<u8>(), 0usize..200).prop_map(
        |(to, from, tags, body, fill, cut)| {
            let mut frame = [&to.0[..], &from.0, &[0x88, 0xb5]].concat();
            frame.resize(14 + body, fill);
            for (tpid, tci) in tags {
                frame = tagged(tpid, tci, &frame);
            }
            // Now and then cut short, in the middle of a header as well.
            if cut < 20 {
                frame.truncate(cut);
            }
            frame
        },
    )
}

fn mode() -> impl Strategy<Value = VlanMode> {
    let id = || prop_oneof![Just(1u16), Just(10), Just(20), Just(30)];
    prop_oneof![
        Just(VlanMode::Default),
        id().prop_map(|n| VlanMode::Access(vid(n))),
        (proptest::collection::vec(id(), 0..4), proptest::option::of(id()))
            .prop_map(|(vids, native)| trunk(&vids, native)),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let likely = || proptest::bool::weighted(0.8);
    let rarely = || proptest::bool::weighted(0.2);
    let mtu = prop_oneof![4 => Just(1500u32), 1 => 28u32..60];
    (likely(), likely(), rarely(), rarely(), mode(), mtu, any::<bool>()).prop_map(
        |(learning, flood, isolated, hairpin, vlan, mtu, strict_mtu)| Setup {
            learning,
            flood,
            isolated,
            hairpin,
            vlan,
            mtu,
            strict_mtu,
            ..Setup::default()
        },
    )
}

/// A filtering or other bridge of two to five ports, and bursts of frames by port.
/// Whether the bridge filters, its ports, and batches with the port each comes in by.
type Scene = (bool, Vec<Setup>, Vec<(u16, Vec<Vec<u8>>)>);

fn scene() -> impl Strategy<Value = Scene> {
    let bursts = (0u16..5, proptest::collection::vec(frame(), 1..70));
    (any::<bool>(), proptest::collection::vec(setup(), 2..6), proptest::collection::vec(bursts, 1..6))
        .prop_map(|(filtering, ports, mut bursts)| {
            bursts.iter_mut().for_each(|(port, _)| *port %= ports.len() as u16);
            (filtering, ports, bursts)
        })
}

fn by_name(lab: &Lab, port: u16) -> BTreeMap<&'static str, u64> {
    lab.drops(port).into_iter().map(|(reason, n)| (reason.name(), n)).collect()
}

fn totals(counters: &Counters) -> [u64; 6] {
    [
        counters.rx_frames.get(),
        counters.rx_bytes.get(),
        counters.rx_segments.get(),
        counters.tx_frames.get(),
        counters.tx_bytes.get(),
        counters.tx_segments.get(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Every frame leaves by the ports, in the order, with the bytes that the contract says; every drop has the reason it
    /// says; and in the end the same stations are known.
    #[test]
    fn the_pipeline_is_the_contract((filtering, ports, bursts) in scene()) {
        let (mut lab, mut reference) = (Lab::new(filtering, &ports), Reference::new(filtering, &ports));
        let mut received = vec![(0, 0); ports.len()];
        for (port, frames) in &bursts {
            lab.arrive(*port, &frames.iter().cloned().map(Arrival::from).collect::<Vec<_>>());
            frames.iter().for_each(|frame| reference.hear(*port, frame));
            received[usize::from(*port)].0 += frames.len() as u64;
            received[usize::from(*port)].1 += frames.iter().map(Vec::len).sum::<usize>() as u64;
        }
        let sent = lab.sent();
        for port in 0..ports.len() {
            prop_assert_eq!(&sent[port], &reference.sent[port], "sent by port {}", port);
            prop_assert_eq!(&by_name(&lab, port as u16), &reference.drops[port], "drops of port {}", port);
            let bytes = sent[port].iter().map(Vec::len).sum::<usize>() as u64;
            let (frames, (rx, rx_bytes)) = (sent[port].len() as u64, received[port]);
            prop_assert_eq!(totals(lab.counters(port as u16)), [rx, rx_bytes, rx, frames, bytes, frames]);
        }
        let stations: Vec<_> =
            lab.stations().into_iter().map(|(key, entry)| ((key.vid(), key.mac().0), entry.port.0)).collect();
        let stations: BTreeMap<_, _> = stations.into_iter().collect();
        prop_assert_eq!(&stations, &reference.stations);
    }

    /// What is in one batch is handled as if it had come one frame at a time.
    #[test]
    fn a_batch_is_its_frames_one_by_one((filtering, ports, bursts) in scene(), most in 2usize..64) {
        let mut labs = [Lab::new(filtering, &ports), Lab::new(filtering, &ports), Lab::new(filtering, &ports)];
        for (port, frames) in bursts {
            let frames: Vec<Arrival> = frames.into_iter().map(Arrival::from).collect();
            for (lab, most) in labs.iter_mut().zip([1, most, usize::MAX]) {
                lab.arrive_in_batches(port, most, &frames);
            }
        }
        let [single, rest @ ..] = &labs;
        let sent = single.sent();
        for lab in rest {
            prop_assert_eq!(&lab.sent(), &sent);
            prop_assert_eq!(lab.stations(), single.stations());
            prop_assert_eq!(lab.fdb().counters(), single.fdb().counters());
            for port in 0..ports.len() as u16 {
                prop_assert_eq!(lab.drops(port), single.drops(port));
                prop_assert_eq!(totals(lab.counters(port)), totals(single.counters(port)));
            }
        }
    }
}
