//! Far jumps, calls and returns, and call gates.

use crate::arch::x86_64::{Segment, seg, vector};

use super::super::cpu::Cpu;
use super::super::int::Int;
use super::super::op::{Exec, Op, Stop};
use super::descriptor::null;

impl Cpu {
    /// Checks a code segment for a transfer that leaves the processor at privilege `cpl`.
    pub(super) fn code_segment(&mut self, selector: u16, cpl: u8, is_return: bool) -> Result<Segment, Stop> {
        if null(selector) {
            return Err(self.raise(vector::GP, Some(0)));
        }
        let d = self.descriptor(selector)?;
        let rpl = (selector & 3) as u8;
        let privilege = match (is_return, d.conforming()) {
            (true, true) => d.dpl() <= rpl,
            (true, false) => d.dpl() == rpl,
            (false, true) => d.dpl() <= cpl,
            (false, false) => d.dpl() == cpl && rpl <= cpl,
        };
        if !d.code() || !privilege || (d.long() && d.big()) {
            return Err(self.gp_sel(selector));
        }
        if !d.present() {
            return Err(self.raise(vector::NP, Some((selector & !3) as u32)));
        }
        let d = self.mark_accessed(selector, d)?;
        Ok(d.segment(selector & !3 | cpl as u16))
    }

    /// A far JMP or CALL to `selector:offset`. Pushes with `T` when it is a call.
    pub(super) fn far_transfer<T: Int>(&mut self, op: &Op, selector: u16, offset: u64, call: bool) -> Exec {
        if null(selector) {
            return Err(self.raise(vector::GP, Some(0)));
        }
        let d = self.descriptor(selector)?;
        let (target, offset) = if d.ordinary() {
            (selector, offset)
        } else {
            // A 64-bit call gate.
            if d.kind() != 0xc || d.dpl() < self.cpl || d.dpl() < (selector & 3) as u8 {
                return Err(self.gp_sel(selector));
            }
            if !d.present() {
                return Err(self.raise(vector::NP, Some((selector & !3) as u32)));
            }
            let at = self.descriptor_address(selector, 16)?;
            let high = self.read_system::<u64>(at.wrapping_add(8))?;
            if high >> 40 & 0x1f != 0 {
                return Err(self.gp_sel(selector));
            }
            let offset = d.0 & 0xffff | d.0 >> 32 & 0xffff_0000 | high << 32;
            ((d.0 >> 16) as u16, offset)
        };
        let through_gate = !d.ordinary();
        if through_gate {
            if null(target) {
                return Err(self.gp());
            }
            let code = self.descriptor(target)?;
            if !code.code() || !code.long() || code.big() {
                return Err(self.gp_sel(target));
            }
            if call && !code.conforming() && code.dpl() < self.cpl {
                return self.gate_to_inner(op, target, offset, code.dpl());
            }
        }
        let cs = self.code_segment(if through_gate { target & !3 } else { target }, self.cpl, false)?;
        let offset = if cs.long() { offset } else { offset as u32 as u64 };
        let rsp = self.regs[4];
        if call {
            let old_cs = self.seg[seg::CS].selector;
            let next = self.next_ip(op);
            let pushed = if through_gate {
                self.push(old_cs as u64).and_then(|()| self.push(next))
            } else {
                self.push(T::from_u64(old_cs as u64)).and_then(|()| self.push(T::from_u64(next)))
            };
            if let Err(stop) = pushed {
                self.regs[4] = rsp;
                return Err(stop);
            }
        }
        // After the stores of a call, which stay.
        if let Err(stop) = self.check_code_address(offset) {
            self.regs[4] = rsp;
            return Err(stop);
        }
        self.seg[seg::CS] = cs;
        self.refresh();
        self.rip = offset;
        Err(Stop::Branch)
    }

    /// #GP(0) where no code can be: the transfer faults, not what it leads to.
    pub(super) fn check_code_address(&mut self, rip: u64) -> Exec {
        if (rip as i64) << 16 >> 16 == rip as i64 { Ok(()) } else { Err(self.gp()) }
    }

    /// Reads the stack: a non-canonical address is #SS(0).
    pub(super) fn read_stack<T: Int>(&mut self, va: u64) -> Result<T, Stop> {
        self.read(va).map_err(|stop| self.stack_stop(stop))
    }

    /// A call through a gate to an inner privilege: stack from the TSS.
    pub(super) fn gate_to_inner(&mut self, op: &Op, target: u16, offset: u64, dpl: u8) -> Exec {
        let cs = self.code_segment(target & !3 | dpl as u16, dpl, false)?;
        self.check_code_address(offset)?;
        let new_rsp = self.tss_stack(4 + 8 * dpl as u64)?;
        let frame = [
            self.next_ip(op),
            self.seg[seg::CS].selector as u64,
            self.regs[4],
            self.seg[seg::SS].selector as u64,
        ];
        let bottom = new_rsp.wrapping_sub(32);
        for (i, v) in frame.into_iter().enumerate() {
            self.write_system(bottom.wrapping_add(8 * i as u64), v).map_err(|stop| self.stack_stop(stop))?;
        }
        self.regs[4] = bottom;
        self.seg[seg::SS] =
            Segment { selector: dpl as u16, attributes: (dpl as u16) << 5, ..Segment::default() };
        self.seg[seg::CS] = cs;
        self.refresh();
        self.rip = offset;
        Err(Stop::Branch)
    }
}

/// CS:offset of a far pointer in memory.
pub(super) fn far_pointer<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(u16, u64), Stop> {
    let offset = cpu.load::<T>(op)?.to_u64();
    let mut second = *op;
    second.disp = op.disp.wrapping_add(T::BYTES as i64);
    let selector = cpu.load::<u16>(&second)?;
    Ok((selector, offset))
}

pub(super) fn far_m<const CALL: bool, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (selector, offset) = far_pointer::<T>(cpu, op)?;
    cpu.far_transfer::<T>(op, selector, offset, CALL)
}

pub(super) fn far_i<const CALL: bool, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.far_transfer::<T>(op, op.extra, op.imm, CALL)
}

pub(super) fn retf<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let at = |cpu: &Cpu, i: u64| cpu.stack_addr(cpu.regs[4].wrapping_add(i));
    let rip = cpu.read_stack::<T>(at(cpu, 0))?.to_u64();
    let selector = cpu.read_stack::<T>(at(cpu, T::BYTES))?.to_u64() as u16;
    let cs = cpu.return_code_segment(selector)?;
    let rip = if cs.long() { rip } else { rip as u32 as u64 };
    cpu.check_code_address(rip)?;
    let outer = (cs.selector & 3) as u8 > cpu.cpl;
    if outer {
        let skip = 2 * T::BYTES + op.imm;
        let rsp = cpu.read_stack::<T>(at(cpu, skip))?.to_u64();
        let ss = cpu.read_stack::<T>(at(cpu, skip + T::BYTES))?.to_u64() as u16;
        let ss = cpu.return_stack_segment(ss, (cs.selector & 3) as u8, cs.long())?;
        cpu.seg[seg::CS] = cs;
        cpu.seg[seg::SS] = ss;
        cpu.refresh();
        cpu.drop_inner_segments();
        cpu.set_rsp(rsp.wrapping_add(op.imm));
    } else {
        cpu.set_rsp(cpu.regs[4].wrapping_add(2 * T::BYTES + op.imm));
        cpu.seg[seg::CS] = cs;
        cpu.refresh();
    }
    cpu.rip = rip;
    Err(Stop::Branch)
}
