//! Registers of the local APIC as Intel's manual (volume 3, "APIC") lays them out. Offsets are
//! those of the xAPIC page; an x2APIC MSR is `0x800 + offset / 16`.

pub(super) const ID: u32 = 0x020;
pub(super) const VERSION: u32 = 0x030;
pub(super) const TPR: u32 = 0x080;
pub(super) const APR: u32 = 0x090;
pub(super) const PPR: u32 = 0x0a0;
pub(super) const EOI: u32 = 0x0b0;
pub(super) const RRD: u32 = 0x0c0;
pub(super) const LDR: u32 = 0x0d0;
pub(super) const DFR: u32 = 0x0e0;
pub(super) const SVR: u32 = 0x0f0;
pub(super) const ISR: u32 = 0x100;
pub(super) const TMR: u32 = 0x180;
pub(super) const IRR: u32 = 0x200;
pub(super) const IRR_END: u32 = 0x280;
pub(super) const ESR: u32 = 0x280;
pub(super) const ICR_LOW: u32 = 0x300;
pub(super) const ICR_HIGH: u32 = 0x310;
pub(super) const LVT_TIMER: u32 = 0x320;
pub(super) const LVT_THERMAL: u32 = 0x330;
pub(super) const LVT_PERF: u32 = 0x340;
pub(super) const LVT_LINT0: u32 = 0x350;
pub(super) const LVT_LINT1: u32 = 0x360;
pub(super) const LVT_ERROR: u32 = 0x370;
pub(super) const TIMER_INITIAL: u32 = 0x380;
pub(super) const TIMER_CURRENT: u32 = 0x390;
pub(super) const TIMER_DIVIDE: u32 = 0x3e0;
pub(super) const SELF_IPI: u32 = 0x3f0;

/// Integrated APIC, six LVT entries, no EOI-broadcast suppression.
pub(super) const VERSION_VALUE: u32 = 0x0005_0014;

/// Indices into the LVT, in register order.
pub(in crate::chipset) const TIMER: usize = 0;
pub(super) const LINT0: usize = 3;
pub(super) const LINT1: usize = 4;
pub(super) const ERROR: usize = 5;

/// Bits of each LVT entry that can be written.
pub(in crate::chipset) const LVT_WRITABLE: [u32; 6] =
    [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
pub(super) const LVT_MASKED: u32 = 1 << 16;
pub(super) const LVT_EXTINT: u32 = 7 << 8;
pub(super) const LVT_NMI: u32 = 4 << 8;

pub(super) const SVR_ENABLED: u32 = 1 << 8;

pub(in crate::chipset) const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
pub(in crate::chipset) const ESR_RECEIVED_ILLEGAL_VECTOR: u32 = 1 << 6;
pub(in crate::chipset) const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

pub(super) const MSR_APIC_BASE: u32 = 0x1b;
pub(super) const MSR_TSC_DEADLINE: u32 = 0x6e0;
pub(super) const MSR_X2APIC_FIRST: u32 = 0x800;
pub(super) const MSR_X2APIC_LAST: u32 = 0x8ff;

pub(in crate::chipset) const BASE_BSP: u64 = 1 << 8;
pub(in crate::chipset) const BASE_X2APIC: u64 = 1 << 10;
pub(in crate::chipset) const BASE_ENABLED: u64 = 1 << 11;
pub(in crate::chipset) const BASE_ADDR: u64 = 0x000f_ffff_ffff_f000;

/// Reserved in the x2APIC ICR; setting them is #GP.
pub(super) const X2APIC_ICR_RESERVED: u64 = 0xfff3_2000;
/// Bits of the ICR's low half that keep what is written: all but the delivery status and the
/// reserved ones.
pub(in crate::chipset) const ICR_LOW_WRITABLE: u32 = 0x000c_cfff;
