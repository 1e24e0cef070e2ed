//! Guests attach themselves: a process asks for a TAP device on a bridge and gets its fd.
//!
//! For QEMU's `-netdev bridge` and whatever else starts `qemu-bridge-helper`. The helper here needs no privileges: it asks
//! vswitchd over the attach socket, which everybody may open and which takes nothing but attach requests.
//! vswitchd knows from the kernel who asks, looks at the `[[attach]]` rules, makes the device, makes it a port and passes the fd. The
//! device lives as long as somebody holds that fd, and the port leaves with it.
//!
//! | module | what |
//! |---|---|
//! | [`protocol`] | one line each way |
//! | [`rules`] | who may, and how many guests |
//! | [`server`] | the socket, against clients that mean ill |
//! | [`device`] | the TAP |
//! | [`helper`] | the program that QEMU starts |
//!
//! Rejected: a helper that is setuid root and does the work itself, as QEMU's is (privileges in a program that anybody starts, and
//! a second place with rules), and attaching over the control socket (whoever may open that controls the whole switch).

use std::path::{Path, PathBuf};

pub mod device;
pub mod helper;
pub mod protocol;
pub mod rules;
pub mod server;

/// Where the attach socket is, when the control socket is where it is by default.
pub const DEFAULT_SOCKET: &str = "/run/vswitchd/attach.sock";
/// Mode of the attach socket: the rules say who may, not the file system.
pub const SOCKET_MODE: u32 = 0o666;
/// Its name beside a control socket elsewhere.
const FILE_NAME: &str = "attach.sock";

/// The attach socket that goes with a control socket.
#[must_use]
pub fn beside(control: &Path) -> PathBuf {
    control.with_file_name(FILE_NAME)
}
