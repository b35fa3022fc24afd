//! Unpacked numbers, and the one place where results are rounded.

use super::{Env, Rounding, flag};

/// A finite nonzero number: `sig / 2^127 * 2^exp`, with bit 127 of `sig` set. Bit 0 may stand for
/// any nonzero rest below it (sticky).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Num {
    pub(super) sign: bool,
    pub(super) exp: i32,
    pub(super) sig: u128,
}

/// What an unmasked overflow or underflow does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trap {
    /// SSE: no result; an inexact one is still reported as such.
    Report,
    /// x87 store: no result and no other flag.
    Silent,
    /// x87 register: delivered with the exponent moved back into range by [`WRAP`].
    Wrap,
}

/// What an unmasked overflow or underflow moves an x87 register's exponent by.
const WRAP: i32 = 24576;

/// What a result is rounded to. `precision` counts the integer bit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spec {
    pub(super) precision: u32,
    pub(super) emin: i32,
    pub(super) emax: i32,
    pub(super) trap: Trap,
    pub(super) ftz: bool,
}

/// Shifts right; nonzero bits that fall out stay visible in bit 0.
#[inline]
pub(super) fn shift_right_jam(v: u128, n: u32) -> u128 {
    if n == 0 {
        v
    } else if n < 128 {
        v >> n | u128::from(v << (128 - n) != 0)
    } else {
        u128::from(v != 0)
    }
}

impl Num {
    /// From a nonzero significand whose bit 127 weighs `2^exp`; moves the leading one there.
    #[inline]
    pub(super) fn normalize(sign: bool, exp: i32, sig: u128) -> Self {
        let n = sig.leading_zeros();
        Self { sign, exp: exp - n as i32, sig: sig << (n & 127) }
    }

    /// The upper half of the significand, which is all of it for an operand.
    #[inline]
    fn high(self) -> u64 {
        (self.sig >> 64) as u64
    }

    /// Sum. `None` is an exact zero that came from unlike signs.
    pub(super) fn add(a: Self, b: Self) -> Option<Self> {
        let (a, b) = if (b.exp, b.sig) > (a.exp, a.sig) { (b, a) } else { (a, b) };
        // One bit of head room for the carry.
        let x = shift_right_jam(a.sig, 1);
        let y = shift_right_jam(b.sig, (a.exp - b.exp).unsigned_abs().saturating_add(1));
        let sum = if a.sign == b.sign { x + y } else { x - y };
        (sum != 0).then(|| Self::normalize(a.sign, a.exp + 1, sum))
    }

    /// Product of two operands of at most 64 significant bits, exact.
    #[inline]
    pub(super) fn mul(a: Self, b: Self) -> Self {
        let p = u128::from(a.high()) * u128::from(b.high());
        Self::normalize(a.sign ^ b.sign, a.exp + b.exp + 1, p)
    }

    /// Quotient of two operands of at most 64 significant bits: 64 bits, a half bit and a rest bit.
    pub(super) fn div(a: Self, b: Self) -> Self {
        let (x, y) = (a.high(), b.high());
        let (n, exp) = if x >= y {
            (u128::from(x) << 63, a.exp - b.exp)
        } else {
            (u128::from(x) << 64, a.exp - b.exp - 1)
        };
        let y = u128::from(y);
        let (q, r) = (n / y, n % y);
        let rest = match (2 * r).cmp(&y) {
            _ if r == 0 => 0,
            std::cmp::Ordering::Less => 1,
            std::cmp::Ordering::Equal => 1 << 63,
            std::cmp::Ordering::Greater => 1 << 63 | 1,
        };
        Self { sign: a.sign ^ b.sign, exp, sig: q << 64 | rest }
    }

    /// Square root of a positive operand of at most 64 significant bits, with half and rest bits.
    pub(super) fn sqrt(a: Self) -> Self {
        // An even exponent, and the radicand as an integer whose root has exactly 64 bits.
        let odd = a.exp & 1;
        let n = a.sig >> (1 - odd);
        let root = n.isqrt();
        let rest = n - root * root;
        let low = match rest {
            0 => 0,
            r if r > root => 1 << 63 | 1,
            _ => 1,
        };
        Self { sign: false, exp: (a.exp - odd) / 2, sig: root << 64 | low }
    }
}

/// Whether a magnitude moves away from zero, given its kept part's lowest bit and what is cut off:
/// `rest` out of `half * 2`.
#[inline]
pub(super) fn round_away(rounding: Rounding, sign: bool, odd: bool, rest: u128, half: u128) -> bool {
    match rounding {
        Rounding::Nearest => rest > half || rest == half && odd,
        Rounding::Down => sign && rest != 0,
        Rounding::Up => !sign && rest != 0,
        Rounding::Zero => false,
    }
}

/// A rounded result: exponent, and significand with the integer bit at bit 63. Zero and denormals
/// have `emin` and a clear integer bit; infinity has `emax + 1`.
pub(super) struct Rounded {
    pub(super) exp: i32,
    pub(super) sig: u64,
}

/// Rounds `sig` to its upper `precision` bits: result, carry out of bit 63, inexact, away.
#[inline]
fn cut(rounding: Rounding, sign: bool, sig: u128, precision: u32) -> (u64, bool, bool, bool) {
    let drop = 128 - precision;
    let rest = sig & ((1 << drop) - 1);
    let kept = sig >> drop;
    let away = round_away(rounding, sign, kept & 1 != 0, rest, 1 << (drop - 1));
    let sum = kept + u128::from(away);
    let carry = sum >> precision != 0;
    ((sum << (64 - precision)) as u64, carry, rest != 0, away)
}

/// Rounds to `spec` and raises OE, UE and PE as the environment says.
pub(super) fn round(env: &mut Env, spec: &Spec, n: Num) -> Rounded {
    let (sig, carry, inexact, away) = cut(env.rounding, n.sign, n.sig, spec.precision);
    // What the exponent and significand would be with no bounds.
    let (exp, sig) = if carry { (n.exp + 1, 1 << 63) } else { (n.exp, sig) };

    if exp > spec.emax {
        return overflow(env, spec, n.sign, Rounded { exp, sig }, inexact, away);
    }
    if exp < spec.emin {
        if env.unmasked & flag::UE != 0 {
            env.flags |= flag::UE;
            let wrapped = exp + WRAP;
            if spec.trap == Trap::Wrap && wrapped >= spec.emin {
                if inexact {
                    env.flags |= flag::PE;
                    env.rounded_up = away;
                }
                return Rounded { exp: wrapped, sig };
            }
            // Out of reach of wrapping (FSCALE), or not to be delivered at all.
            if spec.trap == Trap::Wrap || spec.trap == Trap::Report && inexact {
                env.flags |= flag::PE;
            }
            return Rounded { exp: spec.emin, sig: 0 };
        }
        if spec.ftz {
            env.flags |= flag::UE | flag::PE;
            return Rounded { exp: spec.emin, sig: 0 };
        }
        let shifted = shift_right_jam(n.sig, (spec.emin - n.exp).unsigned_abs());
        let (sig, carry, inexact, away) = cut(env.rounding, n.sign, shifted, spec.precision);
        if inexact {
            env.flags |= flag::UE | flag::PE;
            env.rounded_up = away;
        }
        // The carry out of bit 63 cannot be: the leading one is below it.
        debug_assert!(!carry);
        return Rounded { exp: spec.emin, sig };
    }
    if inexact {
        env.flags |= flag::PE;
        env.rounded_up = away;
    }
    Rounded { exp, sig }
}

#[cold]
fn overflow(env: &mut Env, spec: &Spec, sign: bool, r: Rounded, inexact: bool, away: bool) -> Rounded {
    env.flags |= flag::OE;
    if env.unmasked & flag::OE != 0 {
        let wrapped = r.exp - WRAP;
        if spec.trap == Trap::Wrap && wrapped <= spec.emax {
            if inexact {
                env.flags |= flag::PE;
                env.rounded_up = away;
            }
            return Rounded { exp: wrapped, sig: r.sig };
        }
        if spec.trap == Trap::Wrap || spec.trap == Trap::Report && inexact {
            env.flags |= flag::PE;
        }
        env.rounded_up = spec.trap == Trap::Wrap;
        return Rounded { exp: spec.emax + 1, sig: 1 << 63 };
    }
    env.flags |= flag::PE;
    let infinite = match env.rounding {
        Rounding::Nearest => true,
        Rounding::Down => sign,
        Rounding::Up => !sign,
        Rounding::Zero => false,
    };
    env.rounded_up = infinite;
    if infinite {
        Rounded { exp: spec.emax + 1, sig: 1 << 63 }
    } else {
        Rounded { exp: spec.emax, sig: !0 << (64 - spec.precision) }
    }
}
