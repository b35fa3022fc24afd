//! The tables of programs. Error codes and addresses that must come of them are from Intel's manual, volume 2
//! (each instruction's exceptions) and volume 3 (the chapter on interrupts and exceptions).

mod exceptions;
mod memory;
mod privileged;
mod segments;
mod transfers;

use super::Program;

/// All programs.
pub(super) fn all() -> Vec<Program> {
    let mut all = exceptions::programs();
    all.extend(memory::programs());
    all.extend(privileged::programs());
    all.extend(segments::programs());
    all.extend(transfers::programs());
    all
}
