//! The messages of the VDE switch protocol, version 3, as libvdeplug and vde_switch have them: structures of C without gaps, numbers in the
//! host's byte order.
//!
//! A plug connects to the switch's control socket and sends a request: magic, version, what it wants, the address of its datagram socket, and a
//! description that has neither length nor end. The switch answers with the address of its own datagram socket.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes of an address: `sockaddr_un`.
pub const ADDRESS_LEN: usize = 2 + PATH_LEN;
const PATH_LEN: usize = 108;
/// Bytes of a request without its description.
pub const REQUEST_LEN: usize = 12 + ADDRESS_LEN;
/// Bytes of a description, at most.
pub const DESCRIPTION_LEN_MAX: usize = 128;

const MAGIC: u32 = 0xfeed_face;
const VERSION: u32 = 3;
/// A port, of which the upper bits are the number that the plug would like, 0 for any: here there is one.
const NEW_CONTROL: u32 = 0;
/// A port for plugs that manage the switch; those get one like everybody.
const NEW_PORT0: u32 = 1;

/// Why a message is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Bad {
    /// Something else speaks.
    #[error("it does not speak the VDE protocol")]
    Magic,
    /// It is too old, or too new.
    #[error("it speaks version {0} of the VDE protocol, not 3")]
    Version(u32),
    /// It asks for what there is not.
    #[error("it asks for something unknown ({0})")]
    Request(u32),
    /// It did not say all of it in time.
    #[error("it did not send a request in time")]
    Late,
    /// It closed the connection.
    #[error("it has gone")]
    Gone,
    /// Not of a Unix socket, or of one without a file.
    #[error("it names no socket file")]
    Address,
}

/// The plug's socket, of the bytes of a request that have come. `None`: more have to come; they can be refused before all are there.
///
/// # Errors
/// They are no request.
pub fn request(bytes: &[u8]) -> Result<Option<&Path>, Bad> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    if word(0).is_some_and(|magic| magic != MAGIC) {
        return Err(Bad::Magic);
    }
    if let Some(version) = word(4).filter(|version| *version != VERSION) {
        return Err(Bad::Version(version));
    }
    if let Some(wanted) = word(8).filter(|wanted| !matches!(wanted & 0xff, NEW_CONTROL | NEW_PORT0)) {
        return Err(Bad::Request(wanted));
    }
    bytes.get(12..).map_or(Ok(None), address)
}

/// The path in an address, of its bytes that have come; `None`: more have to come.
///
/// # Errors
/// It is no address of a socket with a file, by a path that means the same everywhere.
pub fn address(bytes: &[u8]) -> Result<Option<&Path>, Bad> {
    let Some((family, path)) = bytes.split_first_chunk() else { return Ok(None) };
    if i32::from(u16::from_ne_bytes(*family)) != libc::AF_UNIX {
        return Err(Bad::Address);
    }
    let Some(path) = path.get(..PATH_LEN) else { return Ok(None) };
    let len = path.iter().position(|byte| *byte == 0).unwrap_or(PATH_LEN);
    let path = Path::new(OsStr::from_bytes(&path[..len]));
    if path.is_absolute() { Ok(Some(path)) } else { Err(Bad::Address) }
}

/// A request for a port, for a socket at `path` of at most 107 bytes.
#[must_use]
pub fn request_for(path: &Path, description: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = [MAGIC, VERSION, NEW_CONTROL].into_iter().flat_map(u32::to_ne_bytes).collect();
    bytes.extend(address_of(path));
    bytes.extend(description.bytes().take(DESCRIPTION_LEN_MAX));
    bytes
}

/// The address of the socket at `path`, of which at most 107 bytes are taken.
#[must_use]
pub fn address_of(path: &Path) -> [u8; ADDRESS_LEN] {
    let mut bytes = [0; ADDRESS_LEN];
    #[allow(clippy::cast_possible_truncation, reason = "AF_UNIX is 1")]
    let family = libc::AF_UNIX as u16;
    bytes[..2].copy_from_slice(&family.to_ne_bytes());
    for (to, from) in bytes[2..ADDRESS_LEN - 1].iter_mut().zip(path.as_os_str().as_bytes()) {
        *to = *from;
    }
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What libvdeplug 4.0.1 sends for `vde_plug vde:///run/x`.
    #[test]
    fn a_request_is_laid_out_as_libvdeplug_does() {
        let bytes = request_for(Path::new("/run/x/.00042-00000"), "vde_plug: me");
        assert_eq!(bytes.len(), 122 + "vde_plug: me".len());
        let words: Vec<u32> =
            bytes[..12].chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [0xfeed_face, 3, 0]);
        assert_eq!(&bytes[14..34], b"/run/x/.00042-00000\0");
        assert_eq!(&bytes[122..], b"vde_plug: me");
    }

    #[test]
    fn what_is_no_request_is_refused_as_soon_as_it_shows() {
        let good = request_for(Path::new("/s"), "");
        let with = |at: usize, bytes: &[u8]| {
            let mut other = good.clone();
            other[at..at + bytes.len()].copy_from_slice(bytes);
            other
        };
        assert_eq!(request(b"GET "), Err(Bad::Magic));
        assert_eq!(request(&with(4, &2u32.to_ne_bytes())[..8]), Err(Bad::Version(2)));
        assert_eq!(request(&with(8, &2u32.to_ne_bytes())[..12]), Err(Bad::Request(2)));
        assert_eq!(request(&with(12, &2u16.to_ne_bytes())[..14]), Err(Bad::Address));
        for path in [&b"\0abstract"[..], b"s\0", b"\0\0"] {
            assert_eq!(request(&with(14, path)), Err(Bad::Address));
        }
        // A port's number, and the port for managers, are asked for in vain.
        for wanted in [7 << 8, 1, 7 << 8 | 1] {
            assert_eq!(request(&with(8, &u32::to_ne_bytes(wanted))), Ok(Some(Path::new("/s"))));
        }
    }

    proptest! {
        #[test]
        fn a_request_says_the_same_however_much_has_come(
            path in "/[a-z./]{0,106}", description in "[ -~]{0,200}", more in any::<Vec<u8>>()
        ) {
            let mut bytes = request_for(Path::new(&path), &description);
            bytes.extend(more);
            for len in 0..bytes.len() {
                let expected = (len >= REQUEST_LEN).then_some(Path::new(&path));
                prop_assert_eq!(request(&bytes[..len]), Ok(expected));
            }
        }

        #[test]
        fn any_bytes_are_harmless(
            bytes in prop::collection::vec(any::<u8>(), 0..300), spoilt in any::<(u8, u8)>()
        ) {
            let _ = request(&bytes);
            let mut almost = request_for(Path::new("/a/b"), "");
            let at = usize::from(spoilt.0) % almost.len();
            almost[at] = spoilt.1;
            if let Ok(Some(path)) = request(&almost) {
                prop_assert!(path.is_absolute() && path.as_os_str().len() <= 108);
            }
        }
    }
}
