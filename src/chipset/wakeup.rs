//! The mailbox through which a guest starts its other processors: ACPI's "Multiprocessor Wakeup" structure.
//!
//! The guest writes an APIC id and the address to start at, then the command; the command reads as zero once it is
//! taken. On a PC firmware keeps the other processors spinning on such a mailbox in memory. Here it is a device, so
//! that nobody spins, and processors start in 64-bit mode on every backend: no INIT, no real mode.
//!
//! States: the registers as written; a command is taken at once. Whom to tell is named by [`WakeupMailbox::connect`];
//! before that, commands are lost. Unknown commands and accesses elsewhere in the page do nothing and read as zero.

use std::sync::{Mutex, MutexGuard, OnceLock};

use super::bus::{BusDevice, BusError, SystemBus};

/// Guest-physical address of the mailbox.
pub const MAILBOX: u64 = 0xfeb0_0000;
/// Its length in bytes, as ACPI wants it.
pub const MAILBOX_LEN: u64 = 0x1000;

/// Command: start the processor with the APIC id at the vector.
const WAKEUP: u16 = 1;
/// Offsets of the registers.
mod register {
    pub(super) const COMMAND: usize = 0;
    pub(super) const APIC_ID: usize = 4;
    pub(super) const VECTOR: usize = 8;
    pub(super) const END: usize = 16;
}

/// Hears of an APIC id that is to be started at a guest-physical address. Called on the thread of the vCPU that asks.
pub type WakeCallback = Box<dyn Fn(u32, u64) + Send + Sync>;

/// Registers of the mailbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WakeupState {
    /// Whom to start.
    pub apic_id: u32,
    /// Where.
    pub vector: u64,
}

/// The mailbox.
#[derive(Default)]
pub struct WakeupMailbox {
    registers: Mutex<[u8; register::END]>,
    wake: OnceLock<WakeCallback>,
}

impl std::fmt::Debug for WakeupMailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("WakeupMailbox").field(&self.state()).finish()
    }
}

impl WakeupMailbox {
    /// Puts the mailbox on the bus.
    pub fn attach(self: &std::sync::Arc<Self>, bus: &SystemBus) -> Result<(), BusError> {
        bus.mmio.insert(MAILBOX, MAILBOX_LEN, self.clone())
    }

    /// Names who starts processors. The first one stays.
    pub fn connect(&self, wake: WakeCallback) {
        let _ = self.wake.set(wake);
    }

    /// A copy of the registers.
    pub fn state(&self) -> WakeupState {
        parse(&self.lock()).1
    }

    /// Replaces the registers.
    pub fn set_state(&self, state: WakeupState) {
        let mut registers = self.lock();
        registers[register::APIC_ID..register::VECTOR].copy_from_slice(&state.apic_id.to_le_bytes());
        registers[register::VECTOR..].copy_from_slice(&state.vector.to_le_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, [u8; register::END]> {
        self.registers.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn parse(bytes: &[u8; register::END]) -> (u16, WakeupState) {
    let [c0, c1, _, _, a0, a1, a2, a3, vector @ ..] = *bytes;
    let state =
        WakeupState { apic_id: u32::from_le_bytes([a0, a1, a2, a3]), vector: u64::from_le_bytes(vector) };
    (u16::from_le_bytes([c0, c1]), state)
}

impl BusDevice for WakeupMailbox {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = self.lock();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = registers.get(at).copied().unwrap_or(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = self.lock();
        for (at, byte) in (offset as usize..).zip(data) {
            if let Some(register) = registers.get_mut(at) {
                *register = *byte;
            }
        }
        let (command, state) = parse(&registers);
        registers[register::COMMAND..register::APIC_ID].fill(0);
        drop(registers);
        if command == WAKEUP
            && let Some(wake) = self.wake.get()
        {
            wake(state.apic_id, state.vector);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_command_starts_whom_it_names_and_is_taken() {
        let mailbox = WakeupMailbox::default();
        mailbox.write(0, &1u16.to_le_bytes());
        let woken = Arc::new(Mutex::new(Vec::new()));
        let log = woken.clone();
        mailbox.connect(Box::new(move |id, vector| log.lock().unwrap().push((id, vector))));
        mailbox.write(4, &3u32.to_le_bytes());
        mailbox.write(8, &0x9_a000u64.to_le_bytes());
        assert!(woken.lock().unwrap().is_empty());
        mailbox.write(0, &1u16.to_le_bytes());
        assert_eq!(*woken.lock().unwrap(), [(3, 0x9_a000)]);
        let mut command = [0xff; 2];
        mailbox.read(0, &mut command);
        assert_eq!(command, [0, 0]);
        // What is no command does nothing; the rest of the page is nobody's.
        for value in [0u16, 2, 0xffff] {
            mailbox.write(0, &value.to_le_bytes());
        }
        mailbox.write(0xff8, &u64::MAX.to_le_bytes());
        mailbox.write(14, &[7; 8]);
        assert_eq!(woken.lock().unwrap().len(), 1);
        let state = WakeupState { apic_id: 1, vector: 2 };
        mailbox.set_state(state);
        assert_eq!(mailbox.state(), state);
        mailbox.write(0, &[1, 0, 0, 0, 9, 0, 0, 0]);
        assert_eq!(woken.lock().unwrap()[1..], [(9, 2)]);
    }
}
