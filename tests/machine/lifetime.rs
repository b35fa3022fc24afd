//! Many machines, pauses, and what is left of machines that are gone.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use cc::process::Stdio;
use cc::{Backend, Error, Instance};

use crate::support::{alone, sh, small};

#[test]
fn r9_1_ten_machines_in_one_process() {
    let start = Instant::now();
    let machines: Vec<Instance> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..10).map(|_| scope.spawn(|| small().start().unwrap())).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    println!("ten machines run after {:.1?}", start.elapsed());
    std::thread::scope(|scope| {
        for (n, instance) in machines.iter().enumerate() {
            scope.spawn(move || {
                sh(instance, &format!("echo {n} >/tmp/who"));
                assert_eq!(sh(instance, "cat /tmp/who"), n.to_string());
            });
        }
    });
    // Each still has what it was told, whatever the others were told.
    for (n, instance) in machines.iter().enumerate() {
        assert_eq!(sh(instance, "cat /tmp/who"), n.to_string());
        assert_eq!(instance.backend(), Backend::Soft);
    }
    let ids: std::collections::HashSet<_> = machines.iter().map(Instance::id).collect();
    assert_eq!(ids.len(), 10);
    // The end of one is not the end of another.
    let mut machines = machines;
    machines.truncate(1);
    assert_eq!(sh(&machines[0], "cat /tmp/who"), "0");
}

fn uptime(instance: &Instance) -> f64 {
    sh(instance, "cut -d' ' -f1 /proc/uptime").parse().unwrap()
}

#[test]
fn time_stands_still_while_paused() {
    const PAUSE: Duration = Duration::from_secs(2);
    let instance = small().start().unwrap();
    let begin = Instant::now();
    let before = uptime(&instance);
    instance.pause().unwrap();
    instance.pause().expect("pausing twice is no error");
    assert!(instance.is_running());
    std::thread::scope(|scope| {
        let command = scope.spawn(|| sh(&instance, "echo after"));
        std::thread::sleep(PAUSE);
        assert!(!command.is_finished(), "nothing runs in a paused machine");
        instance.resume().unwrap();
        assert_eq!(command.join().unwrap(), "after");
    });
    instance.resume().expect("resuming twice is no error");
    let guest = uptime(&instance) - before;
    let host = begin.elapsed().as_secs_f64();
    // The guest counts in 10 ms; a margin for that.
    assert!(guest <= host - PAUSE.as_secs_f64() + 0.1, "the guest saw {guest} s of {host} s");

    // Sleepers wake at their own time, and a stream under way loses nothing.
    let mut child = instance.command("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes: Vec<u8> = (0..2_000_000u32).map(|n| (n ^ n >> 9) as u8).collect();
    let out = std::thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(&bytes).unwrap();
            drop(stdin);
        });
        let out = scope.spawn(|| child.wait_with_output().unwrap());
        for _ in 0..50 {
            instance.pause().unwrap();
            instance.resume().unwrap();
        }
        out.join().unwrap()
    });
    assert!(out.stdout == bytes);
    assert_eq!(sh(&instance, "sleep 0.1; echo woke"), "woke");

    instance.pause().unwrap();
    let start = Instant::now();
    instance.close().expect("a paused machine can be closed");
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(matches!(instance.resume(), Err(Error::NotRunning(_))));
}

/// Descriptor number to what it is, of this process.
fn descriptors() -> BTreeMap<u32, String> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let entries = entries.filter_map(|e| {
        let e = e.unwrap();
        let target = std::fs::read_link(e.path()).ok()?;
        // The one this listing itself reads.
        let own = target.to_string_lossy().ends_with("/fd");
        (!own).then(|| (e.file_name().to_string_lossy().parse().unwrap(), target.display().to_string()))
    });
    entries.collect()
}

fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|t| std::fs::read_to_string(t.unwrap().path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect()
}

fn guest_ram_mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    ["cc-guest-ram", "/snapshots/"].iter().map(|name| maps.matches(name).count()).sum()
}

fn children() -> String {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.filter_map(|t| std::fs::read_to_string(t.unwrap().path().join("children")).ok()).collect()
}

#[test]
fn r7_1_nothing_is_left_of_machines_and_r7_2_all_descriptors_are_cloexec() {
    alone("lifetime::r7_1_nothing_is_left_of_machines_and_r7_2_all_descriptors_are_cloexec", || {
        crate::support::source();
        let before = descriptors();
        let cycle = |n: usize| {
            let instance = small().start().unwrap();
            let mut child =
                instance.command("cat").stdin(Stdio::inherit()).stdout(Stdio::piped()).spawn().unwrap();
            sh(&instance, "true");
            let while_running = descriptors();
            let new: Vec<_> = while_running.iter().filter(|(fd, _)| !before.contains_key(fd)).collect();
            assert!(!new.is_empty() && guest_ram_mappings() > 0 && threads().len() > 3);
            for (fd, target) in new {
                let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
                let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap().trim();
                let flags = u32::from_str_radix(flags, 8).unwrap();
                const O_CLOEXEC: u32 = 0o2_000_000;
                assert!(flags & O_CLOEXEC != 0, "descriptor {fd} ({target}) is inherited by programs");
            }
            match n % 2 {
                0 => drop(child.kill()),
                _ => instance.close().unwrap(),
            }
            drop(instance);
            let _ = child.wait();
        };
        // What is made once for the process.
        cycle(0);
        let (fds, mut names) = (descriptors(), threads());
        assert_eq!(fds, before);
        names.sort();
        for n in 1..4 {
            cycle(n);
        }
        // A thread that was joined may still be listed for a moment.
        crate::support::wait_until("threads end", || threads().len() <= names.len());
        let mut now = threads();
        now.sort();
        assert_eq!(now, names);
        assert!(names.iter().all(|name| !name.starts_with("cc-")), "{names:?}");
        assert_eq!(descriptors(), before);
        assert_eq!(guest_ram_mappings(), 0);
        assert_eq!(children().trim(), "");
    });
}

/// What the process has: descriptors, threads, children, mappings, names of temporary files.
#[derive(Debug, PartialEq)]
struct Holdings {
    descriptors: BTreeMap<u32, String>,
    threads: usize,
    children: String,
    guest_mappings: usize,
    mappings: usize,
    temporary: Vec<std::ffi::OsString>,
}

fn holdings() -> Holdings {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let temporary = std::fs::read_dir(std::env::temp_dir()).unwrap();
    Holdings {
        descriptors: descriptors(),
        threads: threads().len(),
        children: children(),
        guest_mappings: guest_ram_mappings(),
        mappings: maps.lines().count(),
        temporary: temporary.map(|entry| entry.unwrap().file_name()).collect(),
    }
}

/// Makes, uses and drops machines, restored ones and every tenth time a clone too, and looks at what is left of them.
fn cycles(count: usize) {
    let cycle = |n: usize| {
        let machine = small().start().unwrap();
        assert_eq!(sh(&machine, &format!("echo {n} > /srv/n; cat /srv/n")), n.to_string());
        let clone = n.is_multiple_of(10).then(|| machine.fork(1).unwrap());
        match n % 3 {
            0 => drop(machine),
            1 => machine.close().unwrap(),
            _ => machine.shutdown(Duration::ZERO).unwrap(),
        }
        drop(clone);
    };
    // What is made once for the process, such as the allocator's areas for threads.
    (0..10).for_each(cycle);
    let (before, begin) = (holdings(), Instant::now());
    (0..count).for_each(cycle);
    let took = begin.elapsed() / count as u32;
    // A thread that was joined may still be listed for a moment.
    crate::support::wait_until("threads end", || threads().len() <= before.threads);
    let mut after = holdings();
    println!("{count} cycles of {took:.1?}: {} mappings before, {} after", before.mappings, after.mappings);
    // The allocator splits and joins its own. One left of each cycle would be more than that.
    assert!(after.mappings <= before.mappings + 16, "{} {}", before.mappings, after.mappings);
    after.mappings = before.mappings;
    assert_eq!(after, before);
}

#[test]
fn r7_1_forty_machines_leave_nothing() {
    alone("lifetime::r7_1_forty_machines_leave_nothing", || cycles(40));
}

#[test]
#[ignore = "takes minutes"]
fn full_r7_1_a_thousand_machines_leave_nothing() {
    alone("lifetime::full_r7_1_a_thousand_machines_leave_nothing", || cycles(1000));
}

/// CPU time of this process in clock ticks of 10 ms.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn r7_5_an_idle_machine_takes_little_time() {
    alone("lifetime::r7_5_an_idle_machine_takes_little_time", || {
        const SECONDS: u64 = 3;
        let instance = small().start().unwrap();
        sh(&instance, "true");
        // What the kernel still has to do after its boot.
        std::thread::sleep(Duration::from_secs(1));
        let (start, begin) = (Instant::now(), cpu_ticks());
        std::thread::sleep(Duration::from_secs(SECONDS));
        let percent = (cpu_ticks() - begin) as f64 / start.elapsed().as_secs_f64();
        println!("idle: {percent:.1} % of a core");
        assert!(percent < 10.0, "{percent} % of a core");
        // The same measure of a machine that works is far above the limit.
        let begin = cpu_ticks();
        sh(&instance, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done");
        assert!(cpu_ticks() - begin >= 5, "the measure sees work");
    });
}
