//! Clamping of TCP's maximum segment size (RFC 9293, section 3.7.1; RFC 6691).
//!
//! A SYN says how long a segment its sender takes. Where a tunnel's path takes less, the number is lowered on the way, so
//! that neither end ever sends what does not fit. It is never raised, and a SYN that says nothing is left alone: then
//! 536 bytes are the rule.
//!
//! Finding what to change is apart from changing it: a frame that may leave by several ports is copied first, and only then.

use super::Offload;
use super::checksum::Sum;
use crate::wire::layers::{Layers, protocol};
use crate::wire::{ipv4, ipv6, tcp};

/// Kinds of option (RFC 9293, section 3.1).
const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
/// Kind, length and value of the MSS option, in bytes.
const MSS_LEN: usize = 4;

/// What is to change in a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clamp {
    /// Where the TCP header begins, in bytes from the start of the frame.
    l4: usize,
    /// Where the segment size is.
    at: usize,
    /// What it is to be.
    mss: u16,
}

/// What is to change in `frame` so that no segment of its connection makes a frame of more than `frame_max` bytes, its tags included.
/// Nothing unless it is a SYN that announces longer ones.
#[inline]
#[must_use]
pub fn clamp(frame: &[u8], frame_max: usize) -> Option<Clamp> {
    let layers =
        Layers::parse(frame).filter(|layers| layers.protocol == protocol::TCP && !layers.fragment)?;
    let header = frame.get(layers.l4..)?;
    if header.get(tcp::field::FLAGS)? & tcp::SYN == 0 { None } else { clamp_syn(frame, &layers, frame_max) }
}

#[cold]
fn clamp_syn(frame: &[u8], layers: &Layers, frame_max: usize) -> Option<Clamp> {
    let header = tcp::Header::from_slice(frame.get(layers.l4..)?).ok()?.slice();
    let mut at = tcp::MIN_HEADER_LEN;
    let at = loop {
        match *header.get(at..)? {
            [END, ..] | [] => return None,
            [NOP, ..] => at += 1,
            [MSS, len, _, _, ..] if usize::from(len) == MSS_LEN => break at + 2,
            [_, len, ..] if len >= 2 => at += usize::from(len),
            _ => return None,
        }
    };
    let announced = u16::from_be_bytes([header[at], header[at + 1]]);
    // The number does not count options (RFC 6691).
    let ip = if layers.ipv4 { ipv4::MIN_HEADER_LEN } else { ipv6::HEADER_LEN };
    let fits = frame_max.checked_sub(layers.l3 + ip + tcp::MIN_HEADER_LEN).filter(|&fits| fits > 0)?;
    let mss = u16::try_from(fits).ok().filter(|&fits| fits < announced)?;
    Some(Clamp { l4: layers.l4, at: layers.l4 + at, mss })
}

impl Clamp {
    /// Changes the frame in which it was found. `offload` says what of the frame is unfinished: a checksum that is still to be
    /// computed needs no change; another is updated (RFC 1624).
    pub fn apply(&self, frame: &mut [u8], offload: &Offload) {
        let Clamp { l4, at, mss } = *self;
        let Some(header) = frame.get_mut(l4..) else { return };
        // Whole words of the checksum: the option may begin at any byte.
        let (from, to) = ((at - l4) & !1, (at - l4 + 3) & !1);
        let Some(words) = header.get(from..to) else { return };
        let before = Sum::of(words).checksum();
        header[at - l4..at - l4 + 2].copy_from_slice(&mss.to_be_bytes());
        let unfinished = offload.needs_csum
            && usize::from(offload.csum_start) == l4
            && offload.csum_offset == tcp::CHECKSUM_OFFSET;
        if unfinished {
            return;
        }
        // HC' = ~(~HC + ~m + m').
        let [high, low] = [header[tcp::field::CHECKSUM.start], header[tcp::field::CHECKSUM.start + 1]];
        let sum = Sum::of(&[!high, !low]).bytes(&before).bytes(&header[from..to]);
        header[tcp::field::CHECKSUM].copy_from_slice(&sum.checksum());
    }
}

#[cfg(test)]
mod tests;
