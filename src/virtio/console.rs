//! virtio-console with one port, the guest's /dev/hvc0.
//!
//! Output goes to a sink as it comes, input waits in a bounded queue for the guest's buffers. The
//! sink is called on the vCPU's thread: it must be quick and must not wait for the guest. Its
//! errors are ignored, because the guest can do nothing about them.

use std::io::Write;
use std::sync::{Arc, Mutex};

use super::device::{Activation, VirtioDevice, copy_config, fail_on_error};
use super::interrupt::Interrupt;
use super::queue::{QueueError, QueueRegs, Virtqueue};
use super::spec::ID_CONSOLE;

/// Bytes of input that wait for the guest at most.
pub const MAX_INPUT: usize = 64 * 1024;
/// Bytes of one output buffer that are looked at. Drivers send a page or less.
const MAX_OUTPUT: usize = 1 << 20;

const F_SIZE: u64 = 1 << 0;
const F_EMERG_WRITE: u64 = 1 << 2;
const EMERG_WRITE: u64 = 8;
const RX: usize = 0;
const TX: usize = 1;

/// The console device.
pub struct Console {
    state: Mutex<State>,
}

struct State {
    active: Option<Active>,
    paused: bool,
    /// The size changed during a pause.
    resized: bool,
    sink: Box<dyn Write + Send>,
    input: std::collections::VecDeque<u8>,
    cols: u16,
    rows: u16,
    generation: u32,
}

struct Active {
    rx: Virtqueue,
    tx: Virtqueue,
    interrupt: Arc<Interrupt>,
    /// Whether the driver agreed to hear of the size.
    sized: bool,
}

impl Console {
    /// An idle console whose output goes to `sink`.
    pub fn new(sink: Box<dyn Write + Send>) -> Self {
        let input = std::collections::VecDeque::new();
        Self {
            state: Mutex::new(State {
                active: None,
                paused: false,
                resized: false,
                sink,
                input,
                cols: 80,
                rows: 25,
                generation: 0,
            }),
        }
    }

    /// Types `data`. Returns how many bytes there was room for, see [`MAX_INPUT`]; the rest is
    /// not taken.
    pub fn push_input(&self, data: &[u8]) -> usize {
        let mut state = self.lock();
        let taken = data.len().min(MAX_INPUT - state.input.len().min(MAX_INPUT));
        state.input.extend(data.iter().take(taken));
        state.run(Active::feed);
        taken
    }

    /// Bytes of input that the guest has not taken yet.
    pub fn pending_input(&self) -> usize {
        self.lock().input.len()
    }

    /// Changes the size of the terminal, in characters, and tells the guest.
    pub fn resize(&self, cols: u16, rows: u16) {
        let mut state = self.lock();
        if (state.cols, state.rows) == (cols, rows) {
            return;
        }
        (state.cols, state.rows) = (cols, rows);
        state.generation = state.generation.wrapping_add(1);
        match state.paused {
            true => state.resized = true,
            false => state.tell_size(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl State {
    fn tell_size(&self) {
        if let Some(active) = self.active.as_ref().filter(|it| it.sized) {
            active.interrupt.signal_config();
        }
    }

    /// Does `work` on an active device and breaks the device if that fails.
    fn run(&mut self, work: impl FnOnce(&mut Active, &mut Self) -> Result<(), QueueError>) {
        if self.paused {
            return;
        }
        let Some(mut active) = self.active.take() else { return };
        let result = work(&mut active, self);
        if !fail_on_error(&active.interrupt, result) {
            self.active = Some(active);
        }
    }
}

impl Active {
    /// Guest to sink.
    fn drain(&mut self, state: &mut State) -> Result<(), QueueError> {
        let mut bytes = [0; 4096];
        let mut used = false;
        self.tx.start_batch();
        loop {
            while let Some(chain) = self.tx.pop()? {
                let len = chain.read_len().min(MAX_OUTPUT);
                let mut at = 0;
                while at < len {
                    let room = bytes.len().min(len - at);
                    let Some(part) = bytes.get_mut(..room) else { break };
                    at += chain.read(self.tx.ram(), at, part)?.max(1);
                    let _ = state.sink.write_all(part);
                }
                self.tx.push_used(chain.head(), 0)?;
                used = true;
            }
            if !self.tx.arm()? {
                break;
            }
        }
        if used {
            let _ = state.sink.flush();
            if self.tx.wants_interrupt()? {
                self.interrupt.signal_used();
            }
        }
        Ok(())
    }

    /// Input to guest, as far as there are buffers.
    fn feed(&mut self, state: &mut State) -> Result<(), QueueError> {
        let mut used = false;
        self.rx.start_batch();
        while !state.input.is_empty() {
            let Some(chain) = self.rx.pop()? else {
                if self.rx.arm()? {
                    continue;
                }
                break;
            };
            if chain.write_len() == 0 {
                return Err(QueueError::TooSmall);
            }
            let (first, second) = state.input.as_slices();
            let mut written = chain.write(self.rx.ram(), 0, first)?;
            if written == first.len() {
                written += chain.write(self.rx.ram(), written, second)?;
            }
            state.input.drain(..written);
            self.rx.push_used(chain.head(), written as u32)?;
            used = true;
        }
        if used && self.rx.wants_interrupt()? {
            self.interrupt.signal_used();
        }
        Ok(())
    }
}

impl VirtioDevice for Console {
    fn id(&self) -> u32 {
        ID_CONSOLE
    }
    fn features(&self) -> u64 {
        F_SIZE | F_EMERG_WRITE
    }
    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let [c0, c1] = state.cols.to_le_bytes();
        let [r0, r1] = state.rows.to_le_bytes();
        // Columns, rows, number of ports, the write-only emergency register.
        copy_config(&[c0, c1, r0, r1, 1, 0, 0, 0, 0, 0, 0, 0], offset, data);
    }
    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (EMERG_WRITE, Some(byte)) = (offset, data.first()) {
            let mut state = self.lock();
            let _ = state.sink.write_all(&[*byte]);
            let _ = state.sink.flush();
        }
    }
    fn config_generation(&self) -> u32 {
        self.lock().generation
    }
    fn activate(&self, activation: Activation) {
        let Activation { queues, interrupt, features } = activation;
        let mut queues = queues.into_iter();
        let mut state = self.lock();
        if let (Some(rx), Some(tx)) = (queues.next(), queues.next()) {
            state.active = Some(Active { rx, tx, interrupt, sized: features & F_SIZE != 0 });
            state.run(Active::feed);
        }
    }
    fn reset(&self) {
        self.lock().active = None;
    }
    fn queue_notify(&self, index: u16) {
        match usize::from(index) {
            RX => self.lock().run(Active::feed),
            TX => self.lock().run(Active::drain),
            _ => {}
        }
    }
    fn queue_regs(&self) -> Vec<QueueRegs> {
        self.lock().active.iter().flat_map(|it| [it.rx.regs(), it.tx.regs()]).collect()
    }
    fn pause(&self) {
        self.lock().paused = true;
    }
    fn resume(&self) {
        let mut state = self.lock();
        state.paused = false;
        if std::mem::take(&mut state.resized) {
            state.tell_size();
        }
        state.run(Active::feed);
        state.run(Active::drain);
    }
}
