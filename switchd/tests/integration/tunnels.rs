//! VXLAN: between two of ours, and between ours and the kernel's.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::harness::daemon::{Daemon, Start, mac_text};
use crate::harness::frame::{BROADCAST, Mac, station, test_frame};
use crate::harness::net::Ns;
use crate::harness::raw::Raw;
use crate::harness::stream::{Kind, Station, tcp, udp};
use crate::harness::underlay::{Underlay, at};
use crate::harness::{Outcome, eventually};

/// TCP and UDP of every size between stations on two hosts, over IPv4 and IPv6, with an MTU that fits and one that does not.
pub fn between_two_of_ours() -> Outcome {
    for v6 in [false, true] {
        let underlay = Underlay::new(2);
        let (near, far) = (underlay.switch(1, v6), underlay.switch(2, v6));
        for (round, mtu) in [(0, if v6 { 1430 } else { 1450 }), (2, 1500)] {
            // A program that sends datagrams does not send them again when it is told that they are too long.
            let df = if mtu == 1500 { "unset" } else { "inherit" };
            for daemon in [&near, &far] {
                daemon.ctl(&format!("port set vx0 --df {df}"));
            }
            let (left, right) = (Ns::with_ipv6("a"), Ns::with_ipv6("b"));
            let a = Station::plug(&near, (&underlay.hosts[0], &left), Kind::Tap, 1 + round, mtu, "");
            let b = Station::plug(&far, (&underlay.hosts[1], &right), Kind::Tap, 2 + round, mtu, "");
            tcp(&a, &b, false, 8 << 20);
            tcp(&a, &b, true, 8 << 20);
            udp(&a, &b, false);
            udp(&a, &b, true);
        }
        let remote = &near.port("vx0")["tunnel"]["remotes"][0];
        assert_eq!(
            (&remote["address"], &remote["mtu"]),
            (&at(2, v6).into(), &(if v6 { 1430 } else { 1450 }).into())
        );
        assert!(remote["counters"]["rx_frames"].as_u64() > Some(100), "{remote}");
        let stats = far.stats("vx0");
        assert!(
            stats["rx_segments"].as_u64() > stats["rx_frames"].as_u64(),
            "segments are merged again: {stats}"
        );
        let learned = near.json("fdb show --port vx0");
        assert_eq!(learned[0]["remote"], at(2, v6), "{learned}");
    }
    Ok(())
}

/// The kernel's own device at the other end.
pub fn with_the_kernel() -> Outcome {
    for v6 in [false, true] {
        let underlay = Underlay::new(2);
        let near = underlay.switch(1, v6);
        let (left, right) = (Ns::with_ipv6("a"), Ns::with_ipv6("b"));
        let host = &underlay.hosts[1];
        host.ip(&format!(
            "link add vx0 type vxlan id 42 local {} remote {} dstport 4789; \
             link add br0 type bridge mcast_snooping 0; link set vx0 master br0; link set vx0 up; link set br0 up",
            at(2, v6),
            at(1, v6)
        ));
        let mtu = if v6 { 1430 } else { 1450 };
        let a = Station::plug(&near, (&underlay.hosts[0], &left), Kind::Tap, 1, mtu, "");
        let b = Station::behind_veth((host, &right), 2, mtu);
        host.ip("link set p2 master br0");
        let began = Instant::now();
        tcp(&a, &b, false, 8 << 20);
        tcp(&a, &b, true, 8 << 20);
        assert!(began.elapsed() < Duration::from_secs(10), "it crawls: {:?}", began.elapsed());
        udp(&a, &b, false);
        udp(&a, &b, true);
        for reason in ["bad_offload", "bad_tunnel_header", "unknown_vni", "tx_error", "too_long"] {
            assert_eq!(near.drops("vx0", reason), 0, "{reason}");
        }
        let stats = near.stats("vx0");
        assert!(
            stats["rx_segments"].as_u64() > stats["rx_frames"].as_u64(),
            "segments are merged again: {stats}"
        );
    }
    Ok(())
}

/// What is flooded reaches every host once, and comes back to nobody; unicast goes to one host alone.
pub fn three_hosts() -> Outcome {
    let underlay = Underlay::new(3);
    let daemons: Vec<Daemon> = (1..=3).map(|n| underlay.switch(n, false)).collect();
    let wires: Vec<Ns> = (0..3).map(|_| Ns::new("s")).collect();
    let raws: Vec<Raw> = daemons
        .iter()
        .zip(&wires)
        .map(|(daemon, wire)| {
            daemon.ctl(&format!("port add t0 --bridge br0 --type tap --netns {}", wire.name));
            Raw::open(wire, "t0")
        })
        .collect();
    let hello = |n: u32| test_frame(BROADCAST, station(n), "hello");
    let heard = |n: usize, from: Mac| daemons[n].whereabouts(from).is_some();
    for n in 0..3 {
        raws[n as usize].send(&hello(n)).expect("sent");
    }
    eventually("all know all", || (0..3).all(|n| (0..3).all(|from| heard(n, station(from)))));
    let sent_to = |remote: usize| -> u64 {
        let port = daemons[0].port("vx0");
        let remotes = port["tunnel"]["remotes"].as_array().expect("a list").clone();
        let one = remotes.iter().find(|one| one["address"] == at(remote, false)).expect("there");
        one["counters"]["tx_frames"].as_u64().expect("a number")
    };
    let before = (sent_to(2), sent_to(3));
    raws[0].send(&test_frame(station(1), station(0), "to the second alone")).expect("sent");
    eventually("it went", || sent_to(2) == before.0 + 1);
    assert_eq!(sent_to(3), before.1);

    // A station moves from the second host to the third.
    raws[2].send(&test_frame(BROADCAST, station(1), "moved")).expect("sent");
    let behind = |n: usize| {
        let entries = daemons[n].json("fdb show --port vx0");
        let entries = entries.as_array().expect("a list").clone();
        entries.iter().find(|entry| entry["mac"] == mac_text(station(1))).map(|entry| entry["remote"].clone())
    };
    eventually("it is behind the third", || behind(0) == Some(at(3, false).into()));

    // A storm would count on for ever.
    let total =
        || daemons.iter().map(|daemon| daemon.stats("vx0")["rx_frames"].as_u64().unwrap_or(0)).sum::<u64>();
    let before = total();
    raws[0].send(&hello(0)).expect("sent");
    eventually("two hosts hear it", || total() == before + 2);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(total(), before + 2, "and nobody sends it on");
    Ok(())
}

/// Remotes come and go while the port runs; a static entry is behind one of them; strangers are met, or kept out.
pub fn remotes_change() -> Outcome {
    let underlay = Underlay::new(3);
    let near = Daemon::start(&underlay.hosts[0]);
    let far = underlay.switch(2, false);
    near.ctl("bridge add br0");
    near.ctl("port add vx0 --bridge br0 --type vxlan --vni 42 --local 172.16.0.1");
    let wires = (Ns::new("s"), Ns::new("s"));
    near.ctl(&format!("port add t0 --bridge br0 --type tap --netns {}", wires.0.name));
    far.ctl(&format!("port add t0 --bridge br0 --type tap --netns {}", wires.1.name));
    let (a, b) = (Raw::open(&wires.0, "t0"), Raw::open(&wires.1, "t0"));
    let remotes = || {
        let port = near.port("vx0");
        let list = port["tunnel"]["remotes"].as_array().expect("a list").clone();
        let text = |remote: &serde_json::Value| {
            format!("{} {}", remote["address"].as_str().expect("text"), remote["learned"])
        };
        list.iter().map(text).collect::<Vec<_>>()
    };
    eventually("a stranger is met", || {
        b.send(&test_frame(BROADCAST, station(2), "here I am")).expect("sent");
        remotes() == ["172.16.0.2 true"] && near.whereabouts(station(2)) == Some("vx0".into())
    });
    let sent = || far.stats("vx0")["rx_frames"].as_u64().expect("a number");
    let before = sent();
    a.send(&test_frame(station(2), station(1), "unicast finds it")).expect("sent");
    eventually("it arrives", || sent() == before + 1);

    // Who was met is no remote.
    near.ctl("port set vx0 --strict-remotes on");
    assert_eq!((remotes(), near.whereabouts(station(2))), (vec![], None));
    near.ctl("port set vx0 --strict-remotes off");

    near.ctl("port set vx0 --remote 172.16.0.2 --remote 172.16.0.3");
    assert_eq!(remotes(), ["172.16.0.2 false", "172.16.0.3 false"]);
    let fixed = mac_text(station(9));
    let refused = near.refused(&format!("fdb add {fixed} --port vx0"));
    assert!(
        refused.contains("give 'remote'") && refused.ends_with("existing: 172.16.0.2, 172.16.0.3"),
        "{refused}"
    );
    near.ctl(&format!("fdb add {fixed} --port vx0 --remote 172.16.0.3"));
    let refused = near.refused("port set vx0 --remote 172.16.0.2");
    assert!(
        refused.contains("port 'vx0'")
            && refused.contains("behind remote 172.16.0.3")
            && refused.ends_with(&format!("fdb del {fixed} --bridge br0")),
        "{refused}"
    );
    near.ctl(&format!("fdb del {fixed} --bridge br0"));
    near.ctl("port set vx0 --remote 172.16.0.3 --strict-remotes on");
    assert_eq!(remotes(), ["172.16.0.3 false"]);
    assert_eq!(near.whereabouts(station(2)), None);
    eventually("it is kept out", || {
        b.send(&test_frame(BROADCAST, station(2), "and now")).expect("sent");
        near.drops("vx0", "unknown_remote") > 0
    });
    assert_eq!(near.whereabouts(station(2)), None);

    near.ctl("port set vx0 --remote 172.16.0.2 --guard-local on");
    a.send(&test_frame(BROADCAST, station(1), "mine")).expect("sent");
    eventually("it is known", || near.whereabouts(station(1)) == Some("t0".into()));
    eventually("a thief is stopped", || {
        b.send(&test_frame(BROADCAST, station(1), "no, mine")).expect("sent");
        near.drops("vx0", "guarded") > 0
    });
    assert_eq!(near.whereabouts(station(1)), Some("t0".into()));
    Ok(())
}

/// Datagrams that are none of ours are counted and do no harm; several networks share a socket.
pub fn strange_datagrams() -> Outcome {
    let underlay = Underlay::new(2);
    let daemon = underlay.switch(1, false);
    daemon.ctl("bridge add br1");
    daemon.ctl("port add vx1 --bridge br1 --type vxlan --vni 43 --local 172.16.0.1 --remote 172.16.0.2");
    let wire = Ns::new("s");
    daemon.ctl(&format!("port add t1 --bridge br1 --type tap --netns {}", wire.name));
    let socket = underlay.hosts[1].enter(|| UdpSocket::bind("172.16.0.2:0")).expect("bound");
    let to: SocketAddr = "172.16.0.1:4789".parse().expect("an address");
    let send = |header: [u8; 8], frame: &[u8]| {
        socket.send_to(&[&header[..], frame].concat(), to).expect("sent");
    };
    let good = test_frame(BROADCAST, station(5), "hello");
    let drops = |reason: &str| daemon.drops("vx0", reason);
    for header in [[0, 0, 0, 0, 0, 0, 42, 0], [0x88, 0, 0, 0, 0, 0, 42, 0]] {
        send(header, &good);
    }
    socket.send_to(&[8, 0, 0], to).expect("sent");
    eventually("bad headers are counted", || drops("bad_tunnel_header") == 3);
    send([8, 0, 0, 0, 0, 0, 99, 0], &good);
    eventually("an unknown network is counted", || drops("unknown_vni") == 1);
    send([8, 0, 0, 0, 0, 0, 42, 0], &good[..9]);
    eventually("a stump is counted", || drops("runt") == 1);
    daemon.ctl("port set vx1 --strict-remotes on --remote 172.16.0.3");
    send([8, 0, 0, 0, 0, 0, 43, 0], &good);
    eventually("a stranger's is counted at the port it is for", || {
        daemon.drops("vx1", "unknown_remote") == 1
    });
    assert_eq!(drops("unknown_remote"), 0);
    daemon.ctl("port set vx1 --remote 172.16.0.2");
    send([8, 0, 0, 0, 0, 0, 43, 0], &good);
    eventually("the other network gets its own", || daemon.whereabouts(station(5)) == Some("vx1".into()));
    let received = |port: &str| daemon.stats(port)["rx_frames"].as_u64();
    assert_eq!(received("vx1"), Some(1));
    daemon.ctl("port set vx1 --remote 172.16.0.3");
    assert_eq!(received("vx1"), Some(1), "counters do not fall back when a remote leaves");

    // A switch that gets no CPU loses what does not fit its socket, and says so.
    daemon.signal(libc::SIGSTOP);
    for _ in 0..20_000 {
        send([8, 0, 0, 0, 0, 0, 99, 0], &[0; 1400]);
    }
    daemon.signal(libc::SIGCONT);
    eventually("what was missed is counted", || {
        let (missed, unknown) = (drops("rx_missed"), drops("unknown_vni"));
        missed > 0 && missed + unknown == 20_001
    });
    Ok(())
}

/// Packets whose senders are made up become remotes, but all of them have one port's share of the stations.
pub fn made_up_senders() -> Outcome {
    const STATIONS: u32 = 64;
    let underlay = Underlay::new(2);
    let daemon = Daemon::start(&underlay.hosts[0]);
    daemon.ctl(&format!("bridge add br0 --fdb-max {STATIONS}"));
    daemon.ctl("port add vx0 --bridge br0 --type vxlan --vni 42 --local 172.16.0.1");
    let wire = Ns::new("s");
    daemon.ctl(&format!("port add t0 --bridge br0 --type tap --netns {}", wire.name));
    let to: SocketAddr = "172.16.0.1:4789".parse().expect("an address");
    let senders: Vec<UdpSocket> = (101..109)
        .map(|n| {
            underlay.hosts[1].ip(&format!("addr add 172.16.0.{n}/24 dev wire"));
            underlay.hosts[1].enter(|| UdpSocket::bind(format!("172.16.0.{n}:0"))).expect("bound")
        })
        .collect();
    let flood = || {
        for n in 0..STATIONS {
            for (sender, remote) in senders.iter().zip(1..) {
                let frame = test_frame(BROADCAST, station(remote * 1000 + n), "made up");
                sender.send_to(&[&[8, 0, 0, 0, 0, 0, 42, 0][..], &frame].concat(), to).expect("sent");
            }
        }
    };
    let used = || daemon.json("bridge show br0")[0]["fdb_used"].as_u64();
    eventually("the table is full", || {
        flood();
        let remotes = daemon.port("vx0")["tunnel"]["remotes"].as_array().map(Vec::len);
        used() == Some(u64::from(STATIONS)) && remotes == Some(senders.len())
    });
    let local = Raw::open(&wire, "t0");
    for n in 1..=5 {
        local.send(&test_frame(BROADCAST, station(n), "local")).expect("sent");
        eventually("a local station is learned", || daemon.whereabouts(station(n)) == Some("t0".into()));
    }
    flood();
    eventually("all are in", || daemon.stats("vx0")["rx_frames"].as_u64() >= Some(u64::from(16 * STATIONS)));
    assert_eq!((1..=5).filter(|&n| daemon.whereabouts(station(n)) == Some("t0".into())).count(), 5);
    Ok(())
}

/// What cannot be is refused by name.
pub fn refused() -> Outcome {
    let underlay = Underlay::new(2);
    let daemon = underlay.switch(1, false);
    let vxlan = "port add vx9 --bridge br0 --type vxlan";
    for (line, words) in [
        (format!("{vxlan} --vni 42 --local 172.16.0.1"), "'vx0'"),
        (format!("{vxlan} --vni 7 --local 172.16.0.77"), "172.16.0.77"),
        (format!("{vxlan} --vni 7 --local 172.16.0.1 --remote fd16::2"), "IP version"),
        (format!("{vxlan} --vni 7 --local 172.16.0.1 --remote 172.16.0.1"), "no address of another host"),
        (format!("{vxlan} --vni 7"), "'local'"),
        (format!("{vxlan} --vni 7 --local 172.16.0.1 --ifname x"), "ifname"),
        ("port add p9 --bridge br0 --type tap --remote 172.16.0.2".into(), "remote"),
    ] {
        let error = daemon.refused(&line);
        assert!(error.contains(words), "{line}: {error}");
    }
    daemon.misused(&format!("{vxlan} --vni 16777216 --local 172.16.0.1"));
    underlay.hosts[0]
        .ip("link add k0 type vxlan id 5 local 172.16.0.1 remote 172.16.0.2 dstport 4790; link set k0 up");
    let error = daemon.refused(&format!("{vxlan} --vni 7 --local 172.16.0.1 --dstport 4790"));
    assert!(error.contains("4790") && error.contains("--dstport"), "{error}");
    assert_eq!(daemon.json("port show").as_array().map(Vec::len), Some(1));
    daemon.ctl("port del vx0");
    daemon.ctl(&format!("{vxlan} --vni 42 --local 172.16.0.1"));
    Ok(())
}

/// The underlay's namespace goes and comes back, and so does the port.
pub fn underlay_deleted() -> Outcome {
    let (ns, inside) = (Ns::new("v"), Ns::new("n"));
    let daemon = Daemon::start(&ns);
    inside.ip("addr add 172.16.9.1/32 dev lo; link set lo up");
    let name = inside.name.clone();
    let before = daemon.open_files();
    // Two that share an endpoint.
    for number in [0, 1] {
        daemon.ctl(&format!("bridge add br{number}"));
        daemon.ctl(&format!(
            "port add vx{number} --bridge br{number} --type vxlan --vni {number} --local 172.16.9.1 \
             --remote 172.16.9.2 --netns {name}"
        ));
        daemon.ctl(&format!("fdb add {} --port vx{number}", mac_text(station(9))));
    }
    let files = daemon.open_files();
    crate::harness::net::run("ip", &["netns", "del", &name]);
    daemon.wait_port_state("vx0", "gone");
    daemon.wait_port_state("vx1", "gone");
    eventually("its sockets are closed", || daemon.open_files() < files - 10);
    assert_eq!(daemon.fdb("").len(), 2, "what was configured stays");
    crate::harness::net::run("ip", &["netns", "add", &name]);
    inside.ip("addr add 172.16.9.1/32 dev lo; link set lo up");
    for port in ["vx0", "vx1"] {
        daemon.wait_port_state(port, "up");
        assert_eq!(daemon.port(port)["tunnel"]["remotes"].as_array().map(Vec::len), Some(1));
        assert_eq!(daemon.json(&format!("fdb show --port {port}"))[0]["remote"], "172.16.9.2");
    }
    eventually("as many as before", || daemon.open_files() <= files);
    // A port that comes later has nothing of them.
    daemon.ctl("bridge del br0 --with-ports");
    daemon.ctl("bridge del br1 --with-ports");
    eventually("all are closed", || daemon.open_files() <= before);
    daemon.ctl("bridge add br0");
    daemon.ctl(&format!("port add vx7 --bridge br0 --type vxlan --vni 7 --local 172.16.9.1 --netns {name}"));
    assert_eq!(daemon.port("vx7")["tunnel"]["remotes"], serde_json::json!([]));
    Ok(())
}

/// The file's remotes change without the port being made anew; a station without remote follows.
pub fn by_reload() -> Outcome {
    let underlay = Underlay::new(3);
    let text = |remotes: &str, station: &str| {
        format!(
            "[[bridge]]\nname = \"br0\"\n[[port]]\nname = \"vx0\"\nbridge = \"br0\"\ntype = \"vxlan\"\nvni = 42\n\
             local = \"172.16.0.1\"\nremote = {remotes}\n[[fdb]]\nmac = \"02:00:00:00:00:77\"\nport = \"vx0\"\n{station}"
        )
    };
    let daemon = Start::new(&underlay.hosts[0]).config(&text("\"172.16.0.2\"", "")).ready();
    let remote = || daemon.json("fdb show --port vx0")[0]["remote"].clone();
    assert_eq!(remote(), "172.16.0.2");
    daemon.write_config(&text("\"172.16.0.3\"", ""));
    assert_eq!(daemon.json("reload")["warnings"], serde_json::json!([]));
    assert_eq!(remote(), "172.16.0.3");
    daemon.write_config(&text("[\"172.16.0.2\", \"172.16.0.3\"]", "remote = \"172.16.0.2\"\n"));
    daemon.ctl("reload");
    assert_eq!(remote(), "172.16.0.2");
    let nothing = daemon.json("reload");
    assert_eq!((&nothing["added"], &nothing["changed"]), (&serde_json::json!([]), &serde_json::json!([])));
    let refused = daemon.refused("fdb add 02:00:00:00:00:77 --port vx0 --remote 172.16.0.3 --may-exist");
    assert!(refused.contains("02:00:00:00:00:77"), "{refused}");
    Ok(())
}

/// A tunnel port in a configuration with a bridge `br0`.
fn in_file(name: &str, options: &str) -> String {
    format!("[[port]]\nname = \"{name}\"\nbridge = \"br0\"\nlocal = \"172.16.0.1\"\n{options}\n")
}

/// A mapped port, whose bridge stops to filter, and a refusal after that: it is there again. Static stations behind one are in its
/// VLANs.
pub fn mapped_by_reload() -> Outcome {
    let underlay = Underlay::new(2);
    let station = "[[fdb]]\nmac = \"02:00:00:00:00:77\"\nport = \"vx0\"\n";
    let mapped = in_file(
        "vx0",
        "type = \"vxlan\"\nvni_map = \"20:1020,10:1010\"\nremote = [\"172.16.0.2\", \"172.16.0.3\"]",
    );
    let mapped = format!(
        "[[bridge]]\nname = \"br0\"\nvlan_filtering = true\n{mapped}{station}vlan = 20\nremote = \"172.16.0.3\"\n"
    );
    let plain = in_file("vx0", "type = \"vxlan\"\nvni = 1010\nremote = \"172.16.0.2\"");
    let plain = format!("[[bridge]]\nname = \"br0\"\n{plain}{station}");
    let daemon = Start::new(&underlay.hosts[0]).config(&mapped).ready();
    let vlans = || daemon.port("vx0")["vlan"]["trunk"].clone();
    let stations = || daemon.fdb("--port vx0").into_iter().map(|entry| entry.1).collect::<Vec<_>>();
    daemon.ctl("fdb add 02:00:00:00:00:78 --port vx0 --vlan 10 --remote 172.16.0.2");
    assert_eq!(stations(), [10, 20]);
    let refused = daemon.refused("fdb add 02:00:00:00:00:79 --port vx0 --vlan 30 --remote 172.16.0.2");
    assert!(refused.contains("but 10, 20"), "{refused}");
    let refused = daemon.refused("port set vx0 --remote 172.16.0.2");
    assert!(refused.ends_with("fdb del 02:00:00:00:00:77 --bridge br0 --vlan 20"), "{refused}");

    daemon.write_config(&format!("{plain}remote = \"172.16.0.9\"\n"));
    let refused = daemon.refused("reload");
    assert!(refused.contains("172.16.0.9") && !refused.contains("taking back"), "{refused}");
    assert_eq!((vlans(), stations()), (serde_json::json!([10, 20]), vec![10, 20]));

    daemon.ctl("fdb del 02:00:00:00:00:78 --bridge br0 --vlan 10");
    for (text, trunk, vlan) in
        [(&plain, serde_json::json!([]), 0), (&mapped, serde_json::json!([10, 20]), 20)]
    {
        daemon.write_config(text);
        daemon.ctl("reload");
        assert_eq!((vlans(), stations()), (trunk, vec![vlan]));
        assert_eq!(daemon.json("reload")["changed"], serde_json::json!([]));
    }
    Ok(())
}

/// A tunnel gets another name, and two swap their other ends: neither is in the way of the other.
pub fn in_place_by_reload() -> Outcome {
    let underlay = Underlay::new(3);
    let vxlan = "type = \"vxlan\"\nvni = 100\nremote = \"172.16.0.2\"";
    let text = |name: &str, first: &str, second: &str| {
        let gre = |name: &str, remote: &str| {
            in_file(name, &format!("type = \"gretap\"\nkey = 7\nremote = \"{remote}\""))
        };
        let all = [in_file(name, vxlan), gre("g1", first), gre("g2", second)].concat();
        format!("[[bridge]]\nname = \"br0\"\n{all}")
    };
    let (two, three) = ("172.16.0.2", "172.16.0.3");
    let daemon = Start::new(&underlay.hosts[0]).config(&text("vx0", two, three)).ready();
    let remote = |port: &str| daemon.port(port)["tunnel"]["remotes"][0]["address"].clone();
    daemon.write_config(&text("vxnew", two, three));
    let report = daemon.json("reload");
    assert_eq!(report["added"], serde_json::json!(["port 'vxnew'"]));
    assert_eq!(report["removed"], serde_json::json!(["port 'vx0'"]));
    assert_eq!((remote("vxnew"), daemon.port_state("vxnew")), (two.into(), "up".to_owned()));

    daemon.write_config(&text("vxnew", three, two));
    assert_eq!(daemon.json("reload")["changed"], serde_json::json!(["port 'g1'", "port 'g2'"]));
    assert_eq!((remote("g1"), remote("g2")), (three.into(), two.into()));
    // What is refused at the end leaves them as they are.
    let bad = "[[fdb]]\nmac = \"02:00:00:00:00:77\"\nport = \"g1\"\nremote = \"172.16.0.9\"\n";
    daemon.write_config(&format!("{}{bad}", text("vx0", two, three)));
    let refused = daemon.refused("reload");
    assert!(refused.contains("172.16.0.9") && !refused.contains("taking back"), "{refused}");
    assert_eq!((remote("g1"), remote("g2"), remote("vxnew")), (three.into(), two.into(), two.into()));

    // One that needs the sockets of another comes when that has gone, whatever their networks.
    for (name, kind) in [
        ("a", "type = \"vxlan\"\nvni = 1\ndstport = 5000\nsrcport_range = \"5001-5009\""),
        ("b", "type = \"vxlan\"\nvni = 2\ndstport = 5000\ndev = \"wire\""),
        ("c", "type = \"geneve\"\nvni = 2\ndstport = 5000\nsrcport_range = \"5001-5009\""),
        ("d", "type = \"vxlan\"\nvni = 3\ndstport = 5005"),
        ("e", "type = \"gretap\"\nkey = 1\nremote = \"172.16.0.2\""),
        ("f", "type = \"gretap\"\nkey = 2\nremote = \"172.16.0.2\"\ndev = \"wire\""),
    ] {
        daemon.write_config(&format!("[[bridge]]\nname = \"br0\"\n{}", in_file(name, kind)));
        daemon.ctl("reload");
        assert_eq!(daemon.port_state(name), "up");
    }
    Ok(())
}

/// Each other end is counted by itself, in JSON, in tables and for Prometheus.
pub fn counted_by_remote() -> Outcome {
    let underlay = Underlay::new(3);
    let daemon = underlay.switch(1, false);
    let wire = Ns::new("s");
    daemon.ctl(&format!("port add t0 --bridge br0 --type tap --netns {}", wire.name));
    daemon.ctl(&format!("fdb add {} --port vx0 --remote 172.16.0.3", mac_text(station(3))));
    let raw = Raw::open(&wire, "t0");
    let sent = |remote: usize| {
        let stats = daemon.stats("vx0");
        let all = stats["remotes"].as_array().expect("a list").clone();
        let one = all.iter().find(|one| one["remote"] == at(remote, false)).expect("there");
        one["tx_frames"].as_u64().expect("a number")
    };
    let before = (sent(2), sent(3));
    raw.send(&test_frame(station(3), station(1), "to the third alone")).expect("sent");
    eventually("it is counted", || sent(3) > before.1);
    assert_eq!(sent(2), before.0);
    let table = daemon.ctl("stats vx0");
    assert!(table.contains("vx0 via 172.16.0.3") && !daemon.ctl("stats").contains("via"), "{table}");
    let (_, _, page) = daemon.http("GET", "/metrics", "");
    let sample = "vswitch_remote_transmit_frames_total{bridge=\"br0\",port=\"vx0\",remote=\"172.16.0.3\"} ";
    let value = page.lines().find_map(|line| line.strip_prefix(sample)).unwrap_or_else(|| panic!("{page}"));
    assert_ne!(value, "0");

    let refused = daemon.refused("port set vx0 --remote none");
    assert!(refused.contains("behind remote 172.16.0.3"), "{refused}");
    daemon.ctl(&format!("fdb del {} --bridge br0", mac_text(station(3))));
    let refused = daemon.refused("port set vx0 --remote none --remote 172.16.0.2");
    assert!(refused.contains("'none'"), "{refused}");
    daemon.ctl("port set vx0 --remote none");
    assert_eq!(daemon.port("vx0")["tunnel"]["remotes"], serde_json::json!([]));
    let refused = daemon.refused(&format!("fdb add {} --port vx0", mac_text(station(3))));
    assert!(refused.ends_with("vswitchctl port set vx0 --remote IP"), "{refused}");
    Ok(())
}
