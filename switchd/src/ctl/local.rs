//! `netns` and `veth`: done right here, without the daemon.

use std::os::fd::{AsFd as _, OwnedFd};

use vswitch::spec::Netns;
use vswitch::sys::netlink::{Netlink, VethEnd};
use vswitch::sys::{self, netns};

use super::{Failed, Outcome, say};
use crate::api::check_netns;
use crate::api::values::Cidr;
use crate::cli::{NetnsVerb, VethAdd, VethVerb};

impl From<sys::Error> for Failed {
    fn from(error: sys::Error) -> Self {
        let remedy = if error.is_denied() { ": run vswitchctl as root" } else { "" };
        format!("{error}{remedy}").into()
    }
}

/// The answer to a change: nothing, or an empty document.
fn done(json: bool) -> Outcome {
    if json { say("{}") } else { Ok(()) }
}

pub(super) fn netns(verb: NetnsVerb, json: bool) -> Outcome {
    match verb {
        NetnsVerb::Add { name, tolerance } => match netns::add(&name) {
            Err(error) if error.is_exists() && tolerance.may_exist => done(json),
            result => result.map_err(Failed::from).and_then(|()| done(json)),
        },
        NetnsVerb::Del { name, tolerance } => match netns::del(&name) {
            Err(error) if error.is_not_found() && tolerance.if_exists => done(json),
            result => result.map_err(Failed::from).and_then(|()| done(json)),
        },
        NetnsVerb::List => {
            let names = netns::list()?;
            match (json, names.is_empty()) {
                (true, _) => say(&serde_json::json!(names).to_string()),
                (false, true) => Ok(()),
                (false, false) => say(&names.join("\n")),
            }
        }
        NetnsVerb::Exec { name, command } => Err(netns::exec(&Netns(name), &command).into()),
    }
}

pub(super) fn veth(verb: VethVerb, json: bool) -> Outcome {
    match verb {
        VethVerb::Add(pair) => veth_add(&pair)?,
        VethVerb::Del { name, netns, tolerance } => {
            let namespace = open(netns.as_deref())?;
            let netlink = Netlink::open_in(namespace.as_ref().map(|fd| fd.as_fd()))?;
            match netlink.link(&name)? {
                Some(link) if link.kind.as_deref() == Some("veth") => netlink.del_link(link.index)?,
                Some(_) => {
                    return Err(format!("'{name}' is not a veth: remove it with 'ip link del {name}'").into());
                }
                None if tolerance.if_exists => {}
                None => return Err(format!("no interface '{name}': see 'ip link show type veth'").into()),
            }
        }
    }
    done(json)
}

fn open(netns: Option<&str>) -> Result<Option<OwnedFd>, Failed> {
    let Some(netns) = netns else { return Ok(None) };
    let netns = check_netns("veth", netns)?;
    Ok(Some(netns::open(&netns)?))
}

/// The pair, both ends up and with their addresses, or nothing.
fn veth_add(pair: &VethAdd) -> Outcome {
    let (netns_a, netns_b) = (open(pair.netns_a.as_deref())?, open(pair.netns_b.as_deref())?);
    let (netns_a, netns_b) = (netns_a.as_ref().map(|fd| fd.as_fd()), netns_b.as_ref().map(|fd| fd.as_fd()));
    let end = |name, netns, mac: Option<crate::api::values::Mac>| VethEnd {
        mac: mac.map(|mac| mac.0),
        mtu: pair.mtu,
        ..VethEnd::new(name, netns)
    };
    let a = end(pair.a.as_str(), netns_a, pair.mac_a);
    let b = end(pair.b.as_str(), netns_b, pair.mac_b);
    Netlink::open_in(None)?.add_veth(&a, &b)?;
    let (in_a, in_b) = (Netlink::open_in(netns_a), Netlink::open_in(netns_b));
    let addressed = in_a.as_ref().map_err(|error| error.to_string()).and_then(|netlink| {
        give_addresses(netlink, &pair.a, &pair.address_a)?;
        let netlink = in_b.as_ref().map_err(|error| error.to_string())?;
        give_addresses(netlink, &pair.b, &pair.address_b)
    });
    if let Err(error) = addressed {
        // Removing one end removes the other.
        if let Ok(netlink) = &in_a
            && let Ok(Some(link)) = netlink.link(&pair.a)
        {
            let _ = netlink.del_link(link.index);
        }
        return Err(error.into());
    }
    Ok(())
}

fn give_addresses(netlink: &Netlink, name: &str, addresses: &[Cidr]) -> Result<(), String> {
    if addresses.is_empty() {
        return Ok(());
    }
    let link = netlink.link(name).map_err(|error| error.to_string())?;
    let link = link.ok_or_else(|| format!("interface '{name}' vanished while it was set up"))?;
    for cidr in addresses {
        let given = netlink.add_address(link.index, cidr.address, cidr.prefix_len);
        given.map_err(|error| error.to_string())?;
    }
    Ok(())
}
