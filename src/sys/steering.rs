//! Which queue of a device, and so which worker, a flow belongs to: a small BPF program that the kernel asks.
//!
//! It adds up addresses, and of TCP the ports, so that both directions of a flow go to one queue: the worker that forwards the
//! data forwards the acknowledgements, with the same cache lines and one wake-up. TAP devices and packet socket groups take
//! the same program.
//!
//! A flow of UDP is all UDP between two hosts, and so is one of any protocol but TCP. Fragments have no ports, and a program that
//! sends datagrams of all sizes has some of them fragmented: by their ports, the whole ones would overtake the others at another worker.
//! DF does not tell the two kinds of senders apart, because Linux sets it on whole datagrams of a socket whose longer
//! ones it fragments. Network cards choose their queues in the same way for this reason ("sd" of ethtool's rx-flow-hash).
//! Excepted are VXLAN and Geneve, by their destination port: a source port of theirs stands for a flow, there are many between two
//! hosts, and who runs a tunnel sees to it that its packets are not fragmented. TCP is not fragmented by senders (RFC 8900).
//!
//! The kernel's own ways do the same by dissecting each frame and hashing with SipHash: on a TAP once to choose the queue
//! and once again for every frame written, to remember where its flow lives. With this program neither happens, which
//! is a tenth of the work on a small frame.

use std::io;
use std::os::fd::OwnedFd;

use super::assembler::{NET, PROTOCOL, jump, load, network, op};
use super::bpf::{Instruction, load_socket_filter};

const TCP: i32 = 6;
const UDP: i32 = 17;
/// VXLAN (RFC 7348), VXLAN by Linux's default, Geneve (RFC 8926).
const TUNNELS: [i32; 3] = [4789, 8472, 6081];

const SUM: u8 = 7;
const FRAME: u8 = 6;
/// Where the transport header begins, behind the start of the IP header.
const OFFSET: u8 = 8;
/// Of IPv6, as far as it was read.
const ADDRESS: u8 = 9;
/// To multiply by: 2^32 over the golden ratio.
const ODD: i32 = 0x9e37_79b1_u32.cast_signed();

/// `sum ^= r0`
const fn add() -> Instruction {
    op(op::XOR, SUM, 0, 0, 0)
}

// These four, in a row, spread the bits of r0: the hosts 10.0.1.n and 10.0.2.n must not be one flow for all n, which a bare XOR
// would make of them.
const STIR1: Instruction = op(op::MUL32_IMM, 0, 0, 0, ODD);
const STIR2: Instruction = op(op::MOV, 1, 0, 0, 0);
const STIR3: Instruction = op(op::SHR32_IMM, 1, 0, 0, 15);
const STIR4: Instruction = op(op::XOR, 0, 1, 0, 0);

const IPV4: usize = 6;
const IPV6: usize = 26;
const CHOOSE: usize = 54;
const PORTS: usize = 60;
const FINISH: usize = 66;

#[rustfmt::skip]
static PROGRAM: [Instruction; 70] = [
    /*  0 */ op(op::MOV, FRAME, 1, 0, 0),
    /*  1 */ op(op::MOV_IMM, SUM, 0, 0, 0),
    /*  2 */ op(op::LOAD_CONTEXT, 0, FRAME, PROTOCOL, 0),
    /*  3 */ jump(op::JUMP_EQ, network(0x0800), 3, IPV4),
    /*  4 */ jump(op::JUMP_EQ, network(0x86dd), 4, IPV6),
    /*  5 */ jump(op::JUMP, 0, 5, FINISH),
    /*  6 */ load(op::FRAME_WORD, 12), STIR1, STIR2, STIR3, STIR4, add(),
    /* 12 */ load(op::FRAME_WORD, 16), STIR1, STIR2, STIR3, STIR4, add(),
    /* 18 */ load(op::FRAME_HALF, 6),
    /* 19 */ jump(op::JUMP_SET, 0x3fff, 19, FINISH),
    /* 20 */ load(op::FRAME_BYTE, 0),
    /* 21 */ op(op::AND_IMM, 0, 0, 0, 0xf),
    /* 22 */ op(op::SHL_IMM, 0, 0, 0, 2),
    /* 23 */ op(op::MOV, OFFSET, 0, 0, 0),
    /* 24 */ load(op::FRAME_BYTE, 9),
    /* 25 */ jump(op::JUMP, 0, 25, CHOOSE),
    /* 26 */ load(op::FRAME_WORD, 8), op(op::MOV, ADDRESS, 0, 0, 0),
    /* 28 */ load(op::FRAME_WORD, 12), op(op::XOR, ADDRESS, 0, 0, 0),
    /* 30 */ load(op::FRAME_WORD, 16), op(op::XOR, ADDRESS, 0, 0, 0),
    /* 32 */ load(op::FRAME_WORD, 20), op(op::XOR, 0, ADDRESS, 0, 0), STIR1, STIR2, STIR3, STIR4, add(),
    /* 39 */ load(op::FRAME_WORD, 24), op(op::MOV, ADDRESS, 0, 0, 0),
    /* 41 */ load(op::FRAME_WORD, 28), op(op::XOR, ADDRESS, 0, 0, 0),
    /* 43 */ load(op::FRAME_WORD, 32), op(op::XOR, ADDRESS, 0, 0, 0),
    /* 45 */ load(op::FRAME_WORD, 36), op(op::XOR, 0, ADDRESS, 0, 0), STIR1, STIR2, STIR3, STIR4, add(),
    /* 52 */ op(op::MOV_IMM, OFFSET, 0, 0, 40),
    /* 53 */ load(op::FRAME_BYTE, 6),
    /* 54 */ jump(op::JUMP_EQ, TCP, 54, PORTS),
    /* 55 */ jump(op::JUMP_NE, UDP, 55, FINISH),
    /* 56 */ op(op::FRAME_HALF_AT, 0, OFFSET, 0, NET + 2),
    /* 57 */ jump(op::JUMP_EQ, TUNNELS[0], 57, PORTS),
    /* 58 */ jump(op::JUMP_EQ, TUNNELS[1], 58, PORTS),
    /* 59 */ jump(op::JUMP_NE, TUNNELS[2], 59, FINISH),
    /* 60 */ op(op::FRAME_WORD_AT, 0, OFFSET, 0, NET),
    /* 61 */ op(op::MOV, 1, 0, 0, 0),
    /* 62 */ op(op::SHR_IMM, 1, 0, 0, 16),
    /* 63 */ op(op::XOR, 0, 1, 0, 0),
    /* 64 */ op(op::AND_IMM, 0, 0, 0, 0xffff),
    /* 65 */ add(),
    /* 66 */ op(op::MUL32_IMM, SUM, 0, 0, ODD),
    /* 67 */ op(op::SHR32_IMM, SUM, 0, 0, 16),
    /* 68 */ op(op::MOV, 0, SUM, 0, 0),
    /* 69 */ op(op::EXIT, 0, 0, 0, 0),
];

/// The program, loaded. The kernel keeps it for as long as a device or socket group uses it.
///
/// # Errors
/// EPERM without CAP_BPF (or CAP_SYS_ADMIN before Linux 5.8), where the kernel does not let everybody load filters.
pub(super) fn by_flow() -> io::Result<OwnedFd> {
    load_socket_filter(*b"vswitch_flow\0\0\0\0", &PROGRAM)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_accepts_the_program() {
        match super::by_flow() {
            Ok(_) => {}
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}"),
        }
    }
}
