//! Jumps, calls, returns and loops.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::arch::x86_64::vector;

use super::cpu::Cpu;
use super::decode::gpr;
use super::int::Int;
use super::int::data::condition;
use super::op::{Exec, Handler, Op, Stop, flag};

/// Continues at `target`.
#[inline(always)]
pub(super) fn jump(cpu: &mut Cpu, op: &Op, target: u64) -> Exec {
    cpu.rip = if op.flags & flag::CODE32 != 0 { narrow(op, target) } else { target };
    Err(Stop::Branch)
}

#[inline(never)]
fn narrow(op: &Op, target: u64) -> u64 {
    if op.flags & flag::IP16 != 0 { target as u16 as u64 } else { target as u32 as u64 }
}

/// #GP(0) where no code can be: the branch itself faults, not what it leads to.
#[inline(always)]
fn check_target(cpu: &mut Cpu, to: u64) -> Exec {
    if (to as i64) << 16 >> 16 == to as i64 { Ok(()) } else { Err(cpu.gp()) }
}

#[inline(always)]
fn target(cpu: &Cpu, op: &Op) -> u64 {
    cpu.regs[16].wrapping_add(op.imm)
}

fn jmp(cpu: &mut Cpu, op: &Op) -> Exec {
    jump(cpu, op, target(cpu, op))
}

fn jcc<const CC: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.flags.cond(CC) { jump(cpu, op, target(cpu, op)) } else { Ok(()) }
}

fn jmp_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let to = cpu.get::<T>(op.src).to_u64();
    check_target(cpu, to)?;
    jump(cpu, op, to)
}
fn jmp_m<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let to = cpu.load::<T>(op)?;
    check_target(cpu, to.to_u64())?;
    jump(cpu, op, to.to_u64())
}

fn call<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.push(T::from_u64(cpu.next_ip(op)))?;
    jump(cpu, op, target(cpu, op))
}
/// The return address is written even where the branch then faults.
fn call_to<T: Int>(cpu: &mut Cpu, op: &Op, to: T) -> Exec {
    let rsp = cpu.regs[4];
    cpu.push(T::from_u64(cpu.next_ip(op)))?;
    if let Err(stop) = check_target(cpu, to.to_u64()) {
        cpu.regs[4] = rsp;
        return Err(stop);
    }
    jump(cpu, op, to.to_u64())
}
fn call_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let to = cpu.get::<T>(op.src);
    call_to::<T>(cpu, op, to)
}
fn call_m<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let to = cpu.load::<T>(op)?;
    call_to::<T>(cpu, op, to)
}
fn ret<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let rsp = cpu.regs[4];
    let to = cpu.pop::<T>()?;
    if let Err(stop) = check_target(cpu, to.to_u64()) {
        cpu.regs[4] = rsp;
        return Err(stop);
    }
    cpu.set_rsp(cpu.regs[4].wrapping_add(op.imm));
    jump(cpu, op, to.to_u64())
}

/// rCX as wide as the address size says.
fn counter(cpu: &Cpu, op: &Op) -> u64 {
    match op.extra {
        2 => cpu.get::<u16>(8) as u64,
        4 => cpu.get::<u32>(8) as u64,
        _ => cpu.regs[1],
    }
}

fn jcxz(cpu: &mut Cpu, op: &Op) -> Exec {
    if counter(cpu, op) == 0 { jump(cpu, op, target(cpu, op)) } else { Ok(()) }
}

/// LOOP (`WANT` 2), LOOPE (1), LOOPNE (0).
fn loop_<const WANT: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let n = counter(cpu, op).wrapping_sub(1);
    match op.extra {
        2 => cpu.set(8, n as u16),
        4 => cpu.set(8, n as u32),
        _ => cpu.set(8, n),
    }
    let taken = counter(cpu, op) != 0
        && match WANT {
            0 => !cpu.flags.zf(),
            1 => cpu.flags.zf(),
            _ => true,
        };
    if taken { jump(cpu, op, target(cpu, op)) } else { Ok(()) }
}

fn ud(cpu: &mut Cpu, _: &Op) -> Exec {
    Err(cpu.ud())
}
fn int3(cpu: &mut Cpu, op: &Op) -> Exec {
    super::exception::software_interrupt(cpu, op, vector::BP)
}
fn into(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.flags.of() { super::exception::software_interrupt(cpu, op, vector::OF) } else { Ok(()) }
}
fn int_n(cpu: &mut Cpu, op: &Op) -> Exec {
    super::exception::software_interrupt(cpu, op, op.imm as u8)
}
fn int1(cpu: &mut Cpu, op: &Op) -> Exec {
    super::exception::int1(cpu, op)
}

fn bound<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let index = cpu.get::<T>(op.dst).sext() as i64;
    let low = cpu.load::<T>(op)?.sext() as i64;
    if index < low {
        return Err(cpu.raise(vector::BR, None));
    }
    let mut second = *op;
    second.disp = op.disp.wrapping_add(T::BYTES as i64);
    let high = cpu.load::<T>(&second)?.sext() as i64;
    if index > high { Err(cpu.raise(vector::BR, None)) } else { Ok(()) }
}

fn indirect(ins: &Instruction, op: &mut Op, r: [Handler; 3], m: [Handler; 3]) -> Option<Handler> {
    let register = ins.op0_kind() == OpKind::Register;
    if register {
        op.src = gpr(ins.op0_register());
    }
    let size = super::decode::operand_size(ins, 0);
    let i = match size {
        2 => 0,
        4 => 1,
        8 => 2,
        _ => return None,
    };
    Some(if register { r[i] } else { m[i] })
}

const JCC: [Handler; 16] = [
    jcc::<0>, jcc::<1>, jcc::<2>, jcc::<3>, jcc::<4>, jcc::<5>, jcc::<6>, jcc::<7>, jcc::<8>, jcc::<9>,
    jcc::<10>, jcc::<11>, jcc::<12>, jcc::<13>, jcc::<14>, jcc::<15>,
];

fn loop_counter(code: Code) -> u16 {
    use Code::*;
    match code {
        Jcxz_rel8_16 | Jcxz_rel8_32 | Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX
        | Loope_rel8_32_CX | Loopne_rel8_16_CX | Loopne_rel8_32_CX => 2,
        Jecxz_rel8_16 | Jecxz_rel8_32 | Jecxz_rel8_64 | Loop_rel8_16_ECX | Loop_rel8_32_ECX
        | Loop_rel8_64_ECX | Loope_rel8_16_ECX | Loope_rel8_32_ECX | Loope_rel8_64_ECX
        | Loopne_rel8_16_ECX | Loopne_rel8_32_ECX | Loopne_rel8_64_ECX => 4,
        _ => 8,
    }
}

/// Handler for the instruction, if it is one of this family.
pub(super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let near = matches!(ins.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    if near {
        op.imm = ins.near_branch_target();
        if ins.op0_kind() == OpKind::NearBranch16 {
            op.flags |= flag::IP16;
        }
        if ins.code().is_jcc_short_or_near() {
            return Some(JCC[condition(ins)? as usize]);
        }
    }
    match ins.mnemonic() {
        Mnemonic::Jmp if near => Some(jmp),
        Mnemonic::Jmp if ins.is_jmp_near_indirect() => indirect(
            ins,
            op,
            [jmp_r::<u16>, jmp_r::<u32>, jmp_r::<u64>],
            [jmp_m::<u16>, jmp_m::<u32>, jmp_m::<u64>],
        ),
        Mnemonic::Call if op.flags & flag::IP16 != 0 => Some(call::<u16>),
        Mnemonic::Call if near => Some(if op.flags & flag::CODE32 != 0 { call::<u32> } else { call::<u64> }),
        Mnemonic::Call if ins.is_call_near_indirect() => indirect(
            ins,
            op,
            [call_r::<u16>, call_r::<u32>, call_r::<u64>],
            [call_m::<u16>, call_m::<u32>, call_m::<u64>],
        ),
        Mnemonic::Ret => {
            if ins.op_count() > 0 {
                op.imm = ins.immediate16() as u64;
            }
            Some(match ins.code() {
                Code::Retnq | Code::Retnq_imm16 => ret::<u64>,
                Code::Retnd | Code::Retnd_imm16 => ret::<u32>,
                _ => ret::<u16>,
            })
        }
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => {
            op.extra = loop_counter(ins.code());
            Some(jcxz)
        }
        Mnemonic::Loop => {
            op.extra = loop_counter(ins.code());
            Some(loop_::<2>)
        }
        Mnemonic::Loope => {
            op.extra = loop_counter(ins.code());
            Some(loop_::<1>)
        }
        Mnemonic::Loopne => {
            op.extra = loop_counter(ins.code());
            Some(loop_::<0>)
        }
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => Some(ud),
        Mnemonic::Int3 => Some(int3),
        Mnemonic::Int1 => Some(int1),
        Mnemonic::Into => Some(into),
        Mnemonic::Int => {
            op.imm = ins.immediate8() as u64;
            Some(int_n)
        }
        Mnemonic::Bound => {
            op.dst = gpr(ins.op0_register());
            Some(if ins.op0_register().size() == 2 { bound::<u16> } else { bound::<u32> })
        }
        _ => None,
    }
}
