//! Locks between processes, as files.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::super::Error;

/// An exclusive lock. Its file goes with it; the lock also ends with the process.
#[derive(Debug)]
pub(in crate::oci) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock; `None` while somebody has it.
    pub(super) fn try_take(path: &Path) -> Result<Option<Lock>, Error> {
        let failed = Error::store("lock", path);
        loop {
            let file =
                OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(&failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
            // Who had it before may have removed the file that we opened.
            if is_at(&file, path).map_err(&failed)? {
                return Ok(Some(Lock { path: path.to_owned(), _file: file }));
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether `path` still names this open file.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = same_file::Handle::from_file(file.try_clone()?)?;
    match same_file::Handle::from_path(path) {
        Ok(there) => Ok(there == ours),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
