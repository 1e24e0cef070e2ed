//! The host's own stack and packet ports: it must not hear what the switch gets, and hears again when the port is gone.

use crate::harness::daemon::Daemon;
use crate::harness::frame::{BROADCAST, Mac, frame, station};
use crate::harness::net::{Ns, run};
use crate::harness::raw::Raw;
use crate::harness::{Outcome, PATIENCE, can_silence, eventually};
use std::time::Duration;

const ME: [u8; 4] = [10, 7, 7, 9];
const HOST: [u8; 4] = [10, 7, 7, 1];

/// "Who has 10.7.7.1? Tell 10.7.7.9."
fn arp_request(from: Mac) -> Vec<u8> {
    let mut payload = vec![0, 1, 8, 0, 6, 4, 0, 1];
    payload.extend(from);
    payload.extend(ME);
    payload.extend([0; 6]);
    payload.extend(HOST);
    payload.resize(46, 0);
    frame(BROADCAST, from, &[], 0x0806, &payload)
}

/// A packet for somebody beyond the host.
fn to_be_routed(to: Mac, from: Mac) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0];
    packet.extend(ME);
    packet.extend([10, 8, 8, 2]);
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet.extend([0x1b, 0x58, 0x1b, 0x58, 0, 8, 0, 0]);
    packet.resize(46, 0);
    frame(to, from, &[], 0x0800, &packet)
}

fn mac_of(ns: &Ns, ifname: &str) -> Mac {
    let link = ns.link(ifname).expect("there");
    let text = link["address"].as_str().expect("a MAC");
    let bytes: Vec<u8> = text.split(':').map(|part| u8::from_str_radix(part, 16).expect("hex")).collect();
    bytes.try_into().expect("six bytes")
}

pub fn stays_silent() -> Outcome {
    can_silence()?;
    let (ns, wire, beyond) = (Ns::with_ipv6("v"), Ns::new("w"), Ns::new("x"));
    for number in 0..2 {
        ns.veth(&format!("va{number}"), &wire, &format!("vb{number}"), 1500);
    }
    // The host has an address that it would answer for anywhere, and routes.
    ns.veth("out", &beyond, "out", 1500);
    ns.ip("addr add 10.7.7.1/24 dev lo; addr add 10.8.8.1/24 dev out");
    ns.ip("neigh add 10.8.8.2 lladdr 02:00:00:00:08:02 dev out nud permanent");
    ns.sysctl("net/ipv4/ip_forward", "1");
    for name in ["all", "default", "va0"] {
        ns.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0");
    }
    let (a, b, out) = (Raw::open(&wire, "vb0"), Raw::open(&wire, "vb1"), Raw::open(&beyond, "out"));
    let (me, host) = (station(9), mac_of(&ns, "va0"));
    let is_arp_reply = |bytes: &[u8]| bytes[12..14] == [8, 6] && bytes.get(20..22) == Some(&[0, 2]);
    let is_routed = |bytes: &[u8]| bytes[12..14] == [8, 0] && bytes.get(30..34) == Some(&[10, 8, 8, 2]);
    // Without a switch it does all that: else silence would prove nothing.
    a.send(&arp_request(me)).expect("sent");
    assert_eq!(a.collect(1, PATIENCE, is_arp_reply).len(), 1, "the host answers ARP");
    a.send(&to_be_routed(host, me)).expect("sent");
    assert_eq!(out.collect(1, PATIENCE, is_routed).len(), 1, "the host routes");

    let daemon = Daemon::start(&ns);
    daemon.ctl("bridge add br0");
    daemon.ctl("port add va0 --bridge br0 --type packet");
    daemon.ctl("port add va1 --bridge br0 --type packet");
    for raw in [&a, &b, &out] {
        raw.drain();
    }
    for turn in 0..5 {
        a.send(&arp_request(me)).expect("sent");
        a.send(&to_be_routed(host, me)).expect("sent");
        let request = arp_request(me);
        assert_eq!(
            b.collect(1, PATIENCE, |bytes| bytes == request).len(),
            1,
            "the switch hears, turn {turn}"
        );
    }
    assert_eq!(a.collect(1, Duration::from_millis(300), is_arp_reply).len(), 0, "the host answered ARP");
    assert_eq!(out.collect(1, Duration::from_millis(50), is_routed).len(), 0, "the host routed");
    assert_eq!(
        b.collect(1, Duration::from_millis(50), is_arp_reply).len(),
        0,
        "the host answered ARP elsewhere"
    );
    assert!(!daemon.log().contains("has address"), "no address on a port, no warning");

    daemon.ctl("port del va0");
    a.send(&arp_request(me)).expect("sent");
    assert_eq!(a.collect(1, PATIENCE, is_arp_reply).len(), 1, "the host answers ARP again");
    a.send(&to_be_routed(host, me)).expect("sent");
    assert_eq!(out.collect(1, PATIENCE, is_routed).len(), 1, "the host routes again");
    // An address on the port itself is warned about.
    ns.ip("addr add 10.6.6.1/24 dev va0");
    daemon.ctl("port add va0 --bridge br0 --type packet");
    assert!(daemon.log().contains("10.6.6.1/24"), "{}", daemon.log());
    Ok(())
}

/// IPv6's chatter is not the host's either.
pub fn stays_silent_in_ipv6() -> Outcome {
    can_silence()?;
    let (ns, wire) = (Ns::with_ipv6("v"), Ns::with_ipv6("w"));
    ns.veth("va", &wire, "vb", 1500);
    let addresses = run("ip", &["-n", &ns.name, "-json", "-6", "addr", "show", "dev", "va"]);
    let addresses: serde_json::Value = serde_json::from_str(&addresses).expect("JSON");
    let host =
        format!("{}%vb", addresses[0]["addr_info"][0]["local"].as_str().expect("a link-local address"));
    let ping = || wire.try_run("ping", &["-6", "-c", "1", "-W", "1", &host]);
    eventually("the host answers without a switch", || ping().is_ok());
    let daemon = Daemon::start(&ns);
    daemon.ctl("bridge add br0");
    daemon.ctl("port add va --bridge br0 --type packet");
    assert!(ping().is_err(), "the host answered");
    daemon.ctl("port del va");
    eventually("and does again", || ping().is_ok());
    Ok(())
}
