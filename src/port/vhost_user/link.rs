//! The connection to a front end: a thread that waits for one (or looks for one), speaks with it until it goes, and begins again.
//!
//! One front end at a time; others are turned away. When it goes, its rings are taken from the workers and its memory is unmapped; a guest that
//! is started again, or one whose switch was, begins from the start.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost::vhost_user::{BackendReqHandler, Error};

use super::device::Device;
use super::own::Own;
use super::{Rings, messages};
use crate::port::backoff::{Backoff, GOOD};
use crate::spec::{SocketRole, VhostUserSpec};
use crate::sys;
use crate::sys::unix::{self, Descriptors, SockType, SocketFile};
use crate::topology::PortShared;
use crate::virtio::Fault;
use crate::virtio::net::capabilities;
use crate::virtio::room::{Pool, Share};

/// How long a client waits at most before it looks for its server again.
const BACKOFF_MAX: Duration = Duration::from_millis(3200);
/// How long to wait after a front end that was given up, in milliseconds: one that always says the same would keep us busy.
const GIVEN_UP: u16 = 100;
/// And before another try to accept one where that failed.
const ACCEPT_AGAIN: u16 = 3000;
/// How often front ends are told that go sooner than [`GOOD`], and those that are turned away.
const TOLD: Duration = Duration::from_secs(10);
/// How often rings are looked at that may have broken, in milliseconds.
const LOOK: u16 = 1000;
/// How long the thread may take to end.
const GRACE: Duration = Duration::from_secs(1);

/// A port's connection to its guest. Dropping it ends the thread and removes the socket.
#[derive(Debug)]
pub struct Link {
    inner: Arc<Inner>,
    listener: Option<UnixListener>,
    thread: Option<Thread>,
    /// What carries frames in the workers' place.
    own: Option<Own>,
    _file: Option<SocketFile>,
}

/// What speaks, and what is heard when it has ended.
#[derive(Debug)]
struct Thread {
    handle: JoinHandle<()>,
    ended: Receiver<()>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// Bytes of memory that its guest may share.
    memory_max: Option<u64>,
    rings: Arc<Rings>,
    ends: AtomicBool,
    bell: EventFd,
    /// What the thread speaks by, to be shut when it is to end.
    stream: Mutex<Option<UnixStream>>,
}

impl Link {
    /// A server makes its socket here, so that one that cannot be made is a port that cannot be added.
    pub(super) fn open(
        spec: &VhostUserSpec,
        rings: Arc<Rings>,
        own: Option<Own>,
    ) -> Result<Link, sys::Error> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| sys::Error::new("cannot make an eventfd", error))?;
        let path = spec.path.clone();
        let (listener, file) = match spec.role {
            SocketRole::Client => (None, None),
            SocketRole::Server => listen(&path).map(|(listener, file)| (Some(listener), Some(file)))?,
        };
        let (ends, stream) = (AtomicBool::new(false), Mutex::new(None));
        let memory_max = spec.memory_max;
        let inner = Arc::new(Inner { path, memory_max, rings, ends, bell, stream });
        Ok(Link { inner, listener, thread: None, own, _file: file })
    }

    /// How many threads beside the workers count its frames, each with counters behind theirs.
    #[must_use]
    pub fn carriers(&self) -> usize {
        usize::from(self.own.is_some())
    }

    /// Begins to speak, for a port whose guest's memory is counted in this pool.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(&mut self, port: Arc<PortShared>, pool: Arc<Pool>) -> io::Result<()> {
        port.set_taken(capabilities(0));
        if let Some(own) = &mut self.own {
            own.start(Arc::clone(&port))?;
        }
        let (inner, listener) = (Arc::clone(&self.inner), self.listener.take());
        let (ends, ended) = crossbeam_channel::bounded(0);
        let run = move || {
            // Told by going, however the thread ends.
            let _ends: Sender<()> = ends;
            inner.run(listener.as_ref(), &port, &pool);
        };
        let handle = sys::thread::spawn("vhost-user", run)?;
        self.thread = Some(Thread { handle, ended });
        Ok(())
    }

    /// Whether the guest receives and sends.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.inner.rings.is_live() && self.own.as_ref().is_none_or(Own::is_alive)
    }

    /// What would be better, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        self.inner.hint()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // First, as workers do: what is late is shown while there is a front end.
        if !self.own.as_mut().is_none_or(|own| own.end(GRACE)) {
            tracing::error!(
                "{}: a front end holds up the thread that carries its frames; it is left alone",
                self.inner.path.display()
            );
        }
        self.inner.ends.store(true, Ordering::Relaxed);
        let _ = self.inner.bell.write(1);
        if let Some(stream) = &*self.inner.stream.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        let Some(Thread { handle, ended }) = self.thread.take() else { return };
        if ended.recv_timeout(GRACE) == Err(RecvTimeoutError::Timeout) {
            // Closing a descriptor may wait for whoever is behind it, and front ends send what they like.
            tracing::error!(
                "{}: a front end holds its thread up; it is left alone",
                self.inner.path.display()
            );
        } else if handle.join().is_err() {
            tracing::error!("a vhost-user thread panicked");
        }
    }
}

/// Listens on a path. What a switch that was killed left there is replaced.
fn listen(path: &Path) -> Result<(UnixListener, SocketFile), sys::Error> {
    // Who may write to it may attach a guest.
    match unix::bind_at(path, SockType::Stream, 0o660, Descriptors::Taken) {
        Ok((listener, file)) => Ok((listener.into(), file)),
        // A bare "not found" would be taken for an interface that is yet to come.
        Err(error) if error.is_not_found() => {
            let what = format!("there is no directory for the socket '{}'; make it first", path.display());
            Err(sys::Error::refused(io::ErrorKind::InvalidInput, what))
        }
        Err(error) if error.is_exists() => {
            let shown = path.display();
            let is_socket = path.symlink_metadata().is_ok_and(|about| about.file_type().is_socket());
            let what = match is_socket {
                true => format!("somebody listens on '{shown}' already; choose another --path"),
                false => format!("'{shown}' exists and is no socket; choose another --path"),
            };
            Err(sys::Error::refused(io::ErrorKind::AlreadyExists, what))
        }
        Err(error) => Err(error),
    }
}

/// What is told of front ends: one that stays, and now and then one that goes as soon as it came, or the log would be full of those.
#[derive(Debug, Default)]
struct Tells {
    /// Whether the front end that is here has been told, so that what becomes of it is, too.
    is_on: bool,
    began: Option<Instant>,
    came: Seldom,
    turned_away: Seldom,
    /// Whether it was told that a front end could hold up a worker.
    hindered: bool,
}

impl Tells {
    /// A front end is here.
    fn begin(&mut self, path: &Path) {
        self.began = Some(Instant::now());
        self.is_on = false;
        if self.came.is_due() {
            self.tell(path);
        }
    }

    /// And still is.
    fn go_on(&mut self, path: &Path) {
        if !self.is_on && self.began.is_some_and(|began| began.elapsed() >= GOOD) {
            self.tell(path);
        }
    }

    fn tell(&mut self, path: &Path) {
        tracing::info!("{}: a front end is here", path.display());
        self.is_on = true;
    }
}

/// Something that is told once in a while.
#[derive(Debug, Default)]
struct Seldom(Option<Instant>);

impl Seldom {
    fn is_due(&mut self) -> bool {
        let is_due = self.0.is_none_or(|told| told.elapsed() >= TOLD);
        if is_due {
            self.0 = Some(Instant::now());
        }
        is_due
    }
}

impl Inner {
    fn run(&self, listener: Option<&UnixListener>, port: &Arc<PortShared>, pool: &Arc<Pool>) {
        // Now, not when it rings under the lock of a ring that a worker waits for.
        self.rings.prepare(None);
        let (mut backoff, mut tells) = (Backoff::new(BACKOFF_MAX), Tells::default());
        while let Some(stream) = match listener {
            Some(listener) => self.accept(listener),
            None => self.connect(&mut backoff),
        } {
            backoff.began(Instant::now());
            let share = Share::new(pool, self.memory_max);
            let device = Device::new(Arc::clone(&self.rings), Arc::clone(port), share);
            self.speak(stream, listener, device, &mut tells);
            backoff.ended(Instant::now());
        }
    }

    fn ends(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    /// Waits for a descriptor, and says which are ready. `None` is the end.
    fn wait(&self, others: &[BorrowedFd<'_>], timeout: PollTimeout) -> Option<Vec<bool>> {
        let mut fds = vec![PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
        fds.extend(others.iter().map(|&fd| PollFd::new(fd, PollFlags::POLLIN)));
        if let Err(error) = poll(&mut fds, timeout)
            && error != nix::errno::Errno::EINTR
        {
            tracing::error!(%error, "poll failed");
            std::thread::sleep(Duration::from_millis(100));
        }
        let ready = fds[1..].iter().map(|fd| fd.any().unwrap_or(false)).collect();
        (!self.ends()).then_some(ready)
    }

    fn accept(&self, listener: &UnixListener) -> Option<UnixStream> {
        loop {
            match listener.accept() {
                Ok((stream, _)) => return Some(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(&[listener.as_fd()], PollTimeout::NONE)?;
                }
                Err(error) => {
                    tracing::warn!("{}: cannot accept a front end: {error}", self.path.display());
                    self.wait(&[], PollTimeout::from(ACCEPT_AGAIN))?;
                }
            }
        }
    }

    /// Tries until somebody listens. One who accepts and goes keeps us no busier than one who is not there.
    fn connect(&self, backoff: &mut Backoff) -> Option<UnixStream> {
        while !self.ends() {
            if let Some(due) = backoff.due() {
                let left = due.saturating_duration_since(Instant::now());
                // Rounded up to milliseconds, or the last of them would be spent in tries to wait.
                let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
                self.wait(&[], left)?;
            }
            if !backoff.is_over(Instant::now()) {
                continue;
            }
            match unix::connect_to(&self.path, Descriptors::Taken) {
                Ok(stream) => return Some(stream.into()),
                Err(_) => backoff.failed(Instant::now()),
            }
        }
        None
    }

    /// Speaks with a front end until it goes.
    fn speak(&self, stream: UnixStream, listener: Option<&UnixListener>, device: Device, tells: &mut Tells) {
        let path = self.path.display();
        let (Ok(()), Ok(to_shut), Ok(to_watch)) =
            (stream.set_nonblocking(false), stream.try_clone(), stream.try_clone())
        else {
            tracing::warn!("{path}: no file descriptor left for a front end");
            return;
        };
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(to_shut);
        tells.begin(&self.path);
        let why = self.converse(stream, &to_watch, listener, device, tells);
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match why {
            None => {}
            Some(Error::Disconnected) if !tells.is_on => {}
            Some(Error::Disconnected) => tracing::info!("{path}: the front end has gone"),
            Some(error) => {
                // Without the library's words before our own.
                let why = match &error {
                    Error::ReqHandlerError(why) => why.to_string(),
                    error => error.to_string(),
                };
                if tells.is_on {
                    tracing::warn!("{path}: the front end was given up: {why}");
                }
                self.wait(&[], PollTimeout::from(GIVEN_UP));
            }
        }
    }

    /// Carries out what a front end asks for, until it goes or asks for nonsense; `None` is the end of the port. The workers have none of
    /// its rings any more when this returns, because they go with the device.
    fn converse(
        &self,
        stream: UnixStream,
        to_watch: &UnixStream,
        listener: Option<&UnixListener>,
        device: Device,
        tells: &mut Tells,
    ) -> Option<Error> {
        let device = Arc::new(Mutex::new(device));
        let mut library = BackendReqHandler::from_stream(stream, Arc::clone(&device));
        let mut told = Vec::new();
        let watched: Vec<_> = std::iter::once(to_watch.as_fd()).chain(listener.map(AsFd::as_fd)).collect();
        loop {
            let ready = self.wait(&watched, PollTimeout::from(LOOK))?;
            if ready.first() == Some(&true) {
                let done = match messages::take(to_watch, &device) {
                    Ok(false) => library.handle_request(),
                    done => done.map(|_| ()),
                };
                if let Err(error) = done {
                    return Some(error);
                }
            } else if ready.get(1) == Some(&true) {
                // Asked once more, because whoever comes may be the successor of one that has just gone.
                let quiet = self.wait(&watched[..1], PollTimeout::ZERO)?.first() == Some(&false);
                if quiet
                    && let Some(Ok(_)) = listener.map(UnixListener::accept)
                    && tells.turned_away.is_due()
                {
                    tracing::warn!("{}: a second front end was turned away", self.path.display());
                }
            }
            tells.go_on(&self.path);
            if tells.is_on {
                self.tell_faults(&mut told);
                self.tell_hindrance(tells);
            }
        }
    }

    /// Says once that a front end could hold up a worker.
    fn tell_hindrance(&self, tells: &mut Tells) {
        if !tells.hindered
            && let Some(hint) = self.hindrance()
        {
            tracing::warn!("{}: {hint}", self.path.display());
            tells.hindered = true;
        }
    }

    fn hint(&self) -> Option<String> {
        if let Some(refusal) = self.rings.refusal() {
            return Some(format!("the guest's front end was given up: {refusal}"));
        }
        self.hindrance()
    }

    fn hindrance(&self) -> Option<String> {
        let why = self.rings.hindrance()?.desc();
        Some(format!(
            "no asynchronous I/O ({why}), so a front end could hold up the worker that rings it: raise fs.aio-max-nr, \
             or let @aio through the SystemCallFilter, and add the port again"
        ))
    }

    /// Says once which rings have stopped.
    fn tell_faults(&self, told: &mut Vec<(usize, Fault)>) {
        let faults = self.rings.faults();
        if faults != *told {
            for (index, fault) in &faults {
                tracing::warn!("{}: virtqueue {index} has stopped: {fault}", self.path.display());
            }
            *told = faults;
        }
    }
}
