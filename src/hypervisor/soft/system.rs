//! System instructions: control registers, descriptor tables, MSRs, SYSCALL and its kin, ports,
//! TLB control, HLT, flags.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::arch::x86_64::{cr0, cr4, efer, rflags, seg};

use super::cpu::{Access, Cpu, attention};
use super::decode::gpr;
use super::int::Int;
use super::op::{Exec, Handler, Op, Stop, flag};
use super::segment::flat;

impl Cpu {
    /// #GP(0) unless at privilege 0.
    #[inline(always)]
    fn privileged(&mut self) -> Exec {
        if self.cpl != 0 { Err(self.gp()) } else { Ok(()) }
    }

    /// After something that may have let events in: has them looked at before the next block.
    pub(super) fn events_may_open(&self) {
        let waiting = self.nmi_pending && !self.nmi_blocked;
        if let Some(apic) = &self.apic
            && (waiting || apic.has_event(self.interrupts_enabled()))
        {
            self.attention.fetch_or(attention::EVENT, std::sync::atomic::Ordering::SeqCst);
        }
    }
}

// --- flags ---

fn cli(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cpl as u64 > (cpu.sysflags & rflags::IOPL) >> 12 {
        return Err(cpu.gp());
    }
    cpu.sysflags &= !rflags::IF;
    Ok(())
}

fn sti(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cpl as u64 > (cpu.sysflags & rflags::IOPL) >> 12 {
        return Err(cpu.gp());
    }
    if cpu.sysflags & rflags::IF == 0 {
        cpu.sysflags |= rflags::IF;
        cpu.shadow = true;
        cpu.events_may_open();
    }
    Err(Stop::Next)
}

fn pushf<T: Int>(cpu: &mut Cpu, _: &Op) -> Exec {
    let v = cpu.rflags() & !(rflags::RF | rflags::VM);
    cpu.push(T::from_u64(v))
}

fn popf<T: Int>(cpu: &mut Cpu, _: &Op) -> Exec {
    let v = cpu.pop::<T>()?.to_u64();
    let mut mask = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;
    if cpu.cpl == 0 {
        mask |= rflags::IOPL;
    }
    if cpu.cpl as u64 <= (cpu.sysflags & rflags::IOPL) >> 12 {
        mask |= rflags::IF;
    }
    if T::BITS == 16 {
        mask &= 0xffff;
    }
    let old = cpu.rflags();
    let new = (old & !mask | v & mask) & !rflags::RF;
    cpu.set_rflags(new);
    if (old ^ new) & (rflags::IF | rflags::TF) != 0 {
        cpu.events_may_open();
        return Err(Stop::Next);
    }
    Ok(())
}

fn set_ac<const ON: bool>(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cpl != 0 {
        return Err(cpu.ud());
    }
    if ON {
        cpu.sysflags |= rflags::AC;
    } else {
        cpu.sysflags &= !rflags::AC;
    }
    cpu.select_tlb();
    Ok(())
}

// --- ports ---

/// #GP(0) unless the current privilege may use `len` ports from `port`.
pub(super) fn check_port(cpu: &mut Cpu, port: u16, len: u64) -> Exec {
    if cpu.cpl as u64 <= (cpu.sysflags & rflags::IOPL) >> 12 {
        return Ok(());
    }
    if cpu.tr.limit < 0x67 {
        return Err(cpu.gp());
    }
    let map = cpu.read_system::<u16>(cpu.tr.base.wrapping_add(0x66))? as u64;
    let byte = map + port as u64 / 8;
    if byte + 1 > cpu.tr.limit as u64 {
        return Err(cpu.gp());
    }
    let bits = cpu.read_system::<u16>(cpu.tr.base.wrapping_add(byte))?;
    let mask = ((1u32 << len) - 1) << (port & 7);
    if bits as u32 & mask != 0 { Err(cpu.gp()) } else { Ok(()) }
}

pub(super) fn port_in<T: Int>(cpu: &Cpu, port: u16) -> T {
    let mut data = [0xff; 8];
    if let Some(io) = cpu.io() {
        io.port_read(port, &mut data[..T::BYTES as usize]);
    }
    T::from_u64(u64::from_le_bytes(data))
}

pub(super) fn port_out<T: Int>(cpu: &Cpu, port: u16, v: T) {
    if let Some(io) = cpu.io() {
        io.port_write(port, &v.to_u64().to_le_bytes()[..T::BYTES as usize]);
    }
}

fn port_of(cpu: &Cpu, op: &Op) -> u16 {
    if op.extra != 0 { op.imm as u16 } else { cpu.get(16) }
}

fn in_<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let port = port_of(cpu, op);
    check_port(cpu, port, T::BYTES)?;
    let v = port_in::<T>(cpu, port);
    cpu.set(0, v);
    Err(Stop::Next)
}

fn out<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let port = port_of(cpu, op);
    check_port(cpu, port, T::BYTES)?;
    port_out::<T>(cpu, port, cpu.get(0));
    Err(Stop::Next)
}

// --- control and debug registers ---

/// CR4 bits this processor has.
const CR4_KNOWN: u64 = cr4::VME
    | cr4::PVI
    | cr4::TSD
    | cr4::DE
    | cr4::PSE
    | cr4::PAE
    | cr4::MCE
    | cr4::PGE
    | cr4::PCE
    | cr4::OSFXSR
    | cr4::OSXMMEXCPT
    | cr4::FSGSBASE
    | cr4::PCIDE
    | cr4::SMEP
    | cr4::SMAP;

fn mov_from_cr(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let v = match op.extra {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        8 => cpu.apic.as_ref().map_or(0, |a| a.cr8() as u64),
        _ => return Err(cpu.ud()),
    };
    set_native(cpu, op, v);
    Ok(())
}

/// Writes a register that is 64 bits wide in 64-bit code and 32 bits wide otherwise.
fn set_native(cpu: &mut Cpu, op: &Op, v: u64) {
    if op.flags & flag::CODE32 != 0 { cpu.set(op.dst, v as u32) } else { cpu.set(op.dst, v) }
}

fn get_native(cpu: &Cpu, op: &Op) -> u64 {
    if op.flags & flag::CODE32 != 0 { cpu.get::<u32>(op.src) as u64 } else { cpu.get(op.src) }
}

fn mov_to_cr(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let v = get_native(cpu, op);
    match op.extra {
        0 => set_cr0(cpu, v)?,
        2 => cpu.cr2 = v,
        3 => {
            let pcid = cpu.cr4 & cr4::PCIDE != 0;
            let value = if pcid { v & !(1 << 63) } else { v };
            if value >> 46 != 0 {
                return Err(cpu.gp());
            }
            // Entries are not tagged with the PCID, so a switch drops them even where the guest
            // would allow them to stay.
            cpu.cr3 = value;
            cpu.tlb.flush(false);
        }
        4 => {
            if v & !CR4_KNOWN != 0
                || (v & cr4::PAE == 0 && cpu.efer & efer::LMA != 0)
                || (v & cr4::PCIDE != 0 && cpu.cr4 & cr4::PCIDE == 0 && cpu.cr3 & 0xfff != 0)
            {
                return Err(cpu.gp());
            }
            cpu.cr4 = v;
            cpu.tlb.flush(true);
            cpu.refresh();
        }
        8 => {
            if v > 15 {
                return Err(cpu.gp());
            }
            if let Some(apic) = &cpu.apic {
                apic.set_cr8(v as u8);
            }
            cpu.events_may_open();
        }
        _ => return Err(cpu.ud()),
    }
    Err(Stop::Next)
}

fn set_cr0(cpu: &mut Cpu, v: u64) -> Exec {
    let paging_off = v & cr0::PG == 0;
    if v >> 32 != 0
        || (!paging_off && v & cr0::PE == 0)
        || (v & cr0::NW != 0 && v & cr0::CD == 0)
        || (paging_off && (cpu.long || cpu.cr4 & cr4::PCIDE != 0))
        || (!paging_off && cpu.efer & efer::LME == 0)
    {
        return Err(cpu.gp());
    }
    if paging_off {
        cpu.efer &= !efer::LMA;
    } else {
        cpu.efer |= efer::LMA;
    }
    cpu.cr0 = v | cr0::ET;
    cpu.tlb.flush(true);
    cpu.refresh();
    Ok(())
}

fn clts(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.privileged()?;
    cpu.cr0 &= !cr0::TS;
    cpu.refresh();
    Err(Stop::Next)
}

fn smsw_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.set(op.dst, T::from_u64(cpu.cr0));
    Ok(())
}
fn smsw_m(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.store(op, cpu.cr0 as u16)
}
fn lmsw<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let v = if MEMORY { cpu.load::<u16>(op)? } else { cpu.get(op.src) } as u64;
    // PE can be set but not cleared.
    let low = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
    let new = cpu.cr0 & !low | v & low | cpu.cr0 & cr0::PE;
    set_cr0(cpu, new)?;
    Err(Stop::Next)
}

fn dr_slot(cpu: &mut Cpu, n: u16) -> Result<usize, Stop> {
    let n = match n {
        0..=3 => n,
        4 | 6 => 4,
        _ => 5,
    };
    if cpu.cr4 & cr4::DE != 0 && n > 7 { Err(cpu.ud()) } else { Ok(n as usize) }
}
fn mov_from_dr(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let slot = dr_slot(cpu, op.extra)?;
    set_native(cpu, op, cpu.dr[slot]);
    Ok(())
}
fn mov_to_dr(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let v = get_native(cpu, op);
    let slot = dr_slot(cpu, op.extra)?;
    if slot >= 4 && v >> 32 != 0 {
        return Err(cpu.gp());
    }
    cpu.dr[slot] = match slot {
        4 => v & 0xe00f | 0xffff_0ff0,
        5 => v & 0xffff_2bff | 0x400,
        _ => v,
    };
    Ok(())
}

// --- descriptor tables ---

fn load_table<const IDT: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let limit = cpu.load::<u16>(op)?;
    let mut at = *op;
    at.disp = op.disp.wrapping_add(2);
    let base =
        if op.flags & flag::CODE32 != 0 { cpu.load::<u32>(&at)? as u64 } else { cpu.load::<u64>(&at)? };
    if (base as i64) << 16 >> 16 != base as i64 {
        return Err(cpu.gp());
    }
    let table = if IDT { &mut cpu.idt } else { &mut cpu.gdt };
    table.base = base;
    table.limit = limit;
    Ok(())
}

fn store_table<const IDT: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let table = if IDT { cpu.idt } else { cpu.gdt };
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let len = if op.flags & flag::CODE32 != 0 { 6 } else { 10 };
    cpu.write_bytes(cpu.ea(op), &bytes[..len])
}

fn load_selector<const TASK: bool, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let v = if MEMORY { cpu.load::<u16>(op)? } else { cpu.get(op.src) };
    if TASK { cpu.load_tr(v) } else { cpu.load_ldtr(v) }
}
fn store_selector_r<const TASK: bool, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = if TASK { cpu.tr.selector } else { cpu.ldtr.selector };
    cpu.set(op.dst, T::from_u64(v as u64));
    Ok(())
}
fn store_selector_m<const TASK: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = if TASK { cpu.tr.selector } else { cpu.ldtr.selector };
    cpu.store(op, v)
}

// --- TLB ---

fn invlpg(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let va = cpu.ea(op);
    cpu.tlb.flush_page(va);
    Err(Stop::Next)
}

fn invpcid(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.privileged()?;
    let kind = get_native_reg(cpu, op);
    let mut descriptor = [0; 16];
    cpu.read_bytes(cpu.ea(op), &mut descriptor)?;
    let descriptor = u128::from_le_bytes(descriptor);
    let va = (descriptor >> 64) as u64;
    let pcid = descriptor as u64;
    let bad = match kind {
        0 => pcid >> 12 != 0 || (va as i64) << 16 >> 16 != va as i64,
        1 => pcid >> 12 != 0,
        2 | 3 => false,
        _ => true,
    };
    if bad {
        return Err(cpu.gp());
    }
    match kind {
        0 => cpu.tlb.flush_page(va),
        2 => cpu.tlb.flush(true),
        _ => cpu.tlb.flush(false),
    }
    Err(Stop::Next)
}

fn get_native_reg(cpu: &Cpu, op: &Op) -> u64 {
    if op.flags & flag::CODE32 != 0 { cpu.get::<u32>(op.dst) as u64 } else { cpu.get(op.dst) }
}

fn privileged_nop(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.privileged()
}

/// CLFLUSH, CLFLUSHOPT, CLWB: caches are coherent, but the address is checked.
fn clflush(cpu: &mut Cpu, op: &Op) -> Exec {
    let va = cpu.ea(op);
    cpu.translate(va, Access::Read)?;
    Ok(())
}

/// A spin-wait hint: lets events and other host threads in.
fn pause(_: &mut Cpu, _: &Op) -> Exec {
    Err(Stop::Next)
}

fn hlt(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.privileged()?;
    cpu.halted = true;
    Err(Stop::Next)
}

// --- identification, time, MSRs ---

fn cpuid(cpu: &mut Cpu, _: &Op) -> Exec {
    let [a, b, c, d] = super::cpuid::leaf(cpu, cpu.get(0), cpu.get(8));
    cpu.set(0, a);
    cpu.set(3 * 8, b);
    cpu.set(8, c);
    cpu.set(2 * 8, d);
    Ok(())
}

fn rdtsc<const P: bool>(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cr4 & cr4::TSD != 0 && cpu.cpl != 0 {
        return Err(cpu.gp());
    }
    let t = cpu.tsc();
    cpu.set(0, t as u32);
    cpu.set(2 * 8, (t >> 32) as u32);
    if P {
        cpu.set(8, cpu.msrs.tsc_aux as u32);
    }
    Ok(())
}

fn gp(cpu: &mut Cpu, _: &Op) -> Exec {
    Err(cpu.gp())
}

fn rdmsr(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.privileged()?;
    let msr = cpu.get::<u32>(8);
    let Some(v) = super::msr::read(cpu, msr) else {
        tracing::debug!(msr = format!("{msr:#x}"), "read of an unknown MSR");
        return Err(cpu.gp());
    };
    cpu.set(0, v as u32);
    cpu.set(2 * 8, (v >> 32) as u32);
    Ok(())
}

fn wrmsr(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.privileged()?;
    let msr = cpu.get::<u32>(8);
    let v = (cpu.get::<u32>(16) as u64) << 32 | cpu.get::<u32>(0) as u64;
    if super::msr::write(cpu, msr, v).is_none() {
        tracing::debug!(msr = format!("{msr:#x}"), value = format!("{v:#x}"), "refused write to an MSR");
        return Err(cpu.gp());
    }
    cpu.events_may_open();
    Err(Stop::Next)
}

/// RDRAND and RDSEED: the host's entropy.
fn rdrand<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let v = crate::sys::random::u64();
    cpu.flags = super::flags::Flags::from_bits(if v.is_some() { rflags::CF } else { 0 });
    cpu.set(op.dst, T::from_u64(v.unwrap_or(0)));
    Ok(())
}

// --- system calls ---

fn syscall(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.efer & efer::SCE == 0 || !cpu.long {
        return Err(cpu.ud());
    }
    cpu.regs[1] = cpu.next_ip(op);
    cpu.regs[11] = cpu.rflags() & !rflags::RF;
    let selector = (cpu.msrs.star >> 32) as u16 & !3;
    cpu.seg[seg::CS] = flat(selector, true, 0, true);
    cpu.seg[seg::SS] = flat(selector.wrapping_add(8), false, 0, false);
    let flags = cpu.regs[11] & !cpu.msrs.sfmask;
    cpu.refresh();
    cpu.set_rflags(flags);
    cpu.rip = cpu.msrs.lstar;
    Err(Stop::Branch)
}

fn sysret<const LONG: bool>(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.efer & efer::SCE == 0 || !cpu.long {
        return Err(cpu.ud());
    }
    cpu.privileged()?;
    let rip = if LONG { cpu.regs[1] } else { cpu.regs[1] as u32 as u64 };
    if (rip as i64) << 16 >> 16 != rip as i64 {
        return Err(cpu.gp());
    }
    let base = (cpu.msrs.star >> 48) as u16;
    let cs = if LONG { base.wrapping_add(16) } else { base } | 3;
    cpu.seg[seg::CS] = flat(cs, true, 3, LONG);
    cpu.seg[seg::SS] = flat(base.wrapping_add(8) | 3, false, 3, false);
    cpu.refresh();
    let flags = cpu.regs[11] & 0x3c_7fd7;
    cpu.set_rflags(flags);
    cpu.rip = rip;
    cpu.events_may_open();
    Err(Stop::Branch)
}

fn sysenter(cpu: &mut Cpu, _: &Op) -> Exec {
    let cs = cpu.msrs.sysenter_cs as u16 & !3;
    if cs == 0 {
        return Err(cpu.gp());
    }
    cpu.seg[seg::CS] = flat(cs, true, 0, true);
    cpu.seg[seg::SS] = flat(cs.wrapping_add(8), false, 0, false);
    cpu.sysflags &= !(rflags::IF | rflags::VM);
    cpu.refresh();
    cpu.regs[4] = cpu.msrs.sysenter_esp;
    cpu.rip = cpu.msrs.sysenter_eip;
    Err(Stop::Branch)
}

fn sysexit<const LONG: bool>(cpu: &mut Cpu, _: &Op) -> Exec {
    let base = cpu.msrs.sysenter_cs as u16 & !3;
    if base == 0 {
        return Err(cpu.gp());
    }
    cpu.privileged()?;
    let (rip, rsp) = if LONG {
        (cpu.regs[2], cpu.regs[1])
    } else {
        (cpu.regs[2] as u32 as u64, cpu.regs[1] as u32 as u64)
    };
    let cs = base.wrapping_add(if LONG { 32 } else { 16 }) | 3;
    cpu.seg[seg::CS] = flat(cs, true, 3, LONG);
    cpu.seg[seg::SS] = flat(cs.wrapping_add(8), false, 3, false);
    cpu.refresh();
    cpu.regs[4] = rsp;
    cpu.rip = rip;
    cpu.events_may_open();
    Err(Stop::Branch)
}

fn swapgs(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.privileged()?;
    std::mem::swap(&mut cpu.seg[seg::GS].base, &mut cpu.msrs.kernel_gs_base);
    cpu.seg_base[seg::GS] = cpu.seg[seg::GS].base;
    Ok(())
}

fn read_base<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.cr4 & cr4::FSGSBASE == 0 {
        return Err(cpu.ud());
    }
    cpu.set(op.dst, T::from_u64(cpu.seg_base[op.extra as usize & 7]));
    Ok(())
}
fn write_base<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.cr4 & cr4::FSGSBASE == 0 {
        return Err(cpu.ud());
    }
    let v = cpu.get::<T>(op.dst).to_u64();
    if (v as i64) << 16 >> 16 != v as i64 {
        return Err(cpu.gp());
    }
    cpu.set_segment_base(op.extra as usize, v);
    Ok(())
}

impl Cpu {
    /// Sets the base of FS or GS.
    pub(super) fn set_segment_base(&mut self, which: usize, base: u64) {
        if let Some(s) = self.seg.get_mut(which) {
            s.base = base;
            self.seg_base[which] = base;
        }
    }
}

/// XGETBV without XSAVE.
fn no_xsave(cpu: &mut Cpu, _: &Op) -> Exec {
    Err(cpu.ud())
}

fn cr_number(r: Register) -> Option<u16> {
    Some(match r {
        Register::CR0 => 0,
        Register::CR2 => 2,
        Register::CR3 => 3,
        Register::CR4 => 4,
        Register::CR8 => 8,
        _ => return None,
    })
}

fn mov(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    if ins.op0_kind() != OpKind::Register || ins.op1_kind() != OpKind::Register {
        return None;
    }
    let (to, from) = (ins.op0_register(), ins.op1_register());
    if to.is_cr() {
        op.extra = cr_number(to)?;
        op.src = gpr(from);
        Some(mov_to_cr)
    } else if from.is_cr() {
        op.extra = cr_number(from)?;
        op.dst = gpr(to);
        Some(mov_from_cr)
    } else if to.is_dr() {
        op.extra = to.number() as u16;
        op.src = gpr(from);
        Some(mov_to_dr)
    } else if from.is_dr() {
        op.extra = from.number() as u16;
        op.dst = gpr(to);
        Some(mov_from_dr)
    } else {
        None
    }
}

/// Handler for the instruction, if it is one of this family.
pub(super) fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    if let Some(handler) = super::segment::lower(ins, op) {
        return Some(handler);
    }
    let memory = ins.op_count() > 0 && ins.op0_kind() == OpKind::Memory;
    if ins.op_count() > 0 && ins.op0_kind() == OpKind::Register && ins.op0_register().is_gpr() {
        op.dst = gpr(ins.op0_register());
        op.src = op.dst;
    }
    let width = if ins.op_count() > 0 { super::decode::operand_size(ins, 0) } else { 0 };
    macro_rules! by_width {
        ($f:ident $(, $c:expr)*) => {
            match width {
                2 => Some($f::<$($c,)* u16> as Handler),
                4 => Some($f::<$($c,)* u32> as Handler),
                _ => Some($f::<$($c,)* u64> as Handler),
            }
        };
    }
    match ins.mnemonic() {
        Mnemonic::Mov => mov(ins, op),
        Mnemonic::Cli => Some(cli),
        Mnemonic::Sti => Some(sti),
        Mnemonic::Pushf => Some(pushf::<u16>),
        Mnemonic::Pushfd => Some(pushf::<u32>),
        Mnemonic::Pushfq => Some(pushf::<u64>),
        Mnemonic::Popf => Some(popf::<u16>),
        Mnemonic::Popfd => Some(popf::<u32>),
        Mnemonic::Popfq => Some(popf::<u64>),
        Mnemonic::Stac => Some(set_ac::<true>),
        Mnemonic::Clac => Some(set_ac::<false>),
        Mnemonic::In | Mnemonic::Out => {
            let is_in = ins.mnemonic() == Mnemonic::In;
            let (port, data) = if is_in { (1, 0) } else { (0, 1) };
            if ins.op_kind(port) == OpKind::Immediate8 {
                op.extra = 1;
                op.imm = ins.immediate8() as u64;
            }
            Some(match (ins.op_register(data).size(), is_in) {
                (1, true) => in_::<u8>,
                (2, true) => in_::<u16>,
                (_, true) => in_::<u32>,
                (1, false) => out::<u8>,
                (2, false) => out::<u16>,
                (_, false) => out::<u32>,
            })
        }
        Mnemonic::Clts => Some(clts),
        Mnemonic::Smsw if memory => Some(smsw_m),
        Mnemonic::Smsw => by_width!(smsw_r),
        Mnemonic::Lmsw => Some(if memory { lmsw::<true> } else { lmsw::<false> }),
        Mnemonic::Lgdt => Some(load_table::<false>),
        Mnemonic::Lidt => Some(load_table::<true>),
        Mnemonic::Sgdt => Some(store_table::<false>),
        Mnemonic::Sidt => Some(store_table::<true>),
        Mnemonic::Lldt => {
            Some(if memory { load_selector::<false, true> } else { load_selector::<false, false> })
        }
        Mnemonic::Ltr => {
            Some(if memory { load_selector::<true, true> } else { load_selector::<true, false> })
        }
        Mnemonic::Sldt if memory => Some(store_selector_m::<false>),
        Mnemonic::Sldt => by_width!(store_selector_r, false),
        Mnemonic::Str if memory => Some(store_selector_m::<true>),
        Mnemonic::Str => by_width!(store_selector_r, true),
        Mnemonic::Invlpg => Some(invlpg),
        Mnemonic::Invpcid => Some(invpcid),
        Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => Some(privileged_nop),
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => Some(clflush),
        Mnemonic::Pause => Some(pause),
        Mnemonic::Hlt => Some(hlt),
        Mnemonic::Cpuid => Some(cpuid),
        Mnemonic::Rdtsc => Some(rdtsc::<false>),
        Mnemonic::Rdtscp => Some(rdtsc::<true>),
        Mnemonic::Rdpmc => Some(gp),
        Mnemonic::Rdmsr => Some(rdmsr),
        Mnemonic::Wrmsr => Some(wrmsr),
        Mnemonic::Rdrand | Mnemonic::Rdseed => by_width!(rdrand),
        Mnemonic::Syscall => Some(syscall),
        Mnemonic::Sysret => Some(sysret::<false>),
        Mnemonic::Sysretq => Some(sysret::<true>),
        Mnemonic::Sysenter => Some(sysenter),
        Mnemonic::Sysexit => Some(sysexit::<false>),
        Mnemonic::Sysexitq => Some(sysexit::<true>),
        Mnemonic::Swapgs => Some(swapgs),
        Mnemonic::Rdfsbase | Mnemonic::Rdgsbase | Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => {
            let fs = matches!(ins.mnemonic(), Mnemonic::Rdfsbase | Mnemonic::Wrfsbase);
            op.extra = if fs { seg::FS } else { seg::GS } as u16;
            if matches!(ins.mnemonic(), Mnemonic::Rdfsbase | Mnemonic::Rdgsbase) {
                by_width!(read_base)
            } else {
                by_width!(write_base)
            }
        }
        Mnemonic::Xgetbv | Mnemonic::Xsetbv => Some(no_xsave),
        _ => None,
    }
}
