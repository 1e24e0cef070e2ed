//! Long frames from one guest to another, whose front ends do what they may do at any time: their ends are lent then.
#![allow(clippy::cast_possible_truncation, reason = "tests")]

use std::sync::atomic::{AtomicBool, AtomicU8, fence};

use vm_memory::volatile_memory::VolatileMemory;

use super::load::{PLACES, frame, guest_at, number, switch_of};
use super::migration::{LOG_LEN, log_of};
use super::*;
use crate::status::PortCounters;
use crate::switch::{PollMode, Switch};

const FRAMES: u32 = 3000;
const FRAME_LEN: usize = 1514;
const PAGE: usize = 4096;

/// Frame number `n` of a guest to the other, whose bytes are all its own.
fn long(n: u32) -> Vec<u8> {
    let mut bytes = frame(2, 1, n);
    bytes.resize(FRAME_LEN, 0);
    for (at, byte) in bytes[18..].iter_mut().enumerate() {
        *byte = (at as u32).wrapping_mul(n | 1).to_le_bytes()[1];
    }
    bytes
}

impl Guest {
    /// What has come, whose buffers are offered again.
    fn take_and_offer(&mut self) -> Vec<Vec<u8>> {
        let used = self.receive.take_used();
        let frames = used.iter().map(|&used| self.received(used)).collect();
        for (head, _) in used {
            self.receive.offer(u16::try_from(head).expect("a head"));
        }
        frames
    }
}

/// A switch between two guests.
struct Pair {
    switch: Switch,
    sender: Guest,
    receiver: Guest,
    _folders: [Folder; 2],
}

impl Pair {
    fn new() -> Pair {
        let folders = [Folder::new(), Folder::new()];
        let ports = [("sender", guest_at(&folders[0], None)), ("receiver", guest_at(&folders[1], None))];
        let switch = switch_of(2, PollMode::default(), ports);
        let [sender, receiver] = [&folders[0], &folders[1]].map(|folder| Guest::boot(connect(folder)));
        Pair { switch, sender, receiver, _folders: folders }
    }

    fn counters(&self, port: &str) -> PortCounters {
        self.switch.port(port).expect("there").counters
    }

    /// Sends all frames, a burst at a time. Those that arrived are what was sent, each once, in order; how many they were.
    fn talk(&mut self) -> u32 {
        let (mut sent, mut arrived, mut next) = (0, 0, 0);
        while sent < FRAMES {
            let burst = (sent % 13 + 1).min(FRAMES - sent);
            self.sender.send((sent..sent + burst).map(long));
            sent += burst;
            // Given back when the batch has left.
            eventually("buffers come back", || {
                self.sender.transmit.used_index() == self.sender.transmit.index()
            });
            fence(Ordering::SeqCst);
            for frame in self.receiver.take_and_offer() {
                let n = number(&frame);
                assert!(frame == long(n), "frame {n} is not what was sent");
                assert!((next..sent).contains(&n), "frame {n} after {next}");
                (next, arrived) = (n + 1, arrived + 1);
            }
        }
        arrived
    }
}

/// Does something again and again until the other has been done.
fn meanwhile<T>(mut again: impl FnMut() + Send, other: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    // Whatever becomes of the other.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                again();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let _done = Done(&done);
        other()
    })
}

/// Has a guest say over and over where its memory is.
fn sharing(guest: &Guest) -> impl FnMut() + Send + use<> {
    let (front_end, file) = (guest.front_end.clone(), guest.file.try_clone().expect("another handle"));
    move || front_end.set_mem_table(&[Guest::region(&file)]).map(drop).expect("taken")
}

#[test]
fn nothing_is_lost_while_the_sender_changes_its_memory() {
    let mut pair = Pair::new();
    let arrived = meanwhile(sharing(&pair.sender), || pair.talk());
    assert_eq!(arrived, FRAMES);
    let counters = ["sender", "receiver"].map(|port| pair.counters(port));
    assert_eq!((counters[0].rx_frames, counters[1].tx_frames), (FRAMES.into(), FRAMES.into()));
    assert!(counters.iter().all(|counters| counters.drops.is_empty()), "{counters:?}");
}

#[test]
fn what_is_lost_while_the_receiver_changes_its_memory_is_counted() {
    let mut pair = Pair::new();
    let arrived = meanwhile(sharing(&pair.receiver), || pair.talk());
    assert!(arrived > 0);
    let drops: u64 =
        ["sender", "receiver"].map(|port| pair.counters(port).drops.values().sum::<u64>()).iter().sum();
    assert_eq!(u64::from(arrived) + drops, u64::from(FRAMES));
}

/// A guest's memory as it is at its new place: what was marked since the last pass is copied.
struct Moving {
    memory: Arc<GuestMemory>,
    log: GuestMemory,
    copy: Vec<u8>,
}

impl Moving {
    /// From now on what is written is logged.
    fn begin(guest: &mut Guest) -> Moving {
        let file = file(LOG_LEN);
        guest.front_end.set_log_base(0, log_of(&file, LOG_LEN)).expect("taken");
        guest.log(true);
        let log = GuestMemory::default().with(region(0, LOG_LEN), file).expect("a region");
        let copy = read(&guest.memory, 0, LEN as usize);
        Moving { memory: Arc::clone(&guest.memory), log, copy }
    }

    fn pass(&mut self) {
        let bits = self.log.guest(0, usize::MAX).and_then(|area| self.log.slice(area)).expect("mapped");
        for byte in 0..bits.len() {
            let marked = bits.get_atomic_ref::<AtomicU8>(byte).expect("inside").swap(0, Ordering::SeqCst);
            for bit in (0..8).filter(|bit| marked & 1 << bit != 0) {
                let page = (8 * byte + bit) * PAGE;
                let bytes = read(&self.memory, page as u64, PAGE);
                self.copy[page..page + PAGE].copy_from_slice(&bytes);
            }
        }
    }

    /// Where the copy differs, in what devices write: buffers and used rings.
    #[track_caller]
    fn verify(mut self, guest: &mut Guest) {
        for index in 0..2 {
            guest.front_end.get_vring_base(index).expect("answered");
        }
        self.pass();
        let used = |driver: &Driver| (driver.used_addr(), 4 + 8 * usize::from(SIZE));
        let buffers = (BUFFERS, 2048 * usize::from(SIZE));
        for (start, len) in [used(&guest.receive), used(&guest.transmit), buffers] {
            let at = start as usize;
            assert!(
                self.copy[at..at + len] == read(&self.memory, start, len),
                "of {len} bytes at {start:#x}"
            );
        }
    }
}

#[test]
fn all_that_is_written_of_lent_frames_is_logged() {
    let mut pair = Pair::new();
    let mut moving = [&mut pair.sender, &mut pair.receiver].map(Moving::begin);
    let arrived = meanwhile(|| moving.iter_mut().for_each(Moving::pass), || pair.talk());
    assert_eq!(arrived, FRAMES);
    let [of_sender, of_receiver] = moving;
    of_sender.verify(&mut pair.sender);
    of_receiver.verify(&mut pair.receiver);
}

#[test]
fn a_lender_that_changes_its_memory_waits_and_a_receiver_does_not() {
    let folders = [Folder::new(), Folder::new()];
    let [mut from, mut to] =
        [&folders[0], &folders[1]].map(|folder| Port::new(folder, SocketRole::Server, 1));
    let [mut sender, mut receiver] = [&folders[0], &folders[1]].map(|folder| Guest::boot(connect(folder)));
    let log = file(LOG_LEN);
    sender.front_end.set_log_base(0, log_of(&log, LOG_LEN)).expect("taken");
    sender.log(true);
    let moving = Moving::begin(&mut receiver);
    sender.send([long(1)]);
    let mut batch = Batch::default();
    let inbound = Inbound { counters: &from.shared.counters[0], demux: None, worker: 0 };
    eventually("a frame from the guest", || {
        from.open.queues[0].receive(&mut batch, &inbound);
        batch.is_lent()
    });
    let changed = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let (mut share, changed) = (sharing(&sender), &changed);
        let change = scope.spawn(move || {
            share();
            changed.store(1, Ordering::SeqCst);
        });
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(changed.load(Ordering::SeqCst), 0, "its memory is in use");
        sharing(&receiver)();
        let sent = &batch.frames[0];
        let (bytes, rest) = (batch.with_header(sent), batch.rest(sent).expect("lent"));
        to.open.queues[0].transmit(&[Outgoing::Lent { bytes, rest, segments: 1 }], &to.shared.counters[0]);
        from.open.queues[0].take_back();
        change.join().expect("no panic");
    });
    assert_eq!(sender.transmit.take_used(), [(0, 0)]);
    assert!(receiver.take() == [long(1)]);
    moving.verify(&mut receiver);
    // Nothing of the sender's but the ring was written, by the memory of before.
    let marked = GuestMemory::default().with(region(0, LOG_LEN), log).expect("a region");
    let bits = read(&marked, 0, LOG_LEN as usize);
    let page = sender.transmit.used_addr() as usize / PAGE;
    let is_marked = |page: usize| bits[page / 8] & 1 << (page % 8) != 0;
    assert!(is_marked(page) && !is_marked(PLACES as usize / PAGE));
    talk(&mut from, &mut sender, 2);
}
