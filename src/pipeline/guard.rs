//! Guard: what comes by a tunnel must not claim a station that is known at a port which is none.
//!
//! Only where `guard_local` is on. Before anything believes the frame: nobody is answered, no station or neighbour learned.
//! [`super::relay`] looks again when it learns, for another worker may have learned the station meanwhile.

use super::Context;
use crate::batch::Batch;
use crate::bridge::fdb::Kind;
use crate::frame::Frame;
use crate::stats::DropReason;
use crate::topology::{Bridge, Topology};

pub(super) fn run(context: &mut Context<'_>, batch: &mut Batch) {
    if !context.port.guard_local {
        return;
    }
    let (frames, _) = batch.split();
    for frame in frames.iter_mut().filter(|frame| frame.live) {
        if is_local(context.topology, context.bridge, frame) {
            context.drop_frame(frame, DropReason::Guarded);
        }
    }
}

/// Whether a frame's source is known at a port that is no tunnel. Of a static station whose port is gone that is assumed.
#[cold]
pub(super) fn is_local(topology: &Topology, bridge: &Bridge, frame: &Frame) -> bool {
    let Some(known) = bridge.fdb.lookup(frame.source, frame.source_hash) else { return false };
    topology.port(known.port).map_or(known.kind == Kind::Static, |port| port.group == 0)
}
