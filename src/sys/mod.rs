//! Seams to the host operating system: what differs from one host to the next lives here.

pub mod clock;
pub mod random;
