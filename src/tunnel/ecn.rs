//! Explicit congestion notification through a tunnel (RFC 6040): the packet around a frame has the frame's two bits, and a mark that
//! routers put there is passed on to the frame.

use crate::offload::checksum::Sum;
use crate::wire::ipv4;
use crate::wire::layers::Layers;

/// The two bits, in a type of service or traffic class.
pub const MASK: u8 = 0b11;
/// "Not capable."
const NOT_ECT: u8 = 0b00;
/// "Capable", the one that says nothing else.
const ECT_0: u8 = 0b10;
/// "Capable", the other.
const ECT_1: u8 = 0b01;
/// "Congestion experienced."
const CE: u8 = 0b11;

/// Whether a packet's two bits may have to be passed on to the frame in it.
#[inline]
#[must_use]
pub const fn matters(tos: u8) -> bool {
    tos & ECT_1 != 0
}

/// What becomes of the two bits of a frame that came in such a packet (RFC 6040, figure 4). `None`: it goes no further, because a router
/// meant to drop it, and its sender would not understand a mark.
const fn merged(inner: u8, outer: u8) -> Option<u8> {
    match (inner, outer) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (_, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

/// Passes on to a frame, of which these are the first bytes at least, what a packet of this type of service says; false if the frame goes no further.
#[cold]
#[must_use]
pub fn merge(frame: &mut [u8], tos: u8) -> bool {
    let Some(layers) = Layers::parse(frame) else { return true };
    let Some(packet) = frame.get_mut(layers.l3..layers.l4) else { return true };
    let shift = if layers.ipv4 { 0 } else { 4 };
    let before = packet[1] >> shift & MASK;
    let Some(after) = merged(before, tos & MASK) else { return false };
    // A header that is broken already is not made to look whole.
    if before == after || layers.ipv4 && Sum::of(packet).checksum() != [0, 0] {
        return true;
    }
    packet[1] = packet[1] & !(MASK << shift) | after << shift;
    if layers.ipv4 {
        ipv4::fill_checksum(packet);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(tos: u8) -> Vec<u8> {
        let mut ip = [0x45, tos, 0, 40, 0, 0, 0x40, 0, 64, 253, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        ipv4::fill_checksum(&mut ip);
        [&[2; 12][..], &[8, 0], &ip, &[0; 20]].concat()
    }

    fn v6(class: u8) -> Vec<u8> {
        let mut ip = [0; 40];
        (ip[0], ip[1], ip[5], ip[6]) = (0x60 | class >> 4, class << 4, 20, 59);
        [&[2; 12][..], &[0x86, 0xdd], &ip, &[0; 20]].concat()
    }

    #[test]
    fn as_in_the_rfc() {
        // Rows: what the frame says; columns: what the packet says. 4 is "dropped".
        let figure = [[0, 0, 0, 4], [1, 1, 1, 3], [2, 1, 2, 3], [3, 3, 3, 3]];
        for (inner, row) in (0..).zip(figure) {
            for (outer, expected) in (0..).zip(row) {
                for make in [v4, v6] {
                    let mut frame = make(0xb8 | inner);
                    let passes = merge(&mut frame, 0x48 | outer);
                    assert_eq!(passes, expected != 4, "{inner} in {outer}");
                    if passes {
                        assert_eq!(frame, make(0xb8 | expected), "{inner} in {outer}");
                        assert!(matters(outer) || inner == expected);
                    }
                }
            }
        }
    }

    #[test]
    fn the_rest_stays_as_it_is() {
        let mut arp = [&[2; 12][..], &[8, 6], &[0; 28]].concat();
        assert!(merge(&mut arp, CE) && arp.ends_with(&[0; 28]));
        let mut broken = v4(ECT_0);
        broken[24] ^= 1;
        let before = broken.clone();
        assert!(merge(&mut broken, CE));
        assert_eq!(broken, before, "a wrong checksum is not put right");
    }
}
