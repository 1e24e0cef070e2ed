//! Announcements: an interface tells its neighbours which MAC address its IP addresses are at, without being asked
//! (RFC 5227, section 3; RFC 4861, section 7.2.6). Who knows another address changes it at once.
//!
//! The frames are ours and not the kernel's (`arp_notify`, `ndisc_notify`): those are sent once, when the interface goes up,
//! and then the ports by which neighbours are reached may not be there yet; and a container may not write sysctls.

use std::fs;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::netns::run_in;
use super::{Error, Result};
use crate::addr::MacAddr;
use crate::wire::{arp, ndisc};

/// An interface that has something to announce.
#[derive(Clone, Debug)]
pub struct Announcer {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub ifname: String,
    /// Its address.
    pub mac: MacAddr,
    /// The IP addresses that it uses.
    pub addresses: Vec<IpAddr>,
}

/// Sends the announcements of some interfaces in namespace `ns` (`None`: the calling thread's), one for each address.
///
/// # Errors
/// A socket cannot be had there, or none of the frames could be sent.
pub fn announce(ns: Option<BorrowedFd<'_>>, announcers: &[Announcer]) -> Result<()> {
    let sent = run_in(ns, || {
        let socket = Socket::new(Domain::PACKET, Type::RAW.cloexec().nonblocking(), Some(Protocol::from(0)))?;
        let mut done = Ok(());
        for announcer in announcers {
            for frame in announcer.frames() {
                if let Err(error) = super::packet::send_by(&socket, announcer.ifindex, &frame) {
                    done = Err(error);
                }
            }
        }
        done
    });
    sent.and_then(|sent| sent).map_err(Error::on(|| "cannot announce the addresses of interfaces"))
}

impl Announcer {
    /// Wants to be in the interface's namespace.
    fn frames(&self) -> Vec<Vec<u8>> {
        let router = self.is_router();
        let frame = |address: &IpAddr| match address {
            IpAddr::V4(address) => Some(arp::gratuitous(self.mac, *address).to_vec()),
            // Hosts forget a router that says it is none, so nothing is said where it is not known.
            IpAddr::V6(address) => Some(ndisc::unsolicited(self.mac, *address, router?)),
        };
        self.addresses.iter().filter_map(frame).collect()
    }

    fn is_router(&self) -> Option<bool> {
        let value = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{}/forwarding", self.ifname)).ok()?;
        Some(value.trim() != "0")
    }
}

/// Whether an address is one that neighbours ask for.
pub(crate) fn is_announced(address: IpAddr) -> bool {
    !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
}
