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
//! **A ring that stops.** A frame that `virtio_net_hdr` cannot describe (UDP fragmentation offload,
//! SCTP) takes the slot at the kernel's head, and the kernel then gives up without filling or
//! freeing it: nothing is received any more. `filter.rs` keeps away what it can
//! recognise. [`Watch`] finds the rest: the kernel drops frames and delivers none, while the slot
//! is the kernel's. The socket then goes on without a ring: recvmsg fails for such a frame alone.
//! Rejected: a new ring, which the next such frame stops again.
//!
//! **Sockets of a port.** Opening and closing a ring costs two of the kernel's grace periods, some
//! 8 ms each, and a ring is memory that cannot be swapped. So at most [`RECEIVERS`] sockets of a
//! port receive, whatever the number of workers; the other workers send by the sockets of these.
//!
//! The outermost VLAN tag of a received frame is not in its bytes but beside them; [`Received::Frame`] has it. An
//! `AF_PACKET` socket pins its namespace for as long as it is open.

// The kernel's constants and the sizes of its structures all fit the narrow types its interface has for them.
#![allow(clippy::cast_possible_truncation)]

use std::cell::RefCell;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::batch::BATCH_FRAMES;
use crate::frame::{Outgoing, TAG_LEN};
use crate::offload::VNET_HDR_LEN;

/// Bytes of a slot: the ring's own header, our offload header, and a frame of 1,518 bytes with two tags.
const SLOT_BYTES: usize = 2048;
/// Slots a ring: 768 KiB, which stays within a core's L2 cache and leaves room for 32 ports of two queues in 64 MiB. All that a
/// TCP connection has on its way at the usual receive window, 540 KiB in 375 frames, has room while the worker waits for a CPU.
const SLOTS: usize = 384;
/// Sockets that share an interface's flows, at most: 1.5 MiB of rings a port.
pub const RECEIVERS: usize = 2;
/// Looks in a row that find frames dropped and none delivered before a ring is taken to have
/// stopped.
const STRIKES: u32 = 2;
/// Threads that open sockets at the same time.
const SPARES_THREADS: usize = 64;
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

/// One worker's use of an interface: a way out, and a way in if it is one of the receivers.
#[derive(Debug)]
pub struct PacketSocket {
    fd: Arc<SharedFd>,
    inbound: Inbound,
    /// Drops that were told of.
    told: u64,
}

/// How frames come in.
#[derive(Debug)]
enum Inbound {
    /// By a ring.
    Ring(Ring),
    /// One by one, because the ring had stopped. One that is longer than any buffer has been seen, so
    /// the length is looked at first.
    Queue { looks_first: bool },
    /// Others receive.
    None,
}

/// A socket, and what the kernel counted at it.
#[derive(Debug)]
struct SharedFd {
    fd: OwnedFd,
    delivered: AtomicU64,
    dropped: AtomicU64,
}

/// The sockets of a port.
#[derive(Debug)]
pub struct Sockets {
    /// One a queue.
    pub queues: Vec<PacketSocket>,
    /// How many of them receive: each its share of the flows, together every frame once, none that
    /// the host sent.
    pub receiving: usize,
    /// One a receiver.
    pub watches: Vec<Watch>,
}

/// What a kernel does.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// It keeps what the host sends out of a group of sockets: Linux 6.2. Older ones take the flag
    /// and ignore it.
    pub ignores_outgoing: bool,
}

/// Opens one socket a queue on the interface, in the calling thread's namespace.
///
/// # Errors
/// The operation that the kernel refused. Before Linux 6.13 it lets nobody join a group on an interface that is down:
/// EINVAL.
pub fn open(ifindex: u32, queues: usize, spares: &mut Spares) -> io::Result<Sockets> {
    open_on(Kernel { ignores_outgoing: super::filter::at_least_linux_6_2() }, ifindex, queues, spares)
}

/// Sockets that are opened before it is known what for, many at once, so that they wait for the
/// kernel together. They belong to the namespace of the thread that opened them.
#[derive(Debug, Default)]
pub struct Spares(Vec<PacketSocket>);

impl Spares {
    /// Enough for `ports` ports of `queues` workers, as far as the kernel lets us have them.
    #[must_use]
    pub fn open(ports: usize, queues: usize) -> Spares {
        let number = ports * queues.clamp(1, RECEIVERS);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut opened = Vec::new();
            while next.fetch_add(1, Ordering::Relaxed) < number {
                opened.extend(PacketSocket::open());
            }
            opened
        };
        let mut sockets = thread::scope(|scope| {
            let start = |_| super::thread::spawn_scoped(scope, "open", work);
            let helpers: Vec<_> = (1..number.min(SPARES_THREADS)).map_while(|at| start(at).ok()).collect();
            let mut opened = work();
            for helper in helpers {
                opened.extend(helper.join().unwrap_or_default());
            }
            opened
        });
        sockets.truncate(number);
        Spares(sockets)
    }

    /// Some of them.
    #[must_use]
    pub fn take(&mut self, number: usize) -> Spares {
        Spares(self.0.split_off(self.0.len().saturating_sub(number)))
    }

    /// What is left.
    #[must_use]
    pub fn into_sockets(self) -> Vec<PacketSocket> {
        self.0
    }
}

/// As [`open`], on a kernel that does no more than this.
///
/// # Errors
/// As [`open`].
pub fn open_on(kernel: Kernel, ifindex: u32, queues: usize, spares: &mut Spares) -> io::Result<Sockets> {
    // Without the right to load it, one socket receives for all. The kernel's own hash is no substitute: it may part the datagrams
    // of one GSO send.
    let steering = super::steering::by_flow().ok();
    let receiving = if steering.is_some() { queues.clamp(1, RECEIVERS) } else { 1 };
    let mut receivers = spares.take(receiving).0;
    receivers.extend(open_together(receiving - receivers.len())?);
    let mut group = 0;
    for (index, socket) in receivers.iter().enumerate() {
        // Until all have joined the group, a socket would receive other queues' share as well.
        attach_reject_all(&socket.fd.fd)?;
        socket.bind(ifindex, libc::ETH_P_ALL as u16)?;
        if receiving > 1 {
            group = socket.join_fanout(group, index == 0, kernel)?;
        } else {
            set(&socket.fd.fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1i32)?;
        }
    }
    if let Some(first) = receivers.first() {
        // One is enough: they are closed together.
        be_promiscuous(&first.fd.fd, ifindex)?;
        if let (true, Some(program)) = (receiving > 1, &steering) {
            set(&first.fd.fd, libc::SOL_PACKET, PACKET_FANOUT_DATA, &program.as_raw_fd())?;
        }
    }
    let filter = super::filter::for_packet_sockets(kernel.ignores_outgoing);
    for socket in &receivers {
        match &filter {
            // In place of the one that rejects everything.
            Ok(filter) => set(&socket.fd.fd, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, &filter.as_raw_fd())?,
            Err(_) => set(&socket.fd.fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0i32)?,
        }
    }
    Ok(Sockets::share(receivers, ifindex, queues))
}

/// Sockets with a ring, opened at the same time: the kernel lets them wait for one grace period
/// together.
fn open_together(number: usize) -> io::Result<Vec<PacketSocket>> {
    if number == 0 {
        return Ok(Vec::new());
    }
    thread::scope(|scope| {
        let start = |_| super::thread::spawn_scoped(scope, "open", PacketSocket::open);
        let others: Vec<_> = (1..number).map(start).collect();
        let mut sockets = vec![PacketSocket::open()?];
        for other in others {
            sockets.push(match other {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
                // No thread to be had: one after the other, then.
                Err(_) => PacketSocket::open()?,
            });
        }
        Ok(sockets)
    })
}

impl Sockets {
    /// Shares the receivers out to `queues` workers: the same two for a port, others for the next,
    /// so that not all of a machine's ports are at the same workers.
    fn share(receivers: Vec<PacketSocket>, ifindex: u32, queues: usize) -> Sockets {
        let receiving = receivers.len();
        let places = queues.max(1) / receiving.max(1);
        // Interfaces are made in pairs, so their numbers as they are would leave out every other
        // place.
        let first =
            if queues > receiving { (ifindex.wrapping_mul(0x9e37_79b1) >> 16) as usize % places } else { 0 };
        let watch = |(at, socket): (usize, &PacketSocket)| Watch {
            worker: (first * receiving + at) % queues.max(1),
            socket: Arc::downgrade(&socket.fd),
            seen: (0, 0),
            strikes: 0,
            stopped: false,
        };
        let watches: Vec<Watch> = receivers.iter().enumerate().map(watch).collect();
        let fds: Vec<_> = receivers.iter().map(|socket| Arc::clone(&socket.fd)).collect();
        let mut sockets: Vec<_> =
            (0..queues).map(|at| PacketSocket::to_send_by(&fds[at % receiving])).collect();
        for (watch, socket) in watches.iter().zip(receivers) {
            sockets[watch.worker] = socket;
        }
        Sockets { queues: sockets, receiving, watches }
    }
}

/// The control side's view of a receiver: whether its ring has stopped. It does not keep the socket
/// open.
#[derive(Debug)]
pub struct Watch {
    /// The worker that receives by it.
    pub worker: usize,
    socket: Weak<SharedFd>,
    seen: (u64, u64),
    strikes: u32,
    stopped: bool,
}

impl Watch {
    /// Whether frames were dropped and none delivered at several looks in a row. A ring that is
    /// merely full looks the same: its worker knows better, see [`PacketSocket::leave_ring`].
    pub fn seems_stopped(&mut self) -> bool {
        if self.stopped {
            return false;
        }
        let Some(socket) = self.socket.upgrade() else { return false };
        let now = socket.count();
        let before = std::mem::replace(&mut self.seen, now);
        self.strikes = if now.0 == before.0 && now.1 != before.1 { self.strikes + 1 } else { 0 };
        self.is_suspect()
    }

    /// What [`Watch::seems_stopped`] found last.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        !self.stopped && self.strikes >= STRIKES
    }

    /// Frames that it had delivered at the last look.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.seen.0
    }

    /// The worker found frames in the ring.
    pub fn was_full(&mut self) {
        self.strikes = 0;
    }

    /// Takes the ring away after its worker has left it; frames wait in the socket's queue from now
    /// on. Some milliseconds.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn take_ring(&mut self) -> io::Result<()> {
        self.stopped = true;
        let Some(socket) = self.socket.upgrade() else { return Ok(()) };
        let none = libc::tpacket_req { tp_block_size: 0, tp_block_nr: 0, tp_frame_size: 0, tp_frame_nr: 0 };
        set(&socket.fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &none)
    }

    /// Whether its ring had stopped and is gone.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.stopped
    }
}

impl SharedFd {
    /// Frames delivered and dropped since the socket was opened. Reading the kernel's numbers
    /// clears them.
    fn count(&self) -> (u64, u64) {
        let mut stats = [0u32; 2];
        // tpacket_stats: packets, with drops, and drops.
        if get(&self.fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut stats).is_err() {
            stats = [0, 0];
        }
        let [packets, dropped] = stats.map(u64::from);
        let delivered = packets.saturating_sub(dropped);
        (
            self.delivered.fetch_add(delivered, Ordering::Relaxed) + delivered,
            self.dropped.fetch_add(dropped, Ordering::Relaxed) + dropped,
        )
    }
}

impl AsRawFd for SharedFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

/// Sends one frame by an interface.
pub(super) fn send_by(socket: &Socket, ifindex: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: sockaddr_ll is plain data for which zeros are valid.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = ifindex.cast_signed();
    let (data, len) = (frame.as_ptr().cast(), frame.len());
    let to = (&raw const address).cast();
    // SAFETY: the pointers and lengths are those of a live buffer and a live address.
    let sent = unsafe {
        libc::sendto(socket.as_raw_fd(), data, len, 0, to, size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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
    /// A frame that the kernel could not describe; it is gone.
    Undescribed,
}

/// What recvmsg returned.
enum Message {
    /// Nothing waits.
    None,
    /// A frame that the kernel could not describe; unless it was only looked at, it is gone.
    Undescribed,
    /// A frame: its length with its offload header, whether it fitted or not, and the tag beside it.
    Frame(usize, Option<[u8; TAG_LEN]>),
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
        let fd = Arc::new(SharedFd { fd, delivered: AtomicU64::new(0), dropped: AtomicU64::new(0) });
        Ok(PacketSocket { fd, inbound: Inbound::Ring(ring), told: 0 })
    }

    /// Another worker's way out by a receiver's socket. A socket of its own would cost a grace
    /// period to close.
    fn to_send_by(fd: &Arc<SharedFd>) -> PacketSocket {
        PacketSocket { fd: Arc::clone(fd), inbound: Inbound::None, told: 0 }
    }

    /// Whether frames come in here.
    #[must_use]
    pub fn receives(&self) -> bool {
        !matches!(self.inbound, Inbound::None)
    }

    /// Unmaps the ring if nothing waits in it, and receives without one from then on; whether it
    /// did. [`Watch::take_ring`] is next.
    ///
    /// `delivered` is what the watch knew: if there were frames since, the ring was only full.
    pub fn leave_ring(&mut self, delivered: u64) -> bool {
        if matches!(self.inbound, Inbound::Ring(_)) && self.fd.count().0 != delivered {
            return false;
        }
        match &self.inbound {
            Inbound::Ring(ring) if ring.filled().is_some() => return false,
            Inbound::Ring(_) => self.inbound = Inbound::Queue { looks_first: false },
            // It did, and its answer came too late.
            Inbound::Queue { .. } => {}
            Inbound::None => return false,
        }
        true
    }

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
        socket2::SockRef::from(&self.fd.fd).bind(&address)
    }

    /// Joins the group, or founds one with an id that the kernel picks; returns the id.
    fn join_fanout(&self, group: u16, found: bool, kernel: Kernel) -> io::Result<u16> {
        let mut kind = PACKET_FANOUT_EBPF;
        if kernel.ignores_outgoing {
            kind |= PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
        }
        if found {
            kind |= PACKET_FANOUT_FLAG_UNIQUEID;
        }
        set(&self.fd.fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &(libc::c_int::from(group) | kind << 16))?;
        let mut joined: libc::c_int = 0;
        get(&self.fd.fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &mut joined)?;
        Ok((joined & 0xffff) as u16)
    }

    /// Reads the next frame into `buffer`: [`VNET_HDR_LEN`] bytes of offload header, then the frame.
    ///
    /// # Errors
    /// `ENETDOWN` when the interface went down, `ENODEV`/`ENXIO` when it is gone.
    #[inline]
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let ring = match &mut self.inbound {
            Inbound::Ring(ring) => ring,
            Inbound::Queue { looks_first } => {
                let looks_first = *looks_first;
                return self.receive_without_ring(buffer, looks_first);
            }
            Inbound::None => return Ok(Received::Empty),
        };
        let Some(slot) = ring.filled() else { return Ok(Received::Empty) };
        if slot.status & libc::TP_STATUS_COPY != 0 {
            if slot.frame_len() > buffer.len() - VNET_HDR_LEN {
                return Ok(Received::Longer);
            }
            ring.release();
            return Ok(match self.receive_queued(buffer)? {
                Received::Empty => Received::Truncated,
                received => received,
            });
        }
        let received = slot.copy_to(buffer);
        ring.release();
        Ok(received)
    }

    /// The frame that did not fit its slot; without a ring, the next one.
    fn receive_queued(&self, buffer: &mut [u8]) -> io::Result<Received> {
        Ok(match self.receive_message(&mut [io::IoSliceMut::new(buffer)], 0)? {
            Message::None => Received::Empty,
            Message::Undescribed => Received::Undescribed,
            Message::Frame(n, _) if n > buffer.len() || n < VNET_HDR_LEN => Received::Truncated,
            Message::Frame(n, tag) => Received::Frame { len: n - VNET_HDR_LEN, tag },
        })
    }

    /// The next frame without a ring. After the first that is longer than the buffer, which is lost,
    /// the length is looked at first.
    #[cold]
    fn receive_without_ring(&mut self, buffer: &mut [u8], looks_first: bool) -> io::Result<Received> {
        // The kernel refuses a buffer without room for the offload header.
        let mut header = [0; VNET_HDR_LEN];
        if looks_first
            && let Message::Frame(n, _) =
                self.receive_message(&mut [io::IoSliceMut::new(&mut header)], libc::MSG_PEEK)?
            && n > buffer.len()
        {
            return Ok(Received::Longer);
        }
        let received = self.receive_queued(buffer)?;
        if matches!(received, Received::Truncated) {
            self.inbound = Inbound::Queue { looks_first: true };
        }
        Ok(received)
    }

    /// Gives back the slot of a frame that waits in the socket's queue.
    fn release_slot(&mut self) {
        if let Inbound::Ring(ring) = &mut self.inbound {
            ring.release();
        }
    }

    /// Copies the offload header and the beginning of the frame that [waits](Received::Longer), as far as there is room. `None`
    /// when it was cut short by the kernel; it is gone then.
    ///
    /// # Errors
    /// As of [`PacketSocket::receive`].
    pub fn peek(&mut self, head: &mut [u8]) -> io::Result<Option<Peeked>> {
        match self.receive_message(&mut [io::IoSliceMut::new(head)], libc::MSG_PEEK)? {
            Message::Frame(n, tag) if n >= VNET_HDR_LEN => Ok(Some(Peeked { len: n - VNET_HDR_LEN, tag })),
            _ => {
                self.release_slot();
                Ok(None)
            }
        }
    }

    /// Reads the frame that waits, with its offload header, into these slices, one behind the other, and returns how many bytes it
    /// has. What does not fit is lost.
    ///
    /// # Errors
    /// As of [`PacketSocket::receive`].
    pub fn receive_scattered(&mut self, slices: &mut [io::IoSliceMut<'_>]) -> io::Result<usize> {
        self.release_slot();
        Ok(match self.receive_message(slices, 0)? {
            Message::Frame(n, _) => n,
            Message::None | Message::Undescribed => 0,
        })
    }

    /// The next frame of the socket's queue.
    fn receive_message(&self, slices: &mut [io::IoSliceMut<'_>], flags: libc::c_int) -> io::Result<Message> {
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
        if n < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
            return Ok(Message::Undescribed);
        }
        if n < 0 && io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock {
            // The interface was down in between: that error is reported once, in place of the frame, which still waits
            // and must not be taken for the one of the next slot.
            n = receive();
        }
        if n < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(Message::None) } else { Err(error) };
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
        Ok(Message::Frame(n.cast_unsigned(), tag))
    }

    /// Memory of its ring: the kernel's, mapped here, never swapped out.
    #[must_use]
    pub fn ring_bytes(&self) -> u64 {
        if matches!(self.inbound, Inbound::Ring(_)) { Ring::BYTES as u64 } else { 0 }
    }

    /// Frames that the kernel dropped since the last call: for want of room, or because its ring
    /// had stopped.
    #[must_use]
    pub fn take_kernel_drops(&mut self) -> u64 {
        if !self.receives() {
            return 0;
        }
        let (_, dropped) = self.fd.count();
        dropped - mem::replace(&mut self.told, dropped)
    }

    /// Sends the frames in order and tells for each, by index, whether the kernel took it.
    #[inline]
    pub fn send(&mut self, frames: &[Outgoing<'_>], outcome: impl FnMut(usize, io::Result<()>)) {
        SCRATCH.with_borrow_mut(|scratch| self.send_by(scratch, frames, outcome));
    }

    #[inline]
    fn send_by(
        &self,
        scratch: &mut Scratch,
        frames: &[Outgoing<'_>],
        mut outcome: impl FnMut(usize, io::Result<()>),
    ) {
        let mut sent = 0;
        let mut last_refused = None;
        for chunk in frames.chunks(BATCH_FRAMES) {
            scratch.point_at(chunk);
            let end = sent + chunk.len();
            let first = sent;
            while sent < end {
                let messages = &mut scratch.messages[sent - first..end - first];
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

thread_local! {
    /// One a worker, not one a port: 8 KiB that stay in its cache.
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

/// What sendmmsg(2) reads: kept between calls so that nothing is allocated or cleared per batch.
struct Scratch {
    messages: Box<[libc::mmsghdr; BATCH_FRAMES]>,
    vectors: Box<[[libc::iovec; 4]; BATCH_FRAMES]>,
}

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
        self.fd.fd.as_fd()
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
