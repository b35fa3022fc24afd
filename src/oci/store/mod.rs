//! The store on disk, shared by all processes of a user.
//!
//! ```text
//! <store>/layers/<diff-id>/{tar,index}   finished layers, never changed again
//! <store>/images/<name>.json             records: reference, platform, manifest, configuration
//! <store>/snapshots/<key>.json           records of snapshots: parent, layers, configuration
//! <store>/work/<diff-id or key>/         what is being fetched, unpacked or written; belongs to who has the lock
//! <store>/locks/<diff-id or key>         the locks
//! ```
//! A layer and a record come into being by one rename after all their bytes are on disk, so a reader needs no lock
//! and a killed writer leaves only work that the next one clears or continues.
//!
//! Whoever uses a layer has its `tar` open with a shared lock, through whatever holds its [`Layer`]. Removing takes
//! that lock exclusively and only then looks whether a record, of an image or a snapshot, names the layer. A record is written by those who have
//! its layers open. So nothing is removed that is in use or about to be named.

mod gc;
mod layers;
mod lock;
mod records;
mod snapshots;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub use gc::Freed;
pub(super) use layers::Work;
pub(super) use lock::Lock;
pub(super) use records::Record;
pub(super) use snapshots::{Directory, SnapshotRecord};

use super::Error;

/// Changes when what is kept changes; another version is another directory.
const FORMAT: &str = "1";

/// The store in one directory, which need not exist yet.
#[derive(Clone, Debug)]
pub(super) struct Store {
    dir: PathBuf,
}

impl Store {
    pub(super) fn at(dir: &Path) -> Store {
        Store { dir: dir.join(FORMAT) }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn layers(&self) -> PathBuf {
        self.dir.join("layers")
    }

    fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    fn locks(&self) -> PathBuf {
        self.dir.join("locks")
    }

    /// Makes the directories.
    pub(super) fn prepare(&self) -> Result<(), Error> {
        for dir in [self.layers(), self.images(), self.work(), self.locks()] {
            fs::create_dir_all(&dir).map_err(Error::store("create the directory", &dir))?;
        }
        Ok(())
    }
}

/// The names in a directory; none if there is no such directory.
fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let failed = Error::store("read the directory", dir);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        // Others remove things meanwhile.
        let Ok(entry) = entry else { continue };
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Makes renames in a directory last.
fn sync_dir(dir: &Path) -> Result<(), Error> {
    // Only Unix lets a directory be opened and synchronised; elsewhere the file system sees to it.
    if cfg!(unix) { File::open(dir).and_then(|dir| dir.sync_all()) } else { Ok(()) }
        .map_err(Error::store("write the directory", dir))
}

/// Writes a file whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = Error::store("write", path);
    let dir = path.parent().unwrap_or(path);
    let mut file = tempfile::Builder::new().prefix(".new").tempfile_in(dir).map_err(&failed)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(&failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    sync_dir(dir)
}
