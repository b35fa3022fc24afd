//! Where file data of the upper lives: in memory up to a cap, then in slots of an unlinked file.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::data::{CHUNK, PAGE};
use crate::vfs::io::write_all_at;
use crate::vfs::{Errno, Result};

/// Bounds of the writable upper.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of file data, counted in pages of 4 KiB; beyond it, `ENOSPC`.
    pub bytes: u64,
    /// Files, directories and other nodes made or changed; beyond it, `ENOSPC`.
    pub inodes: u64,
    /// Bytes of names, link targets and extended attributes; beyond it, `ENOSPC`.
    pub metadata: u64,
    /// Bytes of file data kept in memory; what is beyond goes to an unlinked file.
    pub memory: u64,
    /// Directory of the unlinked file; `None` for the host's directory for temporary files.
    pub spill_dir: Option<PathBuf>,
}

impl Default for Limits {
    /// 64 GiB of data, 64 MiB of it in memory, 4 million inodes, 1 GiB of metadata.
    fn default() -> Self {
        Limits { bytes: 64 << 30, inodes: 4 << 20, metadata: 1 << 30, memory: 64 << 20, spill_dir: None }
    }
}

/// Accounting and the spill file.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) limits: Limits,
    pages: AtomicU64,
    memory: AtomicU64,
    inodes: AtomicU64,
    metadata: AtomicU64,
    file: OnceLock<File>,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    free: Vec<u64>,
    next: u64,
}

/// Adds `count` unless the sum is beyond `cap`.
fn take(counter: &AtomicU64, count: u64, cap: u64) -> bool {
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(count).filter(|&sum| sum <= cap)
        })
        .is_ok()
}

fn give(counter: &AtomicU64, count: u64) {
    let _ =
        counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(used.saturating_sub(count)));
}

impl Store {
    pub(super) fn new(limits: Limits) -> Store {
        Store {
            limits,
            pages: AtomicU64::new(0),
            memory: AtomicU64::new(0),
            inodes: AtomicU64::new(0),
            metadata: AtomicU64::new(0),
            file: OnceLock::new(),
            slots: Mutex::default(),
        }
    }

    pub(super) fn take_pages(&self, count: u64) -> Result<()> {
        if take(&self.pages, count, self.limits.bytes / PAGE) { Ok(()) } else { Err(Errno::ENOSPC) }
    }

    pub(super) fn give_pages(&self, count: u64) {
        give(&self.pages, count);
    }

    pub(super) fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    pub(super) fn take_inode(&self) -> Result<()> {
        if take(&self.inodes, 1, self.limits.inodes) { Ok(()) } else { Err(Errno::ENOSPC) }
    }

    /// Counts an inode whose change must not fail, as that of a file being removed.
    pub(super) fn force_inode(&self) {
        self.inodes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn give_inode(&self) {
        give(&self.inodes, 1);
    }

    pub(super) fn inodes(&self) -> u64 {
        self.inodes.load(Ordering::Relaxed)
    }

    pub(super) fn take_metadata(&self, bytes: u64) -> Result<()> {
        if take(&self.metadata, bytes, self.limits.metadata) { Ok(()) } else { Err(Errno::ENOSPC) }
    }

    pub(super) fn force_metadata(&self, bytes: u64) {
        self.metadata.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give_metadata(&self, bytes: u64) {
        give(&self.metadata, bytes);
    }

    /// Takes memory for file data; `false` sends the data to the spill file.
    pub(super) fn take_memory(&self, bytes: u64) -> bool {
        take(&self.memory, bytes, self.limits.memory)
    }

    pub(super) fn give_memory(&self, bytes: u64) {
        give(&self.memory, bytes);
    }

    /// A slot of one chunk that reads as zeros.
    pub(super) fn slot(&self) -> Result<u64> {
        self.open()?;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.free.pop() {
            return Ok(slot);
        }
        let slot = slots.next;
        // Only the length grows here: the host gives space when bytes are written.
        self.open()?.set_len((slot + 1) * CHUNK)?;
        slots.next += 1;
        Ok(slot)
    }

    /// Gives a slot back, and its space to the host.
    pub(super) fn free_slot(&self, slot: u64) {
        if let Some(file) = self.file.get()
            && zero(file, slot * CHUNK, CHUNK).is_ok()
        {
            self.slots.lock().unwrap_or_else(PoisonError::into_inner).free.push(slot);
        }
    }

    /// Makes a part of a slot read as zeros.
    pub(super) fn zero(&self, slot: u64, start: u64, len: u64) -> Result<()> {
        Ok(zero(self.open()?, slot * CHUNK + start, len)?)
    }

    /// Has the host set space aside for a part of a slot, where it can.
    pub(super) fn allocate(&self, slot: u64, start: u64, len: u64) -> Result<()> {
        match allocate(self.open()?, slot * CHUNK + start, len) {
            Err(e) if e.kind() == io::ErrorKind::StorageFull => Err(Errno::ENOSPC),
            _ => Ok(()),
        }
    }

    pub(super) fn write(&self, slot: u64, start: u64, bytes: &[u8]) -> Result<()> {
        Ok(write_all_at(self.open()?, bytes, slot * CHUNK + start)?)
    }

    /// The spill file and the offset of a slot in it.
    pub(super) fn place(&self, slot: u64) -> Result<(&File, u64)> {
        Ok((self.open()?, slot * CHUNK))
    }

    fn open(&self) -> Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = match &self.limits.spill_dir {
            Some(dir) => tempfile::tempfile_in(dir)?,
            None => tempfile::tempfile()?,
        };
        Ok(self.file.get_or_init(|| file))
    }
}

#[cfg(target_os = "linux")]
fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    Ok(rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), offset, len)?)
}

#[cfg(not(target_os = "linux"))]
fn allocate(_: &File, _: u64, _: u64) -> io::Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
fn zero(file: &File, offset: u64, len: u64) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    match rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
        Ok(()) => Ok(()),
        Err(_) => write_zeros(file, offset, len),
    }
}

#[cfg(not(target_os = "linux"))]
fn zero(file: &File, offset: u64, len: u64) -> io::Result<()> {
    write_zeros(file, offset, len)
}

fn write_zeros(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let zeros = [0; PAGE as usize];
    let mut done = 0;
    while done < len {
        let n = (len - done).min(PAGE);
        write_all_at(file, &zeros[..n as usize], offset + done)?;
        done += n;
    }
    Ok(())
}
