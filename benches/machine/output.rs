//! How fast a command's output comes out, by a pipe and by a terminal.

use std::io::Read;
use std::time::Instant;

use cc::process::{PtySize, Stdio};
use cc::{Instance, Source};

use crate::{Report, Result, counted, median};

/// Names, in the order in which they are measured.
pub(super) const NAMES: [&str; 5] =
    ["exec.pipe_mb_s", "exec.pty_raw_mb_s", "exec.pty_mb_s", "exec.pty_lines_mb_s", "exec.pty_raw_vs_pipe"];

/// What each is: whether there is a terminal, how that is set, the size of the program's writes, and MiB.
const KINDS: [(bool, &str, usize, usize); 4] = [
    (false, "true", 65_536, 64),
    (true, "stty raw", 65_536, 16),
    (true, "true", 65_536, 4),
    // A line a write, as programs do that know what they write to.
    (true, "true", 16, 1),
];
const ROUNDS: usize = 3;
/// A line, which a terminal that is not raw makes one byte longer.
const LINE: &[u8] = b"0123456789abcde\n";

pub(super) fn measure(report: &mut Report) -> Result<()> {
    let instance = Instance::new(Source::busybox()?)?;
    let largest = KINDS.map(|kind| kind.3).into_iter().max().unwrap_or(0) << 20;
    instance.write("/tmp/lines", LINE.repeat(largest / LINE.len()))?;
    let (mut rates, mut costs) = ([const { Vec::new() }; 4], [0; 4]);
    for _ in 0..ROUNDS {
        for (n, kind) in KINDS.iter().enumerate() {
            let (rate, cost) = counted(&instance, || output(&instance, *kind))?;
            rates[n].push(rate);
            costs[n] = cost / kind.3 as u64;
        }
    }
    report.note(&format!("guest instructions for each MiB of output: {costs:?}"));
    let ratios = rates[1].iter().zip(&rates[0]).map(|(raw, pipe)| raw / pipe).collect();
    for (name, rates) in NAMES.into_iter().zip(rates) {
        report.add(name, median(rates), "MB/s");
    }
    report.add(NAMES[4], median(ratios), "x");
    instance.close()?;
    Ok(())
}

/// Megabytes a second that a program writes, from its start to the last byte here.
fn output(instance: &Instance, (terminal, set, block, mib): (bool, &str, usize, usize)) -> Result<f64> {
    let len = mib << 20;
    let script = format!("{set}; exec dd if=/tmp/lines bs={block} count={} 2>/dev/null", len / block);
    let mut command = instance.command("sh");
    command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped());
    if terminal {
        command.pty(PtySize::default());
    }
    let start = Instant::now();
    let mut child = command.spawn()?;
    let mut stdout = child.stdout.take().ok_or("no output")?;
    let (mut seen, mut piece) = (Vec::with_capacity(2 * len), vec![0; 1 << 20]);
    loop {
        match stdout.read(&mut piece)? {
            0 => break,
            n => seen.extend_from_slice(&piece[..n]),
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    if !child.wait()?.success() {
        return Err("the program failed".into());
    }
    seen.retain(|byte| *byte != b'\r');
    if seen.len() != len || !seen.chunks(LINE.len()).all(|line| line == LINE) {
        return Err(format!("{} bytes of {len} came, or others", seen.len()).into());
    }
    Ok(len as f64 / 1e6 / seconds)
}
