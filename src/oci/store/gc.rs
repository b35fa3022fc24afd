//! Removing what nobody needs. Never waits for anybody.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

use super::layers::size_below;
use super::lock::is_at;
use super::{Lock, Store, names, sync_dir};
use crate::oci::{Digest, Error};

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Freed {
    /// References whose images are not in the store any more; an image without a name by its digest.
    pub images: Vec<String>,
    /// Layers, with the bytes that each freed.
    pub layers: Vec<(Digest, u64)>,
    /// Bytes of unfinished downloads.
    pub unfinished: u64,
}

impl Freed {
    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|(_, bytes)| bytes).sum::<u64>() + self.unfinished
    }
}

impl Store {
    /// Removes the records that `wanted` picks. Gives their names and the layers they had.
    pub(in crate::oci) fn remove_records(
        &self,
        wanted: impl Fn(&super::Record) -> bool,
    ) -> Result<(Vec<String>, Vec<String>), Error> {
        let (mut removed, mut layers) = (Vec::new(), Vec::new());
        for (path, record) in self.records()? {
            if !wanted(&record) {
                continue;
            }
            match fs::remove_file(&path) {
                Ok(()) => {}
                // Another process was faster.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::store("remove", &path)(e)),
            }
            layers.extend(record.layer_names());
            removed.push(record.reference.clone().unwrap_or_else(|| record.digest.to_string()));
        }
        if !removed.is_empty() {
            sync_dir(&self.images())?;
        }
        Ok((removed, layers))
    }

    /// Removes those of `candidates` that no record names and nobody uses.
    pub(in crate::oci) fn remove_layers(&self, candidates: &[String]) -> Result<Vec<(Digest, u64)>, Error> {
        // First the locks, then the records: who names a layer has it open until the record is there.
        let mut locked: Vec<(String, File)> = Vec::new();
        let candidates: HashSet<&String> = candidates.iter().collect();
        for name in candidates {
            if let Some(tar) = lock_exclusive(&self.layers().join(name).join("tar"))? {
                locked.push((name.clone(), tar));
            }
        }
        let mut named = HashSet::new();
        for (_, record) in self.records()? {
            named.extend(record.layer_names());
        }
        for record in self.snapshot_records()? {
            named.extend(record.layers.iter().map(Digest::file_name));
        }
        let mut freed = Vec::new();
        for (name, tar) in locked {
            if named.contains(&name) {
                continue;
            }
            let Some(digest) = Digest::from_file_name(&name) else { continue };
            // Out of the way by one rename, so that no half of a layer is ever found.
            let Some(lock) = Lock::try_take(&self.locks().join(&name))? else { continue };
            let size = self.layer_size(&name);
            let aside = self.work().join(&name);
            let _ = fs::remove_dir_all(&aside);
            let place = self.layers().join(&name);
            fs::rename(&place, &aside).map_err(Error::store("remove", &place))?;
            fs::remove_dir_all(&aside).map_err(Error::store("remove", &aside))?;
            drop(lock);
            drop(tar);
            freed.push((digest, size));
        }
        if !freed.is_empty() {
            sync_dir(&self.layers())?;
        }
        freed.sort();
        Ok(freed)
    }

    /// Removes what no image and no snapshot needs: layers that no record names, and downloads that nobody continues.
    pub(in crate::oci) fn prune(&self) -> Result<Freed, Error> {
        self.prepare()?;
        let unfinished = self.remove_work()?;
        for dir in [self.images(), self.snapshots()] {
            for name in names(&dir)?.into_iter().filter(|name| name.starts_with(".new")) {
                // Left by a process that was killed. One that is being written is a second old at most.
                let path = dir.join(name);
                let old = fs::metadata(&path).and_then(|meta| meta.modified()).ok();
                if old.and_then(|at| at.elapsed().ok()).is_some_and(|age| age.as_secs() > 600) {
                    let _ = fs::remove_file(&path);
                }
            }
        }
        let layers = self.remove_layers(&names(&self.layers())?)?;
        Ok(Freed { images: Vec::new(), layers, unfinished })
    }

    fn remove_work(&self) -> Result<u64, Error> {
        let mut freed = 0;
        for name in names(&self.work())? {
            if Digest::from_file_name(&name).is_none() {
                continue;
            }
            let Some(_lock) = Lock::try_take(&self.locks().join(&name))? else { continue };
            let dir = self.work().join(&name);
            let size = size_below(&dir);
            match fs::remove_dir_all(&dir) {
                Ok(()) => freed += size,
                // It was finished before we had the lock.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::store("remove", &dir)(e)),
            }
        }
        for name in names(&self.locks())? {
            // Of a process that was killed; taken and let go, its file goes.
            drop(Lock::try_take(&self.locks().join(&name))?);
        }
        Ok(freed)
    }
}

/// Locks a finished layer's tar against all use; `None` while it is used, or when there is none.
fn lock_exclusive(path: &Path) -> Result<Option<File>, Error> {
    let failed = Error::store("lock", path);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    match file.try_lock() {
        Ok(()) => Ok(is_at(&file, path).map_err(failed)?.then_some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(failed(e)),
    }
}
