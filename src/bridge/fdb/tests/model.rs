//! Random histories, against a plain map that says what must be known.

use hashbrown::HashMap;
use proptest::prelude::*;

use super::*;

const PORTS: u16 = 4;

#[derive(Clone, Debug)]
enum Op {
    Learn { n: u64, port: u16 },
    Static { n: u64, port: u16 },
    Local { n: u64, port: u16 },
    Remove { n: u64 },
    Expire { ageing_secs: u32 },
    FlushPort { port: u16 },
    Ports { number: u32 },
    Device { port: u16, device: u16 },
    Wait { secs: u32 },
}

fn op() -> impl Strategy<Value = Op> {
    let n = 1..60_u64;
    let port = 0..PORTS;
    prop_oneof![
        20 => (n.clone(), port.clone()).prop_map(|(n, port)| Op::Learn { n, port }),
        2 => (n.clone(), port.clone()).prop_map(|(n, port)| Op::Static { n, port }),
        1 => (n.clone(), port.clone()).prop_map(|(n, port)| Op::Local { n, port }),
        2 => n.prop_map(|n| Op::Remove { n }),
        1 => (0..40_u32).prop_map(|ageing_secs| Op::Expire { ageing_secs }),
        1 => port.clone().prop_map(|port| Op::FlushPort { port }),
        1 => (0..6_u32).prop_map(|number| Op::Ports { number }),
        1 => (port.clone(), port.clone()).prop_map(|(port, device)| Op::Device { port, device }),
        4 => (0..10_u32).prop_map(|secs| Op::Wait { secs }),
    ]
}

struct Model {
    entries: HashMap<Key, Entry>,
    max: usize,
    share: usize,
    /// Whose remote each port is.
    devices: [u16; PORTS as usize],
    now: Tick,
}

impl Model {
    fn count(&self, port: PortId) -> usize {
        self.entries.values().filter(|entry| entry.port == port).count()
    }

    fn device(&self, port: PortId) -> u16 {
        self.devices[port.index()]
    }

    fn count_device(&self, port: PortId) -> usize {
        let device = self.device(port);
        self.entries.values().filter(|entry| self.device(entry.port) == device).count()
    }

    fn dynamic(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        self.entries.iter().filter(|(_, entry)| entry.kind == Kind::Dynamic)
    }

    fn entry(&self, port: PortId, kind: Kind) -> Entry {
        let last_seen = if kind == Kind::Dynamic { Tick(self.now.0 & 0xff_ffff) } else { Tick(0) };
        Entry { port, kind, last_seen }
    }

    /// Entries that may go for a station learned on `port`.
    fn victims(&self, port: PortId) -> Vec<Key> {
        let own = self.count_device(port) > self.share;
        let may = |entry: &Entry| {
            if own {
                self.device(entry.port) == self.device(port)
            } else {
                self.count_device(entry.port) > self.share
            }
        };
        self.dynamic().filter(|(_, entry)| may(entry)).map(|(key, _)| *key).collect()
    }

    /// Entries that may go for a configured one: the oldest of the fullest port of the fullest device that has any.
    fn victims_of_fixed(&self) -> Vec<Key> {
        let rank =
            |entry: &Entry| (self.count_device(entry.port), self.count(entry.port), entry.age_secs(self.now));
        let most = self.dynamic().map(|(_, entry)| rank(entry)).max();
        self.dynamic().filter(|(_, entry)| Some(rank(entry)) == most).map(|(key, _)| *key).collect()
    }

    /// Takes out whatever the table no longer has: nothing unless full, else one of `victims`.
    fn evicted(&mut self, fdb: &Fdb, victims: &[Key]) {
        let gone: Vec<Key> =
            self.entries.keys().filter(|&&key| fdb.lookup(key, fdb.hash(key)).is_none()).copied().collect();
        assert_eq!(gone.len(), usize::from(self.entries.len() == self.max), "gone: {gone:?}");
        for key in gone {
            assert!(victims.contains(&key), "{key:?} may not go; these may: {victims:?}");
            self.entries.remove(&key);
        }
    }

    fn learn(&mut self, fdb: &Fdb, key: Key, port: PortId) {
        let learned = fdb.learn(key, fdb.hash(key), port, self.now);
        let fresh = self.entry(port, Kind::Dynamic);
        let Some(&old) = self.entries.get(&key) else {
            let victims = self.victims(port);
            if learned == Learned::Full {
                assert_eq!(self.entries.len(), self.max);
                let entitled = self.count_device(port) != self.share;
                assert!(!entitled || victims.is_empty(), "these may go: {victims:?}");
            } else {
                assert_eq!(learned, Learned::Added);
                self.evicted(fdb, &victims);
                self.entries.insert(key, fresh);
            }
            return;
        };
        let expected = match old.kind {
            Kind::Dynamic if old.port != port => Learned::Moved { from: old.port },
            Kind::Dynamic if old == fresh => Learned::Known,
            Kind::Dynamic => Learned::Refreshed,
            _ if old.port == port => Learned::Known,
            kind => Learned::Refused(kind),
        };
        assert_eq!(learned, expected);
        if old.kind == Kind::Dynamic {
            self.entries.insert(key, fresh);
        }
    }

    fn insert(&mut self, fdb: &Fdb, key: Key, port: PortId, kind: Kind) {
        let inserted = match kind {
            Kind::Local => fdb.insert_local(key, port),
            _ => fdb.insert_static(key, port),
        };
        match self.entries.get(&key) {
            Some(old) if old.kind == Kind::Local && kind == Kind::Static => {
                assert_eq!(inserted, Err(InsertError::Local));
                return;
            }
            Some(old) => assert_eq!(inserted, Ok(Some(*old))),
            None => {
                let victims = self.victims_of_fixed();
                if self.entries.len() == self.max && victims.is_empty() {
                    assert_eq!(inserted, Err(InsertError::Full));
                    return;
                }
                assert_eq!(inserted, Ok(None));
                self.evicted(fdb, &victims);
            }
        }
        self.entries.insert(key, self.entry(port, kind));
    }

    fn retain(&mut self, keep: impl Fn(&Entry) -> bool) -> usize {
        let before = self.entries.len();
        self.entries.retain(|_, entry| keep(entry));
        before - self.entries.len()
    }

    fn apply(&mut self, fdb: &Fdb, op: Op) {
        let now = self.now;
        match op {
            Op::Learn { n, port } => self.learn(fdb, key(n), PortId(port)),
            Op::Static { n, port } => self.insert(fdb, key(n), PortId(port), Kind::Static),
            Op::Local { n, port } => self.insert(fdb, key(n), PortId(port), Kind::Local),
            Op::Remove { n } => assert_eq!(fdb.remove(key(n)), self.entries.remove(&key(n)).is_some()),
            Op::Expire { ageing_secs } => {
                let gone =
                    self.retain(|entry| entry.kind != Kind::Dynamic || entry.age_secs(now) < ageing_secs);
                assert_eq!(fdb.expire(now, ageing_secs), gone);
            }
            Op::FlushPort { port } => {
                let stays = |entry: &Entry| entry.kind != Kind::Dynamic || entry.port.0 != port;
                let gone = self.retain(stays);
                assert_eq!(fdb.flush(|_, entry| !stays(&entry)), gone);
            }
            Op::Ports { number } => {
                fdb.set_ports(number);
                self.share = (self.max / number.max(1) as usize).max(1);
            }
            Op::Device { port, device } => {
                fdb.set_device(PortId(port), PortId(device));
                self.devices[usize::from(port)] = device;
            }
            Op::Wait { secs } => self.now.0 += secs,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_table_knows_what_a_map_knows(
        max in prop_oneof![Just(1_u32), Just(4), Just(16), Just(40), Just(200)],
        seed: u64,
        // Histories that start just before ticks wrap, too.
        start in prop_oneof![Just(0), Just((1 << 24) - 60), Just(u32::MAX >> 1)],
        ops in prop::collection::vec(op(), 1..200),
    ) {
        let fdb = Fdb::with_seed(max, seed);
        let (max, devices) = (max as usize, std::array::from_fn(|port| port as u16));
        let mut model = Model { entries: HashMap::new(), max, share: max, devices, now: Tick(start) };
        for op in ops {
            model.apply(&fdb, op);
            let known: HashMap<Key, Entry> = fdb.iter().collect();
            prop_assert_eq!(&known, &model.entries);
            for (&key, &entry) in &model.entries {
                prop_assert_eq!(fdb.lookup(key, fdb.hash(key)), Some(entry));
            }
            fdb.check();
        }
    }
}
