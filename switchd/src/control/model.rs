//! The rules of the switch, in memory and without frames: what is built on [`Control`] is tested against it.
//!
//! It refuses everything the switch refuses and is stricter in one place, so that a plan cannot lean on the
//! switch's kindness: a bridge with static stations, or ports with VLAN options, does not change its VLAN mode, nor with stations its
//! default PVID. The addresses of tunnels are always there.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vswitch::addr::MacAddr;
use vswitch::bridge::neighbours::follow;
use vswitch::spec::{BridgeSpec, PortKind, PortSettings, PortSpec, VlanMode};
use vswitch::status::{
    BridgeStatus, FdbEntry, FdbState, NeighbourEntry, PortCounters, PortState, PortStatus, RemoteStatus,
    SwitchStatus, WorkerStatus,
};
use vswitch::switch::{Error, FdbFilter, Missing, NeighFilter, NeighSpec};

use super::Control;
use crate::api::none_such;
use crate::plan::{Entry, Layout, collide};

/// A switch without devices.
#[derive(Debug, Default)]
pub struct Model(Mutex<Inner>);

/// What the model knows, and how it is to behave.
#[derive(Debug, Default)]
pub struct Inner {
    /// Bridges, ports and static stations.
    pub layout: Layout,
    /// Learned stations.
    pub learned: BTreeSet<Entry>,
    /// Names of ports whose device was made or removed.
    pub devices_touched: Vec<String>,
    /// Interfaces for packet ports.
    pub interfaces: BTreeSet<String>,
    /// Memory of the rings of each packet port.
    pub ring_bytes: u64,
    /// Ports without device.
    pub gone: BTreeSet<String>,
    /// Names of ports that the "kernel" refuses.
    pub refused: BTreeSet<String>,
    /// Ports that it has refused.
    pub failed: BTreeSet<String>,
    /// Two ports that the "kernel" knows to have one thing, whatever they call it.
    pub one_and_the_same: Option<(String, String)>,
    /// Changes that still succeed; then one is refused by the "kernel".
    pub fails_after: Option<usize>,
}

fn unaware_refusal(port: &str, bridge: &str) -> Error {
    Error::Invalid(format!("port '{port}' has VLAN options, but bridge '{bridge}' does not filter VLANs"))
}

fn kernel_refuses(port: &str) -> Error {
    let what = format!("port '{port}': the kernel refuses it");
    Error::System { what, source: io::Error::from_raw_os_error(13) }
}

/// Refuses what another port has.
fn check_taken(ports: &[PortSpec], asked: &PortSpec) -> Result<(), Error> {
    let taken = |other: &&PortSpec| other.name != asked.name && collide(asked, other);
    match ports.iter().find(taken) {
        None => Ok(()),
        Some(other) => {
            Err(Error::Exists(format!("port '{}': '{}' has what it needs", asked.name, other.name)))
        }
    }
}

/// The remote of `port` that an entry is behind which asked for `remote`.
fn remote_for(port: &PortSpec, remote: Option<IpAddr>) -> Result<Option<IpAddr>, Error> {
    let wrong = || Error::Invalid(format!("port '{}': say which remote", port.name));
    match (&port.kind, remote, port.settings.tunnel.remotes.as_slice()) {
        (PortKind::Tunnel(_), None, &[only]) => Ok(Some(only)),
        (PortKind::Tunnel(_), Some(remote), there) if there.contains(&remote) => Ok(Some(remote)),
        (PortKind::Tunnel(_), ..) | (_, Some(_), _) => Err(wrong()),
        (_, None, _) => Ok(None),
    }
}

impl Inner {
    /// One change; fails when it is its turn to.
    fn change(&mut self, object: &str) -> Result<(), Error> {
        match &mut self.fails_after {
            Some(0) => {
                self.fails_after = None;
                Err(Error::System { what: object.to_owned(), source: io::Error::from_raw_os_error(28) })
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn bridge(&mut self, name: &str) -> Result<&mut BridgeSpec, Error> {
        let found = self.layout.bridges.iter_mut().find(|bridge| bridge.name == name);
        found.ok_or_else(|| Error::NotFound(format!("no bridge '{name}'")))
    }

    fn port(&mut self, name: &str) -> Result<&mut PortSpec, Error> {
        let found = self.layout.ports.iter_mut().find(|port| port.name == name);
        found.ok_or_else(|| Error::NotFound(format!("no port '{name}'")))
    }

    fn drop_port(&mut self, name: &str) {
        self.layout.ports.retain(|port| port.name != name);
        self.layout.entries.retain(|entry| entry.port != name);
        self.learned.retain(|entry| entry.port != name);
        self.failed.remove(name);
        self.devices_touched.push(name.to_owned());
    }
}

fn remote_status(address: &IpAddr) -> RemoteStatus {
    let counters =
        PortCounters { tx_frames: 5, drops: [("unreachable", 4)].into(), ..PortCounters::default() };
    RemoteStatus { address: *address, learned: false, mtu: 1450, counters }
}

impl Model {
    /// To look into it, or to prepare it.
    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control for Model {
    fn status(&self) -> SwitchStatus {
        SwitchStatus {
            workers: vec![WorkerStatus { cpu: Some(1), busy_turns: 10, sleeps: 2, generation: 3 }],
        }
    }

    fn add_bridge(&self, spec: BridgeSpec) -> Result<(), Error> {
        let mut inner = self.inner();
        if inner.bridge(&spec.name).is_ok() {
            return Err(Error::Exists(format!("bridge '{}' exists", spec.name)));
        }
        inner.change("bridge")?;
        inner.layout.bridges.push(spec);
        Ok(())
    }

    fn set_bridge(&self, spec: BridgeSpec) -> Result<(), Error> {
        let mut inner = self.inner();
        let (mode, pvid) = {
            let bridge = inner.bridge(&spec.name)?;
            (bridge.vlan_filtering, bridge.default_pvid)
        };
        if (mode, pvid) != (spec.vlan_filtering, spec.default_pvid) {
            if inner.layout.entries.iter().any(|entry| entry.bridge == spec.name) {
                return Err(Error::Invalid(format!("bridge '{}' has static stations", spec.name)));
            }
            let has_options =
                |port: &&PortSpec| port.bridge == spec.name && port.vlan_mode() != VlanMode::Default;
            if let Some(port) =
                inner.layout.ports.iter().find(has_options).filter(|_| mode != spec.vlan_filtering)
            {
                return Err(unaware_refusal(&port.name, &spec.name));
            }
            inner.learned.retain(|entry| entry.bridge != spec.name);
        }
        inner.change("bridge")?;
        let place = inner.bridge(&spec.name)?;
        let before = std::mem::replace(place, spec.clone());
        let follow = |known: NeighSpec| {
            let vlan =
                if known.bridge == spec.name { follow(known.vlan, &before, &spec) } else { known.vlan };
            NeighSpec { vlan, ..known }
        };
        inner.layout.neighbours =
            std::mem::take(&mut inner.layout.neighbours).into_iter().map(follow).collect();
        Ok(())
    }

    fn del_bridge(&self, name: &str, with_ports: bool) -> Result<(), Error> {
        let mut inner = self.inner();
        inner.bridge(name)?;
        let ports: Vec<String> =
            inner.layout.ports.iter().filter(|p| p.bridge == name).map(|p| p.name.clone()).collect();
        if !ports.is_empty() && !with_ports {
            return Err(Error::Invalid(format!("bridge '{name}' has ports")));
        }
        inner.change("bridge")?;
        ports.iter().for_each(|port| inner.drop_port(port));
        inner.layout.bridges.retain(|bridge| bridge.name != name);
        inner.layout.neighbours.retain(|known| known.bridge != name);
        Ok(())
    }

    fn bridges(&self) -> Vec<BridgeStatus> {
        let inner = self.inner();
        let status = |spec: &BridgeSpec| BridgeStatus {
            spec: spec.clone(),
            fdb_used: 0,
            fdb_counters: vswitch::bridge::fdb::Counters::default(),
            ports: inner
                .layout
                .ports
                .iter()
                .filter(|p| p.bridge == spec.name)
                .map(|p| p.name.clone())
                .collect(),
        };
        inner.layout.bridges.iter().map(status).collect()
    }

    fn add_port(&self, spec: PortSpec, missing: Missing) -> Result<(), Error> {
        let mut inner = self.inner();
        if inner.port(&spec.name).is_ok() {
            return Err(Error::Exists(format!("port '{}' exists", spec.name)));
        }
        if !inner.bridge(&spec.bridge)?.vlan_filtering && spec.vlan_mode() != VlanMode::Default {
            return Err(unaware_refusal(&spec.name, &spec.bridge));
        }
        check_taken(&inner.layout.ports, &spec)?;
        if let Some((holder, other)) = &inner.one_and_the_same
            && *other == spec.name
            && inner.layout.ports.iter().any(|port| port.name == *holder)
        {
            return Err(Error::Exists(format!("port '{other}': '{holder}' has that under another name")));
        }
        if let PortKind::Packet(packet) = &spec.kind
            && !matches!(missing, Missing::Wait | Missing::Keep)
            && !inner.interfaces.contains(&packet.ifname)
        {
            return Err(Error::NotFound(format!("port '{}': no interface '{}'", spec.name, packet.ifname)));
        }
        if inner.refused.contains(&spec.name) {
            if missing != Missing::Keep {
                return Err(kernel_refuses(&spec.name));
            }
            inner.failed.insert(spec.name.clone());
        }
        inner.change("port")?;
        inner.devices_touched.push(spec.name.clone());
        inner.gone.remove(&spec.name);
        inner.layout.ports.push(spec);
        Ok(())
    }

    fn set_port(&self, name: &str, settings: PortSettings) -> Result<(), Error> {
        let mut inner = self.inner();
        let now = inner.port(name)?.clone();
        let given = settings.vlan != VlanMode::Default && settings.vlan != now.settings.vlan;
        if given && !inner.bridge(&now.bridge)?.vlan_filtering {
            return Err(unaware_refusal(name, &now.bridge));
        }
        let then = PortSpec { settings: settings.clone(), ..now.clone() };
        check_taken(&inner.layout.ports, &then)?;
        for entry in inner.layout.entries.iter().filter(|entry| entry.port == name) {
            let remote = remote_for(&now, entry.remote)?;
            if remote.is_some_and(|remote| !then.settings.tunnel.remotes.contains(&remote)) {
                return Err(Error::Invalid(format!(
                    "port '{name}': static entry {} is behind that",
                    entry.mac
                )));
            }
        }
        inner.change("port")?;
        inner.port(name)?.settings = settings;
        Ok(())
    }

    fn retry_port(&self, name: &str) -> Result<(), Error> {
        let mut inner = self.inner();
        inner.port(name)?;
        if inner.failed.contains(name) && inner.refused.contains(name) {
            return Err(kernel_refuses(name));
        }
        inner.failed.remove(name);
        Ok(())
    }

    fn del_port(&self, name: &str) -> Result<(), Error> {
        let mut inner = self.inner();
        inner.port(name)?;
        inner.change("port")?;
        inner.drop_port(name);
        Ok(())
    }

    fn port(&self, name: &str) -> Result<PortStatus, Error> {
        let found = self.ports().into_iter().find(|port| port.spec.name == name);
        found.ok_or_else(|| {
            Error::NotFound(none_such("port", name, self.ports().iter().map(|port| port.spec.name.as_str())))
        })
    }

    fn ports(&self) -> Vec<PortStatus> {
        let inner = self.inner();
        let status = |spec: &PortSpec| PortStatus {
            spec: spec.clone(),
            ifname: spec.kind.interface().map(|(_, ifname)| ifname.to_owned()),
            ifindex: Some(7),
            mac: None,
            mtu: Some(1500),
            state: match (inner.failed.contains(&spec.name), inner.gone.contains(&spec.name)) {
                (true, _) => PortState::Failed,
                (_, true) => PortState::Gone,
                _ => PortState::Up,
            },
            reason: inner.failed.contains(&spec.name).then(|| "the kernel refuses it".to_owned()),
            queues: 1,
            ring_bytes: if matches!(spec.kind, PortKind::Packet(_)) { inner.ring_bytes } else { 0 },
            peer: None,
            remotes: spec.settings.tunnel.remotes.iter().map(remote_status).collect(),
            peers: None,
            hint: None,
            counters: PortCounters {
                rx_frames: 3,
                drops: [("no_destination", 2)].into(),
                ..PortCounters::default()
            },
        };
        inner.layout.ports.iter().map(status).collect()
    }

    fn fdb(&self, filter: &FdbFilter) -> Result<Vec<FdbEntry>, Error> {
        let inner = self.inner();
        let stations = inner.layout.entries.iter().map(|entry| (entry, FdbState::Static));
        let stations = stations.chain(inner.learned.iter().map(|entry| (entry, FdbState::Dynamic)));
        let wanted = |entry: &Entry| {
            filter.bridge.as_ref().is_none_or(|bridge| *bridge == entry.bridge)
                && filter.port.as_ref().is_none_or(|port| *port == entry.port)
                && filter.vlan.is_none_or(|vlan| vlan == entry.vlan)
        };
        let remote = |entry: &Entry| {
            let port = inner.layout.ports.iter().find(|port| port.name == entry.port);
            port.and_then(|port| remote_for(port, entry.remote).ok()).flatten()
        };
        let entry = |(entry, state): (&Entry, FdbState)| FdbEntry {
            mac: entry.mac,
            vlan: entry.vlan,
            bridge: entry.bridge.clone(),
            port: entry.port.clone(),
            remote: remote(entry),
            state,
            age_secs: 0,
        };
        Ok(stations.filter(|(entry, _)| wanted(entry)).map(entry).collect())
    }

    fn fdb_add(
        &self,
        mac: MacAddr,
        port: &str,
        vlan: Option<u16>,
        remote: Option<IpAddr>,
    ) -> Result<(), Error> {
        let mut inner = self.inner();
        let bridge = inner.port(port)?.bridge.clone();
        remote_for(inner.port(port)?, remote)?;
        let vlan = vlan.filter(|&vlan| vlan != 0);
        if inner.bridge(&bridge)?.vlan_filtering != vlan.is_some() {
            return Err(Error::Invalid(format!("{mac}: a VLAN is for filtering bridges")));
        }
        inner.change("entry")?;
        let entry = Entry { bridge, vlan: vlan.unwrap_or(0), mac, port: port.to_owned(), remote };
        let same = |e: &Entry| (&e.bridge, e.vlan, e.mac) == (&entry.bridge, entry.vlan, entry.mac);
        inner.layout.entries.retain(|e| !same(e));
        inner.learned.retain(|e| !same(e));
        inner.layout.entries.insert(entry);
        Ok(())
    }

    fn fdb_del(&self, mac: MacAddr, bridge: &str, vlan: Option<u16>) -> Result<(), Error> {
        let mut inner = self.inner();
        inner.bridge(bridge)?;
        inner.change("entry")?;
        let before = inner.layout.entries.len() + inner.learned.len();
        let same =
            |e: &Entry| (e.bridge.as_str(), e.mac) == (bridge, mac) && vlan.is_none_or(|vlan| vlan == e.vlan);
        inner.layout.entries.retain(|e| !same(e));
        inner.learned.retain(|e| !same(e));
        if inner.layout.entries.len() + inner.learned.len() == before {
            return Err(Error::NotFound(format!("no entry {mac} on bridge '{bridge}'")));
        }
        Ok(())
    }

    fn fdb_flush(&self, filter: &FdbFilter) -> Result<usize, Error> {
        let mut inner = self.inner();
        let before = inner.learned.len();
        inner.learned.retain(|entry| filter.bridge.as_ref().is_some_and(|bridge| *bridge != entry.bridge));
        Ok(before - inner.learned.len())
    }

    fn neighbours(&self, filter: &NeighFilter) -> Result<Vec<NeighbourEntry>, Error> {
        let inner = self.inner();
        let wanted = |known: &&NeighSpec| {
            filter.bridge.as_ref().is_none_or(|bridge| *bridge == known.bridge)
                && filter.vlan.is_none_or(|vlan| vlan == known.vlan)
        };
        let entry = |known: &NeighSpec| NeighbourEntry {
            address: known.address,
            mac: known.mac,
            vlan: known.vlan,
            bridge: known.bridge.clone(),
            state: FdbState::Static,
            router: Some(known.router),
            age_secs: 0,
        };
        Ok(inner.layout.neighbours.iter().filter(wanted).map(entry).collect())
    }

    fn neigh_add(&self, spec: NeighSpec) -> Result<(), Error> {
        let mut inner = self.inner();
        if inner.bridge(&spec.bridge)?.vlan_filtering != (spec.vlan != 0) {
            return Err(Error::Invalid(format!("{}: a VLAN is for filtering bridges", spec.address)));
        }
        inner.change("neighbour")?;
        let same = |known: &NeighSpec| {
            (&known.bridge, known.vlan, known.address) == (&spec.bridge, spec.vlan, spec.address)
        };
        inner.layout.neighbours.retain(|known| !same(known));
        inner.layout.neighbours.insert(spec);
        Ok(())
    }

    fn neigh_del(&self, address: IpAddr, bridge: &str, vlan: Option<u16>) -> Result<(), Error> {
        let mut inner = self.inner();
        inner.bridge(bridge)?;
        inner.change("neighbour")?;
        let before = inner.layout.neighbours.len();
        inner.layout.neighbours.retain(|known| {
            (known.bridge.as_str(), known.address) != (bridge, address)
                || vlan.is_some_and(|vlan| vlan != known.vlan)
        });
        if inner.layout.neighbours.len() == before {
            return Err(Error::NotFound(format!("no neighbour {address} on bridge '{bridge}'")));
        }
        Ok(())
    }

    fn neigh_flush(&self, _: &NeighFilter) -> Result<usize, Error> {
        Ok(0)
    }
}
