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

use super::assembler::{NET, PROTOCOL, jump, load, network, op};
use super::bpf::{Instruction, load_socket_filter};

const SUM: u8 = 7;
const FRAME: u8 = 6;

/// `sum ^= r0`
const fn add() -> Instruction {
    op(op::XOR, SUM, 0, 0, 0)
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
