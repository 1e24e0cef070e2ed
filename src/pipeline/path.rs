//! Frames that do not fit the path of the tunnel they leave by.
//!
//! What fits one packet of the path is for the control side to know, which looks each second. A longer frame leaves in fragments of
//! the outer packet, or it goes no further and its sender is told what would fit (RFC 1191, RFC 8201), as [`Df`] says.
//! Path MTU discovery then works through the tunnel as over any other link that takes less.

use super::answer::{About, Answers};
use crate::bridge::fdb::Tick;
use crate::spec::Df;
use crate::stats::DropReason;
use crate::wire::icmp::{self, IPV6_MTU_MIN};
use crate::wire::ipv4;
use crate::wire::layers::Layers;

/// A frame longer than the path takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Oversize<'a> {
    /// As it was received, maybe to be cut into segments; the answer to it has its tags.
    pub(super) frame: &'a [u8],
    /// Bytes by which its tags, as it leaves, are longer than those it was received with.
    pub(super) grown: isize,
    /// Length of the frame, or of the longest of its segments, as it leaves.
    pub(super) len: usize,
    /// Longest frame that fits one packet of the path.
    pub(super) frame_max: usize,
}

impl Oversize<'_> {
    /// Whether it may leave in fragments of the outer packet. If not, its sender is told, if that is possible; once, whatever the number of
    /// paths it was to take: `told` is true then.
    ///
    /// # Errors
    /// It goes no further.
    #[cold]
    pub(super) fn fragments(
        &self,
        df: Df,
        now: Tick,
        answers: &mut Answers,
        told: &mut bool,
    ) -> Result<(), DropReason> {
        let layers = Layers::parse(self.frame);
        let l2_len = layers.and_then(|layers| layers.l3.checked_add_signed(self.grown));
        let (Some(layers), Some(l2_len)) = (layers, l2_len) else {
            // Nobody can be told.
            return if df == Df::Set { Err(DropReason::TooBig) } else { Ok(()) };
        };
        let mut mtu = u32::try_from(self.frame_max.saturating_sub(l2_len)).unwrap_or(u32::MAX);
        let may = match df {
            Df::Unset => true,
            Df::Set => false,
            // Nobody is told of what goes to a group, so its senders never learn.
            Df::Inherit if is_to_group(self.frame) => true,
            Df::Inherit if layers.ipv4 => {
                let flags = self.frame.get(layers.l3 + ipv4::FRAGMENT);
                flags.is_some_and(|flags| flags & ipv4::DF == 0)
            }
            Df::Inherit => {
                // What is that short must get through every link, which has to fragment by itself (RFC 8200, section 5).
                mtu = mtu.max(IPV6_MTU_MIN);
                self.len <= l2_len + IPV6_MTU_MIN as usize
            }
        };
        if may {
            return Ok(());
        }
        if !*told {
            *told = answers.push(About::TooBig, now, |answer| icmp::too_big(self.frame, mtu, answer));
        }
        Err(DropReason::TooBig)
    }
}

/// Whether a frame's destination is a group address.
fn is_to_group(frame: &[u8]) -> bool {
    frame.first().is_some_and(|first| first & 1 != 0)
}
