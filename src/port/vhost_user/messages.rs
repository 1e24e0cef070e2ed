//! Messages that the library refuses and front ends send.
//!
//! QEMU enables virtqueues before it has said which features its guest agreed to, but after it was told that there are protocol
//! features, which the protocol allows; the library insists on the former. So that message is looked at before the library gets to it, and read here.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use nix::sys::socket::{MsgFlags, recv};
use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::{Error, Result, VhostUserBackendReqHandlerMut};

use super::device::Device;

/// Request, flags and length of the payload; 32 bits each, in the machine's order.
const HEADER_LEN: usize = 12;
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const F_REPLY: u32 = 4;
const F_NEED_REPLY: u32 = 8;

/// Sees to the message that waits, if it is one of ours. `false`: it is the library's, and nothing was read of it.
pub(super) fn take(mut stream: &UnixStream, device: &Mutex<Device>) -> Result<bool> {
    let mut header = [0; HEADER_LEN];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_WAITALL;
    let seen =
        recv(stream.as_raw_fd(), &mut header, flags).map_err(|errno| Error::SocketError(errno.into()))?;
    let [request, flags, len] = words(&header);
    if seen < HEADER_LEN || request != FrontendReq::SET_VRING_ENABLE as u32 {
        return Ok(false);
    }
    if flags & VERSION_MASK != VERSION || flags & F_REPLY != 0 || len != 8 {
        return Err(Error::InvalidMessage);
    }
    let mut payload = [0; 8];
    stream.read_exact(&mut header).and_then(|()| stream.read_exact(&mut payload)).map_err(gone)?;
    let [index, on] = words(&payload);
    let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
    let done = match on {
        0 | 1 => device.set_vring_enable(index, on == 1),
        _ => Err(Error::InvalidParam),
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
