//! Macvtap devices: interfaces on top of another one, the lower, whose frames are read and written through a character device
//! (`drivers/net/macvtap.c`, `drivers/net/tap.c`).
//!
//! The device's number is in `/sys/class/net/NAME/macvtap/tapINDEX/dev`, of its namespace's `/sys` alone. `/dev/tapINDEX` may be missing
//! (in a container), and it may be that of another namespace, where another interface has the same index. So the number decides: a file
//! of `/dev` is taken if it has that number, else one is made in a folder that nobody else sees.
//!
//! A descriptor keeps the namespace alive that it was opened in, so that is always the switch's own.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::netlink::Link;
use super::tun::{self, Tap};
use super::{Error, Result, netns};
use crate::addr::MacAddr;

/// Opens `queues` queues of the macvtap device that `link` describes, in `ns`.
///
/// # Errors
/// It is no macvtap device, or what the kernel refused.
pub fn open(ns: Option<BorrowedFd<'_>>, link: &Link, queues: usize) -> Result<Tap> {
    let cannot = |what: &str| format!("cannot {what} of macvtap device '{}'", link.name);
    let open = |path: &Path| -> io::Result<Vec<OwnedFd>> {
        let one = || OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
        (0..queues.max(1)).map(|_| one().map(OwnedFd::from)).collect()
    };
    let in_dev = PathBuf::from(format!("/dev/tap{}", link.index));
    let files = match number(ns, link) {
        Ok(number) if has_number(&in_dev, number) => open(&in_dev),
        Ok(number) => netns::run_with_folder(|folder| {
            let path = folder.join("tap");
            mknod(&path, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, number)?;
            open(&path)
        }),
        // As a service that may not mount anything; the device says itself whose it is.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => open(&in_dev),
        Err(error) => return Err(Error::new(cannot("find the character device"), error)),
    };
    let files = files.map_err(Error::on(|| cannot("open the character device")))?;
    tun::macvtap(&link.name, link.mac.unwrap_or(MacAddr([0; 6])), files)
        .map_err(Error::on(|| cannot("set up a queue")))
}

fn number(ns: Option<BorrowedFd<'_>>, link: &Link) -> io::Result<u64> {
    let path = format!("/sys/class/net/{}/macvtap/tap{}/dev", link.name, link.index);
    let text = netns::run_with_sys(ns, || std::fs::read_to_string(path))?;
    let number = text
        .trim()
        .split_once(':')
        .and_then(|(major, minor)| Some(makedev(major.parse().ok()?, minor.parse().ok()?)));
    number.ok_or_else(|| io::Error::other(format!("'{}' is no device number", text.trim())))
}

fn has_number(path: &Path, number: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.file_type().is_char_device() && file.rdev() == number)
}

/// What this process writes on the devices that it makes (their alias).
#[must_use]
pub fn mark() -> String {
    format!("vswitchd {}", std::process::id())
}

/// Whether a device with this alias was made by a vswitchd that has ended without removing it.
#[must_use]
pub fn is_left(alias: &str) -> bool {
    let Some(pid) = alias.strip_prefix("vswitchd ").and_then(|pid| pid.parse::<u32>().ok()) else {
        return false;
    };
    let name = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    pid == std::process::id() || name(pid).is_none_or(|there| Some(there) != name(std::process::id()))
}
