//! The immutable picture of bridges and ports that workers run on.
//!
//! The control side builds a new one for each change and hands it to every worker; a worker swaps it in between two
//! batches and acknowledges. Nothing here changes after it was built, except what is atomic in [`PortShared`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use hashbrown::HashMap;

use crate::addr::PortId;
use crate::bridge::fdb::Fdb;
use crate::bridge::neighbours::Neighbours;
use crate::bridge::vlan::{self, VlanPolicy};
use crate::frame::{ETH_HEADER_LEN, TAG_LEN};
use crate::offload::Capabilities;
use crate::spec::Df;
use crate::stats::Counters;
use crate::tunnel::Demux;

/// Most ports a switch can have.
pub const PORTS_MAX: usize = 4096;

/// Everything a worker needs to know to forward a frame.
#[derive(Debug, Default)]
pub struct Topology {
    /// Counts up by one for each change.
    pub generation: u64,
    /// Bridges, named by their index.
    pub bridges: Vec<Bridge>,
    /// Ports, by [`PortId`]. A remote of a tunnel port is one.
    pub ports: Vec<Option<Port>>,
    /// Where datagrams of tunnels arrive, by an id of their own.
    pub endpoints: HashMap<PortId, Endpoint>,
}

impl Topology {
    /// The port with this id.
    #[inline]
    #[must_use]
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(id.index())?.as_ref()
    }
}

/// Sockets at which the frames of several tunnel ports arrive, as workers see them.
#[derive(Debug)]
pub struct Endpoint {
    /// Whose they are.
    pub demux: Demux,
    /// What is nobody's is counted here.
    pub shared: Arc<PortShared>,
}

/// A bridge, as workers see it.
#[derive(Debug)]
pub struct Bridge {
    /// Who is where.
    pub fdb: Arc<Fdb>,
    /// Stations are remembered at all (an ageing time of 0 makes a hub).
    pub learning: bool,
    /// IEEE 802.1Q VLAN filtering.
    pub filtering: bool,
    /// Who has which address, if a port of it suppresses ARP and neighbour discovery.
    pub neighbours: Option<Arc<Neighbours>>,
    /// Its ports, in order of id.
    pub members: Vec<PortId>,
}

/// A port, as workers see it.
#[derive(Debug)]
pub struct Port {
    /// Its id: its index in [`Topology::ports`].
    pub id: PortId,
    /// The port that operators know: itself, or the tunnel port whose remote it is.
    pub device: PortId,
    /// Frames that claim a station known at a port that is no tunnel are dropped.
    pub guard_local: bool,
    /// What the switch answers itself is not flooded into it: ARP requests and neighbour solicitations.
    pub neigh_suppress: bool,
    /// What comes by one tunnel of a group is not flooded into another; 0 is no tunnel.
    pub group: u16,
    /// Of a tunnel: what becomes of frames that do not fit its path. Elsewhere too long ones are dropped.
    pub df: Option<Df>,
    /// Of a tunnel: TCP connections are told to send segments that fit its path.
    pub mss_clamp: bool,
    /// Index of its bridge in [`Topology::bridges`].
    pub bridge: usize,
    /// Source addresses are remembered.
    pub learning: bool,
    /// Unknown unicast leaves here.
    pub flood: bool,
    /// Exchanges nothing with other isolated ports.
    pub isolated: bool,
    /// A frame may leave by the port it came in.
    pub hairpin: bool,
    /// Which VLANs, when the bridge filters.
    pub vlan: VlanPolicy,
    /// What it takes unfinished.
    pub capabilities: Capabilities,
    /// What changes while it runs.
    pub shared: Arc<PortShared>,
}

impl Port {
    /// An ordinary port: no tunnel, no offloads, everything else as by default.
    #[must_use]
    pub fn new(id: PortId, bridge: usize, vlan: VlanPolicy, shared: Arc<PortShared>) -> Port {
        Port {
            id,
            device: id,
            guard_local: false,
            group: 0,
            df: None,
            mss_clamp: false,
            neigh_suppress: false,
            bridge,
            learning: true,
            flood: true,
            isolated: false,
            hairpin: false,
            vlan,
            capabilities: Capabilities::default(),
            shared,
        }
    }
}

/// What of a port changes without a new topology, and its counters.
#[derive(Debug)]
pub struct PortShared {
    /// Its device is gone; set by whoever sees it first, cleared by nobody (a new device is a new port).
    pub gone: AtomicBool,
    /// Longest untagged frame without GSO it can send, in bytes with Ethernet header; of a tunnel, the longest frame that
    /// fits one packet of the path, with any tags.
    frame_max: AtomicU32,
    /// What of its capabilities holds now: a guest that boots may agree to less.
    taken: AtomicU8,
    /// Which tags that limit leaves out.
    uncounted: AtomicU8,
    /// One a worker.
    pub counters: Box<[Counters]>,
}

/// Which outermost tag does not count for the length of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Uncounted {
    /// 802.1Q or 802.1ad.
    Tag,
    /// 802.1Q: of packet sockets.
    CTag,
    /// None: of tunnels.
    Nothing,
}

impl Port {
    /// What it takes unfinished now.
    #[inline]
    #[must_use]
    pub fn takes(&self) -> Capabilities {
        let (can, now) = (self.capabilities, self.shared.taken());
        Capabilities {
            csum: can.csum && now.csum,
            tso4: can.tso4 && now.tso4,
            tso6: can.tso6 && now.tso6,
            uso: can.uso && now.uso,
        }
    }
}

impl PortShared {
    /// Counters for `workers` workers; `strict_mtu` is a port whose untagged frames must fit the MTU exactly.
    #[must_use]
    pub fn new(workers: usize, mtu: u32, strict_mtu: bool) -> Self {
        let shared = PortShared {
            gone: AtomicBool::new(false),
            frame_max: AtomicU32::new(0),
            taken: AtomicU8::new(u8::MAX),
            uncounted: AtomicU8::new(if strict_mtu { Uncounted::CTag } else { Uncounted::Tag } as u8),
            counters: (0..workers).map(|_| Counters::default()).collect(),
        };
        shared.set_mtu(mtu);
        shared
    }

    /// Goes on counting where `before` ended; before any worker has it.
    pub fn continue_from(&self, before: &PortShared) {
        for (counters, before) in self.counters.iter().zip(&before.counters) {
            counters.continue_from(before);
        }
    }

    /// Follows the MTU of the interface, in bytes.
    pub fn set_mtu(&self, mtu: u32) {
        let strict = self.uncounted.load(Ordering::Relaxed) == Uncounted::CTag as u8;
        let header = if strict { ETH_HEADER_LEN } else { ETH_HEADER_LEN + TAG_LEN };
        #[allow(clippy::cast_possible_truncation, reason = "18 at most")]
        self.frame_max.store(mtu.saturating_add(header as u32), Ordering::Relaxed);
    }

    /// Follows what a guest agreed to take, among what the port can do.
    pub fn set_taken(&self, taken: Capabilities) {
        let Capabilities { csum, tso4, tso6, uso } = taken;
        let bits = [csum, tso4, tso6, uso].iter().rev().fold(0, |bits, &is| bits << 1 | u8::from(is));
        self.taken.store(bits, Ordering::Relaxed);
    }

    /// What of the port's capabilities holds now.
    #[inline]
    #[must_use]
    pub fn taken(&self) -> Capabilities {
        let bits = self.taken.load(Ordering::Relaxed);
        let is = |bit: u8| bits & 1 << bit != 0;
        Capabilities { csum: is(0), tso4: is(1), tso6: is(2), uso: is(3) }
    }

    /// Follows the path of a tunnel: the longest frame that fits one packet of it, in bytes with any tags.
    pub fn set_path_max(&self, bytes: u32) {
        self.uncounted.store(Uncounted::Nothing as u8, Ordering::Relaxed);
        self.frame_max.store(bytes, Ordering::Relaxed);
    }

    /// Longest untagged frame without GSO that it can send; of a tunnel, the longest frame that fits one packet of the path.
    #[inline]
    #[must_use]
    pub fn frame_max(&self) -> usize {
        self.frame_max.load(Ordering::Relaxed) as usize
    }

    /// Whether a frame of `len` bytes that is not GSO, with this EtherType behind its addresses, is too long for this port.
    ///
    /// As in Linux's bridge (`is_skb_forwardable`), the outermost tag is not counted: it is not in the frame there.
    #[inline]
    #[must_use]
    pub fn too_long(&self, len: usize, ethertype: impl FnOnce() -> [u8; 2]) -> bool {
        len > self.frame_max() && self.too_long_with(len, ethertype())
    }

    #[cold]
    fn too_long_with(&self, len: usize, ethertype: [u8; 2]) -> bool {
        let uncounted = self.uncounted.load(Ordering::Relaxed);
        let is = match u16::from_be_bytes(ethertype) {
            vlan::TPID_8021Q => uncounted != Uncounted::Nothing as u8,
            vlan::TPID_8021AD => uncounted == Uncounted::Tag as u8,
            _ => false,
        };
        len > self.frame_max() + if is { TAG_LEN } else { 0 }
    }

    /// Whether its device is gone.
    #[inline]
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}
