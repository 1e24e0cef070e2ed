//! A guest as QEMU makes one: somebody else holds the fd of a tap, with a virtio_net header before each frame.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use super::net::Ns;

/// linux/if_tun.h
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;
/// TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6
const OFFLOADS: libc::c_ulong = 0x07;

/// Bytes of a `virtio_net_hdr`.
pub const HEADER: usize = 10;

/// The holder of a tap's fd.
#[derive(Debug)]
pub struct Guest {
    fd: File,
}

/// Tells the kernel what the guest takes.
fn offer(fd: &File) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes a number.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, OFFLOADS) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: libc::c_short,
    unused: [u8; 22],
}

impl Guest {
    /// Takes hold of the tap `ifname` in `ns`, which is made if it is not there.
    #[track_caller]
    pub fn attach(ns: &Ns, ifname: &str) -> Guest {
        let attached = ns.enter(|| -> io::Result<File> {
            let fd =
                File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
            let mut request =
                Request { name: [0; 16], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, unused: [0; 22] };
            request.name[..ifname.len()].copy_from_slice(ifname.as_bytes());
            // SAFETY: TUNSETIFF reads and writes a struct ifreq, which is 40 bytes as `Request` is.
            if unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &raw mut request) } != 0 {
                return Err(io::Error::last_os_error());
            }
            offer(&fd)?;
            Ok(fd)
        });
        Guest { fd: attached.unwrap_or_else(|error| panic!("tap {ifname} in {}: {error}", ns.name)) }
    }

    /// Holds a tap that somebody else made and handed over, as QEMU does with what its helper brings.
    pub fn holding(tap: OwnedFd) -> io::Result<Guest> {
        let fd = File::from(tap);
        // SAFETY: plain calls on our own descriptor.
        if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_RDWR | libc::O_NONBLOCK) } != 0 {
            return Err(io::Error::last_os_error());
        }
        offer(&fd)?;
        Ok(Guest { fd })
    }

    /// Name of the interface.
    pub fn ifname(&self) -> io::Result<String> {
        let mut request = Request { name: [0; 16], flags: 0, unused: [0; 22] };
        // SAFETY: TUNGETIFF writes a struct ifreq, which is 40 bytes as `Request` is.
        if unsafe { libc::ioctl(self.fd.as_raw_fd(), TUNGETIFF, &raw mut request) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let name = request.name.iter().take_while(|&&byte| byte != 0).copied().collect();
        String::from_utf8(name).map_err(io::Error::other)
    }

    /// Sends a frame with this header before it.
    pub fn send(&mut self, header: [u8; HEADER], frame: &[u8]) {
        let bytes = [&header, frame].concat();
        let written = self.fd.write(&bytes).expect("the tap takes it");
        assert_eq!(written, bytes.len());
    }

    /// The next frame for which `wanted` holds, with its header.
    pub fn next(
        &mut self,
        wait: Duration,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Option<([u8; HEADER], Vec<u8>)> {
        let end = Instant::now() + wait;
        let mut buffer = vec![0; 70_000];
        while Instant::now() < end {
            match self.fd.read(&mut buffer) {
                Ok(len) if wanted(&buffer[HEADER..len]) => {
                    let header = *buffer.first_chunk().expect("long enough");
                    return Some((header, buffer[HEADER..len].to_vec()));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(1))
                }
                Err(error) => panic!("read from the tap: {error}"),
            }
        }
        None
    }
}
