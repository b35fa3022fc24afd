//! The running computer: what is on its board, its vCPU threads, and how it ends.
//!
//! * [`boot`] finds a kernel and lays it into RAM.
//! * [`Board`] places memory and devices.
//! * [`Machine`] runs the board: one thread a vCPU, one loop for every backend.
//! * [`Console`] keeps the tail of what the kernel says and notices its panics.
//! * [`snapshot`] puts a machine away and takes it up again.
//! * [`Ending`] is how a machine ended; it has exactly one.
//!
//! A machine is *running*, *paused* or *ended*. It ends by itself (power off, reset, panic, fault of
//! the backend) or from outside ([`Machine::stop`], its lifetime is over); the first reason counts.
//! Dropping it stops it. When [`Machine::stop`] or `drop` has returned, no thread of it is left.

pub mod bare;
mod board;
pub mod boot;
mod console;
mod ending;
mod platform;
mod run;
pub mod snapshot;
#[cfg(test)]
mod tests;

pub use board::{
    Board, BoardConfig, MAX_CPUS, MAX_FILE_SYSTEMS, VIRTIO_FIRST_GSI, VIRTIO_MMIO_BASE, VIRTIO_MMIO_SIZE,
};
pub use console::Console;
pub use ending::Ending;
pub use platform::{Backend, Platform};
pub use run::{Frozen, Machine, PowerSwitch, Processor};

/// Errors of making a machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// Kernel, initramfs or command line.
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] crate::memory::MemoryError),
    /// The processors.
    #[error("the hypervisor backend")]
    Hypervisor(#[from] crate::hypervisor::HypervisorError),
    /// Two devices want the same addresses.
    #[error("placing devices")]
    Bus(#[from] crate::chipset::bus::BusError),
    /// The tag of a file system.
    #[error(transparent)]
    Tag(#[from] crate::virtio::fs::BadTag),
    /// Threads or other resources of the host.
    #[error("host resource")]
    Host(#[from] std::io::Error),
}
