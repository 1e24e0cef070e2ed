//! The TAP device that a guest gets: made by vswitchd in its own namespace, held by the guest's QEMU.
//!
//! On the device is written, as its alias, what it was made for. It outlives a vswitchd that is killed, for as long as QEMU holds it,
//! and the next vswitchd of the same attach socket then knows whose it is, and may ask the rules again: user and groups are in the alias.
//! It takes CAP_NET_ADMIN, so guests cannot forge it.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use vswitch::switch::Error;
use vswitch::sys::netlink::{LinkChange, Netlink};
use vswitch::sys::tun;

use super::rules::Who;
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
    /// The groups of that process; as many of the first as fit are written on the device.
    pub groups: Vec<u32>,
    /// The attach socket where it did.
    pub socket: PathBuf,
}

impl fmt::Display for Purpose {
    /// Without the groups that make it longer than an alias can be.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Holder { uid, pid } = self.holder;
        let before = format!("{MARK} {} {uid}", self.bridge);
        let behind = format!(" {pid} {}", self.socket.display());
        let mut groups = String::new();
        for group in &self.groups {
            let one = format!("{}{group}", if groups.is_empty() { ":" } else { "," });
            if before.len() + groups.len() + one.len() + behind.len() > ALIAS_MAX_BYTES {
                break;
            }
            groups += &one;
        }
        write!(f, "{before}{groups}{behind}")
    }
}

impl Purpose {
    /// Who asked for it, as rules see it.
    #[must_use]
    pub fn who(&self) -> Who<'_> {
        Who { uid: self.holder.uid, groups: &self.groups }
    }

    fn read(alias: &str) -> Option<Purpose> {
        let mut words = alias.splitn(5, ' ');
        let mut next = || words.next();
        let (MARK, bridge, who, pid, socket) = (next()?, next()?, next()?, next()?, next()?) else {
            return None;
        };
        let (uid, groups) = who.split_once(':').unwrap_or((who, ""));
        let groups = groups.split(',').filter(|group| !group.is_empty());
        let groups = groups.map(|group| group.parse().ok()).collect::<Option<_>>()?;
        let holder = Holder { uid: uid.parse().ok()?, pid: pid.parse().ok()? };
        Some(Purpose { bridge: bridge.to_owned(), holder, groups, socket: socket.into() })
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
            // One that cannot be removed must not cost the others their ports.
            if let Err(error) = netlink
                .del_link(link.index)
                .or_else(|error| if error.is_not_found() { Ok(()) } else { Err(error) })
            {
                tracing::warn!("cannot remove interface '{}' of a guest that has gone: {error}", link.name);
            }
        } else {
            held.push((link.name, purpose));
        }
    }
    Ok(held)
}

/// Removes a device that [`left`] told of, if it still is what it was.
///
/// # Errors
/// The kernel's answer.
pub fn remove(name: &str, purpose: &Purpose) -> Result<(), Error> {
    let netlink = Netlink::open_in(None).map_err(system)?;
    let link = netlink.link(name).map_err(system)?;
    let is_it = |alias: &str| Purpose::read(alias).as_ref() == Some(purpose);
    match link.filter(|link| link.alias.as_deref().is_some_and(is_it)) {
        Some(link) => netlink.del_link(link.index).map_err(system),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purpose_is_read_as_written() {
        let holder = Holder { uid: 1000, pid: 4711 };
        let socket: PathBuf = "/run/with space/attach.sock".into();
        let purpose = Purpose { bridge: "br0".into(), holder, groups: vec![36, 1000], socket };
        assert_eq!(purpose.to_string(), "vswitchd br0 1000:36,1000 4711 /run/with space/attach.sock");
        assert_eq!(Purpose::read(&purpose.to_string()), Some(purpose.clone()));
        let purpose = Purpose { groups: Vec::new(), ..purpose };
        assert_eq!(purpose.to_string(), "vswitchd br0 1000 4711 /run/with space/attach.sock");
        assert_eq!(Purpose::read(&purpose.to_string()), Some(purpose));
        for other in [
            "",
            "uplink",
            "vswitchd",
            "vswitchd br0 x 1 /s",
            "other br0 1 1 /s",
            "vswitchd br0 1 1",
            "vswitchd br0 1:x 1 /s",
        ] {
            assert_eq!(Purpose::read(other), None, "{other}");
        }
    }

    /// Names are at most 63 bytes, paths of sockets 107.
    #[test]
    fn the_longest_purpose_fits_an_alias_with_its_first_groups() {
        let purpose = Purpose {
            bridge: "b".repeat(63),
            holder: Holder { uid: u32::MAX, pid: u32::MAX },
            groups: (0..100).map(|number| u32::MAX - number).collect(),
            socket: "s".repeat(107).into(),
        };
        let alias = purpose.to_string();
        assert!(alias.len() <= ALIAS_MAX_BYTES, "{}", alias.len());
        let read = Purpose::read(&alias).expect("whole");
        assert!(read.groups.len() >= 4 && purpose.groups.starts_with(&read.groups), "{:?}", read.groups);
        assert_eq!(Purpose { groups: Vec::new(), ..read }, Purpose { groups: Vec::new(), ..purpose });
    }
}
