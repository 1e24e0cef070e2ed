//! Descriptors that a program sends along where nobody wants any.

use std::io::IoSlice;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vswitch::sys::unix::can_refuse_descriptors;

use super::{Outcome, Skip};

/// What it takes to refuse them.
pub const RIGHTS: &str = "SO_PASSRIGHTS (Linux 6.16)";

/// Whether the kernel can refuse descriptors.
///
/// # Errors
/// Names what is missing.
pub fn can_refuse() -> Outcome {
    if can_refuse_descriptors() { Ok(()) } else { Err(Skip(RIGHTS.to_owned())) }
}

/// Sends some bytes by a connected socket, and a descriptor along: the kernel tells that nobody takes those there.
#[track_caller]
pub fn is_refused(socket: &impl AsRawFd) {
    assert_eq!(send_along(socket), Err(Errno::EPERM));
}

/// Sends some bytes by a connected socket, and a descriptor along; what the kernel says.
pub fn send_along(socket: &impl AsRawFd) -> nix::Result<usize> {
    let file = std::fs::File::open("/dev/null").expect("there");
    let fds = [file.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&[0; 60])], &rights, flags, None)
}
