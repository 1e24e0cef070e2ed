//! `macvtap` ports: a macvtap device on top of an interface of the host's, as an uplink.
//!
//! Its character device is read and written like a TAP's, but looks the other way: what we write leaves by the lower interface, what we
//! read came in by it. So the queues are those of [`super::tap`], with the same offloads.
//!
//! In the mode `passthru` every frame of the lower is ours, whatever its address, which is what a switch with many stations needs. In the
//! other modes the kernel hands out unicast frames by the macvtap's own address, so one station, with that address, can be behind the port;
//! the host goes on using the lower. The device is kept promiscuous for as long as the port is open: without that the kernel would
//! keep multicast from it.
//!
//! A device that the switch made (`lower`) is removed by the control side with its port. One that a killed switch left is replaced.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::{Made, OpenPort, tap};
use crate::spec::{MacvtapLower, MacvtapMode, MacvtapSpec};
use crate::sys::netlink::{LinkChange, Netlink};
use crate::sys::{self, macvtap, netns, packet};

/// The kernel's word for this kind of device.
const KIND: &str = "macvtap";

pub(super) fn check(spec: &MacvtapSpec, workers: usize) -> Result<(), sys::Error> {
    match &spec.lower {
        Some(lower) => sys::check_ifname(&spec.ifname).and(sys::check_known_ifname(&lower.ifname))?,
        None => sys::check_known_ifname(&spec.ifname)?,
    }
    tap::queues_of(&spec.ifname, spec.queues, workers).map(drop)
}

pub(super) fn open(spec: &MacvtapSpec, workers: usize) -> Result<OpenPort, sys::Error> {
    check(spec, workers)?;
    let queues = tap::queues_of(&spec.ifname, spec.queues, workers)?;
    let target = spec.netns.as_ref().map(netns::open).transpose()?;
    let target = target.as_ref().map(AsFd::as_fd);
    let netlink = Netlink::open_in(target)?;
    let Some(lower) = &spec.lower else { return take(spec, &netlink, target, queues, workers) };
    let (alias, held) = macvtap::mark()?;
    let to_remove_it = Netlink::open_in(target)?;
    make(spec, lower, &netlink)?;
    // From here on the device goes with `made`, whatever fails, here or where the port is taken over.
    let made = Made::new(to_remove_it, &spec.ifname)?;
    set_up(spec, lower, &alias, &netlink)?;
    let mut opened = take(spec, &netlink, target, queues, workers)?;
    opened.keep.push(held);
    opened.made = Some(made);
    Ok(opened)
}

fn absent(spec: &MacvtapSpec, name: &str) -> sys::Error {
    let place = spec.netns.as_ref().map_or(String::new(), |ns| format!(" in namespace '{ns}'"));
    sys::Error::refused(io::ErrorKind::NotFound, format!("no interface '{name}'{place}"))
}

fn refused(what: String) -> sys::Error {
    sys::Error::refused(io::ErrorKind::InvalidInput, what)
}

/// Makes the device, without setting it up.
fn make(spec: &MacvtapSpec, lower: &MacvtapLower, netlink: &Netlink) -> Result<(), sys::Error> {
    let MacvtapLower { ifname: below, mode, mac, mtu } = lower;
    sys::check_known_ifname(below)?;
    let under = netlink.link(below)?.ok_or_else(|| absent(spec, below))?;
    if !under.ethernet {
        return Err(refused(format!(
            "interface '{below}' does not carry Ethernet frames; choose a NIC or a veth end"
        )));
    }
    if let Some(mtu) = mtu.filter(|mtu| *mtu > under.mtu) {
        return Err(refused(format!(
            "an MTU of {mtu} bytes is more than the {} of interface '{below}'; raise that first with: ip link set {below} mtu {mtu}",
            under.mtu
        )));
    }
    if let Some(there) = netlink.link(&spec.ifname)? {
        let ours = there.alias.as_deref().is_some_and(macvtap::is_left);
        if !(ours && there.kind.as_deref() == Some(KIND)) {
            let what = format!(
                "interface '{0}' exists already; choose another --ifname or delete it with: ip link del {0}",
                spec.ifname
            );
            return Err(sys::Error::refused(io::ErrorKind::AlreadyExists, what));
        }
        netlink.del_link(there.index)?;
    }
    netlink.add_macvtap(&spec.ifname, under.index, *mode, *mac).map_err(|error| {
        match error.source.raw_os_error() {
            Some(libc::EINVAL | libc::EBUSY) => refused(format!(
                "{error}; the interface below may not be part of anything else{}",
                if *mode == MacvtapMode::Passthru {
                    ", and with mode passthru there is no other macvtap or macvlan on it"
                } else {
                    ""
                }
            )),
            _ => error,
        }
    })
}

/// Gives a new device what was asked for, and switches it on.
fn set_up(
    spec: &MacvtapSpec,
    lower: &MacvtapLower,
    alias: &str,
    netlink: &Netlink,
) -> Result<(), sys::Error> {
    let made = netlink.link(&spec.ifname)?.ok_or_else(|| absent(spec, &spec.ifname))?;
    // The host has nothing to say on it, which would go out. Where there is no IPv6 there is nothing to prevent.
    let _ = netlink.without_ipv6_addresses(made.index);
    let change = LinkChange {
        up: Some(true),
        mtu: lower.mtu,
        txqlen: Some(tap::TX_QUEUE_FRAMES),
        alias: Some(alias),
        ..LinkChange::default()
    };
    netlink.set_link(made.index, &change)
}

/// Opens a port on a device that is there.
fn take(
    spec: &MacvtapSpec,
    netlink: &Netlink,
    target: Option<BorrowedFd<'_>>,
    queues: usize,
    workers: usize,
) -> Result<OpenPort, sys::Error> {
    let link = netlink.link(&spec.ifname)?.ok_or_else(|| absent(spec, &spec.ifname))?;
    if link.kind.as_deref() != Some(KIND) {
        return Err(refused(format!(
            "interface '{0}' is no macvtap device; for one on top of it leave --ifname out and give --lower {0}",
            spec.ifname
        )));
    }
    let device = macvtap::open(target, &link, queues)?;
    let cannot =
        |source| sys::Error::new(format!("cannot make interface '{}' promiscuous", spec.ifname), source);
    let promiscuous =
        netns::run_in(target, || packet::promiscuous(link.index)).and_then(|fd| fd).map_err(cannot)?;
    Ok(OpenPort {
        receiving: device.queues.len(),
        queues: tap::share_out(device.queues, workers, link.index as usize, true),
        capabilities: device.capabilities,
        ifindex: Some(link.index),
        mtu: link.mtu,
        strict_mtu: false,
        keep: vec![promiscuous],
        watches: Vec::new(),
        link: None,
        made: None,
    })
}
