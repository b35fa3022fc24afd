//! What a machine costs: how fast its processor is, how long it takes to start, what it takes of the
//! host, how fast its files are, and how fast images come.
//!
//! ```text
//! cargo bench --bench machine                        a table
//! cargo bench --bench machine -- --json              one JSON object a line
//! cargo bench --bench machine -- soft.mips exec      only what begins so
//! ```
//!
//! Kernel and userland are those that an [`cc::Instance`] uses; they are fetched, if need be, before
//! anything is measured. Each figure comes from real machines; one that cannot be had is left out
//! with a note on standard error.

#[path = "machine/backends.rs"]
mod backends;
#[path = "machine/files.rs"]
mod files;
#[path = "machine/guest_fs.rs"]
mod guest_fs;
#[path = "machine/host.rs"]
mod host;
#[path = "machine/image.rs"]
mod image;
#[path = "machine/net.rs"]
mod net;
#[path = "machine/output.rs"]
mod output;
#[path = "machine/program.rs"]
mod program;
#[path = "machine/pull.rs"]
mod pull;
#[path = "machine/qemu.rs"]
mod qemu;
#[path = "machine/snapshots.rs"]
mod snapshots;
#[path = "machine/vfs.rs"]
mod vfs;

use std::error::Error;
use std::io::Write;
use std::time::{Duration, Instant};

use cc::process::Stdio;
use cc::{Instance, Source};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Boots of each kind; the figures are medians.
const BOOTS: usize = 5;
/// Runs of `true`.
const COMMANDS: usize = 100;
/// Commands at once.
const PARALLEL: usize = 32;
/// Runs of the compute loop.
const LOOPS: usize = 3;
/// How long an idle machine is watched.
const IDLE: Duration = Duration::from_secs(10);

/// Measured on one machine.
const ONE: [&str; 5] =
    ["instance.rss_mib", "exec.true_ms", "exec.parallel_32_ms", "soft.mips", "idle.cpu_percent"];
/// Measured by booting.
const BOOT: [&str; 3] = ["soft.mips.boot", "boot.first_output_ms", "boot.vs_qemu_tcg"];
/// Measured by pulling.
const PULL: [&str; 2] = ["pull.mb_s", "pull.vs_skopeo_umoci"];

/// All names, in the order in which they are measured.
fn names() -> Vec<String> {
    let mut names: Vec<String> = ONE.into_iter().chain(BOOT).map(str::to_owned).collect();
    names.extend(output::NAMES.map(str::to_owned));
    names.extend(backends::NAMES.map(str::to_owned));
    names.extend(snapshots::NAMES.map(str::to_owned));
    names.extend(files::NAMES.map(str::to_owned));
    names.extend(net::NAMES.map(str::to_owned));
    names.extend(guest_fs::names());
    names.extend(vfs::names());
    names.extend([image::NAME].into_iter().chain(PULL).map(str::to_owned));
    names
}

fn main() -> Result<()> {
    let Some(mut report) = Report::from_arguments()? else { return Ok(()) };

    let (guest_fs, native_fs) = (guest_fs::names(), vfs::names());
    let machines = ONE.iter().chain(&BOOT).chain(&output::NAMES).chain(&snapshots::NAMES);
    let machines = machines.chain(&files::NAMES).chain(&net::NAMES);
    if report.wants_any(machines) || report.wants_any(&guest_fs) {
        // Fetches what is missing, so that no measurement contains a download.
        drop(Source::busybox()?);
        cc::machine::boot::provider::Provider::new().kernel(&|_| {})?;
    }
    if report.wants_any(&ONE) {
        one_instance(&mut report)?;
    }
    if report.wants_any(&BOOT) {
        boots(&mut report)?;
    }
    if report.wants_any(&output::NAMES) {
        output::measure(&mut report)?;
    }
    if report.wants_any(&backends::NAMES) {
        backends::measure(&mut report)?;
    }
    if report.wants_any(&snapshots::NAMES) {
        snapshots::measure(&mut report)?;
    }
    if report.wants_any(&files::NAMES) {
        files::measure(&mut report)?;
    }
    if report.wants_any(&net::NAMES) {
        net::measure(&mut report)?;
    }
    if report.wants_any(&guest_fs) {
        guest_fs::measure(&mut report)?;
    }
    if report.wants_any(&native_fs) {
        vfs::measure(&mut report, &pull::target())?;
    }
    if report.wants(image::NAME) {
        image::measure(&mut report, &pull::target())?;
    }
    if report.wants_any(&PULL) {
        match pull::figures() {
            Ok(figures) => {
                report.add("pull.mb_s", figures.ours, "MB/s");
                report.add("pull.vs_skopeo_umoci", figures.ours / figures.skopeo_and_umoci, "×");
            }
            Err(why) => report.note(&format!("pull is left out: {why}")),
        }
    }
    Ok(())
}

/// What is measured on a machine that runs already.
fn one_instance(report: &mut Report) -> Result<()> {
    let before = host::memory()?;
    let instance = Instance::new(Source::busybox()?)?;
    expect(instance.command("echo").arg("ready").output()?.stdout, b"ready\n")?;
    let after = host::memory()?;
    report.add("instance.rss_mib", (after.own as f64 - before.own as f64) / f64::from(1 << 20), "MiB");

    if report.wants("exec.true_ms") {
        let mut times = Vec::new();
        for _ in 0..COMMANDS {
            let start = Instant::now();
            let out = instance.command("true").output()?;
            times.push(milliseconds(start.elapsed()));
            if !out.status.success() {
                return Err(format!("true: {:?}", out.status).into());
            }
        }
        report.add("exec.true_ms", median(times), "ms");
    }
    if report.wants("exec.parallel_32_ms") {
        let mut times = Vec::new();
        for _ in 0..5 {
            let start = Instant::now();
            let begin = |_| instance.command("true").stdin(Stdio::null()).spawn();
            let children: Vec<_> = (0..PARALLEL).map(begin).collect::<std::io::Result<_>>()?;
            for mut child in children {
                child.wait()?;
            }
            times.push(milliseconds(start.elapsed()));
        }
        report.add("exec.parallel_32_ms", median(times), "ms");
    }
    if report.wants("soft.mips") {
        report.add("soft.mips", compute(&instance)?, "M instr/s");
    }
    if report.wants("idle.cpu_percent") {
        // Let the guest finish what the commands left it to do.
        std::thread::sleep(Duration::from_secs(2));
        let (cpu, start) = (host::cpu_time()?, Instant::now());
        std::thread::sleep(IDLE);
        let used = host::cpu_time()?.saturating_sub(cpu);
        report.add("idle.cpu_percent", 100.0 * used.as_secs_f64() / start.elapsed().as_secs_f64(), "%");
    }
    instance.close()?;
    Ok(())
}

/// Million guest instructions a second over the compute loop: the machine's own count over wall time,
/// with starting the program and fetching its result.
fn compute(instance: &Instance) -> Result<f64> {
    const PATH: &str = "/tmp/compute";
    put(instance, PATH, &program::compute())?;
    let mut rates = Vec::new();
    for _ in 0..LOOPS {
        let ((out, time), instructions) = counted(instance, || {
            let start = Instant::now();
            Ok((instance.command(PATH).output()?, start.elapsed()))
        })?;
        expect(out.stdout, &program::compute_result().to_le_bytes())?;
        rates.push(instructions as f64 / time.as_secs_f64() / 1e6);
    }
    Ok(median(rates))
}

/// Writes a program into the guest.
fn put(instance: &Instance, path: &str, program: &[u8]) -> Result<()> {
    let script = format!("cat > {path} && chmod +x {path}");
    let mut child = instance.command("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn()?;
    child.stdin.take().ok_or("no stdin")?.write_all(program)?;
    if !child.wait()?.success() {
        return Err("the program could not be put into the guest".into());
    }
    Ok(())
}

/// Does something and gives the guest instructions that were executed meanwhile.
fn counted<T>(instance: &Instance, work: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
    let count = || -> Result<u64> {
        instance.pause()?;
        let n = instance.instructions().ok_or("the backend does not count instructions")?;
        instance.resume()?;
        Ok(n)
    };
    let from = count()?;
    let done = work()?;
    Ok((done, count()? - from))
}

/// Boots, ours and QEMU's in turn so that both have the same neighbours on the host.
fn boots(report: &mut Report) -> Result<()> {
    let qemu = match report.wants("boot.vs_qemu_tcg") {
        true => match qemu::Qemu::find() {
            Ok(qemu) => Some(qemu),
            Err(why) => {
                report.note(&format!("boot.vs_qemu_tcg is left out: {why}"));
                None
            }
        },
        false => None,
    };
    let (mut ours, mut theirs, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..BOOTS {
        let start = Instant::now();
        let instance = Instance::builder(Source::busybox()?).boot_snapshot(false).start()?;
        instance.pause()?;
        let booted = instance.instructions();
        instance.resume()?;
        expect(instance.command("echo").arg("ready").output()?.stdout, b"ready\n")?;
        ours.push(milliseconds(start.elapsed()));
        if let Some(n) = booted {
            rates.push(n as f64 / instance.timing().boot.as_secs_f64() / 1e6);
        }
        drop(instance);
        if let Some(qemu) = &qemu {
            theirs.push(milliseconds(qemu.boot()?));
        }
    }
    let ours = median(ours);
    if !rates.is_empty() {
        report.add("soft.mips.boot", median(rates), "M instr/s");
    }
    report.add("boot.first_output_ms", ours, "ms");
    if !theirs.is_empty() {
        let theirs = median(theirs);
        report.note(&format!("QEMU's boot to its first output: {theirs:.0} ms (median of {BOOTS})"));
        report.add("boot.vs_qemu_tcg", ours / theirs, "×");
    }
    Ok(())
}

fn expect(found: Vec<u8>, wanted: &[u8]) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(format!("the guest wrote {:?} instead of {:?}", found.escape_ascii(), wanted.escape_ascii()).into())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// What was asked for, and where results go: each is printed as soon as it is known.
struct Report {
    json: bool,
    only: Vec<String>,
    names: Vec<String>,
}

impl Report {
    /// `None` when only help was asked for.
    fn from_arguments() -> Result<Option<Self>> {
        let names = names();
        let mut report = Self { json: false, only: Vec::new(), names: names.clone() };
        for argument in std::env::args().skip(1) {
            match argument.as_str() {
                "--json" => report.json = true,
                // Cargo's own.
                "--bench" => {}
                "-h" | "--help" => {
                    println!("usage: cargo bench --bench machine [-- [--json] [NAME or its beginning]…]");
                    println!("names: {}", names.join(" "));
                    return Ok(None);
                }
                name if names.iter().any(|n| n.starts_with(name)) => report.only.push(argument),
                other => return Err(format!("{other}: not among {}", names.join(" ")).into()),
            }
        }
        let profile = if cfg!(debug_assertions) { "with debug assertions" } else { "release" };
        report.note(&format!("cc {}, {profile}, {}", env!("CARGO_PKG_VERSION"), host::processor()));
        Ok(Some(report))
    }

    fn wants(&self, name: &str) -> bool {
        // A name that is complete means itself only: soft.mips is not soft.mips.boot.
        let named = |asked: &String| {
            asked == name || (!self.names.contains(asked) && name.starts_with(asked.as_str()))
        };
        self.only.is_empty() || self.only.iter().any(named)
    }

    fn wants_any<'a, S: AsRef<str> + 'a>(&self, names: impl IntoIterator<Item = &'a S>) -> bool {
        names.into_iter().any(|name| self.wants(name.as_ref()))
    }

    fn add(&self, name: &str, value: f64, unit: &str) {
        if !self.wants(name) {
            return;
        }
        if self.json {
            println!(r#"{{"name":"{name}","value":{value:.4},"unit":"{unit}"}}"#);
        } else {
            println!("{name:<36} {value:>12.3} {unit}");
        }
    }

    fn note(&self, text: &str) {
        eprintln!("# {text}");
    }
}
