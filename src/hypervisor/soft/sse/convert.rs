//! Conversions between the float formats and integers.

use iced_x86::{Instruction, Mnemonic};

use super::super::cpu::Cpu;
use super::super::fp::convert::*;
use super::super::fp::{Env, Float};
use super::super::op::{Exec, Handler, Op};
use super::access::*;
use super::float::{Real, begin, finish, inexact_is_silent};
use super::lane::Vector;

pub(super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let forms = from_general(ins)
        .or_else(|| to_general(ins))
        .or_else(|| within_xmm(ins))
        .or_else(|| with_mmx(ins))?;
    operands(ins, op);
    Some(by_source(ins, forms))
}

/// CVTSI2SD and CVTSI2SS.
fn from_general(ins: &Instruction) -> Option<Forms> {
    fn put<F: Real>(cpu: &mut Cpu, op: &Op, v: i64) -> Exec {
        if F::BYTES == 8 && v.unsigned_abs() <= 1 << 53 {
            set_xmm_low64(cpu, op.dst, (v as f64).to_bits());
            return Ok(());
        }
        let mut env = begin(cpu);
        let r = from_i64::<F>(&mut env, v);
        finish(cpu, &env)?;
        r.put_low(cpu, op.dst);
        Ok(())
    }
    /// 32 bits fit a binary64: no exception, no rounding.
    fn put_exact(cpu: &mut Cpu, op: &Op, v: i32) -> Exec {
        set_xmm_low64(cpu, op.dst, f64::from(v).to_bits());
        Ok(())
    }
    fn sd32_register(cpu: &mut Cpu, op: &Op) -> Exec {
        check_sse(cpu)?;
        put_exact(cpu, op, cpu.get::<u32>(op.src) as i32)
    }
    fn sd32_memory(cpu: &mut Cpu, op: &Op) -> Exec {
        check_sse(cpu)?;
        let v = cpu.load::<u32>(op)?;
        put_exact(cpu, op, v as i32)
    }
    fn register32<F: Real>(cpu: &mut Cpu, op: &Op) -> Exec {
        check_sse(cpu)?;
        put::<F>(cpu, op, i64::from(cpu.get::<u32>(op.src) as i32))
    }
    fn memory32<F: Real>(cpu: &mut Cpu, op: &Op) -> Exec {
        check_sse(cpu)?;
        let v = cpu.load::<u32>(op)?;
        put::<F>(cpu, op, i64::from(v as i32))
    }
    fn register64<F: Real>(cpu: &mut Cpu, op: &Op) -> Exec {
        check_sse(cpu)?;
        put::<F>(cpu, op, cpu.get::<u64>(op.src) as i64)
    }
    fn memory64<F: Real>(cpu: &mut Cpu, op: &Op) -> Exec {
        check_sse(cpu)?;
        let v = cpu.load::<u64>(op)?;
        put::<F>(cpu, op, v as i64)
    }
    let wide = source_size(ins) == 8;
    Some(match ins.mnemonic() {
        Mnemonic::Cvtsi2sd if wide => (register64::<u64>, memory64::<u64>),
        Mnemonic::Cvtsi2sd => (sd32_register, sd32_memory),
        Mnemonic::Cvtsi2ss if wide => (register64::<u32>, memory64::<u32>),
        Mnemonic::Cvtsi2ss => (register32::<u32>, memory32::<u32>),
        _ => return None,
    })
}

/// Size in bytes of the second operand.
fn source_size(ins: &Instruction) -> usize {
    if is_register(ins, 1) { ins.op1_register().size() } else { ins.memory_size().size() }
}

/// CVT(T)SS2SI and CVT(T)SD2SI.
fn to_general(ins: &Instruction) -> Option<Forms> {
    fn put<F: Real, const WIDE: bool, const TRUNCATE: bool>(cpu: &mut Cpu, op: &Op, v: F) -> Exec {
        // What is in range of both and exact, or may be cut off, raises nothing.
        if F::BYTES == 8 {
            let value = f64::from_bits(v.widen());
            let integer = value as i32;
            let whole = f64::from(integer);
            if whole == value || TRUNCATE && inexact_is_silent(cpu) && v.exponent().wrapping_sub(1023) < 31 {
                if WIDE {
                    cpu.set::<u64>(op.dst, i64::from(integer) as u64);
                } else {
                    cpu.set::<u32>(op.dst, integer as u32);
                }
                return Ok(());
            }
        }
        let mut env = begin(cpu);
        if WIDE {
            let r = if TRUNCATE { to_i64_truncated(&mut env, v) } else { to_i64(&mut env, v) };
            finish(cpu, &env)?;
            cpu.set::<u64>(op.dst, r as u64);
        } else {
            let r = if TRUNCATE { to_i32_truncated(&mut env, v) } else { to_i32(&mut env, v) };
            finish(cpu, &env)?;
            cpu.set::<u32>(op.dst, r as u32);
        }
        Ok(())
    }
    fn register<F: Real, const WIDE: bool, const TRUNCATE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
        check_sse(cpu)?;
        put::<F, WIDE, TRUNCATE>(cpu, op, F::lane(xmm(cpu, op.src), 0))
    }
    fn memory<F: Real, const WIDE: bool, const TRUNCATE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
        check_sse(cpu)?;
        let v = cpu.load::<F>(op)?;
        put::<F, WIDE, TRUNCATE>(cpu, op, v)
    }
    fn forms<F: Real, const TRUNCATE: bool>(wide: bool) -> Forms {
        if wide {
            (register::<F, true, TRUNCATE>, memory::<F, true, TRUNCATE>)
        } else {
            (register::<F, false, TRUNCATE>, memory::<F, false, TRUNCATE>)
        }
    }
    let wide = is_register(ins, 0) && ins.op0_register().is_gpr64();
    Some(match ins.mnemonic() {
        Mnemonic::Cvtss2si => forms::<u32, false>(wide),
        Mnemonic::Cvttss2si => forms::<u32, true>(wide),
        Mnemonic::Cvtsd2si => forms::<u64, false>(wide),
        Mnemonic::Cvttsd2si => forms::<u64, true>(wide),
        _ => return None,
    })
}

/// Forms with a result in a vector register that `$f(env, a, b)` computes; the memory operand is
/// loaded by `$load`.
macro_rules! converting {
    ($load:expr, $f:expr) => {{
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
            let b = $load(cpu, op)?;
            run(cpu, op, b.into())
        }
        (register as Handler, memory as Handler)
    }};
}

fn within_xmm(ins: &Instruction) -> Option<Forms> {
    Some(match ins.mnemonic() {
        Mnemonic::Cvtss2sd => (ss2sd_register, ss2sd_memory),
        Mnemonic::Cvtsd2ss => (sd2ss_register, sd2ss_memory),
        Mnemonic::Cvtps2pd => converting!(Cpu::load::<u64>, |env: &mut Env, _, b: u128| u128::from64(|i| {
            to_float(env, b.u32(i))
        })),
        Mnemonic::Cvtpd2ps => {
            converting!(load_aligned, |env: &mut Env, _, b: u128| two(|i| to_float(env, b.u64(i))))
        }
        Mnemonic::Cvtdq2ps => converting!(load_aligned, |env: &mut Env, _, b: u128| u128::from32(|i| {
            from_i32(env, b.u32(i) as i32)
        })),
        Mnemonic::Cvtdq2pd => {
            sse_forms_narrow!(u64, |_, b: u128| u128::from64(|i| { f64::from(b.u32(i) as i32).to_bits() }))
        }
        Mnemonic::Cvtps2dq => converting!(load_aligned, |env: &mut Env, _, b: u128| u128::from32(|i| {
            to_i32(env, b.u32(i)) as u32
        })),
        Mnemonic::Cvttps2dq => converting!(load_aligned, |env: &mut Env, _, b: u128| u128::from32(|i| {
            to_i32_truncated(env, b.u32(i)) as u32
        })),
        Mnemonic::Cvtpd2dq => {
            converting!(load_aligned, |env: &mut Env, _, b: u128| two(|i| to_i32(env, b.u64(i)) as u32))
        }
        Mnemonic::Cvttpd2dq => {
            converting!(load_aligned, |env: &mut Env, _, b: u128| two(
                |i| to_i32_truncated(env, b.u64(i)) as u32
            ))
        }
        _ => return None,
    })
}

fn ss2sd(cpu: &mut Cpu, op: &Op, v: u32) -> Exec {
    // Every binary32 is a binary64.
    if v.is_plain() {
        set_xmm_low64(cpu, op.dst, f64::from(f32::from_bits(v)).to_bits());
        return Ok(());
    }
    let mut env = begin(cpu);
    let r: u64 = to_float(&mut env, v);
    finish(cpu, &env)?;
    set_xmm_low64(cpu, op.dst, r);
    Ok(())
}

fn sd2ss(cpu: &mut Cpu, op: &Op, v: u64) -> Exec {
    let host = (f64::from_bits(v) as f32).to_bits();
    // Finite, normal and away from the ends of the range, it is at most inexact.
    if inexact_is_silent(cpu) && host.exponent().wrapping_sub(2) < u32::EXPONENT_MAX - 4 {
        set_xmm_low32(cpu, op.dst, host);
        return Ok(());
    }
    let mut env = begin(cpu);
    let r: u32 = to_float(&mut env, v);
    finish(cpu, &env)?;
    set_xmm_low32(cpu, op.dst, r);
    Ok(())
}

fn ss2sd_register(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    ss2sd(cpu, op, xmm(cpu, op.src) as u32)
}

fn ss2sd_memory(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    let v = cpu.load::<u32>(op)?;
    ss2sd(cpu, op, v)
}

fn sd2ss_register(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    sd2ss(cpu, op, xmm(cpu, op.src) as u64)
}

fn sd2ss_memory(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    let v = cpu.load::<u64>(op)?;
    sd2ss(cpu, op, v)
}

/// Two doublewords in the low half, the rest zero.
fn two(mut f: impl FnMut(usize) -> u32) -> u128 {
    let low = f(0);
    u128::from(u64::from(low) | u64::from(f(1)) << 32)
}

/// Conversions between an MMX and an XMM register.
fn with_mmx(ins: &Instruction) -> Option<Forms> {
    /// To an MMX register.
    macro_rules! to_mmx {
        ($load:expr, $f:expr) => {{
            fn run(cpu: &mut Cpu, op: &Op, b: u128) -> Exec {
                let mut env = begin(cpu);
                let r = two(|i| $f(&mut env, b, i) as u32);
                // The change to MMX happens even if the conversion then raises an exception.
                enter_mmx(&mut cpu.fpu);
                finish(cpu, &env)?;
                set_mm(cpu, op.dst, r as u64);
                Ok(())
            }
            fn register(cpu: &mut Cpu, op: &Op) -> Exec {
                check_sse(cpu)?;
                check_mmx(cpu)?;
                run(cpu, op, xmm(cpu, op.src))
            }
            fn memory(cpu: &mut Cpu, op: &Op) -> Exec {
                check_sse(cpu)?;
                check_mmx(cpu)?;
                let b = $load(cpu, op)?;
                run(cpu, op, b.into())
            }
            (register as Handler, memory as Handler)
        }};
    }
    Some(match ins.mnemonic() {
        Mnemonic::Cvtpi2ps => (pi2ps_register, pi2ps_memory),
        Mnemonic::Cvtpi2pd => (pi2pd_register, pi2pd_memory),
        Mnemonic::Cvtps2pi => to_mmx!(Cpu::load::<u64>, |env: &mut Env, b: u128, i| to_i32(env, b.u32(i))),
        Mnemonic::Cvttps2pi => {
            to_mmx!(Cpu::load::<u64>, |env: &mut Env, b: u128, i| to_i32_truncated(env, b.u32(i)))
        }
        Mnemonic::Cvtpd2pi => to_mmx!(load_aligned, |env: &mut Env, b: u128, i| to_i32(env, b.u64(i))),
        Mnemonic::Cvttpd2pi => {
            to_mmx!(load_aligned, |env: &mut Env, b: u128, i| to_i32_truncated(env, b.u64(i)))
        }
        _ => return None,
    })
}

fn pi2ps(cpu: &mut Cpu, op: &Op, b: u64) -> Exec {
    let mut env: Env = begin(cpu);
    let r = two(|i| from_i32(&mut env, b.u32(i) as i32));
    finish(cpu, &env)?;
    set_xmm_low64(cpu, op.dst, r as u64);
    Ok(())
}

fn pi2ps_register(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    check_mmx(cpu)?;
    enter_mmx(&mut cpu.fpu);
    pi2ps(cpu, op, mm(cpu, op.src))
}

fn pi2ps_memory(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    let b = cpu.load::<u64>(op)?;
    pi2ps(cpu, op, b)
}

fn pi2pd(cpu: &mut Cpu, op: &Op, b: u64) -> Exec {
    set_xmm(cpu, op.dst, u128::from64(|i| f64::from(b.u32(i) as i32).to_bits()));
    Ok(())
}

fn pi2pd_register(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    check_mmx(cpu)?;
    enter_mmx(&mut cpu.fpu);
    pi2pd(cpu, op, mm(cpu, op.src))
}

fn pi2pd_memory(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    let b = cpu.load::<u64>(op)?;
    pi2pd(cpu, op, b)
}
