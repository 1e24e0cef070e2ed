//! What an interface is to a port.

use crate::harness::Outcome;
use crate::harness::daemon::Daemon;
use crate::harness::net::Ns;

/// What the kernel would refuse without saying why, or take and not mean.
pub fn addresses_and_mtu() -> Outcome {
    let ns = Ns::with_ipv6("v");
    let daemon = Daemon::start(&ns);
    daemon.ctl("bridge add br0");
    let add = "port add t0 --bridge br0 --type tap";
    let error = daemon.refused(&format!("{add} --mtu 1279 --address fd00::1/64"));
    assert!(error.contains("1279") && error.contains("1280") && error.contains("fd00::1"), "{error}");
    for bad in ["224.0.0.1/24", "ff02::1/64", "0.0.0.0/24", "::/64", "255.255.255.255/32"] {
        let error = daemon.refused(&format!("{add} --address {bad}"));
        assert!(error.contains("no address of a station"), "{bad}: {error}");
    }
    daemon.ctl(&format!("{add} --mtu 1280 --address fd00::1/64"));
    daemon.ctl("port add t1 --bridge br0 --type tap --mtu 1000 --address 10.0.0.1/24");
    Ok(())
}
