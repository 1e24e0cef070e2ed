//! Interfaces that vswitchd makes are the same hosts after it started again.

use std::time::{Duration, Instant};

use crate::harness::daemon::{Daemon, Start};
use crate::harness::frame::{BROADCAST, untag};
use crate::harness::net::Ns;
use crate::harness::raw::Raw;
use crate::harness::{Outcome, eventually};

/// The host's own interface and one in a namespace; `host` gets another line.
fn config(guest: &Ns, host: &str) -> String {
    format!(
        "[[bridge]]\nname = \"br0\"\n\
         [[port]]\nname = \"h0\"\nbridge = \"br0\"\ntype = \"internal\"\naddress = [\"10.9.0.1/24\", \"fd09::1/64\"]\n{host}\n\
         [[port]]\nname = \"t0\"\nbridge = \"br0\"\ntype = \"tap\"\nnetns = \"{}\"\naddress = [\"10.9.0.2/24\", \"fd09::2/64\"]\n\
         [[port]]\nname = \"up0\"\nbridge = \"br0\"\ntype = \"packet\"\n",
        guest.name
    )
}

fn mac(ns: &Ns, ifname: &str) -> String {
    ns.link(ifname).expect("there")["address"].as_str().expect("a MAC").to_owned()
}

/// A neighbour that knows the hosts behind a switch does not lose them when it starts again, however it ended; and when one has got
/// another address it learns so without asking.
pub fn after_a_restart() -> Outcome {
    let (host, guest, beyond) = (Ns::with_ipv6("h"), Ns::with_ipv6("g"), Ns::with_ipv6("n"));
    host.veth("up0", &beyond, "e0", 1500);
    beyond.ip("addr add 10.9.0.9/24 dev e0; addr add fd09::9/64 dev e0 nodad");
    let start = |folder, text: &str| Start::new(&host).folder(folder).config(text).ready();
    let targets = ["10.9.0.1", "fd09::1", "10.9.0.2", "fd09::2"];
    let ping = |target: &str| beyond.try_run("ping", &["-c", "1", "-W", "1", target]).is_ok();
    let macs = || [mac(&host, "h0"), mac(&guest, "t0")];

    let mut daemon = start(None, &config(&guest, ""));
    for target in targets {
        eventually("the neighbour knows it", || ping(target));
    }
    let before = macs();
    assert_ne!(before[0], before[1]);
    for mac in &before {
        let first = u8::from_str_radix(&mac[..2], 16).expect("hex");
        assert_eq!(first & 3, 2, "an individual address, locally administered: {mac}");
    }
    for end in [Daemon::terminate, Daemon::kill] {
        daemon = start(Some(end(daemon)), &config(&guest, ""));
        assert_eq!(macs(), before);
        for target in targets {
            // What IPv6 does when a carrier comes back takes the neighbour a moment.
            let began = Instant::now();
            while !ping(target) {
                assert!(began.elapsed() < Duration::from_secs(3), "{target} is lost");
            }
        }
    }

    // An address that the operator gives wins, and neighbours hear of it, although their port comes last.
    let wanted = "02:00:00:00:00:77";
    daemon = start(Some(daemon.terminate()), &config(&guest, &format!("mac = \"{wanted}\"")));
    assert_eq!(macs(), [wanted.to_owned(), before[1].clone()]);
    for target in targets {
        let began = Instant::now();
        while !ping(target) {
            assert!(began.elapsed() < Duration::from_secs(8), "{target} was not announced");
        }
    }
    // So they do when the interface gets another while it is up.
    host.ip("link set h0 address 02:00:00:00:00:78");
    for target in targets {
        let began = Instant::now();
        while !ping(target) {
            assert!(began.elapsed() < Duration::from_secs(8), "{target} was not announced");
        }
    }
    drop(daemon);
    Ok(())
}

/// Another bridge, port or daemon makes another address; the same ones the same, whenever the port is made.
pub fn by_bridge_port_and_daemon() -> Outcome {
    let (one, two) = (Ns::new("a"), Ns::new("b"));
    let daemons = [Daemon::start(&one), Daemon::start(&two)];
    for daemon in &daemons {
        daemon.ctl("bridge add br0");
        daemon.ctl("bridge add br1");
        daemon.ctl("port add p0 --bridge br0 --type internal");
        daemon.ctl("port add p1 --bridge br0 --type tap --no-offload");
        daemon.ctl("port add p2 --bridge br1 --type tap --ifname other");
    }
    let macs = |ns: &Ns| [mac(ns, "p0"), mac(ns, "p1"), mac(ns, "other")];
    let all = [macs(&one), macs(&two)].concat();
    let different: std::collections::HashSet<&String> = all.iter().collect();
    assert_eq!(different.len(), all.len(), "{all:?}");
    daemons[0].ctl("port del p2");
    daemons[0].ctl("port add p2 --bridge br1 --type internal --ifname again");
    assert_eq!(mac(&one, "again"), all[2]);
    let shown = daemons[0].port("p2")["mac"].clone();
    assert_eq!(shown, all[2]);
    daemons[0].ctl("port del p2");
    daemons[0].ctl("port add p2 --bridge br0 --type internal --ifname again");
    assert_ne!(mac(&one, "again"), all[2], "it is on another bridge");

    // A macvtap device that has an address of its own, too; one that takes all frames has the lower's.
    one.veth("l0", &two, "far", 1500);
    let made = |mode: &str| {
        daemons[0].ctl(&format!("port add m0 --bridge br1 --type macvtap --lower l0 --mode {mode}"));
        let made = mac(&one, "m0");
        daemons[0].ctl("port del m0");
        made
    };
    assert_eq!((made("private"), made("passthru")), (made("private"), mac(&one, "l0")));
    assert_ne!(made("private"), mac(&one, "l0"));
    Ok(())
}

/// What is sent: for each address that is in use a few announcements, and for a router one that says so.
pub fn announcements() -> Outcome {
    let (host, wire) = (Ns::with_ipv6("h"), Ns::new("w"));
    host.sysctl("net/ipv6/conf/default/forwarding", "1");
    let daemon = Daemon::start(&host);
    daemon.ctl("bridge add br0");
    daemon.ctl(&format!("port add w0 --bridge br0 --type tap --netns {}", wire.name));
    let raw = Raw::open(&wire, "w0");
    daemon.ctl("port add h0 --bridge br0 --type internal --address 10.9.0.1/24 --address fd09::1/64");
    let is_arp = |bytes: &[u8]| bytes[..6] == BROADCAST && untag(bytes).1 == 0x0806;
    let is_ndisc = |bytes: &[u8]| {
        bytes[12..14] == [0x86, 0xdd] && bytes.get(54) == Some(&136) && bytes.get(62..64) == Some(&[0xfd, 9])
    };
    // Two times both, not once only.
    let seen = raw.collect(4, Duration::from_secs(5), |bytes| is_arp(bytes) || is_ndisc(bytes));
    let (arp, ndisc): (Vec<_>, Vec<_>) = seen.iter().partition(|seen| is_arp(&seen.bytes));
    assert_eq!((arp.len(), ndisc.len()), (2, 2), "{seen:?}");
    let own = mac(&host, "h0");
    let own: Vec<u8> = own.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect();
    let wanted = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &own, &[10, 9, 0, 1], &[0; 6], &[10, 9, 0, 1]].concat();
    assert!(arp.iter().all(|seen| seen.bytes[14..42] == wanted), "{arp:?}");
    let all_nodes = [0x33, 0x33, 0, 0, 0, 1];
    assert!(ndisc.iter().all(|seen| seen.bytes[..6] == all_nodes && seen.bytes[58] == 0xa0), "{ndisc:?}");
    // And again when it comes up again.
    assert_eq!(raw.collect(1, Duration::from_secs(5), is_arp).len(), 1);
    raw.drain();
    host.ip("link set h0 down; link set h0 up");
    assert_eq!(raw.collect(1, Duration::from_secs(5), is_arp).len(), 1);
    Ok(())
}
