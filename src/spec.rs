//! What an operator asks for: bridges and ports as plain values.
//!
//! These are checked when they are built from text (`switchd`) and again when they are applied
//! ([`crate::switch::Switch`]).

use std::net::IpAddr;
use std::path::PathBuf;

use crate::addr::{MacAddr, VlanId, VlanSet};

mod interface;
mod macvtap;
mod socket;
mod tunnel;

pub use interface::Shared;
pub use macvtap::{MacvtapLower, MacvtapMode, MacvtapSpec};
pub use socket::{DgramSpec, Meeting, SocketRole, StreamAddress, StreamSpec, VdeSpec};
pub use tunnel::{Clash, Df, Networks, Tos, TunnelSettings, TunnelSpec, UdpSpec};

/// One learning domain (or, with VLAN filtering, one per VLAN).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BridgeSpec {
    /// Unique in the switch.
    pub name: String,
    /// Seconds until a silent station is forgotten. 0: nothing is learned, everything floods.
    pub ageing_secs: u32,
    /// Most stations the bridge remembers.
    pub fdb_max: u32,
    /// IEEE 802.1Q VLAN filtering; off means tags are payload.
    pub vlan_filtering: bool,
    /// VLAN of ports without VLAN options, when filtering.
    pub default_pvid: VlanId,
}

impl BridgeSpec {
    /// Linux's default, 300 s.
    pub const DEFAULT_AGEING_SECS: u32 = 300;
    /// Stations remembered by default.
    pub const DEFAULT_FDB_MAX: u32 = 65_536;

    /// A bridge with every setting at its default.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        BridgeSpec {
            name: name.into(),
            ageing_secs: Self::DEFAULT_AGEING_SECS,
            fdb_max: Self::DEFAULT_FDB_MAX,
            vlan_filtering: false,
            default_pvid: VlanId::DEFAULT_PVID,
        }
    }
}

/// A port: its name, its bridge, where its frames come from, how it behaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortSpec {
    /// Unique in the switch.
    pub name: String,
    /// Name of the bridge it belongs to.
    pub bridge: String,
    /// What kind of port, with what that kind needs.
    pub kind: PortKind,
    /// What may change while it runs.
    pub settings: PortSettings,
}

impl PortSpec {
    /// Which VLANs it carries: those it was given, or those that its tunnel has networks for.
    #[must_use]
    pub fn vlan_mode(&self) -> VlanMode {
        match &self.kind {
            PortKind::Tunnel(tunnel) => tunnel.vlans().map(|vids| VlanMode::Trunk { vids, native: None }),
            _ => None,
        }
        .unwrap_or_else(|| self.settings.vlan.clone())
    }
}

/// Where frames come in and go out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PortKind {
    /// A TAP device that the switch creates, for a host or a container.
    Tap(TapSpec),
    /// An interface that exists already.
    Packet(PacketSpec),
    /// A TAP device that gives the host itself an interface on the bridge.
    Internal(TapSpec),
    /// A macvtap device on top of an interface of the host's.
    Macvtap(MacvtapSpec),
    /// Frames inside packets to switches elsewhere.
    Tunnel(TunnelSpec),
    /// Frames in a byte stream to one peer, such as QEMU's `-netdev stream`.
    Stream(StreamSpec),
    /// A frame a Unix datagram, to one peer, such as QEMU's `-netdev dgram`.
    Dgram(DgramSpec),
    /// One plug of the VDE switch protocol, such as QEMU's `-netdev vde`.
    Vde(VdeSpec),
    /// The network card of a guest.
    VhostUser(VhostUserSpec),
    /// Two queues in memory: tests and benches.
    Mem(crate::port::mem::MemPort),
}

impl PortKind {
    /// The name used by the command line, JSON and configuration.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            PortKind::Tap(_) => "tap",
            PortKind::Packet(_) => "packet",
            PortKind::Internal(_) => "internal",
            PortKind::Macvtap(_) => "macvtap",
            PortKind::Tunnel(spec) => spec.type_name(),
            PortKind::Stream(_) => "stream",
            PortKind::Dgram(_) => "dgram",
            PortKind::Vde(_) => "vde",
            PortKind::VhostUser(_) => "vhost-user",
            PortKind::Mem(_) => "mem",
        }
    }
}

impl PortKind {
    /// MTU in bytes of a port without an interface, if it has one of its own.
    #[must_use]
    pub fn mtu(&self) -> Option<u32> {
        match self {
            PortKind::Stream(spec) => Some(spec.mtu),
            PortKind::Dgram(spec) => Some(spec.mtu),
            PortKind::Vde(spec) => Some(spec.mtu),
            PortKind::VhostUser(spec) => Some(spec.mtu()),
            _ => None,
        }
    }

    /// The file of the socket that the switch makes for it, or the folder of its sockets.
    #[must_use]
    pub fn socket_path(&self) -> Option<&std::path::Path> {
        match self {
            PortKind::Stream(spec) => spec.socket_path(),
            PortKind::Dgram(spec) => Some(&spec.path),
            PortKind::Vde(spec) => spec.folder(),
            PortKind::VhostUser(spec) => (spec.role == SocketRole::Server).then_some(&*spec.path),
            _ => None,
        }
    }
}

/// A device that the switch creates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TapSpec {
    /// Interface name, at most 15 bytes.
    pub ifname: String,
    /// Network namespace the interface is moved to; `None` is the switch's own.
    pub netns: Option<Netns>,
    /// Address of the interface; `None` is one that stays the same, made of machine, bridge and port.
    pub mac: Option<MacAddr>,
    /// MTU in bytes; `None` is the kernel's 1500.
    pub mtu: Option<u32>,
    /// Addresses with prefix length.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Default route's next hop.
    pub gateway: Option<IpAddr>,
    /// Queues; `None` is one a worker.
    pub queues: Option<u16>,
    /// Checksum and segmentation offload, multi-queue. Off: a plain single-queue TAP.
    pub offload: bool,
}

impl TapSpec {
    /// A TAP with every setting at its default.
    #[must_use]
    pub fn new(ifname: impl Into<String>) -> Self {
        TapSpec {
            ifname: ifname.into(),
            netns: None,
            mac: None,
            mtu: None,
            addresses: Vec::new(),
            gateway: None,
            queues: None,
            offload: true,
        }
    }
}

impl TapSpec {
    /// Least MTU in bytes of an interface with IPv6 (RFC 8200 section 5).
    pub const IPV6_MTU_MIN: u32 = 1280;

    /// Refuses addresses that no station has, and those that the kernel would refuse without saying why.
    ///
    /// # Errors
    /// One line: what is wrong, and the remedy.
    pub fn check(&self) -> Result<(), String> {
        let addresses = self.addresses.iter().map(|(address, _)| address);
        if let Some(address) = addresses.chain(&self.gateway).find(|address| !is_unicast(address)) {
            return Err(format!(
                "{address} is no address of a station: give a unicast one such as 10.0.0.1 or fd00::1"
            ));
        }
        let ipv6 = self.addresses.iter().find(|(address, _)| address.is_ipv6());
        match (self.mtu.filter(|mtu| *mtu < Self::IPV6_MTU_MIN), ipv6) {
            (Some(mtu), Some((address, _))) => Err(format!(
                "MTU {mtu} is too small for the IPv6 address {address}: IPv6 needs {} bytes at least; give that, or \
                 leave the address out",
                Self::IPV6_MTU_MIN
            )),
            _ => Ok(()),
        }
    }
}

fn is_unicast(address: &IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(broadcast || address.is_multicast() || address.is_unspecified() || address.is_loopback())
}

/// An interface that exists already.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PacketSpec {
    /// A name of the interface: its own, or an alternative one of at most 127 bytes.
    pub ifname: String,
    /// Network namespace the interface is in; `None` is the switch's own.
    pub netns: Option<Netns>,
}

/// A guest whose front end is at the other end of a Unix socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VhostUserSpec {
    /// The socket.
    pub path: PathBuf,
    /// Whose socket it is.
    pub role: SocketRole,
    /// Queue pairs that the guest may use, at most 64; `None` is 16.
    pub queues: Option<u16>,
    /// MTU in bytes; `None` is 1500.
    pub mtu: Option<u32>,
    /// Bytes of memory that the guest may share; `None` is a part of what all guests may ([`crate::virtio::room`]).
    pub memory_max: Option<u64>,
    /// A thread of the port's own touches the guest's memory, and no worker does.
    pub own_thread: bool,
}

impl VhostUserSpec {
    /// At this socket, with defaults for everything else.
    #[must_use]
    pub fn new(path: PathBuf, role: SocketRole) -> VhostUserSpec {
        VhostUserSpec { path, role, queues: None, mtu: None, memory_max: None, own_thread: false }
    }

    /// Its MTU in bytes.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.mtu.unwrap_or(1500)
    }
}

/// A network namespace: a name under `/run/netns`, or a path to a namespace file.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Netns(pub String);

impl Netns {
    /// The file that stands for it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        if self.0.contains('/') { PathBuf::from(&self.0) } else { PathBuf::from("/run/netns").join(&self.0) }
    }
}

impl std::fmt::Display for Netns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What may change while a port runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortSettings {
    /// Which VLANs, when the bridge filters.
    pub vlan: VlanMode,
    /// Source addresses are remembered.
    pub learning: bool,
    /// Unknown unicast leaves by this port.
    pub flood: bool,
    /// Exchanges no frames with other isolated ports.
    pub isolated: bool,
    /// A frame may leave by the port it came in.
    pub hairpin: bool,
    /// Of a tunnel port.
    pub tunnel: TunnelSettings,
}

impl Default for PortSettings {
    fn default() -> Self {
        PortSettings {
            vlan: VlanMode::Default,
            learning: true,
            flood: true,
            isolated: false,
            hairpin: false,
            tunnel: TunnelSettings::default(),
        }
    }
}

/// Which VLANs a port of a filtering bridge carries.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum VlanMode {
    /// No VLAN option was given: an access port of the bridge's default PVID.
    #[default]
    Default,
    /// Untagged in this VLAN.
    Access(VlanId),
    /// Tagged in these, untagged in `native`.
    Trunk {
        /// The VLANs that leave tagged.
        vids: VlanSet,
        /// The VLAN of untagged frames, if they are admitted.
        native: Option<VlanId>,
    },
}
