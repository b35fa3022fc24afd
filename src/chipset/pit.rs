//! The 8254 interval timer, with the system control port 0x61 that gates its channel 2.
//!
//! Counters are not stepped: each channel remembers when it was loaded and everything else follows
//! from the machine's clock. A channel is *empty* until its count is written, then *counting* or, by
//! its gate, *held*. Channel 0 drives GSI 0; channel 2's output is seen at port 0x61.
//!
//! Simplified: a count written while modes 2 and 3 run takes effect at once, not at the end of the
//! period, and loading takes no tick.

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::bus::{BusDevice, BusError, SystemBus};
use super::irq::IrqLine;
use super::timers::{TimeSource, Timer, Timers};

#[cfg(test)]
mod tests;

/// Input frequency of all three channels in Hz.
pub const PIT_HZ: u64 = 1_193_182;

/// First port: three data ports and the control port.
pub const PORT: u64 = 0x40;

/// System control port B: gate and output of channel 2, speaker.
pub const CONTROL_PORT: u64 = 0x61;

/// Channel 0 interrupts no more often than this (ns), whatever the guest programs.
pub const MIN_PERIOD_NS: u64 = 100_000;

/// How long the refresh bit of port 0x61 keeps its value, in ns.
const REFRESH_NS: u64 = 15_085;

/// Which bytes of a count the data port transfers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The low byte only.
    Low,
    /// The high byte only.
    High,
    /// Low, then high.
    Both,
}

/// Registers of one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelState {
    /// Counting mode, 0..=5.
    pub mode: u8,
    /// Counts in four decimal digits.
    pub bcd: bool,
    /// How the data port transfers.
    pub access: Access,
    /// Ticks that the count stands for (1..=65536), `None` while empty.
    pub count: Option<u32>,
    /// Low byte of a count whose high byte is still to come.
    pub written_low: Option<u8>,
    /// The next read gives the high byte.
    pub read_high: bool,
    /// Latched count.
    pub latched_count: Option<u16>,
    /// Latched status.
    pub latched_status: Option<u8>,
    /// The gate input.
    pub gate: bool,
    /// Tick of the input clock (since machine time zero) from which on it counts, `None` while held
    /// or empty.
    pub since: Option<u64>,
    /// Ticks counted before `since`.
    pub counted: u64,
}

/// Registers of the PIT and of port 0x61.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PitState {
    /// The channels.
    pub channels: [ChannelState; 3],
    /// Bits 0..=3 of port 0x61 as written.
    pub control: u8,
    /// When channel 0 next interrupts, in machine time (ns).
    pub deadline: Option<u64>,
}

impl Default for PitState {
    fn default() -> Self {
        let channel = ChannelState {
            mode: 0,
            bcd: false,
            access: Access::Both,
            count: None,
            written_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
            gate: true,
            since: None,
            counted: 0,
        };
        Self {
            channels: [channel, channel, ChannelState { gate: false, ..channel }],
            control: 0,
            deadline: None,
        }
    }
}

fn to_ticks(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(PIT_HZ) / 1_000_000_000) as u64
}

/// The first nanosecond at which `ticks` have passed.
fn to_ns(ticks: u64) -> u64 {
    u64::try_from((u128::from(ticks) * 1_000_000_000).div_ceil(PIT_HZ.into())).unwrap_or(u64::MAX)
}

impl ChannelState {
    /// Starts on a gate's rising edge rather than on loading.
    fn triggered(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }

    fn periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn elapsed(&self, now: u64) -> u64 {
        self.counted.saturating_add(self.since.map_or(0, |since| to_ticks(now).saturating_sub(since)))
    }

    fn value(&self, now: u64) -> u16 {
        let Some(count) = self.count.map(u64::from) else { return 0 };
        let elapsed = self.elapsed(now);
        let range = if self.bcd { 10_000 } else { 0x1_0000 };
        let value = match self.mode {
            2 => count - elapsed % count,
            3 => count - elapsed % count * 2 % count,
            _ => (count + range - elapsed % range) % range,
        };
        if self.bcd {
            (0..4).fold(0, |bcd, digit| bcd | (value / 10u64.pow(digit) % 10) << (4 * digit)) as u16
        } else {
            value as u16
        }
    }

    fn output(&self, now: u64) -> bool {
        let Some(count) = self.count.map(u64::from) else { return self.mode != 0 };
        let elapsed = self.elapsed(now);
        let running = self.since.is_some();
        match self.mode {
            0 => elapsed >= count,
            1 => !running || elapsed >= count,
            2 => !running || elapsed % count != count - 1,
            3 => !running || elapsed % count < count.div_ceil(2),
            _ => !running || elapsed != count,
        }
    }

    fn status(&self, now: u64) -> u8 {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        u8::from(self.output(now)) << 7
            | u8::from(self.count.is_none()) << 6
            | access << 4
            | self.mode << 1
            | u8::from(self.bcd)
    }

    fn program(&mut self, control: u8) {
        *self = Self {
            mode: match control >> 1 & 7 {
                // The top bit is ignored for modes 2 and 3.
                mode @ (6 | 7) => mode & 3,
                mode => mode,
            },
            bcd: control & 1 != 0,
            access: match control >> 4 & 3 {
                1 => Access::Low,
                2 => Access::High,
                _ => Access::Both,
            },
            gate: self.gate,
            count: None,
            written_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
            since: None,
            counted: 0,
        };
    }

    fn latch(&mut self, now: u64) {
        let value = self.value(now);
        self.latched_count.get_or_insert(value);
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.value(now)).to_le_bytes();
        let (byte, more) = match self.access {
            Access::Low => (low, false),
            Access::High => (high, false),
            Access::Both if self.read_high => (high, false),
            Access::Both => (low, true),
        };
        self.read_high = more;
        if !more {
            self.latched_count = None;
        }
        byte
    }

    /// Returns whether a new count began.
    fn write(&mut self, value: u8, now: u64) -> bool {
        let raw = match (self.access, self.written_low.take()) {
            (Access::Low, _) => value.into(),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, None) => {
                self.written_low = Some(value);
                return false;
            }
            (Access::Both, Some(low)) => u16::from_le_bytes([low, value]),
        };
        let count = if self.bcd {
            (0..4).map(|digit| u32::from(raw >> (4 * digit) & 15) * 10u32.pow(digit)).sum()
        } else {
            raw.into()
        };
        self.count = Some(match (count, self.bcd) {
            (0, true) => 10_000,
            (0, false) => 0x1_0000,
            (count, _) => count,
        });
        // Modes 1 and 5 go on as they are until their next trigger.
        if !self.triggered() {
            self.counted = 0;
            self.since = self.gate.then_some(to_ticks(now));
        }
        true
    }

    fn set_gate(&mut self, gate: bool, now: u64) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        if self.count.is_none() {
            return;
        }
        match self.mode {
            0 | 4 if gate => self.since = Some(to_ticks(now)),
            0 | 4 => {
                self.counted = self.elapsed(now);
                self.since = None;
            }
            _ if gate => {
                self.counted = 0;
                self.since = Some(to_ticks(now));
            }
            _ if self.periodic() => {
                self.counted = 0;
                self.since = None;
            }
            _ => {}
        }
    }

    /// Machine time of the next interrupt after `now`.
    fn next_interrupt(&self, now: u64) -> Option<u64> {
        let count = u64::from(self.count?);
        let since = self.since?;
        let ticks = match self.mode {
            2 | 3 => (to_ticks(now).saturating_sub(since) / count + 1) * count,
            _ => count.checked_sub(self.counted)?,
        };
        Some(to_ns(since.saturating_add(ticks)))
    }
}

/// The interval timer.
pub struct Pit {
    state: Mutex<PitState>,
    clock: Arc<dyn TimeSource>,
    timer: Timer,
    irq: IrqLine,
}

impl std::fmt::Debug for Pit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pit").field(&*self.lock()).finish()
    }
}

impl Pit {
    /// The timer, whose channel 0 drives `irq` (GSI 0).
    pub fn new(timers: &Timers, irq: IrqLine) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| {
            let me = me.clone();
            Self {
                state: Mutex::default(),
                clock: timers.clock(),
                timer: timers.add(move || {
                    if let Some(pit) = me.upgrade() {
                        pit.expire();
                    }
                }),
                irq,
            }
        })
    }

    /// Puts its ports on the bus.
    pub fn attach(self: &Arc<Self>, bus: &SystemBus) -> Result<(), BusError> {
        bus.ports.insert(PORT, 4, self.clone())?;
        bus.ports.insert(CONTROL_PORT, 1, Arc::new(ControlPort(self.clone())))
    }

    /// A copy of the registers. Consistent only while vCPUs and clock stand still.
    pub fn state(&self) -> PitState {
        self.lock().clone()
    }

    /// Replaces the registers and arms the timer accordingly. Counts outside 1..=65536 and modes
    /// above 5 are taken as empty channels.
    pub fn set_state(&self, state: PitState) {
        let mut current = self.lock();
        *current = state;
        for channel in &mut current.channels {
            if channel.mode > 5 || channel.count.is_some_and(|count| count == 0 || count > 0x1_0000) {
                channel.program(0x30);
            }
        }
        let deadline = current.deadline;
        self.set_deadline(&mut current, deadline);
    }

    /// Back to power-on.
    pub fn reset(&self) {
        self.set_state(PitState::default());
    }

    fn lock(&self) -> MutexGuard<'_, PitState> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn set_deadline(&self, state: &mut PitState, deadline: Option<u64>) {
        state.deadline = deadline;
        match deadline {
            Some(deadline) => self.timer.arm(deadline),
            None => self.timer.cancel(),
        }
    }

    fn expire(&self) {
        let mut state = self.lock();
        let now = self.clock.now();
        let Some(deadline) = state.deadline.filter(|deadline| *deadline <= now) else { return };
        let channel = state.channels[0];
        if channel.periodic() {
            // Ticks missed while the host was late are left out.
            let floor = deadline.saturating_add(MIN_PERIOD_NS);
            let next = channel.next_interrupt(now).map(|next| next.max(floor));
            self.set_deadline(&mut state, next);
            self.irq.pulse();
        } else {
            self.set_deadline(&mut state, None);
            // Mode 0 stays high until it is programmed again; mode 4 gives one strobe.
            self.irq.set(true);
            if channel.mode != 0 {
                self.irq.set(false);
            }
        }
    }

    /// Channel 0 was programmed or loaded.
    fn restart(&self, state: &mut PitState, now: u64) {
        let channel = state.channels[0];
        self.irq.set(false);
        let next = channel.next_interrupt(now);
        self.set_deadline(state, next);
    }

    fn read_byte(&self, offset: u64) -> u8 {
        let mut state = self.lock();
        match state.channels.get_mut(offset as usize) {
            Some(channel) => channel.read(self.clock.now()),
            // The control port is write-only.
            None => 0xff,
        }
    }

    fn write_byte(&self, offset: u64, value: u8) {
        let mut state = self.lock();
        let now = self.clock.now();
        if let Some(channel) = state.channels.get_mut(offset as usize) {
            if channel.write(value, now) && offset == 0 {
                self.restart(&mut state, now);
            }
            return;
        }
        if value >> 6 == 3 {
            for (n, channel) in state.channels.iter_mut().enumerate() {
                if value >> (n + 1) & 1 == 0 {
                    continue;
                }
                if value & 1 << 5 == 0 {
                    channel.latch(now);
                }
                if value & 1 << 4 == 0 {
                    let status = channel.status(now);
                    channel.latched_status.get_or_insert(status);
                }
            }
            return;
        }
        let Some(channel) = state.channels.get_mut(usize::from(value >> 6)) else { return };
        if value >> 4 & 3 == 0 {
            channel.latch(now);
            return;
        }
        channel.program(value);
        if value >> 6 == 0 {
            self.restart(&mut state, now);
        }
    }

    fn read_control(&self) -> u8 {
        let state = self.lock();
        let now = self.clock.now();
        let refresh = (now / REFRESH_NS % 2) as u8;
        state.control | refresh << 4 | u8::from(state.channels[2].output(now)) << 5
    }

    fn write_control(&self, value: u8) {
        let mut state = self.lock();
        state.control = value & 15;
        state.channels[2].set_gate(value & 1 != 0, self.clock.now());
    }
}

impl BusDevice for Pit {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.read_byte(at);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            self.write_byte(at, *byte);
        }
    }
}

struct ControlPort(Arc<Pit>);

impl BusDevice for ControlPort {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(self.0.read_control());
    }

    fn write(&self, _: u64, data: &[u8]) {
        if let [value, ..] = data {
            self.0.write_control(*value);
        }
    }
}
