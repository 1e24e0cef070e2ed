//! What a learning switch knows.

pub mod fdb;
pub mod neighbours;
mod sync;
pub mod vlan;
