//! The portable state: moved between vCPUs at any instruction, and refused when it cannot be.

use std::sync::Arc;

use iced_x86::code_asm::*;

use crate::arch::x86_64::{VcpuState, cr0, cr4, efer, gpr, rflags, seg};
use crate::hypervisor::{Exit, Vcpu};
use crate::sys::clock::Clock;

use super::super::cpu::Setup;
use super::super::run::SoftVcpu;
use super::support::*;
use super::{CODE, HANDLERS, Machine, NoIo};

#[test]
fn a_state_comes_back_as_it_was_set() {
    let mut m = Machine::new();
    m.state.gpr = std::array::from_fn(|i| 0x1234_5678_9abc_0000 + i as u64);
    m.state.rflags |= rflags::STATUS | rflags::DF | rflags::IF | rflags::AC;
    m.state.dr = [1, 2, 3, 4, 0xffff_0ff1, 0x455];
    m.state.cr2 = 0x5555;
    m.state.xcr0 = 1;
    m.state.ldtr.selector = 0x30;
    m.state.fpu.xmm[15] = 77;
    m.state.fpu.st[3] = (5, 6);
    m.state.msrs.tsc_aux = 9;
    m.state.msrs.lstar = 0xffff_8000_0000_1234;
    m.state.halted = true;
    m.state.interrupt_shadow = true;
    m.state.nmi_blocked = true;
    m.state.nmi_pending = true;
    m.vcpu.set_state(&m.state).unwrap();
    assert_eq!(m.vcpu.state().unwrap(), m.state);
}

/// A program with arithmetic, memory, SSE, x87, calls to user code and back.
fn program() -> Vec<u8> {
    asm(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 20)?;
        a.mov(rax, 0x9e37_79b9_7f4a_7c15u64)?;
        a.fld1()?;
        a.cvtsi2sd(xmm1, ecx)?;
        a.set_label(&mut again)?;
        a.imul_2(rax, rax)?;
        a.add(rax, rcx)?;
        a.adc(rbx, rax)?;
        a.push(rbx)?;
        a.cvtsi2sd(xmm0, ecx)?;
        a.divsd(xmm1, xmm0)?;
        a.fadd(dword_ptr(rsp))?;
        a.pop(rdx)?;
        a.xor(rbx, rdx)?;
        a.rol(rdx, 7)?;
        a.add(rbx, rdx)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    })
}

#[test]
fn a_program_may_change_vcpus_after_every_instruction() {
    let code = program();
    let whole = Machine::new().run(&code);
    let mut m = Machine::new();
    m.write(CODE, &code);
    // The #DB handler stops each time; its IRET is done by hand on the next vCPU.
    m.state.rflags |= rflags::TF;
    let mut state = m.state.clone();
    let mut steps = 0;
    loop {
        let clock = Arc::new(Clock::new());
        let mut vcpu = SoftVcpu::new(Setup::alone(m.ram.clone(), clock)).unwrap();
        vcpu.set_state(&state).unwrap();
        assert_eq!(vcpu.run(&NoIo).unwrap(), Exit::Halted);
        state = vcpu.state().unwrap();
        assert_eq!(Machine::vector(&state), 1);
        let f = m.frame(&state);
        state.rip = f.rip;
        state.gpr[gpr::RSP] = f.rsp;
        state.rflags = f.flags;
        state.halted = false;
        steps += 1;
        if f.rip == CODE + code.len() as u64 {
            break;
        }
    }
    assert!(steps > 200, "{steps}");
    state.rflags &= !rflags::TF;
    state.dr = whole.dr;
    state.halted = whole.halted;
    assert_eq!(state, whole);
}

#[test]
fn a_halted_state_stays_halted_elsewhere() {
    let mut m = Machine::new();
    m.state.rflags |= rflags::IF;
    m.write(CODE, &[0xf4, 0x0f, 0x0b]);
    m.vcpu.set_state(&m.state).unwrap();
    m.vcpu.signal().kick();
    m.vcpu.run(&NoIo).unwrap();
    m.state.halted = true;
    m.state.rip = CODE + 1;
    let mut other = SoftVcpu::new(Setup::alone(m.ram.clone(), Arc::new(Clock::new()))).unwrap();
    other.set_state(&m.state).unwrap();
    let signal = other.signal();
    let kicker = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        signal.kick();
    });
    assert_eq!(other.run(&NoIo).unwrap(), Exit::Kicked);
    kicker.join().unwrap();
    assert_eq!(other.state().unwrap(), m.state);
    assert_ne!(other.state().unwrap().rip / 16, HANDLERS / 16);
}

#[test]
fn states_that_this_processor_cannot_have_are_refused() {
    type Spoil = fn(&mut VcpuState);
    let bad: [(&str, Spoil); 8] = [
        ("no paging", |s| s.cr0 &= !cr0::PG),
        ("no protection", |s| s.cr0 &= !cr0::PE),
        ("no long mode", |s| s.efer &= !efer::LMA),
        ("unknown EFER bits", |s| s.efer |= 1 << 12),
        ("no PAE", |s| s.cr4 &= !cr4::PAE),
        ("unknown CR4 bits", |s| s.cr4 |= cr4::OSXSAVE),
        ("virtual-8086 mode", |s| s.rflags |= rflags::VM),
        ("both code sizes", |s| s.seg[seg::CS].attributes |= 3 << 13),
    ];
    let mut m = Machine::new();
    m.vcpu.set_state(&m.state).unwrap();
    for (what, spoil) in bad {
        let mut state = m.state.clone();
        spoil(&mut state);
        assert!(m.vcpu.set_state(&state).is_err(), "{what}");
        assert_eq!(m.vcpu.state().unwrap(), m.state, "{what}: nothing has changed");
    }
}
