//! Rings and memory, with drivers that keep the rules and drivers that do not.

mod frames;
pub(crate) mod hostile;
mod memory;
mod rings;
