//! Several vCPUs on one RAM: code that one writes and another runs, locked accesses, page tables that change.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::arch::x86_64::{VcpuState, gpr};
use crate::hypervisor::{CpuModel, Exit, Vcpu};
use crate::memory::GuestRam;
use crate::sys::clock::Clock;

use super::super::cpu::Setup;
use super::super::run::SoftVcpu;
use super::support::*;
use super::{CODE, HANDLERS, Machine, NoIo, STACK};

/// Where vCPU `n`'s program lies.
const fn program(n: u64) -> u64 {
    CODE + 0x1_0000 * n
}
/// Words that the programs share.
const FLAG: u64 = 0x30_0000;
const ANSWER: u64 = 0x30_1000;
const LOCK: u64 = 0x30_2000;
const COUNTER: u64 = 0x30_3000;
/// The function that is rewritten.
const FUNCTION: u64 = 0x31_0000;

/// vCPU 0 in a machine, and the others.
fn several(n: u32) -> (Machine, Vec<SoftVcpu>) {
    let ram = GuestRam::new(64 << 20).unwrap();
    let clock = Arc::new(Clock::new());
    clock.resume();
    let fellows = Arc::default();
    let vcpu = |id| {
        let (ram, clock, fellows) = (ram.clone(), clock.clone(), Arc::clone(&fellows));
        SoftVcpu::new(Setup { id, cpus: n, model: CpuModel::Baseline, ram, clock, apic: None, fellows })
            .unwrap()
    };
    let others = (1..n).map(vcpu).collect();
    (Machine::of(ram.clone(), vcpu(0)), others)
}

impl Machine {
    /// Puts a program for vCPU `n` in place.
    fn program(&self, n: u64, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        self.write(program(n), &asm_at(program(n), write));
    }
}

/// Runs `vcpu` as number `n` until it halts, and gives its RAX.
fn run_as(state: &VcpuState, n: u64, vcpu: &mut SoftVcpu) -> u64 {
    let mut state = state.clone();
    state.rip = program(n);
    state.gpr[gpr::RSP] = STACK - 0x4000 * n;
    vcpu.set_state(&state).unwrap();
    assert_eq!(vcpu.run(&NoIo).unwrap(), Exit::Halted);
    let state = vcpu.state().unwrap();
    let here = program(n)..program(n) + 0x1_0000;
    assert!(here.contains(&state.rip), "vCPU {n} is at {:#x}", state.rip);
    state.gpr[gpr::RAX]
}

/// Runs all at once and gives each one's RAX.
fn run_all(m: &mut Machine, others: &mut [SoftVcpu]) -> Vec<u64> {
    let state = &m.state;
    let vcpus = std::iter::once(&mut m.vcpu).chain(others);
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..).zip(vcpus).map(|(n, vcpu)| scope.spawn(move || run_as(state, n, vcpu))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// vCPU 1 calls the function, vCPU 0 has made it return 1 and then 2 by stores through its TLB.
fn rewritten_behind_the_back(careless: bool) -> [u64; 2] {
    let (mut m, mut others) = several(2);
    let other = &mut others[0];
    other.cpu.careless = careless;
    m.program(1, |a| {
        a.xor(eax, eax)?;
        a.mov(rdi, FUNCTION)?;
        a.call(rdi)?;
        a.hlt()
    });
    m.program(0, |a| {
        a.mov(rdi, FUNCTION)?;
        // mov al, 1; ret; twice, so that the page is in the TLB.
        a.mov(dword_ptr(rdi), 0xc3_00b0)?;
        a.mov(dword_ptr(rdi), 0xc3_01b0)?;
        a.hlt()?;
        a.mov(dword_ptr(rdi), 0xc3_02b0)?;
        a.hlt()
    });
    run_as(&m.state, 0, &mut m.vcpu);
    let before = run_as(&m.state, 1, other);
    // It goes on as it is: a new state would empty the TLB.
    m.vcpu.cpu.halted = false;
    assert_eq!(m.vcpu.run(&NoIo).unwrap(), Exit::Halted);
    [before, run_as(&m.state, 1, other)]
}

#[test]
fn code_is_seen_that_another_vcpu_rewrites_through_its_tlb() {
    assert_eq!(rewritten_behind_the_back(false), [1, 2]);
    // Were the writer not asked to give its way up, that would have gone unseen.
    assert_eq!(rewritten_behind_the_back(true), [1, 1]);
}

const ROUNDS: i32 = 3000;

/// vCPU 0 writes a function and raises the flag; vCPU 1 sees it, calls the function and answers with what that said.
/// How many answers were wrong.
fn just_in_time(careless: bool) -> u64 {
    let (mut m, mut others) = several(2);
    others[0].cpu.careless = careless;
    // mov eax, 0; ret
    m.write(FUNCTION, &[0xb8, 0, 0, 0, 0, 0xc3]);
    m.program(0, |a| {
        let (mut next, mut wait) = (a.create_label(), a.create_label());
        let mut right = a.create_label();
        a.xor(eax, eax)?;
        a.mov(rdi, FUNCTION)?;
        a.mov(rsi, FLAG)?;
        a.mov(rbx, ANSWER)?;
        a.mov(ecx, 1)?;
        a.set_label(&mut next)?;
        a.mov(dword_ptr(rdi + 1), ecx)?;
        a.mov(dword_ptr(rsi), ecx)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(dword_ptr(rbx), ecx)?;
        a.jne(wait)?;
        // The answer itself is behind.
        a.cmp(dword_ptr(rbx + 8), ecx)?;
        a.je(right)?;
        a.inc(eax)?;
        a.set_label(&mut right)?;
        a.inc(ecx)?;
        a.cmp(ecx, ROUNDS)?;
        a.jne(next)?;
        a.hlt()
    });
    m.program(1, |a| {
        let (mut next, mut wait) = (a.create_label(), a.create_label());
        a.mov(rdi, FUNCTION)?;
        a.mov(rsi, FLAG)?;
        a.mov(rbp, ANSWER)?;
        a.mov(r8d, 1)?;
        a.set_label(&mut next)?;
        a.nop()?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(dword_ptr(rsi), r8d)?;
        a.jne(wait)?;
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.call(rdi)?;
        a.mov(dword_ptr(rbp + 8), eax)?;
        a.mov(dword_ptr(rbp), r8d)?;
        a.inc(r8d)?;
        a.cmp(r8d, ROUNDS)?;
        a.jne(next)?;
        a.hlt()
    });
    run_all(&mut m, &mut others)[0]
}

#[test]
fn one_vcpu_runs_what_another_writes() {
    assert_eq!(just_in_time(false), 0);
    assert_ne!(just_in_time(true), 0);
}

/// Every vCPU takes a lock, changes one of many functions, calls it, and gives the lock back.
#[test]
fn all_vcpus_write_and_run_the_same_code() {
    const TURNS: i32 = 2000;
    const PAGES: i32 = 8;
    for n in [2u64, 4] {
        let (mut m, mut others) = several(n as u32);
        for page in 0..PAGES as u64 {
            // mov eax, 0; ret
            m.write(FUNCTION + 0x1000 * page, &[0xb8, 0, 0, 0, 0, 0xc3]);
        }
        for id in 0..n {
            m.program(id, |a| {
                let (mut next, mut take, mut right) = (a.create_label(), a.create_label(), a.create_label());
                a.mov(rsi, LOCK)?;
                a.mov(rbx, COUNTER)?;
                a.mov(ebp, TURNS)?;
                a.xor(r12d, r12d)?;
                a.set_label(&mut next)?;
                a.nop()?;
                a.set_label(&mut take)?;
                a.pause()?;
                a.mov(eax, 1)?;
                a.xchg(dword_ptr(rsi), eax)?;
                a.test(eax, eax)?;
                a.jne(take)?;
                a.inc(dword_ptr(rbx))?;
                a.mov(ecx, dword_ptr(rbx))?;
                a.mov(edi, ecx)?;
                a.and(edi, PAGES - 1)?;
                a.shl(edi, 12)?;
                a.add(rdi, FUNCTION as i32)?;
                a.mov(dword_ptr(rdi + 1), ecx)?;
                a.call(rdi)?;
                a.cmp(eax, ecx)?;
                a.je(right)?;
                a.inc(r12d)?;
                a.set_label(&mut right)?;
                a.mov(dword_ptr(rsi), 0)?;
                a.dec(ebp)?;
                a.jne(next)?;
                a.mov(eax, r12d)?;
                a.hlt()
            });
        }
        let wrong = run_all(&mut m, &mut others);
        assert_eq!(wrong, vec![0; n as usize]);
        assert_eq!(m.read_u64(COUNTER), n * TURNS as u64);
    }
}

/// Locked accesses of every kind to the same words: aligned, across a cache line, across a page, 16 bytes.
#[test]
fn locked_accesses_are_one_step() {
    const TURNS: i32 = 3000;
    let (mut m, mut others) = several(3);
    for id in 0..3 {
        m.program(id, |a| {
            let (mut next, mut again) = (a.create_label(), a.create_label());
            a.mov(rsi, COUNTER)?;
            a.mov(ebp, TURNS)?;
            a.set_label(&mut next)?;
            a.lock().inc(qword_ptr(rsi))?;
            a.mov(eax, 1)?;
            a.lock().xadd(dword_ptr(rsi + 0x40), eax)?;
            a.lock().add(word_ptr(rsi + 0x80), 1)?;
            a.lock().inc(dword_ptr(rsi + 0xc1))?;
            a.lock().inc(dword_ptr(rsi + 0x13e))?;
            a.lock().add(qword_ptr(rsi + 0xffc), 1)?;
            // A 128-bit counter whose halves move against each other.
            a.mov(rax, qword_ptr(rsi + 0x200))?;
            a.mov(rdx, qword_ptr(rsi + 0x208))?;
            a.set_label(&mut again)?;
            a.lea(rbx, ptr(rax + 1))?;
            a.lea(rcx, ptr(rdx - 1))?;
            a.lock().cmpxchg16b(xmmword_ptr(rsi + 0x200))?;
            a.jne(again)?;
            a.dec(ebp)?;
            a.jne(next)?;
            a.hlt()
        });
    }
    run_all(&mut m, &mut others);
    let total = 3 * TURNS as u64;
    for at in [0, 0x40, 0x80, 0xffc] {
        assert_eq!(m.read_u64(COUNTER + at), total, "{at:#x}");
    }
    assert_eq!(m.read_u64(COUNTER + 0xc1) as u32 as u64, total);
    assert_eq!(m.read_u64(COUNTER + 0x13e) as u32 as u64, total);
    assert_eq!((m.read_u64(COUNTER + 0x200), m.read_u64(COUNTER + 0x208)), (total, total.wrapping_neg()));
}

/// While one vCPU writes a page again and again, the other takes it away and gives it back: what the entry holds
/// meanwhile is the other's alone, and no accessed or dirty bit may get into it.
#[test]
fn marks_do_not_get_into_entries_that_have_changed() {
    const TURNS: i32 = 20_000;
    const ENTRY: u64 = PT;
    const AWAY: u64 = 0x1234_5600;
    let (mut m, mut others) = several(2);
    m.put(0x1000 + 8, PDPT | 7);
    m.put(PDPT, PD | 7);
    m.put(PD, PT | 7);
    let here = FRAMES | pte::P | pte::W | pte::U;
    m.put(ENTRY, here);
    // #PF: try again.
    m.write(HANDLERS + 16 * 14, &[0x48, 0x83, 0xc4, 8, 0x48, 0xcf]);
    m.state.gpr[15] = AWAY;
    m.program(0, |a| {
        let (mut next, mut right) = (a.create_label(), a.create_label());
        a.mov(rsi, ENTRY)?;
        a.mov(ebp, TURNS)?;
        a.xor(r12d, r12d)?;
        a.set_label(&mut next)?;
        a.mov(rax, AWAY)?;
        a.xchg(qword_ptr(rsi), rax)?;
        a.mov(rax, here)?;
        a.xchg(qword_ptr(rsi), rax)?;
        a.cmp(rax, r15)?;
        a.je(right)?;
        a.inc(r12d)?;
        a.set_label(&mut right)?;
        a.dec(ebp)?;
        a.jne(next)?;
        a.mov(eax, r12d)?;
        a.mov(rsi, FLAG)?;
        a.mov(dword_ptr(rsi), 1)?;
        a.hlt()
    });
    m.program(1, |a| {
        let mut next = a.create_label();
        a.mov(rsi, FLAG)?;
        a.mov(rdi, PAGES)?;
        a.xor(eax, eax)?;
        a.set_label(&mut next)?;
        a.invlpg(ptr(rdi))?;
        a.mov(dword_ptr(rdi), eax)?;
        a.inc(eax)?;
        a.cmp(dword_ptr(rsi), 0)?;
        a.je(next)?;
        a.hlt()
    });
    let results = run_all(&mut m, &mut others);
    assert_eq!(results[0], 0, "bits were set in an entry that was taken away");
    assert!(results[1] > 0);
    assert_eq!(m.read_u64(ENTRY) & !(pte::A | pte::D), here);
}

/// A vCPU that never stops is no reason for others to wait for ever, and all can be kicked meanwhile.
#[test]
fn a_spinning_vcpu_holds_nobody_up() {
    let (mut m, mut others) = several(2);
    m.program(1, |a| {
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        a.lock().inc(dword_ptr(rsp))?;
        a.jmp(here)
    });
    m.program(0, |a| {
        let mut next = a.create_label();
        a.mov(rdi, FUNCTION)?;
        a.mov(ecx, 2000)?;
        a.set_label(&mut next)?;
        a.mov(dword_ptr(rdi), 0xc3_00b0)?;
        a.call(rdi)?;
        a.mov(rsi, COUNTER)?;
        a.lock().inc(dword_ptr(rsi + 0x3e))?;
        a.add(rdi, 64)?;
        a.dec(ecx)?;
        a.jne(next)?;
        a.hlt()
    });
    let kick = others[0].signal();
    let left = AtomicBool::new(false);
    let state = &m.state;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut state = state.clone();
            state.rip = program(1);
            others[0].set_state(&state).unwrap();
            assert_eq!(others[0].run(&NoIo).unwrap(), Exit::Kicked);
            left.store(true, Ordering::SeqCst);
        });
        run_as(state, 0, &mut m.vcpu);
        assert!(!left.load(Ordering::SeqCst));
        kick.kick();
    });
    assert!(left.load(Ordering::SeqCst));
}
