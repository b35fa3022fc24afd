//! The buffers of one request as a source of the bytes to write and a sink of the bytes read.

use std::fs::File;

use vm_memory::{Address, GuestAddress};

use crate::memory::GuestRam;
use crate::vfs::{Errno, ReadSink, WriteSource};
use crate::virtio::queue::Chain;

/// The ranges of `buffers` from byte `offset` on, at most `len` bytes in all.
fn ranges(buffers: &[(GuestAddress, u32)], offset: usize, len: usize) -> Vec<(GuestAddress, usize)> {
    let (mut skip, mut left) = (offset, len);
    let mut out: Vec<(GuestAddress, usize)> = Vec::with_capacity(buffers.len().min(len / 4096 + 2));
    for &(start, size) in buffers {
        let size = size as usize;
        if skip >= size {
            skip -= size;
            continue;
        }
        let part = (size - skip).min(left);
        if part == 0 {
            break;
        }
        let Some(start) = start.checked_add(skip as u64) else { break };
        match out.last_mut() {
            // Pages that lie side by side are one range.
            Some((at, n)) if at.checked_add(*n as u64) == Some(start) => *n += part,
            _ => out.push((start, part)),
        }
        (skip, left) = (0, left - part);
    }
    out
}

/// Takes bytes into the writable part of a chain, from `at` on and not beyond `end`.
pub(super) struct Sink<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) chain: &'a Chain,
    pub(super) at: usize,
    pub(super) end: usize,
}

impl ReadSink for Sink<'_> {
    fn data(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.len() > self.end.saturating_sub(self.at) {
            return Err(Errno::EFAULT);
        }
        let n = self.chain.write(self.ram, self.at, bytes).map_err(|_| Errno::EFAULT)?;
        self.at += n;
        if n == bytes.len() { Ok(()) } else { Err(Errno::EFAULT) }
    }

    fn file(&mut self, file: &File, offset: u64, len: usize) -> Result<usize, Errno> {
        if len > self.end.saturating_sub(self.at) {
            return Err(Errno::EFAULT);
        }
        let ranges = ranges(self.chain.writable(), self.at, len);
        let n = self.ram.read_file_at(&ranges, file, offset)?;
        self.at += n;
        Ok(n)
    }
}

/// Gives the bytes of the readable part of a chain, from `at` on and not beyond `end`.
pub(super) struct Source<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) chain: &'a Chain,
    pub(super) at: usize,
    pub(super) end: usize,
}

impl WriteSource for Source<'_> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Errno> {
        if buffer.len() > self.end.saturating_sub(self.at) {
            return Err(Errno::EFAULT);
        }
        let n = self.chain.read(self.ram, self.at, buffer).map_err(|_| Errno::EFAULT)?;
        self.at += n;
        if n == buffer.len() { Ok(()) } else { Err(Errno::EFAULT) }
    }

    fn file(&mut self, file: &File, offset: u64, len: usize) -> Result<usize, Errno> {
        if len > self.end.saturating_sub(self.at) {
            return Err(Errno::EFAULT);
        }
        let ranges = ranges(self.chain.readable(), self.at, len);
        let n = self.ram.write_file_at(&ranges, file, offset)?;
        self.at += n;
        Ok(n)
    }
}
