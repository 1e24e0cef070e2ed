//! Checksums and segmentation that a sender left for later.
//!
//! A Linux sender hands over frames with unfinished checksums and of up to 64 KiB, described by a
//! `virtio_net_hdr` (virtio 1.2, section 5.1.6). [`Offload`] is that description, normalised: every frame in
//! the switch carries one. Ports say with [`Capabilities`] what they can take; what a port cannot take is
//! finished here.

/// Kind of segmentation a frame still needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Gso {
    /// None: the frame is one frame.
    #[default]
    None = 0,
    /// TCP over IPv4 (`VIRTIO_NET_HDR_GSO_TCPV4`).
    Tcp4 = 1,
    /// TCP over IPv6 (`VIRTIO_NET_HDR_GSO_TCPV6`).
    Tcp6 = 4,
    /// UDP segmentation, IPv4 or IPv6 by the header (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    Udp = 5,
}

/// What a frame still needs before it can be on a wire.
///
/// Offsets count from the first byte of the Ethernet header and include any VLAN tags in the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offload {
    /// The checksum at `csum_start + csum_offset` holds only the pseudo-header's sum; the sum over
    /// `csum_start..` is missing. Always set when `gso` is not `None`.
    pub needs_csum: bool,
    /// The receiver need not verify the checksum (`VIRTIO_NET_HDR_F_DATA_VALID`).
    pub csum_valid: bool,
    /// Where the checksummed part begins (the TCP or UDP header), in bytes.
    pub csum_start: u16,
    /// Where in it the checksum field is, in bytes.
    pub csum_offset: u16,
    /// Segmentation still to be done.
    pub gso: Gso,
    /// TCP carries CWR that only the first segment may keep (`VIRTIO_NET_HDR_GSO_ECN`).
    pub ecn: bool,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
    /// Length of all headers, in bytes; a hint, 0 when unknown.
    pub hdr_len: u16,
}

/// What a port can take from the switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// Frames with an unfinished checksum.
    pub csum: bool,
    /// TCP over IPv4 of up to 64 KiB.
    pub tso4: bool,
    /// TCP over IPv6 of up to 64 KiB.
    pub tso6: bool,
    /// UDP segmentation, IPv4 and IPv6.
    pub uso: bool,
}
