//! The names things have: MAC addresses, VLAN ids, port ids.
//!
//! Newtypes for what must not be mixed up. All of them are plain values with a readable form.

use std::fmt;
use std::str::FromStr;

/// An IEEE 802 MAC address (EUI-48), in transmission order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);
    /// 00:00:00:00:00:00, which is nobody's address.
    pub const ZERO: MacAddr = MacAddr([0; 6]);

    /// The six octets as the low 48 bits of an integer, first octet highest.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        let b = self.0;
        u64::from_be_bytes([0, 0, b[0], b[1], b[2], b[3], b[4], b[5]])
    }

    /// The inverse of [`MacAddr::to_u64`]; the upper 16 bits are ignored.
    #[must_use]
    pub const fn from_u64(value: u64) -> MacAddr {
        let b = value.to_be_bytes();
        MacAddr([b[2], b[3], b[4], b[5], b[6], b[7]])
    }

    /// Group bit (I/G) set: multicast or broadcast.
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether a station may have this address: neither a group address nor all zeros.
    #[must_use]
    pub const fn is_station(self) -> bool {
        !self.is_multicast() && self.to_u64() != 0
    }

    /// 01-80-C2-00-00-00 … 0F, which IEEE 802.1Q (table 8-1) reserves for the link itself.
    #[must_use]
    pub const fn is_link_local(self) -> bool {
        self.to_u64() & !0xf == 0x0180_c200_0000
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What was wrong with the text of an address or id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not six hexadecimal octets separated by `:` or `-`.
    #[error("'{0}' is not a MAC address: expected six hexadecimal octets such as 02:00:00:00:00:01")]
    Mac(String),
    /// Not a usable VLAN id.
    #[error("'{0}' is not a VLAN id: expected a number from 1 to 4094")]
    Vlan(String),
}

impl FromStr for MacAddr {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseError::Mac(text.to_owned());
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut octets = [0; 6];
        let mut parts = text.split(separator);
        for octet in &mut octets {
            let part = parts.next().ok_or_else(wrong)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(MacAddr(octets))
    }
}

/// A VLAN identifier a frame can belong to, 1 to 4094 (IEEE 802.1Q clause 9.6). 0 and 4095 are reserved.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VlanId(u16);

impl VlanId {
    /// The VLAN every port of a bridge is in unless configured otherwise.
    pub const DEFAULT_PVID: VlanId = VlanId(1);

    /// `None` unless `vid` is in 1…4094.
    #[must_use]
    pub const fn new(vid: u16) -> Option<VlanId> {
        if vid >= 1 && vid <= 4094 { Some(VlanId(vid)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for VlanId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().ok().and_then(VlanId::new).ok_or_else(|| ParseError::Vlan(text.to_owned()))
    }
}

/// A set of VLAN ids, as a bitmap.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet(Box<[u64; 64]>);

impl Default for VlanSet {
    fn default() -> Self {
        VlanSet(Box::new([0; 64]))
    }
}

impl VlanSet {
    /// Adds one id.
    pub fn insert(&mut self, vid: VlanId) {
        self.0[usize::from(vid.0 >> 6)] |= 1 << (vid.0 & 63);
    }

    /// Whether `vid` (any 12-bit number) is in the set.
    #[must_use]
    pub fn contains(&self, vid: u16) -> bool {
        self.0[usize::from(vid >> 6) & 63] >> (vid & 63) & 1 != 0
    }

    /// The ids in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = VlanId> + '_ {
        (1..4095).filter(|&vid| self.contains(vid)).map(VlanId)
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }
}

impl fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl FromIterator<VlanId> for VlanSet {
    fn from_iter<I: IntoIterator<Item = VlanId>>(ids: I) -> Self {
        let mut set = VlanSet::default();
        ids.into_iter().for_each(|vid| set.insert(vid));
        set
    }
}

/// A port's number inside one switch: an index, reused only after every worker has let go of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortId(pub u16);

impl PortId {
    /// As a table index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_read_and_print() {
        let mac: MacAddr = "02:00:5E:10-00:01".replace('-', ":").parse().expect("valid");
        assert_eq!(mac.to_string(), "02:00:5e:10:00:01");
        assert_eq!(MacAddr::from_u64(mac.to_u64()), mac);
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "0200:00:00:00:01",
            "+2:00:00:00:00:01",
            "g2:00:00:00:00:01",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
        assert!(MacAddr::BROADCAST.is_multicast() && !MacAddr::ZERO.is_station() && mac.is_station());
        assert!(MacAddr([1, 0x80, 0xc2, 0, 0, 0xf]).is_link_local());
        assert!(!MacAddr([1, 0x80, 0xc2, 0, 0, 0x10]).is_link_local());
    }

    #[test]
    fn vlan_ids_are_bounded() {
        assert!("0".parse::<VlanId>().is_err() && "4095".parse::<VlanId>().is_err());
        let set: VlanSet = [1, 63, 64, 4094].into_iter().filter_map(VlanId::new).collect();
        assert_eq!(set.iter().map(VlanId::get).collect::<Vec<_>>(), [1, 63, 64, 4094]);
        assert!(!set.contains(2) && !set.is_empty());
    }
}
