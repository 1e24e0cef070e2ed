//! Guests on vhost-user ports that move from one QEMU to another while they run.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::harness::daemon::{Daemon, Start};
use crate::harness::net::Ns;
use crate::harness::qemu::{Migration, Qemu, can_boot};
use crate::harness::{Outcome, PATIENCE, Random, eventually};
use crate::vhost_user::{arguments, host, layout};

const GUEST: &str = "10.9.0.2";
const STATION: &str = "10.9.0.1";
/// What the guest's kernel takes before anybody reads it.
const UNREAD: usize = 48 << 10;

/// QEMU's arguments. Before 9.0 it loses what an emulated CPU writes while it looks for dirty pages, in memory of a multiple of 256 KiB, where it goes
/// through its own bitmap in whole words; so the guest has 8 KiB more.
fn qemu(socket: &Path, more: &str) -> String {
    let size = "size=201334784";
    arguments(socket, 1, false).replace("size=192M", size) + " -m 196616K" + more
}

/// Connects to a port of the guest.
fn connect(station: &Ns, port: u16) -> TcpStream {
    let mut stream = None;
    eventually("the guest listens", || {
        stream = station.enter(|| TcpStream::connect((GUEST, port))).ok();
        stream.is_some()
    });
    let stream = stream.expect("just seen");
    stream.set_read_timeout(Some(PATIENCE * 2)).expect("a time");
    stream.set_write_timeout(Some(PATIENCE * 2)).expect("a time");
    stream
}

/// Says random bytes to the guest's echo and compares what comes back, until `ends`; counts rounds.
fn converse(mut stream: TcpStream, ends: &AtomicBool, rounds: &AtomicUsize) {
    let mut random = Random::new(3);
    let (mut said, mut heard) = (vec![0; 20_000], vec![0; 20_000]);
    while !ends.load(Ordering::Relaxed) {
        random.fill(&mut said);
        stream.write_all(&said).expect("the guest takes it");
        stream.read_exact(&mut heard).expect("the guest says it again");
        assert!(said == heard, "what came back differs, in round {}", rounds.load(Ordering::Relaxed));
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// Says that it is over, in a panic too: others wait for that.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Pings the guest until `ends`; how many were answered, and how many not, each after a second.
fn ping(station: &Ns, ends: &AtomicBool) -> (u32, u32) {
    let (mut answered, mut lost) = (0, 0);
    while !ends.load(Ordering::Relaxed) {
        match station.try_run("ping", &["-c", "1", "-W", "1", GUEST]) {
            Ok(_) => answered += 1,
            Err(_) => lost += 1,
        }
    }
    (answered, lost)
}

/// Moves a guest from the port `vm1` of one switch to the port `vm2` of another, or the same, while it talks to a station.
fn moved(station: &Ns, from: (&Ns, &Daemon), to: (&Ns, &Daemon)) {
    let folder = crate::harness::daemon::folder();
    let sockets = [from.1.path("vm1"), to.1.path("vm2")];
    let migration = Migration::new(folder.path());
    let mut source = Qemu::boot(from.0, &qemu(&sockets[0], &migration.outgoing()));
    source.address(&format!("{GUEST}/24"));
    source.talk(GUEST, station, STATION);
    let mut destination = Qemu::start(to.0, &qemu(&sockets[1], &migration.incoming()));

    // A program in the guest that does not read what it is sent: it lies where the switch wrote it.
    source.run("nc -l -p 9 -e sh -c 'until [ -e /tmp/read ]; do sleep 0.1; done; md5sum >/tmp/sum' &");
    let mut late = connect(station, 9);
    // And one that keeps QEMU busy with memory that changes, until the test lets it end.
    source.run("dd if=/dev/urandom of=/tmp/random bs=1M count=4 2>/dev/null");
    source.run("while [ ! -e /tmp/read ]; do cat /tmp/random >/tmp/copy; sleep 0.02; done &");
    let mut random = Random::new(5);
    let mut unread = Vec::new();

    let (ends, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    let talks_on = |what: &str| {
        let before = rounds.load(Ordering::Relaxed);
        eventually(what, || rounds.load(Ordering::Relaxed) > before + 20);
    };
    let echo = connect(station, 7);
    std::thread::scope(|scope| {
        let over = Ends(&ends);
        let talker = scope.spawn(|| converse(echo, &ends, &rounds));
        let pinger = scope.spawn(|| ping(station, &ends));
        talks_on("they talk");
        let stop = source.migrate(&destination, &migration, || {
            let mut more = vec![0; UNREAD / 2];
            random.fill(&mut more);
            late.write_all(&more).expect("the guest takes it");
            unread.extend(more);
            talks_on("they talk while the guest moves");
        });
        to.1.wait_port_state("vm2", "up");
        from.1.wait_port_state("vm1", "down");
        talks_on("they talk on");
        drop(over);
        talker.join().expect("no panic");
        let (answered, lost) = pinger.join().expect("no panic");
        // Emulated guests on a busy machine are late now and then.
        let bound = 20 + stop.as_secs();
        assert!(
            answered > lost && u64::from(lost) < bound,
            "{answered} pings were answered and {lost} not, {stop:?}"
        );
    });
    source.kill();
    late.shutdown(std::net::Shutdown::Write).expect("all said");
    destination.run("touch /tmp/read; until [ -s /tmp/sum ]; do sleep 0.1; done");
    let sum = destination.run("cat /tmp/sum");
    let file = folder.path().join("unread");
    std::fs::write(&file, &unread).expect("written");
    let expected = crate::harness::net::run("md5sum", &[file.to_str().expect("text")]);
    assert_eq!(sum.split(' ').next(), expected.split(' ').next(), "what nobody had read changed");
    destination.talk(GUEST, station, STATION);
    for (daemon, port) in [(from.1, "vm1"), (to.1, "vm2")] {
        assert_eq!(daemon.drops(port, "bad_ring"), 0, "{port}");
    }
}

/// A daemon with a bridge, a port of this name for a guest, and others.
fn switch(ns: &Ns, others: &str, name: &str) -> Daemon {
    let daemon = Start::new(ns).config(&layout(others)).ready();
    let path = daemon.path(name);
    daemon.ctl(&format!("port add {name} --bridge br0 --type vhost-user --path {}", path.display()));
    daemon
}

pub fn on_one_switch() -> Outcome {
    can_boot()?;
    let (ns, station) = (Ns::new("v"), Ns::new("h"));
    let daemon = switch(&ns, &host(&station), "vm1");
    let path = daemon.path("vm2");
    daemon.ctl(&format!("port add vm2 --bridge br0 --type vhost-user --path {}", path.display()));
    moved(&station, (&ns, &daemon), (&ns, &daemon));
    Ok(())
}

pub fn to_another_switch() -> Outcome {
    can_boot()?;
    let (here, there, station) = (Ns::new("v"), Ns::new("w"), Ns::new("h"));
    here.veth("wire", &there, "wire", 1500);
    let wire = "[[port]]\nname = \"wire\"\nbridge = \"br0\"\ntype = \"packet\"\n";
    let one = switch(&here, &(host(&station) + wire), "vm1");
    let two = switch(&there, wire, "vm2");
    moved(&station, (&here, &one), (&there, &two));
    Ok(())
}
