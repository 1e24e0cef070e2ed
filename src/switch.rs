//! The control side: owns bridges, ports and workers, and applies changes to them.

use std::fmt;

use crate::addr::MacAddr;
use crate::spec::{BridgeSpec, PortSettings, PortSpec};
use crate::status::{BridgeStatus, FdbEntry, PortStatus, SwitchStatus};

/// How workers wait for frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PollMode {
    /// Spin while it pays, then sleep.
    #[default]
    Adaptive,
    /// Never sleep.
    Busy,
    /// Sleep at once.
    Wait,
}

/// How a switch runs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Worker threads; `None` is one a core.
    pub workers: Option<usize>,
    /// CPUs to pin workers to, round robin; empty: not pinned.
    pub cpus: Vec<usize>,
    /// How workers wait.
    pub poll: PollMode,
}

/// Why a change was refused: one line that names the object and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something of that name exists already.
    #[error("{0}")]
    Exists(String),
    /// Nothing of that name.
    #[error("{0}")]
    NotFound(String),
    /// The request contradicts itself or the state of the switch.
    #[error("{0}")]
    Invalid(String),
    /// The kernel refused.
    #[error("{what}: {source}")]
    System {
        /// The object and the operation.
        what: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// What to do when a packet port's interface does not exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// Refuse the port.
    Refuse,
    /// Add it as `gone`; it comes up when the interface appears.
    Wait,
}

/// Which stations to show or flush; `None` is any.
#[derive(Clone, Debug, Default)]
pub struct FdbFilter {
    /// Of this bridge.
    pub bridge: Option<String>,
    /// Behind this port.
    pub port: Option<String>,
    /// In this VLAN.
    pub vlan: Option<u16>,
}

/// A running switch. Every method may be called from any thread; changes are serialised.
pub struct Switch {}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Switch")
    }
}

#[allow(unused_variables, missing_docs)]
impl Switch {
    pub fn start(options: Options) -> Result<Switch, Error> {
        todo!()
    }
    pub fn status(&self) -> SwitchStatus {
        todo!()
    }
    pub fn add_bridge(&self, spec: BridgeSpec) -> Result<(), Error> {
        todo!()
    }
    /// Replaces every setting of the bridge called `spec.name`.
    pub fn set_bridge(&self, spec: BridgeSpec) -> Result<(), Error> {
        todo!()
    }
    pub fn del_bridge(&self, name: &str, with_ports: bool) -> Result<(), Error> {
        todo!()
    }
    pub fn bridges(&self) -> Vec<BridgeStatus> {
        todo!()
    }
    pub fn add_port(&self, spec: PortSpec, missing: Missing) -> Result<(), Error> {
        todo!()
    }
    /// Replaces every setting of a port.
    pub fn set_port(&self, name: &str, settings: PortSettings) -> Result<(), Error> {
        todo!()
    }
    pub fn del_port(&self, name: &str) -> Result<(), Error> {
        todo!()
    }
    pub fn ports(&self) -> Vec<PortStatus> {
        todo!()
    }
    pub fn fdb(&self, filter: &FdbFilter) -> Result<Vec<FdbEntry>, Error> {
        todo!()
    }
    /// Adds (or replaces) a static entry.
    pub fn fdb_add(&self, mac: MacAddr, port: &str, vlan: Option<u16>) -> Result<(), Error> {
        todo!()
    }
    /// Removes an entry of any state but local.
    pub fn fdb_del(&self, mac: MacAddr, bridge: &str, vlan: Option<u16>) -> Result<(), Error> {
        todo!()
    }
    /// Forgets dynamic entries; returns how many.
    pub fn fdb_flush(&self, filter: &FdbFilter) -> Result<usize, Error> {
        todo!()
    }
    /// Removes everything it created and ends the workers.
    pub fn stop(self) {
        todo!()
    }
}
