//! From what is to what shall be: the steps of a reload, and the way back.
//!
//! A [`Layout`] is a set of bridges, ports, static stations and neighbours as plain values. [`plan`] compares two and
//! yields the fewest steps between them; objects that are equal in both get no step, so their frames never
//! notice. [`apply`] takes the steps on a running switch; when one is refused it takes those already taken
//! back, in reverse order, so a reload happens as a whole or not at all.
//!
//! Order matters, because every step must be acceptable by itself, and what cannot be taken back comes last: a device that is
//! removed has lost its index, its address and what others set on it, even if it is made anew.
//!
//! 1. static neighbours and stations go;
//! 2. ports lose their VLAN options before their bridge becomes VLAN-unaware; those that map VLANs to networks, and so cannot, go;
//! 3. bridges change, and come;
//! 4. the other ports change (their bridge filters by now), and neighbours come, and ports come whose name, interface and tunnel are free,
//!    and static stations behind ports that are there;
//! 5. ports go: first those in whose place others come (`places.rs`), and these come, and the stations behind them; then the rest;
//! 6. bridges go.
//!
//! A tunnel port that is given what another has now (see `tunnels.rs`) changes in two steps: in 2 or 4 it loses what it is to lose,
//! and in 5, when others have lost theirs or are gone, it gets the rest. So two ports can swap their remotes.
//!
//! What only the kernel knows to be one (two names of an interface, two paths of a socket) shows when a port that comes is refused because
//! something is there already. Then [`apply`] has the ports of its sort that are to go anyway go first, and tries it again.
//!
//! Rejected: tearing everything down and building it anew (loses frames on ports that did not change), and
//! a transaction inside the switch (every step would need a second form there that only this uses).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io::ErrorKind;
use std::net::IpAddr;

use vswitch::addr::MacAddr;
use vswitch::bridge::vlan::{Leaves, VlanPolicy};
use vswitch::spec::{BridgeSpec, PortKind, PortSettings, PortSpec, VlanMode};
use vswitch::status::PortState;
use vswitch::switch::{Error, Missing, NeighSpec};
use vswitch::topology::PORTS_MAX;

use crate::control::Control;

mod places;
mod tunnels;

pub(crate) use places::{collide, same_netns};

/// Bridges, ports, static stations and neighbours as plain values, in the order of their creation.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Names are unique.
    pub bridges: Vec<BridgeSpec>,
    /// Names are unique; every port's bridge exists.
    pub ports: Vec<PortSpec>,
    /// Every entry's port exists and belongs to the entry's bridge.
    pub entries: BTreeSet<Entry>,
    /// Every neighbour's bridge exists.
    pub neighbours: BTreeSet<NeighSpec>,
}

/// A static station.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Entry {
    /// Bridge of the port.
    pub bridge: String,
    /// VLAN; 0 on a bridge that does not filter.
    pub vlan: u16,
    /// Address.
    pub mac: MacAddr,
    /// Port it is behind.
    pub port: String,
    /// The remote of a tunnel port that it is behind; none if there is only one.
    pub remote: Option<IpAddr>,
}

/// The VLAN of a static station behind `port` when `asked` for `vlan`.
///
/// # Errors
/// When a VLAN is given on a bridge that does not filter, one that the port does not carry, or none on a trunk without
/// native VLAN.
pub(crate) fn entry_vlan(bridge: &BridgeSpec, port: &PortSpec, asked: Option<u16>) -> Result<u16, String> {
    let owner = &port.name;
    match (bridge.vlan_filtering, asked, &port.vlan_mode()) {
        (false, None | Some(0), _) => Ok(0),
        (false, Some(vlan), _) => Err(format!(
            "VLAN {vlan}: bridge '{0}' of port '{owner}' does not filter VLANs: leave the VLAN out, or 'bridge set {0} --vlan-filtering on'",
            bridge.name
        )),
        (true, Some(vlan), mode) => {
            let policy = VlanPolicy::new(mode, bridge.default_pvid);
            if vlan == 0 || policy.leaves(vlan) == Leaves::Not {
                let carried: Vec<String> = policy.vids().take(10).map(|vid| vid.to_string()).collect();
                let more = if policy.vids().nth(10).is_some() { ", …" } else { "" };
                return Err(format!(
                    "port '{owner}' does not carry VLAN {vlan}, but {}{more}: choose one of these, or change the \
                     port's VLANs",
                    carried.join(", ")
                ));
            }
            Ok(vlan)
        }
        (true, None, VlanMode::Default) => Ok(bridge.default_pvid.get()),
        (true, None, VlanMode::Access(vid)) => Ok(vid.get()),
        (true, None, VlanMode::Trunk { native: Some(vid), .. }) => Ok(vid.get()),
        (true, None, VlanMode::Trunk { native: None, .. }) => {
            Err(format!("port '{owner}' is a trunk without native VLAN: say which VLAN the station is in"))
        }
    }
}

impl Step {
    fn added_port(&self) -> Option<&PortSpec> {
        match self {
            Step::AddPort(port) => Some(port),
            _ => None,
        }
    }
}

/// One change.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it; `from` is for the way back")]
pub enum Step {
    DelNeighbour(NeighSpec),
    DelEntry(Entry),
    DelPort(PortSpec),
    SetBridge { from: BridgeSpec, to: BridgeSpec },
    DelBridge(BridgeSpec),
    AddBridge(BridgeSpec),
    SetPort { name: String, from: PortSettings, to: PortSettings },
    AddPort(PortSpec),
    AddEntry(Entry),
    AddNeighbour(NeighSpec),
}

impl fmt::Display for Step {
    /// The object that it changes, such as `port 'p1'`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::AddBridge(spec) | Step::DelBridge(spec) | Step::SetBridge { to: spec, .. } => {
                write!(f, "bridge '{}'", spec.name)
            }
            Step::AddPort(PortSpec { name, .. })
            | Step::DelPort(PortSpec { name, .. })
            | Step::SetPort { name, .. } => {
                write!(f, "port '{name}'")
            }
            Step::AddEntry(entry) | Step::DelEntry(entry) if entry.vlan == 0 => {
                write!(f, "fdb entry {} on bridge '{}'", entry.mac, entry.bridge)
            }
            Step::AddEntry(entry) | Step::DelEntry(entry) => {
                write!(f, "fdb entry {} in VLAN {} on bridge '{}'", entry.mac, entry.vlan, entry.bridge)
            }
            Step::AddNeighbour(known) | Step::DelNeighbour(known) => {
                write!(f, "neighbour {}", known.address)?;
                if known.vlan != 0 {
                    write!(f, " in VLAN {}", known.vlan)?;
                }
                write!(f, " on bridge '{}'", known.bridge)
            }
        }
    }
}

impl Step {
    /// The step that takes this one back.
    fn inverse(&self) -> Step {
        match self.clone() {
            Step::DelNeighbour(known) => Step::AddNeighbour(known),
            Step::AddNeighbour(known) => Step::DelNeighbour(known),
            Step::DelEntry(entry) => Step::AddEntry(entry),
            Step::AddEntry(entry) => Step::DelEntry(entry),
            Step::DelPort(spec) => Step::AddPort(spec),
            Step::AddPort(spec) => Step::DelPort(spec),
            Step::DelBridge(spec) => Step::AddBridge(spec),
            Step::AddBridge(spec) => Step::DelBridge(spec),
            Step::SetBridge { from, to } => Step::SetBridge { from: to, to: from },
            Step::SetPort { name, from, to } => Step::SetPort { name, from: to, to: from },
        }
    }

    /// Takes it; of ports that come and find something missing or are refused something, `missing` says what becomes.
    fn take(&self, switch: &dyn Control, missing: Missing) -> Result<(), Error> {
        match self.clone() {
            Step::AddNeighbour(known) => switch.neigh_add(known),
            Step::DelNeighbour(known) => {
                match switch.neigh_del(known.address, &known.bridge, Some(known.vlan)) {
                    // It went with its bridge.
                    Err(Error::NotFound(_)) => Ok(()),
                    result => result,
                }
            }
            Step::AddEntry(entry) => switch.fdb_add(entry.mac, &entry.port, Some(entry.vlan), entry.remote),
            Step::DelEntry(entry) => match switch.fdb_del(entry.mac, &entry.bridge, Some(entry.vlan)) {
                // It went with a change of its bridge or port.
                Err(Error::NotFound(_)) => Ok(()),
                result => result,
            },
            Step::AddPort(spec) => switch.add_port(spec, missing),
            Step::DelPort(spec) => switch.del_port(&spec.name),
            Step::AddBridge(spec) => switch.add_bridge(spec),
            Step::DelBridge(spec) => switch.del_bridge(&spec.name, false),
            Step::SetBridge { to, .. } => switch.set_bridge(to),
            Step::SetPort { name, to, .. } => switch.set_port(&name, to),
        }
    }
}

/// Whether a port becomes another without its device being made anew.
pub(crate) fn keeps_device(old: &PortSpec, new: &PortSpec, dead: &BTreeSet<String>) -> bool {
    new.kind == old.kind && new.bridge == old.bridge && !dead.contains(&old.name)
}

/// The steps from `now` to `then`. Ports named in `dead` have lost their device and are built anew.
#[must_use]
pub fn plan(now: &Layout, then: &Layout, dead: &BTreeSet<String>) -> Vec<Step> {
    let old_bridges: BTreeMap<&str, &BridgeSpec> = now.bridges.iter().map(|b| (b.name.as_str(), b)).collect();
    let new_bridges: BTreeMap<&str, &BridgeSpec> =
        then.bridges.iter().map(|b| (b.name.as_str(), b)).collect();
    let old_ports: BTreeMap<&str, &PortSpec> = now.ports.iter().map(|p| (p.name.as_str(), p)).collect();
    let new_ports: BTreeMap<&str, &PortSpec> = then.ports.iter().map(|p| (p.name.as_str(), p)).collect();
    let mode =
        |bridges: &BTreeMap<&str, &BridgeSpec>, name: &str| bridges.get(name).map(|b| b.vlan_filtering);
    let vlans = |bridges: &BTreeMap<&str, &BridgeSpec>, name: &str| {
        bridges.get(name).map(|b| (b.vlan_filtering, b.default_pvid))
    };

    // A port that is only set keeps its device; one whose kind or bridge differs is another port.
    let stays =
        |old: &PortSpec| new_ports.get(old.name.as_str()).is_some_and(|new| keeps_device(old, new, dead));
    let stays_by_name = |name: &str| old_ports.get(name).is_some_and(|old| stays(old));
    // One that does not say behind which remote is behind the only one, whichever that is.
    let same_remotes = |port: &str| {
        let remotes = |ports: &BTreeMap<&str, &PortSpec>| {
            ports.get(port).map(|port| port.settings.tunnel.remotes.clone())
        };
        remotes(&old_ports) == remotes(&new_ports)
    };
    let entry_stays = |entry: &Entry| {
        now.entries.contains(entry)
            && then.entries.contains(entry)
            && stays_by_name(&entry.port)
            && (entry.remote.is_some() || same_remotes(&entry.port))
            && vlans(&old_bridges, &entry.bridge) == vlans(&new_bridges, &entry.bridge)
    };

    let neighbour_stays = |known: &NeighSpec| {
        now.neighbours.contains(known)
            && then.neighbours.contains(known)
            && vlans(&old_bridges, &known.bridge) == vlans(&new_bridges, &known.bridge)
    };

    let becomes_unaware =
        |name: &str| mode(&old_bridges, name) == Some(true) && mode(&new_bridges, name) == Some(false);
    let go: Vec<_> = now.entries.iter().filter(|e| !entry_stays(e)).cloned().map(Step::DelEntry).collect();

    let (mut set_before, mut set_after, mut set_last) = (Vec::new(), Vec::new(), Vec::new());
    // Those that change last, as they will be.
    let mut grown = Vec::new();
    for new in &then.ports {
        let Some(old) =
            old_ports.get(new.name.as_str()).filter(|old| stays(old) && old.settings != new.settings)
        else {
            continue;
        };
        let set = |from: &PortSettings, to: &PortSettings| Step::SetPort {
            name: new.name.clone(),
            from: from.clone(),
            to: to.clone(),
        };
        let in_the_way = |other: &PortSpec| other.name != new.name && tunnels::is_in_the_way(other, new);
        let first = if now.ports.iter().any(in_the_way) {
            let between = tunnels::shrunk(&old.settings, &new.settings);
            set_last.push(set(&between, &new.settings));
            grown.push(new);
            between
        } else {
            new.settings.clone()
        };
        if first != old.settings {
            let step = set(&old.settings, &first);
            if becomes_unaware(&new.bridge) { set_before.push(step) } else { set_after.push(step) }
        }
    }
    let go_ports = now.ports.iter().rev().filter(|port| !stays(port)).cloned();
    let maps = |port: &PortSpec| matches!(&port.kind, PortKind::Tunnel(tunnel) if tunnel.vlans().is_some());
    let (go_first, mut go_ports): (Vec<PortSpec>, Vec<PortSpec>) =
        go_ports.partition(|port| becomes_unaware(&port.bridge) && maps(port));
    // Those that go have to be removable afterwards as well, and to come back.
    for port in go_ports.iter_mut().filter(|port| becomes_unaware(&port.bridge)) {
        let from = port.settings.clone();
        port.settings.vlan = VlanMode::Default;
        if from != port.settings {
            set_before.push(Step::SetPort { name: port.name.clone(), from, to: port.settings.clone() });
        }
    }

    let leave = now.neighbours.iter().filter(|known| !neighbour_stays(known)).cloned();
    let mut steps: Vec<_> = leave.map(Step::DelNeighbour).collect();
    steps.extend(go);
    steps.append(&mut set_before);
    steps.extend(go_first.into_iter().map(Step::DelPort));
    for new in &then.bridges {
        if let Some(old) = old_bridges.get(new.name.as_str()).filter(|old| **old != new) {
            steps.push(Step::SetBridge { from: (*old).clone(), to: new.clone() });
        }
    }
    let come = then.bridges.iter().filter(|b| !old_bridges.contains_key(b.name.as_str()));
    steps.extend(come.cloned().map(Step::AddBridge));
    steps.append(&mut set_after);
    let come = then.neighbours.iter().filter(|known| !neighbour_stays(known));
    steps.extend(come.cloned().map(Step::AddNeighbour));

    let come: Vec<&PortSpec> = then.ports.iter().filter(|port| !stays_by_name(&port.name)).collect();
    // All cannot be there at once, if the old ones and the new ones are more than the switch has room for.
    let crowded = now.ports.len() + come.len() > PORTS_MAX;
    let replaces = |new: &PortSpec, old: &PortSpec| crowded || places::is_in_the_way(old, new);
    let (in_place, free): (Vec<_>, Vec<_>) =
        come.into_iter().partition(|new| go_ports.iter().any(|old| replaces(new, old)));
    let (replaced, rest): (Vec<_>, Vec<_>) =
        go_ports.into_iter().partition(|old| in_place.iter().chain(&grown).any(|new| replaces(new, old)));
    let new_entries = then.entries.iter().filter(|e| !entry_stays(e)).cloned();
    let (late, early): (Vec<_>, Vec<_>) =
        new_entries.partition(|entry| in_place.iter().chain(&grown).any(|port| port.name == entry.port));
    steps.extend(free.into_iter().cloned().map(Step::AddPort));
    steps.extend(early.into_iter().map(Step::AddEntry));
    steps.extend(replaced.into_iter().map(Step::DelPort));
    steps.append(&mut set_last);
    steps.extend(in_place.into_iter().cloned().map(Step::AddPort));
    steps.extend(late.into_iter().map(Step::AddEntry));
    steps.extend(rest.into_iter().map(Step::DelPort));
    let gone = now.bridges.iter().rev().filter(|b| !new_bridges.contains_key(b.name.as_str()));
    steps.extend(gone.cloned().map(Step::DelBridge));
    steps
}

/// A refused step.
#[derive(Debug)]
pub struct Refused {
    /// The object the step was about, such as `port 'p1'`.
    pub object: String,
    /// What the switch said.
    pub error: Error,
    /// What could not be taken back; empty when everything is as before.
    pub left: Vec<String>,
    /// Ports whose device had gone and was made anew.
    pub rebuilt: Vec<String>,
}

/// Takes the steps, all or none. A port whose interface is missing waits for it; one that the kernel refuses is a refusal, or, with
/// [`Missing::Keep`], a port that has failed.
///
/// # Errors
/// The first refusal; what had been done by then is undone.
pub fn apply(switch: &dyn Control, steps: &[Step], missing: Missing) -> Result<(), Refused> {
    let coming: Vec<PortSpec> = steps.iter().filter_map(Step::added_port).cloned().collect();
    switch.expect_ports(&coming);
    let applied = apply_all(switch, steps, missing);
    switch.expect_no_more();
    applied
}

fn apply_all(switch: &dyn Control, steps: &[Step], missing: Missing) -> Result<(), Refused> {
    let failed_before = failures(switch);
    let mut todo: VecDeque<Step> = steps.iter().cloned().collect();
    let mut done: Vec<Step> = Vec::new();
    while let Some(step) = todo.pop_front() {
        let Err(error) = step.take(switch, missing) else {
            done.push(step);
            continue;
        };
        let room = room_for(&step, &error, &mut todo);
        if !room.is_empty() {
            todo.push_front(step);
            room.into_iter().rev().for_each(|goes| todo.push_front(goes));
            continue;
        }
        let (mut left, mut rebuilt) = (Vec::new(), Vec::new());
        for done in done.iter().rev() {
            // A port that the kernel refuses now, although it had it before, is better failed than gone: it is tried again.
            if let Err(error) = done.inverse().take(switch, Missing::Keep) {
                left.push(format!("{done}: {error}"));
            } else if matches!(done, Step::DelPort(_)) {
                rebuilt.push(done.to_string());
            }
        }
        for (port, reason) in failures(switch) {
            if !failed_before.contains_key(&port) {
                let port = format!("port '{port}'");
                rebuilt.retain(|rebuilt| *rebuilt != port);
                left.push(format!("{port} has failed: {reason}"));
            }
        }
        return Err(Refused { object: step.to_string(), error, left, rebuilt });
    }
    Ok(())
}

/// Takes the steps out of `todo` by which ports go that may have what `step` was refused for. They are to go in any case, and may
/// go at any time.
fn room_for(step: &Step, error: &Error, todo: &mut VecDeque<Step>) -> Vec<Step> {
    let Step::AddPort(new) = step else { return Vec::new() };
    let is_taken = match error {
        Error::Exists(_) => true,
        Error::System { source, .. } => {
            matches!(source.kind(), ErrorKind::AlreadyExists | ErrorKind::AddrInUse | ErrorKind::ResourceBusy)
        }
        Error::NotFound(_) | Error::Invalid(_) => false,
    };
    let goes =
        |step: &Step| matches!(step, Step::DelPort(old) if is_taken && places::may_be_in_the_way(old, new));
    let (room, rest): (Vec<Step>, Vec<Step>) = std::mem::take(todo).into_iter().partition(goes);
    *todo = rest.into();
    room
}

/// The ports that have failed, and why.
fn failures(switch: &dyn Control) -> BTreeMap<String, String> {
    let failed = switch.ports().into_iter().filter(|port| port.state == PortState::Failed);
    failed.map(|port| (port.spec.name, port.reason.unwrap_or_default())).collect()
}

#[cfg(test)]
mod tests;
