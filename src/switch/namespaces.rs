//! The namespaces that ports are in: a netlink connection and a subscription to each.
//!
//! Both pin the namespace, as a packet socket does, so that `ip netns del` would destroy nothing. The name
//! is therefore looked at several times a second; when it is gone, or stands for another namespace, everything of ours in
//! there is let go.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::spec::Netns;
use crate::sys::netlink::{LinkEvent, Monitor, Netlink};
use crate::sys::{self, netns};

/// A namespace that a port is in; `None` is the switch's own.
pub(super) type Place = Option<Netns>;

/// Whether two ways to say it mean one namespace: a name and its path, or nothing and the switch's own.
pub(super) fn same_place(one: &Place, other: &Place) -> bool {
    let identity = |place: &Place| match place {
        Some(name) => netns::identity(name),
        None => netns::identity(&Netns("/proc/thread-self/ns/net".to_owned())),
    };
    one == other || identity(one).is_some_and(|one| identity(other) == Some(one))
}

#[derive(Debug)]
pub(super) struct Namespaces {
    registry: Registry,
    open: HashMap<Place, Namespace>,
}

#[derive(Debug)]
struct Namespace {
    identity: Option<(u64, u64)>,
    netlink: Netlink,
    monitor: Monitor,
}

/// What was heard of a namespace.
#[derive(Debug)]
pub(super) enum News {
    /// Of one of its interfaces.
    Link(LinkEvent),
    /// Its name is gone, or stands for another namespace now; it is let go.
    Vanished,
}

impl Namespaces {
    /// Subscriptions are polled through `registry`, with `TOKEN`.
    pub(super) const TOKEN: Token = Token(1);

    pub(super) fn new(registry: Registry) -> Self {
        Namespaces { registry, open: HashMap::new() }
    }

    /// What polls the subscriptions, for others to be polled with them.
    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The connection into a namespace, opened and subscribed if need be.
    pub(super) fn enter(&mut self, place: &Place) -> Result<&Netlink, sys::Error> {
        if !self.open.contains_key(place) {
            let fd = place.as_ref().map(netns::open).transpose()?;
            let fd = fd.as_ref().map(AsFd::as_fd);
            let identity = fd.map(netns::identity_of).transpose()?;
            let monitor = Monitor::open_in(fd)?;
            let watch = |source| sys::Error::new("cannot watch interfaces", source);
            let raw = monitor.as_fd().as_raw_fd();
            self.registry.register(&mut SourceFd(&raw), Self::TOKEN, Interest::READABLE).map_err(watch)?;
            self.open.insert(place.clone(), Namespace { identity, netlink: Netlink::open_in(fd)?, monitor });
        }
        match self.open.get(place) {
            Some(namespace) => Ok(&namespace.netlink),
            None => unreachable!("inserted above"),
        }
    }

    /// The connection into a namespace, if there is one.
    pub(super) fn get(&self, place: &Place) -> Option<&Netlink> {
        self.open.get(place).map(|namespace| &namespace.netlink)
    }

    /// Lets go of every namespace for which `wanted` is false.
    pub(super) fn retain(&mut self, wanted: impl Fn(&Place) -> bool) {
        let registry = &self.registry;
        self.open.retain(|place, namespace| {
            let keep = wanted(place);
            if !keep {
                let _ = registry.deregister(&mut SourceFd(&namespace.monitor.as_fd().as_raw_fd()));
            }
            keep
        });
    }

    /// Everything heard since the last call.
    pub(super) fn news(&mut self) -> Vec<(Place, News)> {
        let mut news = Vec::new();
        for (place, namespace) in &mut self.open {
            let is_another = |name| netns::identity_now(name).is_ok_and(|now| now != namespace.identity);
            if place.as_ref().is_some_and(is_another) {
                news.push((place.clone(), News::Vanished));
                continue;
            }
            loop {
                match namespace.monitor.next_event() {
                    Ok(Some(event)) => news.push((place.clone(), News::Link(event))),
                    Ok(None) => break,
                    Err(error) => {
                        let interrupted = error.source.kind() == io::ErrorKind::Interrupted;
                        if !interrupted {
                            tracing::error!("{error}");
                            break;
                        }
                    }
                }
            }
        }
        let vanished: Vec<_> = news
            .iter()
            .filter(|(_, what)| matches!(what, News::Vanished))
            .map(|(place, _)| place.clone())
            .collect();
        self.retain(|place| !vanished.contains(place));
        news
    }
}
