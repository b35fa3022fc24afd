//! The software CPU.

pub(crate) mod fp;
pub(super) mod sse;
