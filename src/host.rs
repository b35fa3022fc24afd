//! The host as a place where things are done, beside instances.

use crate::fs::Fs;
use crate::net::Net;
use crate::process::Exec;

/// This process's own system: [`std::fs`], [`std::process`] and [`std::net`] behind the traits that
/// [`Instance`](crate::Instance) implements too, so that code can be written once for both.
///
/// ```no_run
/// use cc::fs::Fs;
///
/// fn lines(on: &impl Fs) -> std::io::Result<usize> {
///     Ok(on.read_to_string("/etc/passwd")?.lines().count())
/// }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let instance = cc::Instance::new(cc::Source::busybox()?)?;
/// println!("{} here, {} there", lines(&cc::Host)?, lines(&instance)?);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Host;

/// A place with files, programs and sockets: a machine, or the [`Host`]. Whatever has all three is one.
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
