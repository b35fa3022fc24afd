//! Conversions between the x87 double extended format and what it is loaded from and stored to, and
//! the constants.

use super::convert::integer;
use super::f80::{Class, F80, INTEGER, Operand, from_integer, invalid};
use super::ieee::{self, Float};
use super::num::Trap;
use super::{Env, Rounding, flag};

/// A binary32 or binary64 memory operand of arithmetic. Raises nothing: the operation does.
pub(crate) fn operand<A: Float>(a: A) -> Operand {
    let sign = a.negative();
    let value = if a.is_nan() {
        F80 { sig: INTEGER | a.fraction() << (63 - A::FRACTION), se: u16::from(sign) << 15 | 0x7fff }
    } else {
        match ieee::unpack(a) {
            ieee::Class::Zero(s) => F80::zero(s),
            ieee::Class::Infinite(s) => F80::infinity(s),
            ieee::Class::Finite(n) => super::f80::pack_exact(n.sign, n.exp, (n.sig >> 64) as u64),
        }
    };
    Operand { value, denormal: a.is_denormal() }
}

/// FLD of a binary32 or binary64.
pub(crate) fn load<A: Float>(env: &mut Env, a: A) -> F80 {
    let Operand { value, denormal } = operand(a);
    if value.is_signalling() {
        env.raise(flag::IE);
        return value.quiet();
    }
    env.denormal(denormal);
    value
}

/// FST to binary32 or binary64.
pub(crate) fn store<B: Float>(env: &mut Env, a: F80) -> B {
    match a.class() {
        Class::Zero(s) => B::zero(s),
        Class::Infinite(s) => B::infinity(s),
        Class::Unsupported => {
            env.raise(flag::IE);
            B::indefinite()
        }
        Class::Nan => {
            if a.is_signalling() {
                env.raise(flag::IE);
            }
            let payload = a.sig << 1 >> (64 - B::FRACTION);
            B::narrow(if a.negative() { B::SIGN } else { 0 } | B::INFINITY | B::QUIET | payload)
        }
        Class::Finite(n) => ieee::pack_as(env, Trap::Silent, n),
    }
}

/// FILD of any width.
pub(crate) fn from_i64(v: i64) -> F80 {
    from_integer(v < 0, v.unsigned_abs())
}

/// FIST and FISTTP (`rounding` toward zero) to a signed integer of `bits` bits (16, 32 or 64).
/// Out of range: IE, and the most negative number of that width.
pub(crate) fn to_signed(env: &mut Env, a: F80, rounding: Rounding, bits: u32) -> i64 {
    let indefinite = i64::MIN >> (64 - bits);
    match a.class() {
        Class::Zero(_) => 0,
        Class::Finite(n) => match integer(rounding, n) {
            Some((v, inexact, away)) if v <= (1 << (bits - 1)) - u64::from(!n.sign) => {
                if inexact {
                    env.rounded_up = away;
                    env.raise(flag::PE);
                }
                if n.sign { (v as i64).wrapping_neg() } else { v as i64 }
            }
            _ => {
                env.raise(flag::IE);
                indefinite
            }
        },
        _ => {
            env.raise(flag::IE);
            indefinite
        }
    }
}

/// The packed BCD indefinite.
const BCD_INDEFINITE: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff];
/// One more than the largest packed BCD number.
const BCD_LIMIT: u64 = 1_000_000_000_000_000_000;

/// FBSTP: 18 packed decimal digits, lowest first, and a sign byte.
pub(crate) fn to_bcd(env: &mut Env, a: F80) -> [u8; 10] {
    let mut v = match a.class() {
        Class::Zero(_) => 0,
        Class::Finite(n) => match integer(env.rounding, n) {
            Some((v, inexact, away)) if v < BCD_LIMIT => {
                if inexact {
                    env.rounded_up = away;
                    env.raise(flag::PE);
                }
                v
            }
            _ => {
                invalid(env);
                return BCD_INDEFINITE;
            }
        },
        _ => {
            invalid(env);
            return BCD_INDEFINITE;
        }
    };
    let mut out = [0; 10];
    for byte in &mut out[..9] {
        let pair = (v % 100) as u8;
        *byte = (pair / 10) << 4 | (pair % 10);
        v /= 100;
    }
    out[9] = u8::from(a.negative()) << 7;
    out
}

/// FBLD. Digits above nine count as what their bits spell.
pub(crate) fn from_bcd(bcd: [u8; 10]) -> F80 {
    let magnitude = bcd[..9]
        .iter()
        .rev()
        .fold(0u64, |v, &byte| v * 100 + u64::from(byte >> 4) * 10 + u64::from(byte & 15));
    from_integer(bcd[9] & 0x80 != 0, magnitude)
}

/// The constants of FLD1 to FLDZ, in opcode order (D9 E8 to D9 EE): exponent, truncated
/// significand, and whether rounding to nearest goes up.
const CONSTANTS: [(u16, u64, bool, bool); 7] = [
    (0x3fff, 0x8000_0000_0000_0000, false, true),
    (0x4000, 0xd49a_784b_cd1b_8afe, false, false),
    (0x3fff, 0xb8aa_3b29_5c17_f0bb, true, false),
    (0x4000, 0xc90f_daa2_2168_c234, true, false),
    (0x3ffd, 0x9a20_9a84_fbcf_f798, true, false),
    (0x3ffe, 0xb172_17f7_d1cf_79ab, true, false),
    (0, 0, false, true),
];

/// Constant `index` (0 is 1.0, then log2 10, log2 e, pi, log10 2, ln 2, zero), rounded as the
/// environment says; no flags. Indices past the last give zero.
pub(crate) fn constant(rounding: Rounding, index: usize) -> F80 {
    let (se, sig, up_at_nearest, exact) = CONSTANTS.get(index).copied().unwrap_or_default();
    let up = !exact
        && match rounding {
            Rounding::Nearest => up_at_nearest,
            Rounding::Up => true,
            Rounding::Down | Rounding::Zero => false,
        };
    F80 { sig: sig + u64::from(up), se }
}
