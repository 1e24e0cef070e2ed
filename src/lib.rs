//! The data plane of a userspace virtual Ethernet switch.

pub mod addr;
pub mod batch;
pub mod bridge;
pub mod frame;
pub mod offload;
pub mod pipeline;
pub mod port;
pub mod spec;
pub mod stats;
pub mod status;
pub mod switch;
pub mod sys;
pub mod topology;
pub mod tunnel;
pub mod wire;
pub mod worker;
