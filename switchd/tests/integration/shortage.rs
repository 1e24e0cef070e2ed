//! What vswitchd does where the kernel gives no more, or somebody else has it: no thread, no descriptor, no lock. It runs on (or starts),
//! says so, and goes back to work by itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::daemon::{Daemon, Start};
use crate::harness::net::Ns;
use crate::harness::{Outcome, eventually, has_users};

/// A user whom nobody else is, so that his processes are the daemon's threads alone.
const LONELY: u32 = 61_203;

/// Sets a soft limit of a daemon that root or this user runs: `nproc=1`.
fn limit(daemon: &Daemon, user: Option<u32>, what: &str) {
    let pid = daemon.pid().to_string();
    let mut command = Command::new("prlimit");
    if let Some(user) = user {
        // Root may lack CAP_SYS_RESOURCE.
        command.uid(user).gid(user);
    }
    let done = command.args(["--pid", &pid, &format!("--{what}:")]).status();
    assert!(done.expect("prlimit runs").success());
}

const BRIDGE: &str = "[[bridge]]\nname = 'br0'\n";

pub fn no_thread_to_be_had() -> Outcome {
    has_users()?;
    let ns = Ns::new("threads");
    let mut daemon =
        Start::new(&ns).config(BRIDGE).arguments("--workers 1 --attach-socket none").as_user(LONELY).spawn();
    // Not by asking it: a thread that answered would stay for a while.
    eventually("it is ready", || daemon.log().contains("ready"));
    limit(&daemon, Some(LONELY), "nproc=1");
    let path = |name: &str| daemon.path(name).display().to_string();
    let port = format!(
        "{BRIDGE}[[port]]\nname = 'guest'\nbridge = 'br0'\ntype = 'vhost-user'\npath = '{}'\n",
        path("guest.sock")
    );
    // What needs a thread of its own is refused, and said; nothing else is.
    daemon.write_config(&port);
    daemon.signal(libc::SIGHUP);
    eventually("the reload is tried again", || daemon.log().matches("tried again in").count() >= 2);
    let log = daemon.log();
    assert!(log.contains("reload refused") && log.contains("no thread can be had"), "{log}");
    let (status, _, body) = daemon.http("GET", "/v1/bridges", "");
    assert_eq!((status, body.contains("br0")), (200, true), "{body}");
    let other = format!(
        r#"{{"name": "other", "bridge": "br0", "type": "vhost-user", "path": "{}"}}"#,
        path("other.sock")
    );
    let (status, head, body) = daemon.http("POST", "/v1/ports", &other);
    let error: Value = serde_json::from_str(&body).expect("JSON");
    assert!(head.contains("application/json"), "{head}");
    assert!(
        status == 503 && error["error"].as_str().is_some_and(|e| e.contains("no thread can be had")),
        "{status} {body}"
    );
    assert_eq!(daemon.json("port show"), Value::Array(Vec::new()), "nothing is left of either");
    assert!(fs::metadata(path("other.sock")).is_err());
    // It needs no SIGHUP to go on.
    limit(&daemon, Some(LONELY), "nproc=4096");
    eventually("the reload is done", || daemon.log().contains("reloaded"));
    assert_eq!(daemon.port("guest")["type"], "vhost-user");
    daemon.signal(libc::SIGTERM);
    assert!(daemon.wait().success(), "{}", daemon.log());
    Ok(())
}

/// Ends with the test.
struct Waiting(Child);

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn locks_of_others() -> Outcome {
    has_users()?;
    let ns = Ns::new("locks");
    let daemon = Daemon::start(&ns);
    fs::set_permissions(daemon.path(""), fs::Permissions::from_mode(0o755)).expect("ours");
    // Whoever waits for the lock has it as soon as vswitchd has gone.
    let waits = |file: PathBuf| {
        let mut command = Command::new("flock");
        command.arg(file).args(["sleep", "30"]).uid(LONELY).gid(LONELY);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Waiting(command.spawn().expect("flock runs"))
    };
    let _waiting = ["ctl.sock.lock", "attach.sock.lock"].map(|name| waits(daemon.path(name)));
    std::thread::sleep(Duration::from_millis(300));
    let folder = daemon.kill();
    let daemon = Start::new(&ns).folder(folder).ready();
    assert!(daemon.path("attach.sock").exists());
    daemon.terminate();
    Ok(())
}

pub fn no_descriptor_to_be_had() -> Outcome {
    let (ns, far) = (Ns::new("descriptors"), Ns::new("far"));
    ns.veth("va", &far, "vb", 1500);
    let daemon = Daemon::start(&ns);
    daemon.ctl("bridge add br0");
    daemon.ctl("port add va --bridge br0 --type packet");
    let few = daemon.open_files() + 6;
    limit(&daemon, None, &format!("nofile={few}"));
    let idle: Vec<_> = (0..30).map(|_| UnixStream::connect(&daemon.socket).expect("it listens")).collect();
    eventually("it is told", || daemon.log().contains("cannot accept a control connection"));
    let told = |what: &str| {
        let log = daemon.log();
        let lines: Vec<String> = log.lines().filter(|line| line.contains(what)).map(str::to_owned).collect();
        lines
    };
    // Meanwhile a link flaps, slowly enough for each time to be seen.
    let flap = || {
        for state in ["down", "up"] {
            ns.ip(&format!("link set va {state}"));
            std::thread::sleep(Duration::from_millis(150));
        }
        told("port 'va' is").len()
    };
    eventually("the first of the link's lines", || flap() >= 10);
    (flap(), flap());
    let lines = told("cannot accept");
    assert_eq!(lines.iter().filter(|line| !line.contains("left out)")).count(), 1, "{lines:#?}");
    assert_eq!(told("port 'va' is").len(), 10, "{:#?}", told("port 'va' is"));
    drop(idle);
    // It goes on by itself, and the count is told although nothing more happens.
    eventually("it answers", || daemon.try_ctl(&["status"]).status.success());
    eventually("the count is told", || {
        told("cannot accept").last().is_some_and(|line| line.contains("left out)"))
    });
    eventually("of the link, too", || {
        told("port 'va' is").last().is_some_and(|line| line.contains("left out)"))
    });
    assert!(told("cannot accept").len() <= 4, "{:#?}", told("cannot accept"));
    Ok(())
}

pub fn names_that_a_terminal_would_obey() -> Outcome {
    let (ns, far) = (Ns::new("names"), Ns::new("far"));
    ns.veth("va", &far, "vb", 1500);
    let daemon = Daemon::start(&ns);
    daemon.ctl("bridge add br0");
    daemon.ctl("port add va --bridge br0 --type packet");
    let evil = "\u{1b}[31mx\u{202e}";
    far.run("ip", &["link", "set", "vb", "down"]);
    far.run("ip", &["link", "set", "vb", "name", evil]);
    far.run("ip", &["link", "set", evil, "up"]);
    daemon.wait_port_state("va", "up");
    for line in ["port show", "port show va", "port explain va"] {
        let text = daemon.ctl(line);
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{line}: {text:?}");
    }
    for line in ["port show va", "port explain va"] {
        let text = daemon.ctl(line);
        assert!(text.contains("\\u{1b}[31mx\\u{202e}"), "{line}: {text:?}");
    }
    assert_eq!(daemon.port("va")["peer"]["ifname"], evil, "JSON has the name itself");
    // One of the switch's own namespace, in an error that lists what there is, and in the log.
    ns.run("ip", &["link", "add", evil, "type", "veth", "peer", "name", "other"]);
    let refused = daemon.refused("port add none --bridge br0 --type packet");
    assert!(refused.contains("\\u{1b}[31mx") && !refused.contains(['\u{1b}', '\u{202e}']), "{refused:?}");
    let body =
        serde_json::json!({"name": "odd", "bridge": "br0", "type": "packet", "ifname": evil}).to_string();
    let (status, ..) = daemon.http("POST", "/v1/ports", &body);
    if status == 201 {
        ns.run("ip", &["link", "del", evil]);
        daemon.wait_port_state("odd", "gone");
    }
    assert!(!daemon.log().contains(['\u{1b}', '\u{202e}']), "{:?}", daemon.log());
    Ok(())
}
