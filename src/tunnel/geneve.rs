//! Geneve headers (RFC 8926, section 3.4).
//!
//! ```text
//!  0 ─ version ─ 2 ─ options ─ 8 ─ O ─ C ─ reserved ─ 16 ─ protocol ─ 32
//! 32 ──────────────── VNI ──────────────── 56 ──────── reserved ────── 64
//! ```
//!
//! We send no options and know none. Those of others are skipped, unless they are critical: then the packet means something
//! that we would not see, and the RFC wants it dropped.

use super::gre::protocol;

/// Length of the header without options, in bytes.
pub const HEADER_LEN: usize = 8;
/// The port IANA assigned.
pub const PORT: u16 = 6081;
/// Largest network identifier.
pub const VNI_MAX: u32 = (1 << 24) - 1;

/// Length of the options, in words; the two bits beside it are the version.
const OPTIONS: u8 = 0x3f;
/// A control packet: for the endpoint itself, not for those behind it.
const FLAG_O: u8 = 0x80;
/// There are critical options.
const FLAG_C: u8 = 0x40;
/// An option whose type begins with this bit is critical.
const CRITICAL: u8 = 0x80;
/// An option's length, in words behind its own header.
const OPTION_LEN: u8 = 0x1f;
/// In bytes: what lengths count, and an option's header.
const WORD: usize = 4;

/// The header for a network.
#[inline]
#[must_use]
pub const fn header(vni: u32) -> [u8; HEADER_LEN] {
    let [_, a, b, c] = vni.to_be_bytes();
    let [protocol, bridging] = protocol::ETHERNET.to_be_bytes();
    [0, 0, protocol, bridging, a, b, c, 0]
}

/// The network and the frame of a datagram. `None` when it is cut short, of another version, a control packet, no Ethernet frame,
/// when its options are critical or their lengths do not add up. Reserved bits are ignored (section 3.4).
#[inline]
#[must_use]
pub fn parse(datagram: &[u8]) -> Option<(u32, &[u8])> {
    let (header, rest) = datagram.split_first_chunk::<HEADER_LEN>()?;
    let [lengths, flags, protocol @ .., a, b, c, _] = *header;
    if lengths & !OPTIONS != 0
        || flags & (FLAG_O | FLAG_C) != 0
        || protocol != protocol::ETHERNET.to_be_bytes()
    {
        return None;
    }
    let (options, frame) = rest.split_at_checked(usize::from(lengths & OPTIONS) * WORD)?;
    ignorable(options).then_some((u32::from_be_bytes([0, a, b, c]), frame))
}

/// Whether options can be skipped: whole ones, none of them critical (section 3.5).
fn ignorable(mut options: &[u8]) -> bool {
    while let Some((&[_, _, kind, len], rest)) = options.split_first_chunk::<WORD>() {
        let Some(next) = rest.get(usize::from(len & OPTION_LEN) * WORD..) else { return false };
        if kind & CRITICAL != 0 {
            return false;
        }
        options = next;
    }
    options.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// A packet with these flags and options, for network 5.
    fn packet(flags: u8, options: &[u8], frame: &[u8]) -> Vec<u8> {
        let words = u8::try_from(options.len() / WORD).unwrap();
        [&[words, flags, 0x65, 0x58, 0, 0, 5, 0], options, frame].concat()
    }

    #[test]
    fn as_in_the_rfc() {
        assert_eq!(header(0x12_3456), [0, 0, 0x65, 0x58, 0x12, 0x34, 0x56, 0]);
        assert_eq!(parse(&header(5)), Some((5, &[][..])));
        assert_eq!(
            parse(&[0, 0x3f, 0x65, 0x58, 0, 0, 5, 9, 0xaa]),
            Some((5, &[0xaa][..])),
            "reserved bits are ignored"
        );
        assert_eq!(parse(&[0x40, 0, 0x65, 0x58, 0, 0, 5, 0]), None, "version 1");
        assert_eq!(parse(&[0x80, 0, 0x65, 0x58, 0, 0, 5, 0]), None, "version 2");
        assert_eq!(parse(&[0, 0x80, 0x65, 0x58, 0, 0, 5, 0]), None, "a control packet");
        assert_eq!(parse(&[0, 0x40, 0x65, 0x58, 0, 0, 5, 0]), None, "critical options that we do not know");
        assert_eq!(parse(&[0, 0, 0x08, 0x00, 0, 0, 5, 0]), None, "IPv4 inside");
        assert_eq!(parse(&[0, 0, 0x65, 0x58, 0, 0, 5]), None, "cut short");
    }

    #[test]
    fn options_are_skipped_when_they_can_be() {
        let taken = |options: &[u8]| parse(&packet(0, options, &[0xaa])).is_some();
        assert!(taken(&[1, 2, 0x03, 0]), "without data");
        assert!(taken(&[1, 2, 0x03, 1, 9, 9, 9, 9, 1, 2, 0x04, 0]), "two");
        assert!(taken(&[1, 2, 0x03, 0xe0]), "reserved bits");
        assert!(taken(&[0; 252]), "as many as fit");
        assert!(!taken(&[1, 2, 0x83, 0]), "critical, though nobody said so");
        assert!(!taken(&[1, 2, 0x03, 0, 1, 2, 0x83, 0]), "the second is critical");
        assert!(!taken(&[1, 2, 0x03, 1]), "longer than all of them");
        assert!(!taken(&[1, 2, 0x03, 2, 9, 9, 9, 9]));
        assert_eq!(parse(&[1, 0, 0x65, 0x58, 0, 0, 5, 0, 1, 2, 3]), None, "options cut short");
        assert_eq!(parse(&packet(FLAG_C, &[1, 2, 0x83, 0], &[0xaa])), None);
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            vni in 0..=VNI_MAX,
            options in vec((any::<u16>(), 0..CRITICAL, 0_u8..4), 0..16),
            frame in any::<Vec<u8>>(),
        ) {
            let datagram = [&header(vni)[..], &frame].concat();
            prop_assert_eq!(parse(&datagram), Some((vni, &frame[..])));

            let option = |(class, kind, len): (u16, u8, u8)| {
                let [a, b] = class.to_be_bytes();
                [vec![a, b, kind, len], vec![0x5a; usize::from(len) * WORD]].concat()
            };
            let options: Vec<u8> = options.into_iter().flat_map(option).collect();
            prop_assume!(options.len() <= usize::from(OPTIONS) * WORD);
            let datagram = packet(0, &options, &frame);
            prop_assert_eq!(parse(&datagram), Some((5, &frame[..])));
        }

        #[test]
        fn any_bytes_are_taken_or_refused(datagram: Vec<u8>) {
            if let Some((vni, frame)) = parse(&datagram) {
                prop_assert!(vni <= VNI_MAX && datagram.ends_with(frame));
            }
        }
    }
}
