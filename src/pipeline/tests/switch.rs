//! The real switch, its threads and its control side, over ports in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::lab::{ALL_OFFLOADS, FINISHED, NO_OFFLOADS, frame, station, tagged, trunk, vid};
use super::reference::{Claim, finish};
use crate::addr::MacAddr;
use crate::offload::{Capabilities, Offload};
use crate::port::mem::{MemFrame, MemPort};
use crate::spec::{BridgeSpec, PortKind, PortSettings, PortSpec, VlanMode};
use crate::status::PortCounters;
use crate::switch::{FdbFilter, Missing, Options, Switch};

const LONG: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(50);

struct Net {
    switch: Switch,
    ports: Vec<MemPort>,
}

impl Net {
    fn new(filtering: bool, settings: &[PortSettings], capabilities: Capabilities) -> Net {
        let switch = Switch::start(&Options { workers: Some(2), ..Options::default() }).unwrap();
        switch.add_bridge(BridgeSpec { vlan_filtering: filtering, ..BridgeSpec::new("br0") }).unwrap();
        let mut net = Net { switch, ports: Vec::new() };
        settings.iter().for_each(|settings| net.add(settings.clone(), capabilities));
        net
    }

    fn plain(ports: usize) -> Net {
        Net::new(false, &vec![PortSettings::default(); ports], ALL_OFFLOADS)
    }

    fn add(&mut self, settings: PortSettings, capabilities: Capabilities) {
        let port = MemPort::new(capabilities, 1500).unwrap();
        let name = format!("p{}", self.ports.len());
        let kind = PortKind::Mem(port.clone());
        self.switch
            .add_port(PortSpec { name, bridge: "br0".into(), kind, settings }, Missing::Refuse)
            .unwrap();
        self.ports.push(port);
    }

    fn send(&self, port: usize, bytes: Vec<u8>) {
        assert!(self.ports[port].send(MemFrame { bytes, offload: Offload::default() }));
    }

    /// The next frame out of a port.
    fn next(&self, port: usize) -> Vec<u8> {
        self.ports[port].receive(LONG).expect("a frame in time").bytes
    }

    /// Nothing more comes out of any port.
    fn quiet(&self) {
        assert!(self.ports.iter().all(|port| port.receive(SHORT).is_none()));
    }

    fn counters(&self, port: usize) -> PortCounters {
        self.switch.ports().swap_remove(port).counters
    }

    /// Waits until a port has counted what it is to count.
    fn until(&self, port: usize, what: impl Fn(&PortCounters) -> bool) -> PortCounters {
        let deadline = Instant::now() + LONG;
        loop {
            let counters = self.counters(port);
            if what(&counters) {
                return counters;
            }
            assert!(Instant::now() < deadline, "{counters:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn frames_go_where_their_station_is() {
    let net = Net::plain(3);
    let (hello, answer) = (frame(MacAddr::BROADCAST, station(1), 1), frame(station(1), station(2), 2));
    net.send(0, hello.clone());
    assert_eq!((net.next(1), net.next(2)), (hello.clone(), hello));
    net.send(1, answer.clone());
    assert_eq!(net.next(0), answer);
    net.quiet();
    let entries = net.switch.fdb(&FdbFilter::default()).unwrap();
    assert_eq!(entries.iter().map(|entry| entry.mac).collect::<Vec<_>>(), [station(1), station(2)]);
    let counters = net.counters(0);
    assert_eq!((counters.rx_frames, counters.rx_bytes, counters.rx_segments), (1, 60, 1));
    assert_eq!((counters.tx_frames, counters.tx_bytes, counters.tx_segments), (1, 60, 1));
}

#[test]
fn many_frames_keep_their_order() {
    let net = Net::plain(2);
    let number = |i: u32| [&frame(station(2), station(1), 0)[..16], &i.to_be_bytes()].concat();
    for i in 0..2000 {
        net.send(0, number(i));
    }
    for i in 0..2000 {
        assert_eq!(net.next(1), number(i));
    }
}

#[test]
fn a_full_queue_drops_under_tx_full() {
    let net = Net::plain(2);
    let more = 100;
    for i in 0..MemPort::QUEUE_FRAMES + more {
        while !net.ports[0]
            .send(MemFrame { bytes: frame(station(2), station(1), i as u8), ..MemFrame::default() })
        {
            std::thread::yield_now();
        }
    }
    let counters = net.until(1, |counters| {
        counters.drops.contains_key("tx_full") && counters.drops["tx_full"] == more as u64
    });
    assert_eq!(counters.tx_frames, MemPort::QUEUE_FRAMES as u64);
}

#[test]
fn an_offload_header_that_lies_is_dropped_where_it_came_from() {
    let net = Net::plain(2);
    let offload = Offload { needs_csum: true, csum_start: 59, csum_offset: 16, ..Offload::default() };
    assert!(net.ports[0].send(MemFrame { bytes: frame(station(2), station(1), 0), offload }));
    assert_eq!(net.until(0, |counters| !counters.drops.is_empty()).drops["bad_offload"], 1);
    net.quiet();
}

#[test]
fn a_checksum_is_finished_for_a_port_that_cannot() {
    let net = Net::new(false, &vec![PortSettings::default(); 2], NO_OFFLOADS);
    let bytes = frame(station(2), station(1), 9);
    let offload = Offload { needs_csum: true, csum_start: 34, csum_offset: 16, ..Offload::default() };
    assert!(net.ports[0].send(MemFrame { bytes: bytes.clone(), offload }));
    let received = net.ports[1].receive(LONG).unwrap();
    let claim = Claim { needs_csum: true, csum_start: 34, csum_offset: 16, ..Claim::default() };
    assert_eq!(received.bytes, finish(&bytes, &claim)[0]);
    let mut header = FINISHED;
    received.offload.to_virtio(&mut header);
    assert_eq!(header[0] & 1, 0);
}

#[test]
fn vlans_change_while_frames_flow() {
    let access = |n| PortSettings { vlan: VlanMode::Access(vid(n)), ..PortSettings::default() };
    let trunk = PortSettings { vlan: trunk(&[10, 20], None), ..PortSettings::default() };
    let net = Net::new(true, &[access(10), access(20), trunk], ALL_OFFLOADS);
    let bytes = frame(MacAddr::BROADCAST, station(1), 1);
    net.send(0, bytes.clone());
    assert_eq!(net.next(2), tagged(0x8100, 10, &bytes));
    net.quiet();
    net.switch.set_port("p1", access(10)).unwrap();
    net.send(0, bytes.clone());
    assert_eq!((net.next(1), net.next(2)), (bytes.clone(), tagged(0x8100, 10, &bytes)));
    for name in ["p0", "p1", "p2"] {
        net.switch.set_port(name, PortSettings::default()).unwrap();
    }
    net.switch.set_bridge(BridgeSpec::new("br0")).unwrap();
    assert_eq!(
        net.switch.fdb(&FdbFilter::default()).unwrap(),
        [],
        "another mode: everything is learned anew"
    );
    let odd = tagged(0x88a8, 77, &bytes);
    net.send(0, odd.clone());
    assert_eq!((net.next(1), net.next(2)), (odd.clone(), odd));
}

/// Ports come and go for half a second; a conversation between two others loses nothing.
#[test]
fn ports_come_and_go_beside_traffic() {
    /// Frames under way at most: fewer than a queue holds.
    const WINDOW: u32 = 1000;
    let mut net = Net::plain(2);
    net.send(1, frame(MacAddr::BROADCAST, station(2), 0));
    net.next(0);
    let received = Arc::new(AtomicU32::new(0));
    let (port, seen) = (net.ports[0].clone(), Arc::clone(&received));
    let sender = std::thread::spawn(move || {
        let mut sent = 0u32;
        let end = Instant::now() + Duration::from_millis(500);
        while Instant::now() < end {
            if sent - seen.load(Ordering::Acquire) >= WINDOW {
                std::thread::yield_now();
                continue;
            }
            let bytes = [&frame(station(2), station(1), 0)[..16], &sent.to_be_bytes()].concat();
            assert!(port.send(MemFrame { bytes, ..MemFrame::default() }));
            sent += 1;
        }
        sent
    });
    let take = |bytes: &[u8]| {
        // The others are broadcasts of the port that comes and goes.
        if let Ok(number) = bytes[16..].try_into().map(u32::from_be_bytes) {
            assert_eq!(number, received.fetch_add(1, Ordering::Release));
        }
    };
    let mut rounds = 0;
    while !sender.is_finished() {
        net.add(PortSettings::default(), NO_OFFLOADS);
        net.send(2, frame(MacAddr::BROADCAST, station(3), 0));
        net.switch.del_port("p2").unwrap();
        net.ports.pop();
        rounds += 1;
        while let Some(next) = net.ports[1].receive(Duration::ZERO) {
            take(&next.bytes);
        }
    }
    let sent = sender.join().unwrap();
    while received.load(Ordering::Relaxed) < sent {
        take(&net.next(1));
    }
    assert!(sent > 0 && rounds > 0);
    let left = net.switch.fdb(&FdbFilter::default()).unwrap();
    assert!(left.iter().all(|entry| entry.port == "p0" || entry.port == "p1"), "{left:?}");
}
