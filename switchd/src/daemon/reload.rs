//! Reload: what belongs to the configuration, and how it becomes what the file says.
//!
//! Objects of run time stay as they are, but for ports of guests whom no attach rule admits any more: those are detached. One that the file has as well is taken over if it is the same, else the reload is
//! refused; so nothing is changed that somebody asked for by hand.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use vswitch::spec::{BridgeSpec, PortKind, PortSpec};
use vswitch::status::{FdbState, PortState, PortStatus};
use vswitch::switch::{Error, FdbFilter, Missing, NeighSpec};

use super::stations::{carry_over, current, has, is_entry};
use super::{Daemon, Record, neighbours};
use crate::api::ReloadReport;
use crate::attach::rules::Rules;
use crate::compare;
use crate::config::{Config, DEFAULT_CONFIG};
use crate::plan::{self, Entry, Layout, Step};

impl Daemon {
    /// Reads the configuration again and applies the difference; objects of run time stay as they are.
    ///
    /// # Errors
    /// The file cannot be read or is wrong, or a change is refused; everything is as before then.
    pub fn reload(&self) -> Result<ReloadReport, Error> {
        // One at a time: what is read last holds.
        let _turn = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        // Read without the record: the file system may take its time, and requests need that.
        let path = self.record().path.clone();
        let path = match path {
            Some(path) => path,
            None if Path::new(DEFAULT_CONFIG).exists() => PathBuf::from(DEFAULT_CONFIG),
            None => {
                return Err(Error::Invalid(format!(
                    "vswitchd runs without a configuration: write {DEFAULT_CONFIG}, or start it with --config"
                )));
            }
        };
        let config = Config::read(&path).map_err(Error::Invalid)?;
        // So may a name service.
        let rules = Rules::resolve(&config.attach, &self.rules());
        let mut record = self.record();
        self.reconcile(&mut record, &config, rules, Missing::Wait)
    }

    /// Tries those of `failed` again that are the same as before; says which were refused again.
    fn retry(&self, failed: &[PortSpec], wanted: &Layout) -> Vec<String> {
        let dead = BTreeSet::new();
        let same = |old: &&PortSpec| {
            wanted.ports.iter().any(|new| new.name == old.name && plan::keeps_device(old, new, &dead))
        };
        let again = |port: &PortSpec| self.switch.retry_port(&port.name).err();
        let warning = |error| format!("{error}; the port has failed again, and is tried now and then");
        failed.iter().filter(same).filter_map(again).map(warning).collect()
    }

    /// Every static station there is.
    pub(super) fn stations(&self) -> Result<Vec<Entry>, Error> {
        let all = self.switch.fdb(&FdbFilter::default())?.into_iter();
        let fixed = all.filter(|entry| entry.state == FdbState::Static);
        Ok(fixed
            .map(|e| Entry { bridge: e.bridge, vlan: e.vlan, mac: e.mac, port: e.port, remote: e.remote })
            .collect())
    }

    /// Makes the configuration's objects what `config` says. Of new ports that the kernel refuses `missing` says what becomes; those that had
    /// failed before are tried again, and may fail again.
    pub(super) fn reconcile(
        &self,
        record: &mut Record,
        config: &Config,
        (rules, warnings): (Rules, Vec<String>),
        missing: Missing,
    ) -> Result<ReloadReport, Error> {
        let bridges: Vec<BridgeSpec> = self.switch.bridges().into_iter().map(|status| status.spec).collect();
        let ports = self.switch.ports();
        let dead = ports.iter().filter(|port| is_dead(port)).map(|port| port.spec.name.clone()).collect();
        let failed: Vec<PortSpec> = ports
            .iter()
            .filter(|port| port.state == PortState::Failed)
            .map(|port| port.spec.clone())
            .collect();
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
        let (mut left_behind, mut theirs) = (Vec::new(), Vec::new());
        for port in ports {
            match config.layout.ports.iter().find(|p| p.name == port.name) {
                _ if record.ports.contains(&port.name) => now.ports.push(port),
                Some(other) if record.attached.contains_key(&port.name) => {
                    return Err(Error::Exists(format!(
                        "{}port '{}' is a guest's: give this one another name",
                        config.place_of(&format!("port '{}'", other.name)),
                        port.name
                    )));
                }
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
                None => theirs.push(port),
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
        let stations = self.stations()?;
        now.entries =
            record.entries.iter().filter_map(|entry| current(entry, &stations, &record.entries)).collect();
        for entry in &config.layout.entries {
            match stations.iter().find(|there| is_entry(there, entry)).filter(|_| !has(&now.entries, entry)) {
                Some(there)
                    if there.port == entry.port
                        && entry.remote.is_none_or(|remote| there.remote == Some(remote)) =>
                {
                    adopted.push(Step::AddEntry(entry.clone()).to_string());
                    now.entries.insert(entry.clone());
                }
                // With its port goes the entry.
                Some(there) if record.ports.contains(&there.port) && !wanted.1.contains(&there.port) => {}
                Some(there) => {
                    let differs = if there.port == entry.port {
                        format!("it is behind another remote of port '{}'", there.port)
                    } else {
                        format!("it is behind port '{}', not '{}'", there.port, entry.port)
                    };
                    return Err(foreign(config, Step::AddEntry(entry.clone()).to_string(), &[differs]));
                }
                None => {}
            }
        }
        let neighbours = self.static_neighbours()?;
        let ours = record.neighbours.iter();
        now.neighbours =
            ours.filter_map(|one| neighbours::current(one, &neighbours, &record.neighbours)).collect();
        for one in &config.layout.neighbours {
            let there = neighbours.iter().find(|there| neighbours::is_same(there, one));
            let Some(there) = there.filter(|_| !neighbours::has(&now.neighbours, one)) else { continue };
            let object = Step::AddNeighbour(one.clone()).to_string();
            if there != one {
                let router = |known: &NeighSpec| if known.router { " as a router" } else { "" };
                let differs = format!("it is {}{}, not {}{}", there.mac, router(there), one.mac, router(one));
                return Err(foreign(config, object, &[differs]));
            }
            adopted.push(object);
            now.neighbours.insert(one.clone());
        }
        let mut then = config.layout.clone();
        carry_over(&stations, &theirs, &dead, &mut now, &mut then)
            .and_then(|()| neighbours::carry_over(&neighbours, &mut now, &mut then))
            .map_err(|error| Error::Invalid(format!("{}: {error}", config.path.display())))?;

        let steps = plan::plan(&now, &then, &dead);
        plan::apply(&*self.switch, &steps, missing).map_err(|refused| explain(config, refused))?;

        let mut report = report(&steps);
        report.warnings.extend(self.retry(&failed, &config.layout));
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
        report.warnings.extend(warnings);
        self.set_rules(rules.written_in(&config.path));
        (record.bridges, record.ports) = wanted;
        // Last, because their devices cannot be brought back.
        self.detach_revoked(record, &mut report);
        record.entries.clone_from(&config.layout.entries);
        record.neighbours.clone_from(&config.layout.neighbours);
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
    let mut left = if refused.left.is_empty() {
        String::new()
    } else {
        format!("; and taking back what had been done failed: {}", refused.left.join("; "))
    };
    if !refused.rebuilt.is_empty() {
        left += &format!("; made anew on the way back: {}", refused.rebuilt.join(", "));
    }
    match refused.error {
        Error::Exists(text) => Error::Exists(format!("{place}{text}{left}")),
        Error::NotFound(text) => Error::NotFound(format!("{place}{text}{left}")),
        Error::Invalid(text) => Error::Invalid(format!("{place}{text}{left}")),
        Error::System { what, source } if left.is_empty() => {
            Error::System { what: format!("{place}{what}"), source }
        }
        // Still the kernel's refusal, so that what passes is known as such.
        Error::System { what, source } => {
            Error::System { what: format!("{place}{what} ({})", left.trim_start_matches("; and ")), source }
        }
    }
}

/// What the steps come to. A port that is taken down and built anew is a change.
fn report(steps: &[Step]) -> ReloadReport {
    let (mut added, mut changed, mut removed) = (Vec::new(), Vec::new(), Vec::new());
    for step in steps {
        let object = step.to_string();
        match step {
            Step::AddBridge(_) | Step::AddPort(_) | Step::AddEntry(_) | Step::AddNeighbour(_) => {
                added.push(object);
            }
            Step::SetBridge { .. } | Step::SetPort { .. } if changed.contains(&object) => {}
            Step::SetBridge { .. } | Step::SetPort { .. } => changed.push(object),
            Step::DelBridge(_) | Step::DelPort(_) | Step::DelEntry(_) | Step::DelNeighbour(_) => {
                removed.push(object);
            }
        }
    }
    changed.retain(|object| !removed.contains(object));
    let both: Vec<String> = added.iter().filter(|object| removed.contains(object)).cloned().collect();
    added.retain(|object| !both.contains(object));
    removed.retain(|object| !both.contains(object));
    changed.extend(both);
    ReloadReport { added, changed, removed, warnings: Vec::new() }
}
