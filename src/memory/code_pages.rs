//! Which pages of RAM hold decoded code, and which of those were written since.
//!
//! A page is *plain* or *code*; a store to a code page makes it *stale*, until the processor has
//! thrown its decoded blocks away and made it plain again with [`CodePages::take_stale`]. The processor marks pages as
//! code before it reads the bytes it decodes, so a store is never missed.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, RwLock};

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

const CODE: u8 = 1;
const STALE: u8 = 2;

#[derive(Debug)]
struct Inner {
    pages: Box<[AtomicU8]>,
    stale: std::sync::Mutex<Vec<u32>>,
    /// Words to raise when a page becomes stale, each with the bits to set.
    listeners: RwLock<Vec<(Arc<AtomicU32>, u32)>>,
}

/// Tracks stores to pages with decoded code. Clones share the same table.
#[derive(Debug, Clone)]
pub struct CodePages {
    inner: Arc<Inner>,
    /// Page in the table that offset 0 of this view stands for.
    first: usize,
}

impl CodePages {
    /// A table for `bytes` of RAM, all plain. Pages are numbered by their offset in the RAM file.
    pub fn for_ram(bytes: u64) -> Self {
        let pages = bytes.div_ceil(super::PAGE_SIZE);
        Self {
            inner: Arc::new(Inner {
                pages: (0..pages).map(|_| AtomicU8::new(0)).collect(),
                stale: std::sync::Mutex::default(),
                listeners: RwLock::default(),
            }),
            first: 0,
        }
    }

    /// The same table seen from page `first` on.
    pub fn at_page(&self, first: u64) -> Self {
        Self { inner: self.inner.clone(), first: first as usize }
    }

    /// Sets `bits` in `word` whenever a page becomes stale.
    pub fn notify(&self, word: Arc<AtomicU32>, bits: u32) {
        self.inner.listeners.write().unwrap_or_else(|e| e.into_inner()).push((word, bits));
    }

    /// Marks `page` as code. From here on a store to it is noticed. Returns whether it was plain.
    pub fn mark_code(&self, page: u32) -> bool {
        match self.inner.pages.get(page as usize) {
            Some(state) => state.fetch_or(CODE, Ordering::SeqCst) & CODE == 0,
            None => false,
        }
    }

    /// Whether `page` is code (stale or not).
    pub fn is_code(&self, page: u32) -> bool {
        self.inner.pages.get(page as usize).is_some_and(|s| s.load(Ordering::Relaxed) & CODE != 0)
    }

    /// Reports a store to `page`.
    #[inline]
    pub fn written(&self, page: u32) {
        let Some(state) = self.inner.pages.get(page as usize) else { return };
        if state.load(Ordering::Relaxed) & CODE != 0 && state.fetch_or(STALE, Ordering::SeqCst) & STALE == 0 {
            self.inner.stale.lock().unwrap_or_else(|e| e.into_inner()).push(page);
            for (word, bits) in self.inner.listeners.read().unwrap_or_else(|e| e.into_inner()).iter() {
                word.fetch_or(*bits, Ordering::SeqCst);
            }
        }
    }

    /// Takes the pages written since the last call and makes them plain.
    pub fn take_stale(&self) -> Vec<u32> {
        let pages = std::mem::take(&mut *self.inner.stale.lock().unwrap_or_else(|e| e.into_inner()));
        for &page in &pages {
            self.inner.pages[page as usize].store(0, Ordering::SeqCst);
        }
        pages
    }
}

/// A view of [`CodePages`] from some byte on, as vm-memory's slices carry it.
#[derive(Debug, Clone, Copy)]
pub struct CodePagesSlice<'a> {
    pages: &'a CodePages,
    offset: usize,
}

impl<'a> WithBitmapSlice<'a> for CodePages {
    type S = CodePagesSlice<'a>;
}

impl Bitmap for CodePages {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let page = super::PAGE_SIZE as usize;
        for p in offset / page..=(offset + len - 1) / page {
            self.written((self.first + p) as u32);
        }
    }
    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }
    fn slice_at(&self, offset: usize) -> CodePagesSlice<'_> {
        CodePagesSlice { pages: self, offset }
    }
}

impl<'a> WithBitmapSlice<'a> for CodePagesSlice<'_> {
    type S = Self;
}

impl BitmapSlice for CodePagesSlice<'_> {}

impl Bitmap for CodePagesSlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.pages.mark_dirty(self.offset + offset, len);
    }
    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }
    fn slice_at(&self, offset: usize) -> Self {
        Self { pages: self.pages, offset: self.offset + offset }
    }
}
