//! The state a case starts from, and words that instructions load parts of it from.

use super::super::{ARENA, CODE, CODE_LEN, Case, CpuImage, values};
use super::Builder;
use crate::arch::x86_64::{FpuState, rflags};

impl Builder {
    /// Flags for the stack. Never TF: the way out would be stepped through. Never AC: the host's signal
    /// frames cannot be trusted with it. Alignment checks are in the tables of [`super::super::system`].
    pub(super) fn popped_flags(&mut self) -> u64 {
        let mut value = self.rng.next() & (rflags::STATUS | rflags::DF | rflags::ID);
        if self.rng.chance(20) {
            value |= rflags::NT | rflags::IOPL | rflags::IF | rflags::RF | rflags::VIF;
        }
        value
    }

    /// Mostly the right one; never another that would work.
    pub(super) fn code_selector(&mut self) -> u16 {
        self.rng.pick(&[0x33, 0x33, 0x33, 0x33, 0x33, 0])
    }

    /// A selector that means the same on both sides.
    pub(super) fn selector(&mut self) -> u64 {
        self.rng.pick(&[0, 1, 3, 0x08, 0x10, 0x13, 0x18, 0x20, 0x23, 0x28, 0x2b, 0x30, 0x33])
    }

    pub(super) fn mxcsr(&mut self) -> u32 {
        let rng = &mut self.rng;
        let base = (rng.next() as u32) & 0xe07f;
        match rng.below(16) {
            0..8 => 0x1f80,
            8..15 => base & if rng.chance(50) { 0xffc0 } else { !0 } | 0x1f80,
            _ => base & 0xffc0 | (rng.next() as u32) & 0x1f80,
        }
    }

    pub(super) fn control(&mut self) -> u16 {
        let rng = &mut self.rng;
        let precision = rng.pick(&[0, 2, 3, 3]) << 8 | (rng.below(4) as u16) << 10;
        match rng.below(16) {
            0..8 => 0x37f,
            8..15 => 0x7f | precision,
            _ => 0x40 | precision | (rng.next() as u16) & 0x3f,
        }
    }

    pub(super) fn fpu(&mut self) -> FpuState {
        let control = self.control();
        let mxcsr = self.mxcsr();
        let rng = &mut self.rng;
        let mut status = (rng.next() as u16) & 0x7f7f;
        if rng.chance(80) {
            status &= !0x7f;
        }
        if status & !control & 0x3f != 0 {
            status |= 0x8080;
        }
        let tag = match rng.below(8) {
            0..5 => 0xff,
            5 => 0,
            _ => rng.next() as u8,
        };
        let mut fpu = FpuState { control, status, tag, mxcsr, ..FpuState::default() };
        fpu.opcode = (rng.next() as u16) & 0x7ff;
        fpu.ip = CODE + rng.below(0x1000) as u64;
        fpu.dp = ARENA + rng.below(0x1000) as u64;
        let mmx = rng.chance(30);
        for st in &mut fpu.st {
            *st = if mmx { (values::vector(rng) as u64, 0xffff) } else { values::extended(rng) };
        }
        if self.small_operand {
            let top = usize::from(status >> 11 & 7);
            fpu.st[top] =
                (rng.next() | 1 << 63, (0x3fd0 + rng.below(0x2d) as u16) | (rng.next() as u16) & 0x8000);
        }
        for xmm in &mut fpu.xmm {
            *xmm = values::vector(rng);
        }
        fpu
    }

    pub(super) fn finish(mut self) -> Case {
        let fpu = self.fpu();
        let mut gpr = [0; 16];
        for (register, slot) in gpr.iter_mut().enumerate() {
            *slot = match self.init[register] {
                Some(value) => value,
                None => values::integer(&mut self.rng),
            };
            if self.bits == 32 {
                *slot &= 0xffff_ffff;
            }
        }
        let mut flags = self.rng.next() & rflags::STATUS | rflags::FIXED | rflags::IF;
        if self.rng.chance(15) {
            flags |= rflags::DF;
        }
        debug_assert!(self.bytes.len() + 64 < CODE_LEN - 0x1000);
        Case {
            bits: self.bits,
            entry: self.entry,
            bytes: self.bytes,
            units: self.units,
            cpu: CpuImage { gpr, rip: self.entry, rflags: flags, fpu },
            patches: self.patches,
        }
    }
}
