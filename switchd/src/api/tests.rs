//! Requests as they are written become what the data plane is told, or one line.

use vswitch::spec::{BridgeSpec, Netns, PortKind, PortSettings, VlanMode};

use super::values::VlanList;
use super::*;

fn port(json: &str) -> PortAdd {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

fn tap(options: &str) -> PortAdd {
    port(&format!(r#"{{"name": "p1", "bridge": "br0", "type": "tap"{options}}}"#))
}

#[test]
fn a_bridge_gets_the_documented_defaults() {
    let add: BridgeAdd = serde_json::from_str(r#"{"name": "br0"}"#).unwrap();
    assert_eq!(add.to_spec().unwrap(), BridgeSpec::new("br0"));
    let set: BridgeSet = serde_json::from_str(r#"{"ageing_secs": 0, "default_pvid": 7}"#).unwrap();
    let changed = set.change(&BridgeSpec { fdb_max: 9, ..BridgeSpec::new("br0") }).unwrap();
    assert_eq!((changed.ageing_secs, changed.fdb_max, changed.default_pvid.get()), (0, 9, 7));
}

#[test]
fn a_tap_takes_everything() {
    let spec = tap(
        r#", "ifname": "t1", "netns": "ns1", "mac": "02:00:00:00:00:01", "mtu": 9000,
           "address": ["10.0.0.1/24", "fd00::1/64"], "gateway": "10.0.0.254", "queues": 2, "trunk": "10,20-21",
           "native": 5, "learning": false, "hairpin": true"#,
    )
    .to_spec()
    .unwrap();
    let PortKind::Tap(tap) = spec.kind else { panic!("{spec:?}") };
    assert_eq!((tap.ifname.as_str(), tap.netns), ("t1", Some(Netns("ns1".into()))));
    assert_eq!((tap.mtu, tap.queues, tap.offload, tap.addresses.len()), (Some(9000), Some(2), true, 2));
    let VlanMode::Trunk { vids, native } = &spec.settings.vlan else { panic!("{:?}", spec.settings) };
    assert_eq!((VlanList::from(vids).to_string().as_str(), native.map(|v| v.get())), ("10,20,21", Some(5)));
    assert!(!spec.settings.learning && spec.settings.flood && spec.settings.hairpin);
}

#[test]
fn the_interface_is_called_like_the_port() {
    let PortKind::Tap(tap) = tap("").to_spec().unwrap().kind else { panic!() };
    assert_eq!(tap.ifname, "p1");
}

#[test]
fn what_cannot_be_is_refused_with_its_name() {
    for (options, why) in [
        (r#", "ifname": "sixteen-bytes-is""#, "longer than 15 bytes"),
        (r#", "ifname": "a/b""#, "cannot name an interface"),
        (r#", "ifname": "tap%d""#, "cannot name an interface"),
        (r#", "ifname": """#, "cannot name an interface"),
        (r#", "netns": """#, "neither a name"),
        (r#", "mac": "01:00:00:00:00:01""#, "not a station's address"),
        (r#", "mac": "00:00:00:00:00:00""#, "not a station's address"),
        (r#", "mtu": 67"#, "MTU 67"),
        (r#", "mtu": 65536"#, "MTU 65536"),
        (r#", "queues": 0"#, "give 1 to 256"),
        (r#", "queues": 2, "no_offload": true"#, "has one queue"),
        (r#", "gateway": "10.0.0.1""#, "without an address"),
        (r#", "gateway": "10.0.0.1", "address": "fd00::1/64""#, "without an address"),
        (r#", "address": ["10.0.0.1/24", "10.0.0.1/24"]"#, "given twice"),
        (r#", "access": 5, "trunk": [6]"#, "excludes"),
        (r#", "access": 5, "native": 6"#, "excludes"),
        (r#", "native": 6"#, "for a trunk"),
        (r#", "trunk": []"#, "is empty"),
        (r#", "vlan": "default", "access": 5"#, "clears"),
    ] {
        let error = tap(options).to_spec().unwrap_err();
        assert!(
            error.contains(why) && error.contains("port 'p1'") && !error.contains('\n'),
            "{options}: {error}"
        );
    }
}

#[test]
fn a_path_is_refused_for_what_it_is() {
    for (path, why) in [
        (r"/run/a\tb", "it has a control character"),
        ("run/s", "begin it with /"),
        ("/run/", "a folder's path"),
        (&format!("/{}", "x".repeat(107)), "it is longer than 107 bytes"),
    ] {
        for kind in ["vhost-user", "stream", "dgram"] {
            let text = format!(r#"{{"name": "p", "bridge": "br0", "type": "{kind}", "path": "{path}"}}"#);
            let error = port(&text).to_spec().unwrap_err();
            assert!(error.contains(why) && error.contains("port 'p'"), "{kind}: {error}");
        }
    }
}

#[test]
fn names_must_fit_everywhere() {
    for bad in ["", "-p", "a b", "a/b", "..", "ü", "a\nb", "p'1", &"x".repeat(64)] {
        assert!(check_name("port", bad).is_err(), "{bad:?}");
    }
    for good in ["p1", "veth0@if5", "eth0.100", "a_b-c:d+e", &"x".repeat(63)] {
        assert!(check_name("port", good).is_ok(), "{good}");
    }
    for dots in [".", ".."] {
        let error = check_name("port", dots).unwrap_err();
        assert!(error.contains("means a folder") && !error.contains("-_.:@+"), "{error}");
    }
    let long = r#""name": "a-rather-long-name", "bridge": "br0""#;
    for made in ["\"tap\"", "\"internal\"", "\"macvtap\", \"lower\": \"eth0\""] {
        let error = port(&format!("{{{long}, \"type\": {made}}}")).to_spec().unwrap_err();
        assert!(error.contains("15 bytes") && error.contains("--ifname"), "{error}");
    }
    // What exists may have such a name beside its own.
    let long = format!("{long}, \"ifname\": \"{}\"", "x".repeat(127));
    for there in ["packet", "macvtap"] {
        assert!(port(&format!("{{{long}, \"type\": \"{there}\"}}")).to_spec().is_ok(), "{there}");
        let longer = long.replace("xx\"", "xxx\"");
        let error = port(&format!("{{{longer}, \"type\": \"{there}\"}}")).to_spec().unwrap_err();
        assert!(error.contains("127 bytes"), "{error}");
    }
}

#[test]
fn addresses_are_those_of_stations() {
    let asked = |options: &str| {
        port(&format!(r#"{{"name": "p", "bridge": "br0", "type": "internal", {options}}}"#)).to_spec()
    };
    for bad in
        ["224.0.0.1/4", "ff02::1/64", "0.0.0.0/0", "::/0", "255.255.255.255/32", "127.0.0.1/8", "::1/128"]
    {
        let error = asked(&format!(r#""address": ["10.0.0.1/24", "{bad}"]"#)).unwrap_err();
        assert!(error.contains("port 'p'") && error.contains("no address of a station"), "{bad}: {error}");
    }
    let error = asked(r#""address": ["fd00::1/64"], "mtu": 1279"#).unwrap_err();
    assert!(error.contains("1279") && error.contains("1280"), "{error}");
    for good in [
        r#""address": ["fd00::1/64"], "mtu": 1280"#,
        r#""address": ["10.0.0.1/24"], "mtu": 68"#,
        r#""address": ["fe80::1/64", "169.254.1.1/16"]"#,
    ] {
        assert!(asked(good).is_ok(), "{good}");
    }
}

#[test]
fn macvtap_devices() {
    let asked = |options: &str| {
        let text = format!(r#"{{"name": "up", "bridge": "br0", "type": "macvtap"{options}}}"#);
        port(&text).to_spec()
    };
    let kind = |options: &str| match asked(options).unwrap().kind {
        PortKind::Macvtap(spec) => spec,
        other => panic!("{other:?}"),
    };
    let made = kind(r#", "lower": "eth1", "queues": 2, "netns": "x""#);
    assert_eq!((made.ifname.as_str(), made.queues, made.awaited()), ("up", Some(2), "eth1"));
    let lower = made.lower.unwrap();
    assert_eq!((lower.mode.name(), lower.mac, lower.mtu), ("passthru", None, None));
    let lower = kind(r#", "lower": "eth1", "mode": "bridge", "mac": "02:00:00:00:00:01", "mtu": 1400"#)
        .lower
        .unwrap();
    assert_eq!((lower.mode.name(), lower.mtu), ("bridge", Some(1400)));
    assert_eq!(kind(r#", "ifname": "mv0""#).awaited(), "mv0");
    for (options, why) in [
        (r#", "mode": "bridge""#, "'lower'"),
        (r#", "mtu": 1400"#, "'lower'"),
        (r#", "lower": "up""#, "two names"),
        (r#", "lower": "a b""#, "a b"),
        (r#", "lower": "eth1", "mode": "660""#, "passthru"),
        (r#", "lower": "eth1", "mac": "02:00:00:00:00:01""#, "'mac'"),
        (r#", "lower": "eth1", "mode": "vepa", "mac": "03:00:00:00:00:01""#, "station's"),
        (r#", "lower": "eth1", "queues": 257"#, "1 to 256"),
        (r#", "address": "10.0.0.1/24""#, "'address'"),
    ] {
        let error = asked(options).unwrap_err();
        assert!(error.contains(why) && error.contains("'up'"), "{options}: {error}");
    }
}

#[test]
fn options_of_another_type_are_refused() {
    for (kind, options) in [
        (
            "packet",
            &[r#""mac": "02:00:00:00:00:01""#, r#""mtu": 1500"#, r#""queues": 1"#, r#""no_offload": true"#]
                as &[_],
        ),
        ("packet", &[r#""address": ["10.0.0.1/24"]"#, r#""gateway": "10.0.0.1""#]),
        (
            "internal",
            &[r#""netns": "x""#, r#""queues": 1"#, r#""gateway": "10.0.0.1""#, r#""no_offload": true"#],
        ),
    ] {
        for option in options {
            let request = port(&format!(r#"{{"name": "p1", "bridge": "br0", "type": "{kind}", {option}}}"#));
            let error = request.to_spec().unwrap_err();
            assert!(error.contains("leave it out") && error.contains(kind), "{kind} {option}: {error}");
        }
    }
}

#[test]
fn unknown_fields_and_wrong_types_are_refused() {
    for bad in [
        r#"{"name": "p1", "bridge": "br0", "type": "tap", "colour": 1}"#,
        r#"{"name": "p1", "bridge": "br0", "type": "bond"}"#,
        r#"{"name": "p1", "bridge": "br0"}"#,
        r#"{"name": "p1", "bridge": "br0", "type": "tap", "learning": "off"}"#,
        r#"{"name": "p1", "bridge": "br0", "type": "tap", "access": 4095}"#,
        r#"{"name": "p1", "bridge": "br0", "type": "tap", "mtu": -1}"#,
        r#"{"name": 7, "bridge": "br0", "type": "tap"}"#,
        r#"{"name": "p1", "name": "p2", "bridge": "br0", "type": "tap"}"#,
        "[]",
        "",
    ] {
        assert!(serde_json::from_str::<PortAdd>(bad).is_err(), "{bad}");
    }
    assert!(
        serde_json::from_str::<BridgeSet>(r#"{"name": "br1"}"#).is_err(),
        "a bridge is not renamed by set"
    );
}

#[test]
fn set_changes_what_is_given() {
    let set =
        |json: &str, now: &PortSettings| serde_json::from_str::<PortSet>(json).unwrap().change("p1", now);
    let plain = PortSettings::default();
    let trunk = set(r#"{"trunk": [10, "20-21"], "native": 1, "isolated": true}"#, &plain).unwrap();
    assert!(trunk.isolated && trunk.learning);
    let quiet = set(r#"{"learning": false}"#, &trunk).unwrap();
    assert_eq!((&quiet.vlan, quiet.learning, quiet.isolated), (&trunk.vlan, false, true));
    let renumbered = set(r#"{"native": 2}"#, &trunk).unwrap();
    assert!(
        matches!(&renumbered.vlan, VlanMode::Trunk { native: Some(v), vids } if v.get() == 2 && vids.contains(20))
    );
    let without = set(r#"{"trunk": "10"}"#, &trunk).unwrap();
    assert!(
        matches!(without.vlan, VlanMode::Trunk { native: None, .. }),
        "trunk says everything about a trunk"
    );
    assert_eq!(set(r#"{"vlan": "default"}"#, &trunk).unwrap().vlan, VlanMode::Default);
    assert!(set(r#"{"native": 2}"#, &plain).unwrap_err().contains("port 'p1'"));
    assert!(PortSet::default().is_empty() && BridgeSet::default().is_empty());
}

#[test]
fn a_request_is_the_same_from_the_command_line_and_from_json() {
    use clap::Parser;
    let line = "vswitchctl port add p1 --bridge br0 --type tap --address 10.0.0.1/24 --trunk 10,20-21 --native 5 --flood off --no-offload";
    let crate::cli::Noun::Port(verb) = crate::cli::Cli::parse_from(line.split(' ')).noun else { panic!() };
    let crate::cli::PortVerb::Add { port: typed, .. } = *verb else { panic!() };
    let json = r#"{"name":"p1","bridge":"br0","type":"tap","address":["10.0.0.1/24"],"no_offload":true,"trunk":[10,20,21],"native":5,"flood":false}"#;
    assert_eq!(serde_json::to_string(&typed).unwrap(), json);
    assert_eq!(port(json), *typed);
}

#[test]
fn vlans_are_shown_as_they_take_effect() {
    let aware = BridgeSpec { vlan_filtering: true, ..BridgeSpec::new("br0") };
    let unaware = BridgeSpec::new("br0");
    let shown = |mode: &VlanMode, bridge| serde_json::to_string(&VlanInfo::new(mode, Some(bridge))).unwrap();
    assert_eq!(
        shown(&VlanMode::Default, &unaware),
        r#"{"mode":"none","access":null,"native":null,"trunk":[]}"#
    );
    assert_eq!(shown(&VlanMode::Default, &aware), r#"{"mode":"access","access":1,"native":null,"trunk":[]}"#);
    let trunk = tap(r#", "trunk": "3,1-2", "native": 4"#).to_spec().unwrap().settings.vlan;
    assert_eq!(shown(&trunk, &aware), r#"{"mode":"trunk","access":null,"native":4,"trunk":[1,2,3]}"#);
}

#[test]
fn a_missing_object_is_named_with_those_there_are() {
    assert_eq!(none_such("bridge", "br9", ["br1", "br0"]), "no bridge 'br9'; existing: br0, br1");
    assert!(none_such("port", "p", []).contains("vswitchctl port add"));
    let many: Vec<String> = (0..25).map(|n| format!("p{n:02}")).collect();
    assert!(none_such("port", "x", many.iter().map(String::as_str)).ends_with("p19 and 5 more"));
}

fn vxlan(options: &str) -> PortAdd {
    port(&format!(
        r#"{{"name": "vx0", "bridge": "br0", "type": "vxlan", "vni": 7, "local": "10.9.0.1"{options}}}"#
    ))
}

#[test]
fn a_type_of_service_is_text_and_a_number_is_understood() {
    use vswitch::spec::{Tos, TunnelSettings};
    for (asked, text, tos) in [
        (r#"184"#, "184", Tos::Fixed(184)),
        (r#""184""#, "184", Tos::Fixed(184)),
        (r#""0xb8""#, "184", Tos::Fixed(184)),
        (r#"0"#, "0", Tos::Fixed(0)),
        (r#""inherit""#, "inherit", Tos::Inherit),
    ] {
        let add = vxlan(&format!(r#", "tos": {asked}"#));
        assert_eq!(serde_json::to_value(&add).unwrap()["tos"], text, "as it is sent");
        let PortKind::Tunnel(spec) = add.to_spec().unwrap().kind else { panic!() };
        assert_eq!(spec.tos, tos);
        let shown = TunnelInfo::new(&spec, &TunnelSettings::default(), Vec::new());
        let shown = serde_json::to_value(shown).unwrap();
        assert_eq!(shown["tos"], text);
        serde_json::from_value::<TunnelInfo>(shown).unwrap();
        let toml = format!(
            "name = \"vx0\"\nbridge = \"br0\"\ntype = \"vxlan\"\nvni = 7\nlocal = \"10.9.0.1\"\ntos = {asked}\n"
        );
        assert_eq!(toml::from_str::<PortAdd>(&toml).unwrap(), add, "{toml}");
    }
    for bad in ["256", "-1", r#""256""#, r#""none""#, "true"] {
        let text = format!(r#"{{"name": "vx0", "bridge": "br0", "type": "vxlan", "tos": {bad}}}"#);
        assert!(serde_json::from_str::<PortAdd>(&text).is_err(), "{bad}");
    }
}

#[test]
fn none_takes_all_remotes_away() {
    use clap::Parser;
    let typed = |line: &str| {
        let crate::cli::Noun::Port(verb) = crate::cli::Cli::parse_from(line.split(' ')).noun else {
            panic!()
        };
        let crate::cli::PortVerb::Set { settings, .. } = *verb else { panic!() };
        // As it goes over the socket.
        serde_json::from_value::<PortSet>(serde_json::to_value(settings).unwrap()).unwrap()
    };
    let mut two = PortSettings::default();
    two.tunnel.remotes = vec![[10, 9, 0, 2].into(), [10, 9, 0, 3].into()];
    let changed = |set: PortSet| set.change("vx0", &two).map(|settings| settings.tunnel.remotes);
    assert_eq!(changed(typed("vswitchctl port set vx0 --remote none")), Ok(vec![]));
    assert_eq!(changed(typed("vswitchctl port set vx0 --learning off")), Ok(two.tunnel.remotes.clone()));
    assert_eq!(changed(typed("vswitchctl port set vx0 --remote 10.9.0.3")), Ok(vec![[10, 9, 0, 3].into()]));
    let beside = typed("vswitchctl port set vx0 --remote none --remote 10.9.0.3");
    assert!(changed(beside).unwrap_err().contains("port 'vx0': remote 'none'"));
    let wrong = crate::cli::Cli::try_parse_from(["vswitchctl", "port", "set", "vx0", "--remote", "nobody"]);
    assert!(wrong.unwrap_err().to_string().contains("neither an IP address nor 'none'"));
    for same in [r#""none""#, r#"["none"]"#, "[]"] {
        let set: PortSet = serde_json::from_str(&format!(r#"{{"remote": {same}}}"#)).unwrap();
        assert_eq!(changed(set), Ok(vec![]), "{same}");
        let spec = vxlan(&format!(r#", "remote": {same}"#)).to_spec().unwrap();
        assert_eq!(spec.settings.tunnel.remotes, Vec::<std::net::IpAddr>::new());
    }
}
