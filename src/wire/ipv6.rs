//! IPv6 headers and their extension headers (RFC 8200). Read with [`Header`] and [`Extensions`].

/// Checked view of the extension headers between [`Header`] and the payload.
pub use etherparse::Ipv6ExtensionsSlice as Extensions;
/// Checked view of a header: version 6, 40 bytes.
pub use etherparse::Ipv6HeaderSlice as Header;

/// Where the fields are, in bytes from the start of the header.
pub mod field {
    use std::ops::Range;

    /// Extension headers and payload, in bytes.
    pub const PAYLOAD_LEN: Range<usize> = 4..6;
    /// Source and destination address.
    pub const ADDRS: Range<usize> = 8..40;
}

/// The header without extensions, in bytes.
pub const HEADER_LEN: usize = 40;

/// Sets the length of extension headers and payload, in bytes.
#[inline]
pub fn set_payload_len(header: &mut [u8; HEADER_LEN], len: u16) {
    header[field::PAYLOAD_LEN].copy_from_slice(&len.to_be_bytes());
}
