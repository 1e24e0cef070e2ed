//! UDP headers (RFC 768). Read with [`Header`], changed with the setters.

/// Checked view of a header.
pub use etherparse::UdpHeaderSlice as Header;

/// Where the fields are, in bytes from the start of the header.
pub mod field {
    use std::ops::Range;

    /// Header and payload, in bytes.
    pub const LEN: Range<usize> = 4..6;
    /// Checksum over pseudo-header, header and payload; 0 for none.
    pub const CHECKSUM: Range<usize> = 6..8;
}

/// The header, in bytes.
pub const HEADER_LEN: usize = 8;
/// Where the checksum is, in bytes from the start of the header.
pub const CHECKSUM_OFFSET: u16 = 6;

/// Sets the length of header and payload, in bytes.
#[inline]
pub fn set_len(header: &mut [u8; HEADER_LEN], len: u16) {
    header[field::LEN].copy_from_slice(&len.to_be_bytes());
}
