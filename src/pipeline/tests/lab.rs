//! A switch of one bridge without threads and devices.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use crate::addr::{MacAddr, PortId, VlanId, VlanSet};
use crate::batch::{BATCH_FRAMES, Batch};
use crate::bridge::fdb::{Entry, Fdb, Key, Tick};
use crate::bridge::vlan::VlanPolicy;
use crate::frame::Outgoing;
use crate::offload::{BadOffload, Capabilities, VNET_HDR_LEN};
use crate::pipeline::{self, Context, Outbox, Workshop};
use crate::port::{Health, Inbound, PortQueue, Received};
use crate::spec::VlanMode;
use crate::stats::{Counters, DropReason};
use crate::topology::{Bridge, Port, PortShared, Topology};
use crate::virtio::GuestMemory;
use crate::virtio::driver::{memory, write};

const LENDER_LEN: u64 = 4 << 20;

pub(super) const ALL_OFFLOADS: Capabilities = Capabilities { csum: true, tso4: true, tso6: true, uso: true };
pub(super) const NO_OFFLOADS: Capabilities =
    Capabilities { csum: false, tso4: false, tso6: false, uso: false };
/// No header: nothing is left to do.
pub(super) const FINISHED: [u8; VNET_HDR_LEN] = [0; VNET_HDR_LEN];

/// How a port is set up.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) learning: bool,
    pub(super) flood: bool,
    pub(super) isolated: bool,
    pub(super) hairpin: bool,
    pub(super) vlan: VlanMode,
    pub(super) capabilities: Capabilities,
    pub(super) mtu: u32,
    pub(super) strict_mtu: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            learning: true,
            flood: true,
            isolated: false,
            hairpin: false,
            vlan: VlanMode::Default,
            capabilities: ALL_OFFLOADS,
            mtu: 65_535,
            strict_mtu: false,
        }
    }
}

/// A frame as a device brings it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Arrival {
    pub(super) header: [u8; VNET_HDR_LEN],
    pub(super) bytes: Vec<u8>,
    /// A tag that the kernel took out.
    pub(super) tag: Option<[u8; 4]>,
}

impl From<Vec<u8>> for Arrival {
    fn from(bytes: Vec<u8>) -> Self {
        Arrival { header: FINISHED, bytes, tag: None }
    }
}

/// A frame as a device was given it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Sent {
    pub(super) header: [u8; VNET_HDR_LEN],
    pub(super) bytes: Vec<u8>,
    pub(super) segments: u32,
}

/// A device that keeps what it is given.
#[derive(Clone, Debug, Default)]
struct Tray {
    sent: Arc<Mutex<Vec<Sent>>>,
    takes_lent: bool,
}

impl PortQueue for Tray {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn receive(&mut self, _: &mut Batch, _: &Inbound<'_>) -> Received {
        Received::Drained
    }

    fn transmit(&mut self, frames: &[Outgoing<'_>], counters: &Counters) -> Health {
        assert!(!frames.is_empty(), "nothing to send is not sent");
        for frame in frames {
            let [header, bytes @ ..] = frame.slices();
            let (header, mut bytes) = (header.try_into().expect("a header"), bytes.concat());
            if let Some(rest) = frame.rest() {
                assert!(self.takes_lent, "it cannot send what is elsewhere");
                for &piece in rest.pieces {
                    let at = bytes.len();
                    bytes.resize(at + piece.len, 0);
                    rest.memory.slice(piece).expect("mapped").copy_to(&mut bytes[at..]);
                }
            }
            assert_eq!(bytes.len(), frame.frame_len());
            counters.sent(bytes.len(), frame.segments());
            self.sent.lock().unwrap().push(Sent { header, bytes, segments: frame.segments() });
        }
        Health::Alive
    }

    fn takes_lent(&self) -> bool {
        self.takes_lent
    }
}

/// The switch.
pub(super) struct Lab {
    pub(super) topology: Topology,
    queues: Vec<Option<Box<dyn PortQueue>>>,
    trays: Vec<Tray>,
    outbox: Outbox,
    workshop: Workshop,
    batch: Batch,
    pub(super) now: Tick,
    /// Memory in which long frames stay, if they do.
    lender: Option<Arc<GuestMemory>>,
}

impl Lab {
    pub(super) fn new(filtering: bool, ports: &[Setup]) -> Lab {
        let fdb = Fdb::with_seed(1000, 7);
        fdb.set_ports(ports.len() as u32);
        let ids = (0..ports.len() as u16).map(PortId);
        let members = ids.clone().collect();
        let bridge = Bridge { fdb: Arc::new(fdb), learning: true, filtering, neighbours: None, members };
        let ports = ids.zip(ports).map(|(id, setup)| {
            let vlan = VlanPolicy::new(&setup.vlan, VlanId::DEFAULT_PVID);
            let shared = Arc::new(PortShared::new(1, setup.mtu, setup.strict_mtu));
            Some(Port {
                learning: setup.learning,
                flood: setup.flood,
                isolated: setup.isolated,
                hairpin: setup.hairpin,
                capabilities: setup.capabilities,
                ..Port::new(id, 0, vlan, shared)
            })
        });
        let topology =
            Topology { generation: 1, bridges: vec![bridge], ports: ports.collect(), ..Topology::default() };
        let tray = |port: usize| Tray { takes_lent: port % 2 == 1, ..Tray::default() };
        let trays = (0..topology.ports.len()).map(tray).collect::<Vec<_>>();
        let mut outbox = Outbox::default();
        outbox.resize(trays.len());
        Lab {
            topology,
            queues: trays.iter().map(|tray| Some(Box::new(tray.clone()) as Box<dyn PortQueue>)).collect(),
            trays,
            outbox,
            workshop: Workshop::default(),
            batch: Batch::default(),
            now: Tick(0),
            lender: None,
        }
    }

    /// The same with long frames lent; every other port takes them so.
    pub(super) fn lending(self) -> Lab {
        Lab { lender: Some(memory(&[(0, LENDER_LEN)])), ..self }
    }

    /// Takes a frame into the batch with its end lent, cut into pieces, if it is long enough for that.
    fn lend(&mut self, frame: &Arrival) -> Option<Result<(), BadOffload>> {
        let lender = self.lender.as_ref().filter(|_| frame.tag.is_none())?;
        let len = frame.bytes.len();
        let here = self.batch.lends(frame.header[1] != 0, len, 3, lender)?;
        // One behind the other, in memory that none of this batch uses.
        let start = self.batch.frames.len() as u64 * (LENDER_LEN / BATCH_FRAMES as u64);
        write(lender, start, &frame.bytes[here..]);
        let pieces = [(0, 1), (1, 200), (200, len - here)];
        let pieces = pieces.map(|(from, to)| lender.guest(start + from as u64, to - from).expect("room"));
        let spare = self.batch.spare();
        spare[..VNET_HDR_LEN].copy_from_slice(&frame.header);
        spare[VNET_HDR_LEN..][..here].copy_from_slice(&frame.bytes[..here]);
        Some(self.batch.take_lent(here, len, lender, pieces.into_iter()))
    }

    /// As many ports, all alike.
    pub(super) fn plain(ports: usize) -> Lab {
        Lab::new(false, &vec![Setup::default(); ports])
    }

    /// Frames arrive at a port, in as few batches as they fit, or in batches of at most `most`.
    pub(super) fn arrive_in_batches(&mut self, port: u16, most: usize, frames: &[Arrival]) {
        self.batch.clear();
        for frame in frames {
            if self.batch.is_full() || self.batch.frames.len() >= most {
                self.run(port);
                self.batch.clear();
            }
            let taken = self.lend(frame).unwrap_or_else(|| {
                let spare = self.batch.spare();
                spare[..VNET_HDR_LEN].copy_from_slice(&frame.header);
                spare[VNET_HDR_LEN..][..frame.bytes.len()].copy_from_slice(&frame.bytes);
                self.batch.take(frame.bytes.len(), frame.tag)
            });
            if taken.is_err() {
                self.counters(port).drop_frame(DropReason::BadOffload);
            }
        }
        self.run(port);
    }

    pub(super) fn arrive(&mut self, port: u16, frames: &[Arrival]) {
        self.arrive_in_batches(port, usize::MAX, frames);
    }

    /// One frame without offloads.
    pub(super) fn hear(&mut self, port: u16, frame: Vec<u8>) {
        self.arrive(port, &[frame.into()]);
    }

    fn run(&mut self, port: u16) {
        let mut context = Context {
            topology: &self.topology,
            port: self.topology.port(PortId(port)).expect("a port"),
            bridge: &self.topology.bridges[0],
            worker: 0,
            now: self.now,
            outbox: &mut self.outbox,
            queues: &mut self.queues,
            workshop: &mut self.workshop,
        };
        pipeline::run(&mut context, &mut self.batch);
        assert!(self.outbox.active.is_empty() && self.outbox.lists.iter().all(|list| list.is_empty()));
    }

    /// What was sent by a port since last asked.
    pub(super) fn take(&self, port: u16) -> Vec<Sent> {
        std::mem::take(&mut *self.trays[usize::from(port)].sent.lock().unwrap())
    }

    /// The bytes of what was sent by each port since last asked.
    pub(super) fn sent(&self) -> Vec<Vec<Vec<u8>>> {
        let bytes = |port| self.take(port).into_iter().map(|sent| sent.bytes).collect();
        (0..self.trays.len() as u16).map(bytes).collect()
    }

    /// How many frames were sent by each port since last asked.
    pub(super) fn sent_counts(&self) -> Vec<usize> {
        self.sent().iter().map(Vec::len).collect()
    }

    pub(super) fn port_mut(&mut self, port: u16) -> &mut Port {
        self.topology.ports[usize::from(port)].as_mut().expect("a port")
    }

    pub(super) fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    pub(super) fn lose_queue(&mut self, port: u16) {
        self.queues[usize::from(port)] = None;
    }

    pub(super) fn counters(&self, port: u16) -> &Counters {
        &self.topology.port(PortId(port)).expect("a port").shared.counters[0]
    }

    /// What a port dropped, by reason.
    pub(super) fn drops(&self, port: u16) -> Vec<(DropReason, u64)> {
        let count = |&reason| (reason, self.counters(port).drops(reason));
        DropReason::ALL.iter().map(count).filter(|&(_, n)| n > 0).collect()
    }

    pub(super) fn fdb(&self) -> &Fdb {
        &self.topology.bridges[0].fdb
    }

    pub(super) fn at(&self, mac: MacAddr, vid: u16) -> Option<u16> {
        let key = Key::new(mac, vid);
        self.fdb().lookup(key, self.fdb().hash(key)).map(|entry| entry.port.0)
    }

    /// Every station, sorted.
    pub(super) fn stations(&self) -> Vec<(Key, Entry)> {
        let mut stations: Vec<_> = self.fdb().iter().collect();
        stations.sort_by_key(|(key, _)| *key);
        stations
    }
}

/// The nth station's address.
pub(super) fn station(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

/// A frame of 60 bytes with a payload that tells it from others.
pub(super) fn frame(to: MacAddr, from: MacAddr, payload: u8) -> Vec<u8> {
    frame_of(60, to, from, payload)
}

/// The same, `len` bytes long.
pub(super) fn frame_of(len: usize, to: MacAddr, from: MacAddr, payload: u8) -> Vec<u8> {
    let mut frame = [&to.0[..], &from.0, &[0x88, 0xb5]].concat();
    frame.resize(len.max(14), payload);
    frame.truncate(len);
    frame
}

/// The same frame with a tag behind the addresses.
pub(super) fn tagged(tpid: u16, tci: u16, frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &tpid.to_be_bytes(), &tci.to_be_bytes(), &frame[12..]].concat()
}

pub(super) fn vid(vid: u16) -> VlanId {
    VlanId::new(vid).expect("a VLAN id")
}

pub(super) fn trunk(vids: &[u16], native: Option<u16>) -> VlanMode {
    let vids: VlanSet = vids.iter().map(|&n| vid(n)).collect();
    VlanMode::Trunk { vids, native: native.map(vid) }
}
