//! Pages that we write are marked, all of them and no other.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::Fault;
use super::super::dirty::{DirtyLog, RingLog};
use super::super::driver::{Driver, NEXT, WRITE, file, memory, read, write};
use super::super::feature::*;
use super::super::memory::{GuestMemory, MemoryError, Share};
use super::super::net::{HEADER_LEN, NetRing};
use super::super::ring::{Budget, Records, Ring};
use super::rings::open;
use crate::batch::Batch;
use crate::frame::Outgoing;
use crate::offload::VNET_HDR_LEN;
use crate::stats::Counters;

const PAGE: u64 = 4096;
/// Two regions, with a hole between.
const REGIONS: [(u64, u64); 2] = [(0, 256 << 10), (1 << 20, 256 << 10)];
const DATA: u64 = 64 << 10;
/// Bytes of a log for both.
const LOG_LEN: u64 = ((1 << 20) + (256 << 10)) / PAGE / 8;

fn handle(file: &File) -> File {
    file.try_clone().expect("another handle")
}

fn log(file: &File, len: u64) -> Arc<DirtyLog> {
    Arc::new(DirtyLog::new(&Share::default(), handle(file), 0, len).expect("a log"))
}

/// What is marked, as a front end takes it.
fn take_marked(file: &File, len: u64) -> BTreeSet<u64> {
    let mut bytes = vec![0; usize::try_from(len).expect("small")];
    file.read_exact_at(&mut bytes, 0).expect("read");
    file.write_all_at(&vec![0; bytes.len()], 0).expect("written");
    let marked = |bit: &u64| bytes[usize::try_from(bit / 8).expect("small")] & 1 << (bit % 8) != 0;
    (0..8 * len).filter(marked).collect()
}

fn pages(addr: u64, len: u64) -> impl Iterator<Item = u64> {
    let end = if len == 0 { addr / PAGE } else { (addr + len - 1) / PAGE + 1 };
    addr / PAGE..end
}

fn snapshot(memory: &GuestMemory) -> Vec<(u64, Vec<u8>)> {
    let all = REGIONS.iter().flat_map(|&(start, len)| (start..start + len).step_by(4096));
    all.map(|addr| (addr / PAGE, read(memory, addr, 4096))).collect()
}

fn records(log: &Arc<DirtyLog>, buffers: bool, used: Option<u64>) -> Records {
    let log = Some(RingLog { log: Arc::clone(log), buffers, used });
    Records { log, inflight: None }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn marks_are_those_of_a_model(
        writes in prop::collection::vec((0..40 * PAGE, 0..3 * 4096usize), 0..20),
        len in 1..8u64,
    ) {
        let file = file(len);
        let log = log(&file, len);
        let mut model = BTreeSet::new();
        for (addr, bytes) in writes {
            let touched: Vec<u64> = pages(addr, bytes as u64).collect();
            let fits = touched.iter().all(|&page| page < 8 * len);
            prop_assert_eq!(log.mark(addr, bytes), if fits { Ok(()) } else { Err(Fault::Log) });
            model.extend(touched.into_iter().filter(|_| fits));
        }
        prop_assert_eq!(take_marked(&file, len), model);
    }

    /// Whatever changed in the guest's memory is marked, and nothing that was not given to us to write.
    #[test]
    fn all_that_a_ring_writes_is_marked(
        buffers in prop::collection::vec((any::<bool>(), 0..190u64, 0..4096u64, 30..6000usize), 16),
        frames in prop::collection::vec((1..9000usize, any::<u8>()), 1..12),
        event_idx: bool,
        merges: bool,
    ) {
        let memory = memory(&REGIONS);
        let features = VERSION_1
            | if event_idx { RING_EVENT_IDX } else { 0 }
            | if merges { NET_MRG_RXBUF } else { 0 };
        // The rings are at 0 and 16 KiB.
        let (mut receive, mut transmit) =
            (Driver::new(&memory, 0, 16, 65_530), Driver::new(&memory, 16 << 10, 16, 65_530));
        let used = |driver: &Driver| driver.used_addr();
        let mut allowed: BTreeSet<u64> = pages(used(&receive), 6 + 8 * 16).collect();
        for (n, &(second, page, offset, len)) in (0..).zip(&buffers) {
            let start = if second { REGIONS[1].0 } else { DATA };
            let room = if second { 60 } else { 46 };
            let addr = start + PAGE * (page % room) + offset;
            receive.descriptor(n, addr, len, WRITE, 0);
            receive.offer(n);
            allowed.extend(pages(addr, len as u64));
        }
        let bits = file(LOG_LEN);
        let log = log(&bits, LOG_LEN);
        let recorded = |driver: &Driver| NetRing::recorded(
            Arc::clone(&memory),
            &driver.setup(65_530, event_idx),
            features,
            None,
            records(&log, true, Some(used(driver))),
        );
        let before = snapshot(&memory);
        let mut ring = recorded(&receive).expect("a ring");
        for (len, byte) in frames {
            let bytes = [vec![0; VNET_HDR_LEN], vec![byte | 1; len]].concat();
            ring.transmit(&[Outgoing::Whole { bytes: &bytes, segments: 1 }; 2], &Counters::default(), &mut Budget::new(Budget::SENDING)).expect("fine");
        }
        let marked = take_marked(&bits, LOG_LEN);
        for ((page, old), (_, new)) in before.iter().zip(snapshot(&memory)) {
            prop_assert!(*old == new || marked.contains(page), "page {page} changed");
        }
        prop_assert!(marked.is_subset(&allowed), "{marked:?} of {allowed:?}");

        // What a guest sends is not written, but that it was taken is.
        transmit.descriptor(0, DATA, HEADER_LEN + 60, 0, 0);
        write(&memory, DATA, &[0; HEADER_LEN + 60]);
        transmit.offer(0);
        let mut ring = recorded(&transmit).expect("a ring");
        ring.receive(&mut Batch::default(), &Counters::default(), &mut Budget::new(Budget::RECEIVING), true).expect("fine");
        let marked = take_marked(&bits, LOG_LEN);
        prop_assert_eq!(marked, pages(used(&transmit), 6 + 8 * 16).collect::<BTreeSet<_>>());
        prop_assert_eq!(transmit.take_used(), [(0, 0)]);
    }
}

#[test]
fn only_what_is_asked_for_is_marked() {
    let memory = memory(&REGIONS);
    let send = |records: Records| {
        let mut driver = Driver::new(&memory, 0, 8, 0);
        driver.descriptor(0, DATA, 20, WRITE | NEXT, 1);
        driver.descriptor(1, DATA + 2 * PAGE, 4096, WRITE, 0);
        driver.offer(0);
        let mut ring =
            NetRing::recorded(Arc::clone(&memory), &driver.setup(0, true), VERSION_1, None, records)?;
        let bytes = [0; VNET_HDR_LEN + 60];
        let whole = Outgoing::Whole { bytes: &bytes, segments: 1 };
        ring.transmit(&[whole], &Counters::default(), &mut Budget::new(Budget::SENDING))
    };
    let bits = file(LOG_LEN);
    let log = log(&bits, LOG_LEN);
    let marked = || take_marked(&bits, LOG_LEN);
    send(records(&log, true, None)).expect("fine");
    assert_eq!(marked(), [16, 18].into());
    // Where the front end says that the used ring is, which need not be where the guest has it.
    send(records(&log, false, Some(40 * PAGE))).expect("fine");
    assert_eq!(marked(), [40].into());
    send(Records::default()).expect("fine");
    assert_eq!(marked(), [].into());
    // Nowhere at all.
    assert_eq!(send(records(&log, false, Some(8 * PAGE * LOG_LEN))), Err(Fault::Log));
    assert_eq!(send(records(&log, false, Some(u64::MAX - 3))), Err(Fault::Log));
    assert_eq!(send(records(&log, false, Some(8 * PAGE * LOG_LEN - 69))), Err(Fault::Log));
}

#[test]
fn a_log_that_is_too_short_stops_the_ring() {
    let memory = memory(&REGIONS);
    let short = file(4);
    let mut driver = Driver::new(&memory, 0, 8, 0);
    driver.descriptor(0, REGIONS[1].0, 4096, WRITE, 0);
    driver.offer(0);
    let setup = driver.setup(0, false);
    let recorded =
        |records: Records| NetRing::recorded(Arc::clone(&memory), &setup, VERSION_1, None, records);
    let bytes = [0; VNET_HDR_LEN + 60];
    let frames = [Outgoing::Whole { bytes: &bytes, segments: 1 }];
    let mut ring = recorded(records(&log(&short, 4), true, None)).expect("a ring");
    assert_eq!(
        ring.transmit(&frames, &Counters::default(), &mut Budget::new(Budget::SENDING)),
        Err(Fault::Log)
    );
    assert!(driver.take_used().is_empty());
    // Nor one that shrinks under us.
    let bits = file(LOG_LEN);
    let mut ring = recorded(records(&log(&bits, LOG_LEN), true, None)).expect("a ring");
    bits.set_len(0).expect("shorter");
    assert_eq!(
        ring.transmit(&frames, &Counters::default(), &mut Budget::new(Budget::SENDING)),
        Err(Fault::Log)
    );
}

#[test]
fn impossible_logs_are_refused() {
    let refused = |offset: u64, len: u64| {
        DirtyLog::new(&Share::default(), file(8192), offset, len).expect_err("refused")
    };
    assert!(matches!(refused(0, 8193), MemoryError::Short { .. }));
    assert!(matches!(refused(8000, 500), MemoryError::Short { .. }));
    assert!(matches!(refused(0, 0), MemoryError::Range(..)));
    assert!(matches!(refused(u64::MAX - 1, 100), MemoryError::Range(..)));
    let disk = File::open("/proc/self/exe").expect("there");
    assert!(matches!(
        DirtyLog::new(&Share::default(), disk, 0, 8),
        Err(MemoryError::NoMemory | MemoryError::Map(_))
    ));
    // An offset within a page is fine.
    let bits = file(8192);
    let log = DirtyLog::new(&Share::default(), handle(&bits), 5000, 10).expect("a log");
    log.mark(79 * PAGE, 1).expect("in it");
    assert_eq!(log.mark(80 * PAGE, 1), Err(Fault::Log));
    assert_eq!(log.mark(u64::MAX, 2), Err(Fault::Log));
    assert_eq!(take_marked(&bits, 8192), [8 * 5000 + 79].into());
}

#[test]
fn whether_kicks_are_wanted_is_marked() {
    let memory = memory(&REGIONS);
    for event_idx in [false, true] {
        let bits = file(LOG_LEN);
        let log = log(&bits, LOG_LEN);
        let driver = Driver::new(&memory, 0, 8, 0);
        let setup = driver.setup(0, event_idx);
        let records = records(&log, false, Some(driver.used_addr()));
        let mut ring = Ring::recorded(Arc::clone(&memory), &setup, records).expect("a ring");
        assert_eq!(take_marked(&bits, LOG_LEN), [0].into());
        open(&mut ring).listen(false).expect("fine");
        // With the event index nothing is written to stop them.
        assert_eq!(take_marked(&bits, LOG_LEN).len(), usize::from(!event_idx));
        open(&mut ring).listen(true).expect("fine");
        assert_eq!(take_marked(&bits, LOG_LEN), [0].into());
    }
}

#[test]
fn a_log_without_room_for_what_is_late_stops_the_ring_that_waits() {
    let memory = memory(&REGIONS);
    let mut driver = Driver::new(&memory, 0, 64, 0);
    driver.set_no_interrupt(true);
    let bits = file(LOG_LEN);
    // For the used ring's flags and index, but for no entry.
    let records = records(&log(&bits, LOG_LEN), false, Some(8 * PAGE * LOG_LEN - 4));
    let setup = driver.setup(0, false);
    let mut ring = NetRing::recorded(Arc::clone(&memory), &setup, VERSION_1, None, records).expect("a ring");
    let look = |ring: &mut NetRing| {
        let budget = &mut Budget::new(Budget::RECEIVING);
        ring.receive(&mut Batch::default(), &Counters::default(), budget, false).expect("not shown yet");
    };
    look(&mut ring);
    driver.descriptor(0, DATA, HEADER_LEN + 60, 0, 0);
    driver.offer(0);
    look(&mut ring);
    assert_eq!(ring.wait(), Err(Fault::Log));
    assert_eq!((ring.fault(), ring.wait()), (Some(Fault::Log), Err(Fault::Log)));
}
