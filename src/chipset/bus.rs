//! Port and MMIO dispatch.

/// A device on a bus. Called from vCPU threads, several at once when there are several vCPUs: a
/// device locks itself. Offsets and lengths (1, 2, 4 or 8) are the guest's choice.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with the registers at `offset` from the device's base.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Stores `data` at `offset` from the device's base.
    fn write(&self, offset: u64, data: &[u8]);
}
