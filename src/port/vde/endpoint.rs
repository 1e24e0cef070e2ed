//! Where the other end of a vde port comes from: a plug that connects to the switch's folder, or the VDE switch whose folder it is. Only the
//! control side has one; nothing here waits.
//!
//! A port has one connection at a time, as stream's ([`crate::port::stream::endpoint`]), and the same pauses between them
//! (`port/backoff.rs`). It lasts as long as the control connection, or until a datagram finds nobody. What the other end says there
//! after its request or answer is bounded and thrown away.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::client::Client;
use super::protocol::DESCRIPTION_LEN_MAX;
use super::server::Server;
use crate::port::backoff::Backoff;
use crate::port::check_mtu;
use crate::port::dgram::endpoint::SEND_BUFFER_BYTES;
use crate::spec::{SocketRole, VdeSpec};
use crate::sys::unix::{self, SocketFile};
use crate::sys::{self, Error};

/// The longest pause between two connections or tries.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Time between two reports of plugs that were turned away.
const TOLD: Duration = Duration::from_secs(10);

/// Where the other ends of one port come from.
#[derive(Debug)]
pub struct Endpoint {
    // In this order: its socket goes before its folder.
    current: Option<Connection>,
    way: Way,
    backoff: Backoff,
    told: Option<Instant>,
    /// Connections made or accepted.
    pub connections: u64,
    /// Plugs that were turned away: there was one, or what they asked for was wrong.
    pub refused: u64,
}

#[derive(Debug)]
enum Way {
    Serve(Server),
    Plug(Client),
}

/// A connection to a plug, or to a switch.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) control: OwnedFd,
    /// Datagrams to and from the other end alone.
    pub(super) socket: Arc<OwnedFd>,
    /// In a folder of our own.
    pub(super) _file: Option<SocketFile>,
    /// Bytes that the other end has said beside what it had to.
    pub(super) said: usize,
}

/// Under what those are told of who are polled.
#[derive(Clone, Copy, Debug)]
pub struct Watch<'a> {
    /// Whoever polls this is told when it is worth a look.
    pub registry: &'a Registry,
    /// Under this.
    pub token: Token,
}

impl Watch<'_> {
    /// A control connection, without waiting, of which is told what comes, its end too.
    pub(super) fn control(&self, fd: &OwnedFd) -> std::io::Result<()> {
        sys::set_nonblocking(fd)?;
        self.readable(fd)
    }

    /// A socket, of which is told when there is something to read or to accept.
    pub(super) fn readable(&self, fd: &OwnedFd) -> std::io::Result<()> {
        self.registry.register(&mut SourceFd(&fd.as_raw_fd()), self.token, Interest::READABLE)
    }
}

impl Endpoint {
    /// Makes the folder and listens in it, or gets ready to plug into another's.
    ///
    /// # Errors
    /// The path is none, somebody else has it, or the kernel refused.
    pub fn open(spec: &VdeSpec, watch: Watch<'_>) -> Result<Endpoint, Error> {
        check_mtu(spec.mtu)?;
        super::check_folder(&spec.path)?;
        let way = match spec.role {
            SocketRole::Server => Way::Serve(Server::open(&spec.path, spec.mode, watch)?),
            SocketRole::Client => Way::Plug(Client::new(&spec.path, spec.mode)),
        };
        Ok(Endpoint {
            current: None,
            way,
            backoff: Backoff::new(BACKOFF_MAX),
            told: None,
            connections: 0,
            refused: 0,
        })
    }

    /// When to look again without having been told, if at all.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.backoff.due()
    }

    /// Whether a plug waits to be let in.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        matches!(&self.way, Way::Serve(server) if server.has_waiting())
    }

    /// The connection has ended.
    pub fn ended(&mut self, now: Instant) {
        self.current = None;
        self.backoff.ended(now);
    }

    /// Looks after a port that has a connection: whether that has ended. While it has not, others are turned away.
    pub fn attend(&mut self, watch: Watch<'_>, now: Instant) -> bool {
        if self.current.as_mut().is_none_or(Connection::has_ended) {
            return true;
        }
        if let Way::Serve(server) = &mut self.way {
            // What they asked for, and why one cannot be accepted, is nobody's concern now.
            let others = server.requests(watch, now).unwrap_or_default();
            self.refused += others.len() as u64;
        }
        false
    }

    /// The switch's socket, connected, for a port that has no other end yet and now finds one.
    ///
    /// # Errors
    /// Why there is none, for the operator; it is tried again.
    pub fn next(&mut self, watch: Watch<'_>, now: Instant) -> Result<Option<Arc<OwnedFd>>, Error> {
        if !self.backoff.is_over(now) {
            return Ok(None);
        }
        let found = match &mut self.way {
            Way::Serve(server) => {
                let found = server.next(watch, now, &mut self.refused);
                // Whoever may connect could fill the log.
                let tell = self.told.is_none_or(|told| now.duration_since(told) >= TOLD);
                if found.is_err() && !tell {
                    return Ok(None);
                }
                self.told = if found.is_err() { Some(now) } else { self.told };
                found
            }
            Way::Plug(client) => client.next(watch, now).inspect_err(|_| self.backoff.failed(now)),
        };
        let Some(connection) = found? else { return Ok(None) };
        unix::set_send_buffer(&connection.socket, SEND_BUFFER_BYTES);
        self.backoff.began(now);
        self.connections += 1;
        let socket = Arc::clone(&connection.socket);
        self.current = Some(connection);
        Ok(Some(socket))
    }
}

impl Connection {
    /// Whether the other end has closed it, or says more than there is to say.
    fn has_ended(&mut self) -> bool {
        let mut rest = [0; DESCRIPTION_LEN_MAX];
        loop {
            match sys::read(self.control.as_fd(), &mut rest) {
                Ok(None) => return false,
                Ok(Some(len @ 1..)) if self.said + len <= DESCRIPTION_LEN_MAX => self.said += len,
                Ok(_) | Err(_) => return true,
            }
        }
    }
}
