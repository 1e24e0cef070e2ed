//! A front end that means harm, beside others under the same worker.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo};

use super::load::{frame, guest_at, switch, switch_with};
use super::{Folder, Guest, connect};
use crate::offload::Capabilities;
use crate::port::mem::{MemFrame, MemPort};
use crate::spec::{PortKind, PortSettings, PortSpec, SocketRole, VhostUserSpec};
use crate::switch::{Missing, Options, PollMode};
use crate::sys::caller::make_blocking;
use crate::virtio::driver::{USER, file};

const LONG: Duration = Duration::from_secs(10);

#[test]
fn who_cannot_be_rung_holds_up_nobody() {
    let folder = Folder::new();
    let (switch, memory) = switch(&folder, 1, PollMode::default());
    let mut guest = Guest::boot(connect(&folder));
    // Behind the back of whoever looked at it, and by the file that both have.
    let _ = guest.call.read();
    make_blocking(&guest.call);
    guest.call.write(u64::MAX - 1).expect("full");
    for n in 0..3 {
        // It wants to be told of each frame, in both directions.
        guest.transmit.set_used_event(guest.transmit.index());
        guest.receive.set_used_event(guest.receive.used_index());
        guest.send([frame(2, 1, n)]);
        let received = memory.receive(LONG);
        if received.is_none() {
            // Or the switch would never end.
            guest.call.read().expect("full");
        }
        assert!(received.is_some(), "the worker goes on");
        assert!(memory.send(MemFrame { bytes: frame(1, 2, n), ..MemFrame::default() }));
    }
    super::eventually("frames to the guest", || guest.receive.used_index() == 3);
    assert_eq!(guest.call.read().expect("full"), u64::MAX, "it was rung all the same");
    drop(switch);
}

#[test]
fn a_port_can_be_deleted_whatever_its_front_end_sent() {
    use std::io::{IoSlice, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    let folder = Folder::new();
    let (switch, _memory) = switch(&folder, 1, PollMode::default());
    // A connection that nobody reads: whoever closes it last waits until it is empty.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut slow = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
    let unread = listener.accept().expect("a peer").0;
    socket2::SockRef::from(&slow).set_linger(Some(Duration::from_secs(30))).expect("it lingers");
    slow.set_nonblocking(true).expect("non-blocking");
    while slow.write(&[0; 65_536]).is_ok() {}
    slow.set_nonblocking(false).expect("blocking");
    // SET_VRING_CALL of the first queue.
    let front_end = connect(&folder);
    let message = [13u32, 1, 8, 0, 0].map(u32::to_ne_bytes).concat();
    let fds = [slow.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(front_end.as_raw_fd(), &[IoSlice::new(&message)], &rights, MsgFlags::empty(), None)
        .expect("sent");
    drop(slow);
    std::thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    switch.del_port("guest").expect("deleted");
    assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
    assert!(!folder.socket().exists());
    drop(unread);
}

#[test]
fn the_pairs_of_a_guest_have_one_budget() {
    use std::sync::Arc;

    use super::super::{Kind, Queue, QueueIndex, Rings};
    use crate::batch::Batch;
    use crate::port::{Inbound, PortQueue, Received};
    use crate::stats::{Counters, DropReason};
    use crate::virtio::tests::hostile::{PIECES, REGIONS, scattered, scattered_memory};

    let rings = Arc::new(Rings::new(16, 1, 0).expect("rings"));
    let memory = scattered_memory();
    for pair in 0..16 {
        rings.put(QueueIndex { pair, kind: Kind::Transmit }, scattered(&memory, pair as u64, 0).1);
    }
    let mut queue = Queue::new(rings, 0, 1);
    let (mut batch, counters) = (Batch::default(), Counters::default());
    let inbound = Inbound { counters: &counters, demux: None, worker: 0 };
    assert!(matches!(queue.receive(&mut batch, &inbound), Received::More));
    let looked = counters.drops(DropReason::RxError);
    assert!(looked * REGIONS <= PIECES, "{looked} chains in one turn");
}

/// A sparse memory file of this many bytes, and its region behind all that a guest has.
fn sparse(len: u64, number: u64) -> (File, VhostUserMemoryRegionInfo) {
    let file = file(0);
    file.set_len(len).expect("sparse");
    let place = (1 << 46) + number * len;
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: place,
        memory_size: len,
        userspace_addr: USER + place,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    };
    (file, region)
}

/// Adds regions until one is refused; returns how many were not.
fn add_regions(guest: &mut Guest, len: u64) -> Option<u64> {
    (0..100).find(|&number| {
        let (_file, region) = sparse(len, number);
        guest.front_end.add_mem_region(&region).is_err()
    })
}

#[test]
fn memory_without_end_is_refused() {
    let folder = Folder::new();
    let (switch, memory) = switch(&folder, 1, PollMode::default());
    let mut guest = Guest::boot(connect(&folder));
    assert_eq!(
        add_regions(&mut guest, 1 << 40),
        Some(0),
        "1 TiB is more than twice of what this machine has"
    );
    let hint = || switch.port("guest").expect("there").hint;
    assert!(
        hint().is_some_and(|hint| hint.contains("1 TiB more of guest memory beside 1 MiB")),
        "{:?}",
        hint()
    );
    // It is given up, and begins again.
    drop(guest);
    let mut guest = Guest::boot(connect(&folder));
    assert_eq!(hint(), None);
    guest.send([frame(2, 1, 1)]);
    assert!(memory.receive(LONG).is_some());
    // A log, too, and records longer than they need to be are not mapped whole.
    let (sparse, _) = sparse(1 << 40, 0);
    let about = VhostUserInflight::new(1 << 40, 0, 2, super::SIZE);
    guest.front_end.set_inflight_fd(&about, sparse.as_raw_fd()).expect("little of it is needed");
    let log = VhostUserDirtyLogRegion { mmap_size: 1 << 40, mmap_offset: 0, mmap_handle: sparse.as_raw_fd() };
    assert!(guest.front_end.set_log_base(0, Some(log)).is_err());
    super::eventually("it is said", || hint().is_some());
}

#[test]
fn a_front_end_that_takes_all_it_can_leaves_others_theirs() {
    const REGION: u64 = 1 << 20;
    let (folder, other_folder) = (Folder::new(), Folder::new());
    let memory = MemPort::new(Capabilities::default(), 1500).expect("a port");
    let options = Options { workers: Some(1), guest_memory_max: Some(16 * REGION), ..Options::default() };
    let ports = [("guest", guest_at(&folder, None)), ("memory", PortKind::Mem(memory.clone()))];
    let switch = switch_with(&options, ports);
    // Again and again: what one connection had is there for the next.
    for _ in 0..3 {
        let mut guest = Guest::boot(connect(&folder));
        assert_eq!(
            add_regions(&mut guest, REGION),
            Some(3),
            "a quarter of all, its own first one among them"
        );
    }
    let mut greedy = Guest::meet(connect(&folder));
    greedy.share(&greedy.file).expect("taken");
    (0..3).for_each(|number| {
        let (_file, region) = sparse(REGION, number);
        greedy.front_end.add_mem_region(&region).expect("a quarter of all");
    });
    // A table as large as can be is replaced by another: the one goes before the other comes.
    let (_large, region) = sparse(4 * REGION, 0);
    greedy.front_end.set_mem_table(&[region]).expect("a quarter of all");
    greedy.front_end.set_mem_table(&[region]).expect("again");

    let port = PortSpec {
        name: "other".into(),
        bridge: "br0".into(),
        kind: guest_at(&other_folder, None),
        settings: PortSettings::default(),
    };
    switch.add_port(port.clone(), Missing::Refuse).expect("added meanwhile");
    for n in 0..3 {
        let mut other = Guest::boot(connect(&other_folder));
        other.send([frame(2, 3, n)]);
        assert!(memory.receive(LONG).is_some(), "boots and talks, time and again");
    }
    // Ports that go give back what they had.
    for _ in 0..8 {
        switch.del_port("guest").expect("there");
        let port = PortSpec { name: "guest".into(), kind: guest_at(&folder, None), ..port.clone() };
        switch.add_port(port, Missing::Refuse).expect("room");
        let (_file, region) = sparse(4 * REGION, 0);
        Guest::meet(connect(&folder)).front_end.set_mem_table(&[region]).expect("a quarter of all");
    }
}

#[test]
fn a_bound_of_its_own_counts() {
    let folder = Folder::new();
    let memory = MemPort::new(Capabilities::default(), 1500).expect("a port");
    let spec = VhostUserSpec {
        memory_max: Some(5 << 20),
        ..VhostUserSpec::new(folder.socket(), SocketRole::Server)
    };
    let _switch = switch_with(
        &Options { workers: Some(1), ..Options::default() },
        [
            ("guest", PortKind::VhostUser(VhostUserSpec { queues: Some(super::PAIRS), ..spec })),
            ("memory", PortKind::Mem(memory)),
        ],
    );
    let mut guest = Guest::boot(connect(&folder));
    assert_eq!(add_regions(&mut guest, 2 << 20), Some(2));
}
