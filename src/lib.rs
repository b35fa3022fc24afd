//! Linux in a virtual machine inside your program.

pub mod arch;
pub mod chipset;
pub mod hypervisor;
pub mod machine;
pub mod memory;
pub mod sys;
