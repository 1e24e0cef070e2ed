//! The data plane of a userspace virtual Ethernet switch.

pub mod addr;
pub mod bridge;
pub mod offload;
pub mod port;
pub mod spec;
pub mod status;
pub mod switch;
pub mod sys;
pub mod wire;
