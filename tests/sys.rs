//! Namespaces, rtnetlink and silencing the host, with real interfaces. Needs root and iproute2, which is the oracle
//! for what a namespace's name is.
//!
//! Every test makes its own namespaces and removes them; nothing touches the namespace the tests run in. What the
//! kernel is too old for, or does not allow in a user namespace, is reported as ignored, by the name of what is missing.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods, missing_docs)]

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Trial};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use vswitch::addr::MacAddr;
use vswitch::spec::{MacvtapLower, MacvtapMode, MacvtapSpec, Netns, PortKind, TapSpec};
use vswitch::status::Peer;
use vswitch::sys::netlink::{Link, LinkChange, LinkEvent, Monitor, Netlink, VethEnd};
use vswitch::sys::packet::{self, Kernel, PacketSocket, Received, Spares};
use vswitch::sys::uppers::{Inspector, Uppers};
use vswitch::sys::{bpf, netns};

/// Environment variable that makes [`child`] do something: this binary runs itself where a test needs a process.
const CHILD: &str = "VSWITCH_TEST_CHILD";
/// Longest wait for something that should happen.
const PATIENCE: Duration = Duration::from_secs(10);

/// A test cannot run here; names what is missing.
struct Skip(&'static str);
type Outcome = Result<(), Skip>;

/// A test that runs everywhere, and one that may lack something.
enum Test {
    Always(fn()),
    Maybe(fn() -> Outcome),
}

const TESTS: &[(&str, Test)] = &[
    ("names_are_the_same_things_as_iproute2s", Test::Always(names_are_the_same_things_as_iproute2s)),
    (
        "a_name_that_is_deleted_or_made_anew_is_noticed",
        Test::Always(a_name_that_is_deleted_or_made_anew_is_noticed),
    ),
    ("callers_never_move_and_may_be_many", Test::Always(callers_never_move_and_may_be_many)),
    ("hostile_names_are_refused", Test::Always(hostile_names_are_refused)),
    ("a_veth_pair_knows_both_its_ends", Test::Always(a_veth_pair_knows_both_its_ends)),
    ("several_go_at_once_and_no_others", Test::Always(several_go_at_once_and_no_others)),
    ("a_pair_is_made_whole_or_not_at_all", Test::Always(a_pair_is_made_whole_or_not_at_all)),
    ("one_message_moves_renames_and_sets", Test::Always(one_message_moves_renames_and_sets)),
    ("addresses_and_routes_carry_traffic", Test::Always(addresses_and_routes_carry_traffic)),
    ("the_monitor_sees_what_happens", Test::Always(the_monitor_sees_what_happens)),
    (
        "a_kernel_bridge_letting_go_of_an_interface_is_not_its_removal",
        Test::Always(a_kernel_bridge_letting_go_of_an_interface_is_not_its_removal),
    ),
    (
        "a_device_goes_with_the_port_it_was_made_for",
        Test::Always(a_device_goes_with_the_port_it_was_made_for),
    ),
    ("a_monitor_that_is_too_slow_is_told_so", Test::Always(a_monitor_that_is_too_slow_is_told_so)),
    (
        "the_host_falls_silent_while_packet_sockets_still_hear",
        Test::Maybe(the_host_falls_silent_while_packet_sockets_still_hear),
    ),
    (
        "the_silence_ends_with_the_process_even_if_it_is_killed",
        Test::Maybe(the_silence_ends_with_the_process_even_if_it_is_killed),
    ),
    (
        "what_the_host_sends_is_not_received_whatever_the_kernel",
        Test::Maybe(what_the_host_sends_is_not_received_whatever_the_kernel),
    ),
    (
        "without_a_ring_long_frames_are_received_too",
        Test::Always(without_a_ring_long_frames_are_received_too),
    ),
    ("few_receive_and_all_send", Test::Maybe(few_receive_and_all_send)),
    ("what_is_on_top_is_seen_in_every_namespace", Test::Maybe(what_is_on_top_is_seen_in_every_namespace)),
    ("exec_shows_the_namespaces_own_sys_and_etc", Test::Maybe(exec_shows_the_namespaces_own_sys_and_etc)),
];

fn main() -> ExitCode {
    if let Ok(task) = std::env::var(CHILD) {
        child(&task);
        return ExitCode::SUCCESS;
    }
    let trials = TESTS.iter().map(|(name, test)| {
        Trial::ignorable_test(*name, || match test {
            Test::Always(test) => {
                test();
                Ok(Completion::Completed)
            }
            Test::Maybe(test) => Ok(test().map_or_else(
                |Skip(missing)| Completion::ignored_with(format!("missing: {missing}")),
                |()| Completion::Completed,
            )),
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// A namespace that goes with the test.
struct Ns {
    name: Netns,
    fd: OwnedFd,
}

impl Ns {
    fn new(label: &str) -> Ns {
        let name = unique(label);
        netns::add(&name).expect("root may add a namespace");
        let fd = netns::open(&Netns(name.clone())).expect("just added");
        Ns { name: Netns(name), fd }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn netlink(&self) -> Netlink {
        Netlink::open_in(self.fd()).expect("netlink")
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = netns::del(&self.name.0);
    }
}

fn unique(label: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    format!("vswt-{}-{}-{label}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Two namespaces with a veth pair between them, `va` and `vb`, up.
fn pair() -> (Ns, Ns, Link, Link) {
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    a.netlink().add_veth(&VethEnd::new("va", a.fd()), &VethEnd::new("vb", b.fd())).expect("veth");
    let (va, vb) = (get(&a, "va"), get(&b, "vb"));
    (a, b, va, vb)
}

fn get(ns: &Ns, name: &str) -> Link {
    ns.netlink().link(name).expect("asked").unwrap_or_else(|| panic!("{name} in {}", ns.name))
}

fn ip(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("ip").args(arguments).output().expect("iproute2 is installed");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs [`child`] in a process of its own, in namespace `ns`.
fn spawn_child(ns: Option<BorrowedFd<'_>>, task: &str) -> std::process::Child {
    let exe = std::env::current_exe().expect("this binary");
    netns::run_in(ns, || {
        Command::new(exe).env(CHILD, task).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    })
    .and_then(|child| child)
    .expect("a child process")
}

/// What the tests run in a process of its own.
fn child(task: &str) {
    let words: Vec<&str> = task.split(' ').collect();
    match words[..] {
        ["exec", ns, ref argv @ ..] => {
            let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
            println!("refused: {}", netns::exec(&Netns(ns.to_owned()), &argv));
        }
        ["peer", ifname] => {
            let netlink = Netlink::open_in(None).expect("netlink");
            let link = netlink.link(ifname).expect("asked").expect("there");
            println!("peer: {:?}", netlink.peer_of(&link).expect("asked"));
        }
        ["silence", ifindex] => {
            let silence = bpf::silence_host(ifindex.parse().expect("number"), None);
            println!("silenced: {}", silence.is_ok());
            thread::sleep(PATIENCE * 6);
        }
        _ => panic!("unknown task {task}"),
    }
}

fn names_are_the_same_things_as_iproute2s() {
    let ours = unique("ours");
    netns::add(&ours).expect("added");
    assert!(ip(&["netns", "list"]).1.lines().any(|line| line.split(' ').next() == Some(&ours)));
    let (ok, lo) = ip(&["-n", &ours, "link", "show", "lo"]);
    assert!(ok && lo.contains("LOOPBACK,UP"), "{lo}");
    let twice = netns::add(&ours).expect_err("exists");
    assert!(twice.is_exists() && twice.to_string().contains(&ours), "{twice}");
    assert!(ip(&["netns", "del", &ours]).0);
    assert!(!netns::list().expect("list").contains(&ours));

    let theirs = unique("theirs");
    assert!(ip(&["netns", "add", &theirs]).0);
    assert!(netns::list().expect("list").contains(&theirs));
    let fd = netns::open(&Netns(theirs.clone())).expect("opens");
    assert!(Netlink::open_in(Some(fd.as_fd())).expect("netlink").link("lo").expect("asked").is_some());
    netns::del(&theirs).expect("deleted");
    assert!(!ip(&["netns", "list"]).1.contains(&theirs));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&theirs) && !mounts.contains(&ours), "a mount was left behind");

    let other = Ns::new("other");
    for error in [netns::del(&theirs).expect_err("gone"), netns::open(&Netns(theirs)).expect_err("gone")] {
        let text = error.to_string();
        assert!(
            error.is_not_found() && text.contains("no network namespace") && text.contains("existing: "),
            "{text}"
        );
    }
    drop(other);
}

fn a_name_that_is_deleted_or_made_anew_is_noticed() {
    let name = Netns(unique("again"));
    assert_eq!(netns::identity(&name), None);
    netns::add(&name.0).expect("added");
    let first = netns::identity(&name).expect("there");
    let pinned = netns::open(&name).expect("opens");
    assert_eq!(netns::identity_of(pinned.as_fd()).expect("stat"), first);
    assert!(ip(&["netns", "del", &name.0]).0);
    assert_eq!(netns::identity(&name), None);
    assert!(ip(&["netns", "add", &name.0]).0);
    assert!(netns::identity(&name).is_some_and(|second| second != first));
    netns::del(&name.0).expect("deleted");
}

/// A port that was opened and then not taken over, for whatever reason, leaves no device: not even a macvtap, which the kernel keeps.
fn a_device_goes_with_the_port_it_was_made_for() {
    let (a, _b, ..) = pair();
    let lower = MacvtapLower { ifname: "va".into(), mode: MacvtapMode::Passthru, mac: None, mtu: None };
    let netns = Some(a.name.clone());
    let macvtap = MacvtapSpec { ifname: "up".into(), netns: netns.clone(), queues: None, lower: Some(lower) };
    let tap = TapSpec { netns, ..TapSpec::new("up") };
    for kind in [PortKind::Macvtap(macvtap), PortKind::Tap(tap.clone()), PortKind::Internal(tap)] {
        let opened = vswitch::port::open(&kind, 2).expect("opened");
        assert!(a.netlink().link("up").expect("asked").is_some(), "{kind:?}");
        drop(opened);
        assert!(a.netlink().link("up").expect("asked").is_none(), "{kind:?} left its device");
    }
    assert!(a.netlink().link("va").expect("asked").is_some());
}

fn callers_never_move_and_may_be_many() {
    let here = || netns::identity(&Netns("/proc/thread-self/ns/net".to_owned())).expect("stat");
    let before = here();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let before = here();
                let ns = Ns::new("many");
                let there = netns::run_in(ns.fd(), here).expect("entered");
                assert_eq!(Some(there), netns::identity(&ns.name));
                assert_ne!(there, before);
                assert_eq!(here(), before);
            });
        }
    });
    assert_eq!(here(), before);
    // What is no namespace cannot be entered, and the closure does not run.
    let file = std::fs::File::open("/dev/null").expect("open");
    assert!(netns::run_in(Some(file.as_fd()), || panic!("ran")).is_err());
}

fn hostile_names_are_refused() {
    for name in ["", ".", "..", "../etc/passwd", "/etc/passwd", "a/b", "a\0b", &"x".repeat(256)] {
        assert!(netns::add(name).is_err() && netns::del(name).is_err(), "{name:?}");
    }
    for path in ["", "..", "../../etc/passwd", "/dev/null", "/run", "/proc/self/ns/mnt"] {
        assert!(netns::open(&Netns(path.to_owned())).is_err(), "{path:?}");
    }
    // A name without a namespace behind it, as a crash may leave: it can be seen and removed, not opened.
    let stale = unique("stale");
    drop(Ns::new("makes-the-folder"));
    std::fs::write(format!("/run/netns/{stale}"), "").expect("root may write there");
    assert!(netns::list().expect("list").contains(&stale));
    let error = netns::open(&Netns(stale.clone())).expect_err("not a namespace");
    assert!(error.to_string().contains("is not a network namespace"), "{error}");
    netns::del(&stale).expect("removed");

    let ns = Ns::new("hostile");
    let netlink = ns.netlink();
    for bad in ["", "..", "a/b", "a b", "tap%d", "sixteen-bytes-12"] {
        // An interface that exists may have longer names beside its own.
        let found = netlink.link(bad);
        assert!(found.is_err() || bad.len() > 15 && found.is_ok_and(|link| link.is_none()), "{bad:?}");
        assert!(netlink.add_veth(&VethEnd::new("ok", None), &VethEnd::new(bad, None)).is_err(), "{bad:?}");
        let rename = LinkChange { name: Some(bad), ..LinkChange::default() };
        assert!(netlink.set_link(1, &rename).is_err(), "{bad:?}");
    }
    assert!(netlink.link(&"x".repeat(128)).is_err());
    assert_eq!(netlink.links().expect("asked").len(), 1, "only lo");
}

fn a_veth_pair_knows_both_its_ends() {
    let (a, b, va, vb) = pair();
    assert!(va.up && va.running && vb.up && vb.running, "{va:?} {vb:?}");
    assert_eq!((va.kind.as_deref(), va.mtu), (Some("veth"), 1500));
    assert!(a.netlink().link("vb").expect("asked").is_none(), "the peer was made where it belongs");
    let peer = |ns: &Ns, link: &Link| ns.netlink().peer_of(link).expect("asked");
    assert_eq!(
        peer(&a, &va),
        Some(Peer { ifindex: vb.index, ifname: Some("vb".into()), netns: Some(b.name.clone()) })
    );
    assert_eq!(
        peer(&b, &vb),
        Some(Peer { ifindex: va.index, ifname: Some("va".into()), netns: Some(a.name.clone()) })
    );

    // Both ends in one namespace, by the connection's default; and a name that does not tell where the peer is.
    a.netlink().add_veth(&VethEnd::new("x", None), &VethEnd::new("y", None)).expect("veth");
    let x = get(&a, "x");
    let y = get(&a, "y");
    assert_eq!(
        peer(&a, &x),
        Some(Peer { ifindex: y.index, ifname: Some("y".into()), netns: Some(a.name.clone()) })
    );

    // Of the process's own namespace, the name is not said; neither is that of one without a name.
    let inside = |ns: &Ns, task: &str| {
        let output = spawn_child(ns.fd(), task).wait_with_output().expect("child");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let own = Some(Peer { ifindex: y.index, ifname: Some("y".into()), netns: None });
    assert!(inside(&a, "peer x").contains(&format!("peer: {own:?}")));
    let far = Some(Peer { ifindex: vb.index, ifname: Some("vb".into()), netns: Some(b.name.clone()) });
    assert!(inside(&a, "peer va").contains(&format!("peer: {far:?}")));
    netns::del(&b.name.0).expect("deleted; our descriptor keeps the namespace");
    assert_eq!(peer(&a, &va), Some(Peer { ifindex: vb.index, ifname: Some("vb".into()), netns: None }));

    a.netlink().del_link(va.index).expect("deleted");
    assert_eq!(b.netlink().link("vb").expect("asked"), None, "both ends go");
    assert!(a.netlink().del_link(va.index).expect_err("gone").is_not_found());
}

fn several_go_at_once_and_no_others() {
    let (a, b, va, _) = pair();
    let netlink = a.netlink();
    for name in ["w0", "w1", "w2"] {
        netlink
            .add_veth(&VethEnd::new(name, a.fd()), &VethEnd::new(&format!("{name}p"), b.fd()))
            .expect("made");
    }
    // The highest group is somebody's: another is taken.
    let theirs = LinkChange { group: Some(u32::MAX), ..LinkChange::default() };
    netlink.set_link(va.index, &theirs).expect("grouped");
    let (w0, w1, w2) = (get(&a, "w0"), get(&a, "w1"), get(&a, "w2"));
    let renamed = LinkChange { name: Some("other"), ..LinkChange::default() };
    netlink.set_link(w2.index, &renamed).expect("renamed");
    netlink.del_links(&[&w0, &w1, &w2]).expect("deleted");
    let names: Vec<String> = netlink.links().expect("listed").into_iter().map(|link| link.name).collect();
    assert_eq!(names, ["lo", "va", "other"], "what is not what it was stays");
    netlink.del_links(&[&w0]).expect("gone already");
}

fn a_pair_is_made_whole_or_not_at_all() {
    let (a, b, ..) = pair();
    let error = a
        .netlink()
        .add_veth(&VethEnd::new("new", a.fd()), &VethEnd::new("vb", b.fd()))
        .expect_err("vb is taken");
    assert!(error.is_exists() && error.to_string().contains("'new' and 'vb'"), "{error}");
    assert_eq!(a.netlink().link("new").expect("asked"), None);
}

fn one_message_moves_renames_and_sets() {
    let (a, b, va, vb) = pair();
    let mac = MacAddr([2, 0, 0, 0, 0xab, 1]);
    let change = LinkChange {
        up: Some(true),
        mtu: Some(9000),
        mac: Some(mac),
        name: Some("uplink"),
        txqlen: Some(4321),
        group: Some(7),
        alias: Some("a note"),
        netns: b.fd(),
    };
    a.netlink().set_link(va.index, &change).expect("moved");
    assert_eq!(a.netlink().link("va").expect("asked"), None);
    let link = get(&b, "uplink");
    let is = (link.up, link.mtu, link.mac, link.txqlen, link.group);
    assert_eq!(is, (true, 9000, Some(mac), 4321, 7));
    assert_eq!(link.alias.as_deref(), Some("a note"));
    assert!(b.netlink().link("va").expect("asked").is_none());

    let netlink = b.netlink();
    netlink.set_link(vb.index, &LinkChange { up: Some(false), ..LinkChange::default() }).expect("down");
    assert!(!get(&b, "vb").up && !get(&b, "uplink").running && get(&b, "uplink").up);
    // What the kernel refuses is told with the name, the change and the kernel's words.
    let error = netlink.set_link(link.index, &LinkChange { mtu: Some(1 << 20), ..LinkChange::default() });
    let text = error.expect_err("too much").to_string();
    assert!(text.contains("mtu 1048576") && text.contains("'uplink'") && text.contains("maximum"), "{text}");
    let taken = netlink.set_link(link.index, &LinkChange { name: Some("vb"), ..LinkChange::default() });
    assert!(taken.expect_err("taken").is_exists());
    let gone = netlink.set_link(4_000_000, &LinkChange { up: Some(true), ..LinkChange::default() });
    assert!(gone.expect_err("no such").is_not_found());
}

const A4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
const B4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));

/// Whether a datagram from `from` to `to` on port 7777 comes back within half a second. `echo` answers there.
fn round_trip(from: &Ns, to: IpAddr) -> bool {
    let ask = || -> io::Result<bool> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.send_to(b"hello", (to, 7777))?;
        let mut answer = [0; 16];
        let (len, who) = socket.recv_from(&mut answer)?;
        Ok(&answer[..len] == b"hello" && who == SocketAddr::from((to, 7777)))
    };
    netns::run_in(from.fd(), ask).expect("entered").unwrap_or(false)
}

/// Answers datagrams to `ip` in `ns` for as long as the test's process lives.
fn echo(ns: &Ns, ip: IpAddr) {
    let socket = netns::run_in(ns.fd(), || UdpSocket::bind((ip, 7777))).expect("entered").expect("bound");
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((len, who)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], who);
        }
    });
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never happened: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn addresses_and_routes_carry_traffic() {
    let (a, b, va, vb) = pair();
    let (an, bn) = (a.netlink(), b.netlink());
    let v6: IpAddr = "fd00:77::1".parse().expect("address");
    an.add_address(va.index, A4, 24).expect("address");
    an.add_address(va.index, v6, 64).expect("address");
    bn.add_address(vb.index, B4, 24).expect("address");
    bn.add_address(1, FAR, 32).expect("an address behind the router");
    let addresses = an.addresses(va.index).expect("asked");
    assert!(addresses.contains(&(A4, 24)) && addresses.contains(&(v6, 64)), "{addresses:?}");
    assert!(!an.addresses(1).expect("asked").contains(&(A4, 24)), "of that interface only");
    let twice = an.add_address(va.index, A4, 24).expect_err("has it");
    assert!(twice.is_exists() && twice.to_string().contains("10.77.0.1/24 to interface 'va'"), "{twice}");

    echo(&b, B4);
    echo(&b, FAR);
    eventually("an answer on the link", || round_trip(&a, B4));
    assert!(!round_trip(&a, FAR), "there is no route yet");
    let unreachable = an.add_default_route(va.index, FAR).expect_err("not on the link");
    assert!(unreachable.to_string().contains("default route by 192.0.2.9"), "{unreachable}");
    an.add_default_route(va.index, B4).expect("route");
    eventually("an answer through the router", || round_trip(&a, FAR));
    an.add_default_route(va.index, "fd00:77::2".parse().expect("address")).expect("route");
    assert!(ip(&["-n", &a.name.0, "-6", "route"]).1.contains("default via fd00:77::2 dev va"));
    assert!(an.add_default_route(va.index, B4).expect_err("has one").is_exists());
}

/// Reads events until one satisfies `wanted`.
fn wait_for(monitor: &mut Monitor, what: &str, wanted: impl Fn(&LinkEvent) -> bool) {
    eventually(what, || {
        while let Some(event) = monitor.next_event().expect("events") {
            assert_ne!(event, LinkEvent::Overrun, "while waiting: {what}");
            if wanted(&event) {
                return true;
            }
        }
        false
    });
}

fn the_monitor_sees_what_happens() {
    let (a, b, va, vb) = pair();
    let mut monitor = Monitor::open_in(a.fd()).expect("monitor");
    assert_eq!(monitor.next_event().expect("events"), None, "does not block");
    let netlink = a.netlink();
    let set = |change: LinkChange<'_>| netlink.set_link(va.index, &change).expect("set");
    let is = |test: fn(&Link) -> bool| move |event: &LinkEvent| matches!(event, LinkEvent::Changed(link) if test(link));

    b.netlink().set_link(vb.index, &LinkChange { up: Some(false), ..LinkChange::default() }).expect("down");
    wait_for(&mut monitor, "no carrier", is(|link| link.name == "va" && link.up && !link.running));
    b.netlink().set_link(vb.index, &LinkChange { up: Some(true), ..LinkChange::default() }).expect("up");
    wait_for(&mut monitor, "carrier", is(|link| link.name == "va" && link.running));
    set(LinkChange { up: Some(false), ..LinkChange::default() });
    wait_for(&mut monitor, "down", is(|link| link.name == "va" && !link.up && !link.running));
    set(LinkChange { mtu: Some(1400), ..LinkChange::default() });
    wait_for(&mut monitor, "mtu", is(|link| link.mtu == 1400));
    set(LinkChange { name: Some("renamed"), ..LinkChange::default() });
    wait_for(&mut monitor, "rename", is(|link| link.name == "renamed"));

    netlink.add_veth(&VethEnd::new("x", None), &VethEnd::new("y", None)).expect("veth");
    wait_for(&mut monitor, "a new one", is(|link| link.name == "x" && link.kind.as_deref() == Some("veth")));
    let x = get(&a, "x").index;
    netlink.set_link(x, &LinkChange { netns: b.fd(), ..LinkChange::default() }).expect("moved");
    let removed = |index: u32, name: &str| LinkEvent::Removed { index, name: name.to_owned() };
    wait_for(&mut monitor, "moved away", |event| *event == removed(x, "x"));
    netlink.del_link(va.index).expect("deleted");
    wait_for(&mut monitor, "deleted", |event| *event == removed(va.index, "renamed"));
}

fn a_kernel_bridge_letting_go_of_an_interface_is_not_its_removal() {
    let (a, _b, va, _) = pair();
    assert!(ip(&["-n", &a.name.0, "link", "add", "name", "kbr0", "type", "bridge"]).0);
    assert!(ip(&["-n", &a.name.0, "link", "set", "va", "master", "kbr0"]).0);
    let mut monitor = Monitor::open_in(a.fd()).expect("monitor");
    assert!(ip(&["-n", &a.name.0, "link", "set", "va", "nomaster"]).0);
    let change = LinkChange { mtu: Some(1300), ..LinkChange::default() };
    a.netlink().set_link(va.index, &change).expect("set");
    wait_for(&mut monitor, "the end of it", |event| {
        assert!(!matches!(event, LinkEvent::Removed { .. }), "{event:?}");
        matches!(event, LinkEvent::Changed(link) if link.name == "va" && link.mtu == 1300)
    });
}

fn a_monitor_that_is_too_slow_is_told_so() {
    let (a, _b, va, _) = pair();
    let mut monitor = Monitor::open_in(a.fd()).expect("monitor");
    let netlink = a.netlink();
    for round in 0..8000 {
        let change = LinkChange { mtu: Some(1400 + round % 2), ..LinkChange::default() };
        netlink.set_link(va.index, &change).expect("set");
    }
    let mut overruns = 0;
    while let Some(event) = monitor.next_event().expect("events") {
        overruns += u32::from(event == LinkEvent::Overrun);
    }
    assert!(overruns > 0);
    netlink.set_link(va.index, &LinkChange { mtu: Some(1300), ..LinkChange::default() }).expect("set");
    wait_for(
        &mut monitor,
        "life goes on",
        |event| matches!(event, LinkEvent::Changed(link) if link.mtu == 1300),
    );
}

/// A packet socket for every protocol on an interface.
fn packet_socket(ns: &Ns, ifindex: u32) -> Socket {
    let protocol = u16::try_from(libc::ETH_P_ALL).expect("3").to_be();
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: every bit pattern is a sockaddr_ll, and it fits into the storage.
        let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
        address.sll_family = u16::try_from(libc::AF_PACKET).expect("17");
        address.sll_protocol = protocol;
        address.sll_ifindex = i32::try_from(ifindex).expect("an index");
        let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).expect("20");
        // SAFETY: the storage holds a sockaddr_ll of that length.
        socket.bind(&unsafe { SockAddr::new(storage, len) })?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    netns::run_in(ns.fd(), open).expect("entered").expect("packet socket")
}

/// Whether the host can be silenced here at all.
fn can_silence() -> Outcome {
    let ns = Ns::new("probe");
    match bpf::silence_host(1, ns.fd()) {
        Err(error) if error.source.kind() == io::ErrorKind::Unsupported => Err(Skip("tcx (Linux 6.6)")),
        Err(error) if error.is_denied() => Err(Skip("CAP_BPF outside of user namespaces")),
        _ => Ok(()),
    }
}

/// How many ARP requests for `ip` wait on a packet socket.
fn arp_requests(mut socket: &Socket, ip: Ipv4Addr) -> usize {
    let mut frame = [0; 2048];
    let mut count = 0;
    while let Ok(len) = socket.read(&mut frame) {
        let arp_request = frame[12..14] == [8, 6] && frame[20..22] == [0, 1];
        count += usize::from(len >= 42 && arp_request && frame[38..42] == ip.octets());
    }
    count
}

fn the_host_falls_silent_while_packet_sockets_still_hear() -> Outcome {
    can_silence()?;
    let (a, b, va, vb) = pair();
    a.netlink().add_address(va.index, A4, 24).expect("address");
    b.netlink().add_address(vb.index, B4, 24).expect("address");
    echo(&b, B4);
    let socket = packet_socket(&b, vb.index);
    let IpAddr::V4(target) = B4 else { unreachable!() };

    let silence = bpf::silence_host(vb.index, b.fd()).expect("this kernel has tcx");
    assert!(!round_trip(&a, B4), "the host answered");
    assert!(arp_requests(&socket, target) > 0, "the packet socket hears the question");
    let neighbours = ip(&["-n", &a.name.0, "neigh", "show", "10.77.0.2"]).1;
    assert!(!neighbours.contains("lladdr"), "the host answered ARP: {neighbours}");
    drop(silence);
    eventually("the host speaks again", || round_trip(&a, B4));
    let again = bpf::silence_host(vb.index, b.fd()).expect("this kernel has tcx");
    assert!(!round_trip(&a, B4), "the host answered, its address known");
    drop(again);

    let error = bpf::silence_host(4_000_000, b.fd()).expect_err("no such interface");
    assert!(error.is_not_found() && error.to_string().contains("interface 4000000"), "{error}");
    Ok(())
}

fn the_silence_ends_with_the_process_even_if_it_is_killed() -> Outcome {
    can_silence()?;
    let (a, b, va, vb) = pair();
    a.netlink().add_address(va.index, A4, 24).expect("address");
    b.netlink().add_address(vb.index, B4, 24).expect("address");
    echo(&b, B4);
    eventually("an answer", || round_trip(&a, B4));
    let mut child = spawn_child(b.fd(), &format!("silence {}", vb.index));
    let said = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let silenced = said.into_iter().any(|line| line.contains("silenced: true"));
    let answered = round_trip(&a, B4);
    child.kill().and_then(|()| child.wait()).expect("killed");
    assert!(silenced && !answered);
    eventually("the host speaks again", || round_trip(&a, B4));
    Ok(())
}

/// The last bytes of all frames of type 0x88b5 that the queues have, but not more than some
/// hundred.
fn heard(queues: &mut [PacketSocket]) -> Vec<u8> {
    let mut buffer = vec![0; 70_000];
    let mut all = Vec::new();
    for queue in queues {
        for _ in 0..500 {
            match queue.receive(&mut buffer) {
                // Behind ten bytes of header.
                Ok(Received::Frame { len, .. }) if buffer[22..24] == [0x88, 0xb5] => {
                    all.push(buffer[9 + len])
                }
                Ok(Received::Empty) => break,
                _ => {}
            }
        }
    }
    all
}

fn numbered(number: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 12];
    frame[6] = 2;
    frame.extend([0x88, 0xb5]);
    frame.resize(60, number);
    frame
}

/// A group of sockets before Linux 6.2 hears what the host sends, unless it is kept away. The flag
/// that asks for it is left out here.
fn what_the_host_sends_is_not_received_whatever_the_kernel() -> Outcome {
    for ignores_outgoing in [true, false] {
        let (a, b, va, vb) = pair();
        let open = || packet::open_on(Kernel { ignores_outgoing }, va.index, 2, &mut Spares::default());
        let mut sockets = netns::run_in(a.fd(), open).expect("entered").expect("packet sockets");
        if sockets.receiving < 2 {
            return Err(Skip("CAP_BPF outside of user namespaces"));
        }
        let (host, station) = (packet_socket(&a, va.index), packet_socket(&b, vb.index));
        let mut all = Vec::new();
        for number in 1..=20 {
            host.send(&numbered(100 + number)).expect("sent");
            station.send(&numbered(number)).expect("sent");
        }
        eventually("all frames of the station have come", || {
            all.extend(heard(&mut sockets.queues));
            all.len() >= 20
        });
        assert_eq!(all, (1..=20).collect::<Vec<u8>>(), "ignores_outgoing: {ignores_outgoing}");
    }
    Ok(())
}

/// A frame of 100,000 bytes of TCP over IPv6, to be cut at 1,428, behind its offload header.
fn big_frame() -> Vec<u8> {
    const LEN: usize = 100_000;
    let mut bytes = vec![0; 10];
    (bytes[0], bytes[1]) = (1, 4);
    for (at, value) in [(2, 74u16), (4, 1428), (6, 54), (8, 16)] {
        bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }
    bytes.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 6, 64]);
    bytes.extend([0xfd; 32]);
    bytes.extend([0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0, 9, 0, 0, 0, 0]);
    bytes.resize(10 + LEN, 7);
    bytes
}

/// A socket that has left its ring goes on with frames of more than 64 KiB: the first is lost.
fn without_a_ring_long_frames_are_received_too() {
    let (a, b, va, vb) = pair();
    for (ns, name) in [(&a, "va"), (&b, "vb")] {
        assert!(ip(&["-n", &ns.name.0, "link", "set", name, "gso_max_size", "196608"]).0);
    }
    let open = || packet::open(va.index, 1, &mut Spares::default());
    let mut sockets = netns::run_in(a.fd(), open).expect("entered").expect("packet sockets");
    let (queue, watch) = (&mut sockets.queues[0], &mut sockets.watches[0]);
    assert!(!queue.leave_ring(watch.delivered() + 1), "frames have come since");
    watch.seems_stopped();
    assert!(queue.leave_ring(watch.delivered()));
    watch.take_ring().expect("given up");

    let station = packet_socket(&b, vb.index);
    let on = 1i32;
    // SAFETY: the pointer and length are those of a live integer, which is what the option wants.
    let set = unsafe {
        let value = (&raw const on).cast();
        libc::setsockopt(station.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, value, 4)
    };
    assert_eq!(set, 0);
    station.set_send_buffer_size(1 << 20).expect("set");
    let frame = big_frame();
    let mut buffer = vec![0; 70_000];
    let mut received = |queue: &mut PacketSocket| {
        station.send(&frame).expect("sent");
        let mut got = Received::Empty;
        eventually("it has come", || {
            got = queue.receive(&mut buffer).expect("received");
            !matches!(got, Received::Empty | Received::Frame { .. })
        });
        got
    };
    assert!(matches!(received(queue), Received::Truncated));
    for _ in 0..2 {
        assert!(matches!(received(queue), Received::Longer));
        let mut head = [0; 100];
        let peeked = queue.peek(&mut head).expect("looked").expect("it is whole");
        assert_eq!(peeked.len, frame.len() - 10);
        let (mut all, mut rest) = (vec![0; 60_000], vec![0; 60_000]);
        let mut slices = [io::IoSliceMut::new(&mut all), io::IoSliceMut::new(&mut rest)];
        assert_eq!(queue.receive_scattered(&mut slices).expect("read"), frame.len());
        assert!(all[10..] == frame[10..60_000] && rest[..frame.len() - 60_000] == frame[60_000..]);
    }
}

/// Whatever the number of workers, one or two of them receive, each frame once, and every one can
/// send.
fn few_receive_and_all_send() -> Outcome {
    let mut used = std::collections::BTreeSet::new();
    for workers in [1, 2, 3, 5, 16] {
        let (a, b, va, vb) = pair();
        let open = || packet::open(va.index, workers, &mut Spares::open(1, workers));
        let mut sockets = netns::run_in(a.fd(), open).expect("entered").expect("packet sockets");
        let receivers = sockets.queues.iter().filter(|queue| queue.receives()).count();
        assert_eq!((sockets.queues.len(), sockets.receiving), (workers, receivers));
        assert_eq!(sockets.watches.len(), receivers);
        if workers > 1 && receivers < 2 {
            return Err(Skip("CAP_BPF outside of user namespaces"));
        }
        assert!(receivers <= packet::RECEIVERS);
        used.extend(sockets.queues.iter().enumerate().filter(|(_, q)| q.receives()).map(|(at, _)| at));
        let station = packet_socket(&b, vb.index);
        station.send(&numbered(7)).expect("sent");
        let mut all = Vec::new();
        eventually("the frame has come", || {
            all.extend(heard(&mut sockets.queues));
            !all.is_empty()
        });
        assert_eq!(all, [7]);
    }
    assert!(used.len() > 2, "not always the same workers: {used:?}");
    Ok(())
}

fn what_is_on_top_is_seen_in_every_namespace() -> Outcome {
    let inspector = match Inspector::load() {
        Err(error) if error.is_denied() => return Err(Skip("CAP_BPF outside of user namespaces")),
        Err(error) if error.is_not_found() || error.source.kind() == io::ErrorKind::Unsupported => {
            return Err(Skip("the kernel's types (BTF) and Linux 6.2"));
        }
        loaded => loaded.expect("the program fits this kernel"),
    };
    let (a, b, va, _) = pair();
    let look = || {
        let mut found = inspector.look(a.fd(), &[va.index]).expect("looked");
        found.pop().expect("one answer").expect("the interface is there")
    };
    assert_eq!(look(), Uppers::default());
    for number in 0..6 {
        // Made at once in the other namespace.
        let name = format!("mv{number}");
        let made =
            ip(&["-n", &a.name.0, "link", "add", &name, "link", "va", "netns", &b.name.0, "type", "macvlan"]);
        assert!(made.0, "{}", made.1);
        let found = look();
        assert!(found.has_handler);
        assert_eq!(found.more, number >= 4);
        assert_eq!(found.devices.len(), (number + 1).min(4));
        let last = found.devices.last().expect("one at least");
        assert_eq!(last.name, format!("mv{}", number.min(3)));
        assert_eq!(last.index, get(&b, &last.name).index);
        let (_, inode) = netns::identity_of(b.fd.as_fd()).expect("known");
        assert_eq!(u64::from(last.netns_inode), inode);
        assert!(!last.is_vlan && !last.is_master);
    }
    for number in 0..6 {
        let index = get(&b, &format!("mv{number}")).index;
        b.netlink().del_link(index).expect("deleted");
    }
    assert_eq!(look(), Uppers::default());
    assert!(ip(&["-n", &a.name.0, "link", "add", "kbr", "type", "bridge"]).0);
    assert!(ip(&["-n", &a.name.0, "link", "set", "va", "master", "kbr"]).0);
    let found = look();
    assert!(found.has_handler && found.devices[0].is_master && found.devices[0].name == "kbr");
    assert_eq!(inspector.look(a.fd(), &[4_000_000]).expect("looked"), [None]);
    Ok(())
}

fn exec_shows_the_namespaces_own_sys_and_etc() -> Outcome {
    let (a, _b, ..) = pair();
    let etc = std::path::Path::new("/etc/netns").join(&a.name.0);
    // The root of a user namespace may not.
    if std::fs::create_dir_all(&etc).is_err() {
        return Err(Skip("the right to write into /etc"));
    }
    std::fs::write(etc.join("hostname"), "in-a-namespace\n").expect("written");
    std::fs::write(etc.join("no-such-file-in-etc"), "").expect("written");
    let run = |ns: &str, command: &str| {
        let output = spawn_child(None, &format!("exec {ns} {command}")).wait_with_output().expect("child");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let interfaces = run(&a.name.0, "ls /sys/class/net");
    let hostname =
        std::path::Path::new("/etc/hostname").exists().then(|| run(&a.name.0, "cat /etc/hostname"));
    let _ = std::fs::remove_dir_all(&etc);
    let _ = std::fs::remove_dir("/etc/netns"); // only if it is empty
    assert!(interfaces.lines().any(|line| line == "va") && !interfaces.contains("refused"), "{interfaces}");
    assert!(hostname.is_none_or(|text| text.contains("in-a-namespace")));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains("/etc/hostname"), "the mount was seen outside");

    let text = run(&a.name.0, "/no/such/program");
    assert!(text.contains("refused: cannot run '/no/such/program' in network namespace"), "{text}");
    assert!(run("no-such-ns", "true").contains("refused: no network namespace 'no-such-ns'"));
    Ok(())
}
