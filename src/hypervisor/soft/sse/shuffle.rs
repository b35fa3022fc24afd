//! Moving lanes about: shuffles, packs, unpacks, blends, inserts and extracts, free of state.
//! Operand order as in [`super::int`]; `imm` is the instruction's immediate byte.

use super::lane::Vector;

#[inline(always)]
pub(super) fn pshufb<V: Vector>(a: V, b: V) -> V {
    let mut table = [0u8; 16];
    for (i, t) in table.iter_mut().enumerate().take(V::BYTES) {
        *t = a.u8(i);
    }
    V::from8(|i| {
        let control = b.u8(i);
        if control & 0x80 != 0 { 0 } else { table[usize::from(control) & (V::BYTES - 1)] }
    })
}

/// Picks the lane that two bits of `imm` name for lane `i`.
fn pick(imm: u8, i: usize) -> usize {
    usize::from(imm >> (2 * i) & 3)
}

#[inline(always)]
pub(super) fn pshufd(b: u128, imm: u8) -> u128 {
    u128::from32(|i| b.u32(pick(imm, i)))
}

#[inline(always)]
pub(super) fn pshufw(b: u64, imm: u8) -> u64 {
    u64::from16(|i| b.u16(pick(imm, i)))
}

#[inline(always)]
pub(super) fn pshuflw(b: u128, imm: u8) -> u128 {
    b >> 64 << 64 | u128::from(pshufw(b as u64, imm))
}

#[inline(always)]
pub(super) fn pshufhw(b: u128, imm: u8) -> u128 {
    u128::from(pshufw((b >> 64) as u64, imm)) << 64 | u128::from(b as u64)
}

#[inline(always)]
pub(super) fn shufps(a: u128, b: u128, imm: u8) -> u128 {
    u128::from32(|i| if i < 2 { a.u32(pick(imm, i)) } else { b.u32(pick(imm, i)) })
}

#[inline(always)]
pub(super) fn shufpd(a: u128, b: u128, imm: u8) -> u128 {
    u128::from(a.u64(usize::from(imm & 1))) | u128::from(b.u64(usize::from(imm >> 1 & 1))) << 64
}

macro_rules! unpack {
    ($($low:ident $high:ident $from:ident $get:ident $bytes:literal;)*) => {$(
        #[inline(always)]
        pub(super) fn $low<V: Vector>(a: V, b: V) -> V {
            V::$from(|i| if i & 1 == 0 { a.$get(i / 2) } else { b.$get(i / 2) })
        }
        #[inline(always)]
        pub(super) fn $high<V: Vector>(a: V, b: V) -> V {
            let half = V::BYTES / $bytes / 2;
            V::$from(|i| if i & 1 == 0 { a.$get(half + i / 2) } else { b.$get(half + i / 2) })
        }
    )*};
}

unpack! {
    punpcklbw punpckhbw from8 u8 1;
    punpcklwd punpckhwd from16 u16 2;
    punpckldq punpckhdq from32 u32 4;
}

#[inline(always)]
pub(super) fn punpcklqdq(a: u128, b: u128) -> u128 {
    u128::from(a as u64) | b << 64
}

#[inline(always)]
pub(super) fn punpckhqdq(a: u128, b: u128) -> u128 {
    a >> 64 | b >> 64 << 64
}

macro_rules! pack {
    ($($name:ident $from:ident $get:ident $wide:ty => $narrow:ty as $raw:ty, $bytes:literal;)*) => {$(
        #[inline(always)]
        pub(super) fn $name<V: Vector>(a: V, b: V) -> V {
            let half = V::BYTES / $bytes;
            V::$from(|i| {
                let v = if i < half { a.$get(i) } else { b.$get(i - half) } as $wide;
                v.clamp(<$narrow>::MIN as $wide, <$narrow>::MAX as $wide) as $raw
            })
        }
    )*};
}

pack! {
    packsswb from8 u16 i16 => i8 as u8, 2;
    packuswb from8 u16 i16 => u8 as u8, 2;
    packssdw from16 u32 i32 => i16 as u16, 4;
    packusdw from16 u32 i32 => u16 as u16, 4;
}

/// `a:b` shifted right by `imm` bytes.
#[inline(always)]
pub(super) fn palignr<V: Vector>(a: V, b: V, imm: u8) -> V {
    let shift = usize::from(imm);
    V::from8(|i| match i + shift {
        k if k < V::BYTES => b.u8(k),
        k if k < 2 * V::BYTES => a.u8(k - V::BYTES),
        _ => 0,
    })
}

/// The sign bit of each byte.
#[inline(always)]
pub(super) fn pmovmskb<V: Vector>(a: V) -> u32 {
    (0..V::BYTES).fold(0, |m, i| m | u32::from(a.u8(i) >> 7) << i)
}

#[inline(always)]
pub(super) fn movmskps(a: u128) -> u32 {
    (0..4).fold(0, |m, i| m | (a.u32(i) >> 31) << i)
}

#[inline(always)]
pub(super) fn movmskpd(a: u128) -> u32 {
    (a.u64(0) >> 63 | a.u64(1) >> 63 << 1) as u32
}

/// Replaces the word that `imm` names.
#[inline(always)]
pub(super) fn pinsrw<V: Vector>(a: V, word: u16, imm: u8) -> V {
    let lane = usize::from(imm) & (V::BYTES / 2 - 1);
    V::from16(|i| if i == lane { word } else { a.u16(i) })
}

#[inline(always)]
pub(super) fn pinsrb(a: u128, byte: u8, imm: u8) -> u128 {
    let at = 8 * u32::from(imm & 15);
    a & !(0xff << at) | u128::from(byte) << at
}

#[inline(always)]
pub(super) fn pinsrd(a: u128, dword: u32, imm: u8) -> u128 {
    let at = 32 * u32::from(imm & 3);
    a & !(u128::from(u32::MAX) << at) | u128::from(dword) << at
}

#[inline(always)]
pub(super) fn pinsrq(a: u128, qword: u64, imm: u8) -> u128 {
    let at = 64 * u32::from(imm & 1);
    a & !(u128::from(u64::MAX) << at) | u128::from(qword) << at
}

/// `value` into the lane bits 4–5 name, then the lanes of bits 0–3 cleared. The caller picks
/// `value` out of the source (lane by bits 6–7, or the memory operand).
pub(super) fn insertps(a: u128, value: u32, imm: u8) -> u128 {
    let v = pinsrd(a, value, imm >> 4);
    u128::from32(|i| if imm >> i & 1 != 0 { 0 } else { v.u32(i) })
}

pub(super) fn pblendw(a: u128, b: u128, imm: u8) -> u128 {
    u128::from16(|i| if imm >> i & 1 != 0 { b.u16(i) } else { a.u16(i) })
}

pub(super) fn blendps(a: u128, b: u128, imm: u8) -> u128 {
    u128::from32(|i| if imm >> i & 1 != 0 { b.u32(i) } else { a.u32(i) })
}

pub(super) fn blendpd(a: u128, b: u128, imm: u8) -> u128 {
    u128::from64(|i| if imm >> i & 1 != 0 { b.u64(i) } else { a.u64(i) })
}

/// Bytes of `b` where the sign bit of `mask`'s byte is set.
pub(super) fn pblendvb(a: u128, b: u128, mask: u128) -> u128 {
    u128::from8(|i| if mask.u8(i) >> 7 != 0 { b.u8(i) } else { a.u8(i) })
}

pub(super) fn blendvps(a: u128, b: u128, mask: u128) -> u128 {
    u128::from32(|i| if mask.u32(i) >> 31 != 0 { b.u32(i) } else { a.u32(i) })
}

pub(super) fn blendvpd(a: u128, b: u128, mask: u128) -> u128 {
    u128::from64(|i| if mask.u64(i) >> 63 != 0 { b.u64(i) } else { a.u64(i) })
}

macro_rules! widen {
    ($($name:ident $from:ident $get:ident $ty:ty;)*) => {$(
        /// Widens the low lanes of `b`.
        #[inline(always)]
        pub(super) fn $name(b: u128) -> u128 {
            u128::$from(|i| (b.$get(i) as $ty) as _)
        }
    )*};
}

widen! {
    pmovsxbw from16 u8 i8;
    pmovsxbd from32 u8 i8;
    pmovsxbq from64 u8 i8;
    pmovsxwd from32 u16 i16;
    pmovsxwq from64 u16 i16;
    pmovsxdq from64 u32 i32;
    pmovzxbw from16 u8 u8;
    pmovzxbd from32 u8 u8;
    pmovzxbq from64 u8 u8;
    pmovzxwd from32 u16 u16;
    pmovzxwq from64 u16 u16;
    pmovzxdq from64 u32 u32;
}

#[inline(always)]
pub(super) fn movddup(b: u128) -> u128 {
    punpcklqdq(b, b)
}
#[inline(always)]
pub(super) fn movsldup(b: u128) -> u128 {
    pshufd(b, 0b10_10_00_00)
}
#[inline(always)]
pub(super) fn movshdup(b: u128) -> u128 {
    pshufd(b, 0b11_11_01_01)
}
