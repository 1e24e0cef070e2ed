//! Counters and drop reasons.
//!
//! Each worker has its own [`Counters`] for each port and is their only writer, so counting is a load, an add and a
//! store without a locked instruction. A reader sums over the workers; it may see a frame counted before
//! its bytes, never a torn number.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a frame, or one copy of it, went no further.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// Every reason, in declaration order.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];

            /// The name operators see.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)* }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than an Ethernet header, or than the VLAN tag it announces.
    Runt = "runt",
    /// The source is a group address or all zeros.
    BadSource = "bad_source",
    /// Sent to 01-80-C2-00-00-01…0F, which stays on its link.
    LinkLocal = "link_local",
    /// The frame's VLAN is not admitted by the receiving port.
    VlanIngress = "vlan_ingress",
    /// The frame's VLAN is not carried by the port its destination is behind.
    VlanEgress = "vlan_egress",
    /// An 802.1ad (0x88a8) tag at a filtering port.
    VlanUnsupported = "vlan_unsupported",
    /// Removing the tag would let an inner tag choose the VLAN at the next switch.
    DoubleTag = "double_tag",
    /// The destination is behind the receiving port.
    SamePort = "same_port",
    /// Both ports are isolated.
    Isolated = "isolated",
    /// It came by a tunnel, and its destination is behind another.
    SplitHorizon = "split_horizon",
    /// Nothing but the receiving port could have taken it.
    NoEgress = "no_egress",
    /// Longer than the leaving port's MTU allows.
    TooLong = "too_long",
    /// The offload description contradicts the frame.
    BadOffload = "bad_offload",
    /// It did not fit the tunnel's path and may not be fragmented; its sender was told, if it could be.
    TooBig = "too_big",
    /// The leaving port's queue is full.
    TxFull = "tx_full",
    /// The leaving port refused the frame.
    TxError = "tx_error",
    /// The leaving port is down.
    PortDown = "port_down",
    /// The leaving port's device is gone.
    PortGone = "port_gone",
    /// Received cut short, for want of buffer in the kernel.
    RxTruncated = "rx_truncated",
    /// The receiving port could not hand the frame over.
    RxError = "rx_error",
    /// A length in a stream that no frame has: the connection was closed.
    BadLength = "bad_length",
    /// The guest broke the rules of its rings, which stopped one. Counted once when that is found, then for what would have left by it.
    BadRing = "bad_ring",
    /// A datagram that is not of this tunnel: cut short, or flags set that nobody agreed on.
    BadTunnelHeader = "bad_tunnel_header",
    /// Fragments of a tunnel's outer packet of which some never came. The kernel counts them, for a whole namespace.
    OuterFragments = "outer_fragments",
    /// A tunnelled frame of a network that no port here has.
    UnknownVni = "unknown_vni",
    /// A tunnelled frame from nobody that this port was told of, or a datagram that is not the peer's.
    UnknownRemote = "unknown_remote",
    /// A tunnelled frame that claims a station of this side.
    Guarded = "guarded",
    /// A router marked the packet around a frame whose sender does not know such marks, and would have dropped the frame itself.
    Congested = "congested",
    /// There is no way to the tunnel's other end.
    Unreachable = "unreachable",
    /// Dropped by the kernel before the switch could read it.
    RxMissed = "rx_missed",
    /// Received as a kind of GSO frame for which the kernel has no description.
    RxUndescribed = "rx_undescribed",
}

/// One worker's counters for one port.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// Frames received.
    pub rx_frames: Counter,
    /// Bytes received.
    pub rx_bytes: Counter,
    /// Wire frames received.
    pub rx_segments: Counter,
    /// Frames sent.
    pub tx_frames: Counter,
    /// Bytes sent.
    pub tx_bytes: Counter,
    /// Wire frames sent.
    pub tx_segments: Counter,
    /// Wire frames sent that did not fit one packet of a tunnel's path: they leave in fragments of the outer packet.
    pub tx_fragmented: Counter,
    /// TCP SYNs whose maximum segment size was lowered to what fits a tunnel's path.
    pub mss_clamped: Counter,
    /// ARP requests and neighbour solicitations that the switch answered itself.
    pub neigh_answered: Counter,
    drops: [Counter; DropReason::ALL.len()],
}

impl Counters {
    /// Counts one dropped frame.
    #[inline]
    pub fn drop_frame(&self, reason: DropReason) {
        self.drop_frames(reason, 1);
    }

    /// Counts `n` dropped frames.
    #[inline]
    pub fn drop_frames(&self, reason: DropReason, n: u64) {
        self.drops[reason as usize].add(n);
    }

    /// Counts one sent frame.
    #[inline]
    pub fn sent(&self, bytes: usize, segments: u32) {
        self.sent_all(1, bytes as u64, segments.into());
    }

    /// Counts several.
    #[inline]
    pub fn sent_all(&self, frames: u64, bytes: u64, segments: u64) {
        self.tx_frames.add(frames);
        self.tx_bytes.add(bytes);
        self.tx_segments.add(segments);
    }

    /// Adds another's counts to these; only before a worker owns them.
    pub(crate) fn continue_from(&self, before: &Counters) {
        self.rx_frames.add(before.rx_frames.get());
        self.rx_bytes.add(before.rx_bytes.get());
        self.rx_segments.add(before.rx_segments.get());
        self.tx_frames.add(before.tx_frames.get());
        self.tx_bytes.add(before.tx_bytes.get());
        self.tx_segments.add(before.tx_segments.get());
        self.tx_fragmented.add(before.tx_fragmented.get());
        self.mss_clamped.add(before.mss_clamped.get());
        self.neigh_answered.add(before.neigh_answered.get());
        DropReason::ALL.iter().for_each(|&reason| self.drop_frames(reason, before.drops(reason)));
    }

    /// Frames dropped for `reason`.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].get()
    }
}

/// A number with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker may call this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
