//! virtio-rng: the host's entropy for the guest.

use std::sync::{Arc, Mutex};

use super::device::{Activation, VirtioDevice, fail_on_error};
use super::interrupt::Interrupt;
use super::queue::{QueueError, QueueRegs, Virtqueue};
use super::spec::ID_RNG;
use crate::sys::random;

/// Bytes given for one request. The driver asks again for more.
pub const MAX_REQUEST: usize = 4096;

/// The entropy device: one queue of buffers to fill from the operating system's generator.
#[derive(Debug, Default)]
pub struct Rng {
    active: Mutex<Option<Active>>,
}

#[derive(Debug)]
struct Active {
    queue: Virtqueue,
    interrupt: Arc<Interrupt>,
}

impl Rng {
    /// An idle device.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Active>> {
        self.active.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Active {
    fn work(&mut self) -> Result<(), QueueError> {
        let mut bytes = [0; MAX_REQUEST];
        let mut used = false;
        self.queue.start_batch();
        loop {
            while let Some(chain) = self.queue.pop()? {
                let wanted = chain.write_len().min(MAX_REQUEST);
                let part = bytes.get_mut(..wanted).unwrap_or_default();
                // Without entropy an empty answer, which the driver retries.
                let filled = if random::fill(part) { chain.write(self.queue.ram(), 0, part)? } else { 0 };
                self.queue.push_used(chain.head(), filled as u32)?;
                used = true;
            }
            if !self.queue.arm()? {
                break;
            }
        }
        if used && self.queue.wants_interrupt()? {
            self.interrupt.signal_used();
        }
        Ok(())
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        ID_RNG
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn activate(&self, activation: Activation) {
        let Activation { queues, interrupt, .. } = activation;
        *self.lock() = queues.into_iter().next().map(|queue| Active { queue, interrupt });
    }
    fn reset(&self) {
        *self.lock() = None;
    }
    fn queue_notify(&self, _index: u16) {
        let mut active = self.lock();
        if let Some(it) = active.as_mut() {
            let result = it.work();
            if fail_on_error(&it.interrupt, result) {
                *active = None;
            }
        }
    }
    fn queue_regs(&self) -> Vec<QueueRegs> {
        self.lock().iter().map(|it| it.queue.regs()).collect()
    }
}
