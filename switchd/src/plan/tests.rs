//! Any layout to any other, all or none, untouched where nothing changed.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use vswitch::addr::VlanId;
use vswitch::spec::{
    DgramSpec, MacvtapLower, MacvtapMode, MacvtapSpec, Netns, Networks, PacketSpec, PortKind, SocketRole,
    StreamAddress, StreamSpec, TapSpec, TunnelSettings, TunnelSpec, VdeSpec, VhostUserSpec,
};
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

/// Of every kind but tunnels, of few names, interfaces, paths and addresses.
fn kind() -> impl Strategy<Value = PortKind> {
    let name = || prop::sample::select(vec!["i0", "i1", "i2", "i3"]).prop_map(str::to_owned);
    let path =
        || prop::sample::select(vec!["/s/0", "/s/1", "/s/2", "/s/2/ctl"]).prop_map(std::path::PathBuf::from);
    let role =
        || prop::bool::weighted(0.8).prop_map(|is| if is { SocketRole::Server } else { SocketRole::Client });
    let address = prop::sample::select(vec!["0.0.0.0:9", "127.0.0.1:9", "127.0.0.1:8", "[::]:9", "[::1]:9"]);
    let lower =
        name().prop_map(|ifname| MacvtapLower { ifname, mode: MacvtapMode::Bridge, mac: None, mtu: None });
    let stream = |address, role| PortKind::Stream(StreamSpec { address, role, mtu: 1500, mode: 0o660 });
    prop_oneof![
        2 => name().prop_map(|ifname| PortKind::Packet(PacketSpec { ifname, netns: None })),
        2 => (name(), 1500..1502u32)
            .prop_map(|(ifname, mtu)| PortKind::Tap(TapSpec { mtu: Some(mtu), ..TapSpec::new(ifname) })),
        2 => (name(), prop::option::weighted(0.7, lower)).prop_map(|(ifname, lower)| {
            PortKind::Macvtap(MacvtapSpec { ifname, netns: None, lower, queues: None })
        }),
        1 => (path(), role()).prop_map(move |(path, role)| stream(StreamAddress::Unix(path), role)),
        2 => (address, role())
            .prop_map(move |(address, role)| stream(StreamAddress::Tcp(address.parse().unwrap()), role)),
        1 => path().prop_map(|path| PortKind::Dgram(DgramSpec { path, peer: None, mtu: 1500, mode: 0o660 })),
        1 => (path(), role()).prop_map(|(path, role)| PortKind::Vde(VdeSpec { path, role, mtu: 1500, mode: 0o660 })),
        2 => (path(), role())
            .prop_map(|(path, role)| PortKind::VhostUser(VhostUserSpec { path, role, queues: None, mtu: None, memory_max: None, own_thread: false })),
    ]
}

/// A valid layout: raw choices, made to fit.
fn layout() -> impl Strategy<Value = Layout> {
    let port = (any::<prop::sample::Index>(), any::<bool>(), vlan_mode(), any::<bool>(), kind(), tunnel());
    let ports = btree_map(0..6usize, port, 0..=6);
    let entries = vec((0..3u8, any::<prop::sample::Index>(), prop::option::of(1..5u16)), 0..4);
    let neighbours = vec((1..3u8, 1..3u8, any::<prop::sample::Index>(), 1..5u16), 0..4);
    (bridges(), ports, entries, neighbours).prop_map(|(bridges, raw, entries, neighbours)| {
        let mut layout = Layout { bridges, ..Layout::default() };
        if layout.bridges.is_empty() {
            return layout;
        }
        for (number, (bridge, is_tunnel, vlan, hairpin, kind, tunnel)) in raw {
            let bridge = bridge.get(&layout.bridges);
            let mut settings = PortSettings { hairpin, ..PortSettings::default() };
            let kind = if is_tunnel {
                settings.tunnel = tunnel.1;
                PortKind::Tunnel(tunnel.0)
            } else {
                kind
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
            let same = |n: &NeighSpec| (&n.bridge, n.vlan, n.address) == (&one.bridge, one.vlan, one.address);
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
    })
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

    /// Whatever a file says that is good by itself, it can be had by a reload; what is not is refused by itself, too. Here ports have the
    /// same few names in both, so that they take each other's places.
    #[test]
    fn a_reload_refuses_no_more_than_a_start(a in layout(), b in layout(), again in any::<prop::sample::Index>()) {
        let mut b = b;
        // Sometimes two of `b` collide.
        if let Some(port) = (!b.ports.is_empty()).then(|| again.get(&b.ports).clone()) {
            let name = format!("{}x", port.name);
            if again.index(3) == 0 {
                b.ports.push(PortSpec { name, ..port });
            }
        }
        let fresh = Model::default();
        let from_nothing = apply(&fresh, &plan(&Layout::default(), &b, &BTreeSet::new()), Missing::Wait);
        let model = built(&a);
        let reloaded = apply(&model, &plan(&a, &b, &BTreeSet::new()), Missing::Wait);
        prop_assert_eq!(from_nothing.is_ok(), reloaded.is_ok(), "{:?} {:?}", from_nothing, reloaded);
        let expected = if reloaded.is_ok() { &b } else { &a };
        prop_assert_eq!(sorted(&model.inner().layout), sorted(expected));
    }

    /// What only the kernel knows to be one: two paths of a socket, two names of an interface or of its namespace.
    #[test]
    fn what_goes_anyway_makes_room(old in 0..3usize, new in 0..3usize, others in 0..3usize) {
        let kind = |which: usize, name: &str| match which {
            0 => PortKind::VhostUser(VhostUserSpec {
                path: format!("/{name}/s").into(), role: SocketRole::Server, queues: None, mtu: None,
                memory_max: None, own_thread: false,
            }),
            1 => PortKind::Tap(TapSpec { netns: Some(Netns(name.to_owned())), ..TapSpec::new("i") }),
            _ => PortKind::Packet(PacketSpec { ifname: name.to_owned(), netns: None }),
        };
        let port = |name: &str, kind| PortSpec {
            name: name.to_owned(), bridge: "a".to_owned(), kind, settings: PortSettings::default(),
        };
        let layout = |ports| Layout { bridges: vec![BridgeSpec::new("a")], ports, ..Layout::default() };
        let mut a = layout(vec![port("p", kind(old, "one"))]);
        let mut b = layout(vec![port("q", kind(new, "other"))]);
        for other in 0..others {
            let tap = |name: String| port(&name, PortKind::Tap(TapSpec::new(name.as_str())));
            a.ports.push(tap(format!("o{other}")));
            b.ports.push(tap(format!("n{other}")));
        }
        let model = built(&a);
        model.inner().one_and_the_same = Some(("p".to_owned(), "q".to_owned()));
        let done = apply(&model, &plan(&a, &b, &BTreeSet::new()), Missing::Wait);
        // One of another sort cannot have it.
        prop_assert_eq!(done.is_ok(), old == new, "{:?}", done);
        prop_assert_eq!(sorted(&model.inner().layout), sorted(if old == new { &b } else { &a }));
        // Then no device is touched but those that came before.
        if old != new {
            let touched = &model.inner().devices_touched;
            prop_assert!(touched.iter().all(|name| name.starts_with('n')), "{:?}", touched);
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
                    places::is_in_the_way(old, new)
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
