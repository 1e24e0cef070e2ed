//! Admit: what may come in, and in which VLAN.
//!
//! As Linux's bridge: a frame whose source is a group address or zero goes no further and is not learned from. In a
//! filtering bridge the receiving port's VLANs decide the rest. The FDB buckets of both addresses are fetched here, for
//! the whole batch, before [`super::relay`] needs the first.

use super::Context;
use crate::batch::Batch;
use crate::bridge::fdb::Key;
use crate::bridge::vlan::TPID_8021AD;
use crate::frame::{ADDRESSES_LEN, ETH_HEADER_LEN};
use crate::stats::DropReason;

pub(super) fn run(context: &mut Context<'_>, batch: &mut Batch) {
    let fdb = &*context.bridge.fdb;
    let filtering = context.bridge.filtering;
    let (frames, arena) = batch.split();
    let mut before = None;
    for frame in frames.iter_mut().filter(|frame| frame.live) {
        if !frame.source.mac().is_station() {
            context.drop_frame(frame, DropReason::BadSource);
            continue;
        }
        if filtering {
            let ethertype = &arena.bytes(frame)[ADDRESSES_LEN..ETH_HEADER_LEN];
            if ethertype == TPID_8021AD.to_be_bytes() {
                context.drop_frame(frame, DropReason::VlanUnsupported);
                continue;
            }
            let Some(vid) = context.port.vlan.classify(frame.tagged.then_some(frame.tci)) else {
                context.drop_frame(frame, DropReason::VlanIngress);
                continue;
            };
            frame.vid = vid;
            frame.source = Key::new(frame.source.mac(), vid);
            frame.destination = Key::new(frame.destination.mac(), vid);
        }
        // Frames come in runs between the same two stations.
        if let Some((source, destination, source_hash, destination_hash)) = before
            && (source, destination) == (frame.source, frame.destination)
        {
            (frame.source_hash, frame.destination_hash) = (source_hash, destination_hash);
            continue;
        }
        frame.source_hash = fdb.hash(frame.source);
        frame.destination_hash = fdb.hash(frame.destination);
        fdb.prefetch(frame.source_hash);
        fdb.prefetch(frame.destination_hash);
        before = Some((frame.source, frame.destination, frame.source_hash, frame.destination_hash));
    }
}
