//! Hosts where a blocked read cannot be ended by another thread: nothing is read at all.

use std::fs::File;
use std::io::{self, PipeWriter, Read};

/// Never made on this host.
#[derive(Debug)]
pub(crate) struct InterruptibleInput(std::convert::Infallible);

impl InterruptibleInput {
    /// [`io::ErrorKind::Unsupported`].
    pub(crate) fn new(_: File) -> io::Result<(Self, PipeWriter)> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// [`io::ErrorKind::Unsupported`].
    pub(crate) fn stdin() -> io::Result<(Self, PipeWriter)> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Read for InterruptibleInput {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        match self.0 {}
    }
}
