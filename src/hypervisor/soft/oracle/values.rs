//! Values that break things: edges of every integer and floating-point size, and random ones.

use super::rng::Rng;

const INTEGERS: [u64; 36] = [
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    15,
    16,
    17,
    31,
    32,
    33,
    63,
    64,
    65,
    0x7f,
    0x80,
    0x81,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0x8000_0001,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0x8080_8080_8080_8080,
    0x5555_5555_5555_5555,
    0x0102_0304_0506_0708,
    u64::MAX,
];

const SINGLES: [u32; 26] = [
    0,
    1,
    0x0040_0000,
    0x007f_ffff,
    0x0080_0000,
    0x3f00_0000,
    0x3f7f_ffff,
    0x3f80_0000,
    0x3f80_0001,
    0x3fc0_0000,
    0x4000_0000,
    0x4020_0000,
    0x4b00_0000,
    0x4b7f_ffff,
    0x4f00_0000,
    0x4eff_ffff,
    0x4f80_0000,
    0x5f00_0000,
    0x7f7f_ffff,
    0x7f80_0000,
    0x7f80_0001,
    0x7fa0_0000,
    0x7fc0_0000,
    0x7fff_ffff,
    0x7fc1_2345,
    0x3eaa_aaab,
];

const DOUBLES: [u64; 26] = [
    0,
    1,
    0x0008_0000_0000_0000,
    0x000f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x3fe0_0000_0000_0000,
    0x3fef_ffff_ffff_ffff,
    0x3ff0_0000_0000_0000,
    0x3ff0_0000_0000_0001,
    0x3ff8_0000_0000_0000,
    0x4000_0000_0000_0000,
    0x4004_0000_0000_0000,
    0x41df_ffff_ffc0_0000,
    0x41e0_0000_0000_0000,
    0x41df_ffff_ffe0_0000,
    0x4330_0000_0000_0000,
    0x43e0_0000_0000_0000,
    0x43df_ffff_ffff_ffff,
    0x47ef_ffff_f000_0000,
    0x36a0_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0x7ff0_0000_0000_0001,
    0x7ff8_0000_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x3fd5_5555_5555_5555,
];

/// Significand and exponent without sign; some are encodings that modern processors refuse.
const EXTENDED: [(u64, u16); 26] = [
    (0, 0),
    (1, 0),
    (0x7fff_ffff_ffff_ffff, 0),
    (0x8000_0000_0000_0000, 0),
    (0x8000_0000_0000_0000, 1),
    (0xffff_ffff_ffff_ffff, 1),
    (0x8000_0000_0000_0000, 0x3ffe),
    (0x8000_0000_0000_0000, 0x3fff),
    (0x8000_0000_0000_0001, 0x3fff),
    (0xc000_0000_0000_0000, 0x3fff),
    (0xffff_ffff_ffff_ffff, 0x3ffe),
    (0x8000_0000_0000_0000, 0x4000),
    (0xa000_0000_0000_0000, 0x4000),
    (0xfffe_0000_0000_0000, 0x400d),
    (0xffff_ffff_0000_0000, 0x401e),
    (0xffff_ffff_ffff_ffff, 0x403d),
    (0x8000_0000_0000_0000, 0x403e),
    (0xffff_ffff_ffff_ffff, 0x7ffe),
    (0x8000_0000_0000_0000, 0x7fff),
    (0x8000_0000_0000_0001, 0x7fff),
    (0xc000_0000_0000_0000, 0x7fff),
    (0xffff_ffff_ffff_ffff, 0x7fff),
    (0x4000_0000_0000_0000, 0x3fff),
    (0, 0x3fff),
    (0, 0x7fff),
    (0xc90f_daa2_2168_c235, 0x4000),
];

/// An integer: edges, their neighbours, random ones of every width.
pub(super) fn integer(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0..3 => rng.pick(&INTEGERS),
        3 => rng.pick(&INTEGERS).wrapping_neg(),
        4 => rng.pick(&INTEGERS) ^ rng.pick(&INTEGERS),
        5 => (rng.next() as i64 >> rng.below(64)) as u64,
        _ => rng.next(),
    }
}

pub(super) fn single(rng: &mut Rng) -> u32 {
    let sign = (rng.next() as u32) & 0x8000_0000;
    match rng.below(8) {
        0..4 => rng.pick(&SINGLES) ^ sign,
        // Numbers whose exponents are close, so that sums and differences round.
        4..6 => (0x3c00_0000 + (rng.next() as u32 & 0x07ff_ffff)) | sign,
        6 => (rng.below(4096) as f32).to_bits() ^ sign,
        _ => rng.next() as u32,
    }
}

pub(super) fn double(rng: &mut Rng) -> u64 {
    let sign = rng.next() & 1 << 63;
    match rng.below(8) {
        0..4 => rng.pick(&DOUBLES) ^ sign,
        4..6 => (0x3fc0_0000_0000_0000 + (rng.next() & 0x00ff_ffff_ffff_ffff)) | sign,
        6 => (rng.below(1 << 20) as f64).to_bits() ^ sign,
        _ => rng.next(),
    }
}

pub(super) fn extended(rng: &mut Rng) -> (u64, u16) {
    let sign = (rng.next() as u16) & 0x8000;
    match rng.below(8) {
        0..3 => {
            let (significand, exponent) = rng.pick(&EXTENDED);
            (significand, exponent | sign)
        }
        3..6 => (rng.next() | 1 << 63, (0x3fe0 + rng.below(0x60) as u16) | sign),
        6 => {
            let n = rng.below(1 << 20) as u64 + 1;
            let shift = n.leading_zeros();
            (n << shift, (0x403e - shift as u16) | sign)
        }
        _ => (rng.next() | u64::from(rng.chance(90)) << 63, rng.next() as u16),
    }
}

/// Sixteen bytes that are interesting as one kind of vector or another.
pub(super) fn vector(rng: &mut Rng) -> u128 {
    let mut bytes = [0; 16];
    match rng.below(6) {
        0..2 => bytes.chunks_exact_mut(4).for_each(|c| c.copy_from_slice(&single(rng).to_le_bytes())),
        2..4 => bytes.chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&double(rng).to_le_bytes())),
        4 => bytes.chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&integer(rng).to_le_bytes())),
        _ => {
            let width = 1 << rng.below(3);
            bytes
                .chunks_exact_mut(width)
                .for_each(|c| c.copy_from_slice(&integer(rng).to_le_bytes()[..width]));
        }
    }
    u128::from_le_bytes(bytes)
}
