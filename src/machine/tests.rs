//! Machines without an operating system.
