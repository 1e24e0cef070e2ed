//! A switch that ends between any two values it writes, and another that goes on: each chain is given back once.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::Fault;
use super::super::driver::{Driver, file, memory};
use super::super::inflight::{Again, InflightFile, crash};
use super::super::memory::{GuestMemory, MemoryError, Share};
use super::super::ring::{Access, Records, Ring};
use super::rings::{look, open};

const LEN: u64 = 64 << 10;
const DATA: u64 = 32 << 10;
const SIZE: u16 = 8;
/// Rings begin shortly before their indices wrap.
const BASE: u16 = 65_533;

/// A guest with one ring, and the file that its front end keeps.
struct Guest {
    memory: Arc<GuestMemory>,
    driver: Driver,
    kept: File,
    /// Heads that may be offered.
    free: VecDeque<u16>,
    /// Heads that were, and how often they came back since.
    offered: BTreeMap<u16, u32>,
}

impl Guest {
    fn new() -> Guest {
        let memory = memory(&[(0, LEN)]);
        let driver = Driver::new(&memory, 0, SIZE, BASE);
        (0..SIZE).for_each(|head| driver.descriptor(head, DATA, 100, 0, 0));
        let kept = InflightFile::create(2, SIZE).expect("a file");
        Guest { memory, driver, kept, free: (0..SIZE).collect(), offered: BTreeMap::new() }
    }

    fn record(&self) -> Records {
        Records { log: None, inflight: kept(&self.kept, 2, SIZE).expect("long enough").ring(1) }
    }

    /// A switch takes the ring over. What its front end says of the index is wrong.
    fn ring(&self, base: u16) -> Result<Ring, Fault> {
        Ring::recorded(Arc::clone(&self.memory), &self.driver.setup(base, false), self.record())
    }

    fn offer(&mut self) {
        if let Some(head) = self.free.pop_front() {
            self.offered.insert(head, 0);
            self.driver.offer(head);
        }
    }

    fn collect(&mut self) {
        for (head, _) in self.driver.take_used() {
            let head = u16::try_from(head).expect("a head");
            assert_eq!(self.offered.remove(&head), Some(0), "{head} came back, and was not offered");
            self.free.push_back(head);
        }
    }
}

fn kept(file: &File, rings: u16, size: u16) -> Result<Arc<InflightFile>, MemoryError> {
    let file = file.try_clone().expect("another handle");
    let len = file.metadata().expect("there").len();
    InflightFile::new(&Share::default(), file, 0, len, rings, size).map(Arc::new)
}

/// Takes a chain, if one waits.
fn take(ring: &mut Ring) -> Option<u16> {
    (open(ring).waiting(1).expect("fine") > 0).then(|| {
        let chain = look(ring, Access::Read).expect("a chain");
        open(ring).take(chain.head).expect("recorded");
        chain.head
    })
}

/// What is done next; numbers choose.
#[derive(Clone, Copy, Debug)]
enum Step {
    Offer(u16),
    Take,
    GiveBack(usize),
    Show,
    /// The switch ends during the next step, before it writes the value of this number.
    Crash(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..5u16).prop_map(Step::Offer),
        Just(Step::Take),
        any::<usize>().prop_map(Step::GiveBack),
        Just(Step::Show),
        (0..12u32).prop_map(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1024) })]

    #[test]
    fn each_chain_comes_back_once(steps in prop::collection::vec(step(), 0..80)) {
        let mut guest = Guest::new();
        let mut ring = guest.ring(BASE).expect("a ring");
        // Taken, in the order in which they were.
        let mut held = Vec::new();
        let mut crash_at = None;
        for step in steps {
            let mut work = || match step {
                Step::Take => held.extend(take(&mut ring)),
                Step::GiveBack(which) if !held.is_empty() => {
                    let head = held.remove(which % held.len());
                    open(&mut ring).give_back(head, 0).expect("given back");
                }
                Step::Show => assert!(open(&mut ring).show().is_ok()),
                _ => {}
            };
            match step {
                Step::Crash(at) => crash_at = Some(at),
                Step::Offer(count) => (0..count).for_each(|_| guest.offer()),
                _ => match crash_at.take() {
                    None => work(),
                    Some(at) => {
                        crash::after(at, work);
                        // It ended, then or right after. Its front end knows nothing of where it was.
                        ring = guest.ring(4711).expect("a ring");
                        held.clear();
                    }
                },
            }
            guest.collect();
        }
        // All that is left is worked off by the last.
        ring = guest.ring(4711).expect("a ring");
        while let Some(head) = take(&mut ring) {
            open(&mut ring).give_back(head, 0).expect("given back");
        }
        open(&mut ring).show().expect("shown");
        guest.collect();
        prop_assert!(guest.offered.is_empty(), "{:?} were lost", guest.offered);
        prop_assert_eq!(guest.free.len(), usize::from(SIZE));
    }

    /// Whatever a front end puts into the file, nothing panics, and a ring takes no heads but its own.
    #[test]
    fn a_record_may_say_anything(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        fields in prop::collection::vec((prop_oneof![0..200usize], prop_oneof![0..10u16, any::<u16>()]), 0..20),
        good: bool,
        size in prop_oneof![Just(4u16), Just(8), Just(16)],
    ) {
        let mut guest = Guest::new();
        drop(guest.ring(BASE).expect("a ring"));
        let region = InflightFile::len(2, SIZE) / 2;
        if !good {
            guest.kept.write_all_at(&bytes[..bytes.len().min(region as usize)], region).expect("written");
        }
        for (at, value) in fields {
            let at = (2 * at as u64) % region;
            guest.kept.write_all_at(&value.to_le_bytes(), region + at).expect("written");
        }
        (0..3).for_each(|_| guest.offer());
        let setup = super::super::ring::Setup { size, ..guest.driver.setup(BASE, false) };
        let Ok(mut ring) = Ring::recorded(Arc::clone(&guest.memory), &setup, guest.record()) else {
            return Ok(());
        };
        for _ in 0..4 * SIZE {
            if !open(&mut ring).waiting(1).is_ok_and(|waiting| waiting > 0) {
                break;
            }
            let Ok(chain) = look(&mut ring, Access::Read) else { break };
            prop_assert!(chain.head < size);
            if open(&mut ring).take(chain.head).is_err() {
                break;
            }
            let _ = open(&mut ring).give_back(chain.head, 0);
            let _ = open(&mut ring).show();
        }
        let _ = open(&mut ring).drain();
        ring.forget();
    }
}

#[test]
fn what_was_in_flight_is_taken_again_in_its_order() {
    let mut guest = Guest::new();
    let mut ring = guest.ring(BASE).expect("a ring");
    guest.free = [5, 2, 7, 0, 3].into();
    (0..5).for_each(|_| guest.offer());
    let taken: Vec<_> = (0..4).filter_map(|_| take(&mut ring)).collect();
    assert_eq!(taken, [5, 2, 7, 0]);
    open(&mut ring).give_back(2, 0).expect("given back");
    open(&mut ring).show().expect("shown");
    guest.collect();
    // And 2 is offered again, behind 3.
    guest.offer();
    let mut ring = guest.ring(BASE).expect("a ring");
    assert_eq!(open(&mut ring).waiting(5), Ok(5));
    let again: Vec<_> = (0..5).filter_map(|_| take(&mut ring)).collect();
    assert_eq!(again, [5, 7, 0, 3, 2]);
    // Those that were taken twice keep their places a third time.
    let mut ring = guest.ring(BASE).expect("a ring");
    let again: Vec<_> = (0..5).filter_map(|_| take(&mut ring)).collect();
    assert_eq!(again, [5, 7, 0, 3, 2]);
}

#[test]
fn a_ring_that_stops_in_order_leaves_nothing_behind() {
    let mut guest = Guest::new();
    let mut ring = guest.ring(BASE).expect("a ring");
    (0..4).for_each(|_| guest.offer());
    take(&mut ring);
    take(&mut ring);
    let mut ring = guest.ring(BASE).expect("a ring");
    open(&mut ring).drain().expect("fine");
    assert_eq!(ring.base(), BASE.wrapping_add(2));
    guest.collect();
    assert_eq!(guest.offered.len(), 2, "not those that nobody has taken");
    ring.forget();
    // The next ring may be another one in the same place.
    guest.driver = Driver::new(&guest.memory, 0, SIZE, 100);
    assert_eq!(guest.ring(100).expect("a ring").base(), 100);
}

#[test]
fn records_of_other_rings_are_refused_or_begun_anew() {
    let mut guest = Guest::new();
    let mut ring = guest.ring(BASE).expect("a ring");
    guest.offer();
    take(&mut ring);
    // The guest was started again without a word: its indices are others.
    guest.driver = Driver::new(&guest.memory, 0, SIZE, 0);
    let ring = guest.ring(0).expect("a ring");
    assert_eq!(ring.base(), 0);
    drop(ring);
    // Files of another size, version, or place.
    let region = InflightFile::len(2, SIZE) / 2;
    let spoil = |offset: u64, value: u16| {
        guest.kept.write_all_at(&value.to_le_bytes(), region + offset).expect("written");
    };
    spoil(8, 2);
    assert_eq!(guest.ring(0).err(), Some(Fault::Inflight), "a version of the future");
    spoil(8, 1);
    spoil(10, 16);
    assert_eq!(guest.ring(0).err(), Some(Fault::Inflight), "room for others");
    spoil(10, SIZE);
    assert!(guest.ring(0).is_ok());
    assert!(matches!(kept(&file(100), 2, SIZE), Err(MemoryError::Short { .. })));
    let odd = Arc::new(InflightFile::new(&Share::default(), file(4096), 3, 2000, 2, SIZE).expect("a file"));
    let records = Records { log: None, inflight: odd.ring(0) };
    let odd = Ring::recorded(Arc::clone(&guest.memory), &guest.driver.setup(0, false), records);
    assert_eq!(odd.err(), Some(Fault::Inflight), "not aligned");
    assert!(kept(&guest.kept, 2, SIZE).expect("a file").ring(2).is_none());
    // It cannot be made shorter; one that can be is survived.
    assert!(guest.kept.set_len(0).is_err());
    let short = file(InflightFile::len(2, SIZE));
    let records = Records { log: None, inflight: kept(&short, 2, SIZE).expect("a file").ring(1) };
    let mut ring =
        Ring::recorded(Arc::clone(&guest.memory), &guest.driver.setup(0, false), records).expect("a ring");
    guest.offer();
    short.set_len(0).expect("shorter");
    let head = take(&mut ring).expect("one waits");
    open(&mut ring).give_back(head, 0).expect("given back");
    assert_eq!(open(&mut ring).show(), Err(Fault::Inflight));
}

#[test]
fn heads_to_be_taken_again_come_first() {
    let mut again = Again::new(vec![4, 2]);
    assert_eq!((again.len(), again.get(0), again.get(1), again.get(2)), (2, Some(4), Some(2), None));
    assert_eq!(again.advance(1), 0);
    assert_eq!(again.get(0), Some(2));
    assert_eq!(again.advance(3), 2);
    assert!(again.is_empty());
    assert_eq!(again.len(), 0);
}
