//! Names and numbers of the virtio 1.2 specification, as far as devices here use them.

use virtio_bindings::bindings::{virtio_config, virtio_mmio, virtio_ring};
use virtio_bindings::virtio_ids;

/// Device ID of the console.
pub const ID_CONSOLE: u32 = virtio_ids::VIRTIO_ID_CONSOLE;
/// Device ID of the entropy source.
pub const ID_RNG: u32 = virtio_ids::VIRTIO_ID_RNG;
/// Device ID of the socket device.
pub const ID_VSOCK: u32 = virtio_ids::VIRTIO_ID_VSOCK;

/// Feature: this is no legacy device.
pub const F_VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
/// Feature: interrupts and notifications are suppressed by ring index.
pub const F_EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
/// Feature: a descriptor may refer to a table of descriptors.
pub const F_INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
/// What the transport offers for every device.
pub const RING_FEATURES: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC;

/// Status: the guest has seen the device.
pub const STATUS_ACKNOWLEDGE: u32 = virtio_config::VIRTIO_CONFIG_S_ACKNOWLEDGE;
/// Status: the guest has a driver.
pub const STATUS_DRIVER: u32 = virtio_config::VIRTIO_CONFIG_S_DRIVER;
/// Status: the driver is ready, the device may work.
pub const STATUS_DRIVER_OK: u32 = virtio_config::VIRTIO_CONFIG_S_DRIVER_OK;
/// Status: both sides agree on the features.
pub const STATUS_FEATURES_OK: u32 = virtio_config::VIRTIO_CONFIG_S_FEATURES_OK;
/// Status: the device cannot go on without a reset.
pub const STATUS_NEEDS_RESET: u32 = virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
/// Status: the driver has given up.
pub const STATUS_FAILED: u32 = virtio_config::VIRTIO_CONFIG_S_FAILED;

/// Interrupt status: a queue has used buffers.
pub const INT_VRING: u32 = virtio_mmio::VIRTIO_MMIO_INT_VRING;
/// Interrupt status: the configuration or the device status changed.
pub const INT_CONFIG: u32 = virtio_mmio::VIRTIO_MMIO_INT_CONFIG;

/// "virt", what the first register reads.
pub const MMIO_MAGIC: u32 = 0x7472_6976;
/// The register layout without legacy parts.
pub const MMIO_VERSION: u32 = 2;
/// "CCVM": the vendor register has no meaning to drivers.
pub const MMIO_VENDOR: u32 = 0x4d56_4343;

pub(crate) mod reg {
    pub(crate) use virtio_bindings::bindings::virtio_mmio::*;
    /// Resets one queue; only with a feature that is not offered.
    pub(crate) const VIRTIO_MMIO_QUEUE_RESET: u32 = 0xc0;
}
