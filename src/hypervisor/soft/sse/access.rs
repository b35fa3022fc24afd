//! How handlers reach vector registers and 16-byte memory, and what must hold before they do.

use iced_x86::{Instruction, OpKind, Register};

use crate::arch::x86_64::{FpuState, cr0, vector};

use super::super::cpu::Cpu;
use super::super::decode::gpr;
use super::super::op::{Exec, Handler, Op, Stop};

/// Register-source and memory-source form of one instruction.
pub(super) type Forms = (Handler, Handler);

/// The register field of operand `r`: a general register's byte offset, else its number.
fn number(r: Register) -> u8 {
    if r.is_gpr() { gpr(r) } else { r.number() as u8 }
}

/// Fills in the registers (`dst` is the first operand, `src` the second) and the immediate.
pub(super) fn operands(ins: &Instruction, op: &mut Op) {
    for i in 0..ins.op_count() {
        match ins.op_kind(i) {
            OpKind::Register if i == 0 => op.dst = number(ins.op_register(i)),
            OpKind::Register if i == 1 => op.src = number(ins.op_register(i)),
            OpKind::Immediate8 => op.imm = ins.immediate8().into(),
            _ => {}
        }
    }
}

/// Whether operand `i` is a register.
pub(super) fn is_register(ins: &Instruction, i: u32) -> bool {
    ins.op_kind(i) == OpKind::Register
}

/// Whether operand `i` is an MMX register.
pub(super) fn is_mmx(ins: &Instruction, i: u32) -> bool {
    is_register(ins, i) && ins.op_register(i).is_mm()
}

/// The form that fits the second operand.
pub(super) fn by_source(ins: &Instruction, forms: Forms) -> Handler {
    if is_register(ins, 1) { forms.0 } else { forms.1 }
}

#[inline(always)]
pub(super) fn check_sse(cpu: &mut Cpu) -> Exec {
    if cpu.sse_ok { Ok(()) } else { Err(cpu.sse_unavailable()) }
}

#[inline(always)]
pub(super) fn check_mmx(cpu: &mut Cpu) -> Exec {
    // Bit 7 of the status word: an unmasked x87 exception waits.
    if cpu.fpu_ok && cpu.fpu.status & 0x80 == 0 { Ok(()) } else { Err(mmx_unavailable(cpu)) }
}

#[cold]
fn mmx_unavailable(cpu: &mut Cpu) -> Stop {
    if cpu.cr0 & cr0::EM != 0 {
        cpu.ud()
    } else if !cpu.fpu_ok {
        cpu.fpu_unavailable()
    } else {
        cpu.raise(vector::MF, None)
    }
}

#[inline(always)]
pub(super) fn xmm(cpu: &Cpu, r: u8) -> u128 {
    cpu.fpu.xmm[usize::from(r & 15)]
}

#[inline(always)]
pub(super) fn set_xmm(cpu: &mut Cpu, r: u8, v: u128) {
    cpu.fpu.xmm[usize::from(r & 15)] = v;
}

/// Replaces the low quadword.
#[inline(always)]
pub(super) fn set_xmm_low64(cpu: &mut Cpu, r: u8, v: u64) {
    let x = &mut cpu.fpu.xmm[usize::from(r & 15)];
    *x = *x >> 64 << 64 | u128::from(v);
}

/// Replaces the low doubleword.
#[inline(always)]
pub(super) fn set_xmm_low32(cpu: &mut Cpu, r: u8, v: u32) {
    let x = &mut cpu.fpu.xmm[usize::from(r & 15)];
    *x = *x >> 32 << 32 | u128::from(v);
}

#[inline(always)]
pub(super) fn mm(cpu: &Cpu, r: u8) -> u64 {
    cpu.fpu.st[usize::from(r & 7)].0
}

/// What every MMX instruction does to the x87 state: TOP is 0 and no register is empty.
#[inline(always)]
pub(super) fn enter_mmx(fpu: &mut FpuState) {
    fpu.status &= !(7 << 11);
    fpu.tag = 0xff;
}

/// Writes an MMX register; its exponent becomes all ones.
#[inline(always)]
pub(super) fn set_mm(cpu: &mut Cpu, r: u8, v: u64) {
    enter_mmx(&mut cpu.fpu);
    cpu.fpu.st[usize::from(r & 7)] = (v, 0xffff);
}

/// Reads the 16-byte memory operand of an instruction that demands alignment.
#[inline(always)]
pub(super) fn load_aligned(cpu: &mut Cpu, op: &Op) -> Result<u128, Stop> {
    if cpu.ea(op) & 15 != 0 {
        return Err(cpu.gp());
    }
    cpu.load128(op)
}

/// Writes the 16-byte memory operand of an instruction that demands alignment.
#[inline(always)]
pub(super) fn store_aligned(cpu: &mut Cpu, op: &Op, v: u128) -> Exec {
    if cpu.ea(op) & 15 != 0 {
        return Err(cpu.gp());
    }
    cpu.store128(op, v)
}

/// Both forms of `xmm, xmm/m128` with `$f(destination, source)` as the result.
macro_rules! sse_forms {
    ($f:expr) => {{
        fn rr(cpu: &mut Cpu, op: &Op) -> Exec {
            check_sse(cpu)?;
            let (a, b) = (xmm(cpu, op.dst), xmm(cpu, op.src));
            set_xmm(cpu, op.dst, $f(a, b));
            Ok(())
        }
        fn rm(cpu: &mut Cpu, op: &Op) -> Exec {
            check_sse(cpu)?;
            let b = load_aligned(cpu, op)?;
            let a = xmm(cpu, op.dst);
            set_xmm(cpu, op.dst, $f(a, b));
            Ok(())
        }
        (rr as Handler, rm as Handler)
    }};
}

/// Both forms of `xmm, xmm/m128, imm8` with `$f(destination, source, imm8)` as the result.
macro_rules! sse_forms_imm {
    ($f:expr) => {{
        fn rr(cpu: &mut Cpu, op: &Op) -> Exec {
            check_sse(cpu)?;
            let (a, b) = (xmm(cpu, op.dst), xmm(cpu, op.src));
            set_xmm(cpu, op.dst, $f(a, b, op.imm as u8));
            Ok(())
        }
        fn rm(cpu: &mut Cpu, op: &Op) -> Exec {
            check_sse(cpu)?;
            let b = load_aligned(cpu, op)?;
            let a = xmm(cpu, op.dst);
            set_xmm(cpu, op.dst, $f(a, b, op.imm as u8));
            Ok(())
        }
        (rr as Handler, rm as Handler)
    }};
}

/// Both forms of `xmm, xmm/m` where the memory operand is a `$width` without alignment and the
/// result is `$f(destination, source)`.
macro_rules! sse_forms_narrow {
    ($width:ty, $f:expr) => {{
        fn rr(cpu: &mut Cpu, op: &Op) -> Exec {
            check_sse(cpu)?;
            let (a, b) = (xmm(cpu, op.dst), xmm(cpu, op.src));
            set_xmm(cpu, op.dst, $f(a, b));
            Ok(())
        }
        fn rm(cpu: &mut Cpu, op: &Op) -> Exec {
            check_sse(cpu)?;
            let b = u128::from(cpu.load::<$width>(op)?);
            let a = xmm(cpu, op.dst);
            set_xmm(cpu, op.dst, $f(a, b));
            Ok(())
        }
        (rr as Handler, rm as Handler)
    }};
}

/// Both forms of `mm, mm/m` with a memory operand of `$width`.
macro_rules! mmx_forms {
    ($width:ty, $f:expr) => {{
        fn rr(cpu: &mut Cpu, op: &Op) -> Exec {
            check_mmx(cpu)?;
            let (a, b) = (mm(cpu, op.dst), mm(cpu, op.src));
            set_mm(cpu, op.dst, $f(a, b));
            Ok(())
        }
        fn rm(cpu: &mut Cpu, op: &Op) -> Exec {
            check_mmx(cpu)?;
            let b = u64::from(cpu.load::<$width>(op)?);
            let a = mm(cpu, op.dst);
            set_mm(cpu, op.dst, $f(a, b));
            Ok(())
        }
        (rr as Handler, rm as Handler)
    }};
}

/// Both forms of `mm, mm/m64, imm8`.
macro_rules! mmx_forms_imm {
    ($f:expr) => {{
        fn rr(cpu: &mut Cpu, op: &Op) -> Exec {
            check_mmx(cpu)?;
            let (a, b) = (mm(cpu, op.dst), mm(cpu, op.src));
            set_mm(cpu, op.dst, $f(a, b, op.imm as u8));
            Ok(())
        }
        fn rm(cpu: &mut Cpu, op: &Op) -> Exec {
            check_mmx(cpu)?;
            let b = cpu.load::<u64>(op)?;
            let a = mm(cpu, op.dst);
            set_mm(cpu, op.dst, $f(a, b, op.imm as u8));
            Ok(())
        }
        (rr as Handler, rm as Handler)
    }};
}

pub(super) use {mmx_forms, mmx_forms_imm, sse_forms, sse_forms_imm, sse_forms_narrow};
