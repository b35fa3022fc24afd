//! Arithmetic on the x87 double extended format with the x87 rules for NaNs and flags.
//!
//! Encodings that today's processors do not support (unnormals, pseudo-infinities, pseudo-NaNs) are
//! invalid operands; pseudo-denormals are denormal operands with the value they spell.

use super::convert::integer;
use super::num::{Num, Spec, Trap, round};
use super::{Env, Precision, Relation, Rounding, flag};

/// A double extended number by its encoding: explicit integer bit, 15-bit exponent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct F80 {
    /// Significand; bit 63 is the integer bit.
    pub(crate) sig: u64,
    /// Sign (bit 15) and biased exponent.
    pub(crate) se: u16,
}

pub(super) const BIAS: i32 = 16383;
const EXPONENT_MAX: u16 = 0x7fff;
pub(super) const INTEGER: u64 = 1 << 63;
const QUIET: u64 = 1 << 62;

/// What an encoding stands for.
#[derive(Clone, Copy)]
pub(super) enum Class {
    Zero(bool),
    Infinite(bool),
    Nan,
    Unsupported,
    Finite(Num),
}

impl F80 {
    /// The default NaN ("real indefinite").
    pub(crate) const INDEFINITE: Self = Self { sig: INTEGER | QUIET, se: 0xffff };
    /// Positive one.
    pub(crate) const ONE: Self = Self { sig: INTEGER, se: BIAS as u16 };

    /// A zero of the given sign.
    pub(crate) const fn zero(sign: bool) -> Self {
        Self { sig: 0, se: (sign as u16) << 15 }
    }

    /// An infinity of the given sign.
    pub(crate) const fn infinity(sign: bool) -> Self {
        Self { sig: INTEGER, se: (sign as u16) << 15 | EXPONENT_MAX }
    }

    /// Whether the sign bit is set.
    pub(crate) const fn negative(self) -> bool {
        self.se >> 15 != 0
    }

    /// The exponent field.
    pub(crate) const fn exponent(self) -> u16 {
        self.se & EXPONENT_MAX
    }

    /// Sign flipped.
    pub(crate) const fn negated(self) -> Self {
        Self { sig: self.sig, se: self.se ^ 0x8000 }
    }

    /// Sign cleared.
    pub(crate) const fn absolute(self) -> Self {
        Self { sig: self.sig, se: self.se & 0x7fff }
    }

    /// A supported NaN, quiet or signalling.
    pub(crate) const fn is_nan(self) -> bool {
        self.exponent() == EXPONENT_MAX && self.sig > INTEGER
    }

    /// A supported signalling NaN.
    pub(crate) const fn is_signalling(self) -> bool {
        self.is_nan() && self.sig & QUIET == 0
    }

    /// An encoding without meaning: exponent set, integer bit clear.
    pub(crate) const fn is_unsupported(self) -> bool {
        self.exponent() != 0 && self.sig & INTEGER == 0
    }

    /// Zero of either sign.
    pub(crate) const fn is_zero(self) -> bool {
        self.exponent() == 0 && self.sig == 0
    }

    /// A denormal or pseudo-denormal.
    pub(crate) const fn is_denormal(self) -> bool {
        self.exponent() == 0 && self.sig != 0
    }

    pub(super) const fn quiet(self) -> Self {
        Self { sig: self.sig | QUIET, se: self.se }
    }

    #[inline]
    pub(super) fn class(self) -> Class {
        let sign = self.negative();
        let sig = u128::from(self.sig) << 64;
        match self.exponent() {
            0 if self.sig == 0 => Class::Zero(sign),
            0 => Class::Finite(Num::normalize(sign, 1 - BIAS, sig)),
            _ if self.sig & INTEGER == 0 => Class::Unsupported,
            EXPONENT_MAX if self.sig == INTEGER => Class::Infinite(sign),
            EXPONENT_MAX => Class::Nan,
            e => Class::Finite(Num { sign, exp: i32::from(e) - BIAS, sig }),
        }
    }
}

/// Rounds to `precision` bits in the range of the format.
pub(super) fn pack(env: &mut Env, precision: Precision, n: Num) -> F80 {
    let spec = Spec { precision: precision.bits(), emin: 1 - BIAS, emax: BIAS, trap: Trap::Wrap, ftz: false };
    let r = round(env, &spec, n);
    let biased = if r.sig & INTEGER == 0 { 0 } else { (r.exp + BIAS) as u16 };
    F80 { sig: r.sig, se: u16::from(n.sign) << 15 | biased }
}

/// Packs a value that is exact in the normal range.
pub(super) fn pack_exact(sign: bool, exp: i32, sig: u64) -> F80 {
    F80 { sig, se: u16::from(sign) << 15 | (exp + BIAS) as u16 }
}

/// An operand of arithmetic: a register, or memory in another format, whose denormals must be
/// reported although they are normal in this one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand {
    /// The value; a NaN from memory is not made quiet yet.
    pub(crate) value: F80,
    /// It was denormal where it came from.
    pub(crate) denormal: bool,
}

impl From<F80> for Operand {
    #[inline]
    fn from(value: F80) -> Self {
        Self { value, denormal: value.is_denormal() }
    }
}

/// Answers for NaN and unsupported operands of a two-operand operation.
pub(super) fn special2(env: &mut Env, a: F80, b: F80) -> Option<F80> {
    if a.is_unsupported() || b.is_unsupported() {
        return Some(invalid(env));
    }
    if !a.is_nan() && !b.is_nan() {
        return None;
    }
    let (sa, sb) = (a.is_signalling(), b.is_signalling());
    if sa || sb {
        env.raise(flag::IE);
    }
    Some(match (a.is_nan(), b.is_nan()) {
        (true, false) => a.quiet(),
        (false, true) => b.quiet(),
        // A quiet one goes before a signalling one, then the larger significand, then the
        // positive one.
        _ if sa != sb => {
            if sa {
                b
            } else {
                a
            }
        }
        _ if a.sig != b.sig => {
            if a.sig > b.sig {
                a.quiet()
            } else {
                b.quiet()
            }
        }
        _ if a.negative() => b.quiet(),
        _ => a.quiet(),
    })
}

/// Answers for a NaN or unsupported operand of a one-operand operation.
pub(super) fn special1(env: &mut Env, a: F80) -> Option<F80> {
    if a.is_unsupported() {
        return Some(invalid(env));
    }
    if !a.is_nan() {
        return None;
    }
    if a.is_signalling() {
        env.raise(flag::IE);
    }
    Some(a.quiet())
}

#[cold]
pub(super) fn invalid(env: &mut Env) -> F80 {
    env.raise(flag::IE);
    F80::INDEFINITE
}

/// Sum.
pub(crate) fn add(env: &mut Env, a: Operand, b: Operand) -> F80 {
    sum(env, a, b, false)
}

/// Difference `a - b`.
pub(crate) fn sub(env: &mut Env, a: Operand, b: Operand) -> F80 {
    sum(env, a, b, true)
}

fn sum(env: &mut Env, a: Operand, b: Operand, negate: bool) -> F80 {
    if let Some(r) = special2(env, a.value, b.value) {
        return r;
    }
    let other = if negate { b.value.negated() } else { b.value };
    let (x, y) = (a.value.class(), other.class());
    if let (Class::Infinite(s), Class::Infinite(t)) = (x, y)
        && s != t
    {
        return invalid(env);
    }
    if env.denormal(a.denormal || b.denormal) {
        return a.value;
    }
    let precision = env.precision;
    match (x, y) {
        (Class::Infinite(s), _) | (_, Class::Infinite(s)) => F80::infinity(s),
        (Class::Zero(s), Class::Zero(t)) => {
            F80::zero(if s == t { s } else { env.rounding == Rounding::Down })
        }
        (Class::Finite(n), Class::Finite(m)) => match Num::add(n, m) {
            Some(sum) => pack(env, precision, sum),
            None => F80::zero(env.rounding == Rounding::Down),
        },
        (Class::Finite(n), _) | (_, Class::Finite(n)) => pack(env, precision, n),
        _ => F80::INDEFINITE,
    }
}

/// Product.
pub(crate) fn mul(env: &mut Env, a: Operand, b: Operand) -> F80 {
    if let Some(r) = special2(env, a.value, b.value) {
        return r;
    }
    let (x, y) = (a.value.class(), b.value.class());
    if matches!((x, y), (Class::Infinite(_), Class::Zero(_)) | (Class::Zero(_), Class::Infinite(_))) {
        return invalid(env);
    }
    if env.denormal(a.denormal || b.denormal) {
        return a.value;
    }
    let sign = a.value.negative() ^ b.value.negative();
    let precision = env.precision;
    match (x, y) {
        (Class::Infinite(_), _) | (_, Class::Infinite(_)) => F80::infinity(sign),
        (Class::Finite(n), Class::Finite(m)) => pack(env, precision, Num::mul(n, m)),
        _ => F80::zero(sign),
    }
}

/// Quotient `a / b`.
pub(crate) fn div(env: &mut Env, a: Operand, b: Operand) -> F80 {
    if let Some(r) = special2(env, a.value, b.value) {
        return r;
    }
    let sign = a.value.negative() ^ b.value.negative();
    let (x, y) = (a.value.class(), b.value.class());
    match (x, y) {
        (Class::Infinite(_), Class::Infinite(_)) | (Class::Zero(_), Class::Zero(_)) => return invalid(env),
        (Class::Finite(_), Class::Zero(_)) => {
            env.raise(flag::ZE);
            return F80::infinity(sign);
        }
        _ => {}
    }
    if env.denormal(a.denormal || b.denormal) {
        return a.value;
    }
    let precision = env.precision;
    match (x, y) {
        (Class::Infinite(_), _) => F80::infinity(sign),
        (Class::Finite(n), Class::Finite(m)) => pack(env, precision, Num::div(n, m)),
        _ => F80::zero(sign),
    }
}

/// Square root.
pub(crate) fn sqrt(env: &mut Env, a: F80) -> F80 {
    if let Some(r) = special1(env, a) {
        return r;
    }
    match a.class() {
        Class::Finite(n) if !n.sign => {
            if env.denormal(a.is_denormal()) {
                return a;
            }
            let precision = env.precision;
            pack(env, precision, Num::sqrt(n))
        }
        Class::Zero(_) | Class::Infinite(false) => a,
        _ => invalid(env),
    }
}

/// Compares: FCOM's way if `signalling` (any NaN is invalid), else FUCOM's (only signalling ones).
pub(crate) fn compare(env: &mut Env, a: Operand, b: Operand, signalling: bool) -> Relation {
    let (x, y) = (a.value, b.value);
    if x.is_unsupported() || y.is_unsupported() || x.is_nan() || y.is_nan() {
        let quiet = |v: F80| v.is_nan() && !v.is_signalling() || !v.is_nan() && !v.is_unsupported();
        if signalling || !quiet(x) || !quiet(y) {
            env.raise(flag::IE);
        }
        return Relation::Unordered;
    }
    env.denormal(a.denormal || b.denormal);
    // With the integer bit explicit, exponent and significand order as one number; a
    // pseudo-denormal spells the same value as exponent 1.
    let key = |v: F80| {
        let exponent = if v.exponent() == 0 && v.sig & INTEGER != 0 { 1 } else { v.exponent() };
        let magnitude = (i128::from(exponent) << 64) | i128::from(v.sig);
        if v.negative() { -magnitude } else { magnitude }
    };
    match key(x).cmp(&key(y)) {
        std::cmp::Ordering::Less => Relation::Less,
        std::cmp::Ordering::Equal => Relation::Equal,
        std::cmp::Ordering::Greater => Relation::Greater,
    }
}

/// FRNDINT: to an integral value.
pub(crate) fn round_to_integral(env: &mut Env, a: F80) -> F80 {
    if let Some(r) = special1(env, a) {
        return r;
    }
    let Class::Finite(n) = a.class() else { return a };
    if env.denormal(a.is_denormal()) || n.exp >= 63 {
        return a;
    }
    let Some((v, inexact, away)) = integer(env.rounding, n) else { return a };
    if inexact {
        env.rounded_up = away;
        env.raise(flag::PE);
    }
    from_integer(n.sign, v)
}

/// An integer magnitude with a sign, exact.
pub(super) fn from_integer(sign: bool, v: u64) -> F80 {
    if v == 0 {
        return F80::zero(sign);
    }
    let n = v.leading_zeros();
    pack_exact(sign, 63 - n as i32, v << n)
}
