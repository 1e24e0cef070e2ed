//! Guests, a namespace and a tunnel on one bridge: everybody reaches everybody, and what happens to one is not noticed by the others.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::attach::helper_script;
use crate::harness::daemon::{Daemon, Start, folder};
use crate::harness::frame::{Q, Transport, check_ip, untag};
use crate::harness::net::{Ns, Offloads};
use crate::harness::qemu::{Qemu, can_boot};
use crate::harness::raw::{Raw, Seen};
use crate::harness::stream::{Kind, Station, tcp};
use crate::harness::underlay::Underlay;
use crate::harness::{Outcome, eventually};
use crate::vhost_user;

/// Lines that one guest tells another.
const LINES: u32 = 100_000;
/// The same of a transfer that something happens to.
const MANY_LINES: u32 = 3_000_000;
/// The guest with shared memory, the other guest, and the stations.
const ONE: &str = "10.9.0.11";
const TWO: &str = "10.9.0.12";
const NEAR: &str = "10.9.0.1";
const FAR: &str = "10.9.0.4";

/// QEMU's arguments for a guest that attaches itself.
fn attached(script: &Path) -> String {
    format!("-netdev bridge,id=net,br=br0,helper={} {}", script.display(), card(2))
}

fn card(number: u8) -> String {
    format!("-device virtio-net-pci,netdev=net,mac=52:54:00:00:00:{number:02x},romfile=")
}

/// Two guests that boot at the same time and get their addresses.
#[track_caller]
fn boot(ns: &Ns, arguments: [&str; 2]) -> [Qemu; 2] {
    let mut guests = arguments.map(|arguments| Qemu::start(ns, arguments));
    for (guest, address) in guests.iter_mut().zip([ONE, TWO]) {
        guest.wait_until_ready();
        guest.address(&format!("{address}/24"));
    }
    guests
}

/// Full frames and TCP from one guest to another, which has this address.
#[track_caller]
fn tell(from: &mut Qemu, to: &mut Qemu, address: &str) {
    from.run("ip neigh flush dev eth0");
    from.run(&format!("for n in $(seq 20); do ping -c 1 -W 1 {address} && break; done"));
    let heard = from.run(&format!("ping -c 3 -W 5 -s 1472 {address}"));
    assert!(heard.contains(" 0% packet loss"), "{heard}");
    listen(to);
    let heard = from.run(&format!("seq 1 {LINES} | nc {address} 9"));
    assert_eq!(heard, from.run(&format!("seq 1 {LINES} | md5sum")), "what the other guest got");
}

/// The guest tells whoever connects to port 9 the sum of what it was told.
#[track_caller]
fn listen(guest: &mut Qemu) {
    guest.run("[ -e /tmp/listens ] || { touch /tmp/listens; nc -ll -p 9 -e md5sum & }");
    guest.run("until netstat -ltn | grep -q :9; do sleep 0.1; done");
}

/// Whether an address answers a guest.
fn reaches(guest: &mut Qemu, address: &str) -> bool {
    guest.try_run(&format!("ping -c 2 -W 1 {address}")).0 == 0
}

/// A ping from a namespace, 20 a second, that goes on until it is asked about; and what it says, in a file, because it says more than a
/// pipe holds.
struct Pings(Child, File);

impl Pings {
    #[track_caller]
    fn start(from: &Ns, to: &str) -> Pings {
        // It ends by itself if the test is killed.
        let arguments = ["-i", "0.05", "-w", "120", to];
        let said = tempfile::tempfile().expect("a file");
        let stdout = said.try_clone().expect("a descriptor");
        let spawned =
            from.enter(|| Command::new("ping").args(arguments).stdin(Stdio::null()).stdout(stdout).spawn());
        Pings(spawned.expect("ping starts"), said)
    }

    /// None was lost before the last one that was answered; later ones may be on their way.
    #[track_caller]
    fn complete(mut self) {
        // SAFETY: our own child, not yet waited for.
        unsafe { libc::kill(self.0.id() as libc::pid_t, libc::SIGINT) };
        self.0.wait().expect("it ends");
        let mut text = String::new();
        self.1.rewind().and_then(|()| self.1.read_to_string(&mut text)).expect("text");
        let number = |line: &str| line.split_once("icmp_seq=")?.1.split(' ').next()?.parse::<usize>().ok();
        let answered: BTreeSet<_> =
            text.lines().filter(|line| line.contains(" bytes from ")).filter_map(number).collect();
        let complete = answered.last().is_some_and(|last| *last > 20 && *last == answered.len());
        assert!(complete && !text.contains("DUP!"), "{text}");
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Nothing that came from these ports broke a rule, and nothing was sent in vain.
#[track_caller]
fn no_faults(daemon: &Daemon, ports: &[&str]) {
    for port in ports {
        for reason in ["bad_ring", "bad_offload", "tx_error", "bad_tunnel_header"] {
            assert_eq!(daemon.drops(port, reason), 0, "{port}: {reason}");
        }
    }
}

/// Two guests, one by shared memory and one that attached itself, a namespace and a VXLAN peer. Each guest is killed and comes back.
pub fn everybody_reaches_everybody() -> Outcome {
    can_boot()?;
    let underlay = Underlay::new(2);
    // The tunnel takes full frames.
    underlay.set_mtu(1600);
    let (switch, far_host) = (&underlay.hosts[0], &underlay.hosts[1]);
    let near_host = Ns::with_ipv6("s");
    let daemon = underlay.switch(1, false);
    far_host.ip(&format!(
        "link add vx0 mtu 1500 type vxlan id 42 local 172.16.0.2 remote 172.16.0.1 dstport 4789; \
         link set vx0 up; addr add {FAR}/24 dev vx0"
    ));
    let near = Station::plug(&daemon, (switch, &near_host), Kind::Tap, 1, 1500, "");
    let v4 = FAR.parse().expect("an address");
    let far = Station { ns: far_host, ifname: "vx0".to_owned(), v4, ..near.inside((near.v4, near.v6)) };
    let socket = daemon.path("vm1.sock");
    daemon.ctl(&format!("port add vm1 --bridge br0 --type vhost-user --path {}", socket.display()));
    let by_memory = vhost_user::arguments(&socket, 1, false);
    let by_helper = attached(&helper_script(&daemon));
    let [mut one, mut two] = boot(switch, [&by_memory, &by_helper]);

    let everybody = |one: &mut Qemu, two: &mut Qemu| {
        for (guest, address) in [(&mut *one, ONE), (&mut *two, TWO)] {
            guest.talk(address, &near_host, NEAR);
            guest.talk(address, far_host, FAR);
        }
        tell(one, two, TWO);
        tell(two, one, ONE);
        tcp(&near, &far, false, 1 << 20);
    };
    everybody(&mut one, &mut two);

    let others = [Pings::start(&near_host, TWO), Pings::start(far_host, TWO), Pings::start(&near_host, FAR)];
    one.kill();
    daemon.wait_port_state("vm1", "down");
    let mut one = Qemu::boot(switch, &by_memory);
    one.address(&format!("{ONE}/24"));
    one.talk(ONE, &near_host, NEAR);
    others.into_iter().for_each(Pings::complete);
    tell(&mut one, &mut two, TWO);

    let others = [Pings::start(&near_host, ONE), Pings::start(far_host, ONE), Pings::start(&near_host, FAR)];
    two.kill();
    eventually("its port is gone", || daemon.json("port show").as_array().expect("a list").len() == 3);
    let mut two = Qemu::boot(switch, &by_helper);
    two.address(&format!("{TWO}/24"));
    two.talk(TWO, &near_host, NEAR);
    others.into_iter().for_each(Pings::complete);
    everybody(&mut one, &mut two);
    no_faults(&daemon, &["vm1", "vtap0", "tap1", "vx0"]);
    Ok(())
}

/// Guests in a VLAN each, and a trunk to another switch, which has a station in either: nobody hears of the other VLAN, and
/// the tags on the trunk are right, on superframes as on packets.
pub fn guests_in_vlans() -> Outcome {
    can_boot()?;
    let switch = Ns::with_ipv6("v");
    let hosts = [Ns::with_ipv6("a"), Ns::with_ipv6("b")];
    let (near, far) = (Daemon::start(&switch), Daemon::start(&switch));
    switch.veth("trunk0", &switch, "trunk1", 1500);
    for (daemon, end) in [(&near, "trunk0"), (&far, "trunk1")] {
        daemon.ctl("bridge add br0 --vlan-filtering on");
        daemon.ctl(&format!("port add {end} --bridge br0 --type packet --trunk 10,20"));
    }
    let stations = [(1, "10"), (4, "20")].map(|(number, vlan)| {
        let host = &hosts[usize::from(number != 1)];
        Station::plug(&far, (&switch, host), Kind::Tap, number, 1500, &format!("--access {vlan}"))
    });
    let socket = near.path("vm1.sock");
    near.ctl(&format!("port add vm1 --bridge br0 --type vhost-user --path {} --access 10", socket.display()));
    switch.ip("tuntap add dev guest0 mode tap vnet_hdr; link set guest0 up");
    near.ctl("port add vm2 --bridge br0 --type packet --ifname guest0 --access 20");
    let by_tap = format!("-netdev tap,id=net,ifname=guest0,script=no,downscript=no {}", card(2));
    let [mut one, mut two] = boot(&switch, [&vhost_user::arguments(&socket, 1, false), &by_tap]);
    near.wait_port_state("vm1", "up");
    near.wait_port_state("vm2", "up");

    let wire = Raw::open(&switch, "trunk1");
    let apart = |one: &mut Qemu, two: &mut Qemu| {
        for (guest, strangers) in [(&mut *one, [TWO, FAR]), (&mut *two, [ONE, NEAR])] {
            for stranger in strangers {
                assert!(!reaches(guest, stranger), "a guest reaches {stranger} in the other VLAN");
            }
        }
        for (host, stranger) in hosts.iter().zip([TWO, ONE]) {
            let answer = host.try_run("ping", &["-c", "2", "-i", "0.2", "-W", "1", stranger]);
            assert!(answer.is_err(), "{stranger} in the other VLAN answers: {answer:?}");
        }
    };
    for offloads in [Offloads::ON, Offloads::OFF] {
        ["trunk0", "trunk1"].iter().for_each(|end| switch.offloads(end, offloads));
        wire.drain();
        one.talk(ONE, &hosts[0], NEAR);
        let first = wire.drain();
        two.talk(TWO, &hosts[1], FAR);
        let second = wire.drain();
        for (seen, vid, mac) in [(first, 10, 1), (second, 20, 2)] {
            tagged(&seen, vid, [0x52, 0x54, 0, 0, 0, mac], offloads == Offloads::ON);
        }
        apart(&mut one, &mut two);
    }

    one.reboot();
    one.address(&format!("{ONE}/24"));
    one.talk(ONE, &hosts[0], NEAR);
    apart(&mut one, &mut two);
    two.talk(TWO, &hosts[1], FAR);
    for (mac, vlan, port) in [("52:54:00:00:00:01", 10, "vm1"), ("52:54:00:00:00:02", 20, "vm2")] {
        let known: Vec<_> = near.fdb("").into_iter().filter(|(known, ..)| known == mac).collect();
        assert_eq!(known, [(mac.to_owned(), vlan, port.to_owned(), "dynamic".to_owned())]);
    }
    no_faults(&near, &["vm1", "vm2", "trunk0"]);
    assert_eq!(stations.map(|station| far.drops(&station.ifname, "bad_offload")), [0, 0]);
    Ok(())
}

/// Every frame of this guest has one tag, with this VLAN, and its packets are whole: superframes, or finished to the last checksum.
#[track_caller]
fn tagged(seen: &[Seen], vid: u16, mac: [u8; 6], superframes: bool) {
    let own: Vec<&Seen> = seen.iter().filter(|seen| seen.bytes.get(6..12) == Some(&mac[..])).collect();
    let mut longest = 0;
    for Seen { bytes, unfinished } in &own {
        assert_eq!(untag(bytes).0, [(Q, vid)], "one tag");
        longest = longest.max(bytes.len());
        if !superframes {
            assert!(!unfinished, "a checksum is left unfinished");
            check_ip(bytes).unwrap_or_else(|error| panic!("{error}"));
        }
    }
    let segments =
        own.iter().filter(|seen| matches!(check_ip(&seen.bytes), Ok(Transport::Tcp { .. }))).count();
    assert_eq!(longest > 1518, superframes, "{} frames, the longest of {longest} bytes", own.len());
    assert!(superframes || segments > 300, "{segments} segments in {} frames", own.len());
}

/// vswitchd is killed under two guests that run and tell each other something: the next one goes on with them and with the namespace.
pub fn the_switch_comes_back() -> Outcome {
    can_boot()?;
    let (switch, host) = (Ns::new("v"), Ns::new("s"));
    let sockets = folder();
    let socket = sockets.path().join("vm1.sock");
    let config = format!(
        "[[bridge]]\nname = \"br0\"\n\
         [[port]]\nname = \"host\"\nbridge = \"br0\"\ntype = \"packet\"\n\
         [[port]]\nname = \"vm1\"\nbridge = \"br0\"\ntype = \"vhost-user\"\npath = \"{}\"\n",
        socket.display()
    );
    switch.veth("host", &host, "host", 1500);
    host.ip(&format!("addr add {NEAR}/24 dev host"));
    let mut daemon = Start::new(&switch).config(&config).ready();
    let by_helper = attached(&helper_script(&daemon));
    let [mut one, mut two] = boot(&switch, [&vhost_user::arguments(&socket, 1, false), &by_helper]);
    tell(&mut one, &mut two, TWO);
    two.talk(TWO, &host, NEAR);

    for times in 1..=2 {
        let sent = || daemon.stats("vm1")["rx_bytes"].as_u64().expect("a number");
        let before = sent();
        one.run(&format!(
            "rm -f /tmp/sum; (seq 1 {MANY_LINES} | nc {TWO} 9 >/tmp/part; mv /tmp/part /tmp/sum) &"
        ));
        eventually("they are talking", || sent() > before + (1 << 20));
        let left = daemon.kill();
        assert_ne!(one.try_run("[ -e /tmp/sum ]").0, 0, "it was over before, {times}");
        daemon = Start::new(&switch).folder(left).config(&config).ready();
        for port in ["host", "vm1", "vtap0"] {
            daemon.wait_port_state(port, "up");
        }
        // The connection goes on, by itself; a sender that was silenced tries again within seconds.
        one.run("for n in $(seq 400); do [ ! -e /tmp/sum ] || break; sleep 0.1; done");
        assert_eq!(
            one.run("cat /tmp/sum"),
            one.run(&format!("seq 1 {MANY_LINES} | md5sum")),
            "what the other guest got"
        );
        for (guest, address) in [(&mut one, ONE), (&mut two, TWO)] {
            let heard = guest.run(&format!("ping -c 3 -W 5 {NEAR}"));
            assert!(heard.contains(" 0% packet loss"), "{heard}");
            let heard = host.run("ping", &["-c", "3", "-i", "0.2", "-W", "5", address]);
            assert!(heard.contains(" 0% packet loss"), "{heard}");
        }
        no_faults(&daemon, &["vm1", "vtap0", "host"]);
    }
    one.talk(ONE, &host, NEAR);
    two.talk(TWO, &host, NEAR);
    tell(&mut two, &mut one, ONE);
    Ok(())
}
