//! Stations: the forwarding databases in the operator's terms, and what follows for them from changes of ports.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::{Bridge, Control, is};
use crate::addr::{MacAddr, PortId};
use crate::bridge::fdb::{Key, Kind};
use crate::bridge::vlan::{Leaves, VlanPolicy};
use crate::spec::{BridgeSpec, PortKind};
use crate::status::{FdbEntry, FdbState};
use crate::switch::{Error, FdbFilter};

/// Most of a table that is looked through for old entries in one go, in buckets of 64 bytes: some 10 ms.
const SWEEP_BUCKETS: usize = 1 << 20;

impl Control {
    pub(in crate::switch) fn fdb(&self, filter: &FdbFilter) -> Result<Vec<FdbEntry>, Error> {
        self.check_filter(filter)?;
        let now = self.crew.now();
        let mut entries = Vec::new();
        for bridge in self.bridges.iter().filter(|bridge| is(&filter.bridge, &bridge.spec.name)) {
            for (key, entry) in bridge.fdb.iter() {
                let (id, remote) = self.device(entry.port);
                let Some(port) = self.ports.get(&id) else { continue };
                if !is(&filter.port, &port.spec.name) || filter.vlan.is_some_and(|vid| vid != key.vid()) {
                    continue;
                }
                entries.push(FdbEntry {
                    mac: key.mac(),
                    vlan: key.vid(),
                    bridge: bridge.spec.name.clone(),
                    port: port.spec.name.clone(),
                    remote,
                    state: match entry.kind {
                        Kind::Dynamic => FdbState::Dynamic,
                        Kind::Static => FdbState::Static,
                        Kind::Local => FdbState::Local,
                    },
                    age_secs: entry.age_secs(now),
                });
            }
        }
        entries.sort_by(|a, b| (&a.bridge, a.vlan, a.mac).cmp(&(&b.bridge, b.vlan, b.mac)));
        Ok(entries)
    }

    pub(in crate::switch) fn fdb_add(
        &mut self,
        mac: MacAddr,
        port: &str,
        vlan: Option<u16>,
        remote: Option<IpAddr>,
    ) -> Result<(), Error> {
        if !mac.is_station() {
            return Err(Error::Invalid(format!(
                "'{mac}' is not a station's address: it is a group address or zero"
            )));
        }
        let id = self.port(port)?;
        let bridge = &self.bridges[self.bridge(&self.ports[&id].spec.bridge)?];
        let vid = match (bridge.spec.vlan_filtering, vlan) {
            (false, None | Some(0)) => 0,
            (false, Some(_)) => return Err(self.unaware(&bridge.spec.name)),
            (true, Some(vid)) => {
                if vid == 0 || self.policy(id).leaves(vid) == Leaves::Not {
                    return Err(Error::Invalid(format!("port '{port}' does not carry VLAN {vid}")));
                }
                vid
            }
            (true, None) => self.default_vid(id).ok_or_else(|| {
                Error::Invalid(format!("port '{port}' is a trunk without native VLAN; say which with --vlan"))
            })?,
        };
        let id = match (&self.ports[&id].spec.kind, remote) {
            (PortKind::Tunnel(_), remote) => self.remote_for(id, remote)?,
            (_, None) => id,
            (_, Some(remote)) => {
                return Err(Error::Invalid(format!(
                    "port '{port}' is no tunnel and has no remote {remote}; leave it out"
                )));
            }
        };
        match bridge.fdb.insert_static(Key::new(mac, vid), id) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::Invalid(format!("bridge '{}': {mac}: {error}", bridge.spec.name))),
        }
    }

    pub(in crate::switch) fn fdb_del(
        &mut self,
        mac: MacAddr,
        bridge: &str,
        vlan: Option<u16>,
    ) -> Result<(), Error> {
        let bridge = &self.bridges[self.bridge(bridge)?];
        let wanted = |key: Key| key.mac() == mac && vlan.is_none_or(|vid| vid == key.vid());
        if bridge.fdb.iter().any(|(key, entry)| wanted(key) && entry.kind == Kind::Local) {
            return Err(Error::Invalid(format!(
                "{mac} is the address of an internal port of bridge '{}'; it goes with the port",
                bridge.spec.name
            )));
        }
        if bridge.fdb.flush(|key, entry| wanted(key) && entry.kind != Kind::Local) == 0 {
            let place = vlan.map_or(String::new(), |vid| format!(" in VLAN {vid}"));
            return Err(Error::NotFound(format!(
                "bridge '{0}' does not know {mac}{place}; see: vswitchctl fdb show --bridge {0}",
                bridge.spec.name
            )));
        }
        Ok(())
    }

    pub(in crate::switch) fn fdb_flush(&mut self, filter: &FdbFilter) -> Result<usize, Error> {
        self.check_filter(filter)?;
        let port = filter.port.as_deref().map(|name| self.port(name)).transpose()?;
        let bridges = self.bridges.iter().filter(|bridge| is(&filter.bridge, &bridge.spec.name));
        let flush = |bridge: &Bridge| {
            bridge.fdb.flush(|key, entry| {
                entry.kind == Kind::Dynamic
                    && port.is_none_or(|id| id == self.device(entry.port).0)
                    && filter.vlan.is_none_or(|vid| vid == key.vid())
            })
        };
        Ok(bridges.map(flush).sum())
    }

    /// Forgets every entry behind ids that no worker knows any more.
    pub(super) fn forget_ids(&self, ids: &HashSet<PortId>) {
        for bridge in self.bridges.iter().filter(|_| !ids.is_empty()) {
            bridge.fdb.flush(|_, entry| ids.contains(&entry.port));
        }
    }

    /// The ids that entries behind a port may carry: its own and its remotes'.
    pub(super) fn ids_of(&self, id: PortId) -> Vec<PortId> {
        let mut ids = self.tunnels.ids_of(id);
        ids.push(id);
        ids
    }

    /// The port that operators know behind an id, and which remote of it is meant.
    pub(super) fn device(&self, id: PortId) -> (PortId, Option<IpAddr>) {
        self.tunnels.port_of(id).map_or((id, None), |(port, address)| (port, Some(address)))
    }

    fn check_filter(&self, filter: &FdbFilter) -> Result<(), Error> {
        filter.bridge.as_deref().map(|name| self.bridge(name)).transpose()?;
        filter.port.as_deref().map(|name| self.port(name)).transpose()?;
        Ok(())
    }

    fn unaware(&self, bridge: &str) -> Error {
        Error::Invalid(format!(
            "bridge '{bridge}' does not filter VLANs, so its stations have none; leave --vlan out, or turn it on with: \
             vswitchctl bridge set {bridge} --vlan-filtering on"
        ))
    }

    /// The VLAN of untagged frames of a port.
    fn default_vid(&self, id: PortId) -> Option<u16> {
        self.policy(id).classify(None)
    }

    /// Makes the addresses of a bridge's internal ports its local entries, and nothing else.
    pub(super) fn refresh_locals(&self, index: usize) {
        let Bridge { spec, fdb, .. } = &self.bridges[index];
        let mut wanted = HashSet::new();
        for (id, port) in self.members(&spec.name) {
            let mac = port.link.as_ref().filter(|_| port.open).and_then(|link| link.mac);
            let (PortKind::Internal(_), Some(mac)) = (&port.spec.kind, mac) else { continue };
            if spec.vlan_filtering {
                let policy = self.policy(id);
                wanted.extend(policy.vids().map(|vid| (Key::new(mac, vid), id)));
            } else {
                wanted.insert((Key::new(mac, 0), id));
            }
        }
        if wanted.is_empty() && fdb.is_empty() {
            // While a configuration is loaded, which would go through the whole table for each port.
            return;
        }
        fdb.flush(|key, entry| entry.kind == Kind::Local && !wanted.contains(&(key, entry.port)));
        for (key, id) in wanted {
            if let Err(error) = fdb.insert_local(key, id) {
                tracing::error!("bridge '{}': local entry {}: {error}", spec.name, key.mac());
            }
        }
    }

    /// Where a bridge's static entries are when its settings are `then`: in the VLAN of their port's untagged frames if they
    /// were so before, else in the VLAN they were put in.
    ///
    /// # Errors
    /// One would be in no VLAN, two would be one, or they have no room: nothing that was configured is lost silently.
    pub(super) fn statics_under(
        &self,
        index: usize,
        then: &BridgeSpec,
    ) -> Result<HashMap<Key, PortId>, Error> {
        let Bridge { spec: now, fdb, .. } = &self.bridges[index];
        let remedy = |mac| format!("remove it first with: vswitchctl fdb del {mac} --bridge {}", now.name);
        let name = |id| self.ports.get(&id).map_or("", |port| &port.spec.name);
        let mut statics = HashMap::new();
        for (key, entry) in fdb.iter().filter(|(_, entry)| entry.kind == Kind::Static) {
            let Some(port) = self.ports.get(&self.device(entry.port).0) else { continue };
            let untagged =
                |spec: &BridgeSpec| VlanPolicy::new(&port.spec.vlan_mode(), spec.default_pvid).classify(None);
            let vid = match (then.vlan_filtering, now.vlan_filtering && untagged(now) != Some(key.vid())) {
                (false, _) => 0,
                (true, true) => key.vid(),
                (true, false) => untagged(then).ok_or_else(|| {
                    Error::Invalid(format!(
                        "bridge '{}': static entry {2} would be in no VLAN, for its port '{1}' is a trunk without native \
                         VLAN; {3}",
                        now.name,
                        port.spec.name,
                        key.mac(),
                        remedy(key.mac())
                    ))
                })?,
            };
            let other = statics.insert(Key::new(key.mac(), vid), entry.port);
            if let Some(other) = other.filter(|&other| other != entry.port) {
                return Err(Error::Invalid(format!(
                    "bridge '{}': the static entries {} behind ports '{}' and '{}' would be in one VLAN; {}",
                    now.name,
                    key.mac(),
                    name(other),
                    name(entry.port),
                    remedy(key.mac())
                )));
            }
        }
        let locals = fdb.iter().filter(|(_, entry)| entry.kind == Kind::Local).count();
        if statics.len() + locals > then.fdb_max as usize {
            return Err(Error::Invalid(format!(
                "bridge '{}': fdb_max {} has no room for its {} static and {locals} local entries",
                now.name,
                then.fdb_max,
                statics.len()
            )));
        }
        Ok(statics)
    }

    /// After a change of mode or default PVID: dynamic entries are forgotten, static ones are `statics` now.
    pub(super) fn rekey(&mut self, index: usize, statics: &HashMap<Key, PortId>) {
        let Bridge { spec, fdb, .. } = &self.bridges[index];
        fdb.flush(|_, entry| entry.kind != Kind::Local);
        for (key, port) in statics {
            if let Err(error) = fdb.insert_static(*key, *port) {
                tracing::error!("bridge '{}': static entry {} is lost: {error}", spec.name, key.mac());
            }
        }
    }

    /// Dynamic entries of a port that is down or gone would only draw frames into a hole.
    pub(super) fn forget_stations(&self, id: PortId) {
        let Some(bridge) = self.ports.get(&id).and_then(|port| self.bridge(&port.spec.bridge).ok()) else {
            return;
        };
        let behind = |entry: PortId| self.device(entry).0 == id;
        self.bridges[bridge].fdb.flush(|_, entry| behind(entry.port) && entry.kind == Kind::Dynamic);
    }

    /// Forgets stations not heard for their bridge's ageing time. To be called each second; a table of more than
    /// [`SWEEP_BUCKETS`] takes several calls.
    pub(in crate::switch) fn expire(&self) {
        let now = self.crew.now();
        for bridge in self.bridges.iter().filter(|bridge| !bridge.fdb.is_empty()) {
            bridge.fdb.expire_part(now, bridge.spec.ageing_secs, SWEEP_BUCKETS);
        }
    }
}
