//! How fast the file systems are on the host, without a machine: called directly, and mounted through `/dev/fuse`.
//!
//! The same work runs on any directory, so that the host's own file system and other FUSE servers can be compared.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek as _, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;

use cc::vfs::{
    Caller, FileSystem, HostDir, HostDirOptions, Limits, Name, NodeId, Overlay, WriteSource, open,
};

#[path = "../../examples/vfs_mount/convert.rs"]
mod convert;
#[path = "../../examples/vfs_mount/served.rs"]
mod served;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

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
