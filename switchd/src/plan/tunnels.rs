//! Tunnels that cannot be there at the same time, and how one set of them becomes another.
//!
//! Packets are told apart by where they arrive (protocol, address, UDP port, interface, namespace) and by the number of their
//! network. Two ports may agree in both only if each takes packets of its own remotes alone, and they have none in common. So a port
//! that comes may have to wait until another has gone, and one that is given a remote until another has lost it.

use std::path::PathBuf;

use vswitch::spec::{Netns, PortKind, PortSettings, PortSpec, TunnelSettings, TunnelSpec};

/// Whether the switch refuses one of them while the other is there.
pub(crate) fn collide(one: &PortSpec, other: &PortSpec) -> bool {
    let (PortKind::Tunnel(here), PortKind::Tunnel(there)) = (&one.kind, &other.kind) else { return false };
    let (ours, theirs) = (&one.settings.tunnel, &other.settings.tunnel);
    let apart = ours.strict_remotes
        && theirs.strict_remotes
        && !here.far_ends(ours).any(|end| there.far_ends(theirs).any(|other| other == end));
    !apart && same_place(here, there) && share_a_network(here, there)
}

/// Whether their packets arrive at the same place.
fn same_place(one: &TunnelSpec, other: &TunnelSpec) -> bool {
    let port = |spec: &TunnelSpec| spec.udp.as_ref().map(|udp| udp.dstport);
    let netns = |spec: &TunnelSpec| -> PathBuf { spec.netns.as_ref().map(Netns::path).unwrap_or_default() };
    (one.header.encapsulation(), one.local, port(one), &one.dev)
        == (other.header.encapsulation(), other.local, port(other), &other.dev)
        && netns(one) == netns(other)
}

fn share_a_network(one: &TunnelSpec, other: &TunnelSpec) -> bool {
    let taken = other.ids();
    one.ids().iter().any(|(id, _)| taken.iter().any(|(other, _)| other == id))
}

/// Between `from` and `to`: everything as in `to`, but only the remotes that both have. It gets into nobody's way whom `from`
/// does not, nor into that of others on their own way.
pub(super) fn shrunk(from: &PortSettings, to: &PortSettings) -> PortSettings {
    let (before, after) = (&from.tunnel, &to.tunnel);
    let stays = |remote: &&std::net::IpAddr| before.remotes.contains(remote);
    let tunnel = TunnelSettings {
        remotes: after.remotes.iter().filter(stays).copied().collect(),
        strict_remotes: before.strict_remotes || after.strict_remotes,
        ..after.clone()
    };
    PortSettings { tunnel, ..to.clone() }
}
