//! The processor model: what CPUID answers.
//!
//! x86-64-v2 and what kernels use beside it (SMEP, SMAP, PCID, FSGSBASE, RDRAND), with KVM's
//! paravirtual leaves, so that a guest finds its clock and every frequency without calibrating.

use crate::arch::x86_64::cr4;
use crate::sys::clock::TSC_HZ;

use super::cpu::Cpu;

const MAX_BASIC: u32 = 0x16;
const MAX_EXTENDED: u32 = 0x8000_0008;
const MAX_KVM: u32 = 0x4000_0010;

const BRAND: &[u8; 48] = b"cc software CPU, x86-64-v2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A word with these bits set.
const fn bits(list: &[u32]) -> u32 {
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
const FEATURES_EDX: u32 =
    bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26]);
/// Leaf 1 ECX: SSE3 PCLMULQDQ SSSE3 CX16 PCID SSE4.1 SSE4.2 x2APIC MOVBE POPCNT TSC-deadline AES
/// RDRAND hypervisor.
const FEATURES_ECX: u32 = bits(&[0, 1, 9, 13, 17, 19, 20, 21, 22, 23, 24, 25, 30, 31]);
/// Leaf 7 EBX: FSGSBASE, FDP_EXCPTN_ONLY, SMEP, ERMS, INVPCID, FCS and FDS deprecated, RDSEED, SMAP,
/// CLFLUSHOPT.
const FEATURES_7_EBX: u32 = bits(&[0, 6, 7, 9, 10, 13, 18, 20, 23]);
/// Leaf 7 EDX: ARCH_CAPABILITIES.
const FEATURES_7_EDX: u32 = bits(&[29]);
/// KVM: NOP_IO_DELAY, CLOCKSOURCE2, CLOCKSOURCE_STABLE.
const KVM_FEATURES: u32 = bits(&[1, 3, 24]);

fn word(text: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    for (i, b) in bytes.iter_mut().enumerate() {
        *b = text.get(at + i).copied().unwrap_or(0);
    }
    u32::from_le_bytes(bytes)
}

/// EAX, EBX, ECX, EDX of leaf `leaf`, sub-leaf `sub`.
pub(super) fn leaf(cpu: &Cpu, leaf: u32, sub: u32) -> [u32; 4] {
    let khz = (TSC_HZ / 1000) as u32;
    // APIC ids count from 0: so many of their bits tell the cores of the one package apart.
    let core_bits = cpu.cpus.max(1).next_power_of_two().trailing_zeros();
    let cores = 1u32 << core_bits;
    match leaf {
        0 => [MAX_BASIC, word(b"Genu", 0), word(b"ntel", 0), word(b"ineI", 0)],
        1 => {
            // Family 6, model 0x2c, stepping 2: the first generation with all of x86-64-v2.
            let mut ecx = FEATURES_ECX;
            if cpu.cr4 & cr4::OSXSAVE != 0 {
                ecx |= 1 << 27;
            }
            // With several logical processors in the package, EBX says how many ids they may have.
            let several = if cpu.cpus > 1 { bits(&[28]) } else { 0 };
            [0x0002_06c2, cpu.id << 24 | cores << 16 | 8 << 8, ecx, FEATURES_EDX | several]
        }
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
        7 if sub == 0 => [0, FEATURES_7_EBX, 0, FEATURES_7_EDX],
        0xb => match sub {
            0 => [0, 1, 0x100, cpu.id],
            1 => [core_bits, cpu.cpus, 0x201, cpu.id],
            _ => [0, 0, sub & 0xff, cpu.id],
        },
        // The crystal is the TSC is the APIC timer: 1 : 1.
        0x15 => [1, 1, TSC_HZ as u32, 0],
        0x16 => [khz / 1000, khz / 1000, 100, 0],
        0x4000_0000 => [MAX_KVM, word(b"KVMK", 0), word(b"VMKV", 0), word(b"M\0\0\0", 0)],
        0x4000_0001 => [KVM_FEATURES, 0, 0, 0],
        0x4000_0010 => [khz, khz, 0, 0],
        0x8000_0000 => [MAX_EXTENDED, 0, 0, 0],
        // LAHF, LZCNT; SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
        0x8000_0001 => [0, 0, bits(&[0, 5]), bits(&[11, 20, 26, 27, 29])],
        0x8000_0002..=0x8000_0004 => {
            let at = (leaf - 0x8000_0002) as usize * 16;
            [word(BRAND, at), word(BRAND, at + 4), word(BRAND, at + 8), word(BRAND, at + 12)]
        }
        0x8000_0006 => [0, 0, 0x0400_8040, 0],
        // Invariant TSC.
        0x8000_0007 => [0, 0, 0, bits(&[8])],
        // 46 physical, 48 linear address bits.
        0x8000_0008 => [48 << 8 | 46, 0, 0, 0],
        _ => [0; 4],
    }
}
