//! VXLAN headers (RFC 7348, section 5).
//!
//! ```text
//!  0 ─ flags ─ 8 ────── reserved ────── 32
//! 32 ─────── VNI ─────── 56 ─ reserved ─ 64
//! ```

/// Length of the header, in bytes.
pub const HEADER_LEN: usize = 8;
/// The port IANA assigned.
pub const PORT: u16 = 4789;
/// Largest network identifier.
pub const VNI_MAX: u32 = (1 << 24) - 1;

/// "The VNI is valid": the one flag there is.
const FLAG_I: u8 = 0x08;

/// The header for a network.
#[must_use]
pub const fn header(vni: u32) -> [u8; HEADER_LEN] {
    let [_, a, b, c] = vni.to_be_bytes();
    [FLAG_I, 0, 0, 0, a, b, c, 0]
}

/// The network and the frame of a datagram. `None` when it is cut short or when flags are set that mean something
/// else than RFC 7348 (Linux and Open vSwitch refuse these too: extensions change what follows).
#[inline]
#[must_use]
pub fn parse(datagram: &[u8]) -> Option<(u32, &[u8])> {
    let (header, frame) = datagram.split_first_chunk::<HEADER_LEN>()?;
    let [flags, _, _, _, a, b, c, _] = *header;
    (flags == FLAG_I).then_some((u32::from_be_bytes([0, a, b, c]), frame))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_in_the_rfc() {
        assert_eq!(header(0x12_3456), [8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        assert_eq!(
            parse(&[8, 1, 2, 3, 0, 0, 5, 9, 0xaa]),
            Some((5, &[0xaa][..])),
            "reserved bits are ignored"
        );
        assert_eq!(parse(&[0, 0, 0, 0, 0, 0, 5, 0, 0xaa]), None, "no valid VNI");
        assert_eq!(parse(&[0x88, 0, 0, 0, 0, 0, 5, 0, 0xaa]), None, "an extension");
        assert_eq!(parse(&[8, 0, 0, 0, 0, 0, 5]), None);
        assert_eq!(parse(&header(5)), Some((5, &[][..])));
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(vni in 0..=VNI_MAX, frame: Vec<u8>) {
            let datagram = [&header(vni)[..], &frame].concat();
            prop_assert_eq!(parse(&datagram), Some((vni, &frame[..])));
        }
    }
}
