//! Directories of the moment.

use std::io;
use std::path::{Path, PathBuf};

use super::{FileSystem, Fs};
use crate::sys::random;

/// Names that are tried before it is given up.
const ATTEMPTS: usize = 100;

/// A directory that is removed with all below it when this is dropped. Made by [`Fs::temp_dir`]; has no twin in std.
#[derive(Debug)]
pub struct TempDir {
    fs: FileSystem,
    path: PathBuf,
}

impl TempDir {
    pub(super) fn new(fs: &FileSystem) -> io::Result<Self> {
        for _ in 0..ATTEMPTS {
            let number = random::u64().ok_or_else(|| io::Error::other("no random numbers"))?;
            let path = fs.temporary().join(format!("cc-{number:016x}"));
            match fs.dir_builder().mode(0o700).create(&path) {
                Ok(()) => return Ok(TempDir { fs: fs.clone(), path }),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets it stay, and says where it is.
    pub fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.path)
    }

    /// Removes it, with an error if that fails.
    pub fn close(mut self) -> io::Result<()> {
        let path = std::mem::take(&mut self.path);
        Fs::remove_dir_all(&self.fs, path)
    }
}

impl AsRef<Path> for TempDir {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            let _ = Fs::remove_dir_all(&self.fs, &self.path);
        }
    }
}
