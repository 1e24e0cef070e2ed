//! The pipeline against what a switch must do.
//!
//! - `lab.rs`: a switch of one bridge without threads or devices: what goes in, what comes out, what was counted.
//! - `neighbour.rs`: what the switch answers itself, and what it does not.
//! - `rules.rs`: the rules one by one, and every drop reason.
//! - `reference.rs`: the contract's rules once more, written the other way round: one frame at a time, on plain vectors,
//!   with a hash map; and offloads finished byte by byte.
//! - `model.rs`: random bridges and frames, the pipeline against that reference, and batches against single frames.
//! - `offload.rs`: what arrives is what a port without offloads would have delivered, whatever the ports can do.
//! - `path.rs`: tunnels whose path takes less than stations send.
//! - `switch.rs`: the real switch with its threads, over ports in memory.

#![allow(clippy::cast_possible_truncation)]

mod lab;
mod model;
mod neighbour;
mod offload;
mod path;
mod reference;
mod rules;
mod switch;
