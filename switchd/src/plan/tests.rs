//! Any layout to any other, all or none, untouched where nothing changed.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use vswitch::addr::VlanId;
use vswitch::spec::{Networks, PacketSpec, PortKind, TapSpec, TunnelSettings, TunnelSpec};
use vswitch::tunnel::encapsulation::Header;

use super::*;
use crate::control::model::Model;

fn bridges() -> impl Strategy<Value = Vec<BridgeSpec>> {
    let one = (0..3u32, any::<bool>(), 1..4u16).prop_map(|(ageing_secs, vlan_filtering, pvid)| BridgeSpec {
        ageing_secs,
        vlan_filtering,
        default_pvid: VlanId::new(pvid).unwrap(),
        ..BridgeSpec::new("")
    });
    btree_map(prop::sample::select(vec!["a", "b", "c"]), one, 0..=3).prop_map(|map| {
        map.into_iter().map(|(name, spec)| BridgeSpec { name: name.to_owned(), ..spec }).collect()
    })
}

fn vlan_mode() -> impl Strategy<Value = VlanMode> {
    let vid = (1..5u16).prop_map(|vid| VlanId::new(vid).unwrap());
    prop_oneof![
        Just(VlanMode::Default),
        vid.clone().prop_map(VlanMode::Access),
        (vec(vid.clone(), 1..3), prop::option::of(vid))
            .prop_map(|(vids, native)| VlanMode::Trunk { vids: vids.into_iter().collect(), native }),
    ]
}

/// Tunnels of few numbers, addresses and remotes: a good part of them are in each other's way.
fn tunnel() -> impl Strategy<Value = (TunnelSpec, TunnelSettings)> {
    let number = 1..3u32;
    let networks = prop_oneof![
        2 => number.clone().prop_map(Networks::One),
        1 => vec(number, 1..3).prop_map(|mut numbers| {
            numbers.sort_unstable();
            numbers.dedup();
            let map = numbers.into_iter().zip(1..).map(|(number, vid)| (VlanId::new(vid).unwrap(), number));
            Networks::ByVlan(map.collect())
        }),
    ];
    let remotes = prop::sample::subsequence(vec![2u8, 3, 4], 0..=2);
    (networks, prop::bool::weighted(0.1), remotes, prop::bool::weighted(0.9)).prop_map(
        |(networks, other_port, remotes, strict_remotes)| {
            let mut spec = TunnelSpec::new(Header::Vxlan, 0, [10, 9, 0, 1].into());
            spec.networks = networks;
            spec.udp.as_mut().unwrap().dstport += u16::from(other_port);
            let remotes = remotes.into_iter().map(|last| [10, 9, 0, last].into()).collect();
            (spec, TunnelSettings { remotes, strict_remotes, ..TunnelSettings::default() })
        },
    )
}

/// A valid layout: raw choices, made to fit.
fn layout() -> impl Strategy<Value = Layout> {
    let port = (any::<prop::sample::Index>(), 0..4u8, vlan_mode(), any::<bool>(), 0..2u32, tunnel());
    let ports = btree_map(0..5usize, port, 0..=5);
    let interfaces = Just(vec!["i0", "i1", "i2", "i3", "i4"]).prop_shuffle();
    let entries = vec((0..3u8, any::<prop::sample::Index>(), prop::option::of(1..5u16)), 0..4);
    let neighbours = vec((1..3u8, 1..3u8, any::<prop::sample::Index>(), 1..5u16), 0..4);
    (bridges(), ports, interfaces, entries, neighbours).prop_map(
        |(bridges, raw, interfaces, entries, neighbours)| {
            let mut layout = Layout { bridges, ..Layout::default() };
            if layout.bridges.is_empty() {
                return layout;
            }
            for (number, (bridge, kind, vlan, hairpin, mtu, tunnel)) in raw {
                let bridge = bridge.get(&layout.bridges);
                let ifname = interfaces[number].to_owned();
                let mut settings = PortSettings { hairpin, ..PortSettings::default() };
                let kind = match kind {
                    0 => PortKind::Packet(PacketSpec { ifname, netns: None }),
                    1 => PortKind::Tap(TapSpec { mtu: Some(1500 + mtu), ..TapSpec::new(ifname) }),
                    _ => {
                        settings.tunnel = tunnel.1;
                        PortKind::Tunnel(tunnel.0)
                    }
                };
                let mut port =
                    PortSpec { name: format!("p{number}"), bridge: bridge.name.clone(), kind, settings };
                let mapped = port.vlan_mode() != VlanMode::Default;
                if bridge.vlan_filtering && !mapped {
                    port.settings.vlan = vlan;
                }
                let taken = layout.ports.iter().any(|other| collide(&port, other));
                if !taken && (bridge.vlan_filtering || !mapped) {
                    layout.ports.push(port);
                }
            }
            for (last, mac, bridge, vlan) in neighbours {
                let bridge = bridge.get(&layout.bridges);
                let one = NeighSpec {
                    bridge: bridge.name.clone(),
                    vlan: if bridge.vlan_filtering { vlan } else { 0 },
                    address: [10, 0, 0, last].into(),
                    mac: MacAddr([2, 0, 0, 0, 0, mac]),
                    router: false,
                };
                let same =
                    |n: &NeighSpec| (&n.bridge, n.vlan, n.address) == (&one.bridge, one.vlan, one.address);
                if !layout.neighbours.iter().any(same) {
                    layout.neighbours.insert(one);
                }
            }
            for (mac, port, vlan) in entries.into_iter().filter(|_| !layout.ports.is_empty()) {
                let port = port.get(&layout.ports);
                let bridge = layout.bridges.iter().find(|bridge| bridge.name == port.bridge).unwrap();
                let remotes = &port.settings.tunnel.remotes;
                let is_tunnel = matches!(port.kind, PortKind::Tunnel(_));
                if is_tunnel && remotes.is_empty() {
                    continue;
                }
                let entry = Entry {
                    bridge: bridge.name.clone(),
                    vlan: if bridge.vlan_filtering { vlan.unwrap_or(1) } else { 0 },
                    mac: MacAddr([2, 0, 0, 0, 0, mac]),
                    port: port.name.clone(),
                    // Where there is one alone, it need not be named.
                    remote: remotes.get(usize::from(mac)).or(remotes.get(1)).copied(),
                };
                let same = |e: &Entry| (&e.bridge, e.vlan, e.mac) == (&entry.bridge, entry.vlan, entry.mac);
                if !layout.entries.iter().any(same) {
                    layout.entries.insert(entry);
                }
            }
            layout
        },
    )
}

/// A layout without the order of creation.
fn sorted(layout: &Layout) -> String {
    let mut layout = layout.clone();
    layout.bridges.sort_by(|a, b| a.name.cmp(&b.name));
    layout.ports.sort_by(|a, b| a.name.cmp(&b.name));
    format!("{layout:#?}")
}

fn built(layout: &Layout) -> Model {
    let model = Model::default();
    apply(&model, &plan(&Layout::default(), layout, &BTreeSet::new()), Missing::Wait).unwrap();
    model.inner().devices_touched.clear();
    model
}

proptest! {
    #[test]
    fn any_layout_becomes_any_other(a in layout(), b in layout()) {
        let model = built(&a);
        let steps = plan(&a, &b, &BTreeSet::new());
        apply(&model, &steps, Missing::Wait).map_err(|refused| TestCaseError::fail(format!("{refused:?}\n{steps:#?}")))?;
        prop_assert_eq!(sorted(&model.inner().layout), sorted(&b));

        for port in &a.ports {
            let same_device = b.ports.iter().any(|p| p.name == port.name && p.kind == port.kind && p.bridge == port.bridge);
            prop_assert_eq!(model.inner().devices_touched.contains(&port.name), !same_device, "{}", port.name);
        }
        prop_assert!(plan(&b, &b, &BTreeSet::new()).is_empty());
    }

    #[test]
    fn a_refused_plan_leaves_everything_as_it_was(a in layout(), b in layout(), at: prop::sample::Index) {
        let steps = plan(&a, &b, &BTreeSet::new());
        prop_assume!(!steps.is_empty());
        let model = built(&a);
        model.inner().fails_after = Some(at.index(steps.len()));
        let refused = apply(&model, &steps, Missing::Wait).unwrap_err();
        prop_assert!(refused.left.is_empty(), "{:?}", refused);
        prop_assert_eq!(sorted(&model.inner().layout), sorted(&a));
        // A device is touched only when it had to make room before what was refused could be tried.
        for port in &refused.rebuilt {
            let had_to = |step: &Step| matches!(step, Step::DelPort(_)) && step.to_string() == *port;
            let place = steps.iter().position(had_to).expect("a step");
            prop_assert!(place < at.index(steps.len()));
            prop_assert!(steps[place..].iter().any(|step| matches!(step, Step::AddPort(_) | Step::DelPort(_))));
        }
    }

    /// What may be refused by the kernel is tried before any device is removed, where names and interfaces allow it.
    #[test]
    fn devices_go_only_when_nothing_else_can_be_refused(a in layout(), b in layout()) {
        let steps = plan(&a, &b, &BTreeSet::new());
        let aware = |layout: &Layout, name: &str| {
            layout.bridges.iter().find(|bridge| bridge.name == name).map(|bridge| bridge.vlan_filtering)
        };
        // Its bridge could not change while it is there.
        let in_the_way = |port: &PortSpec| {
            let maps = port.settings.vlan == VlanMode::Default && port.vlan_mode() != VlanMode::Default;
            maps && aware(&b, &port.bridge) == Some(false)
        };
        let removes = |step: &Step| matches!(step, Step::DelPort(port) if !in_the_way(port));
        let Some(first) = steps.iter().position(removes) else { return Ok(()) };
        for step in &steps[first..] {
            let allowed = match step {
                Step::AddPort(new) => a.ports.iter().any(|old| {
                    let same_interface = interface(new).is_some() && interface(old) == interface(new);
                    old.name == new.name || same_interface || collide(new, old)
                }),
                Step::SetPort { name, to, .. } => b.ports.iter().any(|new| {
                    new.name == *name && new.settings == *to && a.ports.iter().any(|old| collide(new, old))
                }),
                Step::AddEntry(entry) => {
                    steps.iter().any(|step| matches!(step, Step::DelPort(port) if port.name == entry.port))
                        || steps[first..].iter().any(|step| match step {
                            Step::AddPort(PortSpec { name, .. }) | Step::SetPort { name, .. } => *name == entry.port,
                            _ => false,
                        })
                }
                Step::DelPort(_) | Step::DelBridge(_) => true,
                _ => false,
            };
            prop_assert!(allowed, "{} after a port was removed", step);
        }
    }
}
