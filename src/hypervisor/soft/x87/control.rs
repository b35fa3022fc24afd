//! Control and status words, and FWAIT. None of these is a computing instruction: they leave the
//! instruction pointer alone, and those that do not wait ignore pending exceptions.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::arch::x86_64::{FpuState, cr0, vector};

use super::super::cpu::Cpu;
use super::super::op::{Exec, Handler, Op};
use super::stack::{check, pending, status, summarize};

/// #NM only.
pub(super) fn available(cpu: &mut Cpu) -> Exec {
    if cpu.fpu_ok { Ok(()) } else { Err(cpu.fpu_unavailable()) }
}

/// The control word that `v` makes: reserved bits clear, bit 6 set.
pub(super) fn control_word(v: u16) -> u16 {
    v & 0x1f3f | 0x40
}

/// FNINIT. The registers keep their contents.
pub(super) fn initialize(fpu: &mut FpuState) {
    fpu.control = 0x37f;
    fpu.status = 0;
    fpu.tag = 0;
    fpu.opcode = 0;
    fpu.ip = 0;
    fpu.dp = 0;
}

fn fninit(cpu: &mut Cpu, _: &Op) -> Exec {
    available(cpu)?;
    initialize(&mut cpu.fpu);
    Ok(())
}

fn fnclex(cpu: &mut Cpu, _: &Op) -> Exec {
    available(cpu)?;
    cpu.fpu.status &= !(0x7f | status::ES | status::B);
    Ok(())
}

fn fldcw(cpu: &mut Cpu, op: &Op) -> Exec {
    check(cpu)?;
    let v = cpu.load::<u16>(op)?;
    cpu.fpu.control = control_word(v);
    summarize(&mut cpu.fpu);
    Ok(())
}

fn fnstcw(cpu: &mut Cpu, op: &Op) -> Exec {
    available(cpu)?;
    cpu.store(op, cpu.fpu.control)
}

fn fnstsw_m16(cpu: &mut Cpu, op: &Op) -> Exec {
    available(cpu)?;
    cpu.store(op, cpu.fpu.status)
}

fn fnstsw_ax(cpu: &mut Cpu, _: &Op) -> Exec {
    available(cpu)?;
    cpu.set::<u16>(0, cpu.fpu.status);
    Ok(())
}

fn fwait(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        return Err(cpu.raise(vector::NM, None));
    }
    if cpu.fpu.status & status::ES != 0 {
        return pending(cpu);
    }
    Ok(())
}

/// FNENI, FNDISI, FNSETPM: nothing since the 387.
fn nothing(cpu: &mut Cpu, _: &Op) -> Exec {
    available(cpu)
}

pub(super) fn lower(ins: &Instruction, _: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    Some(match ins.mnemonic() {
        M::Fninit => fninit,
        M::Fnclex => fnclex,
        M::Fldcw => fldcw,
        M::Fnstcw => fnstcw,
        M::Fnstsw if ins.op0_kind() == OpKind::Memory => fnstsw_m16,
        M::Fnstsw => fnstsw_ax,
        M::Wait => fwait,
        M::Fneni | M::Fndisi | M::Fnsetpm => nothing,
        _ => return None,
    })
}
