//! What a KVM does that no processor does, found by trying it, and what cannot be compared for that reason.
//!
//! Linux's kvm_pvm, which needs no virtualization in the processor, runs a guest's programs as programs of the
//! host. Every #GP of theirs goes through its emulator of instructions, 32-bit code does so altogether, and
//! segments are those of its own GDT. On a KVM without these faults nothing is excluded.

use iced_x86::Mnemonic;

use super::guest::Guest;
use super::{ARENA, ARENA_LEN, CODE, Case, CpuImage, Fault, Outcome, Side, USER_CS32};
use crate::arch::x86_64::{gpr, rflags, vector};

/// First address that no program can have.
const EDGE: u64 = 0x0000_8000_0000_0000;

/// Faults of a KVM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Quirks {
    /// It emulates the instruction that raised #GP, and makes #UD of those that its emulator does not know.
    pub(super) emulates_gp: bool,
    /// 32-bit code is emulated, without most of its instructions.
    pub(super) no_32_bit_code: bool,
    /// Programs see the segments of the hypervisor's GDT.
    pub(super) own_gdt: bool,
}

impl Quirks {
    /// Finds those of the KVM behind `guest`.
    pub(super) fn find(guest: &mut Guest) -> Self {
        // paddb xmm0, [rsp + 8]: misaligned, so #GP(0) (Intel's manual, volume 2, exceptions of type 4).
        let (misaligned, _) = try_one(guest, 64, &[0x66, 0x0f, 0xfc, 0x44, 0x24, 0x08]);
        // pxor xmm0, xmm0
        let (pxor, _) = try_one(guest, 32, &[0x66, 0x0f, 0xef, 0xc0]);
        // mov eax, USER_CS32; verr ax: a readable segment of the guest's GDT.
        let (_, flags) = try_one(guest, 64, &[0xb8, USER_CS32 as u8, 0, 0, 0, 0x0f, 0x00, 0xe0]);
        Self {
            emulates_gp: misaligned.is_some_and(|f| f.vector == vector::UD),
            no_32_bit_code: pxor.is_some(),
            own_gdt: flags & rflags::ZF == 0,
        }
    }

    /// Whether nothing can be learnt from `case`, on which the software CPU did what `soft` says.
    pub(super) fn forbids(self, case: &Case, soft: &Outcome) -> bool {
        use Mnemonic as M;
        let asks = |m| matches!(m, M::Lar | M::Lsl | M::Verr | M::Verw);
        // The emulator has these and does not check their address.
        let lax = |m| matches!(m, M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64);
        // Mostly #UD at it, sometimes whatever the instruction behind it does.
        let int = self.emulates_gp && culprit_is_int(case, soft);
        let offset = soft.cpu.rip.wrapping_sub(case.entry);
        let culprit = case.units.iter().find(|u| offset < u.end as u64).map(|u| u.code.mnemonic());
        int || self.own_gdt && case.units.iter().any(|u| asks(u.code.mnemonic()))
            || self.emulates_gp && is_gp(soft.fault) && culprit.is_some_and(lax)
    }

    /// Whether `kvm` is what the emulator makes of the #GP(0) that `soft` is.
    pub(super) fn made(self, kvm: Option<Fault>, soft: Option<Fault>) -> bool {
        // INT n is #GP with an error code, and the emulator does not know it either.
        let gp = |f: Fault| f.vector == vector::GP && (f.error == 0 || f.error & 7 == 2);
        let Some(kvm) = kvm.filter(|_| self.emulates_gp && soft.is_some_and(gp)) else { return false };
        let unknown = kvm.vector == vector::UD;
        // It looks at the first byte's address only, and finds no page there.
        let half = kvm.vector == vector::PF && kvm.error & 1 == 0 && (EDGE - 16..EDGE).contains(&kvm.cr2);
        // It heeds an SS prefix, which 64-bit code has not (volume 1, "Segmentation in IA-32e mode").
        let stack = kvm.vector == vector::SS && kvm.error == 0 && is_gp(soft);
        unknown || half || stack
    }
}

fn culprit_is_int(case: &Case, soft: &Outcome) -> bool {
    let offset = soft.cpu.rip.wrapping_sub(case.entry);
    let unit = case.units.iter().find(|u| offset < u.end as u64);
    let gp = soft.fault.is_some_and(|f| f.vector == vector::GP && f.error & 7 == 2);
    gp && unit.is_some_and(|u| u.code.mnemonic() == Mnemonic::Int)
}

fn is_gp(fault: Option<Fault>) -> bool {
    fault.is_some_and(|f| f.vector == vector::GP && f.error == 0)
}

/// How `code` ends, and its flags.
fn try_one(guest: &mut Guest, bits: u32, code: &[u8]) -> (Option<Fault>, u64) {
    let mut cpu = CpuImage { rip: CODE, rflags: rflags::FIXED | rflags::IF, ..CpuImage::default() };
    cpu.gpr[gpr::RSP] = ARENA + 0x3000;
    let case = Case { bits, entry: CODE, bytes: code.to_vec(), units: Vec::new(), cpu, patches: Vec::new() };
    let end = guest.run(&case, &[0; ARENA_LEN]);
    (end.fault, end.cpu.rflags)
}
