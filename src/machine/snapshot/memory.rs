//! The memory file: guest RAM in guest-physical order without the hole below 4 GiB, pages of zeros left out.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use super::SnapshotError;
use crate::memory::{self, GuestRam, PAGE_SIZE};
use crate::state::Saved;
use crate::sys::mapped::MappedFile;

/// Most bytes of an extent.
const MAX_EXTENT: u64 = 1 << 20;
const PAGE: usize = PAGE_SIZE as usize;

/// A part of the file that is not zeros.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Extent {
    /// Offset in the file, a multiple of the page size.
    pub(super) offset: u64,
    /// Bytes, a multiple of the page size, at most 1 MiB.
    pub(super) len: u64,
    /// CRC-32 of the bytes.
    pub(super) crc: u32,
}

/// Where memory is something else than zeros.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    /// In ascending order.
    pub(super) extents: Vec<Extent>,
}

impl Saved for Memory {
    const KIND: u16 = 64;
    const VERSION: u16 = 1;
    /// An extent takes some twelve bytes, and a machine with much memory has many.
    const MAX_BYTES: usize = 48 << 20;
}

/// Writes what is in `ram` into the empty `file`, as little as can be.
pub(super) fn write(ram: &GuestRam, file: &File) -> io::Result<Memory> {
    file.set_len(ram.size())?;
    let mut extents = Vec::new();
    let mut chunk = vec![0u8; MAX_EXTENT as usize];
    for (start, offset, len) in pieces(ram) {
        let Some(bytes) = chunk.get_mut(..len) else { break };
        ram.memory().read_slice(bytes, start).map_err(io::Error::other)?;
        write_chunk(bytes, offset, file, &mut extents)?;
    }
    Ok(Memory { extents })
}

/// The used parts of RAM as address, offset in the file and length, each no longer than an extent and within one chunk
/// of that size.
fn pieces(ram: &GuestRam) -> Vec<(GuestAddress, u64, usize)> {
    let used = ram.used();
    let mut pieces = Vec::with_capacity(used.len());
    for (start, offset, len) in memory::layout(ram.size()) {
        for range in &used {
            let (mut at, end) = (range.start.max(offset), range.end.min(offset + len));
            while at < end {
                let next = (at / MAX_EXTENT + 1) * MAX_EXTENT;
                let part = end.min(next) - at;
                pieces.push((GuestAddress(start + (at - offset)), at, part as usize));
                at += part;
            }
        }
    }
    pieces
}

/// Writes the runs of pages in `bytes` that are not zeros.
fn write_chunk(bytes: &[u8], offset: u64, file: &File, extents: &mut Vec<Extent>) -> io::Result<()> {
    let mut run: Option<usize> = None;
    let pages = bytes.len() / PAGE;
    for page in 0..=pages {
        let used = bytes.get(page * PAGE..(page + 1) * PAGE).is_some_and(|p| !is_zero(p));
        match (run, used) {
            (None, true) => run = Some(page),
            (Some(first), false) => {
                let data = bytes.get(first * PAGE..page * PAGE).unwrap_or_default();
                let offset = offset + (first * PAGE) as u64;
                file.write_all_at(data, offset)?;
                extents.push(Extent { offset, len: data.len() as u64, crc: crc32fast::hash(data) });
                run = None;
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_zero(page: &[u8]) -> bool {
    page.chunks_exact(64).all(|c| c.iter().fold(0, |a, b| a | b) == 0)
}

/// Checks that `file` is what `memory` says, for a machine with `size` bytes of RAM.
pub(super) fn verify(file: &File, memory: &Memory, size: u64) -> Result<(), SnapshotError> {
    let bad = SnapshotError::Memory;
    let found = file.metadata().map_err(SnapshotError::io("read the saved memory"))?.len();
    if found != size {
        return Err(bad("it has another size"));
    }
    let mut end = 0;
    for e in &memory.extents {
        let whole = e.offset.is_multiple_of(PAGE_SIZE) && e.len.is_multiple_of(PAGE_SIZE);
        let next = e.offset.checked_add(e.len).filter(|&next| next <= size);
        match next {
            Some(next) if whole && e.offset >= end && (1..=MAX_EXTENT).contains(&e.len) => end = next,
            _ => return Err(bad("its map is inconsistent")),
        }
    }
    let map = MappedFile::new(file).map_err(SnapshotError::io("map the saved memory"))?;
    // Two halves at once: reading is what takes the time.
    let (left, right) = memory.extents.split_at(memory.extents.len() / 2);
    let right_end = left.last().map_or(0, |e| e.offset + e.len);
    let ok = std::thread::scope(|scope| {
        let other = scope.spawn(|| part_is_whole(file, &map, left, 0, right_end));
        let here = part_is_whole(file, &map, right, right_end, size);
        here && other.join().unwrap_or(false)
    });
    if ok { Ok(()) } else { Err(bad("checksums differ")) }
}

/// Whether `extents` are intact, and nothing else lies between `from` and `to`.
fn part_is_whole(file: &File, map: &[u8], extents: &[Extent], from: u64, to: u64) -> bool {
    let mut at = from;
    for e in extents {
        let range = e.offset as usize..(e.offset + e.len) as usize;
        let intact = map.get(range).is_some_and(|bytes| crc32fast::hash(bytes) == e.crc);
        if !intact || !is_hole(file, map, at, e.offset) {
            return false;
        }
        at = e.offset + e.len;
    }
    is_hole(file, map, at, to)
}

/// Whether nothing but zeros lies in the range. Where the file system knows holes, they are not read.
fn is_hole(file: &File, map: &[u8], from: u64, to: u64) -> bool {
    let mut at = from;
    while at < to {
        let data = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) if data < to => data,
            // No data from here on, or only after the range.
            Ok(_) | Err(rustix::io::Errno::NXIO) => return true,
            // The file system cannot tell.
            Err(_) => at,
        };
        let end = match rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(data)) {
            Ok(end) => end.min(to),
            Err(_) => to,
        };
        let zeros = map.get(data as usize..end as usize).is_some_and(|bytes| bytes.iter().all(|&b| b == 0));
        if !zeros || end <= at {
            return zeros && end > at;
        }
        at = end;
    }
    true
}
