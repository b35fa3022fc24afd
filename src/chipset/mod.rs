//! The chipset: port and MMIO dispatch, interrupt controllers, timers and legacy devices.

pub mod bus;
pub mod irq;
