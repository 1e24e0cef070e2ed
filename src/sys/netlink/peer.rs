//! The other end of a veth pair, wherever it is.
//!
//! The kernel says of a veth: your peer has index `link` in the namespace that you call `link_netnsid`. Such an id is
//! private to the namespace that asks. What has that id is found by asking for the id of every named namespace
//! (RTM_GETNSID); the peer's name by asking the kernel to answer on behalf of the other namespace
//! (IFLA_TARGET_NETNSID, Linux 4.20), which needs no name and enters nothing.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use super::{Expect, Link, Netlink, each_attribute, number};
use crate::spec::Netns;
use crate::status::Peer;
use crate::sys::{Result, netns};

/// Length of `struct rtgenmsg`, padded.
const RTGEN_BYTES: usize = 4;
/// NETNSA_NSID
const NSID_ATTR_ID: u16 = 1;

/// What the namespaces seen from one connection are called.
struct Names {
    /// The name of the connection's own; `None` when it is the switch's or has none.
    here: Option<Netns>,
    /// The names of those that have an id here.
    by_id: HashMap<i32, Netns>,
}

impl Netlink {
    /// The other end of `link`, which this connection told of; `None` unless it is a veth with a peer.
    ///
    /// # Errors
    /// The kernel's answer to a question about the namespaces or the peer.
    pub fn peer_of(&self, link: &Link) -> Result<Option<Peer>> {
        Ok(self.peers_of(std::slice::from_ref(link))?.pop().flatten())
    }

    /// The same for many at once, which goes through the names only once.
    ///
    /// # Errors
    /// As [`Netlink::peer_of`].
    pub fn peers_of(&self, links: &[Link]) -> Result<Vec<Option<Peer>>> {
        if !links.iter().any(|link| peer_index(link).is_some()) {
            return Ok(vec![None; links.len()]);
        }
        let names = self.names()?;
        links.iter().map(|link| self.peer_among(link, &names)).collect()
    }

    fn peer_among(&self, link: &Link, names: &Names) -> Result<Option<Peer>> {
        let Some(ifindex) = peer_index(link) else { return Ok(None) };
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        let netns = match link.link_netnsid {
            None => names.here.clone(),
            Some(id) => {
                message.attributes.push(LinkAttribute::IfNetnsId(id));
                names.by_id.get(&id).cloned()
            }
        };
        // What cannot be named (no privilege over the other namespace, or it is on its way out) still has an index.
        let ifname = self.one_link(message).ok().flatten().map(|peer| peer.name);
        Ok(Some(Peer { ifindex, ifname, netns }))
    }

    fn names(&self) -> Result<Names> {
        let own = netns::identity_of(netns::open(&Netns("/proc/self/ns/net".to_owned()))?.as_fd())?;
        let here = netns::identity_of(self.netns()?.as_fd())?;
        let mut names = Names { here: None, by_id: HashMap::new() };
        for name in netns::list()? {
            let name = Netns(name);
            // A name may be stale, or go while we look: then it is not the one we are looking for.
            let Ok(fd) = netns::open(&name) else { continue };
            let Ok(identity) = netns::identity_of(fd.as_fd()) else { continue };
            if identity == own {
                continue;
            }
            if identity == here {
                names.here = Some(name);
            } else if let Some(id) = self.nsid_of(fd.as_fd())? {
                names.by_id.insert(id, name);
            }
        }
        Ok(names)
    }

    /// What this connection's namespace calls another one (RTM_GETNSID); `None` when the two have nothing to do with
    /// each other.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn nsid_of(&self, ns: BorrowedFd<'_>) -> Result<Option<i32>> {
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(ns.as_raw_fd().cast_unsigned()));
        let mut id = None;
        self.talk(RouteNetlinkMessage::GetNsId(message), 0, Expect::Ack, |kind, body| {
            if kind == libc::RTM_NEWNSID {
                each_attribute(body.get(RTGEN_BYTES..).unwrap_or_default(), |kind, value| {
                    if kind == NSID_ATTR_ID {
                        id = number(value).map(u32::cast_signed).filter(|&id| id >= 0);
                    }
                });
            }
        })
        .map_err(|refusal| refusal.on("cannot ask for the id of a network namespace"))?;
        Ok(id)
    }
}

fn peer_index(link: &Link) -> Option<u32> {
    link.link.filter(|_| link.kind.as_deref() == Some("veth"))
}
