use super::*;
use crate::addr::MacAddr;

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
    assert_eq!(fdb.expire(Tick(30), 15), 1);
    assert_eq!((fdb.at(1), fdb.at(2), fdb.len()), (None, Some(1), 1));
    assert!(fdb.remove(key(2)) && !fdb.remove(key(2)));
    assert!(fdb.is_empty() && fdb.iter().next().is_none());
    assert_eq!(fdb.counters(), Counters { moves: 1, ..Counters::default() });
}
