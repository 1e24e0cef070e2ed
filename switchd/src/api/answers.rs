//! What an operator reads.
//!
//! Field names are a promise: more may be added, these stay. Clients read them back for their tables, so
//! every type goes both ways; unknown fields are ignored there.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vswitch::spec::{BridgeSpec, PortKind, SocketRole, TapSpec, VlanMode};
use vswitch::status::{self, BridgeStatus, FdbEntry, NeighbourEntry, PortCounters, PortStatus, SwitchStatus};

use super::macvtap::MacvtapInfo;
use super::socket::SocketInfo;
use super::tunnel::TunnelInfo;
use super::values::{Cidr, Mac, Vid, VlanList};

/// Who asked for an object.
#[derive(Serialize, Deserialize, ToSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The configuration file; a reload may change or remove it.
    Configuration,
    /// A request; a reload leaves it alone.
    Runtime,
    /// A guest, over the attach socket; it goes with the guest.
    Attached,
}

/// Enums whose JSON word is also what tables show.
macro_rules! shown_as_word {
    ($type:ty { $($variant:ident => $word:literal),+ }) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(<$type>::$variant => $word),+ })
            }
        }
    };
}
shown_as_word!(Origin { Configuration => "configuration", Runtime => "runtime", Attached => "attached" });
shown_as_word!(State { Up => "up", Down => "down", Gone => "gone", Failed => "failed" });
shown_as_word!(EntryState { Dynamic => "dynamic", Static => "static", Local => "local" });

/// What has happened to a forwarding database since its bridge was added.
#[derive(Serialize, Deserialize, ToSchema, Clone, Copy, PartialEq, Eq, Debug)]
pub struct FdbCounters {
    /// Stations that moved to another port.
    pub moves: u64,
    /// Moves that were not made: too many to one port within a second.
    pub moves_limited: u64,
    /// Stations forgotten to make room for another.
    pub evictions: u64,
    /// Frames whose source was not learned: full, and nobody over their share.
    pub full: u64,
    /// Frames whose source a static or local entry puts behind another port.
    pub conflicts: u64,
}

impl FdbCounters {
    fn new(counters: vswitch::bridge::fdb::Counters) -> Self {
        let vswitch::bridge::fdb::Counters { moves, moves_limited, evictions, full, conflicts } = counters;
        FdbCounters { moves, moves_limited, evictions, full, conflicts }
    }
}

/// A bridge as it is now.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct BridgeInfo {
    /// Its name.
    pub name: String,
    /// Seconds until a silent station is forgotten.
    pub ageing_secs: u32,
    /// Whether it looks at VLAN tags.
    pub vlan_filtering: bool,
    /// VLAN of ports without VLAN options, when filtering.
    pub default_pvid: u16,
    /// Most stations it remembers.
    pub fdb_max: u32,
    /// Stations it remembers now.
    pub fdb_used: u32,
    /// What has happened to the stations it remembers.
    pub fdb_counters: FdbCounters,
    /// Names of its ports.
    pub ports: Vec<String>,
    /// Who asked for it.
    pub origin: Origin,
}

impl BridgeInfo {
    /// From the data plane's account.
    #[must_use]
    pub fn new(status: BridgeStatus, origin: Origin) -> Self {
        let BridgeStatus { spec, fdb_used, fdb_counters, ports, .. } = status;
        BridgeInfo {
            name: spec.name,
            ageing_secs: spec.ageing_secs,
            vlan_filtering: spec.vlan_filtering,
            default_pvid: spec.default_pvid.get(),
            fdb_max: spec.fdb_max,
            fdb_used,
            fdb_counters: FdbCounters::new(fdb_counters),
            ports,
            origin,
        }
    }
}

/// Whether a port can carry frames.
#[derive(Serialize, Deserialize, ToSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It can.
    Up,
    /// Its interface is down, or its peer is not there.
    Down,
    /// Its interface does not exist; of a tunnel: its local address, interface or namespace.
    Gone,
    /// The kernel refused what it needs; `reason` says what. It is tried again.
    Failed,
}

impl From<status::PortState> for State {
    fn from(state: status::PortState) -> Self {
        match state {
            status::PortState::Up => State::Up,
            status::PortState::Down => State::Down,
            status::PortState::Gone => State::Gone,
            status::PortState::Failed => State::Failed,
        }
    }
}

/// The switch's part at a socket.
#[derive(Serialize, Deserialize, ToSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It made the socket.
    Server,
    /// It connects to the front end's.
    Client,
}

impl Role {
    /// As written on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Server => "server",
            Role::Client => "client",
        }
    }
}

impl From<SocketRole> for Role {
    fn from(role: SocketRole) -> Self {
        match role {
            SocketRole::Server => Role::Server,
            SocketRole::Client => Role::Client,
        }
    }
}

/// How a port treats VLANs.
#[derive(Serialize, Deserialize, ToSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum VlanModeName {
    /// Tags are payload: its bridge does not filter.
    None,
    /// Untagged, in one VLAN.
    Access,
    /// Tagged, in several.
    Trunk,
}

/// The VLANs a port carries.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct VlanInfo {
    /// `none` on a bridge that does not filter.
    pub mode: VlanModeName,
    /// The VLAN of an access port.
    #[schema(value_type = Option<u16>)]
    pub access: Option<Vid>,
    /// The VLAN of untagged frames on a trunk.
    #[schema(value_type = Option<u16>)]
    pub native: Option<Vid>,
    /// The VLANs of a trunk.
    pub trunk: VlanList,
}

impl VlanInfo {
    /// What `mode` comes to on `bridge`.
    #[must_use]
    pub fn new(mode: &VlanMode, bridge: Option<&BridgeSpec>) -> Self {
        let none =
            VlanInfo { mode: VlanModeName::None, access: None, native: None, trunk: VlanList::default() };
        let Some(bridge) = bridge.filter(|bridge| bridge.vlan_filtering) else { return none };
        match mode {
            VlanMode::Default => {
                VlanInfo { mode: VlanModeName::Access, access: Some(Vid(bridge.default_pvid)), ..none }
            }
            VlanMode::Access(vid) => VlanInfo { mode: VlanModeName::Access, access: Some(Vid(*vid)), ..none },
            VlanMode::Trunk { vids, native } => VlanInfo {
                mode: VlanModeName::Trunk,
                native: native.map(Vid),
                trunk: VlanList::from(vids),
                ..none
            },
        }
    }
}

/// The other end of a veth pair.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct PeerInfo {
    /// Its index in its own namespace.
    pub ifindex: u32,
    /// Its name, where its namespace can be found.
    pub ifname: Option<String>,
    /// Its namespace; null when it is vswitchd's own or has no name.
    pub netns: Option<String>,
}

/// What a port has seen.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug, Default)]
pub struct Counters {
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
    #[serde(default)]
    pub neigh_answered: u64,
    /// Frames dropped, by reason; only reasons that happened.
    pub drops: BTreeMap<String, u64>,
}

impl From<PortCounters> for Counters {
    fn from(counters: PortCounters) -> Self {
        Counters {
            rx_frames: counters.rx_frames,
            rx_bytes: counters.rx_bytes,
            rx_segments: counters.rx_segments,
            tx_frames: counters.tx_frames,
            tx_bytes: counters.tx_bytes,
            tx_segments: counters.tx_segments,
            tx_fragmented: counters.tx_fragmented,
            mss_clamped: counters.mss_clamped,
            neigh_answered: counters.neigh_answered,
            drops: counters.drops.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect(),
        }
    }
}

/// The other end of a tunnel.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct RemoteInfo {
    /// Its address in the underlay.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Not configured, but known by its frames; what is flooded does not go to it.
    pub learned: bool,
    /// Longest payload of a frame that fits one packet on the way to it, in bytes.
    pub mtu: u32,
    /// What came from it and went to it.
    pub counters: Counters,
}

/// Who asked for an attached port.
#[derive(Serialize, Deserialize, ToSchema, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder {
    /// User id.
    pub uid: u32,
    /// Process id: of the helper, which ends when its work is done.
    pub pid: u32,
}

/// A port as it is now.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct PortInfo {
    /// Its name.
    pub name: String,
    /// The bridge it belongs to.
    pub bridge: String,
    /// What kind of port, such as `tap`, `packet` or `vxlan`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Name of the interface behind it.
    pub ifname: Option<String>,
    /// Its index in its namespace; null while it is gone.
    pub ifindex: Option<u32>,
    /// Its namespace; null is vswitchd's own.
    pub netns: Option<String>,
    /// Address of the interface.
    #[schema(value_type = Option<String>)]
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: Option<u32>,
    /// Whether it can carry frames.
    pub state: State,
    /// Why it cannot, where something was refused or is missing.
    #[serde(default)]
    pub reason: Option<String>,
    /// Receive queues.
    pub queues: usize,
    /// The VLANs it carries.
    pub vlan: VlanInfo,
    /// Source addresses are remembered.
    pub learning: bool,
    /// Unknown unicast leaves by it.
    pub flood: bool,
    /// It exchanges no frames with other isolated ports.
    pub isolated: bool,
    /// A frame may leave by the port it came in.
    pub hairpin: bool,
    /// The other end of a veth pair.
    pub peer: Option<PeerInfo>,
    /// Where a tunnel port leads.
    pub tunnel: Option<TunnelInfo>,
    /// How vswitchd made the device of a macvtap port.
    #[serde(default)]
    pub macvtap: Option<MacvtapInfo>,
    /// The socket of a port on one.
    #[serde(default)]
    pub socket: Option<SocketInfo>,
    /// Addresses it was given.
    #[schema(value_type = Vec<String>)]
    pub address: Vec<Cidr>,
    /// What an operator should know of it, if anything, and what to do about it.
    #[serde(default)]
    pub hint: Option<String>,
    /// Who asked for it.
    pub origin: Origin,
    /// Of an attached port, who that is.
    pub attached: Option<Holder>,
    /// What it has seen.
    pub counters: Counters,
}

impl PortInfo {
    /// One line of what would be better, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// From the data plane's account; `bridge` is the port's own.
    #[must_use]
    pub fn new(status: PortStatus, bridge: Option<&BridgeSpec>, origin: Origin) -> Self {
        let spec = status.spec;
        let kind = spec.kind.name().to_owned();
        let remotes = status.remotes.into_iter().map(|remote| RemoteInfo {
            address: remote.address,
            learned: remote.learned,
            mtu: remote.mtu,
            counters: remote.counters.into(),
        });
        let settings = spec.settings.tunnel.clone();
        let hint = status.hint;
        let tunnel = match &spec.kind {
            PortKind::Tunnel(spec) => {
                Some(TunnelInfo { hint: hint.clone(), ..TunnelInfo::new(spec, &settings, remotes.collect()) })
            }
            _ => None,
        };
        let of_socket = hint.clone();
        let socket =
            SocketInfo::new(&spec.kind, status.peers).map(|socket| SocketInfo { hint: of_socket, ..socket });
        let macvtap = match &spec.kind {
            PortKind::Macvtap(spec) => MacvtapInfo::new(spec),
            _ => None,
        };
        let vlan = VlanInfo::new(&spec.vlan_mode(), bridge);
        let (ifname, netns, address) = match spec.kind {
            PortKind::Tap(TapSpec { ifname, netns, addresses, .. })
            | PortKind::Internal(TapSpec { ifname, netns, addresses, .. }) => {
                (Some(ifname), netns, addresses)
            }
            PortKind::Packet(packet) => (Some(packet.ifname), packet.netns, Vec::new()),
            PortKind::Macvtap(macvtap) => (Some(macvtap.ifname), macvtap.netns, Vec::new()),
            PortKind::Tunnel(spec) => (None, spec.netns, Vec::new()),
            _ => (None, None, Vec::new()),
        };
        PortInfo {
            hint,
            vlan,
            name: spec.name,
            bridge: spec.bridge,
            kind,
            ifname: status.ifname.or(ifname),
            ifindex: status.ifindex,
            netns: netns.map(|netns| netns.0),
            mac: status.mac.map(Mac),
            mtu: status.mtu,
            state: status.state.into(),
            reason: status.reason,
            queues: status.queues,
            learning: spec.settings.learning,
            flood: spec.settings.flood,
            isolated: spec.settings.isolated,
            hairpin: spec.settings.hairpin,
            peer: status.peer.map(|peer| PeerInfo {
                ifindex: peer.ifindex,
                ifname: peer.ifname,
                netns: peer.netns.map(|netns| netns.0),
            }),
            tunnel,
            macvtap,
            socket,
            address: address.into_iter().map(|(address, prefix_len)| Cidr { address, prefix_len }).collect(),
            origin,
            attached: None,
            counters: status.counters.into(),
        }
    }
}

/// How a station came to be known.
#[derive(Serialize, Deserialize, ToSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum EntryState {
    /// Learned; moves and ages.
    Dynamic,
    /// Configured; does neither.
    Static,
    /// The address of an `internal` port.
    Local,
}

/// A station a bridge knows.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct FdbInfo {
    /// Its address.
    #[schema(value_type = String)]
    pub mac: Mac,
    /// Its VLAN; 0 on a bridge that does not filter.
    pub vlan: u16,
    /// The bridge.
    pub bridge: String,
    /// The port it is behind.
    pub port: String,
    /// How it came to be known.
    pub state: EntryState,
    /// Seconds since it was last heard; 0 for static and local entries.
    pub age_secs: u32,
    /// The remote of a tunnel port that it is behind.
    #[schema(value_type = Option<String>)]
    pub remote: Option<IpAddr>,
    /// Who asked for a static entry; none for others.
    pub origin: Option<Origin>,
}

impl From<status::FdbState> for EntryState {
    fn from(state: status::FdbState) -> Self {
        match state {
            status::FdbState::Dynamic => EntryState::Dynamic,
            status::FdbState::Static => EntryState::Static,
            status::FdbState::Local => EntryState::Local,
        }
    }
}

impl FdbInfo {
    /// As shown; `origin` is for static entries.
    #[must_use]
    pub fn new(entry: FdbEntry, origin: Option<Origin>) -> Self {
        FdbInfo {
            mac: Mac(entry.mac),
            vlan: entry.vlan,
            bridge: entry.bridge,
            port: entry.port,
            state: entry.state.into(),
            age_secs: entry.age_secs,
            remote: entry.remote,
            origin,
        }
    }
}

/// An address that a bridge knows the station of.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct NeighInfo {
    /// The address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The station that has it.
    #[schema(value_type = String)]
    pub mac: Mac,
    /// Its VLAN; 0 on a bridge that does not filter.
    pub vlan: u16,
    /// The bridge.
    pub bridge: String,
    /// How it came to be known.
    pub state: EntryState,
    /// Whether it is a router; null is not known.
    pub router: Option<bool>,
    /// Seconds since it was last heard; 0 for static entries.
    pub age_secs: u32,
    /// Who asked for a static entry; none for others.
    pub origin: Option<Origin>,
}

impl NeighInfo {
    /// As shown; `origin` is for static entries.
    #[must_use]
    pub fn new(entry: NeighbourEntry, origin: Option<Origin>) -> Self {
        let NeighbourEntry { address, mac, vlan, bridge, state, router, age_secs } = entry;
        NeighInfo { address, mac: Mac(mac), vlan, bridge, state: state.into(), router, age_secs, origin }
    }
}

/// The counters of one port.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct Stats {
    /// Name of the port.
    pub port: String,
    /// What it has seen.
    #[serde(flatten)]
    pub counters: Counters,
    /// What of that came from and went to each other end of a tunnel that there is now; none of other ports.
    #[serde(default)]
    pub remotes: Vec<RemoteStats>,
}

impl Stats {
    /// From the data plane's account.
    #[must_use]
    pub fn new(status: PortStatus) -> Self {
        let remote = |remote: status::RemoteStatus| RemoteStats {
            remote: remote.address,
            counters: remote.counters.into(),
        };
        Stats {
            port: status.spec.name,
            counters: status.counters.into(),
            remotes: status.remotes.into_iter().map(remote).collect(),
        }
    }
}

/// The counters of one other end of a tunnel.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct RemoteStats {
    /// Its address in the underlay.
    #[schema(value_type = String)]
    pub remote: IpAddr,
    /// What came from it and went to it.
    #[serde(flatten)]
    pub counters: Counters,
}

/// The daemon and its workers.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Debug)]
pub struct StatusInfo {
    /// Version of vswitchd.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_secs: u64,
    /// The control socket.
    pub socket: String,
    /// The attach socket; null when there is none.
    #[serde(default)]
    pub attach_socket: Option<String>,
    /// The configuration file in use.
    pub config: Option<String>,
    /// How workers wait: `adaptive`, `busy` or `wait`.
    pub poll: String,
    /// Number of bridges.
    pub bridges: usize,
    /// Number of ports.
    pub ports: usize,
    /// Names of the ports in state `failed`, in order of creation.
    #[serde(default)]
    pub failed_ports: Vec<String>,
    /// Ports of these that guests attached.
    #[serde(default)]
    pub attached_ports: usize,
    /// Ports that guests of users other than root may have attached.
    #[serde(default)]
    pub attached_ports_max: u32,
    /// One entry a worker.
    pub workers: Vec<WorkerInfo>,
}

/// One worker thread.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct WorkerInfo {
    /// CPU it is pinned to.
    pub cpu: Option<usize>,
    /// Loop turns that found at least one frame.
    pub busy_turns: u64,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// Generation of the topology it runs on.
    pub generation: u64,
}

impl WorkerInfo {
    /// From the data plane's account.
    #[must_use]
    pub fn all(status: &SwitchStatus) -> Vec<WorkerInfo> {
        let info = |worker: &status::WorkerStatus| WorkerInfo {
            cpu: worker.cpu,
            busy_turns: worker.busy_turns,
            sleeps: worker.sleeps,
            generation: worker.generation,
        };
        status.workers.iter().map(info).collect()
    }
}

/// What a reload did.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug, Default)]
pub struct ReloadReport {
    /// Objects added, such as `port 'p1'`.
    pub added: Vec<String>,
    /// Objects changed without being taken down.
    pub changed: Vec<String>,
    /// Objects removed.
    pub removed: Vec<String>,
    /// What the operator should know, such as settings that need a restart.
    pub warnings: Vec<String>,
}

/// How many entries were forgotten.
#[derive(Serialize, Deserialize, ToSchema, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flushed {
    /// Number of entries.
    pub flushed: usize,
}

/// Nothing more to say.
#[derive(Serialize, Deserialize, ToSchema, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Done {}

/// Why a request was refused.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// One line that names the object and the remedy.
    pub error: String,
}
