//! Sixteen pages of a file: which are there, which are holes, and where their bytes are.
//!
//! A clone shows the same bytes. They are changed only through [`Chunk::own`], which copies them first if somebody
//! else shows them too.

use std::sync::Arc;

use super::data::CHUNK;
use super::spill::Slot;
use super::store::Store;
use crate::vfs::io::{ReadSink, WriteSource};
use crate::vfs::{Errno, Result};

#[derive(Clone, Debug, Default)]
enum Body {
    #[default]
    None,
    /// Shorter than a chunk when the rest is zeros. What counts as memory is its capacity.
    Memory(Arc<Vec<u8>>),
    Slot(Arc<Slot>),
}

/// Bytes that nobody else shows.
pub(super) enum Own<'a> {
    None,
    Memory(&'a mut Vec<u8>),
    Slot(&'a mut Slot),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Chunk {
    pub(super) have: u16,
    pub(super) hole: u16,
    body: Body,
}

impl Chunk {
    /// The bytes, ours alone.
    ///
    /// Fails, with nothing changed, where a copy is needed and the spill file has no room for it.
    pub(super) fn own(&mut self, store: &Store) -> Result<Own<'_>> {
        match &mut self.body {
            Body::None => Ok(Own::None),
            Body::Memory(bytes) => {
                if Arc::get_mut(bytes).is_none() {
                    // As large as the one shared, for that is what has been counted.
                    let mut copy = Vec::with_capacity(bytes.capacity());
                    copy.extend_from_slice(bytes);
                    *bytes = Arc::new(copy);
                }
                Arc::get_mut(bytes).map(Own::Memory).ok_or(Errno::EIO)
            }
            Body::Slot(slot) => {
                if Arc::get_mut(slot).is_none() {
                    *slot = store.spill.copy(slot, self.have)?;
                }
                Arc::get_mut(slot).map(Own::Slot).ok_or(Errno::EIO)
            }
        }
    }

    /// Makes room for bytes up to `end` of the chunk.
    pub(super) fn reserve(&mut self, end: u64, store: &Store) -> Result<()> {
        match self.own(store)? {
            Own::Slot(_) => Ok(()),
            Own::Memory(bytes) => {
                let old = bytes.capacity() as u64;
                if end <= bytes.len() as u64 {
                    return Ok(());
                }
                let want = if end <= old { old } else { end.next_power_of_two().min(CHUNK) };
                if want == old || store.take_memory(want - old) {
                    bytes.reserve_exact(want as usize - bytes.len());
                    bytes.resize(end as usize, 0);
                    // `reserve_exact` may give more than asked for; the count is for what was asked.
                    bytes.shrink_to(want as usize);
                    return Ok(());
                }
                let mut slot = store.spill.slot()?;
                store.spill.write(Arc::get_mut(&mut slot).ok_or(Errno::EIO)?, 0, bytes)?;
                store.give_memory(old);
                self.body = Body::Slot(slot);
                Ok(())
            }
            Own::None => {
                let want = end.next_power_of_two().clamp(64, CHUNK);
                if store.take_memory(want) {
                    // The allocator knows which memory is zero already.
                    let mut bytes = vec![0; want as usize];
                    bytes.truncate(end as usize);
                    self.body = Body::Memory(Arc::new(bytes));
                } else {
                    self.body = Body::Slot(store.spill.slot()?);
                }
                Ok(())
            }
        }
    }

    pub(super) fn write(
        &mut self,
        start: u64,
        len: u64,
        source: &mut dyn WriteSource,
        store: &Store,
    ) -> Result<()> {
        match self.own(store)? {
            Own::Memory(bytes) => {
                let room = bytes.get_mut(start as usize..(start + len) as usize).ok_or(Errno::EIO)?;
                source.fill(room)
            }
            Own::Slot(slot) => {
                let (file, at) = store.spill.to_write(slot)?;
                let n = source.file(file, at + start, len as usize)?;
                if n as u64 == len { Ok(()) } else { Err(Errno::ENOSPC) }
            }
            Own::None => Err(Errno::EIO),
        }
    }

    pub(super) fn read(&self, start: u64, len: u64, sink: &mut dyn ReadSink, store: &Store) -> Result<()> {
        match &self.body {
            Body::Memory(bytes) => {
                let from = (start as usize).min(bytes.len());
                let to = ((start + len) as usize).min(bytes.len());
                sink.data(&bytes[from..to])?;
                sink.zeros(len as usize - (to - from))
            }
            Body::Slot(slot) => {
                let (file, at) = store.spill.to_read(slot)?;
                let n = sink.file(file, at + start, len as usize)?;
                if n as u64 == len { Ok(()) } else { Err(Errno::EIO) }
            }
            Body::None => sink.zeros(len as usize),
        }
    }

    /// Makes a part read as zeros, and drops what has no page any more.
    pub(super) fn zero(&mut self, start: u64, len: u64, store: &Store) -> Result<()> {
        match self.own(store)? {
            Own::Memory(bytes) => {
                let from = (start as usize).min(bytes.len());
                let to = ((start + len) as usize).min(bytes.len());
                bytes[from..to].fill(0);
                Ok(())
            }
            Own::Slot(slot) => store.spill.zero(slot, start, len),
            Own::None => Ok(()),
        }
    }

    pub(super) fn drop_body(&mut self, store: &Store) {
        self.give_back(store);
        self.body = Body::None;
    }

    /// Counts the bytes as gone; the caller drops the chunk.
    pub(super) fn give_back(&self, store: &Store) {
        if let Body::Memory(bytes) = &self.body {
            store.give_memory(bytes.capacity() as u64);
        }
    }
}
