//! The host's own float unit, where it provably raises what the guest's would.
//!
//! Used when rounding is to nearest, the operands are normal or zero, and the result is normal and
//! away from both ends of the range (or an exact zero): then the only exception there can be is PE.
//! Whether the result is exact is told from integers, and only while PE is not set yet. The host's
//! unit is in its default state, as Rust demands: nearest, no flushing.

use super::ieee::Float;
use super::{Env, Rounding, flag};

/// The host's operations on one format, on encodings.
pub(crate) trait Host: Sized {
    /// `self + o`.
    fn host_add(self, o: Self) -> Self;
    /// `self - o`.
    fn host_sub(self, o: Self) -> Self;
    /// `self * o`.
    fn host_mul(self, o: Self) -> Self;
    /// `self / o`.
    fn host_div(self, o: Self) -> Self;
    /// Square root.
    fn host_sqrt(self) -> Self;
}

macro_rules! host {
    ($bits:ty, $float:ty) => {
        impl Host for $bits {
            #[inline(always)]
            fn host_add(self, o: Self) -> Self {
                (<$float>::from_bits(self) + <$float>::from_bits(o)).to_bits()
            }
            #[inline(always)]
            fn host_sub(self, o: Self) -> Self {
                (<$float>::from_bits(self) - <$float>::from_bits(o)).to_bits()
            }
            #[inline(always)]
            fn host_mul(self, o: Self) -> Self {
                (<$float>::from_bits(self) * <$float>::from_bits(o)).to_bits()
            }
            #[inline(always)]
            fn host_div(self, o: Self) -> Self {
                (<$float>::from_bits(self) / <$float>::from_bits(o)).to_bits()
            }
            #[inline(always)]
            fn host_sqrt(self) -> Self {
                <$float>::from_bits(self).sqrt().to_bits()
            }
        }
    };
}
host!(u32, f32);
host!(u64, f64);

/// Normal, not zero.
#[inline(always)]
fn normal<F: Float>(v: F) -> bool {
    v.exponent().wrapping_sub(1) < F::EXPONENT_MAX - 1
}

/// Normal and neither so small that it may have been tiny before rounding, nor near overflow.
#[inline(always)]
fn safe<F: Float>(v: F) -> bool {
    v.exponent().wrapping_sub(2) < F::EXPONENT_MAX - 4
}

#[inline(always)]
fn simple<F: Float>(v: F) -> bool {
    normal(v) || v.is_zero()
}

#[inline(always)]
fn significand<F: Float>(v: F) -> u64 {
    v.fraction() | 1 << F::FRACTION
}

#[inline(always)]
fn finish<F: Float>(env: &mut Env, r: F, exact: impl FnOnce() -> bool) -> Option<F> {
    if env.flags & flag::PE == 0 && !exact() {
        env.flags |= flag::PE;
    }
    Some(r)
}

#[inline(always)]
pub(super) fn add<F: Float>(env: &mut Env, a: F, b: F) -> Option<F> {
    if env.rounding != Rounding::Nearest || !simple(a) || !simple(b) {
        return None;
    }
    let r = a.host_add(b);
    if r.is_zero() {
        return Some(r);
    }
    if !safe(r) {
        return None;
    }
    finish(env, r, || sum_exact(a, b, r))
}

#[inline(always)]
pub(super) fn sub<F: Float>(env: &mut Env, a: F, b: F) -> Option<F> {
    if env.rounding != Rounding::Nearest || !simple(a) || !simple(b) {
        return None;
    }
    let r = a.host_sub(b);
    if r.is_zero() {
        return Some(r);
    }
    if !safe(r) {
        return None;
    }
    finish(env, r, || sum_exact(a, F::narrow(b.widen() ^ F::SIGN), r))
}

/// Whether `r`, the rounded sum of `a` and `b`, is exact: Knuth's two-sum finds the error term.
fn sum_exact<F: Float>(a: F, b: F, r: F) -> bool {
    let b_part = r.host_sub(a);
    let a_part = r.host_sub(b_part);
    a.host_sub(a_part).host_add(b.host_sub(b_part)).is_zero()
}

#[inline(always)]
pub(super) fn mul<F: Float>(env: &mut Env, a: F, b: F) -> Option<F> {
    if env.rounding != Rounding::Nearest || !simple(a) || !simple(b) {
        return None;
    }
    let r = a.host_mul(b);
    if a.is_zero() || b.is_zero() {
        return Some(r);
    }
    if !safe(r) {
        return None;
    }
    finish(env, r, || {
        // The product fits if enough low bits of the factors are zero.
        let zeros = significand(a).trailing_zeros() + significand(b).trailing_zeros();
        let carry = r.exponent() as i32 - a.exponent() as i32 - b.exponent() as i32 + F::BIAS;
        zeros as i32 >= F::FRACTION as i32 + carry
    })
}

#[inline(always)]
pub(super) fn div<F: Float>(env: &mut Env, a: F, b: F) -> Option<F> {
    if env.rounding != Rounding::Nearest || !simple(a) || !normal(b) {
        return None;
    }
    let r = a.host_div(b);
    if a.is_zero() {
        return Some(r);
    }
    if !safe(r) {
        return None;
    }
    finish(env, r, || {
        let product = u128::from(significand(r)) * u128::from(significand(b));
        let shift =
            a.exponent() as i32 - r.exponent() as i32 - b.exponent() as i32 + F::BIAS + F::FRACTION as i32;
        (0..64).contains(&shift) && product == u128::from(significand(a)) << shift
    })
}

#[inline(always)]
pub(super) fn sqrt<F: Float>(env: &mut Env, a: F) -> Option<F> {
    if env.rounding != Rounding::Nearest || !simple(a) || a.negative() {
        return None;
    }
    let r = a.host_sqrt();
    if a.is_zero() {
        return Some(r);
    }
    finish(env, r, || {
        let square = u128::from(significand(r)) * u128::from(significand(r));
        let shift = a.exponent() as i32 - 2 * r.exponent() as i32 + F::BIAS + F::FRACTION as i32;
        (0..64).contains(&shift) && square == u128::from(significand(a)) << shift
    })
}
