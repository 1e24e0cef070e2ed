//! The Internet checksum (RFC 1071), and finishing one that a sender left half done.
//!
//! The sum is taken over native-order words: a ones' complement sum comes out byte-swapped when its words are, so
//! nothing is swapped on the way (RFC 1071, section 2(B)). The inner loop widens 32-bit words and adds them up in eight
//! 64-bit lanes, which no frame can overflow: plain Rust without a carry, compiled twice, for the baseline and for AVX2,
//! chosen at run time. 65,000 bytes take 0.8 µs. Rejected: etherparse's checksum and any other loop that carries (4.4 µs),
//! 64-bit words whose halves are told apart afterwards (1.2 µs at best, and slow on short frames), and intrinsics (full of
//! `unsafe`, 0.7 µs).
//!
//! SCTP is the exception among partial checksums: Linux marks it the same way (checksum offset 8) but wants a
//! CRC32c (RFC 9260, appendix A), and a veth leaves that to us. [`finish`] knows.

use super::{BadOffload, Gso, Offload};
use crate::wire::layers::{Layers, protocol};
use crate::wire::{ipv4, ipv6, udp};

/// A ones' complement sum in progress.
///
/// Every piece but the last added must have an even length.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum over `bytes`.
    #[inline]
    #[must_use]
    pub fn of(bytes: &[u8]) -> Sum {
        if bytes.len() < LANES_MIN_BYTES {
            return Sum(sum_words(bytes));
        }
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, which is all that the function requires.
            return Sum(unsafe { sum_avx2(bytes) });
        }
        Sum(sum_portable(bytes))
    }

    /// Both sums together.
    #[inline]
    #[must_use]
    pub const fn plus(self, other: Sum) -> Sum {
        Sum(add_carry(self.0, other.0))
    }

    /// With `bytes` added.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Sum {
        self.plus(Sum::of(bytes))
    }

    /// With a 16-bit field of that value added.
    #[inline]
    #[must_use]
    pub const fn word(self, value: u16) -> Sum {
        Sum(add_carry(self.0, u16::from_ne_bytes(value.to_be_bytes()) as u64))
    }

    /// Folded to 16 bits, in transmission order: what a partial checksum field holds.
    #[inline]
    #[must_use]
    pub const fn fold(self) -> [u8; 2] {
        let sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let [a, b, ..] = sum.to_le_bytes();
        u16::from_le_bytes([a, b]).to_ne_bytes()
    }

    /// The checksum of what was summed up, in transmission order.
    #[inline]
    #[must_use]
    pub const fn checksum(self) -> [u8; 2] {
        let [a, b] = self.fold();
        [!a, !b]
    }

    /// The same for UDP, where 0 would mean "no checksum" and is sent as 0xFFFF (RFC 768).
    #[inline]
    #[must_use]
    pub const fn udp_checksum(self) -> [u8; 2] {
        match self.checksum() {
            [0, 0] => [0xff, 0xff],
            checksum => checksum,
        }
    }
}

/// The sum over the pseudo-header of the packet whose IP header `packet` begins with, but for the length (RFC 9293, section 3.1;
/// RFC 768; RFC 8200, section 8.1).
#[inline]
#[must_use]
pub fn pseudo_header(packet: &[u8], ipv4: bool, protocol: u8) -> Sum {
    let addresses = if ipv4 { ipv4::field::ADDRS } else { ipv6::field::ADDRS };
    Sum::of(&packet[addresses]).word(u16::from(protocol))
}

/// Below this, in bytes, vectors cost more than they win.
const LANES_MIN_BYTES: usize = 64;

/// Ones' complement addition.
#[inline]
const fn add_carry(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u64
}

fn sum_portable(bytes: &[u8]) -> u64 {
    sum_lanes(bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(bytes: &[u8]) -> u64 {
    sum_lanes(bytes)
}

/// The one loop; inlined into each of its callers to be compiled for the instructions these may use.
#[inline(always)]
fn sum_lanes(bytes: &[u8]) -> u64 {
    const LANES: usize = 8;
    const WORD: usize = size_of::<u32>();
    let mut lanes = [0_u64; LANES];
    let (chunks, rest) = bytes.as_chunks::<{ LANES * WORD }>();
    for chunk in chunks {
        let (words, _) = chunk.as_chunks::<WORD>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            // No overflow before 2^32 words.
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    lanes.into_iter().fold(sum_words(rest), add_carry)
}

/// For few bytes: 64-bit words with carry.
#[inline]
fn sum_words(bytes: &[u8]) -> u64 {
    const WORD: usize = size_of::<u64>();
    let (words, tail) = bytes.as_chunks::<WORD>();
    let sum = words.iter().fold(0, |sum, word| add_carry(sum, u64::from_ne_bytes(*word)));
    let mut last = [0; WORD];
    last[..tail.len()].copy_from_slice(tail);
    add_carry(sum, u64::from_ne_bytes(last))
}

/// Completes a partial checksum in place and returns what the frame needs from then on: nothing.
///
/// `frame` is one whole frame; bytes behind the IP packet are padding and count, as they do in Linux
/// (`skb_checksum_help`). A frame that needs no checksum is left alone.
///
/// # Errors
/// [`BadOffload::ChecksumRange`] when the field is not inside the frame, [`BadOffload::Unsegmented`] for a frame that
/// needs segmentation first. The frame is unchanged then.
pub fn finish(frame: &mut [u8], offload: &Offload) -> Result<Offload, BadOffload> {
    if offload.gso != Gso::None {
        return Err(BadOffload::Unsegmented);
    }
    if !offload.needs_csum {
        return Ok(*offload);
    }
    let start = usize::from(offload.csum_start);
    let offset = usize::from(offload.csum_offset);
    if start + offset + 2 > frame.len() {
        return Err(BadOffload::ChecksumRange);
    }
    if offload.csum_offset == SCTP_CHECKSUM_OFFSET && is_sctp(frame, start) {
        finish_sctp(&mut frame[start..]);
    } else {
        let sum = Sum::of(&frame[start..]);
        let checksum =
            if offload.csum_offset == udp::CHECKSUM_OFFSET { sum.udp_checksum() } else { sum.checksum() };
        frame[start + offset..][..2].copy_from_slice(&checksum);
    }
    Ok(Offload { csum_valid: true, ..Offload::default() })
}

/// Where SCTP's checksum is, in bytes from the start of its header.
pub(super) const SCTP_CHECKSUM_OFFSET: u16 = 8;

fn is_sctp(frame: &[u8], start: usize) -> bool {
    let window = &frame[..frame.len().min(super::MAX_HEADERS_LEN)];
    Layers::parse(window).is_some_and(|layers| layers.protocol == protocol::SCTP && layers.l4 == start)
}

/// `packet` begins with the SCTP common header and is at least ten bytes long.
fn finish_sctp(packet: &mut [u8]) {
    let Some(field) = packet.get_mut(8..12) else { return };
    field.fill(0);
    let crc = crc32c(packet);
    packet[8..12].copy_from_slice(&crc.to_le_bytes());
}

/// CRC32c (Castagnoli), reflected, as in RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            #[allow(clippy::cast_possible_truncation, reason = "below 256")]
            let mut entry = index as u32;
            let mut bit = 0;
            while bit < 8 {
                entry = if entry & 1 != 0 { entry >> 1 ^ 0x82f6_3b78 } else { entry >> 1 };
                bit += 1;
            }
            table[index] = entry;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, &byte| crc >> 8 ^ TABLE[((crc ^ u32::from(byte)) & 0xff) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 in its own words: add big-endian words, fold, complement.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0_u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).expect("folded")
    }

    #[test]
    fn rfc_1071_example() {
        assert_eq!(Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).fold(), [0xdd, 0xf2]);
    }

    /// RFC 3720, section B.4, and the usual check value.
    #[test]
    fn crc32c_vectors() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    /// The largest sums there can be: nothing overflows.
    #[test]
    fn all_ones() {
        for len in [63, 64, 65, 4096, 65_549, 1 << 20] {
            let bytes = vec![0xff; len];
            assert_eq!(u16::from_be_bytes(Sum::of(&bytes).checksum()), reference(&bytes), "{len}");
            assert_eq!(sum_portable(&bytes) % 0xffff, Sum::of(&bytes).0 % 0xffff, "{len}");
        }
    }

    proptest! {
        #[test]
        fn equals_the_reference(bytes in prop::collection::vec(any::<u8>(), 0..3000), cut in 0_usize..3000) {
            let expected = reference(&bytes);
            prop_assert_eq!(u16::from_be_bytes(Sum::of(&bytes).checksum()), expected);
            prop_assert_eq!(u16::from_be_bytes(Sum(sum_portable(&bytes)).checksum()), expected);
            let (head, tail) = bytes.split_at((cut & !1).min(bytes.len() & !1));
            prop_assert_eq!(u16::from_be_bytes(Sum::of(head).bytes(tail).checksum()), expected);
        }

        #[test]
        fn words_are_fields(value: u16, bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut whole = value.to_be_bytes().to_vec();
            whole.extend(&bytes);
            prop_assert_eq!(Sum::of(&bytes).word(value).fold(), Sum::of(&whole).fold());
        }
    }
}
