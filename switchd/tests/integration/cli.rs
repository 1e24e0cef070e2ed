//! The contract of vswitchctl, verb by verb: exit codes, JSON fields, errors that name the object and the remedy, and that
//! what is refused changes nothing.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::board::Board;
use crate::harness::daemon::{Daemon, Start, VSWITCHCTL, ctl_at, folder, mac_text};
use crate::harness::frame::{BROADCAST, station, test_frame};
use crate::harness::net::{Ns, run, try_run};
use crate::harness::{Outcome, eventually};

/// Everything an operator can see, but for what changes by itself.
fn picture(daemon: &Daemon, spaces: &[&Ns]) -> Value {
    let mut ports = daemon.json("port show");
    for port in ports.as_array_mut().expect("a list") {
        port["counters"] = Value::Null;
    }
    let links: Vec<BTreeSet<String>> = spaces.iter().map(|ns| ns.links().into_iter().collect()).collect();
    json!([daemon.json("bridge show"), ports, daemon.json("fdb show"), links])
}

#[track_caller]
fn names(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "'{word}' is not in: {error}");
    }
}

#[track_caller]
fn has_fields(object: &Value, fields: &[&str]) {
    for field in fields {
        assert!(object.get(field).is_some(), "no {field} in {object}");
    }
}

pub fn bridges() -> Outcome {
    let ns = Ns::new("v");
    let daemon = Daemon::start(&ns);
    assert_eq!(daemon.json("bridge show"), json!([]));
    assert_eq!(daemon.ctl("bridge add br0"), "", "a change that is done says nothing");
    daemon.ctl("bridge add br1 --ageing 60 --fdb-max 100 --vlan-filtering on --default-pvid 5");
    let shown = daemon.json("bridge show");
    let expected = [
        json!({"name": "br0", "ageing_secs": 300, "vlan_filtering": false, "default_pvid": 1, "fdb_max": 65536,
            "fdb_used": 0, "ports": []}),
        json!({"name": "br1", "ageing_secs": 60, "vlan_filtering": true, "default_pvid": 5, "fdb_max": 100,
            "fdb_used": 0, "ports": []}),
    ];
    for (shown, expected) in shown.as_array().expect("a list").iter().zip(expected) {
        for (field, value) in expected.as_object().expect("an object") {
            assert_eq!(shown.get(field), Some(value), "{field}");
        }
    }
    assert_eq!(daemon.json("bridge show br1")[0]["name"], "br1");
    let table = daemon.ctl("bridge show");
    assert!(table.lines().count() >= 3 && table.contains("br0") && table.contains("br1"), "{table}");

    names(&daemon.refused("bridge add br0"), &["bridge 'br0' exists", "--may-exist"]);
    daemon.ctl("bridge add br0 --may-exist");
    names(
        &daemon.refused("bridge add br0 --may-exist --ageing 60"),
        &["br0", "ageing", "300", "60", "bridge set"],
    );
    for (line, remedy) in [
        ("bridge set br9 --ageing 10", "existing: br0, br1"),
        ("bridge show br9", "existing: br0, br1"),
        ("bridge del br9", "existing: br0, br1"),
        ("port add p --bridge br9 --type tap", "existing: br0, br1"),
        ("fdb show --bridge br9", "existing: br0, br1"),
        ("fdb del 02:00:00:00:00:01 --bridge br9", "existing: br0, br1"),
    ] {
        names(&daemon.refused(line), &["no bridge 'br9'", remedy]);
    }
    daemon.ctl("bridge del br9 --if-exists");

    daemon.ctl("bridge set br1 --ageing 7");
    let set = daemon.json("bridge show br1");
    assert_eq!(
        (&set[0]["ageing_secs"], &set[0]["fdb_max"], &set[0]["default_pvid"]),
        (&json!(7), &json!(100), &json!(5))
    );
    daemon.ctl("bridge set br1 --vlan-filtering off --fdb-max 200 --default-pvid 9");
    let set = daemon.json("bridge show br1");
    assert_eq!(
        (&set[0]["vlan_filtering"], &set[0]["fdb_max"], &set[0]["default_pvid"]),
        (&json!(false), &json!(200), &json!(9))
    );

    let before = picture(&daemon, &[&ns]);
    for line in [
        "bridge add",
        "bridge add br2 --ageing never",
        "bridge add br2 --fdb-max 0",
        "bridge add br2 --default-pvid 4095",
        "bridge add br2 --default-pvid 0",
        "bridge add br2 --vlan-filtering maybe",
        "bridge set br0 --fdb-max 0",
        "bridge frobnicate br0",
        "bridge",
        "frobnicate",
        "--json",
    ] {
        daemon.misused(line);
    }
    for line in ["bridge add a/b", "bridge add a'b", "bridge set br0", "bridge set br0 --fdb-max 4294967295"]
    {
        daemon.refused(line);
    }
    assert_eq!(picture(&daemon, &[&ns]), before);

    daemon.ctl("port add t0 --bridge br0 --type tap");
    names(&daemon.refused("bridge del br0"), &["bridge 'br0'", "t0", "--with-ports"]);
    assert!(ns.links().contains(&"t0".to_owned()));
    daemon.ctl("bridge del br0 --with-ports");
    assert!(!ns.links().contains(&"t0".to_owned()), "its port's interface goes too");
    assert_eq!(daemon.json("port show"), json!([]));
    assert_eq!(daemon.json("bridge show").as_array().map(Vec::len), Some(1));
    Ok(())
}

const PORT_FIELDS: [&str; 17] = [
    "name", "bridge", "type", "ifname", "ifindex", "netns", "mac", "mtu", "state", "queues", "vlan",
    "learning", "flood", "isolated", "hairpin", "peer", "counters",
];

pub fn tap_ports() -> Outcome {
    let (ns, host) = (Ns::with_ipv6("v"), Ns::with_ipv6("h"));
    let daemon = Start::new(&ns).arguments("--workers 2").ready();
    daemon.ctl("bridge add br0");
    daemon.ctl(&format!(
        "port add p1 --bridge br0 --type tap --ifname eth0 --netns {} --mac 02:00:00:00:00:51 --mtu 9000 \
         --address 10.1.1.1/24 --address fd01::1/64 --gateway 10.1.1.254 --isolated on --flood off",
        host.name
    ));
    let port = daemon.port("p1");
    has_fields(&port, &PORT_FIELDS);
    let link = host.link("eth0").expect("it is there");
    for (field, value) in [
        ("name", json!("p1")),
        ("bridge", json!("br0")),
        ("type", json!("tap")),
        ("ifname", json!("eth0")),
        ("ifindex", link["ifindex"].clone()),
        ("netns", json!(host.name)),
        ("mac", json!("02:00:00:00:00:51")),
        ("mtu", json!(9000)),
        ("state", json!("up")),
        ("queues", json!(2)),
        ("learning", json!(true)),
        ("flood", json!(false)),
        ("isolated", json!(true)),
        ("hairpin", json!(false)),
        ("peer", Value::Null),
    ] {
        assert_eq!(port[field], value, "{field}");
    }
    assert_eq!(port["vlan"], json!({"mode": "none", "access": null, "native": null, "trunk": []}));
    assert_eq!((&link["address"], &link["mtu"]), (&json!("02:00:00:00:00:51"), &json!(9000)));
    assert!(link["txqlen"].as_u64().expect("a number") > 500, "raised from the kernel's 500");
    let addresses = run("ip", &["-n", &host.name, "-o", "addr", "show", "dev", "eth0"]);
    names(&addresses, &["10.1.1.1/24", "fd01::1/64"]);
    names(&run("ip", &["-n", &host.name, "route"]), &["default via 10.1.1.254 dev eth0"]);
    assert!(
        !ns.links().iter().any(|name| name.starts_with("vswitch") || name == "eth0"),
        "nothing stays here"
    );
    let table = daemon.ctl("port show");
    names(&table, &["p1", "br0", "tap", "eth0"]);
    // Not for QEMU, which would have to hold the other side.
    let text = daemon.ctl("port explain p1");
    names(&text, &["'p1'", "'eth0'", &host.name, "a QEMU guest cannot use it"]);
    assert!(!text.contains("-netdev"), "{text}");

    // By path, plain, with fewer queues.
    daemon.ctl(&format!("port add p2 --bridge br0 --type tap --no-offload --netns {}", host.path()));
    assert_eq!((&daemon.port("p2")["netns"], &daemon.port("p2")["queues"]), (&json!(host.path()), &json!(1)));
    daemon.ctl("port add p3 --bridge br0 --type tap --queues 1");
    assert_eq!((&daemon.port("p3")["netns"], &daemon.port("p3")["queues"]), (&Value::Null, &json!(1)));
    assert_eq!(daemon.json("bridge show br0")[0]["ports"], json!(["p1", "p2", "p3"]), "in order of creation");

    names(&daemon.refused("port add p3 --bridge br0 --type tap"), &["port 'p3' exists"]);
    daemon.ctl("port add p3 --bridge br0 --type tap --queues 1 --may-exist");
    names(&daemon.refused("port add p3 --bridge br0 --type packet --may-exist"), &["p3"]);
    names(
        &daemon.refused("port add p3 --bridge br0 --type tap --queues 1 --mtu 1400 --may-exist"),
        &["p3", "mtu", "1400"],
    );
    names(&daemon.refused("port del p9"), &["no port 'p9'; existing: p1, p2, p3"]);
    daemon.ctl("port del p9 --if-exists");
    daemon.ctl("port del p3");
    daemon.ctl("port del p3 --if-exists");
    assert!(!ns.links().contains(&"p3".to_owned()), "the interface goes with the port");
    daemon.ctl("port del p1");
    assert!(host.link("eth0").is_none(), "in another namespace, too");
    Ok(())
}

pub fn packet_ports() -> Outcome {
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let daemon = Daemon::start(&ns);
    daemon.ctl("bridge add br0");
    ns.veth("va", &host, "vb", 1500);
    daemon.ctl("port add p1 --bridge br0 --type packet --ifname va");
    let port = daemon.port("p1");
    has_fields(&port, &PORT_FIELDS);
    let (here, there) = (ns.link("va").expect("there"), host.link("vb").expect("there"));
    assert_eq!(
        (&port["ifname"], &port["ifindex"], &port["mac"]),
        (&json!("va"), &here["ifindex"], &here["address"])
    );
    assert_eq!(port["peer"], json!({"ifindex": there["ifindex"], "ifname": "vb", "netns": host.name}));
    assert_eq!((&port["state"], &port["mtu"], &port["netns"]), (&json!("up"), &json!(1500), &Value::Null));
    assert_ne!(here["promiscuity"], 0, "by membership");
    // What to type for a guest: QEMU's command line and libvirt's XML, with the interface and, if unusual, its MTU.
    let text = daemon.ctl("port explain p1");
    names(
        &text,
        &[
            "ip tuntap add dev va mode tap vnet_hdr",
            "-netdev tap,id=net0,ifname=va,script=no,downscript=no",
            "-device virtio-net-pci,netdev=net0",
            "<interface type='ethernet'>",
            "<target dev='va' managed='no'/>",
            "'vb'",
            &host.name,
        ],
    );
    assert!(!text.contains("mtu"), "{text}");
    ns.ip("link set va mtu 9000");
    eventually("the MTU is known", || daemon.port("p1")["mtu"] == 9000);
    names(&daemon.ctl("port explain p1"), &["netdev=net0,host_mtu=9000", "<mtu size='9000'/>"]);
    ns.ip("link set va mtu 1500");

    // The same interface cannot be two ports; in another namespace the name is another interface.
    names(&daemon.refused("port add p2 --bridge br0 --type packet --ifname va"), &["'va'", "'p1'"]);
    host.ip("link add va type veth peer name vz; link set va up; link set vz up");
    daemon.ctl(&format!("port add p2 --bridge br0 --type packet --ifname va --netns {}", host.name));
    assert_eq!(daemon.port("p2")["peer"]["ifname"], "vz");

    names(
        &daemon.refused("port add p3 --bridge br0 --type packet --ifname nic7"),
        &["p3", "nic7", "existing", "va"],
    );
    names(&daemon.refused("port add p3 --bridge br0 --type packet --netns nowhere7"), &["p3", "nowhere7"]);
    names(
        &daemon.refused("port add p3 --bridge br0 --type packet --ifname sixteen-letters-"),
        &["sixteen-letters-"],
    );
    for option in
        ["--mac 02:00:00:00:00:01", "--mtu 9000", "--address 10.0.0.1/24", "--queues 1", "--no-offload"]
    {
        let name = option.split(' ').next().unwrap_or_default().trim_start_matches("--");
        names(
            &daemon.refused(&format!("port add p3 --bridge br0 --type packet --ifname va {option}")),
            &["p3", name, "packet"],
        );
    }
    daemon.ctl("port del p1");
    assert_eq!(ns.link("va").expect("it stays")["promiscuity"], 0, "left as it was");
    assert_eq!(daemon.json("bridge show br0")[0]["ports"], json!(["p2"]));
    Ok(())
}

/// An internal port gives the host a place on the bridge; its address is a local entry.
pub fn internal_ports() -> Outcome {
    let (ns, host) = (Ns::with_ipv6("v"), Ns::with_ipv6("h"));
    let daemon = Daemon::start(&ns);
    daemon.ctl("bridge add br0");
    daemon.ctl("port add host0 --bridge br0 --type internal --address 10.2.2.1/24 --address fd02::1/64 --mac 02:00:00:00:00:61");
    daemon.ctl(&format!(
        "port add guest --bridge br0 --type tap --netns {} --address 10.2.2.2/24 --address fd02::2/64",
        host.name
    ));
    assert_eq!(daemon.port("host0")["type"], "internal");
    for (from, to) in [(&host, "10.2.2.1"), (&host, "fd02::1"), (&ns, "10.2.2.2"), (&ns, "fd02::2")] {
        from.run("ping", &["-c", "1", "-W", "5", to]);
    }
    let local = ("02:00:00:00:00:61".to_owned(), 0, "host0".to_owned(), "local".to_owned());
    assert!(daemon.fdb("").contains(&local), "{:?}", daemon.fdb(""));
    let taps_mac = daemon.port("guest")["mac"].as_str().expect("a MAC").to_owned();
    assert!(
        daemon.fdb("").iter().any(|entry| entry.0 == taps_mac && entry.3 == "dynamic"),
        "a tap's is a station's"
    );
    names(&daemon.refused("fdb del 02:00:00:00:00:61 --bridge br0"), &["02:00:00:00:00:61", "internal"]);
    daemon.ctl("fdb flush");
    assert!(daemon.fdb("").contains(&local), "a flush leaves it");
    // Follows the interface's address.
    ns.ip("link set host0 address 02:00:00:00:00:62");
    eventually("the local entry follows", || {
        let entries = daemon.fdb("");
        entries.iter().any(|entry| entry.0 == "02:00:00:00:00:62" && entry.3 == "local")
            && !entries.contains(&local)
    });
    names(
        &daemon.refused(&format!("port add x --bridge br0 --type internal --netns {}", host.name)),
        &["netns", "internal"],
    );
    // With VLAN filtering it is local in its own VLAN.
    daemon.ctl("bridge set br0 --vlan-filtering on");
    daemon.ctl("port set host0 --access 10");
    let locals: Vec<_> =
        daemon.fdb("").into_iter().filter(|entry| entry.3 == "local").map(|entry| entry.1).collect();
    assert_eq!(locals, [10]);
    assert!(host.try_run("ping", &["-c", "1", "-W", "1", "10.2.2.1"]).is_err(), "the guest is in VLAN 1");
    daemon.ctl("port set guest --access 10");
    // The guest knew the address that the port had at first.
    host.ip("neigh flush all");
    host.run("ping", &["-c", "1", "-W", "5", "10.2.2.1"]);
    daemon.ctl("port del host0");
    assert!(daemon.fdb("").iter().all(|entry| entry.3 != "local"));
    Ok(())
}

/// Whatever is refused leaves everything as it was, and one line says why.
pub fn all_or_nothing() -> Outcome {
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let daemon = Daemon::start(&ns);
    daemon.ctl("bridge add br0");
    daemon.ctl("bridge add aware --vlan-filtering on");
    ns.veth("va", &host, "vb", 1500);
    daemon.ctl("port add p1 --bridge br0 --type packet --ifname va");
    daemon.ctl("port add p2 --bridge aware --type tap --access 10");
    daemon.ctl("fdb add 02:00:00:00:00:71 --port p1");
    let before = picture(&daemon, &[&ns, &host]);
    let name = &host.name;
    for (line, words) in [
        (format!("port add x --bridge br0 --type tap --netns {name} --ifname vb"), vec!["x", "vb", "exists"]),
        ("port add va --bridge br0 --type tap".into(), vec!["va", "p1", "already"]),
        (
            format!(
                "port add x --bridge br0 --type tap --netns {name} --address 10.0.0.1/24 --gateway 192.0.2.1"
            ),
            vec!["x"],
        ),
        ("port add x --bridge br0 --type tap --address 10.0.0.1/24 --gateway 192.0.2.1".into(), vec!["x"]),
        ("port add x --bridge br0 --type tap --gateway 10.0.0.1".into(), vec!["x", "gateway", "address"]),
        ("port add x --bridge br0 --type tap --queues 200".into(), vec!["x", "queues"]),
        ("port add x --bridge br0 --type tap --no-offload --queues 2".into(), vec!["x", "queue"]),
        ("port add x --bridge br0 --type tap --mac 01:00:5e:00:00:01".into(), vec!["x", "01:00:5e:00:00:01"]),
        (
            "port add x --bridge br0 --type tap --address 10.0.0.1/24 --address 10.0.0.1/24".into(),
            vec!["x", "10.0.0.1"],
        ),
        ("port add x --bridge br0 --type tap --netns /dev/null".into(), vec!["x", "/dev/null"]),
        ("port add x --bridge br0 --type tap --access 10".into(), vec!["x", "br0", "--vlan-filtering on"]),
        ("port add x --bridge br0 --type tap --trunk 10".into(), vec!["x", "br0", "--vlan-filtering on"]),
        ("port add x --bridge aware --type tap --native 10".into(), vec!["x", "native", "trunk"]),
        ("port add x/y --bridge br0 --type tap".into(), vec!["x/y"]),
        ("port set p1 --access 10".into(), vec!["p1", "br0", "--vlan-filtering on"]),
        ("port set p1 --isolated on --native 10".into(), vec!["p1"]),
        ("port set p1".into(), vec!["p1", "nothing to set"]),
        ("port set p9 --flood off".into(), vec!["no port 'p9'; existing: p1, p2"]),
        ("port show p9".into(), vec!["no port 'p9'; existing: p1, p2"]),
        ("port explain p9".into(), vec!["no port 'p9'; existing: p1, p2"]),
        ("stats p9".into(), vec!["no port 'p9'; existing: p1, p2"]),
        ("fdb show --port p9".into(), vec!["no port 'p9'; existing: p1, p2"]),
        ("fdb add 02:00:00:00:00:72 --port p9".into(), vec!["no port 'p9'; existing: p1, p2"]),
        ("fdb add 02:00:00:00:00:71 --port p1".into(), vec!["02:00:00:00:00:71", "p1"]),
        ("fdb add 02:00:00:00:00:72 --port p1 --vlan 5".into(), vec!["br0", "--vlan-filtering on"]),
        ("fdb add 02:00:00:00:00:72 --port p2 --vlan 11".into(), vec!["p2", "11"]),
        ("fdb add 01:00:5e:00:00:01 --port p1".into(), vec!["01:00:5e:00:00:01"]),
        ("fdb del 02:00:00:00:00:77 --bridge br0".into(), vec!["02:00:00:00:00:77", "br0"]),
    ] {
        names(&daemon.refused(&line), &words);
        assert_eq!(picture(&daemon, &[&ns, &host]), before, "after: {line}");
    }
    for line in [
        "port add x --bridge br0",
        "port add x --type tap",
        "port add --bridge br0 --type tap",
        "port add x --bridge br0 --type carrier-pigeon",
        "port add x --bridge br0 --type tap --mtu 67",
        "port add x --bridge br0 --type tap --mtu 65536",
        "port add x --bridge br0 --type tap --mac 02:00:00:00:00",
        "port add x --bridge br0 --type tap --address 10.0.0.1/33",
        "port add x --bridge br0 --type tap --access 0",
        "port add x --bridge br0 --type tap --access 4095",
        "port add x --bridge aware --type tap --access 10 --trunk 20",
        "port add x --bridge aware --type tap --trunk 20-10",
        "port add x --bridge aware --type tap --trunk ,",
        "port set p2 --learning yes",
        "port set p2 --vlan none",
        "fdb add 02:00:00:00:00:72",
        "fdb add nonsense --port p1",
        "fdb del 02:00:00:00:00:72",
        "stats --count 3",
        "netns add",
        "veth add one",
    ] {
        daemon.misused(line);
        assert_eq!(picture(&daemon, &[&ns, &host]), before, "after: {line}");
    }
    // And the same name, asked for properly, is free.
    daemon.ctl(&format!("port add x --bridge br0 --type tap --netns {name}"));
    Ok(())
}

pub fn vlan_options() -> Outcome {
    let ns = Ns::new("v");
    let daemon = Daemon::start(&ns);
    daemon.ctl("bridge add br0 --vlan-filtering on --default-pvid 7");
    daemon.ctl("port add p1 --bridge br0 --type tap");
    let vlan = |access: Value, native: Value, trunk: Value| {
        let mode = if access.is_null() { "trunk" } else { "access" };
        json!({"mode": mode, "access": access, "native": native, "trunk": trunk})
    };
    let shown = || daemon.port("p1")["vlan"].clone();
    assert_eq!(shown(), vlan(json!(7), Value::Null, json!([])), "an access port of the default PVID");
    for (options, expected) in [
        ("--access 10", vlan(json!(10), Value::Null, json!([]))),
        ("--trunk 10,20-23,4094", vlan(Value::Null, Value::Null, json!([10, 20, 21, 22, 23, 4094]))),
        ("--native 5", vlan(Value::Null, json!(5), json!([10, 20, 21, 22, 23, 4094]))),
        ("--trunk 1-3 --native 2", vlan(Value::Null, json!(2), json!([1, 2, 3]))),
        ("--vlan default", vlan(json!(7), Value::Null, json!([]))),
    ] {
        daemon.ctl(&format!("port set p1 {options}"));
        assert_eq!(shown(), expected, "{options}");
    }
    daemon.ctl("port set p1 --access 10");
    // As on Linux's bridge, ports keep their VLANs while nobody looks at them; other settings can be changed meanwhile.
    daemon.ctl("bridge set br0 --vlan-filtering off");
    assert_eq!(shown()["mode"], "none");
    daemon.ctl("port set p1 --isolated on");
    daemon.ctl("bridge set br0 --vlan-filtering on");
    assert_eq!(shown(), vlan(json!(10), Value::Null, json!([])));
    assert_eq!(daemon.port("p1")["isolated"], true);
    daemon.ctl("port set p1 --vlan default");
    daemon.ctl("bridge set br0 --vlan-filtering off");
    assert_eq!(shown()["mode"], "none");
    // Other settings do not touch the VLANs.
    daemon.ctl("bridge set br0 --vlan-filtering on");
    daemon.ctl("port set p1 --trunk 30 --hairpin on");
    daemon.ctl("port set p1 --hairpin off --learning off");
    assert_eq!(shown()["trunk"], json!([30]));
    assert_eq!(daemon.port("p1")["learning"], false);
    Ok(())
}

pub fn stations() -> Outcome {
    let board = Board::new("", &["", ""]);
    let daemon = &board.daemon;
    assert_eq!(daemon.json("fdb show"), json!([]));
    board.expect(0, &test_frame(BROADCAST, station(5), "hello"), &[1]);
    let entry = &daemon.json("fdb show")[0];
    assert_eq!(
        (&entry["mac"], &entry["vlan"], &entry["bridge"], &entry["port"], &entry["state"]),
        (&json!(mac_text(station(5))), &json!(0), &json!("br0"), &json!("p0"), &json!("dynamic"))
    );
    assert!(entry["age_secs"].as_u64().expect("a number") <= 2, "{entry}");
    assert_eq!(daemon.json("bridge show br0")[0]["fdb_used"], 1);
    // A learned station becomes a static one.
    daemon.ctl(&format!("fdb add {} --port p1", mac_text(station(5))));
    let entry = &daemon.json("fdb show")[0];
    assert_eq!((&entry["state"], &entry["port"]), (&json!("static"), &json!("p1")));
    daemon.ctl(&format!("fdb add {} --port p1 --may-exist", mac_text(station(5))));
    names(
        &daemon.refused(&format!("fdb add {} --port p0 --may-exist", mac_text(station(5)))),
        &["static", "'p1'"],
    );
    names(&daemon.ctl("fdb show"), &["static", "p1", "br0"]);
    daemon.ctl(&format!("fdb del {} --bridge br0", mac_text(station(5))));
    daemon.refused(&format!("fdb del {} --bridge br0", mac_text(station(5))));
    daemon.ctl(&format!("fdb del {} --bridge br0 --if-exists", mac_text(station(5))));
    // Stations go with their port.
    board.expect(0, &test_frame(BROADCAST, station(6), "hello"), &[1]);
    daemon.ctl(&format!("fdb add {} --port p0", mac_text(station(7))));
    assert_eq!(daemon.fdb("").len(), 2);
    daemon.ctl("port del p0");
    assert_eq!(daemon.fdb(""), []);
    Ok(())
}

pub fn status_and_stats() -> Outcome {
    let board = Board::new("", &["", ""]);
    let daemon = &board.daemon;
    let status = daemon.json("status");
    assert_eq!(status["pid"], daemon.pid());
    assert_eq!(status["workers"].as_array().map(Vec::len), Some(2));
    assert_eq!((&status["bridges"], &status["ports"]), (&json!(1), &json!(2)));
    names(&daemon.ctl("status"), &[env!("CARGO_PKG_VERSION"), &daemon.pid().to_string()]);
    let stats = daemon.json("stats");
    assert_eq!(stats.as_array().map(Vec::len), Some(2));
    for port in stats.as_array().expect("a list") {
        has_fields(
            port,
            &[
                "port",
                "rx_frames",
                "rx_bytes",
                "tx_frames",
                "tx_bytes",
                "drops",
                "rx_segments",
                "tx_segments",
            ],
        );
        assert!(port["drops"].is_object());
    }
    board.expect(0, &test_frame([0x01, 0x80, 0xc2, 0, 0, 2], station(1), "slow protocol"), &[]);
    names(&daemon.ctl("stats p0"), &["p0", "link_local"]);
    // Rates, live.
    let output = daemon.try_ctl(&["stats", "--watch", "0.1", "--count", "3", "--json"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(text.lines().count(), 3, "a document a round: {text}");
    for line in text.lines() {
        let _: Value = serde_json::from_str(line).expect("JSON");
    }
    Ok(())
}

/// `netns` and `veth` work without the daemon.
pub fn namespaces_and_veths() -> Outcome {
    let work = folder();
    let nobody = work.path().join("nobody.sock");
    let ctl = |line: &str| {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        ctl_at(&nobody, &arguments)
    };
    let ok = |line: &str| {
        let output = ctl(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let refused = |line: &str| {
        let output = ctl(line);
        assert_eq!(output.status.code(), Some(1), "{line}");
        let text = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        text
    };
    // Names that go with the test: made here, removed, and made by vswitchctl.
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    run("ip", &["netns", "del", &a.name]);
    ok(&format!("netns add {}", a.name));
    assert!(a.exists());
    names(&refused(&format!("netns add {}", a.name)), &[&a.name, "exists"]);
    ok(&format!("netns add {} --may-exist", a.name));
    let list = ok("netns list");
    assert!(list.lines().any(|line| line == a.name) && list.lines().any(|line| line == b.name), "{list}");
    let list: Vec<String> = serde_json::from_str(&ok("netns list --json")).expect("JSON");
    assert!(list.contains(&a.name));

    ok(&format!("veth add x y --netns-a {} --netns-b {} --address-a 10.3.3.1/24 --mtu 1400", a.name, b.name));
    let (x, y) = (a.link("x").expect("there"), b.link("y").expect("there"));
    assert_eq!((&x["operstate"], &y["operstate"], &x["mtu"]), (&json!("UP"), &json!("UP"), &json!(1400)));
    names(&run("ip", &["-n", &a.name, "-o", "addr", "show", "x"]), &["10.3.3.1/24"]);
    // Everything that can be asked for, as `ip` sees it; and the same again is fine if it may be.
    let whole = format!(
        "veth add v8 w8 --netns-a {} --netns-b {} --address-a 10.3.4.1/24 --address-a fd34::1/64 --address-b 10.3.4.2/24 \
         --mac-a 02:00:00:00:34:01 --mac-b 02:00:00:00:34:02",
        a.name, b.name
    );
    ok(&whole);
    for (ns, ifname, mac, addresses) in [
        (&a, "v8", "02:00:00:00:34:01", &["10.3.4.1/24", "fd34::1/64"][..]),
        (&b, "w8", "02:00:00:00:34:02", &["10.3.4.2/24"]),
    ] {
        let link = ns.link(ifname).expect("there");
        assert_eq!((&link["address"], &link["operstate"]), (&json!(mac), &json!("UP")), "{link}");
        let given = run("ip", &["-n", &ns.name, "-o", "addr", "show", "dev", ifname]);
        names(&given, addresses);
        assert_eq!(
            given.lines().filter(|line| !line.contains("scope link")).count(),
            addresses.len(),
            "{given}"
        );
    }
    let index =
        || (a.link("v8").expect("there")["ifindex"].clone(), b.link("w8").expect("there")["ifindex"].clone());
    let before = index();
    ok(&format!("{whole} --may-exist"));
    names(&refused(&whole), &["'v8'", "'w8'", "exists", "--may-exist"]);
    for (from, to) in [("--mac-b 02:00:00:00:34:02", "--mac-b 02:00:00:00:34:03"), ("10.3.4.2", "10.3.4.3")] {
        let other = format!("{} --may-exist", whole.replace(from, to));
        names(&refused(&other), &["'v8'", "attributes are others", "veth del v8"]);
    }
    names(&refused(&format!("{whole} --may-exist --mtu 1400")), &["attributes are others"]);
    assert_eq!(index(), before, "the pair was left alone");
    // Half a pair is none.
    names(&refused(&format!("veth add z y --netns-a {} --netns-b {}", a.name, b.name)), &["y"]);
    assert!(a.link("z").is_none(), "nothing half done");
    refused(&format!(
        "veth add z w --netns-a {} --netns-b {} --address-a 10.3.3.1/24 --address-a 10.3.3.1/24",
        a.name, b.name
    ));
    assert!(a.link("z").is_none() && b.link("w").is_none(), "nothing half done");
    names(&refused(&format!("veth add z w --netns-a nowhere8 --netns-b {}", b.name)), &["nowhere8"]);

    let shown = ok(&format!("netns exec {} ip -o link show", a.name));
    assert!(shown.contains("x@") && !shown.contains("y@"), "{shown}");
    let output = ctl(&format!("netns exec {} sh -c exit${{IFS}}7", a.name));
    assert_eq!(output.status.code(), Some(7), "the command's own exit code");
    names(&refused("netns exec nowhere8 true"), &["nowhere8"]);
    names(&refused(&format!("netns exec {} no-such-program-7", a.name)), &["no-such-program-7"]);

    ok(&format!("veth del x --netns {}", a.name));
    assert!(b.link("y").is_none(), "both ends go");
    refused(&format!("veth del x --netns {}", a.name));
    ok(&format!("veth del x --netns {} --if-exists", a.name));
    ok(&format!("netns del {}", a.name));
    assert!(!a.exists());
    names(&refused(&format!("netns del {}", a.name)), &[&a.name]);
    ok(&format!("netns del {} --if-exists", a.name));

    // What needs the daemon says so.
    names(&refused("status"), &["not running", &nobody.display().to_string()]);
    // Help, completions, manual pages.
    for shell in ["bash", "zsh", "fish"] {
        assert!(ok(&format!("completions {shell}")).contains("vswitchctl"));
    }
    ok(&format!("man {}", work.path().display()));
    let pages = std::fs::read_dir(work.path()).expect("a folder").count();
    assert!(pages > 10, "{pages} manual pages");
    assert!(try_run(VSWITCHCTL, &["--help"]).expect("help").contains("bridge"));
    Ok(())
}

/// The API as curl sees it, and what bad requests get.
pub fn api() -> Outcome {
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let daemon = Daemon::start(&ns);
    let socket = daemon.socket.display().to_string();
    let curl = |arguments: &[&str]| {
        let mut all = vec!["-s", "-w", "\n%{http_code}", "--unix-socket", &socket];
        all.extend(arguments);
        let text = run("curl", &all);
        let (body, code) = text.rsplit_once('\n').expect("a code");
        (code.parse::<u16>().expect("a code"), body.to_owned())
    };
    let post = |target: &str, body: &str| {
        curl(&["-H", "Content-Type: application/json", "-d", body, &format!("http://localhost{target}")])
    };
    let (code, _) = post("/v1/bridges", r#"{"name": "br0"}"#);
    assert!((200..300).contains(&code), "{code}");
    let tap = format!(r#"{{"name": "p1", "bridge": "br0", "type": "tap", "netns": "{}"}}"#, host.name);
    let (code, body) = post("/v1/ports", &tap);
    assert!((200..300).contains(&code), "{code}: {body}");
    let (code, body) = curl(&["http://localhost/v1/ports"]);
    let ports: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((code, &ports[0]["name"], &ports[0]["state"]), (200, &json!("p1"), &json!("up")));
    assert_eq!(ports[0]["counters"].as_object().map(serde_json::Map::is_empty), Some(false));

    let (code, body) = curl(&["http://localhost/metrics"]);
    assert_eq!(code, 200);
    for line in body.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, value) = line.rsplit_once(' ').expect("name and value");
        assert!(name.starts_with("vswitch_") && value.parse::<f64>().is_ok(), "{line}");
    }
    assert!(
        body.contains("# TYPE") && body.contains(r#"port="p1""#) && body.contains(r#"bridge="br0""#),
        "{body}"
    );
    let (code, body) = curl(&["http://localhost/openapi.json"]);
    let openapi: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(code, 200);
    for path in ["/v1/status", "/v1/bridges", "/v1/ports", "/v1/fdb", "/v1/stats", "/v1/reload"] {
        assert!(openapi["paths"].get(path).is_some(), "{path} is not described");
    }

    let before = picture(&daemon, &[&ns, &host]);
    let deep = "[".repeat(100_000);
    let long = format!(r#"{{"name": "{}"}}"#, "x".repeat(3 << 20));
    for (target, body, allowed) in [
        ("/v1/bridges", "", &[400, 415, 422][..]),
        ("/v1/bridges", "{", &[400, 422]),
        ("/v1/bridges", "[]", &[400, 422]),
        ("/v1/bridges", "null", &[400, 422]),
        ("/v1/bridges", r#"{"name": 5}"#, &[400, 422]),
        ("/v1/bridges", r#"{"name": "b", "colour": "red"}"#, &[400, 422]),
        ("/v1/bridges", r#"{"name": "b", "ageing_secs": -1}"#, &[400, 422]),
        ("/v1/bridges", r#"{"name": "b", "ageing_secs": 1e99}"#, &[400, 422]),
        ("/v1/bridges", r#"{"name": ""}"#, &[400, 422]),
        ("/v1/bridges", r#"{"name": "a\u0000b"}"#, &[400, 422]),
        ("/v1/bridges", r#"{"name": "br0"}"#, &[409]),
        ("/v1/bridges", &deep, &[400, 413, 422]),
        ("/v1/bridges", &long, &[400, 413, 422]),
        ("/v1/ports", r#"{"name": "x", "bridge": "br9", "type": "tap"}"#, &[404]),
        ("/v1/ports", r#"{"name": "x", "bridge": "br0", "type": "mem"}"#, &[400, 422]),
        ("/v1/ports", r#"{"name": "x", "bridge": "br0", "type": "tap", "mtu": 1}"#, &[400, 422]),
        ("/v1/ports", r#"{"name": "x", "bridge": "br0", "type": "tap", "trunk": [4095]}"#, &[400, 422]),
        (
            "/v1/ports",
            r#"{"name": "x", "bridge": "br0", "type": "tap", "netns": "../../etc/passwd"}"#,
            &[400, 404, 422, 500],
        ),
        (
            "/v1/ports",
            r#"{"name": "x", "bridge": "br0", "type": "packet", "ifname": "../../x"}"#,
            &[400, 404, 422],
        ),
        ("/v1/fdb", r#"{"mac": "zz", "port": "p1"}"#, &[400, 422]),
        ("/v1/nothing", "{}", &[404]),
        ("/v2/ports", "{}", &[404]),
        ("/", "{}", &[404]),
    ] {
        let (code, answer) = if body.len() > 1000 {
            let file = daemon.path("body");
            std::fs::write(&file, body).expect("written");
            post(target, &format!("@{}", file.display()))
        } else {
            post(target, body)
        };
        let shown = &body[..body.len().min(80)];
        assert!(allowed.contains(&code), "{target} {shown}: {code}: {answer}");
        let failure: Value =
            serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{target} {shown}: {code}: {answer}"));
        let error = failure["error"].as_str().expect("an error");
        assert!(!error.is_empty() && !error.contains('\n'), "{error}");
    }
    for (method, target, allowed) in [
        ("DELETE", "/v1/bridges/br9", 404),
        ("DELETE", "/v1/bridges/br0", 400),
        ("PATCH", "/v1/ports/%00", 404),
        ("GET", "/v1/bridges/br9", 404),
        ("GET", "/v1/ports/..%2f..", 404),
        ("PUT", "/v1/ports", 405),
        ("DELETE", "/metrics", 405),
    ] {
        let (code, head, body) =
            daemon.http(method, target, if method == "PATCH" { r#"{"flood": true}"# } else { "" });
        // Conflict and bad request are both honest about a bridge with ports.
        let fine = code == allowed || (allowed == 400 && code == 409);
        assert!(fine, "{method} {target}: {head}\n{body}");
    }
    // No HTTP at all, half a request, and a client that says nothing.
    for garbage in [
        &b"\x00\xff\x00\xff\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nHost",
        b"POST /v1/bridges HTTP/1.1\r\nContent-Length: 99\r\n\r\n{",
        b"",
    ] {
        use std::io::Write;
        let mut stream = std::os::unix::net::UnixStream::connect(&daemon.socket).expect("connected");
        stream.write_all(garbage).expect("sent");
        drop(stream);
    }
    assert_eq!(picture(&daemon, &[&ns, &host]), before);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&daemon.socket).expect("there").permissions(),
    );
    assert_eq!(mode & 0o777, 0o660);
    Ok(())
}
