//! File systems that do not answer: only what is looked up there waits, and the switch goes on.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::harness::daemon::{Daemon, Start, folder};
use super::harness::net::Ns;
use super::harness::{Outcome, eventually};

/// An answer of the switch that takes longer has waited for a file system: those here never answer.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A FUSE file system that answers nothing, in the mount namespace of a process alone. Dropping it aborts what waits for it.
struct Hanging(#[allow(dead_code, reason = "held open")] OwnedFd);

impl Hanging {
    fn mount(pid: u32, at: &Path) -> Hanging {
        let at = std::ffi::CString::new(at.as_os_str().as_encoded_bytes()).expect("a path");
        let inside = std::thread::spawn(move || -> io::Result<OwnedFd> {
            let mounts = fs::File::open(format!("/proc/{pid}/ns/mnt"))?;
            let fuse: OwnedFd = fs::File::options().read(true).write(true).open("/dev/fuse")?.into();
            let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other\0", fuse.as_raw_fd());
            // SAFETY: system calls with strings that end in NUL and live as long; they change this thread alone.
            let done = unsafe {
                libc::unshare(libc::CLONE_FS) == 0
                    && libc::setns(mounts.as_raw_fd(), libc::CLONE_NEWNS) == 0
                    && libc::mount(
                        c"hanging".as_ptr(),
                        at.as_ptr(),
                        c"fuse".as_ptr(),
                        0,
                        data.as_ptr().cast(),
                    ) == 0
            };
            if done { Ok(fuse) } else { Err(io::Error::last_os_error()) }
        });
        Hanging(inside.join().expect("no panic").expect("FUSE can be mounted"))
    }
}

/// Requests are answered at once.
#[track_caller]
fn assert_answers(daemon: &Daemon, what: &str) {
    let asked = Instant::now();
    daemon.ctl("port show");
    daemon.ctl("status");
    assert!(asked.elapsed() < AT_ONCE, "{what}: {:?}", asked.elapsed());
}

/// A command that ends at once, however.
#[track_caller]
fn tried(daemon: &Daemon, line: &str) -> (bool, String) {
    let asked = Instant::now();
    let arguments: Vec<&str> = line.split_whitespace().collect();
    let output = daemon.try_ctl(&arguments);
    assert!(asked.elapsed() < 2 * AT_ONCE, "{line}: {:?}", asked.elapsed());
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A datagram socket bound to a path, from which a frame was sent to another.
fn sender(path: &Path, to: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(path).expect("bound");
    socket.send_to(&[2; 60], to).expect("sent");
    socket
}

pub fn senders_paths() -> Outcome {
    let (ns, work) = (Ns::new("v"), folder());
    let daemon = Start::new(&ns).private_mounts().ready();
    let hanging = work.path().join("fuse");
    fs::create_dir(&hanging).expect("made");
    let fuse = Hanging::mount(daemon.pid(), &hanging);
    daemon.ctl("bridge add br0");
    let at = |name: &str| work.path().join(name);
    for name in ["d1", "d2"] {
        daemon.ctl(&format!("port add {name} --bridge br0 --type dgram --path {}", at(name).display()));
    }
    // Here the path is in the folder, and there it is in the file system.
    let _first = sender(&hanging.join("s"), &at("d1"));
    std::thread::sleep(Duration::from_millis(300));
    assert_answers(&daemon, "the sender is looked up");
    eventually("it is said why", || {
        daemon.port("d1")["reason"].as_str().is_some_and(|why| why.contains("does not answer"))
    });
    // Others are nobody's hostages.
    let _other = sender(&at("s2"), &at("d2"));
    daemon.wait_port_state("d2", "up");
    assert_eq!(daemon.port_state("d1"), "down");
    assert_answers(&daemon, "another port's sender is looked up");

    // When the file system answers, or its daemon ends, it is as with any other.
    drop(fuse);
    let _second = sender(&at("s1"), &at("d1"));
    daemon.wait_port_state("d1", "up");
    assert_eq!(daemon.port("d1")["socket"]["peers"]["refused"], 1);
    // A port whose sender hangs can be had rid of.
    let fuse = Hanging::mount(daemon.pid(), &hanging);
    daemon.ctl("port del d1");
    daemon.ctl(&format!("port add d1 --bridge br0 --type dgram --path {}", at("d1").display()));
    let _third = sender(&hanging.join("t"), &at("d1"));
    std::thread::sleep(Duration::from_millis(300));
    assert!(tried(&daemon, "port del d1").0);
    assert!(!at("d1").exists());
    daemon.terminate();
    drop(fuse);
    Ok(())
}

pub fn the_operators_own() -> Outcome {
    let (ns, work) = (Ns::new("v"), folder());
    let daemon = Start::new(&ns).private_mounts().ready();
    let hanging = work.path().join("fuse");
    fs::create_dir(&hanging).expect("made");
    let before: PathBuf = hanging.join("before");
    daemon.ctl("bridge add br0");
    daemon.ctl(&format!("port add stays --bridge br0 --type stream --path {}", before.display()));
    daemon.ctl(&format!("port add gone --bridge br0 --type vde --path {}", hanging.join("folder").display()));
    // A peer that has been there before its file system hangs.
    let peer = UnixDatagram::bind(hanging.join("peer")).expect("bound");
    let (own, path) = (work.path().join("own"), hanging.join("peer"));
    daemon.ctl(&format!(
        "port add peer --bridge br0 --type dgram --path {} --peer {}",
        own.display(),
        path.display()
    ));
    daemon.wait_port_state("peer", "up");
    let _listener = UnixListener::bind(hanging.join("listener")).expect("bound");
    let netns = hanging.join("netns");
    fs::write(&netns, "").expect("made");
    let _fuse = Hanging::mount(daemon.pid(), &hanging);
    std::thread::sleep(Duration::from_millis(300));
    assert_answers(&daemon, "a peer is looked at");
    // What only connects is added, and waits.
    for (name, options) in [
        ("c1", "--type stream --client --path PATH/listener"),
        ("c2", "--type vde --client --path PATH/switch"),
        ("c3", "--type vhost-user --client --path PATH/listener"),
    ] {
        let line =
            format!("port add {name} --bridge br0 {options}").replace("PATH", &hanging.display().to_string());
        let (added, told) = tried(&daemon, &line);
        assert!(added, "{line}: {told}");
    }
    assert_answers(&daemon, "peers are looked for");
    eventually("it is said why", || {
        daemon.port("c1")["reason"].as_str().is_some_and(|why| why.contains("does not answer"))
    });
    // What makes a socket there, or wants a namespace from there, is refused in time.
    for options in
        ["--type stream --path PATH/new", "--type vde --path PATH/new", "--type tap --netns PATH/netns"]
    {
        let line =
            format!("port add n --bridge br0 {options}").replace("PATH", &hanging.display().to_string());
        let (added, told) = tried(&daemon, &line);
        assert!(!added && told.contains("does not answer"), "{line}: {told}");
        assert_answers(&daemon, &line);
    }
    // What is there goes in time.
    for name in ["stays", "gone", "peer", "c1", "c2", "c3"] {
        let (gone, told) = tried(&daemon, &format!("port del {name}"));
        assert!(gone, "{name}: {told}");
    }
    assert!(!own.exists(), "what can be looked up is removed");
    drop(peer);
    daemon.terminate();
    Ok(())
}
