//! The bounds of the upper and what is used of them. File data lives in memory up to a cap, then in the spill file.
//!
//! Each file system counts what it shows: bytes that forks have in common count in every one of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::data::PAGE;
use super::spill::Spill;
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

/// Accounting, and the spill file.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) limits: Limits,
    pages: AtomicU64,
    memory: AtomicU64,
    inodes: AtomicU64,
    metadata: AtomicU64,
    /// Shared with forks.
    pub(super) spill: Arc<Spill>,
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
        let spill = Spill::new(limits.spill_dir.clone());
        Store {
            limits,
            pages: AtomicU64::new(0),
            memory: AtomicU64::new(0),
            inodes: AtomicU64::new(0),
            metadata: AtomicU64::new(0),
            spill,
        }
    }

    /// The same use of the same bounds, counted apart from here on. The caller holds the lock of the tree.
    pub(super) fn fork(&self) -> Store {
        let now = |counter: &AtomicU64| AtomicU64::new(counter.load(Ordering::Relaxed));
        Store {
            limits: self.limits.clone(),
            pages: now(&self.pages),
            memory: now(&self.memory),
            inodes: now(&self.inodes),
            metadata: now(&self.metadata),
            spill: self.spill.clone(),
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

    /// Bytes of memory and of metadata.
    #[cfg(all(test, target_os = "linux"))]
    pub(super) fn room_taken(&self) -> (u64, u64) {
        (self.memory.load(Ordering::Relaxed), self.metadata.load(Ordering::Relaxed))
    }

    /// Takes memory for file data; `false` sends the data to the spill file.
    pub(super) fn take_memory(&self, bytes: u64) -> bool {
        take(&self.memory, bytes, self.limits.memory)
    }

    pub(super) fn give_memory(&self, bytes: u64) {
        give(&self.memory, bytes);
    }
}
