//! The way of a frame in memory: parse to egress with learning, one core, 64-byte frames in batches of 64.
//!
//! Everything is the real thing (topology, FDB, [`pipeline::run`]) except the ports' queues, which only count, so that
//! what is measured is the switch and not a device. Frames of a batch come from random stations behind one port and
//! go to random stations behind the other three, as they do in a switch; each batch is new. The clock runs, so
//! that once a second every station is refreshed.
//!
//! The batch is filled anew for each run, which leaves it in the L1 cache, where a receive call would have left it. In
//! `run` that is not timed; in `take` it is: 76 bytes copied into the batch (that part is the kernel's), the offload
//! header read, the frame described. `mem` sends into real memory ports, which allocate a vector a frame.
//!
//! Cycles are those of the time-stamp counter, at the frequency that /proc/cpuinfo says.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout)]

use std::cell::RefCell;
use std::hint::black_box;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use vswitch::addr::{MacAddr, PortId, VlanId};
use vswitch::batch::{BATCH_FRAMES, Batch};
use vswitch::bridge::fdb::{Fdb, Key, Tick};
use vswitch::bridge::vlan::VlanPolicy;
use vswitch::frame::Outgoing;
use vswitch::offload::{Capabilities, VNET_HDR_LEN};
use vswitch::pipeline::{self, Context, Outbox, Workshop};
use vswitch::port::mem::MemPort;
use vswitch::port::{self, Health, Inbound, PortQueue, Received};
use vswitch::spec::{PortKind, VlanMode};
use vswitch::stats::Counters;
use vswitch::topology::{Bridge, Port, PortShared, Topology};

const PORTS: u16 = 4;
const FRAME_LEN: usize = 64;

/// Counts what it is given.
#[derive(Debug)]
struct Sink;

impl PortQueue for Sink {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn receive(&mut self, _: &mut Batch, _: &Inbound<'_>) -> Received {
        Received::Drained
    }

    fn transmit(&mut self, frames: &[Outgoing<'_>], counters: &Counters) -> Health {
        let (mut bytes, mut segments) = (0, 0);
        for frame in frames {
            bytes += black_box(frame).frame_len() as u64;
            segments += u64::from(frame.segments());
        }
        counters.tx_frames.add(frames.len() as u64);
        counters.tx_bytes.add(bytes);
        counters.tx_segments.add(segments);
        Health::Alive
    }
}

/// What a run is to look like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unicast,
    /// Every frame to everybody.
    Broadcast,
    /// A filtering bridge with access ports: nothing is rewritten.
    Access,
    /// A filtering bridge; port 0 is a trunk, the others access ports: tags come and go.
    Trunk,
}

struct Rig {
    topology: Topology,
    queues: Vec<Option<Box<dyn PortQueue>>>,
    outbox: Outbox,
    workshop: Workshop,
    batch: Batch,
    far_ends: Vec<MemPort>,
    stations: u32,
    kind: Kind,
    random: u64,
    turn: u16,
    epoch: Instant,
}

impl Rig {
    fn new(stations: u32, fdb_max: u32, kind: Kind, mem: bool) -> Rig {
        let filtering = matches!(kind, Kind::Access | Kind::Trunk);
        let (ten, twenty) = (VlanId::new(10).unwrap(), VlanId::new(20).unwrap());
        let fdb = Fdb::new(fdb_max);
        fdb.set_ports(u32::from(PORTS));
        let ids = (0..PORTS).map(PortId);
        let ports = ids.clone().map(|id| {
            let trunk = VlanMode::Trunk { vids: [ten, twenty].into_iter().collect(), native: None };
            let mode = if kind == Kind::Trunk && id.0 == 0 { trunk } else { VlanMode::Access(ten) };
            let shared = Arc::new(PortShared::new(1, 1500, false));
            Some(Port {
                capabilities: Capabilities { csum: true, tso4: true, tso6: true, uso: true },
                ..Port::new(id, 0, VlanPolicy::new(&mode, ten), shared)
            })
        });
        let bridge = Bridge {
            fdb: Arc::new(fdb),
            learning: true,
            filtering,
            neighbours: None,
            members: ids.clone().collect(),
        };
        let topology =
            Topology { generation: 1, bridges: vec![bridge], ports: ports.collect(), ..Topology::default() };
        let mut far_ends = Vec::new();
        let queues = ids.map(|_| {
            if !mem {
                return Some(Box::new(Sink) as Box<dyn PortQueue>);
            }
            let far_end = MemPort::new(Capabilities::default(), 1500).unwrap();
            far_ends.push(far_end.clone());
            port::open(&PortKind::Mem(far_end), 1).unwrap().queues.pop()
        });
        let queues = queues.collect();
        let mut outbox = Outbox::default();
        outbox.resize(usize::from(PORTS));
        let rig = Rig {
            topology,
            queues,
            outbox,
            workshop: Workshop::default(),
            batch: Batch::default(),
            far_ends,
            stations,
            kind,
            random: 0x9e37_79b9_7f4a_7c15,
            turn: 0,
            epoch: Instant::now(),
        };
        rig.learn_all(if filtering { 10 } else { 0 });
        rig
    }

    fn learn_all(&self, vid: u16) {
        let fdb = &self.topology.bridges[0].fdb;
        for station in 0..self.stations {
            let key = Key::new(mac(station), vid);
            let port = PortId((station % u32::from(PORTS)) as u16);
            fdb.learn(key, fdb.hash(key), port, Tick(0));
            assert_eq!(fdb.lookup(key, fdb.hash(key)).map(|entry| entry.port), Some(port));
        }
    }

    /// A station behind `port`.
    fn station(&mut self, port: u16) -> MacAddr {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let behind = u64::from(self.stations / u32::from(PORTS));
        let station = ((self.random >> 32) * behind) >> 32;
        mac(station as u32 * u32::from(PORTS) + u32::from(port))
    }

    /// What the next batch will hold; returns the port that it comes from.
    fn compose(&mut self, batch: &mut [[u8; FRAME_LEN]; BATCH_FRAMES]) -> u16 {
        let from = self.turn % PORTS;
        self.turn = self.turn.wrapping_add(1);
        for frame in batch {
            let to = (from + 1 + (self.random >> 20) as u16 % (PORTS - 1)) % PORTS;
            let destination = self.station(to);
            let broadcast = self.kind == Kind::Broadcast;
            frame[..6].copy_from_slice(&if broadcast { MacAddr::BROADCAST } else { destination }.0);
            frame[6..12].copy_from_slice(&self.station(from).0);
            let tagged = self.kind == Kind::Trunk && from == 0;
            let tag = if tagged { [0x81, 0, 0, 10, 8, 0] } else { [8, 0, 0, 0, 0, 0] };
            frame[12..18].copy_from_slice(&tag);
        }
        from
    }

    /// As a receive call does.
    #[inline(never)]
    fn fill(&mut self, frames: &[[u8; FRAME_LEN]; BATCH_FRAMES]) {
        self.batch.clear();
        for frame in frames {
            let spare = self.batch.spare();
            spare[..VNET_HDR_LEN].fill(0);
            spare[VNET_HDR_LEN..][..FRAME_LEN].copy_from_slice(frame);
            self.batch.take(FRAME_LEN, None).unwrap();
        }
    }

    #[inline(never)]
    fn run(&mut self, from: u16, now: Tick) {
        let port = self.topology.port(PortId(from)).unwrap();
        let mut context = Context {
            topology: &self.topology,
            port,
            bridge: &self.topology.bridges[0],
            worker: 0,
            now,
            outbox: &mut self.outbox,
            queues: &mut self.queues,
            workshop: &mut self.workshop,
        };
        pipeline::run(&mut context, &mut self.batch);
    }

    /// The time that `batches` batches take, with or without filling them.
    fn measure(&mut self, batches: u64, with_take: bool) -> Duration {
        let mut frames = [[0; FRAME_LEN]; BATCH_FRAMES];
        let mut sum = Duration::ZERO;
        for _ in 0..batches {
            let from = self.compose(&mut frames);
            let now = Tick(self.epoch.elapsed().as_secs() as u32);
            if with_take {
                let start = Instant::now();
                self.fill(&frames);
                self.run(from, now);
                sum += start.elapsed();
            } else {
                self.fill(&frames);
                let start = Instant::now();
                self.run(from, now);
                sum += start.elapsed();
            }
            for far_end in &self.far_ends {
                while far_end.receive(Duration::ZERO).is_some() {}
            }
        }
        sum
    }

    fn count(&self, of: impl Fn(&Counters) -> u64) -> u64 {
        self.topology.ports.iter().flatten().map(|port| of(&port.shared.counters[0])).sum()
    }
}

/// Scattered, as real ones are by manufacturer.
fn mac(station: u32) -> MacAddr {
    let scattered = u64::from(station.wrapping_mul(0x9e37_79b1));
    MacAddr::from_u64(0x0200_0000_0000 | scattered)
}

fn tsc_mhz() -> Option<f64> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    info.lines().find(|line| line.starts_with("cpu MHz"))?.split(':').nth(1)?.trim().parse().ok()
}

/// A line of the summary, from the median of criterion's samples.
fn summary(name: &str, samples: &mut [f64]) {
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share) as usize];
    let (low, ns, high) = (at(0.1), at(0.5), at(0.9));
    let cycles =
        tsc_mhz().map_or_else(String::new, |mhz| format!("{:6.1} cycles/frame  ", ns * mhz / 1000.0));
    println!(
        "SUMMARY {name:24} {ns:6.2} ns/frame [{low:.2} {high:.2}]  {cycles}{:6.1} M frames/s",
        1000.0 / ns
    );
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(BATCH_FRAMES as u64));
    let mut lines = Vec::new();
    for (name, stations, kind, mem, with_take) in [
        ("64/run", 64, Kind::Unicast, false, false),
        ("64/take", 64, Kind::Unicast, false, true),
        ("64/mem", 64, Kind::Unicast, true, false),
        ("64/broadcast", 64, Kind::Broadcast, false, false),
        ("64/access", 64, Kind::Access, false, false),
        ("64/trunk", 64, Kind::Trunk, false, false),
        ("1M/run", 1 << 20, Kind::Unicast, false, false),
        ("1M/take", 1 << 20, Kind::Unicast, false, true),
    ] {
        let rig = RefCell::new(None);
        let samples = RefCell::new(Vec::new());
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|batches| {
                let mut rig = rig.borrow_mut();
                let rig = rig.get_or_insert_with(|| Rig::new(stations, stations * 2, kind, mem));
                let time = rig.measure(batches, with_take);
                let frames = (batches * BATCH_FRAMES as u64) as f64;
                samples.borrow_mut().push(time.as_secs_f64() * 1e9 / frames);
                time
            });
        });
        let Some(rig) = rig.into_inner() else { continue };
        let (received, sent) = (rig.count(|c| c.rx_frames.get()), rig.count(|c| c.tx_frames.get()));
        let copies = if kind == Kind::Broadcast { u64::from(PORTS) - 1 } else { 1 };
        assert_eq!(sent, received * copies, "{name}: every frame left");
        lines.push((name, samples.into_inner()));
    }
    group.finish();
    for (name, mut samples) in lines {
        summary(name, &mut samples);
    }
    criterion.final_summary();
}
