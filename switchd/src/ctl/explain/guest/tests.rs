use std::process::Command;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::config::DaemonSection;
use crate::control::model::Model;
use crate::ctl::{explain, show};
use crate::daemon::Daemon;

/// A port as asked for, called `p` and of bridge `br0` unless that says otherwise, of a switch in memory.
fn port(options: &Value) -> PortInfo {
    let model = Arc::new(Model::default());
    let daemon = Daemon::new(model.clone(), &DaemonSection::default());
    let mut asked = json!({"name": "p", "bridge": "br0"});
    asked.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    let name = asked["name"].as_str().unwrap().to_owned();
    let ifname = options["ifname"].as_str().unwrap_or(&name);
    model.inner().interfaces.insert(ifname.to_owned());
    let bridge = json!({"name": asked["bridge"]});
    daemon.add_bridge(&serde_json::from_value(bridge).unwrap(), false).unwrap();
    daemon.add_port(&serde_json::from_value(asked).unwrap(), false).unwrap();
    daemon.port(&name).unwrap()
}

/// The words of a line as a shell sees them.
fn words(line: &str) -> Vec<String> {
    let output = Command::new("sh").args(["-c", &format!("printf '%s\\0' {line}")]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{line}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// The words of the command that begins with `first`, up to the end of its line or to `&&`.
fn command(text: &str, first: &str) -> Vec<String> {
    let begin = text.find(&format!("  {first}")).unwrap_or_else(|| panic!("no {first} in: {text}"));
    let mut command = String::new();
    for line in text[begin..].lines() {
        match line.strip_suffix('\\') {
            Some(line) => command.push_str(line),
            None => {
                command.push_str(line);
                break;
            }
        }
    }
    // None of the names has it.
    words(command.split(" && ").next().unwrap())
}

/// The options that QEMU reads after `switch`: a comma ends one, two are a comma in it.
fn options(words: &[String], switch: &str) -> Vec<(String, String)> {
    let at = words.iter().position(|word| word == switch).unwrap();
    let whole = words[at + 1].replace(",,", "\0");
    let options = whole.split(',').map(|option| option.split_once('=').unwrap_or((option, "")));
    options.map(|(name, value)| (name.to_owned(), value.replace('\0', ","))).collect()
}

fn option(words: &[String], switch: &str, name: &str) -> String {
    let options = options(words, switch);
    options.iter().find(|(is, _)| is == name).unwrap_or_else(|| panic!("no {name}: {options:?}")).1.clone()
}

/// The value of an attribute as a reader of XML sees it.
fn attribute_of(text: &str, name: &str) -> String {
    let (_, rest) = text.split_once(&format!(" {name}='")).unwrap();
    let (value, _) = rest.split_once('\'').unwrap();
    assert!(!value.contains('<'), "{value}");
    value.replace("&apos;", "'").replace("&lt;", "<").replace("&amp;", "&")
}

/// Whatever may be in the name of a file, more often what means something to a shell, to QEMU or in XML.
fn name() -> impl Strategy<Value = String> {
    let special = prop::sample::select(" '\"$`\\;&|<>(){}[]*?#~!,=%@:é".chars().collect::<Vec<_>>());
    let character = prop_oneof![special, prop::char::range(' ', '~')];
    prop::collection::vec(character, 1..20)
        .prop_map(|chars| chars.into_iter().collect::<String>().replace('/', "_").replace(" && ", "&&"))
}

/// Of a bridge or a port.
fn plain_name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_.:@+][a-zA-Z0-9_.:@+-]{0,62}"
        .prop_filter("no name", |name| ![".", ".."].contains(&name.as_str()))
}

/// Of an interface.
fn ifname() -> impl Strategy<Value = String> {
    let fits = |c: &char| c.is_ascii() && !" :%".contains(*c);
    let short = name().prop_map(move |name| name.chars().filter(fits).take(15).collect());
    short.prop_filter("no name", |name: &String| !["", ".", ".."].contains(&name.as_str()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_name_arrives_as_it_is(
        file in name(), other in name(), ifname in ifname(), netns in name(), bridge in plain_name(), named in plain_name()
    ) {
        let (path, peer) = (format!("/run/{file}"), format!("/tmp/{other}"));
        let qemu = |asked: &Value| {
            let mut asked = asked.clone();
            asked.as_object_mut().unwrap().extend([("bridge".into(), json!(bridge)), ("name".into(), json!(named))]);
            let text = explain::port(&port(&asked), None);
            (command(&text, "qemu-system-x86_64"), text)
        };

        for client in [false, true] {
            let (words, text) = qemu(&json!({"type": "vhost-user", "path": path, "client": client, "server": !client}));
            prop_assert_eq!(&words[..4], ["qemu-system-x86_64", "…", "-m", "1G"]);
            prop_assert_eq!(option(&words, "-chardev", "path"), path.clone());
            prop_assert_eq!(attribute_of(&text, "path"), path.clone());
            let (words, _) = qemu(&json!({"type": "stream", "path": path, "client": client, "server": !client}));
            prop_assert_eq!(words.len(), 6);
            prop_assert_eq!(option(&words, "-netdev", "addr.path"), path.clone());
        }
        for (asked, ours, theirs) in [
            (json!({}), path.clone(), format!("{path}.qemu")),
            (json!({"client": true}), format!("{path}.vswitchd"), path.clone()),
            (json!({"peer": peer}), path.clone(), peer.clone()),
        ] {
            let mut whole = json!({"type": "dgram", "path": path});
            whole.as_object_mut().unwrap().extend(asked.as_object().unwrap().clone());
            let (words, _) = qemu(&whole);
            prop_assert_eq!(option(&words, "-netdev", "local.path"), theirs);
            prop_assert_eq!(option(&words, "-netdev", "remote.path"), ours);
        }

        let text = explain::port(&port(&json!({"type": "packet", "ifname": ifname, "netns": format!("/x/{netns}")})), None);
        let enter = format!("--net=/x/{netns}");
        let expected = ["nsenter", &enter, "ip", "tuntap", "add", "dev", &ifname, "mode", "tap", "vnet_hdr"];
        prop_assert_eq!(command(&text, "nsenter"), expected);
        let line = text.lines().find(|line| line.contains("qemu-system")).unwrap();
        let words = words(line.strip_suffix('\\').unwrap());
        prop_assert_eq!(&words[..3], ["nsenter", &enter, "qemu-system-x86_64"]);
        prop_assert_eq!(option(&words, "-netdev", "ifname"), ifname.clone());
        prop_assert_eq!(attribute_of(&text, "dev"), ifname);
    }

    #[test]
    fn the_helper_finds_the_attach_socket(file in name(), bridge in plain_name(), named in plain_name()) {
        let mut guest = port(&json!({"name": named, "bridge": bridge, "type": "packet", "ifname": "vtap0"}));
        guest.attached = Some(crate::api::Holder { uid: 0, pid: 1 });
        let socket = format!("/run/{file}");
        let text = lines(&guest, Some(&socket));
        // QEMU starts another shell for it.
        let line = command(&text, "qemu-system-x86_64");
        prop_assert_eq!(option(&line, "-netdev", "br"), bridge.clone());
        let inner = option(&line, "-netdev", "helper");
        // What QEMU leaves out then.
        let bridge = format!("--br={bridge}");
        prop_assert_eq!(words(&inner), [HELPER, "--socket", &socket, &bridge]);
        prop_assert!(!text.contains("<interface"), "libvirt does not pass it on");
        let text = lines(&guest, Some(attach::DEFAULT_SOCKET));
        prop_assert_eq!(option(&command(&text, "qemu-system-x86_64"), "-netdev", "helper"), HELPER);
        prop_assert!(text.contains("<interface type='bridge'>"));
    }
}

#[test]
fn a_socket_of_qemus_own_has_a_path_that_fits() {
    let local = |path: &str| {
        let text = explain::port(&port(&json!({"type": "dgram", "path": path})), None);
        (option(&command(&text, "qemu-system-x86_64"), "-netdev", "local.path"), text)
    };
    let fits = format!("/run/{}", "s".repeat(PATH_MAX_BYTES - "/run/.qemu".len()));
    assert_eq!(local(&fits).0, format!("{fits}.qemu"));
    assert_eq!(local(&format!("{fits}s")).0, "/run/p.qemu");
    let deep = format!("/{}/s", "d".repeat(PATH_MAX_BYTES - 3));
    let (place, text) = local(&deep);
    assert!(place == "PLACE" && text.contains("PLACE is a path"), "{text}");
}

/// `port show` points to what there is, and where there is nothing `port explain` says why.
#[test]
fn every_port_says_whether_a_guest_can_be_there() {
    for (options, is) in [
        (json!({"type": "packet"}), true),
        (json!({"type": "stream", "path": "/run/s"}), true),
        (json!({"type": "dgram", "path": "/run/s"}), true),
        (json!({"type": "vhost-user", "path": "/run/s"}), true),
        (json!({"type": "vde", "path": "/run/s"}), true),
        (json!({"type": "tap"}), false),
        (json!({"type": "internal"}), false),
        (json!({"type": "macvtap", "lower": "eth0"}), false),
    ] {
        let port = port(&options);
        let text = explain::port(&port, None);
        assert_eq!(text.contains("qemu-system-x86_64"), is, "{text}");
        assert_eq!(text.contains("QEMU guest cannot use"), !is, "{text}");
        let shown = show::port(&port);
        assert_eq!(shown.contains("'vswitchctl port explain p' has the lines for QEMU"), is, "{options}");
        assert_eq!(shown.contains(" and libvirt"), text.contains("<interface"), "{options}");
    }
}
