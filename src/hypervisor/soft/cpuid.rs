//! What CPUID answers: the processor model, and what follows from the processor's registers.

use crate::arch::x86_64::cr4;
use crate::hypervisor::model;

use super::cpu::Cpu;

/// Leaf 1 ECX: the kernel has turned XSAVE on.
const OSXSAVE: u32 = 1 << 27;

/// EAX, EBX, ECX, EDX of leaf `leaf`, sub-leaf `sub`.
pub(super) fn leaf(cpu: &Cpu, leaf: u32, sub: u32) -> [u32; 4] {
    let identity = model::Identity { model: cpu.model, id: cpu.id, cpus: cpu.cpus, tsc_khz: cpu.tsc_khz };
    let mut words = model::leaf(&identity, leaf, sub);
    if leaf == 1 && cpu.cr4 & cr4::OSXSAVE != 0 {
        words[2] |= OSXSAVE;
    }
    words
}
