//! Where the peers of a stream port come from: a socket that listens, or one that connects. Only the control side has one; nothing here waits.
//!
//! A port has one peer at a time. Others are refused while it is there: their connection is closed at once. After a connection
//! that did not last, the next is not made or accepted for a while, longer each time (`port/backoff.rs`).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use super::Connection;
use crate::port::backoff::Backoff;
use crate::port::check_mtu;
use crate::spec::{SocketRole, StreamAddress, StreamSpec};
use crate::sys::Error;
use crate::sys::lookups::LookUp;
use crate::sys::unix::{self, Descriptors, SockType, SocketFile};

/// The longest pause between two connections or tries.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Time to wait for the other host to answer a TCP connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Peers refused in one go, at most.
const REFUSALS: usize = 16;

/// Where the peers of one port come from.
#[derive(Debug)]
pub struct Endpoint {
    way: Way,
    /// The connection there is, as long as workers have it.
    current: Weak<Connection>,
    backoff: Backoff,
    /// Connections made or accepted.
    pub connections: u64,
    /// Peers that were turned away, because there was one.
    pub refused: u64,
}

#[derive(Debug)]
enum Way {
    Listen {
        listener: OwnedFd,
        tcp: bool,
        _file: Option<SocketFile>,
    },
    Connect {
        to: StreamAddress,
        under_way: Option<(Socket, Instant)>,
        looked_up: LookUp<io::Result<OwnedFd>>,
    },
}

impl Endpoint {
    /// Listens, or gets ready to connect. Whoever polls `registry` is told under `token` when it is worth a look.
    ///
    /// # Errors
    /// The address is not one, somebody else has it, or the kernel refused.
    pub fn open(spec: &StreamSpec, registry: &Registry, token: Token) -> Result<Endpoint, Error> {
        check_mtu(spec.mtu)?;
        let way = match (spec.role, &spec.address) {
            (SocketRole::Client, address) => {
                if let StreamAddress::Unix(path) = address {
                    unix::check_path(path)?;
                }
                Way::Connect { to: address.clone(), under_way: None, looked_up: LookUp::default() }
            }
            (SocketRole::Server, StreamAddress::Unix(path)) => {
                let (listener, file) =
                    unix::bind_at(path, SockType::Stream, spec.mode, Descriptors::Refused)?;
                Way::Listen { listener, tcp: false, _file: Some(file) }
            }
            (SocketRole::Server, StreamAddress::Tcp(address)) => {
                let listener = listen(*address)
                    .map_err(|error| Error::new(format!("cannot listen at {address}"), error))?;
                Way::Listen { listener: listener.into(), tcp: true, _file: None }
            }
        };
        if let Way::Listen { listener, .. } = &way {
            registry
                .register(&mut SourceFd(&listener.as_raw_fd()), token, Interest::READABLE)
                .map_err(|error| Error::new("cannot watch a socket", error))?;
        }
        Ok(Endpoint {
            way,
            current: Weak::new(),
            backoff: Backoff::new(BACKOFF_MAX),
            connections: 0,
            refused: 0,
        })
    }

    /// When to look again without having been told, if at all.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.backoff.due()
    }

    /// The connection has ended.
    pub fn ended(&mut self, now: Instant) {
        self.backoff.ended(now);
    }

    /// The next connection, for a port that has none.
    ///
    /// # Errors
    /// Why there is none, for the operator; it is tried again.
    pub fn next(
        &mut self,
        registry: &Registry,
        token: Token,
        now: Instant,
    ) -> Result<Option<Arc<Connection>>, Error> {
        if !self.backoff.is_over(now) {
            return Ok(None);
        }
        let (peer, what) = match &mut self.way {
            Way::Listen { listener, .. } => {
                (accept_living(listener, &mut self.refused), "cannot accept a peer".to_owned())
            }
            Way::Connect { to, under_way, looked_up } => {
                (connect(to, under_way, looked_up, registry, token, now), format!("cannot connect to {to}"))
            }
        };
        let tcp = self.is_tcp();
        let connection = peer.and_then(|peer| {
            let Some(peer) = peer else { return Ok(None) };
            if tcp {
                set_up_tcp(&peer)?;
            }
            Connection::new(peer).map(Some)
        });
        match connection {
            Ok(Some(connection)) => {
                let connection = Arc::new(connection);
                self.current = Arc::downgrade(&connection);
                self.backoff.began(now);
                self.connections += 1;
                Ok(Some(connection))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                self.backoff.failed(now);
                Err(Error::new(what, error))
            }
        }
    }

    /// Turns away whoever else comes while the port has a peer. One that comes because that peer has gone waits until workers have
    /// read the last of it.
    pub fn refuse_others(&mut self) {
        let Way::Listen { listener, .. } = &self.way else { return };
        for _ in 0..REFUSALS {
            if self.current.upgrade().is_none_or(|current| current.is_hung_up()) {
                return;
            }
            let Ok(Some(other)) = accept(listener) else { return };
            drop(other);
            self.refused += 1;
        }
    }

    /// Whether somebody waits to be accepted.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        matches!(&self.way, Way::Listen { listener, .. } if unix::is_readable(listener))
    }

    fn is_tcp(&self) -> bool {
        match &self.way {
            Way::Listen { tcp, .. } => *tcp,
            Way::Connect { to, .. } => matches!(to, StreamAddress::Tcp(_)),
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = tcp_socket(address)?;
    // Not kept from starting again by connections of before.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    socket.listen(16)?;
    Ok(socket)
}

fn tcp_socket(address: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))
}

/// A peer that waits to be accepted, if there is one.
pub(in crate::port) fn accept(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    match SockRef::from(listener).accept() {
        Ok((socket, _)) => Ok(Some(socket.into())),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The next peer that is still there. Those that have given up are counted as turned away, and keep nobody waiting.
fn accept_living(listener: &OwnedFd, gone: &mut u64) -> io::Result<Option<OwnedFd>> {
    for _ in 0..REFUSALS {
        let Some(peer) = accept(listener)? else { return Ok(None) };
        if !unix::is_hung_up(&peer) {
            return Ok(Some(peer));
        }
        *gone += 1;
    }
    Ok(None)
}

/// A connection, if it is made; else it may be under way.
fn connect(
    to: &StreamAddress,
    under_way: &mut Option<(Socket, Instant)>,
    looked_up: &mut LookUp<io::Result<OwnedFd>>,
    registry: &Registry,
    token: Token,
    now: Instant,
) -> io::Result<Option<OwnedFd>> {
    let address = match to {
        StreamAddress::Unix(path) => {
            let path = path.clone();
            let asked = looked_up.ask(move || unix::connect_to(&path, Descriptors::Refused));
            return asked.and_then(Option::transpose);
        }
        StreamAddress::Tcp(address) => *address,
    };
    let Some((socket, since)) = under_way.take() else {
        let socket = tcp_socket(address)?;
        match socket.connect(&SockAddr::from(address)) {
            Ok(()) => return Ok(Some(other_end(socket)?.into())),
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        registry.register(&mut SourceFd(&socket.as_raw_fd()), token, Interest::WRITABLE)?;
        *under_way = Some((socket, now));
        return Ok(None);
    };
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    if socket.peer_addr().is_ok() {
        registry.deregister(&mut SourceFd(&socket.as_raw_fd()))?;
        return Ok(Some(other_end(socket)?.into()));
    }
    if now.duration_since(since) > CONNECT_MAX {
        return Err(io::ErrorKind::TimedOut.into());
    }
    *under_way = Some((socket, since));
    Ok(None)
}

/// A connection, unless it is to itself: where nobody listens at a port of this host's, TCP connects the port to itself as soon as the kernel
/// happens to choose it to connect from.
fn other_end(socket: Socket) -> io::Result<Socket> {
    let ends = (socket.local_addr()?.as_socket(), socket.peer_addr()?.as_socket());
    if ends.0 == ends.1 { Err(io::ErrorKind::ConnectionRefused.into()) } else { Ok(socket) }
}

/// Frames leave at once, and an idle peer's host that vanished is found out within half a minute. A peer that only does not read is
/// waited for, so there is no TCP_USER_TIMEOUT.
fn set_up_tcp(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let probes = TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5));
    socket.set_tcp_keepalive(&probes.with_retries(3))
}
