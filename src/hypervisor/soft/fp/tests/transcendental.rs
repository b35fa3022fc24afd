//! The transcendental operations against the x87: within one unit in the last place, same flags.

use super::x87::{Memory, edges, random};
use super::{Random, cases};
use crate::hypervisor::soft::fp::{Env, F80, flag, transcendental as t};
use std::arch::asm;

macro_rules! hardware {
    ($name:ident, $instruction:literal) => {
        fn $name(control: u16, a: F80, b: F80) -> (F80, F80, u16) {
            let (a, b) = (Memory(a), Memory(b));
            let (mut x, mut y) = (Memory::default(), Memory::default());
            let mut status = 0u16;
            // SAFETY: the x87 is initialised before and left initialised; memory is ours.
            unsafe {
                asm!(
                    "fninit", "fldcw word ptr [{c}]",
                    "fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]",
                    $instruction,
                    "fnstsw word ptr [{s}]", "fnclex",
                    "fstp tbyte ptr [{x}]", "fnclex", "fstp tbyte ptr [{y}]", "fninit",
                    a = in(reg) &a, b = in(reg) &b, x = in(reg) &mut x, y = in(reg) &mut y,
                    c = in(reg) &control, s = in(reg) &mut status,
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                    out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                );
            }
            (x.0, y.0, status)
        }
    };
}

hardware!(fsin, "fsin");
hardware!(fcos, "fcos");
hardware!(fsincos, "fsincos");
hardware!(fptan, "fptan");
hardware!(fpatan, "fpatan");
hardware!(f2xm1, "f2xm1");
hardware!(fyl2x, "fyl2x");
hardware!(fyl2xp1, "fyl2xp1");

/// Results: top of stack, the one below it where there is one; `None` is C2.
type Soft = fn(&mut Env, F80, F80) -> Option<(F80, Option<F80>)>;
type Hardware = fn(u16, F80, F80) -> (F80, F80, u16);

fn near(a: F80, b: F80) -> bool {
    let key = |v: F80| i128::from(v.exponent()) << 63 | i128::from(v.sig & !(1 << 63));
    let number = |v: F80| v.exponent() != 0x7fff;
    a == b || a.negative() == b.negative() && number(a) && number(b) && (key(a) - key(b)).abs() <= 1
}

/// Returns how many of the results were not the very same.
fn check(name: &str, hardware: Hardware, soft: Soft, control: u16, a: F80, b: F80) -> u32 {
    let (top, below, status) = hardware(control, a, b);
    let mut e = Env::from_control(control);
    let got = soft(&mut e, a, b);
    let flags = status as u8 & 0x3f;
    let report = || {
        format!(
            "{name} {a:x?} {b:x?} control {control:#x}: {got:x?} {:#x}, silicon {top:x?} {below:x?} {status:#x}",
            e.flags
        )
    };
    assert_eq!(flags, e.flags, "{}", report());
    if flags & e.unmasked & flag::BEFORE != 0 {
        return 0;
    }
    assert_eq!(got.is_none(), status & 1 << 10 != 0, "{}", report());
    let Some((x, y)) = got else { return 0 };
    assert!(near(x, top) && y.is_none_or(|y| near(y, below)), "{}", report());
    u32::from(x != top || y.is_some_and(|y| y != below))
}

fn run(name: &str, hardware: Hardware, soft: Soft, domain: fn(F80, F80) -> bool, pairs: bool) {
    let edges = edges();
    let controls = [0x37f, 0x77f, 0xb7f, 0xf7f, 0x07f, 0x340];
    for (i, &a) in edges.iter().enumerate() {
        for (j, &b) in edges.iter().enumerate().take(if pairs { usize::MAX } else { 1 }) {
            if domain(a, b) {
                check(name, hardware, soft, controls[(i + j) % controls.len()], a, b);
            }
        }
    }
    let mut r = Random(0x2468_ace0_1357_9bdf);
    let (mut n, mut off) = (0, 0);
    for _ in 0..cases(150_000) {
        let (a, b) = (random(&mut r, &edges), random(&mut r, &edges));
        if domain(a, b) {
            n += 1;
            off += check(name, hardware, soft, r.pick(&controls), a, b);
        }
    }
    println!("{name}: {off} of {n} differ by one unit in the last place");
    assert!(n > 10_000);
}

fn anywhere(_: F80, _: F80) -> bool {
    true
}

#[test]
fn sines_are_silicons() {
    run("fsin", fsin, |e, a, _| t::sin(e, a).map(|r| (r, None)), anywhere, false);
    run("fcos", fcos, |e, a, _| t::cos(e, a).map(|r| (r, None)), anywhere, false);
    run("fsincos", fsincos, |e, a, _| t::sin_cos(e, a).map(|(s, c)| (c, Some(s))), anywhere, false);
}

#[test]
fn tangents_are_silicons() {
    run("fptan", fptan, |e, a, _| t::tan(e, a).map(|(v, one)| (one, Some(v))), anywhere, false);
    run("fpatan", fpatan, |e, a, b| Some((t::atan2(e, b, a), None)), anywhere, true);
}

#[test]
fn powers_are_silicons() {
    let domain = |a: F80, _| {
        a.exponent() < 0x3fff || a.exponent() == 0x3fff && a.sig <= 1 << 63 || a.exponent() == 0x7fff
    };
    run("f2xm1", f2xm1, |e, a, _| Some((t::exp2_m1(e, a), None)), domain, false);
}

#[test]
fn logarithms_are_silicons() {
    run("fyl2x", fyl2x, |e, a, b| Some((t::y_log2(e, b, a), None)), anywhere, true);
    let small = |a: F80, _| a.exponent() < 0x3ffd || a.exponent() == 0x7fff;
    run("fyl2xp1", fyl2xp1, |e, a, b| Some((t::y_log2_p1(e, b, a), None)), small, true);
}
