//! Commands in the guest, with the names and manners of [`std::process`].
//!
//! A [`Command`] describes a program, [`Command::spawn`] starts it as a [`Child`], and its three
//! standard streams are pipes, `/dev/null`, or this process's own, as [`Stdio`] says. Everything a
//! command is given and everything it writes passes byte for byte. With [`Command::pty`] they are a
//! terminal instead.
//!
//! What the guest's kernel says comes back as [`std::io::Error`]: a program that does not exist is
//! [`NotFound`](std::io::ErrorKind::NotFound), one that may not be executed
//! [`PermissionDenied`](std::io::ErrorKind::PermissionDenied). When the machine ends, whatever waits
//! on one of its commands fails with [`NotConnected`](std::io::ErrorKind::NotConnected); that is never
//! made to look like an exit status.

mod child;
mod command;
mod exec;
mod host;
mod limits;
mod pty;
mod status;
mod stdio;
#[cfg(test)]
mod tests;

pub use child::{Child, ChildStderr, ChildStdin, ChildStdout, Controller};
pub(crate) use command::Defaults;
pub use command::{Command, CommandArgs, CommandEnvs};
pub use exec::Exec;
pub use limits::Resource;
pub use pty::PtySize;
pub use status::{ExitStatus, Output, ResourceUsage};
pub use stdio::Stdio;
