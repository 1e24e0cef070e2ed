//! The addresses of interfaces that the switch makes.
//!
//! An interface that gets another MAC address at each start is another host to its neighbours, which lose it for as long as
//! they believe what they know: half a minute and more. So where the operator gave none, the address is worked out from what
//! stays the same: the machine, the switch on it, the bridge and the port. It is made by a function that may never
//! change, [`Identity::address`]; a test holds it to the byte.
//!
//! The machine's id is a secret (machine-id(5)), so it is the key of a keyed hash, SipHash-2-4, from which nobody
//! gets it back. Without such an id the addresses hold until the next boot.
//!
//! Two switches can come to the same address: on clones with one machine id, or in containers that have their host's,
//! if instance, bridge and port are called the same. Where they are on one network, the operator gives addresses.

use siphasher::sip::SipHasher24;

use crate::addr::MacAddr;
use crate::spec::{MacvtapMode, PortKind, PortSpec};
use crate::sys::machine::MachineId;

/// In front of what is hashed, for another function to be possible some day.
const TAG: &str = "vswitch interface address 1";

/// What stays the same of a switch when it starts again.
#[derive(Clone, Debug, Default)]
pub(super) struct Identity {
    key: Option<[u8; 16]>,
    instance: String,
}

impl Identity {
    /// That of the switch `instance` on this machine.
    pub(super) fn of(instance: &str) -> Identity {
        let key = match MachineId::read() {
            Some(MachineId::Lasting(id)) => Some(id),
            Some(MachineId::UntilBoot(id)) => {
                tracing::info!(
                    "this machine has no id (see machine-id(5)): interfaces made without --mac keep their addresses \
                     until the next boot only"
                );
                Some(id)
            }
            None => None,
        };
        Identity { key, instance: instance.to_owned() }
    }

    /// An individual address, locally administered: the first 46 bits of a hash, big endian. `None` leaves it to the kernel.
    fn address(&self, bridge: &str, port: &str) -> Option<MacAddr> {
        // None of the parts has a NUL in it, so it ends where it seems to.
        let text = [TAG, &self.instance, bridge, port].join("\0");
        let hash = SipHasher24::new_with_key(&self.key?).hash(text.as_bytes()).to_be_bytes();
        let mut mac = MacAddr([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5]]);
        mac.0[0] = mac.0[0] & 0xfc | 0x02;
        Some(mac)
    }

    /// A port as it is opened: with an address where the switch makes an interface and the operator gave none.
    pub(super) fn dress(&self, spec: &PortSpec) -> PortKind {
        let mut kind = spec.kind.clone();
        let mac = match &mut kind {
            PortKind::Tap(tap) | PortKind::Internal(tap) => Some(&mut tap.mac),
            // In the mode passthru it has the lower's.
            PortKind::Macvtap(macvtap) => {
                macvtap.lower.as_mut().filter(|lower| lower.mode != MacvtapMode::Passthru).map(|l| &mut l.mac)
            }
            _ => None,
        };
        if let Some(mac @ None) = mac {
            *mac = self.address(&spec.bridge, &spec.name);
        }
        kind
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{MacvtapLower, MacvtapSpec, PortSettings, TapSpec};

    fn identity(instance: &str) -> Identity {
        Identity { key: Some(*b"0123456789abcdef"), instance: instance.into() }
    }

    /// A changed address is a host that its neighbours lose: whoever changes this test changes everybody's.
    #[test]
    fn addresses_stay_what_they_are() {
        let address = identity("").address("br0", "host0").expect("one");
        assert_eq!(address.to_string(), "42:9e:67:a5:24:ed");
        let address = identity("/run/other.sock").address("br0", "host0").expect("one");
        assert_eq!(address.to_string(), "46:a4:df:b1:2e:74");
    }

    #[test]
    fn each_interface_has_its_own() {
        let mut seen = std::collections::HashSet::new();
        for instance in ["", "a", "b"] {
            for bridge in ["br0", "br1", "br"] {
                for port in (0..500).map(|n| format!("{n}p")) {
                    let mac = identity(instance).address(bridge, &port).expect("one");
                    assert!(mac.is_station() && mac.0[0] & 3 == 2, "{mac}");
                    assert!(seen.insert(mac));
                }
            }
        }
        assert_eq!(Identity::default().address("br0", "p"), None);
    }

    #[test]
    fn the_operators_choice_wins() {
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        let lower = |mode, mac| MacvtapLower { ifname: "eth0".into(), mode, mac, mtu: None };
        let macvtap =
            |lower| PortKind::Macvtap(MacvtapSpec { ifname: "mv".into(), netns: None, lower, queues: None });
        let tap = |mac| TapSpec { mac, ..TapSpec::new("t0") };
        let mine = identity("").address("br0", "t0");
        let dressed = |kind: PortKind| {
            let (name, bridge, settings) = ("t0".into(), "br0".into(), PortSettings::default());
            match identity("").dress(&PortSpec { name, bridge, kind, settings }) {
                PortKind::Tap(spec) | PortKind::Internal(spec) => spec.mac,
                PortKind::Macvtap(spec) => spec.lower.and_then(|lower| lower.mac),
                _ => None,
            }
        };
        assert_eq!(dressed(PortKind::Tap(tap(None))), mine);
        assert_eq!(dressed(PortKind::Internal(tap(None))), mine);
        assert_eq!(dressed(PortKind::Internal(tap(Some(mac)))), Some(mac));
        assert_eq!(dressed(macvtap(Some(lower(MacvtapMode::Bridge, None)))), mine);
        assert_eq!(dressed(macvtap(Some(lower(MacvtapMode::Private, Some(mac))))), Some(mac));
        assert_eq!(dressed(macvtap(Some(lower(MacvtapMode::Passthru, None)))), None);
        assert_eq!(dressed(macvtap(None)), None);
    }
}
