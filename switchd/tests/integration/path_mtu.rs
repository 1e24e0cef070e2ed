//! Tunnels over an underlay that takes less than the stations send: their MTU is 1500, and so is the underlay's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::daemon::Daemon;
use crate::harness::frame::{Q, TEST, Transport, check_ip, frame, station, untag};
use crate::harness::net::Ns;
use crate::harness::raw::Raw;
use crate::harness::stream::{Kind, Station, connect, tcp};
use crate::harness::underlay::Underlay;
use crate::harness::{Outcome, PATIENCE, eventually};

/// What fits one packet of an underlay of 1500.
const INNER_MTU: u64 = 1450;

/// Two hosts with a switch each, and a station at each.
struct Pair {
    underlay: Underlay,
    near: Daemon,
    far: Daemon,
    left: Ns,
    right: Ns,
}

impl Pair {
    fn new(v6: bool) -> Pair {
        let underlay = Underlay::new(2);
        let (near, far) = (underlay.switch(1, v6), underlay.switch(2, v6));
        Pair { underlay, near, far, left: Ns::with_ipv6("a"), right: Ns::with_ipv6("b") }
    }

    fn stations(&self, kind: Kind, numbers: (u8, u8)) -> (Station<'_>, Station<'_>) {
        let hosts = &self.underlay.hosts;
        (
            Station::plug(&self.near, (&hosts[0], &self.left), kind, numbers.0, 1500, ""),
            Station::plug(&self.far, (&hosts[1], &self.right), kind, numbers.1, 1500, ""),
        )
    }
}

/// Pings, and says how it went; `mode` is `do` (DF), `dont` or `want` (DF, and shorter when it is told so).
fn ping(
    from: &Station<'_>,
    to: &Station<'_>,
    v6: bool,
    mode: &str,
    payload: usize,
    count: u8,
) -> (bool, String) {
    let (payload, count, to) = (payload.to_string(), count.to_string(), to.ip(v6).to_string());
    let options = ["-i", "0.2", "-W", "2", "-M", mode, "-s", &payload, "-c", &count, &to];
    match from.ns.try_run("ping", &options) {
        Ok(text) => (true, text),
        Err(text) => (false, text),
    }
}

fn fragmented(daemon: &Daemon) -> u64 {
    daemon.stats("vx0")["tx_fragmented"].as_u64().expect("a number")
}

fn too_big(daemon: &Daemon) -> u64 {
    daemon.drops("vx0", "too_big")
}

fn inner_mtu(daemon: &Daemon) -> u64 {
    daemon.port("vx0")["tunnel"]["remotes"][0]["mtu"].as_u64().expect("a number")
}

/// What may not be fragmented is answered, and counted; the rest goes in fragments outside, and is counted.
pub fn senders_are_told() -> Outcome {
    let pair = Pair::new(false);
    let (near, far) = (&pair.near, &pair.far);
    let (a, b) = pair.stations(Kind::Tap, (1, 2));
    let (reached, text) = ping(&a, &b, false, "dont", 1472, 1);
    assert!(reached, "{text}");
    assert_eq!((fragmented(near), fragmented(far)), (1, 1), "there and back");
    assert_eq!((too_big(near), too_big(far)), (0, 0));

    let (reached, text) = ping(&a, &b, false, "do", 1422, 1);
    assert!(reached, "it fits to the byte: {text}");
    let (reached, text) = ping(&a, &b, false, "do", 1472, 1);
    assert!(!reached && text.contains(&format!("mtu = {INNER_MTU}")), "{text}");
    assert!(text.contains(&format!("From {}", b.v4)), "by its destination: {text}");
    assert_eq!((too_big(near), fragmented(near)), (1, 1));
    let (reached, text) = ping(&a, &b, false, "want", 1472, 1);
    assert!(reached, "its kernel knows now: {text}");
    assert_eq!((fragmented(near), fragmented(far)), (1, 2), "the other's replies without DF");

    let (reached, text) = ping(&a, &b, true, "want", 1452, 3);
    assert!(reached && text.contains(&format!("mtu={INNER_MTU}")), "{text}");
    assert!(too_big(near) >= 2, "{}", near.stats("vx0"));
    assert_eq!((fragmented(near), fragmented(far)), (1, 2), "never of IPv6");

    // What is not IP cannot be told.
    let wires = (Ns::new("s"), Ns::new("s"));
    for (daemon, wire) in [(near, &wires.0), (far, &wires.1)] {
        daemon.ctl(&format!("port add t0 --bridge br0 --type tap --netns {}", wire.name));
    }
    let (here, there) = (Raw::open(&wires.0, "t0"), Raw::open(&wires.1, "t0"));
    for tags in [&[][..], &[(Q, 5)]] {
        let bytes = frame(station(2), station(1), tags, TEST, &[0x33; 1500]);
        here.send(&bytes).expect("sent");
        assert_eq!(there.collect(1, PATIENCE, |seen| seen == bytes).len(), 1);
    }
    assert_eq!(fragmented(near), 3);
    let text = near.http("GET", "/metrics", "").2;
    assert!(text.contains("vswitch_port_transmit_fragmented_total{bridge=\"br0\",port=\"vx0\"} 3"), "{text}");
    Ok(())
}

/// Nobody has to set anything up; and TCP, which finds out what fits, is never fragmented.
pub fn tcp_over_a_smaller_underlay() -> Outcome {
    for v6 in [false, true] {
        let pair = Pair::new(v6);
        assert_eq!(inner_mtu(&pair.near), if v6 { INNER_MTU - 20 } else { INNER_MTU });
        for (kind, numbers) in [(Kind::Plain, (1, 2)), (Kind::Tap, (3, 4)), (Kind::Packet, (5, 6))] {
            let (left, right) = (Ns::with_ipv6("a"), Ns::with_ipv6("b"));
            let hosts = &pair.underlay.hosts;
            let a = Station::plug(&pair.near, (&hosts[0], &left), kind, numbers.0, 1500, "");
            let b = Station::plug(&pair.far, (&hosts[1], &right), kind, numbers.1, 1500, "");
            tcp(&a, &b, false, 4 << 20);
            tcp(&b, &a, true, 4 << 20);
            if kind == Kind::Plain {
                assert!(too_big(&pair.near) > 0 && too_big(&pair.far) > 0, "frames of 1500 bytes were sent");
            }
        }
        assert_eq!((fragmented(&pair.near), fragmented(&pair.far)), (0, 0));
    }
    Ok(())
}

/// An IP packet with right lengths and checksums, from one station to another.
fn question(v6: bool, df: bool, protocol: u8, len: usize) -> Vec<u8> {
    let mut packet = if v6 {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(len - 40).expect("fits").to_be_bytes());
        packet.extend([protocol, 64]);
        for last in [1, 2] {
            packet.extend([0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        packet
    } else {
        let total = u16::try_from(len).expect("fits").to_be_bytes();
        let flags = if df { 0x40 } else { 0 };
        let hosts = [10, 9, 0, 1, 10, 9, 0, 2];
        let mut packet =
            [&[0x45, 0, total[0], total[1], 0, 7, flags, 0, 64, protocol, 0, 0][..], &hosts].concat();
        let words = packet.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
        let sum: u32 = words.sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        packet[10..12].copy_from_slice(&(!u16::try_from(sum).expect("folded")).to_be_bytes());
        packet
    };
    packet.resize(len, 0x44);
    frame(station(2), station(1), &[], if v6 { 0x86dd } else { 0x0800 }, &packet)
}

/// The kernel's bridge and vxlan, asked the same, answer the same: everything but the kernel's choice of header fields.
pub fn as_linux_tells() -> Outcome {
    let underlay = Underlay::new(3);
    let (theirs, ours) = (&underlay.hosts[0], underlay.switch(2, false));
    ours.ctl("port set vx0 --remote 172.16.0.3");
    theirs.ip(
        "link add vx0 mtu 1500 type vxlan id 42 local 172.16.0.1 remote 172.16.0.3 dstport 4789; \
         link add br0 type bridge mcast_snooping 0; link set vx0 master br0; link set vx0 up; link set br0 up",
    );
    let wires = (Ns::new("s"), Ns::new("s"));
    theirs.veth("t0", &wires.0, "s0", 1500);
    theirs.ip("link set t0 master br0");
    ours.ctl(&format!("port add s0 --bridge br0 --type tap --netns {}", wires.1.name));
    let stations = [Raw::open(&wires.0, "s0"), Raw::open(&wires.1, "s0")];
    let is_answer = |bytes: &[u8]| bytes[..6] == station(1) && bytes[6..12] == station(2);
    for (v6, df, protocol, len, answered) in [
        (false, true, 17, 1500, true),
        (false, true, 6, 1451, true),
        (false, true, 17, 1450, false),
        (false, false, 17, 1500, false),
        (true, true, 17, 1500, true),
        (true, true, 6, 1451, true),
        (true, true, 17, 1450, false),
    ] {
        let context = format!("IPv6 {v6}, DF {df}, protocol {protocol}, {len} bytes");
        let answers = stations.each_ref().map(|socket| {
            socket.send(&question(v6, df, protocol, len)).expect("sent");
            let wait = if answered { PATIENCE } else { Duration::from_millis(100) };
            socket.collect(1, wait, is_answer).pop().map(|seen| seen.bytes)
        });
        assert_eq!(answers.each_ref().map(Option::is_some), [answered; 2], "{context}");
        // Ethernet header, addresses, and the message with what it quotes.
        let (addresses, message) = if v6 { (22, 54) } else { (26, 34) };
        let compared = |bytes: &Vec<u8>| {
            (bytes[..14].to_vec(), bytes[addresses..message].to_vec(), bytes[message..].to_vec())
        };
        let [theirs, ours] = answers.each_ref().map(|answer| answer.as_ref().map(compared));
        assert_eq!(ours, theirs, "{context}");
    }
    assert_eq!((too_big(&ours), fragmented(&ours)), (4, 1));
    Ok(())
}

/// `set` fragments nothing, `unset` everything; both while the port runs.
pub fn by_mode() -> Outcome {
    let pair = Pair::new(false);
    let near = &pair.near;
    let (a, b) = pair.stations(Kind::Tap, (1, 2));
    near.ctl("port set vx0 --df unset");
    assert_eq!(near.port("vx0")["tunnel"]["df"], "unset");
    let (reached, text) = ping(&a, &b, false, "do", 1472, 1);
    assert!(reached, "{text}");
    assert_eq!((fragmented(near), too_big(near)), (1, 0));

    near.ctl("port set vx0 --df set");
    let (reached, text) = ping(&a, &b, false, "dont", 1472, 1);
    assert!(!reached && text.contains(&format!("mtu = {INNER_MTU}")), "{text}");
    assert_eq!((fragmented(near), too_big(near)), (1, 1));
    let wire = Ns::new("s");
    near.ctl(&format!("port add t0 --bridge br0 --type tap --netns {}", wire.name));
    Raw::open(&wire, "t0").send(&frame(station(2), station(1), &[], TEST, &[0; 1500])).expect("sent");
    eventually("what is not IP is counted", || too_big(near) == 2);
    assert_eq!(fragmented(near), 1);

    // Nor does anything leave that is longer than a datagram can be.
    near.ctl("port set vx0 --df unset");
    near.ctl(&format!("port add t1 --bridge br0 --type tap --mtu 65521 --netns {}", wire.name));
    Raw::open(&wire, "t1").send(&frame(station(2), station(1), &[], TEST, &[0; 65_521])).expect("sent");
    eventually("and is counted", || too_big(near) == 3);

    let refused = near.refused("port set t0 --df set");
    assert!(refused.contains("'df'") && refused.contains("tunnel"), "{refused}");
    near.misused("port set vx0 --df perhaps");
    Ok(())
}

/// The segment size in the SYN that arrives at a socket, if that is of TCP and intact.
fn announced(socket: &Raw, v6: bool) -> u16 {
    let is_syn = |bytes: &[u8]| {
        let (_, ethertype, at) = untag(bytes);
        let l4 = at + if v6 { 40 } else { 20 };
        let ip = if v6 { 0x86dd } else { 0x0800 };
        ethertype == ip && bytes.get(l4 + 13).is_some_and(|flags| flags & 2 != 0)
    };
    let seen = socket
        .collect(1, PATIENCE, |bytes| is_syn(bytes) && matches!(check_ip(bytes), Ok(Transport::Tcp { .. })));
    let bytes = &seen.first().expect("a SYN whose checksums are right").bytes;
    let option = untag(bytes).2 + if v6 { 60 } else { 40 };
    assert_eq!(bytes[option..option + 2], [2, 4], "Linux's first option");
    u16::from_be_bytes([bytes[option + 2], bytes[option + 3]])
}

/// SYN and SYN-ACK, out of one switch only: one leaves by its tunnel, the other arrives there.
pub fn connections_are_clamped() -> Outcome {
    let pair = Pair::new(false);
    let (a, b) = pair.stations(Kind::Plain, (1, 2));
    for (clamp, v6, mss, count) in
        [("off", false, 1460, 0), ("on", false, 1410, 2), ("on", true, 1390, 4), ("off", true, 1440, 4)]
    {
        pair.near.ctl(&format!("port set vx0 --mss-clamp {clamp}"));
        let here = Raw::open(&pair.left, &a.ifname);
        let there = Raw::open(&pair.right, &b.ifname);
        drop(connect(&a, &b, v6));
        assert_eq!((announced(&there, v6), announced(&here, v6)), (mss, mss), "{clamp}, IPv6: {v6}");
        assert_eq!(pair.near.stats("vx0")["mss_clamped"], count);
    }
    assert_eq!(pair.far.stats("vx0")["mss_clamped"], 0);
    // With it nobody has to be told anything.
    pair.near.ctl("port set vx0 --mss-clamp on");
    let (before, told) = (too_big(&pair.near), too_big(&pair.far));
    tcp(&a, &b, false, 1 << 20);
    tcp(&b, &a, true, 1 << 20);
    assert_eq!((too_big(&pair.near), too_big(&pair.far)), (before, told));
    Ok(())
}

/// TCP goes on while the underlay takes less, and more again, and the operator is told.
pub fn the_underlay_shrinks() -> Outcome {
    let pair = Pair::new(false);
    let (near, far) = (&pair.near, &pair.far);
    let (plain, tap) = (pair.stations(Kind::Plain, (1, 2)), (Ns::with_ipv6("c"), Ns::with_ipv6("d")));
    let hosts = &pair.underlay.hosts;
    let tap = (
        Station::plug(near, (&hosts[0], &tap.0), Kind::Tap, 3, 1500, ""),
        Station::plug(far, (&hosts[1], &tap.1), Kind::Tap, 4, 1500, ""),
    );
    let done = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let streams = [(&plain, 2 << 20, false), (&tap, 16 << 20, true)].map(|(stations, len, v6)| {
            let done = &done;
            scope.spawn(move || {
                let mut rounds = 0;
                while !done.load(Ordering::Relaxed) {
                    tcp(&stations.0, &stations.1, v6, len);
                    rounds += 1;
                }
                rounds
            })
        });
        // The others must end when this one panics.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for (mtu, inner) in [(1400, 1350), (1500, 1450), (1350, 1300), (1600, 1550)] {
                pair.underlay.set_mtu(mtu);
                eventually("it is known", || inner_mtu(near) == inner && inner_mtu(far) == inner);
                let received = || far.stats("vx0")["rx_bytes"].as_u64().expect("a number");
                let before = received();
                eventually("it goes on", || received() > before + (4 << 20));
                std::thread::sleep(Duration::from_millis(300));
            }
        }));
        done.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        streams.map(|stream| stream.join().expect("no panic"))
    });
    assert!(rounds.iter().all(|rounds| *rounds > 0), "{rounds:?}");
    let log = near.log();
    for inner in [1450, 1350, 1300] {
        let line = format!("frames with up to {inner} bytes of payload");
        assert_eq!(log.matches(&line).count(), if inner == 1450 { 2 } else { 1 }, "{line}: {log}");
    }
    Ok(())
}

/// However many ways there are, each is looked at again soon, and one line tells of all.
pub fn many_ways_change_at_once() -> Outcome {
    let underlay = Underlay::new(1);
    underlay.hosts[0].ip("route add 172.17.0.0/16 dev wire");
    let daemon = Daemon::start(&underlay.hosts[0]);
    for port in 0..3 {
        let remotes: Vec<String> = (1..=200).map(|n| format!("--remote 172.17.{port}.{n}")).collect();
        daemon.ctl(&format!("bridge add br{port}"));
        daemon.ctl(&format!(
            "port add vx{port} --bridge br{port} --type vxlan --vni {port} --local 172.16.0.1 {}",
            remotes.join(" ")
        ));
    }
    let all = |mtu: u64| {
        (0..3).all(|port| {
            let port = daemon.port(&format!("vx{port}"));
            let remotes = port["tunnel"]["remotes"].as_array().expect("a list").clone();
            remotes.len() == 200 && remotes.iter().all(|remote| remote["mtu"] == mtu)
        })
    };
    assert!(all(1450), "they are looked at when the port is added");
    underlay.set_mtu(1400);
    eventually("all have changed", || all(1350));
    let told = daemon.log().matches("with up to 1350 bytes").count();
    assert_eq!(told, 3, "a line a port: {}", daemon.log());
    Ok(())
}

/// One line says what would be better, where it is looked for; none when all is well.
pub fn operators_are_told() -> Outcome {
    let underlay = Underlay::new(2);
    let daemon = Daemon::start(&underlay.hosts[0]);
    daemon.ctl("bridge add br0");
    let add = "port add vx0 --bridge br0 --type vxlan --vni 42 --local 172.16.0.1 --remote 172.16.0.2";
    let words: Vec<&str> = add.split(' ').collect();
    let output = daemon.try_ctl(&words);
    let hint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert_eq!(hint.lines().count(), 1, "{hint}");
    for part in ["hint: port 'vx0'", "1450 bytes", "172.16.0.2", "stations MTU 1450", "underlay MTU 1550"] {
        assert!(hint.contains(part), "{part}: {hint}");
    }
    let sentence = hint.trim_end().trim_start_matches("hint: ");
    assert!(daemon.log().contains(sentence), "{}", daemon.log());
    assert_eq!(daemon.port("vx0")["tunnel"]["hint"], sentence);
    let explained = daemon.ctl("port explain vx0");
    assert!(
        explained.contains(sentence) && explained.contains("with up to 1450 bytes of payload"),
        "{explained}"
    );
    assert!(daemon.ctl("port show vx0").contains(sentence));

    daemon.ctl("port del vx0");
    let output = daemon.try_ctl(&[&["--json"], &words[..]].concat());
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let port: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(port["tunnel"]["hint"], sentence);

    daemon.ctl("port del vx0");
    underlay.set_mtu(1550);
    let output = daemon.try_ctl(&words);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(daemon.port("vx0")["tunnel"]["hint"].is_null());
    Ok(())
}
