//! The compact operation that an instruction is decoded to, and what its handler answers.

use super::cpu::Cpu;

/// Executes one operation. On `Err(Stop::Fault)` the handler has changed no architectural state
/// (except what the manual says an aborted instruction changes), and the exception is in
/// `cpu.fault`.
pub(super) type Handler = fn(&mut Cpu, &Op) -> Exec;

/// `Ok`: go on with the next operation of the block.
pub(super) type Exec = Result<(), Stop>;

/// Why the block ends with this operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stop {
    /// `cpu.rip` has been set.
    Branch,
    /// The instruction is complete; look at events before the next one, which follows it.
    Next,
    /// The instruction is to be executed again (an interrupted string operation).
    Again,
    /// `cpu.fault` is to be delivered, with the instruction's own address.
    Fault,
}

/// Index of the register slot that holds the address of the running block.
pub(super) const SLOT_BLOCK: u8 = 16;
/// Index of the register slot that is always zero.
pub(super) const SLOT_ZERO: u8 = 17;
/// Index into `Cpu::seg_base` that is always zero.
pub(super) const SEG_FLAT: u8 = 6;

/// Bits of [`Op::flags`].
pub(super) mod flag {
    /// The effective address is truncated to 32 bits before the segment base is added.
    pub(crate) const ADDR32: u8 = 1;
    /// The memory operand is relative to SS, so that a non-canonical address is #SS, not #GP.
    pub(crate) const STACK: u8 = 2;
    /// The block ends after this operation, whatever it answers.
    pub(crate) const ENDS: u8 = 4;
    /// The instruction has a LOCK prefix (or is XCHG with memory).
    pub(crate) const LOCK: u8 = 8;
    /// 32-bit code (compatibility mode).
    pub(crate) const CODE32: u8 = 16;
    /// The effective address is truncated to 16 bits.
    pub(crate) const ADDR16: u8 = 32;
    /// A direct branch whose target is truncated to 16 bits (32-bit code with an operand-size prefix).
    pub(crate) const IP16: u8 = 64;
}

/// One decoded instruction. General registers are named by their *byte offset* in the register
/// file, so that AH is RAX's offset plus one; vector and x87 registers by their number.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Op {
    pub(super) run: Handler,
    /// Immediate, sign-extended; for direct branches the target's distance from the block's start.
    pub(super) imm: u64,
    /// Displacement; RIP-relative operands have base [`SLOT_BLOCK`] and the distance from there.
    pub(super) disp: i64,
    /// Register slot (0..=17) of the base.
    pub(super) base: u8,
    /// Register slot of the index.
    pub(super) index: u8,
    /// Shift of the index, 0..=3.
    pub(super) scale: u8,
    /// Index into `Cpu::seg_base`.
    pub(super) seg: u8,
    /// Destination register.
    pub(super) dst: u8,
    /// Source register.
    pub(super) src: u8,
    /// Length of the instruction in bytes.
    pub(super) len: u8,
    /// See [`flag`].
    pub(super) flags: u8,
    /// Distance of the instruction from the block's start, in bytes.
    pub(super) off: u16,
    /// Family-specific.
    pub(super) extra: u16,
}
