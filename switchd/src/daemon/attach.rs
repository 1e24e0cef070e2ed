//! Ports that guests attach: made on a request over the attach socket, gone with the guest.
//!
//! They are nobody's configuration: a reload touches only those whom no rule admits any more, and the switch itself removes them when their interface
//! goes. What is kept here is only whose they are; an entry whose port has left is forgotten before it could stand for another of that name.
//!
//! **What is told to whom.** A process that no rule admits to the bridge learns its own numbers and nothing else, whether there is such a bridge or not;
//! nothing is looked up for it, and the log says which rule is missing. One that is admitted learns of its bridge and of the limits of its
//! rules. What the switch says beyond that may name other people's bridges and ports, so only root hears it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use vswitch::spec::{PacketSpec, PortKind, PortSettings, PortSpec};
use vswitch::status::PortStatus;
use vswitch::switch::{Error, Missing};
use vswitch::sys::peer::Peer;

use super::{Daemon, Record};
use crate::api::{ATTACHED_MAX, AttachInfo, Holder, IFNAME_MAX, ReloadReport, none_such};
use crate::attach::device::Purpose;
use crate::attach::rules::{Guest, Rules, Who, not_admitted};
use crate::config::{DEFAULT_CONFIG, interface};

/// First part of the names of ports and their interfaces.
const PREFIX: &str = "vtap";

impl Record {
    /// Guests among `ports`, in the order of their coming.
    fn guests<'a>(&'a self, ports: &'a [PortStatus]) -> impl Iterator<Item = Guest<'a>> {
        ports.iter().filter_map(|port| {
            let purpose = self.attached.get(&port.spec.name)?;
            Some(Guest { who: purpose.who(), bridge: &purpose.bridge, ring_bytes: port.ring_bytes })
        })
    }
}

impl Daemon {
    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_rules(&self, rules: Rules) {
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    /// The rules, as they were written, and what is used of them.
    #[must_use]
    pub fn attach_rules(&self) -> Vec<AttachInfo> {
        let ports = self.switch.ports();
        let record = self.record();
        let rules = self.rules();
        rules.shown(&rules.used(record.guests(&ports)))
    }

    /// Makes a device by `make`, which is told its name and purpose, and a port of it, for `peer`. Returns the port's name and the device's fd.
    ///
    /// # Errors
    /// No rule admits the process to that bridge, there is no such bridge, a limit is reached, or the kernel refused. Nothing is left
    /// then. The text is for the process; what it may not know is in the log.
    pub fn attach(
        &self,
        bridge: &str,
        peer: &Peer,
        make: &dyn Fn(&str, &Purpose) -> Result<OwnedFd, Error>,
    ) -> Result<(String, OwnedFd), Error> {
        let Some(who) = Who::of(peer) else {
            return Err(Error::Invalid(format!(
                "a user who has no number in vswitchd's user namespace may not attach to bridge '{bridge}': start QEMU as one who has"
            )));
        };
        // At first without the record: who is not admitted does not wait for changes, and holds up none.
        self.admit(peer, who, bridge)?;
        let mut record = self.record();
        // A reload may have changed the rules meanwhile.
        self.admit(peer, who, bridge)?;
        let rules = self.rules();
        self.find_bridge_of(peer, bridge)?;
        let ports = self.switch.ports();
        record.attached.retain(|name, _| ports.iter().any(|port| port.spec.name == *name));
        let used = rules.used(record.guests(&ports));
        // Guests' ports cost all the same: those that are there tell what another one will.
        let ring_bytes = record.guests(&ports).map(|guest| guest.ring_bytes).max().unwrap_or(0);
        let mut guest = Guest { who, bridge, ring_bytes };
        rules.place(&used, guest).map_err(Error::Invalid)?;
        if who.uid != 0 && record.attached.len() >= ATTACHED_MAX as usize {
            return Err(Error::Invalid(format!(
                "{ATTACHED_MAX} guests are attached, the most that vswitchd takes of users other than root: end one first"
            )));
        }
        let taken = |name: &str| {
            ports.iter().any(|port| {
                port.spec.name == name || interface(&port.spec).is_some_and(|(_, ifname)| ifname == name)
            })
        };
        let holder = Holder { uid: who.uid, pid: peer.pid };
        let socket = self.attach_socket.clone().unwrap_or_default();
        let purpose = Purpose { bridge: bridge.to_owned(), holder, groups: rules.sorted(who.groups), socket };
        let told = |error| self.what_is_told(who, bridge, error);
        let (name, fd) = first_free(taken, &|name| make(name, &purpose)).map_err(told)?;
        self.lend(&mut record, &name, &purpose).map_err(told)?;
        // The first of all guests: only now it is known what it takes.
        guest.ring_bytes = self.switch.port(&name).map_or(guest.ring_bytes, |port| port.ring_bytes);
        if let Err(full) = rules.place(&used, guest) {
            let _ = self.switch.del_port(&name);
            record.forget_port(&name);
            return Err(Error::Invalid(full));
        }
        tracing::info!(port = name, bridge, uid = who.uid, pid = peer.pid, "attached");
        Ok((name, fd))
    }

    /// Refuses a process that no rule admits to that bridge. Whether there is such a bridge is not looked at.
    fn admit(&self, peer: &Peer, who: Who<'_>, bridge: &str) -> Result<(), Error> {
        let rules = self.rules();
        if rules.allow(peer, bridge) {
            return Ok(());
        }
        let (uid, pid) = (who.uid, peer.pid);
        let path = rules.path().unwrap_or(Path::new(DEFAULT_CONFIG)).display();
        // One object: a person may have thousands of users, and ask for any bridge.
        tracing::warn!(
            socket = "attach",
            uid,
            pid,
            "no attach rule admits uid {uid} to bridge '{bridge}'; to admit it, add to {path}: [[attach]] user = {uid} \
             bridge = \"{bridge}\"; then: vswitchctl reload"
        );
        Err(Error::Invalid(not_admitted(who, bridge)))
    }

    /// Refuses a bridge that is not there, naming those to which the process is admitted.
    fn find_bridge_of(&self, peer: &Peer, bridge: &str) -> Result<(), Error> {
        let rules = self.rules();
        let names = self.switch.bridges().into_iter().map(|status| status.spec.name);
        let names: Vec<String> = names.filter(|name| rules.allow(peer, name)).collect();
        if names.iter().any(|name| name == bridge) {
            return Ok(());
        }
        Err(Error::NotFound(none_such("bridge", bridge, names.iter().map(String::as_str))))
    }

    /// Takes guests over that an earlier vswitchd, which was killed, had attached: they go on as if nothing had been. The rules are asked again:
    /// a guest whom none admits any more loses its device, by `remove`. Those of bridges that are not there any more stay as they
    /// are, and so do those of users who cannot be found just now.
    pub fn take_over(
        &self,
        left: Vec<(String, Purpose)>,
        remove: &dyn Fn(&str, &Purpose) -> Result<(), Error>,
    ) {
        let mut record = self.record();
        let rules = self.rules();
        for (name, purpose) in left {
            let (uid, bridge) = (purpose.holder.uid, &purpose.bridge);
            if rules.keeps(purpose.who(), bridge) {
                match self.lend(&mut record, &name, &purpose) {
                    Ok(()) => tracing::info!(port = name, bridge, "taken over"),
                    Err(error) => {
                        tracing::warn!(
                            "interface '{name}' of a guest that runs is not attached again: {error}"
                        );
                    }
                }
            } else if !rules.are_known() {
                tracing::warn!(
                    "interface '{name}' of a guest that runs is not attached again: no [[attach]] rule admits uid {uid} to bridge '{bridge}', \
                     but a user or group of a rule cannot be found; it stays without a port until vswitchd is started again"
                );
            } else if let Err(error) = remove(&name, &purpose) {
                tracing::warn!(
                    "interface '{name}' of a guest whom no [[attach]] rule admits cannot be removed: {error}"
                );
            } else {
                tracing::warn!(
                    "interface '{name}' of a guest that runs is removed: no [[attach]] rule admits uid {uid} to bridge '{bridge}' any more"
                );
            }
        }
    }

    /// Takes the ports of guests away whom no rule admits any more.
    pub(super) fn detach_revoked(&self, record: &mut Record, report: &mut ReloadReport) {
        let rules = self.rules();
        let revoked = |(name, purpose): &(&String, &Purpose)| {
            !record.ports.contains(*name) && !rules.keeps(purpose.who(), &purpose.bridge)
        };
        let revoked: Vec<(String, Purpose)> =
            record.attached.iter().filter(revoked).map(|(name, why)| (name.clone(), why.clone())).collect();
        for (name, Purpose { bridge, holder, .. }) in revoked {
            match self.switch.del_port(&name) {
                Ok(()) => {
                    report.removed.push(format!("port '{name}'"));
                    report.warnings.push(format!(
                        "port '{name}' was detached: no [[attach]] rule admits uid {} to bridge '{bridge}' any more",
                        holder.uid
                    ));
                }
                // It has left by itself.
                Err(Error::NotFound(_)) => {}
                Err(error) => {
                    report.warnings.push(format!("port '{name}' cannot be detached: {error}"));
                    continue;
                }
            }
            record.forget_port(&name);
        }
    }

    /// What a process hears of a refusal by the switch. The kernel's answers are about its own device; others may name other people's
    /// bridges, ports and interfaces.
    fn what_is_told(&self, who: Who<'_>, bridge: &str, error: Error) -> Error {
        if who.uid == 0 || matches!(error, Error::System { .. }) {
            return error;
        }
        tracing::warn!(
            socket = "attach",
            uid = who.uid,
            "cannot attach a guest to bridge '{bridge}': {error}"
        );
        Error::Invalid(format!(
            "vswitchd cannot make a port of bridge '{bridge}': ask the administrator of this host, its log says why"
        ))
    }

    /// Makes a device that is there a guest's port.
    fn lend(&self, record: &mut Record, name: &str, purpose: &Purpose) -> Result<(), Error> {
        let kind = PortKind::Packet(PacketSpec { ifname: name.to_owned(), netns: None });
        let (name, bridge) = (name.to_owned(), purpose.bridge.clone());
        let spec = PortSpec { name: name.clone(), bridge, kind, settings: PortSettings::default() };
        self.switch.add_port(spec, Missing::Leave)?;
        record.attached.insert(name, purpose.clone());
        Ok(())
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
