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
use crate::frame::TAG_LEN;
use crate::topology::PortShared;
use encapsulation::NetworkId;

pub mod arrival;
pub mod ecn;
pub mod encapsulation;
pub mod erspan;
pub mod flow;
pub mod geneve;
pub mod gre;
pub mod vxlan;
pub mod wrap;

/// Whose the datagrams of an endpoint are.
#[derive(Clone, Debug, Default)]
pub struct Demux {
    networks: HashMap<NetworkId, Vec<Network>>,
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
    /// The tag that its frames get, for the VLAN that it stands for.
    pub tag: Option<[u8; TAG_LEN]>,
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
    /// Adds a network. Several may have one id if each has remotes of its own and is strict about them.
    pub fn insert(&mut self, id: NetworkId, network: Network) {
        self.networks.entry(id).or_default().push(network);
    }

    /// The networks of that id here: hardly ever more than one.
    #[inline]
    #[must_use]
    pub fn networks(&self, id: NetworkId) -> &[Network] {
        self.networks.get(&id).map_or(&[], Vec::as_slice)
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
