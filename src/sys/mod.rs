//! Seams to the host operating system: what differs from one host to the next lives here.

pub mod cache_dir;
pub(crate) mod child;
pub mod clock;
#[cfg(unix)]
pub(crate) mod input;
#[cfg(not(unix))]
#[path = "input_unsupported.rs"]
pub(crate) mod input;
#[cfg(target_os = "linux")]
pub(crate) mod kick;
pub(crate) mod mapped;
pub mod memory;
pub mod random;
pub(crate) mod sockets;

/// Whether this process may give files of the host to anybody.
#[cfg(unix)]
pub fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this process may give files of the host to anybody.
#[cfg(not(unix))]
pub fn is_privileged() -> bool {
    false
}
