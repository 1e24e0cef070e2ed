//! Answers as tables.

use super::table::{Align, Table, details};
use crate::api::values::on_off_text;
use crate::api::{
    BridgeInfo, Counters, FdbInfo, NeighInfo, PeerInfo, PortInfo, Role, Stats, StatusInfo, TunnelInfo,
    VlanInfo, VlanModeName,
};

use Align::{Left, Right};

/// The text of what may be absent.
fn or_empty<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map(T::to_string).unwrap_or_default()
}

pub(super) fn status(status: &StatusInfo) -> String {
    let mut text = details(&[
        ("version", status.version.clone()),
        ("pid", status.pid.to_string()),
        ("uptime", duration(status.uptime_secs)),
        ("socket", status.socket.clone()),
        ("configuration", or_empty(&status.config)),
        ("poll", status.poll.clone()),
        ("bridges", status.bridges.to_string()),
        ("ports", status.ports.to_string()),
    ]);
    let mut table = Table::new([
        ("WORKER", Right),
        ("CPU", Right),
        ("BUSY-TURNS", Right),
        ("SLEEPS", Right),
        ("GENERATION", Right),
    ]);
    for (number, worker) in status.workers.iter().enumerate() {
        table.row([
            number.to_string(),
            or_empty(&worker.cpu),
            worker.busy_turns.to_string(),
            worker.sleeps.to_string(),
            worker.generation.to_string(),
        ]);
    }
    text.push('\n');
    text + &table.render()
}

pub(super) fn bridges(bridges: &[BridgeInfo]) -> String {
    let mut table = Table::new([
        ("NAME", Left),
        ("AGEING", Right),
        ("VLAN-FILTERING", Left),
        ("PVID", Right),
        ("FDB", Right),
        ("FDB-MAX", Right),
        ("ORIGIN", Left),
        ("PORTS", Left),
    ]);
    for bridge in bridges {
        table.row([
            bridge.name.clone(),
            format!("{}s", bridge.ageing_secs),
            on_off_text(bridge.vlan_filtering).to_owned(),
            bridge.default_pvid.to_string(),
            bridge.fdb_used.to_string(),
            bridge.fdb_max.to_string(),
            bridge.origin.to_string(),
            bridge.ports.join(","),
        ]);
    }
    table.render()
}

pub(super) fn bridge(bridge: &BridgeInfo) -> String {
    let fdb = bridge.fdb_counters;
    details(&[
        ("name", bridge.name.clone()),
        ("ageing", format!("{} s", bridge.ageing_secs)),
        ("vlan-filtering", on_off_text(bridge.vlan_filtering).to_owned()),
        ("default-pvid", bridge.default_pvid.to_string()),
        ("stations", format!("{} of at most {}", bridge.fdb_used, bridge.fdb_max)),
        ("moves", format!("{} ({} refused: too many a second)", fdb.moves, fdb.moves_limited)),
        ("evictions", fdb.evictions.to_string()),
        ("not-learned", format!("{} (full), {} (another port's by configuration)", fdb.full, fdb.conflicts)),
        ("origin", bridge.origin.to_string()),
        ("ports", bridge.ports.join(" ")),
    ])
}

pub(super) fn ports(ports: &[PortInfo]) -> String {
    let mut table = Table::new([
        ("NAME", Left),
        ("BRIDGE", Left),
        ("TYPE", Left),
        ("STATE", Left),
        ("IFNAME", Left),
        ("NETNS", Left),
        ("MAC", Left),
        ("MTU", Right),
        ("QUEUES", Right),
        ("VLAN", Left),
        ("OPTIONS", Left),
    ]);
    for port in ports {
        table.row([
            port.name.clone(),
            port.bridge.clone(),
            port.kind.clone(),
            port.state.to_string(),
            or_empty(&port.ifname),
            or_empty(&port.netns),
            or_empty(&port.mac),
            or_empty(&port.mtu),
            port.queues.to_string(),
            vlan(&port.vlan),
            options(port),
        ]);
    }
    table.render()
}

/// What of a port's behaviour is not the default.
fn options(port: &PortInfo) -> String {
    let unusual = [
        ("no-learning", !port.learning),
        ("no-flood", !port.flood),
        ("isolated", port.isolated),
        ("hairpin", port.hairpin),
    ];
    unusual.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect::<Vec<_>>().join(",")
}

pub(super) fn vlan(vlan: &VlanInfo) -> String {
    match (vlan.mode, vlan.access, vlan.native) {
        (VlanModeName::None, ..) => String::new(),
        (VlanModeName::Access, access, _) => format!("access {}", or_empty(&access)),
        (VlanModeName::Trunk, _, None) => format!("trunk {}", vlan.trunk),
        (VlanModeName::Trunk, _, Some(native)) => format!("trunk {} native {native}", vlan.trunk),
    }
}

fn peer(peer: &PeerInfo) -> String {
    let name = peer.ifname.as_deref().unwrap_or("interface");
    match &peer.netns {
        Some(netns) => format!("{name} (index {}) in namespace {netns}", peer.ifindex),
        None => format!("{name} (index {})", peer.ifindex),
    }
}

pub(super) fn port(port: &PortInfo) -> String {
    let text = |value: bool| on_off_text(value).to_owned();
    let mut pairs = vec![
        ("name", port.name.clone()),
        ("bridge", port.bridge.clone()),
        ("type", port.kind.clone()),
        ("state", port.state.to_string()),
        ("origin", port.origin.to_string()),
        ("ifname", or_empty(&port.ifname)),
        ("ifindex", or_empty(&port.ifindex)),
        ("netns", or_empty(&port.netns)),
        ("mac", or_empty(&port.mac)),
        ("mtu", or_empty(&port.mtu)),
        ("address", port.address.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        ("queues", port.queues.to_string()),
        ("vlan", vlan(&port.vlan)),
        ("learning", text(port.learning)),
        ("flood", text(port.flood)),
        ("isolated", text(port.isolated)),
        ("hairpin", text(port.hairpin)),
        ("peer", port.peer.as_ref().map(peer).unwrap_or_default()),
    ];
    if let Some(path) = &port.path {
        pairs.push(("path", path.clone()));
        pairs.push(("role", port.role.map_or("", Role::name).to_owned()));
    }
    let options = port.tunnel.as_ref().map(TunnelInfo::options).unwrap_or_default();
    if let Some(tunnel) = &port.tunnel {
        pairs.extend(options.iter().map(|(name, text)| (name.as_str(), text.clone())));
        for remote in &tunnel.remotes {
            let known = if remote.learned { ", known by its frames" } else { "" };
            let (sent, received) = (remote.counters.tx_frames, remote.counters.rx_frames);
            let text = format!(
                "{}: mtu {}, sent {sent}, received {received} frames{known}",
                remote.address, remote.mtu
            );
            pairs.push(("remote", text));
        }
    }
    let Counters {
        rx_frames,
        rx_bytes,
        rx_segments,
        tx_frames,
        tx_bytes,
        tx_segments,
        tx_fragmented,
        mss_clamped,
        neigh_answered,
        drops,
    } = &port.counters;
    pairs.push(("received", format!("{rx_frames} frames, {rx_bytes} bytes, {rx_segments} segments")));
    pairs.push(("sent", format!("{tx_frames} frames, {tx_bytes} bytes, {tx_segments} segments")));
    if port.tunnel.is_some() {
        pairs.push(("fragmented", format!("{tx_fragmented} frames in fragments of the outer packet")));
        pairs.push(("mss-clamped", format!("{mss_clamped} SYNs")));
    }
    if *neigh_answered > 0 {
        pairs.push(("neigh-answered", neigh_answered.to_string()));
    }
    let drops: Vec<String> = drops.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    pairs.push(("dropped", drops.join(", ")));
    if let Some(hint) = port.tunnel.as_ref().and_then(|tunnel| tunnel.hint.clone()) {
        pairs.push(("hint", hint));
    }
    details(&pairs)
}

pub(super) fn fdb(entries: &[FdbInfo]) -> String {
    let mut table = Table::new([
        ("MAC", Left),
        ("VLAN", Right),
        ("BRIDGE", Left),
        ("PORT", Left),
        ("STATE", Left),
        ("AGE", Right),
    ]);
    for entry in entries {
        table.row([
            entry.mac.to_string(),
            if entry.vlan == 0 { String::new() } else { entry.vlan.to_string() },
            entry.bridge.clone(),
            match &entry.remote {
                Some(remote) => format!("{} via {remote}", entry.port),
                None => entry.port.clone(),
            },
            entry.state.to_string(),
            if entry.state == crate::api::EntryState::Dynamic {
                format!("{}s", entry.age_secs)
            } else {
                String::new()
            },
        ]);
    }
    table.render()
}

pub(super) fn neigh(neighbours: &[NeighInfo]) -> String {
    let mut table = Table::new([
        ("ADDRESS", Left),
        ("MAC", Left),
        ("VLAN", Right),
        ("BRIDGE", Left),
        ("STATE", Left),
        ("AGE", Right),
    ]);
    for known in neighbours {
        table.row([
            known.address.to_string(),
            known.mac.to_string(),
            if known.vlan == 0 { String::new() } else { known.vlan.to_string() },
            known.bridge.clone(),
            format!("{}{}", known.state, if known.router == Some(true) { " router" } else { "" }),
            if known.state == crate::api::EntryState::Dynamic {
                format!("{}s", known.age_secs)
            } else {
                String::new()
            },
        ]);
    }
    table.render()
}

pub(super) fn stats(stats: &[Stats]) -> String {
    let mut table = Table::new([
        ("PORT", Left),
        ("RX-FRAMES", Right),
        ("RX-BYTES", Right),
        ("TX-FRAMES", Right),
        ("TX-BYTES", Right),
        ("DROPS", Right),
        ("BY-REASON", Left),
    ]);
    for Stats { port, counters } in stats {
        let by_reason: Vec<String> =
            counters.drops.iter().map(|(reason, count)| format!("{reason}={count}")).collect();
        table.row([
            port.clone(),
            counters.rx_frames.to_string(),
            counters.rx_bytes.to_string(),
            counters.tx_frames.to_string(),
            counters.tx_bytes.to_string(),
            counters.drops.values().sum::<u64>().to_string(),
            by_reason.join(" "),
        ]);
    }
    table.render()
}

/// Seconds as people say them.
fn duration(secs: u64) -> String {
    let (days, hours, minutes, secs) = (secs / 86_400, secs / 3600 % 24, secs / 60 % 60, secs % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{secs}s"),
        (0, 0, _) => format!("{minutes}m {secs}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h {minutes}m"),
    }
}
