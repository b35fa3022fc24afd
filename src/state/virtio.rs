//! Registers of a virtio-mmio transport.

use serde::{Deserialize, Serialize};

use super::{Saved, StateError, kind};

/// Registers and positions of one queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioQueue {
    /// Entries, as the driver chose.
    pub size: u16,
    /// Whether the driver has set the queue up.
    pub ready: bool,
    /// Guest-physical address of the descriptor table.
    pub desc_table: u64,
    /// Guest-physical address of the available ring.
    pub avail_ring: u64,
    /// Guest-physical address of the used ring.
    pub used_ring: u64,
    /// The next entry of the available ring that the device takes.
    pub next_avail: u16,
    /// The next entry of the used ring that the device writes.
    pub next_used: u16,
}

/// Registers of one transport and its queues.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioTransport {
    /// The device ID.
    pub device_id: u32,
    /// The status register, with DEVICE_NEEDS_RESET.
    pub status: u32,
    /// The interrupt status register.
    pub interrupt_status: u32,
    /// Which half of the device features is shown.
    pub device_features_sel: u32,
    /// Which half of the driver features is written.
    pub driver_features_sel: u32,
    /// The features that the driver accepted.
    pub driver_features: u64,
    /// The queue whose registers are shown.
    pub queue_sel: u32,
    /// The queues, in order.
    pub queues: Vec<VirtioQueue>,
}

impl VirtioTransport {
    /// Most queues of a device.
    pub const MAX_QUEUES: usize = 64;
}

impl Saved for VirtioTransport {
    const KIND: u16 = kind::VIRTIO_TRANSPORT;
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 8 << 10;

    fn check(&self) -> Result<(), StateError> {
        match self.queues.len() {
            0..=Self::MAX_QUEUES => Ok(()),
            _ => Err(StateError::Invalid { what: "number of queues" }),
        }
    }
}
