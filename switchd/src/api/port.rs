//! Ports as asked for.

use std::net::{IpAddr, SocketAddr};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vswitch::port::vhost_user::PAIRS_MAX;
use vswitch::spec::{
    Df, Netns, PacketSpec, PortKind, PortSettings, PortSpec, SocketRole, TapSpec, TunnelSettings,
    VhostUserSpec, VlanMode,
};
use vswitch::tunnel::erspan::{HARDWARE_MAX, INDEX_MAX};
use vswitch::tunnel::vxlan::VNI_MAX;

use super::macvtap;
use super::mode::ModeChoice;
use super::size::Size;
use super::socket;
use super::tunnel::{self, ErspanDirection, PortRange, RemoteChoice, TosChoice, VniMap};
use super::values::{Cidr, Mac, Vid, VlanList, on_off, one_or_many, some_or_many};
use super::{check_ifname, check_known_ifname, check_name};

/// What kind of port.
#[derive(ValueEnum, Serialize, Deserialize, ToSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum PortType {
    /// A TAP device that vswitchd creates, for a container or a test host
    Tap,
    /// An interface that exists already: a veth end, a NIC, a VF, a tap that QEMU holds
    Packet,
    /// A TAP device that gives the host itself an interface on the bridge
    Internal,
    /// A macvtap device on top of an interface of the host's, as an uplink
    Macvtap,
    /// The network card of a QEMU guest or DPDK program, by shared memory
    VhostUser,
    /// A VXLAN tunnel (RFC 7348): frames in UDP datagrams to switches elsewhere
    Vxlan,
    /// A Geneve tunnel (RFC 8926), in UDP too
    Geneve,
    /// Ethernet in GRE over IPv4 (RFC 2784, 2890)
    Gretap,
    /// Ethernet in GRE over IPv6
    Ip6gretap,
    /// ERSPAN over IPv4: mirrored frames in GRE
    Erspan,
    /// ERSPAN over IPv6
    Ip6erspan,
    /// Frames in a byte stream over a Unix socket or TCP, to one peer, such as QEMU's -netdev stream
    Stream,
    /// Frames in Unix datagrams, to one peer, such as QEMU's -netdev dgram
    Dgram,
    /// A folder that one plug of the VDE switch protocol connects to, such as QEMU's -netdev vde and vde_plug
    Vde,
}

impl PortType {
    /// As written on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            PortType::Tap => "tap",
            PortType::Packet => "packet",
            PortType::Internal => "internal",
            PortType::Macvtap => "macvtap",
            PortType::VhostUser => "vhost-user",
            PortType::Vxlan => "vxlan",
            PortType::Geneve => "geneve",
            PortType::Gretap => "gretap",
            PortType::Ip6gretap => "ip6gretap",
            PortType::Erspan => "erspan",
            PortType::Ip6erspan => "ip6erspan",
            PortType::Stream => "stream",
            PortType::Dgram => "dgram",
            PortType::Vde => "vde",
        }
    }
}

/// What becomes of frames that do not fit one packet of a tunnel's way.
#[derive(ValueEnum, Serialize, Deserialize, ToSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum DfMode {
    /// As the frame says: IPv4 with DF and IPv6 are answered with 'packet too big', others go in fragments
    Inherit,
    /// Nothing goes in fragments: IP is answered with 'packet too big', the rest is dropped
    Set,
    /// Everything goes in fragments
    Unset,
}

impl DfMode {
    /// As written on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DfMode::Inherit => "inherit",
            DfMode::Set => "set",
            DfMode::Unset => "unset",
        }
    }
}

impl From<DfMode> for Df {
    fn from(mode: DfMode) -> Self {
        match mode {
            DfMode::Inherit => Df::Inherit,
            DfMode::Set => Df::Set,
            DfMode::Unset => Df::Unset,
        }
    }
}

impl From<Df> for DfMode {
    fn from(df: Df) -> Self {
        match df {
            Df::Inherit => DfMode::Inherit,
            Df::Set => DfMode::Set,
            Df::Unset => DfMode::Unset,
        }
    }
}

/// The only word `vlan` takes.
#[derive(ValueEnum, Serialize, Deserialize, ToSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum VlanKeyword {
    /// No VLAN options: an access port of the bridge's default PVID
    Default,
}

/// A request with the port settings, after the fields that are its own.
macro_rules! with_port_settings {
    ($(#[$meta:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $(#[$meta])*
        #[derive(Args, Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($own)*
            /// Access port: untagged frames are in this VLAN, tagged ones are dropped
            #[arg(long, value_name = "VID", help_heading = "VLANs (the bridge needs --vlan-filtering on)")]
            #[arg(conflicts_with_all = ["trunk", "native"])]
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub access: Option<Vid>,
            /// Trunk port: carries these VLANs tagged, such as 10,20-30; untagged frames are dropped
            #[arg(long, value_name = "VIDS", help_heading = "VLANs (the bridge needs --vlan-filtering on)")]
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub trunk: Option<VlanList>,
            /// On a trunk: untagged frames are in this VLAN
            #[arg(long, value_name = "VID", help_heading = "VLANs (the bridge needs --vlan-filtering on)")]
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub native: Option<Vid>,
            /// 'default' removes every VLAN option
            #[arg(long, value_name = "default", help_heading = "VLANs (the bridge needs --vlan-filtering on)")]
            #[arg(conflicts_with_all = ["access", "trunk", "native"], hide_possible_values = true)]
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub vlan: Option<VlanKeyword>,
            /// Remember source addresses [default: on]
            #[arg(long, value_name = "on|off", value_parser = on_off(), hide_possible_values = true, help_heading = "Behaviour")]
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub learning: Option<bool>,
            /// Send unknown unicast out of this port [default: on]
            #[arg(long, value_name = "on|off", value_parser = on_off(), hide_possible_values = true, help_heading = "Behaviour")]
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub flood: Option<bool>,
            /// Exchange no frames with other isolated ports [default: off]
            #[arg(long, value_name = "on|off", value_parser = on_off(), hide_possible_values = true, help_heading = "Behaviour")]
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub isolated: Option<bool>,
            /// Let a frame leave by the port it came in [default: off]
            #[arg(long, value_name = "on|off", value_parser = on_off(), hide_possible_values = true, help_heading = "Behaviour")]
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub hairpin: Option<bool>,
            /// Address of another end, which gets a copy of what is flooded; may be repeated. On 'set', all of them; 'none' takes
            /// all away
            #[arg(long, value_name = "IP|none", help_heading = "Tunnels")]
            #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_or_many")]
            #[schema(value_type = Option<Vec<String>>)]
            pub remote: Option<Vec<RemoteChoice>>,
            /// Drop what comes from others than the remotes [default: off; on for gretap and erspan]
            #[arg(long, value_name = "on|off", value_parser = on_off(), hide_possible_values = true, help_heading = "Tunnels")]
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub strict_remotes: Option<bool>,
            /// Drop what claims a station known at a port that is no tunnel [default: off]
            #[arg(long, value_name = "on|off", value_parser = on_off(), hide_possible_values = true, help_heading = "Tunnels")]
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub guard_local: Option<bool>,
            /// What becomes of frames that do not fit one packet of the way: 'inherit' answers those that may not be fragmented
            /// with 'packet too big' and fragments the others, 'set' fragments none, 'unset' all [default: inherit]
            #[arg(long, value_name = "inherit|set|unset", hide_possible_values = true, help_heading = "Tunnels")]
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub df: Option<DfMode>,
            /// Lower the segment size that TCP connections through the tunnel announce to what fits [default: off]
            #[arg(long, value_name = "on|off", value_parser = on_off(), hide_possible_values = true, help_heading = "Tunnels")]
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub mss_clamp: Option<bool>,
            /// Answer ARP requests and neighbour solicitations where the answer is known, instead of sending them into the tunnel
            /// [default: off]
            #[arg(long, value_name = "on|off", value_parser = on_off(), hide_possible_values = true, help_heading = "Tunnels")]
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub neigh_suppress: Option<bool>,
        }

        impl $name {
            /// What is given here, and the rest as it was in `settings`.
            fn over(&self, port: &str, settings: &PortSettings) -> Result<PortSettings, String> {
                let asked = Vlans {
                    access: self.access,
                    trunk: self.trunk.as_ref(),
                    native: self.native,
                    clear: self.vlan.is_some(),
                };
                let remotes = match &self.remote {
                    Some(asked) => {
                        tunnel::remotes(asked).map_err(|error| format!("port '{port}': {error}"))?
                    }
                    None => settings.tunnel.remotes.clone(),
                };
                Ok(PortSettings {
                    vlan: asked.over(port, &settings.vlan)?,
                    learning: self.learning.unwrap_or(settings.learning),
                    flood: self.flood.unwrap_or(settings.flood),
                    isolated: self.isolated.unwrap_or(settings.isolated),
                    hairpin: self.hairpin.unwrap_or(settings.hairpin),
                    tunnel: TunnelSettings {
                        remotes,
                        strict_remotes: self.strict_remotes.unwrap_or(settings.tunnel.strict_remotes),
                        guard_local: self.guard_local.unwrap_or(settings.tunnel.guard_local),
                        df: self.df.map_or(settings.tunnel.df, Df::from),
                        mss_clamp: self.mss_clamp.unwrap_or(settings.tunnel.mss_clamp),
                        neigh_suppress: self.neigh_suppress.unwrap_or(settings.tunnel.neigh_suppress),
                    },
                })
            }
        }
    };
}

with_port_settings! {
    /// A port to add.
    pub struct PortAdd {
        /// Name of the port
        #[arg(value_name = "NAME")]
        pub name: String,
        /// Bridge it belongs to
        #[arg(long, value_name = "BR")]
        pub bridge: String,
        /// What kind of port
        #[arg(long = "type", value_name = "TYPE")]
        #[serde(rename = "type")]
        pub kind: PortType,
        /// Name of the interface [default: NAME]
        #[arg(long, value_name = "IF")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ifname: Option<String>,
        /// Network namespace of the interface: a name under /run/netns or a path [default: vswitchd's own]
        #[arg(long, value_name = "NS")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub netns: Option<String>,
        /// Address of the created interface [default: one that stays the same, made of machine, bridge and port]
        #[arg(long, value_name = "MAC")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub mac: Option<Mac>,
        /// MTU of the created interface or socket, or the guest's, in bytes [default: 1500]; of a tunnel: longest payload taken to fit, where the way takes more
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(68..=65521))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(minimum = 68, maximum = 65521)]
        pub mtu: Option<u32>,
        /// Address of the created interface with prefix length; may be repeated
        #[arg(long, value_name = "CIDR")]
        #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_many")]
        pub address: Vec<Cidr>,
        /// Next hop of the default route in the interface's namespace
        #[arg(long, value_name = "IP")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        pub gateway: Option<IpAddr>,
        /// Queues of the created interface [default: one a worker]; queue pairs that a guest may use, at most 64 [default: 16]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(minimum = 1, maximum = 256)]
        pub queues: Option<u16>,
        /// No checksum and segmentation offload: a plain single-queue TAP
        #[arg(long)]
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub no_offload: bool,
        /// The Unix socket: vswitchd's own, or with --client the peer's; the folder of sockets (vde)
        #[arg(long, value_name = "SOCKET", help_heading = "Sockets")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub path: Option<String>,
        /// Listen at the socket and wait for the peer; the default
        #[arg(long, conflicts_with = "client", help_heading = "Sockets")]
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub server: bool,
        /// Connect to the peer's socket, again whenever the connection ends
        #[arg(long, help_heading = "Sockets")]
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub client: bool,
        /// Listen by TCP instead, unencrypted, for whoever reaches the address (stream)
        #[arg(long, value_name = "ADDR:PORT", conflicts_with_all = ["path", "connect", "server", "client"], help_heading = "Sockets")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        pub listen: Option<SocketAddr>,
        /// Connect by TCP instead, unencrypted (stream)
        #[arg(long, value_name = "ADDR:PORT", conflicts_with_all = ["path", "server", "client"], help_heading = "Sockets")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        pub connect: Option<SocketAddr>,
        /// The Unix socket of the other end, where both are to have names of your choice (dgram)
        #[arg(long, value_name = "SOCKET", help_heading = "Sockets")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub peer: Option<String>,
        /// Permissions of vswitchd's own socket or sockets, in octal [default: 660]; of a macvtap device passthru, bridge, vepa or private
        /// [default: passthru]
        #[arg(long, value_name = "MODE", help_heading = "Sockets")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        pub mode: Option<ModeChoice>,
        /// Memory that the guest's front end may share, such as 4G: what the guest has, and some MiB [default: a quarter of
        /// vswitchd's --guest-memory-max] (vhost-user)
        #[arg(long, value_name = "BYTES", help_heading = "Sockets")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub memory_max: Option<Size>,
        /// Have a thread of its own touch the guest's memory, and no worker: slower, and whatever its front end does to that memory holds
        /// up no other port (vhost-user)
        #[arg(long, help_heading = "Sockets")]
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub own_thread: bool,
        /// Make the macvtap device, on top of this interface [default: it exists]
        #[arg(long, value_name = "IF", help_heading = "Macvtap")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub lower: Option<String>,
        /// This host's address in the underlay
        #[arg(long, value_name = "IP", help_heading = "Tunnels")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        pub local: Option<IpAddr>,
        /// Multicast group that stands for all other ends (vxlan)
        #[arg(long, value_name = "IP", help_heading = "Tunnels")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        pub group: Option<IpAddr>,
        /// Interface of the underlay that packets leave and come by [default: as routed]
        #[arg(long, value_name = "IF", help_heading = "Tunnels")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub dev: Option<String>,
        /// Number of the network, 0 to 16777215 (vxlan, geneve)
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(VNI_MAX)), help_heading = "Tunnels")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(maximum = 16_777_215)]
        pub vni: Option<u32>,
        /// Instead of a VNI: one for each VLAN, such as 10:10010,20:10020 (vxlan; the bridge needs --vlan-filtering on)
        #[arg(long, value_name = "VID:VNI,…", conflicts_with = "vni", help_heading = "Tunnels")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        pub vni_map: Option<VniMap>,
        /// UDP port at both ends [default: 4789 for vxlan, 6081 for geneve]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Tunnels")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(minimum = 1)]
        pub dstport: Option<u16>,
        /// UDP ports to send from, such as 49152-65535 [default: any]
        #[arg(long, value_name = "MIN-MAX", help_heading = "Tunnels")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        pub srcport_range: Option<PortRange>,
        /// UDP checksum of outer packets; without it several frames cannot leave at once [default: on]
        #[arg(long, value_name = "on|off", value_parser = on_off(), hide_possible_values = true, help_heading = "Tunnels")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub udp_csum: Option<bool>,
        /// Time to live of outer packets, 1 to 255 [default: the kernel's, 1 to a group]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..), help_heading = "Tunnels")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(minimum = 1)]
        pub ttl: Option<u8>,
        /// Type of service of outer packets, 0 to 255, or 'inherit' from the frame; ECN is always the frame's [default: 0]
        #[arg(long, value_name = "N|inherit", help_heading = "Tunnels")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        pub tos: Option<TosChoice>,
        /// GRE key, 0 to 4294967295 [default: none]; of ERSPAN the session, 0 to 1023 [default: 0]
        #[arg(long, value_name = "N", help_heading = "Tunnels")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub key: Option<u32>,
        /// GRE checksum in packets that are sent [default: off]
        #[arg(long, value_name = "on|off", value_parser = on_off(), hide_possible_values = true, help_heading = "Tunnels")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub csum: Option<bool>,
        /// GRE sequence numbers in packets that are sent [default: off]
        #[arg(long, value_name = "on|off", value_parser = on_off(), hide_possible_values = true, help_heading = "Tunnels")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub seq: Option<bool>,
        /// Version of ERSPAN: 1 (type II) or 2 (type III) [default: 1]
        #[arg(long, value_name = "1|2", value_parser = clap::value_parser!(u8).range(1..=2), help_heading = "Tunnels")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(minimum = 1, maximum = 2)]
        pub erspan_ver: Option<u8>,
        /// Index of the mirrored port, in version 1 [default: 0]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(INDEX_MAX)), help_heading = "Tunnels")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(maximum = 1_048_575)]
        pub erspan_index: Option<u32>,
        /// Which way frames went, in version 2: ingress or egress [default: ingress]
        #[arg(long, value_name = "DIR", help_heading = "Tunnels")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub erspan_dir: Option<ErspanDirection>,
        /// Hardware identifier, in version 2 [default: 0]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(..=i64::from(HARDWARE_MAX)), help_heading = "Tunnels")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(maximum = 63)]
        pub erspan_hwid: Option<u8>,
    }
}

with_port_settings! {
    /// Settings of a port to change; what is not given stays as it is.
    ///
    /// VLAN options are one unit: `access` or `trunk` replaces all of them, `native` alone changes that of a trunk.
    #[derive(Default)]
    pub struct PortSet {}
}

/// VLAN options as given.
struct Vlans<'a> {
    access: Option<Vid>,
    trunk: Option<&'a VlanList>,
    native: Option<Vid>,
    clear: bool,
}

impl Vlans<'_> {
    fn over(&self, port: &str, now: &VlanMode) -> Result<VlanMode, String> {
        if self.clear && (self.access.is_some() || self.trunk.is_some() || self.native.is_some()) {
            return Err(format!(
                "port '{port}': 'vlan default' clears the VLAN options: give none beside it"
            ));
        }
        match (self.access, self.trunk, self.native, now) {
            _ if self.clear => Ok(VlanMode::Default),
            (None, None, None, now) => Ok(now.clone()),
            (Some(vid), None, None, _) => Ok(VlanMode::Access(vid.0)),
            (Some(_), _, _, _) => {
                Err(format!("port '{port}': 'access' excludes 'trunk' and 'native': give one or the other"))
            }
            (None, Some(list), _, _) if list.is_empty() => {
                Err(format!("port '{port}': 'trunk' is empty: name at least one VLAN, or 'vlan default'"))
            }
            (None, Some(list), native, _) => {
                Ok(VlanMode::Trunk { vids: list.to_set(), native: native.map(|vid| vid.0) })
            }
            (None, None, Some(native), VlanMode::Trunk { vids, .. }) => {
                Ok(VlanMode::Trunk { vids: vids.clone(), native: Some(native.0) })
            }
            (None, None, Some(_), _) => {
                Err(format!("port '{port}': 'native' is for a trunk: give 'trunk' too"))
            }
        }
    }
}

impl PortSet {
    /// `settings` of the port called `port`, with what is given changed.
    ///
    /// # Errors
    /// One line when the options contradict each other.
    pub fn change(&self, port: &str, settings: &PortSettings) -> Result<PortSettings, String> {
        self.over(port, settings)
    }

    /// Whether it has a VLAN option, which needs a filtering bridge.
    #[must_use]
    pub fn has_vlan_options(&self) -> bool {
        self.access.is_some() || self.trunk.is_some() || self.native.is_some()
    }

    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == PortSet::default()
    }
}

impl PortAdd {
    /// As the data plane wants it, with defaults for what is not given.
    ///
    /// # Errors
    /// One line when a name or option is impossible, or does not fit the port's type.
    pub fn to_spec(&self) -> Result<PortSpec, String> {
        check_name("port", &self.name)?;
        check_name("bridge", &self.bridge)?;
        let owner = format!("port '{}'", self.name);
        let ifname = self.ifname.clone().unwrap_or_else(|| self.name.clone());
        let has_no_interface = tunnel::ALL.contains(&self.kind)
            || socket::ALL.contains(&self.kind)
            || self.kind == PortType::VhostUser;
        let is_made = matches!(self.kind, PortType::Tap | PortType::Internal) || self.lower.is_some();
        if is_made && !has_no_interface {
            check_ifname(&owner, &ifname)?;
        } else if !has_no_interface {
            check_known_ifname(&owner, &ifname)?;
        }
        self.check_fitting(&owner)?;
        if let Some(mtu) = self.mtu.filter(|mtu| !(68..=65521).contains(mtu)) {
            return Err(format!("{owner}: MTU {mtu} is not between 68 and 65521 bytes"));
        }
        let netns = self.netns.as_deref().map(|netns| check_netns(&owner, netns)).transpose()?;
        let mut settings = PortSettings::default();
        settings.tunnel.strict_remotes = tunnel::strict_by_default(self.kind);
        let settings = self.over(&self.name, &settings)?;
        let kind = match self.kind {
            PortType::Packet => PortKind::Packet(PacketSpec { ifname, netns }),
            PortType::Macvtap => PortKind::Macvtap(macvtap::spec(self, &owner, ifname, netns)?),
            PortType::Tap => PortKind::Tap(self.tap(&owner, ifname, netns)?),
            PortType::Internal => PortKind::Internal(self.tap(&owner, ifname, netns)?),
            PortType::Stream => PortKind::Stream(socket::stream(self, &owner)?),
            PortType::Dgram => PortKind::Dgram(socket::dgram(self, &owner)?),
            PortType::Vde => PortKind::Vde(socket::vde(self, &owner)?),
            PortType::VhostUser => PortKind::VhostUser(self.vhost_user(&owner)?),
            _ => PortKind::Tunnel(tunnel::spec(self, &owner, netns, &settings.tunnel)?),
        };
        Ok(PortSpec { name: self.name.clone(), bridge: self.bridge.clone(), kind, settings })
    }

    /// Whether it has a VLAN option, which needs a filtering bridge.
    #[must_use]
    pub fn has_vlan_options(&self) -> bool {
        self.access.is_some() || self.trunk.is_some() || self.native.is_some()
    }

    /// Refuses options that mean nothing for this type, rather than ignore them.
    fn check_fitting(&self, owner: &str) -> Result<(), String> {
        const VXLAN: &[PortType] = &[PortType::Vxlan];
        const TAP: &[PortType] = &[PortType::Tap];
        const DEVICE: &[PortType] = &[PortType::Tap, PortType::Internal];
        const AT_PATH: &[PortType] = &[PortType::Stream, PortType::Dgram, PortType::Vde, PortType::VhostUser];
        const QUEUES: &[PortType] = &[PortType::Tap, PortType::Macvtap, PortType::VhostUser];
        const NAMED: &[PortType] = &[PortType::Tap, PortType::Packet, PortType::Macvtap, PortType::Internal];
        const PLACED: &[PortType] = &[PortType::Tap, PortType::Packet, PortType::Macvtap];
        const ADDRESSED: &[PortType] = &[PortType::Tap, PortType::Internal, PortType::Macvtap];
        const WITH_MODE: &[PortType] = &[PortType::Stream, PortType::Dgram, PortType::Vde, PortType::Macvtap];
        const MACVTAP: &[PortType] = &[PortType::Macvtap];
        const GUEST: &[PortType] = &[PortType::VhostUser];
        const SIZED: &[PortType] = &[
            PortType::Tap,
            PortType::Internal,
            PortType::Macvtap,
            PortType::Stream,
            PortType::Dgram,
            PortType::Vde,
            PortType::VhostUser,
        ];
        let is_tunnel = tunnel::ALL.contains(&self.kind);
        let own = |fits: &'static [PortType]| if is_tunnel { tunnel::ALL } else { fits };
        let given = [
            ("ifname", self.ifname.is_some(), NAMED),
            ("netns", self.netns.is_some(), own(PLACED)),
            ("mtu", self.mtu.is_some(), own(SIZED)),
            ("path", self.path.is_some(), AT_PATH),
            ("mode", self.mode.is_some(), WITH_MODE),
            ("lower", self.lower.is_some(), MACVTAP),
            ("server", self.server, AT_PATH),
            ("client", self.client, AT_PATH),
            ("listen", self.listen.is_some(), socket::STREAM),
            ("connect", self.connect.is_some(), socket::STREAM),
            ("peer", self.peer.is_some(), socket::DGRAM),
            ("local", self.local.is_some(), tunnel::ALL),
            ("remote", self.remote.is_some(), tunnel::ALL),
            ("strict-remotes", self.strict_remotes.is_some(), tunnel::ALL),
            ("guard-local", self.guard_local.is_some(), tunnel::ALL),
            ("neigh-suppress", self.neigh_suppress.is_some(), tunnel::ALL),
            ("df", self.df.is_some(), tunnel::ALL),
            ("mss-clamp", self.mss_clamp.is_some(), tunnel::ALL),
            ("dev", self.dev.is_some(), tunnel::ALL),
            ("ttl", self.ttl.is_some(), tunnel::ALL),
            ("tos", self.tos.is_some(), tunnel::ALL),
            ("group", self.group.is_some(), VXLAN),
            ("vni-map", self.vni_map.is_some(), VXLAN),
            ("vni", self.vni.is_some(), tunnel::UDP),
            ("dstport", self.dstport.is_some(), tunnel::UDP),
            ("srcport-range", self.srcport_range.is_some(), tunnel::UDP),
            ("udp-csum", self.udp_csum.is_some(), tunnel::UDP),
            ("key", self.key.is_some(), tunnel::GRE),
            ("csum", self.csum.is_some(), tunnel::GRETAP),
            ("seq", self.seq.is_some(), tunnel::GRETAP),
            ("erspan-ver", self.erspan_ver.is_some(), tunnel::ERSPAN),
            ("erspan-index", self.erspan_index.is_some(), tunnel::ERSPAN),
            ("erspan-dir", self.erspan_dir.is_some(), tunnel::ERSPAN),
            ("erspan-hwid", self.erspan_hwid.is_some(), tunnel::ERSPAN),
            ("mac", self.mac.is_some(), ADDRESSED),
            ("address", !self.address.is_empty(), DEVICE),
            ("gateway", self.gateway.is_some(), TAP),
            ("queues", self.queues.is_some(), QUEUES),
            ("memory-max", self.memory_max.is_some(), GUEST),
            ("own-thread", self.own_thread, GUEST),
            ("no-offload", self.no_offload, TAP),
        ];
        for (option, given, fits) in given {
            if given && !fits.contains(&self.kind) {
                let fits: Vec<&str> = fits.iter().map(|kind| kind.name()).collect();
                return Err(format!(
                    "{owner}: '{option}' is for {} ports, not for {}: leave it out",
                    fits.join(" and "),
                    self.kind.name()
                ));
            }
        }
        Ok(())
    }

    fn vhost_user(&self, owner: &str) -> Result<VhostUserSpec, String> {
        let Some(path) = &self.path else {
            return Err(format!(
                "{owner}: a vhost-user port needs 'path', the socket of the guest's front end"
            ));
        };
        let path = socket::file(owner, "path", path)?;
        if self.server && self.client {
            return Err(format!("{owner}: 'server' excludes 'client': give one or the other"));
        }
        if let Some(queues) = self.queues.filter(|queues| !(1..=PAIRS_MAX).contains(queues)) {
            return Err(format!("{owner}: {queues} queues: give 1 to {PAIRS_MAX}"));
        }
        let role = if self.client { SocketRole::Client } else { SocketRole::Server };
        let memory_max = self.memory_max.map(|size| size.0);
        Ok(VhostUserSpec {
            path,
            role,
            queues: self.queues,
            mtu: self.mtu,
            memory_max,
            own_thread: self.own_thread,
        })
    }

    /// Refuses what no device has.
    pub(super) fn check_device(&self, owner: &str) -> Result<(), String> {
        if let Some(Mac(mac)) = self.mac.filter(|mac| !mac.0.is_station()) {
            return Err(format!(
                "{owner}: {mac} is not a station's address: give an individual one such as 02:00:00:00:00:01"
            ));
        }
        if let Some(queues) = self.queues.filter(|queues| !(1..=256).contains(queues)) {
            return Err(format!("{owner}: {queues} queues: give 1 to 256"));
        }
        Ok(())
    }

    fn tap(&self, owner: &str, ifname: String, netns: Option<Netns>) -> Result<TapSpec, String> {
        self.check_device(owner)?;
        if self.no_offload && self.queues.is_some_and(|queues| queues > 1) {
            return Err(format!(
                "{owner}: a TAP without offload has one queue: leave out 'queues' or 'no-offload'"
            ));
        }
        let reached =
            |gateway: &IpAddr| self.address.iter().any(|cidr| cidr.address.is_ipv4() == gateway.is_ipv4());
        if let Some(gateway) = self.gateway.filter(|gateway| !reached(gateway)) {
            return Err(format!(
                "{owner}: gateway {gateway} cannot be reached without an address: give 'address' too"
            ));
        }
        if let Some(twice) =
            self.address.iter().enumerate().find(|(i, cidr)| self.address[..*i].contains(cidr))
        {
            return Err(format!("{owner}: address {} is given twice", twice.1));
        }
        let spec = TapSpec {
            ifname,
            netns,
            mac: self.mac.map(|mac| mac.0),
            mtu: self.mtu,
            addresses: self.address.iter().map(|cidr| (cidr.address, cidr.prefix_len)).collect(),
            gateway: self.gateway,
            queues: self.queues,
            offload: !self.no_offload,
        };
        spec.check().map_err(|error| format!("{owner}: {error}"))?;
        Ok(spec)
    }
}

/// A namespace's name or path, if it can be one.
pub(crate) fn check_netns(owner: &str, netns: &str) -> Result<Netns, String> {
    if netns.is_empty() || netns.contains('\0') || netns == "." || netns == ".." || netns.len() > 4095 {
        return Err(format!(
            "{owner}: '{}' is neither a name under /run/netns nor a path",
            netns.escape_debug()
        ));
    }
    Ok(Netns(netns.to_owned()))
}
