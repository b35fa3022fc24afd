//! Processor state and constants of the guest architectures.

pub mod x86_64;
