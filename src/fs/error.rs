//! Errors of files: std's kinds, with what failed and on which path.

use std::io;
use std::path::Path;

use crate::agent::named;

/// Adds to an error what it is about.
pub(super) trait Context<T> {
    fn at(self, operation: &'static str, path: &Path) -> io::Result<T>;
    fn between(self, operation: &'static str, from: &Path, to: &Path) -> io::Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn at(self, operation: &'static str, path: &Path) -> io::Result<T> {
        self.map_err(|source| named(format_args!("{operation} {path:?}"), source))
    }

    fn between(self, operation: &'static str, from: &Path, to: &Path) -> io::Result<T> {
        self.map_err(|source| named(format_args!("{operation} {from:?} to {to:?}"), source))
    }
}
