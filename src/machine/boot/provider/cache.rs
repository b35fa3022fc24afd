//! The cache on disk, shared by all processes of a user.
//!
//! ```text
//! <dir>/lock              held while something is fetched
//! <dir>/apt/              apt's package lists
//! <dir>/drafts/           what is being put together; whoever has the lock clears it
//! <dir>/entries/<name>/   finished: the files and `meta`, never changed again
//! <dir>/wanted/<wanted>   the name of the entry that serves a request
//! ```
//! An entry comes into being by one rename after all its files are on disk, so a reader needs no lock
//! and a killed writer leaves only a draft. An entry whose files have not the lengths `meta` tells is
//! damaged and is as good as absent. A populated cache works read-only.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::BootError;
use super::super::loader::Vmlinux;
use super::super::modules::ModuleStore;
use super::Kernel;

/// Changes when what is kept in an entry changes; older entries are then not found.
const FORMAT: &str = "1";
const META: &str = "meta";

/// The cache in one directory, which need not exist yet.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(super) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The entry that serves `wanted`, if it is there and whole.
    pub(super) fn find(&self, wanted: &str) -> Option<Entry> {
        let name = fs::read_to_string(self.dir.join("wanted").join(wanted)).ok()?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"+-._~".contains(&b);
        if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
            return None;
        }
        Entry::open(self.dir.join("entries").join(name))
    }

    /// Waits until no other process fetches. `waiting` is called once if there is one.
    pub(super) fn lock(&self, waiting: impl FnOnce()) -> Result<Lock, BootError> {
        for dir in ["entries", "wanted"] {
            let dir = self.dir.join(dir);
            fs::create_dir_all(&dir).map_err(cache_error("create a directory", &dir))?;
        }
        let path = self.dir.join("lock");
        let failed = cache_error("lock", &path);
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(&failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                waiting();
                file.lock().map_err(&failed)?;
            }
            Err(fs::TryLockError::Error(e)) => return Err(failed(e)),
        }
        let drafts = self.dir.join("drafts");
        // Left by processes that were killed: whoever makes one has the lock.
        let _ = fs::remove_dir_all(&drafts);
        fs::create_dir_all(&drafts).map_err(cache_error("create a directory", &drafts))?;
        Ok(Lock { dir: self.dir.clone(), drafts, _file: file })
    }
}

/// The right to change the cache. Ends with the value, or with the process.
#[derive(Debug)]
pub(super) struct Lock {
    dir: PathBuf,
    drafts: PathBuf,
    _file: File,
}

impl Lock {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// An empty entry to be filled.
    pub(super) fn draft(&self) -> Result<Draft, BootError> {
        let make = || tempfile::Builder::new().prefix("d").tempdir_in(&self.drafts);
        let dir = make().map_err(cache_error("create a directory", &self.drafts))?;
        let scratch = make().map_err(cache_error("create a directory", &self.drafts))?;
        Ok(Draft { dir, scratch, meta: BTreeMap::new(), name: String::new() })
    }

    /// Makes the draft an entry that serves `wanted`.
    pub(super) fn publish(&self, wanted: &str, draft: Draft) -> Result<Entry, BootError> {
        let Draft { dir, mut meta, name, .. } = draft;
        let from = dir.path().to_owned();
        let mut lengths = String::new();
        for entry in fs::read_dir(&from).map_err(cache_error("read", &from))? {
            let entry = entry.map_err(cache_error("read", &from))?;
            let path = entry.path();
            let failed = cache_error("write", &path);
            let file = File::open(&path).map_err(&failed)?;
            file.sync_all().map_err(&failed)?;
            let len = file.metadata().map_err(&failed)?.len();
            lengths.push_str(&format!("{}:{len} ", entry.file_name().to_string_lossy()));
        }
        meta.insert("format".into(), FORMAT.into());
        meta.insert("files".into(), lengths.trim_end().to_owned());
        let text: String = meta.iter().map(|(k, v)| format!("{k}={v}\n")).collect();
        write_synced(&from.join(META), text.as_bytes())?;
        sync_dir(&from)?;

        let entries = self.dir.join("entries");
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "+-._~".contains(c) { c } else { '_' })
            .collect();
        let to = entries.join(&name);
        if to.exists() && Entry::open(to.clone()).is_none() {
            // Damaged or of an older format: out of the way, under a name that is cleared later.
            let aside = tempfile::Builder::new().prefix("x").tempdir_in(&self.drafts);
            let aside = aside.map_err(cache_error("create a directory", &self.drafts))?;
            fs::rename(&to, aside.path().join("old")).map_err(cache_error("replace", &to))?;
        }
        if !to.exists() {
            fs::rename(&from, &to).map_err(cache_error("publish", &to))?;
            sync_dir(&entries)?;
        }
        let pointer = self.drafts.join(wanted);
        write_synced(&pointer, name.as_bytes())?;
        let place = self.dir.join("wanted").join(wanted);
        fs::rename(&pointer, &place).map_err(cache_error("publish", &place))?;
        sync_dir(&self.dir.join("wanted"))?;
        Entry::open(to.clone()).ok_or_else(|| {
            cache_error("read back", &to)(io::Error::other("the entry just written is not whole"))
        })
    }
}

/// An entry that is being put together. Vanishes when dropped without being published.
#[derive(Debug)]
pub(super) struct Draft {
    dir: tempfile::TempDir,
    scratch: tempfile::TempDir,
    meta: BTreeMap<String, String>,
    name: String,
}

impl Draft {
    /// A directory for things that do not become part of the entry.
    pub(super) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Names the entry: kind, origin and version, so that equal names have equal content.
    pub(super) fn set_name(&mut self, name: String) {
        self.name = name;
    }

    /// Notes something about the entry.
    pub(super) fn note(&mut self, key: &str, value: &str) {
        self.meta.insert(key.to_owned(), value.replace('\n', " "));
    }

    /// Creates a file of the entry.
    pub(super) fn create(&self, name: &str) -> Result<File, BootError> {
        let path = self.dir.path().join(name);
        // Read as well, so that an archive can be looked at again.
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(cache_error("create", &path))
    }

    /// Writes a whole file of the entry.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), BootError> {
        let path = self.dir.path().join(name);
        self.create(name)?.write_all(bytes).map_err(cache_error("write", &path))
    }
}

/// A finished entry.
#[derive(Debug)]
pub(super) struct Entry {
    dir: PathBuf,
    meta: BTreeMap<String, String>,
}

impl Entry {
    fn open(dir: PathBuf) -> Option<Self> {
        let mut text = String::new();
        File::open(dir.join(META)).ok()?.take(64 << 10).read_to_string(&mut text).ok()?;
        let meta: BTreeMap<String, String> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        if meta.get("format").map(String::as_str) != Some(FORMAT) {
            return None;
        }
        for file in meta.get("files")?.split(' ') {
            let (name, len) = file.rsplit_once(':')?;
            if fs::metadata(dir.join(name)).ok()?.len() != len.parse::<u64>().ok()? {
                return None;
            }
        }
        Some(Self { dir, meta })
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn note(&self, key: &str) -> String {
        self.meta.get(key).cloned().unwrap_or_default()
    }

    /// The release name, of a kernel.
    pub(super) fn release(&self) -> String {
        self.note("release")
    }

    pub(super) fn kernel(&self) -> Result<Kernel, BootError> {
        let release = self.release();
        let archive = self.file("modules.tar");
        let modules = File::open(&archive)
            .and_then(|file| ModuleStore::from_archive(file, &release))
            .map_err(cache_error("read", &archive))?;
        Ok(Kernel {
            origin: self.note("origin"),
            vmlinux: Vmlinux::File(self.file("vmlinux")),
            modules: Arc::new(modules),
            release,
        })
    }
}

/// Makes a [`BootError::Cache`] of an I/O error.
pub(super) fn cache_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> BootError + use<> {
    let path = path.to_owned();
    move |source| BootError::Cache { action, path: path.clone(), source }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), BootError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(cache_error("write", path))
}

fn sync_dir(path: &Path) -> Result<(), BootError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(cache_error("write", path))
}
