//! `GET /metrics`: the Prometheus text exposition format, version 0.0.4.
//!
//! Written by hand: the counters live in the workers and are summed when asked for, so a registry of live
//! metric objects would only be a second place to keep them.

use std::fmt::Write as _;

use crate::api::{PortInfo, State};
use crate::daemon::Daemon;

/// One exposition of everything.
pub(super) fn exposition(daemon: &Daemon) -> String {
    let (status, bridges, ports) = (daemon.status(), daemon.bridges(), daemon.ports());
    let mut page = Page::default();

    page.family("vswitch_build_info", "gauge", "Constant 1, labelled with the version.");
    page.sample("vswitch_build_info", &[("version", &status.version)], 1);
    page.family("vswitch_uptime_seconds", "gauge", "Seconds since vswitchd started.");
    page.sample("vswitch_uptime_seconds", &[], status.uptime_secs);

    page.family("vswitch_bridge_fdb_entries", "gauge", "Stations the bridge remembers.");
    for bridge in &bridges {
        page.sample("vswitch_bridge_fdb_entries", &[("bridge", &bridge.name)], bridge.fdb_used.into());
    }
    page.family("vswitch_bridge_fdb_entries_max", "gauge", "Most stations the bridge remembers.");
    for bridge in &bridges {
        page.sample("vswitch_bridge_fdb_entries_max", &[("bridge", &bridge.name)], bridge.fdb_max.into());
    }
    let fdb_families: [Family<crate::api::BridgeInfo>; 5] = [
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
    ];
    for (name, help, value) in fdb_families {
        page.family(name, "counter", help);
        for bridge in &bridges {
            page.sample(name, &[("bridge", &bridge.name)], value(bridge));
        }
    }
    page.family("vswitch_bridge_ports", "gauge", "Ports of the bridge.");
    for bridge in &bridges {
        page.sample("vswitch_bridge_ports", &[("bridge", &bridge.name)], bridge.ports.len() as u64);
    }

    page.ports(&ports);

    let worker_families: [Family<crate::api::WorkerInfo>; 3] = [
        ("vswitch_worker_busy_turns_total", "Loop turns that found a frame.", |w| w.busy_turns),
        ("vswitch_worker_sleeps_total", "Times the worker went to sleep.", |w| w.sleeps),
        ("vswitch_worker_topology_generation", "Generation of the topology the worker runs on.", |w| {
            w.generation
        }),
    ];
    for (name, help, value) in worker_families {
        page.family(name, if name.ends_with("_total") { "counter" } else { "gauge" }, help);
        for (number, worker) in status.workers.iter().enumerate() {
            page.sample(name, &[("worker", &number.to_string())], value(worker));
        }
    }
    page.0
}

/// Name, help and where to find the value.
type Family<T> = (&'static str, &'static str, fn(&T) -> u64);

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

    fn ports(&mut self, ports: &[PortInfo]) {
        let counters: [Family<PortInfo>; 6] = [
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
        ];
        for (name, help, value) in counters {
            self.family(name, "counter", help);
            for port in ports {
                self.sample(name, &[("bridge", &port.bridge), ("port", &port.name)], value(port));
            }
        }
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
        self.family("vswitch_port_mtu_bytes", "gauge", "MTU of the port's interface.");
        for port in ports {
            if let Some(mtu) = port.mtu {
                let labels = [("bridge", port.bridge.as_str()), ("port", &port.name)];
                self.sample("vswitch_port_mtu_bytes", &labels, mtu.into());
            }
        }
    }
}
