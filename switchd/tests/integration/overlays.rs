//! Every kind of tunnel and every option of one: between two of ours, and with others at the other end.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::harness::daemon::{Daemon, Start, folder};
use crate::harness::frame::{BROADCAST, Mac, frame, station, test_frame};
use crate::harness::net::{Ns, Offloads, has_program, run};
use crate::harness::ovs::Ovs;
use crate::harness::raw::{self, Raw};
use crate::harness::stream::{Kind, Station, tcp, udp};
use crate::harness::underlay::{Underlay, at};
use crate::harness::{Outcome, Skip, eventually};

/// A bridge with a tunnel `tun0` to the other of two hosts.
fn tunnel(underlay: &Underlay, host: usize, v6: bool, options: &str) -> Daemon {
    let daemon = Daemon::start(&underlay.hosts[host - 1]);
    daemon.ctl("bridge add br0");
    daemon.ctl(&format!(
        "port add tun0 --bridge br0 --local {} --remote {} {options}",
        at(host, v6),
        at(3 - host, v6)
    ));
    daemon
}

fn mtu(daemon: &Daemon) -> u32 {
    let mtu = daemon.port("tun0")["mtu"].as_u64().expect("a number");
    u32::try_from(mtu).expect("an MTU")
}

/// TCP and UDP over every kind, with stations whose MTU fits and with ones whose MTU does not.
pub fn every_kind() -> Outcome {
    for (v6, options, overhead) in [
        (false, "--type vxlan --vni 7 --udp-csum off", 50),
        (true, "--type vxlan --vni 7 --udp-csum off --dev wire", 70),
        (false, "--type vxlan --vni 7 --dstport 4790 --srcport-range 50000-50003 --tos inherit --ttl 9", 50),
        (false, "--type geneve --vni 16777215", 50),
        (true, "--type geneve --vni 0 --df set", 70),
        (false, "--type gretap", 38),
        (false, "--type gretap --key 4000000000 --csum on --seq on --df unset", 50),
        (true, "--type ip6gretap --key 0", 62),
        (false, "--type erspan --key 1023 --erspan-index 1048575", 50),
        (true, "--type ip6erspan --key 5 --erspan-ver 2 --erspan-dir egress --erspan-hwid 63", 74),
    ] {
        let underlay = Underlay::new(2);
        let (near, far) = (tunnel(&underlay, 1, v6, options), tunnel(&underlay, 2, v6, options));
        let fits = 1500 - overhead;
        assert_eq!((mtu(&near), mtu(&far)), (fits, fits), "{options}");
        for (round, mtu) in [(0, fits), (2, 1500)] {
            let (left, right) = (Ns::with_ipv6("a"), Ns::with_ipv6("b"));
            let a = Station::plug(&near, (&underlay.hosts[0], &left), Kind::Tap, 1 + round, mtu, "");
            let b = Station::plug(&far, (&underlay.hosts[1], &right), Kind::Tap, 2 + round, mtu, "");
            tcp(&a, &b, false, 1 << 20);
            tcp(&a, &b, true, 1 << 20);
            if mtu == fits {
                udp(&a, &b, false);
            }
        }
        for reason in ["bad_offload", "bad_tunnel_header", "unknown_vni", "unknown_remote", "tx_error"] {
            assert_eq!(near.drops("tun0", reason), 0, "{options}: {reason}");
        }
    }
    Ok(())
}

/// An outer packet on the underlay: what is in its IP header, and the rest.
struct Outer {
    tos: u8,
    ttl: u8,
    dont_fragment: bool,
    protocol: u8,
    payload: Vec<u8>,
}

/// The packets that hold a frame with `text` in it, IPv4 only.
fn outer(wire: &Raw, text: &str) -> Outer {
    let holds = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    let seen = wire.collect(1, Duration::from_secs(10), holds);
    let bytes = &seen.first().unwrap_or_else(|| panic!("no packet with '{text}'")).bytes[14..];
    Outer {
        tos: bytes[1],
        ttl: bytes[8],
        dont_fragment: bytes[6] & 0x40 != 0,
        protocol: bytes[9],
        payload: bytes[20..].to_vec(),
    }
}

/// An IPv4 packet of no protocol, with `text` in it.
fn ipv4(to: Mac, from: Mac, tos: u8, fragment: u8, text: &str) -> Vec<u8> {
    let len = u8::try_from(20 + text.len()).expect("a short text");
    let mut header = [0x45, tos, 0, len, 0, 1, fragment, 0, 64, 253, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    finish(&mut header);
    frame(to, from, &[], 0x0800, &[&header, text.as_bytes()].concat())
}

/// What the options say of outer packets is in them.
pub fn outer_packets() -> Outcome {
    let underlay = Underlay::new(2);
    let daemon = tunnel(
        &underlay,
        1,
        false,
        "--type vxlan --vni 7 --ttl 9 --tos 0xb8 --srcport-range 50000-50003 --udp-csum off",
    );
    let ns = Ns::new("s");
    daemon.ctl(&format!("port add t0 --bridge br0 --type tap --netns {}", ns.name));
    let (station_side, wire) = (Raw::open(&ns, "t0"), underlay.arrivals(2));
    let send = |frame: &[u8]| station_side.send(frame).expect("sent");

    send(&test_frame(BROADCAST, station(1), "not IP"));
    let packet = outer(&wire, "not IP");
    assert_eq!((packet.ttl, packet.tos, packet.protocol, packet.dont_fragment), (9, 0xb8, 17, false));
    let port = |packet: &Outer| u16::from_be_bytes([packet.payload[0], packet.payload[1]]);
    assert!((50000..=50003).contains(&port(&packet)), "{}", port(&packet));
    assert_eq!(packet.payload[6..8], [0, 0], "no checksum");
    assert_eq!(packet.payload[8..16], [8, 0, 0, 0, 0, 0, 7, 0]);

    // ECN is the frame's (RFC 6040), and so is DF.
    send(&ipv4(BROADCAST, station(1), 0x02, 0x40, "capable"));
    let packet = outer(&wire, "capable");
    assert_eq!((packet.tos, packet.dont_fragment), (0xba, true));
    daemon.ctl("port set tun0 --df unset");
    send(&ipv4(BROADCAST, station(1), 0, 0x40, "divisible"));
    assert!(!outer(&wire, "divisible").dont_fragment);
    daemon.ctl("port set tun0 --df set");
    send(&ipv4(BROADCAST, station(1), 0, 0, "whole"));
    assert!(outer(&wire, "whole").dont_fragment);

    // And back: a mark that a router made reaches the station, or takes the frame with it.
    let socket = underlay.hosts[1].enter(|| UdpSocket::bind("172.16.0.2:0")).expect("bound");
    raw::set(&socket, libc::IPPROTO_IP, libc::IP_TOS, &3i32).expect("marked");
    let to: SocketAddr = "172.16.0.1:4789".parse().expect("an address");
    let arrives = |frame: &[u8]| {
        socket.send_to(&[&[8, 0, 0, 0, 0, 0, 7, 0], frame].concat(), to).expect("sent");
    };
    let capable = ipv4(BROADCAST, station(2), 0x01, 0, "from afar");
    arrives(&capable);
    let seen = station_side.collect(1, Duration::from_secs(10), |bytes| bytes.ends_with(b"from afar"));
    let marked = ipv4(BROADCAST, station(2), 0x03, 0, "from afar");
    assert_eq!(seen.first().map(|seen| &seen.bytes), Some(&marked), "and the checksum is right");
    arrives(&ipv4(BROADCAST, station(2), 0, 0, "not capable"));
    eventually("it is counted", || daemon.drops("tun0", "congested") == 1);

    daemon.ctl("port del tun0");
    daemon.ctl(
        "port add tun0 --bridge br0 --type vxlan --vni 7 --local 172.16.0.1 --remote 172.16.0.2 --tos inherit --df inherit",
    );
    send(&ipv4(BROADCAST, station(1), 0x48, 0x40, "inherited"));
    let packet = outer(&wire, "inherited");
    assert_eq!((packet.tos, packet.ttl), (0x48, 64));
    assert_ne!(packet.payload[6..8], [0, 0], "a checksum");

    // GRE and ERSPAN as their RFCs have it.
    for (options, header) in [
        ("--type gretap --key 5", &[0x20, 0, 0x65, 0x58, 0, 0, 0, 5][..]),
        (
            "--type erspan --key 6 --erspan-index 3",
            &[0x10, 0, 0x88, 0xbe, 0, 0, 0, 0, 0x10, 0, 0, 6, 0, 0, 0, 3],
        ),
    ] {
        daemon.ctl("port del tun0");
        daemon.ctl(&format!("port add tun0 --bridge br0 --local 172.16.0.1 --remote 172.16.0.2 {options}"));
        send(&test_frame(BROADCAST, station(1), "in GRE"));
        let packet = outer(&wire, "in GRE");
        assert_eq!((packet.protocol, &packet.payload[..header.len()]), (47, header));
    }
    Ok(())
}

/// A multicast group instead of remotes: two of ours and, where it can, the kernel's device.
pub fn groups() -> Outcome {
    for (v6, group) in [(false, "239.1.1.1"), (true, "ff05::42")] {
        let underlay = Underlay::new(3);
        let switch = |n: usize| {
            let daemon = Daemon::start(&underlay.hosts[n - 1]);
            daemon.ctl("bridge add br0");
            daemon.ctl(&format!(
                "port add tun0 --bridge br0 --type vxlan --vni 42 --local {} --group {group} {}",
                at(n, v6),
                // Without it, the interface that has the address.
                if v6 || n == 2 { "--dev wire" } else { "" }
            ));
            daemon
        };
        let (one, two) = (switch(1), switch(2));
        let mtu = if v6 { 1430 } else { 1450 };
        let third = &underlay.hosts[2];
        third.ip(&format!(
            "link add vx0 type vxlan id 42 local {} group {group} dev wire dstport 4789; \
             link add br0 type bridge mcast_snooping 0; link set vx0 master br0; link set vx0 up; link set br0 up",
            at(3, v6)
        ));
        let spaces = [Ns::with_ipv6("a"), Ns::with_ipv6("b"), Ns::with_ipv6("c")];
        let a = Station::plug(&one, (&underlay.hosts[0], &spaces[0]), Kind::Tap, 1, mtu, "");
        let b = Station::plug(&two, (&underlay.hosts[1], &spaces[1]), Kind::Tap, 2, mtu, "");
        let c = Station::behind_veth((third, &spaces[2]), 3, mtu);
        third.ip("link set p3 master br0");
        tcp(&a, &b, false, 1 << 20);
        tcp(&a, &c, false, 1 << 20);
        tcp(&c, &b, true, 1 << 20);
        // Known stations' frames go to their hosts alone, not to the group.
        let learned = one.json("fdb show --port tun0");
        let behind: Vec<_> =
            learned.as_array().expect("a list").iter().map(|e| e["remote"].clone()).collect();
        assert!(behind.contains(&at(2, v6).into()) && behind.contains(&at(3, v6).into()), "{learned}");
        let tunnel = one.port("tun0")["tunnel"].clone();
        assert_eq!(tunnel["group"], group);
        let to = |address: &str| {
            let remotes = tunnel["remotes"].as_array().expect("a list");
            let remote = remotes.iter().find(|remote| remote["address"] == address).expect("there");
            remote["counters"]["tx_frames"].as_u64().expect("a number")
        };
        assert!(to(&at(2, v6)) > 50 && to(group) < 50, "{tunnel}");
    }
    Ok(())
}

/// VLANs here are networks there.
pub fn vlans_to_networks() -> Outcome {
    let underlay = Underlay::new(2);
    let daemon = Daemon::start(&underlay.hosts[0]);
    daemon.ctl("bridge add br0");
    let map = "port add tun0 --bridge br0 --type vxlan --vni-map 10:10010,20:10020 --local 172.16.0.1 --remote 172.16.0.2";
    let refused = daemon.refused(map);
    assert!(refused.contains("vlan-filtering"), "{refused}");
    daemon.ctl("bridge set br0 --vlan-filtering on");
    let refused = daemon.refused(&format!("{map} --access 10"));
    assert!(refused.contains("VLAN options"), "{refused}");
    daemon.ctl(map);
    assert_eq!(daemon.port("tun0")["vlan"]["trunk"], serde_json::json!([10, 20]));
    let host = &underlay.hosts[1];
    let spaces = [Ns::with_ipv6("a"), Ns::with_ipv6("b")];
    let far: Vec<Station<'_>> = [(10, 10010), (20, 10020)]
        .iter()
        .zip(&spaces)
        .zip(1..)
        .map(|((&(vlan, vni), ns), number)| {
            host.ip(&format!(
                "link add vx{vlan} type vxlan id {vni} local 172.16.0.2 remote 172.16.0.1 dstport 4789; \
                 link add br{vlan} type bridge mcast_snooping 0; link set vx{vlan} master br{vlan}; \
                 link set vx{vlan} up; link set br{vlan} up"
            ));
            let station = Station::behind_veth((host, ns), number, 1450);
            host.ip(&format!("link set p{number} master br{vlan}"));
            station
        })
        .collect();
    let here = [Ns::with_ipv6("c"), Ns::with_ipv6("d")];
    let near: Vec<Station<'_>> = [10, 20]
        .iter()
        .zip(&here)
        .zip(3..)
        .map(|((vlan, ns), number)| {
            let access = format!("--access {vlan}");
            Station::plug(&daemon, (&underlay.hosts[0], ns), Kind::Tap, number, 1450, &access)
        })
        .collect();
    for (a, b) in near.iter().zip(&far) {
        tcp(a, b, false, 4 << 20);
        tcp(a, b, true, 1 << 20);
        udp(a, b, false);
        udp(a, b, true);
    }
    let refused = daemon.refused("bridge set br0 --vlan-filtering off");
    assert!(refused.contains("'tun0'"), "{refused}");
    // Who is in another VLAN is out of reach.
    let lost = near[0].ns.try_run("ping", &["-c1", "-W1", "10.9.0.2"]);
    assert!(lost.is_err(), "{lost:?}");
    let stations = daemon.fdb("--port tun0");
    let vlans: std::collections::BTreeSet<u64> = stations.iter().map(|station| station.1).collect();
    assert_eq!(vlans, [10, 20].into());
    // A frame that fills the MTU fits, though it has a tag on its way here.
    near[0].ns.run("ping", &["-c1", "-W5", "-M", "do", "-s", "1422", "10.9.0.1"]);
    let told = near[0].ns.try_run("ping", &["-c1", "-W1", "-M", "do", "-s", "1423", "10.9.0.1"]);
    assert!(told.is_err(), "{told:?}");
    Ok(())
}

/// Open vSwitch's userspace datapath at the other end, of every kind it has.
pub fn with_open_vswitch() -> Outcome {
    for (v6, ours, theirs, overhead) in [
        (false, "--type vxlan --vni 7", "type=vxlan options:key=7", 50),
        (false, "--type geneve --vni 7", "type=geneve options:key=7", 50),
        (true, "--type geneve --vni 7", "type=geneve options:key=7 options:csum=true", 70),
        (false, "--type gretap", "type=gre", 38),
        (false, "--type gretap --key 9 --csum on --seq on", "type=gre options:key=9 options:csum=true", 50),
        (true, "--type ip6gretap --key 9", "type=ip6gre options:key=9", 62),
        (
            false,
            "--type erspan --key 9 --erspan-index 3",
            "type=erspan options:key=9 options:erspan_ver=1 options:erspan_idx=3",
            50,
        ),
        (
            false,
            "--type erspan --key 9 --erspan-ver 2 --erspan-dir egress --erspan-hwid 4",
            "type=erspan options:key=9 options:erspan_ver=2 options:erspan_dir=1 options:erspan_hwid=4",
            54,
        ),
        (
            true,
            "--type ip6erspan --key 9 --erspan-ver 1 --erspan-index 3",
            "type=ip6erspan options:key=9 options:erspan_ver=1 options:erspan_idx=3",
            70,
        ),
    ] {
        let underlay = Underlay::new(2);
        let host = &underlay.hosts[1];
        let ovs = Ovs::start(host)?;
        let near = tunnel(&underlay, 1, v6, ours);
        // Its tunnels leave by a bridge of its own that has the host's address.
        ovs.vsctl(host, "add-br phy -- set bridge phy datapath_type=netdev -- add-port phy wire");
        host.ip("addr flush dev wire; link set phy up; link set br0 up");
        host.ip("addr add 172.16.0.2/24 dev phy; addr add fd16::2/64 dev phy nodad");
        ovs.vsctl(
            host,
            &format!(
                "add-port br0 tun0 -- set interface tun0 {theirs} options:local_ip={} options:remote_ip={}",
                at(2, v6),
                at(1, v6)
            ),
        );
        let (left, right) = (Ns::with_ipv6("a"), Ns::with_ipv6("b"));
        let mtu = 1500 - overhead;
        let b = Station::behind_veth((host, &right), 2, mtu);
        // That datapath wants checksums finished and frames cut.
        let none = Offloads { tx: false, tso: false, gso: false, gro: Some(false) };
        underlay.hosts[0].offloads("wire", none);
        host.offloads("wire", none);
        host.offloads("p2", none);
        right.offloads("packet2", none);
        ovs.vsctl(host, "add-port br0 p2");
        let a = Station::plug(&near, (&underlay.hosts[0], &left), Kind::Tap, 1, mtu, "");
        // It drops the first packets to a host whose address it has to ask for.
        eventually(&format!("{ours}: they reach each other"), || {
            left.try_run("ping", &["-c1", "-W1", "10.9.0.2"]).is_ok()
        });
        left.run("ping", &["-c1", "-W5", "-M", "do", "-s", &(mtu - 28).to_string(), "10.9.0.2"]);
        tcp(&a, &b, false, 1 << 20);
        tcp(&b, &a, true, 1 << 20);
        for reason in ["bad_tunnel_header", "unknown_vni", "unknown_remote"] {
            assert_eq!(near.drops("tun0", reason), 0, "{ours}: {reason}");
        }
    }
    Ok(())
}

/// The underlay goes down and comes back, loses its address, its interface is made anew; the tunnel goes on each time.
pub fn underlay_comes_back() -> Outcome {
    let underlay = Underlay::new(2);
    let near = tunnel(&underlay, 1, false, "--type vxlan --vni 7");
    let far = tunnel(&underlay, 2, false, "--type vxlan --vni 7");
    let (left, right) = (Ns::with_ipv6("a"), Ns::with_ipv6("b"));
    Station::plug(&near, (&underlay.hosts[0], &left), Kind::Tap, 1, 1450, "");
    Station::plug(&far, (&underlay.hosts[1], &right), Kind::Tap, 2, 1450, "");
    let reached = || left.try_run("ping", &["-c1", "-W1", "10.9.0.2"]).is_ok();
    eventually("they reach each other", reached);
    let host = &underlay.hosts[0];
    let lost = || near.drops("tun0", "unreachable");

    host.ip("link set wire down");
    assert!(!reached());
    assert!(lost() > 0, "{}", near.stats("tun0"));
    host.ip("link set wire up");
    eventually("the link is back", reached);

    let before = lost();
    host.ip("addr del 172.16.0.1/24 dev wire");
    assert!(!reached());
    assert!(lost() > before, "{}", near.stats("tun0"));
    host.ip("addr add 172.16.0.1/24 dev wire");
    eventually("the address is back", reached);

    // An interface of that name, but another one. A port that was told to use it follows it.
    near.ctl("port del tun0");
    near.ctl(
        "port add tun0 --bridge br0 --type vxlan --vni 7 --local 172.16.0.1 --remote 172.16.0.2 --dev wire",
    );
    eventually("they reach each other", reached);
    host.ip("link del wire");
    near.wait_port_state("tun0", "gone");
    underlay.plug_again(1);
    near.wait_port_state("tun0", "up");
    eventually("by the new interface", reached);

    // Our own address changes: the operator says so at both ends.
    host.ip("addr del 172.16.0.1/24 dev wire; addr add 172.16.0.11/24 dev wire");
    near.ctl("port del tun0");
    near.ctl("port add tun0 --bridge br0 --type vxlan --vni 7 --local 172.16.0.11 --remote 172.16.0.2");
    far.ctl("port set tun0 --remote 172.16.0.11");
    eventually("from the new address", reached);
    Ok(())
}

/// What host 172.16.0.`from` sends to host `to`: an IPv4 packet of a protocol and with flags as given.
fn packet(underlay: &Underlay, (from, to): (u8, u8), (protocol, flags): (u8, u8), payload: &[u8]) -> Vec<u8> {
    let link = underlay.hosts[usize::from(to) - 1].link("wire").expect("there");
    let mut mac = [0; 6];
    for (byte, text) in mac.iter_mut().zip(link["address"].as_str().expect("text").split(':')) {
        *byte = u8::from_str_radix(text, 16).expect("hexadecimal");
    }
    let [high, low] = u16::try_from(20 + payload.len()).expect("short").to_be_bytes();
    let addresses = [172, 16, 0, from, 172, 16, 0, to];
    let mut header = [&[0x45, 0, high, low, 0, 1, flags, 0, 64, protocol, 0, 0][..], &addresses].concat();
    finish(&mut header);
    frame(mac, station(77), &[], 0x0800, &[&header, payload].concat())
}

/// Fills in the checksum of an IPv4 header.
fn finish(header: &mut [u8]) {
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// An outer packet of which a fragment is lost is counted.
pub fn lost_fragments() -> Outcome {
    let underlay = Underlay::new(2);
    underlay.hosts[0].sysctl("net/ipv4/ipfrag_time", "1");
    let daemon = tunnel(&underlay, 1, false, "--type vxlan --vni 7");
    // A second port must not count it again.
    daemon.ctl("port add tun1 --bridge br0 --type geneve --vni 7 --local 172.16.0.1 --remote 172.16.0.2");
    const MORE_FRAGMENTS: u8 = 0x20;
    let lost = packet(&underlay, (2, 1), (17, MORE_FRAGMENTS), &[0; 64]);
    underlay.outside(1).send(&lost).expect("sent");
    eventually("it is counted", || daemon.drops("tun0", "outer_fragments") == 1);
    assert_eq!(daemon.drops("tun1", "outer_fragments"), 0);
    Ok(())
}

/// GRE tunnels without keys are told apart by their other ends, and nobody else is let in.
pub fn gre_between_pairs() -> Outcome {
    let underlay = Underlay::new(3);
    let hub = Daemon::start(&underlay.hosts[0]);
    for other in [2, 3] {
        hub.ctl(&format!("bridge add br{other}"));
        hub.ctl(&format!(
            "port add tun{other} --bridge br{other} --type gretap --local 172.16.0.1 --remote 172.16.0.{other}"
        ));
    }
    let refused = hub.refused(
        "port add again --bridge br2 --type gretap --local 172.16.0.1 --remote 172.16.0.3 --remote 172.16.0.4",
    );
    assert!(refused.contains("'tun3'"), "{refused}");
    let refused = hub.refused("port set tun2 --strict-remotes off");
    assert!(refused.contains("'tun3'"), "{refused}");
    let refused = hub.refused("port add six --bridge br2 --type gretap --local fd16::1 --remote fd16::2");
    assert!(refused.contains("ip6gretap"), "{refused}");
    for other in [2, 3] {
        let spoke = Daemon::start(&underlay.hosts[other - 1]);
        spoke.ctl("bridge add br0");
        spoke.ctl(&format!(
            "port add tun0 --bridge br0 --type gretap --local 172.16.0.{other} --remote 172.16.0.1"
        ));
        let wire = Ns::new("s");
        spoke.ctl(&format!("port add t0 --bridge br0 --type tap --netns {}", wire.name));
        let who = station(u32::try_from(other).expect("small"));
        Raw::open(&wire, "t0").send(&test_frame(BROADCAST, who, "hello")).expect("sent");
        eventually("it is behind its own", || hub.whereabouts(who) == Some(format!("tun{other}")));
    }
    // A packet that is nobody's, and ones that are not of this protocol.
    let wire = underlay.outside(1);
    let inner = test_frame(BROADCAST, station(9), "stranger");
    let send = |source: u8, gre: &[u8]| {
        let packet = packet(&underlay, (source, 1), (47, 0), &[gre, &inner].concat());
        wire.send(&packet).expect("sent");
    };
    send(4, &[0, 0, 0x65, 0x58]);
    eventually("a stranger is kept out", || hub.drops("tun2", "unknown_remote") == 1);
    send(2, &[0, 1, 0x65, 0x58]);
    send(2, &[0x40, 0, 0x65, 0x58]);
    send(2, &[0, 0, 8, 0]);
    eventually("what is no such GRE is counted", || hub.drops("tun2", "bad_tunnel_header") == 3);
    send(2, &[0x20, 0, 0x65, 0x58, 0, 0, 0, 1]);
    eventually("a key that nobody has", || hub.drops("tun2", "unknown_vni") == 1);
    assert_eq!(hub.whereabouts(station(9)), None);
    Ok(())
}

/// Packets are numbered on and on, whatever is set meanwhile.
pub fn numbers_go_on() -> Outcome {
    let underlay = Underlay::new(2);
    let daemon = tunnel(&underlay, 1, false, "--type gretap --seq on");
    let ns = Ns::new("s");
    daemon.ctl(&format!("port add t0 --bridge br0 --type tap --netns {}", ns.name));
    let (inside, wire) = (Raw::open(&ns, "t0"), underlay.arrivals(2));
    for n in 0..6u8 {
        if n == 3 {
            daemon.ctl("port set tun0 --df set");
        }
        let text = format!("number {n}");
        inside.send(&test_frame(BROADCAST, station(1), &text)).expect("sent");
        assert_eq!(outer(&wire, &text).payload[..8], [0x10, 0, 0x65, 0x58, 0, 0, 0, n]);
    }
    Ok(())
}

/// Source ports that are tunnels' own are left out; interfaces that would hear a packet twice are refused.
pub fn sockets_keep_out_of_each_others_way() -> Outcome {
    let underlay = Underlay::new(2);
    let options = "--type vxlan --vni 7 --srcport-range 4788-4790";
    let near = tunnel(&underlay, 1, false, options);
    let far = tunnel(&underlay, 2, false, options);
    let (left, right) = (Ns::with_ipv6("a"), Ns::with_ipv6("b"));
    let a = Station::plug(&near, (&underlay.hosts[0], &left), Kind::Tap, 1, 1450, "");
    let b = Station::plug(&far, (&underlay.hosts[1], &right), Kind::Tap, 2, 1450, "");
    for _ in 0..8 {
        tcp(&a, &b, false, 64 << 10);
    }
    assert_eq!(near.json("stats tun0")[0]["drops"], serde_json::json!({}));
    let add = "port add tun1 --bridge br0 --local 172.16.0.1 --remote 172.16.0.2";
    let refused = near.refused(&format!("{add} --type geneve --vni 7 --dstport 4788"));
    assert!(refused.contains("--srcport-range"), "{refused}");
    let refused = near.refused(&format!("{add} --type vxlan --vni 8 --srcport-range 4789-4789"));
    assert!(refused.contains("--srcport-range"), "{refused}");
    let other = underlay.hosts[0].enter(|| UdpSocket::bind("172.16.0.1:5000")).expect("bound");
    let refused = near.refused(&format!("{add} --type vxlan --vni 8 --srcport-range 5000-5000"));
    assert!(refused.contains("source ports 5000-5000"), "{refused}");
    drop(other);
    near.ctl(&format!("{add} --type gretap --dev wire"));
    let refused =
        near.refused("port add tun2 --bridge br0 --type erspan --local 172.16.0.1 --remote 172.16.0.3");
    assert!(refused.contains("--dev wire"), "{refused}");
    Ok(())
}

/// What is bound to an interface follows it when it is made anew, all ports at once, whether they have remotes or not.
pub fn ports_follow_their_interface() -> Outcome {
    let underlay = Underlay::new(2);
    let daemon = Daemon::start(&underlay.hosts[0]);
    daemon.ctl("bridge add br0");
    let add = |name: &str, options: &str| {
        daemon.ctl(&format!("port add {name} --bridge br0 --type vxlan --local 172.16.0.1 {options}"));
    };
    add("lone", "--vni 1 --dev wire");
    add("paired", "--vni 2 --dev wire --remote 172.16.0.2");
    add("grouped", "--vni 3 --dstport 4790 --group 239.1.1.1");
    let host = &underlay.hosts[0];
    host.ip("link del wire");
    let names = ["lone", "paired", "grouped"];
    names.iter().for_each(|name| daemon.wait_port_state(name, "gone"));
    underlay.plug_again(1);
    names.iter().for_each(|name| daemon.wait_port_state(name, "up"));
    let socket = underlay.hosts[1].enter(|| UdpSocket::bind("172.16.0.2:0")).expect("bound");
    for (vni, to) in [(1, "172.16.0.1:4789"), (2, "172.16.0.1:4789"), (3, "239.1.1.1:4790")] {
        let name = names[usize::from(vni) - 1];
        let hello = test_frame(BROADCAST, station(vni.into()), "hello");
        eventually(name, || {
            socket.send_to(&[&[8, 0, 0, 0, 0, 0, vni, 0], &hello[..]].concat(), to).expect("sent");
            daemon.stats(name)["rx_frames"].as_u64() > Some(0)
        });
    }
    // What is nobody's at a group is counted, too.
    for _ in 0..3 {
        socket.send_to(&[1, 2, 3], "239.1.1.1:4790").expect("sent");
    }
    eventually("it is counted", || daemon.drops("grouped", "bad_tunnel_header") == 3);
    Ok(())
}

/// An address or a namespace that is not there yet does not keep a configured switch from starting.
pub fn an_underlay_may_come_later() -> Outcome {
    let ns = Ns::new("v");
    let port = |name: &str, options: &str| {
        format!("[[port]]\nname = \"{name}\"\nbridge = \"br0\"\ntype = \"vxlan\"\nvni = 7\n{options}\n")
    };
    let inside = Ns::new("n");
    let name = inside.name.clone();
    run("ip", &["netns", "del", &name]);
    let text = format!(
        "[[bridge]]\nname = \"br0\"\n{}{}[[fdb]]\nmac = \"02:00:00:00:00:77\"\nport = \"far\"\nremote = \"10.7.0.3\"\n",
        port("late", "local = \"172.16.9.1\"\nremote = \"172.16.9.2\""),
        port(
            "far",
            &format!("local = \"10.7.0.1\"\nremote = [\"10.7.0.2\", \"10.7.0.3\"]\nnetns = \"{name}\"")
        ),
    );
    let daemon = Start::new(&ns).config(&text).ready();
    assert_eq!((daemon.port_state("late"), daemon.port_state("far")), ("gone".into(), "gone".into()));
    assert_eq!(daemon.json("fdb show --port far")[0]["remote"], "10.7.0.3");
    ns.ip("addr add 172.16.9.1/24 dev lo");
    daemon.wait_port_state("late", "up");
    run("ip", &["netns", "add", &name]);
    inside.ip("addr add 10.7.0.1/24 dev lo; link set lo up");
    daemon.wait_port_state("far", "up");
    assert_eq!(daemon.json("fdb show --port far")[0]["remote"], "10.7.0.3");
    Ok(())
}

/// Options that a kind does not know, and values that none has.
pub fn refused() -> Outcome {
    let underlay = Underlay::new(2);
    let daemon = Daemon::start(&underlay.hosts[0]);
    daemon.ctl("bridge add br0");
    let local = "port add x --bridge br0 --local 172.16.0.1";
    for (line, words) in [
        (format!("{local} --type vxlan"), "'vni-map'"),
        (format!("{local} --type geneve --vni-map 10:10"), "vni-map"),
        (format!("{local} --type geneve"), "'vni'"),
        (format!("{local} --type geneve --vni 1 --group 239.1.1.1"), "group"),
        (format!("{local} --type vxlan --vni 1 --key 1"), "key"),
        (format!("{local} --type gretap --vni 1"), "vni"),
        (format!("{local} --type gretap --dstport 1"), "dstport"),
        (format!("{local} --type erspan --key 1024"), "1023"),
        (format!("{local} --type erspan --csum on"), "csum"),
        (format!("{local} --type erspan --erspan-dir egress"), "version 2"),
        (format!("{local} --type erspan --erspan-ver 2 --erspan-index 1"), "version 1"),
        (format!("{local} --type vxlan --vni 1 --group 10.0.0.1"), "multicast"),
        (format!("{local} --type vxlan --vni 1 --group ff05::1"), "IP version"),
        (format!("{local} --type vxlan --vni 1 --dev none0"), "none0"),
        (format!("{local} --type vxlan --vni-map 10:1,10:2"), "VLAN 10"),
        (format!("{local} --type vxlan --vni-map 10:1,20:1"), "VNI 1"),
        ("port add x --bridge br0 --type vxlan --vni 1 --local fd16::1 --group ff05::1".into(), "'dev'"),
        ("port add x --bridge br0 --type tap --ttl 5".into(), "ttl"),
    ] {
        let error = daemon.refused(&line);
        assert!(error.contains(words), "{line}: {error}");
    }
    for line in
        ["--ttl 0", "--tos 256", "--srcport-range 9-8", "--vni-map 10", "--df maybe", "--erspan-ver 3"]
    {
        daemon.misused(&format!("{local} --type vxlan --vni 1 {line}"));
    }
    assert_eq!(daemon.json("port show").as_array().map(Vec::len), Some(0));
    // The same again is fine, other options are not.
    daemon.ctl(&format!("{local} --type vxlan --vni 1 --ttl 5 --tos inherit"));
    daemon.ctl(&format!("{local} --type vxlan --vni 1 --ttl 5 --tos inherit --may-exist"));
    let error = daemon.refused(&format!("{local} --type vxlan --vni 1 --ttl 6 --tos inherit --may-exist"));
    assert!(error.contains("ttl is 5, not 6"), "{error}");
    Ok(())
}

/// Wireshark's dissectors find nothing wrong with what any kind sends, and see in it what it is.
pub fn as_wireshark_reads() -> Outcome {
    if !has_program("tshark") {
        return Err(Skip("tshark (apt-get install tshark)".to_owned()));
    }
    let kinds = [
        (false, "--type vxlan --vni 7", "vxlan:eth"),
        (true, "--type vxlan --vni 8", "vxlan:eth"),
        (false, "--type vxlan --vni 8 --udp-csum off", "vxlan:eth"),
        (false, "--type geneve --vni 9", "geneve:eth"),
        (false, "--type gretap", "gre:eth"),
        (true, "--type ip6gretap --key 1 --csum on --seq on", "gre:eth"),
        (false, "--type erspan --key 2 --erspan-index 3", "gre:erspan:eth"),
        (true, "--type ip6erspan --key 2 --erspan-ver 2 --erspan-hwid 4", "gre:erspan:eth"),
    ];
    let mut expected = Vec::new();
    // The header of a pcap file, in this machine's byte order: magic number, version 2.4, longest packet, Ethernet.
    let mut file: Vec<u8> = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1_u32].map(u32::to_ne_bytes).concat();
    let underlay = Underlay::new(2);
    let host = &underlay.hosts[0];
    // So that checksums are on the wire.
    host.offloads("wire", Offloads { tx: false, tso: false, gso: false, gro: Some(false) });
    let daemon = Daemon::start(host);
    daemon.ctl("bridge add br0");
    let ns = Ns::new("s");
    daemon.ctl(&format!("port add t0 --bridge br0 --type tap --netns {}", ns.name));
    let (inside, wire) = (Raw::open(&ns, "t0"), underlay.arrivals(2));
    for (v6, options, protocols) in kinds {
        daemon.ctl(&format!(
            "port add tun0 --bridge br0 --local {} --remote {} {options}",
            at(1, v6),
            at(2, v6)
        ));
        let frames = [
            test_frame(BROADCAST, station(1), "untagged"),
            frame(BROADCAST, station(1), &[(0x8100, 0x6005)], 0x88b5, b"tagged, of odd length!"),
            ipv4(BROADCAST, station(1), 0x02, 0x40, "an IPv4 packet"),
        ];
        for inner in &frames {
            inside.send(inner).expect("sent");
            let holds = |bytes: &[u8]| bytes.len() > inner.len() && bytes.ends_with(inner);
            let seen = wire.collect(1, Duration::from_secs(10), holds);
            let outer = &seen.first().unwrap_or_else(|| panic!("{options}: no packet")).bytes;
            let len = u32::try_from(outer.len()).expect("short");
            file.extend([0, 0, len, len].map(u32::to_ne_bytes).concat());
            file.extend(outer);
            expected.push(protocols);
        }
        daemon.ctl("port del tun0");
    }
    let folder = folder();
    let path = folder.path().join("outer.pcap");
    std::fs::write(&path, file).expect("written");
    let path = path.to_str().expect("text");
    let checked = ["ip.check_checksum", "udp.check_checksum"].map(|option| format!("-o{option}:TRUE"));
    let tshark = |arguments: &[&str]| {
        run("tshark", &[&["-n", "-r", path, checked[0].as_str(), checked[1].as_str()], arguments].concat())
    };
    let wrong = tshark(&["-Y", "_ws.malformed || _ws.expert.severity >= \"Warning\""]);
    assert_eq!(wrong, "", "{}", tshark(&["-V"]));
    let read = tshark(&["-T", "fields", "-e", "frame.protocols"]);
    let read: Vec<&str> = read.lines().collect();
    assert_eq!(read.len(), expected.len());
    for (read, protocols) in read.iter().zip(expected) {
        assert!(read.contains(protocols), "{read}: not {protocols}");
    }
    Ok(())
}

/// Two tunnels between the same two hosts on the same bridges: what is flooded comes twice, and goes no further.
pub fn two_tunnels_to_one_host() -> Outcome {
    let underlay = Underlay::new(2);
    let daemons = [1, 2].map(|n| {
        let daemon = tunnel(&underlay, n, false, "--type vxlan --vni 7");
        daemon.ctl(&format!(
            "port add tun1 --bridge br0 --type geneve --vni 7 --local {} --remote {}",
            at(n, false),
            at(3 - n, false)
        ));
        daemon
    });
    let spaces = [Ns::new("s"), Ns::new("s")];
    for (daemon, ns) in daemons.iter().zip(&spaces) {
        daemon.ctl(&format!("port add t0 --bridge br0 --type tap --netns {}", ns.name));
    }
    let (here, there) = (Raw::open(&spaces[0], "t0"), Raw::open(&spaces[1], "t0"));
    let received = || {
        let of = |daemon: &Daemon, port| daemon.stats(port)["rx_frames"].as_u64().expect("a number");
        daemons.iter().map(|daemon| of(daemon, "tun0") + of(daemon, "tun1")).sum::<u64>()
    };
    let count = 50;
    for n in 0..count {
        here.send(&test_frame(BROADCAST, station(1), &format!("number {n}"))).expect("sent");
        there.send(&test_frame(BROADCAST, station(2), &format!("number {n}"))).expect("sent");
    }
    eventually("each comes by both", || received() == 4 * count);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(received(), 4 * count, "and nobody sends it on");
    Ok(())
}
