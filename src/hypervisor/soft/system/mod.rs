//! System instructions: control registers, descriptor tables, MSRs, SYSCALL and its kin, ports,
//! TLB control, HLT, flags.

mod calls;
mod control_registers;
mod flags;
mod identify;
mod ports;
mod tables;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::arch::x86_64::seg;

use super::cpu::{Cpu, attention};
use super::decode::gpr;
use super::op::{Exec, Handler, Op};
use calls::*;
use control_registers::*;
use flags::*;
use identify::*;
pub(super) use ports::{check_port, port_in, port_out};
use ports::{in_, out};
use tables::*;

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
        Mnemonic::Clflush | Mnemonic::Clflushopt => Some(clflush),
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
