//! One instruction at a time, for another backend: state in, state out.

use std::sync::Arc;

use super::cpu::Setup;
use super::run::SoftVcpu;
use crate::arch::x86_64::VcpuState;
use crate::hypervisor::model::Identity;
use crate::hypervisor::{Exit, ExitIo, HypervisorError, Vcpu};
use crate::memory::GuestRam;
use crate::sys::clock::Clock;

/// A processor that executes single instructions. Keeps nothing between them: the guest runs elsewhere
/// meanwhile, and changes its code and page tables without a word.
pub(in crate::hypervisor) struct Stepper {
    vcpu: SoftVcpu,
}

impl Stepper {
    pub(in crate::hypervisor) fn new(
        identity: Identity,
        ram: Arc<GuestRam>,
        clock: Arc<Clock>,
    ) -> Result<Self, HypervisorError> {
        let Identity { model, id, cpus, .. } = identity;
        let fellows = Arc::default();
        Ok(Self { vcpu: SoftVcpu::new(Setup { id, cpus, model, ram, clock, apic: None, fellows })? })
    }

    /// Executes the instruction at `state`'s instruction pointer, or delivers what it raises. Returns how
    /// that left the guest, if it did.
    pub(in crate::hypervisor) fn step(
        &mut self,
        state: &mut VcpuState,
        io: &dyn ExitIo,
    ) -> Result<Option<Exit>, HypervisorError> {
        self.vcpu.forget();
        // A hypervisor may let its guest have more than the model.
        let beyond = state.cr4 & !self.vcpu.cpu.model.cr4();
        state.cr4 &= !beyond;
        self.vcpu.set_state(state)?;
        let exit = self.vcpu.step(io);
        *state = self.vcpu.state()?;
        state.cr4 |= beyond;
        Ok(exit)
    }
}
