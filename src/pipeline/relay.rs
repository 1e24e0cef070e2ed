//! Relay: learn where the source is, then find where the destination is.
//!
//! Both happen frame by frame, in order, so the verdicts are those of a switch that handles one frame at a time: a
//! station that is learned from frame 5 must not change where frame 4 goes. (Learning the whole batch first
//! and looking up afterwards did.) The cache misses were paid for by admission's prefetches.
//!
//! Frames come in runs between the same two stations, and what holds for the first of a run holds for all of it: only the first asks the
//! FDB.
//!
//! The rules are those of Linux's bridge (IEEE 802.1D clauses 7.7 and 7.8): 01-80-C2-00-00-01…0F stay on their link,
//! known stations get their frames alone, group addresses and unknown stations are flooded, and nothing is
//! reflected unless the port is a hairpin.

use super::{Context, Outbox, guard};
use crate::addr::{MacAddr, PortId};
use crate::batch::Batch;
use crate::bridge::fdb::{Kind, Learned};
use crate::bridge::vlan::Leaves;
use crate::frame::Frame;
use crate::stats::DropReason;
use crate::topology::{Bridge, Port, Topology};

/// IEEE 802.3 PAUSE: not even learned from.
const PAUSE: MacAddr = MacAddr([0x01, 0x80, 0xc2, 0, 0, 0x01]);
/// IEEE 802.1D bridge group address: forwarded while there is no spanning tree.
const BRIDGE_GROUP: MacAddr = MacAddr([0x01, 0x80, 0xc2, 0, 0, 0x00]);

pub(super) fn run(context: &mut Context<'_>, batch: &mut Batch) {
    let Context { topology, port: from, bridge, now, .. } = *context;
    let learning = from.learning && bridge.learning;
    let mut relay = Relay { topology, from, bridge, outbox: context.outbox };
    let counters = &from.shared.counters[context.worker];
    let (frames, _) = batch.split();
    let mut run = None;
    for (index, frame) in frames.iter_mut().enumerate() {
        if !frame.live {
            continue;
        }
        if let Some((source, destination, port)) = run
            && (source, destination) == (frame.source, frame.destination)
        {
            relay.outbox.push(port, index);
            continue;
        }
        if from.guard_local && guard::is_local(topology, bridge, frame) {
            frame.live = false;
            counters.drop_frame(DropReason::Guarded);
            continue;
        }
        let mut known = !learning;
        if learning && frame.destination.mac() != PAUSE {
            known = bridge.fdb.learn(frame.source, frame.source_hash, from.id, now) == Learned::Known;
        }
        let port = relay.forward(frame, index).unwrap_or_else(|reason| {
            frame.live = false;
            counters.drop_frame(reason);
            None
        });
        run = port.filter(|_| known).map(|port| (frame.source, frame.destination, port));
    }
}

/// Where frames from one port may go.
struct Relay<'a> {
    topology: &'a Topology,
    from: &'a Port,
    bridge: &'a Bridge,
    outbox: &'a mut Outbox,
}

impl Relay<'_> {
    /// The port by which the frame leaves, unless it is flooded.
    #[inline]
    fn forward(&mut self, frame: &Frame, index: usize) -> Result<Option<PortId>, DropReason> {
        let destination = frame.destination.mac();
        if destination.is_multicast() {
            if destination.is_link_local() && destination != BRIDGE_GROUP {
                return Err(DropReason::LinkLocal);
            }
            return self.flood(frame, index, false).map(|()| None);
        }
        let known = self.bridge.fdb.lookup(frame.destination, frame.destination_hash);
        // The entry may be older than the topology: its port may have left, or moved to another bridge.
        let port = known
            .and_then(|entry| self.topology.port(entry.port))
            .filter(|port| port.bridge == self.from.bridge);
        match port {
            Some(port) => {
                self.may_leave(frame, port)?;
                self.outbox.push(port.id, index);
                Ok(Some(port.id))
            }
            // Its device is gone for now, and the station with it.
            None if known.is_some_and(|entry| entry.kind == Kind::Static) => Err(DropReason::PortGone),
            None => self.flood(frame, index, true).map(|()| None),
        }
    }

    #[inline(never)]
    fn flood(&mut self, frame: &Frame, index: usize, unknown_unicast: bool) -> Result<(), DropReason> {
        // Who has his answer has lost nothing.
        let mut left = if frame.answered { Ok(()) } else { Err(DropReason::NoEgress) };
        for &to in &self.bridge.members {
            let Some(port) = self.topology.port(to) else { continue };
            // Who floods into a tunnel reaches every remote himself.
            if port.group != 0 && port.group == self.from.group {
                continue;
            }
            if frame.answered && port.neigh_suppress {
                continue;
            }
            if (unknown_unicast && !port.flood) || self.may_leave(frame, port).is_err() {
                continue;
            }
            self.outbox.push(to, index);
            left = Ok(());
        }
        left
    }

    /// Whether a frame may leave by `to`.
    #[inline]
    fn may_leave(&self, frame: &Frame, to: &Port) -> Result<(), DropReason> {
        may_leave(self.bridge, self.from, frame, to)
    }
}

/// Whether a frame that came in by `from` may leave by `to`.
#[inline]
pub(super) fn may_leave(bridge: &Bridge, from: &Port, frame: &Frame, to: &Port) -> Result<(), DropReason> {
    if to.device == from.device && !to.hairpin {
        return Err(DropReason::SamePort);
    }
    // From tunnel to tunnel a frame could go round for ever: tunnels have no time to live.
    if from.group != 0 && to.group == from.group && to.device != from.device {
        return Err(DropReason::SplitHorizon);
    }
    if to.isolated && from.isolated {
        return Err(DropReason::Isolated);
    }
    if bridge.filtering && to.vlan.leaves(frame.vid) == Leaves::Not {
        return Err(DropReason::VlanEgress);
    }
    Ok(())
}
