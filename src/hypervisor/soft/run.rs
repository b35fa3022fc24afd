//! The run loop of one vCPU, and its portable state.

#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::arch::x86_64::{VcpuState, cr0, cr4, efer, rflags, seg, vector};
use crate::hypervisor::{Exit, ExitIo, HypervisorError, LocalEvent, Vcpu, VcpuSignal};

use super::block::{Block, BlockCache, BlockId, Link};
use super::cpu::{Cpu, Setup, attention};
use super::exception::TripleFault;
use super::op::{Op, Stop};

/// One vCPU of a [`super::SoftVm`].
pub(super) struct SoftVcpu {
    pub(super) cpu: Cpu,
    pub(super) cache: BlockCache,
}

impl SoftVcpu {
    pub(super) fn new(setup: Setup) -> Result<Self, HypervisorError> {
        Ok(Self { cpu: Cpu::new(setup)?, cache: BlockCache::new() })
    }

    /// What a remembered way from an address to a block depends on: the mappings, the blocks, and
    /// who asks, since privilege and code size decide whether and how the same bytes may run.
    fn generation(&self) -> u64 {
        let blocks = (self.cache.generation << 2 | self.cpu.mode) as u64;
        (self.cpu.tlb.generation as u64) << 32 | blocks
    }

    fn run_loop(&mut self) -> Exit {
        // The block that ran last and the way it was left, to be linked to the next.
        let mut from: Option<(BlockId, usize)> = None;
        // A string instruction has been left between two of its elements.
        let mut repeating = false;
        loop {
            if self.cpu.attention.load(Ordering::Relaxed) != 0 {
                from = None;
                self.cpu.repeating = repeating;
                let attended = self.attend();
                self.cpu.repeating = false;
                match attended {
                    Ok(None) => {}
                    Ok(Some(exit)) => return exit,
                    Err(TripleFault) => return Exit::TripleFault,
                }
            }
            if self.cpu.halted {
                if let Some(exit) = self.wait_for_event() {
                    return exit;
                }
                continue;
            }
            self.cpu.step = self.cpu.sysflags & rflags::TF != 0;
            let single = self.cpu.shadow || self.cpu.step;
            self.cpu.shadow = false;
            let id = match self.next_block(from) {
                Ok(id) => id,
                Err(_) => {
                    from = None;
                    if self.cpu.deliver_fault().is_err() {
                        return Exit::TripleFault;
                    }
                    continue;
                }
            };
            from = None;
            repeating = false;
            let Some(block) = self.cache.get(id) else { continue };
            let block: *const Block = block;
            // SAFETY: blocks are freed by `attend` and `next_block` only, not while one runs.
            let slot = match run_block(&mut self.cpu, unsafe { &*block }, single) {
                Ok(slot) => slot,
                Err(TripleFault) => return Exit::TripleFault,
            };
            match slot {
                Left::Linked(slot) => from = Some((id, slot)),
                Left::Plain => {}
                Left::Between => repeating = true,
                Left::Faulted => continue,
            }
            if self.cpu.step {
                self.cpu.repeating = std::mem::take(&mut repeating);
                self.cpu.dr[4] |= 1 << 14;
                // A trap that is due ends HLT at once.
                self.cpu.halted = false;
                self.cpu.fault =
                    super::cpu::Exception { vector: vector::DB, ..super::cpu::Exception::default() };
                let delivered = self.cpu.deliver_fault();
                self.cpu.repeating = false;
                if delivered.is_err() {
                    return Exit::TripleFault;
                }
                from = None;
            }
        }
    }

    /// The block at `cpu.rip`: by the link of the block that led here, by recent look-ups, by
    /// physical address, or newly decoded.
    #[inline(always)]
    fn next_block(&mut self, from: Option<(BlockId, usize)>) -> Result<BlockId, Stop> {
        let rip = self.cpu.rip;
        let generation = self.generation();
        if let Some((id, slot)) = from
            && let Some(block) = self.cache.get(id)
        {
            let link = &block.links[slot];
            if link.rip == rip && link.generation == generation {
                return Ok(link.block);
            }
        }
        self.find_block(rip, generation, from)
    }

    #[inline(never)]
    fn find_block(
        &mut self,
        rip: u64,
        generation: u64,
        from: Option<(BlockId, usize)>,
    ) -> Result<BlockId, Stop> {
        let next = match self.cache.find_jump(rip, generation) {
            Some(id) => id,
            None => {
                let id = super::decode::block_at(&mut self.cpu, &mut self.cache, rip)?;
                // Decoding may have moved the generation on; remember under the present one.
                let generation = self.generation();
                self.cache.remember_jump(rip, generation, id);
                id
            }
        };
        let generation = self.generation();
        if let Some((id, slot)) = from
            && let Some(block) = self.cache.get_mut(id)
        {
            block.links[slot] = Link { rip, generation, block: next };
        }
        Ok(next)
    }

    /// Looks at the attention word.
    #[inline(never)]
    fn attend(&mut self) -> Result<Option<Exit>, TripleFault> {
        let word = self.cpu.attention.clone();
        if word.load(Ordering::SeqCst) & attention::CODE != 0 {
            word.fetch_and(!attention::CODE, Ordering::SeqCst);
            for page in self.cpu.code.take_stale() {
                self.cache.drop_page(page);
            }
        }
        self.cpu.serve();
        if word.load(Ordering::SeqCst) & attention::KICK != 0 {
            word.fetch_and(!attention::KICK, Ordering::SeqCst);
            return Ok(Some(Exit::Kicked));
        }
        if word.load(Ordering::SeqCst) & attention::EVENT != 0 && !self.cpu.shadow {
            // Cleared before the look, so that an event that comes during it is seen next time.
            word.fetch_and(!attention::EVENT, Ordering::SeqCst);
            self.take_event()?;
        }
        Ok(None)
    }

    fn take_event(&mut self) -> Result<(), TripleFault> {
        let Some(apic) = self.cpu.apic.clone() else { return Ok(()) };
        match apic.take_event(self.cpu.interrupts_enabled()) {
            Some(LocalEvent::Interrupt(v)) => {
                self.cpu.halted = false;
                self.cpu.deliver_external(v)?;
            }
            Some(LocalEvent::Nmi) => self.cpu.nmi_pending = true,
            // There is no real mode to start in: kernels use the wake-up mailbox instead.
            Some(event @ (LocalEvent::Init | LocalEvent::Startup(_))) => {
                tracing::debug!(id = self.cpu.id, ?event, "not supported by the software CPU, ignored");
            }
            None => {}
        }
        // One that comes while another is handled waits for the handler's IRET.
        if self.cpu.nmi_pending && !self.cpu.nmi_blocked {
            self.cpu.nmi_pending = false;
            self.cpu.nmi_blocked = true;
            self.cpu.halted = false;
            self.cpu.deliver_external(vector::NMI)?;
        }
        // Another may wait behind it.
        self.cpu.events_may_open();
        Ok(())
    }

    /// In HLT: sleeps until something happens. Returns an exit if nothing ever can.
    fn wait_for_event(&mut self) -> Option<Exit> {
        let open = self.cpu.interrupts_enabled();
        if self.cpu.apic.as_ref().is_some_and(|a| a.has_event(open)) {
            self.cpu.attention.fetch_or(attention::EVENT, Ordering::SeqCst);
            return None;
        }
        if !open {
            return Some(Exit::Halted);
        }
        self.cpu.leave();
        self.cpu.signal.park(attention::WAKING);
        self.cpu.enter();
        None
    }
}

/// How a block was left.
enum Left {
    /// By running off its end (1) or by a jump (0): the next block may be linked.
    Linked(usize),
    /// With `cpu.rip` set, but something may have changed.
    Plain,
    /// Between two elements of a repeated string instruction, at which `cpu.rip` stays.
    Between,
    /// By an exception, which has been delivered.
    Faulted,
}

/// Runs `block`, or only its first operation, and leaves `cpu.rip` at the next instruction.
#[inline(always)]
fn run_block(cpu: &mut Cpu, block: &Block, single: bool) -> Result<Left, TripleFault> {
    let base = cpu.rip;
    cpu.regs[16] = base;
    let start = block.ops.as_ptr();
    let count = if single { 1 } else { block.ops.len() };
    // SAFETY: one past the last operation that may run.
    let end = unsafe { start.add(count) };
    cpu.op_end = end;
    let mut p = start;
    let stop = loop {
        // SAFETY: `p` is in `start..end`, and a block has at least one operation.
        let op: &Op = unsafe { &*p };
        if let Err(stop) = (op.run)(cpu, op) {
            break Some(stop);
        }
        // SAFETY: at most one past the end.
        p = unsafe { p.add(1) };
        if p >= cpu.op_end {
            break None;
        }
    };
    let Some(stop) = stop else {
        // SAFETY: both point into the same operations.
        let done = unsafe { p.offset_from(start) } as usize;
        cpu.instructions += done as u64;
        if p == end && !single {
            cpu.rip = advance(cpu, base, block.len as u64);
            return Ok(Left::Linked(1));
        }
        // SAFETY: at least one operation has run.
        let last = unsafe { &*p.sub(1) };
        cpu.rip = advance(cpu, base, last.off as u64 + last.len as u64);
        return Ok(Left::Plain);
    };
    // SAFETY: `p` is the operation that stopped.
    let (op, done) = unsafe { (&*p, p.offset_from(start) as u64 + 1) };
    cpu.instructions += done;
    match stop {
        Stop::Branch => Ok(if single { Left::Plain } else { Left::Linked(0) }),
        Stop::Next => {
            cpu.rip = advance(cpu, base, op.off as u64 + op.len as u64);
            Ok(Left::Plain)
        }
        Stop::Again => {
            cpu.rip = advance(cpu, base, op.off as u64);
            Ok(Left::Between)
        }
        Stop::Fault => {
            cpu.rip = advance(cpu, base, op.off as u64);
            if cpu.fault.address && op.flags & super::op::flag::STACK != 0 {
                cpu.fault.vector = vector::SS;
            }
            cpu.deliver_fault()?;
            Ok(Left::Faulted)
        }
    }
}

#[inline(always)]
fn advance(cpu: &Cpu, base: u64, by: u64) -> u64 {
    let rip = base.wrapping_add(by);
    if cpu.long { rip } else { rip as u32 as u64 }
}

/// Single instructions ([`super::Stepper`]).
impl SoftVcpu {
    /// Forgets all decoded code.
    pub(super) fn forget(&mut self) {
        self.cache.clear();
    }

    /// Executes one instruction, or delivers the exception that it raises. `code` is the instruction where memory has
    /// another.
    pub(super) fn step(&mut self, io: &dyn ExitIo, code: Option<&[u8]>) -> Option<Exit> {
        // SAFETY: only the lifetime is changed; the pointer is cleared below, before `io` ends.
        let io: *const (dyn ExitIo + 'static) = unsafe { std::mem::transmute(io as *const dyn ExitIo) };
        self.cpu.io = Some(io);
        let exit = self.step_with_io(code);
        self.cpu.io = None;
        exit
    }

    fn step_with_io(&mut self, code: Option<&[u8]>) -> Option<Exit> {
        let failed = |result: Result<(), TripleFault>| result.err().map(|TripleFault| Exit::TripleFault);
        self.cpu.shadow = false;
        self.cpu.step = self.cpu.sysflags & rflags::TF != 0;
        let rip = self.cpu.rip;
        let found = match code {
            Some(code) => Ok(super::decode::block_of(&mut self.cpu, &mut self.cache, code)),
            None => super::decode::block_at(&mut self.cpu, &mut self.cache, rip),
        };
        let Ok(id) = found else {
            return failed(self.cpu.deliver_fault());
        };
        let block: *const Block = self.cache.get(id)?;
        // SAFETY: nothing frees blocks while one runs.
        match run_block(&mut self.cpu, unsafe { &*block }, true) {
            Err(TripleFault) => return Some(Exit::TripleFault),
            Ok(Left::Faulted) => return None,
            Ok(left) => self.cpu.repeating = self.cpu.step && matches!(left, Left::Between),
        }
        if self.cpu.step {
            self.cpu.dr[4] |= 1 << 14;
            self.cpu.fault = super::cpu::Exception { vector: vector::DB, ..super::cpu::Exception::default() };
            let delivered = self.cpu.deliver_fault();
            self.cpu.repeating = false;
            return failed(delivered);
        }
        None
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self, io: &dyn ExitIo) -> Result<Exit, HypervisorError> {
        // SAFETY: only the lifetime is changed; the pointer is cleared below, before `io` ends.
        let io: *const (dyn ExitIo + 'static) = unsafe { std::mem::transmute(io as *const dyn ExitIo) };
        self.cpu.io = Some(io);
        self.cpu.events_may_open();
        self.cpu.enter();
        let exit = self.run_loop();
        self.cpu.leave();
        self.cpu.io = None;
        Ok(exit)
    }

    fn signal(&self) -> Arc<dyn VcpuSignal> {
        self.cpu.signal.clone()
    }

    fn state(&self) -> Result<VcpuState, HypervisorError> {
        let cpu = &self.cpu;
        let mut state = VcpuState {
            rip: cpu.rip,
            rflags: cpu.rflags(),
            seg: cpu.seg,
            tr: cpu.tr,
            ldtr: cpu.ldtr,
            gdt: cpu.gdt,
            idt: cpu.idt,
            cr0: cpu.cr0,
            cr2: cpu.cr2,
            cr3: cpu.cr3,
            cr4: cpu.cr4,
            xcr0: cpu.xcr0,
            efer: cpu.efer,
            dr: cpu.dr,
            fpu: cpu.fpu,
            msrs: cpu.msrs,
            tsc_khz: cpu.tsc_khz,
            halted: cpu.halted,
            interrupt_shadow: cpu.shadow,
            nmi_blocked: cpu.nmi_blocked,
            nmi_pending: cpu.nmi_pending,
            ..VcpuState::default()
        };
        state.gpr.copy_from_slice(&cpu.regs[..16]);
        Ok(state)
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), HypervisorError> {
        let paging = state.cr0 & cr0::PG != 0;
        // Without paging is how kernels pass from one mode to another.
        if state.cr0 & cr0::PE == 0 || paging != (state.efer & efer::LMA != 0) {
            return Err(HypervisorError::BadState(
                "the software CPU runs in long mode, or in protected mode without paging",
            ));
        }
        if !paging && state.seg[seg::CS].long() {
            return Err(HypervisorError::BadState("64-bit code outside long mode"));
        }
        if state.seg[seg::CS].long() && state.seg[seg::CS].big() {
            return Err(HypervisorError::BadState("CS is both 64-bit and 32-bit"));
        }
        if state.cr4 & !self.cpu.model.cr4() != 0 || (paging && state.cr4 & cr4::PAE == 0) {
            return Err(HypervisorError::BadState("CR4 has bits that this processor lacks, or no PAE"));
        }
        if state.efer & !self.cpu.model.efer() != 0 {
            return Err(HypervisorError::BadState("EFER has bits that this processor lacks"));
        }
        if state.rflags & rflags::VM != 0 {
            return Err(HypervisorError::BadState("virtual-8086 mode"));
        }
        let cpu = &mut self.cpu;
        cpu.regs[..16].copy_from_slice(&state.gpr);
        cpu.rip = state.rip;
        cpu.seg = state.seg;
        cpu.tr = state.tr;
        cpu.ldtr = state.ldtr;
        cpu.gdt = state.gdt;
        cpu.idt = state.idt;
        cpu.cr0 = state.cr0;
        cpu.cr2 = state.cr2;
        cpu.cr3 = state.cr3;
        cpu.cr4 = state.cr4;
        cpu.xcr0 = state.xcr0;
        cpu.efer = state.efer;
        cpu.dr = state.dr;
        cpu.fpu = state.fpu;
        cpu.msrs = state.msrs;
        cpu.tsc_khz = state.tsc_khz;
        cpu.halted = state.halted;
        cpu.shadow = state.interrupt_shadow;
        cpu.nmi_blocked = state.nmi_blocked;
        cpu.nmi_pending = state.nmi_pending;
        cpu.refresh();
        cpu.set_rflags(state.rflags);
        cpu.tlb.flush(true);
        Ok(())
    }

    fn instructions(&self) -> Option<u64> {
        Some(self.cpu.instructions)
    }
}
