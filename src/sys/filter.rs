//! Which frames a packet socket had better never see: those that no `virtio_net_hdr` can describe.
//!
//! When the kernel cannot write the header of a GSO frame into a ring's slot (SCTP; UDP before Linux 6.2) it drops the frame
//! and never uses the slot again, so the socket receives nothing any more (see
//! [`packet`](super::packet)). A filter runs before the slot is
//! taken: it refuses these frames. They are lost, uncounted, but only they; their senders do without where the
//! interface's `tx-sctp-segmentation` or `tx-udp-segmentation` is switched off (`ethtool -K`). SCTP behind IPv6 extension headers, behind
//! two tags or in a tunnel is not seen, and UDP fragmentation offload cannot be told from UDP
//! segmentation here: these stop the ring.
//!
//! Before Linux 6.2 a filter also keeps away what the host itself sends: a group of sockets takes
//! the flag that asks for that (`PACKET_FANOUT_FLAG_IGNORE_OUTGOING`), and ignores it.

use std::io;
use std::os::fd::OwnedFd;

use super::assembler::{GSO_SIZE, NET, PROTOCOL, jump, load, network, op};
use super::bpf::{Instruction, load_socket_filter};

const IPV6: usize = 9;
const TRANSPORT: usize = 11;
const ACCEPT: usize = 18;
const REJECT: usize = 20;
const FRAME: u8 = 6;
/// Where the transport header begins, behind the start of a plain IP header.
const OFFSET: u8 = 8;

/// Offset of `pkt_type` in `struct __sk_buff`.
const PACKET_TYPE: i16 = 4;
/// Of a frame that the host sends (linux/if_packet.h).
const PACKET_OUTGOING: i32 = 4;

const UDP: i32 = 17;
const SCTP: i32 = 132;

/// Refuses GSO frames of SCTP and of `other` (a protocol of IP), but for what VXLAN and Geneve have inside, which can be described.
#[rustfmt::skip]
const fn refuse(other: i32) -> [Instruction; 22] {
    [
        /*  0 */ op(op::MOV, FRAME, 1, 0, 0),
        /*  1 */ op(op::LOAD_CONTEXT, 0, FRAME, GSO_SIZE, 0),
        /*  2 */ jump(op::JUMP_EQ, 0, 2, ACCEPT),
        /*  3 */ op(op::LOAD_CONTEXT, 0, FRAME, PROTOCOL, 0),
        /*  4 */ jump(op::JUMP_EQ, network(0x86dd), 4, IPV6),
        /*  5 */ jump(op::JUMP_NE, network(0x0800), 5, ACCEPT),
        /*  6 */ op(op::MOV_IMM, OFFSET, 0, 0, 20),
        /*  7 */ load(op::FRAME_BYTE, 9),
        /*  8 */ jump(op::JUMP, 0, 8, TRANSPORT),
        /*  9 */ op(op::MOV_IMM, OFFSET, 0, 0, 40),
        /* 10 */ load(op::FRAME_BYTE, 6),
        /* 11 */ jump(op::JUMP_EQ, SCTP, 11, REJECT),
        /* 12 */ jump(op::JUMP_NE, other, 12, ACCEPT),
        /* 13 */ op(op::FRAME_HALF_AT, 0, OFFSET, 0, NET + 2),
        /* 14 */ jump(op::JUMP_EQ, 4789, 14, ACCEPT),
        /* 15 */ jump(op::JUMP_EQ, 8472, 15, ACCEPT),
        /* 16 */ jump(op::JUMP_EQ, 6081, 16, ACCEPT),
        /* 17 */ jump(op::JUMP, 0, 17, REJECT),
        /* 18 */ op(op::MOV_IMM, 0, 0, 0, i32::MAX),
        /* 19 */ op(op::EXIT, 0, 0, 0, 0),
        /* 20 */ op(op::MOV_IMM, 0, 0, 0, 0),
        /* 21 */ op(op::EXIT, 0, 0, 0, 0),
    ]
}

/// The same before Linux 6.2, where UDP cannot be described either, behind two instructions that
/// refuse what the host sends.
const fn refuse_outgoing_too() -> [Instruction; 24] {
    let mut program = [const { op(op::EXIT, 0, 0, 0, 0) }; 24];
    program[0] = op(op::LOAD_CONTEXT, 0, 1, PACKET_TYPE, 0);
    program[1] = jump(op::JUMP_EQ, PACKET_OUTGOING, 1, REJECT + 2);
    let rest = refuse(UDP);
    let mut at = 0;
    while at < rest.len() {
        // Jumps are relative, so what follows stays as it is.
        let Instruction { opcode, registers, offset, immediate } = rest[at];
        program[at + 2] = Instruction { opcode, registers, offset, immediate };
        at += 1;
    }
    program
}

static REFUSE_SCTP: [Instruction; 22] = refuse(SCTP);
static REFUSE_SCTP_UDP_AND_OUTGOING: [Instruction; 24] = refuse_outgoing_too();

/// The program for this kernel, loaded; `ignores_outgoing` is Linux 6.2.
///
/// # Errors
/// EPERM without CAP_BPF, where the kernel does not let everybody load filters.
pub(super) fn for_packet_sockets(ignores_outgoing: bool) -> io::Result<OwnedFd> {
    let program: &'static [Instruction] =
        if ignores_outgoing { &REFUSE_SCTP } else { &REFUSE_SCTP_UDP_AND_OUTGOING };
    load_socket_filter(*b"vswitch_gso\0\0\0\0\0", program)
}

/// Whether this kernel's header can describe a UDP GSO frame, and its groups of packet sockets can
/// leave out what the host sends.
pub(super) fn at_least_linux_6_2() -> bool {
    nix::sys::utsname::uname().is_ok_and(|name| at_least_6_2(&name.release().to_string_lossy()))
}

fn at_least_6_2(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 2)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn releases_are_told_apart() {
        for old in ["6.1.0-18-amd64", "5.15.90", "6", ""] {
            assert!(!at_least_6_2(old), "{old}");
        }
        for new in ["6.2.0", "6.18.1-cloud", "7.0-rc1", "10.0"] {
            assert!(at_least_6_2(new), "{new}");
        }
    }

    /// Both programs load, and let through what is no GSO frame.
    #[test]
    fn the_kernel_accepts_the_programs() {
        for program in [&REFUSE_SCTP[..], &REFUSE_SCTP_UDP_AND_OUTGOING] {
            let program = match load_socket_filter(*b"vswitch_test\0\0\0\0", program) {
                Ok(program) => program,
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
                    continue;
                }
            };
            let (from, to) = UnixDatagram::pair().expect("a pair of sockets");
            let to = OwnedFd::from(to);
            crate::sys::packet::set(&to, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, &program.as_raw_fd())
                .expect("attached");
            // What a filter refuses is gone without a word, so it is the other end that tells.
            from.set_nonblocking(true).expect("non-blocking");
            assert_eq!(from.send(&[0x45; 40]).ok(), Some(40));
            let mut heard = [0; 64];
            assert_eq!(crate::sys::read(to.as_fd(), &mut heard).ok().flatten(), Some(40));
        }
    }
}
