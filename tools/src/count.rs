//! How many frames arrived: the receiving interface's own counter, read twice.
//!
//! `rx_packets` counts what the driver handed to the stack, whatever the stack then makes of it, so frames of an
//! EtherType nobody listens to count too and cost every contender's receiver the same. `/proc/…/net/dev` belongs to
//! the caller's network namespace; `/sys/class/net` does so only after a fresh mount, which `nsenter --net` does not do.

use std::thread;
use std::time::{Duration, Instant};

use crate::args::Args;

const COUNTERS: &str = "/proc/thread-self/net/dev";

/// Receive counters of one interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rx {
    bytes: u64,
    packets: u64,
}

/// Waits `--delay`, then counts for `--seconds`.
pub(crate) fn run(args: &Args) -> Result<String, String> {
    let dev: String = args.need("dev")?;
    let interval = args.seconds("seconds", None)?;
    thread::sleep(args.seconds("delay", Some(0.0))?);

    let (before, start) = (read(&dev)?, Instant::now());
    thread::sleep(interval);
    let (after, elapsed) = (read(&dev)?, start.elapsed());
    Ok(report(before, after, elapsed))
}

fn report(before: Rx, after: Rx, elapsed: Duration) -> String {
    format!(
        "{{\"rx_packets\": {}, \"rx_bytes\": {}, \"seconds\": {:.6}}}",
        after.packets.wrapping_sub(before.packets),
        after.bytes.wrapping_sub(before.bytes),
        elapsed.as_secs_f64()
    )
}

fn read(dev: &str) -> Result<Rx, String> {
    let text = std::fs::read_to_string(COUNTERS).map_err(|e| format!("{COUNTERS}: {e}"))?;
    find(&text, dev).ok_or_else(|| format!("no interface {dev} in {COUNTERS}"))
}

/// Finds an interface's line: `  name: rx_bytes rx_packets …`.
fn find(text: &str, dev: &str) -> Option<Rx> {
    let (_, numbers) =
        text.lines().filter_map(|line| line.rsplit_once(':')).find(|(name, _)| name.trim() == dev)?;
    let mut numbers = numbers.split_whitespace().map(str::parse);
    Some(Rx { bytes: numbers.next()?.ok()?, packets: numbers.next()?.ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     112       2    0    0    0     0          0         0      112       2    0    0    0     0       0          0
  e0.5:       7       1    0    0    0     0          0         0        0       0    0    0    0     0       0          0
    e0:18446744073709551615 9 0    0    0     0          0         0        0       0    0    0    0     0       0          0
";

    #[test]
    fn the_right_line_is_read() {
        assert_eq!(find(TEXT, "lo"), Some(Rx { bytes: 112, packets: 2 }));
        assert_eq!(find(TEXT, "e0"), Some(Rx { bytes: u64::MAX, packets: 9 }));
        assert_eq!(find(TEXT, "e1"), None);
    }

    #[test]
    fn a_counter_that_wraps_still_gives_the_difference() {
        let (before, after) = (Rx { bytes: u64::MAX, packets: u64::MAX }, Rx { bytes: 59, packets: 4 });
        let json = report(before, after, Duration::from_secs(2));
        assert_eq!(json, "{\"rx_packets\": 5, \"rx_bytes\": 60, \"seconds\": 2.000000}");
    }
}
