//! The local APIC of one vCPU: xAPIC and x2APIC, IPIs, and the timer.
//!
//! States: *disabled* (APIC_BASE.EN clear: no registers; on the boot processor the PIC drives the
//! CPU directly), *xAPIC* (register page) and *x2APIC* (MSRs). Within the enabled ones the guest may
//! have it software-disabled (SVR bit 8), which refuses fixed interrupts and keeps the LVT masked.
//!
//! Anything the guest does is answered as the manual says: an illegal MSR access is #GP (`None`),
//! an illegal vector or register sets the ESR. Nothing here fails otherwise.
//!
//! Not modelled: SMI (ignored), ExtINT messages from an IOAPIC or ICR (only LINT0 brings ExtINT),
//! focus processor, and the arbitration registers (read as zero).

pub(super) mod spec;
mod state;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use self::spec::*;
pub use self::state::LapicState;
use self::state::{TimerMode, assign, highest, pending, test};
use super::timers::{TimeSource, Timer, Timers};
use crate::hypervisor::{LocalApic, LocalEvent, VcpuSignal};

/// Frequency in Hz that the LAPIC timer counts with before its divider: one tick is one nanosecond
/// of machine time. CPUID leaves 0x15 and 0x4000_0010 tell it to the guest.
pub const APIC_TIMER_HZ: u64 = 1_000_000_000;

/// Guest-physical address of the register page after reset.
pub const DEFAULT_BASE: u64 = 0xfee0_0000;

/// A periodic timer fires no more often than this (ns), whatever the guest programs: a period of a
/// few nanoseconds would keep a host core busy without the guest running at all.
pub const MIN_PERIOD_NS: u64 = 100_000;

/// Destination that every APIC takes.
pub const BROADCAST: u32 = u32::MAX;

/// What an interrupt message does where it arrives; numbered as in the ICR and the IOAPIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryMode {
    /// To all destinations.
    Fixed,
    /// To the one destination that is least busy.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up.
    Startup,
    /// The vector comes from the PIC.
    ExtInt,
    /// Not defined.
    Reserved,
}

impl DeliveryMode {
    /// From the low three bits of `bits`.
    pub fn from_bits(bits: u32) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::Startup,
            7 => Self::ExtInt,
            _ => Self::Reserved,
        }
    }
}

/// Which APICs a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The APIC with this id, or [`BROADCAST`].
    Physical(u32),
    /// Those whose logical id matches, or [`BROADCAST`].
    Logical(u32),
    /// The sender.
    Myself,
    /// All.
    All,
    /// All but the sender.
    Others,
}

/// An interrupt on its way between APICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Who takes it.
    pub destination: Destination,
    /// What it does.
    pub mode: DeliveryMode,
    /// Its vector; the start-up page for [`DeliveryMode::Startup`].
    pub vector: u8,
    /// Level-triggered: its EOI is broadcast to the IOAPIC.
    pub level: bool,
}

/// What a local APIC needs of the rest of the interrupt controllers.
pub(crate) trait Fabric: Send + Sync {
    /// Delivers an IPI of APIC `from`. Called without any LAPIC lock.
    fn send(&self, from: u32, message: &Message);
    /// The EOI of a level-triggered interrupt.
    fn end_of_interrupt(&self, vector: u8);
    /// The PIC's interrupt-acknowledge cycle; `None` when it asks for nothing any more.
    fn acknowledge_pic(&self) -> Option<u8>;
}

/// The local APIC of one vCPU.
pub struct Lapic {
    state: Mutex<LapicState>,
    /// What [`LapicState`] has for the processor now, to be asked without the lock.
    pending: AtomicU32,
    /// Register page, or `u64::MAX`.
    page: AtomicU64,
    clock: Arc<dyn TimeSource>,
    timer: Timer,
    fabric: Weak<dyn Fabric>,
    signal: OnceLock<Arc<dyn VcpuSignal>>,
}

impl std::fmt::Debug for Lapic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lapic").field(&*self.lock()).finish()
    }
}

/// What has to happen once the lock is given back.
#[derive(Default)]
struct After {
    send: Option<Message>,
    eoi: Option<u8>,
}

impl Lapic {
    /// The APIC with this id (also its index among the vCPUs). `boot` marks the boot processor.
    pub(crate) fn new(id: u32, boot: bool, timers: &Timers, fabric: Weak<dyn Fabric>) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| {
            let me = me.clone();
            let state = LapicState::power_on(id, boot);
            let lapic = Self {
                pending: AtomicU32::new(0),
                page: AtomicU64::new(u64::MAX),
                clock: timers.clock(),
                timer: timers.add(move || {
                    if let Some(lapic) = me.upgrade() {
                        lapic.expire();
                    }
                }),
                fabric,
                signal: OnceLock::new(),
                state: Mutex::new(state),
            };
            lapic.publish(&lapic.lock());
            lapic
        })
    }

    /// Names the vCPU to signal. To be called once, before the vCPU first runs. `attention` is
    /// called with locks of the chipset held and must not call back into it.
    pub fn connect(&self, signal: Arc<dyn VcpuSignal>) {
        // A second call would mean a second vCPU with this APIC: the first one keeps it.
        let _ = self.signal.set(signal);
        self.attention();
    }

    /// A copy of the registers. Consistent only while the vCPUs and the clock stand still.
    pub fn state(&self) -> LapicState {
        self.lock().clone()
    }

    /// Replaces the registers, all but the id, and arms the timer accordingly.
    pub fn set_state(&self, state: LapicState) {
        let mut current = self.lock();
        *current = LapicState { id: current.id, ..state };
        let deadline = current.deadline;
        self.set_deadline(&mut current, deadline);
        self.publish(&current);
        drop(current);
        self.attention();
    }

    /// Back to power-on, for a machine reset.
    pub fn reset(&self) {
        let (id, boot) = {
            let state = self.lock();
            (state.id, state.base & BASE_BSP != 0)
        };
        self.set_state(LapicState::power_on(id, boot));
    }

    /// Whether a physical or logical destination includes this APIC.
    pub(crate) fn matches(&self, destination: Destination) -> bool {
        self.lock().matches(destination)
    }

    /// Processor priority, for lowest-priority arbitration; `None` when it would not accept.
    pub(crate) fn arbitration_priority(&self) -> Option<u32> {
        let state = self.lock();
        (state.enabled() && state.software_enabled()).then(|| state.ppr())
    }

    /// Takes a message that was found to be for this APIC. Returns whether it was accepted.
    pub(crate) fn accept(&self, mode: DeliveryMode, vector: u8, level: bool) -> bool {
        let mut state = self.lock();
        let accepted = match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => state.request(vector, level),
            DeliveryMode::Nmi => {
                state.nmi = true;
                true
            }
            DeliveryMode::Init => {
                state.init = true;
                state.startup = None;
                true
            }
            DeliveryMode::Startup => {
                // Only a processor that waits for it, or is about to, takes it.
                let waits = state.wait_for_startup || state.init;
                if waits {
                    state.startup = Some(vector);
                }
                waits
            }
            DeliveryMode::Smi | DeliveryMode::ExtInt | DeliveryMode::Reserved => false,
        };
        self.publish(&state);
        drop(state);
        if accepted {
            self.attention();
        }
        accepted
    }

    /// The processor was started without a start-up IPI.
    pub(crate) fn started(&self) {
        let mut state = self.lock();
        state.wait_for_startup = false;
        state.startup = None;
        self.finish(state, After::default());
    }

    /// Drives the LINT0 pin.
    pub(crate) fn set_lint0(&self, level: bool) {
        let mut state = self.lock();
        if state.lint0 != level {
            state.lint0 = level;
            self.finish(state, After::default());
        }
    }

    fn lock(&self) -> MutexGuard<'_, LapicState> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Makes the state visible to those who ask without the lock. Returns the bits that are new.
    fn publish(&self, state: &LapicState) -> u32 {
        let page = if state.enabled() && !state.x2apic() { state.base & BASE_ADDR } else { u64::MAX };
        self.page.store(page, Ordering::Release);
        let bits = state.pending();
        bits & !self.pending.swap(bits, Ordering::AcqRel)
    }

    fn attention(&self) {
        if let Some(signal) = self.signal.get() {
            signal.attention();
        }
    }

    fn finish(&self, state: MutexGuard<'_, LapicState>, after: After) {
        let signal = self.publish(&state) != 0;
        let id = state.id;
        drop(state);
        if signal {
            self.attention();
        }
        if after.send.is_none() && after.eoi.is_none() {
            return;
        }
        let Some(fabric) = self.fabric.upgrade() else { return };
        if let Some(vector) = after.eoi {
            fabric.end_of_interrupt(vector);
        }
        if let Some(message) = after.send {
            fabric.send(id, &message);
        }
    }

    fn set_deadline(&self, state: &mut LapicState, deadline: Option<u64>) {
        state.deadline = deadline;
        match deadline {
            Some(deadline) => self.timer.arm(deadline),
            None => self.timer.cancel(),
        }
    }

    /// The timer thread says that a deadline may have come.
    fn expire(&self) {
        let mut state = self.lock();
        self.expire_locked(&mut state);
        self.finish(state, After::default());
    }

    fn expire_locked(&self, state: &mut LapicState) {
        let now = self.clock.now();
        let Some(deadline) = state.deadline.filter(|d| *d <= now) else { return };
        let next = (state.timer_mode() == TimerMode::Periodic && state.timer_initial != 0).then(|| {
            // Periods missed while the host was late are left out, in step with the first.
            let period = state.period();
            let soonest = now.max(deadline.saturating_add(MIN_PERIOD_NS.saturating_sub(period)));
            deadline.saturating_add(((soonest - deadline) / period + 1).saturating_mul(period))
        });
        self.set_deadline(state, next);
        state.fire_local(TIMER);
    }

    fn read_register(&self, state: &mut LapicState, offset: u32) -> Option<u32> {
        let lane = |bits: &[u32; 8]| bits[(offset as usize >> 4) & 7];
        Some(match offset {
            ID if state.x2apic() => state.id,
            ID => state.id << 24,
            VERSION => VERSION_VALUE,
            TPR => state.tpr,
            APR | RRD if !state.x2apic() => 0,
            PPR => state.ppr(),
            EOI if !state.x2apic() => 0,
            LDR => state.logical_id(),
            DFR if !state.x2apic() => state.dfr,
            SVR => state.svr,
            ISR..TMR => lane(&state.isr),
            TMR..IRR => lane(&state.tmr),
            IRR..IRR_END => lane(&state.irr),
            ESR => state.esr,
            ICR_LOW => state.icr as u32,
            ICR_HIGH if !state.x2apic() => (state.icr >> 32) as u32,
            LVT_TIMER | LVT_THERMAL | LVT_PERF | LVT_LINT0 | LVT_LINT1 | LVT_ERROR => {
                state.lvt[(offset - LVT_TIMER) as usize >> 4]
            }
            TIMER_INITIAL => state.timer_initial,
            TIMER_CURRENT => {
                // The guest may look before the timer thread comes: it must not see a stuck zero.
                self.expire_locked(state);
                state.current_count(self.clock.now())
            }
            TIMER_DIVIDE => state.timer_divide,
            _ => return None,
        })
    }

    /// A register write in either mode. `None`: no such register, or not writable.
    fn write_register(&self, state: &mut LapicState, offset: u32, value: u32) -> Option<After> {
        let mut after = After::default();
        match offset {
            TPR => state.tpr = value & 0xff,
            EOI => {
                if let Some(vector) = highest(&state.isr) {
                    assign(&mut state.isr, vector, false);
                    if test(&state.tmr, vector) {
                        after.eoi = Some(vector);
                    }
                }
            }
            LDR if !state.x2apic() => state.ldr = value & 0xff00_0000,
            DFR if !state.x2apic() => state.dfr = value | 0x0fff_ffff,
            SVR => {
                state.svr = value & 0x1ff;
                if !state.software_enabled() {
                    state.lvt.iter_mut().for_each(|lvt| *lvt |= LVT_MASKED);
                }
            }
            ESR => state.esr = std::mem::take(&mut state.esr_pending),
            ICR_LOW => {
                state.icr = state.icr & 0xffff_ffff_0000_0000 | u64::from(value & ICR_LOW_WRITABLE);
                after.send = self.command(state);
            }
            ICR_HIGH if !state.x2apic() => {
                state.icr = state.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
            }
            LVT_TIMER | LVT_THERMAL | LVT_PERF | LVT_LINT0 | LVT_LINT1 | LVT_ERROR => {
                self.write_lvt(state, (offset - LVT_TIMER) as usize >> 4, value);
            }
            TIMER_INITIAL => {
                if state.timer_mode() != TimerMode::Deadline {
                    state.timer_initial = value;
                    let period = state.period();
                    let deadline = (period != 0).then(|| self.clock.now().saturating_add(period));
                    self.set_deadline(state, deadline);
                }
            }
            TIMER_DIVIDE => {
                let now = self.clock.now();
                let left = u64::from(state.current_count(now));
                state.timer_divide = value & 0xb;
                if state.deadline.is_some() && state.timer_mode() != TimerMode::Deadline {
                    let deadline = now.saturating_add(left * state.divisor());
                    self.set_deadline(state, Some(deadline));
                }
            }
            SELF_IPI if state.x2apic() => {
                let vector = value as u8;
                if vector < 16 {
                    state.record_error(ESR_SEND_ILLEGAL_VECTOR);
                } else {
                    state.request(vector, false);
                }
            }
            _ => return None,
        }
        Some(after)
    }

    fn write_lvt(&self, state: &mut LapicState, entry: usize, value: u32) {
        let before = state.timer_mode();
        let mut value = value & LVT_WRITABLE[entry];
        if !state.software_enabled() {
            value |= LVT_MASKED;
        }
        state.lvt[entry] = value;
        let mode = state.timer_mode();
        if mode != before && (mode == TimerMode::Deadline || before == TimerMode::Deadline) {
            state.timer_initial = 0;
            self.set_deadline(state, None);
        }
    }

    /// Works out what a write to the ICR sends.
    fn command(&self, state: &mut LapicState) -> Option<Message> {
        let low = state.icr as u32;
        let mode = DeliveryMode::from_bits(low >> 8);
        let (vector, level) = (low as u8, low & 1 << 15 != 0);
        // An INIT level de-assert only resets arbitration ids, which nobody has any more.
        if mode == DeliveryMode::Init && level && low & 1 << 14 == 0 {
            return None;
        }
        if matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority) && vector < 16 {
            state.record_error(ESR_SEND_ILLEGAL_VECTOR);
            return None;
        }
        let id = if state.x2apic() {
            (state.icr >> 32) as u32
        } else {
            match (state.icr >> 56) as u32 {
                0xff => BROADCAST,
                id => id,
            }
        };
        let destination = match low >> 18 & 3 {
            0 if low & 1 << 11 != 0 => Destination::Logical(id),
            0 => Destination::Physical(id),
            1 => Destination::Myself,
            2 => Destination::All,
            _ => Destination::Others,
        };
        // IPIs are edges whatever bit 15 says: nothing would answer their EOI.
        Some(Message { destination, mode, vector, level: false })
    }

    fn write_base(&self, state: &mut LapicState, value: u64) -> Option<()> {
        const WRITABLE: u64 = BASE_ADDR | BASE_ENABLED | BASE_X2APIC | BASE_BSP;
        if value & !WRITABLE != 0 {
            return None;
        }
        const MODE: u64 = BASE_ENABLED | BASE_X2APIC;
        match (state.base & MODE, value & MODE) {
            (_, BASE_X2APIC) | (0, MODE) | (MODE, BASE_ENABLED) => return None,
            _ => {}
        }
        let was = state.base;
        state.base = value & !BASE_BSP | was & BASE_BSP;
        if was & BASE_ENABLED != 0 && value & BASE_ENABLED == 0 {
            state.reset_registers();
            self.set_deadline(state, None);
        }
        if was & BASE_X2APIC == 0 && value & BASE_X2APIC != 0 {
            state.icr &= 0xffff_ffff;
        }
        Some(())
    }

    fn write_deadline(&self, state: &mut LapicState, value: u64) {
        if state.timer_mode() != TimerMode::Deadline || !state.enabled() {
            return;
        }
        match value {
            0 => self.set_deadline(state, None),
            // Passed already: the timer thread has nothing to add.
            value if value <= self.clock.now() => {
                self.set_deadline(state, None);
                state.fire_local(TIMER);
            }
            value => self.set_deadline(state, Some(value)),
        }
    }
}

impl LocalApic for Lapic {
    fn has_event(&self, interrupts_enabled: bool) -> bool {
        let mask = if interrupts_enabled { u32::MAX } else { pending::UNMASKABLE };
        self.pending.load(Ordering::Acquire) & mask != 0
    }

    fn take_event(&self, interrupts_enabled: bool) -> Option<LocalEvent> {
        let mut state = self.lock();
        let bits = state.pending();
        let event = if bits & pending::INIT != 0 {
            let startup = state.startup;
            state.reset_registers();
            state.startup = startup;
            state.wait_for_startup = true;
            self.set_deadline(&mut state, None);
            LocalEvent::Init
        } else if bits & pending::STARTUP != 0 {
            state.wait_for_startup = false;
            LocalEvent::Startup(state.startup.take()?)
        } else if bits & pending::NMI != 0 {
            state.nmi = false;
            LocalEvent::Nmi
        } else if !interrupts_enabled {
            return None;
        } else if bits & pending::EXTINT != 0 {
            drop(state);
            return self.fabric.upgrade()?.acknowledge_pic().map(LocalEvent::Interrupt);
        } else if bits & pending::VECTOR == 0 {
            return None;
        } else {
            let vector = state.deliverable()?;
            assign(&mut state.irr, vector, false);
            assign(&mut state.isr, vector, true);
            LocalEvent::Interrupt(vector)
        };
        self.finish(state, After::default());
        Some(event)
    }

    fn mmio_read(&self, offset: u32) -> u32 {
        let mut state = self.lock();
        if !state.enabled() || state.x2apic() || offset & 15 != 0 {
            return 0;
        }
        let value = self.read_register(&mut state, offset).unwrap_or_else(|| {
            state.record_error(ESR_ILLEGAL_REGISTER);
            0
        });
        self.finish(state, After::default());
        value
    }

    fn mmio_write(&self, offset: u32, value: u32) {
        let mut state = self.lock();
        if !state.enabled() || state.x2apic() || offset & 15 != 0 {
            return;
        }
        let after = self.write_register(&mut state, offset, value).unwrap_or_else(|| {
            // The registers that only can be read are no error to write.
            if self.read_register(&mut state, offset).is_none() {
                state.record_error(ESR_ILLEGAL_REGISTER);
            }
            After::default()
        });
        self.finish(state, after);
    }

    fn msr_read(&self, msr: u32) -> Option<u64> {
        let mut state = self.lock();
        match msr {
            MSR_APIC_BASE => Some(state.base),
            MSR_TSC_DEADLINE => match state.timer_mode() {
                TimerMode::Deadline => {
                    self.expire_locked(&mut state);
                    let deadline = state.deadline.unwrap_or(0);
                    self.finish(state, After::default());
                    Some(deadline)
                }
                _ => Some(0),
            },
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST if state.x2apic() => {
                let offset = (msr - MSR_X2APIC_FIRST) << 4;
                if offset == ICR_LOW {
                    return Some(state.icr);
                }
                let value = self.read_register(&mut state, offset)?;
                self.finish(state, After::default());
                Some(value.into())
            }
            _ => None,
        }
    }

    fn msr_write(&self, msr: u32, value: u64) -> Option<()> {
        let mut state = self.lock();
        let mut after = After::default();
        match msr {
            MSR_APIC_BASE => self.write_base(&mut state, value)?,
            MSR_TSC_DEADLINE => self.write_deadline(&mut state, value),
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST if state.x2apic() => {
                let offset = (msr - MSR_X2APIC_FIRST) << 4;
                if offset == ICR_LOW {
                    if value & X2APIC_ICR_RESERVED != 0 {
                        return None;
                    }
                    state.icr = value & !0x1000;
                    after.send = self.command(&mut state);
                } else {
                    let value = u32::try_from(value).ok()?;
                    let refused = match offset {
                        TPR | SELF_IPI => value > 0xff,
                        EOI | ESR => value != 0,
                        _ => false,
                    };
                    if refused {
                        return None;
                    }
                    after = self.write_register(&mut state, offset, value)?;
                }
            }
            _ => return None,
        }
        self.finish(state, after);
        Some(())
    }

    fn cr8(&self) -> u8 {
        (self.lock().tpr >> 4) as u8
    }

    fn set_cr8(&self, value: u8) {
        let mut state = self.lock();
        state.tpr = u32::from(value & 15) << 4;
        self.finish(state, After::default());
    }

    fn mmio_base(&self) -> Option<u64> {
        Some(self.page.load(Ordering::Acquire)).filter(|page| *page != u64::MAX)
    }
}
