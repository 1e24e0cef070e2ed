//! Rings that the kernel stops filling.
//!
//! A frame that the kernel cannot describe stops a packet socket's ring for good (see
//! [`crate::sys::packet`]). The caretaker looks at each ring four times a second, by one system
//! call. One that drops frames and delivers none at two looks in a row has stopped, unless its
//! worker finds frames in it. The worker then leaves the ring, the kernel gives it up, and the
//! socket goes on without. That happens once a receiver at most, so no sender can make the switch
//! do it again and again.

use super::{Control, Port};
use crate::addr::PortId;
use crate::sys::packet::Watch;

/// Ports whose rings are given up at one look, at most: each costs some milliseconds under the
/// control lock, of requests, too. The others' turn comes with the next look.
const PORTS_A_LOOK: usize = 4;

impl Control {
    /// Finds rings that have stopped, and has their sockets go on without.
    pub(in crate::switch) fn look_after_rings(&mut self) {
        let mut suspects: Vec<PortId> = Vec::new();
        for (&id, port) in &mut self.ports {
            // All of them, as each remembers what it saw.
            let suspect = |found, watch: &mut Watch| watch.seems_stopped() || found;
            if port.watches.iter_mut().fold(false, suspect) {
                suspects.push(id);
            }
        }
        for id in suspects.into_iter().take(PORTS_A_LOOK) {
            let Some(port) = self.ports.get_mut(&id) else { continue };
            for watch in port.watches.iter_mut().filter(|watch| watch.is_suspect()) {
                if !self.crew.leave_ring(watch.worker, id, watch.delivered()) {
                    watch.was_full();
                    continue;
                }
                let name = &port.spec.name;
                match watch.take_ring() {
                    Ok(()) => tracing::warn!(
                        "port '{name}': a frame that the kernel cannot describe has stopped one of its rings; \
                         it now receives frames one by one, and drops such frames as rx_undescribed"
                    ),
                    Err(error) => tracing::error!(
                        "port '{name}': one of its rings has stopped and cannot be given up: {error}; \
                         remove the port and add it again"
                    ),
                }
            }
        }
    }
}

impl Port {
    /// What an operator should know of a port that goes on without rings.
    pub(super) fn ring_hint(&self) -> Option<String> {
        let stopped = self.watches.iter().filter(|watch| watch.has_stopped()).count();
        (self.open && stopped > 0).then(|| {
            format!(
                "port '{0}': the other end sends frames that the kernel cannot describe (UDP fragmentation offload, SCTP \
                 segmentation), so it receives frames one by one, which costs more for small ones; switch that offload off \
                 (guest: host_ufo=off; interface: ethtool -K … tx-udp-fragmentation off tx-sctp-segmentation off), \
                 then remove the port and add it again",
                self.spec.name
            )
        })
    }
}
