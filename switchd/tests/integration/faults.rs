//! What goes wrong under way: interfaces and namespaces that vanish and come back, links that go down, floods of addresses, a
//! thousand ports. Others never notice.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::board::Board;
use crate::harness::count::count;
use crate::harness::daemon::{Daemon, Start};
use crate::harness::frame::{BROADCAST, Mac, TEST, frame, is_test, station, test_frame};
use crate::harness::net::Ns;
use crate::harness::raw::Raw;
use crate::harness::stream::{Kind, Station, tcp};
use crate::harness::{Outcome, PATIENCE, eventually};

const A: Mac = [0x02, 0, 0, 0, 0xaa, 1];
const B: Mac = [0x02, 0, 0, 0, 0xbb, 2];

/// Makes B known behind port 1.
fn introduce(board: &Board) {
    board.stations[1].send(&test_frame(BROADCAST, B, "here")).expect("sent");
    eventually("the receiver is known", || board.daemon.whereabouts(B).as_deref() == Some("p1"));
    board.drain();
}

/// Keeps sending broadcasts into a station's interface until it cannot.
fn hammer(raw: &Raw, until: Duration) {
    let began = Instant::now();
    while began.elapsed() < until {
        if raw.send(&frame(BROADCAST, station(0x999), &[], TEST, &[0x11; 600])).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

pub fn interface_deleted() -> Outcome {
    let board = Board::new("", &["", "", ""]);
    let (switch, wire, daemon) = (&board.switch, &board.wire, &board.daemon);
    introduce(&board);
    switch.veth("va", wire, "vb", 1500);
    daemon.ctl("port add va --bridge br0 --type packet");
    let vb = Raw::open(wire, "vb");
    vb.send(&test_frame(BROADCAST, station(5), "here")).expect("sent");
    eventually("its station is known", || daemon.whereabouts(station(5)).as_deref() == Some("va"));
    let (counted, ()) = count((&board.stations[0], A), (&board.stations[1], B), || {
        std::thread::scope(|scope| {
            scope.spawn(|| hammer(&vb, Duration::from_millis(400)));
            std::thread::sleep(Duration::from_millis(100));
            switch.ip("link del va");
        });
        daemon.wait_port_state("va", "gone");
        assert_eq!(daemon.whereabouts(station(5)), None, "stations behind it are forgotten");
        let port = daemon.port("va");
        assert_eq!((&port["ifindex"], &port["peer"]), (&Value::Null, &Value::Null));
        // A tap that somebody deletes.
        wire.ip("link del p2");
        daemon.wait_port_state("p2", "gone");
    });
    counted.complete(1000);
    assert!(daemon.refused("port add p2 --bridge br0 --type tap").contains("exists"));
    daemon.ctl("port del p2");
    // It comes back by itself, under its name, as a new interface, and its account goes on.
    let before = daemon.stats("va")["rx_frames"].as_u64().expect("a number");
    assert!(before > 100, "{before}");
    switch.veth("va", wire, "vb", 1500);
    daemon.wait_port_state("va", "up");
    let vb = Raw::open(wire, "vb");
    vb.send(&test_frame(B, station(6), "back")).expect("sent");
    assert_eq!(board.stations[1].collect(1, PATIENCE, is_test).len(), 1);
    assert_eq!(daemon.stats("va")["rx_frames"].as_u64(), Some(before + 1));
    assert_eq!(daemon.port("va")["peer"]["ifname"], "vb");
    // Gone ones can be deleted.
    switch.ip("link del va");
    daemon.wait_port_state("va", "gone");
    daemon.ctl("port del va");
    board.drain();
    board.expect(0, &test_frame(BROADCAST, A, "as ever"), &[1]);
    Ok(())
}

/// `ip netns del` destroys the namespace, whatever ports are in it or lead to it.
pub fn namespace_deleted() -> Outcome {
    let board = Board::new("", &["", ""]);
    let (switch, daemon) = (&board.switch, &board.daemon);
    introduce(&board);
    let (doomed, witness) = (Ns::new("d"), Ns::new("x"));
    switch.veth("va", &doomed, "vb", 1500);
    // Its other end vanishes when, and only when, the namespace is really gone.
    witness.veth("w0", &doomed, "w1", 1500);
    doomed.veth("inner", &witness, "outer", 1500);
    let name = &doomed.name;
    daemon.ctl(&format!("port add tap1 --bridge br0 --type tap --netns {name}"));
    daemon.ctl(&format!("port add tap2 --bridge br0 --type tap --no-offload --netns {}", doomed.path()));
    daemon.ctl("port add va --bridge br0 --type packet");
    daemon.ctl(&format!("port add inner --bridge br0 --type packet --netns {name}"));
    let outer = Raw::open(&witness, "outer");
    outer.send(&test_frame(BROADCAST, station(7), "alive")).expect("sent");
    assert_eq!(board.stations[0].collect(1, PATIENCE, is_test).len(), 1);
    let (counted, ()) = count((&board.stations[0], A), (&board.stations[1], B), || {
        doomed.ip("link set w1 up");
        crate::harness::net::run("ip", &["netns", "del", name]);
        for port in ["tap1", "tap2", "va", "inner"] {
            daemon.wait_port_state(port, "gone");
        }
        eventually("the namespace is destroyed", || {
            witness.link("w0").is_none() && switch.link("va").is_none()
        });
    });
    counted.complete(1000);
    // A new namespace of that name, with an interface of that name: the packet port in it is back.
    crate::harness::net::run("ip", &["netns", "add", name]);
    doomed.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    doomed.veth("inner", &witness, "outer", 1500);
    daemon.wait_port_state("inner", "up");
    let outer = Raw::open(&witness, "outer");
    outer.send(&test_frame(B, station(8), "back")).expect("sent");
    assert_eq!(board.stations[1].collect(1, PATIENCE, is_test).len(), 1);
    for port in ["tap1", "tap2", "va", "inner"] {
        daemon.ctl(&format!("port del {port}"));
    }
    // Nothing of ours is left in it: it can be destroyed again.
    crate::harness::net::run("ip", &["netns", "del", name]);
    eventually("the namespace is destroyed", || witness.link("outer").is_none());
    Ok(())
}

/// A reload makes a tap anew that went with its namespace.
pub fn reload_revives_a_dead_tap() -> Outcome {
    let (switch, wire) = (Ns::new("v"), Ns::new("w"));
    let config = format!(
        "[[bridge]]\nname = \"br0\"\n[[port]]\nname = \"t\"\nbridge = \"br0\"\ntype = \"tap\"\nnetns = \"{}\"\n",
        wire.name
    );
    let daemon = Start::new(&switch).config(&config).ready();
    crate::harness::net::run("ip", &["netns", "del", &wire.name]);
    daemon.wait_port_state("t", "gone");
    // Nowhere to put it yet.
    daemon.ctl("reload");
    assert_eq!(daemon.port_state("t"), "gone");
    crate::harness::net::run("ip", &["netns", "add", &wire.name]);
    daemon.ctl("reload");
    assert_eq!(daemon.port_state("t"), "up");
    assert!(wire.link("t").is_some());
    Ok(())
}

pub fn link_down_and_up() -> Outcome {
    let board = Board::new("", &["", "", ""]);
    let (switch, wire, daemon) = (&board.switch, &board.wire, &board.daemon);
    introduce(&board);
    switch.veth("va", wire, "vb", 1500);
    daemon.ctl("port add va --bridge br0 --type packet");
    let (counted, ()) = count((&board.stations[0], A), (&board.stations[1], B), || {
        for (ns, ifname, port) in [(switch, "va", "va"), (wire, "vb", "va"), (wire, "p2", "p2")] {
            for _ in 0..2 {
                ns.ip(&format!("link set {ifname} down"));
                daemon.wait_port_state(port, "down");
                ns.ip(&format!("link set {ifname} up"));
                daemon.wait_port_state(port, "up");
            }
        }
    });
    counted.complete(1000);
    // It carries frames again, both ways.
    let vb = Raw::open(wire, "vb");
    vb.send(&test_frame(B, station(5), "up again")).expect("sent");
    assert_eq!(board.stations[1].collect(1, PATIENCE, |bytes| bytes.ends_with(b"up again")).len(), 1);
    board.stations[0].send(&test_frame(BROADCAST, A, "to all")).expect("sent");
    assert_eq!(vb.collect(1, PATIENCE, |bytes| bytes.ends_with(b"to all")).len(), 1);
    // What a port that is down does not take is on its account.
    wire.ip("link set p2 down");
    daemon.wait_port_state("p2", "down");
    let before = daemon.drops("p2", "port_down");
    board.stations[0].send(&test_frame(BROADCAST, A, "to all but one")).expect("sent");
    eventually("the drop is counted", || daemon.drops("p2", "port_down") == before + 1);
    // A port may be added while its interface is down.
    switch.ip("link add vc type veth peer name vd");
    daemon.ctl("port add vc --bridge br0 --type packet");
    assert_eq!(daemon.port_state("vc"), "down");
    switch.ip("link set vc up; link set vd up");
    daemon.wait_port_state("vc", "up");
    Ok(())
}

/// While vswitchd stands still the kernel's queues fill up; what they could not hold is on the ports' account, to the frame.
pub fn missed_while_stopped() -> Outcome {
    const FRAMES: u64 = 20_000;
    let board = Board::new("", &["", ""]);
    let (switch, wire, daemon) = (&board.switch, &board.wire, &board.daemon);
    switch.veth("va", wire, "vb", 1500);
    daemon.ctl("port add va --bridge br0 --type packet");
    let vb = Raw::open(wire, "vb");
    let account = |port: &str| {
        let stats = daemon.stats(port);
        (stats["rx_frames"].as_u64().expect("a number"), stats["drops"]["rx_missed"].as_u64().unwrap_or(0))
    };
    for (raw, port) in [(&board.stations[0], "p0"), (&vb, "va")] {
        assert_eq!(account(port), (0, 0));
        daemon.signal(libc::SIGSTOP);
        let flows: Vec<Vec<u8>> = (0..64).map(|n| test_frame(BROADCAST, station(n), "too many")).collect();
        // What is refused here did not get as far as the port.
        let sent = (0..FRAMES).filter(|n| raw.send(&flows[*n as usize % flows.len()]).is_ok()).count() as u64;
        daemon.signal(libc::SIGCONT);
        eventually("every frame is accounted for", || {
            let (received, missed) = account(port);
            received + missed == sent
        });
        let (received, missed) = account(port);
        println!("{port}: {received} received, {missed} missed of {sent} sent, {FRAMES} tried");
        assert!(missed > 0 && received > 0, "{port}: {received} received, {missed} missed");
        // And it goes on.
        board.drain();
        board.expect(1, &test_frame(BROADCAST, B, "as ever"), &[0]);
        vb.drain();
    }
    Ok(())
}

pub fn mtu_changed_under_traffic() -> Outcome {
    let board = Board::new("", &["", "", ""]);
    let (switch, wire, daemon) = (&board.switch, &board.wire, &board.daemon);
    introduce(&board);
    switch.veth("va", wire, "vb", 1500);
    wire.ip("link set vb mtu 9000; link set p0 mtu 9000");
    daemon.ctl("port add va --bridge br0 --type packet");
    let (counted, ()) = count((&board.stations[0], A), (&board.stations[1], B), || {
        for mtu in [9000, 1400, 576, 9000, 1500] {
            switch.ip(&format!("link set va mtu {mtu}"));
            wire.ip(&format!("link set p1 mtu {mtu}; link set p2 mtu {mtu}"));
            for port in ["va", "p1", "p2"] {
                eventually("the MTU is known", || daemon.port(port)["mtu"] == mtu);
            }
        }
    });
    counted.complete(1000);
    // It counts at once for frames that leave.
    let vb = Raw::open(wire, "vb");
    for mtu in [1500usize, 3000, 1000] {
        switch.ip(&format!("link set va mtu {mtu}"));
        wire.ip(&format!("link set p1 mtu {mtu}; link set p2 mtu {mtu}"));
        for port in ["va", "p2"] {
            eventually("the MTU is known", || daemon.port(port)["mtu"] == mtu);
        }
        for (len, passes) in [(mtu + 14, 1), (mtu + 15, 1), (mtu + 18, 1), (mtu + 19, 0)] {
            let bytes = frame(BROADCAST, A, &[], TEST, &vec![0x55; len - 14]);
            board.stations[0].send(&bytes).expect("sent");
            let wait = if passes == 1 { PATIENCE } else { Duration::from_millis(60) };
            let same = |seen: &[u8]| seen == bytes;
            let at_tap = board.stations[2].collect(1, wait, same).len();
            assert_eq!(at_tap, passes, "MTU {mtu}, {len} bytes, tap");
            assert_eq!(vb.collect(1, wait, same).len(), passes, "MTU {mtu}, {len} bytes, packet");
        }
    }
    Ok(())
}

/// TCP goes on through ports and bridges that come, go and change around it.
pub fn tcp_through_changes() -> Outcome {
    let (switch, left, right, other) =
        (Ns::with_ipv6("v"), Ns::with_ipv6("a"), Ns::with_ipv6("b"), Ns::new("o"));
    let daemon = Start::new(&switch).arguments("--workers 2").ready();
    daemon.ctl("bridge add br0");
    let a = Station::plug(&daemon, (&switch, &left), Kind::Tap, 1, 1500, "");
    let b = Station::plug(&daemon, (&switch, &right), Kind::Packet, 2, 1500, "");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut turn = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                turn += 1;
                daemon.ctl(&format!("port add x{turn} --bridge br0 --type tap --netns {}", other.name));
                daemon.ctl(&format!("port set {} --flood {}", a.ifname, ["on", "off"][turn % 2]));
                daemon.ctl(&format!("bridge set br0 --ageing {}", 100 + turn));
                daemon.ctl("fdb flush");
                daemon.ctl(&format!("port del x{turn}"));
            }
        });
        // The other thread must end when this one panics.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..6).for_each(|turn| tcp(&a, &b, turn % 2 == 1, 8 << 20));
        }));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    Ok(())
}

/// Many ports come and go while others talk; afterwards nothing of them is left. VSWITCH_TEST_PORTS says how many: a
/// thousand take minutes in a debug build.
pub fn a_thousand_ports() -> Outcome {
    let ports: usize = std::env::var("VSWITCH_TEST_PORTS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    let board = Board::new("", &["", ""]);
    let daemon = &board.daemon;
    introduce(&board);
    daemon.ctl("bridge add crowd");
    // In vswitchd's own namespace: moving an interface to another takes the kernel some 50 ms.
    let crowd = &board.switch;
    let request = |method: &str, target: &str, body: &Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (code, _, answer) = daemon.http(method, target, &body);
        assert!((200..300).contains(&code), "{method} {target}: {code}: {answer}");
    };
    let (files, memory) = (daemon.open_files(), daemon.resident_kib());
    let began = Instant::now();
    let (counted, ()) = count((&board.stations[0], A), (&board.stations[1], B), || {
        for number in 0..ports {
            // Some of them on the bridge that is busy.
            let bridge = if number % 10 == 0 { "br0" } else { "crowd" };
            let kind = json!({"name": format!("c{number}"), "bridge": bridge, "type": "tap", "queues": 1});
            request("POST", "/v1/ports", &kind);
        }
        assert_eq!(daemon.json("status")["ports"], ports + 2);
        println!("the ports added after {:?}", began.elapsed());
        // One broadcast to all of them.
        let (first, last) = (Raw::open(crowd, "c1"), Raw::open(crowd, &format!("c{}", ports - 1)));
        first.send(&test_frame(BROADCAST, station(1), "to a crowd")).expect("sent");
        assert_eq!(last.collect(1, PATIENCE, is_test).len(), 1);
        for number in (0..ports).filter(|number| number % 10 == 0) {
            request("DELETE", &format!("/v1/ports/c{number}"), &Value::Null);
        }
        println!("a tenth deleted after {:?}", began.elapsed());
        daemon.ctl("bridge del crowd --with-ports");
        println!("all deleted after {:?}", began.elapsed());
    });
    counted.complete(1000);
    let took = began.elapsed();
    eventually("their interfaces are gone", || crowd.links().len() == 1);
    assert_eq!(daemon.json("port show").as_array().map(Vec::len), Some(2));
    eventually("their files are closed", || daemon.open_files() <= files + 8);
    assert!(daemon.resident_kib() < memory + (96 << 10), "{} KiB, {memory} before", daemon.resident_kib());
    println!("the ports: {took:?}, {} frames meanwhile", counted.sent);
    Ok(())
}

/// One port with a million addresses: the others' stations stay known, and are not flooded to.
pub fn a_million_addresses() -> Outcome {
    const ADDRESSES: u32 = 1_000_000;
    // Half of what a TAP queues towards the switch.
    const PORTION: u32 = 500;
    let board = Board::new("", &["", "", ""]);
    let daemon = &board.daemon;
    let honest: Vec<Mac> = (0..200).map(|n| [0x02, 0x10, 0, 0, 0, n as u8]).collect();
    for (number, mac) in honest.iter().enumerate() {
        board.stations[1 + number % 2]
            .send(&test_frame([0x01, 0x80, 0xc2, 0, 0, 0x0e], *mac, "honest"))
            .expect("sent");
    }
    eventually("the honest are known", || daemon.fdb("").len() == honest.len());
    let mut received = daemon.received();
    let began = Instant::now();
    for portion in 0..ADDRESSES / PORTION {
        for number in 0..PORTION {
            // Link-local, so it is learned from and goes nowhere.
            let from = station(0x1000_0000 + portion * PORTION + number);
            let flood = frame([0x01, 0x80, 0xc2, 0, 0, 0x0e], from, &[], TEST, b"flood");
            board.stations[0].send(&flood).expect("sent");
        }
        received += u64::from(PORTION);
        if portion % 200 == 0 {
            println!("{} addresses after {:?}", portion * PORTION, began.elapsed());
        }
        eventually("the portion is taken", || daemon.received() >= received);
    }
    let bridge = &daemon.json("bridge show br0")[0];
    let used = bridge["fdb_used"].as_u64().expect("a number");
    assert!(used <= 65_536 && used > 40_000, "{used} stations are remembered");
    let known = daemon.fdb("--port p1").len() + daemon.fdb("--port p2").len();
    assert_eq!(known, honest.len(), "the others keep all their entries");
    board.drain();
    for (number, mac) in honest.iter().enumerate().step_by(20) {
        let home = 1 + number % 2;
        board.expect(0, &test_frame(*mac, station(0x2000_0000), "still known"), &[home]);
    }
    // The others can go on learning.
    for n in 0..100u8 {
        board.stations[2]
            .send(&test_frame([0x01, 0x80, 0xc2, 0, 0, 0x0e], [0x02, 0x20, 0, 0, 0, n], "new"))
            .expect("sent");
    }
    eventually("new honest stations are learned", || daemon.fdb("--port p2").len() == honest.len() / 2 + 100);
    Ok(())
}

/// A table that is full of the honest: newcomers are not learned but reached by flooding, and statics find a place.
pub fn full_table() -> Outcome {
    let board = Board::new("--fdb-max 64", &["", "", ""]);
    let daemon = &board.daemon;
    for n in 0..2000u32 {
        board.stations[(n % 3) as usize]
            .send(&test_frame([0x01, 0x80, 0xc2, 0, 0, 0x0e], station(n), "many"))
            .expect("sent");
        if n % 200 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let mut used = 0;
    eventually("it is full", || {
        used = daemon.json("bridge show br0")[0]["fdb_used"].as_u64().expect("a number");
        used >= 56
    });
    assert!(used <= 64, "{used} of 64");
    let shares: Vec<usize> = (0..3).map(|port| daemon.fdb(&format!("--port p{port}")).len()).collect();
    assert!(shares.iter().all(|share| *share >= 14), "everybody has about a third: {shares:?}");
    let unknown = (0..2000).map(station).find(|mac| daemon.whereabouts(*mac).is_none()).expect("not all fit");
    board.expect(0, &test_frame(unknown, station(0x77), "flooded"), &[1, 2]);
    daemon.ctl("fdb flush");
    assert!(daemon.fdb("").is_empty());
    Ok(())
}

/// Adding and deleting ports again and again leaves nothing open.
pub fn nothing_piles_up() -> Outcome {
    let (switch, wire) = (Ns::new("v"), Ns::new("w"));
    let daemon = Daemon::start(&switch);
    switch.veth("va", &wire, "vb", 1500);
    let turn = || {
        daemon.ctl("bridge add br0 --vlan-filtering on");
        daemon.ctl("port add va --bridge br0 --type packet --trunk 1-100");
        daemon.ctl(&format!("port add t --bridge br0 --type tap --netns {} --access 5", wire.name));
        daemon.ctl("port add i --bridge br0 --type internal");
        daemon.ctl(&format!("port add p --bridge br0 --type tap --no-offload --netns {}", wire.name));
        daemon.refused("port add q --bridge br0 --type packet --ifname nothing7");
        daemon.refused("port add q --bridge br0 --type tap --netns nothing7");
        daemon.refused(&format!("port add q --bridge br0 --type tap --ifname t --netns {}", wire.name));
        daemon.ctl("port del t");
        daemon.ctl("bridge del br0 --with-ports");
    };
    turn();
    let (files, memory) = (daemon.open_files(), daemon.resident_kib());
    (0..25).for_each(|_| turn());
    assert!(daemon.open_files() <= files + 2, "{} files open, {files} before", daemon.open_files());
    assert!(daemon.resident_kib() < memory + (16 << 10), "{} KiB, {memory} before", daemon.resident_kib());
    assert_eq!((switch.links().len(), wire.links().len()), (2, 2), "only what was there before");
    Ok(())
}
