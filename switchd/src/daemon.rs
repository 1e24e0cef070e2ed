//! What the daemon knows beyond the switch: who asked for what, and how a request becomes a change.
//!
//! [`Daemon`] is what every route of the control API ends in. It adds three things to the switch: origins
//! (the configuration's objects and those added at run time), the tolerant forms of requests (`--may-exist`,
//! `--if-exists`, partial `set`), and reload. All changes pass through one mutex, so read-modify-write is
//! safe; reading takes it only for a moment, to look up origins.
//!
//! Nothing here is fast or needs to be: a request costs a few system calls anyway.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vswitch::spec::{BridgeSpec, PortKind, PortSpec};
use vswitch::status::{BridgeStatus, FdbState, PortState, PortStatus};
use vswitch::switch::{Error, FdbFilter, Missing};

use crate::api::values::Mac;
use crate::api::{
    BridgeAdd, BridgeInfo, BridgeSet, FdbAdd, FdbInfo, FdbKey, FdbSelect, Origin, PortAdd, PortInfo, PortSet,
    ReloadReport, Stats, StatusInfo, WorkerInfo, none_such,
};
use crate::compare;
use crate::config::{Config, DEFAULT_CONFIG, DaemonSection};
use crate::control::Control;
use crate::plan::{self, Entry, Layout, Step, entry_vlan};

/// The switch, and who asked for what in it.
pub struct Daemon {
    switch: Box<dyn Control>,
    record: Mutex<Record>,
    socket: PathBuf,
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
}

impl Record {
    fn bridge(&self, name: &str) -> Origin {
        if self.bridges.contains(name) { Origin::Configuration } else { Origin::Runtime }
    }

    fn port(&self, name: &str) -> Origin {
        if self.ports.contains(name) { Origin::Configuration } else { Origin::Runtime }
    }

    fn forget_port(&mut self, name: &str) {
        self.ports.remove(name);
        self.entries.retain(|entry| entry.port != name);
    }
}

impl Daemon {
    /// A daemon around a switch that is empty so far; `section` are the settings it was started with.
    #[must_use]
    pub fn new(switch: Box<dyn Control>, section: &DaemonSection) -> Daemon {
        Daemon {
            switch,
            record: Mutex::default(),
            socket: section.socket().to_owned(),
            poll: section.poll.unwrap_or_default().to_string(),
            started: Instant::now(),
        }
    }

    /// Builds what `config` says; for the start, when nothing is there yet.
    ///
    /// # Errors
    /// As [`Daemon::reload`]; the switch is empty then.
    pub fn configure(&self, config: &Config) -> Result<ReloadReport, Error> {
        let mut record = self.record();
        record.section = config.daemon.clone();
        self.reconcile(&mut record, config)
    }

    /// Removes everything and ends the workers.
    pub fn stop(self) {
        self.switch.stop();
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        // A panic in another request leaves the record consistent: it is changed after the switch agreed.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The daemon and its workers.
    #[must_use]
    pub fn status(&self) -> StatusInfo {
        let config = self.record().path.as_ref().map(|path| path.display().to_string());
        StatusInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_secs: self.started.elapsed().as_secs(),
            socket: self.socket.display().to_string(),
            config,
            poll: self.poll.clone(),
            bridges: self.switch.bridges().len(),
            ports: self.switch.ports().len(),
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
        let record = self.record();
        let now = self.find_bridge(name)?.spec;
        let then = request.change(&now).map_err(Error::Invalid)?;
        if then != now {
            self.switch.set_bridge(then)?;
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
            let origin = record.port(&status.spec.name);
            PortInfo::new(status, bridge, origin)
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
        Ok(PortInfo::new(status, bridge.as_ref().map(|b| &b.spec), self.record().port(name)))
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
        let record = self.record();
        if let Ok(existing) = self.find_port(&spec.name) {
            compare::same_port(&existing.spec, &spec, may_exist).map_err(Error::Exists)?;
        } else {
            self.find_bridge(&spec.bridge)?;
            self.switch.add_port(spec, Missing::Refuse)?;
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
        let now = self.find_port(name)?.spec.settings;
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
        Ok(all.into_iter().map(|p| Stats { port: p.spec.name, counters: p.counters.into() }).collect())
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
        Ok(self.switch.fdb(&filter)?.into_iter().map(FdbInfo::from).collect())
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
        let vlan = entry_vlan(&bridge, &port, request.vlan.map(|vid| vid.0.get())).map_err(Error::Invalid)?;
        let Mac(mac) = request.mac;
        let entry = Entry { bridge: bridge.name, vlan, mac, port: port.name };
        match self.find_entry(&entry)? {
            Some(existing) if existing.state == FdbState::Dynamic => {}
            Some(existing)
                if existing.port == entry.port && existing.state == FdbState::Static && may_exist =>
            {
                return Ok(existing.into());
            }
            Some(existing) => {
                return Err(Error::Exists(format!(
                    "{} is a {} entry behind port '{}' already: remove it first",
                    Step::AddEntry(entry),
                    FdbInfo::from(existing.clone()).state,
                    existing.port
                )));
            }
            None => {}
        }
        self.switch.fdb_add(mac, &entry.port, entry.vlan_option())?;
        drop(record);
        let added = self.find_entry(&entry)?.map(FdbInfo::from);
        added.ok_or_else(|| Error::NotFound(format!("{} was removed meanwhile", Step::AddEntry(entry))))
    }

    /// The entry of the same bridge, VLAN and address, behind whatever port.
    fn find_entry(&self, like: &Entry) -> Result<Option<vswitch::status::FdbEntry>, Error> {
        let filter = FdbFilter { bridge: Some(like.bridge.clone()), ..FdbFilter::default() };
        let same = |entry: &vswitch::status::FdbEntry| entry.mac == like.mac && entry.vlan == like.vlan;
        Ok(self.switch.fdb(&filter)?.into_iter().find(same))
    }

    /// Removes an entry, in one VLAN or in all.
    ///
    /// # Errors
    /// There is no such bridge or entry (unless `if_exists`).
    pub fn fdb_del(&self, mac: Mac, key: &FdbKey, if_exists: bool) -> Result<(), Error> {
        let mut record = self.record();
        let bridge = self.find_bridge(&key.bridge)?.spec;
        let vlan = key.vlan.map(|vid| vid.0.get());
        if let Some(vlan) = vlan.filter(|_| !bridge.vlan_filtering) {
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

    // ---- configuration ----

    /// Reads the configuration again and applies the difference; objects of run time stay as they are.
    ///
    /// # Errors
    /// The file cannot be read or is wrong, or a change is refused; everything is as before then.
    pub fn reload(&self) -> Result<ReloadReport, Error> {
        let mut record = self.record();
        let path = match record.path.clone() {
            Some(path) => path,
            None if Path::new(DEFAULT_CONFIG).exists() => PathBuf::from(DEFAULT_CONFIG),
            None => {
                return Err(Error::Invalid(format!(
                    "vswitchd runs without a configuration: write {DEFAULT_CONFIG}, or start it with --config"
                )));
            }
        };
        let config = Config::read(&path).map_err(Error::Invalid)?;
        self.reconcile(&mut record, &config)
    }

    /// Makes the configuration's objects what `config` says.
    fn reconcile(&self, record: &mut Record, config: &Config) -> Result<ReloadReport, Error> {
        let bridges: Vec<BridgeSpec> = self.switch.bridges().into_iter().map(|status| status.spec).collect();
        let ports = self.switch.ports();
        let dead = ports.iter().filter(|port| is_dead(port)).map(|port| port.spec.name.clone()).collect();
        let ports: Vec<PortSpec> = ports.into_iter().map(|status| status.spec).collect();
        let wanted = crate::config::names(&config.layout);
        let mut adopted = Vec::new();
        let mut now = Layout::default();
        for bridge in bridges {
            match config.layout.bridges.iter().find(|b| b.name == bridge.name) {
                _ if record.bridges.contains(&bridge.name) => now.bridges.push(bridge),
                Some(same) if *same == bridge => {
                    adopted.push(format!("bridge '{}'", bridge.name));
                    now.bridges.push(bridge);
                }
                Some(other) => {
                    return Err(foreign(
                        config,
                        format!("bridge '{}'", other.name),
                        &compare::bridges(&bridge, other),
                    ));
                }
                None => {}
            }
        }
        let mut left_behind = Vec::new();
        for port in ports {
            match config.layout.ports.iter().find(|p| p.name == port.name) {
                _ if record.ports.contains(&port.name) => now.ports.push(port),
                Some(same) if *same == port => {
                    adopted.push(format!("port '{}'", port.name));
                    now.ports.push(port);
                }
                Some(other) => {
                    return Err(foreign(
                        config,
                        format!("port '{}'", other.name),
                        &compare::ports(&port, other),
                    ));
                }
                None if record.bridges.contains(&port.bridge) && !wanted.0.contains(&port.bridge) => {
                    left_behind.push(port);
                }
                None => {}
            }
        }
        if let Some(port) = left_behind.first() {
            return Err(Error::Invalid(format!(
                "bridge '{0}' is not in {1} any more, but port '{2}' was added to it at run time: remove the port, or keep the bridge",
                port.bridge,
                config.path.display(),
                port.name
            )));
        }
        now.entries.clone_from(&record.entries);

        let steps = plan::plan(&now, &config.layout, &dead);
        plan::apply(&*self.switch, &steps).map_err(|refused| explain(config, refused))?;

        let mut report = report(&steps);
        for object in adopted {
            report
                .warnings
                .push(format!("{object} was added at run time; it is the configuration's from now on"));
        }
        let differing = record.section.differing(&config.daemon);
        if !differing.is_empty() {
            report.warnings.push(format!(
                "[daemon] {} changed: restart vswitchd for it to take effect",
                differing.join(", ")
            ));
        }
        (record.bridges, record.ports) = wanted;
        record.entries.clone_from(&config.layout.entries);
        record.path = Some(config.path.clone());
        Ok(report)
    }
}

/// Whether the device that vswitchd made for it is gone for good, with its namespace or by somebody's hand.
fn is_dead(port: &PortStatus) -> bool {
    port.state == PortState::Gone && matches!(port.spec.kind, PortKind::Tap(_) | PortKind::Internal(_))
}

/// The configuration wants a name that was taken at run time.
fn foreign(config: &Config, object: String, differences: &[String]) -> Error {
    Error::Exists(format!(
        "{}{object} was added at run time with other attributes ({}): remove it, or give it another name",
        config.place_of(&object),
        differences.join(", ")
    ))
}

/// A refusal with the place in the file, and the truth about what could not be undone.
fn explain(config: &Config, refused: plan::Refused) -> Error {
    let place = config.place_of(&refused.object);
    let left = if refused.left.is_empty() {
        String::new()
    } else {
        format!("; and taking back what had been done failed: {}", refused.left.join("; "))
    };
    match refused.error {
        Error::Exists(text) => Error::Exists(format!("{place}{text}{left}")),
        Error::NotFound(text) => Error::NotFound(format!("{place}{text}{left}")),
        Error::Invalid(text) => Error::Invalid(format!("{place}{text}{left}")),
        Error::System { what, source } if left.is_empty() => {
            Error::System { what: format!("{place}{what}"), source }
        }
        error @ Error::System { .. } => Error::Invalid(format!("{place}{error}{left}")),
    }
}

/// What the steps come to. A port that is taken down and built anew is a change.
fn report(steps: &[Step]) -> ReloadReport {
    let (mut added, mut changed, mut removed) = (Vec::new(), Vec::new(), Vec::new());
    for step in steps {
        let object = step.to_string();
        match step {
            Step::AddBridge(_) | Step::AddPort(_) | Step::AddEntry(_) => added.push(object),
            Step::SetBridge { .. } | Step::SetPort { .. } => changed.push(object),
            Step::DelBridge(_) | Step::DelPort(_) | Step::DelEntry(_) => removed.push(object),
        }
    }
    let both: Vec<String> = added.iter().filter(|object| removed.contains(object)).cloned().collect();
    added.retain(|object| !both.contains(object));
    removed.retain(|object| !both.contains(object));
    changed.extend(both);
    ReloadReport { added, changed, removed, warnings: Vec::new() }
}

#[cfg(test)]
mod tests;
