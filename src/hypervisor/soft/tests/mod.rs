//! The processor on small programs: paging, exceptions, self-modifying code, interrupts.

mod attention;
mod debug;
mod exceptions;
mod paging;
mod privilege;
mod self_modifying;
mod several;
mod state;
mod support;
mod transfers;
mod translation;

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use crate::arch::x86_64::{DescriptorTable, Segment, VcpuState, cr0, cr4, efer, gpr, rflags, seg, vector};
use crate::hypervisor::{Exit, ExitIo, Vcpu};
use crate::memory::GuestRam;
use crate::sys::clock::Clock;

use super::cpu::Setup;
use super::run::SoftVcpu;

/// Ports and MMIO that nobody answers.
pub(super) struct NoIo;

impl ExitIo for NoIo {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
}

pub(super) const CODE: u64 = 0x10_0000;
pub(super) const STACK: u64 = 0x20_0000;
pub(super) const IDT: u64 = 0x5000;
pub(super) const GDT: u64 = 0x6000;
pub(super) const TSS: u64 = 0x7000;
/// Handler of vector `v`: two bytes, `hlt` in a loop, at `HANDLERS + 16 * v`.
pub(super) const HANDLERS: u64 = 0x8000;

/// A vCPU at privilege 0 in 64-bit mode with the first GiB mapped one to one (2 MiB pages, user
/// accessible), a GDT (0x08 code, 0x10 data, 0x1b user data, 0x23 user code, 0x28 TSS), and an IDT
/// whose every handler halts.
pub(super) struct Machine {
    pub(super) ram: Arc<GuestRam>,
    pub(super) vcpu: SoftVcpu,
    pub(super) state: VcpuState,
}

impl Machine {
    pub(super) fn new() -> Self {
        let ram = GuestRam::new(64 << 20).unwrap();
        let clock = Arc::new(Clock::new());
        clock.resume();
        let vcpu = SoftVcpu::new(Setup::alone(ram.clone(), clock)).unwrap();
        Self::of(ram, vcpu)
    }

    fn of(ram: Arc<GuestRam>, vcpu: SoftVcpu) -> Self {
        let put = |at: u64, v: u64| ram.memory().write_obj(v, GuestAddress(at)).unwrap();
        put(0x1000, 0x2000 | 7);
        put(0x2000, 0x3000 | 7);
        for i in 0..512u64 {
            put(0x3000 + i * 8, i << 21 | 0x87);
        }
        put(GDT + 0x08, 0x00af_9b00_0000_ffff);
        put(GDT + 0x10, 0x00cf_9300_0000_ffff);
        put(GDT + 0x18, 0x00cf_f300_0000_ffff);
        put(GDT + 0x20, 0x00af_fb00_0000_ffff);
        put(GDT + 0x28, 0x0000_8b00_0000_0067 | TSS << 16);
        put(GDT + 0x30, 0);
        put(TSS + 4, STACK - 0x1000);
        for v in 0..256u64 {
            let handler = HANDLERS + 16 * v;
            put(IDT + 16 * v, handler & 0xffff | 0x08 << 16 | 0x8e00 << 32);
            put(IDT + 16 * v + 8, 0);
            put(handler, 0x00fd_ebf4);
        }
        let ordinary =
            |selector: u16, attributes: u16| Segment { selector, base: 0, limit: u32::MAX, attributes };
        let mut state = VcpuState {
            rip: CODE,
            rflags: rflags::FIXED,
            cr0: cr0::PE | cr0::PG | cr0::ET | cr0::NE | cr0::WP,
            cr3: 0x1000,
            cr4: cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT,
            efer: efer::LME | efer::LMA | efer::NXE | efer::SCE,
            gdt: DescriptorTable { base: GDT, limit: 0x37 },
            idt: DescriptorTable { base: IDT, limit: 0xfff },
            ..VcpuState::default()
        };
        for s in [seg::ES, seg::SS, seg::DS] {
            state.seg[s] = ordinary(0x10, 0xc093);
        }
        state.seg[seg::CS] = ordinary(0x08, 0xa09b);
        state.tr = Segment { selector: 0x28, base: TSS, limit: 0x67, attributes: 0x8b };
        state.gpr[gpr::RSP] = STACK;
        Self { ram, vcpu, state }
    }

    pub(super) fn user(&mut self) {
        self.state.seg[seg::CS] = Segment { selector: 0x23, base: 0, limit: u32::MAX, attributes: 0xa0fb };
        self.state.seg[seg::SS] = Segment { selector: 0x1b, base: 0, limit: u32::MAX, attributes: 0xc0f3 };
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub(super) fn read_u64(&self, at: u64) -> u64 {
        self.ram.memory().read_obj(GuestAddress(at)).unwrap()
    }

    /// Runs `code` from [`CODE`] until it halts, and returns the state then.
    pub(super) fn run(&mut self, code: &[u8]) -> VcpuState {
        self.write(CODE, code);
        self.vcpu.set_state(&self.state).unwrap();
        assert_eq!(self.vcpu.run(&NoIo).unwrap(), Exit::Halted);
        let state = self.vcpu.state().unwrap();
        // Whatever a program makes of the state, it can be saved and brought back.
        assert_eq!(crate::state::Vcpu::from(&state).try_into(), Ok(state.clone()));
        state
    }

    /// The vector whose handler halted.
    pub(super) fn vector(state: &VcpuState) -> u64 {
        (state.rip - HANDLERS) / 16
    }
}

#[test]
fn adds_numbers() {
    let mut m = Machine::new();
    // mov eax, 40; add eax, 2; hlt
    let s = m.run(&[0xb8, 40, 0, 0, 0, 0x83, 0xc0, 2, 0xf4]);
    assert_eq!(s.gpr[gpr::RAX], 42);
}

#[test]
fn loops_and_memory() {
    let mut m = Machine::new();
    // mov ecx, 1000; xor eax, eax; l: add eax, ecx; mov [rsp-8], rax; dec ecx; jnz l; mov rbx, [rsp-8]; hlt
    let s = m.run(&[
        0xb9, 0xe8, 3, 0, 0, 0x31, 0xc0, 0x01, 0xc8, 0x48, 0x89, 0x44, 0x24, 0xf8, 0xff, 0xc9, 0x75, 0xf5,
        0x48, 0x8b, 0x5c, 0x24, 0xf8, 0xf4,
    ]);
    assert_eq!(s.gpr[gpr::RAX], 500_500);
    assert_eq!(s.gpr[gpr::RBX], 500_500);
}

#[test]
fn page_fault_has_address_and_error_code() {
    let mut m = Machine::new();
    m.user();
    // mov rax, 0x4000_0000_00; mov [rax], al
    let s = m.run(&[0x48, 0xb8, 0, 0, 0, 0, 0x40, 0, 0, 0, 0x88, 0x00]);
    assert_eq!(Machine::vector(&s), vector::PF as u64);
    assert_eq!(s.cr2, 0x40_0000_0000);
    let sp = s.gpr[gpr::RSP];
    assert_eq!(m.read_u64(sp), 6, "write, user, not present");
    assert_eq!(m.read_u64(sp + 8), CODE + 10);
    assert_eq!(m.read_u64(sp + 16), 0x23);
    assert_eq!(m.read_u64(sp + 32), STACK);
}

#[test]
fn unknown_instruction_is_invalid_opcode() {
    let mut m = Machine::new();
    let s = m.run(&[0x0f, 0xff, 0xc0]);
    assert_eq!(Machine::vector(&s), vector::UD as u64);
}

#[test]
fn code_that_overwrites_its_next_instruction_runs_the_new_one() {
    let mut m = Machine::new();
    // mov byte [rip+1], 7 (the immediate of the next); mov al, 1; hlt
    let s = m.run(&[0xc6, 0x05, 1, 0, 0, 0, 7, 0xb0, 1, 0xf4]);
    assert_eq!(s.gpr[gpr::RAX], 7);
}

#[test]
fn code_written_by_a_device_is_decoded_again() {
    let mut m = Machine::new();
    assert_eq!(m.run(&[0xb0, 1, 0xf4]).gpr[gpr::RAX], 1);
    assert_eq!(m.run(&[0xb0, 2, 0xf4]).gpr[gpr::RAX], 2);
}

#[test]
fn instruction_across_two_pages() {
    let mut m = Machine::new();
    // The immediate of mov eax lies in the next page, and is changed there between two runs.
    m.write(CODE + 0xffe, &[0xb8, 1, 2, 3, 4, 0xf4]);
    let mut jump = vec![0xe9];
    jump.extend_from_slice(&(0xffe_i32 - 5).to_le_bytes());
    assert_eq!(m.run(&jump).gpr[gpr::RAX], 0x0403_0201);
    m.write(CODE + 0x1000, &[9]);
    assert_eq!(m.run(&jump).gpr[gpr::RAX], 0x0403_0901);
}

#[test]
fn triple_fault_ends_the_run() {
    let mut m = Machine::new();
    m.state.idt.limit = 0;
    m.write(CODE, &[0x0f, 0x0b]);
    m.vcpu.set_state(&m.state).unwrap();
    assert_eq!(m.vcpu.run(&NoIo).unwrap(), Exit::TripleFault);
}

#[test]
fn repeated_moves_cross_pages() {
    let mut m = Machine::new();
    let data: Vec<u8> = (0..20_000u32).map(|i| (i * 7) as u8).collect();
    m.write(0x30_0123, &data);
    // cld; mov ecx, 20000; mov esi, 0x300123; mov edi, 0x400777; rep movsb; hlt
    let s = m.run(&[
        0xfc, 0xb9, 0x20, 0x4e, 0, 0, 0xbe, 0x23, 0x01, 0x30, 0, 0xbf, 0x77, 0x07, 0x40, 0, 0xf3, 0xa4, 0xf4,
    ]);
    assert_eq!(s.gpr[gpr::RCX], 0);
    assert_eq!(s.gpr[gpr::RSI], 0x30_0123 + 20_000);
    let mut copy = vec![0; data.len()];
    m.ram.memory().read_slice(&mut copy, GuestAddress(0x40_0777)).unwrap();
    assert!(copy == data);
}

#[test]
fn a_kick_ends_an_endless_loop() {
    let mut m = Machine::new();
    m.write(CODE, &[0xeb, 0xfe]);
    m.vcpu.set_state(&m.state).unwrap();
    let signal = m.vcpu.signal();
    let kicker = std::thread::spawn(move || signal.kick());
    assert_eq!(m.vcpu.run(&NoIo).unwrap(), Exit::Kicked);
    kicker.join().unwrap();
    assert_eq!(m.vcpu.state().unwrap().rip, CODE);
}
