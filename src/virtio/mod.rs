//! Virtio devices: what they share with the guest's drivers, and the devices themselves.
//!
//! * [`mmio`]: the register page through which a driver finds, negotiates and starts a device.
//! * [`device`]: the interface between that page and a device.
//! * [`queue`]: virtqueues, read with the suspicion that their contents deserve.
//! * [`interrupt`]: the interrupt line and the status bits behind it.
//! * [`console`], [`fs`], [`rng`], [`vsock`]: the devices.
//!
//! A device is *idle* until its driver has set DRIVER_OK, then *active*, and *broken* once the
//! driver has written something into a queue that no driver may write. A broken device shows
//! DEVICE_NEEDS_RESET, touches guest memory no more, and becomes idle by a reset.
//!
//! Lock order: transport, then device, then interrupt.

pub mod console;
pub mod device;
pub mod fs;
pub mod interrupt;
pub mod mmio;
pub mod queue;
pub mod rng;
mod saved;
pub mod spec;
pub mod vsock;

#[cfg(test)]
pub(crate) mod driver;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
