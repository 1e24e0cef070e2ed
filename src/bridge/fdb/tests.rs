//! One thread against the specification; `tests/model.rs` against a model, `tests/stress.rs` with many
//! threads.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, reason = "tests")]

use super::*;
use crate::addr::MacAddr;

mod model;
mod stress;

fn key(n: u64) -> Key {
    Key::new(MacAddr::from_u64(0x0200_0000_0000 + n), 0)
}

impl Fdb {
    fn hear(&self, n: u64, port: u16, now: u32) -> Learned {
        self.learn(key(n), self.hash(key(n)), PortId(port), Tick(now))
    }

    fn at(&self, n: u64) -> Option<u16> {
        self.lookup(key(n), self.hash(key(n))).map(|entry| entry.port.0)
    }

    /// No key twice, and all counts agree with what is there. Only while nobody changes anything.
    fn check(&self) {
        let mut entries: Vec<_> = self.iter().collect();
        entries.sort_by_key(|(key, _)| *key);
        assert!(entries.windows(2).all(|pair| pair[0].0 != pair[1].0), "a key twice");
        assert_eq!(self.len() as usize, entries.len());
        assert!(self.len() <= self.max());
        for port in 0..16 {
            let count = entries.iter().filter(|(_, entry)| entry.port.0 == port).count();
            assert_eq!(self.port_len(PortId(port)) as usize, count, "port {port}");
            let is = |entry: &Entry| self.ports.device(entry.port) == PortId(port);
            let count = entries.iter().filter(|(_, entry)| is(entry)).count();
            assert_eq!(self.ports.count_device(PortId(port)) as usize, count, "device {port}");
        }
    }
}

#[test]
fn a_station_is_learned_refreshed_moved_aged_and_forgotten() {
    let fdb = Fdb::new(100);
    assert_eq!((fdb.at(1), fdb.len(), fdb.max()), (None, 0, 100));
    assert_eq!(fdb.hear(1, 1, 10), Learned::Added);
    assert_eq!(fdb.hear(1, 1, 10), Learned::Known);
    assert_eq!(fdb.hear(1, 1, 9), Learned::Known, "a clock behind does not make it older");
    assert_eq!(fdb.hear(1, 1, 11), Learned::Refreshed);
    assert_eq!(fdb.hear(1, 2, 11), Learned::Moved { from: PortId(1) });
    assert_eq!((fdb.at(1), fdb.len()), (Some(2), 1));
    assert_eq!((fdb.port_len(PortId(1)), fdb.port_len(PortId(2))), (0, 1));
    assert_eq!(fdb.hear(2, 1, 20), Learned::Added);
    assert_eq!(fdb.expire(Tick(30), 20), 0, "19 seconds are not 20");
    assert_eq!(fdb.expire(Tick(30), 19), 1, "19 seconds are 19");
    assert_eq!((fdb.at(1), fdb.at(2), fdb.len()), (None, Some(1), 1));
    assert!(fdb.remove(key(2)) && !fdb.remove(key(2)));
    assert!(fdb.is_empty() && fdb.iter().next().is_none());
    assert_eq!(fdb.counters(), Counters { moves: 1, ..Counters::default() });
}

#[test]
fn a_table_looked_through_in_parts_forgets_as_much() {
    let fdb = Fdb::new(1_000);
    (0..1_000).for_each(|n| _ = fdb.hear(n, 0, if n < 600 { 0 } else { 10 }));
    // 1,024 buckets, with a last part that begins again in front.
    let parts: Vec<usize> = (0..11).map(|_| fdb.expire_part(Tick(10), 10, 100)).collect();
    assert_eq!(parts.iter().sum::<usize>(), 600, "{parts:?}");
    assert!(parts.iter().all(|&part| part < 120), "{parts:?}");
    assert_eq!(fdb.len(), 400);
}

#[test]
fn the_same_address_in_two_vlans_is_two_stations() {
    let fdb = Fdb::new(10);
    let keys = [1, 2].map(|vid| Key::new(MacAddr([2, 0, 0, 0, 0, 1]), vid));
    for (key, port) in keys.into_iter().zip([PortId(1), PortId(2)]) {
        assert_eq!(fdb.learn(key, fdb.hash(key), port, Tick(0)), Learned::Added);
    }
    let ports = keys.map(|key| fdb.lookup(key, fdb.hash(key)).map(|entry| entry.port));
    assert_eq!(ports, [Some(PortId(1)), Some(PortId(2))]);
    assert_eq!(fdb.flush(|key, _| key.vid() == 1), 1);
    assert!(fdb.remove(keys[1]));
}

#[test]
fn fixed_entries_neither_move_nor_age_nor_go() {
    let fdb = Fdb::new(4);
    assert_eq!(fdb.hear(1, 1, 0), Learned::Added);
    let heard = Entry { port: PortId(1), kind: Kind::Dynamic, last_seen: Tick(0) };
    assert_eq!(fdb.insert_static(key(1), PortId(2)), Ok(Some(heard)));
    assert_eq!(fdb.insert_local(key(2), PortId(3)), Ok(None));
    assert_eq!(fdb.hear(1, 1, 1), Learned::Refused(Kind::Static));
    assert_eq!(fdb.hear(2, 1, 1), Learned::Refused(Kind::Local));
    assert_eq!(fdb.hear(1, 2, 1), Learned::Known);
    assert_eq!(fdb.expire(Tick(9_999), 0), 0);
    assert_eq!(fdb.insert_static(key(2), PortId(1)), Err(InsertError::Local));
    assert!(matches!(fdb.insert_local(key(1), PortId(1)), Ok(Some(Entry { kind: Kind::Static, .. }))));
    assert_eq!(fdb.counters().conflicts, 2);
    // The third and fourth place go to static entries, at the cost of what was learned.
    assert_eq!([fdb.hear(3, 1, 5), fdb.hear(4, 1, 6)], [Learned::Added; 2]);
    assert_eq!(fdb.insert_static(key(5), PortId(1)), Ok(None));
    assert_eq!((fdb.at(3), fdb.at(4)), (None, Some(1)), "the older one went");
    assert_eq!(fdb.insert_static(key(6), PortId(1)), Ok(None));
    assert_eq!(fdb.insert_static(key(7), PortId(1)), Err(InsertError::Full));
    assert_eq!(fdb.hear(8, 1, 6), Learned::Full);
    assert_eq!(fdb.insert_static(Key::from_raw(0), PortId(1)), Err(InsertError::NotAStation));
    assert_eq!(fdb.learn(Key::from_raw(0), fdb.hash(Key::from_raw(0)), PortId(1), Tick(0)), Learned::Full);
    fdb.check();
}

#[test]
fn nobody_over_their_share_nobody_gives() {
    let fdb = Fdb::new(8);
    fdb.set_ports(2);
    (0..4).for_each(|n| assert_eq!(fdb.hear(n, 1, 0), Learned::Added));
    (4..8).for_each(|n| assert_eq!(fdb.hear(n, 2, 0), Learned::Added));
    assert_eq!(fdb.hear(8, 1, 1), Learned::Full);
    assert_eq!(fdb.hear(9, 3, 1), Learned::Full);
    assert_eq!(fdb.counters(), Counters { full: 2, ..Counters::default() });
    // A third port makes the others' shares smaller: now they are over it.
    fdb.set_ports(3);
    assert_eq!(fdb.hear(9, 3, 2), Learned::Added);
    assert_eq!(fdb.counters().evictions, 1);
    fdb.check();
}

#[test]
fn a_port_that_floods_a_million_addresses_pushes_out_nobody_else() {
    let fdb = Fdb::new(65_536);
    fdb.set_ports(4);
    let base = |port: u64| port << 32;
    for port in 1..4 {
        (0..1_000).for_each(|n| assert_eq!(fdb.hear(base(port) + n, port as u16, 0), Learned::Added));
    }
    for n in 0..1_000_000 {
        let learned = fdb.hear(n, 0, 1 + (n / 100_000) as u32);
        assert_eq!(learned, Learned::Added, "it finds its own entries to recycle");
    }
    assert_eq!(fdb.len(), 65_536);
    for port in 1..4 {
        (0..1_000).for_each(|n| assert_eq!(fdb.at(base(port) + n), Some(port as u16)));
    }
    // Meanwhile others still learn, up to their share (16,384).
    for n in 0..16_000 {
        fdb.hear(1_000_000 + n, 0, 20);
        let learned = fdb.hear(base(1) + n, 1, 20);
        assert_ne!(learned, Learned::Full, "station {n}");
    }
    (0..16_000).for_each(|n| assert_eq!(fdb.at(base(1) + n), Some(1)));
    fdb.check();
}

#[test]
fn remotes_of_a_tunnel_share_as_one_port() {
    let fdb = Fdb::new(64);
    fdb.set_ports(2);
    (2..10).for_each(|remote| fdb.set_device(PortId(remote), PortId(1)));
    // Eight made-up senders, each with more stations than the table takes, turn by turn.
    for n in 0..64 {
        (2..10).for_each(|remote| _ = fdb.hear(u64::from(remote) << 32 | n, remote, 0));
    }
    assert_eq!(fdb.len(), 64);
    (0..32).for_each(|n| assert_eq!(fdb.hear(n, 0, 1), Learned::Added, "station {n} at the local port"));
    for n in 64..128 {
        (2..10).for_each(|remote| _ = fdb.hear(u64::from(remote) << 32 | n, remote, 2));
    }
    assert!((0..32).all(|n| fdb.at(n) == Some(0)), "and it keeps them");
    assert!((2..10).all(|remote| fdb.port_len(PortId(remote)) >= 2), "remotes are alike among themselves");
    fdb.check();
    // What is known of a port counts for the device that it turns out to belong to.
    fdb.set_device(PortId(9), PortId(9));
    fdb.check();
    let other = Fdb::new(128);
    fdb.copy_to(&other);
    other.check();
    assert_eq!(other.ports.count_device(PortId(1)), fdb.ports.count_device(PortId(1)));
}

#[test]
fn remotes_of_a_tunnel_have_one_budget_of_moves() {
    let fdb = Fdb::new(20_000);
    (0..10_000).for_each(|n| _ = fdb.hear(n, 1, 7));
    [3, 4].into_iter().for_each(|remote| fdb.set_device(PortId(remote), PortId(2)));
    let thief = |n: u64| fdb.hear(n, if n.is_multiple_of(2) { 3 } else { 4 }, 7);
    let moved = (0..10_000).filter(|&n| matches!(thief(n), Learned::Moved { .. })).count();
    assert_eq!(moved, fair::MOVES_PER_TICK as usize, "what the victim takes back in the same second");
}

#[test]
fn the_oldest_go_first_when_a_port_recycles_its_own() {
    let fdb = Fdb::new(1_024);
    fdb.set_ports(2);
    let stations = 1_000_000..1_000_100;
    let mut lost = 0;
    for second in 0..60 {
        for n in stations.clone() {
            lost += u32::from(second > 0 && fdb.hear(n, 0, second) == Learned::Added);
        }
        // A new address every five milliseconds: each lives for about four seconds.
        (0..200).for_each(|n| _ = fdb.hear(u64::from(second * 200 + n), 0, second));
    }
    assert!(fdb.counters().evictions > 10_000);
    assert!(lost <= 100 + 60, "of 100 stations that talk every second, {lost} were forgotten in a minute");
}

#[test]
fn moves_are_bounded_for_each_port() {
    let fdb = Fdb::new(10_000);
    (0..5_000).for_each(|n| _ = fdb.hear(n, 1, 7));
    let moved =
        |to, now| (0..5_000).filter(|&n| matches!(fdb.hear(n, to, now), Learned::Moved { .. })).count();
    assert_eq!(moved(2, 7), fair::MOVES_PER_TICK as usize);
    assert_eq!(fdb.counters().moves_limited, 5_000 - u64::from(fair::MOVES_PER_TICK));
    assert_eq!(moved(2, 7), 0);
    assert_eq!(moved(2, 6), 0, "a clock behind brings no second budget");
    assert_eq!(moved(1, 7), fair::MOVES_PER_TICK as usize, "they can all go home");
    assert_eq!(moved(2, 8), fair::MOVES_PER_TICK as usize);
    fdb.check();
}

/// Ticks are compared modulo 2^24: for a port that nothing moved to in the first 97 days, now is "before" its last move.
#[test]
fn moves_are_possible_after_months_without_any() {
    let fdb = Fdb::new(10_000);
    for now in [(1 << 23) - 1, (1 << 23) + 5, (1 << 24) - 1, (3 << 23) + 5] {
        (0..5_000).for_each(|n| _ = fdb.hear(n, 1, now));
        for second in [now + 1, now + 2] {
            let to = (second % 2 + 2) as u16;
            let moved =
                (0..5_000).filter(|&n| matches!(fdb.hear(n, to, second), Learned::Moved { .. })).count();
            assert_eq!(moved, fair::MOVES_PER_TICK as usize, "at second {second}");
        }
        fdb.flush(|_, _| true);
    }
}

#[test]
fn a_table_is_copied_into_a_bigger_and_a_smaller_one() {
    let fdb = Fdb::new(100);
    fdb.set_ports(2);
    (0..80).for_each(|n| _ = fdb.hear(n, 0, n as u32));
    (80..90).for_each(|n| _ = fdb.hear(n, 1, 0));
    fdb.insert_static(key(200), PortId(1)).expect("room");
    let sorted = |fdb: &Fdb| {
        let mut entries: Vec<_> = fdb.iter().collect();
        entries.sort_by_key(|(key, _)| *key);
        entries
    };
    let bigger = Fdb::new(1_000);
    assert_eq!(fdb.copy_to(&bigger), 0);
    assert_eq!(sorted(&bigger), sorted(&fdb));
    assert_eq!(bigger.counters(), fdb.counters());
    let smaller = Fdb::new(30);
    fdb.copy_to(&smaller);
    assert_eq!(smaller.len(), 30);
    assert_eq!(smaller.at(200), Some(1));
    assert!((80..90).all(|n| smaller.at(n) == Some(1)), "port 1 is within its share there too");
    assert_eq!(smaller.counters(), fdb.counters(), "nothing happened to a frame");
    smaller.check();
}

#[test]
fn every_size_holds_as_many_as_it_says() {
    for max in [1, 2, 3, 16, 17, 1_000, 4_096] {
        for seed in 0..20 {
            let fdb = Fdb::with_seed(max, seed);
            for n in 0..u64::from(max) {
                assert_eq!(fdb.hear(n, 0, 0), Learned::Added, "{n} of {max}, seed {seed}");
            }
            assert_eq!(fdb.hear(u64::from(max), 0, 0), Learned::Full);
        }
    }
}

/// As virtual machines have them. With these seeds a single multiplication left some without a place.
#[test]
fn addresses_in_sequence_all_find_room() {
    const STATIONS: u64 = 16_384;
    for seed in [25, 47, 74, 82, 83, 86, 87, 96, 129, 161] {
        for step in [1, 2, 256, 65_536] {
            let fdb = Fdb::with_seed(STATIONS as u32, seed);
            for n in 0..STATIONS {
                let raw = (0x0252_0000_0000 + n * step).to_be_bytes();
                let key = Key::new(MacAddr(*raw.last_chunk().unwrap()), 0);
                let learned = fdb.learn(key, fdb.hash(key), PortId(0), Tick(0));
                assert_eq!(learned, Learned::Added, "{n} in steps of {step}, seed {seed}");
            }
        }
    }
}
