//! RCPPS, RSQRTPS and their scalar forms, as Intel's processors give them.
//!
//! The architecture only bounds the error (1.5 × 2^-12). The silicon takes the upper bits of the
//! significand and answers, to 13 bits, the exact value at the middle of their interval, which is
//! what is computed here; that equals the silicon for every input. No flags, no rounding mode;
//! denormals count as zeros.

use super::super::fp::Float;
use super::lane::Vector;

/// `f` of every lane.
pub(super) fn packed(v: u128, f: impl Fn(u32) -> u32) -> u128 {
    u128::from32(|i| f(v.u32(i)))
}

/// `q / 8192 * 2^(exponent + 1)`, for `q` in 4096..8192.
fn assemble(sign: u32, exponent: i32, q: u64) -> u32 {
    if exponent <= 0 {
        return sign;
    }
    sign | (exponent as u32) << 23 | ((q as u32 & 0xfff) << 11)
}

/// About `1 / v`.
pub(super) fn reciprocal(v: u32) -> u32 {
    let sign = v & 0x8000_0000;
    if v.is_nan() {
        return v.quiet();
    }
    match v.exponent() as i32 {
        0 => sign | 0x7f80_0000,
        255 => sign,
        exponent => {
            // The middle of the 2^-11 wide interval is d / 4096.
            let d = 4097 + 2 * (v.fraction() >> 12);
            let q = ((1 << 26) / d).div_ceil(2).max(4096);
            assemble(sign, 253 - exponent, q)
        }
    }
}

/// About `1 / √v`.
pub(super) fn reciprocal_root(v: u32) -> u32 {
    let sign = v & 0x8000_0000;
    if v.is_nan() {
        return v.quiet();
    }
    match v.exponent() as i32 {
        0 => sign | 0x7f80_0000,
        _ if sign != 0 => u32::indefinite(),
        255 => 0,
        exponent => {
            let power = exponent - 127;
            // The middle of the 2^-10 wide interval, with an even power of two left over, is
            // d / 2048.
            let d = (2049 + 2 * (v.fraction() >> 13)) << (power & 1);
            let q = ((1u64 << 39) / d).isqrt().div_ceil(2);
            assemble(0, 126 - (power >> 1), q)
        }
    }
}
