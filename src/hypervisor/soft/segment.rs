//! Descriptors, segment register loads and far transfers.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::arch::x86_64::{Segment, rflags, seg, vector};

use super::cpu::Cpu;
use super::int::Int;
use super::op::{Exec, Handler, Op, Stop};

/// A segment descriptor as it lies in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor(pub(super) u64);

impl Descriptor {
    pub(super) fn dpl(self) -> u8 {
        (self.0 >> 45) as u8 & 3
    }
    pub(super) fn present(self) -> bool {
        self.0 >> 47 & 1 != 0
    }
    /// Code or data, not system.
    pub(super) fn ordinary(self) -> bool {
        self.0 >> 44 & 1 != 0
    }
    pub(super) fn kind(self) -> u8 {
        (self.0 >> 40) as u8 & 15
    }
    pub(super) fn code(self) -> bool {
        self.ordinary() && self.kind() & 8 != 0
    }
    pub(super) fn conforming(self) -> bool {
        self.kind() & 4 != 0
    }
    /// Data that may be written.
    fn writable(self) -> bool {
        !self.code() && self.kind() & 2 != 0
    }
    /// Data, or code that may be read.
    fn readable(self) -> bool {
        !self.code() || self.kind() & 2 != 0
    }
    fn long(self) -> bool {
        self.0 >> 53 & 1 != 0
    }
    fn big(self) -> bool {
        self.0 >> 54 & 1 != 0
    }
    pub(super) fn limit(self) -> u32 {
        let limit = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.0 >> 55 & 1 != 0 { limit << 12 | 0xfff } else { limit }
    }
    fn base(self) -> u64 {
        self.0 >> 16 & 0xff_ffff | self.0 >> 32 & 0xff00_0000
    }
    pub(super) fn segment(self, selector: u16) -> Segment {
        Segment {
            selector,
            base: self.base(),
            limit: self.limit(),
            attributes: (self.0 >> 40 & 0xff | self.0 >> 40 & 0xf000) as u16,
        }
    }
}

/// A flat segment as SYSCALL and its kin load it.
pub(super) fn flat(selector: u16, code: bool, dpl: u16, long: bool) -> Segment {
    let kind = if code { 0xb } else { 0x3 };
    let size = if long { 1 << 13 } else { 1 << 14 };
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attributes: kind | 1 << 4 | dpl << 5 | 1 << 7 | size | 1 << 15,
    }
}

fn null(selector: u16) -> bool {
    selector & !3 == 0
}

impl Cpu {
    fn gp_sel(&mut self, selector: u16) -> Stop {
        self.raise(vector::GP, Some((selector & !3) as u32))
    }

    /// Address of the descriptor that `selector` names, with `len` bytes of it inside the table.
    fn descriptor_address(&mut self, selector: u16, len: u64) -> Result<u64, Stop> {
        let index = (selector & !7) as u64;
        let (base, limit) = if selector & 4 != 0 {
            if null(self.ldtr.selector) {
                return Err(self.gp_sel(selector));
            }
            (self.ldtr.base, self.ldtr.limit as u64)
        } else {
            (self.gdt.base, self.gdt.limit as u64)
        };
        if index + len - 1 > limit {
            return Err(self.gp_sel(selector));
        }
        Ok(base.wrapping_add(index))
    }

    /// Reads the descriptor that `selector` names.
    pub(super) fn descriptor(&mut self, selector: u16) -> Result<Descriptor, Stop> {
        let at = self.descriptor_address(selector, 8)?;
        self.read_system::<u64>(at).map(Descriptor)
    }

    fn mark_accessed(&mut self, selector: u16, d: Descriptor) -> Result<Descriptor, Stop> {
        if d.0 >> 40 & 1 == 0 {
            let at = self.descriptor_address(selector, 8)?;
            self.write_system::<u64>(at, d.0 | 1 << 40)?;
        }
        Ok(Descriptor(d.0 | 1 << 40))
    }

    /// Loads ES, DS, FS, GS or SS by MOV, POP or LxS.
    pub(super) fn load_segment(&mut self, which: usize, selector: u16) -> Exec {
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

    /// Checks a code segment for a transfer that leaves the processor at privilege `cpl`.
    fn code_segment(&mut self, selector: u16, cpl: u8, is_return: bool) -> Result<Segment, Stop> {
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

    /// Code segment for a return (IRET, far RET) to `selector`.
    pub(super) fn return_code_segment(&mut self, selector: u16) -> Result<Segment, Stop> {
        let rpl = (selector & 3) as u8;
        if !null(selector) && rpl < self.cpl {
            return Err(self.gp_sel(selector));
        }
        self.code_segment(selector, rpl, true)
    }

    /// Stack segment for a return that ends at privilege `cpl`, in code of `long` size.
    pub(super) fn return_stack_segment(
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
    pub(super) fn drop_inner_segments(&mut self) {
        for which in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let s = self.seg[which];
            let code = s.attributes & 0x18 == 0x18;
            let conforming = code && s.attributes & 4 != 0;
            if !null(s.selector) && !conforming && s.dpl() < self.cpl {
                self.seg[which] = Segment { base: s.base, ..Segment::default() };
            }
        }
    }

    /// LDTR or TR from `selector`: a 16-byte system descriptor of one of `kinds`.
    fn system_segment(&mut self, selector: u16, kinds: &[u8]) -> Result<(Segment, u64), Stop> {
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

    pub(super) fn load_ldtr(&mut self, selector: u16) -> Exec {
        self.ldtr = if null(selector) {
            Segment { selector, ..Segment::default() }
        } else {
            self.system_segment(selector, &[2])?.0
        };
        Ok(())
    }

    pub(super) fn load_tr(&mut self, selector: u16) -> Exec {
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

    /// #GP(0) where 64-bit code cannot be.
    fn check_entry(&mut self, cs: &Segment, rip: u64) -> Exec {
        let canonical = (rip as i64) << 16 >> 16 == rip as i64;
        if canonical || !cs.long() { Ok(()) } else { Err(self.gp()) }
    }

    /// A far JMP or CALL to `selector:offset`. Pushes with `T` when it is a call.
    fn far_transfer<T: Int>(&mut self, op: &Op, selector: u16, offset: u64, call: bool) -> Exec {
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
            let offset = d.0 & 0xffff | d.0 >> 32 & 0xffff_0000 | high << 32;
            ((d.0 >> 16) as u16, offset)
        };
        let through_gate = !d.ordinary();
        let inner = if through_gate { self.descriptor(target)?.dpl() } else { self.cpl };
        if through_gate && call && inner < self.cpl {
            return self.gate_to_inner(op, target, offset, inner);
        }
        let cs = self.code_segment(if through_gate { target & !3 } else { target }, self.cpl, false)?;
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
        if let Err(stop) = self.check_entry(&cs, offset) {
            self.regs[4] = rsp;
            return Err(stop);
        }
        self.seg[seg::CS] = cs;
        self.refresh();
        self.rip = if self.long { offset } else { offset as u32 as u64 };
        Err(Stop::Branch)
    }

    /// A call through a gate to an inner privilege: stack from the TSS.
    fn gate_to_inner(&mut self, op: &Op, target: u16, offset: u64, dpl: u8) -> Exec {
        let cs = self.code_segment(target & !3 | dpl as u16, dpl, false)?;
        let stack = self.tr.base.wrapping_add(4 + 8 * dpl as u64);
        let new_rsp = self.read_system::<u64>(stack)?;
        let frame = [
            self.next_ip(op),
            self.seg[seg::CS].selector as u64,
            self.regs[4],
            self.seg[seg::SS].selector as u64,
        ];
        let bottom = new_rsp.wrapping_sub(32);
        for (i, v) in frame.into_iter().enumerate() {
            self.write_system(bottom.wrapping_add(8 * i as u64), v)?;
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
fn far_pointer<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(u16, u64), Stop> {
    let offset = cpu.load::<T>(op)?.to_u64();
    let mut second = *op;
    second.disp = op.disp.wrapping_add(T::BYTES as i64);
    let selector = cpu.load::<u16>(&second)?;
    Ok((selector, offset))
}

fn far_m<const CALL: bool, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (selector, offset) = far_pointer::<T>(cpu, op)?;
    cpu.far_transfer::<T>(op, selector, offset, CALL)
}

fn far_i<const CALL: bool, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.far_transfer::<T>(op, op.extra, op.imm, CALL)
}

fn retf<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let at = |cpu: &Cpu, i: u64| cpu.stack_addr(cpu.regs[4].wrapping_add(i));
    let first = at(cpu, 0);
    let rip = cpu.read::<T>(first).map_err(|stop| cpu.stack_stop(stop))?.to_u64();
    let selector = cpu.read::<T>(at(cpu, T::BYTES))?.to_u64() as u16;
    let cs = cpu.return_code_segment(selector)?;
    cpu.check_entry(&cs, rip)?;
    let outer = (cs.selector & 3) as u8 > cpu.cpl;
    if outer {
        let skip = 2 * T::BYTES + op.imm;
        let rsp = cpu.read::<T>(at(cpu, skip))?.to_u64();
        let ss = cpu.read::<T>(at(cpu, skip + T::BYTES))?.to_u64() as u16;
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
    cpu.rip = if cpu.long { rip } else { rip as u32 as u64 };
    Err(Stop::Branch)
}

fn mov_to_seg_r(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.get::<u16>(op.src);
    load(cpu, op, v)
}
fn mov_to_seg_m(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.load::<u16>(op)?;
    load(cpu, op, v)
}
fn load(cpu: &mut Cpu, op: &Op, selector: u16) -> Exec {
    cpu.load_segment(op.extra as usize, selector)?;
    if op.extra as usize == seg::SS {
        cpu.shadow = true;
        return Err(Stop::Next);
    }
    Ok(())
}
fn mov_from_seg_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.set(op.dst, T::from_u64(cpu.seg[op.extra as usize & 7].selector as u64));
    Ok(())
}
fn mov_from_seg_m(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.store(op, cpu.seg[op.extra as usize & 7].selector)
}
fn push_seg<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.seg[op.extra as usize & 7].selector;
    if T::BITS == 32 {
        // Only the low half of the slot is written.
        let rsp = cpu.regs[4].wrapping_sub(4);
        cpu.write(cpu.stack_addr(rsp), v)?;
        cpu.set_rsp(rsp);
        return Ok(());
    }
    cpu.push(T::from_u64(v as u64))
}
fn pop_seg<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = cpu.read::<T>(cpu.stack_addr(cpu.regs[4]))?;
    cpu.load_segment(op.extra as usize, v.to_u64() as u16)?;
    cpu.set_rsp(cpu.regs[4].wrapping_add(T::BYTES));
    if op.extra as usize == seg::SS {
        cpu.shadow = true;
        return Err(Stop::Next);
    }
    Ok(())
}
fn load_far_pointer<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let (selector, offset) = far_pointer::<T>(cpu, op)?;
    cpu.load_segment(op.extra as usize, selector)?;
    cpu.set(op.dst, T::from_u64(offset));
    Ok(())
}

/// What LAR, LSL, VERR and VERW may see; `None` clears ZF.
fn visible(cpu: &mut Cpu, selector: u16) -> Result<Option<Descriptor>, Stop> {
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

fn selector_operand(cpu: &mut Cpu, op: &Op) -> Result<u16, Stop> {
    if op.extra != 0 { cpu.load(op) } else { Ok(cpu.get(op.src)) }
}

fn lar<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let selector = selector_operand(cpu, op)?;
    let d = visible(cpu, selector)?.filter(|d| d.ordinary() || matches!(d.kind(), 2 | 9 | 0xb | 0xc));
    if let Some(d) = d {
        // The manual leaves bits 16 to 19 open; processors give the limit that is there.
        cpu.set(op.dst, T::from_u64(d.0 >> 32 & 0xff_ff00));
    }
    cpu.flags.set_zf(d.is_some());
    Ok(())
}
fn lsl<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let selector = selector_operand(cpu, op)?;
    let d = visible(cpu, selector)?.filter(|d| d.ordinary() || matches!(d.kind(), 2 | 9 | 0xb));
    if let Some(d) = d {
        cpu.set(op.dst, T::from_u64(d.limit() as u64));
    }
    cpu.flags.set_zf(d.is_some());
    Ok(())
}
fn verify<const WRITE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let selector = selector_operand(cpu, op)?;
    let d = visible(cpu, selector)?;
    let ok = d.is_some_and(|d| d.ordinary() && if WRITE { d.writable() } else { d.readable() });
    cpu.flags.set_zf(ok);
    Ok(())
}

fn iret<T: Int>(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.sysflags & rflags::NT != 0 {
        return Err(cpu.gp());
    }
    let at = |cpu: &Cpu, i: u64| cpu.stack_addr(cpu.regs[4].wrapping_add(i * T::BYTES));
    let first = at(cpu, 0);
    let rip = cpu.read::<T>(first).map_err(|stop| cpu.stack_stop(stop))?.to_u64();
    let selector = cpu.read::<T>(at(cpu, 1))?.to_u64() as u16;
    let flags = cpu.read::<T>(at(cpu, 2))?.to_u64();
    let cs = cpu.return_code_segment(selector)?;
    cpu.check_entry(&cs, rip)?;
    let new_cpl = (cs.selector & 3) as u8;
    let outer = new_cpl > cpu.cpl;
    let stack = if cpu.long || outer {
        let rsp = cpu.read::<T>(at(cpu, 3))?.to_u64();
        let ss = cpu.read::<T>(at(cpu, 4))?.to_u64() as u16;
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
    cpu.nmi_blocked = false;
    cpu.rip = if cpu.long { rip } else { rip as u32 as u64 };
    cpu.events_may_open();
    Err(Stop::Branch)
}

fn seg_number(r: Register) -> Option<u16> {
    r.is_segment_register().then(|| r.number() as u16)
}

/// Handler for the instruction, if it is one of this family.
pub(super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    let far = matches!(ins.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32);
    macro_rules! by_width {
        ($w:expr, $f:ident $(, $c:expr)*) => {
            match $w {
                2 => Some($f::<$($c,)* u16> as Handler),
                4 => Some($f::<$($c,)* u32> as Handler),
                _ => Some($f::<$($c,)* u64> as Handler),
            }
        };
    }
    match ins.mnemonic() {
        Mnemonic::Mov => match (ins.op0_kind(), ins.op1_kind()) {
            (OpKind::Register, source) if ins.op0_register().is_segment_register() => {
                op.extra = seg_number(ins.op0_register())?;
                if op.extra as usize == seg::CS {
                    return None;
                }
                if source == OpKind::Memory {
                    return Some(mov_to_seg_m);
                }
                op.src = super::decode::gpr(ins.op1_register());
                Some(mov_to_seg_r)
            }
            (dest, OpKind::Register) if ins.op1_register().is_segment_register() => {
                op.extra = seg_number(ins.op1_register())?;
                if dest == OpKind::Memory {
                    return Some(mov_from_seg_m);
                }
                op.dst = super::decode::gpr(ins.op0_register());
                by_width!(ins.op0_register().size(), mov_from_seg_r)
            }
            _ => None,
        },
        Mnemonic::Push if ins.op0_kind() == OpKind::Register => {
            op.extra = seg_number(ins.op0_register())?;
            by_width!(ins.stack_pointer_increment().unsigned_abs(), push_seg)
        }
        Mnemonic::Pop if ins.op0_kind() == OpKind::Register => {
            op.extra = seg_number(ins.op0_register())?;
            by_width!(ins.stack_pointer_increment().unsigned_abs(), pop_seg)
        }
        Mnemonic::Lss | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lds | Mnemonic::Les => {
            op.extra = match ins.mnemonic() {
                Mnemonic::Lss => seg::SS,
                Mnemonic::Lfs => seg::FS,
                Mnemonic::Lgs => seg::GS,
                Mnemonic::Lds => seg::DS,
                _ => seg::ES,
            } as u16;
            op.dst = super::decode::gpr(ins.op0_register());
            by_width!(ins.op0_register().size(), load_far_pointer)
        }
        Mnemonic::Jmp | Mnemonic::Call => {
            let call = ins.mnemonic() == Mnemonic::Call;
            if far {
                op.extra = ins.far_branch_selector();
                let wide = ins.op0_kind() == OpKind::FarBranch32;
                op.imm = if wide { ins.far_branch32() as u64 } else { ins.far_branch16() as u64 };
                let width = if wide { 4 } else { 2 };
                return if call { by_width!(width, far_i, true) } else { by_width!(width, far_i, false) };
            }
            let width = match ins.code() {
                Code::Jmp_m1616 | Code::Call_m1616 => 2,
                Code::Jmp_m1632 | Code::Call_m1632 => 4,
                Code::Jmp_m1664 | Code::Call_m1664 => 8,
                _ => return None,
            };
            if call { by_width!(width, far_m, true) } else { by_width!(width, far_m, false) }
        }
        Mnemonic::Retf => {
            if ins.op_count() > 0 {
                op.imm = ins.immediate16() as u64;
            }
            by_width!(
                match ins.code() {
                    Code::Retfw | Code::Retfw_imm16 => 2,
                    Code::Retfd | Code::Retfd_imm16 => 4,
                    _ => 8,
                },
                retf
            )
        }
        Mnemonic::Iret => Some(iret::<u16>),
        Mnemonic::Iretd => Some(iret::<u32>),
        Mnemonic::Iretq => Some(iret::<u64>),
        Mnemonic::Lar | Mnemonic::Lsl => {
            let memory = ins.op1_kind() == OpKind::Memory;
            op.extra = memory as u16;
            op.dst = super::decode::gpr(ins.op0_register());
            if !memory {
                op.src = super::decode::gpr(ins.op1_register());
            }
            let width = ins.op0_register().size();
            if ins.mnemonic() == Mnemonic::Lar { by_width!(width, lar) } else { by_width!(width, lsl) }
        }
        Mnemonic::Verr | Mnemonic::Verw => {
            let memory = ins.op0_kind() == OpKind::Memory;
            op.extra = memory as u16;
            if !memory {
                op.src = super::decode::gpr(ins.op0_register());
            }
            Some(if ins.mnemonic() == Mnemonic::Verr { verify::<false> } else { verify::<true> })
        }
        _ => None,
    }
}
