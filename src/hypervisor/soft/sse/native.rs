//! The hot 128-bit operations on the host's own vector unit. SSE2 is part of every x86-64 host;
//! elsewhere the portable definitions stand in. Same names and meaning as in [`super::int`],
//! [`super::shuffle`] and [`super::crypto`], which the tests hold these against.

#![allow(unsafe_code)]

use super::lane::Vector;

#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
pub(super) use super::{crypto::*, int::*, shuffle::*};

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use core::arch::x86_64::*;

    use super::super::{crypto, shuffle};

    #[inline(always)]
    fn vector(v: u128) -> __m128i {
        // SAFETY: both are 16 bytes for which any value is valid, in the same byte order.
        unsafe { core::mem::transmute(v) }
    }

    #[inline(always)]
    fn integer(v: __m128i) -> u128 {
        // SAFETY: as in `vector`.
        unsafe { core::mem::transmute(v) }
    }

    macro_rules! binary {
        ($($name:ident $intrinsic:ident;)*) => {$(
            #[inline(always)]
            pub(in super::super) fn $name(a: u128, b: u128) -> u128 {
                // SAFETY: SSE2 is in the x86-64 baseline.
                integer(unsafe { $intrinsic(vector(a), vector(b)) })
            }
        )*};
    }

    binary! {
        paddb _mm_add_epi8;
        paddw _mm_add_epi16;
        paddd _mm_add_epi32;
        paddq _mm_add_epi64;
        psubb _mm_sub_epi8;
        psubw _mm_sub_epi16;
        psubd _mm_sub_epi32;
        psubq _mm_sub_epi64;
        paddsb _mm_adds_epi8;
        paddsw _mm_adds_epi16;
        paddusb _mm_adds_epu8;
        paddusw _mm_adds_epu16;
        psubsb _mm_subs_epi8;
        psubsw _mm_subs_epi16;
        psubusb _mm_subs_epu8;
        psubusw _mm_subs_epu16;
        pavgb _mm_avg_epu8;
        pavgw _mm_avg_epu16;
        pminub _mm_min_epu8;
        pmaxub _mm_max_epu8;
        pminsw _mm_min_epi16;
        pmaxsw _mm_max_epi16;
        pcmpeqb _mm_cmpeq_epi8;
        pcmpeqw _mm_cmpeq_epi16;
        pcmpeqd _mm_cmpeq_epi32;
        pcmpgtb _mm_cmpgt_epi8;
        pcmpgtw _mm_cmpgt_epi16;
        pcmpgtd _mm_cmpgt_epi32;
        pmullw _mm_mullo_epi16;
        pmulhw _mm_mulhi_epi16;
        pmulhuw _mm_mulhi_epu16;
        pmuludq _mm_mul_epu32;
        pmaddwd _mm_madd_epi16;
        psadbw _mm_sad_epu8;
        punpcklbw _mm_unpacklo_epi8;
        punpckhbw _mm_unpackhi_epi8;
        punpcklwd _mm_unpacklo_epi16;
        punpckhwd _mm_unpackhi_epi16;
        punpckldq _mm_unpacklo_epi32;
        punpckhdq _mm_unpackhi_epi32;
        packsswb _mm_packs_epi16;
        packuswb _mm_packus_epi16;
        packssdw _mm_packs_epi32;
    }

    macro_rules! shift {
        ($($name:ident $intrinsic:ident;)*) => {$(
            #[inline(always)]
            pub(in super::super) fn $name(a: u128, count: u64) -> u128 {
                // SAFETY: SSE2 is in the x86-64 baseline.
                integer(unsafe { $intrinsic(vector(a), vector(count.into())) })
            }
        )*};
    }

    shift! {
        psllw _mm_sll_epi16;
        pslld _mm_sll_epi32;
        psllq _mm_sll_epi64;
        psrlw _mm_srl_epi16;
        psrld _mm_srl_epi32;
        psrlq _mm_srl_epi64;
        psraw _mm_sra_epi16;
        psrad _mm_sra_epi32;
    }

    /// Operations that only some hosts have; the others compute them in software.
    macro_rules! detected {
        ($($feature:tt: $name:ident($($arg:ident: $ty:ty),*) -> $result:ty, $host:expr, $software:path;)*) => {$(
            #[inline(always)]
            pub(in super::super) fn $name($($arg: $ty),*) -> $result {
                #[target_feature(enable = $feature)]
                fn host($($arg: $ty),*) -> $result {
                    $host
                }
                if std::is_x86_feature_detected!($feature) {
                    // SAFETY: the host has the feature.
                    unsafe { host($($arg),*) }
                } else {
                    $software($($arg),*)
                }
            }
        )*};
    }

    detected! {
        "ssse3": pshufb(a: u128, b: u128) -> u128,
            integer(_mm_shuffle_epi8(vector(a), vector(b))), shuffle::pshufb;
        "aes": aesenc(a: u128, key: u128) -> u128,
            integer(_mm_aesenc_si128(vector(a), vector(key))), crypto::aesenc;
        "aes": aesenclast(a: u128, key: u128) -> u128,
            integer(_mm_aesenclast_si128(vector(a), vector(key))), crypto::aesenclast;
        "aes": aesdec(a: u128, key: u128) -> u128,
            integer(_mm_aesdec_si128(vector(a), vector(key))), crypto::aesdec;
        "aes": aesdeclast(a: u128, key: u128) -> u128,
            integer(_mm_aesdeclast_si128(vector(a), vector(key))), crypto::aesdeclast;
        "pclmulqdq": carryless(a: u64, b: u64) -> u128,
            integer(_mm_clmulepi64_si128::<0>(vector(a.into()), vector(b.into()))), crypto::carryless;
        "sse4.2": crc32(crc: u32, data: u64, bytes: usize) -> u32,
            match bytes {
                1 => _mm_crc32_u8(crc, data as u8),
                2 => _mm_crc32_u16(crc, data as u16),
                4 => _mm_crc32_u32(crc, data as u32),
                _ => _mm_crc32_u64(crc.into(), data) as u32,
            },
            crypto::crc32;
    }

    #[inline(always)]
    pub(in super::super) fn pmovmskb(a: u128) -> u32 {
        // SAFETY: SSE2 is in the x86-64 baseline.
        unsafe { _mm_movemask_epi8(vector(a)) as u32 }
    }
}

/// Carry-less product of the quadwords that bits 0 and 4 of `imm` choose.
#[inline(always)]
pub(super) fn pclmulqdq(a: u128, b: u128, imm: u8) -> u128 {
    carryless(a.u64(usize::from(imm & 1)), b.u64(usize::from(imm >> 4 & 1)))
}
