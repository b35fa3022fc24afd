//! Machines and the host behind one trait.

use crate::fs::Fs;
use crate::net::Net;
use crate::process::Exec;

/// A place with files, programs and sockets: a machine, or the [`Host`](crate::Host). Whatever has all three is one.
///
/// ```no_run
/// use cc::Machine;
///
/// fn greet(on: &impl Machine) -> std::io::Result<String> {
///     on.write("/tmp/name", "there\n")?;
///     let out = on.command("sh").args(["-c", "echo hello $(cat /tmp/name)"]).output()?;
///     on.remove_file("/tmp/name")?;
///     Ok(String::from_utf8_lossy(&out.stdout).into_owned())
/// }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let instance = cc::Instance::new(cc::Source::busybox()?)?;
/// assert_eq!(greet(&cc::Host)?, greet(&instance)?);
/// # Ok(()) }
/// ```
///
/// The methods come from [`Fs`], [`Exec`] and [`Net`]; bringing this trait into scope is enough where it is a bound.
pub trait Machine: Fs + Exec + Net {}

impl<T: Fs + Exec + Net + ?Sized> Machine for T {}
