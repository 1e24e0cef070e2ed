//! Ethernet II frames (IEEE 802.3 clause 3) and VLAN tags (IEEE 802.1Q clause 9).
//!
//! A frame is destination, source, any number of four-byte tags, EtherType, payload; there is no frame check
//! sequence here, hardware and kernel keep it to themselves. [`Ethernet::tag`] shows the outermost tag, which is the
//! one a bridge acts on; [`Ethernet::payload`] looks behind all of them.

use crate::addr::MacAddr;

/// Where the fields are, in bytes from the start of the frame.
pub mod field {
    use std::ops::Range;

    /// Destination address.
    pub const DST: Range<usize> = 0..6;
    /// Source address.
    pub const SRC: Range<usize> = 6..12;
    /// EtherType, or the TPID of the outermost tag.
    pub const ETHERTYPE: Range<usize> = 12..14;
    /// Tag control information of the outermost tag, if there is one.
    pub const TCI: Range<usize> = 14..16;
}

/// Both addresses, in bytes: what stands before the tags.
pub const ADDRS_LEN: usize = 12;
/// Addresses and EtherType, in bytes.
pub const HEADER_LEN: usize = 14;
/// Least payload of a frame without tags, in bytes; a shorter one is padded (802.3 clause 3.2.8).
pub const MIN_PAYLOAD_LEN: usize = 46;
/// One VLAN tag, in bytes.
pub const TAG_LEN: usize = 4;
/// Tags that [`Ethernet::payload`] looks behind; Linux's `VLAN_MAX_DEPTH`.
pub const MAX_TAGS: usize = 8;

/// What a frame or tag carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4 (RFC 894).
    pub const IPV4: EtherType = EtherType(0x0800);
    /// ARP (RFC 826).
    pub const ARP: EtherType = EtherType(0x0806);
    /// A customer VLAN tag, C-TAG (IEEE 802.1Q table 9-1).
    pub const VLAN: EtherType = EtherType(0x8100);
    /// A service VLAN tag, S-TAG (IEEE 802.1Q table 9-1).
    pub const QINQ: EtherType = EtherType(0x88a8);
    /// IPv6 (RFC 2464).
    pub const IPV6: EtherType = EtherType(0x86dd);

    /// Whether a tag follows.
    #[inline]
    #[must_use]
    pub const fn is_tag(self) -> bool {
        self.0 == EtherType::VLAN.0 || self.0 == EtherType::QINQ.0
    }

    /// Whether it is an 802.3 length instead of a type (802.3 clause 3.2.6).
    #[inline]
    #[must_use]
    pub const fn is_length(self) -> bool {
        self.0 < 0x600
    }
}

/// A VLAN tag (IEEE 802.1Q clause 9.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    /// What kind of tag: [`EtherType::VLAN`] or [`EtherType::QINQ`].
    pub tpid: EtherType,
    /// Priority (3 bits), drop eligibility (1 bit) and VLAN identifier (12 bits).
    pub tci: u16,
}

impl Tag {
    /// The VLAN identifier, 0 to 4095; 0 says "priority only".
    #[inline]
    #[must_use]
    pub const fn vid(self) -> u16 {
        self.tci & 0xfff
    }

    /// The priority code point, 0 to 7.
    #[inline]
    #[must_use]
    pub const fn pcp(self) -> u8 {
        (self.tci >> 13) as u8
    }

    /// As it stands in a frame.
    #[inline]
    #[must_use]
    pub const fn to_bytes(self) -> [u8; TAG_LEN] {
        let [a, b] = self.tpid.0.to_be_bytes();
        let [c, d] = self.tci.to_be_bytes();
        [a, b, c, d]
    }
}

/// A frame, or the start of one, of at least [`HEADER_LEN`] bytes.
#[derive(Clone, Copy, Debug)]
pub struct Ethernet<'a> {
    bytes: &'a [u8],
    header: &'a [u8; HEADER_LEN],
}

impl<'a> Ethernet<'a> {
    /// `None` when `bytes` is too short for a header.
    #[inline]
    #[must_use]
    pub fn new_checked(bytes: &'a [u8]) -> Option<Ethernet<'a>> {
        Some(Ethernet { bytes, header: bytes.first_chunk()? })
    }

    /// Destination address.
    #[inline]
    #[must_use]
    pub fn dst(&self) -> MacAddr {
        let [a, b, c, d, e, f, ..] = *self.header;
        MacAddr([a, b, c, d, e, f])
    }

    /// Source address.
    #[inline]
    #[must_use]
    pub fn src(&self) -> MacAddr {
        let [_, _, _, _, _, _, a, b, c, d, e, f, ..] = *self.header;
        MacAddr([a, b, c, d, e, f])
    }

    /// EtherType, or the TPID of the outermost tag.
    #[inline]
    #[must_use]
    pub fn ethertype(&self) -> EtherType {
        EtherType(u16::from_be_bytes([self.header[12], self.header[13]]))
    }

    /// The outermost tag. `None` when there is none, or when the frame ends within it.
    #[inline]
    #[must_use]
    pub fn tag(&self) -> Option<Tag> {
        let tpid = self.ethertype();
        match self.bytes.get(field::TCI) {
            Some(&[high, low]) if tpid.is_tag() => Some(Tag { tpid, tci: u16::from_be_bytes([high, low]) }),
            _ => None,
        }
    }

    /// The EtherType behind all tags, and where its payload begins in bytes. `None` when the frame ends within a
    /// tag or has more than [`MAX_TAGS`].
    #[inline]
    #[must_use]
    pub fn payload(&self) -> Option<(EtherType, usize)> {
        let mut ethertype = self.ethertype();
        let mut at = HEADER_LEN;
        while ethertype.is_tag() {
            if at == HEADER_LEN + MAX_TAGS * TAG_LEN {
                return None;
            }
            let &[_, _, high, low] = self.bytes.get(at..)?.first_chunk::<TAG_LEN>()?;
            ethertype = EtherType(u16::from_be_bytes([high, low]));
            at += TAG_LEN;
        }
        Some((ethertype, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_seen_and_skipped() {
        let mut frame = vec![2; 12];
        assert!(Ethernet::new_checked(&frame).is_none());
        frame.extend(Tag { tpid: EtherType::QINQ, tci: 0xe00a }.to_bytes());
        frame.extend(Tag { tpid: EtherType::VLAN, tci: 20 }.to_bytes());
        frame.extend([8, 0]);
        let ethernet = Ethernet::new_checked(&frame).expect("long enough");
        let tag = ethernet.tag().expect("tagged");
        assert_eq!((tag.tpid, tag.vid(), tag.pcp()), (EtherType::QINQ, 10, 7));
        assert_eq!(ethernet.payload(), Some((EtherType::IPV4, 22)));
        assert_eq!(Ethernet::new_checked(&frame[..20]).expect("long enough").payload(), None);
        assert_eq!(Ethernet::new_checked(&frame[..15]).expect("long enough").tag(), None);
    }

    #[test]
    fn a_pile_of_tags_is_bounded() {
        let mut frame = vec![2; 12];
        for _ in 0..MAX_TAGS {
            frame.extend(Tag { tpid: EtherType::VLAN, tci: 1 }.to_bytes());
        }
        frame.extend([0x86, 0xdd, 0, 0]);
        let payload = |frame: &[u8]| Ethernet::new_checked(frame).and_then(|view| view.payload());
        assert_eq!(payload(&frame), Some((EtherType::IPV6, 14 + 4 * MAX_TAGS)));
        frame.splice(12..12, [0x81, 0, 0, 1]);
        assert_eq!(payload(&frame), None);
    }
}
