//! Parse: the two addresses and the outermost tag of each frame, and the receive counters.

use super::Context;
use crate::addr::MacAddr;
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
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *header;
        // VLAN 0 for now; admission classifies.
        frame.destination = Key::new(MacAddr([d0, d1, d2, d3, d4, d5]), 0);
        frame.source = Key::new(MacAddr([s0, s1, s2, s3, s4, s5]), 0);
        frame.tagged = u16::from_be_bytes([t0, t1]) == TPID_8021Q;
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
