//! Silencing the host on many interfaces.
//!
//! To attach the program that keeps the host's stack from answering (see [`crate::sys::bpf`]) takes the kernel one or two
//! grace periods under a lock that all changes of interfaces need, so many cannot do it at once: 400 take some four
//! seconds. When many ports come together, all of them are opened first. The host falls silent afterwards, one interface
//! after the other, as soon as it would have if every port had waited for it; only the frames flow earlier.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Control, Port};
use crate::addr::PortId;
use crate::port;
use crate::spec::PortKind;
use crate::switch::disposal;
use crate::switch::namespaces::Place;
use crate::sys::{bpf, netns, thread};

/// A packet port on whose interface the host still answers.
#[derive(Debug)]
pub(in crate::switch) struct Awake {
    id: PortId,
    sequence: u64,
    ifindex: u32,
    place: Place,
    name: String,
}

impl Awake {
    fn is_of(&self, port: &Port) -> bool {
        let index = port.link.as_ref().map(|link| link.index);
        port.open && port.sequence == self.sequence && index == Some(self.ifindex)
    }
}

impl Control {
    /// Many ports are about to come.
    pub(in crate::switch) fn expect<'a>(&mut self, ports: impl Iterator<Item = &'a PortKind>) {
        self.preparation.prepare(ports, self.crew.len());
        self.preparation.silence_later = true;
    }

    /// They have come; on their interfaces the host is to be silenced.
    pub(in crate::switch) fn expect_no_more(&mut self) -> Vec<Awake> {
        self.preparation.silence_later = false;
        disposal::dispose(self.preparation.left());
        std::mem::take(&mut self.awake)
    }

    pub(super) fn silence_later(&mut self, id: PortId, port: &Port, ifindex: Option<u32>) {
        let (PortKind::Packet(spec), Some(ifindex)) = (&port.spec.kind, ifindex) else { return };
        if self.preparation.silence_later {
            let (place, name) = (spec.netns.clone(), spec.ifname.clone());
            self.awake.push(Awake { id, sequence: port.sequence, ifindex, place, name });
        }
    }

    /// Whether the port still has that interface.
    fn has(&self, awake: &Awake) -> bool {
        self.ports.get(&awake.id).is_some_and(|port| awake.is_of(port))
    }

    /// Keeps what silences the host for as long as the port has that interface.
    fn keep_silent(&mut self, awake: &Awake, silence: OwnedFd) -> Option<OwnedFd> {
        match self.ports.get_mut(&awake.id).filter(|port| awake.is_of(port)) {
            Some(port) => {
                port.keep.push(silence);
                None
            }
            None => Some(silence),
        }
    }
}

/// Until what was refused for want of a thread or a descriptor is tried again.
const REST: Duration = Duration::from_secs(1);

/// Silences the host on these interfaces, unless their ports leave or `end` says so first. Holds the lock only in between. With
/// `patient`, what is refused for want of a thread or a descriptor is tried again until it is had.
pub(in crate::switch) fn silence(
    control: &Mutex<Control>,
    all: Vec<Awake>,
    patient: bool,
    end: impl Fn() -> bool,
) {
    let mut waiting = all;
    loop {
        let mut again = Vec::new();
        for awake in waiting {
            if end() {
                return;
            }
            let ns = awake.place.as_ref().map(netns::open).transpose();
            let silenced = ns.and_then(|ns| bpf::silence_host(awake.ifindex, ns.as_ref().map(AsFd::as_fd)));
            match silenced {
                Ok(silence) => {
                    let mut control = control.lock().unwrap_or_else(PoisonError::into_inner);
                    let unused = control.keep_silent(&awake, silence);
                    drop(control);
                    drop(unused);
                }
                // The port has gone with its interface.
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    port::warn_of_host(&awake.name, &error);
                    if passes(&error.source) {
                        again.push(awake);
                    }
                }
            }
        }
        {
            let control = control.lock().unwrap_or_else(PoisonError::into_inner);
            again.retain(|awake| control.has(awake));
        }
        if again.is_empty() || !patient {
            return;
        }
        let until = Instant::now() + REST;
        while Instant::now() < until && !end() {
            std::thread::sleep(REST / 20);
        }
        waiting = again;
    }
}

/// Whether an error is for want of what comes back.
fn passes(error: &io::Error) -> bool {
    thread::is_lacking(error)
        || matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN))
}
