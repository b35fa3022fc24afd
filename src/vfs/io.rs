//! Byte transport of `read` and `write`, so that a server can move data without a copy of its own.

use std::fs::File;
use std::io;

use super::{Errno, Result};

const BOUNCE: usize = 64 << 10;
const DIRECT: usize = 1 << 20;
static ZEROS: [u8; 4096] = [0; 4096];

/// Takes the bytes of one `read`, in order.
pub trait ReadSink {
    /// Takes `bytes`.
    ///
    /// # Errors
    /// `EFAULT` where the receiver has no room.
    fn data(&mut self, bytes: &[u8]) -> Result<()>;

    /// Takes `len` zero bytes.
    ///
    /// # Errors
    /// As [`data`](ReadSink::data).
    fn zeros(&mut self, mut len: usize) -> Result<()> {
        while len > 0 {
            let n = len.min(ZEROS.len());
            self.data(&ZEROS[..n])?;
            len -= n;
        }
        Ok(())
    }

    /// Takes up to `len` bytes of `file` at `offset`; gives how many, less only at the end of the file.
    /// A sink over guest memory overrides it to read in place.
    ///
    /// # Errors
    /// The host's error from reading, or as [`data`](ReadSink::data).
    fn file(&mut self, file: &File, offset: u64, len: usize) -> Result<usize> {
        let mut buffer = vec![0; len.min(BOUNCE)];
        let mut done = 0;
        while done < len {
            let want = (len - done).min(BOUNCE);
            let n = read_at(file, &mut buffer[..want], offset + done as u64)?;
            if n == 0 {
                break;
            }
            self.data(&buffer[..n])?;
            done += n;
        }
        Ok(done)
    }
}

impl ReadSink for Vec<u8> {
    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.extend_from_slice(bytes);
        Ok(())
    }

    fn zeros(&mut self, len: usize) -> Result<()> {
        self.resize(self.len() + len, 0);
        Ok(())
    }

    fn file(&mut self, file: &File, offset: u64, len: usize) -> Result<usize> {
        let start = self.len();
        let mut done = 0;
        while done < len {
            // In steps, so that a length beyond the end of the file takes no memory.
            let want = (len - done).min(DIRECT);
            self.resize(start + done + want, 0);
            let read = read_at(file, &mut self[start + done..], offset + done as u64);
            done += *read.as_ref().unwrap_or(&0);
            self.truncate(start + done);
            if read? == 0 {
                break;
            }
        }
        Ok(done)
    }
}

/// Gives the bytes of one `write`, in order.
pub trait WriteSource {
    /// Fills `buffer` wholly with the next bytes.
    ///
    /// # Errors
    /// `EFAULT` where the source has fewer.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<()>;

    /// Writes the next `len` bytes to `file` at `offset`; gives how many were written.
    /// A source over guest memory overrides it to write from where the bytes are.
    ///
    /// # Errors
    /// The host's error from writing when nothing was written, or as [`fill`](WriteSource::fill).
    fn file(&mut self, file: &File, offset: u64, len: usize) -> Result<usize> {
        let mut buffer = vec![0; len.min(BOUNCE)];
        let mut done = 0;
        while done < len {
            let want = (len - done).min(BOUNCE);
            self.fill(&mut buffer[..want])?;
            let mut part = 0;
            while part < want {
                match write_at(file, &buffer[part..want], offset + (done + part) as u64) {
                    Ok(0) => return Err(Errno::EIO),
                    Ok(n) => part += n,
                    Err(_) if done + part > 0 => return Ok(done + part),
                    Err(e) => return Err(e.into()),
                }
            }
            done += want;
        }
        Ok(done)
    }
}

impl WriteSource for &[u8] {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        let (head, tail) = self.split_at_checked(buffer.len()).ok_or(Errno::EFAULT)?;
        buffer.copy_from_slice(head);
        *self = tail;
        Ok(())
    }

    fn file(&mut self, file: &File, offset: u64, len: usize) -> Result<usize> {
        let (head, tail) = self.split_at_checked(len).ok_or(Errno::EFAULT)?;
        let mut done = 0;
        while let Some(rest) = head.get(done..).filter(|rest| !rest.is_empty()) {
            match write_at(file, rest, offset + done as u64) {
                Ok(0) => return Err(Errno::EIO),
                Ok(n) => done += n,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e.into()),
            }
        }
        *self = tail;
        Ok(done)
    }
}

/// Reads at an offset without moving a cursor; retries when interrupted.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        #[cfg(unix)]
        let result = std::os::unix::fs::FileExt::read_at(file, buffer, offset);
        #[cfg(windows)]
        let result = std::os::windows::fs::FileExt::seek_read(file, buffer, offset);
        match result {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Writes at an offset without moving a cursor; retries when interrupted.
pub(crate) fn write_at(file: &File, buffer: &[u8], offset: u64) -> io::Result<usize> {
    loop {
        #[cfg(unix)]
        let result = std::os::unix::fs::FileExt::write_at(file, buffer, offset);
        #[cfg(windows)]
        let result = std::os::windows::fs::FileExt::seek_write(file, buffer, offset);
        match result {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Writes the whole of `buffer` at an offset.
pub(crate) fn write_all_at(file: &File, mut buffer: &[u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        let n = write_at(file, buffer, offset)?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        buffer = &buffer[n..];
        offset += n as u64;
    }
    Ok(())
}
