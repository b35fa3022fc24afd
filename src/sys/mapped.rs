//! Files mapped into memory for reading.

use std::fs::File;
use std::io;
use std::ops::Deref;

/// A whole file, mapped. Its pages are read when they are touched and shared with every process that maps it.
#[derive(Debug)]
pub(crate) struct MappedFile(memmap2::Mmap);

impl MappedFile {
    /// Maps a file of which the caller knows that nobody shortens or changes it while it is mapped. That holds for
    /// files of our own caches: they are complete before their name exists, and end by losing it.
    ///
    /// # Errors
    /// The host's.
    #[allow(unsafe_code)]
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: read-only mapping; the caller vouches that the file stays as it is.
        unsafe { memmap2::Mmap::map(file) }.map(Self)
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
