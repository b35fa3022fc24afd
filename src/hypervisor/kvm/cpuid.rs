//! The processor model as KVM takes it, and whether this host has all of it.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::{HypervisorError, System};
use crate::hypervisor::model::{self, CpuModel, Identity};

/// The model's answers for one vCPU.
pub(super) fn table(cpu: &Identity) -> Result<CpuId, HypervisorError> {
    let mut entries = Vec::new();
    for (function, subs) in model::LEAVES {
        for index in 0..subs.max(1) {
            let [eax, ebx, ecx, edx] = model::leaf(cpu, function, index);
            let flags = if subs > 0 { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
            entries.push(kvm_cpuid_entry2 {
                function,
                index,
                flags,
                eax,
                ebx,
                ecx,
                edx,
                ..kvm_cpuid_entry2::default()
            });
        }
    }
    CpuId::from_entries(&entries).map_err(|e| std::io::Error::other(e).into())
}

/// The richest model that this host has all of, or what the least of them lacks.
pub(in crate::hypervisor) fn richest(system: &System) -> Result<CpuModel, HypervisorError> {
    match missing(system, CpuModel::Baseline)? {
        None => Ok(CpuModel::Baseline),
        Some(what) => {
            tracing::debug!(what, "the host's KVM lacks a part of the baseline");
            check(system, CpuModel::Minimal).map(|()| CpuModel::Minimal)
        }
    }
}

/// That this host has all of the model.
pub(in crate::hypervisor) fn check(system: &System, model: CpuModel) -> Result<(), HypervisorError> {
    match missing(system, model)? {
        None => Ok(()),
        Some(what) => Err(HypervisorError::LesserCpu { model: model.name(), what }),
    }
}

/// The first feature of the model that the host has not.
fn missing(system: &System, model: CpuModel) -> Result<Option<&'static str>, HypervisorError> {
    let supported = system.supported_cpuid()?;
    let kvm = |function: u32| {
        supported
            .as_slice()
            .iter()
            .find(|e| e.function == function && e.index == 0)
            .map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
    };
    // What only programs use runs on the processor itself, whether the kernel lists it or not.
    let own = std::arch::x86_64::__cpuid_count;
    let leaf1 = own(1, 0);
    let leaf7 = own(7, 0);
    let extended = own(0x8000_0001, 0);
    let (kvm1, kvm7, kvm_extended) = (kvm(1), kvm(7), kvm(0x8000_0001));
    let have = Have {
        ecx: kvm1[2] | leaf1.ecx & model::PROGRAM_ECX,
        edx: kvm1[3] | leaf1.edx & model::bits(&[23, 24, 25, 26]),
        ebx7: kvm7[1] | leaf7.ebx & model::PROGRAM_7_EBX,
        extended_ecx: kvm_extended[2] | extended.ecx & model::EXTENDED_ECX,
        extended_edx: kvm_extended[3],
    };
    Ok(have.lacks(model))
}

/// Feature words of a host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Have {
    pub(super) ecx: u32,
    pub(super) edx: u32,
    pub(super) ebx7: u32,
    pub(super) extended_ecx: u32,
    pub(super) extended_edx: u32,
}

/// Leaf 7 EBX: what only says how something is done (x87 pointers, fast strings). Where a host does it otherwise nothing
/// stops working, and processors of one maker do.
const HINTS_7_EBX: u32 = model::bits(&[6, 9, 13]);

/// Features that a host may lack, by word.
const ECX: [(u32, &str); 14] = [
    (0, "SSE3"),
    (1, "PCLMULQDQ"),
    (9, "SSSE3"),
    (13, "CMPXCHG16B"),
    (17, "PCID"),
    (19, "SSE4.1"),
    (20, "SSE4.2"),
    (21, "x2APIC"),
    (22, "MOVBE"),
    (23, "POPCNT"),
    (24, "TSC-deadline timers"),
    (25, "AES"),
    (30, "RDRAND"),
    (31, "the hypervisor's mark"),
];
const EBX7: [(u32, &str); 6] =
    [(0, "FSGSBASE"), (7, "SMEP"), (10, "INVPCID"), (18, "RDSEED"), (20, "SMAP"), (23, "CLFLUSHOPT")];
const EXTENDED_ECX: [(u32, &str); 2] = [(0, "LAHF"), (5, "LZCNT")];
const EXTENDED_EDX: [(u32, &str); 5] =
    [(11, "SYSCALL"), (20, "NX"), (26, "pages of 1 GiB"), (27, "RDTSCP"), (29, "long mode")];

impl Have {
    /// The first feature of `model` that is not there.
    pub(super) fn lacks(&self, model: CpuModel) -> Option<&'static str> {
        let cpu = Identity { model, id: 0, cpus: 1, tsc_khz: 1 };
        let [_, _, ecx, edx] = model::leaf(&cpu, 1, 0);
        let [_, ebx7, ..] = model::leaf(&cpu, 7, 0);
        let [_, _, extended_ecx, extended_edx] = model::leaf(&cpu, 0x8000_0001, 0);
        // TSC-deadline timers and x2APIC are the in-kernel APIC's own.
        let apic = model::bits(&[21, 24, 31]);
        let find = |wanted: u32, have: u32, names: &[(u32, &'static str)]| {
            let lacking = wanted & !have;
            (lacking != 0).then(|| {
                names.iter().find(|(bit, _)| lacking & 1 << bit != 0).map_or("a feature", |(_, name)| *name)
            })
        };
        find(ecx, self.ecx | apic, &ECX)
            .or_else(|| find(edx, self.edx, &[(9, "a local APIC")]))
            .or_else(|| find(ebx7 & !HINTS_7_EBX, self.ebx7, &EBX7))
            .or_else(|| find(extended_ecx, self.extended_ecx, &EXTENDED_ECX))
            .or_else(|| find(extended_edx, self.extended_edx, &EXTENDED_EDX))
    }
}
