//! Rings and memory, with drivers that keep the rules and drivers that do not.

mod dirty;
mod frames;
pub(crate) mod hostile;
mod inflight;
mod late;
mod lending;
mod memory;
pub(crate) mod rings;
