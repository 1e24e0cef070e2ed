//! Drivers that have interrupts off: shown late what they gave, but all of it in the end.

use std::sync::Arc;

use proptest::prelude::*;

use super::super::Fault;
use super::super::driver::{Driver, WRITE, memory};
use super::super::feature::*;
use super::super::inflight::InflightFile;
use super::super::memory::{GuestMemory, Share};
use super::super::net::{HEADER_LEN, NetRing, Outcome};
use super::super::ring::{Budget, Records, Ring, Setup};
use super::rings::open;
use crate::batch::Batch;
use crate::stats::Counters;

const LEN: u64 = 1 << 20;
const DATA: u64 = 0x80000;
const SIZE: u16 = 64;
/// As many chains of a ring of this size are late at least.
const LATE: u16 = 8;
/// After so many looks that find nothing none is.
const LOOKS: usize = 128;
/// Most that are given back between two looks.
const MOST: u16 = 64;

#[derive(Clone, Copy, Debug)]
enum Step {
    GiveBack(u16),
    Look,
    ShowAll,
    Interrupts(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..=MOST).prop_map(Step::GiveBack),
        1 => Just(Step::ShowAll),
        1 => any::<bool>().prop_map(Step::Interrupts),
        2 => Just(Step::Look),
    ]
}

/// A ring, its driver, and how many chains it has given back.
struct Rig {
    driver: Driver,
    ring: Ring,
    given: u16,
}

impl Rig {
    fn new(memory: &Arc<GuestMemory>, size: u16, base: u16, in_order: bool) -> Rig {
        let driver = Driver::new(memory, 0, size, base);
        let setup = Setup { in_order, ..driver.setup(base, false) };
        Rig::of(driver, Ring::new(Arc::clone(memory), &setup))
    }

    fn of(driver: Driver, ring: Result<Ring, Fault>) -> Rig {
        let mut ring = ring.expect("a ring");
        open(&mut ring).listen(false).expect("fine");
        Rig { given: driver.index(), driver, ring }
    }

    /// As far as the driver has room for them.
    fn give_back(&mut self, chains: u16, descriptors: u16) {
        for _ in 0..chains.min((self.driver.size - self.late()) / descriptors) {
            let head = self.given % self.driver.size;
            self.driver.offer(head);
            let mut ring = open(&mut self.ring);
            assert_eq!(ring.waiting(1), Ok(1));
            ring.take(head).expect("fine");
            ring.count_late(descriptors.into());
            ring.give_back_read(head).expect("given back");
            self.given = self.given.wrapping_add(1);
        }
    }

    fn look(&mut self) {
        open(&mut self.ring).show_late().expect("fine");
    }

    /// How many chains the driver has not seen.
    fn late(&self) -> u16 {
        self.given.wrapping_sub(self.driver.used_index())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn what_is_shown_is_what_was_given_back(
        steps in prop::collection::vec(step(), 0..100),
        bits in 0..11u32,
        base in any::<u16>(),
        in_order in any::<bool>(),
    ) {
        let (memory, size) = (memory(&[(0, LEN)]), 1 << bits);
        let least = 64.min(size / 8);
        let mut rig = Rig::new(&memory, size, base, in_order);
        let (mut interrupts, mut seen) = (true, base);
        for step in steps {
            let all = match step {
                Step::GiveBack(chains) => {
                    rig.give_back(chains, 1);
                    rig.look();
                    interrupts
                }
                Step::Look => {
                    rig.look();
                    interrupts
                }
                Step::ShowAll => {
                    open(&mut rig.ring).show().expect("shown");
                    true
                }
                Step::Interrupts(on) => {
                    rig.driver.set_no_interrupt(!on);
                    interrupts = on;
                    false
                }
            };
            prop_assert!(rig.late() < (2 * least + MOST).min(size.div_ceil(2).max(1)));
            prop_assert!(!all || rig.late() == 0);
            let now = rig.driver.used_index();
            let heads = (0..now.wrapping_sub(seen)).map(|n| u32::from(seen.wrapping_add(n) % size));
            let heads: Vec<_> = heads.collect();
            prop_assert!(heads.is_empty() || rig.late() == 0 || rig.late() >= least);
            let entries: Vec<_> = rig.driver.take_used().into_iter().map(|(head, _)| head).collect();
            prop_assert_eq!(entries.len(), heads.len());
            if in_order {
                // The first is for all.
                prop_assert_eq!(entries.first(), heads.last());
            } else {
                prop_assert_eq!(entries, heads);
            }
            seen = now;
        }
    }
}

#[test]
fn a_driver_that_polls_sees_all_but_the_last_few() {
    let memory = memory(&[(0, LEN)]);
    for (size, least) in [(SIZE, LATE), (256, 32), (1024, 64)] {
        for in_order in [false, true] {
            let mut rig = Rig::new(&memory, size, 65_500, in_order);
            rig.driver.set_no_interrupt(true);
            for _ in 0..100 {
                rig.give_back(3, 1);
                rig.look();
            }
            assert!((least..2 * least + 3).contains(&rig.late()), "{} of {size} are late", rig.late());
            // It waits for an interrupt from now on.
            rig.driver.set_no_interrupt(false);
            assert_eq!(open(&mut rig.ring).show_late(), Ok(true), "and is told");
            assert_eq!(rig.late(), 0);
        }
    }
}

#[test]
fn nothing_is_late_for_long() {
    let memory = memory(&[(0, LEN)]);
    let mut rig = Rig::new(&memory, SIZE, 0, true);
    rig.driver.set_no_interrupt(true);
    for chains in [1, 5, LATE, 20] {
        rig.give_back(chains, 1);
        (0..LOOKS).for_each(|_| rig.look());
        assert_eq!(rig.late(), chains, "looks that find nothing are counted from here on");
        rig.look();
        assert_eq!(rig.late(), 0);
    }
    // Nor does what trickles in delay it.
    for _ in 0..LATE - 1 {
        rig.give_back(1, 1);
        (0..LOOKS / 4).for_each(|_| rig.look());
    }
    assert!(rig.late() < LATE - 1);
}

#[test]
fn a_driver_keeps_half_of_its_ring() {
    let memory = memory(&[(0, LEN)]);
    for (chains, descriptors, late) in [(31, 1, 31), (32, 1, 0), (SIZE, 1, 0), (5, 6, 5), (6, 6, 0)] {
        let mut rig = Rig::new(&memory, SIZE, 0, true);
        rig.driver.set_no_interrupt(true);
        rig.give_back(chains, descriptors);
        rig.look();
        assert_eq!(rig.late(), late, "{chains} chains of {descriptors}");
    }
    let mut rig = Rig::new(&memory, 256, 0, false);
    rig.driver.set_no_interrupt(true);
    for _ in 0..1000 {
        rig.give_back(10, 6);
        rig.look();
        assert!(6 * rig.late() < 128);
    }
}

#[test]
fn nothing_is_late_that_the_driver_or_a_record_may_need() {
    let memory = memory(&[(0, LEN)]);
    let driver = Driver::new(&memory, 0, SIZE, 0);
    let with_event = Ring::new(Arc::clone(&memory), &driver.setup(0, true));
    let kept = InflightFile::create(1, SIZE).expect("a file");
    let len = InflightFile::len(1, SIZE);
    let kept = InflightFile::new(&Share::default(), kept, 0, len, 1, SIZE).expect("long enough");
    let records = Records { log: None, inflight: Arc::new(kept).ring(0) };
    let with_record = Ring::recorded(Arc::clone(&memory), &driver.setup(0, false), records);
    for ring in [with_event, with_record] {
        let mut rig = Rig::of(Driver::new(&memory, 0, SIZE, 0), ring);
        rig.driver.set_no_interrupt(true);
        for _ in 0..3 {
            rig.give_back(5, 1);
            rig.look();
            assert_eq!(rig.late(), 0);
        }
    }
}

/// A ring of frames that its driver polls.
fn polled(memory: &Arc<GuestMemory>) -> (Driver, NetRing) {
    let driver = Driver::new(memory, 0, SIZE, 0);
    driver.set_no_interrupt(true);
    let features = VERSION_1 | NET_MRG_RXBUF;
    let ring = NetRing::new(Arc::clone(memory), &driver.setup(0, false), features, None).expect("a ring");
    (driver, ring)
}

fn offer(driver: &mut Driver, frames: u16, len: usize) {
    for _ in 0..frames {
        let head = driver.index() % SIZE;
        driver.descriptor(head, DATA, HEADER_LEN + len, 0, 0);
        driver.offer(head);
    }
}

/// How a worker comes to look no more.
type End = dyn Fn(&mut Driver, &mut NetRing);

fn receive(ring: &mut NetRing, listen: bool) -> Result<Outcome, Fault> {
    let budget = &mut Budget::new(Budget::RECEIVING);
    ring.receive(&mut Batch::default(), &Counters::default(), budget, listen)
}

#[test]
fn who_looks_no_more_has_shown_all() {
    let memory = memory(&[(0, LEN)]);
    let ends: [(&str, &End); 5] = [
        ("waits", &|_, ring| assert_eq!(ring.wait(), Ok(false))),
        ("looks and waits", &|_, ring| assert_eq!(receive(ring, true), Ok(Outcome::Drained))),
        ("leaves", &|_, ring| ring.leave()),
        ("stops", &|_, ring| ring.settle()),
        ("finds a fault", &|driver, ring| {
            driver.set_index(driver.index() + SIZE + 1);
            assert_eq!(receive(ring, false), Err(Fault::AvailIndex));
        }),
    ];
    // A fault that is found while memory is lent does so when that is taken back.
    let (mut driver, mut ring) = polled(&memory);
    offer(&mut driver, 2, 1500);
    driver.descriptor(2, LEN, 1, 0, 0);
    driver.offer(2);
    assert_eq!(receive(&mut ring, false), Err(Fault::Address));
    assert_eq!(driver.used_index(), 0);
    ring.take_back();
    assert_eq!(driver.used_index(), 2);
    for (what, end) in ends {
        // Frames that are copied, and such as are lent.
        for len in [60, 1500] {
            let (mut driver, mut ring) = polled(&memory);
            for frames in [1, 5, 5] {
                offer(&mut driver, frames, len);
                assert_eq!(receive(&mut ring, false), Ok(Outcome::Drained));
                ring.take_back();
            }
            assert!(driver.used_index() < 11, "some are late");
            end(&mut driver, &mut ring);
            assert_eq!(driver.used_index(), 11, "{what}");
            assert_eq!(ring.base(), 11);
        }
    }
}

#[test]
fn what_is_lent_is_not_shown_by_waiting() {
    let memory = memory(&[(0, LEN)]);
    let (mut driver, mut ring) = polled(&memory);
    offer(&mut driver, 3, 1500);
    assert_eq!(receive(&mut ring, true), Ok(Outcome::Drained));
    assert!(ring.is_lending());
    assert_eq!(driver.used_index(), 0);
    ring.take_back();
    assert_eq!(driver.used_index(), 3, "it waits for kicks, so nothing is late");
}

#[test]
fn what_is_written_is_never_late_and_its_buffers_need_no_kick() {
    let memory = memory(&[(0, LEN)]);
    let (mut driver, mut ring) = polled(&memory);
    assert!(driver.wants_kicks());
    for head in 0..2 {
        driver.descriptor(head, DATA, 1526, WRITE, 0);
        driver.offer(head);
    }
    let bytes = [0; 70];
    let frame = crate::frame::Outgoing::Whole { bytes: &bytes, segments: 1 };
    for sent in 1..=2 {
        ring.transmit(&[frame], &Counters::default(), &mut Budget::new(Budget::SENDING)).expect("sent");
        assert_eq!(driver.used_index(), sent);
        assert!(!driver.wants_kicks());
    }
}
