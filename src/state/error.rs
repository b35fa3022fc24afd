//! Why saved state is refused.

use super::kind::name;

/// Why saved state cannot be used, or not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// It ends before its end.
    #[error("saved state is truncated")]
    Truncated,
    /// It is something else.
    #[error("not a saved state")]
    NotState,
    /// Its container is of another format.
    #[error(
        "saved state has format {found}, this version reads {}; take a new snapshot",
        super::container::FORMAT
    )]
    Format {
        /// The format it has.
        found: u32,
    },
    /// Its bytes are not those that were written.
    #[error("saved state is damaged: its checksum does not match")]
    Checksum,
    /// A section is of a version that this version of the crate does not read.
    #[error("saved state of the {} (kind {kind}) has version {found}, this version reads {expected}; take a new snapshot", name(*.kind))]
    Version {
        /// The section's kind.
        kind: u16,
        /// The version it has.
        found: u16,
        /// The version that is read.
        expected: u16,
    },
    /// A section that is needed is not there.
    #[error("saved state has no section for the {} (kind {kind})", name(*.kind))]
    Missing {
        /// The kind that is missing.
        kind: u16,
    },
    /// A section that nobody asked for, or one that is there twice.
    #[error("saved state has an unexpected section for the {} (kind {kind})", name(*.kind))]
    Unexpected {
        /// The kind that is too many.
        kind: u16,
    },
    /// Values that no machine of this crate can have.
    #[error("saved state is invalid: {what}")]
    Invalid {
        /// What is wrong.
        what: &'static str,
    },
    /// It is larger than any saved state is.
    #[error("saved state is too large")]
    TooLarge,
}

impl StateError {
    /// [`StateError::Invalid`] unless `valid`.
    pub(crate) fn unless(valid: bool, what: &'static str) -> Result<(), Self> {
        if valid { Ok(()) } else { Err(Self::Invalid { what }) }
    }
}
