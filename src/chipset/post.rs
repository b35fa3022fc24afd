//! Ports that software writes to for what the write takes, not for what it says: the POST code
//! port 0x80 and 0xed, the two that kernels use as an I/O delay.

use std::sync::Arc;

use super::bus::{BusDevice, BusError, SystemBus};

/// The delay ports.
pub const PORTS: [u64; 2] = [0x80, 0xed];

/// Takes every write and reads as all ones.
#[derive(Debug, Default)]
pub struct DelayPort;

impl DelayPort {
    /// Puts the delay ports on the bus.
    pub fn attach(bus: &SystemBus) -> Result<(), BusError> {
        let device = Arc::new(Self);
        PORTS.iter().try_for_each(|port| bus.ports.insert(*port, 1, device.clone()))
    }
}

impl BusDevice for DelayPort {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _: u64, _: &[u8]) {}
}
