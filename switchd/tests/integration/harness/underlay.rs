//! Hosts between which there are tunnels.

use super::daemon::Daemon;
use super::net::Ns;
use super::raw::Raw;

/// Hosts on one underlay, a kernel bridge in a namespace of its own: host N has 172.16.0.N and fd16::N.
#[derive(Debug)]
pub struct Underlay {
    pub hosts: Vec<Ns>,
    wire: Ns,
}

impl Underlay {
    pub fn new(hosts: usize) -> Underlay {
        let wire = Ns::new("u");
        wire.ip("link add br0 type bridge mcast_snooping 0; link set br0 up");
        let hosts = (0..hosts).map(|_| Ns::with_ipv6("h")).collect();
        let underlay = Underlay { hosts, wire };
        (1..=underlay.hosts.len()).for_each(|n| underlay.plug_again(n));
        underlay
    }

    /// Gives host `n` its interface.
    pub fn plug_again(&self, n: usize) {
        let (host, wire) = (&self.hosts[n - 1], &self.wire);
        wire.veth(&format!("h{n}"), host, "wire", 1500);
        wire.ip(&format!("link set h{n} master br0"));
        host.ip(&format!("addr add 172.16.0.{n}/24 dev wire; addr add fd16::{n}/64 dev wire nodad"));
    }

    /// What arrives at host `n`.
    pub fn arrivals(&self, n: usize) -> Raw {
        Raw::open(&self.hosts[n - 1], "wire")
    }

    /// The other end of host `n`'s wire: sends to it, and receives what it sends.
    pub fn outside(&self, n: usize) -> Raw {
        Raw::open(&self.wire, &format!("h{n}"))
    }

    /// A switch on host `n`, with a tunnel to the others.
    pub fn switch(&self, n: usize, v6: bool) -> Daemon {
        let daemon = Daemon::start(&self.hosts[n - 1]);
        daemon.ctl("bridge add br0");
        daemon.ctl(&format!(
            "port add vx0 --bridge br0 --type vxlan --vni 42 --local {} {}",
            at(n, v6),
            self.remotes(n, v6)
        ));
        daemon
    }

    /// The MTU of every host's interface, and of what is between them.
    pub fn set_mtu(&self, mtu: u32) {
        for (host, n) in self.hosts.iter().zip(1..) {
            host.ip(&format!("link set wire mtu {mtu}"));
            self.wire.ip(&format!("link set h{n} mtu {mtu}"));
        }
    }

    /// The options that name the other hosts.
    pub fn remotes(&self, n: usize, v6: bool) -> String {
        let others = (1..=self.hosts.len()).filter(|other| *other != n);
        others.map(|other| format!("--remote {} ", at(other, v6))).collect()
    }
}

/// A host's address.
pub fn at(host: usize, v6: bool) -> String {
    if v6 { format!("fd16::{host}") } else { format!("172.16.0.{host}") }
}
