//! How a machine ended.

use std::fmt;

/// Why a machine does not run any more.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// Stopped from outside.
    Stopped,
    /// Its lifetime was over.
    Timeout,
    /// The guest turned it off.
    PowerOff,
    /// The guest reset it.
    Reset,
    /// The guest's kernel panicked; with the end of what it printed.
    Panic {
        /// The last kilobytes of console output.
        console: String,
    },
    /// The guest faulted while handling a double fault, or halted with interrupts disabled, before
    /// anything else was known.
    Crashed {
        /// What the processor did.
        what: &'static str,
        /// The last kilobytes of console output.
        console: String,
    },
    /// The backend failed.
    Backend(String),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("the machine was stopped"),
            Self::Timeout => f.write_str("the machine's lifetime was over"),
            Self::PowerOff => f.write_str("the guest turned the machine off"),
            Self::Reset => f.write_str("the guest reset the machine"),
            Self::Panic { console } => write!(f, "the guest kernel panicked; its console ends:\n{console}"),
            Self::Crashed { what, console } => write!(f, "the guest {what}; its console ends:\n{console}"),
            Self::Backend(error) => write!(f, "the hypervisor backend failed: {error}"),
        }
    }
}
