//! MMX and SSE: for now the pure operations.

mod crypto;
mod int;
mod lane;
mod native;
mod shuffle;
mod text;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

use iced_x86::Instruction;

use super::op::{Handler, Op};

/// Handler for the instruction, if it is one of this family.
pub(super) fn lower(_: &Instruction, _: &mut Op) -> Option<Handler> {
    None
}
