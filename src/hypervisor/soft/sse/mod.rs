//! MMX and SSE up to SSE4.2, AES, PCLMULQDQ and CRC32.
//!
//! The pure operations, free of processor state: [`int`], [`shuffle`], [`text`], [`crypto`] over
//! [`lane`]s, and [`native`] for the hot ones.

mod crypto;
mod int;
mod lane;
mod native;
mod shuffle;
mod text;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
