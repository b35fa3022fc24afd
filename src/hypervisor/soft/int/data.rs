//! Moves: MOV, MOVZX, MOVSX, LEA, XCHG, PUSH, POP, CMOVcc, SETcc, BSWAP, MOVBE and the like.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::super::cpu::Cpu;
use super::super::decode::{gpr, operand_size, sized};
use super::super::op::{Exec, Handler, Op, flag};
use super::Int;

fn mov_rr<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.set::<T>(op.dst, cpu.get(op.src));
    Ok(())
}
fn mov_ri<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.set(op.dst, T::from_u64(op.imm));
    Ok(())
}
fn mov_rm<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.load::<T>(op)?;
    cpu.set(op.dst, v);
    Ok(())
}
fn mov_mr<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.store::<T>(op, cpu.get(op.src))
}
fn mov_mi<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.store(op, T::from_u64(op.imm))
}

fn mov(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = operand_size(ins, 0);
    let plain = |r: Register| r.is_gpr();
    match (ins.op0_kind(), ins.op1_kind()) {
        (OpKind::Register, OpKind::Register) if plain(ins.op0_register()) && plain(ins.op1_register()) => {
            op.dst = gpr(ins.op0_register());
            op.src = gpr(ins.op1_register());
            sized!(size, mov_rr)
        }
        (OpKind::Register, OpKind::Memory) if plain(ins.op0_register()) => {
            op.dst = gpr(ins.op0_register());
            sized!(size, mov_rm)
        }
        (OpKind::Memory, OpKind::Register) if plain(ins.op1_register()) => {
            op.src = gpr(ins.op1_register());
            sized!(size, mov_mr)
        }
        (OpKind::Memory, OpKind::Register) | (OpKind::Register, OpKind::Register | OpKind::Memory) => None,
        (OpKind::Memory, _) => {
            op.imm = ins.immediate(1);
            sized!(size, mov_mi)
        }
        _ => {
            op.dst = gpr(ins.op0_register());
            op.imm = ins.immediate(1);
            sized!(size, mov_ri)
        }
    }
}

fn extend_r<const SIGN: bool, S: Int, D: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.get::<S>(op.src);
    cpu.set(op.dst, D::from_u64(if SIGN { v.sext() } else { v.to_u64() }));
    Ok(())
}
fn extend_m<const SIGN: bool, S: Int, D: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.load::<S>(op)?;
    cpu.set(op.dst, D::from_u64(if SIGN { v.sext() } else { v.to_u64() }));
    Ok(())
}

fn extend<const SIGN: bool>(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let (to, from) = (operand_size(ins, 0), operand_size(ins, 1));
    op.dst = gpr(ins.op0_register());
    let memory = ins.op1_kind() == OpKind::Memory;
    if !memory {
        op.src = gpr(ins.op1_register());
    }
    macro_rules! pick {
        ($s:ty, $d:ty) => {
            if memory { extend_m::<SIGN, $s, $d> as Handler } else { extend_r::<SIGN, $s, $d> as Handler }
        };
    }
    Some(match (from, to) {
        (1, 2) => pick!(u8, u16),
        (1, 4) => pick!(u8, u32),
        (1, 8) => pick!(u8, u64),
        (2, 2) => pick!(u16, u16),
        (2, 4) => pick!(u16, u32),
        (2, 8) => pick!(u16, u64),
        (4, 2) => pick!(u32, u16),
        (4, 4) => pick!(u32, u32),
        (4, 8) => pick!(u32, u64),
        _ => return None,
    })
}

fn lea<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.set(op.dst, T::from_u64(cpu.offset(op)));
    Ok(())
}

fn xchg_rr<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (a, b) = (cpu.get::<T>(op.dst), cpu.get::<T>(op.src));
    cpu.set(op.dst, b);
    cpu.set(op.src, a);
    Ok(())
}
fn xchg_mr<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let new = cpu.get::<T>(op.src);
    let (old, _) = cpu.modify::<T>(op, |_| new)?;
    cpu.set(op.src, old);
    Ok(())
}

fn xchg(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = operand_size(ins, 0);
    match (ins.op0_kind(), ins.op1_kind()) {
        (OpKind::Register, OpKind::Register) => {
            op.dst = gpr(ins.op0_register());
            op.src = gpr(ins.op1_register());
            sized!(size, xchg_rr)
        }
        (OpKind::Memory, _) => {
            op.src = gpr(ins.op1_register());
            op.flags |= flag::LOCK;
            sized!(size, xchg_mr)
        }
        _ => {
            op.src = gpr(ins.op0_register());
            op.flags |= flag::LOCK;
            sized!(size, xchg_mr)
        }
    }
}

fn push_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.push::<T>(cpu.get(op.src))
}
fn push_i<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.push(T::from_u64(op.imm))
}
fn push_m<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.load::<T>(op)?;
    cpu.push(v)
}
fn pop_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.pop::<T>()?;
    cpu.set(op.dst, v);
    Ok(())
}
fn pop_m<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    // An RSP-based address is computed with RSP already moved; a fault must leave RSP alone.
    let rsp = cpu.regs[4];
    let v = cpu.pop::<T>()?;
    let stored = cpu.store(op, v);
    if stored.is_err() {
        cpu.regs[4] = rsp;
    }
    stored
}

macro_rules! stack_sized {
    ($size:expr, $f:ident) => {
        match $size {
            2 => Some($f::<u16> as Handler),
            4 => Some($f::<u32> as Handler),
            8 => Some($f::<u64> as Handler),
            _ => None,
        }
    };
}

/// Bytes that PUSH or POP moves RSP by.
fn stack_size(ins: &Instruction) -> usize {
    ins.stack_pointer_increment().unsigned_abs() as usize
}

fn push(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = stack_size(ins);
    match ins.op0_kind() {
        OpKind::Register if ins.op0_register().is_gpr() => {
            op.src = gpr(ins.op0_register());
            stack_sized!(size, push_r)
        }
        OpKind::Register => None,
        OpKind::Memory => stack_sized!(size, push_m),
        _ => {
            op.imm = ins.immediate(0);
            stack_sized!(size, push_i)
        }
    }
}

fn pop(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = stack_size(ins);
    match ins.op0_kind() {
        OpKind::Register if ins.op0_register().is_gpr() => {
            op.dst = gpr(ins.op0_register());
            stack_sized!(size, pop_r)
        }
        OpKind::Memory => stack_sized!(size, pop_m),
        _ => None,
    }
}

fn pusha<T: Int>(cpu: &mut Cpu, _: &Op) -> Exec {
    let rsp = cpu.regs[4];
    for i in 0..8 {
        let v = if i == 4 { rsp } else { cpu.regs[i] };
        if let Err(stop) = cpu.push(T::from_u64(v)) {
            cpu.regs[4] = rsp;
            return Err(stop);
        }
    }
    Ok(())
}

fn popa<T: Int>(cpu: &mut Cpu, _: &Op) -> Exec {
    let rsp = cpu.regs[4];
    let mut values = [T::default(); 8];
    for v in values.iter_mut().rev() {
        match cpu.pop::<T>() {
            Ok(x) => *v = x,
            Err(stop) => {
                cpu.regs[4] = rsp;
                return Err(stop);
            }
        }
    }
    for (i, v) in values.into_iter().enumerate() {
        if i != 4 {
            cpu.set(i as u8 * 8, v);
        }
    }
    Ok(())
}

fn enter<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (size, level) = (op.imm, op.extra as u64 & 31);
    let (rsp, rbp) = (cpu.regs[4], cpu.regs[5]);
    let mut run = || -> Exec {
        cpu.push(T::from_u64(rbp))?;
        let frame = cpu.regs[4];
        if level > 0 {
            for i in 1..level {
                let at = cpu.stack_addr(rbp.wrapping_sub(i * T::BYTES));
                let v = cpu.read::<T>(at).map_err(|stop| cpu.stack_stop(stop))?;
                cpu.push(v)?;
            }
            cpu.push(T::from_u64(frame))?;
        }
        let new = cpu.regs[4].wrapping_sub(size);
        // The processor probes the new top of the stack for a write.
        let top = cpu.stack_addr(new);
        cpu.check_alignment(top, T::BYTES)?;
        cpu.translate(top, super::super::cpu::Access::Write).map_err(|stop| cpu.stack_stop(stop))?;
        cpu.set_rsp(new);
        cpu.set(5 * 8, T::from_u64(frame));
        Ok(())
    };
    let result = run();
    if result.is_err() {
        cpu.regs[4] = rsp;
        cpu.regs[5] = rbp;
    }
    result
}

fn leave<T: Int>(cpu: &mut Cpu, _: &Op) -> Exec {
    let rbp = cpu.regs[5];
    let v = cpu.read::<T>(cpu.stack_addr(rbp)).map_err(|stop| cpu.stack_stop(stop))?;
    cpu.set_rsp(rbp.wrapping_add(T::BYTES));
    cpu.set(5 * 8, v);
    Ok(())
}

fn cmov_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let src = if cpu.flags.cond(op.extra as u8) { op.src } else { op.dst };
    cpu.set::<T>(op.dst, cpu.get(src));
    Ok(())
}
fn cmov_m<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.load::<T>(op)?;
    let v = if cpu.flags.cond(op.extra as u8) { v } else { cpu.get(op.dst) };
    cpu.set(op.dst, v);
    Ok(())
}

fn set_r(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.set(op.dst, cpu.flags.cond(op.extra as u8) as u8);
    Ok(())
}
fn set_m(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.store(op, cpu.flags.cond(op.extra as u8) as u8)
}

fn bswap16(cpu: &mut Cpu, op: &Op) -> Exec {
    // Undefined by the manual; processors give zero.
    cpu.set(op.dst, 0u16);
    Ok(())
}
fn bswap32(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.set(op.dst, cpu.get::<u32>(op.dst).swap_bytes());
    Ok(())
}
fn bswap64(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.set(op.dst, cpu.get::<u64>(op.dst).swap_bytes());
    Ok(())
}

fn swap<T: Int>(v: T) -> T {
    T::from_u64(v.to_u64().swap_bytes() >> (64 - T::BITS))
}
fn movbe_load<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.load::<T>(op)?;
    cpu.set(op.dst, swap(v));
    Ok(())
}
fn movbe_store<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.store(op, swap(cpu.get::<T>(op.src)))
}

fn xlat(cpu: &mut Cpu, op: &Op) -> Exec {
    // The operand is [rBX + AL]: the base is in `op`, AL is added here.
    let mut at = *op;
    at.disp = cpu.get::<u8>(0) as i64;
    let v = cpu.load::<u8>(&at)?;
    cpu.set(0, v);
    Ok(())
}

fn cbw(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.set(0, cpu.get::<u8>(0) as i8 as u16);
    Ok(())
}
fn cwde(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.set(0, cpu.get::<u16>(0) as i16 as u32);
    Ok(())
}
fn cdqe(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.set(0, cpu.get::<u32>(0).sext());
    Ok(())
}
fn sign_to_dx<T: Int>(cpu: &mut Cpu, _: &Op) -> Exec {
    let sign = cpu.get::<T>(0).sext() >> 63;
    cpu.set(2 * 8, T::from_u64(0u64.wrapping_sub(sign)));
    Ok(())
}

fn nop(_: &mut Cpu, _: &Op) -> Exec {
    Ok(())
}

fn lahf(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.set(1, (cpu.flags.bits() & 0xd5) as u8 | 2);
    Ok(())
}
fn sahf(cpu: &mut Cpu, _: &Op) -> Exec {
    let of = cpu.flags.of();
    cpu.flags = super::super::flags::Flags::from_bits(cpu.get::<u8>(1) as u64 & 0xd5);
    let cf = cpu.flags.cf();
    cpu.flags.set_cf_of(cf, of);
    Ok(())
}
fn clc(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.flags.set_cf(false);
    Ok(())
}
fn stc(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.flags.set_cf(true);
    Ok(())
}
fn cmc(cpu: &mut Cpu, _: &Op) -> Exec {
    let cf = cpu.flags.cf();
    cpu.flags.set_cf(!cf);
    Ok(())
}
fn cld(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.sysflags &= !crate::arch::x86_64::rflags::DF;
    Ok(())
}
fn std(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.sysflags |= crate::arch::x86_64::rflags::DF;
    Ok(())
}

/// Condition code of a Jcc, SETcc or CMOVcc, in its encoding.
pub(in super::super) fn condition(ins: &Instruction) -> Option<u8> {
    use iced_x86::ConditionCode as C;
    Some(match ins.condition_code() {
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
        C::None => return None,
    })
}

fn conditional(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let cc = condition(ins)?;
    if ins.code().is_jcc_short_or_near() {
        return None;
    }
    op.extra = cc as u16;
    let size = operand_size(ins, 0);
    let text = format!("{:?}", ins.mnemonic());
    if text.starts_with("Cmov") {
        op.dst = gpr(ins.op0_register());
        if ins.op1_kind() == OpKind::Register {
            op.src = gpr(ins.op1_register());
            sized!(size, cmov_r)
        } else {
            sized!(size, cmov_m)
        }
    } else if !text.starts_with("Set") {
        None
    } else if ins.op0_kind() == OpKind::Register {
        op.dst = gpr(ins.op0_register());
        Some(set_r)
    } else {
        Some(set_m)
    }
}

/// Handler for the instruction, if it is one of this family.
pub(in super::super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    match ins.mnemonic() {
        Mnemonic::Mov => mov(ins, op),
        Mnemonic::Movzx => extend::<false>(ins, op),
        Mnemonic::Movsx | Mnemonic::Movsxd => extend::<true>(ins, op),
        Mnemonic::Lea => {
            op.dst = gpr(ins.op0_register());
            sized!(operand_size(ins, 0), lea)
        }
        Mnemonic::Xchg => xchg(ins, op),
        Mnemonic::Push => push(ins, op),
        Mnemonic::Pop => pop(ins, op),
        Mnemonic::Pusha => Some(pusha::<u16>),
        Mnemonic::Pushad => Some(pusha::<u32>),
        Mnemonic::Popa => Some(popa::<u16>),
        Mnemonic::Popad => Some(popa::<u32>),
        Mnemonic::Enter => {
            op.imm = ins.immediate16() as u64;
            op.extra = ins.immediate8_2nd() as u16;
            match ins.code() {
                Code::Enterq_imm16_imm8 => Some(enter::<u64>),
                Code::Enterd_imm16_imm8 => Some(enter::<u32>),
                _ => Some(enter::<u16>),
            }
        }
        Mnemonic::Leave => match ins.code() {
            Code::Leaveq => Some(leave::<u64>),
            Code::Leaved => Some(leave::<u32>),
            _ => Some(leave::<u16>),
        },
        Mnemonic::Bswap => {
            op.dst = gpr(ins.op0_register());
            match operand_size(ins, 0) {
                2 => Some(bswap16),
                4 => Some(bswap32),
                _ => Some(bswap64),
            }
        }
        Mnemonic::Movbe => {
            if ins.op0_kind() == OpKind::Register {
                op.dst = gpr(ins.op0_register());
                sized!(operand_size(ins, 0), movbe_load)
            } else {
                op.src = gpr(ins.op1_register());
                sized!(operand_size(ins, 0), movbe_store)
            }
        }
        Mnemonic::Xlatb => {
            // The decoder gives AL as the index; only the base stays.
            op.index = super::super::op::SLOT_ZERO;
            Some(xlat)
        }
        Mnemonic::Cbw => Some(cbw),
        Mnemonic::Cwde => Some(cwde),
        Mnemonic::Cdqe => Some(cdqe),
        Mnemonic::Cwd => Some(sign_to_dx::<u16>),
        Mnemonic::Cdq => Some(sign_to_dx::<u32>),
        Mnemonic::Cqo => Some(sign_to_dx::<u64>),
        Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Endbr32 | Mnemonic::Reservednop => Some(nop),
        Mnemonic::Lahf => Some(lahf),
        Mnemonic::Sahf => Some(sahf),
        Mnemonic::Clc => Some(clc),
        Mnemonic::Stc => Some(stc),
        Mnemonic::Cmc => Some(cmc),
        Mnemonic::Cld => Some(cld),
        Mnemonic::Std => Some(std),
        _ => conditional(ins, op),
    }
}
