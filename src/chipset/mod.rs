//! The chipset: port and MMIO dispatch, interrupt controllers, timers and legacy devices.
//!
//! [`bus`] routes guest accesses to devices; [`irq`] is how devices signal; [`irqchip`] joins
//! [`pic`], [`ioapic`] and one [`lapic`] per vCPU for backends without interrupt controllers of
//! their own; [`timers`] is the one thread that waits for deadlines. The rest are the devices that
//! an x86 kernel expects at fixed ports, and [`wakeup`] starts processors. Each device keeps its
//! registers in one plain state struct that can be read and put back while the vCPUs are stopped.
//!
//! Lock order, outermost first: a device (PIT, RTC, UART …), PIC, IOAPIC, LAPIC, timers. The timer
//! thread calls back with none of them held.

pub mod bus;
pub mod ioapic;
pub mod irq;
pub mod irqchip;
pub mod lapic;
pub mod pic;
pub mod pit;
pub mod post;
pub mod reset;
pub mod rtc;
mod saved;
pub mod timers;
pub mod uart;
pub mod wakeup;

#[cfg(test)]
mod fuzz;
