//! Keeping the host's own stack from answering on a packet port.
//!
//! What arrives on an interface goes first to packet sockets for every protocol (ETH_P_ALL) and then to tc's ingress
//! hook, before IP, ARP, forwarding and packet sockets for one protocol see it. A program of two instructions there
//! drops everything: the switch still gets each frame and the host none. What the host itself sends out of the
//! interface (its own router solicitations, for instance) is not touched.
//!
//! The program is attached as a tcx *link* (Linux 6.6, `CONFIG_NET_XGRESS`), which lives as long as its descriptor: when
//! the switch ends, however it ends, the host gets its interface back. Rejected: a classic `clsact` qdisc with a
//! filter, which stays behind after a crash, and which others who use tc on the interface may remove; nftables' ingress
//! hook, which needs modules and its own netlink dialect; taking the addresses away, which does not stop ARP for
//! addresses of other interfaces.
//!
//! bpf(2) is called directly: two fixed commands do not justify a BPF library.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::netns::run_in;
use super::{Error, Result};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// `struct bpf_insn` as the little- or big-endian machine lays it out: opcode, registers, offset, immediate.
#[repr(C)]
pub(super) struct Instruction {
    pub(super) opcode: u8,
    pub(super) registers: u8,
    pub(super) offset: i16,
    pub(super) immediate: i32,
}

/// `BPF_ALU64 | BPF_MOV | BPF_K`: r0 = immediate.
const MOV64_IMMEDIATE: u8 = 0xb7;
/// `BPF_JMP | BPF_EXIT`
const EXIT: u8 = 0x95;
/// Verdict of tcx: free the frame, no program after us sees it.
const TCX_DROP: i32 = 2;

/// "Drop": the whole program.
static DROP_ALL: [Instruction; 2] = [
    Instruction { opcode: MOV64_IMMEDIATE, registers: 0, offset: 0, immediate: TCX_DROP },
    Instruction { opcode: EXIT, registers: 0, offset: 0, immediate: 0 },
];

/// Verdict of tcx: ask the next program, if there is one.
const TCX_NEXT: i32 = -1;

/// "Not my business": the whole program.
static PASS_ALL: [Instruction; 2] = [
    Instruction { opcode: MOV64_IMMEDIATE, registers: 0, offset: 0, immediate: TCX_NEXT },
    Instruction { opcode: EXIT, registers: 0, offset: 0, immediate: 0 },
];

/// From so many links on, closing them should be left to the kernel: [`end_silence`].
pub const MANY: usize = 16;
/// Descriptors that a message on a Unix socket can carry: SCM_MAX_FD is 253. A datagram socket
/// queues ten messages by default, so this is enough for more than two thousand links.
const FDS_A_MESSAGE: usize = 253;

/// The part of `union bpf_attr` that BPF_LINK_UPDATE needs.
#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The part of `union bpf_attr` that BPF_PROG_LOAD needs (linux/bpf.h); what follows in newer kernels counts as zero.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The part of `union bpf_attr` that BPF_LINK_CREATE needs.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    padding: u32,
    expected_revision: u64,
}

/// The part of `union bpf_attr` that BPF_PROG_TEST_RUN needs.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

/// `struct __sk_buff` as far as its field `ifindex`: the one word of it that is not zero.
const CONTEXT_WORDS: usize = 11;

/// Drops everything that interface `ifindex` of namespace `ns` (`None`: the calling thread's) receives, after packet
/// sockets have seen it, until the returned descriptor is closed.
///
/// # Errors
/// ENODEV when there is no such interface, EPERM without CAP_BPF or CAP_NET_ADMIN, and on a kernel without tcx an
/// error of kind Unsupported that says so.
pub fn silence_host(ifindex: u32, ns: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    let program = load_drop_all().map_err(Error::on(|| {
        format!("cannot load the program that silences the host on interface {ifindex}")
    }))?;
    let attached = run_in(ns, || attach(&program, ifindex, BPF_TCX_INGRESS)).and_then(|attached| attached);
    attached.map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => Error::refused(
            io::ErrorKind::Unsupported,
            format!(
                "cannot silence the host on interface {ifindex}: this kernel has no tcx \
                 (Linux 6.6 or newer with CONFIG_NET_XGRESS)"
            ),
        ),
        _ => Error::new(format!("cannot silence the host on interface {ifindex}"), error),
    })
}

/// Ends the silence on many interfaces: for the host at once, in the kernel when it gets round to
/// it.
///
/// To detach a program takes the kernel a grace period under the lock that all changes of
/// interfaces need, one program after the other: seconds for some hundred. So each link first gets
/// a program that lets everything pass. Then the links are sent to a Unix socket that nothing but
/// its own queue refers to, and the kernel's collector of such sockets closes them, in a thread of
/// its own from Linux 6.10 on. Where any of this fails they are closed here.
///
/// Rejected: a child process that closes them, for which a container's end and systemd would wait.
pub fn end_silence(links: Vec<OwnedFd>) {
    if let_all_pass(&links).is_err() {
        return;
    }
    let _ = leave_to_the_collector(links);
}

fn let_all_pass(links: &[OwnedFd]) -> io::Result<()> {
    let pass = load(BPF_PROG_TYPE_SCHED_CLS, *b"vswitch_pass\0\0\0\0", &PASS_ALL)?;
    for link in links {
        let attr = LinkUpdate {
            link_fd: link.as_raw_fd().cast_unsigned(),
            new_prog_fd: pass.as_raw_fd().cast_unsigned(),
            ..LinkUpdate::default()
        };
        // SAFETY: a LinkUpdate is laid out as BPF_LINK_UPDATE expects and holds no pointers. The
        // command returns no descriptor.
        let done = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_LINK_UPDATE, &raw const attr, size_of::<LinkUpdate>())
        };
        // ENOLINK: the interface has gone.
        if done != 0 && io::Error::last_os_error().raw_os_error() != Some(libc::ENOLINK) {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn leave_to_the_collector(links: Vec<OwnedFd>) -> io::Result<()> {
    use nix::sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
    };
    let (from, to) = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)?;
    let send = |fds: &[RawFd]| {
        let rights = [ControlMessage::ScmRights(fds)];
        let byte = [io::IoSlice::new(b"x")];
        sendmsg::<()>(from.as_raw_fd(), &byte, &rights, MsgFlags::MSG_DONTWAIT, None)
    };
    // First of all what keeps the queue when `to` is closed.
    send(&[to.as_raw_fd()])?;
    let all: Vec<RawFd> = links.iter().map(AsRawFd::as_raw_fd).collect();
    for fds in all.chunks(FDS_A_MESSAGE) {
        send(fds)?;
    }
    // Before the collector can, or the last reference would be ours.
    drop(links);
    // The close of `from` is the last: it wakes the collector.
    drop(to);
    drop(from);
    Ok(())
}

fn load_drop_all() -> io::Result<OwnedFd> {
    load(BPF_PROG_TYPE_SCHED_CLS, *b"vswitch_drop\0\0\0\0", &DROP_ALL)
}

/// Loads a program for sockets: it is asked about a frame and answers with a number.
pub(super) fn load_socket_filter(name: [u8; 16], program: &'static [Instruction]) -> io::Result<OwnedFd> {
    load(BPF_PROG_TYPE_SOCKET_FILTER, name, program)
}

/// Loads a program for tc that is run by [`test_run`].
pub(super) fn load_classifier(name: [u8; 16], program: &[Instruction]) -> io::Result<OwnedFd> {
    load(BPF_PROG_TYPE_SCHED_CLS, name, program)
}

/// Runs a program for tc once, on the frame in `frame` (at least 64 bytes) as if it had come by interface `ifindex` of the
/// calling thread's namespace, and puts the frame as the program leaves it in its place. The frame goes nowhere.
///
/// # Errors
/// ENODEV when there is no such interface.
pub(super) fn test_run(program: RawFd, ifindex: u32, frame: &mut [u8]) -> io::Result<()> {
    let mut context = [0u32; CONTEXT_WORDS];
    context[CONTEXT_WORDS - 1] = ifindex;
    let len = u32::try_from(frame.len()).map_err(io::Error::other)?;
    let mut attr = TestRun {
        prog_fd: program.cast_unsigned(),
        data_size_in: len,
        data_size_out: len,
        data_in: frame.as_ptr().addr() as u64,
        data_out: frame.as_mut_ptr().addr() as u64,
        repeat: 1,
        ctx_size_in: u32::try_from(size_of_val(&context)).map_err(io::Error::other)?,
        ctx_in: context.as_ptr().addr() as u64,
        ..TestRun::default()
    };
    // SAFETY: a TestRun is laid out as BPF_PROG_TEST_RUN expects; the kernel reads `frame` and `context`, which are live,
    // and writes at most `len` bytes to `frame`, which is borrowed exclusively, and its answer to `attr`.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<TestRun>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has a program see what leaves by an interface of the calling thread's namespace, until the returned descriptor is closed.
///
/// # Errors
/// As of [`silence_host`], as the kernel says it.
pub(super) fn attach_egress(
    name: [u8; 16],
    program: &'static [Instruction],
    ifindex: u32,
) -> io::Result<OwnedFd> {
    attach(&load(BPF_PROG_TYPE_SCHED_CLS, name, program)?, ifindex, BPF_TCX_EGRESS)
}

fn load(prog_type: u32, prog_name: [u8; 16], program: &[Instruction]) -> io::Result<OwnedFd> {
    let attr = ProgLoad {
        prog_type,
        insn_cnt: u32::try_from(program.len()).map_err(io::Error::other)?,
        insns: program.as_ptr().addr() as u64,
        license: c"Dual MIT/GPL".as_ptr().addr() as u64,
        prog_name,
        ..ProgLoad::default()
    };
    // SAFETY: a ProgLoad is laid out as BPF_PROG_LOAD expects; instructions and licence are live for the call; there is no log.
    unsafe { bpf(BPF_PROG_LOAD, &attr) }
}

fn attach(program: &OwnedFd, ifindex: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let attr = LinkCreate {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_ifindex: ifindex,
        attach_type,
        ..LinkCreate::default()
    };
    // SAFETY: a LinkCreate is laid out as BPF_LINK_CREATE expects and holds no pointers; `program` is open.
    unsafe { bpf(BPF_LINK_CREATE, &attr) }
}

/// bpf(2), for commands that return a new descriptor (always close-on-exec).
///
/// # Safety
/// `attr` must be what `command` expects, and any pointers in it valid for the call.
unsafe fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of `attr`; the rest is the caller's promise.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

const _: () =
    assert!(size_of::<Instruction>() == 8 && size_of::<ProgLoad>() == 72 && size_of::<LinkCreate>() == 32);
const _: () = assert!(size_of::<TestRun>() == 64);
