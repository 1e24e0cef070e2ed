//! A vswitchd of the test's own, in a namespace of the test's own, driven by the real vswitchctl.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::eventually;
use super::net::Ns;

pub const VSWITCHD: &str = env!("CARGO_BIN_EXE_vswitchd");
pub const HELPER: &str = env!("CARGO_BIN_EXE_vswitch-bridge-helper");
pub const VSWITCHCTL: &str = env!("CARGO_BIN_EXE_vswitchctl");

/// A folder that goes with the test.
pub fn folder() -> TempDir {
    tempfile::Builder::new().prefix("vswitch-it-").tempdir().expect("a temporary folder")
}

/// How to start one.
#[derive(Debug)]
pub struct Start<'a> {
    ns: &'a Ns,
    folder: Option<TempDir>,
    config: Option<String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    unprivileged: bool,
    user: Option<u32>,
    without: Vec<libc::c_ulong>,
    in_user_namespace: bool,
    private_mounts: bool,
}

impl<'a> Start<'a> {
    pub fn new(ns: &'a Ns) -> Start<'a> {
        Start {
            ns,
            folder: None,
            config: Some(String::new()),
            arguments: Vec::new(),
            environment: Vec::new(),
            unprivileged: false,
            user: None,
            without: Vec::new(),
            in_user_namespace: false,
            private_mounts: false,
        }
    }

    /// The text of its configuration file; without this the file is empty.
    pub fn config(mut self, toml: &str) -> Self {
        self.config = Some(toml.to_owned());
        self
    }

    /// Without any, not even the machine's own.
    pub fn without_config(mut self) -> Self {
        self.config = None;
        self
    }

    /// More arguments, separated by spaces.
    pub fn arguments(mut self, line: &str) -> Self {
        self.arguments.extend(line.split_whitespace().map(str::to_owned));
        self
    }

    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Without any capability.
    pub fn unprivileged(mut self) -> Self {
        self.unprivileged = true;
        self
    }

    /// As a user without capabilities, whose the folder is.
    pub fn by_user(mut self, uid: u32) -> Self {
        self.user = Some(uid);
        self
    }

    /// Without these capabilities, by their numbers.
    pub fn without(mut self, capabilities: &[libc::c_ulong]) -> Self {
        self.without.extend(capabilities);
        self
    }

    /// In a user namespace where root is the only user.
    pub fn in_user_namespace(mut self) -> Self {
        self.in_user_namespace = true;
        self
    }

    /// With mounts of its own: what is mounted there later is seen by nobody else.
    pub fn private_mounts(mut self) -> Self {
        self.private_mounts = true;
        self
    }

    /// In the folder of one that ended, if there was one.
    pub fn folder(mut self, folder: impl Into<Option<TempDir>>) -> Self {
        self.folder = folder.into();
        self
    }

    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn ready(self) -> Daemon {
        let mut daemon = self.spawn();
        eventually("vswitchd answers", || {
            if let Ok(Some(status)) = daemon.child.try_wait() {
                panic!("vswitchd ended with {status}: {}", daemon.log());
            }
            daemon.socket.exists() && daemon.try_ctl(&["status"]).status.success()
        });
        daemon
    }

    /// Starts it.
    pub fn spawn(self) -> Daemon {
        let folder = self.folder.unwrap_or_else(folder);
        let mut command = if self.in_user_namespace {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", VSWITCHD]);
            command
        } else if let Some(uid) = self.user {
            // Where others than root can reach it.
            let program = folder.path().join("vswitchd");
            super::copy_program(VSWITCHD, &program);
            std::os::unix::fs::chown(folder.path(), Some(uid), Some(uid)).expect("root may");
            Command::new(program)
        } else {
            Command::new(VSWITCHD)
        };
        if let Some(text) = &self.config {
            let config = folder.path().join("vswitchd.toml");
            fs::write(&config, text).expect("written");
            command.arg("--config").arg(config);
        }
        let (hide_config, unprivileged, user) = (self.config.is_none(), self.unprivileged, self.user);
        let without = self.without;
        let private_mounts = self.private_mounts;
        let socket = folder.path().join("ctl.sock");
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(folder.path().join("log"))
            .expect("a log file");
        let target = self.ns.open();
        command
            .arg("--socket")
            .arg(&socket)
            .args(&self.arguments)
            .env_remove("NOTIFY_SOCKET")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // SAFETY: system calls between fork and exec, nothing else.
        unsafe {
            command.pre_exec(move || {
                if hide_config {
                    hide_default_config()?;
                } else if private_mounts {
                    unshare_mounts()?;
                }
                if libc::setns(target.as_raw_fd(), libc::CLONE_NEWNET) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                // What is not in the bounding set is not gained by exec; it ends at the first that the kernel does not know.
                let mut drop = (0..64).take_while(|_| unprivileged);
                drop.all(|capability| libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) == 0);
                if !without.iter().all(|&number| libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) == 0) {
                    return Err(std::io::Error::last_os_error());
                }
                if let Some(uid) = user
                    && (libc::setgroups(0, std::ptr::null()) != 0
                        || libc::setgid(uid) != 0
                        || libc::setuid(uid) != 0)
                {
                    return Err(std::io::Error::last_os_error());
                }
                // A test run that is killed takes its daemons along.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn().expect("vswitchd starts");
        Daemon { child, socket, folder: Some(folder) }
    }
}

/// Gives the calling process mounts of its own; what others mount later still appears to it.
fn unshare_mounts() -> std::io::Result<()> {
    let none = std::ptr::null();
    // SAFETY: system calls with constant C strings and null where mount(2) ignores the argument.
    let done = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_SLAVE, none.cast()) == 0
    };
    if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Covers /etc/vswitchd, for the calling process and its children only; namespaces made later still appear to them.
fn hide_default_config() -> std::io::Result<()> {
    let none = std::ptr::null();
    // SAFETY: system calls with constant C strings and null where mount(2) ignores the argument.
    let done = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_SLAVE, none.cast()) == 0
            && (libc::access(c"/etc/vswitchd".as_ptr(), libc::F_OK) != 0
                || libc::mount(
                    c"none".as_ptr(),
                    c"/etc/vswitchd".as_ptr(),
                    c"tmpfs".as_ptr(),
                    0,
                    none.cast(),
                ) == 0)
    };
    if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// A running vswitchd; dropping it ends it.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    pub socket: PathBuf,
    folder: Option<TempDir>,
}

/// A daemon with a bridge and a station `host` in a namespace, whose interface is a tap port.
#[track_caller]
pub fn with_host(ns: &Ns, host: &Ns) -> Daemon {
    let daemon = Start::new(ns).arguments("--workers 2").ready();
    daemon.ctl("bridge add br0");
    daemon.ctl(&format!("port add host --bridge br0 --type tap --netns {} --address 10.9.0.1/24", host.name));
    daemon
}

impl Daemon {
    /// With an empty configuration.
    #[track_caller]
    pub fn start(ns: &Ns) -> Daemon {
        Start::new(ns).ready()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.as_ref().map_or_else(|| PathBuf::from(name), |folder| folder.path().join(name))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Replaces the configuration file.
    pub fn write_config(&self, toml: &str) {
        fs::write(self.path("vswitchd.toml"), toml).expect("written");
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: our own child, not yet waited for.
        let sent = unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        assert_eq!(sent, 0, "kill: {}", std::io::Error::last_os_error());
    }

    /// Ends it as systemd would.
    #[track_caller]
    pub fn terminate(mut self) -> TempDir {
        self.signal(libc::SIGTERM);
        let status = self.wait();
        assert!(status.success(), "vswitchd ended with {status}: {}", self.log());
        self.folder.take().expect("only taken here and in kill")
    }

    /// Ends it without asking.
    pub fn kill(mut self) -> TempDir {
        self.signal(libc::SIGKILL);
        self.wait();
        self.folder.take().expect("only taken here and in terminate")
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("vswitchd ends", || {
            status = self.child.try_wait().expect("our child");
            status.is_some()
        });
        status.expect("just seen")
    }

    /// The CPUs that each of its workers may run on, as the kernel says it.
    pub fn worker_cpus(&self) -> std::collections::BTreeMap<String, String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs");
        let read = |task: &fs::DirEntry, file: &str| fs::read_to_string(task.path().join(file));
        let cpus = |task: fs::DirEntry| {
            let name = read(&task, "comm").ok()?.trim().to_owned();
            let status = read(&task, "status").ok()?;
            let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
            name.starts_with("worker-").then(|| (name, list.trim().to_owned()))
        };
        tasks.flatten().filter_map(cpus).collect()
    }

    /// Resident memory, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
    }

    /// Time on the CPU so far, of 10 ms each.
    pub fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it runs");
        // Behind the name, which may have anything in it: utime and stime.
        let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
        fields.filter_map(|field| field.parse::<u64>().ok()).sum()
    }

    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    pub fn try_ctl(&self, arguments: &[&str]) -> Output {
        ctl_at(&self.socket, arguments)
    }

    /// A command of vswitchctl that succeeds and says nothing on stderr, but perhaps how something would be better; what it writes.
    #[track_caller]
    pub fn ctl(&self, line: &str) -> String {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = self.try_ctl(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "vswitchctl {line}: {}: {stderr}", output.status);
        assert!(stderr.lines().all(|line| line.starts_with("hint: ")), "vswitchctl {line}: {stderr}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// The same with `--json`, parsed.
    #[track_caller]
    pub fn json(&self, line: &str) -> Value {
        let text = self.ctl(&format!("--json {line}"));
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("vswitchctl --json {line}: {error}: {text}"))
    }

    /// A command that is refused: exit code 1, nothing on stdout, one line on stderr, which is returned.
    #[track_caller]
    pub fn refused(&self, line: &str) -> String {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = self.try_ctl(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "vswitchctl {line}: {stderr}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "vswitchctl {line}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "vswitchctl {line}: one line: {stderr}");
        stderr.trim_end().to_owned()
    }

    /// A command that is wrong usage: exit code 2.
    #[track_caller]
    pub fn misused(&self, line: &str) -> String {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = self.try_ctl(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "vswitchctl {line}: {stderr}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "vswitchctl {line}");
        assert_ne!(stderr, "", "vswitchctl {line} must say what is wrong");
        stderr
    }

    /// One object of `port show`.
    #[track_caller]
    pub fn port(&self, name: &str) -> Value {
        let mut list = self.json(&format!("port show {name}"));
        assert_eq!(list.as_array().map(Vec::len), Some(1), "a list of one: {list}");
        list[0].take()
    }

    pub fn port_state(&self, name: &str) -> String {
        self.port(name)["state"].as_str().expect("state").to_owned()
    }

    #[track_caller]
    pub fn wait_port_state(&self, name: &str, state: &str) {
        eventually(&format!("port {name} is {state}"), || self.port_state(name) == state);
    }

    /// One object of `stats`.
    #[track_caller]
    pub fn stats(&self, port: &str) -> Value {
        let mut list = self.json(&format!("stats {port}"));
        assert_eq!(list.as_array().map(Vec::len), Some(1), "a list of one: {list}");
        list[0].take()
    }

    pub fn drops(&self, port: &str, reason: &str) -> u64 {
        self.stats(port)["drops"][reason].as_u64().unwrap_or(0)
    }

    /// The stations that are known, as (MAC, VLAN, port, state).
    #[track_caller]
    pub fn fdb(&self, filter: &str) -> Vec<(String, u64, String, String)> {
        let entries = self.json(&format!("fdb show {filter}"));
        let text = |entry: &Value, field: &str| entry[field].as_str().expect("text").to_owned();
        let entries = entries.as_array().expect("a list");
        entries
            .iter()
            .map(|entry| {
                let vlan = entry["vlan"].as_u64().expect("a number");
                (text(entry, "mac"), vlan, text(entry, "port"), text(entry, "state"))
            })
            .collect()
    }

    /// The port a station is known to be behind.
    pub fn whereabouts(&self, mac: super::frame::Mac) -> Option<String> {
        let wanted = mac_text(mac);
        self.fdb("").into_iter().find(|(mac, ..)| *mac == wanted).map(|(_, _, port, _)| port)
    }

    /// One request to the control API: status code, headers and body.
    pub fn http(&self, method: &str, target: &str, body: &str) -> (u16, String, String) {
        let mut stream = UnixStream::connect(&self.socket).expect("vswitchd listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, head.to_owned(), body.to_owned())
    }

    /// Frames received by all ports together.
    pub fn received(&self) -> u64 {
        let (_, _, body) = self.http("GET", "/v1/stats", "");
        let stats: Value = serde_json::from_str(&body).expect("JSON");
        stats.as_array().expect("a list").iter().filter_map(|port| port["rx_frames"].as_u64()).sum()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let stats = self.try_ctl(&["stats"]).stdout;
            eprintln!(
                "--- vswitchd's log and counters\n{}\n{}---",
                lines[lines.len().saturating_sub(25)..].join("\n"),
                String::from_utf8_lossy(&stats)
            );
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(libc::SIGTERM);
            for _ in 0..500 {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
            if !std::thread::panicking() {
                panic!("vswitchd did not end within 5 s of SIGTERM");
            }
        }
    }
}

/// vswitchctl with a socket.
pub fn ctl_at(socket: &Path, arguments: &[&str]) -> Output {
    Command::new(VSWITCHCTL)
        .arg("--socket")
        .arg(socket)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("vswitchctl runs")
}

pub fn mac_text(mac: super::frame::Mac) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}
