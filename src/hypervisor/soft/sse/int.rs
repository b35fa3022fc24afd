//! Packed integer arithmetic, comparison and shifts of MMX and SSE, free of state. Each function
//! is the instruction of its name: first operand the destination's old value, second the source.

use super::lane::Vector;

macro_rules! lanewise {
    ($($name:ident $from:ident $get:ident $ty:ty : |$a:ident, $b:ident| $e:expr;)*) => {$(
        #[inline(always)]
        pub(super) fn $name<V: Vector>(a: V, b: V) -> V {
            V::$from(|i| {
                let ($a, $b) = (a.$get(i) as $ty, b.$get(i) as $ty);
                ($e) as _
            })
        }
    )*};
}

lanewise! {
    paddb from8 u8 u8: |a, b| a.wrapping_add(b);
    paddw from16 u16 u16: |a, b| a.wrapping_add(b);
    paddd from32 u32 u32: |a, b| a.wrapping_add(b);
    paddq from64 u64 u64: |a, b| a.wrapping_add(b);
    psubb from8 u8 u8: |a, b| a.wrapping_sub(b);
    psubw from16 u16 u16: |a, b| a.wrapping_sub(b);
    psubd from32 u32 u32: |a, b| a.wrapping_sub(b);
    psubq from64 u64 u64: |a, b| a.wrapping_sub(b);
    paddsb from8 u8 i8: |a, b| a.saturating_add(b);
    paddsw from16 u16 i16: |a, b| a.saturating_add(b);
    paddusb from8 u8 u8: |a, b| a.saturating_add(b);
    paddusw from16 u16 u16: |a, b| a.saturating_add(b);
    psubsb from8 u8 i8: |a, b| a.saturating_sub(b);
    psubsw from16 u16 i16: |a, b| a.saturating_sub(b);
    psubusb from8 u8 u8: |a, b| a.saturating_sub(b);
    psubusw from16 u16 u16: |a, b| a.saturating_sub(b);
    pavgb from8 u8 u16: |a, b| (a + b + 1) >> 1;
    pavgw from16 u16 u32: |a, b| (a + b + 1) >> 1;
    pminub from8 u8 u8: |a, b| a.min(b);
    pminuw from16 u16 u16: |a, b| a.min(b);
    pminud from32 u32 u32: |a, b| a.min(b);
    pminsb from8 u8 i8: |a, b| a.min(b);
    pminsw from16 u16 i16: |a, b| a.min(b);
    pminsd from32 u32 i32: |a, b| a.min(b);
    pmaxub from8 u8 u8: |a, b| a.max(b);
    pmaxuw from16 u16 u16: |a, b| a.max(b);
    pmaxud from32 u32 u32: |a, b| a.max(b);
    pmaxsb from8 u8 i8: |a, b| a.max(b);
    pmaxsw from16 u16 i16: |a, b| a.max(b);
    pmaxsd from32 u32 i32: |a, b| a.max(b);
    pcmpeqb from8 u8 u8: |a, b| mask8(a == b);
    pcmpeqw from16 u16 u16: |a, b| mask16(a == b);
    pcmpeqd from32 u32 u32: |a, b| mask32(a == b);
    pcmpeqq from64 u64 u64: |a, b| mask64(a == b);
    pcmpgtb from8 u8 i8: |a, b| mask8(a > b);
    pcmpgtw from16 u16 i16: |a, b| mask16(a > b);
    pcmpgtd from32 u32 i32: |a, b| mask32(a > b);
    pcmpgtq from64 u64 i64: |a, b| mask64(a > b);
    pmullw from16 u16 u16: |a, b| a.wrapping_mul(b);
    pmulld from32 u32 u32: |a, b| a.wrapping_mul(b);
    pmulhw from16 u16 i16: |a, b| (i32::from(a) * i32::from(b)) >> 16;
    pmulhuw from16 u16 u16: |a, b| (u32::from(a) * u32::from(b)) >> 16;
    pmulhrsw from16 u16 i16: |a, b| (((i32::from(a) * i32::from(b)) >> 14) + 1) >> 1;
    pmuludq from64 u64 u32: |a, b| u64::from(a) * u64::from(b);
    pmuldq from64 u64 i32: |a, b| i64::from(a) * i64::from(b);
    psignb from8 u8 i8: |a, b| a.wrapping_mul(b.signum());
    psignw from16 u16 i16: |a, b| a.wrapping_mul(b.signum());
    psignd from32 u32 i32: |a, b| a.wrapping_mul(b.signum());
    pabsb from8 u8 i8: |_a, b| b.unsigned_abs();
    pabsw from16 u16 i16: |_a, b| b.unsigned_abs();
    pabsd from32 u32 i32: |_a, b| b.unsigned_abs();
}

fn mask8(c: bool) -> u8 {
    (c as u8).wrapping_neg()
}
fn mask16(c: bool) -> u16 {
    (c as u16).wrapping_neg()
}
fn mask32(c: bool) -> u32 {
    (c as u32).wrapping_neg()
}
fn mask64(c: bool) -> u64 {
    (c as u64).wrapping_neg()
}

#[inline(always)]
pub(super) fn pand<V: Vector>(a: V, b: V) -> V {
    a & b
}
#[inline(always)]
pub(super) fn pandn<V: Vector>(a: V, b: V) -> V {
    !a & b
}
#[inline(always)]
pub(super) fn por<V: Vector>(a: V, b: V) -> V {
    a | b
}
#[inline(always)]
pub(super) fn pxor<V: Vector>(a: V, b: V) -> V {
    a ^ b
}

#[inline(always)]
pub(super) fn pmaddwd<V: Vector>(a: V, b: V) -> V {
    V::from32(|i| {
        let product = |i| i32::from(a.u16(i) as i16) * i32::from(b.u16(i) as i16);
        product(2 * i).wrapping_add(product(2 * i + 1)) as u32
    })
}

#[inline(always)]
pub(super) fn pmaddubsw<V: Vector>(a: V, b: V) -> V {
    V::from16(|i| {
        let product = |i| i32::from(a.u8(i)) * i32::from(b.u8(i) as i8);
        saturate16(product(2 * i) + product(2 * i + 1))
    })
}

#[inline(always)]
pub(super) fn psadbw<V: Vector>(a: V, b: V) -> V {
    V::from64(|q| (8 * q..8 * q + 8).map(|i| u64::from(a.u8(i).abs_diff(b.u8(i)))).sum())
}

fn saturate16(v: i32) -> u16 {
    v.clamp(i16::MIN.into(), i16::MAX.into()) as u16
}

/// Adjacent pairs of `a` then of `b`, joined by `f`.
#[inline(always)]
fn horizontal16<V: Vector>(a: V, b: V, f: impl Fn(i16, i16) -> i16) -> V {
    let half = V::BYTES / 4;
    V::from16(|i| {
        let (v, i) = if i < half { (a, i) } else { (b, i - half) };
        f(v.u16(2 * i) as i16, v.u16(2 * i + 1) as i16) as u16
    })
}

#[inline(always)]
fn horizontal32<V: Vector>(a: V, b: V, f: impl Fn(u32, u32) -> u32) -> V {
    let half = V::BYTES / 8;
    V::from32(|i| {
        let (v, i) = if i < half { (a, i) } else { (b, i - half) };
        f(v.u32(2 * i), v.u32(2 * i + 1))
    })
}

pub(super) fn phaddw<V: Vector>(a: V, b: V) -> V {
    horizontal16(a, b, i16::wrapping_add)
}
pub(super) fn phaddsw<V: Vector>(a: V, b: V) -> V {
    horizontal16(a, b, i16::saturating_add)
}
pub(super) fn phaddd<V: Vector>(a: V, b: V) -> V {
    horizontal32(a, b, u32::wrapping_add)
}
pub(super) fn phsubw<V: Vector>(a: V, b: V) -> V {
    horizontal16(a, b, i16::wrapping_sub)
}
pub(super) fn phsubsw<V: Vector>(a: V, b: V) -> V {
    horizontal16(a, b, i16::saturating_sub)
}
pub(super) fn phsubd<V: Vector>(a: V, b: V) -> V {
    horizontal32(a, b, u32::wrapping_sub)
}

macro_rules! shift {
    ($($name:ident $from:ident $get:ident $bits:literal: |$v:ident, $n:ident| $in:expr, $out:expr;)*) => {$(
        /// Shifts each lane by the same `count`, which may exceed the lane.
        #[inline(always)]
        pub(super) fn $name<V: Vector>(a: V, count: u64) -> V {
            if count < $bits {
                let $n = count as u32;
                V::$from(|i| { let $v = a.$get(i); ($in) as _ })
            } else {
                V::$from(|i| { let $v = a.$get(i); let _ = $v; ($out) as _ })
            }
        }
    )*};
}

shift! {
    psllw from16 u16 16: |v, n| v << n, 0;
    pslld from32 u32 32: |v, n| v << n, 0;
    psllq from64 u64 64: |v, n| v << n, 0;
    psrlw from16 u16 16: |v, n| v >> n, 0;
    psrld from32 u32 32: |v, n| v >> n, 0;
    psrlq from64 u64 64: |v, n| v >> n, 0;
    psraw from16 u16 16: |v, n| v as i16 >> n, v as i16 >> 15;
    psrad from32 u32 32: |v, n| v as i32 >> n, v as i32 >> 31;
}

/// Shifts the whole register left by `count` bytes.
#[inline(always)]
pub(super) fn pslldq(a: u128, count: u8) -> u128 {
    if count < 16 { a << (8 * u32::from(count)) } else { 0 }
}

/// Shifts the whole register right by `count` bytes.
#[inline(always)]
pub(super) fn psrldq(a: u128, count: u8) -> u128 {
    if count < 16 { a >> (8 * u32::from(count)) } else { 0 }
}

/// Eight sums of absolute differences of 4-byte groups, chosen by `imm`.
pub(super) fn mpsadbw(a: u128, b: u128, imm: u8) -> u128 {
    let (block, slide) = (usize::from(imm & 3) * 4, usize::from(imm >> 2 & 1) * 4);
    u128::from16(|i| (0..4).map(|k| u16::from(a.u8(slide + i + k).abs_diff(b.u8(block + k)))).sum())
}

/// The smallest word of the source in lane 0, its index in lane 1.
pub(super) fn phminposuw(_: u128, b: u128) -> u128 {
    let (min, index) = (0..8).map(|i| (b.u16(i), i as u128)).min().unwrap_or((0, 0));
    u128::from(min) | index << 16
}
