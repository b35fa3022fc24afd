//! The string comparisons of SSE4.2 (PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM), free of state.

use super::lane::Vector;

/// What a comparison gives before it is turned into an index or a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Matches {
    /// Bit per element (the manual's IntRes2).
    pub(super) bits: u32,
    /// Elements in a register: 16 or 8.
    pub(super) lanes: u32,
    /// The first operand is shorter than a register (SF).
    pub(super) short_a: bool,
    /// The second operand is shorter than a register (ZF).
    pub(super) short_b: bool,
}

/// Length of an implicit-length operand in elements: up to the first zero.
pub(super) fn implicit_len(v: u128, imm: u8) -> u32 {
    let lanes = lanes(imm);
    (0..lanes).find(|&i| element(v, i as usize, imm) == 0).unwrap_or(lanes)
}

/// Length of an explicit-length operand in elements: the register's absolute value, saturated.
pub(super) fn explicit_len(register: i64, imm: u8) -> u32 {
    register.unsigned_abs().min(lanes(imm).into()) as u32
}

fn lanes(imm: u8) -> u32 {
    if imm & 1 == 0 { 16 } else { 8 }
}

/// Element `i` in the format `imm` gives: unsigned or signed, bytes or words.
fn element(v: u128, i: usize, imm: u8) -> i32 {
    match imm & 3 {
        0 => v.u8(i).into(),
        1 => v.u16(i).into(),
        2 => (v.u8(i) as i8).into(),
        _ => (v.u16(i) as i16).into(),
    }
}

/// Compares `a` (a set, ranges, or what is sought; `len_a` elements) with `b` as `imm` says.
pub(super) fn compare(a: u128, len_a: u32, b: u128, len_b: u32, imm: u8) -> Matches {
    let lanes = lanes(imm);
    let mut ea = [0i32; 16];
    let mut eb = [0i32; 16];
    for i in 0..lanes as usize {
        ea[i] = element(a, i, imm);
        eb[i] = element(b, i, imm);
    }
    let valid_a = &ea[..len_a.min(lanes) as usize];
    let valid_b = &eb[..len_b.min(lanes) as usize];
    let mut bits = 0u32;
    match imm >> 2 & 3 {
        0 => {
            for (j, x) in valid_b.iter().enumerate() {
                bits |= u32::from(valid_a.contains(x)) << j;
            }
        }
        1 => {
            for (j, x) in valid_b.iter().enumerate() {
                let hit = valid_a.chunks_exact(2).any(|r| r[0] <= *x && *x <= r[1]);
                bits |= u32::from(hit) << j;
            }
        }
        2 => {
            for j in 0..lanes as usize {
                bits |= u32::from(valid_a.get(j) == valid_b.get(j)) << j;
            }
        }
        _ => {
            for j in 0..lanes as usize {
                let room = lanes as usize - j;
                let hit = valid_a.iter().take(room).enumerate().all(|(i, x)| valid_b.get(i + j) == Some(x));
                bits |= u32::from(hit) << j;
            }
        }
    }
    let all = if lanes == 16 { 0xffff } else { 0xff };
    match imm >> 4 & 3 {
        1 => bits ^= all,
        3 => bits ^= (1 << valid_b.len()) - 1,
        _ => {}
    }
    Matches { bits, lanes, short_a: len_a < lanes, short_b: len_b < lanes }
}

impl Matches {
    /// ECX of the index forms: the first or last match, or the number of elements.
    pub(super) fn index(self, imm: u8) -> u32 {
        match self.bits {
            0 => self.lanes,
            bits if imm & 0x40 == 0 => bits.trailing_zeros(),
            bits => bits.ilog2(),
        }
    }

    /// XMM0 of the mask forms: one bit or one whole element per match.
    pub(super) fn mask(self, imm: u8) -> u128 {
        if imm & 0x40 == 0 {
            self.bits.into()
        } else if self.lanes == 16 {
            u128::from8(|i| if self.bits >> i & 1 != 0 { 0xff } else { 0 })
        } else {
            u128::from16(|i| if self.bits >> i & 1 != 0 { 0xffff } else { 0 })
        }
    }
}
