//! Remotes that nobody configured: met by their frames, forgotten when they are silent.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::super::{Control, Port, counters};
use super::{Queues, Remote};
use crate::addr::PortId;
use crate::bridge::fdb::Tick;
use crate::spec::PortKind;

/// Remotes that a switch gets to know by their frames, at most: anybody can make up addresses, and each takes an id.
const STRANGERS_MAX: usize = 512;
/// Strangers that are met between two topologies, at most.
const AT_ONCE: usize = 64;
/// Time between two words about too many.
const BETWEEN_COMPLAINTS: Duration = Duration::from_secs(60);
/// A stranger that sent nothing for so long is forgotten at the earliest.
const STRANGER_AGEING_SECS_MIN: u32 = 60;

impl Control {
    /// A frame came to a tunnel port from a remote that it did not know.
    pub(in crate::switch) fn meet(&mut self, port: PortId, address: IpAddr) {
        let met = &mut self.tunnels.met;
        if met.len() < AT_ONCE && !met.contains(&(port, address)) {
            met.push((port, address));
        }
    }

    /// From now on stations are learned behind those that were met: the workers' ways to them.
    pub(in crate::switch::control) fn welcome(&mut self) -> Queues {
        let mut ways = Queues::new();
        for (port, address) in std::mem::take(&mut self.tunnels.met) {
            let Some(Port { spec, open: true, .. }) = self.ports.get(&port) else { continue };
            let PortKind::Tunnel(tunnel) = spec.kind.clone() else { continue };
            let settings = spec.settings.tunnel.clone();
            if settings.strict_remotes || self.tunnels.remotes.has(port, address) {
                continue;
            }
            // Nobody takes all the room: a port has as many as are free then.
            let learned = |(_, remote): &(PortId, &Remote)| remote.learned;
            let free = STRANGERS_MAX.saturating_sub(self.tunnels.remotes.iter().filter(learned).count());
            if self.tunnels.of(port).filter(learned).count() >= free {
                self.crowded(&spec.name.clone());
                continue;
            }
            if let Ok(id) = self.claim_remote(port, &tunnel, address, true) {
                ways.extend(self.ways(port, &tunnel, &settings).into_iter().filter(|(way, _)| *way == id));
            }
        }
        ways
    }

    /// Tells operators that there are too many, not too often.
    fn crowded(&mut self, port: &str) {
        if self.tunnels.crowded.is_none_or(|told| told.elapsed() >= BETWEEN_COMPLAINTS) {
            self.tunnels.crowded = Some(Instant::now());
            tracing::warn!(
                "port '{port}' hears more remotes that nobody configured than it can learn stations behind; name the right ones with: \
                 vswitchctl port set {port} --remote IP … --strict-remotes on"
            );
        }
    }

    /// Forgets strangers that have sent nothing for their bridge's ageing time and have no station behind them. To be called
    /// each second.
    pub(in crate::switch) fn forget_strangers(&mut self) {
        self.forget_strangers_at(self.crew.now());
    }

    fn forget_strangers_at(&mut self, now: Tick) {
        let mut silent = Vec::new();
        for (id, remote) in self.tunnels.remotes.iter_mut().filter(|(_, remote)| remote.learned) {
            let frames = counters(&remote.shared).rx_frames;
            if frames != remote.heard.0 {
                remote.heard = (frames, now);
            }
            let Some(port) = self.ports.get(&remote.port) else { continue };
            let Some(bridge) = self.bridges.iter().find(|bridge| bridge.spec.name == port.spec.bridge) else {
                continue;
            };
            let ageing_secs = bridge.spec.ageing_secs.max(STRANGER_AGEING_SECS_MIN);
            if now.0.saturating_sub(remote.heard.1.0) >= ageing_secs && bridge.fdb.port_len(id) == 0 {
                silent.push(id);
            }
        }
        if !silent.is_empty() {
            self.tunnels.retire(&silent);
            drop(self.publish(&silent, Vec::new()));
            self.forget_ids(&silent.into_iter().collect());
        }
        self.tunnels.fold();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::MacAddr;
    use std::sync::Arc;

    use crate::bridge::fdb::Key;
    use crate::spec::{BridgeSpec, PortSettings, PortSpec, TunnelSettings, TunnelSpec, UdpSpec};
    use crate::switch::Missing;
    use crate::switch::control::tests::control;
    use crate::tunnel::encapsulation::Header;

    /// A stranger goes when it is silent and nobody is behind it; what it counted stays.
    #[test]
    fn strangers_are_forgotten() {
        let mut control = control(BridgeSpec { ageing_secs: 0, ..BridgeSpec::new("br0") });
        let local: IpAddr = [127, 0, 0, 1].into();
        let free = std::net::UdpSocket::bind((local, 0)).and_then(|socket| socket.local_addr());
        let dstport = free.expect("a free port").port();
        let udp = UdpSpec { dstport, srcport_range: None, csum: true };
        let kind =
            PortKind::Tunnel(TunnelSpec { udp: Some(udp), ..TunnelSpec::new(Header::Vxlan, 42, local) });
        let remotes = vec![[127, 0, 0, 2].into()];
        let tunnel = TunnelSettings { remotes, ..TunnelSettings::default() };
        let settings = PortSettings { tunnel, ..PortSettings::default() };
        let spec = PortSpec { name: "vx0".into(), bridge: "br0".into(), kind, settings };
        control.add_port(spec, Missing::Refuse).expect("added");
        let port = control.port("vx0").expect("there");
        let remotes = |control: &Control| control.tunnels.of(port).count();
        let meet = |control: &mut Control, n: u16| {
            let [a, b] = n.to_be_bytes();
            control.meet(port, [127, 0, a, b].into());
            let ways = control.welcome();
            drop(control.publish(&[], ways));
        };

        meet(&mut control, 3);
        let met = control.tunnels.of(port).find(|(_, remote)| remote.learned);
        let (id, shared) = met.map(|(id, remote)| (id, Arc::clone(&remote.shared))).expect("met");
        shared.counters[0].rx_frames.add(7);
        drop(shared);
        control.forget_strangers_at(Tick(100));
        control.forget_strangers_at(Tick(159));
        assert_eq!(remotes(&control), 2, "it was heard 59 s ago");
        let station = Key::new(MacAddr([2, 0, 0, 0, 0, 1]), 0);
        control.bridges[0].fdb.insert_static(station, id).expect("room");
        control.forget_strangers_at(Tick(160));
        assert_eq!(remotes(&control), 2, "a station is behind it");
        assert!(control.bridges[0].fdb.remove(station));
        control.bridges[0].spec.ageing_secs = 300;
        control.forget_strangers_at(Tick(399));
        assert_eq!(remotes(&control), 2, "its bridge remembers longer");
        control.forget_strangers_at(Tick(400));
        assert_eq!(remotes(&control), 1, "who is configured stays");
        assert!(control.tunnels.departed.is_empty(), "and its counts are added up");
        let received = |control: &mut Control| control.port_named("vx0").map(|port| port.counters.rx_frames);
        assert_eq!(received(&mut control).ok(), Some(7));
        meet(&mut control, 3);
        assert_eq!(remotes(&control), 2, "it is met again");
        (1000..1600).for_each(|n| meet(&mut control, n));
        assert_eq!(remotes(&control), 1 + STRANGERS_MAX / 2, "the others' room stays theirs");
        control.close_all();
        assert!(control.tunnels.folded.is_empty());
        control.crew.stop();
    }
}
