//! Ports on sockets: peers that come and go.
//!
//! A stream, dgram or vde port whose peer has gone is a port that lost its device, and one whose peer comes is a port that is opened anew: the same
//! hand-over to workers as for interfaces.

use std::time::{Duration, Instant};

use mio::Token;

use super::tunnels::Queues;
use super::{Control, Error, Port};
use crate::addr::PortId;
use crate::port::OpenPort;
use crate::port::dgram::Connected;
use crate::port::vde::endpoint::Watch;
use crate::port::{dgram, stream, vde};
use crate::spec::{PortKind, StreamAddress};
use crate::status::PeersStatus;
use crate::sys::{self, unix};

/// What the caretaker's poll tells of peers under.
const TOKEN: Token = Token(2);

/// Where the peers of a port come from.
#[derive(Debug)]
pub(super) enum Endpoint {
    Stream(stream::endpoint::Endpoint),
    Dgram(dgram::endpoint::Endpoint),
    Vde(Box<vde::endpoint::Endpoint>),
}

impl Endpoint {
    fn due(&self) -> Option<Instant> {
        match self {
            Endpoint::Stream(endpoint) => endpoint.due(),
            Endpoint::Dgram(endpoint) => endpoint.due(),
            Endpoint::Vde(endpoint) => endpoint.due(),
        }
    }

    pub(super) fn ended(&mut self, now: Instant) {
        match self {
            Endpoint::Stream(endpoint) => endpoint.ended(now),
            Endpoint::Dgram(endpoint) => endpoint.ended(now),
            Endpoint::Vde(endpoint) => endpoint.ended(now),
        }
    }

    /// Looks after a port that has a peer; whether that has gone without a worker's knowing.
    fn attend(&mut self, watch: Watch<'_>, now: Instant) -> bool {
        match self {
            Endpoint::Stream(endpoint) => {
                endpoint.refuse_others();
                false
            }
            Endpoint::Dgram(endpoint) => endpoint.has_lost_peer(),
            Endpoint::Vde(endpoint) => endpoint.attend(watch, now),
        }
    }

    /// What an operator reads of them.
    pub(super) fn status(&self, now: Instant) -> PeersStatus {
        let (connections, refused, waits) = match self {
            Endpoint::Stream(endpoint) => (endpoint.connections, endpoint.refused, endpoint.has_waiting()),
            Endpoint::Dgram(endpoint) => (endpoint.connections, endpoint.refused, endpoint.has_waiting()),
            Endpoint::Vde(endpoint) => (endpoint.connections, endpoint.refused, endpoint.has_waiting()),
        };
        let hold_off =
            self.due().map(|due| due.saturating_duration_since(now)).filter(|left| !left.is_zero());
        PeersStatus { connections, refused, hold_off, waits: waits && hold_off.is_some() }
    }
}

impl Control {
    /// Opens ports on sockets whose peer is there, turns away further peers, and tries again what could not be opened. Returns how long until
    /// it is worth another look, if it is known.
    pub(in crate::switch) fn meet_peers(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let ids: Vec<PortId> =
            self.ports.iter().filter(|(_, port)| port.on_socket()).map(|(&id, _)| id).collect();
        let (mut opened, mut lost) = (Vec::new(), Vec::new());
        for id in ids {
            // In and out of the map, because opening needs all of `self`.
            let Some(mut port) = self.ports.remove(&id) else { continue };
            if port.open {
                let watch = Watch { registry: self.namespaces.registry(), token: TOKEN };
                let attend = |endpoint: &mut Endpoint| endpoint.attend(watch, now);
                // A worker that only sends leaves it at that.
                if port.shared.is_gone() || port.endpoint.as_mut().is_some_and(attend) {
                    lost.push(id);
                }
            } else if port.endpoint.is_some() || port.is_due(now) {
                match self.open(id, &mut port) {
                    Ok(queues) => {
                        if port.open {
                            tracing::info!("port '{}' is up", port.spec.name);
                        }
                        opened.extend(queues);
                    }
                    Err(error) => {
                        if port.refused(&error, now) {
                            tracing::warn!("{error}");
                        }
                    }
                }
            }
            self.ports.insert(id, port);
        }
        if !opened.is_empty() {
            drop(self.publish(&[], opened));
        }
        self.lose(lost);
        let due =
            self.ports.values().filter(|port| !port.open).filter_map(|port| port.endpoint.as_ref()?.due());
        due.min().map(|due| due.saturating_duration_since(now))
    }

    /// Opens a port on a socket if its peer is there. One whose peer is not is no failure; one that cannot have any is.
    pub(super) fn open_on_socket(&mut self, id: PortId, port: &mut Port) -> Result<Queues, Error> {
        let had_none = port.endpoint.is_none();
        let next = self.next_peer(port);
        if had_none && port.endpoint.is_some() {
            port.is_fine();
        }
        let opened = match next {
            Ok(opened) => opened,
            Err(error) => {
                let error = Error::port(&port.spec.name, error);
                if port.endpoint.is_none() {
                    return Err(error);
                }
                complain(port, &error);
                None
            }
        };
        let Some(opened) = opened else { return Ok(Vec::new()) };
        Ok(vec![(id, self.attach(port, opened)?)])
    }

    fn next_peer(&self, port: &mut Port) -> Result<Option<OpenPort>, sys::Error> {
        let registry = self.namespaces.registry();
        let watch = Watch { registry, token: TOKEN };
        let endpoint = match &mut port.endpoint {
            Some(endpoint) => endpoint,
            none => none.insert(match &port.spec.kind {
                PortKind::Stream(spec) => {
                    Endpoint::Stream(stream::endpoint::Endpoint::open(spec, registry, TOKEN)?)
                }
                PortKind::Dgram(spec) => Endpoint::Dgram(dgram::endpoint::Endpoint::open(spec)?),
                PortKind::Vde(spec) => Endpoint::Vde(Box::new(vde::endpoint::Endpoint::open(spec, watch)?)),
                _ => return Ok(None),
            }),
        };
        let (workers, mtu, now) = (self.crew.len(), port.spec.kind.mtu().unwrap_or(1500), Instant::now());
        let datagrams = |connected: Connected| {
            let opened = dgram::open(&connected, mtu, workers);
            opened.map_err(|error| sys::Error::new("the peer has gone again", error))
        };
        let opened = match endpoint {
            Endpoint::Stream(endpoint) => {
                let connection = endpoint.next(registry, TOKEN, now)?;
                Ok(connection.map(|connection| stream::open(&connection, mtu, workers)))
            }
            Endpoint::Dgram(endpoint) => endpoint.next(now)?.map(datagrams).transpose(),
            Endpoint::Vde(endpoint) => {
                let socket = endpoint.next(watch, now)?;
                socket.map(|socket| datagrams(Connected { socket, uid: None })).transpose()
            }
        };
        if opened.is_err() {
            endpoint.ended(now);
        }
        opened
    }
}

impl Port {
    /// Whether the caretaker looks after its socket.
    pub(super) fn on_socket(&self) -> bool {
        matches!(self.spec.kind, PortKind::Stream(_) | PortKind::Dgram(_) | PortKind::Vde(_))
    }

    /// What would be better for a port on a socket, if anything.
    pub(super) fn hint(&self) -> Option<String> {
        let by_unix = match &self.spec.kind {
            PortKind::Stream(spec) => matches!(spec.address, StreamAddress::Unix(_)),
            PortKind::Dgram(_) | PortKind::Vde(_) => true,
            _ => false,
        };
        (by_unix && !unix::can_refuse_descriptors()).then(|| {
            "this kernel cannot refuse descriptors that peers send along, by which one could hold up a worker: let only those write to \
             the socket who are trusted, or run Linux 6.16 or newer"
                .to_owned()
        })
    }
}

/// Tried again several times a second, told once.
fn complain(port: &mut Port, error: &Error) {
    let complaint = Some(error.to_string());
    if port.complaint != complaint {
        tracing::warn!("{error}");
        port.complaint = complaint;
    }
}
