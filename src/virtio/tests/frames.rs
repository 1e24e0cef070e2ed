use std::sync::Arc;

use super::super::Fault;
use super::super::driver::{Driver, NEXT, WRITE, memory, read, write};
use super::super::feature::*;
use super::super::memory::GuestMemory;
use super::super::net::{HEADER_LEN, NetRing, Outcome, capabilities};
use super::super::ring::{Budget, Setup};
use crate::batch::{BATCH_FRAMES, Batch};
use crate::frame::Outgoing;
use crate::offload::{Capabilities, VNET_HDR_LEN};
use crate::stats::{Counters, DropReason};

const LEN: u64 = 4 << 20;
const DATA: u64 = 1 << 20;
const FEATURES: u64 = VERSION_1 | NET_MRG_RXBUF | RING_EVENT_IDX | RING_INDIRECT_DESC;
const OFFLOADS: u64 = NET_GUEST_CSUM | NET_GUEST_TSO4 | NET_GUEST_TSO6 | NET_GUEST_ECN;

fn net(memory: &Arc<GuestMemory>, size: u16, features: u64) -> (Driver, NetRing) {
    let driver = Driver::new(memory, 0, size, 0);
    let in_order = features & IN_ORDER != 0;
    let setup = Setup { in_order, ..driver.setup(0, features & RING_EVENT_IDX != 0) };
    (driver, NetRing::new(Arc::clone(memory), &setup, features, None).expect("a ring"))
}

fn receive(ring: &mut NetRing, batch: &mut Batch, counters: &Counters) -> Result<Outcome, Fault> {
    ring.receive(batch, counters, &mut Budget::new(Budget::RECEIVING), true)
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n % 251).expect("small")).collect()
}

fn outgoing(frame: &[u8]) -> Vec<u8> {
    [&[0; VNET_HDR_LEN], frame].concat()
}

#[test]
fn frames_are_gathered_wherever_they_are_cut() {
    let memory = memory(&[(0, LEN)]);
    let sent = frame(100);
    let bytes = [&[0; HEADER_LEN][..], &sent].concat();
    write(&memory, DATA, &bytes);
    for first in [1, 5, 11, 12, 13, 40, 111] {
        for second in [1, 30] {
            if first + second >= bytes.len() {
                continue;
            }
            let (mut driver, mut ring) = net(&memory, 8, FEATURES);
            driver.descriptor(2, DATA, first, NEXT, 4);
            driver.descriptor(4, DATA + first as u64, second, NEXT, 0);
            let rest = first + second;
            driver.descriptor(0, DATA + rest as u64, bytes.len() - rest, 0, 0);
            driver.offer(2);
            let (mut batch, counters) = (Batch::default(), Counters::default());
            assert_eq!(receive(&mut ring, &mut batch, &counters), Ok(Outcome::Drained));
            assert_eq!(batch.frames.len(), 1);
            assert_eq!(batch.bytes(&batch.frames[0]), sent, "cut at {first} and {rest}");
            assert_eq!(driver.take_used(), [(2, 0)]);
        }
    }
}

#[test]
fn a_batch_takes_no_more_than_it_has_room_for() {
    let memory = memory(&[(0, LEN)]);
    let (mut driver, mut ring) = net(&memory, 256, FEATURES);
    for n in 0..200 {
        driver.descriptor(n, DATA, HEADER_LEN + 60, 0, 0);
        driver.offer(n);
    }
    let counters = Counters::default();
    for (outcome, frames) in
        [(Outcome::More, 64), (Outcome::More, 64), (Outcome::More, 64), (Outcome::Drained, 8)]
    {
        let mut batch = Batch::default();
        assert_eq!(receive(&mut ring, &mut batch, &counters), Ok(outcome));
        assert_eq!(batch.frames.len(), frames);
    }
    assert_eq!(driver.take_used().len(), 200);
    assert_eq!(driver.kick_after(), 200, "it listens when there is no more");
}

#[test]
fn the_end_of_a_long_frame_is_copied_once() {
    let memories = [memory(&[(0, LEN)]), memory(&[(0, LEN)])];
    let features = FEATURES | OFFLOADS;
    for (len, gso, here) in [(1514, 0, 128), (60_000, 1, 512)] {
        let (mut sender, mut from) = net(&memories[0], 64, features);
        let (mut receiver, mut to) = net(&memories[1], 64, features);
        let mut sent = frame(len);
        if gso != 0 {
            let ip = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
            sent[12..14].copy_from_slice(&[8, 0]);
            sent[14..34].copy_from_slice(&ip);
            sent[46] = 0x50;
        }
        let header = [u8::from(gso != 0), gso, 54, 0, 0xb4, 5, if gso == 0 { 0 } else { 34 }, 0, 16, 0, 0, 0];
        write(&memories[0], DATA, &[&if gso == 0 { [0; 12] } else { header }[..], &sent].concat());
        // In three pieces.
        for (n, (start, end)) in [(0, 50), (50, 700), (700, HEADER_LEN + len)].into_iter().enumerate() {
            let n = u16::try_from(n).expect("small");
            sender.descriptor(n, DATA + start as u64, end - start, if n == 2 { 0 } else { NEXT }, n + 1);
        }
        sender.offer(0);
        for n in 0..64 {
            receiver.descriptor(n, DATA + u64::from(n) * 4096, 1526, WRITE, 0);
            receiver.offer(n);
        }

        let (mut batch, counters) = (Batch::default(), Counters::default());
        assert_eq!(receive(&mut from, &mut batch, &counters), Ok(Outcome::Drained));
        assert!(batch.is_lent() && from.is_lending());
        let frame = &batch.frames[0];
        assert_eq!((frame.len(), batch.bytes(frame).len()), (len, here));
        assert!(sender.take_used().is_empty(), "not before it has left");
        // It has not been copied so far, but its headers have: what its sender changes now is seen, or not.
        write(&memories[0], DATA + HEADER_LEN as u64, &[0xff; 14]);
        write(&memories[0], DATA + (HEADER_LEN + len) as u64 - 3, b"end");
        sent[len - 3..].copy_from_slice(b"end");
        sent[..here].copy_from_slice(batch.bytes(frame));

        let (bytes, rest) = (batch.with_header(frame), batch.rest(frame).expect("lent"));
        to.transmit(
            &[Outgoing::Lent { bytes, rest, segments: 1 }],
            &counters,
            &mut Budget::new(Budget::SENDING),
        )
        .expect("sent");
        assert_eq!((counters.tx_frames.get(), counters.tx_bytes.get()), (1, len as u64));
        let used = receiver.take_used();
        let got = used
            .iter()
            .flat_map(|&(head, written)| read(&memories[1], DATA + u64::from(head) * 4096, written as usize));
        let got: Vec<u8> = got.collect();
        assert_eq!(usize::from(u16::from_le_bytes([got[10], got[11]])), used.len());
        assert!(got[HEADER_LEN..] == sent);

        batch.fetch();
        assert!(!batch.is_lent() && *batch.bytes(&batch.frames[0]) == sent);
        from.take_back();
        assert_eq!(sender.take_used(), [(0, 0)]);
    }
}

#[test]
fn a_ring_that_breaks_takes_back_what_it_lent() {
    let memory = memory(&[(0, LEN)]);
    for features in [FEATURES, FEATURES | IN_ORDER] {
        let (mut driver, mut ring) = net(&memory, 8, features);
        driver.descriptor(3, DATA, HEADER_LEN + 1500, 0, 0);
        driver.descriptor(4, LEN, 100, 0, 0);
        driver.offer(3);
        driver.offer(4);
        let mut batch = Batch::default();
        let fault = receive(&mut ring, &mut batch, &Counters::default()).expect_err("an address of nobody");
        assert!(ring.is_lending() && batch.is_lent() && driver.take_used().is_empty());
        assert_eq!(ring.base(), 0, "for whoever mends it");
        ring.take_back();
        assert_eq!((ring.fault(), ring.base()), (Some(fault), 1));
        assert_eq!(driver.take_used(), [(3, 0)]);
    }
}

#[test]
fn what_a_batch_may_cost_is_for_all_calls_together() {
    let memory = memory(&[(0, LEN)]);
    let size = 1024;
    let (mut driver, mut ring) = net(&memory, size, FEATURES);
    for n in 0..size {
        driver.descriptor(n, DATA, 0, if n == size - 1 { WRITE } else { WRITE | NEXT }, (n + 1) % size);
    }
    (0..4).for_each(|_| driver.offer(0));
    let (bytes, counters) = (outgoing(&frame(60)), Counters::default());
    let whole = [Outgoing::Whole { bytes: &bytes, segments: 1 }];
    let mut budget = Budget::new(Budget::SENDING);
    ring.transmit(&whole, &counters, &mut budget).expect("no rule was broken");
    assert!(budget.is_spent());
    // Not even looked at any more: it would be a fault.
    driver.descriptor(0, LEN, 100, WRITE, 0);
    ring.transmit(&whole, &counters, &mut budget).expect("not looked at");
    assert_eq!(counters.drops(DropReason::TxFull), 2);
    assert!(ring.transmit(&whole, &counters, &mut Budget::new(1)).is_err());
}

#[test]
fn a_batch_borrows_from_one_guest_and_not_for_little() {
    let memories = [memory(&[(0, LEN)]), memory(&[(0, LEN)])];
    let mut batch = Batch::default();
    for (memory, len, lent) in [(0, 600, false), (0, 700, true), (1, 700, false), (0, 700, true)] {
        let (mut driver, mut ring) = net(&memories[memory], 8, FEATURES);
        driver.descriptor(0, DATA, HEADER_LEN + len, 0, 0);
        driver.offer(0);
        receive(&mut ring, &mut batch, &Counters::default()).expect("taken");
        assert_eq!(ring.is_lending(), lent);
        assert_eq!(driver.take_used().is_empty(), lent);
    }
    batch.clear();
    assert!(!batch.is_lent());
}

#[test]
fn chains_in_order_come_back_by_the_last_of_them() {
    let memory = memory(&[(0, LEN)]);
    let (mut driver, mut ring) = net(&memory, 8, FEATURES | IN_ORDER);
    let (mut batch, counters) = (Batch::default(), Counters::default());
    for (offered, entries) in
        [(5, [(4, 0), (0, 0), (0, 0), (0, 0), (0, 0)]), (5, [(1, 0), (0, 0), (0, 0), (4, 0), (0, 0)])]
    {
        for _ in 0..offered {
            let head = driver.index() % 8;
            driver.descriptor(head, DATA, HEADER_LEN + 60, 0, 0);
            driver.offer(head);
        }
        assert_eq!(receive(&mut ring, &mut batch, &counters), Ok(Outcome::Drained));
        // The first entry is for all; the others are what they were.
        assert_eq!(driver.take_used(), entries);
    }
    // What is written has a length each.
    let (mut driver, mut ring) = net(&memory, 8, FEATURES | IN_ORDER);
    for head in 0..2 {
        driver.descriptor(head, DATA, 1526, WRITE, 0);
        driver.offer(head);
    }
    let bytes = outgoing(&frame(60));
    ring.transmit(
        &[Outgoing::Whole { bytes: &bytes, segments: 1 }; 2],
        &counters,
        &mut Budget::new(Budget::SENDING),
    )
    .expect("sent");
    assert_eq!(driver.take_used(), [(0, 72), (1, 72)]);
}

#[test]
fn what_cannot_be_a_frame_is_counted_and_given_back() {
    let memory = memory(&[(0, LEN)]);
    let (mut driver, mut ring) = net(&memory, 8, FEATURES);
    let mut bad = [0; HEADER_LEN];
    bad[1] = 77;
    write(&memory, DATA, &bad);
    driver.descriptor(0, DATA, HEADER_LEN + 60, 0, 0);
    driver.descriptor(1, DATA + 4096, 100_000, 0, 0);
    driver.descriptor(2, DATA + 4096, 4, 0, 0);
    (0..3).for_each(|head| driver.offer(head));
    let (mut batch, counters) = (Batch::default(), Counters::default());
    assert_eq!(receive(&mut ring, &mut batch, &counters), Ok(Outcome::Drained));
    assert_eq!(counters.drops(DropReason::BadOffload), 1);
    assert_eq!(counters.drops(DropReason::RxError), 1);
    assert_eq!(
        batch.frames.iter().map(crate::frame::Frame::len).collect::<Vec<_>>(),
        [0],
        "a runt, for parse"
    );
    assert_eq!(driver.take_used(), [(0, 0), (1, 0), (2, 0)]);
}

#[test]
fn a_frame_fills_as_many_buffers_as_it_takes() {
    let memory = memory(&[(0, LEN)]);
    for (len, each) in [(60, 2048), (60, 30), (1514, 700), (60_000, 1526)] {
        let (mut driver, mut ring) = net(&memory, 64, FEATURES);
        for n in 0..64 {
            driver.descriptor(n, DATA + u64::from(n) * 4096, each, WRITE, 0);
            driver.offer(n);
        }
        let (sent, counters) = (frame(len), Counters::default());
        let bytes = outgoing(&sent);
        let whole = Outgoing::Whole { bytes: &bytes, segments: 1 };
        ring.transmit(&[whole], &counters, &mut Budget::new(Budget::SENDING)).expect("sent");
        assert_eq!((counters.tx_frames.get(), counters.tx_bytes.get()), (1, len as u64));
        let used = driver.take_used();
        let mut got = Vec::new();
        for &(head, written) in &used {
            got.extend(read(&memory, DATA + u64::from(head) * 4096, written as usize));
        }
        assert_eq!(got.len(), HEADER_LEN + len);
        assert_eq!(usize::from(u16::from_le_bytes([got[10], got[11]])), used.len(), "num_buffers");
        assert_eq!(used.len(), (HEADER_LEN + len).div_ceil(each));
        assert_eq!(&got[HEADER_LEN..], sent);
    }
}

#[test]
fn pieces_are_put_together() {
    let memory = memory(&[(0, LEN)]);
    let (mut driver, mut ring) = net(&memory, 8, FEATURES);
    driver.descriptor(0, DATA, 7, WRITE | NEXT, 1);
    driver.descriptor(1, DATA + 100, 9, WRITE | NEXT, 2);
    driver.descriptor(2, DATA + 200, 500, WRITE, 0);
    driver.offer(0);
    let sent = frame(64);
    let pieces = Outgoing::Pieces {
        header: [0; VNET_HDR_LEN],
        addresses: &sent[..12],
        tag: Some([0x81, 0, 0, 5]),
        rest: &sent[12..],
        segments: 1,
    };
    ring.transmit(&[pieces], &Counters::default(), &mut Budget::new(Budget::SENDING)).expect("sent");
    assert_eq!(driver.take_used(), [(0, 80)]);
    let got = [read(&memory, DATA, 7), read(&memory, DATA + 100, 9), read(&memory, DATA + 200, 64)].concat();
    assert_eq!(&got[HEADER_LEN..], [&sent[..12], &[0x81, 0, 0, 5], &sent[12..]].concat());
}

#[test]
fn a_guest_without_room_loses_the_frame_and_no_buffer() {
    let memory = memory(&[(0, LEN)]);
    let (mut driver, mut ring) = net(&memory, 8, FEATURES);
    let (bytes, counters) = (outgoing(&frame(3000)), Counters::default());
    let whole = Outgoing::Whole { bytes: &bytes, segments: 1 };
    ring.transmit(&[whole], &counters, &mut Budget::new(Budget::SENDING)).expect("fine");
    driver.descriptor(0, DATA, 1526, WRITE, 0);
    driver.offer(0);
    ring.transmit(&[whole], &counters, &mut Budget::new(Budget::SENDING)).expect("fine");
    assert_eq!(counters.drops(DropReason::TxFull), 2);
    driver.descriptor(1, DATA + 4096, 1526, WRITE, 0);
    driver.offer(1);
    ring.transmit(&[whole], &counters, &mut Budget::new(Budget::SENDING)).expect("fine");
    assert_eq!(counters.tx_frames.get(), 1);
    assert_eq!(driver.take_used().len(), 2);

    // One buffer a frame, for those who cannot merge.
    let (mut driver, mut ring) = net(&memory, 8, VERSION_1);
    (0..2).for_each(|n| driver.descriptor(n, DATA, 1526, WRITE, 0));
    (0..2).for_each(|n| driver.offer(n));
    ring.transmit(&[whole], &counters, &mut Budget::new(Budget::SENDING)).expect("fine");
    assert_eq!(counters.drops(DropReason::TooLong), 1);
    let bytes = outgoing(&frame(60));
    ring.transmit(
        &[Outgoing::Whole { bytes: &bytes, segments: 1 }],
        &counters,
        &mut Budget::new(Budget::SENDING),
    )
    .expect("fine");
    assert_eq!(driver.take_used(), [(0, 72)]);
}

#[test]
fn guests_see_only_what_they_agreed_to() {
    let all = Capabilities { csum: true, tso4: true, tso6: true, uso: true };
    assert_eq!(capabilities(OFFLOADS | NET_GUEST_USO4 | NET_GUEST_USO6), all);
    assert_eq!(
        capabilities(NET_GUEST_TSO4 | NET_GUEST_USO4),
        Capabilities::default(),
        "all of it needs checksums"
    );
    assert!(!capabilities(OFFLOADS | NET_GUEST_USO4).uso, "both or none");

    let memory = memory(&[(0, LEN)]);
    let send = |features: u64, flags: u8, gso: u8| {
        let (mut driver, mut ring) = net(&memory, 8, FEATURES | features);
        driver.descriptor(0, DATA, 4096, WRITE, 0);
        driver.offer(0);
        let mut bytes = outgoing(&frame(600));
        (bytes[0], bytes[1]) = (flags, gso);
        let counters = Counters::default();
        ring.transmit(
            &[Outgoing::Whole { bytes: &bytes, segments: 1 }],
            &counters,
            &mut Budget::new(Budget::SENDING),
        )
        .expect("fine");
        let header = read(&memory, DATA, 2);
        (counters.drops(DropReason::TxError) == 0).then_some((header[0], header[1]))
    };
    assert_eq!(send(OFFLOADS, 1, 0x81), Some((1, 0x81)));
    assert_eq!(send(OFFLOADS & !NET_GUEST_ECN, 1, 0x81), Some((1, 1)));
    assert_eq!(send(NET_GUEST_CSUM, 1, 0), Some((1, 0)));
    assert_eq!(send(NET_GUEST_CSUM, 1, 1), None);
    assert_eq!(send(OFFLOADS, 1, 5), None);
    assert_eq!(send(0, 2, 0), Some((0, 0)));
    assert_eq!(send(0, 1, 0), None);
}

#[test]
fn drivers_from_before_virtio_1_have_a_shorter_header() {
    let memory = memory(&[(0, LEN)]);
    let (mut driver, mut ring) = net(&memory, 8, 0);
    let sent = frame(60);
    write(&memory, DATA, &outgoing(&sent));
    driver.descriptor(0, DATA, VNET_HDR_LEN + 60, 0, 0);
    driver.offer(0);
    let mut batch = Batch::default();
    receive(&mut ring, &mut batch, &Counters::default()).expect("fine");
    assert_eq!(batch.bytes(&batch.frames[0]), sent);
}

#[test]
fn a_ring_that_broke_stays_so_and_all_frames_are_counted() {
    let memory = memory(&[(0, LEN)]);
    let (mut driver, mut ring) = net(&memory, 8, FEATURES);
    driver.descriptor(0, LEN, 4096, WRITE, 0);
    driver.offer(0);
    let (bytes, counters) = (outgoing(&frame(60)), Counters::default());
    let frames = [Outgoing::Whole { bytes: &bytes, segments: 1 }; 3];
    let fault = ring.transmit(&frames, &counters, &mut Budget::new(Budget::SENDING)).expect_err("a fault");
    assert_eq!(ring.fault(), Some(fault));
    assert_eq!(ring.transmit(&frames, &counters, &mut Budget::new(Budget::SENDING)), Err(fault));
    assert_eq!(counters.drops(DropReason::BadRing), 6);
    assert!(driver.take_used().is_empty());
    assert!(ring.wait().is_err());
}

#[test]
fn one_guest_does_not_keep_a_worker() {
    // Long chains of nothing: a call ends early and goes on where it was.
    let memory = memory(&[(0, LEN)]);
    let size = 1024;
    let (mut driver, mut ring) = net(&memory, size, FEATURES);
    for n in 0..size {
        driver.descriptor(n, DATA, 0, if n == size - 1 { 0 } else { NEXT }, (n + 1) % size);
    }
    (0..64).for_each(|_| driver.offer(0));
    let counters = Counters::default();
    let mut batch = Batch::default();
    assert_eq!(receive(&mut ring, &mut batch, &counters), Ok(Outcome::More));
    assert!(batch.frames.len() < BATCH_FRAMES / 8, "{}", batch.frames.len());
}
