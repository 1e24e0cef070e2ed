//! What fits one packet on the way to each remote: found out, looked at again, told to operators.

use std::collections::{BTreeMap, HashMap};

use super::{ETHERNET_MTU, Outlet, Remote, Tunnels, frame_max, inner_mtu};
use crate::addr::PortId;
use crate::port::tunnel::Place;
use crate::spec::{Df, PortKind, TunnelSettings, TunnelSpec};
use crate::switch::control::{Control, Port};

/// Ways that are looked at again in a second, at most.
const PROBES: usize = 256;

/// What an operator should know of a way that takes less than stations usually send.
fn hint(name: &str, df: Df, spec: &TunnelSpec, remote: &Remote) -> Option<String> {
    let mtu = remote.mtu;
    if !remote.probed || mtu >= ETHERNET_MTU {
        return None;
    }
    let longer = match df {
        Df::Inherit => {
            "longer ones go in fragments, and those that may not be fragmented are answered with 'packet too big'"
        }
        Df::Set => "longer ones are answered with 'packet too big'",
        Df::Unset => "longer ones go in fragments",
    };
    let (fit, other) = if spec.mtu == Some(mtu) {
        ("are taken to fit", String::new())
    } else {
        ("fit", format!(", or the underlay MTU {}", ETHERNET_MTU + spec.overhead()))
    };
    Some(format!(
        "port '{name}': frames with up to {mtu} bytes of payload {fit} one packet to {}; {longer}; better give the \
         stations MTU {mtu}{other}",
        remote.address
    ))
}

impl Tunnels {
    /// What an operator should know of the ways of a port: of the one that takes least.
    pub(in crate::switch::control) fn hint(&self, id: PortId, port: &Port) -> Option<String> {
        let PortKind::Tunnel(spec) = &port.spec.kind else { return None };
        hint(&port.spec.name, port.spec.settings.tunnel.df, spec, self.least(id)?)
    }

    /// The remote of a port whose way takes least, of those that were looked at.
    fn least(&self, port: PortId) -> Option<&Remote> {
        let probed = self.of(port).map(|(_, remote)| remote).filter(|remote| remote.probed);
        probed.min_by_key(|remote| remote.mtu)
    }

    /// Finds out what fits the ways to some remotes of one port; where there is no way now, what was known stays.
    pub(super) fn probe(
        &mut self,
        port: PortId,
        name: &str,
        settings: &TunnelSettings,
        spec: &TunnelSpec,
        ids: &[PortId],
    ) {
        let known = ids.iter().filter_map(|id| Some((*id, self.remotes.get(*id)?.address)));
        let (ids, addresses): (Vec<_>, Vec<_>) = known.unzip();
        let Ok(mtus) = Place::of(spec).path_mtus(&addresses) else { return };
        let before = self.least(port).map(|remote| remote.mtu);
        for (id, mtu) in ids.into_iter().zip(mtus) {
            if let (Some(mtu), Some(remote)) = (mtu, self.remotes.get_mut(id)) {
                let mtu = inner_mtu(spec, mtu);
                (remote.mtu, remote.probed) = (mtu, true);
                remote.shared.set_path_max(frame_max(spec, mtu));
            }
        }
        // One line, however many ways change at once, and none for each stranger.
        let least = self.least(port).filter(|remote| before != Some(remote.mtu));
        if let Some(hint) = least.and_then(|remote| hint(name, settings.df, spec, remote)) {
            tracing::info!("{hint}");
        }
    }
}

impl Control {
    /// Finds out what fits the ways to some of a port's remotes.
    pub(super) fn probe(&mut self, port: PortId, ids: &[PortId]) {
        let Some(Port { spec, .. }) = self.ports.get(&port) else { return };
        if let PortKind::Tunnel(tunnel) = &spec.kind {
            self.tunnels.probe(port, &spec.name, &spec.settings.tunnel, tunnel, ids);
        }
    }

    /// Looks again at some ways, in turn: routes and MTUs change. To be called each second.
    pub(in crate::switch) fn probe_next(&mut self) {
        self.follow_devices();
        let open = |port: &PortId| self.ports.get(port).is_some_and(|port| port.open);
        let all = self.tunnels.remotes.iter().filter(|(_, remote)| open(&remote.port));
        let (before, after): (Vec<_>, Vec<_>) =
            all.map(|(id, remote)| (id, remote.port)).partition(|&(id, _)| Some(id) <= self.tunnels.probed);
        let mut ports = BTreeMap::<PortId, Vec<PortId>>::new();
        for (id, port) in after.into_iter().chain(before).take(PROBES) {
            self.tunnels.probed = Some(id);
            ports.entry(port).or_default().push(id);
        }
        for (port, ids) in ports {
            self.probe(port, &ids);
        }
    }

    /// Sockets are bound to the device that had the name, and groups joined on the one that had the address, when they were opened. When it
    /// is gone, or another has its place, so are the ports: all at once, for they share sockets.
    fn follow_devices(&mut self) {
        let mut now = HashMap::new();
        let outlets = self.tunnels.outlets.iter().filter(|(_, outlet)| outlet.ifindex.is_some());
        let mut lost = Vec::new();
        for (&port, Outlet { bound, ifindex, .. }) in outlets {
            if *now.entry(bound).or_insert_with(|| bound.ifindex().ok().flatten()) != *ifindex {
                lost.push(port);
            }
        }
        if !lost.is_empty() {
            self.lose(lost);
        }
    }
}
