//! Names of directory entries, checked once at the border.

use std::fmt;
use std::ops::Deref;

use super::Errno;

/// The longest name, in bytes (`NAME_MAX` of Linux).
pub const NAME_MAX: usize = 255;

/// A name that can stand for one entry of a directory: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`.
///
/// Every operation takes this type, so no implementation meets a name that could lead out of a directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// Checks `bytes`.
    ///
    /// # Errors
    /// `ENAMETOOLONG` beyond 255 bytes; `EINVAL` for an empty name, `.`, `..`, or one with `/` or NUL.
    pub fn new(bytes: &'a [u8]) -> Result<Name<'a>, Errno> {
        if bytes.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|&b| b == b'/' || b == 0) {
            return Err(Errno::EINVAL);
        }
        Ok(Name(bytes))
    }

    /// The bytes, without a terminating NUL.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

impl Deref for Name<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b", b"\0"] {
            assert_eq!(Name::new(bad), Err(Errno::EINVAL), "{}", bad.escape_ascii());
        }
        assert_eq!(Name::new(&[b'a'; 256]), Err(Errno::ENAMETOOLONG));
        for good in [&b"a"[..], b"...", b".a", b"a.", b"\xff\xfe", b" ", &[b'a'; 255]] {
            assert_eq!(Name::new(good).map(Name::as_bytes), Ok(good));
        }
    }
}
