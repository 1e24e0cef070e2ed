//! Tunnels that cannot be there at the same time, and how one set of them becomes another.
//!
//! Packets are told apart by where they arrive (protocol, address, UDP port, interface, namespace) and by the number of their
//! network. Two ports may agree in both only if each takes packets of its own remotes alone, and they have none in common. So a port
//! that comes may have to wait until another has gone, and one that is given a remote until another has lost it.

use vswitch::spec::{Netns, PortKind, PortSettings, PortSpec, TunnelSettings, TunnelSpec};

/// Whether the switch refuses one of them while the other is there.
pub(super) fn collide(one: &PortSpec, other: &PortSpec) -> bool {
    tunnels(one, other).is_some() && collide_in_one_namespace(one, other)
}

/// The same, if their namespaces are one, whatever they are called.
pub(super) fn collide_in_one_namespace(one: &PortSpec, other: &PortSpec) -> bool {
    let (PortKind::Tunnel(here), PortKind::Tunnel(there)) = (&one.kind, &other.kind) else { return false };
    here.clash(&one.settings.tunnel, there, &other.settings.tunnel).is_some()
}

/// Whether an old one has to go before a new one can come.
pub(super) fn is_in_the_way(old: &PortSpec, new: &PortSpec) -> bool {
    collide(old, new) || tunnels(old, new).is_some_and(|(old, new)| old.may_send_from_port_of(new))
}

/// Both, if they are tunnels with their underlays in one namespace.
fn tunnels<'a>(one: &'a PortSpec, other: &'a PortSpec) -> Option<(&'a TunnelSpec, &'a TunnelSpec)> {
    let (PortKind::Tunnel(here), PortKind::Tunnel(there)) = (&one.kind, &other.kind) else { return None };
    let netns = |spec: &TunnelSpec| spec.netns.as_ref().map(Netns::path);
    (here.netns == there.netns || netns(here) == netns(there)).then_some((here, there))
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
