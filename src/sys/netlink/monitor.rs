//! Being told when interfaces come, change and go (RTNLGRP_LINK).
//!
//! Open the monitor first and read the interfaces then: what changes in between arrives as an event, and an event
//! about something known already does no harm. Events say what *is*, so applying one twice is applying it once.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};

use super::{ANSWER_MAX_BYTES, Link, messages, receive};
use crate::sys::netns::run_in;
use crate::sys::{Error, Result};

/// Events the kernel keeps for us while we are busy, in bytes: an event takes about 2 KiB of it.
const RECEIVE_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// What happened to an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkEvent {
    /// It exists, and is like this now. Not every event is about something that differs.
    Changed(Link),
    /// It does not exist in this namespace any more: removed, or moved to another one.
    Removed {
        /// The index it had.
        index: u32,
        /// The name it had.
        name: String,
    },
    /// Events were lost, for we were too slow: read everything anew.
    Overrun,
}

/// A subscription to the interfaces of one namespace, which it pins (see [`crate::sys::netns`]).
///
/// Non-blocking: poll it for reading (it is a level- or edge-triggered descriptor as any), then call
/// [`Monitor::next_event`] until it returns `None`.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
    pending: VecDeque<LinkEvent>,
}

impl Monitor {
    /// Subscribes in namespace `ns`; `None` is that of the calling thread.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn open_in(ns: Option<BorrowedFd<'_>>) -> Result<Monitor> {
        let socket = run_in(ns, subscribe)
            .and_then(|opened| opened)
            .map_err(Error::on(|| "cannot watch interfaces"))?;
        Ok(Monitor { socket, buffer: Vec::with_capacity(ANSWER_MAX_BYTES), pending: VecDeque::new() })
    }

    /// The next event, or `None` when there is none yet.
    ///
    /// # Errors
    /// The kernel's answer; the monitor is of no more use then.
    pub fn next_event(&mut self) -> Result<Option<LinkEvent>> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some(event));
            }
            match receive(&self.socket, &mut self.buffer) {
                Ok(()) => self.pending.extend(
                    messages(&self.buffer)
                        .filter_map(|message| read(message.message_type(), message.payload())),
                ),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Ok(Some(LinkEvent::Overrun));
                }
                Err(error) => return Err(Error::new("cannot read interface events", error)),
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn subscribe() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    // Without the privilege to exceed the limit, what the limit allows must do: an overrun is survived.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
        let _ = setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES);
    }
    socket.add_membership(libc::RTNLGRP_LINK)?;
    Ok(socket)
}

fn read(kind: u16, body: &[u8]) -> Option<LinkEvent> {
    match kind {
        libc::RTM_NEWLINK => Link::read(body).map(LinkEvent::Changed),
        libc::RTM_DELLINK => {
            Link::read(body).map(|link| LinkEvent::Removed { index: link.index, name: link.name })
        }
        _ => None,
    }
}
