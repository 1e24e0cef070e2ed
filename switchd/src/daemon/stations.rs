//! Static stations across changes: which belong to the configuration, and what becomes of the others.

use std::collections::BTreeSet;

use vswitch::bridge::vlan::VlanPolicy;
use vswitch::spec::PortSpec;

use crate::plan::{Entry, Layout, Step, entry_vlan, keeps_device};

/// Whether both stand for one station of one bridge and VLAN, behind whatever port.
pub(super) fn is_entry(one: &Entry, other: &Entry) -> bool {
    (&one.bridge, one.vlan, one.mac) == (&other.bridge, other.vlan, other.mac)
}

/// Whether one of them is that station.
pub(super) fn has(entries: &BTreeSet<Entry>, entry: &Entry) -> bool {
    entries.iter().any(|one| is_entry(one, entry))
}

/// What became of one of the configuration's `ours`: it may have followed its bridge into another VLAN, or be gone.
pub(super) fn current(entry: &Entry, stations: &[Entry], ours: &BTreeSet<Entry>) -> Option<Entry> {
    let same = |there: &&Entry| {
        (&there.bridge, there.mac, &there.port) == (&entry.bridge, entry.mac, &entry.port)
            && entry.remote.is_none_or(|remote| there.remote == Some(remote))
    };
    let moved = |there: &&Entry| same(there) && !has(ours, there);
    let unmoved = |there: &&Entry| same(there) && there.vlan == entry.vlan;
    let there = stations.iter().find(unmoved).or_else(|| stations.iter().find(moved))?;
    // Its remote as it was asked for: none stands for the only one.
    Some(Entry { vlan: there.vlan, ..entry.clone() })
}

/// Makes stations of run time part of a reload that touches them: those on a bridge whose VLANs change, and those behind a port
/// that goes or is made anew. So each is where it belongs afterwards, and where it was when the reload is refused. `theirs` are
/// the ports of run time.
///
/// # Errors
/// One would be in no VLAN, or two would be one.
pub(super) fn carry_over(
    stations: &[Entry],
    theirs: &[PortSpec],
    dead: &BTreeSet<String>,
    now: &mut Layout,
    then: &mut Layout,
) -> Result<(), String> {
    let port = |list: &[PortSpec], name: &str| list.iter().find(|port| port.name == name).cloned();
    let bridge = |layout: &Layout, name: &str| layout.bridges.iter().find(|b| b.name == name).cloned();
    for entry in stations {
        let Some(old_bridge) = bridge(now, &entry.bridge).filter(|_| !has(&now.entries, entry)) else {
            continue;
        };
        let ours = port(&now.ports, &entry.port);
        let Some(old) = ours.clone().or_else(|| port(theirs, &entry.port)) else { continue };
        let new = if ours.is_some() { port(&then.ports, &entry.port) } else { Some(old.clone()) };
        let Some(new) = new else {
            // It goes with its port, and comes back with it if that has to.
            now.entries.insert(entry.clone());
            continue;
        };
        let Some(new_bridge) = bridge(then, &new.bridge) else { continue };
        let same_vlans = (&old_bridge.name, old_bridge.vlan_filtering, old_bridge.default_pvid)
            == (&new_bridge.name, new_bridge.vlan_filtering, new_bridge.default_pvid);
        if same_vlans && (ours.is_none() || keeps_device(&old, &new, dead)) {
            continue;
        }
        let untagged = VlanPolicy::new(&old.vlan_mode(), old_bridge.default_pvid).classify(None);
        let followed = !old_bridge.vlan_filtering || untagged == Some(entry.vlan);
        let object = Step::AddEntry(entry.clone());
        let vlan = match (new_bridge.vlan_filtering, followed) {
            (false, _) => Ok(0),
            (true, true) => entry_vlan(&new_bridge, &new, None),
            (true, false) => entry_vlan(&new_bridge, &new, Some(entry.vlan)),
        }
        .map_err(|error| format!("{object} was added at run time, and {error}; or remove the entry"))?;
        let moved = Entry { bridge: new_bridge.name, vlan, ..entry.clone() };
        let taken = |other: &&Entry| is_entry(other, &moved) && other.port != moved.port;
        let mut staying = stations.iter().filter(|other| !has(&now.entries, other));
        if let Some(other) = then.entries.iter().find(taken).or_else(|| staying.find(taken)) {
            return Err(format!(
                "{object} was added at run time behind port '{}', and would be the one behind port '{}': remove either",
                entry.port, other.port
            ));
        }
        now.entries.insert(entry.clone());
        then.entries.insert(moved);
    }
    Ok(())
}
