//! What `port explain` says to type: QEMU starts with it, and libvirt's schema knows it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::harness::daemon::{Daemon, folder};
use crate::harness::net::{Ns, has_program, run, try_run};
use crate::harness::qemu::{Qemu, can_boot};
use crate::harness::{Outcome, Skip};

/// What the schema of a domain calls for beside the network.
const DOMAIN: &str = "<domain type='kvm'><name>guest</name><memory unit='GiB'>1</memory>{memory}\
                      <os><type arch='x86_64'>hvm</type></os><devices>{devices}</devices></domain>";

/// A shell command that is explained, from `first` to the line that does not go on in the next.
fn command(words: &str, first: &str) -> String {
    let begin = words.find(first).unwrap_or_else(|| panic!("no {first} in: {words}"));
    let lines = words[begin..].lines();
    let going_on = lines.clone().take_while(|line| line.ends_with('\\')).count();
    lines.take(going_on + 1).map(|line| line.trim_end_matches('\\')).collect()
}

/// A port of every kind that a guest can be at, the sockets in `folder`: their options.
fn kinds(folder: &Path) -> [(&'static str, String); 9] {
    let at = |name: &str| folder.join(name).display().to_string();
    [
        ("vhost-server", format!("vhost-user --path {}", at("vs"))),
        // A comma is written twice for QEMU, and an ampersand in another way for libvirt.
        ("vhost-client", format!("vhost-user --client --path {}", at("v,c&"))),
        ("stream-server", format!("stream --path {}", at("s,s"))),
        ("stream-client", format!("stream --client --path {}", at("sc"))),
        ("stream-listen", "stream --listen 127.0.0.1:5000".to_owned()),
        ("stream-connect", "stream --connect 127.0.0.1:5001".to_owned()),
        ("dgram", format!("dgram --path {} --peer {}", at("d"), at("d,peer"))),
        ("vde", format!("vde --path {}", at("v,d"))),
        ("tap", "packet --ifname tap0".to_owned()),
    ]
}

/// A switch with a port of every kind, that for a tap gone as yet, and a host at 10.9.0.1.
fn switch(ns: &Ns, host: &Ns, folder: &Path) -> Daemon {
    let daemon = Daemon::start(ns);
    daemon.ctl("bridge add br0");
    daemon.ctl(&format!("port add host --bridge br0 --type tap --netns {} --address 10.9.0.1/24", host.name));
    ns.ip("tuntap add dev tap0 mode tap");
    for (name, options) in kinds(folder) {
        daemon.ctl(&format!("port add {name} --bridge br0 --type {options}"));
    }
    ns.ip("link del tap0");
    daemon
}

/// Every command line starts QEMU with a guest that is on the bridge, each with an address of its own.
pub fn command_lines() -> Outcome {
    can_boot()?;
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    ns.sysctl("net/unix/max_dgram_qlen", "512");
    let folder = folder();
    let daemon = switch(&ns, &host, folder.path());
    let mut addresses = BTreeSet::new();
    for (name, options) in kinds(folder.path()) {
        let words = daemon.ctl(&format!("port explain {name}"));
        if name == "tap" {
            let line = command(&words, "ip tuntap");
            for part in line.split("&&") {
                let (program, arguments) = part.trim().split_once(' ').expect("arguments");
                ns.run(program, &arguments.split_whitespace().collect::<Vec<_>>());
            }
        }
        let line = command(&words, "qemu-system-x86_64 ");
        let arguments = line.strip_prefix("qemu-system-x86_64 … ").expect("the rest is the user's");
        let arguments = run("sh", &["-c", &format!("echo {arguments}")]);
        let arguments = arguments.trim();
        let address = arguments.split_once(",mac=").expect("an address").1.to_owned();
        // No boot by network; and emulated, QEMU 7.2 crashes when it masks the vectors of a vhost-user device.
        let without = if options.starts_with("vhost-user") { ",romfile=,vectors=0" } else { ",romfile=" };
        let mut guest = Qemu::boot(&ns, &format!("{arguments}{without}"));
        daemon.wait_port_state(name, "up");
        guest.address("10.9.0.2/24");
        let heard = guest.run("ping -c 3 -W 5 -s 1472 10.9.0.1");
        assert!(heard.contains(" 0% packet loss"), "{name}: {heard}");
        let (known, on) = (guest.run("cat /sys/class/net/eth0/address"), daemon.fdb(""));
        assert_eq!(known.trim(), address, "{name}");
        assert!(on.iter().any(|(mac, _, port, _)| *mac == address && port == name), "{name}: {on:?}");
        assert!(addresses.insert(address), "{name}: an address of two guests");
        guest.kill();
        daemon.ctl("fdb flush");
        host.ip("neigh flush all");
    }
    Ok(())
}

/// Every piece of XML that is explained or in the guide, in a domain, by libvirt's own schema.
pub fn libvirt_xml() -> Outcome {
    if !has_program("xmllint") {
        return Err(Skip("xmllint (libxml2-utils)".to_owned()));
    }
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/libvirt/domain.rng");
    if !schema.exists() {
        return Err(Skip("libvirt's schemas (scripts/setup test unpacks them)".to_owned()));
    }
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let folder = folder();
    let daemon = switch(&ns, &host, folder.path());
    daemon.ctl(&format!(
        "port add jumbo --bridge br0 --type vhost-user --mtu 9000 --path {}",
        folder.path().join("jumbo").display()
    ));
    let mut texts = Vec::new();
    for name in ["vhost-server", "vhost-client", "tap", "jumbo"] {
        texts.push((name, daemon.ctl(&format!("port explain {name}"))));
    }
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guests.md");
    let guide = fs::read_to_string(guide).expect("the guide");
    texts.extend(guide.split("```xml\n").skip(1).map(|text| ("guide", text.to_owned())));
    assert!(texts.len() > 5, "the guide has some");
    let file = folder.path().join("domain.xml");
    for (name, text) in texts {
        let part = |from: &str, to: &str| {
            let begin = text.find(from)?;
            Some(&text[begin..begin + text[begin..].find(to)? + to.len()])
        };
        let interface = part("<interface", "</interface>").unwrap_or_else(|| panic!("{name}: {text}"));
        assert!(name != "jumbo" || interface.contains("<mtu size='9000'/>"), "{interface}");
        let memory = part("<memoryBacking", "</memoryBacking>").unwrap_or_default();
        let domain = DOMAIN.replace("{memory}", memory).replace("{devices}", interface);
        fs::write(&file, &domain).expect("written");
        let arguments =
            ["--noout", "--relaxng", schema.to_str().expect("UTF-8"), file.to_str().expect("UTF-8")];
        run("xmllint", &arguments);
        // It does say no.
        fs::write(&file, domain.replace("<interface type=", "<interface kind=")).expect("written");
        assert!(try_run("xmllint", &arguments).is_err());
    }
    Ok(())
}
