//! Descriptors, segment register loads and far transfers.

mod descriptor;
mod far;
mod iret;
mod load;

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::arch::x86_64::seg;

use super::op::{Handler, Op};
pub(super) use descriptor::flat;
use far::*;
use iret::*;
use load::*;

fn seg_number(r: Register) -> Option<u16> {
    r.is_segment_register().then(|| r.number() as u16)
}

/// Handler for the instruction, if it is one of this family.
pub(super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let far = matches!(ins.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32);
    macro_rules! by_width {
        ($w:expr, $f:ident $(, $c:expr)*) => {
            match $w {
                2 => Some($f::<$($c,)* u16> as Handler),
                4 => Some($f::<$($c,)* u32> as Handler),
                _ => Some($f::<$($c,)* u64> as Handler),
            }
        };
    }
    match ins.mnemonic() {
        Mnemonic::Mov => match (ins.op0_kind(), ins.op1_kind()) {
            (OpKind::Register, source) if ins.op0_register().is_segment_register() => {
                op.extra = seg_number(ins.op0_register())?;
                if op.extra as usize == seg::CS {
                    return None;
                }
                if source == OpKind::Memory {
                    return Some(mov_to_seg_m);
                }
                op.src = super::decode::gpr(ins.op1_register());
                Some(mov_to_seg_r)
            }
            (dest, OpKind::Register) if ins.op1_register().is_segment_register() => {
                op.extra = seg_number(ins.op1_register())?;
                if dest == OpKind::Memory {
                    return Some(mov_from_seg_m);
                }
                op.dst = super::decode::gpr(ins.op0_register());
                by_width!(ins.op0_register().size(), mov_from_seg_r)
            }
            _ => None,
        },
        Mnemonic::Push if ins.op0_kind() == OpKind::Register => {
            op.extra = seg_number(ins.op0_register())?;
            by_width!(ins.stack_pointer_increment().unsigned_abs(), push_seg)
        }
        Mnemonic::Pop if ins.op0_kind() == OpKind::Register => {
            op.extra = seg_number(ins.op0_register())?;
            by_width!(ins.stack_pointer_increment().unsigned_abs(), pop_seg)
        }
        Mnemonic::Lss | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lds | Mnemonic::Les => {
            op.extra = match ins.mnemonic() {
                Mnemonic::Lss => seg::SS,
                Mnemonic::Lfs => seg::FS,
                Mnemonic::Lgs => seg::GS,
                Mnemonic::Lds => seg::DS,
                _ => seg::ES,
            } as u16;
            op.dst = super::decode::gpr(ins.op0_register());
            by_width!(ins.op0_register().size(), load_far_pointer)
        }
        Mnemonic::Jmp | Mnemonic::Call => {
            let call = ins.mnemonic() == Mnemonic::Call;
            if far {
                op.extra = ins.far_branch_selector();
                let wide = ins.op0_kind() == OpKind::FarBranch32;
                op.imm = if wide { ins.far_branch32() as u64 } else { ins.far_branch16() as u64 };
                let width = if wide { 4 } else { 2 };
                return if call { by_width!(width, far_i, true) } else { by_width!(width, far_i, false) };
            }
            let width = match ins.code() {
                Code::Jmp_m1616 | Code::Call_m1616 => 2,
                Code::Jmp_m1632 | Code::Call_m1632 => 4,
                Code::Jmp_m1664 | Code::Call_m1664 => 8,
                _ => return None,
            };
            if call { by_width!(width, far_m, true) } else { by_width!(width, far_m, false) }
        }
        Mnemonic::Retf => {
            if ins.op_count() > 0 {
                op.imm = ins.immediate16() as u64;
            }
            by_width!(
                match ins.code() {
                    Code::Retfw | Code::Retfw_imm16 => 2,
                    Code::Retfd | Code::Retfd_imm16 => 4,
                    _ => 8,
                },
                retf
            )
        }
        Mnemonic::Iret => Some(iret::<u16>),
        Mnemonic::Iretd => Some(iret::<u32>),
        Mnemonic::Iretq => Some(iret::<u64>),
        Mnemonic::Lar | Mnemonic::Lsl => {
            let memory = ins.op1_kind() == OpKind::Memory;
            op.extra = memory as u16;
            op.dst = super::decode::gpr(ins.op0_register());
            if !memory {
                op.src = super::decode::gpr(ins.op1_register());
            }
            let width = ins.op0_register().size();
            if ins.mnemonic() == Mnemonic::Lar { by_width!(width, lar) } else { by_width!(width, lsl) }
        }
        Mnemonic::Arpl => {
            let memory = ins.op0_kind() == OpKind::Memory;
            op.src = super::decode::gpr(ins.op1_register());
            if !memory {
                op.dst = super::decode::gpr(ins.op0_register());
            }
            Some(if memory { arpl::<true> } else { arpl::<false> })
        }
        Mnemonic::Verr | Mnemonic::Verw => {
            let memory = ins.op0_kind() == OpKind::Memory;
            op.extra = memory as u16;
            if !memory {
                op.src = super::decode::gpr(ins.op0_register());
            }
            Some(if ins.mnemonic() == Mnemonic::Verr { verify::<false> } else { verify::<true> })
        }
        _ => None,
    }
}
