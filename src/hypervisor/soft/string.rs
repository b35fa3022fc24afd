//! MOVS, STOS, LODS, CMPS, SCAS, INS, OUTS and their REP forms.
//!
//! A repeated instruction works through whole pages at a time where both sides are cached RAM. It
//! stops after [`SLICE`] bytes to let events in, with its registers where the architecture wants
//! them, and is then executed again.

#![allow(unsafe_code)]

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::arch::x86_64::{rflags, seg};

use super::cpu::Cpu;
use super::int::Int;
use super::op::{Exec, Handler, Op, Stop};

/// Bytes between two looks at events.
const SLICE: u64 = 64 << 10;

/// Bits of `Op::extra`: the address size in bytes, and the prefix.
const REP: u16 = 0x100;
const REPNE: u16 = 0x200;

const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

/// Widths of the address registers.
#[inline(always)]
fn mask(op: &Op) -> u64 {
    match op.extra & 0xff {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

#[inline(always)]
fn repeats(op: &Op) -> bool {
    op.extra & (REP | REPNE) != 0
}

#[inline(always)]
fn step<T: Int>(cpu: &Cpu) -> u64 {
    if cpu.sysflags & rflags::DF != 0 { T::BYTES.wrapping_neg() } else { T::BYTES }
}

/// Adds to an address or count register, as wide as the address size.
#[inline(always)]
fn advance(cpu: &mut Cpu, op: &Op, reg: usize, by: u64) {
    let v = cpu.regs[reg].wrapping_add(by);
    match op.extra & 0xff {
        2 => cpu.set(reg as u8 * 8, v as u16),
        4 => cpu.set(reg as u8 * 8, v as u32),
        _ => cpu.regs[reg] = v,
    }
}

#[inline(always)]
fn linear(cpu: &Cpu, op: &Op, reg: usize, seg: u8) -> u64 {
    let va = (cpu.regs[reg] & mask(op)).wrapping_add(cpu.base_of(seg));
    if cpu.long { va } else { va as u32 as u64 }
}

fn source(cpu: &Cpu, op: &Op) -> u64 {
    linear(cpu, op, RSI, op.seg)
}
fn dest(cpu: &Cpu, op: &Op) -> u64 {
    linear(cpu, op, RDI, Cpu::seg_slot(cpu.long, seg::ES))
}

/// Runs `one` until the count is used up, the slice is over, or `one` says stop.
#[inline(always)]
fn repeat(cpu: &mut Cpu, op: &Op, bytes: u64, mut one: impl FnMut(&mut Cpu) -> Result<bool, Stop>) -> Exec {
    if !repeats(op) {
        return one(cpu).map(|_| ());
    }
    if op.extra & 0xff == 4 {
        // A 32-bit count clears the upper half even if nothing is left to do.
        let count = cpu.get::<u32>(RCX as u8 * 8);
        cpu.set(RCX as u8 * 8, count);
    }
    let mut left = SLICE;
    while cpu.regs[RCX] & mask(op) != 0 {
        if left == 0 {
            return Err(Stop::Again);
        }
        let go_on = one(cpu)?;
        advance(cpu, op, RCX, u64::MAX);
        if !go_on {
            break;
        }
        if cpu.step && cpu.regs[RCX] & mask(op) != 0 {
            // A single-step trap comes after every element.
            return Err(Stop::Again);
        }
        left = left.saturating_sub(bytes);
    }
    Ok(())
}

/// How many elements of `T` can be done at once going up from `va`, without leaving the page.
#[inline(always)]
fn in_page<T: Int>(va: u64) -> u64 {
    (4096 - (va & 4095)) / T::BYTES
}

/// Whether whole pages may be done at once: counting up, with addresses that do not wrap.
fn upward(cpu: &Cpu, op: &Op) -> bool {
    repeats(op) && cpu.sysflags & rflags::DF == 0 && !cpu.step && cpu.long && op.extra & 0xff == 8
}

/// REP MOVS and REP STOS with 32-bit addresses clear the upper halves before anything can fault,
/// and if there is nothing to do.
fn truncate(cpu: &mut Cpu, op: &Op, reg: usize) {
    if repeats(op) && op.extra & 0xff == 4 {
        advance(cpu, op, reg, 0);
    }
}

fn movs<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    if upward(cpu, op) {
        let mut left = SLICE;
        while cpu.regs[RCX] != 0 && left != 0 {
            let (src, dst) = (source(cpu, op), dest(cpu, op));
            let n = cpu.regs[RCX].min(in_page::<T>(src)).min(in_page::<T>(dst));
            let bytes = n * T::BYTES;
            let (Some(from), Some(to)) =
                (cpu.tlb.read_ptr(src, bytes.max(1)), cpu.tlb.write_ptr(dst, bytes.max(1)))
            else {
                break;
            };
            // Copying up onto a later part of itself repeats a pattern: leave that to single steps.
            if n == 0 || (dst.wrapping_sub(src) < bytes && dst != src) || overlaps(from, to, bytes) {
                break;
            }
            // SAFETY: both are `bytes` bytes of mapped RAM in one page each.
            unsafe { std::ptr::copy(from, to, bytes as usize) };
            advance(cpu, op, RSI, bytes);
            advance(cpu, op, RDI, bytes);
            advance(cpu, op, RCX, n.wrapping_neg());
            left = left.saturating_sub(bytes);
        }
        if left == 0 && cpu.regs[RCX] != 0 {
            return Err(Stop::Again);
        }
        // The rest, or an element across pages, singly; then come back for whole pages.
        if cpu.regs[RCX] != 0 {
            movs_one::<T>(cpu, op)?;
            advance(cpu, op, RCX, u64::MAX);
            for _ in 0..15 {
                if cpu.regs[RCX] == 0 || cpu.op_end.is_null() {
                    break;
                }
                movs_one::<T>(cpu, op)?;
                advance(cpu, op, RCX, u64::MAX);
            }
            if cpu.regs[RCX] != 0 {
                return Err(Stop::Again);
            }
        }
        return Ok(());
    }
    truncate(cpu, op, RSI);
    truncate(cpu, op, RDI);
    repeat(cpu, op, T::BYTES, |cpu| movs_one::<T>(cpu, op).map(|()| true))
}

/// Whether the host ranges overlap with the destination above the source (two linear pages can be
/// one physical page).
fn overlaps(from: *const u8, to: *mut u8, bytes: u64) -> bool {
    let (from, to) = (from as usize, to as usize);
    to > from && to - from < bytes as usize
}

fn movs_one<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.read::<T>(source(cpu, op))?;
    cpu.write(dest(cpu, op), v)?;
    let by = step::<T>(cpu);
    advance(cpu, op, RSI, by);
    advance(cpu, op, RDI, by);
    Ok(())
}

fn stos<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    if upward(cpu, op) {
        let v = cpu.get::<T>(0);
        let mut left = SLICE;
        while cpu.regs[RCX] != 0 && left != 0 {
            let dst = dest(cpu, op);
            let n = cpu.regs[RCX].min(in_page::<T>(dst));
            let bytes = n * T::BYTES;
            let Some(to) = cpu.tlb.write_ptr(dst, bytes.max(1)).filter(|_| n != 0) else { break };
            if T::BITS == 8 || v == T::default() {
                // SAFETY: `bytes` bytes of mapped RAM in one page.
                unsafe { std::ptr::write_bytes(to, v.to_u64() as u8, bytes as usize) };
            } else {
                for i in 0..n as usize {
                    // SAFETY: as above.
                    unsafe { to.cast::<T>().add(i).write_unaligned(v) };
                }
            }
            advance(cpu, op, RDI, bytes);
            advance(cpu, op, RCX, n.wrapping_neg());
            left = left.saturating_sub(bytes);
        }
        if cpu.regs[RCX] == 0 {
            return Ok(());
        }
        if left == 0 {
            return Err(Stop::Again);
        }
        stos_one::<T>(cpu, op)?;
        advance(cpu, op, RCX, u64::MAX);
        return if cpu.regs[RCX] != 0 { Err(Stop::Again) } else { Ok(()) };
    }
    truncate(cpu, op, RDI);
    repeat(cpu, op, T::BYTES, |cpu| stos_one::<T>(cpu, op).map(|()| true))
}

fn stos_one<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.write(dest(cpu, op), cpu.get::<T>(0))?;
    let by = step::<T>(cpu);
    advance(cpu, op, RDI, by);
    Ok(())
}

fn lods<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    repeat(cpu, op, T::BYTES, |cpu| {
        let v = cpu.read::<T>(source(cpu, op))?;
        cpu.set(0, v);
        let by = step::<T>(cpu);
        advance(cpu, op, RSI, by);
        Ok(true)
    })
}

/// The flags of an interrupted comparison are those from before it: a fault undoes what earlier
/// elements set.
fn restoring(cpu: &mut Cpu, run: impl FnOnce(&mut Cpu) -> Exec) -> Exec {
    let flags = cpu.flags;
    let result = run(cpu);
    if result == Err(Stop::Fault) {
        cpu.flags = flags;
    }
    result
}

fn cmps<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    restoring(cpu, |cpu| cmps_all::<T>(cpu, op))
}

fn cmps_all<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    repeat(cpu, op, T::BYTES, |cpu| {
        let b = cpu.read::<T>(dest(cpu, op))?;
        let a = cpu.read::<T>(source(cpu, op))?;
        cpu.flags.sub(a, b, a.wsub(b));
        let by = step::<T>(cpu);
        advance(cpu, op, RSI, by);
        advance(cpu, op, RDI, by);
        Ok((a == b) == (op.extra & REP != 0))
    })
}

fn scas<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    restoring(cpu, |cpu| scas_all::<T>(cpu, op))
}

fn scas_all<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let a = cpu.get::<T>(0);
    repeat(cpu, op, T::BYTES, |cpu| {
        let b = cpu.read::<T>(dest(cpu, op))?;
        cpu.flags.sub(a, b, a.wsub(b));
        let by = step::<T>(cpu);
        advance(cpu, op, RDI, by);
        Ok((a == b) == (op.extra & REP != 0))
    })
}

fn ins<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let port = cpu.get::<u16>(16);
    super::system::check_port(cpu, port, T::BYTES)?;
    repeat(cpu, op, T::BYTES * 64, |cpu| {
        // The store must not fault after the device has been read.
        cpu.translate(dest(cpu, op), super::cpu::Access::Write)?;
        let last = super::cpu::second_page(dest(cpu, op), T::BYTES);
        cpu.translate(last, super::cpu::Access::Write)?;
        let v = super::system::port_in::<T>(cpu, port);
        cpu.write(dest(cpu, op), v)?;
        let by = step::<T>(cpu);
        advance(cpu, op, RDI, by);
        Ok(true)
    })
}

fn outs<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let port = cpu.get::<u16>(16);
    super::system::check_port(cpu, port, T::BYTES)?;
    repeat(cpu, op, T::BYTES * 64, |cpu| {
        let v = cpu.read::<T>(source(cpu, op))?;
        super::system::port_out::<T>(cpu, port, v);
        let by = step::<T>(cpu);
        advance(cpu, op, RSI, by);
        Ok(true)
    })
}

fn address_size(kind: OpKind) -> Option<u16> {
    Some(match kind {
        OpKind::MemorySegSI | OpKind::MemoryESDI => 2,
        OpKind::MemorySegESI | OpKind::MemoryESEDI => 4,
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => 8,
        _ => return None,
    })
}

/// Handler for the instruction, if it is one of this family.
pub(super) fn lower(ins_: &Instruction, op: &mut Op) -> Option<Handler> {
    let (size, family) = match ins_.mnemonic() {
        Mnemonic::Movsb => (1, 0),
        Mnemonic::Movsw => (2, 0),
        Mnemonic::Movsd => (4, 0),
        Mnemonic::Movsq => (8, 0),
        Mnemonic::Stosb => (1, 1),
        Mnemonic::Stosw => (2, 1),
        Mnemonic::Stosd => (4, 1),
        Mnemonic::Stosq => (8, 1),
        Mnemonic::Lodsb => (1, 2),
        Mnemonic::Lodsw => (2, 2),
        Mnemonic::Lodsd => (4, 2),
        Mnemonic::Lodsq => (8, 2),
        Mnemonic::Cmpsb => (1, 3),
        Mnemonic::Cmpsw => (2, 3),
        Mnemonic::Cmpsd => (4, 3),
        Mnemonic::Cmpsq => (8, 3),
        Mnemonic::Scasb => (1, 4),
        Mnemonic::Scasw => (2, 4),
        Mnemonic::Scasd => (4, 4),
        Mnemonic::Scasq => (8, 4),
        Mnemonic::Insb => (1, 5),
        Mnemonic::Insw => (2, 5),
        Mnemonic::Insd => (4, 5),
        Mnemonic::Outsb => (1, 6),
        Mnemonic::Outsw => (2, 6),
        Mnemonic::Outsd => (4, 6),
        _ => return None,
    };
    // MOVSD and CMPSD are SSE instructions, too: those have no string operand.
    op.extra = (0..ins_.op_count()).find_map(|i| address_size(ins_.op_kind(i)))?;
    if ins_.has_rep_prefix() {
        op.extra |= REP;
    }
    if ins_.has_repne_prefix() {
        op.extra |= REPNE;
    }
    let segment = ins_.memory_segment();
    if segment != Register::None {
        op.seg = Cpu::seg_slot(op.flags & super::op::flag::CODE32 == 0, segment.number());
    }
    macro_rules! pick {
        ($f:ident) => {
            super::decode::sized!(size, $f)
        };
    }
    match family {
        0 => pick!(movs),
        1 => pick!(stos),
        2 => pick!(lods),
        3 => pick!(cmps),
        4 => pick!(scas),
        5 => pick!(ins),
        _ => pick!(outs),
    }
}
