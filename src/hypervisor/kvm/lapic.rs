//! The kernel's local APIC to and from the portable registers.
//!
//! The kernel shows a page of registers as the xAPIC has them, the timer's rest as its current count.
//! What it keeps beside the page (pending errors, a started INIT) has no portable counterpart or
//! comes from the vCPU's events.

use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::VcpuFd;

use super::time::Tsc;
use super::{HypervisorError, host};
use crate::arch::x86_64::msr;
use crate::state::Lapic;

/// Offsets in the register page.
mod reg {
    pub(super) const ID: usize = 0x20;
    pub(super) const VERSION: usize = 0x30;
    pub(super) const TPR: usize = 0x80;
    pub(super) const LDR: usize = 0xd0;
    pub(super) const DFR: usize = 0xe0;
    pub(super) const SVR: usize = 0xf0;
    pub(super) const ISR: usize = 0x100;
    pub(super) const TMR: usize = 0x180;
    pub(super) const IRR: usize = 0x200;
    pub(super) const ESR: usize = 0x280;
    pub(super) const ICR: usize = 0x300;
    pub(super) const ICR_HIGH: usize = 0x310;
    pub(super) const LVT: usize = 0x320;
    pub(super) const TIMER_INITIAL: usize = 0x380;
    pub(super) const TIMER_CURRENT: usize = 0x390;
    pub(super) const TIMER_DIVIDE: usize = 0x3e0;
}

const VERSION: u32 = 0x0005_0014;
const X2APIC: u64 = 1 << 10;
/// Bits of the ICR that keep what is written.
const ICR_LOW_WRITABLE: u32 = 0x000c_cfff;
const MASKED: u32 = 1 << 16;
/// Timer modes, bits 17 and 18 of its LVT entry.
const MODE: u32 = 3 << 17;
const DEADLINE: u32 = 2 << 17;

fn read(page: &kvm_lapic_state, at: usize) -> u32 {
    std::array::from_fn::<u8, 4, _>(|n| page.regs[at + n] as u8)
        .into_iter()
        .rev()
        .fold(0, |v, b| v << 8 | u32::from(b))
}

fn write(page: &mut kvm_lapic_state, at: usize, value: u32) {
    for (to, byte) in page.regs[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
        *to = byte as _;
    }
}

fn vectors(page: &kvm_lapic_state, at: usize) -> [u32; 8] {
    std::array::from_fn(|n| read(page, at + n * 0x10))
}

/// What the timer's count is divided by, as its configuration says.
fn divisor(configuration: u32) -> u64 {
    let code = configuration & 3 | configuration >> 1 & 4;
    1 << ((code + 1) & 7)
}

/// The registers now, at machine time `now`.
pub(super) fn get(fd: &VcpuFd, tsc: &Tsc, now: u64) -> Result<Lapic, HypervisorError> {
    let page = fd.get_lapic().map_err(host)?;
    let values = super::msr::get(fd, &[msr::APIC_BASE, msr::TSC_DEADLINE])?;
    let (base, deadline) = (values[0], values[1]);
    let lvt: [u32; 6] = {
        // In the page's order: timer, thermal, performance, LINT0, LINT1, error.
        std::array::from_fn(|n| read(&page, reg::LVT + n * 0x10))
    };
    let (initial, divide) = (read(&page, reg::TIMER_INITIAL), read(&page, reg::TIMER_DIVIDE));
    let deadline = match lvt[0] & MODE {
        DEADLINE if deadline != 0 => Some(tsc.when(deadline)),
        DEADLINE => None,
        _ => match read(&page, reg::TIMER_CURRENT) {
            0 => None,
            rest if initial != 0 => Some(now.saturating_add(u64::from(rest) * divisor(divide))),
            _ => None,
        },
    };
    let x2apic = base & X2APIC != 0;
    let icr_high = read(&page, reg::ICR_HIGH);
    Ok(Lapic {
        id: read(&page, reg::ID) >> 24,
        base,
        tpr: read(&page, reg::TPR),
        // Derived from the id in x2APIC mode, where the portable form has nothing.
        ldr: if x2apic { 0 } else { read(&page, reg::LDR) },
        dfr: if x2apic { u32::MAX } else { read(&page, reg::DFR) },
        svr: read(&page, reg::SVR),
        esr: read(&page, reg::ESR),
        esr_pending: 0,
        icr: u64::from(icr_high) << 32 | u64::from(read(&page, reg::ICR) & ICR_LOW_WRITABLE),
        // Without the delivery status (12) and remote IRR (14).
        lvt: lvt.map(|entry| entry & !0x5000),
        irr: vectors(&page, reg::IRR),
        isr: vectors(&page, reg::ISR),
        tmr: vectors(&page, reg::TMR),
        timer_initial: initial,
        timer_divide: divide & 0xb,
        deadline,
        ..Lapic::default()
    })
}

/// Replaces the registers, at machine time `now`. The vCPU's TSC must be set before.
pub(super) fn set(fd: &VcpuFd, lapic: &Lapic, tsc: &Tsc, now: u64) -> Result<(), HypervisorError> {
    super::msr::set(fd, &[(msr::APIC_BASE, lapic.base)])?;
    // What the kernel has in the fields that are none of ours.
    let mut page = fd.get_lapic().map_err(host)?;
    let x2apic = lapic.base & X2APIC != 0;
    write(&mut page, reg::ID, lapic.id << 24);
    write(&mut page, reg::VERSION, VERSION);
    write(&mut page, reg::TPR, lapic.tpr);
    if !x2apic {
        write(&mut page, reg::LDR, lapic.ldr);
        write(&mut page, reg::DFR, lapic.dfr);
    }
    write(&mut page, reg::SVR, lapic.svr);
    write(&mut page, reg::ESR, lapic.esr);
    write(&mut page, reg::ICR, lapic.icr as u32);
    write(&mut page, reg::ICR_HIGH, (lapic.icr >> 32) as u32);
    for (n, entry) in lapic.lvt.iter().enumerate() {
        write(&mut page, reg::LVT + n * 0x10, *entry);
    }
    for n in 0..8 {
        write(&mut page, reg::IRR + n * 0x10, lapic.irr[n]);
        write(&mut page, reg::ISR + n * 0x10, lapic.isr[n]);
        write(&mut page, reg::TMR + n * 0x10, lapic.tmr[n]);
    }
    let deadline_mode = lapic.lvt[0] & MODE == DEADLINE;
    // The kernel would have one that has run out fire once more.
    let over = lapic.deadline.is_none() && lapic.lvt[0] & MASKED == 0;
    write(&mut page, reg::TIMER_INITIAL, if over { 0 } else { lapic.timer_initial });
    write(&mut page, reg::TIMER_DIVIDE, lapic.timer_divide);
    let rest = match lapic.deadline {
        // At least one tick, so that one that is over still fires.
        Some(deadline) if !deadline_mode => {
            (deadline.saturating_sub(now) / divisor(lapic.timer_divide)).clamp(1, u32::MAX.into()) as u32
        }
        _ => 0,
    };
    write(&mut page, reg::TIMER_CURRENT, rest);
    fd.set_lapic(&page).map_err(host)?;
    if deadline_mode {
        // Zero would turn the timer off.
        let value = lapic.deadline.map_or(0, |deadline| tsc.at(deadline).max(1));
        super::msr::set(fd, &[(msr::TSC_DEADLINE, value)])?;
    }
    Ok(())
}
