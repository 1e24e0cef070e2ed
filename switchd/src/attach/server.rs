//! The attach socket: everybody may open it, so nobody is trusted.
//!
//! Every conversation is bounded: [`LINE_MAX_BYTES`] of request, [`READ_TIMEOUT`] to send it, an answer that fits the socket's
//! buffer. Connections are taken as they come and never waited for; who has too many open is refused at once
//! ([`PER_USER`], [`PER_RULE`]), and those whom no rule names share [`STRANGERS`] places among them and a turn of their own, so that they are
//! in nobody's way but each other's. Requests are seen to one at a time, on a thread that may wait ([`Calls`]): changes to the switch are serialised
//! anyhow, and so the control API keeps its threads.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use vswitch::sys::peer::Peer;
use vswitch::sys::unix::is_hung_up;

use super::device;
use super::protocol::{Answer, LINE_MAX_BYTES, Request};
use crate::calls::Calls;
use crate::daemon::Daemon;

/// Connections that a user may have open at a time; QEMU needs one for a moment.
pub const PER_USER: usize = 32;
/// Connections of all users together whom one rule names: by subordinate user ids one person is thousands of users.
pub const PER_RULE: usize = 128;
/// Connections of those whom no rule names, together.
pub const STRANGERS: usize = 64;
/// How long a client may take to say what it wants.
pub const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes connections for as long as it is polled.
pub async fn serve(listener: UnixListener, daemon: Arc<Daemon>, calls: Calls) {
    let desk = Arc::new(Desk::default());
    loop {
        match listener.accept().await {
            Ok((stream, _)) => receive(stream, &daemon, &calls, &desk),
            Err(error) => {
                // EMFILE and the like: let connections end before the next try.
                tracing::warn!(%error, "cannot accept an attach connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        // A flood of connections must not keep this thread from the control API.
        tokio::task::yield_now().await;
    }
}

/// Who is there, and whose turn it is.
#[derive(Debug)]
struct Desk {
    places: Mutex<HashMap<Party, usize>>,
    users: Semaphore,
    strangers: Semaphore,
}

impl Default for Desk {
    fn default() -> Self {
        Desk { places: Mutex::default(), users: Semaphore::new(1), strangers: Semaphore::new(1) }
    }
}

/// Those who share places.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Party {
    User(u32),
    /// Users whom the rule of this number names.
    Rule(usize),
    Strangers,
}

impl Party {
    fn places(self) -> usize {
        match self {
            Party::User(_) => PER_USER,
            Party::Rule(_) => PER_RULE,
            Party::Strangers => STRANGERS,
        }
    }
}

/// A connection's place, with each of its parties; free again when it is dropped.
#[derive(Debug)]
struct Place {
    desk: Arc<Desk>,
    parties: Vec<Party>,
}

impl Desk {
    /// A place with all of them, or none.
    fn take(self: &Arc<Self>, parties: Vec<Party>) -> Option<Place> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |party: &Party| places.get(party).is_some_and(|&taken| taken >= party.places());
        if parties.iter().any(is_full) {
            return None;
        }
        parties.iter().for_each(|&party| *places.entry(party).or_default() += 1);
        Some(Place { desk: Arc::clone(self), parties })
    }
}

impl Place {
    fn turn(&self) -> &Semaphore {
        let is_strange = self.parties.contains(&Party::Strangers);
        if is_strange { &self.desk.strangers } else { &self.desk.users }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.desk.places.lock().unwrap_or_else(PoisonError::into_inner);
        for party in &self.parties {
            if let Some(taken) = places.get_mut(party) {
                *taken -= 1;
                if *taken == 0 {
                    places.remove(party);
                }
            }
        }
    }
}

/// Gives a connection its place, or none.
fn receive(stream: UnixStream, daemon: &Daemon, calls: &Calls, desk: &Arc<Desk>) {
    let Ok(peer) = Peer::of(&stream) else { return };
    let parties = match (peer.uid, daemon.rules().know(&peer)) {
        (Some(uid), Some(rule)) => {
            [Some(Party::User(uid)), rule.map(Party::Rule)].into_iter().flatten().collect()
        }
        _ => vec![Party::Strangers],
    };
    let Some(place) = desk.take(parties) else {
        let answer = Answer::refused("too many attach connections are open at once: try again");
        let _ = stream.try_write(&answer.to_line());
        return;
    };
    let calls = calls.clone();
    tokio::spawn(async move {
        if let Err(error) = converse(stream, &calls, &peer, &place).await {
            tracing::debug!(uid = peer.uid, pid = peer.pid, %error, "attach connection");
        }
    });
}

async fn converse(stream: UnixStream, calls: &Calls, peer: &Peer, place: &Place) -> io::Result<()> {
    let line = timeout(READ_TIMEOUT, read_line(&stream)).await;
    let outcome = match line {
        Err(_) => Err(format!("no request within {} s", READ_TIMEOUT.as_secs())),
        Ok(line) => match Request::parse(&line?) {
            Ok(request) => attach(calls, request, &stream, peer.clone(), place).await,
            Err(error) => Err(error),
        },
    };
    match outcome {
        Ok((port, fd)) => send(&stream, &Answer::attached(&port), Some(&fd)).await,
        Err(error) => {
            tracing::debug!(uid = peer.uid, pid = peer.pid, "attach refused: {error}");
            send(&stream, &Answer::refused(&error), None).await
        }
    }
}

/// A line without its end; whatever comes behind it is nobody's.
async fn read_line(stream: &UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(256);
    loop {
        let mut part = [0; 256];
        stream.readable().await?;
        let read = match stream.try_read(&mut part) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            read => read?,
        };
        line.extend_from_slice(&part[..read]);
        if let Some(end) = line.iter().position(|&byte| byte == b'\n') {
            line.truncate(end);
            return Ok(line);
        }
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line.len() >= LINE_MAX_BYTES {
            // Refused as what it is: no request.
            return Ok(line);
        }
    }
}

async fn attach(
    calls: &Calls,
    request: Request,
    stream: &UnixStream,
    peer: Peer,
    place: &Place,
) -> Result<(String, OwnedFd), String> {
    let turn = place.turn().acquire().await;
    if is_hung_up(stream) {
        // Whoever comes after need not wait for a device that nobody will hold.
        return Err("the client did not wait".to_owned());
    }
    let work = move |daemon: &Daemon| {
        let make = |name: &str, purpose: &_| device::make(name, request.use_vnet, purpose);
        daemon.attach(&request.bridge, &peer, &make)
    };
    let done = calls.run(work).await;
    drop(turn);
    match done {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(failed) => Err(failed.to_string()),
    }
}

/// Answers are shorter than any socket's buffer, so a client that does not read keeps nobody waiting.
async fn send(stream: &UnixStream, answer: &Answer, fd: Option<&OwnedFd>) -> io::Result<()> {
    let line = answer.to_line();
    let fds: Vec<_> = fd.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    let sending = stream.async_io(Interest::WRITABLE, || {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        Ok(sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&line)], rights, flags, None)?)
    });
    match timeout(READ_TIMEOUT, sending).await {
        Ok(Ok(sent)) if sent == line.len() => Ok(()),
        Ok(Ok(_)) => Err(io::ErrorKind::WriteZero.into()),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_for_each() {
        let desk = Arc::new(Desk::default());
        let user = |uid: u32| vec![Party::User(uid), Party::Rule(0)];
        let mut taken: Vec<_> = std::iter::from_fn(|| desk.take(user(5))).collect();
        assert_eq!(taken.len(), PER_USER);
        assert!(desk.take(user(6)).is_some(), "another user has places of its own");
        let strangers: Vec<_> = std::iter::from_fn(|| desk.take(vec![Party::Strangers])).collect();
        assert_eq!(strangers.len(), STRANGERS);
        taken.pop();
        assert!(desk.take(user(5)).is_some());
        // One person as many users.
        taken.extend((100..).map_while(|uid| desk.take(user(uid))));
        assert_eq!(taken.len(), PER_RULE);
        assert!(desk.take(vec![Party::User(7), Party::Rule(1)]).is_some(), "another rule has its own");
        assert!(desk.take(vec![Party::User(0)]).is_some(), "root needs no rule");
        drop((taken, strangers));
        assert!(desk.places.lock().unwrap().is_empty(), "nothing piles up");
    }
}
