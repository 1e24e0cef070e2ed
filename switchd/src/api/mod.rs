//! The interface, once: what an operator can ask for and what he reads.
//!
//! A type here is at the same time a clap argument group, a JSON body, a TOML table and an OpenAPI schema, so
//! an option cannot have one name on the command line and another in the configuration. Requests
//! ([`BridgeAdd`], [`BridgeSet`], [`PortAdd`], [`PortSet`], [`FdbAdd`], [`NeighAdd`], …) become the data plane's plain
//! values (`vswitch::spec`) through `to_spec`, where everything that can be refused without looking at the
//! running switch is refused, with one line that names the object and the remedy. Answers ([`BridgeInfo`],
//! [`PortInfo`], …) are made from `vswitch::status`.
//!
//! Unknown fields are refused everywhere. That rules out `#[serde(flatten)]`, which cannot tell an unknown
//! field from one of the flattened type (and loses the line number in TOML); fields shared by an `add` and a
//! `set` are therefore written once in a macro. Answers carry no such promise: fields may be added.

mod answers;
mod attach;
mod bridge;
mod fdb;
mod macvtap;
mod mode;
mod neigh;
mod port;
pub mod size;
pub mod socket;
pub mod tunnel;
pub mod values;

pub use answers::{
    BridgeInfo, Counters, Done, EntryState, Failure, FdbInfo, Flushed, Holder, NeighInfo, Origin, PeerInfo,
    PortInfo, ReloadReport, RemoteInfo, RemoteStats, Role, State, Stats, StatusInfo, VlanInfo, VlanModeName,
    WorkerInfo,
};
pub use attach::{ALL_BRIDGES, ATTACHED_MAX, Account, AttachInfo, AttachRule};
pub use bridge::{BridgeAdd, BridgeSet};
pub use fdb::{FdbAdd, FdbKey, FdbSelect};
pub use macvtap::MacvtapInfo;
pub use mode::{FileMode, ModeChoice};
pub use neigh::{NeighAdd, NeighKey, NeighSelect};
pub(crate) use port::check_netns;
pub use port::{DfMode, PortAdd, PortSet, PortType, VlanKeyword};
pub use socket::{PeersInfo, SocketInfo};
pub use tunnel::TunnelInfo;

/// Longest name of a bridge or port, in bytes.
pub const NAME_MAX: usize = 63;
/// Longest interface name, in bytes (IFNAMSIZ - 1).
pub const IFNAME_MAX: usize = 15;

/// Whether `name` may name a bridge or a port (`what`): it has to fit a table, a URL and a shell word.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), String> {
    let because = if name.is_empty() {
        "is empty"
    } else if name.len() > NAME_MAX {
        "is longer than 63 bytes"
    } else if name.starts_with('-') {
        "begins with '-'"
    } else if name == "."
        || name == ".."
        || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:@+".contains(&b))
    {
        "has characters other than letters, digits and -_.:@+"
    } else {
        return Ok(());
    };
    Err(format!("'{}' cannot name a {what}: it {because}; choose another name", name.escape_debug()))
}

/// Whether the kernel would take `ifname` (`dev_valid_name` in `net/core/dev.c`; `%` is a pattern to TUNSETIFF).
pub(crate) fn check_ifname(owner: &str, ifname: &str) -> Result<(), String> {
    let bad = |b: u8| b.is_ascii_whitespace() || b.is_ascii_control() || b"/:%".contains(&b);
    if ifname.is_empty() || ifname == "." || ifname == ".." || ifname.bytes().any(bad) {
        return Err(format!(
            "{owner}: '{}' cannot name an interface: give another --ifname",
            ifname.escape_debug()
        ));
    }
    if ifname.len() > IFNAME_MAX {
        return Err(format!(
            "{owner}: interface name '{ifname}' is longer than 15 bytes: give a shorter --ifname"
        ));
    }
    Ok(())
}

/// Tells that there is no such object, and which there are.
pub(crate) fn none_such<'a>(what: &str, name: &str, existing: impl IntoIterator<Item = &'a str>) -> String {
    let mut existing: Vec<&str> = existing.into_iter().collect();
    existing.sort_unstable();
    let more = existing.len().saturating_sub(20);
    existing.truncate(20);
    let name = name.escape_debug();
    match (existing.is_empty(), more) {
        (true, _) => format!("no {what} '{name}'; there are none: add it with 'vswitchctl {what} add'"),
        (false, 0) => format!("no {what} '{name}'; existing: {}", existing.join(", ")),
        (false, more) => format!("no {what} '{name}'; existing: {} and {more} more", existing.join(", ")),
    }
}

#[cfg(test)]
mod tests;
