//! Model-specific registers. An MSR that is not here is #GP, as on a processor without it.

use crate::arch::x86_64::{cr0, efer, seg};

use super::cpu::Cpu;

/// MSR numbers.
mod index {
    pub(super) const TSC: u32 = 0x10;
    pub(super) const PLATFORM_ID: u32 = 0x17;
    pub(super) const APIC_BASE: u32 = 0x1b;
    pub(super) const FEATURE_CONTROL: u32 = 0x3a;
    pub(super) const TSC_ADJUST: u32 = 0x3b;
    pub(super) const SPEC_CTRL: u32 = 0x48;
    pub(super) const PRED_CMD: u32 = 0x49;
    pub(super) const UCODE_REV: u32 = 0x8b;
    pub(super) const PLATFORM_INFO: u32 = 0xce;
    pub(super) const MTRR_CAP: u32 = 0xfe;
    pub(super) const ARCH_CAPABILITIES: u32 = 0x10a;
    pub(super) const FLUSH_CMD: u32 = 0x10b;
    pub(super) const SYSENTER_CS: u32 = 0x174;
    pub(super) const SYSENTER_ESP: u32 = 0x175;
    pub(super) const SYSENTER_EIP: u32 = 0x176;
    pub(super) const MCG_CAP: u32 = 0x179;
    pub(super) const MCG_STATUS: u32 = 0x17a;
    pub(super) const PERF_STATUS: u32 = 0x198;
    pub(super) const MISC_ENABLE: u32 = 0x1a0;
    pub(super) const DEBUGCTL: u32 = 0x1d9;
    pub(super) const PAT: u32 = 0x277;
    pub(super) const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub(super) const TSC_DEADLINE: u32 = 0x6e0;
    pub(super) const KVM_WALL_CLOCK_OLD: u32 = 0x11;
    pub(super) const KVM_SYSTEM_TIME_OLD: u32 = 0x12;
    pub(super) const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
    pub(super) const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
    pub(super) const EFER: u32 = 0xc000_0080;
    pub(super) const STAR: u32 = 0xc000_0081;
    pub(super) const LSTAR: u32 = 0xc000_0082;
    pub(super) const CSTAR: u32 = 0xc000_0083;
    pub(super) const SFMASK: u32 = 0xc000_0084;
    pub(super) const FS_BASE: u32 = 0xc000_0100;
    pub(super) const GS_BASE: u32 = 0xc000_0101;
    pub(super) const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub(super) const TSC_AUX: u32 = 0xc000_0103;
}
use index::*;

/// Not vulnerable to Meltdown, L1TF, SSB, MDS, TAA, MMIO stale data and the rest of the list: an
/// interpreter does not speculate on the guest's behalf.
const NOT_VULNERABLE: u64 = 1
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27;

/// RDMSR. `None` is #GP.
pub(super) fn read(cpu: &Cpu, msr: u32) -> Option<u64> {
    let m = &cpu.msrs;
    Some(match msr {
        TSC => cpu.tsc(),
        TSC_ADJUST => m.tsc_offset,
        APIC_BASE | TSC_DEADLINE | 0x800..=0x8ff => return cpu.apic.as_ref()?.msr_read(msr),
        PLATFORM_ID | FEATURE_CONTROL | MCG_CAP | MCG_STATUS | DEBUGCTL => 0,
        // Reads of these must look plausible: kernels print or check them.
        UCODE_REV => 1 << 32,
        PLATFORM_INFO | PERF_STATUS => 10 << 8,
        SPEC_CTRL => m.spec_ctrl,
        // No variable-range and no fixed-range MTRRs; write-combining.
        MTRR_CAP => 1 << 10,
        MTRR_DEF_TYPE => m.mtrr_def_type,
        ARCH_CAPABILITIES => NOT_VULNERABLE,
        SYSENTER_CS => m.sysenter_cs,
        SYSENTER_ESP => m.sysenter_esp,
        SYSENTER_EIP => m.sysenter_eip,
        MISC_ENABLE => m.misc_enable,
        PAT => m.pat,
        KVM_WALL_CLOCK | KVM_WALL_CLOCK_OLD => m.kvm_wall_clock,
        KVM_SYSTEM_TIME | KVM_SYSTEM_TIME_OLD => m.kvm_system_time,
        EFER => cpu.efer,
        STAR => m.star,
        LSTAR => m.lstar,
        CSTAR => m.cstar,
        SFMASK => m.sfmask,
        FS_BASE => cpu.seg[seg::FS].base,
        GS_BASE => cpu.seg[seg::GS].base,
        KERNEL_GS_BASE => m.kernel_gs_base,
        TSC_AUX => m.tsc_aux,
        _ => return None,
    })
}

/// WRMSR. `None` is #GP.
pub(super) fn write(cpu: &mut Cpu, msr: u32, v: u64) -> Option<()> {
    let canonical = (v as i64) << 16 >> 16 == v as i64;
    let address = |v: u64| canonical.then_some(v);
    match msr {
        TSC | TSC_ADJUST => {
            cpu.msrs.tsc_offset = if msr == TSC { v.wrapping_sub(cpu.ticks(cpu.clock.now())) } else { v };
            // The paravirtual clock converts from the TSC and must not jump with it.
            super::pvclock::write_system_time(cpu);
        }
        APIC_BASE | TSC_DEADLINE | 0x800..=0x8ff => {
            let apic = cpu.apic.clone()?;
            // The deadline is in TSC ticks; the APIC counts machine time.
            let v = match msr {
                TSC_DEADLINE if v != 0 => cpu.when(v).max(1),
                _ => v,
            };
            apic.msr_write(msr, v)?;
            if msr == APIC_BASE {
                // The register page may have moved.
                cpu.tlb.flush(true);
            }
        }
        SPEC_CTRL => cpu.msrs.spec_ctrl = (v & !7 == 0).then_some(v)?,
        PRED_CMD | FLUSH_CMD | UCODE_REV | MCG_STATUS | DEBUGCTL | FEATURE_CONTROL => {}
        SYSENTER_CS => cpu.msrs.sysenter_cs = v,
        SYSENTER_ESP => cpu.msrs.sysenter_esp = address(v)?,
        SYSENTER_EIP => cpu.msrs.sysenter_eip = address(v)?,
        MISC_ENABLE => cpu.msrs.misc_enable = v,
        PAT => {
            let valid = v.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7));
            cpu.msrs.pat = valid.then_some(v)?;
        }
        MTRR_DEF_TYPE => cpu.msrs.mtrr_def_type = v,
        KVM_WALL_CLOCK | KVM_WALL_CLOCK_OLD => {
            cpu.msrs.kvm_wall_clock = v;
            super::pvclock::write_wall_clock(cpu, v);
        }
        KVM_SYSTEM_TIME | KVM_SYSTEM_TIME_OLD => {
            cpu.msrs.kvm_system_time = v;
            super::pvclock::write_system_time(cpu);
        }
        EFER => {
            let known = efer::SCE | efer::LME | efer::LMA | efer::NXE;
            let lme_moves_while_paging = cpu.cr0 & cr0::PG != 0 && (v ^ cpu.efer) & efer::LME != 0;
            if v & !known != 0 || lme_moves_while_paging {
                return None;
            }
            // LMA follows paging and cannot be written.
            cpu.efer = v & !efer::LMA | cpu.efer & efer::LMA;
            cpu.tlb.flush(true);
        }
        STAR => cpu.msrs.star = v,
        LSTAR => cpu.msrs.lstar = address(v)?,
        CSTAR => cpu.msrs.cstar = address(v)?,
        SFMASK => cpu.msrs.sfmask = v as u32 as u64,
        FS_BASE => cpu.set_segment_base(seg::FS, address(v)?),
        GS_BASE => cpu.set_segment_base(seg::GS, address(v)?),
        KERNEL_GS_BASE => cpu.msrs.kernel_gs_base = address(v)?,
        TSC_AUX => cpu.msrs.tsc_aux = v as u32 as u64,
        _ => return None,
    }
    Some(())
}
