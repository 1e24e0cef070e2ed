//! A front end that means harm, beside others under the same worker.

use std::time::Duration;

use super::load::{frame, switch};
use super::{Folder, Guest, connect};
use crate::port::mem::MemFrame;
use crate::switch::PollMode;
use crate::sys::caller::make_blocking;

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
    use std::os::fd::AsRawFd;
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
