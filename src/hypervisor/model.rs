//! The processor model: what CPUID answers, the same on every backend, so that a machine can move
//! between them.
//!
//! A program sees x86-64-v2 (SSE4.2, CMPXCHG16B, POPCNT) with MOVBE, LZCNT, AES, PCLMULQDQ and RDRAND.
//! What a kernel sees beside it is the [`CpuModel`]'s. KVM's paravirtual leaves give it its clock and
//! every frequency without calibrating. There is no "invariant TSC": a kernel that trusts one keeps
//! the rate it booted with, and the next host's may differ; the paravirtual clock follows.

use crate::arch::x86_64::{cr4, efer};

const MAX_BASIC: u32 = 0x16;
const MAX_EXTENDED: u32 = 0x8000_0008;
const MAX_KVM: u32 = 0x4000_0010;

/// Rate at which a local APIC's timer counts, before its divider.
const APIC_TIMER_KHZ: u32 = 1_000_000;

const BRAND: &[u8; 48] = b"cc virtual CPU, x86-64-v2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// What the guest's kernel finds beside x86-64-v2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CpuModel {
    /// What processors have had since 2017: SMEP, SMAP, PCID, FSGSBASE, INVPCID, RDTSCP, pages of 1 GiB.
    #[default]
    Baseline,
    /// None of these: for hosts whose hypervisor does not have them.
    Minimal,
}

impl CpuModel {
    /// Its name in snapshots.
    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline => "x86-64-v2",
            Self::Minimal => "x86-64-v2, minimal",
        }
    }

    /// The model of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Baseline, Self::Minimal].into_iter().find(|model| model.name() == name)
    }

    /// Bits of CR4 that a guest may set.
    pub(super) fn cr4(self) -> u64 {
        let common = cr4::VME
            | cr4::PVI
            | cr4::TSD
            | cr4::DE
            | cr4::PSE
            | cr4::PAE
            | cr4::MCE
            | cr4::PGE
            | cr4::PCE
            | cr4::OSFXSR
            | cr4::OSXMMEXCPT;
        match self {
            Self::Baseline => common | cr4::FSGSBASE | cr4::PCIDE | cr4::SMEP | cr4::SMAP,
            Self::Minimal => common,
        }
    }

    /// Bits of EFER that a guest may set.
    pub(super) fn efer(self) -> u64 {
        efer::SCE | efer::LME | efer::LMA | efer::NXE
    }
}

/// One processor of a machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    pub(super) model: CpuModel,
    /// Its number, which is its APIC id.
    pub(super) id: u32,
    /// How many there are.
    pub(super) cpus: u32,
    /// Rate of its TSC.
    pub(super) tsc_khz: u32,
}

/// A word with these bits set.
pub(super) const fn bits(list: &[u32]) -> u32 {
    let mut word = 0;
    let mut i = 0;
    while i < list.len() {
        word |= 1 << list[i];
        i += 1;
    }
    word
}

/// Leaf 1 EDX: FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX
/// FXSR SSE SSE2.
pub(super) const FEATURES_EDX: u32 =
    bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26]);
/// Leaf 1 ECX: SSE3 PCLMULQDQ SSSE3 CX16 SSE4.1 SSE4.2 x2APIC MOVBE POPCNT TSC-deadline AES RDRAND
/// hypervisor.
pub(super) const FEATURES_ECX: u32 = bits(&[0, 1, 9, 13, 19, 20, 21, 22, 23, 24, 25, 30, 31]);
/// Those of them that programs use and that need nothing of a hypervisor.
pub(super) const PROGRAM_ECX: u32 = bits(&[0, 1, 9, 13, 19, 20, 22, 23, 25, 30]);
/// Leaf 1 ECX, only [`CpuModel::Baseline`]: PCID.
pub(super) const BASELINE_ECX: u32 = bits(&[17]);
/// Leaf 7 EBX: FDP_EXCPTN_ONLY, ERMS, FCS and FDS deprecated, RDSEED, CLFLUSHOPT.
pub(super) const FEATURES_7_EBX: u32 = bits(&[6, 9, 13, 18, 23]);
/// All of those are for programs.
pub(super) const PROGRAM_7_EBX: u32 = FEATURES_7_EBX;
/// Leaf 7 EBX, only [`CpuModel::Baseline`]: FSGSBASE, SMEP, INVPCID, SMAP.
pub(super) const BASELINE_7_EBX: u32 = bits(&[0, 7, 10, 20]);
/// Leaf 7 EDX: ARCH_CAPABILITIES.
pub(super) const FEATURES_7_EDX: u32 = bits(&[29]);
/// Leaf 0x8000_0001 ECX: LAHF, LZCNT, for programs.
pub(super) const EXTENDED_ECX: u32 = bits(&[0, 5]);
/// Leaf 0x8000_0001 EDX: SYSCALL, NX, long mode.
pub(super) const EXTENDED_EDX: u32 = bits(&[11, 20, 29]);
/// Leaf 0x8000_0001 EDX, only [`CpuModel::Baseline`]: 1 GiB pages, RDTSCP.
pub(super) const BASELINE_EXTENDED_EDX: u32 = bits(&[26, 27]);
/// KVM: NOP_IO_DELAY, CLOCKSOURCE2, CLOCKSOURCE_STABLE.
const KVM_FEATURES: u32 = bits(&[1, 3, 24]);

/// All leaves that answer something, and how many sub-leaves each has (0 for those without).
pub(super) const LEAVES: [(u32, u32); 26] = [
    (0, 0),
    (1, 0),
    (2, 0),
    (3, 0),
    (4, 4),
    (5, 0),
    (6, 0),
    (7, 1),
    (0xa, 0),
    (0xb, 3),
    (0xd, 2),
    (0x15, 0),
    (0x16, 0),
    (0x4000_0000, 0),
    (0x4000_0001, 0),
    (0x4000_0010, 0),
    (0x8000_0000, 0),
    (0x8000_0001, 0),
    (0x8000_0002, 0),
    (0x8000_0003, 0),
    (0x8000_0004, 0),
    (0x8000_0005, 0),
    (0x8000_0006, 0),
    (0x8000_0007, 0),
    (0x8000_0008, 0),
    (0x14, 0),
];

fn word(text: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    for (i, b) in bytes.iter_mut().enumerate() {
        *b = text.get(at + i).copied().unwrap_or(0);
    }
    u32::from_le_bytes(bytes)
}

/// EAX, EBX, ECX, EDX of leaf `leaf`, sub-leaf `sub`, for the processor `cpu`.
pub(super) fn leaf(cpu: &Identity, leaf: u32, sub: u32) -> [u32; 4] {
    let khz = cpu.tsc_khz;
    let id = cpu.id;
    // APIC ids count from 0: so many of their bits tell the cores of the one package apart.
    let core_bits = cpu.cpus.max(1).next_power_of_two().trailing_zeros();
    let cores = 1_u32 << core_bits;
    // With several logical processors in the package, leaf 1 says how many ids they may have.
    let several = if cpu.cpus > 1 { bits(&[28]) } else { 0 };
    let baseline = |bits: u32| if cpu.model == CpuModel::Baseline { bits } else { 0 };
    match leaf {
        0 => [MAX_BASIC, word(b"Genu", 0), word(b"ntel", 0), word(b"ineI", 0)],
        // Family 6, model 0x2c, stepping 2: the first generation with all of x86-64-v2.
        1 => [
            0x0002_06c2,
            id << 24 | cores << 16 | 8 << 8,
            FEATURES_ECX | baseline(BASELINE_ECX),
            FEATURES_EDX | several,
        ],
        2 => [0x0000_0001, 0, 0, 0],
        4 => match sub {
            // One level each of L1d, L1i (32 KiB, 8 ways), L2 (1 MiB, 16 ways), each core's own.
            0 => [0x21 | (cores - 1) << 26, 63 | 7 << 22, 63, 0],
            1 => [0x22 | (cores - 1) << 26, 63 | 7 << 22, 63, 0],
            2 => [0x43 | (cores - 1) << 26, 63 | 15 << 22, 1023, 0],
            _ => [0; 4],
        },
        5 => [64, 64, 3, 0],
        6 => [bits(&[2]), 0, 0, 0],
        7 if sub == 0 => [0, FEATURES_7_EBX | baseline(BASELINE_7_EBX), 0, FEATURES_7_EDX],
        0xb => match sub {
            0 => [0, 1, 0x100, id],
            1 => [core_bits, cpu.cpus, 0x201, id],
            _ => [0, 0, sub & 0xff, id],
        },
        // The crystal is the APIC timer's.
        0x15 => [APIC_TIMER_KHZ, khz, APIC_TIMER_KHZ * 1000, 0],
        0x16 => [khz / 1000, khz / 1000, 100, 0],
        0x4000_0000 => [MAX_KVM, word(b"KVMK", 0), word(b"VMKV", 0), word(b"M\0\0\0", 0)],
        0x4000_0001 => [KVM_FEATURES, 0, 0, 0],
        0x4000_0010 => [khz, APIC_TIMER_KHZ, 0, 0],
        0x8000_0000 => [MAX_EXTENDED, 0, 0, 0],
        0x8000_0001 => [0, 0, EXTENDED_ECX, EXTENDED_EDX | baseline(BASELINE_EXTENDED_EDX)],
        0x8000_0002..=0x8000_0004 => {
            let at = (leaf - 0x8000_0002) as usize * 16;
            [word(BRAND, at), word(BRAND, at + 4), word(BRAND, at + 8), word(BRAND, at + 12)]
        }
        0x8000_0006 => [0, 0, 0x0400_8040, 0],
        // 46 physical, 48 linear address bits.
        0x8000_0008 => [48 << 8 | 46, 0, 0, 0],
        _ => [0; 4],
    }
}
