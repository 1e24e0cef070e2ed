//! vswitchd from start to end: configuration, reload, signals, crashes.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::harness::board::Board;
use crate::harness::count::count;
use crate::harness::daemon::{Daemon, Start, VSWITCHD, folder, mac_text};
use crate::harness::frame::{BROADCAST, Mac, station, test_frame};
use crate::harness::net::Ns;
use crate::harness::raw::Raw;
use crate::harness::{Outcome, PATIENCE, eventually};

const A: Mac = [0x02, 0, 0, 0, 0xaa, 1];
const B: Mac = [0x02, 0, 0, 0, 0xbb, 2];

/// A port of br0 in TOML.
fn tap(name: &str, ns: &Ns, more: &str) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\nbridge = \"br0\"\ntype = \"tap\"\nnetns = \"{}\"\n{more}\n",
        ns.name
    )
}

const BRIDGE: &str = "[[bridge]]\nname = \"br0\"\n";

pub fn starts_from_a_configuration() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    ns.veth("va", &wire, "vb", 1500);
    let config = format!(
        "[daemon]\nworkers = 1\npoll = \"wait\"\n\n\
         [[bridge]]\nname = \"br0\"\nageing_secs = 60\nvlan_filtering = true\n\n\
         [[port]]\nname = \"p1\"\nbridge = \"br0\"\ntype = \"packet\"\nifname = \"va\"\naccess = 10\n\n\
         [[port]]\nname = \"p2\"\nbridge = \"br0\"\ntype = \"tap\"\nnetns = \"{0}\"\ntrunk = [10, \"20-22\"]\nnative = 5\n\
         mac = \"02:00:00:00:00:81\"\nmtu = 1400\naddress = [\"10.4.4.1/24\"]\nhairpin = true\n\n\
         [[port]]\nname = \"later\"\nbridge = \"br0\"\ntype = \"packet\"\n\n\
         [[fdb]]\nmac = \"02:00:00:00:00:82\"\nport = \"p1\"\n",
        wire.name
    );
    let daemon = Start::new(&ns).config(&config).ready();
    assert_eq!(daemon.json("status")["workers"].as_array().map(Vec::len), Some(1));
    let bridge = &daemon.json("bridge show")[0];
    assert_eq!(
        (&bridge["ageing_secs"], &bridge["vlan_filtering"], &bridge["ports"]),
        (&json!(60), &json!(true), &json!(["p1", "p2", "later"]))
    );
    assert_eq!(daemon.port("p1")["vlan"]["access"], 10);
    let p2 = daemon.port("p2");
    assert_eq!((&p2["vlan"]["trunk"], &p2["vlan"]["native"]), (&json!([10, 20, 21, 22]), &json!(5)));
    assert_eq!(
        (&p2["mac"], &p2["mtu"], &p2["hairpin"]),
        (&json!("02:00:00:00:00:81"), &json!(1400), &json!(true))
    );
    let mut known = daemon.fdb("");
    // The tap announces itself.
    known.retain(|(mac, ..)| mac != "02:00:00:00:00:81");
    assert_eq!(known, [("02:00:00:00:00:82".into(), 10, "p1".into(), "static".into())]);
    // An interface that is not there yet is waited for.
    assert_eq!(
        (daemon.port_state("later").as_str(), &daemon.port("later")["ifindex"]),
        ("gone", &json!(null))
    );
    ns.veth("later", &wire, "later", 1500);
    daemon.wait_port_state("later", "up");
    // Frames flow.
    let (b, t) = (Raw::open(&wire, "vb"), Raw::open(&wire, "p2"));
    b.send(&test_frame(BROADCAST, A, "hello")).expect("sent");
    assert!(t.next(PATIENCE).is_some());
    Ok(())
}

/// Without --config, and with nothing at the default place, it starts empty and does what it is told.
pub fn starts_without_a_configuration() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    let daemon = Start::new(&ns).without_config().ready();
    let status = daemon.json("status");
    assert_eq!((&status["config"], &status["bridges"]), (&json!(null), &json!(0)), "{status}");
    daemon.ctl("bridge add br0");
    let raws: Vec<Raw> = ["p0", "p1"]
        .into_iter()
        .map(|name| {
            daemon.ctl(&format!("port add {name} --bridge br0 --type tap --netns {}", wire.name));
            Raw::open(&wire, name)
        })
        .collect();
    raws[0].send(&test_frame(BROADCAST, A, "hello")).expect("sent");
    assert!(raws[1].next(PATIENCE).is_some());
    assert!(daemon.refused("reload").contains("without a configuration"));
    daemon.signal(libc::SIGHUP);
    eventually("it is logged", || daemon.log().contains("reload refused"));
    assert_eq!(daemon.json("status")["ports"], 2, "and nothing is lost");
    daemon.terminate();
    Ok(())
}

/// `--check` says good or what is wrong and where, and touches nothing.
pub fn check() -> Outcome {
    let (ns, work) = (Ns::new("v"), folder());
    let file = work.path().join("c.toml");
    let check = |text: &str| {
        fs::write(&file, text).expect("written");
        let path = file.display().to_string();
        ns.enter(|| Command::new(VSWITCHD).args(["--check", "--config", &path]).output()).expect("it runs")
    };
    let good = check(&format!("{BRIDGE}[[port]]\nname = \"p\"\nbridge = \"br0\"\ntype = \"tap\"\n"));
    assert!(good.status.success(), "{good:?}");
    assert_eq!(ns.links(), ["lo"]);
    for (text, line, words) in [
        ("[[bridge]]\nname = \"br0\"\ncolour = 1\n", 3, "colour"),
        ("[[bridge]]\nname = \"br0\"\nageing_secs = \"x\"\n", 3, "ageing_secs"),
        ("[[port]]\nname = \"p\"\nbridge = \"br9\"\ntype = \"tap\"\n", 1, "br9"),
        ("[[bridge]]\nname = \"b\"\n[[bridge]]\nname = \"b\"\n", 3, "twice"),
        (
            "[[bridge]]\nname = \"b\"\n\n[[port]]\nname = \"p\"\nbridge = \"b\"\ntype = \"tap\"\naccess = 7\n",
            4,
            "vlan_filtering",
        ),
        ("[daemon]\npoll = \"sometimes\"\n", 2, "sometimes"),
        (
            "[daemon]\nworkers = 1\n[[bridge]]\nname = \"b\"\n[[port]]\nname = \"p\"\nbridge = \"b\"\ntype = \"tap\"\nqueues = 2\n",
            5,
            "1 workers",
        ),
        ("[[bridge]\n", 1, ""),
        ("\u{0}", 1, ""),
    ] {
        let bad = check(text);
        let stderr = String::from_utf8(bad.stderr).expect("UTF-8");
        assert_eq!(bad.status.code(), Some(1), "{text:?}: {stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{text:?}: {stderr}");
        let place = format!("{}:{line}:", file.display());
        // A value's own field is named by its line alone.
        let named = stderr.contains(words) || words == "ageing_secs";
        assert!(stderr.contains(&place) && named, "{text:?}: {stderr}");
    }
    let missing =
        ns.enter(|| Command::new(VSWITCHD).args(["--check", "--config", "/nowhere/7.toml"]).output());
    let missing = missing.expect("it runs");
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nowhere/7.toml"));
    let wrong = ns.enter(|| Command::new(VSWITCHD).arg("--frobnicate").output()).expect("it runs");
    assert_eq!(wrong.status.code(), Some(2));
    Ok(())
}

/// A start that fails, at its very end too, leaves nothing and says why.
pub fn a_failed_start_leaves_nothing() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    let config = format!("{BRIDGE}{}{}", tap("p1", &wire, ""), tap("p2", &wire, "ifname = \"lo\""));
    let mut daemon = Start::new(&ns).config(&config).arguments("--strict").spawn();
    assert_eq!(daemon.wait().code(), Some(1));
    let log = daemon.log();
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains("'lo'") && last.contains("p2") && last.contains("vswitchd.toml:"), "{log}");
    assert_eq!((wire.links(), ns.links()), (vec!["lo".to_owned()], vec!["lo".to_owned()]));
    assert!(!daemon.socket.exists(), "the socket is gone");
    Ok(())
}

pub fn second_start_is_refused() -> Outcome {
    let ns = Ns::new("v");
    let daemon = Daemon::start(&ns);
    let socket = daemon.socket.display().to_string();
    let empty = daemon.path("vswitchd.toml").display().to_string();
    let second = ns.enter(|| Command::new(VSWITCHD).args(["--config", &empty, "--socket", &socket]).output());
    let second = second.expect("it runs");
    let stderr = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&daemon.pid().to_string()) && stderr.contains(&socket), "{stderr}");
    daemon.ctl("bridge add br0");
    // Another socket is another switch.
    let other = Daemon::start(&ns);
    assert_eq!(other.json("bridge show"), json!([]));
    Ok(())
}

/// What it created goes with it; what it found stays as it was.
pub fn clean_end() -> Outcome {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let (ns, wire) = (Ns::new("v"), Ns::new("w"));
        ns.veth("va", &wire, "vb", 1500);
        let mut daemon = Daemon::start(&ns);
        daemon.ctl("bridge add br0");
        daemon.ctl(&format!("port add t1 --bridge br0 --type tap --netns {}", wire.name));
        daemon.ctl("port add i1 --bridge br0 --type internal");
        daemon.ctl("port add va --bridge br0 --type packet");
        daemon.signal(signal);
        assert!(daemon.wait().success(), "{}", daemon.log());
        assert!(!daemon.socket.exists());
        let left: Vec<_> =
            fs::read_dir(daemon.path("")).expect("a folder").flatten().map(|e| e.file_name()).collect();
        assert_eq!(left.len(), 2, "its configuration and log: {left:?}");
        eventually("its interfaces are gone", || wire.link("t1").is_none() && ns.link("i1").is_none());
        assert_eq!(ns.link("va").expect("it stays")["promiscuity"], 0);
        host_hears_again(&ns, &wire);
    }
    Ok(())
}

/// The host's stack is awake on va.
fn host_hears_again(ns: &Ns, wire: &Ns) {
    ns.ip("addr add 10.5.5.1/24 dev va");
    wire.ip("addr add 10.5.5.2/24 dev vb");
    wire.run("ping", &["-c", "1", "-W", "5", "10.5.5.1"]);
}

/// SIGKILL leaves nothing that stops the next start, and the kernel takes back what was lent.
pub fn killed_and_started_again() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    ns.veth("va", &wire, "vb", 1500);
    let config = format!(
        "{BRIDGE}{}[[port]]\nname = \"va\"\nbridge = \"br0\"\ntype = \"packet\"\n",
        tap("p1", &wire, "address = \"10.6.6.1/24\"")
    );
    let daemon = Start::new(&ns).config(&config).ready();
    daemon.ctl(&format!("port add p2 --bridge br0 --type tap --netns {}", wire.name));
    let socket = daemon.socket.clone();
    let work = daemon.kill();
    assert!(socket.exists(), "a stale socket");
    eventually("its taps are gone", || wire.link("p1").is_none() && wire.link("p2").is_none());
    eventually("promiscuity is undone", || ns.link("va").expect("it stays")["promiscuity"] == 0);
    host_hears_again(&ns, &wire);
    ns.ip("addr flush dev va");
    let daemon = Start::new(&ns).config(&config).folder(work).ready();
    assert_eq!((daemon.port_state("p1").as_str(), daemon.port_state("va").as_str()), ("up", "up"));
    let (a, b) = (Raw::open(&wire, "p1"), Raw::open(&wire, "vb"));
    a.send(&test_frame(BROADCAST, A, "again")).expect("sent");
    assert!(b.collect(1, PATIENCE, crate::harness::frame::is_test).len() == 1);
    // Killed in the middle of changes, ten times over.
    drop((a, b));
    let mut daemon = daemon;
    for turn in 0..10u64 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..20 {
                    let _ = daemon.try_ctl(&[
                        "port",
                        "add",
                        &format!("x{n}"),
                        "--bridge",
                        "br0",
                        "--type",
                        "tap",
                    ]);
                    let _ = daemon.try_ctl(&["port", "del", &format!("x{n}")]);
                }
            });
            std::thread::sleep(Duration::from_millis(7 + 13 * turn));
            daemon.signal(libc::SIGKILL);
        });
        let work = daemon.kill();
        daemon = Start::new(&ns).config(&config).folder(work).ready();
        assert_eq!(daemon.json("port show").as_array().map(Vec::len), Some(2));
    }
    Ok(())
}

/// Reload applies the difference: ports that did not change lose no frame and keep their interface; what was added at run time
/// stays.
pub fn reload_without_loss() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    for number in 0..2 {
        ns.veth(&format!("va{number}"), &wire, &format!("vb{number}"), 1500);
    }
    let fixed = format!(
        "[[bridge]]\nname = \"br0\"\nAGEING\n{}{}\
         [[port]]\nname = \"va0\"\nbridge = \"br0\"\ntype = \"packet\"\n\
         [[port]]\nname = \"va1\"\nbridge = \"br0\"\ntype = \"packet\"\n",
        tap("p0", &wire, ""),
        tap("p1", &wire, "")
    );
    let with = |ageing: u32, more: &str| fixed.replace("AGEING", &format!("ageing_secs = {ageing}")) + more;
    let daemon = Start::new(&ns).arguments("--workers 2").config(&with(300, &tap("old", &wire, ""))).ready();
    daemon.ctl("bridge add own");
    daemon.ctl(&format!("port add runtime --bridge br0 --type tap --netns {}", wire.name));
    daemon.ctl("fdb add 02:00:00:00:00:99 --port runtime");
    let origin = |name: &str| daemon.port(name)["origin"].clone();
    assert_eq!((origin("p0"), origin("runtime")), (json!("configuration"), json!("runtime")));
    let indices = || ["p0", "p1", "va0", "va1", "runtime"].map(|name| daemon.port(name)["ifindex"].clone());
    let before = indices();

    let raws: Vec<Raw> = ["p0", "p1", "vb0", "vb1"].into_iter().map(|name| Raw::open(&wire, name)).collect();
    raws[1].send(&test_frame(BROADCAST, B, "here")).expect("sent");
    eventually("the receiver is known", || daemon.whereabouts(B).is_some());
    let (counted, ()) = count((&raws[0], A), (&raws[1], B), || {
        for turn in 0..10u32 {
            let changing = match turn % 3 {
                0 => tap("new", &wire, "isolated = true"),
                1 => tap("new", &wire, "flood = false") + &tap("third", &wire, "mtu = 1400"),
                _ => tap("old", &wire, ""),
            };
            daemon.write_config(&with(300 + turn, &changing));
            if turn % 2 == 0 {
                daemon.ctl("reload");
            } else {
                daemon.signal(libc::SIGHUP);
                eventually("SIGHUP reloads", || {
                    daemon.json("bridge show br0")[0]["ageing_secs"] == 300 + turn
                });
            }
        }
    });
    counted.complete(1000);
    // The same over packet ports, and into a flood.
    let (counted, ()) = count((&raws[2], station(0x31)), (&raws[3], BROADCAST), || {
        for turn in 0..6u32 {
            daemon.write_config(&with(400 + turn, &tap(["new", "third"][turn as usize % 2], &wire, "")));
            daemon.ctl("reload");
        }
    });
    counted.complete(1000);
    assert_eq!(indices(), before, "no interface was made anew");
    let report = {
        daemon.write_config(&with(500, &tap("new", &wire, "")));
        daemon.json("reload")
    };
    assert_eq!(
        (&report["added"], &report["removed"]),
        (&json!(["port 'new'"]), &json!(["port 'third'"])),
        "{report}"
    );
    let report = daemon.json("reload");
    for list in ["added", "changed", "removed", "warnings"] {
        assert_eq!(report[list], json!([]), "nothing changed: {report}");
    }
    // What needs a restart is said, and does not stop the rest.
    daemon.write_config(&format!("[daemon]\npoll = \"busy\"\n{}", with(600, &tap("new", &wire, ""))));
    let report = daemon.json("reload");
    assert!(
        report["warnings"][0].as_str().is_some_and(|text| text.contains("poll") && text.contains("restart")),
        "{report}"
    );
    assert_eq!(daemon.json("bridge show br0")[0]["ageing_secs"], 600);
    assert!(daemon.fdb("").iter().any(|entry| entry.0 == "02:00:00:00:00:99"), "a station of run time stays");
    assert_eq!(daemon.json("bridge show").as_array().map(Vec::len), Some(2));
    assert_eq!(daemon.drops("p1", "port_gone") + daemon.drops("va1", "port_gone"), 0);
    Ok(())
}

/// A reload moves static stations and removes them, and frames follow.
pub fn stations_by_reload() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    let fixed = station(0x44);
    let text = |stations: &[(u32, &str)]| {
        let mut text = BRIDGE.to_owned();
        for name in ["p0", "p1", "p2"] {
            text += &tap(name, &wire, "");
        }
        for (number, port) in stations {
            text += &format!("[[fdb]]\nmac = \"{}\"\nport = \"{port}\"\n", mac_text(station(*number)));
        }
        text
    };
    let daemon = Start::new(&ns).config(&text(&[(0x44, "p0")])).ready();
    let raws: Vec<Raw> = ["p0", "p1", "p2"].into_iter().map(|name| Raw::open(&wire, name)).collect();
    daemon.ctl(&format!("fdb add {} --port p2", mac_text(station(0x55))));
    let reach = |words: &str| -> Vec<usize> {
        let heard = || daemon.stats("p2")["rx_frames"].as_u64();
        let before = heard();
        raws[2].send(&test_frame(fixed, A, words)).expect("sent");
        // The frame reaches at least one of them; the other would have it by then, too.
        eventually("it comes in", || heard() > before);
        std::thread::sleep(Duration::from_millis(50));
        (0..2)
            .filter(|port| raws[*port].drain().iter().any(|seen| seen.bytes.ends_with(words.as_bytes())))
            .collect()
    };
    assert_eq!(reach("behind p0"), [0]);
    daemon.write_config(&text(&[(0x44, "p1"), (0x66, "p0")]));
    let report = daemon.json("reload");
    assert_eq!(report["warnings"], json!([]), "{report}");
    assert_eq!(reach("behind p1"), [1]);
    let places = || {
        let stations = daemon.fdb("").into_iter().filter(|(_, _, _, state)| state == "static");
        stations.map(|(mac, _, port, _)| (mac, port)).collect::<Vec<_>>()
    };
    let place = |number: u32, port: &str| (mac_text(station(number)), port.to_owned());
    assert_eq!(places(), [place(0x44, "p1"), place(0x55, "p2"), place(0x66, "p0")]);
    daemon.write_config(&text(&[]));
    daemon.ctl("reload");
    assert_eq!(places(), [place(0x55, "p2")], "that of run time stays");
    assert_eq!(reach("behind nobody"), [0, 1]);
    Ok(())
}

/// A reload that cannot be done changes nothing, and names the place.
pub fn refused_reload() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    let good = format!("{BRIDGE}{}{}", tap("p0", &wire, ""), tap("p1", &wire, ""));
    let daemon = Start::new(&ns).config(&good).ready();
    daemon.ctl(&format!("port add mine --bridge br0 --type tap --netns {}", wire.name));
    let picture = || {
        let mut ports = daemon.json("port show");
        ports.as_array_mut().expect("a list").iter_mut().for_each(|port| port["counters"] = json!(0));
        (daemon.json("bridge show"), ports)
    };
    let before = picture();
    let impossible = tap("p9", &wire, "ifname = \"lo\"");
    for (text, words) in [
        (format!("{good}colour = 1\n"), "colour"),
        (format!("{good}{}", tap("p1", &wire, "")), "twice"),
        // Refused at the last step, when others have been taken already.
        (
            format!(
                "{BRIDGE}ageing_secs = 5\n{}{}{impossible}",
                tap("p0", &wire, "flood = false"),
                tap("p2", &wire, "")
            ),
            "'lo'",
        ),
        // Nor is a device removed that would have to be made anew.
        (format!("{BRIDGE}{}{}{impossible}", tap("p0", &wire, ""), tap("p1", &wire, "mtu = 1400")), "'lo'"),
        (format!("{good}{}", tap("mine", &wire, "mtu = 1400")), "mine"),
        ("[[bridge]]\nname = \"other\"\n".into(), "mine"),
        ("[[bridge]\n".into(), ":1:"),
    ] {
        daemon.write_config(&text);
        let error = daemon.refused("reload");
        assert!(error.contains(words), "{words}: {error}");
        assert_eq!(picture(), before, "after: {error}");
    }
    fs::remove_file(daemon.path("vswitchd.toml")).expect("removed");
    assert!(daemon.refused("reload").contains("vswitchd.toml"));
    daemon.signal(libc::SIGHUP);
    eventually("it is logged", || daemon.log().contains("reload refused"));
    daemon.write_config(&good);
    daemon.ctl("reload");
    Ok(())
}

/// systemd hears READY when the ports are up, RELOADING and STOPPING.
pub fn tells_the_service_manager() -> Outcome {
    let (ns, wire, work) = (Ns::new("v"), Ns::new("w"), folder());
    let path = work.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("bound");
    manager.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let mut buffer = [0; 4096];
    let mut hear = || {
        let len = manager.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    let daemon = Start::new(&ns)
        .config(&format!("{BRIDGE}{}", tap("p0", &wire, "")))
        .environment("NOTIFY_SOCKET", &path.display().to_string())
        .spawn();
    let ready = hear();
    assert!(ready.contains("READY=1"), "{ready}");
    assert!(wire.link("p0").is_some(), "ports are up when it says so");
    assert_eq!(daemon.port_state("p0"), "up");
    daemon.ctl("reload");
    let reloading = hear();
    assert!(reloading.contains("RELOADING=1") && reloading.contains("MONOTONIC_USEC="), "{reloading}");
    assert!(hear().contains("READY=1"));
    daemon.terminate();
    assert!(hear().contains("STOPPING=1"));
    Ok(())
}

/// Every way to wait and any number of workers carry frames.
pub fn options() -> Outcome {
    for arguments in [
        "--workers 1 --poll busy",
        "--workers 1 --poll wait",
        "--workers 2 --poll adaptive --cpus 0",
        "--workers auto",
        "--workers 4",
        "--log debug",
    ] {
        let (ns, wire) = (Ns::new("v"), Ns::new("w"));
        let daemon = Start::new(&ns).arguments(arguments).ready();
        daemon.ctl("bridge add br0");
        let raws: Vec<Raw> = ["a", "b", "c"]
            .into_iter()
            .map(|name| {
                daemon.ctl(&format!("port add {name} --bridge br0 --type tap --netns {}", wire.name));
                Raw::open(&wire, name)
            })
            .collect();
        for from in 0..3 {
            raws[from].send(&test_frame(BROADCAST, station(from as u32), arguments)).expect("sent");
            for to in (0..3).filter(|to| *to != from) {
                assert!(raws[to].next(PATIENCE).is_some(), "{arguments}");
            }
        }
        let workers = daemon.json("status")["workers"].clone();
        let workers = workers.as_array().expect("a list");
        if arguments.contains("--cpus 0") {
            assert!(workers.iter().all(|worker| worker["cpu"] == 0), "{workers:?}");
            let cpus: Vec<String> = daemon.worker_cpus().into_values().collect();
            assert_eq!(cpus, ["0", "0"], "as the kernel sees it");
        }
        if arguments == "--workers 4" {
            assert_eq!(workers.len(), 4);
            assert_eq!(daemon.port("a")["queues"], 4);
        }
        daemon.terminate();
    }
    let ns = Ns::new("v");
    for (arguments, code) in [
        ("--workers 0", 2),
        ("--poll never", 2),
        ("--cpus 3-1", 2),
        ("--log !!", 1),
        ("--cpus 4095", 1),
        ("--config /nowhere/7.toml", 1),
    ] {
        let mut daemon = Start::new(&ns).arguments(arguments).spawn();
        let status = daemon.wait();
        // --config twice is wrong usage as well.
        let fine = status.code() == Some(code) || arguments.starts_with("--config");
        assert!(fine && status.code() != Some(0), "{arguments}: {status}: {}", daemon.log());
        assert!(!daemon.log().is_empty(), "{arguments}");
    }
    Ok(())
}

/// A flood does not keep it from ending, nor from answering.
pub fn ends_under_a_flood() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    let daemon = Start::new(&ns).arguments("--workers 2").ready();
    daemon.ctl("bridge add br0");
    let raws: Vec<Raw> = ["t0", "t1"]
        .into_iter()
        .map(|name| {
            daemon.ctl(&format!("port add {name} --bridge br0 --type tap --netns {}", wire.name));
            Raw::open(&wire, name)
        })
        .collect();
    let flooding = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Into a tap that goes away: then the flood is over.
            while flooding.load(std::sync::atomic::Ordering::Relaxed) {
                if raws[0].send(&test_frame(BROADCAST, A, "flood")).is_err() {
                    break;
                }
            }
        });
        std::thread::sleep(Duration::from_millis(200));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let began = std::time::Instant::now();
            daemon.ctl("port show");
            assert!(began.elapsed() < Duration::from_secs(3), "an answer took {:?}", began.elapsed());
            let began = std::time::Instant::now();
            daemon.terminate();
            assert!(began.elapsed() < Duration::from_secs(3), "the end took {:?}", began.elapsed());
        }));
        flooding.store(false, std::sync::atomic::Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    Ok(())
}

/// Idle costs nothing to speak of.
pub fn idle() -> Outcome {
    let board = Board::new("", &[""; 8]);
    board.expect(0, &test_frame(BROADCAST, A, "awake"), &[1, 2, 3, 4, 5, 6, 7]);
    std::thread::sleep(Duration::from_millis(200));
    let before = board.daemon.ticks();
    std::thread::sleep(Duration::from_secs(2));
    let used = board.daemon.ticks() - before;
    assert!(used <= 6, "{used} ticks of 10 ms in 2 s, with eight idle ports");
    assert!(board.daemon.resident_kib() < 64 << 10, "{} KiB resident", board.daemon.resident_kib());
    Ok(())
}
