//! Exit statuses and messages.

use std::error::Error;

/// The command line makes no sense (`EX_USAGE`).
pub(crate) const USAGE: u8 = 64;
/// The image cannot be had (`EX_UNAVAILABLE`).
pub(crate) const IMAGE: u8 = 69;
/// The machine failed: it did not start, or ended under its command (`EX_SOFTWARE`).
pub(crate) const MACHINE: u8 = 70;
/// The machine's lifetime was over (`EX_TEMPFAIL`).
pub(crate) const TIMEOUT: u8 = 75;
/// The command is there but cannot be executed, as shells say it.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// There is no such command, as shells say it.
pub(crate) const NOT_FOUND: u8 = 127;

/// Why nothing, or nothing more, was run.
pub(crate) struct Failure {
    pub(crate) status: u8,
    pub(crate) error: Box<dyn Error>,
}

impl Failure {
    pub(crate) fn new(status: u8, error: impl Into<Box<dyn Error>>) -> Self {
        Self { status, error: error.into() }
    }
}

impl From<cc::Error> for Failure {
    fn from(e: cc::Error) -> Self {
        let status = match e {
            cc::Error::Timeout(_) => TIMEOUT,
            _ => MACHINE,
        };
        Self::new(status, e)
    }
}

impl From<cc::oci::Error> for Failure {
    fn from(e: cc::oci::Error) -> Self {
        Self::new(IMAGE, e)
    }
}

/// The error with its causes, in one line as far as they are.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = e.source();
    }
    text
}
