//! AES rounds, carry-less multiplication and CRC-32C, free of state. Plain tables: the guest's
//! secrets are no secret to the host that runs it.

use super::lane::Vector;

const fn double(x: u8) -> u8 {
    x << 1 ^ if x & 0x80 != 0 { 0x1b } else { 0 }
}

const fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = double(a);
        b >>= 1;
    }
    product
}

/// The S-box: walks the field by its generator 3 and that one's inverse, so that `q` is 1/`p`.
const fn make_sbox() -> [u8; 256] {
    let mut sbox = [0u8; 256];
    let (mut p, mut q) = (1u8, 1u8);
    loop {
        p ^= double(p);
        q ^= q << 1;
        q ^= q << 2;
        q ^= q << 4;
        if q & 0x80 != 0 {
            q ^= 0x09;
        }
        let x = q ^ q.rotate_left(1) ^ q.rotate_left(2) ^ q.rotate_left(3) ^ q.rotate_left(4);
        sbox[p as usize] = x ^ 0x63;
        if p == 1 {
            break;
        }
    }
    sbox[0] = 0x63;
    sbox
}

const fn invert(sbox: [u8; 256]) -> [u8; 256] {
    let mut inverse = [0u8; 256];
    let mut i = 0;
    while i < 256 {
        inverse[sbox[i] as usize] = i as u8;
        i += 1;
    }
    inverse
}

/// A column of the (inverse) MixColumns matrix times each byte, with `by` its coefficients.
const fn mix_table(by: [u8; 4]) -> [u32; 256] {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let x = i as u8;
        table[i] = u32::from_le_bytes([
            multiply(x, by[0]),
            multiply(x, by[1]),
            multiply(x, by[2]),
            multiply(x, by[3]),
        ]);
        i += 1;
    }
    table
}

static SBOX: [u8; 256] = make_sbox();
static INVERSE_SBOX: [u8; 256] = invert(make_sbox());
static MIX: [u32; 256] = mix_table([2, 1, 1, 3]);
static INVERSE_MIX: [u32; 256] = mix_table([14, 9, 13, 11]);

fn mix_columns(v: u128, table: &[u32; 256]) -> u128 {
    u128::from32(|column| {
        (0..4).fold(0, |mixed, row| {
            mixed ^ table[usize::from(v.u8(4 * column + row))].rotate_left(8 * row as u32)
        })
    })
}

/// SubBytes after ShiftRows.
fn substitute(v: u128) -> u128 {
    u128::from8(|i| SBOX[usize::from(v.u8((i + 4 * (i & 3)) & 15))])
}

fn inverse_substitute(v: u128) -> u128 {
    u128::from8(|i| INVERSE_SBOX[usize::from(v.u8((i + 12 * (i & 3)) & 15))])
}

pub(super) fn aesenc(a: u128, key: u128) -> u128 {
    mix_columns(substitute(a), &MIX) ^ key
}
pub(super) fn aesenclast(a: u128, key: u128) -> u128 {
    substitute(a) ^ key
}
pub(super) fn aesdec(a: u128, key: u128) -> u128 {
    mix_columns(inverse_substitute(a), &INVERSE_MIX) ^ key
}
pub(super) fn aesdeclast(a: u128, key: u128) -> u128 {
    inverse_substitute(a) ^ key
}
pub(super) fn aesimc(_: u128, b: u128) -> u128 {
    mix_columns(b, &INVERSE_MIX)
}
pub(super) fn aeskeygenassist(b: u128, imm: u8) -> u128 {
    let word = |i| b.u32(i).to_le_bytes().map(|x| SBOX[usize::from(x)]);
    let (x1, x3) = (u32::from_le_bytes(word(1)), u32::from_le_bytes(word(3)));
    let rcon = u32::from(imm);
    u128::from32(|i| match i {
        0 => x1,
        1 => x1.rotate_right(8) ^ rcon,
        2 => x3,
        _ => x3.rotate_right(8) ^ rcon,
    })
}

/// Carry-less product.
pub(super) fn carryless(a: u64, mut b: u64) -> u128 {
    let mut product = 0;
    while b != 0 {
        product ^= u128::from(a) << b.trailing_zeros();
        b &= b - 1;
    }
    product
}

const fn make_crc() -> [u32; 256] {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

static CRC: [u32; 256] = make_crc();

/// CRC-32C of the low `bytes` bytes of `data`, going on from `crc`.
pub(super) fn crc32(crc: u32, data: u64, bytes: usize) -> u32 {
    data.to_le_bytes().iter().take(bytes).fold(crc, |crc, b| CRC[usize::from(crc as u8 ^ b)] ^ crc >> 8)
}
