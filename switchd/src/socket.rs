//! The file of a socket of the daemon's: one daemon a socket, nothing stale in the way.
//!
//! Whether a daemon runs is decided by a lock (`flock`) on `<socket>.lock`, which the kernel releases however
//! the daemon ends. So a socket file found while holding the lock is a leftover and is removed; a crash or
//! SIGKILL leaves nothing that stops the next start. (Asking the socket itself, by connecting, cannot tell a
//! daemon that is about to listen from a dead one.)
//!
//! The lock file is removed at the end too. That is a race on its own (another daemon may have opened the file and
//! be about to lock what has no name any more), so whoever gets the lock checks that the file is still the one of
//! that name.
//!
//! Whoever can open a file can lock it, so nobody else may: its mode is 0600, and it is the daemon's own. A file that others can
//! open, such as versions before left (0644) or another user put there, proves nothing and is replaced by a new one. Only
//! where a program also listens at the socket does its lock count. (A name of an abstract socket in place of the
//! file was rejected: everyone in the network namespace can take it.)

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use vswitch::sys::unix::{self, Descriptors, SockType, SocketFile};

/// Mode of the control socket: its owner and its group.
pub const CONTROL_MODE: u32 = 0o660;

/// A socket, listening; both files go when it is dropped.
#[derive(Debug)]
pub struct DaemonSocket {
    lock_path: PathBuf,
    /// The folder of both, if it was not there before.
    folder_made: Option<PathBuf>,
    _lock: Flock<File>,
    file: Option<SocketFile>,
    listener: Option<std::os::unix::net::UnixListener>,
}

impl DaemonSocket {
    /// Takes the lock, removes what a dead daemon left, and listens; the file has `mode`. `option` is what gives another path.
    ///
    /// # Errors
    /// One line: another daemon has the socket, or the files cannot be made.
    pub fn open(path: &Path, mode: u32, option: &str) -> Result<DaemonSocket, String> {
        let named = |what: &str, error: &dyn std::fmt::Display| format!("{what} {}: {error}", path.display());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder_made = folder.filter(|folder| !folder.exists()).map(Path::to_owned);
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let lock = lock(path, &lock_path, folder, option)?;
        // From here on the lock's file is ours to remove, also when the rest fails.
        let mut socket = DaemonSocket { lock_path, folder_made, _lock: lock, file: None, listener: None };
        let (listener, file) = unix::bind_at(path, SockType::Stream, mode, Descriptors::Refused)
            .map_err(|error| named("cannot listen at", &error))?;
        (socket.listener, socket.file) = (Some(listener.into()), Some(file));
        Ok(socket)
    }

    /// The listener, once; non-blocking.
    ///
    /// # Errors
    /// It was taken already.
    pub fn take_listener(&mut self) -> io::Result<std::os::unix::net::UnixListener> {
        self.listener.take().ok_or_else(|| io::Error::other("the listener was taken already"))
    }
}

impl Drop for DaemonSocket {
    fn drop(&mut self) {
        // The lock goes last.
        drop(self.file.take());
        let _ = fs::remove_file(&self.lock_path);
        if let Some(folder) = &self.folder_made {
            // Only when it is empty.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// The file to lock: the one that is there, or a new one that nobody else can open.
fn open_lock(path: &Path) -> io::Result<File> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            options.create_new(true).mode(0o600).open(path)
        }
        // Another user's, in a file system where even root may not write it: it is going to be replaced.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            OpenOptions::new().read(true).custom_flags(flags).open(path)
        }
        opened => opened,
    }
}

/// Locks the file at `lock_path` for the daemon of `socket` and writes the process id into it.
fn lock(socket: &Path, lock_path: &Path, folder: Option<&Path>, option: &str) -> Result<Flock<File>, String> {
    let failed = |error: io::Error| format!("cannot lock {}: {error}", lock_path.display());
    // Each turn somebody else ended in between; nobody can do that forever.
    for _ in 0..100 {
        if let Some(folder) = folder {
            fs::create_dir_all(folder)
                .map_err(|error| format!("cannot create {} for the socket: {error}", folder.display()))?;
        }
        let mut file = match open_lock(lock_path) {
            // The file, or its folder, went or came meanwhile.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {
                continue;
            }
            opened => opened.map_err(failed)?,
        };
        let meta = file.metadata().map_err(failed)?;
        let others_can_open = meta.mode() & 0o077 != 0 || meta.uid() != nix::unistd::geteuid().as_raw();
        let mut holder = String::new();
        let _ = (&mut file).take(32).read_to_string(&mut holder);
        let locked = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => Some(locked),
            Err((_, Errno::EWOULDBLOCK)) if others_can_open && !unix::has_listener(socket) => None,
            Err((_, Errno::EWOULDBLOCK)) => {
                let holder = match holder.trim() {
                    pid if !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit()) => {
                        format!(" (pid {pid})")
                    }
                    _ => String::new(),
                };
                return Err(format!(
                    "vswitchd{holder} is running already on {}: stop it first, or give this one another {option}",
                    socket.display()
                ));
            }
            Err((_, error)) => return Err(failed(error.into())),
        };
        let named = fs::symlink_metadata(lock_path);
        if !named.is_ok_and(|named| (named.dev(), named.ino()) == (meta.dev(), meta.ino())) {
            continue;
        }
        let Some(mut locked) = locked.filter(|_| !others_can_open) else {
            fs::remove_file(lock_path).map_err(failed)?;
            continue;
        };
        let written = locked
            .set_len(0)
            .and_then(|()| locked.rewind())
            .and_then(|()| writeln!(locked, "{}", std::process::id()));
        written.map_err(failed)?;
        return Ok(locked);
    }
    Err(format!("cannot lock {}: it is replaced again and again", lock_path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn open(path: &Path) -> Result<DaemonSocket, String> {
        DaemonSocket::open(path, CONTROL_MODE, "--socket")
    }

    #[test]
    fn one_daemon_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/ctl.sock");
        let first = open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o660);
        let refused = open(&path).unwrap_err();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        assert!(UnixStream::connect(&path).is_ok(), "the second try must not take the first one's socket");
        drop(first);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
        drop(open(&path).unwrap());
    }

    #[test]
    fn what_a_crash_left_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ctl.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        fs::write(folder.path().join("ctl.sock.lock"), "4194304\n").unwrap();
        let mut socket = open(&path).unwrap();
        let _listener = socket.take_listener().unwrap();
        assert!(UnixStream::connect(&path).is_ok());
    }

    fn locked(path: &Path) -> Flock<File> {
        Flock::lock(File::open(path).unwrap(), FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| error)
            .unwrap()
    }

    #[test]
    fn nobody_else_can_open_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let (path, lock) = (folder.path().join("ctl.sock"), folder.path().join("ctl.sock.lock"));
        let mode = || fs::metadata(&lock).unwrap().permissions().mode() & 0o7777;
        let first = open(&path).unwrap();
        assert_eq!(mode(), 0o600);
        drop(first);

        // As a version before left it, opened by somebody who has the lock.
        fs::write(&lock, "4194304\n").unwrap();
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o644)).unwrap();
        let theirs = locked(&lock);
        let ours = open(&path).unwrap();
        assert_eq!(mode(), 0o600);
        drop(theirs);
        assert!(open(&path).unwrap_err().contains("is running already"), "ours counts");
        drop(ours);

        // The same without the lock, which would be taken as soon as we end.
        fs::write(&lock, "").unwrap();
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o644)).unwrap();
        let theirs = File::open(&lock).unwrap();
        let ours = open(&path).unwrap();
        assert_ne!(fs::metadata(&lock).unwrap().ino(), theirs.metadata().unwrap().ino());
        drop(ours);

        // A version before that runs is not driven out.
        fs::write(&lock, "4194304\n").unwrap();
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o644)).unwrap();
        let (_theirs, _listener) = (locked(&lock), std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(open(&path).unwrap_err().contains("(pid 4194304) is running already"));
    }

    #[test]
    fn other_peoples_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "text").unwrap();
        assert!(open(&path).unwrap_err().contains("is not a socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");

        let path = folder.path().join("theirs.sock");
        let _theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(open(&path).unwrap_err().contains("another program"));
        assert!(UnixStream::connect(&path).is_ok(), "still theirs");
    }

    #[test]
    fn a_path_too_long_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x".repeat(120));
        assert!(open(&path).unwrap_err().starts_with("cannot listen at"));
    }
}
