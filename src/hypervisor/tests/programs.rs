//! Small programs: ports, device memory, exceptions, kicks, ends.

use std::sync::atomic::Ordering;
use std::time::Duration;

use iced_x86::code_asm::*;

use super::*;
use crate::arch::x86_64::vector;
use crate::hypervisor::model::{self, Identity};

#[test]
fn a_program_computes_and_ends() {
    on_each(|m| {
        m.assemble(CODE, |a| {
            a.mov(ecx, 1000)?;
            a.xor(eax, eax)?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.add(eax, ecx)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.mov(qword_ptr(0x30_0000), rax)?;
            a.out(0xf4, eax)
        });
        let (result, state) = m.run();
        assert_eq!(result, 500_500);
        assert_eq!(m.read_u64(0x30_0000), 500_500);
        assert_eq!(state.gpr[gpr::RAX], 500_500);
        assert_eq!(state.gpr[gpr::RCX], 0);
    });
}

#[test]
fn ports_and_device_memory_reach_their_devices() {
    on_each(|m| {
        m.assemble(CODE, |a| {
            // Single values of each width.
            a.mov(eax, 0x1234_5678)?;
            a.mov(edx, 0x501)?;
            a.out(dx, al)?;
            a.out(dx, ax)?;
            a.out(dx, eax)?;
            // A string of three.
            a.lea(rsi, qword_ptr(0x30_0000))?;
            a.mov(rax, 0x0605_0403_0201_u64)?;
            a.mov(qword_ptr(rsi), rax)?;
            a.mov(ecx, 3)?;
            a.rep().outsw()?;
            a.in_(al, dx)?;
            a.mov(byte_ptr(0x30_0100), al)?;
            // Device memory of each width.
            a.mov(rbx, DEVICE)?;
            a.mov(rax, 0x1122_3344_5566_7788_u64)?;
            a.mov(byte_ptr(rbx), al)?;
            a.mov(word_ptr(rbx + 2), ax)?;
            a.mov(dword_ptr(rbx + 4), eax)?;
            a.mov(qword_ptr(rbx + 8), rax)?;
            a.mov(ecx, dword_ptr(rbx + 4))?;
            a.mov(dword_ptr(0x30_0108), ecx)?;
            a.out(0xf4, al)
        });
        let (result, _) = m.run();
        assert_eq!(result, 0x88);
        let writes = m.io.writes.lock().unwrap().clone();
        assert_eq!(
            writes[..10],
            [
                (0x501, 0x78),
                (0x501, 0x5678),
                (0x501, 0x1234_5678),
                (0x501, 0x201),
                (0x501, 0x403),
                (0x501, 0x605),
                (DEVICE, 0x88),
                (DEVICE + 2, 0x7788),
                (DEVICE + 4, 0x5566_7788),
                (DEVICE + 8, 0x1122_3344_5566_7788),
            ]
        );
        assert_eq!(m.read_u64(0x30_0100) & 0xff, 1);
        assert_eq!(m.read_u64(0x30_0108) as u32, (DEVICE + 4).wrapping_mul(0x0101_0101) as u32);
    });
}

#[test]
fn exceptions_come_with_what_the_manual_says() {
    on_each(|m| {
        m.assemble(CODE, |a| a.ud2());
        assert_eq!(m.run().0, u64::from(vector::UD));

        m.assemble(CODE, |a| {
            a.xor(ecx, ecx)?;
            a.div(ecx)
        });
        let (result, state) = m.run();
        assert_eq!(result, u64::from(vector::DE));
        assert_eq!(m.read_u64(state.gpr[gpr::RSP]), CODE + 2, "the address of the instruction");

        // A write where there is no page, by a program.
        m.assemble(CODE, |a| {
            a.mov(rax, 0x40_0000_0000_u64)?;
            a.mov(byte_ptr(rax), al)
        });
        let entry = m.state.clone();
        user(&mut m.state);
        let (result, state) = m.run();
        assert_eq!(result, u64::from(vector::PF));
        assert_eq!(state.cr2, 0x40_0000_0000);
        let frame = state.gpr[gpr::RSP];
        assert_eq!(m.read_u64(frame), 6, "write, user, not present");
        assert_eq!(m.read_u64(frame + 8), CODE + 10);
        assert_eq!(m.read_u64(frame + 16), 0x23);
        assert_eq!(m.read_u64(frame + 32), STACK);

        // A breakpoint is a trap.
        m.state = entry;
        m.assemble(CODE, |a| a.int3());
        let (result, state) = m.run();
        assert_eq!(result, u64::from(vector::BP));
        assert_eq!(m.read_u64(state.gpr[gpr::RSP]), CODE + 1);
    });
}

/// What a kernel uses that emulators tend not to know.
#[test]
fn rare_instructions_work() {
    on_each(|m| {
        m.assemble(CODE, |a| {
            a.lea(rdi, qword_ptr(0x30_0000))?;
            a.mov(rax, 0x1111_u64)?;
            a.mov(qword_ptr(rdi), rax)?;
            a.mov(rdx, 0x2222_u64)?;
            a.mov(qword_ptr(rdi + 8), rdx)?;
            a.mov(rbx, 0x3333_u64)?;
            a.mov(rcx, 0x4444_u64)?;
            a.lock().cmpxchg16b(xmmword_ptr(rdi))?;
            a.sete(al)?;
            a.popcnt(ecx, ecx)?;
            a.movq(xmm3, rbx)?;
            a.paddd(xmm3, xmm3)?;
            a.movq(r9, xmm3)?;
            a.fld1()?;
            a.fadd_2(st0, st0)?;
            a.fstp(qword_ptr(0x30_0020))?;
            a.out(0xf4, al)
        });
        let (result, state) = m.run();
        assert_eq!(result, 1);
        assert_eq!((m.read_u64(0x30_0000), m.read_u64(0x30_0008)), (0x3333, 0x4444));
        assert_eq!(state.gpr[gpr::RCX], 4);
        assert_eq!(state.gpr[9], 0x6666);
        assert_eq!(f64::from_bits(m.read_u64(0x30_0020)), 2.0);
        println!("{} of its instructions were executed by the software CPU", m.vm.opinions());
    });
}

/// A loop of vector instructions, with loads, stores and a branch between them.
#[test]
fn refusals_in_a_row_are_one() {
    on_each(|m| {
        m.assemble(CODE, |a| {
            let mut again = a.create_label();
            a.mov(ecx, 50)?;
            a.mov(eax, 1)?;
            a.movd(xmm1, eax)?;
            a.pxor(xmm0, xmm0)?;
            a.set_label(&mut again)?;
            a.paddd(xmm0, xmm1)?;
            a.movdqa(xmmword_ptr(0x30_0000), xmm0)?;
            a.mov(edx, dword_ptr(0x30_0000))?;
            a.movd(xmm2, edx)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.movd(eax, xmm2)?;
            a.out(0xf4, al)
        });
        let (result, state) = m.run();
        assert_eq!((result, state.gpr[gpr::RCX]), (50, 0));
        assert_eq!((m.read_u64(0x30_0000), state.fpu.xmm[0]), (50, 50));
        println!("{} refusals for 154 vector instructions", m.vm.opinions());
        assert!(m.vm.opinions() < 10);
    });
}

#[test]
fn a_kick_ends_an_endless_loop() {
    on_each(|m| {
        m.assemble(CODE, |a| {
            let mut here = a.create_label();
            a.set_label(&mut here)?;
            a.inc(rax)?;
            a.jmp(here)
        });
        m.vcpu.set_state(&m.state).unwrap();
        m.resume_time();
        let signal = m.vcpu.signal();
        // While it is stopped, and three times while it runs.
        signal.kick();
        assert_eq!(m.vcpu.run(&*m.io).unwrap(), Exit::Kicked);
        let mut before = 0;
        for _ in 0..3 {
            let signal = signal.clone();
            let kicker = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(30));
                signal.kick();
            });
            assert_eq!(m.vcpu.run(&*m.io).unwrap(), Exit::Kicked);
            kicker.join().unwrap();
            let count = m.vcpu.state().unwrap().gpr[gpr::RAX];
            assert!(count > before, "it goes on where it was: {count} after {before}");
            before = count;
        }
        assert!(!m.io.ended.load(Ordering::SeqCst));
    });
}

#[test]
fn a_halt_for_good_is_an_exit() {
    on_each(|m| {
        m.assemble(CODE, |a| {
            a.mov(eax, 7)?;
            a.hlt()
        });
        m.vcpu.set_state(&m.state).unwrap();
        m.resume_time();
        assert_eq!(m.vcpu.run(&*m.io).unwrap(), Exit::Halted);
        let state = m.vcpu.state().unwrap();
        assert_eq!((state.rip, state.gpr[gpr::RAX]), (CODE + 6, 7));
        // Whoever runs it again finds it where it was.
        assert_eq!(m.vcpu.run(&*m.io).unwrap(), Exit::Halted);
    });
}

#[test]
fn a_triple_fault_is_an_exit() {
    on_each(|m| {
        m.state.idt = DescriptorTable { base: 0, limit: 0 };
        m.assemble(CODE, |a| a.ud2());
        m.vcpu.set_state(&m.state).unwrap();
        m.resume_time();
        assert_eq!(m.vcpu.run(&*m.io).unwrap(), Exit::TripleFault);
    });
}

/// Noise instead of code: it ends in some handler, in a triple fault, or has to be kicked.
#[test]
fn garbage_harms_nobody() {
    on_each(|m| {
        let mut seed = 0x1234_5678_9abc_def0_u64;
        for _ in 0..50 {
            let mut noise = vec![0_u8; 4096];
            for byte in &mut noise {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                *byte = seed as u8;
            }
            lay_out(&m.ram);
            m.ram.memory().write_slice(&noise, GuestAddress(CODE)).unwrap();
            m.vcpu.set_state(&m.state).unwrap();
            m.resume_time();
            let signal = m.vcpu.signal();
            let (done, wait) = std::sync::mpsc::channel::<()>();
            let kicker = std::thread::spawn(move || {
                if wait.recv_timeout(Duration::from_millis(50)).is_err() {
                    signal.kick();
                }
            });
            // An error is a refusal with a reason; the test is that it returns.
            let left = m.vcpu.run(&*m.io);
            let _ = done.send(());
            kicker.join().unwrap();
            assert!(!matches!(left, Err(crate::hypervisor::HypervisorError::Refused { .. })), "{left:?}");
        }
        // And the host still makes machines that work.
        let mut other = Machine::new(m.backend);
        other.assemble(CODE, |a| a.out(0xf4, al));
        other.run();
    });
}

/// The guest sees the model, at each privilege. A hypervisor that runs the guest's kernel as a program of the host's may
/// not be able to hide the host's features; the probe says so.
#[test]
fn the_processor_is_the_model() {
    on_each(|m| {
        let backend = m.backend;
        for privilege in [0, 3] {
            m.state = entry();
            if privilege == 3 {
                user(&mut m.state);
            }
            let mut cpuid = |leaf: u32| {
                m.assemble(CODE, |a| {
                    a.mov(eax, leaf)?;
                    a.xor(ecx, ecx)?;
                    a.cpuid()?;
                    a.mov(dword_ptr(0x30_0000), eax)?;
                    a.mov(dword_ptr(0x30_0004), ebx)?;
                    a.mov(dword_ptr(0x30_0008), ecx)?;
                    a.mov(dword_ptr(0x30_000c), edx)?;
                    a.out(0xf4, al)
                });
                m.run();
                let [low, high] = [m.read_u64(0x30_0000), m.read_u64(0x30_0008)];
                [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32]
            };
            let tsc_khz = 1;
            let identity = Identity { model: CpuModel::Minimal, id: 0, cpus: 1, tsc_khz };
            for leaf in [0, 0x4000_0000, 0x4000_0001, 0x8000_0001, 0x8000_0002, 0x8000_0008] {
                assert_eq!(
                    cpuid(leaf),
                    model::leaf(&identity, leaf, 0),
                    "leaf {leaf:#x} at privilege {privilege}"
                );
            }
            for leaf in [1, 7] {
                let (found, wanted) = (cpuid(leaf), model::leaf(&identity, leaf, 0));
                let lacks: Vec<u32> = found.iter().zip(wanted).map(|(f, w)| w & !f).collect();
                assert_eq!(lacks[2..], [0, 0], "leaf {leaf:#x} at privilege {privilege}");
                if found != wanted {
                    println!("{backend:?} shows more in leaf {leaf:#x}: {found:08x?} for {wanted:08x?}");
                    assert_ne!(backend, Backend::Soft);
                }
            }
        }
    });
}
