//! Programs for the guest: static x86-64 Linux executables, so that no toolchain of the host's and no
//! shell decides what is measured.
//!
//! [`compute`], of its own bytes, is what the figure of computing is taken from. It fills 64 KiB with a chain of loads, stores, additions, multiplications, rotations, an
//! unpredictable branch and a call in each round, and writes what it ends with to standard output.

/// Words of memory that one pass goes over.
const WORDS: u32 = 8192;
/// Passes. Each is about 20 instructions a word.
const PASSES: u32 = 2000;
/// Where the file is mapped.
const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

#[rustfmt::skip]
const CODE: &[u8] = &[
    0x48, 0x81, 0xec, 0x00, 0x00, 0x01, 0x00,       //   sub  rsp, 0x10000
    0x48, 0x89, 0xe7,                               //   mov  rdi, rsp
    0xbb, 0x44, 0x33, 0x22, 0x11,                   //   mov  ebx, PASSES
    0x31, 0xc0,                                     //   xor  eax, eax
    // outer:
    0x31, 0xc9,                                     //   xor  ecx, ecx
    // inner:
    0x48, 0x8b, 0x14, 0xcf,                         //   mov  rdx, [rdi + rcx*8]
    0x48, 0x01, 0xd0,                               //   add  rax, rdx
    0x48, 0x69, 0xd2, 0x2d, 0xf4, 0x51, 0x58,       //   imul rdx, rdx, 0x5851f42d
    0x48, 0xc1, 0xc0, 0x0d,                         //   rol  rax, 13
    0x48, 0x31, 0xc2,                               //   xor  rdx, rax
    0x48, 0x89, 0x14, 0xcf,                         //   mov  [rdi + rcx*8], rdx
    0x0f, 0xb6, 0xf2,                               //   movzx esi, dl
    0x01, 0x0c, 0xb7,                               //   add  dword [rdi + rsi*4], ecx
    0xa8, 0x01,                                     //   test al, 1
    0x74, 0x05,                                     //   jz   skip
    0x48, 0x8d, 0x44, 0x50, 0x07,                   //   lea  rax, [rax + rdx*2 + 7]
    // skip:
    0xe8, 0x2c, 0x00, 0x00, 0x00,                   //   call leaf
    0xff, 0xc1,                                     //   inc  ecx
    0x81, 0xf9, 0x00, 0x20, 0x00, 0x00,             //   cmp  ecx, 8192
    0x72, 0xc9,                                     //   jb   inner
    0xff, 0xcb,                                     //   dec  ebx
    0x75, 0xc3,                                     //   jnz  outer
    0x50,                                           //   push rax
    0xb8, 0x01, 0x00, 0x00, 0x00,                   //   mov  eax, 1 (write)
    0xbf, 0x01, 0x00, 0x00, 0x00,                   //   mov  edi, 1
    0x48, 0x89, 0xe6,                               //   mov  rsi, rsp
    0xba, 0x08, 0x00, 0x00, 0x00,                   //   mov  edx, 8
    0x0f, 0x05,                                     //   syscall
    0xb8, 0x3c, 0x00, 0x00, 0x00,                   //   mov  eax, 60 (exit)
    0x31, 0xff,                                     //   xor  edi, edi
    0x0f, 0x05,                                     //   syscall
    // leaf:
    0x52,                                           //   push rdx
    0x48, 0x29, 0xc8,                               //   sub  rax, rcx
    0x48, 0xc1, 0xea, 0x07,                         //   shr  rdx, 7
    0x48, 0x31, 0xd0,                               //   xor  rax, rdx
    0x5a,                                           //   pop  rdx
    0xc3,                                           //   ret
];
/// Offset in [`CODE`] of the immediate that says how many passes.
const PASSES_AT: usize = 11;

/// The executable for computing.
pub(crate) fn compute() -> Vec<u8> {
    let mut code = CODE.to_vec();
    code[PASSES_AT..PASSES_AT + 4].copy_from_slice(&PASSES.to_le_bytes());
    executable(&code)
}

/// Where [`executable`] has its code begin.
pub(crate) const ENTRY: u64 = BASE + HEADERS;

/// An executable of this code, which begins at [`ENTRY`].
pub(crate) fn executable(code: &[u8]) -> Vec<u8> {
    let size = HEADERS + code.len() as u64;

    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // One loadable segment, readable and executable: all of the file.
    for word in [1u32, 5] {
        file.extend(word.to_le_bytes());
    }
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend_from_slice(code);
    file
}

/// What [`compute`] writes, computed here.
pub(crate) fn compute_result() -> u64 {
    let mut memory = vec![0u64; WORDS as usize];
    let mut rax = 0u64;
    for _ in 0..PASSES {
        for ecx in 0..WORDS {
            let word = memory[ecx as usize];
            rax = rax.wrapping_add(word).rotate_left(13);
            let rdx = word.wrapping_mul(0x5851_f42d) ^ rax;
            memory[ecx as usize] = rdx;
            let dword = (rdx & 0xff) as usize;
            let shift = 32 * (dword % 2);
            let slot = &mut memory[dword / 2];
            let sum = ((*slot >> shift) as u32).wrapping_add(ecx);
            *slot = *slot & !(0xffff_ffff << shift) | u64::from(sum) << shift;
            if rax & 1 != 0 {
                rax = rax.wrapping_add(rdx.wrapping_mul(2)).wrapping_add(7);
            }
            rax = rax.wrapping_sub(u64::from(ecx)) ^ rdx >> 7;
        }
    }
    rax
}
