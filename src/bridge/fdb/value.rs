//! The two words of an entry and what they mean.
//!
//! ```text
//! key    63 ───────── MAC address ───────── 16 15 ─── VLAN ─── 0
//! value  63 ─ port ─ 48 47 46 45 kind 44 43 ── tick ── 20 19 ─ fingerprint ─ 0
//! ```
//!
//! Kinds are not zero, so no live value is. A tick is a second of the switch's life modulo 2^24 (194 days);
//! differences are taken as signed, so ages up to 97 days are told apart from "a moment ahead of us", which
//! happens because every thread reads the clock for itself.

use std::num::NonZeroU64;

use crate::addr::{MacAddr, PortId};

/// What a station is known by: its address and its VLAN (0 in a bridge that does not filter).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key(u64);

impl Key {
    /// `vid` is 0 to 4094; the table takes any number.
    #[inline]
    #[must_use]
    pub const fn new(mac: MacAddr, vid: u16) -> Key {
        Key(mac.to_u64() << 16 | vid as u64)
    }

    /// The inverse of [`Key::raw`].
    #[inline]
    #[must_use]
    pub const fn from_raw(raw: u64) -> Key {
        Key(raw)
    }

    /// The address in the upper 48 bits, the VLAN in the lower 16.
    #[inline]
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The address.
    #[inline]
    #[must_use]
    pub const fn mac(self) -> MacAddr {
        MacAddr::from_u64(self.0 >> 16)
    }

    /// The VLAN.
    #[inline]
    #[must_use]
    pub const fn vid(self) -> u16 {
        (self.0 & 0xffff) as u16
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.mac(), self.vid())
    }
}

/// A moment: whole seconds since the switch started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Tick(pub u32);

const TICK_BITS: u32 = 24;
const TICK_MASK: u32 = (1 << TICK_BITS) - 1;

impl Tick {
    /// Seconds from `earlier` to `self`, both modulo 2^24; negative if `earlier` is the later one.
    #[inline]
    #[must_use]
    pub(super) fn since(self, earlier: Tick) -> i32 {
        let shift = 32 - TICK_BITS;
        (self.0.wrapping_sub(earlier.0) << shift).cast_signed() >> shift
    }
}

/// How a station came to be known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// Learned from a frame: moves, ages, may be evicted.
    Dynamic,
    /// Configured: none of that.
    Static,
    /// An address of the switch's own host: like static, and a static entry cannot replace it.
    Local,
}

/// What is known of a station.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Where it is.
    pub port: PortId,
    /// How it came to be known.
    pub kind: Kind,
    /// When it was last heard, modulo 2^24 s; of no meaning unless dynamic. See [`Entry::age_secs`].
    pub last_seen: Tick,
}

impl Entry {
    /// Seconds since it was last heard; 0 for static and local entries, and if `now` is before that.
    #[must_use]
    pub fn age_secs(&self, now: Tick) -> u32 {
        match self.kind {
            Kind::Dynamic => now.since(self.last_seen).max(0).unsigned_abs(),
            Kind::Static | Kind::Local => 0,
        }
    }
}

/// A live slot's second word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Value(NonZeroU64);

impl Value {
    #[inline]
    pub(super) fn new(port: PortId, kind: Kind, seen: Tick, fingerprint: u64) -> Value {
        let (port, seen) = (u64::from(port.0) << 48, u64::from(seen.0 & TICK_MASK) << 20);
        let kind = match kind {
            Kind::Dynamic => const { NonZeroU64::new(1 << 44).unwrap() },
            Kind::Static => const { NonZeroU64::new(2 << 44).unwrap() },
            Kind::Local => const { NonZeroU64::new(3 << 44).unwrap() },
        };
        Value(kind | (port | seen | fingerprint))
    }

    /// `None` for 0: reserved, dying or empty.
    #[inline]
    pub(super) fn from_raw(raw: u64) -> Option<Value> {
        NonZeroU64::new(raw).map(Value)
    }

    #[inline]
    pub(super) fn raw(self) -> u64 {
        self.0.get()
    }

    #[inline]
    pub(super) fn port(self) -> PortId {
        PortId((self.raw() >> 48) as u16)
    }

    #[inline]
    pub(super) fn kind(self) -> Kind {
        match self.raw() >> 44 & 3 {
            2 => Kind::Static,
            3 => Kind::Local,
            _ => Kind::Dynamic,
        }
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "masked")]
    pub(super) fn seen(self) -> Tick {
        Tick((self.raw() >> 20) as u32 & TICK_MASK)
    }

    #[inline]
    pub(super) fn fingerprint(self) -> u64 {
        self.raw() & 0xf_ffff
    }

    #[inline]
    pub(super) fn entry(self) -> Entry {
        Entry { port: self.port(), kind: self.kind(), last_seen: self.seen() }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn words_keep_what_was_put_in() {
        let mac = MacAddr([0x02, 0xff, 0x80, 0, 0, 1]);
        let key = Key::new(mac, 4094);
        assert_eq!((key.mac(), key.vid(), Key::from_raw(key.raw())), (mac, 4094, key));
        for kind in [Kind::Dynamic, Kind::Static, Kind::Local] {
            let value = Value::new(PortId(0xffff), kind, Tick(0xffff_ffff), 0xf_ffff);
            assert_eq!(value.entry(), Entry { port: PortId(0xffff), kind, last_seen: Tick(TICK_MASK) });
            assert_eq!(value.fingerprint(), 0xf_ffff);
            let least = Value::new(PortId(0), kind, Tick(0), 0);
            assert_eq!(Value::from_raw(least.raw()), Some(least), "no live value is zero");
        }
    }

    #[test]
    fn ages_survive_the_wrap_and_a_clock_behind() {
        let seen = Entry { port: PortId(1), kind: Kind::Dynamic, last_seen: Tick(TICK_MASK - 9) };
        assert_eq!(seen.age_secs(Tick(TICK_MASK + 1)), 10);
        assert_eq!(seen.age_secs(Tick(20)), 30);
        assert_eq!(seen.age_secs(Tick(TICK_MASK - 10)), 0);
        assert_eq!(Entry { kind: Kind::Static, ..seen }.age_secs(Tick(20)), 0);
        assert_eq!(Tick(5).since(Tick(7)), -2);
    }
}
