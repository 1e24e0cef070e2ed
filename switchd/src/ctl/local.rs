//! `netns` and `veth`: done right here, without the daemon.

use std::os::fd::{AsFd as _, OwnedFd};

use vswitch::spec::Netns;
use vswitch::sys::netlink::{Netlink, VethEnd};
use vswitch::sys::{self, netns};

use super::{Failed, Outcome, say, say_json};
use crate::api::check_netns;
use crate::api::values::{Cidr, Mac};
use crate::cli::{NetnsVerb, VethAdd, VethVerb};
use crate::plain::plain;

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
                (true, _) => say_json(serde_json::json!(names).to_string().as_bytes()),
                (false, true) => Ok(()),
                (false, false) => {
                    let names: Vec<_> = names.iter().map(|name| plain(name)).collect();
                    say(&names.join("\n"))
                }
            }
        }
        NetnsVerb::Exec { name, command } => Err(netns::exec(&Netns(name), &command).into()),
    }
}

pub(super) fn veth(verb: VethVerb, json: bool) -> Outcome {
    match verb {
        VethVerb::Add { pair, tolerance } => veth_add(&pair, tolerance.may_exist)?,
        VethVerb::Del { name, netns, tolerance } => {
            let namespace = match open(netns.as_deref()) {
                Err(_) if tolerance.if_exists && netns.as_deref().is_some_and(absent) => return done(json),
                opened => opened?,
            };
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

fn absent(netns: &str) -> bool {
    check_netns("veth", netns).is_ok_and(|netns| netns::open(&netns).is_err_and(|error| error.is_not_found()))
}

/// The pair, both ends up and with their addresses, or nothing.
fn veth_add(pair: &VethAdd, may_exist: bool) -> Outcome {
    let (netns_a, netns_b) = (open(pair.netns_a.as_deref())?, open(pair.netns_b.as_deref())?);
    let (netns_a, netns_b) = (netns_a.as_ref().map(|fd| fd.as_fd()), netns_b.as_ref().map(|fd| fd.as_fd()));
    let in_a = Netlink::open_in(netns_a)?;
    let in_b = Netlink::open_in(netns_b)?;
    let end = |name, netns, mac: Option<Mac>| VethEnd {
        mac: mac.map(|mac| mac.0),
        mtu: pair.mtu,
        ..VethEnd::new(name, netns)
    };
    let a = end(pair.a.as_str(), netns_a, pair.mac_a);
    let b = end(pair.b.as_str(), netns_b, pair.mac_b);
    match Netlink::open_in(None)?.add_veth(&a, &b) {
        Err(error) if error.is_exists() => return existing(pair, &in_a, &in_b, may_exist),
        made => made?,
    }
    let addressed = give_addresses(&in_a, &pair.a, &pair.address_a)
        .and_then(|()| give_addresses(&in_b, &pair.b, &pair.address_b));
    if addressed.is_err()
        && let Ok(Some(link)) = in_a.link(&pair.a)
    {
        // Removing one end removes the other.
        let _ = in_a.del_link(link.index);
    }
    addressed
}

/// A name is taken: fine if it may be and both ends are those of one pair with what was asked for.
fn existing(pair: &VethAdd, in_a: &Netlink, in_b: &Netlink, may_exist: bool) -> Outcome {
    let (a, b) = (in_a.link(&pair.a)?, in_b.link(&pair.b)?);
    let (Some(a), Some(b)) = (&a, &b) else {
        let (taken, netns) = if a.is_some() { (&pair.a, &pair.netns_a) } else { (&pair.b, &pair.netns_b) };
        let place = netns.as_ref().map_or_else(String::new, |netns| format!(" in namespace '{netns}'"));
        return Err(format!("interface '{taken}' exists already{place}: choose another name").into());
    };
    let paired = [a, b].iter().all(|link| link.kind.as_deref() == Some("veth"))
        && (a.link, b.link) == (Some(b.index), Some(a.index));
    if !paired {
        return Err(format!(
            "'{}' and '{}' exist already and are no pair: choose other names",
            a.name, b.name
        )
        .into());
    }
    let has = |netlink: &Netlink, index, asked: &[Cidr]| -> Result<bool, Failed> {
        let given = netlink.addresses(index)?;
        Ok(asked.iter().all(|cidr| given.contains(&(cidr.address, cidr.prefix_len))))
    };
    let same = has(in_a, a.index, &pair.address_a)?
        && has(in_b, b.index, &pair.address_b)?
        && pair.mac_a.is_none_or(|mac| Some(mac.0) == a.mac)
        && pair.mac_b.is_none_or(|mac| Some(mac.0) == b.mac)
        && pair.mtu.is_none_or(|mtu| (mtu, mtu) == (a.mtu, b.mtu));
    let remedy = match (may_exist, same) {
        (true, true) => return Ok(()),
        (false, true) => "use --may-exist if that is fine".to_owned(),
        (_, false) => format!("its attributes are others: 'vswitchctl veth del {}' first", a.name),
    };
    Err(format!("veth pair '{}' and '{}' exists already: {remedy}", a.name, b.name).into())
}

fn give_addresses(netlink: &Netlink, name: &str, addresses: &[Cidr]) -> Outcome {
    if addresses.is_empty() {
        return Ok(());
    }
    let link = netlink.link(name)?;
    let link = link.ok_or_else(|| format!("interface '{name}' vanished while it was set up"))?;
    for cidr in addresses {
        netlink.add_address(link.index, cidr.address, cidr.prefix_len)?;
    }
    Ok(())
}
