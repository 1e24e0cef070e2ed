//! ARP and neighbour discovery that the switch answers instead of sending it into tunnels.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::daemon::{Daemon, Start, mac_text};
use crate::harness::frame::{BROADCAST, Mac, Q, frame, station, untag};
use crate::harness::net::Ns;
use crate::harness::raw::Raw;
use crate::harness::stream::{Kind, Station};
use crate::harness::underlay::Underlay;
use crate::harness::{Outcome, eventually};

const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const SOLICITATION: u8 = 135;
/// The headers around a frame in a tunnel over IPv4: Ethernet, IPv4, UDP, VXLAN.
const OUTER_LEN: usize = 14 + 20 + 8 + 8;

type Host = (Mac, [u8; 4]);

fn arp(operation: u16, (mac, sender): Host, (to, target): Host) -> Vec<u8> {
    let asked = if to == BROADCAST { [0; 6] } else { to };
    let packet = [&[0, 1, 8, 0, 6, 4][..], &operation.to_be_bytes(), &mac, &sender, &asked, &target];
    frame(to, mac, &[], ARP, &packet.concat())
}

fn who_has(target: [u8; 4], from: Host) -> Vec<u8> {
    arp(1, from, (BROADCAST, target))
}

fn is_at(target: Host, to: Host) -> Vec<u8> {
    arp(2, target, to)
}

fn tagged(vid: u16, bytes: &[u8]) -> Vec<u8> {
    [&bytes[..12], &Q.to_be_bytes(), &vid.to_be_bytes(), &bytes[12..]].concat()
}

/// Whether a frame asks everybody for a link-layer address.
fn asks_all(bytes: &[u8]) -> bool {
    let (_, ethertype, at) = untag(bytes);
    let asks = match ethertype {
        ARP => bytes.get(at + 7) == Some(&1),
        IPV6 => bytes.get(at + 6) == Some(&58) && bytes.get(at + 40) == Some(&SOLICITATION),
        _ => false,
    };
    asks && bytes[0] & 1 != 0
}

/// What is known: address and MAC, by state.
fn known(daemon: &Daemon, filter: &str, state: &str) -> Vec<(String, String)> {
    let text = |entry: &Value, field: &str| entry[field].as_str().expect("text").to_owned();
    let all = daemon.json(&format!("neigh show {filter}"));
    let all = all.as_array().expect("a list").iter().filter(|entry| entry["state"] == state);
    all.map(|entry| (text(entry, "address"), text(entry, "mac"))).collect()
}

fn answered(daemon: &Daemon, port: &str) -> u64 {
    daemon.stats(port)["neigh_answered"].as_u64().expect("a number")
}

/// A switch on host `n`, whose tunnel suppresses what is answered.
fn suppressing(underlay: &Underlay, n: usize) -> Daemon {
    let daemon = underlay.switch(n, false);
    daemon.ctl("port set vx0 --neigh-suppress on");
    daemon
}

/// Stations that have forgotten each other find each other again, and nobody is asked through the tunnel.
pub fn suppressed() -> Outcome {
    let underlay = Underlay::new(2);
    let (near, far) = (suppressing(&underlay, 1), suppressing(&underlay, 2));
    let (left, right) = (Ns::with_ipv6("a"), Ns::with_ipv6("b"));
    let a = Station::plug(&near, (&underlay.hosts[0], &left), Kind::Tap, 1, 1450, "");
    // A tap would have been announced.
    let b = Station::plug(&far, (&underlay.hosts[1], &right), Kind::Packet, 2, 1450, "");
    let wire = Raw::open(&underlay.hosts[1], "wire");
    let asked = |wire: &Raw| {
        let inner =
            |bytes: &[u8]| bytes.get(OUTER_LEN..).is_some_and(|inner| inner.len() >= 42 && asks_all(inner));
        wire.drain().iter().filter(|seen| inner(&seen.bytes)).count()
    };
    for v6 in [false, true] {
        let target = b.ip(v6).to_string();
        let ping = || left.run("ping", &["-c", "1", "-W", "5", &target]);
        ping();
        assert!(asked(&wire) > 0, "the first time");
        eventually("it is known", || {
            known(&near, "", "dynamic").iter().any(|(address, _)| *address == target)
        });
        eventually("workers know it", || {
            let before = answered(&near, &a.ifname);
            left.ip(&format!("neigh flush dev {}", a.ifname));
            ping();
            answered(&near, &a.ifname) > before
        });
        let before = answered(&near, &a.ifname);
        for _ in 0..3 {
            left.ip(&format!("neigh flush dev {}", a.ifname));
            wire.drain();
            ping();
            assert_eq!(asked(&wire), 0, "nobody is asked again");
        }
        assert!(answered(&near, &a.ifname) >= before + 3);
    }
    let port = near.port("vx0");
    assert_eq!((&port["tunnel"]["neigh_suppress"], answered(&near, "vx0")), (&json!(true), 0));
    let (_, _, metrics) = near.http("GET", "/metrics", "");
    assert!(metrics.contains("vswitch_port_neigh_answered_total{bridge=\"br0\",port=\"tap1\"}"), "{metrics}");
    // Off again, at once.
    near.ctl("port set vx0 --neigh-suppress off");
    left.ip(&format!("neigh flush dev {}", a.ifname));
    left.run("ping", &["-c", "1", "-W", "5", &b.v4.to_string()]);
    assert!(asked(&wire) > 0);
    Ok(())
}

/// An address comes back with another MAC address behind another host, and its station says nothing. Who has talked to the one before
/// finds it as soon as his own kernel asks everybody again.
pub fn a_silent_newcomer() -> Outcome {
    let underlay = Underlay::new(3);
    let daemons: Vec<Daemon> = (1..=3).map(|n| suppressing(&underlay, n)).collect();
    let (left, old, new) = (Ns::with_ipv6("a"), Ns::with_ipv6("b"), Ns::with_ipv6("c"));
    let a = Station::plug(&daemons[0], (&underlay.hosts[0], &left), Kind::Packet, 1, 1450, "");
    // As Linux does by itself, in a tenth of the time.
    for (family, key, value) in [
        ("ipv4", "base_reachable_time_ms", "1000"),
        ("ipv4", "delay_first_probe_time", "1"),
        ("ipv4", "retrans_time_ms", "300"),
        ("ipv6", "base_reachable_time_ms", "1000"),
        ("ipv6", "delay_first_probe_time", "1"),
        ("ipv6", "retrans_time_ms", "300"),
    ] {
        left.sysctl(&format!("net/{family}/neigh/{}/{key}", a.ifname), value);
    }
    let b = Station::plug(&daemons[1], (&underlay.hosts[1], &old), Kind::Packet, 2, 1450, "");
    let targets = [false, true].map(|v6| b.ip(v6).to_string());
    let ping = |target: &String| left.try_run("ping", &["-c", "1", "-W", "1", target]).is_ok();
    for target in &targets {
        eventually("the switch knows it, and answers", || {
            let before = answered(&daemons[0], &a.ifname);
            left.ip(&format!("neigh flush dev {}", a.ifname));
            ping(target) && answered(&daemons[0], &a.ifname) > before
        });
    }
    let mac = |ns: &Ns| ns.link("packet2").expect("there")["address"].clone();
    let before = mac(&old);
    daemons[1].ctl("port del packet2");
    old.ip("link del packet2");
    Station::plug(&daemons[2], (&underlay.hosts[2], &new), Kind::Packet, 2, 1450, "");
    assert_ne!(mac(&new), before);
    let began = Instant::now();
    for target in &targets {
        let mut tries = 0;
        while !ping(target) {
            tries += 1;
            assert!(began.elapsed() < Duration::from_secs(15), "{target} is lost after {tries} pings");
        }
    }
    // And it is answered for again, rightly.
    for target in &targets {
        eventually("the switch knows it anew", || {
            let before = answered(&daemons[0], &a.ifname);
            left.ip(&format!("neigh flush dev {}", a.ifname));
            ping(target) && answered(&daemons[0], &a.ifname) > before
        });
    }
    Ok(())
}

/// An address that is in use at the other end of a tunnel is found to be, although it is known here.
pub fn duplicates_are_found() -> Outcome {
    let underlay = Underlay::new(2);
    let (near, far) = (suppressing(&underlay, 1), suppressing(&underlay, 2));
    let (left, right) = (Ns::with_ipv6("a"), Ns::with_ipv6("b"));
    let a = Station::plug(&near, (&underlay.hosts[0], &left), Kind::Tap, 1, 1450, "");
    let b = Station::plug(&far, (&underlay.hosts[1], &right), Kind::Tap, 2, 1450, "");
    for v6 in [false, true] {
        eventually("the switch knows it", || {
            let before = answered(&near, &a.ifname);
            left.ip(&format!("neigh flush dev {}", a.ifname));
            left.run("ping", &["-c", "1", "-W", "5", &b.ip(v6).to_string()]);
            answered(&near, &a.ifname) > before
        });
    }

    for which in ["all", &a.ifname] {
        left.sysctl(&format!("net/ipv6/conf/{which}/accept_dad"), "1");
    }
    left.ip(&format!("addr add {}/64 dev {}", b.v6, a.ifname));
    let duplicate = || {
        let text = left.run("ip", &["-6", "-j", "addr", "show", "dev", &a.ifname]);
        let shown: Value = serde_json::from_str(&text).expect("JSON from ip");
        let all = shown[0]["addr_info"].as_array().expect("a list").clone();
        all.iter().any(|one| one["local"] == b.v6.to_string() && one["dadfailed"] == true)
    };
    eventually("IPv6 finds it", duplicate);

    // A probe as RFC 5227 has it.
    let before = answered(&near, &a.ifname);
    let raw = Raw::open(&left, &a.ifname);
    let probe = who_has(b.v4.octets(), (station(5), [0; 4]));
    raw.send(&probe).expect("sent");
    let reply =
        |bytes: &[u8]| untag(bytes).1 == ARP && bytes[20..22] == [0, 2] && bytes[28..32] == b.v4.octets();
    assert_eq!(raw.collect(1, Duration::from_secs(5), reply).len(), 1, "its owner says so");
    assert_eq!(answered(&near, &a.ifname), before, "not the switch");
    Ok(())
}

/// Static neighbours are answered for without ever being heard, and nobody can talk them away.
pub fn static_neighbours() -> Outcome {
    let underlay = Underlay::new(2);
    let near = suppressing(&underlay, 1);
    let wires = (Ns::new("s"), Ns::new("s"));
    for (name, wire) in [("p0", &wires.0), ("p1", &wires.1)] {
        near.ctl(&format!("port add {name} --bridge br0 --type tap --netns {}", wire.name));
    }
    let (asker, liar) = (Raw::open(&wires.0, "p0"), Raw::open(&wires.1, "p1"));
    let (me, it): (Host, Host) = ((station(1), [10, 9, 0, 1]), (station(9), [10, 9, 0, 9]));
    let (mac, remote) = (mac_text(it.0), || near.stats("vx0")["tx_frames"].as_u64().expect("a number"));
    near.ctl(&format!("fdb add {mac} --port vx0"));
    near.ctl(&format!("neigh add 10.9.0.9 --mac {mac} --bridge br0"));
    near.ctl(&format!("neigh add fd09::9 --mac {mac} --bridge br0 --router"));
    let entry = json!({"address": "10.9.0.9", "mac": mac, "vlan": 0, "bridge": "br0", "state": "static",
        "router": false, "age_secs": 0, "origin": "runtime"});
    assert_eq!(near.json("neigh show --bridge br0")[0], entry);
    let shown = near.ctl("neigh show");
    assert!(shown.contains("10.9.0.9") && shown.contains("static router"), "{shown}");

    let ask = |wait: u64| {
        asker.drain();
        asker.send(&who_has(it.1, me)).expect("sent");
        let arp = |bytes: &[u8]| untag(bytes).1 == ARP;
        let seen = asker.collect(1, Duration::from_millis(wait), arp);
        seen.into_iter().next().map(|seen| seen.bytes)
    };
    let before = remote();
    assert_eq!(ask(5000), Some(is_at(it, me)), "to the byte");
    assert_eq!((remote(), answered(&near, "p0")), (before, 1), "nothing went into the tunnel");

    // Lies: its own MAC for the address; the owner's MAC, which is somewhere else; another's MAC than the frame's.
    let lies = [
        is_at((station(6), it.1), (BROADCAST, it.1)),
        who_has([10, 9, 0, 77], (station(6), it.1)),
        frame(BROADCAST, station(6), &[], ARP, &is_at((station(7), [10, 9, 0, 77]), me)[14..]),
    ];
    lies.iter().for_each(|lie| liar.send(lie).expect("sent"));
    liar.send(&who_has([10, 9, 0, 77], (station(6), [10, 9, 0, 6]))).expect("sent");
    let six = ("10.9.0.6".to_owned(), mac_text(station(6)));
    eventually("who is honest is known", || known(&near, "", "dynamic").contains(&six));
    assert_eq!(ask(5000), Some(is_at(it, me)));
    let all = known(&near, "", "dynamic");
    assert!(all.iter().all(|(address, _)| !["10.9.0.9", "10.9.0.77"].contains(&address.as_str())), "{all:?}");

    for (line, words) in [
        (format!("neigh add 10.9.0.9 --mac {mac} --bridge br0"), "neigh del"),
        (format!("neigh add 10.9.0.9 --mac {} --bridge br0 --may-exist", mac_text(station(6))), &*mac),
        ("neigh add 10.9.0.8 --mac 01:00:5e:00:00:01 --bridge br0".into(), "01:00:5e:00:00:01"),
        (format!("neigh add 224.0.0.1 --mac {mac} --bridge br0"), "224.0.0.1"),
        (format!("neigh add 10.9.0.8 --mac {mac} --bridge br0 --vlan 5"), "--vlan-filtering on"),
        (format!("neigh add 10.9.0.8 --mac {mac} --bridge br9"), "existing: br0"),
        ("neigh del 10.9.0.8 --bridge br0".into(), "10.9.0.8"),
        ("neigh show --bridge br9".into(), "existing: br0"),
        ("port set p0 --neigh-suppress on".into(), "tunnel"),
    ] {
        let error = near.refused(&line);
        assert!(error.contains(words), "{line}: {error}");
    }
    near.ctl(&format!("neigh add 10.9.0.9 --mac {mac} --bridge br0 --may-exist"));
    near.ctl("neigh del 10.9.0.8 --bridge br0 --if-exists");

    assert!(near.json("neigh flush --bridge br0")["flushed"].as_u64() >= Some(1));
    assert_eq!((known(&near, "", "dynamic").len(), known(&near, "", "static").len()), (0, 2));
    near.ctl("neigh del 10.9.0.9 --bridge br0");
    let before = remote();
    assert_eq!(ask(300), None);
    assert_eq!(remote(), before + 1, "now the others are asked");

    // A learned one goes when it is silent.
    liar.send(&who_has([10, 9, 0, 77], (station(6), [10, 9, 0, 6]))).expect("sent");
    eventually("it is known again", || known(&near, "", "dynamic").contains(&six));
    near.ctl("bridge set br0 --ageing 1");
    eventually("it is forgotten", || known(&near, "", "dynamic").is_empty());
    assert_eq!(known(&near, "", "static").len(), 1);
    near.ctl("bridge set br0 --ageing 300");
    // And with its station.
    liar.send(&who_has([10, 9, 0, 77], (station(6), [10, 9, 0, 6]))).expect("sent");
    eventually("it is known once more", || known(&near, "", "dynamic").contains(&six));
    near.ctl("port del p1");
    eventually("it went with its port", || !known(&near, "", "dynamic").contains(&six));
    Ok(())
}

/// Who makes up addresses does not keep the switch busy with them, nor fill it, nor push out who is configured.
pub fn a_flood_is_bounded() -> Outcome {
    let underlay = Underlay::new(2);
    let near = suppressing(&underlay, 1);
    let wire = Ns::new("s");
    near.ctl(&format!("port add p0 --bridge br0 --type tap --netns {}", wire.name));
    let raw = Raw::open(&wire, "p0");
    near.ctl(&format!("neigh add 10.9.0.9 --mac {} --bridge br0", mac_text(station(9))));
    let generation = || near.json("status")["workers"][0]["generation"].as_u64().expect("a number");
    let (before, began) = (generation(), Instant::now());
    let mut sent = 0_u32;
    while known(&near, "", "dynamic").len() < 4096 {
        assert!(began.elapsed() < Duration::from_secs(30), "{sent} sent");
        for _ in 0..500 {
            let [_, b, c, d] = (sent % 5000).to_be_bytes();
            // A full queue of the TAP is no matter here.
            let _ = raw.send(&who_has([10, 9, 0, 1], (station(1), [11, b, c, d])));
            sent += 1;
        }
    }
    let (published, secs) = (generation() - before, began.elapsed().as_secs() + 1);
    assert!(published <= 10 * secs + 10, "{published} topologies in {secs} s");
    for n in 0..1000_u32 {
        let [_, b, c, d] = (10_000 + n).to_be_bytes();
        let _ = raw.send(&who_has([10, 9, 0, 1], (station(1), [11, b, c, d])));
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((known(&near, "", "dynamic").len(), known(&near, "", "static").len()), (4096, 1));
    Ok(())
}

/// Each VLAN has its own neighbours, and an answer the tag of its question.
pub fn vlans() -> Outcome {
    let underlay = Underlay::new(2);
    let near = suppressing(&underlay, 1);
    near.ctl("bridge set br0 --vlan-filtering on");
    near.ctl("port set vx0 --trunk 10,20");
    let wires = (Ns::new("s"), Ns::new("s"));
    near.ctl(&format!("port add p0 --bridge br0 --type tap --trunk 10,20 --netns {}", wires.0.name));
    near.ctl(&format!("port add p1 --bridge br0 --type tap --access 10 --netns {}", wires.1.name));
    let (trunk, access) = (Raw::open(&wires.0, "p0"), Raw::open(&wires.1, "p1"));
    let it: Host = (station(9), [10, 9, 0, 9]);
    let mac = mac_text(it.0);
    near.ctl(&format!("fdb add {mac} --port vx0 --vlan 10"));
    near.ctl(&format!("neigh add 10.9.0.9 --mac {mac} --bridge br0 --vlan 10"));
    let error = near.refused(&format!("neigh add 10.9.0.9 --mac {mac} --bridge br0 --vlan 0"));
    assert!(error.contains("filters VLANs"), "{error}");
    let ask = |raw: &Raw, bytes: &[u8], wait: u64| {
        raw.drain();
        raw.send(bytes).expect("sent");
        let arp = |bytes: &[u8]| untag(bytes).1 == ARP;
        raw.collect(1, Duration::from_millis(wait), arp).into_iter().next().map(|seen| seen.bytes)
    };
    let (one, two): (Host, Host) = ((station(1), [10, 9, 0, 1]), (station(2), [10, 9, 0, 2]));
    assert_eq!(ask(&trunk, &tagged(10, &who_has(it.1, one)), 5000), Some(tagged(10, &is_at(it, one))));
    assert_eq!(ask(&access, &who_has(it.1, two), 5000), Some(is_at(it, two)));
    assert_eq!(ask(&trunk, &tagged(20, &who_has(it.1, one)), 300), None, "another network");
    let one_known = ("10.9.0.1".to_owned(), mac_text(one.0));
    for vlan in [10, 20] {
        let filter = format!("--vlan {vlan}");
        eventually("he is heard in both", || known(&near, &filter, "dynamic").contains(&one_known));
    }
    // Static ones are where they were put; the mode's change forgets the others.
    near.ctl("port set vx0 --vlan default");
    near.ctl(&format!("neigh add 10.9.0.8 --mac {mac} --bridge br0"));
    let vlans = || {
        let all = near.json("neigh show");
        all.as_array()
            .expect("a list")
            .iter()
            .map(|one| one["vlan"].as_u64().expect("a number"))
            .collect::<Vec<_>>()
    };
    near.ctl("neigh flush");
    assert_eq!(vlans(), [1, 10], "the default PVID, unless it is said");
    near.ctl("bridge set br0 --vlan-filtering off");
    assert_eq!(vlans(), [0, 0]);
    Ok(())
}

/// Neighbours of the configuration come, change and go with it; those of run time stay.
pub fn by_reload() -> Outcome {
    let underlay = Underlay::new(2);
    let text = |suppress: bool, neighbours: &[(&str, u32)]| {
        let mut text = format!(
            "[[bridge]]\nname = \"br0\"\n[[port]]\nname = \"vx0\"\nbridge = \"br0\"\ntype = \"vxlan\"\nvni = 42\n\
             local = \"172.16.0.1\"\nremote = \"172.16.0.2\"\nneigh_suppress = {suppress}\n"
        );
        for (address, number) in neighbours {
            let mac = mac_text(station(*number));
            text += &format!("[[neigh]]\naddress = \"{address}\"\nmac = \"{mac}\"\nbridge = \"br0\"\n");
        }
        text
    };
    let daemon =
        Start::new(&underlay.hosts[0]).config(&text(true, &[("10.9.0.1", 1), ("fd09::2", 2)])).ready();
    let all = || {
        let all = daemon.json("neigh show");
        let one = |entry: &Value| {
            let text = |field: &str| entry[field].as_str().expect("text").to_owned();
            format!("{} {} {}", text("address"), text("mac"), text("origin"))
        };
        all.as_array().expect("a list").iter().map(one).collect::<Vec<_>>()
    };
    let line =
        |address: &str, number, origin: &str| format!("{address} {} {origin}", mac_text(station(number)));
    assert_eq!(all(), [line("10.9.0.1", 1, "configuration"), line("fd09::2", 2, "configuration")]);
    assert_eq!(daemon.port("vx0")["tunnel"]["neigh_suppress"], true);

    daemon.ctl(&format!("neigh add 10.9.0.7 --mac {} --bridge br0", mac_text(station(7))));
    daemon.write_config(&text(false, &[("10.9.0.1", 3)]));
    let report = daemon.json("reload");
    assert_eq!(
        (&report["changed"], &report["removed"]),
        (
            &json!(["port 'vx0'", "neighbour 10.9.0.1 on bridge 'br0'"]),
            &json!(["neighbour fd09::2 on bridge 'br0'"])
        )
    );
    assert_eq!(all(), [line("10.9.0.1", 3, "configuration"), line("10.9.0.7", 7, "runtime")]);
    assert_eq!(daemon.port("vx0")["tunnel"]["neigh_suppress"], false);

    daemon.write_config(&text(false, &[("10.9.0.1", 3), ("10.9.0.7", 8)]));
    let error = daemon.refused("reload");
    assert!(error.contains("10.9.0.7") && error.contains("run time"), "{error}");
    daemon.write_config(&text(false, &[("10.9.0.7", 7)]));
    let report = daemon.json("reload");
    assert_eq!(report["removed"], json!(["neighbour 10.9.0.1 on bridge 'br0'"]));
    assert!(report["warnings"][0].as_str().is_some_and(|text| text.contains("10.9.0.7")), "{report}");
    assert_eq!(all(), [line("10.9.0.7", 7, "configuration")]);
    daemon.write_config("");
    daemon.ctl("reload");
    assert_eq!(all(), Vec::<String>::new());
    for wrong in [
        text(true, &[("10.9.0.1", 1), ("10.9.0.1", 2)]),
        text(true, &[("10.9.0.1/24", 1)]),
        text(true, &[("255.255.255.255", 1)]),
    ] {
        daemon.write_config(&wrong);
        let error = daemon.refused("reload");
        assert!(error.contains(".toml:"), "{error}");
    }
    Ok(())
}
