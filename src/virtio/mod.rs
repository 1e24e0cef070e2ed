//! The device's side of virtio (virtio 1.2): a guest's memory, its split virtqueues, and frames in them.
//!
//! Everything here is read from memory that somebody else writes at the same time, and who may mean harm. So each
//! value is read once and checked after it was copied, each address is translated and bounded, and whatever makes no sense is a
//! [`Fault`], which stops that ring and nothing else.

pub mod dirty;
#[cfg(test)]
pub(crate) mod driver;
pub mod inflight;
pub mod memory;
pub mod net;
pub mod ring;
pub mod room;
#[cfg(test)]
pub(crate) mod tests;

pub use memory::GuestMemory;
pub use ring::Fault;

/// Feature bits (virtio 1.2, sections 5.1.3 and 6) and those of vhost-user.
pub mod feature {
    #![allow(missing_docs, reason = "the standard's own names")]
    pub const NET_CSUM: u64 = 1 << 0;
    pub const NET_GUEST_CSUM: u64 = 1 << 1;
    pub const NET_MTU: u64 = 1 << 3;
    pub const NET_GUEST_TSO4: u64 = 1 << 7;
    pub const NET_GUEST_TSO6: u64 = 1 << 8;
    pub const NET_GUEST_ECN: u64 = 1 << 9;
    pub const NET_HOST_TSO4: u64 = 1 << 11;
    pub const NET_HOST_TSO6: u64 = 1 << 12;
    pub const NET_HOST_ECN: u64 = 1 << 13;
    pub const NET_MRG_RXBUF: u64 = 1 << 15;
    pub const NET_STATUS: u64 = 1 << 16;
    pub const NET_CTRL_VQ: u64 = 1 << 17;
    pub const NET_CTRL_RX: u64 = 1 << 18;
    pub const NET_GUEST_ANNOUNCE: u64 = 1 << 21;
    pub const NET_MQ: u64 = 1 << 22;
    pub const LOG_ALL: u64 = 1 << 26;
    pub const ANY_LAYOUT: u64 = 1 << 27;
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    pub const IN_ORDER: u64 = 1 << 35;
    pub const NET_GUEST_USO4: u64 = 1 << 54;
    pub const NET_GUEST_USO6: u64 = 1 << 55;
    pub const NET_HOST_USO: u64 = 1 << 56;
}
