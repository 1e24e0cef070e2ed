//! `GET /metrics`: the Prometheus text exposition format, version 0.0.4.
//!
//! Written by hand: the counters live in the workers and are summed when asked for, so a registry of live
//! metric objects would only be a second place to keep them.

use std::fmt::Write as _;

use crate::api::{BridgeInfo, Counters, PortInfo, State, WorkerInfo};
use crate::daemon::Daemon;

/// One exposition of everything.
pub(super) fn exposition(daemon: &Daemon) -> String {
    let (status, bridges, ports) = (daemon.status(), daemon.bridges(), daemon.ports());
    let mut page = Page::default();

    page.family("vswitch_build_info", "gauge", "Constant 1, labelled with the version.");
    page.sample("vswitch_build_info", &[("version", &status.version)], 1);
    page.family("vswitch_uptime_seconds", "gauge", "Seconds since vswitchd started.");
    page.sample("vswitch_uptime_seconds", &[], status.uptime_secs);

    let bridge_families: [Family<BridgeInfo>; 8] = [
        ("vswitch_bridge_fdb_entries", "Stations the bridge remembers.", |b| b.fdb_used.into()),
        ("vswitch_bridge_fdb_entries_max", "Most stations the bridge remembers.", |b| b.fdb_max.into()),
        ("vswitch_bridge_fdb_moves_total", "Stations that moved to another port.", |b| b.fdb_counters.moves),
        (
            "vswitch_bridge_fdb_moves_limited_total",
            "Moves that were not made: too many to one port within a second.",
            |b| b.fdb_counters.moves_limited,
        ),
        ("vswitch_bridge_fdb_evictions_total", "Stations forgotten to make room for another.", |b| {
            b.fdb_counters.evictions
        }),
        (
            "vswitch_bridge_fdb_full_total",
            "Frames whose source was not learned: full, and nobody over their share.",
            |b| b.fdb_counters.full,
        ),
        (
            "vswitch_bridge_fdb_conflicts_total",
            "Frames whose source a static or local entry puts behind another port.",
            |b| b.fdb_counters.conflicts,
        ),
        ("vswitch_bridge_ports", "Ports of the bridge.", |b| b.ports.len() as u64),
    ];
    page.families(&bridge_families, &bridges, |bridge| vec![("bridge", &bridge.name)]);

    page.ports(&ports);
    page.remotes(&ports);

    let worker_families: [Family<(String, WorkerInfo)>; 3] = [
        ("vswitch_worker_busy_turns_total", "Loop turns that found a frame.", |(_, w)| w.busy_turns),
        ("vswitch_worker_sleeps_total", "Times the worker went to sleep.", |(_, w)| w.sleeps),
        ("vswitch_worker_topology_generation", "Generation of the topology the worker runs on.", |(_, w)| {
            w.generation
        }),
    ];
    let workers: Vec<_> =
        status.workers.into_iter().enumerate().map(|(number, worker)| (number.to_string(), worker)).collect();
    page.families(&worker_families, &workers, |(number, _)| vec![("worker", number)]);
    page.0
}

/// Name, help and where to find the value.
type Family<T> = (&'static str, &'static str, fn(&T) -> u64);

/// One other end of a tunnel port.
struct Remote<'a> {
    port: &'a PortInfo,
    address: String,
    counters: &'a Counters,
}

impl Remote<'_> {
    fn labels(&self) -> [(&str, &str); 3] {
        [("bridge", &self.port.bridge), ("port", &self.port.name), ("remote", &self.address)]
    }
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// Each family with a sample of every object. What only grows is called `_total`.
    fn families<T>(
        &mut self,
        families: &[Family<T>],
        objects: &[T],
        labels: for<'a> fn(&'a T) -> Vec<(&'a str, &'a str)>,
    ) {
        for (name, help, value) in families {
            self.family(name, if name.ends_with("_total") { "counter" } else { "gauge" }, help);
            for object in objects {
                self.sample(name, &labels(object), value(object));
            }
        }
    }

    fn ports(&mut self, ports: &[PortInfo]) {
        let counters: [Family<PortInfo>; 9] = [
            ("vswitch_port_receive_frames_total", "Frames received; a GSO frame is one.", |p| {
                p.counters.rx_frames
            }),
            ("vswitch_port_receive_bytes_total", "Bytes received, without FCS.", |p| p.counters.rx_bytes),
            (
                "vswitch_port_receive_segments_total",
                "Frames on a wire that the received ones stand for.",
                |p| p.counters.rx_segments,
            ),
            ("vswitch_port_transmit_frames_total", "Frames sent; a GSO frame is one.", |p| {
                p.counters.tx_frames
            }),
            ("vswitch_port_transmit_bytes_total", "Bytes sent, without FCS.", |p| p.counters.tx_bytes),
            ("vswitch_port_transmit_segments_total", "Frames on a wire that the sent ones stand for.", |p| {
                p.counters.tx_segments
            }),
            (
                "vswitch_port_transmit_fragmented_total",
                "Frames on a wire sent in fragments of a tunnel's outer packet.",
                |p| p.counters.tx_fragmented,
            ),
            (
                "vswitch_port_mss_clamped_total",
                "TCP SYNs whose maximum segment size was lowered to what fits a tunnel's path.",
                |p| p.counters.mss_clamped,
            ),
            (
                "vswitch_port_neigh_answered_total",
                "ARP requests and neighbour solicitations that the switch answered itself.",
                |p| p.counters.neigh_answered,
            ),
        ];
        self.families(&counters, ports, |port| vec![("bridge", &port.bridge), ("port", &port.name)]);
        self.family("vswitch_port_drops_total", "counter", "Frames dropped, by reason.");
        for port in ports {
            for (reason, count) in &port.counters.drops {
                let labels = [("bridge", port.bridge.as_str()), ("port", &port.name), ("reason", reason)];
                self.sample("vswitch_port_drops_total", &labels, *count);
            }
        }
        self.family("vswitch_port_up", "gauge", "1 when the port can carry frames.");
        for port in ports {
            let labels = [("bridge", port.bridge.as_str()), ("port", &port.name), ("type", &port.kind)];
            self.sample("vswitch_port_up", &labels, u64::from(port.state == State::Up));
        }
        self.family("vswitch_port_failed", "gauge", "1 when the kernel refused what the port needs.");
        for port in ports {
            let labels = [("bridge", port.bridge.as_str()), ("port", &port.name), ("type", &port.kind)];
            self.sample("vswitch_port_failed", &labels, u64::from(port.state == State::Failed));
        }
        self.family("vswitch_port_mtu_bytes", "gauge", "MTU of the port's interface.");
        for port in ports {
            if let Some(mtu) = port.mtu {
                let labels = [("bridge", port.bridge.as_str()), ("port", &port.name)];
                self.sample("vswitch_port_mtu_bytes", &labels, mtu.into());
            }
        }
    }

    /// The other ends of tunnels.
    fn remotes(&mut self, ports: &[PortInfo]) {
        let mut remotes = Vec::new();
        for port in ports {
            for remote in port.tunnel.iter().flat_map(|tunnel| &tunnel.remotes) {
                remotes.push(Remote {
                    port,
                    address: remote.address.to_string(),
                    counters: &remote.counters,
                });
            }
        }
        let counters: [Family<Remote<'_>>; 4] = [
            ("vswitch_remote_receive_frames_total", "Frames from a tunnel's other end.", |r| {
                r.counters.rx_frames
            }),
            ("vswitch_remote_receive_bytes_total", "Bytes of these, without FCS.", |r| r.counters.rx_bytes),
            ("vswitch_remote_transmit_frames_total", "Frames to a tunnel's other end.", |r| {
                r.counters.tx_frames
            }),
            ("vswitch_remote_transmit_bytes_total", "Bytes of these, without FCS.", |r| r.counters.tx_bytes),
        ];
        self.families(&counters, &remotes, |remote| remote.labels().to_vec());
        self.family("vswitch_remote_drops_total", "counter", "Frames dropped, by reason.");
        for remote in &remotes {
            for (reason, count) in &remote.counters.drops {
                let labels = [&remote.labels()[..], &[("reason", reason)]].concat();
                self.sample("vswitch_remote_drops_total", &labels, *count);
            }
        }
    }
}
