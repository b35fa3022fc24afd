//! A vCPU's state to and from its saved form.
//!
//! What comes back is what some x86-64 processor can hold: no reserved bit, no address that is none.
//! Whether *this* processor has each feature in use is for [`Vcpu::set_state`](super::Vcpu::set_state)
//! to say, which knows its backend.

#[cfg(test)]
mod tests;

use crate::arch::x86_64::{DescriptorTable, FpuState, Msrs, Segment, VcpuState, cr0, cr4, efer, rflags, seg};
use crate::state as saved;
use crate::state::StateError;

const CR0_KNOWN: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;
const CR4_KNOWN: u64 = cr4::VME
    | cr4::PVI
    | cr4::TSD
    | cr4::DE
    | cr4::PSE
    | cr4::PAE
    | cr4::MCE
    | cr4::PGE
    | cr4::PCE
    | cr4::OSFXSR
    | cr4::OSXMMEXCPT
    | cr4::UMIP
    | cr4::FSGSBASE
    | cr4::PCIDE
    | cr4::OSXSAVE
    | cr4::SMEP
    | cr4::SMAP;
const EFER_KNOWN: u64 = efer::SCE | efer::LME | efer::LMA | efer::NXE;
const RFLAGS_KNOWN: u64 = rflags::STATUS
    | rflags::FIXED
    | rflags::TF
    | rflags::IF
    | rflags::DF
    | rflags::IOPL
    | rflags::NT
    | rflags::RF
    | rflags::VM
    | rflags::AC
    | rflags::VIF
    | rflags::VIP
    | rflags::ID;
/// Physical addresses have no more bits than this on any processor.
const PHYSICAL_BITS: u32 = 52;
/// The saved form has x87 and SSE registers and no others.
const XCR0_KNOWN: u64 = 3;
/// No processor's TSC counts slower or faster.
const TSC_KHZ_RANGE: std::ops::RangeInclusive<u32> = 100_000..=20_000_000;
const SPEC_CTRL_KNOWN: u64 = 7;
const FPU_CONTROL_KNOWN: u16 = 0x1f7f;
const FPU_OPCODE_KNOWN: u16 = 0x7ff;
const MXCSR_KNOWN: u32 = 0xffff;

/// Bits of a segment's attributes.
mod attribute {
    pub(super) const CODE: u16 = 1 << 3;
    pub(super) const ORDINARY: u16 = 1 << 4;
    pub(super) const PRESENT: u16 = 1 << 7;
    /// Where the descriptor has the limit's high bits.
    pub(super) const RESERVED: u16 = 0x0f00;
    pub(super) const GRANULAR: u16 = 1 << 15;
}

fn canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

impl From<&Segment> for saved::Segment {
    fn from(segment: &Segment) -> Self {
        let &Segment { selector, base, limit, attributes } = segment;
        Self { selector, base, limit, attributes }
    }
}

impl From<saved::Segment> for Segment {
    fn from(segment: saved::Segment) -> Self {
        let saved::Segment { selector, base, limit, attributes } = segment;
        Self { selector, base, limit, attributes }
    }
}

impl From<&DescriptorTable> for saved::DescriptorTable {
    fn from(table: &DescriptorTable) -> Self {
        let &DescriptorTable { base, limit } = table;
        Self { base, limit }
    }
}

impl From<saved::DescriptorTable> for DescriptorTable {
    fn from(table: saved::DescriptorTable) -> Self {
        let saved::DescriptorTable { base, limit } = table;
        Self { base, limit }
    }
}

impl From<&FpuState> for saved::Fpu {
    fn from(fpu: &FpuState) -> Self {
        let &FpuState { st, control, status, tag, opcode, ip, dp, xmm, mxcsr } = fpu;
        Self {
            significands: st.map(|(significand, _)| significand),
            exponents: st.map(|(_, exponent)| exponent),
            control,
            status,
            tag,
            opcode,
            ip,
            dp,
            xmm: xmm.map(|register| [register as u64, (register >> 64) as u64]),
            mxcsr,
        }
    }
}

impl From<saved::Fpu> for FpuState {
    fn from(fpu: saved::Fpu) -> Self {
        let saved::Fpu { significands, exponents, control, status, tag, opcode, ip, dp, xmm, mxcsr } = fpu;
        Self {
            st: std::array::from_fn(|n| (significands[n], exponents[n])),
            control,
            status,
            tag,
            opcode,
            ip,
            dp,
            xmm: xmm.map(|[low, high]| u128::from(high) << 64 | u128::from(low)),
            mxcsr,
        }
    }
}

impl From<&Msrs> for saved::Msrs {
    fn from(msrs: &Msrs) -> Self {
        let &Msrs {
            star,
            lstar,
            cstar,
            sfmask,
            kernel_gs_base,
            sysenter_cs,
            sysenter_esp,
            sysenter_eip,
            tsc_aux,
            pat,
            misc_enable,
            spec_ctrl,
            mtrr_def_type,
            kvm_system_time,
            kvm_wall_clock,
            tsc_offset,
        } = msrs;
        Self {
            star,
            lstar,
            cstar,
            sfmask,
            kernel_gs_base,
            sysenter_cs,
            sysenter_esp,
            sysenter_eip,
            tsc_aux,
            pat,
            misc_enable,
            spec_ctrl,
            mtrr_def_type,
            kvm_system_time,
            kvm_wall_clock,
            tsc_offset,
        }
    }
}

impl From<saved::Msrs> for Msrs {
    fn from(msrs: saved::Msrs) -> Self {
        let saved::Msrs {
            star,
            lstar,
            cstar,
            sfmask,
            kernel_gs_base,
            sysenter_cs,
            sysenter_esp,
            sysenter_eip,
            tsc_aux,
            pat,
            misc_enable,
            spec_ctrl,
            mtrr_def_type,
            kvm_system_time,
            kvm_wall_clock,
            tsc_offset,
        } = msrs;
        Self {
            star,
            lstar,
            cstar,
            sfmask,
            kernel_gs_base,
            sysenter_cs,
            sysenter_esp,
            sysenter_eip,
            tsc_aux,
            pat,
            misc_enable,
            spec_ctrl,
            mtrr_def_type,
            kvm_system_time,
            kvm_wall_clock,
            tsc_offset,
        }
    }
}

impl From<&VcpuState> for saved::Vcpu {
    fn from(state: &VcpuState) -> Self {
        let VcpuState {
            gpr,
            rip,
            rflags,
            seg,
            tr,
            ldtr,
            gdt,
            idt,
            cr0,
            cr2,
            cr3,
            cr4,
            xcr0,
            efer,
            dr,
            fpu,
            msrs,
            tsc_khz,
            halted,
            interrupt_shadow,
            nmi_blocked,
            nmi_pending,
        } = state;
        Self {
            gpr: *gpr,
            rip: *rip,
            rflags: *rflags,
            seg: seg.each_ref().map(Into::into),
            tr: tr.into(),
            ldtr: ldtr.into(),
            gdt: gdt.into(),
            idt: idt.into(),
            cr0: *cr0,
            cr2: *cr2,
            cr3: *cr3,
            cr4: *cr4,
            xcr0: *xcr0,
            efer: *efer,
            dr: *dr,
            fpu: fpu.into(),
            msrs: msrs.into(),
            tsc_khz: *tsc_khz,
            halted: *halted,
            interrupt_shadow: *interrupt_shadow,
            nmi_blocked: *nmi_blocked,
            nmi_pending: *nmi_pending,
        }
    }
}

impl TryFrom<saved::Vcpu> for VcpuState {
    type Error = StateError;

    fn try_from(state: saved::Vcpu) -> Result<Self, StateError> {
        let saved::Vcpu {
            gpr,
            rip,
            rflags,
            seg,
            tr,
            ldtr,
            gdt,
            idt,
            cr0,
            cr2,
            cr3,
            cr4,
            xcr0,
            efer,
            dr,
            fpu,
            msrs,
            tsc_khz,
            halted,
            interrupt_shadow,
            nmi_blocked,
            nmi_pending,
        } = state;
        let state = Self {
            gpr,
            rip,
            rflags,
            seg: seg.map(Into::into),
            tr: tr.into(),
            ldtr: ldtr.into(),
            gdt: gdt.into(),
            idt: idt.into(),
            cr0,
            cr2,
            cr3,
            cr4,
            xcr0,
            efer,
            dr,
            fpu: fpu.into(),
            msrs: msrs.into(),
            tsc_khz,
            halted,
            interrupt_shadow,
            nmi_blocked,
            nmi_pending,
        };
        check_control(&state)?;
        check_segments(&state)?;
        check_rest(&state)?;
        Ok(state)
    }
}

/// Control registers and flags, each by itself and together.
fn check_control(state: &VcpuState) -> Result<(), StateError> {
    let VcpuState { cr0, cr3, cr4, efer, rflags, .. } = *state;
    let has = |register: u64, bit: u64| register & bit != 0;
    StateError::unless(cr0 & !CR0_KNOWN == 0, "reserved bits of CR0")?;
    StateError::unless(cr4 & !CR4_KNOWN == 0, "reserved bits of CR4")?;
    StateError::unless(efer & !EFER_KNOWN == 0, "reserved bits of EFER")?;
    StateError::unless(rflags & !RFLAGS_KNOWN == 0, "reserved bits of RFLAGS")?;
    StateError::unless(has(rflags, rflags::FIXED), "RFLAGS without bit 1")?;
    StateError::unless(cr3 >> PHYSICAL_BITS == 0, "page table address in CR3")?;
    StateError::unless(has(cr0, cr0::PE) || !has(cr0, cr0::PG), "paging without protection")?;
    StateError::unless(has(cr0, cr0::CD) || !has(cr0, cr0::NW), "CR0.NW without CR0.CD")?;
    let long = has(efer, efer::LMA);
    let called_for = has(efer, efer::LME) && has(cr0, cr0::PG);
    StateError::unless(long == called_for, "EFER.LMA against EFER.LME and CR0.PG")?;
    StateError::unless(!long || has(cr4, cr4::PAE), "long mode without CR4.PAE")?;
    StateError::unless(long || !has(cr4, cr4::PCIDE), "CR4.PCIDE outside long mode")?;
    StateError::unless(!long || !has(rflags, rflags::VM), "virtual-8086 mode in long mode")
}

fn check_segments(state: &VcpuState) -> Result<(), StateError> {
    use attribute::*;
    let protected = state.cr0 & cr0::PE != 0;
    let fits = |segment: &Segment, ordinary: bool| {
        let present = segment.attributes & PRESENT != 0;
        // The limit as the descriptor can say it.
        let limit = match segment.attributes & GRANULAR != 0 {
            true => segment.limit & 0xfff == 0xfff,
            false => segment.limit >> 20 == 0,
        };
        let kind = (segment.attributes & ORDINARY != 0) == ordinary;
        segment.attributes & RESERVED == 0 && canonical(segment.base) && (!present || limit && kind)
    };
    StateError::unless(state.seg.iter().all(|segment| fits(segment, true)), "a segment register")?;
    StateError::unless(fits(&state.tr, false), "the task register")?;
    StateError::unless(fits(&state.ldtr, false), "the local descriptor table register")?;
    StateError::unless(canonical(state.gdt.base), "address of the GDT")?;
    StateError::unless(canonical(state.idt.base), "address of the IDT")?;
    let cs = &state.seg[seg::CS];
    let code = PRESENT | ORDINARY | CODE;
    StateError::unless(!protected || cs.attributes & code == code, "CS is no code segment")?;
    StateError::unless(!(cs.long() && cs.big()), "CS is both 64-bit and 32-bit")?;
    let in_range =
        if cs.long() && state.efer & efer::LMA != 0 { canonical(state.rip) } else { state.rip >> 32 == 0 };
    StateError::unless(in_range, "instruction pointer")
}

fn check_rest(state: &VcpuState) -> Result<(), StateError> {
    let VcpuState { fpu, msrs, .. } = state;
    StateError::unless(TSC_KHZ_RANGE.contains(&state.tsc_khz), "rate of the TSC")?;
    StateError::unless(state.xcr0 & !XCR0_KNOWN == 0, "reserved bits of XCR0")?;
    StateError::unless((state.dr[4] | state.dr[5]) >> 32 == 0, "reserved bits of DR6 or DR7")?;
    StateError::unless(fpu.control & !FPU_CONTROL_KNOWN == 0, "reserved bits of the x87 control word")?;
    StateError::unless(fpu.opcode & !FPU_OPCODE_KNOWN == 0, "x87 opcode")?;
    StateError::unless(fpu.mxcsr & !MXCSR_KNOWN == 0, "reserved bits of MXCSR")?;
    let addresses = [msrs.lstar, msrs.cstar, msrs.kernel_gs_base, msrs.sysenter_esp, msrs.sysenter_eip];
    StateError::unless(addresses.into_iter().all(canonical), "an MSR that holds an address")?;
    StateError::unless((msrs.sfmask | msrs.tsc_aux) >> 32 == 0, "an MSR of 32 bits")?;
    StateError::unless(msrs.spec_ctrl & !SPEC_CTRL_KNOWN == 0, "reserved bits of SPEC_CTRL")?;
    let types = msrs.pat.to_le_bytes();
    StateError::unless(types.iter().all(|t| matches!(t, 0 | 1 | 4..=7)), "memory types in the PAT")
}
