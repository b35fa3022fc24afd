//! Drivers that break every rule: the host neither panics nor hangs nor grows, a broken queue ends
//! in DEVICE_NEEDS_RESET, and a reset makes the device usable again.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::console::Console;
use super::driver::{Driver, Slot};
use super::queue::{QueueError, QueueRegs, Virtqueue};
use super::rng::{MAX_REQUEST, Rng};
use super::spec::reg::*;
use super::spec::*;
use super::tests::Output;
use super::vsock::Vsock;
use crate::chipset::bus::BusDevice;
use crate::memory::GuestRam;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A device about to take from `queue` as soon as it is notified.
struct Victim {
    name: &'static str,
    driver: Driver,
    queue: usize,
    /// The flag of buffers that this queue is for.
    flag: u16,
    /// What has to live for the device to want something.
    _keep: Box<dyn Any>,
}

impl Victim {
    fn slot(&self) -> &Arc<Slot> {
        &self.driver.slot
    }
    fn notify(&mut self) {
        self.driver.queues[self.queue].notify();
    }
    fn used_idx(&self) -> u16 {
        let at = GuestAddress(self.driver.queues[self.queue].used + 2);
        self.slot().ram.memory().read_obj(at).unwrap()
    }
}

/// Every queue of every device.
fn victims() -> Vec<Victim> {
    let victim = |name, device, queue, flag, keep| {
        let driver = Driver::new(Slot::new(device), 0);
        Victim { name, driver, queue, flag, _keep: keep }
    };
    let console = Arc::new(Console::new(Box::new(std::io::sink())));
    console.push_input(b"input");
    let (vsock, events, asked) = (Vsock::new(7), Arc::new(Vsock::new(7)), Vsock::new(7));
    let host = asked.host();
    let waiting = std::thread::spawn({
        let host = host.clone();
        move || host.connect(1, Some(Duration::from_secs(60))).map(drop)
    });
    while host.connections() == 0 {
        std::thread::yield_now();
    }
    let event = victim("vsock events", events.clone(), 2, WRITE, Box::new(()));
    events.transport_reset();
    vec![
        victim("rng", Arc::new(Rng::new()), 0, WRITE, Box::new(())),
        victim("console input", console, 0, WRITE, Box::new(())),
        victim("console output", Arc::new(Console::new(Box::new(std::io::sink()))), 1, 0, Box::new(())),
        victim("vsock receive", Arc::new(asked), 0, WRITE, Box::new(waiting)),
        victim("vsock transmit", Arc::new(vsock), 1, 0, Box::new(())),
        event,
    ]
}

/// Lets `trick` spoil the rings of every queue of every device, and looks for the consequences.
fn breaks(trick: impl Fn(&mut Victim)) {
    for mut victim in victims() {
        let name = victim.name;
        let start = Instant::now();
        trick(&mut victim);
        victim.notify();
        assert!(start.elapsed() < Duration::from_secs(2), "{name}: hangs");
        assert!(victim.slot().broken(), "{name}: the device needs a reset");
        assert_eq!(victim.used_idx(), 0, "{name}: nothing was answered");
        assert_eq!(victim.driver.handle_irq() & INT_CONFIG, INT_CONFIG, "{name}: the driver is told");
        victim.notify();
        assert_eq!(victim.slot().irq.raised.load(Ordering::SeqCst), 1, "{name}: silent from then on");
        let again = Driver::new(victim.slot().clone(), 0);
        assert!(!again.slot.broken(), "{name}: usable after a reset");
    }
}

/// One descriptor, made available.
fn one(victim: &mut Victim, addr: u64, len: u32, flags: u16, next: u16) {
    let flags = flags | victim.flag;
    let queue = &mut victim.driver.queues[victim.queue];
    queue.put_desc(0, addr, len, flags, next);
    queue.publish(0);
}

/// An indirect table of (address, length, flags, next), made available.
fn indirect(victim: &mut Victim, table: &[(u64, u32, u16, u16)], bytes: u32, flags: u16) {
    let at = victim.driver.alloc(16 * table.len() as u64 + 16);
    let memory = victim.slot().ram.memory();
    for (i, &(addr, len, flags, next)) in table.iter().enumerate() {
        let at = at + 16 * i as u64;
        memory.write_obj(addr, GuestAddress(at)).unwrap();
        memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags | victim.flag, GuestAddress(at + 12)).unwrap();
        memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }
    let queue = &mut victim.driver.queues[victim.queue];
    queue.put_desc(0, at, bytes, INDIRECT | flags, 1);
    queue.put_desc(1, 0x1000, 64, victim.flag, 0);
    queue.publish(0);
}

#[test]
fn r8_descriptor_length_beyond_region() {
    breaks(|v| one(v, v.slot().ram.size() - 16, 4096, 0, 0));
    breaks(|v| one(v, v.slot().ram.size() - 1, 2, 0, 0));
}

#[test]
fn r8_huge_lengths() {
    breaks(|v| one(v, 0x10_0000, u32::MAX, 0, 0));
    breaks(|v| one(v, 0, i32::MAX as u32, 0, 0));
}

#[test]
fn r8_addresses_outside_ram() {
    for addr in [1 << 40, 0xd000_0000, u64::MAX, u64::MAX - 4095, u64::MAX - 63] {
        breaks(|v| one(v, addr, 64, 0, 0));
    }
    breaks(|v| one(v, 1 << 40, 0, 0, 0));
}

#[test]
fn r8_guest_value_as_an_index() {
    for head in [|size: u16| size, |_| 0xffff, |size| size + 1] {
        breaks(|v| {
            let queue = &mut v.driver.queues[v.queue];
            queue.publish(head(queue.size));
        });
        breaks(|v| {
            let next = head(v.driver.queues[v.queue].size);
            one(v, 0x10_0000, 64, NEXT, next);
        });
    }
}

#[test]
fn r8_loops_in_descriptors() {
    breaks(|v| one(v, 0x10_0000, 64, NEXT, 0));
    breaks(|v| {
        let flags = v.flag | NEXT;
        v.driver.queues[v.queue].put_desc(1, 0x10_0000, 64, flags, 0);
        one(v, 0x10_0000, 64, NEXT, 1);
    });
    // Without a byte in it, so that no sum of lengths ends it.
    breaks(|v| one(v, 0x10_0000, 0, NEXT, 0));
}

#[test]
fn r8_ring_indices_jumping() {
    for jump in [|size: u16| size + 1, |_| 0x8000, |_| 0xffff, |size| 2 * size] {
        breaks(|v| {
            let queue = &v.driver.queues[v.queue];
            queue.set_avail_idx(jump(queue.size));
        });
    }
}

#[test]
fn r8_mixed_buffer_order() {
    breaks(|v| {
        let queue = &mut v.driver.queues[v.queue];
        queue.put_desc(0, 0x10_0000, 64, WRITE | NEXT, 1);
        queue.put_desc(1, 0x10_1000, 64, 0, 0);
        queue.publish(0);
    });
}

#[test]
fn r8_hostile_indirect_tables() {
    let good = (0x10_0000, 64, 0, 0);
    for bytes in [0, 1, 15, 17, u32::MAX, 0xffff_fff0, 16 * 4097] {
        breaks(|v| indirect(v, &[good], bytes, 0));
    }
    // With a successor, nested, nested in itself, looping, leaving its table.
    breaks(|v| indirect(v, &[good], 16, NEXT));
    breaks(|v| indirect(v, &[(0x10_0000, 16, INDIRECT, 0)], 16, 0));
    breaks(|v| indirect(v, &[(0x10_0000, 64, NEXT, 0)], 16, 0));
    breaks(|v| indirect(v, &[(0x10_0000, 64, NEXT, 1)], 16, 0));
    breaks(|v| indirect(v, &[(0x10_0000, 64, NEXT, 1), (1 << 41, 64, 0, 0)], 32, 0));
    for addr in [1 << 40, u64::MAX - 15, u64::MAX] {
        breaks(|v| one(v, addr, 32, INDIRECT, 0));
    }
    // More than 4 GiB by naming the same 16 MiB again and again.
    let table: Vec<_> = (0..300).map(|i| (0x10_0000, 16 << 20, NEXT, i + 1)).collect();
    breaks(|v| indirect(v, &table, 16 * 300, 0));
}

#[test]
fn r8_guest_sized_host_allocation() {
    // 3.9 GiB of buffers in one chain: looked at as far as each device's cap, not copied.
    let table: Vec<_> =
        (0..250).map(|i| (0x10_0000, 16 << 20, if i < 249 { NEXT } else { 0 }, i + 1)).collect();
    let output = Output::default();
    let mut console = Victim {
        name: "console",
        driver: Driver::new(Slot::new(Arc::new(Console::new(Box::new(output.clone())))), 0),
        queue: 1,
        flag: 0,
        _keep: Box::new(()),
    };
    indirect(&mut console, &table, 16 * 250, 0);
    console.notify();
    assert!(!console.slot().broken());
    assert!(output.0.lock().unwrap().len() <= 1 << 20);
    let mut rng = victims().swap_remove(0);
    indirect(&mut rng, &table, 16 * 250, 0);
    rng.notify();
    assert!(!rng.slot().broken());
    let len: u32 = rng.slot().ram.memory().read_obj(GuestAddress(rng.driver.queues[0].used + 8)).unwrap();
    assert_eq!(len as usize, MAX_REQUEST);
}

#[test]
fn r8_answer_longer_than_the_guests_buffer() {
    let console = Arc::new(Console::new(Box::new(std::io::sink())));
    let mut driver = Driver::new(Slot::new(console.clone()), 0);
    console.push_input(&[b'a'; 1000]);
    let at = driver.alloc(4096);
    driver.queues[0].add(&[(at + 100, 7, true)]).unwrap();
    driver.queues[0].kick();
    assert_eq!(driver.queues[0].used().unwrap().1, 7);
    let mut around = [0; 200];
    driver.slot.ram.memory().read_slice(&mut around, GuestAddress(at)).unwrap();
    assert_eq!(around.iter().filter(|&&b| b == b'a').count(), 7);
    assert_eq!(console.pending_input(), 993, "the rest waits for the next buffer");
}

#[test]
fn r8_buffers_of_the_wrong_direction() {
    for mut v in victims() {
        v.flag ^= WRITE;
        one(&mut v, 0x10_0000, 64, 0, 0);
        v.notify();
        // Nothing is written to what is only readable; where an answer is due, the queue is broken.
        let harmless = matches!(v.name, "rng" | "console output");
        assert_eq!(v.slot().broken(), !harmless, "{}", v.name);
    }
}

#[test]
fn r8_queue_registers_mutable_after_activation() {
    let slot = Driver::new(Slot::new(Arc::new(Vsock::new(7))), 0).slot;
    let before = slot.mmio.state();
    assert_eq!(before.queues.len(), 3);
    for queue in 0..4 {
        slot.w(VIRTIO_MMIO_QUEUE_SEL, queue);
        for register in (0x38..0xac).step_by(4).filter(|&r| {
            ![VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_INTERRUPT_ACK].contains(&r)
        }) {
            for value in [0, 1, 0x1000, u32::MAX] {
                slot.w(register, value);
            }
        }
    }
    assert_eq!(slot.mmio.state().queues, before.queues);
    assert_eq!(slot.mmio.state().driver_features, before.driver_features);
    // Before DRIVER_OK a queue that is ready is fixed too.
    slot.negotiate(0);
    slot.setup_queue(0, 64, 0x1000, 0x2000, 0x3000);
    let before = slot.mmio.state();
    slot.w(VIRTIO_MMIO_QUEUE_NUM, 32);
    slot.w(VIRTIO_MMIO_QUEUE_DESC_LOW, 0x9000);
    assert_eq!(slot.mmio.state(), before);
    // And before FEATURES_OK none is writable.
    slot.w(VIRTIO_MMIO_STATUS, 0);
    slot.setup_queue(0, 64, 0x1000, 0x2000, 0x3000);
    assert!(!slot.mmio.state().queues[0].ready);
    assert_eq!(slot.mmio.state().queues[0].desc_table, 0);
}

#[test]
fn r8_no_guest_memory_access_after_reset() {
    let console = Arc::new(Console::new(Box::new(std::io::sink())));
    let mut driver = Driver::new(Slot::new(console.clone()), 0);
    let at = driver.alloc(4096);
    driver.queues[0].add(&[(at, 64, true)]).unwrap();
    driver.queues[0].kick();
    driver.slot.w(VIRTIO_MMIO_STATUS, 0);
    console.push_input(b"late");
    assert_eq!(driver.slot.ram.memory().read_obj::<u32>(GuestAddress(at)).unwrap(), 0);
    assert!(driver.queues[0].used().is_none());
    assert!(!driver.slot.irq.level.load(Ordering::SeqCst));
}

#[test]
fn queues_set_up_wrongly_need_a_reset() {
    let ram = 32 << 20;
    let cases: &[(u32, u64, u64, u64)] = &[
        (0, 0x1000, 0x2000, 0x3000),
        (3, 0x1000, 0x2000, 0x3000),
        (63, 0x1000, 0x2000, 0x3000),
        (128, 0x1000, 0x2000, 0x3000),
        (0x1_0040, 0x1000, 0x2000, 0x3000),
        (u32::MAX, 0x1000, 0x2000, 0x3000),
        (64, 0x1008, 0x2000, 0x3000),
        (64, 0x1000, 0x2001, 0x3000),
        (64, 0x1000, 0x2000, 0x3002),
        (64, ram, 0x2000, 0x3000),
        (64, 0x1000, ram - 2, 0x3000),
        (64, 0x1000, 0x2000, ram - 4),
        (64, !15, 0x2000, 0x3000),
        (64, 0x1000, !1, 0x3000),
        (64, 0x1000, 0x2000, !3),
        (64, 0x1000, 0, 0x3000),
        (64, 0x1000, 0x2000, 0x2000),
        (64, 0x1000, 0x1010, 0x3000),
        (64, 0x1000, 0x3010, 0x3000),
    ];
    let slot = Slot::new(Arc::new(Rng::new()));
    for &(size, desc, avail, used) in cases {
        slot.negotiate(0);
        slot.setup_queue(0, size, desc, avail, used);
        slot.driver_ok();
        assert!(slot.broken(), "{size} {desc:#x} {avail:#x} {used:#x}");
        assert_eq!(slot.r(VIRTIO_MMIO_INTERRUPT_STATUS), INT_CONFIG);
        slot.w(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    }
    Driver::new(slot, 0);
}

#[test]
fn notifications_without_a_queue_do_nothing() {
    for slot in [Slot::new(Arc::new(Rng::new())), Slot::new(Arc::new(Vsock::new(7)))] {
        slot.w(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        slot.negotiate(0);
        slot.w(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        // Active with no queue ready.
        slot.driver_ok();
        for queue in [0, 1, 2, 3, 0xffff, 0x1_0000, u32::MAX] {
            slot.w(VIRTIO_MMIO_QUEUE_NOTIFY, queue);
        }
        assert_eq!(slot.r(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        assert!(!slot.broken());
    }
}

#[test]
fn read_only_registers_stay() {
    let slot = Driver::new(Slot::new(Arc::new(Vsock::new(7))), 0).slot;
    let read_only = [0, 4, 8, 0xc, 0x10, 0x34, 0x60, 0xb0, 0xb4, 0xb8, 0xbc, 0xc0, 0xfc, 0x100, 0x104];
    let before: Vec<u32> = read_only.iter().map(|&r| slot.r(r)).collect();
    for register in read_only {
        slot.w(register, 0x5555_5555);
    }
    assert_eq!(read_only.map(|r| slot.r(r)).to_vec(), before);
}

#[test]
fn a_queue_that_never_empties_is_given_up() {
    let ram = GuestRam::new(1 << 20).unwrap();
    let regs = QueueRegs {
        size: 16,
        ready: true,
        desc_table: 0x1000,
        avail_ring: 0x2000,
        used_ring: 0x3000,
        ..QueueRegs::default()
    };
    let mut queue = Virtqueue::new(ram.clone(), 16, &regs, true).unwrap();
    ram.memory().write_obj(64u32, GuestAddress(0x1008)).unwrap();
    queue.start_batch();
    for taken in 1u32.. {
        ram.memory().write_obj(taken as u16, GuestAddress(0x2002)).unwrap();
        match queue.pop() {
            Ok(chain) => assert_eq!(chain.unwrap().head(), 0),
            Err(QueueError::Endless) => break,
            Err(other) => panic!("{other}"),
        }
        assert!(taken < 100_000);
    }
}

/// A value that does something, more often than chance would have it.
fn value() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0u32),
        0u32..16,
        Just(0xf),
        Just(64),
        (0u32..0x2000).prop_map(|page| page << 12),
        any::<u32>()
    ]
}

fn devices() -> Vec<(Arc<Slot>, Box<dyn Any>)> {
    let vsock = Vsock::new(7);
    let listener = vsock.host().listen(5).unwrap();
    let console = Arc::new(Console::new(Box::new(std::io::sink())));
    console.push_input(&[b'x'; 300]);
    vec![
        (Slot::new(Arc::new(Rng::new())), Box::new(())),
        (Slot::new(console), Box::new(())),
        (Slot::new(Arc::new(vsock)), Box::new(listener)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn random_register_writes(
        writes in prop::collection::vec((0u64..0x48, value(), 0usize..12), 1..300),
        stage in 0u32..3,
    ) {
        for (slot, _keep) in devices() {
            let start = Instant::now();
            if stage > 0 {
                slot.negotiate(0);
            }
            if stage > 1 {
                slot.setup_queue(0, 64, 0x1000, 0x2000, 0x3000);
                slot.driver_ok();
            }
            for &(register, value, width) in &writes {
                match width {
                    0 => slot.mmio.write(register * 4 + 1, &value.to_le_bytes()[..1]),
                    1 => slot.mmio.write(register * 4, &[0xff; 8]),
                    2 => slot.mmio.read(register * 4, &mut [0; 8]),
                    _ => slot.mmio.write(register * 4, &value.to_le_bytes()),
                }
                slot.r(register as u32 * 4);
            }
            prop_assert!(start.elapsed() < Duration::from_secs(5));
            let state = slot.mmio.state();
            let _ = slot.mmio.set_state(&state);
            Driver::new(slot, 0);
        }
    }

    #[test]
    fn random_ring_contents(
        descs in prop::collection::vec(
            (
                prop_oneof![4 => 0x10_0000u64..0x1ff_0000, 1 => 0x10_0000u64..0x10_c000, 1 => any::<u64>()],
                prop_oneof![4 => 0u32..5000, 1 => Just(44), 1 => any::<u32>()],
                prop_oneof![4 => 0u16..4, 1 => 0u16..8],
                prop_oneof![4 => 0u16..16, 1 => any::<u16>()],
            ),
            1..64,
        ),
        heads in prop::collection::vec(0u16..16, 1..64),
        extra in prop_oneof![4 => Just(0u16), 1 => any::<u16>()],
        noise in prop::collection::vec(any::<u8>(), 0..512),
        rounds in 1usize..4,
    ) {
        for (slot, _keep) in devices() {
            let start = Instant::now();
            let mut driver = Driver::new(slot.clone(), 0);
            slot.ram.memory().write_slice(&noise, GuestAddress(0x10_0000)).unwrap();
            for queue in &mut driver.queues {
                for (i, &(addr, len, flags, next)) in descs.iter().enumerate() {
                    queue.put_desc(i as u16 % queue.size, addr, len, flags, next);
                }
                for &head in heads.iter().take(queue.size.into()) {
                    queue.publish(head);
                }
                queue.set_avail_idx(queue.next_avail.wrapping_add(extra));
            }
            for _ in 0..rounds {
                for queue in &mut driver.queues {
                    queue.notify();
                }
                driver.handle_irq();
            }
            prop_assert!(start.elapsed() < Duration::from_secs(5));
            let again = Driver::new(slot, 0);
            prop_assert!(!again.slot.broken());
        }
    }
}
