//! Snapshots on disk, by key.
//!
//! ```text
//! <dir>/lock              held while one is published or removed
//! <dir>/drafts/<random>/  what is being written; whoever has the lock may clear old ones
//! <dir>/<key>/            whole: `state` and `memory`, never changed again
//! ```
//! A reader opens both files and needs no lock: what is removed meanwhile lives on until it closes them. The least
//! recently used go when there are too many.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::SnapshotError;

/// Changes when what is captured, or when, changes its meaning.
const FORMAT: &str = "cc snapshot 1";
/// No `state` file is larger.
const MAX_STATE: u64 = 64 << 20;
/// Base snapshots that are kept; each takes about 100 MB.
const KEPT: usize = 8;
/// What names of drafts outside of a store begin with.
const DRAFT: &str = ".cc-snapshot-";
/// A draft that is older was left by a process that was killed.
const ABANDONED: Duration = Duration::from_secs(600);

/// What a snapshot is of: everything that makes a machine another machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

/// Puts a [`Key`] together.
#[derive(Debug)]
pub struct KeyBuilder(Sha256);

impl Default for KeyBuilder {
    fn default() -> Self {
        Self(Sha256::new())
            .part("format", FORMAT.as_bytes())
            .part("version", env!("CARGO_PKG_VERSION").as_bytes())
            .part("sources", env!("CC_MACHINE_SOURCES").as_bytes())
    }
}

impl KeyBuilder {
    /// Adds something the machine is made of.
    #[must_use]
    pub fn part(mut self, name: &str, value: &[u8]) -> Self {
        for bytes in [name.as_bytes(), value] {
            self.0.update((bytes.len() as u64).to_le_bytes());
            self.0.update(bytes);
        }
        self
    }

    /// The key.
    pub fn build(self) -> Key {
        Key(self.0.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }
}

/// The snapshots in one directory, which need not exist yet.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// A snapshot that is there.
#[derive(Debug)]
pub struct Place {
    dir: PathBuf,
}

/// A snapshot that is being written. It is gone with the value unless published.
#[derive(Debug)]
pub struct Draft {
    dir: tempfile::TempDir,
    /// Held while it is written, so that nobody takes it for one that was left behind.
    _lock: Option<File>,
}

impl Store {
    /// The store in `dir`.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The snapshot of `key`, if there is one.
    pub fn find(&self, key: &Key) -> Option<Place> {
        let dir = self.dir.join(&key.0);
        let used = File::open(dir.join("state")).ok()?;
        // For who is used least; a store that is read-only does without.
        let _ = used.set_modified(SystemTime::now());
        Some(Place { dir })
    }

    /// A place to write a snapshot in.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn draft(&self) -> Result<Draft, SnapshotError> {
        let drafts = self.dir.join("drafts");
        let failed = SnapshotError::io("make a directory for the snapshot");
        fs::create_dir_all(&drafts).map_err(&failed)?;
        Ok(Draft { dir: tempfile::tempdir_in(&drafts).map_err(&failed)?, _lock: None })
    }

    /// Makes `draft` the snapshot of `key`. If another process was faster, its one stays.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn publish(&self, key: &Key, draft: Draft) -> Result<(), SnapshotError> {
        let failed = SnapshotError::io("publish the snapshot");
        let to = self.dir.join(&key.0);
        let _lock = self.lock()?;
        if to.join("state").exists() {
            return Ok(());
        }
        sync_dir(draft.dir.path()).map_err(&failed)?;
        // What is in the way is half of something.
        let _ = fs::remove_dir_all(&to);
        fs::rename(draft.dir.keep(), &to).map_err(&failed)?;
        sync_dir(&self.dir).map_err(&failed)?;
        self.clean(&key.0);
        Ok(())
    }

    /// Removes the snapshot of `key`, such as one that turned out to be damaged.
    pub fn remove(&self, key: &Key) {
        if let Ok(_lock) = self.lock() {
            let _ = fs::remove_dir_all(self.dir.join(&key.0));
        }
    }

    fn lock(&self) -> Result<File, SnapshotError> {
        let failed = SnapshotError::io("lock the snapshots");
        fs::create_dir_all(&self.dir).map_err(&failed)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.dir.join("lock"))
            .map_err(&failed)?;
        file.lock().map_err(&failed)?;
        Ok(file)
    }

    /// Removes drafts that were left behind, and what was used least beyond [`KEPT`]. With the lock held.
    fn clean(&self, new: &str) {
        let age = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
        let entries = |dir: &Path| -> Vec<PathBuf> {
            fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
        };
        let old = SystemTime::now().checked_sub(ABANDONED);
        for draft in entries(&self.dir.join("drafts")) {
            if age(&draft) < old {
                let _ = fs::remove_dir_all(draft);
            }
        }
        let is_key = |name: &str| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
        let mut known: Vec<(SystemTime, PathBuf)> = entries(&self.dir)
            .into_iter()
            .filter(|path| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| is_key(n) && n != new))
            .map(|path| (age(&path.join("state")).unwrap_or(SystemTime::UNIX_EPOCH), path))
            .collect();
        known.sort();
        let surplus = known.len().saturating_sub(KEPT - 1);
        for (_, path) in known.into_iter().take(surplus) {
            let _ = fs::remove_dir_all(path);
        }
    }
}

impl Place {
    /// The snapshot in the directory `dir`, which may not be one.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn open(&self, name: &str) -> Result<File, SnapshotError> {
        File::open(self.dir.join(name)).map_err(SnapshotError::io("open the snapshot"))
    }

    /// Reads a file of it, at most 64 MiB.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn read(&self, name: &str) -> Result<Vec<u8>, SnapshotError> {
        let mut bytes = Vec::new();
        let file = self.open(name)?;
        file.take(MAX_STATE).read_to_end(&mut bytes).map_err(SnapshotError::io("read the snapshot"))?;
        Ok(bytes)
    }
}

impl Draft {
    /// A place to write a snapshot in that will be a directory in `parent`.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn in_directory(parent: &Path) -> Result<Self, SnapshotError> {
        let failed = SnapshotError::io("make a directory for the snapshot");
        fs::create_dir_all(parent).map_err(&failed)?;
        clear_drafts(parent);
        let dir = tempfile::Builder::new().prefix(DRAFT).tempdir_in(parent).map_err(&failed)?;
        let lock = File::open(dir.path()).map_err(&failed)?;
        lock.lock_shared().map_err(&failed)?;
        Ok(Self { dir, _lock: Some(lock) })
    }

    /// Where it is written.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes it the directory `to`, beside it, which must not be there.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn publish_at(self, to: &Path) -> Result<(), SnapshotError> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let failed = SnapshotError::io("publish the snapshot");
        sync_dir(self.dir.path()).map_err(&failed)?;
        renameat_with(CWD, self.dir.path(), CWD, to, RenameFlags::NOREPLACE).map_err(|e| failed(e.into()))?;
        let _ = self.dir.keep();
        to.parent().map_or(Ok(()), sync_dir_entry).map_err(failed)
    }
    pub(super) fn create(&self, name: &str) -> Result<File, SnapshotError> {
        let path = self.dir.path().join(name);
        OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .open(path)
            .map_err(SnapshotError::io("make a file of the snapshot"))
    }

    /// Writes a file of it.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), SnapshotError> {
        let mut file = self.create(name)?;
        file.write_all(bytes).map_err(SnapshotError::io("write the state"))
    }
}

/// Removes drafts in `parent` whose writers were killed.
fn clear_drafts(parent: &Path) {
    let old = SystemTime::now().checked_sub(ABANDONED);
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(DRAFT));
        // A new one may not be locked yet.
        if !ours || entry.metadata().and_then(|m| m.modified()).ok() >= old {
            continue;
        }
        if let Ok(dir) = File::open(entry.path())
            && dir.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Brings all files in `dir`, and their names, to disk.
fn sync_dir(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir_entry(dir)
}

/// Brings the names in `dir` to disk.
fn sync_dir_entry(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}
