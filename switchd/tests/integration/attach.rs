//! Guests that attach themselves: the helper as QEMU starts it, who may and who may not, and clients that mean ill.

use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::harness::daemon::{Daemon, HELPER, Start};
use crate::harness::frame::{station, test_frame};
use crate::harness::guest::Guest;
use crate::harness::net::Ns;
use crate::harness::qemu::{Qemu, can_boot};
use crate::harness::{Outcome, PATIENCE, copy_program, eventually, has_users};
use crate::traffic::tcp_frame;

/// A user whom no machine knows by name, and a group of his.
const NOBODY: u32 = 54_321;
const GROUP: u32 = 54_322;
/// Another one.
const OTHER: u32 = 54_323;

/// The helper's end of the socket, as QEMU numbers it.
const ITS_FD: RawFd = 200;

/// Who starts the helper.
#[derive(Clone, Copy)]
enum As {
    Root,
    /// [`NOBODY`], without further groups.
    Nobody,
    /// [`NOBODY`], in [`GROUP`] too.
    Member,
    /// [`OTHER`], in [`GROUP`] too.
    Other,
}

/// A helper that runs, and QEMU's end of its socket.
struct Helper {
    child: Child,
    ours: UnixStream,
}

/// Starts the helper at `program` as QEMU does.
fn start(program: &Path, who: As, arguments: &[&str]) -> Helper {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let mut command = match who {
        As::Root => Command::new(program),
        As::Nobody | As::Member | As::Other => {
            let uid = if matches!(who, As::Other) { OTHER } else { NOBODY }.to_string();
            let mut command = Command::new("setpriv");
            command.args(["--reuid", &uid, "--regid", &uid]);
            match who {
                As::Member | As::Other => command.args(["--groups", &GROUP.to_string()]),
                _ => command.arg("--clear-groups"),
            };
            command.arg("--").arg(program);
            command
        }
    };
    let number = theirs.as_raw_fd();
    // SAFETY: one system call between fork and exec.
    unsafe {
        command.pre_exec(move || match libc::dup2(number, ITS_FD) {
            ITS_FD => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let child = command
        .args(arguments)
        .arg(format!("--fd={ITS_FD}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    Helper { child, ours }
}

impl Helper {
    /// What QEMU gets, or the one line that says why not.
    #[track_caller]
    fn end(self) -> Result<OwnedFd, String> {
        let output = self.child.wait_with_output().expect("our child");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "");
        if !output.status.success() {
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            assert_eq!(stderr.trim_end().lines().count(), 1, "one line: {stderr}");
            assert!(stderr.starts_with("vswitch-bridge-helper: "), "{stderr}");
            return Err(stderr.trim_end().to_owned());
        }
        assert_eq!(stderr, "");
        let mut byte = [7u8; 2];
        let mut slices = [IoSliceMut::new(&mut byte)];
        let mut control = nix::cmsg_space!([RawFd; 2]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message =
            recvmsg::<()>(self.ours.as_raw_fd(), &mut slices, Some(&mut control), flags).expect("sent");
        let fds: Vec<RawFd> = message
            .cmsgs()
            .expect("whole")
            .flat_map(|what| if let ControlMessageOwned::ScmRights(fds) = what { fds } else { Vec::new() })
            .collect();
        assert_eq!((message.bytes, fds.len(), byte[0]), (1, 1, 0), "one byte, one descriptor");
        // SAFETY: just received, nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fds[0]) })
    }
}

/// Where the daemon's attach socket is.
fn socket(daemon: &Daemon) -> String {
    daemon.socket.with_file_name("attach.sock").display().to_string()
}

/// Runs the helper for a bridge, with offloads.
#[track_caller]
fn ask(daemon: &Daemon, who: As, bridge: &str) -> Result<OwnedFd, String> {
    let socket = socket(daemon);
    let arguments = ["--socket", &socket, "--use-vnet", &format!("--br={bridge}")];
    // Where others than root can reach it.
    let copy = daemon.path("vswitch-bridge-helper");
    let program = if matches!(who, As::Root) { Path::new(HELPER) } else { &copy };
    start(program, who, &arguments).end()
}

/// Lets everybody into the daemon's folder, and puts the helper there.
fn open_up(daemon: &Daemon) {
    fs::set_permissions(daemon.path(""), fs::Permissions::from_mode(0o755)).expect("ours");
    copy_program(HELPER, &daemon.path("vswitch-bridge-helper"));
}

#[track_caller]
fn attach(daemon: &Daemon, bridge: &str) -> (Guest, String) {
    let tap = ask(daemon, As::Root, bridge).unwrap_or_else(|error| panic!("{error}"));
    let guest = Guest::holding(tap).expect("a tap");
    let name = guest.ifname().expect("it has a name");
    (guest, name)
}

fn names(daemon: &Daemon) -> Vec<String> {
    let ports = daemon.json("port show");
    let ports = ports.as_array().expect("a list").iter();
    ports.map(|port| port["name"].as_str().expect("text").to_owned()).collect()
}

#[track_caller]
fn wait_gone(daemon: &Daemon, switch: &Ns, name: &str) {
    eventually(&format!("{name} is gone"), || {
        !names(daemon).iter().any(|port| port == name) && switch.link(name).is_none()
    });
}

/// The way of one guest: the port, its frames, its end by QEMU's or the operator's hand.
pub fn a_guest_comes_and_goes() -> Outcome {
    let (switch, host) = (Ns::with_ipv6("v"), Ns::new("h"));
    let daemon = Daemon::start(&switch);
    daemon.ctl("bridge add br0");
    daemon.ctl(&format!("port add host --bridge br0 --type tap --netns {}", host.name));
    let mode = fs::metadata(socket(&daemon)).expect("it is there").permissions().mode() & 0o7777;
    assert_eq!(mode, 0o666);
    assert_eq!(daemon.json("status")["attach_socket"], socket(&daemon));

    let (mut guest, name) = attach(&daemon, "br0");
    assert_eq!(name, "vtap0");
    let port = daemon.port("vtap0");
    assert_eq!(
        (&port["type"], &port["state"], &port["bridge"]),
        (&"packet".into(), &"up".into(), &"br0".into())
    );
    assert_eq!((&port["origin"], &port["attached"]["uid"]), (&"attached".into(), &0.into()));
    assert!(port["attached"]["pid"].as_u64().is_some_and(|pid| pid > 1), "{port}");
    assert!(daemon.ctl("port show vtap0").contains("attached, by process "));
    let explained = daemon.ctl("port explain vtap0");
    assert!(explained.contains("with the guest") && !explained.contains("ip tuntap add"), "{explained}");
    let helper = format!(
        "bridge,id=net0,br=br0,helper='/usr/lib/qemu/vswitch-bridge-helper --socket {} --br=br0'",
        socket(&daemon)
    );
    assert!(explained.contains(&helper), "{explained}");
    let link = switch.link("vtap0").expect("in vswitchd's namespace");
    assert_eq!(link["mtu"], 1500);
    let addresses = switch.run("ip", &["-6", "addr", "show", "dev", "vtap0"]);
    assert_eq!(addresses, "", "the host stays out of it");

    let station_host = crate::harness::raw::Raw::open(&host, "host");
    let (me, other) = (station(1), station(2));
    guest.send([0; 10], &test_frame(other, me, "from the guest"));
    let seen = station_host.next(PATIENCE).expect("it arrives");
    assert_eq!(seen.bytes, test_frame(other, me, "from the guest"));
    station_host.send(&test_frame(me, other, "to the guest")).expect("sent");
    let is_it = |bytes: &[u8]| bytes == test_frame(me, other, "to the guest");
    assert!(guest.next(PATIENCE, is_it).is_some());
    daemon.ctl("fdb add 02:00:00:00:00:77 --port vtap0");

    // What a reload does not know stays.
    daemon.ctl("reload");
    assert_eq!(daemon.port_state("vtap0"), "up");

    drop(guest);
    wait_gone(&daemon, &switch, "vtap0");
    assert!(daemon.fdb("").iter().all(|(_, _, port, _)| port != "vtap0"), "stations go with it");
    assert!(daemon.refused("port show vtap0").contains("no port 'vtap0'"));

    // The lowest free name, of port and interface.
    switch.ip("tuntap add dev vtap0 mode tap");
    daemon.ctl("port add vtap1 --bridge br0 --type tap");
    let (second, name) = attach(&daemon, "br0");
    assert_eq!(name, "vtap2");
    switch.ip("link del vtap0");
    let (_third, name) = attach(&daemon, "br0");
    assert_eq!(name, "vtap0");

    // By the operator: the device goes although the guest holds it.
    daemon.ctl("port del vtap2");
    assert!(switch.link("vtap2").is_none());
    assert!(second.ifname().is_err());
    let error = ask(&daemon, As::Root, "br9").unwrap_err();
    assert!(error.contains("no bridge 'br9'; existing: br0"), "{error}");

    daemon.ctl("bridge del br0 --with-ports");
    assert!(switch.link("vtap0").is_none());
    let error = ask(&daemon, As::Root, "br0").unwrap_err();
    assert!(error.contains("no bridge 'br0'; there are none"), "{error}");
    // With a guest that goes on, the end is clean as well.
    daemon.ctl("bridge add br0");
    let (_guest, _) = attach(&daemon, "br0");
    let folder = daemon.terminate();
    assert!(switch.links().iter().all(|name| !name.starts_with("vtap")), "{:?}", switch.links());
    assert!(!folder.path().join("attach.sock").exists() && !folder.path().join("attach.sock.lock").exists());
    Ok(())
}

/// What a guest leaves to the wire stays undone on the way to a guest that takes it so.
pub fn superframes_between_guests() -> Outcome {
    let switch = Ns::new("v");
    let daemon = Daemon::start(&switch);
    daemon.ctl("bridge add br0");
    let ((mut one, first), (mut two, second)) = (attach(&daemon, "br0"), attach(&daemon, "br0"));
    let payload: Vec<u8> = (0..40_000u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
    let bytes = tcp_frame(station(2), station(1), &payload);
    // NEEDS_CSUM at 34 + 16; TCPv4 GSO, header 54 bytes, segments of 1000.
    let mut header = [1, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    header[2..4].copy_from_slice(&54u16.to_ne_bytes());
    header[4..6].copy_from_slice(&1000u16.to_ne_bytes());
    header[6..8].copy_from_slice(&34u16.to_ne_bytes());
    header[8..10].copy_from_slice(&16u16.to_ne_bytes());
    one.send(header, &bytes);
    let (got, whole) = two.next(PATIENCE, |bytes| bytes[12..14] == [8, 0]).expect("it arrives");
    assert_eq!((got[0] & 1, got[1], &got[4..6]), (1, 1, &1000u16.to_ne_bytes()[..]), "{got:?}");
    assert!(whole == bytes, "{} bytes of {}", whole.len(), bytes.len());
    let count = |port: &str, what: &str| daemon.stats(port)[what].as_u64().unwrap_or(0);
    assert_eq!((count(&first, "rx_frames"), count(&first, "rx_segments")), (1, 40));
    assert_eq!((count(&second, "tx_frames"), count(&second, "tx_segments")), (1, 40));

    // One that did not ask for the header takes frames as they are on a wire.
    let arguments = ["--socket", &socket(&daemon), "--br", "br0"];
    let plain = start(Path::new(HELPER), As::Root, &arguments).end().expect("attached");
    let mut plain = fs::File::from(plain);
    one.send(header, &bytes);
    let mut got = 0;
    let mut buffer = [0; 4096];
    while got < payload.len() {
        let len = plain.read(&mut buffer).expect("a frame");
        if buffer[12..14] == [8, 0] {
            assert_eq!(len, 1054);
            got += len - 54;
        }
    }
    assert_eq!(got, payload.len());
    Ok(())
}

/// In a user namespace all who have no number there read as one user, and that one is nobody: no rule is for him.
pub fn users_without_a_number() -> Outcome {
    has_users()?;
    let switch = Ns::new("v");
    let read = |what: &str| fs::read_to_string(format!("/proc/sys/kernel/{what}")).expect("a number");
    let (user, group) = (read("overflowuid"), read("overflowgid"));
    let rule = |rule: &str| format!("[[attach]]\n{rule}\nbridge = \"all\"\n");
    let rules = rule(&format!("user = {}", user.trim())) + &rule(&format!("group = {}", group.trim()));
    let config = format!("[[bridge]]\nname = \"br0\"\n{rules}");
    let daemon = Start::new(&switch).config(&config).in_user_namespace().ready();
    open_up(&daemon);
    let error = ask(&daemon, As::Nobody, "br0").unwrap_err();
    assert!(error.contains("has no number in vswitchd's user namespace"), "{error}");
    // Who has one gets further: to the TAP, which such a vswitchd cannot make.
    let error = ask(&daemon, As::Root, "br0").unwrap_err();
    assert!(error.contains("vtap0"), "{error}");
    Ok(())
}

/// Rules by user and group, changed by reload; what is missing is said.
pub fn by_rules() -> Outcome {
    has_users()?;
    let switch = Ns::new("v");
    let bridges = "[[bridge]]\nname = \"br0\"\n[[bridge]]\nname = \"br1\"\n";
    let daemon = Start::new(&switch).config(bridges).ready();
    open_up(&daemon);
    let config = daemon.path("vswitchd.toml").display().to_string();
    // Numbers that whoever asks knows, and the bridge that it named itself: the same whether there is one or not.
    let told = |bridge: &str| {
        format!(
            "vswitch-bridge-helper: uid {NOBODY} (groups {NOBODY}) is not admitted to bridge '{bridge}': ask the administrator of this host \
             for an attach rule"
        )
    };
    assert_eq!(ask(&daemon, As::Nobody, "br9").unwrap_err(), told("br9"));
    assert_eq!(ask(&daemon, As::Nobody, "br0").unwrap_err(), told("br0"));
    // Installed as qemu-bridge-helper is, it makes nobody root.
    let copy = daemon.path("vswitch-bridge-helper");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o4755)).expect("ours");
    assert_eq!(ask(&daemon, As::Nobody, "br0").unwrap_err(), told("br0"));
    // The log says what to do.
    let line =
        format!("add to {config}: [[attach]] user = {NOBODY} bridge = \"br0\"; then: vswitchctl reload");
    eventually("it is in the log", || daemon.log().contains(&line));
    drop(ask(&daemon, As::Root, "br0").expect("root always may"));
    let rules = |text: &str| {
        daemon.write_config(&format!("{bridges}{text}"));
        daemon.ctl("reload");
    };

    rules(&format!("[[attach]]\nuser = {NOBODY}\nbridge = \"br0\"\n"));
    let tap = ask(&daemon, As::Nobody, "br0").expect("allowed");
    let name = names(&daemon).into_iter().find(|name| name.starts_with("vtap")).expect("there");
    assert_eq!(daemon.port(&name)["attached"]["uid"], NOBODY);
    assert_eq!(ask(&daemon, As::Nobody, "br1").unwrap_err(), told("br1"));
    assert_eq!(ask(&daemon, As::Nobody, "br7").unwrap_err(), told("br7"));
    let shown = &daemon.json("attach show")[0];
    assert_eq!(
        (&shown["user"], &shown["bridge"], &shown["ports"]),
        (&NOBODY.into(), &"br0".into(), &1.into())
    );
    let memory = shown["memory_bytes"].as_u64().expect("a number");
    assert!((1..2 << 20).contains(&memory), "two workers take less than 2 MiB a port: {memory}");
    assert!(daemon.ctl("attach show").contains(&NOBODY.to_string()));
    assert_eq!(
        (&daemon.json("status")["attached_ports"], &daemon.json("status")["attached_ports_max"]),
        (&1.into(), &2048.into())
    );

    // Another rule that admits it keeps it; when none does any more, it is detached, its device with it.
    rules(&format!("[[attach]]\nuser = {NOBODY}\nbridge = \"all\"\n"));
    assert_eq!(daemon.port_state(&name), "up");
    daemon.write_config(&format!("{bridges}[[attach]]\ngroup = {GROUP}\nbridge = \"all\"\n"));
    let output = daemon.try_ctl(&["reload"]);
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    let detached = format!(
        "port '{name}' was detached: no [[attach]] rule admits uid {NOBODY} to bridge 'br0' any more"
    );
    assert!(output.status.success() && warning.contains(&detached), "{warning}");
    assert!(
        !names(&daemon).contains(&name) && switch.link(&name).is_none() && daemon.log().contains(&detached)
    );
    drop(tap);
    assert_eq!(ask(&daemon, As::Nobody, "br0").unwrap_err(), told("br0"));
    drop(ask(&daemon, As::Member, "br1").expect("a member may"));
    // Whoever may attach to all bridges may know which there are.
    let error = ask(&daemon, As::Member, "br7").unwrap_err();
    assert!(error.contains("no bridge 'br7'; existing: br0, br1"), "{error}");

    rules(&format!("[[attach]]\nuser = \"root\"\ngroup = {GROUP}\nbridge = \"all\"\n"));
    let error = ask(&daemon, As::Member, "br0").unwrap_err();
    assert!(error.contains("is not admitted to bridge 'br0'"), "both must hold: {error}");

    // A rule for nobody is a warning, one without anybody an error.
    daemon.write_config(&format!("{bridges}[[attach]]\nuser = \"no-such-user\"\nbridge = \"br0\"\n"));
    let output = daemon.try_ctl(&["reload"]);
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && warning.contains("there is no user 'no-such-user'"), "{warning}");
    daemon.write_config(&format!("{bridges}[[attach]]\nbridge = \"br0\"\n"));
    assert!(daemon.refused("reload").contains("needs 'user' or 'group'"));
    Ok(())
}

/// A rule has room for so many guests, of one user and of all, and so much memory; a port that goes makes room again.
pub fn by_limits() -> Outcome {
    has_users()?;
    let switch = Ns::new("v");
    let config = |limits: &str| {
        format!("[[bridge]]\nname = \"br0\"\n[[attach]]\ngroup = {GROUP}\nbridge = \"br0\"\n{limits}\n")
    };
    let daemon = Start::new(&switch)
        .arguments("--workers 2")
        .config(&config("ports_max = 3\nuser_ports_max = 2"))
        .ready();
    open_up(&daemon);
    let one = ask(&daemon, As::Member, "br0").expect("room");
    let two = ask(&daemon, As::Member, "br0").expect("room");
    let error = ask(&daemon, As::Member, "br0").unwrap_err();
    assert!(
        error.contains(&format!("uid {NOBODY} has 2 guests attached, user_ports_max of the rule")),
        "{error}"
    );
    // As another user, in the same group: as one person by subordinate user ids is.
    let three = ask(&daemon, As::Other, "br0").expect("room");
    let error = ask(&daemon, As::Other, "br0").unwrap_err();
    assert!(
        error.contains("3 guests are attached by the rule") && error.contains("its ports_max"),
        "{error}"
    );
    let _root = attach(&daemon, "br0");
    drop(three);
    eventually("there is room again", || ask(&daemon, As::Other, "br0").is_ok());
    drop((one, two));
    eventually("all but root's are gone", || names(&daemon).len() == 1);

    daemon.write_config(&config("memory_max_mib = 3"));
    daemon.ctl("reload");
    let mut held = Vec::new();
    let error = loop {
        match ask(&daemon, As::Member, "br0") {
            Ok(tap) => held.push(tap),
            Err(error) => break error,
        }
    };
    assert!(error.contains("memory_max_mib of 3"), "{error}");
    let shown = &daemon.json("attach show")[0];
    assert_eq!(shown["ports"], held.len());
    assert!(
        !held.is_empty() && shown["memory_bytes"].as_u64().is_some_and(|used| used <= 3 << 20),
        "{shown}"
    );
    assert_eq!(names(&daemon).len(), held.len() + 1, "what is refused leaves no port");
    let devices = || switch.links().iter().filter(|name| name.starts_with("vtap")).count();
    eventually("and no device", || devices() == held.len() + 1);
    Ok(())
}

/// The next vswitchd asks the rules again, by what is written on the devices: users and their groups.
pub fn rules_after_a_crash() -> Outcome {
    has_users()?;
    let switch = Ns::new("v");
    let config = |rules: &str| format!("[[bridge]]\nname = \"br0\"\n{rules}");
    let rule = |rule: &str| format!("[[attach]]\n{rule}\nbridge = \"br0\"\n");
    let before = rule(&format!("user = {NOBODY}")) + &rule(&format!("group = {GROUP}"));
    let daemon = Start::new(&switch).config(&config(&before)).ready();
    open_up(&daemon);
    let _by_user = ask(&daemon, As::Nobody, "br0").expect("admitted");
    let _by_group = ask(&daemon, As::Other, "br0").expect("admitted");
    let _root = attach(&daemon, "br0");
    assert_eq!(names(&daemon), ["vtap0", "vtap1", "vtap2"]);
    let folder = daemon.kill();
    let daemon =
        Start::new(&switch).config(&config(&rule(&format!("group = {GROUP}")))).folder(folder).ready();
    assert_eq!(names(&daemon), ["vtap1", "vtap2"]);
    let line = format!("no [[attach]] rule admits uid {NOBODY} to bridge 'br0' any more");
    assert!(daemon.log().contains(&line), "{}", daemon.log());
    assert!(switch.link("vtap0").is_none() && daemon.port_state("vtap1") == "up");
    Ok(())
}

/// Helpers side by side get ports of their own.
pub fn many_at_once() -> Outcome {
    const GUESTS: usize = 12;
    let switch = Ns::new("v");
    let daemon = Daemon::start(&switch);
    daemon.ctl("bridge add br0");
    let guests: Vec<(Guest, String)> = thread::scope(|scope| {
        let all: Vec<_> = (0..GUESTS).map(|_| scope.spawn(|| attach(&daemon, "br0"))).collect();
        all.into_iter().map(|one| one.join().expect("attached")).collect()
    });
    let mut got: Vec<String> = guests.iter().map(|(_, name)| name.clone()).collect();
    let mut expected: Vec<String> = (0..GUESTS).map(|number| format!("vtap{number}")).collect();
    got.sort();
    expected.sort();
    assert_eq!(got, expected);
    drop(guests);
    eventually("all are gone", || names(&daemon).is_empty());
    eventually("and their interfaces", || switch.links().iter().all(|name| !name.starts_with("vtap")));
    Ok(())
}

/// Does `work` as [`NOBODY`], on a thread that is his.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raised");
    let become_him = || {
        // SAFETY: the bare system calls, which change the calling thread alone; numbers and an empty list.
        unsafe {
            libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) == 0
                && libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY) == 0
                && libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) == 0
        }
    };
    thread::scope(|scope| {
        let his = scope.spawn(|| {
            assert!(become_him(), "{}", std::io::Error::last_os_error());
            work()
        });
        his.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Nobody who may only talk to the attach socket can do more than talk.
pub fn hostile_clients() -> Outcome {
    has_users()?;
    let switch = Ns::new("v");
    let daemon = Daemon::start(&switch);
    daemon.ctl("bridge add br0");
    let path = PathBuf::from(socket(&daemon));
    let connect = || {
        let stream = UnixStream::connect(&path).expect("open to everybody");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        stream
    };
    let answer = |mut stream: UnixStream| {
        let mut text = String::new();
        // The rest of what was sent may have been thrown away with a reset.
        let _ = stream.read_to_string(&mut text);
        text
    };
    drop(attach(&daemon, "br0"));
    let files = daemon.open_files();
    for (sent, told) in [
        (b"\xff\x00garbage\n".to_vec(), "not of the attach protocol"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "not of the attach protocol"),
        (vec![b'['; 100_000], "not of the attach protocol"),
        (b"{\"version\":9}\n".to_vec(), "version 9 there"),
        (b"{\"version\":1,\"bridge\":\"br0/../x\",\"use_vnet\":true}\n".to_vec(), "cannot name a bridge"),
    ] {
        let mut stream = connect();
        let _ = stream.write_all(&sent);
        let text = answer(stream);
        assert!(text.contains("\"error\"") && text.contains(told), "{told}: {text}");
    }
    // Half a line and then nothing, half a line and gone, a request and gone.
    let mut half = connect();
    half.write_all(b"{\"version\":1,").expect("sent");
    let mut gone = connect();
    gone.write_all(b"{\"version\"").expect("sent");
    drop(gone);
    for _ in 0..20 {
        let mut gone = connect();
        gone.write_all(b"{\"version\":1,\"bridge\":\"br0\",\"use_vnet\":true}\n").expect("sent");
    }
    // One that never reads holds what it was sent, as one that reads does.
    let mut deaf = connect();
    deaf.write_all(b"{\"version\":1,\"bridge\":\"br0\",\"use_vnet\":true}\n").expect("sent");

    // A thousand that say nothing, of a user whom no rule names: the others are served meanwhile.
    open_up(&daemon);
    let flood = as_nobody(|| (0..1000).map(|_| connect()).collect::<Vec<_>>());
    let began = Instant::now();
    let (guest, name) = attach(&daemon, "br0");
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    assert_eq!(daemon.port_state(&name), "up");
    drop((guest, deaf, flood));
    // The half line is refused when its time is over.
    let text = answer(half);
    assert!(text.contains("no request within"), "{text}");
    eventually("no port is left", || names(&daemon).is_empty());
    eventually("and no descriptor", || daemon.open_files() <= files);
    drop(attach(&daemon, "br0"));
    Ok(())
}

/// A helper that waits is told when vswitchd dies; the next vswitchd takes the socket.
pub fn vswitchd_killed() -> Outcome {
    let switch = Ns::new("v");
    let daemon = Daemon::start(&switch);
    daemon.ctl("bridge add br0");
    daemon.signal(libc::SIGSTOP);
    let socket = socket(&daemon);
    let waiting = start(Path::new(HELPER), As::Root, &["--socket", &socket, "--br=br0"]);
    thread::sleep(Duration::from_millis(300));
    let folder = daemon.kill();
    let error = waiting.end().unwrap_err();
    assert!(error.contains("broke off") && error.contains(&socket), "{error}");
    let nobody = start(Path::new(HELPER), As::Root, &["--socket", &socket, "--br=br0"]).end().unwrap_err();
    assert!(nobody.contains("nobody listens at") && nobody.contains("start vswitchd"), "{nobody}");

    let daemon = Start::new(&switch).folder(folder).ready();
    daemon.ctl("bridge add br0");
    let (_guest, name) = attach(&daemon, "br0");
    assert_eq!(name, "vtap0");
    Ok(())
}

/// A guest that runs goes on with the next vswitchd after one that was killed, if its bridge is in the configuration.
pub fn guests_survive_vswitchd() -> Outcome {
    let (switch, host) = (Ns::new("v"), Ns::new("h"));
    let config = format!(
        "[[bridge]]\nname = \"br0\"\n[[port]]\nname = \"host\"\nbridge = \"br0\"\ntype = \"tap\"\nnetns = \"{}\"\n",
        host.name
    );
    let daemon = Start::new(&switch).config(&config).ready();
    daemon.ctl("bridge add br1");
    let (mut guest, name) = attach(&daemon, "br0");
    let (_other, other) = attach(&daemon, "br1");
    let held = daemon.port(&name)["attached"].clone();
    let folder = daemon.kill();
    let daemon = Start::new(&switch).config(&config).folder(folder).ready();
    let port = daemon.port(&name);
    assert_eq!(
        (&port["origin"], &port["state"], &port["attached"]),
        (&"attached".into(), &"up".into(), &held)
    );
    assert!(
        daemon.log().contains(&format!("interface '{other}' of a guest that runs is not attached again"))
    );
    let station_host = crate::harness::raw::Raw::open(&host, "host");
    guest.send([0; 10], &test_frame(station(2), station(1), "still here"));
    let seen = station_host.next(PATIENCE).expect("it arrives");
    assert_eq!(seen.bytes, test_frame(station(2), station(1), "still here"));
    // It is nobody else's: another vswitchd in the same namespace does not take it.
    let elsewhere = Start::new(&switch).ready();
    assert_eq!(names(&elsewhere), [""; 0]);
    drop(guest);
    wait_gone(&daemon, &switch, &name);
    Ok(())
}

/// A TAP that its holder makes persistent goes all the same when he does: with vswitchd, or with the next one.
pub fn persistent_devices() -> Outcome {
    let switch = Ns::new("v");
    let config = "[[bridge]]\nname = \"br0\"\n";
    let daemon = Start::new(&switch).config(config).ready();
    let persist = |fd: &OwnedFd| {
        const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;
        // SAFETY: the ioctl takes a number by value.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETPERSIST, 1) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    };
    let held = || {
        start(Path::new(HELPER), As::Root, &["--use-vnet", "--br=br0", "--socket", &socket(&daemon)])
            .end()
            .expect("attached")
    };
    let (one, two) = (held(), held());
    eventually("both are there", || names(&daemon) == ["vtap0", "vtap1"]);
    persist(&one);
    persist(&two);
    drop(one);
    wait_gone(&daemon, &switch, "vtap0");
    assert_eq!(daemon.port_state("vtap1"), "up");
    let folder = daemon.kill();
    drop(two);
    assert!(switch.link("vtap1").is_some());
    let daemon = Start::new(&switch).config(config).folder(folder).ready();
    wait_gone(&daemon, &switch, "vtap1");
    Ok(())
}

/// The helper's arguments are QEMU's, and the socket can be elsewhere or nowhere.
pub fn arguments() -> Outcome {
    let switch = Ns::new("v");
    let folder = crate::harness::daemon::folder();
    let elsewhere = folder.path().join("sub/guests.sock").display().to_string();
    let daemon = Start::new(&switch).arguments(&format!("--attach-socket {elsewhere}")).ready();
    daemon.ctl("bridge add br0");
    assert!(!Path::new(&socket(&daemon)).exists());
    let run = |arguments: &[&str]| start(Path::new(HELPER), As::Root, arguments);
    drop(run(&["--use-vnet", "--br=br0", "--socket", &elsewhere]).end().expect("attached"));
    drop(run(&["--br", "br0", &format!("--socket={elsewhere}")]).end().expect("attached"));
    for wrong in [&["--br=br0", "--nonsense"] as &[&str], &[], &["--br=br0", "extra"]] {
        let output = run(wrong).child.wait_with_output().expect("our child");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("Usage: vswitch-bridge-helper"), "{text}");
    }
    // A descriptor that is no socket: nothing is left.
    let output = Command::new(HELPER)
        .args(["--br=br0", "--fd=1", "--socket", &elsewhere])
        .stdout(Stdio::null())
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && text.contains("descriptor 1 is not a socket"), "{text}");
    eventually("no port is left", || names(&daemon).is_empty());
    daemon.terminate();
    assert!(!folder.path().join("sub").exists(), "its folder was made for it");

    let daemon = Start::new(&switch).arguments("--attach-socket none").ready();
    assert!(!Path::new(&socket(&daemon)).exists());
    assert_eq!(daemon.json("status")["attach_socket"], serde_json::Value::Null);
    Ok(())
}

/// The helper for QEMU, which knows this daemon's socket.
pub fn helper_script(daemon: &Daemon) -> PathBuf {
    let script = daemon.path("helper");
    fs::write(&script, format!("#!/bin/sh\nexec {HELPER} --socket {} \"$@\"\n", socket(daemon)))
        .expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("ours");
    script
}

/// Two guests of a real QEMU, by `-netdev bridge`, talk to a namespace and to each other; segments stay together on the way.
pub fn real_guests() -> Outcome {
    can_boot()?;
    let (switch, host) = (Ns::new("v"), Ns::new("h"));
    let daemon = Daemon::start(&switch);
    daemon.ctl("bridge add br0");
    daemon.ctl(&format!("port add host --bridge br0 --type tap --netns {} --address 10.9.0.1/24", host.name));
    let script = helper_script(&daemon);
    let boot = |number: u8| {
        Qemu::start(
            &switch,
            &format!(
                "-netdev bridge,id=net,br=br0,helper={} \
                 -device virtio-net-pci,netdev=net,mac=52:54:00:00:00:0{number},romfile=",
                script.display()
            ),
        )
    };
    let (mut one, mut two) = (boot(1), boot(2));
    for (guest, number) in [(&mut one, 1), (&mut two, 2)] {
        guest.wait_until_ready();
        guest.address(&format!("10.9.0.1{number}/24"));
    }
    one.talk("10.9.0.11", &host, "10.9.0.1");

    // From guest to guest: what the sender leaves in one piece arrives in one.
    one.run("dd if=/dev/zero of=/tmp/zeros bs=65536 count=300 2>/dev/null && httpd -p 80 -h /tmp");
    two.run("ping -c 1 -W 5 10.9.0.11");
    let sender = daemon.whereabouts([0x52, 0x54, 0, 0, 0, 1]).expect("known");
    let receiver = daemon.whereabouts([0x52, 0x54, 0, 0, 0, 2]).expect("known");
    assert_ne!(sender, receiver);
    let count = |port: &str, way: &str| {
        let stats = daemon.stats(port);
        ["frames", "segments"].map(|what| stats[format!("{way}_{what}")].as_u64().expect("a number"))
    };
    let before = [count(&sender, "rx"), count(&receiver, "tx")];
    two.run("wget -q -O /tmp/got http://10.9.0.11/zeros");
    assert_eq!(two.run("wc -c </tmp/got").trim(), "19660800");
    let after = [count(&sender, "rx"), count(&receiver, "tx")];
    for (before, after) in before.into_iter().zip(after) {
        let (frames, segments) = (after[0] - before[0], after[1] - before[1]);
        println!("guest to guest: {segments} segments in {frames} frames");
        assert!(segments > 13_000 && frames * 4 < segments, "{frames} frames for {segments} segments");
    }
    one.kill();
    wait_gone(&daemon, &switch, &sender);
    assert_eq!(daemon.port_state(&receiver), "up");
    two.kill();
    wait_gone(&daemon, &switch, &receiver);
    Ok(())
}
