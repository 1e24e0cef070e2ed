//! The frames that one receive call brought, and the memory they lie in.
//!
//! A worker runs a batch to completion before it receives the next, so all its frames die together and their memory is
//! a bump arena: frames lie one behind the other, small ones in few cache lines, and the same lines are used again
//! by the next batch. (A pool of 64 KiB buffers was the alternative: every small frame would touch a page of its own.)
//!
//! A batch is bounded by [`BATCH_FRAMES`] and by [`BATCH_BYTES`], so that bursts of 64 KiB GSO frames stay inside
//! the L2 cache. A frame of more than 64 KiB (BIG TCP) becomes several, for which there is room behind. The end of a long frame may stay where it came from, and then it is copied only once, to where it goes; room for it is kept
//! all the same. In front of each frame lies its offload header, ready to be written out with it, and before that room
//! for a VLAN tag to be put back.

use std::net::IpAddr;
use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::frame::{ADDRESSES_LEN, Frame, Rest, TAG_LEN, TAG_SHIFT};
use crate::offload::big::{BIG_FRAME_MAX, BIG_PIECES_MAX, Big};
use crate::offload::{BadOffload, MAX_HEADERS_LEN, Offload, VNET_HDR_LEN};
use crate::tunnel::Origin;
use crate::virtio::GuestMemory;
use crate::virtio::memory::Area;
use crate::virtio::ring::{Budget, PIECES_MAX};

/// Most frames in a batch.
pub const BATCH_FRAMES: usize = 64;
/// Bytes after which a batch takes no further frame.
pub const BATCH_BYTES: usize = 128 * 1024;
/// Longest frame received: 64 KiB of IP packet, Ethernet header, two tags.
pub const FRAME_MAX: usize = 65_535 + 14 + 8;

/// Of a frame whose end is lent, so much is here: more than any stage looks at, but for neighbour discovery in frames longer than any that is
/// sent, which then goes its way unanswered. One that needs segmentation has more, its headers being
/// checked when it comes in.
const HEADERS_LEN: usize = 128;
/// Less than this is copied: looking after it costs more.
const LEND_FROM: usize = 512;
/// What receiving from a guest finds at most.
const LENT_PIECES_MAX: usize = Budget::RECEIVING + PIECES_MAX;

const HEADROOM: usize = TAG_LEN + VNET_HDR_LEN;
const ALIGN: usize = 64;
const SLOT_MAX: usize = (HEADROOM + FRAME_MAX).next_multiple_of(ALIGN);
/// All pieces of a frame of BIG TCP. Pages of it that no such frame has touched cost nothing.
const BIG_ROOM: usize = BIG_FRAME_MAX + BIG_PIECES_MAX * (HEADROOM + MAX_HEADERS_LEN + ALIGN);
const _: () = assert!(BIG_ROOM > SLOT_MAX);

/// Up to [`BATCH_FRAMES`] frames received from one port.
#[derive(Debug)]
pub struct Batch {
    arena: Box<[u8]>,
    used: usize,
    lent: Lent,
    /// The frames, in order of arrival.
    pub frames: ArrayVec<Frame, BATCH_FRAMES>,
    /// Whose the frames are, and the address they came from, when they came by an endpoint of several ports.
    pub origin: Option<(Origin, IpAddr)>,
}

/// Ends of frames that are still in a guest's memory.
#[derive(Debug)]
struct Lent {
    /// Whose memory, if anything is lent.
    memory: Option<Arc<GuestMemory>>,
    rests: ArrayVec<Place, BATCH_FRAMES>,
    pieces: Vec<Area>,
}

/// Where the end of a frame is.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Bytes of the frame that are in the arena.
    here: usize,
    /// The first of its pieces, and the first that is not.
    pieces: (usize, usize),
}

impl Default for Batch {
    fn default() -> Self {
        Batch {
            arena: vec![0; BATCH_BYTES + BIG_ROOM].into_boxed_slice(),
            used: 0,
            lent: Lent { memory: None, rests: ArrayVec::new(), pieces: Vec::with_capacity(LENT_PIECES_MAX) },
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
        self.forget_lent();
    }

    /// Whether the end of some frame is not here.
    #[inline]
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.lent.memory.is_some()
    }

    /// Ends of frames that are not here are not asked for any more: who lent them may have them back.
    #[inline]
    pub fn forget_lent(&mut self) {
        if self.lent.memory.take().is_some() {
            self.lent.rests.clear();
            self.lent.pieces.clear();
        }
    }

    /// Copies to here what is lent.
    #[cold]
    pub fn fetch(&mut self) {
        let Some(memory) = self.lent.memory.take() else { return };
        for frame in self.frames.iter_mut().filter(|frame| frame.lent != 0) {
            let place = self.lent.rests[usize::from(frame.lent) - 1];
            let start = frame.start as usize;
            let mut to = &mut self.arena[start + place.here..start + frame.len as usize];
            for &piece in &self.lent.pieces[place.pieces.0..place.pieces.1] {
                // Another's memory is never asked for; if it were, there would be what was here before.
                let taken = memory.slice(piece).map_or(0, |slice| slice.copy_to(to));
                to = &mut to[taken..];
            }
            to.fill(0);
            frame.lent = 0;
        }
        self.lent.memory = Some(memory);
        self.forget_lent();
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

    /// Whether it takes all pieces of a frame of more than [`FRAME_MAX`] bytes.
    #[must_use]
    pub fn takes_big(&self) -> bool {
        self.frames.remaining_capacity() >= BIG_PIECES_MAX && self.used < BATCH_BYTES
    }

    /// Where the payload of such a frame is to be put, one slice a piece. The batch must [take it](Batch::takes_big).
    pub fn big_room(&mut self, big: &Big) -> ArrayVec<&mut [u8], BIG_PIECES_MAX> {
        let mut slices = ArrayVec::new();
        let (mut rest, mut at) = (&mut self.arena[self.used..], 0);
        for piece in big.pieces() {
            let (here, behind) = rest.split_at_mut((big_slot(big) + piece.len).next_multiple_of(ALIGN));
            at += here.len();
            slices.push(&mut here[big_slot(big)..][..piece.len]);
            rest = behind;
        }
        debug_assert!(at <= BIG_ROOM);
        slices
    }

    /// Takes the pieces whose payload is in [`Batch::big_room`]. `tag` is a VLAN tag that the kernel took out.
    ///
    /// # Errors
    /// As of [`Batch::take`]; pieces before the one that is refused were taken.
    pub fn take_big(&mut self, big: &Big, tag: Option<[u8; TAG_LEN]>) -> Result<(), BadOffload> {
        for piece in big.pieces() {
            let out = &mut self.arena[self.used..][..big_slot(big)];
            big.write(piece, &mut out[TAG_LEN..]);
            self.take(big.headers_len() + piece.len, tag)?;
        }
        Ok(())
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

    /// How much of a frame with this offload header and of this length, in so many pieces of a guest's memory, has to be in
    /// [`Batch::spare`], if the rest can be lent.
    #[inline]
    #[must_use]
    pub fn lends(&self, gso: bool, len: usize, pieces: usize, memory: &Arc<GuestMemory>) -> Option<usize> {
        let here = if gso { MAX_HEADERS_LEN } else { HEADERS_LEN };
        let same = self.lent.memory.as_ref().is_none_or(|lender| Arc::ptr_eq(lender, memory));
        let room = self.lent.pieces.capacity() - self.lent.pieces.len();
        (len >= here + LEND_FROM && same && pieces <= room).then_some(here)
    }

    /// Takes a frame of `len` bytes of which only the first `here` are in [`Batch::spare`], as [`Batch::lends`] said, behind the offload
    /// header. The others are in `pieces`.
    ///
    /// # Errors
    /// As of [`Batch::take`].
    pub fn take_lent(
        &mut self,
        here: usize,
        len: usize,
        memory: &Arc<GuestMemory>,
        pieces: impl Iterator<Item = Area>,
    ) -> Result<(), BadOffload> {
        let start = self.used + HEADROOM;
        let Some(header) = self.arena[start - VNET_HDR_LEN..].first_chunk() else { unreachable!() };
        let mut offload = Offload::from_virtio(header, len)?;
        offload.admit(&mut self.arena[start..start + here], len)?;
        let Some(header) = self.arena[start - VNET_HDR_LEN..].first_chunk_mut() else { unreachable!() };
        offload.to_virtio(header);
        let Lent { memory: lender, rests, pieces: lent } = &mut self.lent;
        let first = lent.len();
        lent.extend(pieces);
        rests.push(Place { here, pieces: (first, lent.len()) });
        if lender.is_none() {
            *lender = Some(Arc::clone(memory));
        }
        // At most a batch of them.
        #[allow(clippy::cast_possible_truncation)]
        let rest = rests.len() as u8;
        self.push(start, len, offload.segments(len), offload);
        if let Some(frame) = self.frames.last_mut() {
            frame.lent = rest;
        }
        Ok(())
    }

    /// What of a frame is lent.
    #[inline]
    #[must_use]
    pub fn rest(&self, frame: &Frame) -> Option<Rest<'_>> {
        let place = self.lent.rests.get(usize::from(frame.lent).checked_sub(1)?)?;
        let pieces = &self.lent.pieces[place.pieces.0..place.pieces.1];
        Some(Rest { memory: self.lent.memory.as_deref()?, pieces, len: frame.len() - place.here })
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

    /// Where a frame's bytes are, as far as they are here.
    #[inline]
    fn range(&self, frame: &Frame) -> std::ops::Range<usize> {
        range(frame, &self.lent.rests)
    }

    /// A frame's bytes, from the destination address on; all that are here.
    #[inline]
    #[must_use]
    pub fn bytes(&self, frame: &Frame) -> &[u8] {
        &self.arena[self.range(frame)]
    }

    /// The same to change, for as long as nobody else has seen it.
    #[inline]
    #[must_use]
    pub fn bytes_mut(&mut self, frame: &Frame) -> &mut [u8] {
        let range = self.range(frame);
        &mut self.arena[range]
    }

    /// A frame's offload header and bytes, in one piece.
    #[inline]
    #[must_use]
    pub fn with_header(&self, frame: &Frame) -> &[u8] {
        let range = self.range(frame);
        &self.arena[range.start - VNET_HDR_LEN..range.end]
    }

    /// All frames to change, and the memory to read them from.
    #[inline]
    pub fn split(&mut self) -> (&mut [Frame], Arena<'_>) {
        (&mut self.frames, Arena(&self.arena, &self.lent.rests))
    }
}

/// Bytes before the payload of a piece.
fn big_slot(big: &Big) -> usize {
    HEADROOM + big.headers_len()
}

/// The memory of a batch, for reading while its frames change.
#[derive(Clone, Copy, Debug)]
pub struct Arena<'a>(&'a [u8], &'a [Place]);

/// Where a frame's bytes are, as far as they are here.
#[inline]
fn range(frame: &Frame, rests: &[Place]) -> std::ops::Range<usize> {
    let start = frame.start as usize;
    let len = match frame.lent {
        0 => frame.len(),
        rest => rests[usize::from(rest) - 1].here,
    };
    start..start + len
}

impl<'a> Arena<'a> {
    /// A frame's bytes, from the destination address on; all that are here.
    #[inline]
    #[must_use]
    pub fn bytes(self, frame: &Frame) -> &'a [u8] {
        &self.0[range(frame, self.1)]
    }
}
