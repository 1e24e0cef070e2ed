//! Frames in a byte stream: each has its length before it, 32 bits, big-endian (QEMU, `net/stream.c`; no other header).
//!
//! Neither end of the stream sees where the other's calls began. So what was read may end within a frame, whose beginning waits in a
//! [`Deframer`] for the rest; and what was written may end within one, whose rest waits in an [`Outbound`] and leaves before anything
//! else: a frame is never cut in the stream. Both are as large as they ever get from the beginning, and both are pure: bytes in, bytes out.

use std::io::{self, IoSlice};

use arrayvec::ArrayVec;

use crate::batch::BATCH_FRAMES;
use crate::frame::Outgoing;
use crate::port::refused;
use crate::stats::{Counters, DropReason};

/// Bytes of the length before a frame.
pub const PREFIX_LEN: usize = 4;
/// Longest frame: an MTU of 65,535, Ethernet header and a tag.
pub const FRAME_LEN_MAX: usize = 65_535 + 18;

/// A frame's length that none has, 0 or more than [`FRAME_LEN_MAX`]: nothing that follows can be understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadLength;

/// Takes frames out of a stream.
#[derive(Debug)]
pub struct Deframer {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Deframer {
    fn default() -> Self {
        // A frame of any length, and room to read many short ones at once behind the beginning of it.
        Deframer { buffer: vec![0; 4 * FRAME_LEN_MAX].into_boxed_slice(), start: 0, end: 0 }
    }
}

impl Deframer {
    /// Room for what is read next; never empty once [`Deframer::next_frame`] had none.
    #[inline]
    pub fn spare(&mut self) -> &mut [u8] {
        if self.start > 0 {
            // At most the beginning of one frame.
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// Takes the first `len` bytes of [`Deframer::spare`] as what follows in the stream.
    #[inline]
    pub fn filled(&mut self, len: usize) {
        self.end = (self.end + len).min(self.buffer.len());
    }

    /// The next frame, if all of it is there.
    ///
    /// # Errors
    /// The stream says a length that no frame has, now and for ever.
    #[inline]
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, BadLength> {
        let waiting = &self.buffer[self.start..self.end];
        let Some((prefix, rest)) = waiting.split_first_chunk::<PREFIX_LEN>() else { return Ok(None) };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len == 0 || len > FRAME_LEN_MAX {
            return Err(BadLength);
        }
        let Some(frame) = rest.get(..len) else { return Ok(None) };
        self.start += PREFIX_LEN + len;
        Ok(Some(frame))
    }
}

/// Puts frames into a stream, whole ones only.
#[derive(Debug)]
pub struct Outbound {
    /// The rest of a frame of which the beginning has left.
    rest: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Outbound {
    fn default() -> Self {
        Outbound { rest: vec![0; PREFIX_LEN + FRAME_LEN_MAX].into_boxed_slice(), start: 0, end: 0 }
    }
}

/// Slices of a batch with their lengths: at most four a frame, of which the first is the length in place of the offload header.
type Slices<'a> = ArrayVec<IoSlice<'a>, { 4 * BATCH_FRAMES }>;

impl Outbound {
    /// Whether the rest of a frame waits.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.start < self.end
    }

    /// Sends what waits; whether nothing waits any more.
    ///
    /// # Errors
    /// What `write` says.
    pub fn flush(
        &mut self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<Option<usize>>,
    ) -> io::Result<bool> {
        while self.is_stuck() {
            match write(&[IoSlice::new(&self.rest[self.start..self.end])])? {
                Some(written @ 1..) => self.start += written.min(self.end - self.start),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Sends frames, each counted as sent or dropped. `write` takes some bytes off the front of slices and says how many, or `None` when
    /// there is no room.
    pub fn send(
        &mut self,
        frames: &[Outgoing<'_>],
        counters: &Counters,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<Option<usize>>,
    ) {
        let drop_all = |frames: &[Outgoing<'_>], reason| counters.drop_frames(reason, frames.len() as u64);
        match self.flush(&mut write) {
            Ok(true) => {}
            Ok(false) => return drop_all(frames, DropReason::TxFull),
            Err(error) => return drop_all(frames, closed(&error)),
        }
        for frames in frames.chunks(BATCH_FRAMES) {
            if self.is_stuck() {
                drop_all(frames, DropReason::TxFull);
                continue;
            }
            let (pieces, prefixes) = prefixed(frames);
            let mut slices = Slices::new();
            for (pieces, prefix) in pieces.iter().zip(&prefixes) {
                slices.push(IoSlice::new(prefix));
                // What is empty costs the kernel a turn of its loop.
                pieces[1..]
                    .iter()
                    .filter(|piece| !piece.is_empty())
                    .for_each(|piece| slices.push(IoSlice::new(piece)));
            }
            let mut written = match write(&slices) {
                Ok(written) => written.unwrap_or(0),
                Err(error) => {
                    drop_all(frames, closed(&error));
                    continue;
                }
            };
            for ((frame, pieces), prefix) in frames.iter().zip(&pieces).zip(&prefixes) {
                let len = PREFIX_LEN + frame.frame_len();
                if written == 0 {
                    counters.drop_frame(DropReason::TxFull);
                    continue;
                }
                if written < len {
                    self.keep(written, prefix, &pieces[1..]);
                }
                // The rest of it will follow.
                written = written.saturating_sub(len);
                counters.sent(frame.frame_len(), frame.segments());
            }
        }
    }

    /// Keeps what is behind the first `written` bytes of a frame with its length.
    fn keep(&mut self, written: usize, prefix: &[u8], pieces: &[&[u8]]) {
        (self.start, self.end) = (0, 0);
        let mut skip = written;
        for piece in std::iter::once(&prefix).chain(pieces) {
            let left = piece.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(piece.len());
            // A frame that egress lets pass fits.
            if let Some(room) = self.rest.get_mut(self.end..self.end + left.len()) {
                room.copy_from_slice(left);
                self.end += left.len();
            }
        }
    }
}

/// The slices of frames, and the lengths that go before them.
#[allow(clippy::type_complexity, reason = "two lists of one length")]
fn prefixed<'a>(
    frames: &'a [Outgoing<'a>],
) -> (ArrayVec<[&'a [u8]; 4], BATCH_FRAMES>, ArrayVec<[u8; PREFIX_LEN], BATCH_FRAMES>) {
    let prefix = |frame: &Outgoing<'_>| u32::try_from(frame.frame_len()).unwrap_or(u32::MAX).to_be_bytes();
    (frames.iter().map(Outgoing::slices).collect(), frames.iter().map(prefix).collect())
}

/// Why a frame was not sent into a stream.
fn closed(error: &io::Error) -> DropReason {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected => {
            DropReason::PortDown
        }
        _ => refused(error),
    }
}

#[cfg(test)]
mod tests;
