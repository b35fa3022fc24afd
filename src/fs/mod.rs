//! Files of the guest, with the names and manners of [`std::fs`].
//!
//! What [`std::fs`] has as functions are methods of an [`Instance`](crate::Instance), and the same of the trait [`Fs`],
//! which [`Host`](crate::Host) implements too. Types have std's names: [`File`], [`OpenOptions`], [`Metadata`],
//! [`ReadDir`].
//!
//! ```no_run
//! use std::io::Write;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let instance = cc::Instance::new(cc::Source::busybox()?)?;
//! instance.create_dir_all("/srv/app")?;
//! instance.write("/srv/app/hello.sh", "echo hello\n")?;
//! let mut log = instance.open_options().append(true).create(true).open("/srv/app/log")?;
//! writeln!(log, "made")?;
//! for entry in instance.read_dir("/srv/app")? {
//!     println!("{}", entry?.path().display());
//! }
//! # Ok(()) }
//! ```
//!
//! # Where it happens
//!
//! Everything is done *in the guest*, by its root user, as if std were called there: `/proc` is the guest's, symbolic
//! links lead where they lead there, `/tmp` is its memory. Relative paths begin where the machine's commands do. The
//! mode of what is made is cut by a umask of 022. Nothing the guest does can reach the host through these calls; the
//! host's paths are named by the caller alone ([`Fs::copy_in`], [`Fs::copy_out`]).
//!
//! A call takes one round trip to the guest. Calls that wait (a pipe's other end, a lock) hold up nobody but their
//! caller; they end when the machine does, with [`NotConnected`](std::io::ErrorKind::NotConnected).
//!
//! # Errors
//!
//! Kinds are std's. The message names operation and path, and [`raw_os_error`] has the guest's errno.
//! [`BrokenPipe`](std::io::ErrorKind::BrokenPipe) says that something in the guest killed the process that did the work
//! or held the file open.

mod bulk;
mod dir;
mod error;
mod file;
mod guest;
mod host;
mod metadata;
mod operations;
mod options;
mod system;
mod temp;
#[cfg(test)]
mod tests;
mod transfer;

pub use crate::agent::raw_os_error;
pub use dir::{DirEntry, ReadDir};
pub use file::File;
pub use metadata::{FileTimes, FileType, Metadata, Permissions};
pub use operations::Fs;
pub(crate) use operations::operations;
pub use options::{DirBuilder, OpenOptions};
pub use system::FileSystem;
pub use temp::TempDir;
