//! Descriptors and the tables they lie in.

use crate::arch::x86_64::{Segment, vector};

use super::super::cpu::Cpu;
use super::super::op::Stop;

/// A segment descriptor as it lies in memory.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Descriptor(pub(in super::super) u64);

impl Descriptor {
    pub(in super::super) fn dpl(self) -> u8 {
        (self.0 >> 45) as u8 & 3
    }
    pub(in super::super) fn present(self) -> bool {
        self.0 >> 47 & 1 != 0
    }
    /// Code or data, not system.
    pub(in super::super) fn ordinary(self) -> bool {
        self.0 >> 44 & 1 != 0
    }
    pub(in super::super) fn kind(self) -> u8 {
        (self.0 >> 40) as u8 & 15
    }
    pub(in super::super) fn code(self) -> bool {
        self.ordinary() && self.kind() & 8 != 0
    }
    pub(in super::super) fn conforming(self) -> bool {
        self.kind() & 4 != 0
    }
    /// Data that may be written.
    pub(super) fn writable(self) -> bool {
        !self.code() && self.kind() & 2 != 0
    }
    /// Data, or code that may be read.
    pub(super) fn readable(self) -> bool {
        !self.code() || self.kind() & 2 != 0
    }
    pub(super) fn long(self) -> bool {
        self.0 >> 53 & 1 != 0
    }
    pub(super) fn big(self) -> bool {
        self.0 >> 54 & 1 != 0
    }
    pub(in super::super) fn limit(self) -> u32 {
        let limit = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.0 >> 55 & 1 != 0 { limit << 12 | 0xfff } else { limit }
    }
    pub(super) fn base(self) -> u64 {
        self.0 >> 16 & 0xff_ffff | self.0 >> 32 & 0xff00_0000
    }
    pub(in super::super) fn segment(self, selector: u16) -> Segment {
        Segment {
            selector,
            base: self.base(),
            limit: self.limit(),
            attributes: (self.0 >> 40 & 0xff | self.0 >> 40 & 0xf000) as u16,
        }
    }
}

/// A flat segment as SYSCALL and its kin load it.
pub(in super::super) fn flat(selector: u16, code: bool, dpl: u16, long: bool) -> Segment {
    let kind = if code { 0xb } else { 0x3 };
    let size = if long { 1 << 13 } else { 1 << 14 };
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attributes: kind | 1 << 4 | dpl << 5 | 1 << 7 | size | 1 << 15,
    }
}

pub(super) fn null(selector: u16) -> bool {
    selector & !3 == 0
}

impl Cpu {
    pub(super) fn gp_sel(&mut self, selector: u16) -> Stop {
        self.raise(vector::GP, Some((selector & !3) as u32))
    }

    /// Address of the descriptor that `selector` names, with `len` bytes of it inside the table.
    pub(super) fn descriptor_address(&mut self, selector: u16, len: u64) -> Result<u64, Stop> {
        let index = (selector & !7) as u64;
        let (base, limit) = if selector & 4 != 0 {
            if null(self.ldtr.selector) {
                return Err(self.gp_sel(selector));
            }
            (self.ldtr.base, self.ldtr.limit as u64)
        } else {
            (self.gdt.base, self.gdt.limit as u64)
        };
        if index + len - 1 > limit {
            return Err(self.gp_sel(selector));
        }
        Ok(base.wrapping_add(index))
    }

    /// Reads the descriptor that `selector` names.
    pub(in super::super) fn descriptor(&mut self, selector: u16) -> Result<Descriptor, Stop> {
        let at = self.descriptor_address(selector, 8)?;
        self.read_system::<u64>(at).map(Descriptor)
    }

    pub(super) fn mark_accessed(&mut self, selector: u16, d: Descriptor) -> Result<Descriptor, Stop> {
        if d.0 >> 40 & 1 == 0 {
            let at = self.descriptor_address(selector, 8)?;
            self.write_system::<u64>(at, d.0 | 1 << 40)?;
        }
        Ok(Descriptor(d.0 | 1 << 40))
    }
}
