//! The processor's registers and how an operation reaches registers and memory.
//!
//! Everything here is architectural state in working form, or a cache of guest memory that may be
//! thrown away at any time (TLB, decoded code).

#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use crate::arch::x86_64::{DescriptorTable, FpuState, Msrs, Segment, TSC_KHZ, cr0, cr4, rflags, seg, vector};
use crate::hypervisor::{CpuModel, HypervisorError, LocalApic};
use crate::memory::{CodeReader, GuestRam};
use crate::sys::clock::Clock;

use super::fellows::{Fellows, Signal};
use super::flags::Flags;
use super::int::Int;
use super::op::{Op, SEG_FLAT, Stop, flag};
use super::ram::Ram;
use super::tlb::Tlb;

/// An exception on its way to the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Exception {
    pub(super) vector: u8,
    pub(super) error: Option<u32>,
    /// For #PF.
    pub(super) cr2: u64,
    /// A non-canonical address: #SS when the operand was relative to SS.
    pub(super) address: bool,
}

/// Access kinds of a memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    Execute,
}

/// Bits of the attention word.
pub(super) mod attention {
    /// Leave the run loop.
    pub(crate) const KICK: u32 = 1;
    /// The local APIC has something.
    pub(crate) const EVENT: u32 = 2;
    /// A page with decoded code was written.
    pub(crate) const CODE: u32 = 4;
    /// Another vCPU has a request.
    pub(crate) const REQUEST: u32 = 8;
    /// Another vCPU has served a request of this one.
    pub(crate) const ANSWER: u32 = 16;
    /// What ends HLT.
    pub(crate) const WAKING: u32 = KICK | EVENT;
}

#[cfg(test)]
impl Setup {
    /// The only vCPU of a machine without a local APIC.
    pub(super) fn alone(ram: Arc<GuestRam>, clock: Arc<Clock>) -> Self {
        Self { id: 0, cpus: 1, model: CpuModel::Baseline, ram, clock, apic: None, fellows: Arc::default() }
    }
}

/// What a vCPU is made of.
pub(super) struct Setup {
    /// Its number: its APIC id.
    pub(super) id: u32,
    /// vCPUs of the machine.
    pub(super) cpus: u32,
    pub(super) model: CpuModel,
    pub(super) ram: Arc<GuestRam>,
    pub(super) clock: Arc<Clock>,
    pub(super) apic: Option<Arc<dyn LocalApic>>,
    pub(super) fellows: Arc<Fellows>,
}

pub(super) struct Cpu {
    /// RAX..R15, then the running block's address, then zero.
    pub(super) regs: [u64; 18],
    /// Bases of ES, CS, SS, DS, FS, GS, then zero twice.
    pub(super) seg_base: [u64; 8],
    pub(super) flags: Flags,
    /// End of the operations that may still run without a look at the outside. A store to decoded
    /// code sets it to null, which ends the block after the running operation.
    pub(super) op_end: *const Op,
    pub(super) tlb: Tlb,
    pub(super) ram: Ram,
    /// Address of the next instruction; between blocks only.
    pub(super) rip: u64,
    /// RFLAGS without the status flags.
    pub(super) sysflags: u64,
    /// Current privilege level.
    pub(super) cpl: u8,
    /// Code size: 64-bit (true) or compatibility mode.
    pub(super) long: bool,
    /// Bit 0: at privilege 3; bit 1: 64-bit code.
    pub(super) mode: u32,
    /// SSE instructions may run: neither CR0.EM nor CR0.TS, and CR4.OSFXSR.
    pub(super) sse_ok: bool,
    /// x87 and MMX instructions may run: neither CR0.EM nor CR0.TS.
    pub(super) fpu_ok: bool,
    pub(super) halted: bool,
    /// A single-step trap is due when the running instruction is complete. Most instructions leave
    /// what TF said before them; some answer for themselves.
    pub(super) step: bool,
    /// Interrupts are held off until one more instruction has run.
    pub(super) shadow: bool,
    pub(super) nmi_blocked: bool,
    /// An NMI waits for the running handler's IRET.
    pub(super) nmi_pending: bool,
    pub(super) fault: Exception,
    pub(super) fpu: FpuState,
    pub(super) seg: [Segment; 6],
    pub(super) tr: Segment,
    pub(super) ldtr: Segment,
    pub(super) gdt: DescriptorTable,
    pub(super) idt: DescriptorTable,
    pub(super) cr0: u64,
    pub(super) cr2: u64,
    pub(super) cr3: u64,
    pub(super) cr4: u64,
    pub(super) xcr0: u64,
    pub(super) efer: u64,
    pub(super) dr: [u64; 6],
    pub(super) msrs: Msrs,
    /// Rate of the TSC.
    pub(super) tsc_khz: u32,
    /// Number of this vCPU: its APIC id.
    pub(super) id: u32,
    pub(super) apic: Option<Arc<dyn LocalApic>>,
    pub(super) clock: Arc<Clock>,
    pub(super) attention: Arc<AtomicU32>,
    /// Number of vCPUs of the machine.
    pub(super) cpus: u32,
    pub(super) model: CpuModel,
    /// The machine has other vCPUs.
    pub(super) several: bool,
    /// Has others not stop writing what this vCPU decodes: what then goes wrong shows that tests notice.
    #[cfg(test)]
    pub(super) careless: bool,
    /// PAUSE instructions executed, where there are other vCPUs.
    pub(super) pauses: u32,
    /// What is delivered comes between two elements of a repeated string instruction.
    pub(super) repeating: bool,
    /// What it holds of RAM's code.
    pub(super) code: CodeReader,
    /// How others reach it.
    pub(super) signal: Arc<Signal>,
    pub(super) fellows: Arc<Fellows>,
    /// Operations executed.
    pub(super) instructions: u64,
    /// Ports and MMIO, lent for the time of `run`.
    pub(super) io: Option<*const dyn crate::hypervisor::ExitIo>,
    pub(super) unknown: super::decode::Unknown,
}

impl Drop for Cpu {
    fn drop(&mut self) {
        self.fellows.leave(self.code.index());
    }
}

// SAFETY: the raw pointers are `op_end` and `io`, which mean something only while `run` is on the
// stack of the one thread that owns the Cpu, and those inside `Ram` and `Tlb`, which point into
// the RAM mapping that `Ram` keeps alive and that any thread may access.
unsafe impl Send for Cpu {}

impl Cpu {
    pub(super) fn new(setup: Setup) -> Result<Self, HypervisorError> {
        let Setup { id, cpus, model, ram, clock, apic, fellows } = setup;
        let attention = Arc::new(AtomicU32::new(0));
        let code = ram
            .code_pages()
            .join(attention.clone(), attention::CODE)
            .ok_or(HypervisorError::Unsupported("so many vCPUs on one RAM"))?;
        let signal = Signal::new(attention.clone());
        fellows.join(code.index(), signal.clone());
        Ok(Self {
            regs: [0; 18],
            seg_base: [0; 8],
            flags: Flags::default(),
            op_end: std::ptr::null(),
            tlb: Tlb::new(),
            ram: Ram::new(ram),
            rip: 0,
            sysflags: rflags::FIXED,
            cpl: 0,
            long: true,
            mode: 2,
            sse_ok: false,
            fpu_ok: false,
            halted: false,
            step: false,
            shadow: false,
            nmi_blocked: false,
            nmi_pending: false,
            fault: Exception::default(),
            fpu: FpuState::default(),
            seg: [Segment::default(); 6],
            tr: Segment::default(),
            ldtr: Segment::default(),
            gdt: DescriptorTable::default(),
            idt: DescriptorTable::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            xcr0: 1,
            efer: 0,
            dr: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
            msrs: Msrs::default(),
            tsc_khz: TSC_KHZ,
            id,
            apic,
            clock,
            attention,
            cpus,
            model,
            several: cpus > 1,
            #[cfg(test)]
            careless: false,
            pauses: 0,
            repeating: false,
            code,
            signal,
            fellows,
            instructions: 0,
            io: None,
            unknown: super::decode::Unknown::default(),
        })
    }

    // --- registers ---

    /// Reads the register at byte offset `r`.
    #[inline(always)]
    pub(super) fn get<T: Int>(&self, r: u8) -> T {
        debug_assert!(r as u64 + T::BYTES <= 144);
        // SAFETY: lowering only makes offsets of GPR slots 0..=17 (144 bytes).
        unsafe { self.regs.as_ptr().cast::<u8>().add(r as usize).cast::<T>().read_unaligned() }
    }

    /// Writes the register at byte offset `r`: 32-bit writes clear the upper half, narrower ones
    /// leave the rest.
    #[inline(always)]
    pub(super) fn set<T: Int>(&mut self, r: u8, v: T) {
        debug_assert!(r as u64 + T::BYTES <= 128);
        // SAFETY: as in `get`; a 32-bit write is at a multiple of 8, so the 8 bytes are in bounds.
        unsafe {
            let p = self.regs.as_mut_ptr().cast::<u8>().add(r as usize);
            if T::BITS == 32 {
                p.cast::<u64>().write_unaligned(v.to_u64());
            } else {
                p.cast::<T>().write_unaligned(v);
            }
        }
    }

    /// Address of the running instruction.
    #[inline(always)]
    pub(super) fn ip(&self, op: &Op) -> u64 {
        self.regs[16].wrapping_add(op.off as u64)
    }

    /// Address of the instruction after it.
    #[inline(always)]
    pub(super) fn next_ip(&self, op: &Op) -> u64 {
        self.regs[16].wrapping_add(op.off as u64 + op.len as u64)
    }

    /// All of RFLAGS.
    pub(super) fn rflags(&self) -> u64 {
        self.sysflags | self.flags.bits()
    }

    /// Replaces all of RFLAGS.
    pub(super) fn set_rflags(&mut self, value: u64) {
        self.flags = Flags::from_bits(value);
        self.sysflags = value & !rflags::STATUS | rflags::FIXED;
        self.select_tlb();
    }

    pub(super) fn interrupts_enabled(&self) -> bool {
        self.sysflags & rflags::IF != 0
    }

    /// Brings the cached forms of CR0, CR4, CS and CPL up to date.
    pub(super) fn refresh(&mut self) {
        self.fpu_ok = self.cr0 & (cr0::EM | cr0::TS) == 0;
        self.sse_ok = self.fpu_ok && self.cr4 & cr4::OSFXSR != 0;
        self.long = self.seg[seg::CS].long();
        self.cpl = (self.seg[seg::CS].selector & 3) as u8;
        self.mode = (self.cpl == 3) as u32 | (self.long as u32) << 1;
        for i in 0..6 {
            self.seg_base[i] = self.seg[i].base;
        }
        self.select_tlb();
    }

    /// Picks the TLB of the current privilege (user; supervisor; supervisor with EFLAGS.AC under
    /// SMAP), or none where alignment is checked.
    #[inline]
    pub(super) fn select_tlb(&mut self) {
        let context = if self.cpl == 3 {
            if self.sysflags & rflags::AC != 0 && self.cr0 & cr0::AM != 0 {
                return self.tlb.select_checked();
            }
            0
        } else if self.sysflags & rflags::AC != 0 || self.cr4 & cr4::SMAP == 0 {
            2
        } else {
            1
        };
        self.tlb.select(context);
    }

    // --- exceptions ---

    #[cold]
    pub(super) fn raise(&mut self, vector: u8, error: Option<u32>) -> Stop {
        self.fault = Exception { vector, error, ..Exception::default() };
        Stop::Fault
    }

    /// #GP(0).
    #[cold]
    pub(super) fn gp(&mut self) -> Stop {
        self.raise(vector::GP, Some(0))
    }

    /// #UD.
    #[cold]
    pub(super) fn ud(&mut self) -> Stop {
        self.raise(vector::UD, None)
    }

    /// What `fpu_ok == false` means for an x87 or MMX instruction.
    #[cold]
    pub(super) fn fpu_unavailable(&mut self) -> Stop {
        self.raise(vector::NM, None)
    }

    /// What `sse_ok == false` means for an SSE instruction.
    #[cold]
    pub(super) fn sse_unavailable(&mut self) -> Stop {
        if self.cr0 & cr0::EM != 0 || self.cr4 & cr4::OSFXSR == 0 {
            self.ud()
        } else {
            self.raise(vector::NM, None)
        }
    }

    // --- memory ---

    /// The linear address of the memory operand.
    #[inline(always)]
    pub(super) fn ea(&self, op: &Op) -> u64 {
        let offset = self.raw_offset(op);
        if op.flags & (flag::ADDR32 | flag::ADDR16 | flag::CODE32) != 0 {
            return self.narrow_ea(op, offset);
        }
        offset.wrapping_add(self.base_of(op.seg))
    }

    #[inline(never)]
    fn narrow_ea(&self, op: &Op, offset: u64) -> u64 {
        let ea = Self::truncate_offset(op, offset).wrapping_add(self.base_of(op.seg));
        if op.flags & flag::CODE32 != 0 { ea as u32 as u64 } else { ea }
    }

    fn truncate_offset(op: &Op, offset: u64) -> u64 {
        if op.flags & flag::ADDR32 != 0 {
            offset as u32 as u64
        } else if op.flags & flag::ADDR16 != 0 {
            offset as u16 as u64
        } else {
            offset
        }
    }

    /// The memory operand's offset in its segment: what LEA gives, before truncation to the
    /// operand size.
    #[inline(always)]
    pub(super) fn offset(&self, op: &Op) -> u64 {
        Self::truncate_offset(op, self.raw_offset(op))
    }

    #[inline(always)]
    fn raw_offset(&self, op: &Op) -> u64 {
        debug_assert!(op.base < 18 && op.index < 18);
        // SAFETY: lowering only makes slots 0..=17.
        let (base, index) = unsafe {
            (*self.regs.get_unchecked(op.base as usize), *self.regs.get_unchecked(op.index as usize))
        };
        base.wrapping_add(index << (op.scale & 3)).wrapping_add(op.disp as u64)
    }

    #[inline(always)]
    pub(super) fn base_of(&self, seg: u8) -> u64 {
        self.seg_base[(seg & 7) as usize]
    }

    /// Reads the memory operand.
    #[inline(always)]
    pub(super) fn load<T: Int>(&mut self, op: &Op) -> Result<T, Stop> {
        self.read(self.ea(op))
    }

    /// Writes the memory operand.
    #[inline(always)]
    pub(super) fn store<T: Int>(&mut self, op: &Op, v: T) -> Result<(), Stop> {
        self.write(self.ea(op), v)
    }

    /// Reads linear memory with the current privilege.
    #[inline(always)]
    pub(super) fn read<T: Int>(&mut self, va: u64) -> Result<T, Stop> {
        match self.tlb.read_ptr(va, T::BYTES) {
            // SAFETY: a TLB hit is a pointer to `T::BYTES` bytes of mapped guest RAM.
            Some(p) => Ok(unsafe { p.cast::<T>().read_unaligned() }),
            None => self.read_slow(va, T::BYTES as usize).map(T::from_u64),
        }
    }

    /// Writes linear memory with the current privilege.
    #[inline(always)]
    pub(super) fn write<T: Int>(&mut self, va: u64, v: T) -> Result<(), Stop> {
        match self.tlb.write_ptr(va, T::BYTES) {
            // SAFETY: as in `read`, and the page is writable and holds no decoded code.
            Some(p) => {
                unsafe { p.cast::<T>().write_unaligned(v) };
                Ok(())
            }
            None => self.write_slow(va, v.to_u64(), T::BYTES as usize),
        }
    }

    /// Reads 16 bytes of the memory operand, without an alignment check.
    #[inline(always)]
    pub(super) fn load128(&mut self, op: &Op) -> Result<u128, Stop> {
        let va = self.ea(op);
        match self.tlb.read_ptr(va, 16) {
            // SAFETY: as in `read`.
            Some(p) => Ok(unsafe { p.cast::<u128>().read_unaligned() }),
            None => {
                let mut bytes = [0; 16];
                self.read_bytes(va, &mut bytes)?;
                Ok(u128::from_le_bytes(bytes))
            }
        }
    }

    /// Writes 16 bytes to the memory operand, without an alignment check.
    #[inline(always)]
    pub(super) fn store128(&mut self, op: &Op, v: u128) -> Result<(), Stop> {
        let va = self.ea(op);
        match self.tlb.write_ptr(va, 16) {
            // SAFETY: as in `write`.
            Some(p) => {
                unsafe { p.cast::<u128>().write_unaligned(v) };
                Ok(())
            }
            None => self.write_bytes(va, &v.to_le_bytes()),
        }
    }

    /// #AC(0) where alignment is checked and `va` is no multiple of `align`. Comes before page faults, behind
    /// the check of the first byte's address.
    #[inline]
    pub(super) fn check_alignment(&mut self, va: u64, align: u64) -> Result<(), Stop> {
        if self.tlb.is_checked() && va & (align - 1) != 0 {
            self.check_canonical(va)?;
            return Err(self.raise(vector::AC, Some(0)));
        }
        Ok(())
    }

    /// #GP(0) unless the memory operand is 16-byte aligned.
    #[inline(always)]
    pub(super) fn check_aligned16(&mut self, op: &Op) -> Result<(), Stop> {
        if self.ea(op) & 15 != 0 { Err(self.gp()) } else { Ok(()) }
    }

    /// Reads linear memory of any length with the current privilege; faults on the first byte
    /// that cannot be read.
    pub(super) fn read_bytes(&mut self, va: u64, out: &mut [u8]) -> Result<(), Stop> {
        if !out.is_empty() {
            self.check_canonical(va.wrapping_add(out.len() as u64 - 1))?;
        }
        let mut done = 0;
        while done < out.len() {
            let at = va.wrapping_add(done as u64);
            let n = (out.len() - done).min(4096 - (at & 4095) as usize);
            let gpa = self.translate(at, Access::Read)?;
            self.phys_read(gpa, &mut out[done..done + n]);
            done += n;
        }
        Ok(())
    }

    /// Writes linear memory of any length; all of it is checked before any of it is written.
    pub(super) fn write_bytes(&mut self, va: u64, data: &[u8]) -> Result<(), Stop> {
        if !data.is_empty() {
            self.check_canonical(va.wrapping_add(data.len() as u64 - 1))?;
        }
        let mut checked = 0;
        while checked < data.len() {
            let at = va.wrapping_add(checked as u64);
            self.translate(at, Access::Write)?;
            checked += 4096 - (at & 4095) as usize;
        }
        let mut done = 0;
        while done < data.len() {
            let at = va.wrapping_add(done as u64);
            let n = (data.len() - done).min(4096 - (at & 4095) as usize);
            let gpa = self.translate(at, Access::Write)?;
            self.phys_write(gpa, &data[done..done + n]);
            done += n;
        }
        Ok(())
    }

    /// Reads with supervisor rights whatever the privilege: descriptor tables, TSS.
    pub(super) fn read_system<T: Int>(&mut self, va: u64) -> Result<T, Stop> {
        self.as_system(|cpu| cpu.read(va))
    }

    /// Writes with supervisor rights whatever the privilege.
    pub(super) fn write_system<T: Int>(&mut self, va: u64, v: T) -> Result<(), Stop> {
        self.as_system(|cpu| cpu.write(va, v))
    }

    /// An access that the processor makes of its own accord: SMAP holds whatever AC says.
    fn as_system<R>(&mut self, run: impl FnOnce(&mut Self) -> R) -> R {
        let (cpl, sysflags) = (self.cpl, self.sysflags);
        self.cpl = 0;
        self.sysflags &= !rflags::AC;
        self.select_tlb();
        let result = run(self);
        self.cpl = cpl;
        self.sysflags = sysflags;
        self.select_tlb();
        result
    }

    /// Applies `f` to the memory operand and returns (old, new). With LOCK, as one atomic step
    /// against other vCPUs and devices.
    #[inline(always)]
    pub(super) fn modify<T: Int>(&mut self, op: &Op, f: impl Fn(T) -> T) -> Result<(T, T), Stop> {
        let va = self.ea(op);
        if op.flags & flag::LOCK != 0 {
            return self.modify_locked(va, f);
        }
        match self.tlb.write_ptr(va, T::BYTES) {
            // SAFETY: as in `write`; writable pages are readable.
            Some(p) => unsafe {
                let p = p.cast::<T>();
                let old = p.read_unaligned();
                let new = f(old);
                p.write_unaligned(new);
                Ok((old, new))
            },
            None => {
                let old = T::from_u64(self.read_slow_for_write(va, T::BYTES as usize)?);
                let new = f(old);
                self.write_slow(va, new.to_u64(), T::BYTES as usize)?;
                Ok((old, new))
            }
        }
    }

    #[inline(never)]
    fn modify_locked<T: Int>(&mut self, va: u64, f: impl Fn(T) -> T) -> Result<(T, T), Stop> {
        if va & (T::BYTES - 1) == 0 {
            if let Some(p) = self.tlb.write_ptr(va, T::BYTES) {
                // SAFETY: a TLB hit is a pointer to mapped guest RAM, aligned as `va` is.
                return Ok(unsafe { exchange(p.cast::<T>(), f) });
            }
            let gpa = self.fill(va, Access::Write)?;
            if let Some((p, page)) = self.ram.host(gpa) {
                // SAFETY: `p` is aligned (`va` is, and pages are) and in mapped RAM.
                let both = unsafe { exchange(p.cast::<T>(), f) };
                self.wrote(page);
                return Ok(both);
            }
        }
        // A split lock or a device register.
        self.check_alignment(va, T::BYTES)?;
        self.check_canonical(va.wrapping_add(T::BYTES - 1))?;
        self.translate(va, Access::Write)?;
        self.translate(second_page(va, T::BYTES), Access::Write)?;
        self.alone(|cpu| {
            let old = T::from_u64(cpu.read_slow_for_write(va, T::BYTES as usize)?);
            let new = f(old);
            cpu.write_slow(va, new.to_u64(), T::BYTES as usize)?;
            Ok((old, new))
        })
    }

    // --- stack ---

    /// Width of the stack pointer in 64-bit mode is 64, else 32 bits.
    #[inline(always)]
    pub(super) fn stack_addr(&self, rsp: u64) -> u64 {
        if self.long { rsp } else { (rsp as u32 as u64).wrapping_add(self.seg_base[seg::SS]) as u32 as u64 }
    }

    #[inline(always)]
    pub(super) fn set_rsp(&mut self, rsp: u64) {
        self.regs[4] = if self.long { rsp } else { rsp as u32 as u64 };
    }

    /// A non-canonical address is #SS where the stack was meant.
    #[cold]
    pub(super) fn stack_stop(&mut self, stop: Stop) -> Stop {
        if self.fault.address {
            self.fault.vector = vector::SS;
        }
        stop
    }

    #[inline(always)]
    pub(super) fn push<T: Int>(&mut self, v: T) -> Result<(), Stop> {
        let rsp = self.regs[4].wrapping_sub(T::BYTES);
        self.write(self.stack_addr(rsp), v).map_err(|stop| self.stack_stop(stop))?;
        self.set_rsp(rsp);
        Ok(())
    }

    #[inline(always)]
    pub(super) fn pop<T: Int>(&mut self) -> Result<T, Stop> {
        let v = self.read(self.stack_addr(self.regs[4])).map_err(|stop| self.stack_stop(stop))?;
        self.set_rsp(self.regs[4].wrapping_add(T::BYTES));
        Ok(v)
    }

    /// TSC value now.
    pub(super) fn tsc(&self) -> u64 {
        self.ticks(self.clock.now()).wrapping_add(self.msrs.tsc_offset)
    }

    /// The TSC's ticks in `ns`.
    pub(super) fn ticks(&self, ns: u64) -> u64 {
        match self.tsc_khz {
            TSC_KHZ => ns,
            khz => (u128::from(ns) * u128::from(khz) / u128::from(TSC_KHZ)) as u64,
        }
    }

    /// Machine time in ns when the TSC shows `value`; at the earliest its beginning.
    pub(super) fn when(&self, value: u64) -> u64 {
        let ticks = value.wrapping_sub(self.msrs.tsc_offset);
        match self.tsc_khz {
            TSC_KHZ => ticks,
            khz if ticks >> 63 == 0 => {
                (u128::from(ticks) * u128::from(TSC_KHZ) / u128::from(khz.max(1))) as u64
            }
            _ => 0,
        }
    }

    /// The I/O side lent to `run`.
    pub(super) fn io(&self) -> Option<&dyn crate::hypervisor::ExitIo> {
        // SAFETY: `run` sets the pointer from a reference it holds and clears it before it
        // returns; nothing else calls this.
        self.io.map(|io| unsafe { &*io })
    }

    /// Segment slot to use for a memory operand with segment register number `s`.
    pub(super) fn seg_slot(long: bool, s: usize) -> u8 {
        if long && s < seg::FS { SEG_FLAT } else { s as u8 }
    }
}

/// Replaces `*p` by `f` of it in one step; returns (old, new).
///
/// # Safety
/// `p` is aligned, in mapped RAM, and shared with other threads as atomics or untorn plain accesses only.
#[inline(always)]
unsafe fn exchange<T: Int>(p: *mut T, f: impl Fn(T) -> T) -> (T, T) {
    // SAFETY: the caller's promise.
    let mut old = unsafe { p.read_volatile() };
    loop {
        let new = f(old);
        // SAFETY: the caller's promise.
        match unsafe { T::compare_exchange(p, old, new) } {
            Ok(_) => return (old, new),
            Err(seen) => old = seen,
        }
    }
}

/// Where an access of `len` bytes at `va` enters its last page: the address that a fault there
/// reports.
pub(super) fn second_page(va: u64, len: u64) -> u64 {
    let last = va.wrapping_add(len - 1);
    if (va ^ last) >> 12 != 0 { last & !4095 } else { va }
}
