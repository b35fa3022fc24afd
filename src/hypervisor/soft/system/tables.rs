//! Descriptor-table registers, and control of the TLB and the caches.

use super::super::cpu::{Access, Cpu};
use super::super::int::Int;
use super::super::op::{Exec, Op, Stop, flag};

pub(super) fn load_table<const IDT: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let limit = cpu.load::<u16>(op)?;
    let mut at = *op;
    at.disp = op.disp.wrapping_add(2);
    let base =
        if op.flags & flag::CODE32 != 0 { cpu.load::<u32>(&at)? as u64 } else { cpu.load::<u64>(&at)? };
    if (base as i64) << 16 >> 16 != base as i64 {
        return Err(cpu.gp());
    }
    let table = if IDT { &mut cpu.idt } else { &mut cpu.gdt };
    table.base = base;
    table.limit = limit;
    Ok(())
}

pub(super) fn store_table<const IDT: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let table = if IDT { cpu.idt } else { cpu.gdt };
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let len = if op.flags & flag::CODE32 != 0 { 6 } else { 10 };
    cpu.write_bytes(cpu.ea(op), &bytes[..len])
}

pub(super) fn load_selector<const TASK: bool, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let v = if MEMORY { cpu.load::<u16>(op)? } else { cpu.get(op.src) };
    if TASK { cpu.load_tr(v) } else { cpu.load_ldtr(v) }
}
pub(super) fn store_selector_r<const TASK: bool, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = if TASK { cpu.tr.selector } else { cpu.ldtr.selector };
    cpu.set(op.dst, T::from_u64(v as u64));
    Ok(())
}
pub(super) fn store_selector_m<const TASK: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = if TASK { cpu.tr.selector } else { cpu.ldtr.selector };
    cpu.store(op, v)
}

pub(super) fn invlpg(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let va = cpu.ea(op);
    cpu.tlb.flush_page(va);
    Err(Stop::Next)
}

pub(super) fn invpcid(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let kind = get_native_reg(cpu, op);
    let mut descriptor = [0; 16];
    cpu.read_bytes(cpu.ea(op), &mut descriptor)?;
    let descriptor = u128::from_le_bytes(descriptor);
    let va = (descriptor >> 64) as u64;
    let pcid = descriptor as u64;
    let no_such_pcid = pcid != 0 && cpu.cr4 & crate::arch::x86_64::cr4::PCIDE == 0;
    let bad = match kind {
        0 => no_such_pcid || (va as i64) << 16 >> 16 != va as i64,
        1 => no_such_pcid,
        2 | 3 => false,
        _ => true,
    };
    if bad || pcid >> 12 != 0 {
        return Err(cpu.gp());
    }
    match kind {
        0 => cpu.tlb.flush_page(va),
        2 => cpu.tlb.flush(true),
        _ => cpu.tlb.flush(false),
    }
    Err(Stop::Next)
}

pub(super) fn get_native_reg(cpu: &Cpu, op: &Op) -> u64 {
    if op.flags & flag::CODE32 != 0 { cpu.get::<u32>(op.dst) as u64 } else { cpu.get(op.dst) }
}

pub(super) fn privileged_nop(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.privileged()
}

/// CLFLUSH, CLFLUSHOPT: caches are coherent, but the address is checked.
pub(super) fn clflush(cpu: &mut Cpu, op: &Op) -> Exec {
    let va = cpu.ea(op);
    cpu.translate(va, Access::Read)?;
    Ok(())
}
