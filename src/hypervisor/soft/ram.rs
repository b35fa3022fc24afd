//! Guest-physical addresses to host pointers.

#![allow(unsafe_code)]

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::{CodePages, GuestRam, MMIO_HOLE_END, MMIO_HOLE_START};

/// Guest RAM as pointers.
pub(super) struct Ram {
    low: *mut u8,
    low_len: u64,
    high: *mut u8,
    high_len: u64,
    guest: Arc<GuestRam>,
}

// SAFETY: the pointers lead into the mapping that `guest` keeps alive; it is shared memory that
// every thread may access.
unsafe impl Send for Ram {}

impl Ram {
    pub(super) fn new(guest: Arc<GuestRam>) -> Self {
        let part = |start: u64| {
            guest.memory().find_region(GuestAddress(start)).map_or((std::ptr::null_mut(), 0), |r| {
                (
                    guest.memory().get_host_address(GuestAddress(start)).unwrap_or(std::ptr::null_mut()),
                    r.len(),
                )
            })
        };
        let (low, low_len) = part(0);
        let (high, high_len) = part(MMIO_HOLE_END);
        Self { low, low_len, high, high_len, guest }
    }

    /// The host address of `gpa` (valid to the end of its page) and its page in the RAM file.
    #[inline]
    pub(super) fn host(&self, gpa: u64) -> Option<(*mut u8, u32)> {
        if gpa < self.low_len {
            // SAFETY: inside the low region.
            Some((unsafe { self.low.add(gpa as usize) }, (gpa >> 12) as u32))
        } else if gpa >= MMIO_HOLE_END && gpa - MMIO_HOLE_END < self.high_len {
            let off = gpa - MMIO_HOLE_END;
            // SAFETY: inside the high region.
            Some((unsafe { self.high.add(off as usize) }, ((off + MMIO_HOLE_START) >> 12) as u32))
        } else {
            None
        }
    }

    pub(super) fn code_pages(&self) -> &CodePages {
        self.guest.code_pages()
    }
}

/// CMPXCHG16B on the host, if it has that.
///
/// # Safety
/// `p` is aligned to 16 bytes and in a mapping that others access atomically or by plain words only.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn exchange16(p: *mut u128, expected: u128, new: u128) -> Option<u128> {
    if !std::arch::is_x86_feature_detected!("cmpxchg16b") {
        return None;
    }
    let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
    // SAFETY: the host has the instruction; `p` is as the caller promises. RBX, which no operand may be, is put back.
    unsafe {
        std::arch::asm!(
            "xchg {new}, rbx",
            "lock cmpxchg16b [{p}]",
            "mov rbx, {new}",
            new = inout(reg) new as u64 => _,
            p = in(reg) p,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack)
        );
    }
    Some(u128::from(high) << 64 | u128::from(low))
}

/// No such thing that the standard library offers.
///
/// # Safety
/// None.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn exchange16(_: *mut u128, _: u128, _: u128) -> Option<u128> {
    None
}
