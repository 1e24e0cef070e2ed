//! What an interface is to a port: not its name, not alone, and not for one port only.

use crate::harness::daemon::{Daemon, Start};
use crate::harness::frame::{BROADCAST, Mac, TEST, frame, is_test, station, test_frame};
use crate::harness::net::Ns;
use crate::harness::raw::Raw;
use crate::harness::{Outcome, PATIENCE, can_silence, eventually};

fn hint(daemon: &Daemon, port: &str) -> String {
    daemon.port(port)["hint"].as_str().unwrap_or_default().to_owned()
}

/// What is on top of an interface would get no frames: the interface is refused, as Linux does, wherever the other is.
pub fn carrying_others() -> Outcome {
    can_silence()?;
    let (ns, wire, inside) = (Ns::new("v"), Ns::new("w"), Ns::new("c"));
    ns.veth("up0", &wire, "up1", 1500);
    wire.ip("addr add 10.9.1.1/24 dev up1");
    ns.ip(&format!("link add mv link up0 type macvlan mode bridge; link set mv netns {}", inside.name));
    inside.ip("addr add 10.9.1.2/24 dev mv; link set mv up");
    let reached = || wire.try_run("ping", &["-c", "1", "-W", "1", "10.9.1.2"]).is_ok();
    eventually("the container answers", reached);
    let daemon = Daemon::start(&ns);
    daemon.ctl("bridge add br0");
    let add = "port add up --bridge br0 --type packet --ifname up0";
    let error = daemon.refused(add);
    let what = format!("interface 'up0' carries macvlan 'mv' in namespace '{}'", inside.name);
    assert!(error.contains(&what) && error.contains("--type macvtap --lower up0"), "{error}");
    assert!(reached(), "what was refused changed nothing");
    // What is offered instead does.
    daemon.ctl("port add up --bridge br0 --type macvtap --lower up0 --mode bridge --ifname mt0");
    assert!(reached());
    daemon.ctl("port del up");

    inside.ip("link del mv");
    ns.ip("link add mt1 link up0 type macvtap mode bridge");
    assert!(daemon.refused(add).contains("'up0' carries macvtap 'mt1',"));
    ns.ip("link del mt1");
    // A tunnel that only remembers the interface takes nothing from it.
    ns.ip("link add vx0 type vxlan id 3 dev up0 dstport 4790");
    daemon.ctl(add);
    assert_eq!(hint(&daemon, "up"), "");

    // Later it cannot be refused, and is told.
    ns.run("ip", &["link", "add", "mv", "link", "up0", "netns", &inside.name, "type", "macvlan"]);
    eventually("it is told", || hint(&daemon, "up").contains(&what));
    assert!(daemon.log().contains(&what), "{}", daemon.log());
    assert!(daemon.ctl("port explain up").contains(&format!("Hint: {what}")));
    assert_eq!(daemon.port_state("up"), "up");
    inside.ip("link del mv");
    eventually("it is told no more", || hint(&daemon, "up").is_empty());
    ns.ip("link add kbr type bridge; link set up0 master kbr");
    eventually("a bridge, too", || hint(&daemon, "up").contains("carries bridge 'kbr'"));
    Ok(())
}

/// A second name is no second interface, and an interface with a new name is the same one.
pub fn several_names() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    ns.veth("real0", &wire, "far0", 1500);
    ns.veth("pb", &wire, "far1", 1500);
    let long = "an-alternative-name-of-more-than-fifteen-bytes";
    ns.ip(&format!("link property add dev real0 altname alt0 altname {long}"));
    let daemon = Daemon::start(&ns);
    for bridge in ["br0", "br1"] {
        daemon.ctl(&format!("bridge add {bridge}"));
    }
    let add = |name: &str, bridge: &str, ifname: &str| {
        format!("port add {name} --bridge {bridge} --type packet --ifname {ifname}")
    };
    for (first, second) in [("alt0", "real0"), (long, "alt0"), ("real0", long)] {
        daemon.ctl(&add("a", "br0", first));
        assert_eq!(daemon.port("a")["ifname"], "real0", "by {first}");
        assert_eq!(hint(&daemon, "a"), "", "an alternative name is no new name");
        for bridge in ["br0", "br1"] {
            let error = daemon.refused(&add("b", bridge, second));
            assert!(error.contains(&format!("'{second}'")) && error.contains("port del a"), "{error}");
        }
        daemon.ctl("port del a");
    }

    // Renamed while it is a port.
    daemon.ctl(&add("pb", "br0", "pb"));
    ns.ip("link set pb down; link set pb name px; link set px up");
    eventually("the present name is shown", || daemon.port("pb")["ifname"] == "px");
    daemon.wait_port_state("pb", "up");
    assert!(hint(&daemon, "pb").contains("was 'pb'"), "{}", hint(&daemon, "pb"));
    for bridge in ["br0", "br1"] {
        let error = daemon.refused(&add("again", bridge, "px"));
        assert!(error.contains("interface 'px' is port 'pb'"), "{error}");
    }
    // Another interface that has the old name now.
    ns.veth("pb", &wire, "far2", 1500);
    daemon.ctl(&add("pb2", "br0", "pb"));
    let (far1, far2) = (Raw::open(&wire, "far1"), Raw::open(&wire, "far2"));
    let sent = test_frame(BROADCAST, station(1), "across");
    far1.send(&sent).expect("sent");
    assert_eq!(far2.collect(1, PATIENCE, |bytes| bytes == sent).len(), 1);
    // The first waits for its own name again, and does not take what is another port's.
    ns.ip("link del px");
    eventually("it is gone", || daemon.port_state("pb") != "up");
    eventually("it is said why", || daemon.log().contains("interface 'pb' is port 'pb2'"));
    daemon.ctl("port del pb2");
    daemon.wait_port_state("pb", "up");
    Ok(())
}

/// A TAP of one bridge and a packet port of another on its host end are one interface, whose news are news to both.
pub fn both_ends_of_a_tap() -> Outcome {
    let ns = Ns::new("v");
    let file = "[[bridge]]\nname = \"a\"\n[[bridge]]\nname = \"b\"\n\
                [[port]]\nname = \"p0\"\nbridge = \"b\"\ntype = \"packet\"\nifname = \"t0\"\n\
                [[port]]\nname = \"t0\"\nbridge = \"a\"\ntype = \"tap\"\n";
    let daemon = Start::new(&ns).config(file).ready();
    daemon.ctl("port add far --bridge a --type tap");
    daemon.ctl("port add near --bridge b --type tap");
    daemon.wait_port_state("p0", "up");
    for port in ["t0", "far", "near"] {
        ns.ip(&format!("link set {port} mtu 9000"));
    }
    for port in ["t0", "p0"] {
        eventually("the MTU is known", || daemon.port(port)["mtu"] == 9000);
    }
    let (far, near) = (Raw::open(&ns, "far"), Raw::open(&ns, "near"));
    let from: Mac = station(1);
    let long = frame(BROADCAST, from, &[], TEST, &[0x55; 4000]);
    near.send(&long).expect("sent");
    let seen = far.collect(1, PATIENCE, |bytes| is_test(bytes) && bytes.len() == long.len());
    assert_eq!(seen.len(), 1, "through both");
    ns.ip("link set t0 down");
    for port in ["t0", "p0"] {
        daemon.wait_port_state(port, "down");
    }
    // On one bridge its frames would go round for ever.
    daemon.write_config(&file.replace("bridge = \"b\"", "bridge = \"a\""));
    assert!(daemon.refused("reload").contains("interface 't0' is that of port 'p0' already"));
    Ok(())
}

/// What the kernel would refuse without saying why, or take and not mean.
pub fn addresses_and_mtu() -> Outcome {
    let ns = Ns::with_ipv6("v");
    let daemon = Daemon::start(&ns);
    daemon.ctl("bridge add br0");
    let add = "port add t0 --bridge br0 --type tap";
    let error = daemon.refused(&format!("{add} --mtu 1279 --address fd00::1/64"));
    assert!(error.contains("1279") && error.contains("1280") && error.contains("fd00::1"), "{error}");
    for bad in ["224.0.0.1/24", "ff02::1/64", "0.0.0.0/24", "::/64", "255.255.255.255/32"] {
        let error = daemon.refused(&format!("{add} --address {bad}"));
        assert!(error.contains("no address of a station"), "{bad}: {error}");
    }
    daemon.ctl(&format!("{add} --mtu 1280 --address fd00::1/64"));
    daemon.ctl("port add t1 --bridge br0 --type tap --mtu 1000 --address 10.0.0.1/24");
    Ok(())
}
