//! Finished layers, and the places where they are put together.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lock::is_at;
use super::{Lock, Store, sync_dir};
use crate::oci::{Digest, Error};
use crate::vfs::layer::{Index, IndexError, Layer, TarLimits};

const TAR: &str = "tar";
const INDEX: &str = "index";
/// Nobody has a finished layer locked exclusively for longer than removing takes.
const PATIENCE: Duration = Duration::from_secs(10);

impl Store {
    /// Opens a finished layer; `None` if there is none. While anything of it lives it is not removed. Costs the same
    /// for every size: the index is mapped.
    pub(in crate::oci) fn open_layer(&self, diff: &Digest) -> Result<Option<Layer>, Error> {
        let dir = self.layers().join(diff.file_name());
        let Some(tar) = open_shared(&dir.join(TAR))? else { return Ok(None) };
        let index = match open_index(&dir.join(INDEX))? {
            Some(index) if Some(index.tar_len()) == tar.metadata().ok().map(|meta| meta.len()) => index,
            // From another version of this crate, or damaged: the tar tells all there is to know.
            _ => match reindex(&dir, diff)? {
                Some(index) => index,
                None => return Ok(None),
            },
        };
        let failed = Error::store("open the layer", &dir);
        Layer::new(Arc::new(index), tar).map(Some).map_err(failed)
    }

    /// The tar of a finished layer, for somebody who has it open.
    pub(in crate::oci) fn tar_path(&self, diff: &Digest) -> PathBuf {
        self.layers().join(diff.file_name()).join(TAR)
    }

    /// The bytes that a finished layer takes on disk.
    pub(super) fn layer_size(&self, diff: &str) -> u64 {
        size_below(&self.layers().join(diff))
    }

    /// Takes the right to put a layer together; `None` while another has it.
    pub(in crate::oci) fn try_work(&self, diff: &Digest) -> Result<Option<Work>, Error> {
        let name = diff.file_name();
        let Some(lock) = Lock::try_take(&self.locks().join(&name))? else { return Ok(None) };
        let dir = self.work().join(&name);
        fs::create_dir_all(&dir).map_err(Error::store("create the directory", &dir))?;
        let work = Work { dir, place: self.layers().join(&name), diff: diff.clone(), _lock: lock };
        work.clear_drafts()?;
        Ok(Some(work))
    }

    /// Takes the right to publish a layer; `None` while another has it.
    pub(in crate::oci) fn try_lock(&self, diff: &Digest) -> Result<Option<Lock>, Error> {
        Lock::try_take(&self.locks().join(diff.file_name()))
    }

    /// How much of a layer another process has on disk by now.
    pub(in crate::oci) fn work_size(&self, diff: &Digest) -> u64 {
        size_below(&self.work().join(diff.file_name()))
    }
}

/// The place where one layer is put together, and the right to do so.
#[derive(Debug)]
pub(in crate::oci) struct Work {
    dir: PathBuf,
    place: PathBuf,
    diff: Digest,
    _lock: Lock,
}

impl Work {
    fn draft(&self) -> PathBuf {
        self.dir.join("draft")
    }

    fn clear_drafts(&self) -> Result<(), Error> {
        for name in ["draft", "old"] {
            let path = self.dir.join(name);
            match fs::remove_dir_all(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::store("remove", &path)(e)),
            }
        }
        Ok(())
    }

    /// The compressed layer as far as it is here: kept so that it need not be fetched again after a failure.
    pub(in crate::oci) fn partial(&self, blob: &Digest) -> Result<(File, PathBuf), Error> {
        let path = self.dir.join(format!("blob-{}", blob.file_name()));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        Ok((file.map_err(Error::store("open", &path))?, path))
    }

    /// A new, empty tar with a lock on it that will keep the layer.
    pub(in crate::oci) fn create_tar(&self) -> Result<(File, PathBuf), Error> {
        self.clear_drafts()?;
        let dir = self.draft();
        fs::create_dir(&dir).map_err(Error::store("create the directory", &dir))?;
        let path = dir.join(TAR);
        let failed = Error::store("create", &path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).map_err(&failed)?;
        file.lock_shared().map_err(&failed)?;
        Ok((file, path))
    }

    /// Makes the tar and its index the finished layer.
    pub(in crate::oci) fn publish(&self, tar: File, index: Index) -> Result<Layer, Error> {
        self.publish_at(tar, index, &self.place)
    }

    /// Makes the tar and its index the finished layer `diff`, which became known only with the tar. The caller has that
    /// layer's lock.
    pub(in crate::oci) fn publish_as(
        &self,
        tar: File,
        index: Index,
        store: &Store,
        diff: &Digest,
    ) -> Result<Layer, Error> {
        self.publish_at(tar, index, &store.layers().join(diff.file_name()))
    }

    fn publish_at(&self, tar: File, index: Index, place: &Path) -> Result<Layer, Error> {
        let draft = self.draft();
        let path = draft.join(INDEX);
        let write = || {
            let mut file = File::create_new(&path)?;
            file.write_all(index.as_bytes())?;
            file.sync_all()
        };
        write().map_err(Error::store("write", &path))?;
        tar.sync_all().map_err(Error::store("write", &draft.join(TAR)))?;
        sync_dir(&draft)?;
        let failed = Error::store("publish", place);
        if place.exists() {
            // Whatever it is, it could not be opened.
            fs::rename(place, self.dir.join("old")).map_err(&failed)?;
        }
        fs::rename(&draft, place).map_err(&failed)?;
        if let Some(layers) = place.parent() {
            sync_dir(layers)?;
        }
        drop(index);
        // The written index instead of the one in memory: mapped, it is shared and can be dropped.
        let index = open_index(&place.join(INDEX))?.ok_or_else(|| {
            Error::store("read back", place)(io::Error::other("the index just written is damaged"))
        })?;
        let layer = Layer::new(Arc::new(index), tar).map_err(failed)?;
        let _ = fs::remove_dir_all(&self.dir);
        Ok(layer)
    }

    /// Gives up on the layer and on what was fetched of it.
    pub(in crate::oci) fn discard(self) {
        self.clear();
    }

    /// Removes what was put together, but keeps the right.
    pub(in crate::oci) fn clear(&self) {
        let _ = fs::remove_dir_all(&self.dir);
    }

    /// Gives up on what was unpacked, so that it takes no space, but keeps what was fetched.
    pub(in crate::oci) fn keep_partial(self) {
        let _ = self.clear_drafts();
        // Fails, as it should, when something was fetched.
        let _ = fs::remove_dir(&self.dir);
    }

    /// What the layer must unpack to.
    pub(in crate::oci) fn diff(&self) -> &Digest {
        &self.diff
    }
}

/// Opens a tar of a finished layer and locks it against removal.
fn open_shared(path: &Path) -> Result<Option<File>, Error> {
    let failed = Error::store("open", path);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        match file.try_lock_shared() {
            Ok(()) if is_at(&file, path).map_err(&failed)? => return Ok(Some(file)),
            // Removed between opening and locking: look again.
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Busy { what: format!("the layer {}", path.display()) });
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
    }
}

fn open_index(path: &Path) -> Result<Option<Index>, Error> {
    let failed = Error::store("open", path);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    match Index::map(&file) {
        Ok(index) => Ok(Some(index)),
        Err(IndexError::Io(e)) => Err(failed(e)),
        Err(_) => Ok(None),
    }
}

/// Builds the index of a finished layer again; `None` when the tar is not what it was either.
fn reindex(dir: &Path, diff: &Digest) -> Result<Option<Index>, Error> {
    let path = dir.join(TAR);
    // Opened again for a cursor of its own; what is locked stays at its path.
    let file = File::open(&path).map_err(Error::store("open", &path))?;
    let mut reader = io::BufReader::with_capacity(1 << 20, Hashing { file, hasher: diff.hasher() });
    let index = match Index::build(&mut reader, TarLimits::default()) {
        Ok(index) => index,
        Err(e) => {
            tracing::warn!(path = %path.display(), error = %e, "a layer in the store is damaged");
            return Ok(None);
        }
    };
    if reader.into_inner().hasher.finish() != *diff {
        tracing::warn!(path = %path.display(), "a layer in the store is damaged");
        return Ok(None);
    }
    match super::write_whole(&dir.join(INDEX), index.as_bytes()) {
        Ok(()) => {}
        // A store that cannot be written is still good for reading.
        Err(Error::Store { source, .. }) if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {}
        Err(Error::Store { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {}
        Err(e) => return Err(e),
    }
    Ok(Some(index))
}

struct Hashing {
    file: File,
    hasher: crate::oci::digest::Hasher,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.hasher.update(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}

/// Bytes of the files in a directory and the directories in it.
pub(super) fn size_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_below(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
