//! Ports that cannot be there at the same time: two on one interface, one socket, one place to listen at, one network of a tunnel.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use vswitch::spec::{Netns, PortSpec};

use super::tunnels;

/// Whether the switch refuses one of them while the other is there, as far as names tell. The kernel may know more: that two
/// names are one interface's, or two paths one file's.
pub(crate) fn collide(one: &PortSpec, other: &PortSpec) -> bool {
    one.shares(other, same_netns).is_some()
        || one.kind.shares_socket(&other.kind).is_some()
        || tunnels::collide(one, other)
}

/// Whether an old one has to go before a new one can come. That is so for some more than collide: what is made on an interface
/// that is about to go would go with it, and macvtaps on one interface may exclude each other by their modes.
pub(super) fn is_in_the_way(old: &PortSpec, new: &PortSpec) -> bool {
    old.name == new.name
        || collide(old, new)
        || interfaces(new).any(|new| interfaces(old).any(|old| old == new))
        || tunnels::is_in_the_way(old, new)
}

/// Whether an old one may hold what a new one needs under a name by which that cannot be told: two names of one interface that is
/// there by itself, two of one namespace, two paths to one folder.
pub(super) fn may_be_in_the_way(old: &PortSpec, new: &PortSpec) -> bool {
    let awaits = |port: &PortSpec| port.kind.awaited().is_some();
    let file = |port: &PortSpec| port.kind.socket_path().and_then(Path::file_name).map(OsStr::to_owned);
    let interface = |(_, name)| name;
    awaits(old) && awaits(new)
        || interfaces(new).map(interface).any(|new| interfaces(old).map(interface).any(|old| old == new))
        || file(new).is_some_and(|name| file(old) == Some(name))
        || tunnels::collide_in_one_namespace(old, new)
}

/// Whether both mean one namespace, as far as their names tell.
pub(crate) fn same_netns(one: &Option<Netns>, other: &Option<Netns>) -> bool {
    path(one) == path(other)
}

fn path(netns: &Option<Netns>) -> Option<PathBuf> {
    netns.as_ref().map(Netns::path)
}

/// The interfaces that a port is made of or stands on.
fn interfaces(port: &PortSpec) -> impl Iterator<Item = (Option<PathBuf>, &str)> {
    let (netns, ifname) = port.kind.interface().unzip();
    let names = ifname.into_iter().chain(port.kind.lower());
    names.map(move |name| (netns.and_then(path), name))
}
