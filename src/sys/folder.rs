//! Folders in which a socket of ours listens and in which those who come make sockets of theirs: made, guarded, and removed with their owner.
//!
//! Nobody comes in before our socket is there, and nobody but its owner removes a file from there (the sticky bit). So the socket
//! is the mark by which a folder of ours is known again: one that a killed program left is taken over. Whatever else is at the path is refused, an empty
//! folder, too: it would be given back with another mode, or taken away.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::lookups::{self, PATIENCE};
use super::unix::{self, Descriptors, SockType, SocketFile};
use super::{Error, Result};

/// Only its owner enters.
const CLOSED: u32 = 0o700;
/// Nobody removes what is not his.
const STICKY: u32 = 0o1000;
/// Sockets of others removed at the end, at most: that must end, too.
const LEFT: usize = 1024;

/// A folder with a socket that listens. Both go when this is dropped, and sockets that others left there; what else they left stays, with the folder.
#[derive(Debug)]
pub struct SocketFolder(Option<Folder>);

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    /// While it is open, its inode's number is no other's.
    there: fs::File,
    socket: Option<SocketFile>,
}

impl SocketFolder {
    /// Makes the folder `path`, or takes over what a program of ours left that ended, and in it the socket `name` with this mode. Who may write to
    /// that may also make sockets in the folder.
    ///
    /// # Errors
    /// Something else is at the path, or the kernel refused.
    pub fn open(path: &Path, name: &str, mode: u32) -> Result<(OwnedFd, SocketFolder)> {
        unix::check_path(&path.join(name))?;
        let (there, called) = (path.to_owned(), name.to_owned());
        let made = lookups::within(path, PATIENCE, move || Folder::open(&there, &called, mode));
        let (listener, folder) =
            made.map_err(Error::on(|| format!("cannot make the folder {}", path.display())))??;
        Ok((listener, SocketFolder(Some(folder))))
    }

    /// A datagram socket connected to another in it, which the user `uid` made, before it has a name ([`SocketFolder::bind`]): at no moment
    /// does it take anything from others.
    ///
    /// # Errors
    /// There is no such socket of his.
    pub fn connected(&self, peer: &OsStr, uid: u32) -> io::Result<OwnedFd> {
        let Some(folder) = &self.0 else { return Err(io::ErrorKind::NotFound.into()) };
        let (there, peer) = (folder.there.try_clone()?, peer.to_owned());
        let path = folder.path.join(&peer);
        lookups::within(&path, PATIENCE, move || unix::connected_in(&there, &peer, uid))?
    }

    /// Gives a datagram socket a name in it: its path, and its file, which has this mode.
    ///
    /// # Errors
    /// Something else has the name, or the kernel refused.
    pub fn bind(&self, socket: &OwnedFd, name: &str, mode: u32) -> Result<(PathBuf, SocketFile)> {
        let path = self.0.as_ref().map_or_else(PathBuf::new, |folder| folder.path.join(name));
        let cannot = || format!("cannot make the socket {}", path.display());
        let (socket, there) = (socket.try_clone().map_err(Error::on(cannot))?, path.clone());
        let bound = lookups::within(&path, PATIENCE, move || unix::bind_to(&socket, &there, mode));
        let file = bound.map_err(Error::on(cannot))??;
        Ok((path, file))
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        let folder = self.0.take();
        lookups::remove_within(PATIENCE, move || drop(folder));
    }
}

impl Folder {
    fn open(path: &Path, name: &str, mode: u32) -> Result<(OwnedFd, Folder)> {
        let mut folder = Folder::make(path, name)?;
        let cannot =
            |operation| Error::on(move || format!("cannot {operation} the folder {}", path.display()));
        folder.set_mode(CLOSED).map_err(cannot("close"))?;
        let (listener, file) = unix::bind_at(&path.join(name), SockType::Stream, mode, Descriptors::Refused)?;
        folder.socket = Some(file);
        let write = mode & 0o022;
        folder.set_mode(STICKY | CLOSED | write | write << 1 | write >> 1).map_err(cannot("open"))?;
        Ok((listener, folder))
    }

    fn make(path: &Path, name: &str) -> Result<Folder> {
        let cannot = |error| Error::new(format!("cannot make the folder {}", path.display()), error);
        let refuse = |why: &str| {
            let what = format!("{} {why}: remove it, or choose another path", path.display());
            Err(Error::refused(io::ErrorKind::AlreadyExists, what))
        };
        let made = match fs::DirBuilder::new().mode(CLOSED).create(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(cannot(error)),
        };
        let there = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path);
        let there = there.map_err(|error| {
            if made {
                let _ = fs::remove_dir(path);
            }
            cannot(error)
        })?;
        let meta = there.metadata().map_err(cannot)?;
        if !meta.is_dir() {
            return refuse("exists and is not a folder");
        }
        if meta.uid() != nix::unistd::geteuid().as_raw() {
            return refuse(&format!("is a folder of user {}", meta.uid()));
        }
        if !made && !unix::is_stale(&path.join(name), SockType::Stream)? {
            return refuse("is a folder that no vswitchd left");
        }
        Ok(Folder { path: path.to_owned(), there, socket: None })
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        fs::set_permissions(inside(&self.there), fs::Permissions::from_mode(mode))
    }

    /// Removes what others left, from a folder that nobody enters any more; whether nothing but our socket is left then.
    fn clear(&self) -> io::Result<bool> {
        self.set_mode(CLOSED)?;
        let is_ours = |name: &OsStr| self.socket.as_ref().is_some_and(|file| file.is_called(name));
        for left in inside(&self.there).read_dir()?.flatten().take(LEFT) {
            if !is_ours(&left.file_name()) {
                remove_socket(&left)?;
            }
        }
        Ok(inside(&self.there).read_dir()?.flatten().all(|left| is_ours(&left.file_name())))
    }
}

/// Removes it if it is a socket. Its owner may have been faster.
fn remove_socket(left: &fs::DirEntry) -> io::Result<()> {
    let removed = left
        .file_type()
        .and_then(|kind| if kind.is_socket() { fs::remove_file(left.path()) } else { Ok(()) });
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// A folder, whatever is at its path by now.
fn inside(there: &fs::File) -> PathBuf {
    format!("/proc/self/fd/{}", there.as_raw_fd()).into()
}

impl Drop for Folder {
    fn drop(&mut self) {
        // One without our socket is not known again: where it cannot be looked into, for want of a descriptor, it goes if it is empty.
        if !self.clear().unwrap_or(self.socket.is_none()) {
            // The socket stays as well, by which it is known again.
            self.socket.take().into_iter().for_each(SocketFile::leave);
            return;
        }
        self.socket = None;
        let same = |meta: fs::Metadata| {
            self.there.metadata().is_ok_and(|there| unix::identity(&there) == unix::identity(&meta))
        };
        if fs::symlink_metadata(&self.path).is_ok_and(same) {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// A place for a folder, which goes with all that is in it.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let place = std::env::temp_dir().join(format!("vswitch-folder-{}-{name}", std::process::id()));
            fs::create_dir(&place).unwrap();
            Place(place.join("f"))
        }

        fn open(&self, mode: u32) -> Result<(OwnedFd, SocketFolder)> {
            SocketFolder::open(&self.0, "ctl", mode)
        }

        fn refused(&self) -> String {
            self.open(0o660).unwrap_err().to_string()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = self.0.parent().map(fs::remove_dir_all);
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn who_may_connect_may_enter() {
        let place = Place::new("modes");
        for (asked, of_folder) in [(0o660, 0o1770), (0o600, 0o1700), (0o666, 0o1777), (0o644, 0o1700)] {
            let _folder = place.open(asked).unwrap();
            assert_eq!((mode(&place.0), mode(&place.0.join("ctl"))), (of_folder, asked), "{asked:o}");
        }
        assert!(!place.0.exists());
    }

    #[test]
    fn sockets_of_others_go_with_it() {
        let place = Place::new("left");
        let folder = place.open(0o660).unwrap();
        let _theirs = UnixDatagram::bind(place.0.join(".00001-00000")).unwrap();
        drop(folder);
        assert!(!place.0.exists());
    }

    #[test]
    fn it_goes_although_sockets_vanish_meanwhile() {
        let place = Place::new("vanish");
        let folder = place.open(0o660).unwrap();
        let names: Vec<PathBuf> = (0..LEFT - 1).map(|number| place.0.join(number.to_string())).collect();
        names.iter().for_each(|name| drop(UnixDatagram::bind(name).unwrap()));
        std::thread::scope(|scope| {
            scope.spawn(|| names.iter().for_each(|name| drop(fs::remove_file(name))));
            drop(folder);
        });
        assert!(!place.0.exists());
    }

    #[test]
    fn what_a_killed_one_left_is_taken_over() {
        let place = Place::new("killed");
        let (listener, folder) = place.open(0o666).unwrap();
        drop(listener);
        std::mem::forget(folder);
        fs::write(place.0.join("file"), "somebody's").unwrap();
        let folder = place.open(0o600).unwrap();
        assert_eq!(mode(&place.0), 0o1700);
        // What is not a socket stays, and does not keep the next one out.
        drop(folder);
        assert_eq!(mode(&place.0), 0o700);
        drop(place.open(0o600).unwrap());
        fs::remove_file(place.0.join("file")).unwrap();
        drop(place.open(0o600).unwrap());
        assert!(!place.0.exists());
    }

    #[test]
    fn what_is_somebody_elses_is_refused_and_left_alone() {
        let place = Place::new("others");
        let folder = place.open(0o660).unwrap();
        assert!(place.refused().contains("another program has the socket"), "{}", place.refused());
        assert_eq!(mode(&place.0), 0o1770, "of one that is used");
        drop(folder);

        fs::create_dir(&place.0).unwrap();
        fs::set_permissions(&place.0, fs::Permissions::from_mode(0o755)).unwrap();
        for empty in [true, false] {
            if !empty {
                fs::write(place.0.join("file"), "somebody's").unwrap();
            }
            assert!(place.refused().contains("that no vswitchd left: remove it"), "{}", place.refused());
            assert_eq!(mode(&place.0), 0o755, "empty: {empty}");
        }
        if std::os::unix::fs::chown(&place.0, Some(4711), None).is_ok() {
            assert!(place.refused().contains("is a folder of user 4711"), "{}", place.refused());
        }
        fs::remove_dir_all(&place.0).unwrap();

        std::os::unix::fs::symlink("/tmp", &place.0).unwrap();
        assert!(place.refused().contains("is not a folder"), "{}", place.refused());
    }
}
