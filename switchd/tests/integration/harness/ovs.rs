//! An Open vSwitch of the test's own: userspace datapath, private folder, in the test's namespace.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::daemon::folder;
use super::net::{Ns, has_program};
use super::{Skip, eventually};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// A private ovsdb-server and ovs-vswitchd with bridge br0; dropping it ends both.
#[derive(Debug)]
pub struct Ovs {
    servers: Vec<Child>,
    folder: TempDir,
}

impl Ovs {
    /// # Errors
    /// It is not installed.
    pub fn start(ns: &Ns) -> Result<Ovs, Skip> {
        for program in ["ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl"] {
            if !has_program(program) {
                return Err(Skip(format!("Open vSwitch ({program}; apt-get install openvswitch-switch)")));
            }
        }
        if !Path::new(SCHEMA).exists() {
            return Err(Skip(format!("Open vSwitch's schema {SCHEMA}")));
        }
        let mut ovs = Ovs { servers: Vec::new(), folder: folder() };
        let database = ovs.path("conf.db");
        ovs.command(ns, "ovsdb-tool", &["create", &database, SCHEMA]);
        let socket = ovs.path("db.sock");
        let control = ovs.path("ovsdb.ctl");
        ovs.serve(
            ns,
            "ovsdb-server",
            &[
                &database,
                &format!("--remote=punix:{socket}"),
                &format!("--unixctl={control}"),
                "-vconsole:warn",
            ],
        );
        eventually("ovsdb-server listens", || Path::new(&socket).exists());
        ovs.vsctl(ns, "--no-wait init");
        let control = ovs.path("vswitchd.ctl");
        ovs.serve(
            ns,
            "ovs-vswitchd",
            &[&format!("unix:{socket}"), &format!("--unixctl={control}"), "-vconsole:warn"],
        );
        eventually("ovs-vswitchd listens", || Path::new(&control).exists());
        ovs.vsctl(ns, "add-br br0 -- set bridge br0 datapath_type=netdev");
        Ok(ovs)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn prepared(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(variable, self.folder.path());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn command(&self, ns: &Ns, program: &str, arguments: &[&str]) {
        let mut command = self.prepared(program);
        command.args(arguments).stderr(Stdio::piped());
        let output = ns.enter(move || command.output()).expect("it runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {}: {stderr}", arguments.join(" "));
    }

    fn serve(&mut self, ns: &Ns, program: &str, arguments: &[&str]) {
        let log = std::fs::File::create(self.path(&format!("{program}.log"))).expect("a log file");
        let mut command = self.prepared(program);
        command.args(arguments).stderr(log);
        let child = ns.enter(move || command.spawn()).expect("it starts");
        self.servers.push(child);
    }

    pub fn vsctl(&self, ns: &Ns, line: &str) {
        let database = format!("--db=unix:{}", self.path("db.sock"));
        let mut arguments = vec![database.as_str(), "--timeout=15"];
        arguments.extend(line.split_whitespace());
        self.command(ns, "ovs-vsctl", &arguments);
    }

    /// Forgets cached flows, so that the next frame is decided by what has been learned until now. (Otherwise a flow made
    /// before goes on for up to half a second.)
    pub fn forget_flows(&self) {
        let mut stream = UnixStream::connect(self.path("vswitchd.ctl")).expect("ovs-vswitchd listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
        let request = json!({"id": 0, "method": "revalidator/purge", "params": []}).to_string();
        stream.write_all(request.as_bytes()).expect("asked");
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let len = stream.read(&mut buffer).expect("answered");
            answer.extend(&buffer[..len]);
            if let Ok(answer) = serde_json::from_slice::<Value>(&answer) {
                assert!(answer["error"].is_null(), "revalidator/purge: {answer}");
                return;
            }
            assert_ne!(len, 0, "ovs-vswitchd broke off");
        }
    }
}

impl Drop for Ovs {
    fn drop(&mut self) {
        for server in self.servers.iter_mut().rev() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
