//! Requests and reloads against the model of the switch.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use vswitch::addr::MacAddr;

use super::*;
use crate::api::State;
use crate::config::DEFAULT_CONFIG;
use crate::control::model::Model;

/// A daemon, and a view into its switch.
fn daemon() -> (Daemon, Arc<Model>) {
    let model = Arc::new(Model::default());
    model.inner().interfaces.extend(["veth0", "veth1"].map(str::to_owned));
    (Daemon::new(model.clone(), &DaemonSection::default()), model)
}

fn json<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

macro_rules! request {
    ($($json:tt)+) => { json(serde_json::json!($($json)+)) };
}

fn with_bridge() -> (Daemon, Arc<Model>) {
    let (daemon, model) = daemon();
    daemon.add_bridge(&request!({"name": "br0"}), false).unwrap();
    (daemon, model)
}

#[test]
fn what_exists_is_added_only_if_it_may_and_is_the_same() {
    let (daemon, _) = with_bridge();
    let add =
        |request: serde_json::Value, may| daemon.add_bridge(&json(request), may).map_err(|e| e.to_string());
    let plain = serde_json::json!({"name": "br0"});
    let other = serde_json::json!({"name": "br0", "ageing_secs": 5});
    assert!(add(plain.clone(), false).unwrap_err().contains("bridge 'br0' exists already: use --may-exist"));
    add(plain, true).unwrap();
    let refused = add(other, true).unwrap_err();
    assert!(refused.contains("ageing is 300, not 5") && refused.contains("bridge set br0"), "{refused}");

    let port: PortAdd = request!({"name": "p", "bridge": "br0", "type": "tap", "address": "10.0.0.1/24"});
    let bare: PortAdd = request!({"name": "p", "bridge": "br0", "type": "tap"});
    daemon.add_port(&port, false).unwrap();
    assert!(matches!(daemon.add_port(&port, false), Err(Error::Exists(_))));
    daemon.add_port(&port, true).unwrap();
    let refused = daemon.add_port(&bare, true).unwrap_err().to_string();
    assert!(
        refused.contains("address is 10.0.0.1/24, not none") && refused.contains("port del p"),
        "{refused}"
    );
}

#[test]
fn what_is_absent_is_removed_only_if_it_need_not_exist() {
    let (daemon, _) = with_bridge();
    assert_eq!(
        daemon.del_bridge("br9", false, false).unwrap_err().to_string(),
        "no bridge 'br9'; existing: br0"
    );
    daemon.del_bridge("br9", false, true).unwrap();
    assert!(matches!(daemon.del_port("p", false), Err(Error::NotFound(_))));
    daemon.del_port("p", true).unwrap();
    let mac: Mac = "02:00:00:00:00:01".parse().unwrap();
    let key: FdbKey = request!({"bridge": "br0"});
    assert!(matches!(daemon.fdb_del(mac, &key, false), Err(Error::NotFound(_))));
    daemon.fdb_del(mac, &key, true).unwrap();
    assert!(matches!(daemon.fdb_del(mac, &request!({"bridge": "br9"}), false), Err(Error::NotFound(_))));
    daemon.fdb_del(mac, &request!({"bridge": "br9"}), true).unwrap();
}

#[test]
fn a_packet_port_of_run_time_needs_its_interface() {
    let (daemon, _) = with_bridge();
    let add =
        |ifname: &str| daemon.add_port(&request!({"name": ifname, "bridge": "br0", "type": "packet"}), false);
    assert!(matches!(add("nothing"), Err(Error::NotFound(_))));
    assert_eq!(add("veth0").unwrap().origin, Origin::Runtime);
    assert_eq!(daemon.ports().len(), 1, "the refused one is not there");
}

#[test]
fn static_stations_are_in_the_ports_vlan() {
    let (daemon, model) = daemon();
    daemon.add_bridge(&request!({"name": "br0", "vlan_filtering": true, "default_pvid": 7}), false).unwrap();
    daemon.add_port(&request!({"name": "a", "bridge": "br0", "type": "tap", "access": 10}), false).unwrap();
    daemon.add_port(&request!({"name": "d", "bridge": "br0", "type": "tap"}), false).unwrap();
    daemon
        .add_port(&request!({"name": "t", "bridge": "br0", "type": "tap", "trunk": "10-20"}), false)
        .unwrap();
    let add = |port: &str, vlan: Option<u16>, may| {
        daemon.fdb_add(&request!({"mac": "02:00:00:00:00:01", "port": port, "vlan": vlan}), may)
    };
    assert_eq!(add("a", None, false).unwrap().vlan, 10);
    assert_eq!(add("d", None, false).unwrap().vlan, 7);
    assert!(add("t", None, false).unwrap_err().to_string().contains("say which VLAN"));
    assert!(matches!(add("t", Some(10), false), Err(Error::Exists(_))), "it is behind port a");
    assert!(matches!(add("t", Some(10), true), Err(Error::Exists(_))));
    assert!(matches!(add("a", None, false), Err(Error::Exists(_))));
    assert_eq!(add("a", Some(10), true).unwrap().port, "a");

    let learned = Entry {
        bridge: "br0".into(),
        vlan: 11,
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        port: "t".into(),
        remote: None,
    };
    model.inner().learned.insert(learned);
    assert_eq!(
        add("t", Some(11), false).unwrap().state,
        crate::api::EntryState::Static,
        "a learned one becomes static"
    );

    let mac: Mac = "02:00:00:00:00:01".parse().unwrap();
    daemon.fdb_del(mac, &request!({"bridge": "br0", "vlan": 10}), false).unwrap();
    assert!(matches!(
        daemon.fdb_del(mac, &request!({"bridge": "br0", "vlan": 10}), false),
        Err(Error::NotFound(_))
    ));
    assert_eq!(model.inner().layout.entries.len(), 2);
    daemon.fdb_del(mac, &request!({"bridge": "br0"}), false).unwrap();
    assert!(model.inner().layout.entries.is_empty(), "without a VLAN it goes from all");
}

#[test]
fn a_bridge_without_vlans_takes_none() {
    let (daemon, _) = with_bridge();
    daemon.add_port(&request!({"name": "p", "bridge": "br0", "type": "tap"}), false).unwrap();
    let mac: Mac = "02:00:00:00:00:01".parse().unwrap();
    let refused =
        daemon.fdb_add(&request!({"mac": mac, "port": "p", "vlan": 5}), false).unwrap_err().to_string();
    assert!(refused.contains("bridge set br0 --vlan-filtering on"), "{refused}");
    assert!(matches!(
        daemon.fdb_del(mac, &request!({"bridge": "br0", "vlan": 5}), false),
        Err(Error::Invalid(_))
    ));
    // 0 is what 'fdb show' prints there.
    daemon.fdb_add(&request!({"mac": mac, "port": "p", "vlan": 0}), false).unwrap();
    assert_eq!(daemon.fdb(&request!({"vlan": 0})).unwrap().len(), 1);
    daemon.fdb_del(mac, &request!({"bridge": "br0", "vlan": 0}), false).unwrap();
    assert!(matches!(daemon.fdb(&request!({"bridge": "br9"})), Err(Error::NotFound(_))));
    assert!(matches!(daemon.fdb_flush(&request!({"port": "x"})), Err(Error::NotFound(_))));
    assert!(matches!(daemon.stats(Some("x")), Err(Error::NotFound(_))));
}

const TWO_PORTS: &str = r#"
[[bridge]]
name = "br0"
[[port]]
name = "p1"
bridge = "br0"
type = "tap"
[[port]]
name = "p2"
bridge = "br0"
type = "packet"
ifname = "not-there-yet"
[[fdb]]
mac = "02:00:00:00:00:01"
port = "p1"
"#;

/// A daemon started with `text` as its configuration, and the file.
fn configured(text: &str) -> (Daemon, Arc<Model>, tempfile::NamedTempFile) {
    let (daemon, model) = daemon();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    daemon.configure(&Config::read(file.path()).unwrap(), true).unwrap();
    model.inner().devices_touched.clear();
    (daemon, model, file)
}

#[test]
fn a_reload_touches_only_what_changed() {
    let (daemon, model, file) = configured(TWO_PORTS);
    daemon.add_port(&request!({"name": "mine", "bridge": "br0", "type": "tap"}), false).unwrap();
    assert_eq!(daemon.port("mine").unwrap().origin, Origin::Runtime);
    assert_eq!(daemon.port("p2").unwrap().origin, Origin::Configuration);
    assert_eq!(daemon.status().config, Some(file.path().display().to_string()));
    model.inner().devices_touched.clear();

    assert_eq!(daemon.reload().unwrap(), ReloadReport::default(), "nothing to do");

    let changed = TWO_PORTS
        .replace("name = \"p2\"", "name = \"p3\"")
        .replace("type = \"tap\"", "type = \"tap\"\nhairpin = true");
    fs::write(file.path(), changed).unwrap();
    let report = daemon.reload().unwrap();
    assert_eq!((report.added, report.removed), (vec!["port 'p3'".to_owned()], vec!["port 'p2'".to_owned()]));
    assert_eq!(report.changed, ["port 'p1'"]);
    assert_eq!(
        model.inner().devices_touched,
        ["p2", "p3"],
        "p1 keeps its device, 'mine' is nobody's business"
    );
    assert!(daemon.port("p1").unwrap().hairpin && daemon.port("mine").is_ok());
}

#[test]
fn a_port_that_the_kernel_refuses_keeps_no_other_from_starting() {
    let (daemon, model) = daemon();
    model.inner().refused.insert("p1".to_owned());
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), TWO_PORTS).unwrap();
    let config = Config::read(file.path()).unwrap();
    let refused = daemon.configure(&config, true).unwrap_err().to_string();
    assert!(refused.contains("port 'p1': the kernel refuses it"), "{refused}");
    assert!(daemon.ports().is_empty() && daemon.bridges().is_empty());

    daemon.configure(&config, false).unwrap();
    assert_eq!((daemon.status().failed_ports, daemon.status().ports), (vec!["p1".to_owned()], 2));
    let port = daemon.port("p1").unwrap();
    assert_eq!((port.state, port.origin), (State::Failed, Origin::Configuration));
    assert_eq!(daemon.fdb(&request!({"port": "p1"})).unwrap().len(), 1, "its station is configured");

    let report = daemon.reload().unwrap();
    assert!(
        report.added.is_empty() && report.warnings[0].contains("port 'p1': the kernel refuses it"),
        "{report:?}"
    );
    // A new one is refused, and nothing else is lost by that.
    model.inner().refused.insert("p3".to_owned());
    let other = "[[bridge]]\nname = \"br0\"\n[[port]]\nname = \"p3\"\nbridge = \"br0\"\ntype = \"tap\"\nifname = \"p1\"\n";
    fs::write(file.path(), other).unwrap();
    let refused = daemon.reload().unwrap_err().to_string();
    assert!(refused.contains("port 'p3'"), "{refused}");
    assert_eq!(daemon.status().failed_ports, ["p1"]);

    model.inner().refused.clear();
    fs::write(file.path(), TWO_PORTS).unwrap();
    assert_eq!(daemon.reload().unwrap(), ReloadReport::default());
    assert_eq!(daemon.port("p1").unwrap().state, State::Up);
}

#[test]
fn a_reload_brings_back_what_was_changed_at_run_time() {
    let (daemon, _, _file) = configured(TWO_PORTS);
    daemon.set_port("p1", &request!({"learning": false})).unwrap();
    daemon.del_port("p2", false).unwrap();
    daemon.reload().unwrap();
    assert!(daemon.port("p1").unwrap().learning);
    assert_eq!(daemon.port("p2").unwrap().origin, Origin::Configuration);
}

#[test]
fn a_reload_makes_lost_devices_anew() {
    let (daemon, model, _file) = configured(TWO_PORTS);
    model.inner().gone.extend(["p1", "p2"].map(str::to_owned));
    assert_eq!(
        daemon.reload().unwrap().changed,
        ["port 'p1'", "fdb entry 02:00:00:00:00:01 on bridge 'br0'"]
    );
    assert_eq!(model.inner().devices_touched, ["p1", "p1"], "a packet port comes back by itself");
    assert_eq!(model.inner().layout.entries.len(), 1, "its static stations are there again");
}

#[test]
fn static_stations_of_run_time_are_not_taken_away() {
    let (daemon, model, file) = configured(TWO_PORTS);
    let mac: Mac = "02:00:00:00:00:02".parse().unwrap();
    let origins = |daemon: &Daemon| -> Vec<(String, Option<Origin>)> {
        let all = daemon.fdb(&FdbSelect::default()).unwrap();
        all.into_iter().map(|entry| (entry.port, entry.origin)).collect()
    };
    daemon.fdb_add(&request!({"mac": mac, "port": "p2"}), false).unwrap();
    let (mine, theirs) =
        (("p2".to_owned(), Some(Origin::Runtime)), ("p1".to_owned(), Some(Origin::Configuration)));
    assert_eq!(origins(&daemon), [theirs.clone(), mine]);

    let entry = |port: &str| format!("{TWO_PORTS}[[fdb]]\nmac = \"02:00:00:00:00:02\"\nport = \"{port}\"\n");
    fs::write(file.path(), entry("p1")).unwrap();
    let refused = daemon.reload().unwrap_err().to_string();
    assert!(
        refused.contains("fdb entry 02:00:00:00:00:02") && refused.contains("behind port 'p2', not 'p1'"),
        "{refused}"
    );
    fs::write(file.path(), entry("p2")).unwrap();
    assert!(daemon.reload().unwrap().warnings[0].contains("fdb entry 02:00:00:00:00:02"), "taken over");
    assert_eq!(daemon.reload().unwrap(), ReloadReport::default());
    fs::write(file.path(), TWO_PORTS).unwrap();
    daemon.reload().unwrap();
    assert_eq!(origins(&daemon), [theirs], "the configuration's now, it goes with the file");
    assert_eq!(model.inner().devices_touched.len(), 0);
}

#[test]
fn stations_of_run_time_survive_a_device_that_is_made_anew() {
    let (daemon, model, file) = configured(TWO_PORTS);
    daemon.fdb_add(&request!({"mac": "02:00:00:00:00:02", "port": "p1"}), false).unwrap();
    fs::write(file.path(), TWO_PORTS.replace("type = \"tap\"", "type = \"tap\"\nmtu = 1400")).unwrap();
    daemon.reload().unwrap();
    assert_eq!(model.inner().devices_touched, ["p1", "p1"]);
    let origins: Vec<_> =
        daemon.fdb(&FdbSelect::default()).unwrap().into_iter().map(|entry| entry.origin).collect();
    assert_eq!(origins, [Some(Origin::Configuration), Some(Origin::Runtime)]);
    assert_eq!(daemon.reload().unwrap(), ReloadReport::default());
}

const TRUNK: &str = r#"
[[bridge]]
name = "br0"
vlan_filtering = true
[[port]]
name = "p1"
bridge = "br0"
type = "tap"
trunk = "20,30"
[[port]]
name = "p2"
bridge = "br0"
type = "tap"
"#;

/// Whatever a reload does to VLANs and ports: stations of run time are where they belong afterwards, and where they were when it
/// is refused at any step.
#[test]
fn stations_of_run_time_survive_changed_vlans() {
    let plain = TRUNK.replace("vlan_filtering = true\n", "").replace("trunk = \"20,30\"\n", "");
    let pvid = TRUNK.replace("vlan_filtering = true", "vlan_filtering = true\ndefault_pvid = 7");
    let renamed = TRUNK.replace("name = \"p1\"", "name = \"q1\"\nifname = \"p1\"");
    let (one, two) = (("p1", 20), ("p2", 1));
    for (text, expected) in [
        (&plain, vec![("p1", 0), ("p2", 0)]),
        (&pvid, vec![("p1", 20), ("p2", 7)]),
        (&renamed, vec![("p2", 1)]),
    ] {
        for step in 0..20 {
            let (daemon, model, file) = configured(TRUNK);
            daemon.fdb_add(&request!({"mac": "02:00:00:00:00:01", "port": "p1", "vlan": 20}), false).unwrap();
            daemon.fdb_add(&request!({"mac": "02:00:00:00:00:02", "port": "p2"}), false).unwrap();
            let places = || {
                let all = model.inner().layout.entries.clone().into_iter();
                let mut all: Vec<_> = all.map(|entry| (entry.port, entry.vlan)).collect();
                all.sort();
                all
            };
            let named = |list: &[(&str, u16)]| {
                list.iter().map(|(port, vlan)| ((*port).to_owned(), *vlan)).collect::<Vec<_>>()
            };
            fs::write(file.path(), text).unwrap();
            model.inner().fails_after = Some(step);
            let result = daemon.reload();
            let refused = model.inner().fails_after.take().is_none();
            assert_eq!(result.is_err(), refused, "{result:?}");
            if refused {
                assert_eq!(places(), named(&[one, two]), "refused at step {step}: {text}");
            } else {
                assert_eq!(places(), named(&expected), "{text}");
            }
        }
    }
}

/// A mode that was changed by hand has moved the configuration's stations to another VLAN; they are still its own.
#[test]
fn stations_are_known_again_in_another_vlan() {
    let (daemon, model, _file) = configured(TWO_PORTS);
    {
        let mut inner = model.inner();
        inner.layout.bridges[0].vlan_filtering = true;
        let mut entry = inner.layout.entries.pop_first().unwrap();
        entry.vlan = 1;
        inner.layout.entries.insert(entry);
    }
    let report = daemon.reload().unwrap();
    assert_eq!(report.changed, ["bridge 'br0'"]);
    assert_eq!(model.inner().layout.entries.iter().map(|entry| entry.vlan).collect::<Vec<_>>(), [0]);
}

#[test]
fn a_vlan_option_on_an_unaware_bridge_is_refused_however_often() {
    let (daemon, model) = with_bridge();
    daemon.add_port(&request!({"name": "p", "bridge": "br0", "type": "tap"}), false).unwrap();
    // Left from a time when the bridge filtered.
    model.inner().layout.ports[0].settings.vlan =
        vswitch::spec::VlanMode::Access(vswitch::addr::VlanId::new(10).unwrap());
    let refused = daemon.set_port("p", &request!({"access": 10})).unwrap_err().to_string();
    assert!(refused.contains("bridge set br0 --vlan-filtering on"), "{refused}");
    daemon.set_port("p", &request!({"learning": false})).unwrap();
    daemon.set_port("p", &request!({"vlan": "default"})).unwrap();
}

#[test]
fn a_refused_reload_changes_nothing() {
    let (daemon, model, file) = configured(TWO_PORTS);
    let before = format!("{:?}", model.inner().layout);
    let same = |daemon: &Daemon| {
        assert_eq!(format!("{:?}", model.inner().layout), before);
        fs::write(file.path(), TWO_PORTS).unwrap();
        assert_eq!(daemon.reload().unwrap(), ReloadReport::default());
    };

    fs::write(file.path(), format!("{TWO_PORTS}[[bridge]]\nname = \"br1\"\ncolour = 1")).unwrap();
    assert!(matches!(daemon.reload(), Err(Error::Invalid(_))));
    same(&daemon);

    fs::write(
        file.path(),
        format!(
            "{TWO_PORTS}[[bridge]]\nname = \"br1\"\n[[port]]\nname = \"q\"\nbridge = \"br1\"\ntype = \"tap\""
        ),
    )
    .unwrap();
    model.inner().fails_after = Some(1);
    let refused = daemon.reload().unwrap_err().to_string();
    let place = format!("{}:18: port", file.path().display());
    assert!(refused.starts_with(&place), "{refused} does not start with {place}");
    same(&daemon);

    fs::remove_file(file.path()).unwrap();
    assert!(daemon.reload().unwrap_err().to_string().contains("cannot read configuration"));
    same(&daemon);
}

#[test]
fn names_taken_at_run_time_are_not_taken_away() {
    let (daemon, _, file) = configured(TWO_PORTS);
    daemon.add_port(&request!({"name": "q", "bridge": "br0", "type": "tap"}), false).unwrap();
    let with_q = format!("{TWO_PORTS}[[port]]\nname = \"q\"\nbridge = \"br0\"\ntype = \"tap\"\n");
    fs::write(file.path(), format!("{with_q}mtu = 9000")).unwrap();
    let refused = daemon.reload().unwrap_err().to_string();
    assert!(
        refused.contains(":16: port 'q' was added at run time")
            && refused.contains("mtu is default, not 9000"),
        "{refused}"
    );

    fs::write(file.path(), with_q).unwrap();
    assert!(daemon.reload().unwrap().warnings[0].contains("port 'q'"), "the same port is taken over");
    assert_eq!(daemon.port("q").unwrap().origin, Origin::Configuration);
}

#[test]
fn a_bridge_with_ports_of_run_time_is_not_taken_away() {
    let (daemon, _, file) = configured(TWO_PORTS);
    daemon.add_port(&request!({"name": "q", "bridge": "br0", "type": "tap"}), false).unwrap();
    fs::write(file.path(), "").unwrap();
    let refused = daemon.reload().unwrap_err().to_string();
    assert!(refused.contains("bridge 'br0'") && refused.contains("port 'q'"), "{refused}");
    daemon.del_port("q", false).unwrap();
    assert_eq!(daemon.reload().unwrap().removed.len(), 4);
    assert!(daemon.bridges().is_empty());
}

#[test]
fn settings_of_the_daemon_need_a_restart() {
    let (daemon, _, file) = configured(TWO_PORTS);
    fs::write(file.path(), format!("[daemon]\nworkers = 3\npoll = \"busy\"\n{TWO_PORTS}")).unwrap();
    let warnings = daemon.reload().unwrap().warnings;
    assert_eq!(warnings, ["[daemon] workers, poll changed: restart vswitchd for it to take effect"]);
}

#[test]
fn without_a_configuration_there_is_nothing_to_reload() {
    let (daemon, _) = daemon();
    if !Path::new(DEFAULT_CONFIG).exists() {
        assert!(daemon.reload().unwrap_err().to_string().contains(DEFAULT_CONFIG));
    }
}

#[test]
fn neighbours_belong_to_the_configuration_or_to_run_time() {
    let bridge = |filtering: bool, pvid: u16| {
        format!("[[bridge]]\nname = \"br0\"\nvlan_filtering = {filtering}\ndefault_pvid = {pvid}\n")
    };
    let neigh = |number: u8| {
        format!(
            "[[neigh]]\naddress = \"10.0.0.{number}\"\nmac = \"02:00:00:00:00:0{number}\"\nbridge = \"br0\"\n"
        )
    };
    let text = format!("{}{}", bridge(true, 1), neigh(1));
    let (daemon, model, file) = configured(&text);
    let add = |number: u8, vlan: Option<u16>| {
        let mac = format!("02:00:00:00:00:0{number}");
        let request =
            request!({"address": format!("10.0.0.{number}"), "mac": mac, "bridge": "br0", "vlan": vlan});
        daemon.neigh_add(&request, false)
    };
    assert!(matches!(add(1, None), Err(Error::Exists(_))));
    add(2, None).unwrap();
    add(3, Some(7)).unwrap();
    let all = || {
        let all = daemon.neighbours(&Default::default()).unwrap().into_iter();
        let mut all: Vec<_> =
            all.map(|one| (one.address.to_string(), one.vlan, one.origin.unwrap())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    let one = |number: u8, vlan, origin| (format!("10.0.0.{number}"), vlan, origin);
    let (ours, theirs) = (Origin::Configuration, Origin::Runtime);
    assert_eq!(all(), [one(1, 1, ours), one(2, 1, theirs), one(3, 7, theirs)]);

    // They follow the default VLAN, by request and by reload.
    daemon.set_bridge("br0", &request!({"default_pvid": 5})).unwrap();
    assert_eq!(all(), [one(1, 5, ours), one(2, 5, theirs), one(3, 7, theirs)]);
    fs::write(file.path(), format!("{}{}", bridge(true, 9), neigh(1))).unwrap();
    daemon.reload().unwrap();
    assert_eq!(all(), [one(1, 9, ours), one(2, 9, theirs), one(3, 7, theirs)]);

    // A refused reload leaves each where it was.
    let before = format!("{:?}", model.inner().layout);
    fs::write(file.path(), format!("{}{}{}", bridge(false, 9), neigh(1), neigh(4))).unwrap();
    for steps in 0..8 {
        model.inner().fails_after = Some(steps);
        assert!(daemon.reload().is_err(), "{steps} steps");
        assert_eq!(format!("{:?}", model.inner().layout), before, "{steps} steps");
    }
    model.inner().fails_after = None;
    daemon.reload().unwrap();
    assert_eq!(all(), [one(1, 0, ours), one(2, 0, theirs), one(3, 0, theirs), one(4, 0, ours)]);

    daemon.neigh_del("10.0.0.4".parse().unwrap(), &request!({"bridge": "br0"}), false).unwrap();
    daemon.neigh_del("10.0.0.4".parse().unwrap(), &request!({"bridge": "br0"}), true).unwrap();
    assert!(daemon.neigh_del("10.0.0.4".parse().unwrap(), &request!({"bridge": "br0"}), false).is_err());
    assert_eq!(daemon.reload().unwrap().added, ["neighbour 10.0.0.4 on bridge 'br0'"]);
    fs::write(file.path(), "").unwrap();
    daemon.reload().unwrap();
    assert!(model.inner().layout.neighbours.is_empty(), "they go with their bridge");
}

/// Attaches as `uid`, with devices of the model.
fn attach(daemon: &Daemon, model: &Model, uid: u32, bridge: &str) -> Result<String, String> {
    let peer = vswitch::sys::peer::Peer { pid: 42, uid: Some(uid), groups: vec![uid] };
    let make = |name: &str, purpose: &Purpose| {
        assert_eq!((purpose.bridge.as_str(), purpose.holder.uid), (bridge, uid));
        if !model.inner().interfaces.insert(name.to_owned()) {
            return Err(Error::Exists(name.to_owned()));
        }
        Ok(fs::File::open("/dev/null").unwrap().into())
    };
    daemon.attach(bridge, &peer, &make).map(|(name, _)| name).map_err(|error| error.to_string())
}

#[test]
fn guests_attach_by_the_rules_of_the_configuration() {
    let (daemon, model) = daemon();
    let configure = |rules: &str| {
        let text = format!("[[bridge]]\nname = \"br0\"\n{rules}");
        daemon.configure(&Config::parse(Path::new("/F"), &text).unwrap(), true).unwrap()
    };
    configure("");
    assert_eq!(attach(&daemon, &model, 0, "br0").unwrap(), "vtap0");
    let told = |bridge: &str| {
        format!(
            "uid 3999999999 (groups 3999999999) is not admitted to bridge '{bridge}': ask the administrator of this host for an attach rule"
        )
    };
    // The same whether there is such a bridge or not.
    for bridge in ["br0", "br9"] {
        assert_eq!(attach(&daemon, &model, 3_999_999_999, bridge).unwrap_err(), told(bridge));
    }
    let refused = attach(&daemon, &model, 0, "br9").unwrap_err();
    assert_eq!(refused, "no bridge 'br9'; existing: br0");
    // The reload leaves the guest alone, and its rule is in force.
    let report = configure("[[attach]]\nuser = 3999999999\nbridge = \"all\"\n");
    assert!(report.removed.is_empty() && report.warnings.is_empty(), "{report:?}");
    assert_eq!(attach(&daemon, &model, 3_999_999_999, "br0").unwrap(), "vtap1");
    let port = daemon.port("vtap1").unwrap();
    assert_eq!(
        (port.origin, port.attached.map(|holder| holder.uid)),
        (Origin::Attached, Some(3_999_999_999))
    );

    // Its name cannot become the configuration's meanwhile.
    let text =
        "[[bridge]]\nname = \"br0\"\n[[port]]\nname = \"vtap1\"\nbridge = \"br0\"\ntype = \"packet\"\n";
    let refused = daemon.configure(&Config::parse(Path::new("/F"), text).unwrap(), true).unwrap_err();
    assert_eq!(refused.to_string(), "/F:3: port 'vtap1' is a guest's: give this one another name");

    // It leaves by itself, and what then has its name is not a guest's.
    model.inner().layout.ports.retain(|port| port.name != "vtap1");
    daemon.add_port(&request!({"name": "vtap1", "bridge": "br0", "type": "packet"}), false).unwrap();
    assert_eq!(daemon.port("vtap1").unwrap().origin, Origin::Runtime);
    assert_eq!(
        attach(&daemon, &model, 0, "br0").unwrap(),
        "vtap2",
        "a name that is free as port and interface"
    );
}

/// Who is admitted to some bridges learns of those, and of no others.
#[test]
fn a_user_hears_of_its_own_bridges_only() {
    let (daemon, model) = daemon();
    let bridges = "[[bridge]]\nname = \"br0\"\n[[bridge]]\nname = \"secret\"\n";
    let rules = "[[attach]]\nuser = 7\nbridge = \"br0\"\n[[attach]]\nuser = 7\nbridge = \"later\"\n";
    daemon.configure(&Config::parse(Path::new("/F"), &format!("{bridges}{rules}")).unwrap(), true).unwrap();
    assert_eq!(attach(&daemon, &model, 7, "later").unwrap_err(), "no bridge 'later'; existing: br0");
    for bridge in ["secret", "none"] {
        let told = attach(&daemon, &model, 7, bridge).unwrap_err();
        assert!(
            told.starts_with(&format!("uid 7 (groups 7) is not admitted to bridge '{bridge}'")),
            "{told}"
        );
    }
    // What the switch says names others' ports.
    let peer = vswitch::sys::peer::Peer { pid: 42, uid: Some(7), groups: vec![7] };
    let make = |_: &str, _: &Purpose| Err(Error::Invalid("as port 'other' of bridge 'secret'".to_owned()));
    let told = daemon.attach("br0", &peer, &make).map(|_| ()).unwrap_err().to_string();
    assert!(told.contains("bridge 'br0'") && !told.contains("secret") && !told.contains("other"), "{told}");
}

#[test]
fn a_rule_bounds_its_guests_and_their_memory() {
    let (daemon, model) = daemon();
    let rule = |limits: &str| {
        format!("[[bridge]]\nname = \"br0\"\n[[attach]]\ngroup = 7\nbridge = \"br0\"\n{limits}")
    };
    let configure = |limits: &str| {
        daemon.configure(&Config::parse(Path::new("/F"), &rule(limits)).unwrap(), true).unwrap();
    };
    let detach = |name: &str| {
        daemon.del_port(name, false).unwrap();
        model.inner().interfaces.remove(name);
    };
    // As users of subordinate ids, who are in the groups of their person.
    let attach_as = |uid: u32| {
        let peer = vswitch::sys::peer::Peer { pid: 42, uid: Some(uid), groups: vec![uid, 7] };
        let make = |name: &str, _: &Purpose| {
            if !model.inner().interfaces.insert(name.to_owned()) {
                return Err(Error::Exists(name.to_owned()));
            }
            Ok(fs::File::open("/dev/null").unwrap().into())
        };
        daemon.attach("br0", &peer, &make).map(|(name, _)| name).map_err(|error| error.to_string())
    };
    configure("");
    for number in 0..64 {
        assert_eq!(attach(&daemon, &model, 7, "br0").unwrap(), format!("vtap{number}"));
    }
    let told = attach(&daemon, &model, 7, "br0").unwrap_err();
    assert!(told.contains("uid 7 has 64 guests attached, user_ports_max"), "{told}");
    attach(&daemon, &model, 0, "br0").unwrap();
    detach("vtap9");
    assert_eq!(attach(&daemon, &model, 7, "br0").unwrap(), "vtap9");
    (0..192).for_each(|number| drop(attach_as(100_000 + number).unwrap()));
    let told = attach_as(200_000).unwrap_err();
    assert!(
        told.contains(
            "256 guests are attached by the rule '[[attach]] group = 7 bridge = br0', its ports_max"
        ),
        "{told}"
    );
    let shown = &daemon.attach_rules()[0];
    assert_eq!((shown.ports, shown.ports_max, shown.user_ports_max), (256, 256, 64));
    assert_eq!((daemon.status().attached_ports, daemon.status().attached_ports_max), (257, 2048));

    // A limit that is lowered sends nobody away.
    configure("ports_max = 3\n");
    assert_eq!(daemon.attach_rules()[0].ports, 256);
    (0..257).for_each(|number| detach(&format!("vtap{number}")));

    // Memory by what ports take: also the first of all, of which nothing is known before it is there.
    model.inner().ring_bytes = 3 << 20;
    configure("memory_max_mib = 8\n");
    attach_as(1).unwrap();
    attach_as(2).unwrap();
    let told = attach_as(3).unwrap_err();
    assert!(told.contains("take 6 MiB of ring memory, and another one 3 MiB"), "{told}");
    assert_eq!(daemon.attach_rules()[0].memory_bytes, 6 << 20);
    ["vtap0", "vtap1"].into_iter().for_each(detach);
    configure("memory_max_mib = 2\n");
    assert!(attach_as(1).unwrap_err().contains("memory_max_mib of 2"));
    assert!(daemon.ports().is_empty(), "the port that was tried is gone");
}

/// Whatever the rules of all users together allow, half of the switch is the operator's.
#[test]
fn guests_leave_room_for_the_operator() {
    let (daemon, model) = daemon();
    let rules: String = (1..=9)
        .map(|user| {
            format!("[[attach]]\nuser = {user}\nbridge = \"br0\"\nports_max = 2048\nuser_ports_max = 2048\n")
        })
        .collect();
    let text = format!("[[bridge]]\nname = \"br0\"\n{rules}");
    daemon.configure(&Config::parse(Path::new("/F"), &text).unwrap(), true).unwrap();
    let device = |number: u32| {
        let name = format!("vtap{number}");
        model.inner().interfaces.insert(name.clone());
        let holder = crate::api::Holder { uid: 1 + number % 2, pid: 1 };
        let purpose = Purpose { bridge: "br0".to_owned(), holder, groups: Vec::new(), socket: "/s".into() };
        (name, purpose)
    };
    daemon.take_over((0..2048).map(device).collect(), &|_, _| Ok(()));
    let told = attach(&daemon, &model, 3, "br0").unwrap_err();
    assert!(told.contains("2048 guests are attached"), "{told}");
    attach(&daemon, &model, 0, "br0").unwrap();
}

/// After a reload, and when vswitchd is started where it was killed, rules are asked again.
#[test]
fn whom_no_rule_admits_any_more_is_detached() {
    let bridges = "[[bridge]]\nname = \"br0\"\n";
    let rule = |rule: &str| format!("[[attach]]\n{rule}\nbridge = \"br0\"\n");
    let (daemon, model, file) = configured(&format!("{bridges}{}{}", rule("user = 7"), rule("group = 8")));
    for (uid, name) in [(7, "vtap0"), (8, "vtap1"), (0, "vtap2")] {
        assert_eq!(attach(&daemon, &model, uid, "br0").unwrap(), name);
    }
    let names = |daemon: &Daemon| daemon.ports().into_iter().map(|port| port.name).collect::<Vec<_>>();
    // A reload that is refused detaches nobody.
    fs::write(file.path(), format!("{bridges}[[bridge]]\nname = \"br1\"\n")).unwrap();
    model.inner().fails_after = Some(0);
    daemon.reload().unwrap_err();
    model.inner().fails_after = None;
    assert_eq!(names(&daemon), ["vtap0", "vtap1", "vtap2"]);

    fs::write(file.path(), format!("{bridges}{}", rule("group = 8"))).unwrap();
    let report = daemon.reload().unwrap();
    assert_eq!(report.removed, ["port 'vtap0'"]);
    assert_eq!(
        report.warnings,
        ["port 'vtap0' was detached: no [[attach]] rule admits uid 7 to bridge 'br0' any more"]
    );
    assert_eq!(names(&daemon), ["vtap1", "vtap2"]);
    assert_eq!(daemon.reload().unwrap(), ReloadReport::default());

    // The next vswitchd, with what is written on the devices.
    let (daemon, model) = self::daemon();
    daemon
        .configure(&Config::parse(Path::new("/F"), &format!("{bridges}{}", rule("group = 8"))).unwrap(), true)
        .unwrap();
    let left = [(7, vec![7]), (8, vec![8, 9]), (9, vec![8]), (0, vec![])].into_iter().enumerate();
    let left = left.map(|(number, (uid, groups))| {
        let name = format!("vtap{number}");
        model.inner().interfaces.insert(name.clone());
        let holder = crate::api::Holder { uid, pid: 1 };
        (name, Purpose { bridge: "br0".to_owned(), holder, groups, socket: "/s".into() })
    });
    let removed = std::sync::Mutex::new(Vec::new());
    let remove = |name: &str, _: &Purpose| {
        removed.lock().unwrap().push(name.to_owned());
        Ok(())
    };
    daemon.take_over(left.collect(), &remove);
    assert_eq!(names(&daemon), ["vtap1", "vtap2", "vtap3"]);
    assert_eq!(*removed.lock().unwrap(), ["vtap0"]);

    // While a user of a rule cannot be found, nothing is taken away for good.
    let rules = rule("user = \"no-such-user\"");
    daemon.configure(&Config::parse(Path::new("/F"), &format!("{bridges}{rules}")).unwrap(), true).unwrap();
    let holder = crate::api::Holder { uid: 7, pid: 1 };
    let purpose = Purpose { bridge: "br0".to_owned(), holder, groups: Vec::new(), socket: "/s".into() };
    daemon.take_over(vec![("vtap7".to_owned(), purpose)], &remove);
    assert_eq!(*removed.lock().unwrap(), ["vtap0"]);
    assert_eq!(names(&daemon), ["vtap3"], "of those who were there, root's");
}

/// A configuration of `ports` on a bridge, and what becomes of it by a reload to `others`, which may be refused at any step: all or
/// nothing. Returns the report of the one that is not, and the ports whose device was touched.
fn reloaded(ports: (&str, &str), others: (&str, &str)) -> (ReloadReport, Vec<String>) {
    let text = |(bridge, ports): (&str, &str)| format!("[[bridge]]\nname = \"br0\"\n{bridge}\n{ports}");
    for step in 0.. {
        let (daemon, model, file) = configured(&text(ports));
        let sorted = || {
            let mut layout = model.inner().layout.clone();
            layout.ports.sort_by(|a, b| a.name.cmp(&b.name));
            format!("{layout:?}")
        };
        let before = sorted();
        fs::write(file.path(), text(others)).unwrap();
        model.inner().fails_after = Some(step);
        match daemon.reload() {
            Ok(report) => {
                model.inner().fails_after = None;
                assert!(step > 0, "nothing was done");
                assert_eq!(daemon.reload().unwrap(), ReloadReport::default());
                let touched = model.inner().devices_touched.clone();
                return (report, touched);
            }
            Err(error) => {
                assert!(!error.to_string().contains("taking back"), "{error}");
                assert_eq!(sorted(), before, "refused at step {step}");
            }
        }
    }
    unreachable!("every reload has an end")
}

/// A tunnel port in TOML.
fn tunnel(name: &str, options: &str) -> String {
    format!("[[port]]\nname = \"{name}\"\nbridge = \"br0\"\nlocal = \"10.9.0.1\"\n{options}\n")
}

#[test]
fn a_mapped_tunnel_comes_back_when_its_bridge_has_to_filter_again() {
    let mapped = tunnel("vx0", "type = \"vxlan\"\nvni_map = \"20:1020,10:1010\"\nremote = \"10.9.0.2\"");
    let mapped = format!("{mapped}[[fdb]]\nmac = \"02:00:00:00:00:01\"\nport = \"vx0\"\nvlan = 20\n");
    let plain = tunnel("vx0", "type = \"vxlan\"\nvni = 1010\nremote = \"10.9.0.2\"");
    let filtering = "vlan_filtering = true";
    for other in ["", &plain] {
        let (report, _) = reloaded((filtering, &mapped), ("", other));
        assert!(report.changed.contains(&"bridge 'br0'".to_owned()), "{report:?}");
        reloaded(("", other), (filtering, &mapped));
    }
}

#[test]
fn a_tunnel_is_renamed() {
    let options = "type = \"vxlan\"\nvni = 100\nremote = \"10.9.0.2\"";
    let (report, _) = reloaded(("", &tunnel("vx0", options)), ("", &tunnel("vxnew", options)));
    assert_eq!(
        (report.added, report.removed),
        (vec!["port 'vxnew'".to_owned()], vec!["port 'vx0'".to_owned()])
    );
}

#[test]
fn tunnels_swap_their_remotes_while_they_run() {
    let two = |a: &str, b: &str| {
        let gre = |name: &str, remotes: &str| {
            tunnel(name, &format!("type = \"gretap\"\nkey = 7\nremote = [{remotes}]"))
        };
        let station = |number: u8, port: &str, remotes: &str| {
            let first = remotes.split(',').next().unwrap();
            format!("[[fdb]]\nmac = \"02:00:00:00:00:0{number}\"\nport = \"{port}\"\nremote = {first}\n")
        };
        [gre("g1", a), gre("g2", b), station(1, "g1", a), station(2, "g2", b)].concat()
    };
    let (one, other) = ("\"10.9.0.2\"", "\"10.9.0.3\"");
    let both = format!("{one}, {other}");
    let (report, touched) = reloaded(("", &two(one, other)), ("", &two(other, one)));
    assert_eq!(report.changed[..2], ["port 'g1'", "port 'g2'"], "each once: {report:?}");
    assert_eq!(touched, Vec::<String>::new(), "no port is made anew");
    // From one to the other, and to one whose other end goes.
    let (_, touched) =
        reloaded(("", &two(&both, "\"10.9.0.4\"")), ("", &two(one, "\"10.9.0.4\", \"10.9.0.3\"")));
    assert_eq!(touched, Vec::<String>::new());
    let alone = tunnel("g2", &format!("type = \"gretap\"\nkey = 7\nremote = [{one}]"));
    let (report, touched) = reloaded(("", &two(one, other)), ("", &alone));
    assert_eq!((report.changed, touched), (vec!["port 'g2'".to_owned()], vec!["g1".to_owned()]));
}

/// Its VLANs are those of its map: the bridge's default PVID is none of its business.
#[test]
fn stations_of_run_time_stay_in_the_vlans_of_a_mapped_tunnel() {
    let ports = tunnel("vx0", "type = \"vxlan\"\nvni_map = \"1:1001,10:1010\"\nremote = \"10.9.0.2\"");
    let text = |pvid: u16| {
        format!("[[bridge]]\nname = \"br0\"\nvlan_filtering = true\ndefault_pvid = {pvid}\n{ports}")
    };
    let (daemon, model, file) = configured(&text(1));
    let add = |number: u8, vlan: Option<u16>| {
        let mac = format!("02:00:00:00:00:0{number}");
        daemon.fdb_add(&request!({"mac": mac, "port": "vx0", "vlan": vlan}), false)
    };
    assert!(add(1, None).unwrap_err().to_string().contains("say which VLAN"));
    assert!(add(1, Some(7)).unwrap_err().to_string().contains("but 1, 10"));
    assert_eq!((add(1, Some(1)).unwrap().vlan, add(2, Some(10)).unwrap().vlan), (1, 10));
    fs::write(file.path(), text(7)).unwrap();
    daemon.reload().unwrap();
    let vlans: Vec<u16> = model.inner().layout.entries.iter().map(|entry| entry.vlan).collect();
    assert_eq!(vlans, [1, 10]);
}
