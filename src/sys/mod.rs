//! The only home of system calls: every `unsafe` towards Linux is here.
//!
//! The contract of this folder with the rest:
//!
//! - Callers see safe functions, owned descriptors ([`std::os::fd::OwnedFd`]) and plain values, never a raw number
//!   whose lifetime they must know.
//! - No call moves the calling thread to another namespace: what must run elsewhere runs on a scratch thread
//!   ([`netns::run_in`]). The one exception says so: [`netns::exec`], which ends the program.
//! - An [`Error`] names the object and the operation and carries the kernel's answer.
//! - Nothing here logs, and nothing here keeps state that is not in a value the caller holds.

mod error;

pub mod bpf;
pub mod netlink;
pub mod netns;

pub use error::{Error, Result, check_ifname};
