//! Sixteen pages of a file: which are there, which are holes, and where their bytes are.

use super::data::CHUNK;
use super::store::Store;
use crate::vfs::io::{ReadSink, WriteSource};
use crate::vfs::{Errno, Result};

#[derive(Debug, Default)]
pub(super) enum Body {
    #[default]
    None,
    /// Shorter than a chunk when the rest is zeros.
    Memory(Vec<u8>),
    Slot(u64),
}

#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) have: u16,
    pub(super) hole: u16,
    pub(super) body: Body,
}

impl Chunk {
    /// Makes room for bytes up to `end` of the chunk.
    pub(super) fn reserve(&mut self, end: u64, store: &Store) -> Result<()> {
        match &mut self.body {
            Body::Slot(_) => Ok(()),
            Body::Memory(bytes) => {
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
                let slot = store.slot()?;
                if let Err(e) = store.write(slot, 0, bytes) {
                    store.free_slot(slot);
                    return Err(e);
                }
                store.give_memory(old);
                self.body = Body::Slot(slot);
                Ok(())
            }
            Body::None => {
                let want = end.next_power_of_two().clamp(64, CHUNK);
                if store.take_memory(want) {
                    // The allocator knows which memory is zero already.
                    let mut bytes = vec![0; want as usize];
                    bytes.truncate(end as usize);
                    self.body = Body::Memory(bytes);
                } else {
                    self.body = Body::Slot(store.slot()?);
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
        match &mut self.body {
            Body::Memory(bytes) => {
                let room = bytes.get_mut(start as usize..(start + len) as usize).ok_or(Errno::EIO)?;
                source.fill(room)
            }
            Body::Slot(slot) => {
                let (file, at) = store.place(*slot)?;
                let n = source.file(file, at + start, len as usize)?;
                if n as u64 == len { Ok(()) } else { Err(Errno::ENOSPC) }
            }
            Body::None => Err(Errno::EIO),
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
                let (file, at) = store.place(*slot)?;
                let n = sink.file(file, at + start, len as usize)?;
                if n as u64 == len { Ok(()) } else { Err(Errno::EIO) }
            }
            Body::None => sink.zeros(len as usize),
        }
    }

    /// Makes a part read as zeros, and drops what has no page any more.
    pub(super) fn zero(&mut self, start: u64, len: u64, store: &Store) -> Result<()> {
        match &mut self.body {
            Body::Memory(bytes) => {
                let from = (start as usize).min(bytes.len());
                let to = ((start + len) as usize).min(bytes.len());
                bytes[from..to].fill(0);
                Ok(())
            }
            Body::Slot(slot) => store.zero(*slot, start, len),
            Body::None => Ok(()),
        }
    }

    pub(super) fn drop_body(&mut self, store: &Store) {
        match std::mem::take(&mut self.body) {
            Body::Memory(bytes) => store.give_memory(bytes.capacity() as u64),
            Body::Slot(slot) => store.free_slot(slot),
            Body::None => {}
        }
    }
}
