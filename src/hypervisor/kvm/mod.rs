//! KVM: the processors of Linux's own hypervisor.
//!
//! The local APICs are the kernel's; IOAPIC, PIC and PIT stay the chipset's, the same as on every
//! backend (what KVM calls a split interrupt controller). So an interrupt reaches a vCPU as a message
//! ([`MessageSink`]), and the kernel tells us when a level-triggered one has been handled
//! ([`ExitIo::end_of_interrupt`]).
//!
//! * `system`: opening `/dev/kvm` and what it must be able to do, with a remedy for each refusal;
//! * `run`: the vCPU: its loop, its exits, kicks;
//! * `state`, `lapic`, `msr`: the portable state to and from the kernel's forms;
//! * `cpuid`: the processor model, as far as this host has it;
//! * `time`: machine time, the TSC and the paravirtual clock kept together;
//! * `opinion`: instructions that the kernel refuses, executed by the software CPU;
//! * `traps`: system calls and CPUID of programs where the kernel does them wrong.
//!
//! Failures: what the host refuses is an [`Unavailable`](super::Unavailable) or an `io::Error`; what the guest does ends
//! at worst its own machine.
//!
//! [`ExitIo::end_of_interrupt`]: super::ExitIo::end_of_interrupt

pub(super) mod cpuid;
mod ioctl;
mod lapic;
mod msr;
mod opinion;
mod run;
mod state;
mod system;
#[cfg(test)]
mod tests;
mod time;
mod traps;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting,
    kvm_enable_cap, kvm_irq_routing_entry, kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;

pub use self::system::{Capabilities, Host, System};
use super::{HypervisorError, LocalApic, MessageSink, MsiMessage, Vcpu, Vm, VmOptions};
use crate::memory::{GuestRam, layout};
use crate::sys::clock::Clock;

/// Where the kernel may put its real-mode helper structures: in the hole below 4 GiB, used by nobody.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// Inputs of the chipset's IOAPIC, whose level-triggered vectors the kernel has to watch.
const IOAPIC_PINS: u64 = 24;

/// A machine on KVM.
pub struct KvmVm {
    shared: Arc<Shared>,
    cpus: u32,
}

/// What the vCPUs and the interrupt controllers of a machine share.
struct Shared {
    fd: VmFd,
    ram: Arc<GuestRam>,
    time: time::Time,
    /// Messages that the kernel watches for their end.
    routes: Mutex<Vec<MsiMessage>>,
    /// Instructions that the kernel refused and the software CPU executed.
    opinions: AtomicU64,
    traps: traps::Traps,
    options: VmOptions,
}

impl std::fmt::Debug for KvmVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmVm").field("cpus", &self.cpus).finish_non_exhaustive()
    }
}

impl KvmVm {
    /// A machine with this RAM and up to `cpus` processors, whose time is `clock`.
    pub fn new(
        system: System,
        ram: Arc<GuestRam>,
        clock: Arc<Clock>,
        cpus: u32,
        options: VmOptions,
    ) -> Result<Self, HypervisorError> {
        if cpus > system.capabilities().max_vcpus {
            return Err(HypervisorError::Unsupported("so many vCPUs in one machine on this host's KVM"));
        }
        cpuid::check(&system, options.model)?;
        let fd = system.create_vm()?;
        fd.set_tss_address(TSS_ADDRESS).map_err(host)?;
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(host)?;
        let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..kvm_enable_cap::default() };
        split.args[0] = IOAPIC_PINS;
        fd.enable_cap(&split).map_err(host)?;
        if system.capabilities().emulation_exits {
            // Instead of an exception in the guest where it is not at privilege 0.
            let mut exits =
                kvm_enable_cap { cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE, ..kvm_enable_cap::default() };
            exits.args[0] = 1;
            fd.enable_cap(&exits).map_err(host)?;
        }
        add_ram(&fd, &ram)?;
        let time = time::Time::new(clock, system.capabilities());
        let traps = traps::Traps::new(options.traps, ram.clone());
        traps.hide(&fd);
        let (routes, opinions) = (Mutex::default(), AtomicU64::new(0));
        let shared = Shared { fd, ram, time, routes, opinions, traps, options };
        Ok(Self { shared: Arc::new(shared), cpus })
    }
}

/// Gives the kernel RAM as it is mapped here.
#[allow(unsafe_code)]
fn add_ram(fd: &VmFd, ram: &GuestRam) -> Result<(), HypervisorError> {
    use vm_memory::{GuestAddress, GuestMemoryBackend as _};
    for (slot, (start, _, len)) in layout(ram.size()).into_iter().enumerate() {
        let address = ram
            .memory()
            .get_host_address(GuestAddress(start))
            .map_err(|_| HypervisorError::BadState("guest RAM is not mapped"))?;
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: start,
            memory_size: len,
            userspace_addr: address as u64,
        };
        // SAFETY: the whole range is one mapping of guest RAM, which is shared memory that anybody may
        // change at any time and of which there are no Rust references; `Shared` keeps it until the
        // machine's descriptor is closed.
        unsafe { fd.set_user_memory_region(region) }.map_err(host)?;
    }
    Ok(())
}

fn host(e: kvm_ioctls::Error) -> HypervisorError {
    HypervisorError::Io(e.into())
}

impl Vm for KvmVm {
    fn message_sink(&self) -> Option<Arc<dyn MessageSink>> {
        Some(self.shared.clone())
    }

    fn create_vcpu(
        &self,
        id: u32,
        _apic: Option<Arc<dyn LocalApic>>,
    ) -> Result<Box<dyn Vcpu>, HypervisorError> {
        let fd = self.shared.fd.create_vcpu(id.into()).map_err(host)?;
        Ok(Box::new(run::KvmVcpu::new(fd, id, self.cpus, self.shared.clone())?))
    }

    fn time_resumed(&self) {
        self.shared.time.resume(&self.shared.fd);
    }

    fn time_paused(&self) {
        self.shared.time.pause(&self.shared.fd);
        self.shared.traps.remove();
    }

    fn opinions(&self) -> u64 {
        self.shared.opinions.load(Ordering::Relaxed)
    }
}

impl MessageSink for Shared {
    fn deliver(&self, message: &MsiMessage) -> bool {
        let &MsiMessage { address, data } = message;
        let msi = kvm_msi { address_lo: address, data, ..kvm_msi::default() };
        // Zero: nobody took it.
        self.fd.signal_msi(msi).is_ok_and(|taken| taken > 0)
    }

    fn watch(&self, messages: &[MsiMessage]) {
        let mut routes = self.routes.lock().unwrap_or_else(|e| e.into_inner());
        if routes.as_slice() == messages {
            return;
        }
        *routes = messages.to_vec();
        let entries: Vec<kvm_irq_routing_entry> = (0..)
            .zip(messages)
            .map(|(gsi, message)| {
                let mut entry = kvm_irq_routing_entry {
                    gsi,
                    type_: KVM_IRQ_ROUTING_MSI,
                    ..kvm_irq_routing_entry::default()
                };
                entry.u.msi.address_lo = message.address;
                entry.u.msi.data = message.data;
                entry
            })
            .collect();
        let table = KvmIrqRouting::from_entries(&entries);
        let result = table.map_err(std::io::Error::other).and_then(|t| Ok(self.fd.set_gsi_routing(&t)?));
        if let Err(e) = result {
            tracing::error!(error = &e as &dyn std::error::Error, "interrupts' ends will not be told");
        }
    }
}
