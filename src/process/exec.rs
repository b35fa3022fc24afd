//! Running programs, wherever that is.

use std::ffi::OsStr;
use std::sync::Arc;

use super::Command;
use crate::host::Host;

/// A place where programs run: a machine, or the host. This corresponds to [`std::process`].
///
/// [`Instance`](crate::Instance) and [`Host`] implement it, references and `Arc`s to them. A program that does not know
/// at compile time which it has uses `&dyn Exec` and [`Exec::command_named`].
///
/// ```no_run
/// use cc::process::Exec;
///
/// fn kernel(on: &impl Exec) -> std::io::Result<String> {
///     let out = on.command("uname").arg("-r").output()?;
///     Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
/// }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let instance = cc::Instance::new(cc::Source::busybox()?)?;
/// println!("{} here, {} there", kernel(&cc::Host)?, kernel(&instance)?);
/// # Ok(()) }
/// ```
pub trait Exec {
    /// As [`command`](Exec::command).
    fn command_named(&self, program: &OsStr) -> Command;

    /// A command to run there. This corresponds to [`std::process::Command::new`].
    fn command(&self, program: impl AsRef<OsStr>) -> Command
    where
        Self: Sized,
    {
        self.command_named(program.as_ref())
    }
}

impl Exec for Host {
    fn command_named(&self, program: &OsStr) -> Command {
        Command::on_host(program)
    }
}

impl<T: Exec + ?Sized> Exec for &T {
    fn command_named(&self, program: &OsStr) -> Command {
        (**self).command_named(program)
    }
}

impl<T: Exec + ?Sized> Exec for Arc<T> {
    fn command_named(&self, program: &OsStr) -> Command {
        (**self).command_named(program)
    }
}

impl<T: Exec + ?Sized> Exec for Box<T> {
    fn command_named(&self, program: &OsStr) -> Command {
        (**self).command_named(program)
    }
}
