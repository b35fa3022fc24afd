//! The software CPU.

pub(crate) mod fp;
