//! A guest's rings, and what its front end says.

#![allow(missing_docs)]
// A fuzz target may: what is not as it says is what it looks for.
#![allow(clippy::expect_used)]

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vswitch::batch::Batch;
use vswitch::frame::Outgoing;
use vswitch::offload::VNET_HDR_LEN;
use vswitch::port;
use vswitch::spec::{PortKind, SocketRole, VhostUserSpec};
use vswitch::stats::{Counters, DropReason};
use vswitch::topology::PortShared;
use vswitch::virtio::dirty::{DirtyLog, RingLog};
use vswitch::virtio::inflight::InflightFile;
use vswitch::virtio::memory::{GuestMemory, RegionSpec, Share};
use vswitch::virtio::net::NetRing;
use vswitch::virtio::ring::{Budget, Records, Setup};
use vswitch::virtio::room::Pool;

const LEN: u64 = 256 << 10;
const SIZE: u16 = 16;
const AVAILABLE: u64 = 16 * SIZE as u64;
const USED: u64 = 512;
const TABLE: u64 = 1024;
const DATA: u64 = 8192;

/// Features, the index to begin at, how many chains wait, the flags of all descriptors, what to overwrite where, and a frame's length.
type Input = (u8, u16, u8, u16, Vec<(u16, u16)>, u16);

/// A ring of good chains, spoilt.
fn memory((_, base, waiting, flags, patches, _): &Input) -> Arc<GuestMemory> {
    let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).expect("a file in memory"));
    file.set_len(LEN).expect("that long");
    let mut bytes = vec![0; 4096];
    for index in 0..u64::from(SIZE) {
        let next = (index + 1) % u64::from(SIZE);
        let entry = [DATA + 4096 * index, 2000 | u64::from(*flags) << 32 | next << 48];
        for (n, word) in (0..).zip(entry) {
            for table in [0, TABLE] {
                let at = usize::try_from(table + 16 * index + 8 * n).expect("small");
                bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
        let at = usize::try_from(AVAILABLE + 4 + 2 * index).expect("small");
        bytes[at] = u8::try_from(index).expect("small");
    }
    let at = usize::try_from(AVAILABLE).expect("small") + 2;
    bytes[at..at + 2].copy_from_slice(&base.wrapping_add((*waiting).into()).to_le_bytes());
    for (at, value) in patches {
        // The rings, mostly.
        let at = usize::from(if at & 0x8000 == 0 { at & 1023 } else { at & 4094 });
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    file.write_all_at(&bytes, 0).expect("written");
    let spec = RegionSpec { guest_addr: 0, user_addr: LEN, len: LEN, file_offset: 0 };
    Arc::new(GuestMemory::default().with(spec, file).expect("a region"))
}

fn features(input: &Input) -> u64 {
    use vswitch::virtio::feature::*;
    let offered = [
        VERSION_1,
        NET_MRG_RXBUF,
        RING_EVENT_IDX,
        RING_INDIRECT_DESC,
        NET_GUEST_CSUM,
        NET_GUEST_TSO4,
        NET_GUEST_TSO6,
        NET_GUEST_USO4 | NET_GUEST_USO6 | IN_ORDER,
    ];
    (0..).zip(offered).filter(|(bit, _)| input.0 & 1 << bit != 0).fold(0, |all, (_, feature)| all | feature)
}

fn setup(input: &Input) -> Setup {
    use vswitch::virtio::feature::{IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC};
    let features = features(input);
    Setup {
        size: SIZE,
        descriptors: LEN,
        available: LEN + AVAILABLE,
        used: LEN + USED,
        base: input.1,
        event_idx: features & RING_EVENT_IDX != 0,
        indirect: features & RING_INDIRECT_DESC != 0,
        in_order: features & IN_ORDER != 0,
    }
}

fn ring(input: &Input) -> Option<NetRing> {
    NetRing::new(memory(input), &setup(input), features(input), None).ok()
}

/// Sends frames to a guest; whatever becomes of them, each is counted once.
fn send_frames(to: &mut NetRing, input: &Input) {
    let bytes = vec![0; VNET_HDR_LEN + 14 + usize::from(input.5)];
    let frames = [Outgoing::Whole { bytes: &bytes, segments: 1 }; 5];
    let counters = Counters::default();
    let _ = to.transmit(&frames, &counters, &mut Budget::new(Budget::SENDING));
    let dropped: u64 = DropReason::ALL.iter().map(|&reason| counters.drops(reason)).sum();
    assert_eq!(counters.tx_frames.get() + dropped, 5);
}

/// Never a panic, never an access outside the guest's memory, and every frame is counted once.
#[test]
fn rings_are_not_believed() {
    bolero::check!().with_type::<Input>().with_iterations(5000).for_each(|input| {
        let Some(mut from) = ring(input) else { return };
        let (mut batch, counters) = (Batch::default(), Counters::default());
        for listen in [true, false, true] {
            batch.clear();
            let received = from.receive(&mut batch, &counters, &mut Budget::new(Budget::RECEIVING), listen);
            assert_eq!(received.err(), from.fault());
        }
        let Some(mut to) = ring(input) else { return };
        send_frames(&mut to, input);
    });
}

/// Nor what a front end keeps for us: which chains were in flight (from what to overwrite where), and a log of pages (its length, and where the used ring is).
#[test]
fn records_are_not_believed() {
    type Kept = (Vec<(u16, u16)>, u8, u64);
    bolero::check!().with_type::<(Input, Kept)>().with_iterations(5000).for_each(|(input, kept)| {
        let (patches, log_len, used) = kept;
        let file = InflightFile::create(1, SIZE).expect("a file");
        let len = InflightFile::len(1, SIZE);
        // One that was begun.
        file.write_all_at(&[1, 0, 16, 0], 8).expect("written");
        for &(at, value) in patches {
            file.write_all_at(&value.to_le_bytes(), u64::from(at) * 2 % len).expect("written");
        }
        let features = features(input);
        let recorded = || {
            let log = File::from(memfd_create(c"log", MFdFlags::MFD_CLOEXEC).expect("a file in memory"));
            log.set_len(256).expect("that long");
            let log = Arc::new(
                DirtyLog::new(&Share::default(), log, 0, u64::from(*log_len).max(1)).expect("a log"),
            );
            let kept = file.try_clone().expect("another handle");
            let kept =
                Arc::new(InflightFile::new(&Share::default(), kept, 0, len, 1, SIZE).expect("long enough"));
            let records = Records {
                log: Some(RingLog { log, buffers: input.0 & 1 != 0, used: Some(*used) }),
                inflight: kept.ring(0),
            };
            NetRing::recorded(memory(input), &setup(input), features, None, records).ok()
        };
        if let Some(mut from) = recorded() {
            let (mut batch, counters) = (Batch::default(), Counters::default());
            let _ = from.receive(&mut batch, &counters, &mut Budget::new(Budget::RECEIVING), true);
            from.settle();
        }
        if let Some(mut to) = recorded() {
            send_frames(&mut to, input);
            to.settle();
        }
    });
}

/// Never a panic, and a front end that goes is always noticed: the next one is heard.
#[test]
fn front_ends_may_say_anything() {
    let path = std::env::temp_dir().join(format!("vswitch-fuzz-{}.sock", std::process::id()));
    let spec = VhostUserSpec { queues: Some(2), ..VhostUserSpec::new(path.clone(), SocketRole::Server) };
    let mut open = port::open(&PortKind::VhostUser(spec), 1).expect("a port");
    let link = open.link.as_mut().expect("a link");
    link.start(Arc::new(PortShared::new(1, 1500, false)), Arc::new(Pool::new(None))).expect("a thread");
    // Few: after each the port waits for a tenth of a second.
    type Message = (u8, u8, Vec<u8>, Option<u32>);
    bolero::check!().with_type::<Vec<Message>>().with_iterations(40).for_each(|messages| {
        let mut stream = UnixStream::connect(&path).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time");
        for (request, flags, payload, len) in messages {
            let len = len.unwrap_or(u32::try_from(payload.len()).expect("short"));
            let header = [u32::from(request % 48), u32::from(flags & 8) | 1, len];
            let header: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
            // It may have had enough.
            if stream.write_all(&[&header, &payload[..]].concat()).is_err() {
                break;
            }
        }
        let _ = stream.shutdown(Shutdown::Write);
        if let Err(error) = stream.read_to_end(&mut Vec::new()) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "it hangs");
        }
    });
}

/// Where a front end's own addresses begin.
const USER: u64 = 1 << 40;
/// Queues of two pairs.
const QUEUES: u8 = 4;

/// What a front end may send: header and payload, which say as a rule what the protocol allows, in numbers that fit each other. The second and third bytes choose among
/// queues and values.
fn request((kind, which, value): (u8, u8, u8)) -> (u32, Vec<u64>, bool) {
    let pair = |low: u64, high: u64| low | high << 32;
    let (index, number) = (u64::from(which % QUEUES), u64::from(value));
    let start = USER + 16384 * index;
    let region = |nth: u64| [LEN * nth, LEN, USER + LEN * nth, 0];
    let inflight = [InflightFile::len(QUEUES.into(), SIZE), 0, u64::from(QUEUES) | u64::from(SIZE) << 16];
    let features = vswitch::virtio::feature::VERSION_1 | vswitch::virtio::feature::PROTOCOL_FEATURES;
    // Now and then, what is not allowed.
    let odd = u64::from(value == u8::MAX) << 20;
    match kind % 22 {
        0 => (1, vec![], false),
        1 => (
            2,
            vec![features | number << 7 & (1 << 15 | 1 << 7) | u64::from(which & 1) << 26 | odd << 20],
            false,
        ),
        2 => (3, vec![], false),
        3 => (5, [&[1][..], &region(0)].concat(), true),
        4 => (6, vec![LEN, 0], true),
        5 => (7, vec![], true),
        6 => (8, vec![pair(index, u64::from(SIZE) + odd)], false),
        7 => {
            let log = u64::from(value & 1);
            (9, vec![pair(index, log), start, start + 8192 + odd, start + 4096, 4096 * index], false)
        }
        8 => (10, vec![pair(index, number % 3)], false),
        9 => (11, vec![pair(index, 0)], false),
        10 => (12, vec![index], true),
        11 => (13, vec![index], true),
        12 => (14, vec![index], true),
        13 => (15, vec![], false),
        14 => (16, vec![0x1 | 0x2 | 0x8 | 0x1000 | 0x8000 | 0x4], false),
        15 => (17, vec![], false),
        16 => (18, vec![pair(index, number & 1)], false),
        17 => (19, vec![number], false),
        18 => (31, inflight.to_vec(), false),
        19 => (32, inflight.to_vec(), true),
        20 => (37, [&[0][..], &region(1 + number % 2)].concat(), true),
        _ => (38, [&[0][..], &region(1 + number % 2)].concat(), false),
    }
}

fn send(stream: &UnixStream, number: u32, payload: &[u64], need_reply: bool, fd: Option<RawFd>) -> bool {
    let len = u32::try_from(8 * payload.len()).expect("short");
    let mut message = [number, 1 | u32::from(need_reply) << 3, len].map(u32::to_ne_bytes).concat();
    message.extend(payload.iter().flat_map(|word| word.to_ne_bytes()));
    let fds: Vec<RawFd> = fd.into_iter().collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&message)], rights, MsgFlags::MSG_NOSIGNAL, None).is_ok()
}

/// The answer to a number's request that asks for one.
fn answer(mut stream: &UnixStream) -> u64 {
    let mut bytes = [0; 20];
    stream.read_exact(&mut bytes).expect("an answer");
    bytes[12..].iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

/// Requests that are well-formed, in any order and after a proper beginning, with memory and eventfds: workers use the rings meanwhile.
/// A good front end is heard after each.
#[test]
fn front_ends_may_ask_in_any_order() {
    let path = std::env::temp_dir().join(format!("vswitch-fuzz-order-{}.sock", std::process::id()));
    let spec = VhostUserSpec { queues: Some(2), ..VhostUserSpec::new(path.clone(), SocketRole::Server) };
    let mut open = port::open(&PortKind::VhostUser(spec), 1).expect("a port");
    let shared = Arc::new(PortShared::new(1, 1500, false));
    open.link
        .as_mut()
        .expect("a link")
        .start(Arc::clone(&shared), Arc::new(Pool::new(None)))
        .expect("a thread");
    let queue = std::sync::Mutex::new(open.queues.pop().expect("a worker's"));
    let memory = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).expect("a file in memory"));
    memory.set_len(LEN).expect("that long");
    let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    let connected = || {
        let stream = UnixStream::connect(&path).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time");
        stream
    };
    // A queue that is set up, with what is in the way of nothing: owner, features, memory.
    let beginning = [(2, 0, 0), (1, 0, 0), (14, 0, 0), (3, 0, 0)];
    let ring = |index: u8| {
        [(6, index, 0), (7, index, 0), (8, index, 0), (11, index, 0), (10, index, 0), (16, index, 1)]
    };
    let set_up: Vec<_> = beginning.into_iter().chain((0..2).flat_map(ring)).collect();
    let tell = |stream: &UnixStream, asked: (u8, u8, u8)| {
        let (number, payload, with_fd) = request(asked);
        let fd = if matches!(number, 7 | 12..=14) { bell.as_raw_fd() } else { memory.as_raw_fd() };
        send(stream, number, &payload, asked.1 & 0x80 != 0, with_fd.then_some(fd))
    };
    type Requests = (u8, Vec<(u8, u8, u8)>);
    bolero::check!().with_type::<Requests>().with_iterations(60).for_each(|(begun, requests)| {
        let stream = connected();
        let begun = &set_up[..usize::from(*begun) % (set_up.len() + 1)];
        for &asked in begun.iter().chain(requests) {
            // It may have had enough.
            if !tell(&stream, asked) {
                break;
            }
            let (mut batch, inbound) =
                (Batch::default(), port::Inbound { counters: &shared.counters[0], demux: None, worker: 0 });
            let mut queue = queue.lock().expect("no panic before");
            queue.receive(&mut batch, &inbound);
            queue.take_back();
            let bytes = [0; VNET_HDR_LEN + 60];
            queue.transmit(&[Outgoing::Whole { bytes: &bytes, segments: 1 }], &shared.counters[0]);
        }
        let _ = stream.shutdown(Shutdown::Write);
        if let Err(error) = (&stream).read_to_end(&mut Vec::new()) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "it hangs");
        }
        let good = connected();
        assert!(set_up.iter().all(|&asked| tell(&good, asked)), "it listens");
        assert!(send(&good, 11, &[0], false, None), "it listens");
        // Queue 0, and the index it was at.
        assert_eq!(answer(&good), 0);
    });
}
