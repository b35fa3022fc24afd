//! Saved forms of a transport: there and back, what a driver can reach, and what none can.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::state::container::{Reader, Writer};
use crate::state::samples;
use crate::virtio::console::Console;
use crate::virtio::device::VirtioDevice;
use crate::virtio::driver::{Driver, Slot};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;

/// `value` through the transport's own type and a container.
fn there_and_back(value: &saved::VirtioTransport) -> Result<TransportState, StateError> {
    let mut writer = Writer::new();
    writer.put(3, value)?;
    let bytes = writer.finish();
    let mut reader = Reader::parse(&bytes)?;
    let state = TransportState::try_from(reader.take::<saved::VirtioTransport>(3)?)?;
    reader.finish()?;
    assert_eq!(saved::VirtioTransport::from(&state), *value);
    Ok(state)
}

fn devices() -> [Arc<dyn VirtioDevice>; 3] {
    [Arc::new(Rng::new()), Arc::new(Console::new(Box::new(std::io::sink()))), Arc::new(Vsock::new(3))]
}

fn queue() -> impl Strategy<Value = saved::VirtioQueue> {
    // Mostly where RAM is.
    let ring = || prop_oneof![0..0x20_0000u64, any::<u64>()];
    let position = || prop_oneof![Just(0u16), any::<u16>()];
    (0..11u32, any::<bool>(), [ring(), ring(), ring()], [position(), position()]).prop_map(
        |(log, ready, [desc, avail, used], [next_avail, next_used])| saved::VirtioQueue {
            size: 1 << log,
            ready,
            desc_table: desc & !15,
            avail_ring: avail & !1,
            used_ring: used & !3,
            next_avail,
            next_used,
        },
    )
}

fn transport() -> impl Strategy<Value = saved::VirtioTransport> {
    let selectors = (any::<u32>(), any::<u32>(), any::<u32>());
    let registers = (1..64u32, any::<u32>(), 0..4u32, any::<u64>());
    (registers, selectors, vec(queue(), 0..=64)).prop_map(|(registers, selectors, queues)| {
        let (device_id, status, interrupt_status, driver_features) = registers;
        let mut status = status & (STATUS_WRITABLE | STATUS_NEEDS_RESET);
        if status & STATUS_DRIVER_OK != 0 {
            status |= STATUS_FEATURES_OK;
        }
        let agreed = if status & STATUS_FEATURES_OK != 0 { F_VERSION_1 } else { 0 };
        saved::VirtioTransport {
            device_id,
            status,
            interrupt_status,
            device_features_sel: selectors.0,
            driver_features_sel: selectors.1,
            driver_features: driver_features | agreed,
            queue_sel: selectors.2,
            queues,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn there_and_back_again(value in transport()) {
        let state = there_and_back(&value);
        prop_assert!(state.is_ok(), "{:?}", state);
    }

    /// The device takes what it can and refuses the rest; either way it and its registers go on.
    #[test]
    fn whatever_is_accepted_can_be_used(value in transport(), accesses in vec((0..64u64, any::<u32>()), 0..40)) {
        use crate::chipset::bus::BusDevice;
        for device in devices() {
            let mut value = value.clone();
            value.device_id = device.id();
            value.queues.resize(device.queue_sizes().len(), saved::VirtioQueue::default());
            for (queue, max) in value.queues.iter_mut().zip(device.queue_sizes()) {
                queue.size = queue.size.min(*max);
                // An empty queue is unusable: not set up, then.
                queue.ready &= queue.size != 0;
            }
            value.driver_features &= device.features() | RING_FEATURES;
            let state = there_and_back(&value).unwrap();
            let slot = Slot::new(device);
            let taken = slot.mmio.set_state(&state);
            // A device that works has begun to look at its queues.
            if taken.is_ok() && state.status & STATUS_DRIVER_OK == 0 {
                prop_assert_eq!(slot.mmio.state(), state);
            }
            for (register, written) in &accesses {
                slot.w(*register as u32 * 4, *written);
                slot.r(*register as u32 * 4);
                slot.mmio.read(0x100 + register, &mut [0; 8]);
            }
            slot.w(reg::VIRTIO_MMIO_STATUS, 0);
            prop_assert_eq!(slot.status(), 0);
        }
    }
}

#[test]
fn what_drivers_reach_is_accepted() {
    for device in devices() {
        let restored: Arc<Slot> = Slot::new(device);
        let fresh = restored.mmio.state();
        assert_eq!(there_and_back(&(&fresh).into()), Ok(fresh.clone()));
        let driver = Driver::new(restored, 0);
        let active = driver.slot.mmio.state();
        assert_ne!(active.status & STATUS_DRIVER_OK, 0);
        assert_eq!(there_and_back(&(&active).into()), Ok(active));
    }
    // A size that does not fit into the register.
    let slot = Slot::new(Arc::new(Rng::new()));
    slot.negotiate(0);
    slot.w(reg::VIRTIO_MMIO_QUEUE_NUM, 1 << 16);
    let odd = slot.mmio.state();
    assert_eq!(odd.queues[0].size, 0);
    assert_eq!(there_and_back(&(&odd).into()), Ok(odd));
}

#[test]
fn the_sample_is_accepted() {
    assert!(there_and_back(&samples::virtio_transport()).is_ok());
}

#[test]
fn transports_that_cannot_be_are_refused() {
    type Spoil = fn(&mut saved::VirtioTransport);
    let bad: [(Spoil, &str); 14] = [
        (|s| s.device_id = 0, "virtio device without an id"),
        (|s| s.status |= 0x10, "virtio device status"),
        (|s| s.status |= 1 << 31, "virtio device status"),
        (|s| s.status &= !STATUS_FEATURES_OK, "virtio device that works without features"),
        (|s| s.driver_features &= !F_VERSION_1, "features of a virtio driver"),
        (|s| s.interrupt_status = 4, "virtio interrupt status"),
        (|s| s.queues = vec![saved::VirtioQueue::default(); 65], "number of queues"),
        (|s| s.queues[2].size = 3, "size of a queue"),
        (|s| s.queues[0].size = 2048, "size of a queue"),
        (|s| s.queues[1].size = u16::MAX, "size of a queue"),
        (|s| s.queues[0].size = 0, "queue of a working virtio device"),
        (|s| s.queues[0].desc_table += 8, "queue of a working virtio device"),
        (|s| s.queues[1].avail_ring += 1, "queue of a working virtio device"),
        (|s| s.queues[1].used_ring += 2, "queue of a working virtio device"),
    ];
    for (at, (spoil, why)) in bad.into_iter().enumerate() {
        let mut state = samples::virtio_transport();
        spoil(&mut state);
        assert_eq!(there_and_back(&state), Err(StateError::Invalid { what: why }), "case {at}");
    }
    let many = saved::VirtioTransport {
        queues: vec![saved::VirtioQueue::default(); 65],
        ..samples::virtio_transport()
    };
    assert!(TransportState::try_from(many).is_err(), "nor where no container has looked at it");
}
