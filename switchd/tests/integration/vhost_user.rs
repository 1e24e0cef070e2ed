//! vhost-user ports: QEMU guests that share their memory with the switch.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::harness::daemon::Start;
use crate::harness::net::Ns;
use crate::harness::qemu::{Qemu, can_boot};
use crate::harness::testpmd::{Testpmd, can_forward};
use crate::harness::{Outcome, eventually};

/// Lines that one guest tells another.
const LINES: u32 = 200_000;

/// QEMU's side of the port at `socket`, as `port explain` says: the switch listens, or with `waits` QEMU does. No
/// MSI-X: QEMU 7.2 crashes when it masks its vectors for a vhost-user device without KVM.
pub fn arguments(socket: &Path, number: u8, waits: bool) -> String {
    let chardev = if waits { "server=on,wait=off" } else { "reconnect=1" };
    format!(
        "-object memory-backend-memfd,id=mem,size=192M,share=on -machine memory-backend=mem \
         -chardev socket,id=char,path={},{chardev} -netdev vhost-user,id=net,chardev=char \
         -device virtio-net-pci,netdev=net,mac=52:54:00:00:00:{number:02x},vectors=0,romfile=",
        socket.display()
    )
}

/// Adds two queues for each way to these, and a processor for each.
fn with_two_queues(arguments: &str) -> String {
    arguments.replace("chardev=char ", "chardev=char,queues=2 ").replace("vectors=0", "vectors=0,mq=on")
        + " -smp 2"
}

/// A bridge with a host at 10.9.0.1, and a daemon that keeps both over a restart.
pub fn layout(ports: &str) -> String {
    format!("[[bridge]]\nname = \"br0\"\n{ports}")
}

pub fn host(host: &Ns) -> String {
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
fn through_restarts(role: &str, options: &str) -> Outcome {
    can_boot()?;
    let (switch, station) = (Ns::new("v"), Ns::new("h"));
    let folder = crate::harness::daemon::folder();
    let socket = folder.path().join("vm1.sock");
    let config = layout(&(host(&station) + &guest("vm1", &socket, role) + options));
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
    let config = layout(&(host(&station) + &guest("vm1", &socket, role) + options));
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
    through_restarts("server", "")
}

pub fn qemu_listens() -> Outcome {
    // The same of a port with a thread of its own, whose guest may share what QEMU gives it, 192 MiB, and no more.
    through_restarts("client", "own_thread = true\nmemory_max = \"192M\"\n")
}

/// Two guests with jumbo frames, one of them with two queues, under two workers: big frames stay whole between them.
pub fn guests_among_themselves() -> Outcome {
    can_boot()?;
    let switch = Ns::new("v");
    let folder = crate::harness::daemon::folder();
    let sockets = ["vm1", "vm2"].map(|name| folder.path().join(name));
    let jumbo = |name: &str, socket: &Path| guest(name, socket, "server") + "mtu = 9000\n";
    let config = layout(&(jumbo("vm1", &sockets[0]) + &jumbo("vm2", &sockets[1])));
    let daemon = Start::new(&switch).config(&config).arguments("--workers 2").ready();
    let arguments = |number: u8| {
        arguments(&sockets[usize::from(number) - 1], number, false)
            .replace("vectors=0", "vectors=0,host_mtu=9000")
    };
    let mut one = Qemu::boot(&switch, &arguments(1));
    let mut two = Qemu::boot(&switch, &with_two_queues(&arguments(2)));
    one.address("10.9.0.1/24");
    two.address("10.9.0.2/24");
    for (guest, other) in [(&mut one, "10.9.0.2"), (&mut two, "10.9.0.1")] {
        for len in [1472, 8972] {
            let heard = guest.run(&format!("ping -c 3 -W 5 -s {len} {other}"));
            assert!(heard.contains(" 0% packet loss"), "{heard}");
        }
    }
    // Which queue is sent by depends on the processor.
    assert_eq!(two.run("ls /sys/class/net/eth0/queues | grep -c tx").trim(), "2");
    for processors in [1, 2] {
        let heard = two.run(&format!("taskset {processors} ping -c 3 -W 5 10.9.0.1"));
        assert!(heard.contains(" 0% packet loss"), "{heard}");
    }
    // Which are cut where the network takes no longer ones.
    one.run("ip link set eth0 mtu 1500");
    two.run("ip link set eth0 mtu 1500");
    two.run("nc -ll -p 9 -e md5sum &");
    two.run("until netstat -ltn | grep -q :9; do sleep 0.1; done");
    let heard = one.run(&format!("seq 1 {LINES} | nc 10.9.0.2 9"));
    assert_eq!(heard, one.run(&format!("seq 1 {LINES} | md5sum")), "what the other guest got");

    let stats = daemon.stats("vm1");
    let count = |name: &str| stats[name].as_u64().expect("a number");
    assert!(count("rx_segments") > count("rx_frames"), "not cut on the way: {stats}");
    for port in ["vm1", "vm2"] {
        for reason in ["bad_ring", "bad_offload", "tx_error"] {
            assert_eq!(daemon.drops(port, reason), 0, "{port}: {reason}");
        }
    }
    let explained = daemon.ctl("port explain vm2");
    assert!(explained.contains("-netdev vhost-user") && explained.contains("<interface type='vhostuser'>"));
    one.kill();
    daemon.wait_port_state("vm1", "down");
    assert_eq!(daemon.port_state("vm2"), "up");
    Ok(())
}

/// Frames that go round between two front ends of another make.
pub fn dpdk_forwards() -> Outcome {
    can_forward()?;
    let switch = Ns::new("v");
    let folder = crate::harness::daemon::folder();
    let sockets = ["vm1", "vm2"].map(|name| folder.path().join(name));
    let config = layout(&(guest("vm1", &sockets[0], "server") + &guest("vm2", &sockets[1], "server")));
    let daemon = Start::new(&switch).config(&config).ready();
    let testpmd = Testpmd::start(folder.path(), &sockets);
    let count = |port: &str, name: &str| daemon.stats(port)[name].as_u64().expect("a number");
    for port in ["vm1", "vm2"] {
        for name in ["rx_frames", "tx_frames"] {
            eventually("frames go round", || count(port, name) > 1000);
        }
    }
    let received = testpmd.received();
    assert!(received.len() == 2 && received.iter().all(|&frames| frames > 1000), "{received:?}");
    for port in ["vm1", "vm2"] {
        daemon.wait_port_state(port, "down");
        for reason in ["bad_ring", "bad_offload", "tx_error"] {
            assert_eq!(daemon.drops(port, reason), 0, "{port}: {reason}");
        }
    }
    Ok(())
}

/// What operators ask for and read, without any guest.
pub fn options() -> Outcome {
    let switch = Ns::new("v");
    let daemon = Start::new(&switch).without_config().ready();
    daemon.ctl("bridge add br0");
    let add = "port add vm1 --bridge br0 --type vhost-user";
    assert!(daemon.refused(add).contains("needs 'path'"));
    assert!(daemon.refused(&format!("{add} --path vm1.sock")).contains("begin it with /"));
    assert!(daemon.refused(&format!("{add} --path /nowhere/vm1.sock")).contains("make it first"));
    assert!(daemon.refused(&format!("{add} --path /tmp/x --ifname eth0")).contains("'ifname' is for"));
    assert!(daemon.refused(&format!("{add} --path /tmp/x --queues 65")).contains("give 1 to 64"));
    assert!(
        daemon
            .refused("port add t1 --bridge br0 --type tap --path /tmp/x")
            .contains("'path' is for stream and dgram and vde and vhost-user")
    );
    daemon.misused(&format!("{add} --path /tmp/x --server --client"));

    let socket = daemon.path("vm1.sock");
    let add = format!("{add} --path {} --queues 4 --mtu 9000", socket.display());
    daemon.ctl(&add);
    let port = daemon.port("vm1");
    assert_eq!((port["type"].as_str(), port["state"].as_str()), (Some("vhost-user"), Some("down")));
    assert_eq!(
        (port["socket"]["path"].as_str(), port["socket"]["role"].as_str()),
        (socket.to_str(), Some("server"))
    );
    assert_eq!((port["queues"].as_u64(), port["mtu"].as_u64()), (Some(4), Some(9000)));
    let mode = std::fs::metadata(&socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert!(daemon.refused(&add.replace("vm1 ", "vm2 ")).contains("choose another --path"));
    daemon.ctl(&add.replace("port add", "port add --may-exist"));
    let differs = daemon.refused(&add.replace("port add", "port add --may-exist").replace("9000", "1500"));
    assert!(differs.contains("mtu"), "{differs}");
    let explained = daemon.ctl("port explain vm1");
    for words in ["path=", "reconnect=1", "host_mtu=9000", "<mtu size='9000'/>", "mode='client'"] {
        assert!(explained.contains(words), "{words}: {explained}");
    }
    daemon.ctl("port del vm1");
    assert!(!socket.exists());
    daemon.ctl(&format!("{add} --client"));
    assert!(!socket.exists());
    assert!(daemon.ctl("port explain vm1").contains("server=on,wait=off"));
    assert_eq!(daemon.port("vm1")["socket"]["role"].as_str(), Some("client"));
    Ok(())
}

/// Shares a sparse file of `len` bytes with a port, as a front end does that says nothing else (`SET_MEM_TABLE`). Whether the switch still
/// answers then.
fn share_sparse(socket: &Path, len: u64) -> Option<UnixStream> {
    const GET_FEATURES: u32 = 1;
    const SET_MEM_TABLE: u32 = 5;
    let mut stream = UnixStream::connect(socket).expect("the switch listens");
    // SAFETY: a literal name; the descriptor is new and ours.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(len).expect("sparse");
    let header = [SET_MEM_TABLE, 1, 40, 1, 0].map(u32::to_ne_bytes).concat();
    let region = [0, len, 1 << 46, 0].map(u64::to_ne_bytes).concat();
    let message = [header, region].concat();
    let fds = [file.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&message)], &rights, MsgFlags::empty(), None)
        .expect("sent");
    let question = [GET_FEATURES, 1, 0].map(u32::to_ne_bytes).concat();
    // It may have hung up already.
    let _ = stream.write_all(&question);
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    stream.read_exact(&mut [0; 20]).is_ok().then_some(stream)
}

/// What front ends may share, by the port and by the daemon.
pub fn memory_is_bounded() -> Outcome {
    let switch = Ns::new("v");
    let daemon = Start::new(&switch).arguments("--guest-memory-max 8T").without_config().ready();
    daemon.ctl("bridge add br0");
    let socket = |name: &str| daemon.path(&format!("{name}.sock"));
    let add = |name: &str, options: &str| {
        let path = socket(name);
        daemon.ctl(&format!(
            "port add {name} --bridge br0 --type vhost-user --path {} {options}",
            path.display()
        ));
    };
    add("quarter", "");
    add("own", "--memory-max 3T");
    add("small", "--memory-max 4096M");
    let hint = |name: &str| daemon.port(name)["socket"]["hint"].as_str().map(str::to_owned);
    assert!(share_sparse(&socket("small"), 5 << 30).is_none());
    let told = hint("small").expect("a hint");
    assert!(
        told.contains("5 GiB more of guest memory") && told.contains("4 GiB that this port may share"),
        "{told}"
    );
    assert!(told.contains("--memory-max") && told.contains("--guest-memory-max"), "{told}");
    assert!(daemon.log().contains(&told[told.find("5 GiB").expect("told")..]), "{}", daemon.log());
    let _small = share_sparse(&socket("small"), 4 << 30).expect("as much as it may");
    assert_eq!(hint("small"), None);
    assert!(share_sparse(&socket("quarter"), (2 << 40) + 4096).is_none());
    // Until it goes, when it is there for others.
    let quarter = share_sparse(&socket("quarter"), 2 << 40).expect("a quarter");
    let own = share_sparse(&socket("own"), 3 << 40).expect("its own bound");
    add("late", "");
    assert!(share_sparse(&socket("late"), 2 << 40).is_none(), "less than twice of it is left");
    assert!(hint("late").is_some_and(|told| told.contains("who may share 8 TiB together")));
    add("later", "");
    let _later = share_sparse(&socket("later"), 512 << 30).expect("and is for smaller ones");
    drop((quarter, own));
    eventually("given back", || share_sparse(&socket("late"), 2 << 40).is_some());

    assert!(
        daemon
            .refused("port add t1 --bridge br0 --type tap --memory-max 1G")
            .contains("'memory-max' is for vhost-user")
    );
    daemon.misused("port add v1 --bridge br0 --type vhost-user --path /tmp/x --memory-max 1.5G");
    let again =
        format!("port add own --may-exist --bridge br0 --type vhost-user --path {}", socket("own").display());
    assert!(daemon.refused(&again).contains("memory-max is 3T, not default"));
    daemon.ctl(&format!("{again} --memory-max 3072G"));
    let shown = daemon.ctl("port show own");
    assert!(
        shown.contains("memory-max:") && shown.contains("3T") && !shown.contains("own-thread"),
        "{shown}"
    );

    add("apart", "--own-thread");
    assert!(share_sparse(&socket("apart"), 4096).is_some());
    assert_eq!(daemon.port("apart")["socket"]["own_thread"].as_bool(), Some(true));
    assert!(daemon.ctl("port show apart").contains("own-thread:"));
    let again = format!(
        "port add apart --may-exist --bridge br0 --type vhost-user --path {}",
        socket("apart").display()
    );
    assert!(daemon.refused(&again).contains("own-thread is on, not off"));
    daemon.ctl("port del apart");
    assert!(!socket("apart").exists());
    Ok(())
}
