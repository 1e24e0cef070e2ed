//! The control side: owns bridges, ports and workers, and applies changes to them.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use mio::{Events, Poll, Token, Waker};

use crate::addr::MacAddr;
use crate::spec::{BridgeSpec, PortSettings, PortSpec};
use crate::status::{BridgeStatus, FdbEntry, NeighbourEntry, PortStatus, SwitchStatus};
use crate::sys;
use crate::worker::Event;

mod control;
mod crew;
mod disposal;
mod identity;
mod namespaces;

use control::{Control, silence};
use crew::Crew;
use identity::Identity;
use namespaces::Namespaces;

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
    /// Bytes of guests' memory that all ports together map at most ([`crate::virtio::room`]); `None` goes by the machine's memory.
    pub guest_memory_max: Option<u64>,
    /// What tells this switch from others on the same machine, from one start to the next: the interfaces that it makes get
    /// their addresses by it.
    pub instance: String,
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

/// What to do when a packet port's interface does not exist, or no longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// Refuse the port.
    Refuse,
    /// Add it as `gone`; it comes up when the interface appears.
    Wait,
    /// Add it whatever the kernel says: as `gone` like [`Missing::Wait`], or as `failed` with the reason. It is tried
    /// again. What the request itself has wrong is refused.
    Keep,
    /// Refuse the port. The interface was made for it: the port leaves when the interface goes, and takes it along when it is removed.
    Leave,
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

/// Which neighbours to show or flush; `None` is any.
#[derive(Clone, Debug, Default)]
pub struct NeighFilter {
    /// Of this bridge.
    pub bridge: Option<String>,
    /// In this VLAN.
    pub vlan: Option<u16>,
}

/// A static neighbour to add.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NeighSpec {
    /// The bridge.
    pub bridge: String,
    /// Its VLAN; 0 in a bridge that does not filter.
    pub vlan: u16,
    /// The address.
    pub address: IpAddr,
    /// The station that has it.
    pub mac: MacAddr,
    /// It is an IPv6 router.
    pub router: bool,
}

impl Error {
    /// Whether it failed because the kernel gave no thread ([`sys::thread::is_lacking`]): the same
    /// may do later.
    #[must_use]
    pub fn lacks_thread(&self) -> bool {
        matches!(self, Error::System { source, .. } if sys::thread::is_lacking(source))
    }

    fn not_found<'a>(what: &str, name: &str, existing: impl Iterator<Item = &'a str>) -> Error {
        let mut existing: Vec<_> = existing.collect();
        existing.sort_unstable();
        let existing = match existing.len() {
            0 => format!("there is no {what} yet; add one with: vswitchctl {what} add"),
            1..=20 => format!("existing: {}", existing.join(", ")),
            n => format!("there are {n} others; list them with: vswitchctl {what} show"),
        };
        Error::NotFound(format!("no {what} '{name}'; {existing}"))
    }

    fn port(name: &str, error: sys::Error) -> Error {
        if error.is_not_found() {
            Error::NotFound(format!("port '{name}': {error}"))
        } else if error.is_exists() {
            Error::Exists(format!("port '{name}': {error}"))
        } else if error.source.kind() == io::ErrorKind::InvalidInput && error.source.raw_os_error().is_none()
        {
            Error::Invalid(format!("port '{name}': {error}"))
        } else {
            Error::System { what: format!("port '{name}': {}", error.what), source: error.source }
        }
    }
}

/// A running switch. Every method may be called from any thread; changes are serialised. Dropping it is stopping it.
pub struct Switch {
    control: Arc<Mutex<Control>>,
    bell: Arc<Waker>,
    end: Arc<AtomicBool>,
    caretaker: Option<JoinHandle<()>>,
    /// Threads that silence the host.
    silencers: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switch").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Switch {
    /// Starts the workers, without bridges and ports.
    ///
    /// # Errors
    /// A thread or epoll instance cannot be had, or a CPU to pin to does not exist.
    pub fn start(options: &Options) -> Result<Switch, Error> {
        let system = |what: &str| {
            let what = what.to_owned();
            move |source| Error::System { what, source }
        };
        let poll = Poll::new().map_err(system("cannot start: epoll"))?;
        let bell = Arc::new(Waker::new(poll.registry(), BELL).map_err(system("cannot start: eventfd"))?);
        let registry = poll.registry().try_clone().map_err(system("cannot start: epoll"))?;
        let (events, inbox) = unbounded();
        let crew = Crew::start(options, &events, &bell).map_err(system("cannot start the workers"))?;
        let mut control = Control::new(crew, Namespaces::new(registry));
        control.set_guest_memory_max(options.guest_memory_max);
        control.identity = Identity::of(&options.instance);
        let control = Arc::new(Mutex::new(control));
        let end = Arc::new(AtomicBool::new(false));
        let caretaker = Caretaker { poll, inbox, control: Arc::clone(&control), end: Arc::clone(&end) };
        let thread = sys::thread::spawn("caretaker", move || caretaker.run());
        let caretaker = Some(thread.map_err(system("cannot start a thread"))?);
        Ok(Switch { control, bell, end, caretaker, silencers: Mutex::default() })
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        // A panic while a change was made left the old topology running; what is there is still consistent.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The workers.
    #[must_use]
    pub fn status(&self) -> SwitchStatus {
        SwitchStatus { workers: self.control().crew.status() }
    }

    /// Adds a bridge.
    ///
    /// # Errors
    /// The name is taken or not one, or a number is out of range.
    pub fn add_bridge(&self, spec: BridgeSpec) -> Result<(), Error> {
        self.control().add_bridge(spec)
    }

    /// Replaces every setting of the bridge called `spec.name`. A change of VLAN filtering forgets dynamic entries.
    ///
    /// # Errors
    /// There is no such bridge, or a number is out of range.
    pub fn set_bridge(&self, spec: BridgeSpec) -> Result<(), Error> {
        self.control().set_bridge(spec)
    }

    /// Removes a bridge.
    ///
    /// # Errors
    /// There is no such bridge, or it has ports and `with_ports` is false.
    pub fn del_bridge(&self, name: &str, with_ports: bool) -> Result<(), Error> {
        self.control().del_bridge(name, with_ports)
    }

    /// Every bridge, in order of creation.
    #[must_use]
    pub fn bridges(&self) -> Vec<BridgeStatus> {
        self.control().bridges()
    }

    /// Adds a port. When this returns, every worker forwards its frames.
    ///
    /// # Errors
    /// The name or the interface is taken, there is no such bridge, the bridge does not filter VLANs, or the kernel refused.
    pub fn add_port(&self, spec: PortSpec, missing: Missing) -> Result<(), Error> {
        self.control().add_port(spec, missing)
    }

    /// Says that these ports will be added next, so that what takes the kernel long is done for
    /// all of them together. [`Switch::expect_no_more`] has to follow.
    pub fn expect_ports<'a>(&self, ports: impl Iterator<Item = &'a PortSpec>) {
        self.control().expect(ports.map(|port| &port.kind));
    }

    /// The ports that were expected have been added. On the interfaces of packet ports among them
    /// the host is silenced now; this waits for it up to a second.
    pub fn expect_no_more(&self) {
        let awake = self.control().expect_no_more();
        if awake.is_empty() {
            return;
        }
        let (number, began) = (awake.len(), Instant::now());
        let (control, end) = (Arc::clone(&self.control), Arc::clone(&self.end));
        let (done, is_done) = crossbeam_channel::bounded(1);
        let job = std::sync::Arc::new(Mutex::new(Some(awake)));
        let theirs = Arc::clone(&job);
        let work = move || {
            let awake = theirs.lock().unwrap_or_else(PoisonError::into_inner).take();
            silence(&control, awake.unwrap_or_default(), true, || end.load(Ordering::Relaxed));
            if began.elapsed() > SILENCE_WAIT && !end.load(Ordering::Relaxed) {
                let seconds = began.elapsed().as_secs_f32();
                tracing::info!("the host is silent on {number} interfaces after {seconds:.1} s");
            }
            let _ = done.send(());
        };
        match crate::sys::thread::spawn("silence", work) {
            Ok(thread) => {
                let mut silencers = self.silencers.lock().unwrap_or_else(PoisonError::into_inner);
                silencers.retain(|thread| !thread.is_finished());
                silencers.push(thread);
                drop(silencers);
                let _ = is_done.recv_timeout(SILENCE_WAIT);
            }
            Err(error) => {
                tracing::warn!("no thread to silence the host with, so it takes longer: {error}");
                let awake = job.lock().unwrap_or_else(PoisonError::into_inner).take();
                silence(&self.control, awake.unwrap_or_default(), false, || false);
            }
        }
    }

    /// Replaces every setting of a port, without losing a frame.
    ///
    /// # Errors
    /// There is no such port, or its bridge does not filter VLANs.
    pub fn set_port(&self, name: &str, settings: PortSettings) -> Result<(), Error> {
        self.control().set_port(name, settings)
    }

    /// Tries a port that is `failed` or `gone` again, now. One that has what it needs is left alone.
    ///
    /// # Errors
    /// There is no such port, or it was refused again; it stays then, and is tried again later.
    pub fn retry_port(&self, name: &str) -> Result<(), Error> {
        self.control().retry_port(name)
    }

    /// Removes a port and the stations behind it.
    ///
    /// # Errors
    /// There is no such port.
    pub fn del_port(&self, name: &str) -> Result<(), Error> {
        self.control().del_port(name)
    }

    /// Every port, in order of creation.
    #[must_use]
    pub fn ports(&self) -> Vec<PortStatus> {
        self.control().ports()
    }

    /// One port.
    ///
    /// # Errors
    /// There is no such port.
    pub fn port(&self, name: &str) -> Result<PortStatus, Error> {
        self.control().port_named(name)
    }

    /// Stations, sorted by bridge, VLAN and address.
    ///
    /// # Errors
    /// The filter names a bridge or port that does not exist.
    pub fn fdb(&self, filter: &FdbFilter) -> Result<Vec<FdbEntry>, Error> {
        self.control().fdb(filter)
    }

    /// Adds (or replaces) a static entry. Without `vlan`, in a bridge that filters, it is in the VLAN of the port's
    /// untagged frames. Behind a tunnel port with several remotes it is behind one of them.
    ///
    /// # Errors
    /// There is no such port, it does not carry the VLAN, the address is no station's, or the table is full.
    pub fn fdb_add(
        &self,
        mac: MacAddr,
        port: &str,
        vlan: Option<u16>,
        remote: Option<IpAddr>,
    ) -> Result<(), Error> {
        self.control().fdb_add(mac, port, vlan, remote)
    }

    /// Removes an entry, in one VLAN or in all, of any state but local.
    ///
    /// # Errors
    /// There is no such bridge or entry, or the entry is local.
    pub fn fdb_del(&self, mac: MacAddr, bridge: &str, vlan: Option<u16>) -> Result<(), Error> {
        self.control().fdb_del(mac, bridge, vlan)
    }

    /// Forgets dynamic entries; returns how many.
    ///
    /// # Errors
    /// The filter names a bridge or port that does not exist.
    pub fn fdb_flush(&self, filter: &FdbFilter) -> Result<usize, Error> {
        self.control().fdb_flush(filter)
    }

    /// Neighbours, sorted by bridge, VLAN and address.
    ///
    /// # Errors
    /// The filter names a bridge that does not exist.
    pub fn neighbours(&self, filter: &NeighFilter) -> Result<Vec<NeighbourEntry>, Error> {
        self.control().neighbours(filter)
    }

    /// Adds (or replaces) a static neighbour.
    ///
    /// # Errors
    /// There is no such bridge, the VLAN or an address is impossible, or there are too many.
    pub fn neigh_add(&self, spec: NeighSpec) -> Result<(), Error> {
        self.control().neigh_add(&spec)
    }

    /// Removes a neighbour, in one VLAN or in all, of any state.
    ///
    /// # Errors
    /// There is no such bridge or neighbour.
    pub fn neigh_del(&self, address: IpAddr, bridge: &str, vlan: Option<u16>) -> Result<(), Error> {
        self.control().neigh_del(address, bridge, vlan)
    }

    /// Forgets dynamic neighbours; returns how many.
    ///
    /// # Errors
    /// The filter names a bridge that does not exist.
    pub fn neigh_flush(&self, filter: &NeighFilter) -> Result<usize, Error> {
        self.control().neigh_flush(filter)
    }

    /// Removes everything it created and ends its threads.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.bell.wake();
        if let Some(thread) = self.caretaker.take() {
            let _ = thread.join();
        }
        let silencers = std::mem::take(&mut *self.silencers.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in silencers {
            let _ = thread.join();
        }
        let mut control = self.control();
        control.close_all();
        control.crew.stop();
    }
}

const BELL: Token = Token(0);
/// How long those who add many ports wait until the host is silent on all of their interfaces.
const SILENCE_WAIT: Duration = Duration::from_secs(1);
/// How often namespaces are looked at, and packet ports that wait for their interface; peers of stream ports may be due sooner.
const ROUND: Duration = Duration::from_millis(250);
/// Events that are seen to in one go: operators wait meanwhile.
const EVENTS: usize = 1024;

/// The thread that follows the world: interfaces that change, namespaces that vanish, stations that age.
struct Caretaker {
    poll: Poll,
    inbox: Receiver<Event>,
    control: Arc<Mutex<Control>>,
    end: Arc<AtomicBool>,
}

impl Caretaker {
    fn run(mut self) {
        let mut events = Events::with_capacity(64);
        let mut expired = Instant::now();
        let mut looked = expired;
        let mut wait = ROUND;
        while !self.end.load(Ordering::Relaxed) {
            if let Err(error) = self.poll.poll(&mut events, Some(wait))
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "epoll failed");
                std::thread::sleep(ROUND);
            }
            let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
            let mut gone = Vec::new();
            for event in self.inbox.try_iter().take(EVENTS) {
                match event {
                    Event::PortGone(id) => gone.push(id),
                    Event::Stranger(port, address) => control.meet(port, address),
                    Event::Neighbour(heard) => control.hear(&heard),
                }
            }
            control.lose_if_gone(gone);
            control.catch_up();
            wait = control.meet_peers().map_or(ROUND, |due| due.min(ROUND));
            control.publish_news();
            control.announce();
            // Not at each event, of which there may be thousands a second: a ring is looked at for
            // what happened between two looks.
            if looked.elapsed() >= ROUND {
                looked = Instant::now();
                control.look_after_rings();
            }
            if expired.elapsed() >= Duration::from_secs(1) {
                expired = Instant::now();
                control.expire();
                control.expire_neighbours();
                control.forget_strangers();
                control.probe_next();
            }
        }
    }
}
