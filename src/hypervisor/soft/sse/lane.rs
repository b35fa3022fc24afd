//! Integers seen as little-endian lanes, so that one definition serves MMX (`u64`) and SSE (`u128`).

use std::ops::{BitAnd, BitOr, BitXor, Not};

/// A vector register's value; lane 0 is the least significant.
pub(super) trait Vector:
    Copy + PartialEq + Not<Output = Self> + BitAnd<Output = Self> + BitOr<Output = Self> + BitXor<Output = Self>
{
    /// Size in bytes.
    const BYTES: usize;

    /// Lane `i` of 8 bits.
    fn u8(self, i: usize) -> u8;
    /// Lane `i` of 16 bits.
    fn u16(self, i: usize) -> u16;
    /// Lane `i` of 32 bits.
    fn u32(self, i: usize) -> u32;
    /// Lane `i` of 64 bits.
    fn u64(self, i: usize) -> u64;
    /// Builds a vector from what `f` gives for each 8-bit lane.
    fn from8(f: impl FnMut(usize) -> u8) -> Self;
    /// Builds a vector from what `f` gives for each 16-bit lane.
    fn from16(f: impl FnMut(usize) -> u16) -> Self;
    /// Builds a vector from what `f` gives for each 32-bit lane.
    fn from32(f: impl FnMut(usize) -> u32) -> Self;
    /// Builds a vector from what `f` gives for each 64-bit lane.
    fn from64(f: impl FnMut(usize) -> u64) -> Self;
}

macro_rules! vector {
    ($ty:ty, $bytes:literal) => {
        impl Vector for $ty {
            const BYTES: usize = $bytes;

            #[inline(always)]
            fn u8(self, i: usize) -> u8 {
                (self >> (8 * i)) as u8
            }
            #[inline(always)]
            fn u16(self, i: usize) -> u16 {
                (self >> (16 * i)) as u16
            }
            #[inline(always)]
            fn u32(self, i: usize) -> u32 {
                (self >> (32 * i)) as u32
            }
            #[inline(always)]
            fn u64(self, i: usize) -> u64 {
                (self >> (64 * i)) as u64
            }
            #[inline(always)]
            fn from8(mut f: impl FnMut(usize) -> u8) -> Self {
                (0..$bytes).fold(0, |v, i| v | Self::from(f(i)) << (8 * i))
            }
            #[inline(always)]
            fn from16(mut f: impl FnMut(usize) -> u16) -> Self {
                (0..$bytes / 2).fold(0, |v, i| v | Self::from(f(i)) << (16 * i))
            }
            #[inline(always)]
            fn from32(mut f: impl FnMut(usize) -> u32) -> Self {
                (0..$bytes / 4).fold(0, |v, i| v | Self::from(f(i)) << (32 * i))
            }
            #[inline(always)]
            fn from64(mut f: impl FnMut(usize) -> u64) -> Self {
                (0..$bytes / 8).fold(0, |v, i| v | Self::from(f(i)) << (64 * i))
            }
        }
    };
}

vector!(u64, 8);
vector!(u128, 16);
