//! The forwarding database beside `hashbrown`, single-threaded: what sharing it without a lock costs, or does
//! not.
//!
//! Every element is one operation on one station, in random order. `frame` is what a bridge does for a frame,
//! learn its source and look up its destination; `batch` is the same for 64 frames at a time, hashed and
//! prefetched first as the pipeline does. hashbrown has no prefetch, and a lock or a shard around it would
//! come on top.

#![allow(missing_docs, clippy::disallowed_methods, reason = "a bench")]

use std::hash::BuildHasher;
use std::hint::black_box;
use std::sync::RwLock;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use vswitch::addr::{MacAddr, PortId};
use vswitch::bridge::fdb::{Fdb, Hash, Key, Learned, Tick};

const SIZES: [u32; 3] = [64, 65_536, 1 << 20];
const BATCH: usize = 64;
const NOW: Tick = Tick(100);

fn port(n: u64) -> PortId {
    PortId((n % 8) as u16)
}

/// Stations with addresses as vendors give them out: a few prefixes, then counting up.
fn key(n: u64) -> Key {
    Key::new(MacAddr::from_u64(0x0200_5e00_0000 + ((n % 4) << 24) + n / 4), 1 + (n % 3) as u16)
}

/// Station numbers in an order no cache can foresee, a power of two of them.
fn order(stations: u32) -> Vec<(Key, PortId)> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let length = stations.next_power_of_two().max(4096);
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let n = (state >> 8) % u64::from(stations);
            (key(n), port(n))
        })
        .collect()
}

fn fdb(stations: u32) -> Fdb {
    let fdb = Fdb::new(stations);
    for n in 0..u64::from(stations) {
        assert_eq!(fdb.learn(key(n), fdb.hash(key(n)), port(n), NOW), Learned::Added);
    }
    fdb
}

/// Like a learning table for one thread: port and tick by key.
type Map = HashMap<u64, (PortId, u32)>;

fn map(stations: u32) -> Map {
    (0..u64::from(stations)).map(|n| (key(n).raw(), (port(n), NOW.0))).collect()
}

struct Table {
    entries: HashTable<(u64, PortId, u32)>,
    hasher: DefaultHashBuilder,
}

impl Table {
    fn new(stations: u32) -> Table {
        let hasher = DefaultHashBuilder::default();
        let mut entries = HashTable::with_capacity(stations as usize);
        for n in 0..u64::from(stations) {
            let raw = key(n).raw();
            entries.insert_unique(hasher.hash_one(raw), (raw, port(n), NOW.0), |e| hasher.hash_one(e.0));
        }
        Table { entries, hasher }
    }

    fn find(&self, key: Key) -> Option<PortId> {
        self.entries.find(self.hasher.hash_one(key.raw()), |e| e.0 == key.raw()).map(|e| e.1)
    }
}

/// One pass over `order` a call.
fn each(order: &[(Key, PortId)], mut what: impl FnMut(Key, PortId)) {
    for &(key, port) in order {
        what(black_box(key), port);
    }
}

fn learn_map(map: &mut Map, key: Key, port: PortId) {
    match map.get_mut(&key.raw()) {
        Some(entry) if *entry == (port, NOW.0) => {}
        Some(entry) => *entry = (port, NOW.0),
        None => _ = map.insert(key.raw(), (port, NOW.0)),
    }
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup");
    for stations in SIZES {
        let order = order(stations);
        group.throughput(Throughput::Elements(order.len() as u64));
        let fdb = fdb(stations);
        group.bench_with_input(BenchmarkId::new("fdb", stations), &order, |b, order| {
            b.iter(|| each(order, |key, _| _ = black_box(fdb.lookup(key, fdb.hash(key)))));
        });
        let map = map(stations);
        group.bench_with_input(BenchmarkId::new("hashmap", stations), &order, |b, order| {
            b.iter(|| each(order, |key, _| _ = black_box(map.get(&key.raw()))));
        });
        let table = Table::new(stations);
        group.bench_with_input(BenchmarkId::new("hashtable", stations), &order, |b, order| {
            b.iter(|| each(order, |key, _| _ = black_box(table.find(key))));
        });
        group.bench_with_input(BenchmarkId::new("fdb-miss", stations), &order, |b, order| {
            b.iter(|| {
                each(order, |key, _| {
                    let key = Key::from_raw(key.raw() | 1 << 63);
                    black_box(fdb.lookup(key, fdb.hash(key)));
                });
            });
        });
    }
    group.finish();
}

fn learn(c: &mut Criterion) {
    let mut group = c.benchmark_group("learn-known");
    for stations in SIZES {
        let order = order(stations);
        group.throughput(Throughput::Elements(order.len() as u64));
        let fdb = fdb(stations);
        group.bench_with_input(BenchmarkId::new("fdb", stations), &order, |b, order| {
            b.iter(|| each(order, |key, port| _ = black_box(fdb.learn(key, fdb.hash(key), port, NOW))));
        });
        let mut map = map(stations);
        group.bench_with_input(BenchmarkId::new("hashmap", stations), &order, |b, order| {
            b.iter(|| each(order, |key, port| learn_map(&mut map, black_box(key), port)));
        });
    }
    group.finish();
}

/// 64 frames: hash and prefetch all, then learn and look up each.
fn batch(fdb: &Fdb, frames: &[(Key, PortId)], back: &[(Key, PortId)]) -> u64 {
    let mut hashes = [(Hash::default(), Hash::default()); BATCH];
    for ((hash, from), to) in hashes.iter_mut().zip(frames).zip(back) {
        *hash = (fdb.hash(from.0), fdb.hash(to.0));
        fdb.prefetch(hash.0);
        fdb.prefetch(hash.1);
    }
    let mut sum = 0;
    for ((hash, from), to) in hashes.iter().zip(frames).zip(back) {
        black_box(fdb.learn(from.0, hash.0, from.1, NOW));
        sum += fdb.lookup(to.0, hash.1).map_or(0, |entry| u64::from(entry.port.0));
    }
    sum
}

fn frame(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    for stations in SIZES {
        let order = order(stations);
        let back: Vec<_> = order.iter().rev().copied().collect();
        group.throughput(Throughput::Elements(order.len() as u64));
        let fdb = fdb(stations);
        group.bench_with_input(BenchmarkId::new("fdb", stations), &order, |b, order| {
            b.iter(|| {
                for (from, to) in order.iter().zip(&back) {
                    black_box(fdb.learn(from.0, fdb.hash(from.0), from.1, NOW));
                    black_box(fdb.lookup(to.0, fdb.hash(to.0)));
                }
            });
        });
        group.bench_with_input(BenchmarkId::new("fdb-batch", stations), &order, |b, order| {
            b.iter(|| {
                for (from, to) in order.chunks_exact(BATCH).zip(back.chunks_exact(BATCH)) {
                    black_box(batch(&fdb, from, to));
                }
            });
        });
        let mut map = map(stations);
        group.bench_with_input(BenchmarkId::new("hashmap", stations), &order, |b, order| {
            b.iter(|| {
                for (from, to) in order.iter().zip(&back) {
                    learn_map(&mut map, black_box(from.0), from.1);
                    black_box(map.get(&to.0.raw()));
                }
            });
        });
    }
    group.finish();
}

/// What is not the common case: each operation by itself.
fn slow(c: &mut Criterion) {
    let mut group = c.benchmark_group("slow");
    group.throughput(Throughput::Elements(1));
    let table = fdb(65_536);
    let order = order(65_536);
    let mut at = 0;
    let mut now = NOW.0;
    let mut next = || {
        at = (at + 1) % order.len();
        now += u32::from(at == 0);
        (order[at], Tick(now))
    };
    group.bench_function("refresh", |b| {
        b.iter(|| {
            let ((key, port), now) = next();
            black_box(table.learn(key, table.hash(key), port, now))
        });
    });
    // The table is full and the port over its share: each made-up address replaces one.
    table.set_ports(64);
    let mut fake = 1 << 40;
    group.bench_function("flood-own", |b| {
        b.iter(|| {
            fake += 1;
            let key = Key::from_raw(fake << 16);
            black_box(table.learn(key, table.hash(key), PortId(0), Tick(now)))
        });
    });
    // All eight ports have just their share: looked for, refused.
    table.set_ports(8);
    group.bench_function("flood-refused", |b| {
        b.iter(|| {
            fake += 1;
            let key = Key::from_raw(fake << 16);
            black_box(table.learn(key, table.hash(key), PortId(0), Tick(now)))
        });
    });
    group.bench_function("add-remove", |b| {
        let table = Fdb::new(65_536);
        b.iter(|| {
            fake += 1;
            let key = Key::from_raw(fake << 16);
            black_box(table.learn(key, table.hash(key), PortId(0), Tick(now)));
            table.remove(key)
        });
    });
    group.throughput(Throughput::Elements(65_536));
    group.bench_function("expire-walk", |b| b.iter(|| black_box(table.expire(Tick(now), 300))));
    group.finish();
}

/// The same work by one and by two threads on one table; the best of both shows what sharing costs. Beside it
/// the plain answer, `hashbrown` behind a read-write lock, which every lookup has to write to.
fn shared(c: &mut Criterion) {
    let mut group = c.benchmark_group("shared");
    let order = order(65_536);
    group.throughput(Throughput::Elements(order.len() as u64));
    let table = fdb(65_536);
    let locked = RwLock::new(map(65_536));
    for threads in [1_u64, 2] {
        group.bench_function(BenchmarkId::new("fdb-learn", threads), |b| {
            b.iter_custom(|times| {
                in_parallel(threads, times, || {
                    each(&order, |key, port| _ = black_box(table.learn(key, table.hash(key), port, NOW)));
                })
            });
        });
        group.bench_function(BenchmarkId::new("rwlock-hashmap-get", threads), |b| {
            b.iter_custom(|times| {
                in_parallel(threads, times, || {
                    each(&order, |key, _| {
                        black_box(locked.read().map(|map| map.get(&key.raw()).copied()).ok());
                    });
                })
            });
        });
    }
    group.finish();
}

/// Time until the last of `threads` has done `work` so many times.
fn in_parallel(threads: u64, times: u64, work: impl Fn() + Sync) -> Duration {
    let run = || {
        let start = Instant::now();
        (0..times).for_each(|_| work());
        start.elapsed()
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or(Duration::MAX)).max().unwrap_or_default()
    })
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20);
    targets = lookup, learn, frame, slow, shared
}
criterion_main!(benches);
