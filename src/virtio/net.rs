//! Frames in a network device's virtqueues (virtio 1.2, section 5.1.6).
//!
//! A frame in a ring has a header of twelve bytes before it: the ten that the switch has before each of its frames anyway, and how many
//! buffers it fills. (Ten only for a driver from before virtio 1.0 that does not merge buffers.) The headers of what a guest sends are copied
//! into the batch, and all that is decided by is that copy. What is behind them is copied with them, or lent if it is long: then it is
//! read where it leaves. What a guest receives is copied once, from wherever its pieces are.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use arrayvec::ArrayVec;
use vm_memory::volatile_memory::{VolatileMemory, VolatileSlice};
use vm_memory::{Le16, Le32, Le64};

use super::memory::{Area, GuestMemory};
use super::ring::{Access, Budget, Chain, Found, Likely, Open, Records, Ring, Setup};
use super::{Fault, feature};
use crate::batch::{BATCH_FRAMES, Batch, FRAME_MAX};
use crate::frame::Outgoing;
use crate::offload::{BadOffload, Capabilities, VNET_HDR_LEN};
use crate::stats::{Counters, DropReason};
use crate::sys::{caller, mem};

/// Length of the header of virtio 1, in bytes.
pub const HEADER_LEN: usize = VNET_HDR_LEN + 2;

/// Frames whose memory is asked for before the first is copied. With more the first level of the cache, of which others need a part, too,
/// has forgotten the first by then: buffers that lie at even distances share but few of its places.
const GROUP: usize = 32;
/// How much of a frame's first piece is asked for before it is copied: the header, and what a small frame has. The processor sees
/// for itself that more is read of a long one.
const PREFETCH: usize = 128;

/// How much of a long frame is asked for while the one before it is copied.
const LONG: usize = 1536;

const F_NEEDS_CSUM: u64 = 1;
/// Where the kind of segmentation is in the header's first word.
const GSO_SHIFT: u32 = 8;
const GSO_ECN: u64 = 0x80;

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
    /// Why it stopped.
    fault: Option<Fault>,
    /// Whether frames in a batch have their ends in chains that it took and has not shown as given back.
    lending: bool,
    /// Scratch memory: the chains that the frames of one call are in or go to.
    found: Found,
}

/// Where a frame goes: how many of the chains and pieces that were found are its own.
#[derive(Clone, Copy, Debug)]
struct Room {
    chains: usize,
    pieces: usize,
}

/// The header before a frame, as two numbers. (Bytes that were written one by one and are read as a word must wait for all stores before
/// them, and the stores before them are to memory that another CPU has just used.)
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Header {
    /// Flags, kind of segmentation, length of the headers, segment size, start of the checksum.
    first: u64,
    /// Offset of the checksum; how many buffers the frame fills.
    rest: u32,
}

impl Header {
    const NONE: Header = Header { first: 0, rest: 0 };

    /// The offload header of a frame, in no buffer yet.
    #[inline]
    fn of(frame: &Outgoing<'_>) -> Header {
        let [f0, f1, f2, f3, f4, f5, f6, f7, r0, r1] = *frame.header();
        let first = u64::from_le_bytes([f0, f1, f2, f3, f4, f5, f6, f7]);
        Header { first, rest: u16::from_le_bytes([r0, r1]).into() }
    }

    /// The same for a frame in so many buffers: at most the ring's, which is less than the field can say.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "at most a ring's size")]
    fn filling(self, buffers: usize) -> Header {
        Header { rest: self.rest | (buffers as u32) << u16::BITS, ..self }
    }

    /// Whether the frame is still to be segmented.
    #[inline]
    fn is_gso(self) -> bool {
        self.first >> GSO_SHIFT & 0xff != 0
    }

    /// Without the number of buffers.
    #[inline]
    fn to_offload(self) -> [u8; VNET_HDR_LEN] {
        let [f0, f1, f2, f3, f4, f5, f6, f7] = self.first.to_le_bytes();
        let [r0, r1, ..] = self.rest.to_le_bytes();
        [f0, f1, f2, f3, f4, f5, f6, f7, r0, r1]
    }

    fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [r0, r1, r2, r3] = self.rest.to_le_bytes();
        let [f0, f1, f2, f3, f4, f5, f6, f7] = self.first.to_le_bytes();
        [f0, f1, f2, f3, f4, f5, f6, f7, r0, r1, r2, r3]
    }

    /// Reads one that lies in one piece, at its beginning.
    #[inline]
    fn read(piece: &VolatileSlice<'_>, len: usize) -> Option<Header> {
        let first = piece.get_ref::<Le64>(0).ok()?.load().to_native();
        let rest = match len {
            HEADER_LEN => piece.get_ref::<Le32>(8).ok()?.load().to_native(),
            _ => piece.get_ref::<Le16>(8).ok()?.load().to_native().into(),
        };
        Some(Header { first, rest })
    }

    /// Writes it to where a piece begins, if there is room for all of it. Where it is already, which is so in a buffer that is used again,
    /// it stays as it is: a line that nobody writes to is in the caches of both.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the shorter form has no number of buffers")]
    fn write(self, piece: &VolatileSlice<'_>, len: usize) -> bool {
        if piece.len() < len {
            return false;
        }
        if Header::read(piece, len) == Some(self) {
            return true;
        }
        let first = piece.get_ref::<Le64>(0).map(|place| place.store(self.first.into()));
        let rest = match len {
            HEADER_LEN => piece.get_ref::<Le32>(8).map(|place| place.store(self.rest.into())),
            _ => piece.get_ref::<Le16>(8).map(|place| place.store((self.rest as u16).into())),
        };
        first.is_ok() && rest.is_ok()
    }

    /// As a driver that agreed to these features may see it. `None` is one that it must not.
    #[inline]
    fn seen_with(mut self, features: u64) -> Option<Header> {
        if self == Header::NONE {
            return Some(self);
        }
        let can = capabilities(features);
        if !can.csum {
            // Not even that a checksum is right may be said to it.
            return (self.first & F_NEEDS_CSUM == 0).then_some(Header::NONE);
        }
        let fits = match self.first >> GSO_SHIFT & (0xff & !GSO_ECN) {
            0 => true,
            1 => can.tso4,
            4 => can.tso6,
            5 => can.uso,
            _ => false,
        };
        if features & feature::NET_GUEST_ECN == 0 {
            self.first &= !(GSO_ECN << GSO_SHIFT);
        }
        fits.then_some(self)
    }
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
            fault: None,
            lending: false,
            found: Found::default(),
        })
    }

    /// Index of the next chain it would take if it was made anew.
    #[must_use]
    pub fn base(&self) -> u16 {
        // Of one that broke, what was taken and not given back is to be taken again.
        if self.fault.is_some() { self.ring.shown() } else { self.ring.base() }
    }

    /// Shows the driver all that was given back, for nobody looks at the ring from now on.
    pub fn leave(&mut self) {
        if self.fault.is_none() && !self.lending {
            self.fault = self.show().err();
        }
    }

    /// Stops in order, so that nothing is in flight any more.
    pub fn settle(&mut self) {
        // Of a ring that broke nothing more is given back.
        if self.fault.is_none() && self.ring.open().and_then(|mut ring| ring.drain()).unwrap_or(false) {
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

    fn ring_driver(&mut self) {
        if let Some(call) = &self.call {
            // Where that may wait, the thread says so.
            let _ = caller::ring(call);
        }
    }

    /// Shows what was given back, and rings the driver if it wants that.
    fn show(&mut self) -> Result<(), Fault> {
        self.show_by(|ring| ring.show())
    }

    /// The same of what was read, which it may see late: it is shown no later than kicks are waited for.
    fn show_late(&mut self) -> Result<(), Fault> {
        let prompt = self.ring.is_listening() || self.fault.is_some();
        self.show_by(|ring| if prompt { ring.show() } else { ring.show_late() })
    }

    fn show_by(&mut self, show: impl FnOnce(&mut Open<'_>) -> Result<bool, Fault>) -> Result<(), Fault> {
        if show(&mut self.ring.open()?)? {
            self.ring_driver();
        }
        if self.ring.memory().is_broken() { Err(Fault::Memory) } else { Ok(()) }
    }

    /// Takes frames that the guest sends, until the batch is full, the budget spent, or nothing waits. With `listen` the driver is to
    /// kick for what comes after. What of them is lent is the guest's again with [`NetRing::take_back`].
    ///
    /// # Errors
    /// The driver broke a rule. The ring has stopped, and says the same for ever.
    pub fn receive(
        &mut self,
        batch: &mut Batch,
        counters: &Counters,
        budget: &mut Budget,
        listen: bool,
    ) -> Result<Outcome, Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let taken = self.take_frames(batch, counters, budget);
        // What was taken until a rule was broken is given back all the same.
        let shown = match taken {
            _ if self.lending => Ok(()),
            Ok(_) => self.show_late(),
            Err(_) => self.show(),
        };
        let outcome = taken.and_then(|outcome| {
            shown?;
            self.listen(listen, outcome)
        });
        outcome.inspect_err(|&fault| self.fault = Some(fault))
    }

    /// Whether what it gave to a batch is lent, and [`NetRing::take_back`] is due.
    #[must_use]
    pub fn is_lending(&self) -> bool {
        self.lending
    }

    /// Gives back to the driver what was lent to a batch.
    pub fn take_back(&mut self) {
        if !std::mem::take(&mut self.lending) {
            return;
        }
        if let Err(fault) = self.show_late() {
            self.fault = Some(fault);
        }
    }

    /// Has the driver kick from now on; whether frames wait, which nobody may have kicked for.
    ///
    /// # Errors
    /// The driver broke a rule, now or before.
    pub fn wait(&mut self) -> Result<bool, Fault> {
        self.fault.map_or(Ok(()), Err)?;
        // What is lent is shown when it is taken back.
        let shown = if self.lending { Ok(()) } else { self.show() };
        let waits = shown.and_then(|()| self.ring.open()?.listen(true));
        waits.inspect_err(|&fault| self.fault = Some(fault))
    }

    /// Kicks are wanted by whoever waits for them, and again after each look.
    fn listen(&mut self, listen: bool, outcome: Outcome) -> Result<Outcome, Fault> {
        let drained = outcome == Outcome::Drained;
        if (listen && !drained) || (!listen && !self.ring.is_listening()) {
            return Ok(outcome);
        }
        let waits = if listen { self.wait()? } else { self.ring.open()?.listen(false)? };
        Ok(if waits { Outcome::More } else { outcome })
    }

    fn take_frames(
        &mut self,
        batch: &mut Batch,
        counters: &Counters,
        budget: &mut Budget,
    ) -> Result<Outcome, Fault> {
        // Bounded by tries, not by frames taken: a sender of nonsense must not keep the worker here.
        for _ in (0..BATCH_FRAMES).step_by(GROUP) {
            if batch.is_full() || budget.is_spent() {
                break;
            }
            if self.take_group(batch, counters, budget)? == Outcome::Drained {
                return Ok(Outcome::Drained);
            }
        }
        Ok(Outcome::More)
    }

    /// Takes a group of frames in three rounds, each of which asks for the memory that the next one needs: descriptors, buffers, copies. A
    /// guest's memory is in the caches of the CPU that it runs on, and waiting for one line after the other would cost more than all
    /// the rest.
    fn take_group(
        &mut self,
        batch: &mut Batch,
        counters: &Counters,
        budget: &mut Budget,
    ) -> Result<Outcome, Fault> {
        let NetRing { ring, header_len, found, lending, .. } = self;
        let likely = Likely { header_len: *header_len, len: PREFETCH };
        let mut ring = ring.open()?;
        found.clear();
        let room = BATCH_FRAMES - batch.frames.len();
        let waiting = usize::from(ring.waiting(room.try_into().unwrap_or(u16::MAX))?);
        let tries = waiting.min(room).min(GROUP);
        ring.prefetch(tries);

        let mut fault = None;
        for ahead in 0..tries {
            if budget.is_spent() {
                break;
            }
            if let Err(broken) = ring.chain(ahead, Access::Read, likely, found, budget) {
                fault = Some(broken);
                break;
            }
        }

        ring.count_late(found.pieces.len());
        let mut pieces = &found.pieces[..];
        for chain in &found.chains {
            if batch.is_full() {
                return Ok(Outcome::More);
            }
            let own;
            (own, pieces) = pieces.split_at(chain.pieces);
            ring.take(chain.head)?;
            let len = chain.len.saturating_sub(*header_len);
            if len > FRAME_MAX {
                counters.drop_frame(DropReason::RxError);
            } else {
                match take_frame(ring.memory(), own, *header_len, len, batch)? {
                    Ok(lent) => *lending |= lent,
                    Err(_) => counters.drop_frame(DropReason::BadOffload),
                }
            }
            ring.give_back_read(chain.head)?;
        }
        let all = found.chains.len() == waiting;
        match fault {
            Some(fault) => Err(fault),
            None if all && ring.waiting(1)? == 0 => Ok(Outcome::Drained),
            None => Ok(Outcome::More),
        }
    }

    /// Sends frames to the guest; each is counted, as sent or as dropped.
    ///
    /// # Errors
    /// The driver broke a rule. The ring has stopped, and says the same for ever; the frames are counted all the same.
    pub fn transmit(
        &mut self,
        frames: &[Outgoing<'_>],
        counters: &Counters,
        budget: &mut Budget,
    ) -> Result<(), Fault> {
        let mut rest = frames;
        if self.fault.is_none() && self.ring.is_listening() {
            // Nobody waits for buffers.
            self.fault = self.ring.open().and_then(|mut ring| ring.listen(false)).err();
        }
        while self.fault.is_none() && !rest.is_empty() {
            let (some, others) = rest.split_at(rest.len().min(GROUP));
            match self.send(some, budget, counters) {
                Ok(()) => rest = others,
                Err((sent, fault)) => {
                    self.fault = Some(fault);
                    rest = &rest[sent..];
                }
            }
        }
        // What is written already the guest may have.
        let shown = self.show();
        if let Some(fault) = self.fault {
            counters.drop_frames(DropReason::BadRing, rest.len() as u64);
            return Err(fault);
        }
        shown.inspect_err(|&fault| self.fault = Some(fault))
    }

    /// Copies a group of frames into the guest's buffers, in rounds as [`NetRing::take_group`] does. After a fault: how many were
    /// seen to before.
    fn send(
        &mut self,
        frames: &[Outgoing<'_>],
        budget: &mut Budget,
        counters: &Counters,
    ) -> Result<(), (usize, Fault)> {
        let NetRing { ring, features, header_len, found, .. } = self;
        let mut ring = ring.open().map_err(|fault| (0, fault))?;
        found.clear();
        let merges = *features & feature::NET_MRG_RXBUF != 0;
        ring.waiting(frames.len().try_into().unwrap_or(u16::MAX)).map_err(|fault| (0, fault))?;
        ring.prefetch(frames.len());
        ring.prefetch_used(frames.len());

        let mut rooms = ArrayVec::<Result<Room, DropReason>, GROUP>::new();
        let mut fault = None;
        for frame in frames {
            let room = if Header::of(frame).seen_with(*features).is_some() {
                find_room(&mut ring, *header_len, frame.frame_len(), merges, found, budget)
            } else {
                // What it agreed to changed just now.
                Ok(Err(DropReason::TxError))
            };
            match room {
                Ok(room) => rooms.push(room),
                Err(broken) => {
                    fault = Some((rooms.len(), broken));
                    break;
                }
            }
        }

        let (mut chains, mut pieces) = (&found.chains[..], &found.pieces[..]);
        let (mut sent, mut bytes, mut segments) = (0, 0, 0);
        for (index, (frame, room)) in frames.iter().zip(rooms).enumerate() {
            match room {
                Ok(room) => {
                    let (own_chains, own_pieces);
                    (own_chains, chains) = chains.split_at(room.chains);
                    (own_pieces, pieces) = pieces.split_at(room.pieces);
                    if let (Some(next), Some(&piece)) = (frames.get(index + 1), pieces.first()) {
                        ask_for(next, ring.memory(), piece);
                    }
                    // As it was when room was looked for.
                    let header = Header::of(frame).seen_with(*features).unwrap_or(Header::NONE);
                    // The shorter form does not say it.
                    let header = if *header_len == HEADER_LEN { header.filling(room.chains) } else { header };
                    if let Err(broken) = put(&mut ring, frame, header, *header_len, own_chains, own_pieces) {
                        fault = Some((index, broken));
                        break;
                    }
                    sent += 1;
                    bytes += frame.frame_len() as u64;
                    segments += u64::from(frame.segments());
                }
                Err(reason) => counters.drop_frame(reason),
            }
        }
        counters.sent_all(sent, bytes, segments);
        fault.map_or(Ok(()), Err)
    }
}

/// Takes a frame of `len` bytes into the batch, from the pieces of its chain; whether its end is lent.
#[inline]
fn take_frame(
    memory: &Arc<GuestMemory>,
    pieces: &[Area],
    header_len: usize,
    len: usize,
    batch: &mut Batch,
) -> Result<Result<bool, BadOffload>, Fault> {
    let first = pieces.first().and_then(|&piece| memory.slice(piece));
    let Some((first, header)) = first.and_then(|first| Some((first, Header::read(&first, header_len)?)))
    else {
        copy_in_shreds(memory, pieces, header_len, batch)?;
        return Ok(batch.take(len, None).map(|()| false));
    };
    let here = batch.lends(header.is_gso(), len, pieces.len(), memory);
    let Some((for_header, for_frame)) = batch.spare().split_first_chunk_mut() else { unreachable!() };
    *for_header = header.to_offload();
    let for_frame = &mut for_frame[..here.unwrap_or(len)];
    let mut at = first.offset(header_len).map_err(|_| Fault::Memory)?.copy_to(for_frame);
    for &piece in &pieces[1..] {
        if at == for_frame.len() {
            break;
        }
        at += memory.slice(piece).ok_or(Fault::Memory)?.copy_to(&mut for_frame[at..]);
    }
    let Some(here) = here else { return Ok(batch.take(len, None).map(|()| false)) };
    let mut before = header_len + here;
    let behind = pieces.iter().filter_map(|piece| {
        let rest = piece.behind(before);
        before = before.saturating_sub(piece.len);
        rest
    });
    Ok(batch.take_lent(here, len, memory, behind).map(|()| true))
}

/// Copies the pieces of a chain to where the batch's next frame goes. What is there of a header that is cut short is zero.
#[cold]
fn copy_in_shreds(
    memory: &GuestMemory,
    pieces: &[Area],
    header_len: usize,
    batch: &mut Batch,
) -> Result<(), Fault> {
    let (for_header, mut for_frame) = batch.spare().split_at_mut(VNET_HDR_LEN);
    let mut header = [0; HEADER_LEN];
    let mut headed = 0;
    for &piece in pieces {
        let mut slice = memory.slice(piece).ok_or(Fault::Memory)?;
        if headed < header_len {
            let taken = slice.copy_to(&mut header[headed..header_len]);
            headed += taken;
            slice = slice.offset(taken).map_err(|_| Fault::Memory)?;
        }
        let taken = slice.copy_to(for_frame);
        for_frame = &mut for_frame[taken..];
    }
    for_header.copy_from_slice(&header[..VNET_HDR_LEN]);
    Ok(())
}

/// Finds buffers for a header and a frame behind those that were found before: one, or with merged buffers as many as it takes.
#[inline]
fn find_room(
    ring: &mut Open<'_>,
    header_len: usize,
    frame_len: usize,
    merges: bool,
    found: &mut Found,
    budget: &mut Budget,
) -> Result<Result<Room, DropReason>, Fault> {
    let (chains, pieces) = (found.chains.len(), found.pieces.len());
    let needed = header_len + frame_len;
    let likely = Likely { header_len, len: needed.min(PREFETCH) };
    let mut room = 0;
    let reason = loop {
        let ahead = found.chains.len();
        if room >= needed {
            return Ok(Ok(Room { chains: ahead - chains, pieces: found.pieces.len() - pieces }));
        }
        if ahead > chains && !merges {
            break DropReason::TooLong;
        }
        let wanted = u16::try_from(ahead + 1).map_err(|_| Fault::Pieces)?;
        if budget.is_spent() || ring.waiting(wanted)? < wanted {
            break DropReason::TxFull;
        }
        ring.chain(ahead, Access::Write, likely, found, budget)?;
        room += found.chains.last().map_or(0, |chain| chain.len);
    };
    found.chains.truncate(chains);
    found.pieces.truncate(pieces);
    Ok(Err(reason))
}

/// Asks for the memory that a long frame is copied from and to next.
#[inline]
fn ask_for(frame: &Outgoing<'_>, memory: &GuestMemory, piece: Area) {
    let Some(rest) = frame.rest() else { return };
    if let Some(from) = rest.pieces.first().and_then(|&piece| rest.memory.slice(piece)) {
        mem::prefetch_bytes(&from, LONG);
    }
    if let Some(to) = memory.slice(piece) {
        mem::prefetch_bytes_to_write(&to, LONG);
    }
}

/// Writes a frame into the buffers that were found for it, and gives them back.
#[inline]
fn put(
    ring: &mut Open<'_>,
    frame: &Outgoing<'_>,
    header: Header,
    header_len: usize,
    chains: &[Chain],
    pieces: &[Area],
) -> Result<(), Fault> {
    for chain in chains {
        ring.take(chain.head)?;
    }
    Buffers::new(ring.memory(), pieces)?.put_frame(header, header_len, frame)?;
    let mut written = header_len + frame.frame_len();
    ring.wrote(pieces, written)?;
    for chain in chains {
        let here = written.min(chain.len);
        written -= here;
        ring.give_back(chain.head, u32::try_from(here).map_err(|_| Fault::Pieces)?)?;
    }
    Ok(())
}

/// The memory that a frame is written to.
struct Buffers<'r> {
    memory: &'r GuestMemory,
    /// What is left of the piece that is being filled.
    slice: VolatileSlice<'r>,
    pieces: &'r [Area],
}

impl<'r> Buffers<'r> {
    #[inline]
    fn new(memory: &'r GuestMemory, pieces: &'r [Area]) -> Result<Buffers<'r>, Fault> {
        let (&first, pieces) = pieces.split_first().ok_or(Fault::Memory)?;
        Ok(Buffers { memory, slice: memory.slice(first).ok_or(Fault::Memory)?, pieces })
    }

    #[inline]
    fn put_frame(&mut self, header: Header, header_len: usize, frame: &Outgoing<'_>) -> Result<(), Fault> {
        if header.write(&self.slice, header_len) {
            self.slice = self.slice.offset(header_len).map_err(|_| Fault::Memory)?;
        } else {
            self.put(&header.to_bytes()[..header_len])?;
        }
        match frame {
            // Nearly always: without a list of slices, which would be written and read for one.
            Outgoing::Whole { bytes, .. } | Outgoing::Lent { bytes, .. } => {
                self.put(&bytes[VNET_HDR_LEN..])?;
            }
            Outgoing::Segment { .. } | Outgoing::Pieces { .. } => {
                let [_, slices @ ..] = frame.slices();
                slices.iter().try_for_each(|bytes| self.put(bytes))?;
            }
        }
        let Some(rest) = frame.rest() else { return Ok(()) };
        let pieces = rest.pieces.iter().filter_map(|&piece| rest.memory.slice(piece));
        pieces.into_iter().try_for_each(|slice| self.put_slice(slice))
    }

    /// Copies from one guest's memory to another's.
    #[inline]
    fn put_slice(&mut self, mut from: VolatileSlice<'_>) -> Result<(), Fault> {
        while !from.is_empty() {
            self.next_piece()?;
            let taken = from.len().min(self.slice.len());
            from.copy_to_volatile_slice(self.slice);
            self.slice = self.slice.offset(taken).map_err(|_| Fault::Memory)?;
            from = from.offset(taken).map_err(|_| Fault::Memory)?;
        }
        Ok(())
    }

    /// Goes on with the next piece when this one is full.
    #[inline]
    fn next_piece(&mut self) -> Result<(), Fault> {
        while self.slice.is_empty() {
            let next;
            (next, self.pieces) = self.pieces.split_first().ok_or(Fault::Memory)?;
            self.slice = self.memory.slice(*next).ok_or(Fault::Memory)?;
        }
        Ok(())
    }

    #[inline]
    fn put(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        while !bytes.is_empty() {
            self.next_piece()?;
            let taken = bytes.len().min(self.slice.len());
            self.slice.copy_from(&bytes[..taken]);
            self.slice = self.slice.offset(taken).map_err(|_| Fault::Memory)?;
            bytes = &bytes[taken..];
        }
        Ok(())
    }
}
