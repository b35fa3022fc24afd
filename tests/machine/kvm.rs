//! Machines on KVM: that they are what machines on the software CPU are, and go from one to the other.
//!
//! Where KVM only emulates the guest's kernel, the software CPU executes what it refuses and what it does wrong, so
//! that all of this runs there too, slowly. Where there is no KVM, tests say `NOT RUN` and why.

use std::time::Instant;

use cc::hypervisor::probe::{self, Verdict};
use cc::process::Stdio;
use cc::{Backend, CpuModel, Error, Instance, Snapshot};

use crate::commands::conformance as process;
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

/// A machine on the software CPU that can go to KVM.
fn on_soft(cpus: u32) -> Instance {
    let machine = small().cpus(cpus).backend(Backend::Soft).cpu_model(CpuModel::Minimal).start().unwrap();
    assert_eq!((machine.backend(), machine.cpu_model()), (Backend::Soft, CpuModel::Minimal));
    machine
}

/// A machine on KVM that was begun on the software CPU.
fn moved(cpus: u32) -> Instance {
    let snapshot = on_soft(cpus).snapshot().unwrap();
    Instance::builder(&snapshot).backend(Backend::Kvm).start().unwrap()
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
    let first = on_soft(1);
    sh(&first, "mkdir /srv/held; echo before > /srv/held/file; echo in tmp > /tmp/file");
    let script =
        "i=0; while :; do i=$((i+1)); echo $i > /tmp/new; mv /tmp/new /tmp/count; usleep 20000; done";
    let _counter = first.command("sh").args(["-c", script]).stdout(Stdio::null()).spawn().unwrap();
    sh(&first, "while [ ! -e /tmp/count ]; do usleep 10000; done");
    let place = scratch();
    first.snapshot().unwrap().save(place.path().join("on-soft")).unwrap();
    drop(first);

    // The command still runs, the files are there, time goes on. One command: each takes seconds where the kernel is
    // emulated.
    let look = "cat /srv/held/file /tmp/file; c=$(cat /tmp/count); cut -d. -f1 /proc/uptime; \
        while [ $(cat /tmp/count) -le $((c + 1)) ]; do usleep 5000; done; echo on $0 >> /srv/held/file; cat /tmp/count";
    let look = |machine: &Instance, place: &str| -> (u64, u64) {
        let out = machine.command("sh").args(["-c", look, place]).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        let text = String::from_utf8(out.stdout).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        let count = lines.pop().unwrap().parse().unwrap();
        let up = lines.pop().unwrap().parse().unwrap();
        let expected: &[&str] =
            if place == "kvm" { &["before", "in tmp"] } else { &["before", "on kvm", "in tmp"] };
        assert_eq!(lines, expected);
        (count, up)
    };

    let begin = Instant::now();
    let snapshot = Snapshot::open(place.path().join("on-soft")).unwrap();
    let second = Instance::builder(&snapshot).backend(Backend::Kvm).start().unwrap();
    assert_eq!((second.backend(), second.cpu_model()), (Backend::Kvm, CpuModel::Minimal));
    assert_eq!(second.command("echo").arg("here").output().unwrap().stdout, b"here\n");
    println!(
        "first output on KVM after {:?} ({:?}), {} instructions refused",
        begin.elapsed(),
        second.timing(),
        second.refused_instructions()
    );
    let (counted, up) = look(&second, "kvm");
    second.snapshot().unwrap().save(place.path().join("on-kvm")).unwrap();
    drop(second);

    let snapshot = Snapshot::open(place.path().join("on-kvm")).unwrap();
    let third = Instance::builder(&snapshot).backend(Backend::Soft).start().unwrap();
    assert_eq!(third.backend(), Backend::Soft);
    let (later, still_up) = look(&third, "soft");
    assert!(later > counted, "{later} after {counted}");
    assert!(still_up >= up, "monotonic time went back");
    let log = sh(&third, "dmesg");
    for bad in ["lockup", "BUG", "Oops", "stall", "segfault", "general protection"] {
        assert!(!log.contains(bad), "{bad}: {log}");
    }
}

/// Where booting takes minutes, the first start is a boot on the software CPU and its snapshot; all others are restored.
#[test]
fn kvm_on_request_is_there_soon() {
    let Some(verdict) = usable_kvm() else { return };
    let place = scratch();
    let start = || small().backend(Backend::Kvm).snapshot_dir(place.path()).start().unwrap();
    let first = start();
    assert_eq!((first.backend(), first.timing().restored), (Backend::Kvm, !verdict.is_native()));
    assert_eq!(sh(&first, "echo $((6 * 7))"), "42");
    assert!(first.backend_reason().starts_with("KVM was asked for; "), "{}", first.backend_reason());
    drop(first);
    let second = start();
    assert_eq!((second.backend(), second.timing().restored), (Backend::Kvm, true));
    // The software CPU goes on from the same one.
    let soft = small()
        .backend(Backend::Soft)
        .cpu_model(second.cpu_model())
        .snapshot_dir(place.path())
        .start()
        .unwrap();
    assert_eq!((soft.backend(), soft.timing().restored), (Backend::Soft, true));
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
    let snapshot = on_soft(1).snapshot().unwrap();
    let error = Instance::builder(&snapshot)
        .backend(Backend::Kvm)
        .max_refused_instructions(0)
        .start()
        .map(|machine| sh(&machine, "echo it refused nothing"))
        .unwrap_err();
    assert!(error.to_string().contains("refuses the guest's instruction"), "{error}");
}

/// Two processors, each with work.
#[test]
#[ignore = "a minute where KVM emulates the guest's kernel"]
fn full_kvm_two_processors() {
    if usable_kvm().is_none() {
        return;
    }
    let machine = moved(2);
    assert_eq!(sh(&machine, "nproc"), "2");
    let script = "for cpu in 1 2; do taskset $cpu sh -c 'seq 1 3000 | md5sum; cut -d\" \" -f39 /proc/self/stat' \
        > /tmp/$cpu & done; wait; cat /tmp/1 /tmp/2";
    let out = sh(&machine, script);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 4, "{out}");
    assert_eq!(lines[0], lines[2], "the same work");
    assert_eq!((lines[1], lines[3]), ("0", "1"), "each on its own processor");
    println!("{} instructions refused", machine.refused_instructions());
}

/// What `cc::process` promises, on KVM; with small sizes, for KVMs that emulate the guest's kernel.
#[test]
#[ignore = "minutes where KVM emulates the guest's kernel"]
fn full_kvm_runs_commands() {
    if usable_kvm().is_none() {
        return;
    }
    let machine = moved(1);
    let command = |program: &str| machine.command(program);
    process::basics(&command);
    process::r2_1_wait_returns_while_stdin_is_open(&command);
    process::r2_2_output_is_byte_exact(&command, 256 * 1024 + 13);
    process::r2_2_fast_exits_lose_nothing(&command, 5);
    process::r2_3_large_stdin_arrives(&command, 256 * 1024 + 7);
    process::r2_4_exit_status_is_exact(&command, [0, 1, 125, 126, 127, 128, 255].into_iter());
    process::r2_5_kill_reaches_the_process_group(&command);
    process::r2_6_no_zombies_after_double_forks(&command, 10);
    process::r2_10_argv_and_env_are_byte_exact(&command);
    process::stdio_from_files_and_children(&command);
    process::users_and_groups(&command);
    process::pty_is_the_terminal_of_the_command(&command);
    process::many_threads_share_one_machine(&command, 1);
    println!("{} instructions refused", machine.refused_instructions());
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
