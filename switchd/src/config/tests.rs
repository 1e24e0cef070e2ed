//! Files as people write them, and worse.

use proptest::prelude::*;
use vswitch::spec::VlanMode;

use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("F"), text)
}

#[test]
fn the_sample_of_the_documentation() {
    let config = parse(
        r#"
[daemon]
workers = "auto"
poll = "adaptive"

[[bridge]]
name = "br0"
ageing_secs = 300
vlan_filtering = true

[[port]]
name = "p1"
bridge = "br0"
type = "packet"
access = 10

[[port]]
name = "p2"
bridge = "br0"
type = "tap"
address = "10.0.0.1/24"
trunk = [10, "20-30"]

[[fdb]]
mac = "02:00:00:00:00:05"
port = "p1"
"#,
    )
    .unwrap();
    assert_eq!(config.daemon.options().workers, None);
    assert_eq!(config.layout.bridges[0].ageing_secs, 300);
    assert!(matches!(config.layout.ports[0].settings.vlan, VlanMode::Access(vid) if vid.get() == 10));
    assert_eq!(
        config.layout.entries.first().map(|entry| (entry.vlan, entry.port.as_str())),
        Some((10, "p1"))
    );
    assert_eq!(config.place_of("port 'p2'"), "F:17: ");
}

#[test]
fn the_packaged_sample_is_valid() {
    let text = include_str!("../../../packaging/vswitchd.toml");
    parse(text).unwrap();
    // The lines that are there to be uncommented are valid too.
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') && !rest.is_empty() => rest,
            _ => line,
        })
        .collect();
    let config = parse(&uncommented.join("\n")).unwrap();
    assert!(!config.layout.ports.is_empty() && !config.layout.entries.is_empty());
    assert!(!config.layout.neighbours.is_empty() && config.attach.len() == 2);
}

#[test]
fn who_may_attach() {
    let parsed = |rule: &str| parse(&format!("\n[[attach]]\n{rule}\n"));
    for (rule, user, group) in [
        ("user = \"alice\"\nbridge = \"br0\"", Some("alice"), None),
        ("group = 36\nbridge = \"all\"", None, Some("36")),
        ("user = \"1000\"\ngroup = \"kvm\"\nbridge = \"br0\"", Some("1000"), Some("kvm")),
    ] {
        let rule = parsed(rule).unwrap().attach.remove(0);
        assert_eq!(rule.user.map(|user| user.to_string()).as_deref(), user);
        assert_eq!(rule.group.map(|group| group.to_string()).as_deref(), group);
    }
    let rule = parsed("user = 1\nbridge = \"br0\"").unwrap().attach.remove(0);
    assert_eq!((rule.ports_max(), rule.user_ports_max(), rule.memory_max_mib()), (256, 64, 512));
    let limits = "ports_max = 10\nmemory_max_mib = 7";
    let rule = parsed(&format!("user = 1\nbridge = \"br0\"\n{limits}")).unwrap().attach.remove(0);
    assert_eq!((rule.ports_max(), rule.user_ports_max(), rule.memory_max_mib()), (10, 10, 7));
    for (rule, told) in [
        ("bridge = \"br0\"", "F:2: an attach rule needs 'user' or 'group'"),
        ("user = \"alice\"", "missing field `bridge`"),
        ("user = \"alice\"\nbridge = \"a/b\"", "F:2: 'a/b' cannot name a bridge"),
        ("user = \"a b\"\nbridge = \"br0\"", "'a b' is not the name of a user or group"),
        ("user = -1\nbridge = \"br0\"", "F:3:"),
        ("user = 4294967296\nbridge = \"br0\"", "F:3:"),
        ("user = [1]\nbridge = \"br0\"", "a user or group, by name or number"),
        ("user = 1\nbridge = \"br0\"\ndeny = true", "unknown field `deny`"),
        (
            "user = 1\nbridge = \"br0\"\nports_max = 0",
            "F:2: an attach rule's ports_max is a number from 1 to 2048, not 0",
        ),
        ("user = 1\nbridge = \"br0\"\nports_max = 2049", "from 1 to 2048, not 2049"),
        (
            "user = 1\nbridge = \"br0\"\nports_max = 3\nuser_ports_max = 4",
            "user_ports_max is a number from 1 to 3, not 4",
        ),
        ("user = 1\nbridge = \"br0\"\nmemory_max_mib = 0", "memory_max_mib is a number from 1 to 1048576"),
    ] {
        let error = parsed(rule).unwrap_err();
        assert!(error.contains(told), "{rule}: {error}");
    }
}

#[test]
fn nothing_is_a_configuration_too() {
    let config = parse("").unwrap();
    assert!(config.layout.bridges.is_empty() && config.daemon == DaemonSection::default());
}

#[test]
fn mistakes_are_told_with_their_line() {
    let bridge = "[[bridge]]\nname = \"br0\"\n";
    for (text, told) in [
        ("[[bridge]]\nname = \"br0\"\ncolour = 1\n", "F:3: unknown field `colour`"),
        ("[bridges]\n", "F:1: unknown field `bridges`"),
        ("[daemon]\nworkers = 0\n", "F:2: '0' workers"),
        ("[daemon]\nworkers = \"many\"\n", "F:2: 'many' workers"),
        ("[daemon]\ncpus = [0, 0]\n", "F:2: '0,0' is not a list of CPUs"),
        ("[daemon]\nguest_memory_max = 0\n", "F:2: '0' is not a number of bytes such as"),
        ("[daemon]\nguest_memory_max = \"much\"\n", "F:2: 'much' is not a number of bytes such as"),
        ("[daemon]\npoll = \"never\"\n", "F:2: unknown variant `never`"),
        ("[daemon]\nlog = \"!!\"\n", "is not a log filter"),
        ("\n\n[[bridge]]\n", "F:3: missing field `name`"),
        (
            "[[bridge]]\nname = \"br0\"\nvlan_filtering = \"on\"\n",
            "F:3: invalid type: string \"on\", expected a boolean",
        ),
        ("[[bridge]]\nname = \"br0\"\ndefault_pvid = 4095\n", "F:3: 4095 is not a VLAN id"),
        (
            "[[bridge]]\nname = \"br0\"\n[[bridge]]\nname = \"br0\"\n",
            "F:3: bridge 'br0' is there twice, first in line 1",
        ),
        (
            "[[port]]\nname = \"p\"\nbridge = \"br9\"\ntype = \"tap\"\n",
            "F:1: port 'p': no bridge 'br9' in this file",
        ),
        ("[[bridge]]\nname = ", "F:2:"),
        ("= 1", "F:1:"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(told) && !error.contains('\n'), "{text:?}\n  {error}\n  {told}");
    }
    for (ports, told) in [
        (
            "[[port]]\nname = \"p\"\nbridge = \"br9\"\ntype = \"tap\"\n",
            "F:3: port 'p': no bridge 'br9'; existing: br0",
        ),
        (
            "[[port]]\nname = \"p\"\nbridge = \"br0\"\ntype = \"tap\"\naccess = 5\n",
            "F:3: port 'p' has VLAN options, but bridge 'br0' does not filter VLANs: give it 'vlan_filtering = true'",
        ),
        (
            "[[port]]\nname = \"p\"\nbridge = \"br0\"\ntype = \"vxlan\"\nlocal = \"10.0.0.1\"\nvni_map = \"10:1010\"\n",
            "F:3: port 'p' has VLAN options, but bridge 'br0' does not filter VLANs: give it 'vlan_filtering = true'",
        ),
        (
            "[[port]]\nname = \"p\"\nbridge = \"br0\"\ntype = \"bond\"\n",
            "F:6: unknown variant `bond`, expected one of `tap`",
        ),
        (
            "[[port]]\nname = \"p\"\nbridge = \"br0\"\ntype = \"packet\"\nmtu = 1500\n",
            "F:3: port 'p': 'mtu' is for",
        ),
        (
            "[[fdb]]\nmac = \"02:00:00:00:00:01\"\nport = \"p\"\n",
            "F:3: fdb entry 02:00:00:00:00:01: no port 'p'",
        ),
        (
            "[[bridge]]\nname = \"b\"\nvlan_filtering = true\n[[port]]\nname = \"p\"\nbridge = \"b\"\ntype = \"tap\"\n\
             trunk = \"10,20\"\n[[fdb]]\nmac = \"02:00:00:00:00:01\"\nport = \"p\"\nvlan = 30\n",
            "F:11: fdb entry 02:00:00:00:00:01: port 'p' does not carry VLAN 30, but 10, 20: choose one of these, or \
             change the port's VLANs",
        ),
        (
            "[[fdb]]\nmac = \"03:00:00:00:00:01\"\nport = \"p\"\n",
            "F:3: 03:00:00:00:00:01 is not a station's address",
        ),
    ] {
        let error = parse(&format!("{bridge}{ports}")).unwrap_err();
        assert!(error.contains(told) && !error.contains('\n'), "{ports:?}\n  {error}\n  {told}");
    }
}

#[test]
fn stations_behind_a_mapped_tunnel_are_in_its_vlans() {
    let text = |vlan: &str| {
        format!(
            "[[bridge]]\nname = \"b\"\nvlan_filtering = true\n[[port]]\nname = \"vx0\"\nbridge = \"b\"\ntype = \"vxlan\"\n\
             local = \"10.0.0.1\"\nremote = \"10.0.0.2\"\nvni_map = \"20:1020,10:1010\"\n\
             [[fdb]]\nmac = \"02:00:00:00:00:01\"\nport = \"vx0\"\n{vlan}\n"
        )
    };
    let vlans = |text: &str| parse(text).map(|config| config.layout.entries.first().map(|entry| entry.vlan));
    assert_eq!(vlans(&text("vlan = 10")), Ok(Some(10)));
    assert!(vlans(&text("vlan = 30")).unwrap_err().contains("does not carry VLAN 30, but 10, 20"));
    assert!(vlans(&text("")).unwrap_err().contains("say which VLAN"));
}

#[test]
fn one_interface_cannot_have_two_ports() {
    let text = |first: &str, second: &str| {
        format!(
            "[[bridge]]\nname = \"b\"\n[[port]]\nname = \"p\"\nbridge = \"b\"\ntype = \"tap\"\nifname = \"x\"\n{first}\n[[port]]\nname = \"q\"\nbridge = \"b\"\ntype = \"packet\"\nifname = \"x\"\n{second}\n"
        )
    };
    assert!(parse(&text("", "")).unwrap_err().contains("F:9: port 'q': interface 'x' is that of port 'p'"));
    assert!(parse(&text("netns = \"n\"", "netns = \"/run/netns/n\"")).is_err(), "two names of one namespace");
    assert!(parse(&text("netns = \"n\"", "netns = \"m\"")).is_ok());
}

#[test]
fn one_place_cannot_have_two_ports() {
    let both = |first: &str, second: &str| {
        let port = |name: &str, rest: &str| format!("[[port]]\nname = \"{name}\"\nbridge = \"b\"\n{rest}\n");
        parse(&format!("[[bridge]]\nname = \"b\"\n{}{}", port("p", first), port("q", second)))
    };
    let vhost = "type = \"vhost-user\"\npath = \"/s\"";
    let told = both(vhost, vhost).unwrap_err();
    assert!(told.contains("port 'q': socket /s is that of port 'p' already: give another path"), "{told}");
    assert!(both(vhost, "type = \"vde\"\npath = \"/s\"").is_err());
    assert!(both(vhost, &vhost.replace("/s", "/t")).is_ok());
    let stream = |at: &str| format!("type = \"stream\"\nlisten = \"{at}\"");
    let told = both(&stream("0.0.0.0:7"), &stream("127.0.0.1:7")).unwrap_err();
    assert!(told.contains("port 'q': 0.0.0.0:7 is where port 'p' listens already"), "{told}");
    assert!(both(&stream("0.0.0.0:7"), &stream("[::1]:7")).is_ok());
    let vxlan = "type = \"vxlan\"\nvni = 7\nlocal = \"10.0.0.1\"";
    let told = both(vxlan, vxlan).unwrap_err();
    assert!(told.contains("port 'q': its packets are those of port 'p'"), "{told}");
    assert!(both(vxlan, &vxlan.replace('7', "8")).is_ok());
}

#[test]
fn what_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vswitchd.toml");
    assert!(Config::read(&path).unwrap_err().contains("No such file"));
    assert!(Config::read(folder.path()).unwrap_err().starts_with("cannot read configuration"));
    std::fs::write(&path, b"# \xff\n").unwrap();
    assert!(Config::read(&path).unwrap_err().contains("byte 2 is not UTF-8"));
    assert!(Config::read(Path::new("/dev/zero")).unwrap_err().contains("larger than"));
}

#[test]
fn depth_is_no_weapon() {
    for text in [
        format!("a = {}", "[".repeat(100_000)),
        format!("[daemon]\ncpus = {}{}", "[".repeat(10_000), "]".repeat(10_000)),
        format!("[{}]", vec!["a"; 50_000].join(".")),
        format!("a = {}", "{a=".repeat(50_000)),
    ] {
        assert!(parse(&text).is_err());
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_fall_over(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn no_shuffling_of_its_own_words_makes_it_fall_over(words in prop::collection::vec(prop::sample::select(vec![
        "[[bridge]]", "[[port]]", "[[fdb]]", "[daemon]", "name", "bridge", "type", "trunk", "access", "workers", "=", "\"br0\"", "\"tap\"",
        "10", "-1", "[", "]", "{", "}", ",", "\n", "\"10-4094\"", "0x7fffffffffffffff", "1e400", "inf", "true", "\"\"", "'", "#",
    ]), 0..40)) {
        if let Err(error) = parse(&words.join(" ")) {
            prop_assert!(!error.contains('\n'), "{}", error);
        }
    }
}
