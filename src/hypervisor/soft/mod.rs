//! The software CPU: an x86-64 processor with no help from the host's.
//!
//! Guest code is decoded once, block by block, into compact operations (`op`, `decode`) that
//! are kept by physical address (`block`) and run one handler call after the other (`run`).
//! Linear addresses become host pointers through a software TLB (`tlb`, filled by the page walk
//! in `mmu`). The instruction families are `int`, `control`, `string`, `system` (with
//! `segment`, `msr`, `cpuid`), `sse` and `x87` (on `fp`); exceptions and interrupts are delivered
//! in `exception`.
//!
//! Between blocks, and only there, the processor looks at its attention word: stop requests,
//! events of the local APIC, decoded code that was overwritten, requests of other vCPUs (`fellows`). A
//! store to decoded code ends the running block after the storing instruction, so self-modifying code
//! is seen at once.
//!
//! Not modelled: segment limits in compatibility mode, hardware breakpoints,
//! 16-bit and legacy protected-mode code outside long mode.

mod block;
mod control;
mod cpu;
mod cpuid;
mod decode;
mod exception;
mod fellows;
mod flags;
mod fp;
mod int;
mod mmu;
mod msr;
mod op;
#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod oracle;
mod pvclock;
mod ram;
mod run;
mod segment;
mod sse;
mod step;
mod string;
mod system;
#[cfg(test)]
mod tests;
mod tlb;
mod x87;

use std::sync::Arc;

pub(super) use step::Stepper;

use crate::hypervisor::{CpuModel, HypervisorError, LocalApic, Vcpu, Vm};
use crate::memory::GuestRam;
use crate::sys::clock::Clock;

/// A machine on the software CPU.
pub struct SoftVm {
    ram: Arc<GuestRam>,
    clock: Arc<Clock>,
    cpus: u32,
    model: CpuModel,
    fellows: Arc<fellows::Fellows>,
}

impl SoftVm {
    /// A machine with this RAM and up to `cpus` processors, whose time-stamp counters all run with `clock`.
    pub fn new(ram: Arc<GuestRam>, clock: Arc<Clock>, cpus: u32, model: CpuModel) -> Self {
        Self { ram, clock, cpus, model, fellows: Arc::default() }
    }
}

impl std::fmt::Debug for SoftVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SoftVm({} vCPUs)", self.cpus)
    }
}

impl Vm for SoftVm {
    fn create_vcpu(
        &self,
        id: u32,
        apic: Option<Arc<dyn LocalApic>>,
    ) -> Result<Box<dyn Vcpu>, HypervisorError> {
        if id >= self.cpus {
            return Err(HypervisorError::Unsupported("more vCPUs than the machine was made for"));
        }
        let setup = cpu::Setup {
            id,
            cpus: self.cpus,
            model: self.model,
            ram: self.ram.clone(),
            clock: self.clock.clone(),
            apic,
            fellows: self.fellows.clone(),
        };
        Ok(Box::new(run::SoftVcpu::new(setup)?))
    }
}
