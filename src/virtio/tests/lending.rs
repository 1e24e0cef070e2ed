//! Frames whose ends are lent from one guest to another, by a switch that ends between any two values it records.

use std::fs::File;
use std::sync::Arc;

use super::super::driver::{Driver, WRITE, memory, read, write};
use super::super::feature::*;
use super::super::inflight::{InflightFile, crash};
use super::super::memory::{GuestMemory, Share};
use super::super::net::{HEADER_LEN, NetRing};
use super::super::ring::{Budget, Records};
use crate::batch::Batch;
use crate::frame::Outgoing;
use crate::stats::Counters;

const LEN: u64 = 128 << 10;
const DATA: u64 = 64 << 10;
const SIZE: u16 = 16;
const FEATURES: u64 = VERSION_1 | NET_MRG_RXBUF | RING_EVENT_IDX;
const FRAME_LEN: usize = 1500;

/// A guest with one ring, and the file that its front end keeps.
struct Guest {
    memory: Arc<GuestMemory>,
    driver: Driver,
    kept: File,
}

impl Guest {
    fn new() -> Guest {
        let memory = memory(&[(0, LEN)]);
        let driver = Driver::new(&memory, 0, SIZE, 0);
        Guest { memory, driver, kept: InflightFile::create(1, SIZE).expect("a file") }
    }

    /// A switch takes the ring over. When there is a record, it does not matter what it is told of the index.
    fn ring(&self, base: u16) -> NetRing {
        let (file, len) = (self.kept.try_clone().expect("another handle"), InflightFile::len(1, SIZE));
        let kept = InflightFile::new(&Share::default(), file, 0, len, 1, SIZE).expect("long enough");
        let records = Records { log: None, inflight: Arc::new(kept).ring(0) };
        let setup = self.driver.setup(base, true);
        NetRing::recorded(Arc::clone(&self.memory), &setup, FEATURES, None, records).expect("a ring")
    }

    /// Where the buffer of a head is.
    fn place(head: impl Into<u64>) -> u64 {
        DATA + 2048 * head.into()
    }
}

fn frame(mark: u8) -> Vec<u8> {
    (0..FRAME_LEN).map(|n| mark ^ u8::try_from(n % 251).expect("small")).collect()
}

/// What a worker does with a batch. How many frames there were.
fn pass(from: &mut NetRing, to: &mut NetRing) -> usize {
    let (mut batch, counters) = (Batch::default(), Counters::default());
    from.receive(&mut batch, &counters, &mut Budget::new(Budget::RECEIVING), true)
        .expect("no rule was broken");
    let lent = |frame| {
        let (bytes, rest) = (batch.with_header(frame), batch.rest(frame).expect("lent"));
        Outgoing::Lent { bytes, rest, segments: 1 }
    };
    let frames: Vec<_> = batch.frames.iter().map(lent).collect();
    to.transmit(&frames, &counters, &mut Budget::new(Budget::SENDING)).expect("no rule was broken");
    from.take_back();
    frames.len()
}

#[test]
fn nothing_that_was_lent_is_lost_by_a_crash_or_given_back_twice() {
    let heads: [u8; 4] = [5, 2, 7, 0];
    let mut most = 0;
    for at in 0.. {
        let (mut sender, mut receiver) = (Guest::new(), Guest::new());
        for head in heads {
            let bytes = [&[0; HEADER_LEN], &frame(head)[..]].concat();
            write(&sender.memory, Guest::place(head), &bytes);
            sender.driver.descriptor(head.into(), Guest::place(head), bytes.len(), 0, 0);
            sender.driver.offer(head.into());
        }
        for head in 0..SIZE {
            receiver.driver.descriptor(head, Guest::place(head), 2048, WRITE, 0);
            receiver.driver.offer(head);
        }
        let (mut from, mut to) = (sender.ring(0), receiver.ring(0));
        let whole = crash::after(at, || assert_eq!(pass(&mut from, &mut to), heads.len()));
        let before = sender.driver.take_used();
        assert!(before.is_empty() || before.len() == heads.len(), "all that a batch lent, or nothing");
        // The next one.
        (from, to) = (sender.ring(4711), receiver.ring(4711));
        let again = pass(&mut from, &mut to);
        assert_eq!(
            again,
            heads.len() - before.len(),
            "what was not given back is sent again, ended before {at}"
        );
        let back = [before, sender.driver.take_used()].concat();
        assert_eq!(back, heads.map(|head| (u32::from(head), 0)), "each once, ended before {at}");

        let used = receiver.driver.take_used();
        let read = |&(head, written): &(u32, u32)| {
            read(&receiver.memory, Guest::place(head), written as usize)[HEADER_LEN..].to_vec()
        };
        let got: Vec<_> = used.iter().map(read).collect();
        let mut buffers: Vec<_> = used.iter().map(|&(head, _)| head).collect();
        buffers.sort_unstable();
        buffers.dedup();
        assert_eq!(buffers.len(), used.len(), "each buffer once, ended before {at}");
        // Some of the batch, perhaps, and then all of it.
        let sent = heads.map(frame);
        let twice = got.len() - sent.len();
        assert!(got[twice..] == sent && got[..twice] == sent[..twice], "ended before {at}");
        most = most.max(twice);
        if whole {
            break;
        }
    }
    assert_eq!(most, heads.len(), "it ended once when all was sent and nothing given back");
}
