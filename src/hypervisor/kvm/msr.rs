//! Model-specific registers: which belong to the portable state, and reading and writing them.

use kvm_bindings::{Msrs as KvmMsrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::{HypervisorError, host};
use crate::arch::x86_64::{Msrs, msr};

/// The values of these registers, in order. One that the kernel does not have is an error.
pub(super) fn get(fd: &VcpuFd, numbers: &[u32]) -> Result<Vec<u64>, HypervisorError> {
    let entries: Vec<_> =
        numbers.iter().map(|&index| kvm_msr_entry { index, ..kvm_msr_entry::default() }).collect();
    let mut msrs = KvmMsrs::from_entries(&entries).map_err(std::io::Error::other)?;
    let read = fd.get_msrs(&mut msrs).map_err(host)?;
    if read < numbers.len() {
        tracing::debug!(msr = format_args!("{:#x}", numbers[read]), "KVM cannot read it");
        return Err(HypervisorError::Unsupported("one of the processor's registers (MSR) cannot be read"));
    }
    Ok(msrs.as_slice().iter().map(|entry| entry.data).collect())
}

/// Sets these registers, in order.
pub(super) fn set(fd: &VcpuFd, values: &[(u32, u64)]) -> Result<(), HypervisorError> {
    let entries: Vec<_> = values
        .iter()
        .map(|&(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() })
        .collect();
    let msrs = KvmMsrs::from_entries(&entries).map_err(std::io::Error::other)?;
    let written = fd.set_msrs(&msrs).map_err(host)?;
    if written < values.len() {
        tracing::debug!(msr = format_args!("{:#x}", values[written].0), "KVM refuses its value");
        return Err(HypervisorError::BadState("a value of one of the processor's registers (MSR)"));
    }
    Ok(())
}

/// What every host has.
const ALWAYS: [u32; 13] = [
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::KERNEL_GS_BASE,
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::PAT,
    msr::MISC_ENABLE,
    msr::MTRR_DEF_TYPE,
    msr::KVM_SYSTEM_TIME,
    msr::KVM_WALL_CLOCK,
];

/// The plain registers but the TSC.
pub(super) fn state(fd: &VcpuFd) -> Result<Msrs, HypervisorError> {
    let v = get(fd, &ALWAYS)?;
    // Only where the guest's processor has them.
    let [spec_ctrl, tsc_aux] = [msr::SPEC_CTRL, msr::TSC_AUX].map(|n| get(fd, &[n]).map_or(0, |v| v[0]));
    Ok(Msrs {
        star: v[0],
        lstar: v[1],
        cstar: v[2],
        sfmask: v[3],
        kernel_gs_base: v[4],
        sysenter_cs: v[5],
        sysenter_esp: v[6],
        sysenter_eip: v[7],
        pat: v[8],
        misc_enable: v[9],
        mtrr_def_type: v[10],
        kvm_system_time: v[11],
        kvm_wall_clock: v[12],
        spec_ctrl,
        tsc_aux,
        tsc_offset: 0,
    })
}

/// The plain registers as pairs, those of `new` that differ from `old` or all.
pub(super) fn pairs(new: &Msrs, old: Option<&Msrs>) -> Vec<(u32, u64)> {
    let list = |m: &Msrs| {
        [
            m.star,
            m.lstar,
            m.cstar,
            m.sfmask,
            m.kernel_gs_base,
            m.sysenter_cs,
            m.sysenter_esp,
            m.sysenter_eip,
            m.pat,
            m.misc_enable,
            m.mtrr_def_type,
        ]
    };
    let before = old.map(list);
    let mut pairs: Vec<(u32, u64)> = (0..)
        .zip(ALWAYS.into_iter().zip(list(new)))
        .filter(|&(n, (_, value))| before.is_none_or(|old: [u64; 11]| old[n] != value))
        .map(|(_, pair)| pair)
        .collect();
    if new.spec_ctrl != old.map_or(0, |m| m.spec_ctrl) {
        pairs.push((msr::SPEC_CTRL, new.spec_ctrl));
    }
    if new.tsc_aux != old.map_or(0, |m| m.tsc_aux) {
        pairs.push((msr::TSC_AUX, new.tsc_aux));
    }
    // Setting it has the kernel write the guest's clock page, which a guest that has none must not see.
    if new.kvm_system_time != old.map_or(0, |m| m.kvm_system_time) {
        pairs.push((msr::KVM_SYSTEM_TIME, new.kvm_system_time));
    }
    pairs
}
