//! What an operator reads: bridges, ports, stations and counters as plain values.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::addr::MacAddr;
use crate::spec::{BridgeSpec, Netns, PortSpec};

/// A bridge as it is now.
#[derive(Clone, Debug)]
pub struct BridgeStatus {
    /// What was asked for.
    pub spec: BridgeSpec,
    /// Stations in its forwarding database.
    pub fdb_used: u32,
    /// What has happened to the forwarding database since the bridge was added.
    pub fdb_counters: crate::bridge::fdb::Counters,
    /// Names of its ports, in order of creation.
    pub ports: Vec<String>,
}

/// A port as it is now.
#[derive(Clone, Debug)]
pub struct PortStatus {
    /// What was asked for.
    pub spec: PortSpec,
    /// Name of the interface behind it, if it has one.
    pub ifname: Option<String>,
    /// Its index in its namespace; `None` while it is gone.
    pub ifindex: Option<u32>,
    /// Address of that interface.
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes.
    pub mtu: Option<u32>,
    /// Up, down, gone or failed.
    pub state: PortState,
    /// Why it carries no frames, if it was refused something or waits for something.
    pub reason: Option<String>,
    /// Receive queues.
    pub queues: usize,
    /// Kernel memory that is mapped for its rings and never swapped out, in bytes.
    pub ring_bytes: u64,
    /// The other end of a veth pair.
    pub peer: Option<Peer>,
    /// The other ends of a tunnel.
    pub remotes: Vec<RemoteStatus>,
    /// The peers of a port on a socket so far.
    pub peers: Option<PeersStatus>,
    /// One line of what would be better, if anything.
    pub hint: Option<String>,
    /// Frames, bytes and drops.
    pub counters: PortCounters,
}

/// Whether a port can carry frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortState {
    /// It can.
    Up,
    /// Its interface is administratively down or has no carrier, or it waits for its peer.
    Down,
    /// Its interface does not exist (any more).
    Gone,
    /// The kernel refused what it needs; it is tried again.
    Failed,
}

/// The other end of a veth pair.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its index in its own namespace.
    pub ifindex: u32,
    /// Its name, where its namespace can be found.
    pub ifname: Option<String>,
    /// Name of its namespace under `/run/netns`; `None` when it is the switch's own or has no name.
    pub netns: Option<Netns>,
}

/// Counters of a port, summed over the workers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortCounters {
    /// Frames received; a GSO frame is one.
    pub rx_frames: u64,
    /// Bytes received, without FCS.
    pub rx_bytes: u64,
    /// Frames on a wire that the received ones stand for.
    pub rx_segments: u64,
    /// Frames sent; a GSO frame is one.
    pub tx_frames: u64,
    /// Bytes sent, without FCS.
    pub tx_bytes: u64,
    /// Frames on a wire that the sent ones stand for.
    pub tx_segments: u64,
    /// Frames on a wire sent in fragments of a tunnel's outer packet.
    pub tx_fragmented: u64,
    /// TCP SYNs whose maximum segment size was lowered to what fits a tunnel's path.
    pub mss_clamped: u64,
    /// ARP requests and neighbour solicitations that the switch answered itself.
    pub neigh_answered: u64,
    /// Frames dropped, by the name of the reason; only reasons that happened.
    pub drops: BTreeMap<&'static str, u64>,
}

impl PortCounters {
    /// Adds others to these.
    pub fn add(&mut self, other: &PortCounters) {
        self.rx_frames += other.rx_frames;
        self.rx_bytes += other.rx_bytes;
        self.rx_segments += other.rx_segments;
        self.tx_frames += other.tx_frames;
        self.tx_bytes += other.tx_bytes;
        self.tx_segments += other.tx_segments;
        self.tx_fragmented += other.tx_fragmented;
        self.mss_clamped += other.mss_clamped;
        self.neigh_answered += other.neigh_answered;
        for (reason, frames) in &other.drops {
            *self.drops.entry(reason).or_default() += frames;
        }
    }
}

/// The peers of a port on a socket so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PeersStatus {
    /// Connections that were made or accepted.
    pub connections: u64,
    /// Peers that were turned away, because the port had one or they asked for what they cannot have; datagrams of senders that cannot be
    /// answered.
    pub refused: u64,
    /// Time until the next peer may come, after those that did not stay.
    pub hold_off: Option<std::time::Duration>,
    /// Somebody waits for that.
    pub waits: bool,
}

/// The other end of a tunnel.
#[derive(Clone, Debug)]
pub struct RemoteStatus {
    /// Its address in the underlay.
    pub address: IpAddr,
    /// Not configured: known by its frames. What is flooded does not go to it.
    pub learned: bool,
    /// Longest payload of a frame that fits one packet on the way to it, in bytes.
    pub mtu: u32,
    /// What came from it and went to it.
    pub counters: PortCounters,
}

/// A station a bridge knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FdbEntry {
    /// Its address.
    pub mac: MacAddr,
    /// Its VLAN; 0 in a bridge that does not filter.
    pub vlan: u16,
    /// The bridge.
    pub bridge: String,
    /// The port it is behind.
    pub port: String,
    /// The remote of a tunnel port that it is behind.
    pub remote: Option<IpAddr>,
    /// How it came to be known.
    pub state: FdbState,
    /// Seconds since it was last heard; 0 for static and local entries.
    pub age_secs: u32,
}

/// How a station came to be known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FdbState {
    /// Learned; moves and ages.
    Dynamic,
    /// Configured; does neither.
    Static,
    /// The address of an `internal` port.
    Local,
}

/// An address that a bridge knows the station of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NeighbourEntry {
    /// The address.
    pub address: IpAddr,
    /// The station that has it.
    pub mac: MacAddr,
    /// Its VLAN; 0 in a bridge that does not filter.
    pub vlan: u16,
    /// The bridge.
    pub bridge: String,
    /// How it came to be known: never as local.
    pub state: FdbState,
    /// Whether it is a router; `None` is not known.
    pub router: Option<bool>,
    /// Seconds since it was last heard; 0 for static entries.
    pub age_secs: u32,
}

/// The switch as a whole.
#[derive(Clone, Debug)]
pub struct SwitchStatus {
    /// One entry a worker.
    pub workers: Vec<WorkerStatus>,
}

/// One worker.
#[derive(Clone, Debug)]
pub struct WorkerStatus {
    /// CPU it is pinned to.
    pub cpu: Option<usize>,
    /// Loop turns that found at least one frame.
    pub busy_turns: u64,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// Generation of the topology it runs on.
    pub generation: u64,
}
