//! Messages that the library refuses and front ends send.
//!
//! QEMU enables virtqueues before it has said which features its guest agreed to, but after it was told that there are protocol
//! features, which the protocol allows; the library insists on the former. It does not know how a guest's new place is announced (`SEND_RARP`), nor
//! what rings a front end when its log changed (`SET_LOG_FD`), which we take and do not use: it looks at the log anyway. So those are looked at
//! before the library gets to them, and read here.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use nix::sys::socket::{MsgFlags, recv};
use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::{Error, Result, VhostUserBackendReqHandlerMut};

use super::device::Device;
use crate::addr::MacAddr;

/// Request, flags and length of the payload; 32 bits each, in the machine's order.
const HEADER_LEN: usize = 12;
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const F_REPLY: u32 = 4;
const F_NEED_REPLY: u32 = 8;

const SET_LOG_FD: u32 = FrontendReq::SET_LOG_FD as u32;
const SET_VRING_ENABLE: u32 = FrontendReq::SET_VRING_ENABLE as u32;
const SEND_RARP: u32 = FrontendReq::SEND_RARP as u32;

/// Sees to the message that waits, if it is one of ours. `false`: it is the library's, and nothing was read of it.
pub(super) fn take(mut stream: &UnixStream, device: &Mutex<Device>) -> Result<bool> {
    let mut header = [0; HEADER_LEN];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_WAITALL;
    let seen =
        recv(stream.as_raw_fd(), &mut header, flags).map_err(|errno| Error::SocketError(errno.into()))?;
    let [request, flags, len] = words(&header);
    let expected = match request {
        SET_VRING_ENABLE | SEND_RARP => 8,
        SET_LOG_FD => 0,
        _ => return Ok(false),
    };
    if seen < HEADER_LEN {
        return Ok(false);
    }
    if flags & VERSION_MASK != VERSION || flags & F_REPLY != 0 || len != expected {
        return Err(Error::InvalidMessage);
    }
    let mut payload = [0; 8];
    // A descriptor that comes along is closed, because nobody asks for it.
    let to_read = &mut payload[..expected as usize];
    stream.read_exact(&mut header).and_then(|()| stream.read_exact(to_read)).map_err(gone)?;
    let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
    let [index, on] = words(&payload);
    let done = match (request, on) {
        (SEND_RARP, _) => {
            let [a, b, c, d, e, f, ..] = payload;
            device.send_rarp(MacAddr([a, b, c, d, e, f]))
        }
        (SET_VRING_ENABLE, 0 | 1) => device.set_vring_enable(index, on == 1),
        (SET_VRING_ENABLE, _) => Err(Error::InvalidParam),
        _ => Ok(()),
    };
    if flags & F_NEED_REPLY != 0 && device.acknowledges() {
        let mut reply = Vec::with_capacity(HEADER_LEN + 8);
        let header = [request, VERSION | F_REPLY, 8];
        header.iter().for_each(|word| reply.extend_from_slice(&word.to_ne_bytes()));
        reply.extend_from_slice(&u64::from(done.is_err()).to_ne_bytes());
        stream.write_all(&reply).map_err(gone)?;
    }
    done.map(|()| true)
}

fn gone(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::PartialMessage,
        _ => Error::SocketError(error),
    }
}

fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    words
}
