//! The frames that one receive call brought, and the memory they lie in.
//!
//! A worker runs a batch to completion before it receives the next, so all its frames die together and their memory is
//! a bump arena: frames lie one behind the other, small ones in few cache lines, and the same lines are used again
//! by the next batch. (A pool of 64 KiB buffers was the alternative: every small frame would touch a page of its own.)
//!
//! A batch is bounded by [`BATCH_FRAMES`] and by [`BATCH_BYTES`], so that bursts of 64 KiB GSO frames stay inside
//! the L2 cache. In front of each frame lies its offload header, ready to be written out with it, and before that room
//! for a VLAN tag to be put back.

use std::net::IpAddr;

use arrayvec::ArrayVec;

use crate::frame::{ADDRESSES_LEN, Frame, TAG_LEN, TAG_SHIFT};
use crate::offload::{BadOffload, Offload, VNET_HDR_LEN};
use crate::tunnel::Origin;

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
    /// Whose the frames are, and the address they came from, when they came by an endpoint of several ports.
    pub origin: Option<(Origin, IpAddr)>,
}

impl Default for Batch {
    fn default() -> Self {
        Batch {
            arena: vec![0; BATCH_BYTES + SLOT_MAX].into_boxed_slice(),
            used: 0,
            frames: ArrayVec::new(),
            origin: None,
        }
    }
}

impl Batch {
    /// Forgets all frames.
    #[inline]
    pub fn clear(&mut self) {
        self.frames.clear();
        self.used = 0;
        self.origin = None;
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

    /// Takes the `len` bytes of frame in [`Batch::spare`] as the next frame, with the offload header before them, which is
    /// checked. `tag` is a VLAN tag that the kernel took out; it is put back behind the addresses.
    ///
    /// # Errors
    /// The offload header contradicts the frame, which is then not taken.
    #[inline]
    pub fn take(&mut self, len: usize, tag: Option<[u8; TAG_LEN]>) -> Result<(), BadOffload> {
        let start = self.used + HEADROOM;
        let Some(header) = self.arena[start - VNET_HDR_LEN..].first_chunk() else { unreachable!() };
        if *header == [0; VNET_HDR_LEN] && tag.is_none() {
            self.push(start, len, 1, Offload::default());
            return Ok(());
        }
        self.take_with(start, len, tag)
    }

    /// Takes a frame of which something is left to do.
    fn take_with(
        &mut self,
        mut start: usize,
        mut len: usize,
        tag: Option<[u8; TAG_LEN]>,
    ) -> Result<(), BadOffload> {
        let Some(header) = self.arena[start - VNET_HDR_LEN..].first_chunk() else { unreachable!() };
        let mut offload = Offload::from_virtio(header, len)?;
        if let Some(tag) = tag.filter(|_| len >= ADDRESSES_LEN) {
            self.arena.copy_within(start..start + ADDRESSES_LEN, start - TAG_LEN);
            start -= TAG_LEN;
            len += TAG_LEN;
            self.arena[start + ADDRESSES_LEN..start + ADDRESSES_LEN + TAG_LEN].copy_from_slice(&tag);
            offload = offload.shifted(TAG_SHIFT);
        }
        offload.admit(&mut self.arena[start..start + len], len)?;
        let Some(header) = self.arena[start - VNET_HDR_LEN..].first_chunk_mut() else { unreachable!() };
        offload.to_virtio(header);
        self.push(start, len, offload.segments(len), offload);
        Ok(())
    }

    #[inline]
    fn push(&mut self, start: usize, len: usize, segments: u32, offload: Offload) {
        self.used = (start + len).next_multiple_of(ALIGN);
        // All fit: the arena is far smaller than 4 GiB, and a 64 KiB frame has at most 2,048 segments.
        #[allow(clippy::cast_possible_truncation)]
        self.frames.push(Frame {
            start: start as u32,
            len: len as u32,
            segments: segments as u16,
            offload,
            live: true,
            ..Frame::default()
        });
    }

    /// A frame's bytes, from the destination address on.
    #[inline]
    #[must_use]
    pub fn bytes(&self, frame: &Frame) -> &[u8] {
        &self.arena[frame.start as usize..(frame.start + frame.len) as usize]
    }

    /// The same to change, for as long as nobody else has seen it.
    #[inline]
    #[must_use]
    pub fn bytes_mut(&mut self, frame: &Frame) -> &mut [u8] {
        &mut self.arena[frame.start as usize..(frame.start + frame.len) as usize]
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
