//! vhost-user ports: QEMU guests that share their memory with the switch.

use std::path::Path;

use crate::harness::Outcome;
use crate::harness::daemon::Start;
use crate::harness::net::Ns;
use crate::harness::qemu::{Qemu, can_boot};

/// QEMU's side of the port at `socket`, as `port explain` says: the switch listens, or with `waits` QEMU does.
fn arguments(socket: &Path, number: u8, waits: bool) -> String {
    let chardev = if waits { "server=on,wait=off" } else { "reconnect=1" };
    format!(
        "-object memory-backend-memfd,id=mem,size=192M,share=on -machine memory-backend=mem \
         -chardev socket,id=char,path={},{chardev} -netdev vhost-user,id=net,chardev=char \
         -device virtio-net-pci,netdev=net,mac=52:54:00:00:00:{number:02x},vectors=0,romfile=",
        socket.display()
    )
}

/// A bridge with a host at 10.9.0.1, and a daemon that keeps both over a restart.
fn layout(ports: &str) -> String {
    format!("[[bridge]]\nname = \"br0\"\n{ports}")
}

fn host(host: &Ns) -> String {
    format!(
        "[[port]]\nname = \"host\"\nbridge = \"br0\"\ntype = \"tap\"\nnetns = \"{}\"\naddress = \"10.9.0.1/24\"\n",
        host.name
    )
}

fn guest(name: &str, socket: &Path, role: &str) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\nbridge = \"br0\"\ntype = \"vhost-user\"\npath = \"{}\"\n{role} = true\n",
        socket.display()
    )
}

/// A guest and a host, through everything that may happen to either side of the socket.
fn through_restarts(role: &str) -> Outcome {
    can_boot()?;
    let (switch, station) = (Ns::new("v"), Ns::new("h"));
    let folder = crate::harness::daemon::folder();
    let socket = folder.path().join("vm1.sock");
    let config = layout(&(host(&station) + &guest("vm1", &socket, role)));
    let daemon = Start::new(&switch).config(&config).ready();
    let mut vm = Qemu::boot(&switch, &arguments(&socket, 1, role == "client"));
    vm.address("10.9.0.2/24");
    daemon.wait_port_state("vm1", "up");
    vm.talk("10.9.0.2", &station, "10.9.0.1");

    vm.reboot();
    vm.address("10.9.0.2/24");
    vm.talk("10.9.0.2", &station, "10.9.0.1");

    // The switch ends, cleanly and not, under a guest that goes on.
    let kept = daemon.terminate();
    let daemon = Start::new(&switch).folder(kept).config(&config).ready();
    daemon.wait_port_state("vm1", "up");
    let kept = daemon.kill();
    drop(station);
    let station = Ns::new("h");
    let config = layout(&(host(&station) + &guest("vm1", &socket, role)));
    let daemon = Start::new(&switch).folder(kept).config(&config).ready();
    daemon.wait_port_state("vm1", "up");
    vm.talk("10.9.0.2", &station, "10.9.0.1");
    assert_eq!(daemon.drops("vm1", "bad_ring"), 0);
    assert_eq!(daemon.drops("vm1", "bad_offload"), 0);

    vm.kill();
    daemon.wait_port_state("vm1", "down");
    assert_eq!(daemon.fdb("").iter().filter(|(_, _, port, _)| port == "vm1").count(), 0);
    let mut vm = Qemu::boot(&switch, &arguments(&socket, 1, role == "client"));
    vm.address("10.9.0.2/24");
    vm.talk("10.9.0.2", &station, "10.9.0.1");
    Ok(())
}

pub fn the_switch_listens() -> Outcome {
    through_restarts("server")
}

pub fn qemu_listens() -> Outcome {
    through_restarts("client")
}
