//! Relay: learn where the source is, then find where the destination is.
//!
//! Both happen frame by frame, in order, so the verdicts are those of a switch that handles one frame at a time: a
//! station that is learned from frame 5 must not change where frame 4 goes. (Learning the whole batch first
//! and looking up afterwards did.) The cache misses were paid for by admission's prefetches.
//!
//! The rules are those of Linux's bridge (IEEE 802.1D clauses 7.7 and 7.8): 01-80-C2-00-00-01…0F stay on their link,
//! known stations get their frames alone, group addresses and unknown stations are flooded, and nothing is
//! reflected unless the port is a hairpin.

use super::Context;
use crate::addr::{MacAddr, PortId};
use crate::batch::Batch;
use crate::bridge::vlan::Leaves;
use crate::frame::Frame;
use crate::stats::DropReason;
use crate::topology::Port;

/// IEEE 802.3 PAUSE: not even learned from.
const PAUSE: MacAddr = MacAddr([0x01, 0x80, 0xc2, 0, 0, 0x01]);
/// IEEE 802.1D bridge group address: forwarded while there is no spanning tree.
const BRIDGE_GROUP: MacAddr = MacAddr([0x01, 0x80, 0xc2, 0, 0, 0x00]);

pub(super) fn run(context: &mut Context<'_>, batch: &mut Batch) {
    let learning = context.port.learning && context.bridge.learning;
    let fdb = &*context.bridge.fdb;
    let (frames, _) = batch.split();
    for (index, frame) in frames.iter_mut().enumerate() {
        if !frame.live {
            continue;
        }
        let destination = frame.destination.mac();
        if learning && destination != PAUSE {
            fdb.learn(frame.source, frame.source_hash, context.port.id, context.now);
        }
        if destination.is_multicast() {
            if destination.is_link_local() && destination != BRIDGE_GROUP {
                context.drop_frame(frame, DropReason::LinkLocal);
            } else {
                flood(context, frame, index, false);
            }
            continue;
        }
        match fdb.lookup(frame.destination, frame.destination_hash) {
            Some(entry) => unicast(context, frame, index, entry.port),
            None => flood(context, frame, index, true),
        }
    }
}

#[inline]
fn unicast(context: &mut Context<'_>, frame: &mut Frame, index: usize, to: PortId) {
    // The entry may be older than the topology: its port may have left, or moved to another bridge.
    let port = context.topology.port(to).filter(|port| port.bridge == context.port.bridge);
    let Some(port) = port else { return flood(context, frame, index, true) };
    match refusal(context, frame, port) {
        None => context.outbox.push(to, index),
        Some(reason) => context.drop_frame(frame, reason),
    }
}

fn flood(context: &mut Context<'_>, frame: &mut Frame, index: usize, unknown_unicast: bool) {
    let mut left = false;
    for &to in &context.bridge.members {
        let Some(port) = context.topology.port(to) else { continue };
        if (unknown_unicast && !port.flood) || refusal(context, frame, port).is_some() {
            continue;
        }
        context.outbox.push(to, index);
        left = true;
    }
    if !left {
        context.drop_frame(frame, DropReason::NoEgress);
    }
}

/// Why a frame may not leave by `to`.
#[inline]
fn refusal(context: &Context<'_>, frame: &Frame, to: &Port) -> Option<DropReason> {
    if to.id == context.port.id && !to.hairpin {
        return Some(DropReason::SamePort);
    }
    if to.isolated && context.port.isolated {
        return Some(DropReason::Isolated);
    }
    if context.bridge.filtering && to.vlan.leaves(frame.vid) == Leaves::Not {
        return Some(DropReason::VlanEgress);
    }
    None
}
