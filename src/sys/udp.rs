//! UDP sockets of tunnels (`udp(7)`): many datagrams a call, both ways.
//!
//! Sending, `UDP_SEGMENT` has the kernel cut one call's bytes into datagrams of equal length; they cross its stack as one.
//! Receiving, `UDP_GRO` has it hand over several of one flow in one piece.

// The kernel's constants and the sizes of its structures all fit the narrow types its interface has for them.
#![allow(clippy::cast_possible_truncation)]

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::packet::set;

/// Bytes of socket queue each way.
const SOCKET_BUFFER_BYTES: libc::c_int = 4 << 20;
/// Longest payload of a datagram, and of all that one call sends.
pub const PAYLOAD_MAX: usize = 65_507;
/// Datagrams one call may send (`UDP_MAX_SEGMENTS`; 64 before Linux 6.9).
pub const SEGMENTS_MAX: usize = 64;
/// Slices one call may send.
const SLICES_MAX: usize = 1024;

/// One socket.
#[derive(Debug)]
pub struct UdpSocket(OwnedFd);

/// With whom a socket has its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// With others of the same user, which receive their share of the flows.
    Shared,
    /// With nobody.
    Alone,
    /// With nobody, and what arrives is dropped: nobody reads it.
    SendOnly,
}

/// What one call brought.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams {
    /// Bytes, all told.
    pub len: usize,
    /// Bytes of each but the last.
    pub size: usize,
    /// Who sent them.
    pub source: IpAddr,
}

impl UdpSocket {
    /// Bound to `address` in the calling thread's namespace.
    ///
    /// # Errors
    /// What the kernel refused: `EADDRNOTAVAIL` when the address is not this host's, `EADDRINUSE` when it is somebody else's.
    pub fn bind(address: SocketAddr, sharing: Sharing) -> io::Result<UdpSocket> {
        let kind = Type::DGRAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_port(sharing == Sharing::Shared)?;
        let fd = OwnedFd::from(socket);
        if sharing == Sharing::SendOnly {
            super::packet::attach_reject_all(&fd)?;
        }
        for (forced, plain) in
            [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
        {
            if set(&fd, libc::SOL_SOCKET, forced, &SOCKET_BUFFER_BYTES).is_err() {
                set(&fd, libc::SOL_SOCKET, plain, &SOCKET_BUFFER_BYTES)?;
            }
        }
        // What does not fit the path is cut by this host: DF is not set.
        match address {
            SocketAddr::V4(_) => set(&fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_DONT)?,
            SocketAddr::V6(_) => {
                set(&fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &libc::IPV6_PMTUDISC_DONT)?;
            }
        }
        socket2::SockRef::from(&fd).bind(&SockAddr::from(address))?;
        Ok(UdpSocket(fd))
    }

    /// Datagrams that the kernel dropped for want of room since the socket was made, modulo 2^32.
    #[must_use]
    pub fn dropped(&self) -> u32 {
        /// linux/sock_diag.h: SK_MEMINFO_DROPS, of SK_MEMINFO_VARS numbers.
        const DROPS: usize = 8;
        let mut numbers = [0u32; 9];
        super::packet::get(&self.0, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut numbers)
            .map_or(0, |()| numbers[DROPS])
    }

    /// Lets [`UdpSocket::receive`] bring several datagrams at once. Without (before Linux 5.0) it brings one.
    pub fn coalesce(&self) {
        let _ = set(&self.0, libc::IPPROTO_UDP, libc::UDP_GRO, &1i32);
    }

    /// Reads into `buffer` what waits; `None` when nothing does. What does not fit is lost, which 64 KiB never are.
    ///
    /// # Errors
    /// The kernel's answer.
    #[inline]
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Datagrams>> {
        #[repr(align(8))]
        struct Control([u8; 64]);
        let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut control = Control([0; 64]);
        let mut len = 0;
        let mut source = None;
        // SAFETY: the address is written by the kernel, which says how much of it is valid; every pointer in the message is to a
        // live, exclusively borrowed buffer of the stated length.
        let (received, address) = unsafe {
            SockAddr::try_init(|storage, storage_len| {
                let mut message: libc::msghdr = mem::zeroed();
                message.msg_name = storage.cast();
                message.msg_namelen = *storage_len;
                message.msg_iov = &raw mut iov;
                message.msg_iovlen = 1;
                message.msg_control = control.0.as_mut_ptr().cast();
                message.msg_controllen = control.0.len();
                let n = libc::recvmsg(self.0.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT);
                if n < 0 {
                    return Err(io::Error::last_os_error());
                }
                *storage_len = message.msg_namelen;
                let mut size = n.cast_unsigned();
                let mut cmsg = libc::CMSG_FIRSTHDR(&raw const message);
                while !cmsg.is_null() {
                    if (*cmsg).cmsg_level == libc::IPPROTO_UDP && (*cmsg).cmsg_type == libc::UDP_GRO {
                        let told = libc::CMSG_DATA(cmsg).cast::<libc::c_int>().read_unaligned();
                        size = usize::try_from(told).unwrap_or(size);
                    }
                    cmsg = libc::CMSG_NXTHDR(&raw const message, cmsg);
                }
                len = n.cast_unsigned();
                Ok(size)
            })
        }
        .map(|(size, address)| (Some(size), Some(address)))
        .or_else(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok((None, None)),
            _ => Err(error),
        })?;
        if let Some(address) = address {
            source = address.as_socket().map(|address| address.ip());
        }
        let (Some(size), Some(source)) = (received, source) else { return Ok(None) };
        Ok(Some(Datagrams { len, size: size.max(1), source }))
    }

    /// Sends `slices` as datagrams of `size` bytes each, the last of what is left; as one if `size` is `None`.
    ///
    /// # Errors
    /// The kernel's answer. `EINVAL` or `EMSGSIZE` for `size`: they do not fit the path's MTU, and one by one they go in fragments.
    #[inline]
    pub fn send(&self, slices: &[io::IoSlice<'_>], size: Option<u16>, to: &SockAddr) -> io::Result<()> {
        #[repr(align(8))]
        struct Control([u8; 32]);
        let mut control = Control([0; 32]);
        // SAFETY: msghdr is plain data for which zeros are valid.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = to.as_ptr().cast_mut().cast();
        message.msg_namelen = to.len();
        // IoSlice is guaranteed to have the layout of iovec, and the kernel only reads.
        message.msg_iov = slices.as_ptr().cast_mut().cast();
        message.msg_iovlen = slices.len().min(SLICES_MAX) as _;
        if let Some(size) = size {
            message.msg_control = control.0.as_mut_ptr().cast();
            // SAFETY: the control buffer has room for one message with two bytes of payload.
            unsafe {
                message.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as u32) as _;
                let cmsg = libc::CMSG_FIRSTHDR(&raw const message);
                (*cmsg).cmsg_level = libc::IPPROTO_UDP;
                (*cmsg).cmsg_type = libc::UDP_SEGMENT;
                (*cmsg).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
                libc::CMSG_DATA(cmsg).cast::<u16>().write_unaligned(size);
            }
        }
        // SAFETY: every pointer in the message is to a live buffer of the stated length.
        let n = unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
        if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// MTU of the way to `remote` from `local`, in bytes with the IP header, as the calling thread's namespace routes it now.
///
/// # Errors
/// There is no way.
pub fn path_mtu(local: IpAddr, remote: IpAddr) -> io::Result<u32> {
    let probe = std::net::UdpSocket::bind((local, 0))?;
    probe.connect((remote, 9))?;
    let (level, option) = match remote {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mut mtu: libc::c_int = 0;
    super::packet::get(&OwnedFd::from(probe), level, option, &mut mtu)?;
    // Loopback has more than a packet's length field can say.
    u32::try_from(mtu).map(|mtu| mtu.min(u16::MAX.into())).map_err(io::Error::other)
}
