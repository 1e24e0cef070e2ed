//! Neighbours: requests about them, and which static ones belong to the configuration.

use std::collections::BTreeSet;
use std::net::IpAddr;

use vswitch::bridge::neighbours::follow;
use vswitch::status::{FdbState, NeighbourEntry};
use vswitch::switch::{Error, NeighFilter, NeighSpec};

use super::{Daemon, Record};
use crate::api::{EntryState, NeighAdd, NeighInfo, NeighKey, NeighSelect, Origin};
use crate::plan::{Layout, Step};

impl Record {
    fn neigh_info(&self, entry: NeighbourEntry) -> NeighInfo {
        let origin = (entry.state == FdbState::Static).then(|| {
            let ours = has(&self.neighbours, &spec_of(&entry));
            if ours { Origin::Configuration } else { Origin::Runtime }
        });
        NeighInfo::new(entry, origin)
    }
}

impl Daemon {
    /// The neighbours that are known.
    ///
    /// # Errors
    /// There is no such bridge.
    pub fn neighbours(&self, select: &NeighSelect) -> Result<Vec<NeighInfo>, Error> {
        let filter = self.check_neighbours(select)?;
        let entries = self.switch.neighbours(&filter)?;
        let record = self.record();
        Ok(entries.into_iter().map(|entry| record.neigh_info(entry)).collect())
    }

    fn check_neighbours(&self, select: &NeighSelect) -> Result<NeighFilter, Error> {
        if let Some(bridge) = &select.bridge {
            self.find_bridge(bridge)?;
        }
        Ok(select.to_filter())
    }

    /// Adds a static neighbour; a learned one of that address becomes static.
    ///
    /// # Errors
    /// There is no such bridge; it exists (with `may_exist`: and differs); an address or the VLAN is impossible.
    pub fn neigh_add(&self, request: &NeighAdd, may_exist: bool) -> Result<NeighInfo, Error> {
        let record = self.record();
        let bridge = self.find_bridge(&request.bridge)?.spec;
        let spec = request.to_spec(&bridge).map_err(Error::Invalid)?;
        match self.find_neighbour(&spec)?.filter(|known| known.state == FdbState::Static) {
            Some(existing) if may_exist && spec_of(&existing) == spec => {
                return Ok(record.neigh_info(existing));
            }
            Some(existing) => {
                return Err(Error::Exists(format!(
                    "{} is a {} neighbour at {} already: remove it first with: vswitchctl neigh del {} --bridge {}",
                    Step::AddNeighbour(spec),
                    EntryState::from(existing.state),
                    existing.mac,
                    existing.address,
                    existing.bridge
                )));
            }
            None => {}
        }
        self.switch.neigh_add(spec.clone())?;
        let added = self.find_neighbour(&spec)?.map(|entry| record.neigh_info(entry));
        drop(record);
        added.ok_or_else(|| Error::NotFound(format!("{} was removed meanwhile", Step::AddNeighbour(spec))))
    }

    /// What is known of the same address.
    fn find_neighbour(&self, like: &NeighSpec) -> Result<Option<NeighbourEntry>, Error> {
        let filter = NeighFilter { bridge: Some(like.bridge.clone()), vlan: Some(like.vlan) };
        Ok(self.switch.neighbours(&filter)?.into_iter().find(|entry| entry.address == like.address))
    }

    /// Removes a neighbour, in one VLAN or in all.
    ///
    /// # Errors
    /// There is no such bridge or neighbour (unless `if_exists`).
    pub fn neigh_del(&self, address: IpAddr, key: &NeighKey, if_exists: bool) -> Result<(), Error> {
        let mut record = self.record();
        let bridge = match self.find_bridge(&key.bridge) {
            Err(Error::NotFound(_)) if if_exists => return Ok(()),
            found => found?.spec,
        };
        let vlan = key.vlan.map(|vlan| vlan.0);
        if let Some(vlan) = vlan.filter(|&vlan| vlan != 0 && !bridge.vlan_filtering) {
            return Err(Error::Invalid(format!(
                "bridge '{}' does not filter VLANs: leave VLAN {vlan} out",
                bridge.name
            )));
        }
        match self.switch.neigh_del(address, &bridge.name, vlan) {
            Err(Error::NotFound(_)) if if_exists => return Ok(()),
            result => result?,
        }
        let gone = |known: &NeighSpec| {
            (&known.bridge, known.address) == (&bridge.name, address)
                && vlan.is_none_or(|vlan| vlan == known.vlan)
        };
        record.neighbours.retain(|known| !gone(known));
        Ok(())
    }

    /// Forgets dynamic neighbours.
    ///
    /// # Errors
    /// There is no such bridge.
    pub fn neigh_flush(&self, select: &NeighSelect) -> Result<usize, Error> {
        let filter = self.check_neighbours(select)?;
        let _serialised = self.record();
        self.switch.neigh_flush(&filter)
    }

    /// Every static neighbour there is.
    pub(super) fn static_neighbours(&self) -> Result<Vec<NeighSpec>, Error> {
        let all = self.switch.neighbours(&NeighFilter::default())?;
        Ok(all.iter().filter(|entry| entry.state == FdbState::Static).map(spec_of).collect())
    }
}

fn spec_of(entry: &NeighbourEntry) -> NeighSpec {
    let NeighbourEntry { bridge, vlan, address, mac, router, .. } = entry.clone();
    NeighSpec { bridge, vlan, address, mac, router: router == Some(true) }
}

/// Whether both are about one address of one bridge and VLAN.
pub(super) fn is_same(one: &NeighSpec, other: &NeighSpec) -> bool {
    (&one.bridge, one.vlan, one.address) == (&other.bridge, other.vlan, other.address)
}

/// Whether one of them is about that address.
pub(super) fn has(all: &BTreeSet<NeighSpec>, one: &NeighSpec) -> bool {
    all.iter().any(|other| is_same(one, other))
}

/// What became of one of the configuration's `ours`: it may have followed its bridge into another VLAN, or be gone.
pub(super) fn current(one: &NeighSpec, there: &[NeighSpec], ours: &BTreeSet<NeighSpec>) -> Option<NeighSpec> {
    let same =
        |other: &&NeighSpec| (&other.bridge, other.address, other.mac) == (&one.bridge, one.address, one.mac);
    let unmoved = |other: &&NeighSpec| same(other) && other.vlan == one.vlan;
    let moved = |other: &&NeighSpec| same(other) && !has(ours, other);
    there.iter().find(unmoved).or_else(|| there.iter().find(moved)).cloned()
}

/// Makes neighbours of run time part of a reload that touches them: those on a bridge that goes or whose VLANs change. So each
/// is where it belongs afterwards, and where it was when the reload is refused.
///
/// # Errors
/// Two would be one.
pub(super) fn carry_over(there: &[NeighSpec], now: &mut Layout, then: &mut Layout) -> Result<(), String> {
    let bridge = |layout: &Layout, name: &str| layout.bridges.iter().find(|b| b.name == name).cloned();
    for one in there {
        let Some(old) = bridge(now, &one.bridge).filter(|_| !has(&now.neighbours, one)) else { continue };
        let Some(new) = bridge(then, &one.bridge) else {
            // It goes with its bridge, and comes back with it if that has to.
            now.neighbours.insert(one.clone());
            continue;
        };
        if (old.vlan_filtering, old.default_pvid) == (new.vlan_filtering, new.default_pvid) {
            continue;
        }
        let moved = NeighSpec { vlan: follow(one.vlan, &old, &new), ..one.clone() };
        if has(&then.neighbours, &moved) {
            return Err(format!(
                "{} was added at run time, and would be in one VLAN with another: remove either",
                Step::AddNeighbour(one.clone())
            ));
        }
        now.neighbours.insert(one.clone());
        then.neighbours.insert(moved);
    }
    Ok(())
}
