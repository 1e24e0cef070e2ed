//! Encapsulation in memory, one core: frames into complete outer packets, and out of them again, in batches of 64.
//!
//! `wrap` is what a remote's queue does without its socket: the flow's number, which gives the outer source port, the header, and all in one
//! flat buffer: Ethernet, IPv4 with its checksum, UDP where there is one, header, frame. `switch` is the whole way there: 64 frames
//! copied into a batch, parsed, admitted, learned from, looked up, and wrapped by the leaving port. `unwrap` is what an endpoint does:
//! the header read, the network looked for, and the frame looked at for what its sender left to do.
//!
//! Frames come in runs of eight of one flow, so that eight flows are in a batch.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hashbrown::HashSet;
use vswitch::addr::{MacAddr, PortId, VlanId};
use vswitch::batch::{BATCH_FRAMES, Batch};
use vswitch::bridge::fdb::{Fdb, Key, Tick};
use vswitch::bridge::vlan::VlanPolicy;
use vswitch::frame::Outgoing;
use vswitch::offload::VNET_HDR_LEN;
use vswitch::offload::checksum::Sum;
use vswitch::pipeline::{self, Context, Outbox, Workshop};
use vswitch::port::{Health, Inbound, PortQueue, Received};
use vswitch::spec::{Df, TunnelSpec, VlanMode};
use vswitch::stats::Counters;
use vswitch::sys::underlay::PAYLOAD_MAX;
use vswitch::topology::{Bridge, Port, PortShared, Topology};
use vswitch::tunnel::encapsulation::{Encapsulation, Header, NetworkId};
use vswitch::tunnel::erspan::{Direction, Sender};
use vswitch::tunnel::wrap::{Headers, Numbering, Slices, Wrapper};
use vswitch::tunnel::{arrival, gre};

const KINDS: [(&str, Header); 6] = [
    ("vxlan", Header::Vxlan),
    ("geneve", Header::Geneve),
    ("gre", Header::Gre { key: true, sequence: false, checksum: false }),
    ("gre-checksum", Header::Gre { key: true, sequence: true, checksum: true }),
    ("erspan-1", Header::Erspan(Sender::II { index: 7 })),
    ("erspan-2", Header::Erspan(Sender::III { direction: Direction::Ingress, hardware: 7 })),
];
const LENGTHS: [usize; 2] = [60, 1500];
const NUMBER: u32 = 77;
const ETHERNET_LEN: usize = 14;
const IP_LEN: usize = 20;
const UDP_LEN: usize = 8;

/// From one of eight flows, behind an empty offload header.
fn frame(index: usize, len: usize) -> Vec<u8> {
    let mut frame = vec![0; VNET_HDR_LEN];
    frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    let [a, b] = u16::try_from(len - ETHERNET_LEN).unwrap().to_be_bytes();
    frame.extend([0x45, 0, a, b, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x80, u8::try_from(index / 8).unwrap(), 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, 0x10]);
    frame.resize(VNET_HDR_LEN + len, 0x5a);
    frame
}

/// A remote whose socket is a buffer for one batch.
#[derive(Debug)]
struct Remote {
    wrapper: Wrapper,
    numbering: Numbering,
    port: Option<u16>,
    /// Ethernet and IP.
    outer: [u8; ETHERNET_LEN + IP_LEN],
    /// Of the IP header, without its length.
    sum: Sum,
    buffer: Box<[u8]>,
    /// Where packets end.
    ends: Vec<usize>,
}

impl Remote {
    fn new(header: Header) -> Remote {
        let port = header.encapsulation().port();
        let protocol = if port.is_some() { 17 } else { gre::IP_PROTOCOL };
        let mut outer = [0; ETHERNET_LEN + IP_LEN];
        outer[..ETHERNET_LEN].copy_from_slice(&[2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 1, 2, 8, 0]);
        outer[ETHERNET_LEN..][..IP_LEN]
            .copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        let sum = Sum::of(&outer[ETHERNET_LEN..]);
        let wrapper = Wrapper::new(&TunnelSpec::new(header, NUMBER, [192, 0, 2, 1].into()), Df::Inherit);
        let buffer = vec![0; BATCH_FRAMES * 2048].into();
        Remote {
            numbering: Numbering::default(),
            wrapper,
            port,
            outer,
            sum,
            buffer,
            ends: Vec::with_capacity(BATCH_FRAMES),
        }
    }

    /// Where a packet's header begins.
    fn start(&self) -> usize {
        self.outer.len() + if self.port.is_some() { UDP_LEN } else { 0 }
    }

    #[inline(never)]
    fn wrap(&mut self, frames: &[Outgoing<'_>]) {
        self.ends.clear();
        let mut at = 0;
        let mut left = frames;
        let numbering = self.wrapper.is_numbered().then_some(&self.numbering);
        let mut stamps = numbering.map(Numbering::lock);
        while let Some(first) = left.first() {
            let class = self.wrapper.class(first).unwrap();
            let (now, later) = left.split_at(self.wrapper.run(left, class, PAYLOAD_MAX));
            let (mut headers, mut slices) = (Headers::new(), Slices::new());
            let size = self.wrapper.wrap(now, stamps.as_mut(), &mut headers, &mut slices);
            let start = self.start();
            let mut room = 0;
            for slice in &slices {
                if room == 0 {
                    // What the kernel does for each packet of a run.
                    let out = &mut self.buffer[at..at + start];
                    let (outer, udp) = out.split_at_mut(ETHERNET_LEN + IP_LEN);
                    outer.copy_from_slice(&self.outer);
                    #[allow(clippy::cast_possible_truncation, reason = "of two thousand bytes at most")]
                    let len = (IP_LEN + udp.len() + size) as u16;
                    outer[ETHERNET_LEN + 2..][..2].copy_from_slice(&len.to_be_bytes());
                    outer[ETHERNET_LEN + 10..][..2].copy_from_slice(&self.sum.word(len).checksum());
                    if let Some(port) = self.port {
                        let [a, b] = (0xc000 | class.flow >> 2).to_be_bytes();
                        let ([c, d], [e, f]) = (port.to_be_bytes(), (len - 20).to_be_bytes());
                        // Without a checksum, as RFC 7348 would have it.
                        udp.copy_from_slice(&[a, b, c, d, e, f, 0, 0]);
                    }
                    at += start;
                    room = size;
                }
                self.buffer[at..at + slice.len()].copy_from_slice(slice);
                at += slice.len();
                room -= slice.len();
                if room == 0 {
                    self.ends.push(at);
                }
            }
            left = later;
        }
    }

    /// The packets, from the header on.
    fn packets(&self) -> impl Iterator<Item = &[u8]> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(from, &to)| &self.buffer[from + self.start()..to])
    }
}

impl PortQueue for Remote {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn receive(&mut self, _: &mut Batch, _: &Inbound<'_>) -> Received {
        Received::Drained
    }

    fn transmit(&mut self, frames: &[Outgoing<'_>], counters: &Counters) -> Health {
        self.wrap(frames);
        for frame in frames {
            counters.sent(frame.frame_len(), frame.segments());
        }
        black_box(&self.buffer);
        Health::Alive
    }
}

/// Two ports: frames come in by the first and leave by the second.
struct Rig {
    topology: Topology,
    queues: Vec<Option<Box<dyn PortQueue>>>,
    outbox: Outbox,
    workshop: Workshop,
    batch: Batch,
}

impl Rig {
    fn new(header: Header) -> Rig {
        let fdb = Fdb::new(1024);
        fdb.set_ports(2);
        let key = Key::new(MacAddr([2, 0, 0, 0, 0, 1]), 0);
        fdb.learn(key, fdb.hash(key), PortId(1), Tick(0));
        let vlan = || VlanPolicy::new(&VlanMode::Default, VlanId::DEFAULT_PVID);
        let port = |id| Port::new(id, 0, vlan(), Arc::new(PortShared::new(1, 1500, false)));
        let members = vec![PortId(0), PortId(1)];
        let ports = members.iter().map(|&id| Some(port(id))).collect();
        let bridge = Bridge {
            fdb: Arc::new(fdb),
            learning: true,
            filtering: false,
            neighbours: None,
            members: members.into_iter().collect(),
        };
        let topology = Topology { generation: 1, bridges: vec![bridge], ports, ..Topology::default() };
        let queues = vec![None, Some(Box::new(Remote::new(header)) as Box<dyn PortQueue>)];
        let mut outbox = Outbox::default();
        outbox.resize(2);
        Rig { topology, queues, outbox, workshop: Workshop::default(), batch: Batch::default() }
    }

    /// As a receive call does, and then all stages.
    fn run(&mut self, frames: &[Vec<u8>]) {
        self.batch.clear();
        for frame in frames {
            self.batch.spare()[..frame.len()].copy_from_slice(frame);
            self.batch.take(frame.len() - VNET_HDR_LEN, None).unwrap();
        }
        let mut context = Context {
            topology: &self.topology,
            port: self.topology.port(PortId(0)).unwrap(),
            bridge: &self.topology.bridges[0],
            worker: 0,
            now: Tick(0),
            outbox: &mut self.outbox,
            queues: &mut self.queues,
            workshop: &mut self.workshop,
        };
        pipeline::run(&mut context, &mut self.batch);
    }

    fn sent(&self) -> u64 {
        self.topology.ports[1].as_ref().map_or(0, |port| port.shared.counters[0].tx_frames.get())
    }
}

/// What an endpoint does with packets; how many were of the network.
#[inline(never)]
fn unwrap<'a>(
    encapsulation: Encapsulation,
    networks: &HashSet<NetworkId>,
    packets: impl Iterator<Item = &'a [u8]>,
) -> usize {
    let mut taken = 0;
    for packet in packets {
        let Some((network, frame)) = encapsulation.parse(packet) else { continue };
        if networks.contains(&network) {
            black_box((frame, arrival::offload(frame, 1514)));
            taken += 1;
        }
    }
    taken
}

fn tunnels(c: &mut Criterion) {
    for (name, header) in KINDS {
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(BATCH_FRAMES as u64));
        for len in LENGTHS {
            let frames: Vec<_> = (0..BATCH_FRAMES).map(|index| frame(index, len)).collect();
            let outgoing: Vec<_> =
                frames.iter().map(|bytes| Outgoing::Whole { bytes, segments: 1 }).collect();
            let mut remote = Remote::new(header);
            group.bench_function(BenchmarkId::new("wrap", len), |b| {
                b.iter(|| {
                    remote.wrap(black_box(&outgoing));
                    black_box(&remote.buffer);
                });
            });
            let mut rig = Rig::new(header);
            let mut batches = 0;
            group.bench_function(BenchmarkId::new("switch", len), |b| {
                b.iter(|| {
                    rig.run(black_box(&frames));
                    batches += 1;
                });
            });
            assert_eq!(rig.sent(), batches * BATCH_FRAMES as u64, "every frame left");

            remote.wrap(&outgoing);
            let networks = HashSet::from_iter([header.network(NUMBER)]);
            let encapsulation = header.encapsulation();
            for (packet, frame) in remote.packets().zip(&frames) {
                let parsed = encapsulation.parse(packet);
                assert_eq!(parsed, Some((header.network(NUMBER), &frame[VNET_HDR_LEN..])));
            }
            group.bench_function(BenchmarkId::new("unwrap", len), |b| {
                b.iter(|| assert_eq!(unwrap(encapsulation, &networks, remote.packets()), BATCH_FRAMES));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, tunnels);
criterion_main!(benches);
