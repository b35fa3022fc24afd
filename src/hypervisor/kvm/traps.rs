//! Programs' system calls, CPUID and INT n, on a KVM that does them wrong.
//!
//! A hypervisor without virtualization under it runs programs on the processor and emulates only their
//! kernel. One such enters the kernel's system call handler (LSTAR) at privilege 3, so that the fetch
//! there is a page fault; it shows programs the host's features, unless CPUID faults outside privilege 0
//! (a #GP); and it makes a #UD of every other #GP whose instruction its emulator does not know. There is
//! no exit for any of these. So the first byte of the guest's handlers of the three exceptions is
//! replaced by a breakpoint, which this KVM's emulator refuses, and the refusal is an exit
//! ([`super::opinion`]). There the exception that was none is taken back, and the software CPU executes
//! the instruction that the program stands at, with the exception that it really raises, if any; any
//! other exception is handled by the guest, from the handler's own first instruction.
//!
//! The bytes are in place only while the machine's time runs: what is saved or cloned does not have
//! them. They are put in when the guest has told the processor of its system call handler, and again if
//! the guest overwrites them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

use super::{HypervisorError, msr};
use crate::arch::x86_64::{Segment, VcpuState, cr0, efer, gpr, rflags, seg, vector};
use crate::hypervisor::soft::Stepper;
use crate::hypervisor::{Exit, ExitIo};
use crate::memory::GuestRam;

/// INT3.
const BREAKPOINT: u8 = 0xcc;
const SYSCALL: [u8; 2] = [0x0f, 0x05];
const CPUID: [u8; 2] = [0x0f, 0xa2];
const IRETQ: [u8; 2] = [0x48, 0xcf];
/// A page fault's error code: a program's fetch from a page that is there.
const FETCH_REFUSED: u64 = 0x15;
/// MSR_PLATFORM_INFO, and its bit that says that CPUID can fault.
const PLATFORM_INFO: (u32, u64) = (0xce, 1 << 31);
/// MSR_MISC_FEATURES_ENABLES, and its bit that has it fault outside privilege 0.
const CPUID_FAULTS: (u32, u64) = (0x140, 1);

/// A handler of the guest that begins with a breakpoint.
#[derive(Debug, Clone, Copy)]
struct Trap {
    vector: u8,
    /// Linear address of the handler.
    entry: u64,
    /// The guest-physical one.
    gpa: u64,
    /// Its first byte.
    first: u8,
}

/// The traps of a machine.
pub(super) struct Traps {
    on: bool,
    ram: Arc<GuestRam>,
    /// Time runs, and they may be missing.
    missing: AtomicBool,
    placed: Mutex<Placed>,
}

#[derive(Default)]
struct Placed {
    /// What they were found by: the table's address, and the system call handler's.
    key: (u64, u64),
    traps: Vec<Trap>,
}

/// What the processor pushes for these exceptions, as far as it matters.
struct Frame {
    error: u64,
    cs: u64,
}

impl Traps {
    pub(super) fn new(on: bool, ram: Arc<GuestRam>) -> Self {
        Self { on, ram, missing: AtomicBool::new(on), placed: Mutex::default() }
    }

    /// Keeps the guest's kernel from what makes CPUID fault.
    pub(super) fn hide(&self, fd: &VmFd) {
        if !self.on {
            return;
        }
        // A bit for each register that may be accessed, from this one on.
        let range = MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: CPUID_FAULTS.0,
            msr_count: 1,
            bitmap: &[0],
        };
        if let Err(e) = fd.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range]) {
            tracing::debug!(error = &e as &dyn std::error::Error, "the guest can see that CPUID faults");
        }
    }

    /// Has CPUID fault outside privilege 0, where that can be.
    pub(super) fn have_cpuid_fault(&self, fd: &VcpuFd) {
        if self.on
            && let Err(e) = msr::set(fd, &[PLATFORM_INFO, CPUID_FAULTS])
        {
            tracing::debug!(error = &e as &dyn std::error::Error, "programs see the host's CPUID");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Placed> {
        self.placed.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Whether [`Traps::place`] has something to do before the guest runs.
    pub(super) fn missing(&self) -> bool {
        self.missing.load(Ordering::Relaxed)
    }

    /// Puts the breakpoints where `state` says that the handlers are, if they are not there.
    pub(super) fn place(&self, stepper: &mut Stepper, state: &VcpuState) -> Result<(), HypervisorError> {
        let paging = state.cr0 & cr0::PG != 0 && state.efer & efer::LMA != 0;
        if !self.on || !paging || state.msrs.lstar == 0 {
            return Ok(());
        }
        let mut placed = self.lock();
        let key = (state.idt.base, state.msrs.lstar);
        if placed.key != key {
            self.take_out(&mut placed);
            let kernel = as_kernel(state);
            for vector in [vector::UD, vector::GP, vector::PF] {
                match self.find(stepper, &kernel, vector)? {
                    Some(trap) => placed.traps.push(trap),
                    // Not set up yet.
                    None => return Ok(()),
                }
            }
            placed.key = key;
            tracing::debug!(traps = ?placed.traps, "programs' system calls and CPUID are trapped");
        }
        for trap in &mut placed.traps {
            let first = self.byte(trap.gpa);
            if first != BREAKPOINT {
                // The guest has changed its code, as it does when it starts.
                trap.first = first;
                self.put(trap.gpa, BREAKPOINT);
            }
        }
        self.missing.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// The handler of `vector`, as its gate says.
    fn find(
        &self,
        stepper: &mut Stepper,
        kernel: &VcpuState,
        vector: u8,
    ) -> Result<Option<Trap>, HypervisorError> {
        let mut gate = [0; 16];
        let at = kernel.idt.base.wrapping_add(16 * u64::from(vector));
        if stepper.read(kernel, at, &mut gate)? < gate.len() || gate[5] & 0x80 == 0 {
            return Ok(None);
        }
        let [l0, l1, _, _, _, _, m0, m1, h0, h1, h2, h3, ..] = gate;
        let entry = u64::from_le_bytes([l0, l1, m0, m1, h0, h1, h2, h3]);
        let Some(gpa) = stepper.code_at(kernel, entry)? else { return Ok(None) };
        Ok(Some(Trap { vector, entry, gpa, first: self.byte(gpa) }))
    }

    fn byte(&self, gpa: u64) -> u8 {
        self.ram.memory().read_obj(GuestAddress(gpa)).unwrap_or(BREAKPOINT)
    }

    fn put(&self, gpa: u64, byte: u8) {
        // It was translated into RAM.
        let _ = self.ram.memory().write_obj(byte, GuestAddress(gpa));
    }

    fn take_out(&self, placed: &mut Placed) {
        for trap in placed.traps.drain(..) {
            if self.byte(trap.gpa) == BREAKPOINT {
                self.put(trap.gpa, trap.first);
            }
        }
        placed.key = (0, 0);
    }

    /// Gives the guest its own code back. No vCPU runs.
    pub(super) fn remove(&self) {
        self.take_out(&mut self.lock());
        self.missing.store(self.on, Ordering::Relaxed);
    }

    /// Does what a breakpoint of ours stands for. `None`: there is none at this instruction.
    pub(super) fn sprung(
        &self,
        stepper: &mut Stepper,
        state: &mut VcpuState,
        io: &dyn ExitIo,
    ) -> Result<Option<Option<Exit>>, HypervisorError> {
        let trap = self.lock().traps.iter().find(|trap| trap.entry == state.rip).copied();
        let Some(trap) = trap else { return Ok(None) };
        // #UD is the one without an error code.
        let error_code = trap.vector != vector::UD;
        let Some(frame) = frame(stepper, state, error_code)?.filter(|frame| frame.cs & 3 == 3) else {
            return self.pass(stepper, state, trap, io).map(Some);
        };
        let mut program = state.clone();
        if error_code {
            program.gpr[gpr::RSP] = program.gpr[gpr::RSP].wrapping_add(8);
        }
        if stepper.step_code(&mut program, &IRETQ, io)?.is_some() || program.seg[seg::CS].selector & 3 != 3 {
            return self.pass(stepper, state, trap, io).map(Some);
        }
        program.rflags &= !rflags::RF;
        let meant = match trap.vector {
            vector::PF => frame.error == FETCH_REFUSED && entered(stepper, &mut program)?,
            vector::UD => true,
            _ => frame.error == 0 && at_cpuid(stepper, &program)?,
        };
        if !meant {
            return self.pass(stepper, state, trap, io).map(Some);
        }
        let exit = stepper.step(&mut program, io)?;
        *state = program;
        if exit.is_none() && state.rip == trap.entry {
            // It was that exception after all.
            return self.pass(stepper, state, trap, io).map(Some);
        }
        Ok(Some(exit))
    }

    /// The guest handles the exception: its handler's own first instruction.
    fn pass(
        &self,
        stepper: &mut Stepper,
        state: &mut VcpuState,
        trap: Trap,
        io: &dyn ExitIo,
    ) -> Result<Option<Exit>, HypervisorError> {
        let mut code = [0; 15];
        let read = stepper.read(state, state.rip, &mut code)?;
        code[0] = trap.first;
        stepper.step_code(state, &code[..read.max(1)], io)
    }
}

/// Whether the program `state` was brought to the system call handler by SYSCALL; it is back there then.
fn entered(stepper: &mut Stepper, state: &mut VcpuState) -> Result<bool, HypervisorError> {
    let at = state.gpr[gpr::RCX].wrapping_sub(2);
    let mut code = [0; 2];
    let entered = state.rip == state.msrs.lstar
        && state.seg[seg::CS].long()
        && stepper.read(state, at, &mut code)? == 2
        && code == SYSCALL;
    if entered {
        state.rip = at;
        state.rflags = state.gpr[11] & !rflags::RF;
    }
    Ok(entered)
}

/// Whether the program is at a CPUID.
fn at_cpuid(stepper: &mut Stepper, state: &VcpuState) -> Result<bool, HypervisorError> {
    let mut code = [0; 15];
    let base = if state.seg[seg::CS].long() { 0 } else { state.seg[seg::CS].base };
    let read = stepper.read(state, base.wrapping_add(state.rip), &mut code)?;
    let prefix =
        |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf2 | 0xf3);
    let begin = code[..read].iter().position(|byte| !prefix(byte)).unwrap_or(read);
    Ok(code[begin..read].starts_with(&CPUID))
}

/// The same state at privilege 0, to look at the kernel's memory with.
fn as_kernel(state: &VcpuState) -> VcpuState {
    let mut kernel = state.clone();
    kernel.seg[seg::CS] = Segment { selector: 0x10, base: 0, limit: u32::MAX, attributes: 0xa09b };
    kernel.seg[seg::SS] = Segment { selector: 0x18, base: 0, limit: u32::MAX, attributes: 0xc093 };
    kernel
}

/// What is on the handler's stack.
fn frame(
    stepper: &mut Stepper,
    state: &VcpuState,
    error_code: bool,
) -> Result<Option<Frame>, HypervisorError> {
    let mut bytes = [0; 24];
    let wanted = if error_code { &mut bytes[..] } else { &mut bytes[8..] };
    let len = wanted.len();
    let read = stepper.read(state, state.gpr[gpr::RSP], wanted)?;
    let word = |n: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[8 * n + i]));
    Ok((read == len).then(|| Frame { error: word(0), cs: word(2) }))
}
