//! Answer: what the switch itself says about the frames of a batch goes back by the port they came in by.
//!
//! Earlier stages write answers with [`Answers::push`]; this one sends them, last, when the batch's own frames have left. An
//! answer has the tag its question came with, so it suits the port without further look. Nobody learns from it.
//!
//! Anybody can ask for more than is good for the switch: of each kind a batch gets at most [`BATCH_ANSWERS`], and a worker
//! gives at most [`SECOND_ANSWERS`] a second.

use super::Context;
use crate::batch::Batch;
use crate::bridge::fdb::Tick;
use crate::frame::Outgoing;
use crate::offload::VNET_HDR_LEN;

/// Longest answer, in bytes: an ICMPv6 error of 1280 bytes behind two VLAN tags.
pub const ANSWER_MAX: usize = 1280 + 14 + 8;
/// Answers of one kind to the frames of one batch, at most.
pub const BATCH_ANSWERS: usize = 32;
/// Answers of one kind that one worker gives in a second, at most.
pub const SECOND_ANSWERS: u32 = 10_000;

/// Kinds of answers: those of [`About`].
const KINDS: usize = 2;
const SLOT: usize = (VNET_HDR_LEN + ANSWER_MAX).next_multiple_of(64);

pub(super) fn run(context: &mut Context<'_>, _batch: &mut Batch) {
    let answers = &mut context.outbox.answers;
    if answers.lens.is_empty() {
        return;
    }
    let frames = answers.lens.iter().zip(answers.slots.chunks_exact(SLOT));
    let frames: arrayvec::ArrayVec<_, { KINDS * BATCH_ANSWERS }> = frames
        .map(|(&len, slot)| Outgoing::Whole { bytes: &slot[..VNET_HDR_LEN + len], segments: 1 })
        .collect();
    let port = context.port;
    if let Some(Some(queue)) = context.queues.get_mut(port.id.index())
        && !port.shared.is_gone()
    {
        // Whether its device is gone is found out by whoever receives from it.
        queue.transmit(&frames, &port.shared.counters[context.worker]);
        queue.flush();
    }
    answers.lens.clear();
    answers.batch = [0; KINDS];
}

/// What an answer is about: nobody uses up the answers that others need.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum About {
    /// A neighbour that was asked for.
    Neighbour,
    /// A packet that is too long.
    TooBig,
}

/// Frames that the switch itself makes, in answer to those of a batch.
#[derive(Debug)]
pub struct Answers {
    slots: Box<[u8]>,
    lens: arrayvec::ArrayVec<usize, { KINDS * BATCH_ANSWERS }>,
    /// To this batch, by kind.
    batch: [usize; KINDS],
    second: Tick,
    /// In that second, by kind.
    given: [u32; KINDS],
}

impl Default for Answers {
    fn default() -> Self {
        Answers {
            slots: vec![0; KINDS * BATCH_ANSWERS * SLOT].into(),
            lens: arrayvec::ArrayVec::new(),
            second: Tick(0),
            given: [0; KINDS],
            batch: [0; KINDS],
        }
    }
}

impl Answers {
    /// Has `make` write an answer; it returns its length, `None` if there is none to give. Whether there is one: not
    /// when there were too many already.
    pub fn push(
        &mut self,
        about: About,
        now: Tick,
        make: impl FnOnce(&mut [u8; ANSWER_MAX]) -> Option<usize>,
    ) -> bool {
        if self.second != now {
            (self.second, self.given) = (now, [0; KINDS]);
        }
        if self.batch[about as usize] >= BATCH_ANSWERS || self.given[about as usize] >= SECOND_ANSWERS {
            return false;
        }
        let slot = &mut self.slots[self.lens.len() * SLOT..][..SLOT];
        let (header, frame) = slot.split_at_mut(VNET_HDR_LEN);
        header.fill(0);
        let Some(frame) = frame.first_chunk_mut() else { return false };
        let Some(len) = make(frame).filter(|&len| len <= ANSWER_MAX) else { return false };
        self.given[about as usize] += 1;
        self.batch[about as usize] += 1;
        self.lens.push(len);
        true
    }
}
