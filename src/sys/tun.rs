//! TAP devices with offloads and several queues (`Documentation/networking/tuntap.rst`).
//!
//! The namespace of a device is the one its first queue was opened in, names are looked up there, and the open fd
//! pins it. So all queues are opened in the switch's own namespace under a temporary name and the
//! device is moved and renamed afterwards; it then dies with the namespace it was moved to.

// The kernel's constants and the sizes of its structures all fit the narrow types its interface has for them.
#![allow(clippy::cast_possible_truncation)]

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::addr::MacAddr;
use crate::offload::Capabilities;

mod ioctl {
    //! The TUN driver's ioctls (linux/if_tun.h).
    #![allow(missing_docs)]
    nix::ioctl_write_int!(tun_set_iff, b'T', 202);
    nix::ioctl_write_int!(tun_set_owner, b'T', 204);
    nix::ioctl_write_int!(tun_set_offload, b'T', 208);
    // Declared with the size of an int, though it fills an ifreq.
    nix::ioctl_read_bad!(
        tun_get_iff,
        nix::request_code_read!(b'T', 210, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_read_bad!(
        tun_set_steering,
        nix::request_code_read!(b'T', 224, size_of::<libc::c_int>()),
        libc::c_int
    );
    nix::ioctl_read_bad!(get_hwaddr, libc::SIOCGIFHWADDR, libc::ifreq);
    nix::ioctl_write_ptr!(tun_set_sndbuf, b'T', 212, libc::c_int);
    nix::ioctl_write_ptr!(tun_set_vnet_hdr_size, b'T', 216, libc::c_int);
}
use ioctl::{
    get_hwaddr, tun_get_iff, tun_set_iff, tun_set_offload, tun_set_owner, tun_set_sndbuf, tun_set_steering,
    tun_set_vnet_hdr_size,
};

const TUN: &str = "/dev/net/tun";

/// Queues that the kernel gives a device at most (MAX_TAP_QUEUES).
pub const QUEUES_MAX: usize = 256;

/// Bytes of a macvtap queue that wait in the lower interface's queue, at most; the kernel's 208 KiB are three frames of 64 KiB.
const MACVTAP_SEND_BYTES: libc::c_int = 4 << 20;

/// The queues of a TAP device that this process created.
#[derive(Debug)]
pub struct Tap {
    /// One non-blocking fd a queue; reads and writes carry a `virtio_net_hdr` of [`VNET_HDR_LEN`](crate::offload::VNET_HDR_LEN) bytes.
    pub queues: Vec<OwnedFd>,
    /// What the kernel agreed to take from us (and to give us).
    pub capabilities: Capabilities,
}

/// Creates a TAP device called `name` (at most 15 bytes; `%d` is replaced by the kernel) with `queues` queues,
/// in the calling thread's namespace.
///
/// # Errors
/// The operation that the kernel refused, `EBUSY` when the name exists.
pub fn open(name: &str, queues: usize) -> io::Result<(Tap, String)> {
    let mut name = name.to_owned();
    let mut tap = Tap { queues: Vec::with_capacity(queues), capabilities: Capabilities::default() };
    for index in 0..queues.max(1) {
        let file = File::options().read(true).write(true).open(TUN).map_err(no_driver)?;
        let fd = OwnedFd::from(file);
        let exclusive = if index == 0 { libc::IFF_TUN_EXCL } else { 0 };
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE | exclusive;
        name = attach(&fd, &name, flags)?;
        if index == 0 {
            tap.capabilities = offer_offloads(&fd)?;
        }
        make_ours(&fd)?;
        tap.queues.push(fd);
    }
    if queues > 1 {
        steer(&tap);
    }
    Ok((tap, name))
}

/// Sets up the queues of a macvtap device with this name and address, each a descriptor of its character device, which takes the same calls as a TAP
/// (`drivers/net/tap.c`). The kernel shares flows out among them by itself.
///
/// # Errors
/// The operation that the kernel refused; the descriptors are another device's.
pub fn macvtap(name: &str, mac: MacAddr, queues: Vec<OwnedFd>) -> io::Result<Tap> {
    let mut capabilities = Capabilities::default();
    for fd in &queues {
        if identity(fd)? != (name.to_owned(), mac) {
            return Err(io::Error::other(
                "the character device is another interface's, in another namespace",
            ));
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        attach(fd, name, flags)?;
        capabilities = offer_offloads(fd)?;
        // SAFETY: the pointer is to a live int, as the ioctl wants.
        unsafe { tun_set_sndbuf(fd.as_raw_fd(), &MACVTAP_SEND_BYTES) }?;
        make_ours(fd)?;
    }
    Ok(Tap { queues, capabilities })
}

/// SIOCGIFHWADDR of a macvtap descriptor: whose it is.
fn identity(fd: &OwnedFd) -> io::Result<(String, MacAddr)> {
    // SAFETY: ifreq is plain data for which zeros are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to a live ifreq, as the ioctl wants.
    unsafe { get_hwaddr(fd.as_raw_fd(), &raw mut request) }?;
    // SAFETY: SIOCGIFHWADDR wrote the address member.
    let data = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data;
    Ok((name_in(&request)?, MacAddr(std::array::from_fn(|i| data[i] as u8))))
}

fn name_in(request: &libc::ifreq) -> io::Result<String> {
    let name = request.ifr_name.iter().take_while(|&&c| c != 0).map(|&c| c.cast_unsigned()).collect();
    String::from_utf8(name).map_err(io::Error::other)
}

/// Headers of the length that we read and write, and no waiting.
fn make_ours(fd: &OwnedFd) -> io::Result<()> {
    let header_len: libc::c_int = crate::offload::VNET_HDR_LEN as libc::c_int;
    // SAFETY: the pointer is to a live int, as the ioctl wants.
    unsafe { tun_set_vnet_hdr_size(fd.as_raw_fd(), &header_len) }?;
    super::set_nonblocking(fd)
}

/// Creates a single-queue TAP device for somebody else, the user `owner`, to hold: as QEMU expects it, blocking, with a
/// `virtio_net_hdr` if `vnet_hdr`, and without offloads until the holder offers them. It lives as long as the fd and its copies.
///
/// # Errors
/// What the kernel refused, `EBUSY` when the name exists.
pub fn lend(name: &str, vnet_hdr: bool, owner: u32) -> io::Result<OwnedFd> {
    let fd = OwnedFd::from(File::options().read(true).write(true).open(TUN).map_err(no_driver)?);
    let header = if vnet_hdr { libc::IFF_VNET_HDR } else { 0 };
    attach(&fd, name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_TUN_EXCL | header)?;
    // SAFETY: the ioctl takes a user id by value.
    unsafe { tun_set_owner(fd.as_raw_fd(), u64::from(owner) as _) }?;
    Ok(fd)
}

/// A bare "not found" would be taken for an interface or namespace that is yet to come.
fn no_driver(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::other(format!("there is no {TUN}; try: modprobe tun")),
        _ => error,
    }
}

/// Chooses the queue by flow. Where the kernel does not let us, its own way stays, which is right but slower.
fn steer(tap: &Tap) {
    if let (Ok(program), Some(queue)) = (super::steering::by_flow(), tap.queues.first()) {
        let mut fd: libc::c_int = program.as_raw_fd();
        // SAFETY: the pointer is to a live int; the kernel takes its own reference to the program.
        let _ = unsafe { tun_set_steering(queue.as_raw_fd(), &raw mut fd) };
    }
}

/// TUNSETIFF, and TUNGETIFF to see that the flags took; returns the device's name.
fn attach(fd: &OwnedFd, name: &str, flags: libc::c_int) -> io::Result<String> {
    // SAFETY: ifreq is plain data for which zeros are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // The kernel's field is a short; IFF_MULTI_QUEUE … IFF_VNET_HDR all fit its 16 bits.
    request.ifr_ifru.ifru_flags = (flags & 0xffff) as u16 as libc::c_short;
    // SAFETY: the pointer is to a live ifreq, as the ioctl wants.
    unsafe { tun_set_iff(fd.as_raw_fd(), &raw const request as _) }?;
    // SAFETY: as above; the kernel fills it.
    unsafe { tun_get_iff(fd.as_raw_fd(), &raw mut request) }?;
    // SAFETY: TUNGETIFF wrote the flags member.
    let got = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags } as u16);
    let wanted = flags & (libc::IFF_VNET_HDR | libc::IFF_TAP);
    if got & wanted != wanted {
        return Err(io::Error::other("the kernel ignored IFF_VNET_HDR"));
    }
    name_in(&request)
}

/// TUNSETOFFLOAD, probing downwards: USO came with Linux 6.2.
fn offer_offloads(fd: &OwnedFd) -> io::Result<Capabilities> {
    let tso = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let uso = tso | libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let set = |flags: libc::c_uint| {
        // SAFETY: the ioctl takes flags by value.
        unsafe { tun_set_offload(fd.as_raw_fd(), u64::from(flags) as _) }
    };
    if set(uso).is_ok() {
        return Ok(Capabilities { csum: true, tso4: true, tso6: true, uso: true });
    }
    set(tso)?;
    Ok(Capabilities { csum: true, tso4: true, tso6: true, uso: false })
}

/// Opens a plain single-queue TAP without offloads by the `tun-tap` crate.
///
/// # Errors
/// What the kernel refused.
pub fn open_plain(name: &str) -> io::Result<(OwnedFd, String)> {
    let device = tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tap).map_err(no_driver)?;
    // Before the duplicate: they share the open file, and with it the flag.
    // SAFETY: `device` keeps its descriptor open for this borrow.
    super::set_nonblocking(&unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) })?;
    // SAFETY: dup returns a new descriptor that nobody else owns, or -1.
    let copy: RawFd = unsafe { libc::fcntl(device.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: checked to be a valid descriptor; owned from here on. The device's own fd closes with `device`.
    Ok((unsafe { OwnedFd::from_raw_fd(copy) }, device.name().to_owned()))
}
