//! One bridge, some tap ports, and a raw station at each: what most tests of behaviour need.

use std::time::Duration;

use super::PATIENCE;
use super::daemon::{Daemon, Start};
use super::frame::show;
use super::net::Ns;
use super::raw::Raw;

/// How long to listen for what must not come, once what must has.
const SILENCE: Duration = Duration::from_millis(50);

pub struct Board {
    pub stations: Vec<Raw>,
    pub daemon: Daemon,
    pub wire: Ns,
    pub switch: Ns,
}

impl Board {
    /// Bridge br0 with `bridge` options and ports p0, p1, … whose options these are.
    #[track_caller]
    pub fn new(bridge: &str, ports: &[&str]) -> Board {
        let (switch, wire) = (Ns::new("v"), Ns::new("w"));
        let daemon = Start::new(&switch).arguments("--workers 2").ready();
        daemon.ctl(&format!("bridge add br0 {bridge}"));
        let stations = ports.iter().enumerate().map(|(number, options)| {
            let name = format!("p{number}");
            daemon.ctl(&format!("port add {name} --bridge br0 --type tap --netns {} {options}", wire.name));
            Raw::open(&wire, &name)
        });
        let stations = stations.collect();
        Board { stations, daemon, wire, switch }
    }

    /// Sends a frame into one port; it must come out of exactly `out`, unchanged.
    #[track_caller]
    pub fn expect(&self, from: usize, bytes: &[u8], out: &[usize]) {
        self.expect_as(from, bytes, &out.iter().map(|port| (*port, bytes)).collect::<Vec<_>>());
    }

    /// Sends a frame into one port; exactly these must come out.
    #[track_caller]
    pub fn expect_as(&self, from: usize, bytes: &[u8], out: &[(usize, &[u8])]) {
        self.stations[from].send(bytes).expect("sent");
        for (port, expected) in out {
            match self.stations[*port].next(PATIENCE) {
                Some(seen) => assert!(
                    seen.bytes == *expected,
                    "port {port} puts out {}, not {}",
                    show(&seen.bytes),
                    show(expected)
                ),
                None => panic!("port {port} does not put out {}, sent into port {from}", show(expected)),
            }
        }
        std::thread::sleep(SILENCE);
        for (port, station) in self.stations.iter().enumerate() {
            if let Some(seen) = station.take() {
                panic!("port {port} puts out {}; sent into port {from}: {}", show(&seen.bytes), show(bytes));
            }
        }
    }

    /// Forgets what has come.
    pub fn drain(&self) {
        std::thread::sleep(SILENCE);
        self.stations.iter().for_each(|station| drop(station.drain()));
    }
}
