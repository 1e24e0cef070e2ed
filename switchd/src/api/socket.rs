//! Ports on sockets of other programs: their options, and how they are shown.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vswitch::spec::{DgramSpec, PortKind, SocketRole, StreamAddress, StreamSpec, VdeSpec};
use vswitch::status::PeersStatus;

use super::Role;
use super::mode::{FileMode, ModeChoice};
use super::port::{PortAdd, PortType};
use super::size::Size;

/// Those that listen or connect.
pub(super) const STREAM: &[PortType] = &[PortType::Stream];
/// Those with datagrams.
pub(super) const DGRAM: &[PortType] = &[PortType::Dgram];
/// All.
pub(super) const ALL: &[PortType] = &[PortType::Stream, PortType::Dgram, PortType::Vde];

/// The socket of a port on one: `stream`, `dgram`, `vde` or `vhost-user`.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct SocketInfo {
    /// Whose socket `path` or `address` is: `server` is the switch, `client` the other end.
    pub role: Role,
    /// The Unix socket, or of VDE the folder of sockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Where the switch listens, or what it connects to, by TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The other end's socket, or the one that the switch made for itself where `path` is the other end's; of datagrams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Permissions of the sockets' files that the switch made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub mode: Option<FileMode>,
    /// Memory that the guest may share, where that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub memory_max: Option<Size>,
    /// Whether a thread of the port's own carries the guest's frames.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_thread: bool,
    /// Peers so far, and what became of others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<PeersInfo>,
    /// What would be better, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The peers of a `stream`, `dgram` or `vde` port.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct PeersInfo {
    /// Connections that were made or accepted.
    pub connections: u64,
    /// Peers that were turned away, because the port had one or they asked for what they cannot have; datagrams of senders that cannot be
    /// answered.
    pub refused: u64,
    /// Milliseconds until the next peer may come, after those that did not stay; null when it may now.
    pub hold_off_ms: Option<u64>,
    /// Somebody waits for that.
    pub waits: bool,
}

impl From<PeersStatus> for PeersInfo {
    fn from(status: PeersStatus) -> Self {
        let ms = |left: std::time::Duration| u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        PeersInfo {
            connections: status.connections,
            refused: status.refused,
            hold_off_ms: status.hold_off.map(ms),
            waits: status.waits,
        }
    }
}

impl SocketInfo {
    /// Of a port, if it has one.
    #[must_use]
    pub fn new(kind: &PortKind, peers: Option<PeersStatus>) -> Option<SocketInfo> {
        let text = |path: &Path| Some(path.display().to_string());
        let mode = |mode| kind.socket_path().map(|_| FileMode(mode));
        let none = SocketInfo {
            role: Role::Server,
            path: None,
            address: None,
            peer: None,
            mode: None,
            memory_max: None,
            own_thread: false,
            peers: peers.map(PeersInfo::from),
            hint: None,
        };
        Some(match kind {
            PortKind::Stream(spec) => {
                let (path, address) = match &spec.address {
                    StreamAddress::Unix(path) => (text(path), None),
                    StreamAddress::Tcp(address) => (None, Some(address.to_string())),
                };
                SocketInfo { role: spec.role.into(), path, address, mode: mode(spec.mode), ..none }
            }
            PortKind::Dgram(DgramSpec { path, peer: Some(peer), mode: bits, .. })
                if *path == DgramSpec::beside(peer) =>
            {
                let role = Role::Client;
                SocketInfo { role, path: text(peer), peer: text(path), mode: mode(*bits), ..none }
            }
            PortKind::Dgram(spec) => SocketInfo {
                path: text(&spec.path),
                peer: spec.peer.as_deref().and_then(text),
                mode: mode(spec.mode),
                ..none
            },
            PortKind::Vde(spec) => SocketInfo {
                role: spec.role.into(),
                path: text(&spec.path),
                mode: Some(FileMode(spec.mode)),
                ..none
            },
            PortKind::VhostUser(spec) => {
                let memory_max = spec.memory_max.map(Size);
                let (role, own_thread) = (spec.role.into(), spec.own_thread);
                SocketInfo { role, path: text(&spec.path), memory_max, own_thread, ..none }
            }
            _ => return None,
        })
    }

    /// In one line, for a table.
    #[must_use]
    pub fn summary(&self) -> String {
        let place = self.path.as_ref().or(self.address.as_ref()).map_or("", String::as_str);
        let role = self.role.name();
        match (self.role, &self.peer) {
            (_, None) => format!("{role} {place}"),
            (Role::Server, Some(peer)) => format!("{role} {place} to {peer}"),
            (Role::Client, Some(own)) => format!("{role} {place} from {own}"),
        }
    }
}

impl PeersInfo {
    /// In one line, for a table.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text = format!("{} so far, {} peers refused", self.connections, self.refused);
        if let Some(ms) = self.hold_off_ms {
            let who = if self.waits { "one that waits" } else { "the next" };
            text.push_str(&format!("; {who} may come in {}.{} s", ms / 1000, ms % 1000 / 100));
        }
        text
    }
}

fn role(asked: &PortAdd, owner: &str) -> Result<SocketRole, String> {
    match (asked.server, asked.client) {
        (true, true) => Err(format!("{owner}: 'server' excludes 'client': give one")),
        (_, true) => Ok(SocketRole::Client),
        (_, false) => Ok(SocketRole::Server),
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

/// The path of a socket itself, not of a folder.
pub(super) fn file(owner: &str, option: &str, text: &str) -> Result<PathBuf, String> {
    if text.ends_with('/') {
        return Err(format!(
            "{owner}: {option}: '{}' is a folder's path: give a file's",
            text.escape_debug()
        ));
    }
    path(owner, option, text)
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
    let role = role(asked, owner)?;
    let (address, role) = match (&asked.path, asked.listen, asked.connect) {
        (Some(text), None, None) => (StreamAddress::Unix(file(owner, "path", text)?), role),
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

/// The plug that is asked for.
pub(super) fn vde(asked: &PortAdd, owner: &str) -> Result<VdeSpec, String> {
    let Some(text) = &asked.path else {
        return Err(format!("{owner}: a vde port needs 'path', a folder for sockets"));
    };
    let path = path(owner, "path", text)?;
    vswitch::port::vde::check_folder(&path).map_err(|error| format!("{owner}: path: {error}"))?;
    Ok(VdeSpec { path, role: role(asked, owner)?, mtu: mtu(asked), mode: mode(asked, owner)? })
}

/// The datagrams that are asked for.
pub(super) fn dgram(asked: &PortAdd, owner: &str) -> Result<DgramSpec, String> {
    let role = role(asked, owner)?;
    let Some(text) = &asked.path else {
        return Err(format!("{owner}: a dgram port needs 'path', a socket"));
    };
    let given = file(owner, "path", text)?;
    let (path, peer) = match &asked.peer {
        Some(_) if asked.server || asked.client => {
            return Err(format!(
                "{owner}: 'path' and 'peer' say it: leave 'server' and 'client' out, or leave 'peer' out"
            ));
        }
        Some(peer) => (given, Some(file(owner, "peer", peer)?)),
        None if role == SocketRole::Client => {
            let own = DgramSpec::beside(&given);
            vswitch::sys::unix::check_path(&own).map_err(|error| format!("{owner}: {error}"))?;
            (own, Some(given))
        }
        None => (given, None),
    };
    if peer.as_ref() == Some(&path) {
        return Err(format!("{owner}: 'path' is vswitchd's socket and 'peer' the other end's: give two"));
    }
    Ok(DgramSpec { path, peer, mtu: mtu(asked), mode: mode(asked, owner)? })
}
