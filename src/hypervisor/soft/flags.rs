//! Arithmetic flags, kept as the last result and its carries and only turned into bits on demand.
//!
//! `res` is the result, sign-extended to 64 bits: ZF, SF and PF follow from it. `aux` holds what
//! does not: carry out of the top bit (bit 63) and of the bit below (bit 62), whose difference is
//! OF; carry out of bit 3 (bit 3), AF; and corrections for flags that were set one by one:
//! SF (bit 0) and parity (bits 8–15).

use crate::arch::x86_64::rflags;

use super::int::Int;

/// The six status flags.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Flags {
    pub(super) res: u64,
    pub(super) aux: u64,
}

impl Flags {
    #[inline(always)]
    pub(super) fn cf(self) -> bool {
        self.aux >> 63 != 0
    }
    #[inline(always)]
    pub(super) fn of(self) -> bool {
        (self.aux ^ (self.aux << 1)) >> 63 != 0
    }
    #[inline(always)]
    pub(super) fn zf(self) -> bool {
        self.res == 0
    }
    #[inline(always)]
    pub(super) fn sf(self) -> bool {
        ((self.res >> 63) ^ self.aux) & 1 != 0
    }
    #[inline(always)]
    pub(super) fn pf(self) -> bool {
        (self.res as u8 ^ (self.aux >> 8) as u8).count_ones() & 1 == 0
    }
    #[inline(always)]
    pub(super) fn af(self) -> bool {
        self.aux & 8 != 0
    }

    /// The flags as RFLAGS bits.
    pub(super) fn bits(self) -> u64 {
        let on = |cond: bool, bit: u64| if cond { bit } else { 0 };
        on(self.cf(), rflags::CF)
            | on(self.pf(), rflags::PF)
            | on(self.af(), rflags::AF)
            | on(self.zf(), rflags::ZF)
            | on(self.sf(), rflags::SF)
            | on(self.of(), rflags::OF)
    }

    /// Flags from RFLAGS bits.
    pub(super) fn from_bits(bits: u64) -> Self {
        let has = |bit: u64| bits & bit != 0;
        let res = !has(rflags::ZF) as u64;
        let mut aux = has(rflags::SF) as u64;
        // Result 0 has even parity, result 1 odd.
        if has(rflags::PF) != has(rflags::ZF) {
            aux |= 1 << 8;
        }
        if has(rflags::AF) {
            aux |= 8;
        }
        let cf = has(rflags::CF) as u64;
        let of = has(rflags::OF) as u64;
        Self { res, aux: aux | cf << 63 | (cf ^ of) << 62 }
    }

    /// Changes CF and leaves the others.
    #[inline(always)]
    pub(super) fn set_cf(&mut self, cf: bool) {
        let of = self.of();
        self.set_cf_of(cf, of);
    }

    /// Changes CF and OF and leaves the others.
    #[inline(always)]
    pub(super) fn set_cf_of(&mut self, cf: bool, of: bool) {
        self.aux = self.aux & !(3 << 62) | (cf as u64) << 63 | ((cf ^ of) as u64) << 62;
    }

    /// Changes ZF and leaves the others.
    pub(super) fn set_zf(&mut self, zf: bool) {
        let bits = self.bits() & !rflags::ZF;
        *self = Self::from_bits(bits | if zf { rflags::ZF } else { 0 });
    }

    #[inline(always)]
    fn carries<T: Int>(carry: T) -> u64 {
        let c = carry.to_u64();
        (c & 8) | ((c >> (T::BITS - 2)) & 3) << 62
    }

    /// After `r = a + b (+ carry)`.
    #[inline(always)]
    pub(super) fn add<T: Int>(&mut self, a: T, b: T, r: T) {
        self.res = r.sext();
        self.aux = Self::carries((a & b) | ((a | b) & !r));
    }

    /// After `r = a - b (- borrow)`.
    #[inline(always)]
    pub(super) fn sub<T: Int>(&mut self, a: T, b: T, r: T) {
        self.res = r.sext();
        self.aux = Self::carries((!a & b) | ((!a | b) & r));
    }

    /// After AND, OR, XOR, TEST: CF and OF clear (AF, undefined, clear).
    #[inline(always)]
    pub(super) fn logic<T: Int>(&mut self, r: T) {
        self.res = r.sext();
        self.aux = 0;
    }

    /// ZF, SF and PF from `r`, the others as given.
    #[inline(always)]
    pub(super) fn result<T: Int>(&mut self, r: T, cf: bool, of: bool) {
        self.res = r.sext();
        self.aux = (cf as u64) << 63 | ((cf ^ of) as u64) << 62;
    }

    /// Condition `cc` in the encoding of Jcc.
    #[inline(always)]
    pub(super) fn cond(self, cc: u8) -> bool {
        let value = match cc >> 1 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        value != (cc & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_survives_a_round_trip() {
        let all = [rflags::CF, rflags::PF, rflags::AF, rflags::ZF, rflags::SF, rflags::OF];
        for n in 0..64u32 {
            let bits = (0..6).filter(|i| n >> i & 1 != 0).map(|i| all[i]).sum::<u64>();
            assert_eq!(Flags::from_bits(bits).bits(), bits);
        }
    }
}
