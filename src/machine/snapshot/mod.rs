//! Machines put away and taken up again.
//!
//! A snapshot is a directory with two files: `state` (what [`crate::state`] describes: processors, chipset, devices,
//! and where memory has what) and `memory` (guest RAM, sparse: pages of zeros are holes). It is *whole* or it does not
//! exist: `store` publishes it by one rename after all of it is on disk.
//!
//! * [`capture`]: a machine that stands still is written.
//! * [`restore`]: a board is made whose RAM is a private, copy-on-write mapping of `memory`.
//! * `memory`: that file, with a checksum of every part.
//!
//! Nothing in a snapshot is believed before its checksums are right. What is damaged, of another version or of another
//! machine is a [`SnapshotError`]; whoever wanted it boots instead. The host's end of the guest's sockets is not part
//! of it: the guest hears that its connections are gone.

mod capture;
mod memory;
mod restore;
mod store;
#[cfg(test)]
mod tests;

pub use capture::{capture, copy, keep};
pub use restore::{Restored, check, reopen, restore};
pub use store::{Draft, Key, KeyBuilder, Place, Store};

use crate::state::StateError;

/// Why a snapshot cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The state is damaged, of another version, or not such as a machine can have.
    #[error("the saved state cannot be used")]
    State(#[from] StateError),
    /// The memory file is not what the state says.
    #[error("the saved memory is damaged: {0}")]
    Memory(&'static str),
    /// The saved file systems cannot be taken up: a layer is damaged, a host directory is gone.
    #[error("the machine's files cannot be had")]
    Files(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It is of another machine than the one wanted.
    #[error("the snapshot is of another machine: {0}")]
    Other(String),
    /// The machine does not stand still, or has ended.
    #[error("the machine cannot be captured: {0}")]
    NotReady(&'static str),
    /// Making the machine.
    #[error("making the machine")]
    Machine(#[from] super::MachineError),
    /// The host's disk or memory.
    #[error("cannot {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The host's answer.
        #[source]
        source: std::io::Error,
    },
}

impl SnapshotError {
    fn io(action: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}
