//! What the switch answers itself, whom it believes, and what it leaves to others.
//!
//! Ports 0 and 1 are hosts', 2 and 3 two remotes of a tunnel that suppresses what is answered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::lab::{Lab, Setup, station, tagged, trunk, vid};
use crate::addr::{MacAddr, PortId};
use crate::bridge::fdb::Tick;
use crate::bridge::neighbours::{Heard, Neighbour, Neighbours};
use crate::spec::VlanMode;
use crate::wire::arp::{Operation, Packet};
use crate::wire::ndisc::tests::{A, B, message, solicitation};
use crate::wire::ndisc::{ADVERTISEMENT, Advertisement};

const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn v4(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

fn frame(to: MacAddr, from: MacAddr, ethertype: u16, packet: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &ethertype.to_be_bytes(), packet].concat()
}

fn arp(
    operation: Operation,
    (mac, sender): (MacAddr, Ipv4Addr),
    (to, target): (MacAddr, Ipv4Addr),
) -> Vec<u8> {
    let packet = Packet {
        operation,
        sender_mac: mac.0,
        sender_ipv4: sender.octets(),
        target_mac: if to == MacAddr::BROADCAST { [0; 6] } else { to.0 },
        target_ipv4: target.octets(),
    };
    frame(to, mac, 0x0806, &packet.to_bytes())
}

/// Station `n`, whose address is 10.0.0.n, asks everybody for `target`.
fn who_has(target: Ipv4Addr, n: u8) -> Vec<u8> {
    arp(Operation::REQUEST, (station(n), v4(n)), (MacAddr::BROADCAST, target))
}

/// Station 1 asks for `target` over IPv6.
fn solicit(source: Ipv6Addr, target: Ipv6Addr, mac: Option<MacAddr>) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    frame(MacAddr([0x33, 0x33, 0xff, a, b, c]), station(1), 0x86dd, &solicitation(source, target, mac))
}

/// A lab whose stations 1, 2, 3 are behind ports 0, 1, 2 in `vid`, with `known` neighbours.
fn lab(filtering: bool, vlan: &VlanMode, vid: u16, known: &[(IpAddr, u8, Option<bool>)]) -> Lab {
    let setup = Setup { vlan: vlan.clone(), ..Setup::default() };
    let mut lab = Lab::new(filtering, &vec![setup; 4]);
    for remote in [2, 3] {
        let port = lab.port_mut(remote);
        (port.group, port.device, port.neigh_suppress) = (1, PortId(2), true);
    }
    let mut table = Neighbours::default();
    for &(address, n, router) in known {
        assert!(table.insert(
            (vid, address),
            Neighbour::new(station(n), Some(PortId(u16::from(n) - 1)), router, Tick(0))
        ));
    }
    lab.topology.bridges[0].neighbours = Some(Arc::new(table));
    for n in 1..=3u8 {
        let key = crate::bridge::fdb::Key::new(station(n), vid);
        lab.fdb().insert_static(key, PortId(u16::from(n) - 1)).expect("room");
    }
    lab
}

/// One that does not filter, where 10.0.0.1 to 10.0.0.3 are known.
fn plain() -> Lab {
    let known = [1, 2, 3].map(|n| (v4(n).into(), n, Some(false)));
    lab(false, &VlanMode::Default, 0, &known)
}

fn reply(to: u8, from: u8) -> Vec<u8> {
    arp(Operation::REPLY, (station(from), v4(from)), (station(to), v4(to)))
}

#[test]
fn a_known_neighbour_is_answered_for_and_tunnels_are_spared() {
    let mut lab = plain();
    let request = who_has(v4(3), 1);
    lab.hear(0, request.clone());
    assert_eq!(
        lab.sent(),
        [vec![reply(1, 3)], vec![request.clone()], vec![], vec![]],
        "others still hear it"
    );
    assert_eq!((lab.counters(0).neigh_answered.get(), lab.drops(0)), (1, vec![]));
    // It has lost nothing where there is nobody else.
    lab.topology.bridges[0].members = vec![PortId(0), PortId(2), PortId(3)];
    lab.hear(0, request);
    assert_eq!((lab.sent_counts(), lab.drops(0)), (vec![1, 0, 0, 0], vec![]));
    assert!(lab.outbox().heard.is_empty(), "who asked is known");
}

#[test]
fn what_only_others_can_know_goes_everywhere() {
    for (what, bytes) in [
        ("who is not known", who_has(v4(9), 1)),
        ("one's own address", who_has(v4(1), 1)),
        ("a probe", arp(Operation::REQUEST, (station(1), NOBODY), (MacAddr::BROADCAST, v4(3)))),
        ("who is behind the asker's port", who_has(v4(1), 5)),
        ("gratuitous", arp(Operation::REPLY, (station(1), v4(1)), (MacAddr::BROADCAST, v4(1)))),
        ("another sender than it says", {
            let mut bytes = who_has(v4(3), 1);
            bytes[22..28].copy_from_slice(&station(7).0);
            bytes
        }),
        ("cut short", who_has(v4(3), 1)[..41].to_vec()),
        ("under a tag that is payload", tagged(0x8100, 5, &who_has(v4(3), 1))),
    ] {
        let mut lab = plain();
        lab.hear(0, bytes.clone());
        assert_eq!(lab.sent_counts(), [0, 1, 1, 1], "{what}");
        assert_eq!(lab.counters(0).neigh_answered.get(), 0, "{what}");
    }
    // A unicast request asks whether the station is alive.
    let mut lab = plain();
    lab.hear(0, arp(Operation::REQUEST, (station(1), v4(1)), (station(3), v4(3))));
    assert_eq!(lab.sent_counts(), [0, 0, 1, 0]);
    // What comes by such a tunnel is for the hosts here to answer.
    lab.hear(2, who_has(v4(2), 3));
    assert_eq!(lab.sent_counts(), [1, 1, 0, 0]);
    // Who is known as neighbour, but not as station.
    lab.topology.bridges[0].fdb.flush(|key, _| key.mac() == station(3));
    lab.hear(0, who_has(v4(3), 1));
    assert_eq!(lab.sent_counts(), [0, 1, 1, 1]);
    // Isolated ports do not exchange frames, and so no addresses.
    let mut lab = plain();
    lab.port_mut(0).isolated = true;
    lab.port_mut(1).isolated = true;
    lab.hear(0, who_has(v4(2), 1));
    assert_eq!(lab.sent_counts(), [0, 0, 1, 1]);
}

#[test]
fn a_tunnel_that_does_not_suppress_gets_everything() {
    let mut lab = plain();
    lab.port_mut(3).neigh_suppress = false;
    lab.hear(0, who_has(v4(2), 1));
    assert_eq!(lab.sent_counts(), [1, 1, 0, 1]);
    lab.topology.bridges[0].neighbours = None;
    lab.hear(0, who_has(v4(2), 1));
    assert_eq!(lab.sent_counts(), [0, 1, 1, 1], "nobody suppresses: nothing is looked at");
}

/// With `guard_local`, who is behind a tunnel takes neither a local station's MAC address nor its IP address, and gets no answer for trying.
#[test]
fn local_neighbours_are_guarded() {
    let claim = arp(Operation::REPLY, (station(3), v4(1)), (station(2), v4(2)));
    let mut lab = plain();
    lab.hear(2, claim.clone());
    assert_eq!(lab.outbox().heard.len(), 1, "without a guard it is believed");
    let mut lab = plain();
    [2, 3].into_iter().for_each(|remote| lab.port_mut(remote).guard_local = true);
    lab.hear(2, claim);
    assert!(lab.outbox().heard.is_empty());
    lab.hear(0, arp(Operation::REPLY, (station(1), v4(9)), (station(2), v4(2))));
    assert_eq!(lab.outbox().heard.len(), 1, "of a port that is no tunnel it is");
    lab.port_mut(2).neigh_suppress = false;
    lab.sent();
    lab.hear(2, who_has(v4(2), 1));
    assert_eq!((lab.sent_counts(), lab.counters(2).neigh_answered.get()), (vec![0, 0, 0, 0], 0));
}

#[test]
fn answers_are_bounded() {
    let mut lab = plain();
    let frames: Vec<_> = (0..40).map(|_| who_has(v4(3), 1).into()).collect();
    lab.arrive(0, &frames);
    assert_eq!(lab.sent_counts(), [32, 40, 8, 8], "what gets no answer is asked everywhere");
}

#[test]
fn an_answer_has_the_tag_of_its_question() {
    for (vlan, tag) in [(trunk(&[10], None), Some(0xa00a)), (VlanMode::Access(vid(10)), None)] {
        let mut lab = lab(true, &vlan, 10, &[(v4(3).into(), 3, Some(false))]);
        let as_sent = |bytes: &[u8]| tag.map_or(bytes.to_vec(), |tci| tagged(0x8100, tci, bytes));
        let request = as_sent(&who_has(v4(3), 1));
        lab.hear(0, request.clone());
        assert_eq!(lab.sent(), [vec![as_sent(&reply(1, 3))], vec![request], vec![], vec![]]);
    }
    // Another VLAN is another network.
    let mut lab = lab(true, &trunk(&[10, 20], None), 10, &[(v4(3).into(), 3, Some(false))]);
    lab.hear(0, tagged(0x8100, 20, &who_has(v4(3), 1)));
    assert_eq!(lab.sent_counts(), [0, 1, 1, 1]);
    // A tag behind the VLAN's is payload.
    lab.hear(0, tagged(0x8100, 10, &tagged(0x8100, 10, &who_has(v4(3), 1))));
    assert_eq!(lab.sent_counts(), [0, 1, 1, 1]);
}

#[test]
fn solicitations_are_answered() {
    for router in [false, true] {
        let mut lab = lab(false, &VlanMode::Default, 0, &[(B.into(), 3, Some(router))]);
        for mac in [Some(station(1)), None] {
            lab.hear(0, solicit(A, B, mac));
            let answer = Advertisement { target: B, destination: A, mac: station(3), router }.write();
            let sent = lab.sent();
            assert_eq!(sent[0], [frame(station(1), station(3), 0x86dd, &answer)]);
            assert_eq!((sent[1].len(), sent[2].len(), sent[3].len()), (1, 0, 0));
        }
        assert_eq!(lab.counters(0).neigh_answered.get(), 2);
    }
    for (what, router, bytes) in [
        ("a probe for a duplicate", Some(false), solicit(Ipv6Addr::UNSPECIFIED, B, None)),
        ("one's own address", Some(false), solicit(B, B, Some(station(1)))),
        ("another sender than it says", Some(false), solicit(A, B, Some(station(7)))),
        ("perhaps a router", None, solicit(A, B, Some(station(1)))),
        ("its checksum is wrong", Some(false), {
            let mut bytes = solicit(A, B, Some(station(1)));
            bytes[14 + 42] ^= 1;
            bytes
        }),
    ] {
        let mut lab = lab(false, &VlanMode::Default, 0, &[(B.into(), 3, router)]);
        lab.hear(0, bytes);
        assert_eq!(lab.sent_counts(), [0, 1, 1, 1], "{what}");
    }
}

/// What is heard in one frame.
fn heard(lab: &mut Lab, port: u16, bytes: Vec<u8>) -> Vec<Heard> {
    lab.hear(port, bytes);
    lab.sent();
    lab.outbox().heard.take().into_iter().collect()
}

#[test]
fn neighbours_are_heard_of() {
    let mut lab = plain();
    let news =
        |port, address: IpAddr, mac, router| Heard { port: PortId(port), vid: 0, address, mac, router };
    let unknown = who_has(v4(1), 9);
    assert_eq!(heard(&mut lab, 2, unknown.clone()), [news(2, v4(9).into(), station(9), Some(false))]);
    let moved = arp(Operation::REPLY, (station(9), v4(2)), (station(1), v4(1)));
    assert_eq!(
        heard(&mut lab, 1, moved),
        [news(1, v4(2).into(), station(9), Some(false))],
        "by a reply, too"
    );
    let solicited = solicit(A, B, Some(station(1)));
    assert_eq!(heard(&mut lab, 0, solicited), [news(0, A.into(), station(1), None)]);
    let advertised = |flags, mac: MacAddr| {
        let option = [&[2, 1][..], &mac.0].concat();
        frame(station(2), station(1), 0x86dd, &message((ADVERTISEMENT, flags), [A, B, A], &option))
    };
    assert_eq!(heard(&mut lab, 0, advertised(0xe0, station(1))), [news(0, A.into(), station(1), Some(true))]);

    // Who is known is only heard again.
    lab.now = Tick(7);
    assert_eq!(heard(&mut lab, 0, who_has(v4(2), 1)), []);
    let table = lab.topology.bridges[0].neighbours.clone().expect("there");
    let age = |n| table.get(&(0, v4(n).into())).map(|known| known.age_secs(Tick(10)));
    assert_eq!((age(1), age(2)), (Some(3), Some(10)));

    // Who lies, has no address, or is not to be learned from, is not heard at all.
    assert_eq!(heard(&mut lab, 0, advertised(0xe0, station(7))), []);
    assert_eq!(heard(&mut lab, 0, solicit(A, B, Some(station(7)))), []);
    assert_eq!(
        heard(&mut lab, 0, arp(Operation::REQUEST, (station(9), NOBODY), (MacAddr::BROADCAST, v4(9)))),
        []
    );
    lab.port_mut(2).learning = false;
    assert_eq!(heard(&mut lab, 2, unknown), []);
}

#[test]
fn a_configured_neighbour_stays() {
    let mut lab = plain();
    let mut table = Neighbours::default();
    table.insert((0, v4(3).into()), Neighbour::new(station(3), None, Some(false), Tick(0)));
    table.insert((0, A.into()), Neighbour::new(station(3), Some(PortId(1)), Some(false), Tick(0)));
    lab.topology.bridges[0].neighbours = Some(Arc::new(table));
    assert_eq!(heard(&mut lab, 1, arp(Operation::REPLY, (station(9), v4(3)), (station(1), v4(1)))), []);
    // And a learned one, where the other does not claim to override it.
    let option = [&[2, 1][..], &station(9).0].concat();
    let claim =
        |flags| frame(station(1), station(9), 0x86dd, &message((ADVERTISEMENT, flags), [A, B, A], &option));
    assert_eq!(heard(&mut lab, 1, claim(0x40)), []);
    assert_eq!(heard(&mut lab, 1, claim(0x60)).len(), 1);
}

/// Whether the switch answers station 1 that asks everybody for `target`.
fn is_answered(lab: &mut Lab, question: Vec<u8>) -> bool {
    lab.sent();
    lab.hear(0, question);
    let counts = lab.sent_counts();
    assert!(counts == [1, 1, 0, 0] || counts == [0, 1, 1, 1], "{counts:?}");
    counts[0] == 1
}

/// What a station said of its address is repeated for 30 s; a configured one's always.
#[test]
fn the_silent_are_not_answered_for() {
    let mut lab = plain();
    let frame = |n: u8| [&[0xff; 6][..], &station(n).0, &[0x88, 0xb5], &[0; 46]].concat();
    for (now, answered) in [(0, true), (29, true), (30, false), (200, false)] {
        lab.now = Tick(now);
        // That the station lives does not say that the address is still its own.
        lab.hear(2, frame(3));
        assert_eq!(is_answered(&mut lab, who_has(v4(3), 1)), answered, "after {now} s");
    }
    // The question went out, and its answer counts again.
    lab.hear(2, arp(Operation::REPLY, (station(3), v4(3)), (station(1), v4(1))));
    assert!(is_answered(&mut lab, who_has(v4(3), 1)));
    lab.now = Tick(229);
    assert!(is_answered(&mut lab, who_has(v4(3), 1)));
    let mut table = Neighbours::default();
    table.insert((0, v4(3).into()), Neighbour::new(station(3), None, Some(false), Tick(0)));
    lab.topology.bridges[0].neighbours = Some(Arc::new(table));
    lab.now = Tick(1000);
    assert!(is_answered(&mut lab, who_has(v4(3), 1)));
}

/// A host asks by unicast whether its neighbour is alive, and everybody when it gets no answer.
#[test]
fn whoever_does_not_answer_is_not_answered_for() {
    let alive = |to: u8| arp(Operation::REQUEST, (station(1), v4(1)), (station(to), v4(3)));
    let mut lab = plain();
    lab.hear(0, alive(9));
    assert!(is_answered(&mut lab, who_has(v4(3), 1)), "another station was asked");
    lab.hear(0, alive(3));
    assert!(!is_answered(&mut lab, who_has(v4(3), 1)));
    lab.hear(2, arp(Operation::REPLY, (station(3), v4(3)), (station(1), v4(1))));
    assert!(is_answered(&mut lab, who_has(v4(3), 1)));

    // Over IPv6 the answer to a unicast question need not tell the address (Linux's does not).
    let advertised = |n: u8, option: &[u8]| {
        frame(station(1), station(n), 0x86dd, &message((ADVERTISEMENT, 0x40), [B, A, B], option))
    };
    let alive = || {
        let mut bytes = solicit(A, B, Some(station(1)));
        bytes[..6].copy_from_slice(&station(3).0);
        bytes
    };
    let everybody = || solicit(A, B, Some(station(1)));
    let mut lab = self::lab(false, &VlanMode::Default, 0, &[(B.into(), 3, Some(false))]);
    lab.hear(0, alive());
    assert!(!is_answered(&mut lab, everybody()));
    lab.hear(1, advertised(3, &[]));
    assert!(!is_answered(&mut lab, everybody()), "not by that port");
    lab.hear(2, advertised(9, &[]));
    assert!(!is_answered(&mut lab, everybody()), "that is another station");
    lab.hear(2, advertised(3, &[]));
    assert!(is_answered(&mut lab, everybody()));
    // Two stations with one address, of which none gives way: others may find out.
    lab.hear(2, advertised(9, &[&[2, 1][..], &station(9).0].concat()));
    assert!(!is_answered(&mut lab, everybody()));
}
