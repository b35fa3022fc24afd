//! RAM as it was at a moment, in files that never change: what clones start from.
//!
//! It is one file with all of RAM or, over such a file, others that have only ranges of it, at the same offsets. So a
//! machine that was started from saved RAM is saved by writing what it has changed since. Machines map all of it
//! copy-on-write; what none of them changes is in memory once.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend as _};

use super::{GuestRam, MemoryError, PAGE_SIZE, layout, memfd};

/// Most ranges of one file: each becomes a mapping of its own, of which a process has some ten thousands.
const MAX_RANGES: usize = 128;
/// Most files over the first.
const MAX_OVER: usize = 4;
/// Most bytes in one write.
const PIECE: u64 = 8 << 20;

/// RAM in files. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SavedRam {
    bytes: u64,
    base: Arc<File>,
    over: Vec<Arc<Over>>,
}

/// Ranges of RAM over what is below.
#[derive(Debug)]
struct Over {
    file: File,
    /// In order, apart, in whole pages.
    ranges: Vec<Range<u64>>,
}

impl SavedRam {
    /// All `bytes` of RAM in `file`, in guest-physical order without the hole. The file must stay as it is.
    ///
    /// # Errors
    /// `InvalidData` for a file of another length: touching RAM beyond its end would end the process.
    pub fn of_file(file: File, bytes: u64) -> io::Result<Self> {
        if file.metadata()?.len() != bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the saved memory has another size"));
        }
        Ok(Self { bytes, base: Arc::new(file), over: Vec::new() })
    }

    /// Size of the RAM in bytes.
    pub fn size(&self) -> u64 {
        self.bytes
    }

    /// The file at the bottom.
    pub fn base(&self) -> &Arc<File> {
        &self.base
    }

    /// The ranges that come from files over it.
    pub(super) fn over(&self) -> impl Iterator<Item = Range<u64>> {
        self.over.iter().flat_map(|over| over.ranges.iter().cloned())
    }
}

impl GuestRam {
    /// RAM that starts as `saved` and keeps its changes to itself.
    ///
    /// # Errors
    /// As [`GuestRam::new`].
    pub fn start_from(saved: &SavedRam) -> Result<Arc<Self>, MemoryError> {
        let bytes = saved.bytes;
        if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) || bytes > 1 << 40 {
            return Err(MemoryError::Size(bytes));
        }
        let ram = Self::map(bytes, saved.base.clone(), Some(saved.clone()))?;
        for over in &saved.over {
            for range in &over.ranges {
                ram.map_over(&over.file, range).map_err(|source| MemoryError::Map { bytes, source })?;
            }
        }
        Ok(Arc::new(ram))
    }

    /// Maps a range of `file` over what is there, before anybody has seen it.
    fn map_over(&self, file: &File, range: &Range<u64>) -> io::Result<()> {
        for (start, offset, len) in layout(self.bytes) {
            let (from, to) = (range.start.max(offset), range.end.min(offset + len));
            if from >= to {
                continue;
            }
            let at = GuestAddress(start + (from - offset));
            let slice = self.memory.get_slice(at, (to - from) as usize).map_err(io::Error::other)?;
            let host = slice.ptr_guard_mut().as_ptr();
            let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED;
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            #[allow(unsafe_code)]
            // SAFETY: `host` and as many bytes lie in a mapping that this value owns and keeps as long as it lives;
            // they are whole pages, and nobody has a pointer to them yet. The new mapping is unmapped with the old.
            let mapped = unsafe {
                libc::mmap(
                    host.cast(),
                    (to - from) as usize,
                    prot,
                    flags,
                    file.as_raw_fd(),
                    from as libc::off_t,
                )
            };
            if mapped == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// Saves RAM as it is, in memory of this process. The guest must stand still. What was saved before and has not
    /// changed is not written again.
    ///
    /// # Errors
    /// The host's: no memory, no descriptors.
    pub fn save(&self) -> io::Result<SavedRam> {
        if let Some(from) = &self.from
            && from.over.len() < MAX_OVER
            && let Ok(changed) = self.changed()
        {
            let ranges = coalesce(changed, MAX_RANGES);
            let file = memfd(self.bytes)?;
            self.write_ranges(&ranges, &file)?;
            let mut saved = from.clone();
            saved.over.push(Arc::new(Over { file, ranges }));
            return Ok(saved);
        }
        let file = memfd(self.bytes)?;
        self.write_ranges(&self.used(), &file)?;
        SavedRam::of_file(file, self.bytes)
    }

    fn write_ranges(&self, ranges: &[Range<u64>], file: &File) -> io::Result<()> {
        for (start, offset, len) in layout(self.bytes) {
            for range in ranges {
                let (mut at, end) = (range.start.max(offset), range.end.min(offset + len));
                while at < end {
                    let part = (end - at).min(PIECE) as usize;
                    let address = GuestAddress(start + (at - offset));
                    if self.write_file_at(&[(address, part)], file, at)? != part {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    at += part as u64;
                }
            }
        }
        Ok(())
    }
}

/// Joins ranges across the smallest gaps until there are at most `most`.
fn coalesce(ranges: Vec<Range<u64>>, most: usize) -> Vec<Range<u64>> {
    if ranges.len() <= most {
        return ranges;
    }
    let mut gaps: Vec<u64> = ranges.windows(2).map(|pair| pair[1].start - pair[0].end).collect();
    gaps.sort_unstable_by(|a, b| b.cmp(a));
    // `most` ranges have one gap less between them.
    let smallest_kept = gaps.get(most.saturating_sub(2)).copied().unwrap_or(u64::MAX);
    let mut kept = 0;
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(most);
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start - last.end < smallest_kept || kept >= most => last.end = range.end,
            _ => {
                kept += 1;
                joined.push(range);
            }
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const SIZE: u64 = 16 << 20;

    fn put(ram: &GuestRam, page: u64, byte: u8) {
        ram.memory().write_slice(&[byte; 4096], GuestAddress(page * PAGE_SIZE)).unwrap();
    }

    fn bytes(ram: &GuestRam) -> Vec<u8> {
        let mut bytes = vec![0; SIZE as usize];
        ram.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    #[test]
    fn clones_of_clones_are_what_was_saved() {
        let mut seed = 5u64;
        let mut random = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed >> 33
        };
        let mut ram = GuestRam::new(SIZE).unwrap();
        for generation in 0..10 {
            // Few scattered pages, and more than a mapping is made for each of.
            for _ in 0..[3, 700][generation % 2] {
                let byte = random() as u8;
                put(&ram, random() % (SIZE / PAGE_SIZE), byte);
            }
            let before = bytes(&ram);
            let saved = ram.save().unwrap();
            assert!(saved.over.len() <= MAX_OVER && saved.over.iter().all(|o| o.ranges.len() <= MAX_RANGES));
            let clone = GuestRam::start_from(&saved).unwrap();
            let sibling = GuestRam::start_from(&saved).unwrap();
            assert!(bytes(&clone) == before, "generation {generation}");
            put(&ram, 7, 0xaa);
            put(&clone, 7, 0xbb);
            assert!(bytes(&sibling) == before, "generation {generation}: clones are apart");
            drop((ram, saved));
            assert!(bytes(&sibling) == before, "generation {generation}: the files live on");
            ram = clone;
        }
    }

    #[test]
    fn only_what_changed_is_written() {
        let first = GuestRam::new(SIZE).unwrap();
        (0..2000).for_each(|page| put(&first, page, 1));
        let clone = GuestRam::start_from(&first.save().unwrap()).unwrap();
        (100..110).for_each(|page| put(&clone, page, 2));
        let saved = clone.save().unwrap();
        let written: u64 = saved.over().map(|r| r.end - r.start).sum();
        assert_eq!(written, 10 * PAGE_SIZE);
    }

    #[test]
    fn gaps_go_smallest_first() {
        let ranges = vec![0..1, 2..3, 10..11, 12..13, 100..101, 105..106];
        assert_eq!(coalesce(ranges.clone(), 6), ranges);
        assert_eq!(coalesce(ranges.clone(), 3), [0..3, 10..13, 100..106]);
        assert_eq!(coalesce(ranges.clone(), 2), [0..13, 100..106]);
        assert_eq!(coalesce(ranges.clone(), 1).first(), Some(&(0..106)));
        let even: Vec<Range<u64>> = (0..1000).map(|n| 2 * n..2 * n + 1).collect();
        let joined = coalesce(even, 128);
        assert_eq!((joined.len(), joined[0].start, joined[127].end), (128, 0, 1999));
    }

    #[test]
    fn a_file_of_another_length_is_refused() {
        assert!(SavedRam::of_file(memfd(SIZE - PAGE_SIZE).unwrap(), SIZE).is_err());
        assert!(SavedRam::of_file(memfd(SIZE).unwrap(), SIZE).is_ok());
    }
}
