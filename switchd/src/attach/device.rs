//! The TAP device that a guest gets: made by vswitchd in its own namespace, held by the guest's QEMU.

use std::io;
use std::os::fd::OwnedFd;

use vswitch::switch::Error;
use vswitch::sys::netlink::{LinkChange, Netlink};
use vswitch::sys::tun;

/// Frames that the kernel queues towards the guest; as for the switch's own TAP ports.
const TX_QUEUE_FRAMES: u32 = 1000;

/// Makes the device, the user `owner`'s, and switches it on. It is gone when the fd and its copies are closed.
///
/// # Errors
/// `Exists` when there is an interface of that name, or what the kernel refused.
pub fn make(name: &str, use_vnet: bool, owner: u32) -> Result<OwnedFd, Error> {
    let fd = tun::lend(name, use_vnet, owner).map_err(|source| {
        let what = format!("cannot create TAP device '{name}'");
        if source.kind() == io::ErrorKind::ResourceBusy {
            Error::Exists(format!("{what}: it exists"))
        } else {
            Error::System { what, source }
        }
    })?;
    // The host has nothing to say on it, not even that it looks for routers. Where there is no IPv6 there is no such file.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let system = |error: vswitch::sys::Error| Error::System { what: error.what, source: error.source };
    let netlink = Netlink::open_in(None).map_err(system)?;
    let link = netlink.link(name).map_err(system)?;
    let link = link.ok_or_else(|| Error::NotFound(format!("interface '{name}' vanished")))?;
    let change = LinkChange { up: Some(true), txqlen: Some(TX_QUEUE_FRAMES), ..LinkChange::default() };
    netlink.set_link(link.index, &change).map_err(system)?;
    Ok(fd)
}
