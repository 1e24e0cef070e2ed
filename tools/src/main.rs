//! `vswitch-bench`: what `scripts/bench` runs inside the namespaces at either end of a switch.
//!
//! Each subcommand does one thing for a fixed time and prints one JSON object on stdout:
//!
//! - `flood` offers small frames to an interface as fast as one thread can ([`flood`]);
//! - `count` tells how many frames the kernel counted as received by an interface ([`count`]);
//! - `line` tells how long a cache line takes from one CPU to another and back ([`mod@line`]);
//! - `rtt-serve` and `rtt-ping` are the two ends of a one-byte TCP ping-pong ([`rtt`]).
//!
//! They know nothing of any switch: the same binary measures every contender. iperf3 measures bulk TCP;
//! sockperf was left out because one more package for a ping-pong of forty lines is a poor trade, and pktgen
//! because many distribution kernels and all user namespaces lack it.

#![cfg_attr(test, allow(clippy::unwrap_used))]
#![allow(clippy::disallowed_methods, reason = "a measuring program may end where it gets no thread")]

mod args;
mod count;
mod flood;
mod line;
mod rtt;

use std::io::Write;
use std::process::ExitCode;

const USAGE: &str = "\
usage: vswitch-bench flood     --dev IF --src MAC --dst MAC [--size BYTES] [--batch FRAMES] --seconds S
       vswitch-bench count     --dev IF [--delay S] --seconds S
       vswitch-bench line      [--from CPU] [--to CPU]
       vswitch-bench rtt-serve --listen ADDR:PORT
       vswitch-bench rtt-ping  --connect ADDR:PORT [--warmup S] --seconds S";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let verb = words.next().unwrap_or_default();
    let outcome = args::Args::parse(words).and_then(|args| match verb.as_str() {
        "flood" => flood::run(&args),
        "count" => count::run(&args),
        "line" => line::run(&args),
        "rtt-serve" => rtt::serve(&args),
        "rtt-ping" => rtt::ping(&args),
        other => Err(format!("no subcommand {other:?}\n{USAGE}")),
    });
    match outcome {
        Ok(json) => {
            // Whoever asked has gone away if this fails; there is nobody left to tell.
            let _ = writeln!(std::io::stdout(), "{json}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "vswitch-bench {verb}: {message}");
            ExitCode::FAILURE
        }
    }
}
