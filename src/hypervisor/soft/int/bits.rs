//! Bit tests and scans, counts, XADD, the CMPXCHG family, and decimal adjustment.

#![allow(unsafe_code)]

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::arch::x86_64::vector;

use super::super::cpu::{Access, Cpu};
use super::super::decode::{gpr, operand_size, sized};
use super::super::op::{Exec, Handler, Op, flag};
use super::Int;

/// What BT, BTS, BTR, BTC do to the bit.
trait BitOp {
    const WRITES: bool = true;
    fn apply<T: Int>(v: T, bit: T) -> T;
}
struct Bt;
impl BitOp for Bt {
    const WRITES: bool = false;
    fn apply<T: Int>(v: T, _: T) -> T {
        v
    }
}
struct Bts;
impl BitOp for Bts {
    #[inline(always)]
    fn apply<T: Int>(v: T, bit: T) -> T {
        v | bit
    }
}
struct Btr;
impl BitOp for Btr {
    #[inline(always)]
    fn apply<T: Int>(v: T, bit: T) -> T {
        v & !bit
    }
}
struct Btc;
impl BitOp for Btc {
    #[inline(always)]
    fn apply<T: Int>(v: T, bit: T) -> T {
        v ^ bit
    }
}

#[inline(always)]
fn mask<T: Int>(n: u64) -> T {
    T::from_u64(1u64 << (n & (T::BITS as u64 - 1)))
}

#[inline(always)]
fn bit_number<T: Int>(cpu: &Cpu, op: &Op) -> u64 {
    if op.extra != 0 { op.imm } else { cpu.get::<T>(op.src).sext() }
}

fn bit_r<B: BitOp, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let bit = mask::<T>(bit_number::<T>(cpu, op));
    let v = cpu.get::<T>(op.dst);
    cpu.flags.set_cf(v & bit != T::default());
    if B::WRITES {
        cpu.set(op.dst, B::apply(v, bit));
    }
    Ok(())
}

fn bit_m<B: BitOp, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let n = bit_number::<T>(cpu, op);
    let bit = mask::<T>(n);
    // A register bit number reaches beyond the operand: it selects the word, too.
    let mut at = *op;
    if op.extra == 0 {
        let word = (n as i64) >> T::BITS.trailing_zeros();
        at.disp = op.disp.wrapping_add(word.wrapping_mul(T::BYTES as i64));
    }
    let old = if B::WRITES { cpu.modify::<T>(&at, |v| B::apply(v, bit))?.0 } else { cpu.load::<T>(&at)? };
    cpu.flags.set_cf(old & bit != T::default());
    Ok(())
}

fn bit_test<B: BitOp>(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = operand_size(ins, 0);
    if ins.op1_kind() == OpKind::Register {
        op.src = gpr(ins.op1_register());
    } else {
        op.extra = 1;
        op.imm = ins.immediate(1);
    }
    if ins.op0_kind() == OpKind::Register {
        op.dst = gpr(ins.op0_register());
        sized!(size, bit_r, B)
    } else {
        sized!(size, bit_m, B)
    }
}

/// Scans and counts: flags from source and result; `None` leaves the destination.
trait Count {
    fn apply<T: Int>(cpu: &mut Cpu, v: T) -> Option<T>;
}
struct Bsf;
impl Count for Bsf {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, v: T) -> Option<T> {
        scan(cpu, v, v.to_u64().trailing_zeros())
    }
}
struct Bsr;
impl Count for Bsr {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, v: T) -> Option<T> {
        scan(cpu, v, 63 - (v.to_u64() | 1).leading_zeros())
    }
}
#[inline(always)]
fn scan<T: Int>(cpu: &mut Cpu, v: T, n: u32) -> Option<T> {
    let zero = v == T::default();
    cpu.flags.result(T::from_u64(!zero as u64), false, false);
    // Processors leave the destination alone when the source is zero.
    (!zero).then(|| T::from_u64(n as u64))
}
struct Tzcnt;
impl Count for Tzcnt {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, v: T) -> Option<T> {
        let n = v.to_u64().trailing_zeros().min(T::BITS);
        cpu.flags.result(T::from_u64(n as u64), v == T::default(), false);
        Some(T::from_u64(n as u64))
    }
}
struct Lzcnt;
impl Count for Lzcnt {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, v: T) -> Option<T> {
        let n = v.to_u64().leading_zeros() - (64 - T::BITS);
        cpu.flags.result(T::from_u64(n as u64), v == T::default(), false);
        Some(T::from_u64(n as u64))
    }
}
struct Popcnt;
impl Count for Popcnt {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, v: T) -> Option<T> {
        let n = T::from_u64(v.to_u64().count_ones() as u64);
        // ZF from the source; all others clear.
        cpu.flags = super::super::flags::Flags::from_bits(if v == T::default() {
            crate::arch::x86_64::rflags::ZF
        } else {
            0
        });
        Some(n)
    }
}

fn count_r<C: Count, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.get::<T>(op.src);
    finish::<C, T>(cpu, op, v);
    Ok(())
}
fn count_m<C: Count, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.load::<T>(op)?;
    finish::<C, T>(cpu, op, v);
    Ok(())
}
#[inline(always)]
fn finish<C: Count, T: Int>(cpu: &mut Cpu, op: &Op, v: T) {
    if let Some(n) = C::apply(cpu, v) {
        cpu.set(op.dst, n);
    }
}

fn count<C: Count>(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = operand_size(ins, 0);
    op.dst = gpr(ins.op0_register());
    if ins.op1_kind() == OpKind::Register {
        op.src = gpr(ins.op1_register());
        sized!(size, count_r, C)
    } else {
        sized!(size, count_m, C)
    }
}

fn xadd_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (a, b) = (cpu.get::<T>(op.dst), cpu.get::<T>(op.src));
    let r = a.wadd(b);
    cpu.flags.add(a, b, r);
    cpu.set(op.src, a);
    cpu.set(op.dst, r);
    Ok(())
}
fn xadd_m<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let b = cpu.get::<T>(op.src);
    let (a, r) = cpu.modify::<T>(op, |a| a.wadd(b))?;
    cpu.flags.add(a, b, r);
    cpu.set(op.src, a);
    Ok(())
}

fn cmpxchg_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (acc, dst) = (cpu.get::<T>(0), cpu.get::<T>(op.dst));
    cpu.flags.sub(acc, dst, acc.wsub(dst));
    if acc == dst {
        cpu.set::<T>(op.dst, cpu.get(op.src));
    } else {
        cpu.set(0, dst);
    }
    Ok(())
}
fn cmpxchg_m<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (acc, new) = (cpu.get::<T>(0), cpu.get::<T>(op.src));
    let (old, _) = cpu.modify::<T>(op, |v| if v == acc { new } else { v })?;
    cpu.flags.sub(acc, old, acc.wsub(old));
    if acc != old {
        cpu.set(0, old);
    }
    Ok(())
}

fn cmpxchg8b(cpu: &mut Cpu, op: &Op) -> Exec {
    let expected = (cpu.get::<u32>(16) as u64) << 32 | cpu.get::<u32>(0) as u64;
    let new = (cpu.get::<u32>(8) as u64) << 32 | cpu.get::<u32>(24) as u64;
    let (old, _) = cpu.modify::<u64>(op, |v| if v == expected { new } else { v })?;
    cpu.flags.set_zf(old == expected);
    if old != expected {
        cpu.set(0, old as u32);
        cpu.set(16, (old >> 32) as u32);
    }
    Ok(())
}

fn cmpxchg16b(cpu: &mut Cpu, op: &Op) -> Exec {
    let va = cpu.ea(op);
    if va & 15 != 0 {
        return Err(cpu.gp());
    }
    let expected = (cpu.regs[2] as u128) << 64 | cpu.regs[0] as u128;
    let new = (cpu.regs[1] as u128) << 64 | cpu.regs[3] as u128;
    let gpa = cpu.translate(va, Access::Write)?;
    let old = cpu.exchange16(gpa, expected, new);
    let equal = old == expected;
    cpu.flags.set_zf(equal);
    if !equal {
        cpu.regs[0] = old as u64;
        cpu.regs[2] = (old >> 64) as u64;
    }
    Ok(())
}

fn decimal_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Op) -> Exec {
    let old = cpu.get::<u8>(0);
    let (old_cf, af) = (cpu.flags.cf(), cpu.flags.af() || old & 15 > 9);
    let mut al = old;
    let mut cf = false;
    if af {
        let (v, over) = if SUBTRACT { al.overflowing_sub(6) } else { al.overflowing_add(6) };
        al = v;
        cf = old_cf || over;
    }
    if old > 0x99 || old_cf {
        al = if SUBTRACT { al.wrapping_sub(0x60) } else { al.wrapping_add(0x60) };
        cf = true;
    }
    cpu.set(0, al);
    cpu.flags.result(al, cf, false);
    cpu.flags.aux |= (af as u64) << 3;
    Ok(())
}

fn ascii_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Op) -> Exec {
    let ax = cpu.get::<u16>(0);
    let adjust = ax & 15 > 9 || cpu.flags.af();
    let ax = match (adjust, SUBTRACT) {
        (true, false) => ax.wrapping_add(0x106),
        (true, true) => ax.wrapping_sub(0x106),
        _ => ax,
    } & 0xff0f;
    cpu.set(0, ax);
    cpu.flags.result(ax as u8, adjust, false);
    cpu.flags.aux |= (adjust as u64) << 3;
    Ok(())
}

fn aam(cpu: &mut Cpu, op: &Op) -> Exec {
    let (al, base) = (cpu.get::<u8>(0), op.imm as u8);
    if base == 0 {
        return Err(cpu.raise(vector::DE, None));
    }
    cpu.set(1, al / base);
    cpu.set(0, al % base);
    cpu.flags.logic(al % base);
    Ok(())
}

fn aad(cpu: &mut Cpu, op: &Op) -> Exec {
    let al = cpu.get::<u8>(0).wrapping_add(cpu.get::<u8>(1).wrapping_mul(op.imm as u8));
    cpu.set(0, al as u16);
    cpu.flags.logic(al);
    Ok(())
}

fn salc(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.set(0, if cpu.flags.cf() { 0xffu8 } else { 0 });
    Ok(())
}

/// Handler for the instruction, if it is one of this family.
pub(in super::super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    match ins.mnemonic() {
        Mnemonic::Bt => bit_test::<Bt>(ins, op),
        Mnemonic::Bts => bit_test::<Bts>(ins, op),
        Mnemonic::Btr => bit_test::<Btr>(ins, op),
        Mnemonic::Btc => bit_test::<Btc>(ins, op),
        Mnemonic::Bsf => count::<Bsf>(ins, op),
        Mnemonic::Bsr => count::<Bsr>(ins, op),
        Mnemonic::Tzcnt => count::<Tzcnt>(ins, op),
        Mnemonic::Lzcnt => count::<Lzcnt>(ins, op),
        Mnemonic::Popcnt => count::<Popcnt>(ins, op),
        Mnemonic::Xadd | Mnemonic::Cmpxchg => {
            let size = operand_size(ins, 0);
            op.src = gpr(ins.op1_register());
            let register = ins.op0_kind() == OpKind::Register;
            if register {
                op.dst = gpr(ins.op0_register());
            }
            match (ins.mnemonic(), register) {
                (Mnemonic::Xadd, true) => sized!(size, xadd_r),
                (Mnemonic::Xadd, false) => sized!(size, xadd_m),
                (_, true) => sized!(size, cmpxchg_r),
                (_, false) => sized!(size, cmpxchg_m),
            }
        }
        Mnemonic::Cmpxchg8b => {
            op.flags |= flag::LOCK;
            Some(cmpxchg8b)
        }
        Mnemonic::Cmpxchg16b => Some(cmpxchg16b),
        Mnemonic::Daa => Some(decimal_adjust::<false>),
        Mnemonic::Das => Some(decimal_adjust::<true>),
        Mnemonic::Aaa => Some(ascii_adjust::<false>),
        Mnemonic::Aas => Some(ascii_adjust::<true>),
        Mnemonic::Aam => {
            op.imm = ins.immediate(0);
            Some(aam)
        }
        Mnemonic::Aad => {
            op.imm = ins.immediate(0);
            Some(aad)
        }
        Mnemonic::Salc => Some(salc),
        _ => None,
    }
}
