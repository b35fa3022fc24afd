//! Programs and their kernel: system calls, CPUID, and exceptions that only look like one of these.
//!
//! Each runs with traps ([`VmOptions::traps`]), which make up for a hypervisor that does these wrong and
//! must not be noticed anywhere else.
//!
//! [`VmOptions::traps`]: crate::hypervisor::VmOptions::traps

use iced_x86::code_asm::*;
use vm_memory::{Bytes, GuestAddress};

use super::{Backend, CODE, Machine, backends, user};
use crate::arch::x86_64::{VcpuState, gpr, rflags, seg, vector};
use crate::hypervisor::CpuModel;
use crate::hypervisor::model::{self, Identity};
use crate::memory::GuestRam;

/// Where programs are; the kernel's part of memory ends below.
const PROGRAM: u64 = 0x40_0000;
const PROGRAM_STACK: u64 = 0x60_0000;
/// The system call that ends the program.
const EXIT: u32 = 60;

/// A kernel at [`CODE`] that adds 3 to RAX, or ends, and a program.
fn machine(
    backend: Backend,
    traps: bool,
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Machine {
    let mut m = Machine::with(backend, GuestRam::new(64 << 20).unwrap(), traps);
    // The first 2 MiB are not for programs.
    let entry: u64 = m.read_u64(0x3000);
    m.ram.memory().write_obj(entry & !4, GuestAddress(0x3000)).unwrap();
    m.assemble(CODE, |a| {
        let mut end = a.create_label();
        a.cmp(eax, EXIT)?;
        a.je(end)?;
        a.add(rax, 3)?;
        a.sysretq()?;
        a.set_label(&mut end)?;
        a.out(0xf4, al)
    });
    m.assemble(PROGRAM, program);
    user(&mut m.state);
    m.state.rflags = rflags::FIXED;
    m.state.rip = PROGRAM;
    m.state.gpr[gpr::RSP] = PROGRAM_STACK;
    m.state.msrs.star = 0x0010_0008 << 32;
    m.state.msrs.lstar = CODE;
    m.state.msrs.sfmask = rflags::IF | rflags::DF;
    m
}

fn on_each(
    program: impl Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    check: impl Fn(&Machine, u64, &VcpuState),
) {
    for &backend in backends() {
        println!("on {backend:?}");
        let mut m = machine(backend, true, &program);
        let (result, state) = m.run();
        check(&m, result, &state);
        // The guest's handlers are its own again: mov al, vector.
        m.vm.time_paused();
        for vector in [vector::UD, vector::GP, vector::PF] {
            let handler = m.read_u64(0x9000 + 16 * u64::from(vector));
            assert_eq!(handler as u16, u16::from_le_bytes([0xb0, vector]));
        }
    }
}

#[test]
fn a_program_calls_its_kernel() {
    let program = |a: &mut CodeAssembler| {
        a.mov(eax, 39)?;
        a.std()?;
        a.syscall()?;
        a.mov(r12, rax)?;
        a.mov(r13, rcx)?;
        a.mov(r14, r11)?;
        a.pushfq()?;
        a.pop(r15)?;
        // Once more, from elsewhere.
        a.syscall()?;
        a.mov(rbx, rax)?;
        a.mov(eax, EXIT)?;
        a.syscall()
    };
    on_each(program, |_, result, state| {
        assert_eq!(result, u64::from(EXIT));
        assert_eq!((state.gpr[12], state.gpr[gpr::RBX]), (42, 45));
        assert_eq!(state.gpr[13], PROGRAM + 8, "RCX: behind the system call");
        assert_eq!(state.gpr[14] & rflags::DF, rflags::DF, "R11: the program's flags");
        assert_eq!(state.gpr[15] & rflags::DF, rflags::DF, "which it has again");
        assert_eq!(state.rflags & (rflags::DF | rflags::RF), 0, "and its kernel has not");
        assert_eq!(state.gpr[gpr::RSP], PROGRAM_STACK);
        assert_eq!(state.seg[seg::CS].selector, 8);
        assert_eq!(state.seg[seg::SS].selector, 0x10);
    });
}

#[test]
fn a_program_sees_the_model() {
    let program = |a: &mut CodeAssembler| {
        for (at, leaf) in [(0x50_0000, 1), (0x50_0010, 7), (0x50_0020, 0xd)] {
            a.mov(eax, leaf)?;
            a.xor(ecx, ecx)?;
            a.cpuid()?;
            a.mov(dword_ptr(at), eax)?;
            a.mov(dword_ptr(at + 4), ebx)?;
            a.mov(dword_ptr(at + 8), ecx)?;
            a.mov(dword_ptr(at + 12), edx)?;
        }
        a.mov(eax, EXIT)?;
        a.syscall()
    };
    on_each(program, |m, result, _| {
        assert_eq!(result, u64::from(EXIT));
        let cpu = Identity { model: CpuModel::Minimal, id: 0, cpus: 1, tsc_khz: 1 };
        for (at, leaf) in [(0x50_0000, 1), (0x50_0010, 7), (0x50_0020, 0xd)] {
            let [low, high] = [m.read_u64(at), m.read_u64(at + 8)];
            let found = [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32];
            assert_eq!(found, model::leaf(&cpu, leaf, 0), "leaf {leaf:#x}");
        }
    });
}

/// A jump to where SYSCALL leads, though not by SYSCALL.
#[test]
fn a_jump_into_the_kernel_is_a_page_fault() {
    let program = |a: &mut CodeAssembler| {
        a.mov(ecx, PROGRAM as u32)?;
        a.mov(rax, CODE)?;
        a.jmp(rax)
    };
    on_each(program, |m, result, state| {
        assert_eq!(result, u64::from(vector::PF));
        assert_eq!(state.cr2, CODE);
        let frame = state.gpr[gpr::RSP];
        assert_eq!(m.read_u64(frame), 0x15, "fetch, user, present");
        assert_eq!(m.read_u64(frame + 8), CODE);
        assert_eq!(m.read_u64(frame + 16), 0x23);
        assert_eq!(m.read_u64(frame + 32), PROGRAM_STACK);
    });
}

#[test]
fn other_exceptions_of_a_program_are_its_kernels() {
    let read = |a: &mut CodeAssembler| a.mov(eax, dword_ptr(0x30_0000_i64 - 0x20_0000));
    on_each(read, |m, result, state| {
        assert_eq!((result, state.cr2), (u64::from(vector::PF), 0x10_0000));
        assert_eq!(m.read_u64(state.gpr[gpr::RSP]), 5, "read, user, present");
        assert_eq!(m.read_u64(state.gpr[gpr::RSP] + 8), PROGRAM);
    });
    let privileged = |a: &mut CodeAssembler| a.hlt();
    on_each(privileged, |m, result, state| {
        assert_eq!(result, u64::from(vector::GP));
        assert_eq!(m.read_u64(state.gpr[gpr::RSP]), 0);
        assert_eq!(m.read_u64(state.gpr[gpr::RSP] + 8), PROGRAM);
    });
}

#[test]
fn a_program_raises_what_the_manual_says() {
    let raises = |vector: u8, error: Option<u64>, program: &dyn Fn(&mut CodeAssembler) -> _| {
        on_each(program, |m, result, state| {
            assert_eq!(result, u64::from(vector));
            let mut frame = state.gpr[gpr::RSP];
            if let Some(error) = error {
                assert_eq!(m.read_u64(frame), error);
                frame += 8;
            }
            assert_eq!(m.read_u64(frame), PROGRAM + 10, "of the instruction itself");
            assert_eq!(m.read_u64(frame + 8), 0x23);
            assert_eq!(m.read_u64(frame + 24), PROGRAM_STACK);
        });
    };
    let prologue = |a: &mut CodeAssembler| a.mov(rsi, 0x50_0001_u64 as i64);
    // A gate that is the kernel's own.
    raises(vector::GP, Some(0x80 * 8 + 2), &|a| {
        prologue(a)?;
        a.int(0x80)
    });
    raises(vector::GP, Some(0), &|a| {
        prologue(a)?;
        a.movaps(xmm0, xmmword_ptr(rsi))
    });
    raises(vector::UD, None, &|a| {
        prologue(a)?;
        a.ud2()
    });
}

/// A gate for programs.
#[test]
fn int_n_is_a_call_too() {
    for &backend in backends() {
        println!("on {backend:?}");
        let mut m = machine(backend, true, |a| {
            a.mov(eax, 5)?;
            a.int(0x80)
        });
        let gate = m.read_u64(0x8000 + 16 * 0x80);
        m.ram.memory().write_obj(gate | 3 << 45, GuestAddress(0x8000 + 16 * 0x80)).unwrap();
        let (result, state) = m.run();
        assert_eq!(result, 0x80);
        let frame = state.gpr[gpr::RSP];
        assert_eq!(m.read_u64(frame), PROGRAM + 7, "behind it");
        assert_eq!((m.read_u64(frame + 8), m.read_u64(frame + 24)), (0x23, PROGRAM_STACK));
    }
}

/// What the traps are for: without them a hypervisor that the probe finds fault with does not come back from the
/// program's first system call.
#[test]
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn without_traps_it_is_as_the_probe_says() {
    let verdict = match crate::hypervisor::probe::kvm() {
        Ok(verdict) => verdict,
        Err(e) => return println!("NOT RUN on KVM: {e}"),
    };
    let wrong = verdict.figures().refused.iter().any(|piece| piece == "system calls");
    let program = |a: &mut CodeAssembler| {
        a.mov(eax, EXIT)?;
        a.syscall()
    };
    let (result, _) = machine(Backend::Kvm, false, program).run();
    let expected = if wrong { u64::from(vector::PF) } else { u64::from(EXIT) };
    assert_eq!(result, expected, "{verdict}");
}
