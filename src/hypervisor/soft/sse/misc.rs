//! String comparisons, PTEST, CRC32, MXCSR, EMMS, and what orders or hints memory accesses.

use iced_x86::{Code, Instruction, Mnemonic};

use crate::arch::x86_64::rflags;

use super::super::cpu::Cpu;
use super::super::flags::Flags;
use super::super::int::Int;
use super::super::op::{Exec, Handler, Op};
use super::access::*;
use super::native;
use super::text::{self, Matches};

/// Writable bits of MXCSR.
const MXCSR_MASK: u32 = 0xffff;

/// The register or memory form of a string comparison that `$f(cpu, op, a, b)` finishes.
macro_rules! text_form {
    ($ins:expr, $f:expr) => {{
        fn register(cpu: &mut Cpu, op: &Op) -> Exec {
            check_sse(cpu)?;
            let (a, b) = (xmm(cpu, op.dst), xmm(cpu, op.src));
            $f(cpu, op.imm as u8, a, b);
            Ok(())
        }
        fn memory(cpu: &mut Cpu, op: &Op) -> Exec {
            check_sse(cpu)?;
            // The string instructions alone take an unaligned operand.
            let b = cpu.load128(op)?;
            let a = xmm(cpu, op.dst);
            $f(cpu, op.imm as u8, a, b);
            Ok(())
        }
        by_source($ins, (register, memory))
    }};
}
pub(super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let handler = match ins.mnemonic() {
        Mnemonic::Pcmpestri => text_form!(ins, explicit::<false>),
        Mnemonic::Pcmpestri64 => text_form!(ins, explicit::<true>),
        Mnemonic::Pcmpestrm => text_form!(ins, explicit_mask::<false>),
        Mnemonic::Pcmpestrm64 => text_form!(ins, explicit_mask::<true>),
        Mnemonic::Pcmpistri => text_form!(ins, implicit),
        Mnemonic::Pcmpistrm => text_form!(ins, implicit_mask),
        Mnemonic::Ptest => by_source(ins, (ptest_register, ptest_memory)),
        Mnemonic::Crc32 => crc32(ins)?,
        Mnemonic::Ldmxcsr => ldmxcsr,
        Mnemonic::Stmxcsr => stmxcsr,
        Mnemonic::Emms => emms,
        // Loads and stores of one vCPU are in order here, and the host's own order is x86's or
        // made so where accesses are atomic; a full fence is for what other threads do.
        Mnemonic::Mfence => mfence,
        Mnemonic::Lfence
        | Mnemonic::Sfence
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2 => nothing,
        _ => return None,
    };
    operands(ins, op);
    Some(handler)
}

fn nothing(_: &mut Cpu, _: &Op) -> Exec {
    Ok(())
}

fn mfence(_: &mut Cpu, _: &Op) -> Exec {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

fn compare_explicit<const WIDE: bool>(cpu: &Cpu, imm: u8, a: u128, b: u128) -> Matches {
    let length = |register: u64| {
        let v = if WIDE { register as i64 } else { i64::from(register as i32) };
        text::explicit_len(v, imm)
    };
    text::compare(a, length(cpu.regs[0]), b, length(cpu.regs[2]), imm)
}

fn compare_implicit(imm: u8, a: u128, b: u128) -> Matches {
    text::compare(a, text::implicit_len(a, imm), b, text::implicit_len(b, imm), imm)
}

fn explicit<const WIDE: bool>(cpu: &mut Cpu, imm: u8, a: u128, b: u128) {
    let m = compare_explicit::<WIDE>(cpu, imm, a, b);
    give_index(cpu, m, imm);
}

fn explicit_mask<const WIDE: bool>(cpu: &mut Cpu, imm: u8, a: u128, b: u128) {
    let m = compare_explicit::<WIDE>(cpu, imm, a, b);
    give_mask(cpu, m, imm);
}

fn implicit(cpu: &mut Cpu, imm: u8, a: u128, b: u128) {
    give_index(cpu, compare_implicit(imm, a, b), imm);
}

fn implicit_mask(cpu: &mut Cpu, imm: u8, a: u128, b: u128) {
    give_mask(cpu, compare_implicit(imm, a, b), imm);
}

fn give_index(cpu: &mut Cpu, m: Matches, imm: u8) {
    cpu.regs[1] = m.index(imm).into();
    give_flags(cpu, m);
}

fn give_mask(cpu: &mut Cpu, m: Matches, imm: u8) {
    set_xmm(cpu, 0, m.mask(imm));
    give_flags(cpu, m);
}

fn give_flags(cpu: &mut Cpu, m: Matches) {
    let on = |condition: bool, bit: u64| if condition { bit } else { 0 };
    cpu.flags = Flags::from_bits(
        on(m.bits != 0, rflags::CF)
            | on(m.short_b, rflags::ZF)
            | on(m.short_a, rflags::SF)
            | on(m.bits & 1 != 0, rflags::OF),
    );
}

fn ptest(cpu: &mut Cpu, a: u128, b: u128) {
    let zf = if a & b == 0 { rflags::ZF } else { 0 };
    let cf = if !a & b == 0 { rflags::CF } else { 0 };
    cpu.flags = Flags::from_bits(zf | cf);
}

fn ptest_register(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    ptest(cpu, xmm(cpu, op.dst), xmm(cpu, op.src));
    Ok(())
}

fn ptest_memory(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    let b = load_aligned(cpu, op)?;
    ptest(cpu, xmm(cpu, op.dst), b);
    Ok(())
}

fn crc32(ins: &Instruction) -> Option<Handler> {
    fn register<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
        let data = cpu.get::<T>(op.src).to_u64();
        let crc = native::crc32(cpu.get(op.dst), data, T::BYTES as usize);
        cpu.set::<u64>(op.dst, crc.into());
        Ok(())
    }
    fn memory<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
        let data = cpu.load::<T>(op)?.to_u64();
        let crc = native::crc32(cpu.get(op.dst), data, T::BYTES as usize);
        cpu.set::<u64>(op.dst, crc.into());
        Ok(())
    }
    let forms: Forms = match ins.code() {
        Code::Crc32_r32_rm8 | Code::Crc32_r64_rm8 => (register::<u8>, memory::<u8>),
        Code::Crc32_r32_rm16 => (register::<u16>, memory::<u16>),
        Code::Crc32_r32_rm32 => (register::<u32>, memory::<u32>),
        Code::Crc32_r64_rm64 => (register::<u64>, memory::<u64>),
        _ => return None,
    };
    Some(by_source(ins, forms))
}

fn ldmxcsr(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    let value = cpu.load::<u32>(op)?;
    if value & !MXCSR_MASK != 0 {
        return Err(cpu.gp());
    }
    cpu.fpu.mxcsr = value;
    Ok(())
}

fn stmxcsr(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    cpu.store::<u32>(op, cpu.fpu.mxcsr)
}

fn emms(cpu: &mut Cpu, _: &Op) -> Exec {
    check_mmx(cpu)?;
    cpu.fpu.tag = 0;
    cpu.fpu.status &= !(7 << 11);
    Ok(())
}
