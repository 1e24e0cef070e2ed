//! Packet sockets' rings: what stops them, and what they cost.

use std::time::Duration;

use crate::harness::daemon::{Daemon, Start};
use crate::harness::frame::{BROADCAST, Mac, frame, is_test, station, test_frame};
use crate::harness::guest::{Guest, HEADER};
use crate::harness::net::Ns;
use crate::harness::raw::Raw;
use crate::harness::{Outcome, PATIENCE, eventually};

/// linux/capability.h
const CAP_SYS_ADMIN: libc::c_ulong = 21;
const CAP_BPF: libc::c_ulong = 39;
/// Enough that each of two workers has some.
const FLOWS: u16 = 16;

const GUEST: Mac = [2, 0, 0, 0, 0, 1];

/// A datagram of flow `flow` from the guest to everybody.
fn datagram(flow: u16, len: usize) -> Vec<u8> {
    let total = (28 + len) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2];
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    let sum = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    packet[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    packet.extend((5000 + flow).to_be_bytes());
    packet.extend(53u16.to_be_bytes());
    packet.extend((8 + len as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.resize(packet.len() + len, 7);
    frame(BROADCAST, GUEST, &[], 0x0800, &packet)
}

/// The header of UDP fragmentation offload (UFO), of which the kernel itself made fragments in
/// older guests.
fn fragments() -> [u8; HEADER] {
    let mut header = [0; HEADER];
    (header[0], header[1]) = (1, 3);
    for (at, value) in [(2, 42u16), (4, 1480), (6, 34), (8, 6)] {
        header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }
    header
}

/// Flows of which a frame arrives, each sent one.
fn passing(guest: &mut Guest, far: &Raw) -> usize {
    drop(far.drain());
    (0..FLOWS).for_each(|flow| guest.send([0; HEADER], &datagram(flow, 100)));
    let of_guest = |bytes: &[u8]| bytes[6..12] == GUEST && bytes[12..14] == [8, 0] && bytes.len() < 200;
    far.collect(FLOWS.into(), Duration::from_millis(200), of_guest).len()
}

fn stopped_by_one_frame(start: Start<'_>, switch: &Ns, wire: &Ns) {
    switch.ip("tuntap add dev guest0 mode tap vnet_hdr; link set guest0 up");
    switch.veth("va", wire, "vb", 1500);
    let mut guest = Guest::attach(switch, "guest0");
    let daemon: Daemon = start.ready();
    daemon.ctl("bridge add br0");
    daemon.ctl("port add guest0 --bridge br0 --type packet");
    daemon.ctl("port add va --bridge br0 --type packet");
    daemon.wait_port_state("guest0", "up");
    let far = Raw::open(wire, "vb");
    eventually("frames pass", || passing(&mut guest, &far) == usize::from(FLOWS));
    assert!(daemon.port("guest0")["hint"].is_null());

    (0..FLOWS).for_each(|flow| guest.send(fragments(), &datagram(flow, 4000)));
    eventually("frames pass again", || passing(&mut guest, &far) == usize::from(FLOWS));
    let hint = daemon.port("guest0")["hint"].as_str().unwrap_or_default().to_owned();
    assert!(hint.contains("'guest0'") && hint.contains("cannot describe"), "{hint}");
    assert!(daemon.drops("guest0", "rx_missed") > 0, "the first is lost in the ring");
    let told = daemon.log().matches("has stopped one of its rings").count();
    assert!((1..=2).contains(&told), "once a ring: {}", daemon.log());

    // From now on such frames harm only themselves, and are counted.
    let before = daemon.drops("guest0", "rx_undescribed");
    (0..FLOWS).for_each(|flow| guest.send(fragments(), &datagram(flow, 4000)));
    assert_eq!(passing(&mut guest, &far), usize::from(FLOWS));
    assert_eq!(daemon.drops("guest0", "rx_undescribed"), before + u64::from(FLOWS));
    assert_eq!(daemon.log().matches("has stopped one of its rings").count(), told);

    // The other way goes on, too, and so does a large frame.
    far.send(&test_frame(GUEST, station(9), "hello, guest")).expect("sent");
    assert!(guest.next(PATIENCE, is_test).is_some());
    daemon.ctl("port del guest0");
    daemon.ctl("port add guest0 --bridge br0 --type packet");
    assert!(daemon.port("guest0")["hint"].is_null(), "a new port has rings again");
}

/// One frame that the kernel cannot describe stops a ring for good: the port notices, and does
/// without.
pub fn a_frame_stops_one() -> Outcome {
    for workers in [1, 2] {
        let (switch, wire) = (Ns::new("v"), Ns::new("w"));
        let start = Start::new(&switch).arguments(&format!("--workers {workers}"));
        stopped_by_one_frame(start, &switch, &wire);
    }
    Ok(())
}

/// The same where no filter can be loaded, so that one socket receives for all workers.
pub fn a_frame_stops_one_without_a_filter() -> Outcome {
    let (switch, wire) = (Ns::new("v"), Ns::new("w"));
    let start = Start::new(&switch).arguments("--workers 2").without(&[CAP_SYS_ADMIN, CAP_BPF]);
    stopped_by_one_frame(start, &switch, &wire);
    Ok(())
}
