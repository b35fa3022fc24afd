//! CPUID, RDTSC, RDRAND, RDMSR and WRMSR.

use crate::arch::x86_64::{cr4, rflags};

use super::super::cpu::Cpu;
use super::super::int::Int;
use super::super::op::{Exec, Op, Stop};

pub(super) fn cpuid(cpu: &mut Cpu, _: &Op) -> Exec {
    let [a, b, c, d] = super::super::cpuid::leaf(cpu, cpu.get(0), cpu.get(8));
    cpu.set(0, a);
    cpu.set(3 * 8, b);
    cpu.set(8, c);
    cpu.set(2 * 8, d);
    // It serialises: what another vCPU has made of the code behind it counts.
    Err(Stop::Next)
}

pub(super) fn rdtsc<const P: bool>(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cr4 & cr4::TSD != 0 && cpu.cpl != 0 {
        return Err(cpu.gp());
    }
    let t = cpu.tsc();
    cpu.set(0, t as u32);
    cpu.set(2 * 8, (t >> 32) as u32);
    if P {
        cpu.set(8, cpu.msrs.tsc_aux as u32);
    }
    Ok(())
}

pub(super) fn gp(cpu: &mut Cpu, _: &Op) -> Exec {
    Err(cpu.gp())
}

pub(super) fn rdmsr(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.privileged()?;
    let msr = cpu.get::<u32>(8);
    let Some(v) = super::super::msr::read(cpu, msr) else {
        tracing::debug!(msr = format!("{msr:#x}"), "read of an unknown MSR");
        return Err(cpu.gp());
    };
    cpu.set(0, v as u32);
    cpu.set(2 * 8, (v >> 32) as u32);
    Ok(())
}

pub(super) fn wrmsr(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.privileged()?;
    let msr = cpu.get::<u32>(8);
    let v = (cpu.get::<u32>(16) as u64) << 32 | cpu.get::<u32>(0) as u64;
    if super::super::msr::write(cpu, msr, v).is_none() {
        tracing::debug!(msr = format!("{msr:#x}"), value = format!("{v:#x}"), "refused write to an MSR");
        return Err(cpu.gp());
    }
    cpu.events_may_open();
    Err(Stop::Next)
}

/// RDRAND and RDSEED: the host's entropy.
pub(super) fn rdrand<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = crate::sys::random::u64();
    cpu.flags = super::super::flags::Flags::from_bits(if v.is_some() { rflags::CF } else { 0 });
    cpu.set(op.dst, T::from_u64(v.unwrap_or(0)));
    Ok(())
}

/// XGETBV without XSAVE.
pub(super) fn no_xsave(cpu: &mut Cpu, _: &Op) -> Exec {
    Err(cpu.ud())
}
