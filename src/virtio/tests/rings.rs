use std::sync::Arc;

use super::super::Fault;
use super::super::driver::{Driver, INDIRECT, NEXT, USER, WRITE, memory, put_descriptor};
use super::super::memory::GuestMemory;
use super::super::ring::{Access, Budget, CHAIN_MAX, Chain, Found, Likely, Open, Ring, Setup};

const LEN: u64 = 1 << 20;
const DATA: u64 = 0x80000;

fn ring(memory: &Arc<GuestMemory>, size: u16, index: u16, event_idx: bool) -> (Driver, Ring) {
    let driver = Driver::new(memory, 0, size, index);
    let ring = Ring::new(Arc::clone(memory), &driver.setup(index, event_idx)).expect("a ring");
    (driver, ring)
}

pub(crate) fn open(ring: &mut Ring) -> Open<'_> {
    ring.open().expect("mapped")
}

pub(crate) fn look(ring: &mut Ring, access: Access) -> Result<Chain, Fault> {
    let mut found = Found::default();
    ring.open()?.chain(
        0,
        access,
        Likely { header_len: 12, len: 64 },
        &mut found,
        &mut Budget::new(Budget::RECEIVING),
    )?;
    assert_eq!(found.chains.iter().map(|chain| chain.pieces).sum::<usize>(), found.pieces.len());
    Ok(found.chains[0])
}

#[test]
fn chains_go_round_the_ring_and_the_indices_wrap() {
    let memory = memory(&[(0, LEN)]);
    for event_idx in [false, true] {
        let (mut driver, mut ring) = ring(&memory, 8, 65_530, event_idx);
        driver.descriptor(3, DATA, 100, NEXT, 5);
        driver.descriptor(5, DATA + 500, 20, 0, 0);
        for _ in 0..20 {
            assert_eq!(open(&mut ring).waiting(1), Ok(0));
            driver.offer(3);
            assert_eq!(open(&mut ring).waiting(1), Ok(1));
            assert_eq!(look(&mut ring, Access::Read), Ok(Chain { head: 3, len: 120, pieces: 2 }));
            open(&mut ring).take(3).expect("fine");
            open(&mut ring).give_back(3, 7).expect("given back");
            assert!(driver.take_used().is_empty(), "not before it is shown");
            open(&mut ring).show().expect("shown");
            assert_eq!(driver.take_used(), [(3, 7)]);
        }
        assert_eq!(ring.base(), 65_530u16.wrapping_add(20));
    }
}

#[test]
fn a_table_may_hold_a_chain() {
    let memory = memory(&[(0, LEN)]);
    let (mut driver, mut ring) = ring(&memory, 8, 0, true);
    let table = 0x40000;
    put_descriptor(&memory, table, 0, DATA, 12, NEXT, 2);
    put_descriptor(&memory, table, 2, DATA + 64, 60, 0, 0);
    driver.descriptor(1, table, 48, INDIRECT, 0);
    driver.offer(1);
    assert_eq!(open(&mut ring).waiting(1), Ok(1));
    assert_eq!(look(&mut ring, Access::Read), Ok(Chain { head: 1, len: 72, pieces: 2 }));
    // Behind a plain descriptor.
    driver.descriptor(0, DATA + 512, 8, NEXT, 1);
    driver.offer(0);
    open(&mut ring).take(1).expect("fine");
    assert_eq!(look(&mut ring, Access::Read), Ok(Chain { head: 0, len: 80, pieces: 3 }));
}

#[test]
fn memory_of_a_descriptor_may_lie_in_two_regions() {
    let memory = memory(&[(0, LEN), (LEN, LEN)]);
    let (mut driver, mut ring) = ring(&memory, 8, 0, false);
    driver.descriptor(0, LEN - 10, 30, WRITE, 0);
    driver.offer(0);
    assert_eq!(open(&mut ring).waiting(1), Ok(1));
    assert_eq!(look(&mut ring, Access::Write), Ok(Chain { head: 0, len: 30, pieces: 2 }));
}

#[test]
fn kicks_are_switched_off_and_on() {
    let memory = memory(&[(0, LEN)]);
    let (mut driver, mut plain) = ring(&memory, 8, 0, false);
    assert!(driver.wants_kicks());
    assert_eq!(open(&mut plain).listen(false), Ok(false));
    assert!(!driver.wants_kicks());
    driver.offer(0);
    assert_eq!(open(&mut plain).listen(true), Ok(true), "one came while nobody listened");
    assert!(driver.wants_kicks());

    let (mut driver, mut event) = ring(&memory, 8, 100, true);
    assert_eq!(driver.kick_after(), 100);
    open(&mut event).listen(false).expect("fine");
    driver.descriptor(0, DATA, 1, 0, 0);
    driver.offer(0);
    open(&mut event).waiting(1).expect("fine");
    open(&mut event).take(0).expect("fine");
    assert_eq!(driver.kick_after(), 100, "stays behind: no kicks");
    assert_eq!(open(&mut event).listen(true), Ok(false));
    assert_eq!(driver.kick_after(), 101);
}

#[test]
fn drivers_are_told_as_they_want() {
    let memory = memory(&[(0, LEN)]);
    let (driver, mut plain) = ring(&memory, 8, 0, false);
    let give = |ring: &mut Ring, count: u16| {
        (0..count).for_each(|_| open(ring).give_back(0, 0).expect("given back"));
        open(ring).show().expect("shown")
    };
    assert!(!give(&mut plain, 0), "nothing to tell");
    assert!(give(&mut plain, 1));
    driver.set_no_interrupt(true);
    assert!(!give(&mut plain, 1));

    let (driver, mut event) = ring(&memory, 8, 65_534, true);
    driver.set_used_event(65_535);
    assert!(!give(&mut event, 1));
    assert!(give(&mut event, 2), "65,535 to 1 passes it");
    assert!(!give(&mut event, 1), "and is past it");
    driver.set_used_event(4);
    assert!(!give(&mut event, 2));
    assert!(give(&mut event, 1));
}

#[test]
fn impossible_rings_are_refused() {
    let memory = memory(&[(0, LEN)]);
    let good = Driver::new(&memory, 0, 8, 0).setup(0, true);
    let refused =
        |setup: Setup| assert_eq!(Ring::new(Arc::clone(&memory), &setup).err(), Some(Fault::Layout));
    refused(Setup { size: 0, ..good });
    refused(Setup { size: 6, ..good });
    refused(Setup { size: 65_535, ..good });
    for outside in [0, USER - 1, USER + LEN - 8, USER + LEN, u64::MAX] {
        refused(Setup { descriptors: outside, ..good });
        refused(Setup { available: outside, ..good });
        refused(Setup { used: outside, ..good });
    }
    refused(Setup { descriptors: good.descriptors + 1, ..good });
    refused(Setup { available: good.available + 1, ..good });
    refused(Setup { used: good.used + 2, ..good });
}

#[test]
fn broken_rules_are_faults() {
    let memory = memory(&[(0, LEN)]);
    let fault = |make: &dyn Fn(&mut Driver), access: Access| {
        let (mut driver, mut ring) = ring(&memory, 8, 0, true);
        make(&mut driver);
        driver.offer(0);
        open(&mut ring).waiting(1).and_then(|_| look(&mut ring, access)).expect_err("a fault")
    };
    let read = |make: &dyn Fn(&mut Driver)| fault(make, Access::Read);
    assert_eq!(read(&|driver| driver.descriptor(0, LEN, 1, 0, 0)), Fault::Address);
    assert_eq!(read(&|driver| driver.descriptor(0, LEN - 1, 2, 0, 0)), Fault::Address);
    assert_eq!(read(&|driver| driver.descriptor(0, u64::MAX, 2, 0, 0)), Fault::Address);
    assert_eq!(read(&|driver| driver.descriptor(0, 0, u32::MAX as usize, 0, 0)), Fault::Address);
    assert_eq!(read(&|driver| driver.descriptor(0, DATA, 1, WRITE, 0)), Fault::Direction);
    assert_eq!(fault(&|driver| driver.descriptor(0, DATA, 1, 0, 0), Access::Write), Fault::Direction);
    assert_eq!(read(&|driver| driver.descriptor(0, DATA, 1, NEXT, 0)), Fault::Loop);
    assert_eq!(read(&|driver| driver.descriptor(0, DATA, 1, NEXT, 8)), Fault::Index);
    assert_eq!(read(&|driver| driver.offer(9)), Fault::Index);
}

#[test]
fn an_index_that_jumps_is_a_fault() {
    let memory = memory(&[(0, LEN)]);
    for jump in [9, 100, 65_535] {
        let (driver, mut ring) = ring(&memory, 8, 0, false);
        driver.set_index(jump);
        assert_eq!(open(&mut ring).waiting(1), Err(Fault::AvailIndex), "{jump}");
    }
    let (driver, mut ring) = ring(&memory, 8, 0, false);
    driver.set_index(8);
    assert_eq!(open(&mut ring).waiting(1), Ok(8), "full");
}

#[test]
fn impossible_tables_are_faults() {
    let memory = memory(&[(0, LEN)]);
    let table = 0x40000;
    let fault = |len: usize, flags: u16, entry: (u16, u16)| {
        let (mut driver, mut ring) = ring(&memory, 8, 0, true);
        put_descriptor(&memory, table, 0, DATA, 1, entry.0, entry.1);
        driver.descriptor(0, table, len, flags, 1);
        driver.offer(0);
        open(&mut ring).waiting(1).and_then(|_| look(&mut ring, Access::Read)).expect_err("a fault")
    };
    assert_eq!(fault(0, INDIRECT, (0, 0)), Fault::Indirect);
    assert_eq!(fault(15, INDIRECT, (0, 0)), Fault::Indirect);
    assert_eq!(fault(16 * (CHAIN_MAX + 1), INDIRECT, (0, 0)), Fault::Indirect);
    assert_eq!(fault(16, INDIRECT | NEXT, (0, 0)), Fault::Indirect, "a chain ends with its table");
    assert_eq!(fault(16, INDIRECT, (INDIRECT, 0)), Fault::Indirect, "a table in a table");
    assert_eq!(fault(16, INDIRECT, (NEXT, 1)), Fault::Index);
    assert_eq!(fault(32, INDIRECT, (NEXT, 0)), Fault::Loop);
    let (mut driver, _) = ring(&memory, 8, 0, true);
    let setup = Setup { indirect: false, ..driver.setup(0, true) };
    let mut without = Ring::new(Arc::clone(&memory), &setup).expect("a ring");
    driver.descriptor(0, table, 16, INDIRECT, 0);
    driver.offer(0);
    assert_eq!(open(&mut without).waiting(1), Ok(1));
    assert_eq!(look(&mut without, Access::Read), Err(Fault::Indirect), "nobody agreed on tables");
}
