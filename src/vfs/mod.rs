//! File systems that run in this process and know nothing of machines.
//!
//! [`FileSystem`] is what a FUSE server needs. Behind it:
//! - [`Overlay`]: image layers with a writable upper in memory that spills to an unlinked file; with no layer at all
//!   it is a memory file system.
//! - [`HostDir`]: a directory of the host, confined to it.
//!
//! [`layer`] reads image layers: the uncompressed tar as it is, and an index over it.
//!
//! Errors are Linux's numbers ([`Errno`]) on every host. Names come in checked ([`Name`]), ids and offsets are
//! untrusted, and nothing here panics or grows without a cap because of them.

mod apply;
mod errno;
mod filesystem;
#[cfg(target_os = "linux")]
mod hostdir;
mod io;
pub mod layer;
mod name;
mod overlay;
#[cfg(target_os = "linux")]
pub mod saved;
mod types;

#[cfg(test)]
mod testing;

pub(crate) use apply::apply;
pub use errno::Errno;
pub use filesystem::{DirEntry, DirSink, FileSystem};
#[cfg(target_os = "linux")]
pub use hostdir::{HostDir, HostDirOptions, Ownership};
pub use io::{ReadSink, WriteSource};
pub use name::{NAME_MAX, Name};
pub use overlay::{Limits, Overlay, OverlayError};
pub use types::*;

/// What an operation gives.
pub type Result<T> = std::result::Result<T, Errno>;
