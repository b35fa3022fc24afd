//! MOV to and from control and debug registers, CLTS, SMSW, LMSW.

use crate::arch::x86_64::{cr0, cr4, efer};

use super::super::cpu::Cpu;
use super::super::int::Int;
use super::super::op::{Exec, Op, Stop, flag};

pub(super) fn mov_from_cr(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let v = match op.extra {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        8 => cpu.apic.as_ref().map_or(0, |a| a.cr8() as u64),
        _ => return Err(cpu.ud()),
    };
    set_native(cpu, op, v);
    Ok(())
}

/// Writes a register that is 64 bits wide in 64-bit code and 32 bits wide otherwise.
pub(super) fn set_native(cpu: &mut Cpu, op: &Op, v: u64) {
    if op.flags & flag::CODE32 != 0 { cpu.set(op.dst, v as u32) } else { cpu.set(op.dst, v) }
}

pub(super) fn get_native(cpu: &Cpu, op: &Op) -> u64 {
    if op.flags & flag::CODE32 != 0 { cpu.get::<u32>(op.src) as u64 } else { cpu.get(op.src) }
}

pub(super) fn mov_to_cr(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let v = get_native(cpu, op);
    match op.extra {
        0 => set_cr0(cpu, v)?,
        2 => cpu.cr2 = v,
        3 => {
            let pcid = cpu.cr4 & cr4::PCIDE != 0;
            let value = if pcid { v & !(1 << 63) } else { v };
            if value >> 46 != 0 {
                return Err(cpu.gp());
            }
            // Entries are not tagged with the PCID, so a switch drops them even where the guest
            // would allow them to stay.
            cpu.cr3 = value;
            cpu.tlb.flush(false);
        }
        4 => {
            if v & !cpu.model.cr4() != 0
                || (v & cr4::PAE == 0 && cpu.efer & efer::LMA != 0)
                || (v & cr4::PCIDE != 0 && cpu.cr4 & cr4::PCIDE == 0 && cpu.cr3 & 0xfff != 0)
            {
                return Err(cpu.gp());
            }
            cpu.cr4 = v;
            cpu.tlb.flush(true);
            cpu.refresh();
        }
        8 => {
            if v > 15 {
                return Err(cpu.gp());
            }
            if let Some(apic) = &cpu.apic {
                apic.set_cr8(v as u8);
            }
            cpu.events_may_open();
        }
        _ => return Err(cpu.ud()),
    }
    Err(Stop::Next)
}

pub(super) fn set_cr0(cpu: &mut Cpu, v: u64) -> Exec {
    let paging_off = v & cr0::PG == 0;
    if v >> 32 != 0
        || (!paging_off && v & cr0::PE == 0)
        || (v & cr0::NW != 0 && v & cr0::CD == 0)
        || (paging_off && (cpu.long || cpu.cr4 & cr4::PCIDE != 0))
        || (!paging_off && cpu.efer & efer::LME == 0)
    {
        return Err(cpu.gp());
    }
    if paging_off {
        cpu.efer &= !efer::LMA;
    } else {
        cpu.efer |= efer::LMA;
    }
    cpu.cr0 = v | cr0::ET;
    cpu.tlb.flush(true);
    cpu.refresh();
    Ok(())
}

pub(super) fn clts(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.privileged()?;
    cpu.cr0 &= !cr0::TS;
    cpu.refresh();
    Err(Stop::Next)
}

pub(super) fn smsw_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.set(op.dst, T::from_u64(cpu.cr0));
    Ok(())
}
pub(super) fn smsw_m(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.store(op, cpu.cr0 as u16)
}
pub(super) fn lmsw<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let v = if MEMORY { cpu.load::<u16>(op)? } else { cpu.get(op.src) } as u64;
    // PE can be set but not cleared.
    let low = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
    let new = cpu.cr0 & !low | v & low | cpu.cr0 & cr0::PE;
    set_cr0(cpu, new)?;
    Err(Stop::Next)
}

pub(super) fn dr_slot(cpu: &mut Cpu, n: u16) -> Result<usize, Stop> {
    match n {
        0..=3 => Ok(n as usize),
        // DR4 and DR5 are other names of DR6 and DR7 until CR4.DE takes them away.
        4 | 5 if cpu.cr4 & cr4::DE != 0 => Err(cpu.ud()),
        4 | 6 => Ok(4),
        5 | 7 => Ok(5),
        _ => Err(cpu.ud()),
    }
}
pub(super) fn mov_from_dr(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let slot = dr_slot(cpu, op.extra)?;
    set_native(cpu, op, cpu.dr[slot]);
    Ok(())
}
pub(super) fn mov_to_dr(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let v = get_native(cpu, op);
    let slot = dr_slot(cpu, op.extra)?;
    if slot >= 4 && v >> 32 != 0 {
        return Err(cpu.gp());
    }
    cpu.dr[slot] = match slot {
        4 => v & 0xe00f | 0xffff_0ff0,
        5 => v & 0xffff_2bff | 0x400,
        _ => v,
    };
    Ok(())
}
