//! The content of one regular file: pages of our own over an optional file of a layer.
//!
//! Pages are grouped in chunks. For each page, a chunk knows whether it has data of its own (`have`), is a hole that
//! hides the layer (`hole`), or neither: then the layer's bytes show below `Lower::len`, and beyond it there is a
//! hole. So a copy-up copies nothing, and a write copies the pages it touches partly.
//!
//! A clone shares all bytes. The first change of either copies the map of chunks, and the chunks it changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::chunk::{Chunk, Own};
use super::directory::HostNode;
use super::shared::SharedMap;
use super::store::Store;
use crate::vfs::io::{ReadSink, WriteSource};
use crate::vfs::layer::Layer;
use crate::vfs::{Errno, Result};

pub(super) const PAGE: u64 = 4096;
pub(super) const CHUNK: u64 = 16 * PAGE;
/// The largest file.
pub(super) const MAX_SIZE: u64 = i64::MAX as u64 & !(CHUNK - 1);

/// The lower file that shows through.
#[derive(Clone, Debug)]
pub(super) struct Lower {
    pub(super) file: LowerFile,
    /// Bytes from here on are not shown.
    pub(super) len: u64,
    /// Units of 512 bytes that the whole file takes.
    pub(super) blocks: u64,
}

#[derive(Clone, Debug)]
pub(super) enum LowerFile {
    Layer(Layer, u32),
    Host(Arc<HostNode>),
}

impl Lower {
    fn read(&self, offset: u64, len: usize, sink: &mut dyn ReadSink) -> Result<()> {
        let n = match &self.file {
            LowerFile::Layer(layer, inode) => layer.read(*inode, offset, len, sink)?,
            LowerFile::Host(host) => host.read(offset, len, sink)?,
        };
        // A file that has become shorter behind our back must not pass as an end of file.
        if n == len { Ok(()) } else { Err(Errno::EIO) }
    }

    /// The first data at or after `offset`.
    fn next_data(&self, offset: u64) -> Option<u64> {
        match &self.file {
            LowerFile::Layer(layer, inode) => layer.next_data(*inode, offset),
            LowerFile::Host(host) => host.next_data(offset),
        }
        .filter(|&at| at < self.len)
    }

    /// The end of the data at `offset`.
    fn next_hole(&self, offset: u64) -> u64 {
        match &self.file {
            LowerFile::Layer(layer, inode) => layer.next_hole(*inode, offset),
            LowerFile::Host(host) => host.next_hole(offset).unwrap_or(self.len),
        }
        .min(self.len)
    }
}

/// Content of a regular file.
#[derive(Clone, Debug, Default)]
pub(super) struct Data {
    size: u64,
    pages: u64,
    lower: Option<Lower>,
    chunks: SharedMap<u64, Chunk>,
}

fn bit(page: u64) -> u16 {
    1 << (page % 16)
}

/// The part of `offset..end` that is in one chunk: the chunk, where in it, how long.
fn piece(offset: u64, end: u64) -> (u64, u64, u64) {
    let (chunk, start) = (offset / CHUNK, offset % CHUNK);
    (chunk, start, (CHUNK - start).min(end - offset))
}

impl Data {
    pub(super) fn over(lower: Lower) -> Data {
        Data { size: lower.len, lower: Some(lower), ..Data::default() }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// What shows where nothing was written.
    pub(super) fn lower(&self) -> Option<&Lower> {
        self.lower.as_ref()
    }

    /// What was written, by chunk.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (u64, &Chunk)> {
        self.chunks.iter().map(|(&index, chunk)| (index, chunk))
    }

    /// Of what was saved; `None` when a chunk is there twice or the file is too large.
    pub(super) fn load(size: u64, lower: Option<Lower>, saved: Vec<(u64, Chunk)>) -> Option<Data> {
        let pages = saved.iter().map(|(_, chunk)| u64::from(chunk.have.count_ones())).sum();
        let wanted = saved.len();
        let chunks: BTreeMap<u64, Chunk> = saved.into_iter().collect();
        let fits = chunks.len() == wanted && size <= MAX_SIZE && lower.as_ref().is_none_or(|l| l.len <= size);
        fits.then(|| Data { size, pages, lower, chunks: chunks.into() })
    }

    /// Units of 512 bytes taken, those of the layer that show included.
    pub(super) fn blocks(&self) -> u64 {
        let mut blocks = self.pages * (PAGE / 512);
        if let Some(lower) = &self.lower {
            let hidden: u64 = self
                .chunks
                .range(..lower.len.div_ceil(CHUNK))
                .map(|(_, c)| u64::from((c.have | c.hole).count_ones()) * (PAGE / 512))
                .sum();
            let shown = lower.blocks.min(lower.len.div_ceil(512));
            blocks += shown.saturating_sub(hidden);
        }
        blocks
    }

    fn lower_len(&self) -> u64 {
        self.lower.as_ref().map_or(0, |l| l.len)
    }

    /// Whether the page that holds `offset` is the layer's.
    fn shows_lower(&self, offset: u64) -> bool {
        let page = offset / PAGE;
        offset < self.lower_len()
            && self.chunks.get(&(offset / CHUNK)).is_none_or(|c| (c.have | c.hole) & bit(page) == 0)
    }

    pub(super) fn read(&self, offset: u64, len: u64, sink: &mut dyn ReadSink, store: &Store) -> Result<u64> {
        let end = offset.saturating_add(len).min(self.size);
        let mut at = offset;
        while at < end {
            let (chunk, start, mut len) = piece(at, end);
            let lower_len = self.lower_len();
            let found = self.chunks.get(&chunk);
            match found {
                None if at >= lower_len => sink.zeros(len as usize)?,
                Some(c) if at >= lower_len => c.read(start, len, sink, store)?,
                _ => {
                    // A run of pages of the same kind.
                    let kind = |page: u64| match found {
                        Some(c) if c.have & bit(page) != 0 => 0,
                        Some(c) if c.hole & bit(page) != 0 => 1,
                        _ => 2,
                    };
                    let first = at / PAGE;
                    let mut page = first + 1;
                    while page * PAGE < at + len && kind(page) == kind(first) {
                        page += 1;
                    }
                    len = len.min(page * PAGE - at);
                    match (kind(first), found, &self.lower) {
                        (0, Some(c), _) => c.read(start, len, sink, store)?,
                        (2, _, Some(lower)) => {
                            len = len.min(lower_len - at);
                            lower.read(at, len as usize, sink)?;
                        }
                        _ => sink.zeros(len as usize)?,
                    }
                }
            }
            at += len;
        }
        Ok(end.saturating_sub(offset))
    }

    /// Writes at most to the end of what fits; an error only when nothing was written.
    pub(super) fn write(
        &mut self,
        offset: u64,
        len: u64,
        source: &mut dyn WriteSource,
        store: &Store,
    ) -> Result<u64> {
        let end = offset.checked_add(len).filter(|&end| end <= MAX_SIZE).ok_or(Errno::EFBIG)?;
        let mut at = offset;
        while at < end {
            let (_, _, len) = piece(at, end);
            match self.write_piece(at, len, source, store) {
                Ok(()) => at += len,
                Err(e) if at == offset => return Err(e),
                Err(_) => break,
            }
            self.size = self.size.max(at);
        }
        Ok(at - offset)
    }

    fn write_piece(
        &mut self,
        offset: u64,
        len: u64,
        source: &mut dyn WriteSource,
        store: &Store,
    ) -> Result<()> {
        let new = self.claim(offset, len, store)?;
        let (chunk, start, _) = piece(offset, offset + len);
        let result = match self.chunks.edit().get_mut(&chunk) {
            Some(c) => c.write(start, len, source, store),
            None => Err(Errno::EIO),
        };
        if result.is_err() {
            // Pages that were made for this write hold nothing anybody wrote.
            self.unclaim(chunk, new, store);
        }
        result
    }

    /// Makes the pages of a range (within one chunk) our own, with their old content where the range does not cover
    /// them. Gives the pages that are new.
    fn claim(&mut self, offset: u64, len: u64, store: &Store) -> Result<u16> {
        let (index, start, _) = piece(offset, offset + len);
        let mut new = 0u16;
        let have = self.chunks.get(&index).map_or(0, |c| c.have);
        for page in offset / PAGE..(offset + len).div_ceil(PAGE) {
            new |= bit(page);
        }
        new &= !have;
        store.take_pages(new.count_ones().into())?;
        let result = self.fetch(index, offset, len, new, store).and_then(|fetched| {
            let chunk = self.chunks.edit().entry(index).or_default();
            let mut end = start + len;
            for (at, bytes) in &fetched {
                end = end.max(at + bytes.len() as u64);
            }
            chunk.reserve(end, store)?;
            for (at, bytes) in &fetched {
                match chunk.own(store)? {
                    Own::Memory(body) => {
                        let room =
                            body.get_mut(*at as usize..*at as usize + bytes.len()).ok_or(Errno::EIO)?;
                        room.copy_from_slice(bytes);
                    }
                    Own::Slot(slot) => store.spill.write(slot, *at, bytes)?,
                    Own::None => return Err(Errno::EIO),
                }
            }
            chunk.have |= new;
            Ok(())
        });
        match result {
            Ok(()) => {
                self.pages += u64::from(new.count_ones());
                Ok(new)
            }
            Err(e) => {
                store.give_pages(new.count_ones().into());
                self.tidy(index, store);
                Err(e)
            }
        }
    }

    /// The layer's bytes for pages in `new` that a write to the range covers only in part.
    fn fetch(
        &self,
        index: u64,
        offset: u64,
        len: u64,
        new: u16,
        store: &Store,
    ) -> Result<Vec<(u64, Vec<u8>)>> {
        let mut fetched = Vec::new();
        let (first, last) = (offset / PAGE, (offset + len - 1) / PAGE);
        for page in [first, last] {
            let covered = offset <= page * PAGE && (page + 1) * PAGE <= offset + len;
            let again = page == last && first == last && !fetched.is_empty();
            if new & bit(page) == 0 || covered || again || !self.shows_lower(page * PAGE) {
                continue;
            }
            let mut bytes = Vec::with_capacity(PAGE as usize);
            let want = PAGE.min(self.lower_len() - page * PAGE);
            self.read(page * PAGE, want, &mut bytes, store)?;
            fetched.push((page * PAGE - index * CHUNK, bytes));
        }
        Ok(fetched)
    }

    fn unclaim(&mut self, index: u64, new: u16, store: &Store) {
        let Some(chunk) = self.chunks.edit().get_mut(&index) else { return };
        for page in (0..16).filter(|&p| new & bit(p) != 0) {
            // What cannot be zeroed stays ours, so that no stale bytes show later.
            if chunk.zero(page * PAGE, PAGE, store).is_ok() {
                chunk.have &= !bit(page);
                self.pages -= 1;
                store.give_pages(1);
            }
        }
        self.tidy(index, store);
    }

    /// Drops a chunk's body, or the chunk, when nothing needs it.
    fn tidy(&mut self, index: u64, store: &Store) {
        if self.chunks.get(&index).is_none_or(|chunk| chunk.have != 0) {
            return;
        }
        let chunks = self.chunks.edit();
        if let Some(chunk) = chunks.get_mut(&index) {
            chunk.drop_body(store);
            if chunk.hole == 0 {
                chunks.remove(&index);
            }
        }
    }

    pub(super) fn truncate(&mut self, size: u64, store: &Store) -> Result<()> {
        if size > MAX_SIZE {
            return Err(Errno::EFBIG);
        }
        if size < self.size {
            // What can fail for want of room comes first, so that all or nothing changes.
            if !size.is_multiple_of(CHUNK) && self.chunks.contains_key(&(size / CHUNK)) {
                self.chunks.edit().entry(size / CHUNK).or_default().own(store)?;
            }
            // The last page's rest must read as zeros when the file grows again.
            let page_end = size.next_multiple_of(PAGE);
            if !size.is_multiple_of(PAGE) && !self.shows_lower(size) {
                let (index, start, _) = piece(size, page_end);
                if self.chunks.contains_key(&index)
                    && let Some(chunk) = self.chunks.edit().get_mut(&index)
                    && chunk.have & bit(size / PAGE) != 0
                {
                    chunk.zero(start, page_end - size, store)?;
                }
            }
            if let Some(lower) = &mut self.lower {
                lower.len = lower.len.min(size);
                if lower.len == 0 {
                    self.lower = None;
                }
            }
            self.drop_chunks(page_end.div_ceil(CHUNK), store);
            if !page_end.is_multiple_of(CHUNK) {
                let index = page_end / CHUNK;
                self.drop_pages(index, page_end % CHUNK, CHUNK - page_end % CHUNK, false, store)?;
            }
        }
        self.size = size;
        Ok(())
    }

    /// Drops all chunks from one on.
    fn drop_chunks(&mut self, from: u64, store: &Store) {
        let mut gone = 0;
        for (_, chunk) in self.chunks.range(from..) {
            gone += u64::from(chunk.have.count_ones());
            chunk.give_back(store);
        }
        self.pages -= gone;
        store.give_pages(gone);
        if from == 0 {
            // Nothing is kept, so nothing need be copied to change it.
            self.chunks = SharedMap::default();
        } else if self.chunks.range(from..).next().is_some() {
            self.chunks.edit().split_off(&from);
        }
    }

    /// Turns whole pages of one chunk into holes.
    fn drop_pages(&mut self, index: u64, start: u64, len: u64, hide: bool, store: &Store) -> Result<()> {
        if !hide && !self.chunks.contains_key(&index) {
            return Ok(());
        }
        let chunk = self.chunks.edit().entry(index).or_default();
        let range = start / PAGE..(start + len) / PAGE;
        let mask = range.fold(0, |mask, page| mask | bit(page));
        if chunk.have & mask == chunk.have {
            chunk.drop_body(store);
        } else if chunk.have & mask != 0 {
            chunk.zero(start, len, store)?;
        }
        let gone = u64::from((chunk.have & mask).count_ones());
        chunk.have &= !mask;
        chunk.hole = if hide { chunk.hole | mask } else { chunk.hole & !mask };
        self.pages -= gone;
        store.give_pages(gone);
        self.tidy(index, store);
        Ok(())
    }

    /// Makes a range read as zeros: whole pages become holes.
    pub(super) fn punch(&mut self, offset: u64, len: u64, store: &Store) -> Result<()> {
        let end = offset.saturating_add(len).min(self.size.next_multiple_of(PAGE));
        let mut at = offset;
        while at < end {
            // Without chunks and layer there is nothing to do until the next chunk.
            if at >= self.lower_len() {
                match self.chunks.range(at / CHUNK..).next() {
                    Some((&next, _)) => at = at.max(next * CHUNK),
                    None => return Ok(()),
                }
                if at >= end {
                    return Ok(());
                }
            }
            let (index, start, len) = piece(at, end);
            let whole_start = start.next_multiple_of(PAGE);
            let whole_end = (start + len) / PAGE * PAGE;
            if whole_start < whole_end {
                let hide = index * CHUNK + whole_start < self.lower_len();
                self.drop_pages(index, whole_start, whole_end - whole_start, hide, store)?;
            }
            let head = start..whole_start.min(start + len);
            let tail = whole_end.max(head.end)..start + len;
            for part in [head, tail] {
                let from = index * CHUNK + part.start;
                if part.is_empty() {
                    continue;
                }
                if self.shows_lower(from) {
                    self.claim(from, part.end - part.start, store)?;
                }
                if self.chunks.contains_key(&index)
                    && let Some(chunk) = self.chunks.edit().get_mut(&index)
                {
                    chunk.zero(part.start, part.end - part.start, store)?;
                }
            }
            at += len;
        }
        Ok(())
    }

    /// Gives every page of a range a place; the content stays.
    pub(super) fn allocate(&mut self, offset: u64, len: u64, store: &Store) -> Result<()> {
        let end = offset.checked_add(len).filter(|&end| end <= MAX_SIZE).ok_or(Errno::EFBIG)?;
        // Ask before a long loop.
        if len / PAGE > (store.limits.bytes / PAGE).saturating_sub(store.pages()) + self.pages {
            return Err(Errno::ENOSPC);
        }
        let mut at = offset;
        while at < end {
            let (index, _, len) = piece(at, end);
            let mut page = at / PAGE;
            while page * PAGE < at + len {
                if !self.shows_lower(page * PAGE) {
                    let new = self.chunks.get(&index).is_none_or(|c| c.have & bit(page) == 0);
                    if new {
                        store.take_pages(1)?;
                        let chunk = self.chunks.edit().entry(index).or_default();
                        let end = (page + 1) * PAGE - index * CHUNK;
                        let place = |chunk: &mut Chunk| {
                            chunk.reserve(end, store)?;
                            match chunk.own(store)? {
                                Own::Slot(slot) => store.spill.allocate(slot, end - PAGE, PAGE),
                                _ => Ok(()),
                            }
                        };
                        if let Err(e) = place(chunk) {
                            store.give_pages(1);
                            self.tidy(index, store);
                            return Err(e);
                        }
                        chunk.have |= bit(page);
                        self.pages += 1;
                    }
                }
                page += 1;
            }
            at += len;
        }
        Ok(())
    }

    pub(super) fn grow(&mut self, size: u64) {
        self.size = self.size.max(size.min(MAX_SIZE));
    }

    /// The first byte at or after `offset` that is not in a hole.
    pub(super) fn next_data(&self, offset: u64) -> Option<u64> {
        let mut at = offset;
        while at < self.size {
            let own = self.chunks.range(at / CHUNK..).find_map(|(&index, chunk)| {
                let first = if index * CHUNK < at { at / PAGE % 16 } else { 0 };
                let page = (first..16).find(|&p| chunk.have & bit(p) != 0)?;
                Some((index * CHUNK + page * PAGE).max(at))
            });
            let own = own.filter(|&found| found < self.size);
            let below = match &self.lower {
                Some(lower) => lower.next_data(at),
                None => None,
            };
            match (own, below) {
                (own, None) => return own,
                (Some(own), Some(below)) if own <= below => return Some(own),
                (_, Some(below)) if self.shows_lower(below) => return Some(below),
                // The layer has data there, but its page is hidden or ours.
                (_, Some(below)) => at = (below / PAGE + 1) * PAGE,
            }
        }
        None
    }

    /// The first byte at or after `offset` that is in a hole; the end of the file when there is none.
    pub(super) fn next_hole(&self, offset: u64) -> u64 {
        let mut at = offset;
        // Up to here the lower file is known to have data.
        let mut below = 0;
        while at < self.size {
            let page = at / PAGE;
            let own = self.chunks.get(&(at / CHUNK)).is_some_and(|c| c.have & bit(page) != 0);
            if !own {
                if !self.shows_lower(at) {
                    return at;
                }
                let Some(lower) = &self.lower else { return at };
                if at >= below {
                    // A hole of the lower file within a page that shows.
                    if lower.next_data(at) != Some(at) {
                        return at;
                    }
                    below = lower.next_hole(at);
                }
            }
            at = (page + 1) * PAGE;
        }
        self.size
    }

    /// Gives everything back.
    pub(super) fn clear(&mut self, store: &Store) {
        self.drop_chunks(0, store);
        *self = Data::default();
    }
}
