//! CLI, STI, PUSHF, POPF, STAC, CLAC, HLT, PAUSE.

use crate::arch::x86_64::rflags;

use super::super::cpu::Cpu;
use super::super::int::Int;
use super::super::op::{Exec, Op, Stop};

pub(super) fn cli(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cpl as u64 > (cpu.sysflags & rflags::IOPL) >> 12 {
        return Err(cpu.gp());
    }
    cpu.sysflags &= !rflags::IF;
    Ok(())
}

pub(super) fn sti(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cpl as u64 > (cpu.sysflags & rflags::IOPL) >> 12 {
        return Err(cpu.gp());
    }
    if cpu.sysflags & rflags::IF == 0 {
        cpu.sysflags |= rflags::IF;
        cpu.shadow = true;
        cpu.events_may_open();
    }
    Err(Stop::Next)
}

pub(super) fn pushf<T: Int>(cpu: &mut Cpu, _: &Op) -> Exec {
    let v = cpu.rflags() & !(rflags::RF | rflags::VM);
    cpu.push(T::from_u64(v))
}

pub(super) fn popf<T: Int>(cpu: &mut Cpu, _: &Op) -> Exec {
    let v = cpu.pop::<T>()?.to_u64();
    let mut mask = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;
    if cpu.cpl == 0 {
        mask |= rflags::IOPL;
    }
    if cpu.cpl as u64 <= (cpu.sysflags & rflags::IOPL) >> 12 {
        mask |= rflags::IF;
    }
    if T::BITS == 16 {
        mask &= 0xffff;
    }
    let old = cpu.rflags();
    let new = (old & !mask | v & mask) & !rflags::RF;
    cpu.set_rflags(new);
    if (old ^ new) & (rflags::IF | rflags::TF) != 0 {
        cpu.events_may_open();
        return Err(Stop::Next);
    }
    Ok(())
}

pub(super) fn set_ac<const ON: bool>(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cpl != 0 {
        return Err(cpu.ud());
    }
    if ON {
        cpu.sysflags |= rflags::AC;
    } else {
        cpu.sysflags &= !rflags::AC;
    }
    cpu.select_tlb();
    Ok(())
}

/// A spin-wait hint: lets events and other host threads in.
/// How often a guest may say that it only waits before its thread lets another have the host's processor: what it
/// waits for may be a vCPU whose thread has none.
const PAUSES: u32 = 64;

pub(super) fn pause(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.several {
        cpu.pauses = cpu.pauses.wrapping_add(1);
        if cpu.pauses.is_multiple_of(PAUSES) {
            std::thread::yield_now();
        }
    }
    Err(Stop::Next)
}

pub(super) fn hlt(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.privileged()?;
    cpu.halted = true;
    Err(Stop::Next)
}
