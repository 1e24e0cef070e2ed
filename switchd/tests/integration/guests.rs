//! Real guests under QEMU, attached in every way there is.

use crate::harness::daemon::Daemon;
use crate::harness::net::Ns;
use crate::harness::qemu::{CARD, Qemu, can_boot};
use crate::harness::{Outcome, eventually};

/// On a tap that QEMU holds and that is a packet port: the guide's recipe.
pub fn behind_a_tap() -> Outcome {
    can_boot()?;
    let (switch, host) = (Ns::new("v"), Ns::new("h"));
    let daemon = Daemon::start(&switch);
    daemon.ctl("bridge add br0");
    daemon.ctl(&format!("port add host --bridge br0 --type tap --netns {} --address 10.9.0.1/24", host.name));
    switch.ip("tuntap add dev guest0 mode tap vnet_hdr; link set guest0 up");
    daemon.ctl("port add guest0 --bridge br0 --type packet");
    let netdev = "-netdev tap,id=net,ifname=guest0,script=no,downscript=no";
    let mut guest = Qemu::boot(&switch, &format!("{netdev} {CARD}"));
    guest.address("10.9.0.2/24");
    daemon.wait_port_state("guest0", "up");
    guest.talk("10.9.0.2", &host, "10.9.0.1");
    eventually("the guest is a station", || {
        daemon.fdb("").iter().any(|(mac, _, port, _)| mac == "52:54:00:00:00:01" && port == "guest0")
    });

    guest.reboot();
    guest.address("10.9.0.2/24");
    guest.talk("10.9.0.2", &host, "10.9.0.1");
    guest.kill();
    daemon.wait_port_state("guest0", "down");
    Ok(())
}
