//! Frames in a network device's virtqueues (virtio 1.2, section 5.1.6).
//!
//! A frame in a ring has a header of twelve bytes before it: the ten that the switch has before each of its frames anyway, and how many
//! buffers it fills. (Ten only for a driver from before virtio 1.0 that does not merge buffers.) What a guest sends is copied once, into the batch;
//! all that is read afterwards is that copy. What a guest receives is copied once, from wherever its pieces are.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::memory::{Area, GuestMemory};
use super::ring::{Access, Budget, PIECES_MAX, Records, Ring, Setup};
use super::{Fault, feature};
use crate::batch::{BATCH_FRAMES, Batch, FRAME_MAX};
use crate::frame::Outgoing;
use crate::offload::{Capabilities, VNET_HDR_LEN};
use crate::stats::{Counters, DropReason};
use crate::sys::bells;

/// Length of the header of virtio 1, in bytes.
pub const HEADER_LEN: usize = VNET_HDR_LEN + 2;

const F_NEEDS_CSUM: u8 = 1;
const GSO_ECN: u8 = 0x80;

/// What a guest takes, by the features it agreed to.
#[must_use]
pub fn capabilities(features: u64) -> Capabilities {
    let has = |bits: u64| features & bits == bits;
    let csum = has(feature::NET_GUEST_CSUM);
    Capabilities {
        csum,
        tso4: csum && has(feature::NET_GUEST_TSO4),
        tso6: csum && has(feature::NET_GUEST_TSO6),
        uso: csum && has(feature::NET_GUEST_USO4 | feature::NET_GUEST_USO6),
    }
}

/// How receiving from a ring ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Nothing waits.
    Drained,
    /// More may wait.
    More,
}

/// A ring of frames.
#[derive(Debug)]
pub struct NetRing {
    ring: Ring,
    features: u64,
    header_len: usize,
    /// What rings the driver.
    call: Option<Arc<OwnedFd>>,
    pieces: Vec<Area>,
    /// Chains that the frame being sent fills, and how many bytes are in each.
    chains: Vec<(u16, usize)>,
    /// Why it stopped.
    fault: Option<Fault>,
}

impl NetRing {
    /// A ring of a driver that agreed to these features.
    ///
    /// # Errors
    /// As of [`Ring::new`].
    pub fn new(
        memory: Arc<GuestMemory>,
        setup: &Setup,
        features: u64,
        call: Option<Arc<OwnedFd>>,
    ) -> Result<NetRing, Fault> {
        NetRing::recorded(memory, setup, features, call, Records::default())
    }

    /// The same with records.
    ///
    /// # Errors
    /// As of [`Ring::recorded`].
    pub fn recorded(
        memory: Arc<GuestMemory>,
        setup: &Setup,
        features: u64,
        call: Option<Arc<OwnedFd>>,
        records: Records,
    ) -> Result<NetRing, Fault> {
        let long = features & (feature::VERSION_1 | feature::NET_MRG_RXBUF) != 0;
        Ok(NetRing {
            ring: Ring::recorded(memory, setup, records)?,
            features,
            header_len: if long { HEADER_LEN } else { VNET_HDR_LEN },
            call,
            pieces: Vec::with_capacity(PIECES_MAX),
            chains: Vec::with_capacity(usize::from(setup.size)),
            fault: None,
        })
    }

    /// Index of the next chain it would take.
    #[must_use]
    pub fn base(&self) -> u16 {
        self.ring.base()
    }

    /// Stops in order, so that nothing is in flight any more.
    pub fn settle(&mut self) {
        // Of a ring that broke nothing more is given back.
        if self.fault.is_none() && self.ring.drain().unwrap_or(false) {
            self.ring_driver();
        }
        self.ring.forget();
    }

    /// Why it stopped, if it did.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Replaces what rings the driver, and rings it: what was rung before may have been lost.
    pub fn set_call(&mut self, call: Option<Arc<OwnedFd>>) {
        self.call = call;
        self.ring_driver();
    }

    fn ring_driver(&self) {
        if let Some(call) = &self.call {
            bells::ring(call);
        }
    }

    /// Shows what was given back, and rings the driver if it wants that.
    fn show(&mut self) -> Result<(), Fault> {
        if self.ring.show()? {
            self.ring_driver();
        }
        if self.ring.memory().is_broken() { Err(Fault::Memory) } else { Ok(()) }
    }

    /// Takes frames that the guest sends, until the batch is full or nothing waits. With `listen` the driver is to kick for what
    /// comes after.
    ///
    /// # Errors
    /// The driver broke a rule. The ring has stopped, and says the same for ever.
    pub fn receive(
        &mut self,
        batch: &mut Batch,
        counters: &Counters,
        listen: bool,
    ) -> Result<Outcome, Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let taken = self.take_frames(batch, counters);
        // What was taken until a rule was broken is given back all the same.
        let shown = self.show();
        let outcome = taken.and_then(|outcome| {
            shown?;
            self.listen(listen, outcome)
        });
        outcome.inspect_err(|&fault| self.fault = Some(fault))
    }

    /// Has the driver kick from now on; whether frames wait, which nobody may have kicked for.
    ///
    /// # Errors
    /// The driver broke a rule, now or before.
    pub fn wait(&mut self) -> Result<bool, Fault> {
        self.fault.map_or_else(|| self.ring.listen(true), Err)
    }

    /// Kicks are wanted by whoever waits for them, and again after each look.
    fn listen(&mut self, listen: bool, outcome: Outcome) -> Result<Outcome, Fault> {
        let drained = outcome == Outcome::Drained;
        if (listen && !drained) || (!listen && !self.ring.is_listening()) {
            return Ok(outcome);
        }
        let waits = self.ring.listen(listen)?;
        Ok(if waits { Outcome::More } else { outcome })
    }

    fn take_frames(&mut self, batch: &mut Batch, counters: &Counters) -> Result<Outcome, Fault> {
        let mut budget = Budget::new(Budget::RECEIVING);
        // Bounded by tries, not by frames taken: a sender of nonsense must not keep the worker here.
        for _ in 0..BATCH_FRAMES {
            if batch.is_full() || budget.is_spent() {
                return Ok(Outcome::More);
            }
            if self.ring.waiting(1)? == 0 {
                return Ok(Outcome::Drained);
            }
            self.pieces.clear();
            let chain = self.ring.chain(0, Access::Read, &mut self.pieces, &mut budget)?;
            self.ring.take(chain.head)?;
            self.ring.advance(1);
            let len = chain.len.saturating_sub(self.header_len);
            if len > FRAME_MAX {
                counters.drop_frame(DropReason::RxError);
            } else {
                self.copy_in(batch)?;
                if batch.take(len, None).is_err() {
                    counters.drop_frame(DropReason::BadOffload);
                }
            }
            self.ring.give_back(chain.head, 0)?;
        }
        Ok(Outcome::More)
    }

    /// Copies the pieces of a chain to where the batch's next frame goes. What is there of a header that is cut short is zero.
    #[inline]
    fn copy_in(&self, batch: &mut Batch) -> Result<(), Fault> {
        let spare = batch.spare();
        let (for_header, mut for_frame) = spare.split_at_mut(VNET_HDR_LEN);
        let mut header = [0; HEADER_LEN];
        let mut headed = 0;
        for &piece in &self.pieces {
            let mut slice = self.ring.memory().slice(piece).ok_or(Fault::Memory)?;
            if headed < self.header_len {
                let taken = slice.copy_to(&mut header[headed..self.header_len]);
                headed += taken;
                slice = slice.offset(taken).map_err(|_| Fault::Memory)?;
            }
            let taken = slice.copy_to(for_frame);
            for_frame = &mut for_frame[taken..];
        }
        for_header.copy_from_slice(&header[..VNET_HDR_LEN]);
        Ok(())
    }

    /// Sends frames to the guest; each is counted, as sent or as dropped.
    ///
    /// # Errors
    /// The driver broke a rule. The ring has stopped, and says the same for ever; the frames are counted all the same.
    pub fn transmit(&mut self, frames: &[Outgoing<'_>], counters: &Counters) -> Result<(), Fault> {
        let mut budget = Budget::new(Budget::SENDING);
        for (index, frame) in frames.iter().enumerate() {
            let sent = self.fault.map_or_else(|| self.send(frame, &mut budget), Err);
            match sent {
                Ok(None) => counters.sent(frame.frame_len(), frame.segments()),
                Ok(Some(reason)) => counters.drop_frame(reason),
                Err(fault) => {
                    // What is written already the guest may have.
                    let _ = self.show();
                    self.fault = Some(fault);
                    counters.drop_frames(DropReason::BadRing, (frames.len() - index) as u64);
                    return Err(fault);
                }
            }
        }
        self.show().inspect_err(|&fault| self.fault = Some(fault))
    }

    /// Copies one frame into the guest's buffers; why not, if it cannot be.
    fn send(&mut self, frame: &Outgoing<'_>, budget: &mut Budget) -> Result<Option<DropReason>, Fault> {
        let slices = frame.slices();
        let Some(header) = self.header(slices[0]) else { return Ok(Some(DropReason::TxError)) };
        let needed = self.header_len + frame.frame_len();
        if let Some(reason) = self.find_room(needed, budget)? {
            return Ok(Some(reason));
        }
        let mut header_out = [0; HEADER_LEN];
        header_out[..VNET_HDR_LEN].copy_from_slice(&header);
        let count = u16::try_from(self.chains.len()).map_err(|_| Fault::Pieces)?;
        header_out[VNET_HDR_LEN..].copy_from_slice(&count.to_le_bytes());
        for &(head, _) in &self.chains {
            self.ring.take(head)?;
        }
        let [_, frame_slices @ ..] = slices;
        self.copy_out(&header_out[..self.header_len], &frame_slices)?;
        self.ring.wrote(&self.pieces, needed)?;
        self.ring.advance(count);
        let mut rest = needed;
        for index in 0..self.chains.len() {
            let (head, room) = self.chains[index];
            let written = rest.min(room);
            rest -= written;
            self.ring.give_back(head, u32::try_from(written).map_err(|_| Fault::Pieces)?)?;
        }
        Ok(None)
    }

    /// The offload header as this driver may see it. `None` is one that it must not: what it agreed to changed just now.
    #[inline]
    fn header(&self, header: &[u8]) -> Option<[u8; VNET_HDR_LEN]> {
        let mut header: [u8; VNET_HDR_LEN] = *header.first_chunk()?;
        let can = capabilities(self.features);
        if !can.csum {
            // Not even that a checksum is right may be said to it.
            return (header[0] & F_NEEDS_CSUM == 0).then_some([0; VNET_HDR_LEN]);
        }
        let fits = match header[1] & !GSO_ECN {
            0 => true,
            1 => can.tso4,
            4 => can.tso6,
            5 => can.uso,
            _ => false,
        };
        if self.features & feature::NET_GUEST_ECN == 0 {
            header[1] &= !GSO_ECN;
        }
        fits.then_some(header)
    }

    /// Finds buffers for `needed` bytes: one, or with merged buffers as many as it takes.
    #[inline]
    fn find_room(&mut self, needed: usize, budget: &mut Budget) -> Result<Option<DropReason>, Fault> {
        self.pieces.clear();
        self.chains.clear();
        let merges = self.features & feature::NET_MRG_RXBUF != 0;
        let mut room = 0;
        while room < needed {
            let ahead = u16::try_from(self.chains.len()).map_err(|_| Fault::Pieces)?;
            if ahead > 0 && !merges {
                return Ok(Some(DropReason::TooLong));
            }
            let full = budget.is_spent() || self.chains.len() == self.chains.capacity();
            if full || self.ring.waiting(ahead + 1)? <= ahead {
                return Ok(Some(DropReason::TxFull));
            }
            let chain = self.ring.chain(ahead, Access::Write, &mut self.pieces, budget)?;
            self.chains.push((chain.head, chain.len));
            room += chain.len;
        }
        Ok(None)
    }

    /// Writes the header and the frame into the pieces found.
    #[inline]
    fn copy_out(&self, header: &[u8], frame: &[&[u8]]) -> Result<(), Fault> {
        let mut pieces = self.pieces.iter().map(|&piece| self.ring.memory().slice(piece));
        let mut slice = pieces.next().flatten().ok_or(Fault::Memory)?;
        for mut bytes in std::iter::once(header).chain(frame.iter().copied()) {
            while !bytes.is_empty() {
                if slice.is_empty() {
                    slice = pieces.next().flatten().ok_or(Fault::Memory)?;
                }
                let taken = bytes.len().min(slice.len());
                slice.copy_from(&bytes[..taken]);
                slice = slice.offset(taken).map_err(|_| Fault::Memory)?;
                bytes = &bytes[taken..];
            }
        }
        Ok(())
    }
}
