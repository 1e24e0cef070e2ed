//! Network namespaces, by the names that iproute2 gives them (network_namespaces(7), ip-netns(8)).
//!
//! A *name* is a file under `/run/netns` with the namespace bind-mounted on it; names made here and by `ip netns` are
//! the same thing. A namespace lives as long as anything refers to it: a name, a process, an open descriptor, any
//! socket in it. So whoever holds one of those **pins** it: `ip netns del` then removes the name and destroys
//! nothing. Watch [`identity`] and let go when it changes.
//!
//! Thread rules: a namespace is a property of a *thread*. Nothing here moves the caller's thread; work in another
//! namespace runs on a scratch thread that ends afterwards ([`run_in`]). Moving there and back was rejected: a
//! failure on the way back leaves a thread of the pool in the wrong place, and every later socket with it. Forking,
//! as the `rtnetlink` crate does, was rejected because forking a threaded daemon is only safe up to `exec`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::lookups::{self, LookUp, PATIENCE};
use super::netlink::{LinkChange, Netlink};
use super::{Error, Result, thread};
use crate::spec::Netns;

/// Where names live.
const RUN_DIR: &str = "/run/netns";
/// Longest wait for the lock of that folder.
const RUN_DIR_LOCK: Duration = Duration::from_secs(2);
/// Per-namespace configuration files, bound over /etc by [`exec`].
const ETC_DIR: &str = "/etc/netns";
/// The loopback device is the first of every namespace.
const LOOPBACK_INDEX: u32 = 1;
/// Names listed in an error message.
const NAMES_SHOWN: usize = 8;
/// NAME_MAX of the file system.
const NAME_MAX_BYTES: usize = 255;

/// Refuses what cannot be a file name under `/run/netns`.
///
/// # Errors
/// InvalidInput, with the rule that was broken.
pub fn check_name(name: &str) -> Result<()> {
    let wrong = |why: &str| {
        Err(Error::refused(io::ErrorKind::InvalidInput, format!("{name:?} is not a namespace name: {why}")))
    };
    if name.is_empty() {
        wrong("it is empty")
    } else if name.len() > NAME_MAX_BYTES {
        wrong("it is longer than 255 bytes")
    } else if name == "." || name == ".." {
        wrong("it is reserved")
    } else if name.contains(|c: char| c == '/' || c.is_control()) {
        wrong("it contains '/' or a control character")
    } else {
        Ok(())
    }
}

/// Opens a namespace. The descriptor pins it.
///
/// # Errors
/// NotFound, listing the names there are; InvalidInput when the name is none or the file is not a network
/// namespace; otherwise the kernel's answer.
pub fn open(ns: &Netns) -> Result<OwnedFd> {
    let path = path_of(ns)?;
    if is_at_hand(&path) {
        return open_at(ns, &path);
    }
    let (named, cannot) = (ns.clone(), || format!("cannot open network namespace '{ns}'"));
    let there = path.clone();
    lookups::within(&path, PATIENCE, move || open_at(&named, &there)).map_err(Error::on(cannot))?
}

fn open_at(ns: &Netns, path: &Path) -> Result<OwnedFd> {
    let fd: OwnedFd = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => absent(ns),
            _ => Error::new(format!("cannot open network namespace '{ns}'"), error),
        })?
        .into();
    match is_network_namespace(fd.as_fd()) {
        Ok(true) => Ok(fd),
        Ok(false) => Err(Error::refused(
            io::ErrorKind::InvalidInput,
            format!("'{ns}' ({}) is not a network namespace", path.display()),
        )),
        Err(error) => Err(Error::new(format!("cannot examine network namespace '{ns}'"), error)),
    }
}

/// Whether looking there never waits for a file system of somebody's: names are in a folder of root's in memory, and
/// `/proc/…/ns/net` is the kernel's. What else is in /proc may lead elsewhere (`root`, `cwd`).
fn is_at_hand(path: &Path) -> bool {
    let of_kernel = |path: &Path| {
        let parts: Vec<_> = path.components().skip(2).collect();
        let is_plain = parts.iter().all(|part| matches!(part, Component::Normal(_)));
        let is_task = parts.len() == 5 && parts[1].as_os_str() == "task";
        is_plain && (parts.len() == 3 || is_task) && path.ends_with("ns/net")
    };
    path.parent() == Some(Path::new(RUN_DIR)) || path.starts_with("/proc") && of_kernel(path)
}

/// Opens the namespace of the calling thread.
///
/// # Errors
/// The kernel's answer, for instance when /proc is not mounted.
pub fn open_current() -> Result<OwnedFd> {
    let file = File::open("/proc/thread-self/ns/net")
        .map_err(Error::on(|| "cannot open the network namespace of this thread"))?;
    Ok(file.into())
}

/// Device and inode number of the namespace behind a name, or `None` while there is none: one `stat`, opens nothing,
/// pins nothing.
///
/// It changes when the name is deleted or made anew. The kernel reuses inode numbers of namespaces that are gone, so
/// compare with an identity whose namespace is still pinned by something of yours.
#[must_use]
pub fn identity(ns: &Netns) -> Option<(u64, u64)> {
    identity_now(ns).unwrap_or(None)
}

/// The same, but a file system that does not answer is told from a name that is not there.
///
/// # Errors
/// It is not known yet.
pub(crate) fn identity_now(ns: &Netns) -> io::Result<Option<(u64, u64)>> {
    fn at(path: &Path) -> Option<(u64, u64)> {
        let stat = std::fs::metadata(path).ok()?;
        Some((stat.dev(), stat.ino()))
    }
    type Look = LookUp<Option<(u64, u64)>>;
    /// Paths that are being looked at. Only those are here that did not answer at once, or somebody asks for just now.
    static ASKED: Mutex<BTreeMap<PathBuf, Look>> = Mutex::new(BTreeMap::new());
    let path = ns.path();
    if is_at_hand(&path) {
        return Ok(at(&path));
    }
    let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    let there = path.clone();
    let answer = asked.entry(path.clone()).or_default().ask(move || at(&there));
    if !asked.get(&path).is_some_and(LookUp::is_pending) {
        asked.remove(&path);
    }
    answer?.ok_or_else(lookups::unanswered)
}

/// Device and inode number of an open namespace, comparable with [`identity`].
///
/// # Errors
/// The kernel's answer.
pub fn identity_of(fd: BorrowedFd<'_>) -> Result<(u64, u64)> {
    let stat = nix::sys::stat::fstat(fd).map_err(Error::on(|| "cannot examine a network namespace"))?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Runs `f` on a fresh thread inside `ns` and waits for it; `None` runs it right here.
///
/// Sockets and child processes made by `f` belong to that namespace. A panic of `f` goes on in the caller.
///
/// # Errors
/// No thread could be started, or setns(2) failed (EPERM without CAP_SYS_ADMIN, EINVAL when `ns` is no network
/// namespace). `f` has then not run.
pub fn run_in<T: Send>(ns: Option<BorrowedFd<'_>>, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    let Some(ns) = ns else { return Ok(f()) };
    scratch_thread(move || {
        setns(ns, CloneFlags::CLONE_NEWNET)?;
        Ok(f())
    })
}

/// Runs `f` on a fresh thread inside `ns` that sees that namespace's interfaces in `/sys`, whatever is mounted there for the others.
pub(super) fn run_with_sys<T: Send>(
    ns: Option<BorrowedFd<'_>>,
    f: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    scratch_thread(move || {
        if let Some(ns) = ns {
            setns(ns, CloneFlags::CLONE_NEWNET)?;
        }
        unshare_mounts()?;
        mount_sys("sysfs")?;
        f()
    })
}

/// Runs `f` on a fresh thread with an empty folder, in which device files work, that nobody else sees and that goes with the thread.
pub(super) fn run_with_folder<T: Send>(f: impl FnOnce(&Path) -> io::Result<T> + Send) -> io::Result<T> {
    scratch_thread(move || {
        let folder = Path::new("/sys");
        unshare_mounts()?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some("tmpfs"), folder, Some("tmpfs"), flags, Some("mode=700,size=4k"))?;
        f(folder)
    })
}

/// Makes a new namespace with a name, as `ip netns add` does, and brings its `lo` up.
///
/// (`ip netns add` leaves `lo` down, so that pinging oneself fails; nobody wants that.)
///
/// # Errors
/// AlreadyExists, InvalidInput, or the kernel's answer. Nothing is left behind.
pub fn add(name: &str) -> Result<()> {
    check_name(name)?;
    let cannot = || format!("cannot add network namespace '{name}'");
    prepare_run_dir().map_err(Error::on(cannot))?;
    let path = Path::new(RUN_DIR).join(name);
    let claimed = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path);
    claimed.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::refused(
            error.kind(),
            format!("network namespace '{name}' exists already; use --may-exist if that is fine"),
        ),
        _ => Error::new(cannot(), error),
    })?;
    let made = scratch_thread(|| Ok(make_namespace_at(&path))).map_err(Error::on(cannot)).and_then(|made| {
        made.map_err(|error| Error::new(format!("{}: {}", cannot(), error.what), error.source))
    });
    if made.is_err() {
        // The name is ours alone: nobody else could have created it meanwhile.
        let _ = std::fs::remove_file(&path);
    }
    made
}

/// Removes a name, as `ip netns del` does. The namespace itself goes when nothing refers to it any more.
///
/// # Errors
/// NotFound, listing the names there are, or the kernel's answer.
pub fn del(name: &str) -> Result<()> {
    check_name(name)?;
    let cannot = || format!("cannot delete network namespace '{name}'");
    let path = Path::new(RUN_DIR).join(name);
    match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // EINVAL: nothing is mounted there, a name left over by somebody; the file goes all the same.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(Errno::ENOENT) => return Err(absent(&Netns(name.to_owned()))),
        Err(errno) => return Err(Error::new(cannot(), errno)),
    }
    std::fs::remove_file(&path).map_err(Error::on(cannot))
}

/// The names there are, sorted.
///
/// # Errors
/// `/run/netns` exists and cannot be read. A name that is not UTF-8 is left out.
pub fn list() -> Result<Vec<String>> {
    let cannot = || format!("cannot read {RUN_DIR}");
    let entries = match std::fs::read_dir(RUN_DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::new(cannot(), error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry.map_err(Error::on(cannot))?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Replaces this program by `argv`, run in a namespace as `ip netns exec` does: with the `/sys` of that namespace and
/// the files of `/etc/netns/NAME` over those of `/etc`. Returns only to say why it could not.
///
/// The calling thread is in the new namespaces by then, so the program had better end.
#[must_use]
pub fn exec(ns: &Netns, argv: &[OsString]) -> Error {
    let Some((program, arguments)) = argv.split_first() else {
        return Error::refused(io::ErrorKind::InvalidInput, "no program was given to run");
    };
    if let Err(error) = enter_for_good(ns) {
        return error;
    }
    let error = Command::new(program).args(arguments).exec();
    Error::new(format!("cannot run '{}' in network namespace '{ns}'", program.display()), error)
}

fn path_of(ns: &Netns) -> Result<PathBuf> {
    if !ns.0.contains('/') {
        check_name(&ns.0)?;
    }
    Ok(ns.path())
}

fn absent(ns: &Netns) -> Error {
    let names = list().unwrap_or_default();
    let existing = match names.len() {
        0 => "there are none".to_owned(),
        n if n > NAMES_SHOWN => {
            format!("existing: {} and {} more", names[..NAMES_SHOWN].join(", "), n - NAMES_SHOWN)
        }
        _ => format!("existing: {}", names.join(", ")),
    };
    Error::refused(io::ErrorKind::NotFound, format!("no network namespace '{ns}'; {existing}"))
}

fn is_network_namespace(fd: BorrowedFd<'_>) -> io::Result<bool> {
    if fstatfs(fd)?.filesystem_type() != NSFS_MAGIC {
        return Ok(false);
    }
    // SAFETY: `fd` is open for the duration of the call, and NS_GET_NSTYPE takes no argument.
    let kind = Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE) })?;
    Ok(kind == libc::CLONE_NEWNET)
}

/// Runs `f` on a thread of its own, whose namespaces `f` may change at will.
fn scratch_thread<T: Send>(f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = thread::spawn_scoped(scope, "netns", f)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves the calling (scratch) thread to a new namespace, brings `lo` up and binds the namespace to `path`.
fn make_namespace_at(path: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(Error::on(|| "unshare"))?;
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    Netlink::open_in(None)?.set_link(LOOPBACK_INDEX, &up)?;
    mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(Error::on(|| format!("mount on {}", path.display())))
}

/// Makes `/run/netns` a mount point that shares its mounts with other mount namespaces, so that deleting a name here
/// deletes it everywhere (a mount that lives on in some service's private copy would pin the namespace).
///
/// Two programs that make it one at once would stack the mounts; iproute2 has a lock for that, and
/// so have we, but any user can have it as long as he likes. So it is asked for only where there is
/// no mount yet, and waited for [`RUN_DIR_LOCK`] at most.
fn prepare_run_dir() -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(RUN_DIR)?;
    let share =
        || mount(None::<&str>, RUN_DIR, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        Err(Errno::EINVAL) => {}
        answer => return Ok(answer?),
    }
    let _lock = lock_run_dir()?;
    match share() {
        // Not a mount point yet: make it one.
        Err(Errno::EINVAL) => {
            mount(Some(RUN_DIR), RUN_DIR, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
            Ok(share()?)
        }
        answer => Ok(answer?),
    }
}

/// iproute2's lock; `None` where somebody else has it all the time.
fn lock_run_dir() -> io::Result<Option<Flock<File>>> {
    let until = Instant::now() + RUN_DIR_LOCK;
    let mut folder = File::open(RUN_DIR)?;
    loop {
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() >= until => return Ok(None),
            Err((again, Errno::EWOULDBLOCK)) => folder = again,
            Err((_, errno)) => return Err(errno.into()),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Moves the calling thread to the namespace, with a mount namespace of its own that shows it.
fn enter_for_good(ns: &Netns) -> Result<()> {
    let fd = open(ns)?;
    let cannot = |step: &'static str| move || format!("cannot enter network namespace '{ns}' ({step})");
    setns(&fd, CloneFlags::CLONE_NEWNET).map_err(Error::on(cannot("setns")))?;
    unshare_mounts().map_err(Error::on(cannot("unshare")))?;
    mount_sys(&ns.0).map_err(Error::on(cannot("mount /sys")))?;
    if !ns.0.contains('/') {
        bind_etc(&ns.0)?;
    }
    Ok(())
}

/// Gives the calling (scratch) thread mounts of its own: what is mounted from here on is not seen by others.
fn unshare_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)?;
    Ok(())
}

/// A fresh `/sys`: its `class/net` shows the namespace of who mounted it.
fn mount_sys(label: &str) -> io::Result<()> {
    let mut flags = MsFlags::empty();
    if umount2("/sys", MntFlags::MNT_DETACH).is_err()
        && statvfs("/sys").is_ok_and(|stat| stat.flags().contains(FsFlags::ST_RDONLY))
    {
        // The old one stays underneath; a writable one may not cover a read-only one.
        flags = MsFlags::MS_RDONLY;
    }
    mount(Some(label), "/sys", Some("sysfs"), flags, None::<&str>)?;
    Ok(())
}

/// Each file in `/etc/netns/NAME` stands in for the one in `/etc`; one without a counterpart there is skipped, since a
/// bind mount needs something to cover.
fn bind_etc(name: &str) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(Path::new(ETC_DIR).join(name)) else { return Ok(()) };
    for entry in entries.flatten() {
        let target = Path::new("/etc").join(entry.file_name());
        if !target.exists() {
            continue;
        }
        mount(Some(&entry.path()), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(
            Error::on(|| format!("cannot bind {} over {}", entry.path().display(), target.display())),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(check_name("blue").is_ok() && check_name("a b").is_ok());
        for bad in ["", ".", "..", "a/b", "/run/netns/x", "a\0b", "a\nb", &"x".repeat(256)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
            assert!(add(bad).is_err() && del(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_no_namespace_is_refused() {
        for (file, part) in [
            ("/etc/passwd", "not a network namespace"),
            ("/proc/self/ns/mnt", "not a network"),
            ("/no/such", "no network namespace '/no/such'"),
        ] {
            let error = open(&Netns(file.to_owned())).expect_err(file);
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(open(&Netns(String::new())).is_err());
        assert!(open(&Netns("..".to_owned())).is_err());
        let own = open(&Netns("/proc/self/ns/net".to_owned())).expect("our own namespace");
        assert_eq!(identity(&Netns("/proc/self/ns/net".to_owned())), identity_of(own.as_fd()).ok());
        assert_eq!(identity(&Netns("/no/such".to_owned())), None);
    }

    #[test]
    fn a_panic_in_another_namespace_reaches_the_caller() {
        let caught = std::panic::catch_unwind(|| scratch_thread(|| -> io::Result<()> { panic!("boom") }));
        assert!(caught.is_err());
    }
}
