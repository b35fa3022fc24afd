//! How fast a machine is there when an earlier boot has left its snapshot, and what clones cost.

use std::fs;
use std::time::Instant;

use cc::{Instance, Source};

use crate::{Report, Result, expect, median, milliseconds};

/// Names, in the order in which they are measured.
pub(crate) const NAMES: [&str; 7] = [
    "restore.first_output_ms",
    "restore.fetch_ms",
    "restore.load_ms",
    "restore.boot_ms",
    "restore.command_ms",
    "fork.ms",
    "clone.rss_mib",
];
const RESTORES: usize = 20;
const FORKS: usize = 10;
/// Clones at once, for what each takes.
const CLONES: usize = 20;

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    let source = Source::busybox()?;
    // The first start may be the boot that leaves the snapshot.
    drop(Instance::new(&source)?);
    let mut all: [Vec<f64>; 5] = Default::default();
    for _ in 0..RESTORES {
        let start = Instant::now();
        let instance = Instance::new(&source)?;
        let ready = Instant::now();
        expect(instance.command("echo").arg("ready").output()?.stdout, b"ready\n")?;
        let timing = instance.timing();
        if !timing.restored {
            return Err("the machine was booted, not restored".into());
        }
        let parts = [start.elapsed(), timing.fetch, timing.load, timing.boot, ready.elapsed()];
        all.iter_mut().zip(parts).for_each(|(times, time)| times.push(milliseconds(time)));
    }
    for (name, times) in NAMES.iter().zip(all) {
        report.add(name, median(times), "ms");
    }

    let parent = Instance::new(&source)?;
    expect(parent.command("echo").arg("ready").output()?.stdout, b"ready\n")?;
    let mut times = Vec::new();
    for _ in 0..FORKS {
        let start = Instant::now();
        let clone = parent.fork(1)?;
        times.push(milliseconds(start.elapsed()));
        drop(clone);
    }
    report.add("fork.ms", median(times), "ms");

    let snapshot = parent.snapshot()?;
    let before = proportional()?;
    let clones: Vec<Instance> =
        (0..CLONES).map(|_| Instance::new(&snapshot)).collect::<std::result::Result<_, _>>()?;
    for clone in &clones {
        expect(clone.command("echo").arg("ready").output()?.stdout, b"ready\n")?;
    }
    let taken = proportional()?.saturating_sub(before);
    report.add("clone.rss_mib", taken as f64 / CLONES as f64 / 1024.0, "MiB");
    Ok(())
}

/// This process's share of memory, in KiB: what several mappings have in common counts once.
fn proportional() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("smaps_rollup")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
