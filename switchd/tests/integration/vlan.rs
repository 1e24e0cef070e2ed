//! VLAN filtering: the same frames through Open vSwitch's userspace datapath and through vswitch come out of the same ports
//! with the same bytes, but for the differences of [`DIFFERENCES`], each of which is checked for what it says.

use std::collections::BTreeMap;

use crate::harness::daemon::{Daemon, Start};
use crate::harness::frame::{AD, BROADCAST, Mac, Q, TEST, frame, show, station, untag};
use crate::harness::net::Ns;
use crate::harness::ovs::Ovs;
use crate::harness::raw::Raw;
use crate::harness::rig::{Fence, Outputs, Rig};
use crate::harness::{Outcome, Random};

/// A port: what it carries, in both switches' words, and how its own fences look.
struct PortPlan {
    ours: &'static str,
    ovs: &'static str,
    /// VLAN of untagged frames.
    pvid: Option<u16>,
    /// VLANs that leave tagged.
    tagged: &'static [u16],
}

const PORTS: &[PortPlan] = &[
    PortPlan { ours: "--access 10", ovs: "tag=10 vlan_mode=access", pvid: Some(10), tagged: &[] },
    PortPlan { ours: "--access 20", ovs: "tag=20 vlan_mode=access", pvid: Some(20), tagged: &[] },
    PortPlan { ours: "--trunk 10,20", ovs: "trunks=10,20 vlan_mode=trunk", pvid: None, tagged: &[10, 20] },
    PortPlan {
        ours: "--trunk 10,20 --native 30",
        ovs: "tag=30 trunks=10,20 vlan_mode=native-untagged",
        pvid: Some(30),
        tagged: &[10, 20],
    },
    PortPlan { ours: "--access 30", ovs: "tag=30 vlan_mode=access", pvid: Some(30), tagged: &[] },
    PortPlan {
        ours: "--trunk 30,4094 --native 10",
        ovs: "tag=10 trunks=30,4094 vlan_mode=native-untagged",
        pvid: Some(10),
        tagged: &[30, 4094],
    },
    // Without any option: an access port of the bridge's default PVID.
    PortPlan { ours: "", ovs: "tag=20 vlan_mode=access", pvid: Some(20), tagged: &[] },
];
const DEFAULT_PVID: u16 = 20;

impl PortPlan {
    fn is_trunk(&self) -> bool {
        !self.tagged.is_empty()
    }

    fn carries(&self, vid: u16) -> bool {
        self.pvid == Some(vid) || self.tagged.contains(&vid)
    }

    fn fence(&self) -> Fence {
        let (tags, vid) = match self.pvid {
            Some(pvid) => (Vec::new(), pvid),
            None => (vec![(Q, self.tagged[0])], self.tagged[0]),
        };
        let me: *const PortPlan = self;
        let reaches =
            PORTS.iter().enumerate().filter(|(_, port)| port.carries(vid) && !std::ptr::eq(*port, me));
        Fence { tags, reaches: reaches.map(|(index, _)| index).collect() }
    }

    /// The VLAN that a frame with these tags comes into, by the contract's words.
    fn admits(&self, tags: &[(u16, u16)]) -> Option<u16> {
        match tags.first().map(|(_, tci)| tci & 0xfff) {
            None | Some(0) => self.pvid,
            Some(vid) => (self.is_trunk() && self.carries(vid)).then_some(vid),
        }
    }
}

/// Where ours shall differ from Open vSwitch.
struct Difference {
    name: &'static str,
    /// Whether it concerns a frame that comes in at this port.
    concerns: fn(&Case) -> bool,
    /// What Open vSwitch is shown instead of the frame, and what ours shall put out, given Open vSwitch's outputs.
    asked: fn(&Case) -> Vec<u8>,
    expected: fn(&Case, Outputs) -> Outputs,
}

const DIFFERENCES: &[Difference] = &[
    Difference {
        name: "0x88a8 frames are dropped until QinQ is built; Open vSwitch takes the tag for a VLAN's",
        concerns: |case| case.tags.first().is_some_and(|(tpid, _)| *tpid == AD),
        asked: |case| case.bytes.clone(),
        expected: |_, outputs| nothing(&outputs),
    },
    Difference {
        name: "a multicast source is dropped, as by Linux's bridge; Open vSwitch forwards it",
        concerns: |case| case.bytes[6] & 1 == 1,
        asked: |case| case.bytes.clone(),
        expected: |_, outputs| nothing(&outputs),
    },
    Difference {
        name: "a source of zero is dropped, as by Linux's bridge; Open vSwitch forwards it",
        concerns: |case| case.bytes[6..12] == [0; 6],
        asked: |case| case.bytes.clone(),
        expected: |_, outputs| nothing(&outputs),
    },
    Difference {
        name: "01-80-C2-00-00-00 floods while there is no STP; Open vSwitch keeps it",
        concerns: |case| case.bytes[..6] == [0x01, 0x80, 0xc2, 0, 0, 0],
        // Asked about a multicast address that it floods, which is then put back.
        asked: |case| [&FLOODED, &case.bytes[6..]].concat(),
        expected: |_, outputs| {
            map(outputs, |_, mut bytes| {
                bytes[..6].copy_from_slice(&[0x01, 0x80, 0xc2, 0, 0, 0]);
                Some(bytes)
            })
        },
    },
    Difference {
        name: "Cisco's and Extreme's group addresses are like any other; Open vSwitch keeps some of them",
        concerns: |case| VENDORS.contains(&&case.bytes[..6]),
        asked: |case| [&FLOODED, &case.bytes[6..]].concat(),
        expected: |case, outputs| {
            let to: [u8; 6] = case.bytes[..6].try_into().unwrap_or_default();
            map(outputs, move |_, mut bytes| {
                bytes[..6].copy_from_slice(&to);
                Some(bytes)
            })
        },
    },
    Difference {
        name: "a trunk drops what untagging would turn into a frame of another VLAN; Open vSwitch lets it out",
        concerns: |case| inner_tag_in(case).is_some(),
        asked: |case| case.bytes.clone(),
        expected: |case, outputs| {
            let vid = inner_tag_in(case);
            map(outputs, move |port, bytes| {
                (!(PORTS[port].is_trunk() && PORTS[port].pvid == vid)).then_some(bytes)
            })
        },
    },
];

const FLOODED: Mac = [0x01, 0x00, 0x5e, 0x01, 0x01, 0x01];
const VENDORS: [&[u8]; 3] = [
    &[0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcc],
    &[0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd],
    &[0x00, 0xe0, 0x2b, 0, 0, 0],
];

/// The VLAN of an admitted frame whose own tag hides another one.
fn inner_tag_in(case: &Case) -> Option<u16> {
    (case.tags.len() > 1).then(|| PORTS[case.port].admits(&case.tags)).flatten()
}

fn nothing(outputs: &Outputs) -> Outputs {
    vec![Vec::new(); outputs.len()]
}

fn map(outputs: Outputs, mut change: impl FnMut(usize, Vec<u8>) -> Option<Vec<u8>>) -> Outputs {
    let one = |(port, frames): (usize, Vec<Vec<u8>>)| {
        frames.into_iter().filter_map(|bytes| change(port, bytes)).collect()
    };
    outputs.into_iter().enumerate().map(one).collect()
}

#[derive(Clone, Debug)]
struct Case {
    port: usize,
    bytes: Vec<u8>,
    tags: Vec<(u16, u16)>,
}

pub fn as_open_vswitch() -> Outcome {
    let (random, seed) = Random::from_environment();
    let (ovs_ns, our_ns, stations) = (Ns::new("o"), Ns::new("v"), Ns::new("s"));
    let ovs = Ovs::start(&ovs_ns)?;
    let fences: Vec<Fence> = PORTS.iter().map(PortPlan::fence).collect();
    let mut reference = Rig::new("Open vSwitch", open_vswitch(&ovs, &ovs_ns, &stations), fences.clone());
    let daemon = Start::new(&our_ns).arguments("--workers 1").ready();
    let mut ours = Rig::new("vswitch", our_bridge(&daemon, &our_ns, &stations), fences);

    let mut seen = BTreeMap::<&str, (usize, usize)>::new();
    let mut passed = 0;
    for (number, case) in cases(random).into_iter().enumerate() {
        ovs.forget_flows();
        let difference = DIFFERENCES.iter().find(|difference| (difference.concerns)(&case));
        let asked = difference.map_or_else(|| case.bytes.clone(), |difference| (difference.asked)(&case));
        let theirs = reference.exchange(case.port, &asked).expect("every frame can be sent");
        let got = ours.exchange(case.port, &case.bytes).expect("every frame can be sent");
        let expected = match difference {
            Some(difference) => {
                let expected = (difference.expected)(&case, theirs.clone());
                let count = seen.entry(difference.name).or_default();
                count.0 += 1;
                count.1 += usize::from(expected != theirs);
                expected
            }
            None => theirs,
        };
        passed += expected.iter().filter(|frames| !frames.is_empty()).count();
        if expected != got {
            let list = |outputs: &Outputs| -> String {
                let lines = outputs.iter().enumerate().flat_map(|(port, frames)| {
                    frames.iter().map(move |bytes| {
                        format!("\n    port {port} ({}): {}", PORTS[port].ours, show(bytes))
                    })
                });
                lines.collect()
            };
            panic!(
                "seed {seed}, frame {number} into port {} ({}): {}\n  expected ({}):{}\n  got:{}",
                case.port,
                PORTS[case.port].ours,
                show(&case.bytes),
                difference.map_or("as Open vSwitch", |difference| difference.name),
                list(&expected),
                list(&got)
            );
        }
    }
    assert!(passed > 400, "only {passed} frames came out anywhere: nothing was compared");
    for difference in DIFFERENCES {
        let (concerned, differed) = seen.get(difference.name).copied().unwrap_or_default();
        assert!(differed > 0, "of {concerned} frames none showed it: {}", difference.name);
    }
    Ok(())
}

fn open_vswitch(ovs: &Ovs, ns: &Ns, stations: &Ns) -> Vec<Raw> {
    let raws = PORTS.iter().enumerate().map(|(index, plan)| {
        let (here, there) = (format!("o{index}"), format!("a{index}"));
        ns.veth(&here, stations, &there, 1500);
        ovs.vsctl(ns, &format!("add-port br0 {here} -- set port {here} {}", plan.ovs));
        Raw::open(stations, &there)
    });
    raws.collect()
}

fn our_bridge(daemon: &Daemon, ns: &Ns, stations: &Ns) -> Vec<Raw> {
    daemon.ctl(&format!("bridge add br0 --vlan-filtering on --default-pvid {DEFAULT_PVID}"));
    let raws = PORTS.iter().enumerate().map(|(index, plan)| {
        let name = format!("v{index}");
        match index % 3 {
            0 => {
                ns.veth(&name, stations, &name, 1500);
                daemon.ctl(&format!("port add {name} --bridge br0 --type packet {}", plan.ours));
            }
            kind => {
                let plain = if kind == 2 { "--no-offload" } else { "" };
                daemon.ctl(&format!(
                    "port add {name} --bridge br0 --type tap --netns {} {plain} {}",
                    stations.name, plan.ours
                ));
            }
        }
        Raw::open(stations, &name)
    });
    raws.collect()
}

fn cases(mut random: Random) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |port: usize, to: Mac, from: Mac, tags: &[(u16, u16)], payload: &[u8]| {
        let bytes = frame(to, from, tags, TEST, payload);
        cases.push(Case { port, tags: untag(&bytes).0, bytes });
    };
    let homes: Vec<Mac> = (0..PORTS.len()).map(|port| station(port as u32 + 1)).collect();
    let mut passers = (0..).map(|number| station(0x00aa_0000 + number));
    let mut passer_by = || passers.next().unwrap_or_default();

    // Everybody says where he is, in each VLAN he may speak in.
    for (port, plan) in PORTS.iter().enumerate() {
        if plan.pvid.is_some() {
            add(port, BROADCAST, homes[port], &[], b"hello, untagged");
        }
        for vid in plan.tagged {
            add(port, BROADCAST, homes[port], &[(Q, *vid)], b"hello, tagged");
        }
    }
    // Every tag at every port, to each kind of destination.
    let vids = [0, 1, 2, 10, 20, 30, 40, 4093, 4094, 4095];
    for port in 0..PORTS.len() {
        for to in [
            BROADCAST,
            station(0x00ee_0001),
            homes[(port + 2) % PORTS.len()],
            homes[(port + 3) % PORTS.len()],
        ] {
            add(port, to, homes[port], &[], b"untagged");
            for vid in vids {
                let priority = (random.next() as u16) & 0xe000;
                add(port, to, homes[port], &[(Q, priority | vid)], b"tagged");
            }
        }
    }
    // Two tags: the inner one is payload, and must not become a VLAN.
    for port in 0..PORTS.len() {
        for outer in vids {
            for inner in [0, 10, 20, 30, 4094] {
                for tpid in [Q, AD] {
                    add(port, BROADCAST, passer_by(), &[(Q, outer), (tpid, inner)], b"two tags");
                }
            }
        }
    }
    // Each stated difference, at each port, under each tag that a port may carry.
    for port in 0..PORTS.len() {
        for tags in [&[][..], &[(Q, 0)], &[(Q, 10)], &[(Q, 20)], &[(Q, 30)]] {
            for (n, to) in [BROADCAST, homes[(port + 1) % PORTS.len()]].into_iter().enumerate() {
                add(port, to, [0x01, 0, 0x5e, 0, 0, 0x10 + n as u8], tags, b"a group speaks");
                add(port, to, [0; 6], tags, b"nobody speaks");
            }
            for last in 0..=0x0f {
                add(port, [0x01, 0x80, 0xc2, 0, 0, last], passer_by(), tags, b"link-local");
            }
            for vendor in VENDORS {
                add(port, vendor.try_into().unwrap_or_default(), passer_by(), tags, b"vendor");
            }
        }
        for vid in vids {
            add(port, BROADCAST, passer_by(), &[(AD, vid)], b"service tag");
            add(port, BROADCAST, passer_by(), &[(AD, vid), (Q, 10)], b"service and customer tag");
        }
    }
    // The same address in two VLANs is two stations.
    let twin = station(0x5000);
    add(0, BROADCAST, twin, &[], b"twin in VLAN 10");
    add(1, BROADCAST, twin, &[], b"twin in VLAN 20");
    for vid in [10, 20] {
        add(2, twin, homes[2], &[(Q, vid)], b"to the twin");
        add(3, twin, homes[3], &[(Q, vid)], b"to the twin");
    }
    add(4, twin, homes[4], &[], b"unknown in VLAN 30");
    // Full frames.
    for port in 0..PORTS.len() {
        add(port, BROADCAST, homes[port], &[], &[0x5a; 1496]);
        add(port, BROADCAST, homes[port], &[(Q, 10)], &[0x5a; 1496]);
    }

    // And at random: at home, moved, in any VLAN.
    for number in 0..400u32 {
        let who = random.below(homes.len());
        let port = if random.one_in(5) { random.below(PORTS.len()) } else { who };
        let to = match random.below(8) {
            0 => BROADCAST,
            1 => FLOODED,
            2 => station(0x00ee_1000 + number),
            _ => random.pick(&homes),
        };
        let mut tags = Vec::new();
        if PORTS[port].is_trunk() || random.one_in(6) {
            let vid = if random.one_in(5) { random.pick(&vids) } else { random.pick(&[10, 20, 30]) };
            tags.push((Q, (random.next() as u16 & 0xe000) | vid));
        }
        let mut payload = vec![0; 46 + random.below(1450)];
        random.fill(&mut payload);
        add(port, to, homes[who], &tags, &payload);
    }
    cases
}
