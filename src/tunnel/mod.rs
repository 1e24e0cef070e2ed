//! Tunnels: frames in datagrams, to switches elsewhere.
//!
//! A tunnel port stands for several far ends, its *remotes*. To the pipeline each remote is a port of its own, with its own
//! id: stations are learned behind it, unicast goes to it alone, and a flood goes to every one (head-end replication) like to
//! any other port. The operator sees them as one port with counters for each remote.
//!
//! Datagrams for several ports arrive at one socket, an *endpoint*. [`Demux`] says whose they are.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::addr::PortId;
use crate::topology::PortShared;

pub mod arrival;
pub mod encapsulation;
pub mod erspan;
pub mod flow;
pub mod geneve;
pub mod gre;
pub mod vxlan;

/// Whose the datagrams of an endpoint are.
#[derive(Clone, Debug, Default)]
pub struct Demux {
    networks: HashMap<u32, Network>,
}

/// One virtual network at an endpoint.
#[derive(Clone, Debug)]
pub struct Network {
    /// The tunnel port.
    pub port: PortId,
    /// Where what is dropped of its frames before they are a remote's is counted.
    pub shared: Arc<PortShared>,
    /// Its remotes, by address.
    pub remotes: HashMap<IpAddr, PortId>,
    /// Longest frame that fits one packet on the way here, in bytes.
    pub frame_max: usize,
    /// Whether frames from others than its remotes are dropped.
    pub strict: bool,
}

/// Where a frame came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From a remote that is known.
    Remote(PortId),
    /// From somebody else, for this tunnel port.
    Stranger(PortId),
}

impl Demux {
    /// Adds a network; the last of a number counts.
    pub fn insert(&mut self, vni: u32, network: Network) {
        self.networks.insert(vni, network);
    }

    /// The network of that number, if it is somebody's here.
    #[inline]
    #[must_use]
    pub fn network(&self, vni: u32) -> Option<&Network> {
        self.networks.get(&vni)
    }
}

impl Network {
    /// Whose a frame from `source` is; `None` if nobody's.
    #[inline]
    #[must_use]
    pub fn origin(&self, source: &IpAddr) -> Option<Origin> {
        match self.remotes.get(source) {
            Some(&remote) => Some(Origin::Remote(remote)),
            None => (!self.strict).then_some(Origin::Stranger(self.port)),
        }
    }
}
