//! Egress: each leaving port gets its frames, in batch order, in the form it can take.
//!
//! A frame leaves with the tag its port wants (see [`crate::bridge::vlan`]), not longer than the port's MTU allows, and
//! with its checksum and segmentation finished where the port cannot do that. The frame itself is not rewritten: other
//! ports may want it in another form.

use arrayvec::ArrayVec;

use super::{Context, Workshop};
use crate::batch::{BATCH_FRAMES, Batch};
use crate::bridge::vlan::{self, Leaves};
use crate::frame::{ADDRESSES_LEN, ETH_HEADER_LEN, Frame, Outgoing, TAG_LEN, TAG_SHIFT};
use crate::offload::segment::Segmenter;
use crate::offload::{Gso, Offload, Takes, VNET_HDR_LEN, checksum};
use crate::port::{Health, PortQueue};
use crate::stats::{Counters, DropReason};
use crate::topology::Port;

pub(super) fn run(context: &mut Context<'_>, batch: &mut Batch) {
    for slot in 0..context.outbox.active.len() {
        let id = context.outbox.active[slot];
        let list = std::mem::take(&mut context.outbox.lists[id.index()]);
        let (port, queue) = (context.topology.port(id), context.queues[id.index()].as_mut());
        let (Some(port), Some(queue)) = (port, queue) else { continue };
        let counters = &port.shared.counters[context.worker];
        if port.shared.is_gone() {
            counters.drop_frames(DropReason::PortGone, list.len() as u64);
            continue;
        }
        let mut leaving = Leaving {
            port,
            queue: &mut **queue,
            counters,
            workshop: context.workshop,
            filtering: context.bridge.filtering,
        };
        leaving.send(batch, &list);
    }
    context.outbox.active.clear();
}

/// One port's frames of one batch on their way out.
struct Leaving<'a> {
    port: &'a Port,
    queue: &'a mut dyn PortQueue,
    counters: &'a Counters,
    workshop: &'a mut Workshop,
    filtering: bool,
}

impl Leaving<'_> {
    fn send(&mut self, batch: &Batch, list: &[u8]) {
        let mut outgoing = ArrayVec::<Outgoing<'_>, BATCH_FRAMES>::new();
        for &index in list {
            let frame = &batch.frames[usize::from(index)];
            let form = if self.filtering { self.retag(batch, frame) } else { Ok(whole(batch, frame)) };
            let form = match form {
                Ok(form) => form,
                Err(reason) => {
                    self.counters.drop_frame(reason);
                    continue;
                }
            };
            if frame.offload.gso == Gso::None {
                let tagged = match form {
                    Outgoing::Whole { .. } => frame.tagged,
                    Outgoing::Pieces { tag, .. } => tag.is_some(),
                };
                if self.port.shared.too_long(form.frame_len(), tagged) {
                    self.counters.drop_frame(DropReason::TooLong);
                    continue;
                }
            }
            match self.port.capabilities.takes(&frame.offload) {
                Takes::AsIs => outgoing.push(form),
                takes => {
                    self.transmit(&outgoing);
                    outgoing.clear();
                    self.finish(frame, &form, takes);
                }
            }
        }
        self.transmit(&outgoing);
    }

    fn transmit(&mut self, outgoing: &[Outgoing<'_>]) {
        if !outgoing.is_empty() && self.queue.transmit(outgoing, self.counters) == Health::Gone {
            self.port.shared.gone.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// The frame with the tag that this port wants for its VLAN.
    fn retag<'b>(&self, batch: &'b Batch, frame: &Frame) -> Result<Outgoing<'b>, DropReason> {
        let tag = match self.port.vlan.leaves(frame.vid) {
            Leaves::Not => return Err(DropReason::VlanEgress),
            Leaves::Untagged => None,
            Leaves::Tagged => Some(vlan::tag(frame.vid, frame.tci)),
        };
        let bytes = batch.bytes(frame);
        let same = match tag {
            None => !frame.tagged,
            Some(_) => frame.tagged && frame.tci & 0xfff == frame.vid,
        };
        if same {
            return Ok(whole(batch, frame));
        }
        let (addresses, rest) = bytes.split_at(ADDRESSES_LEN);
        let rest = if frame.tagged { &rest[TAG_LEN..] } else { rest };
        if tag.is_none() && self.port.vlan.is_trunk() && is_tag(rest) {
            return Err(DropReason::DoubleTag);
        }
        let mut header = [0; VNET_HDR_LEN];
        let offload = match (frame.tagged, tag) {
            (true, None) => frame.offload.shifted(-TAG_SHIFT),
            (false, Some(_)) => frame.offload.shifted(TAG_SHIFT),
            _ => frame.offload,
        };
        offload.to_virtio(&mut header);
        Ok(Outgoing::Pieces { header, addresses, tag, rest, segments: u32::from(frame.segments) })
    }

    /// Completes in software what the port cannot take, and sends it.
    #[cold]
    fn finish(&mut self, frame: &Frame, form: &Outgoing<'_>, takes: Takes) {
        let [header, parts @ ..] = form.slices();
        let mut len = 0;
        for part in parts {
            self.workshop.linear[len..len + part.len()].copy_from_slice(part);
            len += part.len();
        }
        let offload = match form {
            Outgoing::Whole { .. } => frame.offload,
            Outgoing::Pieces { .. } => match header.first_chunk() {
                Some(header) => Offload::from_virtio(header, len).unwrap_or(frame.offload),
                None => frame.offload,
            },
        };
        match takes {
            Takes::Segment => self.segment(len, &offload),
            _ => self.complete(len, &offload),
        }
    }

    fn complete(&mut self, len: usize, offload: &Offload) {
        let Workshop { linear, finished } = &mut *self.workshop;
        let Ok(left) = checksum::finish(&mut linear[..len], offload) else {
            return self.counters.drop_frame(DropReason::BadOffload);
        };
        let bytes = &mut finished[..VNET_HDR_LEN + len];
        if let Some(header) = bytes.first_chunk_mut() {
            left.to_virtio(header);
        }
        bytes[VNET_HDR_LEN..].copy_from_slice(&linear[..len]);
        if self.queue.transmit(&[Outgoing::Whole { bytes, segments: 1 }], self.counters) == Health::Gone {
            self.port.shared.gone.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn segment(&mut self, len: usize, offload: &Offload) {
        let Workshop { linear, finished } = &mut *self.workshop;
        let Ok(mut segmenter) =
            Segmenter::new(&linear[..len], offload, self.port.capabilities.segment_checksum())
        else {
            return self.counters.drop_frame(DropReason::BadOffload);
        };
        let size = VNET_HDR_LEN + segmenter.segment_size_max();
        loop {
            let mut outgoing = ArrayVec::<Outgoing<'_>, BATCH_FRAMES>::new();
            let mut done = false;
            for slot in finished
                .chunks_mut(size.next_multiple_of(64))
                .filter(|slot| slot.len() >= size)
                .take(BATCH_FRAMES)
            {
                let (header, out) = slot.split_at_mut(VNET_HDR_LEN);
                let Some(len) = segmenter.next_into(out) else {
                    done = true;
                    break;
                };
                if self.port.shared.too_long(len, is_tag(&out[ADDRESSES_LEN..])) {
                    self.counters.drop_frame(DropReason::TooLong);
                    continue;
                }
                if let Some(header) = header.first_chunk_mut() {
                    segmenter.segment_offload().to_virtio(header);
                }
                outgoing.push(Outgoing::Whole { bytes: &slot[..VNET_HDR_LEN + len], segments: 1 });
            }
            if !outgoing.is_empty() && self.queue.transmit(&outgoing, self.counters) == Health::Gone {
                self.port.shared.gone.store(true, std::sync::atomic::Ordering::Relaxed);
                return;
            }
            if done {
                return;
            }
        }
    }
}

/// The frame as it came.
#[inline]
fn whole<'b>(batch: &'b Batch, frame: &Frame) -> Outgoing<'b> {
    Outgoing::Whole { bytes: batch.with_header(frame), segments: u32::from(frame.segments) }
}

/// Whether these bytes, which begin at the EtherType, are an 802.1Q or 802.1ad tag.
fn is_tag(from_ethertype: &[u8]) -> bool {
    from_ethertype.get(..ETH_HEADER_LEN - ADDRESSES_LEN).is_some_and(|ethertype| {
        ethertype == vlan::TPID_8021Q.to_be_bytes() || ethertype == vlan::TPID_8021AD.to_be_bytes()
    })
}
