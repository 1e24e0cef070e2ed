//! The control API over a real socket, in front of the model of the switch; clients are our own and raw text.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::*;
use crate::calls::Threads;
use crate::config::DaemonSection;
use crate::control::model::Model;
use crate::daemon::Daemon;

/// A server that ends when dropped.
struct Server {
    path: PathBuf,
    _folder: tempfile::TempDir,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ctl.sock");
        let (end, ended) = oneshot::channel::<()>();
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let daemon = Arc::new(Daemon::new(Arc::new(Model::default()), &DaemonSection::default()));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = UnixListener::from_std(listener).unwrap();
                let (calls, _threads) = Threads::start(&daemon).unwrap();
                serve(listener, router(calls), async { drop(ended.await) }).await;
            });
        });
        Server { path, _folder: folder, end: Some(end), thread: Some(thread) }
    }

    /// What comes back for `text`, as it comes.
    fn raw(&self, text: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // The server may answer and close before it has read all.
        let _ = stream.write_all(text);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    /// Status and document of a request.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let answer = self.raw(head.as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-type: application/json"), "{head}");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{body}: {error}")))
    }

    /// The line of a refusal with this status.
    fn refusal(&self, status: u16, method: &str, path: &str, body: &str) -> String {
        let (got, answer) = self.ask(method, path, body);
        let error = answer["error"].as_str().unwrap_or_else(|| panic!("{method} {path} {body}: {answer}"));
        assert_eq!(
            (got, error.contains('\n'), answer.as_object().unwrap().len()),
            (status, false, 1),
            "{error}"
        );
        error.to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.end.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn objects_live_and_die() {
    let server = Server::start();
    let (status, bridge) = server.ask("POST", "/v1/bridges", r#"{"name": "br0", "vlan_filtering": true}"#);
    assert_eq!(status, 201);
    assert_eq!(
        bridge,
        json!({"name": "br0", "ageing_secs": 300, "vlan_filtering": true, "default_pvid": 1, "fdb_max": 65536,
            "fdb_used": 0,
            "fdb_counters": {"moves": 0, "moves_limited": 0, "evictions": 0, "full": 0, "conflicts": 0}, "ports": [], "origin": "runtime"})
    );
    assert_eq!(server.ask("GET", "/v1/bridges", ""), (200, json!([bridge])));
    assert_eq!(server.ask("PATCH", "/v1/bridges/br0", r#"{"ageing_secs": 60}"#).1["ageing_secs"], 60);

    let (status, port) = server.ask(
        "POST",
        "/v1/ports",
        r#"{"name": "p1", "bridge": "br0", "type": "tap", "trunk": "10,20-21", "native": 1}"#,
    );
    assert_eq!(
        (status, &port["vlan"]),
        (201, &json!({"mode": "trunk", "access": null, "native": 1, "trunk": [10, 20, 21]}))
    );
    for field in [
        "name", "bridge", "type", "ifname", "ifindex", "netns", "mac", "mtu", "state", "queues", "vlan",
        "learning", "flood", "isolated", "hairpin", "peer", "counters", "origin",
    ] {
        assert!(port.as_object().unwrap().contains_key(field), "{field}");
    }
    assert_eq!(server.ask("PATCH", "/v1/ports/p1", r#"{"vlan": "default"}"#).1["vlan"]["access"], 1);
    assert_eq!(server.ask("GET", "/v1/ports/p1", "").1["state"], "up");

    let (status, entry) = server.ask("POST", "/v1/fdb", r#"{"mac": "02:00:00:00:00:05", "port": "p1"}"#);
    let expected = json!({"mac": "02:00:00:00:00:05", "vlan": 1, "bridge": "br0", "port": "p1", "state": "static", "age_secs": 0, "origin": "runtime", "remote": null});
    assert_eq!((status, &entry), (201, &expected));
    assert_eq!(server.ask("GET", "/v1/fdb?bridge=br0&vlan=1", ""), (200, json!([expected])));
    assert_eq!(server.ask("GET", "/v1/fdb?vlan=2", ""), (200, json!([])));
    assert_eq!(server.ask("DELETE", "/v1/fdb/02:00:00:00:00:05?bridge=br0", ""), (200, json!({})));
    assert_eq!(server.ask("POST", "/v1/fdb/flush?bridge=br0", ""), (200, json!({"flushed": 0})));

    let (_, stats) = server.ask("GET", "/v1/stats?port=p1", "");
    assert_eq!(
        (&stats[0]["port"], &stats[0]["rx_frames"], &stats[0]["drops"]),
        (&json!("p1"), &json!(3), &json!({"no_destination": 2}))
    );
    let (_, status) = server.ask("GET", "/v1/status", "");
    assert_eq!((&status["ports"], status["workers"].as_array().map(Vec::len)), (&json!(1), Some(1)));

    assert_eq!(server.ask("DELETE", "/v1/bridges/br0?with_ports=true", ""), (200, json!({})));
    assert_eq!(server.ask("GET", "/v1/ports", ""), (200, json!([])));
}

#[test]
fn refusals_are_one_line_with_the_right_status() {
    let server = Server::start();
    server.ask("POST", "/v1/bridges", r#"{"name": "br0"}"#);
    server.ask("POST", "/v1/ports", r#"{"name": "p1", "bridge": "br0", "type": "tap"}"#);
    for (status, method, path, body, told) in [
        (409, "POST", "/v1/bridges", r#"{"name": "br0"}"#, "exists already"),
        (
            409,
            "POST",
            "/v1/bridges?may_exist=true",
            r#"{"name": "br0", "fdb_max": 5}"#,
            "fdb-max is 65536, not 5",
        ),
        (400, "POST", "/v1/bridges", r#"{"name": "a b"}"#, "cannot name a bridge"),
        (400, "POST", "/v1/bridges", r#"{"name": "x", "color": 1}"#, "unknown field `color`"),
        (400, "POST", "/v1/bridges", r#"{"name": "x"} {}"#, "trailing characters"),
        (400, "POST", "/v1/bridges", "", "JSON"),
        (400, "POST", "/v1/bridges", "\u{0}", "JSON"),
        (400, "POST", "/v1/bridges?may_exist=perhaps", r#"{"name": "x"}"#, "query"),
        (400, "POST", "/v1/bridges?maybe=true", r#"{"name": "x"}"#, "query"),
        (404, "GET", "/v1/bridges/br9", "", "no bridge 'br9'; existing: br0"),
        (404, "PATCH", "/v1/bridges/br9", "{}", "no bridge 'br9'"),
        (
            404,
            "POST",
            "/v1/ports",
            r#"{"name": "q", "bridge": "br9", "type": "tap"}"#,
            "no bridge 'br9'; existing: br0",
        ),
        (
            400,
            "POST",
            "/v1/ports",
            r#"{"name": "q", "bridge": "br0", "type": "tap", "access": 5}"#,
            "does not filter VLANs",
        ),
        (404, "DELETE", "/v1/ports/p9", "", "no port 'p9'; existing: p1"),
        (400, "DELETE", "/v1/bridges/br0", "", "has ports"),
        (400, "DELETE", "/v1/fdb/02:00?bridge=br0", "", "is not a MAC address"),
        (404, "GET", "/v1/stats?port=%00", "", "no port '\\0'"),
        (400, "POST", "/v1/reload", "", "without a configuration"),
        (400, "GET", "/v1/ports/%ff", "", "path"),
        (404, "GET", "/v2", "", "GET /openapi.json"),
        (404, "GET", "/v1/ports/a/b", "", "GET /openapi.json"),
        (405, "PUT", "/v1/ports", "{}", "does not take PUT"),
    ] {
        let error = server.refusal(status, method, path, body);
        assert!(error.contains(told), "{method} {path} {body}: {error}");
    }
    assert_eq!(server.ask("GET", "/v1/bridges", "").1.as_array().unwrap().len(), 1, "nothing half done");
}

#[test]
fn bad_clients_are_bounded() {
    let server = Server::start();
    let huge = format!(r#"{{"name": "{}"}}"#, "x".repeat(BODY_MAX_BYTES));
    let error = server.refusal(413, "POST", "/v1/bridges", &huge);
    assert!(error.contains("larger than 256 KiB"), "{error}");
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    server.refusal(400, "POST", "/v1/bridges", &deep);
    assert!(server.raw(b"\x16\x03\x01 TLS?\r\n\r\n").starts_with("HTTP/1.1 400"));
    let head = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100_000));
    assert!(server.raw(head.as_bytes()).starts_with("HTTP/1.1 431"));
    // A client that breaks off in the middle of a body does nothing.
    let broken = b"POST /v1/bridges HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"name\": \"br0\"}";
    let mut stream = UnixStream::connect(&server.path).unwrap();
    stream.write_all(broken).unwrap();
    drop(stream);
    // More idle clients than places: all the others are served in the end.
    let idle: Vec<UnixStream> =
        (0..CONNECTIONS_MAX / 2).map(|_| UnixStream::connect(&server.path).unwrap()).collect();
    assert_eq!(server.ask("GET", "/v1/bridges", "").1, json!([]));
    drop(idle);
}

#[test]
fn a_connection_serves_one_request() {
    let server = Server::start();
    let answer =
        server.raw(b"GET /v1/bridges HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/bridges HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 1);
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
}

#[test]
fn metrics_are_in_prometheus_format() {
    let server = Server::start();
    server.ask("POST", "/v1/bridges", r#"{"name": "br0"}"#);
    server.ask("POST", "/v1/ports", r#"{"name": "p1", "bridge": "br0", "type": "tap"}"#);
    server.ask(
        "POST",
        "/v1/ports",
        r#"{"name": "vx0", "bridge": "br0", "type": "vxlan", "vni": 7, "local": "10.9.0.1", "remote": "10.9.0.2"}"#,
    );
    let answer = server.raw(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    for line in [
        "vswitch_port_receive_frames_total{bridge=\"br0\",port=\"p1\"} 3",
        "vswitch_port_drops_total{bridge=\"br0\",port=\"p1\",reason=\"no_destination\"} 2",
        "vswitch_port_up{bridge=\"br0\",port=\"p1\",type=\"tap\"} 1",
        "vswitch_bridge_fdb_entries_max{bridge=\"br0\"} 65536",
        "vswitch_worker_sleeps_total{worker=\"0\"} 2",
        "vswitch_remote_receive_frames_total{bridge=\"br0\",port=\"vx0\",remote=\"10.9.0.2\"} 0",
        "vswitch_remote_receive_bytes_total{bridge=\"br0\",port=\"vx0\",remote=\"10.9.0.2\"} 0",
        "vswitch_remote_transmit_frames_total{bridge=\"br0\",port=\"vx0\",remote=\"10.9.0.2\"} 5",
        "vswitch_remote_transmit_bytes_total{bridge=\"br0\",port=\"vx0\",remote=\"10.9.0.2\"} 0",
        "vswitch_remote_drops_total{bridge=\"br0\",port=\"vx0\",remote=\"10.9.0.2\",reason=\"unreachable\"} 4",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    // Every sample belongs to the family announced last.
    let mut family = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().unwrap();
        } else if !line.starts_with('#') {
            assert_eq!(line.split(['{', ' ']).next(), Some(family));
            assert!(line.rsplit(' ').next().unwrap().parse::<u64>().is_ok(), "{line}");
        }
    }
}

#[test]
fn a_tunnel_tells_of_its_other_ends() {
    let server = Server::start();
    server.ask("POST", "/v1/bridges", r#"{"name": "br0"}"#);
    let (status, port) = server.ask(
        "POST",
        "/v1/ports",
        r#"{"name": "vx0", "bridge": "br0", "type": "vxlan", "vni": 7, "local": "10.9.0.1", "remote": "10.9.0.2",
            "mtu": 1400, "tos": 184}"#,
    );
    assert_eq!(
        (status, &port["tunnel"]["mtu_max"], &port["tunnel"]["tos"]),
        (201, &json!(1400), &json!("184"))
    );
    let (_, stats) = server.ask("GET", "/v1/stats?port=vx0", "");
    let remotes = &stats[0]["remotes"];
    assert_eq!(remotes.as_array().map(Vec::len), Some(1), "{stats}");
    assert_eq!(
        (&remotes[0]["remote"], &remotes[0]["tx_frames"], &remotes[0]["drops"]),
        (&json!("10.9.0.2"), &json!(5), &json!({"unreachable": 4}))
    );
    // What is described as text is text.
    let (_, description) = server.ask("GET", "/openapi.json", "");
    let tos = &description["components"]["schemas"]["TunnelInfo"]["properties"]["tos"];
    assert_eq!(tos["type"], "string", "{tos}");
    assert_eq!(
        server.ask("PATCH", "/v1/ports/vx0", r#"{"remote": "none"}"#).1["tunnel"]["remotes"],
        json!([])
    );
    server.ask("POST", "/v1/ports", r#"{"name": "p1", "bridge": "br0", "type": "tap"}"#);
    assert_eq!(server.ask("GET", "/v1/stats?port=p1", "").1[0]["remotes"], json!([]));
}

#[test]
fn the_description_knows_every_route_and_field() {
    let server = Server::start();
    let (status, description) = server.ask("GET", "/openapi.json", "");
    assert_eq!((status, description["openapi"].as_str().map(|v| v.starts_with("3."))), (200, Some(true)));
    let methods = |path: &str| {
        let mut all: Vec<&str> =
            description["paths"][path].as_object().unwrap().keys().map(String::as_str).collect();
        all.sort_unstable();
        all.join(" ")
    };
    assert_eq!(methods("/v1/ports"), "get post");
    assert_eq!(methods("/v1/ports/{name}"), "delete get patch");
    assert_eq!(methods("/v1/bridges/{name}"), "delete get patch");
    assert_eq!(methods("/v1/fdb/{mac}"), "delete");
    assert_eq!((methods("/v1/neigh"), methods("/v1/neigh/{address}")), ("get post".into(), "delete".into()));
    assert_eq!(methods("/metrics"), "get");
    let schemas = &description["components"]["schemas"];
    let properties = schemas["PortAdd"]["properties"].as_object().unwrap();
    for field in ["type", "address", "no_offload", "trunk", "native", "vlan", "hairpin"] {
        assert!(properties.contains_key(field), "{field}: {properties:?}");
    }
    assert_eq!(schemas["PortAdd"]["additionalProperties"], false, "unknown fields are refused");
    // Every reference leads somewhere.
    let text = description.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(!schemas[name].is_null(), "{name}");
    }
}

#[test]
fn our_own_client_speaks_it() {
    use crate::client::{Client, Target};
    let server = Server::start();
    let client = Client::new(&server.path).unwrap();
    let request: crate::api::BridgeAdd = serde_json::from_value(json!({"name": "br0"})).unwrap();
    let added = client.ask(hyper::Method::POST, &Target::new(["bridges"]), &request).unwrap();
    assert_eq!(added.parse::<crate::api::BridgeInfo>().unwrap().name, "br0");
    let refused = client.get(&Target::new(["bridges", "br 9"])).unwrap_err();
    assert_eq!(refused.to_string(), "no bridge 'br 9'; existing: br0");
}
