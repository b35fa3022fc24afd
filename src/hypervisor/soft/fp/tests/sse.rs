//! binary32 and binary64 against SSE instructions.

use std::arch::asm;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Random, cases};
use crate::hypervisor::soft::fp::{Env, Float, Relation, Rounding, convert, ieee};

/// All control settings with every exception masked: RC, DAZ and FTZ, flags clear or PE sticky.
fn controls() -> impl Iterator<Item = u32> {
    (0..32).map(|i| 0x1f80 | (i & 3) << 13 | (i >> 2 & 1) << 6 | (i >> 3 & 1) << 15 | (i >> 4 & 1) << 5)
}

macro_rules! hardware2 {
    ($name:ident, $t:ty, $instruction:literal) => {
        fn $name(mxcsr: &mut u32, a: $t, b: $t) -> $t {
            let mut out = u64::from(a);
            let default = 0x1f80u32;
            // SAFETY: loads and restores MXCSR around one SSE instruction on scratch registers.
            unsafe {
                asm!(
                    "movq {x}, {a}",
                    "movq {y}, {b}",
                    "ldmxcsr [{m}]",
                    concat!($instruction, " {x}, {y}"),
                    "stmxcsr [{m}]",
                    "ldmxcsr [{d}]",
                    "movq {a}, {x}",
                    x = out(xmm_reg) _, y = out(xmm_reg) _,
                    a = inout(reg) out, b = in(reg) u64::from(b),
                    m = in(reg) mxcsr, d = in(reg) &default,
                );
            }
            out as $t
        }
    };
}

/// One operand in (seen as `u64`), result in an XMM or a general register.
macro_rules! hardware1 {
    ($name:ident, xmm, $instruction:literal) => {
        fn $name(mxcsr: &mut u32, a: u64) -> u64 {
            let out: u64;
            let default = 0x1f80u32;
            // SAFETY: as above.
            unsafe {
                asm!(
                    "movq {x}, {a}", "pxor {y}, {y}",
                    "ldmxcsr [{m}]", $instruction, "stmxcsr [{m}]", "ldmxcsr [{d}]",
                    "movq {o}, {y}",
                    x = out(xmm_reg) _, y = out(xmm_reg) _, a = in(reg) a, o = lateout(reg) out,
                    m = in(reg) mxcsr, d = in(reg) &default,
                );
            }
            out
        }
    };
    ($name:ident, int, $instruction:literal) => {
        fn $name(mxcsr: &mut u32, a: u64) -> u64 {
            let out: u64;
            let default = 0x1f80u32;
            // SAFETY: as above.
            unsafe {
                asm!(
                    "movq {x}, {a}",
                    "ldmxcsr [{m}]", $instruction, "stmxcsr [{m}]", "ldmxcsr [{d}]",
                    x = out(xmm_reg) _, a = in(reg) a, o = out(reg) out,
                    m = in(reg) mxcsr, d = in(reg) &default,
                );
            }
            out
        }
    };
    ($name:ident, from, $instruction:literal) => {
        fn $name(mxcsr: &mut u32, a: u64) -> u64 {
            let out: u64;
            let default = 0x1f80u32;
            // SAFETY: as above.
            unsafe {
                asm!(
                    "pxor {y}, {y}",
                    "ldmxcsr [{m}]", $instruction, "stmxcsr [{m}]", "ldmxcsr [{d}]",
                    "movq {o}, {y}",
                    y = out(xmm_reg) _, a = in(reg) a, o = lateout(reg) out,
                    m = in(reg) mxcsr, d = in(reg) &default,
                );
            }
            out
        }
    };
}

macro_rules! compare {
    ($name:ident, $instruction:literal) => {
        fn $name(mxcsr: &mut u32, a: u64, b: u64) -> Relation {
            let (zero, parity, carry): (u8, u8, u8);
            let default = 0x1f80u32;
            // SAFETY: as above.
            unsafe {
                asm!(
                    "movq {x}, {a}", "movq {y}, {b}", "ldmxcsr [{m}]",
                    concat!($instruction, " {x}, {y}"),
                    "setz {z}", "setp {p}", "setc {c}",
                    "stmxcsr [{m}]", "ldmxcsr [{d}]",
                    x = out(xmm_reg) _, y = out(xmm_reg) _, a = in(reg) a, b = in(reg) b,
                    z = out(reg_byte) zero, p = out(reg_byte) parity, c = out(reg_byte) carry,
                    m = in(reg) mxcsr, d = in(reg) &default,
                );
            }
            match (zero, parity, carry) {
                (_, 1, _) => Relation::Unordered,
                (1, ..) => Relation::Equal,
                (_, _, 1) => Relation::Less,
                _ => Relation::Greater,
            }
        }
    };
}

hardware2!(addsd, u64, "addsd");
hardware2!(subsd, u64, "subsd");
hardware2!(mulsd, u64, "mulsd");
hardware2!(divsd, u64, "divsd");
hardware2!(minsd, u64, "minsd");
hardware2!(maxsd, u64, "maxsd");
hardware2!(addss, u32, "addss");
hardware2!(subss, u32, "subss");
hardware2!(mulss, u32, "mulss");
hardware2!(divss, u32, "divss");
hardware2!(minss, u32, "minss");
hardware2!(maxss, u32, "maxss");
compare!(comisd, "comisd");
compare!(ucomisd, "ucomisd");
compare!(comiss, "comiss");
compare!(ucomiss, "ucomiss");
hardware1!(sqrtsd, xmm, "sqrtsd {y}, {x}");
hardware1!(sqrtss, xmm, "sqrtss {y}, {x}");
hardware1!(cvtss2sd, xmm, "cvtss2sd {y}, {x}");
hardware1!(cvtsd2ss, xmm, "cvtsd2ss {y}, {x}");
hardware1!(roundsd0, xmm, "roundsd {y}, {x}, 0");
hardware1!(roundsd1, xmm, "roundsd {y}, {x}, 1");
hardware1!(roundsd2, xmm, "roundsd {y}, {x}, 2");
hardware1!(roundsd3, xmm, "roundsd {y}, {x}, 3");
hardware1!(roundsd8, xmm, "roundsd {y}, {x}, 8");
hardware1!(roundss0, xmm, "roundss {y}, {x}, 0");
hardware1!(roundss1, xmm, "roundss {y}, {x}, 1");
hardware1!(roundss2, xmm, "roundss {y}, {x}, 2");
hardware1!(roundss3, xmm, "roundss {y}, {x}, 3");
hardware1!(roundss8, xmm, "roundss {y}, {x}, 8");
hardware1!(cvtsd2si32, int, "cvtsd2si {o:e}, {x}");
hardware1!(cvtsd2si64, int, "cvtsd2si {o:r}, {x}");
hardware1!(cvttsd2si32, int, "cvttsd2si {o:e}, {x}");
hardware1!(cvttsd2si64, int, "cvttsd2si {o:r}, {x}");
hardware1!(cvtss2si32, int, "cvtss2si {o:e}, {x}");
hardware1!(cvtss2si64, int, "cvtss2si {o:r}, {x}");
hardware1!(cvttss2si32, int, "cvttss2si {o:e}, {x}");
hardware1!(cvttss2si64, int, "cvttss2si {o:r}, {x}");
hardware1!(cvtsi2sd32, from, "cvtsi2sd {y}, {a:e}");
hardware1!(cvtsi2sd64, from, "cvtsi2sd {y}, {a:r}");
hardware1!(cvtsi2ss32, from, "cvtsi2ss {y}, {a:e}");
hardware1!(cvtsi2ss64, from, "cvtsi2ss {y}, {a:r}");

/// Encodings at every edge of a format.
fn edges<F: Float>() -> Vec<F> {
    let f = F::FRACTION;
    let bias = F::BIAS as u64;
    let mut v = vec![0, 1, 2, 3, F::FRACTION_MASK, F::FRACTION_MASK - 1, 1 << (f - 1), 0x1234];
    for e in [1, 2, 3, f64::from(f) as u64, bias / 2, bias - 31, bias - 2, bias - 1, bias, bias + 1] {
        v.extend([
            e << f,
            e << f | 1,
            e << f | F::FRACTION_MASK,
            e << f | 1 << (f - 1),
            e << f | 0x155 << (f - 10),
        ]);
    }
    for e in
        [bias + u64::from(f), bias + u64::from(f) - 1, bias + 30, bias + 31, bias + 32, bias + 62, bias + 63]
    {
        v.extend([e << f, e << f | 1, e << f | 3, e << f | F::FRACTION_MASK]);
    }
    for e in [F::EXPONENT_MAX - 1, F::EXPONENT_MAX - 2] {
        v.extend([e << f, e << f | 1, e << f | F::FRACTION_MASK]);
    }
    let inf = F::INFINITY;
    v.extend([inf, inf | 1, inf | 0x1234, inf | F::QUIET, inf | F::QUIET | 0x4321, inf | F::FRACTION_MASK]);
    v.iter().flat_map(|&x| [F::narrow(x), F::narrow(x | F::SIGN)]).collect()
}

/// Encodings of many shapes: any bits, few bits, small integers, near each other, at the edges.
fn random<F: Float>(r: &mut Random, edges: &[F]) -> F {
    let bits = r.next();
    let shape = r.below(8);
    match shape {
        0 | 1 => F::narrow(bits),
        2 => r.pick(edges),
        3 => {
            let exponent = (F::BIAS as u64).wrapping_add(r.below(64)).wrapping_sub(32);
            F::narrow(bits & (F::SIGN | F::FRACTION_MASK) | exponent << F::FRACTION)
        }
        4 => {
            let mut env = Env::default();
            convert::from_i64(&mut env, (bits as i64) >> r.below(64))
        }
        5 => {
            let low = r.below(u64::from(F::FRACTION));
            F::narrow(bits & !F::INFINITY >> low << low | (F::BIAS as u64 + r.below(4)) << F::FRACTION)
        }
        6 => F::narrow(bits & (F::SIGN | F::FRACTION_MASK) | r.below(4) << F::FRACTION),
        _ => {
            let near = (F::BIAS as u64) / 2 + r.below(4);
            F::narrow(bits & (F::SIGN | F::FRACTION_MASK) | near << F::FRACTION)
        }
    }
}

type Hardware2<F> = fn(&mut u32, F, F) -> F;
type Soft2<F> = fn(&mut Env, F, F) -> F;

fn check2<F: Float>(name: &str, hardware: Hardware2<F>, soft: Soft2<F>, control: u32, a: F, b: F) {
    let mut mxcsr = control;
    let expected = hardware(&mut mxcsr, a, b).widen();
    let mut env = Env::from_mxcsr(control);
    let got = soft(&mut env, a, b).widen();
    assert!(
        expected == got && mxcsr as u8 & 0x3f == env.flags,
        "{name} {:#x}, {:#x} with MXCSR {control:#x}: {got:#x} flags {:#x}, silicon {expected:#x} flags {:#x}",
        a.widen(),
        b.widen(),
        env.flags,
        mxcsr & 0x3f
    );
}

fn binary<F: Float>(ops: &[(&str, Hardware2<F>, Soft2<F>)], seed: u64) {
    let edges = edges::<F>();
    let controls: Vec<u32> = controls().collect();
    for (name, hardware, soft) in ops {
        for &control in &controls {
            for &a in &edges {
                for &b in &edges {
                    check2(name, *hardware, *soft, control, a, b);
                }
            }
        }
        let mut r = Random(seed);
        for _ in 0..cases(200_000) {
            let control = r.pick(&controls);
            let (a, b) = (random(&mut r, &edges), random(&mut r, &edges));
            check2(name, *hardware, *soft, control, a, b);
        }
    }
}

#[test]
fn binary64_arithmetic_is_silicons() {
    binary::<u64>(
        &[
            ("addsd", addsd, ieee::add),
            ("subsd", subsd, ieee::sub),
            ("mulsd", mulsd, ieee::mul),
            ("divsd", divsd, ieee::div),
            ("minsd", minsd, ieee::min),
            ("maxsd", maxsd, ieee::max),
        ],
        0x1234_5678_9abc_def1,
    );
}

#[test]
fn binary32_arithmetic_is_silicons() {
    binary::<u32>(
        &[
            ("addss", addss, ieee::add),
            ("subss", subss, ieee::sub),
            ("mulss", mulss, ieee::mul),
            ("divss", divss, ieee::div),
            ("minss", minss, ieee::min),
            ("maxss", maxss, ieee::max),
        ],
        0x0f1e_2d3c_4b5a_6978,
    );
}

#[test]
fn slow_paths_are_silicons_where_the_fast_ones_serve() {
    binary::<u64>(
        &[
            ("addsd", addsd, |e, a, b| ieee::add_soft(e, a, b, false)),
            ("mulsd", mulsd, ieee::mul_soft),
            ("divsd", divsd, ieee::div_soft),
        ],
        0xabcd_ef01_2345_6789,
    );
    binary::<u32>(
        &[
            ("addss", addss, |e, a, b| ieee::add_soft(e, a, b, false)),
            ("mulss", mulss, ieee::mul_soft),
            ("divss", divss, ieee::div_soft),
        ],
        0x9876_5432_10fe_dcba,
    );
}

type HardwareCompare = fn(&mut u32, u64, u64) -> Relation;
type SoftCompare<F> = fn(&mut Env, F, F) -> Relation;

fn comparisons<F: Float>(ops: &[(HardwareCompare, SoftCompare<F>)]) {
    let edges = edges::<F>();
    for (hardware, soft) in ops {
        for control in controls() {
            for &a in &edges {
                for &b in &edges {
                    let mut mxcsr = control;
                    let expected = hardware(&mut mxcsr, a.widen(), b.widen());
                    let mut env = Env::from_mxcsr(control);
                    let got = soft(&mut env, a, b);
                    assert_eq!(
                        (expected, mxcsr as u8 & 0x3f),
                        (got, env.flags),
                        "{:#x} {:#x} {control:#x}",
                        a.widen(),
                        b.widen()
                    );
                }
            }
        }
    }
}

#[test]
fn comparisons_are_silicons() {
    comparisons::<u64>(&[(comisd, ieee::compare_signalling), (ucomisd, ieee::compare_quiet)]);
    comparisons::<u32>(&[(comiss, ieee::compare_signalling), (ucomiss, ieee::compare_quiet)]);
}

type Soft1 = fn(&mut Env, u64) -> u64;
type Hardware1 = fn(&mut u32, u64) -> u64;

fn unary<F: Float>(ops: &[(&str, Hardware1, Soft1)]) {
    let edges = edges::<F>();
    let controls: Vec<u32> = controls().collect();
    for (name, hardware, soft) in ops {
        let check = |control: u32, a: u64| {
            let mut mxcsr = control;
            let expected = hardware(&mut mxcsr, a);
            let mut env = Env::from_mxcsr(control);
            let got = soft(&mut env, a);
            assert!(
                expected == got && mxcsr as u8 & 0x3f == env.flags,
                "{name} {a:#x} with MXCSR {control:#x}: {got:#x} flags {:#x}, silicon {expected:#x} flags {:#x}",
                env.flags,
                mxcsr & 0x3f
            );
        };
        for &control in &controls {
            for &a in &edges {
                check(control, a.widen());
            }
        }
        let mut r = Random(0x7777_1111_3333_5555);
        for _ in 0..cases(200_000) {
            let a = random(&mut r, &edges).widen();
            check(r.pick(&controls), a);
        }
    }
}

fn rounded<F: Float>(e: &mut Env, a: u64, mode: Rounding, quiet: bool) -> u64 {
    convert::round_to_integral(e, F::narrow(a), mode, quiet).widen()
}

#[test]
fn binary64_conversions_are_silicons() {
    unary::<u64>(&[
        ("sqrtsd", sqrtsd, |e, a| ieee::sqrt(e, a)),
        ("sqrtsd slow", sqrtsd, |e, a| ieee::sqrt_soft(e, a)),
        ("cvtsd2ss", cvtsd2ss, |e, a| u64::from(convert::to_float::<u64, u32>(e, a))),
        ("cvtsd2si", cvtsd2si32, |e, a| convert::to_i32(e, a) as u32 as u64),
        ("cvttsd2si", cvttsd2si32, |e, a| convert::to_i32_truncated(e, a) as u32 as u64),
        ("cvtsd2si 64", cvtsd2si64, |e, a| convert::to_i64(e, a) as u64),
        ("cvttsd2si 64", cvttsd2si64, |e, a| convert::to_i64_truncated(e, a) as u64),
        ("cvtsi2sd", cvtsi2sd32, |e, a| convert::from_i32::<u64>(e, a as i32)),
        ("cvtsi2sd 64", cvtsi2sd64, |e, a| convert::from_i64::<u64>(e, a as i64)),
        ("cvtsi2ss 64", cvtsi2ss64, |e, a| convert::from_i64::<u32>(e, a as i64).into()),
        ("roundsd 0", roundsd0, |e, a| rounded::<u64>(e, a, Rounding::Nearest, false)),
        ("roundsd 1", roundsd1, |e, a| rounded::<u64>(e, a, Rounding::Down, false)),
        ("roundsd 2", roundsd2, |e, a| rounded::<u64>(e, a, Rounding::Up, false)),
        ("roundsd 3", roundsd3, |e, a| rounded::<u64>(e, a, Rounding::Zero, false)),
        ("roundsd 8", roundsd8, |e, a| rounded::<u64>(e, a, Rounding::Nearest, true)),
    ]);
}

#[test]
fn binary32_conversions_are_silicons() {
    unary::<u32>(&[
        ("sqrtss", sqrtss, |e, a| ieee::sqrt(e, a as u32).into()),
        ("sqrtss slow", sqrtss, |e, a| ieee::sqrt_soft(e, a as u32).into()),
        ("cvtss2sd", cvtss2sd, |e, a| convert::to_float::<u32, u64>(e, a as u32)),
        ("cvtss2si", cvtss2si32, |e, a| convert::to_i32(e, a as u32) as u32 as u64),
        ("cvttss2si", cvttss2si32, |e, a| convert::to_i32_truncated(e, a as u32) as u32 as u64),
        ("cvtss2si 64", cvtss2si64, |e, a| convert::to_i64(e, a as u32) as u64),
        ("cvttss2si 64", cvttss2si64, |e, a| convert::to_i64_truncated(e, a as u32) as u64),
        ("cvtsi2ss", cvtsi2ss32, |e, a| convert::from_i32::<u32>(e, a as i32).into()),
        ("roundss 0", roundss0, |e, a| rounded::<u32>(e, a, Rounding::Nearest, false)),
        ("roundss 1", roundss1, |e, a| rounded::<u32>(e, a, Rounding::Down, false)),
        ("roundss 2", roundss2, |e, a| rounded::<u32>(e, a, Rounding::Up, false)),
        ("roundss 3", roundss3, |e, a| rounded::<u32>(e, a, Rounding::Zero, false)),
        ("roundss 8", roundss8, |e, a| rounded::<u32>(e, a, Rounding::Nearest, true)),
    ]);
}

/// MXCSR as the last SIGFPE found it.
static TRAPPED: AtomicU32 = AtomicU32::new(0);

/// Notes MXCSR and masks everything, so that the instruction completes.
extern "C" fn on_trap(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid context to an SA_SIGINFO handler.
    unsafe {
        let fpregs = (*context.cast::<libc::ucontext_t>()).uc_mcontext.fpregs;
        TRAPPED.store((*fpregs).mxcsr, Ordering::SeqCst);
        (*fpregs).mxcsr |= 0x1f80;
    }
}

#[test]
fn unmasked_exceptions_are_silicons() {
    crate::hypervisor::soft::oracle::with_sigfpe(on_trap, compare_traps);
}

fn compare_traps() {
    let edges = edges::<u64>();
    let ops: [(&str, Hardware2<u64>, Soft2<u64>); 8] = [
        ("addsd", addsd, ieee::add),
        ("mulsd", mulsd, ieee::mul),
        ("divsd", divsd, ieee::div),
        ("minsd", minsd, ieee::min),
        ("sqrtsd", |m, a, _| sqrtsd(m, a), |e, a, _| ieee::sqrt(e, a)),
        ("cvtsd2ss", |m, a, _| cvtsd2ss(m, a), |e, a, _| u64::from(convert::to_float::<u64, u32>(e, a))),
        ("cvtsd2si", |m, a, _| cvtsd2si32(m, a), |e, a, _| u64::from(convert::to_i32(e, a) as u32)),
        (
            "cvtss2sd",
            |m, a, _| cvtss2sd(m, a >> 32),
            |e, a, _| convert::to_float::<u32, u64>(e, (a >> 32) as u32),
        ),
    ];
    let mut r = Random(0x4444_8888_cccc_1111);
    for _ in 0..cases(150_000) {
        let (name, hardware, soft) = r.pick(&ops);
        let control = (r.next() as u32 & 0x3f | r.below(4) as u32) << 7 | (r.next() as u32) & 0xe040;
        let (a, b) = (random(&mut r, &edges), random(&mut r, &edges));
        TRAPPED.store(0, Ordering::SeqCst);
        let mut mxcsr = control;
        let expected = hardware(&mut mxcsr, a, b);
        let trapped = TRAPPED.load(Ordering::SeqCst);
        let flags = if trapped != 0 { trapped } else { mxcsr } as u8 & 0x3f;
        let mut e = Env::from_mxcsr(control);
        let got = soft(&mut e, a, b);
        assert!(
            flags == e.flags && (trapped != 0 || got == expected),
            "{name} {a:#x}, {b:#x} with MXCSR {control:#x}: {got:#x} {:#x}, silicon {expected:#x} {flags:#x}",
            e.flags
        );
        assert_eq!(trapped != 0, e.flags & e.unmasked != 0);
    }
}
