//! What the daemon knows beyond the switch: who asked for what, and how a request becomes a change.
//!
//! [`Daemon`] is what every route of the control API ends in. It adds three things to the switch: origins
//! (the configuration's objects and those added at run time), the tolerant forms of requests (`--may-exist`,
//! `--if-exists`, partial `set`), and reload. All changes pass through one mutex, so read-modify-write is
//! safe; reading takes it only for a moment, to look up origins.
//!
//! Nothing here is fast or needs to be: a request costs a few system calls anyway.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vswitch::spec::{BridgeSpec, PortSpec};
use vswitch::status::{BridgeStatus, FdbEntry, FdbState, PortState, PortStatus};
use vswitch::switch::{Error, FdbFilter, Missing, NeighSpec};

use crate::api::values::Mac;
use crate::api::{
    ATTACHED_MAX, BridgeAdd, BridgeInfo, BridgeSet, FdbAdd, FdbInfo, FdbKey, FdbSelect, Origin, PortAdd,
    PortInfo, PortSet, ReloadReport, Stats, StatusInfo, WorkerInfo, none_such,
};
use crate::attach::device::Purpose;
use crate::attach::rules::Rules;
use crate::compare;
use crate::config::{Config, DaemonSection};
use crate::control::Control;
use crate::plan::{Entry, Step, entry_vlan};

/// The switch, and who asked for what in it.
pub struct Daemon {
    switch: Arc<dyn Control>,
    record: Mutex<Record>,
    /// Held by a reload from the reading of its file to its end; nobody else waits for it.
    reloading: Mutex<()>,
    /// Who may attach guests. Apart from the record, because every connection looks at it, and changes may take a while.
    rules: Mutex<Arc<Rules>>,
    socket: PathBuf,
    attach_socket: Option<PathBuf>,
    poll: String,
    started: Instant,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// What is the configuration's; the rest is of run time.
#[derive(Debug, Default)]
struct Record {
    /// `--config`, or the default path once it was found there.
    path: Option<PathBuf>,
    /// The `[daemon]` table in force.
    section: DaemonSection,
    bridges: BTreeSet<String>,
    ports: BTreeSet<String>,
    entries: BTreeSet<Entry>,
    neighbours: BTreeSet<NeighSpec>,
    /// Ports that guests attached, and what for. One that has left may still be here.
    attached: BTreeMap<String, Purpose>,
}

impl Record {
    fn bridge(&self, name: &str) -> Origin {
        if self.bridges.contains(name) { Origin::Configuration } else { Origin::Runtime }
    }

    fn port(&self, name: &str) -> Origin {
        if self.ports.contains(name) {
            Origin::Configuration
        } else if self.attached.contains_key(name) {
            Origin::Attached
        } else {
            Origin::Runtime
        }
    }

    /// What is told of a port.
    fn port_info(&self, status: PortStatus, bridge: Option<&BridgeSpec>) -> PortInfo {
        let name = status.spec.name.clone();
        let mut info = PortInfo::new(status, bridge, self.port(&name));
        let attached = self.attached.get(&name).filter(|_| info.origin == Origin::Attached);
        info.attached = attached.map(|purpose| purpose.holder);
        info
    }

    fn fdb_info(&self, entry: FdbEntry) -> FdbInfo {
        let origin = (entry.state == FdbState::Static).then(|| {
            let same = |ours: &Entry| {
                (&ours.bridge, ours.vlan, ours.mac, &ours.port)
                    == (&entry.bridge, entry.vlan, entry.mac, &entry.port)
            };
            if self.entries.iter().any(same) { Origin::Configuration } else { Origin::Runtime }
        });
        FdbInfo::new(entry, origin)
    }

    fn forget_port(&mut self, name: &str) {
        self.ports.remove(name);
        self.attached.remove(name);
        self.entries.retain(|entry| entry.port != name);
    }
}

impl Daemon {
    /// A daemon around a switch that is empty so far; `section` are the settings it was started with.
    #[must_use]
    pub fn new(switch: Arc<dyn Control>, section: &DaemonSection) -> Daemon {
        Daemon {
            switch,
            record: Mutex::default(),
            reloading: Mutex::default(),
            rules: Mutex::default(),
            socket: section.socket().to_owned(),
            attach_socket: section.attach_socket(),
            poll: section.poll.unwrap_or_default().to_string(),
            started: Instant::now(),
        }
    }

    /// Builds what `config` says; for the start, when nothing is there yet. A port that the kernel refuses is there as `failed`, unless
    /// the start is `strict`.
    ///
    /// # Errors
    /// As [`Daemon::reload`]; the switch is empty then.
    pub fn configure(&self, config: &Config, strict: bool) -> Result<ReloadReport, Error> {
        let rules = Rules::resolve(&config.attach, &self.rules());
        let mut record = self.record();
        record.section = config.daemon.clone();
        self.reconcile(&mut record, config, rules, if strict { Missing::Wait } else { Missing::Keep })
    }

    /// Removes everything and ends the workers.
    pub fn stop(self) {
        drop(self);
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        // A panic in another request leaves the record consistent: it is changed after the switch agreed.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The daemon and its workers.
    #[must_use]
    pub fn status(&self) -> StatusInfo {
        let ports = self.switch.ports();
        let failed = ports.iter().filter(|port| port.state == PortState::Failed);
        let (config, attached_ports) = {
            let record = self.record();
            let attached = ports.iter().filter(|port| record.port(&port.spec.name) == Origin::Attached);
            (record.path.as_ref().map(|path| path.display().to_string()), attached.count())
        };
        StatusInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_secs: self.started.elapsed().as_secs(),
            socket: self.socket.display().to_string(),
            attach_socket: self.attach_socket.as_ref().map(|path| path.display().to_string()),
            config,
            poll: self.poll.clone(),
            bridges: self.switch.bridges().len(),
            ports: ports.len(),
            failed_ports: failed.map(|port| port.spec.name.clone()).collect(),
            attached_ports,
            attached_ports_max: ATTACHED_MAX,
            workers: WorkerInfo::all(&self.switch.status()),
        }
    }

    // ---- bridges ----

    /// Every bridge.
    #[must_use]
    pub fn bridges(&self) -> Vec<BridgeInfo> {
        let all = self.switch.bridges();
        let record = self.record();
        let info = |status: BridgeStatus| {
            let origin = record.bridge(&status.spec.name);
            BridgeInfo::new(status, origin)
        };
        all.into_iter().map(info).collect()
    }

    /// One bridge.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn bridge(&self, name: &str) -> Result<BridgeInfo, Error> {
        let status = self.find_bridge(name)?;
        Ok(BridgeInfo::new(status, self.record().bridge(name)))
    }

    fn find_bridge(&self, name: &str) -> Result<BridgeStatus, Error> {
        let mut all = self.switch.bridges();
        match all.iter().position(|bridge| bridge.spec.name == name) {
            Some(index) => Ok(all.swap_remove(index)),
            None => Err(Error::NotFound(none_such("bridge", name, all.iter().map(|b| b.spec.name.as_str())))),
        }
    }

    /// Adds a bridge.
    ///
    /// # Errors
    /// It exists (with `may_exist`: and differs), or an option is impossible.
    pub fn add_bridge(&self, request: &BridgeAdd, may_exist: bool) -> Result<BridgeInfo, Error> {
        let spec = request.to_spec().map_err(Error::Invalid)?;
        let record = self.record();
        if let Ok(existing) = self.find_bridge(&spec.name) {
            compare::same_bridge(&existing.spec, &spec, may_exist).map_err(Error::Exists)?;
        } else {
            self.switch.add_bridge(spec)?;
        }
        drop(record);
        self.bridge(&request.name)
    }

    /// Changes the given settings of a bridge.
    ///
    /// # Errors
    /// There is no such bridge, or an option is impossible.
    pub fn set_bridge(&self, name: &str, request: &BridgeSet) -> Result<BridgeInfo, Error> {
        let mut record = self.record();
        let now = self.find_bridge(name)?.spec;
        let then = request.change(&now).map_err(Error::Invalid)?;
        if then != now {
            self.switch.set_bridge(then)?;
            // The configuration's stations may be in another VLAN now.
            let there = self.stations()?;
            let known = |entry: &Entry| stations::current(entry, &there, &record.entries);
            record.entries =
                record.entries.iter().map(|entry| known(entry).unwrap_or_else(|| entry.clone())).collect();
            let there = self.static_neighbours()?;
            let known = |one: &NeighSpec| neighbours::current(one, &there, &record.neighbours);
            record.neighbours =
                record.neighbours.iter().map(|one| known(one).unwrap_or_else(|| one.clone())).collect();
        }
        drop(record);
        self.bridge(name)
    }

    /// Removes a bridge, `with_ports` together with its ports.
    ///
    /// # Errors
    /// There is no such bridge (unless `if_exists`), or it has ports.
    pub fn del_bridge(&self, name: &str, with_ports: bool, if_exists: bool) -> Result<(), Error> {
        let mut record = self.record();
        let ports = match self.find_bridge(name) {
            Err(Error::NotFound(_)) if if_exists => return Ok(()),
            found => found?.ports,
        };
        self.switch.del_bridge(name, with_ports)?;
        record.bridges.remove(name);
        record.neighbours.retain(|known| known.bridge != name);
        ports.iter().for_each(|port| record.forget_port(port));
        Ok(())
    }

    // ---- ports ----

    /// Every port.
    #[must_use]
    pub fn ports(&self) -> Vec<PortInfo> {
        let bridges = self.switch.bridges();
        let ports = self.switch.ports();
        let record = self.record();
        let info = |status: PortStatus| {
            let bridge = bridges.iter().map(|b| &b.spec).find(|b| b.name == status.spec.bridge);
            record.port_info(status, bridge)
        };
        ports.into_iter().map(info).collect()
    }

    /// One port.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn port(&self, name: &str) -> Result<PortInfo, Error> {
        let status = self.find_port(name)?;
        let bridge = self.find_bridge(&status.spec.bridge).ok();
        Ok(self.record().port_info(status, bridge.as_ref().map(|b| &b.spec)))
    }

    fn find_port(&self, name: &str) -> Result<PortStatus, Error> {
        self.switch.port(name)
    }

    /// Adds a port.
    ///
    /// # Errors
    /// It exists (with `may_exist`: and differs), an option is impossible, or the kernel refuses.
    pub fn add_port(&self, request: &PortAdd, may_exist: bool) -> Result<PortInfo, Error> {
        let spec = request.to_spec().map_err(Error::Invalid)?;
        let mut record = self.record();
        if let Ok(existing) = self.find_port(&spec.name) {
            compare::same_port(&existing.spec, &spec, may_exist).map_err(Error::Exists)?;
        } else {
            self.find_bridge(&spec.bridge)?;
            self.switch.add_port(spec, Missing::Refuse)?;
            // An attached one of that name has left.
            record.attached.remove(&request.name);
        }
        drop(record);
        self.port(&request.name)
    }

    /// Changes the given settings of a port.
    ///
    /// # Errors
    /// There is no such port, or an option is impossible.
    pub fn set_port(&self, name: &str, request: &PortSet) -> Result<PortInfo, Error> {
        let record = self.record();
        let PortSpec { bridge, settings: now, .. } = self.find_port(name)?.spec;
        if request.has_vlan_options() && !self.find_bridge(&bridge)?.spec.vlan_filtering {
            return Err(Error::Invalid(format!(
                "port '{name}' cannot have VLAN options: bridge '{bridge}' does not filter VLANs; \
                 turn it on with: vswitchctl bridge set {bridge} --vlan-filtering on"
            )));
        }
        let then = request.change(name, &now).map_err(Error::Invalid)?;
        if then != now {
            self.switch.set_port(name, then)?;
        }
        drop(record);
        self.port(name)
    }

    /// Removes a port.
    ///
    /// # Errors
    /// There is no such port (unless `if_exists`).
    pub fn del_port(&self, name: &str, if_exists: bool) -> Result<(), Error> {
        let mut record = self.record();
        match self.find_port(name) {
            Err(Error::NotFound(_)) if if_exists => return Ok(()),
            found => found?,
        };
        self.switch.del_port(name)?;
        record.forget_port(name);
        Ok(())
    }

    /// The counters of one port, or of all.
    ///
    /// # Errors
    /// There is no such port.
    pub fn stats(&self, port: Option<&str>) -> Result<Vec<Stats>, Error> {
        let all = match port {
            Some(name) => vec![self.find_port(name)?],
            None => self.switch.ports(),
        };
        Ok(all.into_iter().map(Stats::new).collect())
    }

    // ---- stations ----

    /// Refuses a bridge or port that is not there.
    fn check_select(&self, select: &FdbSelect) -> Result<FdbFilter, Error> {
        if let Some(bridge) = &select.bridge {
            self.find_bridge(bridge)?;
        }
        if let Some(port) = &select.port {
            self.find_port(port)?;
        }
        Ok(select.to_filter())
    }

    /// The stations that are known.
    ///
    /// # Errors
    /// There is no such bridge or port.
    pub fn fdb(&self, select: &FdbSelect) -> Result<Vec<FdbInfo>, Error> {
        let filter = self.check_select(select)?;
        let entries = self.switch.fdb(&filter)?;
        let record = self.record();
        Ok(entries.into_iter().map(|entry| record.fdb_info(entry)).collect())
    }

    /// Adds a static entry; a learned one of that address becomes static.
    ///
    /// # Errors
    /// There is no such port; the entry exists (with `may_exist`: behind another port); the VLAN is impossible.
    pub fn fdb_add(&self, request: &FdbAdd, may_exist: bool) -> Result<FdbInfo, Error> {
        request.check().map_err(Error::Invalid)?;
        let record = self.record();
        let port = self.find_port(&request.port)?.spec;
        let bridge = self.find_bridge(&port.bridge)?.spec;
        let vlan = entry_vlan(&bridge, &port, request.vlan.map(|vlan| vlan.0)).map_err(Error::Invalid)?;
        let Mac(mac) = request.mac;
        let entry = Entry { bridge: bridge.name, vlan, mac, port: port.name, remote: request.remote };
        match self.find_entry(&entry)? {
            Some(existing) if existing.state == FdbState::Dynamic => {}
            Some(existing)
                if existing.port == entry.port
                    && entry.remote.is_none_or(|remote| existing.remote == Some(remote))
                    && existing.state == FdbState::Static
                    && may_exist =>
            {
                return Ok(record.fdb_info(existing));
            }
            Some(existing) => {
                let remedy = match existing.state {
                    FdbState::Local => "it goes with the port".to_owned(),
                    _ => {
                        format!("remove it first with: vswitchctl fdb del {mac} --bridge {}", existing.bridge)
                    }
                };
                return Err(Error::Exists(format!(
                    "{} is a {} entry behind port '{}' already: {remedy}",
                    Step::AddEntry(entry),
                    crate::api::EntryState::from(existing.state),
                    existing.port
                )));
            }
            None => {}
        }
        self.switch.fdb_add(mac, &entry.port, Some(entry.vlan), entry.remote)?;
        let added = self.find_entry(&entry)?.map(|entry| record.fdb_info(entry));
        drop(record);
        added.ok_or_else(|| Error::NotFound(format!("{} was removed meanwhile", Step::AddEntry(entry))))
    }

    /// The entry of the same bridge, VLAN and address, behind whatever port.
    fn find_entry(&self, like: &Entry) -> Result<Option<FdbEntry>, Error> {
        let filter = FdbFilter { bridge: Some(like.bridge.clone()), ..FdbFilter::default() };
        let same = |entry: &FdbEntry| entry.mac == like.mac && entry.vlan == like.vlan;
        Ok(self.switch.fdb(&filter)?.into_iter().find(same))
    }

    /// Removes an entry, in one VLAN or in all.
    ///
    /// # Errors
    /// There is no such bridge or entry (unless `if_exists`).
    pub fn fdb_del(&self, mac: Mac, key: &FdbKey, if_exists: bool) -> Result<(), Error> {
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
        match self.switch.fdb_del(mac.0, &bridge.name, vlan) {
            Err(Error::NotFound(_)) if if_exists => Ok(()),
            result => {
                result?;
                let gone = |entry: &Entry| {
                    (&entry.bridge, entry.mac) == (&bridge.name, mac.0)
                        && vlan.is_none_or(|vlan| vlan == entry.vlan)
                };
                record.entries.retain(|entry| !gone(entry));
                Ok(())
            }
        }
    }

    /// Forgets dynamic entries.
    ///
    /// # Errors
    /// There is no such bridge or port.
    pub fn fdb_flush(&self, select: &FdbSelect) -> Result<usize, Error> {
        let filter = self.check_select(select)?;
        let _serialised = self.record();
        self.switch.fdb_flush(&filter)
    }
}

mod attach;
mod neighbours;
mod reload;
mod stations;

#[cfg(test)]
mod tests;
