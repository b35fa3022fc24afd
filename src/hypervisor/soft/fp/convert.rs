//! Conversions between binary32, binary64 and integers with the SSE rules.

use super::ieee::{Class, Float, pack, unpack};
use super::num::{Num, round_away, shift_right_jam};
use super::{Env, Rounding, flag};

/// CVTSS2SD and CVTSD2SS: to the other format.
#[inline]
pub(crate) fn to_float<A: Float, B: Float>(env: &mut Env, a: A) -> B {
    let a = a.daz(env);
    if a.is_nan() {
        if a.is_signalling() {
            env.raise(flag::IE);
        }
        // The fraction keeps its upper bits.
        let payload = a.fraction() << (64 - A::FRACTION) >> (64 - B::FRACTION);
        let sign = if a.negative() { B::SIGN } else { 0 };
        return B::narrow(sign | B::INFINITY | B::QUIET | payload);
    }
    if env.denormal(a.is_denormal()) {
        return B::zero(a.negative());
    }
    match unpack(a) {
        Class::Zero(s) => B::zero(s),
        Class::Infinite(s) => B::infinity(s),
        Class::Finite(n) => pack(env, n),
    }
}

/// Rounds a finite number to an integer magnitude: the magnitude, inexact, away from zero.
/// `None` where it has more than 64 bits.
#[inline]
pub(super) fn integer(rounding: Rounding, n: Num) -> Option<(u64, bool, bool)> {
    if n.exp > 63 {
        return None;
    }
    // Bits 64.. are the integer, below is the rest.
    let shifted = shift_right_jam(n.sig, (63 - n.exp) as u32);
    let rest = shifted & u128::from(u64::MAX);
    let kept = (shifted >> 64) as u64;
    let away = round_away(rounding, n.sign, kept & 1 != 0, rest, 1 << 63);
    if away { kept.checked_add(1).map(|v| (v, rest != 0, true)) } else { Some((kept, rest != 0, false)) }
}

/// Rounds to a signed integer of `bits` bits. IE and `None` for a NaN, an infinity or a value out of
/// range.
#[inline]
fn to_signed<F: Float>(env: &mut Env, a: F, rounding: Rounding, bits: u32) -> Option<i64> {
    let a = a.daz(env);
    let n = if a.is_nan() { None } else { Some(unpack(a)) };
    let (sign, magnitude, inexact) = match n {
        Some(Class::Zero(_)) => return Some(0),
        Some(Class::Finite(n)) => match integer(rounding, n) {
            Some((v, inexact, _)) if v <= (1 << (bits - 1)) - u64::from(!n.sign) => (n.sign, v, inexact),
            _ => {
                env.raise(flag::IE);
                return None;
            }
        },
        _ => {
            env.raise(flag::IE);
            return None;
        }
    };
    if inexact {
        env.raise(flag::PE);
    }
    Some(if sign { (magnitude as i64).wrapping_neg() } else { magnitude as i64 })
}

/// CVTSS2SI and CVTSD2SI: rounded as the environment says; `i32::MIN` where it does not fit.
#[inline]
pub(crate) fn to_i32<F: Float>(env: &mut Env, a: F) -> i32 {
    to_signed(env, a, env.rounding, 32).map_or(i32::MIN, |v| v as i32)
}

/// CVTTSS2SI and CVTTSD2SI: truncated; `i32::MIN` where it does not fit.
#[inline]
pub(crate) fn to_i32_truncated<F: Float>(env: &mut Env, a: F) -> i32 {
    to_signed(env, a, Rounding::Zero, 32).map_or(i32::MIN, |v| v as i32)
}

/// The 64-bit CVTSS2SI and CVTSD2SI; `i64::MIN` where it does not fit.
#[inline]
pub(crate) fn to_i64<F: Float>(env: &mut Env, a: F) -> i64 {
    to_signed(env, a, env.rounding, 64).unwrap_or(i64::MIN)
}

/// The 64-bit CVTTSS2SI and CVTTSD2SI; `i64::MIN` where it does not fit.
#[inline]
pub(crate) fn to_i64_truncated<F: Float>(env: &mut Env, a: F) -> i64 {
    to_signed(env, a, Rounding::Zero, 64).unwrap_or(i64::MIN)
}

#[inline]
fn from_magnitude<F: Float>(env: &mut Env, sign: bool, v: u64) -> F {
    if v == 0 {
        return F::zero(false);
    }
    // FTZ and the unmasked ends of the range cannot come up.
    pack(env, Num::normalize(sign, 63, u128::from(v) << 64))
}

/// CVTSI2SS and CVTSI2SD from 32 bits.
#[inline]
pub(crate) fn from_i32<F: Float>(env: &mut Env, v: i32) -> F {
    from_magnitude(env, v < 0, u64::from(v.unsigned_abs()))
}

/// CVTSI2SS and CVTSI2SD from 64 bits.
#[inline]
pub(crate) fn from_i64<F: Float>(env: &mut Env, v: i64) -> F {
    from_magnitude(env, v < 0, v.unsigned_abs())
}

/// ROUNDSS and its kin: to an integral value in `rounding`; `quiet` keeps PE from being raised
/// (immediate bit 3).
#[inline]
pub(crate) fn round_to_integral<F: Float>(env: &mut Env, a: F, rounding: Rounding, quiet: bool) -> F {
    let a = a.daz(env);
    if a.is_nan() {
        if a.is_signalling() {
            env.raise(flag::IE);
        }
        return a.quiet();
    }
    let exp = a.exponent() as i32 - F::BIAS;
    if a.is_zero() || exp >= F::FRACTION as i32 {
        return a;
    }
    let sign = a.widen() & F::SIGN;
    let magnitude = a.widen() & !F::SIGN;
    let (result, inexact) = if exp < 0 {
        let one = (F::BIAS as u64) << F::FRACTION;
        // Below one: zero or one. Half is the only value that ties, and zero is even.
        let rest = u128::from(magnitude);
        let half = u128::from(one - (1 << F::FRACTION));
        let away = round_away(rounding, sign != 0, false, rest, half);
        (if away { one } else { 0 }, true)
    } else {
        let drop = F::FRACTION - exp as u32;
        let unit = 1u64 << drop;
        let rest = magnitude & (unit - 1);
        // Zero's parity cannot matter here: the integer part is at least one, and where it is one
        // its lowest bit is the hidden one.
        let odd = exp == 0 || magnitude & unit != 0;
        let kept = magnitude - rest;
        let away = round_away(rounding, sign != 0, odd, u128::from(rest), u128::from(unit >> 1));
        // A carry runs into the exponent field, as it should.
        (if away { kept + unit } else { kept }, rest != 0)
    };
    if inexact && !quiet {
        env.raise(flag::PE);
    }
    F::narrow(sign | result)
}
