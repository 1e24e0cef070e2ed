//! Tunnel ports as asked for.

use std::net::IpAddr;

use super::Netns;
use crate::addr::{VlanId, VlanSet};
use crate::tunnel::encapsulation::{Header, NetworkId};
use crate::tunnel::erspan::{self, Sender};

/// A tunnel: how frames are wrapped, and what the packets around them are like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelSpec {
    /// What stands before each frame.
    pub header: Header,
    /// Whose frames it carries.
    pub networks: Networks,
    /// What tunnels in UDP have beside.
    pub udp: Option<UdpSpec>,
    /// Address of this host in the underlay.
    pub local: IpAddr,
    /// Multicast group that stands for all other ends.
    pub group: Option<IpAddr>,
    /// Interface that outer packets leave and come by; `None` leaves that to routes.
    pub dev: Option<String>,
    /// Time to live, or hop limit, of outer packets; `None` is the kernel's, and 1 to a group.
    pub ttl: Option<u8>,
    /// Their type of service, or traffic class.
    pub tos: Tos,
    /// Longest payload of frames that is taken to fit, in bytes, where the way would take more.
    pub mtu: Option<u32>,
    /// The namespace of the underlay; `None` is the switch's own.
    pub netns: Option<Netns>,
}

/// Whose frames a tunnel carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Networks {
    /// One network's, with whatever tag they have. Its number: VNI, key or session; nothing where there are no numbers.
    One(u32),
    /// Each VLAN's in a network of its own, without tag. In order of VLANs.
    ByVlan(Vec<(VlanId, u32)>),
}

/// What tunnels in UDP have beside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UdpSpec {
    /// UDP port, here and there.
    pub dstport: u16,
    /// First and last of the ports to send from; `None` is any.
    pub srcport_range: Option<(u16, u16)>,
    /// Whether outer packets have a UDP checksum.
    pub csum: bool,
}

/// Why two tunnels cannot be there at the same time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clash {
    /// Both carry this network's frames. They may if both say whose they take, and nobody's twice.
    Network(NetworkId),
    /// One would be given what is for the other, or its address would be taken.
    Sockets,
}

/// Type of service of outer packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tos {
    /// This; the two bits of ECN are the frame's own in any case (RFC 6040).
    Fixed(u8),
    /// As in the frame's IP header.
    Inherit,
}

/// What may change while a tunnel port runs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TunnelSettings {
    /// The other ends: each gets a copy of what is flooded.
    pub remotes: Vec<IpAddr>,
    /// Frames from anybody else are dropped, not only kept from being learned at once.
    pub strict_remotes: bool,
    /// Frames that claim a station known at a port that is no tunnel are dropped.
    pub guard_local: bool,
    /// ARP requests and neighbour solicitations that the switch can answer are not flooded into it.
    pub neigh_suppress: bool,
    /// What becomes of frames that do not fit one packet of the way.
    pub df: Df,
    /// TCP connections through the tunnel are told to send segments that fit.
    pub mss_clamp: bool,
}

/// Whether what does not fit one packet of a tunnel's way may go in fragments of the outer packet, and whether routers may make
/// such. Linux's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Df {
    /// As the frame says: not IPv4 with DF set, nor IPv6. Their sender is told what fits.
    #[default]
    Inherit,
    /// It may not; the sender of an IP packet is told what fits.
    Set,
    /// It may.
    Unset,
}

impl TunnelSpec {
    /// A tunnel for one network, with everything else at its default.
    #[must_use]
    pub fn new(header: Header, number: u32, local: IpAddr) -> TunnelSpec {
        let udp = header.encapsulation().port();
        TunnelSpec {
            header,
            networks: Networks::One(number),
            udp: udp.map(|dstport| UdpSpec { dstport, srcport_range: None, csum: true }),
            local,
            group: None,
            dev: None,
            ttl: None,
            tos: Tos::Fixed(0),
            mtu: None,
            netns: None,
        }
    }

    /// The name used by the command line, JSON and configuration.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match (&self.header, self.local.is_ipv4()) {
            (Header::Vxlan, _) => "vxlan",
            (Header::Geneve, _) => "geneve",
            (Header::Gre { .. }, true) => "gretap",
            (Header::Gre { .. }, false) => "ip6gretap",
            (Header::Erspan(_), true) => "erspan",
            (Header::Erspan(_), false) => "ip6erspan",
        }
    }

    /// The networks that it carries frames of, each with the VLAN that it stands for.
    #[must_use]
    pub fn ids(&self) -> Vec<(NetworkId, Option<VlanId>)> {
        match &self.networks {
            Networks::One(number) => vec![(self.header.network(*number), None)],
            Networks::ByVlan(map) => {
                map.iter().map(|&(vlan, number)| (self.header.network(number), Some(vlan))).collect()
            }
        }
    }

    /// The VLANs it carries, each in a network of its own; `None` if it does not look at VLANs.
    #[must_use]
    pub fn vlans(&self) -> Option<VlanSet> {
        match &self.networks {
            Networks::One(_) => None,
            Networks::ByVlan(map) => Some(map.iter().map(|&(vlan, _)| vlan).collect()),
        }
    }

    /// Why this tunnel cannot be there together with another whose underlay is in the same namespace; `None` if it can.
    #[must_use]
    pub fn clash(
        &self,
        settings: &TunnelSettings,
        other: &TunnelSpec,
        theirs: &TunnelSettings,
    ) -> Option<Clash> {
        let port = |spec: &TunnelSpec| spec.udp.as_ref().map(|udp| udp.dstport);
        if self.local != other.local || port(self) != port(other) {
            return None;
        }
        if (self.header.encapsulation(), &self.dev) != (other.header.encapsulation(), &other.dev) {
            // Two interfaces keep out of each other's way; one, and any, do not.
            let apart = self.dev != other.dev && self.dev.is_some() && other.dev.is_some();
            return (!apart).then_some(Clash::Sockets);
        }
        let apart = settings.strict_remotes
            && theirs.strict_remotes
            && !self.far_ends(settings).any(|end| other.far_ends(theirs).any(|other| other == end));
        let taken = other.ids();
        let mut ids = self.ids().into_iter().map(|(id, _)| id).filter(|_| !apart);
        ids.find(|id| taken.iter().any(|(other, _)| other == id)).map(Clash::Network)
    }

    /// Whether it may send from the UDP port at which another tunnel's packets arrive.
    #[must_use]
    pub fn may_send_from_port_of(&self, other: &TunnelSpec) -> bool {
        let range = self.udp.as_ref().and_then(|udp| udp.srcport_range);
        let port = other.udp.as_ref().map(|udp| udp.dstport);
        self.local == other.local
            && range.zip(port).is_some_and(|((first, last), port)| (first..=last).contains(&port))
    }

    /// How many bytes longer a packet is than the payload of the frame in it.
    #[must_use]
    pub fn overhead(&self) -> u32 {
        let ip = if self.local.is_ipv4() { 20 } else { 40 };
        let udp = if self.udp.is_some() { 8 } else { 0 };
        let header = u32::try_from(self.header.len()).unwrap_or(u32::MAX);
        ip + udp + header + 14
    }

    /// All who get what is flooded.
    pub fn far_ends<'a>(&'a self, settings: &'a TunnelSettings) -> impl Iterator<Item = IpAddr> + 'a {
        self.group.iter().chain(&settings.remotes).copied()
    }

    /// Refuses what cannot be.
    ///
    /// # Errors
    /// One line with what is wrong.
    pub fn check(&self, settings: &TunnelSettings) -> Result<(), String> {
        let local = self.local;
        if special(&local) {
            return Err(format!("{local} is no address of one host: give this host's in the underlay"));
        }
        for (index, remote) in settings.remotes.iter().enumerate() {
            if remote.is_ipv4() != local.is_ipv4() {
                return Err(format!("local {local} and remote {remote} are not of one IP version"));
            }
            if special(remote) || *remote == local {
                return Err(format!("{remote} is no address of another host"));
            }
            if settings.remotes[..index].contains(remote) {
                return Err(format!("remote {remote} is given twice"));
            }
        }
        self.check_group()?;
        self.check_numbers()
    }

    fn check_group(&self) -> Result<(), String> {
        let Some(group) = self.group else { return Ok(()) };
        if !group.is_multicast() {
            return Err(format!("{group} is no multicast address: a single other end is a 'remote'"));
        }
        if group.is_ipv4() != self.local.is_ipv4() {
            return Err(format!("local {} and group {group} are not of one IP version", self.local));
        }
        if group.is_ipv6() && self.dev.is_none() {
            return Err(format!("group {group} needs 'dev', the interface to reach it by"));
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), String> {
        let most = self.header.number_max();
        let too_large = |number: &u32| *number > most;
        match &self.networks {
            Networks::One(number) if too_large(number) => {
                return Err(format!("{number} is not between 0 and {most}"));
            }
            Networks::One(_) => {}
            Networks::ByVlan(map) => {
                for (index, (vlan, number)) in map.iter().enumerate() {
                    if too_large(number) {
                        return Err(format!("VNI {number} is not between 0 and {most}"));
                    }
                    if map[..index].iter().any(|(other, _)| other == vlan) {
                        return Err(format!("VLAN {vlan} is mapped twice"));
                    }
                    if map[..index].iter().any(|(_, other)| other == number) {
                        return Err(format!("VNI {number} is mapped twice"));
                    }
                }
                if map.is_empty() {
                    return Err("a map needs at least one VLAN, such as 10:10010".to_owned());
                }
            }
        }
        if let Some(udp) = &self.udp {
            if udp.dstport == 0 {
                return Err("0 is no UDP port to receive at".to_owned());
            }
            if let Some((first, last)) = udp.srcport_range.filter(|(first, last)| *first == 0 || first > last)
            {
                return Err(format!("{first}-{last} is no range of UDP ports, such as 49152-65535"));
            }
        }
        match self.header {
            Header::Erspan(Sender::II { index }) if index > erspan::INDEX_MAX => {
                Err(format!("index {index} is not between 0 and {}", erspan::INDEX_MAX))
            }
            Header::Erspan(Sender::III { hardware, .. }) if hardware > erspan::HARDWARE_MAX => {
                Err(format!("hardware identifier {hardware} is not between 0 and {}", erspan::HARDWARE_MAX))
            }
            _ => Ok(()),
        }
    }
}

/// Whether no host has this address, or not one alone.
fn special(ip: &IpAddr) -> bool {
    let odd = match ip {
        IpAddr::V4(v4) => v4.is_broadcast(),
        // A link-local address means nothing without its interface.
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some() || v6.is_unicast_link_local(),
    };
    odd || ip.is_unspecified() || ip.is_multicast()
}
