//! Which pages of RAM hold code that a processor has decoded, and which processors may write a page unseen.
//!
//! A processor that caches decoded instructions [joins](CodePages::join) and is a [`CodeReader`] then. For each page
//! there is a bit of every reader for *holding* decoded code of it, and one for having a way to *write* it that
//! nobody is told of (an entry in its TLB). A page with holders is a *code page*.
//!
//! - Before it reads the bytes it decodes, a reader [marks](CodeReader::mark) the page. Nobody becomes a writer after
//!   that; it has those that are already give that up before it reads.
//! - Whoever stores to a code page in any other way reports it with [`CodePages::written`] after the store. That ends
//!   all holding: the page is plain again, and every holder finds it in [`CodeReader::take_stale`], with its word
//!   raised.
//!
//! Both bits are in one atomic, so of a reader that marks and one that wants to write, the later one sees the other.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

/// Most readers of one RAM at a time.
pub const MAX_READERS: u32 = 32;
/// The holders' bits of a page; the writers' are above.
const HOLDERS: u64 = u32::MAX as u64;

/// Where a reader hears of stale pages.
#[derive(Debug)]
struct Ear {
    word: Arc<AtomicU32>,
    /// Raised in `word` when there are stale pages.
    bits: u32,
    stale: Mutex<Vec<u32>>,
}

#[derive(Debug)]
struct Inner {
    pages: Box<[AtomicU64]>,
    ears: RwLock<[Option<Arc<Ear>>; MAX_READERS as usize]>,
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
        Self { inner: Arc::new(Inner { pages: zeroed(pages as usize), ears: RwLock::default() }), first: 0 }
    }

    /// The same table seen from page `first` on.
    pub fn at_page(&self, first: u64) -> Self {
        Self { inner: self.inner.clone(), first: first as usize }
    }

    /// Makes a reader, which has `bits` set in `word` whenever it holds stale pages. `None` when there are
    /// [`MAX_READERS`] already.
    pub fn join(&self, word: Arc<AtomicU32>, bits: u32) -> Option<CodeReader> {
        let mut ears = self.inner.ears.write().unwrap_or_else(PoisonError::into_inner);
        let index = ears.iter().position(Option::is_none)?;
        let ear = Arc::new(Ear { word, bits, stale: Mutex::default() });
        ears[index] = Some(ear.clone());
        Some(CodeReader { pages: self.inner.clone(), index: index as u32, ear })
    }

    /// Whether somebody holds decoded code of `page`.
    #[inline]
    pub fn is_code(&self, page: u32) -> bool {
        self.inner.pages.get(page as usize).is_some_and(|s| s.load(Ordering::Relaxed) & HOLDERS != 0)
    }

    /// Reports a store to `page`. A store by a processor that is not a writer, or by a device, must be visible to all
    /// before this is called.
    #[inline]
    pub fn written(&self, page: u32) {
        let Some(state) = self.inner.pages.get(page as usize) else { return };
        if state.load(Ordering::Relaxed) & HOLDERS != 0 {
            self.tell(page, (state.fetch_and(!HOLDERS, Ordering::SeqCst) & HOLDERS) as u32);
        }
    }

    #[cold]
    fn tell(&self, page: u32, mut holders: u32) {
        let ears = self.inner.ears.read().unwrap_or_else(PoisonError::into_inner);
        while holders != 0 {
            let index = holders.trailing_zeros() as usize;
            holders &= holders - 1;
            // One that has left holds nothing.
            if let Some(ear) = &ears[index] {
                ear.stale.lock().unwrap_or_else(PoisonError::into_inner).push(page);
                ear.word.fetch_or(ear.bits, Ordering::SeqCst);
            }
        }
    }
}

/// Zeroed pages of the host's that are taken as they are touched.
#[allow(unsafe_code)]
fn zeroed(len: usize) -> Box<[AtomicU64]> {
    let plain = vec![0u64; len].into_boxed_slice();
    // SAFETY: AtomicU64 has the size, alignment and bit validity of u64 on 64-bit hosts, and the box owns the slice.
    unsafe { Box::from_raw(Box::into_raw(plain) as *mut [AtomicU64]) }
}

/// A processor that keeps decoded code. Leaves when it is dropped.
#[derive(Debug)]
pub struct CodeReader {
    pages: Arc<Inner>,
    index: u32,
    ear: Arc<Ear>,
}

impl CodeReader {
    /// Its number among the readers, below [`MAX_READERS`].
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Marks `page` as held. From here on a store to it is noticed, except by the writers in the mask that is returned:
    /// those must give up first. `None` when it is held already.
    pub fn mark(&self, page: u32) -> Option<u32> {
        let state = self.pages.pages.get(page as usize)?;
        let bit = 1u64 << self.index;
        if state.load(Ordering::SeqCst) & bit != 0 {
            return None;
        }
        let before = state.fetch_or(bit, Ordering::SeqCst);
        (before & bit == 0).then_some((before >> 32) as u32)
    }

    /// Whether this reader may write `page` without saying so from now on; it is a writer then.
    #[inline]
    pub fn become_writer(&self, page: u32) -> bool {
        let Some(state) = self.pages.pages.get(page as usize) else { return false };
        let bit = 1u64 << (32 + self.index);
        let now = state.load(Ordering::Relaxed);
        if now & HOLDERS != 0 {
            return false;
        }
        now & bit != 0 || state.fetch_or(bit, Ordering::SeqCst) & HOLDERS == 0
    }

    /// This reader says so before it writes `page`, from now on.
    pub fn give_up_writing(&self, page: u32) {
        if let Some(state) = self.pages.pages.get(page as usize) {
            state.fetch_and(!(1u64 << (32 + self.index)), Ordering::SeqCst);
        }
    }

    /// The pages it held that were written since the last call.
    pub fn take_stale(&self) -> Vec<u32> {
        std::mem::take(&mut *self.ear.stale.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for CodeReader {
    fn drop(&mut self) {
        // Its bits stay; who comes next in its place hears of some pages that it does not hold.
        self.pages.ears.write().unwrap_or_else(PoisonError::into_inner)[self.index as usize] = None;
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
        // Of a reader that marks a page meanwhile, one sees the other: either it reads what was stored, or it is told.
        fence(Ordering::SeqCst);
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
