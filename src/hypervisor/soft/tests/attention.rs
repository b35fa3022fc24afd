//! Kicks, interrupts from a local APIC, HLT, CR8, and the clocks a guest reads.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;

use crate::arch::x86_64::{cr4, gpr, rflags, vector};
use crate::hypervisor::{Exit, ExitIo, LocalApic, LocalEvent, Vcpu};

use super::support::*;
use super::{CODE, Machine, NoIo};

/// A local APIC that has what the test posts, and a register page that remembers.
#[derive(Default)]
pub(super) struct FakeApic {
    pub(super) pending: Mutex<Vec<u8>>,
    pub(super) nmis: AtomicU32,
    pub(super) tpr: AtomicU8,
    pub(super) written: Mutex<Vec<(u32, u32)>>,
}

impl FakeApic {
    pub(super) fn post(&self, vector: u8) {
        self.pending.lock().unwrap().push(vector);
    }
    fn ready(&self) -> Option<usize> {
        let tpr = self.tpr.load(Ordering::SeqCst);
        self.pending.lock().unwrap().iter().position(|v| v >> 4 > tpr)
    }
}

impl LocalApic for FakeApic {
    fn has_event(&self, interrupts_enabled: bool) -> bool {
        self.nmis.load(Ordering::SeqCst) != 0 || interrupts_enabled && self.ready().is_some()
    }
    fn take_event(&self, interrupts_enabled: bool) -> Option<LocalEvent> {
        if self.nmis.load(Ordering::SeqCst) != 0 {
            self.nmis.fetch_sub(1, Ordering::SeqCst);
            return Some(LocalEvent::Nmi);
        }
        let i = self.ready().filter(|_| interrupts_enabled)?;
        Some(LocalEvent::Interrupt(self.pending.lock().unwrap().remove(i)))
    }
    fn mmio_read(&self, offset: u32) -> u32 {
        0xa000_0000 | offset
    }
    fn mmio_write(&self, offset: u32, value: u32) {
        self.written.lock().unwrap().push((offset, value));
    }
    fn msr_read(&self, msr: u32) -> Option<u64> {
        (msr == 0x1b).then_some(0xfee0_0900)
    }
    fn msr_write(&self, msr: u32, _: u64) -> Option<()> {
        (msr == 0x1b).then_some(())
    }
    fn cr8(&self) -> u8 {
        self.tpr.load(Ordering::SeqCst)
    }
    fn set_cr8(&self, value: u8) {
        self.tpr.store(value, Ordering::SeqCst);
    }
    fn mmio_base(&self) -> Option<u64> {
        Some(0xfee0_0000)
    }
}

impl Machine {
    /// Gives the vCPU a local APIC.
    pub(super) fn attach(&mut self, apic: Arc<FakeApic>) {
        self.vcpu.cpu.apic = Some(apic);
    }
}

/// Kicks from another thread once the vCPU has run for a while; returns how long the exit took.
fn kicked(m: &mut Machine) -> Duration {
    m.vcpu.set_state(&m.state).unwrap();
    let signal = m.vcpu.signal();
    let at = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        let at = Instant::now();
        signal.kick();
        at
    });
    assert_eq!(m.vcpu.run(&NoIo).unwrap(), Exit::Kicked);
    at.join().unwrap().elapsed()
}

#[test]
fn a_kick_ends_hlt_and_the_guest_stays_in_it() {
    let mut m = Machine::new();
    m.state.rflags |= rflags::IF;
    m.write(CODE, &[0xf4]);
    kicked(&mut m);
    let s = m.vcpu.state().unwrap();
    assert!(s.halted);
    assert_eq!(s.rip, CODE + 1);
}

#[test]
fn a_kick_before_the_run_ends_it_at_once() {
    let mut m = Machine::new();
    m.write(CODE, &[0xf4]);
    m.vcpu.set_state(&m.state).unwrap();
    m.vcpu.signal().kick();
    assert_eq!(m.vcpu.run(&NoIo).unwrap(), Exit::Kicked);
    assert_eq!(m.vcpu.state().unwrap(), m.state);
    assert_eq!(m.vcpu.run(&NoIo).unwrap(), Exit::Halted);
}

#[test]
fn a_kick_ends_string_operations_within_a_slice() {
    // Backwards, byte by byte, for ever; and upwards by whole pages, over and over.
    for (code, flags) in [(&[0xf3, 0xaa, 0xeb, 0xfc][..], rflags::DF), (&[0xf3, 0x48, 0xa7], 0)] {
        let mut m = Machine::new();
        m.state.rflags |= flags;
        m.state.gpr[gpr::RCX] = 1 << 40;
        m.state.gpr[gpr::RDI] = 0x3000_0000;
        m.state.gpr[gpr::RSI] = 0x3000_0000;
        m.write(CODE, code);
        m.state.gpr[gpr::RCX] = 0x1000_0000;
        let took = kicked(&mut m);
        assert!(took < Duration::from_secs(2), "{took:?}");
        let s = m.vcpu.state().unwrap();
        assert_eq!(s.rip, CODE);
        assert!(s.gpr[gpr::RCX] != 0 && s.gpr[gpr::RCX] < 0x1000_0000);
    }
}

#[test]
fn an_interrupt_wakes_hlt_and_points_behind_it() {
    let apic = Arc::new(FakeApic::default());
    let mut m = Machine::new();
    m.attach(apic.clone());
    m.write(CODE, &[0xfb, 0xf4, 0x0f, 0x0b]);
    m.vcpu.set_state(&m.state).unwrap();
    let signal = m.vcpu.signal();
    let poster = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        apic.post(0x50);
        signal.attention();
    });
    assert_eq!(m.vcpu.run(&NoIo).unwrap(), Exit::Halted);
    poster.join().unwrap();
    let s = m.vcpu.state().unwrap();
    assert_eq!((Machine::vector(&s), m.frame(&s).rip), (0x50, CODE + 2));
}

#[test]
fn cr8_holds_interrupts_back_until_it_is_lowered() {
    let apic = Arc::new(FakeApic::default());
    let mut m = Machine::new();
    m.attach(apic.clone());
    apic.post(0x50);
    m.state.rflags |= rflags::IF;
    apic.tpr.store(5, Ordering::SeqCst);
    let code = asm(|a| {
        a.mov(rbx, cr8)?;
        a.nop()?;
        a.mov(ecx, 4)?;
        a.mov(cr8, rcx)?;
        a.ud2()
    });
    let s = m.run(&code);
    assert_eq!((Machine::vector(&s), m.frame(&s).rip), (0x50, CODE + code.len() as u64 - 2));
    assert_eq!(s.gpr[gpr::RBX], 5);
    let bad = asm(|a| {
        a.mov(ecx, 16)?;
        a.mov(cr8, rcx)
    });
    assert_eq!(m.fault(&bad).what(), (vector::GP, Some(0)));
}

#[test]
fn the_apic_page_answers_and_its_msrs_go_there() {
    let apic = Arc::new(FakeApic::default());
    let mut m = Machine::new();
    m.attach(apic.clone());
    m.put(0x2018, 0xc000_0000 | 0x83);
    let code = asm(|a| {
        a.mov(eax, 0xfee0_0020u32)?;
        a.mov(ebx, dword_ptr(rax))?;
        a.mov(dword_ptr(rax + 0x90), 77)?;
        a.mov(ecx, 0x1b)?;
        a.rdmsr()?;
        a.hlt()
    });
    let s = m.run(&code);
    assert_eq!((s.gpr[gpr::RBX], s.gpr[gpr::RAX]), (0xa000_0020, 0xfee0_0900));
    assert_eq!(*apic.written.lock().unwrap(), [(0xb0, 77)]);
    m.vcpu.cpu.apic = None;
    assert_eq!(m.fault(&code).what(), (vector::GP, Some(0)), "without an APIC");
}

/// Notes accesses to devices.
#[derive(Default)]
struct Recorder(Mutex<Vec<(char, u64, Vec<u8>)>>);

impl ExitIo for Recorder {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0x5a);
        self.0.lock().unwrap().push(('i', port as u64, data.to_vec()));
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        self.0.lock().unwrap().push(('o', port as u64, data.to_vec()));
    }
    fn mmio_read(&self, addr: u64, data: &mut [u8]) {
        for (i, b) in data.iter_mut().enumerate() {
            *b = i as u8 + 1;
        }
        self.0.lock().unwrap().push(('r', addr, data.to_vec()));
    }
    fn mmio_write(&self, addr: u64, data: &[u8]) {
        self.0.lock().unwrap().push(('w', addr, data.to_vec()));
    }
}

#[test]
fn device_accesses_keep_their_width() {
    let mut m = Machine::new();
    m.put(0x2018, 0xc000_0000 | 0x83);
    let code = asm(|a| {
        a.mov(edi, 0xd000_0000u32)?;
        a.mov(rax, 0x8877_6655_4433_2211u64)?;
        a.mov(byte_ptr(rdi), al)?;
        a.mov(word_ptr(rdi + 2), ax)?;
        a.mov(dword_ptr(rdi + 4), eax)?;
        a.mov(qword_ptr(rdi + 8), rax)?;
        a.movzx(ebx, byte_ptr(rdi + 1))?;
        a.mov(cx, word_ptr(rdi + 2))?;
        a.mov(edx, dword_ptr(rdi + 4))?;
        a.mov(rsi, qword_ptr(rdi + 8))?;
        a.movups(xmm0, xmmword_ptr(rdi + 16))?;
        a.out(0x80, al)?;
        a.in_(eax, 0x81)?;
        a.mov(dx, 0x3f8)?;
        a.out(dx, ax)?;
        a.hlt()
    });
    m.write(CODE, &code);
    let recorder = Recorder::default();
    let s = m.go(&recorder);
    let of = |kind: char, at: u64, data: &[u8]| (kind, at, data.to_vec());
    let eight = [1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(
        *recorder.0.lock().unwrap(),
        [
            of('w', 0xd000_0000, &[0x11]),
            of('w', 0xd000_0002, &[0x11, 0x22]),
            of('w', 0xd000_0004, &[0x11, 0x22, 0x33, 0x44]),
            of('w', 0xd000_0008, &[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]),
            of('r', 0xd000_0001, &[1]),
            of('r', 0xd000_0002, &[1, 2]),
            of('r', 0xd000_0004, &[1, 2, 3, 4]),
            of('r', 0xd000_0008, &eight),
            of('r', 0xd000_0010, &eight),
            of('r', 0xd000_0018, &eight),
            of('o', 0x80, &[0x11]),
            of('i', 0x81, &[0x5a; 4]),
            of('o', 0x3f8, &[0x5a, 0x5a]),
        ]
    );
    assert_eq!(s.gpr[gpr::RSI], 0x0807_0605_0403_0201);
}

#[test]
fn the_tsc_never_goes_back_and_tsd_takes_it_from_user_code() {
    let mut m = Machine::new();
    let code = asm(|a| {
        let mut again = a.create_label();
        a.mov(r9d, 1000)?;
        a.xor(esi, esi)?;
        a.set_label(&mut again)?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.cmp(rax, rsi)?;
        a.adc(r8d, 0)?;
        a.mov(rsi, rax)?;
        a.dec(r9d)?;
        a.jnz(again)?;
        a.hlt()
    });
    let s = m.run(&code);
    assert_eq!(s.gpr[8], 0);
    assert!(s.gpr[gpr::RSI] > 0);
    m.state.cr4 |= cr4::TSD;
    assert_eq!(m.run(&code).gpr[8], 0, "privilege 0 may");
    m.user();
    assert_eq!(m.fault(&[0x0f, 0x31]).what(), (vector::GP, Some(0)));
    assert_eq!(m.fault(&[0x0f, 0x01, 0xf9]).what(), (vector::GP, Some(0)));
}

/// The system time that the page at `at` gives for `tsc`, computed as guests do.
fn system_time(m: &Machine, at: u64, tsc: u64) -> u64 {
    let (scale, rest) = (m.read_u64(at + 24) as u32 as u64, m.read_u64(at + 24) >> 32);
    let delta = tsc.wrapping_sub(m.read_u64(at + 8)) << (rest as u8 as i8);
    assert_eq!(m.read_u64(at) as u32 % 2, 0, "an even version");
    assert_eq!(rest >> 8 & 1, 1, "stable");
    m.read_u64(at + 16) + ((delta as u128 * scale as u128) >> 32) as u64
}

#[test]
fn the_clock_page_gives_machine_time_also_after_the_tsc_is_set() {
    for set_tsc in [false, true] {
        let mut m = Machine::new();
        let code = asm(|a| {
            a.mov(ecx, 0x4b56_4d01)?;
            a.mov(eax, 0x30_0ff1)?;
            a.xor(edx, edx)?;
            a.wrmsr()?;
            if set_tsc {
                a.mov(ecx, 0x10)?;
                a.mov(edx, 0x1000)?;
                a.wrmsr()?;
            }
            a.rdtsc()?;
            a.hlt()
        });
        let before = m.vcpu.cpu.clock.now();
        let s = m.run(&code);
        let after = m.vcpu.cpu.clock.now();
        let tsc = s.gpr[gpr::RDX] << 32 | s.gpr[gpr::RAX];
        assert_eq!(tsc >= 0x1000 << 32, set_tsc);
        let time = system_time(&m, 0x30_0ff0, tsc);
        assert!((before..=after).contains(&time), "{before} {time} {after}, TSC set: {set_tsc}");
    }
}

#[test]
fn the_wall_clock_page_says_when_the_machine_started() {
    let mut m = Machine::new();
    m.run(&asm(|a| {
        a.mov(ecx, 0x4b56_4d00)?;
        a.mov(eax, 0x30_0ff8)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.hlt()
    }));
    let seconds = m.read_u64(0x30_0ffc) as u32 as u64;
    let nanoseconds = m.read_u64(0x30_1000) as u32 as u64;
    let start = seconds * 1_000_000_000 + nanoseconds;
    let expect = crate::sys::clock::wall_clock_ns() - m.vcpu.cpu.clock.now();
    assert!(start.abs_diff(expect) < 1_000_000_000, "{start} {expect}");
}
