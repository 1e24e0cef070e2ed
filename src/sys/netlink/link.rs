//! Interfaces: what they are, and changing, making and removing them (RTM_*LINK).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoMacVtap, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, MacVtapMode,
};

use super::{Expect, Netlink, Refusal, each_attribute, number, text};
use crate::addr::MacAddr;
use crate::spec::MacvtapMode;
use crate::sys::{IFNAME_MAX_BYTES, Result, check_ifname, check_known_ifname};

/// Length of `struct ifinfomsg`.
const IFINFO_BYTES: usize = 16;

/// IFLA_TUN_PERSIST (linux/if_link.h), from Linux 4.20.
const TUN_PERSIST: u16 = 6;

/// An interface as the kernel describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its index in its namespace. It may change when the interface is moved to another one.
    pub index: u32,
    /// Its own name, at most 15 bytes.
    pub name: String,
    /// Its address, if it has one of six octets.
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes (without the Ethernet header).
    pub mtu: u32,
    /// Somebody switched it on (IFF_UP).
    pub up: bool,
    /// It can carry frames: up and with carrier (IFF_RUNNING, RFC 2863 ifOperStatus).
    pub running: bool,
    /// It carries Ethernet frames, and not only to itself (ARPHRD_ETHER).
    pub ethernet: bool,
    /// Index of the kernel's bridge, bond or the like that it belongs to.
    pub master: Option<u32>,
    /// The driver's kind ("veth", "tun", "vxlan"); `None` for hardware.
    pub kind: Option<String>,
    /// IFLA_LINK: for a veth, the index of its peer in the peer's namespace.
    pub link: Option<u32>,
    /// What this namespace calls the namespace of `link`; `None` when it is the same one.
    pub link_netnsid: Option<i32>,
    /// Packets the kernel queues towards the device; for a TAP, towards the program that holds it.
    pub txqlen: u32,
    /// Its group, by which interfaces are dealt with together; 0 unless somebody gave it another.
    pub group: u32,
    /// Of a TAP: it stays when nobody holds it any more.
    pub persistent: bool,
    /// What somebody wrote on it (IFLA_IFALIAS).
    pub alias: Option<String>,
}

/// What to change about an interface; what is `None` stays.
#[derive(Clone, Copy, Default, Debug)]
pub struct LinkChange<'a> {
    /// Switch on or off.
    pub up: Option<bool>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Address.
    pub mac: Option<MacAddr>,
    /// New name.
    pub name: Option<&'a str>,
    /// Queue length in packets.
    pub txqlen: Option<u32>,
    /// Group.
    pub group: Option<u32>,
    /// A note on it, at most 255 bytes.
    pub alias: Option<&'a str>,
    /// Namespace to move to.
    pub netns: Option<BorrowedFd<'a>>,
}

/// One end of a veth pair to be made.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Its name.
    pub name: &'a str,
    /// The namespace it is made in; `None` is that of the connection.
    pub netns: Option<BorrowedFd<'a>>,
    /// Its address; `None` is a random one.
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes; `None` is 1500.
    pub mtu: Option<u32>,
    /// Whether it is switched on.
    pub up: bool,
}

impl<'a> VethEnd<'a> {
    /// An end that is switched on and otherwise as the kernel makes it.
    #[must_use]
    pub fn new(name: &'a str, netns: Option<BorrowedFd<'a>>) -> Self {
        VethEnd { name, netns, mac: None, mtu: None, up: true }
    }
}

impl Netlink {
    /// The interface of that name, its own or an alternative one, or `None`.
    ///
    /// # Errors
    /// The name is not one, or the kernel's answer.
    pub fn link(&self, name: &str) -> Result<Option<Link>> {
        check_known_ifname(name)?;
        let mut message = LinkMessage::default();
        // The kernel looks for short ones among the alternative names, too, and takes longer ones only as such.
        message.attributes.push(if name.len() <= IFNAME_MAX_BYTES {
            LinkAttribute::IfName(name.to_owned())
        } else {
            let bytes = name.bytes().chain([0]).collect();
            LinkAttribute::Other(DefaultNla::new(libc::IFLA_ALT_IFNAME, bytes))
        });
        self.one_link(message).map_err(|refusal| refusal.on(format!("cannot read interface '{name}'")))
    }

    /// The interface of that index, or `None`.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn link_by_index(&self, index: u32) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.one_link(message).map_err(|refusal| refusal.on(format!("cannot read interface {index}")))
    }

    /// Every interface of the namespace.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn links(&self) -> Result<Vec<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        self.dump(&RouteNetlinkMessage::GetLink(message), |kind, body| {
            (kind == libc::RTM_NEWLINK).then(|| Link::read(body)).flatten()
        })
        .map_err(|refusal| refusal.on("cannot list interfaces"))
    }

    /// Frames that the kernel dropped on their way out of an interface; for a TAP, on their way to the program that
    /// holds it. 0 when the interface is gone.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn tx_dropped(&self, index: u32) -> Result<u64> {
        self.dropped(index, 7)
    }

    /// Frames that the kernel dropped on their way in; for a macvtap device, on their way to the program that holds it. 0 when the
    /// interface is gone.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn rx_dropped(&self, index: u32) -> Result<u64> {
        self.dropped(index, 6)
    }

    /// One of the 64-bit fields of `struct rtnl_link_stats64`.
    fn dropped(&self, index: u32, field: usize) -> Result<u64> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let mut dropped = 0;
        let answer = self.talk(RouteNetlinkMessage::GetLink(message), 0, Expect::Ack, |kind, body| {
            let attributes =
                body.get(IFINFO_BYTES..).filter(|_| kind == libc::RTM_NEWLINK).unwrap_or_default();
            each_attribute(attributes, |kind, value| {
                if let (libc::IFLA_STATS64, Some(field)) = (kind, value.get(field * 8..field * 8 + 8)) {
                    dropped = field.try_into().map_or(0, u64::from_ne_bytes);
                }
            });
        });
        match answer {
            Err(refusal) if !refusal.is_not_found() => {
                Err(refusal.on(format!("cannot read the statistics of interface {index}")))
            }
            _ => Ok(dropped),
        }
    }

    /// Changes an interface, by one message.
    ///
    /// A move comes first, then address, MTU, name, up or down, queue length; the kernel stops at the first that it
    /// refuses, and what came before stays done. A moved interface is down in its new namespace unless `up` is asked
    /// for, keeps its name unless `name` is given, and keeps its index only if that is free there: look it up by name.
    ///
    /// # Errors
    /// The new name is not one, or the kernel's answer with the interface's name and the change.
    pub fn set_link(&self, index: u32, change: &LinkChange<'_>) -> Result<()> {
        if let Some(name) = change.name {
            check_ifname(name)?;
        }
        let message = change.message(index);
        self.change(RouteNetlinkMessage::SetLink(message), 0)
            .map_err(|refusal| refusal.on(format!("cannot set {change} on {}", self.describe(index))))
    }

    /// Makes a pair of virtual Ethernet interfaces, each directly in its namespace: both or none.
    ///
    /// # Errors
    /// A name is not one, or the kernel's answer (EEXIST: one of the names is taken).
    pub fn add_veth(&self, a: &VethEnd<'_>, b: &VethEnd<'_>) -> Result<()> {
        check_ifname(a.name)?;
        check_ifname(b.name)?;
        // Said for both: what an end without a namespace falls back to has differed between kernels.
        let here = self.netns()?;
        let peer = InfoData::Veth(InfoVeth::Peer(b.message(&here)));
        let mut message = a.message(&here);
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(peer)]));
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|refusal| refusal.on(format!("cannot add veth pair '{}' and '{}'", a.name, b.name)))?;
        let up = self.switch_on(b).and_then(|()| self.switch_on(a));
        if up.is_err() {
            // Of either end, the deletion takes both.
            let _ = self.at(a, |netlink, link| netlink.del_link(link.index));
        }
        up
    }

    /// Makes a macvtap device on the interface of index `lower`, in its namespace and switched off.
    ///
    /// # Errors
    /// `name` is not one, or the kernel's answer: `EINVAL` where a passthru device would not be alone on its lower, `EBUSY` where
    /// the lower belongs to something else.
    pub fn add_macvtap(&self, name: &str, lower: u32, mode: MacvtapMode, mac: Option<MacAddr>) -> Result<()> {
        check_ifname(name)?;
        let mode = match mode {
            MacvtapMode::Passthru => MacVtapMode::Passthrough,
            MacvtapMode::Bridge => MacVtapMode::Bridge,
            MacvtapMode::Vepa => MacVtapMode::Vepa,
            MacvtapMode::Private => MacVtapMode::Private,
        };
        let mut message = LinkMessage::default();
        message.attributes.extend([LinkAttribute::IfName(name.to_owned()), LinkAttribute::Link(lower)]);
        message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::MacVtap),
            LinkInfo::Data(InfoData::MacVtap(vec![InfoMacVtap::Mode(mode)])),
        ]));
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).map_err(|refusal| {
            refusal.on(format!("cannot add macvtap device '{name}' on {}", self.describe(lower)))
        })
    }

    /// Lets the kernel give an interface no IPv6 address of its own, so that it neither asks for routers nor announces itself.
    ///
    /// # Errors
    /// The kernel's answer, for instance where it has no IPv6.
    pub fn without_ipv6_addresses(&self, index: u32) -> Result<()> {
        let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]));
        self.change(RouteNetlinkMessage::SetLink(message), 0).map_err(|refusal| {
            refusal.on(format!("cannot keep {} without IPv6 addresses", self.describe(index)))
        })
    }

    /// Switches a new veth on, if that is wanted. The message that makes the pair cannot: the first end would come up
    /// before it has a peer, which the driver refuses with ENOTCONN.
    fn switch_on(&self, end: &VethEnd<'_>) -> Result<()> {
        if !end.up {
            return Ok(());
        }
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        self.at(end, |netlink, link| netlink.set_link(link.index, &up))
    }

    /// Calls `f` with a connection to the namespace of a veth and with the veth, if it is still there.
    fn at(&self, end: &VethEnd<'_>, f: impl FnOnce(&Netlink, &Link) -> Result<()>) -> Result<()> {
        let there = end.netns.map(|ns| Netlink::open_in(Some(ns))).transpose()?;
        let netlink = there.as_ref().unwrap_or(self);
        netlink.link(end.name)?.map_or(Ok(()), |link| f(netlink, &link))
    }

    /// Removes an interface; of a veth pair, both ends.
    ///
    /// # Errors
    /// The kernel's answer with the interface's name.
    pub fn del_link(&self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let what = self.describe(index);
        self.change(RouteNetlinkMessage::DelLink(message), 0)
            .map_err(|refusal| refusal.on(format!("cannot delete {what}")))
    }

    /// Removes those of the interfaces that are still what they were (index, name and kind), all at once: the kernel then
    /// waits once for whoever still looks at one, not once for each. It does so by a group, for which a number is
    /// taken that no interface has.
    ///
    /// # Errors
    /// The kernel's answer. Some may have the group then, and stay.
    pub fn del_links(&self, links: &[&Link]) -> Result<()> {
        let present = self.links()?;
        let used: HashSet<u32> = present.iter().map(|link| link.group).collect();
        let Some(group) = (1..=u32::MAX).rev().find(|group| !used.contains(group)) else { return Ok(()) };
        let known: HashMap<u32, &Link> = present.iter().map(|link| (link.index, link)).collect();
        let same = |link: &&&Link| {
            known.get(&link.index).is_some_and(|now| (&now.name, &now.kind) == (&link.name, &link.kind))
        };
        let change = LinkChange { group: Some(group), ..LinkChange::default() };
        let mut marked = 0;
        for link in links.iter().filter(same) {
            match self.set_link(link.index, &change) {
                Ok(()) => marked += 1,
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        if marked == 0 {
            return Ok(());
        }
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(group));
        match self.change(RouteNetlinkMessage::DelLink(message), 0) {
            Err(refusal) if !refusal.is_not_found() => {
                Err(refusal.on(format!("cannot delete {marked} interfaces")))
            }
            _ => Ok(()),
        }
    }

    /// Answers a GETLINK that names one interface.
    pub(super) fn one_link(&self, mut message: LinkMessage) -> std::result::Result<Option<Link>, Refusal> {
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let mut found = None;
        let answer = self.talk(RouteNetlinkMessage::GetLink(message), 0, Expect::Ack, |kind, body| {
            if kind == libc::RTM_NEWLINK {
                found = Link::read(body);
            }
        });
        match answer {
            Err(refusal) if refusal.is_not_found() => Ok(None),
            answer => answer.map(|()| found),
        }
    }

    /// The interface's name, for error messages.
    pub(super) fn describe(&self, index: u32) -> String {
        match self.link_by_index(index) {
            Ok(Some(link)) => format!("interface '{}'", link.name),
            _ => format!("interface {index}"),
        }
    }
}

impl Link {
    /// Reads the body of RTM_NEWLINK or RTM_DELLINK. `None` when it is not about an interface as such: with another
    /// family than AF_UNSPEC it tells what, for instance, a kernel bridge thinks of its port, and "removed" then only
    /// means removed from the bridge.
    pub(super) fn read(body: &[u8]) -> Option<Link> {
        let (header, attributes) = body.split_at_checked(IFINFO_BYTES)?;
        if i32::from(header[0]) != libc::AF_UNSPEC {
            return None;
        }
        let flags = LinkFlags::from_bits_retain(number(&header[8..12])?);
        let mut link = Link {
            index: number(&header[4..8])?,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            running: flags.contains(LinkFlags::Up | LinkFlags::Running),
            ethernet: u16::from_ne_bytes([header[2], header[3]]) == libc::ARPHRD_ETHER,
            master: None,
            kind: None,
            link: None,
            link_netnsid: None,
            txqlen: 0,
            group: 0,
            persistent: false,
            alias: None,
        };
        each_attribute(attributes, |kind, value| link.take(kind, value));
        Some(link)
    }

    fn take(&mut self, kind: u16, value: &[u8]) {
        match kind {
            libc::IFLA_IFNAME => self.name = text(value).unwrap_or_default(),
            libc::IFLA_ADDRESS => self.mac = value.try_into().ok().map(MacAddr),
            libc::IFLA_MTU => self.mtu = number(value).unwrap_or_default(),
            libc::IFLA_LINK => self.link = number(value).filter(|&index| index != 0),
            libc::IFLA_MASTER => self.master = number(value).filter(|&index| index != 0),
            libc::IFLA_LINK_NETNSID => self.link_netnsid = number(value).map(u32::cast_signed),
            libc::IFLA_GROUP => self.group = number(value).unwrap_or_default(),
            libc::IFLA_IFALIAS => self.alias = text(value),
            libc::IFLA_TXQLEN => self.txqlen = number(value).unwrap_or_default(),
            libc::IFLA_LINKINFO => each_attribute(value, |kind, value| match kind {
                libc::IFLA_INFO_KIND => self.kind = text(value),
                libc::IFLA_INFO_DATA if self.kind.as_deref() == Some("tun") => {
                    each_attribute(value, |kind, value| {
                        if kind == TUN_PERSIST {
                            self.persistent = value == [1];
                        }
                    })
                }
                _ => {}
            }),
            _ => {}
        }
    }
}

impl Link {
    /// Whether it is a TAP that nobody holds, and that does not go by itself because somebody who did wanted it to stay.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.persistent && self.up && !self.running
    }
}

impl LinkChange<'_> {
    fn message(&self, index: u32) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if let Some(up) = self.up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        }
        message.attributes.extend(
            [
                self.netns.map(|ns| LinkAttribute::NetNsFd(ns.as_raw_fd())),
                self.name.map(|name| LinkAttribute::IfName(name.to_owned())),
                self.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())),
                self.mtu.map(LinkAttribute::Mtu),
                self.txqlen.map(LinkAttribute::TxQueueLen),
                self.group.map(LinkAttribute::Group),
                self.alias.map(|alias| LinkAttribute::IfAlias(alias.to_owned())),
            ]
            .into_iter()
            .flatten(),
        );
        message
    }
}

impl fmt::Display for LinkChange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.netns.map(|_| "another namespace".to_owned()),
            self.mac.map(|mac| format!("address {mac}")),
            self.mtu.map(|mtu| format!("mtu {mtu}")),
            self.name.map(|name| format!("name '{name}'")),
            self.up.map(|up| if up { "up".to_owned() } else { "down".to_owned() }),
            self.txqlen.map(|len| format!("txqueuelen {len}")),
            self.group.map(|group| format!("group {group}")),
            // Not what it says: that differs each time, and who is told of an error each time that it is another one would be told without end.
            self.alias.map(|_| "an alias".to_owned()),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

impl VethEnd<'_> {
    fn message(&self, here: &OwnedFd) -> LinkMessage {
        let change = LinkChange {
            up: None,
            mtu: self.mtu,
            mac: self.mac,
            name: Some(self.name),
            txqlen: None,
            group: None,
            alias: None,
            netns: Some(self.netns.unwrap_or_else(|| here.as_fd())),
        };
        change.message(0)
    }
}
