//! Machines on KVM: that they are what machines on the software CPU are, and go from one to the other.
//!
//! Where KVM only emulates the guest's kernel, the software CPU executes what it refuses, so that all of this runs
//! there too, slowly. Where there is no KVM, tests say `NOT RUN` and why.

use std::time::{Duration, Instant};

use cc::hypervisor::probe::{self, Verdict};
use cc::process::Stdio;
use cc::{Backend, CpuModel, Error, Instance, Snapshot};

use crate::support::{scratch, sh, small};

/// What KVM is here, unless there is none.
fn kvm() -> Option<Verdict> {
    match probe::kvm() {
        Ok(verdict) => {
            println!("KVM: {verdict}; the probe took {} µs", verdict.figures().took_us);
            Some(verdict)
        }
        Err(e) => {
            println!("NOT RUN on KVM: {e}");
            None
        }
    }
}

/// The same, where it runs Linux.
fn usable_kvm() -> Option<Verdict> {
    let verdict = kvm()?;
    if !verdict.runs_linux() {
        println!("NOT RUN on KVM: {verdict}");
        let error = small().backend(Backend::Kvm).start().unwrap_err();
        assert!(matches!(error, Error::HypervisorUnavailable { .. }), "{error:?}");
        return None;
    }
    Some(verdict)
}

#[test]
fn r1_3_what_a_machine_runs_on_is_told() {
    let native = kvm().is_some_and(|verdict| verdict.is_native());
    let supported = cc::supports_hypervisor();
    assert_eq!(supported.is_ok(), native, "{supported:?}");
    let machine = small().start().unwrap();
    assert_eq!(machine.backend(), if native { Backend::Kvm } else { Backend::Soft });
    let reason = supported.clone().unwrap_or_else(|why| why);
    assert_eq!(machine.backend_reason(), reason);
    if native {
        return;
    }
    let error = small().require_hardware(true).start().unwrap_err();
    let Error::HypervisorUnavailable { reason: told } = &error else { panic!("{error:?}") };
    assert_eq!(*told, reason);
    assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
    let error = small().require_hardware(true).backend(Backend::Soft).start().unwrap_err();
    assert!(matches!(error, Error::HypervisorUnavailable { .. }), "{error:?}");
    if kvm().is_some() {
        assert!(reason.starts_with("KVM opens, but "), "{reason}");
        let error = small().require_hardware(true).backend(Backend::Kvm).start().unwrap_err();
        assert!(matches!(error, Error::HypervisorUnavailable { .. }), "{error:?}");
    }
}

/// A mounted root, files in it, a command that runs, its time: all of it on the other backend, and back.
#[test]
fn a_machine_goes_from_the_software_cpu_to_kvm_and_back() {
    if usable_kvm().is_none() {
        return;
    }
    let first = small().backend(Backend::Soft).cpu_model(CpuModel::Minimal).start().unwrap();
    assert_eq!((first.backend(), first.cpu_model()), (Backend::Soft, CpuModel::Minimal));
    sh(&first, "mkdir /srv/held; echo before > /srv/held/file; echo in tmp > /tmp/file");
    let script =
        "i=0; while :; do i=$((i+1)); echo $i > /tmp/new; mv /tmp/new /tmp/count; usleep 20000; done";
    let _counter = first.command("sh").args(["-c", script]).stdout(Stdio::null()).spawn().unwrap();
    sh(&first, "while [ ! -e /tmp/count ]; do usleep 10000; done");
    let place = scratch();
    first.snapshot().unwrap().save(place.path().join("on-soft")).unwrap();
    drop(first);

    let count = |machine: &Instance| sh(machine, "cat /tmp/count").parse::<u64>().unwrap();
    let uptime = |machine: &Instance| sh(machine, "cut -d. -f1 /proc/uptime").parse::<u64>().unwrap();
    let begin = Instant::now();
    let snapshot = Snapshot::open(place.path().join("on-soft")).unwrap();
    let second = Instance::builder(&snapshot).backend(Backend::Kvm).start().unwrap();
    assert_eq!((second.backend(), second.cpu_model()), (Backend::Kvm, CpuModel::Minimal));
    assert_eq!(sh(&second, "cat /srv/held/file /tmp/file"), "before\nin tmp");
    println!(
        "first output on KVM after {:?} ({:?}), {} instructions refused",
        begin.elapsed(),
        second.timing(),
        second.refused_instructions()
    );
    let (counted, up) = (count(&second), uptime(&second));
    wait(|| count(&second) > counted + 3);
    sh(&second, "echo on kvm > /srv/held/second");
    second.snapshot().unwrap().save(place.path().join("on-kvm")).unwrap();
    let counted = count(&second);
    drop(second);

    let snapshot = Snapshot::open(place.path().join("on-kvm")).unwrap();
    let third = Instance::builder(&snapshot).backend(Backend::Soft).start().unwrap();
    assert_eq!(third.backend(), Backend::Soft);
    assert_eq!(sh(&third, "cat /srv/held/file /tmp/file /srv/held/second"), "before\nin tmp\non kvm");
    wait(|| count(&third) > counted + 3);
    assert!(uptime(&third) >= up, "monotonic time went back");
    let log = sh(&third, "dmesg");
    for bad in ["lockup", "BUG", "Oops", "stall"] {
        assert!(!log.contains(bad), "{bad}: {log}");
    }
}

/// Until `done`, which a machine that hangs never is.
fn wait(done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(300), "it never came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn r5_6_a_snapshot_of_a_richer_processor_is_refused() {
    let Some(verdict) = usable_kvm() else { return };
    if verdict.is_native() {
        println!("NOT RUN: this host's KVM has all of the baseline");
        return;
    }
    let machine = small().backend(Backend::Soft).start().unwrap();
    assert_eq!(machine.cpu_model(), CpuModel::Baseline);
    let snapshot = machine.snapshot().unwrap();
    let error = Instance::builder(&snapshot).backend(Backend::Kvm).start().unwrap_err();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(e) = cause {
        text += &format!(": {e}");
        cause = e.source();
    }
    assert!(text.contains("lesser"), "{text}");
    // Where it has what it needs it goes on.
    let again = Instance::builder(&snapshot).start().unwrap();
    assert_eq!(sh(&again, "echo here"), "here");
}

#[test]
fn refused_instructions_are_bounded() {
    let Some(verdict) = usable_kvm() else { return };
    if verdict.is_native() {
        println!("NOT RUN: this host's KVM refuses nothing");
        return;
    }
    let machine = small().backend(Backend::Soft).cpu_model(CpuModel::Minimal).start().unwrap();
    let snapshot = machine.snapshot().unwrap();
    let error = Instance::builder(&snapshot)
        .backend(Backend::Kvm)
        .max_refused_instructions(0)
        .start()
        .map(|machine| sh(&machine, "echo it refused nothing"))
        .unwrap_err();
    assert!(error.to_string().contains("refuses the guest's instruction"), "{error}");
}

/// From the kernel's first instruction.
#[test]
#[ignore = "takes minutes where KVM emulates the guest's kernel"]
fn full_kvm_boots_a_stock_kernel() {
    if usable_kvm().is_none() {
        return;
    }
    let begin = Instant::now();
    let machine = small().backend(Backend::Kvm).boot_snapshot(false).start().unwrap();
    assert_eq!(sh(&machine, "echo $((6 * 7))"), "42");
    println!(
        "booted, and a command's output, in {:?}; {} instructions refused",
        begin.elapsed(),
        machine.refused_instructions()
    );
}
