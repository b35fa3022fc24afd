//! The pure operations against the silicon: each by its mnemonic, on edge and random operands.

#![allow(unsafe_code)]

use std::arch::asm;

use super::super::lane::Vector;
use super::super::{crypto, int, native, shuffle, text};
use super::Random;

const ROUNDS: usize = 400;

macro_rules! silicon {
    (xmm $insn:expr, $a:expr, $b:expr) => {{
        let (mut a, b): (u128, u128) = ($a, $b);
        // SAFETY: the operands are 16 live bytes each; every register written is declared.
        unsafe {
            asm!(
                "movdqu xmm0, [{a}]", "movdqu xmm1, [{b}]", $insn, "movdqu [{a}], xmm0",
                a = in(reg) &raw mut a, b = in(reg) &raw const b,
                out("xmm0") _, out("xmm1") _, options(nostack)
            );
        }
        a
    }};
    (mmx $insn:expr, $a:expr, $b:expr) => {{
        let (mut a, b): (u64, u64) = ($a, $b);
        // SAFETY: as above; EMMS gives the x87 registers back.
        unsafe {
            asm!(
                "movq mm0, [{a}]", "movq mm1, [{b}]", $insn, "movq [{a}], mm0", "emms",
                a = in(reg) &raw mut a, b = in(reg) &raw const b,
                out("mm0") _, out("mm1") _, out("st(0)") _, out("st(1)") _, options(nostack)
            );
        }
        a
    }};
}

macro_rules! check_xmm {
    ($($name:ident $($path:ident)::+;)*) => {$({
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for _ in 0..ROUNDS {
            let (a, b) = (random.operand(), random.operand());
            let expected = silicon!(xmm concat!(stringify!($name), " xmm0, xmm1"), a, b);
            let got = $($path)::+(a, b);
            assert_eq!(got, expected, "{} {a:#034x} {b:#034x}: {got:#034x}", stringify!($($path)::+));
        }
    })*};
}

macro_rules! check_mmx {
    ($($name:ident $($path:ident)::+;)*) => {$({
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for _ in 0..ROUNDS {
            let (a, b) = (random.operand() as u64, random.operand() as u64);
            let expected = silicon!(mmx concat!(stringify!($name), " mm0, mm1"), a, b);
            let got = $($path)::+(a, b);
            assert_eq!(got, expected, "{} {a:#018x} {b:#018x}: {got:#018x}", stringify!($($path)::+));
        }
    })*};
}

/// Both register files, and the native form where there is one.
macro_rules! check_both {
    ($($name:ident $module:ident;)*) => {$(
        check_xmm! { $name $module::$name; }
        check_mmx! { $name $module::$name; }
    )*};
}

macro_rules! check_native {
    ($($name:ident $module:ident;)*) => {$(
        check_xmm! { $name native::$name; }
        check_both! { $name $module; }
    )*};
}

#[test]
fn common_operations_agree_with_silicon() {
    check_native! {
        paddb int; paddw int; paddd int; paddq int; psubb int; psubw int; psubd int; psubq int;
        paddsb int; paddsw int; paddusb int; paddusw int;
        psubsb int; psubsw int; psubusb int; psubusw int;
        pavgb int; pavgw int; pminub int; pmaxub int; pminsw int; pmaxsw int;
        pcmpeqb int; pcmpeqw int; pcmpeqd int; pcmpgtb int; pcmpgtw int; pcmpgtd int;
        pmullw int; pmulhw int; pmulhuw int; pmuludq int; pmaddwd int; psadbw int;
        punpcklbw shuffle; punpckhbw shuffle; punpcklwd shuffle; punpckhwd shuffle;
        punpckldq shuffle; punpckhdq shuffle;
        packsswb shuffle; packuswb shuffle; packssdw shuffle;
    }
    check_both! { pand int; pandn int; por int; pxor int; }
    check_xmm! { punpcklqdq shuffle::punpcklqdq; punpckhqdq shuffle::punpckhqdq; }
}

#[test]
fn later_extensions_agree_with_silicon() {
    if !std::is_x86_feature_detected!("sse4.2") {
        eprintln!("skipped: the host has no SSE4.2");
        return;
    }
    check_both! {
        psignb int; psignw int; psignd int; pabsb int; pabsw int; pabsd int;
        phaddw int; phaddd int; phaddsw int; phsubw int; phsubd int; phsubsw int;
        pmaddubsw int; pmulhrsw int; pshufb shuffle;
    }
    check_xmm! {
        pminuw int::pminuw; pminud int::pminud; pminsb int::pminsb; pminsd int::pminsd;
        pmaxuw int::pmaxuw; pmaxud int::pmaxud; pmaxsb int::pmaxsb; pmaxsd int::pmaxsd;
        pcmpeqq int::pcmpeqq; pcmpgtq int::pcmpgtq; pmulld int::pmulld; pmuldq int::pmuldq;
        packusdw shuffle::packusdw; phminposuw int::phminposuw; pshufb native::pshufb;
    }
    macro_rules! unary {
        ($($name:ident)*) => {$({
            let op = |_: u128, b: u128| shuffle::$name(b);
            check_xmm! { $name op; }
        })*};
    }
    unary! {
        pmovsxbw pmovsxbd pmovsxbq pmovsxwd pmovsxwq pmovsxdq
        pmovzxbw pmovzxbd pmovzxbq pmovzxwd pmovzxwq pmovzxdq
        movddup movsldup movshdup
    }
}

macro_rules! with_imm {
    ($file:ident $insn:literal, $op:expr, $random:expr, [$($imm:literal)*]) => {$(
        // A closure each: one body with all of them takes the compiler minutes.
        let mut check = || for _ in 0..ROUNDS / 10 {
            let (a, b) = ($random.operand() as _, $random.operand() as _);
            let expected = silicon!($file concat!($insn, ", ", stringify!($imm)), a, b);
            assert_eq!($op(a, b, $imm), expected, "{} {} {a:#x} {b:#x}", $insn, $imm);
        };
        check();
    )*};
}

/// Immediates that name every lane, and some with bits that must be ignored. All 256 of each
/// opcode are drawn at random in `instructions`.
macro_rules! imms {
    ($($file:ident $insn:literal $op:expr;)*) => {
        let mut random = Random(77);
        $(with_imm!($file $insn, $op, random, [
            0 1 3 7 8 15 16 17 27 32 78 100 147 170 228 255
        ]);)*
    };
}

#[test]
fn immediates_agree_with_silicon() {
    if !std::is_x86_feature_detected!("sse4.2") {
        eprintln!("skipped: the host has no SSE4.2");
        return;
    }
    imms! {
        xmm "pshufd xmm0, xmm1" |_: u128, b, i| shuffle::pshufd(b, i);
        xmm "pshuflw xmm0, xmm1" |_: u128, b, i| shuffle::pshuflw(b, i);
        xmm "pshufhw xmm0, xmm1" |_: u128, b, i| shuffle::pshufhw(b, i);
        mmx "pshufw mm0, mm1" |_: u64, b, i| shuffle::pshufw(b, i);
        xmm "shufps xmm0, xmm1" shuffle::shufps;
        xmm "shufpd xmm0, xmm1" shuffle::shufpd;
        xmm "palignr xmm0, xmm1" shuffle::palignr;
        mmx "palignr mm0, mm1" shuffle::palignr;
        xmm "pblendw xmm0, xmm1" shuffle::pblendw;
        xmm "blendps xmm0, xmm1" shuffle::blendps;
        xmm "blendpd xmm0, xmm1" shuffle::blendpd;
        xmm "mpsadbw xmm0, xmm1" int::mpsadbw;
        xmm "insertps xmm0, xmm1" |a, b: u128, i: u8| shuffle::insertps(a, (b >> (32 * (i >> 6))) as u32, i);
        xmm "pslldq xmm0" |a, _: u128, i| int::pslldq(a, i);
        xmm "psrldq xmm0" |a, _: u128, i| int::psrldq(a, i);
        xmm "psllw xmm0" |a, _: u128, i: u8| native::psllw(a, i.into());
        xmm "psrad xmm0" |a, _: u128, i: u8| native::psrad(a, i.into());
        mmx "psllw mm0" |a, _: u64, i: u8| int::psllw(a, i.into());
        mmx "psrad mm0" |a, _: u64, i: u8| int::psrad(a, i.into());
    }
    if std::is_x86_feature_detected!("aes") {
        imms! { xmm "aeskeygenassist xmm0, xmm1" |_: u128, b, i| crypto::aeskeygenassist(b, i); }
    }
    if std::is_x86_feature_detected!("pclmulqdq") {
        imms! {
            xmm "pclmulqdq xmm0, xmm1" native::pclmulqdq;
            xmm "pclmulqdq xmm0, xmm1" |a: u128, b: u128, i: u8| {
                crypto::carryless(a.u64(usize::from(i & 1)), b.u64(usize::from(i >> 4 & 1)))
            };
        }
    }
}

#[test]
fn shifts_by_register_agree_with_silicon() {
    let mut random = Random(5);
    macro_rules! shifts {
        ($($name:ident)*) => {$(
            for count in (0..70).chain([1 << 16, 1 << 32, u64::MAX]) {
                let (a, high) = (random.operand(), random.operand() << 64);
                let b = high | u128::from(count);
                let expected = silicon!(xmm concat!(stringify!($name), " xmm0, xmm1"), a, b);
                assert_eq!(int::$name(a, count), expected, "{} {count}", stringify!($name));
                assert_eq!(native::$name(a, count), expected, "{} {count}", stringify!($name));
                let expected = silicon!(mmx concat!(stringify!($name), " mm0, mm1"), a as u64, count);
                assert_eq!(int::$name(a as u64, count), expected, "{} {count}", stringify!($name));
            }
        )*};
    }
    shifts! { psllw pslld psllq psrlw psrld psrlq psraw psrad }
}

#[test]
fn variable_blends_and_masks_agree_with_silicon() {
    if !std::is_x86_feature_detected!("sse4.1") {
        eprintln!("skipped: the host has no SSE4.1");
        return;
    }
    let mut random = Random(6);
    for _ in 0..ROUNDS {
        let (a, b) = (random.operand(), random.operand());
        // The implicit mask XMM0 is the destination too: it blends itself.
        macro_rules! blend {
            ($($name:ident)*) => {$(
                let expected = silicon!(xmm concat!(stringify!($name), " xmm0, xmm1, xmm0"), a, b);
                assert_eq!(shuffle::$name(a, b, a), expected, "{}", stringify!($name));
            )*};
        }
        blend! { pblendvb blendvps blendvpd }
        macro_rules! mask {
            ($insn:literal $got:expr) => {
                let mask: u32;
                // SAFETY: reads 16 live bytes; every register written is declared.
                unsafe {
                    asm!("movdqu xmm0, [{a}]", concat!($insn, " {m:e}, xmm0"), a = in(reg) &raw const a,
                        m = out(reg) mask, out("xmm0") _, options(nostack));
                }
                assert_eq!($got, mask, "{} {a:#x}", $insn);
            };
        }
        mask! { "pmovmskb" shuffle::pmovmskb(a) }
        mask! { "pmovmskb" native::pmovmskb(a) }
        mask! { "movmskps" shuffle::movmskps(a) }
        mask! { "movmskpd" shuffle::movmskpd(a) }
        assert_eq!(shuffle::pmovmskb(a as u64), native::pmovmskb(a) & 0xff);
    }
}

#[test]
fn inserts_replace_one_lane() {
    let v = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100u128;
    assert_eq!(shuffle::pinsrb(v, 0xff, 0xf3), 0x0f0e_0d0c_0b0a_0908_0706_0504_ff02_0100);
    assert_eq!(shuffle::pinsrw(v, 0xffff, 0xf9), 0x0f0e_0d0c_0b0a_0908_0706_0504_ffff_0100);
    assert_eq!(shuffle::pinsrw(v as u64, 0xffff, 0xff), 0xffff_0504_0302_0100);
    assert_eq!(shuffle::pinsrd(v, !0, 0xfe), 0x0f0e_0d0c_ffff_ffff_0706_0504_0302_0100);
    assert_eq!(shuffle::pinsrq(v, !0, 0xff), 0xffff_ffff_ffff_ffff_0706_0504_0302_0100);
}

#[test]
fn aes_rounds_agree_with_silicon() {
    if !std::is_x86_feature_detected!("aes") {
        eprintln!("skipped: the host has no AES");
        return;
    }
    check_xmm! {
        aesenc crypto::aesenc; aesenclast crypto::aesenclast;
        aesdec crypto::aesdec; aesdeclast crypto::aesdeclast; aesimc crypto::aesimc;
        aesenc native::aesenc; aesenclast native::aesenclast;
        aesdec native::aesdec; aesdeclast native::aesdeclast;
    }
}

#[test]
fn crc32_agrees_with_silicon() {
    assert_eq!(b"123456789".iter().fold(!0, |crc, b| crypto::crc32(crc, u64::from(*b), 1)), !0xe306_9283);
    if !std::is_x86_feature_detected!("sse4.2") {
        eprintln!("skipped: the host has no SSE4.2");
        return;
    }
    let mut random = Random(7);
    for _ in 0..ROUNDS {
        let (crc, data) = (random.next() as u32, random.next());
        // SAFETY: SSE4.2 is there.
        let (q, w) = unsafe {
            use core::arch::x86_64::{_mm_crc32_u16, _mm_crc32_u64};
            (_mm_crc32_u64(crc.into(), data), _mm_crc32_u16(crc, data as u16))
        };
        assert_eq!(u64::from(crypto::crc32(crc, data, 8)), q);
        assert_eq!(crypto::crc32(crc, data, 2), w);
        for bytes in [1, 2, 4, 8] {
            assert_eq!(native::crc32(crc, data, bytes), crypto::crc32(crc, data, bytes));
        }
    }
}

/// ECX, XMM0 and the CF, PF, AF, ZF, SF, OF that the silicon gives for one immediate.
type Comparison = fn(u128, i64, u128, i64) -> (u32, u128, u8, bool);

fn explicit<const IMM: u8>(a: u128, len_a: i64, b: u128, len_b: i64) -> (u32, u128, u8, bool) {
    let (mut index, mut mask, mut flags, mut over) = (len_b as u64, 0u128, len_a as u64, 0u8);
    // SAFETY: the pointers are to 16 live bytes each; every register written is declared.
    unsafe {
        asm!(
            "movdqu xmm1, [{a}]", "movdqu xmm2, [{b}]",
            "mov rdx, rcx",
            ".byte 0x66, 0x48, 0x0f, 0x3a, 0x60, 0xca, {imm}", "movdqu [{m}], xmm0",
            ".byte 0x66, 0x48, 0x0f, 0x3a, 0x61, 0xca, {imm}",
            "seto {o}", "lahf",
            a = in(reg) &raw const a, b = in(reg) &raw const b, m = in(reg) &raw mut mask, imm = const IMM,
            o = out(reg_byte) over, inout("rcx") index, inout("rax") flags, out("rdx") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, options(nostack)
        );
    }
    let _ = &mut over;
    (index as u32, mask, (flags >> 8) as u8, over != 0)
}

fn implicit<const IMM: u8>(a: u128, _: i64, b: u128, _: i64) -> (u32, u128, u8, bool) {
    let (index, mut mask, flags, over): (u64, u128, u64, u8);
    mask = 0;
    // SAFETY: as above.
    unsafe {
        asm!(
            "movdqu xmm1, [{a}]", "movdqu xmm2, [{b}]",
            "pcmpistrm xmm1, xmm2, {imm}", "movdqu [{m}], xmm0",
            "pcmpistri xmm1, xmm2, {imm}",
            "seto {o}", "lahf",
            a = in(reg) &raw const a, b = in(reg) &raw const b, m = in(reg) &raw mut mask, imm = const IMM,
            o = out(reg_byte) over, out("rcx") index, out("rax") flags,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, options(nostack)
        );
    }
    (index as u32, mask, (flags >> 8) as u8, over != 0)
}

macro_rules! table {
    ($f:ident: $($high:literal)*) => {
        [$(table!(@row $f $high 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)),*]
    };
    (@row $f:ident $high:literal $($low:literal)*) => { [$($f::<{ $high * 16 + $low }>),*] };
}

#[test]
fn string_comparisons_agree_with_silicon() {
    if !std::is_x86_feature_detected!("sse4.2") {
        eprintln!("skipped: the host has no SSE4.2");
        return;
    }
    let explicit: [[Comparison; 16]; 16] = table!(explicit: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    let implicit: [[Comparison; 16]; 16] = table!(implicit: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    let mut random = Random(8);
    for imm in 0..=255u8 {
        let at = (usize::from(imm >> 4), usize::from(imm & 15));
        for round in 0..200 {
            let (mut a, mut b) = (random.operand(), random.operand());
            if round & 1 != 0 {
                // Few distinct elements, so that there are matches and zeros.
                let few = [0x0303_0303_0303_0303_u64, 0x0003_0003_0003_0003][usize::from(imm & 1)];
                let few = u128::from(few) << 64 | u128::from(few);
                (a, b) = (a & few, b & few);
                if round & 2 != 0 {
                    a |= few & few << 1 >> (random.next() & 127);
                }
            }
            let lengths = [random.next() as i64 % 20, random.next() as i64 % 20, i64::MIN, 1 << 32];
            let pick = random.next();
            let len =
                |shift: u32| lengths[if pick >> shift & 15 == 0 { 2 } else { (shift / 8) as usize & 1 }];
            let (la, lb) = (len(0), len(8));
            for (silicon, m) in [
                (
                    explicit[at.0][at.1](a, la, b, lb),
                    text::compare(a, text::explicit_len(la, imm), b, text::explicit_len(lb, imm), imm),
                ),
                (
                    implicit[at.0][at.1](a, 0, b, 0),
                    text::compare(a, text::implicit_len(a, imm), b, text::implicit_len(b, imm), imm),
                ),
            ] {
                let flags = u8::from(m.short_a) << 7 | u8::from(m.short_b) << 6 | 2 | u8::from(m.bits != 0);
                assert_eq!(
                    (m.index(imm), m.mask(imm), flags, m.bits & 1 != 0),
                    silicon,
                    "imm {imm:#x} {a:#034x} ({la}) {b:#034x} ({lb})"
                );
            }
        }
    }
}
