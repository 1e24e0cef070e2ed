//! A front end of another make, that does as it should and then everything else.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::{Inbound, OpenPort};
use crate::batch::Batch;
use crate::frame::Outgoing;
use crate::offload::{Capabilities, VNET_HDR_LEN};
use crate::spec::{SocketRole, VhostUserSpec};
use crate::stats::{Counters, DropReason};
use crate::topology::PortShared;
use crate::virtio::GuestMemory;
use crate::virtio::driver::{Driver, NEXT, USER, WRITE, file, read, region, write};
use crate::virtio::feature::*;
use crate::virtio::net::HEADER_LEN;
use crate::virtio::room::Pool;

const LEN: u64 = 1 << 20;
/// The library's front end takes them for virtqueues, and refuses later ones: two pairs can be used.
const PAIRS: u16 = 4;
const SIZE: u16 = 64;
const TRANSMITQ: u64 = 64 << 10;
/// Every other buffer goes over the end of a page.
const BUFFERS: u64 = 125 << 10;
const TO_SEND: u64 = 768 << 10;
const OFFLOADS: u64 = NET_GUEST_CSUM | NET_GUEST_TSO4 | NET_GUEST_TSO6 | NET_GUEST_ECN;
const FEATURES: u64 =
    VERSION_1 | NET_MRG_RXBUF | RING_EVENT_IDX | RING_INDIRECT_DESC | PROTOCOL_FEATURES | OFFLOADS;

mod hostile;
mod huge;
mod lending;
mod load;
mod migration;
mod own;
mod pairs;

/// A folder of its own, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT_ONE: AtomicU32 = AtomicU32::new(0);
        let number = NEXT_ONE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vswitch-vhost-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).expect("a folder");
        Folder(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("guest.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A port that is open, and its counters.
struct Port {
    open: OpenPort,
    shared: Arc<PortShared>,
}

impl Port {
    fn new(folder: &Folder, role: SocketRole, workers: usize) -> Port {
        let spec = VhostUserSpec { queues: Some(PAIRS), ..VhostUserSpec::new(folder.socket(), role) };
        let mut open = super::open(&spec, workers).expect("a port");
        let shared = Arc::new(PortShared::new(workers, 1500, false));
        open.link
            .as_mut()
            .expect("a link")
            .start(Arc::clone(&shared), Arc::new(Pool::new(None)))
            .expect("a thread");
        Port { open, shared }
    }

    fn is_up(&self) -> bool {
        self.open.link.as_ref().expect("a link").is_up()
    }

    fn counters(&self) -> &Counters {
        &self.shared.counters[0]
    }

    /// Frames that wait at a worker.
    fn receive(&mut self, worker: usize) -> Vec<Vec<u8>> {
        let mut batch = Batch::default();
        let inbound = Inbound { counters: &self.shared.counters[0], demux: None, worker };
        self.open.queues[worker].receive(&mut batch, &inbound);
        batch.fetch();
        self.open.queues[worker].take_back();
        batch.frames.iter().map(|frame| batch.bytes(frame).to_vec()).collect()
    }

    fn receive_any(&mut self) -> Vec<Vec<u8>> {
        (0..self.open.queues.len()).flat_map(|worker| self.receive(worker)).collect()
    }

    fn send(&mut self, worker: usize, frame: &[u8]) {
        let bytes = [&[0; VNET_HDR_LEN], frame].concat();
        let whole = Outgoing::Whole { bytes: &bytes, segments: 1 };
        self.open.queues[worker].transmit(&[whole], &self.shared.counters[0]);
    }
}

/// A guest and its front end.
struct Guest {
    front_end: Frontend,
    memory: Arc<GuestMemory>,
    file: File,
    receive: Driver,
    transmit: Driver,
    kick: EventFd,
    call: EventFd,
}

impl Guest {
    fn meet(stream: UnixStream) -> Guest {
        Guest::meet_in(stream, file(LEN))
    }

    /// Connects, and agrees on features; its memory is in this file.
    fn meet_in(stream: UnixStream, file: File) -> Guest {
        let mut front_end = Frontend::from_stream(stream, 4);
        front_end.set_owner().expect("taken");
        let offered = front_end.get_features().expect("answered");
        assert_eq!(offered & FEATURES, FEATURES);
        front_end.set_features(FEATURES).expect("taken");
        let protocol = front_end.get_protocol_features().expect("answered");
        let wanted = Protocol::MQ
            | Protocol::REPLY_ACK
            | Protocol::CONFIGURE_MEM_SLOTS
            | Protocol::LOG_SHMFD
            | Protocol::INFLIGHT_SHMFD
            | Protocol::RARP;
        assert_eq!(protocol, wanted, "and none of those that the library cannot");
        front_end.set_protocol_features(wanted).expect("taken");
        front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(front_end.get_queue_num().expect("answered"), u64::from(PAIRS));
        let shared = file.try_clone().expect("another handle");
        let memory = Arc::new(GuestMemory::default().with(region(0, LEN), shared).expect("a region"));
        let (receive, transmit) =
            (Driver::new(&memory, 0, SIZE, 0), Driver::new(&memory, TRANSMITQ, SIZE, 0));
        let eventfd = || EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        Guest { front_end, memory, file, receive, transmit, kick: eventfd(), call: eventfd() }
    }

    fn boot(stream: UnixStream) -> Guest {
        Guest::boot_in(stream, file(LEN))
    }

    fn boot_in(stream: UnixStream, file: File) -> Guest {
        let mut guest = Guest::meet_in(stream, file);
        guest.share(&guest.file).expect("taken");
        guest.start();
        guest
    }

    fn region(file: &File) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: LEN,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        }
    }

    fn share(&self, file: &File) -> vhost::Result<()> {
        self.front_end.set_mem_table(&[Guest::region(file)]).map(|_| ())
    }

    /// Hands over both rings, with buffers in the receive queue.
    fn start(&mut self) {
        self.start_pair(0);
    }

    fn start_pair(&mut self, pair: usize) {
        for n in 0..SIZE {
            self.receive.descriptor(n, BUFFERS + u64::from(n) * 2048, 2048, WRITE, 0);
            self.receive.offer(n);
        }
        for index in 2 * pair..2 * pair + 2 {
            self.set_up(index, 0);
        }
    }

    fn set_up(&mut self, index: usize, base: u16) {
        let setup = [&self.receive, &self.transmit][index % 2].setup(base, true);
        let front_end = &mut self.front_end;
        front_end.set_vring_num(index, SIZE).expect("taken");
        front_end.set_vring_addr(index, &addresses(&setup)).expect("taken");
        front_end.set_vring_base(index, base).expect("taken");
        front_end.set_vring_call(index, &self.call).expect("taken");
        front_end.set_vring_kick(index, &self.kick).expect("taken");
        front_end.set_vring_enable(index, true).expect("taken");
    }

    /// Makes a frame available in the transmit queue.
    fn offer(&mut self, frame: &[u8]) {
        write(&self.memory, TO_SEND, &[0; HEADER_LEN]);
        write(&self.memory, TO_SEND + 64, frame);
        self.transmit.descriptor(0, TO_SEND, HEADER_LEN, NEXT, 1);
        self.transmit.descriptor(1, TO_SEND + 64, frame.len(), 0, 0);
        self.transmit.offer(0);
    }

    fn take(&mut self) -> Vec<Vec<u8>> {
        self.receive.take_used().into_iter().map(|used| self.received(used)).collect()
    }

    /// The frame in a buffer.
    fn received(&self, (head, written): (u32, u32)) -> Vec<u8> {
        read(&self.memory, BUFFERS + u64::from(head) * 2048, written as usize)[HEADER_LEN..].to_vec()
    }
}

fn addresses(setup: &crate::virtio::ring::Setup) -> VringConfigData {
    VringConfigData {
        queue_max_size: SIZE,
        queue_size: SIZE,
        flags: 0,
        desc_table_addr: setup.descriptors,
        used_ring_addr: setup.used,
        avail_ring_addr: setup.available,
        log_addr: None,
    }
}

fn connect(folder: &Folder) -> UnixStream {
    UnixStream::connect(folder.socket()).expect("the switch listens")
}

/// A frame each way.
fn talk(port: &mut Port, guest: &mut Guest, text: u8) {
    let frame = vec![text; 100];
    guest.offer(&frame);
    let mut received = Vec::new();
    eventually("a frame from the guest", || {
        received = port.receive_any();
        !received.is_empty()
    });
    assert_eq!(received, [&frame[..]]);
    assert_eq!(guest.transmit.take_used(), [(0, 0)]);
    port.send(0, &frame);
    assert_eq!(guest.take(), [frame]);
}

/// The same, with buffers at this place of a guest's memory that has grown.
fn talk_from(place: u64, grown: GuestMemory, port: &mut Port, guest: &mut Guest) {
    let frame = [0x5a; 1500];
    write(&grown, place, &[&[0; HEADER_LEN], &frame[..]].concat());
    guest.transmit.descriptor(0, place, HEADER_LEN + frame.len(), 0, 0);
    guest.transmit.offer(0);
    assert_eq!(port.receive_any(), [frame]);
    assert_eq!(guest.transmit.take_used(), [(0, 0)]);
    let next = guest.receive.used_index() % SIZE;
    guest.receive.descriptor(next, place + 2048, 2048, WRITE, 0);
    port.send(0, &frame);
    let written = HEADER_LEN + frame.len();
    assert_eq!(guest.receive.take_used(), [(next.into(), u32::try_from(written).expect("small"))]);
    assert_eq!(read(&grown, place + 2048, written)[HEADER_LEN..], frame);
}

#[test]
fn a_guest_comes_talks_and_goes() {
    for workers in [1, 3] {
        let folder = Folder::new();
        let mut port = Port::new(&folder, SocketRole::Server, workers);
        assert!(!port.is_up());
        port.send(0, &[7; 60]);
        assert_eq!(port.counters().drops(DropReason::PortDown), 1);
        let mut guest = Guest::boot(connect(&folder));
        assert!(port.is_up());
        talk(&mut port, &mut guest, 1);
        drop(guest);
        eventually("down", || !port.is_up());
        // Another, on the same socket.
        let mut guest = Guest::boot(connect(&folder));
        talk(&mut port, &mut guest, 2);
        drop(port);
        assert!(!folder.socket().exists(), "the switch takes its socket along");
    }
}

#[test]
fn a_client_finds_its_front_end_again() {
    let folder = Folder::new();
    let mut port = Port::new(&folder, SocketRole::Client, 1);
    let listener = UnixListener::bind(folder.socket()).expect("a socket");
    for text in 0..2 {
        let mut guest = Guest::boot(listener.accept().expect("the switch connects").0);
        talk(&mut port, &mut guest, text);
    }
    drop(port);
    assert!(folder.socket().exists(), "which is not the switch's");
}

#[test]
fn a_client_does_not_hurry_to_who_goes_at_once() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.socket()).expect("a socket");
    listener.set_nonblocking(true).expect("non-blocking");
    let port = Port::new(&folder, SocketRole::Client, 1);
    let (began, mut accepted) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(1) {
        match listener.accept() {
            Ok(_) => accepted += 1,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    // At once, and after 100, 200 and 400 ms more.
    assert!((2..=4).contains(&accepted), "{accepted}");
    drop(port);
}

#[test]
fn a_socket_where_nobody_accepts_holds_up_nothing() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.socket()).expect("a socket");
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).expect("a backlog"))
        .expect("listens");
    let ports = [(); 4].map(|()| Port::new(&folder, SocketRole::Client, 1));
    std::thread::sleep(Duration::from_millis(50));
    drop(ports);
    let spec = VhostUserSpec::new(folder.socket(), SocketRole::Server);
    assert!(super::open(&spec, 1).expect_err("somebody listens").is_exists());
}

#[test]
fn rings_stop_and_go_on_where_they_were() {
    let folder = Folder::new();
    let mut port = Port::new(&folder, SocketRole::Server, 1);
    let mut guest = Guest::boot(connect(&folder));
    (0..5).for_each(|text| talk(&mut port, &mut guest, text));
    assert_eq!(guest.front_end.get_vring_base(1).expect("answered"), 5);
    assert!(!port.is_up());
    guest.offer(&[9; 60]);
    assert!(port.receive_any().is_empty());
    guest.set_up(1, 5);
    assert_eq!(port.receive_any(), [vec![9; 60]]);
    guest.transmit.take_used();
    // Memory that is replaced, or grows, under rings that run.
    guest.share(&guest.file.try_clone().expect("another handle")).expect("taken");
    talk(&mut port, &mut guest, 10);
    let more = file(LEN);
    let slot = VhostUserMemoryRegionInfo {
        guest_phys_addr: LEN,
        userspace_addr: USER + LEN,
        ..Guest::region(&more)
    };
    assert!(guest.front_end.get_max_mem_slots().expect("answered") > 8);
    // Twice each, as QEMU does.
    for _ in 0..2 {
        guest.front_end.add_mem_region(&slot).expect("taken");
    }
    talk(&mut port, &mut guest, 11);
    talk_from(LEN + 4096, guest.memory.with(region(LEN, LEN), more).expect("more"), &mut port, &mut guest);
    for _ in 0..2 {
        guest.front_end.remove_mem_region(&slot).expect("taken");
    }
    talk(&mut port, &mut guest, 12);
    // And a queue that is disabled.
    guest.front_end.set_vring_enable(0, false).expect("taken");
    port.send(0, &[1; 60]);
    assert_eq!(port.counters().drops(DropReason::PortDown), 1);
    guest.front_end.set_vring_enable(0, true).expect("taken");
    talk(&mut port, &mut guest, 13);
    assert_eq!(port.counters().drops(DropReason::BadRing), 0);
}

#[test]
fn a_ring_that_lends_is_waited_for() {
    let folder = Folder::new();
    let mut port = Port::new(&folder, SocketRole::Server, 1);
    let mut guest = Guest::boot(connect(&folder));
    eventually("up", || port.is_up());
    guest.offer(&[7; 1500]);
    let mut batch = Batch::default();
    let inbound = Inbound { counters: &port.shared.counters[0], demux: None, worker: 0 };
    eventually("a frame from the guest", || {
        port.open.queues[0].receive(&mut batch, &inbound);
        batch.is_lent()
    });
    // Whom it rings does not depend on what it lent.
    guest.front_end.set_vring_call(1, &guest.call).expect("taken");
    let stopped = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let stop = || {
            let base = guest.front_end.get_vring_base(1).expect("answered");
            stopped.store(1, Ordering::SeqCst);
            base
        };
        let base = scope.spawn(stop);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(stopped.load(Ordering::SeqCst), 0, "its memory is in use");
        batch.fetch();
        assert_eq!(batch.bytes(&batch.frames[0]), [7; 1500]);
        port.open.queues[0].take_back();
        assert_eq!(base.join().expect("no panic"), 1);
    });
    assert_eq!(guest.transmit.take_used(), [(0, 0)]);
}

#[test]
fn kicks_wake_and_are_switched_off_while_nobody_waits() {
    let folder = Folder::new();
    let mut port = Port::new(&folder, SocketRole::Server, 1);
    let mut guest = Guest::boot(connect(&folder));
    let readable = |port: &Port| {
        let fd = port.open.queues[0].fd().expect("one that rings");
        let mut fds = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).expect("polled") == 1
    };
    assert!(readable(&port), "a ring is new");
    port.receive(0);
    assert!(!readable(&port));
    guest.kick.write(1).expect("rung");
    assert!(readable(&port));
    talk(&mut port, &mut guest, 1);
    assert!(!readable(&port));
    assert_eq!(guest.transmit.kick_after(), 1);
    port.open.queues[0].listen(false);
    talk(&mut port, &mut guest, 2);
    assert_eq!(guest.transmit.kick_after(), 1, "stays behind");
    port.open.queues[0].listen(true);
    assert_eq!(guest.transmit.kick_after(), 2);
    assert!(!readable(&port));
    port.open.queues[0].listen(false);
    guest.offer(&[3; 60]);
    port.open.queues[0].listen(true);
    assert!(readable(&port), "it came while nobody listened");
    assert_eq!(port.receive(0).len(), 1);
    // The guest is rung when it asks.
    guest.transmit.set_used_event(3);
    guest.call.read().ok();
    talk_quietly(&mut port, &mut guest);
    assert!(guest.call.read().is_ok());
}

fn talk_quietly(port: &mut Port, guest: &mut Guest) {
    guest.offer(&[4; 60]);
    assert_eq!(port.receive(0).len(), 1);
}

/// Does this on a thread that has no asynchronous I/O.
fn hindered(mut port: Port, what: impl FnOnce(&mut Port) + Send) -> Port {
    std::thread::scope(|scope| {
        let without = || {
            crate::sys::caller::forbid();
            what(&mut port);
        };
        scope.spawn(without).join().expect("no panic");
    });
    port
}

#[test]
fn it_is_said_where_a_front_end_could_hold_up_a_worker() {
    let folder = Folder::new();
    let hint = |port: &Port| port.open.link.as_ref().expect("a link").hint();
    let mut port = Port::new(&folder, SocketRole::Server, 2);
    port.open.queues[0].prepare();
    let mut guest = Guest::boot(connect(&folder));
    talk(&mut port, &mut guest, 1);
    assert_eq!(hint(&port), None);
    // One worker cannot be prepared, which is seen before it rings.
    let mut port = hindered(port, |port| port.open.queues[1].prepare());
    assert!(hint(&port).expect("a hint").contains("fs.aio-max-nr"));
    drop((guest, port));
    // It rings all the same.
    port = Port::new(&folder, SocketRole::Server, 1);
    guest = Guest::boot(connect(&folder));
    guest.call.read().ok();
    assert_eq!(hint(&port), None);
    guest.transmit.set_used_event(guest.transmit.index());
    guest.offer(&[4; 60]);
    port = hindered(port, |port| {
        port.open.queues[0].prepare();
        assert_eq!(port.receive(0).len(), 1);
    });
    assert!(guest.call.read().is_ok());
    assert!(hint(&port).is_some());
}

#[test]
fn capabilities_follow_what_the_guest_agreed_to() {
    let folder = Folder::new();
    let port = Port::new(&folder, SocketRole::Server, 1);
    let takes = || port.shared.taken();
    assert_eq!(takes(), Capabilities::default());
    let guest = Guest::boot(connect(&folder));
    assert_eq!(takes(), Capabilities { csum: true, tso4: true, tso6: true, uso: false });
    guest.front_end.set_features(FEATURES & !OFFLOADS).expect("taken");
    assert_eq!(takes(), Capabilities::default());
    drop(guest);
    eventually("down", || !port.is_up());
    assert_eq!(takes(), Capabilities::default());
}

#[test]
fn a_front_end_may_say_anything() {
    let folder = Folder::new();
    let mut port = Port::new(&folder, SocketRole::Server, 1);
    let refused = |what: &str, ask: &dyn Fn(&mut Guest) -> bool| {
        let mut guest = Guest::boot(connect(&folder));
        assert!(!ask(&mut guest), "{what}");
    };
    refused("features", &|guest| guest.front_end.set_features(1 << 40).is_ok());
    refused("a queue", &|guest| guest.front_end.set_vring_base(4, 0).is_ok());
    refused("a size", &|guest| guest.front_end.set_vring_num(0, 33).is_ok());
    refused("no size", &|guest| guest.front_end.set_vring_num(0, 0).is_ok());
    refused("short memory", &|guest| guest.share(&file(LEN / 2)).is_ok());
    refused("no memory file", &|guest| guest.share(&File::open("/dev/null").expect("there")).is_ok());
    refused("memory without the rings", &|guest| {
        let small = VhostUserMemoryRegionInfo { memory_size: 4096, ..Guest::region(&guest.file) };
        guest.front_end.set_mem_table(&[small]).is_ok()
    });
    refused("overlapping memory", &|guest| {
        let one = Guest::region(&guest.file);
        let two = VhostUserMemoryRegionInfo { guest_phys_addr: LEN - 4096, ..one };
        guest.front_end.set_mem_table(&[one, two]).is_ok()
    });
    refused("a ring elsewhere", &|guest| {
        let setup = crate::virtio::ring::Setup { used: USER + LEN, ..guest.receive.setup(0, true) };
        guest.front_end.set_vring_addr(0, &addresses(&setup)).is_ok()
    });
    refused("a region instead of another", &|guest| {
        let other = file(LEN);
        guest.front_end.add_mem_region(&Guest::region(&other)).is_ok()
    });
    // Bytes that are no message, messages that are cut, a second front end beside the first.
    for bytes in [&[0xff; 64][..], &[18, 0, 0, 0, 1, 0, 0, 0, 200, 0, 0, 0], &[5, 0], &[]] {
        let mut stream = connect(&folder);
        stream.write_all(bytes).expect("written");
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let mut guest = Guest::boot(connect(&folder));
    let mut second = connect(&folder);
    eventually("turned away", || second.write_all(&[0; 12]).is_err());
    talk(&mut port, &mut guest, 1);
    assert_eq!(port.counters().drops(DropReason::BadRing), 0);
    // One that stops in the middle of a message does not hold up the port's end.
    drop(guest);
    let mut stream = connect(&folder);
    stream.write_all(&[1, 0, 0, 0, 1]).expect("written");
    std::thread::sleep(Duration::from_millis(20));
    drop(port);
}

#[test]
fn a_guest_that_breaks_its_rings_is_alone_with_it() {
    let folder = Folder::new();
    let mut port = Port::new(&folder, SocketRole::Server, 1);
    let mut guest = Guest::boot(connect(&folder));
    talk(&mut port, &mut guest, 1);
    guest.transmit.set_index(9999);
    assert!(port.receive_any().is_empty());
    assert_eq!(port.counters().drops(DropReason::BadRing), 1);
    assert!(!port.is_up());
    assert!(port.receive_any().is_empty());
    assert_eq!(port.counters().drops(DropReason::BadRing), 1, "counted once");
    // Until it is set up anew.
    guest.front_end.get_vring_base(1).expect("answered");
    guest.transmit = Driver::new(&guest.memory, TRANSMITQ, SIZE, 0);
    guest.set_up(1, 0);
    talk(&mut port, &mut guest, 2);
    // Memory that goes.
    guest.file.set_len(0).expect("shorter");
    port.send(0, &[3; 60]);
    port.receive_any();
    assert!(!port.is_up());
    drop(guest);
    let mut guest = Guest::boot(connect(&folder));
    talk(&mut port, &mut guest, 3);
}

#[test]
fn sockets_are_not_taken_from_others() {
    let folder = Folder::new();
    let spec = VhostUserSpec::new(folder.socket(), SocketRole::Server);
    let first = super::open(&spec, 1).expect("a port");
    let error = super::open(&spec, 1).expect_err("somebody listens");
    assert!(error.is_exists() && error.to_string().contains("choose another --path"), "{error}");
    drop(first);
    // What a switch left that was killed.
    drop(UnixListener::bind(folder.socket()).expect("a socket"));
    assert!(folder.socket().exists());
    drop(super::open(&spec, 1).expect("a port"));
    File::create(folder.socket()).expect("a file");
    assert!(super::open(&spec, 1).is_err());
    assert!(folder.socket().exists(), "no socket of ours");
    let nowhere = VhostUserSpec { path: "/nowhere/at/all.sock".into(), ..spec.clone() };
    assert!(super::open(&nowhere, 1).expect_err("no folder").to_string().contains("make it first"));
    assert!(super::open(&VhostUserSpec { queues: Some(65), ..spec }, 1).is_err());
}

/// A guest that polls, whose frames are taken by a worker that looks all the time.
fn polling(folder: &Folder) -> (Port, Guest) {
    let port = Port::new(folder, SocketRole::Server, 1);
    let mut guest = Guest::meet(connect(folder));
    guest.front_end.set_features(FEATURES & !RING_EVENT_IDX).expect("taken");
    guest.share(&guest.file).expect("taken");
    guest.transmit.set_no_interrupt(true);
    guest.start();
    (port, guest)
}

/// Frames of which the guest has not been shown all, when they have been taken.
fn some_late(port: &mut Port, guest: &mut Guest) {
    port.open.queues[0].listen(false);
    for _ in 0..5 {
        guest.offer(&[5; 60]);
        assert_eq!(port.receive(0), [[5; 60]]);
    }
    assert!(guest.transmit.used_index() < guest.transmit.index(), "some are late");
}

#[test]
fn what_is_late_is_not_lost_when_a_ring_is_made_anew() {
    let folder = Folder::new();
    let (mut port, mut guest) = polling(&folder);
    some_late(&mut port, &mut guest);
    guest.share(&guest.file).expect("taken");
    assert_eq!(guest.transmit.used_index(), 5, "a ring that is made anew starts from nothing");
    port.receive(0);
    some_late(&mut port, &mut guest);
    assert_eq!(guest.front_end.get_vring_base(1).expect("answered"), 10);
    assert_eq!(guest.transmit.used_index(), 10);
    assert_eq!(guest.transmit.take_used(), [(0, 0); 10]);
}

#[test]
fn what_is_late_is_shown_while_there_is_a_front_end() {
    // The port goes: its worker gives it up first.
    let folder = Folder::new();
    let (mut port, mut guest) = polling(&folder);
    some_late(&mut port, &mut guest);
    port.open.queues.clear();
    assert_eq!(guest.transmit.used_index(), 5);
    assert!(port.is_up(), "the front end sees it before it is hung up");
    // The guest goes, and with it whatever it was not shown: its front end may have read how far that was.
    let folder = Folder::new();
    let (mut port, mut guest) = polling(&folder);
    some_late(&mut port, &mut guest);
    let shown = guest.transmit.used_index();
    let Guest { front_end, transmit, .. } = guest;
    drop(front_end);
    eventually("down", || !port.is_up());
    assert_eq!(transmit.used_index(), shown);
}
