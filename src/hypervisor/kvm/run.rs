//! One vCPU on KVM: its run loop, its exits, and how other threads reach it.
//!
//! A kick sets the flag that has the kernel return at once, and sends the vCPU's thread one
//! real-time signal ([`kick_signal`]) in case it is in the guest. The signal's handler does nothing.
//! An exit is always completed (a value read by the guest has reached its register) before
//! [`KvmVcpu`] returns from `run`, so that its state is that between two instructions.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_OUT,
    KVM_EXIT_IOAPIC_EOI, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT,
    KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_MP_STATE_HALTED,
    kvm_run,
};
use kvm_ioctls::VcpuFd;

use super::opinion::Opinion;
use super::state::Undelivered;
use super::time::Tsc;
use super::{HypervisorError, Shared, cpuid, host, ioctl, lapic, state};
use crate::arch::x86_64::{VcpuState, rflags};
use crate::hypervisor::model::Identity;
use crate::hypervisor::{Exit, ExitIo, Vcpu, VcpuSignal};
use crate::state as saved;
use crate::sys::kick::{Reminder, kick_signal};

/// What other threads need to reach the vCPU.
struct Signal {
    kicked: AtomicBool,
    /// The thread that is in `run`, and the byte that has the kernel return.
    running: Mutex<Option<Running>>,
    /// The PIC asks for an interrupt.
    lint0: AtomicBool,
}

struct Running {
    thread: libc::pthread_t,
    immediate_exit: *mut u8,
}

// SAFETY: the pointer is used under the lock only, and taken away before what it leads to is gone.
unsafe impl Send for Running {}

impl Signal {
    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Has the vCPU leave the guest and look around.
    fn nudge(&self) {
        if let Some(running) = &*self.lock() {
            // SAFETY: the vCPU's shared page is mapped for as long as `running` is there. The kernel
            // and its thread read the byte meanwhile, in one go.
            unsafe { running.immediate_exit.write_volatile(1) };
            // SAFETY: the thread is in `run`, so it exists; the signal has a handler.
            unsafe { libc::pthread_kill(running.thread, kick_signal()) };
        }
    }
}

impl VcpuSignal for Signal {
    /// Events of the local APIC are the kernel's business.
    fn attention(&self) {}

    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.nudge();
    }

    fn set_lint0(&self, level: bool) {
        if self.lint0.swap(level, Ordering::SeqCst) != level && level {
            self.nudge();
        }
    }
}

/// One vCPU of a [`super::KvmVm`].
pub(super) struct KvmVcpu {
    fd: VcpuFd,
    shared: Arc<Shared>,
    signal: Arc<Signal>,
    tsc: Tsc,
    opinion: Opinion,
    /// The last exit wants to be completed by going in again.
    incomplete: bool,
    /// Has it look around from time to time: nothing else tells that the guest has halted for good.
    reminder: Option<Reminder>,
}

// SAFETY: what keeps it on one thread is the pointer to the shared page, which moves with it.
unsafe impl Send for KvmVcpu {}

/// What an exit came to.
enum Done {
    /// Go in again, which completes it.
    Complete,
    /// Go in again.
    Again,
    Leave(Exit),
}

impl KvmVcpu {
    pub(super) fn new(fd: VcpuFd, id: u32, cpus: u32, shared: Arc<Shared>) -> Result<Self, HypervisorError> {
        crate::sys::kick::install()?;
        let tsc = shared.time.tsc(&fd)?;
        let identity = Identity { model: shared.options.model, id, cpus, tsc_khz: tsc.khz };
        fd.set_cpuid2(&cpuid::table(&identity)?).map_err(host)?;
        if id != 0 {
            state::set_waiting(&fd)?;
        }
        let signal = Signal {
            kicked: AtomicBool::new(false),
            running: Mutex::new(None),
            lint0: AtomicBool::new(false),
        };
        shared.traps.have_cpuid_fault(&fd);
        let opinion = Opinion::new(identity, &shared);
        Ok(Self { fd, shared, signal: Arc::new(signal), tsc, opinion, incomplete: false, reminder: None })
    }

    fn page(&mut self) -> &mut kvm_run {
        self.fd.get_kvm_run()
    }

    fn set_immediate_exit(&mut self, value: u8) {
        let byte = &raw mut self.page().immediate_exit;
        // SAFETY: a byte of the mapped page, which other threads write in the same way.
        unsafe { byte.write_volatile(value) };
    }

    fn run_loop(&mut self, io: &dyn ExitIo) -> Result<Exit, HypervisorError> {
        loop {
            self.set_immediate_exit(0);
            // A kick from here on has set the byte again.
            let kicked = self.signal.kicked.swap(false, Ordering::SeqCst);
            if kicked {
                if !self.incomplete {
                    return Ok(Exit::Kicked);
                }
                self.set_immediate_exit(1);
            }
            let pic = self.offer_pic(io)?;
            self.page().request_interrupt_window = pic.into();
            let entered = self.fd.run().map(drop);
            self.incomplete = false;
            let left = match entered {
                Ok(()) => self.exit(io)?,
                Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => match self.halted_for_good()? {
                    true => Done::Leave(Exit::Halted),
                    false => Done::Again,
                },
                Err(e) if e.errno() == libc::EFAULT => {
                    return Err(HypervisorError::Unsupported("guest RAM that the host could not provide"));
                }
                Err(e) => return Err(host(e)),
            };
            match left {
                Done::Complete => self.incomplete = true,
                Done::Again => {}
                Done::Leave(exit) => return Ok(exit),
            }
            if kicked {
                self.signal.kicked.store(true, Ordering::SeqCst);
            }
        }
    }

    /// Whether the guest is in a HLT that only a non-maskable interrupt could end.
    fn halted_for_good(&self) -> Result<bool, HypervisorError> {
        let halted = self.fd.get_mp_state().map_err(host)?.mp_state == KVM_MP_STATE_HALTED;
        Ok(halted && self.fd.get_regs().map_err(host)?.rflags & rflags::IF == 0)
    }

    /// Delivers what the PIC asks for, if it may be. Returns whether that has to wait.
    fn offer_pic(&mut self, io: &dyn ExitIo) -> Result<bool, HypervisorError> {
        if !self.signal.lint0.load(Ordering::SeqCst) {
            return Ok(false);
        }
        if self.page().ready_for_interrupt_injection == 0 {
            return Ok(true);
        }
        if let Some(vector) = io.acknowledge_pic() {
            ioctl::interrupt(&self.fd, vector)?;
        }
        Ok(false)
    }

    /// Does what the kernel left the guest for.
    fn exit(&mut self, io: &dyn ExitIo) -> Result<Done, HypervisorError> {
        let page: *mut kvm_run = self.page();
        // SAFETY: the page is mapped, the kernel writes it in `run` only, and nobody but other threads'
        // kicks, which write another byte, touch it meanwhile. Each union's field is the one that the
        // exit's reason names.
        let reason = unsafe { (*page).exit_reason };
        match reason {
            KVM_EXIT_IO => {
                // SAFETY: as above.
                let port = unsafe { (*page).__bindgen_anon_1.io };
                let (size, count) = (usize::from(port.size), port.count as usize);
                // SAFETY: the kernel lays `count` values of `size` bytes there, inside the mapping.
                let data = unsafe {
                    std::slice::from_raw_parts_mut(
                        page.cast::<u8>().add(port.data_offset as usize),
                        size * count,
                    )
                };
                for value in data.chunks_exact_mut(size.max(1)) {
                    match u32::from(port.direction) {
                        KVM_EXIT_IO_OUT => io.port_write(port.port, value),
                        _ => io.port_read(port.port, value),
                    }
                }
                Ok(Done::Complete)
            }
            KVM_EXIT_MMIO => {
                // SAFETY: as above.
                let mmio = unsafe { &mut (*page).__bindgen_anon_1.mmio };
                let len = (mmio.len as usize).min(8);
                match mmio.is_write {
                    0 => io.mmio_read(mmio.phys_addr, &mut mmio.data[..len]),
                    _ => io.mmio_write(mmio.phys_addr, &mmio.data[..len]),
                }
                Ok(Done::Complete)
            }
            KVM_EXIT_IOAPIC_EOI => {
                // SAFETY: as above.
                io.end_of_interrupt(unsafe { (*page).__bindgen_anon_1.eoi.vector });
                Ok(Done::Complete)
            }
            KVM_EXIT_INTR | KVM_EXIT_IRQ_WINDOW_OPEN => Ok(Done::Again),
            KVM_EXIT_SHUTDOWN | KVM_EXIT_SYSTEM_EVENT => Ok(Done::Leave(Exit::TripleFault)),
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: as above.
                let why = unsafe { (*page).__bindgen_anon_1.fail_entry.hardware_entry_failure_reason };
                tracing::error!(reason = format_args!("{why:#x}"), "the processor refuses the guest's state");
                Err(HypervisorError::BadState("the processor refuses to enter the guest with it"))
            }
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: as above.
                let failure = unsafe { (*page).__bindgen_anon_1.emulation_failure };
                if failure.suberror != KVM_INTERNAL_ERROR_EMULATION {
                    tracing::error!(suberror = failure.suberror, "KVM's internal error");
                    return Err(HypervisorError::Unsupported(
                        "what the guest did; KVM gave up (internal error)",
                    ));
                }
                let given = failure.ndata >= 3
                    && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
                // SAFETY: the only form that this part has.
                let code = given.then_some(unsafe { failure.__bindgen_anon_1.__bindgen_anon_1.insn_bytes });
                let left = self.opinion.give(&self.fd, code, &self.shared, io)?;
                Ok(left.map_or(Done::Again, Done::Leave))
            }
            other => {
                tracing::error!(reason = other, "an exit that nothing here asks for");
                Err(HypervisorError::Unsupported("a kind of exit that KVM made"))
            }
        }
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        *self.signal.lock() = None;
    }
}

/// Takes the thread's name off the door when `run` is left, however it is.
struct Door<'a>(&'a Signal);

impl Drop for Door<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, io: &dyn ExitIo) -> Result<Exit, HypervisorError> {
        self.shared.time.follow(&mut self.tsc, &self.fd)?;
        if self.shared.traps.missing() {
            self.opinion.set_traps(&self.fd, &self.shared)?;
        }
        if !self.reminder.as_ref().is_some_and(Reminder::is_here) {
            crate::sys::kick::unblock();
            self.reminder = Reminder::new();
        }
        let immediate_exit = &raw mut self.page().immediate_exit;
        // SAFETY: always possible.
        let thread = unsafe { libc::pthread_self() };
        *self.signal.lock() = Some(Running { thread, immediate_exit });
        let signal = self.signal.clone();
        let _door = Door(&signal);
        self.run_loop(io)
    }

    fn signal(&self) -> Arc<dyn VcpuSignal> {
        self.signal.clone()
    }

    fn state(&self) -> Result<VcpuState, HypervisorError> {
        let (mut state, undelivered) = state::get(&self.fd)?;
        let tsc = self.shared.time.read(&self.tsc, &self.shared.fd, &self.fd)?;
        state.tsc_khz = tsc.khz;
        state.msrs.tsc_offset = tsc.offset;
        if let Some(Undelivered(vector)) = undelivered {
            tracing::debug!(vector, "an interrupt under way is put back");
        }
        Ok(state)
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), HypervisorError> {
        self.incomplete = false;
        self.shared.time.set(&mut self.tsc, &self.fd, state.tsc_khz, state.msrs.tsc_offset)?;
        state::set(&self.fd, state)
    }

    fn local_apic(&self, now: u64) -> Result<Option<saved::Lapic>, HypervisorError> {
        let (_, undelivered) = state::get(&self.fd)?;
        let tsc = self.shared.time.read(&self.tsc, &self.shared.fd, &self.fd)?;
        let mut lapic = lapic::get(&self.fd, &tsc, now)?;
        if let Some(Undelivered(vector)) = undelivered {
            let (word, bit) = (usize::from(vector >> 5), 1 << (vector & 31));
            lapic.isr[word] &= !bit;
            lapic.irr[word] |= bit;
        }
        lapic.lint0 = self.signal.lint0.load(Ordering::SeqCst);
        Ok(Some(lapic))
    }

    fn set_local_apic(&mut self, lapic: &saved::Lapic, now: u64) -> Result<(), HypervisorError> {
        lapic::set(&self.fd, lapic, &self.tsc, now)?;
        self.signal.lint0.store(lapic.lint0, Ordering::SeqCst);
        Ok(())
    }

    fn instructions(&self) -> Option<u64> {
        None
    }
}
