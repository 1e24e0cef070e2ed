//! The data plane of a userspace virtual Ethernet switch.
//!
//! # The way of a frame
//!
//! ```text
//!  port::PortQueue ──▶ batch ──▶ parse ──▶ admit ──▶ relay ──▶ egress ──▶ port::PortQueue
//!    receive           memory    headers   VLAN,     learn,    tag, MTU,     transmit
//!                                          prefetch  look up   offloads
//! ```
//!
//! A [`worker`] owns a way in and out of every port ([`port`]; one kind a file). It reads up to 64 frames from one
//! queue into a [`batch`], runs them through the stages of the [`pipeline`] (its table of contents is
//! [`pipeline::STAGES`]) and writes them out, all on one thread, without a lock, an allocation or a look at the clock on the
//! way. What a frame's sender left to do, checksums and segmentation, travels with it ([`frame`], [`offload`]) and is done
//! where the leaving port cannot.
//!
//! # What workers share
//!
//! - the [`topology`]: an immutable picture of bridges and ports, swapped whole when the operator changes something;
//! - the forwarding databases ([`bridge::fdb`]), lock-free tables of who is where;
//! - counters ([`stats`]), each with one writer.
//!
//! # Who tells them
//!
//! [`switch::Switch`] takes what an operator asks for ([`spec`]), opens devices ([`sys`], the only home of system calls),
//! hands the workers new pictures, follows interfaces that come and go, and reports ([`status`]). Nothing here knows of command lines,
//! configuration files or sockets to be controlled by: that is the crate `switchd`.

#![cfg_attr(any(test, loom), allow(clippy::disallowed_methods))]

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
pub mod virtio;
pub mod wire;
pub mod worker;
