//! Explicit congestion notification through a tunnel (RFC 6040): the packet around a frame has the frame's two bits, and a mark that
//! routers put there is passed on to the frame.

use crate::offload::checksum::Sum;
use crate::wire::ipv4;
use crate::wire::layers::Layers;

/// The two bits, in a type of service or traffic class.
pub const MASK: u8 = 0b11;
/// "Not capable."
const NOT_ECT: u8 = 0b00;
/// "Congestion experienced."
const CE: u8 = 0b11;

/// Whether a router marked the packet.
#[inline]
#[must_use]
pub const fn is_congested(tos: u8) -> bool {
    tos & MASK == CE
}

/// Marks a frame, of which these are the first bytes at least; false if its sender would not understand: the router that
/// marked would have dropped it.
#[cold]
#[must_use]
pub fn mark(frame: &mut [u8]) -> bool {
    let Some(layers) = Layers::parse(frame) else { return true };
    let Some(packet) = frame.get_mut(layers.l3..layers.l4) else { return true };
    if layers.ipv4 {
        if packet[1] & MASK == NOT_ECT {
            return false;
        }
        // A header that is broken already is not made to look whole.
        if Sum::of(packet).checksum() == [0, 0] {
            packet[1] |= CE;
            ipv4::fill_checksum(packet);
        }
    } else {
        if packet[1] >> 4 & MASK == NOT_ECT {
            return false;
        }
        packet[1] |= CE << 4;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capable_frames_are_marked() {
        let frame = |ethertype: [u8; 2], ip: &[u8]| [&[2; 12][..], &ethertype, ip, &[0; 20]].concat();
        let v4 =
            |tos| frame([8, 0], &[0x45, tos, 0, 40, 0, 0, 0x40, 0, 64, 253, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let mut capable = v4(0x02);
        ipv4::fill_checksum(&mut capable[14..34]);
        assert!(mark(&mut capable));
        assert_eq!(capable[15], 0x03);
        let header = etherparse::Ipv4Header::from_slice(&capable[14..]).expect("a header").0;
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert!(!mark(&mut v4(0x00)));
        let v6 = |class: u8| {
            let mut ip = [0; 40];
            (ip[0], ip[1], ip[5], ip[6]) = (0x60 | class >> 4, class << 4, 20, 59);
            frame([0x86, 0xdd], &ip)
        };
        let mut capable = v6(0xb9);
        assert!(mark(&mut capable));
        assert_eq!((capable[14], capable[15]), (0x6b, 0xb0));
        assert!(!mark(&mut v6(0xb8)));
        assert!(mark(&mut frame([8, 6], &[])), "what is not IP stays as it is");
        assert!(is_congested(0xbb) && !is_congested(0xb9));
    }
}
