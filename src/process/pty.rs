//! The terminal a command can be given.

/// The size of a terminal, in character cells. Has no twin in std, which knows no terminals.
///
/// See [`Command::pty`](super::Command::pty).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PtySize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

impl Default for PtySize {
    /// 24 lines of 80 characters.
    fn default() -> Self {
        PtySize { rows: 24, cols: 80 }
    }
}
