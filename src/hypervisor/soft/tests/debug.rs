//! Single steps, shadows of STI and MOV SS, and NMIs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use iced_x86::code_asm::*;

use crate::arch::x86_64::{gpr, rflags, seg, vector};
use crate::hypervisor::{Exit, Vcpu};

use super::attention::FakeApic;
use super::support::*;
use super::{CODE, HANDLERS, Machine, NoIo};

/// Makes the #DB handler count in R15 and note in R14 the last address, then return.
fn counting(m: &Machine) {
    m.write(
        HANDLERS + 16,
        &asm_at(HANDLERS + 16, |a| {
            a.inc(r15)?;
            a.mov(r14, qword_ptr(rsp))?;
            a.iretq()
        }),
    );
}

#[test]
fn a_step_traps_after_every_instruction() {
    let mut m = Machine::new();
    m.state.rflags |= rflags::TF;
    let code = asm(|a| {
        a.inc(eax)?;
        a.ud2()
    });
    let s = m.run(&code);
    let f = m.frame(&s);
    assert_eq!((f.vector, f.rip), (vector::DB, CODE + 2));
    assert_eq!(f.flags & (rflags::TF | rflags::RF), rflags::TF);
    assert_eq!(s.dr[4] & 0xf00f, 1 << 14, "DR6.BS");
    assert_eq!(s.rflags & rflags::TF, 0);
}

#[test]
fn popf_and_iret_step_from_the_instruction_after_the_next() {
    let mut m = Machine::new();
    counting(&m);
    let code = asm(|a| {
        a.push(0x102)?;
        a.popfq()?;
        a.nop()?;
        a.nop()?;
        a.push(2)?;
        a.popfq()?;
        a.nop()?;
        a.hlt()
    });
    let s = m.run(&code);
    // After both NOPs, the PUSH, and the POPF that ends it.
    assert_eq!(s.gpr[15], 4);
    assert_eq!(s.gpr[14], CODE + code.len() as u64 - 2);
}

#[test]
fn every_element_of_a_string_operation_is_a_step() {
    let mut m = Machine::new();
    counting(&m);
    m.state.rflags |= rflags::TF;
    m.state.gpr[gpr::RCX] = 5;
    m.state.gpr[gpr::RDI] = 0x30_0000;
    m.state.gpr[gpr::RSI] = 0x31_0000;
    let s = m.run(&[0xf3, 0xa4, 0x0f, 0x0b]);
    assert_eq!((Machine::vector(&s), s.gpr[15], s.gpr[gpr::RCX]), (vector::UD as u64, 5, 0));
    let mut m = Machine::new();
    m.state.rflags |= rflags::TF;
    m.state.gpr[gpr::RCX] = 5;
    m.state.gpr[gpr::RDI] = 0x30_0000;
    let s = m.run(&[0xf3, 0xaa, 0xf4]);
    assert_eq!((m.frame(&s).rip, s.gpr[gpr::RCX]), (CODE, 4));
}

#[test]
fn a_step_does_not_reach_into_handlers_of_software_interrupts() {
    let mut m = Machine::new();
    m.state.rflags |= rflags::TF;
    let f = m.fault(&[0xcd, 0x80]);
    assert_eq!((f.vector, f.flags & rflags::TF), (0x80, rflags::TF));
}

#[test]
fn sfmask_keeps_steps_out_of_the_kernel_and_sysret_ends_the_step() {
    let mut m = Machine::new();
    counting(&m);
    let entry = CODE + 0x800;
    m.state.msrs.star = 0x0008 << 32 | 0x0013 << 48;
    m.state.msrs.lstar = entry;
    m.state.msrs.sfmask = rflags::TF | rflags::IF;
    m.write(entry, &asm_at(entry, |a| a.sysretq()));
    m.user();
    m.state.rflags |= rflags::TF;
    let code = asm(|a| {
        a.syscall()?;
        a.ud2()
    });
    let s = m.run(&code);
    assert_eq!(Machine::vector(&s), vector::UD as u64);
    assert_eq!((s.gpr[15], s.gpr[14]), (1, CODE + 2), "one trap, behind the SYSCALL");
    m.state.msrs.sfmask = 0;
    let s = m.run(&code);
    assert_eq!(s.gpr[15], 2, "unmasked: at the kernel's entry, too");
}

#[test]
fn mov_ss_holds_the_step_off_for_one_instruction() {
    let mut m = Machine::new();
    m.state.rflags |= rflags::TF;
    m.state.gpr[gpr::RAX] = 0x10;
    let code = asm(|a| {
        a.mov(ss, eax)?;
        a.inc(ebx)?;
        a.ud2()
    });
    let f = m.fault(&code);
    assert_eq!((f.vector, f.rip), (vector::DB, CODE + code.len() as u64 - 2));
}

fn with_apic() -> (Machine, Arc<FakeApic>) {
    let apic = Arc::new(FakeApic::default());
    let mut m = Machine::new();
    m.attach(apic.clone());
    (m, apic)
}

#[test]
fn sti_and_mov_ss_shadow_one_instruction() {
    let (mut m, apic) = with_apic();
    let code = asm(|a| {
        a.sti()?;
        a.inc(ebx)?;
        a.inc(ecx)?;
        a.inc(edx)?;
        a.ud2()
    });
    apic.post(0x40);
    let f = m.fault(&code);
    assert_eq!((f.vector, f.rip, f.flags & rflags::IF), (0x40, CODE + 3, rflags::IF));
    // STI again when interrupts are on already makes no shadow.
    m.state.rflags |= rflags::IF;
    apic.post(0x40);
    assert_eq!(m.fault(&code).rip, CODE);
    let mov_ss = asm(|a| {
        a.sti()?;
        a.mov(ss, eax)?;
        a.inc(ebx)?;
        a.ud2()
    });
    m.state.rflags &= !rflags::IF;
    m.state.gpr[gpr::RAX] = 0x10;
    apic.post(0x40);
    assert_eq!(m.fault(&mov_ss).rip, CODE + 5, "one shadow behind the other");
    let pop_ss = asm32(CODE, |a| {
        a.push(0x10)?;
        a.sti()?;
        a.pop(ss)?;
        a.inc(ebx)?;
        a.ud2()
    });
    m.state.seg[seg::CS].attributes = 0xc09b;
    apic.post(0x40);
    assert_eq!(m.fault(&pop_ss).rip, CODE + pop_ss.len() as u64 - 2);
}

#[test]
fn a_second_nmi_waits_for_iret_even_one_that_faults() {
    let (mut m, apic) = with_apic();
    // The handler counts, lets the other NMI come in, and returns.
    m.write(
        HANDLERS + 32,
        &asm_at(HANDLERS + 32, |a| {
            a.inc(ebx)?;
            a.mov(rcx, rbx)?;
            a.iretq()
        }),
    );
    apic.nmis.store(2, Ordering::SeqCst);
    let s = m.run(&asm(|a| {
        a.mov(rdx, rbx)?;
        a.hlt()
    }));
    assert_eq!((s.gpr[gpr::RBX], s.gpr[gpr::RDX]), (2, 2), "one after the other, both before the code");
    assert!(!s.nmi_blocked);
    // Blocked from the start: a faulting IRET lets it in.
    let (mut m, apic) = with_apic();
    m.state.nmi_blocked = true;
    apic.nmis.store(1, Ordering::SeqCst);
    let bad = asm(|a| {
        a.nop()?;
        a.push(0)?;
        a.push(0)?;
        a.push(2)?;
        a.push(0)?;
        a.push(0)?;
        a.iretq()
    });
    let f = m.fault(&bad);
    assert_eq!(f.vector, vector::NMI);
    assert_eq!(f.rip, HANDLERS + 16 * 13, "in front of the #GP handler");
    m.state.nmi_blocked = true;
    apic.nmis.store(1, Ordering::SeqCst);
    let s = m.run(&[0x90, 0xf4]);
    assert!(s.nmi_blocked && s.nmi_pending, "held for later");
}

#[test]
fn an_nmi_wakes_hlt_with_interrupts_off() {
    let (mut m, apic) = with_apic();
    m.write(CODE, &[0xf4]);
    m.vcpu.set_state(&m.state).unwrap();
    assert_eq!(m.vcpu.run(&NoIo).unwrap(), Exit::Halted);
    apic.nmis.store(1, Ordering::SeqCst);
    assert_eq!(m.vcpu.run(&NoIo).unwrap(), Exit::Halted);
    let s = m.vcpu.state().unwrap();
    assert_eq!((Machine::vector(&s), m.frame(&s).rip), (vector::NMI as u64, CODE + 1));
}
