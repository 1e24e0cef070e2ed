//! Real threads on real memory, for what loom's small worlds leave out: big tables, long histories,
//! evictions.

use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use super::*;

/// Ports of the two learners: a station is only ever heard on these two.
fn ports(n: u64) -> [u16; 2] {
    let port = (n % 4) as u16;
    [port, port + 4]
}

/// Two learners of the same stations on different ports, a reader, and a control side that removes.
fn run(max: u32, stations: u64, ports_number: u32) {
    let fdb = Fdb::new(max);
    fdb.set_ports(ports_number);
    let stop = AtomicBool::new(false);
    let running = || !stop.load(Ordering::Relaxed);
    let started = Instant::now();
    let second = || u32::try_from(started.elapsed().as_millis() / 10).expect("short");
    thread::scope(|scope| {
        for learner in 0..2 {
            let (fdb, second) = (&fdb, &second);
            scope.spawn(move || {
                let mut n = learner;
                while running() {
                    n = (n * 31 + 17) % stations;
                    fdb.hear(n, ports(n)[learner as usize], second());
                }
            });
        }
        scope.spawn(|| {
            let mut n = 0;
            let mut found = 0_u64;
            while running() {
                n = (n + 7) % stations;
                if let Some(port) = fdb.at(n) {
                    assert!(ports(n).contains(&port), "station {n} was never on port {port}");
                    found += 1;
                }
            }
            assert!(found > 0);
        });
        let end = Instant::now() + Duration::from_millis(700);
        let mut n = 0;
        while Instant::now() < end {
            n = (n + 1) % stations;
            fdb.remove(key(n));
            fdb.flush(|key, _| key.raw() % 5 == n % 5);
            for (key, entry) in fdb.iter() {
                let n = key.mac().to_u64() - 0x0200_0000_0000;
                assert!(ports(n).contains(&entry.port.0), "station {n} was never on {:?}", entry.port);
            }
            fdb.expire(Tick(second()), 2);
            let fixed = n % 8;
            if fdb.insert_static(key(fixed), PortId(ports(fixed)[0])).is_ok() {
                let place = fdb.lookup(key(fixed), fdb.hash(key(fixed)));
                assert_eq!(
                    place.map(|entry| (entry.port.0, entry.kind)),
                    Some((ports(fixed)[0], Kind::Static))
                );
                assert!(fdb.remove(key(fixed)));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    fdb.check();
    assert!(fdb.counters().moves > 0);
}

#[test]
fn many_threads_one_table_with_room() {
    run(1_024, 200, 8);
}

#[test]
fn many_threads_one_full_table() {
    run(16, 60, 8);
}

#[test]
fn many_threads_eight_stations() {
    run(64, 8, 8);
}
