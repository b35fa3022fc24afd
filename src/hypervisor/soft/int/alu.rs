//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::super::cpu::Cpu;
use super::super::decode::{gpr, operand_size, sized};
use super::super::flags::Flags;
use super::super::op::{Exec, Handler, Op};
use super::Int;

/// A two-operand operation.
trait Alu {
    /// Whether the result is stored.
    const WRITES: bool = true;
    fn result<T: Int>(a: T, b: T, carry: bool) -> T;
    fn flags<T: Int>(f: &mut Flags, a: T, b: T, r: T);
}

macro_rules! alu {
    ($name:ident, $writes:expr, |$a:ident, $b:ident, $c:ident| $result:expr, |$f:ident, $r:ident| $flags:expr) => {
        struct $name;
        impl Alu for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            #[allow(unused_variables)]
            fn result<T: Int>($a: T, $b: T, $c: bool) -> T {
                $result
            }
            #[inline(always)]
            #[allow(unused_variables)]
            fn flags<T: Int>($f: &mut Flags, $a: T, $b: T, $r: T) {
                $flags
            }
        }
    };
}

alu!(Add, true, |a, b, c| a.wadd(b), |f, r| f.add(a, b, r));
alu!(Adc, true, |a, b, c| a.wadd(b).wadd(T::from_u64(c as u64)), |f, r| f.add(a, b, r));
alu!(Sub, true, |a, b, c| a.wsub(b), |f, r| f.sub(a, b, r));
alu!(Sbb, true, |a, b, c| a.wsub(b).wsub(T::from_u64(c as u64)), |f, r| f.sub(a, b, r));
alu!(Cmp, false, |a, b, c| a.wsub(b), |f, r| f.sub(a, b, r));
alu!(And, true, |a, b, c| a & b, |f, r| f.logic(r));
alu!(Or, true, |a, b, c| a | b, |f, r| f.logic(r));
alu!(Xor, true, |a, b, c| a ^ b, |f, r| f.logic(r));
alu!(Test, false, |a, b, c| a & b, |f, r| f.logic(r));

#[inline(always)]
fn compute<A: Alu, T: Int>(cpu: &mut Cpu, a: T, b: T) -> T {
    let r = A::result(a, b, cpu.flags.cf());
    A::flags(&mut cpu.flags, a, b, r);
    r
}

fn rr<A: Alu, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let r = compute::<A, T>(cpu, cpu.get(op.dst), cpu.get(op.src));
    if A::WRITES {
        cpu.set(op.dst, r);
    }
    Ok(())
}

fn ri<A: Alu, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let r = compute::<A, T>(cpu, cpu.get(op.dst), T::from_u64(op.imm));
    if A::WRITES {
        cpu.set(op.dst, r);
    }
    Ok(())
}

fn rm<A: Alu, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let b = cpu.load::<T>(op)?;
    let r = compute::<A, T>(cpu, cpu.get(op.dst), b);
    if A::WRITES {
        cpu.set(op.dst, r);
    }
    Ok(())
}

#[inline(always)]
fn to_memory<A: Alu, T: Int>(cpu: &mut Cpu, op: &Op, b: T) -> Exec {
    if A::WRITES {
        let carry = cpu.flags.cf();
        let (a, r) = cpu.modify::<T>(op, |a| A::result(a, b, carry))?;
        A::flags(&mut cpu.flags, a, b, r);
    } else {
        let a = cpu.load::<T>(op)?;
        compute::<A, T>(cpu, a, b);
    }
    Ok(())
}

fn mr<A: Alu, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    to_memory::<A, T>(cpu, op, cpu.get(op.src))
}

fn mi<A: Alu, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    to_memory::<A, T>(cpu, op, T::from_u64(op.imm))
}

/// A one-operand operation.
trait Unary {
    fn result<T: Int>(a: T) -> T;
    fn flags<T: Int>(f: &mut Flags, a: T, r: T);
}

struct Inc;
impl Unary for Inc {
    #[inline(always)]
    fn result<T: Int>(a: T) -> T {
        a.wadd(T::from_u64(1))
    }
    #[inline(always)]
    fn flags<T: Int>(f: &mut Flags, a: T, r: T) {
        let cf = f.cf();
        f.add(a, T::from_u64(1), r);
        f.set_cf(cf);
    }
}

struct Dec;
impl Unary for Dec {
    #[inline(always)]
    fn result<T: Int>(a: T) -> T {
        a.wsub(T::from_u64(1))
    }
    #[inline(always)]
    fn flags<T: Int>(f: &mut Flags, a: T, r: T) {
        let cf = f.cf();
        f.sub(a, T::from_u64(1), r);
        f.set_cf(cf);
    }
}

struct Neg;
impl Unary for Neg {
    #[inline(always)]
    fn result<T: Int>(a: T) -> T {
        T::default().wsub(a)
    }
    #[inline(always)]
    fn flags<T: Int>(f: &mut Flags, a: T, r: T) {
        f.sub(T::default(), a, r);
    }
}

struct Inv;
impl Unary for Inv {
    #[inline(always)]
    fn result<T: Int>(a: T) -> T {
        !a
    }
    #[inline(always)]
    fn flags<T: Int>(_: &mut Flags, _: T, _: T) {}
}

fn unary_r<U: Unary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let a = cpu.get::<T>(op.dst);
    let r = U::result(a);
    U::flags(&mut cpu.flags, a, r);
    cpu.set(op.dst, r);
    Ok(())
}

fn unary_m<U: Unary, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (a, r) = cpu.modify::<T>(op, U::result)?;
    U::flags(&mut cpu.flags, a, r);
    Ok(())
}

fn binary<A: Alu>(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = operand_size(ins, 0);
    let (a, b) = (ins.op0_kind(), ins.op1_kind());
    if a == OpKind::Register {
        op.dst = gpr(ins.op0_register());
    }
    match (a, b) {
        (OpKind::Register, OpKind::Register) => {
            op.src = gpr(ins.op1_register());
            sized!(size, rr, A)
        }
        (OpKind::Register, OpKind::Memory) => sized!(size, rm, A),
        (OpKind::Memory, OpKind::Register) => {
            op.src = gpr(ins.op1_register());
            sized!(size, mr, A)
        }
        (OpKind::Memory, _) => {
            op.imm = ins.immediate(1);
            sized!(size, mi, A)
        }
        _ => {
            op.imm = ins.immediate(1);
            sized!(size, ri, A)
        }
    }
}

fn unary<U: Unary>(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = operand_size(ins, 0);
    if ins.op0_kind() == OpKind::Register {
        op.dst = gpr(ins.op0_register());
        sized!(size, unary_r, U)
    } else {
        sized!(size, unary_m, U)
    }
}

/// Handler for the instruction, if it is one of this family.
pub(in super::super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    match ins.mnemonic() {
        Mnemonic::Add => binary::<Add>(ins, op),
        Mnemonic::Or => binary::<Or>(ins, op),
        Mnemonic::Adc => binary::<Adc>(ins, op),
        Mnemonic::Sbb => binary::<Sbb>(ins, op),
        Mnemonic::And => binary::<And>(ins, op),
        Mnemonic::Sub => binary::<Sub>(ins, op),
        Mnemonic::Xor => binary::<Xor>(ins, op),
        Mnemonic::Cmp => binary::<Cmp>(ins, op),
        Mnemonic::Test => binary::<Test>(ins, op),
        Mnemonic::Inc => unary::<Inc>(ins, op),
        Mnemonic::Dec => unary::<Dec>(ins, op),
        Mnemonic::Neg => unary::<Neg>(ins, op),
        Mnemonic::Not => unary::<Inv>(ins, op),
        _ => None,
    }
}
