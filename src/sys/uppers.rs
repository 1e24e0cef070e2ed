//! What is on top of an interface: macvlans, VLAN devices and the like, in whatever namespace they are.
//!
//! Such a device takes frames from the interface below, behind the packet sockets and behind tc's ingress, so it gets
//! none when [`super::bpf::silence_host`] drops them there. netlink tells of the devices in the same namespace only, and
//! of a macvlan in a container's namespace nothing that its lower's namespace could see. What the kernel itself goes by
//! is in the interface's `struct net_device`: the function that gets its frames (`rx_handler`) and the list of its upper
//! devices (`adj_list.upper`).
//!
//! A BPF program reads those. It is attached to nothing: it is run by itself on a frame of our own (BPF_PROG_TEST_RUN)
//! that claims to have come by the interface, and leaves in that frame what it found. That takes 50 µs and touches
//! neither the interface nor its traffic. Offsets come from the kernel's types (`btf.rs`).
//!
//! Needs Linux 6.2 (`bpf_cast_to_kern_ctx`, `bpf_rdonly_cast`) with CONFIG_DEBUG_INFO_BTF, CAP_BPF and CAP_PERFMON (or
//! CAP_SYS_ADMIN). A kernel too old for it is too old for the ingress drop as well.
//!
//! Rejected: trying to put something on the interface and looking for EBUSY, which registers a handler for a moment and
//! tells nothing of VLAN devices; looking by the kinds of device there are, which are not all known.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::assembler::op;
use super::bpf::{self, Instruction};
use super::btf::Btf;
use super::netns::run_in;
use super::{Error, Result};

/// Upper devices that are told of; more are only counted as one more.
const SHOWN_MAX: usize = 4;
/// IFF_802_1Q_VLAN of `netdev_priv_flags`.
const IS_VLAN: u32 = 1;

/// What the program writes: [`HEAD_BYTES`], then an entry each.
const HEAD_BYTES: usize = 16;
const ENTRY_BYTES: usize = 32;
const FOUND_BYTES: usize = HEAD_BYTES + ENTRY_BYTES * SHOWN_MAX;
/// Where in an entry what is; the name comes first.
const NAME_BYTES: usize = 16;
const INDEX_AT: usize = 16;
const FLAGS_AT: usize = 20;
const NETNS_AT: usize = 24;
const MASTER_AT: usize = 28;

/// A device on top of an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upper {
    /// Its name in its namespace.
    pub name: String,
    /// Its index in its namespace.
    pub index: u32,
    /// Inode number of its namespace.
    pub netns_inode: u32,
    /// It is a VLAN device, which takes frames without a handler.
    pub is_vlan: bool,
    /// It is what the interface belongs to: a bridge, a bond.
    pub is_master: bool,
}

/// What takes an interface's frames, or shares them.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Uppers {
    /// The kernel has a handler for its frames: a macvlan's, an ipvlan's, a bridge's, …
    pub has_handler: bool,
    /// Devices on top of it, the first few.
    pub devices: Vec<Upper>,
    /// There are more.
    pub more: bool,
}

/// The program that looks.
#[derive(Debug)]
pub struct Inspector {
    program: OwnedFd,
}

impl Inspector {
    /// Loads the program for the running kernel.
    ///
    /// # Errors
    /// The kernel has not what it takes, or the privilege is missing.
    pub fn load() -> Result<Inspector> {
        let program = program(&Btf::read()?)?;
        let cannot = || "cannot load the program that looks for what is on top of interfaces";
        let program = bpf::load_classifier(*b"vswitch_uppers\0\0", &program).map_err(Error::on(cannot))?;
        Ok(Inspector { program })
    }

    /// What is on top of each of the interfaces with these indices in namespace `ns` (`None`: the calling thread's).
    /// `None` for one that does not exist.
    ///
    /// # Errors
    /// The kernel's answer, other than that there is no such interface.
    pub fn look(&self, ns: Option<BorrowedFd<'_>>, indices: &[u32]) -> Result<Vec<Option<Uppers>>> {
        let look = || indices.iter().map(|&index| self.look_at(index)).collect::<io::Result<Vec<_>>>();
        run_in(ns, look)
            .and_then(|found| found)
            .map_err(Error::on(|| "cannot look for what is on top of an interface"))
    }

    fn look_at(&self, index: u32) -> io::Result<Option<Uppers>> {
        let mut found = [0; FOUND_BYTES];
        match bpf::test_run(self.program.as_raw_fd(), index, &mut found) {
            Ok(()) => Ok(Some(read(&found))),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn read(found: &[u8; FOUND_BYTES]) -> Uppers {
    let (head, entries) = found.split_at(HEAD_BYTES);
    let word = |bytes: &[u8], at: usize| {
        bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_ne_bytes(*word))
    };
    let devices = entries.chunks_exact(ENTRY_BYTES).take_while(|entry| word(entry, INDEX_AT) != 0);
    let device = |entry: &[u8]| {
        let name = entry[..NAME_BYTES].split(|&byte| byte == 0).next().unwrap_or_default();
        Upper {
            name: String::from_utf8_lossy(name).into_owned(),
            index: word(entry, INDEX_AT),
            netns_inode: word(entry, NETNS_AT),
            is_vlan: word(entry, FLAGS_AT) & IS_VLAN != 0,
            is_master: entry[MASTER_AT] != 0,
        }
    };
    Uppers {
        has_handler: head[..8].iter().any(|&byte| byte != 0),
        devices: devices.map(device).collect(),
        more: head[8] != 0,
    }
}

/// Registers: r6 the interface, r7 the list's head, r8 where in the list, r9 the context.
fn program(btf: &Btf) -> Result<Vec<Instruction>> {
    use op::{
        ADD_IMM, CALL, CALL_KERNEL, EXIT, JUMP_EQ_REG, LOAD_BYTE, LOAD_DOUBLE, LOAD_WORD, MOV, MOV_IMM,
        STORE_BYTE, STORE_DOUBLE, STORE_WORD,
    };
    /// `bpf_skb_store_bytes`
    const STORE_INTO_FRAME: i32 = 9;
    let short = |offset: i32| {
        i16::try_from(offset)
            .map_err(|_| Error::refused(io::ErrorKind::Unsupported, "a structure that large"))
    };
    let at = |structure: &str, path: &[&str]| btf.offset(structure, path).and_then(short);
    let number =
        |id: u32| i32::try_from(id).map_err(|_| Error::refused(io::ErrorKind::Unsupported, "a type"));

    let device = at("sk_buff", &["dev"])?;
    let handler = at("net_device", &["rx_handler"])?;
    let uppers = at("net_device", &["adj_list", "upper"])?;
    let name = at("net_device", &["name"])?;
    let index = at("net_device", &["ifindex"])?;
    let flags = at("net_device", &["priv_flags"])?;
    let netns = at("net_device", &["nd_net", "net"])?;
    let inode = at("net", &["ns", "inum"])?;
    let upper = at("netdev_adjacent", &["dev"])?;
    let link = at("netdev_adjacent", &["list"])?;
    let master = at("netdev_adjacent", &["master"])?;
    let adjacent = number(btf.structure("netdev_adjacent")?)?;
    let to_kernel = number(btf.function("bpf_cast_to_kern_ctx")?)?;
    let cast = number(btf.function("bpf_rdonly_cast")?)?;

    // What is found lies at the end of the stack, from `found` on; the kernel's stack for programs has 512 bytes.
    const _: () = assert!(FOUND_BYTES <= 512 && FOUND_BYTES.is_multiple_of(8));
    let found = -short(i32::try_from(FOUND_BYTES).unwrap_or(i32::MAX))?;
    let slot = |at: usize| short(i32::try_from(at).unwrap_or(i32::MAX)).map(|at| found + at);

    let mut code = vec![op(MOV, 9, 1, 0, 0), op(MOV_IMM, 0, 0, 0, 0)];
    for at in (0..FOUND_BYTES).step_by(8) {
        code.push(op(STORE_DOUBLE, 10, 0, slot(at)?, 0));
    }
    code.extend([
        op(CALL, 0, CALL_KERNEL, 0, to_kernel),
        op(LOAD_DOUBLE, 6, 0, device, 0),
        op(LOAD_DOUBLE, 1, 6, handler, 0),
        op(STORE_DOUBLE, 10, 1, found, 0),
        op(MOV, 7, 6, 0, 0),
        op(ADD_IMM, 7, 0, 0, uppers.into()),
        op(LOAD_DOUBLE, 8, 6, uppers, 0),
    ]);
    let mut ends = Vec::new();
    for entry in 0..SHOWN_MAX {
        let entry = HEAD_BYTES + ENTRY_BYTES * entry;
        ends.push(code.len());
        code.extend([
            op(JUMP_EQ_REG, 8, 7, 0, 0),
            // From the link in the list to what it is a member of.
            op(MOV, 1, 8, 0, 0),
            op(ADD_IMM, 1, 0, 0, -i32::from(link)),
            op(MOV_IMM, 2, 0, 0, adjacent),
            op(CALL, 0, CALL_KERNEL, 0, cast),
            op(LOAD_DOUBLE, 1, 0, upper, 0),
        ]);
        for at in 0..NAME_BYTES {
            let from = name + short(i32::try_from(at).unwrap_or(i32::MAX))?;
            code.extend([op(LOAD_BYTE, 2, 1, from, 0), op(STORE_BYTE, 10, 2, slot(entry + at)?, 0)]);
        }
        code.extend([
            op(LOAD_WORD, 2, 1, index, 0),
            op(STORE_WORD, 10, 2, slot(entry + INDEX_AT)?, 0),
            op(LOAD_WORD, 2, 1, flags, 0),
            op(STORE_WORD, 10, 2, slot(entry + FLAGS_AT)?, 0),
            op(LOAD_DOUBLE, 2, 1, netns, 0),
            op(LOAD_WORD, 2, 2, inode, 0),
            op(STORE_WORD, 10, 2, slot(entry + NETNS_AT)?, 0),
            op(LOAD_BYTE, 2, 0, master, 0),
            op(STORE_BYTE, 10, 2, slot(entry + MASTER_AT)?, 0),
            op(LOAD_DOUBLE, 8, 0, link, 0),
        ]);
    }
    ends.push(code.len());
    code.extend([op(JUMP_EQ_REG, 8, 7, 0, 0), op(MOV_IMM, 2, 0, 0, 1), op(STORE_BYTE, 10, 2, slot(8)?, 0)]);
    let end = code.len();
    for from in ends {
        code[from].offset = short(i32::try_from(end - from - 1).unwrap_or(i32::MAX))?;
    }
    code.extend([
        op(MOV, 1, 9, 0, 0),
        op(MOV_IMM, 2, 0, 0, 0),
        op(MOV, 3, 10, 0, 0),
        op(ADD_IMM, 3, 0, 0, found.into()),
        op(MOV_IMM, 4, 0, 0, -i32::from(found)),
        op(MOV_IMM, 5, 0, 0, 0),
        op(CALL, 0, 0, 0, STORE_INTO_FRAME),
        op(MOV_IMM, 0, 0, 0, 0),
        op(EXIT, 0, 0, 0, 0),
    ]);
    Ok(code)
}
