//! One frame on its way through the switch: where its bytes are, and what is known about it.
//!
//! The bytes lie in the batch's arena (see [`crate::batch`]): a validated copy that cannot change under us. Stages read
//! them through [`crate::batch::Batch`] and do not rewrite them (but for one number in a SYN from a tunnel, where that is asked
//! for); what changes is in this struct, one cache line.
//!
//! The payload of a long frame may be lent: it stays in the memory of the guest that sent it until the frame leaves ([`Rest`]). Its headers
//! are in the arena all the same, and no stage looks past those; a port that needs all of it in one place gets it so (see
//! [`Batch::fetch`](crate::batch::Batch::fetch)).

use crate::bridge::fdb::{Hash, Key};
use crate::offload::{Offload, VNET_HDR_LEN};
use crate::virtio::GuestMemory;
use crate::virtio::memory::Area;

/// Bytes of an Ethernet header without tags: two addresses and the EtherType.
pub const ETH_HEADER_LEN: usize = 14;
/// Bytes of the two addresses.
pub const ADDRESSES_LEN: usize = 12;
/// Bytes of one VLAN tag.
pub const TAG_LEN: usize = 4;
/// By how much pushing a tag moves what is behind it.
pub const TAG_SHIFT: i8 = 4;

/// What is known of one received frame.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
pub struct Frame {
    /// Offset of the first byte in the arena.
    pub(crate) start: u32,
    /// Length in bytes, without FCS.
    pub(crate) len: u32,
    /// What its sender left to do.
    pub offload: Offload,
    /// Whether it goes on; a dropped frame stays in the batch so that indices hold.
    pub live: bool,
    /// Whether the switch has answered it itself, so that tunnels which suppress such frames are spared.
    pub answered: bool,
    /// Whether it carries an 802.1Q tag.
    pub tagged: bool,
    /// Its tag control information, 0 when untagged.
    pub tci: u16,
    /// The VLAN it was classified into; 0 in a bridge that does not filter.
    pub vid: u16,
    /// Wire frames it stands for.
    pub segments: u16,
    /// Which rest of the batch is its own, from 1 on; 0 when all of it is in the arena.
    pub(crate) lent: u8,
    /// Its source as an FDB key.
    pub source: Key,
    /// Its destination as an FDB key.
    pub destination: Key,
    /// Where the source is in the FDB.
    pub source_hash: Hash,
    /// Where the destination is in the FDB.
    pub destination_hash: Hash,
}

// One cache line; being aligned to it, a byte more would be two.
const _: () = assert!(size_of::<Frame>() == 64);

impl Frame {
    /// Length in bytes, without FCS.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Never: kept because a type with a length has it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A frame as one port is to send it. What cannot be sent in one piece is a list of slices, so that a frame which
/// leaves by ten ports with different tags is never copied nor rewritten.
#[derive(Clone, Copy, Debug)]
pub enum Outgoing<'a> {
    /// The offload header and the frame in one piece.
    Whole {
        /// [`VNET_HDR_LEN`] bytes of offload header, then the frame.
        bytes: &'a [u8],
        /// Wire frames it stands for.
        segments: u32,
    },
    /// A segment cut from a longer frame.
    Segment {
        /// [`VNET_HDR_LEN`] bytes of offload header, then the headers of the frame.
        head: &'a [u8],
        /// What is behind them.
        payload: &'a [u8],
    },
    /// A frame whose tag differs from the received one's.
    Pieces {
        /// The offload header, with offsets for the frame as it is here.
        header: [u8; VNET_HDR_LEN],
        /// Destination and source.
        addresses: &'a [u8],
        /// The tag, if it leaves with one.
        tag: Option<[u8; TAG_LEN]>,
        /// From the EtherType on.
        rest: &'a [u8],
        /// Wire frames it stands for.
        segments: u32,
    },
    /// A frame whose end is still where it came from. Only for ports that [take such](crate::port::PortQueue::takes_lent).
    Lent {
        /// [`VNET_HDR_LEN`] bytes of offload header, then the frame as far as it is here.
        bytes: &'a [u8],
        /// What is behind that.
        rest: Rest<'a>,
        /// Wire frames it stands for.
        segments: u32,
    },
}

/// The end of a frame, in a guest's memory.
#[derive(Clone, Copy, Debug)]
pub struct Rest<'a> {
    /// The memory.
    pub(crate) memory: &'a GuestMemory,
    /// Where in it, in order.
    pub(crate) pieces: &'a [Area],
    /// Length in bytes.
    pub(crate) len: usize,
}

impl<'a> Outgoing<'a> {
    /// The offload header.
    #[inline]
    #[must_use]
    pub fn header(&self) -> &[u8; VNET_HDR_LEN] {
        let header = match self {
            Outgoing::Whole { bytes: head, .. }
            | Outgoing::Lent { bytes: head, .. }
            | Outgoing::Segment { head, .. } => head.first_chunk(),
            Outgoing::Pieces { header, .. } => Some(header),
        };
        let Some(header) = header else { unreachable!("a frame without its offload header") };
        header
    }

    /// Length of the frame in bytes, without offload header and FCS.
    #[inline]
    #[must_use]
    pub fn frame_len(&self) -> usize {
        match self {
            Outgoing::Whole { bytes, .. } => bytes.len() - VNET_HDR_LEN,
            Outgoing::Lent { bytes, rest, .. } => bytes.len() - VNET_HDR_LEN + rest.len,
            Outgoing::Segment { head, payload } => head.len() - VNET_HDR_LEN + payload.len(),
            Outgoing::Pieces { addresses, tag, rest, .. } => {
                addresses.len() + tag.map_or(0, |tag| tag.len()) + rest.len()
            }
        }
    }

    /// Wire frames it stands for.
    #[must_use]
    pub fn segments(&self) -> u32 {
        match self {
            Outgoing::Segment { .. } => 1,
            Outgoing::Whole { segments, .. }
            | Outgoing::Pieces { segments, .. }
            | Outgoing::Lent { segments, .. } => *segments,
        }
    }

    /// What is lent of it.
    #[inline]
    #[must_use]
    pub fn rest(&self) -> Option<Rest<'a>> {
        match self {
            Outgoing::Lent { rest, .. } => Some(*rest),
            _ => None,
        }
    }

    /// The offload header and the frame, in order, as at most four slices; unused ones are empty. What is lent is not in them.
    #[must_use]
    pub fn slices(&'a self) -> [&'a [u8]; 4] {
        match self {
            Outgoing::Whole { bytes, .. } | Outgoing::Lent { bytes, .. } => {
                [&bytes[..VNET_HDR_LEN], &bytes[VNET_HDR_LEN..], &[], &[]]
            }
            Outgoing::Segment { head, payload } => {
                [&head[..VNET_HDR_LEN], &head[VNET_HDR_LEN..], payload, &[]]
            }
            Outgoing::Pieces { header, addresses, tag, rest, .. } => {
                [header, addresses, tag.as_ref().map_or(&[], |tag| tag), rest]
            }
        }
    }
}
