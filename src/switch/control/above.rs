//! What is on top of a packet port's interface: macvlans, macvtaps, ipvlans, VLAN devices, a bridge.
//!
//! The drop at the interface's ingress that keeps the host silent comes before all of them, so they would get no frame, and
//! nothing would say so. Linux answers EBUSY where two want an interface's frames. So does `port add`, naming what is there.
//! What comes later cannot be refused: the port says it (`hint`), and the log does. The kernel tells of it by itself, by an event of
//! the interface below (NETDEV_CHANGEUPPER), whatever namespace the new device is in; so nothing is asked again and again.
//!
//! A device counts when the kernel has a handler for the interface's frames, when it is a VLAN device or what the interface belongs
//! to. One that only remembers the interface (a vxlan's `dev`) takes nothing from it.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use super::{Control, Error, Port, awaited, interface};
use crate::addr::PortId;
use crate::spec::{Netns, PortKind, PortSpec};
use crate::switch::namespaces::Place;
use crate::sys::netlink::{Link, Netlink};
use crate::sys::uppers::{Inspector, Upper, Uppers};
use crate::sys::{self, netns};

/// Kinds of device that take frames from the interface below, where the kernel cannot be asked for more.
const KINDS: [&str; 6] = ["macvlan", "macvtap", "ipvlan", "ipvtap", "vlan", "macsec"];

/// Where there is a handler for frames and no device that it is of.
const UNKNOWN: &str = "something that takes its frames";

/// Of a port: what is on top of its interface.
#[derive(Debug)]
pub(super) struct Above {
    /// It has to be looked at again.
    pub(super) is_stale: bool,
    /// What was there last time.
    seen: Option<String>,
    /// What was there twice in a row, and was told: a device that comes or goes does so in steps.
    devices: Option<String>,
}

impl Default for Above {
    /// When a port is opened nothing is there, but it may have come before anything of the interface was heard.
    fn default() -> Self {
        Above { is_stale: true, seen: None, devices: None }
    }
}

/// How to look: made when the first packet port is.
#[derive(Default, Debug)]
pub(super) struct Inspection(OnceCell<Option<Inspector>>);

impl Inspection {
    fn inspector(&self) -> Option<&Inspector> {
        let load = || match Inspector::load() {
            Ok(inspector) => Some(inspector),
            Err(error) => {
                tracing::info!(
                    "{error}: of what is on top of the interfaces of packet ports only the kinds that vswitchd knows are \
                     seen, in the interface's own namespace"
                );
                None
            }
        };
        self.0.get_or_init(load).as_ref()
    }

    /// What takes frames of these interfaces, one of `place`, in words; `None` for one that is not shared.
    fn look(&self, place: &Place, netlink: &Netlink, links: &[&Link]) -> sys::Result<Vec<Option<String>>> {
        let here = netlink.netns()?;
        let indices: Vec<u32> = links.iter().map(|link| link.index).collect();
        let found = match self.inspector() {
            Some(inspector) => inspector.look(place.as_ref().map(|_| here.as_fd()), &indices)?,
            None => {
                let (all, (_, inode)) = (netlink.links()?, netns::identity_of(here.as_fd())?);
                indices.iter().map(|&index| Some(by_kind(&all, inode, index))).collect()
            }
        };
        let words = |below: u32, uppers: Uppers| {
            let counts = |upper: &&Upper| uppers.has_handler || upper.is_vlan || upper.is_master;
            let devices = uppers.devices.iter().filter(counts);
            let mut words: Vec<String> =
                devices.filter_map(|upper| describe(upper, below, netlink, &here)).collect();
            if words.is_empty() && uppers.has_handler {
                words.push(UNKNOWN.to_owned());
            }
            if uppers.more && !words.is_empty() {
                words.push("others".to_owned());
            }
            (!words.is_empty()).then(|| words.join(", "))
        };
        Ok(indices.into_iter().zip(found).map(|(below, uppers)| words(below, uppers?)).collect())
    }
}

/// The same by what netlink tells of the interfaces' own namespace, whose inode number this is.
fn by_kind(links: &[Link], inode: u64, index: u32) -> Uppers {
    let is_on = |link: &&Link| {
        let known = link.kind.as_deref().is_some_and(|kind| KINDS.contains(&kind));
        known && link.link == Some(index) && link.link_netnsid.is_none()
    };
    let upper = |link: &Link| Upper {
        name: link.name.clone(),
        index: link.index,
        netns_inode: u32::try_from(inode).unwrap_or_default(),
        is_vlan: true,
        is_master: false,
    };
    Uppers { devices: links.iter().filter(is_on).map(upper).collect(), ..Uppers::default() }
}

/// Its kind and name, and where it is when that is elsewhere. `None` for one that only remembers the interface `below`, as far as can be known:
/// it is not the one that it is linked to.
fn describe(upper: &Upper, below: u32, netlink: &Netlink, here: &OwnedFd) -> Option<String> {
    let inode = u64::from(upper.netns_inode);
    let is = |fd: &OwnedFd| netns::identity_of(fd.as_fd()).is_ok_and(|(_, there)| there == inode);
    let (link, place) = if is(here) {
        (netlink.link_by_index(upper.index).ok().flatten(), String::new())
    } else {
        let named = netns::list().unwrap_or_default().into_iter().map(Netns).find_map(|name| {
            let fd = netns::open(&name).ok().filter(is)?;
            let there = Netlink::open_in(Some(fd.as_fd())).and_then(|there| there.link_by_index(upper.index));
            Some((there.ok().flatten(), format!(" in namespace '{name}'")))
        });
        named.unwrap_or_else(|| (None, format!(" in network namespace {inode} (see lsns -t net)")))
    };
    if !upper.is_master && link.as_ref().is_some_and(|link| link.link != Some(below)) {
        return None;
    }
    let kind = link.and_then(|link| link.kind);
    Some(format!("{} '{}'{place}", kind.as_deref().unwrap_or("device"), upper.name.escape_debug()))
}

impl Control {
    /// Refuses a packet port whose interface others have frames from.
    pub(super) fn check_above(&mut self, spec: &PortSpec) -> Result<(), Error> {
        let PortKind::Packet(packet) = &spec.kind else { return Ok(()) };
        let named = |error| Error::port(&spec.name, error);
        let netlink = self.namespaces.enter(&packet.netns).map_err(named)?;
        let Some(link) = netlink.link(&packet.ifname).map_err(named)? else { return Ok(()) };
        // What belongs to a bridge or bond, and what has no frames, is refused when it is opened.
        if link.master.is_some() || !link.ethernet {
            return Ok(());
        }
        let found = self.inspection.look(&packet.netns, netlink, &[&link]).map_err(named)?;
        match found.into_iter().next().flatten() {
            None => Ok(()),
            Some(devices) => Err(Error::Invalid(format!(
                "port '{}': interface '{1}' carries {devices}, which would get no frames any more; delete that and give \
                 its user a port of the bridge, or keep it and share the interface: --type macvtap --lower {1} --mode bridge",
                spec.name,
                link.name.escape_debug()
            ))),
        }
    }

    /// Looks at the interfaces of which something was heard.
    pub(super) fn look_above(&mut self) {
        let mut stale: HashMap<Place, Vec<PortId>> = HashMap::new();
        for (&id, port) in &mut self.ports {
            if port.open
                && std::mem::take(&mut port.above.is_stale)
                && let PortKind::Packet(packet) = &port.spec.kind
            {
                stale.entry(packet.netns.clone()).or_default().push(id);
            }
        }
        for (place, ids) in stale {
            let Some(netlink) = self.namespaces.get(&place) else { continue };
            let known = |id: PortId| Some((id, self.ports.get(&id)?.link.as_ref()?));
            let (ids, links): (Vec<_>, Vec<_>) = ids.into_iter().filter_map(known).unzip();
            match self.inspection.look(&place, netlink, &links) {
                Ok(found) => {
                    ids.into_iter().zip(found).for_each(|(id, devices)| self.found_above(id, devices))
                }
                Err(error) => tracing::debug!("{error}"),
            }
        }
    }

    fn found_above(&mut self, id: PortId, devices: Option<String>) {
        let Some(port) = self.ports.get_mut(&id) else { return };
        let above = &mut port.above;
        let settled = above.seen == devices;
        above.seen.clone_from(&devices);
        // When the last one goes the kernel tells of it before its handler is gone.
        above.is_stale = !settled || devices.as_deref() == Some(UNKNOWN);
        if !settled || above.devices == devices {
            return;
        }
        above.devices = devices;
        let name = &port.spec.name;
        match port.above_hint() {
            Some(hint) => tracing::warn!("port '{name}': {hint}"),
            None => tracing::info!("port '{name}': nothing else wants its interface's frames any more"),
        }
    }

    /// What an operator should know of a port's interface.
    pub(super) fn interface_hint(&self, port: &Port) -> Option<String> {
        let hints = [port.above_hint(), self.renamed_hint(port)];
        let hints: Vec<String> = hints.into_iter().flatten().collect();
        (!hints.is_empty()).then(|| hints.join("; "))
    }

    /// Of an interface that has not the configured name any more, not even beside another.
    fn renamed_hint(&self, port: &Port) -> Option<String> {
        let (place, name) = interface(&port.spec.kind).filter(|_| port.open)?;
        let link = port.link.as_ref().filter(|link| link.name != name)?;
        if awaited(&port.spec.kind) != Some(name) {
            return None;
        }
        let now = self.namespaces.get(&place)?.link(name).ok()?;
        now.is_none_or(|other| other.index != link.index).then(|| {
            format!(
                "its interface was '{name}' when the port was added and is called '{}' now; when it goes, the port waits \
                 for an interface called '{name}'",
                link.name.escape_debug()
            )
        })
    }
}

impl Port {
    fn above_hint(&self) -> Option<String> {
        let (link, devices) = (self.link.as_ref().filter(|_| self.open)?, self.above.devices.as_ref()?);
        Some(format!(
            "interface '{}' carries {devices}, where no frames arrive while it is a port; delete one of the two",
            link.name.escape_debug()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, kind: &str, below: Option<u32>, netnsid: Option<i32>) -> Link {
        Link {
            index,
            name: format!("{kind}{index}"),
            mac: None,
            mtu: 1500,
            up: true,
            running: true,
            ethernet: true,
            master: None,
            kind: Some(kind.to_owned()),
            link: below,
            link_netnsid: netnsid,
            txqlen: 0,
            group: 0,
            persistent: false,
            alias: None,
        }
    }

    #[test]
    fn without_the_kernels_word_kinds_are_known() {
        let links = [
            link(2, "veth", Some(7), None),
            link(3, "macvlan", Some(2), None),
            link(4, "vlan", Some(2), None),
            // The other end of a pair, a tunnel that remembers it, one on another, and one on what has its number elsewhere.
            link(7, "veth", Some(2), None),
            link(8, "gretap", Some(2), None),
            link(9, "macvtap", Some(7), None),
            link(10, "macvlan", Some(2), Some(0)),
        ];
        let names = |index: u32| {
            by_kind(&links, 1, index).devices.into_iter().map(|upper| upper.name).collect::<Vec<_>>()
        };
        assert_eq!(names(2), ["macvlan3", "vlan4"]);
        assert_eq!(names(7), ["macvtap9"]);
        assert!(names(3).is_empty());
    }
}
