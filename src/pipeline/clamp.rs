//! Clamp: TCP connections that come by a tunnel are told to send segments that fit its path.
//!
//! Only where `mss_clamp` is on. The frame is changed where it lies, the one stage that does so: here nobody else has
//! seen it yet, and every port it may leave by is to have it like that. What *leaves* by a tunnel is for [`super::egress`],
//! because it may leave by other ports as it is.

use super::Context;
use crate::batch::Batch;
use crate::offload::mss;

pub(super) fn run(context: &mut Context<'_>, batch: &mut Batch) {
    if !context.port.mss_clamp {
        return;
    }
    let frame_max = context.port.shared.frame_max();
    for index in 0..batch.frames.len() {
        let frame = batch.frames[index];
        if !frame.live {
            continue;
        }
        let bytes = batch.bytes_mut(&frame);
        if let Some(clamp) = mss::clamp(bytes, frame_max) {
            clamp.apply(bytes, &frame.offload);
            context.counters().mss_clamped.add(1);
        }
    }
}
