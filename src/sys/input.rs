//! Reading a descriptor of this process in a way that another thread can end at any time.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, AsRawFd};

/// A file that is read until its end, or until the waker that came with it is dropped.
#[derive(Debug)]
pub(crate) struct InterruptibleInput {
    file: File,
    wake: PipeReader,
}

impl InterruptibleInput {
    /// Reads `file`; dropping the writer ends that.
    pub(crate) fn new(file: File) -> io::Result<(Self, PipeWriter)> {
        let (wake, waker) = io::pipe()?;
        Ok((InterruptibleInput { file, wake }, waker))
    }

    /// Reads this process's own standard input, past any buffer of [`io::stdin`].
    pub(crate) fn stdin() -> io::Result<(Self, PipeWriter)> {
        Self::new(File::from(io::stdin().as_fd().try_clone_to_owned()?))
    }
}

impl Read for InterruptibleInput {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut entries = [entry(self.wake.as_raw_fd()), entry(self.file.as_raw_fd())];
        loop {
            // SAFETY: poll reads and writes the two entries, whose descriptors we hold open.
            if unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) } >= 0 {
                break;
            }
            let e = io::Error::last_os_error();
            if e.kind() != io::ErrorKind::Interrupted {
                return Err(e);
            }
        }
        if entries[0].revents != 0 { Ok(0) } else { self.file.read(bytes) }
    }
}
