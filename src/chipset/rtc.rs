//! The MC146818 real-time clock and its CMOS RAM, at ports 0x70 and 0x71.
//!
//! The time is the host's wall clock (UTC) plus an offset that the guest makes by setting the clock;
//! nothing ticks unless the guest asks for interrupts. While register B's SET bit is on, the time
//! registers are plain memory; when it goes off they become the time. A time that does not exist
//! (month 19, say) is ignored.
//!
//! Update-in-progress shows in the last 244 µs of each second, as on the chip, so a guest that waits
//! for it to end waits no longer than that. Periodic, alarm and update interrupts drive GSI 8. No
//! daylight saving, no square wave.

mod calendar;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use self::calendar::{DateTime, TIME_REGISTERS};
use super::bus::{BusDevice, BusError, SystemBus};
use super::irq::IrqLine;
use super::timers::{TimeSource, Timer, Timers};
use crate::sys::clock::wall_clock_ns;

/// First port: index; the second one is data.
pub const PORT: u64 = 0x70;
/// GSI of the clock.
pub const GSI: u32 = 8;

/// CMOS register of the century, to be named in the FADT.
pub const CENTURY_REGISTER: u8 = 0x32;

pub(super) const REG_A: usize = 0x0a;
const REG_B: usize = 0x0b;
const REG_C: usize = 0x0c;
const REG_D: usize = 0x0d;
const SECONDS_ALARM: usize = 1;
const MINUTES_ALARM: usize = 3;
const HOURS_ALARM: usize = 5;

pub(super) const A_UPDATING: u8 = 1 << 7;
const A_DIVIDER: u8 = 0x70;
const A_DIVIDER_32KHZ: u8 = 0x20;
const B_SET: u8 = 1 << 7;
pub(super) const B_PERIODIC: u8 = 1 << 6;
pub(super) const B_ALARM: u8 = 1 << 5;
pub(super) const B_UPDATE: u8 = 1 << 4;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
const C_REQUEST: u8 = 1 << 7;
const D_VALID: u8 = 1 << 7;

const SECOND_NS: u64 = 1_000_000_000;
const UPDATE_NS: u64 = 244_000;
const DAY_SECONDS: i64 = 86_400;

/// Registers and RAM of the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RtcState {
    /// Register that the data port shows.
    pub index: u8,
    /// RAM with registers A and B and the alarm in their places; the time too while it is being set.
    pub ram: [u8; 128],
    /// Register C without its top bit.
    pub flags: u8,
    /// Guest time less host wall clock, in ns.
    pub offset_ns: i64,
    /// Guest time in seconds up to which updates and alarms have been noticed.
    pub seen_second: i64,
    /// Machine time in ns up to which periods have been noticed.
    pub seen_ns: u64,
}

/// Host wall clock in ns since the Unix epoch.
type WallClock = Box<dyn Fn() -> u64 + Send + Sync>;

/// The real-time clock.
pub struct Rtc {
    state: Mutex<RtcState>,
    clock: Arc<dyn TimeSource>,
    wall: WallClock,
    timer: Timer,
    irq: IrqLine,
}

impl std::fmt::Debug for Rtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Rtc").field(&*self.lock()).finish()
    }
}

impl RtcState {
    fn power_on() -> Self {
        let mut ram = [0; 128];
        ram[REG_A] = A_DIVIDER_32KHZ | 6;
        ram[REG_B] = B_24_HOURS;
        Self { index: 0, ram, flags: 0, offset_ns: 0, seen_second: 0, seen_ns: 0 }
    }

    fn guest_ns(&self, wall: u64) -> i64 {
        i64::try_from(wall).unwrap_or(i64::MAX).saturating_add(self.offset_ns)
    }

    fn guest_second(&self, wall: u64) -> i64 {
        self.guest_ns(wall).div_euclid(SECOND_NS as i64)
    }

    /// Nanoseconds since the guest's second began.
    fn subsecond(&self, wall: u64) -> u64 {
        self.guest_ns(wall).rem_euclid(SECOND_NS as i64) as u64
    }

    fn setting(&self) -> bool {
        self.ram[REG_B] & B_SET != 0
    }

    /// Updates happen at all.
    fn updating(&self) -> bool {
        !self.setting() && self.ram[REG_A] & A_DIVIDER == A_DIVIDER_32KHZ
    }

    fn binary(&self) -> bool {
        self.ram[REG_B] & B_BINARY != 0
    }

    fn hours_24(&self) -> bool {
        self.ram[REG_B] & B_24_HOURS != 0
    }

    /// Length of the periodic interrupt's period in ns.
    fn period(&self) -> Option<u64> {
        match u32::from(self.ram[REG_A] & 15) {
            0 => None,
            rate @ (1 | 2) => Some(SECOND_NS >> (9 - rate)),
            rate => Some(SECOND_NS >> (16 - rate)),
        }
    }

    /// Puts a time into the RAM registers.
    fn store_time(&mut self, second: i64) {
        let time = DateTime::from_seconds(second);
        for (register, value) in time.encode(self.binary(), self.hours_24()) {
            self.ram[usize::from(register)] = value;
        }
    }

    /// The RAM registers as a time, if there is such a time.
    fn stored_time(&self) -> Option<i64> {
        let register = |register: u8| self.ram[usize::from(register)];
        DateTime::decode(register, self.binary(), self.hours_24())?.to_seconds()
    }

    fn alarm_at(&self, second: i64) -> bool {
        let time = DateTime::from_seconds(second).encode(self.binary(), self.hours_24());
        let [(_, seconds), (_, minutes), (_, hours), ..] = time;
        [(SECONDS_ALARM, seconds), (MINUTES_ALARM, minutes), (HOURS_ALARM, hours)]
            .iter()
            .all(|(alarm, now)| self.ram[*alarm] >= 0xc0 || self.ram[*alarm] == *now)
    }

    /// Sets the flags for all that happened since it was last called.
    fn notice(&mut self, wall: u64, now: u64) {
        if let Some(period) = self.period()
            && now / period != self.seen_ns / period
        {
            self.flags |= B_PERIODIC;
        }
        self.seen_ns = now;
        let second = self.guest_second(wall);
        if second > self.seen_second && self.updating() {
            self.flags |= B_UPDATE;
            if self.flags & B_ALARM == 0 {
                // An alarm repeats every day, so no more than one has to be looked at.
                let first = (self.seen_second + 1).max(second.saturating_sub(DAY_SECONDS - 1));
                if (first..=second).any(|second| self.alarm_at(second)) {
                    self.flags |= B_ALARM;
                }
            }
        }
        self.seen_second = second;
    }

    fn requests(&self) -> bool {
        self.flags & self.ram[REG_B] & (B_PERIODIC | B_ALARM | B_UPDATE) != 0
    }

    /// Machine time at which something enabled and not yet flagged may happen.
    fn next_event(&self, wall: u64, now: u64) -> Option<u64> {
        let wanted = self.ram[REG_B] & !self.flags;
        let periodic = self
            .period()
            .filter(|_| wanted & B_PERIODIC != 0)
            .map(|period| (now / period + 1).saturating_mul(period));
        let second = (wanted & (B_ALARM | B_UPDATE) != 0 && self.updating())
            .then(|| now.saturating_add(SECOND_NS - self.subsecond(wall)));
        periodic.into_iter().chain(second).min()
    }
}

impl Rtc {
    /// The clock, with `irq` for its interrupts ([`GSI`]).
    pub fn new(timers: &Timers, irq: IrqLine) -> Arc<Self> {
        Self::with_wall_clock(timers, irq, Box::new(wall_clock_ns))
    }

    fn with_wall_clock(timers: &Timers, irq: IrqLine, wall: WallClock) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| {
            let me = me.clone();
            let rtc = Self {
                state: Mutex::new(RtcState::power_on()),
                clock: timers.clock(),
                wall,
                timer: timers.add(move || {
                    if let Some(rtc) = me.upgrade() {
                        let mut state = rtc.lock();
                        rtc.settle(&mut state);
                    }
                }),
                irq,
            };
            rtc.forget(&mut rtc.lock());
            rtc
        })
    }

    /// Puts its ports on the bus.
    pub fn attach(self: &Arc<Self>, bus: &SystemBus) -> Result<(), BusError> {
        bus.ports.insert(PORT, 2, self.clone())
    }

    /// A copy of registers and RAM.
    pub fn state(&self) -> RtcState {
        self.lock().clone()
    }

    /// Replaces registers and RAM. What happened since the state was taken is no reason for an
    /// interrupt.
    pub fn set_state(&self, state: RtcState) {
        let mut current = self.lock();
        *current = state;
        self.forget(&mut current);
        self.settle(&mut current);
    }

    /// A machine reset: interrupts off, time and RAM kept, as the battery does.
    pub fn reset(&self) {
        let mut state = self.lock();
        state.ram[REG_B] &= !(B_PERIODIC | B_ALARM | B_UPDATE);
        state.flags = 0;
        self.settle(&mut state);
    }

    fn lock(&self) -> MutexGuard<'_, RtcState> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// From here on is where things happen.
    fn forget(&self, state: &mut RtcState) {
        state.seen_second = state.guest_second((self.wall)());
        state.seen_ns = self.clock.now();
    }

    /// Brings flags, interrupt line and timer up to date.
    fn settle(&self, state: &mut RtcState) {
        let (wall, now) = ((self.wall)(), self.clock.now());
        state.notice(wall, now);
        self.irq.set(state.requests());
        match state.next_event(wall, now) {
            Some(deadline) => self.timer.arm(deadline),
            None => self.timer.cancel(),
        }
    }

    fn read_data(&self) -> u8 {
        let mut state = self.lock();
        let index = usize::from(state.index & 0x7f);
        match index {
            REG_A => {
                let late = state.subsecond((self.wall)()) >= SECOND_NS - UPDATE_NS;
                state.ram[REG_A] | if late && state.updating() { A_UPDATING } else { 0 }
            }
            REG_C => {
                self.settle(&mut state);
                let flags = state.flags | if state.requests() { C_REQUEST } else { 0 };
                state.flags = 0;
                self.settle(&mut state);
                flags
            }
            REG_D => D_VALID,
            _ => {
                if TIME_REGISTERS.contains(&(index as u8)) && !state.setting() {
                    let second = state.guest_second((self.wall)());
                    state.store_time(second);
                }
                state.ram[index]
            }
        }
    }

    fn write_data(&self, value: u8) {
        let mut state = self.lock();
        let index = usize::from(state.index & 0x7f);
        match index {
            REG_A => state.ram[REG_A] = value & !A_UPDATING,
            REG_B => {
                let wall = (self.wall)();
                if value & B_SET != 0 && !state.setting() {
                    let second = state.guest_second(wall);
                    state.store_time(second);
                } else if value & B_SET == 0 && state.setting() {
                    if let Some(second) = state.stored_time() {
                        let ns = second.saturating_mul(SECOND_NS as i64);
                        state.offset_ns = ns.saturating_sub(i64::try_from(wall).unwrap_or(i64::MAX));
                    }
                    self.forget(&mut state);
                }
                // Setting the clock turns the update interrupt off.
                let kept = if value & B_SET != 0 { !B_UPDATE } else { !0 };
                state.ram[REG_B] = value & kept;
            }
            REG_C | REG_D => {}
            _ if TIME_REGISTERS.contains(&(index as u8)) && !state.setting() => {
                let second = state.guest_second((self.wall)());
                state.store_time(second);
                state.ram[index] = value;
                if let Some(set) = state.stored_time() {
                    let step = set.saturating_sub(second).saturating_mul(SECOND_NS as i64);
                    state.offset_ns = state.offset_ns.saturating_add(step);
                    self.forget(&mut state);
                }
            }
            _ => state.ram[index] = value,
        }
        self.settle(&mut state);
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            // The index port is write-only.
            *byte = if at == 1 { self.read_data() } else { 0xff };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            match at {
                // The top bit masks NMIs, of which there are none here.
                0 => self.lock().index = byte & 0x7f,
                _ => self.write_data(*byte),
            }
        }
    }
}
