//! Sockets of tunnels: UDP (`udp(7)`), many datagrams a call both ways, and GRE by raw sockets (`raw(7)`).
//!
//! Sending, `UDP_SEGMENT` has the kernel cut one call's bytes into datagrams of equal length; they cross its stack as one.
//! Receiving, `UDP_GRO` has it hand over several of one flow in one piece. A raw socket knows neither: one packet a call.

// The kernel's constants and the sizes of its structures all fit the narrow types its interface has for them.
#![allow(clippy::cast_possible_truncation)]

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, SockRef, Socket, Type};

use super::packet::{get, set};

/// Bytes of socket queue each way.
const SOCKET_BUFFER_BYTES: libc::c_int = 4 << 20;
/// Longest payload of a datagram, and of all that one call sends.
pub const PAYLOAD_MAX: usize = 65_507;
/// Slices one call may send.
const SLICES_MAX: usize = 1024;
/// GRE, as a protocol of IP.
const GRE: libc::c_int = 47;
// linux/udp.h; not in libc.
const UDP_NO_CHECK6_TX: libc::c_int = 101;
const UDP_NO_CHECK6_RX: libc::c_int = 102;

/// What tunnels' packets travel in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    /// UDP.
    Udp,
    /// GRE straight in IP.
    Gre,
}

/// What sockets that send are like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sending {
    /// Routers must not cut the packets ("don't fragment"), nor this host.
    pub whole: bool,
    /// With a UDP checksum.
    pub csum: bool,
    /// Time to live or hop limit, if not the kernel's choice.
    pub ttl: Option<u8>,
}

/// One socket.
#[derive(Debug)]
pub struct UnderlaySocket {
    fd: OwnedFd,
    transport: Transport,
    ipv4: bool,
}

/// What one call brought.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams {
    /// Where they begin in the buffer: an IPv4 raw socket puts the IP header first.
    pub start: usize,
    /// Bytes in the buffer, all told.
    pub len: usize,
    /// Bytes of each but the last.
    pub size: usize,
    /// Who sent them.
    pub source: IpAddr,
    /// Type of service or traffic class of the packets they came in.
    pub tos: u8,
}

impl UnderlaySocket {
    /// A socket of the calling thread's namespace, with nothing set but what every one has.
    fn new(transport: Transport, local: IpAddr, dev: Option<&str>) -> io::Result<UnderlaySocket> {
        let (kind, protocol) = match transport {
            Transport::Udp => (Type::DGRAM, Protocol::UDP),
            Transport::Gre => (Type::RAW, Protocol::from(GRE)),
        };
        let socket = Socket::new(
            Domain::for_address(SocketAddr::new(local, 0)),
            kind.nonblocking().cloexec(),
            Some(protocol),
        )?;
        if local.is_ipv6() && transport == Transport::Udp {
            socket.set_only_v6(true)?;
        }
        if let Some(dev) = dev {
            socket.bind_device(Some(dev.as_bytes()))?;
        }
        let fd = OwnedFd::from(socket);
        // A raw socket hears all there is until it is bound; one that only sends wants nothing at any time.
        super::packet::attach_reject_all(&fd)?;
        for (forced, plain) in
            [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
        {
            if set(&fd, libc::SOL_SOCKET, forced, &SOCKET_BUFFER_BYTES).is_err() {
                set(&fd, libc::SOL_SOCKET, plain, &SOCKET_BUFFER_BYTES)?;
            }
        }
        Ok(UnderlaySocket { fd, transport, ipv4: local.is_ipv4() })
    }

    fn socket(&self) -> SockRef<'_> {
        SockRef::from(&self.fd)
    }

    /// Sets an option that IPv4 and IPv6 have each for itself.
    fn set_ip(&self, ipv4: libc::c_int, ipv6: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let (level, option) = if self.ipv4 { (libc::IPPROTO_IP, ipv4) } else { (libc::IPPROTO_IPV6, ipv6) };
        set(&self.fd, level, option, &value)
    }

    /// Receives what comes to `local` and, with UDP, `port`. Sockets of the same user may share both, if each is `shared`; every
    /// flow then goes to one of them.
    ///
    /// # Errors
    /// What the kernel refused: `EADDRNOTAVAIL` when the address is not this host's, `EADDRINUSE` when it is somebody else's,
    /// `ENODEV` when there is no such interface.
    pub fn receiver(
        transport: Transport,
        local: IpAddr,
        port: u16,
        dev: Option<&str>,
        shared: bool,
    ) -> io::Result<UnderlaySocket> {
        let socket = UnderlaySocket::new(transport, local, dev)?;
        socket.socket().set_reuse_port(shared)?;
        if transport == Transport::Udp {
            // Without (before Linux 5.0) a call brings one datagram.
            let _ = set(&socket.fd, libc::IPPROTO_UDP, libc::UDP_GRO, &1i32);
            if !socket.ipv4 {
                // RFC 6935: a tunnel may do without.
                set(&socket.fd, libc::IPPROTO_UDP, UDP_NO_CHECK6_RX, &1i32)?;
            }
        }
        socket.set_ip(libc::IP_RECVTOS, libc::IPV6_RECVTCLASS, 1)?;
        let port = if transport == Transport::Udp { port } else { 0 };
        socket.socket().bind(&SockAddr::from(SocketAddr::new(local, port)))?;
        set(&socket.fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0i32)?;
        Ok(socket)
    }

    /// Receives what comes to a multicast group on `dev`, or on the interface that has the address `local`.
    ///
    /// # Errors
    /// As [`UnderlaySocket::receiver`].
    pub fn group_receiver(
        group: IpAddr,
        port: u16,
        local: IpAddr,
        dev: Option<&str>,
    ) -> io::Result<UnderlaySocket> {
        let socket = UnderlaySocket::receiver(Transport::Udp, group, port, dev, true)?;
        let index = dev.map(index_of).transpose()?.or_else(|| index_with(local));
        match (group, local) {
            (IpAddr::V4(group), IpAddr::V4(local)) => {
                set(&socket.fd, libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, &0i32)?;
                let at = match index {
                    Some(index) => InterfaceIndexOrAddress::Index(index.get()),
                    None => InterfaceIndexOrAddress::Address(local),
                };
                socket.socket().join_multicast_v4_n(&group, &at)?;
            }
            (IpAddr::V6(group), _) => {
                socket.socket().join_multicast_v6(&group, index.map_or(0, NonZeroU32::get))?;
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        Ok(socket)
    }

    /// Sends from `local` and, with UDP, `port`; 0 is any.
    ///
    /// # Errors
    /// As [`UnderlaySocket::receiver`].
    pub fn sender(
        transport: Transport,
        local: IpAddr,
        dev: Option<&str>,
        port: u16,
        sending: &Sending,
    ) -> io::Result<UnderlaySocket> {
        let socket = UnderlaySocket::new(transport, local, dev)?;
        let discover = match (sending.whole, socket.ipv4) {
            (true, true) => libc::IP_PMTUDISC_DO,
            (true, false) => libc::IPV6_PMTUDISC_DO,
            (false, true) => libc::IP_PMTUDISC_DONT,
            (false, false) => libc::IPV6_PMTUDISC_DONT,
        };
        socket.set_ip(libc::IP_MTU_DISCOVER, libc::IPV6_MTU_DISCOVER, discover)?;
        socket.set_ip(libc::IP_MULTICAST_LOOP, libc::IPV6_MULTICAST_LOOP, 0)?;
        if let Some(ttl) = sending.ttl {
            socket.set_ip(libc::IP_TTL, libc::IPV6_UNICAST_HOPS, ttl.into())?;
            socket.set_ip(libc::IP_MULTICAST_TTL, libc::IPV6_MULTICAST_HOPS, ttl.into())?;
        }
        if let (false, Some(dev)) = (socket.ipv4, dev) {
            socket.socket().set_multicast_if_v6(index_of(dev)?.get())?;
        }
        // Whoever else of ours sends from the port drops what comes back, as this one does. A port that the kernel chooses is nobody's yet.
        socket.socket().set_reuse_port(port != 0)?;
        if transport == Transport::Udp && !sending.csum {
            match socket.ipv4 {
                true => set(&socket.fd, libc::SOL_SOCKET, libc::SO_NO_CHECK, &1i32)?,
                false => set(&socket.fd, libc::IPPROTO_UDP, UDP_NO_CHECK6_TX, &1i32)?,
            }
        }
        socket.socket().bind(&SockAddr::from(SocketAddr::new(local, port)))?;
        socket.socket().set_reuse_port(true)?;
        Ok(socket)
    }

    /// The UDP port that it is bound to; 0 with GRE.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn port(&self) -> io::Result<u16> {
        let address = self.socket().local_addr()?;
        let port = address.as_socket().map_or(0, |address| address.port());
        Ok(if self.transport == Transport::Udp { port } else { 0 })
    }

    /// Datagrams that the kernel dropped for want of room since the socket was made, modulo 2^32.
    #[must_use]
    pub fn dropped(&self) -> u32 {
        /// linux/sock_diag.h: SK_MEMINFO_DROPS, of SK_MEMINFO_VARS numbers.
        const DROPS: usize = 8;
        let mut numbers = [0u32; 9];
        get(&self.fd, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut numbers).map_or(0, |()| numbers[DROPS])
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
        let mut told = (0, 0, 0);
        // SAFETY: the address is written by the kernel, which says how much of it is valid; every pointer in the message is to a
        // live, exclusively borrowed buffer of the stated length.
        let received = unsafe {
            SockAddr::try_init(|storage, storage_len| {
                let mut message: libc::msghdr = mem::zeroed();
                message.msg_name = storage.cast();
                message.msg_namelen = *storage_len;
                message.msg_iov = &raw mut iov;
                message.msg_iovlen = 1;
                message.msg_control = control.0.as_mut_ptr().cast();
                message.msg_controllen = control.0.len();
                let n = libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT);
                if n < 0 {
                    return Err(io::Error::last_os_error());
                }
                *storage_len = message.msg_namelen;
                let (mut size, mut tos) = (n.cast_unsigned(), 0);
                let mut cmsg = libc::CMSG_FIRSTHDR(&raw const message);
                while !cmsg.is_null() {
                    let data = libc::CMSG_DATA(cmsg);
                    match ((*cmsg).cmsg_level, (*cmsg).cmsg_type) {
                        (libc::IPPROTO_UDP, libc::UDP_GRO) => {
                            let told = data.cast::<libc::c_int>().read_unaligned();
                            size = usize::try_from(told).unwrap_or(size);
                        }
                        (libc::IPPROTO_IP, libc::IP_TOS) => tos = data.read(),
                        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                            tos = data.cast::<libc::c_int>().read_unaligned() as u8;
                        }
                        _ => {}
                    }
                    cmsg = libc::CMSG_NXTHDR(&raw const message, cmsg);
                }
                told = (n.cast_unsigned(), size, tos);
                Ok(())
            })
        };
        let source = match received {
            Ok(((), address)) => address.as_socket().map(|address| address.ip()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let ((len, size, tos), Some(source)) = (told, source) else { return Ok(None) };
        let start = match (self.transport, self.ipv4, buffer.first()) {
            (Transport::Gre, true, Some(first)) => len.min(usize::from(first & 0xf) * 4),
            _ => 0,
        };
        Ok(Some(Datagrams { start, len, size: size.max(1), source, tos }))
    }

    /// Sends `slices` as datagrams of `size` bytes each, the last of what is left; as one if `size` is `None`.
    ///
    /// # Errors
    /// The kernel's answer. `EINVAL` or `EMSGSIZE` for `size`: they do not fit the path's MTU, and one by one they go in fragments.
    #[inline]
    pub fn send(
        &self,
        slices: &[io::IoSlice<'_>],
        size: Option<u16>,
        tos: u8,
        to: &SockAddr,
    ) -> io::Result<()> {
        #[repr(align(8))]
        struct Control([u8; 64]);
        let mut control = Control([0; 64]);
        // SAFETY: msghdr is plain data for which zeros are valid.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = to.as_ptr().cast_mut().cast();
        message.msg_namelen = to.len();
        // IoSlice is guaranteed to have the layout of iovec, and the kernel only reads.
        message.msg_iov = slices.as_ptr().cast_mut().cast();
        message.msg_iovlen = slices.len().min(SLICES_MAX) as _;
        if size.is_some() || tos != 0 {
            let class = if self.ipv4 {
                (libc::IPPROTO_IP, libc::IP_TOS)
            } else {
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
            };
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = control.0.len() as _;
            let mut used = 0;
            // SAFETY: the control buffer has room for two messages of up to four bytes of payload each, zeroed before.
            unsafe {
                let mut cmsg = libc::CMSG_FIRSTHDR(&raw const message);
                if let Some(size) = size {
                    (*cmsg).cmsg_level = libc::IPPROTO_UDP;
                    (*cmsg).cmsg_type = libc::UDP_SEGMENT;
                    (*cmsg).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
                    libc::CMSG_DATA(cmsg).cast::<u16>().write_unaligned(size);
                    used += libc::CMSG_SPACE(size_of::<u16>() as u32);
                    cmsg = libc::CMSG_NXTHDR(&raw const message, cmsg);
                }
                if tos != 0 {
                    ((*cmsg).cmsg_level, (*cmsg).cmsg_type) = class;
                    (*cmsg).cmsg_len = libc::CMSG_LEN(size_of::<libc::c_int>() as u32) as _;
                    libc::CMSG_DATA(cmsg).cast::<libc::c_int>().write_unaligned(tos.into());
                    used += libc::CMSG_SPACE(size_of::<libc::c_int>() as u32);
                }
            }
            message.msg_controllen = used as _;
        }
        // SAFETY: every pointer in the message is to a live buffer of the stated length.
        let n = unsafe { libc::sendmsg(self.fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
        if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for UnderlaySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Index of an interface of the calling thread's namespace.
///
/// # Errors
/// `ENODEV`: there is none.
pub fn index_of(dev: &str) -> io::Result<NonZeroU32> {
    let index = nix::net::if_::if_nametoindex(dev)?;
    NonZeroU32::new(index).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
}

/// Index of the interface that has an address, if one has.
#[must_use]
pub fn index_with(address: IpAddr) -> Option<NonZeroU32> {
    let has = |found: &nix::sys::socket::SockaddrStorage| {
        let v4 = found.as_sockaddr_in().map(|found| IpAddr::V4(found.ip()));
        v4.or_else(|| found.as_sockaddr_in6().map(|found| IpAddr::V6(found.ip()))) == Some(address)
    };
    let mut all = nix::ifaddrs::getifaddrs().ok()?;
    let found = all.find(|interface| interface.address.as_ref().is_some_and(has))?;
    index_of(&found.interface_name).ok()
}

/// Packets that were never put together again, for want of a fragment, since there is the calling thread's namespace.
///
/// # Errors
/// There is no such number.
pub fn reassembly_failures(ipv4: bool) -> io::Result<u64> {
    let (file, name) = if ipv4 { ("snmp", "ReasmFails") } else { ("snmp6", "Ip6ReasmFails") };
    let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))?;
    // IPv4: a line of names, then one of numbers. IPv6: a name and its number in each line.
    let mut lines = text.lines().map(str::split_ascii_whitespace);
    let number = if ipv4 {
        lines.next().zip(lines.next()).and_then(|(names, numbers)| {
            names.zip(numbers).find(|(other, _)| *other == name).map(|(_, number)| number)
        })
    } else {
        lines.find_map(|mut line| (line.next() == Some(name)).then(|| line.next()).flatten())
    };
    number.and_then(|number| number.parse().ok()).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// MTU of the way to `remote` from `local`, in bytes with the IP header, as the calling thread's namespace routes it now.
///
/// # Errors
/// There is no way.
pub fn path_mtu(local: IpAddr, remote: IpAddr, dev: Option<&str>) -> io::Result<u32> {
    let probe = UnderlaySocket::new(Transport::Udp, local, dev)?;
    if let (IpAddr::V6(_), Some(dev)) = (remote, dev) {
        probe.socket().set_multicast_if_v6(index_of(dev)?.get())?;
    }
    probe.socket().bind(&SockAddr::from(SocketAddr::new(local, 0)))?;
    probe.socket().connect(&SockAddr::from(SocketAddr::new(remote, 9)))?;
    let (level, option) = match remote {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mut mtu: libc::c_int = 0;
    get(&probe.fd, level, option, &mut mtu)?;
    // Loopback has more than a packet's length field can say.
    u32::try_from(mtu).map(|mtu| mtu.min(u16::MAX.into())).map_err(io::Error::other)
}
