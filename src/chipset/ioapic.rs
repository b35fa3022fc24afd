//! The I/O APIC: 24 inputs, each with a redirection entry, at one register window.
//!
//! Version 0x11, as KVM's in-kernel one: without an EOI register. A guest that sees 0x20 or above
//! would use that register, which a machine that moves to KVM would not have; with 0x11 it clears
//! a stuck remote IRR by switching the entry to edge and back, which works here too.
//!
//! An input is *asserted* or not; polarity is the board's business and the polarity bit is only
//! stored. An edge that comes while the entry is masked is lost, as in the 82093AA; a level stays.
//! ExtINT and SMI entries deliver nothing: the PIC reaches the boot processor through LINT0.

use std::sync::{Mutex, MutexGuard};

use super::bus::BusDevice;
use super::lapic::{BROADCAST, DeliveryMode, Destination, Message};

/// Number of inputs.
pub const PINS: usize = 24;

/// Guest-physical address of the register window.
pub const DEFAULT_BASE: u64 = 0xfec0_0000;

/// Length of the register window in bytes.
pub const LEN: u64 = 0x20;

const VERSION_VALUE: u32 = (PINS as u32 - 1) << 16 | 0x11;

const REG_SELECT: u64 = 0x00;
const REG_WINDOW: u64 = 0x10;

const INDEX_ID: u8 = 0;
const INDEX_VERSION: u8 = 1;
const INDEX_ARBITRATION: u8 = 2;
const INDEX_REDIRECTION: u8 = 0x10;

/// The bits of the id register.
pub(super) const ID_WRITABLE: u32 = 0x0f00_0000;

const RTE_LOGICAL: u64 = 1 << 11;
const RTE_STATUS: u64 = 1 << 12;
pub(super) const RTE_REMOTE_IRR: u64 = 1 << 14;
pub(super) const RTE_LEVEL: u64 = 1 << 15;
const RTE_MASKED: u64 = 1 << 16;
pub(super) const RTE_WRITABLE: u64 = 0xff00_0000_0001_ffff & !(RTE_STATUS | RTE_REMOTE_IRR);

/// Registers of the I/O APIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoApicState {
    /// Register that the window shows.
    pub select: u8,
    /// APIC id (bits 24..28).
    pub id: u32,
    /// Redirection entries.
    pub redirection: [u64; PINS],
    /// Asserted inputs, a bit each.
    pub lines: u32,
}

impl Default for IoApicState {
    fn default() -> Self {
        Self { select: 0, id: 0, redirection: [RTE_MASKED; PINS], lines: 0 }
    }
}

/// Takes messages; returns whether any APIC accepted. Called with the IOAPIC's lock held.
pub(crate) type Deliver<'a> = &'a dyn Fn(&Message) -> bool;

/// The I/O APIC without its way to the local ones, which each call brings along.
#[derive(Debug, Default)]
pub(crate) struct IoApic {
    state: Mutex<IoApicState>,
}

/// What a redirection entry sends.
fn message(entry: u64) -> Message {
    let id = match (entry >> 56) as u32 {
        0xff => BROADCAST,
        id => id,
    };
    Message {
        destination: match entry & RTE_LOGICAL {
            0 => Destination::Physical(id),
            _ => Destination::Logical(id),
        },
        mode: DeliveryMode::from_bits((entry >> 8) as u32),
        vector: entry as u8,
        level: entry & RTE_LEVEL != 0,
    }
}

impl IoApicState {
    fn service(&mut self, pin: usize, deliver: Deliver<'_>) {
        let Some(entry) = self.redirection.get_mut(pin) else { return };
        let level = *entry & RTE_LEVEL != 0;
        if *entry & RTE_MASKED != 0 || level && *entry & RTE_REMOTE_IRR != 0 {
            return;
        }
        let accepted = deliver(&message(*entry));
        if accepted && level {
            *entry |= RTE_REMOTE_IRR;
        }
    }

    /// Delivers a level that is still there.
    fn service_level(&mut self, pin: usize, deliver: Deliver<'_>) {
        if self.lines & 1 << pin != 0 && self.redirection[pin] & RTE_LEVEL != 0 {
            self.service(pin, deliver);
        }
    }

    fn read(&self) -> u32 {
        match self.select {
            INDEX_ID | INDEX_ARBITRATION => self.id,
            INDEX_VERSION => VERSION_VALUE,
            index => {
                let half = u32::from(index & 1) * 32;
                let pin = usize::from(index.wrapping_sub(INDEX_REDIRECTION) / 2);
                // Below the first entry the subtraction wraps to a pin that does not exist.
                self.redirection.get(pin).map_or(u32::MAX, |entry| (entry >> half) as u32)
            }
        }
    }

    fn write(&mut self, value: u32, deliver: Deliver<'_>) {
        if self.select == INDEX_ID {
            self.id = value & ID_WRITABLE;
            return;
        }
        let half = u32::from(self.select & 1) * 32;
        let pin = usize::from(self.select.wrapping_sub(INDEX_REDIRECTION) / 2);
        let Some(entry) = self.redirection.get_mut(pin) else { return };
        let written = *entry & !(0xffff_ffff << half) | u64::from(value) << half;
        *entry = written & RTE_WRITABLE | *entry & RTE_REMOTE_IRR;
        if *entry & RTE_LEVEL == 0 {
            *entry &= !RTE_REMOTE_IRR;
        }
        self.service_level(pin, deliver);
    }
}

impl IoApic {
    pub(crate) fn state(&self) -> IoApicState {
        self.lock().clone()
    }

    pub(crate) fn set_state(&self, state: IoApicState) {
        *self.lock() = state;
    }

    pub(crate) fn set_line(&self, pin: usize, level: bool, deliver: Deliver<'_>) {
        if pin >= PINS {
            return;
        }
        let mut state = self.lock();
        let was = state.lines & 1 << pin != 0;
        if !level {
            state.lines &= !(1 << pin);
        } else if !was {
            state.lines |= 1 << pin;
            state.service(pin, deliver);
        }
    }

    pub(crate) fn end_of_interrupt(&self, vector: u8, deliver: Deliver<'_>) {
        let mut state = self.lock();
        for pin in 0..PINS {
            let entry = &mut state.redirection[pin];
            if *entry as u8 == vector && *entry & RTE_LEVEL != 0 && *entry & RTE_REMOTE_IRR != 0 {
                *entry &= !RTE_REMOTE_IRR;
                state.service_level(pin, deliver);
            }
        }
    }

    /// The vectors of level-triggered interrupts whose end is awaited.
    pub(crate) fn awaited(&self) -> Vec<u8> {
        let state = self.lock();
        let awaited = |entry: &&u64| **entry & RTE_LEVEL != 0 && **entry & RTE_REMOTE_IRR != 0;
        state.redirection.iter().filter(awaited).map(|&entry| entry as u8).collect()
    }

    /// What its level-triggered entries send, those whose end is awaited included.
    pub(crate) fn level_messages(&self) -> Vec<Message> {
        let state = self.lock();
        let awaits = |entry: &&u64| {
            **entry & RTE_LEVEL != 0 && (**entry & RTE_MASKED == 0 || **entry & RTE_REMOTE_IRR != 0)
        };
        state.redirection.iter().filter(awaits).map(|&entry| message(entry)).collect()
    }

    /// A read of the register window.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let value = match offset & !3 {
            REG_SELECT => state.select.into(),
            REG_WINDOW => state.read(),
            _ => 0,
        };
        let bytes = value.to_le_bytes();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get((offset & 3) as usize + i).copied().unwrap_or(0);
        }
    }

    /// A write to the register window. Registers are written whole: other lengths than 4 only
    /// select.
    pub(crate) fn write(&self, offset: u64, data: &[u8], deliver: Deliver<'_>) {
        let mut state = self.lock();
        match (offset, data) {
            (REG_SELECT, [select, ..]) => state.select = *select,
            (REG_WINDOW, [a, b, c, d, ..]) => state.write(u32::from_le_bytes([*a, *b, *c, *d]), deliver),
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, IoApicState> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The register window on the bus.
pub(crate) struct IoApicWindow(pub(crate) std::sync::Arc<super::irqchip::IrqChip>);

impl BusDevice for IoApicWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.ioapic().read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.ioapic().write(offset, data, &|message| self.0.deliver(None, message));
        if offset == REG_WINDOW {
            self.0.watch();
        }
    }
}
