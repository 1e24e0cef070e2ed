//! The only home of system calls: every `unsafe` towards Linux is here.
//!
//! The contract of this folder with the rest:
//!
//! - Callers see safe functions, owned descriptors ([`std::os::fd::OwnedFd`]) and plain values, never a raw number
//!   whose lifetime they must know.
//! - No call moves the calling thread to another namespace: what must run elsewhere runs on a scratch thread
//!   ([`netns::run_in`]). The one exception says so: [`netns::exec`], which ends the program.
//! - An [`Error`] names the object and the operation and carries the kernel's answer.
//! - Nothing here logs, and nothing here keeps state that is not in a value the caller holds. The exceptions say so: `sigbus.rs`, `caller.rs`, `lookups.rs`, and, of paths, `netns.rs`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

mod error;

pub mod announce;
mod assembler;
pub(crate) mod bells;
pub mod bpf;
mod btf;
pub(crate) mod caller;
mod filter;
pub mod folder;
pub mod long;
pub(crate) mod lookups;
pub mod machine;
pub mod macvtap;
pub(crate) mod mem;
pub mod netlink;
pub mod netns;
pub mod packet;
pub mod peer;
pub(crate) mod sigbus;
mod steering;
pub mod thread;
pub mod tun;
pub mod underlay;
pub mod unix;
pub mod uppers;
pub mod users;

pub(crate) use error::IFNAME_MAX_BYTES;
pub use error::{Error, Result, check_ifname, check_known_ifname};

/// O_NONBLOCK on.
pub(crate) fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// read(2) into `buffer`; `None` is EAGAIN.
#[inline]
pub(crate) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    // SAFETY: the pointer and length are those of a live, exclusively borrowed buffer.
    let n = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    if n >= 0 { Ok(Some(n.cast_unsigned())) } else { would_block(io::Error::last_os_error()) }
}

/// write(2) of one buffer; `None` is EAGAIN.
#[inline]
pub(crate) fn write(fd: BorrowedFd<'_>, buffer: &[u8]) -> io::Result<Option<usize>> {
    // SAFETY: the pointer and length are those of a live buffer.
    let n = unsafe { libc::write(fd.as_raw_fd(), buffer.as_ptr().cast(), buffer.len()) };
    if n >= 0 { Ok(Some(n.cast_unsigned())) } else { would_block(io::Error::last_os_error()) }
}

/// writev(2); `None` is EAGAIN.
#[inline]
pub(crate) fn write_vectored(fd: BorrowedFd<'_>, slices: &[io::IoSlice<'_>]) -> io::Result<Option<usize>> {
    let count = libc::c_int::try_from(slices.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: IoSlice is guaranteed to have the layout of iovec; the slices are live.
    let n = unsafe { libc::writev(fd.as_raw_fd(), slices.as_ptr().cast(), count) };
    if n >= 0 { Ok(Some(n.cast_unsigned())) } else { would_block(io::Error::last_os_error()) }
}

fn would_block<T>(error: io::Error) -> io::Result<Option<T>> {
    if error.kind() == io::ErrorKind::WouldBlock || error.kind() == io::ErrorKind::Interrupted {
        return Ok(None);
    }
    Err(error)
}
