//! Which parts of guest RAM may hold something else than zeros, told without touching the rest.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use vm_memory::{GuestAddress, GuestMemoryBackend as _};

use super::{GuestRam, PAGE_SIZE, layout};

/// Bits of an entry of `/proc/self/pagemap`: the page is there, swapped out, and the file's own.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;
/// Bytes of an entry.
const ENTRY: u64 = 8;

impl GuestRam {
    /// Ranges of offsets in [`GuestRam::file`], in order and apart, outside of which RAM is zeros. Pages within may be
    /// zeros too. The guest must stand still for the answer to stay true.
    pub fn used(&self) -> Vec<Range<u64>> {
        let whole = 0..self.bytes;
        let Some(mut used) = data_ranges(&self.file, self.bytes) else { return vec![whole] };
        if let Some(from) = &self.from {
            used.extend(from.over());
            match self.changed() {
                Ok(changed) => used.extend(changed),
                Err(error) => {
                    tracing::debug!(%error, "cannot tell which pages of guest memory were written");
                    return vec![whole];
                }
            }
        }
        merge(used)
    }

    /// Pages that are no longer those of what it started from, in order and apart.
    pub(super) fn changed(&self) -> io::Result<Vec<Range<u64>>> {
        let pages = File::open("/proc/self/pagemap")?;
        let mut changed: Vec<Range<u64>> = Vec::new();
        let mut entries = vec![0u8; 64 << 10];
        for (start, offset, len) in layout(self.bytes) {
            let host = self.memory.get_host_address(GuestAddress(start)).map_err(io::Error::other)? as u64;
            let mut page = 0;
            while page < len / PAGE_SIZE {
                let n = (len / PAGE_SIZE - page).min(entries.len() as u64 / ENTRY);
                let bytes = entries.get_mut(..(n * ENTRY) as usize).unwrap_or_default();
                pages.read_exact_at(bytes, (host / PAGE_SIZE + page) * ENTRY)?;
                for (k, entry) in (0u64..).zip(bytes.as_chunks::<8>().0) {
                    let entry = u64::from_le_bytes(*entry);
                    if entry & SWAPPED == 0 && (entry & PRESENT == 0 || entry & OF_FILE != 0) {
                        continue;
                    }
                    let at = offset + (page + k) * PAGE_SIZE;
                    match changed.last_mut() {
                        Some(last) if last.end == at => last.end += PAGE_SIZE,
                        _ => changed.push(at..at + PAGE_SIZE),
                    }
                }
                page += n;
            }
        }
        Ok(changed)
    }
}

/// What is no hole of the file; `None` where the file system cannot tell.
fn data_ranges(file: &File, len: u64) -> Option<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => return None,
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).ok()?.min(len);
        if end <= start {
            return None;
        }
        ranges.push(start / PAGE_SIZE * PAGE_SIZE..end.next_multiple_of(PAGE_SIZE).min(len));
        at = end;
    }
    Some(ranges)
}

/// Sorts ranges and joins those that touch.
fn merge(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|r| r.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const SIZE: u64 = 8 << 20;

    fn fill(ram: &GuestRam, page: u64) {
        ram.memory().write_slice(&[7; 4096], GuestAddress(page * PAGE_SIZE)).unwrap();
    }

    fn pages(ram: &GuestRam) -> Vec<u64> {
        ram.used().into_iter().flatten().step_by(PAGE_SIZE as usize).map(|at| at / PAGE_SIZE).collect()
    }

    #[test]
    fn what_was_written_is_used_and_nothing_else() {
        let ram = GuestRam::new(SIZE).unwrap();
        assert_eq!(ram.used(), []);
        [3, 4, 900, 2047].into_iter().for_each(|page| fill(&ram, page));
        assert_eq!(pages(&ram), [3, 4, 900, 2047]);
        assert_eq!(ram.used()[0], 3 * PAGE_SIZE..5 * PAGE_SIZE);
    }

    #[test]
    fn a_clone_uses_what_the_file_has_and_what_it_wrote() {
        let first = GuestRam::new(SIZE).unwrap();
        [3, 4].into_iter().for_each(|page| fill(&first, page));
        let clone = GuestRam::start_from(&first.save().unwrap()).unwrap();
        let mut byte = [0];
        // Reading a page of the file or of a hole makes neither the clone's own.
        for page in [3, 5, 6] {
            clone.memory().read_slice(&mut byte, GuestAddress(page * PAGE_SIZE)).unwrap();
        }
        fill(&clone, 4);
        fill(&clone, 77);
        let used = pages(&clone);
        assert!([3, 4, 77].iter().all(|page| used.contains(page)), "{used:?}");
        // A hole that was read may have got a page of the file, but no more than that.
        assert!(used.iter().all(|page| [3, 4, 5, 6, 77].contains(page)), "{used:?}");
    }

    #[test]
    fn ranges_are_joined() {
        assert_eq!(merge(vec![8..12, 0..4, 4..8, 20..30, 22..24]), [0..12, 20..30]);
    }
}
