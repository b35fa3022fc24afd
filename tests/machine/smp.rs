//! Machines with several processors: what programs see of them, that what runs on them stays correct, and that
//! snapshots, pauses and ends reach them all.

use std::sync::OnceLock;
use std::time::Duration;

use cc::process::Stdio;
use cc::{Error, Instance, Snapshot, Source};

use crate::support::{alone, compiled, install, scratch, sh, small, source, wait_until};

/// A machine with `n` processors.
fn machine(n: u32) -> Instance {
    small().cpus(n).start().expect("a machine")
}

/// The two processors that most tests here share, and the program of `smp.c` where there is a compiler.
fn pair() -> (&'static Instance, bool) {
    static PAIR: OnceLock<(Instance, bool)> = OnceLock::new();
    let (instance, program) = PAIR.get_or_init(|| {
        let instance = machine(2);
        let there = put_program(&instance);
        (instance, there)
    });
    (instance, *program)
}

fn put_program(instance: &Instance) -> bool {
    static PROGRAM: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| compiled(include_str!("smp.c")));
    match program {
        Some(program) => install(instance, "/tmp/smp", program),
        None => println!("NOT RUN: no compiler makes static programs here"),
    }
    program.is_some()
}

#[test]
fn programs_see_as_many_processors_as_were_asked_for() {
    let (instance, _) = pair();
    assert_eq!(sh(instance, "nproc"), "2");
    assert_eq!(
        sh(instance, "cat /sys/devices/system/cpu/online /sys/devices/system/cpu/possible"),
        "0-1\n0-1"
    );
    let info =
        sh(instance, "grep -E '^(processor|apicid|core id|siblings|cpu cores|physical id)' /proc/cpuinfo");
    let figures: Vec<&str> = info.lines().filter_map(|line| line.split(": ").nth(1)).collect();
    // processor, physical id, siblings, core id, cpu cores, apicid
    assert_eq!(figures, ["0", "0", "2", "0", "2", "0", "1", "0", "2", "1", "2", "1"], "{info}");
    // One clock for all: the kernel has not turned away from it.
    let clock = "/sys/devices/system/clocksource/clocksource0";
    assert_eq!(sh(instance, &format!("cat {clock}/current_clocksource")), "kvm-clock");
    assert!(sh(instance, &format!("cat {clock}/available_clocksource")).contains("kvm-clock"));
    let log = sh(instance, "dmesg");
    for bad in ["unstable", "WARNING", "BUG", "stall", "Firmware Bug"] {
        assert!(!log.contains(bad), "{bad}: {log}");
    }
    // Each takes interrupts of its own: timer and IPIs.
    for line in ["LOC", "CAL"] {
        let counts =
            sh(instance, &format!("awk '$1 == \"{line}:\" {{ print ($2 > 0) ($3 > 0) }}' /proc/interrupts"));
        assert_eq!(counts, "11", "{line}");
    }
}

#[test]
fn numbers_of_processors_that_cannot_be_are_refused() {
    for cpus in [0, 33, 1000, u32::MAX] {
        let error = small().cpus(cpus).start().expect_err("refused");
        assert!(matches!(error, Error::Cpus { max: 32, .. }), "{error:?}");
        assert!(error.to_string().contains("1 to 32"), "{error}");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    }
}

#[test]
fn as_many_processors_as_there_can_be() {
    let instance = machine(32);
    assert_eq!(sh(&instance, "nproc"), "32");
    assert_eq!(
        sh(&instance, "for n in $(seq 0 31); do taskset $(printf %x $((1 << n))) sh -c 'echo -n .'; done"),
        ".".repeat(32)
    );
}

/// Threads that share memory, on as many processors: see `smp.c`.
#[test]
fn threads_on_several_processors_agree() {
    let (instance, true) = pair() else { return };
    for (what, threads, turns) in [
        ("counters", 4, 2500),
        ("pingpong", 2, 1000),
        ("migrate", 3, 250),
        ("jit", 2, 750),
        ("jit", 4, 250),
        ("shootdown", 3, 750),
        ("signals", 3, 250),
        ("membarrier", 2, 250),
        ("forks", 4, 15),
    ] {
        let said = sh(instance, &format!("/tmp/smp {what} {threads} {turns} || true"));
        assert_eq!(said, "ok", "{what} with {threads} threads");
    }
}

/// What runs in parallel: sums of data that each processor makes itself, while processes come and go.
fn hashes(instance: &Instance, jobs: u32, rounds: u32) {
    let script = format!(
        "for job in $(seq {jobs}); do (
           for round in $(seq {rounds}); do seq $((job * 1000)) $((job * 1000 + 20000)) | sha256sum; done | sort | uniq -c
         ) >/tmp/sum.$job & done
         while [ ! -e /tmp/enough ]; do true | cat; sh -c true; done &
         for job in $(seq {jobs}); do wait %$job; done; touch /tmp/enough; wait; rm /tmp/enough
         for job in $(seq {jobs}); do cat /tmp/sum.$job; done"
    );
    let sums: Vec<String> = sh(instance, &script).lines().map(|line| line.trim().to_owned()).collect();
    let expected: Vec<String> = (1..=jobs)
        .map(|job| {
            use sha2::{Digest, Sha256};
            let text: String = (job * 1000..=job * 1000 + 20000).map(|n| format!("{n}\n")).collect();
            let sum: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{rounds} {sum}  -")
        })
        .collect();
    assert_eq!(sums, expected);
}

#[test]
fn parallel_work_gives_the_same_as_on_the_host() {
    hashes(pair().0, 3, 4);
}

/// Starts something that keeps every processor busy and checks itself; its output says `wrong` if it ever is.
fn load(instance: &Instance, cpus: u32) {
    let script = format!(
        "for n in $(seq {cpus}); do (
           want=$(seq 3000 | md5sum)
           while :; do
             [ \"$(seq 3000 | md5sum)\" = \"$want\" ] || echo wrong >>/tmp/wrong
             echo >>/tmp/turns.$n
           done
         ) </dev/null >/dev/null 2>&1 & done"
    );
    sh(instance, &script);
}

/// Waits until every part of the load has gone on, and checks that it was right.
fn still_right(instance: &Instance, cpus: u32) {
    let turns = || -> Vec<u64> {
        (1..=cpus)
            .map(|n| sh(instance, &format!("cat /tmp/turns.{n} 2>/dev/null | wc -l")).parse().unwrap())
            .collect()
    };
    let before = turns();
    wait_until("the load goes on", || turns().iter().zip(&before).all(|(now, before)| *now > before + 1));
    assert_eq!(sh(instance, "cat /tmp/wrong 2>/dev/null || true"), "");
}

#[test]
fn snapshots_and_clones_of_busy_processors() {
    for cpus in [2, 4] {
        let instance = machine(cpus);
        load(&instance, cpus);
        still_right(&instance, cpus);
        let clones = instance.fork(if cpus == 2 { 2 } else { 1 }).unwrap();
        for clone in &clones {
            assert_eq!(sh(clone, "nproc"), cpus.to_string());
            still_right(clone, cpus);
        }
        still_right(&instance, cpus);
        let dir = scratch();
        let saved = dir.path().join("saved");
        clones[0].snapshot().unwrap().save(&saved).unwrap();
        drop(clones);
        drop(instance);
        let again = Instance::new(Source::from(&Snapshot::open(&saved).unwrap())).unwrap();
        assert_eq!(sh(&again, "nproc"), cpus.to_string());
        still_right(&again, cpus);
    }
}

#[test]
fn the_snapshot_of_a_boot_is_of_as_many_processors() {
    let dir = scratch();
    let start = |cpus| small().cpus(cpus).snapshot_dir(dir.path()).start().unwrap();
    for (cpus, restored) in [(2, false), (2, true), (1, false), (2, true)] {
        let instance = start(cpus);
        assert_eq!(instance.timing().restored, restored, "{cpus}");
        assert_eq!(sh(&instance, "nproc"), cpus.to_string());
    }
}

#[test]
fn a_pause_stops_all_processors() {
    let instance = machine(3);
    load(&instance, 3);
    still_right(&instance, 3);
    for _ in 0..30 {
        instance.pause().unwrap();
        instance.resume().unwrap();
    }
    instance.pause().unwrap();
    let before = instance.instructions();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(instance.instructions(), before);
    instance.resume().unwrap();
    still_right(&instance, 3);
}

#[test]
fn the_end_of_a_busy_machine_leaves_no_thread() {
    alone("smp::the_end_of_a_busy_machine_leaves_no_thread", || {
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        drop(machine(1));
        let before = threads();
        for turn in 0..3 {
            let instance = machine(4);
            load(&instance, 4);
            still_right(&instance, 4);
            assert!(threads() >= before + 4);
            match turn {
                0 => drop(instance),
                1 => {
                    instance.close().unwrap();
                    drop(instance);
                }
                _ => {
                    let _ = instance.command("sh").args(["-c", "echo b >/proc/sysrq-trigger"]).output();
                    wait_until("the guest has reset the machine", || !instance.is_running());
                    drop(instance);
                }
            }
            assert_eq!(threads(), before, "turn {turn}");
        }
    });
}

#[test]
fn a_panic_on_any_processor_is_a_panic() {
    for cpu in ["1", "2"] {
        let instance = small().cpus(2).start().unwrap();
        let panic =
            format!("echo 1 >/proc/sys/kernel/sysrq; exec taskset {cpu} sh -c 'echo c >/proc/sysrq-trigger'");
        assert!(instance.command("sh").args(["-c", &panic]).output().is_err());
        wait_until("the machine ends", || !instance.is_running());
        let error = instance.command("true").output().unwrap_err().to_string();
        assert!(error.contains("panic"), "{error}");
    }
}

#[test]
fn a_processor_that_spins_stops_no_other() {
    let instance = machine(2);
    let mut spinner = instance
        .command("taskset")
        .args(["2", "sh", "-c", "while :; do :; done"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    for n in 0..30 {
        assert_eq!(sh(&instance, &format!("echo {n}")), n.to_string());
    }
    assert!(spinner.try_wait().unwrap().is_none());
    spinner.kill().unwrap();
    assert!(!spinner.wait().unwrap().success());
}

#[test]
fn a_processor_can_be_taken_offline() {
    let instance = machine(2);
    sh(&instance, "echo 0 >/sys/devices/system/cpu/cpu1/online");
    assert_eq!(sh(&instance, "cat /sys/devices/system/cpu/online; nproc"), "0\n1");
    hashes(&instance, 2, 2);
    // So it is in a clone, and both have it back.
    let clone = instance.fork(1).unwrap().remove(0);
    for machine in [&instance, &clone] {
        assert_eq!(sh(machine, "nproc"), "1");
        sh(machine, "echo 1 >/sys/devices/system/cpu/cpu1/online");
        assert_eq!(sh(machine, "cat /sys/devices/system/cpu/online; nproc"), "0-1\n2");
        hashes(machine, 2, 2);
    }
}

#[test]
fn idle_processors_take_no_time() {
    alone("smp::idle_processors_take_no_time", || {
        let instance = machine(4);
        sh(&instance, "true");
        std::thread::sleep(Duration::from_secs(1));
        let used = || {
            let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        let before = used();
        std::thread::sleep(Duration::from_secs(5));
        let ticks = used() - before;
        println!("4 idle processors took {ticks} ticks of 10 ms in 5 s");
        // One that polls takes a hundred a second.
        assert!(ticks < 100, "{ticks}");
    });
}

/// All of it for longer, on more processors than the host has.
#[test]
#[ignore = "takes minutes"]
fn full_smp() {
    let instance = Instance::builder(source()).memory_mb(512).cpus(8).start().unwrap();
    if put_program(&instance) {
        for (what, threads, turns) in [
            ("counters", 16, 20_000),
            ("pingpong", 2, 20_000),
            ("migrate", 16, 500),
            ("jit", 8, 2000),
            ("shootdown", 8, 2000),
            ("signals", 8, 500),
            ("membarrier", 2, 5000),
            ("forks", 16, 100),
        ] {
            let began = std::time::Instant::now();
            let said = sh(&instance, &format!("/tmp/smp {what} {threads} {turns} || true"));
            println!("{what} with {threads} threads: {said} after {:.1?}", began.elapsed());
            assert_eq!(said, "ok", "{what}");
        }
    }
    hashes(&instance, 12, 20);
    load(&instance, 8);
    for _ in 0..10 {
        let clone = instance.fork(1).unwrap().remove(0);
        still_right(&clone, 8);
    }
    still_right(&instance, 8);
}
