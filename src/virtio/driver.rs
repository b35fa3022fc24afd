//! A driver for tests: it finds, negotiates and runs a device through its register page and
//! through rings in guest RAM, in the order in which Linux does.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::device::VirtioDevice;
use super::mmio::VirtioMmio;
use super::spec::reg::*;
use super::spec::*;
use crate::chipset::bus::BusDevice;
use crate::chipset::irq::{IrqLine, IrqSink};
use crate::memory::GuestRam;

/// An interrupt controller with one input that counts.
#[derive(Debug, Default)]
pub(crate) struct TestIrq {
    pub(crate) level: AtomicBool,
    pub(crate) raised: AtomicU32,
    gate: Mutex<()>,
    changed: Condvar,
}

impl IrqSink for TestIrq {
    fn set_irq(&self, gsi: u32, level: bool) {
        assert_eq!(gsi, 5);
        let _gate = self.gate.lock().unwrap();
        if !self.level.swap(level, Ordering::SeqCst) && level {
            self.raised.fetch_add(1, Ordering::SeqCst);
        }
        self.changed.notify_all();
    }
}

impl TestIrq {
    /// Waits until the line is high; false after `limit`.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut gate = self.gate.lock().unwrap();
        while !self.level.load(Ordering::SeqCst) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            gate = self.changed.wait_timeout(gate, left).unwrap().0;
        }
        true
    }
}

/// A device in its register page, in a machine with nothing else.
pub(crate) struct Slot {
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) mmio: VirtioMmio,
    pub(crate) irq: Arc<TestIrq>,
}

impl Slot {
    pub(crate) fn new(device: Arc<dyn VirtioDevice>) -> Arc<Self> {
        Self::in_ram(device, GuestRam::new(32 << 20).unwrap())
    }

    pub(crate) fn in_ram(device: Arc<dyn VirtioDevice>, ram: Arc<GuestRam>) -> Arc<Self> {
        let irq = Arc::new(TestIrq::default());
        let mmio = VirtioMmio::new(device, ram.clone(), IrqLine::new(irq.clone(), 5));
        Arc::new(Self { ram, mmio, irq })
    }

    pub(crate) fn r(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.mmio.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }
    pub(crate) fn w(&self, register: u32, value: u32) {
        self.mmio.write(register.into(), &value.to_le_bytes());
    }
    pub(crate) fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xaa; N];
        self.mmio.read(0x100 + offset, &mut data);
        data
    }
    pub(crate) fn status(&self) -> u32 {
        self.r(VIRTIO_MMIO_STATUS)
    }
    pub(crate) fn broken(&self) -> bool {
        self.status() & STATUS_NEEDS_RESET != 0
    }

    pub(crate) fn offered(&self) -> u64 {
        self.w(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        let low = self.r(VIRTIO_MMIO_DEVICE_FEATURES);
        self.w(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        u64::from(low) | u64::from(self.r(VIRTIO_MMIO_DEVICE_FEATURES)) << 32
    }

    /// Reset to FEATURES_OK with the offered features except `without`.
    pub(crate) fn negotiate(&self, without: u64) -> u64 {
        assert_eq!(self.r(VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
        assert_eq!(self.r(VIRTIO_MMIO_VERSION), 2);
        self.w(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(self.status(), 0);
        self.w(VIRTIO_MMIO_STATUS, STATUS_ACKNOWLEDGE);
        self.w(VIRTIO_MMIO_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
        let features = self.offered() & !without;
        self.set_features(features);
        self.w(VIRTIO_MMIO_STATUS, self.status() | STATUS_FEATURES_OK);
        features
    }

    pub(crate) fn set_features(&self, features: u64) {
        self.w(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        self.w(VIRTIO_MMIO_DRIVER_FEATURES, (features >> 32) as u32);
        self.w(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        self.w(VIRTIO_MMIO_DRIVER_FEATURES, features as u32);
    }

    pub(crate) fn setup_queue(&self, index: u32, size: u32, desc: u64, avail: u64, used: u64) {
        self.w(VIRTIO_MMIO_QUEUE_SEL, index);
        self.w(VIRTIO_MMIO_QUEUE_NUM, size);
        for (low, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, desc),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, avail),
            (VIRTIO_MMIO_QUEUE_USED_LOW, used),
        ] {
            self.w(low, address as u32);
            self.w(low + 4, (address >> 32) as u32);
        }
        self.w(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    pub(crate) fn driver_ok(&self) {
        self.w(VIRTIO_MMIO_STATUS, self.status() | STATUS_DRIVER_OK);
    }
}

/// A well-behaved driver.
pub(crate) struct Driver {
    pub(crate) slot: Arc<Slot>,
    pub(crate) queues: Vec<Ring>,
    next_page: u64,
}

impl Driver {
    /// Brings the device up with all it offers except `without`.
    pub(crate) fn new(slot: Arc<Slot>, without: u64) -> Self {
        let features = slot.negotiate(without);
        assert_ne!(slot.status() & STATUS_FEATURES_OK, 0, "the device accepts its own features");
        let mut driver = Self { slot: slot.clone(), queues: Vec::new(), next_page: 0x10_0000 };
        for index in 0.. {
            slot.w(VIRTIO_MMIO_QUEUE_SEL, index);
            let size = slot.r(VIRTIO_MMIO_QUEUE_NUM_MAX);
            if size == 0 {
                break;
            }
            assert_eq!(slot.r(VIRTIO_MMIO_QUEUE_READY), 0);
            let (desc, avail, used) = (driver.alloc(0x4000), driver.alloc(0x4000), driver.alloc(0x4000));
            slot.setup_queue(index, size, desc, avail, used);
            assert_eq!(slot.r(VIRTIO_MMIO_QUEUE_READY), 1);
            let event_idx = features & F_EVENT_IDX != 0;
            driver.queues.push(Ring::new(slot.clone(), index, size as u16, [desc, avail, used], event_idx));
        }
        slot.driver_ok();
        driver
    }

    /// The same driver, whose machine goes on in `slot`.
    pub(crate) fn rebind(&mut self, slot: Arc<Slot>) {
        self.queues.iter_mut().for_each(|q| q.slot = slot.clone());
        self.slot = slot;
    }

    /// Zeroed, page-aligned guest memory.
    pub(crate) fn alloc(&mut self, bytes: u64) -> u64 {
        let at = self.next_page;
        self.next_page += bytes.next_multiple_of(4096);
        assert!(self.next_page <= self.slot.ram.size(), "the test needs more guest RAM");
        let zeros = vec![0; bytes as usize];
        self.slot.ram.memory().write_slice(&zeros, GuestAddress(at)).unwrap();
        at
    }

    /// Takes the interrupt as the guest's handler does. Returns the bits.
    pub(crate) fn handle_irq(&self) -> u32 {
        let bits = self.slot.r(VIRTIO_MMIO_INTERRUPT_STATUS);
        self.slot.w(VIRTIO_MMIO_INTERRUPT_ACK, bits);
        bits
    }
}

/// The driver's side of one queue.
pub(crate) struct Ring {
    slot: Arc<Slot>,
    index: u32,
    pub(crate) size: u16,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    event_idx: bool,
    free: Vec<u16>,
    /// Descriptors of each chain in flight, by head.
    chains: Vec<Vec<u16>>,
    pub(crate) next_avail: u16,
    kicked: u16,
    pub(crate) last_used: u16,
    pub(crate) kicks: u32,
}

impl Ring {
    fn new(slot: Arc<Slot>, index: u32, size: u16, [desc, avail, used]: [u64; 3], event_idx: bool) -> Self {
        Self {
            slot,
            index,
            size,
            desc,
            avail,
            used,
            event_idx,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); size.into()],
            next_avail: 0,
            kicked: 0,
            last_used: 0,
            kicks: 0,
        }
    }

    fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.slot.ram.memory().write_obj(value, GuestAddress(at)).unwrap();
    }
    fn load(&self, at: u64) -> u16 {
        self.slot.ram.memory().load(GuestAddress(at), Ordering::Acquire).unwrap()
    }

    /// Writes descriptor `at`.
    pub(crate) fn put_desc(&self, at: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = self.desc + 16 * u64::from(at);
        self.put(at, addr);
        self.put(at + 8, len);
        self.put(at + 12, flags);
        self.put(at + 14, next);
    }

    /// Makes `head` available, without a kick.
    pub(crate) fn publish(&mut self, head: u16) {
        self.put(self.avail + 4 + 2 * u64::from(self.next_avail % self.size), head);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.set_avail_idx(self.next_avail);
    }

    pub(crate) fn set_avail_idx(&self, value: u16) {
        self.slot.ram.memory().store(value, GuestAddress(self.avail + 2), Ordering::Release).unwrap();
    }

    /// Adds a chain of (address, length, device-writable). `None` if there is no room.
    pub(crate) fn add(&mut self, buffers: &[(u64, u32, bool)]) -> Option<u16> {
        if self.free.len() < buffers.len() {
            return None;
        }
        let descs = self.free.split_off(self.free.len() - buffers.len());
        for (i, &(addr, len, writable)) in buffers.iter().enumerate() {
            let next = descs.get(i + 1);
            let flags = u16::from(next.is_some()) | u16::from(writable) << 1;
            self.put_desc(descs[i], addr, len, flags, next.copied().unwrap_or(0));
        }
        let head = descs[0];
        self.chains[usize::from(head)] = descs;
        self.publish(head);
        Some(head)
    }

    /// Notifies the device if it wants to be, as Linux decides it.
    pub(crate) fn kick(&mut self) {
        fence(Ordering::SeqCst);
        let wants = if self.event_idx {
            let event = self.load(self.used + 4 + 8 * u64::from(self.size));
            let (new, old) = (self.next_avail, self.kicked);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.load(self.used) & 1 == 0
        };
        self.kicked = self.next_avail;
        if wants {
            self.notify();
        }
    }

    pub(crate) fn notify(&mut self) {
        self.kicks += 1;
        self.slot.w(VIRTIO_MMIO_QUEUE_NOTIFY, self.index);
    }

    /// The next used chain: head and length. Asks for an interrupt for the one after it.
    pub(crate) fn used(&mut self) -> Option<(u16, u32)> {
        loop {
            if self.load(self.used + 2) != self.last_used {
                break;
            }
            // Armed before the last look, so that nothing comes in between.
            self.put(self.avail + 4 + 2 * u64::from(self.size), self.last_used);
            fence(Ordering::SeqCst);
            if self.load(self.used + 2) == self.last_used {
                return None;
            }
        }
        let at = self.used + 4 + 8 * u64::from(self.last_used % self.size);
        let [head, len]: [u32; 2] = self.slot.ram.memory().read_obj(GuestAddress(at)).unwrap();
        self.last_used = self.last_used.wrapping_add(1);
        let descs = std::mem::take(&mut self.chains[head as usize]);
        assert!(!descs.is_empty(), "the device used chain {head}, which is not in flight");
        self.free.extend(descs);
        Some((head as u16, len))
    }
}
