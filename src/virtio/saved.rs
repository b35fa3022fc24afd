//! A transport's registers to and from their saved form.
//!
//! What comes back holds together by itself: which device it is of, which features that offers and
//! whether the rings lie in RAM is for [`VirtioMmio::set_state`](super::mmio::VirtioMmio::set_state)
//! to check.

#[cfg(test)]
mod tests;

use super::mmio::{STATUS_WRITABLE, TransportState};
use super::queue::{MAX_QUEUE_SIZE, QueueRegs};
use super::spec::*;
use crate::state as saved;
use crate::state::StateError;

impl From<&QueueRegs> for saved::VirtioQueue {
    fn from(regs: &QueueRegs) -> Self {
        let &QueueRegs { size, ready, desc_table, avail_ring, used_ring, next_avail, next_used } = regs;
        Self { size, ready, desc_table, avail_ring, used_ring, next_avail, next_used }
    }
}

impl TryFrom<saved::VirtioQueue> for QueueRegs {
    type Error = StateError;

    fn try_from(queue: saved::VirtioQueue) -> Result<Self, StateError> {
        let saved::VirtioQueue { size, ready, desc_table, avail_ring, used_ring, next_avail, next_used } =
            queue;
        // 0 stands for a size that the driver chose and that does not fit into 16 bits.
        let fits = size == 0 || size.is_power_of_two() && size <= MAX_QUEUE_SIZE;
        StateError::unless(fits, "size of a queue")?;
        Ok(Self { size, ready, desc_table, avail_ring, used_ring, next_avail, next_used })
    }
}

impl From<&TransportState> for saved::VirtioTransport {
    fn from(state: &TransportState) -> Self {
        let &TransportState {
            device_id,
            status,
            interrupt_status,
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            ref queues,
        } = state;
        Self {
            device_id,
            status,
            interrupt_status,
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            queues: queues.iter().map(Into::into).collect(),
        }
    }
}

/// Whether a device may work with this queue: its rings have a size and are aligned.
fn usable(queue: &saved::VirtioQueue) -> bool {
    queue.size != 0
        && queue.desc_table.is_multiple_of(16)
        && queue.avail_ring.is_multiple_of(2)
        && queue.used_ring.is_multiple_of(4)
}

impl TryFrom<saved::VirtioTransport> for TransportState {
    type Error = StateError;

    fn try_from(state: saved::VirtioTransport) -> Result<Self, StateError> {
        let saved::VirtioTransport {
            device_id,
            status,
            interrupt_status,
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            queues,
        } = state;
        let has = |bit: u32| status & bit != 0;
        StateError::unless(device_id != 0, "virtio device without an id")?;
        StateError::unless(status & !(STATUS_WRITABLE | STATUS_NEEDS_RESET) == 0, "virtio device status")?;
        StateError::unless(
            has(STATUS_FEATURES_OK) || !has(STATUS_DRIVER_OK),
            "virtio device that works without features",
        )?;
        StateError::unless(
            !has(STATUS_FEATURES_OK) || driver_features & F_VERSION_1 != 0,
            "features of a virtio driver",
        )?;
        StateError::unless(interrupt_status & !(INT_VRING | INT_CONFIG) == 0, "virtio interrupt status")?;
        StateError::unless(queues.len() <= saved::VirtioTransport::MAX_QUEUES, "number of queues")?;
        let works = has(STATUS_DRIVER_OK) && !has(STATUS_FAILED | STATUS_NEEDS_RESET);
        let set_up = queues.iter().all(|queue| !works || !queue.ready || usable(queue));
        StateError::unless(set_up, "queue of a working virtio device")?;
        Ok(Self {
            device_id,
            status,
            interrupt_status,
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            queues: queues.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}
