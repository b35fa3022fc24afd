//! Floating point in software, bit for bit as x86 silicon does it, results and exception flags.
//!
//! Values travel as their encodings: `u32` is binary32, `u64` is binary64 ([`Float`] is implemented
//! for both, so that code can be generic over them), [`F80`] is the x87 double extended format.
//! Every operation takes an [`Env`], obeys its control bits and accumulates flags in it; nothing
//! here knows of registers, instructions or faults.
//!
//! - [`num`]: unpacked numbers, rounding and packing for every format;
//! - [`ieee`]: arithmetic and comparison of binary32 and binary64 (the SSE rules);
//! - [`fast`]: the same arithmetic on the host's own unit where the flags can be told exactly;
//! - [`convert`]: between binary32, binary64 and integers (the SSE rules);
//! - [`f80`], [`f80_convert`], [`remainder`], [`transcendental`]: the x87 rules.
//!
//! Operations do not fail. When an *unmasked* exception comes up, the flag is set in [`Env::flags`]
//! and the caller, who sees `flags & unmasked`, decides whether the returned value is used: SSE and
//! the exceptions before the computation (IE, DE, ZE) discard it; x87 OE and UE keep it, with its
//! exponent wrapped as the manual says.

pub(crate) mod convert;
pub(crate) mod f80;
pub(crate) mod f80_convert;
mod fast;
pub(crate) mod ieee;
mod num;
pub(crate) mod remainder;
pub(crate) mod transcendental;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

pub(crate) use f80::F80;
pub(crate) use ieee::Float;

/// Exception flags, placed as in MXCSR and the x87 status word.
pub(crate) mod flag {
    /// Invalid operation.
    pub(crate) const IE: u8 = 1;
    /// Denormal operand.
    pub(crate) const DE: u8 = 2;
    /// Division of a finite number by zero.
    pub(crate) const ZE: u8 = 4;
    /// Overflow.
    pub(crate) const OE: u8 = 8;
    /// Underflow.
    pub(crate) const UE: u8 = 16;
    /// Inexact result.
    pub(crate) const PE: u8 = 32;
    /// The exceptions that come before the computation: unmasked, they leave no result.
    pub(crate) const BEFORE: u8 = IE | DE | ZE;
}

/// Rounding direction, numbered as in MXCSR.RC and the x87 control word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub(crate) enum Rounding {
    /// To nearest, ties to even.
    #[default]
    Nearest,
    /// Toward minus infinity.
    Down,
    /// Toward plus infinity.
    Up,
    /// Toward zero.
    Zero,
}

impl Rounding {
    /// From the two-bit RC field; higher bits are ignored.
    #[inline]
    pub(crate) fn from_bits(rc: u32) -> Self {
        match rc & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::Zero,
        }
    }
}

/// x87 precision control: significand bits of add, subtract, multiply, divide and square root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Precision {
    /// 24 bits.
    Single,
    /// 53 bits.
    Double,
    /// 64 bits.
    #[default]
    Extended,
}

impl Precision {
    /// From the two-bit PC field; the reserved value 1 acts as extended.
    #[inline]
    pub(crate) fn from_bits(pc: u32) -> Self {
        match pc & 3 {
            0 => Self::Single,
            2 => Self::Double,
            _ => Self::Extended,
        }
    }

    /// Significand bits, the integer bit included.
    #[inline]
    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Single => 24,
            Self::Double => 53,
            Self::Extended => 64,
        }
    }
}

/// What governs an operation, and what it reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Env {
    /// Rounding direction.
    pub(crate) rounding: Rounding,
    /// Denormal operands count as zeros (SSE operations only).
    pub(crate) daz: bool,
    /// Tiny results become zero while UE is masked (SSE operations only).
    pub(crate) ftz: bool,
    /// Precision control (x87 operations only).
    pub(crate) precision: Precision,
    /// Exceptions that are *not* masked, as [`flag`] bits.
    pub(crate) unmasked: u8,
    /// Exceptions that happened, accumulated, as [`flag`] bits.
    pub(crate) flags: u8,
    /// Whether the last x87 operation rounded its magnitude up (C1). x87 callers clear it first.
    pub(crate) rounded_up: bool,
}

impl Env {
    /// From MXCSR: its control bits and its flags.
    #[inline]
    pub(crate) fn from_mxcsr(mxcsr: u32) -> Self {
        Self {
            rounding: Rounding::from_bits(mxcsr >> 13),
            daz: mxcsr & 1 << 6 != 0,
            ftz: mxcsr & 1 << 15 != 0,
            precision: Precision::Extended,
            unmasked: !(mxcsr >> 7) as u8 & 0x3f,
            flags: mxcsr as u8 & 0x3f,
            rounded_up: false,
        }
    }

    /// From an x87 control word, with no flags.
    #[inline]
    pub(crate) fn from_control(control: u16) -> Self {
        Self {
            rounding: Rounding::from_bits(u32::from(control) >> 10),
            daz: false,
            ftz: false,
            precision: Precision::from_bits(u32::from(control) >> 8),
            unmasked: !control as u8 & 0x3f,
            flags: 0,
            rounded_up: false,
        }
    }

    /// Sets `flags` and says whether one of them is unmasked.
    #[inline]
    pub(crate) fn raise(&mut self, flags: u8) -> bool {
        self.flags |= flags;
        flags & self.unmasked != 0
    }

    /// Sets DE if `happened`; true if the operation ends here because DE is unmasked.
    #[inline]
    fn denormal(&mut self, happened: bool) -> bool {
        happened && self.raise(flag::DE)
    }
}

/// Outcome of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    /// First operand below second.
    Less,
    /// Equal; zeros of both signs are.
    Equal,
    /// First operand above second.
    Greater,
    /// A NaN (x87: or an unsupported encoding) takes part.
    Unordered,
}
