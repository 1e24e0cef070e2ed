//! Egress: each leaving port gets its frames, in batch order, in the form it can take.
//!
//! A frame leaves with the tag its port wants (see [`crate::bridge::vlan`]), not longer than the port's MTU allows, and
//! with its checksum and segmentation finished where the port cannot do that. The frame itself is not rewritten: other
//! ports may want it in another form. What does not fit the path of a tunnel is for [`super::path`].

use std::sync::atomic::Ordering;

use arrayvec::ArrayVec;

use super::answer::Answers;
use super::path::Oversize;
use super::{Context, Outbox, Workshop};
use crate::batch::{BATCH_FRAMES, Batch};
use crate::bridge::fdb::Tick;
use crate::bridge::vlan::{self, Leaves};
use crate::frame::{ADDRESSES_LEN, ETH_HEADER_LEN, Frame, Outgoing, TAG_LEN, TAG_SHIFT};
use crate::offload::segment::Segmenter;
use crate::offload::{Capabilities, Gso, Offload, Takes, VNET_HDR_LEN, checksum, mss};
use crate::port::{Health, PortQueue};
use crate::stats::{Counters, DropReason};
use crate::topology::Port;

pub(super) fn run(context: &mut Context<'_>, batch: &mut Batch) {
    let Outbox { lists, active, answers, .. } = &mut *context.outbox;
    let (now, mut told) = (context.now, 0);
    for id in active.drain(..) {
        let list = &mut lists[id.index()];
        if let Some(port) = context.topology.port(id) {
            let counters = &port.shared.counters[context.worker];
            match context.queues.get_mut(id.index()) {
                Some(Some(queue)) if !port.shared.is_gone() => {
                    let (queue, workshop) = (&mut **queue, &mut *context.workshop);
                    let filtering = context.bridge.filtering;
                    let (answers, told) = (&mut *answers, &mut told);
                    let capabilities = port.takes();
                    Leaving { port, capabilities, queue, counters, workshop, filtering, now, answers, told }
                        .send(batch, list);
                }
                _ => counters.drop_frames(DropReason::PortGone, list.len() as u64),
            }
        }
        list.clear();
    }
}

/// The frames of one batch that leave by one port.
type Departures<'b> = ArrayVec<Outgoing<'b>, BATCH_FRAMES>;

/// A port and what it takes to leave by it.
struct Leaving<'a> {
    port: &'a Port,
    /// What the port takes, the same for the whole batch.
    capabilities: Capabilities,
    queue: &'a mut dyn PortQueue,
    counters: &'a Counters,
    workshop: &'a mut Workshop,
    filtering: bool,
    now: Tick,
    answers: &'a mut Answers,
    /// Whose senders were told that they are too long: a bit a frame of the batch.
    told: &'a mut u64,
}

/// A frame in another form than it came in, or one that the port cannot take in the form it has.
struct Form<'b> {
    addresses: &'b [u8],
    /// The tag, if it is given one here.
    tag: Option<[u8; TAG_LEN]>,
    /// From the EtherType on; with its own tag if it keeps that.
    rest: &'b [u8],
    offload: Offload,
}

impl Leaving<'_> {
    fn send(mut self, batch: &mut Batch, list: &[u8]) {
        if batch.is_lent() && !self.takes_lent(batch, list) {
            batch.fetch();
        }
        let batch = &*batch;
        let mut departures = Departures::new();
        for &index in list {
            let frame = &batch.frames[usize::from(index)];
            if self.takes_as_it_came(batch, frame) && !self.clamps(batch, frame, 0) {
                let (bytes, segments) = (batch.with_header(frame), u32::from(frame.segments));
                departures.push(match batch.rest(frame) {
                    None => Outgoing::Whole { bytes, segments },
                    Some(rest) => Outgoing::Lent { bytes, rest, segments },
                });
            } else if let Err(reason) = self.send_otherwise(batch, index, &mut departures) {
                self.counters.drop_frame(reason);
            }
        }
        self.transmit(&departures);
        self.queue.flush();
    }

    /// Whether all frames can leave with their ends where they are.
    fn takes_lent(&self, batch: &Batch, list: &[u8]) -> bool {
        let as_it_came = |&index: &u8| {
            let frame = &batch.frames[usize::from(index)];
            frame.lent == 0 || self.takes_as_it_came(batch, frame)
        };
        self.queue.takes_lent() && !self.port.mss_clamp && list.iter().all(as_it_came)
    }

    /// Nearly every frame.
    #[inline]
    fn takes_as_it_came(&self, batch: &Batch, frame: &Frame) -> bool {
        (!self.filtering || self.keeps_tag(frame))
            && !self.too_long(frame.len(), || ethertype(batch.bytes(frame)), &frame.offload)
            && self.capabilities.takes(&frame.offload) == Takes::AsIs
    }

    #[inline]
    fn keeps_tag(&self, frame: &Frame) -> bool {
        match self.port.vlan.leaves(frame.vid) {
            Leaves::Not => false,
            Leaves::Untagged => !frame.tagged,
            Leaves::Tagged => frame.tagged && frame.tci & 0xfff == frame.vid,
        }
    }

    /// Whether it is too long; what is still to be segmented is not.
    #[inline]
    fn too_long(&self, len: usize, ethertype: impl FnOnce() -> [u8; 2], offload: &Offload) -> bool {
        offload.gso == Gso::None && self.port.shared.too_long(len, ethertype)
    }

    #[inline]
    fn transmit(&mut self, departures: &[Outgoing<'_>]) {
        if !departures.is_empty() && self.queue.transmit(departures, self.counters) == Health::Gone {
            self.port.shared.gone.store(true, Ordering::Relaxed);
        }
    }

    /// With another tag, or finished in software, or not at all.
    #[inline(never)]
    fn send_otherwise<'b>(
        &mut self,
        batch: &'b Batch,
        index: u8,
        departures: &mut Departures<'b>,
    ) -> Result<(), DropReason> {
        let frame = &batch.frames[usize::from(index)];
        let form = self.form(batch, frame)?;
        if self.too_long(form.len(), || form.ethertype(), &form.offload) {
            self.fragments(batch, index, &form, form.len())?;
            self.counters.tx_fragmented.add(1);
        }
        let clamps = self.clamps(batch, frame, form.grown(frame));
        match self.capabilities.takes(&form.offload) {
            Takes::AsIs if !clamps => departures.push(form.outgoing(u32::from(frame.segments))),
            takes => {
                // What is finished here leaves at once, so what is before it leaves first.
                self.transmit(departures);
                departures.clear();
                match takes {
                    Takes::Segment => self.segment(batch, index, &form)?,
                    _ => self.complete(&form)?,
                }
            }
        }
        Ok(())
    }

    /// Whether it is a SYN, `grown` bytes longer as it leaves, whose connection is to be told of shorter segments.
    #[inline]
    fn clamps(&self, batch: &Batch, frame: &Frame, grown: isize) -> bool {
        let clamp = || {
            let frame_max = self.port.shared.frame_max().checked_add_signed(-grown)?;
            mss::clamp(batch.bytes(frame), frame_max)
        };
        self.port.mss_clamp && frame.offload.gso == Gso::None && clamp().is_some()
    }

    /// Whether a frame of which `len` bytes are too long, by itself or in its longest segment, leaves in fragments of a tunnel's outer
    /// packet.
    #[cold]
    fn fragments(&mut self, batch: &Batch, index: u8, form: &Form<'_>, len: usize) -> Result<(), DropReason> {
        let Some(df) = self.port.df else { return Err(DropReason::TooLong) };
        let frame = &batch.frames[usize::from(index)];
        let (frame_max, bit) = (self.port.shared.frame_max(), 1 << index);
        let mut told = *self.told & bit != 0;
        let oversize = Oversize { frame: batch.bytes(frame), grown: form.grown(frame), len, frame_max };
        let verdict = oversize.fragments(df, self.now, self.answers, &mut told);
        *self.told |= if told { bit } else { 0 };
        verdict
    }

    /// The frame with the tag that this port wants for its VLAN.
    fn form<'b>(&self, batch: &'b Batch, frame: &Frame) -> Result<Form<'b>, DropReason> {
        let (addresses, rest) = batch.bytes(frame).split_at(ADDRESSES_LEN);
        let offload = frame.offload;
        if !self.filtering || self.keeps_tag(frame) {
            return Ok(Form { addresses, tag: None, rest, offload });
        }
        let rest = if frame.tagged { &rest[TAG_LEN..] } else { rest };
        let tag = match self.port.vlan.leaves(frame.vid) {
            Leaves::Not => return Err(DropReason::VlanEgress),
            // An inner tag must not come to light where it would be believed.
            Leaves::Untagged if self.port.vlan.is_trunk() && is_tag(rest) => {
                return Err(DropReason::DoubleTag);
            }
            Leaves::Untagged => None,
            Leaves::Tagged => Some(vlan::tag(frame.vid, frame.tci)),
        };
        let offload = match (frame.tagged, tag) {
            (true, None) => offload.shifted(-TAG_SHIFT),
            (false, Some(_)) => offload.shifted(TAG_SHIFT),
            _ => offload,
        };
        Ok(Form { addresses, tag, rest, offload })
    }

    /// Sends a frame with its checksum completed and its segment size clamped.
    #[cold]
    fn complete(&mut self, form: &Form<'_>) -> Result<(), DropReason> {
        let bytes = &mut self.workshop.0[..VNET_HDR_LEN + form.len()];
        let (header, whole) = bytes.split_at_mut(VNET_HDR_LEN);
        form.copy_to(whole);
        if self.port.mss_clamp
            && form.offload.gso == Gso::None
            && let Some(clamp) = mss::clamp(whole, self.port.shared.frame_max())
        {
            clamp.apply(whole, &form.offload);
            self.counters.mss_clamped.add(1);
        }
        let left = checksum::finish(whole, &form.offload).map_err(|_| DropReason::BadOffload)?;
        if let Some(header) = header.first_chunk_mut() {
            left.to_virtio(header);
        }
        if self.queue.transmit(&[Outgoing::Whole { bytes, segments: 1 }], self.counters) == Health::Gone {
            self.port.shared.gone.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Sends a frame's segments, as many at a time as the workshop holds.
    #[cold]
    fn segment(&mut self, batch: &Batch, index: u8, form: &Form<'_>) -> Result<(), DropReason> {
        let mut head = [0; ADDRESSES_LEN + TAG_LEN];
        let head = form.copy_head_to(&mut head);
        let checksum = self.capabilities.segment_checksum();
        let mut segmenter = Segmenter::with_head(head, form.rest, &form.offload, checksum)
            .map_err(|_| DropReason::BadOffload)?;
        if self.port.df.is_some() {
            // Longer ones would be fragmented on their way.
            segmenter.limit(self.port.shared.frame_max());
            let len = segmenter.segment_size_max();
            if self.port.shared.too_long(len, || form.ethertype()) {
                self.fragments(batch, index, form, len)?;
            }
        }
        // Payload stays where it is, unless a checksum in front of the headers is over it.
        let split = !form.offload.tunnel;
        let len = if split { segmenter.head_len() } else { segmenter.segment_size_max() };
        let slot_size = (VNET_HDR_LEN + len).next_multiple_of(64);
        let mut more = true;
        while more {
            let mut departures = Departures::new();
            for slot in self.workshop.0.chunks_exact_mut(slot_size).take(BATCH_FRAMES) {
                let (header, out) = slot.split_at_mut(VNET_HDR_LEN);
                let cut = if split {
                    segmenter.next_split(out).map(|payload| (len, payload))
                } else {
                    segmenter.next_into(out).map(|len| (len, &[][..]))
                };
                let Some((len, payload)) = cut else {
                    more = false;
                    break;
                };
                if self.port.shared.too_long(len + payload.len(), || form.ethertype()) {
                    if self.port.df.is_none() {
                        self.counters.drop_frame(DropReason::TooLong);
                        continue;
                    }
                    self.counters.tx_fragmented.add(1);
                }
                if let Some(header) = header.first_chunk_mut() {
                    segmenter.segment_offload().to_virtio(header);
                }
                departures.push(Outgoing::Segment { head: &slot[..VNET_HDR_LEN + len], payload });
            }
            if !departures.is_empty() && self.queue.transmit(&departures, self.counters) == Health::Gone {
                self.port.shared.gone.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

impl<'b> Form<'b> {
    fn len(&self) -> usize {
        self.addresses.len() + self.tag.map_or(0, |tag| tag.len()) + self.rest.len()
    }

    /// What stands behind the addresses.
    fn ethertype(&self) -> [u8; 2] {
        let behind = self.tag.as_ref().map_or(self.rest, |tag| tag);
        behind.first_chunk().copied().unwrap_or_default()
    }

    /// Bytes by which it is longer than the frame it is a form of.
    fn grown(&self, frame: &Frame) -> isize {
        self.len().wrapping_sub(frame.len()).cast_signed()
    }

    fn outgoing(&self, segments: u32) -> Outgoing<'b> {
        let mut header = [0; VNET_HDR_LEN];
        self.offload.to_virtio(&mut header);
        Outgoing::Pieces { header, addresses: self.addresses, tag: self.tag, rest: self.rest, segments }
    }

    /// The addresses and the tag, if it is given one.
    fn copy_head_to<'h>(&self, head: &'h mut [u8]) -> &'h [u8] {
        let (for_addresses, for_tag) = head.split_at_mut(ADDRESSES_LEN);
        for_addresses.copy_from_slice(self.addresses);
        if let Some(tag) = self.tag {
            for_tag[..TAG_LEN].copy_from_slice(&tag);
        }
        &head[..self.len() - self.rest.len()]
    }

    /// All of it, in one piece.
    fn copy_to(&self, whole: &mut [u8]) {
        let head_len = self.copy_head_to(whole).len();
        whole[head_len..].copy_from_slice(self.rest);
    }
}

/// What stands behind a frame's addresses.
fn ethertype(frame: &[u8]) -> [u8; 2] {
    frame
        .get(ADDRESSES_LEN..ETH_HEADER_LEN)
        .and_then(|bytes| bytes.first_chunk())
        .copied()
        .unwrap_or_default()
}

/// Whether these bytes, which begin at the EtherType, are an 802.1Q or 802.1ad tag.
fn is_tag(from_ethertype: &[u8]) -> bool {
    from_ethertype.get(..ETH_HEADER_LEN - ADDRESSES_LEN).is_some_and(|ethertype| {
        ethertype == vlan::TPID_8021Q.to_be_bytes() || ethertype == vlan::TPID_8021AD.to_be_bytes()
    })
}
