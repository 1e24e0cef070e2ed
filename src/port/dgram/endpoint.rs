//! Where the peer of a dgram port is found. Only the control side has one; nothing here waits, which is why paths are looked up by others
//! (`sys/lookups.rs`), one at a time for a port: a first sender whose path's file system does not answer holds up its own port alone.
//!
//! A datagram socket is not told that its peer has gone. So the control side looks at it several times a second: another file, or nobody
//! behind it, ends the connection, and so does a worker whose datagram is refused. The peer is the socket at a path, or, where none was
//! given, whoever sends first from a socket that is his own. Meanwhile what comes waits, as much as the kernel lets wait
//! (`net.unix.max_dgram_qlen`); what others sent by then is told from the peer's by the worker that reads it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Connected;
use crate::port::backoff::Backoff;
use crate::port::check_mtu;
use crate::spec::DgramSpec;
use crate::sys::Error;
use crate::sys::lookups::LookUp;
use crate::sys::unix::{self, Descriptors, Remote, SockType, SocketFile};

/// Bytes that wait for the peer to read them, at most.
pub(in crate::port) const SEND_BUFFER_BYTES: i32 = 1 << 20;
/// The longest pause between two peers.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Senders turned away in one go, at most.
const REFUSALS: usize = 64;

/// The switch's socket, and the peer that it is connected to.
#[derive(Debug)]
pub struct Endpoint {
    socket: Arc<OwnedFd>,
    _file: SocketFile,
    /// Where the peer is; `None`: whoever sends first.
    peer: Option<PathBuf>,
    current: Option<Arc<Remote>>,
    found: LookUp<io::Result<Remote>>,
    is_there: LookUp<bool>,
    backoff: Backoff,
    /// Peers that there were.
    pub connections: u64,
    /// Datagrams from senders who cannot be answered.
    pub refused: u64,
}

impl Endpoint {
    /// Makes the socket.
    ///
    /// # Errors
    /// A path is none, somebody else has it, or the kernel refused.
    pub fn open(spec: &DgramSpec) -> Result<Endpoint, Error> {
        check_mtu(spec.mtu)?;
        spec.peer.as_deref().map(unix::check_path).transpose()?;
        let (fd, file) = unix::bind_at(&spec.path, SockType::Datagram, spec.mode, Descriptors::Refused)?;
        unix::set_send_buffer(&fd, SEND_BUFFER_BYTES);
        Ok(Endpoint {
            socket: Arc::new(fd),
            _file: file,
            peer: spec.peer.clone(),
            current: None,
            found: LookUp::default(),
            is_there: LookUp::default(),
            backoff: Backoff::new(BACKOFF_MAX),
            connections: 0,
            refused: 0,
        })
    }

    /// When the next peer may come, if that is not now.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.backoff.due()
    }

    /// Whether somebody has sent what nobody has read.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        self.current.is_none() && unix::is_readable(&self.socket)
    }

    /// The peer has gone, or is not the one at its path any more, as far as it is known yet.
    pub fn has_lost_peer(&mut self) -> bool {
        let Some(remote) = &self.current else { return false };
        let remote = Arc::clone(remote);
        matches!(self.is_there.ask(move || remote.is_there()), Ok(Some(false)))
    }

    /// The connection has ended.
    pub fn ended(&mut self, now: Instant) {
        unix::disconnect(&self.socket);
        self.current = None;
        self.backoff.ended(now);
    }

    /// The socket, connected, for a port that has no peer yet and now finds one.
    ///
    /// # Errors
    /// Why there is none, for the operator; it is tried again. That nobody is there is no error.
    pub fn next(&mut self, now: Instant) -> Result<Option<Connected>, Error> {
        if !self.backoff.is_over(now) {
            return Ok(None);
        }
        // What hangs at the last peer's path has a thread: before the next peer it has to end.
        if self.is_there.is_pending() && matches!(self.is_there.answer(), Ok(None) | Err(_)) {
            return Ok(None);
        }
        let Some(remote) = self.find()? else { return Ok(None) };
        let uid = remote.uid();
        self.current = Some(Arc::new(remote));
        self.backoff.began(now);
        self.connections += 1;
        Ok(Some(Connected { socket: Arc::clone(&self.socket), uid }))
    }

    fn find(&mut self) -> Result<Option<Remote>, Error> {
        let Some(path) = self.peer.clone() else { return self.first_sender() };
        let (socket, peer) = (Arc::clone(&self.socket), path.clone());
        let asked = self.found.ask(move || unix::connect_datagrams(&socket, &peer, None));
        match asked.and_then(Option::transpose) {
            Ok(found) => Ok(found),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::new(format!("cannot send to {}", path.display()), error)),
        }
    }

    /// Whoever sent what waits first and can be answered; what others sent before is thrown away.
    fn first_sender(&mut self) -> Result<Option<Remote>, Error> {
        for _ in 0..REFUSALS {
            let asked = if self.found.is_pending() {
                self.found.answer()
            } else {
                match unix::first_sender(&self.socket) {
                    Ok(None) => return Ok(None),
                    Ok(Some((path, uid))) => {
                        let socket = Arc::clone(&self.socket);
                        self.found.ask(move || unix::connect_datagrams(&socket, &path, Some(uid)))
                    }
                    Err(error) => Ok(Some(Err(error))),
                }
            };
            match asked.map_err(|error| Error::new("cannot look up the socket of who sent first", error))? {
                None => return Ok(None),
                Some(Ok(remote)) => return Ok(Some(remote)),
                Some(Err(_)) => {
                    let _ = unix::receive(self.socket.as_fd(), &mut []);
                    self.refused += 1;
                }
            }
        }
        Ok(None)
    }
}
