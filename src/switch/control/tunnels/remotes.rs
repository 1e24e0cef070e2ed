//! All remotes there are, by their id and by the port they are of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Remote;
use crate::addr::PortId;

#[derive(Debug, Default)]
pub(super) struct Remotes {
    all: BTreeMap<PortId, Remote>,
    by_port: BTreeMap<PortId, BTreeSet<PortId>>,
}

impl Remotes {
    pub(super) fn get(&self, id: PortId) -> Option<&Remote> {
        self.all.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: PortId) -> Option<&mut Remote> {
        self.all.get_mut(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PortId, &Remote)> {
        self.all.iter().map(|(&id, remote)| (id, remote))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (PortId, &mut Remote)> {
        self.all.iter_mut().map(|(&id, remote)| (id, remote))
    }

    /// Those of one port, in order of id.
    pub(super) fn of(&self, port: PortId) -> impl Iterator<Item = (PortId, &Remote)> {
        let ids = self.by_port.get(&port).into_iter().flatten();
        ids.filter_map(|&id| Some((id, self.all.get(&id)?)))
    }

    pub(super) fn has(&self, port: PortId, address: IpAddr) -> bool {
        self.of(port).any(|(_, remote)| remote.address == address)
    }

    pub(super) fn insert(&mut self, id: PortId, remote: Remote) {
        self.by_port.entry(remote.port).or_default().insert(id);
        self.all.insert(id, remote);
    }

    pub(super) fn remove(&mut self, id: PortId) -> Option<Remote> {
        let remote = self.all.remove(&id)?;
        if let Some(ids) = self.by_port.get_mut(&remote.port) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_port.remove(&remote.port);
            }
        }
        Some(remote)
    }

    /// The highest id in use.
    pub(super) fn last_id(&self) -> Option<PortId> {
        self.all.keys().next_back().copied()
    }
}
