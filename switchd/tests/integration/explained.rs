//! What `port explain` says to type: QEMU starts with it, and libvirt's schema knows it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::harness::daemon::{Daemon, HELPER, folder};
use crate::harness::net::{Ns, has_program, run, try_run};
use crate::harness::qemu::{Qemu, can_boot};
use crate::harness::{Outcome, Skip, eventually, target_folder};

/// What the schema of a domain calls for beside the network.
const DOMAIN: &str = "<domain type='kvm'><name>guest</name><memory unit='GiB'>1</memory>{memory}\
                      <os><type arch='x86_64'>hvm</type></os><devices>{devices}</devices></domain>";

/// The command that starts QEMU, to the line that does not go on in the next.
fn command(text: &str) -> String {
    let begin = text.lines().skip_while(|line| !line.contains("qemu-system-x86_64 … "));
    let going_on = begin.clone().take_while(|line| line.ends_with('\\')).count();
    begin.take(going_on + 1).map(|line| line.trim_end_matches('\\')).collect()
}

/// A port of every kind that a guest can be at, and its options. `@` begins the name of a file in the test's folder, `_` stands for what makes a
/// name awkward.
const KINDS: [(&str, &str); 14] = [
    ("vhost-server", "vhost-user --path @vs_"),
    ("vhost-client", "vhost-user --client --path @vc_"),
    ("stream-server", "stream --path @ss_"),
    ("stream-client", "stream --client --path @sc_"),
    ("stream-listen", "stream --listen 127.0.0.1:5000"),
    ("stream-connect", "stream --connect 127.0.0.1:5001"),
    ("dgram-first", "dgram --path @df_"),
    ("dgram-server", "dgram --server --path @ds_"),
    ("dgram-client", "dgram --client --path @dc_"),
    ("dgram-peer", "dgram --path @dp_ --peer @dq_"),
    // Without what plugs read otherwise.
    ("vde", "vde --path @v,$x&<"),
    ("tap", "packet --ifname t_0"),
    ("tap-elsewhere", "packet --ifname t_1 --netns @ns_"),
    (ATTACHED, ""),
];
/// The port that a guest gets by the helper.
const ATTACHED: &str = "vtap0";
/// Means something to a shell, to QEMU, and in XML; a file's name may have spaces, too.
const AWKWARD: &str = "$x',&<";

/// The options of one of [`KINDS`].
fn arguments_of(options: &str, folder: &Path) -> Vec<String> {
    let argument = |word: &str| match word.strip_prefix('@') {
        Some(file) => folder.join(file.replace('_', &format!(" {AWKWARD} \""))).display().to_string(),
        None => word.replace('_', AWKWARD),
    };
    options.split(' ').map(argument).collect()
}

/// vswitchctl with arguments as they are.
#[track_caller]
fn ctl(daemon: &Daemon, arguments: &[String]) {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = daemon.try_ctl(&arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A switch with a port of every kind, those for taps gone as yet, and a host at 10.9.0.1.
fn switch(ns: &Ns, host: &Ns, folder: &Path) -> Daemon {
    let daemon = Daemon::start(ns);
    daemon.ctl("bridge add br0");
    daemon.ctl(&format!("port add host --bridge br0 --type tap --netns {} --address 10.9.0.1/24", host.name));
    for (name, options) in KINDS.iter().filter(|(name, _)| *name != ATTACHED) {
        let options = arguments_of(options, folder);
        let value = |of: &str| options.iter().skip_while(|option| *option != of).nth(1);
        if let Some(file) = value("--netns") {
            std::os::unix::fs::symlink(host.path(), file).expect("made");
        }
        let tap =
            value("--ifname").map(|ifname| (if value("--netns").is_some() { host } else { ns }, ifname));
        if let Some((place, ifname)) = tap {
            place.run("ip", &["tuntap", "add", "dev", ifname, "mode", "tap"]);
        }
        let add = format!("port add {name} --bridge br0 --type");
        ctl(&daemon, &[add.split(' ').map(str::to_owned).collect(), options.clone()].concat());
        if let Some((place, ifname)) = tap {
            place.run("ip", &["link", "del", "dev", ifname]);
        }
    }
    daemon
}

/// What explains how a guest comes to a port: one that is attached has to be there meanwhile.
fn explained(ns: &Ns, daemon: &Daemon, name: &str) -> String {
    if name != ATTACHED {
        return daemon.ctl(&format!("port explain {name}"));
    }
    let socket = daemon.socket.with_file_name("attach.sock");
    let helper = format!("helper={HELPER} --socket {}", socket.display());
    let words = [
        "-netdev",
        &format!("bridge,id=net,br=br0,{helper}"),
        "-device",
        "virtio-net-pci,netdev=net,romfile=",
    ];
    let guest = Qemu::with(ns, words);
    let is_there = || daemon.try_ctl(&["port", "show", name]).status.success();
    eventually("the guest is attached", is_there);
    let words = daemon.ctl(&format!("port explain {name}"));
    guest.kill();
    eventually("its port leaves", || !is_there());
    words
}

/// Every command line starts QEMU with a guest that is on the bridge, each with an address of its own.
pub fn command_lines() -> Outcome {
    can_boot()?;
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    ns.sysctl("net/unix/max_dgram_qlen", "512");
    let folder = folder();
    let daemon = switch(&ns, &host, folder.path());
    let mut addresses = BTreeSet::new();
    for (name, options) in KINDS {
        let text = explained(&ns, &daemon, name);
        if options.starts_with("packet") {
            // As it is, with the names of both namespaces in it.
            let line = text.lines().find(|line| line.contains("ip tuntap")).expect("how to make the tap");
            ns.run("sh", &["-ec", line]);
        }
        let line = command(&text);
        let words = run("sh", &["-ec", &format!("printf '%s\\n' {line}")]);
        let mut words: Vec<String> = words.lines().map(str::to_owned).collect();
        let inside = words[0] == "nsenter";
        if inside {
            assert_eq!(
                run(&words[0], &[&words[1], "readlink", "/proc/self/ns/net"]),
                host.run("readlink", &["/proc/self/ns/net"])
            );
        }
        let arguments = words.split_off(if inside { 4 } else { 2 });
        assert!(
            words.ends_with(&["qemu-system-x86_64".to_owned(), "…".to_owned()]),
            "the rest is the user's: {line}"
        );
        // No boot by network; and emulated, QEMU 7.2 crashes when it masks the vectors of a vhost-user device.
        let without = if options.starts_with("vhost-user") { ",romfile=,vectors=0" } else { ",romfile=" };
        let card = arguments.last().expect("the network card");
        let address = card.split_once(",mac=").expect("an address").1.to_owned();
        let arguments: Vec<String> = arguments
            .iter()
            .map(|word| match word {
                word if word == card => format!("{word}{without}"),
                // It is not installed here.
                word => word.replace("/usr/lib/qemu/vswitch-bridge-helper", HELPER),
            })
            .collect();
        let mut guest = Qemu::with(if inside { &host } else { &ns }, &arguments);
        guest.wait_until_ready();
        guest.address("10.9.0.2/24");
        // A switch that takes the first who sends knows nobody before; nobody may be asked for in vain.
        guest.run("for n in $(seq 20); do ping -c 1 -W 1 10.9.0.1 && break; done");
        daemon.wait_port_state(name, "up");
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
    let schema = target_folder().join("libvirt/domain.rng");
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
    // Its schema knows no awkward interface.
    ns.ip("tuntap add dev tap0 mode tap");
    daemon.ctl("port add plain --bridge br0 --type packet --ifname tap0");
    for name in ["vhost-server", "vhost-client", "plain", "jumbo"] {
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
        if let Some((_, options)) = KINDS.iter().find(|(kind, _)| *kind == name) {
            let query = ["--xpath", "string(//interface/source/@path)", file.to_str().expect("UTF-8")];
            let path = arguments_of(options, folder.path()).pop().expect("the last one");
            assert_eq!(run("xmllint", &query).trim_end_matches('\n'), path);
        }
        // It does say no.
        fs::write(&file, domain.replace("<interface type=", "<interface kind=")).expect("written");
        assert!(try_run("xmllint", &arguments).is_err());
    }
    Ok(())
}
