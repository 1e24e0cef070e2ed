//! What vswitchd does where the kernel gives no more, or somebody else has it: no thread, no descriptor, no lock. It runs on (or starts),
//! says so, and goes back to work by itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
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

/// Sets a soft limit of a daemon that this user runs: `nproc=1`.
fn limit(daemon: &Daemon, user: u32, what: &str) {
    // As that user, because root may lack CAP_SYS_RESOURCE.
    let pid = daemon.pid().to_string();
    let mut command = Command::new("prlimit");
    let done = command.args(["--pid", &pid, &format!("--{what}:")]).uid(user).gid(user).status();
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
    limit(&daemon, LONELY, "nproc=1");
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
    limit(&daemon, LONELY, "nproc=4096");
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
