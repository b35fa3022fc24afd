//! The host as a place where things are done, beside instances.

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
