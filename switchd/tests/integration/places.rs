//! Places that two ports cannot both have: interfaces, sockets, addresses, networks. What the file check says of them, what adding says, and
//! how a reload gives the place of one port to another.

use std::fs;
use std::process::Command;

use serde_json::json;

use super::harness::Outcome;
use super::harness::daemon::{Daemon, Start, VSWITCHD, folder};
use super::harness::net::Ns;

const BRIDGES: &str = "[[bridge]]\nname = \"br0\"\n[[bridge]]\nname = \"br1\"\n";

/// A port as options of the command line, as a table of the file. `PATH` is a folder, `LINK` a link to it.
fn table(name: &str, bridge: &str, options: &str, path: &str) -> String {
    let mut text = format!("[[port]]\nname = \"{name}\"\nbridge = \"{bridge}\"\n");
    let mut words = options.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let key = word.trim_start_matches("--");
        if key == "client" || key == "server" {
            text += &format!("{key} = true\n");
            continue;
        }
        let value = words.next().expect("a value").replace("PATH", path);
        let value = value.parse::<u32>().map_or_else(|_| format!("\"{value}\""), |number| number.to_string());
        text += &format!("{} = {value}\n", key.replace('-', "_"));
    }
    text
}

/// A namespace with interfaces to be ports, and an address for tunnels.
fn place() -> (Ns, Ns) {
    let (ns, wire) = (Ns::new("v"), Ns::new("w"));
    ns.veth("l0", &wire, "p0", 1500);
    ns.veth("l1", &wire, "p1", 1500);
    ns.ip("addr add 10.99.0.1/24 dev lo");
    (ns, wire)
}

/// Whether a file with these ports is good.
fn is_good(text: &str) -> bool {
    let folder = folder();
    let file = folder.path().join("vswitchd.toml");
    fs::write(&file, text).expect("written");
    let output = Command::new(VSWITCHD).arg("--check").arg("--config").arg(&file).output().expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || stderr.contains("already") || stderr.contains("packets"), "{stderr}");
    output.status.success()
}

const TUNNEL: &str = "--type vxlan --local 10.99.0.1";

/// Of two ports: the options of both, and whether they can be on one bridge, and on two.
const PAIRS: &[(&str, &str, bool, bool)] = &[
    ("--type vhost-user --path PATH/s", "--type vhost-user --path PATH/s", false, false),
    ("--type vhost-user --path PATH/s", "--type stream --path PATH/s", false, false),
    ("--type vhost-user --path PATH/s", "--type dgram --path PATH/s", false, false),
    ("--type vhost-user --path PATH/s", "--type vhost-user --path PATH/s --client", true, true),
    ("--type vhost-user --path PATH/s", "--type vhost-user --path PATH/t", true, true),
    ("--type stream --path PATH/s", "--type dgram --path PATH/s", false, false),
    ("--type vde --path PATH/s", "--type stream --path PATH/s", false, false),
    ("--type vde --path PATH/s", "--type stream --path PATH/s/ctl", false, false),
    ("--type stream --listen 0.0.0.0:7001", "--type stream --listen 127.0.0.1:7001", false, false),
    ("--type stream --listen 127.0.0.1:7001", "--type stream --listen 127.0.0.1:7002", true, true),
    ("--type tap --ifname i", "--type tap --ifname i", false, false),
    ("--type tap --ifname i", "--type internal --ifname i", false, false),
    ("--type tap --ifname i", "--type packet --ifname i", false, true),
    ("--type packet --ifname l0", "--type packet --ifname l0", false, false),
    ("--type packet --ifname l0", "--type packet --ifname l1", true, true),
    ("--type packet --ifname l0", "--type macvtap --ifname m --lower l0", false, false),
    (
        "--type macvtap --ifname m --lower l0 --mode bridge",
        "--type macvtap --ifname n --lower l0 --mode bridge",
        false,
        true,
    ),
    ("--type macvtap --ifname m --lower l0", "--type macvtap --ifname n --lower l1", true, true),
    ("--type vxlan --vni 1 --local 10.99.0.1", "--type vxlan --vni 1 --local 10.99.0.1", false, false),
    ("--type vxlan --vni 1 --local 10.99.0.1", "--type vxlan --vni 2 --local 10.99.0.1", true, true),
    (
        "--type vxlan --vni 1 --local 10.99.0.1",
        "--type geneve --vni 1 --local 10.99.0.1 --dstport 4789",
        false,
        false,
    ),
];

/// A file is refused exactly where adding is.
pub fn check_and_adding_agree() -> Outcome {
    let (ns, _wire) = place();
    let daemon = Daemon::start(&ns);
    daemon.ctl("bridge add br0");
    daemon.ctl("bridge add br1");
    let work = folder();
    let path = work.path().display().to_string();
    for (one, other, together, apart) in PAIRS {
        for (bridge, may) in [("br0", together), ("br1", apart)] {
            for (first, second) in [(one, other), (other, one)] {
                let what = format!("{first} | {second} ({bridge})");
                let text = [table("a", "br0", first, &path), table("b", bridge, second, &path)].concat();
                assert_eq!(is_good(&format!("{BRIDGES}{text}")), *may, "file: {what}");
                // A packet port wants what the other makes; there the order matters, and not to what is tested here.
                // Nor is a folder there before it is made.
                if second.contains("tap --ifname i") && first.contains("packet --ifname i")
                    || first.contains("/s/ctl")
                {
                    continue;
                }
                let add = |name: &str, bridge: &str, options: &str| {
                    let line =
                        format!("port add {name} --bridge {bridge} {}", options.replace("PATH", &path));
                    let arguments: Vec<&str> = line.split_whitespace().collect();
                    daemon.try_ctl(&arguments).status.success()
                };
                assert!(add("a", "br0", first), "{what}");
                assert_eq!(add("b", bridge, second), *may, "adding: {what}");
                daemon.ctl("port del b --if-exists");
                daemon.ctl("port del a");
            }
        }
    }
    Ok(())
}

/// The place of a port goes to another by a reload, and back; and when the other cannot have it, to the first again.
pub fn a_reload_passes_them_on() -> Outcome {
    let (ns, wire) = place();
    ns.ip("link property add dev l1 altname other1");
    let work = folder();
    let path = work.path().display().to_string();
    fs::create_dir(work.path().join("d")).expect("made");
    std::os::unix::fs::symlink(work.path().join("d"), work.path().join("link")).expect("made");
    let daemon = Start::new(&ns).config(BRIDGES).ready();
    let tunnel = |vni: u32| format!("{TUNNEL} --vni {vni}");
    let tunnel = tunnel(7);
    for (one, other) in [
        ("--type vhost-user --path PATH/s", "--type vhost-user --path PATH/s"),
        ("--type vhost-user --path PATH/s", "--type stream --path PATH/s"),
        ("--type stream --path PATH/s", "--type stream --path PATH/s"),
        ("--type dgram --path PATH/s", "--type dgram --path PATH/s"),
        ("--type vde --path PATH/s", "--type vde --path PATH/s"),
        ("--type vde --path PATH/s", "--type dgram --path PATH/s"),
        ("--type stream --listen 0.0.0.0:7003", "--type stream --listen 127.0.0.1:7003"),
        ("--type packet --ifname l0", "--type packet --ifname l0"),
        ("--type packet --ifname l0", "--type macvtap --ifname m --lower l0"),
        ("--type macvtap --ifname m --lower l0", "--type macvtap --ifname n --lower l0"),
        (
            "--type macvtap --ifname m --lower l0 --mode passthru",
            "--type macvtap --ifname n --lower l0 --mode passthru",
        ),
        ("--type macvtap --ifname m --lower l0", "--type tap --ifname m"),
        ("--type tap --ifname i", "--type tap --ifname i"),
        ("--type tap --ifname i", "--type internal --ifname i"),
        (&tunnel, &tunnel),
        // The same under two names, which only the kernel knows.
        ("--type vhost-user --path PATH/d/s", "--type vhost-user --path PATH/link/s"),
        ("--type vde --path PATH/d/s", "--type dgram --path PATH/link/s"),
        ("--type packet --ifname l1", "--type packet --ifname other1"),
    ] {
        let what = format!("{one} | {other}");
        let first = table("a", "br0", one, &path);
        let second = table("b", "br1", other, &path);
        let is = |name: &str, bridge: &str| {
            let ports = daemon.json("port show");
            let names: Vec<_> =
                ports.as_array().into_iter().flatten().map(|p| (&p["name"], &p["bridge"])).collect();
            assert_eq!(names, [(&json!(name), &json!(bridge))], "{what}");
            assert!(["up", "down"].contains(&&*daemon.port_state(name)), "{what}: {}", daemon.port(name));
        };
        daemon.write_config(&format!("{BRIDGES}{first}"));
        daemon.json("reload");
        is("a", "br0");
        daemon.write_config(&format!("{BRIDGES}{second}"));
        daemon.json("reload");
        is("b", "br1");
        daemon.write_config(&format!("{BRIDGES}{first}"));
        daemon.json("reload");
        is("a", "br0");
        // All or nothing: something else in the file is refused by the kernel.
        let refused =
            table("z", "br1", &format!("--type tap --netns {} --address fd00::1/64", wire.name), &path);
        daemon.write_config(&format!("{BRIDGES}{second}{refused}"));
        let told = daemon.refused("reload");
        assert!(told.contains("port 'z'"), "{what}: {told}");
        is("a", "br0");
        daemon.write_config(BRIDGES);
        daemon.json("reload");
    }
    // When the port that comes is itself refused, the one that made room is back.
    let first = table("a", "br0", "--type tap --ifname i", &path);
    let second = table("b", "br1", "--type tap --ifname i --address fd00::1/64", &path);
    daemon.write_config(&format!("{BRIDGES}{first}"));
    daemon.json("reload");
    daemon.write_config(&format!("{BRIDGES}{second}"));
    let told = daemon.refused("reload");
    assert!(told.contains("port 'b': cannot add address") && told.contains("made anew"), "{told}");
    assert_eq!(daemon.port_state("a"), "up");
    Ok(())
}
