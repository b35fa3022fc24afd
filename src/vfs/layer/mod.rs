//! Image layers: the uncompressed tar kept whole, and an index over it.
//!
//! [`Index::build`] reads a tar once, strictly, and makes an [`Index`]: every path with its attributes and where its
//! bytes lie. An index is one flat buffer, so it is stored and loaded as it is; [`Index::from_bytes`] checks it whole
//! before anything is believed. A [`Layer`] is an index with its tar and reads file data from there. Nothing is ever
//! unpacked, so no path of a tar ever becomes a path of the host.
//!
//! What a hostile tar can do is be refused, with a [`TarError`] that says where and why.

mod builder;
mod check;
#[cfg(test)]
mod hostile;
mod index;
mod input;
mod pax;
mod tar;
#[cfg(test)]
pub(crate) mod tests;
mod writer;

use std::fs::File;
use std::io;
use std::sync::Arc;

pub(crate) use index::{DirName, Inode, Slot};
pub use index::{Index, IndexError};
pub use tar::{TarError, TarLimits, TarProblem};

use super::io::ReadSink;
use super::{Errno, Result};

/// One layer, ready to be read: an index and the tar it was built from. Cheap to clone, shared by all users.
#[derive(Clone, Debug)]
pub struct Layer {
    index: Arc<Index>,
    tar: Arc<File>,
}

impl Layer {
    /// Joins an index with its tar.
    ///
    /// # Errors
    /// `InvalidData` when the tar's length is not the one the index was built from; the host's errors.
    pub fn new(index: Arc<Index>, tar: File) -> io::Result<Layer> {
        if tar.metadata()?.len() != index.tar_len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the index belongs to a tar of another length",
            ));
        }
        Ok(Layer { index, tar: Arc::new(tar) })
    }

    /// The index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The whole tar, from its beginning.
    pub fn read_tar(&self) -> impl io::Read + use<'_> {
        TarBytes { tar: &self.tar, at: 0 }
    }

    /// The tar.
    pub(crate) fn tar(&self) -> &File {
        &self.tar
    }

    /// Whether both are the same open layer.
    pub(crate) fn is(&self, other: &Layer) -> bool {
        Arc::ptr_eq(&self.tar, &other.tar)
    }

    /// Reads file data of a regular file; the range is cut to the file. Gives the number of bytes.
    pub(crate) fn read(&self, inode: u32, offset: u64, len: usize, sink: &mut dyn ReadSink) -> Result<usize> {
        let node = self.index.inode(inode);
        let len = usize::try_from(node.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(len);
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let rest = len - done;
            match self.index.slot(&node, at) {
                Slot::Data { tar, len } => {
                    let want = rest.min(usize::try_from(len).unwrap_or(usize::MAX));
                    // A tar that has become shorter behind our back must not pass as an end of file.
                    if sink.file(&self.tar, tar, want)? != want {
                        return Err(Errno::EIO);
                    }
                    done += want;
                }
                Slot::Hole { len } => {
                    let want = rest.min(usize::try_from(len).unwrap_or(usize::MAX));
                    sink.zeros(want)?;
                    done += want;
                }
                Slot::End => return Err(Errno::EIO),
            }
        }
        Ok(len)
    }

    /// The first data at or after `offset`, `None` when there is none.
    pub(crate) fn next_data(&self, inode: u32, offset: u64) -> Option<u64> {
        let node = self.index.inode(inode);
        let mut at = offset;
        loop {
            match self.index.slot(&node, at) {
                Slot::Data { .. } => return Some(at),
                Slot::Hole { len } => at = at.checked_add(len)?,
                Slot::End => return None,
            }
        }
    }

    /// The end of the data at `offset`.
    pub(crate) fn next_hole(&self, inode: u32, offset: u64) -> u64 {
        let node = self.index.inode(inode);
        let mut at = offset;
        while let Slot::Data { len, .. } = self.index.slot(&node, at) {
            at = at.saturating_add(len);
        }
        at
    }
}

/// Reads a tar without moving the position that all who have it open share.
struct TarBytes<'a> {
    tar: &'a File,
    at: u64,
}

impl io::Read for TarBytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = super::io::read_at(self.tar, buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
