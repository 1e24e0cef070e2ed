//! TCP headers (RFC 9293). Read with [`Header`], changed with the setters.

/// Checked view of a header: at least five words, options inside the slice.
pub use etherparse::TcpHeaderSlice as Header;

/// Where the fields are, in bytes from the start of the header.
pub mod field {
    use std::ops::Range;

    /// Sequence number of the first payload byte.
    pub const SEQ: Range<usize> = 4..8;
    /// CWR, ECE, URG, ACK, PSH, RST, SYN, FIN; highest bit first.
    pub const FLAGS: usize = 13;
    /// Checksum over pseudo-header, header and payload.
    pub const CHECKSUM: Range<usize> = 16..18;
}

/// A header without options, in bytes.
pub const MIN_HEADER_LEN: usize = 20;
/// Where the checksum is, in bytes from the start of the header.
pub const CHECKSUM_OFFSET: u16 = 16;

/// Synchronise: the first segment each way.
pub const SYN: u8 = 0x02;
/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Push.
pub const PSH: u8 = 0x08;
/// The acknowledgment number counts.
pub const ACK: u8 = 0x10;
/// Congestion was met on the way (RFC 3168).
pub const ECE: u8 = 0x40;
/// Congestion window reduced (RFC 3168).
pub const CWR: u8 = 0x80;

/// Sets the sequence number.
#[inline]
pub fn set_seq(header: &mut [u8; MIN_HEADER_LEN], seq: u32) {
    header[field::SEQ].copy_from_slice(&seq.to_be_bytes());
}

/// Clears flags.
#[inline]
pub fn clear_flags(header: &mut [u8; MIN_HEADER_LEN], flags: u8) {
    header[field::FLAGS] &= !flags;
}
