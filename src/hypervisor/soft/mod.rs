//! The software CPU.

pub(super) mod sse;
