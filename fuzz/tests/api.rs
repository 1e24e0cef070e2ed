//! The control API: requests of every kind to the real router, in front of the model of the switch.

#![allow(missing_docs)]

#[path = "common/text.rs"]
mod text;

use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Map, Value};
use switchd::calls::Threads;
use switchd::config::DaemonSection;
use switchd::control::model::Model;
use switchd::daemon::Daemon;
use switchd::server::{openapi, router};
use text::{Fields, KINDS, Kind, Spoil};
use tokio::runtime::Runtime;
use tower::ServiceExt;

/// Route and method, the name in it, the query (and how much of it), the body's kind and variant and fields, what to
/// spoil in the body, and bytes for wherever there is no word.
type Ask = ((u8, u8), u8, (u8, Vec<(u8, u8)>), (u8, u8, Fields), Spoil, Vec<u8>);

/// A path and the methods it takes, each with the keys of its query.
type Route = (String, Vec<(String, Vec<String>)>);

/// Requests to one daemon, one after the other; more would not find more.
const ASKS_MAX: usize = 16;

const METHODS: &[&str] = &["GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS", "TRACE", "BREW"];
/// Paths that no route is.
const STRAYS: &[&str] =
    &["/", "/openapi.json", "/v2", "/v1/ports/", "/v1/ports/a/b", "//v1/ports", "/v1/%2e%2e/"];
const NAMES: &[&str] = &["br9", "p0", "02", "%00", "%ff", "%0a", ".."];
/// Keys that no query has, or another route's.
const STRAY_KEYS: &[&str] = &["maybe", "", "vlan", "with_ports", "%ff"];
/// Values for queries' keys, by the key; the last are for all others.
const VALUES: &[(&str, &[&str])] = &[
    ("bridge", &["br0", "br1", "br1", "br9", "%0a"]),
    ("port", &["p0", "p1", "p1", "p9", "%00"]),
    ("vlan", &["10", "1", "10", "0", "4095", "-1", "x"]),
    ("", &["true", "false", "true", "false", "perhaps", "", "&&=="]),
];

/// Never a panic, in the router or behind it; an error is one line of JSON, and nothing has changed then.
#[test]
fn api_is_harmless() {
    let rig = AssertUnwindSafe(Rig::new());
    let rig = &rig;
    bolero::check!().with_type::<Vec<Ask>>().with_iterations(500).for_each(|asks| {
        rig.reset();
        for ask in asks.iter().take(ASKS_MAX) {
            rig.ask(ask);
        }
    });
}

/// The requests above are worth something only if good ones are among them.
#[test]
fn good_requests_are_answered() {
    let rig = Rig::new();
    rig.reset();
    for (method, path, kind) in [
        ("GET", "/v1/ports", None),
        ("POST", "/v1/bridges?may_exist=false", Some((Kind::Bridge, 2))),
        ("POST", "/v1/ports", Some((Kind::Port, 2))),
        ("POST", "/v1/fdb", Some((Kind::Station, 1))),
        ("POST", "/v1/neigh", Some((Kind::Neighbour, 0))),
        ("DELETE", "/v1/bridges/br0?with_ports=true", None),
    ] {
        let body = kind.map(|(kind, variant)| json(&kind.object(variant, &vec![], false)));
        let (status, answer) = rig.send(method, path, body.clone().unwrap_or_default()).unwrap_or_default();
        assert!(status.is_success(), "{method} {path} {body:?}: {status} {answer}");
    }
}

/// The router on a runtime of its own, and the model behind it.
struct Rig {
    runtime: Runtime,
    router: Router,
    model: Arc<Model>,
    _threads: Threads,
    /// Paths and their methods, from the API's own description.
    routes: Vec<Route>,
}

impl Rig {
    fn new() -> Rig {
        let model = Arc::new(Model::default());
        let daemon = Arc::new(Daemon::new(model.clone(), &DaemonSection::default()));
        let (calls, threads) = Threads::start(&daemon).unwrap_or_else(|error| panic!("{error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let description = serde_json::to_value(openapi()).unwrap_or_default();
        let paths = description["paths"].as_object().unwrap_or_else(|| panic!("{description}"));
        let keys = |method: &Value| -> Vec<String> {
            let all = method["parameters"].as_array().into_iter().flatten();
            let keys = all.filter(|one| one["in"] == "query").filter_map(|one| one["name"].as_str());
            keys.map(str::to_owned).collect()
        };
        let methods = |known: &Value| {
            let all = known.as_object().into_iter().flatten();
            all.map(|(name, method)| (name.to_ascii_uppercase(), keys(method))).collect()
        };
        Rig {
            runtime: runtime.unwrap_or_else(|error| panic!("{error}")),
            router: router(calls),
            model,
            _threads: threads,
            routes: paths.iter().map(|(path, known)| (path.clone(), methods(known))).collect(),
        }
    }

    /// Back to one bridge of each kind, a port on each and a station.
    fn reset(&self) {
        *self.model.inner() = Default::default();
        self.model.inner().interfaces.insert("veth0".to_owned());
        for (path, body) in [
            ("/v1/bridges", r#"{"name": "br0"}"#),
            ("/v1/bridges", r#"{"name": "br1", "vlan_filtering": true}"#),
            ("/v1/ports", r#"{"name": "p0", "bridge": "br0", "type": "tap"}"#),
            ("/v1/ports", r#"{"name": "p1", "bridge": "br1", "type": "tap", "trunk": [10, 20]}"#),
            ("/v1/fdb", r#"{"mac": "02:00:00:00:00:05", "port": "p1", "vlan": 10}"#),
            (
                "/v1/neigh",
                r#"{"address": "10.0.0.1", "mac": "02:00:00:00:00:05", "bridge": "br1", "vlan": 10}"#,
            ),
        ] {
            let answer = self.send("POST", path, body.to_owned());
            assert!(answer.as_ref().is_some_and(|(status, _)| status.is_success()), "{body}: {answer:?}");
        }
    }

    /// What can be seen of the switch.
    fn state(&self) -> String {
        let inner = self.model.inner();
        format!("{:?} {:?} {:?}", inner.layout, inner.learned, inner.devices_touched)
    }

    fn ask(&self, ((route, method), name, query, (kind, variant, fields), spoil, noise): &Ask) {
        let (path, method, keys) = self.target(*route, *method);
        // Mostly one that there is.
        let known = match path {
            path if path.contains("bridge") => ["br0", "br1"],
            path if path.contains("port") => ["p0", "p1"],
            path if path.contains("neigh") => ["10.0.0.1", "fd00::1"],
            _ => ["02:00:00:00:00:05", "02-00-00-00-00-05"],
        };
        let name = match (*name < 0xd0, NAMES.get(usize::from(*name) % (NAMES.len() + 1))) {
            (true, _) => known[usize::from(name & 1)].to_owned(),
            (false, Some(name)) => (*name).to_owned(),
            (false, None) => percent(noise),
        };
        let mut target = path.replace("{name}", &name).replace("{mac}", &name).replace("{address}", &name);
        let few = [0, 0, 1, 3][usize::from(query.0 & 3)];
        for (at, (key, value)) in query.1.iter().take(few).enumerate() {
            let stray = STRAY_KEYS[usize::from(*key) % STRAY_KEYS.len()];
            let own = (*key < 0xe8).then(|| keys.get(usize::from(*key) % keys.len().max(1))).flatten();
            let key = own.map_or(stray, String::as_str);
            let values = VALUES.iter().find(|(known, _)| known == &key || known.is_empty());
            let value = values.map_or("", |(_, values)| values[usize::from(*value) % values.len()]);
            target += &format!("{}{key}={value}", if at == 0 { '?' } else { '&' });
        }
        // Mostly what the route wants.
        let kind = match path {
            _ if *kind >= 0xf0 => KINDS[usize::from(*kind) % KINDS.len()],
            path if path.contains("bridge") => Kind::Bridge,
            path if path.contains("port") => Kind::Port,
            path if path.contains("neigh") => Kind::Neighbour,
            _ => Kind::Station,
        };
        let body = text::spoil(json(&kind.object(*variant, fields, method == "PATCH")), spoil);
        let before = self.state();
        // Not every text is a target.
        let Some((status, answer)) = self.send(method, &target, body.clone()) else { return };
        let what = || format!("{method} {target} {body}: {status} {answer}");
        if status.is_success() {
            let json = target.starts_with("/metrics") || method == "HEAD" || is_json(&answer);
            assert!(json, "{}", what());
        } else {
            assert!(status.is_client_error(), "{}", what());
            assert!(method == "HEAD" || is_failure(&answer), "{}", what());
        }
        if !status.is_success() || ["GET", "HEAD"].contains(&method) {
            assert!(before == self.state(), "something has changed: {}", what());
        }
    }

    /// Mostly a route and a method it takes, with the keys of its query.
    fn target(&self, route: u8, method: u8) -> (&str, &str, &[String]) {
        let any = METHODS[usize::from(method) % METHODS.len()];
        match self.routes.get(usize::from(route) % (self.routes.len() + 1)) {
            Some((path, methods)) if method < 0xe0 => {
                let (method, keys) = &methods[usize::from(method) % methods.len()];
                (path, method, keys)
            }
            Some((path, _)) => (path, any, &[]),
            None => (STRAYS[usize::from(method) % STRAYS.len()], any, &[]),
        }
    }

    /// Status and document; nothing when this cannot be sent.
    fn send(&self, method: &str, target: &str, body: String) -> Option<(StatusCode, String)> {
        let request = Request::builder().method(method).uri(target).body(Body::from(body)).ok()?;
        self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
            let (status, body) = (response.status(), response.into_body().collect().await);
            let body = body.unwrap_or_else(|error| panic!("{error}")).to_bytes();
            Some((status, String::from_utf8_lossy(&body).into_owned()))
        })
    }
}

fn json(object: &[(&str, &str)]) -> String {
    let fields: Vec<String> = object.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
    format!("{{{}}}", fields.join(", "))
}

fn percent(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "%{byte:02x}");
        text
    })
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok()
}

/// `{"error": "one line"}` and nothing else.
fn is_failure(text: &str) -> bool {
    let document = serde_json::from_str::<Map<String, Value>>(text).unwrap_or_default();
    let error = document.get("error").and_then(Value::as_str);
    document.len() == 1 && error.is_some_and(|error| !error.is_empty() && !error.contains(char::is_control))
}
