//! The running computer.

pub mod boot;
