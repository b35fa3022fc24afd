//! The allocator: power-of-two classes carved from pages and never merged, larger blocks as mappings
//! of their own that go back to the kernel when freed. Single-threaded; capped, so that no caller
//! can eat the machine. Past the cap it returns null.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::null_mut;

use crate::sys;

/// Most bytes held from the kernel at once.
const CAP: usize = 192 * 1024 * 1024;
const SMALLEST: usize = 16;
const LARGEST: usize = 16 * 1024;
const CLASSES: usize = (LARGEST / SMALLEST).trailing_zeros() as usize + 1;
const CHUNK: usize = 64 * 1024;
const PAGE: usize = 4096;

struct State {
    free: [*mut u8; CLASSES],
    next: *mut u8,
    left: usize,
    held: usize,
}

pub(crate) struct Heap(UnsafeCell<State>);

// SAFETY: the agent has one thread, and no signal handler.
unsafe impl Sync for Heap {}

impl Heap {
    pub(crate) const fn new() -> Self {
        Heap(UnsafeCell::new(State { free: [null_mut(); CLASSES], next: null_mut(), left: 0, held: 0 }))
    }
}

fn class(layout: &Layout) -> Option<usize> {
    let size = layout.size().max(layout.align()).max(SMALLEST);
    if size > LARGEST {
        return None;
    }
    Some((size.next_power_of_two() / SMALLEST).trailing_zeros() as usize)
}

fn pages(size: usize) -> usize {
    size.saturating_add(PAGE - 1) & !(PAGE - 1)
}

impl State {
    fn map(&mut self, len: usize) -> *mut u8 {
        if len > CAP - self.held.min(CAP) {
            return null_mut();
        }
        let Ok(at) = sys::map(len) else { return null_mut() };
        self.held += len;
        at
    }

    fn small(&mut self, class: usize) -> *mut u8 {
        let head = self.free[class];
        if !head.is_null() {
            // SAFETY: a free block's first word is the next free block.
            self.free[class] = unsafe { head.cast::<*mut u8>().read() };
            return head;
        }
        let size = SMALLEST << class;
        // Blocks are aligned to their size: chunks are page-aligned and `next` is rounded up here.
        let pad = self.next.align_offset(size);
        if self.next.is_null() || self.left < pad + size {
            let chunk = self.map(CHUNK);
            if chunk.is_null() {
                return chunk;
            }
            (self.next, self.left) = (chunk, CHUNK);
            return self.carve(0, size);
        }
        self.carve(pad, size)
    }

    fn carve(&mut self, pad: usize, size: usize) -> *mut u8 {
        // SAFETY: the caller saw that pad + size bytes are left in the chunk.
        let block = unsafe { self.next.add(pad) };
        // SAFETY: likewise; one past the end is allowed.
        self.next = unsafe { block.add(size) };
        self.left -= pad + size;
        block
    }
}

// SAFETY: blocks are disjoint, aligned to at least their layout (small ones to their class, mappings
// to pages; larger alignments are refused), and live until freed.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one thread, and no reference outlives this call.
        let state = unsafe { &mut *self.0.get() };
        match class(&layout) {
            Some(class) => state.small(class),
            None if layout.align() > PAGE => null_mut(),
            None => state.map(pages(layout.size())),
        }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: one thread, and no reference outlives this call.
        let state = unsafe { &mut *self.0.get() };
        match class(&layout) {
            Some(class) => {
                // SAFETY: the block is free now and large enough for a pointer.
                unsafe { ptr.cast::<*mut u8>().write(state.free[class]) };
                state.free[class] = ptr;
            }
            None => {
                let len = pages(layout.size());
                // SAFETY: alloc mapped exactly this.
                unsafe { sys::unmap(ptr, len) };
                state.held -= len;
            }
        }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller gives a valid size for this alignment.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (class(&layout), class(&new)) {
            (Some(a), Some(b)) if a == b => return ptr,
            (None, None) => {
                // SAFETY: one thread, and no reference outlives this block.
                let state = unsafe { &mut *self.0.get() };
                let (from, to) = (pages(layout.size()), pages(size));
                if to > from && to - from > CAP - state.held.min(CAP) {
                    return null_mut();
                }
                // SAFETY: alloc mapped exactly `from` bytes here.
                let Ok(at) = (unsafe { sys::remap(ptr, from, to) }) else { return null_mut() };
                state.held = state.held - from + to;
                return at;
            }
            _ => {}
        }
        // SAFETY: as in the default method: a new block, the common part copied, the old one freed.
        unsafe {
            let block = self.alloc(new);
            if !block.is_null() {
                block.copy_from_nonoverlapping(ptr, size.min(layout.size()));
                self.dealloc(ptr, layout);
            }
            block
        }
    }
}
