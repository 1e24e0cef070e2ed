//! Every interleaving (up to a number of preemptions) of a few operations on a table of one or two buckets.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --lib --release fdb::loom`
//!
//! Every invariant in `table.rs` has been checked to be one: without the fence, the look for rivals, the
//! fingerprint or either CAS, some test here fails.
//!
//! Buckets have two slots here. The table's words are loom's atomics; counts and statistics are the standard
//! library's, which nothing orders itself by: loom does not interleave there. `LOOM_MAX_PREEMPTIONS`
//! overrides the bounds below.

#![allow(clippy::unwrap_used, reason = "tests")]

use ::loom::sync::Arc;
use ::loom::thread;

use super::*;
use crate::addr::MacAddr;

const NOW: Tick = Tick(5);

fn key(n: u64) -> Key {
    Key::new(MacAddr::from_u64(0x0200_0000_0000 + n), 0)
}

fn table(max: u32, buckets: usize) -> Arc<Fdb> {
    Arc::new(Fdb::build(max, buckets, spread(1)).unwrap())
}

fn hear(fdb: &Fdb, n: u64, port: u16, now: Tick) -> Learned {
    fdb.learn(key(n), fdb.hash(key(n)), PortId(port), now)
}

fn at(fdb: &Fdb, n: u64) -> Option<u16> {
    fdb.lookup(key(n), fdb.hash(key(n))).map(|entry| entry.port.0)
}

/// With all threads done: no key twice, and all counts agree with what is there. Returns the entries.
fn settled(fdb: &Fdb) -> Vec<(Key, Entry)> {
    let mut entries: Vec<_> = fdb.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    assert!(entries.windows(2).all(|pair| pair[0].0 != pair[1].0), "a key twice: {entries:?}");
    assert_eq!(fdb.len() as usize, entries.len());
    for port in 0..4 {
        let count = entries.iter().filter(|(_, entry)| entry.port.0 == port).count();
        assert_eq!(fdb.port_len(PortId(port)) as usize, count, "port {port}");
    }
    entries
}

fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = ::loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(model);
}

#[test]
fn two_workers_insert_one_key() {
    for buckets in [1, 2] {
        explore(4, move || {
            let fdb = table(2, buckets);
            let other = {
                let fdb = fdb.clone();
                thread::spawn(move || hear(&fdb, 1, 1, NOW))
            };
            let mine = hear(&fdb, 1, 2, NOW);
            let theirs = other.join().unwrap();
            let entries = settled(&fdb);
            // Both may have let the frame pass, each seeing the other at work; if one did not, it is there.
            let known = [mine, theirs].iter().any(|learned| *learned != Learned::Known);
            assert_eq!(entries.len(), usize::from(known), "{mine:?} {theirs:?}");
        });
    }
}

/// Without the fence between reserving and looking for rivals, each of the two may miss the other.
#[test]
fn two_workers_insert_one_key_in_different_slots() {
    explore(4, || {
        let fdb = table(3, 1);
        hear(&fdb, 2, 1, NOW);
        let other = {
            let fdb = fdb.clone();
            thread::spawn(move || hear(&fdb, 1, 1, NOW))
        };
        // The first slot becomes free: this thread takes it, or the other one, which may have taken the
        // second.
        fdb.remove(key(2));
        hear(&fdb, 1, 2, NOW);
        other.join().unwrap();
        assert!(settled(&fdb).len() <= 1);
    });
}

#[test]
fn three_workers_insert_one_key() {
    explore(1, || {
        let fdb = table(3, 2);
        let others = [1, 2].map(|port| {
            let fdb = fdb.clone();
            thread::spawn(move || hear(&fdb, 1, port, NOW))
        });
        hear(&fdb, 1, 3, NOW);
        others.into_iter().for_each(|other| _ = other.join().unwrap());
        assert!(settled(&fdb).len() <= 1);
    });
}

#[test]
fn one_inserts_what_another_removes() {
    explore(4, || {
        let fdb = table(2, 1);
        hear(&fdb, 1, 1, NOW);
        let remover = {
            let fdb = fdb.clone();
            thread::spawn(move || fdb.remove(key(1)))
        };
        let learned = hear(&fdb, 1, 2, NOW);
        assert!(remover.join().unwrap(), "it was there throughout");
        match (settled(&fdb).as_slice(), learned) {
            ([], Learned::Moved { .. } | Learned::Known) => {}
            ([(_, entry)], Learned::Added) => assert_eq!(entry.port, PortId(2)),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn one_moves_what_another_removes_and_a_third_looks_up() {
    explore(3, || {
        let fdb = table(2, 1);
        hear(&fdb, 1, 1, NOW);
        let remover = {
            let fdb = fdb.clone();
            thread::spawn(move || fdb.remove(key(1)))
        };
        let mover = {
            let fdb = fdb.clone();
            thread::spawn(move || hear(&fdb, 1, 2, NOW))
        };
        let seen = [at(&fdb, 1), at(&fdb, 1)];
        assert!(seen.iter().all(|port| matches!(port, None | Some(1 | 2))), "{seen:?}");
        assert_ne!(seen, [Some(2), Some(1)], "a move is not undone");
        mover.join().unwrap();
        assert!(remover.join().unwrap());
        settled(&fdb);
    });
}

#[test]
fn a_late_refresh_does_not_touch_the_entry_that_took_the_slot() {
    explore(3, || {
        let fdb = table(2, 1);
        hear(&fdb, 1, 1, NOW);
        let refresher = {
            let fdb = fdb.clone();
            thread::spawn(move || hear(&fdb, 1, 1, Tick(NOW.0 + 1)))
        };
        fdb.remove(key(1));
        let added = hear(&fdb, 2, 2, NOW);
        refresher.join().unwrap();
        let entries = settled(&fdb);
        let second = entries.iter().find(|(k, _)| *k == key(2)).map(|(_, entry)| *entry);
        let expected = Entry { port: PortId(2), kind: Kind::Dynamic, last_seen: NOW };
        // The refresher's insertion, withdrawn and made again, may for a moment seem to use both slots.
        assert_eq!(second, (added != Learned::Full).then_some(expected), "{added:?}");
    });
}

#[test]
fn a_reader_never_takes_one_entry_for_another_in_the_same_slot() {
    explore(4, || {
        let fdb = table(2, 1);
        hear(&fdb, 1, 1, NOW);
        let reader = {
            let fdb = fdb.clone();
            thread::spawn(move || (at(&fdb, 1), at(&fdb, 2)))
        };
        fdb.remove(key(1));
        assert_eq!(hear(&fdb, 2, 2, NOW), Learned::Added);
        let (one, two) = reader.join().unwrap();
        assert!(matches!(one, None | Some(1)) && matches!(two, None | Some(2)), "{one:?} {two:?}");
    });
}

#[test]
fn a_static_entry_stays_whoever_learns_meanwhile() {
    explore(3, || {
        let fdb = table(2, 1);
        let learner = {
            let fdb = fdb.clone();
            thread::spawn(move || hear(&fdb, 1, 1, NOW))
        };
        fdb.insert_static(key(1), PortId(2)).unwrap();
        assert_eq!(at(&fdb, 1), Some(2));
        learner.join().unwrap();
        let [(_, entry)] = settled(&fdb)[..] else { panic!("one entry") };
        assert_eq!((entry.port, entry.kind), (PortId(2), Kind::Static));
    });
}

#[test]
fn a_full_table_stays_within_its_size_under_two_newcomers() {
    explore(3, || {
        let fdb = table(2, 2);
        fdb.set_ports(2);
        // Both places are port 1's, whose share is one.
        hear(&fdb, 1, 1, Tick(1));
        hear(&fdb, 2, 1, Tick(2));
        let other = {
            let fdb = fdb.clone();
            thread::spawn(move || hear(&fdb, 3, 2, NOW))
        };
        hear(&fdb, 4, 3, NOW);
        other.join().unwrap();
        assert!(fdb.len() <= 2);
        settled(&fdb);
    });
}

#[test]
fn a_flush_leaves_nothing_of_what_was_there() {
    explore(3, || {
        let fdb = table(2, 1);
        hear(&fdb, 1, 1, NOW);
        let refresher = {
            let fdb = fdb.clone();
            thread::spawn(move || hear(&fdb, 1, 1, Tick(NOW.0 + 1)))
        };
        let gone = fdb.flush(|_, entry| entry.port == PortId(1));
        let learned = refresher.join().unwrap();
        // It was live until somebody removed it, and only the flush removes. What is learned afterwards may
        // stay, or be met by the same walk in the other slot.
        let again = usize::from(learned == Learned::Added);
        assert!(gone >= 1);
        assert_eq!(settled(&fdb).len(), 1 + again - gone);
    });
}
