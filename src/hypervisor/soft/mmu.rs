//! Paging: the 4-level page walk with its faults and accessed/dirty bits, and the slow paths of
//! memory accesses (TLB miss, page crossing, device memory, stores to decoded code).

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::arch::x86_64::{cr0, cr4, efer, rflags, vector};

use super::cpu::{Access, Cpu, Exception, attention};
use super::op::Stop;
use super::tlb::Translation;

/// Page-table entry bits.
mod pte {
    pub(super) const PRESENT: u64 = 1 << 0;
    pub(super) const WRITE: u64 = 1 << 1;
    pub(super) const USER: u64 = 1 << 2;
    pub(super) const ACCESSED: u64 = 1 << 5;
    pub(super) const DIRTY: u64 = 1 << 6;
    pub(super) const LARGE: u64 = 1 << 7;
    pub(super) const GLOBAL: u64 = 1 << 8;
    pub(super) const NX: u64 = 1 << 63;
    /// Physical address width of the processor model.
    pub(super) const PHYS_BITS: u32 = 46;
    pub(super) const ADDR: u64 = ((1 << PHYS_BITS) - 1) & !4095;
    /// Bits 46–51 are reserved on a processor with 46 physical address bits.
    pub(super) const RESERVED: u64 = ((1 << 52) - 1) & !((1 << PHYS_BITS) - 1);
}

/// Page-fault error code bits.
mod pf {
    pub(super) const PRESENT: u32 = 1;
    pub(super) const WRITE: u32 = 2;
    pub(super) const USER: u32 = 4;
    pub(super) const RESERVED: u32 = 8;
    pub(super) const FETCH: u32 = 16;
}

/// A finished walk.
struct Mapping {
    gpa: u64,
    writable: bool,
    readable: bool,
    global: bool,
    /// Size of the page: its address bits below the frame's.
    shift: u32,
}

impl Cpu {
    /// The guest-physical address behind `va` for `access` with the current privilege.
    pub(super) fn translate(&mut self, va: u64, access: Access) -> Result<u64, Stop> {
        Ok(self.walk(va, access)?.gpa)
    }

    /// #GP(0) or #SS(0) for an address that no page can have.
    #[inline]
    pub(super) fn check_canonical(&mut self, va: u64) -> Result<(), Stop> {
        if (va as i64) << 16 >> 16 != va as i64 {
            self.fault = Exception { vector: vector::GP, error: Some(0), address: true, cr2: 0 };
            return Err(Stop::Fault);
        }
        Ok(())
    }

    fn walk(&mut self, va: u64, access: Access) -> Result<Mapping, Stop> {
        loop {
            if let Some(mapping) = self.try_walk(va, access)? {
                return Ok(mapping);
            }
        }
    }

    /// One walk. `None` when an entry has changed before it could be marked accessed or dirty: what was read of it
    /// must not be used then.
    #[inline(always)]
    fn try_walk(&mut self, va: u64, access: Access) -> Result<Option<Mapping>, Stop> {
        if self.cr0 & cr0::PG == 0 {
            let gpa = if self.long { va } else { va as u32 as u64 };
            return Ok(Some(Mapping { gpa, writable: true, readable: true, global: false, shift: 12 }));
        }
        self.check_canonical(va)?;
        let user = self.cpl == 3;
        let nx_on = self.efer & efer::NXE != 0;
        let mut error = if user { pf::USER } else { 0 };
        match access {
            Access::Read => {}
            Access::Write => error |= pf::WRITE,
            // The bit reports fetches only where the processor can refuse them.
            Access::Execute if nx_on || self.cr4 & cr4::SMEP != 0 => error |= pf::FETCH,
            Access::Execute => {}
        }
        let mut table = self.cr3 & pte::ADDR;
        let mut allowed = pte::USER | pte::WRITE;
        let mut no_execute = false;
        let mut level = 4u32;
        // Slots to mark accessed once the walk has succeeded.
        let mut trail = [(0u64, 0u64); 4];
        let (leaf_slot, leaf, shift) = loop {
            let shift = 12 + 9 * (level - 1);
            let slot = table + ((va >> shift) & 511) * 8;
            let entry = self.phys_read_u64(slot);
            if entry & pte::PRESENT == 0 {
                return Err(self.page_fault(va, error));
            }
            let large = level > 1 && entry & pte::LARGE != 0;
            let mut reserved = pte::RESERVED;
            if !nx_on {
                reserved |= pte::NX;
            }
            if large {
                // Bits between the PAT bit (12) and the frame must be zero.
                reserved |= ((1u64 << shift) - 1) & !0x1fff;
            }
            if entry & reserved != 0 || (level == 4 && entry & pte::LARGE != 0) {
                return Err(self.page_fault(va, error | pf::PRESENT | pf::RESERVED));
            }
            allowed &= entry;
            no_execute |= entry & pte::NX != 0;
            trail[level as usize - 1] = (slot, entry);
            if level == 1 || large {
                break (slot, entry, shift);
            }
            table = entry & pte::ADDR;
            level -= 1;
        };
        let user_page = allowed & pte::USER != 0;
        let write_ok = allowed & pte::WRITE != 0 || (!user && self.cr0 & cr0::WP == 0);
        let smap = self.cr4 & cr4::SMAP != 0 && self.sysflags & rflags::AC == 0;
        let data_ok = if user { user_page } else { !(user_page && smap) };
        let ok = match access {
            Access::Read => data_ok,
            Access::Write => data_ok && write_ok,
            Access::Execute if no_execute => false,
            Access::Execute if user => user_page,
            Access::Execute => !(user_page && self.cr4 & cr4::SMEP != 0),
        };
        if !ok {
            return Err(self.page_fault(va, error | pf::PRESENT));
        }
        let dirties = if access == Access::Write { pte::DIRTY } else { 0 };
        for &(slot, entry) in &trail[level as usize - 1..] {
            let marks = pte::ACCESSED | if slot == leaf_slot { dirties } else { 0 };
            if entry & marks != marks && !self.mark_pte(slot, entry, entry | marks) {
                return Ok(None);
            }
        }
        let dirty = (leaf | dirties) & pte::DIRTY != 0;
        let mask = (1u64 << shift) - 1;
        Ok(Some(Mapping {
            gpa: (leaf & pte::ADDR & !mask) | (va & mask),
            writable: data_ok && write_ok && dirty,
            readable: data_ok,
            global: leaf & pte::GLOBAL != 0 && self.cr4 & cr4::PGE != 0,
            shift,
        }))
    }

    #[cold]
    fn page_fault(&mut self, va: u64, error: u32) -> Stop {
        // A refused translation must not stay cached in weaker form.
        self.tlb.flush_page(va);
        self.fault = Exception { vector: vector::PF, error: Some(error), cr2: va, address: false };
        Stop::Fault
    }

    /// Replaces the entry in `slot`, if it is still `old`.
    fn mark_pte(&mut self, slot: u64, old: u64, new: u64) -> bool {
        let Some((p, page)) = self.ram.host(slot) else { return true };
        // SAFETY: `slot` is 8-byte aligned and in RAM; page tables are shared with other
        // vCPUs, hence the atomic.
        let entry = unsafe { AtomicU64::from_ptr(p.cast()) };
        let marked = entry.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if marked {
            self.wrote(page);
        }
        marked
    }

    fn phys_read_u64(&mut self, gpa: u64) -> u64 {
        match self.ram.host(gpa) {
            // SAFETY: 8-byte aligned address in mapped RAM.
            Some((p, _)) => unsafe { AtomicU64::from_ptr(p.cast()) }.load(Ordering::Relaxed),
            None => 0,
        }
    }

    /// Walks for `va` and caches the result when it is RAM. Returns the guest-physical address.
    pub(super) fn fill(&mut self, va: u64, access: Access) -> Result<u64, Stop> {
        let map = self.walk(va, access)?;
        if let Some((host, page)) = self.ram.host(map.gpa & !4095) {
            let (readable, writable) = (map.readable, map.writable && self.may_write_unseen(page));
            let (global, shift) = (map.global, map.shift);
            self.tlb.fill(va, Translation { host, page, readable, writable, global, shift });
        }
        Ok(map.gpa)
    }

    /// Whether stores to `page` may go through the TLB.
    #[inline]
    fn may_write_unseen(&self, page: u32) -> bool {
        // Blocks of a page that is plain again are dropped at the end of this block: until then stores to it must be
        // seen, as one may be to the very block.
        if self.attention.load(Ordering::Relaxed) & attention::CODE != 0 {
            return false;
        }
        if self.several { self.code.become_writer(page) } else { !self.ram.code_pages().is_code(page) }
    }

    #[inline(never)]
    pub(super) fn read_slow(&mut self, va: u64, len: usize) -> Result<u64, Stop> {
        self.read_any(va, len, Access::Read)
    }

    /// The read half of a read-modify-write: faults are reported as for a write.
    pub(super) fn read_slow_for_write(&mut self, va: u64, len: usize) -> Result<u64, Stop> {
        self.read_any(va, len, Access::Write)
    }

    fn read_any(&mut self, va: u64, len: usize, access: Access) -> Result<u64, Stop> {
        let mut bytes = [0u8; 8];
        let first = len.min(4096 - (va & 4095) as usize);
        self.check_alignment(va, len as u64)?;
        if first < len {
            self.check_canonical(va.wrapping_add(first as u64))?;
        }
        let gpa = self.fill(va, access)?;
        if first < len {
            let gpa2 = self.fill(va.wrapping_add(first as u64), access)?;
            self.phys_read(gpa, &mut bytes[..first]);
            self.phys_read(gpa2, &mut bytes[first..len]);
        } else {
            self.phys_read(gpa, &mut bytes[..len]);
        }
        Ok(u64::from_le_bytes(bytes))
    }

    #[inline(never)]
    pub(super) fn write_slow(&mut self, va: u64, value: u64, len: usize) -> Result<(), Stop> {
        let bytes = value.to_le_bytes();
        let first = len.min(4096 - (va & 4095) as usize);
        self.check_alignment(va, len as u64)?;
        if first < len {
            self.check_canonical(va.wrapping_add(first as u64))?;
        }
        let gpa = self.fill(va, Access::Write)?;
        if first < len {
            let gpa2 = self.fill(va.wrapping_add(first as u64), Access::Write)?;
            self.phys_write(gpa, &bytes[..first]);
            self.phys_write(gpa2, &bytes[first..len]);
        } else {
            self.phys_write(gpa, &bytes[..len]);
        }
        Ok(())
    }

    /// Reads guest-physical memory or a device; `out` lies within one page.
    pub(super) fn phys_read(&mut self, gpa: u64, out: &mut [u8]) {
        if let Some((p, _)) = self.ram.host(gpa) {
            // SAFETY: the rest of the page after `gpa` is mapped, and `out` does not leave it. Whole words are read
            // in one access each: other vCPUs may be writing them.
            unsafe {
                match out.len() {
                    2 => out.copy_from_slice(&p.cast::<u16>().read_unaligned().to_ne_bytes()),
                    4 => out.copy_from_slice(&p.cast::<u32>().read_unaligned().to_ne_bytes()),
                    8 => out.copy_from_slice(&p.cast::<u64>().read_unaligned().to_ne_bytes()),
                    _ => std::ptr::copy_nonoverlapping(p, out.as_mut_ptr(), out.len()),
                }
            }
            return;
        }
        if let Some(apic) = self.apic.as_ref().filter(|a| in_apic(a.mmio_base(), gpa)) {
            let word = apic.mmio_read((gpa & 0xffc) as u32).to_le_bytes();
            let start = (gpa & 3) as usize;
            for (i, b) in out.iter_mut().enumerate() {
                *b = word.get(start + i).copied().unwrap_or(0);
            }
            return;
        }
        out.fill(0xff);
        if let Some(io) = self.io() {
            let len = out.len();
            if len.is_power_of_two() {
                for (i, part) in out.chunks_mut(8).enumerate() {
                    io.mmio_read(gpa + 8 * i as u64, part);
                }
            } else {
                for (i, b) in out.iter_mut().enumerate() {
                    io.mmio_read(gpa + i as u64, std::slice::from_mut(b));
                }
            }
        }
    }

    /// Writes guest-physical memory or a device; `data` lies within one page.
    pub(super) fn phys_write(&mut self, gpa: u64, data: &[u8]) {
        if let Some((p, page)) = self.ram.host(gpa) {
            // SAFETY: as in `phys_read`. Whole words are written in one access each, and once: a copy in parts, or a
            // second one of the same bytes, could undo what another vCPU has written in between.
            unsafe {
                match *data {
                    [a] => p.write(a),
                    [a, b] => p.cast::<u16>().write_unaligned(u16::from_ne_bytes([a, b])),
                    [a, b, c, d] => p.cast::<u32>().write_unaligned(u32::from_ne_bytes([a, b, c, d])),
                    [a, b, c, d, e, f, g, h] => {
                        p.cast::<u64>().write_unaligned(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
                    }
                    _ => std::ptr::copy_nonoverlapping(data.as_ptr(), p, data.len()),
                }
            }
            self.wrote(page);
            return;
        }
        if let Some(apic) = self.apic.as_ref().filter(|a| in_apic(a.mmio_base(), gpa)) {
            if let Ok(word) = <[u8; 4]>::try_from(data) {
                apic.mmio_write((gpa & 0xffc) as u32, u32::from_le_bytes(word));
            }
            return;
        }
        if let Some(io) = self.io() {
            if data.len().is_power_of_two() {
                for (i, part) in data.chunks(8).enumerate() {
                    io.mmio_write(gpa + 8 * i as u64, part);
                }
            } else {
                for (i, b) in data.iter().enumerate() {
                    io.mmio_write(gpa + i as u64, std::slice::from_ref(b));
                }
            }
        }
    }

    /// Writes `new` to the 16 bytes at the aligned `gpa` if they are `expected`, in one step. Returns what they were.
    pub(super) fn exchange16(&mut self, gpa: u64, expected: u128, new: u128) -> u128 {
        if let Some((p, page)) = self.ram.host(gpa) {
            // SAFETY: 16-byte aligned, in mapped RAM.
            if let Some(old) = unsafe { super::ram::exchange16(p.cast(), expected, new) } {
                self.wrote(page);
                return old;
            }
        }
        // A device, or a host without the instruction.
        self.alone(|cpu| {
            let mut bytes = [0; 16];
            cpu.phys_read(gpa, &mut bytes);
            let old = u128::from_le_bytes(bytes);
            if old == expected {
                cpu.phys_write(gpa, &new.to_le_bytes());
            }
            old
        })
    }

    /// Reports a store to RAM page `page`. When it holds decoded code, the running block ends
    /// after this instruction.
    #[inline]
    pub(super) fn wrote(&mut self, page: u32) {
        if self.several {
            // Of a vCPU that marks the page and this one, one sees the other.
            fence(Ordering::SeqCst);
        }
        if self.ram.code_pages().is_code(page) {
            self.ram.code_pages().written(page);
            self.op_end = std::ptr::null();
        } else if self.attention.load(Ordering::Relaxed) & attention::CODE != 0 {
            self.op_end = std::ptr::null();
        }
    }
}

fn in_apic(base: Option<u64>, gpa: u64) -> bool {
    base.is_some_and(|b| gpa & !4095 == b)
}
