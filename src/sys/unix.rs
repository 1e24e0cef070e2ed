//! Unix sockets with a file: made without a moment in which the wrong people reach them, replaced when nobody is behind them,
//! removed with their owner.

// The sizes of the kernel's structures all fit the narrow types its interface has for them.
#![allow(clippy::cast_possible_truncation)]

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fs, mem};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, UnixAddr, bind, connect, listen, setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};

pub use nix::sys::socket::SockType;

use super::lookups::{self, PATIENCE};
use super::{Error, Result, users};

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

impl SocketFile {
    /// Whether it has this name in its folder.
    pub(super) fn is_called(&self, name: &OsStr) -> bool {
        self.path.file_name() == Some(name)
    }

    /// The file stays.
    pub(super) fn leave(mut self) {
        self.path = PathBuf::new();
    }
}

impl SocketFile {
    /// The file of a socket that was bound to `path` a moment ago, with this mode.
    fn just_bound(path: &Path, mode: u32) -> io::Result<SocketFile> {
        // The folder may be somebody else's, who may put a link there meanwhile: what is opened is what is looked at and changed.
        let there = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path)?;
        let meta = there.metadata()?;
        if !meta.file_type().is_socket() {
            return Err(io::Error::other("something else was put there"));
        }
        // A strict umask took bits away from it.
        let same = format!("/proc/self/fd/{}", there.as_raw_fd());
        fs::set_permissions(same, fs::Permissions::from_mode(mode))?;
        Ok(SocketFile { path: path.to_owned(), identity: identity(&meta) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let (path, ours) = (std::mem::take(&mut self.path), self.identity);
        if path.as_os_str().is_empty() {
            return;
        }
        // One that is left because its file system does not answer is replaced by who comes next.
        lookups::remove_within(PATIENCE, move || {
            if fs::symlink_metadata(&path).is_ok_and(|there| identity(&there) == ours) {
                let _ = fs::remove_file(&path);
            }
        });
    }
}

pub(super) fn identity(meta: &fs::Metadata) -> (u64, u64) {
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
    } else if path.to_string_lossy().contains(char::is_control) {
        // A NUL would end it; others have no place in the lines and the XML that tell of it.
        refuse("it has a control character")
    } else if bytes.len() > PATH_MAX_BYTES {
        refuse(&format!("it is longer than {PATH_MAX_BYTES} bytes; choose a shorter folder"))
    } else {
        Ok(())
    }
}

/// Whether a socket takes descriptors that its peer sends along with bytes (SCM_RIGHTS).
///
/// Unwanted ones are not simply thrown away: the kernel closes them in the thread that reads the bytes they came with, or closes the socket, and
/// closing somebody's TCP connection may wait for as long as he likes (SO_LINGER). So what need not take any refuses them, and the
/// kernel tells the sender so (EPERM). That takes Linux 6.16 ([`can_refuse_descriptors`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Descriptors {
    /// None.
    Refused,
    /// As part of a protocol.
    Taken,
}

/// A non-blocking socket bound to `path`, whose file has this mode from the first moment; one of type `Stream` listens, and of type
/// `Datagram` it is told who sends. A file that a program left which ended is replaced.
///
/// # Errors
/// Somebody else's socket or another file is there, or the kernel refused; its file system does not answer.
pub fn bind_at(
    path: &Path,
    kind: SockType,
    mode: u32,
    descriptors: Descriptors,
) -> Result<(OwnedFd, SocketFile)> {
    check_path(path)?;
    let (there, shown) = (path.to_owned(), path.display());
    lookups::within(path, PATIENCE, move || bind_now(&there, kind, mode, descriptors))
        .map_err(Error::on(|| format!("cannot make the socket {shown}")))?
}

/// The same, for as long as the file system takes.
fn bind_now(
    path: &Path,
    kind: SockType,
    mode: u32,
    descriptors: Descriptors,
) -> Result<(OwnedFd, SocketFile)> {
    remove_stale(path, kind)?;
    let cannot = Error::on(|| format!("cannot make the socket {}", path.display()));
    let made = || -> io::Result<(OwnedFd, SocketFile)> {
        let fd = unbound(kind, descriptors)?;
        if kind == SockType::Datagram {
            // Before anybody can send: what comes earlier does not say whose it is.
            setsockopt(&fd, sockopt::PassCred, &true)?;
        }
        let file = bind_file(&fd, path, mode)?;
        if kind == SockType::Stream {
            listen(&fd, Backlog::new(BACKLOG)?)?;
        }
        Ok((fd, file))
    };
    made().map_err(cannot)
}

/// A datagram socket without a path, connected as by [`connect_in`]: at no moment does it take anything from others.
///
/// # Errors
/// The kernel's answer: there is no such socket of that user's.
pub(super) fn connected_in(folder: &fs::File, peer: &OsStr, uid: libc::uid_t) -> io::Result<OwnedFd> {
    let fd = unbound(SockType::Datagram, Descriptors::Refused)?;
    connect_in(&fd, folder, peer, Some(uid))?;
    Ok(fd)
}

/// Gives a datagram socket its path, where the file has this mode. A file that a program left which ended is replaced.
///
/// # Errors
/// Somebody else's socket or another file is there, or the kernel refused.
pub(super) fn bind_to(fd: &OwnedFd, path: &Path, mode: u32) -> Result<SocketFile> {
    check_path(path)?;
    remove_stale(path, SockType::Datagram)?;
    bind_file(fd, path, mode).map_err(Error::on(|| format!("cannot make the socket {}", path.display())))
}

fn bind_file(fd: &OwnedFd, path: &Path, mode: u32) -> io::Result<SocketFile> {
    // The mode of the unbound socket becomes the file's.
    fchmod(fd, Mode::from_bits_truncate(mode))?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    SocketFile::just_bound(path, mode).inspect_err(|_| {
        // Or it would be there for good, as one that nobody listens at.
        let _ = fs::remove_file(path);
    })
}

/// A socket that nobody can send to yet.
fn unbound(kind: SockType, descriptors: Descriptors) -> nix::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if descriptors == Descriptors::Refused {
        // An older kernel does not know how.
        let _ = refuse_descriptors(&fd);
    }
    Ok(fd)
}

/// asm-generic/socket.h, since Linux 6.16; not in libc.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Connections that a listener accepts inherit it.
fn refuse_descriptors(fd: &OwnedFd) -> io::Result<()> {
    super::packet::set(fd, libc::SOL_SOCKET, SO_PASSRIGHTS, &0)
}

/// Whether this kernel can refuse descriptors for us.
#[must_use]
pub fn can_refuse_descriptors() -> bool {
    let tried = unbound(SockType::Datagram, Descriptors::Taken).map_err(io::Error::from);
    tried.and_then(|fd| refuse_descriptors(&fd)).is_ok()
}

/// A socket with a name without a file (unix(7), "abstract"), which nobody else in this network namespace has while it is open.
///
/// # Errors
/// `AddrInUse`: somebody has it. Else the kernel's answer.
pub(super) fn hold_name(name: &str) -> io::Result<OwnedFd> {
    let fd = unbound(SockType::Datagram, Descriptors::Refused)?;
    bind(fd.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
    Ok(fd)
}

/// Connects to the socket at `path`, without waiting.
///
/// # Errors
/// `WouldBlock`: too many wait to be accepted there. Else the kernel's answer.
pub fn connect_to(path: &Path, descriptors: Descriptors) -> io::Result<OwnedFd> {
    let fd = unbound(SockType::Stream, descriptors)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// Whether a program listens at the socket at `path`, or may: only a refused connection says that
/// none does.
#[must_use]
pub fn has_listener(path: &Path) -> bool {
    match connect_to(path, Descriptors::Refused) {
        Err(error) => !matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound),
        Ok(_) => true,
    }
}

/// Removes the socket of a program that is gone; refuses to remove anything else.
fn remove_stale(path: &Path, kind: SockType) -> Result<()> {
    if !is_stale(path, kind)? {
        return Ok(());
    }
    fs::remove_file(path).map_err(Error::on(|| format!("cannot remove the stale socket {}", path.display())))
}

/// Whether the socket of a program that is gone is at `path`; no file is.
///
/// # Errors
/// Something else is there.
pub(super) fn is_stale(path: &Path, kind: SockType) -> Result<bool> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(false) };
    let refuse = |what| Err(Error::refused(io::ErrorKind::AlreadyExists, what));
    if !meta.file_type().is_socket() {
        return refuse(format!(
            "{} exists and is not a socket: remove it, or choose another path",
            path.display()
        ));
    }
    // Only a refused connection says that nobody is behind it. Without blocking, because somebody whose queue is full would keep
    // us waiting.
    let tried =
        unbound(kind, Descriptors::Refused).and_then(|fd| connect(fd.as_raw_fd(), &UnixAddr::new(path)?));
    if tried != Err(Errno::ECONNREFUSED) {
        return refuse(format!(
            "another program has the socket {}: stop it, or choose another path",
            path.display()
        ));
    }
    Ok(true)
}

/// Somebody's datagram socket: a file, which was there when it was looked up.
#[derive(Debug)]
pub struct Remote {
    path: PathBuf,
    /// While it is open, its inode's number is no other file's.
    file: fs::File,
    /// The user who gave the path, whose it is.
    given_by: Option<libc::uid_t>,
}

/// Connects a datagram socket, or connects it anew, to the socket at `path`, whatever program is behind it now. A link is not followed; where
/// somebody else gave the path, none of the folders' either, and the file has to be that user's.
///
/// # Errors
/// `NotFound` or `ConnectionRefused`: nobody is there. Else the kernel's answer.
pub fn connect_datagrams(fd: &OwnedFd, path: &Path, given_by: Option<libc::uid_t>) -> io::Result<Remote> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let links = if given_by.is_none() { ResolveFlag::empty() } else { ResolveFlag::RESOLVE_NO_SYMLINKS };
    let file = fs::File::from(openat2(AT_FDCWD, path, OpenHow::new().flags(flags).resolve(links))?);
    connect_file(fd, &file, given_by)?;
    Ok(Remote { path: path.to_owned(), file, given_by })
}

/// Connects a datagram socket to the socket called `name` in `folder` itself, not by a link; where a user gave the name, it has to be his. Nothing but
/// the folder is looked into, so a name that somebody gave leads to no file system of his own that could keep us waiting.
///
/// # Errors
/// `NotFound` or `ConnectionRefused`: nobody is there. Else the kernel's answer.
pub fn connect_in(
    fd: &OwnedFd,
    folder: &fs::File,
    name: &OsStr,
    given_by: Option<libc::uid_t>,
) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let inside =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    let file = fs::File::from(openat2(folder, name, OpenHow::new().flags(flags).resolve(inside))?);
    connect_file(fd, &file, given_by)
}

fn connect_file(fd: &OwnedFd, file: &fs::File, given_by: Option<libc::uid_t>) -> io::Result<()> {
    let meta = file.metadata()?;
    if !meta.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a socket"));
    }
    if given_by.is_some_and(|uid| uid != meta.uid()) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is another user's"));
    }
    // The file that was looked at, and no other that is put there meanwhile.
    let same = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(connect(fd.as_raw_fd(), &UnixAddr::new(same.as_str())?)?)
}

/// The path of whoever sent what waits first, which goes on waiting, and the user who has sent it, for [`connect_datagrams`]. `None`: nothing
/// waits.
///
/// The path is one as *the sender* sees it, and may be another program's socket here. So what is found there has to belong to the user that the
/// kernel says has sent, and it has to be able to say that ([`users`]). A name without a file (unix(7), "abstract") shows nobody's ownership, and is refused.
///
/// # Errors
/// The sender cannot be sent to: it has no path.
pub fn first_sender(fd: &OwnedFd) -> io::Result<Option<(PathBuf, libc::uid_t)>> {
    let (sender, uid) = match peek_sender(fd.as_fd()) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        sender => sender?,
    };
    if users::unmapped_uid()? == Some(uid) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "nobody can tell whose the sender is"));
    }
    match sender.path() {
        Some(path) if path.is_absolute() => Ok(Some((path.to_owned(), uid))),
        _ => Err(no_address()),
    }
}

fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::AddrNotAvailable, "the sender has no address to answer to")
}

/// Room for the sender's credentials, and for nothing after them: descriptors that somebody sends along are not taken.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    credentials: libc::ucred,
}

/// What the kernel tells of a datagram.
struct Told {
    /// Its length, which is more than the buffer's if it was cut.
    len: usize,
    name: Name,
    name_len: libc::socklen_t,
    /// The user who sent it, where that was asked, if the kernel knows.
    uid: Option<libc::uid_t>,
}

/// Reads a datagram into `buffer`, and its sender's name. Who that is can be asked of a socket that has `SO_PASSCRED`; to one that has not, a
/// sender could send descriptors in the room for that.
#[inline]
fn receive_told(fd: BorrowedFd<'_>, buffer: &mut [u8], flags: i32, asks_uid: bool) -> io::Result<Told> {
    let mut name = Name::NONE;
    // SAFETY: both are plain data for which zeros are valid.
    let (mut control, mut message): (Control, libc::msghdr) = unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut slice = io::IoSliceMut::new(buffer);
    message.msg_iov = (&raw mut slice).cast();
    message.msg_iovlen = 1;
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of_val(&name) as libc::socklen_t;
    if asks_uid {
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = size_of_val(&control) as _;
    }
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the buffer, the address and the control buffer are live, writable and as long as is said.
    let n = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    let told = asks_uid
        && message.msg_controllen >= size_of_val(&control) as _
        && control.header.cmsg_level == libc::SOL_SOCKET
        && control.header.cmsg_type == libc::SCM_CREDENTIALS;
    let uid = told.then_some(control.credentials.uid);
    Ok(Told { len: n.cast_unsigned(), name, name_len: message.msg_namelen, uid })
}

/// The address that the datagram which waits first was sent from, and the user who sent it.
fn peek_sender(fd: BorrowedFd<'_>) -> io::Result<(UnixAddr, libc::uid_t)> {
    use nix::sys::socket::SockaddrLike;
    let Told { name, name_len, uid, .. } = receive_told(fd, &mut [], libc::MSG_PEEK, true)?;
    // The kernel tells of one byte more than there is when the path fills its field to the end (unix(7), BUGS).
    let Some(uid) = uid.filter(|_| name_len as usize <= size_of_val(&name)) else {
        return Err(no_address());
    };
    // SAFETY: the kernel wrote `name_len` bytes of an AF_UNIX address, which are no more than there are.
    let address = unsafe { UnixAddr::from_raw((&raw const name).cast(), Some(name_len)) };
    Ok((address.ok_or_else(no_address)?, uid))
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
    /// The user who has to be the sender of what is its; `None`: whoever has its name.
    #[must_use]
    pub fn uid(&self) -> Option<libc::uid_t> {
        self.given_by
    }

    /// Whether the same socket is still there, with a program behind it.
    #[must_use]
    pub fn is_there(&self) -> bool {
        let tried =
            unbound(SockType::Datagram, Descriptors::Refused).map_err(io::Error::from).and_then(|probe| {
                if identity(&fs::symlink_metadata(&self.path)?) != identity(&self.file.metadata()?) {
                    return Ok(false);
                }
                let there = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                connect(probe.as_raw_fd(), &UnixAddr::new(there.as_str())?)?;
                Ok(true)
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

/// The name that a socket is bound to, in the words of whoever bound it; all zeros is none.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Name {
    family: libc::sa_family_t,
    path: [u8; PATH_MAX_BYTES + 1],
}

const _: () = assert!(size_of::<Name>() == size_of::<libc::sockaddr_un>());

impl Name {
    const NONE: Name = Name { family: 0, path: [0; PATH_MAX_BYTES + 1] };
}

/// Whether it is connected: a datagram socket is no more when a send has found nobody.
#[inline]
#[must_use]
pub fn is_connected(fd: BorrowedFd<'_>) -> bool {
    Sender::peer_of(fd, None).is_ok()
}

/// Who sends: the name of his socket, which he chooses himself, and, where it is known, which user he is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sender {
    name: Name,
    uid: Option<libc::uid_t>,
}

impl Sender {
    /// Whoever is at the socket that this one is connected to: what comes from there has its name. A user can be told only of a socket of [`bind_at`].
    ///
    /// # Errors
    /// It is not connected.
    pub fn peer_of(fd: BorrowedFd<'_>, uid: Option<libc::uid_t>) -> io::Result<Sender> {
        let mut name = Name::NONE;
        let mut len = size_of_val(&name) as libc::socklen_t;
        // SAFETY: the address and its length are live and writable, and it is as long as is said.
        let done = unsafe { libc::getpeername(fd.as_raw_fd(), (&raw mut name).cast(), &raw mut len) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(Sender { name, uid }) }
    }
}

/// As [`receive`], and whether it is this sender's.
///
/// # Errors
/// The kernel's answer.
pub fn receive_sorted(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    sender: &Sender,
) -> io::Result<Option<(usize, bool)>> {
    match receive_told(fd, buffer, 0, sender.uid.is_some()) {
        Ok(Told { len, name, uid, .. }) => Ok(Some((len, Sender { name, uid } == *sender))),
        Err(error) => super::would_block(error),
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// A folder that goes, and a socket in it that datagrams are sent to.
    struct Place(PathBuf, OwnedFd, SocketFile);

    impl Place {
        fn new(name: &str) -> Place {
            let folder = std::env::temp_dir().join(format!("vswitch-unix-{}-{name}", std::process::id()));
            fs::create_dir(&folder).unwrap();
            let (fd, file) =
                bind_at(&folder.join("s"), SockType::Datagram, 0o600, Descriptors::Refused).unwrap();
            Place(folder, fd, file)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn connect_to_sender(fd: &OwnedFd) -> io::Result<Option<Remote>> {
        first_sender(fd)?.map(|(path, uid)| connect_datagrams(fd, &path, Some(uid))).transpose()
    }

    /// Sends a datagram from a socket bound to `path`, which may fill its field.
    fn send_from(path: &Path, to: &Path) -> OwnedFd {
        let fd = unbound(SockType::Datagram, Descriptors::Refused).unwrap();
        // SAFETY: sockaddr_un is plain data for which zeros are valid.
        let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (to, from) in address.sun_path.iter_mut().zip(path.as_os_str().as_encoded_bytes()) {
            *to = *from as libc::c_char;
        }
        // SAFETY: the address is live and as long as is said.
        let bound = unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
        };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        connect(fd.as_raw_fd(), &UnixAddr::new(to).unwrap()).unwrap();
        send_connected(fd.as_fd(), &[io::IoSlice::new(b"hello")]).unwrap();
        fd
    }

    #[test]
    fn a_sender_whose_path_has_no_end_is_refused() {
        let Place(folder, fd, _file) = &Place::new("long");
        let name = "x".repeat(PATH_MAX_BYTES - folder.as_os_str().len());
        let path = folder.join(name);
        assert_eq!(path.as_os_str().len(), 108);
        let _sender = send_from(&path, &folder.join("s"));
        assert_eq!(connect_to_sender(fd).unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
        assert_eq!(receive(fd.as_fd(), &mut []).unwrap(), Some(5), "it goes on waiting until then");
        // One byte less, and it is one.
        let shorter = folder.join("y".repeat(PATH_MAX_BYTES - folder.as_os_str().len() - 1));
        let _sender = send_from(&shorter, &folder.join("s"));
        assert_eq!(connect_to_sender(fd).unwrap().unwrap().path, shorter);
    }

    #[test]
    fn a_peer_whose_path_has_no_end_is_connected() {
        let Place(folder, fd, _file) = &Place::new("endless");
        let name = "x".repeat(PATH_MAX_BYTES - folder.as_os_str().len());
        assert!(!is_connected(fd.as_fd()));
        let peer = send_from(&folder.join(&name), &folder.join("s"));
        connect_in(fd, &fs::File::open(folder).unwrap(), OsStr::new(&name), None).unwrap();
        assert!(is_connected(fd.as_fd()));
        drop(peer);
        send_connected(fd.as_fd(), &[io::IoSlice::new(b"hello")]).unwrap_err();
        assert!(!is_connected(fd.as_fd()));
    }

    #[test]
    fn a_sender_is_answered_at_a_socket_of_his_own() {
        let Place(folder, fd, _file) = &Place::new("owner");
        let path = folder.join("p");
        let _sender = send_from(&path, &folder.join("s"));
        if std::os::unix::fs::chown(&path, Some(4711), None).is_ok() {
            assert_eq!(connect_to_sender(fd).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            std::os::unix::fs::chown(&path, Some(nix::unistd::getuid().as_raw()), None).unwrap();
        }
        assert_eq!(connect_to_sender(fd).unwrap().unwrap().path, path);
    }
}
