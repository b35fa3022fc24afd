//! What Linux's kvm_pvm does otherwise than processors do, program by program, each with the reason.
//!
//! It has the guest's ring 0, and with it the delivery of exceptions and all that a program's #GP leads to,
//! done by software of its own. Nothing here is excused on a KVM without [`Quirks::emulates_gp`].

use super::super::quirks::Quirks;
use super::world::KERNEL;
use super::{Program, Seen};
use crate::arch::x86_64::{rflags, vector};

/// Why `program` cannot be compared on a KVM with these faults; `None` where it must be.
pub(super) fn excuse(quirks: Quirks, program: &Program, soft: &Seen, kvm: &Seen) -> Option<&'static str> {
    if !quirks.emulates_gp {
        return None;
    }
    let name = program.name.as_str();
    let starts = |words: &[&str]| words.iter().any(|w| name.starts_with(w));
    let says = |words: &[&str]| words.iter().any(|w| name.contains(w));
    let gp = soft.vector == vector::GP;
    if without_flags(soft) == without_flags(kvm) && soft.vector == kvm.vector {
        // Volume 3, "Flag usage in exception- or interrupt-handler procedures": TF, NT, RF and VM (and IF)
        // are cleared, AC is not; and what is pushed is EFLAGS as it was.
        return Some("delivery clears AC, pushes no NT, and IOPL is always 0");
    }
    if quirks.no_32_bit_code && program.bits == 32 {
        return Some("32-bit code is emulated");
    }
    if quirks.own_gdt && starts(&["lar", "lsl", "ver"]) {
        return Some("programs see the hypervisor's GDT");
    }
    if starts(&["load", "pop", "lss", "lfs", "mov ds", "mov ss"])
        && without_segments(soft) == without_segments(kvm)
    {
        return Some("segments loaded by programs are not in the state that KVM gives");
    }
    if kvm.vector == vector::UD && kvm.frame.first() == Some(&program.start()) {
        if starts(&["int", "single step: int"]) {
            return Some("the emulator has no INT n");
        }
        if starts(&["far", "jmp far", "call far"]) {
            return Some("the emulator has no system descriptors in far transfers");
        }
        if gp && starts(&["fp: ldmxcsr of", "fp: paddb"]) {
            return Some("#GP of an instruction that the emulator lacks becomes #UD");
        }
    }
    if kvm.vector == vector::BP && says(&["int3, closed", "int 3, closed"]) {
        return Some("INT3 comes by the host's gate, whose privilege is open");
    }
    if says(&[
        ", TS",
        "TS and MP",
        ", EM",
        "EM and TS",
        "OSFXSR",
        "OSXMMEXCPT",
        "OSXSAVE",
        "FSGSBASE",
        "TSD",
        "without AM",
    ]) {
        return Some("what CR0 and CR4 take from programs is the host's choice");
    }
    if says(&["IOPL 3"]) {
        return Some("IOPL is always 0");
    }
    if says(&["fxsave, misaligned"]) && gp || name == "alignment: sldt" && soft.vector == vector::AC {
        // SLDT is emulated because of the host's UMIP.
        return Some("the emulator does not check alignment");
    }
    if says(&["across the edge"]) && kvm.vector == vector::PF {
        return Some("the emulator looks at the first byte's address only");
    }
    if name == "invalid: mov from cr1" && kvm.vector == vector::GP {
        // A process of the host gets #UD.
        return Some("the emulator checks the privilege before the register's number");
    }
    let (a, b) = (soft.error.unwrap_or(0), kvm.error.unwrap_or(0));
    if soft.vector == vector::PF
        && kvm.vector == vector::PF
        && soft.cr2 >= KERNEL
        && soft.cr2 == kvm.cr2
        && (a ^ b) & !9 == 0
    {
        // With and without the same program having run before.
        return Some("present and reserved bit of faults in the kernel's half are the shadow tables'");
    }
    if says(&["iretq", "iretd"]) {
        // NT, types, L and D, canonical addresses, the order of checks, accessed bits, the LDT: a process of
        // the host and the manual's pseudocode (volume 2, IRET) agree with the software CPU.
        return Some("IRET is emulated with fewer checks");
    }
    None
}

fn without_segments(seen: &Seen) -> Seen {
    Seen { seg: Default::default(), ..seen.clone() }
}

/// What is seen but for the flags that this KVM never hands on.
fn without_flags(seen: &Seen) -> Seen {
    let mut seen = seen.clone();
    let lost = rflags::NT | rflags::IOPL;
    if let Some(flags) = seen.frame.get_mut(2) {
        *flags &= !lost;
    }
    seen.flags &= !(lost | rflags::AC);
    // A PUSHF of the program.
    if let Some(word) = seen.memory.get_mut(super::world::STACK_WORD) {
        // PUSHFQ's is all of it, PUSHFW's the last two bytes.
        let at = if seen.frame.get(3).is_some_and(|rsp| rsp % 8 == 6) { 7 } else { 1 };
        word[at] &= !((lost >> 8) as u8);
    }
    seen
}
