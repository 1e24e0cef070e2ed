//! `stats --watch`: what changes between two readings, a second.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _, stdout};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::table::{Align, Table, short};
use super::{Outcome, say, say_json};
use crate::api::{Counters, Stats};
use crate::client::{Client, Target};

/// Rates of one port.
#[derive(Serialize, Clone, PartialEq, Debug)]
struct Rates {
    port: String,
    rx_frames_per_sec: f64,
    rx_segments_per_sec: f64,
    rx_bits_per_sec: f64,
    tx_frames_per_sec: f64,
    tx_segments_per_sec: f64,
    tx_bits_per_sec: f64,
    drops_per_sec: BTreeMap<String, f64>,
}

impl Rates {
    /// Between two readings `secs` apart. A counter that went back (the port is another one of that name, or
    /// vswitchd was restarted) counts from zero.
    fn between(port: &str, old: &Counters, new: &Counters, secs: f64) -> Rates {
        #[allow(clippy::cast_precision_loss, reason = "rates are shown with three digits")]
        let rate = |old: u64, new: u64| new.checked_sub(old).unwrap_or(new) as f64 / secs;
        let drops = new.drops.iter().map(|(reason, &count)| {
            (reason.clone(), rate(old.drops.get(reason).copied().unwrap_or(0), count))
        });
        Rates {
            port: port.to_owned(),
            rx_frames_per_sec: rate(old.rx_frames, new.rx_frames),
            rx_segments_per_sec: rate(old.rx_segments, new.rx_segments),
            rx_bits_per_sec: rate(old.rx_bytes, new.rx_bytes) * 8.0,
            tx_frames_per_sec: rate(old.tx_frames, new.tx_frames),
            tx_segments_per_sec: rate(old.tx_segments, new.tx_segments),
            tx_bits_per_sec: rate(old.tx_bytes, new.tx_bytes) * 8.0,
            drops_per_sec: drops.filter(|(_, rate)| *rate > 0.0).collect(),
        }
    }
}

/// Shows rates every `interval`, `count` times or until interrupted. On a terminal the table stays in place; in JSON every
/// round is one document on one line.
pub(super) fn watch(
    client: &Client,
    target: &Target,
    interval: Duration,
    count: Option<u64>,
    json: bool,
) -> Outcome {
    let in_place = !json && stdout().is_terminal();
    let read = || -> Result<(Instant, Vec<Stats>), super::Failed> {
        let stats = client.get(target)?.parse()?;
        Ok((Instant::now(), stats))
    };
    let (mut then, mut old) = read()?;
    let mut rounds = 0;
    while count.is_none_or(|count| rounds < count) {
        std::thread::sleep(interval);
        let (now, new) = read()?;
        let secs = now.duration_since(then).as_secs_f64();
        let rates: Vec<Rates> = new
            .iter()
            .map(|stats| {
                let before = old.iter().find(|old| old.port == stats.port).map(|old| &old.counters);
                // A port that just came has no rate yet.
                Rates::between(&stats.port, before.unwrap_or(&stats.counters), &stats.counters, secs)
            })
            .collect();
        if json {
            say_json(serde_json::json!(rates).to_string().as_bytes())?;
        } else {
            // Cursor home, then clear what is below it: no flicker.
            if in_place {
                stdout().write_all(b"\x1b[H\x1b[J")?;
            }
            say(&table(&rates))?;
        }
        (then, old) = (now, new);
        rounds += 1;
    }
    Ok(())
}

fn table(rates: &[Rates]) -> String {
    use Align::{Left, Right};
    let mut table = Table::new([
        ("PORT", Left),
        ("RX-FRAMES/S", Right),
        ("RX-PACKETS/S", Right),
        ("RX-BIT/S", Right),
        ("TX-FRAMES/S", Right),
        ("TX-PACKETS/S", Right),
        ("TX-BIT/S", Right),
        ("DROPS/S", Left),
    ]);
    for port in rates {
        let drops: Vec<String> =
            port.drops_per_sec.iter().map(|(reason, rate)| format!("{reason}={}", short(*rate))).collect();
        table.row([
            port.port.clone(),
            short(port.rx_frames_per_sec),
            short(port.rx_segments_per_sec),
            short(port.rx_bits_per_sec),
            short(port.tx_frames_per_sec),
            short(port.tx_segments_per_sec),
            short(port.tx_bits_per_sec),
            drops.join(" "),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_a_second() {
        let old = Counters { rx_frames: 100, rx_bytes: 1000, ..Counters::default() };
        let mut new = Counters { rx_frames: 300, rx_bytes: 2000, tx_frames: 5, ..Counters::default() };
        new.drops.insert("port_gone".into(), 4);
        let rates = Rates::between("p", &old, &new, 2.0);
        assert_eq!(
            (rates.rx_frames_per_sec, rates.rx_bits_per_sec, rates.tx_frames_per_sec),
            (100.0, 4000.0, 2.5)
        );
        assert_eq!(rates.drops_per_sec["port_gone"], 2.0);
        let back = Rates::between("p", &new, &old, 1.0);
        assert_eq!(back.rx_frames_per_sec, 100.0, "a restart counts from zero");
        assert!(table(&[rates]).lines().nth(1).unwrap().ends_with("port_gone=2"));
    }
}
