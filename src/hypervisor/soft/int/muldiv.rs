//! MUL, IMUL, DIV, IDIV.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::arch::x86_64::vector;

use super::super::cpu::Cpu;
use super::super::decode::{gpr, operand_size};
use super::super::op::{Exec, Handler, Op, Stop};
use super::Int;

#[inline(always)]
fn operand<T: Int, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result<T, Stop> {
    if MEMORY { cpu.load(op) } else { Ok(cpu.get(op.src)) }
}

/// Stores a double-width product in AX or rDX:rAX.
#[inline(always)]
fn set_wide<T: Int>(cpu: &mut Cpu, product: u128) {
    if T::BITS == 8 {
        cpu.set(0, product as u16);
    } else {
        cpu.set(0, T::from_u64(product as u64));
        cpu.set(2 * 8, T::from_u64((product >> T::BITS) as u64));
    }
}

fn wide_mul<T: Int, const M: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let b = operand::<T, M>(cpu, op)?.to_u64();
    let product = cpu.get::<T>(0).to_u64() as u128 * b as u128;
    set_wide::<T>(cpu, product);
    let over = product >> T::BITS != 0;
    cpu.flags.result(T::from_u64(product as u64), over, over);
    Ok(())
}

fn wide_imul<T: Int, const M: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let b = operand::<T, M>(cpu, op)?.sext() as i64;
    let product = cpu.get::<T>(0).sext() as i64 as i128 * b as i128;
    set_wide::<T>(cpu, product as u128);
    let low = T::from_u64(product as u64);
    let over = low.sext() as i64 as i128 != product;
    cpu.flags.result(low, over, over);
    Ok(())
}

#[inline(always)]
fn imul<T: Int>(cpu: &mut Cpu, op: &Op, a: T, b: T) {
    let product = a.sext() as i64 as i128 * (b.sext() as i64) as i128;
    let low = T::from_u64(product as u64);
    let over = low.sext() as i64 as i128 != product;
    cpu.flags.result(low, over, over);
    cpu.set(op.dst, low);
}

fn imul2<T: Int, const M: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let b = operand::<T, M>(cpu, op)?;
    imul(cpu, op, cpu.get::<T>(op.dst), b);
    Ok(())
}
fn imul3<T: Int, const M: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let b = operand::<T, M>(cpu, op)?;
    imul(cpu, op, b, T::from_u64(op.imm));
    Ok(())
}

/// The dividend in AX or rDX:rAX.
#[inline(always)]
fn dividend<T: Int>(cpu: &Cpu) -> u128 {
    if T::BITS == 8 {
        cpu.get::<u16>(0) as u128
    } else {
        (cpu.get::<T>(2 * 8).to_u64() as u128) << T::BITS | cpu.get::<T>(0).to_u64() as u128
    }
}

#[inline(always)]
fn set_quotient<T: Int>(cpu: &mut Cpu, quotient: u64, remainder: u64) {
    if T::BITS == 8 {
        cpu.set(0, quotient as u8);
        cpu.set(1, remainder as u8);
    } else {
        cpu.set(0, T::from_u64(quotient));
        cpu.set(2 * 8, T::from_u64(remainder));
    }
}

fn div<T: Int, const M: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let d = operand::<T, M>(cpu, op)?.to_u64();
    let n = dividend::<T>(cpu);
    if d == 0 || (n >> T::BITS) as u64 >= d {
        return Err(cpu.raise(vector::DE, None));
    }
    let (q, r) = match u64::try_from(n) {
        Ok(n) => (n / d, n % d),
        Err(_) => ((n / d as u128) as u64, (n % d as u128) as u64),
    };
    set_quotient::<T>(cpu, q, r);
    Ok(())
}

fn idiv<T: Int, const M: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let d = operand::<T, M>(cpu, op)?.sext() as i64;
    let unused = 128 - 2 * T::BITS;
    let n = (dividend::<T>(cpu) << unused) as i128 >> unused;
    let result = match i64::try_from(n) {
        Ok(n) => n.checked_div(d).map(|q| (q as i128, n.wrapping_rem(d) as i128)),
        Err(_) => n.checked_div(d as i128).map(|q| (q, n % d as i128)),
    };
    match result {
        Some((q, r)) if T::from_u64(q as u64).sext() as i64 as i128 == q => {
            set_quotient::<T>(cpu, q as u64, r as u64);
            Ok(())
        }
        _ => Err(cpu.raise(vector::DE, None)),
    }
}

/// Handler for the instruction, if it is one of this family.
pub(in super::super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let source = if ins.op_count() == 1 { 0 } else { 1 };
    if !matches!(ins.mnemonic(), Mnemonic::Mul | Mnemonic::Imul | Mnemonic::Div | Mnemonic::Idiv) {
        return None;
    }
    let size = operand_size(ins, source);
    let memory = ins.op_kind(source) == OpKind::Memory;
    if !memory {
        op.src = gpr(ins.op_register(source));
    }
    macro_rules! pick {
        ($f:ident) => {
            match (size, memory) {
                (1, false) => Some($f::<u8, false> as Handler),
                (2, false) => Some($f::<u16, false> as Handler),
                (4, false) => Some($f::<u32, false> as Handler),
                (8, false) => Some($f::<u64, false> as Handler),
                (1, true) => Some($f::<u8, true> as Handler),
                (2, true) => Some($f::<u16, true> as Handler),
                (4, true) => Some($f::<u32, true> as Handler),
                (8, true) => Some($f::<u64, true> as Handler),
                _ => None,
            }
        };
    }
    if source == 1 {
        op.dst = gpr(ins.op0_register());
    }
    match (ins.mnemonic(), ins.op_count()) {
        (Mnemonic::Mul, _) => pick!(wide_mul),
        (Mnemonic::Imul, 1) => pick!(wide_imul),
        (Mnemonic::Imul, 2) => pick!(imul2),
        (Mnemonic::Imul, _) => {
            op.imm = ins.immediate(2);
            pick!(imul3)
        }
        (Mnemonic::Div, _) => pick!(div),
        _ => pick!(idiv),
    }
}
