//! Hosts that are not at hand, and what the kernel's forms make of state.

use std::io;

use kvm_bindings::{
    CpuId, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_SPLIT_IRQCHIP,
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
};
use kvm_ioctls::VmFd;

use super::cpuid::Have;
use super::*;
use crate::hypervisor::{CpuModel, Unavailable, model};

/// A host that answers as it is told.
struct Fake {
    open: Option<i32>,
    version: i32,
    lacks: Option<u32>,
    create: i32,
}

const GOOD: Fake = Fake { open: None, version: 12, lacks: None, create: libc::ENOSPC };

impl Host for Fake {
    fn open(&self) -> io::Result<()> {
        self.open.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }
    fn api_version(&self) -> i32 {
        self.version
    }
    fn extension(&self, cap: u32) -> i32 {
        if self.lacks == Some(cap) { 0 } else { 4 }
    }
    fn create_vm(&self) -> io::Result<VmFd> {
        Err(io::Error::from_raw_os_error(self.create))
    }
    fn supported_cpuid(&self) -> io::Result<CpuId> {
        CpuId::new(0).map_err(io::Error::other)
    }
}

fn refusal(host: Fake) -> Unavailable {
    System::with(Arc::new(host)).expect_err("refused")
}

#[test]
fn r1_1_each_refusal_is_its_own_with_a_remedy() {
    let cases = [
        (libc::ENOENT, Unavailable::Missing, "modprobe"),
        (libc::ENODEV, Unavailable::Missing, "firmware"),
        (libc::EACCES, Unavailable::NotPermitted, "usermod"),
        (libc::EPERM, Unavailable::NotPermitted, "usermod"),
        (libc::EBUSY, Unavailable::Busy, "stop it first"),
    ];
    for (errno, expected, remedy) in cases {
        let found = refusal(Fake { open: Some(errno), ..GOOD });
        assert_eq!(found, expected);
        assert!(found.to_string().contains(remedy), "{found}");
    }
    let other = refusal(Fake { open: Some(libc::EMFILE), ..GOOD });
    assert!(matches!(other, Unavailable::Other { errno: libc::EMFILE, .. }), "{other:?}");
    let version = refusal(Fake { version: 11, ..GOOD });
    assert_eq!(version, Unavailable::Version(11));
    assert!(version.to_string().contains("version 11"), "{version}");
    let old = refusal(Fake { lacks: Some(KVM_CAP_IMMEDIATE_EXIT), ..GOOD });
    assert!(matches!(old, Unavailable::Capability("immediate exits")), "{old:?}");
    assert!(old.to_string().contains("Linux 5.0"), "{old}");
    assert!(matches!(
        refusal(Fake { lacks: Some(KVM_CAP_SPLIT_IRQCHIP), ..GOOD }),
        Unavailable::Capability(_)
    ));
}

#[test]
fn what_is_not_needed_may_be_missing() {
    let system =
        System::with(Arc::new(Fake { lacks: Some(KVM_CAP_EXIT_ON_EMULATION_FAILURE), ..GOOD })).unwrap();
    assert!(!system.capabilities().emulation_exits);
    assert!(System::with(Arc::new(GOOD)).unwrap().capabilities().emulation_exits);
}

#[test]
fn a_device_that_opens_may_still_refuse_machines() {
    for (errno, expected) in [(libc::EBUSY, Unavailable::Busy), (libc::ENODEV, Unavailable::Missing)] {
        let system = System::with(Arc::new(Fake { create: errno, ..GOOD })).unwrap();
        assert_eq!(system.create_vm().err(), Some(expected));
    }
}

#[test]
fn r5_6_what_a_host_lacks_is_named() {
    let all =
        Have { ecx: u32::MAX, edx: u32::MAX, ebx7: u32::MAX, extended_ecx: u32::MAX, extended_edx: u32::MAX };
    assert_eq!(all.lacks(CpuModel::Baseline), None);
    let no_smap = Have { ebx7: !(1 << 20), ..all };
    assert_eq!(no_smap.lacks(CpuModel::Baseline), Some("SMAP"));
    assert_eq!(no_smap.lacks(CpuModel::Minimal), None);
    // Another maker's: it says nothing of x87 pointers.
    assert_eq!(Have { ebx7: !(1 << 6 | 1 << 9 | 1 << 13), ..all }.lacks(CpuModel::Baseline), None);
    assert_eq!(Have { ebx7: !(1 << 23), ..all }.lacks(CpuModel::Minimal), Some("CLFLUSHOPT"));
    let no_cx16 = Have { ecx: !(1 << 13), ..all };
    assert_eq!(no_cx16.lacks(CpuModel::Minimal), Some("CMPXCHG16B"));
    assert_eq!(Have { extended_edx: !(1 << 29), ..all }.lacks(CpuModel::Minimal), Some("long mode"));
    assert_eq!(Have { edx: !(1 << 9), ..all }.lacks(CpuModel::Minimal), Some("a local APIC"));
}

#[test]
fn the_table_has_every_leaf_that_answers() {
    let cpu = model::Identity { model: CpuModel::Baseline, id: 3, cpus: 4, tsc_khz: 2_300_000 };
    let table = super::cpuid::table(&cpu).unwrap();
    let leaves = (0..0x20).chain(0x4000_0000..0x4000_0020).chain(0x8000_0000..0x8000_0010);
    for function in leaves {
        for index in 0..4 {
            let answer = model::leaf(&cpu, function, index);
            let entry = table.as_slice().iter().find(|e| {
                e.function == function && (e.index == index || e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0)
            });
            let found = entry.map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx]);
            // Leaf 0xb goes on counting where nothing is left to tell.
            if function != 0xb || index < 3 {
                assert_eq!(found, answer, "leaf {function:#x}, {index}");
            }
        }
    }
}
