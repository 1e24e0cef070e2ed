//! The switch as the daemon sees it.
//!
//! A trait over exactly the methods of [`Switch`], for one reason: what is built on top (reconciliation with
//! roll-back, origins, the HTTP layer) is tested against a model in memory, without devices and privileges.

use std::net::IpAddr;

use vswitch::addr::MacAddr;
use vswitch::spec::{BridgeSpec, PortSettings, PortSpec};
use vswitch::status::{BridgeStatus, FdbEntry, NeighbourEntry, PortStatus, SwitchStatus};
use vswitch::switch::{Error, FdbFilter, Missing, NeighFilter, NeighSpec, Switch};

/// See the methods of the same names of [`Switch`].
#[allow(missing_docs, clippy::missing_errors_doc)]
pub trait Control: Send + Sync {
    fn status(&self) -> SwitchStatus;
    fn add_bridge(&self, spec: BridgeSpec) -> Result<(), Error>;
    fn set_bridge(&self, spec: BridgeSpec) -> Result<(), Error>;
    fn del_bridge(&self, name: &str, with_ports: bool) -> Result<(), Error>;
    fn bridges(&self) -> Vec<BridgeStatus>;
    fn add_port(&self, spec: PortSpec, missing: Missing) -> Result<(), Error>;
    /// The model has nothing to prepare.
    fn expect_ports(&self, _ports: &[PortSpec]) {}
    fn expect_no_more(&self) {}
    fn set_port(&self, name: &str, settings: PortSettings) -> Result<(), Error>;
    fn retry_port(&self, name: &str) -> Result<(), Error>;
    fn del_port(&self, name: &str) -> Result<(), Error>;
    fn ports(&self) -> Vec<PortStatus>;
    fn port(&self, name: &str) -> Result<PortStatus, Error>;
    fn fdb(&self, filter: &FdbFilter) -> Result<Vec<FdbEntry>, Error>;
    fn fdb_add(
        &self,
        mac: MacAddr,
        port: &str,
        vlan: Option<u16>,
        remote: Option<IpAddr>,
    ) -> Result<(), Error>;
    fn fdb_del(&self, mac: MacAddr, bridge: &str, vlan: Option<u16>) -> Result<(), Error>;
    fn fdb_flush(&self, filter: &FdbFilter) -> Result<usize, Error>;
    fn neighbours(&self, filter: &NeighFilter) -> Result<Vec<NeighbourEntry>, Error>;
    fn neigh_add(&self, spec: NeighSpec) -> Result<(), Error>;
    fn neigh_del(&self, address: IpAddr, bridge: &str, vlan: Option<u16>) -> Result<(), Error>;
    fn neigh_flush(&self, filter: &NeighFilter) -> Result<usize, Error>;
}

impl Control for Switch {
    fn status(&self) -> SwitchStatus {
        Switch::status(self)
    }
    fn add_bridge(&self, spec: BridgeSpec) -> Result<(), Error> {
        Switch::add_bridge(self, spec)
    }
    fn set_bridge(&self, spec: BridgeSpec) -> Result<(), Error> {
        Switch::set_bridge(self, spec)
    }
    fn del_bridge(&self, name: &str, with_ports: bool) -> Result<(), Error> {
        Switch::del_bridge(self, name, with_ports)
    }
    fn bridges(&self) -> Vec<BridgeStatus> {
        Switch::bridges(self)
    }
    fn add_port(&self, spec: PortSpec, missing: Missing) -> Result<(), Error> {
        Switch::add_port(self, spec, missing)
    }
    fn expect_ports(&self, ports: &[PortSpec]) {
        Switch::expect_ports(self, ports.iter());
    }
    fn expect_no_more(&self) {
        Switch::expect_no_more(self);
    }
    fn set_port(&self, name: &str, settings: PortSettings) -> Result<(), Error> {
        Switch::set_port(self, name, settings)
    }
    fn retry_port(&self, name: &str) -> Result<(), Error> {
        Switch::retry_port(self, name)
    }
    fn del_port(&self, name: &str) -> Result<(), Error> {
        Switch::del_port(self, name)
    }
    fn ports(&self) -> Vec<PortStatus> {
        Switch::ports(self)
    }
    fn port(&self, name: &str) -> Result<PortStatus, Error> {
        Switch::port(self, name)
    }
    fn fdb(&self, filter: &FdbFilter) -> Result<Vec<FdbEntry>, Error> {
        Switch::fdb(self, filter)
    }
    fn fdb_add(
        &self,
        mac: MacAddr,
        port: &str,
        vlan: Option<u16>,
        remote: Option<IpAddr>,
    ) -> Result<(), Error> {
        Switch::fdb_add(self, mac, port, vlan, remote)
    }
    fn fdb_del(&self, mac: MacAddr, bridge: &str, vlan: Option<u16>) -> Result<(), Error> {
        Switch::fdb_del(self, mac, bridge, vlan)
    }
    fn fdb_flush(&self, filter: &FdbFilter) -> Result<usize, Error> {
        Switch::fdb_flush(self, filter)
    }
    fn neighbours(&self, filter: &NeighFilter) -> Result<Vec<NeighbourEntry>, Error> {
        Switch::neighbours(self, filter)
    }
    fn neigh_add(&self, spec: NeighSpec) -> Result<(), Error> {
        Switch::neigh_add(self, spec)
    }
    fn neigh_del(&self, address: IpAddr, bridge: &str, vlan: Option<u16>) -> Result<(), Error> {
        Switch::neigh_del(self, address, bridge, vlan)
    }
    fn neigh_flush(&self, filter: &NeighFilter) -> Result<usize, Error> {
        Switch::neigh_flush(self, filter)
    }
}

// For the tests beside the code, and those of other crates of this workspace that ask for the feature.
#[cfg(any(test, feature = "model"))]
pub mod model;
