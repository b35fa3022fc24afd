//! How fast the file systems are on the host, without a machine: called directly, and mounted through `/dev/fuse`.
//!
//! The same work runs on any directory, so that the host's own file system and other FUSE servers can be compared.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek as _, SeekFrom, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cc::vfs::{
    Caller, FileSystem, HostDir, HostDirOptions, Limits, Name, NodeId, Overlay, WriteSource, open,
};

#[path = "../../examples/vfs_mount/convert.rs"]
mod convert;
#[path = "../../examples/vfs_mount/served.rs"]
mod served;

use crate::{Report, Result, median};

/// Bytes of the large file.
const LARGE: usize = 256 << 20;
/// Bytes of one transfer.
const PIECE: usize = 1 << 20;
/// Small files, of 100 bytes each.
const FILES: usize = 10_000;
const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 1 };

/// What one file system does in a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Sequential writing of a new file, in MiB.
    pub(crate) write_mib: f64,
    /// Sequential reading of it without the kernel's cache, in MiB.
    pub(crate) read_mib: f64,
    /// Files made, written and closed.
    pub(crate) create: f64,
    /// Files looked at by name.
    pub(crate) stat: f64,
    /// Files removed.
    pub(crate) unlink: f64,
}

impl Figures {
    fn array(self) -> [f64; 5] {
        [self.write_mib, self.read_mib, self.create, self.stat, self.unlink]
    }
}

/// The file systems that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An overlay over nothing, all data in memory.
    Memory,
    /// The same with all data in its file.
    Spilled,
    /// A host directory.
    Dir,
    /// An overlay over an empty host directory.
    Over,
}

impl Kind {
    /// Makes it, on the directory `scratch` as far as it needs one.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn make(self, scratch: &Path) -> Result<Box<dyn FileSystem>> {
        let limits = |memory| Limits { memory, spill_dir: Some(scratch.into()), ..Limits::default() };
        Ok(match self {
            Kind::Memory => Box::new(Overlay::memory(limits(1 << 30))),
            Kind::Spilled => Box::new(Overlay::memory(limits(0))),
            Kind::Dir => Box::new(HostDir::new(scratch, HostDirOptions::default())?),
            Kind::Over => {
                Box::new(Overlay::over_directory(scratch, HostDirOptions::default(), limits(1 << 30))?)
            }
        })
    }
}

fn rate(count: f64, body: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    body()?;
    Ok(count / start.elapsed().as_secs_f64())
}

/// Measures the directory `at`, whatever serves it.
///
/// # Errors
/// The host's.
pub(crate) fn on_directory(at: &Path) -> Result<Figures> {
    let mib = (LARGE / PIECE) as f64;
    let mut buffer = vec![7; PIECE];
    let large = at.join("large");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&large)?;
    let write_mib = rate(mib, || Ok((0..LARGE / PIECE).try_for_each(|_| file.write_all(&buffer))?))?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    file.seek(SeekFrom::Start(0))?;
    let read_mib = rate(mib, || Ok((0..LARGE / PIECE).try_for_each(|_| file.read_exact(&mut buffer))?))?;
    drop(file);
    fs::remove_file(large)?;

    let dir = at.join("small");
    fs::create_dir(&dir)?;
    let names: Vec<_> = (0..FILES).map(|i| dir.join(format!("file-{i}"))).collect();
    let each = |body: &dyn Fn(&Path) -> std::io::Result<()>| {
        rate(FILES as f64, || Ok(names.iter().try_for_each(|name| body(name))?))
    };
    let create = each(&|name| File::create_new(name)?.write_all(&[1; 100]))?;
    let stat = each(&|name| fs::symlink_metadata(name).map(drop))?;
    let unlink = each(&|name| fs::remove_file(name))?;
    fs::remove_dir(dir)?;
    Ok(Figures { write_mib, read_mib, create, stat, unlink })
}

/// Measures a file system mounted at a directory below `scratch`. Needs root and `/dev/fuse`.
///
/// # Errors
/// The host's, where it cannot be mounted above all.
pub(crate) fn mounted(kind: Kind, scratch: &Path) -> Result<Figures> {
    let (at, data) = (scratch.join("mnt"), scratch.join("data"));
    fs::create_dir_all(&at)?;
    fs::create_dir_all(&data)?;
    let session = served::serve(kind.make(&data)?, &at, 1)?;
    let figures = on_directory(&at);
    session.umount_and_join()?;
    figures
}

/// Takes what is read and does nothing with it.
struct Nowhere(Vec<u8>);

impl cc::vfs::ReadSink for Nowhere {
    fn data(&mut self, bytes: &[u8]) -> cc::vfs::Result<()> {
        self.0.clear();
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Gives the same bytes again and again.
struct Sevens;

impl WriteSource for Sevens {
    fn fill(&mut self, buffer: &mut [u8]) -> cc::vfs::Result<()> {
        buffer.fill(7);
        Ok(())
    }
}

/// Measures a file system by direct calls, as a device of a machine makes them.
///
/// # Errors
/// Those of the file system.
pub(crate) fn direct(kind: Kind, scratch: &Path) -> Result<Figures> {
    let fs = kind.make(scratch)?;
    let mib = (LARGE / PIECE) as f64;
    let name = Name::new(b"large")?;
    let (large, opened) = fs.create(&ROOT, NodeId::ROOT, name, 0o644, open::RDWR)?;
    let pieces = || (0..LARGE / PIECE).map(|i| (i * PIECE) as u64);
    let write_mib = rate(mib, || {
        for at in pieces() {
            fs.write(large.node, opened.handle, at, PIECE as u32, &mut Sevens, false)?;
        }
        Ok(())
    })?;
    let mut sink = Nowhere(Vec::new());
    let read_mib = rate(mib, || {
        for at in pieces() {
            fs.read(large.node, opened.handle, at, PIECE as u32, &mut sink)?;
        }
        Ok(())
    })?;
    fs.release(large.node, opened.handle);
    fs.unlink(&ROOT, NodeId::ROOT, name)?;
    fs.forget(large.node, 1);

    let dir = fs.mkdir(&ROOT, NodeId::ROOT, Name::new(b"small")?, 0o755)?.node;
    let names: Vec<String> = (0..FILES).map(|i| format!("file-{i}")).collect();
    let each = |body: &dyn Fn(Name<'_>) -> Result<()>| {
        rate(FILES as f64, || names.iter().try_for_each(|name| body(Name::new(name.as_bytes())?)))
    };
    let create = each(&|name| {
        let (entry, opened) = fs.create(&ROOT, dir, name, 0o644, open::RDWR)?;
        fs.write(entry.node, opened.handle, 0, 100, &mut Sevens, false)?;
        fs.release(entry.node, opened.handle);
        fs.forget(entry.node, 1);
        Ok(())
    })?;
    let stat = each(&|name| {
        let entry = fs.lookup(&ROOT, dir, name)?;
        fs.forget(entry.node, 1);
        Ok(())
    })?;
    let unlink = each(&|name| Ok(fs.unlink(&ROOT, dir, name)?))?;
    fs.rmdir(&ROOT, NodeId::ROOT, Name::new(b"small")?)?;
    Ok(Figures { write_mib, read_mib, create, stat, unlink })
}

/// Rounds; the figures are medians of the ratios within a round.
const ROUNDS: usize = 3;
const WHAT: [&str; 5] = ["write", "read", "create", "stat", "unlink"];
/// The overlay in memory, without a kernel between.
const DIRECT: [&str; 5] = [
    "fs.direct.write_mb_s",
    "fs.direct.read_mb_s",
    "fs.direct.create_per_s",
    "fs.direct.stat_per_s",
    "fs.direct.unlink_per_s",
];
const KINDS: [(&str, Kind); 4] =
    [("memory", Kind::Memory), ("spilled", Kind::Spilled), ("dir", Kind::Dir), ("over", Kind::Over)];
/// libfuse's example, as Debian's libfuse3-dev brings it.
const PASSTHROUGH: &str = "/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c";

/// All names of figures.
pub(crate) fn names() -> Vec<String> {
    let servers = KINDS.iter().map(|(name, _)| *name).chain(["passthrough_ll"]);
    let mounted = servers.flat_map(|server| WHAT.map(|what| format!("fs.native.{server}.{what}_vs_host")));
    mounted.chain(DIRECT.map(str::to_owned)).collect()
}

/// Measures all of them in turns, in a directory below the target directory.
///
/// # Errors
/// What the host or a file system says.
pub(crate) fn measure(report: &mut Report, target: &Path) -> Result<()> {
    let base = target.join("tmp");
    fs::create_dir_all(&base)?;
    let scratch = |name: &str| -> Result<_> { Ok(tempfile::Builder::new().prefix(name).tempdir_in(&base)?) };
    let wants = |prefix: &str| names().iter().any(|name| name.starts_with(prefix) && report.wants(name));

    if wants("fs.direct.") {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            rounds.push(direct(Kind::Memory, scratch("direct")?.path())?.array());
        }
        for (n, name) in DIRECT.into_iter().enumerate() {
            let (scale, unit) = if n < 2 { (1.048_576, "MB/s") } else { (1.0, "/s") };
            report.add(name, scale * median(rounds.iter().map(|r| r[n]).collect()), unit);
        }
    }
    if !wants("fs.native.") {
        return Ok(());
    }
    if let Err(why) = fs::File::open("/dev/fuse") {
        report.note(&format!("fs.native is left out: /dev/fuse: {why}"));
        return Ok(());
    }
    let tools = scratch("tools")?;
    let mut servers: Vec<(&str, Option<Kind>)> = Vec::new();
    servers.extend(KINDS.iter().filter(|k| wants(&format!("fs.native.{}.", k.0))).map(|k| (k.0, Some(k.1))));
    let mut passthrough = None;
    if wants("fs.native.passthrough_ll.") {
        match build_passthrough(tools.path()) {
            Ok(program) => {
                passthrough = Some(program);
                servers.push(("passthrough_ll", None));
            }
            Err(why) => report.note(&format!("fs.native.passthrough_ll is left out: {why}")),
        }
    }
    let mut ratios = vec![Vec::new(); servers.len()];
    let mut hosts = Vec::new();
    for _ in 0..ROUNDS {
        let host = on_directory(scratch("host")?.path())?.array();
        hosts.push(host);
        for ((_, kind), ratios) in servers.iter().zip(&mut ratios) {
            let dir = scratch("mounted")?;
            let figures = match (kind, &passthrough) {
                (Some(kind), _) => mounted(*kind, dir.path())?,
                (None, Some(program)) => passed_through(program, dir.path())?,
                (None, None) => continue,
            };
            ratios.push(std::array::from_fn::<f64, 5, _>(|n| figures.array()[n] / host[n]));
        }
    }
    let host = |n: usize| median(hosts.iter().map(|r| r[n]).collect());
    report.note(&format!(
        "the host itself: {:.0} MiB/s written, {:.0} read, {:.0} creates/s, {:.0} stats/s, {:.0} unlinks/s",
        host(0),
        host(1),
        host(2),
        host(3),
        host(4)
    ));
    for ((server, _), rounds) in servers.iter().zip(&ratios) {
        for (n, what) in WHAT.iter().enumerate() {
            let name = format!("fs.native.{server}.{what}_vs_host");
            report.add(&name, median(rounds.iter().map(|r| r[n]).collect()), "×");
        }
    }
    Ok(())
}

/// Compiles libfuse's server that passes everything on to the host.
fn build_passthrough(dir: &Path) -> Result<std::path::PathBuf> {
    if !Path::new(PASSTHROUGH).exists() {
        return Err(format!("there is no {PASSTHROUGH}").into());
    }
    let flags = Command::new("pkg-config").args(["--cflags", "--libs", "fuse3"]).output()?;
    let program = dir.join("passthrough_ll");
    let mut compile = Command::new("gcc");
    compile.args(["-O2", "-w", PASSTHROUGH, "-o"]).arg(&program);
    compile.args(String::from_utf8(flags.stdout)?.split_ascii_whitespace());
    let out = compile.output()?;
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into());
    }
    Ok(program)
}

/// Measures libfuse's server on a directory below `scratch`, with one thread as ours has.
fn passed_through(program: &Path, scratch: &Path) -> Result<Figures> {
    let (at, data) = (scratch.join("mnt"), scratch.join("data"));
    fs::create_dir_all(&at)?;
    fs::create_dir_all(&data)?;
    let source = format!("source={},cache=auto,allow_other,default_permissions", data.display());
    let child = Command::new(program)
        .arg("-f")
        .arg("-s")
        .arg("-o")
        .arg(source)
        .arg(&at)
        .stdin(Stdio::null())
        .spawn()?;
    let mut server = Server(child, at.clone());
    let unmounted = rustix::fs::stat(scratch)?.st_dev;
    let deadline = Instant::now() + Duration::from_secs(10);
    while rustix::fs::stat(&at)?.st_dev == unmounted {
        if server.0.try_wait()?.is_some() || Instant::now() > deadline {
            return Err("passthrough_ll does not mount".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    on_directory(&at)
}

/// Undoes the mount, which ends the server, however the measurement ends.
struct Server(Child, std::path::PathBuf);

impl Drop for Server {
    fn drop(&mut self) {
        let undone = Command::new("umount").arg(&self.1).stderr(Stdio::null()).status();
        if !undone.is_ok_and(|status| status.success()) {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}
