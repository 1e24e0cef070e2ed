//! What a bridge does with frames, setting by setting.

use std::time::{Duration, Instant};

use crate::harness::board::Board;
use crate::harness::daemon::mac_text;
use crate::harness::frame::{AD, BROADCAST, Mac, Q, TEST, frame, station, test_frame};
use crate::harness::raw::Raw;
use crate::harness::{Outcome, PATIENCE, eventually};

const GROUP: Mac = [0x01, 0x00, 0x5e, 0x01, 0x02, 0x03];

fn unknown(n: u32) -> Mac {
    station(0x00ee_0000 + n)
}

/// Makes stations 0, 1, … known, one a port.
fn introduce(board: &Board, tags: &[(u16, u16)]) {
    for port in 0..board.stations.len() {
        let hello = frame(BROADCAST, station(port as u32), tags, TEST, b"hello");
        board.stations[port].send(&hello).expect("sent");
        eventually("the station is known", || {
            board.daemon.whereabouts(station(port as u32)) == Some(format!("p{port}"))
        });
    }
    board.drain();
}

pub fn isolated() -> Outcome {
    let board = Board::new("", &["--isolated on", "--isolated on", "", ""]);
    introduce(&board, &[]);
    for to in [BROADCAST, GROUP, unknown(1)] {
        board.expect(0, &test_frame(to, station(0), "isolated"), &[2, 3]);
        board.expect(2, &test_frame(to, station(2), "open"), &[0, 1, 3]);
    }
    board.expect(0, &test_frame(station(1), station(0), "isolated to isolated"), &[]);
    assert_eq!(board.daemon.drops("p0", "isolated"), 1);
    board.expect(0, &test_frame(station(2), station(0), "isolated to open"), &[2]);
    board.expect(3, &test_frame(station(1), station(3), "open to isolated"), &[1]);
    board.daemon.ctl("port set p1 --isolated off");
    board.expect(0, &test_frame(station(1), station(0), "no longer"), &[1]);
    Ok(())
}

pub fn hairpin() -> Outcome {
    let board = Board::new("", &["--hairpin on", "", ""]);
    introduce(&board, &[]);
    let guest = station(50);
    board.expect(0, &test_frame(BROADCAST, guest, "comes back too"), &[0, 1, 2]);
    board.expect(0, &test_frame(guest, station(0), "to a neighbour behind the same port"), &[0]);
    board.expect(0, &test_frame(station(0), station(0), "to oneself"), &[0]);
    board.expect(1, &test_frame(station(1), unknown(1), "no hairpin here"), &[]);
    assert_eq!(board.daemon.drops("p1", "same_port"), 1);
    board.daemon.ctl("port set p0 --hairpin off");
    board.expect(0, &test_frame(guest, station(0), "no longer"), &[]);
    Ok(())
}

/// `--flood off` stops unknown unicast, and only that.
pub fn flood() -> Outcome {
    let board = Board::new("", &["", "--flood off", ""]);
    introduce(&board, &[]);
    board.expect(0, &test_frame(unknown(1), station(0), "unknown"), &[2]);
    board.expect(0, &test_frame(BROADCAST, station(0), "broadcast"), &[1, 2]);
    board.expect(0, &test_frame(GROUP, station(0), "multicast"), &[1, 2]);
    board.expect(0, &test_frame(station(1), station(0), "known"), &[1]);
    board.expect(1, &test_frame(unknown(2), station(1), "from it"), &[0, 2]);
    board.daemon.ctl("port set p2 --flood off");
    let before = board.daemon.drops("p0", "no_egress");
    board.expect(0, &test_frame(unknown(1), station(0), "nowhere to go"), &[]);
    assert_eq!(board.daemon.drops("p0", "no_egress"), before + 1);
    Ok(())
}

pub fn learning() -> Outcome {
    let board = Board::new("", &["", "--learning off", ""]);
    let (quiet, other) = (station(60), station(61));
    board.expect(1, &test_frame(BROADCAST, quiet, "not remembered"), &[0, 2]);
    assert_eq!(board.daemon.whereabouts(quiet), None);
    board.expect(0, &test_frame(quiet, other, "so it floods"), &[1, 2]);
    board.expect(1, &test_frame(other, quiet, "known on the other side"), &[0]);
    board.daemon.ctl("port set p1 --learning on");
    board.expect(1, &test_frame(other, quiet, "remembered from now on"), &[0]);
    board.expect(0, &test_frame(quiet, other, "to it alone"), &[1]);
    // Ageing 0 makes a hub of it.
    board.daemon.ctl("bridge set br0 --ageing 0");
    eventually("all is forgotten", || board.daemon.fdb("").is_empty());
    board.expect(1, &test_frame(other, quiet, "a hub"), &[0, 2]);
    board.expect(0, &test_frame(quiet, other, "a hub"), &[1, 2]);
    Ok(())
}

/// A static entry neither moves nor ages; a learned one does both.
pub fn static_entries_and_ageing() -> Outcome {
    let board = Board::new("--ageing 2", &["", "", ""]);
    let (fixed, mobile, busy) = (station(70), station(71), station(72));
    board.daemon.ctl(&format!("fdb add {} --port p0", mac_text(fixed)));
    board.expect(1, &test_frame(fixed, mobile, "to the fixed one, never heard"), &[0]);
    board.expect(1, &test_frame(BROADCAST, fixed, "an impostor"), &[0, 2]);
    board.expect(2, &test_frame(fixed, station(73), "still behind p0"), &[0]);
    assert_eq!(board.daemon.whereabouts(mobile).as_deref(), Some("p1"));
    board.expect(2, &test_frame(BROADCAST, mobile, "moved"), &[0, 1]);
    assert_eq!(board.daemon.whereabouts(mobile).as_deref(), Some("p2"));
    let counters = &board.daemon.json("bridge show br0")[0]["fdb_counters"];
    assert_eq!((&counters["moves"], &counters["conflicts"]), (&1.into(), &1.into()), "{counters}");
    let began = Instant::now();
    board.stations[0].send(&test_frame(GROUP, busy, "busy")).expect("sent");
    eventually("the silent one is forgotten", || {
        board.stations[0].send(&test_frame(GROUP, busy, "busy")).expect("sent");
        std::thread::sleep(Duration::from_millis(50));
        board.daemon.whereabouts(mobile).is_none()
    });
    let took = began.elapsed().as_secs_f64();
    assert!((0.9..6.0).contains(&took), "forgotten after {took} s, not about 2");
    assert_eq!(board.daemon.whereabouts(busy).as_deref(), Some("p0"), "the one that speaks is not");
    let entries = board.daemon.json("fdb show --port p0");
    let entry = entries.as_array().expect("a list").iter().find(|entry| entry["mac"] == mac_text(fixed));
    let entry = entry.expect("the static entry stays");
    assert_eq!((&entry["state"], &entry["age_secs"]), (&"static".into(), &0.into()), "{entry}");
    board.drain();
    board.expect(1, &test_frame(mobile, station(73), "forgotten, so flooded"), &[0, 2]);
    // A flush forgets learned ones only.
    board.daemon.ctl("fdb flush --bridge br0");
    assert_eq!(board.daemon.fdb("").len(), 1);
    board.daemon.ctl(&format!("fdb del {} --bridge br0", mac_text(fixed)));
    board.expect(1, &test_frame(fixed, station(73), "no longer fixed"), &[0, 2]);
    Ok(())
}

/// Static entries follow their port's VLAN, and none is lost on the way.
pub fn static_entries_follow() -> Outcome {
    let board = Board::new("--vlan-filtering on --default-pvid 10", &["", "", "--trunk 10,20,30"]);
    let daemon = &board.daemon;
    let (fixed, tagged) = (station(74), station(75));
    daemon.ctl(&format!("fdb add {} --port p0", mac_text(fixed)));
    daemon.ctl(&format!("fdb add {} --port p2 --vlan 20", mac_text(tagged)));
    let vlans = || daemon.fdb("").into_iter().map(|entry| (entry.0, entry.1)).collect::<Vec<_>>();
    let (fixed_text, tagged_text) = (mac_text(fixed), mac_text(tagged));
    assert_eq!(vlans(), [(fixed_text.clone(), 10), (tagged_text.clone(), 20)]);
    daemon.ctl("bridge set br0 --default-pvid 30");
    assert_eq!(vlans(), [(tagged_text.clone(), 20), (fixed_text.clone(), 30)]);
    board.expect(1, &test_frame(fixed, station(76), "it is there indeed"), &[0]);

    daemon.ctl("bridge set br0 --vlan-filtering off");
    assert_eq!(vlans(), [(fixed_text.clone(), 0), (tagged_text.clone(), 0)]);
    daemon.ctl(&format!("fdb del {tagged_text} --bridge br0 --vlan 0"));
    daemon.ctl(&format!("fdb add {tagged_text} --port p2"));
    let error = daemon.refused("bridge set br0 --vlan-filtering on");
    assert!(error.contains(&tagged_text) && error.contains("'p2'") && error.contains("fdb del"), "{error}");
    let error = daemon.refused("bridge set br0 --fdb-max 1");
    assert!(error.contains("fdb_max 1") && error.contains("2 static"), "{error}");
    assert_eq!(daemon.fdb("--vlan 0").len(), 2, "nothing is half done");
    Ok(())
}

/// Each bridge forgets in its own time.
pub fn ageing_by_bridge() -> Outcome {
    let board = Board::new("--ageing 2", &[""]);
    let daemon = &board.daemon;
    daemon.ctl("bridge add br1 --ageing 300");
    daemon.ctl(&format!("port add q0 --bridge br1 --type tap --netns {}", board.wire.name));
    let q0 = Raw::open(&board.wire, "q0");
    let known = |bridge: &str| !daemon.fdb(&format!("--bridge {bridge}")).is_empty();
    let hello = test_frame(BROADCAST, station(75), "the same station on both");
    q0.send(&hello).expect("sent");
    board.stations[0].send(&hello).expect("sent");
    eventually("both know it", || known("br0") && known("br1"));
    eventually("one forgets", || !known("br0"));
    assert!(known("br1"), "the other does not");
    // Changed while it runs, for one of them.
    daemon.ctl("bridge set br0 --ageing 300");
    daemon.ctl("bridge set br1 --ageing 2");
    board.stations[0].send(&hello).expect("sent");
    eventually("it is known again", || known("br0"));
    eventually("the other forgets", || !known("br1"));
    assert!(known("br0"));
    Ok(())
}

pub fn flushes() -> Outcome {
    let board = Board::new("--vlan-filtering on", &["--trunk 10,20", "--trunk 10,20", "--trunk 10,20"]);
    for vid in [10, 20] {
        for port in 0..3 {
            let from = station(80 + port as u32);
            board.expect(
                port,
                &frame(GROUP, from, &[(Q, vid)], TEST, b"hello"),
                &[(port + 1) % 3, (port + 2) % 3],
            );
        }
    }
    let count = |filter: &str| board.daemon.fdb(filter).len();
    assert_eq!(
        (count(""), count("--vlan 10"), count("--port p1"), count("--port p1 --vlan 20")),
        (6, 3, 2, 1)
    );
    assert_eq!(board.daemon.json("fdb flush --port p1 --vlan 20")["flushed"], 1);
    assert_eq!((count(""), count("--port p1")), (5, 1));
    board.daemon.ctl("fdb flush --vlan 10");
    assert_eq!((count(""), count("--vlan 10")), (2, 0));
    board.daemon.ctl("fdb flush --port p2");
    assert_eq!((count(""), count("--port p0")), (1, 1));
    board.daemon.ctl("bridge add br1");
    board.daemon.ctl("fdb flush --bridge br1");
    assert_eq!(count(""), 1);
    board.daemon.ctl("fdb flush");
    assert_eq!(count(""), 0);
    for wrong in ["--bridge br9", "--port p9"] {
        let error = board.daemon.refused(&format!("fdb flush {wrong}"));
        assert!(error.contains("9'; existing: "), "{error}");
    }
    Ok(())
}

/// Linux's rules about odd addresses, with the account of each.
pub fn odd_addresses() -> Outcome {
    let board = Board::new("", &["", "", ""]);
    introduce(&board, &[]);
    for last in 0..=0x0f {
        let to = [0x01, 0x80, 0xc2, 0, 0, last];
        let out: &[usize] = if last == 0 { &[1, 2] } else { &[] };
        board.expect(0, &test_frame(to, station(0), "link-local"), out);
    }
    assert_eq!(board.daemon.drops("p0", "link_local"), 15);
    for from in [[0; 6], GROUP, BROADCAST] {
        for to in [BROADCAST, station(1)] {
            board.expect(0, &test_frame(to, from, "bad source"), &[]);
        }
    }
    assert_eq!(board.daemon.drops("p0", "bad_source"), 6);
    assert_eq!(board.daemon.fdb("").len(), 3, "nobody else is known");
    Ok(())
}

/// The contract's words about VLANs, one by one.
pub fn vlan_rules() -> Outcome {
    let board = Board::new(
        "--vlan-filtering on --default-pvid 10",
        &["", "--access 20", "--trunk 10,20", "--trunk 10,30 --native 20"],
    );
    let daemon = &board.daemon;
    let from = station(90);
    let make = |tags: &[(u16, u16)]| frame(BROADCAST, from, tags, TEST, b"VLANs");
    let plain = make(&[]);
    let tagged = |tci: u16| make(&[(Q, tci)]);
    // An access port of the default PVID.
    board.expect_as(0, &plain, &[(2, &tagged(10)), (3, &tagged(10))]);
    board.expect_as(0, &tagged(0xa000), &[(2, &tagged(0xa00a)), (3, &tagged(0xa00a))]);
    board.expect(0, &tagged(10), &[]);
    board.expect(0, &tagged(20), &[]);
    assert_eq!(daemon.drops("p0", "vlan_ingress"), 2);
    // A trunk without native VLAN.
    board.expect(2, &plain, &[]);
    board.expect(2, &tagged(0), &[]);
    board.expect(2, &tagged(30), &[]);
    assert_eq!(daemon.drops("p2", "vlan_ingress"), 3);
    board.expect_as(2, &tagged(20), &[(1, &plain), (3, &plain)]);
    // Priority survives where a tag does; DEI (0x1000) too.
    board.expect_as(2, &tagged(0xf00a), &[(0, &plain), (3, &tagged(0xf00a))]);
    // A trunk with native VLAN.
    board.expect_as(3, &plain, &[(1, &plain), (2, &tagged(20))]);
    board.expect_as(3, &tagged(0x6014), &[(1, &plain), (2, &tagged(0x6014))]);
    // Service tags wait for QinQ.
    board.expect(3, &make(&[(AD, 10)]), &[]);
    assert_eq!(daemon.drops("p3", "vlan_unsupported"), 1);
    // The double-tag trick: VLAN 20's native trunk must not turn the inner tag into VLAN 10.
    let trick = frame(BROADCAST, from, &[(Q, 0), (Q, 10)], TEST, b"trick");
    let bare = frame(BROADCAST, from, &[(Q, 10)], TEST, b"trick");
    let in_20 = frame(BROADCAST, from, &[(Q, 20), (Q, 10)], TEST, b"trick");
    board.expect_as(1, &trick, &[(2, &in_20)]);
    assert_eq!(daemon.drops("p3", "double_tag"), 1);
    board.expect_as(2, &in_20, &[(1, &bare)]);
    assert_eq!(daemon.drops("p3", "double_tag"), 2);
    // Changed while it runs.
    daemon.ctl("port set p1 --access 10");
    board.expect_as(0, &plain, &[(1, &plain), (2, &tagged(10)), (3, &tagged(10))]);
    daemon.ctl("port set p3 --native 10");
    board.expect_as(0, &plain, &[(1, &plain), (2, &tagged(10)), (3, &plain)]);
    daemon.ctl("port set p2 --vlan default");
    board.expect_as(0, &plain, &[(1, &plain), (2, &plain), (3, &plain)]);
    daemon.ctl("bridge set br0 --default-pvid 30");
    board.expect_as(0, &plain, &[(2, &plain), (3, &tagged(30))]);
    // And off: tags are payload, what was learned is forgotten.
    for port in ["p1", "p3"] {
        daemon.ctl(&format!("port set {port} --vlan default"));
    }
    assert!(!daemon.fdb("").is_empty());
    daemon.ctl("bridge set br0 --vlan-filtering off");
    assert_eq!(daemon.fdb(""), []);
    board.expect(0, &tagged(77), &[1, 2, 3]);
    board.expect(0, &make(&[(AD, 10), (Q, 5)]), &[1, 2, 3]);
    assert_eq!(daemon.fdb("")[0].1, 0, "one learning domain, VLAN 0");
    Ok(())
}

/// What a known station gets depends on the VLAN it is known in.
pub fn learning_by_vlan() -> Outcome {
    let board = Board::new(
        "--vlan-filtering on",
        &["--trunk 10,20", "--trunk 10,20", "--trunk 10,20", "--access 10"],
    );
    let twin = station(91);
    let to_twin = |vid: u16| frame(twin, station(92), &[(Q, vid)], TEST, b"to the twin");
    board.expect(0, &frame(GROUP, twin, &[(Q, 20)], TEST, b"in 20"), &[1, 2]);
    board.expect(2, &to_twin(20), &[0]);
    let bare = frame(twin, station(92), &[], TEST, b"to the twin");
    board.expect_as(2, &to_twin(10), &[(0, &to_twin(10)), (1, &to_twin(10)), (3, &bare)]);
    let hello = frame(GROUP, twin, &[(Q, 10)], TEST, b"in 10");
    let hello_bare = frame(GROUP, twin, &[], TEST, b"in 10");
    board.expect_as(1, &hello, &[(0, &hello), (2, &hello), (3, &hello_bare)]);
    board.expect(2, &to_twin(10), &[1]);
    board.expect(2, &to_twin(20), &[0]);
    let entries = board.daemon.fdb("");
    let of_twin: Vec<_> =
        entries.iter().filter(|entry| entry.0 == mac_text(twin)).map(|e| (e.1, e.2.as_str())).collect();
    assert_eq!(of_twin, [(10, "p1"), (20, "p0")]);
    // A port that gives a VLAN up is not known there any more.
    board.daemon.ctl("port set p0 --trunk 10");
    assert!(board.daemon.fdb("--vlan 20 --port p0").is_empty());
    board.expect(2, &to_twin(20), &[1]);
    Ok(())
}

/// Bridges are worlds of their own.
pub fn bridges_are_separate() -> Outcome {
    let board = Board::new("", &["", ""]);
    board.daemon.ctl("bridge add br1");
    for name in ["q0", "q1"] {
        board.daemon.ctl(&format!("port add {name} --bridge br1 --type tap --netns {}", board.wire.name));
    }
    let (q0, q1) = (Raw::open(&board.wire, "q0"), Raw::open(&board.wire, "q1"));
    board.expect(0, &test_frame(BROADCAST, station(1), "only here"), &[1]);
    assert!(q0.take().is_none() && q1.take().is_none(), "a frame crossed over to br1");
    q0.send(&test_frame(BROADCAST, station(1), "same station elsewhere")).expect("sent");
    assert!(q1.next(PATIENCE).is_some());
    let places: Vec<String> = board.daemon.fdb("").into_iter().map(|(_, _, port, _)| port).collect();
    assert_eq!(places, ["p0", "q0"]);
    Ok(())
}

/// Counters, to the frame and byte.
pub fn counters() -> Outcome {
    let board = Board::new("", &["", "", ""]);
    introduce(&board, &[]);
    let before: Vec<_> = (0..3).map(|port| board.daemon.stats(&format!("p{port}"))).collect();
    let sizes = [60, 64, 1514, 200, 14];
    for size in sizes {
        let mut bytes = test_frame(station(1), station(0), "");
        bytes.resize(size, 0x77);
        board.expect(0, &bytes, &[1]);
    }
    board.expect(0, &test_frame(BROADCAST, station(0), "flooded"), &[1, 2]);
    let grown = |port: usize, field: &str| {
        let now = board.daemon.stats(&format!("p{port}"));
        now[field].as_u64().expect("a number") - before[port][field].as_u64().expect("a number")
    };
    let bytes = sizes.iter().sum::<usize>() as u64 + 21;
    for field in ["frames", "segments"] {
        assert_eq!(grown(0, &format!("rx_{field}")), 6);
        assert_eq!(grown(1, &format!("tx_{field}")), 6);
        assert_eq!(grown(2, &format!("tx_{field}")), 1);
        assert_eq!(grown(1, &format!("rx_{field}")), 0);
    }
    assert_eq!((grown(0, "rx_bytes"), grown(1, "tx_bytes"), grown(2, "tx_bytes")), (bytes, bytes, 21));
    // The same in `port show`.
    let shown = board.daemon.port("p0")["counters"]["rx_bytes"].as_u64();
    assert_eq!(shown, board.daemon.stats("p0")["rx_bytes"].as_u64());
    Ok(())
}
