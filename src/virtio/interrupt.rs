//! A device's interrupt: the status bits that the driver reads and the line they drive.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::spec::{INT_CONFIG, INT_VRING};
use crate::chipset::irq::IrqLine;

/// The interrupt of one device. The line is high exactly while a status bit is set.
#[derive(Debug)]
pub struct Interrupt {
    line: IrqLine,
    /// Held while the line is driven, so that a raise and an acknowledgement cannot swap.
    status: Mutex<u32>,
    broken: AtomicBool,
}

impl Interrupt {
    /// An interrupt on `line`, low.
    pub fn new(line: IrqLine) -> Self {
        Self { line, status: Mutex::new(0), broken: AtomicBool::new(false) }
    }

    /// Tells the driver that a queue has used buffers.
    pub fn signal_used(&self) {
        self.raise(INT_VRING);
    }

    /// Tells the driver that the configuration space changed.
    pub fn signal_config(&self) {
        self.raise(INT_CONFIG);
    }

    /// Declares the device broken: the transport shows DEVICE_NEEDS_RESET until it is reset.
    pub fn fail(&self) {
        self.broken.store(true, Ordering::SeqCst);
        self.raise(INT_CONFIG);
    }

    /// Whether [`Interrupt::fail`] was called since the last reset.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    /// The pending bits.
    pub fn status(&self) -> u32 {
        *self.lock()
    }

    /// Clears `bits`; the line falls with the last one.
    pub fn acknowledge(&self, bits: u32) {
        let mut status = self.lock();
        let before = *status;
        *status &= !bits;
        if before != 0 && *status == 0 {
            self.line.set(false);
        }
    }

    /// Forgets everything, as by a device reset.
    pub(crate) fn reset(&self) {
        self.restore(0, false);
    }

    /// Takes over saved bits and drives the line accordingly.
    pub(crate) fn restore(&self, bits: u32, broken: bool) {
        let mut status = self.lock();
        self.broken.store(broken, Ordering::SeqCst);
        *status = bits & (INT_VRING | INT_CONFIG);
        self.line.set(*status != 0);
    }

    fn raise(&self, bits: u32) {
        let mut status = self.lock();
        let before = *status;
        *status |= bits;
        if before == 0 {
            self.line.set(true);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, u32> {
        self.status.lock().unwrap_or_else(|e| e.into_inner())
    }
}
