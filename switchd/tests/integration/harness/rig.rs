//! A switch under test with a raw station at each port, and one frame at a time through it.
//!
//! Comparing two switches needs their learning to happen in the same order, so each frame is followed by *fences*: marked
//! broadcast frames that leave the switch behind it. When a fence from the same port has arrived, the frame has been
//! handled; when every port has seen a fence sent after that, every copy of the frame has arrived. This needs a
//! switch that keeps the order of one port's frames: the kernel's bridge, Open vSwitch, and ours with one worker.

use std::time::{Duration, Instant};

use super::PATIENCE;
use super::frame::{BROADCAST, Mac, frame, show, untag};
use super::raw::{Raw, wait_any};

/// The second EtherType for local experiments.
const FENCE: u16 = 0x88b6;

/// The tags a port's fences need to be admitted, and the ports they then reach.
#[derive(Clone, Debug)]
pub struct Fence {
    pub tags: Vec<(u16, u16)>,
    pub reaches: Vec<usize>,
}

/// A switch and its stations.
#[derive(Debug)]
pub struct Rig {
    pub name: &'static str,
    pub stations: Vec<Raw>,
    fences: Vec<Fence>,
    sent: u64,
}

/// What came out of each port.
pub type Outputs = Vec<Vec<Vec<u8>>>;

impl Rig {
    /// `fences`: one a port, or empty where every port's untagged broadcast reaches all others.
    pub fn new(name: &'static str, stations: Vec<Raw>, fences: Vec<Fence>) -> Rig {
        let all_others = |port: usize| Fence {
            tags: Vec::new(),
            reaches: (0..stations.len()).filter(|p| *p != port).collect(),
        };
        let fences = if fences.is_empty() { (0..stations.len()).map(all_others).collect() } else { fences };
        let mut rig = Rig { name, stations, fences, sent: 0 };
        rig.wait_for_ports();
        rig
    }

    /// A port may not forward at once (carrier, spanning tree states).
    fn wait_for_ports(&mut self) {
        let began = Instant::now();
        for port in 0..self.stations.len() {
            while !self.fence(port, Duration::from_millis(200), &mut vec![Vec::new(); self.stations.len()]) {
                assert!(began.elapsed() < PATIENCE, "{}: port {port} does not forward", self.name);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
        self.stations.iter().for_each(|station| drop(station.drain()));
    }

    /// Sends `bytes` into `port`; what comes out of every port, or the error if it cannot be sent.
    #[track_caller]
    pub fn exchange(&mut self, port: usize, bytes: &[u8]) -> Result<Outputs, i32> {
        if let Err(error) = self.stations[port].send(bytes) {
            return Err(error.raw_os_error().unwrap_or(0));
        }
        let mut outputs = vec![Vec::new(); self.stations.len()];
        let reached = self.fences[port].reaches.clone();
        self.must_fence(port, bytes, &mut outputs);
        for missing in (0..self.stations.len()).filter(|port| !reached.contains(port)) {
            let by = (0..self.stations.len()).find(|by| self.fences[*by].reaches.contains(&missing));
            self.must_fence(by.expect("every port is reached by some fence"), bytes, &mut outputs);
        }
        Ok(outputs)
    }

    #[track_caller]
    fn must_fence(&mut self, port: usize, bytes: &[u8], outputs: &mut Outputs) {
        assert!(
            self.fence(port, PATIENCE, outputs),
            "{}: the fence from port {port} got lost after: {}",
            self.name,
            show(bytes)
        );
    }

    /// Sends a fence and collects until it has come out everywhere; whether it did within `patience`.
    fn fence(&mut self, port: usize, patience: Duration, outputs: &mut Outputs) -> bool {
        self.sent += 1;
        let Fence { tags, reaches } = self.fences[port].clone();
        let from = fence_mac(port);
        self.stations[port]
            .send(&frame(BROADCAST, from, &tags, FENCE, &self.sent.to_be_bytes()))
            .unwrap_or_else(|error| panic!("{}: port {port}: {error}", self.name));
        let end = Instant::now() + patience;
        let mut open = reaches;
        loop {
            for (index, station) in self.stations.iter().enumerate() {
                for seen in station.drain() {
                    match fence_number(&seen.bytes) {
                        Some(number) if number == self.sent => open.retain(|port| *port != index),
                        Some(_) => {}
                        None => outputs[index].push(seen.bytes),
                    }
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if open.is_empty() || left.is_zero() {
                return open.is_empty();
            }
            let waiting: Vec<&Raw> = open.iter().map(|index| &self.stations[*index]).collect();
            wait_any(&waiting, left);
        }
    }
}

/// A station of each port that nothing but fences comes from.
fn fence_mac(port: usize) -> Mac {
    [0x02, 0xfe, 0, 0, 0, port as u8]
}

fn fence_number(bytes: &[u8]) -> Option<u64> {
    let (_, ethertype, at) = untag(bytes);
    if ethertype != FENCE || bytes.get(6..11) != Some(&fence_mac(0)[..5]) {
        return None;
    }
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes)
}
