//! Errors of the guest's files: std's kinds, with the guest's errno and what failed.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What failed, on which path, and how. The message says all of it, so there is no source.
#[derive(Debug)]
struct Failure {
    operation: &'static str,
    path: PathBuf,
    second: Option<PathBuf>,
    source: io::Error,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.operation, self.path)?;
        if let Some(second) = &self.second {
            write!(f, " to {second:?}")?;
        }
        write!(f, ": {}", self.source)
    }
}

impl Error for Failure {}

/// Adds to an error what it is about.
pub(super) trait Context<T> {
    fn at(self, operation: &'static str, path: &Path) -> io::Result<T>;
    fn between(self, operation: &'static str, from: &Path, to: &Path) -> io::Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn at(self, operation: &'static str, path: &Path) -> io::Result<T> {
        self.map_err(|source| {
            io::Error::new(source.kind(), Failure { operation, path: path.to_owned(), second: None, source })
        })
    }

    fn between(self, operation: &'static str, from: &Path, to: &Path) -> io::Result<T> {
        self.map_err(|source| {
            let (path, second) = (from.to_owned(), Some(to.to_owned()));
            io::Error::new(source.kind(), Failure { operation, path, second, source })
        })
    }
}

/// The error number of the system that an operation failed on: the guest's, or the host's own.
///
/// An error of a guest's file also says what failed on which path, and std has no room for that beside the number:
/// [`io::Error::raw_os_error`] is `None` then, and this finds it. `None` for errors without a number, such as that the
/// machine has ended.
///
/// ```no_run
/// # fn f(instance: &cc::Instance) {
/// const EXDEV: i32 = 18;
/// match instance.rename("/tmp/a", "/a") {
///     Err(e) if cc::fs::raw_os_error(&e) == Some(EXDEV) => println!("on another file system"),
///     _ => {}
/// }
/// # }
/// ```
pub fn raw_os_error(error: &io::Error) -> Option<i32> {
    if let Some(number) = error.raw_os_error() {
        return Some(number);
    }
    let mut next: Option<&(dyn Error + 'static)> = error.get_ref().map(|e| e as &(dyn Error + 'static));
    while let Some(error) = next {
        let inner = error.downcast_ref::<Failure>().map(|failure| &failure.source);
        if let Some(number) = inner.or(error.downcast_ref::<io::Error>()).and_then(raw_os_error) {
            return Some(number);
        }
        next = error.source();
    }
    None
}
