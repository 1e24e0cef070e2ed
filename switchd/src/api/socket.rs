//! Ports on sockets of other programs: their options, and how they are shown.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vswitch::spec::{DgramSpec, PortKind, SocketRole, StreamAddress, StreamSpec};
use vswitch::status::PeersStatus;

use super::mode::{FileMode, ModeChoice};
use super::port::{PortAdd, PortType};

/// Those that listen or connect.
pub(super) const STREAM: &[PortType] = &[PortType::Stream];
/// Those with datagrams.
pub(super) const DGRAM: &[PortType] = &[PortType::Dgram];
/// Both.
pub(super) const ALL: &[PortType] = &[PortType::Stream, PortType::Dgram];

/// The socket of a `stream` or `dgram` port.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct SocketInfo {
    /// Which end of a stream the switch is: `server` or `client`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The Unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Where datagrams are sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Where the switch listens, or what it connects to, by TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Permissions of the file that the switch made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub mode: Option<FileMode>,
    /// Connections that were made or accepted.
    #[serde(default)]
    pub connections: u64,
    /// Peers that were turned away, because the port had one.
    #[serde(default)]
    pub refused_peers: u64,
}

impl SocketInfo {
    /// Of a port, if it has one.
    #[must_use]
    pub fn new(kind: &PortKind, peers: Option<PeersStatus>) -> Option<SocketInfo> {
        let peers = peers.unwrap_or_default();
        let mode = |mode| kind.socket_path().map(|_| FileMode(mode));
        let none = SocketInfo {
            role: None,
            path: None,
            peer: None,
            address: None,
            mode: None,
            connections: peers.connections,
            refused_peers: peers.refused,
        };
        let text = |path: &Path| Some(path.display().to_string());
        match kind {
            PortKind::Stream(spec) => {
                let (path, address) = match &spec.address {
                    StreamAddress::Unix(path) => (text(path), None),
                    StreamAddress::Tcp(address) => (None, Some(address.to_string())),
                };
                let role = if spec.role == SocketRole::Server { "server" } else { "client" };
                Some(SocketInfo { role: Some(role.to_owned()), path, address, mode: mode(spec.mode), ..none })
            }
            PortKind::Dgram(spec) => Some(SocketInfo {
                path: text(&spec.path),
                peer: text(&spec.peer),
                mode: mode(spec.mode),
                ..none
            }),
            _ => None,
        }
    }

    /// In one line, for a table.
    #[must_use]
    pub fn summary(&self) -> String {
        let place = self.path.as_ref().or(self.address.as_ref()).map_or("", String::as_str);
        match (&self.role, &self.peer) {
            (Some(role), _) => format!("{role} {place}"),
            (None, Some(peer)) => format!("{place} to {peer}"),
            (None, None) => place.to_owned(),
        }
    }
}

fn mtu(asked: &PortAdd) -> u32 {
    asked.mtu.unwrap_or(StreamSpec::DEFAULT_MTU)
}

fn mode(asked: &PortAdd, owner: &str) -> Result<u32, String> {
    match asked.mode {
        Some(ModeChoice::File(mode)) => Ok(mode.0),
        Some(ModeChoice::Macvtap(mode)) => {
            Err(format!("{owner}: '{}' is no mode of a file in octal, such as 660", mode.name()))
        }
        None => Ok(StreamSpec::DEFAULT_MODE),
    }
}

/// An absolute path that a socket can have. A relative one would be another for the daemon than for who asks.
fn path(owner: &str, option: &str, path: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    vswitch::sys::unix::check_path(&path).map_err(|error| format!("{owner}: {option}: {error}"))?;
    if !path.is_absolute() {
        return Err(format!(
            "{owner}: {option}: '{}' is not an absolute path: begin it with /",
            path.display()
        ));
    }
    Ok(path)
}

/// The stream that is asked for.
pub(super) fn stream(asked: &PortAdd, owner: &str) -> Result<StreamSpec, String> {
    let tcp = |role, address: SocketAddr| (StreamAddress::Tcp(address), role);
    if asked.server && asked.client {
        return Err(format!("{owner}: 'server' excludes 'client': give one"));
    }
    let (address, role) = match (&asked.path, asked.listen, asked.connect) {
        (Some(text), None, None) => {
            let role = if asked.client { SocketRole::Client } else { SocketRole::Server };
            (StreamAddress::Unix(path(owner, "path", text)?), role)
        }
        (None, Some(_), None) | (None, None, Some(_)) if asked.server || asked.client => {
            return Err(format!("{owner}: 'listen' and 'connect' say it: leave 'server' and 'client' out"));
        }
        (None, Some(address), None) => tcp(SocketRole::Server, address),
        (None, None, Some(address)) => tcp(SocketRole::Client, address),
        (None, None, None) => {
            return Err(format!("{owner}: a stream port needs 'path' (or, for TCP, 'listen' or 'connect')"));
        }
        _ => return Err(format!("{owner}: give one of 'path', 'listen' and 'connect'")),
    };
    if matches!(&address, StreamAddress::Tcp(address) if address.port() == 0) {
        return Err(format!("{owner}: nobody is at port 0: give the port to listen at or to connect to"));
    }
    let spec = StreamSpec { address, role, mtu: mtu(asked), mode: mode(asked, owner)? };
    if asked.mode.is_some() && spec.socket_path().is_none() {
        return Err(format!("{owner}: 'mode' is for a socket that vswitchd makes: leave it out"));
    }
    Ok(spec)
}

/// The datagrams that are asked for.
pub(super) fn dgram(asked: &PortAdd, owner: &str) -> Result<DgramSpec, String> {
    let needed = |option: &str, text: &Option<String>| {
        let text = text.as_ref().ok_or_else(|| format!("{owner}: a dgram port needs '{option}'"))?;
        path(owner, option, text)
    };
    let (path, peer) = (needed("path", &asked.path)?, needed("peer", &asked.peer)?);
    if path == peer {
        return Err(format!("{owner}: 'path' is vswitchd's socket and 'peer' the other end's: give two"));
    }
    Ok(DgramSpec { path, peer, mtu: mtu(asked), mode: mode(asked, owner)? })
}
