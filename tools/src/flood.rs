//! Small frames at full offered load: one thread, one flow, `sendmmsg` on an AF_PACKET socket.
//!
//! Frames carry the local experimental EtherType 0x88B5 (IEEE Std 802, clause 9.2.3), so the receiver's stack drops
//! each of them at the same early point behind any switch, and nobody answers. `PACKET_QDISC_BYPASS` hands them to
//! the driver directly. The socket never sleeps: a frame that the driver refuses (ENOBUFS, EAGAIN) is counted and the
//! next is offered at once, since a sender that waits politely would hide what the switch loses.
//!
//! The send buffer is raised because frames that wait in a veth's backlog are charged to the sender; with the default
//! 208 KiB it would be the sender's buffer that is measured.

use std::ffi::{c_int, c_uint};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::args::Args;

/// Local experimental EtherType 1.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// Bytes of frames in flight that the socket may hold.
const SEND_BUFFER_BYTES: c_int = 8 << 20;

/// What became of the frames offered.
#[derive(Clone, Copy, Default, Debug)]
struct Tally {
    accepted: u64,
    refused: u64,
}

/// Offers frames for `--seconds`.
pub(crate) fn run(args: &Args) -> Result<String, String> {
    let dev: String = args.need("dev")?;
    let interval = args.seconds("seconds", None)?;
    let batch: usize = args.or("batch", 64)?;
    let size: usize = args.or("size", 60)?;
    if !(60..=1514).contains(&size) || !(1..=1024).contains(&batch) {
        return Err("--size is 60 to 1514 and --batch 1 to 1024".to_owned());
    }
    let frame = frame(mac(args, "dst")?, mac(args, "src")?, size);
    let socket = open(&dev).map_err(|e| format!("packet socket on {dev}: {e}"))?;

    let start = Instant::now();
    let tally = flood(socket.as_raw_fd(), &frame, batch, start, interval)
        .map_err(|e| format!("sendmmsg on {dev}: {e}"))?;
    Ok(format!(
        "{{\"accepted\": {}, \"refused\": {}, \"seconds\": {:.6}}}",
        tally.accepted,
        tally.refused,
        start.elapsed().as_secs_f64()
    ))
}

/// Reads six colon-separated octets.
fn mac(args: &Args, key: &str) -> Result<[u8; 6], String> {
    let text: String = args.need(key)?;
    let octets: Option<Vec<u8>> =
        text.split(':').map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2)).collect();
    octets
        .and_then(|octets| octets.try_into().ok())
        .ok_or_else(|| format!("--{key}: {text:?} is not a MAC address"))
}

fn frame(dst: [u8; 6], src: [u8; 6], size: usize) -> Vec<u8> {
    let mut frame = [&dst[..], &src[..], &ETHERTYPE[..]].concat();
    frame.resize(size, 0);
    frame
}

/// A transmit-only packet socket: protocol 0 receives nothing.
#[allow(clippy::cast_possible_truncation)] // constants and sizes of C structs
fn open(dev: &str) -> io::Result<Socket> {
    let ifindex = nix::net::if_::if_nametoindex(dev)?;
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER_BYTES)?;
    let ifindex = c_int::try_from(ifindex).map_err(io::Error::other)?;
    // SAFETY: the closure fills a sockaddr_ll, which fits a sockaddr_storage and has no invalid bit patterns, and
    // gives its length; the storage arrives zeroed, so fields left out are zero.
    let (_, addr) = unsafe {
        SockAddr::try_init(|storage, len| {
            let link = storage.cast::<libc::sockaddr_ll>();
            (*link).sll_family = libc::AF_PACKET as libc::sa_family_t;
            (*link).sll_ifindex = ifindex;
            *len = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    socket.bind(&addr)?;
    Ok(socket)
}

#[allow(clippy::cast_possible_truncation)] // constants and sizes of C structs
fn set_option(socket: &Socket, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which the kernel only reads during the call.
    let code = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            ptr::from_ref(&value).cast(),
            mem::size_of::<c_int>() as libc::socklen_t,
        )
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Offers batches of the same frame until `interval` has passed since `start`.
fn flood(fd: RawFd, frame: &[u8], batch: usize, start: Instant, interval: Duration) -> io::Result<Tally> {
    let mut slice = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
    // SAFETY: mmsghdr is a plain C struct for which all zeroes mean "no address, no data, no control".
    let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
    message.msg_hdr.msg_iov = &raw mut slice;
    message.msg_hdr.msg_iovlen = 1;
    let mut messages = vec![message; batch];
    let count = c_uint::try_from(batch).map_err(io::Error::other)?;

    let mut tally = Tally::default();
    while start.elapsed() < interval {
        // SAFETY: `messages` holds `count` headers whose one iovec, `slice`, describes `frame`; all three outlive the
        // call, and the kernel writes to nothing but the headers' msg_len.
        let sent = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
        match u64::try_from(sent) {
            Ok(sent) => tally.accepted += sent,
            Err(_) => {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    // The first frame of the batch was refused; a refusal further on ends a batch early instead, and
                    // shows up here with the next one.
                    Some(libc::ENOBUFS | libc::EAGAIN | libc::EINTR) => tally.refused += 1,
                    _ => return Err(error),
                }
            }
        }
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Args {
        Args::parse(text.split_whitespace().map(str::to_owned)).unwrap()
    }

    #[test]
    fn a_frame_is_addresses_type_and_padding() {
        let frame = frame([1; 6], [2; 6], 60);
        assert_eq!(frame[..14], [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0x88, 0xb5]);
        assert_eq!(frame.len(), 60);
        assert!(frame[14..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn addresses_are_six_octets() {
        let good = args("--dst 02:00:00:00:0a:ff");
        assert_eq!(mac(&good, "dst").unwrap(), [2, 0, 0, 0, 10, 255]);
        for bad in ["02:00:00:00:00", "02:00:00:00:00:00:00", "2:0:0:0:0:0", "02-00-00-00-00-00"] {
            assert!(mac(&args(&format!("--dst {bad}")), "dst").is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_outside_ethernet_are_refused() {
        let text = "--dev lo --src 02:00:00:00:00:01 --dst 02:00:00:00:00:02 --seconds 0";
        for bad in ["--size 59", "--size 1515", "--batch 0"] {
            let error = run(&args(&format!("{text} {bad}"))).unwrap_err();
            assert!(error.contains("60 to 1514"), "{error}");
        }
    }
}
