//! Sending frames that a packet socket refuses as too long.
//!
//! `sendmsg` on a packet socket takes at most the MTU and an Ethernet header, and four bytes more behind an 802.1Q tag. Linux's
//! bridge forwards MTU + 18, the outermost tag of either kind not counted. A *transmit ring* with a `virtio_net_hdr` has
//! no such check (`tpacket_snd`): what is long goes that way. Everything else does not, because such a ring is slower.
//!
//! A veth has the bridge's limit at its other end, and counts a tag that is in the frame; one that is beside it is not
//! counted. A packet socket cannot put it there, a program at the interface's tcx egress can: it moves the tag of frames that
//! have this socket's mark, and lets all others pass (five instructions).
//!
//! Both are made when the first such frame leaves, by a thread of their own ([`LongWay`]): most ports never need them, and each
//! costs the kernel a grace period, some 10 ms that a worker must not wait. Frames that come meanwhile wait in a short queue.
//! There is one ring a port, behind a lock, as such frames are few.

// The kernel's constants and the sizes of its structures all fit the narrow types its interface has for them.
#![allow(clippy::cast_possible_truncation)]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::assembler::{PROTOCOL, network, op};
use super::bpf::{self, Instruction};
use super::netns::run_in;
use super::packet::set;
use crate::frame::Outgoing;

/// Bytes of a ring, in one block.
const RING_BYTES: usize = 256 << 10;
/// Where a frame begins in its slot: behind its `tpacket2_hdr`.
const FRAME_AT: usize = 32;
/// Frames of the ring have it until they are behind the program: "vswl".
const MARK: u32 = 0x7673_776c;
/// Verdict of tcx: the next program, or the qdisc.
const TCX_NEXT: i32 = -1;

/// Offset of `mark` in `struct __sk_buff`.
const SKB_MARK: i16 = 8;
const VLAN_PUSH: i32 = 18;
const VLAN_POP: i32 = 19;

/// Opcodes that only this program has: a word of the context = r1, and a helper's call.
const STORE_WORD: u8 = 0x63;
const CALL: u8 = 0x85;

/// Puts the tag of long frames beside them.
#[rustfmt::skip]
static MOVE_TAG: [Instruction; 18] = [
    /*  0 */ op(op::MOV, 6, 1, 0, 0),
    /*  1 */ op(op::LOAD_CONTEXT, 0, 6, SKB_MARK, 0),
    /*  2 */ op(op::JUMP_NE, 0, 0, 13, MARK.cast_signed()),
    /*  3 */ op(op::MOV_IMM, 1, 0, 0, 0),
    /*  4 */ op(STORE_WORD, 6, 1, SKB_MARK, 0),
    /*  5 */ op(op::LOAD_CONTEXT, 7, 6, PROTOCOL, 0),
    /*  6 */ op(op::JUMP_EQ, 7, 0, 1, network(0x8100)),
    /*  7 */ op(op::JUMP_NE, 7, 0, 8, network(0x88a8)),
    /*  8 */ op(op::FRAME_HALF, 0, 0, 0, 14),
    /*  9 */ op(op::MOV, 8, 0, 0, 0),
    /* 10 */ op(op::MOV, 1, 6, 0, 0),
    /* 11 */ op(CALL, 0, 0, 0, VLAN_POP),
    /* 12 */ op(op::MOV, 1, 6, 0, 0),
    /* 13 */ op(op::MOV, 2, 7, 0, 0),
    /* 14 */ op(op::MOV, 3, 8, 0, 0),
    /* 15 */ op(CALL, 0, 0, 0, VLAN_PUSH),
    /* 16 */ op(op::MOV_IMM, 0, 0, 0, TCX_NEXT),
    /* 17 */ op(op::EXIT, 0, 0, 0, 0),
];

/// Frames that wait until the ring is there, at most.
const WAITING_MAX: usize = 64;

/// The way out of a port for long frames, shared by its workers.
#[derive(Debug)]
pub struct LongWay {
    ifindex: u32,
    ns: Option<OwnedFd>,
    state: Mutex<State>,
    /// Frames that waited, and could not be sent then.
    lost: AtomicU64,
}

/// Until what may have been a passing want of descriptors, memory or threads is tried again.
const REST: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum State {
    /// Nobody has needed it.
    Unused,
    /// A thread makes it. Frames that wait for that, with their offload headers; and what was there
    /// before, with slots that are too short.
    Opening(Vec<Vec<u8>>, Option<LongSender>),
    Open(LongSender),
    /// The kernel refused, for what may pass until then.
    Resting(Instant),
    /// The kernel does not allow it.
    Failed,
}

impl LongWay {
    /// Of an interface in namespace `ns` (`None`: the switch's own). Nothing is made yet.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(ifindex: u32, ns: Option<BorrowedFd<'_>>) -> io::Result<LongWay> {
        let ns = ns.map(|ns| ns.try_clone_to_owned()).transpose()?;
        Ok(LongWay { ifindex, ns, state: Mutex::new(State::Unused), lost: AtomicU64::new(0) })
    }

    /// Sends a frame that a packet socket refused as too long, or has it wait until that is possible.
    ///
    /// # Errors
    /// EMSGSIZE when the kernel does not allow it; EAGAIN when no more can wait or no thread can be
    /// had; or what the kernel said.
    #[cold]
    pub fn send(self: &Arc<LongWay>, frame: &Outgoing<'_>) -> io::Result<()> {
        let again = || Err(io::Error::from_raw_os_error(libc::EAGAIN));
        let len = frame.slices().iter().map(|slice| slice.len()).sum();
        let mut state = self.state();
        match &mut *state {
            State::Open(sender) if sender.takes(len) => return sender.send(&frame.slices()),
            State::Opening(waiting, _) if waiting.len() < WAITING_MAX => {
                waiting.push(frame.slices().concat());
                return Ok(());
            }
            State::Opening(..) => return again(),
            State::Resting(until) if Instant::now() < *until => return again(),
            State::Failed => return Err(io::Error::from_raw_os_error(libc::EMSGSIZE)),
            // The first; or the MTU was raised since.
            State::Unused | State::Resting(_) | State::Open(_) => {}
        }
        let way = Arc::clone(self);
        // Where no thread can be had, the next such frame tries again.
        super::thread::spawn("long-frames", move || way.open(len))?;
        let before = std::mem::replace(&mut *state, State::Unused);
        let before = if let State::Open(sender) = before { Some(sender) } else { None };
        *state = State::Opening(vec![frame.slices().concat()], before);
        Ok(())
    }

    /// Frames that waited and were lost since the last call.
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes it for frames of so many bytes, and sends what waits.
    fn open(&self, len: usize) {
        let ns = self.ns.as_ref().map(AsFd::as_fd);
        let opened = run_in(ns, || LongSender::open(self.ifindex, len)).and_then(|opened| opened);
        let mut state = self.state();
        let State::Opening(waiting, before) = std::mem::replace(&mut *state, State::Failed) else { return };
        let mut lost = 0;
        *state = match opened {
            Ok(mut sender) => {
                lost = waiting.iter().filter(|frame| sender.send(&[frame]).is_err()).count();
                State::Open(sender)
            }
            Err(error) => {
                lost += waiting.len();
                tracing::warn!(
                    "interface {}: frames longer than a packet socket takes are dropped: {error}",
                    self.ifindex
                );
                if is_final(&error) { State::Failed } else { State::Resting(Instant::now() + REST) }
            }
        };
        drop(state);
        self.lost.fetch_add(lost as u64, Ordering::Relaxed);
        // Closing it takes the kernel a grace period.
        drop(before);
    }
}

/// Whether it will be refused again, whenever it is tried.
fn is_final(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV)
    )
}

/// The way out of an interface for long frames. Closing it takes the program away.
#[derive(Debug)]
struct LongSender {
    fd: OwnedFd,
    to: libc::sockaddr_ll,
    memory: NonNull<u8>,
    slot_bytes: usize,
    head: usize,
    _program: OwnedFd,
}

// SAFETY: the mapping is owned by the sender and not tied to the thread that made it.
unsafe impl Send for LongSender {}

impl LongSender {
    /// Of an interface of the calling thread's namespace, for frames of `len` bytes with their
    /// offload header, and longer ones where there is room.
    ///
    /// # Errors
    /// What the kernel refused: EPERM without CAP_BPF or CAP_NET_ADMIN, EINVAL before Linux 6.6 (no tcx).
    fn open(ifindex: u32, len: usize) -> io::Result<LongSender> {
        let program = bpf::attach_egress(*b"vswitch_tag\0\0\0\0\0", &MOVE_TAG, ifindex)?;
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), Some(Protocol::from(0)))?;
        let fd = OwnedFd::from(socket);
        set(&fd, libc::SOL_SOCKET, libc::SO_MARK, &MARK)?;
        set(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1i32)?;
        set(
            &fd,
            libc::SOL_PACKET,
            libc::PACKET_VERSION,
            &(libc::tpacket_versions::TPACKET_V2 as libc::c_int),
        )?;
        // Of sixteen slots each takes jumbo frames.
        let slot_bytes = (FRAME_AT + len).next_power_of_two().clamp(16 << 10, RING_BYTES);
        let request = libc::tpacket_req {
            tp_block_size: RING_BYTES as libc::c_uint,
            tp_block_nr: 1,
            tp_frame_size: slot_bytes as libc::c_uint,
            tp_frame_nr: (RING_BYTES / slot_bytes) as libc::c_uint,
        };
        set(&fd, libc::SOL_PACKET, libc::PACKET_TX_RING, &request)?;
        // SAFETY: a new shared mapping of the ring just made, of exactly its size.
        let memory = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), RING_BYTES, access, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: sockaddr_ll is plain data for which zeros are valid.
        let mut to: libc::sockaddr_ll = unsafe { mem::zeroed() };
        to.sll_family = libc::AF_PACKET as libc::sa_family_t;
        to.sll_ifindex = ifindex.cast_signed();
        Ok(LongSender { fd, to, memory, slot_bytes, head: 0, _program: program })
    }

    /// Whether a frame of `len` bytes with its offload header fits a slot.
    fn takes(&self, len: usize) -> bool {
        FRAME_AT + len <= self.slot_bytes
    }

    /// A word of the slot at the head: 0 its status, 1 its length.
    fn word(&self, index: usize) -> &AtomicU32 {
        // SAFETY: head is below the number of slots, so both words are inside the mapping, and aligned; the kernel and we
        // touch the status only atomically, and the length only while the slot is ours.
        unsafe {
            AtomicU32::from_ptr(self.memory.as_ptr().add(self.head * self.slot_bytes + 4 * index).cast())
        }
    }

    /// Sends one frame with its offload header, which these slices are together.
    ///
    /// # Errors
    /// EAGAIN when all slots are still with the device, EMSGSIZE when it does not fit a slot, or what the kernel refused.
    fn send(&mut self, frame: &[&[u8]]) -> io::Result<()> {
        let len = frame.iter().map(|slice| slice.len()).sum();
        if !self.takes(len) {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        if self.word(0).load(Ordering::Acquire) != libc::TP_STATUS_AVAILABLE {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        let start = self.head * self.slot_bytes + FRAME_AT;
        // SAFETY: inside the mapping, as was checked, in a slot that is ours until its status says otherwise.
        let mut room = unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr().add(start), len) };
        for slice in frame {
            let (here, rest) = room.split_at_mut(slice.len());
            here.copy_from_slice(slice);
            room = rest;
        }
        self.word(1).store(len as u32, Ordering::Relaxed);
        self.word(0).store(libc::TP_STATUS_SEND_REQUEST, Ordering::Release);
        // SAFETY: the address is a live sockaddr_ll of that length; frames are read from the ring alone.
        let sent = unsafe {
            let to = (&raw const self.to).cast();
            let to_len = mem::size_of_val(&self.to) as libc::socklen_t;
            libc::sendto(self.fd.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, to, to_len)
        };
        if sent < 0 {
            let error = io::Error::last_os_error();
            // The kernel stays at a slot whose frame it could not send.
            self.word(0).store(libc::TP_STATUS_AVAILABLE, Ordering::Release);
            return Err(error);
        }
        self.head = (self.head + 1) % (RING_BYTES / self.slot_bytes);
        Ok(())
    }
}

impl Drop for LongSender {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody refers to it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), RING_BYTES) };
    }
}
