//! Interfaces, addresses and routes: a synchronous client of rtnetlink (RFC 3549, rtnetlink(7)).
//!
//! [`Netlink`] asks and changes, [`Monitor`] is told. Requests are built with `netlink-packet-route`. Answers are read
//! attribute by attribute, picking the few we use: decoding whole messages was rejected, because one attribute that
//! a newer kernel lays out differently would make an interface unreadable. The asynchronous `rtnetlink` crate was
//! rejected because a switch's control side has nothing else to do while the kernel answers, which it does at once.
//!
//! Invariants:
//! - A socket belongs for good to the namespace of the thread that opened it, and works from any thread. It also
//!   **pins** that namespace (see [`super::netns`]); keep one open elsewhere only while watching the name.
//! - One exchange at a time, behind a lock: request, then answers until the acknowledgement. An answer with an old
//!   sequence number (from an exchange that timed out) is skipped.
//! - Only datagrams from the kernel (port 0) are read.
//! - A request is one message, which the kernel carries out under its own lock: [`Netlink::add_veth`] makes both ends
//!   or none. [`Netlink::set_link`] is the exception: the kernel applies a change attribute by attribute and stops
//!   at the first that it refuses.
//!
//! Limits: one answer may have 64 KiB (statistics are asked to be left out, so that even NICs with hundreds of virtual
//! functions stay far below); an exchange takes ten seconds at most.

mod address;
mod link;
mod monitor;
mod peer;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::netns::run_in;
use super::{Error, Result};

pub use link::{Link, LinkChange, VethEnd};
pub use monitor::{LinkEvent, Monitor};

/// Largest answer read. The kernel's dumps come in pieces of at most 32 KiB.
const ANSWER_MAX_BYTES: usize = 64 * 1024;
/// Longest wait for one answer.
const ANSWER_TIMEOUT_SECS: i64 = 10;
/// A dump during which something changed is asked for again, so many times.
const DUMP_ATTEMPTS: usize = 5;
/// NLMSGERR_ATTR_MSG: the kernel's own words on what was wrong.
const ERROR_ATTR_MSG: u16 = 1;
/// Length of a netlink message header.
const HEADER_BYTES: usize = 16;

/// A connection to rtnetlink in one namespace.
#[derive(Debug)]
pub struct Netlink {
    conversation: Mutex<Conversation>,
}

/// Where the answers to a request end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// One acknowledgement, perhaps after an answer.
    Ack,
    /// A list.
    Dump,
}

/// Why a request came to nothing.
struct Refusal {
    /// The kernel's words, if it gave any.
    words: Option<String>,
    source: io::Error,
}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Self {
        Refusal { words: None, source }
    }
}

impl Refusal {
    /// `what`, then the kernel's words, then the error.
    fn on(self, what: impl Into<String>) -> Error {
        let what = what.into();
        match self.words {
            Some(words) => Error::new(format!("{what} ({words})"), self.source),
            None => Error::new(what, self.source),
        }
    }

    fn is_not_found(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::ENXIO))
    }
}

impl Netlink {
    /// Connects in namespace `ns`; `None` is that of the calling thread.
    ///
    /// # Errors
    /// The kernel's answer, for instance EPERM when entering `ns` without CAP_SYS_ADMIN.
    pub fn open_in(ns: Option<BorrowedFd<'_>>) -> Result<Netlink> {
        let conversation = run_in(ns, Conversation::open)
            .and_then(|opened| opened)
            .map_err(Error::on(|| "cannot open a netlink socket"))?;
        Ok(Netlink { conversation: Mutex::new(conversation) })
    }

    /// The namespace this connection is in.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN in that namespace.
    pub fn netns(&self) -> Result<OwnedFd> {
        let conversation = self.conversation.lock().unwrap_or_else(PoisonError::into_inner);
        netns_of_socket(conversation.socket.as_fd())
            .map_err(Error::on(|| "cannot find the namespace of a netlink socket"))
    }

    /// One change. `flags` are those beyond NLM_F_REQUEST and NLM_F_ACK.
    fn change(&self, message: RouteNetlinkMessage, flags: u16) -> std::result::Result<(), Refusal> {
        self.talk(message, flags, Expect::Ack, |_, _| {})
    }

    fn talk(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        expect: Expect,
        answer: impl FnMut(u16, &[u8]),
    ) -> std::result::Result<(), Refusal> {
        let mut conversation = self.conversation.lock().unwrap_or_else(PoisonError::into_inner);
        conversation.talk(message, flags, expect, answer)
    }

    /// A list, asked for again when the kernel says that it changed meanwhile.
    fn dump<T>(
        &self,
        message: &RouteNetlinkMessage,
        mut read: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> std::result::Result<Vec<T>, Refusal> {
        let mut items = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            items.clear();
            match self.talk(message.clone(), 0, Expect::Dump, |kind, body| items.extend(read(kind, body))) {
                Err(refusal) if refusal.source.raw_os_error() == Some(libc::EINTR) => {}
                answer => return answer.map(|()| items),
            }
        }
        // A list that never holds still: what was read last is as true as any.
        Ok(items)
    }
}

/// A socket and what is needed to match answers with requests.
#[derive(Debug)]
struct Conversation {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Conversation {
    fn open() -> io::Result<Conversation> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_TIMEOUT_SECS))?;
        // Both only make error messages better: words instead of numbers, and without our request quoted back.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        Ok(Conversation { socket, sequence: 0, buffer: Vec::with_capacity(ANSWER_MAX_BYTES) })
    }

    fn talk(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        expect: Expect,
        mut answer: impl FnMut(u16, &[u8]),
    ) -> std::result::Result<(), Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        let kind = if expect == Expect::Dump { NLM_F_DUMP } else { NLM_F_ACK };
        let bytes = encode(message, NLM_F_REQUEST | kind | flags, self.sequence);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        let mut interrupted = false;
        loop {
            receive(&self.socket, &mut self.buffer)?;
            for message in messages(&self.buffer) {
                if message.sequence_number() != self.sequence {
                    continue;
                }
                interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                match message.message_type() {
                    NLMSG_ERROR => return acknowledgement(message.flags(), message.payload()),
                    NLMSG_DONE if interrupted => return Err(io::Error::from_raw_os_error(libc::EINTR).into()),
                    NLMSG_DONE => return acknowledgement(message.flags(), message.payload()),
                    kind => answer(kind, message.payload()),
                }
            }
        }
    }
}

fn encode(message: RouteNetlinkMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Reads one datagram of the kernel's into `buffer`.
fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<()> {
    loop {
        buffer.clear();
        match socket.recv_from(buffer, libc::MSG_TRUNC) {
            Ok((_, from)) if from.port_number() != 0 => {}
            Ok((len, _)) if len > buffer.len() => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("an answer of {len} bytes")));
            }
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The messages in a datagram; ends at the first that is malformed.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(bytes).ok()?;
        let len = usize::try_from(message.length()).ok()?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Reads the body of NLMSG_ERROR or NLMSG_DONE: a negative errno, or 0. After it, if the flags say so, comes our
/// request (only its header when capped) and then attributes.
fn acknowledgement(flags: u16, body: &[u8]) -> std::result::Result<(), Refusal> {
    let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
    if code == 0 {
        return Ok(());
    }
    let source = io::Error::from_raw_os_error(code.saturating_neg());
    let mut words = None;
    if flags & NLM_F_ACK_TLVS != 0 && flags & NLM_F_CAPPED != 0 {
        each_attribute(body.get(4 + HEADER_BYTES..).unwrap_or_default(), |kind, value| {
            if kind == ERROR_ATTR_MSG {
                words = text(value);
            }
        });
    }
    Err(Refusal { words, source })
}

/// Calls `f` with the kind and the value of each attribute; ends at the first that is malformed.
fn each_attribute(bytes: &[u8], mut f: impl FnMut(u16, &[u8])) {
    for attribute in NlasIterator::new(bytes) {
        let Ok(attribute) = attribute else { return };
        f(attribute.kind(), attribute.value());
    }
}

/// A string attribute, without its NUL.
fn text(value: &[u8]) -> Option<String> {
    let value = value.strip_suffix(&[0]).unwrap_or(value);
    (!value.is_empty()).then(|| String::from_utf8_lossy(value).into_owned())
}

/// A 32-bit attribute.
fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// SIOCGSKNS: the namespace a socket is in.
fn netns_of_socket(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use std::os::fd::{AsRawFd, FromRawFd};
    const SIOCGSKNS: libc::Ioctl = 0x894c;
    // SAFETY: `socket` is open for the duration of the call, and SIOCGSKNS takes no argument.
    let fd = nix::errno::Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) })?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests;
