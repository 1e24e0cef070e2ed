//! The TAP device that a guest gets: made by vswitchd in its own namespace, held by the guest's QEMU.
//!
//! On the device is written, as its alias, what it was made for. It outlives a vswitchd that is killed, for as long as QEMU holds it,
//! and the next vswitchd of the same attach socket then knows whose it is. The alias takes CAP_NET_ADMIN, so guests cannot forge it.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use vswitch::switch::Error;
use vswitch::sys::netlink::{LinkChange, Netlink};
use vswitch::sys::tun;

use crate::api::Holder;

/// Frames that the kernel queues towards the guest; as for the switch's own TAP ports.
const TX_QUEUE_FRAMES: u32 = 1000;
/// Longest alias (IFALIASZ less its NUL).
const ALIAS_MAX_BYTES: usize = 255;
/// First word of the alias.
const MARK: &str = "vswitchd";

/// What a device is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Purpose {
    /// The bridge it is attached to.
    pub bridge: String,
    /// Who asked for it.
    pub holder: Holder,
    /// The attach socket where he did.
    pub socket: PathBuf,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Holder { uid, pid } = self.holder;
        write!(f, "{MARK} {} {uid} {pid} {}", self.bridge, self.socket.display())
    }
}

impl Purpose {
    fn read(alias: &str) -> Option<Purpose> {
        let mut words = alias.splitn(5, ' ');
        let mut next = || words.next();
        let (MARK, bridge, uid, pid, socket) = (next()?, next()?, next()?, next()?, next()?) else {
            return None;
        };
        let holder = Holder { uid: uid.parse().ok()?, pid: pid.parse().ok()? };
        Some(Purpose { bridge: bridge.to_owned(), holder, socket: socket.into() })
    }
}

fn system(error: vswitch::sys::Error) -> Error {
    Error::System { what: error.what, source: error.source }
}

/// Makes the device and switches it on. It is gone when the fd and its copies are closed.
///
/// # Errors
/// `Exists` when there is an interface of that name, or what the kernel refused.
pub fn make(name: &str, use_vnet: bool, purpose: &Purpose) -> Result<OwnedFd, Error> {
    let fd = tun::lend(name, use_vnet, purpose.holder.uid).map_err(|source| {
        let what = format!("cannot create TAP device '{name}'");
        if source.kind() == io::ErrorKind::ResourceBusy {
            Error::Exists(format!("{what}: it exists"))
        } else {
            Error::System { what, source }
        }
    })?;
    // The host has nothing to say on it, not even that it looks for routers. Where there is no IPv6 there is no such file.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let netlink = Netlink::open_in(None).map_err(system)?;
    let link = netlink.link(name).map_err(system)?;
    let link = link.ok_or_else(|| Error::NotFound(format!("interface '{name}' vanished")))?;
    let alias = Some(purpose.to_string()).filter(|alias| alias.len() <= ALIAS_MAX_BYTES);
    let change = LinkChange {
        up: Some(true),
        txqlen: Some(TX_QUEUE_FRAMES),
        alias: alias.as_deref(),
        ..LinkChange::default()
    };
    netlink.set_link(link.index, &change).map_err(system)?;
    Ok(fd)
}

/// Devices that guests hold and that an earlier vswitchd made for this attach socket, by name. One that a guest made stay and holds no more is
/// removed.
///
/// # Errors
/// The kernel's answer.
pub fn left(socket: &Path) -> Result<Vec<(String, Purpose)>, Error> {
    let netlink = Netlink::open_in(None).map_err(system)?;
    let links = netlink.links().map_err(system)?;
    let mut held = Vec::new();
    for link in links.into_iter().filter(|link| link.kind.as_deref() == Some("tun")) {
        let purpose = link.alias.as_deref().and_then(Purpose::read);
        let Some(purpose) = purpose.filter(|purpose| purpose.socket == socket) else { continue };
        if link.is_abandoned() {
            netlink.del_link(link.index).map_err(system)?;
        } else {
            held.push((link.name, purpose));
        }
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purpose_is_read_as_written() {
        let holder = Holder { uid: 1000, pid: 4711 };
        let purpose = Purpose { bridge: "br0".into(), holder, socket: "/run/with space/attach.sock".into() };
        assert_eq!(purpose.to_string(), "vswitchd br0 1000 4711 /run/with space/attach.sock");
        assert_eq!(Purpose::read(&purpose.to_string()), Some(purpose));
        for other in ["", "uplink", "vswitchd", "vswitchd br0 x 1 /s", "other br0 1 1 /s", "vswitchd br0 1 1"]
        {
            assert_eq!(Purpose::read(other), None, "{other}");
        }
    }
}
