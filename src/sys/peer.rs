//! Who is at the other end of a Unix socket (unix(7)), as the kernel recorded it when the connection was made.
//!
//! The groups are asked of the kernel too (`SO_PEERGROUPS`, Linux 4.13), not of the user database: those are what the process
//! has, no name service can make us wait, and a user without a name has them as well. Users and groups that have no number here are left out
//! ([`users`]).

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{getsockopt, sockopt};

use super::users;

/// asm-generic/socket.h; not in libc for every target.
const SO_PEERGROUPS: libc::c_int = 59;
/// NGROUPS_MAX.
const GROUPS_MAX: usize = 65_536;

/// A process, by what it may do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Process id; 0 when it is in a process namespace that is not ours or a descendant of it.
    pub pid: u32,
    /// Effective user id; `None` when the user has none in our user namespace.
    pub uid: Option<u32>,
    /// Effective and supplementary group ids.
    pub groups: Vec<u32>,
}

impl Peer {
    /// Of a connected socket.
    ///
    /// # Errors
    /// It is not a connected Unix socket, or the kernel is too old.
    pub fn of(socket: &impl AsFd) -> io::Result<Peer> {
        let credentials = getsockopt(&socket.as_fd(), sockopt::PeerCredentials)?;
        let (no_user, no_group) = (users::unmapped_uid()?, users::unmapped_gid()?);
        let mut groups = groups(socket)?;
        groups.push(credentials.gid());
        groups.retain(|&group| no_group != Some(group));
        Ok(Peer {
            pid: u32::try_from(credentials.pid()).unwrap_or(0),
            uid: Some(credentials.uid()).filter(|&uid| no_user != Some(uid)),
            groups,
        })
    }

    /// Whether it is in the group, by whichever way.
    #[must_use]
    pub fn is_in(&self, group: u32) -> bool {
        self.groups.contains(&group)
    }
}

fn groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 64];
    loop {
        let room = mem::size_of_val(groups.as_slice());
        let mut len = libc::socklen_t::try_from(room).map_err(io::Error::other)?;
        // SAFETY: the pointer and length are those of a live vector, which the kernel fills with plain numbers.
        let got = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let count = len as usize / mem::size_of::<u32>();
        if got == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // The kernel says how many there are.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > GROUPS_MAX {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_other_end_is_ourselves() {
        let (one, _other) = UnixStream::pair().expect("a pair");
        let peer = Peer::of(&one).expect("connected");
        assert_eq!(peer.pid, std::process::id());
        assert_eq!(peer.uid, Some(nix::unistd::geteuid().as_raw()));
        let own = nix::unistd::getegid().as_raw();
        let further = nix::unistd::getgroups().expect("groups").into_iter().map(nix::unistd::Gid::as_raw);
        let unmapped = users::unmapped_gid().expect("readable");
        let mut ours: Vec<u32> = further.chain([own]).filter(|&group| unmapped != Some(group)).collect();
        let mut theirs = peer.groups.clone();
        ours.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(ours, theirs);
        assert!(peer.is_in(own) && !peer.is_in(4_000_000_000));
    }

    #[test]
    fn what_is_no_connection_is_refused() {
        let file = std::fs::File::open("/dev/null").expect("there");
        assert!(Peer::of(&file).is_err());
    }
}
