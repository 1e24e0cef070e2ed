//! Ports on sockets of other programs, as asked for.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Frames in a byte stream, each with its length before it, as QEMU's `-netdev stream` has them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamSpec {
    /// Where the two ends meet.
    pub address: StreamAddress,
    /// Which of them the switch is.
    pub role: Role,
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

/// Who waits for whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The switch listens.
    Server,
    /// The switch connects.
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
            (StreamAddress::Unix(path), Role::Server) => Some(path),
            _ => None,
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
    /// Where it sends to.
    pub peer: PathBuf,
    /// MTU in bytes: the longest payload that it sends.
    pub mtu: u32,
    /// Permissions of the socket's file.
    pub mode: u32,
}
