//! Interfaces by the names that ports have for them, and which ports cannot have them together.

use super::{Netns, PortKind, PortSpec};

/// An interface that two ports want.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shared<'a> {
    /// Its name, as the second port has it.
    pub ifname: &'a str,
    /// It is the lower of the first port.
    pub below: bool,
}

impl PortKind {
    /// The namespace (`None`: the switch's own) and the name of the interface that the port is made of.
    #[must_use]
    pub fn interface(&self) -> Option<(&Option<Netns>, &str)> {
        match self {
            PortKind::Tap(spec) | PortKind::Internal(spec) => Some((&spec.netns, &spec.ifname)),
            PortKind::Packet(spec) => Some((&spec.netns, &spec.ifname)),
            PortKind::Macvtap(spec) => Some((&spec.netns, &spec.ifname)),
            PortKind::Mem(_)
            | PortKind::Tunnel(_)
            | PortKind::Stream(_)
            | PortKind::Dgram(_)
            | PortKind::Vde(_)
            | PortKind::VhostUser(_) => None,
        }
    }

    /// Name of the interface that has to be there before the port, and whose coming brings the port back.
    #[must_use]
    pub fn awaited(&self) -> Option<&str> {
        match self {
            PortKind::Packet(spec) => Some(&spec.ifname),
            PortKind::Macvtap(spec) => Some(spec.awaited()),
            _ => None,
        }
    }

    /// Name of the interface below a macvtap device that the switch makes.
    #[must_use]
    pub fn lower(&self) -> Option<&str> {
        match self {
            PortKind::Macvtap(spec) => spec.lower.as_ref().map(|lower| lower.ifname.as_str()),
            _ => None,
        }
    }
}

impl PortSpec {
    /// The interface that this port and `other` cannot both have, judged by names alone. `same_place` tells whether two
    /// namespaces are one.
    ///
    /// The one pair that makes sense is a TAP of one bridge whose host end is a packet port of another; on the same bridge
    /// its frames would go round for ever. A macvtap and its lower are one wire: as two ports they would have every frame
    /// twice. So are two macvtaps on one lower, which may well be on two bridges.
    #[must_use]
    pub fn shares<'a>(
        &self,
        other: &'a PortSpec,
        same_place: impl Fn(&Option<Netns>, &Option<Netns>) -> bool,
    ) -> Option<Shared<'a>> {
        let ((there, name), (place, ifname)) = (self.kind.interface()?, other.kind.interface()?);
        let exists = |kind: &PortKind| kind.awaited().is_some();
        let same_bridge = self.bridge == other.bridge;
        let (theirs, ours) = (self.kind.lower(), other.kind.lower());
        let shared = if name == ifname && (exists(&self.kind) == exists(&other.kind) || same_bridge) {
            Some(Shared { ifname, below: false })
        } else if ours == Some(name) && (exists(&self.kind) || same_bridge) {
            ours.map(|ifname| Shared { ifname, below: false })
        } else if theirs == Some(ifname) && (exists(&other.kind) || same_bridge) {
            Some(Shared { ifname, below: true })
        } else if ours == theirs && same_bridge {
            ours.map(|ifname| Shared { ifname, below: true })
        } else {
            None
        };
        shared.filter(|_| same_place(there, place))
    }
}
