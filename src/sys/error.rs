//! What a refused system call looks like to the caller, and the names that are refused before any call.

use std::io;

/// A system call failed.
///
/// Reads `WHAT: ANSWER`, where WHAT names the object and the operation ("cannot set mtu 9000 on interface 'p1'").
/// When `source` is a bare [`io::ErrorKind`] the refusal is our own and WHAT says all of it.
#[derive(Debug, thiserror::Error)]
#[error("{}", describe(.what, .source))]
pub struct Error {
    /// The object and the operation.
    pub what: String,
    /// The kernel's answer.
    pub source: io::Error,
}

/// Shorthand of this folder.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The kernel's (or the standard library's) answer to `what`.
    pub fn new(what: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error { what: what.into(), source: source.into() }
    }

    /// A refusal of our own: `what` is the whole message.
    pub fn refused(kind: io::ErrorKind, what: impl Into<String>) -> Error {
        Error { what: what.into(), source: kind.into() }
    }

    /// For `map_err`: puts `what` before the answer. `what` is only built when needed.
    pub(crate) fn on<E: Into<io::Error>, S: Into<String>>(
        what: impl FnOnce() -> S,
    ) -> impl FnOnce(E) -> Error {
        move |source| Error::new(what(), source)
    }

    /// Whether the object does not exist (any more): ENOENT, ENODEV, ENXIO, or a refusal of our own of that kind.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
            || matches!(self.source.raw_os_error(), Some(libc::ENODEV | libc::ENXIO))
    }

    /// Whether something of that name exists already.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.source.kind() == io::ErrorKind::AlreadyExists
    }

    /// Whether the process lacks the privilege (EPERM, EACCES): usually CAP_NET_ADMIN or CAP_SYS_ADMIN.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.source.kind() == io::ErrorKind::PermissionDenied
    }
}

fn describe(what: &str, source: &io::Error) -> String {
    if source.raw_os_error().is_none() && source.get_ref().is_none() {
        what.to_owned()
    } else {
        format!("{what}: {source}")
    }
}

/// Longest interface name in bytes: IFNAMSIZ less its NUL.
pub(crate) const IFNAME_MAX_BYTES: usize = libc::IFNAMSIZ - 1;
/// Longest alternative name in bytes: ALTIFNAMSIZ less its NUL (linux/if.h).
const ALTIFNAME_MAX_BYTES: usize = 127;

/// Refuses what the kernel would refuse as an interface name (`dev_valid_name`), and `%`, which the kernel takes for
/// a pattern ("eth%d" makes eth0). An ioctl would cut a name that is too long without a word, so this comes first.
///
/// # Errors
/// InvalidInput, with the rule that was broken.
pub fn check_ifname(name: &str) -> Result<()> {
    check_length(name, IFNAME_MAX_BYTES)
}

/// The same for the name of an interface that exists, which may be an alternative one (`ip link property add … altname`).
///
/// # Errors
/// InvalidInput, with the rule that was broken.
pub fn check_known_ifname(name: &str) -> Result<()> {
    check_length(name, ALTIFNAME_MAX_BYTES)
}

fn check_length(name: &str, most: usize) -> Result<()> {
    let wrong = |why: &str| {
        Err(Error::refused(io::ErrorKind::InvalidInput, format!("{name:?} is not an interface name: {why}")))
    };
    if name.is_empty() {
        wrong("it is empty")
    } else if name.len() > most {
        wrong(&format!("it is longer than {most} bytes"))
    } else if name == "." || name == ".." {
        wrong("it is reserved")
    } else if name.contains(|c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control()) {
        wrong("it contains a space, a control character, '/', ':' or '%'")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_checked() {
        for good in ["a", "eth0", "fifteen-bytes-1", "br-lan.100", "wg_home", "é"] {
            assert!(check_ifname(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:1", "sixteen-bytes-12", "tap%d", "a\0", "a\n", "a\u{a0}b"]
        {
            let error = check_ifname(bad).expect_err(bad);
            assert_eq!(error.source.kind(), io::ErrorKind::InvalidInput);
            assert!(error.to_string().contains("is not an interface name"), "{error}");
        }
        let long = "x".repeat(127);
        assert!(check_ifname(&long).is_err() && check_known_ifname(&long).is_ok());
        let error = check_known_ifname(&format!("{long}x")).expect_err("too long");
        assert!(error.to_string().contains("longer than 127 bytes"), "{error}");
    }

    #[test]
    fn errors_say_what_and_why() {
        let gone = Error::new("cannot read interface 'x'", io::Error::from_raw_os_error(libc::ENODEV));
        assert!(gone.is_not_found() && !gone.is_denied());
        assert!(gone.to_string().starts_with("cannot read interface 'x': No such device"), "{gone}");
        let ours = Error::refused(io::ErrorKind::NotFound, "no network namespace 'x'; existing: a");
        assert!(ours.is_not_found());
        assert_eq!(ours.to_string(), "no network namespace 'x'; existing: a");
    }
}
