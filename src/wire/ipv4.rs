//! IPv4 headers (RFC 791). Read with [`Header`], changed with the setters.

use crate::offload::checksum::Sum;

/// Checked view of a header: version 4, at least five words, options inside the slice.
pub use etherparse::Ipv4HeaderSlice as Header;

/// Where the fields are, in bytes from the start of the header.
pub mod field {
    use std::ops::Range;

    /// Header and payload, in bytes.
    pub const TOTAL_LEN: Range<usize> = 2..4;
    /// Identification, the same in every fragment of a datagram.
    pub const ID: Range<usize> = 4..6;
    /// Header checksum.
    pub const CHECKSUM: Range<usize> = 10..12;
    /// Source and destination address.
    pub const ADDRS: Range<usize> = 12..20;
}

/// Where flags and fragment offset are, in bytes from the start of the header.
pub const FRAGMENT: usize = 6;
/// "Don't fragment", in the byte at [`FRAGMENT`].
pub const DF: u8 = 0x40;

/// A header without options, in bytes.
pub const MIN_HEADER_LEN: usize = 20;

/// Sets the length of header and payload, in bytes. The checksum is the caller's.
#[inline]
pub fn set_total_len(header: &mut [u8; MIN_HEADER_LEN], len: u16) {
    header[field::TOTAL_LEN].copy_from_slice(&len.to_be_bytes());
}

/// Sets the identification. The checksum is the caller's.
#[inline]
pub fn set_id(header: &mut [u8; MIN_HEADER_LEN], id: u16) {
    header[field::ID].copy_from_slice(&id.to_be_bytes());
}

/// Sets the header checksum, given in transmission order.
#[inline]
pub fn set_checksum(header: &mut [u8; MIN_HEADER_LEN], checksum: [u8; 2]) {
    header[field::CHECKSUM].copy_from_slice(&checksum);
}

/// Computes and sets the checksum of a whole header, options included. Does nothing to fewer than 20 bytes.
pub fn fill_checksum(header: &mut [u8]) {
    if let Some(fixed) = header.first_chunk_mut() {
        set_checksum(fixed, [0, 0]);
        let checksum = Sum::of(header).checksum();
        header[field::CHECKSUM].copy_from_slice(&checksum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header checksum agrees with etherparse's own, which is computed from parsed values.
    #[test]
    fn header_checksum() {
        let header =
            etherparse::Ipv4Header::new(100, 64, etherparse::IpNumber::TCP, [10, 0, 0, 1], [10, 0, 0, 2])
                .expect("valid");
        let mut bytes = [0; 20];
        bytes.copy_from_slice(&header.to_bytes());
        set_total_len(&mut bytes, 120);
        set_id(&mut bytes, 0x1234);
        fill_checksum(&mut bytes);
        let parsed = Header::from_slice(&bytes).expect("valid");
        assert_eq!((parsed.total_len(), parsed.identification()), (120, 0x1234));
        assert_eq!(parsed.header_checksum(), parsed.to_header().calc_header_checksum());
        fill_checksum(&mut bytes[..19]);
    }
}
