//! Instruction family.

use iced_x86::Instruction;

use super::op::{Handler, Op};

/// Handler for the instruction, if it is one of this family.
pub(super) fn lower(_: &Instruction, _: &mut Op) -> Option<Handler> {
    None
}
