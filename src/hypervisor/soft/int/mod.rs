//! Integer instructions, and the widths they work on.

pub(super) mod alu;
pub(super) mod bits;
pub(super) mod data;
pub(super) mod muldiv;
pub(super) mod shift;

use std::fmt::Debug;
use std::ops::{BitAnd, BitOr, BitXor, Not};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// An operand width.
pub(super) trait Int:
    Copy
    + Eq
    + Ord
    + Debug
    + Default
    + BitAnd<Output = Self>
    + BitOr<Output = Self>
    + BitXor<Output = Self>
    + Not<Output = Self>
    + 'static
{
    const BITS: u32;
    const BYTES: u64;
    fn to_u64(self) -> u64;
    fn from_u64(v: u64) -> Self;
    /// Sign-extended to 64 bits.
    fn sext(self) -> u64;
    fn wadd(self, other: Self) -> Self;
    fn wsub(self, other: Self) -> Self;
    /// # Safety
    /// `p` points to a live, naturally aligned value of this width that other threads change only
    /// atomically.
    #[allow(unsafe_code)]
    unsafe fn compare_exchange(p: *mut Self, old: Self, new: Self) -> Result<Self, Self>;
}

macro_rules! int {
    ($t:ty, $s:ty, $atomic:ty) => {
        impl Int for $t {
            const BITS: u32 = <$t>::BITS;
            const BYTES: u64 = <$t>::BITS as u64 / 8;
            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn from_u64(v: u64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn sext(self) -> u64 {
                self as $s as i64 as u64
            }
            #[inline(always)]
            fn wadd(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn wsub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline(always)]
            #[allow(unsafe_code)]
            unsafe fn compare_exchange(p: *mut Self, old: Self, new: Self) -> Result<Self, Self> {
                // SAFETY: the caller's promise is from_ptr's condition.
                let atomic = unsafe { <$atomic>::from_ptr(p) };
                atomic.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            }
        }
    };
}
int!(u8, i8, AtomicU8);
int!(u16, i16, AtomicU16);
int!(u32, i32, AtomicU32);
int!(u64, i64, AtomicU64);
