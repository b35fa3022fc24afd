//! Guest RAM: where it lies, and who must hear of stores into it.
//!
//! RAM is one memfd, so that another process can map it, or a private mapping of a snapshot's memory, in one or
//! two regions: from 0 up to
//! [`MMIO_HOLE_START`], the rest from 4 GiB. All stores by devices go through vm-memory, which
//! reports them to [`CodePages`]; that is how a processor that caches decoded instructions learns
//! that a device overwrote some.

mod code_pages;
mod file;
mod saved;
mod used;

use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

pub use code_pages::{CodePages, CodePagesSlice, CodeReader, MAX_READERS};
pub use saved::SavedRam;

/// First guest-physical address below 4 GiB that is never RAM.
pub const MMIO_HOLE_START: u64 = 0xc000_0000;
/// First guest-physical address after the hole.
pub const MMIO_HOLE_END: u64 = 1 << 32;
/// Size of a guest page in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// vm-memory's view of guest RAM, used by all devices. Writes through it reach [`CodePages`].
pub type GuestMemory = GuestMemoryMmap<CodePages>;

/// Errors of guest memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The size is zero, not a multiple of the page size, or beyond the address space.
    #[error("guest memory of {0} bytes: must be a positive multiple of 4096 and at most 1 TiB")]
    Size(u64),
    /// The host has no room.
    #[error("cannot map {bytes} bytes of guest memory")]
    Map {
        /// What was asked for.
        bytes: u64,
        /// The host's answer.
        #[source]
        source: std::io::Error,
    },
}

/// The RAM of one machine.
#[derive(Debug)]
pub struct GuestRam {
    memory: GuestMemory,
    file: Arc<File>,
    code: CodePages,
    bytes: u64,
    /// What it started as; its own changes stay in the mapping then.
    from: Option<SavedRam>,
}

impl GuestRam {
    /// Maps `bytes` of zeroed RAM. Host memory is taken page by page as the guest touches it.
    pub fn new(bytes: u64) -> Result<Arc<Self>, MemoryError> {
        if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) || bytes > 1 << 40 {
            return Err(MemoryError::Size(bytes));
        }
        let failed = |source| MemoryError::Map { bytes, source };
        let file = memfd(bytes).map_err(failed)?;
        Self::map(bytes, Arc::new(file), None).map(Arc::new)
    }

    fn map(bytes: u64, file: Arc<File>, from: Option<SavedRam>) -> Result<Self, MemoryError> {
        let failed = |source| MemoryError::Map { bytes, source };
        let sharing = if from.is_some() { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
        let code = CodePages::for_ram(bytes);
        let mut regions = Vec::new();
        for (start, offset, len) in layout(bytes) {
            let region = MmapRegionBuilder::new_with_bitmap(len as usize, code.at_page(offset / PAGE_SIZE))
                .with_file_offset(FileOffset::from_arc(file.clone(), offset))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(sharing | libc::MAP_NORESERVE)
                .build()
                .map_err(|e| failed(std::io::Error::other(e)))?;
            regions.push(
                GuestRegionMmap::new(region, GuestAddress(start))
                    .ok_or_else(|| failed(std::io::Error::other("region overflows the address space")))?,
            );
        }
        let memory = GuestMemory::from_regions(regions).map_err(|e| failed(std::io::Error::other(e)))?;
        Ok(Self { memory, file, code, bytes, from })
    }

    /// vm-memory's view.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }
    /// The file behind RAM, or below all others that are; guest-physical order, without the hole.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }
    /// The pages that hold decoded code.
    pub fn code_pages(&self) -> &CodePages {
        &self.code
    }
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.bytes
    }
}

/// (guest-physical start, offset in the file, length) of each region for `bytes` of RAM.
pub fn layout(bytes: u64) -> Vec<(u64, u64, u64)> {
    let low = bytes.min(MMIO_HOLE_START);
    let mut regions = vec![(0, 0, low)];
    if bytes > low {
        regions.push((MMIO_HOLE_END, low, bytes - low));
    }
    regions
}

#[allow(unsafe_code)]
fn memfd(bytes: u64) -> std::io::Result<File> {
    // SAFETY: the name is a NUL-terminated literal; the call has no other preconditions.
    let fd = unsafe { libc::memfd_create(c"cc-guest-ram".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: fd was just returned by the kernel and nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes)?;
    Ok(file)
}
