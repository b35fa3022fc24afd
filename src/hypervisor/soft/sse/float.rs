//! Floating-point arithmetic and comparison, packed and scalar. The numbers are [`super::super::fp`]'s
//! work; here are the lanes, MXCSR and the #XM exception.
//!
//! An instruction computes all its lanes in one [`Env`]; then either an exception that MXCSR does
//! not mask came up and is raised with the destination unchanged, or the result is written.

use std::marker::PhantomData;

use iced_x86::{Instruction, Mnemonic};

use crate::arch::x86_64::{cr4, rflags, vector};

use super::super::cpu::Cpu;
use super::super::flags::Flags;
use super::super::fp::convert::round_to_integral;
use super::super::fp::{Env, Float, Relation, Rounding, flag, ieee};
use super::super::int::Int;
use super::super::op::{Exec, Handler, Op};
use super::access::*;
use super::approximate;

pub(super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let forms = arithmetic(ins).or_else(|| lanes(ins)).or_else(|| comparison(ins))?;
    operands(ins, op);
    Some(by_source(ins, forms))
}

/// A float format as a lane of a vector register and an operand in memory.
pub(super) trait Real: Float + Int {
    /// Lanes in a register.
    const LANES: usize = 16 / Self::BYTES as usize;

    /// Lane `i`.
    #[inline(always)]
    fn lane(v: u128, i: usize) -> Self {
        Self::narrow((v >> (i as u32 * Self::BITS)) as u64)
    }
    /// This value as lane `i` of an otherwise zero vector.
    #[inline(always)]
    fn at(self, i: usize) -> u128 {
        u128::from(self.widen()) << (i as u32 * Self::BITS)
    }
    /// `v` with this value as its lowest lane.
    #[inline(always)]
    fn into_low(self, v: u128) -> u128 {
        v >> Self::BITS << Self::BITS | u128::from(self.widen())
    }
    /// Replaces the lowest lane of a register.
    #[inline(always)]
    fn put_low(self, cpu: &mut Cpu, r: u8) {
        if Self::BYTES == 4 {
            set_xmm_low32(cpu, r, self.widen() as u32);
        } else {
            set_xmm_low64(cpu, r, self.widen());
        }
    }
    /// Neither a NaN, an infinity nor a denormal.
    #[inline(always)]
    fn is_plain(self) -> bool {
        self.exponent().wrapping_sub(1) < Self::EXPONENT_MAX - 1 || self.is_zero()
    }
    /// All ones or zero.
    #[inline(always)]
    fn mask(condition: bool) -> Self {
        Self::narrow(u64::from(condition).wrapping_neg())
    }
}

impl Real for u32 {}
impl Real for u64 {}

/// The environment that MXCSR gives, with no flags but a masked PE that is set already (so that
/// nothing need find out again whether a result is exact).
#[inline(always)]
pub(super) fn begin(cpu: &Cpu) -> Env {
    let mut env = Env::from_mxcsr(cpu.fpu.mxcsr);
    env.flags &= flag::PE & !env.unmasked;
    env
}

/// Adds the flags to MXCSR; an unmasked exception is a fault.
#[inline(always)]
pub(super) fn finish(cpu: &mut Cpu, env: &Env) -> Exec {
    if env.flags & env.unmasked != 0 {
        return unmasked(cpu, env);
    }
    cpu.fpu.mxcsr |= u32::from(env.flags);
    Ok(())
}

#[cold]
fn unmasked(cpu: &mut Cpu, env: &Env) -> Exec {
    // Exceptions before the computation keep those after it from being looked for.
    let before = env.flags & env.unmasked & flag::BEFORE != 0;
    cpu.fpu.mxcsr |= u32::from(if before { env.flags & flag::BEFORE } else { env.flags });
    if cpu.cr4 & cr4::OSXMMEXCPT == 0 {
        return Err(cpu.ud());
    }
    Err(cpu.raise(vector::XM, None))
}

/// An operation on two values of one format. Those on one value take the second, the source.
trait Arithmetic {
    fn apply<F: Real>(env: &mut Env, a: F, b: F, imm: u8) -> F;

    /// The host's result, if there is one that is worth the look of [`quick`].
    fn host<F: Real>(_a: F, _b: F) -> Option<F> {
        None
    }
}

/// Whether rounding is to nearest and PE masked and set already: then inexact results show nowhere.
#[inline(always)]
pub(super) fn inexact_is_silent(cpu: &Cpu) -> bool {
    cpu.fpu.mxcsr & 0x7020 == 0x1020
}

/// Whether `r`, which the host made of `a` and `b` rounding to nearest, raises at most PE: the
/// operands are no denormals (nor zeros, which are left to the long way) and the result is normal
/// and away from both ends of the range. A NaN or an infinity among the operands would show in it.
#[inline(always)]
fn quick<F: Real>(a: F, b: F, r: F) -> bool {
    a.exponent() != 0 && b.exponent() != 0 && r.exponent().wrapping_sub(2) < F::EXPONENT_MAX - 4
}

macro_rules! arithmetic {
    ($($name:ident: |$env:ident, $a:ident, $b:ident, $imm:ident| $e:expr $(, $host:expr)?;)*) => {$(
        struct $name;
        impl Arithmetic for $name {
            #[inline(always)]
            fn apply<F: Real>($env: &mut Env, $a: F, $b: F, $imm: u8) -> F {
                $e
            }
            $(#[inline(always)]
            fn host<F: Real>($a: F, $b: F) -> Option<F> {
                Some($host)
            })?
        }
    )*};
}

arithmetic! {
    Add: |env, a, b, _imm| ieee::add(env, a, b), a.host_add(b);
    Sub: |env, a, b, _imm| ieee::sub(env, a, b), a.host_sub(b);
    Mul: |env, a, b, _imm| ieee::mul(env, a, b), a.host_mul(b);
    Div: |env, a, b, _imm| ieee::div(env, a, b), a.host_div(b);
    Min: |env, a, b, _imm| ieee::min(env, a, b);
    Max: |env, a, b, _imm| ieee::max(env, a, b);
    Sqrt: |env, _a, b, _imm| ieee::sqrt(env, b);
    Compare: |env, a, b, imm| F::mask(predicate(env, a, b, imm));
    Round: |env, _a, b, imm| {
        let rounding = if imm & 4 != 0 { env.rounding } else { Rounding::from_bits(imm.into()) };
        round_to_integral(env, b, rounding, imm & 8 != 0)
    };
}

/// The comparison that the low three bits of `imm` name.
#[inline(always)]
fn predicate<F: Real>(env: &mut Env, a: F, b: F, imm: u8) -> bool {
    let relation = if matches!(imm & 3, 1 | 2) {
        ieee::compare_signalling(env, a, b)
    } else {
        ieee::compare_quiet(env, a, b)
    };
    let holds = match imm & 3 {
        0 => relation == Relation::Equal,
        1 => relation == Relation::Less,
        2 => matches!(relation, Relation::Less | Relation::Equal),
        _ => relation == Relation::Unordered,
    };
    holds != (imm & 4 != 0)
}

/// Handlers for one operation on one format.
struct Handlers<F, A>(PhantomData<(F, A)>);

impl<F: Real, A: Arithmetic> Handlers<F, A> {
    const PACKED: Forms = (Self::packed_register, Self::packed_memory);
    const SCALAR: Forms = (Self::scalar_register, Self::scalar_memory);

    #[inline(always)]
    fn packed(cpu: &mut Cpu, op: &Op, b: u128) -> Exec {
        if inexact_is_silent(cpu) {
            let a = xmm(cpu, op.dst);
            let mut r = 0;
            let all = (0..F::LANES).all(|i| {
                let (x, y) = (F::lane(a, i), F::lane(b, i));
                A::host(x, y).is_some_and(|v| {
                    r |= v.at(i);
                    quick(x, y, v)
                })
            });
            if all {
                set_xmm(cpu, op.dst, r);
                return Ok(());
            }
        }
        Self::packed_exact(cpu, op, b)
    }

    #[inline(never)]
    fn packed_exact(cpu: &mut Cpu, op: &Op, b: u128) -> Exec {
        let a = xmm(cpu, op.dst);
        let mut env = begin(cpu);
        let mut r = 0;
        for i in 0..F::LANES {
            r |= A::apply(&mut env, F::lane(a, i), F::lane(b, i), op.imm as u8).at(i);
        }
        finish(cpu, &env)?;
        set_xmm(cpu, op.dst, r);
        Ok(())
    }

    #[inline(always)]
    fn scalar(cpu: &mut Cpu, op: &Op, b: F) -> Exec {
        if inexact_is_silent(cpu) {
            let a = F::lane(xmm(cpu, op.dst), 0);
            if let Some(r) = A::host(a, b)
                && quick(a, b, r)
            {
                r.put_low(cpu, op.dst);
                return Ok(());
            }
        }
        Self::scalar_exact(cpu, op, b)
    }

    #[inline(never)]
    fn scalar_exact(cpu: &mut Cpu, op: &Op, b: F) -> Exec {
        let mut env = begin(cpu);
        let r = A::apply(&mut env, F::lane(xmm(cpu, op.dst), 0), b, op.imm as u8);
        finish(cpu, &env)?;
        r.put_low(cpu, op.dst);
        Ok(())
    }

    fn packed_register(cpu: &mut Cpu, op: &Op) -> Exec {
        check_sse(cpu)?;
        Self::packed(cpu, op, xmm(cpu, op.src))
    }

    fn packed_memory(cpu: &mut Cpu, op: &Op) -> Exec {
        check_sse(cpu)?;
        let b = load_aligned(cpu, op)?;
        Self::packed(cpu, op, b)
    }

    fn scalar_register(cpu: &mut Cpu, op: &Op) -> Exec {
        check_sse(cpu)?;
        Self::scalar(cpu, op, F::lane(xmm(cpu, op.src), 0))
    }

    fn scalar_memory(cpu: &mut Cpu, op: &Op) -> Exec {
        check_sse(cpu)?;
        let b = cpu.load::<F>(op)?;
        Self::scalar(cpu, op, b)
    }
}

fn arithmetic(ins: &Instruction) -> Option<Forms> {
    macro_rules! table {
        ($($operation:ident $ps:ident $pd:ident $ss:ident $sd:ident;)*) => {
            match ins.mnemonic() {
                $(Mnemonic::$ps => Handlers::<u32, $operation>::PACKED,
                Mnemonic::$pd => Handlers::<u64, $operation>::PACKED,
                Mnemonic::$ss => Handlers::<u32, $operation>::SCALAR,
                // MOVSD's and CMPSD's string namesakes have no vector register.
                Mnemonic::$sd if !ins.is_string_instruction() => Handlers::<u64, $operation>::SCALAR,)*
                _ => return None,
            }
        };
    }
    Some(table! {
        Add Addps Addpd Addss Addsd;
        Sub Subps Subpd Subss Subsd;
        Mul Mulps Mulpd Mulss Mulsd;
        Div Divps Divpd Divss Divsd;
        Min Minps Minpd Minss Minsd;
        Max Maxps Maxpd Maxss Maxsd;
        Sqrt Sqrtps Sqrtpd Sqrtss Sqrtsd;
        Compare Cmpps Cmppd Cmpss Cmpsd;
        Round Roundps Roundpd Roundss Roundsd;
    })
}

/// Operations whose lanes are not alike, on whole registers.
fn lanes(ins: &Instruction) -> Option<Forms> {
    /// Forms whose result is `$f(env, a, b)`.
    macro_rules! whole {
        ($f:expr) => {{
            fn run(cpu: &mut Cpu, op: &Op, b: u128) -> Exec {
                let mut env = begin(cpu);
                let r = $f(&mut env, xmm(cpu, op.dst), b);
                finish(cpu, &env)?;
                set_xmm(cpu, op.dst, r);
                Ok(())
            }
            fn register(cpu: &mut Cpu, op: &Op) -> Exec {
                check_sse(cpu)?;
                run(cpu, op, xmm(cpu, op.src))
            }
            fn memory(cpu: &mut Cpu, op: &Op) -> Exec {
                check_sse(cpu)?;
                let b = load_aligned(cpu, op)?;
                run(cpu, op, b)
            }
            (register as Handler, memory as Handler)
        }};
    }
    Some(match ins.mnemonic() {
        Mnemonic::Addsubps => whole!(add_sub::<u32>),
        Mnemonic::Addsubpd => whole!(add_sub::<u64>),
        Mnemonic::Haddps => whole!(horizontal::<u32, Add>),
        Mnemonic::Haddpd => whole!(horizontal::<u64, Add>),
        Mnemonic::Hsubps => whole!(horizontal::<u32, Sub>),
        Mnemonic::Hsubpd => whole!(horizontal::<u64, Sub>),
        Mnemonic::Dpps => (dot_register::<u32>, dot_memory::<u32>),
        Mnemonic::Dppd => (dot_register::<u64>, dot_memory::<u64>),
        Mnemonic::Rcpps => sse_forms!(|_, b| approximate::packed(b, approximate::reciprocal)),
        Mnemonic::Rsqrtps => sse_forms!(|_, b| approximate::packed(b, approximate::reciprocal_root)),
        Mnemonic::Rcpss => sse_forms_narrow!(u32, |a, b| approximate::reciprocal(b as u32).into_low(a)),
        Mnemonic::Rsqrtss => {
            sse_forms_narrow!(u32, |a, b| approximate::reciprocal_root(b as u32).into_low(a))
        }
        _ => return None,
    })
}

fn add_sub<F: Real>(env: &mut Env, a: u128, b: u128) -> u128 {
    (0..F::LANES).fold(0, |r, i| {
        let (x, y) = (F::lane(a, i), F::lane(b, i));
        r | if i & 1 == 0 { ieee::sub(env, x, y) } else { ieee::add(env, x, y) }.at(i)
    })
}

fn horizontal<F: Real, A: Arithmetic>(env: &mut Env, a: u128, b: u128) -> u128 {
    let half = F::LANES / 2;
    (0..F::LANES).fold(0, |r, i| {
        let (v, k) = if i < half { (a, i) } else { (b, i - half) };
        r | A::apply(env, F::lane(v, 2 * k), F::lane(v, 2 * k + 1), 0).at(i)
    })
}

/// DPPS and DPPD: products of the lanes that bits 4–7 name, their sum into the lanes of bits 0–3.
///
/// Each step raises its exceptions before the next begins. Every lane adds for itself, as on the
/// silicon: the order of operands, and so which of two NaNs comes through, differs between lanes.
fn dot<F: Real>(cpu: &mut Cpu, op: &Op, b: u128) -> Exec {
    let (a, imm) = (xmm(cpu, op.dst), op.imm as u8);
    let mut env = begin(cpu);
    let mut products = [F::zero(false); 4];
    for (i, p) in products.iter_mut().enumerate().take(F::LANES) {
        if imm >> (4 + i) & 1 != 0 {
            *p = ieee::mul(&mut env, F::lane(a, i), F::lane(b, i));
        }
    }
    finish(cpu, &env)?;
    env = begin(cpu);
    let mut sums = [F::zero(false); 4];
    for i in 0..F::LANES {
        let (own, other) = (products[i], products[i ^ 1]);
        let (first, second) = if F::LANES == 2 { (own, other) } else { (other, own) };
        sums[i] = ieee::add(&mut env, first, second);
    }
    finish(cpu, &env)?;
    if F::LANES == 4 {
        env = begin(cpu);
        let pairs = sums;
        for i in 0..4 {
            sums[i] = ieee::add(&mut env, pairs[i], pairs[i ^ 2]);
        }
        finish(cpu, &env)?;
    }
    let r = (0..F::LANES).fold(0, |r, i| if imm >> i & 1 != 0 { r | sums[i].at(i) } else { r });
    set_xmm(cpu, op.dst, r);
    Ok(())
}

fn dot_register<F: Real>(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    dot::<F>(cpu, op, xmm(cpu, op.src))
}

fn dot_memory<F: Real>(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    let b = load_aligned(cpu, op)?;
    dot::<F>(cpu, op, b)
}

/// COMISS and its kin: a comparison into ZF, PF and CF.
fn comparison(ins: &Instruction) -> Option<Forms> {
    fn set_flags<F: Real, const SIGNALLING: bool>(cpu: &mut Cpu, a: F, b: F) -> Exec {
        let relation = if a.is_plain() && b.is_plain() {
            // Raises nothing, whatever MXCSR says.
            ieee::compare_quiet(&mut Env::default(), a, b)
        } else {
            let mut env = begin(cpu);
            let relation = if SIGNALLING {
                ieee::compare_signalling(&mut env, a, b)
            } else {
                ieee::compare_quiet(&mut env, a, b)
            };
            finish(cpu, &env)?;
            relation
        };
        cpu.flags = Flags::from_bits(match relation {
            Relation::Greater => 0,
            Relation::Less => rflags::CF,
            Relation::Equal => rflags::ZF,
            Relation::Unordered => rflags::ZF | rflags::PF | rflags::CF,
        });
        Ok(())
    }
    fn register<F: Real, const SIGNALLING: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
        check_sse(cpu)?;
        let (a, b) = (F::lane(xmm(cpu, op.dst), 0), F::lane(xmm(cpu, op.src), 0));
        set_flags::<F, SIGNALLING>(cpu, a, b)
    }
    fn memory<F: Real, const SIGNALLING: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
        check_sse(cpu)?;
        let b = cpu.load::<F>(op)?;
        set_flags::<F, SIGNALLING>(cpu, F::lane(xmm(cpu, op.dst), 0), b)
    }
    Some(match ins.mnemonic() {
        Mnemonic::Comiss => (register::<u32, true>, memory::<u32, true>),
        Mnemonic::Comisd => (register::<u64, true>, memory::<u64, true>),
        Mnemonic::Ucomiss => (register::<u32, false>, memory::<u32, false>),
        Mnemonic::Ucomisd => (register::<u64, false>, memory::<u64, false>),
        _ => return None,
    })
}
