//! `virtio_net_hdr` to and from [`Offload`] (virtio 1.2, section 5.1.6; Linux `include/linux/virtio_net.h`).
//!
//! The ten-byte form without `num_buffers`, little endian: on little-endian machines what TUN and `PACKET_VNET_HDR` mean
//! by "native", and the first ten bytes of what virtio 1 guests speak. What comes in may be hostile. What leaves was either made
//! here or passed [`Offload::from_virtio`] and, for segmentation, [`Offload::admit`]; the kernel's `tun` and
//! `AF_PACKET` then take it: their rules are checked here in advance, so that a bad frame is a drop with a reason
//! at the port that sent it and not an EINVAL at somebody else's.

use super::{BadOffload, Gso, Offload};
use crate::wire::{ethernet, tcp, udp};

/// Length of the header, in bytes.
pub const VNET_HDR_LEN: usize = 10;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_ECN: u8 = 0x80;

/// An Ethernet and an IPv4 header: no transport header begins earlier. (Linux insists on 20 bytes; this leaves room
/// for a tag to be popped.)
const MIN_CSUM_START: usize = 34;
/// No transport header begins later. Linux needs everything before it in one piece of memory.
const MAX_CSUM_START: usize = 4096;
/// Linux's `GSO_BY_FRAGS`.
const GSO_BY_FRAGS: u16 = 0xffff;

impl Offload {
    /// Reads the header that came with a frame of `frame_len` bytes. The header is not trusted.
    ///
    /// A frame that needs segmentation must also pass [`Offload::admit`], which looks at the frame itself.
    /// `csum_start` is 0 until then when a sender wants segmentation but did not ask for a checksum.
    ///
    /// # Errors
    /// The header contradicts itself or the frame's length, or asks for what nobody offered (UDP fragmentation, tunnels).
    #[inline]
    pub fn from_virtio(header: &[u8; VNET_HDR_LEN], frame_len: usize) -> Result<Offload, BadOffload> {
        let [flags, gso_type, ..] = *header;
        if flags & F_NEEDS_CSUM == 0 && gso_type == 0 {
            return Ok(Offload { csum_valid: flags & F_DATA_VALID != 0, ..Offload::default() });
        }
        Offload::from_unfinished(header, frame_len)
    }

    fn from_unfinished(header: &[u8; VNET_HDR_LEN], frame_len: usize) -> Result<Offload, BadOffload> {
        let [flags, gso_type, fields @ ..] = *header;
        let [hdr_len, gso_size, csum_start, csum_offset] =
            std::array::from_fn(|i| u16::from_le_bytes([fields[2 * i], fields[2 * i + 1]]));
        let ecn = gso_type & GSO_ECN != 0;
        let (gso, gso_csum_offset) = match gso_type & !GSO_ECN {
            0 if !ecn => (Gso::None, 0),
            1 => (Gso::Tcp4, tcp::CHECKSUM_OFFSET),
            4 => (Gso::Tcp6, tcp::CHECKSUM_OFFSET),
            5 if !ecn => (Gso::Udp, udp::CHECKSUM_OFFSET),
            _ => return Err(BadOffload::UnknownGso(gso_type)),
        };
        let mut offload = Offload { needs_csum: true, csum_start, csum_offset, ..Offload::default() };
        if flags & F_NEEDS_CSUM == 0 {
            (offload.csum_start, offload.csum_offset) = (0, gso_csum_offset);
        } else {
            let start = usize::from(csum_start);
            let end = start + usize::from(csum_offset) + 2;
            if !(MIN_CSUM_START..=MAX_CSUM_START).contains(&start) || end > frame_len {
                return Err(BadOffload::ChecksumRange);
            }
        }
        if gso != Gso::None {
            if gso_size == 0 || gso_size == GSO_BY_FRAGS {
                return Err(BadOffload::GsoSize(gso_size));
            }
            if offload.csum_offset != gso_csum_offset {
                return Err(BadOffload::ChecksumField);
            }
            let hdr_len = if usize::from(hdr_len) < ethernet::HEADER_LEN { 0 } else { hdr_len };
            let hdr_len = hdr_len.min(u16::try_from(frame_len).unwrap_or(u16::MAX));
            offload = Offload { gso, ecn, gso_size, hdr_len, ..offload };
        }
        Ok(offload)
    }

    /// Writes the header for a frame that a port takes as it is.
    #[inline]
    pub fn to_virtio(&self, header: &mut [u8; VNET_HDR_LEN]) {
        *header = [0; VNET_HDR_LEN];
        if self.csum_valid {
            header[0] = F_DATA_VALID;
        }
        if !self.needs_csum {
            return;
        }
        header[0] |= F_NEEDS_CSUM;
        header[6..8].copy_from_slice(&self.csum_start.to_le_bytes());
        header[8..10].copy_from_slice(&self.csum_offset.to_le_bytes());
        if self.gso != Gso::None {
            header[1] = self.gso as u8 | if self.ecn { GSO_ECN } else { 0 };
            header[2..4].copy_from_slice(&self.hdr_len.to_le_bytes());
            header[4..6].copy_from_slice(&self.gso_size.to_le_bytes());
        }
    }
}
