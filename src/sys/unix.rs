//! Unix sockets with a file: made without a moment in which the wrong people reach them, replaced when nobody is behind them,
//! removed with their owner.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fs, mem};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::{Mode, fchmod};

pub use nix::sys::socket::SockType;

use super::{Error, Result};

/// Longest path of a socket in bytes: `sun_path` less its NUL.
pub const PATH_MAX_BYTES: usize = 107;
/// Peers that wait to be accepted, at most.
const BACKLOG: i32 = 128;

/// A socket's file, which goes when this is dropped, if it is still the one that was made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|there| identity(&there) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(meta: &fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// Refuses what cannot be a socket's path.
///
/// # Errors
/// `InvalidInput`, with the rule that was broken.
pub fn check_path(path: &Path) -> Result<()> {
    let bytes = path.as_os_str().as_encoded_bytes();
    let refuse = |why: &str| {
        let what =
            format!("'{}' is not a path for a socket: {why}", path.display().to_string().escape_debug());
        Err(Error::refused(io::ErrorKind::InvalidInput, what))
    };
    if bytes.is_empty() {
        refuse("it is empty")
    } else if bytes.contains(&0) {
        refuse("it has a NUL byte")
    } else if bytes.len() > PATH_MAX_BYTES {
        refuse(&format!("it is longer than {PATH_MAX_BYTES} bytes; choose a shorter folder"))
    } else {
        Ok(())
    }
}

/// A non-blocking socket bound to `path`, whose file has this mode from the first moment; one of type `Stream` listens. A file that a
/// program left which ended is replaced.
///
/// # Errors
/// Somebody else's socket or another file is there, or the kernel refused.
pub fn bind_at(path: &Path, kind: SockType, mode: u32) -> Result<(OwnedFd, SocketFile)> {
    check_path(path)?;
    remove_stale(path, kind)?;
    let cannot = |source: io::Error| Error::new(format!("cannot make the socket {}", path.display()), source);
    let fd = unbound(kind).map_err(|errno| cannot(errno.into()))?;
    let bound = || -> io::Result<SocketFile> {
        // The mode of the unbound socket becomes the file's.
        fchmod(&fd, Mode::from_bits_truncate(mode))?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        let file = SocketFile { path: path.to_owned(), identity: identity(&fs::symlink_metadata(path)?) };
        // A strict umask took bits away from it.
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        if kind == SockType::Stream {
            listen(&fd, Backlog::new(BACKLOG)?)?;
        }
        Ok(file)
    };
    let file = bound().map_err(cannot)?;
    Ok((fd, file))
}

fn unbound(kind: SockType) -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

/// Connects to the socket at `path`, without waiting.
///
/// # Errors
/// `WouldBlock`: too many wait to be accepted there. Else the kernel's answer.
pub fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let fd = unbound(SockType::Stream)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// Removes the socket of a program that is gone; refuses to remove anything else.
fn remove_stale(path: &Path, kind: SockType) -> Result<()> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
    let refuse = |what| Err(Error::refused(io::ErrorKind::AlreadyExists, what));
    if !meta.file_type().is_socket() {
        return refuse(format!(
            "{} exists and is not a socket: remove it, or choose another path",
            path.display()
        ));
    }
    // Only a refused connection says that nobody is behind it. Without blocking, because somebody whose queue is full would keep
    // us waiting.
    let tried = unbound(kind).and_then(|fd| connect(fd.as_raw_fd(), &UnixAddr::new(path)?));
    if tried != Err(Errno::ECONNREFUSED) {
        return refuse(format!(
            "another program has the socket {}: stop it, or choose another path",
            path.display()
        ));
    }
    fs::remove_file(path).map_err(Error::on(|| format!("cannot remove the stale socket {}", path.display())))
}

/// What sendmmsg(2) and sendto(2) want of a peer's path.
#[derive(Clone, Copy)]
pub struct PeerAddress(UnixAddr);

impl std::fmt::Debug for PeerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PeerAddress({:?})", self.0.path())
    }
}

impl PeerAddress {
    /// The socket at `path`, which need not exist.
    ///
    /// # Errors
    /// It is not a path for a socket.
    pub fn new(path: &Path) -> Result<PeerAddress> {
        check_path(path)?;
        UnixAddr::new(path).map(PeerAddress).map_err(Error::on(|| path.display().to_string()))
    }
}

/// Sends one datagram made of `slices`; `None` is a queue without room.
///
/// # Errors
/// The kernel's answer: `ECONNREFUSED` or `ENOENT` where nobody is behind the path.
#[inline]
pub fn send_to(
    fd: BorrowedFd<'_>,
    slices: &[io::IoSlice<'_>],
    to: &PeerAddress,
) -> io::Result<Option<usize>> {
    use nix::sys::socket::SockaddrLike;
    // SAFETY: msghdr is plain data for which zeros are valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = to.0.as_ptr().cast_mut().cast();
    message.msg_namelen = to.0.len();
    // IoSlice is guaranteed to have the layout of iovec, and the kernel only reads.
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len() as _;
    send(fd, &message)
}

/// Sends bytes of a stream from `slices`; how many, `None` is a queue without room. No SIGPIPE.
///
/// # Errors
/// The kernel's answer: `EPIPE` or `ECONNRESET` where the peer has gone.
#[inline]
pub fn send_stream(fd: BorrowedFd<'_>, slices: &[io::IoSlice<'_>]) -> io::Result<Option<usize>> {
    // SAFETY: msghdr is plain data for which zeros are valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len() as _;
    send(fd, &message)
}

#[inline]
fn send(fd: BorrowedFd<'_>, message: &libc::msghdr) -> io::Result<Option<usize>> {
    // SAFETY: every pointer in the message is to a live buffer of the stated length; the callers made it so.
    let n = unsafe { libc::sendmsg(fd.as_raw_fd(), message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if n >= 0 { Ok(Some(n.cast_unsigned())) } else { super::would_block(io::Error::last_os_error()) }
}

/// Reads a datagram into `buffer`: its length, which is more than the buffer's if it was cut. `None` when none waits.
///
/// # Errors
/// The kernel's answer.
#[inline]
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: the pointer and length are those of a live, exclusively borrowed buffer.
    let n = unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
    if n >= 0 { Ok(Some(n.cast_unsigned())) } else { super::would_block(io::Error::last_os_error()) }
}

/// Lets so many bytes wait to be sent, or as many as the kernel allows.
pub fn set_send_buffer(fd: &OwnedFd, bytes: libc::c_int) {
    use super::packet::set;
    if set(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &bytes).is_err() {
        let _ = set(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &bytes);
    }
}

/// Whether the peer of a connection has closed it, or it broke.
#[must_use]
pub fn is_hung_up(fd: &impl AsFd) -> bool {
    let mut asked = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one live pollfd, and no waiting.
    let told = unsafe { libc::poll(&raw mut asked, 1, 0) };
    told > 0 && asked.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
}

/// What a worker's epoll watches for a connection: an epoll of its own, so that whichever worker was left with half a frame can ask for a
/// notice when there is room again, though another one reads.
#[derive(Debug)]
pub struct Notice(nix::sys::epoll::Epoll);

impl Notice {
    /// Tells when `fd` becomes readable.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn new(fd: &impl AsFd) -> io::Result<Notice> {
        use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(fd.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, 0))?;
        Ok(Notice(epoll))
    }

    /// Tells when it becomes writable, too, or no longer.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn of_room(&self, fd: &impl AsFd, wanted: bool) -> io::Result<()> {
        use nix::sys::epoll::{EpollEvent, EpollFlags};
        let always = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        let flags = if wanted { always | EpollFlags::EPOLLOUT } else { always };
        Ok(self.0.modify(fd.as_fd(), &mut EpollEvent::new(flags, 0))?)
    }
}

impl AsFd for Notice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}
