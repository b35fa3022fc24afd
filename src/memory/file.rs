//! Files read into guest RAM and written from it, without a copy in between.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend as _, VolatileSlice};

use super::{CodePagesSlice, GuestRam};

/// Ranges in one system call.
const MAX_VECTORS: usize = 256;

type Slice<'a> = VolatileSlice<'a, CodePagesSlice<'a>>;

impl GuestRam {
    /// Reads from `file` at `offset` into the guest-physical ranges `(start, length)`, in order. Gives how many
    /// bytes were read: fewer than the ranges hold at the end of the file, or when a later part fails.
    ///
    /// # Errors
    /// `InvalidInput` for a range that is not RAM or an offset beyond 2^63, else the host's error.
    pub fn read_file_at(
        &self,
        ranges: &[(GuestAddress, usize)],
        file: &File,
        offset: u64,
    ) -> io::Result<usize> {
        self.transfer(ranges, offset, |slices, offset| {
            let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
            let vectors: Vec<_> = guards
                .iter()
                .map(|g| libc::iovec { iov_base: g.as_ptr().cast(), iov_len: g.len() })
                .collect();
            #[allow(unsafe_code)]
            // SAFETY: every vector is a range of mapped guest RAM that its slice and guard keep mapped; RAM is
            // only ever accessed as volatile memory, so the kernel's stores break nobody's assumptions.
            let n = unsafe {
                libc::preadv(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, offset)
            };
            let done = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
            let mut left = done;
            for slice in slices {
                slice.bitmap().mark_dirty(0, slice.len().min(left));
                left = left.saturating_sub(slice.len());
            }
            Ok(done)
        })
    }

    /// Writes the guest-physical ranges `(start, length)`, in order, to `file` at `offset`. Gives how many bytes
    /// were written: fewer when a later part fails.
    ///
    /// # Errors
    /// `InvalidInput` for a range that is not RAM or an offset beyond 2^63, else the host's error.
    pub fn write_file_at(
        &self,
        ranges: &[(GuestAddress, usize)],
        file: &File,
        offset: u64,
    ) -> io::Result<usize> {
        self.transfer(ranges, offset, |slices, offset| {
            let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard).collect();
            let vectors: Vec<_> = guards
                .iter()
                .map(|g| libc::iovec { iov_base: g.as_ptr().cast_mut().cast(), iov_len: g.len() })
                .collect();
            #[allow(unsafe_code)]
            // SAFETY: every vector is a range of mapped guest RAM that its slice and guard keep mapped, and the
            // kernel only reads from it.
            let n = unsafe {
                libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, offset)
            };
            usize::try_from(n).map_err(|_| io::Error::last_os_error())
        })
    }

    fn transfer(
        &self,
        ranges: &[(GuestAddress, usize)],
        offset: u64,
        call: impl Fn(&[Slice<'_>], libc::off_t) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let bad = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let mut done = 0;
        for batch in ranges.chunks(MAX_VECTORS) {
            let mut slices = Vec::with_capacity(batch.len());
            for &(start, len) in batch.iter().filter(|r| r.1 > 0) {
                slices.push(self.memory.get_slice(start, len).map_err(|_| io::ErrorKind::InvalidInput)?);
            }
            let mut first = 0;
            while let Some(rest) = slices.get(first..).filter(|rest| !rest.is_empty()) {
                let at = offset.checked_add(done as u64).ok_or(io::ErrorKind::InvalidInput)?;
                let at = libc::off_t::try_from(at).map_err(bad)?;
                let mut moved = match call(rest, at) {
                    Ok(0) => return Ok(done),
                    Ok(n) => n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) if done > 0 => return Ok(done),
                    Err(e) => return Err(e),
                };
                done += moved;
                while let Some(slice) = slices.get_mut(first) {
                    if moved < slice.len() {
                        *slice = slice.offset(moved).map_err(|_| io::ErrorKind::InvalidInput)?;
                        break;
                    }
                    moved -= slice.len();
                    first += 1;
                }
            }
        }
        Ok(done)
    }
}
