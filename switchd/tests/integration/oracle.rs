//! The same frames through Linux's bridge and through vswitch, VLAN-unaware: they come out of the same ports with the same
//! bytes.
//!
//! Both have four ports with MTU 9000. The kernel bridge's are veth ends, without multicast snooping and netfilter; ours
//! are a tap, a plain tap and two packet ports. The frames are those that decide something (sizes at every boundary we
//! know of, tags of all kinds, every sort of address, malformed ones), and then random ones.

use std::collections::BTreeSet;

use crate::harness::daemon::{Daemon, Start};
use crate::harness::frame::{AD, BROADCAST, Mac, Q, TEST, frame, show, station};
use crate::harness::net::Ns;
use crate::harness::raw::{Raw, wait_any};
use crate::harness::rig::{Outputs, Rig};
use crate::harness::{Outcome, PATIENCE, Random};

const PORTS: usize = 4;
const MTU: u32 = 9000;

/// A frame and the port it goes into.
#[derive(Clone, Debug)]
struct Case {
    port: usize,
    bytes: Vec<u8>,
}

fn linux_bridge(bridge: &Ns, stations: &Ns) -> Vec<Raw> {
    bridge.ip(
        "link add br0 type bridge mcast_snooping 0 stp_state 0 forward_delay 0; link set br0 mtu 9000 up",
    );
    let raws = (0..PORTS).map(|port| {
        let (here, there) = (format!("k{port}"), format!("e{port}"));
        bridge.veth(&here, stations, &there, MTU);
        bridge.ip(&format!("link set {here} address 0e:00:00:00:00:0{port} master br0"));
        Raw::open(stations, &there)
    });
    raws.collect()
}

fn our_bridge(daemon: &Daemon, ns: &Ns, stations: &Ns) -> Vec<Raw> {
    daemon.ctl("bridge add br0");
    let raws = (0..PORTS).map(|port| {
        let name = format!("v{port}");
        if port < 2 {
            let plain = if port == 1 { "--no-offload" } else { "" };
            daemon.ctl(&format!(
                "port add {name} --bridge br0 --type tap --netns {} --mtu {MTU} {plain}",
                stations.name
            ));
        } else {
            ns.veth(&name, stations, &name, MTU);
            daemon.ctl(&format!("port add {name} --bridge br0 --type packet"));
        }
        Raw::open(stations, &name)
    });
    raws.collect()
}

/// One worker: every frame in order, so each must come out exactly alike.
pub fn as_linux_bridge() -> Outcome {
    let (random, seed) = Random::from_environment();
    let (kernel_ns, our_ns, stations) = (Ns::new("k"), Ns::new("v"), Ns::new("s"));
    let mut linux = Rig::new("Linux's bridge", linux_bridge(&kernel_ns, &stations), Vec::new());
    let daemon = Start::new(&our_ns).arguments("--workers 1").ready();
    let mut ours = Rig::new("vswitch", our_bridge(&daemon, &our_ns, &stations), Vec::new());

    let mut covered = Covered::default();
    for (number, case) in cases(random).into_iter().enumerate() {
        let Case { port, bytes } = &case;
        let expected = linux.exchange(*port, bytes);
        let got = ours.exchange(*port, bytes);
        covered.note(&case, &expected);
        if let Some(difference) = difference(&expected, &got) {
            panic!("seed {seed}, frame {number} into port {port}: {}\n{difference}", show(bytes));
        }
    }
    covered.check();
    // The accounts agree with what happened: everything sent was received, and nothing but policy dropped any.
    for port in 0..PORTS {
        let stats = daemon.stats(&format!("v{port}"));
        let drops = stats["drops"].as_object().expect("an object");
        let fine = ["bad_source", "link_local", "same_port", "no_egress"];
        assert!(drops.keys().all(|reason| fine.contains(&reason.as_str())), "{stats}");
    }
    Ok(())
}

/// Two workers: frames of one port may be handled by either, so each waits for the one before.
pub fn as_linux_bridge_with_two_workers() -> Outcome {
    let (random, seed) = Random::from_environment();
    let (kernel_ns, our_ns, stations) = (Ns::new("k"), Ns::new("v"), Ns::new("s"));
    let mut linux = Rig::new("Linux's bridge", linux_bridge(&kernel_ns, &stations), Vec::new());
    let daemon = Start::new(&our_ns).arguments("--workers 2").ready();
    let ours = our_bridge(&daemon, &our_ns, &stations);

    let mut received = daemon.received();
    for (number, case) in cases(random).into_iter().step_by(3).enumerate() {
        let Case { port, bytes } = &case;
        let Ok(expected) = linux.exchange(*port, bytes) else { continue };
        ours[*port].send(bytes).expect("what a veth takes, these take");
        let context = || format!("seed {seed}, frame {number} into port {port}: {}", show(bytes));
        let got = collect_as_many(&ours, &expected);
        if let Some(difference) = difference(&Ok(expected.clone()), &Ok(got)) {
            panic!("{}\n{difference}", context());
        }
        if expected.iter().all(Vec::is_empty) && bytes.len() > 20 {
            // Nothing to wait for but the account of it.
            received += 1;
            crate::harness::eventually("the frame is counted", || daemon.received() >= received);
        }
        received = daemon.received();
    }
    Ok(())
}

/// What came out of every port, until it is as much as expected.
fn collect_as_many(ours: &[Raw], expected: &Outputs) -> Outputs {
    let mut got: Outputs = vec![Vec::new(); ours.len()];
    let began = std::time::Instant::now();
    loop {
        for (raw, got) in ours.iter().zip(&mut got) {
            got.extend(raw.drain().into_iter().map(|seen| seen.bytes));
        }
        let missing: Vec<&Raw> = ours
            .iter()
            .enumerate()
            .filter(|(i, _)| got[*i].len() < expected[*i].len())
            .map(|(_, raw)| raw)
            .collect();
        if missing.is_empty() || began.elapsed() > PATIENCE {
            return got;
        }
        wait_any(&missing, PATIENCE);
    }
}

/// What is not the same, for people.
fn difference(expected: &Result<Outputs, i32>, got: &Result<Outputs, i32>) -> Option<String> {
    if expected == got {
        return None;
    }
    let (Ok(expected), Ok(got)) = (expected, got) else {
        return Some(format!(
            "Linux's station says {:?}, ours {:?}",
            expected.as_ref().err(),
            got.as_ref().err()
        ));
    };
    let mut text = String::new();
    for (port, (expected, got)) in expected.iter().zip(got).enumerate().filter(|(_, (a, b))| a != b) {
        let list = |frames: &[Vec<u8>]| {
            frames.iter().map(|bytes| format!("\n      {}", show(bytes))).collect::<String>()
        };
        text += &format!("  port {port}:\n    Linux:{}\n    ours:{}\n", list(expected), list(got));
    }
    Some(text)
}

// ---- frames ----

fn mac(text: &str) -> Mac {
    let bytes: Vec<u8> = text.split(':').map(|part| u8::from_str_radix(part, 16).expect("hex")).collect();
    bytes.try_into().expect("six bytes")
}

/// Addresses that never come again, so that it does not matter who learned them.
fn passer_by(number: usize) -> Mac {
    station(0x00aa_0000 + number as u32)
}

fn cases(mut random: Random) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |port: usize, bytes: Vec<u8>| cases.push(Case { port, bytes });
    let stations: Vec<Mac> = (1..=8).map(station).collect();

    // Two stations make themselves known, then every size between them and from unknown to known and back.
    add(0, frame(BROADCAST, stations[0], &[], TEST, b"here I am"));
    add(2, frame(BROADCAST, stations[1], &[], TEST, b"me too"));
    let sizes = (14..=24usize)
        .chain([45, 46, 47, 59, 60, 61, 63, 64, 65, 127, 128, 129, 255, 256, 511, 512, 513, 1023, 1024])
        .chain(1495..=1526)
        .chain(1980..=2062)
        .chain([3000, 4094, 4095, 4096, 4097, 4098, 8191, 8192, 8193, 8996])
        .chain(9000..=9020);
    for (number, size) in sizes.enumerate() {
        for tags in [&[][..], &[(Q, 100)], &[(AD, 200), (Q, 300)]] {
            let Some(len) = size.checked_sub(14 + 4 * tags.len()) else { continue };
            let mut payload = vec![0; len];
            random.fill(&mut payload);
            let mut bytes = frame(stations[1], stations[0], tags, TEST, &payload);
            match number % 3 {
                0 => add(0, bytes),
                1 => {
                    bytes[..6].copy_from_slice(&stations[0]);
                    bytes[6..12].copy_from_slice(&stations[1]);
                    add(2, bytes);
                }
                _ => {
                    bytes[..6].copy_from_slice(&BROADCAST);
                    add(0, bytes);
                }
            }
        }
    }

    // Every sort of destination, from every port.
    let destinations = (0..=0x11)
        .map(|last| [0x01, 0x80, 0xc2, 0, 0, last])
        .chain(
            [
                "01:80:c2:00:01:00",
                "01:80:c2:00:00:20",
                "01:00:0c:cc:cc:cc",
                "01:00:5e:00:00:01",
                "01:00:5e:7f:ff:fa",
            ]
            .map(mac),
        )
        .chain(["33:33:00:00:00:01", "33:33:ff:12:34:56", "00:00:00:00:00:00", "02:77:00:00:00:01"].map(mac))
        .chain(["00:00:00:00:00:01", "ff:ff:ff:ff:ff:fe", "fe:ff:ff:ff:ff:ff"].map(mac))
        .chain([BROADCAST, stations[0], stations[1], station(0x00ee_0001)]);
    for to in destinations {
        for port in 0..PORTS {
            let from = stations[4 + port];
            add(port, frame(to, from, &[], TEST, b"whom it may concern"));
            add(port, frame(to, from, &[(Q, 0xa00a)], 0x0800, &[0x45; 40]));
        }
    }
    // What was learned from those is used.
    for to in 4..8 {
        (0..PORTS).for_each(|port| add(port, frame(stations[to], station(0x1000), &[], TEST, b"found?")));
    }

    // Sources that must not be learned, nor passed; then a frame to each.
    for from in [
        "00:00:00:00:00:00",
        "01:00:5e:00:00:05",
        "33:33:00:00:00:02",
        "ff:ff:ff:ff:ff:ff",
        "03:00:00:00:00:01",
    ]
    .map(mac)
    {
        for to in [BROADCAST, stations[0], station(0x00ee_0002)] {
            add(1, frame(to, from, &[], TEST, b"who am I"));
        }
        add(3, frame(from, stations[7], &[], TEST, b"back to you"));
    }
    // Sources learned from frames that go nowhere: link-local ones and to oneself. A pause frame's is not.
    for (n, to) in
        ["01:80:c2:00:00:0e", "01:80:c2:00:00:01", "01:80:c2:00:00:00"].map(mac).into_iter().enumerate()
    {
        let me = station(0x2000 + n as u32);
        add(2, frame(to, me, &[], 0x88cc, b"hello neighbour"));
        add(0, frame(me, stations[0], &[], TEST, b"are you known?"));
    }
    let me = station(0x2100);
    add(3, frame(me, me, &[], TEST, b"to myself, unknown"));
    add(3, frame(me, me, &[], TEST, b"to myself, known"));
    add(1, frame(me, stations[5], &[], TEST, b"to it"));
    add(3, frame(stations[7], me, &[], TEST, b"to a neighbour on the same port"));

    // A station moves, to and fro, and is found each time.
    let mover = station(0x3000);
    for turn in 0..40 {
        let port = turn * 7 % PORTS;
        add(port, frame(BROADCAST, mover, &[], TEST, b"moved"));
        add((port + 1) % PORTS, frame(mover, stations[4 + (port + 1) % PORTS], &[], TEST, b"found again"));
    }

    // Tags are payload, whatever is in them.
    for tags in [
        &[(Q, 0)][..],
        &[(Q, 0xe000)],
        &[(Q, 0x1000)],
        &[(Q, 1)],
        &[(Q, 4094)],
        &[(Q, 4095)],
        &[(Q, 0xffff)],
        &[(AD, 0)],
        &[(AD, 7)],
        &[(AD, 4095)],
        &[(Q, 5), (Q, 6)],
        &[(AD, 5), (Q, 6)],
        &[(Q, 5), (AD, 6)],
        &[(AD, 5), (AD, 6)],
        &[(Q, 0), (Q, 0)],
        &[(AD, 1), (Q, 2), (Q, 3)],
        &[(Q, 1), (Q, 2), (Q, 3), (Q, 4)],
        &[(0x9100, 5)],
        &[(0x9200, 5), (Q, 6)],
    ] {
        for (port, to) in [(0, BROADCAST), (1, stations[1]), (2, station(0x00ee_0003)), (3, stations[0])] {
            add(port, frame(to, stations[4 + port], tags, TEST, b"tagged"));
            add(port, frame(to, stations[4 + port], tags, TEST, &[0xa5; 1500]));
        }
    }
    // One learning domain: a station known under a tag is known without.
    let tagged = station(0x4000);
    add(2, frame(BROADCAST, tagged, &[(Q, 77)], TEST, b"in VLAN 77"));
    add(0, frame(tagged, stations[0], &[], TEST, b"without"));
    add(1, frame(tagged, stations[5], &[(Q, 78)], TEST, b"with another"));

    // EtherTypes that kernels have opinions about, with payloads that contradict them.
    for (number, ethertype) in [
        0x0000, 0x0001, 0x002e, 0x05dc, 0x05dd, 0x05ff, 0x0600, 0x0800, 0x0806, 0x0842, 0x8035, 0x80f3,
        0x86dd, 0x8808, 0x8809, 0x8847, 0x8863, 0x888e, 0x88a2, 0x88cc, 0x88e5, 0x88f7, 0x8906, 0x892f,
        0x9000, 0x9100, 0xffff,
    ]
    .into_iter()
    .enumerate()
    {
        for len in [0, 1, 8, 20, 46, 100, 1480] {
            let mut payload = vec![0; len];
            random.fill(&mut payload);
            let to = [BROADCAST, stations[1], station(0x00ee_0004)][number % 3];
            add(number % PORTS, frame(to, passer_by(100 + number), &[], ethertype, &payload));
        }
    }
    // IP headers that lie: version, length, fragment, checksum.
    for first in [0x45u8, 0x40, 0x4f, 0x65, 0x60, 0x00, 0xff] {
        for (ethertype, proto_at) in [(0x0800, 9), (0x86dd, 6)] {
            for len in [1, 19, 20, 39, 40, 41, 60, 1200] {
                let mut payload = vec![0; len];
                random.fill(&mut payload);
                payload[0] = first;
                if let Some(proto) = payload.get_mut(proto_at) {
                    *proto = if len % 2 == 0 { 6 } else { 17 };
                }
                add(len % PORTS, frame(stations[1], stations[4 + len % PORTS], &[], ethertype, &payload));
                add(2, frame(stations[0], stations[1], &[(Q, 9)], ethertype, &payload));
            }
        }
    }
    // Tags that are cut off. The kernel's receive path drops these before any bridge sees them.
    for size in 14..=20 {
        for (number, tpid) in [Q, AD].into_iter().enumerate() {
            let mut bytes = frame(BROADCAST, passer_by(200 + 2 * size + number), &[(tpid, 5)], TEST, &[0; 8]);
            bytes.truncate(size);
            add(size % PORTS, bytes);
        }
    }
    // What a socket does not take at all must be refused alike.
    (0..14).for_each(|size| add(size % PORTS, vec![0x02; size]));

    for number in 0..600 {
        let case = random_case(&mut random, &stations, number);
        add(case.port, case.bytes);
    }
    cases
}

fn random_case(random: &mut Random, stations: &[Mac], number: usize) -> Case {
    // Mostly at home, sometimes moved.
    let who = random.below(stations.len());
    let home = who % PORTS;
    let port = if random.one_in(6) { random.below(PORTS) } else { home };
    let from = if random.one_in(12) { passer_by(1000 + number) } else { stations[who] };
    let from = match random.below(40) {
        0 => [0; 6],
        1 => [0x01, 0, 0x5e, 1, 2, 3],
        _ => from,
    };
    let to = match random.below(12) {
        0 => BROADCAST,
        1 => [0x01, 0x80, 0xc2, 0, 0, random.below(18) as u8],
        2 => [0x33, 0x33, 0, 0, 0, random.below(256) as u8],
        3 => station(0x00ee_1000 + number as u32),
        4 => from,
        _ => random.pick(stations),
    };
    let tag = |random: &mut Random| (random.pick(&[Q, Q, AD]), random.next() as u16);
    let mut tags = Vec::new();
    if random.one_in(2) {
        tags.push(tag(random));
        if random.one_in(3) {
            tags.push(tag(random));
        }
    }
    let size = match random.below(4) {
        0 => random.pick(&[0, 1, 2, 46, 50, 1500, 1504, 2000, 2034, 2048, 4096, 9000]),
        1 => random.below(9001),
        _ => random.below(200),
    };
    // With a tag, six bytes must follow it, or the kernel drops the frame unseen and nobody learns from it.
    let mut payload = vec![0; size.max(6)];
    random.fill(&mut payload);
    let ethertype = random.pick(&[TEST, TEST, 0x0800, 0x86dd, 0x0806, 0x0040]);
    Case { port, bytes: frame(to, from, &tags, ethertype, &payload) }
}

/// That the frames did what they are there for: a generator that sends everything into the void compares nothing.
#[derive(Debug, Default)]
struct Covered {
    fan_out: BTreeSet<usize>,
    sizes: BTreeSet<usize>,
    refused: usize,
    frames: usize,
}

impl Covered {
    fn note(&mut self, case: &Case, expected: &Result<Outputs, i32>) {
        match expected {
            Ok(outputs) => {
                let copies = outputs.iter().filter(|frames| !frames.is_empty()).count();
                self.fan_out.insert(copies);
                if copies > 0 {
                    self.sizes.insert(case.bytes.len());
                    self.frames += 1;
                }
            }
            Err(_) => self.refused += 1,
        }
    }

    fn check(&self) {
        assert_eq!(self.fan_out, BTreeSet::from([0, 1, PORTS - 1]), "dropped, to one, to all others");
        assert!(self.frames > 900 && self.refused > 14, "{} frames, {} refused", self.frames, self.refused);
        for size in [14, 60, 1514, 2048, 9014, 9018] {
            assert!(self.sizes.contains(&size), "no frame of {size} bytes came through");
        }
    }
}
