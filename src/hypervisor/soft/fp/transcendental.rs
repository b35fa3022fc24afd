//! The x87 transcendental operations, computed with 128-bit significands and rounded once.
//!
//! Series run in fixed point with 127 fraction bits on a *factor* near one, which then multiplies
//! the reduced argument, so that results are good to about 120 bits in relative terms. Arguments of
//! the trigonometric operations are reduced exactly by the 66-bit pi that the hardware uses.

use super::f80::{Class, F80, invalid, pack, special1, special2};
use super::num::{Num, shift_right_jam};
use super::{Env, Precision, flag};

const ONE: u128 = 1 << 127;
/// The exponent of the least normal number.
const LEAST_EXPONENT: i32 = -16382;
/// Arguments below this exponent have cubes far below their last place.
const TINY: i32 = -70;
/// Pi times 2^64: pi/2 in units of 2^-65, as the hardware has it.
const HALF_PI_66: u128 = 0x3_243f_6a88_85a3_08d3;
const PI: Num = positive(1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1);
const HALF_PI: Num = Num { exp: 0, ..PI };
const QUARTER_PI: Num = Num { exp: -1, ..PI };
const THREE_QUARTER_PI: Num = positive(1, 0x96cb_e3f9_990e_91a7_9394_c9e8_a0a5_159d);
const LN_2: Num = positive(-1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af);
const LOG2_E: Num = positive(0, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e89);
const UNIT: Num = positive(0, ONE);

const fn positive(exp: i32, sig: u128) -> Num {
    Num { sign: false, exp, sig }
}

/// The 256-bit product as its two halves.
fn mul_full(a: u128, b: u128) -> (u128, u128) {
    let low = |v: u128| v & u128::from(u64::MAX);
    let (a1, a0, b1, b0) = (a >> 64, low(a), b >> 64, low(b));
    let bottom = a0 * b0;
    let middle = a1 * b0 + (bottom >> 64);
    let cross = a0 * b1 + low(middle);
    (a1 * b1 + (middle >> 64) + (cross >> 64), cross << 64 | low(bottom))
}

/// Product of two fixed-point numbers with 127 fraction bits.
fn mul_fixed(a: u128, b: u128) -> u128 {
    let (high, low) = mul_full(a, b);
    high << 1 | low >> 127
}

fn mul(a: Num, b: Num) -> Num {
    let (high, low) = mul_full(a.sig, b.sig);
    Num::normalize(a.sign ^ b.sign, a.exp + b.exp + 1, high | u128::from(low != 0))
}

/// Quotient with all of its 128 bits, the last one sticky.
fn div(a: Num, b: Num) -> Num {
    let mut exp = a.exp - b.exp;
    let mut rest = a.sig;
    let mut carry = false;
    if rest < b.sig {
        carry = true;
        rest <<= 1;
        exp -= 1;
    }
    let mut q = 0;
    for _ in 0..128 {
        q <<= 1;
        if carry || rest >= b.sig {
            rest = rest.wrapping_sub(b.sig);
            q |= 1;
        }
        carry = rest >> 127 != 0;
        rest <<= 1;
    }
    Num { sign: a.sign ^ b.sign, exp, sig: q | u128::from(rest != 0 || carry) }
}

/// Magnitude below two as fixed point.
fn fixed(a: Num) -> u128 {
    shift_right_jam(a.sig, (-a.exp).max(0) as u32)
}

fn inexact(n: Num) -> Num {
    Num { sig: n.sig | 1, ..n }
}

/// `c[0] - x (c[1] - x (c[2] - ...))`, kept below one, which the true value of every series here is.
fn alternating(c: &[u128], x: u128) -> Num {
    let sum = c.iter().rev().fold(0, |sum, &c| c - mul_fixed(x, sum));
    Num::normalize(false, 0, sum.min(ONE - 1))
}

/// `1 / (first (first + 1) ...)` and so on: reciprocals of factorials, every `step`-th.
const fn factorials<const N: usize>(first: u128, step: u128) -> [u128; N] {
    let mut c = [ONE; N];
    let mut k = 1;
    let mut n = first;
    while k < N {
        let mut v = c[k - 1];
        let mut i = 0;
        while i < step {
            v /= n;
            n += 1;
            i += 1;
        }
        c[k] = v;
        k += 1;
    }
    c
}

/// `1, 1/3, 1/5, ...`
const fn odd_reciprocals<const N: usize>() -> [u128; N] {
    let mut c = [ONE; N];
    let mut k = 0;
    while k < N {
        c[k] = ONE / (2 * k as u128 + 1);
        k += 1;
    }
    c
}

const SIN: [u128; 16] = factorials(2, 2);
const COS: [u128; 16] = factorials(1, 2);
const EXP: [u128; 34] = factorials(2, 1);
const ATAN: [u128; 50] = odd_reciprocals();
const LOG: [u128; 27] = odd_reciprocals();

/// Sine of a magnitude up to pi/4; the sign carries over.
fn sin_kernel(r: Num) -> Num {
    let x = fixed(r);
    inexact(mul(r, alternating(&SIN, mul_fixed(x, x))))
}

fn cos_kernel(r: Num) -> Num {
    let x = fixed(r);
    inexact(alternating(&COS, mul_fixed(x, x)))
}

/// Arc tangent of a magnitude up to one; the sign carries over.
fn atan_kernel(t: Num) -> Num {
    let series = |u: Num| {
        let x = fixed(u);
        inexact(mul(u, alternating(&ATAN, mul_fixed(x, x))))
    };
    let magnitude = Num { sign: false, ..t };
    if fixed(magnitude) < ONE / 5 * 2 {
        return series(t);
    }
    let shifted = match Num::add(magnitude, Num { sign: true, ..UNIT }) {
        Some(v) => div(v, plus(magnitude, UNIT)),
        None => return Num { sign: t.sign, ..QUARTER_PI },
    };
    Num { sign: t.sign, ..plus(QUARTER_PI, series(shifted)) }
}

/// A sum that cannot cancel to zero.
fn plus(a: Num, b: Num) -> Num {
    Num::add(a, b).unwrap_or(Num { exp: i32::MIN / 4, ..UNIT })
}

/// Natural logarithm of `(1 + s) / (1 - s)`, for a magnitude of `s` up to 0.18.
fn log_kernel(s: Num) -> Num {
    let x = fixed(s);
    let x = mul_fixed(x, x);
    let sum = LOG.iter().rev().fold(0, |sum, &c| c + mul_fixed(x, sum));
    let product = mul(s, Num::normalize(false, 0, sum));
    inexact(Num { exp: product.exp + 1, ..product })
}

/// Binary logarithm of a positive number; `None` is an exact zero.
fn log2(x: Num) -> Option<Num> {
    // A significand between sqrt(1/2) and sqrt(2).
    let (exponent, m) = if x.sig > 0xb504_f333_f9de_6484 << 64 {
        (x.exp + 1, Num { exp: -1, ..x })
    } else {
        (x.exp, Num { exp: 0, ..x })
    };
    let fraction = Num::add(m, Num { sign: true, ..UNIT })
        .map(|less_one| mul(log_kernel(div(less_one, plus(m, UNIT))), LOG2_E));
    let whole =
        (exponent != 0).then(|| Num::normalize(exponent < 0, 127, u128::from(exponent.unsigned_abs())));
    match (whole, fraction) {
        (Some(w), Some(f)) => Some(inexact(plus(w, f))),
        (w, f) => w.or(f),
    }
}

/// Binary logarithm of `1 + x`, for `x > -1`.
fn log2_1p(x: Num) -> Option<Num> {
    if x.exp >= -2 {
        return log2(plus(UNIT, x));
    }
    let two = Num { exp: 1, ..UNIT };
    Some(inexact(mul(log_kernel(div(x, plus(two, x))), LOG2_E)))
}

/// A trigonometric argument: its quadrant, and the signed rest within pi/4 of it.
fn reduce(n: Num) -> (u8, Num) {
    if n.exp < -1 {
        return (0, n);
    }
    let x = (n.sig >> 64) << (n.exp + 2);
    let (mut q, mut r) = (x / HALF_PI_66, x % HALF_PI_66);
    let mut sign = n.sign;
    if r > HALF_PI_66 / 2 {
        q += 1;
        r = HALF_PI_66 - r;
        sign = !sign;
    }
    let quadrant = (q & 3) as u8;
    let quadrant = if n.sign { quadrant.wrapping_neg() & 3 } else { quadrant };
    (quadrant, Num::normalize(sign, 62, r))
}

fn sin_of(quadrant: u8, r: Num) -> Num {
    let v = if quadrant & 1 == 0 { sin_kernel(r) } else { cos_kernel(r) };
    Num { sign: v.sign ^ (quadrant & 2 != 0), ..v }
}

/// What a trigonometric operation starts with.
enum Argument {
    /// The operation is over, with this result.
    Done(F80),
    /// Zero of this sign.
    Zero(bool),
    /// Too large: C2 is set and nothing changes.
    OutOfRange,
    Reduced(u8, Num),
}

fn argument(env: &mut Env, a: F80) -> Argument {
    if let Some(r) = special1(env, a) {
        return Argument::Done(r);
    }
    match a.class() {
        Class::Zero(s) => Argument::Zero(s),
        Class::Finite(n) => {
            if env.denormal(a.is_denormal()) {
                Argument::Done(a)
            } else if n.exp >= 63 {
                Argument::OutOfRange
            } else {
                let (quadrant, r) = reduce(n);
                Argument::Reduced(quadrant, r)
            }
        }
        _ => Argument::Done(invalid(env)),
    }
}

fn finish(env: &mut Env, n: Num) -> F80 {
    pack(env, Precision::Extended, n)
}

/// Rounds a value that stands for one below it by next to nothing, or is exact: the hardware
/// delivers it as if exact, but reports it inexact, and tiny up to the least normal number.
fn finish_tiny(env: &mut Env, n: Num) -> F80 {
    let r = pack(env, Precision::Extended, n);
    env.raise(flag::PE);
    if n.exp < LEAST_EXPONENT && env.unmasked & flag::UE == 0 {
        env.raise(flag::UE);
    }
    r
}

/// FSIN. `None` is an argument out of range (C2).
pub(crate) fn sin(env: &mut Env, a: F80) -> Option<F80> {
    Some(match argument(env, a) {
        Argument::Done(r) => r,
        Argument::Zero(s) => F80::zero(s),
        Argument::OutOfRange => return None,
        Argument::Reduced(0, r) if r.exp < TINY => finish_tiny(env, r),
        Argument::Reduced(q, r) => finish(env, sin_of(q, r)),
    })
}

/// FCOS. `None` is an argument out of range (C2).
pub(crate) fn cos(env: &mut Env, a: F80) -> Option<F80> {
    Some(match argument(env, a) {
        Argument::Done(r) => r,
        Argument::Zero(_) => F80::ONE,
        Argument::OutOfRange => return None,
        Argument::Reduced(q, r) => finish(env, sin_of(q + 1, r)),
    })
}

/// FSINCOS: sine and cosine. `None` is an argument out of range (C2).
pub(crate) fn sin_cos(env: &mut Env, a: F80) -> Option<(F80, F80)> {
    Some(match argument(env, a) {
        Argument::Done(r) => (r, r),
        Argument::Zero(s) => (F80::zero(s), F80::ONE),
        Argument::OutOfRange => return None,
        Argument::Reduced(0, r) if r.exp < TINY => (finish_tiny(env, r), finish(env, cos_kernel(r))),
        Argument::Reduced(q, r) => (finish(env, sin_of(q, r)), finish(env, sin_of(q + 1, r))),
    })
}

/// FPTAN: the tangent, and what is pushed above it (1.0, or the same NaN). `None` is an argument
/// out of range (C2).
pub(crate) fn tan(env: &mut Env, a: F80) -> Option<(F80, F80)> {
    Some(match argument(env, a) {
        Argument::Done(r) => (r, r),
        Argument::Zero(s) => (F80::zero(s), F80::ONE),
        Argument::OutOfRange => return None,
        Argument::Reduced(q, r) => {
            let t = if q == 0 && r.exp < TINY {
                finish_tiny(env, r)
            } else {
                finish(env, inexact(div(sin_of(q, r), sin_of(q + 1, r))))
            };
            (t, F80::ONE)
        }
    })
}

/// FPATAN: the angle of the point (`x`, `y`).
pub(crate) fn atan2(env: &mut Env, y: F80, x: F80) -> F80 {
    if let Some(r) = special2(env, x, y) {
        return r;
    }
    if env.denormal(x.is_denormal() || y.is_denormal()) {
        return x;
    }
    let (left, sign) = (x.negative(), y.negative());
    let angle = match (y.class(), x.class()) {
        (Class::Infinite(_), Class::Infinite(_)) if left => THREE_QUARTER_PI,
        (Class::Infinite(_), Class::Infinite(_)) => QUARTER_PI,
        (Class::Infinite(_), _) | (Class::Finite(_), Class::Zero(_)) => HALF_PI,
        (Class::Finite(n), Class::Finite(m)) => {
            let (n, m) = (Num { sign: false, ..n }, Num { sign: false, ..m });
            if (n.exp, n.sig) > (m.exp, m.sig) {
                let t = atan_kernel(div(m, n));
                plus(HALF_PI, Num { sign: !left, ..t })
            } else {
                let t = div(n, m);
                if !left && t.exp < TINY {
                    return finish_tiny(env, Num { sign, ..t });
                }
                let t = atan_kernel(t);
                if left { plus(PI, Num { sign: true, ..t }) } else { t }
            }
        }
        _ if left => PI,
        _ => return F80::zero(sign),
    };
    finish(env, inexact(Num { sign, ..angle }))
}

/// F2XM1: `2^x - 1`. Outside of -1 to 1, where the manual leaves the result open, `x` itself.
pub(crate) fn exp2_m1(env: &mut Env, a: F80) -> F80 {
    if let Some(r) = special1(env, a) {
        return r;
    }
    let n = match a.class() {
        Class::Infinite(true) => return F80::ONE.negated(),
        Class::Finite(n) => n,
        _ => return a,
    };
    if env.denormal(a.is_denormal()) {
        return a;
    }
    if n.exp >= 0 {
        return match (n.sign, n.exp == 0 && n.sig == ONE) {
            (true, true) => {
                env.raise(flag::PE);
                F80 { sig: 1 << 63, se: 0xbffe }
            }
            (false, true) => {
                env.raise(flag::PE);
                a
            }
            _ => a,
        };
    }
    let t = mul(n, LN_2);
    let x = fixed(t);
    let sum = EXP.iter().rev().fold(0, |sum, &c| {
        let term = mul_fixed(x, sum);
        if t.sign { c - term } else { c + term }
    });
    finish(env, inexact(mul(t, Num::normalize(false, 0, sum))))
}

/// `y` times a logarithm; `None` is a logarithm of exactly zero.
fn times_log(env: &mut Env, y: F80, log: Option<Num>) -> F80 {
    let Some(log) = log else {
        return match y.class() {
            Class::Infinite(_) => invalid(env),
            _ => F80::zero(y.negative()),
        };
    };
    match y.class() {
        Class::Infinite(s) => F80::infinity(s ^ log.sign),
        // The logarithm of a power of two is a small integer, any other has its sticky bit set.
        Class::Finite(n) if log.sig & 1 == 0 => finish_tiny(env, mul(n, log)),
        Class::Finite(n) => finish(env, mul(n, log)),
        _ => F80::zero(y.negative() ^ log.sign),
    }
}

/// FYL2X: `y * log2(x)`.
pub(crate) fn y_log2(env: &mut Env, y: F80, x: F80) -> F80 {
    if let Some(r) = special2(env, x, y) {
        return r;
    }
    let zero_y = y.is_zero();
    match x.class() {
        Class::Zero(_) if zero_y => return invalid(env),
        Class::Zero(_) => {
            if !matches!(y.class(), Class::Infinite(_)) {
                env.raise(flag::ZE);
            }
            return F80::infinity(!y.negative());
        }
        Class::Infinite(false) if !zero_y => {
            env.denormal(y.is_denormal());
            return F80::infinity(y.negative());
        }
        Class::Finite(n) if !n.sign => {
            let log = log2(n);
            if log.is_none() && matches!(y.class(), Class::Infinite(_)) {
                return invalid(env);
            }
            if env.denormal(x.is_denormal() || y.is_denormal()) {
                return x;
            }
            return times_log(env, y, log);
        }
        _ => {}
    }
    invalid(env)
}

/// FYL2XP1: `y * log2(x + 1)`.
pub(crate) fn y_log2_p1(env: &mut Env, y: F80, x: F80) -> F80 {
    if let Some(r) = special2(env, x, y) {
        return r;
    }
    match x.class() {
        Class::Zero(s) => {
            if matches!(y.class(), Class::Infinite(_)) {
                return invalid(env);
            }
            env.denormal(y.is_denormal());
            F80::zero(s ^ y.negative())
        }
        Class::Infinite(false) if !y.is_zero() => {
            env.denormal(y.is_denormal());
            F80::infinity(y.negative())
        }
        Class::Finite(n) if !n.sign || n.exp < 0 => {
            if env.denormal(x.is_denormal() || y.is_denormal()) {
                return x;
            }
            times_log(env, y, log2_1p(n))
        }
        _ => invalid(env),
    }
}
