//! What a learning switch knows.

pub mod fdb;
mod sync;
pub mod vlan;
