//! Guard: what comes by a tunnel must not claim a station that is known at a port which is none.
//!
//! Only where `guard_local` is on. Before anything believes the frame: nobody is answered, no station or neighbour learned.

use super::Context;
use crate::batch::Batch;
use crate::stats::DropReason;

pub(super) fn run(context: &mut Context<'_>, batch: &mut Batch) {
    if !context.port.guard_local {
        return;
    }
    let (frames, _) = batch.split();
    for frame in frames.iter_mut().filter(|frame| frame.live) {
        let known = context.bridge.fdb.lookup(frame.source, frame.source_hash);
        let port = known.and_then(|entry| context.topology.port(entry.port));
        if port.is_some_and(|port| port.group == 0) {
            context.drop_frame(frame, DropReason::Guarded);
        }
    }
}
