//! What happens to a batch of received frames.
//!
//! A batch comes from one port, passes the [`STAGES`] in order as a whole, and has left by the time the last one
//! returns. The table below is the table of contents; a new stage is one file here and one line in it.
//!
//! Drops before the forwarding decision are counted at the receiving port, later ones at each leaving port, a copy at
//! a time. No stage locks, allocates, logs or reads a clock.

use arrayvec::ArrayVec;

use crate::addr::PortId;
use crate::batch::{BATCH_FRAMES, Batch};
use crate::bridge::fdb::Tick;
use crate::bridge::neighbours::Heard;
use crate::frame::Frame;
use crate::port::PortQueue;
use crate::stats::{Counters, DropReason};
use crate::topology::{Bridge, Port, Topology};

mod admit;
pub mod answer;
mod clamp;
mod egress;
mod guard;
mod neighbour;
mod parse;
mod path;
mod relay;
#[cfg(test)]
mod tests;

/// One step of the way through the switch.
pub type Stage = fn(&mut Context<'_>, &mut Batch);

/// Every stage, in order, with its name.
pub const STAGES: &[(&str, Stage)] = &[
    ("parse", parse::run),         // headers: addresses, tag
    ("admit", admit::run),         // may it come in, and in which VLAN; FDB buckets prefetched
    ("guard", guard::run),         // no tunnel has stations of this side
    ("clamp", clamp::run),         // TCP out of a tunnel: segments that fit its path
    ("neighbour", neighbour::run), // ARP and neighbour discovery, answered here instead of in tunnels
    ("relay", relay::run),         // learn the source, then find where the destination is: a port, or a flood
    ("egress", egress::run),       // per leaving port: tag, length, offloads, transmit
    ("answer", answer::run),       // what the switch itself says to whoever sent them
];

/// Passes a batch through every stage.
#[inline]
pub fn run(context: &mut Context<'_>, batch: &mut Batch) {
    for (_, stage) in STAGES {
        stage(context, batch);
    }
}

/// What the stages know beside the batch.
#[derive(Debug)]
pub struct Context<'a> {
    /// The switch as it is for this batch.
    pub topology: &'a Topology,
    /// The port the batch came in by.
    pub port: &'a Port,
    /// That port's bridge.
    pub bridge: &'a Bridge,
    /// Index of this worker.
    pub worker: usize,
    /// The time.
    pub now: Tick,
    /// Which frames leave by which port.
    pub outbox: &'a mut Outbox,
    /// This worker's way out of each port, by port id.
    pub queues: &'a mut [Option<Box<dyn PortQueue>>],
    /// Memory for frames that are finished in software.
    pub workshop: &'a mut Workshop,
}

impl Context<'_> {
    /// This worker's counters of the receiving port.
    #[inline]
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.port.shared.counters[self.worker]
    }

    /// Ends a frame's way and counts why, at the receiving port.
    #[inline]
    pub(crate) fn drop_frame(&self, frame: &mut Frame, reason: DropReason) {
        frame.live = false;
        self.counters().drop_frame(reason);
    }
}

/// News of neighbours in one batch, at most.
const HEARD_MAX: usize = 16;

/// Frames by leaving port, in batch order, whatever mix of unicast and flood.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Indices into the batch, by port id.
    lists: Vec<ArrayVec<u8, BATCH_FRAMES>>,
    /// Ports whose list is not empty, in order of their first frame.
    active: Vec<PortId>,
    /// What goes back by the receiving port.
    pub(crate) answers: answer::Answers,
    /// Neighbours to tell the control side of.
    pub(crate) heard: ArrayVec<Heard, HEARD_MAX>,
}

impl Outbox {
    /// Makes room for port ids below `ports`; called when the topology changes, never per batch.
    pub fn resize(&mut self, ports: usize) {
        self.lists.resize_with(ports, ArrayVec::new);
        self.active.reserve(ports);
    }

    /// Frame `index` of the batch leaves by `port`.
    #[inline]
    pub(crate) fn push(&mut self, port: PortId, index: usize) {
        // Sized with the topology.
        let list = &mut self.lists[port.index()];
        if list.is_empty() {
            self.active.push(port);
        }
        // An index into a batch is below 64, and a frame leaves by a port at most once, so neither can fail.
        #[allow(clippy::cast_possible_truncation)]
        list.push(index as u8);
    }
}

/// Memory for frames that are finished in software: a batch of segments, or one whole frame.
#[derive(Debug)]
pub struct Workshop(Box<[u8]>);

impl Default for Workshop {
    fn default() -> Self {
        Workshop(vec![0; 2 * crate::batch::BATCH_BYTES].into_boxed_slice())
    }
}
