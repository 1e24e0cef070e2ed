//! The only home of system calls: every `unsafe` towards Linux is here.

pub(crate) mod mem;
