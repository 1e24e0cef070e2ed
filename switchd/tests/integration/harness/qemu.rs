//! Real guests: QEMU with Debian's cloud kernel and an initramfs of busybox (`scripts/lib/initramfs.sh`).
//!
//! A guest boots in a few seconds, emulated (`-accel tcg`: a `/dev/kvm` may be there and not boot a stock kernel). Its serial
//! console is a channel for commands. It takes the network devices that the test names, and it ends with the test.
//!
//! The kernel and its drivers are unpacked by `scripts/setup test` into `guest` of cargo's target folder.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::daemon::folder;
use super::net::{Ns, run};
use super::{PATIENCE, Random, Skip, target_folder};

const QEMU: &str = "qemu-system-x86_64";
/// A guest's network card on the netdev `net`.
pub const CARD: &str = "-device virtio-net-pci,netdev=net,mac=52:54:00:00:00:01,romfile=";
/// Longest time to boot: emulated, on a machine that is busy with other tests.
const BOOT: Duration = Duration::from_secs(120);

const READY: &str = "@@guest is ready";
/// Lines of text that a guest tells.
const LINES: u32 = 100_000;
const ENDED: &str = "@@ended ";
/// A console of an emulated machine that is busy may lose characters; the guest notices.
const LINE_TRIES: usize = 5;

/// Whether guests can be run here.
///
/// # Errors
/// Names what is missing.
pub fn can_boot() -> Result<(), Skip> {
    let found = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(program).exists())
    };
    if !found(QEMU) {
        return Err(Skip("QEMU".to_owned()));
    }
    if !found("busybox") {
        return Err(Skip("busybox (busybox-static)".to_owned()));
    }
    if !kernel().exists() {
        return Err(Skip("guest kernel (scripts/setup test unpacks one)".to_owned()));
    }
    Ok(())
}

fn kernel() -> PathBuf {
    target_folder().join("guest/vmlinuz")
}

/// A running guest; dropping it ends it.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    stdin: ChildStdin,
    console: Arc<Mutex<Vec<u8>>>,
    /// How much of the console has been read.
    seen: usize,
    _folder: TempDir,
}

impl Qemu {
    /// Boots a guest with these arguments, separated by spaces, such as `-netdev … -device …`. QEMU runs in `ns`.
    #[track_caller]
    pub fn boot(ns: &Ns, arguments: &str) -> Qemu {
        let mut guest = Qemu::start(ns, arguments);
        guest.wait_until_ready();
        guest
    }

    /// Waits for a guest that was started.
    #[track_caller]
    pub fn wait_until_ready(&mut self) {
        self.wait_for(READY, BOOT);
    }

    /// Starts QEMU, and does not wait for the guest.
    #[track_caller]
    pub fn start(ns: &Ns, arguments: &str) -> Qemu {
        Qemu::with(ns, arguments.split_whitespace())
    }

    /// The same with arguments as they are.
    #[track_caller]
    pub fn with(ns: &Ns, arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> Qemu {
        let folder = folder();
        let initramfs = folder.path().join("initramfs");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lib/initramfs.sh");
        run(script.to_str().expect("UTF-8"), &[initramfs.to_str().expect("UTF-8")]);
        let target = ns.open();
        let mut command = Command::new(QEMU);
        command
            .args(["-accel", "tcg", "-cpu", "max", "-m", "192", "-nodefaults", "-no-user-config", "-display"])
            .args(["none", "-serial", "stdio", "-kernel"])
            .arg(kernel())
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // SAFETY: system calls between fork and exec, nothing else.
        unsafe {
            command.pre_exec(move || {
                if libc::setns(target.as_raw_fd(), libc::CLONE_NEWNET) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                // A test run that is killed takes its guests along.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut child = command.spawn().expect("QEMU starts");
        let console = Arc::new(Mutex::new(Vec::new()));
        keep(child.stdout.take().expect("piped"), &console);
        keep(child.stderr.take().expect("piped"), &console);
        let stdin = child.stdin.take().expect("piped");
        Qemu { child, stdin, console, seen: 0, _folder: folder }
    }

    /// Runs a command of the guest's shell, one line, that succeeds; what it writes.
    #[track_caller]
    pub fn run(&mut self, line: &str) -> String {
        let (code, output) = self.try_run(line);
        assert_eq!(code, 0, "in the guest: {line}: {output}");
        output
    }

    /// Runs a command of the guest's shell, one line; its exit code and what it writes.
    #[track_caller]
    pub fn try_run(&mut self, line: &str) -> (i32, String) {
        for _ in 0..LINE_TRIES {
            self.tell(line);
            let output = self.wait_for(ENDED, PATIENCE * 4);
            let code = self.wait_for("\n", PATIENCE);
            if code.trim() != "garbled" {
                return (code.trim().parse().expect("an exit code"), output);
            }
        }
        panic!("the guest's console loses characters of: {line}")
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{} {line}", line.len()).expect("the console takes it");
    }

    /// Gives the guest's first interface an address, and switches it on.
    #[track_caller]
    pub fn address(&mut self, cidr: &str) {
        self.run(&format!("ip link set eth0 up && ip addr add {cidr} dev eth0"));
    }

    /// Pings of full frames and TCP between the guest, which has the address `guest`, and a station in `ns`; each way, and every byte is
    /// compared.
    #[track_caller]
    pub fn talk(&mut self, guest: &str, ns: &Ns, station: &str) {
        // The station may be another than before, and the guest would believe for up to 45 s what it knew. Either may have asked for the
        // other in vain.
        self.run("ip neigh flush dev eth0");
        self.run(&format!("for n in $(seq 20); do ping -c 1 -W 1 {station} && break; done"));
        let heard = self.run(&format!("ping -c 3 -W 5 -s 1472 {station}"));
        assert!(heard.contains(" 0% packet loss"), "{heard}");
        let heard = ns.run("ping", &["-c", "3", "-i", "0.2", "-W", "5", "-s", "1472", "-M", "do", guest]);
        assert!(heard.contains(" 0% packet loss"), "{heard}");

        // Told by the guest.
        let listener = ns.enter(|| TcpListener::bind((station, 0))).expect("an address of the station");
        let port = listener.local_addr().expect("bound").port();
        let reader = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        });
        self.run(&format!("seq 1 {LINES} | nc {station} {port}"));
        let text = reader.join().expect("no panic").expect("all of it");
        assert!(
            text == (1..=LINES).map(|n| format!("{n}\n")).collect::<String>(),
            "what the guest sent changed"
        );

        // Told to the guest, which says it again.
        self.run("[ -e /tmp/echo ] || { touch /tmp/echo; nc -ll -p 7 -e cat & }");
        let mut content = vec![0; 512 << 10];
        Random::new(7).fill(&mut content);
        let connect = || ns.enter(|| TcpStream::connect((guest, 7)));
        let mut stream = connect();
        super::eventually("the guest listens", || {
            if stream.is_err() {
                stream = connect();
            }
            stream.is_ok()
        });
        let mut stream = stream.expect("just seen");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        stream.set_write_timeout(Some(PATIENCE)).expect("a time");
        let mut sender = stream.try_clone().expect("another handle");
        let mut echo = vec![0; content.len()];
        std::thread::scope(|scope| {
            let sent = scope.spawn(|| sender.write_all(&content));
            stream.read_exact(&mut echo).expect("all of it comes back");
            sent.join().expect("no panic").expect("the guest takes it");
        });
        assert!(echo == content, "what came back differs");
    }

    /// The guest starts anew under the same QEMU.
    #[track_caller]
    pub fn reboot(&mut self) {
        self.tell("reboot -f");
        self.wait_until_ready();
    }

    /// Moves the guest to another QEMU with the same devices ([`Migration`] has the arguments), at the second attempt: the first is
    /// cancelled. `meanwhile` is done in both, when all of the guest's memory was sent
    /// once, and what is written there has to be sent again; it does not end before, because the guest writes all the while. This QEMU stays, and its
    /// guest has stopped. Before the other goes on, both memories are compared. Returns how long the guest may have stood still.
    #[track_caller]
    pub fn migrate(&self, to: &Qemu, by: &Migration, mut meanwhile: impl FnMut()) -> Duration {
        super::eventually("the other QEMU listens", || by.incoming.exists() && by.monitors[1].exists());
        let [mut here, mut there] = by.monitors.each_ref().map(|path| Monitor::connect(path));
        // It does not end while the guest writes more than that.
        here.execute("migrate-set-parameters", json!({"downtime-limit": 1, "max-bandwidth": 32 << 20}));
        let nowhere = "exec:cat >/dev/null".to_owned();
        for uri in [nowhere, format!("unix:{}", by.incoming.display())] {
            here.execute("migrate", json!({ "uri": uri }));
            here.wait("query-migrate", |about| {
                assert!(about["status"] != "failed", "the guest does not move: {about}");
                about["ram"]["dirty-sync-count"].as_u64().is_some_and(|passes| passes > 2)
            });
            meanwhile();
            if uri.starts_with("exec") {
                here.execute("migrate_cancel", json!({}));
                here.wait("query-migrate", |about| about["status"] == "cancelled");
            }
        }
        let began = Instant::now();
        here.execute("migrate-set-parameters", json!({"downtime-limit": 2000, "max-bandwidth": 1 << 30}));
        here.wait("query-migrate", |about| about["status"] == "completed");
        there.wait("query-status", |about| about["status"] != "inmigrate");
        let differ = differences(&self.memory(), &to.memory());
        assert!(differ.is_empty(), "{} pages were not sent as they were at last: {differ:x?}", differ.len());
        there.execute("cont", json!({}));
        began.elapsed()
    }

    /// The file that is the guest's memory.
    fn memory(&self) -> File {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("QEMU runs");
        let paths = fds.flatten().map(|entry| entry.path());
        let mut named = paths.filter(|path| {
            fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("memfd:memory-backend-memfd"))
        });
        File::open(named.next().expect("memory-backend-memfd")).expect("ours")
    }

    /// Ends QEMU without asking.
    pub fn kill(mut self) {
        self.end();
    }

    /// All that the guest and QEMU have said.
    pub fn console(&self) -> String {
        let console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&console).into_owned()
    }

    /// Waits until the console says `what`; returns what it said before. What follows is left for the next call.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, patience: Duration) -> String {
        let began = Instant::now();
        loop {
            {
                let console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
                let rest = &console[self.seen..];
                if let Some(at) = rest.windows(what.len()).position(|bytes| bytes == what.as_bytes()) {
                    self.seen += at + what.len();
                    return String::from_utf8_lossy(&rest[..at]).replace('\r', "");
                }
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("QEMU ended with {status}: {}", self.console());
            }
            assert!(began.elapsed() < patience, "the guest did not say {what:?} within {patience:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            let console = self.console();
            let lines: Vec<&str> = console.lines().collect();
            eprintln!("--- the guest's console\n{}\n---", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

/// The sockets by which a guest is moved.
#[derive(Debug)]
pub struct Migration {
    monitors: [PathBuf; 2],
    incoming: PathBuf,
}

impl Migration {
    pub fn new(folder: &Path) -> Migration {
        let monitors = ["from", "to"].map(|name| folder.join(name));
        Migration { monitors, incoming: folder.join("incoming") }
    }

    /// For the QEMU that has the guest.
    pub fn outgoing(&self) -> String {
        format!(" -qmp unix:{},server=on,wait=off", self.monitors[0].display())
    }

    /// For the QEMU that gets it, and does not let it run before it is told to.
    pub fn incoming(&self) -> String {
        let monitor = self.monitors[1].display();
        format!(" -qmp unix:{monitor},server=on,wait=off -S -incoming unix:{}", self.incoming.display())
    }
}

/// Numbers of the pages in which two memories differ.
fn differences(mut one: &File, mut other: &File) -> Vec<u64> {
    const PAGE: usize = 4096;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    one.read_to_end(&mut a).and_then(|_| other.read_to_end(&mut b)).expect("read");
    assert_eq!(a.len(), b.len());
    let pages = (0..).zip(a.chunks(PAGE).zip(b.chunks(PAGE)));
    pages.filter(|(_, (a, b))| a != b).map(|(page, _)| page).collect()
}

/// QEMU's own protocol (QMP).
#[derive(Debug)]
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    #[track_caller]
    fn connect(path: &Path) -> Monitor {
        // The socket is there a moment before it is listened at.
        let mut stream = None;
        super::eventually("QEMU listens", || {
            stream = UnixStream::connect(path).ok();
            stream.is_some()
        });
        let stream = stream.expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        let mut monitor = Monitor(BufReader::new(stream));
        monitor.read();
        monitor.execute("qmp_capabilities", json!({}));
        monitor
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("QEMU speaks");
        serde_json::from_str(&line).expect("JSON")
    }

    #[track_caller]
    fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({"execute": command, "arguments": arguments});
        self.0.get_mut().write_all(request.to_string().as_bytes()).expect("QEMU listens");
        loop {
            let mut answer = self.read();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            // What else comes are events.
            if let Some(result) = answer.get_mut("return") {
                return result.take();
            }
        }
    }

    /// Asks until the answer is as it should be.
    #[track_caller]
    fn wait(&mut self, query: &str, mut done: impl FnMut(&Value) -> bool) {
        let began = Instant::now();
        loop {
            let about = self.execute(query, json!({}));
            if done(&about) {
                return;
            }
            assert!(began.elapsed() < BOOT, "{query} still says: {about}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Keeps what comes until its end.
fn keep(mut from: impl Read + Send + 'static, console: &Arc<Mutex<Vec<u8>>>) {
    let console = Arc::clone(console);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            console.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..len]);
        }
    });
}
