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
//! leaving that where it was. [`Ring::listen`] switches them on and looks once more, because the driver may have looked before.
//!
//! The library `virtio-queue` does the same and more, but translates each address twice, reads the available index for each chain and publishes each used
//! entry by itself, which costs more than the rest of the switch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use vm_memory::volatile_memory::{VolatileMemory, VolatileSlice};
use vm_memory::{ByteValued, Le16, Le32};

use super::dirty::RingLog;
use super::inflight::{Again, Inflight};
use super::memory::{Area, GuestMemory};

/// Largest ring.
pub const SIZE_MAX: u16 = 32_768;
/// Most descriptors of a chain or an indirect table. Linux makes none longer than the ring, and QEMU no ring longer than this.
pub const CHAIN_MAX: usize = 1024;
/// Most pieces of memory for one frame.
pub const PIECES_MAX: usize = 4096;

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

/// Descriptors that may still be looked at in one call, so that one guest does not keep a worker.
#[derive(Debug)]
pub struct Budget(usize);

impl Budget {
    /// To receive: every frame of a batch in a few pieces, or one chain as long as any.
    pub const RECEIVING: usize = 1024;
    /// To send: every frame of a batch in the twenty pages that a driver without merged buffers gives for one.
    pub const SENDING: usize = 2048;

    /// For one call.
    #[must_use]
    pub fn new(descriptors: usize) -> Budget {
        Budget(descriptors)
    }

    /// Whether nothing is left of it; what was begun may end.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.0 == 0
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

/// A chain of descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chain {
    /// By which the driver knows it.
    pub head: u16,
    /// Bytes of memory in it.
    pub len: usize,
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
}

/// A virtqueue.
#[derive(Debug)]
pub struct Ring {
    place: Place,
    /// Next chain to take.
    next_avail: u16,
    /// The driver's index when it was read last.
    seen_avail: u16,
    /// Next used entry to fill in.
    next_used: u16,
    /// The index that the driver was shown last.
    shown_used: u16,
    /// Whether the driver is to kick.
    listening: bool,
    records: Records,
    /// What was in flight when a switch before us ended.
    again: Again,
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
        let &Setup { size, event_idx, indirect, .. } = setup;
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
        let place = Place { memory, descriptors, available, used, size, event_idx, indirect };
        let view = place.view().ok_or(Fault::Layout)?;
        let used = u16::from_le(view.used_index()?.load(Ordering::Acquire));
        let (mut next_avail, shown_used) = (setup.base, used);
        let mut again = Again::default();
        if let Some(inflight) = &mut records.inflight
            && let Some(heads) = inflight.recover(size, used)?
        {
            again = Again::new(heads);
            // All that was taken was given back, or is in flight.
            next_avail = used.wrapping_add(again.len());
        }
        let mut ring = Ring {
            place,
            next_avail,
            seen_avail: next_avail,
            next_used: shown_used,
            shown_used,
            listening: false,
            records,
            again,
        };
        ring.listen(true)?;
        Ok(ring)
    }

    /// Index of the next chain it would take: what a front end asks for when it stops the ring.
    #[must_use]
    pub fn base(&self) -> u16 {
        self.next_avail
    }

    /// Whether the driver is to kick.
    #[must_use]
    pub fn is_listening(&self) -> bool {
        self.listening
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.place.memory
    }

    /// How many chains wait, at least `wanted` if there are so many: only then the driver's index is read again.
    ///
    /// # Errors
    /// More than the ring has room for.
    #[inline]
    pub fn waiting(&mut self, wanted: u16) -> Result<u16, Fault> {
        let again = self.again.len();
        let known = self.seen_avail.wrapping_sub(self.next_avail).saturating_add(again);
        if known >= wanted {
            return Ok(known);
        }
        let view = self.place.view().ok_or(Fault::Memory)?;
        let seen = u16::from_le(view.available_index()?.load(Ordering::Acquire));
        let waiting = seen.wrapping_sub(self.next_avail);
        if waiting > self.place.size {
            return Err(Fault::AvailIndex);
        }
        self.seen_avail = seen;
        Ok(waiting.saturating_add(again))
    }

    /// Looks at the chain `ahead` places behind the next one, which must be waiting, and adds its memory to `pieces`.
    ///
    /// # Errors
    /// The chain breaks a rule.
    #[inline]
    pub fn chain(
        &self,
        ahead: u16,
        access: Access,
        pieces: &mut Vec<Area>,
        budget: &mut Budget,
    ) -> Result<Chain, Fault> {
        let view = self.place.view().ok_or(Fault::Memory)?;
        let head = match self.again.get(ahead) {
            Some(head) => head,
            None => {
                let next = self.next_avail.wrapping_add(ahead - self.again.len());
                let slot = next & (self.place.size - 1);
                let head: Le16 = read(&view.available, 4 + 2 * usize::from(slot))?;
                head.to_native()
            }
        };
        let mut walk = Walk { memory: &self.place.memory, access, pieces, budget, len: 0 };
        let first = view.descriptor(head, self.place.size)?;
        let mut descriptor = first;
        for _ in 0..usize::from(self.place.size).min(CHAIN_MAX) {
            if descriptor.flags & F_INDIRECT != 0 {
                // Alone, or at the end behind plain ones.
                if !self.place.indirect {
                    return Err(Fault::Indirect);
                }
                walk.indirect(descriptor)?;
                return Ok(Chain { head, len: walk.len });
            }
            walk.take(descriptor)?;
            if descriptor.flags & F_NEXT == 0 {
                return Ok(Chain { head, len: walk.len });
            }
            descriptor = view.descriptor(descriptor.next, self.place.size)?;
        }
        Err(Fault::Loop)
    }

    /// Records that a chain will be taken, before anything is done with it.
    ///
    /// # Errors
    /// The record makes no sense.
    #[inline]
    pub fn take(&mut self, head: u16) -> Result<(), Fault> {
        self.records.inflight.as_mut().map_or(Ok(()), |inflight| inflight.take(head))
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
        while let Some(head) = self.again.get(0) {
            self.advance(1);
            self.give_back(head, 0)?;
        }
        self.show()
    }

    /// Has the record of chains in flight forget the ring, which has stopped in order.
    pub fn forget(&mut self) {
        if let Some(inflight) = &mut self.records.inflight {
            inflight.forget();
        }
    }

    /// Takes the next `chains` chains, which have been looked at.
    #[inline]
    pub fn advance(&mut self, chains: u16) {
        self.next_avail = self.next_avail.wrapping_add(self.again.advance(chains));
    }

    /// Gives a chain back, with so many bytes written; the driver sees it when it is shown.
    ///
    /// # Errors
    /// The guest's memory is not there.
    #[inline]
    pub fn give_back(&mut self, head: u16, written: u32) -> Result<(), Fault> {
        let view = self.place.view().ok_or(Fault::Memory)?;
        let slot = usize::from(self.next_used & (self.place.size - 1));
        let entry = 4 + USED_LEN * slot;
        write(&view.used, entry, Le32::from(u32::from(head)))?;
        write(&view.used, entry + 4, Le32::from(written))?;
        self.next_used = self.next_used.wrapping_add(1);
        self.records.inflight.as_mut().map_or(Ok(()), |inflight| inflight.give_back(head))
    }

    /// Shows the driver what was given back; whether it wants to be told.
    ///
    /// # Errors
    /// The guest's memory is not there.
    #[inline]
    pub fn show(&mut self) -> Result<bool, Fault> {
        let before = std::mem::replace(&mut self.shown_used, self.next_used);
        if before == self.next_used {
            return Ok(false);
        }
        let view = self.place.view().ok_or(Fault::Memory)?;
        #[cfg(test)]
        super::inflight::crash::step();
        view.used_index()?.store(self.next_used.to_le(), Ordering::Release);
        self.records.shown(before, self.next_used, self.place.size)?;
        // Before the driver's wish is read: it may say that it wants to be told and then look at the index once more.
        fence(Ordering::SeqCst);
        if self.place.event_idx {
            let event: Le16 = read(&view.available, 4 + 2 * usize::from(self.place.size))?;
            Ok(passed(event.to_native(), self.next_used, before))
        } else {
            let flags: Le16 = read(&view.available, 0)?;
            Ok(flags.to_native() & AVAIL_F_NO_INTERRUPT == 0)
        }
    }

    /// Has the driver kick, or not; whether chains wait (which nobody may have kicked for).
    ///
    /// # Errors
    /// The guest's memory is not there, or the available index jumped.
    pub fn listen(&mut self, on: bool) -> Result<bool, Fault> {
        self.listening = on;
        let view = self.place.view().ok_or(Fault::Memory)?;
        if !self.place.event_idx {
            write(&view.used, 0, Le16::from(if on { 0 } else { USED_F_NO_NOTIFY }))?;
            self.records.wrote_used(0, 2)?;
        } else if on {
            let event = 4 + USED_LEN * usize::from(self.place.size);
            write(&view.used, event, Le16::from(self.next_avail))?;
            self.records.wrote_used(event, 2)?;
        }
        if !on {
            return Ok(false);
        }
        // Before the index is read: the driver writes that and then looks whether to kick.
        fence(Ordering::SeqCst);
        self.seen_avail = self.next_avail;
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
    let addr = u64::from_le(read(table, DESCRIPTOR_LEN * index)?);
    let rest = u64::from_le(read(table, DESCRIPTOR_LEN * index + 8)?);
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
    budget: &'a mut Budget,
    len: usize,
}

impl Walk<'_> {
    /// Adds the memory of one descriptor.
    #[inline]
    fn take(&mut self, descriptor: Descriptor) -> Result<(), Fault> {
        self.budget.0 = self.budget.0.saturating_sub(1);
        let write = descriptor.flags & F_WRITE != 0;
        if write != (self.access == Access::Write) {
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
            if self.pieces.len() >= PIECES_MAX {
                return Err(Fault::Pieces);
            }
            self.pieces.push(area);
            self.len += area.len;
            rest -= area.len;
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
