//! What a sender says about its frame, and what is done on its word.

#![allow(missing_docs)]

mod common;

use common::Input;
use vswitch::offload::checksum;
use vswitch::offload::segment::{Checksum, Segmenter};
use vswitch::offload::{Capabilities, Gso, MAX_TCP_SEGMENTS, Offload, Takes, VNET_HDR_LEN, check_headers};

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
