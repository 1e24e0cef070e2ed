//! Ports that guests attach: made on a request over the attach socket, gone with the guest.
//!
//! They are nobody's configuration: a reload does not touch them, and the switch itself removes them when their interface goes. What is
//! kept here is only whose they are; an entry whose port has left is forgotten before it could stand for another of that name.

use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};

use vswitch::spec::{PacketSpec, PortKind, PortSettings, PortSpec};
use vswitch::switch::{Error, Missing};
use vswitch::sys::peer::Peer;

use super::Daemon;
use crate::api::{AttachRule, Holder, IFNAME_MAX};
use crate::attach::rules::{self, Rules};
use crate::config::DEFAULT_CONFIG;
use crate::config::interface;

/// First part of the names of ports and their interfaces.
const PREFIX: &str = "vtap";
/// Ports that a user other than root may have attached at a time.
const PER_USER: usize = 256;

impl Daemon {
    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_rules(&self, rules: Rules) {
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    /// The rules, as they were written.
    #[must_use]
    pub fn attach_rules(&self) -> Vec<AttachRule> {
        self.rules().written().to_vec()
    }

    /// Makes a device by `make`, which is told its name, and a port of it, for `peer`. Returns the port's name and the device's fd.
    ///
    /// # Errors
    /// There is no such bridge, no rule allows it, the user has too many, or the kernel refused. Nothing is left then.
    pub fn attach(
        &self,
        bridge: &str,
        peer: &Peer,
        make: &dyn Fn(&str) -> Result<OwnedFd, Error>,
    ) -> Result<(String, OwnedFd), Error> {
        self.find_bridge(bridge)?;
        if !self.rules().allow(peer, bridge) {
            return Err(self.not_allowed(bridge, peer));
        }
        let mut record = self.record();
        let ports = self.switch.ports();
        record.attached.retain(|name, _| ports.iter().any(|port| port.spec.name == *name));
        let theirs = record.attached.values().filter(|holder| holder.uid == peer.uid).count();
        if peer.uid != 0 && theirs >= PER_USER {
            return Err(Error::Invalid(format!(
                "{} has {theirs} guests attached, the most for one user: end one first",
                rules::who(peer.uid)
            )));
        }
        let taken = |name: &str| {
            ports.iter().any(|port| {
                port.spec.name == name || interface(&port.spec).is_some_and(|(_, ifname)| ifname == name)
            })
        };
        let (name, fd) = first_free(taken, make)?;
        let kind = PortKind::Packet(PacketSpec { ifname: name.clone(), netns: None });
        let settings = PortSettings::default();
        let spec = PortSpec { name: name.clone(), bridge: bridge.to_owned(), kind, settings };
        self.switch.add_port(spec, Missing::Leave)?;
        record.attached.insert(name.clone(), Holder { uid: peer.uid, pid: peer.pid });
        tracing::info!(port = name, bridge, uid = peer.uid, pid = peer.pid, "attached");
        Ok((name, fd))
    }

    /// Says which rule is missing, and where.
    fn not_allowed(&self, bridge: &str, peer: &Peer) -> Error {
        let path = self
            .record()
            .path
            .as_ref()
            .map_or_else(|| DEFAULT_CONFIG.to_owned(), |p| p.display().to_string());
        Error::Invalid(format!(
            "{} may not attach to bridge '{bridge}': add to {path}: [[attach]] user = {} bridge = \"{bridge}\"; then: vswitchctl reload",
            rules::who(peer.uid),
            rules::in_rule(peer.uid)
        ))
    }
}

/// The device of the lowest number that neither a port nor an interface has.
fn first_free(
    taken: impl Fn(&str) -> bool,
    make: &dyn Fn(&str) -> Result<OwnedFd, Error>,
) -> Result<(String, OwnedFd), Error> {
    let names =
        (0u32..).map(|number| format!("{PREFIX}{number}")).take_while(|name| name.len() <= IFNAME_MAX);
    for name in names.filter(|name| !taken(name)).take(vswitch::topology::PORTS_MAX) {
        match make(&name) {
            Ok(fd) => return Ok((name, fd)),
            Err(Error::Exists(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::Invalid(format!("every interface name from {PREFIX}0 on is taken: delete some of them")))
}
