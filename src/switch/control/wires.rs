//! Interfaces that are one wire: what comes by one comes by the other, too, so as two ports of a bridge they would be a loop.
//!
//! A macvtap device has the wire of the interface below it. Which that is the kernel says (IFLA_LINK); names do not, of a device that somebody
//! else made. So this is looked at whenever a port is opened, after the names were. Not seen are two devices in two namespaces on top of an
//! interface in a third.
//!
//! Nor is an interface its name: it may have several (`ip link property add … altname`), and another tomorrow. One that exists is
//! one port by its index and namespace.

use super::{Control, Port, awaited, interface, taken};
use crate::spec::{PortKind, PortSpec};
use crate::switch::Error;
use crate::switch::namespaces::same_place;
use crate::sys::netlink::Link;

/// The interface that frames come in by in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Wire {
    index: u32,
    /// What the namespace of the one above calls that of this one; `None` when it is the same.
    netns: Option<i32>,
}

impl Wire {
    fn of(link: &Link) -> Wire {
        // The kernel looks through macvlans on macvlans itself.
        match (link.kind.as_deref(), link.link) {
            (Some("macvtap" | "macvlan"), Some(index)) => Wire { index, netns: link.link_netnsid },
            _ => Wire { index: link.index, netns: None },
        }
    }
}

fn is_macvtap(kind: &PortKind) -> bool {
    matches!(kind, PortKind::Macvtap(_))
}

impl Control {
    /// Refuses a port that would have the wire of a macvtap port, or a macvtap port that would have another's. Two macvtaps on one interface may
    /// be on two bridges, and so may a macvtap and a macvlan.
    pub(super) fn check_wire(&mut self, spec: &PortSpec) -> Result<(), Error> {
        let (Some((place, _)), Some(name)) = (interface(&spec.kind), awaited(&spec.kind)) else {
            return Ok(());
        };
        let named = |error| Error::port(&spec.name, error);
        let netlink = self.namespaces.enter(&place).map_err(named)?;
        // Where there is none, opening says so.
        let Some(link) = netlink.link(name).map_err(named)? else { return Ok(()) };
        let device = |port: &&Port| {
            spec.kind.lower().is_none()
                && port.open
                && port.link.as_ref().is_some_and(|its| its.index == link.index)
                && (awaited(&port.spec.kind).is_some() || port.spec.bridge == spec.bridge)
                && port.interface().is_some_and(|(there, _)| same_place(&there, &place))
        };
        if let Some(port) = self.ports.values().find(device) {
            let also = (link.name != name).then(|| format!(" (which is '{}')", link.name.escape_debug()));
            return Err(taken(format_args!("'{name}'{}", also.unwrap_or_default()), false, port));
        }
        let wire = Wire::of(&link);
        let below = match wire {
            Wire { index, netns: None } if index != link.index => netlink.link_by_index(index).ok().flatten(),
            _ => None,
        };
        let is_wire = |link: &Link| wire.netns.is_none() && link.index == wire.index;
        let same = |port: &&Port| {
            let Some(its) = &port.link else { return false };
            let one = is_macvtap(&port.spec.kind) != is_macvtap(&spec.kind);
            let both = is_macvtap(&port.spec.kind) && is_macvtap(&spec.kind);
            // Beside each other, as two macvtaps or a macvtap and a macvlan, they may be on two bridges.
            let other = if is_macvtap(&spec.kind) { its } else { &link };
            let above = one && awaited(&port.spec.kind).is_some() && is_wire(other);
            (port.spec.bridge == spec.bridge && (one || both) || above)
                && Wire::of(its) == wire
                && port.interface().is_some_and(|(there, _)| same_place(&there, &place))
        };
        match self.ports.values().find(same) {
            None => Ok(()),
            Some(port) => {
                let ifname = below.map_or_else(|| name.to_owned(), |below| below.name);
                Err(taken(format_args!("'{ifname}'"), !port.link.as_ref().is_some_and(is_wire), port))
            }
        }
    }
}
