//! Arithmetic, comparison and classification.

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind};

use crate::arch::x86_64::rflags;

use super::super::cpu::Cpu;
use super::super::flags::Flags;
use super::super::fp::f80::{self, Operand};
use super::super::fp::{Env, F80, Relation, f80_convert, flag, remainder, transcendental};
use super::super::op::{Exec, Handler, Op, Stop};
use super::register;
use super::stack::{Frame, status};

/// Where the other operand comes from: [`Op::extra`] bits 8–10.
const REGISTER: u16 = 0;
const M32: u16 = 1;
const M64: u16 = 2;
const I16: u16 = 3;
const I32: u16 = 4;
/// ST(0) is popped once (bit 11) or twice (bits 11 and 12).
const POP: u16 = 1 << 11;
const POP_TWICE: u16 = 1 << 12;
/// Comparisons: quiet NaNs are not invalid.
const QUIET: u16 = 1 << 13;
/// Comparisons: with zero.
const ZERO: u16 = 1 << 14;

fn source(ins: &Instruction) -> Option<u16> {
    let memory = (0..ins.op_count()).any(|i| ins.op_kind(i) == OpKind::Memory);
    Some(
        match ins.memory_size() {
            _ if !memory => REGISTER,
            MemorySize::Float32 => M32,
            MemorySize::Float64 => M64,
            MemorySize::Int16 => I16,
            MemorySize::Int32 => I32,
            _ => return None,
        } << 8,
    )
}

/// The memory operand named by `extra`; `None` for a register form.
fn memory(cpu: &mut Cpu, op: &Op) -> Result<Option<Operand>, Stop> {
    Ok(Some(match op.extra >> 8 & 7 {
        M32 => f80_convert::operand(cpu.load::<u32>(op)?),
        M64 => f80_convert::operand(cpu.load::<u64>(op)?),
        I16 => f80_convert::from_i64(i64::from(cpu.load::<u16>(op)? as i16)).into(),
        I32 => f80_convert::from_i64(i64::from(cpu.load::<u32>(op)? as i32)).into(),
        _ => return Ok(None),
    }))
}

type Compute = fn(&mut Env, Operand, Operand) -> F80;

fn sub_reversed(env: &mut Env, a: Operand, b: Operand) -> F80 {
    f80::sub(env, b, a)
}

fn div_reversed(env: &mut Env, a: Operand, b: Operand) -> F80 {
    f80::div(env, b, a)
}

/// Handlers by the low byte of [`Op::extra`].
const COMPUTE: [Compute; 6] = [f80::add, f80::mul, f80::sub, sub_reversed, f80::div, div_reversed];

/// Destination and source of FADD and its kin in every form: ST(`dst`) = ST(`dst`) op source.
fn compute(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    let other = memory(f.cpu, op)?;
    let a = f.get(op.dst);
    let b = other.or_else(|| f.get(op.src).map(Operand::from));
    let (Some(a), Some(b)) = (a, b) else {
        if f.underflow() {
            f.set(op.dst, F80::INDEFINITE);
            if op.extra & POP != 0 {
                f.pop();
            }
        }
        return f.done();
    };
    let Some(run) = COMPUTE.get(usize::from(op.extra & 0xff)) else { return Err(f.cpu.ud()) };
    let r = run(&mut f.env, a.into(), b);
    if !f.refused() {
        f.set(op.dst, r);
        if op.extra & POP != 0 {
            f.pop();
        }
    }
    f.done()
}

/// Compares ST(0) with the source; a missing operand is unordered.
fn relate(f: &mut Frame, op: &Op) -> Result<Relation, Stop> {
    let other = memory(f.cpu, op)?;
    let a = f.get(0);
    let b = if op.extra & ZERO != 0 {
        Some(F80::zero(false).into())
    } else {
        other.or_else(|| f.get(op.src).map(Operand::from))
    };
    let (Some(a), Some(b)) = (a, b) else {
        f.underflow();
        return Ok(Relation::Unordered);
    };
    Ok(f80::compare(&mut f.env, a.into(), b, op.extra & QUIET == 0))
}

fn pops(f: &mut Frame, op: &Op) {
    if f.refused() {
        return;
    }
    if op.extra & POP != 0 {
        f.pop();
    }
    if op.extra & POP_TWICE != 0 {
        f.pop();
    }
}

fn compare(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    let code = match relate(&mut f, op)? {
        Relation::Greater => 0,
        Relation::Less => status::C0,
        Relation::Equal => status::C3,
        Relation::Unordered => status::CODE,
    };
    // The code is set even where an unmasked exception keeps the operands on the stack.
    f.condition(status::CODE, code);
    pops(&mut f, op);
    f.done()
}

fn compare_flags(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    f.keep_c1 = true;
    let bits = match relate(&mut f, op)? {
        Relation::Greater => 0,
        Relation::Less => rflags::CF,
        Relation::Equal => rflags::ZF,
        Relation::Unordered => rflags::ZF | rflags::PF | rflags::CF,
    };
    f.cpu.flags = Flags::from_bits(bits);
    pops(&mut f, op);
    f.done()
}

fn examine(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    f.keep_c1 = true;
    let v = f.content(0);
    let class = if f.get(0).is_none() {
        status::C3 | status::C0
    } else if v.is_zero() {
        status::C3
    } else if v.is_denormal() {
        status::C3 | status::C2
    } else if v.is_unsupported() {
        0
    } else if v.is_nan() {
        status::C0
    } else if v.exponent() == 0x7fff {
        status::C2 | status::C0
    } else {
        status::C2
    };
    let sign = if v.negative() { status::C1 } else { 0 };
    f.condition(status::CODE | status::C1, class | sign);
    f.done()
}

type Unary = fn(&mut Env, F80) -> F80;

/// One operand, in place.
fn unary(f: &mut Frame, run: Unary) {
    let Some(a) = f.get(0) else {
        if f.underflow() {
            f.set(0, F80::INDEFINITE);
        }
        return;
    };
    let r = run(&mut f.env, a);
    if !f.refused() {
        f.set(0, r);
    }
}

macro_rules! unary {
    ($name:ident, $run:expr) => {
        fn $name(cpu: &mut Cpu, op: &Op) -> Exec {
            let mut f = Frame::new(cpu, op)?;
            unary(&mut f, $run);
            f.done()
        }
    };
}
unary!(fchs, |_, a| a.negated());
unary!(fabs, |_, a| a.absolute());
unary!(fsqrt, f80::sqrt);
unary!(frndint, f80::round_to_integral);
unary!(f2xm1, transcendental::exp2_m1);

/// ST(0) from ST(0) and ST(1).
fn fscale(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    let (Some(a), Some(b)) = (f.get(0), f.get(1)) else {
        if f.underflow() {
            f.set(0, F80::INDEFINITE);
        }
        return f.done();
    };
    let r = remainder::scale(&mut f.env, a, b);
    if !f.refused() {
        f.set(0, r);
    }
    f.done()
}

fn prem<const NEAREST: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    f.condition(status::C2, 0);
    let (Some(a), Some(b)) = (f.get(0), f.get(1)) else {
        if f.underflow() {
            f.set(0, F80::INDEFINITE);
        }
        return f.done();
    };
    let r = remainder::remainder(&mut f.env, a, b, NEAREST);
    if f.refused() {
        return f.done();
    }
    f.set(0, r.value);
    // An invalid operation, a NaN and a denormal leave the other bits too: they are zero then.
    let bit = |n: u8, c: u16| if r.quotient >> n & 1 != 0 { c } else { 0 };
    let c2 = if r.incomplete { status::C2 } else { 0 };
    if f.env.flags & flag::IE == 0 && !r.value.is_nan() {
        f.condition(status::CODE, bit(2, status::C0) | bit(1, status::C3) | c2);
    }
    f.env.rounded_up = r.quotient & 1 != 0;
    f.done()
}

type Binary = fn(&mut Env, F80, F80) -> F80;

/// ST(1) from ST(1) and ST(0), then a pop.
fn binary(f: &mut Frame, run: Binary) {
    let (Some(x), Some(y)) = (f.get(0), f.get(1)) else {
        if f.underflow() {
            f.set(1, F80::INDEFINITE);
            f.pop();
        }
        return;
    };
    let r = run(&mut f.env, y, x);
    if !f.refused() {
        f.set(1, r);
        f.pop();
    }
}

macro_rules! binary {
    ($name:ident, $run:expr) => {
        fn $name(cpu: &mut Cpu, op: &Op) -> Exec {
            let mut f = Frame::new(cpu, op)?;
            binary(&mut f, $run);
            f.done()
        }
    };
}
binary!(fpatan, transcendental::atan2);
binary!(fyl2x, transcendental::y_log2);
binary!(fyl2xp1, transcendental::y_log2_p1);

fn trigonometric(cpu: &mut Cpu, op: &Op, run: fn(&mut Env, F80) -> Option<F80>) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    f.condition(status::C2, 0);
    let Some(a) = f.get(0) else {
        if f.underflow() {
            f.set(0, F80::INDEFINITE);
        }
        return f.done();
    };
    match run(&mut f.env, a) {
        Some(r) if !f.refused() => f.set(0, r),
        Some(_) => {}
        None => f.condition(status::C2, status::C2),
    }
    f.done()
}

fn fsin(cpu: &mut Cpu, op: &Op) -> Exec {
    trigonometric(cpu, op, transcendental::sin)
}

fn fcos(cpu: &mut Cpu, op: &Op) -> Exec {
    trigonometric(cpu, op, transcendental::cos)
}

/// Replaces ST(0) by the first result and pushes the second; `None` is C2.
fn two_results(f: &mut Frame, run: fn(&mut Env, F80) -> Option<(F80, F80)>) {
    let a = f.get(0);
    let full = f.full();
    let Some(a) = a.filter(|_| !full) else {
        let masked = if a.is_none() { f.underflow() } else { f.overflow() };
        if masked {
            f.set(0, F80::INDEFINITE);
            f.push(F80::INDEFINITE);
        }
        return;
    };
    match run(&mut f.env, a) {
        Some((below, top)) if !f.refused() => {
            f.set(0, below);
            f.push(top);
        }
        Some(_) => {}
        None => f.condition(status::C2, status::C2),
    }
}

fn fsincos(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    f.condition(status::C2, 0);
    two_results(&mut f, transcendental::sin_cos);
    f.done()
}

fn fptan(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    f.condition(status::C2, 0);
    two_results(&mut f, transcendental::tan);
    f.done()
}

fn fxtract(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut f = Frame::new(cpu, op)?;
    two_results(&mut f, |env, a| Some(remainder::extract(env, a)));
    f.done()
}

pub(super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    let pop = match ins.mnemonic() {
        M::Faddp | M::Fmulp | M::Fsubp | M::Fsubrp | M::Fdivp | M::Fdivrp => POP,
        M::Fcomp | M::Fucomp | M::Ficomp | M::Fcomip | M::Fucomip => POP,
        M::Fcompp | M::Fucompp => POP | POP_TWICE,
        _ => 0,
    };
    let arithmetic = match ins.mnemonic() {
        M::Fadd | M::Faddp | M::Fiadd => Some(0),
        M::Fmul | M::Fmulp | M::Fimul => Some(1),
        M::Fsub | M::Fsubp | M::Fisub => Some(2),
        M::Fsubr | M::Fsubrp | M::Fisubr => Some(3),
        M::Fdiv | M::Fdivp | M::Fidiv => Some(4),
        M::Fdivr | M::Fdivrp | M::Fidivr => Some(5),
        _ => None,
    };
    if let Some(which) = arithmetic {
        op.extra = which | pop | source(ins)?;
        if op.extra >> 8 & 7 == REGISTER {
            op.dst = register(ins, 0);
            op.src = register(ins, 1);
        } else {
            op.dst = 0;
        }
        return Some(compute);
    }
    let quiet = match ins.mnemonic() {
        M::Fucom | M::Fucomp | M::Fucompp | M::Fucomi | M::Fucomip => QUIET,
        _ => 0,
    };
    Some(match ins.mnemonic() {
        M::Fcom | M::Fcomp | M::Ficom | M::Ficomp | M::Fucom | M::Fucomp | M::Fcompp | M::Fucompp => {
            op.extra = pop | quiet | source(ins)?;
            op.src = match ins.mnemonic() {
                M::Fcompp | M::Fucompp => 1,
                _ if op.extra >> 8 & 7 == REGISTER => register(ins, 1),
                _ => 0,
            };
            compare
        }
        M::Ftst => {
            op.extra = ZERO;
            compare
        }
        M::Fcomi | M::Fcomip | M::Fucomi | M::Fucomip => {
            op.extra = pop | quiet;
            op.src = register(ins, 1);
            compare_flags
        }
        M::Fxam => examine,
        M::Fchs => fchs,
        M::Fabs => fabs,
        M::Fsqrt => fsqrt,
        M::Frndint => frndint,
        M::F2xm1 => f2xm1,
        M::Fscale => fscale,
        M::Fprem => prem::<false>,
        M::Fprem1 => prem::<true>,
        M::Fpatan => fpatan,
        M::Fyl2x => fyl2x,
        M::Fyl2xp1 => fyl2xp1,
        M::Fsin => fsin,
        M::Fcos => fcos,
        M::Fsincos => fsincos,
        M::Fptan => fptan,
        M::Fxtract => fxtract,
        _ => return None,
    })
}
