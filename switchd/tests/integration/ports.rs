//! What may be a port, and what may not.

use crate::harness::Outcome;
use crate::harness::daemon::Daemon;
use crate::harness::net::Ns;

/// Refuses what Linux's bridge refuses, and leaves it alone.
pub fn not_every_interface() -> Outcome {
    let (ns, other) = (Ns::new("v"), Ns::new("h"));
    let daemon = Daemon::start(&ns);
    daemon.ctl("bridge add br0");
    let refused = |ifname: &str, words: &[&str]| {
        let error = daemon.refused(&format!("port add p --bridge br0 --type packet --ifname {ifname}"));
        words.iter().for_each(|word| assert!(error.contains(word), "{word}: {error}"));
    };
    refused("lo", &["'lo'", "Ethernet"]);
    ns.ip("tuntap add tun7 mode tun");
    refused("tun7", &["'tun7'", "Ethernet"]);
    ns.veth("va", &other, "vb", 1500);
    ns.ip("link add kbr type bridge; link set va master kbr");
    refused("va", &["'va'", "'kbr'", "ip link set va nomaster"]);
    ns.ip("link set va nomaster");
    daemon.ctl("port add p --bridge br0 --type packet --ifname va");
    Ok(())
}

/// An interface is one port, however its namespace is spelled: as two it would have every frame twice.
pub fn one_interface_one_port() -> Outcome {
    let (ns, other) = (Ns::new("v"), Ns::new("h"));
    let daemon = Daemon::start(&ns);
    daemon.ctl("bridge add br0");
    daemon.ctl("bridge add br1");
    ns.veth("va", &other, "vb", 1500);
    let add = |name: &str, ifname: &str, netns: &str, bridge: &str| {
        format!("port add {name} --bridge {bridge} --type packet --ifname {ifname} {netns}")
    };
    let named = format!("--netns {}", other.name);
    let by_path = format!("--netns /run/netns/{}", other.name);
    daemon.ctl(&add("p1", "vb", &named, "br0"));
    for bridge in ["br0", "br1"] {
        let error = daemon.refused(&add("p2", "vb", &by_path, bridge));
        assert!(error.contains("'vb'") && error.contains("port del p1"), "{error}");
    }
    daemon.ctl(&add("q1", "va", "", "br0"));
    let own = format!("--netns {}", ns.name);
    assert!(daemon.refused(&add("q2", "va", &own, "br1")).contains("port del q1"));

    // A TAP may end in another bridge, but not in its own: one broadcast would go round for ever.
    daemon.ctl("port add t0 --bridge br0 --type tap");
    assert!(daemon.refused(&add("t1", "t0", "", "br0")).contains("port del t0"));
    daemon.ctl(&add("t1", "t0", "", "br1"));
    Ok(())
}
