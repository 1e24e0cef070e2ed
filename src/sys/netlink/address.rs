//! Addresses of interfaces, and default routes (RTM_*ADDR, RTM_NEWROUTE).

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, each_attribute, number};
use crate::sys::Result;

/// Length of `struct ifaddrmsg`.
const IFADDR_BYTES: usize = 8;

impl Netlink {
    /// The IPv4 and IPv6 addresses of an interface, with prefix length in bits.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn addresses(&self, index: u32) -> Result<Vec<(IpAddr, u8)>> {
        self.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()), |kind, body| {
            if kind != libc::RTM_NEWADDR {
                return None;
            }
            read_address(body).filter(|(owner, ..)| *owner == index).map(|(_, ip, prefix)| (ip, prefix))
        })
        .map_err(|refusal| refusal.on(format!("cannot list addresses of {}", self.describe(index))))
    }

    /// The addresses of every interface, with its index, that it uses: none that may turn out to be a duplicate, or has.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn addresses_in_use(&self) -> Result<Vec<(u32, IpAddr)>> {
        self.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()), |kind, body| {
            let unsure = u32::from(*body.get(2)?) & (libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED) != 0;
            if kind != libc::RTM_NEWADDR || unsure {
                return None;
            }
            read_address(body).map(|(owner, ip, _)| (owner, ip))
        })
        .map_err(|refusal| refusal.on("cannot list addresses"))
    }

    /// Gives an interface an address; the route to its prefix comes with it. An IPv6 address is tentative until
    /// duplicate address detection (RFC 4862 section 5.4) is through, which takes a second or two.
    ///
    /// # Errors
    /// The kernel's answer (EEXIST: it has that address).
    pub fn add_address(&self, index: u32, ip: IpAddr, prefix: u8) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(ip);
        message.header.prefix_len = prefix;
        message.header.scope = AddressScope::Universe;
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL).map_err(
            |mut refusal| {
                if ip.is_ipv6()
                    && refusal.words.is_none()
                    && refusal.source.raw_os_error() == Some(libc::EACCES)
                {
                    // Kernels before 6.6 do not say so.
                    refusal.words = Some("IPv6 is disabled on this device".to_owned());
                }
                refusal.on(format!("cannot add address {ip}/{prefix} to {}", self.describe(index)))
            },
        )
    }

    /// Adds the default route of `gateway`'s family through it. The interface must be up and have an address from
    /// which the gateway can be reached.
    ///
    /// # Errors
    /// The kernel's answer (EEXIST: there is a default route; ENETUNREACH: the gateway cannot be reached).
    pub fn add_default_route(&self, index: u32, gateway: IpAddr) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(gateway);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes =
            vec![RouteAttribute::Gateway(RouteAddress::from(gateway)), RouteAttribute::Oif(index)];
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL).map_err(|refusal| {
            refusal.on(format!("cannot add a default route by {gateway} to {}", self.describe(index)))
        })
    }
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Interface index, address and prefix length of an RTM_NEWADDR.
fn read_address(body: &[u8]) -> Option<(u32, IpAddr, u8)> {
    let (header, attributes) = body.split_at_checked(IFADDR_BYTES)?;
    let (mut local, mut address) = (None, None);
    each_attribute(attributes, |kind, value| match kind {
        libc::IFA_LOCAL => local = read_ip(value),
        libc::IFA_ADDRESS => address = read_ip(value),
        _ => {}
    });
    // On a point-to-point interface IFA_ADDRESS is the other side's; IPv6 has no IFA_LOCAL otherwise.
    Some((number(&header[4..8])?, local.or(address)?, header[1]))
}

fn read_ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => value.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        16 => value.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        _ => None,
    }
}
