//! Eventfds that come and go, behind one descriptor that stays.
//!
//! A worker's epoll watches one descriptor a queue. A guest's kicks arrive on eventfds that its front end sends, one a ring and new
//! ones after each reconnection. They are gathered in an epoll instance of their own, whose descriptor is readable when any was rung.
//! They are watched edge-triggered and never read: a read would block where a front end takes `O_NONBLOCK` away again.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Eventfds behind one descriptor, at most: one a queue pair, and its own.
const BELLS_MAX: usize = 65;

/// Eventfds behind one descriptor.
#[derive(Debug)]
pub(crate) struct Bells {
    epoll: Epoll,
    /// To be rung by ourselves.
    own: EventFd,
}

impl Bells {
    /// Without any but its own.
    pub(crate) fn new() -> io::Result<Bells> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let own = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&own, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))?;
        Ok(Bells { epoll, own })
    }

    /// Hears this one, too.
    pub(crate) fn add(&self, bell: &OwnedFd) -> io::Result<()> {
        Ok(self.epoll.add(bell, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))?)
    }

    /// Hears it no more. Closing it would not do: whoever sent it has it open as well.
    pub(crate) fn remove(&self, bell: &OwnedFd) {
        let _ = self.epoll.delete(bell);
    }

    /// Rings its own.
    pub(crate) fn ring(&self) {
        // Nobody else has it: one that is full is heard already, and does not block.
        let _ = self.own.write(1);
    }

    /// Forgets what has rung; what rings from now on is heard again.
    pub(crate) fn silence(&self) {
        // Once: more there cannot be, and a front end could ring for ever.
        let mut events = [EpollEvent::empty(); BELLS_MAX];
        let _ = self.epoll.wait(&mut events, EpollTimeout::ZERO);
    }
}

impl AsFd for Bells {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

/// Checks that a descriptor from elsewhere is an eventfd, which may be watched, and rung by [`super::caller`].
///
/// # Errors
/// It is something else.
pub(crate) fn check(fd: &OwnedFd) -> io::Result<()> {
    let what = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    if what.as_os_str() != "anon_inode:[eventfd]" {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an eventfd"));
    }
    Ok(())
}
