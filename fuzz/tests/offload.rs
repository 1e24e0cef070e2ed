//! What a sender says about its frame, and what is done on its word.

#![allow(missing_docs)]

mod common;

use common::Input;
use vswitch::batch::FRAME_MAX;
use vswitch::offload::big::{BIG_FRAME_MAX, BIG_PIECES_MAX, Big};
use vswitch::offload::checksum::{self, Sum};
use vswitch::offload::coalesce::Coalescer;
use vswitch::offload::mss;
use vswitch::offload::segment::{Checksum, Segmenter};
use vswitch::offload::{Capabilities, Gso, MAX_TCP_SEGMENTS, Offload, Takes, VNET_HDR_LEN, check_headers};
use vswitch::wire::ipv4;
use vswitch::wire::layers::{Layers, protocol};

/// An overlay on the header that would be right: which field, and its new value.
type Header = (u8, Vec<(u8, u8)>);

/// Never a panic; what is admitted survives the way to any port: taken, finished, or cut without losing a byte.
#[test]
fn offload_is_harmless() {
    bolero::check!().with_type::<(Header, Input, bool)>().with_iterations(5000).for_each(
        |(header, input, partial)| {
            let mut frame = common::frame(input);
            let header = virtio_header(header, input.0);
            let len = frame.len();
            let Ok(mut offload) = Offload::from_virtio(&header, len) else { return };
            let before = frame.clone();
            if offload.admit(&mut frame, len).is_err() {
                assert!(frame == before, "refused but changed");
                return;
            }
            let mut written = [0; VNET_HDR_LEN];
            offload.to_virtio(&mut written);
            assert_eq!(Offload::from_virtio(&written, len), Ok(offload), "our own header");
            match (Capabilities { csum: *partial, ..Capabilities::default() }).takes(&offload) {
                Takes::AsIs => {}
                Takes::FinishChecksum => {
                    assert!(checksum::finish(&mut frame, &offload).is_ok_and(|after| !after.needs_csum));
                }
                Takes::Segment => cut(&frame, &offload, *partial),
            }
        },
    );
}

/// Never a panic; the segment size that a SYN announces is only ever lowered, the sum over the packet stays, and nothing else changes.
#[test]
fn clamping_is_harmless() {
    let input = bolero::check!().with_type::<(Input, [u8; 40], u16, bool)>().with_iterations(5000);
    input.for_each(|(input, options, frame_max, syn)| {
        let mut frame = common::frame(input);
        let l4 = Layers::parse(&frame).map_or(0, |layers| layers.l4);
        // A header of 60 bytes with these options, if there is room for it.
        if let Some(header) = frame.get_mut(l4..l4 + 60).filter(|_| *syn) {
            (header[12], header[13]) = (0xf0, 2);
            header[20..].copy_from_slice(options);
        }
        let before = frame.clone();
        let Some(clamp) = mss::clamp(&frame, usize::from(*frame_max)) else { return };
        let sum = |frame: &[u8]| Sum::of(&frame[l4..]).checksum();
        clamp.apply(&mut frame, &Offload::default());
        assert_eq!(sum(&frame), sum(&before));
        let changed = before.iter().zip(&frame).filter(|(before, after)| before != after).count();
        assert!((1..=4).contains(&changed), "a size of two bytes, and the checksum");
        assert_eq!(mss::clamp(&frame, usize::from(*frame_max)), None);
    });
}

/// Never a panic; what a frame of more than 64 KiB is cut into is all of it, and not more pieces than there is room for.
#[test]
fn big_frames_are_cut_or_refused() {
    bolero::check!().with_type::<(Header, Input, u32, bool)>().with_iterations(5000).for_each(
        |(header, input, len, unset)| {
            let mut frame = common::frame(input);
            let header = virtio_header(header, input.0);
            let len = FRAME_MAX + *len as usize % (BIG_FRAME_MAX - FRAME_MAX + 10);
            if let (true, Some(layers)) = (*unset, Layers::parse(&frame)) {
                // Such a frame's length does not fit its field.
                let at = layers.l3 + if layers.ipv4 { 2 } else { 4 };
                frame[at..at + 2].fill(0);
            }
            let Ok(big) = Big::of(&header, &frame, len) else { return };
            let pieces: Vec<_> = big.pieces().collect();
            assert!((1..=BIG_PIECES_MAX).contains(&pieces.len()), "{} pieces", pieces.len());
            assert_eq!(pieces.iter().map(|piece| piece.len).sum::<usize>(), len - big.received_len());
            let mut out = vec![0; VNET_HDR_LEN + big.headers_len()];
            pieces.iter().for_each(|piece| big.write(*piece, &mut out));
        },
    );
}

/// The header that fits the good frame of this kind, with some bytes overwritten.
fn virtio_header((gso_size, patches): &Header, kind: u8) -> [u8; VNET_HDR_LEN] {
    let (ipv4, tcp, extended) = (kind & 1 != 0, kind & 2 != 0, kind & 4 != 0);
    let network_len = match (ipv4, extended) {
        (true, false) => 20,
        (true, true) => 28,
        (false, false) => 40,
        (false, true) => 80,
    };
    let mut header = [0; VNET_HDR_LEN];
    Offload {
        needs_csum: true,
        csum_start: 14 + 4 * u16::from(kind >> 3 & 3) + network_len,
        csum_offset: if tcp { 16 } else { 6 },
        gso: match (tcp, ipv4) {
            (true, true) => Gso::Tcp4,
            (true, false) => Gso::Tcp6,
            (false, _) => Gso::Udp,
        },
        gso_size: u16::from(*gso_size),
        ..Offload::default()
    }
    .to_virtio(&mut header);
    for (at, value) in patches {
        header[usize::from(*at) % VNET_HDR_LEN] = *value;
    }
    header
}

fn cut(frame: &[u8], offload: &Offload, partial: bool) {
    let layout = check_headers(frame, offload).unwrap_or_else(|error| panic!("admitted, then {error}"));
    let checksum = if partial { Checksum::Partial } else { Checksum::Complete };
    let mut segmenter =
        Segmenter::new(frame, offload, checksum).unwrap_or_else(|error| panic!("admitted, then {error}"));
    let needs = segmenter.segment_offload();
    let mut out = vec![0; segmenter.segment_size_max()];
    let mut left = &frame[layout.payload..];
    let mut count = 0;
    while let Some(len) = segmenter.next_into(&mut out) {
        let (piece, rest) = left.split_at(len - layout.payload);
        assert!(out[layout.payload..len] == *piece, "payload changed");
        assert!(checksum::finish(&mut out[..len], &needs).is_ok());
        left = rest;
        count += 1;
    }
    assert!(left.is_empty(), "payload lost");
    assert_eq!(count, offload.segments(frame.len()));
    assert!((2..=MAX_TCP_SEGMENTS).contains(&(count as usize)), "{count} segments");
}

/// The frame after another of the same flow: bits that say what is different about it, its payload's length, and a byte
/// to overwrite.
type Next = (u8, u8, (u8, u8));

/// Never a panic; what is merged can be cut into what it was made of, and what is not merged is unchanged.
#[test]
fn coalescing_loses_nothing() {
    bolero::check!().with_type::<(u8, Option<(u16, u8)>, Vec<Next>)>().with_iterations(5000).for_each(
        |(kind, patch, list)| {
            let frames = flow(*kind, *patch, list);
            let mut buffer = vec![0xaa; VNET_HDR_LEN + FRAME_MAX];
            let mut left = &frames[..];
            while let Some((first, rest)) = left.split_first() {
                let Some(mut coalescer) = Coalescer::start(&mut buffer, first) else {
                    panic!("does not fit")
                };
                let count = 1 + rest.iter().take_while(|frame| coalescer.push(frame)).count();
                let len = coalescer.finish();
                let Some((header, frame)) = buffer.split_first_chunk() else { panic!("no room") };
                let (these, rest) = left.split_at(count);
                if count == 1 {
                    assert!(*header == [0; VNET_HDR_LEN] && frame[..len] == *first, "alone but changed");
                } else {
                    compare(header, &frame[..len], these);
                }
                left = rest;
            }
        },
    );
}

/// A flow that starts with the good frame of this kind, a byte of it overwritten.
fn flow(kind: u8, patch: Option<(u16, u8)>, list: &[Next]) -> Vec<Vec<u8>> {
    // TCP, mostly with payload; extension headers and options, which are never merged, in one of eight.
    let extended = if kind >> 5 == 1 { 4 } else { 0 };
    let mut frame = common::frame(&(kind & !4 | 2 | extended, patch.into_iter().collect(), u16::MAX));
    seal(&mut frame);
    let mut frames = vec![frame.clone()];
    for (what, len, patch) in list {
        let Some(mut this) = follow(&frame, kind & 4 == 0, *what, *len) else { break };
        frame.clone_from(&this);
        if what & 7 == 0 {
            let at = usize::from(patch.0) % this.len();
            this[at] = patch.1;
        }
        if what & 0x38 == 0 {
            this.resize(this.len().max(60), 0);
        }
        if what & 0xc0 != 0 {
            seal(&mut this);
        }
        frames.push(this);
    }
    frames
}

/// The segment behind `frame`, its identification one more or the same.
fn follow(frame: &[u8], counting: bool, what: u8, len: u8) -> Option<Vec<u8>> {
    let Layers { ipv4, l3, l4, ip_len, .. } = Layers::parse(frame)?;
    let mut next = frame.get(..l3 + ip_len?)?.to_vec();
    let payload = l4 + 4 * usize::from(next.get(l4..l4 + 20)?[12] >> 4);
    let sent = u32::try_from(next.len().saturating_sub(payload)).ok()?;
    if what & 0x1f == 1 {
        next.resize(payload.max(l4 + 20) + usize::from(len), len);
    }
    let total_len = u16::try_from(next.len() - l3).ok()?;
    if ipv4 {
        let id = u16::from_be_bytes([next[l3 + 4], next[l3 + 5]]).wrapping_add(u16::from(counting));
        next[l3 + 4..l3 + 6].copy_from_slice(&id.to_be_bytes());
        next[l3 + 2..l3 + 4].copy_from_slice(&total_len.to_be_bytes());
    } else {
        next[l3 + 4..l3 + 6].copy_from_slice(&(total_len - 40).to_be_bytes());
    }
    let seq = u32::from_be_bytes([4, 5, 6, 7].map(|at| next[l4 + at])).wrapping_add(sent);
    next[l4 + 4..l4 + 8].copy_from_slice(&seq.to_be_bytes());
    seal(&mut next);
    Some(next)
}

/// Makes a TCP frame's checksums right, whatever else is wrong with it.
fn seal(frame: &mut [u8]) {
    let Some(Layers { ipv4, l3, l4, ip_len: Some(ip_len), .. }) = Layers::parse(frame) else { return };
    if ipv4 {
        ipv4::fill_checksum(&mut frame[l3..l4]);
    }
    let addresses = if ipv4 { l3 + 12..l3 + 20 } else { l3 + 8..l3 + 40 };
    let pseudo_sum = Sum::of(&frame[addresses]).word(u16::from(protocol::TCP));
    let Some(segment) = frame.get_mut(l4..l3 + ip_len).filter(|segment| segment.len() >= 20) else { return };
    segment[16..18].fill(0);
    let checksum = pseudo_sum.word(u16::try_from(segment.len()).unwrap_or(0)).bytes(segment).checksum();
    segment[16..18].copy_from_slice(&checksum);
}

/// A merged frame against what it was made of.
fn compare(header: &[u8; VNET_HDR_LEN], frame: &[u8], made_of: &[Vec<u8>]) {
    let Ok(offload) = Offload::from_virtio(header, frame.len()) else { panic!("our own header") };
    let (mut admitted, mut head) = (offload, frame.to_vec());
    assert_eq!(admitted.admit(&mut head, frame.len()), Ok(()));
    assert!(admitted == offload && head == frame, "something was put right");
    let Ok(layout) = check_headers(frame, &offload) else { panic!("admitted, then refused") };
    let Ok(mut segmenter) = Segmenter::new(frame, &offload, Checksum::Complete) else { panic!("admitted") };
    let id = layout.l3 + 4..layout.l3 + 6;
    let fixed_id = layout.ipv4 && made_of[0][id.clone()] == made_of[1][id.clone()];
    assert!(!fixed_id || frame[layout.l3 + 6] & 0x40 != 0, "a constant identification without DF");
    let mut out = vec![0; segmenter.segment_size_max()];
    for original in made_of {
        let Some(len) = segmenter.next_into(&mut out) else { panic!("too few segments") };
        if fixed_id {
            out[id.clone()].copy_from_slice(&made_of[0][id.clone()]);
            ipv4::fill_checksum(&mut out[layout.l3..layout.l4]);
        }
        assert!(original.starts_with(&out[..len]), "cut into something else");
        assert!(original.len() == len || original.len() - layout.l3 <= 46, "more than padding left out");
    }
    assert_eq!(segmenter.next_into(&mut out), None, "too many segments");
}
