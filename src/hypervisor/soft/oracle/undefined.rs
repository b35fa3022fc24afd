//! Which results the manual leaves open, and which are approximations.
//!
//! Where Intel's manual calls a result undefined but every processor of the last decades agrees, the
//! oracle compares it all the same: BSF and BSR of zero leave their destination alone.

use iced_x86::{Instruction, Mnemonic, OpKind, RflagsBits};

use crate::arch::x86_64::rflags;

/// Bits of RFLAGS for the status bits among iced's `RflagsBits`.
fn to_rflags(bits: u32) -> u64 {
    [
        (RflagsBits::OF, rflags::OF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
    ]
    .iter()
    .filter(|(from, _)| bits & from != 0)
    .map(|(_, to)| to)
    .sum()
}

/// Flags that `instruction` depends on.
pub(super) fn flags_read(instruction: &Instruction) -> u64 {
    let through_carry = matches!(instruction.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr);
    // The count may still be filled in.
    to_rflags(instruction.rflags_read()) | if through_carry { rflags::CF } else { 0 }
}

/// Undefined flags after `instruction`, when `before` were undefined before it.
pub(super) fn undefined_after(instruction: &Instruction, before: u64) -> u64 {
    use Mnemonic as M;
    let mut undefined = to_rflags(instruction.rflags_undefined());
    let mut defined =
        to_rflags(instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set());
    let counted = matches!(
        instruction.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    );
    if counted {
        let last = instruction.op_count() - 1;
        let variable = instruction.op_kind(last) == OpKind::Register;
        // A count of zero, known only at run time, changes nothing.
        if variable {
            defined = 0;
        }
        let bits = match instruction.op0_kind() {
            OpKind::Register => instruction.op0_register().size() * 8,
            _ => instruction.memory_size().size() * 8,
        };
        let beyond = variable || (instruction.immediate(last) & 31) as usize >= bits;
        if beyond && bits < 32 && matches!(instruction.mnemonic(), M::Shl | M::Sal | M::Shr) {
            undefined |= rflags::CF;
        }
    }
    if instruction.has_rep_prefix() || instruction.has_repne_prefix() {
        defined = 0;
    }
    before & !defined | undefined
}

/// Instructions whose result is an approximation that may differ between processors.
pub(super) fn approximate(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    reciprocal(mnemonic)
        || matches!(
            mnemonic,
            M::Fsin | M::Fcos | M::Fsincos | M::Fptan | M::Fpatan | M::F2xm1 | M::Fyl2x | M::Fyl2xp1
        )
}

/// The approximations to 12 bits.
pub(super) fn reciprocal(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss)
}

/// Instructions that touch memory in several steps, in an order that is the processor's own. When one
/// faults, which of its bytes is blamed, and what it has written by then, may differ.
pub(super) fn many_steps(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Fnsave
            | M::Frstor
            | M::Fnstenv
            | M::Fldenv
            | M::Fstp
            | M::Fbstp
            | M::Maskmovq
            | M::Maskmovdqu
    )
}

/// Instructions that define a result only for small operands.
pub(super) fn small_operand(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::F2xm1 | Mnemonic::Fyl2xp1)
}
