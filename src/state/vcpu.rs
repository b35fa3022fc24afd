//! Registers of one vCPU.

use serde::{Deserialize, Serialize};

use super::{Saved, kind};

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Bits 40..56 of the descriptor without the limit's: type (0–3), S (4), DPL (5–6), P (7),
    /// AVL (12), L (13), D/B (14), G (15).
    pub attributes: u16,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// x87, MMX and SSE state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fpu {
    /// Significands of the x87 registers R0..R7, in physical order.
    pub significands: [u64; 8],
    /// Signs and exponents of the x87 registers.
    pub exponents: [u16; 8],
    /// Control word.
    pub control: u16,
    /// Status word with TOP.
    pub status: u16,
    /// Abridged tag word: bit n set = physical register n is not empty.
    pub tag: u8,
    /// Last opcode (11 bits).
    pub opcode: u16,
    /// Last instruction pointer.
    pub ip: u64,
    /// Last data pointer.
    pub dp: u64,
    /// SSE registers, low half first.
    pub xmm: [[u64; 2]; 16],
    /// SSE control and status.
    pub mxcsr: u32,
}

/// Model-specific registers that are plain state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msrs {
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub sfmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// IA32_SPEC_CTRL.
    pub spec_ctrl: u64,
    /// IA32_MTRR_DEF_TYPE.
    pub mtrr_def_type: u64,
    /// MSR_KVM_SYSTEM_TIME_NEW.
    pub kvm_system_time: u64,
    /// MSR_KVM_WALL_CLOCK_NEW.
    pub kvm_wall_clock: u64,
    /// Added to machine time (ns) to give the TSC.
    pub tsc_offset: u64,
}

/// The architectural state of one vCPU between two instructions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vcpu {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub seg: [Segment; 6],
    /// Task register.
    pub tr: Segment,
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Global descriptor table.
    pub gdt: DescriptorTable,
    /// Interrupt descriptor table.
    pub idt: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// DR0–DR3, DR6, DR7.
    pub dr: [u64; 6],
    /// x87, MMX and SSE.
    pub fpu: Fpu,
    /// Plain MSRs.
    pub msrs: Msrs,
    /// Rate of the TSC in kHz.
    pub tsc_khz: u32,
    /// In HLT.
    pub halted: bool,
    /// Interrupts are held off for one instruction (after STI or MOV SS).
    pub interrupt_shadow: bool,
    /// An NMI handler is running (until IRET).
    pub nmi_blocked: bool,
    /// An NMI waits for that IRET.
    pub nmi_pending: bool,
}

impl Saved for Vcpu {
    const KIND: u16 = kind::VCPU;
    const VERSION: u16 = 2;
    const MAX_BYTES: usize = 8 << 10;
}
