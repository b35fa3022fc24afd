//! Moves: between registers, memory and the general registers, whole and in parts. Handler names
//! end in what they move from and to: `x` XMM, `m` memory, `r` general register, `q` MMX.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::super::cpu::Cpu;
use super::super::decode::gpr;
use super::super::op::{Exec, Handler, Op, flag};
use super::access::*;
use super::lane::Vector;
use super::{native, shuffle};

pub(super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let handler = whole(ins).or_else(|| part(ins)).or_else(|| element(ins)).or_else(|| masked(ins, op))?;
    operands(ins, op);
    Some(handler)
}

fn x_to_x(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    set_xmm(cpu, op.dst, xmm(cpu, op.src));
    Ok(())
}

fn m_to_x(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    let v = cpu.load128(op)?;
    set_xmm(cpu, op.dst, v);
    Ok(())
}

fn m_to_x_aligned(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    let v = load_aligned(cpu, op)?;
    set_xmm(cpu, op.dst, v);
    Ok(())
}

fn x_to_m(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    cpu.store128(op, xmm(cpu, op.src))
}

fn x_to_m_aligned(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    store_aligned(cpu, op, xmm(cpu, op.src))
}

/// Loads the low quadword and clears the rest.
fn m64_to_x(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    let v = cpu.load::<u64>(op)?;
    set_xmm(cpu, op.dst, v.into());
    Ok(())
}

fn m32_to_x(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    let v = cpu.load::<u32>(op)?;
    set_xmm(cpu, op.dst, v.into());
    Ok(())
}

fn x64_to_m(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    cpu.store::<u64>(op, xmm(cpu, op.src) as u64)
}

fn x32_to_m(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    cpu.store::<u32>(op, xmm(cpu, op.src) as u32)
}

fn x_high_to_m(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    cpu.store::<u64>(op, (xmm(cpu, op.src) >> 64) as u64)
}

fn x64_to_x_zeroing(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    set_xmm(cpu, op.dst, u128::from(xmm(cpu, op.src) as u64));
    Ok(())
}

fn x64_to_x_merging(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    set_xmm_low64(cpu, op.dst, xmm(cpu, op.src) as u64);
    Ok(())
}

fn x32_to_x_merging(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    set_xmm_low32(cpu, op.dst, xmm(cpu, op.src) as u32);
    Ok(())
}

fn m_to_x_low(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    let v = cpu.load::<u64>(op)?;
    set_xmm_low64(cpu, op.dst, v);
    Ok(())
}

fn set_high(cpu: &mut Cpu, r: u8, v: u64) {
    let low = xmm(cpu, r) as u64;
    set_xmm(cpu, r, u128::from(v) << 64 | u128::from(low));
}

fn m_to_x_high(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    let v = cpu.load::<u64>(op)?;
    set_high(cpu, op.dst, v);
    Ok(())
}

fn movlhps(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    set_high(cpu, op.dst, xmm(cpu, op.src) as u64);
    Ok(())
}

fn movhlps(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    set_xmm_low64(cpu, op.dst, (xmm(cpu, op.src) >> 64) as u64);
    Ok(())
}

fn r32_to_x(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    set_xmm(cpu, op.dst, cpu.get::<u32>(op.src).into());
    Ok(())
}

fn r64_to_x(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    set_xmm(cpu, op.dst, cpu.get::<u64>(op.src).into());
    Ok(())
}

fn x_to_r32(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    cpu.set::<u32>(op.dst, xmm(cpu, op.src) as u32);
    Ok(())
}

fn x_to_r64(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    cpu.set::<u64>(op.dst, xmm(cpu, op.src) as u64);
    Ok(())
}

fn q_to_q(cpu: &mut Cpu, op: &Op) -> Exec {
    check_mmx(cpu)?;
    set_mm(cpu, op.dst, mm(cpu, op.src));
    Ok(())
}

fn m64_to_q(cpu: &mut Cpu, op: &Op) -> Exec {
    check_mmx(cpu)?;
    let v = cpu.load::<u64>(op)?;
    set_mm(cpu, op.dst, v);
    Ok(())
}

fn m32_to_q(cpu: &mut Cpu, op: &Op) -> Exec {
    check_mmx(cpu)?;
    let v = cpu.load::<u32>(op)?;
    set_mm(cpu, op.dst, v.into());
    Ok(())
}

fn q_to_m64(cpu: &mut Cpu, op: &Op) -> Exec {
    check_mmx(cpu)?;
    cpu.store::<u64>(op, mm(cpu, op.src))?;
    enter_mmx(&mut cpu.fpu);
    Ok(())
}

fn q_to_m32(cpu: &mut Cpu, op: &Op) -> Exec {
    check_mmx(cpu)?;
    cpu.store::<u32>(op, mm(cpu, op.src) as u32)?;
    enter_mmx(&mut cpu.fpu);
    Ok(())
}

fn r32_to_q(cpu: &mut Cpu, op: &Op) -> Exec {
    check_mmx(cpu)?;
    set_mm(cpu, op.dst, cpu.get::<u32>(op.src).into());
    Ok(())
}

fn r64_to_q(cpu: &mut Cpu, op: &Op) -> Exec {
    check_mmx(cpu)?;
    set_mm(cpu, op.dst, cpu.get::<u64>(op.src));
    Ok(())
}

fn q_to_r32(cpu: &mut Cpu, op: &Op) -> Exec {
    check_mmx(cpu)?;
    enter_mmx(&mut cpu.fpu);
    cpu.set::<u32>(op.dst, mm(cpu, op.src) as u32);
    Ok(())
}

fn q_to_r64(cpu: &mut Cpu, op: &Op) -> Exec {
    check_mmx(cpu)?;
    enter_mmx(&mut cpu.fpu);
    cpu.set::<u64>(op.dst, mm(cpu, op.src));
    Ok(())
}

fn movq2dq(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    check_mmx(cpu)?;
    enter_mmx(&mut cpu.fpu);
    set_xmm(cpu, op.dst, mm(cpu, op.src).into());
    Ok(())
}

fn movdq2q(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    check_mmx(cpu)?;
    set_mm(cpu, op.dst, xmm(cpu, op.src) as u64);
    Ok(())
}

fn movnti32(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.store::<u32>(op, cpu.get(op.src))
}

fn movnti64(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.store::<u64>(op, cpu.get(op.src))
}

/// What an operand is, for choosing a form.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Xmm,
    Mmx,
    R32,
    R64,
    Memory,
    Other,
}

fn kind(ins: &Instruction, i: u32) -> Kind {
    match ins.op_kind(i) {
        OpKind::Memory => Kind::Memory,
        OpKind::Register => match ins.op_register(i) {
            r if r.is_xmm() => Kind::Xmm,
            r if r.is_mm() => Kind::Mmx,
            r if r.is_gpr32() => Kind::R32,
            r if r.is_gpr64() => Kind::R64,
            _ => Kind::Other,
        },
        _ => Kind::Other,
    }
}

/// Moves of whole registers, MOVD and MOVQ.
fn whole(ins: &Instruction) -> Option<Handler> {
    let kinds = (kind(ins, 0), kind(ins, 1));
    Some(match ins.mnemonic() {
        Mnemonic::Movups | Mnemonic::Movupd | Mnemonic::Movdqu | Mnemonic::Lddqu => match kinds {
            (Kind::Xmm, Kind::Xmm) => x_to_x,
            (Kind::Xmm, Kind::Memory) => m_to_x,
            (Kind::Memory, Kind::Xmm) => x_to_m,
            _ => return None,
        },
        Mnemonic::Movaps
        | Mnemonic::Movapd
        | Mnemonic::Movdqa
        | Mnemonic::Movntps
        | Mnemonic::Movntpd
        | Mnemonic::Movntdq
        | Mnemonic::Movntdqa => match kinds {
            (Kind::Xmm, Kind::Xmm) => x_to_x,
            (Kind::Xmm, Kind::Memory) => m_to_x_aligned,
            (Kind::Memory, Kind::Xmm) => x_to_m_aligned,
            _ => return None,
        },
        Mnemonic::Movd => match kinds {
            (Kind::Xmm, Kind::R32) => r32_to_x,
            (Kind::Xmm, Kind::Memory) => m32_to_x,
            (Kind::R32, Kind::Xmm) => x_to_r32,
            (Kind::Memory, Kind::Xmm) => x32_to_m,
            (Kind::Mmx, Kind::R32) => r32_to_q,
            (Kind::Mmx, Kind::Memory) => m32_to_q,
            (Kind::R32, Kind::Mmx) => q_to_r32,
            (Kind::Memory, Kind::Mmx) => q_to_m32,
            _ => return None,
        },
        Mnemonic::Movq | Mnemonic::Movntq => match kinds {
            (Kind::Xmm, Kind::R64) => r64_to_x,
            (Kind::Xmm, Kind::Memory) => m64_to_x,
            (Kind::Xmm, Kind::Xmm) => x64_to_x_zeroing,
            (Kind::R64, Kind::Xmm) => x_to_r64,
            (Kind::Memory, Kind::Xmm) => x64_to_m,
            (Kind::Mmx, Kind::R64) => r64_to_q,
            (Kind::Mmx, Kind::Memory) => m64_to_q,
            (Kind::Mmx, Kind::Mmx) => q_to_q,
            (Kind::R64, Kind::Mmx) => q_to_r64,
            (Kind::Memory, Kind::Mmx) => q_to_m64,
            _ => return None,
        },
        Mnemonic::Movq2dq => movq2dq,
        Mnemonic::Movdq2q => movdq2q,
        Mnemonic::Movnti if kinds.1 == Kind::R64 => movnti64,
        Mnemonic::Movnti => movnti32,
        _ => return None,
    })
}

/// Moves of scalars and halves.
fn part(ins: &Instruction) -> Option<Handler> {
    let kinds = (kind(ins, 0), kind(ins, 1));
    Some(match (ins.mnemonic(), kinds.0, kinds.1) {
        (Mnemonic::Movss, Kind::Xmm, Kind::Xmm) => x32_to_x_merging,
        (Mnemonic::Movss, Kind::Xmm, Kind::Memory) => m32_to_x,
        (Mnemonic::Movss, Kind::Memory, Kind::Xmm) => x32_to_m,
        (Mnemonic::Movsd, Kind::Xmm, Kind::Xmm) => x64_to_x_merging,
        (Mnemonic::Movsd, Kind::Xmm, Kind::Memory) => m64_to_x,
        (Mnemonic::Movsd, Kind::Memory, Kind::Xmm) => x64_to_m,
        (Mnemonic::Movlps | Mnemonic::Movlpd, Kind::Xmm, Kind::Memory) => m_to_x_low,
        (Mnemonic::Movlps | Mnemonic::Movlpd, Kind::Memory, Kind::Xmm) => x64_to_m,
        (Mnemonic::Movhps | Mnemonic::Movhpd, Kind::Xmm, Kind::Memory) => m_to_x_high,
        (Mnemonic::Movhps | Mnemonic::Movhpd, Kind::Memory, Kind::Xmm) => x_high_to_m,
        (Mnemonic::Movlhps, ..) => movlhps,
        (Mnemonic::Movhlps, ..) => movhlps,
        _ => return None,
    })
}

/// Reads a general register as the source of an insert, or the memory operand.
macro_rules! insert {
    ($ins:expr, $width:ty, $f:path) => {{
        fn from_register(cpu: &mut Cpu, op: &Op) -> Exec {
            check_sse(cpu)?;
            let v = $f(xmm(cpu, op.dst), cpu.get::<u64>(op.src) as $width, op.imm as u8);
            set_xmm(cpu, op.dst, v);
            Ok(())
        }
        fn from_memory(cpu: &mut Cpu, op: &Op) -> Exec {
            check_sse(cpu)?;
            let v = cpu.load::<$width>(op)?;
            set_xmm(cpu, op.dst, $f(xmm(cpu, op.dst), v, op.imm as u8));
            Ok(())
        }
        if is_register($ins, 1) { from_register as Handler } else { from_memory }
    }};
}

/// An element to a general register (zero-extended) or to memory.
macro_rules! extract {
    ($ins:expr, $width:ty, $get:ident, $mask:literal) => {{
        fn to_register(cpu: &mut Cpu, op: &Op) -> Exec {
            check_sse(cpu)?;
            let v = xmm(cpu, op.src).$get(op.imm as usize & $mask);
            cpu.set::<u64>(op.dst, v.into());
            Ok(())
        }
        fn to_memory(cpu: &mut Cpu, op: &Op) -> Exec {
            check_sse(cpu)?;
            cpu.store::<$width>(op, xmm(cpu, op.src).$get(op.imm as usize & $mask))
        }
        if is_register($ins, 0) { to_register as Handler } else { to_memory }
    }};
}

/// Inserts and extracts of elements and sign masks.
fn element(ins: &Instruction) -> Option<Handler> {
    let mmx_source = is_mmx(ins, 1);
    Some(match ins.mnemonic() {
        Mnemonic::Pinsrw if is_mmx(ins, 0) => {
            if is_register(ins, 1) {
                pinsrw_mmx_register
            } else {
                pinsrw_mmx_memory
            }
        }
        Mnemonic::Pinsrb => insert!(ins, u8, shuffle::pinsrb),
        Mnemonic::Pinsrw => insert!(ins, u16, shuffle::pinsrw),
        Mnemonic::Pinsrd => insert!(ins, u32, shuffle::pinsrd),
        Mnemonic::Pinsrq => insert!(ins, u64, shuffle::pinsrq),
        Mnemonic::Pextrw if mmx_source => pextrw_mmx,
        Mnemonic::Pextrb => extract!(ins, u8, u8, 15),
        Mnemonic::Pextrw => extract!(ins, u16, u16, 7),
        Mnemonic::Pextrd | Mnemonic::Extractps => extract!(ins, u32, u32, 3),
        Mnemonic::Pextrq => extract!(ins, u64, u64, 1),
        Mnemonic::Insertps if is_register(ins, 1) => insertps_register,
        Mnemonic::Insertps => insertps_memory,
        Mnemonic::Pmovmskb if mmx_source => pmovmskb_mmx,
        Mnemonic::Pmovmskb => pmovmskb,
        Mnemonic::Movmskps => movmskps,
        Mnemonic::Movmskpd => movmskpd,
        _ => return None,
    })
}

fn pinsrw_mmx_register(cpu: &mut Cpu, op: &Op) -> Exec {
    check_mmx(cpu)?;
    let v = shuffle::pinsrw(mm(cpu, op.dst), cpu.get::<u64>(op.src) as u16, op.imm as u8);
    set_mm(cpu, op.dst, v);
    Ok(())
}

fn pinsrw_mmx_memory(cpu: &mut Cpu, op: &Op) -> Exec {
    check_mmx(cpu)?;
    let word = cpu.load::<u16>(op)?;
    set_mm(cpu, op.dst, shuffle::pinsrw(mm(cpu, op.dst), word, op.imm as u8));
    Ok(())
}

fn pextrw_mmx(cpu: &mut Cpu, op: &Op) -> Exec {
    check_mmx(cpu)?;
    enter_mmx(&mut cpu.fpu);
    cpu.set::<u64>(op.dst, mm(cpu, op.src).u16(op.imm as usize & 3).into());
    Ok(())
}

fn insertps_register(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    let imm = op.imm as u8;
    let value = xmm(cpu, op.src).u32(usize::from(imm >> 6));
    set_xmm(cpu, op.dst, shuffle::insertps(xmm(cpu, op.dst), value, imm));
    Ok(())
}

fn insertps_memory(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    let value = cpu.load::<u32>(op)?;
    set_xmm(cpu, op.dst, shuffle::insertps(xmm(cpu, op.dst), value, op.imm as u8));
    Ok(())
}

fn pmovmskb_mmx(cpu: &mut Cpu, op: &Op) -> Exec {
    check_mmx(cpu)?;
    enter_mmx(&mut cpu.fpu);
    cpu.set::<u32>(op.dst, shuffle::pmovmskb(mm(cpu, op.src)));
    Ok(())
}

fn pmovmskb(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    cpu.set::<u32>(op.dst, native::pmovmskb(xmm(cpu, op.src)));
    Ok(())
}

fn movmskps(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    cpu.set::<u32>(op.dst, shuffle::movmskps(xmm(cpu, op.src)));
    Ok(())
}

fn movmskpd(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    cpu.set::<u32>(op.dst, shuffle::movmskpd(xmm(cpu, op.src)));
    Ok(())
}

/// MASKMOVQ and MASKMOVDQU: the address is rDI, the registers are operands 1 and 2.
fn masked(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let handler: Handler = match ins.mnemonic() {
        Mnemonic::Maskmovq => maskmovq,
        Mnemonic::Maskmovdqu => maskmovdqu,
        _ => return None,
    };
    op.base = gpr(Register::RDI) / 8;
    op.seg = Cpu::seg_slot(op.flags & flag::CODE32 == 0, ins.memory_segment().number());
    match ins.op0_kind() {
        OpKind::MemorySegEDI => op.flags |= flag::ADDR32,
        OpKind::MemorySegDI => op.flags |= flag::ADDR16,
        _ => {}
    }
    op.extra = ins.op_register(2).number() as u16;
    Some(handler)
}

fn maskmovdqu(cpu: &mut Cpu, op: &Op) -> Exec {
    check_sse(cpu)?;
    store_masked(cpu, op, xmm(cpu, op.src), xmm(cpu, op.extra as u8), 16)
}

fn maskmovq(cpu: &mut Cpu, op: &Op) -> Exec {
    check_mmx(cpu)?;
    store_masked(cpu, op, mm(cpu, op.src).into(), mm(cpu, op.extra as u8).into(), 8)?;
    enter_mmx(&mut cpu.fpu);
    Ok(())
}

fn store_masked(cpu: &mut Cpu, op: &Op, value: u128, mask: u128, bytes: usize) -> Exec {
    let va = cpu.ea(op);
    // From the top, so that a fault in the second page comes before the first is changed.
    for i in (0..bytes).rev() {
        if mask.u8(i) & 0x80 != 0 {
            cpu.write::<u8>(va.wrapping_add(i as u64), value.u8(i))?;
        }
    }
    Ok(())
}
