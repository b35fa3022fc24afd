//! The registers of a local APIC and what follows from them alone: priorities, what is pending,
//! destinations, the timer's arithmetic.

use super::Destination;
use super::spec::*;
use super::{BROADCAST, DEFAULT_BASE};

/// The registers of one local APIC, all that is needed to go on elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LapicState {
    /// APIC id.
    pub id: u32,
    /// IA32_APIC_BASE.
    pub base: u64,
    /// Task priority.
    pub tpr: u32,
    /// Logical destination (xAPIC).
    pub ldr: u32,
    /// Destination format (xAPIC).
    pub dfr: u32,
    /// Spurious interrupt vector and software enable.
    pub svr: u32,
    /// Error status as the guest reads it.
    pub esr: u32,
    /// Errors since the guest last wrote the ESR.
    pub esr_pending: u32,
    /// Interrupt command.
    pub icr: u64,
    /// Timer, thermal, performance, LINT0, LINT1, error.
    pub lvt: [u32; 6],
    /// Requested interrupts, a bit per vector.
    pub irr: [u32; 8],
    /// Interrupts in service.
    pub isr: [u32; 8],
    /// Which of the requested ones are level-triggered.
    pub tmr: [u32; 8],
    /// Initial count of the timer.
    pub timer_initial: u32,
    /// Divide configuration.
    pub timer_divide: u32,
    /// When the timer fires next, in machine time (ns); in TSC-deadline mode the armed deadline.
    pub deadline: Option<u64>,
    /// An NMI waits to be taken.
    pub nmi: bool,
    /// An INIT waits to be taken.
    pub init: bool,
    /// A start-up IPI waits to be taken.
    pub startup: Option<u8>,
    /// After INIT: nothing but a start-up IPI counts.
    pub wait_for_startup: bool,
    /// Level of the LINT0 pin, which the PIC drives.
    pub lint0: bool,
}

/// What waits for the processor, as bits of `Lapic::pending`.
pub(super) mod pending {
    pub(in super::super) const NMI: u32 = 1;
    pub(in super::super) const INIT: u32 = 2;
    pub(in super::super) const STARTUP: u32 = 4;
    pub(in super::super) const VECTOR: u32 = 8;
    pub(in super::super) const EXTINT: u32 = 16;
    pub(in super::super) const UNMASKABLE: u32 = NMI | INIT | STARTUP;
}

pub(super) fn test(bits: &[u32; 8], vector: u8) -> bool {
    bits[usize::from(vector >> 5)] & 1 << (vector & 31) != 0
}

pub(super) fn assign(bits: &mut [u32; 8], vector: u8, value: bool) {
    let word = &mut bits[usize::from(vector >> 5)];
    *word = *word & !(1 << (vector & 31)) | u32::from(value) << (vector & 31);
}

pub(super) fn highest(bits: &[u32; 8]) -> Option<u8> {
    bits.iter().rposition(|w| *w != 0).map(|i| (i as u32 * 32 + bits[i].ilog2()) as u8)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    Deadline,
    Reserved,
}

impl LapicState {
    /// The state at power-on. The boot processor starts in virtual wire mode, as firmware leaves
    /// it: the PIC through LINT0, NMI on LINT1. The others wait for a start-up IPI.
    pub fn power_on(id: u32, boot: bool) -> Self {
        let mut state = Self {
            id,
            base: DEFAULT_BASE | BASE_ENABLED | if boot { BASE_BSP } else { 0 },
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            esr: 0,
            esr_pending: 0,
            icr: 0,
            lvt: [LVT_MASKED; 6],
            irr: [0; 8],
            isr: [0; 8],
            tmr: [0; 8],
            timer_initial: 0,
            timer_divide: 0,
            deadline: None,
            nmi: false,
            init: false,
            startup: None,
            wait_for_startup: !boot,
            lint0: false,
        };
        if boot {
            state.lvt[LINT0] = LVT_EXTINT;
            state.lvt[LINT1] = LVT_NMI;
        }
        state
    }

    /// Registers back to power-on; id, base and pins stay.
    pub(super) fn reset_registers(&mut self) {
        let boot = self.base & BASE_BSP != 0;
        let (base, lint0) = (self.base, self.lint0);
        *self = Self { base, lint0, wait_for_startup: false, ..Self::power_on(self.id, boot) };
    }

    pub(super) fn enabled(&self) -> bool {
        self.base & BASE_ENABLED != 0
    }

    pub(super) fn x2apic(&self) -> bool {
        self.base & BASE_X2APIC != 0
    }

    pub(super) fn software_enabled(&self) -> bool {
        self.svr & SVR_ENABLED != 0
    }

    pub(super) fn ppr(&self) -> u32 {
        let in_service = highest(&self.isr).map_or(0, |v| u32::from(v) & 0xf0);
        if self.tpr & 0xf0 >= in_service { self.tpr } else { in_service }
    }

    /// The vector to be delivered now, if its class is above the processor's priority.
    pub(super) fn deliverable(&self) -> Option<u8> {
        if !self.enabled() {
            return None;
        }
        highest(&self.irr).filter(|v| u32::from(v & 0xf0) > self.ppr() & 0xf0)
    }

    pub(super) fn extint(&self) -> bool {
        let lint0 = self.lvt[LINT0];
        self.lint0
            && self.base & BASE_BSP != 0
            && (!self.enabled() || lint0 & LVT_MASKED == 0 && lint0 & 0x700 == LVT_EXTINT)
    }

    pub(super) fn pending(&self) -> u32 {
        let mut bits = if self.init { pending::INIT } else { 0 };
        if self.wait_for_startup {
            return bits | if self.startup.is_some() { pending::STARTUP } else { 0 };
        }
        if self.nmi {
            bits |= pending::NMI;
        }
        if self.extint() {
            bits |= pending::EXTINT;
        }
        if self.deliverable().is_some() {
            bits |= pending::VECTOR;
        }
        bits
    }

    pub(super) fn logical_id(&self) -> u32 {
        if self.x2apic() { (self.id >> 4) << 16 | 1 << (self.id & 15) } else { self.ldr }
    }

    /// Whether a physical or logical destination means this APIC.
    pub(super) fn matches(&self, destination: Destination) -> bool {
        if !self.enabled() {
            return false;
        }
        match destination {
            Destination::Physical(id) => id == BROADCAST || id == self.id,
            Destination::Logical(BROADCAST) => true,
            Destination::Logical(mask) if self.x2apic() => {
                let own = self.logical_id();
                mask >> 16 == own >> 16 && mask & own & 0xffff != 0
            }
            Destination::Logical(mask) => {
                let own = self.ldr >> 24;
                match self.dfr >> 28 {
                    0xf => mask <= 0xff && mask & own != 0,
                    0 => mask >> 4 == own >> 4 && mask & own & 0xf != 0,
                    _ => false,
                }
            }
            Destination::Myself | Destination::All | Destination::Others => false,
        }
    }

    pub(super) fn timer_mode(&self) -> TimerMode {
        match self.lvt[TIMER] >> 17 & 3 {
            0 => TimerMode::OneShot,
            1 => TimerMode::Periodic,
            2 => TimerMode::Deadline,
            _ => TimerMode::Reserved,
        }
    }

    pub(super) fn divisor(&self) -> u64 {
        let bits = self.timer_divide & 3 | self.timer_divide >> 1 & 4;
        if bits == 7 { 1 } else { 2 << bits }
    }

    pub(super) fn period(&self) -> u64 {
        u64::from(self.timer_initial) * self.divisor()
    }

    pub(super) fn current_count(&self, now: u64) -> u32 {
        match self.deadline {
            Some(deadline) if self.timer_mode() != TimerMode::Deadline => {
                let left = deadline.saturating_sub(now).div_ceil(self.divisor());
                left.min(u64::from(self.timer_initial)) as u32
            }
            _ => 0,
        }
    }

    pub(super) fn record_error(&mut self, bit: u32) {
        self.esr_pending |= bit;
        let lvt = self.lvt[ERROR];
        if lvt & LVT_MASKED == 0 && lvt & 0xff >= 16 {
            self.request(lvt as u8, false);
        }
    }

    /// Sets a vector in the IRR. Returns whether it was accepted.
    pub(super) fn request(&mut self, vector: u8, level: bool) -> bool {
        if !self.enabled() || !self.software_enabled() {
            return false;
        }
        if vector < 16 {
            self.record_error(ESR_RECEIVED_ILLEGAL_VECTOR);
            return false;
        }
        assign(&mut self.irr, vector, true);
        assign(&mut self.tmr, vector, level);
        true
    }

    pub(super) fn fire_local(&mut self, entry: usize) {
        let lvt = self.lvt[entry];
        if lvt & LVT_MASKED == 0 {
            self.request(lvt as u8, false);
        }
    }
}
