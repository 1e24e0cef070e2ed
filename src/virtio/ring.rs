//! A split virtqueue, seen by the device (virtio 1.2, section 2.7).
//!
//! The driver puts the heads of descriptor chains into the available ring; we take them in order, and put them into the used ring when we
//! are done, many at a time: entries first, then the index that makes them visible.
//!
//! **What bounds a hostile driver.** At most the ring's size of chains can be available; a chain has at most the ring's size of
//! descriptors, and like an indirect table at most [`CHAIN_MAX`]; a table inside a table is refused; every address is translated; and all
//! chains of one call together have a [`Budget`]. Each index and descriptor is read once and checked as read. Whatever breaks a rule is a
//! [`Fault`], and the ring then stays as it is until it is set up anew: guessing what a broken driver meant gains nothing.
//!
//! **Notifications.** While a worker looks at the ring anyway, kicks are switched off: by the flag, or with the event index by
//! leaving that where it was. [`Open::listen`] switches them on and looks once more, because the driver may have looked before.
//!
//! **Late.** A driver that has interrupts off for a ring does not wait for what it gave to it, and is shown that late: all but the last 64 chains,
//! or up to a batch and as many more ([`Open::show_late`]). DPDK's driver frees what is used in one go as soon as nearly the whole ring is. That is more buffers than its memory
//! pool has at hand, and from then on it takes others, none of which is in a cache. So a switch that was quicker than the guest made both slow.
//!
//! The library `virtio-queue` does the same and more, but translates each address twice, reads the available index for each chain and publishes each used
//! entry by itself, which costs more than the rest of the switch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use vm_memory::volatile_memory::{VolatileMemory, VolatileSlice};
use vm_memory::{ByteValued, Le16, Le64};

use super::dirty::RingLog;
use super::inflight::{Again, Inflight};
use super::memory::{Area, GuestMemory};
use crate::sys::mem;

/// Largest ring.
pub const SIZE_MAX: u16 = 32_768;
/// Most descriptors of a chain or an indirect table. Linux makes none longer than the ring, and QEMU no ring longer than this.
pub const CHAIN_MAX: usize = 1024;
/// Most pieces of memory for one chain.
pub const PIECES_MAX: usize = 4096;

/// Where some chains are shown and others not, so many are not: these, or in a small ring an eighth of it. DPDK's driver frees the whole ring as said above when less than
/// 32 are not used.
const LATE: u16 = 64;
const LATE_PART: u16 = 8;
/// When half of a ring's descriptors are late, all is shown: the driver needs some to go on.
const FULL_PART: u16 = 2;
/// So many looks that find nothing end it, too, since something was shown.
const LATE_LOOKS: u8 = 128;

const DESCRIPTOR_LEN: usize = 16;
const USED_LEN: usize = 8;
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;

/// What a driver did that no driver may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// More chains available than the ring has room for.
    #[error("the available index jumped")]
    AvailIndex,
    /// A descriptor outside the table.
    #[error("a descriptor index is outside its table")]
    Index,
    /// More descriptors in a chain than there are.
    #[error("a descriptor chain is a loop")]
    Loop,
    /// An indirect table that is empty, too long, cut, or inside another; or nobody agreed on them.
    #[error("an indirect descriptor table is impossible")]
    Indirect,
    /// An address outside the guest's memory.
    #[error("an address is outside the memory table")]
    Address,
    /// Memory to be read where some to be written was due, or the other way round.
    #[error("a descriptor has the wrong direction")]
    Direction,
    /// More pieces than [`PIECES_MAX`].
    #[error("a frame is in too many pieces")]
    Pieces,
    /// The file behind the guest's memory has shrunk.
    #[error("the guest's memory has gone")]
    Memory,
    /// The ring's size or place is impossible.
    #[error("the ring's size or place is impossible")]
    Layout,
    /// The front end's bitmap of pages that were written has no bit for one.
    #[error("the dirty log is too short or has gone")]
    Log,
    /// The front end's record of chains in flight is not one of this ring.
    #[error("the record of descriptors in flight makes no sense")]
    Inflight,
}

/// Which way chains go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The device reads them.
    Read,
    /// The device writes them.
    Write,
}

impl Access {
    /// The flags of a descriptor that is a chain by itself.
    #[inline]
    fn flags(self) -> u16 {
        match self {
            Access::Read => 0,
            Access::Write => F_WRITE,
        }
    }
}

/// Work that may still be done in one call, in descriptors and pieces of memory, so that one guest does not keep a worker.
#[derive(Debug)]
pub struct Budget(usize);

impl Budget {
    /// To receive: every frame of a batch in a few pieces, or one chain as long as any.
    pub const RECEIVING: usize = 1024;
    /// To send: every frame of a batch in the twenty pages that a driver without merged buffers gives for one.
    pub const SENDING: usize = 2048;

    /// For one call.
    #[must_use]
    pub fn new(work: usize) -> Budget {
        Budget(work)
    }

    /// Whether nothing is left of it; what was begun may end.
    #[inline]
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.0 == 0
    }

    #[inline]
    fn spend(&mut self) {
        self.0 = self.0.saturating_sub(1);
    }
}

/// Where a ring is and how it is spoken, as its front end says. Addresses are the front end's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setup {
    /// Descriptors: a power of two.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
    /// Index of the first chain to take.
    pub base: u16,
    /// `VIRTIO_F_RING_EVENT_IDX`.
    pub event_idx: bool,
    /// `VIRTIO_F_RING_INDIRECT_DESC`.
    pub indirect: bool,
    /// `VIRTIO_F_IN_ORDER`.
    pub in_order: bool,
}

/// What is recorded of a ring outside the guest's memory. Nothing, unless the front end asks for it.
#[derive(Debug, Default)]
pub struct Records {
    /// Pages that were written.
    pub log: Option<RingLog>,
    /// Chains that were taken and not given back.
    pub inflight: Option<Inflight>,
}

/// A descriptor, as it was when it was read.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// What of a chain is used at once: its first bytes.
#[derive(Clone, Copy, Debug)]
pub struct Likely {
    /// Length of the header, which is only read, or most often found as it would be written.
    pub header_len: usize,
    /// Length of all of it.
    pub len: usize,
}

/// A chain of descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chain {
    /// By which the driver knows it.
    pub head: u16,
    /// Bytes of memory in it.
    pub len: usize,
    /// How many pieces those are in.
    pub pieces: usize,
}

/// Chains that were looked at, in order, and where they have their memory.
#[derive(Debug)]
pub struct Found {
    /// The chains.
    pub chains: Vec<Chain>,
    /// The pieces of all of them.
    pub pieces: Vec<Area>,
}

impl Default for Found {
    /// None, and room for as many as any call may look at.
    fn default() -> Found {
        let chains = Vec::with_capacity(Budget::SENDING);
        Found { chains, pieces: Vec::with_capacity(Budget::SENDING + PIECES_MAX) }
    }
}

impl Found {
    /// Forgets them.
    #[inline]
    pub fn clear(&mut self) {
        self.chains.clear();
        self.pieces.clear();
    }
}

#[derive(Debug)]
struct Place {
    memory: Arc<GuestMemory>,
    descriptors: Area,
    available: Area,
    used: Area,
    size: u16,
    event_idx: bool,
    indirect: bool,
    in_order: bool,
}

/// How far a ring was worked through.
#[derive(Debug)]
struct Cursor {
    /// Next chain to take.
    next_avail: u16,
    /// The driver's index when it was read last.
    seen_avail: u16,
    /// Next used entry to fill in.
    next_used: u16,
    /// The index that the driver was shown last.
    shown_used: u16,
    /// Head of the last chain that was given back without an entry of its own.
    unwritten: Option<u16>,
    late: Late,
    /// Whether the driver is to kick.
    listening: bool,
    /// What was in flight when a switch before us ended; taken before what is available.
    again: Again,
}

/// What a driver has not been shown. It is in two parts, of which it is shown the first when the second is long enough.
#[derive(Clone, Copy, Debug)]
struct Late {
    /// Index of the next used entry at the end of the first part.
    until: u16,
    /// [`Cursor::unwritten`] of then.
    unwritten: Option<u16>,
    /// Pieces of memory in each part: as many as descriptors, or more if some are in tables or were found twice.
    pieces: [usize; 2],
    /// Next used entry at the last look.
    seen: u16,
    /// Looks that found nothing.
    looks: u8,
}

impl Late {
    /// Nothing.
    #[inline]
    fn none(index: u16) -> Late {
        Late { until: index, unwritten: None, pieces: [0; 2], seen: index, looks: 0 }
    }
}

/// A virtqueue.
#[derive(Debug)]
pub struct Ring {
    place: Place,
    cursor: Cursor,
    records: Records,
}

impl Ring {
    /// A ring as its front end describes it. It listens.
    ///
    /// # Errors
    /// The size is none, or a part of it is not in the guest's memory or not aligned.
    pub fn new(memory: Arc<GuestMemory>, setup: &Setup) -> Result<Ring, Fault> {
        Ring::recorded(memory, setup, Records::default())
    }

    /// The same with records. With one of chains in flight it goes on where that says, not at the setup's base.
    ///
    /// # Errors
    /// As of [`Ring::new`], or the records make no sense.
    pub fn recorded(memory: Arc<GuestMemory>, setup: &Setup, mut records: Records) -> Result<Ring, Fault> {
        let &Setup { size, event_idx, indirect, in_order, .. } = setup;
        if !size.is_power_of_two() || size > SIZE_MAX {
            return Err(Fault::Layout);
        }
        let entries = usize::from(size);
        let event = if event_idx { 2 } else { 0 };
        let part = |addr: u64, len: usize, align: usize| {
            let area = memory.user(addr, len)?;
            let start = memory.slice(area)?.ptr_guard().as_ptr().addr();
            start.is_multiple_of(align).then_some(area)
        };
        let (Some(descriptors), Some(available), Some(used)) = (
            part(setup.descriptors, DESCRIPTOR_LEN * entries, 8),
            part(setup.available, 4 + 2 * entries + event, 2),
            part(setup.used, 4 + USED_LEN * entries + event, 4),
        ) else {
            return Err(Fault::Layout);
        };
        let place = Place { memory, descriptors, available, used, size, event_idx, indirect, in_order };
        let used = u16::from_le(place.view().ok_or(Fault::Layout)?.used_index()?.load(Ordering::Acquire));
        let (mut base, mut again) = (setup.base, Again::default());
        if let Some(inflight) = &mut records.inflight
            && let Some(heads) = inflight.recover(size, used)?
        {
            again = Again::new(heads);
            // All that was taken was given back, or is in flight.
            base = used.wrapping_add(again.len());
        }
        let cursor = Cursor {
            next_avail: base,
            seen_avail: base,
            next_used: used,
            shown_used: used,
            unwritten: None,
            late: Late::none(used),
            listening: false,
            again,
        };
        let mut ring = Ring { place, cursor, records };
        ring.open()?.listen(true)?;
        Ok(ring)
    }

    /// Index of the next chain it would take: what a front end asks for when it stops the ring.
    #[must_use]
    pub fn base(&self) -> u16 {
        self.cursor.next_avail
    }

    /// The index that the driver was shown last: as many chains were given back.
    #[must_use]
    pub fn shown(&self) -> u16 {
        self.cursor.shown_used
    }

    /// Whether the driver is to kick.
    #[must_use]
    pub fn is_listening(&self) -> bool {
        self.cursor.listening
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.place.memory
    }

    /// Has the record of chains in flight forget the ring, which has stopped in order.
    pub fn forget(&mut self) {
        if let Some(inflight) = &mut self.records.inflight {
            inflight.forget();
        }
    }

    /// The ring with its parts looked up: once for all that is done with it in one go.
    ///
    /// # Errors
    /// The guest's memory is not there.
    #[inline]
    pub fn open(&mut self) -> Result<Open<'_>, Fault> {
        // Memory that has gone is not touched again: each page of it would be replaced by itself.
        if self.place.memory.is_broken() {
            return Err(Fault::Memory);
        }
        let view = self.place.view().ok_or(Fault::Memory)?;
        Ok(Open { place: &self.place, view, cursor: &mut self.cursor, records: &mut self.records })
    }
}

/// A ring being worked on.
#[derive(Debug)]
pub struct Open<'r> {
    place: &'r Place,
    view: View<'r>,
    cursor: &'r mut Cursor,
    records: &'r mut Records,
}

impl<'r> Open<'r> {
    /// The guest's memory.
    #[inline]
    #[must_use]
    pub fn memory(&self) -> &'r Arc<GuestMemory> {
        &self.place.memory
    }

    /// How many chains wait, at least `wanted` if there are so many: only then the driver's index is read again.
    ///
    /// # Errors
    /// More than the ring has room for.
    #[inline]
    pub fn waiting(&mut self, wanted: u16) -> Result<u16, Fault> {
        let again = self.cursor.again.len();
        let known = self.cursor.seen_avail.wrapping_sub(self.cursor.next_avail).saturating_add(again);
        if known >= wanted {
            return Ok(known);
        }
        let seen = u16::from_le(self.view.available_index()?.load(Ordering::Acquire));
        let waiting = seen.wrapping_sub(self.cursor.next_avail);
        if waiting > self.place.size {
            return Err(Fault::AvailIndex);
        }
        self.cursor.seen_avail = seen;
        Ok(waiting.saturating_add(again))
    }

    /// The head of the chain `ahead` places behind the next one, which must be waiting.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "it waits, so it is one of at most 2 * 65535")]
    fn head(&self, ahead: usize) -> Result<u16, Fault> {
        let again = &self.cursor.again;
        if let Some(head) = again.get(ahead) {
            return Ok(head);
        }
        let next = self.cursor.next_avail.wrapping_add((ahead - usize::from(again.len())) as u16);
        let slot = next & (self.place.size - 1);
        let head: Le16 = read(&self.view.available, 4 + 2 * usize::from(slot))?;
        Ok(head.to_native())
    }

    /// Asks for the descriptors of the next `chains` chains, to be looked at soon.
    #[inline]
    pub fn prefetch(&self, chains: usize) {
        for ahead in 0..chains {
            let Ok(head) = self.head(ahead) else { return };
            let Ok(place) = self.view.descriptors.offset(DESCRIPTOR_LEN * usize::from(head)) else {
                continue;
            };
            mem::prefetch_bytes(&place, 1);
        }
    }

    /// Looks at the chain `ahead` places behind the next one, which must be waiting, and adds it to `found`. What is `likely` to be used
    /// is asked for.
    ///
    /// # Errors
    /// The chain breaks a rule.
    #[inline]
    pub fn chain(
        &self,
        ahead: usize,
        access: Access,
        likely: Likely,
        found: &mut Found,
        budget: &mut Budget,
    ) -> Result<(), Fault> {
        let head = self.head(ahead)?;
        let descriptor = self.view.descriptor(head, self.place.size)?;
        let len = descriptor.len as usize;
        // Nearly always it is one piece.
        if descriptor.flags == access.flags()
            && let Some(area) = self.memory().guest(descriptor.addr, len)
            && area.len == len
        {
            budget.spend();
            if let Some(slice) = self.memory().slice(area) {
                // Frames that are to be read, too: a driver uses its buffers again, and what is ours alone now need not be taken from its CPU when
                // it is written to the next time.
                mem::prefetch_frame_to_write(&slice, likely.header_len, likely.len);
            }
            found.pieces.push(area);
            found.chains.push(Chain { head, len, pieces: 1 });
            return Ok(());
        }
        self.walk(head, descriptor, access, found, budget)
    }

    /// Any chain, from its first descriptor on.
    #[inline(never)]
    fn walk(
        &self,
        head: u16,
        mut descriptor: Descriptor,
        access: Access,
        found: &mut Found,
        budget: &mut Budget,
    ) -> Result<(), Fault> {
        let Found { chains, pieces } = found;
        let first = pieces.len();
        let mut walk = Walk { memory: &self.place.memory, access, pieces, first, budget, len: 0 };
        for _ in 0..usize::from(self.place.size).min(CHAIN_MAX) {
            if descriptor.flags & F_INDIRECT != 0 {
                // Alone, or at the end behind plain ones.
                if !self.place.indirect {
                    return Err(Fault::Indirect);
                }
                walk.indirect(descriptor)?;
                chains.push(walk.end(head));
                return Ok(());
            }
            walk.take(descriptor)?;
            if descriptor.flags & F_NEXT == 0 {
                chains.push(walk.end(head));
                return Ok(());
            }
            descriptor = self.view.descriptor(descriptor.next, self.place.size)?;
        }
        Err(Fault::Loop)
    }

    /// Asks for the next `chains` used entries, to be filled in soon.
    #[inline]
    pub fn prefetch_used(&self, chains: usize) {
        let slot = usize::from(self.cursor.next_used & (self.place.size - 1));
        if let Ok(place) = self.view.used.offset(4 + USED_LEN * slot) {
            mem::prefetch_bytes_to_write(&place, USED_LEN * chains);
        }
    }

    /// Takes the next chain, which has been looked at, before anything is done with it.
    ///
    /// # Errors
    /// The record of chains in flight makes no sense.
    #[inline]
    pub fn take(&mut self, head: u16) -> Result<(), Fault> {
        self.records.inflight.as_mut().map_or(Ok(()), |inflight| inflight.take(head))?;
        self.cursor.next_avail = self.cursor.next_avail.wrapping_add(self.cursor.again.advance(1));
        Ok(())
    }

    /// Records that so many bytes were written into these pieces.
    ///
    /// # Errors
    /// The dirty log is too short.
    #[inline]
    pub fn wrote(&self, pieces: &[Area], written: usize) -> Result<(), Fault> {
        self.records.log.as_ref().map_or(Ok(()), |log| log.buffers(&self.place.memory, pieces, written))
    }

    /// Gives back as it is what a switch before us had taken; whether the driver wants to be told.
    ///
    /// # Errors
    /// The guest's memory is not there, or the record makes no sense.
    pub fn drain(&mut self) -> Result<bool, Fault> {
        while let Some(head) = self.cursor.again.get(0) {
            self.take(head)?;
            self.give_back(head, 0)?;
        }
        self.show()
    }

    /// Gives a chain back, with so many bytes written; the driver sees it when it is shown.
    ///
    /// # Errors
    /// The guest's memory is not there.
    #[inline]
    pub fn give_back(&mut self, head: u16, written: u32) -> Result<(), Fault> {
        self.write_used(self.cursor.next_used, head, written)?;
        self.cursor.next_used = self.cursor.next_used.wrapping_add(1);
        self.records.inflight.as_mut().map_or(Ok(()), |inflight| inflight.give_back(head))
    }

    #[inline]
    fn write_used(&self, index: u16, head: u16, written: u32) -> Result<(), Fault> {
        let slot = usize::from(index & (self.place.size - 1));
        let entry = u64::from(written) << 32 | u64::from(head);
        write(&self.view.used, 4 + USED_LEN * slot, Le64::from(entry))
    }

    /// Gives a chain back that was read. Where chains are used in order, a driver knows by the last of those that it is shown
    /// together which they are: an entry for all of them, where the first one's would be (virtio 1.2, section 2.7.14).
    ///
    /// # Errors
    /// The guest's memory is not there.
    #[inline]
    pub fn give_back_read(&mut self, head: u16) -> Result<(), Fault> {
        if !self.place.in_order {
            return self.give_back(head, 0);
        }
        self.cursor.unwritten = Some(head);
        self.cursor.next_used = self.cursor.next_used.wrapping_add(1);
        self.records.inflight.as_mut().map_or(Ok(()), |inflight| inflight.give_back(head))
    }

    /// Shows the driver what was given back; whether it wants to be told.
    ///
    /// # Errors
    /// The guest's memory is not there.
    #[inline]
    pub fn show(&mut self) -> Result<bool, Fault> {
        let now = self.cursor.next_used;
        self.cursor.late = Late::none(now);
        let unwritten = self.cursor.unwritten.take();
        self.show_until(now, unwritten)
    }

    /// The same for a driver that may not care, which is then shown all but the last few. To be called at each look at the ring while it does
    /// not listen.
    ///
    /// # Errors
    /// As of [`Open::show`].
    #[inline]
    pub fn show_late(&mut self) -> Result<bool, Fault> {
        let Cursor { next_used: now, shown_used, unwritten, mut late, .. } = *self.cursor;
        if now == shown_used {
            return Ok(false);
        }
        late.looks += u8::from(late.seen == now);
        late.seen = now;
        let [first, second] = late.pieces;
        let full = first + second >= usize::from(self.place.size / FULL_PART);
        if full || late.looks >= LATE_LOOKS || !self.is_patient()? {
            return self.show();
        }
        self.cursor.late = late;
        if now.wrapping_sub(late.until) < LATE.min(self.place.size / LATE_PART) {
            return Ok(false);
        }
        self.cursor.late = Late { until: now, unwritten, pieces: [second, 0], looks: 0, ..late };
        self.show_until(late.until, late.unwritten)
    }

    /// Counts pieces of chains that are given back before the next look.
    #[inline]
    pub fn count_late(&mut self, pieces: usize) {
        self.cursor.late.pieces[1] += pieces;
    }

    /// Whether the driver waits for nothing. With the event index it cannot be told, and the record of chains in flight is of those
    /// that were given back last.
    #[inline]
    fn is_patient(&self) -> Result<bool, Fault> {
        Ok(!self.place.event_idx && self.records.inflight.is_none() && !self.wants_interrupt()?)
    }

    /// Of a ring without the event index.
    #[inline]
    fn wants_interrupt(&self) -> Result<bool, Fault> {
        let flags: Le16 = read(&self.view.available, 0)?;
        Ok(flags.to_native() & AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Shows what was given back up to an index. `unwritten` is the last of that if it has no entry of its own.
    #[inline]
    fn show_until(&mut self, now: u16, unwritten: Option<u16>) -> Result<bool, Fault> {
        let before = std::mem::replace(&mut self.cursor.shown_used, now);
        if before == now {
            return Ok(false);
        }
        if let Some(head) = unwritten {
            self.write_used(before, head, 0)?;
        }
        #[cfg(test)]
        super::inflight::crash::step();
        self.view.used_index()?.store(now.to_le(), Ordering::Release);
        self.records.shown(before, now, self.place.size)?;
        // Before the driver's wish is read: it may say that it wants to be told and then look at the index once more.
        fence(Ordering::SeqCst);
        if self.place.event_idx {
            let event: Le16 = read(&self.view.available, 4 + 2 * usize::from(self.place.size))?;
            Ok(passed(event.to_native(), now, before))
        } else {
            self.wants_interrupt()
        }
    }

    /// Has the driver kick, or not; whether chains wait (which nobody may have kicked for).
    ///
    /// # Errors
    /// The guest's memory is not there, or the available index jumped.
    pub fn listen(&mut self, on: bool) -> Result<bool, Fault> {
        self.cursor.listening = on;
        if !self.place.event_idx {
            write(&self.view.used, 0, Le16::from(if on { 0 } else { USED_F_NO_NOTIFY }))?;
            self.records.wrote_used(0, 2)?;
        } else if on {
            let event = 4 + USED_LEN * usize::from(self.place.size);
            write(&self.view.used, event, Le16::from(self.cursor.next_avail))?;
            self.records.wrote_used(event, 2)?;
        }
        if !on {
            return Ok(false);
        }
        // Before the index is read: the driver writes that and then looks whether to kick.
        fence(Ordering::SeqCst);
        self.cursor.seen_avail = self.cursor.next_avail;
        Ok(self.waiting(1)? > 0)
    }
}

impl Records {
    #[inline]
    fn wrote_used(&self, offset: usize, len: usize) -> Result<(), Fault> {
        self.log.as_ref().map_or(Ok(()), |log| log.used(offset, len))
    }

    /// The driver sees what was given back: the used entries between two indices, and the index.
    #[inline]
    fn shown(&mut self, before: u16, now: u16, size: u16) -> Result<(), Fault> {
        if let Some(log) = &self.log {
            let (first, count) = (before & (size - 1), now.wrapping_sub(before).min(size));
            let behind = count.min(size - first);
            for (slot, count) in [(first, behind), (0, count - behind)] {
                log.used(4 + USED_LEN * usize::from(slot), USED_LEN * usize::from(count))?;
            }
            log.used(2, 2)?;
        }
        self.inflight.as_mut().map_or(Ok(()), |inflight| inflight.shown(before, now))
    }
}

/// Whether an index between `before` and `now` passed `event` (virtio 1.2, section 2.7.10.1).
#[inline]
fn passed(event: u16, now: u16, before: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
}

/// The parts of a ring, mapped.
#[derive(Debug)]
struct View<'a> {
    descriptors: VolatileSlice<'a>,
    available: VolatileSlice<'a>,
    used: VolatileSlice<'a>,
}

impl Place {
    #[inline]
    fn view(&self) -> Option<View<'_>> {
        Some(View {
            descriptors: self.memory.slice(self.descriptors)?,
            available: self.memory.slice(self.available)?,
            used: self.memory.slice(self.used)?,
        })
    }
}

impl View<'_> {
    #[inline]
    fn available_index(&self) -> Result<&AtomicU16, Fault> {
        self.available.get_atomic_ref(2).map_err(|_| Fault::Layout)
    }

    #[inline]
    fn used_index(&self) -> Result<&AtomicU16, Fault> {
        self.used.get_atomic_ref(2).map_err(|_| Fault::Layout)
    }

    #[inline]
    fn descriptor(&self, index: u16, size: u16) -> Result<Descriptor, Fault> {
        if index >= size {
            return Err(Fault::Index);
        }
        descriptor(&self.descriptors, usize::from(index))
    }
}

/// Reads a descriptor of a table, once.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "a word is taken apart")]
fn descriptor(table: &VolatileSlice<'_>, index: usize) -> Result<Descriptor, Fault> {
    let word = u128::from_le(read(table, DESCRIPTOR_LEN * index)?);
    let (addr, rest) = (word as u64, (word >> 64) as u64);
    Ok(Descriptor { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 })
}

#[inline]
fn read<T: ByteValued>(part: &VolatileSlice<'_>, offset: usize) -> Result<T, Fault> {
    part.get_ref::<T>(offset).map(|value| value.load()).map_err(|_| Fault::Index)
}

#[inline]
fn write<T: ByteValued>(part: &VolatileSlice<'_>, offset: usize, value: T) -> Result<(), Fault> {
    part.get_ref::<T>(offset).map(|place| place.store(value)).map_err(|_| Fault::Index)
}

/// Goes through the descriptors of one chain.
struct Walk<'a> {
    memory: &'a GuestMemory,
    access: Access,
    pieces: &'a mut Vec<Area>,
    /// Where its own pieces begin.
    first: usize,
    budget: &'a mut Budget,
    len: usize,
}

impl Walk<'_> {
    #[inline]
    fn end(self, head: u16) -> Chain {
        Chain { head, len: self.len, pieces: self.pieces.len() - self.first }
    }

    /// Adds the memory of one descriptor.
    #[inline]
    fn take(&mut self, descriptor: Descriptor) -> Result<(), Fault> {
        self.budget.spend();
        if descriptor.flags & F_WRITE != self.access.flags() {
            return Err(Fault::Direction);
        }
        self.add(descriptor.addr, descriptor.len)
    }

    /// Memory that is one piece to the guest may lie in several regions.
    #[inline]
    fn add(&mut self, mut addr: u64, len: u32) -> Result<(), Fault> {
        let mut rest = len as usize;
        while rest > 0 {
            let area = self.memory.guest(addr, rest).ok_or(Fault::Address)?;
            if self.pieces.len() - self.first >= PIECES_MAX {
                return Err(Fault::Pieces);
            }
            self.pieces.push(area);
            self.len += area.len;
            rest -= area.len;
            if rest > 0 {
                self.budget.spend();
            }
            // Ends inside the address space, because the region does.
            addr += area.len as u64;
        }
        Ok(())
    }

    /// The descriptors of an indirect table, which must lie in one region.
    fn indirect(&mut self, table: Descriptor) -> Result<(), Fault> {
        let bytes = table.len as usize;
        let entries = bytes / DESCRIPTOR_LEN;
        let flags = table.flags;
        if !bytes.is_multiple_of(DESCRIPTOR_LEN) || !(1..=CHAIN_MAX).contains(&entries) || flags & F_NEXT != 0
        {
            return Err(Fault::Indirect);
        }
        let area = self.memory.guest(table.addr, bytes).ok_or(Fault::Address)?;
        let slice = self.memory.slice(area).ok_or(Fault::Memory)?;
        let mut index = 0;
        for _ in 0..entries {
            let descriptor = descriptor(&slice, index).map_err(|_| Fault::Address)?;
            let flags = descriptor.flags;
            if flags & F_INDIRECT != 0 {
                return Err(Fault::Indirect);
            }
            self.take(descriptor)?;
            if flags & F_NEXT == 0 {
                return Ok(());
            }
            index = usize::from(descriptor.next);
            if index >= entries {
                return Err(Fault::Index);
            }
        }
        Err(Fault::Loop)
    }
}
