//! The frames that one receive call brought, and the memory they lie in.
//!
//! A worker runs a batch to completion before it receives the next, so all its frames die together and their memory is
//! a bump arena: frames lie one behind the other, small ones in few cache lines, and the same lines are used again
//! by the next batch. (A pool of 64 KiB buffers was the alternative: every small frame would touch a page of its own.)
//!
//! A batch is bounded by [`BATCH_FRAMES`] and by [`BATCH_BYTES`], so that bursts of 64 KiB GSO frames stay inside
//! the L2 cache. In front of each frame lies its offload header, ready to be written out with it, and before that room
//! for a VLAN tag to be put back.

use arrayvec::ArrayVec;

use crate::bridge::fdb::{Hash, Key};
use crate::frame::{ADDRESSES_LEN, Frame, TAG_LEN};
use crate::offload::{Gso, Offload, VNET_HDR_LEN};

/// Most frames in a batch.
pub const BATCH_FRAMES: usize = 64;
/// Bytes after which a batch takes no further frame.
pub const BATCH_BYTES: usize = 128 * 1024;
/// Longest frame received: 64 KiB of IP packet, Ethernet header, two tags.
pub const FRAME_MAX: usize = 65_535 + 14 + 8;

const HEADROOM: usize = TAG_LEN + VNET_HDR_LEN;
const ALIGN: usize = 64;
const SLOT_MAX: usize = (HEADROOM + FRAME_MAX).next_multiple_of(ALIGN);

/// Up to [`BATCH_FRAMES`] frames received from one port.
#[derive(Debug)]
pub struct Batch {
    arena: Box<[u8]>,
    used: usize,
    /// The frames, in order of arrival.
    pub frames: ArrayVec<Frame, BATCH_FRAMES>,
}

impl Default for Batch {
    fn default() -> Self {
        Batch { arena: vec![0; BATCH_BYTES + SLOT_MAX].into_boxed_slice(), used: 0, frames: ArrayVec::new() }
    }
}

impl Batch {
    /// Forgets all frames.
    #[inline]
    pub fn clear(&mut self) {
        self.frames.clear();
        self.used = 0;
    }

    /// Whether it takes no further frame.
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.frames.is_full() || self.used >= BATCH_BYTES
    }

    /// Room for the next frame: [`VNET_HDR_LEN`] bytes of offload header, then up to [`FRAME_MAX`] of frame.
    /// Must not be called on a full batch.
    #[inline]
    pub fn spare(&mut self) -> &mut [u8] {
        let start = self.used + TAG_LEN;
        &mut self.arena[start..start + VNET_HDR_LEN + FRAME_MAX]
    }

    /// Takes the `len` bytes of frame (without offload header) in [`Batch::spare`] as the next frame.
    #[inline]
    pub fn push(&mut self, len: usize, offload: Offload) {
        self.push_at(self.used + HEADROOM, len, offload);
    }

    /// Like [`Batch::push`], and puts a VLAN tag that the kernel took out back behind the addresses.
    #[inline]
    pub fn push_tagged(&mut self, len: usize, tag: [u8; TAG_LEN], offload: Offload) {
        let start = self.used + HEADROOM;
        if len < ADDRESSES_LEN {
            return self.push_at(start, len, offload);
        }
        self.arena.copy_within(start..start + ADDRESSES_LEN, start - TAG_LEN);
        self.arena[start + ADDRESSES_LEN - TAG_LEN..start + ADDRESSES_LEN].copy_from_slice(&tag);
        self.push_at(start - TAG_LEN, len + TAG_LEN, offload.with_tag_pushed());
    }

    #[inline]
    fn push_at(&mut self, start: usize, len: usize, offload: Offload) {
        let header: &mut [u8; VNET_HDR_LEN] =
            (&mut self.arena[start - VNET_HDR_LEN..start]).try_into().unwrap_or_else(|_| unreachable!());
        offload.to_virtio(header);
        let segments = match offload.gso {
            Gso::None => 1,
            _ => crate::offload::segment_count(&self.arena[start..start + len], &offload),
        };
        self.used = (start + len).next_multiple_of(ALIGN);
        // Both fit: the arena is far smaller than 4 GiB, and a 64 KiB frame has fewer than 65,536 segments.
        #[allow(clippy::cast_possible_truncation)]
        self.frames.push(Frame {
            start: start as u32,
            len: len as u32,
            offload,
            live: true,
            tagged: false,
            tci: 0,
            vid: 0,
            segments: segments as u16,
            source: Key::default(),
            destination: Key::default(),
            source_hash: Hash::default(),
            destination_hash: Hash::default(),
        });
    }

    /// A frame's bytes, from the destination address on.
    #[inline]
    #[must_use]
    pub fn bytes(&self, frame: &Frame) -> &[u8] {
        &self.arena[frame.start as usize..(frame.start + frame.len) as usize]
    }

    /// A frame's offload header and bytes, in one piece.
    #[inline]
    #[must_use]
    pub fn with_header(&self, frame: &Frame) -> &[u8] {
        &self.arena[frame.start as usize - VNET_HDR_LEN..(frame.start + frame.len) as usize]
    }

    /// All frames to change, and the memory to read them from.
    #[inline]
    pub fn split(&mut self) -> (&mut [Frame], Arena<'_>) {
        (&mut self.frames, Arena(&self.arena))
    }
}

/// The memory of a batch, for reading while its frames change.
#[derive(Clone, Copy, Debug)]
pub struct Arena<'a>(&'a [u8]);

impl<'a> Arena<'a> {
    /// A frame's bytes, from the destination address on.
    #[inline]
    #[must_use]
    pub fn bytes(self, frame: &Frame) -> &'a [u8] {
        &self.0[frame.start as usize..(frame.start + frame.len) as usize]
    }
}
