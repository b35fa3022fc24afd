//! Delivery of exceptions and interrupts through the IDT.

use crate::arch::x86_64::{Segment, rflags, seg, vector};

use super::cpu::{Cpu, Exception};
use super::op::{Exec, Op, Stop};

/// What is being delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// From outside: INTR or NMI.
    External,
    /// A fault or trap of the processor's own.
    Exception,
    /// INT n, INT3, INTO: subject to the gate's DPL.
    Software,
}

/// The machine must be reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TripleFault;

/// INT n and its kin: delivers at once, with the address of the next instruction.
pub(super) fn software_interrupt(cpu: &mut Cpu, op: &Op, vector: u8) -> Exec {
    let next = cpu.next_ip(op);
    cpu.enter_handler(vector, None, next, Source::Software)?;
    // TF is clear now, and a trap that was due is forgotten.
    cpu.step = false;
    Err(Stop::Branch)
}

/// INT1: a debug trap, so the gate's privilege does not matter.
pub(super) fn int1(cpu: &mut Cpu, op: &Op) -> Exec {
    let next = cpu.next_ip(op);
    cpu.enter_handler(vector::DB, None, next, Source::Exception)?;
    cpu.step = false;
    Err(Stop::Branch)
}

impl Cpu {
    /// Delivers `cpu.fault`, which was raised at `cpu.rip`, and what arises from delivering it.
    pub(super) fn deliver_fault(&mut self) -> Result<(), TripleFault> {
        let mut exception = self.fault;
        loop {
            if exception.vector == vector::PF {
                self.cr2 = exception.cr2;
            }
            let rip = self.rip;
            if self.enter_handler(exception.vector, exception.error, rip, Source::Exception).is_ok() {
                return Ok(());
            }
            if exception.vector == vector::DF {
                return Err(TripleFault);
            }
            let second = self.fault;
            if second.vector == vector::PF {
                self.cr2 = second.cr2;
            }
            exception = if escalates(exception.vector, second.vector) {
                Exception { vector: vector::DF, error: Some(0), ..Exception::default() }
            } else {
                second
            };
        }
    }

    /// Delivers an interrupt from outside before the instruction at `cpu.rip`.
    pub(super) fn deliver_external(&mut self, vector: u8) -> Result<(), TripleFault> {
        let rip = self.rip;
        match self.enter_handler(vector, None, rip, Source::External) {
            Ok(()) => Ok(()),
            Err(_) => self.deliver_fault(),
        }
    }

    /// Enters the handler of `vector`. On error nothing has changed and `cpu.fault` says why.
    fn enter_handler(&mut self, vector: u8, error: Option<u32>, rip: u64, source: Source) -> Exec {
        let result = self.try_handler(vector, error, rip, source);
        let second = &mut self.fault;
        if result.is_err()
            && source != Source::Software
            && matches!(second.vector, vector::TS | vector::NP | vector::SS | vector::GP)
        {
            // EXT: what was being delivered was not the program's own INT.
            second.error = second.error.map(|e| e | 1);
        }
        result
    }

    fn try_handler(&mut self, vector: u8, error: Option<u32>, rip: u64, source: Source) -> Exec {
        let idt_error = (vector as u32) << 3 | 2;
        let offset = vector as u64 * 16;
        if offset + 15 > self.idt.limit as u64 {
            return Err(self.raise(vector::GP, Some(idt_error)));
        }
        let at = self.idt.base.wrapping_add(offset);
        let low = self.read_system::<u64>(at)?;
        let high = self.read_system::<u64>(at.wrapping_add(8))?;
        let kind = low >> 40 & 0x1f;
        if kind != 0xe && kind != 0xf {
            return Err(self.raise(vector::GP, Some(idt_error)));
        }
        if source == Source::Software && ((low >> 45) as u8 & 3) < self.cpl {
            return Err(self.raise(vector::GP, Some(idt_error)));
        }
        if low >> 47 & 1 == 0 {
            return Err(self.raise(vector::NP, Some(idt_error)));
        }
        let target = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        let selector = (low >> 16) as u16;
        let ist = low >> 32 & 7;
        let cs_error = (selector & !3) as u32;
        if selector & !3 == 0 {
            return Err(self.gp());
        }
        let d = self.descriptor(selector)?;
        let cs = d.segment(selector);
        if !d.code() || d.dpl() > self.cpl || !cs.long() || cs.big() {
            return Err(self.raise(vector::GP, Some(cs_error)));
        }
        if !d.present() {
            return Err(self.raise(vector::NP, Some(cs_error)));
        }
        if (target as i64) << 16 >> 16 != target as i64 {
            return Err(self.gp());
        }
        let cpl = if d.conforming() { self.cpl } else { d.dpl() };
        let inner = cpl < self.cpl;
        let stack = if ist != 0 {
            self.tss_stack(0x24 + 8 * (ist - 1))?
        } else if inner {
            self.tss_stack(4 + 8 * cpl as u64)?
        } else {
            self.regs[4]
        } & !15;

        // From here on at the new privilege, so that the stack is checked against it.
        let old_cpl = std::mem::replace(&mut self.cpl, cpl);
        let old_long = std::mem::replace(&mut self.long, true);
        let mut flags = self.rflags();
        let old_ac = self.sysflags & rflags::AC;
        if old_cpl == 3 {
            // The user's AC must not open user pages to the switch.
            self.sysflags &= !rflags::AC;
        }
        self.select_tlb();
        let resumes = source == Source::Exception && !matches!(vector, vector::DB | vector::DF | vector::MC);
        if resumes || self.repeating {
            flags |= rflags::RF;
        } else {
            flags &= !rflags::RF;
        }
        let frame = [
            self.seg[seg::SS].selector as u64,
            self.regs[4],
            flags,
            self.seg[seg::CS].selector as u64,
            rip,
            error.unwrap_or(0) as u64,
        ];
        let count = if error.is_some() { 6 } else { 5 };
        let bottom = stack.wrapping_sub(8 * count as u64);
        let mut run = || -> Exec {
            // The lowest slot first: a frame across two pages faults before any of it is written.
            self.translate(bottom, super::cpu::Access::Write)?;
            for (i, v) in frame[..count].iter().enumerate() {
                self.write(stack.wrapping_sub(8 * (i as u64 + 1)), *v)?;
            }
            Ok(())
        };
        let pushed = run();
        self.sysflags |= old_ac;
        if let Err(stop) = pushed {
            self.cpl = old_cpl;
            self.long = old_long;
            self.select_tlb();
            return Err(self.stack_stop(stop));
        }
        self.regs[4] = bottom;
        self.seg[seg::CS] = Segment { selector: selector & !3 | cpl as u16, ..cs };
        if inner {
            self.seg[seg::SS] =
                Segment { selector: cpl as u16, attributes: (cpl as u16) << 5, ..Segment::default() };
        }
        let mut clear = rflags::TF | rflags::NT | rflags::RF | rflags::VM;
        if kind == 0xe {
            clear |= rflags::IF;
        }
        self.sysflags &= !clear;
        self.refresh();
        self.rip = target;
        Ok(())
    }

    /// A stack pointer from the TSS.
    pub(super) fn tss_stack(&mut self, offset: u64) -> Result<u64, Stop> {
        if offset + 7 > self.tr.limit as u64 {
            let selector = (self.tr.selector & !3) as u32;
            return Err(self.raise(vector::TS, Some(selector)));
        }
        self.read_system(self.tr.base.wrapping_add(offset))
    }
}

/// Whether `second`, raised while delivering `first`, makes a double fault.
fn escalates(first: u8, second: u8) -> bool {
    let contributory = |v: u8| matches!(v, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP);
    match first {
        vector::PF => second == vector::PF || contributory(second),
        v if contributory(v) => contributory(second),
        _ => false,
    }
}
