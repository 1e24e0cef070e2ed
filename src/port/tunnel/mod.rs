//! Tunnel ports: frames inside packets to switches elsewhere, over UDP or GRE.
//!
//! Receiving is by endpoints, one a local address (and UDP port), that many ports share. Sending is by the remotes, each
//! a port of its own to the pipeline (see [`crate::tunnel`]). How frames are wrapped is all that differs from one kind of
//! tunnel to another, and it is in [`crate::tunnel`], one file a header.
//!
//! An endpoint in UDP has a socket a worker, among which the kernel shares out the outer flows. Every socket of a multicast group, and
//! every raw socket, would get a copy of everything: of those there is one, the first worker's.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::PortQueue;
use crate::spec::{Netns, TunnelSpec};
use crate::sys::underlay::{self, Sending, Transport, UnderlaySocket};
use crate::sys::{self, netns};
use crate::tunnel::encapsulation::Encapsulation;

mod endpoint;
mod remote;

pub use remote::queues;

/// Sockets that one worker sends from, at one endpoint: so that the outer source port tells flows apart to whoever spreads
/// them over paths on the way (RFC 7348, section 5).
const SENDERS: u16 = 8;

/// Where tunnels arrive: ports that agree in this share their sockets.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Place {
    /// How frames are wrapped there.
    pub encapsulation: Encapsulation,
    /// The namespace of the underlay; `None` is the switch's own.
    pub netns: Option<Netns>,
    /// Address of this host in it.
    pub local: IpAddr,
    /// UDP port; 0 with GRE.
    pub port: u16,
    /// The only interface that packets come and leave by.
    pub dev: Option<String>,
    /// A multicast group, if it is that at which packets arrive.
    pub group: Option<IpAddr>,
}

/// One worker's sockets to send from.
#[derive(Debug)]
pub struct Senders {
    /// What they send may be fragmented.
    divisible: Box<[UnderlaySocket]>,
    /// It may not. With IPv6 only the sender can, and knows beforehand: there are none.
    whole: Box<[UnderlaySocket]>,
    /// Whether the kernel cuts one call's bytes into datagrams.
    segments: bool,
}

/// What the sockets that a tunnel sends from are like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SendOptions {
    csum: bool,
    ttl: Option<u8>,
    ports: Option<(u16, u16)>,
}

impl SendOptions {
    /// Those of a tunnel.
    #[must_use]
    pub fn of(spec: &TunnelSpec) -> SendOptions {
        let udp = spec.udp.as_ref();
        SendOptions {
            csum: udp.is_some_and(|udp| udp.csum),
            ttl: spec.ttl,
            ports: udp.and_then(|udp| udp.srcport_range),
        }
    }
}

fn transport(encapsulation: Encapsulation) -> Transport {
    match encapsulation {
        Encapsulation::Vxlan | Encapsulation::Geneve => Transport::Udp,
        Encapsulation::Gre => Transport::Gre,
    }
}

impl Place {
    /// Where a tunnel's own packets arrive.
    #[must_use]
    pub fn of(spec: &TunnelSpec) -> Place {
        Place {
            encapsulation: spec.header.encapsulation(),
            netns: spec.netns.clone(),
            local: spec.local,
            port: spec.udp.as_ref().map_or(0, |udp| udp.dstport),
            dev: spec.dev.clone(),
            group: None,
        }
    }

    /// Where those to its multicast group do.
    #[must_use]
    pub fn of_group(spec: &TunnelSpec) -> Option<Place> {
        Some(Place { group: Some(spec.group?), ..Place::of(spec) })
    }

    /// Opens the receiving queues, for the first so many workers.
    ///
    /// # Errors
    /// The address and the kernel's answer.
    pub fn open(&self, workers: usize) -> Result<Vec<Box<dyn PortQueue>>, sys::Error> {
        let (transport, dev) = (transport(self.encapsulation), self.dev.as_deref());
        let receiver = |shared| UnderlaySocket::receiver(transport, self.local, self.port, dev, shared);
        let open = || match (self.group, transport) {
            (Some(group), _) => Ok(vec![UnderlaySocket::group_receiver(group, self.port, self.local, dev)?]),
            (None, Transport::Gre) => Ok(vec![receiver(false)?]),
            (None, Transport::Udp) => {
                // Others of the same user may share an address with those below, so ask first whether somebody has it.
                drop(receiver(false)?);
                (0..workers).map(|_| receiver(true)).collect()
            }
        };
        let receivers = self.run(open)?;
        let queue =
            |socket| Box::new(endpoint::EndpointQueue::new(socket, self.encapsulation)) as Box<dyn PortQueue>;
        Ok(receivers.into_iter().map(queue).collect())
    }

    /// Opens what workers send from.
    ///
    /// # Errors
    /// As [`Place::open`].
    pub fn senders(&self, options: &SendOptions, workers: usize) -> Result<Vec<Arc<Senders>>, sys::Error> {
        let (transport, dev) = (transport(self.encapsulation), self.dev.as_deref());
        // Nothing but its source port tells one socket from another.
        let count = if transport == Transport::Udp { SENDERS } else { 1 };
        let some = |whole| -> io::Result<Box<[UnderlaySocket]>> {
            let SendOptions { csum, ttl, ports } = *options;
            let sending = Sending { whole, csum, ttl, ports };
            (0..count)
                .map(|number| UnderlaySocket::sender(transport, self.local, dev, &sending, number))
                .collect()
        };
        let one = || {
            let whole = if self.local.is_ipv4() { some(true)? } else { Box::default() };
            let segments = transport == Transport::Udp && options.csum;
            Ok(Arc::new(Senders { divisible: some(false)?, whole, segments }))
        };
        self.run(|| (0..workers).map(|_| one()).collect())
    }

    /// MTU of the way to each of some remotes, in bytes with the IP header; `None` where there is no way.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn path_mtus(&self, remotes: &[IpAddr]) -> Result<Vec<Option<u32>>, sys::Error> {
        let probe = |&remote: &IpAddr| underlay::path_mtu(self.local, remote, self.dev.as_deref()).ok();
        self.run(|| Ok(remotes.iter().map(probe).collect()))
    }

    /// Index of the interface that packets leave by, if one was named and exists.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn ifindex(&self) -> Result<Option<u32>, sys::Error> {
        let index = || self.dev.as_deref().and_then(|dev| underlay::index_of(dev).ok());
        self.run(|| Ok(index().map(u32::from)))
    }

    /// Packets that could not be put together from fragments since there is the namespace; 0 if nobody knows.
    #[must_use]
    pub fn reassembly_failures(&self) -> u64 {
        self.run(|| underlay::reassembly_failures(self.local.is_ipv4())).unwrap_or_default()
    }

    /// Calls `what` in the namespace.
    fn run<T: Send>(&self, what: impl FnOnce() -> io::Result<T> + Send) -> Result<T, sys::Error> {
        let target = self.netns.as_ref().map(netns::open).transpose()?;
        let done = netns::run_in(target.as_ref().map(AsFd::as_fd), what).and_then(|done| done);
        done.map_err(|source| self.cannot(source))
    }

    /// The kernel's answer in the operator's words.
    fn cannot(&self, source: io::Error) -> sys::Error {
        let refused = |kind, text| sys::Error::refused(kind, text);
        let (local, port) = (self.group.unwrap_or(self.local), self.port);
        let within = self.netns.as_ref().map_or(String::new(), |netns| format!(" in namespace '{netns}'"));
        match (source.raw_os_error(), &self.dev) {
            (Some(libc::EADDRNOTAVAIL), _) => refused(
                io::ErrorKind::InvalidInput,
                format!("{local} is no address of this host{within}; give --local one that is"),
            ),
            (Some(libc::EADDRINUSE), _) => refused(
                io::ErrorKind::AlreadyExists,
                format!(
                    "UDP port {port} of {local}{within} is taken, perhaps by a tunnel of the kernel's; choose another \
                     --dstport"
                ),
            ),
            (Some(libc::ENODEV), Some(dev)) => refused(
                io::ErrorKind::NotFound,
                format!("there is no interface '{dev}'{within}; create it, or give another --dev"),
            ),
            (Some(libc::ENODEV), None) => refused(
                io::ErrorKind::InvalidInput,
                format!(
                    "no interface{within} has the address {local}; say by which to reach the group with --dev"
                ),
            ),
            _ => sys::Error::new(format!("cannot receive at {local}{within}"), source),
        }
    }
}
