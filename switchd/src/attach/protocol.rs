//! What is said over the attach socket: one line of JSON from the client, one from vswitchd.
//!
//! ```text
//! {"version":1,"bridge":"br0","use_vnet":true}
//! {"version":1,"port":"vtap0"}                    with the TAP's fd beside it (SCM_RIGHTS)
//! {"version":1,"error":"…"}                       or this, without
//! ```
//!
//! Then the connection is closed. A client that closes its side before it has the answer gets none. Both sides are of one
//! release, as a rule; where they are not, the version says so before anything else is looked at.

use serde::{Deserialize, Serialize};

use crate::api::check_name;

/// Version of what is said.
pub const VERSION: u32 = 1;
/// Longest line, its end included, in bytes.
pub const LINE_MAX_BYTES: usize = 4096;

/// What a client asks for.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Request {
    version: u32,
    /// The bridge to attach to.
    pub bridge: String,
    /// Whether frames of the TAP shall carry a `virtio_net_hdr`, and with it offloads.
    pub use_vnet: bool,
}

/// What vswitchd says.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    version: u32,
    /// Name of the port, and of its interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Why not, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What every version has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

fn parse<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, String> {
    let Versioned { version } = serde_json::from_slice(line)
        .map_err(|error| format!("that is not of the attach protocol: {error}"))?;
    if version != VERSION {
        return Err(format!(
            "the attach protocol is of version {version} there, {VERSION} here: install vswitchd and vswitch-bridge-helper of one release"
        ));
    }
    serde_json::from_slice(line).map_err(|error| format!("that is not of the attach protocol: {error}"))
}

fn line(document: &impl Serialize) -> Vec<u8> {
    // Numbers, booleans and text always become JSON; nothing at all would be told as a broken line.
    let mut line = serde_json::to_vec(document).unwrap_or_default();
    line.push(b'\n');
    line
}

impl Request {
    /// To attach to a bridge.
    ///
    /// # Errors
    /// No bridge can have that name.
    pub fn new(bridge: &str, use_vnet: bool) -> Result<Request, String> {
        check_name("bridge", bridge)?;
        Ok(Request { version: VERSION, bridge: bridge.to_owned(), use_vnet })
    }

    /// From what a client sent, without the line's end.
    ///
    /// # Errors
    /// One line: it is no request, of another version, or names what cannot be a bridge.
    pub fn parse(line: &[u8]) -> Result<Request, String> {
        let request: Request = parse(line)?;
        check_name("bridge", &request.bridge)?;
        Ok(request)
    }

    /// As sent.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        line(self)
    }
}

impl Answer {
    /// The port is there; its fd goes with this.
    #[must_use]
    pub fn attached(port: &str) -> Answer {
        Answer { version: VERSION, port: Some(port.to_owned()), error: None }
    }

    /// It is refused. What is too long for a line is cut.
    #[must_use]
    pub fn refused(error: &str) -> Answer {
        // What escaping makes of a character is at most six bytes long.
        let most = (LINE_MAX_BYTES - 64) / 6;
        let error = crate::one_line(error).chars().take(most).collect();
        Answer { version: VERSION, port: None, error: Some(error) }
    }

    /// From what vswitchd sent, without the line's end.
    ///
    /// # Errors
    /// One line: it is no answer, or of another version.
    pub fn parse(line: &[u8]) -> Result<Answer, String> {
        parse(line)
    }

    /// As sent.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        line(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_as_documented() {
        let request = Request::new("br0", true).unwrap();
        assert_eq!(request.to_line(), b"{\"version\":1,\"bridge\":\"br0\",\"use_vnet\":true}\n");
        assert_eq!(Answer::attached("vtap0").to_line(), b"{\"version\":1,\"port\":\"vtap0\"}\n");
        assert_eq!(Answer::refused("no\nmore").to_line(), b"{\"version\":1,\"error\":\"no more\"}\n");
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for (line, why) in [
            ("", "not of the attach protocol"),
            ("{}", "missing field `version`"),
            ("{\"version\":2,\"colour\":\"red\"}", "version 2 there, 1 here"),
            ("{\"version\":1,\"bridge\":\"br0\"}", "missing field `use_vnet`"),
            ("{\"version\":1,\"bridge\":\"br0\",\"use_vnet\":true,\"x\":1}", "unknown field `x`"),
            ("{\"version\":1,\"bridge\":\"../x\",\"use_vnet\":true}", "cannot name a bridge"),
            ("{\"version\":1,\"bridge\":\"\",\"use_vnet\":true}", "it is empty"),
        ] {
            let error = Request::parse(line.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    proptest! {
        #[test]
        fn requests_are_read_as_written(bridge in "[a-zA-Z0-9_.:@+][a-zA-Z0-9_.:@+-]{0,62}", use_vnet: bool) {
            let Ok(request) = Request::new(&bridge, use_vnet) else {
                return Ok(());
            };
            let line = request.to_line();
            prop_assert!(line.len() <= LINE_MAX_BYTES);
            prop_assert_eq!(Request::parse(&line[..line.len() - 1]).unwrap(), request);
        }

        #[test]
        fn refusals_fit_a_line_whatever_they_say(error: String, times in 1usize..300) {
            let line = Answer::refused(&error.repeat(times)).to_line();
            prop_assert!(line.len() <= LINE_MAX_BYTES, "{}", line.len());
            prop_assert!(!line[..line.len() - 1].contains(&b'\n'));
            prop_assert!(Answer::parse(&line[..line.len() - 1]).unwrap().error.is_some());
        }

        #[test]
        fn any_bytes_are_harmless(bytes: Vec<u8>) {
            let _ = Request::parse(&bytes);
            let _ = Answer::parse(&bytes);
        }
    }
}
