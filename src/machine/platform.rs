//! What a machine's processors run on.

use std::sync::Arc;

use crate::hypervisor::soft::SoftVm;
use crate::hypervisor::{CpuModel, HypervisorError, Vm, VmOptions};
use crate::memory::GuestRam;
use crate::sys::clock::Clock;

/// A backend of [`crate::hypervisor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Backend {
    /// The best that works here: hardware virtualization where it runs a kernel at its speed, else the
    /// software CPU.
    #[default]
    Auto,
    /// The software CPU, which works everywhere.
    Soft,
    /// Linux's KVM.
    Kvm,
}

impl Backend {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Soft => "soft",
            Self::Kvm => "kvm",
        }
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A backend that was chosen, and what its processors are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Platform {
    /// [`Backend::Auto`] is the software CPU here: choosing is done by then.
    pub backend: Backend,
    /// Processor model and limits.
    pub options: VmOptions,
}

impl Default for Platform {
    fn default() -> Self {
        Self { backend: Backend::Soft, options: VmOptions::default() }
    }
}

impl Platform {
    /// The same backend with processors of another model.
    pub fn with_model(self, model: CpuModel) -> Self {
        Self { options: VmOptions { model, ..self.options }, ..self }
    }

    /// A machine's memory and clock on this backend.
    ///
    /// # Errors
    /// The backend is not there, or has less than the model.
    pub(super) fn create_vm(
        &self,
        ram: Arc<GuestRam>,
        clock: Arc<Clock>,
        cpus: u32,
    ) -> Result<Box<dyn Vm>, HypervisorError> {
        match self.backend {
            Backend::Auto | Backend::Soft => Ok(Box::new(SoftVm::new(ram, clock, cpus, self.options.model))),
            Backend::Kvm => crate::hypervisor::kvm_vm(ram, clock, cpus, self.options),
        }
    }
}
