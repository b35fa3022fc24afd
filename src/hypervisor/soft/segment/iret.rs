//! IRET, and what it shares with far returns: the segments of the code returned to.

use crate::arch::x86_64::{Segment, rflags, seg, vector};

use super::super::cpu::Cpu;
use super::super::int::Int;
use super::super::op::{Exec, Op, Stop};
use super::descriptor::null;

impl Cpu {
    /// Code segment for a return (IRET, far RET) to `selector`.
    pub(in super::super) fn return_code_segment(&mut self, selector: u16) -> Result<Segment, Stop> {
        let rpl = (selector & 3) as u8;
        if !null(selector) && rpl < self.cpl {
            return Err(self.gp_sel(selector));
        }
        self.code_segment(selector, rpl, true)
    }

    /// Stack segment for a return that ends at privilege `cpl`, in code of `long` size.
    pub(in super::super) fn return_stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        long: bool,
    ) -> Result<Segment, Stop> {
        if null(selector) {
            if !long || cpl == 3 {
                return Err(self.raise(vector::GP, Some(0)));
            }
            return Ok(Segment { selector, attributes: (cpl as u16) << 5, ..Segment::default() });
        }
        let d = self.descriptor(selector)?;
        if !d.ordinary() || !d.writable() || (selector & 3) as u8 != cpl || d.dpl() != cpl {
            return Err(self.gp_sel(selector));
        }
        if !d.present() {
            return Err(self.raise(vector::SS, Some((selector & !3) as u32)));
        }
        Ok(self.mark_accessed(selector, d)?.segment(selector))
    }

    /// After a return to an outer privilege: data segments that it may not use become null.
    pub(in super::super) fn drop_inner_segments(&mut self) {
        for which in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let s = self.seg[which];
            let code = s.attributes & 0x18 == 0x18;
            let conforming = code && s.attributes & 4 != 0;
            if !null(s.selector) && !conforming && s.dpl() < self.cpl {
                self.seg[which] = Segment { base: s.base, ..Segment::default() };
            }
        }
    }
}

pub(super) fn iret<T: Int>(cpu: &mut Cpu, _: &Op) -> Exec {
    // NMIs are let in again even where the instruction faults.
    if cpu.nmi_blocked {
        cpu.nmi_blocked = false;
        cpu.events_may_open();
    }
    if cpu.sysflags & rflags::NT != 0 {
        return Err(cpu.gp());
    }
    let at = |cpu: &Cpu, i: u64| cpu.stack_addr(cpu.regs[4].wrapping_add(i * T::BYTES));
    let rip = cpu.read_stack::<T>(at(cpu, 0))?.to_u64();
    let selector = cpu.read_stack::<T>(at(cpu, 1))?.to_u64() as u16;
    let flags = cpu.read_stack::<T>(at(cpu, 2))?.to_u64();
    let cs = cpu.return_code_segment(selector)?;
    let rip = if cs.long() { rip } else { rip as u32 as u64 };
    cpu.check_code_address(rip)?;
    let new_cpl = (cs.selector & 3) as u8;
    let outer = new_cpl > cpu.cpl;
    let stack = if cpu.long || outer {
        let rsp = cpu.read_stack::<T>(at(cpu, 3))?.to_u64();
        let ss = cpu.read_stack::<T>(at(cpu, 4))?.to_u64() as u16;
        Some((rsp, cpu.return_stack_segment(ss, new_cpl, cs.long())?))
    } else {
        None
    };
    let old_cpl = cpu.cpl;
    let mut mask =
        rflags::STATUS | rflags::TF | rflags::DF | rflags::NT | rflags::RF | rflags::AC | rflags::ID;
    if old_cpl == 0 {
        mask |= rflags::IOPL | rflags::VIF | rflags::VIP;
    }
    if old_cpl as u64 <= (cpu.sysflags & rflags::IOPL) >> 12 {
        mask |= rflags::IF;
    }
    if T::BITS == 16 {
        mask &= 0xffff;
    }
    let new = cpu.rflags() & !mask | flags & mask;
    match stack {
        Some((rsp, ss)) => {
            cpu.seg[seg::SS] = ss;
            cpu.regs[4] = rsp;
        }
        None => cpu.set_rsp(cpu.regs[4].wrapping_add(3 * T::BYTES)),
    }
    cpu.seg[seg::CS] = cs;
    cpu.refresh();
    cpu.set_rflags(new);
    if outer {
        cpu.drop_inner_segments();
    }
    cpu.rip = rip;
    cpu.events_may_open();
    Err(Stop::Branch)
}
