//! Which queue of a device, and so which worker, a flow belongs to: a small BPF program that the kernel asks.
//!
//! It adds up addresses and ports so that both directions of a flow, and all fragments between two hosts, go to one
//! queue: the worker that forwards the data forwards the acknowledgements, with the same cache lines and one wake-up. TAP devices
//! and packet socket groups take the same program.
//!
//! The kernel's own ways do the same by dissecting each frame and hashing with SipHash: on a TAP once to choose the queue
//! and once again for every frame written, to remember where its flow lives. With this program neither happens, which
//! is a tenth of the work on a small frame.

use std::io;
use std::os::fd::OwnedFd;

use super::bpf::{Instruction, load_socket_filter};

/// Opcodes, each a class, a size or operation, and a mode (`Documentation/bpf/standardization/instruction-set.rst`).
mod op {
    pub(super) const MOV: u8 = 0xbf;
    pub(super) const MOV_IMM: u8 = 0xb7;
    pub(super) const XOR: u8 = 0xaf;
    pub(super) const AND_IMM: u8 = 0x57;
    pub(super) const SHL_IMM: u8 = 0x67;
    pub(super) const SHR_IMM: u8 = 0x77;
    pub(super) const MUL32_IMM: u8 = 0x24;
    pub(super) const SHR32_IMM: u8 = 0x74;
    pub(super) const JUMP: u8 = 0x05;
    pub(super) const JUMP_EQ: u8 = 0x15;
    pub(super) const JUMP_NE: u8 = 0x55;
    pub(super) const JUMP_SET: u8 = 0x45;
    pub(super) const EXIT: u8 = 0x95;
    /// r0 = a word of the context.
    pub(super) const LOAD_CONTEXT: u8 = 0x61;
    /// r0 = the frame's word, half word or byte, in host order; out of the frame ends the program with 0.
    pub(super) const FRAME_WORD: u8 = 0x20;
    pub(super) const FRAME_HALF: u8 = 0x28;
    pub(super) const FRAME_BYTE: u8 = 0x30;
    /// The same at a register's offset.
    pub(super) const FRAME_WORD_AT: u8 = 0x40;
}

/// `SKF_NET_OFF`: offsets from here count from the IP header, whatever comes before it.
const NET: i32 = -0x10_0000;
/// Offset of `protocol` in `struct __sk_buff`.
const PROTOCOL: i16 = 16;
const SUM: u8 = 7;
const FRAME: u8 = 6;

const fn op(opcode: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { opcode, registers: from << 4 | to, offset, immediate }
}

const fn load(opcode: u8, at: i32) -> Instruction {
    op(opcode, 0, 0, 0, NET + at)
}

/// `sum ^= r0`
const fn add() -> Instruction {
    op(op::XOR, SUM, 0, 0, 0)
}

/// The ethertype as it lies in the context: in network order.
const fn network(ethertype: u16) -> i32 {
    ethertype.to_be() as i32
}

/// Jumps count from the next instruction; `at` is this one's index and `to` the target's.
// Indices into a program of some dozen instructions.
#[allow(clippy::cast_possible_truncation)]
const fn jump(opcode: u8, immediate: i32, at: usize, to: usize) -> Instruction {
    op(opcode, 0, 0, (to as i32 - at as i32 - 1) as i16, immediate)
}

const IPV4: usize = 6;
const IPV6: usize = 18;
const PORTS: usize = 38;
const FINISH: usize = 44;

#[rustfmt::skip]
static PROGRAM: [Instruction; 48] = [
    /*  0 */ op(op::MOV, FRAME, 1, 0, 0),
    /*  1 */ op(op::MOV_IMM, SUM, 0, 0, 0),
    /*  2 */ op(op::LOAD_CONTEXT, 0, FRAME, PROTOCOL, 0),
    /*  3 */ jump(op::JUMP_EQ, network(0x0800), 3, IPV4),
    /*  4 */ jump(op::JUMP_EQ, network(0x86dd), 4, IPV6),
    /*  5 */ jump(op::JUMP, 0, 5, FINISH),
    /*  6 */ load(op::FRAME_WORD, 12), add(),
    /*  8 */ load(op::FRAME_WORD, 16), add(),
    /* 10 */ load(op::FRAME_HALF, 6),
    /* 11 */ jump(op::JUMP_SET, 0x3fff, 11, FINISH),
    /* 12 */ load(op::FRAME_BYTE, 0),
    /* 13 */ op(op::AND_IMM, 0, 0, 0, 0xf),
    /* 14 */ op(op::SHL_IMM, 0, 0, 0, 2),
    /* 15 */ op(op::MOV, 8, 0, 0, 0),
    /* 16 */ load(op::FRAME_BYTE, 9),
    /* 17 */ jump(op::JUMP, 0, 17, PORTS - 2),
    /* 18 */ load(op::FRAME_WORD, 8), add(), load(op::FRAME_WORD, 12), add(),
    /* 22 */ load(op::FRAME_WORD, 16), add(), load(op::FRAME_WORD, 20), add(),
    /* 26 */ load(op::FRAME_WORD, 24), add(), load(op::FRAME_WORD, 28), add(),
    /* 30 */ load(op::FRAME_WORD, 32), add(), load(op::FRAME_WORD, 36), add(),
    /* 34 */ op(op::MOV_IMM, 8, 0, 0, 40),
    /* 35 */ load(op::FRAME_BYTE, 6),
    /* 36 */ jump(op::JUMP_EQ, 6, 36, PORTS),
    /* 37 */ jump(op::JUMP_NE, 17, 37, FINISH),
    /* 38 */ op(op::FRAME_WORD_AT, 0, 8, 0, NET),
    /* 39 */ op(op::MOV, 1, 0, 0, 0),
    /* 40 */ op(op::SHR_IMM, 1, 0, 0, 16),
    /* 41 */ op(op::XOR, 0, 1, 0, 0),
    /* 42 */ op(op::AND_IMM, 0, 0, 0, 0xffff),
    /* 43 */ add(),
    /* 44 */ op(op::MUL32_IMM, SUM, 0, 0, 0x9e37_79b1_u32.cast_signed()),
    /* 45 */ op(op::SHR32_IMM, SUM, 0, 0, 16),
    /* 46 */ op(op::MOV, 0, SUM, 0, 0),
    /* 47 */ op(op::EXIT, 0, 0, 0, 0),
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
