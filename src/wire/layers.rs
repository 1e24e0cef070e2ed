//! Where in a frame the network and transport headers begin.
//!
//! One walk over Ethernet, any tags, IPv4 or IPv6 with extension headers. It needs the headers only, not the
//! payload, so it works on the header window of a frame whose rest is elsewhere.

use super::ethernet::{EtherType, Ethernet};
use super::{ipv4, ipv6};

/// Transport protocols (IANA's protocol numbers).
pub mod protocol {
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv4 in IP (RFC 2003).
    pub const IPV4: u8 = 4;
    /// IPv6 in IP (RFC 2473).
    pub const IPV6: u8 = 41;
    /// GRE (RFC 2784).
    pub const GRE: u8 = 47;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// An IP packet's outline. Offsets are bytes from the start of the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layers {
    /// IPv4 if true, else IPv6.
    pub ipv4: bool,
    /// Where the IP header begins.
    pub l3: usize,
    /// Where the transport header begins; it may lie beyond the bytes that were looked at.
    pub l4: usize,
    /// The transport protocol: one of [`protocol`], or another.
    pub protocol: u8,
    /// The packet's length from `l3` on as its header declares it, in bytes; `None` where that field is 0, which
    /// means "more than 64 KiB", or "not filled in".
    pub ip_len: Option<usize>,
    /// A fragment: its payload does not start with, or is not all of, the transport protocol's packet.
    pub fragment: bool,
    /// IPv6 extension headers stand between the IP and the transport header.
    pub extensions: bool,
}

impl Layers {
    /// `None` when this is not IP or when its headers are cut short or contradict themselves.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Layers> {
        let (ethertype, l3) = Ethernet::new_checked(frame)?.payload()?;
        let packet = frame.get(l3..)?;
        match ethertype {
            EtherType::IPV4 => Layers::ipv4(packet, l3),
            EtherType::IPV6 => Layers::ipv6(packet, l3),
            _ => None,
        }
    }

    /// Of an IPv4 packet that begins at `l3` of its frame.
    pub(crate) fn ipv4(packet: &[u8], l3: usize) -> Option<Layers> {
        let header = ipv4::Header::from_slice(packet).ok()?;
        let ip_len = usize::from(header.total_len());
        let header_len = header.slice().len();
        if ip_len != 0 && ip_len < header_len {
            return None;
        }
        Some(Layers {
            ipv4: true,
            l3,
            l4: l3 + header_len,
            protocol: header.protocol().0,
            ip_len: (ip_len != 0).then_some(ip_len),
            fragment: header.is_fragmenting_payload(),
            extensions: false,
        })
    }

    /// Of an IPv6 packet that begins at `l3` of its frame.
    pub(crate) fn ipv6(packet: &[u8], l3: usize) -> Option<Layers> {
        let header = ipv6::Header::from_slice(packet).ok()?;
        let (extensions, protocol, _) =
            ipv6::Extensions::from_slice(header.next_header(), packet.get(ipv6::HEADER_LEN..)?).ok()?;
        let payload_len = usize::from(header.payload_length());
        let extensions_len = extensions.slice().len();
        if payload_len != 0 && payload_len < extensions_len {
            return None;
        }
        Some(Layers {
            ipv4: false,
            l3,
            l4: l3 + ipv6::HEADER_LEN + extensions_len,
            protocol: protocol.0,
            ip_len: (payload_len != 0).then_some(ipv6::HEADER_LEN + payload_len),
            fragment: extensions.is_fragmenting_payload(),
            extensions: extensions_len != 0,
        })
    }
}
