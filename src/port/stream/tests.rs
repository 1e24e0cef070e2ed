//! A running switch, with peers that behave well and badly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, reason = "tests")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::framing::FRAME_LEN_MAX;
use crate::offload::{Capabilities, Offload};
use crate::port::mem::{MemFrame, MemPort};
use crate::spec::{
    BridgeSpec, DgramSpec, PortKind, PortSettings, PortSpec, SocketRole, StreamAddress, StreamSpec,
};
use crate::status::{PortState, PortStatus};
use crate::switch::{Error, FdbFilter, Missing, Options, Switch};

const LONG: Duration = Duration::from_secs(10);

/// A switch with a port in memory, `mem`, and a folder for sockets.
struct Net {
    switch: Switch,
    mem: MemPort,
    folder: PathBuf,
}

impl Net {
    fn new() -> Net {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("vswitch-stream-{}-{number}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let switch = Switch::start(&Options { workers: Some(2), ..Options::default() }).unwrap();
        switch.add_bridge(BridgeSpec::new("br0")).unwrap();
        let mem = MemPort::new(Capabilities::default(), 65_535).unwrap();
        let net = Net { switch, mem, folder };
        net.add("mem", PortKind::Mem(net.mem.clone())).unwrap();
        net
    }

    fn add(&self, name: &str, kind: PortKind) -> Result<(), Error> {
        let spec =
            PortSpec { name: name.into(), bridge: "br0".into(), kind, settings: PortSettings::default() };
        self.switch.add_port(spec, Missing::Refuse)
    }

    fn stream(&self, name: &str, role: SocketRole) -> PathBuf {
        let path = self.folder.join(name);
        self.add(name, stream(StreamAddress::Unix(path.clone()), role)).unwrap();
        path
    }

    fn port(&self, name: &str) -> PortStatus {
        self.switch.port(name).unwrap()
    }

    fn drops(&self, name: &str, reason: &str) -> u64 {
        self.port(name).counters.drops.get(reason).copied().unwrap_or(0)
    }

    fn until(&self, what: &str, mut done: impl FnMut(&Net) -> bool) {
        let deadline = Instant::now() + LONG;
        while !done(self) {
            assert!(Instant::now() < deadline, "in time: {what}: {:?}", self.switch.ports());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn until_state(&self, name: &str, state: PortState) {
        self.until(&format!("{name} is {state:?}"), |net| net.port(name).state == state);
    }

    /// A frame each way between the port in memory and a peer of the port.
    fn talk(&self, peer: &mut (impl Read + Write), seed: u8) {
        let (here, there) = (frame(1, seed, 200), frame(seed, 1, 300));
        peer.write_all(&encoded(&there)).unwrap();
        assert_eq!(self.mem.receive(LONG).expect("from the peer").bytes, there);
        self.send(here.clone());
        assert_eq!(next(peer), here);
    }

    fn send(&self, bytes: Vec<u8>) {
        assert!(self.mem.send(MemFrame { bytes, offload: Offload::default() }));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn stream(address: StreamAddress, role: SocketRole) -> PortKind {
    PortKind::Stream(StreamSpec { address, role, mtu: 1500, mode: 0o600 })
}

/// A frame between stations of these numbers, with so much payload.
fn frame(from: u8, to: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x88, 0xb5];
    bytes.extend((0..len).map(|n| n as u8 ^ from));
    bytes
}

fn encoded(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], frame].concat()
}

fn next(peer: &mut impl Read) -> Vec<u8> {
    let mut len = [0; 4];
    peer.read_exact(&mut len).unwrap();
    let mut bytes = vec![0; u32::from_be_bytes(len) as usize];
    peer.read_exact(&mut bytes).unwrap();
    bytes
}

fn connect(path: &Path) -> UnixStream {
    let peer = UnixStream::connect(path).unwrap();
    peer.set_read_timeout(Some(LONG)).unwrap();
    peer.set_write_timeout(Some(LONG)).unwrap();
    peer
}

/// Whether the other side has closed the connection.
fn is_closed(peer: &mut impl Read) -> bool {
    matches!(peer.read(&mut [0; 16]), Ok(0) | Err(_))
}

#[test]
fn peers_come_and_go() {
    let net = Net::new();
    let path = net.stream("s", SocketRole::Server);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!((net.port("s").state, net.port("s").mtu), (PortState::Down, Some(1500)));
    for seed in 2..4 {
        let mut peer = connect(&path);
        net.until_state("s", PortState::Up);
        net.talk(&mut peer, seed);
        let stations = net.switch.fdb(&FdbFilter { port: Some("s".into()), ..FdbFilter::default() }).unwrap();
        assert_eq!(stations.len(), 1);
        drop(peer);
        net.until_state("s", PortState::Down);
        let stations = net.switch.fdb(&FdbFilter { port: Some("s".into()), ..FdbFilter::default() }).unwrap();
        assert_eq!(stations.len(), 0, "nobody is behind it");
    }
    assert_eq!(net.port("s").counters.rx_frames, 2, "it goes on counting");
    assert_eq!(net.port("s").peers.unwrap().connections, 2);
    net.switch.del_port("s").unwrap();
    assert!(!path.exists());
}

#[test]
fn the_switch_connects() {
    let net = Net::new();
    let path = net.stream("c", SocketRole::Client);
    assert_eq!(net.port("c").state, PortState::Down, "nobody listens");
    for seed in 2..4 {
        let listener = UnixListener::bind(&path).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        net.until_state("c", PortState::Up);
        net.talk(&mut peer, seed);
        drop((peer, listener));
        net.until_state("c", PortState::Down);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn by_tcp() {
    let net = Net::new();
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    net.add("server", stream(StreamAddress::Tcp(address), SocketRole::Server)).unwrap();
    let mut peer = TcpStream::connect(address).unwrap();
    peer.set_read_timeout(Some(LONG)).unwrap();
    net.until_state("server", PortState::Up);
    net.talk(&mut peer, 2);
    drop(peer);
    net.until_state("server", PortState::Down);

    let listener = TcpListener::bind("[::1]:0").unwrap();
    net.add("client", stream(StreamAddress::Tcp(listener.local_addr().unwrap()), SocketRole::Client))
        .unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(LONG)).unwrap();
    net.until_state("client", PortState::Up);
    net.talk(&mut peer, 3);
}

#[test]
fn one_peer_at_a_time() {
    let net = Net::new();
    let path = net.stream("s", SocketRole::Server);
    let mut first = connect(&path);
    net.until_state("s", PortState::Up);
    let mut second = connect(&path);
    assert!(is_closed(&mut second));
    net.until("it is counted", |net| net.port("s").peers.unwrap().refused == 1);
    net.talk(&mut first, 2);
    // One that comes in the moment in which the first goes is not refused.
    drop(first);
    let mut third = connect(&path);
    net.until("it is taken", |net| net.port("s").peers.unwrap().connections == 2);
    net.talk(&mut third, 2);
    assert_eq!(net.port("s").peers.unwrap().refused, 1);
}

#[test]
fn a_length_that_no_frame_has_ends_it() {
    let net = Net::new();
    let path = net.stream("s", SocketRole::Server);
    for (number, len) in [0, FRAME_LEN_MAX + 1].into_iter().enumerate() {
        let mut peer = connect(&path);
        net.until_state("s", PortState::Up);
        net.talk(&mut peer, 2);
        peer.write_all(&u32::try_from(len).unwrap().to_be_bytes()).unwrap();
        assert!(is_closed(&mut peer));
        assert_eq!(net.drops("s", "bad_length"), 1 + number as u64);
    }
    let mut peer = connect(&path);
    net.until_state("s", PortState::Up);
    let longest = frame(2, 1, FRAME_LEN_MAX - 14);
    peer.write_all(&encoded(&longest)).unwrap();
    assert!(net.mem.receive(LONG).expect("the longest").bytes == longest);
}

/// One that sends half a frame, and one that never reads, harm nobody but themselves.
#[test]
fn slow_peers() {
    let net = Net::new();
    let (slow, good) = (net.stream("slow", SocketRole::Server), net.stream("good", SocketRole::Server));
    let (mut slow, mut good) = (connect(&slow), connect(&good));
    net.until_state("slow", PortState::Up);
    net.until_state("good", PortState::Up);
    let half = encoded(&frame(7, 1, 1000));
    slow.write_all(&half[..500]).unwrap();
    // It is heard once, so that it is a station to send to.
    net.talk(&mut good, 2);
    slow.write_all(&half[500..]).unwrap();
    assert_eq!(net.mem.receive(LONG).expect("the whole of it").bytes, frame(7, 1, 1000));
    // Flooded frames of the talk above.
    while net.port("slow").counters.tx_frames > 0 && next(&mut slow)[5] != 1 {}

    let (mut sent, mut dropped) = (0u32, 0);
    while dropped == 0 {
        for _ in 0..100 {
            let mut bytes = frame(1, 7, 1400);
            bytes[20..24].copy_from_slice(&sent.to_be_bytes());
            net.send(bytes);
            sent += 1;
        }
        net.talk(&mut good, 2);
        dropped = net.drops("slow", "tx_full");
        assert!(sent < 100_000, "its buffer has no end");
    }
    // Nothing more is sent, and yet the frame of which half has left is finished when there is room. What is read are whole frames.
    let (arrived, sent) = (net.port("slow").counters.tx_frames, u64::from(sent));
    assert!(sent <= arrived + dropped);
    slow.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let (mut numbers, mut len) = (Vec::new(), [0; 4]);
    while slow.read_exact(&mut len).is_ok() {
        let mut bytes = vec![0; u32::from_be_bytes(len) as usize];
        slow.read_exact(&mut bytes).expect("no frame is cut");
        if bytes[5] == 7 {
            assert_eq!(bytes.len(), 1414);
            numbers.push(u32::from_be_bytes(bytes[20..24].try_into().unwrap()));
        }
    }
    assert_eq!(numbers.len() as u64 + dropped, sent, "each was sent or counted");
    assert!(numbers.is_sorted());
    net.talk(&mut good, 2);
}

/// Several workers send to one peer, that reads in fits and starts: each frame is whole, each sender's are in order, all are accounted for.
#[test]
fn many_writers_and_one_slow_reader() {
    const FRAMES: u32 = 20_000;
    let net = Net::new();
    let senders: Vec<UnixStream> =
        (0..4).map(|number| connect(&net.stream(&format!("sender{number}"), SocketRole::Server))).collect();
    let mut reader = connect(&net.stream("reader", SocketRole::Server));
    net.until("all are up", |net| net.switch.ports().iter().all(|port| port.state == PortState::Up));
    // So that it is a station, and the senders flood nobody.
    reader.write_all(&encoded(&frame(9, 1, 50))).unwrap();
    net.until("it is known", |net| !net.switch.fdb(&FdbFilter::default()).unwrap().is_empty());
    std::thread::scope(|scope| {
        for (number, mut peer) in (10..).zip(&senders) {
            scope.spawn(move || {
                for sequence in 0..FRAMES {
                    let mut bytes = frame(number, 9, 4 + (sequence as usize * 7919) % 1486);
                    bytes[14..18].copy_from_slice(&sequence.to_be_bytes());
                    peer.write_all(&encoded(&bytes)).unwrap();
                }
            });
        }
        let mut last = [None; 4];
        let mut arrived = 0;
        let done = |net: &Net, arrived: u64| {
            let counters = net.port("reader").counters;
            let dropped: u64 = counters.drops.values().sum();
            counters.tx_frames == arrived && arrived + dropped == 4 * u64::from(FRAMES)
        };
        reader.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let (mut len, began) = ([0; 4], Instant::now());
        loop {
            if reader.read_exact(&mut len).is_err() {
                if done(&net, arrived) {
                    break;
                }
                assert!(began.elapsed() < 3 * LONG, "some are lost: {:?}", net.switch.ports());
                continue;
            }
            let mut bytes = vec![0; u32::from_be_bytes(len) as usize];
            reader.read_exact(&mut bytes).expect("no frame is cut");
            let sequence = u32::from_be_bytes(bytes[14..18].try_into().unwrap());
            let mut sent = frame(bytes[11], 9, 4 + (sequence as usize * 7919) % 1486);
            sent[14..18].copy_from_slice(&sequence.to_be_bytes());
            assert!(bytes == sent, "changed");
            let last = &mut last[usize::from(bytes[11] - 10)];
            assert!(last.is_none_or(|last| last < sequence), "out of order");
            *last = Some(sequence);
            arrived += 1;
            if arrived % 5000 == 0 {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        assert!(arrived > 5000, "{arrived}");
    });
}

#[test]
fn sockets_are_not_taken_from_others() {
    let net = Net::new();
    let path = net.stream("s", SocketRole::Server);
    let kind = |path: &Path| stream(StreamAddress::Unix(path.to_owned()), SocketRole::Server);
    let refused = |path: &Path| net.add("other", kind(path)).unwrap_err().to_string();
    assert!(refused(&path).contains("port del s"));

    let theirs = net.folder.join("theirs");
    let listener = UnixListener::bind(&theirs).unwrap();
    assert!(refused(&theirs).contains("another program has the socket"));
    drop(listener);
    // A file that its program left behind.
    net.add("stale", kind(&theirs)).unwrap();
    net.switch.del_port("stale").unwrap();
    std::fs::write(&theirs, "text").unwrap();
    assert!(refused(&theirs).contains("is not a socket"));
    assert!(refused(&net.folder.join("x".repeat(108))).contains("longer than 107 bytes"));
    assert!(matches!(net.add("other", kind(&net.folder.join("no/where"))), Err(Error::NotFound(_))));

    // One that may wait comes when its folder does.
    let late = net.folder.join("late/s");
    let spec = PortSpec {
        name: "late".into(),
        bridge: "br0".into(),
        kind: kind(&late),
        settings: PortSettings::default(),
    };
    net.switch.add_port(spec, Missing::Wait).unwrap();
    assert_eq!(net.port("late").state, PortState::Gone);
    std::fs::create_dir(net.folder.join("late")).unwrap();
    net.until_state("late", PortState::Down);
    let mut peer = connect(&late);
    net.until_state("late", PortState::Up);
    net.talk(&mut peer, 2);
}

/// Peers that come and go without a pause keep the switch from nothing.
#[test]
fn restless_peers() {
    let net = Net::new();
    let (restless, good) =
        (net.stream("restless", SocketRole::Server), net.stream("good", SocketRole::Server));
    let mut good = connect(&good);
    net.until_state("good", PortState::Up);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        drop(UnixStream::connect(&restless));
        net.talk(&mut good, 2);
    }
    assert!(net.port("restless").peers.unwrap().connections < 10);
    net.until("one waits for the next turn", |net| {
        drop(UnixStream::connect(&restless));
        net.port("restless").peers.is_some_and(|peers| peers.waits && peers.hold_off.is_some())
    });
}

#[test]
fn datagrams() {
    let net = Net::new();
    let (ours, theirs) = (net.folder.join("ours"), net.folder.join("theirs"));
    let spec = DgramSpec { path: ours.clone(), peer: Some(theirs.clone()), mtu: 1500, mode: 0o660 };
    net.add("d", PortKind::Dgram(spec)).unwrap();
    assert_eq!(net.port("d").state, PortState::Down);
    for gone in 1..4 {
        let peer = UnixDatagram::bind(&theirs).unwrap();
        peer.set_read_timeout(Some(LONG)).unwrap();
        peer.send_to(&frame(2, 1, 1486), &ours).unwrap();
        assert_eq!(net.mem.receive(LONG).expect("from the peer").bytes, frame(2, 1, 1486));
        net.send(frame(1, 2, 1504));
        let mut buffer = [0; 2000];
        let len = peer.recv(&mut buffer).unwrap();
        assert!(buffer[..len] == frame(1, 2, 1504));
        drop(peer);
        net.send(frame(1, 2, 100));
        net.until_state("d", PortState::Down);
        assert!(net.drops("d", "port_down") <= gone);
        // A file that is left behind is nobody.
        if gone != 2 {
            std::fs::remove_file(&theirs).unwrap();
        } else {
            std::thread::sleep(Duration::from_millis(600));
            assert_eq!(net.port("d").state, PortState::Down);
            std::fs::remove_file(&theirs).unwrap();
        }
    }
    assert_eq!(net.port("d").peers.unwrap().connections, 3);
    let peer = UnixDatagram::bind(&theirs).unwrap();
    net.until_state("d", PortState::Up);
    // Nobody else may send, and a peer that is replaced is found, though nothing is sent to it.
    let other = UnixDatagram::unbound().unwrap();
    assert_eq!(
        other.send_to(&frame(2, 1, 100), &ours).unwrap_err().kind(),
        std::io::ErrorKind::PermissionDenied
    );
    std::fs::remove_file(&theirs).unwrap();
    let next = UnixDatagram::bind(&theirs).unwrap();
    net.until("the next may send", |_| next.send_to(&frame(2, 1, 100), &ours).is_ok());
    net.until_state("d", PortState::Up);
    drop(peer);
    let peer = next;
    let _ = peer.send_to(&vec![0; 70_000], &ours);
    peer.send_to(&[], &ours).unwrap();
    net.until("both are counted", |net| net.drops("d", "rx_truncated") == 1 && net.drops("d", "runt") == 1);
    net.switch.del_port("d").unwrap();
    assert!(!ours.exists());
}

/// The first who sends and can be answered is the peer until he goes.
#[test]
fn datagrams_from_whoever_is_first() {
    let net = Net::new();
    let ours = net.folder.join("ours");
    let spec = DgramSpec { path: ours.clone(), peer: None, mtu: 1500, mode: 0o660 };
    net.add("d", PortKind::Dgram(spec)).unwrap();
    let nameless = UnixDatagram::unbound().unwrap();
    nameless.send_to(&frame(9, 1, 100), &ours).unwrap();
    net.until("it is refused", |net| net.port("d").peers.unwrap().refused == 1);
    assert_eq!(net.port("d").state, PortState::Down);
    for name in ["a", "b", "a"] {
        let path = net.folder.join(name);
        let peer = UnixDatagram::bind(&path).unwrap();
        peer.set_read_timeout(Some(LONG)).unwrap();
        peer.send_to(&frame(2, 1, 500), &ours).unwrap();
        assert_eq!(net.mem.receive(LONG).expect("the first is not lost").bytes, frame(2, 1, 500));
        net.send(frame(1, 2, 600));
        let mut buffer = [0; 2000];
        let len = peer.recv(&mut buffer).unwrap();
        assert!(buffer[..len] == frame(1, 2, 600));
        let other = UnixDatagram::bind(net.folder.join("other")).unwrap();
        assert!(other.send_to(&frame(9, 1, 100), &ours).is_err());
        std::fs::remove_file(net.folder.join("other")).unwrap();
        drop(peer);
        std::fs::remove_file(&path).unwrap();
        net.until_state("d", PortState::Down);
    }
    // A name without a file is nobody's own, and a socket of another user's is not the sender's.
    use std::os::linux::net::SocketAddrExt;
    let name = format!("vswitch-test-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
    let before = net.port("d").peers.unwrap().refused;
    UnixDatagram::bind_addr(&address).unwrap().send_to(&frame(3, 1, 500), &ours).unwrap();
    net.until("it is refused", |net| net.port("d").peers.unwrap().refused == before + 1);
    let path = net.folder.join("another's");
    let peer = UnixDatagram::bind(&path).unwrap();
    if std::os::unix::fs::chown(&path, Some(4711), None).is_ok() {
        peer.send_to(&frame(3, 1, 500), &ours).unwrap();
        net.until("it is refused", |net| net.port("d").peers.unwrap().refused == before + 2);
    }
    // One whose folder is a link may lead us anywhere.
    std::fs::create_dir(net.folder.join("real")).unwrap();
    std::os::unix::fs::symlink(net.folder.join("real"), net.folder.join("link")).unwrap();
    let sly = UnixDatagram::bind(net.folder.join("link").join("s")).unwrap();
    let before = net.port("d").peers.unwrap().refused;
    sly.send_to(&frame(2, 1, 100), &ours).unwrap();
    net.until("it is refused", |net| net.port("d").peers.unwrap().refused == before + 1);
}
