//! Namespaces and interfaces, made with iproute2 as a user would.

use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// First part of the name of every namespace that tests make; then the process id, a number and a label.
const PREFIX: &str = "vsit";

/// A network namespace that goes with the test. Nothing here holds it open, so deleting it destroys it.
#[derive(Debug)]
pub struct Ns {
    pub name: String,
}

impl Ns {
    /// Quiet: no IPv6, so the kernel sends nothing by itself.
    pub fn new(label: &str) -> Ns {
        let ns = Ns::add(label);
        ns.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        ns.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        ns
    }

    /// With IPv6, whose addresses are usable at once.
    pub fn with_ipv6(label: &str) -> Ns {
        let ns = Ns::add(label);
        for which in ["default", "all"] {
            ns.sysctl(&format!("net/ipv6/conf/{which}/accept_dad"), "0");
            ns.sysctl(&format!("net/ipv6/conf/{which}/router_solicitations"), "0");
        }
        ns
    }

    fn add(label: &str) -> Ns {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        // iproute2 sets /run/netns up when it adds the first one, and two at once get in each other's way.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{number}-{label}", std::process::id());
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        run("ip", &["netns", "add", &name]);
        let ns = Ns { name };
        ns.ip("link set lo up");
        // Netfilter on bridges, where it is loaded, is on in every new namespace.
        for table in ["iptables", "ip6tables", "arptables"] {
            let key = format!("net/bridge/bridge-nf-call-{table}");
            if Path::new("/proc/sys").join(&key).exists() {
                ns.sysctl(&key, "0");
            }
        }
        ns
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    pub fn open(&self) -> OwnedFd {
        fs::File::open(self.path()).expect("the namespace exists").into()
    }

    /// Does `work` on a thread inside the namespace. Sockets opened there stay there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let target = self.open();
        let result = std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                // SAFETY: changes the namespace of this thread only, which ends after the work.
                let entered = unsafe { libc::setns(target.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(entered, 0, "setns: {}", std::io::Error::last_os_error());
                drop(target);
                work()
            });
            inside.join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Commands of `ip`, one a line or separated by ';'.
    #[track_caller]
    pub fn ip(&self, commands: &str) {
        if let Err(error) = self.try_ip(commands) {
            panic!("ip -n {}: {commands}: {error}", self.name);
        }
    }

    pub fn try_ip(&self, commands: &str) -> Result<(), String> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        if let Some(mut stdin) = child.stdin.take() {
            let lines = commands.replace(';', "\n") + "\n";
            stdin.write_all(lines.as_bytes()).map_err(|error| error.to_string())?;
        }
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// A program inside the namespace; its standard output.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        match self.try_run(program, arguments) {
            Ok(output) => output,
            Err(error) => panic!("{program} {} in {}: {error}", arguments.join(" "), self.name),
        }
    }

    pub fn try_run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        self.enter(|| try_run(program, arguments))
    }

    pub fn sysctl(&self, key: &str, value: &str) {
        // /proc/sys/net shows the namespace of the thread that looks.
        let written = self.enter(|| fs::write(Path::new("/proc/sys").join(key), value));
        written.unwrap_or_else(|error| panic!("{key}={value} in {}: {error}", self.name));
    }

    /// What /sys says about an interface, such as "mtu" or "carrier"; `None` when there is none of that name.
    pub fn link(&self, ifname: &str) -> Option<serde_json::Value> {
        let text =
            try_run("ip", &["-n", &self.name, "-json", "-details", "link", "show", "dev", ifname]).ok()?;
        let links: Vec<serde_json::Value> = serde_json::from_str(&text).ok()?;
        links.into_iter().next()
    }

    pub fn exists(&self) -> bool {
        Path::new(&self.path()).exists()
    }

    /// Names of the interfaces in it.
    pub fn links(&self) -> Vec<String> {
        let text = run("ip", &["-n", &self.name, "-json", "link", "show"]);
        let links: Vec<serde_json::Value> = serde_json::from_str(&text).expect("JSON from ip");
        links.iter().filter_map(|link| link["ifname"].as_str().map(str::to_owned)).collect()
    }

    /// A veth pair, `here` in this namespace and `there` in the other, both up.
    #[track_caller]
    pub fn veth(&self, here: &str, other: &Ns, there: &str, mtu: u32) {
        self.ip(&format!(
            "link add {here} mtu {mtu} type veth peer name {there} mtu {mtu} netns {}; link set {here} up",
            other.name
        ));
        other.ip(&format!("link set {there} up"));
    }

    /// Switches offloads of an interface; they are what was asked for then.
    #[track_caller]
    pub fn offloads(&self, ifname: &str, asked: Offloads) {
        assert_eq!(self.try_offloads(ifname, asked), asked, "{ifname} in {}", self.name);
    }

    /// Switches offloads of an interface as far as it has them; what they are then.
    #[track_caller]
    pub fn try_offloads(&self, ifname: &str, asked: Offloads) -> Offloads {
        let word = |on: bool| if on { "on" } else { "off" };
        let gro = asked.gro.map(|on| ("gro", on));
        for (feature, on) in [("tx", asked.tx), ("tso", asked.tso), ("gso", asked.gso)].into_iter().chain(gro)
        {
            // One by one, and read back below: a device may refuse one and take the others.
            let _ = self.try_run("ethtool", &["-K", ifname, feature, word(on)]);
        }
        let text = self.run("ethtool", &["-k", ifname]);
        let is = |feature: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(feature)?.strip_prefix(": "));
            line.unwrap_or_else(|| panic!("no {feature} in {text}")).starts_with("on")
        };
        let (tso4, tso6) = (is("tx-tcp-segmentation"), is("tx-tcp6-segmentation"));
        assert_eq!(tso4, tso6, "half of TSO, {ifname} in {}", self.name);
        Offloads {
            tx: is("tx-checksumming"),
            tso: tso4,
            gso: is("generic-segmentation-offload"),
            gro: asked.gro.map(|_| is("generic-receive-offload")),
        }
    }
}

/// What a kernel may leave to an interface: checksums, cutting TCP superframes; and what it does in its stead: cutting any
/// superframe, putting one together on arrival.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offloads {
    pub tx: bool,
    pub tso: bool,
    pub gso: bool,
    /// `None`: as it is.
    pub gro: Option<bool>,
}

impl Offloads {
    pub const ON: Offloads = Offloads { tx: true, tso: true, gso: true, gro: None };
    pub const OFF: Offloads = Offloads { tx: false, tso: false, gso: false, gro: None };
    /// Frames of the MTU's size, their checksums unfinished.
    pub const CHECKSUM: Offloads = Offloads { tso: false, ..Offloads::ON };
    /// Superframes only where the interface takes them, none put together.
    pub const HARDWARE: Offloads = Offloads { gso: false, gro: Some(false), ..Offloads::ON };
}

impl Drop for Ns {
    fn drop(&mut self) {
        if self.exists() {
            let _ = try_run("ip", &["netns", "del", &self.name]);
        }
    }
}

/// Removes namespaces of earlier runs that were killed.
pub fn sweep() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let mut parts = name.split('-');
        let (Some(PREFIX), Some(pid)) = (parts.next(), parts.next()) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            let _ = try_run("ip", &["netns", "del", &name]);
        }
    }
}

#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    match try_run(program, arguments) {
        Ok(output) => output,
        Err(error) => panic!("{program} {}: {error}", arguments.join(" ")),
    }
}

pub fn try_run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(stdout)
    } else {
        Err(format!("{}: {}{stdout}", output.status, String::from_utf8_lossy(&output.stderr)))
    }
}

/// Whether a program is there.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(name).is_file())
}
