//! Writing small BPF programs by hand: opcodes, and what makes an instruction of them.

use super::bpf::Instruction;

/// Opcodes, each a class, a size or operation, and a mode (`Documentation/bpf/standardization/instruction-set.rst`).
pub(super) mod op {
    pub(in crate::sys) const MOV: u8 = 0xbf;
    pub(in crate::sys) const MOV_IMM: u8 = 0xb7;
    pub(in crate::sys) const XOR: u8 = 0xaf;
    pub(in crate::sys) const AND_IMM: u8 = 0x57;
    pub(in crate::sys) const SHL_IMM: u8 = 0x67;
    pub(in crate::sys) const SHR_IMM: u8 = 0x77;
    pub(in crate::sys) const MUL32_IMM: u8 = 0x24;
    pub(in crate::sys) const SHR32_IMM: u8 = 0x74;
    pub(in crate::sys) const JUMP: u8 = 0x05;
    pub(in crate::sys) const JUMP_EQ: u8 = 0x15;
    pub(in crate::sys) const JUMP_NE: u8 = 0x55;
    pub(in crate::sys) const JUMP_SET: u8 = 0x45;
    pub(in crate::sys) const EXIT: u8 = 0x95;
    pub(in crate::sys) const ADD_IMM: u8 = 0x07;
    pub(in crate::sys) const JUMP_EQ_REG: u8 = 0x1d;
    /// A register = memory at another, and the other way round.
    pub(in crate::sys) const LOAD_BYTE: u8 = 0x71;
    pub(in crate::sys) const LOAD_WORD: u8 = 0x61;
    pub(in crate::sys) const LOAD_DOUBLE: u8 = 0x79;
    pub(in crate::sys) const STORE_BYTE: u8 = 0x73;
    pub(in crate::sys) const STORE_WORD: u8 = 0x63;
    pub(in crate::sys) const STORE_DOUBLE: u8 = 0x7b;
    /// Calls a helper, or with [`CALL_KERNEL`] as the source register a function of the kernel's by its BTF number.
    pub(in crate::sys) const CALL: u8 = 0x85;
    pub(in crate::sys) const CALL_KERNEL: u8 = 2;
    /// r0 = a word of the context.
    pub(in crate::sys) const LOAD_CONTEXT: u8 = 0x61;
    /// r0 = the frame's word, half word or byte, in host order; out of the frame ends the program with 0.
    pub(in crate::sys) const FRAME_WORD: u8 = 0x20;
    pub(in crate::sys) const FRAME_HALF: u8 = 0x28;
    pub(in crate::sys) const FRAME_BYTE: u8 = 0x30;
    /// The same at a register's offset.
    pub(in crate::sys) const FRAME_WORD_AT: u8 = 0x40;
    pub(in crate::sys) const FRAME_HALF_AT: u8 = 0x48;
}

/// `SKF_NET_OFF`: offsets from here count from the IP header, whatever comes before it.
pub(super) const NET: i32 = -0x10_0000;
/// Offset of `protocol` in `struct __sk_buff`.
pub(super) const PROTOCOL: i16 = 16;
/// Offset of `gso_size` in it.
pub(super) const GSO_SIZE: i16 = 176;

pub(super) const fn op(opcode: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { opcode, registers: from << 4 | to, offset, immediate }
}

/// Loads from the frame, `at` bytes behind the start of its IP header.
pub(super) const fn load(opcode: u8, at: i32) -> Instruction {
    op(opcode, 0, 0, 0, NET + at)
}

/// The ethertype as it lies in the context: in network order.
pub(super) const fn network(ethertype: u16) -> i32 {
    ethertype.to_be() as i32
}

/// Jumps count from the next instruction; `at` is this one's index and `to` the target's.
// Indices into a program of some dozen instructions.
#[allow(clippy::cast_possible_truncation)]
pub(super) const fn jump(opcode: u8, immediate: i32, at: usize, to: usize) -> Instruction {
    op(opcode, 0, 0, (to as i32 - at as i32 - 1) as i16, immediate)
}
