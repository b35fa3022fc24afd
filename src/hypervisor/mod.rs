//! Processors: the one interface that every backend offers, and the interface each calls out to.
//!
//! A [`Vm`] holds guest memory and makes [`Vcpu`]s. A vCPU's [`Vcpu::run`] runs guest code on the
//! calling thread until something outside has to decide ([`Exit`]); accesses to ports and to
//! addresses without RAM do not end it, they go to the [`ExitIo`] that the caller lends. This layer
//! never calls upward: [`ExitIo`] and [`LocalApic`] are declared here and implemented above.
//!
//! States of a vCPU: *stopped* (no thread in `run`; its state may be read and set) and *running*.
//! [`VcpuSignal::kick`] ends `run` with [`Exit::Kicked`] soon, wherever the guest is, also in HLT.
//!
//! * [`soft`]: the software CPU, which works everywhere;
//! * [`kvm`]: Linux's hypervisor; [`hvf`] and [`whp`]: those of macOS and Windows, not written yet;
//! * [`probe`]: whether a hypervisor can run a kernel, and how fast;
//! * [`CpuModel`]: what the processors are, the same on every backend.

pub(crate) mod flat;
pub mod hvf;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;
mod model;
pub mod probe;
mod saved;
pub mod soft;
#[cfg(test)]
mod tests;
mod unavailable;
pub mod whp;

use std::sync::Arc;

use crate::arch::x86_64::VcpuState;
use crate::memory::GuestRam;
use crate::state as saved_state;
use crate::sys::clock::Clock;

pub use model::CpuModel;
pub use unavailable::Unavailable;

/// What a vCPU calls out to while it runs. Implementations must be quick and must not panic on any
/// address or length: the guest chooses both. `data` is 1, 2, 4 or 8 bytes, little-endian.
pub trait ExitIo: Send + Sync {
    /// `in` from `port`. Fills `data`; all ones where nothing answers.
    fn port_read(&self, port: u16, data: &mut [u8]);
    /// `out` to `port`.
    fn port_write(&self, port: u16, data: &[u8]);
    /// A load from guest-physical `addr`, where there is no RAM. All ones where nothing answers.
    fn mmio_read(&self, addr: u64, data: &mut [u8]);
    /// A store to guest-physical `addr`, where there is no RAM.
    fn mmio_write(&self, addr: u64, data: &[u8]);
    /// The EOI of a level-triggered interrupt, from a backend with local APICs of its own.
    fn end_of_interrupt(&self, _vector: u8) {}
    /// The PIC's interrupt-acknowledge cycle, for such a backend; `None` when it asks for nothing any
    /// more.
    fn acknowledge_pic(&self) -> Option<u8> {
        None
    }
}

/// An interrupt message as a device writes it (MSI): Intel's manual, volume 3, "Message Signalled
/// Interrupts".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// Destination and its mode.
    pub address: u32,
    /// Vector, delivery mode, trigger mode.
    pub data: u32,
}

/// The way to the local APICs of a backend that has its own.
pub trait MessageSink: Send + Sync {
    /// Delivers a message. Returns whether any APIC took it.
    fn deliver(&self, message: &MsiMessage) -> bool;
    /// Names all messages whose end has to be told by [`ExitIo::end_of_interrupt`]: the IOAPIC's
    /// level-triggered ones.
    fn watch(&self, messages: &[MsiMessage]);
}

/// What a local APIC has for its processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalEvent {
    /// A maskable interrupt with this vector. Taking it has moved it from IRR to ISR.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// INIT: reset and wait for a start-up event.
    Init,
    /// Start-up IPI: begin in real mode at `vector << 12`.
    Startup(u8),
}

/// A local APIC as its own processor sees it, for backends whose host does not provide one.
pub trait LocalApic: Send + Sync {
    /// Whether [`LocalApic::take_event`] would return something. Cheap: asked at every attention.
    fn has_event(&self, interrupts_enabled: bool) -> bool;
    /// Takes the most urgent event. A maskable interrupt only if `interrupts_enabled`.
    fn take_event(&self, interrupts_enabled: bool) -> Option<LocalEvent>;
    /// A 32-bit read of the xAPIC register page at `offset` (0..0x1000).
    fn mmio_read(&self, offset: u32) -> u32;
    /// A 32-bit write to the xAPIC register page at `offset` (0..0x1000).
    fn mmio_write(&self, offset: u32, value: u32);
    /// RDMSR of IA32_APIC_BASE (0x1b), IA32_TSC_DEADLINE (0x6e0) or 0x800..0x8ff. `None` is #GP.
    fn msr_read(&self, msr: u32) -> Option<u64>;
    /// WRMSR of the same. `None` is #GP.
    fn msr_write(&self, msr: u32, value: u64) -> Option<()>;
    /// CR8: the task priority class, 0..=15.
    fn cr8(&self) -> u8;
    /// Sets CR8.
    fn set_cr8(&self, value: u8);
    /// Guest-physical base of the register page when the APIC is enabled in xAPIC mode.
    fn mmio_base(&self) -> Option<u64>;
}

/// Takes level changes of global system interrupts. Must not call back into the device that
/// signals: devices signal with their own lock held.
pub trait IrqSink: Send + Sync {
    /// Drives `gsi` to `level`. GSIs without a controller input are ignored.
    fn set_irq(&self, gsi: u32, level: bool);
}

/// Signals to a vCPU from other threads.
pub trait VcpuSignal: Send + Sync {
    /// The local APIC has a new event: look at it soon, and wake from HLT.
    fn attention(&self);
    /// Leave `run` with [`Exit::Kicked`]. Sticky: a kick while stopped ends the next `run` at once.
    fn kick(&self);
    /// The PIC's output, for vCPUs whose local APIC is the backend's own.
    fn set_lint0(&self, _level: bool) {}
}

/// Why [`Vcpu::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Somebody called [`VcpuSignal::kick`].
    Kicked,
    /// A fault while delivering a double fault: the machine resets.
    TripleFault,
    /// HLT with interrupts disabled and nothing that could end it.
    Halted,
}

/// Errors of a backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HypervisorError {
    /// The vCPU state does not fit this processor model.
    #[error("vCPU state refused: {0}")]
    BadState(&'static str),
    /// The backend cannot do what was asked.
    #[error("not supported by this backend: {0}")]
    Unsupported(&'static str),
    /// The host's processor, or its hypervisor, lacks a part of the machine's.
    #[error("this host's processor is a lesser one than the machine's ({model}): it has no {what} to offer")]
    LesserCpu {
        /// The machine's processor model.
        model: &'static str,
        /// What is missing.
        what: &'static str,
    },
    /// The hypervisor refuses an instruction, and no more may be executed for it.
    #[error(
        "the hypervisor refuses the guest's instruction at {rip:#x}, as {count} before: it only emulates the \
         guest's kernel here; use the software CPU"
    )]
    Refused {
        /// Where it is.
        rip: u64,
        /// How many were executed in the hypervisor's stead.
        count: u64,
    },
    /// There is no such hypervisor here.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The host refused a resource.
    #[error("host resource")]
    Io(#[from] std::io::Error),
}

/// A machine on KVM.
///
/// # Errors
/// [`HypervisorError::Unavailable`] where there is none, [`HypervisorError::LesserCpu`] where it has less
/// than the model.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub fn kvm_vm(
    ram: Arc<GuestRam>,
    clock: Arc<Clock>,
    cpus: u32,
    options: VmOptions,
) -> Result<Box<dyn Vm>, HypervisorError> {
    Ok(Box::new(kvm::KvmVm::new(kvm::System::open()?, ram, clock, cpus, options)?))
}

/// The processor model that is `wanted`, or the richest, if KVM has all of it here.
///
/// # Errors
/// As [`kvm_vm`].
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub fn kvm_model(wanted: Option<CpuModel>) -> Result<CpuModel, HypervisorError> {
    let system = kvm::System::open()?;
    match wanted {
        Some(model) => kvm::cpuid::check(&system, model).map(|()| model),
        None => kvm::cpuid::richest(&system),
    }
}

/// There is no KVM on this kind of host.
///
/// # Errors
/// Always.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub fn kvm_model(_wanted: Option<CpuModel>) -> Result<CpuModel, HypervisorError> {
    Err(Unavailable::Platform("KVM").into())
}

/// There is no KVM on this kind of host.
///
/// # Errors
/// Always.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub fn kvm_vm(
    _ram: Arc<GuestRam>,
    _clock: Arc<Clock>,
    _cpus: u32,
    _options: VmOptions,
) -> Result<Box<dyn Vm>, HypervisorError> {
    Err(Unavailable::Platform("KVM").into())
}

/// What a machine is made with, beside RAM and processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmOptions {
    /// What the guest's processors are.
    pub model: CpuModel,
    /// Most instructions that the software CPU executes because the hypervisor refuses them.
    pub opinions: u64,
    /// Have the software CPU execute programs' SYSCALL and CPUID, for a hypervisor that does them wrong
    /// ([`probe::Verdict::wants_traps`]).
    pub traps: bool,
}

impl Default for VmOptions {
    fn default() -> Self {
        Self { model: CpuModel::Baseline, opinions: u64::MAX, traps: false }
    }
}

/// A machine's processors and memory on one backend.
pub trait Vm: Send + Sync {
    /// The way to the backend's own local APICs. `None` where it has none: the machine then brings the
    /// chipset's, which it passes to [`Vm::create_vcpu`].
    fn message_sink(&self) -> Option<Arc<dyn MessageSink>> {
        None
    }
    /// Makes vCPU `id`. `apic` is its local APIC, unless the backend has one of its own.
    fn create_vcpu(
        &self,
        id: u32,
        apic: Option<Arc<dyn LocalApic>>,
    ) -> Result<Box<dyn Vcpu>, HypervisorError>;
    /// The machine's clock goes on. No vCPU runs yet.
    fn time_resumed(&self) {}
    /// The machine's clock stands still. No vCPU runs any more.
    fn time_paused(&self) {}
    /// How many instructions the software CPU has executed because the backend refused them.
    fn opinions(&self) -> u64 {
        0
    }
}

/// One virtual processor. Lives on the thread that runs it.
pub trait Vcpu: Send {
    /// Runs guest code until an [`Exit`].
    fn run(&mut self, io: &dyn ExitIo) -> Result<Exit, HypervisorError>;
    /// The signal handle, good from any thread, also after the vCPU is gone.
    fn signal(&self) -> Arc<dyn VcpuSignal>;
    /// The architectural state. Only while stopped.
    fn state(&self) -> Result<VcpuState, HypervisorError>;
    /// Replaces the architectural state. Only while stopped.
    fn set_state(&mut self, state: &VcpuState) -> Result<(), HypervisorError>;
    /// The registers of the vCPU's local APIC, from backends with their own, at machine time `now` (ns).
    /// Only while stopped.
    fn local_apic(&self, _now: u64) -> Result<Option<saved_state::Lapic>, HypervisorError> {
        Ok(None)
    }
    /// Replaces them, after [`Vcpu::set_state`]. Only while stopped.
    fn set_local_apic(&mut self, _lapic: &saved_state::Lapic, _now: u64) -> Result<(), HypervisorError> {
        Err(HypervisorError::Unsupported("local APICs of its own"))
    }
    /// Guest instructions executed so far, where the backend counts them.
    fn instructions(&self) -> Option<u64>;
}
