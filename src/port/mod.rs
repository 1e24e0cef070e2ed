//! Where frames come in and go out: one kind a file.
pub mod mem;
