//! Unix sockets with a file: made without a moment in which the wrong people reach them, replaced when nobody is behind them,
//! removed with their owner.

// The sizes of the kernel's structures all fit the narrow types its interface has for them.
#![allow(clippy::cast_possible_truncation)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fs, mem};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
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
        // The folder may be somebody else's, who may put a link there meanwhile: what is opened is what is looked at and changed.
        let there = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path)?;
        let meta = there.metadata()?;
        if !meta.file_type().is_socket() {
            return Err(io::Error::other("something else was put there"));
        }
        let file = SocketFile { path: path.to_owned(), identity: identity(&meta) };
        // A strict umask took bits away from it.
        let same = format!("/proc/self/fd/{}", there.as_raw_fd());
        fs::set_permissions(same, fs::Permissions::from_mode(mode))?;
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

/// Somebody's datagram socket.
#[derive(Debug)]
pub enum Remote {
    /// The socket of this file, which was there when it was looked up.
    File {
        /// Its path.
        path: PathBuf,
        /// The file itself. While it is open, its inode's number is no other file's.
        file: fs::File,
    },
    /// A name without a file (unix(7), "abstract").
    Name(Vec<u8>),
}

/// Connects a datagram socket, or connects it anew, to the socket at `path`, whatever program is behind it now. A link is not followed; where
/// `trusted` is false, none of the folders' either.
///
/// # Errors
/// `NotFound` or `ConnectionRefused`: nobody is there. Else the kernel's answer.
pub fn connect_datagrams(fd: &OwnedFd, path: &Path, trusted: bool) -> io::Result<Remote> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let links = if trusted { ResolveFlag::empty() } else { ResolveFlag::RESOLVE_NO_SYMLINKS };
    let there = openat2(AT_FDCWD, path, OpenHow::new().flags(flags).resolve(links))?;
    let file = fs::File::from(there);
    if !file.metadata()?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a socket"));
    }
    // The file that was looked at, and no other that is put there meanwhile.
    let same = format!("/proc/self/fd/{}", file.as_raw_fd());
    connect(fd.as_raw_fd(), &UnixAddr::new(same.as_str())?)?;
    Ok(Remote::File { path: path.to_owned(), file })
}

/// Connects a datagram socket to whoever sent what waits first, which goes on waiting. `None`: nothing waits.
///
/// # Errors
/// The sender cannot be sent to: it has no name, or none that leads to it from here.
pub fn connect_to_sender(fd: &OwnedFd) -> io::Result<Option<Remote>> {
    let sender = match peek_sender(fd.as_fd()) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        sender => sender?,
    };
    match (sender.path(), sender.as_abstract()) {
        (Some(path), _) if path.is_absolute() => connect_datagrams(fd, path, false).map(Some),
        (None, Some(name)) => {
            connect(fd.as_raw_fd(), &sender)?;
            Ok(Some(Remote::Name(name.to_vec())))
        }
        _ => Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "the sender has no address to answer to")),
    }
}

/// The address that the datagram which waits first was sent from.
fn peek_sender(fd: BorrowedFd<'_>) -> io::Result<UnixAddr> {
    use nix::sys::socket::SockaddrLike;
    // SAFETY: sockaddr_un is plain data for which zeros are valid.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: no data is asked for; the address and its length are live and writable.
    let n = unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            std::ptr::null_mut(),
            0,
            flags,
            (&raw mut address).cast(),
            &raw mut len,
        )
    };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel wrote `len` bytes of an AF_UNIX address.
    unsafe { UnixAddr::from_raw((&raw const address).cast(), Some(len)) }.ok_or_else(|| {
        io::Error::new(io::ErrorKind::AddrNotAvailable, "the sender has no address to answer to")
    })
}

/// Undoes a connection: anybody may send again.
pub fn disconnect(fd: &OwnedFd) {
    // SAFETY: sockaddr is plain data for which zeros are valid, AF_UNSPEC among them.
    let nobody: libc::sockaddr = unsafe { mem::zeroed() };
    let len = size_of_val(&nobody) as libc::socklen_t;
    // SAFETY: the address is live and as long as is said.
    let _ = unsafe { libc::connect(fd.as_raw_fd(), &raw const nobody, len) };
}

impl Remote {
    /// Whether the same socket is still there, with a program behind it.
    #[must_use]
    pub fn is_there(&self) -> bool {
        let tried = unbound(SockType::Datagram).map_err(io::Error::from).and_then(|probe| match self {
            Remote::File { path, file } => {
                if identity(&fs::symlink_metadata(path)?) != identity(&file.metadata()?) {
                    return Ok(false);
                }
                let there = format!("/proc/self/fd/{}", file.as_raw_fd());
                connect(probe.as_raw_fd(), &UnixAddr::new(there.as_str())?)?;
                Ok(true)
            }
            Remote::Name(name) => {
                connect(probe.as_raw_fd(), &UnixAddr::new_abstract(name)?)?;
                Ok(true)
            }
        });
        // One that takes from nobody else is there: it is connected itself.
        tried.unwrap_or_else(|error| error.raw_os_error() == Some(libc::EPERM))
    }
}

/// Sends by a connected socket: bytes of a stream from `slices`, how many is returned, or one datagram. `None` is a queue without room. No SIGPIPE.
///
/// # Errors
/// The kernel's answer: `EPIPE` or `ECONNRESET` where the peer of a stream has gone, `ECONNREFUSED` or `ENOTCONN` of datagrams.
#[inline]
pub fn send_connected(fd: BorrowedFd<'_>, slices: &[io::IoSlice<'_>]) -> io::Result<Option<usize>> {
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
    polled(fd, libc::POLLRDHUP) & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
}

/// Whether something waits to be read or accepted.
#[must_use]
pub fn is_readable(fd: &impl AsFd) -> bool {
    polled(fd, libc::POLLIN) & libc::POLLIN != 0
}

/// Which of these events there are, without waiting.
fn polled(fd: &impl AsFd, events: libc::c_short) -> libc::c_short {
    let mut asked = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events, revents: 0 };
    // SAFETY: one live pollfd, and no waiting.
    let told = unsafe { libc::poll(&raw mut asked, 1, 0) };
    if told > 0 { asked.revents } else { 0 }
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
