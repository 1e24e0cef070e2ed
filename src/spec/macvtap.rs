//! Macvtap ports, as asked for.

use super::Netns;
use crate::addr::MacAddr;

/// A macvtap device: an interface on top of another one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MacvtapSpec {
    /// Its name, at most 15 bytes.
    pub ifname: String,
    /// Network namespace that it is in, and its lower interface; `None` is the switch's own.
    pub netns: Option<Netns>,
    /// What the switch makes it on; `None`: it exists already.
    pub lower: Option<MacvtapLower>,
    /// Queues; `None` is one a worker.
    pub queues: Option<u16>,
}

/// How a macvtap device is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MacvtapLower {
    /// The interface below, at most 15 bytes.
    pub ifname: String,
    /// Which frames are its own.
    pub mode: MacvtapMode,
    /// Its address; `None` is the lower's in the mode passthru, else one that stays the same.
    pub mac: Option<MacAddr>,
    /// MTU in bytes; `None` is the lower's.
    pub mtu: Option<u32>,
}

/// What a macvtap device shares its lower interface with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MacvtapMode {
    /// Nobody: every frame of the lower is its own, whatever its address. The one mode for more than one station.
    #[default]
    Passthru,
    /// Others, and frames between them stay on the host.
    Bridge,
    /// Others, and frames between them go by the switch at the other end of the lower (IEEE 802.1Qbg).
    Vepa,
    /// Others, without frames between them.
    Private,
}

impl MacvtapMode {
    /// As written on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            MacvtapMode::Passthru => "passthru",
            MacvtapMode::Bridge => "bridge",
            MacvtapMode::Vepa => "vepa",
            MacvtapMode::Private => "private",
        }
    }
}

impl MacvtapSpec {
    /// The interface whose coming brings the port back.
    #[must_use]
    pub fn awaited(&self) -> &str {
        self.lower.as_ref().map_or(&self.ifname, |lower| &lower.ifname)
    }
}
