//! What can go wrong with a machine as a whole.

use std::io;
use std::time::Duration;

use crate::hypervisor::HypervisorError;
use crate::machine::boot::BootError;
use crate::machine::snapshot::SnapshotError;
use crate::machine::{Ending, MachineError};

/// An error of a machine: it could not be made, or it ended.
///
/// Operations inside a running machine (commands, files, sockets) return [`io::Error`] as their
/// models in std do. When the machine ends under them, that error has the kind
/// [`io::ErrorKind::NotConnected`], or [`io::ErrorKind::TimedOut`] when its lifetime was over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine is not running any more.
    #[error("the machine is not running: {0}")]
    NotRunning(String),
    /// The instance was closed before.
    #[error("the instance is already closed")]
    AlreadyClosed,
    /// The machine's lifetime was over.
    #[error("the machine was stopped after its lifetime of {0:?}")]
    Timeout(Duration),
    /// Hardware virtualization was asked for and cannot be had.
    #[error(
        "no usable hypervisor: {reason} (without `require_hardware` or `Backend::Kvm` the software CPU is used)"
    )]
    HypervisorUnavailable {
        /// Why.
        reason: String,
    },
    /// The amount of memory cannot be given.
    #[error("{mb} MiB of memory: {reason}")]
    Memory {
        /// What was asked for, in MiB.
        mb: u64,
        /// Why that cannot be.
        reason: String,
    },
    /// The number of processors cannot be given.
    #[error("{cpus} processors: a machine has 1 to {max}")]
    Cpus {
        /// What was asked for.
        cpus: u32,
        /// The most that a machine can have.
        max: u32,
    },
    /// There is no kernel or userland to be had, or it cannot be booted.
    #[error(transparent)]
    Boot(BootError),
    /// The guest's kernel panicked.
    #[error("the guest kernel panicked; its console ends:\n{console}")]
    Panicked {
        /// The last kilobytes of the console.
        console: String,
    },
    /// The machine ended by itself.
    #[error("{what}; its console ends:\n{console}")]
    Died {
        /// How.
        what: String,
        /// The last kilobytes of the console.
        console: String,
    },
    /// The root or a mount cannot be had.
    #[error("cannot use {what} as a file system")]
    Root {
        /// What was to be used.
        what: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A snapshot cannot be taken, or not be used.
    #[error("snapshot")]
    Snapshot(#[source] SnapshotError),
    /// A snapshot of a file system cannot be taken.
    #[error("snapshot of the file system")]
    FileSystemSnapshot(#[source] crate::oci::Error),
    /// A pattern of what is to be left out cannot be understood.
    #[error("the pattern {pattern:?}: {reason}")]
    Exclude {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A host name that cannot be.
    #[error("a host name is 1 to 64 bytes without NUL")]
    Hostname,
    /// A mount that cannot be.
    #[error("mount {tag:?}: {reason}")]
    Mount {
        /// Its tag.
        tag: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A backend that there is not.
    #[error("CC_BACKEND is auto, soft or kvm, not {value}")]
    Backend {
        /// The variable's value.
        value: String,
    },
    /// The host refused something the machine needs.
    #[error("{what}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The [`io::ErrorKind`] closest to this error.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::NotRunning(_) | Self::AlreadyClosed | Self::Panicked { .. } | Self::Died { .. } => {
                io::ErrorKind::NotConnected
            }
            Self::Timeout(_) => io::ErrorKind::TimedOut,
            Self::HypervisorUnavailable { .. } => io::ErrorKind::Unsupported,
            Self::Memory { .. } | Self::Cpus { .. } | Self::Backend { .. } => io::ErrorKind::InvalidInput,
            Self::Boot(_) => io::ErrorKind::Other,
            Self::Snapshot(SnapshotError::Io { source, .. }) => source.kind(),
            Self::Snapshot(_) => io::ErrorKind::InvalidData,
            Self::Root { source, .. } => {
                source.downcast_ref::<io::Error>().map_or(io::ErrorKind::InvalidData, io::Error::kind)
            }
            Self::FileSystemSnapshot(source) => source.kind(),
            Self::Mount { .. } | Self::Exclude { .. } | Self::Hostname => io::ErrorKind::InvalidInput,
            Self::Host { source, .. } => source.kind(),
        }
    }

    /// The error for a machine that ended before its time. `lifetime` is what it had been given.
    pub(super) fn from_ending(ending: Ending, console: String, lifetime: Option<Duration>) -> Self {
        match ending {
            Ending::Timeout => Self::Timeout(lifetime.unwrap_or_default()),
            Ending::Panic { console } => Self::Panicked { console },
            Ending::Stopped => Self::NotRunning(ending.to_string()),
            Ending::Crashed { what, console } => Self::Died { what: format!("the guest {what}"), console },
            other => Self::Died { what: other.to_string(), console },
        }
    }
}

impl From<Error> for io::Error {
    fn from(e: Error) -> Self {
        io::Error::new(e.kind(), e)
    }
}

impl From<BootError> for Error {
    fn from(e: BootError) -> Self {
        match e {
            BootError::MemoryTooSmall { have, need } => Self::Memory {
                mb: have,
                reason: format!("the kernel and its first file system need at least {need} MiB"),
            },
            other => Self::Boot(other),
        }
    }
}

impl From<MachineError> for Error {
    fn from(e: MachineError) -> Self {
        match e {
            MachineError::Boot(e) => e.into(),
            MachineError::Tag(bad) => {
                let reason = bad.to_string();
                Self::Mount { tag: bad.0, reason }
            }
            MachineError::Host(source) => Self::Host { what: "starting the machine", source },
            MachineError::Hypervisor(HypervisorError::Unavailable(why)) => {
                Self::HypervisorUnavailable { reason: why.to_string() }
            }
            MachineError::Hypervisor(why @ HypervisorError::LesserCpu { .. }) => {
                Self::HypervisorUnavailable { reason: why.to_string() }
            }
            other => Self::Host { what: "making the machine", source: io::Error::other(other) },
        }
    }
}
