//! Ports on sockets of other programs: peers that come and go, stall and flood, and QEMU guests.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::harness::daemon::{Daemon, Start, folder, with_host};
use crate::harness::frame::{BROADCAST, is_test, station, test_frame};
use crate::harness::net::Ns;
use crate::harness::qemu::{CARD, Qemu, can_boot};
use crate::harness::raw::Raw;
use crate::harness::{Outcome, PATIENCE, eventually, has_users, rights};

fn send(peer: &mut UnixStream, frame: &[u8]) {
    let encoded = [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
    peer.write_all(&encoded).expect("the switch takes it");
}

/// The next test frame.
fn next(peer: &mut UnixStream) -> Vec<u8> {
    peer.set_read_timeout(Some(PATIENCE)).expect("a time");
    loop {
        let mut len = [0; 4];
        peer.read_exact(&mut len).expect("a length");
        let mut bytes = vec![0; u32::from_be_bytes(len) as usize];
        peer.read_exact(&mut bytes).expect("a frame");
        if is_test(&bytes) {
            return bytes;
        }
    }
}

/// Frames between a peer and a station in a namespace, both ways.
#[track_caller]
fn talk(peer: &mut UnixStream, host: &Raw, number: u32) {
    let (me, to) = (station(number), station(0x70));
    send(peer, &test_frame(BROADCAST, me, "from the peer"));
    assert_eq!(host.collect(1, PATIENCE, is_test).len(), 1);
    host.send(&test_frame(me, to, "to the peer")).expect("sent");
    // Behind what others have flooded.
    while next(peer) != test_frame(me, to, "to the peer") {}
}

#[track_caller]
fn connect(path: &Path) -> UnixStream {
    let mut peer = UnixStream::connect(path);
    eventually("the switch listens", || {
        if peer.is_err() {
            peer = UnixStream::connect(path);
        }
        peer.is_ok()
    });
    peer.expect("just seen")
}

/// Options, what is shown, what is refused, and what is left behind.
pub fn as_asked() -> Outcome {
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let daemon = with_host(&ns, &host);
    let (path, theirs) = (daemon.path("vm1.sock"), daemon.path("theirs.sock"));
    let (text, other) = (path.display().to_string(), theirs.display().to_string());
    let add = format!("port add vm1 --bridge br0 --type stream --path {text}");
    daemon.ctl(&add);
    daemon.ctl(&format!("{add} --server --may-exist"));
    let error = daemon.refused(&format!("{add} --mtu 9000 --may-exist"));
    assert!(error.contains("mtu is 1500, not 9000"), "{error}");
    let shown = daemon.port("vm1");
    assert_eq!(
        (&shown["type"], &shown["state"], &shown["mtu"]),
        (&"stream".into(), &"down".into(), &1500.into())
    );
    assert_eq!(shown["socket"]["role"], "server");
    assert_eq!(shown["socket"]["path"], text.as_str());
    assert_eq!(fs::metadata(&path).expect("made").permissions().mode() & 0o777, 0o660);
    let words = daemon.ctl("port explain vm1");
    let netdev = format!("-netdev stream,id=net0,server=off,addr.type=unix,addr.path={text}");
    assert!(words.contains(&netdev) && words.contains("its peer is not there"), "{words}");

    let refused = |line: &str, word: &str| {
        let error = daemon.refused(&format!("port add p --bridge br0 --type {line}"));
        assert!(error.contains(word), "{word}: {error}");
    };
    refused("stream", "needs 'path'");
    refused("stream --path here.sock", "absolute path");
    refused(&format!("stream --path {text}"), "port del vm1");
    refused(&format!("stream --path /tmp/{}", "x".repeat(120)), "longer than 107 bytes");
    refused("stream --path /tmp/none --client --mode 600", "'mode'");
    refused("stream --connect 127.0.0.1:0", "port 0");
    refused("stream --listen 127.0.0.1:0", "port 0");
    refused("stream --path /tmp/none --netns x", "'netns'");
    refused("dgram", "needs 'path'");
    refused(&format!("dgram --path {text}2 --peer {text}3 --server"), "leave 'peer' out");
    refused(&format!("dgram --path /tmp/{} --client", "x".repeat(100)), "longer than 107 bytes");
    refused(&format!("dgram --path {text}2 --peer {text}2"), "give two");
    refused(&format!("tap --path {text}2"), "'path' is for stream and dgram");
    let folder = daemon.path("nowhere").join("s").display().to_string();
    refused(&format!("stream --path {folder}"), "No such file");
    let listener = UnixListener::bind(&theirs).expect("bound");
    refused(&format!("stream --path {other}"), "another program");
    drop(listener);
    fs::remove_file(&theirs).expect("removed");

    daemon.ctl(&format!("port add d --bridge br0 --type dgram --path {text}.d --peer {other} --mode 600"));
    let words = daemon.ctl("port explain d");
    assert!(
        words.contains(&format!("local.path={other}")) && words.contains(&format!("remote.path={text}.d")),
        "{words}"
    );
    assert_eq!(daemon.port("d")["socket"]["peer"], other.as_str());
    daemon.ctl(&format!("port add dc --bridge br0 --type dgram --path {text}.q --client"));
    assert_eq!(daemon.port("dc")["socket"]["role"], "client");
    let words = daemon.ctl("port explain dc");
    let netdev = format!("local.path={text}.q,remote.type=unix,remote.path={text}.q.vswitchd");
    assert!(words.contains(&netdev), "{words}");
    daemon.ctl(&format!("port add ds --bridge br0 --type dgram --path {text}.s --server"));
    assert!(daemon.ctl("port explain ds").contains(&format!("remote.path={text}.s ")));
    daemon.ctl("port add t --bridge br0 --type stream --listen 127.0.0.1:5000");
    for taken in ["127.0.0.1:5000", "0.0.0.0:5000"] {
        refused(&format!("stream --listen {taken}"), "port del t");
    }
    assert!(daemon.ctl("port explain t").contains("addr.type=inet,addr.host=127.0.0.1,addr.port=5000"));
    daemon.ctl(&format!("port add c --bridge br0 --type stream --path {other} --client"));
    assert!(daemon.ctl("port explain c").contains("server=on"));
    assert!(daemon.ctl("port show c").contains(&format!("client {other}")));
    daemon.ctl("port del vm1");
    assert!(!path.exists());
    let folder = daemon.terminate();
    let left: Vec<_> =
        fs::read_dir(folder.path()).expect("there").flatten().map(|file| file.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("sock")), "{left:?}");
    Ok(())
}

/// A peer that connects, leaves and comes again; the station behind it is forgotten meanwhile.
pub fn peers_come_and_go() -> Outcome {
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let daemon = with_host(&ns, &host);
    let path = daemon.path("p.sock");
    daemon.ctl(&format!("port add p --bridge br0 --type stream --path {} --isolated on", path.display()));
    let raw = Raw::open(&host, "host");
    for round in 0..3 {
        let mut peer = connect(&path);
        daemon.wait_port_state("p", "up");
        talk(&mut peer, &raw, 0x71);
        assert_eq!(daemon.whereabouts(station(0x71)).as_deref(), Some("p"));
        let mut second = connect(&path);
        assert_eq!(second.read(&mut [0; 1]).unwrap_or(0), 0, "one at a time");
        drop(peer);
        daemon.wait_port_state("p", "down");
        assert_eq!(daemon.whereabouts(station(0x71)), None);
        eventually("it is counted", || daemon.port("p")["socket"]["peers"]["refused"] == round + 1);
    }
    assert_eq!(daemon.port("p")["socket"]["peers"]["connections"], 3);
    assert!(daemon.port("p")["isolated"].as_bool().expect("a flag"));
    Ok(())
}

/// Garbage, half a frame and then nothing, a reader that stops, and a flood: all of it harms only who does it.
pub fn hostile_peers() -> Outcome {
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let daemon = with_host(&ns, &host);
    let paths = ["bad", "good"].map(|name| {
        let path = daemon.path(&format!("{name}.sock"));
        daemon.ctl(&format!("port add {name} --bridge br0 --type stream --path {}", path.display()));
        path
    });
    let raw = Raw::open(&host, "host");
    let mut good = connect(&paths[1]);
    talk(&mut good, &raw, 0x72);
    for garbage in [&[0; 64][..], &[0xff; 64], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut bad = connect(&paths[0]);
        bad.write_all(garbage).expect("sent");
        bad.set_read_timeout(Some(PATIENCE)).expect("a time");
        eventually("it is closed", || match bad.read(&mut [0; 4096]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        });
        talk(&mut good, &raw, 0x72);
    }
    assert_eq!(daemon.drops("bad", "bad_length"), 3);

    // Half a frame, and nothing for a while.
    let mut bad = connect(&paths[0]);
    let whole = test_frame(BROADCAST, station(0x73), "in two halves");
    let encoded = [&(whole.len() as u32).to_be_bytes()[..], &whole].concat();
    bad.write_all(&encoded[..10]).expect("sent");
    talk(&mut good, &raw, 0x72);
    bad.write_all(&encoded[10..]).expect("sent");
    assert_eq!(raw.collect(1, PATIENCE, is_test).len(), 1);

    // It floods and never reads, for a second.
    bad.set_nonblocking(true).expect("set");
    let flood: Vec<u8> = encoded.repeat(1000);
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < Duration::from_secs(1) {
        match bad.write(&flood[sent % encoded.len()..]) {
            Ok(len) => sent += len,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert!(sent > encoded.len() * 1000);
    raw.drain();
    drop(good);
    daemon.wait_port_state("good", "down");
    drop(bad);
    daemon.wait_port_state("bad", "down");
    let mut good = connect(&paths[1]);
    talk(&mut good, &raw, 0x74);
    // A reader that stopped: what does not fit is dropped and counted, and the station in the namespace does not notice.
    let full = test_frame(station(0x74), station(0x70), &"x".repeat(1400));
    eventually("its queue is full", || {
        (0..200).for_each(|_| drop(raw.send(&full)));
        daemon.drops("good", "tx_full") > 0
    });
    good.set_nonblocking(false).expect("set");
    let taken = daemon.stats("good")["tx_frames"].as_u64().expect("a number");
    assert!(taken > 100, "{taken}");
    for _ in 0..100 {
        assert_eq!(next(&mut good).len(), full.len());
    }
    Ok(())
}

/// The switch is killed and started again under peers that connect again, and under one that listens.
pub fn restarted() -> Outcome {
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let sockets = folder();
    let at = |name: &str| sockets.path().join(name);
    let config = format!(
        "[[bridge]]\nname = \"br0\"\n\
         [[port]]\nname = \"host\"\nbridge = \"br0\"\ntype = \"tap\"\nnetns = \"{}\"\n\
         [[port]]\nname = \"s\"\nbridge = \"br0\"\ntype = \"stream\"\npath = \"{}\"\nmode = \"600\"\n\
         [[port]]\nname = \"c\"\nbridge = \"br0\"\ntype = \"stream\"\npath = \"{}\"\nclient = true\n",
        host.name,
        at("s").display(),
        at("c").display()
    );
    let listener = UnixListener::bind(at("c")).expect("bound");
    let mut left = None;
    for round in 0..3 {
        let daemon = Start::new(&ns).config(&config).folder(left.take()).ready();
        let raw = Raw::open(&host, "host");
        let mut server_side = connect(&at("s"));
        let (mut client_side, _) = listener.accept().expect("the switch connects");
        daemon.wait_port_state("s", "up");
        daemon.wait_port_state("c", "up");
        talk(&mut server_side, &raw, 0x75);
        talk(&mut client_side, &raw, 0x76);
        // The same configuration again: nobody notices.
        daemon.ctl("reload");
        talk(&mut server_side, &raw, 0x75);
        // Another path for one port; the other keeps its peer.
        daemon.write_config(&config.replace("mode = \"600\"", "mode = \"660\""));
        daemon.ctl("reload");
        talk(&mut client_side, &raw, 0x76);
        assert_eq!(server_side.read(&mut [0; 4096]).map(|len| len.min(1)).unwrap_or(0), 0, "made anew");
        left = Some(if round == 1 { daemon.terminate() } else { daemon.kill() });
        assert_eq!(at("s").exists(), round != 1, "a clean end removes it");
        eventually("the peer sees it", || !matches!(client_side.read(&mut [0; 4096]), Ok(1..)));
    }
    Ok(())
}

/// Ports on sockets need no privileges, and those that do say so.
pub fn without_privileges() -> Outcome {
    let ns = Ns::new("v");
    let daemon = Start::new(&ns).unprivileged().ready();
    assert!(daemon.log().contains("missing CAP_NET_ADMIN"), "{}", daemon.log());
    daemon.ctl("bridge add br0");
    let error = daemon.refused("port add t --bridge br0 --type tap");
    assert!(error.contains("not permitted"), "{error}");
    let [mut a, mut b] = ["a", "b"].map(|name| {
        let path = daemon.path(name);
        daemon.ctl(&format!("port add {name} --bridge br0 --type stream --path {}", path.display()));
        let peer = connect(&path);
        daemon.wait_port_state(name, "up");
        peer
    });
    let sent = test_frame(BROADCAST, station(0x78), "from one to the other");
    send(&mut a, &sent);
    assert_eq!(next(&mut b), sent);
    Ok(())
}

/// Datagrams to and from a peer that comes later and goes before.
pub fn datagrams() -> Outcome {
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let daemon = with_host(&ns, &host);
    let (ours, theirs) = (daemon.path("ours"), daemon.path("theirs"));
    daemon.ctl(&format!(
        "port add d --bridge br0 --type dgram --path {} --peer {}",
        ours.display(),
        theirs.display()
    ));
    assert_eq!(daemon.port_state("d"), "down");
    let raw = Raw::open(&host, "host");
    let (me, to) = (station(0x77), station(0x70));
    for _ in 0..2 {
        let peer = UnixDatagram::bind(&theirs).expect("bound");
        peer.set_read_timeout(Some(PATIENCE)).expect("a time");
        // Not at once while it takes the one before for its peer.
        eventually("the switch takes it", || {
            peer.send_to(&test_frame(BROADCAST, me, "hello"), &ours).is_ok()
        });
        assert_eq!(raw.collect(1, PATIENCE, is_test).len(), 1);
        raw.send(&test_frame(me, to, "and back")).expect("sent");
        let mut buffer = [0; 2000];
        let mut len = 0;
        eventually("it arrives", || {
            len = peer.recv(&mut buffer).expect("a datagram");
            buffer[..len] == test_frame(me, to, "and back")
        });
        fs::remove_file(&theirs).expect("removed");
    }
    Ok(())
}

/// Set when it goes.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Somebody who never stops sending gets nothing in while peers go and come.
pub fn nobody_speaks_for_a_peer_that_goes() -> Outcome {
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let daemon = with_host(&ns, &host);
    let [ours, theirs, others] = ["ours", "theirs", "others"].map(|name| daemon.path(name));
    let (at, peer_at) = (ours.display(), theirs.display());
    daemon.ctl(&format!("port add d --bridge br0 --type dgram --path {at} --peer {peer_at}"));
    let raw = Raw::open(&host, "host");
    let (me, to) = (station(0x77), station(0x70));
    let other = UnixDatagram::bind(others).expect("bound");
    other.set_nonblocking(true).expect("non-blocking");
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let frame = test_frame(BROADCAST, station(0x66), "from another");
            while !ends.load(Ordering::Relaxed) {
                if other.send_to(&frame, &ours).is_err() {
                    std::thread::sleep(Duration::from_micros(10));
                }
            }
        });
        // However this ends, or it would be waited for.
        let _ends = Ends(&ends);
        for _ in 0..6 {
            let peer = UnixDatagram::bind(&theirs).expect("bound");
            daemon.wait_port_state("d", "up");
            peer.send_to(&test_frame(BROADCAST, me, "hello"), &ours).expect("connected");
            let got = raw.collect(1, PATIENCE, is_test);
            assert_eq!(got[0].bytes, test_frame(BROADCAST, me, "hello"), "and nothing before it");
            drop(peer);
            fs::remove_file(&theirs).expect("removed");
            raw.send(&test_frame(me, to, "to nobody")).expect("sent");
            daemon.wait_port_state("d", "down");
        }
    });
    Ok(())
}

/// QEMU as client of the switch, as its server, by TCP and by datagrams, with the command lines that are explained.
pub fn guests() -> Outcome {
    can_boot()?;
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    ns.sysctl("net/unix/max_dgram_qlen", "512");
    let daemon = with_host(&ns, &host);
    let at = |name: &str| daemon.path(name).display().to_string();
    daemon.ctl(&format!("port add s --bridge br0 --type stream --path {}", at("s")));
    daemon.ctl(&format!("port add c --bridge br0 --type stream --path {} --client", at("c")));
    daemon.ctl(&format!("port add d --bridge br0 --type dgram --path {} --peer {}", at("d"), at("q")));
    daemon.ctl(&format!("port add ds --bridge br0 --type dgram --path {} --server", at("ds")));
    daemon.ctl(&format!("port add dc --bridge br0 --type dgram --path {} --client", at("dc")));
    daemon.ctl("port add t --bridge br0 --type stream --listen 127.0.0.1:5000");
    for port in ["s", "c", "t", "d", "ds", "dc"] {
        let words = daemon.ctl(&format!("port explain {port}"));
        let netdev =
            words.split_once("-netdev ").expect("a command line").1.split(" \\\n  ").next().expect("some");
        let netdev = netdev.replace("\\\n", "").replace(' ', "").replace("id=net0", "id=net");
        let mut guest = Qemu::boot(&ns, &format!("-netdev {netdev} {CARD}"));
        // The first who sends is the peer: not before he does.
        if port != "ds" {
            daemon.wait_port_state(port, "up");
        }
        guest.address("10.9.0.2/24");
        guest.talk("10.9.0.2", &host, "10.9.0.1");
        if port == "s" {
            guest.reboot();
            guest.address("10.9.0.2/24");
            guest.talk("10.9.0.2", &host, "10.9.0.1");
        }
        guest.kill();
        // Of datagrams, it left its socket's file behind.
        daemon.wait_port_state(port, "down");
        if port.starts_with('d') {
            let mut guest = Qemu::boot(&ns, &format!("-netdev {netdev} {CARD}"));
            guest.address("10.9.0.2/24");
            guest.talk("10.9.0.2", &host, "10.9.0.1");
        }
        daemon.ctl("fdb flush");
        host.ip("neigh flush all");
    }
    Ok(())
}

/// Frames of 9000 bytes, as the guest's card is told.
pub fn a_guest_with_jumbo_frames() -> Outcome {
    can_boot()?;
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let daemon = with_host(&ns, &host);
    host.ip("link set host mtu 9000");
    let path = daemon.path("g").display().to_string();
    daemon.ctl(&format!("port add g --bridge br0 --type stream --path {path} --mtu 9000"));
    assert!(daemon.ctl("port explain g").contains("netdev=net0,host_mtu=9000"));
    let netdev = format!("-netdev stream,id=net,server=off,addr.type=unix,addr.path={path}");
    let mut guest = Qemu::boot(&ns, &format!("{netdev} {CARD},host_mtu=9000"));
    guest.address("10.9.0.2/24");
    guest.talk("10.9.0.2", &host, "10.9.0.1");
    let heard = guest.run("ping -c 3 -W 5 -s 8972 10.9.0.1");
    assert!(heard.contains(" 0% packet loss"), "{heard}");
    let heard = host.run("ping", &["-c", "3", "-i", "0.2", "-W", "5", "-s", "8972", "-M", "do", "10.9.0.2"]);
    assert!(heard.contains(" 0% packet loss"), "{heard}");
    Ok(())
}

/// A guest whose switch is killed and started again: QEMU listens and the new one connects, or finds its socket at the same path.
pub fn a_guest_outlives_the_switch() -> Outcome {
    can_boot()?;
    let sockets = folder();
    let at = |name: &str| sockets.path().join(name).display().to_string();
    for (port, netdev) in [
        (
            format!("type = \"stream\"\npath = \"{}\"\nclient = true\n", at("q")),
            format!("stream,id=net,server=on,addr.type=unix,addr.path={}", at("q")),
        ),
        (
            format!("type = \"dgram\"\npath = \"{}\"\npeer = \"{}\"\n", at("s"), at("g")),
            format!(
                "dgram,id=net,local.type=unix,local.path={},remote.type=unix,remote.path={}",
                at("g"),
                at("s")
            ),
        ),
    ] {
        let (ns, host) = (Ns::new("v"), Ns::new("h"));
        ns.sysctl("net/unix/max_dgram_qlen", "512");
        let config = format!(
            "[[bridge]]\nname = \"br0\"\n\
             [[port]]\nname = \"host\"\nbridge = \"br0\"\ntype = \"tap\"\nnetns = \"{}\"\n\
             address = \"10.9.0.1/24\"\nmac = \"02:00:00:00:09:01\"\n\
             [[port]]\nname = \"g\"\nbridge = \"br0\"\n{port}",
            host.name
        );
        let daemon = Start::new(&ns).config(&config).ready();
        let mut guest = Qemu::boot(&ns, &format!("-netdev {netdev} {CARD}"));
        guest.address("10.9.0.2/24");
        daemon.wait_port_state("g", "up");
        guest.talk("10.9.0.2", &host, "10.9.0.1");
        let left = daemon.kill();
        let daemon = Start::new(&ns).config(&config).folder(left).ready();
        daemon.wait_port_state("g", "up");
        guest.talk("10.9.0.2", &host, "10.9.0.1");
    }
    Ok(())
}

/// A datagram from a socket in the daemon's folder whose file is `owner`'s, sent by `user`.
fn send_as(user: u32, owner: u32, daemon: &Daemon, name: &str) -> UnixDatagram {
    let path = daemon.path(name);
    let socket = UnixDatagram::bind(&path).expect("bound");
    std::os::unix::fs::chown(&path, Some(owner), None).expect("ours");
    // Nothing else is in the way of an answer.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("ours");
    socket.connect(daemon.path("d")).expect("it is there");
    let sent = std::thread::scope(|scope| {
        let work = || {
            // SAFETY: the system call changes this thread alone, which ends after the work. What counts is the real user.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, user, 0, 0) };
            assert_eq!(changed, 0, "{}", std::io::Error::last_os_error());
            socket.send(&test_frame(BROADCAST, station(1), "hello"))
        };
        scope.spawn(work).join().expect("no panic")
    });
    sent.expect("sent");
    socket
}

/// A vswitchd in a user namespace cannot tell users apart who have no number there, so it answers none of them.
pub fn senders_without_a_number() -> Outcome {
    has_users()?;
    let ns = Ns::new("v");
    let daemon = Start::new(&ns).in_user_namespace().ready();
    daemon.ctl("bridge add br0");
    daemon.ctl(&format!("port add d --bridge br0 --type dgram --path {}", daemon.path("d").display()));
    let refused = |times: u32| {
        eventually("the sender is refused", || daemon.port("d")["socket"]["peers"]["refused"] == times);
        assert_eq!(daemon.port_state("d"), "down");
    };
    let _another = send_as(4711, 4712, &daemon, "another");
    refused(1);
    let _his_own = send_as(4711, 4711, &daemon, "his-own");
    refused(2);
    let _ours = send_as(0, 0, &daemon, "ours");
    daemon.wait_port_state("d", "up");
    Ok(())
}

/// Descriptors that a peer sends along cannot hold up who reads what they come with, because they never come.
pub fn descriptors_are_refused() -> Outcome {
    rights::can_refuse()?;
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let daemon = with_host(&ns, &host);
    let at = |name: &str| daemon.path(name);
    let listener = UnixListener::bind(at("theirs")).expect("bound");
    for (name, kind, path, option) in [
        ("server", "stream", "s", ""),
        ("client", "stream", "theirs", "--client"),
        ("datagrams", "dgram", "d", "--server"),
    ] {
        let path = at(path).display().to_string();
        daemon.ctl(&format!("port add {name} --bridge br0 --type {kind} --path {path} {option}"));
    }
    let mut peers = [connect(&at("s")), listener.accept().expect("the switch connects").0];
    let raw = Raw::open(&host, "host");
    for (number, peer) in (0x71..).zip(&mut peers) {
        rights::is_refused(peer);
        talk(peer, &raw, number);
        rights::is_refused(peer);
    }
    // Nor of who is turned away, unless that has happened already.
    let sent = rights::send_along(&UnixStream::connect(at("s")).expect("it listens"));
    assert!(matches!(sent, Err(Errno::EPERM | Errno::EPIPE)), "{sent:?}");
    let sender = UnixDatagram::bind(at("sender")).expect("bound");
    sender.connect(at("d")).expect("it is there");
    rights::is_refused(&sender);
    sender.send(&test_frame(BROADCAST, station(0x73), "hello")).expect("sent");
    daemon.wait_port_state("datagrams", "up");
    rights::is_refused(&sender);
    // The daemon's own.
    for socket in [&daemon.socket, &daemon.socket.with_file_name("attach.sock")] {
        rights::is_refused(&UnixStream::connect(socket).expect("it listens"));
    }
    Ok(())
}
