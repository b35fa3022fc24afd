//! Packed integer instructions: handlers for register and memory sources of either register file.

use iced_x86::{Instruction, Mnemonic};

use super::super::cpu::Cpu;
use super::super::op::{Exec, Handler, Op};
use super::access::*;
use super::{crypto, int, native, shuffle};

pub(super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let handler = binary(ins).or_else(|| sse_only(ins)).or_else(|| with_imm(ins)).or_else(|| shift(ins))?;
    operands(ins, op);
    Some(handler)
}

/// What MMX and SSE share.
fn binary(ins: &Instruction) -> Option<Handler> {
    let mmx = is_mmx(ins, 0);
    macro_rules! table {
        ($($mnemonic:ident $wide:ident $narrow:ident $width:ident $name:ident;)*) => {
            match ins.mnemonic() {
                $(Mnemonic::$mnemonic if mmx => mmx_forms!($width, $narrow::$name),
                Mnemonic::$mnemonic => sse_forms!($wide::$name),)*
                _ => return None,
            }
        };
    }
    let forms = table! {
        Paddb native int u64 paddb;
        Paddw native int u64 paddw;
        Paddd native int u64 paddd;
        Paddq native int u64 paddq;
        Psubb native int u64 psubb;
        Psubw native int u64 psubw;
        Psubd native int u64 psubd;
        Psubq native int u64 psubq;
        Paddsb native int u64 paddsb;
        Paddsw native int u64 paddsw;
        Paddusb native int u64 paddusb;
        Paddusw native int u64 paddusw;
        Psubsb native int u64 psubsb;
        Psubsw native int u64 psubsw;
        Psubusb native int u64 psubusb;
        Psubusw native int u64 psubusw;
        Pavgb native int u64 pavgb;
        Pavgw native int u64 pavgw;
        Pminub native int u64 pminub;
        Pmaxub native int u64 pmaxub;
        Pminsw native int u64 pminsw;
        Pmaxsw native int u64 pmaxsw;
        Pcmpeqb native int u64 pcmpeqb;
        Pcmpeqw native int u64 pcmpeqw;
        Pcmpeqd native int u64 pcmpeqd;
        Pcmpgtb native int u64 pcmpgtb;
        Pcmpgtw native int u64 pcmpgtw;
        Pcmpgtd native int u64 pcmpgtd;
        Pmullw native int u64 pmullw;
        Pmulhw native int u64 pmulhw;
        Pmulhuw native int u64 pmulhuw;
        Pmuludq native int u64 pmuludq;
        Pmaddwd native int u64 pmaddwd;
        Psadbw native int u64 psadbw;
        Pand int int u64 pand;
        Pandn int int u64 pandn;
        Por int int u64 por;
        Pxor int int u64 pxor;
        Punpcklbw native shuffle u32 punpcklbw;
        Punpcklwd native shuffle u32 punpcklwd;
        Punpckldq native shuffle u32 punpckldq;
        Punpckhbw native shuffle u64 punpckhbw;
        Punpckhwd native shuffle u64 punpckhwd;
        Punpckhdq native shuffle u64 punpckhdq;
        Packsswb native shuffle u64 packsswb;
        Packuswb native shuffle u64 packuswb;
        Packssdw native shuffle u64 packssdw;
        Psignb int int u64 psignb;
        Psignw int int u64 psignw;
        Psignd int int u64 psignd;
        Pabsb int int u64 pabsb;
        Pabsw int int u64 pabsw;
        Pabsd int int u64 pabsd;
        Phaddw int int u64 phaddw;
        Phaddd int int u64 phaddd;
        Phaddsw int int u64 phaddsw;
        Phsubw int int u64 phsubw;
        Phsubd int int u64 phsubd;
        Phsubsw int int u64 phsubsw;
        Pmaddubsw int int u64 pmaddubsw;
        Pmulhrsw int int u64 pmulhrsw;
        Pshufb native shuffle u64 pshufb;
    };
    Some(by_source(ins, forms))
}

/// The blends whose mask is XMM0.
macro_rules! by_mask {
    ($f:expr) => {{
        fn rr(cpu: &mut Cpu, op: &Op) -> Exec {
            check_sse(cpu)?;
            let (a, b) = (xmm(cpu, op.dst), xmm(cpu, op.src));
            set_xmm(cpu, op.dst, $f(a, b, xmm(cpu, 0)));
            Ok(())
        }
        fn rm(cpu: &mut Cpu, op: &Op) -> Exec {
            check_sse(cpu)?;
            let b = load_aligned(cpu, op)?;
            let a = xmm(cpu, op.dst);
            set_xmm(cpu, op.dst, $f(a, b, xmm(cpu, 0)));
            Ok(())
        }
        (rr as Handler, rm as Handler)
    }};
}
fn sse_only(ins: &Instruction) -> Option<Handler> {
    let forms = match ins.mnemonic() {
        // The bitwise float forms differ from the integer ones in name only.
        Mnemonic::Andps | Mnemonic::Andpd => sse_forms!(int::pand),
        Mnemonic::Andnps | Mnemonic::Andnpd => sse_forms!(int::pandn),
        Mnemonic::Orps | Mnemonic::Orpd => sse_forms!(int::por),
        Mnemonic::Xorps | Mnemonic::Xorpd => sse_forms!(int::pxor),
        Mnemonic::Unpcklps => sse_forms!(native::punpckldq),
        Mnemonic::Unpckhps => sse_forms!(native::punpckhdq),
        Mnemonic::Punpcklqdq | Mnemonic::Unpcklpd => sse_forms!(shuffle::punpcklqdq),
        Mnemonic::Punpckhqdq | Mnemonic::Unpckhpd => sse_forms!(shuffle::punpckhqdq),
        Mnemonic::Pminuw => sse_forms!(int::pminuw),
        Mnemonic::Pminud => sse_forms!(int::pminud),
        Mnemonic::Pminsb => sse_forms!(int::pminsb),
        Mnemonic::Pminsd => sse_forms!(int::pminsd),
        Mnemonic::Pmaxuw => sse_forms!(int::pmaxuw),
        Mnemonic::Pmaxud => sse_forms!(int::pmaxud),
        Mnemonic::Pmaxsb => sse_forms!(int::pmaxsb),
        Mnemonic::Pmaxsd => sse_forms!(int::pmaxsd),
        Mnemonic::Pcmpeqq => sse_forms!(int::pcmpeqq),
        Mnemonic::Pcmpgtq => sse_forms!(int::pcmpgtq),
        Mnemonic::Pmulld => sse_forms!(int::pmulld),
        Mnemonic::Pmuldq => sse_forms!(int::pmuldq),
        Mnemonic::Packusdw => sse_forms!(shuffle::packusdw),
        Mnemonic::Phminposuw => sse_forms!(int::phminposuw),
        Mnemonic::Movsldup => sse_forms!(|_, b| shuffle::movsldup(b)),
        Mnemonic::Movshdup => sse_forms!(|_, b| shuffle::movshdup(b)),
        Mnemonic::Movddup => sse_forms_narrow!(u64, |_, b| shuffle::movddup(b)),
        Mnemonic::Pmovsxbw => sse_forms_narrow!(u64, |_, b| shuffle::pmovsxbw(b)),
        Mnemonic::Pmovsxbd => sse_forms_narrow!(u32, |_, b| shuffle::pmovsxbd(b)),
        Mnemonic::Pmovsxbq => sse_forms_narrow!(u16, |_, b| shuffle::pmovsxbq(b)),
        Mnemonic::Pmovsxwd => sse_forms_narrow!(u64, |_, b| shuffle::pmovsxwd(b)),
        Mnemonic::Pmovsxwq => sse_forms_narrow!(u32, |_, b| shuffle::pmovsxwq(b)),
        Mnemonic::Pmovsxdq => sse_forms_narrow!(u64, |_, b| shuffle::pmovsxdq(b)),
        Mnemonic::Pmovzxbw => sse_forms_narrow!(u64, |_, b| shuffle::pmovzxbw(b)),
        Mnemonic::Pmovzxbd => sse_forms_narrow!(u32, |_, b| shuffle::pmovzxbd(b)),
        Mnemonic::Pmovzxbq => sse_forms_narrow!(u16, |_, b| shuffle::pmovzxbq(b)),
        Mnemonic::Pmovzxwd => sse_forms_narrow!(u64, |_, b| shuffle::pmovzxwd(b)),
        Mnemonic::Pmovzxwq => sse_forms_narrow!(u32, |_, b| shuffle::pmovzxwq(b)),
        Mnemonic::Pmovzxdq => sse_forms_narrow!(u64, |_, b| shuffle::pmovzxdq(b)),
        Mnemonic::Pblendvb => by_mask!(shuffle::pblendvb),
        Mnemonic::Blendvps => by_mask!(shuffle::blendvps),
        Mnemonic::Blendvpd => by_mask!(shuffle::blendvpd),
        Mnemonic::Aesenc => sse_forms!(native::aesenc),
        Mnemonic::Aesenclast => sse_forms!(native::aesenclast),
        Mnemonic::Aesdec => sse_forms!(native::aesdec),
        Mnemonic::Aesdeclast => sse_forms!(native::aesdeclast),
        Mnemonic::Aesimc => sse_forms!(crypto::aesimc),
        _ => return None,
    };
    Some(by_source(ins, forms))
}

fn with_imm(ins: &Instruction) -> Option<Handler> {
    let forms = match ins.mnemonic() {
        Mnemonic::Pshufd => sse_forms_imm!(|_, b, i| shuffle::pshufd(b, i)),
        Mnemonic::Pshuflw => sse_forms_imm!(|_, b, i| shuffle::pshuflw(b, i)),
        Mnemonic::Pshufhw => sse_forms_imm!(|_, b, i| shuffle::pshufhw(b, i)),
        Mnemonic::Pshufw => mmx_forms_imm!(|_, b, i| shuffle::pshufw(b, i)),
        Mnemonic::Shufps => sse_forms_imm!(shuffle::shufps),
        Mnemonic::Shufpd => sse_forms_imm!(shuffle::shufpd),
        Mnemonic::Palignr if is_mmx(ins, 0) => mmx_forms_imm!(shuffle::palignr),
        Mnemonic::Palignr => sse_forms_imm!(align_right),
        Mnemonic::Pblendw => sse_forms_imm!(shuffle::pblendw),
        Mnemonic::Blendps => sse_forms_imm!(shuffle::blendps),
        Mnemonic::Blendpd => sse_forms_imm!(shuffle::blendpd),
        Mnemonic::Mpsadbw => sse_forms_imm!(int::mpsadbw),
        Mnemonic::Aeskeygenassist => sse_forms_imm!(|_, b, i| crypto::aeskeygenassist(b, i)),
        Mnemonic::Pclmulqdq => sse_forms_imm!(native::pclmulqdq),
        _ => return None,
    };
    Some(by_source(ins, forms))
}

/// PALIGNR on whole registers: string functions lean on it.
#[inline(always)]
fn align_right(a: u128, b: u128, imm: u8) -> u128 {
    match u32::from(imm) {
        0 => b,
        n @ 1..16 => b >> (8 * n) | a << (128 - 8 * n),
        n @ 16..32 => a >> (8 * (n - 16)),
        _ => 0,
    }
}

/// The forms of a shift: by immediate, by register, by memory; the count is 64 bits.
fn shift(ins: &Instruction) -> Option<Handler> {
    macro_rules! shifts {
        ($($mnemonic:ident $name:ident)*) => {
            match ins.mnemonic() {
                $(Mnemonic::$mnemonic if is_mmx(ins, 0) => {
                    fn by_imm(cpu: &mut Cpu, op: &Op) -> Exec {
                        check_mmx(cpu)?;
                        let v = int::$name(mm(cpu, op.dst), op.imm);
                        set_mm(cpu, op.dst, v);
                        Ok(())
                    }
                    (by_imm as Handler, mmx_forms!(u64, |a: u64, count| int::$name(a, count)))
                }
                Mnemonic::$mnemonic => {
                    fn by_imm(cpu: &mut Cpu, op: &Op) -> Exec {
                        check_sse(cpu)?;
                        let v = native::$name(xmm(cpu, op.dst), op.imm);
                        set_xmm(cpu, op.dst, v);
                        Ok(())
                    }
                    (by_imm as Handler, sse_forms!(|a, count| native::$name(a, count as u64)))
                })*
                _ => return None,
            }
        };
    }
    fn pslldq(cpu: &mut Cpu, op: &Op) -> Exec {
        check_sse(cpu)?;
        set_xmm(cpu, op.dst, int::pslldq(xmm(cpu, op.dst), op.imm as u8));
        Ok(())
    }
    fn psrldq(cpu: &mut Cpu, op: &Op) -> Exec {
        check_sse(cpu)?;
        set_xmm(cpu, op.dst, int::psrldq(xmm(cpu, op.dst), op.imm as u8));
        Ok(())
    }
    match ins.mnemonic() {
        Mnemonic::Pslldq => return Some(pslldq),
        Mnemonic::Psrldq => return Some(psrldq),
        _ => {}
    }
    let (by_imm, by_operand) = shifts! {
        Psllw psllw Pslld pslld Psllq psllq Psrlw psrlw Psrld psrld Psrlq psrlq Psraw psraw Psrad psrad
    };
    let immediate = ins.op_kind(1) == iced_x86::OpKind::Immediate8;
    Some(if immediate { by_imm } else { by_source(ins, by_operand) })
}
