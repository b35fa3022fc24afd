//! What the kernel of the host says about this process.

use std::fs;
use std::time::Duration;

use crate::Result;

/// Host memory of this process, in bytes.
pub(crate) struct Memory {
    /// Resident, without guest RAM.
    pub(crate) own: u64,
}

/// What is resident now. Guest RAM is told by the name of its mapping: memory without a name, or
/// that of a snapshot.
pub(crate) fn memory() -> Result<Memory> {
    let (mut own, mut guest) = (0, false);
    for line in fs::read_to_string("/proc/self/smaps")?.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("Rss:") if !guest => own += words.next().ok_or("smaps")?.parse::<u64>()? << 10,
            // The line that begins a mapping: an address range, not a key.
            Some(first) if !first.ends_with(':') => {
                guest = line.contains("/memfd:cc-guest-ram") || line.contains("/snapshots/");
            }
            _ => {}
        }
    }
    Ok(Memory { own })
}

/// Processor time of all threads of this process that live now.
pub(crate) fn cpu_time() -> Result<Duration> {
    let mut total = Duration::ZERO;
    for thread in fs::read_dir("/proc/self/task")? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        let nanoseconds = text.split_ascii_whitespace().next().ok_or("schedstat")?.parse()?;
        total += Duration::from_nanos(nanoseconds);
    }
    Ok(total)
}

/// The host's processors in a few words.
pub(crate) fn processor() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or(": unknown processor");
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{count} × {}", model.trim_start_matches([' ', '\t', ':']))
}
