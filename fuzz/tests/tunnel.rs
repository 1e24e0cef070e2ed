//! Datagrams of tunnels: headers, and what a frame inside still needs.

#![allow(missing_docs)]

mod common;

use bolero::TypeGenerator;
use common::Input;
use vswitch::batch::Batch;
use vswitch::offload::{Offload, VNET_HDR_LEN};
use vswitch::tunnel::{arrival, vxlan};

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
