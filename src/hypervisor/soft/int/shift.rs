//! ROL, ROR, RCL, RCR, SHL, SHR, SAR, SHLD, SHRD.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::super::cpu::Cpu;
use super::super::decode::{gpr, operand_size, sized};
use super::super::flags::Flags;
use super::super::op::{Exec, Handler, Op};
use super::Int;

/// A shift by a count that is not zero after masking. Gets the flags as they are and leaves them
/// as the manual says; where OF is undefined (count over 1) it follows the formula for count 1.
trait Shift {
    fn apply<T: Int>(f: &mut Flags, a: T, count: u32) -> T;
    /// The result alone, for a locked-out read-modify-write.
    fn result<T: Int>(f: Flags, a: T, count: u32) -> T {
        let mut f = f;
        Self::apply(&mut f, a, count)
    }
}

fn top<T: Int>(v: u64) -> bool {
    v >> (T::BITS - 1) & 1 != 0
}

fn second<T: Int>(v: u64) -> bool {
    v >> (T::BITS - 2) & 1 != 0
}

struct Shl;
impl Shift for Shl {
    #[inline(always)]
    fn apply<T: Int>(f: &mut Flags, a: T, count: u32) -> T {
        let wide = (a.to_u64() as u128) << count;
        let r = T::from_u64(wide as u64);
        let cf = wide >> T::BITS & 1 != 0;
        f.result(r, cf, top::<T>(r.to_u64()) != cf);
        r
    }
}

struct Shr;
impl Shift for Shr {
    #[inline(always)]
    fn apply<T: Int>(f: &mut Flags, a: T, count: u32) -> T {
        let v = a.to_u64();
        let r = T::from_u64(v >> count);
        f.result(r, v >> (count - 1) & 1 != 0, top::<T>(v));
        r
    }
}

struct Sar;
impl Shift for Sar {
    #[inline(always)]
    fn apply<T: Int>(f: &mut Flags, a: T, count: u32) -> T {
        let v = a.sext() as i64;
        let r = T::from_u64((v >> count) as u64);
        f.result(r, v >> (count - 1) & 1 != 0, false);
        r
    }
}

struct Rol;
impl Shift for Rol {
    #[inline(always)]
    fn apply<T: Int>(f: &mut Flags, a: T, count: u32) -> T {
        let n = count % T::BITS;
        let v = a.to_u64();
        let r = if n == 0 { v } else { T::from_u64(v << n | v >> (T::BITS - n)).to_u64() };
        let cf = r & 1 != 0;
        f.set_cf_of(cf, top::<T>(r) != cf);
        T::from_u64(r)
    }
}

struct Ror;
impl Shift for Ror {
    #[inline(always)]
    fn apply<T: Int>(f: &mut Flags, a: T, count: u32) -> T {
        let n = count % T::BITS;
        let v = a.to_u64();
        let r = if n == 0 { v } else { T::from_u64(v >> n | v << (T::BITS - n)).to_u64() };
        f.set_cf_of(top::<T>(r), top::<T>(r) != second::<T>(r));
        T::from_u64(r)
    }
}

struct Rcl;
impl Shift for Rcl {
    fn apply<T: Int>(f: &mut Flags, a: T, count: u32) -> T {
        let n = count % (T::BITS + 1);
        if n == 0 {
            return a;
        }
        let wide = (f.cf() as u128) << T::BITS | a.to_u64() as u128;
        let bits = T::BITS + 1;
        let rotated = wide << n | wide >> (bits - n);
        let r = T::from_u64(rotated as u64);
        let cf = rotated >> T::BITS & 1 != 0;
        f.set_cf_of(cf, top::<T>(r.to_u64()) != cf);
        r
    }
}

struct Rcr;
impl Shift for Rcr {
    fn apply<T: Int>(f: &mut Flags, a: T, count: u32) -> T {
        let n = count % (T::BITS + 1);
        if n == 0 {
            return a;
        }
        let wide = (f.cf() as u128) << T::BITS | a.to_u64() as u128;
        let bits = T::BITS + 1;
        let rotated = wide >> n | wide << (bits - n);
        let r = T::from_u64(rotated as u64);
        let cf = rotated >> T::BITS & 1 != 0;
        f.set_cf_of(cf, top::<T>(r.to_u64()) != second::<T>(r.to_u64()));
        r
    }
}

#[inline(always)]
fn masked<T: Int>(count: u64) -> u32 {
    count as u32 & if T::BITS == 64 { 63 } else { 31 }
}

#[inline(always)]
fn shift_r<S: Shift, T: Int>(cpu: &mut Cpu, op: &Op, count: u64) -> Exec {
    let count = masked::<T>(count);
    let a = cpu.get::<T>(op.dst);
    // A 32-bit shift by zero still clears the upper half of the register.
    let r = if count == 0 { a } else { S::apply(&mut cpu.flags, a, count) };
    cpu.set(op.dst, r);
    Ok(())
}

#[inline(always)]
fn shift_m<S: Shift, T: Int>(cpu: &mut Cpu, op: &Op, count: u64) -> Exec {
    let count = masked::<T>(count);
    let flags = cpu.flags;
    let (old, _) = cpu.modify::<T>(op, |a| if count == 0 { a } else { S::result(flags, a, count) })?;
    if count != 0 {
        S::apply(&mut cpu.flags, old, count);
    }
    Ok(())
}

fn r_imm<S: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    shift_r::<S, T>(cpu, op, op.imm)
}
fn r_cl<S: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    shift_r::<S, T>(cpu, op, cpu.regs[1])
}
fn m_imm<S: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    shift_m::<S, T>(cpu, op, op.imm)
}
fn m_cl<S: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    shift_m::<S, T>(cpu, op, cpu.regs[1])
}

/// SHLD (`LEFT`) or SHRD of `a` with bits from `b`; `count` is masked and not zero.
#[inline(always)]
fn double<T: Int, const LEFT: bool>(f: &mut Flags, a: T, b: T, count: u32) -> T {
    // A 16-bit shift by more than 16 is undefined; the bits then come from `a` again.
    let (x, y, bits) = (a.to_u64() as u128, b.to_u64() as u128, T::BITS);
    let (r, cf) = if LEFT {
        let all = x << bits | y;
        let all = if bits == 16 { all << 16 | x } else { all };
        let width = if bits == 16 { 48 } else { 2 * bits };
        ((all << count) >> (width - bits), x_bit(all, width - count))
    } else {
        let all = y << bits | x;
        let all = if bits == 16 { x << 32 | all } else { all };
        (all >> count, x_bit(all, count - 1))
    };
    let r = T::from_u64(r as u64);
    f.result(r, cf, top::<T>(r.to_u64()) != top::<T>(a.to_u64()));
    r
}

fn x_bit(v: u128, n: u32) -> bool {
    v >> n & 1 != 0
}

#[inline(always)]
fn double_count<T: Int>(cpu: &Cpu, op: &Op) -> u32 {
    masked::<T>(if op.extra != 0 { cpu.regs[1] } else { op.imm })
}

fn double_r<const LEFT: bool, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let count = double_count::<T>(cpu, op);
    let (a, b) = (cpu.get::<T>(op.dst), cpu.get::<T>(op.src));
    let r = if count == 0 { a } else { double::<T, LEFT>(&mut cpu.flags, a, b, count) };
    cpu.set(op.dst, r);
    Ok(())
}

fn double_m<const LEFT: bool, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let count = double_count::<T>(cpu, op);
    let b = cpu.get::<T>(op.src);
    let flags = cpu.flags;
    let (old, _) = cpu.modify::<T>(op, |a| {
        if count == 0 {
            return a;
        }
        let mut scratch = flags;
        double::<T, LEFT>(&mut scratch, a, b, count)
    })?;
    if count != 0 {
        double::<T, LEFT>(&mut cpu.flags, old, b, count);
    }
    Ok(())
}

fn single<S: Shift>(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = operand_size(ins, 0);
    let by_cl = ins.op1_kind() == OpKind::Register && ins.op1_register() == Register::CL;
    if !by_cl {
        op.imm = ins.immediate(1);
    }
    if ins.op0_kind() == OpKind::Register {
        op.dst = gpr(ins.op0_register());
        if by_cl { sized!(size, r_cl, S) } else { sized!(size, r_imm, S) }
    } else if by_cl {
        sized!(size, m_cl, S)
    } else {
        sized!(size, m_imm, S)
    }
}

fn pair<const LEFT: bool>(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = operand_size(ins, 0);
    op.src = gpr(ins.op1_register());
    if ins.op2_kind() == OpKind::Register {
        op.extra = 1;
    } else {
        op.imm = ins.immediate(2);
    }
    let memory = ins.op0_kind() == OpKind::Memory;
    if !memory {
        op.dst = gpr(ins.op0_register());
    }
    Some(match (size, memory) {
        (2, false) => double_r::<LEFT, u16>,
        (4, false) => double_r::<LEFT, u32>,
        (8, false) => double_r::<LEFT, u64>,
        (2, true) => double_m::<LEFT, u16>,
        (4, true) => double_m::<LEFT, u32>,
        (8, true) => double_m::<LEFT, u64>,
        _ => return None,
    })
}

/// Handler for the instruction, if it is one of this family.
pub(in super::super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    match ins.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => single::<Shl>(ins, op),
        Mnemonic::Shr => single::<Shr>(ins, op),
        Mnemonic::Sar => single::<Sar>(ins, op),
        Mnemonic::Rol => single::<Rol>(ins, op),
        Mnemonic::Ror => single::<Ror>(ins, op),
        Mnemonic::Rcl => single::<Rcl>(ins, op),
        Mnemonic::Rcr => single::<Rcr>(ins, op),
        Mnemonic::Shld => pair::<true>(ins, op),
        Mnemonic::Shrd => pair::<false>(ins, op),
        _ => None,
    }
}
