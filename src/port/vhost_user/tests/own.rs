//! A port with a thread of its own, and front ends that hold up whoever touches their memory.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::load::{PLACES, frame, number, switch_of, through_with};
use super::*;
use crate::offload::{Gso, Offload};
use crate::port::mem::{MemFrame, MemPort};
use crate::spec::{BridgeSpec, PortKind, PortSettings, PortSpec};
use crate::switch::{Missing, Options, PollMode, Switch};

const LONG: Duration = Duration::from_secs(10);

#[test]
fn frames_go_both_ways() {
    through_with(PollMode::Adaptive, true);
    through_with(PollMode::Wait, true);
}

/// A TCP segment of 4,000 bytes of payload over IPv4, from a station to another, and what its sender left to do.
fn long_segment(to: u8, from: u8) -> (Vec<u8>, Offload) {
    const PAYLOAD: usize = 4000;
    let mut bytes = frame(to, from, 0)[..14].to_vec();
    bytes[12..].copy_from_slice(&[8, 0]);
    let total = u16::try_from(40 + PAYLOAD).expect("small").to_be_bytes();
    bytes.extend([0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, from, 10, 0, 0, to]);
    bytes.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    bytes.extend((0..PAYLOAD).map(|n| n.to_le_bytes()[0]));
    let offload = Offload {
        needs_csum: true,
        csum_start: 34,
        csum_offset: 16,
        gso: Gso::Tcp4,
        gso_size: 1448,
        hdr_len: 54,
        ..Offload::default()
    };
    (bytes, offload)
}

#[test]
fn segmentation_is_left_to_who_can() {
    let folder = Folder::new();
    let all = Capabilities { csum: true, tso4: true, tso6: true, uso: true };
    let memory = MemPort::new(all, 1500).expect("a port");
    let spec = VhostUserSpec { own_thread: true, ..VhostUserSpec::new(folder.socket(), SocketRole::Server) };
    let guest = PortKind::VhostUser(VhostUserSpec { queues: Some(PAIRS), ..spec });
    let ports = [("guest", guest), ("memory", PortKind::Mem(memory.clone()))];
    let switch = switch_of(2, PollMode::default(), ports);
    let mut guest = Guest::boot(connect(&folder));
    let (bytes, offload) = long_segment(2, 1);
    let mut header = [0; VNET_HDR_LEN];
    offload.to_virtio(&mut header);
    write(&guest.memory, PLACES, &[&header[..], &[0; HEADER_LEN - VNET_HDR_LEN], &bytes].concat());
    guest.transmit.descriptor(0, PLACES, HEADER_LEN + bytes.len(), 0, 0);
    guest.transmit.offer(0);
    guest.kick.write(1).expect("rung");
    let received = memory.receive(LONG).expect("in time");
    assert_eq!(
        (received.bytes.len(), received.offload.gso, received.offload.gso_size),
        (bytes.len(), Gso::Tcp4, 1448)
    );
    assert!(received.bytes[34..] == bytes[34..]);

    let (bytes, offload) = long_segment(1, 2);
    assert!(memory.send(MemFrame { bytes: bytes.clone(), offload }));
    let mut heard = Vec::new();
    eventually("a frame to the guest", || {
        for (head, written) in guest.receive.take_used() {
            heard.extend(read(&guest.memory, BUFFERS + u64::from(head) * 2048, written as usize));
        }
        !heard.is_empty()
    });
    let [told, bytes_heard] = [&heard[..VNET_HDR_LEN], &heard[HEADER_LEN..]];
    assert_eq!(
        Offload::from_virtio(told.first_chunk().expect("a header"), bytes.len()).expect("good").gso,
        Gso::Tcp4
    );
    assert!(bytes_heard.len() == bytes.len() && bytes_heard[34..] == bytes[34..]);
    // Each is counted once, by the wire frames it stands for.
    let counters = || switch.port("guest").expect("there").counters;
    eventually("counted", || counters().tx_frames == 1);
    let counters = counters();
    assert_eq!((counters.rx_frames, counters.rx_segments, counters.tx_segments), (1, 3, 3), "{counters:?}");
    assert!(counters.drops.is_empty(), "{counters:?}");
}

/// Page faults of a mapping, which wait until this is dropped: what the kernel does to whoever touches a file of which a part is being
/// taken away, for as long as the test likes.
struct Faults(OwnedFd);

impl Faults {
    /// Of the switch's mapping of a file; that of the guest is another. `None`: this kernel has none.
    fn of(name: &str, guest: &GuestMemory) -> Option<Faults> {
        const USER_MODE_ONLY: libc::c_long = 1;
        const API: u64 = 0xaa;
        const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
        const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
        const MISSING: u64 = 1;
        let flags = libc::c_long::from(libc::O_CLOEXEC | libc::O_NONBLOCK) | USER_MODE_ONLY;
        // SAFETY: it makes a descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the descriptor is new and ours.
        let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) };
        let guests = guest.slice(guest.guest(0, 1).expect("memory")).expect("memory").ptr_guard().as_ptr();
        let maps = std::fs::read_to_string("/proc/self/maps").expect("mappings");
        let mut places = maps.lines().filter(|line| line.contains(name)).map(|line| {
            let (start, end) = line.split_once(' ').expect("a range").0.split_once('-').expect("a range");
            [start, end].map(|text| u64::from_str_radix(text, 16).expect("an address"))
        });
        let others = |&[start, _]: &[u64; 2]| start != guests.addr() as u64;
        let [start, end] = places.find(others).expect("the switch has mapped it");
        let mut api = [API, 0, 0];
        let mut register = [start, end - start, MISSING, 0];
        // SAFETY: both structures are live, and of the size that the request names.
        let done = unsafe {
            (
                libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()),
                libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()),
            )
        };
        assert_eq!(done, (0, 0), "{}", std::io::Error::last_os_error());
        Some(Faults(fd))
    }

    /// Waits until some thread waits.
    fn wait(&self) {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::try_from(LONG).expect("in range")).expect("polled");
        assert_eq!(ready, 1, "nobody touches the guest's memory");
    }
}

/// A switch of one worker with a guest on one bridge, and two ports in memory on another.
struct Lab {
    switch: Switch,
    /// Beside the guest.
    beside: MemPort,
    /// On the other bridge.
    others: [MemPort; 2],
    guest: Guest,
    /// Of the memory file.
    name: String,
}

impl Lab {
    fn new(folder: &Folder, own_thread: bool, len: u64) -> Lab {
        let switch = Switch::start(&Options { workers: Some(1), ..Options::default() }).expect("a switch");
        let memory = || MemPort::new(Capabilities::default(), 1500).expect("a port");
        let (beside, others) = (memory(), [memory(), memory()]);
        let spec = VhostUserSpec { own_thread, ..VhostUserSpec::new(folder.socket(), SocketRole::Server) };
        let guest = PortKind::VhostUser(VhostUserSpec { queues: Some(PAIRS), ..spec });
        for name in ["br0", "br1"] {
            switch.add_bridge(BridgeSpec::new(name)).expect("a bridge");
        }
        for (name, bridge, kind) in [
            ("guest", "br0", guest),
            ("beside", "br0", PortKind::Mem(beside.clone())),
            ("one", "br1", PortKind::Mem(others[0].clone())),
            ("two", "br1", PortKind::Mem(others[1].clone())),
        ] {
            let (name, bridge) = (name.to_owned(), bridge.to_owned());
            let port = PortSpec { name, bridge, kind, settings: PortSettings::default() };
            switch.add_port(port, Missing::Refuse).expect("a port");
        }
        let name = format!("vswitch-{}", folder.0.file_name().expect("a name").display());
        let file = File::from(memfd_create(&*name, MFdFlags::MFD_CLOEXEC).expect("a file"));
        file.set_len(len).expect("that long");
        Lab { switch, beside, others, guest: Guest::boot_in(connect(folder), file), name }
    }

    /// Whether a frame goes through the other bridge in this time.
    fn others_talk(&self, n: u32, time: Duration) -> bool {
        let [one, two] = &self.others;
        assert!(one.send(MemFrame { bytes: frame(4, 3, n), ..MemFrame::default() }));
        two.receive(time).is_some_and(|frame| number(&frame.bytes) == n)
    }
}

/// Which way a frame goes when its page cannot be had.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Way {
    ToGuest,
    FromGuest,
}

/// Whether other bridges go on while the guest's port is held up.
fn others_go_on(own_thread: bool, way: Way) -> Option<bool> {
    let folder = Folder::new();
    let mut lab = Lab::new(&folder, own_thread, LEN);
    let faults = Faults::of(&lab.name, &lab.guest.memory)?;
    assert!(lab.others_talk(0, LONG));
    match way {
        Way::ToGuest => {
            assert!(lab.beside.send(MemFrame { bytes: frame(1, 2, 7), ..MemFrame::default() }));
        }
        Way::FromGuest => {
            // A frame of zeros.
            lab.guest.transmit.descriptor(0, PLACES, HEADER_LEN + 60, 0, 0);
            lab.guest.transmit.offer(0);
            lab.guest.kick.write(1).expect("rung");
        }
    }
    faults.wait();
    let go_on = lab.others_talk(1, if own_thread { LONG } else { Duration::from_millis(300) });
    if go_on {
        // What is meant for it waits, or is dropped when that is too much; and changes go on.
        for n in 0..10_000 {
            while !lab.beside.send(MemFrame { bytes: frame(1, 2, n), ..MemFrame::default() }) {
                std::thread::yield_now();
            }
        }
        assert!(lab.others_talk(2, LONG));
        lab.switch.add_bridge(BridgeSpec::new("br2")).expect("added meanwhile");
    }
    drop(faults);
    if way == Way::ToGuest {
        eventually("the frame comes when it can", || !lab.guest.receive.take_used().is_empty());
    } else {
        eventually("the frame comes when it can", || lab.guest.transmit.used_index() == 1);
    }
    if go_on {
        let drops = || lab.switch.port("guest").expect("there").counters.drops;
        eventually("counted", || drops().contains_key("tx_full"));
    }
    Some(go_on)
}

#[test]
fn a_front_end_that_holds_up_its_thread_holds_up_no_other_bridge() {
    for way in [Way::ToGuest, Way::FromGuest] {
        let (Some(own), Some(shared)) = (others_go_on(true, way), others_go_on(false, way)) else {
            eprintln!("skipped: no userfaultfd");
            return;
        };
        assert!(own, "{way:?}");
        assert!(!shared, "{way:?}: without a thread of its own a worker waits, which is what is tested here");
    }
}

#[test]
fn a_port_that_is_held_up_can_be_deleted() {
    let folder = Folder::new();
    let lab = Lab::new(&folder, true, LEN);
    let Some(faults) = Faults::of(&lab.name, &lab.guest.memory) else {
        eprintln!("skipped: no userfaultfd");
        return;
    };
    assert!(lab.beside.send(MemFrame { bytes: frame(1, 2, 7), ..MemFrame::default() }));
    faults.wait();
    let began = Instant::now();
    lab.switch.del_port("guest").expect("deleted");
    assert!(began.elapsed() < LONG && !folder.socket().exists());
    assert!(lab.others_talk(1, LONG));
    drop(faults);
}

/// The figures of `docs/guests.md`: `cargo test --release -p vswitch --lib holes -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, of gigabytes"]
fn worst_round_trip_beside_holes() {
    use nix::fcntl::{FallocateFlags, fallocate};
    use std::sync::atomic::AtomicBool;

    const FILE_LEN: i64 = 4 << 30;
    for own_thread in [false, true] {
        let folder = Folder::new();
        let mut lab = Lab::new(&folder, own_thread, u64::try_from(FILE_LEN).expect("positive"));
        let whole =
            VhostUserMemoryRegionInfo { memory_size: FILE_LEN as u64, ..Guest::region(&lab.guest.file) };
        lab.guest.front_end.set_mem_table(&[whole]).expect("taken");
        let file = lab.guest.file.try_clone().expect("another handle");
        let (ends, punched) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let puncher = {
            let (ends, punched) = (Arc::clone(&ends), Arc::clone(&punched));
            std::thread::spawn(move || {
                // The rings stay, or they would break.
                let start = 1 << 20;
                while !ends.load(Ordering::Relaxed) {
                    fallocate(&file, FallocateFlags::empty(), start, FILE_LEN - start).expect("allocated");
                    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                    fallocate(&file, hole, start, FILE_LEN - start).expect("punched");
                    punched.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let (mut worst, mut n) = (Duration::ZERO, 0);
        // Receive buffers all over the hole.
        let place = |n: u32| (2 << 20) + u64::from(n % 512) * (4 << 20);
        while punched.load(Ordering::Relaxed) < 4 {
            let slot = lab.guest.receive.index() % SIZE;
            let used = lab.guest.receive.take_used().len();
            for _ in 0..used {
                lab.guest.receive.descriptor(slot, place(n), 2048, WRITE, 0);
                lab.guest.receive.offer(slot);
            }
            let _ = lab.beside.send(MemFrame { bytes: frame(1, 2, n), ..MemFrame::default() });
            let began = Instant::now();
            assert!(lab.others_talk(n, LONG));
            worst = worst.max(began.elapsed());
            n += 1;
        }
        ends.store(true, Ordering::Relaxed);
        puncher.join().expect("ended");
        eprintln!("own thread {own_thread}: worst round trip {worst:?} of {n}");
    }
}
