//! `vde` ports: the VDE switch protocol ([`protocol`]) with one plug, such as QEMU's `-netdev vde`, `vde_plug` and `vde_plug2tap`; or, the other way
//! round, the switch as a plug of a `vde_switch`.
//!
//! Frames are Unix datagrams between two sockets, so a port is opened around its socket as a dgram port is ([`super::dgram::open`]). What is
//! VDE's own is how the two ends find each other: in a folder with a control socket, whose connection lasts as long as the plug does. That is
//! the control side's work alone ([`endpoint`]).
//!
//! A VDE switch takes any number of plugs at one control socket, each as a port of its own. Here the folder is the port, and others are turned away
//! while it has a plug: whose frames come by it, which VLANs it is in and what it may do are said of a port before there is a plug, and
//! ports made by those who come were rejected, because that is what the attach socket and its rules are for.

mod client;
pub mod endpoint;
pub mod protocol;
mod server;

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::sys::{Error, unix};

/// The socket in a folder that plugs connect to.
const CONTROL: &str = "ctl";
/// The switch's datagram socket in its folder, unless a plug has taken the name.
const DATA: &str = "data";
/// What plugs call theirs there: `.PID-NUMBER`, at its longest.
const PLUG_NAME_LEN: usize = ".4194304-00000".len();
/// Longest path of a folder in bytes, so that all sockets in it can have an address.
pub const FOLDER_LEN_MAX: usize = unix::PATH_MAX_BYTES - 1 - PLUG_NAME_LEN;

/// Characters that libvdeplug does not take for themselves in a folder's name.
const READ_OTHERWISE: [u8; 6] = *b"'\"\\%[]";

/// Refuses what cannot be a folder of sockets.
///
/// # Errors
/// `InvalidInput`, with the rule that was broken.
pub fn check_folder(folder: &Path) -> Result<(), Error> {
    unix::check_path(folder)?;
    let name = folder.as_os_str().as_bytes();
    let refuse = |why: &str| {
        let folder = folder.display().to_string();
        let what = format!("'{}' is not a folder for VDE plugs: {why}", folder.escape_debug());
        Err(Error::refused(io::ErrorKind::InvalidInput, what))
    };
    if name.len() > FOLDER_LEN_MAX {
        refuse(&format!(
            "it is longer than {FOLDER_LEN_MAX} bytes, and their sockets in it would have no address"
        ))
    } else if name.iter().any(|byte| READ_OTHERWISE.contains(byte)) {
        refuse("they read ' \" \\ % [ and ] as something else")
    } else if name.windows(3).any(|part| part == b"://") {
        refuse("they take what is before :// for the name of a module")
    } else {
        Ok(())
    }
}
