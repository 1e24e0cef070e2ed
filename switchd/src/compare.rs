//! In what two bridges or ports of one name differ, in the command line's words.

use std::collections::BTreeSet;

use vswitch::spec::{
    BridgeSpec, MacvtapSpec, Netns, PortKind, PortSpec, TapSpec, TunnelSettings, TunnelSpec, VlanMode,
};

use crate::api::size::Size;
use crate::api::values::{VlanList, on_off_text};
use crate::api::{DfMode, SocketInfo, TunnelInfo};

/// Refuses a bridge that exists, unless it may and is the same.
pub(crate) fn same_bridge(existing: &BridgeSpec, asked: &BridgeSpec, may_exist: bool) -> Result<(), String> {
    let remedy = format!("'vswitchctl bridge set {}'", asked.name);
    verdict(&format!("bridge '{}'", asked.name), may_exist, &bridges(existing, asked), &remedy)
}

/// Refuses a port that exists, unless it may and is the same.
pub(crate) fn same_port(existing: &PortSpec, asked: &PortSpec, may_exist: bool) -> Result<(), String> {
    let remedy = if existing.kind == asked.kind && existing.bridge == asked.bridge {
        format!("'vswitchctl port set {}'", asked.name)
    } else {
        format!("'vswitchctl port del {}' first", asked.name)
    };
    verdict(&format!("port '{}'", asked.name), may_exist, &ports(existing, asked), &remedy)
}

fn verdict(object: &str, may_exist: bool, differences: &[String], remedy: &str) -> Result<(), String> {
    match (may_exist, differences) {
        (true, []) => Ok(()),
        (false, []) => Err(format!("{object} exists already: use --may-exist if that is fine")),
        (_, _) => Err(format!(
            "{object} exists already with other attributes ({}): change it with {remedy}",
            differences.join(", ")
        )),
    }
}

/// Collects `name: old, not new` where they differ.
struct Differences(Vec<String>);

impl Differences {
    fn add<T: PartialEq>(&mut self, name: &str, old: &T, new: &T, show: impl Fn(&T) -> String) {
        if old != new {
            self.0.push(format!("{name} is {}, not {}", show(old), show(new)));
        }
    }
}

fn or_default<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(|| "default".to_owned(), T::to_string)
}

fn switch(value: &bool) -> String {
    on_off_text(*value).to_owned()
}

/// In what `asked` differs from `existing`.
pub(crate) fn bridges(existing: &BridgeSpec, asked: &BridgeSpec) -> Vec<String> {
    let mut all = Differences(Vec::new());
    all.add("ageing", &existing.ageing_secs, &asked.ageing_secs, u32::to_string);
    all.add("fdb-max", &existing.fdb_max, &asked.fdb_max, u32::to_string);
    all.add("vlan-filtering", &existing.vlan_filtering, &asked.vlan_filtering, switch);
    all.add("default-pvid", &existing.default_pvid, &asked.default_pvid, ToString::to_string);
    all.0
}

/// In what `asked` differs from `existing`.
pub(crate) fn ports(existing: &PortSpec, asked: &PortSpec) -> Vec<String> {
    let mut all = Differences(Vec::new());
    all.add("bridge", &existing.bridge, &asked.bridge, String::clone);
    match (&existing.kind, &asked.kind) {
        (PortKind::Tap(old), PortKind::Tap(new)) | (PortKind::Internal(old), PortKind::Internal(new)) => {
            taps(&mut all, old, new);
        }
        (PortKind::Packet(old), PortKind::Packet(new)) => {
            all.add("ifname", &old.ifname, &new.ifname, String::clone);
            all.add("netns", &old.netns, &new.netns, or_default::<Netns>);
        }
        (PortKind::Macvtap(old), PortKind::Macvtap(new)) => macvtaps(&mut all, old, new),
        (PortKind::Tunnel(old), PortKind::Tunnel(new)) if old.type_name() == new.type_name() => {
            tunnels(&mut all, old, new);
        }
        (PortKind::Stream(_), PortKind::Stream(_))
        | (PortKind::Dgram(_), PortKind::Dgram(_))
        | (PortKind::Vde(_), PortKind::Vde(_)) => {
            sockets(&mut all, &existing.kind, &asked.kind);
        }
        (PortKind::VhostUser(old), PortKind::VhostUser(new)) => {
            sockets(&mut all, &existing.kind, &asked.kind);
            all.add("queues", &old.queues, &new.queues, or_default);
            all.add("own-thread", &old.own_thread, &new.own_thread, switch);
            all.add("memory-max", &old.memory_max.map(Size), &new.memory_max.map(Size), or_default);
        }
        (old, new) => all.add("type", &old.name(), &new.name(), |name| (*name).to_owned()),
    }
    let (old, new) = (&existing.settings, &asked.settings);
    all.add("vlan", &old.vlan, &new.vlan, vlan);
    all.add("learning", &old.learning, &new.learning, switch);
    all.add("flood", &old.flood, &new.flood, switch);
    all.add("isolated", &old.isolated, &new.isolated, switch);
    all.add("hairpin", &old.hairpin, &new.hairpin, switch);
    let (old, new) = (&old.tunnel, &new.tunnel);
    let list = |list: &Vec<std::net::IpAddr>| match list.as_slice() {
        [] => "none".to_owned(),
        list => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    };
    all.add("remote", &old.remotes, &new.remotes, list);
    all.add("strict-remotes", &old.strict_remotes, &new.strict_remotes, switch);
    all.add("guard-local", &old.guard_local, &new.guard_local, switch);
    all.add("df", &old.df, &new.df, |&df| DfMode::from(df).name().to_owned());
    all.add("mss-clamp", &old.mss_clamp, &new.mss_clamp, switch);
    all.add("neigh-suppress", &old.neigh_suppress, &new.neigh_suppress, switch);
    all.0
}

fn taps(all: &mut Differences, old: &TapSpec, new: &TapSpec) {
    let addresses = |list: &Vec<(std::net::IpAddr, u8)>| match list.as_slice() {
        [] => "none".to_owned(),
        list => list.iter().map(|(ip, length)| format!("{ip}/{length}")).collect::<Vec<_>>().join(" "),
    };
    all.add("ifname", &old.ifname, &new.ifname, String::clone);
    all.add("netns", &old.netns, &new.netns, or_default);
    all.add("mac", &old.mac, &new.mac, or_default);
    all.add("mtu", &old.mtu, &new.mtu, or_default);
    all.add("address", &old.addresses, &new.addresses, addresses);
    all.add("gateway", &old.gateway, &new.gateway, or_default);
    all.add("queues", &old.queues, &new.queues, or_default);
    all.add("offload", &old.offload, &new.offload, switch);
}

fn macvtaps(all: &mut Differences, old: &MacvtapSpec, new: &MacvtapSpec) {
    all.add("ifname", &old.ifname, &new.ifname, String::clone);
    all.add("netns", &old.netns, &new.netns, or_default);
    all.add("queues", &old.queues, &new.queues, or_default);
    let of = |spec: &MacvtapSpec| {
        let lower = spec.lower.as_ref();
        let name = lower.map(|lower| lower.ifname.clone());
        (name, lower.map(|lower| lower.mode.name()), lower.and_then(|l| l.mac), lower.and_then(|l| l.mtu))
    };
    let (was, is) = (of(old), of(new));
    all.add("lower", &was.0, &is.0, or_default);
    all.add("mode", &was.1, &is.1, or_default);
    all.add("mac", &was.2, &is.2, or_default);
    all.add("mtu", &was.3, &is.3, or_default);
}

fn sockets(all: &mut Differences, old: &PortKind, new: &PortKind) {
    if let (Some(was), Some(is)) = (SocketInfo::new(old, None), SocketInfo::new(new, None)) {
        all.add("role", &was.role, &is.role, |role| role.name().to_owned());
        all.add("path", &was.path, &is.path, or_default);
        all.add("address", &was.address, &is.address, or_default);
        all.add("peer", &was.peer, &is.peer, or_default);
        all.add("mode", &was.mode, &is.mode, or_default);
    }
    all.add("mtu", &old.mtu(), &new.mtu(), or_default);
}

/// By the fields that operators read, under their names.
fn tunnels(all: &mut Differences, old: &TunnelSpec, new: &TunnelSpec) {
    let options = |spec: &TunnelSpec| TunnelInfo::new(spec, &TunnelSettings::default(), Vec::new()).options();
    let (before, after) = (options(old), options(new));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names {
        all.add(name, &before.get(name).cloned(), &after.get(name).cloned(), or_default);
    }
    all.add("mtu", &old.mtu, &new.mtu, or_default);
    all.add("netns", &old.netns, &new.netns, or_default::<Netns>);
}

fn vlan(mode: &VlanMode) -> String {
    match mode {
        VlanMode::Default => "default".to_owned(),
        VlanMode::Access(vid) => format!("access {vid}"),
        VlanMode::Trunk { vids, native: None } => format!("trunk {}", VlanList::from(vids)),
        VlanMode::Trunk { vids, native: Some(native) } => {
            format!("trunk {} native {native}", VlanList::from(vids))
        }
    }
}
