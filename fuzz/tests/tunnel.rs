//! Datagrams of tunnels: headers, and what a frame inside still needs.

#![allow(missing_docs)]

mod common;

use bolero::TypeGenerator;
use common::Input;
use etherparse::checksum::u32_16bit_word;
use vswitch::batch::Batch;
use vswitch::offload::{Offload, VNET_HDR_LEN};
use vswitch::tunnel::encapsulation::{Encapsulation, Header, NetworkId};
use vswitch::tunnel::erspan::{Direction, Kind, Sender};
use vswitch::tunnel::{arrival, geneve, gre, vxlan};

#[derive(Debug, TypeGenerator)]
struct Datagram {
    flags: u8,
    rest: [u8; 7],
    /// Whether it is to begin like a VXLAN header.
    good: bool,
    frame: Input,
    frame_max: u16,
}

/// Never a panic; a header that is taken is the one of its VNI; and what a frame is said to need is believed by the batch or
/// refused, but never changes a frame that needs nothing.
#[test]
fn datagrams_are_taken_or_dropped() {
    bolero::check!().with_type::<Datagram>().with_iterations(5000).for_each(|input| {
        let frame = common::frame(&input.frame);
        let flags = if input.good { 8 } else { input.flags };
        let datagram = [&[flags], &input.rest[..], &frame].concat();
        let Some((vni, inner)) = vxlan::parse(&datagram) else {
            assert_ne!(flags, 8);
            return;
        };
        assert_eq!(inner, frame);
        assert_eq!(vxlan::header(vni)[4..7], datagram[4..7]);
        for cut in 0..8 {
            assert_eq!(vxlan::parse(&datagram[..cut]), None);
        }
        let offload = arrival::offload(inner, usize::from(input.frame_max));
        let mut batch = Batch::default();
        let spare = batch.spare();
        let Some(room) = spare.get_mut(VNET_HDR_LEN..VNET_HDR_LEN + inner.len()) else { return };
        room.copy_from_slice(inner);
        if let Some(header) = spare.first_chunk_mut() {
            offload.to_virtio(header);
        }
        if batch.take(inner.len(), None).is_ok() && offload == Offload::default() {
            assert_eq!(batch.bytes(&batch.frames[0]), inner);
        }
    });
}

#[derive(Debug, TypeGenerator)]
struct Packet {
    /// What it begins like when it is not spoilt.
    header: (u8, u32, u32),
    /// What to write over it, and where.
    patches: Vec<(u8, u8)>,
    /// Bytes between header and frame; options, where there are any.
    between: Vec<u8>,
    frame: Input,
}

impl Packet {
    /// `header`, what is behind it, and a frame, spoilt in its first bytes.
    fn bytes(&self, header: &[u8], between: &[u8], frame: &[u8]) -> Vec<u8> {
        let mut packet = [header, between, frame].concat();
        for &(at, value) in &self.patches {
            if let Some(byte) = packet.get_mut(usize::from(at & 31)) {
                *byte = value;
            }
        }
        packet
    }
}

/// Whatever is cut off a header that was taken makes it one to refuse.
fn refused_when_cut(encapsulation: Encapsulation, packet: &[u8], frame: &[u8]) {
    for cut in 0..packet.len() - frame.len() {
        assert_eq!(encapsulation.parse(&packet[..cut]), None, "cut to {cut} bytes");
    }
}

/// Options are skipped if they are whole and not critical, and nothing else than a frame of Ethernet is taken.
#[test]
fn geneve_packets_are_taken_or_refused() {
    bolero::check!().with_type::<Packet>().with_iterations(5000).for_each(|input| {
        let frame = common::frame(&input.frame);
        let between = &input.between[..input.between.len().min(252) & !3];
        let mut header = geneve::header(input.header.1 & geneve::VNI_MAX);
        header[0] = u8::try_from(between.len() / 4).unwrap();
        let packet = input.bytes(&header, between, &frame);
        let Some((vni, inner)) = geneve::parse(&packet) else {
            assert!(!input.patches.is_empty() || !between.is_empty(), "a good one was refused");
            return;
        };
        assert_eq!((packet[0] & 0xc0, packet[1] & 0xc0), (0, 0), "version, control, critical");
        assert_eq!(geneve::header(vni)[2..7], packet[2..7]);
        let (mut at, end) = (8, packet.len() - inner.len());
        assert_eq!(end, 8 + 4 * usize::from(packet[0]));
        while at < end {
            assert!(packet[at + 2] < 0x80, "a critical option");
            at += 4 + 4 * usize::from(packet[at + 3] & 31);
        }
        assert_eq!(at, end, "options of other lengths than all of them");
        refused_when_cut(Encapsulation::Geneve, &packet, inner);
    });
}

/// A header that is taken is the one that we would write, but for bits to be ignored; and its checksum is right, as etherparse
/// reckons.
#[test]
fn gre_packets_are_taken_or_refused() {
    bolero::check!().with_type::<Packet>().with_iterations(5000).for_each(|input| {
        let frame = common::frame(&input.frame);
        let (flags, key, sequence) = input.header;
        let header = gre::Header {
            protocol: gre::protocol::ETHERNET,
            checksum: flags & 1 != 0,
            key: (flags & 2 != 0).then_some(key),
            sequence: (flags & 4 != 0).then_some(sequence),
        };
        let built = header.to_bytes(&[&input.between, &frame]);
        let packet = input.bytes(&built[..header.header_len()], &input.between, &frame);
        let right = u32_16bit_word::ones_complement(u32_16bit_word::add_slice(0, &packet)) == 0;
        let Some((header, payload)) = gre::parse(&packet) else {
            assert!(!input.patches.is_empty(), "a good one was refused");
            return;
        };
        assert_eq!((packet[0] & 0x4c, packet[1] & 7), (0, 0), "routing, recursion, version");
        assert!(right || !header.checksum, "a wrong checksum was taken");
        let mut again = header.to_bytes(&[payload])[..header.header_len()].to_vec();
        assert_eq!(packet.len() - payload.len(), again.len());
        // Those two the receiver ignores, and the checksum covers them.
        (again[0], again[1]) = (again[0] | packet[0] & 3, packet[1]);
        if header.checksum {
            again[4..8].copy_from_slice(&packet[4..8]);
        }
        assert_eq!(packet[..again.len()], again);
        for cut in 0..again.len() {
            assert_eq!(gre::parse(&packet[..cut]), None, "cut to {cut} bytes");
        }
    });
}

/// Behind GRE, as an endpoint sees them: a mirrored frame is whole, of Ethernet, and of the session in its header.
#[test]
fn erspan_packets_are_taken_or_refused() {
    bolero::check!().with_type::<Packet>().with_iterations(5000).for_each(|input| {
        let frame = common::frame(&input.frame);
        let (kind, number, other) = input.header;
        let sender = match kind & 3 {
            0 => Sender::II { index: other },
            1 => Sender::III { direction: Direction::Ingress, hardware: kind >> 2 },
            _ => Sender::III { direction: Direction::Egress, hardware: kind >> 2 },
        };
        let header = Header::Erspan(sender);
        let built = header.write(number, other, number, &[&input.between, &frame]);
        assert_eq!(built.len(), header.len());
        let packet = input.bytes(&built, &input.between, &frame);
        let parsed = Encapsulation::Gre.parse(&packet);
        if input.patches.is_empty() {
            assert_eq!(parsed, Some((header.network(number), &packet[built.len()..])));
        }
        let Some((NetworkId::Session(kind, session), inner)) = parsed else { return };
        let (version, len) = if kind == Kind::II { (1, 16) } else { (2, 20) };
        assert_eq!((packet[8] >> 4, packet[10] & 4), (version, 0), "version, truncated");
        assert_eq!(session, u16::from(packet[10] & 3) << 8 | u16::from(packet[11]));
        let extra = packet.len() - inner.len() - len;
        assert_eq!(extra, if kind == Kind::III && packet[19] & 1 != 0 { 8 } else { 0 });
        refused_when_cut(Encapsulation::Gre, &packet, inner);
    });
}

/// Whatever arrives, at whatever endpoint: never a panic, and a frame is the end of its packet.
#[test]
fn any_endpoint_takes_any_bytes() {
    bolero::check!().with_iterations(5000).for_each(|packet: &[u8]| {
        for encapsulation in [Encapsulation::Vxlan, Encapsulation::Geneve, Encapsulation::Gre] {
            if let Some((_, frame)) = encapsulation.parse(packet) {
                assert!(packet.ends_with(frame));
                refused_when_cut(encapsulation, packet, frame);
            }
        }
    });
}
