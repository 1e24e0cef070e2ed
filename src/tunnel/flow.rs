//! What of a frame decides how the packet around it is sent: its flow, whether it may be fragmented, its type of service.

use crate::bridge::vlan::TPID_8021Q;
use crate::frame::TAG_LEN;

/// A frame from outside, so to speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// The same for all frames of a flow: of its addresses and, for what is neither fragmented nor has options, its ports.
    pub hash: u16,
    /// Routers must not fragment it: IPv6, and IPv4 with DF.
    pub whole: bool,
    /// Its type of service or traffic class; `None` if it is not IP.
    pub tos: Option<u8>,
}

impl Flow {
    /// Of a frame with these addresses and what follows them.
    #[inline]
    #[must_use]
    pub fn of(addresses: &[u8], rest: &[u8]) -> Flow {
        let mut hash = mix(mix(1, addresses), &addresses[addresses.len().min(4)..]);
        // With its tag in place or apart from it, a frame is of the same flow.
        let rest = if rest.starts_with(&TPID_8021Q.to_be_bytes()) {
            rest.get(TAG_LEN..).unwrap_or_default()
        } else {
            rest
        };
        let (mut whole, mut tos) = (false, None);
        match rest {
            // IPv4: addresses, and the ports behind a plain header.
            [0x08, 0x00, 0x45, class, _, _, _, _, fragment, offset, ..] => {
                (whole, tos) = (fragment & 0x40 != 0, Some(*class));
                hash = mix(hash, rest.get(14..).unwrap_or_default());
                if (fragment & 0x3f, *offset) == (0, 0) && has_ports(rest.get(11)) {
                    hash = mix(hash, rest.get(18..).unwrap_or_default());
                }
            }
            // With options: the addresses are those of the frame.
            [0x08, 0x00, version, class, _, _, _, _, fragment, ..] if version >> 4 == 4 => {
                (whole, tos) = (fragment & 0x40 != 0, Some(*class));
            }
            [0x86, 0xdd, first, second, ..] if first >> 4 == 6 => {
                (whole, tos) = (true, Some(first << 4 | second >> 4));
                for at in [10, 18, 26, 34] {
                    hash = mix(hash, rest.get(at..).unwrap_or_default());
                }
                if has_ports(rest.get(8)) {
                    let ports = rest.get(42..46).and_then(|ports| ports.first_chunk());
                    let ports = u64::from(ports.map_or(0, |ports| u32::from_ne_bytes(*ports)));
                    hash = mix(hash, &ports.to_ne_bytes());
                }
            }
            _ => {}
        }
        #[allow(clippy::cast_possible_truncation, reason = "the upper 16 bits")]
        Flow { hash: (hash >> 48) as u16, whole, tos }
    }
}

#[inline]
fn mix(hash: u64, bytes: &[u8]) -> u64 {
    let word = bytes.first_chunk().map_or(0, |chunk| u64::from_ne_bytes(*chunk));
    (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

fn has_ports(protocol: Option<&u8>) -> bool {
    protocol.is_some_and(|protocol| matches!(protocol, 6 | 17 | 132))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADDRESSES: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

    fn udp4(ports: [u8; 4], class: u8, fragment: u8) -> Vec<u8> {
        let ip = [0x45, class, 0, 28, 0, 0, fragment, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        [&[8, 0][..], &ip, &ports, &[0, 8, 0, 0]].concat()
    }

    #[test]
    fn ports_tell_flows_apart_and_tags_do_not() {
        let flow = |rest: &[u8]| Flow::of(&ADDRESSES, rest);
        let (one, other) = (udp4([0, 1, 0, 2], 0xb9, 0x40), udp4([0, 1, 0, 3], 0, 0));
        assert_ne!(flow(&one).hash, flow(&other).hash);
        assert_eq!((flow(&one).whole, flow(&one).tos), (true, Some(0xb9)));
        assert_eq!((flow(&other).whole, flow(&other).tos), (false, Some(0)));
        let tagged = [&[0x81, 0, 0, 10][..], &one].concat();
        assert_eq!(flow(&tagged), flow(&one));
        // The fragments of one packet, of which only the first has ports, stay together.
        assert_eq!(flow(&udp4([0, 1, 0, 2], 0, 0x20)).hash, flow(&udp4([9, 9, 9, 9], 0, 0x20)).hash);
        let v6 = [&[0x86, 0xdd, 0x6b, 0x90, 0, 0][..], &[0; 60]].concat();
        assert_eq!((flow(&v6).whole, flow(&v6).tos), (true, Some(0xb9)));
        assert_eq!((flow(&[8, 6, 0, 1]).whole, flow(&[8, 6, 0, 1]).tos), (false, None));
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_flow(rest: Vec<u8>, len in 0..=12usize) {
            let _ = Flow::of(&ADDRESSES[..len], &rest);
            let ip = [&[8, 0, 0x45][..], &rest].concat();
            let _ = Flow::of(&ADDRESSES, &ip);
        }
    }
}
