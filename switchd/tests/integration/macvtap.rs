//! Macvtap devices as ports: an uplink by an interface that is not taken from the host.

use crate::harness::daemon::{Daemon, Start};
use crate::harness::frame::{BROADCAST, frame, is_test, station, test_frame};
use crate::harness::net::Ns;
use crate::harness::raw::Raw;
use crate::harness::{Outcome, PATIENCE, eventually};

/// A daemon with a tap station `p0` in `wire`, and a veth `l0` whose other end is `far` there.
fn switch(ns: &Ns, wire: &Ns, bridge: &str) -> Daemon {
    let daemon = Start::new(ns).arguments("--workers 2").ready();
    daemon.ctl(&format!("bridge add br0 {bridge}"));
    daemon.ctl(&format!("port add p0 --bridge br0 --type tap --netns {}", wire.name));
    ns.veth("l0", wire, "far", 1500);
    daemon
}

/// Frames between the far end of the lower interface and the tap, both ways.
#[track_caller]
fn talk(wire: &Ns, number: u32) {
    let (far, near) = (Raw::open(wire, "far"), Raw::open(wire, "p0"));
    let (me, to) = (station(number), station(0x70));
    let hello = test_frame(BROADCAST, me, "from afar");
    far.send(&hello).expect("sent");
    let got = near.collect(1, PATIENCE, is_test);
    assert_eq!(got.iter().map(|seen| &seen.bytes).collect::<Vec<_>>(), [&hello]);
    let back = test_frame(me, to, "and back");
    near.send(&back).expect("sent");
    let got = far.collect(1, PATIENCE, is_test);
    assert_eq!(got.iter().map(|seen| &seen.bytes).collect::<Vec<_>>(), [&back]);
}

/// Options, what is shown, what is refused, and what is left behind: nothing.
pub fn as_asked() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    let daemon = switch(&ns, &wire, "");
    let add = "port add up --bridge br0 --type macvtap --lower l0";
    daemon.ctl(add);
    daemon.ctl(&format!("{add} --mode passthru --may-exist"));
    let error = daemon.refused(&format!("{add} --mode bridge --may-exist"));
    assert!(error.contains("mode is passthru, not bridge"), "{error}");
    let shown = daemon.port("up");
    assert_eq!(
        (&shown["type"], &shown["state"], &shown["ifname"], &shown["mtu"], &shown["queues"]),
        (&"macvtap".into(), &"up".into(), &"up".into(), &1500.into(), &2.into())
    );
    assert_eq!((&shown["macvtap"]["lower"], &shown["macvtap"]["mode"]), (&"l0".into(), &"passthru".into()));
    assert!(shown["peer"].is_null(), "{shown}");
    assert_eq!(daemon.port("up")["ifindex"], ns.link("up").expect("made")["ifindex"]);
    let words = daemon.ctl("port explain up");
    assert!(words.contains("on top of 'l0'") && words.contains("internal"), "{words}");
    talk(&wire, 0x71);

    let refused = |line: &str, word: &str| {
        let error = daemon.refused(&format!("port add p --bridge br0 {line}"));
        assert!(error.contains(word), "{word}: {error}");
    };
    refused("--type macvtap --lower l0", "interface 'l0' is below port 'up' of bridge 'br0' already");
    refused("--type macvtap --lower l0 --mode bridge", "port del up");
    daemon.ctl("bridge add br1");
    for (option, word) in [("", "on it"), ("--mtu 9000", "ip link set l0 mtu 9000"), ("--queues 3", "1 to 2")]
    {
        let error = daemon.refused(&format!("port add p --bridge br1 --type macvtap --lower l0 {option}"));
        assert!(error.contains(word), "{word}: {error}");
    }
    let error = daemon.refused("port add p --bridge br1 --type packet --ifname l0");
    assert!(error.contains("interface 'l0' is below port 'up'"), "{error}");
    refused("--type macvtap --lower none", "no interface 'none'");
    refused("--type macvtap", "no interface 'p'");
    refused("--type macvtap --ifname l0", "port del up");
    refused("--type macvtap --ifname up", "port del up");
    refused("--type packet --ifname l0", "port del up");
    refused("--type packet --ifname up", "port del up");
    refused("--type macvtap --lower p --ifname p", "two names");
    refused("--type macvtap --lower lo", "Ethernet");
    refused("--type macvtap --lower l0 --mac 02:00:00:00:00:09", "'mac'");
    refused("--type macvtap --lower l0 --mode 660", "passthru");
    refused("--type macvtap --ifname up --mtu 1400", "'lower'");
    refused("--type tap --lower l0", "'lower' is for macvtap");
    refused("--type stream --path /tmp/s --mode bridge", "octal");
    daemon.misused("port add p --bridge br0 --type macvtap --lower l0 --mode 999");
    ns.ip("link add q type veth peer name q2");
    let error = daemon.refused("port add p --bridge br1 --type macvtap --lower l0 --ifname q");
    assert!(error.contains("ip link del q"), "{error}");
    refused("--type macvtap --ifname q", "no macvtap device");

    daemon.ctl("port del up");
    assert!(ns.link("up").is_none() && ns.link("l0").is_some());
    daemon.ctl(&format!("{add} --queues 1 --mtu 1400"));
    assert_eq!(ns.link("up").expect("made")["mtu"], 1400);
    talk(&wire, 0x72);
    drop(daemon.terminate());
    assert!(ns.link("up").is_none());
    Ok(())
}

/// The lower goes down and up, is deleted and comes back; the switch is killed and started again.
pub fn lower_comes_and_goes() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    let config = format!(
        "[[bridge]]\nname = \"br0\"\n\
         [[port]]\nname = \"p0\"\nbridge = \"br0\"\ntype = \"tap\"\nnetns = \"{}\"\n\
         [[port]]\nname = \"up\"\nbridge = \"br0\"\ntype = \"macvtap\"\nlower = \"l0\"\n",
        wire.name
    );
    // It may come later.
    let daemon = Start::new(&ns).config(&config).ready();
    assert_eq!(daemon.port_state("up"), "gone");
    // One that somebody else uses does not do until he has gone.
    ns.veth("x0", &wire, "far", 1500);
    ns.ip("link add link x0 name other type macvlan mode bridge; link set x0 down; link set x0 name l0; link set l0 up");
    eventually("it is said why", || daemon.log().contains("port 'up' cannot come back yet"));
    assert_eq!(daemon.port_state("up"), "failed");
    ns.ip("link del other");
    daemon.wait_port_state("up", "up");
    // News of its going up may still come, and have the stations behind it forgotten.
    eventually("a station behind it", || {
        talk(&wire, 0x71);
        daemon.whereabouts(station(0x71)).as_deref() == Some("up")
    });
    ns.ip("link set l0 down");
    daemon.wait_port_state("up", "down");
    assert_eq!(daemon.whereabouts(station(0x71)), None, "stations behind it are forgotten");
    ns.ip("link set l0 up");
    daemon.wait_port_state("up", "up");
    talk(&wire, 0x72);
    let before = daemon.stats("up")["rx_frames"].as_u64().expect("a number");
    ns.ip("link del l0");
    daemon.wait_port_state("up", "gone");
    Raw::open(&wire, "p0").send(&test_frame(BROADCAST, station(1), "to nobody")).expect("sent");
    ns.veth("l0", &wire, "far", 1500);
    daemon.wait_port_state("up", "up");
    talk(&wire, 0x73);
    assert_eq!(daemon.stats("up")["rx_frames"].as_u64(), Some(before + 1), "its account goes on");
    // Somebody deletes the device alone: it is made anew.
    let old = daemon.port("up")["ifindex"].clone();
    ns.ip("link del dev up");
    eventually("it is another", || daemon.port("up")["ifindex"].as_u64().is_some_and(|new| old != new));
    daemon.wait_port_state("up", "up");
    talk(&wire, 0x74);
    daemon.ctl("reload");
    talk(&wire, 0x74);

    // What a vswitchd leaves that is killed, the next replaces.
    let folder = daemon.kill();
    assert!(ns.link("up").is_some());
    let daemon = Start::new(&ns).config(&config).folder(folder).ready();
    daemon.wait_port_state("up", "up");
    talk(&wire, 0x75);
    // But not what another one has that runs.
    let second = Start::new(&ns).ready();
    second.ctl("bridge add br0");
    let error = second.refused("port add up --bridge br0 --type macvtap --lower l0");
    assert!(error.contains("exists already"), "{error}");
    talk(&wire, 0x76);
    daemon.write_config(&config.replace("\"l0\"", "\"l0\"\nmtu = 1400"));
    daemon.ctl("reload");
    assert_eq!(ns.link("up").expect("made anew")["mtu"], 1400);
    talk(&wire, 0x77);
    Ok(())
}

/// In mode passthru stations of any address get theirs, groups included; in another namespace, too, which can be deleted.
pub fn many_stations() -> Outcome {
    let (ns, wire, there) = (Ns::new("v"), Ns::new("w"), Ns::with_ipv6("t"));
    let daemon = switch(&ns, &wire, "");
    // The same index there as here: /dev has a file of one of them.
    daemon.ctl("port add up --bridge br0 --type macvtap --lower l0");
    let (far, near) = (Raw::open(&wire, "far"), Raw::open(&wire, "p0"));
    for number in 1..50 {
        near.send(&test_frame(BROADCAST, station(number), "here")).expect("sent");
        assert_eq!(far.collect(1, PATIENCE, is_test).len(), 1);
    }
    for number in 1..50 {
        let sent = test_frame(station(number), station(0x99), "one of many");
        far.send(&sent).expect("sent");
        let got = near.collect(1, PATIENCE, is_test);
        assert_eq!(got.iter().map(|seen| &seen.bytes).collect::<Vec<_>>(), [&sent]);
    }
    let group = test_frame([0x01, 0, 0x5e, 1, 2, 3], station(0x99), "to a group");
    far.send(&group).expect("sent");
    assert_eq!(near.collect(1, PATIENCE, is_test).len(), 1);

    let index = daemon.port("up")["ifindex"].as_u64().expect("a number");
    there.ip("link add l1 index 9000 type veth peer name far1");
    there.ip(&format!("link set far1 netns {}; link set l1 up", wire.name));
    wire.ip("link set far1 up");
    there.sysctl("net/ipv6/conf/l1/disable_ipv6", "1");
    let quiet = Raw::open(&wire, "far1");
    there.ip(&format!(
        "link add link l1 name mine index {index} type macvtap mode passthru; link set mine up"
    ));
    daemon.ctl(&format!("port add mine --bridge br0 --type macvtap --netns {}", there.name));
    assert_eq!(daemon.port("mine")["ifindex"], index);
    quiet.drain();
    near.send(&test_frame(BROADCAST, station(3), "everywhere")).expect("sent");
    assert_eq!(quiet.collect(1, PATIENCE, is_test).len(), 1);
    assert_eq!(far.collect(1, PATIENCE, is_test).len(), 1);
    quiet.send(&test_frame(station(3), station(0x55), "found")).expect("sent");
    assert_eq!(near.collect(1, PATIENCE, is_test).len(), 1);
    // One of our own making is there as well, and silent in IPv6.
    daemon.ctl("port del mine");
    there.ip("link del mine");
    quiet.drain();
    daemon.ctl(&format!(
        "port add mine --bridge br0 --type macvtap --lower l1 --ifname up1 --netns {}",
        there.name
    ));
    assert!(there.link("up1").is_some());
    let seen = quiet.collect(1, std::time::Duration::from_millis(1500), |_| true);
    assert!(
        seen.is_empty(),
        "{:?}",
        seen.iter().map(|seen| crate::harness::frame::show(&seen.bytes)).collect::<Vec<_>>()
    );
    near.send(&test_frame(BROADCAST, station(3), "everywhere")).expect("sent");
    assert_eq!(quiet.collect(1, PATIENCE, is_test).len(), 1);
    assert_eq!(far.collect(1, PATIENCE, is_test).len(), 1);
    // Nothing here holds the namespace.
    crate::harness::net::run("ip", &["netns", "del", &there.name]);
    daemon.wait_port_state("mine", "gone");
    eventually("the namespace is destroyed", || wire.link("far1").is_none());
    talk(&wire, 0x71);
    Ok(())
}

/// An access port on an uplink, a trunk on it, and frames that are too long.
pub fn vlans_and_mtu() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    let daemon = switch(&ns, &wire, "--vlan-filtering on");
    daemon.ctl("port set p0 --access 10");
    daemon.ctl("port add up --bridge br0 --type macvtap --lower l0 --trunk 10,20");
    let (far, near) = (Raw::open(&wire, "far"), Raw::open(&wire, "p0"));
    let tagged = |text: &str| {
        frame(BROADCAST, station(1), &[(0x8100, 10)], crate::harness::frame::TEST, text.as_bytes())
    };
    let bare = |text: &str| frame(BROADCAST, station(1), &[], crate::harness::frame::TEST, text.as_bytes());
    let text = "x".repeat(100);
    far.send(&tagged(&text)).expect("sent");
    let got = near.collect(1, PATIENCE, is_test);
    assert_eq!(got.iter().map(|seen| &seen.bytes).collect::<Vec<_>>(), [&bare(&text)]);
    near.send(&bare(&text)).expect("sent");
    let got = far.collect(1, PATIENCE, is_test);
    assert_eq!(got.iter().map(|seen| &seen.bytes).collect::<Vec<_>>(), [&tagged(&text)]);
    far.send(&bare(&text)).expect("sent");
    eventually("untagged is dropped", || {
        daemon.stats("up")["drops"].as_object().is_some_and(|all| !all.is_empty())
    });
    daemon.ctl("port set up --access 10");
    talk(&wire, 0x71);
    // The lower's MTU counts.
    ns.ip("link set l0 mtu 1000");
    eventually("the MTU is known", || daemon.port("up")["mtu"] == 1000);
    near.send(&bare(&"x".repeat(1400))).expect("sent");
    eventually("it is counted", || daemon.drops("up", "too_long") == 1);
    Ok(())
}

/// A device that somebody made is used and left alone; without it the port waits.
pub fn one_that_exists() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    let daemon = switch(&ns, &wire, "");
    let make = "link add link l0 name mv0 type macvtap mode passthru; link set mv0 up";
    ns.ip(make);
    daemon.ctl("port add up --bridge br0 --type macvtap --ifname mv0");
    assert!(daemon.port("up")["macvtap"].is_null());
    daemon.wait_port_state("up", "up");
    talk(&wire, 0x71);
    ns.ip("link del mv0");
    daemon.wait_port_state("up", "gone");
    ns.ip(make);
    daemon.wait_port_state("up", "up");
    talk(&wire, 0x72);
    daemon.ctl("port del up");
    assert!(ns.link("mv0").is_some(), "it is not ours");
    daemon.ctl("port add up --bridge br0 --type macvtap --ifname mv0");
    drop(daemon.terminate());
    assert!(ns.link("mv0").is_some(), "it is not ours");
    Ok(())
}

/// Ports that have one wire would be a loop, whoever made their devices, and whichever comes first.
pub fn one_wire() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    let daemon = switch(&ns, &wire, "");
    daemon.ctl("bridge add br1");
    let made = |number: u8| format!("--type macvtap --lower l0 --mode bridge --ifname made{number}");
    let theirs = |number: u8| format!("--type macvtap --ifname mv{number}");
    for number in 1..3 {
        ns.ip(&format!("link add link l0 name mv{number} type macvtap mode bridge; link set mv{number} up"));
    }
    for (first, second) in
        [(theirs(1), theirs(2)), (theirs(1), made(2)), (made(1), theirs(2)), (made(1), made(2))]
    {
        daemon.ctl(&format!("port add one --bridge br0 {first}"));
        let error = daemon.refused(&format!("port add two --bridge br0 {second}"));
        assert!(
            error.contains("interface 'l0' is below port 'one' of bridge 'br0' already"),
            "{second}: {error}"
        );
        assert!(ns.link("made2").is_none(), "nothing is left of what was refused");
        daemon.ctl(&format!("port add two --bridge br1 {second}"));
        daemon.ctl("port del one");
        daemon.ctl("port del two");
    }
    // As a packet port the interface must carry nothing yet.
    ns.ip("link del mv1; link del mv2");
    let mv1 = "link add link l0 name mv1 type macvtap mode bridge; link set mv1 up";
    for first in [theirs(1), made(1)] {
        if first == theirs(1) {
            ns.ip(mv1);
        }
        daemon.ctl(&format!("port add one --bridge br0 {first}"));
        for bridge in ["br0", "br1"] {
            let error = daemon.refused(&format!("port add two --bridge {bridge} --type packet --ifname l0"));
            assert!(error.contains("interface 'l0' is below port 'one'"), "{first}: {error}");
        }
        daemon.ctl("port del one");
        if first == theirs(1) {
            ns.ip("link del mv1");
        }
        daemon.ctl("port add two --bridge br0 --type packet --ifname l0");
        if first == theirs(1) {
            ns.ip(mv1);
        }
        for bridge in ["br0", "br1"] {
            let error = daemon.refused(&format!("port add one --bridge {bridge} {first}"));
            assert!(error.contains("interface 'l0' is port 'two'"), "{first}: {error}");
        }
        daemon.ctl("port del two");
        let _ = ns.try_ip("link del mv1");
    }
    for number in 1..3 {
        ns.ip(&format!("link add link l0 name mv{number} type macvtap mode bridge; link set mv{number} up"));
    }
    // A macvlan beside it has the same wire, and is not the wire.
    ns.ip("link add link l0 name mvl type macvlan mode bridge; link set mvl up");
    let beside = || "--type packet --ifname mvl".to_owned();
    for (first, second) in
        [(beside(), theirs(1)), (theirs(1), beside()), (beside(), made(1)), (made(1), beside())]
    {
        daemon.ctl(&format!("port add one --bridge br0 {first}"));
        let error = daemon.refused(&format!("port add two --bridge br0 {second}"));
        assert!(error.contains("interface 'l0' is below port 'one' of bridge 'br0' already"), "{error}");
        daemon.ctl(&format!("port add two --bridge br1 {second}"));
        daemon.ctl("port del one");
        daemon.ctl("port del two");
    }
    // One that comes back is looked at again.
    daemon.ctl(&format!("port add one --bridge br0 {}", theirs(1)));
    ns.ip("link del mv1");
    daemon.wait_port_state("one", "gone");
    daemon.ctl(&format!("port add two --bridge br0 {}", theirs(2)));
    ns.ip("link add link l0 name mv1 type macvtap mode bridge; link set mv1 up");
    eventually("it is said why", || daemon.log().contains("interface 'l0' is below port 'two'"));
    assert_eq!(daemon.port_state("one"), "failed");
    daemon.ctl("port del two");
    daemon.wait_port_state("one", "up");
    Ok(())
}

/// In mode bridge the host goes on using the lower interface, and the one station with the device's address is behind the port.
pub fn host_keeps_its_interface() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    let daemon = switch(&ns, &wire, "");
    ns.ip("addr add 10.8.0.1/24 dev l0");
    wire.ip(
        "addr add 10.8.0.2/24 dev far; link set p0 address 02:00:00:00:0b:01; addr add 10.8.0.3/24 dev p0",
    );
    daemon.ctl("port add up --bridge br0 --type macvtap --lower l0 --mode bridge --mac 02:00:00:00:0b:01");
    // A second one on the same bridge would be a loop.
    let second = "--type macvtap --lower l0 --mode bridge --mac 02:00:00:00:0b:02";
    let error = daemon.refused(&format!("port add up2 --bridge br0 {second}"));
    assert!(error.contains("interface 'l0' is below port 'up' of bridge 'br0'"), "{error}");
    daemon.ctl("bridge add br1");
    daemon.ctl(&format!("port add up2 --bridge br1 {second}"));
    daemon.ctl("port del up2");
    ns.run("ping", &["-c1", "-W5", "10.8.0.2"]);
    let (far, near) = (Raw::open(&wire, "far"), Raw::open(&wire, "p0"));
    let mine = [0x02, 0, 0, 0, 0x0b, 1];
    far.send(&test_frame(mine, station(5), "to the one station")).expect("sent");
    assert_eq!(near.collect(1, PATIENCE, is_test).len(), 1);
    far.send(&test_frame(station(0x44), station(5), "to another")).expect("sent");
    far.send(&test_frame([0x01, 0, 0x5e, 1, 2, 3], station(5), "to a group")).expect("sent");
    let got = near.collect(1, PATIENCE, is_test);
    assert_eq!(got[0].bytes, test_frame([0x01, 0, 0x5e, 1, 2, 3], station(5), "to a group"));
    near.send(&test_frame(station(5), mine, "out")).expect("sent");
    assert_eq!(far.collect(1, PATIENCE, is_test).len(), 1);
    Ok(())
}

/// What a port has received, and what the kernel dropped before.
fn account(daemon: &Daemon) -> (u64, u64) {
    let stats = daemon.stats("up");
    (stats["rx_frames"].as_u64().expect("a number"), stats["drops"]["rx_missed"].as_u64().unwrap_or(0))
}

/// Sends to a switch that stands still, more than its queue holds; how many of them were missed.
#[track_caller]
fn overflow(daemon: &Daemon, wire: &Ns, senders: usize) -> u64 {
    let before = account(daemon);
    // What waits is on its sender's account, and an account is good for some 250.
    let far: Vec<Raw> = (0..senders).map(|_| Raw::open(wire, "far")).collect();
    daemon.signal(libc::SIGSTOP);
    let bytes = test_frame(station(0x70), station(0x71), "too many");
    let all = far.iter().flat_map(|raw| (0..300).map(move |_| raw));
    // What is refused here did not get as far as the port.
    let sent = all.filter(|raw| raw.send(&bytes).is_ok()).count() as u64;
    daemon.signal(libc::SIGCONT);
    eventually("every frame is accounted for", || {
        let (received, missed) = account(daemon);
        received + missed == before.0 + before.1 + sent
    });
    account(daemon).1 - before.1
}

/// What overflowed a device's queue is on the port's account, and stays there when the device is another, which counts from nothing again; what
/// it had dropped before it was a port is not.
pub fn missed_by_one_that_comes_back() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    let daemon = switch(&ns, &wire, "");
    let make = "link add link l0 name mv0 type macvtap mode passthru; link set mv0 up";
    ns.ip(make);
    for (add, gone, back) in [
        ("port add up --bridge br0 --type macvtap --ifname mv0", "link del mv0", make),
        ("port add up --bridge br0 --type macvtap --lower l0 --queues 1", "link del dev up", ""),
    ] {
        daemon.ctl(add);
        daemon.wait_port_state("up", "up");
        assert_eq!(account(&daemon), (0, 0), "{add}: of the port before, or of nobody");
        let first = overflow(&daemon, &wire, 16);
        // As much for the kernel's own count, which a port that is made anew finds there.
        if !back.is_empty() {
            daemon.ctl("port del up");
            daemon.ctl(add);
            assert_eq!(account(&daemon), (0, 0), "{add}: of the port before");
            assert!(overflow(&daemon, &wire, 16) > 0);
        }
        let (received, missed) = account(&daemon);
        let old = daemon.port("up")["ifindex"].clone();
        ns.ip(gone);
        eventually("the device has gone", || daemon.port("up")["ifindex"] != old);
        ns.ip(back);
        daemon.wait_port_state("up", "up");
        assert_eq!(account(&daemon), (received, missed), "{add}: its account goes on");
        // Fewer than the device before, and counted all the same.
        let second = overflow(&daemon, &wire, 8);
        assert!(0 < second && second < first, "{add}: {first} missed, then {second}");
        daemon.ctl("port del up");
        // One that the switch made has gone with its port.
        let _ = ns.try_ip("link del mv0");
    }
    Ok(())
}

/// A device that can be made and not be used is tried less and less often, although making and removing it is news; and a port that waits
/// takes no time.
pub fn tried_now_and_then() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    let taken = "02:00:00:00:0b:01";
    let config = format!(
        "[[bridge]]\nname = \"br0\"\n\
         [[port]]\nname = \"up\"\nbridge = \"br0\"\ntype = \"macvtap\"\nlower = \"l0\"\nmode = \"bridge\"\nmac = \"{taken}\"\n"
    );
    let daemon = Start::new(&ns).config(&config).ready();
    // Two with one address cannot be up.
    ns.veth("x0", &wire, "far", 1500);
    ns.ip(&format!(
        "link add link x0 name other address {taken} type macvlan mode bridge; link set other up; \
         link set x0 down; link set x0 name l0; link set l0 up"
    ));
    eventually("it is said why", || daemon.log().contains("port 'up' cannot come back yet"));
    // The kernel numbers interfaces one after the other, here in pairs.
    let next_index = |name: &str| {
        ns.ip(&format!("link add {name} type veth peer name other-{name}"));
        ns.link(name).expect("made")["ifindex"].as_u64().expect("a number")
    };
    let (before, ticks) = (next_index("d0"), daemon.ticks());
    std::thread::sleep(std::time::Duration::from_secs(4));
    let (tried, used) = (next_index("d1") - before - 2, daemon.ticks() - ticks);
    assert!((1..=3).contains(&tried), "tried {tried} times in 4 s");
    assert!(used <= 12, "{used} ticks of 10 ms in 4 s");
    assert_eq!(daemon.log().matches("cannot come back yet").count(), 1, "said once");
    ns.ip("link del other");
    daemon.wait_port_state("up", "up");

    // Nor does a device that has gone keep its workers awake.
    ns.ip("link del l0");
    daemon.wait_port_state("up", "gone");
    let ticks = daemon.ticks();
    std::thread::sleep(std::time::Duration::from_secs(2));
    let used = daemon.ticks() - ticks;
    assert!(used <= 6, "{used} ticks of 10 ms in 2 s without the device");
    Ok(())
}
