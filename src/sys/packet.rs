//! AF_PACKET sockets (`packet(7)`, `Documentation/networking/packet_mmap.rst`).
//!
//! Receiving is by a TPACKET_V2 ring of slots that hold an ordinary frame. A GSO frame does not fit: the kernel then marks
//! the slot `TP_STATUS_COPY` and queues the whole frame on the socket (`PACKET_COPY_THRESH`), in the same order. So
//! small frames cost no system call each, and large ones one. One of more than 64 KiB (BIG TCP) is looked at first, so that its
//! payload is received in the pieces that it is cut into. Transmitting is by sendmmsg.
//!
//! Rejected: TPACKET_V3 wakes once a block or once a timer tick, 1 ms of round trip; the transmit ring copies on veth,
//! so it gains nothing over sendmmsg.
//!
//! The outermost VLAN tag of a received frame is not in its bytes but beside them; [`Received::Frame`] has it. An
//! `AF_PACKET` socket pins its namespace for as long as it is open.

// The kernel's constants and the sizes of its structures all fit the narrow types its interface has for them.
#![allow(clippy::cast_possible_truncation)]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::batch::BATCH_FRAMES;
use crate::frame::{Outgoing, TAG_LEN};
use crate::offload::VNET_HDR_LEN;

/// Bytes of a slot: the ring's own header, our offload header, and a frame of 1,518 bytes with two tags.
const SLOT_BYTES: usize = 2048;
/// Slots a ring: 768 KiB, which stays within a core's L2 cache and leaves room for 32 ports of two queues in 64 MiB. All that a
/// TCP connection has on its way at the usual receive window, 540 KiB in 375 frames, has room while the worker waits for a CPU.
const SLOTS: usize = 384;
/// Sockets that share an interface's flows at most: the kernel's default for a fanout group.
pub const RECEIVERS_MAX: usize = 256;
/// Bytes of socket queue: GSO frames waiting to be read (the default holds three), and frames being sent.
const SOCKET_BUFFER_BYTES: libc::c_int = 4 << 20;

// linux/if_packet.h; not all in libc.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const PACKET_FANOUT_DATA: libc::c_int = 22;
const PACKET_FANOUT_EBPF: libc::c_int = 7;
const PACKET_FANOUT_FLAG_UNIQUEID: libc::c_int = 0x2000;
const PACKET_FANOUT_FLAG_IGNORE_OUTGOING: libc::c_int = 0x4000;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;

/// One socket on one interface: a way in, a way out, or both.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    ring: Ring,
    scratch: Scratch,
}

/// Opens one socket a queue on the interface, in the calling thread's namespace, and says how many of them receive:
/// each its share of the flows, together every frame once, none that the host sent.
///
/// # Errors
/// The operation that the kernel refused. Before Linux 6.13 it lets nobody join a group on an interface that is down:
/// EINVAL.
pub fn open(ifindex: u32, queues: usize) -> io::Result<(Vec<PacketSocket>, usize)> {
    let mut sockets = (0..queues).map(|_| PacketSocket::open()).collect::<io::Result<Vec<_>>>()?;
    // Without the right to load it, one socket receives for all. The kernel's own hash is no substitute: it may part the datagrams
    // of one GSO send.
    let steering = super::steering::by_flow().ok();
    let receiving = if steering.is_some() { queues.min(RECEIVERS_MAX) } else { 1 };
    let mut group = 0;
    let (receivers, senders) = sockets.split_at(receiving);
    senders.iter().try_for_each(|socket| socket.bind(ifindex, 0))?;
    for (index, socket) in receivers.iter().enumerate() {
        // Until all have joined the group, a socket would receive other queues' share as well.
        attach_reject_all(&socket.fd)?;
        socket.bind(ifindex, libc::ETH_P_ALL as u16)?;
        be_promiscuous(&socket.fd, ifindex)?;
        if receiving > 1 {
            group = socket.join_fanout(group, index == 0)?;
        } else {
            set(&socket.fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1i32)?;
        }
    }
    if let (true, Some(program), Some(first)) = (receiving > 1, &steering, sockets.first()) {
        set(&first.fd, libc::SOL_PACKET, PACKET_FANOUT_DATA, &program.as_raw_fd())?;
    }
    let filter = super::filter::by_what_a_header_can_say();
    for socket in receivers {
        match &filter {
            // In place of the one that rejects everything.
            Ok(filter) => set(&socket.fd, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, &filter.as_raw_fd())?,
            Err(_) => set(&socket.fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0i32)?,
        }
    }
    if receiving < queues {
        // Not all of a machine's ports at the same worker.
        sockets.rotate_right(ifindex as usize % queues);
    }
    Ok((sockets, receiving))
}

/// Has an interface of the calling thread's namespace take every frame, for as long as what is returned is open. It receives nothing itself.
///
/// # Errors
/// What the kernel refused.
pub fn promiscuous(ifindex: u32) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::PACKET, Type::RAW.cloexec(), Some(Protocol::from(0)))?;
    let fd = OwnedFd::from(socket);
    be_promiscuous(&fd, ifindex)?;
    Ok(fd)
}

fn be_promiscuous(fd: &OwnedFd, ifindex: u32) -> io::Result<()> {
    // SAFETY: packet_mreq is plain data for which zeros are valid.
    let mut membership: libc::packet_mreq = unsafe { mem::zeroed() };
    membership.mr_ifindex = libc::c_int::try_from(ifindex).map_err(io::Error::other)?;
    membership.mr_type = libc::PACKET_MR_PROMISC as libc::c_ushort;
    set(fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)
}

/// Has a socket receive nothing.
pub(super) fn attach_reject_all(fd: &OwnedFd) -> io::Result<()> {
    let mut reject = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut reject };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// What came out of the ring.
#[derive(Debug)]
pub enum Received {
    /// Nothing waits.
    Empty,
    /// A frame: its offload header and bytes are in the caller's buffer, `len` counts the latter.
    Frame {
        /// Length in bytes, without FCS and without the tag below.
        len: usize,
        /// The VLAN tag that the kernel took out.
        tag: Option<[u8; TAG_LEN]>,
    },
    /// A frame of more bytes than the caller's buffer, which still waits: [`PacketSocket::peek`], then
    /// [`PacketSocket::receive_scattered`].
    Longer,
    /// A frame that was cut short; it is gone.
    Truncated,
}

/// The beginning of a frame that still waits.
#[derive(Debug)]
pub struct Peeked {
    /// Length in bytes, without FCS and without the tag below.
    pub len: usize,
    /// The VLAN tag that the kernel took out.
    pub tag: Option<[u8; TAG_LEN]>,
}

impl PacketSocket {
    fn open() -> io::Result<PacketSocket> {
        // Protocol 0: nothing is received before bind() says from where.
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), Some(Protocol::from(0)))?;
        let fd = OwnedFd::from(socket);
        set(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1i32)?;
        set(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1i32)?;
        set(&fd, libc::SOL_PACKET, libc::PACKET_COPY_THRESH, &1i32)?;
        // Not PACKET_QDISC_BYPASS: on that way the kernel drops what the device cannot segment itself.
        for (forced, plain) in
            [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
        {
            if set(&fd, libc::SOL_SOCKET, forced, &SOCKET_BUFFER_BYTES).is_err() {
                set(&fd, libc::SOL_SOCKET, plain, &SOCKET_BUFFER_BYTES)?;
            }
        }
        let ring = Ring::new(&fd)?;
        Ok(PacketSocket { fd, ring, scratch: Scratch::new() })
    }

    /// Protocol 0 is for sending only.
    fn bind(&self, ifindex: u32, protocol: u16) -> io::Result<()> {
        let index = libc::c_int::try_from(ifindex).map_err(io::Error::other)?;
        // SAFETY: sockaddr_ll is shorter than sockaddr_storage, and all of it that matters is written.
        let ((), address) = unsafe {
            SockAddr::try_init(|storage, len| {
                let link = storage.cast::<libc::sockaddr_ll>();
                (*link).sll_family = libc::AF_PACKET as libc::sa_family_t;
                (*link).sll_protocol = protocol.to_be();
                (*link).sll_ifindex = index;
                *len = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
                Ok(())
            })
        }?;
        socket2::SockRef::from(&self.fd).bind(&address)
    }

    /// Joins the group, or founds one with an id that the kernel picks; returns the id.
    fn join_fanout(&self, group: u16, found: bool) -> io::Result<u16> {
        let mut kind = PACKET_FANOUT_EBPF | PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
        if found {
            kind |= PACKET_FANOUT_FLAG_UNIQUEID;
        }
        set(&self.fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &(libc::c_int::from(group) | kind << 16))?;
        let mut joined: libc::c_int = 0;
        get(&self.fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &mut joined)?;
        Ok((joined & 0xffff) as u16)
    }

    /// Reads the next frame into `buffer`: [`VNET_HDR_LEN`] bytes of offload header, then the frame.
    ///
    /// # Errors
    /// `ENETDOWN` when the interface went down, `ENODEV`/`ENXIO` when it is gone.
    #[inline]
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let ring = &mut self.ring;
        let Some(slot) = ring.filled() else { return Ok(Received::Empty) };
        if slot.status & libc::TP_STATUS_COPY != 0 {
            if slot.frame_len() > buffer.len() - VNET_HDR_LEN {
                return Ok(Received::Longer);
            }
            ring.release();
            return self.receive_queued(buffer);
        }
        let received = slot.copy_to(buffer);
        ring.release();
        Ok(received)
    }

    /// The frame that did not fit its slot.
    fn receive_queued(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let Some((n, tag)) = self.receive_message(&mut [io::IoSliceMut::new(buffer)], 0)? else {
            return Ok(Received::Truncated);
        };
        if n > buffer.len() || n < VNET_HDR_LEN {
            return Ok(Received::Truncated);
        }
        Ok(Received::Frame { len: n - VNET_HDR_LEN, tag })
    }

    /// Copies the offload header and the beginning of the frame that [waits](Received::Longer), as far as there is room. `None`
    /// when it was cut short by the kernel; it is gone then.
    ///
    /// # Errors
    /// As of [`PacketSocket::receive`].
    pub fn peek(&mut self, head: &mut [u8]) -> io::Result<Option<Peeked>> {
        let peeked = self.receive_message(&mut [io::IoSliceMut::new(head)], libc::MSG_PEEK);
        match peeked {
            Ok(Some((n, tag))) if n >= VNET_HDR_LEN => Ok(Some(Peeked { len: n - VNET_HDR_LEN, tag })),
            Ok(_) => {
                self.ring.release();
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Reads the frame that waits, with its offload header, into these slices, one behind the other, and returns how many bytes it
    /// has. What does not fit is lost.
    ///
    /// # Errors
    /// As of [`PacketSocket::receive`].
    pub fn receive_scattered(&mut self, slices: &mut [io::IoSliceMut<'_>]) -> io::Result<usize> {
        self.ring.release();
        Ok(self.receive_message(slices, 0)?.map_or(0, |(n, _)| n))
    }

    /// A frame of the socket's queue: its length with its offload header, whether it fitted or not, and the tag beside it. `None` when
    /// there is none.
    fn receive_message(
        &self,
        slices: &mut [io::IoSliceMut<'_>],
        flags: libc::c_int,
    ) -> io::Result<Option<(usize, Option<[u8; TAG_LEN]>)>> {
        #[repr(align(8))]
        struct Control([u8; 64]);
        let mut control = Control([0; 64]);
        // SAFETY: msghdr is plain data for which zeros are valid.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        // An IoSliceMut is laid out as an iovec.
        message.msg_iov = slices.as_mut_ptr().cast();
        message.msg_iovlen = slices.len();
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len();
        let flags = flags | libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        let mut receive = || {
            // SAFETY: every pointer in `message` is to a live, exclusively borrowed buffer of the stated length.
            unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, flags) }
        };
        let mut n = receive();
        if n < 0 && io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock {
            // The interface was down in between: that error is reported once, in place of the frame, which still waits
            // and must not be taken for the one of the next slot.
            n = receive();
        }
        if n < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
        }
        let mut tag = None;
        // SAFETY: the kernel wrote well-formed control messages within msg_controllen.
        let mut control = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        while !control.is_null() {
            // SAFETY: not null, so a cmsghdr within our control buffer, with the payload its type says.
            unsafe {
                if (*control).cmsg_level == libc::SOL_PACKET && (*control).cmsg_type == libc::PACKET_AUXDATA {
                    let aux: libc::tpacket_auxdata =
                        libc::CMSG_DATA(control).cast::<libc::tpacket_auxdata>().read_unaligned();
                    tag = vlan_tag(aux.tp_status, aux.tp_vlan_tci, aux.tp_vlan_tpid);
                }
                control = libc::CMSG_NXTHDR(&raw const message, control);
            }
        }
        Ok(Some((n.cast_unsigned(), tag)))
    }

    /// Frames that the kernel dropped for want of room since the last call.
    #[must_use]
    pub fn take_kernel_drops(&self) -> u64 {
        let mut stats = [0u32; 2];
        // tpacket_stats: packets, drops; reading clears both.
        get(&self.fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut stats)
            .map_or(0, |()| u64::from(stats[1]))
    }

    /// Sends the frames in order and tells for each, by index, whether the kernel took it.
    #[inline]
    pub fn send(&mut self, frames: &[Outgoing<'_>], mut outcome: impl FnMut(usize, io::Result<()>)) {
        let mut sent = 0;
        let mut last_refused = None;
        for chunk in frames.chunks(BATCH_FRAMES) {
            self.scratch.point_at(chunk);
            let end = sent + chunk.len();
            let first = sent;
            while sent < end {
                let messages = &mut self.scratch.messages[sent - first..end - first];
                // SAFETY: `point_at` made each message refer to the slices of `chunk`, which outlive this call.
                let n = unsafe {
                    libc::sendmmsg(
                        self.fd.as_raw_fd(),
                        messages.as_mut_ptr(),
                        messages.len() as libc::c_uint,
                        libc::MSG_DONTWAIT,
                    )
                };
                if n > 0 {
                    (sent..sent + n.unsigned_abs() as usize).for_each(|index| outcome(index, Ok(())));
                    sent += n.unsigned_abs() as usize;
                } else {
                    // The kernel stops at the first frame it refuses and says why when that one is first. That the interface
                    // was down since the last call it says instead of sending, once.
                    let error = io::Error::last_os_error();
                    let stale = error.raw_os_error() == Some(libc::ENETDOWN) && last_refused != Some(sent);
                    last_refused = Some(sent);
                    if !stale {
                        outcome(sent, Err(error));
                        sent += 1;
                    }
                }
            }
        }
    }
}

/// What sendmmsg(2) reads: kept between calls so that nothing is allocated or cleared per batch.
struct Scratch {
    messages: Box<[libc::mmsghdr; BATCH_FRAMES]>,
    vectors: Box<[[libc::iovec; 4]; BATCH_FRAMES]>,
}

// SAFETY: the pointers inside are written and read within one call of `PacketSocket::send`, on one thread.
unsafe impl Send for Scratch {}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scratch")
    }
}

impl Scratch {
    fn new() -> Scratch {
        // SAFETY: both are plain data for which zeros are valid.
        unsafe { Scratch { messages: Box::new(mem::zeroed()), vectors: Box::new(mem::zeroed()) } }
    }

    #[inline]
    fn point_at(&mut self, frames: &[Outgoing<'_>]) {
        let slots = self.messages.iter_mut().zip(self.vectors.iter_mut());
        for (frame, (message, vectors)) in frames.iter().zip(slots) {
            let used = match frame {
                Outgoing::Lent { .. } => unreachable!("a packet socket takes none that are lent"),
                Outgoing::Whole { bytes, .. } => {
                    vectors[0] = vector(bytes);
                    1
                }
                Outgoing::Segment { head, payload } => {
                    (vectors[0], vectors[1]) = (vector(head), vector(payload));
                    2
                }
                Outgoing::Pieces { header, addresses, tag, rest, .. } => {
                    vectors[0] = vector(header);
                    vectors[1] = vector(addresses);
                    vectors[2] = vector(tag.as_ref().map_or(&[], |tag| tag));
                    vectors[3] = vector(rest);
                    4
                }
            };
            message.msg_hdr.msg_iov = vectors.as_mut_ptr();
            message.msg_hdr.msg_iovlen = used;
        }
    }
}

/// For sending only: the kernel does not write through it.
#[inline]
fn vector(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The memory shared with the kernel.
#[derive(Debug)]
struct Ring {
    memory: NonNull<u8>,
    head: usize,
}

// SAFETY: the mapping is owned by the ring and not tied to the thread that made it.
unsafe impl Send for Ring {}

/// A slot that the kernel has filled and handed to us.
struct Slot {
    memory: *const u8,
    status: u32,
}

impl Ring {
    const BYTES: usize = SLOT_BYTES * SLOTS;

    fn new(fd: &OwnedFd) -> io::Result<Ring> {
        set(
            fd,
            libc::SOL_PACKET,
            libc::PACKET_VERSION,
            &(libc::tpacket_versions::TPACKET_V2 as libc::c_int),
        )?;
        // Blocks of 64 KiB: few enough pages in a row that a fragmented machine still has them.
        let request = libc::tpacket_req {
            tp_block_size: 64 << 10,
            tp_block_nr: (Self::BYTES >> 16) as libc::c_uint,
            tp_frame_size: SLOT_BYTES as libc::c_uint,
            tp_frame_nr: SLOTS as libc::c_uint,
        };
        set(fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        // SAFETY: a new shared mapping of the ring just made, of exactly its size.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(memory.cast())
            .map(|memory| Ring { memory, head: 0 })
            .ok_or_else(io::Error::last_os_error)
    }

    fn status(&self) -> &AtomicU32 {
        // SAFETY: head < SLOTS, so the slot is inside the mapping; tp_status is its first, aligned u32, which kernel and we
        // only touch atomically.
        unsafe { AtomicU32::from_ptr(self.memory.as_ptr().add(self.head * SLOT_BYTES).cast()) }
    }

    #[inline]
    fn filled(&self) -> Option<Slot> {
        let status = self.status().load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: as in `status`.
        Some(Slot { memory: unsafe { self.memory.as_ptr().add(self.head * SLOT_BYTES) }, status })
    }

    /// Gives the slot at the head back to the kernel.
    #[inline]
    fn release(&mut self) {
        self.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.head = (self.head + 1) % SLOTS;
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody refers to it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), Self::BYTES) };
    }
}

impl Slot {
    /// Length of the frame, all of it, in bytes.
    #[inline]
    fn frame_len(&self) -> usize {
        // SAFETY: as in `copy_to`.
        unsafe { (&raw const (*self.memory.cast::<libc::tpacket2_hdr>()).tp_len).read() as usize }
    }

    fn copy_to(&self, buffer: &mut [u8]) -> Received {
        // SAFETY: the acquire load of TP_STATUS_USER ordered the kernel's writes before this read of its header.
        let header = unsafe { self.memory.cast::<libc::tpacket2_hdr>().read() };
        let (at, len) = (usize::from(header.tp_mac), header.tp_snaplen as usize);
        if header.tp_len > header.tp_snaplen
            || at < VNET_HDR_LEN
            || at + len > SLOT_BYTES
            || VNET_HDR_LEN + len > buffer.len()
        {
            return Received::Truncated;
        }
        // SAFETY: checked to lie within this slot, which is ours until released.
        let slot =
            unsafe { std::slice::from_raw_parts(self.memory.add(at - VNET_HDR_LEN), VNET_HDR_LEN + len) };
        buffer[..slot.len()].copy_from_slice(slot);
        Received::Frame { len, tag: vlan_tag(self.status, header.tp_vlan_tci, header.tp_vlan_tpid) }
    }
}

#[inline]
fn vlan_tag(status: u32, tci: u16, tpid: u16) -> Option<[u8; TAG_LEN]> {
    if status & TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let tpid = if status & TP_STATUS_VLAN_TPID_VALID != 0 { tpid } else { crate::bridge::vlan::TPID_8021Q };
    let ([a, b], [c, d]) = (tpid.to_be_bytes(), tci.to_be_bytes());
    Some([a, b, c, d])
}

pub(super) fn set<T>(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and length are those of a live value; each caller passes the type the option wants.
    let status = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            mem::size_of::<T>() as libc::socklen_t,
        )
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(super) fn get<T>(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &mut T) -> io::Result<()> {
    let mut len = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer and length are those of a live value of plain integers.
    let status = unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, option, std::ptr::from_mut(value).cast(), &raw mut len)
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
