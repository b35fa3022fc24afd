//! Arithmetic and comparison of binary32 and binary64 with the SSE rules for NaNs and flags.
//!
//! NaN operands: the first operand if it is a NaN, else the second, made quiet. Invalid operations
//! without a NaN give the default NaN, which is negative.

use super::num::{Num, Spec, Trap, round};
use super::{Env, Relation, Rounding, fast, flag};

/// A binary floating-point format by its encoding: `u32` (binary32) or `u64` (binary64).
pub(crate) trait Float: Copy + Eq + fast::Host + 'static {
    /// Significand bits without the integer bit.
    const FRACTION: u32;
    /// Exponent bits.
    const EXPONENT: u32;
    /// The encoding, zero-extended.
    fn widen(self) -> u64;
    /// From the low bits of `v`.
    fn narrow(v: u64) -> Self;

    /// Exponent bias.
    const BIAS: i32 = (1 << (Self::EXPONENT - 1)) - 1;
    /// The exponent field of infinities and NaNs.
    const EXPONENT_MAX: u64 = (1 << Self::EXPONENT) - 1;
    /// Fraction mask.
    const FRACTION_MASK: u64 = (1 << Self::FRACTION) - 1;
    /// Sign bit.
    const SIGN: u64 = 1 << (Self::FRACTION + Self::EXPONENT);
    /// The bit that makes a NaN quiet.
    const QUIET: u64 = 1 << (Self::FRACTION - 1);
    /// Positive infinity.
    const INFINITY: u64 = Self::EXPONENT_MAX << Self::FRACTION;

    /// The default NaN ("real indefinite").
    #[inline]
    fn indefinite() -> Self {
        Self::narrow(Self::SIGN | Self::INFINITY | Self::QUIET)
    }
    /// The exponent field.
    #[inline]
    fn exponent(self) -> u64 {
        self.widen() >> Self::FRACTION & Self::EXPONENT_MAX
    }
    /// The fraction field.
    #[inline]
    fn fraction(self) -> u64 {
        self.widen() & Self::FRACTION_MASK
    }
    /// Whether the sign bit is set.
    #[inline]
    fn negative(self) -> bool {
        self.widen() & Self::SIGN != 0
    }
    /// Any NaN.
    #[inline]
    fn is_nan(self) -> bool {
        self.widen() & !Self::SIGN > Self::INFINITY
    }
    /// A signalling NaN.
    #[inline]
    fn is_signalling(self) -> bool {
        self.is_nan() && self.widen() & Self::QUIET == 0
    }
    /// A nonzero number below the normal range.
    #[inline]
    fn is_denormal(self) -> bool {
        self.exponent() == 0 && self.fraction() != 0
    }
    /// Zero of either sign.
    #[inline]
    fn is_zero(self) -> bool {
        self.widen() & !Self::SIGN == 0
    }
    /// A NaN made quiet.
    #[inline]
    fn quiet(self) -> Self {
        Self::narrow(self.widen() | Self::QUIET)
    }
    /// Under DAZ a denormal is a zero of its sign.
    #[inline]
    fn daz(self, env: &Env) -> Self {
        if env.daz && self.exponent() == 0 { Self::narrow(self.widen() & Self::SIGN) } else { self }
    }
    /// A zero of the given sign.
    #[inline]
    fn zero(sign: bool) -> Self {
        Self::narrow(if sign { Self::SIGN } else { 0 })
    }
    /// An infinity of the given sign.
    #[inline]
    fn infinity(sign: bool) -> Self {
        Self::narrow(Self::INFINITY | if sign { Self::SIGN } else { 0 })
    }
}

impl Float for u32 {
    const FRACTION: u32 = 23;
    const EXPONENT: u32 = 8;
    #[inline]
    fn widen(self) -> u64 {
        u64::from(self)
    }
    #[inline]
    fn narrow(v: u64) -> Self {
        v as u32
    }
}

impl Float for u64 {
    const FRACTION: u32 = 52;
    const EXPONENT: u32 = 11;
    #[inline]
    fn widen(self) -> u64 {
        self
    }
    #[inline]
    fn narrow(v: u64) -> Self {
        v
    }
}

/// An operand, taken apart.
pub(super) enum Class {
    Zero(bool),
    Infinite(bool),
    Finite(Num),
}

/// Takes apart what is not a NaN.
#[inline]
pub(super) fn unpack<F: Float>(v: F) -> Class {
    let sign = v.negative();
    let exponent = v.exponent();
    if exponent == F::EXPONENT_MAX {
        return Class::Infinite(sign);
    }
    if exponent == 0 {
        if v.fraction() == 0 {
            return Class::Zero(sign);
        }
        let sig = u128::from(v.fraction()) << (127 - F::FRACTION);
        return Class::Finite(Num::normalize(sign, 1 - F::BIAS, sig));
    }
    let sig = u128::from(v.fraction() | 1 << F::FRACTION) << (127 - F::FRACTION);
    Class::Finite(Num { sign, exp: exponent as i32 - F::BIAS, sig })
}

/// Rounds to `F` with the SSE rules.
#[inline]
pub(super) fn pack<F: Float>(env: &mut Env, n: Num) -> F {
    pack_as(env, Trap::Report, n)
}

/// Rounds to `F`.
#[inline]
pub(super) fn pack_as<F: Float>(env: &mut Env, trap: Trap, n: Num) -> F {
    let spec = Spec { precision: F::FRACTION + 1, emin: 1 - F::BIAS, emax: F::BIAS, trap, ftz: env.ftz };
    let r = round(env, &spec, n);
    let biased = if r.sig >> 63 == 0 { 0 } else { (r.exp + F::BIAS) as u64 };
    let fraction = r.sig >> (63 - F::FRACTION) & F::FRACTION_MASK;
    F::narrow(if n.sign { F::SIGN } else { 0 } | biased << F::FRACTION | fraction)
}

/// Answers for NaN operands of a two-operand operation.
#[inline]
fn nan2<F: Float>(env: &mut Env, a: F, b: F) -> Option<F> {
    if !a.is_nan() && !b.is_nan() {
        return None;
    }
    if a.is_signalling() || b.is_signalling() {
        env.raise(flag::IE);
    }
    Some(if a.is_nan() { a.quiet() } else { b.quiet() })
}

#[cold]
fn invalid<F: Float>(env: &mut Env) -> F {
    env.raise(flag::IE);
    F::indefinite()
}

/// Sum.
#[inline]
pub(crate) fn add<F: Float>(env: &mut Env, a: F, b: F) -> F {
    fast::add(env, a, b).unwrap_or_else(|| add_soft(env, a, b, false))
}

/// Difference `a - b`.
#[inline]
pub(crate) fn sub<F: Float>(env: &mut Env, a: F, b: F) -> F {
    fast::sub(env, a, b).unwrap_or_else(|| add_soft(env, a, b, true))
}

/// Product.
#[inline]
pub(crate) fn mul<F: Float>(env: &mut Env, a: F, b: F) -> F {
    fast::mul(env, a, b).unwrap_or_else(|| mul_soft(env, a, b))
}

/// Quotient `a / b`.
#[inline]
pub(crate) fn div<F: Float>(env: &mut Env, a: F, b: F) -> F {
    fast::div(env, a, b).unwrap_or_else(|| div_soft(env, a, b))
}

/// Square root.
#[inline]
pub(crate) fn sqrt<F: Float>(env: &mut Env, a: F) -> F {
    fast::sqrt(env, a).unwrap_or_else(|| sqrt_soft(env, a))
}

pub(super) fn add_soft<F: Float>(env: &mut Env, a: F, b: F, negate: bool) -> F {
    let (a, b) = (a.daz(env), b.daz(env));
    if let Some(r) = nan2(env, a, b) {
        return r;
    }
    let flip = if negate { F::SIGN } else { 0 };
    let y = F::narrow(b.widen() ^ flip);
    let (x, y) = (unpack(a), unpack(y));
    if let (Class::Infinite(s), Class::Infinite(t)) = (&x, &y)
        && s != t
    {
        return invalid(env);
    }
    if env.denormal(a.is_denormal() || b.is_denormal()) {
        return a;
    }
    match (x, y) {
        (Class::Infinite(s), _) | (_, Class::Infinite(s)) => F::infinity(s),
        (Class::Zero(s), Class::Zero(t)) => F::zero(if s == t { s } else { env.rounding == Rounding::Down }),
        (Class::Zero(_), Class::Finite(n)) | (Class::Finite(n), Class::Zero(_)) => pack(env, n),
        (Class::Finite(n), Class::Finite(m)) => match Num::add(n, m) {
            Some(sum) => pack(env, sum),
            None => F::zero(env.rounding == Rounding::Down),
        },
    }
}

pub(super) fn mul_soft<F: Float>(env: &mut Env, a: F, b: F) -> F {
    let (a, b) = (a.daz(env), b.daz(env));
    if let Some(r) = nan2(env, a, b) {
        return r;
    }
    let sign = a.negative() ^ b.negative();
    let (x, y) = (unpack(a), unpack(b));
    if matches!((&x, &y), (Class::Infinite(_), Class::Zero(_)) | (Class::Zero(_), Class::Infinite(_))) {
        return invalid(env);
    }
    if env.denormal(a.is_denormal() || b.is_denormal()) {
        return a;
    }
    match (x, y) {
        (Class::Infinite(_), _) | (_, Class::Infinite(_)) => F::infinity(sign),
        (Class::Zero(_), _) | (_, Class::Zero(_)) => F::zero(sign),
        (Class::Finite(n), Class::Finite(m)) => pack(env, Num::mul(n, m)),
    }
}

pub(super) fn div_soft<F: Float>(env: &mut Env, a: F, b: F) -> F {
    let (a, b) = (a.daz(env), b.daz(env));
    if let Some(r) = nan2(env, a, b) {
        return r;
    }
    let sign = a.negative() ^ b.negative();
    let (x, y) = (unpack(a), unpack(b));
    match (&x, &y) {
        (Class::Infinite(_), Class::Infinite(_)) | (Class::Zero(_), Class::Zero(_)) => return invalid(env),
        (Class::Finite(_), Class::Zero(_)) => {
            env.raise(flag::ZE);
            return F::infinity(sign);
        }
        _ => {}
    }
    if env.denormal(a.is_denormal() || b.is_denormal()) {
        return a;
    }
    match (x, y) {
        (Class::Infinite(_), _) | (_, Class::Zero(_)) => F::infinity(sign),
        (Class::Zero(_), _) | (_, Class::Infinite(_)) => F::zero(sign),
        (Class::Finite(n), Class::Finite(m)) => pack(env, Num::div(n, m)),
    }
}

pub(super) fn sqrt_soft<F: Float>(env: &mut Env, a: F) -> F {
    let a = a.daz(env);
    if a.is_nan() {
        if a.is_signalling() {
            env.raise(flag::IE);
        }
        return a.quiet();
    }
    match unpack(a) {
        Class::Zero(_) | Class::Infinite(false) => a,
        Class::Infinite(true) => invalid(env),
        Class::Finite(n) if n.sign => invalid(env),
        Class::Finite(n) => {
            if env.denormal(a.is_denormal()) {
                return a;
            }
            pack(env, Num::sqrt(n))
        }
    }
}

/// Orders two values that are not NaNs.
#[inline]
fn order<F: Float>(a: F, b: F) -> Relation {
    let key = |v: F| {
        let magnitude = (v.widen() & !F::SIGN) as i64;
        if v.negative() { -magnitude } else { magnitude }
    };
    match key(a).cmp(&key(b)) {
        std::cmp::Ordering::Less => Relation::Less,
        std::cmp::Ordering::Equal => Relation::Equal,
        std::cmp::Ordering::Greater => Relation::Greater,
    }
}

/// Compares as UCOMISS does: only a signalling NaN is invalid.
#[inline]
pub(crate) fn compare_quiet<F: Float>(env: &mut Env, a: F, b: F) -> Relation {
    compare(env, a, b, false)
}

/// Compares as COMISS does: any NaN is invalid.
#[inline]
pub(crate) fn compare_signalling<F: Float>(env: &mut Env, a: F, b: F) -> Relation {
    compare(env, a, b, true)
}

#[inline]
fn compare<F: Float>(env: &mut Env, a: F, b: F, signalling: bool) -> Relation {
    let (a, b) = (a.daz(env), b.daz(env));
    if a.is_nan() || b.is_nan() {
        if signalling || a.is_signalling() || b.is_signalling() {
            env.raise(flag::IE);
        }
        return Relation::Unordered;
    }
    env.denormal(a.is_denormal() || b.is_denormal());
    order(a, b)
}

/// MINSS and its kin: the lesser operand; the second if they are equal or a NaN takes part.
#[inline]
pub(crate) fn min<F: Float>(env: &mut Env, a: F, b: F) -> F {
    let (x, y) = (a.daz(env), b.daz(env));
    if compare(env, x, y, true) == Relation::Less { x } else { y }
}

/// MAXSS and its kin: the greater operand; the second if they are equal or a NaN takes part.
#[inline]
pub(crate) fn max<F: Float>(env: &mut Env, a: F, b: F) -> F {
    let (x, y) = (a.daz(env), b.daz(env));
    if compare(env, x, y, true) == Relation::Greater { x } else { y }
}
