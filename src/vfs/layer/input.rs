//! Where the bytes of a tar come from: a stream, or a file whose data is jumped over.

use std::fs::File;
use std::io::{self, Read};

use crate::vfs::io::read_at;

/// Where the bytes of a tar come from.
pub(super) trait Input {
    /// Fills the buffer as far as there is data.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Skips; `false` when the data ends before.
    fn skip(&mut self, len: u64) -> io::Result<bool>;
    /// Goes to the end of everything; gives how many bytes that were.
    fn drain(&mut self) -> io::Result<u64>;
}

/// A stream, read once.
pub(super) struct Stream<R>(pub(super) R);

impl<R: Read> Input for Stream<R> {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.0.read(&mut buffer[done..]) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn skip(&mut self, len: u64) -> io::Result<bool> {
        Ok(io::copy(&mut (&mut self.0).take(len), &mut io::sink())? == len)
    }

    fn drain(&mut self) -> io::Result<u64> {
        io::copy(&mut self.0, &mut io::sink())
    }
}

/// A file; file data is not read but jumped over.
pub(super) struct Seekable<'a> {
    file: &'a File,
    len: u64,
    at: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
}

impl<'a> Seekable<'a> {
    pub(super) fn new(file: &'a File) -> io::Result<Self> {
        Ok(Seekable { file, len: file.metadata()?.len(), at: 0, buffer: Vec::new(), buffer_at: 0 })
    }
}

impl Input for Seekable<'_> {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            let inside = self.at.checked_sub(self.buffer_at).and_then(|o| usize::try_from(o).ok());
            let ready = inside.and_then(|o| self.buffer.get(o..)).unwrap_or_default();
            if ready.is_empty() {
                self.buffer.resize(4096, 0);
                let n = read_at(self.file, &mut self.buffer, self.at)?;
                self.buffer.truncate(n);
                self.buffer_at = self.at;
                if n == 0 {
                    break;
                }
                continue;
            }
            let n = ready.len().min(buffer.len() - done);
            buffer[done..done + n].copy_from_slice(&ready[..n]);
            done += n;
            self.at += n as u64;
        }
        Ok(done)
    }

    fn skip(&mut self, len: u64) -> io::Result<bool> {
        match self.at.checked_add(len) {
            Some(at) if at <= self.len => {
                self.at = at;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn drain(&mut self) -> io::Result<u64> {
        let rest = self.len.saturating_sub(self.at);
        self.at = self.len;
        Ok(rest)
    }
}
