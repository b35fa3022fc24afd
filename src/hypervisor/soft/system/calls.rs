//! SYSCALL, SYSENTER and their returns, SWAPGS, and the bases of FS and GS.

use crate::arch::x86_64::{cr4, efer, rflags, seg};

use super::super::cpu::Cpu;
use super::super::int::Int;
use super::super::op::{Exec, Op, Stop};
use super::super::segment::flat;

pub(super) fn syscall(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.efer & efer::SCE == 0 || !cpu.long {
        return Err(cpu.ud());
    }
    cpu.regs[1] = cpu.next_ip(op);
    cpu.regs[11] = cpu.rflags() & !rflags::RF;
    let selector = (cpu.msrs.star >> 32) as u16 & !3;
    cpu.seg[seg::CS] = flat(selector, true, 0, true);
    cpu.seg[seg::SS] = flat(selector.wrapping_add(8), false, 0, false);
    let flags = cpu.regs[11] & !cpu.msrs.sfmask;
    cpu.refresh();
    cpu.set_rflags(flags);
    // The trap goes by TF as it is now: SFMASK keeps it out of the kernel.
    cpu.step = cpu.sysflags & rflags::TF != 0;
    cpu.rip = cpu.msrs.lstar;
    Err(Stop::Branch)
}

pub(super) fn sysret<const LONG: bool>(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.efer & efer::SCE == 0 || !cpu.long {
        return Err(cpu.ud());
    }
    cpu.privileged()?;
    let rip = if LONG { cpu.regs[1] } else { cpu.regs[1] as u32 as u64 };
    if (rip as i64) << 16 >> 16 != rip as i64 {
        return Err(cpu.gp());
    }
    let base = (cpu.msrs.star >> 48) as u16;
    let cs = if LONG { base.wrapping_add(16) } else { base } | 3;
    cpu.seg[seg::CS] = flat(cs, true, 3, LONG);
    cpu.seg[seg::SS] = flat(base.wrapping_add(8) | 3, false, 3, false);
    cpu.refresh();
    let flags = cpu.regs[11] & 0x3c_7fd7;
    cpu.set_rflags(flags);
    // As if the SYSCALL that came here ended only now.
    cpu.step = flags & rflags::TF != 0;
    cpu.rip = rip;
    cpu.events_may_open();
    Err(Stop::Branch)
}

pub(super) fn sysenter(cpu: &mut Cpu, _: &Op) -> Exec {
    let cs = cpu.msrs.sysenter_cs as u16 & !3;
    if cs == 0 {
        return Err(cpu.gp());
    }
    cpu.seg[seg::CS] = flat(cs, true, 0, true);
    cpu.seg[seg::SS] = flat(cs.wrapping_add(8), false, 0, false);
    cpu.sysflags &= !(rflags::IF | rflags::VM);
    cpu.refresh();
    cpu.regs[4] = cpu.msrs.sysenter_esp;
    cpu.rip = cpu.msrs.sysenter_eip;
    Err(Stop::Branch)
}

pub(super) fn sysexit<const LONG: bool>(cpu: &mut Cpu, _: &Op) -> Exec {
    let base = cpu.msrs.sysenter_cs as u16 & !3;
    if base == 0 {
        return Err(cpu.gp());
    }
    cpu.privileged()?;
    let (rip, rsp) = if LONG {
        (cpu.regs[2], cpu.regs[1])
    } else {
        (cpu.regs[2] as u32 as u64, cpu.regs[1] as u32 as u64)
    };
    if [rip, rsp].iter().any(|&v| (v as i64) << 16 >> 16 != v as i64) {
        return Err(cpu.gp());
    }
    let cs = base.wrapping_add(if LONG { 32 } else { 16 }) | 3;
    cpu.seg[seg::CS] = flat(cs, true, 3, LONG);
    cpu.seg[seg::SS] = flat(cs.wrapping_add(8), false, 3, false);
    cpu.refresh();
    cpu.regs[4] = rsp;
    cpu.rip = rip;
    cpu.events_may_open();
    Err(Stop::Branch)
}

pub(super) fn swapgs(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.privileged()?;
    std::mem::swap(&mut cpu.seg[seg::GS].base, &mut cpu.msrs.kernel_gs_base);
    cpu.seg_base[seg::GS] = cpu.seg[seg::GS].base;
    Ok(())
}

pub(super) fn read_base<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.cr4 & cr4::FSGSBASE == 0 {
        return Err(cpu.ud());
    }
    cpu.set(op.dst, T::from_u64(cpu.seg_base[op.extra as usize & 7]));
    Ok(())
}
pub(super) fn write_base<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.cr4 & cr4::FSGSBASE == 0 {
        return Err(cpu.ud());
    }
    let v = cpu.get::<T>(op.dst).to_u64();
    if (v as i64) << 16 >> 16 != v as i64 {
        return Err(cpu.gp());
    }
    cpu.set_segment_base(op.extra as usize, v);
    Ok(())
}

impl Cpu {
    /// Sets the base of FS or GS.
    pub(in super::super) fn set_segment_base(&mut self, which: usize, base: u64) {
        if let Some(s) = self.seg.get_mut(which) {
            s.base = base;
            self.seg_base[which] = base;
        }
    }
}
