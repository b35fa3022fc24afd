//! Writing guest programs, page tables to play with, and what a handler finds on its stack.

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use vm_memory::{Bytes, GuestAddress};

use crate::arch::x86_64::{VcpuState, gpr};
use crate::hypervisor::{Exit, ExitIo, Vcpu};

use super::{CODE, Machine, NoIo};

/// Linear address of 512 small pages: page `i` is described by [`Machine::page`], and by default
/// is writable by everyone at [`FRAMES`]` + 0x1000 * i`.
pub(super) const PAGES: u64 = 0x80_0000_0000;
pub(super) const FRAMES: u64 = 0x80_0000;
pub(super) const PDPT: u64 = 0x40_0000;
pub(super) const PD: u64 = 0x40_1000;
pub(super) const PT: u64 = 0x40_2000;

/// Bits of a page-table entry.
pub(super) mod pte {
    pub(crate) const P: u64 = 1;
    pub(crate) const W: u64 = 2;
    pub(crate) const U: u64 = 4;
    pub(crate) const A: u64 = 0x20;
    pub(crate) const D: u64 = 0x40;
    pub(crate) const PS: u64 = 0x80;
    pub(crate) const G: u64 = 0x100;
    pub(crate) const NX: u64 = 1 << 63;
}

/// 64-bit code for address `at`.
pub(super) fn asm_at(at: u64, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    assemble(64, at, write)
}

/// 64-bit code for [`CODE`].
pub(super) fn asm(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    assemble(64, CODE, write)
}

/// 32-bit code for address `at`.
pub(super) fn asm32(at: u64, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    assemble(32, at, write)
}

fn assemble(bits: u32, at: u64, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).unwrap();
    write(&mut a).unwrap();
    a.assemble(at).unwrap()
}

/// What the processor pushed for a handler.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) vector: u8,
    pub(super) error: Option<u64>,
    pub(super) rip: u64,
    pub(super) cs: u64,
    pub(super) flags: u64,
    pub(super) rsp: u64,
    pub(super) ss: u64,
}

impl Frame {
    /// Vector and error code.
    pub(super) fn what(&self) -> (u8, Option<u64>) {
        (self.vector, self.error)
    }
}

impl Machine {
    /// A machine with the [`PAGES`].
    pub(super) fn with_pages() -> Self {
        let m = Self::new();
        m.put(0x1000 + 8, PDPT | 7);
        m.put(PDPT, PD | 7);
        m.put(PD, PT | 7);
        for i in 0..512 {
            m.page(i, (FRAMES + 0x1000 * i) | pte::P | pte::W | pte::U);
        }
        m
    }

    /// Takes the first 2 MiB (code, handlers, stack, tables) away from user code, as SMEP and SMAP
    /// want it.
    pub(super) fn supervisor(&self) {
        self.put(0x3000, 0x83);
    }

    pub(super) fn put(&self, at: u64, v: u64) {
        self.ram.memory().write_obj(v, GuestAddress(at)).unwrap();
    }

    /// Sets the entry of small page `i`.
    pub(super) fn page(&self, i: u64, entry: u64) {
        self.put(PT + 8 * i, entry);
    }

    /// Runs from `self.state` until HLT with interrupts off.
    pub(super) fn go(&mut self, io: &dyn ExitIo) -> VcpuState {
        self.vcpu.set_state(&self.state).unwrap();
        assert_eq!(self.vcpu.run(io).unwrap(), Exit::Halted);
        self.vcpu.state().unwrap()
    }

    /// Runs `code` and returns what the handler that it ends in finds.
    pub(super) fn fault(&mut self, code: &[u8]) -> Frame {
        let s = self.run(code);
        self.frame(&s)
    }

    /// As [`Machine::fault`], with the code that is in memory already.
    pub(super) fn fault_here(&mut self) -> Frame {
        let s = self.go(&NoIo);
        self.frame(&s)
    }

    pub(super) fn frame(&self, s: &VcpuState) -> Frame {
        assert!((super::HANDLERS..super::HANDLERS + 0x1000).contains(&s.rip), "no handler: {:#x}", s.rip);
        let vector = Self::vector(s) as u8;
        let has_error = matches!(vector, 8 | 10..=14 | 17);
        let at = s.gpr[gpr::RSP];
        let word = |i: u64| self.read_u64(at + 8 * (i + has_error as u64));
        Frame {
            vector,
            error: has_error.then(|| self.read_u64(at)),
            rip: word(0),
            cs: word(1),
            flags: word(2),
            rsp: word(3),
            ss: word(4),
        }
    }
}
