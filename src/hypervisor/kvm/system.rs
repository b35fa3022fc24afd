//! `/dev/kvm`: whether it is there, may be used, and can do what a machine needs.
//!
//! Each refusal is a kind of its own that says what a person can do about it. [`Host`] is the seam:
//! the real one asks the kernel, tests answer as hosts do that are not at hand.

use std::io;
use std::sync::Arc;

use kvm_bindings::*;
use kvm_ioctls::{Kvm, VmFd};

use crate::hypervisor::Unavailable;

/// The only version of the interface there has been since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// What the kernel's KVM can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Most vCPUs of one machine.
    pub max_vcpus: u32,
    /// The guest's TSC can run at a rate of its own.
    pub tsc_scaling: bool,
    /// Refused instructions come to us also outside privilege 0.
    pub emulation_exits: bool,
}

/// The questions asked of the host.
pub trait Host: Send + Sync {
    /// Opens the device.
    fn open(&self) -> io::Result<()>;
    /// KVM_GET_API_VERSION.
    fn api_version(&self) -> i32;
    /// KVM_CHECK_EXTENSION.
    fn extension(&self, cap: u32) -> i32;
    /// KVM_CREATE_VM.
    fn create_vm(&self) -> io::Result<VmFd>;
    /// KVM_GET_SUPPORTED_CPUID.
    fn supported_cpuid(&self) -> io::Result<CpuId>;
}

/// The real device.
#[derive(Default)]
struct Device(std::sync::OnceLock<Kvm>);

impl Device {
    fn kvm(&self) -> io::Result<&Kvm> {
        self.0.get().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Host for Device {
    fn open(&self) -> io::Result<()> {
        let _ = self.0.set(Kvm::new()?);
        Ok(())
    }
    fn api_version(&self) -> i32 {
        self.kvm().map_or(-1, Kvm::get_api_version)
    }
    fn extension(&self, cap: u32) -> i32 {
        self.kvm().map_or(0, |kvm| kvm.check_extension_raw(cap.into()))
    }
    fn create_vm(&self) -> io::Result<VmFd> {
        Ok(self.kvm()?.create_vm()?)
    }
    fn supported_cpuid(&self) -> io::Result<CpuId> {
        Ok(self.kvm()?.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)
    }
}

/// An opened KVM that has all that machines need.
#[derive(Clone)]
pub struct System {
    host: Arc<dyn Host>,
    capabilities: Capabilities,
}

impl std::fmt::Debug for System {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("System").field(&self.capabilities).finish()
    }
}

impl System {
    /// Opens `/dev/kvm`.
    pub fn open() -> Result<Self, Unavailable> {
        Self::with(Arc::new(Device::default()))
    }

    /// The same on another host.
    pub fn with(host: Arc<dyn Host>) -> Result<Self, Unavailable> {
        host.open().map_err(|e| refusal("opening the device", &e))?;
        match host.api_version() {
            API_VERSION => {}
            other => return Err(Unavailable::Version(other)),
        }
        let needed = [
            (KVM_CAP_USER_MEMORY, "memory slots"),
            (KVM_CAP_IMMEDIATE_EXIT, "immediate exits"),
            (KVM_CAP_SPLIT_IRQCHIP, "split interrupt controllers"),
            (KVM_CAP_SIGNAL_MSI, "messages as interrupts"),
            (KVM_CAP_IRQ_ROUTING, "interrupt routing"),
            (KVM_CAP_SET_TSS_ADDR, "a place for the task state"),
            (KVM_CAP_SET_IDENTITY_MAP_ADDR, "a place for identity maps"),
            (KVM_CAP_EXT_CPUID, "processor models"),
            (KVM_CAP_MP_STATE, "processor activity states"),
            (KVM_CAP_VCPU_EVENTS, "pending events"),
            (KVM_CAP_DEBUGREGS, "debug registers"),
            (KVM_CAP_ADJUST_CLOCK, "an adjustable paravirtual clock"),
            (KVM_CAP_GET_TSC_KHZ, "the rate of the time-stamp counter"),
            (KVM_CAP_TSC_DEADLINE_TIMER, "deadline timers"),
            (KVM_CAP_XCRS, "extended control registers"),
        ];
        for (cap, name) in needed {
            if host.extension(cap) <= 0 {
                return Err(Unavailable::Capability(name));
            }
        }
        let capabilities = Capabilities {
            max_vcpus: host.extension(KVM_CAP_MAX_VCPUS).max(host.extension(KVM_CAP_NR_VCPUS)).max(1) as u32,
            tsc_scaling: host.extension(KVM_CAP_TSC_CONTROL) > 0,
            emulation_exits: host.extension(KVM_CAP_EXIT_ON_EMULATION_FAILURE) > 0,
        };
        Ok(Self { host, capabilities })
    }

    /// What it can do.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// A machine without anything in it.
    pub(super) fn create_vm(&self) -> Result<VmFd, Unavailable> {
        self.host.create_vm().map_err(|e| refusal("making a machine", &e))
    }

    /// What CPUID may answer on this host.
    pub(super) fn supported_cpuid(&self) -> io::Result<CpuId> {
        self.host.supported_cpuid()
    }
}

fn refusal(what: &'static str, e: &io::Error) -> Unavailable {
    match e.raw_os_error().unwrap_or(0) {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => Unavailable::Missing,
        libc::EACCES | libc::EPERM => Unavailable::NotPermitted,
        libc::EBUSY => Unavailable::Busy,
        errno => Unavailable::Other { what, errno },
    }
}
