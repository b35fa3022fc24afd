//! FPREM, FPREM1, FSCALE and FXTRACT.

use super::f80::{self, Class, F80, INTEGER, from_integer, invalid, pack, special1, special2};
use super::num::Num;
use super::{Env, Precision, flag};

/// What a partial remainder leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Remainder {
    /// The remainder, or the dividend brought nearer to the divisor.
    pub(crate) value: F80,
    /// The low bits of the quotient; zero while incomplete.
    pub(crate) quotient: u8,
    /// More steps are needed (C2).
    pub(crate) incomplete: bool,
}

/// A pseudo-denormal as the normal number that it spells; others as they are.
fn canonical(a: F80) -> F80 {
    F80 { sig: a.sig, se: a.se | u16::from(a.exponent() == 0 && a.sig & INTEGER != 0) }
}

/// FPREM (quotient truncated), or FPREM1 if `nearest`. Exponents 64 and more apart are brought
/// nearer by 32 to 63 a step, as the hardware does.
pub(crate) fn remainder(env: &mut Env, a: F80, b: F80, nearest: bool) -> Remainder {
    let done = |value| Remainder { value, quotient: 0, incomplete: false };
    if let Some(r) = special2(env, a, b) {
        return done(r);
    }
    let (x, y) = (a.class(), b.class());
    if matches!(x, Class::Infinite(_)) || matches!(y, Class::Zero(_)) {
        return done(invalid(env));
    }
    if env.denormal(a.is_denormal() || b.is_denormal()) {
        return done(a);
    }
    let Class::Finite(n) = x else { return done(a) };
    let Class::Finite(m) = y else { return done(canonical(a)) };

    let distance = n.exp - m.exp;
    let (sa, sb) = (n.sig >> 64, m.sig >> 64);
    if distance < -1 || distance < 0 && !nearest {
        return done(pack(env, Precision::Extended, n));
    }
    if distance >= 64 {
        let step = distance & 31 | 32;
        let rest = (sa << step) % sb;
        let value = match rest {
            0 => F80::zero(n.sign),
            r => pack(env, Precision::Extended, Num::normalize(n.sign, m.exp + distance - step, r << 64)),
        };
        return Remainder { value, quotient: 0, incomplete: true };
    }
    // Everything in units of half the divisor's last place, for distance -1.
    let (dividend, divisor) = if distance < 0 { (sa, sb << 1) } else { (sa << distance, sb) };
    let unit = if distance < 0 { m.exp - 1 } else { m.exp };
    let (mut quotient, mut rest) = (dividend / divisor, dividend % divisor);
    let mut sign = n.sign;
    if nearest && (2 * rest > divisor || 2 * rest == divisor && quotient & 1 != 0) {
        quotient += 1;
        rest = divisor - rest;
        sign = !sign;
    }
    let value = match rest {
        0 => F80::zero(n.sign),
        // Below 2^64 also where the divisor was doubled: then it is at most half of it.
        r => pack(env, Precision::Extended, Num::normalize(sign, unit, r << 64)),
    };
    Remainder { value, quotient: quotient as u8 & 7, incomplete: false }
}

/// FSCALE: `a * 2^trunc(b)`.
pub(crate) fn scale(env: &mut Env, a: F80, b: F80) -> F80 {
    if let Some(r) = special2(env, a, b) {
        return r;
    }
    let (x, y) = (a.class(), b.class());
    if matches!(
        (x, y),
        (Class::Infinite(_), Class::Infinite(true)) | (Class::Zero(_), Class::Infinite(false))
    ) {
        return invalid(env);
    }
    if env.denormal(a.is_denormal() || b.is_denormal()) {
        return a;
    }
    match (x, y) {
        (Class::Finite(n), Class::Finite(m)) => {
            // Past 2^17 every result is out of range.
            let by = if m.exp < 0 {
                0
            } else if m.exp > 16 {
                1 << 17
            } else {
                (m.sig >> (127 - m.exp)) as i32
            };
            let exp = if m.sign { n.exp - by } else { n.exp + by };
            pack(env, Precision::Extended, Num { exp, ..n })
        }
        (Class::Finite(n), Class::Infinite(down)) => {
            if down {
                F80::zero(n.sign)
            } else {
                F80::infinity(n.sign)
            }
        }
        _ => canonical(a),
    }
}

/// FXTRACT: the exponent as a number, and the significand in `[1, 2)`.
pub(crate) fn extract(env: &mut Env, a: F80) -> (F80, F80) {
    if let Some(r) = special1(env, a) {
        return (r, r);
    }
    match a.class() {
        Class::Zero(_) => {
            env.raise(flag::ZE);
            (F80::infinity(true), a)
        }
        Class::Finite(n) => {
            env.denormal(a.is_denormal());
            let exponent = from_integer(n.exp < 0, u64::from(n.exp.unsigned_abs()));
            (exponent, f80::pack_exact(n.sign, 0, (n.sig >> 64) as u64 | INTEGER))
        }
        _ => (F80::infinity(false), a),
    }
}
