//! Macvtap devices: interfaces on top of another one, the lower, whose frames are read and written through a character device
//! (`drivers/net/macvtap.c`, `drivers/net/tap.c`).
//!
//! The device's number is in `/sys/class/net/NAME/macvtap/tapINDEX/dev`, of its namespace's `/sys` alone. `/dev/tapINDEX` may be missing
//! (in a container), and it may be that of another namespace, where another interface has the same index. So the number decides: a file
//! of `/dev` is taken if it has that number, else one is made in a folder that nobody else sees.
//!
//! A descriptor keeps the namespace alive that it was opened in, so that is always the switch's own.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::netlink::Link;
use super::tun::{self, Tap};
use super::{Error, Result, netns, unix};
use crate::addr::MacAddr;

/// First word of the alias.
const MARK: &str = "vswitchd";

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
    let files = files
        .map_err(|error| with_remedy(error, link.index))
        .map_err(Error::on(|| cannot("open the character device")))?;
    tun::macvtap(&link.name, link.mac.unwrap_or(MacAddr([0; 6])), files)
        .map_err(Error::on(|| cannot("set up a queue")))
}

/// The interface is there: waiting for it would not bring the file that is missing or forbidden.
fn with_remedy(error: io::Error, index: u32) -> io::Error {
    let denied = error.kind() == io::ErrorKind::PermissionDenied;
    if !denied && !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENXIO)) {
        return error;
    }
    let kind = if denied { io::ErrorKind::PermissionDenied } else { io::ErrorKind::Other };
    io::Error::new(
        kind,
        format!(
            "{error}; vswitchd needs CAP_SYS_ADMIN and CAP_MKNOD, or /dev/tap{index} where it runs, and the right to open it (in a unit of systemd's: DeviceAllow=char-macvtap rw)"
        ),
    )
}

fn number(ns: Option<BorrowedFd<'_>>, link: &Link) -> io::Result<u64> {
    let path = format!("/sys/class/net/{}/macvtap/tap{}/dev", link.name, link.index);
    let text = netns::run_with_sys(ns, || fs::read_to_string(path))?;
    let number = text
        .trim()
        .split_once(':')
        .and_then(|(major, minor)| Some(makedev(major.parse().ok()?, minor.parse().ok()?)));
    number.ok_or_else(|| io::Error::other(format!("'{}' is no device number", text.trim())))
}

fn has_number(path: &Path, number: u64) -> bool {
    fs::metadata(path).is_ok_and(|file| file.file_type().is_char_device() && file.rdev() == number)
}

/// What the switch writes on a device that it makes (its alias), and what shows that the switch runs: a socket of that name, to be kept
/// as long as the device.
///
/// A process id would not do: those of two containers in one network namespace are the same. Names of sockets are the network namespace's, so
/// the alias says in which it holds.
///
/// # Errors
/// The kernel's answer.
pub fn mark() -> Result<(String, OwnedFd)> {
    let made = || {
        let unique = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let alias = format!("{MARK} {} {}", own_namespace()?, unique.trim());
        let held = unix::hold_name(&alias)?;
        Ok::<_, io::Error>((alias, held))
    };
    made().map_err(Error::on(|| "cannot make a mark for a macvtap device"))
}

/// Whether a device with this alias was made by a switch in this network namespace that has ended without removing it.
#[must_use]
pub fn is_left(alias: &str) -> bool {
    let mut words = alias.split(' ');
    let (Some(MARK), Some(namespace), Some(_), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return false;
    };
    own_namespace().is_ok_and(|own| own.to_string() == namespace) && unix::hold_name(alias).is_ok()
}

/// The inode of the network namespace that this thread is in.
fn own_namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_left_when_nobody_holds_its_mark() {
        let (one, held) = mark().unwrap();
        let (other, _held) = mark().unwrap();
        assert!(one != other && !is_left(&one) && !is_left(&other));
        drop(held);
        assert!(is_left(&one) && !is_left(&other));
        // Made from another namespace: who holds it there is not known here.
        let far = one.replace(&format!(" {} ", own_namespace().unwrap()), " 1 ");
        for alias in [&far, "", "uplink", "vswitchd", "vswitchd 1", "vswitchd br0 0 1 /run/attach.sock"] {
            assert!(!is_left(alias), "{alias}");
        }
    }
}
