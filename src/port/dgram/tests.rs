//! A socket and those who send to it, without a switch.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::endpoint::Endpoint;
use super::*;
use crate::spec::DgramSpec;

/// A folder that goes.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("vswitch-dgram-{}-{name}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        Folder(folder)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn socket(&self, name: &str) -> UnixDatagram {
        UnixDatagram::bind(self.at(name)).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a peer takes who sends this: a frame told by its last byte.
fn frame(mark: u8) -> [u8; 60] {
    let mut frame = [2; 60];
    frame[59] = mark;
    frame
}

/// The marks of what a port receives that is opened around the socket now, and how many were others'.
fn received(connected: &Connected) -> (Vec<u8>, u64) {
    let (counters, mut batch) = (Counters::default(), Batch::default());
    let inbound = Inbound { counters: &counters, demux: None, worker: 0 };
    let mut queue = open(connected, 1500, 1).unwrap().queues.remove(0);
    while queue.receive(&mut batch, &inbound) != Received::Drained {}
    let marks = batch.frames.iter().map(|frame| batch.bytes(frame)[59]).collect();
    (marks, counters.drops(DropReason::UnknownRemote))
}

fn endpoint(path: &Path, peer: Option<PathBuf>) -> Endpoint {
    Endpoint::open(&DgramSpec { path: path.to_owned(), peer, mtu: 1500, mode: 0o600 }).unwrap()
}

#[test]
fn what_waited_is_the_first_senders_or_dropped() {
    let folder = Folder::new("first");
    let ours = folder.at("ours");
    let mut endpoint = endpoint(&ours, None);
    let [first, other, nameless] = [folder.socket("a"), folder.socket("b"), UnixDatagram::unbound().unwrap()];
    for (from, mark) in [(&first, 1), (&other, 2), (&first, 3), (&nameless, 4), (&other, 5), (&first, 6)] {
        from.send_to(&frame(mark), &ours).unwrap();
    }
    let connected = endpoint.next(Instant::now()).unwrap().unwrap();
    other.send_to(&frame(7), &ours).unwrap_err();
    first.send_to(&frame(8), &ours).unwrap();
    assert_eq!(received(&connected), (vec![1, 3, 6, 8], 3));
}

#[test]
fn what_waited_is_the_configured_peers_or_dropped() {
    let folder = Folder::new("given");
    let (ours, theirs) = (folder.at("ours"), folder.at("theirs"));
    let mut endpoint = endpoint(&ours, Some(theirs.clone()));
    // Made under another name and put in its place, as programs do that must not be found half ready.
    let [other, peer] = ["other", "new"].map(|name| folder.socket(name));
    other.send_to(&frame(1), &ours).unwrap();
    assert!(endpoint.next(Instant::now()).unwrap().is_none(), "nobody is there");
    std::fs::rename(folder.at("new"), &theirs).unwrap();
    peer.send_to(&frame(2), &ours).unwrap();
    other.send_to(&frame(3), &ours).unwrap();
    let connected = endpoint.next(Instant::now()).unwrap().unwrap();
    assert_eq!(received(&connected), (vec![2], 2));
}

/// Sends a frame as another user's program does; `None`: only root can.
fn send_as_another(from: &UnixDatagram, to: &Path, mark: u8) -> Option<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
    let other = libc::ucred { pid: std::process::id().cast_signed(), uid: 4711, gid: 4711 }.into();
    let (frame, to) = (frame(mark), UnixAddr::new(to).unwrap());
    let credentials = [ControlMessage::ScmCredentials(&other)];
    let sent = sendmsg(from.as_raw_fd(), &[IoSlice::new(&frame)], &credentials, MsgFlags::empty(), Some(&to));
    sent.ok().map(|_| ())
}

#[test]
fn what_waited_under_the_first_senders_name_is_his_alone() {
    let folder = Folder::new("forged");
    let ours = folder.at("ours");
    let mut endpoint = endpoint(&ours, None);
    let forger = folder.socket("a");
    std::fs::remove_file(folder.at("a")).unwrap();
    let first = folder.socket("a");
    first.send_to(&frame(1), &ours).unwrap();
    if send_as_another(&forger, &ours, 2).is_none() {
        return;
    }
    first.send_to(&frame(3), &ours).unwrap();
    let connected = endpoint.next(Instant::now()).unwrap().unwrap();
    assert_eq!(received(&connected), (vec![1, 3], 1));
}

#[test]
fn a_socket_without_a_peer_is_no_port() {
    let folder = Folder::new("nobody");
    let alone = Connected { socket: Arc::new(folder.socket("ours").into()), uid: None };
    assert_eq!(open(&alone, 1500, 1).unwrap_err().kind(), io::ErrorKind::NotConnected);
}

#[test]
fn what_comes_after_the_peer_has_gone_is_nobodys() {
    let folder = Folder::new("gone");
    let (ours, theirs) = (folder.at("ours"), folder.at("theirs"));
    let mut endpoint = endpoint(&ours, Some(theirs));
    let (other, peer) = (folder.socket("other"), folder.socket("theirs"));
    let connected = endpoint.next(Instant::now()).unwrap().unwrap();
    let (counters, mut batch) = (Counters::default(), Batch::default());
    let inbound = Inbound { counters: &counters, demux: None, worker: 0 };
    let mut queue = open(&connected, 1500, 1).unwrap().queues.remove(0);
    assert_eq!(queue.receive(&mut batch, &inbound), Received::Drained);
    drop(peer);
    other.send_to(&frame(1), &ours).unwrap_err();
    let bytes = [0; VNET_HDR_LEN + 60];
    let frames = [Outgoing::Whole { bytes: &bytes, segments: 1 }];
    assert_eq!(queue.transmit(&frames, &counters), Health::Gone);
    // The control side does not know yet.
    other.send_to(&frame(2), &ours).unwrap();
    assert_eq!(queue.receive(&mut batch, &inbound), Received::Gone);
    assert!(batch.frames.is_empty());
    assert_eq!(counters.drops(DropReason::UnknownRemote), 1);
}
