//! GRE headers (RFC 2784; key and sequence number: RFC 2890).
//!
//! ```text
//!  0 ─ C ─ 0 ─ K ─ S ─ reserved ─ 13 ─ version ─ 16 ─ protocol ─ 32
//!  ──── checksum (C) ──────────────────────────── 16 ─ reserved ─ 32
//!  ──── key (K) ───────────────────────────────────────────────── 32
//!  ──── sequence number (S) ───────────────────────────────────── 32
//! ```
//!
//! The checksum covers the header and everything behind it.

use crate::offload::checksum::Sum;

/// What is behind the header.
pub mod protocol {
    /// An Ethernet frame ("Transparent Ethernet Bridging").
    pub const ETHERNET: u16 = 0x6558;
    /// A mirrored frame behind an ERSPAN header of type II.
    pub const ERSPAN_II: u16 = 0x88be;
    /// A mirrored frame behind an ERSPAN header of type III.
    pub const ERSPAN_III: u16 = 0x22eb;
}

/// GRE's number among IP's protocols.
pub const IP_PROTOCOL: u8 = 47;
/// Length of the longest header, in bytes.
pub const LEN_MAX: usize = header_len(true, true, true);

/// A checksum is present.
const FLAG_C: u8 = 0x80;
/// A key is present.
const FLAG_K: u8 = 0x20;
/// A sequence number is present.
const FLAG_S: u8 = 0x10;
/// RFC 1701's routing, strict source route and the first bit of its recursion count. Who does not implement these must refuse
/// them; the other reserved bits are to be ignored (RFC 2784, section 2.3).
const REFUSED: u8 = 0x4c;
/// In the second byte.
const VERSION: u8 = 0x07;

/// Length of a header with these, in bytes.
#[must_use]
pub const fn header_len(key: bool, sequence: bool, checksum: bool) -> usize {
    4 + 4 * (key as usize + sequence as usize + checksum as usize)
}

/// What a header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// What is behind it, see [`protocol`].
    pub protocol: u16,
    /// Whether it has a checksum.
    pub checksum: bool,
    /// Whose it is.
    pub key: Option<u32>,
    /// Its place among those of its sender.
    pub sequence: Option<u32>,
}

impl Header {
    /// Its length, in bytes.
    #[inline]
    #[must_use]
    pub const fn header_len(&self) -> usize {
        header_len(self.key.is_some(), self.sequence.is_some(), self.checksum)
    }

    /// The header in front of `payload`, which is looked at for the checksum only: the first [`Header::header_len`] of these bytes.
    /// (An array, because copying what has a known length takes no call.)
    #[inline]
    #[must_use]
    pub fn to_bytes(&self, payload: &[&[u8]]) -> [u8; LEN_MAX] {
        let flag = |set, flag| if set { flag } else { 0 };
        let flags = flag(self.checksum, FLAG_C)
            | flag(self.key.is_some(), FLAG_K)
            | flag(self.sequence.is_some(), FLAG_S);
        let [a, b] = self.protocol.to_be_bytes();
        let mut bytes = [0; LEN_MAX];
        bytes[..4].copy_from_slice(&[flags, 0, a, b]);
        let at = if self.checksum { 8 } else { 4 };
        if let Some(key) = self.key {
            bytes[at..at + 4].copy_from_slice(&key.to_be_bytes());
        }
        if let Some(sequence) = self.sequence {
            let at = if self.key.is_some() { at + 4 } else { at };
            bytes[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
        }
        if self.checksum {
            // Zeros behind the header add nothing.
            let checksum = pieces(Sum::of(&bytes), payload).checksum();
            bytes[4..6].copy_from_slice(&checksum);
        }
        bytes
    }
}

/// `sum` with `pieces` added, which follow one another. Behind one of odd length bytes change their places in the words, so
/// the next one's sum comes out swapped (RFC 1071, section 2(B)).
fn pieces(sum: Sum, pieces: &[&[u8]]) -> Sum {
    let mut odd = false;
    pieces.iter().filter(|piece| !piece.is_empty()).fold(sum, |sum, piece| {
        let next = Sum::of(piece);
        let added = if odd { sum.word(u16::from_le_bytes(next.fold())) } else { sum.plus(next) };
        odd ^= piece.len() % 2 == 1;
        added
    })
}

/// The header of a packet, and what is behind it. `None` when it is cut short, of another version, has flags that must not be set,
/// or when its checksum is wrong.
#[inline]
#[must_use]
pub fn parse(packet: &[u8]) -> Option<(Header, &[u8])> {
    let (&[flags, version, a, b], mut rest) = packet.split_first_chunk()?;
    if flags & REFUSED != 0 || version & VERSION != 0 {
        return None;
    }
    let mut word = |flag| {
        if flags & flag == 0 {
            return Some(None);
        }
        let (word, behind) = rest.split_first_chunk()?;
        rest = behind;
        Some(Some(u32::from_be_bytes(*word)))
    };
    let (checksum, key, sequence) = (word(FLAG_C)?.is_some(), word(FLAG_K)?, word(FLAG_S)?);
    if checksum && Sum::of(packet).checksum() != [0, 0] {
        return None;
    }
    Some((Header { protocol: u16::from_be_bytes([a, b]), checksum, key, sequence }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::Index;

    const PLAIN: Header = Header { protocol: protocol::ETHERNET, checksum: false, key: None, sequence: None };

    fn written(header: Header) -> Vec<u8> {
        header.to_bytes(&[])[..header.header_len()].to_vec()
    }

    #[test]
    fn as_in_the_rfcs() {
        let all = Header { checksum: true, key: Some(0x0102_0304), sequence: Some(0x0506_0708), ..PLAIN };
        let payload = [0xab, 0xcd, 0xef];
        // b000 + 6558 + 0102 + 0304 + 0506 + 0708 + abcd + ef00 is 2c039, with the carry c03b; its complement is 3fc4.
        let expected = [0xb0, 0, 0x65, 0x58, 0x3f, 0xc4, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(all.to_bytes(&[&payload]), expected);
        assert_eq!(all.to_bytes(&[&payload[..1], &[], &payload[1..]]), expected, "in odd pieces");
        assert_eq!(parse(&[&expected[..], &payload].concat()), Some((all, &payload[..])));
        assert_eq!(parse(&[&expected[..], &[0xab, 0xcd, 0xee]].concat()), None, "wrong checksum");

        assert_eq!(written(PLAIN), [0, 0, 0x65, 0x58]);
        let key = Header { key: Some(9), ..PLAIN };
        assert_eq!(written(key), [0x20, 0, 0x65, 0x58, 0, 0, 0, 9]);
        let sequence = Header { sequence: Some(9), ..PLAIN };
        assert_eq!(written(sequence), [0x10, 0, 0x65, 0x58, 0, 0, 0, 9]);
        let checksum = Header { checksum: true, ..PLAIN };
        // 8000 + 6558 = e558; its complement is 1aa7.
        assert_eq!(written(checksum), [0x80, 0, 0x65, 0x58, 0x1a, 0xa7, 0, 0]);
    }

    #[test]
    fn what_must_be_zero() {
        let taken = |flags, version| parse(&[flags, version, 0x65, 0x58]) == Some((PLAIN, &[][..]));
        assert!(taken(0, 0));
        assert!(taken(0x03, 0xf8), "to be ignored");
        for refused in [0x40, 0x08, 0x04] {
            assert!(!taken(refused, 0), "{refused:#x}");
        }
        for version in 1..8 {
            assert!(!taken(0, version), "version {version}; 1 is PPTP's");
        }
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            (protocol, checksum, key, sequence) in any::<(u16, bool, Option<u32>, Option<u32>)>(),
            payload in any::<Vec<u8>>(),
            (a, b) in any::<(Index, Index)>(),
            spoilt in any::<Option<(Index, u8)>>(),
        ) {
            let header = Header { protocol, checksum, key, sequence };
            let (a, b) = (a.index(payload.len() + 1), b.index(payload.len() + 1));
            let (a, b) = (a.min(b), a.max(b));
            let bytes = header.to_bytes(&[&payload[..a], &payload[a..b], &payload[b..]]);
            let mut packet = [&bytes[..header.header_len()], &payload].concat();
            prop_assert_eq!(parse(&packet), Some((header, &payload[..])));
            for cut in 0..header.header_len() {
                prop_assert_eq!(parse(&packet[..cut]), None);
            }
            if let (true, Some((at, value))) = (checksum, spoilt) {
                // Anywhere but in the flags, one byte changed is a wrong checksum.
                let at = 2 + at.index(packet.len() - 2);
                prop_assume!(packet[at] != value);
                packet[at] = value;
                prop_assert_eq!(parse(&packet), None);
            }
        }

        #[test]
        fn any_bytes_are_taken_or_refused(packet: Vec<u8>) {
            if let Some((header, payload)) = parse(&packet) {
                prop_assert!(packet.ends_with(payload));
                prop_assert_eq!(packet.len() - payload.len(), header.header_len());
            }
        }
    }
}
