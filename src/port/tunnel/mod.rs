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
const SENDERS: usize = 8;

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

    /// Opens what workers send from; not from the UDP ports in `taken`, at which tunnels arrive.
    ///
    /// # Errors
    /// As [`Place::open`].
    pub fn senders(
        &self,
        options: &SendOptions,
        taken: &[u16],
        workers: usize,
    ) -> Result<Vec<Arc<Senders>>, sys::Error> {
        let (transport, dev) = (transport(self.encapsulation), self.dev.as_deref());
        // Nothing but its source port tells one socket from another.
        let count = if transport == Transport::Udp { SENDERS } else { 1 };
        let ports: Vec<u16> = match options.ports {
            None => vec![0],
            // A socket there would be given what is for the tunnel, and drop it.
            Some((first, last)) => (first..=last).filter(|port| !taken.contains(port)).collect(),
        };
        let range = |(first, last)| format!("source ports {first}-{last} of {}{}", self.local, self.within());
        if ports.is_empty() {
            let what = options.ports.map_or(String::new(), range);
            return Err(sys::Error::refused(
                io::ErrorKind::InvalidInput,
                format!("{what} are all ports at which tunnels arrive; give another --srcport-range"),
            ));
        }
        let SendOptions { csum, ttl, .. } = *options;
        let sender = |port: u16, whole| {
            UnderlaySocket::sender(transport, self.local, dev, port, &Sending { whole, csum, ttl })
        };
        let all = |worker: usize| {
            let port = |number| ports[(worker * count + number) % ports.len()];
            let divisible: Box<[_]> =
                (0..count).map(|number| sender(port(number), false)).collect::<io::Result<_>>()?;
            // From the same ports: a flow keeps to its own, whatever its packets are.
            let whole = if self.local.is_ipv4() {
                divisible.iter().map(|twin| sender(twin.port()?, true)).collect::<io::Result<_>>()?
            } else {
                Box::default()
            };
            let segments = transport == Transport::Udp && csum;
            Ok(Arc::new(Senders { divisible, whole, segments }))
        };
        let opened = self.enter(|| (0..workers).map(all).collect::<io::Result<_>>())?;
        opened.map_err(|source| match (source.raw_os_error(), options.ports) {
            (Some(libc::EADDRINUSE), Some(ports)) => sys::Error::refused(
                io::ErrorKind::AlreadyExists,
                format!("{} are taken by another program; give another --srcport-range", range(ports)),
            ),
            _ => self.cannot(source),
        })
    }

    /// MTU of the way to each of some remotes, in bytes with the IP header; `None` where there is no way.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn path_mtus(&self, remotes: &[IpAddr]) -> Result<Vec<Option<u32>>, sys::Error> {
        let probe = |&remote: &IpAddr| underlay::path_mtu(self.local, remote, self.dev.as_deref()).ok();
        self.run(|| Ok(remotes.iter().map(probe).collect()))
    }

    /// Index of the interface that it stands and falls with: the one that was named, or that a group was joined on. `None` if there is no such
    /// one, or not now.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn ifindex(&self) -> Result<Option<u32>, sys::Error> {
        let index = || match (&self.dev, self.group) {
            (Some(dev), _) => underlay::index_of(dev).ok(),
            (None, Some(_)) => underlay::index_with(self.local),
            (None, None) => None,
        };
        self.run(|| Ok(index().map(u32::from)))
    }

    /// Packets that could not be put together from fragments since there is the namespace; 0 if nobody knows.
    #[must_use]
    pub fn reassembly_failures(&self) -> u64 {
        self.run(|| underlay::reassembly_failures(self.local.is_ipv4())).unwrap_or_default()
    }

    /// Calls `what` in the namespace.
    fn run<T: Send>(&self, what: impl FnOnce() -> io::Result<T> + Send) -> Result<T, sys::Error> {
        self.enter(what)?.map_err(|source| self.cannot(source))
    }

    fn enter<T: Send>(&self, what: impl FnOnce() -> T + Send) -> Result<T, sys::Error> {
        let target = self.netns.as_ref().map(netns::open).transpose()?;
        netns::run_in(target.as_ref().map(AsFd::as_fd), what).map_err(|source| self.cannot(source))
    }

    fn within(&self) -> String {
        self.netns.as_ref().map_or(String::new(), |netns| format!(" in namespace '{netns}'"))
    }

    /// The kernel's answer in the operator's words.
    fn cannot(&self, source: io::Error) -> sys::Error {
        let refused = |kind, text| sys::Error::refused(kind, text);
        let (local, port) = (self.group.unwrap_or(self.local), self.port);
        let within = self.within();
        match (source.raw_os_error(), &self.dev) {
            // It may come: a port of the configuration waits for it.
            (Some(libc::EADDRNOTAVAIL), _) => refused(
                io::ErrorKind::NotFound,
                format!("{local} is no address of this host{within}; give --local one that is"),
            ),
            (Some(libc::EADDRINUSE), _) => refused(
                io::ErrorKind::AlreadyExists,
                format!(
                    "UDP port {port} of {local}{within} is taken, perhaps by a tunnel of the kernel's, or sent from by a port's \
                     --srcport-range; choose another --dstport"
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
