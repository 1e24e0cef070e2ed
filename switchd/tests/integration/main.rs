//! vswitchd and vswitchctl as a user meets them: real binaries, real interfaces, in namespaces that the tests make.
//!
//! Needs root, iproute2, ethtool and curl; Open vSwitch for one comparison, which is skipped without. A test that cannot run is
//! reported as ignored, by the name of what is missing, and only those of [`harness::EXPECTED_SKIPS`] may be.
//!
//! `cargo test -p switchd --test integration [FILTER]`. `VSWITCH_TEST_SEED=N` (or `random`) changes generated frames.
#![allow(missing_docs, missing_debug_implementations, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::cast_possible_truncation)]

mod harness;
mod oracle;
mod vlan;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use harness::{Outcome, conclude, net};

/// Every test.
const TESTS: &[(&str, fn() -> Outcome)] = &[
    ("oracle::as_linux_bridge", oracle::as_linux_bridge),
    ("oracle::as_linux_bridge_with_two_workers", oracle::as_linux_bridge_with_two_workers),
    ("vlan::as_open_vswitch", vlan::as_open_vswitch),
];

/// Tests that run at the same time: they mostly wait, but too many would take the CPU from each other's switches.
const AT_ONCE: usize = 3;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if !arguments.list {
        net::sweep();
    }
    arguments.test_threads.get_or_insert(AT_ONCE);
    let trials = TESTS.iter().map(|&(name, test)| Trial::ignorable_test(name, move || conclude(name, test())));
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
