//! Rings and memory, with drivers that keep the rules and drivers that do not.

mod frames;
mod hostile;
mod memory;
mod rings;
