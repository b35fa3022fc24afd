//! The differences between two outcomes, as text.

use std::fmt::Write;

use iced_x86::Mnemonic;

use super::{ARENA, ARENA_LEN, Case, Fault, Outcome, Reference, undefined};
use crate::arch::x86_64::{rflags, vector};

const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
/// What a handler under KVM sees besides; in a process RF depends on how the state was read, IF and IOPL are
/// the kernel's.
const SYSTEM_FLAGS: u64 = rflags::RF | rflags::IF | rflags::IOPL | rflags::VM | rflags::VIF | rflags::VIP;
const FLAGS: u64 = rflags::STATUS | rflags::DF | rflags::NT | rflags::AC | rflags::ID | rflags::TF;

/// Everything in which `soft` differs from `host`, which ran on `reference`, one a line; empty when they agree.
pub(super) fn differences(
    reference: Reference,
    case: &Case,
    host: &Outcome,
    soft: &Outcome,
    host_memory: &[u8; ARENA_LEN],
    soft_memory: &[u8; ARENA_LEN],
) -> String {
    let mut out = String::new();
    let last = case.units.last().map_or(Mnemonic::INVALID, |u| u.code.mnemonic());
    // With a fault in any of several steps, only that both fault is certain.
    let offset = host.cpu.rip.wrapping_sub(case.entry);
    let culprit = case.units.iter().find(|u| offset < u.end as u64).map_or(last, |u| u.code.mnemonic());
    let steps = undefined::many_steps(culprit) && host.fault.is_some() && soft.fault.is_some();
    if !steps
        && !made_by_kvm(reference, host.fault, soft.fault)
        && !same_fault(reference, host.fault, soft.fault)
    {
        let _ = writeln!(out, "  fault: host {:x?} soft {:x?}", host.fault, soft.fault);
    }
    let (a, b) = (&host.cpu, &soft.cpu);
    if a.rip != b.rip && (host.fault.is_some() || soft.fault.is_some()) {
        let _ = writeln!(out, "  rip: host {:x} soft {:x}", a.rip, b.rip);
    }
    for (name, (x, y)) in GPR.iter().zip(a.gpr.iter().zip(&b.gpr)) {
        if x != y {
            let _ = writeln!(out, "  {name}: host {x:016x} soft {y:016x}");
        }
    }
    let open = match host.fault {
        None => case.units.last().map_or(0, |u| u.undefined),
        Some(_) => case.units.iter().fold(0, |all, u| all | u.undefined),
    };
    let flags = if reference == Reference::Process { FLAGS } else { FLAGS | SYSTEM_FLAGS };
    let mask = flags & !open;
    if (a.rflags ^ b.rflags) & mask != 0 {
        let _ = writeln!(
            out,
            "  rflags: host {:x} soft {:x}, differ in {}",
            a.rflags,
            b.rflags,
            flag_names((a.rflags ^ b.rflags) & mask)
        );
    }
    let mmx = host.fault.is_some() && case.units.iter().any(|u| format!("{:?}", u.code).contains("_mm"));
    fpu(&mut out, last, mmx, host, soft);
    if !steps && host_memory != soft_memory {
        let mut lines = 0;
        for i in (0..ARENA_LEN).step_by(8) {
            let (x, y) = (&host_memory[i..i + 8], &soft_memory[i..i + 8]);
            if x != y && lines < 12 {
                lines += 1;
                let _ = writeln!(out, "  [{:x}]: host {x:02x?} soft {y:02x?}", ARENA + i as u64);
            }
        }
    }
    out
}

fn made_by_kvm(reference: Reference, host: Option<Fault>, soft: Option<Fault>) -> bool {
    matches!(reference, Reference::Kvm(quirks) if quirks.made(host, soft))
}

fn same_fault(reference: Reference, a: Option<Fault>, b: Option<Fault>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) if a.vector == vector::PF && b.vector == vector::PF => {
            // The host's kernel reports every address that is not a program's as present.
            let present = u32::from(reference == Reference::Process && a.cr2 >= 0x7fff_ffff_f000);
            a.error | present == b.error | present && a.cr2 == b.cr2
        }
        (Some(a), Some(b)) => a.vector == b.vector && a.error == b.error,
        (None, None) => true,
        _ => false,
    }
}

fn fpu(out: &mut String, last: Mnemonic, mmx: bool, host: &Outcome, soft: &Outcome) {
    let (a, b) = (&host.cpu.fpu, &soft.cpu.fpu);
    let x87 = undefined::approximate(last) && !undefined::reciprocal(last);
    // C1 of an approximation tells which way it was rounded.
    let mut status = if x87 { !(1 << 9) } else { !0 };
    // One unit apart on both sides of the smallest normal number, only one of them has underflowed.
    if x87 && a.st.iter().zip(&b.st).any(|(x, y)| x != y && at_underflow(*x, *y)) {
        status &= !(1 << 4);
    }
    let mut tag = !0;
    // An MMX store that faults has already emptied the way for MMX on some processors.
    if matches!(soft.fault, Some(f) if matches!(f.vector, vector::PF | vector::GP | vector::SS)) && mmx {
        status &= !0x3800;
        tag = 0;
    }
    for (name, x, y, mask) in [
        ("fcw", a.control, b.control, !0),
        ("fsw", a.status, b.status, status),
        ("ftw", a.tag.into(), b.tag.into(), tag),
    ] {
        if (x ^ y) & mask != 0 {
            let _ = writeln!(out, "  {name}: host {x:04x} soft {y:04x}");
        }
    }
    if a.mxcsr != b.mxcsr {
        let _ = writeln!(out, "  mxcsr: host {:04x} soft {:04x}", a.mxcsr, b.mxcsr);
    }
    for (name, x, y) in [("fop", a.opcode.into(), b.opcode.into()), ("fip", a.ip, b.ip), ("fdp", a.dp, b.dp)]
    {
        // Pointers that no program can have are cut to the bits there are.
        if (x ^ y) << 16 != 0 {
            let _ = writeln!(out, "  {name}: host {x:x} soft {y:x}");
        }
    }
    for i in 0..8 {
        let (x, y) = (a.st[i], b.st[i]);
        if x != y && !(x87 && one_ulp(x, y)) {
            let st = (i + 8 - usize::from(a.status >> 11 & 7)) & 7;
            let _ =
                writeln!(out, "  st{st} (r{i}): host {:04x}:{:016x} soft {:04x}:{:016x}", x.1, x.0, y.1, y.0);
        }
    }
    for (i, (x, y)) in a.xmm.iter().zip(&b.xmm).enumerate() {
        if x != y && !(undefined::reciprocal(last) && close(*x, *y)) {
            let _ = writeln!(out, "  xmm{i}: host {x:032x} soft {y:032x}");
        }
    }
}

/// Two 80-bit values next to each other.
fn one_ulp(a: (u64, u16), b: (u64, u16)) -> bool {
    let flat = |v: (u64, u16)| {
        let magnitude = (u128::from(v.1 & 0x7fff) << 63 | u128::from(v.0 & !(1 << 63))) as i128;
        if v.1 & 0x8000 != 0 { -magnitude } else { magnitude }
    };
    (a.0 >> 63 == b.0 >> 63 || at_underflow(a, b)) && (flat(a) - flat(b)).abs() <= 1
}

/// The smallest normal 80-bit number and the largest denormal one.
fn at_underflow(a: (u64, u16), b: (u64, u16)) -> bool {
    let smallest = |v: (u64, u16)| (v.1 & 0x7fff, v.0) == (1, 1 << 63);
    let largest = |v: (u64, u16)| (v.1 & 0x7fff, v.0) == (0, u64::MAX >> 1);
    a.1 >> 15 == b.1 >> 15 && (smallest(a) && largest(b) || smallest(b) && largest(a))
}

/// Four singles that agree to what the manual promises for both: 1.5 * 2^-12, twice.
fn close(a: u128, b: u128) -> bool {
    (0..4).all(|lane| {
        let (x, y) = ((a >> (32 * lane)) as u32, (b >> (32 * lane)) as u32);
        let (fx, fy) = (f64::from(f32::from_bits(x)), f64::from(f32::from_bits(y)));
        x == y || fx.is_finite() && fy.is_finite() && (fx - fy).abs() <= fx.abs() * 3.0 / 4096.0
    })
}

fn flag_names(bits: u64) -> String {
    [
        ("CF", rflags::CF),
        ("PF", rflags::PF),
        ("AF", rflags::AF),
        ("ZF", rflags::ZF),
        ("SF", rflags::SF),
        ("TF", rflags::TF),
        ("DF", rflags::DF),
        ("OF", rflags::OF),
        ("NT", rflags::NT),
        ("AC", rflags::AC),
        ("ID", rflags::ID),
        ("RF", rflags::RF),
        ("IF", rflags::IF),
        ("IOPL", rflags::IOPL),
        ("VM", rflags::VM),
        ("VIF", rflags::VIF),
        ("VIP", rflags::VIP),
    ]
    .iter()
    .filter(|(_, bit)| bits & bit != 0)
    .map(|(name, _)| *name)
    .collect::<Vec<_>>()
    .join(" ")
}
