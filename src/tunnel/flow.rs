//! What of a frame decides how the packet around it is sent: its flow, whether it may be fragmented, its type of service.
//!
//! Packets of different flows can take different paths, those of one flow never do (RFC 7348, section 5; RFC 8926, section
//! 3.3). The frame is as it leaves, in pieces or not; nothing of it is believed, and what cannot be read is left out.
//!
//! Ports count for TCP and SCTP alone. A UDP socket's fragments have none, and must not be overtaken
//! by its whole datagrams, as in `sys/steering.rs`. The price: all UDP between two hosts has one
//! source port outside, and so one path of several, and one receive queue.

use crate::bridge::vlan::TPID_8021Q;
use crate::frame::{ADDRESSES_LEN, Outgoing, TAG_LEN};
use crate::offload::VNET_HDR_LEN;

/// To multiply by: 2^64 over the golden ratio.
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a packet takes over from the frame in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// A number that is the same for all frames of a flow: of their addresses and, for TCP and SCTP that is neither
    /// fragmented nor has options, their ports.
    pub number: u16,
    /// Nobody may fragment it on its way: IPv6, and IPv4 with DF.
    pub whole: bool,
    /// Its type of service or traffic class; 0 if it is not IP.
    pub tos: u8,
}

/// The addresses of a frame, and what lies in one piece behind them and its tag.
#[inline]
fn outline<'f>(frame: &'f Outgoing<'_>) -> (&'f [u8], &'f [u8]) {
    let (addresses, rest) = match frame {
        Outgoing::Whole { bytes, .. } | Outgoing::Lent { bytes, .. } => {
            bytes[VNET_HDR_LEN..].split_at(ADDRESSES_LEN)
        }
        Outgoing::Segment { head, .. } => head[VNET_HDR_LEN..].split_at(ADDRESSES_LEN),
        Outgoing::Pieces { addresses, rest, .. } => (*addresses, *rest),
    };
    // With its tag in place or apart from it, a frame is of the same flow.
    let rest = if rest.starts_with(&TPID_8021Q.to_be_bytes()) {
        rest.get(TAG_LEN..).unwrap_or_default()
    } else {
        rest
    };
    (addresses, rest)
}

impl Flow {
    /// Of a frame as it leaves.
    #[inline]
    #[must_use]
    pub fn of(frame: &Outgoing<'_>) -> Flow {
        let (addresses, rest) = outline(frame);
        let mut hash = mix(mix(1, addresses), &addresses[addresses.len().min(4)..]);
        let (mut whole, mut tos) = (false, 0);
        match rest {
            // IPv4: addresses, and the ports behind a plain header. Of one with options the frame's addresses must do.
            [0x08, 0x00, version, class, _, _, _, _, fragment, offset, ..] if version >> 4 == 4 => {
                (whole, tos) = (fragment & 0x40 != 0, *class);
                if *version == 0x45 {
                    hash = mix(hash, rest.get(14..).unwrap_or_default());
                    if (fragment & 0x3f, *offset) == (0, 0) && has_ports(rest.get(11)) {
                        hash = mix(hash, rest.get(18..).unwrap_or_default());
                    }
                }
            }
            [0x86, 0xdd, first, second, ..] if first >> 4 == 6 => {
                (whole, tos) = (true, first << 4 | second >> 4);
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
        // A product's bits depend on lower ones only, and IPv4's ports are the upper half of the last word.
        #[allow(clippy::cast_possible_truncation, reason = "the upper 16 bits")]
        let number = ((hash ^ hash >> 32).wrapping_mul(ODD) >> 48) as u16;
        Flow { number, whole, tos }
    }
}

#[inline]
fn mix(hash: u64, bytes: &[u8]) -> u64 {
    let word = bytes.first_chunk().map_or(0, |chunk| u64::from_ne_bytes(*chunk));
    (hash ^ word).wrapping_mul(ODD).rotate_left(29)
}

fn has_ports(protocol: Option<&u8>) -> bool {
    protocol.is_some_and(|protocol| matches!(protocol, 6 | 132))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const ADDRESSES: [u8; ADDRESSES_LEN] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

    /// From the EtherType on, with a byte of payload.
    fn packet(ipv4: bool, protocol: u8, ports: [u8; 4]) -> Vec<u8> {
        let mut rest = if ipv4 {
            let mut rest = vec![8, 0, 0x45, 0, 0, 29, 0, 1, 0x40, 0, 64, protocol, 0, 0];
            rest.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            rest
        } else {
            let mut rest = vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 9, protocol, 64];
            rest.extend([0xfd; 32]);
            rest
        };
        rest.extend(ports);
        rest.extend([0, 9, 0, 0, 0xaa]);
        rest
    }

    fn number(frame: &Outgoing<'_>) -> u16 {
        Flow::of(frame).number
    }

    fn pieces(tag: Option<[u8; TAG_LEN]>, rest: &[u8]) -> u16 {
        number(&Outgoing::Pieces { header: [0; VNET_HDR_LEN], addresses: &ADDRESSES, tag, rest, segments: 1 })
    }

    #[test]
    fn a_flow_has_one_number_however_its_frames_leave() {
        for (ipv4, protocol) in [(true, 6), (true, 17), (false, 6), (false, 132)] {
            let rest = packet(ipv4, protocol, [1, 2, 3, 4]);
            let flow = pieces(None, &rest);
            let tag = [0x81, 0, 0, 10];
            assert_eq!(pieces(Some(tag), &rest), flow, "tag apart");
            assert_eq!(pieces(None, &[&tag, &rest[..]].concat()), flow, "tag in place");
            let whole = [&[0; VNET_HDR_LEN][..], &ADDRESSES, &rest].concat();
            assert_eq!(number(&Outgoing::Whole { bytes: &whole, segments: 1 }), flow);
            let (head, payload) = whole.split_at(whole.len() - 1);
            assert_eq!(number(&Outgoing::Segment { head, payload }), flow);
            let mut other = rest.clone();
            // Length and identification, hop limit, payload.
            other[if ipv4 { 5 } else { 7 }] ^= 1;
            other[if ipv4 { 10 } else { 9 }] ^= 1;
            *other.last_mut().unwrap() ^= 1;
            assert_eq!(pieces(None, &other), flow);
        }
    }

    #[test]
    fn flows_have_different_numbers() {
        // Whichever byte of the ports tells them apart.
        for (ipv4, at) in [true, false].into_iter().flat_map(|ipv4| (0..4).map(move |at| (ipv4, at))) {
            let number = |value, protocol| {
                let mut ports = [0x80, 0, 0, 80];
                ports[at] = value;
                pieces(None, &packet(ipv4, protocol, ports))
            };
            let numbers: BTreeSet<u16> = (0..=255).map(|value| number(value, 6)).collect();
            assert!(numbers.len() > 250, "{} of 256", numbers.len());
            for sockets in [2, 8] {
                let mut loads = vec![0; usize::from(sockets)];
                (0..=255).for_each(|value| loads[usize::from(number(value, 6) % sockets)] += 1);
                let fair = 256 / u32::from(sockets);
                assert!(loads.iter().all(|&load| load > fair / 2 && load < fair * 2), "{loads:?}");
            }
            assert_eq!(number(1, 1), number(2, 1), "ICMP has no ports");
            assert_eq!(number(1, 17), number(2, 17), "UDP's are not looked at");
        }
    }

    #[test]
    fn fragments_go_where_the_first_goes() {
        let mut first = packet(true, 17, [1, 2, 3, 4]);
        first[8] = 0x20;
        let mut second = packet(true, 17, [5, 6, 7, 8]);
        (second[8], second[9]) = (0, 185);
        assert_eq!(pieces(None, &first), pieces(None, &second));
        let whole = packet(true, 17, [1, 2, 3, 4]);
        assert_eq!(pieces(None, &first), pieces(None, &whole), "and where the whole ones go");
    }

    #[test]
    fn packets_take_over_what_routers_look_at() {
        let of = |rest: &[u8]| {
            let frame = Outgoing::Pieces {
                header: [0; VNET_HDR_LEN],
                addresses: &ADDRESSES,
                tag: None,
                rest,
                segments: 1,
            };
            let flow = Flow::of(&frame);
            (flow.whole, flow.tos)
        };
        let mut v4 = packet(true, 6, [0; 4]);
        (v4[3], v4[8]) = (0xb9, 0x40);
        assert_eq!(of(&v4), (true, 0xb9));
        v4[2] = 0x46;
        assert_eq!(of(&v4), (true, 0xb9), "with options");
        v4[8] = 0;
        assert!(!of(&v4).0);
        let mut v6 = packet(false, 6, [0; 4]);
        (v6[2], v6[3]) = (0x6b, 0x90);
        assert_eq!(of(&v6), (true, 0xb9));
        assert_eq!(of(&[8, 6, 0, 1, 8, 0]), (false, 0));
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_number(start in any::<Vec<u8>>(), ipv4 in any::<bool>(), cut in 0_usize..60) {
            pieces(None, &start);
            let rest = packet(ipv4, 6, [1, 2, 3, 4]);
            pieces(None, &rest[..cut.min(rest.len())]);
        }
    }
}
