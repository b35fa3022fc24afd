//! Errors that say what was being done, and to whom.

use std::fmt;
use std::io;

/// An operation, what it concerned, and why it failed. The message says all of it, so there is no
/// source.
#[derive(Debug)]
struct Named {
    operation: &'static str,
    subject: String,
    source: io::Error,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.operation, self.subject, self.source)
    }
}

impl std::error::Error for Named {}

/// Puts a name to an error. Its kind stays.
pub(super) fn named(operation: &'static str, subject: impl fmt::Display, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), Named { operation, subject: subject.to_string(), source })
}

/// The error number of the operating system — the guest's where the operation was in a guest — behind an
/// error of this module, which [`io::Error::raw_os_error`] does not see when the error has more to say.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let instance = cc::Instance::new(cc::Source::busybox()?)?;
/// let error = instance.connect_tcp("127.0.0.1:1").unwrap_err();
/// assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
/// assert_eq!(cc::net::raw_os_error(&error), Some(111));
/// # Ok(()) }
/// ```
pub fn raw_os_error(error: &io::Error) -> Option<i32> {
    let named = || error.get_ref()?.downcast_ref::<Named>()?.source.raw_os_error();
    error.raw_os_error().or_else(named)
}
