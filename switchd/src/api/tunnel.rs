//! What of a port as asked for is a tunnel's.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use utoipa::ToSchema;
use vswitch::addr::VlanId;
use vswitch::spec::{Netns, Networks, Tos, TunnelSettings, TunnelSpec, UdpSpec};
use vswitch::tunnel::encapsulation::Header;
use vswitch::tunnel::erspan::{Direction, Sender};

use super::answers::RemoteInfo;
use super::values::{Vid, on_off_text};
use super::{DfMode, PortAdd, PortType, check_ifname};

/// VLANs and the networks that they stand for.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, examples("10:10010,20:10020"))]
pub struct VniMap(pub Vec<(VlanId, u32)>);

impl FromStr for VniMap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pair = |part: &str| {
            let (vlan, vni) = part
                .split_once(':')
                .ok_or_else(|| format!("'{part}' is no pair of VLAN and VNI, such as 10:10010"))?;
            let vlan: Vid = vlan.trim().parse()?;
            let vni = vni.trim().parse().map_err(|_| format!("'{}' is no VNI", vni.trim()))?;
            Ok((vlan.0, vni))
        };
        let mut pairs = text.split(',').map(|part| pair(part.trim())).collect::<Result<Vec<_>, String>>()?;
        pairs.sort_unstable();
        Ok(VniMap(pairs))
    }
}

impl fmt::Display for VniMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.0.iter().map(|(vlan, vni)| format!("{vlan}:{vni}")).collect();
        f.write_str(&pairs.join(","))
    }
}

/// UDP ports from one to another.
#[derive(Serialize, Deserialize, ToSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, examples("49152-65535"))]
pub struct PortRange(pub u16, pub u16);

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ends = text
            .split_once('-')
            .and_then(|(first, last)| Some(PortRange(first.trim().parse().ok()?, last.trim().parse().ok()?)));
        ends.filter(|PortRange(first, last)| *first > 0 && first <= last)
            .ok_or_else(|| format!("'{text}' is no range of UDP ports, such as 49152-65535"))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    )*};
}

as_text!(VniMap, PortRange, RemoteChoice);

/// Another end of a tunnel; `none`, which stands alone, is the word that there is none.
#[derive(Serialize, Deserialize, ToSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, examples("172.16.0.2", "none"))]
pub struct RemoteChoice(pub Option<IpAddr>);

impl FromStr for RemoteChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("none", _) => Ok(RemoteChoice(None)),
            (_, Ok(address)) => Ok(RemoteChoice(Some(address))),
            (_, Err(_)) => Err(format!("'{}' is neither an IP address nor 'none'", text.escape_debug())),
        }
    }
}

impl fmt::Display for RemoteChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("none"),
            Some(address) => address.fmt(f),
        }
    }
}

/// The remotes that are asked for.
pub(super) fn remotes(asked: &[RemoteChoice]) -> Result<Vec<IpAddr>, String> {
    let alone = || "remote 'none' takes all remotes away: give none beside it".to_owned();
    match asked {
        [RemoteChoice(None)] => Ok(Vec::new()),
        all => all.iter().map(|choice| choice.0.ok_or_else(alone)).collect(),
    }
}

/// Type of service of outer packets: text, such as `"184"`; a number is understood as well.
#[derive(ToSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[schema(value_type = String, examples("inherit", "184"))]
pub struct TosChoice(pub Tos);

impl FromStr for TosChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text.strip_prefix("0x") {
            Some(digits) => u8::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        };
        match (text, number) {
            ("inherit", _) => Ok(TosChoice(Tos::Inherit)),
            (_, Some(number)) => Ok(TosChoice(Tos::Fixed(number))),
            _ => Err(format!("'{text}' is neither a type of service from 0 to 255 nor 'inherit'")),
        }
    }
}

impl fmt::Display for TosChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Tos::Inherit => f.write_str("inherit"),
            Tos::Fixed(tos) => tos.fmt(f),
        }
    }
}

impl Serialize for TosChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TosChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = TosChoice;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a type of service from 0 to 255, or \"inherit\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<TosChoice, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<TosChoice, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<TosChoice, E> {
                self.visit_str(&number.to_string())
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Which way mirrored frames went, seen from the mirrored port.
#[derive(ValueEnum, Serialize, Deserialize, ToSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum ErspanDirection {
    /// Received there
    Ingress,
    /// Sent there
    Egress,
}

/// Where a tunnel port leads, and how. What its kind does not have is left out.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct TunnelInfo {
    /// Number of the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// Numbers of the networks that VLANs stand for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub vni_map: Option<VniMap>,
    /// This host's address in the underlay.
    #[schema(value_type = String)]
    pub local: IpAddr,
    /// Multicast group that stands for all other ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub group: Option<IpAddr>,
    /// Interface that packets leave and come by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dev: Option<String>,
    /// UDP port at both ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dstport: Option<u16>,
    /// UDP ports to send from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub srcport_range: Option<PortRange>,
    /// Outer packets have a UDP checksum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_csum: Option<bool>,
    /// Time to live of outer packets; absent is the kernel's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// Their type of service, or `inherit`.
    #[schema(value_type = String)]
    pub tos: TosChoice,
    /// Longest payload that is taken to fit, in bytes, where the way would take more: the option `mtu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu_max: Option<u32>,
    /// GRE key, or ERSPAN session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<u32>,
    /// Packets have a GRE checksum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csum: Option<bool>,
    /// Packets are numbered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<bool>,
    /// Version of ERSPAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erspan_ver: Option<u8>,
    /// Index of the mirrored port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erspan_index: Option<u32>,
    /// Which way frames went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erspan_dir: Option<ErspanDirection>,
    /// Hardware identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erspan_hwid: Option<u8>,
    /// Frames of others than the remotes are dropped.
    pub strict_remotes: bool,
    /// Frames that claim a station of this side are dropped.
    pub guard_local: bool,
    /// ARP requests and neighbour solicitations that the switch can answer are not flooded into it.
    pub neigh_suppress: bool,
    /// What becomes of frames that do not fit one packet of the way.
    pub df: DfMode,
    /// TCP connections are told to send segments that fit.
    pub mss_clamp: bool,
    /// The other ends.
    pub remotes: Vec<RemoteInfo>,
    /// What would be better, in one line; null when nothing would.
    pub hint: Option<String>,
}

impl TunnelInfo {
    /// From what was asked for and the data plane's account of the other ends.
    #[must_use]
    pub fn new(spec: &TunnelSpec, settings: &TunnelSettings, remotes: Vec<RemoteInfo>) -> Self {
        let udp = spec.udp.as_ref();
        let mut info = TunnelInfo {
            vni: None,
            vni_map: None,
            local: spec.local,
            group: spec.group,
            dev: spec.dev.clone(),
            dstport: udp.map(|udp| udp.dstport),
            srcport_range: udp.and_then(|udp| udp.srcport_range).map(|(first, last)| PortRange(first, last)),
            udp_csum: udp.map(|udp| udp.csum),
            ttl: spec.ttl,
            tos: TosChoice(spec.tos),
            mtu_max: spec.mtu,
            key: None,
            csum: None,
            seq: None,
            erspan_ver: None,
            erspan_index: None,
            erspan_dir: None,
            erspan_hwid: None,
            strict_remotes: settings.strict_remotes,
            guard_local: settings.guard_local,
            neigh_suppress: settings.neigh_suppress,
            df: settings.df.into(),
            mss_clamp: settings.mss_clamp,
            remotes,
            hint: None,
        };
        match (&spec.header, &spec.networks) {
            (_, Networks::ByVlan(map)) => info.vni_map = Some(VniMap(map.clone())),
            (Header::Vxlan | Header::Geneve, Networks::One(vni)) => info.vni = Some(*vni),
            (Header::Gre { key, sequence, checksum }, Networks::One(number)) => {
                info.key = key.then_some(*number);
                (info.csum, info.seq) = (Some(*checksum), Some(*sequence));
            }
            (Header::Erspan(sender), Networks::One(session)) => {
                info.key = Some(*session);
                match *sender {
                    Sender::II { index } => {
                        (info.erspan_ver, info.erspan_index) = (Some(1), Some(index));
                    }
                    Sender::III { direction, hardware } => {
                        (info.erspan_ver, info.erspan_hwid) = (Some(2), Some(hardware));
                        info.erspan_dir = Some(match direction {
                            Direction::Ingress => ErspanDirection::Ingress,
                            Direction::Egress => ErspanDirection::Egress,
                        });
                    }
                }
            }
        }
        info
    }
}

impl TunnelInfo {
    /// What it has, by the names of the command line, but for the MTU and the other ends.
    #[must_use]
    pub fn options(&self) -> BTreeMap<String, String> {
        let options = TunnelInfo { hint: None, mtu_max: None, ..self.clone() };
        let Ok(Value::Object(fields)) = serde_json::to_value(options) else { return BTreeMap::new() };
        let text = |value: Value| match value {
            Value::String(text) => Some(text),
            Value::Bool(on) => Some(on_off_text(on).to_owned()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let options = fields.into_iter().map(|(name, value)| (name.replace('_', "-"), text(value)));
        options.filter_map(|(name, text)| Some((name, text?))).collect()
    }
}

/// Every kind of tunnel.
pub(super) const ALL: &[PortType] = &[
    PortType::Vxlan,
    PortType::Geneve,
    PortType::Gretap,
    PortType::Ip6gretap,
    PortType::Erspan,
    PortType::Ip6erspan,
];
/// Those in UDP.
pub(super) const UDP: &[PortType] = &[PortType::Vxlan, PortType::Geneve];
/// Those straight in IP.
pub(super) const GRE: &[PortType] =
    &[PortType::Gretap, PortType::Ip6gretap, PortType::Erspan, PortType::Ip6erspan];
/// Those with nothing between GRE and the frame.
pub(super) const GRETAP: &[PortType] = &[PortType::Gretap, PortType::Ip6gretap];
/// Those of mirrored frames.
pub(super) const ERSPAN: &[PortType] = &[PortType::Erspan, PortType::Ip6erspan];

/// Whether frames of others than the remotes are dropped if nothing is said: a GRE tunnel is between two hosts.
pub(super) fn strict_by_default(kind: PortType) -> bool {
    GRE.contains(&kind)
}

/// The tunnel that is asked for, with defaults for what is not given.
pub(super) fn spec(
    asked: &PortAdd,
    owner: &str,
    netns: Option<Netns>,
    settings: &TunnelSettings,
) -> Result<TunnelSpec, String> {
    let wrong = |error| format!("{owner}: {error}");
    let name = asked.kind.name();
    let local = asked.local.ok_or_else(|| wrong(format!("a {name} port needs 'local'")))?;
    if GRE.contains(&asked.kind) {
        let ipv6 = name.starts_with("ip6");
        if local.is_ipv6() != ipv6 {
            let fitting = if ipv6 { &name[3..] } else { &format!("ip6{name}") };
            return Err(wrong(format!("local {local} is for a port of type {fitting}")));
        }
    }
    if let Some(dev) = &asked.dev {
        check_ifname(owner, dev)?;
    }
    let (header, networks) = wrapping(asked).map_err(wrong)?;
    let udp = header.encapsulation().port().map(|port| UdpSpec {
        dstport: asked.dstport.unwrap_or(port),
        srcport_range: asked.srcport_range.map(|PortRange(first, last)| (first, last)),
        csum: asked.udp_csum.unwrap_or(true),
    });
    if asked.ttl == Some(0) {
        return Err(wrong("a ttl of 0 reaches nobody: give 1 to 255".to_owned()));
    }
    let spec = TunnelSpec {
        header,
        networks,
        udp,
        local,
        group: asked.group,
        dev: asked.dev.clone(),
        ttl: asked.ttl,
        tos: asked.tos.map_or(Tos::Fixed(0), |tos| tos.0),
        mtu: asked.mtu,
        netns,
    };
    spec.check(settings).map_err(wrong)?;
    Ok(spec)
}

/// How frames are wrapped, and whose they are.
fn wrapping(asked: &PortAdd) -> Result<(Header, Networks), String> {
    let name = asked.kind.name();
    match asked.kind {
        PortType::Vxlan => match (asked.vni, &asked.vni_map) {
            (Some(vni), None) => Ok((Header::Vxlan, Networks::One(vni))),
            (None, Some(map)) => Ok((Header::Vxlan, Networks::ByVlan(map.0.clone()))),
            (None, None) => Err(format!("a {name} port needs 'vni', or 'vni-map'")),
            (Some(_), Some(_)) => Err("'vni' excludes 'vni-map': give one or the other".to_owned()),
        },
        PortType::Geneve => {
            let vni = asked.vni.ok_or_else(|| format!("a {name} port needs 'vni'"))?;
            Ok((Header::Geneve, Networks::One(vni)))
        }
        PortType::Erspan | PortType::Ip6erspan => {
            Ok((Header::Erspan(sender(asked)?), Networks::One(asked.key.unwrap_or(0))))
        }
        _ => {
            let header = Header::Gre {
                key: asked.key.is_some(),
                sequence: asked.seq.unwrap_or(false),
                checksum: asked.csum.unwrap_or(false),
            };
            Ok((header, Networks::One(asked.key.unwrap_or(0))))
        }
    }
}

fn sender(asked: &PortAdd) -> Result<Sender, String> {
    match asked.erspan_ver.unwrap_or(1) {
        1 if asked.erspan_dir.is_some() || asked.erspan_hwid.is_some() => {
            Err("'erspan-dir' and 'erspan-hwid' are of version 2: give 'erspan-ver' 2, or leave them out"
                .to_owned())
        }
        1 => Ok(Sender::II { index: asked.erspan_index.unwrap_or(0) }),
        2 if asked.erspan_index.is_some() => Err("'erspan-index' is of version 1: leave it out".to_owned()),
        2 => Ok(Sender::III {
            direction: match asked.erspan_dir {
                Some(ErspanDirection::Egress) => Direction::Egress,
                Some(ErspanDirection::Ingress) | None => Direction::Ingress,
            },
            hardware: asked.erspan_hwid.unwrap_or(0),
        }),
        other => Err(format!("ERSPAN version {other} is neither 1 nor 2")),
    }
}
