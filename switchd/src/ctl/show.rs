//! Answers as tables.

use std::net::IpAddr;

use super::explain;
use super::table::{Align, Table, details};
use crate::api::values::on_off_text;
use crate::api::{
    AttachInfo, BridgeInfo, Counters, DfMode, FdbInfo, Holder, NeighInfo, PeerInfo, PortInfo, Stats,
    StatusInfo, TunnelInfo, VlanInfo, VlanModeName,
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
        ("attach-socket", or_empty(&status.attach_socket)),
        ("configuration", or_empty(&status.config)),
        ("poll", status.poll.clone()),
        ("bridges", status.bridges.to_string()),
        ("ports", status.ports.to_string()),
        ("failed-ports", status.failed_ports.join(" ")),
        ("attached", format!("{} of {}", status.attached_ports, status.attached_ports_max)),
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

/// What of a port's behaviour is not plain.
fn options(port: &PortInfo) -> String {
    let tunnel = |is: fn(&TunnelInfo) -> bool| port.tunnel.as_ref().is_some_and(is);
    let unusual = [
        ("no-learning", !port.learning),
        ("no-flood", !port.flood),
        ("isolated", port.isolated),
        ("hairpin", port.hairpin),
        ("strict", tunnel(|tunnel| tunnel.strict_remotes)),
        ("guard", tunnel(|tunnel| tunnel.guard_local)),
        ("suppress", tunnel(|tunnel| tunnel.neigh_suppress)),
        ("clamp", tunnel(|tunnel| tunnel.mss_clamp)),
        ("df-set", tunnel(|tunnel| tunnel.df == DfMode::Set)),
        ("df-unset", tunnel(|tunnel| tunnel.df == DfMode::Unset)),
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

/// Who asked for a port; of an attached one, who that is.
fn origin(port: &PortInfo) -> String {
    match &port.attached {
        Some(Holder { uid, pid }) => format!("{}, by process {pid} of user {uid}", port.origin),
        None => port.origin.to_string(),
    }
}

/// What fits now, and what was asked for.
fn mtu(port: &PortInfo) -> String {
    match port.tunnel.as_ref().and_then(|tunnel| tunnel.mtu_max) {
        Some(most) => format!("{} (--mtu {most})", port.mtu.map_or("-".to_owned(), |mtu| mtu.to_string())),
        None => or_empty(&port.mtu),
    }
}

pub(super) fn port(port: &PortInfo) -> String {
    let text = |value: bool| on_off_text(value).to_owned();
    let mut pairs = vec![
        ("name", port.name.clone()),
        ("bridge", port.bridge.clone()),
        ("type", port.kind.clone()),
        ("state", port.state.to_string()),
        ("origin", origin(port)),
        ("ifname", or_empty(&port.ifname)),
        ("ifindex", or_empty(&port.ifindex)),
        ("netns", or_empty(&port.netns)),
        ("mac", or_empty(&port.mac)),
        ("mtu", mtu(port)),
        ("address", port.address.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        ("queues", port.queues.to_string()),
        ("vlan", vlan(&port.vlan)),
        ("learning", text(port.learning)),
        ("flood", text(port.flood)),
        ("isolated", text(port.isolated)),
        ("hairpin", text(port.hairpin)),
        ("peer", port.peer.as_ref().map(peer).unwrap_or_default()),
    ];
    if let Some(macvtap) = &port.macvtap {
        pairs.push(("lower", macvtap.lower.clone()));
        pairs.push(("mode", macvtap.mode.clone()));
    }
    if let Some(socket) = &port.socket {
        pairs.push(("socket", socket.summary()));
        if let Some(peers) = &socket.peers {
            pairs.push(("connections", peers.summary()));
        }
        if let Some(max) = socket.memory_max {
            pairs.push(("memory-max", max.to_string()));
        }
        if socket.own_thread {
            pairs.push(("own-thread", "on".to_owned()));
        }
        if let Some(mode) = socket.mode {
            pairs.push(("mode", mode.to_string()));
        }
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
    if let Some(reason) = &port.reason {
        pairs.push(("reason", reason.clone()));
    }
    if let Some(hint) = port.hint() {
        pairs.push(("hint", hint.to_owned()));
    }
    if let Some(whom) = explain::lines_for(port) {
        pairs.push(("guest", format!("'vswitchctl port explain {}' has the lines for {whom}", port.name)));
    }
    details(&pairs)
}

/// The other end of a tunnel.
fn via(port: &str, remote: IpAddr) -> String {
    format!("{port} via {remote}")
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
            entry.remote.map_or_else(|| entry.port.clone(), |remote| via(&entry.port, remote)),
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

pub(super) fn attach(rules: &[AttachInfo]) -> String {
    let mut table = Table::new([
        ("USER", Left),
        ("GROUP", Left),
        ("BRIDGE", Left),
        ("PORTS", Right),
        ("PORTS-MAX", Right),
        ("USER-PORTS-MAX", Right),
        ("MEMORY-MIB", Right),
        ("MEMORY-MAX-MIB", Right),
    ]);
    for rule in rules {
        table.row([
            or_empty(&rule.user),
            or_empty(&rule.group),
            rule.bridge.clone(),
            rule.ports.to_string(),
            rule.ports_max.to_string(),
            rule.user_ports_max.to_string(),
            rule.memory_bytes.div_ceil(1 << 20).to_string(),
            rule.memory_max_mib.to_string(),
        ]);
    }
    table.render()
}

/// Counters of ports; `with_remotes` also of the other ends of tunnels, whose frames are among those of their port.
pub(super) fn stats(stats: &[Stats], with_remotes: bool) -> String {
    let mut table = Table::new([
        ("PORT", Left),
        ("RX-FRAMES", Right),
        ("RX-BYTES", Right),
        ("TX-FRAMES", Right),
        ("TX-BYTES", Right),
        ("DROPS", Right),
        ("BY-REASON", Left),
    ]);
    let mut row = |name: String, counters: &Counters| {
        let by_reason: Vec<String> =
            counters.drops.iter().map(|(reason, count)| format!("{reason}={count}")).collect();
        table.row([
            name,
            counters.rx_frames.to_string(),
            counters.rx_bytes.to_string(),
            counters.tx_frames.to_string(),
            counters.tx_bytes.to_string(),
            counters.drops.values().sum::<u64>().to_string(),
            by_reason.join(" "),
        ]);
    };
    for Stats { port, counters, remotes } in stats {
        row(port.clone(), counters);
        for remote in remotes.iter().filter(|_| with_remotes) {
            row(via(port, remote.remote), &remote.counters);
        }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::DaemonSection;
    use crate::control::model::Model;
    use crate::daemon::Daemon;

    /// A daemon with a tunnel port `vx0`, and the model of the switch.
    fn with_tunnel(kind: &str, options: &serde_json::Value) -> (Daemon, Arc<Model>) {
        let model = Arc::new(Model::default());
        let daemon = Daemon::new(model.clone(), &DaemonSection::default());
        let bridge = serde_json::json!({"name": "br0"});
        daemon.add_bridge(&serde_json::from_value(bridge).unwrap(), false).unwrap();
        let mut port = serde_json::json!({
            "name": "vx0", "bridge": "br0", "type": kind, "local": "10.9.0.1", "remote": ["10.9.0.2", "10.9.0.3"]
        });
        port.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        daemon.add_port(&serde_json::from_value(port).unwrap(), false).unwrap();
        (daemon, model)
    }

    #[test]
    fn what_is_unusual_about_a_tunnel_is_in_the_table() {
        let options = |options: serde_json::Value| {
            let (daemon, _) = with_tunnel("vxlan", &options);
            let table = ports(&daemon.ports());
            table.lines().nth(1).unwrap().split_whitespace().last().unwrap().to_owned()
        };
        assert_eq!(options(serde_json::json!({"vni": 7})), "-");
        assert_eq!(options(serde_json::json!({"vni": 7, "df": "unset"})), "df-unset");
        let all = serde_json::json!({
            "vni": 7, "hairpin": true, "strict_remotes": true, "guard_local": true, "neigh_suppress": true,
            "mss_clamp": true, "df": "set"
        });
        assert_eq!(options(all), "hairpin,strict,guard,suppress,clamp,df-set");
    }

    #[test]
    fn the_mtu_asked_for_is_beside_what_fits() {
        let line = |options: serde_json::Value| {
            let (daemon, _) = with_tunnel("vxlan", &options);
            let text = port(&daemon.port("vx0").unwrap());
            let lines: Vec<String> =
                text.lines().filter(|line| line.starts_with("mtu")).map(str::to_owned).collect();
            assert_eq!(lines.len(), 1, "{text}");
            lines[0].split_once(':').unwrap().1.trim().to_owned()
        };
        assert_eq!(line(serde_json::json!({"vni": 7})), "1500");
        assert_eq!(line(serde_json::json!({"vni": 7, "mtu": 1400})), "1500 (--mtu 1400)");
    }

    #[test]
    fn other_ends_are_under_the_port_that_was_asked_for() {
        let (daemon, _) = with_tunnel("gretap", &serde_json::json!({}));
        let all = daemon.stats(Some("vx0")).unwrap();
        let rows =
            |with_remotes| stats(&all, with_remotes).lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(rows(false).len(), 1);
        let rows = rows(true);
        assert!(rows[0].starts_with("vx0 ") && rows[0].ends_with("no_destination=2"), "{rows:?}");
        assert!(rows[1].starts_with("vx0 via 10.9.0.2  ") && rows[1].ends_with("unreachable=4"), "{rows:?}");
        assert!(rows[2].starts_with("vx0 via 10.9.0.3  "), "{rows:?}");
    }

    #[test]
    fn a_tunnel_that_waits_is_not_said_to_lack_an_interface() {
        let (daemon, model) = with_tunnel("vxlan", &serde_json::json!({"vni": 7}));
        model.inner().gone.insert("vx0".to_owned());
        let text = explain::port(&daemon.port("vx0").unwrap(), None);
        assert!(text.contains("is gone (its local address, ") && !text.contains("does not exist"), "{text}");
    }
}
