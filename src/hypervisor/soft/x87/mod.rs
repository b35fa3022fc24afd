//! x87 instructions, FXSAVE and FXRSTOR.
//!
//! Computing is [`super::fp`]'s; here are the register stack, the tags, the status word and the
//! order of things: a *waiting* instruction first reports what an earlier one left pending (#MF),
//! then reads memory, then looks at the stack, then computes, and changes state only if none of
//! the exceptions before the computation is unmasked.
//!
//! Instruction and data pointers are kept as processors with FDP_EXCPTN_ONLY and without FPU CS
//! and DS do: FIP at every computing instruction, FDP and FOP only at an unmasked exception, both
//! selectors zero. With CR0.NE clear a pending exception is ignored: there is no FERR# line.

mod arith;
mod control;
mod save;
mod stack;
#[cfg(test)]
mod tests;
mod transfer;

use iced_x86::Instruction;

use super::op::{Handler, Op};

/// Handler for the instruction, if it is one of this family.
pub(super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    arith::lower(ins, op)
        .or_else(|| transfer::lower(ins, op))
        .or_else(|| control::lower(ins, op))
        .or_else(|| save::lower(ins, op))
}

/// Number of an `ST(i)` operand.
fn register(ins: &Instruction, operand: u32) -> u8 {
    (ins.op_register(operand).number() & 7) as u8
}
