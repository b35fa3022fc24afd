//! The transport, the console and the entropy source under a well-behaved driver.

use std::io::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use super::console::{Console, MAX_INPUT};
use super::driver::{Driver, Slot};
use super::rng::{MAX_REQUEST, Rng};
use super::spec::reg::*;
use super::spec::*;
use crate::chipset::bus::BusDevice;

/// A sink to look into.
#[derive(Clone, Default)]
pub(super) struct Output(pub(super) Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(data);
        Ok(data.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn rng() -> Arc<Slot> {
    Slot::new(Arc::new(Rng::new()))
}

fn ram_bytes(slot: &Slot, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    slot.ram.memory().read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

#[test]
fn rng_fills_buffers_and_interrupts() {
    for without in [0, F_EVENT_IDX] {
        let mut driver = Driver::new(rng(), without);
        let at = driver.alloc(4096);
        driver.queues[0].add(&[(at, 64, true), (at + 64, 32, true)]).unwrap();
        driver.queues[0].kick();
        assert!(driver.slot.irq.level.load(Ordering::SeqCst));
        assert_eq!(driver.handle_irq(), INT_VRING);
        assert!(!driver.slot.irq.level.load(Ordering::SeqCst));
        assert_eq!(driver.queues[0].used().unwrap().1, 96);
        assert!(ram_bytes(&driver.slot, at, 96).iter().any(|&b| b != 0));
        assert_eq!(ram_bytes(&driver.slot, at + 96, 32), [0; 32]);
        assert!(!driver.slot.broken());
    }
}

#[test]
fn rng_caps_a_request() {
    let mut driver = Driver::new(rng(), 0);
    let at = driver.alloc(1 << 20);
    driver.queues[0].add(&[(at, 1 << 20, true)]).unwrap();
    driver.queues[0].kick();
    assert_eq!(driver.queues[0].used().unwrap().1 as usize, MAX_REQUEST);
}

#[test]
fn the_ring_wraps_many_times() {
    let mut driver = Driver::new(rng(), 0);
    let at = driver.alloc(4096);
    for _ in 0..70_000 {
        driver.queues[0].add(&[(at, 8, true)]).unwrap();
        driver.queues[0].kick();
        assert_eq!(driver.queues[0].used().unwrap().1, 8);
        driver.handle_irq();
    }
    assert!(!driver.slot.broken());
}

#[test]
fn an_indirect_table_is_followed() {
    let mut driver = Driver::new(rng(), 0);
    let (table, at) = (driver.alloc(4096), driver.alloc(4096));
    let memory = driver.slot.ram.memory();
    for (i, next) in [(0u64, 1u16), (1, 0)] {
        memory.write_obj(at + 100 * i, GuestAddress(table + 16 * i)).unwrap();
        memory.write_obj(50u32, GuestAddress(table + 16 * i + 8)).unwrap();
        memory.write_obj(2 | u16::from(next != 0), GuestAddress(table + 16 * i + 12)).unwrap();
        memory.write_obj(next, GuestAddress(table + 16 * i + 14)).unwrap();
    }
    driver.queues[0].put_desc(3, table, 32, 4, 0);
    driver.queues[0].publish(3);
    driver.queues[0].notify();
    let used: [u32; 2] = driver.slot.ram.memory().read_obj(GuestAddress(driver.queues[0].used + 4)).unwrap();
    assert_eq!(used, [3, 100]);
    assert!(ram_bytes(&driver.slot, at + 100, 50).iter().any(|&b| b != 0));
}

#[test]
fn event_idx_suppresses_interrupts() {
    let mut driver = Driver::new(rng(), 0);
    let at = driver.alloc(4096);
    // The driver asks for an interrupt only after its 10th buffer.
    let used_event = driver.queues[0].avail + 4 + 2 * u64::from(driver.queues[0].size);
    driver.slot.ram.memory().write_obj(9u16, GuestAddress(used_event)).unwrap();
    for i in 0..12 {
        driver.queues[0].add(&[(at, 8, true)]).unwrap();
        driver.queues[0].kick();
        assert_eq!(driver.slot.irq.raised.load(Ordering::SeqCst), u32::from(i >= 9), "buffer {i}");
    }
}

#[test]
fn flags_suppress_interrupts() {
    let mut driver = Driver::new(rng(), F_EVENT_IDX);
    let at = driver.alloc(4096);
    driver.slot.ram.memory().write_obj(1u16, GuestAddress(driver.queues[0].avail)).unwrap();
    driver.queues[0].add(&[(at, 8, true)]).unwrap();
    driver.queues[0].kick();
    assert_eq!(driver.slot.irq.raised.load(Ordering::SeqCst), 0);
    assert!(driver.queues[0].used().is_some());
}

#[test]
fn registers_show_the_device() {
    let slot = Slot::new(Arc::new(Console::new(Box::new(std::io::sink()))));
    assert_eq!(slot.r(VIRTIO_MMIO_DEVICE_ID), 3);
    assert_eq!(slot.r(VIRTIO_MMIO_VENDOR_ID), MMIO_VENDOR);
    assert_eq!(slot.offered() & RING_FEATURES, RING_FEATURES);
    slot.w(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(slot.r(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    slot.w(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(slot.r(VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
    slot.w(VIRTIO_MMIO_QUEUE_SEL, 2);
    assert_eq!(slot.r(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    for register in [VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_BASE_LOW] {
        slot.w(VIRTIO_MMIO_SHM_SEL, 0);
        assert_eq!(slot.r(register), u32::MAX);
    }
    // Only 32-bit accesses reach registers.
    for width in [1, 2, 8] {
        let mut data = vec![0xff; width];
        slot.mmio.read(0, &mut data);
        assert!(data.iter().all(|&b| b == 0));
        slot.mmio.write(VIRTIO_MMIO_STATUS.into(), &vec![1; width]);
        assert_eq!(slot.status(), 0);
    }
}

#[test]
fn configuration_is_read_in_every_width() {
    let console = Arc::new(Console::new(Box::new(std::io::sink())));
    let slot = Slot::new(console.clone());
    console.resize(0x1234, 0x5678);
    assert_eq!(slot.config::<1>(1), [0x12]);
    assert_eq!(slot.config::<2>(2), [0x78, 0x56]);
    assert_eq!(slot.config::<4>(0), [0x34, 0x12, 0x78, 0x56]);
    assert_eq!(slot.config::<8>(0), [0x34, 0x12, 0x78, 0x56, 1, 0, 0, 0]);
    assert_eq!(slot.config::<8>(8), [0; 8]);
    assert_eq!(slot.config::<8>(0xef8), [0; 8]);
    assert_eq!(slot.config::<4>(u64::MAX - 0x200), [0; 4]);
}

#[test]
fn features_are_negotiated() {
    let slot = rng();
    // Without VERSION_1.
    slot.negotiate(F_VERSION_1);
    assert_eq!(slot.status() & STATUS_FEATURES_OK, 0);
    // With one that was not offered.
    slot.negotiate(0);
    slot.w(VIRTIO_MMIO_STATUS, 0);
    slot.w(VIRTIO_MMIO_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    slot.set_features(RING_FEATURES | 1 << 40);
    slot.w(VIRTIO_MMIO_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
    assert_eq!(slot.status(), STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    // A second try without a reset.
    slot.set_features(RING_FEATURES);
    slot.w(VIRTIO_MMIO_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
    assert_eq!(slot.status(), STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
    // Fixed from here on.
    slot.set_features(0);
    assert_eq!(slot.mmio.state().driver_features, RING_FEATURES);
}

#[test]
fn the_status_goes_step_by_step() {
    let slot = rng();
    slot.w(VIRTIO_MMIO_STATUS, STATUS_DRIVER_OK);
    assert_eq!(slot.status(), 0);
    slot.w(VIRTIO_MMIO_STATUS, STATUS_ACKNOWLEDGE | STATUS_FEATURES_OK);
    assert_eq!(slot.status(), STATUS_ACKNOWLEDGE);
    slot.w(VIRTIO_MMIO_STATUS, 0xffff_ff00 | STATUS_NEEDS_RESET);
    assert_eq!(slot.status() & STATUS_NEEDS_RESET, 0);
    slot.negotiate(0);
    slot.w(VIRTIO_MMIO_STATUS, STATUS_FAILED);
    slot.w(VIRTIO_MMIO_STATUS, STATUS_DRIVER_OK);
    assert_eq!(slot.status() & STATUS_DRIVER_OK, 0);
    slot.w(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(slot.status(), 0);
}

#[test]
fn a_failed_driver_stops_the_device() {
    let mut driver = Driver::new(rng(), 0);
    driver.slot.w(VIRTIO_MMIO_STATUS, STATUS_FAILED);
    let at = driver.alloc(4096);
    driver.queues[0].add(&[(at, 8, true)]).unwrap();
    driver.queues[0].notify();
    assert!(driver.queues[0].used().is_none());
}

#[test]
fn a_reset_starts_over() {
    let slot = rng();
    let mut driver = Driver::new(slot.clone(), 0);
    let at = driver.alloc(4096);
    driver.queues[0].add(&[(at, 8, true)]).unwrap();
    driver.queues[0].kick();
    assert!(slot.irq.level.load(Ordering::SeqCst));
    slot.w(VIRTIO_MMIO_STATUS, 0);
    assert!(!slot.irq.level.load(Ordering::SeqCst), "the line falls");
    assert_eq!(slot.r(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert_eq!(slot.r(VIRTIO_MMIO_QUEUE_READY), 0);
    driver.queues[0].notify();
    let mut driver = Driver::new(slot, 0);
    let at = driver.alloc(4096);
    driver.queues[0].add(&[(at, 8, true)]).unwrap();
    driver.queues[0].kick();
    assert_eq!(driver.queues[0].used().unwrap().1, 8);
}

#[test]
fn console_output_reaches_the_sink() {
    let output = Output::default();
    let slot = Slot::new(Arc::new(Console::new(Box::new(output.clone()))));
    let mut driver = Driver::new(slot.clone(), 0);
    let at = driver.alloc(0x8000);
    let text: Vec<u8> = (0..0x6000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    slot.ram.memory().write_slice(&text, GuestAddress(at)).unwrap();
    driver.queues[1].add(&[(at, 5, false), (at + 5, 0x5ffb, false)]).unwrap();
    driver.queues[1].kick();
    assert_eq!(*output.0.lock().unwrap(), text);
    assert_eq!(driver.queues[1].used().unwrap().1, 0);
    slot.mmio.write(0x108, b"!");
    assert_eq!(output.0.lock().unwrap().last(), Some(&b'!'));
}

#[test]
fn console_input_waits_for_buffers() {
    let console = Arc::new(Console::new(Box::new(std::io::sink())));
    let slot = Slot::new(console.clone());
    assert_eq!(console.push_input(b"early "), 6);
    let mut driver = Driver::new(slot.clone(), 0);
    assert_eq!(console.push_input(b"bird"), 4);
    let at = driver.alloc(4096);
    driver.queues[0].add(&[(at, 4, true)]).unwrap();
    driver.queues[0].add(&[(at + 4, 100, true)]).unwrap();
    driver.queues[0].kick();
    assert_eq!(driver.queues[0].used().unwrap().1, 4);
    assert_eq!(driver.queues[0].used().unwrap().1, 6);
    assert_eq!(ram_bytes(&slot, at, 10), b"early bird");
    assert_eq!(console.pending_input(), 0);
    // With a buffer waiting, input goes straight in.
    driver.handle_irq();
    driver.queues[0].used();
    driver.queues[0].add(&[(at, 4, true)]).unwrap();
    driver.queues[0].kick();
    console.push_input(b"x");
    assert_eq!(driver.handle_irq(), INT_VRING);
    assert_eq!(driver.queues[0].used().unwrap().1, 1);
}

#[test]
fn console_input_is_bounded() {
    let console = Console::new(Box::new(std::io::sink()));
    assert_eq!(console.push_input(&vec![b'a'; MAX_INPUT + 5]), MAX_INPUT);
    assert_eq!(console.push_input(b"b"), 0);
    assert_eq!(console.pending_input(), MAX_INPUT);
}

#[test]
fn console_resize_interrupts() {
    let console = Arc::new(Console::new(Box::new(std::io::sink())));
    let driver = Driver::new(Slot::new(console.clone()), 0);
    let before = driver.slot.r(VIRTIO_MMIO_CONFIG_GENERATION);
    console.resize(132, 43);
    assert_ne!(driver.slot.r(VIRTIO_MMIO_CONFIG_GENERATION), before);
    assert_eq!(driver.handle_irq(), INT_CONFIG);
    console.resize(132, 43);
    assert_eq!(driver.handle_irq(), 0, "nothing changed");
    // A driver that did not take the feature is not bothered.
    let driver = Driver::new(driver.slot.clone(), 1);
    console.resize(80, 25);
    assert_eq!(driver.handle_irq(), 0);
}

#[test]
fn saved_registers_restore_into_a_new_device() {
    let mut driver = Driver::new(rng(), 0);
    let at = driver.alloc(4096);
    for _ in 0..3 {
        driver.queues[0].add(&[(at, 8, true)]).unwrap();
        driver.queues[0].kick();
    }
    let state = driver.slot.mmio.state();
    assert_eq!(state.interrupt_status, INT_VRING);
    assert_eq!((state.queues[0].next_avail, state.queues[0].next_used), (3, 3));

    let restored = Slot::in_ram(Arc::new(Rng::new()), driver.slot.ram.clone());
    restored.mmio.set_state(&state).unwrap();
    assert!(restored.irq.level.load(Ordering::SeqCst), "a pending interrupt is pending again");
    assert_eq!(restored.mmio.state(), state);
    driver.queues[0].add(&[(at, 16, true)]).unwrap();
    restored.w(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(
        std::iter::from_fn(|| driver.queues[0].used()).map(|u| u.1).collect::<Vec<_>>(),
        [8, 8, 8, 16]
    );
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let driver = Driver::new(rng(), 0);
    let good = driver.slot.mmio.state();
    type Break = fn(&mut super::mmio::TransportState);
    let cases: [Break; 9] = [
        |s| s.device_id = 3,
        |s| s.queues.clear(),
        |s| s.queues[0].size = 128,
        |s| s.queues[0].size = 3,
        |s| s.queues[0].desc_table = 1 << 50,
        |s| s.queues[0].used_ring += 1,
        |s| s.status |= 1 << 20,
        |s| s.status &= !STATUS_FEATURES_OK,
        |s| s.driver_features |= 1 << 50,
    ];
    for (i, break_it) in cases.iter().enumerate() {
        let mut state = good.clone();
        break_it(&mut state);
        assert!(driver.slot.mmio.set_state(&state).is_err(), "case {i}");
        assert_eq!(driver.slot.status(), 0, "case {i} leaves the device idle");
    }
    driver.slot.mmio.set_state(&good).unwrap();
    assert_eq!(driver.slot.mmio.state(), good);
}

#[test]
fn a_paused_console_leaves_guest_memory_alone() {
    let console = Arc::new(Console::new(Box::new(std::io::sink())));
    let mut driver = Driver::new(Slot::new(console.clone()), 0);
    let at = driver.alloc(4096);
    driver.queues[0].add(&[(at, 16, true)]).unwrap();
    driver.queues[0].kick();
    driver.slot.mmio.device().pause();
    console.push_input(b"later");
    console.resize(10, 10);
    assert_eq!(driver.handle_irq(), 0);
    assert!(driver.queues[0].used().is_none());
    driver.slot.mmio.device().resume();
    assert_eq!(driver.handle_irq(), INT_VRING | INT_CONFIG);
    assert_eq!(driver.queues[0].used().unwrap().1, 5);
}
