//! Users and groups without a number in our user namespace (user_namespaces(7), "Unmapped user and group IDs").
//!
//! The kernel tells of all of them by one number, 65534 unless the host's administrator chose another, as whose a file is and as who is at the other
//! end of a socket. So in a namespace that does not have everybody that number says nothing: two who have it need not be the same, nor
//! the user who is called so (`nobody`), even where that one is mapped, too. No system call tells them apart.

use std::{fs, io};

/// Users, or groups, that a namespace can have: all numbers but the last, which means nobody.
const EVERYBODY: u64 = 0xffff_ffff;

/// The number of users who have none. `None`: everybody has one.
///
/// # Errors
/// /proc cannot be read.
pub fn unmapped_uid() -> io::Result<Option<u32>> {
    unmapped("/proc/self/uid_map", "/proc/sys/kernel/overflowuid")
}

/// The same of groups.
///
/// # Errors
/// /proc cannot be read.
pub fn unmapped_gid() -> io::Result<Option<u32>> {
    unmapped("/proc/self/gid_map", "/proc/sys/kernel/overflowgid")
}

fn unmapped(map: &str, overflow: &str) -> io::Result<Option<u32>> {
    let map = match fs::read_to_string(map) {
        // A kernel without user namespaces; not one whose /proc is not there.
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::exists("/proc/self")? => {
            return Ok(None);
        }
        map => map?,
    };
    if has_everybody(&map) {
        return Ok(None);
    }
    let number = fs::read_to_string(overflow)?;
    number.trim().parse().map(Some).map_err(io::Error::other)
}

/// Lines of the first number inside, the first outside, and how many; ranges do not overlap.
fn has_everybody(map: &str) -> bool {
    let lengths = map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    lengths.sum::<u64>() >= EVERYBODY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_mapped() {
        assert!(has_everybody("         0          0 4294967295\n"));
        assert!(has_everybody("0 0 65534\n65534 65534 4294901761\n"));
        assert!(!has_everybody("         0       1000          1\n"));
        assert!(!has_everybody("0 100000 65536\n"), "65534 is mapped, and others are not");
        assert!(!has_everybody(""));
    }

    #[test]
    fn the_number_is_that_of_the_kernel() {
        for number in [unmapped_uid(), unmapped_gid()] {
            assert!(matches!(number, Ok(None | Some(1..))), "{number:?}");
        }
    }
}
