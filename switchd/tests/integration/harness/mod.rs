//! What every test stands on: namespaces that go with the test, a daemon of its own, raw frames, commands.
//!
//! Nothing outside a test's own namespaces is touched, so tests run beside each other. Everything that is made is undone
//! when its value is dropped, in a panic too; what a killed run left is removed by the next ([`net::sweep`]).

pub mod board;
pub mod count;
pub mod daemon;
pub mod frame;
pub mod guest;
pub mod net;
pub mod ovs;
pub mod qemu;
pub mod raw;
pub mod rig;
pub mod rights;
pub mod stream;
pub mod testpmd;
pub mod underlay;

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use libtest_mimic::{Completion, Failed};

/// Longest wait for something that should happen. Long, because the machine may be busy; reached only in failure.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A test cannot run here; names what is missing.
#[derive(Debug)]
pub struct Skip(pub String);

/// How a test ends, if it does not panic.
pub type Outcome = Result<(), Skip>;

/// What may be missing on a machine, by test. Anything else that is skipped counts as failed; so tap, veth, bridge and packet
/// tests can never be skipped.
pub const EXPECTED_SKIPS: &[(&str, &str)] = &[
    ("vlan::as_open_vswitch", "Open vSwitch"),
    ("overlays::with_open_vswitch", "Open vSwitch"),
    ("overlays::as_wireshark_reads", "tshark"),
    ("explained::libvirt_xml", "xmllint"),
    ("explained::libvirt_xml", "libvirt's schemas"),
    ("host::stays_silent", TCX),
    ("host::stays_silent", BPF),
    ("host::stays_silent_in_ipv6", TCX),
    ("host::stays_silent_in_ipv6", BPF),
    ("interfaces::carrying_others", TCX),
    ("interfaces::carrying_others", BPF),
    ("traffic::one_worker_a_flow", BPF),
    ("attach::by_rules", USERS),
    ("attach::by_limits", USERS),
    ("attach::rules_after_a_crash", USERS),
    ("attach::users_without_a_number", USERS),
    ("attach::hostile_clients", USERS),
    ("sockets::senders_without_a_number", USERS),
    ("shortage::no_thread_to_be_had", USERS),
    ("shortage::locks_of_others", USERS),
    ("sockets::descriptors_are_refused", rights::RIGHTS),
    ("vde::descriptors_are_refused", rights::RIGHTS),
    ("vhost_user::dpdk_forwards", "dpdk-testpmd"),
    ("vde::real_plugs", "vde_plug2tap"),
    ("vde::into_another_switch", "vde_switch"),
    ("vde::into_another_switch", "vde_plug2tap"),
    ("vde::into_another_users_switch", USERS),
];

/// Tests with guests, and what they may lack.
const WITH_GUESTS: &[&str] = &[
    "attach::real_guests",
    "explained::command_lines",
    "guests::behind_a_tap",
    "migration::on_one_switch",
    "migration::to_another_switch",
    "scenarios::everybody_reaches_everybody",
    "scenarios::guests_in_vlans",
    "scenarios::the_switch_comes_back",
    "sockets::guests",
    "sockets::a_guest_with_jumbo_frames",
    "sockets::a_guest_outlives_the_switch",
    "vde::a_guest",
    "vhost_user::the_switch_listens",
    "vhost_user::qemu_listens",
    "vhost_user::guests_among_themselves",
];
const GUESTS_NEED: &[&str] = &["QEMU", "busybox", "guest kernel"];

/// Whether this test may be skipped for want of this.
fn may_skip(name: &str, missing: &str) -> bool {
    let is = |what: &&str| missing.starts_with(*what);
    EXPECTED_SKIPS.iter().any(|(test, what)| *test == name && is(what))
        || WITH_GUESTS.contains(&name) && GUESTS_NEED.iter().any(is)
}

const TCX: &str = "tcx (Linux 6.6)";
/// What the root of a user namespace lacks.
pub const BPF: &str = "CAP_BPF outside of user namespaces";

/// Who else is lacking there.
const USERS: &str = "users other than root, in this user namespace";

/// Where cargo puts what it builds, and `scripts/setup` what it unpacks.
pub fn target_folder() -> &'static Path {
    let inside = Path::new(env!("CARGO_TARGET_TMPDIR"));
    inside.parent().unwrap_or(inside)
}

/// Whether there are others than root to be.
///
/// # Errors
/// Names what is missing.
pub fn has_users() -> Outcome {
    match vswitch::sys::users::unmapped_uid() {
        Ok(None) => Ok(()),
        _ => Err(Skip(USERS.to_owned())),
    }
}

/// Whether the host can be kept silent here: tried on an interface that nobody uses.
///
/// # Errors
/// The kernel is too old, or does not let us.
pub fn can_silence() -> Outcome {
    let ns = net::Ns::new("probe");
    match vswitch::sys::bpf::silence_host(1, Some(ns.open().as_fd())) {
        Err(error) if error.source.kind() == ErrorKind::Unsupported => Err(Skip(TCX.to_owned())),
        Err(error) if error.is_denied() => Err(Skip(BPF.to_owned())),
        _ => Ok(()),
    }
}

/// Turns a test's end into the runner's, and refuses skips that nobody expects.
pub fn conclude(name: &str, outcome: Outcome) -> Result<Completion, Failed> {
    match outcome {
        Ok(()) => Ok(Completion::Completed),
        Err(Skip(missing)) if may_skip(name, &missing) => {
            Ok(Completion::ignored_with(format!("missing: {missing}")))
        }
        Err(Skip(missing)) => Err(format!("may not be skipped, but this is missing: {missing}").into()),
    }
}

/// Waits until `done` says so.
#[track_caller]
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Numbers that look random and are the same each time (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From `VSWITCH_TEST_SEED` (a number, or "random"), by default always the same.
    pub fn from_environment() -> (Random, u64) {
        let seed = match std::env::var("VSWITCH_TEST_SEED").as_deref() {
            Ok("random") => std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |since| since.subsec_nanos().into()),
            Ok(text) => text.parse().expect("VSWITCH_TEST_SEED is a number or 'random'"),
            Err(_) => 20_240_601,
        };
        (Random(seed), seed)
    }

    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let value = self.next().to_le_bytes();
            chunk.copy_from_slice(&value[..chunk.len()]);
        }
    }
}

/// Only what is expected to be missing may be.
pub fn only_expected_skips() -> Outcome {
    let ends = |name: &str, missing: &str| conclude(name, Err(Skip(missing.to_owned())));
    for (test, what) in EXPECTED_SKIPS {
        assert!(matches!(ends(test, &format!("{what} (somewhere)")), Ok(Completion::Ignored { .. })));
        assert!(ends(test, "something else").is_err());
    }
    let (test, what) = EXPECTED_SKIPS[0];
    assert!(ends("traffic::tap_and_tap", what).is_err());
    assert!(
        EXPECTED_SKIPS
            .iter()
            .all(|(test, _)| !["tap", "veth", "bridge", "packet"].iter().any(|kind| test.contains(kind)))
    );
    assert!(matches!(conclude(test, Ok(())), Ok(Completion::Completed)));
    Ok(())
}

/// Copies a program, by another process: a descriptor that this one had open for writing could be
/// inherited by what other tests start just then, and the kernel would not run the copy (ETXTBSY).
#[track_caller]
pub fn copy_program(from: &str, to: &Path) {
    let copied = std::process::Command::new("cp").arg(from).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "{from} to {}", to.display());
}
