//! The host's end of the guest protocol, over any byte stream.
//!
//! - [`protocol`]: the messages, shared with the guest's agent
//! - [`Client`]: one connection: starts commands, asks the agent for things, tells everybody when the
//!   machine is gone
//! - [`Stream`]: one running command as the protocol sees it
//! - [`files`]: operations on the guest's files, done by processes of their own
//! - [`Connection`], [`Listener`], [`Datagrams`]: sockets of the guest
//! - [`BINARY`]: the agent itself, for the initial file system
//!
//! This is the layer below [`crate::process`]; callers of the library have no business here.

mod client;
mod errno;
pub mod files;
pub mod protocol;
mod sockets;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use client::{Client, Helper, Watch};
pub use errno::{guest_error, named, raw_os_error};
pub use sockets::{Connection, Datagrams, Failure, Listener, Name, Place, Until, Waker, look_up};
pub use stream::{Collected, Output, Stream};

/// The guest agent, a static x86-64 Linux program. Empty when the toolchain that built this crate
/// could not build it; see the warnings of the build.
pub static BINARY: &[u8] = include_bytes!(env!("CC_AGENT"));
