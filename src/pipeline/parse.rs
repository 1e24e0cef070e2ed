//! Parse: the two addresses and the outermost tag of each frame, and the receive counters.

use super::Context;
use crate::batch::Batch;
use crate::bridge::fdb::Key;
use crate::bridge::vlan::TPID_8021Q;
use crate::frame::{ETH_HEADER_LEN, TAG_LEN};
use crate::stats::DropReason;

pub(super) fn run(context: &mut Context<'_>, batch: &mut Batch) {
    let (mut bytes, mut segments) = (0, 0);
    let (frames, arena) = batch.split();
    for frame in frames.iter_mut() {
        bytes += frame.len() as u64;
        segments += u64::from(frame.segments);
        let Some(header) = arena.bytes(frame).first_chunk::<ETH_HEADER_LEN>() else {
            context.drop_frame(frame, DropReason::Runt);
            continue;
        };
        // The whole header in two loads: the address of each in the upper 48 bits, as a key in VLAN 0 has it (admission
        // classifies), and below the source the EtherType.
        let [d0, d1, d2, d3, d4, d5, s0, s1, ..] = *header;
        let [.., e0, e1, e2, e3, e4, e5, e6, e7] = *header;
        let destination = u64::from_be_bytes([d0, d1, d2, d3, d4, d5, s0, s1]);
        let source = u64::from_be_bytes([e0, e1, e2, e3, e4, e5, e6, e7]);
        frame.destination = Key::from_raw(destination & !0xffff);
        frame.source = Key::from_raw(source & !0xffff);
        frame.tagged = source & 0xffff == u64::from(TPID_8021Q);
        if frame.tagged {
            let tag = arena.bytes(frame).get(ETH_HEADER_LEN..ETH_HEADER_LEN + TAG_LEN);
            match tag {
                Some(tag) => frame.tci = u16::from_be_bytes([tag[0], tag[1]]),
                // Only a filtering bridge needs the tag; for the others it is payload, however short.
                None if context.bridge.filtering => context.drop_frame(frame, DropReason::Runt),
                None => frame.tagged = false,
            }
        }
    }
    let counters = context.counters();
    counters.rx_frames.add(batch.frames.len() as u64);
    counters.rx_bytes.add(bytes);
    counters.rx_segments.add(segments);
}
