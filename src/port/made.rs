//! Devices that are made for a port and outlive its descriptors.
//!
//! A TAP goes when its descriptors are closed. A macvtap device does not: the kernel has to be told. Between the making of such a device and the
//! moment the control side has taken the port over much can fail, so the device has an owner from the first moment on.

use crate::sys;
use crate::sys::netlink::Netlink;

/// A device that was made for a port. It is removed when this is dropped, unless the port has been taken over ([`Made::keep`]).
///
/// Holds a connection into the device's namespace and so keeps that alive: for as long as a port is being opened, no longer.
#[derive(Debug)]
pub struct Made {
    netlink: Option<Netlink>,
    index: u32,
}

impl Made {
    /// Of the device `name`, which was made through `netlink` just now.
    ///
    /// # Errors
    /// It is gone already, or the kernel's answer.
    pub(super) fn new(netlink: Netlink, name: &str) -> Result<Made, sys::Error> {
        let link = netlink.link(name)?.ok_or_else(|| {
            let what = format!("interface '{name}' vanished as soon as it was made");
            sys::Error::refused(std::io::ErrorKind::NotFound, what)
        })?;
        Ok(Made { netlink: Some(netlink), index: link.index })
    }

    /// The port has its device: from now on whoever removes the port removes that, too.
    pub fn keep(mut self) {
        self.netlink = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let Some(netlink) = self.netlink.take() else { return };
        match netlink.del_link(self.index) {
            Err(error) if !error.is_not_found() => {
                tracing::warn!("a port could not be opened, and its device is left behind: {error}");
            }
            _ => {}
        }
    }
}
