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

/// A packet port takes less than 2 MiB and a handful of descriptors, however many workers there
/// are. Many at once come and go, and every one forwards and keeps the host silent.
pub fn as_cheap_with_many_workers() -> Outcome {
    const PORTS: u64 = 24;
    let (switch, wire) = (Ns::new("v"), Ns::new("w"));
    let mut with = "[[bridge]]\nname = \"br0\"\n".to_owned();
    let without = with.clone();
    for number in 0..PORTS {
        switch.veth(&format!("a{number}"), &wire, &format!("b{number}"), 1500);
        with += &format!("[[port]]\nname = \"a{number}\"\nbridge = \"br0\"\ntype = \"packet\"\n");
    }
    let daemon = Start::new(&switch).config(&without).arguments("--workers 16").ready();
    let sum_of_rings = || {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).expect("it runs");
        let size = |line: &str| {
            let (from, to) = line.split_once(' ')?.0.split_once('-')?;
            Some(u64::from_str_radix(to, 16).ok()? - u64::from_str_radix(from, 16).ok()?)
        };
        maps.lines().filter(|line| line.contains("socket:[")).filter_map(size).sum::<u64>() >> 10
    };
    let before = (daemon.resident_kib(), daemon.open_files() as u64, sum_of_rings());
    assert_eq!(before.2, 0);
    daemon.write_config(&with);
    daemon.ctl("reload");
    let (resident, files, rings) =
        (daemon.resident_kib() - before.0, daemon.open_files() as u64 - before.1, sum_of_rings());
    println!("{PORTS} ports: {resident} KiB more, of these {rings} KiB of rings, {files} more files");
    assert!(rings > 0 && rings < 2048 * PORTS, "{rings} KiB of rings");
    assert!(resident < 2048 * PORTS, "{resident} KiB");
    assert!(files < 6 * PORTS, "{files} files");

    let ports: Vec<Raw> = (0..PORTS).map(|number| Raw::open(&wire, &format!("b{number}"))).collect();
    eventually("frames reach every port", || {
        ports.iter().for_each(|raw| drop(raw.drain()));
        ports[0].send(&test_frame(BROADCAST, GUEST, "to all")).expect("sent");
        ports[1..].iter().all(|raw| raw.next(Duration::from_millis(200)).is_some())
    });

    daemon.write_config(&without);
    daemon.ctl("reload");
    assert_eq!(sum_of_rings(), 0);
    assert!(daemon.open_files() as u64 <= before.1 + 4, "{} files", daemon.open_files());
    // In one go, and all of it is usable at once.
    daemon.write_config(&with);
    daemon.ctl("reload");
    daemon.ctl("bridge del br0 --with-ports");
    assert_eq!(sum_of_rings(), 0);
    daemon.ctl("bridge add br0");
    daemon.ctl("port add a0 --bridge br0 --type packet");
    daemon.ctl("port add a1 --bridge br0 --type packet");
    eventually("frames pass again", || {
        ports[0].send(&test_frame(BROADCAST, GUEST, "to one")).expect("sent");
        ports[1].next(Duration::from_millis(200)).is_some()
    });
    let began = std::time::Instant::now();
    daemon.terminate();
    println!("ended after {:?}", began.elapsed());
    Ok(())
}
