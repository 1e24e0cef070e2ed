//! Which VLANs a port carries, and what that makes of a tag (IEEE 802.1Q clauses 6.9 and 8.6).
//!
//! A bridge that does not filter never asks here. In one that does, each frame belongs to exactly one VLAN from the
//! moment it is admitted: the VID of its tag, or the port's PVID when it has none or only a priority tag (VID 0).

use crate::addr::{VlanId, VlanSet};
use crate::frame::TAG_LEN;
use crate::spec::VlanMode;

/// TPID of a customer VLAN tag.
pub const TPID_8021Q: u16 = 0x8100;
/// TPID of a service VLAN tag (802.1ad).
pub const TPID_8021AD: u16 = 0x88a8;

/// A port's VLANs, ready for the fast path.
#[derive(Clone, Debug, Default)]
pub struct VlanPolicy {
    /// VLAN of untagged and priority-tagged frames; 0: they are not admitted. Leaves untagged.
    pvid: u16,
    /// VLANs that are admitted tagged and leave tagged.
    tagged: VlanSet,
    /// Whether tagged frames are carried at all.
    trunk: bool,
}

/// How a frame leaves a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaves {
    /// Not at all: the port does not carry its VLAN.
    Not,
    /// Without a tag.
    Untagged,
    /// With a tag.
    Tagged,
}

impl VlanPolicy {
    /// What `mode` means in a bridge whose default PVID is `default_pvid`.
    #[must_use]
    pub fn new(mode: &VlanMode, default_pvid: VlanId) -> Self {
        match mode {
            VlanMode::Default => VlanPolicy::access(default_pvid),
            VlanMode::Access(vid) => VlanPolicy::access(*vid),
            VlanMode::Trunk { vids, native } => {
                let pvid = native.map_or(0, VlanId::get);
                VlanPolicy { pvid, tagged: vids.clone(), trunk: true }
            }
        }
    }

    fn access(vid: VlanId) -> Self {
        VlanPolicy { pvid: vid.get(), tagged: VlanSet::default(), trunk: false }
    }

    /// The VLAN of a received frame; `None` when it is not admitted. `tci` is that of an 802.1Q tag.
    #[inline]
    #[must_use]
    pub fn classify(&self, tci: Option<u16>) -> Option<u16> {
        let vid = tci.map_or(0, |tci| tci & 0xfff);
        if vid == 0 {
            return (self.pvid != 0).then_some(self.pvid);
        }
        // As in Linux and Open vSwitch, a trunk admits its native VLAN with a tag, too.
        (self.trunk && (self.tagged.contains(vid) || vid == self.pvid)).then_some(vid)
    }

    /// How a frame of VLAN `vid` leaves.
    #[inline]
    #[must_use]
    pub fn leaves(&self, vid: u16) -> Leaves {
        if vid == self.pvid {
            Leaves::Untagged
        } else if self.trunk && self.tagged.contains(vid) {
            Leaves::Tagged
        } else {
            Leaves::Not
        }
    }

    /// Every VLAN it carries, its PVID first.
    pub fn vids(&self) -> impl Iterator<Item = u16> + '_ {
        let tagged = self.tagged.iter().map(VlanId::get).filter(|_| self.trunk);
        Some(self.pvid).filter(|&vid| vid != 0).into_iter().chain(tagged)
    }

    /// Whether the far side may be a switch that believes tags, so that an inner tag must not come to light.
    #[inline]
    #[must_use]
    pub fn is_trunk(&self) -> bool {
        self.trunk
    }
}

/// The tag for VLAN `vid` with the priority bits (PCP and DEI) of `tci`, as on the wire.
#[inline]
#[must_use]
pub fn tag(vid: u16, tci: u16) -> [u8; TAG_LEN] {
    let [a, b] = TPID_8021Q.to_be_bytes();
    let [c, d] = ((tci & 0xf000) | (vid & 0xfff)).to_be_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vid(n: u16) -> VlanId {
        VlanId::new(n).expect("in range")
    }

    #[test]
    fn access_ports_take_untagged_and_priority_tagged_only() {
        let port = VlanPolicy::new(&VlanMode::Access(vid(10)), vid(1));
        assert_eq!(port.classify(None), Some(10));
        assert_eq!(port.classify(Some(0xe000)), Some(10));
        assert_eq!(port.classify(Some(10)), None, "even its own VLAN's tag");
        assert_eq!((port.leaves(10), port.leaves(11)), (Leaves::Untagged, Leaves::Not));
    }

    #[test]
    fn trunks_take_untagged_only_with_a_native_vlan() {
        let vids: VlanSet = [vid(10), vid(20)].into_iter().collect();
        let bare = VlanPolicy::new(&VlanMode::Trunk { vids: vids.clone(), native: None }, vid(1));
        assert_eq!(
            (bare.classify(None), bare.classify(Some(0)), bare.classify(Some(20))),
            (None, None, Some(20))
        );
        let native = VlanPolicy::new(&VlanMode::Trunk { vids, native: Some(vid(30)) }, vid(1));
        assert_eq!((native.classify(None), native.classify(Some(30))), (Some(30), Some(30)));
        assert_eq!(
            (native.leaves(30), native.leaves(10), native.leaves(1)),
            (Leaves::Untagged, Leaves::Tagged, Leaves::Not)
        );
    }

    #[test]
    fn priority_survives_in_a_tag() {
        assert_eq!(tag(20, 0xf00a), [0x81, 0x00, 0xf0, 20]);
    }

    proptest! {
        /// Whatever a port admits it also carries: nobody can send into a VLAN that he cannot hear.
        #[test]
        fn admitted_means_carried(pvid in 1u16..4095, native in proptest::option::of(1u16..4095),
                                  trunk in proptest::collection::vec(1u16..4095, 0..20), access: bool, tci: Option<u16>) {
            let mode = if access { VlanMode::Access(vid(pvid)) } else {
                VlanMode::Trunk { vids: trunk.iter().map(|&v| vid(v)).collect(), native: native.map(vid) }
            };
            let port = VlanPolicy::new(&mode, vid(1));
            if let Some(vlan) = port.classify(tci) {
                prop_assert!((1..4095).contains(&vlan));
                prop_assert_ne!(port.leaves(vlan), Leaves::Not);
            }
        }
    }
}
