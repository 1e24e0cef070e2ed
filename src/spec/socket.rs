//! Ports on sockets of other programs, as asked for.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::PortKind;

/// Frames in a byte stream, each with its length before it, as QEMU's `-netdev stream` has them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamSpec {
    /// Where the two ends meet.
    pub address: StreamAddress,
    /// Which of them the switch is.
    pub role: SocketRole,
    /// MTU in bytes: the longest payload that it sends.
    pub mtu: u32,
    /// Permissions of the socket's file, where the switch makes it.
    pub mode: u32,
}

/// Where the two ends of a stream meet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StreamAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP.
    Tcp(SocketAddr),
}

/// The switch's part at a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SocketRole {
    /// It makes the socket and waits for the other end.
    #[default]
    Server,
    /// It connects to the other end's socket, again and again.
    Client,
}

impl StreamSpec {
    /// MTU where none is asked for.
    pub const DEFAULT_MTU: u32 = 1500;
    /// Permissions where none are asked for: owner and group.
    pub const DEFAULT_MODE: u32 = 0o660;

    /// The file of the socket that the switch makes.
    #[must_use]
    pub fn socket_path(&self) -> Option<&Path> {
        match (&self.address, self.role) {
            (StreamAddress::Unix(path), SocketRole::Server) => Some(path),
            _ => None,
        }
    }
}

impl StreamSpec {
    /// Where it listens, if it does: two ports cannot at one place.
    #[must_use]
    pub fn listens_at(&self) -> Option<&StreamAddress> {
        (self.role == SocketRole::Server).then_some(&self.address)
    }
}

/// Where two ports on sockets would both be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meeting<'a> {
    /// The file of a socket, or a folder of sockets.
    File(&'a Path),
    /// Where the other port listens by TCP.
    Tcp(SocketAddr),
}

impl PortKind {
    /// The socket that a port of this kind and one of `other` cannot both make.
    ///
    /// One file is one socket's; that of a vde port is `ctl` in its folder. By TCP a port that listens at all
    /// addresses of a family takes the number from every other of that family.
    #[must_use]
    pub fn shares_socket<'a>(&'a self, other: &'a PortKind) -> Option<Meeting<'a>> {
        let folder = |kind: &'a PortKind| match kind {
            PortKind::Vde(spec) => spec.folder(),
            _ => None,
        };
        let is_control = |path: &Path, kind| folder(kind).is_some_and(|folder| *path == folder.join("ctl"));
        if let (Some(ours), Some(theirs)) = (self.socket_path(), other.socket_path())
            && (ours == theirs || is_control(ours, other) || is_control(theirs, self))
        {
            return Some(Meeting::File(ours));
        }
        let tcp = |kind: &PortKind| match kind {
            PortKind::Stream(spec) => spec.listens_at().and_then(StreamAddress::tcp),
            _ => None,
        };
        let (ours, theirs) = (tcp(self)?, tcp(other)?);
        let any = ours.ip().is_unspecified() || theirs.ip().is_unspecified();
        let same = ours.port() == theirs.port()
            && ours.is_ipv4() == theirs.is_ipv4()
            && (any || ours.ip() == theirs.ip());
        same.then_some(Meeting::Tcp(theirs))
    }
}

impl StreamAddress {
    /// Of TCP.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            StreamAddress::Tcp(address) => Some(*address),
            StreamAddress::Unix(_) => None,
        }
    }
}

impl fmt::Display for StreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StreamAddress::Unix(path) => path.display().fmt(f),
            StreamAddress::Tcp(address) => address.fmt(f),
        }
    }
}

/// A frame a Unix datagram, as QEMU's `-netdev dgram` has them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DgramSpec {
    /// The socket that the switch makes.
    pub path: PathBuf,
    /// The other end's socket; `None` is that of the first who sends, until he goes.
    pub peer: Option<PathBuf>,
    /// MTU in bytes: the longest payload that it sends.
    pub mtu: u32,
    /// Permissions of the socket's file.
    pub mode: u32,
}

impl DgramSpec {
    /// Where the switch makes its own socket when it is told of the peer's alone: beside that, where the peer can find it.
    #[must_use]
    pub fn beside(peer: &Path) -> PathBuf {
        let mut path = peer.as_os_str().to_owned();
        path.push(".vswitchd");
        path.into()
    }
}

/// One plug of the VDE switch protocol, as QEMU's `-netdev vde` and `vde_plug` are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VdeSpec {
    /// The folder with the control socket `ctl`.
    pub path: PathBuf,
    /// Whose folder it is: a client plugs into another switch's.
    pub role: SocketRole,
    /// MTU in bytes: the longest payload that it sends.
    pub mtu: u32,
    /// Permissions of the sockets that the switch makes; who may write to them may make sockets in its folder.
    pub mode: u32,
}

impl VdeSpec {
    /// The folder that the switch makes.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        (self.role == SocketRole::Server).then_some(&*self.path)
    }
}
