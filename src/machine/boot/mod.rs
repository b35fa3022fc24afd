//! Everything between "a machine is wanted" and its first instruction.
//!
//! * [`provider`] finds a stock kernel and the busybox userland: given paths, the cache, the
//!   system's package manager, a distribution's CDN.
//! * [`image`] turns a kernel file into the ELF `vmlinux` inside it.
//! * [`modules`] reads module files and puts them in loading order.
//! * [`initramfs`] writes the first file system, [`userland`] the built-in root.
//! * [`cmdline`] writes the kernel's command line.
//! * [`acpi`] describes the machine to the kernel.
//! * [`loader`] lays all of that into guest RAM and gives the first vCPU's state.
//!
//! Kernels, packages and indexes come from disk and network: all of them are parsed with every
//! length checked and every expansion capped, and nothing in an archive names a path on the host.
//! Every failure is a [`BootError`].

pub mod acpi;
mod applets;
pub mod cmdline;
mod error;
#[cfg(test)]
mod fixtures;
pub mod image;
pub mod initramfs;
pub mod loader;
pub mod modules;
pub mod provider;
pub mod userland;

pub use error::{Attempt, BootError};
