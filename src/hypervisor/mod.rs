//! Processors: the one interface that every backend offers, and the interface each calls out to.
//!
//! A [`Vm`] holds guest memory and makes [`Vcpu`]s. A vCPU's [`Vcpu::run`] runs guest code on the
//! calling thread until something outside has to decide ([`Exit`]); accesses to ports and to
//! addresses without RAM do not end it, they go to the [`ExitIo`] that the caller lends. This layer
//! never calls upward: [`ExitIo`] and [`LocalApic`] are declared here and implemented above.
//!
//! States of a vCPU: *stopped* (no thread in `run`; its state may be read and set) and *running*.
//! [`VcpuSignal::kick`] ends `run` with [`Exit::Kicked`] soon, wherever the guest is, also in HLT.

mod saved;
pub mod soft;

use std::sync::Arc;

use crate::arch::x86_64::VcpuState;

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
    /// The host refused a resource.
    #[error("host resource")]
    Io(#[from] std::io::Error),
}

/// A machine's processors and memory on one backend.
pub trait Vm: Send + Sync {
    /// The interrupt lines of the backend's own controllers. `None` where it has none: the machine
    /// then brings the chipset's, whose local APICs it passes to [`Vm::create_vcpu`].
    fn interrupt_lines(&self) -> Option<Arc<dyn IrqSink>>;
    /// Makes vCPU `id`. `apic` is its local APIC, unless the backend has one of its own.
    fn create_vcpu(
        &self,
        id: u32,
        apic: Option<Arc<dyn LocalApic>>,
    ) -> Result<Box<dyn Vcpu>, HypervisorError>;
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
    /// Guest instructions executed so far, where the backend counts them.
    fn instructions(&self) -> Option<u64>;
}
