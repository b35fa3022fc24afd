//! Interrupt lines between devices and whatever controller the backend has.

use std::sync::Arc;

pub use crate::hypervisor::IrqSink;

/// One device's interrupt line.
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    gsi: u32,
}

impl IrqLine {
    /// The line `gsi` of `sink`.
    pub fn new(sink: Arc<dyn IrqSink>, gsi: u32) -> Self {
        Self { sink, gsi }
    }
    /// The global system interrupt number.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }
    /// Drives the line.
    pub fn set(&self, level: bool) {
        self.sink.set_irq(self.gsi, level);
    }
    /// A rising and a falling edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl std::fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IrqLine({})", self.gsi)
    }
}
