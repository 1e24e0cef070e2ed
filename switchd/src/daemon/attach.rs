//! Ports that guests attach: made on a request over the attach socket, gone with the guest.
//!
//! They are nobody's configuration: a reload does not touch them, and the switch itself removes them when their interface goes. What is
//! kept here is only whose they are; an entry whose port has left is forgotten before it could stand for another of that name.

use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};

use vswitch::spec::{PacketSpec, PortKind, PortSettings, PortSpec};
use vswitch::switch::{Error, Missing};
use vswitch::sys::peer::Peer;

use super::{Daemon, Record};
use crate::api::{AttachRule, Holder, IFNAME_MAX};
use crate::attach::device::Purpose;
use crate::attach::rules::{self, Rules};
use crate::config::{DEFAULT_CONFIG, interface};

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

    /// Makes a device by `make`, which is told its name and purpose, and a port of it, for `peer`. Returns the port's name and the device's fd.
    ///
    /// # Errors
    /// There is no such bridge, no rule allows it, the user has too many, or the kernel refused. Nothing is left then.
    pub fn attach(
        &self,
        bridge: &str,
        peer: &Peer,
        make: &dyn Fn(&str, &Purpose) -> Result<OwnedFd, Error>,
    ) -> Result<(String, OwnedFd), Error> {
        self.find_bridge(bridge)?;
        let Some(uid) = peer.uid else {
            return Err(Error::Invalid(format!(
                "a user who has no number in vswitchd's user namespace may not attach to bridge '{bridge}': start QEMU as one who has"
            )));
        };
        if !self.rules().allow(peer, bridge) {
            return Err(self.not_allowed(bridge, uid));
        }
        let mut record = self.record();
        let ports = self.switch.ports();
        record.attached.retain(|name, _| ports.iter().any(|port| port.spec.name == *name));
        let theirs = record.attached.values().filter(|holder| holder.uid == uid).count();
        if uid != 0 && theirs >= PER_USER {
            return Err(Error::Invalid(format!(
                "{} has {theirs} guests attached, the most for one user: end one first",
                rules::who(uid)
            )));
        }
        let taken = |name: &str| {
            ports.iter().any(|port| {
                port.spec.name == name || interface(&port.spec).is_some_and(|(_, ifname)| ifname == name)
            })
        };
        let holder = Holder { uid, pid: peer.pid };
        let socket = self.attach_socket.clone().unwrap_or_default();
        let purpose = Purpose { bridge: bridge.to_owned(), holder, socket };
        let (name, fd) = first_free(taken, &|name| make(name, &purpose))?;
        self.lend(&mut record, &name, &purpose)?;
        tracing::info!(port = name, bridge, uid, pid = peer.pid, "attached");
        Ok((name, fd))
    }

    /// Takes guests over that an earlier vswitchd, which was killed, had attached: they go on as if nothing had been. Those of bridges
    /// that are not there any more stay as they are.
    pub fn take_over(&self, left: Vec<(String, Purpose)>) {
        let mut record = self.record();
        for (name, purpose) in left {
            match self.lend(&mut record, &name, &purpose) {
                Ok(()) => tracing::info!(port = name, bridge = purpose.bridge, "taken over"),
                Err(error) => {
                    tracing::warn!("interface '{name}' of a guest that runs is not attached again: {error}");
                }
            }
        }
    }

    /// Makes a device that is there a guest's port.
    fn lend(&self, record: &mut Record, name: &str, purpose: &Purpose) -> Result<(), Error> {
        let kind = PortKind::Packet(PacketSpec { ifname: name.to_owned(), netns: None });
        let (name, bridge) = (name.to_owned(), purpose.bridge.clone());
        let spec = PortSpec { name: name.clone(), bridge, kind, settings: PortSettings::default() };
        self.switch.add_port(spec, Missing::Leave)?;
        record.attached.insert(name, purpose.holder);
        Ok(())
    }

    /// Says which rule is missing, and where.
    fn not_allowed(&self, bridge: &str, uid: u32) -> Error {
        let path = self
            .record()
            .path
            .as_ref()
            .map_or_else(|| DEFAULT_CONFIG.to_owned(), |p| p.display().to_string());
        Error::Invalid(format!(
            "{} may not attach to bridge '{bridge}': add to {path}: [[attach]] user = {} bridge = \"{bridge}\"; then: vswitchctl reload",
            rules::who(uid),
            rules::in_rule(uid)
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
