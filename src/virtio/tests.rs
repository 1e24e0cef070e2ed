//! Rings and memory, with drivers that keep the rules and drivers that do not.

mod dirty;
mod frames;
mod hostile;
mod inflight;
mod memory;
mod rings;
