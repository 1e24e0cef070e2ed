//! The folder that plugs connect to. A plug is any user's program whom the folder's mode lets in, and not trusted: its request may be late, in pieces
//! or nonsense, and may name a socket that is not its own. So several may be asking at the same time, each for a few seconds, and what they name has to
//! be in the folder and belong to the user that the kernel says has connected. (libvdeplug goes elsewhere with its socket only where it cannot write to
//! the folder.)

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::endpoint::{Connection, Watch};
use super::protocol::{self, ADDRESS_LEN, Bad, REQUEST_LEN};
use super::{CONTROL, DATA};
use crate::port::stream::endpoint::accept;
use crate::sys::folder::SocketFolder;
use crate::sys::peer::Peer;
use crate::sys::unix::{self, SocketFile};
use crate::sys::{self, Error};

/// Time for a request.
const REQUEST_MAX: Duration = Duration::from_secs(3);
/// Plugs that are asking at the same time, at most; who came first has to go.
const ASKING: usize = 16;

/// Where plugs connect.
#[derive(Debug)]
pub(super) struct Server {
    listener: OwnedFd,
    asking: VecDeque<Asking>,
    folder: SocketFolder,
    mode: u32,
}

/// Somebody who has connected, and what he has said.
#[derive(Debug)]
struct Asking {
    control: OwnedFd,
    bytes: [u8; REQUEST_LEN],
    len: usize,
    since: Instant,
}

/// A request that is whole, of whom, and the socket it names; or why there will be none.
pub(super) type Request = Result<(OwnedFd, PathBuf), Bad>;

impl Server {
    pub(super) fn open(folder: &Path, mode: u32, watch: Watch<'_>) -> Result<Server, Error> {
        let (listener, folder) = SocketFolder::open(folder, CONTROL, mode)?;
        watch.readable(&listener).map_err(|error| Error::new("cannot watch a socket", error))?;
        Ok(Server { listener, asking: VecDeque::new(), folder, mode })
    }

    pub(super) fn has_waiting(&self) -> bool {
        unix::is_readable(&self.listener) || !self.asking.is_empty()
    }

    /// The first plug that can have the port; the others that ask are counted as turned away.
    pub(super) fn next(
        &mut self,
        watch: Watch<'_>,
        now: Instant,
        refused: &mut u64,
    ) -> Result<Option<Connection>, Error> {
        let requests =
            self.requests(watch, now).map_err(|error| Error::new("cannot accept a plug", error))?;
        let mut found = Ok(None);
        for request in requests {
            if !matches!(found, Ok(Some(_))) {
                found = self.plug(request).map(Some);
                if found.is_ok() {
                    continue;
                }
            }
            *refused += 1;
        }
        found
    }

    fn plug(&self, request: Request) -> Result<Connection, Error> {
        let turned_away = |why: &dyn std::fmt::Display| {
            Error::refused(io::ErrorKind::InvalidData, format!("a plug was turned away: {why}"))
        };
        let (control, theirs) = request.map_err(|bad| turned_away(&bad))?;
        let peer = Peer::of(&control).map_err(|error| turned_away(&error))?;
        let uid = peer.uid.ok_or_else(|| turned_away(&"nobody can tell whose it is"))?;
        if unix::is_hung_up(&control) {
            return Err(turned_away(&"it has gone"));
        }
        // Wherever the plug sees the folder.
        let name = theirs.file_name().ok_or_else(|| turned_away(&Bad::Address))?;
        let socket = self.folder.connected(name, uid).map_err(|error| {
            let name = name.to_string_lossy();
            turned_away(&format_args!("user {uid}'s, cannot send to '{}': {error}", name.escape_debug()))
        })?;
        let (path, file) = self.bind(&socket)?;
        let answer = protocol::address_of(&path);
        match unix::send_connected(control.as_fd(), &[IoSlice::new(&answer)]) {
            Ok(Some(ADDRESS_LEN)) => {}
            Ok(_) => return Err(turned_away(&"it takes no answer")),
            Err(error) => return Err(turned_away(&error)),
        }
        Ok(Connection { control, socket: Arc::new(socket), _file: Some(file), said: 0 })
    }

    /// Gives the switch's socket a name, which plugs learn from the answer: one that nobody can take before where a plug has the one that everybody knows.
    fn bind(&self, socket: &OwnedFd) -> Result<(PathBuf, SocketFile), Error> {
        self.folder.bind(socket, DATA, self.mode).or_else(|_| {
            let random = RandomState::new().hash_one(0) >> 32;
            self.folder.bind(socket, &format!("{DATA}.{random:08x}"), self.mode)
        })
    }

    /// What those want whose request is whole, or none, or late. Who is still asking goes on.
    pub(super) fn requests(&mut self, watch: Watch<'_>, now: Instant) -> io::Result<Vec<Request>> {
        let mut requests = Vec::new();
        // Before anybody has to go for others, so that what he has said counts.
        self.hear(now, &mut requests);
        for _ in 0..ASKING {
            let control = match self.accept(watch) {
                Ok(Some(control)) => control,
                Ok(None) => break,
                Err(error) if requests.is_empty() => return Err(error),
                // Those who were heard come first; who waits is accepted with the next event.
                Err(_) => break,
            };
            if self.asking.len() == ASKING {
                self.asking.pop_front();
                requests.push(Err(Bad::Late));
            }
            self.asking.push_back(Asking { control, bytes: [0; REQUEST_LEN], len: 0, since: now });
        }
        self.hear(now, &mut requests);
        Ok(requests)
    }

    fn accept(&self, watch: Watch<'_>) -> io::Result<Option<OwnedFd>> {
        let control = accept(&self.listener)?;
        control.as_ref().map_or(Ok(()), |control| watch.control(control))?;
        Ok(control)
    }

    /// Reads what those have said who are asking.
    fn hear(&mut self, now: Instant, requests: &mut Vec<Request>) {
        for mut asking in std::mem::take(&mut self.asking) {
            match asking.request(now) {
                Ok(None) => self.asking.push_back(asking),
                Ok(Some(socket)) => requests.push(Ok((asking.control, socket))),
                Err(bad) => requests.push(Err(bad)),
            }
        }
    }
}

impl Asking {
    /// The socket that is named, if all of the request has come.
    fn request(&mut self, now: Instant) -> Result<Option<PathBuf>, Bad> {
        while let Some(spare) = self.bytes.get_mut(self.len..).filter(|spare| !spare.is_empty()) {
            match sys::read(self.control.as_fd(), spare) {
                Ok(Some(len @ 1..)) => self.len += len,
                Ok(None) => break,
                Ok(Some(0)) | Err(_) => return Err(Bad::Gone),
            }
        }
        match protocol::request(&self.bytes[..self.len])? {
            Some(path) => Ok(Some(path.to_owned())),
            None if now.duration_since(self.since) >= REQUEST_MAX => Err(Bad::Late),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use mio::{Poll, Token};

    use super::*;

    #[test]
    fn who_has_asked_is_heard_however_many_come_after() {
        let folder = std::env::temp_dir().join(format!("vswitch-vde-server-{}", std::process::id()));
        let poll = Poll::new().unwrap();
        let watch = Watch { registry: poll.registry(), token: Token(0) };
        let mut server = Server::open(&folder, 0o600, watch).unwrap();
        let connect = || UnixStream::connect(folder.join(CONTROL)).unwrap();
        let now = Instant::now();
        let mut plug = connect();
        assert!(server.requests(watch, now).unwrap().is_empty());
        plug.write_all(&protocol::request_for(&folder.join("p"), "")).unwrap();
        let _silent: Vec<UnixStream> = (0..ASKING + 1).map(|_| connect()).collect();
        let requests = server.requests(watch, now).unwrap();
        assert!(matches!(&requests[..], [Ok((_, path))] if *path == folder.join("p")), "{requests:?}");
        let requests = server.requests(watch, now).unwrap();
        assert!(matches!(&requests[..], [Err(Bad::Late)]), "{requests:?}");
    }
}
