//! The chipset's registers to and from their saved form.
//!
//! What comes back is what the device itself could hold after some sequence of accesses, as far as
//! one value alone can tell. So no later access finds an index, a divisor or a length that it does
//! not expect. Times may lie anywhere: the devices saturate.

#[cfg(test)]
mod tests;

use super::ioapic::{self, IoApicState};
use super::lapic::{LapicState, spec};
use super::pic::{self, ChipState, InitStep, Pic};
use super::pit::{Access, ChannelState, PitState};
use super::rtc::{self, RtcState};
use super::uart::{self, UartState};
use super::wakeup::WakeupState;
use crate::state as saved;
use crate::state::StateError;

impl From<&WakeupState> for saved::Wakeup {
    fn from(state: &WakeupState) -> Self {
        let &WakeupState { apic_id, vector } = state;
        Self { apic_id, vector }
    }
}

impl From<&saved::Wakeup> for WakeupState {
    fn from(state: &saved::Wakeup) -> Self {
        let &saved::Wakeup { apic_id, vector } = state;
        Self { apic_id, vector }
    }
}

impl From<&LapicState> for saved::Lapic {
    fn from(state: &LapicState) -> Self {
        let &LapicState {
            id,
            base,
            tpr,
            ldr,
            dfr,
            svr,
            esr,
            esr_pending,
            icr,
            lvt,
            irr,
            isr,
            tmr,
            timer_initial,
            timer_divide,
            deadline,
            nmi,
            init,
            startup,
            wait_for_startup,
            lint0,
        } = state;
        Self {
            id,
            base,
            tpr,
            ldr,
            dfr,
            svr,
            esr,
            esr_pending,
            icr,
            lvt,
            irr,
            isr,
            tmr,
            timer_initial,
            timer_divide,
            deadline,
            nmi,
            init,
            startup,
            wait_for_startup,
            lint0,
        }
    }
}

impl TryFrom<saved::Lapic> for LapicState {
    type Error = StateError;

    fn try_from(state: saved::Lapic) -> Result<Self, StateError> {
        let saved::Lapic {
            id,
            base,
            tpr,
            ldr,
            dfr,
            svr,
            esr,
            esr_pending,
            icr,
            lvt,
            irr,
            isr,
            tmr,
            timer_initial,
            timer_divide,
            deadline,
            nmi,
            init,
            startup,
            wait_for_startup,
            lint0,
        } = state;
        let enabled = base & spec::BASE_ENABLED != 0;
        let x2apic = base & spec::BASE_X2APIC != 0;
        let base_known = spec::BASE_ADDR | spec::BASE_ENABLED | spec::BASE_X2APIC | spec::BASE_BSP;
        let check = |valid: bool, what| StateError::unless(valid, what);
        check(id < saved::Machine::MAX_CPUS, "local APIC's id")?;
        check(base & !base_known == 0 && (enabled || !x2apic), "local APIC's base")?;
        // The first one is the boot processor's, and the PIC leads to no other.
        let boot = base & spec::BASE_BSP != 0;
        check(boot == (id == 0) && (boot || !lint0), "local APIC of the boot processor")?;
        check(tpr <= 0xff, "local APIC's task priority")?;
        check(ldr & 0x00ff_ffff == 0 && dfr | 0xf000_0000 == u32::MAX, "local APIC's logical destination")?;
        check(svr <= 0x1ff, "local APIC's spurious vector")?;
        let errors =
            spec::ESR_SEND_ILLEGAL_VECTOR | spec::ESR_RECEIVED_ILLEGAL_VECTOR | spec::ESR_ILLEGAL_REGISTER;
        check((esr | esr_pending) & !errors == 0, "local APIC's error status")?;
        let destination = (icr >> 32) as u32;
        check(
            icr as u32 & !spec::ICR_LOW_WRITABLE == 0 && (x2apic || destination & 0x00ff_ffff == 0),
            "local APIC's interrupt command",
        )?;
        let writable = lvt.iter().zip(spec::LVT_WRITABLE).all(|(entry, writable)| entry & !writable == 0);
        check(writable, "local APIC's local vectors")?;
        // The first sixteen vectors are exceptions, and refused on all ways in.
        let exceptions = |bits: &[u32; 8]| bits[0] & 0xffff;
        check([irr, isr, tmr].iter().all(|bits| exceptions(bits) == 0), "local APIC's pending vectors")?;
        check(timer_divide & !0xb == 0, "local APIC's timer divider")?;
        let deadline_mode = lvt[spec::TIMER] >> 17 & 3 == 2;
        let running = enabled && (deadline_mode || timer_initial != 0);
        check(deadline.is_none() || running, "local APIC's timer deadline")?;
        Ok(Self {
            id,
            base,
            tpr,
            ldr,
            dfr,
            svr,
            esr,
            esr_pending,
            icr,
            lvt,
            irr,
            isr,
            tmr,
            timer_initial,
            timer_divide,
            deadline,
            nmi,
            init,
            startup,
            wait_for_startup,
            lint0,
        })
    }
}

impl From<&IoApicState> for saved::IoApic {
    fn from(state: &IoApicState) -> Self {
        let &IoApicState { select, id, redirection, lines } = state;
        Self { select, id, redirection, lines }
    }
}

impl TryFrom<saved::IoApic> for IoApicState {
    type Error = StateError;

    fn try_from(state: saved::IoApic) -> Result<Self, StateError> {
        let saved::IoApic { select, id, redirection, lines } = state;
        let entry = |entry: &u64| {
            let awaited = entry & ioapic::RTE_REMOTE_IRR != 0;
            entry & !(ioapic::RTE_WRITABLE | ioapic::RTE_REMOTE_IRR) == 0
                && (!awaited || entry & ioapic::RTE_LEVEL != 0)
        };
        StateError::unless(id & !ioapic::ID_WRITABLE == 0, "IOAPIC's id")?;
        StateError::unless(redirection.iter().all(entry), "IOAPIC's redirection entries")?;
        StateError::unless(lines >> ioapic::PINS == 0, "IOAPIC's inputs")?;
        Ok(Self { select, id, redirection, lines })
    }
}

impl From<&ChipState> for saved::PicChip {
    fn from(state: &ChipState) -> Self {
        let &ChipState {
            irr,
            imr,
            isr,
            lines,
            elcr,
            base,
            first,
            step,
            needs_icw4,
            single,
            auto_eoi,
            rotate_auto,
            special_mask,
            fully_nested,
            poll,
            read_isr,
        } = state;
        let awaited_icw = match step {
            InitStep::Done => 0,
            InitStep::Vector => 2,
            InitStep::Cascade => 3,
            InitStep::Mode => 4,
        };
        Self {
            irr,
            imr,
            isr,
            lines,
            elcr,
            base,
            first,
            awaited_icw,
            needs_icw4,
            single,
            auto_eoi,
            rotate_auto,
            special_mask,
            fully_nested,
            poll,
            read_isr,
        }
    }
}

impl From<&Pic> for saved::Pic {
    fn from(state: &Pic) -> Self {
        let Pic { chips } = state;
        Self { chips: chips.each_ref().map(Into::into) }
    }
}

/// Chip 0 or 1.
fn chip(number: usize, state: saved::PicChip) -> Result<ChipState, StateError> {
    let saved::PicChip {
        irr,
        imr,
        isr,
        lines,
        elcr,
        base,
        first,
        awaited_icw,
        needs_icw4,
        single,
        auto_eoi,
        rotate_auto,
        special_mask,
        fully_nested,
        poll,
        read_isr,
    } = state;
    let step = match awaited_icw {
        0 => InitStep::Done,
        2 => InitStep::Vector,
        3 if !single => InitStep::Cascade,
        4 if needs_icw4 => InitStep::Mode,
        _ => return Err(StateError::Invalid { what: "PIC's initialisation" }),
    };
    StateError::unless(base & 7 == 0, "PIC's vector base")?;
    StateError::unless(first < 8, "PIC's highest priority")?;
    let levels = pic::ELCR_WRITABLE.get(number).copied().unwrap_or(0);
    StateError::unless(elcr & !levels == 0, "PIC's edge/level control")?;
    StateError::unless(number != 0 || lines & 1 << pic::CASCADE == 0, "PIC's inputs")?;
    Ok(ChipState {
        irr,
        imr,
        isr,
        lines,
        elcr,
        base,
        first,
        step,
        needs_icw4,
        single,
        auto_eoi,
        rotate_auto,
        special_mask,
        fully_nested,
        poll,
        read_isr,
    })
}

impl TryFrom<saved::Pic> for Pic {
    type Error = StateError;

    fn try_from(state: saved::Pic) -> Result<Self, StateError> {
        let saved::Pic { chips: [primary, secondary] } = state;
        Ok(Self { chips: [chip(0, primary)?, chip(1, secondary)?] })
    }
}

impl From<&ChannelState> for saved::PitChannel {
    fn from(state: &ChannelState) -> Self {
        let &ChannelState {
            mode,
            bcd,
            access,
            count,
            written_low,
            read_high,
            latched_count,
            latched_status,
            gate,
            since,
            counted,
        } = state;
        let access = match access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        Self {
            mode,
            bcd,
            access,
            count,
            written_low,
            read_high,
            latched_count,
            latched_status,
            gate,
            since,
            counted,
        }
    }
}

impl TryFrom<saved::PitChannel> for ChannelState {
    type Error = StateError;

    fn try_from(state: saved::PitChannel) -> Result<Self, StateError> {
        /// A decimal count may be written with digits up to 15.
        const MAX_DECIMAL: u32 = 15 * 1111;
        let saved::PitChannel {
            mode,
            bcd,
            access,
            count,
            written_low,
            read_high,
            latched_count,
            latched_status,
            gate,
            since,
            counted,
        } = state;
        let access = match access {
            1 => Access::Low,
            2 => Access::High,
            3 => Access::Both,
            _ => return Err(StateError::Invalid { what: "interval timer's access mode" }),
        };
        let both = access == Access::Both;
        let most = if bcd { MAX_DECIMAL } else { 0x1_0000 };
        StateError::unless(mode <= 5, "interval timer's mode")?;
        StateError::unless(count.is_none_or(|count| (1..=most).contains(&count)), "interval timer's count")?;
        StateError::unless(both || written_low.is_none() && !read_high, "interval timer's half access")?;
        StateError::unless(count.is_some() || since.is_none(), "interval timer's start")?;
        Ok(Self {
            mode,
            bcd,
            access,
            count,
            written_low,
            read_high,
            latched_count,
            latched_status,
            gate,
            since,
            counted,
        })
    }
}

impl From<&PitState> for saved::Pit {
    fn from(state: &PitState) -> Self {
        let PitState { channels, control, deadline } = state;
        Self { channels: channels.each_ref().map(Into::into), control: *control, deadline: *deadline }
    }
}

impl TryFrom<saved::Pit> for PitState {
    type Error = StateError;

    fn try_from(state: saved::Pit) -> Result<Self, StateError> {
        let saved::Pit { channels: [first, second, third], control, deadline } = state;
        StateError::unless(control <= 0xf, "control port of the interval timer")?;
        let gates = first.gate && second.gate && third.gate == (control & 1 != 0);
        StateError::unless(gates, "interval timer's gates")?;
        StateError::unless(deadline.is_none() || first.count.is_some(), "interval timer's deadline")?;
        Ok(Self { channels: [first.try_into()?, second.try_into()?, third.try_into()?], control, deadline })
    }
}

impl From<&RtcState> for saved::Rtc {
    fn from(state: &RtcState) -> Self {
        let &RtcState { index, ref ram, flags, offset_ns, seen_second, seen_ns } = state;
        Self { index, ram: ram.to_vec(), flags, offset_ns, seen_second, seen_ns }
    }
}

impl TryFrom<saved::Rtc> for RtcState {
    type Error = StateError;

    fn try_from(state: saved::Rtc) -> Result<Self, StateError> {
        /// No time in ns is further from the epoch.
        const SECONDS: u64 = i64::MAX as u64 / 1_000_000_000 + 1;
        let saved::Rtc { index, ram, flags, offset_ns, seen_second, seen_ns } = state;
        let ram: [u8; 128] =
            ram.try_into().map_err(|_| StateError::Invalid { what: "length of the clock's RAM" })?;
        let causes = rtc::B_PERIODIC | rtc::B_ALARM | rtc::B_UPDATE;
        StateError::unless(index < 0x80, "clock's index")?;
        StateError::unless(flags & !causes == 0, "clock's flags")?;
        StateError::unless(ram[rtc::REG_A] & rtc::A_UPDATING == 0, "clock's register A")?;
        StateError::unless(seen_second.unsigned_abs() <= SECONDS, "clock's time")?;
        Ok(Self { index, ram, flags, offset_ns, seen_second, seen_ns })
    }
}

impl From<&UartState> for saved::Uart {
    fn from(state: &UartState) -> Self {
        let UartState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            fifo,
            input,
        } = state.clone();
        Self {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            fifo,
            input,
        }
    }
}

impl TryFrom<saved::Uart> for UartState {
    type Error = StateError;

    fn try_from(state: saved::Uart) -> Result<Self, StateError> {
        /// Data ready, transmitter empty, transmitter idle.
        const LINE_STATUS: u8 = 0x61;
        let saved::Uart {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            fifo,
            input,
        } = state;
        StateError::unless(fifo.len() <= saved::Uart::MAX_FIFO, "length of the serial port's FIFO")?;
        StateError::unless(input.len() <= uart::INPUT_CAPACITY, "length of the serial port's input")?;
        StateError::unless(interrupt_enable <= 0xf, "serial port's interrupt enable register")?;
        // None, transmitter, receiver.
        StateError::unless(interrupt_identification <= 7, "serial port's interrupt identification")?;
        let ready = line_status & 1 != 0;
        StateError::unless(
            line_status & !LINE_STATUS == 0 && ready != fifo.is_empty(),
            "serial port's line status",
        )?;
        Ok(Self {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            fifo,
            input,
        })
    }
}
