//! Saved state: what a stopped machine is written down as, and the file that holds it.
//!
//! * [`container`]: sections with kind, version and instance behind one checksum.
//! * [`Machine`]: what the machine is, so that the state of another one is refused.
//! * [`Vcpu`], [`Lapic`], [`IoApic`], [`Pic`], [`Pit`], [`Rtc`], [`Uart`], [`Wakeup`], [`VirtioTransport`]: the
//!   registers of one part each.
//! * [`files`]: file systems, what a guest has open in them, and what its commands start with.
//!
//! They are no part's own types: a part may change without a word, these change only with their
//! version. `docs/snapshot-format.md` has the rules.
//!
//! A value on its way in is *bytes* (damaged, torn, or made up), then *decoded* (its own type, within
//! its caps, nothing believed), then *accepted* by the `TryFrom` of the part that takes it over, which
//! lives beside that part. Each step fails with a [`StateError`]; none panics or allocates more than
//! the container's caps allow.
//!
//! The checksum finds damage. It is no signature: a value that somebody made up carries a good one,
//! which is why nothing is taken over unchecked.

mod chipset;
pub mod container;
mod error;
pub mod files;
mod machine;
mod vcpu;
mod virtio;

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

pub use chipset::{IoApic, Lapic, Pic, PicChip, Pit, PitChannel, Rtc, Uart, Wakeup};
pub use error::StateError;
pub use machine::Machine;
pub use vcpu::{DescriptorTable, Fpu, Msrs, Segment, Vcpu};
pub use virtio::{VirtioQueue, VirtioTransport};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A type that a section of the container holds.
///
/// Whatever changes what the bytes mean (a field more, another order, another unit) needs a new
/// [`VERSION`](Self::VERSION).
pub trait Saved: Serialize + DeserializeOwned {
    /// Which part this is the state of; one of [`kind`].
    const KIND: u16;
    /// Version of the layout, from 1.
    const VERSION: u16;
    /// Most bytes that a section of this kind may have. A short encoding can stand for values that
    /// are several times as large in memory, so this is also what bounds those.
    const MAX_BYTES: usize = 1 << 20;

    /// Caps that can be told without the part: lengths of lists and texts.
    ///
    /// # Errors
    /// [`StateError::Invalid`] where a cap is exceeded.
    fn check(&self) -> Result<(), StateError> {
        Ok(())
    }
}

/// The kinds of sections. A number is never given a second time.
pub mod kind {
    /// [`Machine`](super::Machine).
    pub const MACHINE: u16 = 1;
    /// [`Vcpu`](super::Vcpu); the instance is the vCPU's index.
    pub const VCPU: u16 = 2;
    /// [`Lapic`](super::Lapic); the instance is the vCPU's index.
    pub const LAPIC: u16 = 3;
    /// [`IoApic`](super::IoApic).
    pub const IOAPIC: u16 = 4;
    /// [`Pic`](super::Pic).
    pub const PIC: u16 = 5;
    /// [`Pit`](super::Pit).
    pub const PIT: u16 = 6;
    /// [`Rtc`](super::Rtc).
    pub const RTC: u16 = 7;
    /// [`Uart`](super::Uart); the instance is the port's number.
    pub const UART: u16 = 8;
    /// [`VirtioTransport`](super::VirtioTransport); the instance is the slot.
    pub const VIRTIO_TRANSPORT: u16 = 9;

    /// [`FileClient`](super::files::FileClient); the instance is the file system's number.
    pub const FILE_CLIENT: u16 = 10;
    /// [`FileSystem`](super::files::FileSystem); the instance is its number.
    pub const FILE_SYSTEM: u16 = 11;
    /// [`Guest`](super::files::Guest).
    pub const GUEST: u16 = 12;
    /// [`Wakeup`](super::Wakeup); machines with one processor have none.
    pub const WAKEUP: u16 = 13;

    /// What a message calls it.
    pub(super) fn name(kind: u16) -> &'static str {
        match kind {
            MACHINE => "machine",
            VCPU => "vCPU",
            LAPIC => "local APIC",
            IOAPIC => "IOAPIC",
            PIC => "PIC",
            PIT => "interval timer",
            RTC => "real-time clock",
            UART => "serial port",
            VIRTIO_TRANSPORT => "virtio transport",
            FILE_CLIENT => "client of a file system",
            FILE_SYSTEM => "file system",
            GUEST => "guest",
            WAKEUP => "wakeup mailbox",
            _ => "unknown",
        }
    }
}
