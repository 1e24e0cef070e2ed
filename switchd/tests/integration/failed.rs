//! Ports that the kernel refuses: the others run.

use std::os::unix::net::UnixDatagram;

use serde_json::json;

use super::harness::daemon::{Daemon, Start, folder};
use super::harness::net::Ns;
use super::harness::{Outcome, PATIENCE};

const BRIDGE: &str = "[[bridge]]\nname = \"br0\"\n";
const STATION: &str = "02:00:00:00:00:77";

/// A tap port in a namespace, with a line more.
fn tap(name: &str, ns: &Ns, more: &str) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\nbridge = \"br0\"\ntype = \"tap\"\nnetns = \"{}\"\n{more}\n",
        ns.name
    )
}

/// Two ports, of which the second wants an IPv6 address, and a station behind that.
fn two(wire: &Ns) -> String {
    let second = tap("p2", wire, "address = [\"fd00::2/64\"]");
    format!("{BRIDGE}{}{second}[[fdb]]\nmac = \"{STATION}\"\nport = \"p2\"\n", tap("p1", wire, ""))
}

fn allow_ipv6(ns: &Ns) {
    ns.sysctl("net/ipv6/conf/default/disable_ipv6", "0");
    ns.sysctl("net/ipv6/conf/all/disable_ipv6", "0");
}

#[track_caller]
fn assert_failed(daemon: &Daemon, name: &str) {
    let port = daemon.port(name);
    assert_eq!(port["state"], "failed", "{port}");
    let reason = port["reason"].as_str().unwrap_or_default();
    assert!(
        reason.starts_with("cannot add address fd00::") && reason.contains("IPv6 is disabled"),
        "{reason}"
    );
    let explained = daemon.ctl(&format!("port explain {name}"));
    assert!(explained.contains("failed") && explained.contains(reason), "{explained}");
    assert!(daemon.ctl(&format!("port show {name}")).contains(reason));
    assert!(daemon.ctl("port show").lines().any(|line| line.starts_with(name) && line.contains("failed")));
}

pub fn the_others_start() -> Outcome {
    let (ns, wire, work) = (Ns::new("v"), Ns::new("w"), folder());
    let path = work.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("bound");
    manager.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let hear = || {
        let mut buffer = [0; 4096];
        let len = manager.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    let daemon =
        Start::new(&ns).config(&two(&wire)).environment("NOTIFY_SOCKET", &path.display().to_string()).spawn();
    let ready = hear();
    assert!(ready.contains("READY=1") && ready.contains("1 of 2 ports failed"), "{ready}");
    assert_eq!(daemon.port_state("p1"), "up");
    assert_failed(&daemon, "p2");
    assert!(wire.link("p2").is_none(), "nothing half made is left");
    let log = daemon.log();
    assert!(log.contains("WARN") && log.contains("port 'p2': cannot add address"), "{log}");

    let status = daemon.json("status");
    assert_eq!((&status["ports"], &status["failed_ports"]), (&json!(2), &json!(["p2"])));
    let table = daemon.ctl("status");
    assert!(table.lines().any(|line| line.starts_with("failed-ports") && line.ends_with("p2")), "{table}");
    let (_, _, metrics) = daemon.http("GET", "/metrics", "");
    for (port, failed) in [("p1", 0), ("p2", 1)] {
        let sample = format!("vswitch_port_failed{{bridge=\"br0\",port=\"{port}\",type=\"tap\"}} {failed}\n");
        assert!(metrics.contains(&sample), "{metrics}");
    }
    let station = (STATION.to_owned(), 0, "p2".to_owned(), "static".to_owned());
    assert_eq!(daemon.fdb("--port p2"), std::slice::from_ref(&station), "as if the port were there");
    daemon.ctl("port set p2 --isolated on");
    daemon.ctl("port set p2 --isolated off");

    // The same file again: what has failed is tried again, and may fail again.
    daemon.signal(libc::SIGHUP);
    assert!(hear().contains("RELOADING=1"));
    let again = hear();
    assert!(again.contains("READY=1") && again.contains("1 of 2 ports failed"), "{again}");
    assert!(daemon.log().contains("has failed again"), "{}", daemon.log());

    allow_ipv6(&wire);
    daemon.signal(libc::SIGHUP);
    assert!(hear().contains("RELOADING=1"));
    let again = hear();
    assert!(
        again.contains("READY=1") && again.contains("STATUS=switching") && !again.contains("failed"),
        "{again}"
    );
    let port = daemon.port("p2");
    assert_eq!((&port["state"], &port["reason"]), (&json!("up"), &json!(null)));
    assert!(daemon.fdb("--port p2").contains(&station));
    assert_eq!(daemon.json("status")["failed_ports"], json!([]));
    Ok(())
}

pub fn comes_by_itself() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    let work = folder();
    let socket = work.path().join("later").join("s");
    let stream = format!(
        "[[port]]\nname = \"p3\"\nbridge = \"br0\"\ntype = \"vhost-user\"\npath = \"{}\"\n",
        socket.display()
    );
    let daemon = Start::new(&ns).config(&(two(&wire) + &stream)).ready();
    assert_failed(&daemon, "p2");
    let port = daemon.port("p3");
    assert_eq!(port["state"], "failed");
    assert!(port["reason"].as_str().unwrap_or_default().contains("no directory"), "{port}");
    allow_ipv6(&wire);
    std::fs::create_dir(work.path().join("later")).expect("made");
    daemon.wait_port_state("p2", "up");
    daemon.wait_port_state("p3", "down");
    // And can be had rid of, as any other.
    daemon.ctl("port del p2");
    wire.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    daemon.ctl("port del p3");
    let add = format!("port add p2 --bridge br0 --type tap --netns {} --address fd00::2/64", wire.name);
    let told = daemon.refused(&add);
    assert!(told.contains("IPv6 is disabled"), "by hand it is refused: {told}");
    Ok(())
}

pub fn strict() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    for (config, arguments, starts) in [
        (two(&wire), "--strict", false),
        (format!("[daemon]\nstrict = true\n{}", two(&wire)), "", false),
        (format!("[daemon]\nstrict = true\n{}", two(&wire)), "--strict=false", true),
    ] {
        let daemon = Start::new(&ns).config(&config).arguments(arguments);
        if starts {
            assert_failed(&daemon.ready(), "p2");
            continue;
        }
        let mut daemon = daemon.spawn();
        assert_eq!(daemon.wait().code(), Some(1));
        let log = daemon.log();
        let last = log.lines().last().unwrap_or_default();
        assert!(last.contains("vswitchd.toml:") && last.contains("port 'p2': cannot add address"), "{log}");
        assert_eq!(wire.links(), ["lo"]);
    }
    Ok(())
}

pub fn reload_is_all_or_nothing() -> Outcome {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    let daemon = Start::new(&ns).config(&two(&wire)).ready();
    let index = daemon.port("p1")["ifindex"].clone();
    // A new port that is refused refuses the whole.
    daemon.write_config(
        &(two(&wire) + &tap("p3", &wire, "address = [\"fd00::3/64\"]") + &tap("p4", &wire, "")),
    );
    let told = daemon.refused("reload");
    assert!(told.contains("port 'p3': cannot add address"), "{told}");
    assert_eq!(daemon.json("port show").as_array().map(Vec::len), Some(2));
    // So does one that has failed before and is changed; it is what it was.
    daemon.write_config(&two(&wire).replace("fd00::2/64", "fd00::5/64"));
    let told = daemon.refused("reload");
    assert!(told.contains("fd00::5") && !told.contains("taking back"), "{told}");
    assert_failed(&daemon, "p2");
    assert_eq!(daemon.port("p2")["address"], json!(["fd00::2/64"]));
    // One that has failed before and is the same keeps nothing from being changed.
    daemon.write_config(&(two(&wire) + &tap("p4", &wire, "")));
    let report = daemon.json("reload");
    assert_eq!(report["added"], json!(["port 'p4'"]), "{report}");
    assert!(report["warnings"][0].as_str().unwrap_or_default().contains("port 'p2'"), "{report}");
    assert_eq!(daemon.port_state("p4"), "up");
    // And goes when the file has it no more, or not so.
    daemon.write_config(&two(&wire).replace("address = [\"fd00::2/64\"]", ""));
    daemon.json("reload");
    assert_eq!(daemon.port_state("p2"), "up");
    assert_eq!(daemon.port("p1")["ifindex"], index, "untouched all the time");
    Ok(())
}
