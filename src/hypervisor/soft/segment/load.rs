//! Loads of segment registers, LDTR and TR, and what LAR, LSL, VERR and VERW say about selectors.

use crate::arch::x86_64::{Segment, seg, vector};

use super::super::cpu::Cpu;
use super::super::int::Int;
use super::super::op::{Exec, Op, Stop};
use super::descriptor::{Descriptor, null};
use super::far::far_pointer;

impl Cpu {
    /// Loads ES, DS, FS, GS or SS by MOV, POP or LxS.
    pub(in super::super) fn load_segment(&mut self, which: usize, selector: u16) -> Exec {
        let rpl = (selector & 3) as u8;
        if null(selector) {
            if which == seg::SS && (!self.long || self.cpl == 3 || rpl != self.cpl) {
                return Err(self.raise(vector::GP, Some(0)));
            }
            // In long mode FS and GS keep nothing of a null segment; Intel clears the base.
            self.seg[which] = Segment { selector, ..Segment::default() };
            self.seg_base[which] = 0;
            return Ok(());
        }
        let d = self.descriptor(selector)?;
        let ok = if which == seg::SS {
            d.ordinary() && d.writable() && rpl == self.cpl && d.dpl() == self.cpl
        } else {
            d.ordinary()
                && d.readable()
                && (d.code() && d.conforming() || (d.dpl() >= rpl && d.dpl() >= self.cpl))
        };
        if !ok {
            return Err(self.gp_sel(selector));
        }
        if !d.present() {
            let v = if which == seg::SS { vector::SS } else { vector::NP };
            return Err(self.raise(v, Some((selector & !3) as u32)));
        }
        let d = self.mark_accessed(selector, d)?;
        self.seg[which] = d.segment(selector);
        self.seg_base[which] = self.seg[which].base;
        Ok(())
    }

    /// LDTR or TR from `selector`: a 16-byte system descriptor of one of `kinds`.
    pub(super) fn system_segment(&mut self, selector: u16, kinds: &[u8]) -> Result<(Segment, u64), Stop> {
        if selector & 4 != 0 {
            return Err(self.gp_sel(selector));
        }
        let at = self.descriptor_address(selector, 16)?;
        let d = Descriptor(self.read_system::<u64>(at)?);
        let high = self.read_system::<u64>(at.wrapping_add(8))?;
        if d.ordinary() || !kinds.contains(&d.kind()) || high >> 40 & 0x1f != 0 {
            return Err(self.gp_sel(selector));
        }
        if !d.present() {
            return Err(self.raise(vector::NP, Some((selector & !3) as u32)));
        }
        let mut s = d.segment(selector);
        s.base |= high << 32;
        Ok((s, at))
    }

    pub(in super::super) fn load_ldtr(&mut self, selector: u16) -> Exec {
        self.ldtr = if null(selector) {
            Segment { selector, ..Segment::default() }
        } else {
            self.system_segment(selector, &[2])?.0
        };
        Ok(())
    }

    pub(in super::super) fn load_tr(&mut self, selector: u16) -> Exec {
        if null(selector) {
            return Err(self.raise(vector::GP, Some(0)));
        }
        let (mut s, at) = self.system_segment(selector, &[9])?;
        let low = self.read_system::<u64>(at)?;
        self.write_system::<u64>(at, low | 2 << 40)?;
        s.attributes |= 2;
        self.tr = s;
        Ok(())
    }
}

pub(super) fn mov_to_seg_r(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.get::<u16>(op.src);
    load(cpu, op, v)
}
pub(super) fn mov_to_seg_m(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.load::<u16>(op)?;
    load(cpu, op, v)
}
pub(super) fn load(cpu: &mut Cpu, op: &Op, selector: u16) -> Exec {
    cpu.load_segment(op.extra as usize, selector)?;
    if op.extra as usize == seg::SS {
        // No debug trap between the two halves of a stack switch either.
        cpu.step = false;
        cpu.shadow = true;
        return Err(Stop::Next);
    }
    Ok(())
}
pub(super) fn mov_from_seg_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.set(op.dst, T::from_u64(cpu.seg[op.extra as usize & 7].selector as u64));
    Ok(())
}
pub(super) fn mov_from_seg_m(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.store(op, cpu.seg[op.extra as usize & 7].selector)
}
pub(super) fn push_seg<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.seg[op.extra as usize & 7].selector;
    if T::BITS == 32 {
        // Only the low half of the slot is written.
        let rsp = cpu.regs[4].wrapping_sub(4);
        cpu.write(cpu.stack_addr(rsp), v).map_err(|stop| cpu.stack_stop(stop))?;
        cpu.set_rsp(rsp);
        return Ok(());
    }
    cpu.push(T::from_u64(v as u64))
}
pub(super) fn pop_seg<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.read_stack::<T>(cpu.stack_addr(cpu.regs[4]))?;
    cpu.load_segment(op.extra as usize, v.to_u64() as u16)?;
    cpu.set_rsp(cpu.regs[4].wrapping_add(T::BYTES));
    if op.extra as usize == seg::SS {
        // No debug trap between the two halves of a stack switch either.
        cpu.step = false;
        cpu.shadow = true;
        return Err(Stop::Next);
    }
    Ok(())
}
pub(super) fn load_far_pointer<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (selector, offset) = far_pointer::<T>(cpu, op)?;
    cpu.load_segment(op.extra as usize, selector)?;
    cpu.set(op.dst, T::from_u64(offset));
    Ok(())
}

/// What LAR, LSL, VERR and VERW may see; `None` clears ZF.
pub(super) fn visible(cpu: &mut Cpu, selector: u16) -> Result<Option<Descriptor>, Stop> {
    if null(selector) {
        return Ok(None);
    }
    match cpu.descriptor(selector) {
        Ok(d) => {
            let ok = d.code() && d.conforming() || (d.dpl() >= cpu.cpl && d.dpl() >= (selector & 3) as u8);
            Ok(ok.then_some(d))
        }
        Err(_) if cpu.fault.vector == vector::GP => Ok(None),
        Err(stop) => Err(stop),
    }
}

pub(super) fn selector_operand(cpu: &mut Cpu, op: &Op) -> Result<u16, Stop> {
    if op.extra != 0 { cpu.load(op) } else { Ok(cpu.get(op.src)) }
}

pub(super) fn lar<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let selector = selector_operand(cpu, op)?;
    let d = visible(cpu, selector)?.filter(|d| d.ordinary() || matches!(d.kind(), 2 | 9 | 0xb | 0xc));
    if let Some(d) = d {
        // The manual leaves bits 16 to 19 open; processors give the limit that is there.
        cpu.set(op.dst, T::from_u64(d.0 >> 32 & 0xff_ff00));
    }
    cpu.flags.set_zf(d.is_some());
    Ok(())
}
pub(super) fn lsl<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let selector = selector_operand(cpu, op)?;
    let d = visible(cpu, selector)?.filter(|d| d.ordinary() || matches!(d.kind(), 2 | 9 | 0xb));
    if let Some(d) = d {
        cpu.set(op.dst, T::from_u64(d.limit() as u64));
    }
    cpu.flags.set_zf(d.is_some());
    Ok(())
}
pub(super) fn verify<const WRITE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let selector = selector_operand(cpu, op)?;
    let d = visible(cpu, selector)?;
    let ok = d.is_some_and(|d| d.ordinary() && if WRITE { d.writable() } else { d.readable() });
    cpu.flags.set_zf(ok);
    Ok(())
}

/// ARPL: a selector's RPL is made no smaller than another's. Memory is written only where that changes it.
pub(super) fn arpl<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let rpl = cpu.get::<u16>(op.src) & 3;
    let old = if MEMORY { cpu.load::<u16>(op)? } else { cpu.get(op.dst) };
    let raises = old & 3 < rpl;
    if raises {
        let new = old & !3 | rpl;
        if MEMORY { cpu.store(op, new)? } else { cpu.set(op.dst, new) }
    }
    cpu.flags.set_zf(raises);
    Ok(())
}
