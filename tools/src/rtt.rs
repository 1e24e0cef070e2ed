//! TCP round trips: one byte there, one byte back, with Nagle off.
//!
//! Both ends block in `read`, so a round trip includes two wake-ups of the stations as well as those of the switch:
//! it is what a request-response program feels, and the same for every contender. Percentiles come from all
//! samples, sorted; nothing is binned.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::args::Args;

/// Bound on the samples kept (4 MiB); at 10 µs a round trip that is ten seconds, later ones are not recorded.
const SAMPLES_MAX: usize = 1 << 20;

/// Longest wait for a byte: a switch that loses one is retransmitted for, one that loses all must not hang us.
const PATIENCE: Duration = Duration::from_secs(5);

/// Echoes the bytes of one connection until the client closes it.
pub(crate) fn serve(args: &Args) -> Result<String, String> {
    let addr: SocketAddr = args.need("listen")?;
    let listener = TcpListener::bind(addr).map_err(|e| format!("listen on {addr}: {e}"))?;
    let (mut stream, _) = listener.accept().map_err(|e| format!("accept on {addr}: {e}"))?;
    stream.set_nodelay(true).map_err(|e| format!("TCP_NODELAY: {e}"))?;
    let mut byte = [0u8; 1];
    let mut echoed = 0u64;
    while stream.read(&mut byte).map_err(|e| format!("read: {e}"))? == 1 {
        stream.write_all(&byte).map_err(|e| format!("write: {e}"))?;
        echoed += 1;
    }
    Ok(format!("{{\"echoed\": {echoed}}}"))
}

/// Sends a byte, waits for it, and again, for `--seconds` after `--warmup`.
pub(crate) fn ping(args: &Args) -> Result<String, String> {
    let addr: SocketAddr = args.need("connect")?;
    let warmup = args.seconds("warmup", Some(0.2))?;
    let interval = args.seconds("seconds", None)?;
    let mut stream =
        TcpStream::connect_timeout(&addr, PATIENCE).map_err(|e| format!("connect to {addr}: {e}"))?;
    stream.set_nodelay(true).map_err(|e| format!("TCP_NODELAY: {e}"))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|e| format!("SO_RCVTIMEO: {e}"))?;

    round_trips(&mut stream, warmup, &mut Vec::new())?;
    let mut nanos = Vec::with_capacity(SAMPLES_MAX);
    round_trips(&mut stream, interval, &mut nanos)?;
    nanos.sort_unstable();
    report(&nanos).ok_or_else(|| "no round trip ended in time".to_owned())
}

/// Runs for `interval`, and adds each round trip's nanoseconds to `nanos` while it has room.
fn round_trips(stream: &mut TcpStream, interval: Duration, nanos: &mut Vec<u32>) -> Result<(), String> {
    let mut byte = [0u8; 1];
    let mut sent = Instant::now();
    let end = sent + interval;
    while sent < end {
        stream.write_all(&byte).map_err(|e| format!("write: {e}"))?;
        stream.read_exact(&mut byte).map_err(|e| format!("read: {e}"))?;
        let back = Instant::now();
        if nanos.len() < nanos.capacity() {
            nanos.push(u32::try_from((back - sent).as_nanos()).unwrap_or(u32::MAX));
        }
        sent = back;
    }
    Ok(())
}

/// The sample at or above which a fraction `q` of the sorted samples lies below (nearest rank).
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a rank within the slice
fn quantile(sorted: &[u32], q: f64) -> Option<u32> {
    let rank = (sorted.len() as f64 * q).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

fn report(sorted: &[u32]) -> Option<String> {
    let micros = |q| quantile(sorted, q).map(|nanos| f64::from(nanos) / 1e3);
    Some(format!(
        "{{\"round_trips\": {}, \"min_us\": {:.2}, \"p50_us\": {:.2}, \"p99_us\": {:.2}, \"p999_us\": {:.2}, \
         \"max_us\": {:.2}}}",
        sorted.len(),
        micros(0.0)?,
        micros(0.5)?,
        micros(0.99)?,
        micros(0.999)?,
        micros(1.0)?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let hundred: Vec<u32> = (1..=100).collect();
        assert_eq!(quantile(&hundred, 0.0), Some(1));
        assert_eq!(quantile(&hundred, 0.5), Some(50));
        assert_eq!(quantile(&hundred, 0.99), Some(99));
        assert_eq!(quantile(&hundred, 1.0), Some(100));
        assert_eq!(quantile(&[7], 0.99), Some(7));
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(report(&[]), None);
    }

    #[test]
    fn a_ping_pong_over_loopback_is_measured() {
        let probe = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = probe.local_addr().unwrap().to_string();
        drop(probe);
        let pairs = |text: String| Args::parse(text.split_whitespace().map(str::to_owned)).unwrap();
        let server_args = pairs(format!("--listen {addr}"));
        let server = std::thread::spawn(move || serve(&server_args));
        let client_args = pairs(format!("--connect {addr} --warmup 0 --seconds 0.05"));
        let json = loop {
            match ping(&client_args) {
                Err(e) if e.starts_with("connect") => std::thread::yield_now(),
                other => break other.unwrap(),
            }
        };
        let echoed = server.join().unwrap().unwrap();
        let field = |text: &str, name: &str| -> f64 {
            let tail = text.split(&format!("\"{name}\": ")).nth(1).unwrap();
            tail.split(['}', ',']).next().unwrap().parse().unwrap()
        };
        assert_eq!(field(&json, "round_trips"), field(&echoed, "echoed"));
        assert!(field(&json, "min_us") > 0.0 && field(&json, "min_us") <= field(&json, "p99_us"));
    }
}
