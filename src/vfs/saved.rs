//! File systems written into a directory and taken up again, by another process too.
//!
//! Beside the sections that [`crate::state::files`] describes there are
//! ```text
//! data             what was written to files, at the offsets that the sections say
//! layer-<n>.tar    the layers below, each with layer-<n>.index
//! ```
//! A layer is linked where the host can do that, so it takes no room of its own, and stays when its first place goes.
//!
//! What is loaded is checked: a section that contradicts itself, data with another checksum, a layer that is not there
//! are errors, and everything else holds what a file system of this process would.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::layer::{Index, Layer};
use super::{Errno, FileSystem, HostDir, Overlay};
use crate::state::StateError;
use crate::state::files::FileSystem as Saved;

const DATA: &str = "data";

/// Why a saved file system cannot be taken up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The section is not such as a file system can have.
    #[error(transparent)]
    State(#[from] StateError),
    /// What lies beside is damaged.
    #[error("the saved files are damaged: {0}")]
    Damaged(&'static str),
    /// The host's error.
    #[error("cannot open {}", path.display())]
    Io {
        /// What was opened.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The file system has no room for what was saved of it.
    #[error("no room for the saved files")]
    NoRoom(#[source] Errno),
}

pub(super) fn invalid(what: &'static str) -> LoadError {
    LoadError::State(StateError::Invalid { what })
}

/// Where file systems are written to.
#[derive(Debug)]
pub struct Saver {
    dir: PathBuf,
    data: File,
    len: u64,
    layers: Vec<Layer>,
}

impl Saver {
    /// Into the directory `dir`, which has nothing of the kind yet.
    ///
    /// # Errors
    /// The host's.
    pub fn new(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        let data = File::create_new(dir.join(DATA))?;
        Ok(Self { dir, data, len: 0, layers: Vec::new() })
    }

    /// How many layers lie beside by now.
    pub fn layers(&self) -> u32 {
        self.layers.len() as u32
    }

    /// Appends bytes of a file; gives where they lie.
    pub(super) fn data(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let at = self.len;
        self.data.write_all_at(bytes, at)?;
        self.len += bytes.len() as u64;
        Ok(at)
    }

    /// Puts a layer beside, if it is not there; gives its number.
    pub(super) fn layer(&mut self, layer: &Layer) -> io::Result<u32> {
        if let Some(n) = self.layers.iter().position(|known| known.is(layer)) {
            return Ok(n as u32);
        }
        let n = self.layers.len() as u32;
        fs::write(index_path(&self.dir, n), layer.index().as_bytes())?;
        let tar = tar_path(&self.dir, n);
        // A file without a name, or on another file system, cannot be linked.
        let from = format!("/proc/self/fd/{}", layer.tar().as_raw_fd());
        let flags = rustix::fs::AtFlags::SYMLINK_FOLLOW;
        if rustix::fs::linkat(rustix::fs::CWD, from, rustix::fs::CWD, &tar, flags).is_err() {
            copy(layer.tar(), &File::create_new(&tar)?)?;
        }
        self.layers.push(layer.clone());
        Ok(n)
    }
}

fn copy(from: &File, to: &File) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        match from.read_at(&mut buffer, at)? {
            0 => return Ok(()),
            n => {
                to.write_all_at(buffer.get(..n).unwrap_or_default(), at)?;
                at += n as u64;
            }
        }
    }
}

fn index_path(dir: &Path, n: u32) -> PathBuf {
    dir.join(format!("layer-{n}.index"))
}

fn tar_path(dir: &Path, n: u32) -> PathBuf {
    dir.join(format!("layer-{n}.tar"))
}

/// Where file systems are loaded from.
#[derive(Debug)]
pub struct Loader {
    data: File,
    layers: Vec<Layer>,
}

impl Loader {
    /// From the directory `dir` with so many layers.
    ///
    /// # Errors
    /// [`LoadError::Io`], [`LoadError::Damaged`].
    pub fn new(dir: &Path, layers: u32) -> Result<Self, LoadError> {
        let open = |path: PathBuf| File::open(&path).map_err(|source| LoadError::Io { path, source });
        let layers: Result<Vec<Layer>, LoadError> = (0..layers)
            .map(|n| {
                let index = Index::load(open(index_path(dir, n))?)
                    .map_err(|_| LoadError::Damaged("the index of a layer"))?;
                Layer::new(Arc::new(index), open(tar_path(dir, n))?)
                    .map_err(|_| LoadError::Damaged("a layer has another length"))
            })
            .collect();
        Ok(Self { data: open(dir.join(DATA))?, layers: layers? })
    }

    /// The file system that `saved` says.
    ///
    /// # Errors
    /// Any [`LoadError`].
    pub fn file_system(&self, saved: Saved) -> Result<Arc<dyn FileSystem>, LoadError> {
        Ok(match saved {
            Saved::Overlay(upper) => Arc::new(Overlay::load(upper, self)?),
            Saved::Directory(directory) => Arc::new(HostDir::load(&directory)?),
        })
    }

    pub(super) fn layer(&self, n: u32) -> Result<&Layer, LoadError> {
        self.layers.get(n as usize).ok_or(invalid("number of a layer"))
    }

    /// Reads bytes of a file with this CRC-32.
    pub(super) fn data(&self, offset: u64, bytes: &mut [u8], crc: u32) -> Result<(), LoadError> {
        let read = self.data.read_exact_at(bytes, offset);
        match read {
            Ok(()) if crc32fast::hash(bytes) == crc => Ok(()),
            _ => Err(LoadError::Damaged("data of a file")),
        }
    }
}
