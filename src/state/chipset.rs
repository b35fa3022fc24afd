//! Registers of interrupt controllers, timers and legacy devices.

use serde::{Deserialize, Serialize};

use super::{Saved, StateError, kind};

/// Registers of one local APIC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lapic {
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
    /// When the timer fires next, in machine time (ns).
    pub deadline: Option<u64>,
    /// An NMI waits to be taken.
    pub nmi: bool,
    /// An INIT waits to be taken.
    pub init: bool,
    /// A start-up IPI with this page waits to be taken.
    pub startup: Option<u8>,
    /// After INIT: nothing but a start-up IPI counts.
    pub wait_for_startup: bool,
    /// Level of the LINT0 pin.
    pub lint0: bool,
}

impl Saved for Lapic {
    const KIND: u16 = kind::LAPIC;
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 1 << 10;
}

/// Registers of the I/O APIC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApic {
    /// Register that the window shows.
    pub select: u8,
    /// APIC id (bits 24..28).
    pub id: u32,
    /// Redirection entries.
    pub redirection: [u64; 24],
    /// Asserted inputs, a bit each.
    pub lines: u32,
}

impl Saved for IoApic {
    const KIND: u16 = kind::IOAPIC;
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 1 << 10;
}

/// Registers of one 8259A.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicChip {
    /// Requested interrupts.
    pub irr: u8,
    /// Masked inputs.
    pub imr: u8,
    /// Interrupts in service.
    pub isr: u8,
    /// Level of each input.
    pub lines: u8,
    /// Inputs that are level-triggered.
    pub elcr: u8,
    /// Vector of input 0.
    pub base: u8,
    /// Input with the highest priority.
    pub first: u8,
    /// Initialisation word it waits for: 2, 3, 4, or 0 when it is operating.
    pub awaited_icw: u8,
    /// ICW1 announced an ICW4.
    pub needs_icw4: bool,
    /// ICW1 said that there is no cascade.
    pub single: bool,
    /// Interrupts end as they are acknowledged.
    pub auto_eoi: bool,
    /// Priority rotates at each automatic EOI.
    pub rotate_auto: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// Special fully nested mode.
    pub fully_nested: bool,
    /// The next read acknowledges.
    pub poll: bool,
    /// Reads give the ISR rather than the IRR.
    pub read_isr: bool,
}

/// Registers of both 8259As, primary first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pic {
    /// The chips.
    pub chips: [PicChip; 2],
}

impl Saved for Pic {
    const KIND: u16 = kind::PIC;
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 256;
}

/// Registers of one channel of the 8254.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitChannel {
    /// Counting mode, 0..=5.
    pub mode: u8,
    /// Counts in four decimal digits.
    pub bcd: bool,
    /// Bytes that the data port transfers, as in the control word: 1 low, 2 high, 3 low then high.
    pub access: u8,
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
    /// Tick of the input clock, since machine time zero, from which on it counts; `None` while held
    /// or empty.
    pub since: Option<u64>,
    /// Ticks counted before `since`.
    pub counted: u64,
}

/// Registers of the 8254 and of port 0x61.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pit {
    /// The channels.
    pub channels: [PitChannel; 3],
    /// Bits 0..=3 of port 0x61 as written.
    pub control: u8,
    /// When channel 0 next interrupts, in machine time (ns).
    pub deadline: Option<u64>,
}

impl Saved for Pit {
    const KIND: u16 = kind::PIT;
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 512;
}

/// Registers and RAM of the real-time clock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rtc {
    /// Register that the data port shows.
    pub index: u8,
    /// The 128 bytes of RAM, registers in their places.
    pub ram: Vec<u8>,
    /// Register C without its top bit.
    pub flags: u8,
    /// Guest time less host wall clock, in ns.
    pub offset_ns: i64,
    /// Guest time in seconds up to which updates and alarms have been noticed.
    pub seen_second: i64,
    /// Machine time in ns up to which periods have been noticed.
    pub seen_ns: u64,
}

impl Saved for Rtc {
    const KIND: u16 = kind::RTC;
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 512;

    fn check(&self) -> Result<(), StateError> {
        match self.ram.len() {
            128 => Ok(()),
            _ => Err(StateError::Invalid { what: "length of the clock's RAM" }),
        }
    }
}

/// Registers of a 16550 and what waits to be read from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uart {
    /// Low byte of the baud divisor.
    pub baud_divisor_low: u8,
    /// High byte of the baud divisor.
    pub baud_divisor_high: u8,
    /// IER.
    pub interrupt_enable: u8,
    /// IIR.
    pub interrupt_identification: u8,
    /// LCR.
    pub line_control: u8,
    /// LSR.
    pub line_status: u8,
    /// MCR.
    pub modem_control: u8,
    /// MSR.
    pub modem_status: u8,
    /// SCR.
    pub scratch: u8,
    /// The receive FIFO.
    pub fifo: Vec<u8>,
    /// Input that follows it.
    pub input: Vec<u8>,
}

impl Uart {
    /// Most bytes in the receive FIFO.
    pub const MAX_FIFO: usize = 64;
    /// Most bytes of input.
    pub const MAX_INPUT: usize = 64 << 10;
}

impl Saved for Uart {
    const KIND: u16 = kind::UART;
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = Self::MAX_INPUT + 1024;

    fn check(&self) -> Result<(), StateError> {
        if self.fifo.len() > Self::MAX_FIFO {
            return Err(StateError::Invalid { what: "length of the serial port's FIFO" });
        }
        if self.input.len() > Self::MAX_INPUT {
            return Err(StateError::Invalid { what: "length of the serial port's input" });
        }
        Ok(())
    }
}

/// Registers of the mailbox that starts processors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wakeup {
    /// APIC id of the processor to start.
    pub apic_id: u32,
    /// Where it is to start.
    pub vector: u64,
}

impl Saved for Wakeup {
    const KIND: u16 = kind::WAKEUP;
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 64;
}
