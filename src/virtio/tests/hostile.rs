//! Rings full of anything: whatever is in them, nothing panics, and nothing outside the guest's memory is touched.

use std::sync::Arc;

use proptest::prelude::*;

use super::super::driver::{Driver, WRITE, memory, put_descriptor, write};
use super::super::feature::*;
use super::super::memory::GuestMemory;
use super::super::net::{NetRing, Outcome};
use super::super::ring::Budget;
use crate::batch::Batch;
use crate::frame::Outgoing;
use crate::offload::VNET_HDR_LEN;
use crate::stats::{Counters, DropReason};

const LEN: u64 = 256 << 10;
const TABLE: u64 = 64 << 10;

/// Numbers near those that matter, and any.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![0..LEN, LEN - 64..LEN + 64, TABLE..TABLE + 256, any::<u64>()]
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![0..64usize, 0..2000usize, 60_000..70_000usize, Just(u32::MAX as usize)]
}

type Entry = (u64, usize, u16, u16);

fn entry() -> impl Strategy<Value = Entry> {
    (address(), length(), 0..8u16, prop_oneof![0..20u16, any::<u16>()])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn nothing_in_a_ring_is_believed(
        entries in prop::collection::vec(entry(), 16),
        table in prop::collection::vec(entry(), 16),
        heads in prop::collection::vec(prop_oneof![0..16u16, any::<u16>()], 0..20),
        jump in prop_oneof![Just(None), any::<u16>().prop_map(Some)],
        header in prop::collection::vec(any::<u8>(), 12),
        features in prop::collection::vec(any::<bool>(), 4),
        base in any::<u16>(),
        frame_len in 14..70_000usize,
    ) {
        let memory = memory(&[(0, LEN)]);
        let offered = [VERSION_1, NET_MRG_RXBUF, RING_EVENT_IDX, RING_INDIRECT_DESC];
        let features = offered.iter().zip(features).filter(|(_, on)| *on).fold(0, |all, (bit, _)| all | bit);
        let mut driver = Driver::new(&memory, 0, 16, base);
        write(&memory, TABLE + 1024, &header);
        for (n, (addr, len, flags, next)) in (0..).zip(entries) {
            driver.descriptor(n, addr, len, flags, next);
        }
        for (n, (addr, len, flags, next)) in (0..).zip(table) {
            put_descriptor(&memory, TABLE, n, addr, len, flags, next);
        }
        for head in heads {
            driver.offer(head);
        }
        if let Some(jump) = jump {
            driver.set_index(jump);
        }
        let setup = driver.setup(base, features & RING_EVENT_IDX != 0);
        let Ok(mut ring) = NetRing::new(Arc::clone(&memory), &setup, features, None) else { return Ok(()) };
        let counters = Counters::default();
        let mut batch = Batch::default();
        for _ in 0..3 {
            batch.clear();
            let _ = ring.receive(&mut batch, &counters, &mut Budget::new(Budget::RECEIVING), true);
        }
        let Ok(mut ring) = NetRing::new(Arc::clone(&memory), &setup, features, None) else { return Ok(()) };
        let bytes = vec![0; VNET_HDR_LEN + frame_len];
        let frames = [Outgoing::Whole { bytes: &bytes, segments: 1 }; 3];
        let counters = Counters::default();
        let _ = ring.transmit(&frames, &counters, &mut Budget::new(Budget::SENDING));
        let dropped: u64 = DropReason::ALL.iter().map(|&reason| counters.drops(reason)).sum();
        prop_assert_eq!(counters.tx_frames.get() + dropped, 3, "each frame is counted once");
    }
}

/// Pieces that one call may look at, and then some: beside its budget a frame that was begun.
pub(crate) const PIECES: u64 = 8192;
/// Regions behind one another, so that memory that is one piece to the guest is as many to the host.
pub(crate) const REGIONS: u64 = 200;
const PAGE: u64 = 4096;

/// A region for rings and frames, and these behind it.
pub(crate) fn scattered_memory() -> Arc<GuestMemory> {
    let others = (0..REGIONS).map(|n| (LEN + n * PAGE, PAGE));
    memory(&std::iter::once((0, LEN)).chain(others).collect::<Vec<_>>())
}

/// The n-th ring there, and as many chains as it has places: a frame, and descriptors that cover all other regions.
pub(crate) fn scattered(memory: &Arc<GuestMemory>, n: u64, flags: u16) -> (Driver, NetRing) {
    let mut driver = Driver::new(memory, n * 2 * PAGE, 256, 0);
    driver.descriptor(0, LEN - PAGE, 72, flags, 0);
    for n in 1..256 {
        driver.descriptor(n, LEN, usize::try_from(REGIONS * PAGE).expect("small"), flags, 0);
    }
    (0..256).for_each(|n| driver.offer(n));
    let setup = driver.setup(0, false);
    let ring = NetRing::new(Arc::clone(memory), &setup, VERSION_1 | NET_MRG_RXBUF, None).expect("a ring");
    (driver, ring)
}

#[test]
fn a_look_is_bounded_by_pieces_and_not_by_descriptors() {
    let memory = scattered_memory();
    let (_, mut ring) = scattered(&memory, 0, 0);
    let (mut batch, counters) = (Batch::default(), Counters::default());
    assert_eq!(
        ring.receive(&mut batch, &counters, &mut Budget::new(Budget::RECEIVING), true),
        Ok(Outcome::More)
    );
    let looked = counters.drops(DropReason::RxError);
    assert_eq!(batch.frames.len(), 1);
    assert!(looked * REGIONS <= PIECES, "{looked} chains at once");

    let (mut driver, mut ring) = scattered(&memory, 1, WRITE);
    let bytes = vec![0; VNET_HDR_LEN + 60];
    let frames = [Outgoing::Whole { bytes: &bytes, segments: 1 }; 64];
    let counters = Counters::default();
    ring.transmit(&frames, &counters, &mut Budget::new(Budget::SENDING)).expect("no rule was broken");
    let looked = driver.take_used().len() as u64;
    assert!(looked * REGIONS <= PIECES, "{looked} chains at once");
    assert_eq!(
        counters.tx_frames.get() + counters.drops(DropReason::TxFull),
        64,
        "each frame is counted once"
    );
}
