//! How fast the host works on a guest's files.

use std::fs;
use std::path::Path;
use std::time::Instant;

use cc::{Instance, Mount, Source};

use crate::{Report, Result, counted, median};

/// Names, in the order in which they are measured.
pub(crate) const NAMES: [&str; 8] = [
    "fs.small_file_us",
    "fs.metadata_us",
    "fs.copy_in_mb_s",
    "fs.copy_out_mb_s",
    "fs.copy_in.memory_mb_s",
    "fs.copy_out.memory_mb_s",
    "fs.copy_in.mount_mb_s",
    "fs.copy_out.mount_mb_s",
];

const ROUNDS: usize = 500;
const COPIES: usize = 5;
const COPIED: usize = 64 * 1024 * 1024;

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    let shared = tempfile::tempdir()?;
    let mount = Mount::directory("shared", shared.path()).writable(true);
    let instance = Instance::builder(Source::busybox()?).memory_mb(1024).mount(mount).start()?;
    let small = vec![b'x'; 100];
    let (times, cost) = counted(&instance, || {
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            instance.write("/small", &small)?;
            if instance.read("/small")? != small {
                return Err("the file is another".into());
            }
            instance.remove_file("/small")?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times)
    })?;
    report.note(&format!("guest instructions for each small file: {}", cost / ROUNDS as u64));
    report.add(NAMES[0], median(times), "µs");
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        instance.metadata("/bin")?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    report.add(NAMES[1], median(times), "µs");
    // On the root, which this process serves, in the guest's memory, and in a directory of the host's.
    copies(report, &instance, "/copied", [NAMES[2], NAMES[3]])?;
    copies(report, &instance, "/tmp/copied", [NAMES[4], NAMES[5]])?;
    copies(report, &instance, "/mnt/shared/copied", [NAMES[6], NAMES[7]])?;
    instance.close()?;
    Ok(())
}

fn copies(report: &mut Report, instance: &Instance, at: &str, [name_in, name_out]: [&str; 2]) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (from, back) = (scratch.path().join("from"), scratch.path().join("back"));
    let content: Vec<u8> = (0..COPIED as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(&from, &content)?;
    let rate = |start: Instant| COPIED as f64 / 1e6 / start.elapsed().as_secs_f64();
    let (mut into, mut out) = (Vec::new(), Vec::new());
    let mut cost = [0; 2];
    for _ in 0..COPIES {
        let (speed, n) = counted(instance, || {
            let start = Instant::now();
            instance.copy_in(&from, at)?;
            Ok(rate(start))
        })?;
        into.push(speed);
        let (speed, m) = counted(instance, || {
            let start = Instant::now();
            instance.copy_out(at, &back)?;
            Ok(rate(start))
        })?;
        out.push(speed);
        cost = [n, m].map(|n| n / (COPIED >> 20) as u64);
        instance.remove_file(at)?;
    }
    report.note(&format!(
        "guest instructions for each MiB copied to {at} and back: {} and {}",
        cost[0], cost[1]
    ));
    if fs::read(Path::new(&back))? != content {
        return Err("the copy is another".into());
    }
    report.add(name_in, median(into), "MB/s");
    report.add(name_out, median(out), "MB/s");
    Ok(())
}
