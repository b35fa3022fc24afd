//! The calls that kvm-ioctls does not have for this architecture.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr};
use kvm_ioctls::VcpuFd;

/// _IOW(KVMIO, 0x86, struct kvm_interrupt)
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;
/// _IOW(KVMIO, 0xe1, struct kvm_device_attr) and the next two.
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
const KVM_GET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee2;
const KVM_HAS_DEVICE_ATTR: libc::c_ulong = 0x4018_aee3;

/// The PIC's interrupt, which the vCPU must be ready for.
pub(super) fn interrupt(fd: &VcpuFd, vector: u8) -> io::Result<()> {
    let number = u32::from(vector);
    // SAFETY: the kernel reads the four bytes of a kvm_interrupt.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), KVM_INTERRUPT as _, &raw const number) })
}

/// Whether the kernel gives and takes the TSC as an offset to the host's.
pub(super) fn has_tsc_offset(fd: &VcpuFd) -> bool {
    tsc_offset_attribute(fd, KVM_HAS_DEVICE_ATTR, &mut 0).is_ok()
}

/// The vCPU's TSC less the host's, the latter at the vCPU's rate.
pub(super) fn tsc_offset(fd: &VcpuFd) -> io::Result<u64> {
    let mut offset = 0;
    tsc_offset_attribute(fd, KVM_GET_DEVICE_ATTR, &mut offset)?;
    Ok(offset)
}

/// Sets it.
pub(super) fn set_tsc_offset(fd: &VcpuFd, mut offset: u64) -> io::Result<()> {
    tsc_offset_attribute(fd, KVM_SET_DEVICE_ATTR, &mut offset)
}

fn tsc_offset_attribute(fd: &VcpuFd, call: libc::c_ulong, value: &mut u64) -> io::Result<()> {
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: &raw mut *value as u64,
    };
    // SAFETY: the attribute names eight bytes that are the caller's, and the kernel touches no others.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), call as _, &raw const attribute) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
