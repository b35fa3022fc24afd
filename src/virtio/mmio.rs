//! The virtio-mmio transport, version 2: one page of registers for one device.
//!
//! Registers are 32 bits wide; accesses of another width read zero and store nothing, except in
//! the configuration space from 0x100 on, where the device takes any width.
//!
//! The driver's path is ACKNOWLEDGE, DRIVER, features, FEATURES_OK, queues, DRIVER_OK. The
//! transport holds it to that order: features are writable until FEATURES_OK, the registers of a
//! queue from then until the queue is ready or DRIVER_OK. After that only a reset (status 0)
//! makes them writable again. A queue that is set up wrongly makes DRIVER_OK end in
//! DEVICE_NEEDS_RESET.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::device::{Activation, VirtioDevice, event_idx, fail_on_error};
use super::interrupt::Interrupt;
use super::queue::{QueueError, QueueRegs, Virtqueue};
use super::spec::reg::*;
use super::spec::*;
use crate::chipset::bus::BusDevice;
use crate::chipset::irq::IrqLine;
use crate::memory::GuestRam;

/// Bytes of address space that one device takes.
pub const MMIO_SIZE: u64 = 0x1000;

/// What the status register takes from the driver.
pub(super) const STATUS_WRITABLE: u32 =
    STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_DRIVER_OK | STATUS_FEATURES_OK | STATUS_FAILED;

/// One device in its register page.
pub struct VirtioMmio {
    device: Arc<dyn VirtioDevice>,
    ram: Arc<GuestRam>,
    interrupt: Arc<Interrupt>,
    /// Held across activation and reset of the device, never while it works.
    regs: Mutex<Registers>,
    /// DRIVER_OK, readable without the lock: notifications are the hot path.
    active: AtomicBool,
}

/// The registers of a transport, as they are saved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TransportState {
    /// The device ID, to refuse the state of another device.
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
    pub queues: Vec<QueueRegs>,
}

/// A saved state that does not fit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// State of another device.
    #[error("saved state is of virtio device {found}, not {expected}")]
    Device {
        /// The ID in the state.
        found: u32,
        /// The ID of this device.
        expected: u32,
    },
    /// Values that no driver could have brought about.
    #[error("saved state is inconsistent: {0}")]
    Inconsistent(&'static str),
    /// A queue that cannot be set up.
    #[error("saved queue does not fit")]
    Queue(#[from] QueueError),
}

#[derive(Debug, Default)]
struct Registers {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueRegs>,
}

impl Registers {
    fn new(sizes: &[u16]) -> Self {
        let queues = sizes.iter().map(|&size| QueueRegs { size, ..QueueRegs::default() }).collect();
        Self { queues, ..Self::default() }
    }

    fn queue(&self) -> Option<&QueueRegs> {
        self.queues.get(self.queue_sel as usize)
    }

    /// The selected queue, if its registers may be written now.
    fn queue_mut(&mut self, also_ready: bool) -> Option<&mut QueueRegs> {
        let stage = STATUS_FEATURES_OK | STATUS_DRIVER_OK | STATUS_FAILED;
        if self.status & stage != STATUS_FEATURES_OK {
            return None;
        }
        self.queues.get_mut(self.queue_sel as usize).filter(|q| also_ready || !q.ready)
    }
}

impl VirtioMmio {
    /// `device` in a register page, its queues in `ram`, its interrupt on `line`.
    pub fn new(device: Arc<dyn VirtioDevice>, ram: Arc<GuestRam>, line: IrqLine) -> Self {
        let regs = Mutex::new(Registers::new(device.queue_sizes()));
        Self { device, ram, interrupt: Arc::new(Interrupt::new(line)), regs, active: AtomicBool::new(false) }
    }

    /// The device behind this page.
    pub fn device(&self) -> &Arc<dyn VirtioDevice> {
        &self.device
    }

    /// The registers, for saving. The vCPUs must have stopped and the device be paused.
    pub fn state(&self) -> TransportState {
        let regs = self.lock();
        let mut queues = regs.queues.clone();
        for (saved, live) in queues.iter_mut().zip(self.device.queue_regs()) {
            if live.ready {
                *saved = live;
            }
        }
        TransportState {
            device_id: self.device.id(),
            status: self.shown_status(&regs),
            interrupt_status: self.interrupt.status(),
            device_features_sel: regs.device_features_sel,
            driver_features_sel: regs.driver_features_sel,
            driver_features: regs.driver_features,
            queue_sel: regs.queue_sel,
            queues,
        }
    }

    /// Takes over saved registers and activates the device if it was active. Guest memory must
    /// already be what it was when the state was saved.
    ///
    /// # Errors
    /// When the state is another device's or inconsistent; the device is idle then.
    pub fn set_state(&self, state: &TransportState) -> Result<(), StateError> {
        let mut regs = self.lock();
        self.reset(&mut regs);
        let (id, sizes) = (self.device.id(), self.device.queue_sizes());
        if state.device_id != id {
            return Err(StateError::Device { found: state.device_id, expected: id });
        }
        if state.queues.len() != sizes.len() || state.queues.iter().zip(sizes).any(|(q, &max)| q.size > max) {
            return Err(StateError::Inconsistent("queues"));
        }
        if state.status & !(STATUS_WRITABLE | STATUS_NEEDS_RESET) != 0 {
            return Err(StateError::Inconsistent("status"));
        }
        let agreed = state.status & STATUS_FEATURES_OK != 0;
        if agreed && !self.acceptable(state.driver_features)
            || !agreed && state.status & STATUS_DRIVER_OK != 0
        {
            return Err(StateError::Inconsistent("features"));
        }
        let broken = state.status & STATUS_NEEDS_RESET != 0;
        let works = state.status & STATUS_DRIVER_OK != 0 && state.status & STATUS_FAILED == 0 && !broken;
        let mut restored = Registers {
            status: state.status & STATUS_WRITABLE,
            device_features_sel: state.device_features_sel,
            driver_features_sel: state.driver_features_sel,
            driver_features: state.driver_features,
            queue_sel: state.queue_sel,
            queues: state.queues.clone(),
        };
        let activation = if works { Some(self.activation(&restored)?) } else { None };
        std::mem::swap(&mut *regs, &mut restored);
        self.interrupt.restore(state.interrupt_status, broken);
        if let Some(activation) = activation {
            self.device.activate(activation);
            self.active.store(true, Ordering::SeqCst);
            self.device.restored();
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Registers> {
        self.regs.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn offered(&self) -> u64 {
        self.device.features() | RING_FEATURES
    }

    fn acceptable(&self, features: u64) -> bool {
        features & F_VERSION_1 != 0 && features & !self.offered() == 0
    }

    fn shown_status(&self, regs: &Registers) -> u32 {
        regs.status | if self.interrupt.is_broken() { STATUS_NEEDS_RESET } else { 0 }
    }

    fn read_register(&self, register: u32) -> u32 {
        let regs = self.lock();
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MMIO_MAGIC,
            VIRTIO_MMIO_VERSION => MMIO_VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.id(),
            VIRTIO_MMIO_VENDOR_ID => MMIO_VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered(), regs.device_features_sel),
            VIRTIO_MMIO_QUEUE_NUM_MAX => {
                self.device.queue_sizes().get(regs.queue_sel as usize).map_or(0, |&max| max.into())
            }
            VIRTIO_MMIO_QUEUE_READY => regs.queue().is_some_and(|q| q.ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            VIRTIO_MMIO_STATUS => self.shown_status(&regs),
            // No shared memory region: a length of all ones says so.
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_QUEUE_RESET => 0,
            VIRTIO_MMIO_CONFIG_GENERATION => self.device.config_generation(),
            _ => 0,
        }
    }

    fn write_register(&self, register: u32, value: u32) {
        // Notifications and acknowledgements are frequent and need none of the registers.
        match register {
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                let index = u16::try_from(value).unwrap_or(u16::MAX);
                let known = usize::from(index) < self.device.queue_sizes().len();
                if known && self.active.load(Ordering::SeqCst) && !self.interrupt.is_broken() {
                    self.device.queue_notify(index);
                }
                return;
            }
            VIRTIO_MMIO_INTERRUPT_ACK => return self.interrupt.acknowledge(value),
            _ => {}
        }
        let mut regs = self.lock();
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => regs.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => regs.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES => {
                let stage = STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_FAILED;
                if regs.status & stage == STATUS_DRIVER {
                    match regs.driver_features_sel {
                        0 => set_low(&mut regs.driver_features, value),
                        1 => set_high(&mut regs.driver_features, value),
                        _ => {}
                    }
                }
            }
            VIRTIO_MMIO_QUEUE_SEL => regs.queue_sel = value,
            VIRTIO_MMIO_QUEUE_NUM => {
                if let Some(q) = regs.queue_mut(false) {
                    // What does not fit is kept as the invalid size 0 and refused at activation.
                    q.size = u16::try_from(value).unwrap_or(0);
                }
            }
            VIRTIO_MMIO_QUEUE_READY => {
                if let Some(q) = regs.queue_mut(true) {
                    q.ready = value & 1 != 0;
                }
            }
            VIRTIO_MMIO_QUEUE_DESC_LOW => {
                regs.queue_mut(false).into_iter().for_each(|q| set_low(&mut q.desc_table, value));
            }
            VIRTIO_MMIO_QUEUE_DESC_HIGH => {
                regs.queue_mut(false).into_iter().for_each(|q| set_high(&mut q.desc_table, value));
            }
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => {
                regs.queue_mut(false).into_iter().for_each(|q| set_low(&mut q.avail_ring, value));
            }
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
                regs.queue_mut(false).into_iter().for_each(|q| set_high(&mut q.avail_ring, value));
            }
            VIRTIO_MMIO_QUEUE_USED_LOW => {
                regs.queue_mut(false).into_iter().for_each(|q| set_low(&mut q.used_ring, value));
            }
            VIRTIO_MMIO_QUEUE_USED_HIGH => {
                regs.queue_mut(false).into_iter().for_each(|q| set_high(&mut q.used_ring, value));
            }
            VIRTIO_MMIO_STATUS => self.write_status(&mut regs, value),
            _ => {}
        }
    }

    fn write_status(&self, regs: &mut Registers, value: u32) {
        if value == 0 {
            return self.reset(regs);
        }
        // Only a reset clears bits.
        let mut status = regs.status | (value & STATUS_WRITABLE);
        let added = status & !regs.status;
        if added & STATUS_FAILED != 0 && regs.status & STATUS_DRIVER_OK != 0 {
            self.active.store(false, Ordering::SeqCst);
            self.device.reset();
        }
        let agrees = status & STATUS_DRIVER != 0 && self.acceptable(regs.driver_features);
        if added & STATUS_FEATURES_OK != 0 && !agrees {
            status &= !STATUS_FEATURES_OK;
        }
        if status & STATUS_FEATURES_OK == 0 || status & STATUS_FAILED != 0 {
            status &= !(added & STATUS_DRIVER_OK);
        }
        regs.status = status;
        if added & status & STATUS_DRIVER_OK != 0 && !self.interrupt.is_broken() {
            match self.activation(regs) {
                Ok(activation) => {
                    self.device.activate(activation);
                    self.active.store(true, Ordering::SeqCst);
                }
                Err(error) => {
                    fail_on_error(&self.interrupt, Err(error));
                }
            }
        }
    }

    fn activation(&self, regs: &Registers) -> Result<Activation, QueueError> {
        let features = regs.driver_features;
        let queues = regs
            .queues
            .iter()
            .zip(self.device.queue_sizes())
            .map(|(q, &max)| Virtqueue::new(self.ram.clone(), max, q, event_idx(features)))
            .collect::<Result<_, _>>()?;
        Ok(Activation { queues, interrupt: self.interrupt.clone(), features })
    }

    fn reset(&self, regs: &mut Registers) {
        if self.active.swap(false, Ordering::SeqCst) {
            self.device.reset();
        }
        *regs = Registers::new(self.device.queue_sizes());
        self.interrupt.reset();
    }
}

impl BusDevice for VirtioMmio {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            return self.device.read_config(offset, data);
        }
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) => *word = self.read_register(offset as u32).to_le_bytes(),
            Err(_) => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            return self.device.write_config(offset, data);
        }
        if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.write_register(offset as u32, u32::from_le_bytes(word));
        }
    }
}

fn half(value: u64, selector: u32) -> u32 {
    match selector {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_low(field: &mut u64, value: u32) {
    *field = *field & !0xffff_ffff | u64::from(value);
}

fn set_high(field: &mut u64, value: u32) {
    *field = *field & 0xffff_ffff | u64::from(value) << 32;
}
