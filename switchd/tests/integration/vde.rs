//! Ports that one plug of the VDE switch protocol connects to: real plugs, hostile ones, and the switch as a plug of another.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vswitch::port::vde::protocol::{ADDRESS_LEN, REQUEST_LEN, address, address_of, request, request_for};

use crate::harness::daemon::{Daemon, Start, folder, with_host};
use crate::harness::frame::{BROADCAST, is_test, station, test_frame};
use crate::harness::net::{Ns, has_program, try_run};
use crate::harness::qemu::{CARD, Qemu, can_boot};
use crate::harness::raw::Raw;
use crate::harness::{Outcome, PATIENCE, Skip, eventually, has_users, rights};

/// A plug that follows the protocol to the letter.
#[derive(Debug)]
struct Plug {
    control: UnixStream,
    data: UnixDatagram,
    /// The switch's.
    theirs: PathBuf,
}

impl Plug {
    #[track_caller]
    fn into(folder: &Path) -> Plug {
        let path = folder.join(".00001-00000");
        // Who comes too soon after another is let in a little later.
        let data = UnixDatagram::bind(&path).expect("bound");
        let mut control = connect(folder);
        control.write_all(&request_for(&path, "a plug of a test")).expect("sent");
        let theirs = answer(&mut control).expect("an answer");
        data.connect(&theirs).expect("the switch's socket");
        data.set_read_timeout(Some(PATIENCE)).expect("a time");
        fs::remove_file(path).expect("as libvdeplug does");
        Plug { control, data, theirs }
    }

    /// Frames between the plug and a station in a namespace, both ways.
    #[track_caller]
    fn talk(&self, host: &Raw, number: u32) {
        let (me, to) = (station(number), station(0x70));
        self.data.send(&test_frame(BROADCAST, me, "from the plug")).expect("sent");
        assert_eq!(host.collect(1, PATIENCE, is_test).len(), 1);
        let back = test_frame(me, to, "to the plug");
        host.send(&back).expect("sent");
        let mut buffer = [0; 2000];
        // Behind what others have flooded.
        while self.data.recv(&mut buffer).expect("a frame") != back.len() || buffer[..back.len()] != back {}
    }
}

/// The folder of another switch, without the switch.
struct FakeSwitch(UnixListener);

impl FakeSwitch {
    fn new(place: &Path) -> FakeSwitch {
        fs::create_dir(place).expect("made");
        FakeSwitch(UnixListener::bind(place.join("ctl")).expect("bound"))
    }

    /// One that this user runs, as the kernel tells its plugs.
    fn of_user(place: &Path, user: u32) -> FakeSwitch {
        fs::create_dir(place).expect("made");
        // Where he can get to it.
        fs::set_permissions(place.parent().expect("a folder"), fs::Permissions::from_mode(0o755))
            .expect("ours");
        chown(place, Some(user), None).expect("ours");
        std::thread::scope(|scope| {
            let work = || {
                // SAFETY: the system call changes this thread alone, which ends after the work.
                let changed = unsafe { libc::syscall(libc::SYS_setresuid, -1, user, -1) };
                assert_eq!(changed, 0, "{}", std::io::Error::last_os_error());
                FakeSwitch(UnixListener::bind(place.join("ctl")).expect("bound"))
            };
            scope.spawn(work).join().expect("no panic")
        })
    }

    /// A plug that has asked, and the socket that it names.
    #[track_caller]
    fn asked(&self) -> (UnixStream, PathBuf) {
        let (mut control, _) = self.0.accept().expect("the switch plugs in");
        control.set_read_timeout(Some(PATIENCE)).expect("a time");
        let mut bytes = [0; REQUEST_LEN + "vswitchd".len()];
        control.read_exact(&mut bytes).expect("a request");
        (control, request(&bytes).expect("a request").expect("all of it").to_owned())
    }
}

#[track_caller]
fn connect(folder: &Path) -> UnixStream {
    let control = UnixStream::connect(folder.join("ctl")).expect("the switch listens");
    control.set_read_timeout(Some(PATIENCE)).expect("a time");
    control
}

/// What the switch answers; `None`: it closes the connection.
fn answer(control: &mut UnixStream) -> Option<PathBuf> {
    let mut bytes = [0; ADDRESS_LEN];
    match control.read_exact(&mut bytes) {
        Ok(()) => Some(address(&bytes).expect("an address").expect("all of it").to_owned()),
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{error}");
            None
        }
    }
}

fn count(daemon: &Daemon, port: &str, what: &str) -> u64 {
    daemon.port(port)["socket"]["peers"][what].as_u64().expect("a number")
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("made").permissions().mode() & 0o7777
}

/// A real program that goes with the test.
struct Program(Child);

impl Program {
    /// A program with these arguments, in `ns`; what it reads from stays open.
    fn start(ns: &Ns, line: &str) -> Program {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &ns.name]).args(line.split_whitespace());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Program(command.spawn().expect("ip starts"))
    }

    /// `vde_plug2tap`, whose interface `tap0` has this address.
    #[track_caller]
    fn plug(ns: &Ns, folder: &Path, address: &str) -> Program {
        let program = Program::start(ns, &format!("vde_plug2tap --sock {} tap0", folder.display()));
        eventually("it has a TAP", || ns.links().iter().any(|name| name == "tap0"));
        ns.ip(&format!("addr add {address} dev tap0; link set tap0 up"));
        program
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("our child").is_some()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn has(program: &str) -> Outcome {
    if has_program(program) { Ok(()) } else { Err(Skip(format!("{program} (vde2)"))) }
}

#[track_caller]
fn reaches(from: &Ns, to: &str) {
    eventually("an answer to a ping", || from.try_run("ping", &["-c", "1", "-W", "1", to]).is_ok());
}

/// Options, what is shown, what is refused, and what is left behind.
pub fn as_asked() -> Outcome {
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let daemon = with_host(&ns, &host);
    let place = daemon.path("vm1.vde");
    let text = place.display().to_string();
    let add = format!("port add vm1 --bridge br0 --type vde --path {text}");
    daemon.ctl(&add);
    daemon.ctl(&format!("{add} --server --mode 660 --mtu 1500 --may-exist"));
    let error = daemon.refused(&format!("{add} --mode 600 --may-exist"));
    assert!(error.contains("mode is 660, not 600"), "{error}");
    let shown = daemon.port("vm1");
    assert_eq!((&shown["type"], &shown["state"]), (&"vde".into(), &"down".into()));
    assert_eq!((&shown["mtu"], &shown["socket"]["role"]), (&1500.into(), &"server".into()));
    assert_eq!((&shown["socket"]["path"], &shown["socket"]["mode"]), (&text.as_str().into(), &"660".into()));
    assert_eq!((mode(&place), mode(&place.join("ctl"))), (0o1770, 0o660));
    let words = daemon.ctl("port explain vm1");
    assert!(words.contains(&format!("-netdev vde,id=net0,sock={text} ")), "{words}");
    assert!(words.contains("its peer is not there"), "{words}");

    let refused = |line: &str, word: &str| {
        let error = daemon.refused(&format!("port add p --bridge br0 --type {line}"));
        assert!(error.contains(word), "{word}: {error}");
    };
    refused("vde", "needs 'path'");
    refused("vde --path here", "absolute path");
    refused(&format!("vde --path {text}"), "port del vm1");
    refused(&format!("vde --path /tmp/{}", "x".repeat(90)), "longer than 92 bytes");
    refused("vde --path /tmp/a[1]", "read ' \" \\ % [ and ] as something else");
    refused("vde --path /tmp/a://b", "for the name of a module");
    refused("vde --listen 127.0.0.1:1", "'listen' is for stream ports");
    refused(&format!("vde --path {}", daemon.path("").display()), "is a folder that no vswitchd left");
    refused(&format!("vde --path {}", daemon.path("log").display()), "exists and is not a folder");
    refused(&format!("vde --path {text}/ctl"), "port del vm1");
    refused("vde --path /nowhere/x", "No such file");
    refused(&format!("stream --path {text}/ctl"), "port del vm1");
    assert!(connect(&place).write_all(b"?").is_ok(), "it goes on listening");

    daemon.ctl(&format!("port add c --bridge br0 --type vde --path {text}.c --client"));
    assert!(daemon.ctl("port show c").contains(&format!("client {text}.c")));
    assert!(daemon.ctl("port explain c").contains(&format!("vde_switch --sock {text}.c")));
    daemon.ctl(&format!("port add o --bridge br0 --type vde --path {text}.o --mode 666"));
    assert_eq!(mode(&daemon.path("vm1.vde.o")), 0o1777);
    daemon.ctl("port del vm1");
    assert!(!place.exists());
    // What plugs have left there goes, too.
    let _left = UnixDatagram::bind(daemon.path("vm1.vde.o").join(".00007-00000")).expect("bound");
    let folder = daemon.terminate();
    let left: Vec<_> =
        fs::read_dir(folder.path()).expect("there").flatten().map(|file| file.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("vde")), "{left:?}");
    Ok(())
}

/// A plug that comes, leaves and comes again; the station behind it is forgotten meanwhile, and others are turned away.
pub fn plugs_come_and_go() -> Outcome {
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let daemon = with_host(&ns, &host);
    let place = daemon.path("p.vde");
    daemon.ctl(&format!("port add p --bridge br0 --type vde --path {} --isolated on", place.display()));
    let raw = Raw::open(&host, "host");
    for round in 0..3 {
        let plug = Plug::into(&place);
        daemon.wait_port_state("p", "up");
        plug.talk(&raw, 0x71);
        assert_eq!(daemon.whereabouts(station(0x71)).as_deref(), Some("p"));
        let mut second = connect(&place);
        second.write_all(&request_for(&place.join("none"), "")).expect("sent");
        assert_eq!(answer(&mut second), None, "one at a time");
        let stranger = UnixDatagram::unbound().expect("a socket");
        let error = stranger.send_to(b"hello", &plug.theirs).expect_err("not his");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        plug.talk(&raw, 0x71);
        if round == 1 {
            // Its control connection stays, and nobody is behind its datagram socket.
            let Plug { control, data, .. } = plug;
            drop(data);
            // Not with the first frame, while a child of another test that begins holds the socket, too.
            eventually("a frame finds nobody", || {
                raw.send(&test_frame(BROADCAST, station(0x70), "to nobody")).expect("sent");
                daemon.port_state("p") == "down"
            });
            drop(control);
        } else {
            drop(plug);
            daemon.wait_port_state("p", "down");
        }
        assert_eq!(daemon.whereabouts(station(0x71)), None);
        assert_eq!(count(&daemon, "p", "refused"), round + 1);
        assert!(!place.join("data").exists());
    }
    assert_eq!(count(&daemon, "p", "connections"), 3);
    assert!(daemon.port("p")["isolated"].as_bool().expect("a flag"));
    Ok(())
}

/// Nonsense, pieces, silence, other people's sockets, a plug that does not read: all of it harms only who does it.
pub fn hostile_plugs() -> Outcome {
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let daemon = with_host(&ns, &host);
    let places = ["bad", "good"].map(|name| {
        let place = daemon.path(&format!("{name}.vde"));
        daemon.ctl(&format!("port add {name} --bridge br0 --type vde --path {}", place.display()));
        place
    });
    let (bad, raw) = (&places[0], Raw::open(&host, "host"));
    let good = Plug::into(&places[1]);
    good.talk(&raw, 0x72);

    // Sockets that are not the plug's own, or none.
    let others = bad.join("others");
    let _others = UnixDatagram::bind(&others).expect("bound");
    // Where root is the only user, nobody else has any.
    let has_others = chown(&others, Some(4711), None).is_ok();
    let (own, link, file) = (bad.join("own"), bad.join("link"), bad.join("file"));
    let _own = UnixDatagram::bind(&own).expect("bound");
    symlink(&own, &link).expect("made");
    fs::write(&file, "").expect("written");
    let unnamed = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name("vswitch").expect("a name"));
    let elsewhere = daemon.path("elsewhere");
    let _elsewhere = UnixDatagram::bind(&elsewhere).expect("bound");
    let names = ["link", "file", "none", "..", "ctl", "data", ""].map(|name| bad.join(name));
    let named = names.iter().chain([&elsewhere]).chain(has_others.then_some(&others));
    let mut requests: Vec<Vec<u8>> = named.map(|path| request_for(path, "")).collect();
    let mut abstract_name = request_for(Path::new("/vswitch"), "");
    abstract_name[14] = 0;
    let mut version = request_for(&own, "");
    version[4] = 2;
    requests.extend([abstract_name, version, b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0xff; 4]]);
    for (number, request) in (1..).zip(requests) {
        let mut control = connect(bad);
        control.write_all(&request).expect("sent");
        assert_eq!(answer(&mut control), None, "{request:?}");
        eventually("it is counted", || count(&daemon, "bad", "refused") == number);
    }
    drop(unnamed);
    assert_eq!((daemon.port_state("bad").as_str(), count(&daemon, "bad", "connections")), ("down", 0));
    let said = daemon.log().lines().filter(|line| line.contains("turned away")).count();
    assert!((1..=2).contains(&said), "told, but not each time: {}", daemon.log());
    good.talk(&raw, 0x72);

    // The name that the switch's own socket has by default is taken.
    let _taken = UnixDatagram::bind(bad.join("data")).expect("bound");
    let plug = Plug::into(bad);
    assert_ne!(plug.theirs, bad.join("data"));
    plug.talk(&raw, 0x71);
    drop(plug);
    daemon.wait_port_state("bad", "down");

    // Many who say nothing keep nobody out, and have to go in the end.
    let (began, refused) = (Instant::now(), count(&daemon, "bad", "refused"));
    let mut silent: Vec<UnixStream> = (0..40).map(|_| connect(bad)).collect();
    drop(Plug::into(bad));
    daemon.wait_port_state("bad", "down");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(silent.iter_mut().all(|control| answer(control).is_none()));
    eventually("they are counted", || count(&daemon, "bad", "refused") >= refused + 40);
    assert_eq!(count(&daemon, "bad", "refused"), refused + 40);

    // Piece by piece, the description last.
    let path = bad.join("slow");
    let data = UnixDatagram::bind(&path).expect("bound");
    let request = request_for(&path, "slow");
    let mut control = connect(bad);
    for piece in request.chunks(11) {
        control.write_all(piece).expect("sent");
        std::thread::sleep(Duration::from_millis(20));
    }
    let theirs = answer(&mut control).expect("an answer");
    daemon.wait_port_state("bad", "up");
    data.connect(theirs).expect("the switch's");
    good.talk(&raw, 0x72);
    // Too much of it.
    let _ = control.write_all(&[b'x'; 1000]);
    assert_eq!(answer(&mut control), None);
    daemon.wait_port_state("bad", "down");

    // It floods and does not read.
    let mut bad = Plug::into(bad);
    bad.data.set_nonblocking(true).expect("set");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        let _ = bad.data.send(&test_frame(BROADCAST, station(0x73), "flood"));
        let _ = bad.data.send(&[]);
        let _ = bad.data.send(&[0xff; 70_000]);
    }
    raw.drain();
    let full = test_frame(BROADCAST, station(0x70), &"x".repeat(1400));
    eventually("its queue is full", || {
        (0..200).for_each(|_| drop(raw.send(&full)));
        daemon.drops("bad", "tx_full") > 0
    });
    assert!(daemon.drops("bad", "rx_truncated") > 0);
    let _ = bad.control.write_all(b"bye");
    drop(bad);
    daemon.wait_port_state("bad", "down");
    drop(good);
    daemon.wait_port_state("good", "down");
    let good = Plug::into(&places[1]);
    good.talk(&raw, 0x74);
    Ok(())
}

/// Descriptors that the other end sends along cannot hold up who reads what they come with, because they never come.
pub fn descriptors_are_refused() -> Outcome {
    rights::can_refuse()?;
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let daemon = with_host(&ns, &host);
    let raw = Raw::open(&host, "host");
    let place = daemon.path("p");
    daemon.ctl(&format!("port add p --bridge br0 --type vde --path {}", place.display()));
    rights::is_refused(&connect(&place));
    let plug = Plug::into(&place);
    rights::is_refused(&plug.control);
    rights::is_refused(&plug.data);
    plug.talk(&raw, 0x71);

    let place = daemon.path("other");
    let switch = FakeSwitch::new(&place);
    daemon.ctl(&format!("port add up --bridge br0 --type vde --path {} --client", place.display()));
    let (control, theirs) = switch.asked();
    rights::is_refused(&control);
    let data = UnixDatagram::unbound().expect("a socket");
    data.connect(theirs).expect("the switch's");
    rights::is_refused(&data);
    Ok(())
}

/// The switch is killed and started again, and its folder taken over; a reload changes nothing for who is plugged in.
pub fn restarted() -> Outcome {
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let sockets = folder();
    let at = |name: &str| sockets.path().join(name);
    let config = format!(
        "[[bridge]]\nname = \"br0\"\n\
         [[port]]\nname = \"host\"\nbridge = \"br0\"\ntype = \"tap\"\nnetns = \"{}\"\n\
         [[port]]\nname = \"a\"\nbridge = \"br0\"\ntype = \"vde\"\npath = \"{}\"\nmode = \"600\"\n\
         [[port]]\nname = \"b\"\nbridge = \"br0\"\ntype = \"vde\"\npath = \"{}\"\n",
        host.name,
        at("a").display(),
        at("b").display()
    );
    let mut left = None;
    for round in 0..3 {
        let daemon = Start::new(&ns).config(&config).folder(left.take()).ready();
        let raw = Raw::open(&host, "host");
        let (mut a, mut b) = (Plug::into(&at("a")), Plug::into(&at("b")));
        a.talk(&raw, 0x75);
        b.talk(&raw, 0x76);
        daemon.ctl("reload");
        a.talk(&raw, 0x75);
        daemon.write_config(&config.replace("mode = \"600\"", "mode = \"660\""));
        daemon.ctl("reload");
        assert_eq!((mode(&at("a")), mode(&at("a").join("ctl"))), (0o1770, 0o660));
        b.talk(&raw, 0x76);
        assert_eq!(answer(&mut a.control), None, "made anew");
        fs::write(at("b").join("file"), "in the way").expect("written");
        left = Some(if round == 1 { daemon.terminate() } else { daemon.kill() });
        assert_eq!(at("a").exists(), round != 1, "a clean end removes it");
        assert!(at("b").join("file").exists(), "what is no socket stays");
        assert_eq!(answer(&mut b.control), None, "the plug sees it");
    }
    Ok(())
}

/// A user's vswitchd, without privileges.
pub fn without_privileges() -> Outcome {
    let ns = Ns::new("v");
    let daemon = Start::new(&ns).unprivileged().ready();
    daemon.ctl("bridge add br0");
    let [a, b] = ["a", "b"].map(|name| {
        let place = daemon.path(name);
        daemon.ctl(&format!("port add {name} --bridge br0 --type vde --path {}", place.display()));
        let plug = Plug::into(&place);
        daemon.wait_port_state(name, "up");
        plug
    });
    let sent = test_frame(BROADCAST, station(0x78), "from one to the other");
    a.data.send(&sent).expect("sent");
    let mut buffer = [0; 100];
    assert_eq!(b.data.recv(&mut buffer).expect("a frame"), sent.len());
    assert_eq!(buffer[..sent.len()], sent);
    Ok(())
}

/// TAP devices of two namespaces, by `vde_plug2tap`; `vde_plug` as one plug too many.
pub fn real_plugs() -> Outcome {
    has("vde_plug2tap")?;
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let (one, two) = (Ns::new("one"), Ns::new("two"));
    let daemon = with_host(&ns, &host);
    let [a, b] = ["a", "b"].map(|name| {
        let place = daemon.path(name);
        daemon.ctl(&format!("port add {name} --bridge br0 --type vde --path {}", place.display()));
        place
    });
    let mut first = Program::plug(&one, &a, "10.9.0.2/24");
    let second = Program::plug(&two, &b, "10.9.0.3/24");
    for (from, to) in [(&one, "10.9.0.1"), (&one, "10.9.0.3"), (&host, "10.9.0.3")] {
        reaches(from, to);
        let heard = from.run("ping", &["-c", "5", "-i", "0.2", "-W", "5", "-s", "1472", to]);
        assert!(heard.contains(" 0% packet loss"), "{heard}");
    }
    let error = one.try_run("vde_plug", &[&format!("vde://{}", a.display())]).expect_err("one at a time");
    assert!(error.contains("vde_open"), "{error}");
    assert_eq!(count(&daemon, "a", "refused"), 1);
    drop(second);
    daemon.wait_port_state("b", "down");
    let _second = Program::plug(&two, &b, "10.9.0.3/24");
    // With another address than before.
    one.ip("neigh flush all");
    reaches(&one, "10.9.0.3");
    // Another user's plug, where the mode lets him in.
    fs::set_permissions(daemon.path(""), fs::Permissions::from_mode(0o755)).expect("set");
    let other = daemon.path("other");
    daemon.ctl(&format!("port add o --bridge br0 --type vde --path {} --mode 666", other.display()));
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
    if try_run("setpriv", &[&nobody[..], &["true"]].concat()).is_ok() {
        let line = format!("setpriv {} vde_plug vde://{}", nobody.join(" "), other.display());
        let program = Program::start(&two, &line);
        daemon.wait_port_state("o", "up");
        drop(program);
        daemon.wait_port_state("o", "down");
    }
    daemon.ctl("port del a");
    eventually("its plug ends", || first.has_ended());
    Ok(())
}

/// The switch as a plug of vde_switch, which is killed and comes back.
pub fn into_another_switch() -> Outcome {
    has("vde_switch")?;
    has("vde_plug2tap")?;
    let (ns, host, far) = (Ns::new("v"), Ns::new("h"), Ns::new("far"));
    let daemon = with_host(&ns, &host);
    let place = daemon.path("other");
    daemon.ctl(&format!("port add up --bridge br0 --type vde --path {} --client", place.display()));
    assert_eq!(daemon.port_state("up"), "down");
    for round in 1..=2 {
        let other = Program::start(&far, &format!("vde_switch --sock {}", place.display()));
        daemon.wait_port_state("up", "up");
        let left = fs::read_dir(&place).expect("there").flatten();
        assert!(
            left.into_iter().all(|left| !left.file_name().to_string_lossy().starts_with('.')),
            "ours is gone"
        );
        let plug = Program::plug(&far, &place, "10.9.0.4/24");
        host.ip("neigh flush all");
        reaches(&host, "10.9.0.4");
        assert_eq!(count(&daemon, "up", "connections"), round);
        drop((other, plug));
        daemon.wait_port_state("up", "down");
        fs::remove_dir_all(&place).expect("what it left");
    }
    // Another one of ours.
    daemon.ctl("bridge add br1");
    daemon.ctl(&format!("port add far --bridge br1 --type tap --netns {} --address 10.9.0.5/24", far.name));
    daemon.ctl(&format!("port add down --bridge br1 --type vde --path {}", place.display()));
    daemon.wait_port_state("up", "up");
    reaches(&host, "10.9.0.5");
    daemon.ctl("port del down");
    daemon.wait_port_state("up", "down");
    // One that says nothing, one that does not speak the protocol, and one whose answer leads elsewhere.
    let other = FakeSwitch::new(&place);
    for said in
        [None, Some(vec![0xff; ADDRESS_LEN]), Some(request_for(&daemon.path("log"), "")[12..].to_vec())]
    {
        let (mut control, _) = other.asked();
        if let Some(said) = said {
            control.write_all(&said).expect("sent");
        }
        assert_eq!(answer(&mut control), None);
        assert_eq!(daemon.port_state("up"), "down");
    }
    Ok(())
}

/// Another user's switch, whose answer leads to a socket of root's, and then to his own.
pub fn into_another_users_switch() -> Outcome {
    has_users()?;
    const USER: u32 = 4711;
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let daemon = with_host(&ns, &host);
    let place = daemon.path("other");
    let other = FakeSwitch::of_user(&place, USER);
    let theirs = place.join("data");
    let data = UnixDatagram::bind(&theirs).expect("bound");
    daemon.ctl(&format!("port add up --bridge br0 --type vde --path {} --client", place.display()));
    let (mut control, _) = other.asked();
    control.write_all(&address_of(&theirs)).expect("sent");
    assert_eq!(answer(&mut control), None);
    eventually("it is told why", || daemon.log().contains("it is another user's"));
    assert_eq!((daemon.port_state("up").as_str(), count(&daemon, "up", "connections")), ("down", 0));

    chown(&theirs, Some(USER), None).expect("ours");
    let (mut control, plug) = other.asked();
    control.write_all(&address_of(&theirs)).expect("sent");
    daemon.wait_port_state("up", "up");
    assert!(!plug.exists(), "its file is not in the way when the other switch ends");
    data.set_read_timeout(Some(PATIENCE)).expect("a time");
    let sent = test_frame(BROADCAST, station(0x70), "to the other switch");
    Raw::open(&host, "host").send(&sent).expect("sent");
    let mut buffer = [0; 2000];
    while data.recv(&mut buffer).expect("a frame") != sent.len() || buffer[..sent.len()] != sent {}
    Ok(())
}

/// QEMU with the longest frames that it takes; a guest that boots again, and one whose switch was killed.
pub fn a_guest() -> Outcome {
    can_boot()?;
    let (ns, host) = (Ns::new("v"), Ns::new("h"));
    let sockets = folder();
    let place = sockets.path().join("g").display().to_string();
    let config = format!(
        "[[bridge]]\nname = \"br0\"\n\
         [[port]]\nname = \"host\"\nbridge = \"br0\"\ntype = \"tap\"\nnetns = \"{}\"\n\
         address = \"10.9.0.1/24\"\nmac = \"02:00:00:00:09:01\"\nmtu = 4078\n\
         [[port]]\nname = \"g\"\nbridge = \"br0\"\ntype = \"vde\"\npath = \"{place}\"\nmtu = 4078\n",
        host.name
    );
    let netdev = format!("-netdev vde,id=net,sock={place} {CARD},host_mtu=4078");
    let mut daemon = Start::new(&ns).config(&config).ready();
    for _ in 0..2 {
        let mut guest = Qemu::boot(&ns, &netdev);
        daemon.wait_port_state("g", "up");
        for again in [false, true] {
            if again {
                guest.reboot();
            }
            guest.address("10.9.0.2/24");
            guest.talk("10.9.0.2", &host, "10.9.0.1");
            let heard = guest.run("ping -c 3 -W 5 -s 4050 10.9.0.1");
            assert!(heard.contains(" 0% packet loss"), "{heard}");
        }
        assert_eq!(count(&daemon, "g", "connections"), 1);
        let left = daemon.kill();
        daemon = Start::new(&ns).config(&config).folder(left).ready();
        // QEMU plugs in once, and its place is free for another.
        assert_eq!(daemon.port_state("g"), "down");
    }
    Ok(())
}
