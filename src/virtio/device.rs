//! The interface between a virtio transport and the devices behind it.

use std::sync::Arc;

use super::interrupt::Interrupt;
use super::queue::{QueueError, QueueRegs, Virtqueue};
use super::spec::F_EVENT_IDX;

/// What a device receives when its driver is ready.
#[derive(Debug)]
pub struct Activation {
    /// The queues in order, one for each entry of [`VirtioDevice::queue_sizes`]. A queue that the
    /// driver left unready is always empty.
    pub queues: Vec<Virtqueue>,
    /// How the device speaks up.
    pub interrupt: Arc<Interrupt>,
    /// What both sides agreed on.
    pub features: u64,
}

/// A virtio device behind a transport.
///
/// Methods are called from vCPU threads and lock the device themselves. A device may do its work
/// inside [`VirtioDevice::queue_notify`], or only wake a thread of its own there: the transport
/// does not care, since [`Virtqueue`] and [`Interrupt`] may be used from any thread.
///
/// Contract: `activate` is called on an idle device only; `reset` returns it to idle, and when it
/// returns the device does not touch guest memory any more. `queue_notify` may come at any time,
/// also while idle, and with any index.
pub trait VirtioDevice: Send + Sync {
    /// The device ID of the specification.
    fn id(&self) -> u32;
    /// Device-specific features; the transport adds those of the rings.
    fn features(&self) -> u64;
    /// The largest size of each queue: powers of two, at most 1024.
    fn queue_sizes(&self) -> &[u16];
    /// Fills `data` from `offset` in the configuration space; zeros beyond its end.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Stores `data` at `offset` in the configuration space. Most devices have nothing to store.
    fn write_config(&self, _offset: u64, _data: &[u8]) {}
    /// Changes whenever the configuration space does.
    fn config_generation(&self) -> u32 {
        0
    }
    /// The driver is ready: take the queues and work.
    fn activate(&self, activation: Activation);
    /// Back to idle.
    fn reset(&self);
    /// The driver has put buffers into the queue `index`.
    fn queue_notify(&self, index: u16);
    /// The registers of the queues while active, in order; empty while idle or broken.
    fn queue_regs(&self) -> Vec<QueueRegs>;
    /// The vCPUs have stopped. Until [`VirtioDevice::resume`] the device leaves guest memory, queues
    /// and interrupt as they are, whatever the host wants of it. Devices that only work inside
    /// `queue_notify` have nothing to do.
    fn pause(&self) {}
    /// The vCPUs are about to run: do what had to wait.
    fn resume(&self) {}
    /// The device was activated from saved state: whatever it was doing for the guest is gone.
    fn restored(&self) {}
}

/// Whether interrupts are suppressed by ring index under `features`.
pub(crate) fn event_idx(features: u64) -> bool {
    features & F_EVENT_IDX != 0
}

/// Copies what `config` has at `offset`; zeros beyond its end.
pub(crate) fn copy_config(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
    for (to, from) in data.iter_mut().zip(config.iter().skip(start)) {
        *to = *from;
    }
}

/// Marks the device broken if its work failed. Returns whether it did.
pub(crate) fn fail_on_error(interrupt: &Interrupt, result: Result<(), QueueError>) -> bool {
    match result {
        Ok(()) => false,
        Err(error) => {
            tracing::debug!(%error, "virtio driver broke a queue; the device needs a reset");
            interrupt.fail();
            true
        }
    }
}
