//! Port and MMIO dispatch.
//!
//! A [`Bus`] maps address ranges to devices; ranges never overlap. The lock is held only to find
//! the device, never while it works, so devices may be slow, may run on several vCPUs at once and
//! may add or remove ranges. An access that no range holds entirely reads as all ones and is
//! dropped when it writes.

use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::hypervisor::ExitIo;

/// A device on a bus. Called from vCPU threads, several at once when there are several vCPUs: a
/// device locks itself. Offsets and lengths (1, 2, 4 or 8) are the guest's choice.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with the registers at `offset` from the device's base.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Stores `data` at `offset` from the device's base.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a range could not be put on a bus or taken from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The range has no bytes.
    #[error("empty range at {base:#x}")]
    Empty {
        /// First address of the range.
        base: u64,
    },
    /// The range ends beyond the last address of this bus.
    #[error("range {base:#x}+{len:#x} ends beyond the bus")]
    OutOfSpace {
        /// First address of the range.
        base: u64,
        /// Length of the range in bytes.
        len: u64,
    },
    /// Part of the range belongs to another device.
    #[error("range {base:#x}+{len:#x} overlaps a device at {other:#x}")]
    Overlap {
        /// First address of the range.
        base: u64,
        /// Length of the range in bytes.
        len: u64,
        /// First address of the device in the way.
        other: u64,
    },
    /// No device begins at this address.
    #[error("no device at {base:#x}")]
    NotFound {
        /// The address.
        base: u64,
    },
}

#[derive(Clone)]
struct Entry {
    base: u64,
    /// Last address, inclusive: a range may end at the top of the address space.
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// One address space with devices in it.
pub struct Bus {
    /// Sorted by base.
    entries: RwLock<Vec<Entry>>,
    limit: u64,
}

impl Default for Bus {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.entries().iter().map(|e| e.base..=e.last)).finish()
    }
}

impl Bus {
    /// An empty bus with 64-bit addresses.
    pub fn new() -> Self {
        Self::with_limit(u64::MAX)
    }

    /// An empty bus whose last address is `limit`.
    pub fn with_limit(limit: u64) -> Self {
        Self { entries: RwLock::new(Vec::new()), limit }
    }

    /// Puts `device` at `base..base + len`.
    pub fn insert(&self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        if len == 0 {
            return Err(BusError::Empty { base });
        }
        let last = base
            .checked_add(len - 1)
            .filter(|last| *last <= self.limit)
            .ok_or(BusError::OutOfSpace { base, len })?;
        let mut entries = self.entries_mut();
        let at = entries.partition_point(|e| e.last < base);
        if let Some(other) = entries.get(at).filter(|e| e.base <= last) {
            return Err(BusError::Overlap { base, len, other: other.base });
        }
        entries.insert(at, Entry { base, last, device });
        Ok(())
    }

    /// Takes away the range that begins at `base` and returns its device. Calls already under way
    /// on other threads finish.
    pub fn remove(&self, base: u64) -> Result<Arc<dyn BusDevice>, BusError> {
        let mut entries = self.entries_mut();
        match entries.binary_search_by_key(&base, |e| e.base) {
            Ok(at) => Ok(entries.remove(at).device),
            Err(_) => Err(BusError::NotFound { base }),
        }
    }

    /// Reads at `addr`. Returns whether a device answered; otherwise `data` is all ones.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        match self.find(addr, data.len()) {
            Some((device, offset)) => {
                device.read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes at `addr`. Returns whether a device took it.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        match self.find(addr, data.len()) {
            Some((device, offset)) => {
                device.write(offset, data);
                true
            }
            None => false,
        }
    }

    fn find(&self, addr: u64, len: usize) -> Option<(Arc<dyn BusDevice>, u64)> {
        let last = addr.checked_add((len as u64).checked_sub(1)?)?;
        let entries = self.entries();
        let entry = entries.get(entries.partition_point(|e| e.last < addr))?;
        (entry.base <= addr && last <= entry.last).then(|| (entry.device.clone(), addr - entry.base))
    }

    fn entries(&self) -> RwLockReadGuard<'_, Vec<Entry>> {
        self.entries.read().unwrap_or_else(|e| e.into_inner())
    }

    fn entries_mut(&self) -> RwLockWriteGuard<'_, Vec<Entry>> {
        self.entries.write().unwrap_or_else(|e| e.into_inner())
    }
}

/// A machine's two address spaces, as its vCPUs call out to them.
#[derive(Debug)]
pub struct SystemBus {
    /// The 65536 I/O ports.
    pub ports: Bus,
    /// Guest-physical addresses without RAM.
    pub mmio: Bus,
}

impl Default for SystemBus {
    fn default() -> Self {
        Self::new()
    }
}

impl SystemBus {
    /// Two empty buses.
    pub fn new() -> Self {
        Self { ports: Bus::with_limit(0xffff), mmio: Bus::new() }
    }
}

impl ExitIo for SystemBus {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port.into(), data);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        self.ports.write(port.into(), data);
    }

    fn mmio_read(&self, addr: u64, data: &mut [u8]) {
        self.mmio.read(addr, data);
    }

    fn mmio_write(&self, addr: u64, data: &[u8]) {
        self.mmio.write(addr, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Answers with its tag and remembers writes.
    struct Probe(u8, Mutex<Vec<(u64, Vec<u8>)>>);

    impl Probe {
        fn new(tag: u8) -> Arc<Self> {
            Arc::new(Self(tag, Mutex::default()))
        }
    }

    impl BusDevice for Probe {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.1.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn refuses_empty_wrapping_and_overlapping_ranges() {
        let bus = Bus::new();
        let d = Probe::new(0);
        assert_eq!(bus.insert(5, 0, d.clone()), Err(BusError::Empty { base: 5 }));
        assert!(matches!(bus.insert(u64::MAX, 2, d.clone()), Err(BusError::OutOfSpace { .. })));
        bus.insert(u64::MAX, 1, d.clone()).unwrap();
        bus.insert(0x100, 0x10, d.clone()).unwrap();
        for (base, len) in [(0x100, 0x10), (0x0ff, 2), (0x10f, 1), (0x104, 4), (0, 0x1000), (0, u64::MAX)] {
            assert_eq!(bus.insert(base, len, d.clone()), Err(BusError::Overlap { base, len, other: 0x100 }));
        }
        bus.insert(0xf0, 0x10, d.clone()).unwrap();
        bus.insert(0x110, 1, d.clone()).unwrap();
        assert!(matches!(
            SystemBus::new().ports.insert(0xffff, 2, d),
            Err(BusError::OutOfSpace { base: 0xffff, len: 2 })
        ));
    }

    #[test]
    fn routes_by_range_and_refuses_straddling() {
        let bus = Bus::new();
        let (a, b) = (Probe::new(0x10), Probe::new(0x80));
        bus.insert(0x1000, 4, a.clone()).unwrap();
        bus.insert(0x1004, 4, b.clone()).unwrap();
        let mut one = [0];
        assert!(bus.read(0x1003, &mut one));
        assert_eq!(one, [0x13]);
        assert!(bus.read(0x1004, &mut one));
        assert_eq!(one, [0x80]);
        let mut two = [0, 0];
        assert!(!bus.read(0x1003, &mut two));
        assert_eq!(two, [0xff, 0xff]);
        assert!(!bus.write(0x1007, &[1, 2]));
        assert!(!bus.write(0xfff, &[1]));
        assert!(!bus.write(u64::MAX, &[1, 2]));
        assert!(!bus.read(0x1000, &mut []));
        assert!(bus.write(0x1006, &[1, 2]));
        assert_eq!(*b.1.lock().unwrap(), vec![(2, vec![1, 2])]);
        assert!(a.1.lock().unwrap().is_empty());
    }

    #[test]
    fn removed_ranges_are_free_again() {
        let bus = Bus::new();
        bus.insert(0x10, 4, Probe::new(1)).unwrap();
        assert!(matches!(bus.remove(0x11), Err(BusError::NotFound { base: 0x11 })));
        bus.remove(0x10).unwrap();
        assert!(!bus.write(0x10, &[0]));
        bus.insert(0x10, 4, Probe::new(1)).unwrap();
    }

    #[test]
    fn a_device_may_change_the_bus_while_it_is_called() {
        struct Remover(Arc<Bus>);
        impl BusDevice for Remover {
            fn read(&self, _: u64, data: &mut [u8]) {
                data.fill(0);
            }
            fn write(&self, _: u64, _: &[u8]) {
                self.0.remove(0).unwrap();
            }
        }
        let bus = Arc::new(Bus::new());
        bus.insert(0, 1, Arc::new(Remover(bus.clone()))).unwrap();
        assert!(bus.write(0, &[0]));
        assert!(!bus.write(0, &[0]));
    }
}
