//! Why there is no hardware virtualization, each reason with what a person can do about it.

use std::io;

/// Why a hypervisor cannot be used here. The text says what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// There is no device.
    #[error(
        "there is no /dev/kvm: the processor has no virtualization, it is turned off in the firmware, this is a \
         virtual machine or container without it, or the kernel's module is not loaded (modprobe kvm_intel or \
         kvm_amd; in a container, pass the device in with --device /dev/kvm)"
    )]
    Missing,
    /// The device may not be opened.
    #[error(
        "/dev/kvm may not be opened by this user: add it to the device's group (usermod -aG kvm USER, then log in anew)"
    )]
    NotPermitted,
    /// Another hypervisor has the processor's virtualization.
    #[error(
        "KVM is busy: another hypervisor (VirtualBox, VMware) uses the processor's virtualization; stop it first"
    )]
    Busy,
    /// The device speaks another interface.
    #[error("/dev/kvm speaks version {0} of the interface instead of 12: it is not KVM, or of another age")]
    Version(i32),
    /// The kernel lacks something that machines need.
    #[error("this kernel's KVM has no {0}: Linux 5.0 or newer is needed")]
    Capability(&'static str),
    /// Anything else that the kernel said.
    #[error("KVM: {what}: {}", io::Error::from_raw_os_error(*.errno))]
    Other {
        /// What was asked for.
        what: &'static str,
        /// The kernel's answer.
        errno: i32,
    },
    /// It is there, but a machine cannot run on it, or only in emulation.
    #[error("{0}")]
    Unfit(String),
    /// This version has nothing for this hypervisor, or it is another platform's.
    #[error("{0} is not supported by this version on this host")]
    Platform(&'static str),
}
