//! The other end of the control socket: one request, one answer.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::api::Failure;
use crate::plain::plain;

/// How long an answer may take; a reload with many ports takes a while.
const TIMEOUT: Duration = Duration::from_secs(170);
/// Largest answer.
const ANSWER_MAX_BYTES: usize = 1 << 30;
/// What a path segment may hold as it is (RFC 3986, section 2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why there is no answer, as one line.
#[derive(Debug)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for Refused {
    fn from(text: String) -> Self {
        Refused(text)
    }
}

/// A client of the daemon at one socket.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
}

/// What the daemon said: the JSON document as it came.
#[derive(Debug)]
pub struct Answer {
    body: Bytes,
}

impl Answer {
    /// The document.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.body
    }

    /// The document as a value to be shown: what a terminal would obey in its texts is written out.
    ///
    /// # Errors
    /// It is another one than expected: the daemon is of another version.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Refused> {
        let parsed = if self.may_harm() {
            let escaped = serde_json::from_slice(&self.body).map(escaped);
            escaped.and_then(serde_json::from_value)
        } else {
            serde_json::from_slice(&self.body)
        };
        parsed.map_err(|error| {
            Refused(format!("vswitchd's answer is not understood (another version?): {error}"))
        })
    }

    /// Whether a text in it may have more than letters, for nearly none has. JSON has control characters as escapes only.
    fn may_harm(&self) -> bool {
        !self.body.is_ascii() || self.body.contains(&b'\\')
    }
}

/// The document with every text in it made [plain].
fn escaped(document: Value) -> Value {
    match document {
        Value::String(text) => Value::String(plain(&text).into_owned()),
        Value::Array(all) => all.into_iter().map(escaped).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (plain(&name).into_owned(), escaped(value))).collect()
        }
        other => other,
    }
}

impl Client {
    /// A client; nothing is connected yet.
    ///
    /// # Errors
    /// The system lacks what a runtime needs.
    pub fn new(socket: &Path) -> Result<Client, Refused> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Refused(format!("cannot start: {error}")))?;
        Ok(Client { socket: socket.to_owned(), runtime })
    }

    /// Reads what is at `path`.
    ///
    /// # Errors
    /// The daemon is not there or refuses.
    pub fn get(&self, path: &Target) -> Result<Answer, Refused> {
        self.send(Method::GET, path, Bytes::new())
    }

    /// Asks for a change without further words.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn act(&self, method: Method, path: &Target) -> Result<Answer, Refused> {
        self.send(method, path, Bytes::new())
    }

    /// Asks for a change.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn ask(&self, method: Method, path: &Target, request: &impl Serialize) -> Result<Answer, Refused> {
        let body =
            serde_json::to_vec(request).map_err(|error| Refused(format!("cannot write JSON: {error}")))?;
        self.send(method, path, body.into())
    }

    fn send(&self, method: Method, target: &Target, body: Bytes) -> Result<Answer, Refused> {
        let request = Request::builder()
            .method(method)
            .uri(&target.0)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| Refused(format!("cannot ask for '{}': {error}", target.0)))?;
        let (status, body) = self.runtime.block_on(async {
            let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
            match tokio::time::timeout(TIMEOUT, exchange(stream, request)).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(Refused(format!(
                    "vswitchd at {} broke off the conversation: {error}: see its log",
                    self.socket.display()
                ))),
                Err(_) => Err(Refused(format!(
                    "vswitchd at {} did not answer within {} s",
                    self.socket.display(),
                    TIMEOUT.as_secs()
                ))),
            }
        })?;
        if status.is_success() {
            return Ok(Answer { body });
        }
        match serde_json::from_slice::<Failure>(&body) {
            Ok(failure) => Err(Refused(failure.error)),
            Err(_) => Err(Refused(format!("vswitchd at {} answered {status}", self.socket.display()))),
        }
    }

    fn unreachable(&self, error: &io::Error) -> Refused {
        let socket = self.socket.display();
        Refused(match error.kind() {
            io::ErrorKind::NotFound => format!(
                "vswitchd is not running (no socket at {socket}): start it with 'systemctl start vswitchd' or 'vswitchd', or name its socket with --socket"
            ),
            io::ErrorKind::ConnectionRefused => format!(
                "vswitchd is not running (nobody listens at {socket}): start it with 'systemctl start vswitchd' or 'vswitchd'"
            ),
            io::ErrorKind::PermissionDenied => {
                format!("no permission for vswitchd's socket {socket}: run vswitchctl as root")
            }
            _ => format!("cannot reach vswitchd at {socket}: {error}"),
        })
    }
}

async fn exchange(
    stream: UnixStream,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await?.to_bytes();
    drop(sender);
    let _ = driver.await;
    Ok((status, body))
}

/// A path below `/v1`, with its query.
#[derive(Clone, Debug)]
pub struct Target(String);

impl Target {
    /// `/v1/` and these segments, each escaped.
    #[must_use]
    pub fn new<'a>(segments: impl IntoIterator<Item = &'a str>) -> Target {
        let mut path = "/v1".to_owned();
        for segment in segments {
            path.push('/');
            path.extend(utf8_percent_encode(segment, SEGMENT));
        }
        Target(path)
    }

    /// With what `query` says, if it says anything.
    ///
    /// # Errors
    /// `query` is not made of names and plain values.
    pub fn query(mut self, query: &impl Serialize) -> Result<Target, Refused> {
        let query =
            serde_urlencoded::to_string(query).map_err(|error| Refused(format!("cannot ask: {error}")))?;
        if !query.is_empty() {
            self.0.push(if self.0.contains('?') { '&' } else { '?' });
            self.0.push_str(&query);
        }
        Ok(self)
    }

    /// With `name=true` when it is.
    #[must_use]
    pub fn flag(mut self, name: &str, value: bool) -> Target {
        if value {
            self.0.push(if self.0.contains('?') { '&' } else { '?' });
            self.0.push_str(name);
            self.0.push_str("=true");
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::FdbSelect;

    #[test]
    fn targets_are_escaped() {
        let target = Target::new(["ports", "a/b c?%"]).flag("if_exists", true).flag("with_ports", false);
        assert_eq!(target.0, "/v1/ports/a%2Fb%20c%3F%25?if_exists=true");
        let select = FdbSelect { bridge: Some("b&r".into()), port: None, vlan: "7".parse().ok() };
        let target = Target::new(["fdb"]).query(&select).unwrap();
        assert_eq!(target.0, "/v1/fdb?bridge=b%26r&vlan=7");
        assert_eq!(Target::new(["fdb"]).query(&FdbSelect::default()).unwrap().0, "/v1/fdb");
    }

    #[test]
    fn an_absent_daemon_is_named_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ctl.sock");
        let error = Client::new(&path).unwrap().get(&Target::new(["status"])).unwrap_err();
        assert!(error.0.contains("is not running (no socket at ") && error.0.contains("start it"), "{error}");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let error = Client::new(&path).unwrap().get(&Target::new(["status"])).unwrap_err();
        assert!(error.0.contains("nobody listens"), "{error}");
    }
}
