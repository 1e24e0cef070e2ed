//! Stream ports: peers that come and go.
//!
//! A stream port whose peer has gone is a port that lost its device, and one whose peer comes is a port that is opened anew: the same
//! hand-over to workers as for interfaces.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Token;

use super::tunnels::Queues;
use super::{Control, Error, Port};
use crate::addr::PortId;
use crate::port::stream::{self, endpoint::Endpoint};
use crate::spec::{PortKind, StreamSpec};

/// What the caretaker's poll tells of peers under.
const TOKEN: Token = Token(2);

impl Control {
    /// Opens stream ports whose peer is there, turns away further peers, and tries again what could not be opened. Returns how long until
    /// it is worth another look, if it is known.
    pub(in crate::switch) fn meet_peers(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let ids: Vec<PortId> =
            self.ports.iter().filter(|(_, port)| port.on_socket()).map(|(&id, _)| id).collect();
        let mut opened = Vec::new();
        for id in ids {
            // In and out of the map, because opening needs all of `self`.
            let Some(mut port) = self.ports.remove(&id) else { continue };
            if port.open {
                if let Some(endpoint) = &mut port.endpoint {
                    endpoint.refuse_others();
                }
            } else {
                match self.open(id, &mut port) {
                    Ok(queues) => {
                        if port.open {
                            tracing::info!("port '{}' is up", port.spec.name);
                        }
                        opened.extend(queues);
                    }
                    Err(error) => complain(&mut port, &error),
                }
            }
            self.ports.insert(id, port);
        }
        if !opened.is_empty() {
            drop(self.publish(&[], opened));
        }
        let due =
            self.ports.values().filter(|port| !port.open).filter_map(|port| port.endpoint.as_ref()?.due());
        due.min().map(|due| due.saturating_duration_since(now))
    }

    /// Opens a stream port if its peer is there. One whose peer is not is no failure; one that cannot have any is.
    pub(super) fn open_stream(
        &mut self,
        id: PortId,
        port: &mut Port,
        spec: &StreamSpec,
    ) -> Result<Queues, Error> {
        let named = |error| Error::port(&port.spec.name, error);
        let registry = self.namespaces.registry();
        let first = port.endpoint.is_none();
        let endpoint = match &mut port.endpoint {
            Some(endpoint) => endpoint,
            none => none.insert(Endpoint::open(spec, registry, TOKEN).map_err(named)?),
        };
        let connection = match endpoint.next(registry, TOKEN, Instant::now()) {
            Ok(connection) => connection,
            Err(error) => {
                let error = Error::port(&port.spec.name, error);
                complain(port, &error);
                None
            }
        };
        let Some(connection) = connection else {
            if first {
                port.shared.set_mtu(spec.mtu);
            }
            return Ok(Vec::new());
        };
        let opened = stream::open(&Arc::clone(&connection), spec.mtu, self.crew.len());
        Ok(vec![(id, self.attach(port, opened)?)])
    }
}

impl Port {
    /// Whether the caretaker looks after its socket.
    fn on_socket(&self) -> bool {
        matches!(self.spec.kind, PortKind::Stream(_))
            || matches!(self.spec.kind, PortKind::Dgram(_)) && !self.open
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
