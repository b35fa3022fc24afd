//! How a guest turns its machine off or resets it: the keyboard controller's reset pulse, the
//! chipset's reset control register at 0xcf9, and sleep registers as ACPI's hardware-reduced model
//! has them.
//!
//! All three report a [`PowerEvent`] to one callback, on the thread of the vCPU that wrote. The
//! guest expects not to run on, but may: the callback stops the vCPUs from outside and returns.

use std::sync::{Arc, Mutex};

use super::bus::{BusDevice, BusError, SystemBus};

/// What the guest asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerEvent {
    /// Start again from power-on.
    Reset,
    /// Power off.
    Off,
}

/// Takes power events. Must be quick, must not block, and may come several times.
pub type PowerCallback = Arc<dyn Fn(PowerEvent) + Send + Sync>;

/// Where the sleep registers are unless told otherwise.
pub const POWER_PORT: u16 = 0x600;
/// Number of ports of [`PowerControl`].
pub const POWER_LEN: u16 = 4;
/// Offset of the FADT's SLEEP_CONTROL_REG (8 bits).
pub const SLEEP_CONTROL: u16 = 0;
/// Offset of the FADT's SLEEP_STATUS_REG (8 bits).
pub const SLEEP_STATUS: u16 = 1;
/// Offset of a register for the FADT's RESET_REG (8 bits).
pub const RESET: u16 = 2;
/// The FADT's RESET_VALUE for it.
pub const RESET_VALUE: u8 = 1;
/// Sleep type that `\_S5` names.
pub const S5_SLEEP_TYPE: u8 = 5;

/// The keyboard controller's data port; its status and command port is at 0x64.
pub const I8042_DATA_PORT: u64 = 0x60;
/// The keyboard controller's status and command port.
pub const I8042_COMMAND_PORT: u64 = 0x64;
/// The reset control register, in the midst of the PCI configuration ports.
pub const RESET_CONTROL_PORT: u64 = 0xcf9;

const SLEEP_ENABLE: u8 = 1 << 5;
const WAKE_STATUS: u8 = 1 << 7;

/// Sleep control, sleep status and reset registers.
pub struct PowerControl(PowerCallback);

impl std::fmt::Debug for PowerControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PowerControl")
    }
}

impl PowerControl {
    /// Registers that report to `on_event`.
    pub fn new(on_event: PowerCallback) -> Self {
        Self(on_event)
    }

    /// Puts the registers at `port` on the bus.
    pub fn attach(self, bus: &SystemBus, port: u16) -> Result<(), BusError> {
        bus.ports.insert(port.into(), POWER_LEN.into(), Arc::new(self))
    }
}

impl BusDevice for PowerControl {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            // It never sleeps, so it is always awake again.
            *byte = if at == u64::from(SLEEP_STATUS) { WAKE_STATUS } else { 0 };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            if at == u64::from(SLEEP_CONTROL) && byte & SLEEP_ENABLE != 0 && byte >> 2 & 7 == S5_SLEEP_TYPE {
                (self.0)(PowerEvent::Off);
            } else if at == u64::from(RESET) && *byte == RESET_VALUE {
                (self.0)(PowerEvent::Reset);
            }
        }
    }
}

/// The part of a keyboard controller that resets the machine. There is no keyboard: its output
/// buffer looks for ever full, which makes a driver give up its probe after sixteen reads instead
/// of waiting half a second for each answer, and its input buffer is for ever empty, so that the
/// reset command is written without a wait.
pub struct I8042(PowerCallback);

impl std::fmt::Debug for I8042 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("I8042")
    }
}

impl I8042 {
    const OUTPUT_FULL: u8 = 1;
    const PULSE_RESET: u8 = 0xfe;

    /// A controller that reports to `on_event`.
    pub fn new(on_event: PowerCallback) -> Self {
        Self(on_event)
    }

    /// Puts both ports on the bus.
    pub fn attach(self, bus: &SystemBus) -> Result<(), BusError> {
        bus.ports.insert(I8042_DATA_PORT, 1, Arc::new(super::post::DelayPort))?;
        bus.ports.insert(I8042_COMMAND_PORT, 1, Arc::new(self))
    }
}

impl BusDevice for I8042 {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(Self::OUTPUT_FULL);
    }

    fn write(&self, _: u64, data: &[u8]) {
        if data.first() == Some(&Self::PULSE_RESET) {
            (self.0)(PowerEvent::Reset);
        }
    }
}

/// The reset control register. Only byte accesses reach it: the 32-bit ones at 0xcf8 are for PCI
/// configuration, which this machine does not have and which reads as all ones.
pub struct ResetControl {
    value: Mutex<u8>,
    on_event: PowerCallback,
}

impl std::fmt::Debug for ResetControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResetControl")
    }
}

impl ResetControl {
    const RESET_CPU: u8 = 1 << 2;
    const WRITABLE: u8 = 0x0e;

    /// A register that reports to `on_event`.
    pub fn new(on_event: PowerCallback) -> Self {
        Self { value: Mutex::new(0), on_event }
    }

    /// Puts the register on the bus.
    pub fn attach(self, bus: &SystemBus) -> Result<(), BusError> {
        bus.ports.insert(RESET_CONTROL_PORT, 1, Arc::new(self))
    }

    fn value(&self) -> std::sync::MutexGuard<'_, u8> {
        self.value.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl BusDevice for ResetControl {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(*self.value());
    }

    fn write(&self, _: u64, data: &[u8]) {
        let Some(value) = data.first() else { return };
        // The reset bit itself is a command and never reads back.
        *self.value() = value & Self::WRITABLE & !Self::RESET_CPU;
        if value & Self::RESET_CPU != 0 {
            (self.on_event)(PowerEvent::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chipset::post::DelayPort;
    use crate::hypervisor::ExitIo;

    struct Board {
        bus: SystemBus,
        events: Arc<Mutex<Vec<PowerEvent>>>,
    }

    impl Board {
        fn new() -> Self {
            let events: Arc<Mutex<Vec<PowerEvent>>> = Arc::default();
            let log = events.clone();
            let callback: PowerCallback = Arc::new(move |event| log.lock().unwrap().push(event));
            let bus = SystemBus::new();
            PowerControl::new(callback.clone()).attach(&bus, POWER_PORT).unwrap();
            I8042::new(callback.clone()).attach(&bus).unwrap();
            ResetControl::new(callback).attach(&bus).unwrap();
            DelayPort::attach(&bus).unwrap();
            Self { bus, events }
        }

        fn outb(&self, port: u16, value: u8) -> Vec<PowerEvent> {
            self.bus.port_write(port, &[value]);
            std::mem::take(&mut self.events.lock().unwrap())
        }

        fn inb(&self, port: u16) -> u8 {
            let mut data = [0];
            self.bus.port_read(port, &mut data);
            data[0]
        }
    }

    #[test]
    fn sleep_and_reset_registers() {
        let board = Board::new();
        assert_eq!(board.inb(0x601), 0x80);
        assert_eq!(board.outb(0x600, 5 << 2), [], "without SLP_EN");
        assert_eq!(board.outb(0x600, 1 << 2 | 0x20), [], "S1 is not offered");
        assert_eq!(board.outb(0x600, 5 << 2 | 0x20), [PowerEvent::Off]);
        assert_eq!(board.outb(0x602, 0), []);
        assert_eq!(board.outb(0x602, 1), [PowerEvent::Reset]);
    }

    #[test]
    fn keyboard_controller_resets_and_never_answers() {
        let board = Board::new();
        assert_eq!(board.inb(0x64) & 3, 1);
        assert_eq!(board.inb(0x60), 0xff);
        assert_eq!(board.outb(0x64, 0x20), []);
        assert_eq!(board.outb(0x60, 0xfe), []);
        assert_eq!(board.outb(0x64, 0xfe), [PowerEvent::Reset]);
    }

    #[test]
    fn reset_control_shares_its_place_with_absent_pci() {
        let board = Board::new();
        assert_eq!(board.outb(0xcf9, 2), []);
        assert_eq!(board.inb(0xcf9), 2);
        assert_eq!(board.outb(0xcf9, 6), [PowerEvent::Reset]);
        board.bus.port_write(0xcf8, &0x8000_0006u32.to_le_bytes());
        assert_eq!(board.events.lock().unwrap().len(), 0);
        let mut data = [0; 4];
        board.bus.port_read(0xcf8, &mut data);
        assert_eq!(data, [0xff; 4]);
        board.bus.port_read(0xcfc, &mut data);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(board.outb(0x80, 0x55), []);
        assert_eq!(board.inb(0x80), 0xff);
    }
}
