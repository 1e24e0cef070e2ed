//! The switch as a plug of another VDE switch, as libvdeplug does it: its datagram socket is made in that one's folder.
//!
//! The answer leads to a socket; it has to be in that folder and belong to the user that runs the other switch. Root's word is taken, because a vde_switch of root's gives the
//! socket to the plug's user.

use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::CONTROL;
use super::endpoint::{Connection, Watch};
use super::protocol::{self, ADDRESS_LEN, Bad};
use crate::sys::lookups::LookUp;
use crate::sys::peer::Peer;
use crate::sys::unix::{self, Descriptors, SockType, SocketFile};
use crate::sys::{self, Error};

/// Time for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Names for a socket that are tried.
const NAMES: u32 = 1000;

/// What plugs in, again and again.
#[derive(Debug)]
pub(super) struct Client {
    folder: PathBuf,
    mode: u32,
    asked: Option<Asked>,
    request: LookUp<Result<Asked, Error>>,
    connection: LookUp<io::Result<Connection>>,
}

/// A request that was sent.
#[derive(Debug)]
struct Asked {
    control: OwnedFd,
    socket: OwnedFd,
    _file: SocketFile,
    answer: [u8; ADDRESS_LEN],
    len: usize,
    since: Instant,
}

impl Client {
    pub(super) fn new(folder: &Path, mode: u32) -> Client {
        let (request, connection) = (LookUp::default(), LookUp::default());
        Client { folder: folder.to_owned(), mode, asked: None, request, connection }
    }

    /// The connection, when the switch has answered.
    pub(super) fn next(&mut self, watch: Watch<'_>, now: Instant) -> Result<Option<Connection>, Error> {
        if self.connection.is_pending() {
            let answer = self.connection.answer();
            return answer.and_then(Option::transpose).map_err(|error| self.cannot(error));
        }
        let mut asked = match self.asked.take() {
            Some(asked) => asked,
            None => {
                let (folder, mode) = (self.folder.clone(), self.mode);
                let asked = self.request.ask(move || Asked::new(&folder, mode));
                let Some(asked) = asked.map_err(|error| self.cannot(error))?.transpose()? else {
                    return Ok(None);
                };
                watch.control(&asked.control).map_err(|error| self.cannot(error))?;
                Asked { since: now, ..asked }
            }
        };
        if !asked.is_answered().map_err(|error| self.cannot(error))? {
            if now.duration_since(asked.since) > ANSWER_MAX {
                return Err(self.cannot(io::ErrorKind::TimedOut.into()));
            }
            self.asked = Some(asked);
            return Ok(None);
        }
        let folder = self.folder.clone();
        let connected = self.connection.ask(move || asked.connect(&folder));
        connected.and_then(Option::transpose).map_err(|error| self.cannot(error))
    }

    fn cannot(&self, error: io::Error) -> Error {
        cannot(&self.folder, error)
    }
}

fn cannot(folder: &Path, error: io::Error) -> Error {
    Error::new(format!("cannot plug into {}", folder.display()), error)
}

/// A socket in a folder, of a name that nobody has.
fn bind(folder: &Path, mode: u32) -> Result<(PathBuf, OwnedFd, SocketFile), Error> {
    let mut number = 0;
    loop {
        let path = folder.join(format!(".{:05}-{number:05}", std::process::id()));
        match unix::bind_at(&path, SockType::Datagram, mode, Descriptors::Refused) {
            Ok((fd, file)) => return Ok((path, fd, file)),
            // One of a program that is gone, too: another user's cannot be removed.
            Err(_) if number < NAMES && path.symlink_metadata().is_ok() => number += 1,
            Err(error) => return Err(error),
        }
    }
}

impl Asked {
    /// Asks the switch whose folder it is. That may take as long as the folder's file system does.
    fn new(folder: &Path, mode: u32) -> Result<Asked, Error> {
        let cannot = |error| cannot(folder, error);
        let control = unix::connect_to(&folder.join(CONTROL), Descriptors::Refused).map_err(cannot)?;
        let (path, socket, file) = bind(folder, mode)?;
        let request = protocol::request_for(&path, "vswitchd");
        match unix::send_connected(control.as_fd(), &[IoSlice::new(&request)]).map_err(cannot)? {
            Some(len) if len == request.len() => {}
            _ => return Err(cannot(io::ErrorKind::WriteZero.into())),
        }
        let since = Instant::now();
        Ok(Asked { control, socket, _file: file, answer: [0; ADDRESS_LEN], len: 0, since })
    }

    /// Reads of the answer what has come; whether that is all.
    fn is_answered(&mut self) -> io::Result<bool> {
        while let Some(spare) = self.answer.get_mut(self.len..).filter(|spare| !spare.is_empty()) {
            match sys::read(self.control.as_fd(), spare)? {
                Some(0) => return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the switch refused")),
                Some(len) => self.len += len,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn connect(self, folder: &Path) -> io::Result<Connection> {
        let bad = |bad| io::Error::new(io::ErrorKind::InvalidData, bad);
        let theirs = protocol::address(&self.answer).map_err(bad)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let name = theirs.file_name().ok_or_else(|| bad(Bad::Address))?;
        let whose = || io::Error::new(io::ErrorKind::PermissionDenied, "nobody can tell whose the switch is");
        let uid = Peer::of(&self.control)?.uid.ok_or_else(whose)?;
        let folder = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(folder)?;
        unix::connect_in(&self.socket, &folder, name, (uid != 0).then_some(uid))?;
        // The file goes: the other switch has found it, and could not remove its folder with it there. Both sockets keep their names.
        Ok(Connection { control: self.control, socket: Arc::new(self.socket), _file: None, said: 0 })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_name_that_somebody_has_is_left_to_him() {
        let folder = std::env::temp_dir().join(format!("vswitch-vde-client-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let name = |number: u32| folder.join(format!(".{:05}-{number:05}", std::process::id()));
        let _theirs = UnixDatagram::bind(name(0)).unwrap();
        // Not to be removed either.
        fs::create_dir(name(1)).unwrap();
        let bound = bind(&folder, 0o600).map(|(path, ..)| path);
        let without_folder = bind(&folder.join("none"), 0o600).map(|(path, ..)| path);
        let expected = name(2);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(bound.unwrap(), expected);
        assert!(without_folder.unwrap_err().to_string().contains("-00000"), "no other name is tried");
    }
}
