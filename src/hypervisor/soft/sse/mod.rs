//! MMX and SSE up to SSE4.2, AES, PCLMULQDQ and CRC32.
//!
//! Two layers. The pure operations know nothing of the processor: [`int`], [`shuffle`], [`text`],
//! [`crypto`] and [`approximate`] over [`lane`]s, with [`native`] for the hot ones; floating point
//! is [`super::fp`]. The handlers take operands from registers and memory to them: [`packed`],
//! [`transfer`], [`float`], [`convert`], [`misc`], by way of [`access`].
//!
//! How an instruction fails: #NM or #UD while the operating system has not enabled these registers,
//! #GP for a 16-byte operand that is not aligned, what its memory operand raises, #MF (MMX) for a
//! waiting x87 exception, #XM for a float exception that MXCSR does not mask. In each case the
//! destination is unchanged.

mod access;
mod approximate;
mod convert;
mod crypto;
mod float;
mod int;
mod lane;
mod misc;
mod native;
mod packed;
mod shuffle;
mod text;
mod transfer;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

use iced_x86::{EncodingKind, Instruction};

use super::op::{Handler, Op};

/// The handler for `ins` if it belongs here; fills in the registers and the immediate of `op`.
pub(super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    if ins.code().encoding() != EncodingKind::Legacy || ins.is_string_instruction() || ins.has_lock_prefix() {
        return None;
    }
    transfer::lower(ins, op)
        .or_else(|| packed::lower(ins, op))
        .or_else(|| float::lower(ins, op))
        .or_else(|| convert::lower(ins, op))
        .or_else(|| misc::lower(ins, op))
}
