//! The unlinked file that takes file data beyond the cap on memory, in slots of one chunk.
//!
//! An overlay and its forks have one such file between them. A slot is held through an `Arc` by every chunk that shows
//! it and goes back, with its space, when the last of them drops it. Only who holds it alone has a `&mut Slot`, and
//! nothing else can be written through: a fork never sees another's bytes change. When no overlay is left, the file is
//! closed at once and slots have nowhere to go back to.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use super::data::{CHUNK, PAGE};
use crate::vfs::io::{read_at, write_all_at};
use crate::vfs::{Errno, Result};

#[derive(Debug)]
pub(super) struct Spill {
    dir: Option<PathBuf>,
    file: OnceLock<File>,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    free: Vec<u64>,
    next: u64,
}

/// Room for one chunk.
#[derive(Debug)]
pub(super) struct Slot {
    spill: Weak<Spill>,
    number: u64,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(spill) = self.spill.upgrade() {
            spill.free(self.number);
        }
    }
}

impl Spill {
    /// In `dir`; `None` for the host's directory for temporary files. Nothing is made before it is needed.
    pub(super) fn new(dir: Option<PathBuf>) -> Arc<Spill> {
        Arc::new(Spill { dir, file: OnceLock::new(), slots: Mutex::default() })
    }

    /// A slot that reads as zeros.
    pub(super) fn slot(self: &Arc<Spill>) -> Result<Arc<Slot>> {
        let file = self.open()?;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let number = match slots.free.pop() {
            Some(number) => number,
            None => {
                let number = slots.next;
                // Only the length grows here: the host gives space when bytes are written.
                file.set_len((number + 1) * CHUNK)?;
                slots.next += 1;
                number
            }
        };
        Ok(Arc::new(Slot { spill: Arc::downgrade(self), number }))
    }

    fn free(&self, number: u64) {
        if let Some(file) = self.file.get()
            && zero(file, number * CHUNK, CHUNK).is_ok()
        {
            self.slots.lock().unwrap_or_else(PoisonError::into_inner).free.push(number);
        }
    }

    /// A slot with the same bytes in `pages`, and zeros elsewhere.
    pub(super) fn copy(self: &Arc<Spill>, slot: &Slot, pages: u16) -> Result<Arc<Slot>> {
        let copy = self.slot()?;
        let file = self.open()?;
        let mut bytes = Vec::with_capacity(CHUNK as usize);
        let mut page = 0;
        while page < 16 {
            let run = u64::from((pages >> page).trailing_ones());
            if run > 0 {
                let (mut done, start) = (0, page * PAGE);
                bytes.resize((run * PAGE) as usize, 0);
                while done < bytes.len() {
                    match read_at(file, &mut bytes[done..], slot.number * CHUNK + start + done as u64)? {
                        0 => return Err(Errno::EIO),
                        n => done += n,
                    }
                }
                write_all_at(file, &bytes, copy.number * CHUNK + start)?;
            }
            page += run + 1;
        }
        Ok(copy)
    }

    /// Makes a part of a slot read as zeros.
    pub(super) fn zero(&self, slot: &mut Slot, start: u64, len: u64) -> Result<()> {
        Ok(zero(self.open()?, slot.number * CHUNK + start, len)?)
    }

    /// Has the host set space aside for a part of a slot, where it can.
    pub(super) fn allocate(&self, slot: &mut Slot, start: u64, len: u64) -> Result<()> {
        match allocate(self.open()?, slot.number * CHUNK + start, len) {
            Err(e) if e.kind() == io::ErrorKind::StorageFull => Err(Errno::ENOSPC),
            _ => Ok(()),
        }
    }

    pub(super) fn write(&self, slot: &mut Slot, start: u64, bytes: &[u8]) -> Result<()> {
        let (file, at) = self.to_write(slot)?;
        Ok(write_all_at(file, bytes, at + start)?)
    }

    /// The file and the offset of a slot in it, to read there.
    pub(super) fn to_read(&self, slot: &Slot) -> Result<(&File, u64)> {
        Ok((self.open()?, slot.number * CHUNK))
    }

    /// The file and the offset of a slot in it, to write there.
    pub(super) fn to_write(&self, slot: &mut Slot) -> Result<(&File, u64)> {
        self.to_read(slot)
    }

    fn open(&self) -> Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = match &self.dir {
            Some(dir) => tempfile::tempfile_in(dir)?,
            None => tempfile::tempfile()?,
        };
        Ok(self.file.get_or_init(|| file))
    }

    /// Slots that are held, and the bytes the host keeps for all.
    #[cfg(all(test, target_os = "linux"))]
    pub(super) fn usage(&self) -> (u64, u64) {
        use std::os::unix::fs::MetadataExt;
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.file.get().map_or(0, |file| file.metadata().expect("stat").blocks() * 512);
        (slots.next - slots.free.len() as u64, bytes)
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
