//! Linux in a virtual machine inside your program.

#[doc(hidden)]
pub mod agent;
pub mod arch;
pub mod chipset;
pub mod hypervisor;
pub mod instance;
pub mod machine;
pub mod memory;
pub mod process;
pub mod sys;
pub mod vfs;
pub mod virtio;

pub use instance::{Backend, Error, Instance, InstanceBuilder, Source, Timing};
