//! The configuration file.

#![allow(missing_docs)]

#[path = "common/text.rs"]
mod text;

use std::collections::BTreeSet;
use std::path::Path;

use switchd::config::Config;
use text::{Fields, KINDS, Kind, Spoil};

/// Tables as (kind, variant, fields), how many of them, spoilt or not.
type Input = (Vec<(u8, u8, Fields)>, u8, Spoil);

/// Never a panic; refused with one line that begins with the file's name; what is accepted is accepted again, as the
/// same, and holds what the daemon relies on.
#[test]
fn config_is_harmless() {
    bolero::check!().with_type::<Input>().with_iterations(5000).for_each(|(tables, count, spoil)| {
        let tables = &tables[..tables.len().min(usize::from(count % 8))];
        try_text(&text::spoil(file(tables), spoil));
    });
}

/// The same for bytes that were never a configuration.
#[test]
fn any_text_is_harmless() {
    bolero::check!().with_iterations(5000).for_each(|bytes: &[u8]| {
        try_text(&String::from_utf8_lossy(bytes));
    });
}

/// The inputs above are worth something only if good ones are among them.
#[test]
fn good_tables_are_accepted() {
    let tables = [
        (0, 0, vec![]),
        (1, 0, vec![]),
        (2, 0, vec![]),
        (2, 1, vec![]),
        (3, 0, vec![]),
        (4, 0, vec![]),
        (5, 0, vec![]),
    ];
    let config = parse(&file(&tables)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.attach.len(), 1);
    let layout = config.layout;
    assert_eq!((layout.bridges.len(), layout.ports.len()), (1, 2));
    assert_eq!((layout.entries.len(), layout.neighbours.len()), (1, 1));
}

fn file(tables: &[(u8, u8, Fields)]) -> String {
    let mut text = String::new();
    for (kind, variant, fields) in tables {
        let kind = KINDS[usize::from(*kind) % KINDS.len()];
        text += match kind {
            Kind::Daemon => "[daemon]\n",
            Kind::Bridge => "[[bridge]]\n",
            Kind::Port => "[[port]]\n",
            Kind::Station => "[[fdb]]\n",
            Kind::Neighbour => "[[neigh]]\n",
            Kind::Attach => "[[attach]]\n",
        };
        for (key, value) in kind.object(*variant, fields, false) {
            text += &format!("{key} = {value}\n");
        }
    }
    text
}

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("F"), text)
}

fn try_text(text: &str) {
    match (parse(text), parse(text)) {
        (Err(error), Err(again)) => {
            assert_eq!(error, again, "{text:?}");
            assert!(error.starts_with("F:") && !error.contains(char::is_control), "{text:?}: {error:?}");
        }
        (Ok(config), Ok(again)) => {
            let all =
                |config: &Config| format!("{:?} {:?} {:?}", config.daemon, config.layout, config.attach);
            assert_eq!(all(&config), all(&again), "{text:?}");
            consistent(&config);
        }
        (first, second) => panic!("{text:?}: {first:?}, then {second:?}"),
    }
}

/// The promises of `Layout`.
fn consistent(config: &Config) {
    let layout = &config.layout;
    let bridges: BTreeSet<&str> = layout.bridges.iter().map(|bridge| bridge.name.as_str()).collect();
    let ports: BTreeSet<&str> = layout.ports.iter().map(|port| port.name.as_str()).collect();
    assert_eq!((bridges.len(), ports.len()), (layout.bridges.len(), layout.ports.len()), "names twice");
    assert!(layout.ports.iter().all(|port| bridges.contains(port.bridge.as_str())), "{layout:?}");
    for entry in &layout.entries {
        let port = layout.ports.iter().find(|port| port.name == entry.port);
        assert_eq!(port.map(|port| &port.bridge), Some(&entry.bridge), "{layout:?}");
    }
    let on_a_bridge = |known: &vswitch::switch::NeighSpec| bridges.contains(known.bridge.as_str());
    assert!(layout.neighbours.iter().all(on_a_bridge), "{layout:?}");
    assert!(config.attach.iter().all(|rule| rule.check().is_ok()), "{:?}", config.attach);
    for name in ports {
        assert!(config.place_of(&format!("port '{name}'")).starts_with("F:"), "{name} has no line");
    }
}
