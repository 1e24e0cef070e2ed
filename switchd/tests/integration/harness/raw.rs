//! Frames in and out of an interface, to the byte.
//!
//! An AF_PACKET socket hears what arrives at an interface. The kernel takes the outermost VLAN tag out of the bytes and
//! tells it beside them (PACKET_AUXDATA); here it is put back, so what a test sees is what was on the wire.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::net::Ns;

/// Longest frame: a GSO one with header and tags.
const FRAME_MAX: usize = 65_536 + 64;
/// Room for bursts, in bytes.
const RECEIVE_BUFFER: libc::c_int = 64 << 20;

/// A frame that arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub bytes: Vec<u8>,
    /// The transport checksum is unfinished: a local sender's, kept so by every hop.
    pub unfinished: bool,
}

/// A station made of a packet socket on an interface. It ignores what others send out of it.
#[derive(Debug)]
pub struct Raw {
    fd: OwnedFd,
    pub ifname: String,
}

impl Raw {
    /// On `ifname` in `ns`, promiscuous.
    #[track_caller]
    pub fn open(ns: &Ns, ifname: &str) -> Raw {
        let opened = ns.enter(|| open(ifname));
        let fd = opened.unwrap_or_else(|error| panic!("packet socket on {ifname} in {}: {error}", ns.name));
        Raw { fd, ifname: ifname.to_owned() }
    }

    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and length are those of a slice.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        match usize::try_from(sent) {
            Ok(len) if len == frame.len() => Ok(()),
            Ok(len) => Err(io::Error::other(format!("sent {len} of {} bytes", frame.len()))),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// The next frame, if one is there.
    pub fn take(&self) -> Option<Seen> {
        loop {
            match receive(&self.fd) {
                // Told once when the interface goes down; what came before is still there.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                result => {
                    return result.unwrap_or_else(|error| panic!("receive on {}: {error}", self.ifname));
                }
            }
        }
    }

    /// The next frame, waiting for it.
    pub fn next(&self, wait: Duration) -> Option<Seen> {
        let end = Instant::now() + wait;
        loop {
            if let Some(seen) = self.take() {
                return Some(seen);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            wait_any(&[self], left);
        }
    }

    /// Everything that is there.
    pub fn drain(&self) -> Vec<Seen> {
        std::iter::from_fn(|| self.take()).collect()
    }

    /// Everything that comes within `wait` and for which `wanted` holds, until there are `enough`.
    pub fn collect(&self, enough: usize, wait: Duration, wanted: impl Fn(&[u8]) -> bool) -> Vec<Seen> {
        let end = Instant::now() + wait;
        let mut all = Vec::new();
        while all.len() < enough {
            match self.next(end.saturating_duration_since(Instant::now())) {
                Some(seen) if wanted(&seen.bytes) => all.push(seen),
                Some(_) => {}
                None => break,
            }
        }
        all
    }
}

/// Sleeps until one of the sockets has a frame, or `wait` is over.
pub fn wait_any(sockets: &[&Raw], wait: Duration) {
    let mut fds: Vec<libc::pollfd> = sockets
        .iter()
        .map(|raw| libc::pollfd { fd: raw.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    let millis = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX).max(1);
    // SAFETY: the pointer and length are those of the vector.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, millis) };
}

pub fn set<T>(fd: &impl AsRawFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and length are those of `value`, which is plain data.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Room for what arrives, in bytes: as much as asked for, or, in a user namespace, as net.core.rmem_max of the host allows.
pub fn room(socket: &impl AsRawFd, bytes: libc::c_int) -> io::Result<()> {
    match set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            set(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &bytes)
        }
        done => done,
    }
}

fn open(ifname: &str) -> io::Result<OwnedFd> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: plain call; the descriptor is owned below. Protocol 0: deaf until it is bound to the interface.
    let fd = unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let name = CString::new(ifname)?;
    // SAFETY: a C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    let on: libc::c_int = 1;
    set(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, &on)?;
    set(&fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &on)?;
    room(&fd, RECEIVE_BUFFER)?;
    let membership = libc::packet_mreq {
        mr_ifindex: index as libc::c_int,
        mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set(&fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
    // SAFETY: zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = all;
    address.sll_ifindex = index as libc::c_int;
    // SAFETY: the pointer and length are those of `address`.
    let bound = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if bound == 0 { Ok(fd) } else { Err(io::Error::last_os_error()) }
}

/// linux/if_packet.h; libc has it for some targets only.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const STATUS_CSUM_NOT_READY: u32 = 1 << 3;
const STATUS_VLAN_VALID: u32 = 1 << 4;
const STATUS_VLAN_TPID_VALID: u32 = 1 << 6;

fn receive(fd: &OwnedFd) -> io::Result<Option<Seen>> {
    thread_local! {
        static BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; FRAME_MAX]);
    }
    BUFFER.with_borrow_mut(|buffer| {
        let mut control = [0u64; 16];
        let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut slice;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: every pointer in `message` is to a local that outlives the call, with its length.
        let len = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, 0) };
        let Ok(len) = usize::try_from(len) else {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                _ => Err(error),
            };
        };
        assert_eq!(message.msg_flags & libc::MSG_TRUNC, 0, "a frame longer than any can be");
        let mut bytes = buffer[..len].to_vec();
        let mut unfinished = false;
        // SAFETY: `message` was filled by recvmsg; the macros stay inside its control buffer.
        let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        while !header.is_null() {
            // SAFETY: not null, so it points to a header inside the control buffer.
            let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
            if (level, kind) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
                // SAFETY: the kernel wrote a tpacket_auxdata there.
                let aux: libc::tpacket_auxdata =
                    unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
                unfinished = aux.tp_status & STATUS_CSUM_NOT_READY != 0;
                if aux.tp_status & STATUS_VLAN_VALID != 0 && bytes.len() >= 12 {
                    let tpid =
                        if aux.tp_status & STATUS_VLAN_TPID_VALID == 0 { 0x8100 } else { aux.tp_vlan_tpid };
                    let ([a, b], [c, d]) = (tpid.to_be_bytes(), aux.tp_vlan_tci.to_be_bytes());
                    bytes.splice(12..12, [a, b, c, d]);
                }
            }
            // SAFETY: as above.
            header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
        }
        Ok(Some(Seen { bytes, unfinished }))
    })
}
