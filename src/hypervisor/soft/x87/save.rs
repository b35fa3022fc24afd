//! Whole-state stores and loads: FNSTENV, FLDENV, FNSAVE, FRSTOR, FXSAVE and FXRSTOR.

use iced_x86::{Code, Instruction};

use crate::arch::x86_64::FpuState;

use super::super::cpu::Cpu;
use super::super::fp::F80;
use super::super::op::{Exec, Handler, Op, flag};
use super::control::{available, control_word, initialize};
use super::stack::{check, physical, summarize};

/// Bytes of an environment with 16-bit and 32-bit fields.
const ENV16: usize = 14;
const ENV32: usize = 28;
/// Bytes of the registers behind it.
const REGISTERS: usize = 80;
/// Writable bits of MXCSR.
const MXCSR_MASK: u32 = 0xffff;

/// The full tag word: two bits a physical register.
fn full_tags(fpu: &FpuState) -> u16 {
    fpu.st.iter().enumerate().rev().fold(0, |word, (i, &(sig, se))| {
        let v = F80 { sig, se };
        let tag = if fpu.tag >> i & 1 == 0 {
            3
        } else if v.is_zero() {
            1
        } else if v.exponent() == 0 || v.exponent() == 0x7fff || v.is_unsupported() {
            2
        } else {
            0
        };
        word << 2 | tag
    })
}

/// The abridged form of a full tag word.
fn abridged(tags: u16) -> u8 {
    (0..8).fold(0, |tag, i| tag | u8::from(tags >> (2 * i) & 3 != 3) << i)
}

fn put(out: &mut [u8], at: usize, v: u64, len: usize) {
    for (i, byte) in out.iter_mut().skip(at).take(len).enumerate() {
        *byte = (v >> (8 * i)) as u8;
    }
}

fn take(from: &[u8], at: usize, len: usize) -> u64 {
    from.iter().skip(at).take(len).rev().fold(0, |v, &byte| v << 8 | u64::from(byte))
}

/// The environment, in protected-mode format with fields of `width` bytes.
fn environment(fpu: &FpuState, out: &mut [u8], width: usize) {
    let words = [u64::from(fpu.control), u64::from(fpu.status), u64::from(full_tags(fpu))];
    if width == 2 {
        let all = [words[0], words[1], words[2], fpu.ip, 0, fpu.dp, 0];
        all.iter().enumerate().for_each(|(i, &v)| put(out, 2 * i, v, 2));
        return;
    }
    let high = 0xffff << 16;
    let all = [
        words[0] | high,
        words[1] | high,
        words[2] | high,
        fpu.ip,
        u64::from(fpu.opcode) << 16,
        fpu.dp,
        high,
    ];
    all.iter().enumerate().for_each(|(i, &v)| put(out, 4 * i, v, 4));
}

fn set_environment(fpu: &mut FpuState, from: &[u8], width: usize) {
    let field = |i: usize| take(from, width * i, width);
    fpu.control = control_word(field(0) as u16);
    fpu.status = field(1) as u16;
    fpu.tag = abridged(field(2) as u16);
    fpu.ip = field(3);
    fpu.dp = field(5);
    fpu.opcode = if width == 4 { (field(4) >> 16) as u16 & 0x7ff } else { 0 };
    summarize(fpu);
}

fn registers(fpu: &FpuState, out: &mut [u8], stride: usize) {
    for i in 0..8u8 {
        let (sig, se) = fpu.st[physical(fpu, i)];
        put(out, stride * usize::from(i), sig, 8);
        put(out, stride * usize::from(i) + 8, u64::from(se), 2);
    }
}

fn set_registers(fpu: &mut FpuState, from: &[u8], stride: usize) {
    for i in 0..8u8 {
        let at = stride * usize::from(i);
        fpu.st[physical(fpu, i)] = (take(from, at, 8), take(from, at + 8, 2) as u16);
    }
}

fn fnstenv<const WIDTH: usize>(cpu: &mut Cpu, op: &Op) -> Exec {
    available(cpu)?;
    let mut image = [0; ENV32];
    environment(&cpu.fpu, &mut image, WIDTH);
    let at = cpu.ea(op);
    cpu.check_alignment(at, WIDTH as u64)?;
    cpu.write_bytes(at, &image[..7 * WIDTH])?;
    // What was unmasked is masked now, so that a handler can go on.
    cpu.fpu.control |= 0x3f;
    summarize(&mut cpu.fpu);
    Ok(())
}

fn fldenv<const WIDTH: usize>(cpu: &mut Cpu, op: &Op) -> Exec {
    check(cpu)?;
    let mut image = [0; ENV32];
    let at = cpu.ea(op);
    cpu.check_alignment(at, WIDTH as u64)?;
    cpu.read_bytes(at, &mut image[..7 * WIDTH])?;
    set_environment(&mut cpu.fpu, &image, WIDTH);
    Ok(())
}

fn fnsave<const WIDTH: usize>(cpu: &mut Cpu, op: &Op) -> Exec {
    available(cpu)?;
    let mut image = [0; ENV32 + REGISTERS];
    environment(&cpu.fpu, &mut image, WIDTH);
    registers(&cpu.fpu, &mut image[7 * WIDTH..], 10);
    let at = cpu.ea(op);
    cpu.check_alignment(at, WIDTH as u64)?;
    cpu.write_bytes(at, &image[..7 * WIDTH + REGISTERS])?;
    initialize(&mut cpu.fpu);
    Ok(())
}

fn frstor<const WIDTH: usize>(cpu: &mut Cpu, op: &Op) -> Exec {
    check(cpu)?;
    let mut image = [0; ENV32 + REGISTERS];
    let at = cpu.ea(op);
    cpu.check_alignment(at, WIDTH as u64)?;
    cpu.read_bytes(at, &mut image[..7 * WIDTH + REGISTERS])?;
    set_environment(&mut cpu.fpu, &image, WIDTH);
    set_registers(&mut cpu.fpu, &image[7 * WIDTH..], 10);
    Ok(())
}

/// Bytes of an FXSAVE area that the processor writes; the rest is the program's.
const FXSAVE: usize = 416;

/// The number of XMM registers that the code can name.
fn vectors(op: &Op) -> usize {
    if op.flags & flag::CODE32 != 0 { 8 } else { 16 }
}

fn fxsave<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    available(cpu)?;
    cpu.check_aligned16(op)?;
    let mut image = [0; FXSAVE];
    let fpu = &cpu.fpu;
    put(&mut image, 0, fpu.control.into(), 2);
    put(&mut image, 2, fpu.status.into(), 2);
    put(&mut image, 4, fpu.tag.into(), 1);
    put(&mut image, 6, fpu.opcode.into(), 2);
    // Without REX.W: 32-bit offsets, and selectors that are always zero.
    let pointer = if WIDE { 8 } else { 4 };
    put(&mut image, 8, fpu.ip, pointer);
    put(&mut image, 16, fpu.dp, pointer);
    put(&mut image, 24, fpu.mxcsr.into(), 4);
    put(&mut image, 28, MXCSR_MASK.into(), 4);
    registers(fpu, &mut image[32..], 16);
    let n = vectors(op);
    for (out, v) in image[160..].chunks_exact_mut(16).zip(&fpu.xmm[..n]) {
        out.copy_from_slice(&v.to_le_bytes());
    }
    let at = cpu.ea(op);
    cpu.write_bytes(at, &image[..160 + 16 * n])
}

fn fxrstor<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    available(cpu)?;
    cpu.check_aligned16(op)?;
    let mut image = [0; FXSAVE];
    let n = vectors(op);
    let at = cpu.ea(op);
    cpu.read_bytes(at, &mut image[..160 + 16 * n])?;
    let mxcsr = take(&image, 24, 4) as u32;
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(cpu.gp());
    }
    let fpu = &mut cpu.fpu;
    fpu.control = control_word(take(&image, 0, 2) as u16);
    fpu.status = take(&image, 2, 2) as u16;
    fpu.tag = image[4];
    fpu.opcode = take(&image, 6, 2) as u16 & 0x7ff;
    let pointer = if WIDE { 8 } else { 4 };
    fpu.ip = take(&image, 8, pointer);
    fpu.dp = take(&image, 16, pointer);
    fpu.mxcsr = mxcsr;
    summarize(fpu);
    set_registers(fpu, &image[32..], 16);
    for (v, from) in fpu.xmm[..n].iter_mut().zip(image[160..].chunks_exact(16)) {
        *v = from.iter().rev().fold(0, |v, &byte| v << 8 | u128::from(byte));
    }
    Ok(())
}

pub(super) fn lower(ins: &Instruction, _: &mut Op) -> Option<Handler> {
    const _: () = assert!(ENV16 == 7 * 2 && ENV32 == 7 * 4);
    Some(match ins.code() {
        Code::Fnstenv_m14byte => fnstenv::<2>,
        Code::Fnstenv_m28byte => fnstenv::<4>,
        Code::Fldenv_m14byte => fldenv::<2>,
        Code::Fldenv_m28byte => fldenv::<4>,
        Code::Fnsave_m94byte => fnsave::<2>,
        Code::Fnsave_m108byte => fnsave::<4>,
        Code::Frstor_m94byte => frstor::<2>,
        Code::Frstor_m108byte => frstor::<4>,
        Code::Fxsave_m512byte => fxsave::<false>,
        Code::Fxsave64_m512byte => fxsave::<true>,
        Code::Fxrstor_m512byte => fxrstor::<false>,
        Code::Fxrstor64_m512byte => fxrstor::<true>,
        _ => return None,
    })
}
