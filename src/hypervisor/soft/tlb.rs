//! The software TLB: linear page to host pointer, in three contexts (user, supervisor, supervisor
//! that may touch user pages).
//!
//! An entry's read and write tags are the linear page address when that access may go straight to
//! RAM, else [`NONE`]. Device memory and pages with decoded code (for writes) never match, so those
//! accesses take the slow path each time. So does every access of a program whose alignment is checked: it
//! has a table of its own, in which nothing ever is.

#![allow(unsafe_code)]

const ENTRIES: usize = 1024;
/// A tag that no access can have: not page-aligned.
const NONE: u64 = 1;

#[derive(Clone, Copy)]
#[repr(C)]
struct Entry {
    read: u64,
    write: u64,
    /// Host address minus linear address.
    addend: usize,
    /// Page in the RAM file, and [`GLOBAL`], [`LARGE`], [`HUGE`].
    page: u64,
}

const GLOBAL: u64 = 1 << 63;
/// Part of a 2 MiB page.
const LARGE: u64 = 1 << 62;
/// Part of a 1 GiB page.
const HUGE: u64 = 1 << 61;
const PAGE: u64 = HUGE - 1;
const EMPTY: Entry = Entry { read: NONE, write: NONE, addend: 0, page: 0 };

/// Where a linear page leads, and what may be done there without asking again.
pub(super) struct Translation {
    /// Host address of the 4 KiB page.
    pub(super) host: *mut u8,
    /// Its number in the RAM file.
    pub(super) page: u32,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) global: bool,
    /// Binary logarithm of the size of the guest's page.
    pub(super) shift: u32,
}

pub(super) struct Tlb {
    current: *mut Entry,
    contexts: Box<[[Entry; ENTRIES]; 3]>,
    /// The table of accesses whose alignment is checked: always empty.
    checked: Box<[Entry; ENTRIES]>,
    /// Which 2 MiB stretches (hashed) may have entries that are parts of a large page.
    large: [u64; 64],
    /// Whether any entry may be part of a 1 GiB page.
    huge: bool,
    /// Grows whenever a mapping may have gone: remembered translations of code are good while it
    /// is the same.
    pub(super) generation: u32,
}

impl Tlb {
    pub(super) fn new() -> Self {
        let mut contexts = Box::new([[EMPTY; ENTRIES]; 3]);
        let checked = Box::new([EMPTY; ENTRIES]);
        Self {
            current: contexts[1].as_mut_ptr(),
            contexts,
            checked,
            large: [0; 64],
            huge: false,
            generation: 1,
        }
    }

    /// Makes context 0 (user), 1 (supervisor) or 2 (supervisor with user pages) the current one.
    #[inline(always)]
    pub(super) fn select(&mut self, context: usize) {
        self.current = self.contexts[context].as_mut_ptr();
    }

    /// Sends every access to the slow path, which checks alignment.
    #[cold]
    pub(super) fn select_checked(&mut self) {
        self.current = self.checked.as_mut_ptr();
    }

    /// Whether alignment is checked.
    #[inline(always)]
    pub(super) fn is_checked(&self) -> bool {
        std::ptr::eq(self.current, self.checked.as_ptr())
    }

    #[inline(always)]
    fn entry(&self, va: u64) -> &Entry {
        // SAFETY: `current` points to ENTRIES entries in `contexts`.
        unsafe { &*self.current.add((va >> 12) as usize & (ENTRIES - 1)) }
    }

    /// Host pointer for reading `len` bytes at `va`, when they are in one page that is cached.
    #[inline(always)]
    pub(super) fn read_ptr(&self, va: u64, len: u64) -> Option<*const u8> {
        let e = self.entry(va);
        // The last byte's page: an access that leaves the page does not match.
        (e.read == va.wrapping_add(len - 1) & !4095)
            .then(|| (va as usize).wrapping_add(e.addend) as *const u8)
    }

    /// Host pointer for writing.
    #[inline(always)]
    pub(super) fn write_ptr(&self, va: u64, len: u64) -> Option<*mut u8> {
        let e = self.entry(va);
        (e.write == va.wrapping_add(len - 1) & !4095).then(|| (va as usize).wrapping_add(e.addend) as *mut u8)
    }

    /// Caches the translation of `va`'s page in the current context.
    pub(super) fn fill(&mut self, va: u64, to: Translation) {
        if self.is_checked() {
            return;
        }
        let tag = va & !4095;
        let size = match to.shift {
            12 => 0,
            21 => {
                let (word, bit) = large_slot(va);
                self.large[word] |= bit;
                LARGE
            }
            _ => {
                self.huge = true;
                HUGE
            }
        };
        // SAFETY: as in `entry`.
        let e = unsafe { &mut *self.current.add((va >> 12) as usize & (ENTRIES - 1)) };
        *e = Entry {
            read: if to.readable { tag } else { NONE },
            write: if to.writable { tag } else { NONE },
            addend: (to.host as usize).wrapping_sub(tag as usize),
            page: to.page as u64 | size | if to.global { GLOBAL } else { 0 },
        };
    }

    /// Forgets everything; global pages too if `global`.
    pub(super) fn flush(&mut self, global: bool) {
        self.generation = self.generation.wrapping_add(1);
        if global {
            self.large = [0; 64];
            self.huge = false;
        }
        for context in self.contexts.iter_mut() {
            for e in context.iter_mut() {
                if global || e.page & GLOBAL == 0 {
                    *e = EMPTY;
                }
            }
        }
    }

    /// Forgets the page of `va` in every context: all parts of it where it is a large one.
    pub(super) fn flush_page(&mut self, va: u64) {
        self.generation = self.generation.wrapping_add(1);
        let tag = va & !4095;
        for context in self.contexts.iter_mut() {
            let e = &mut context[(va >> 12) as usize & (ENTRIES - 1)];
            if e.read == tag || e.write == tag {
                *e = EMPTY;
            }
        }
        let (word, bit) = large_slot(va);
        if self.large[word] & bit != 0 {
            self.flush_parts(va, 21, LARGE);
        }
        if self.huge {
            self.flush_parts(va, 30, HUGE);
        }
    }

    /// Forgets the parts of the page of `size` and `1 << shift` bytes around `va`.
    #[cold]
    fn flush_parts(&mut self, va: u64, shift: u32, size: u64) {
        for e in self.contexts.iter_mut().flatten() {
            let tag = if e.read == NONE { e.write } else { e.read };
            if e.page & size != 0 && (tag ^ va) >> shift == 0 {
                *e = EMPTY;
            }
        }
    }

    /// Sends writes to RAM page `page` to the slow path: it holds decoded code now.
    pub(super) fn protect(&mut self, page: u32) {
        for e in self.contexts.iter_mut().flatten() {
            if e.page & PAGE == page as u64 {
                e.write = NONE;
            }
        }
    }
}

/// Word and bit of `va`'s 2 MiB stretch in [`Tlb::large`].
fn large_slot(va: u64) -> (usize, u64) {
    let n = va >> 21;
    ((n >> 6) as usize & 63, 1 << (n & 63))
}
