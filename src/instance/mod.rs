//! Instances: running machines as callers see them.
//!
//! An [`Instance`] is a machine whose agent answers. It runs until it is closed or dropped, its
//! lifetime is over, or the guest ends it. It can be used from many threads at once; what one does
//! never disturbs another. When it has ended every pending and later operation fails at once.

mod builder;
mod choice;
mod defaults;
mod error;
mod files;
mod fs_snapshot;
mod mount;
mod net;
pub mod place;
mod progress;
mod root;
mod saved;
mod snapshot;
mod source;
mod start;

use std::ffi::{OsStr, OsString};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use builder::InstanceBuilder;
pub use choice::supports_hypervisor;
pub use error::Error;
pub use fs_snapshot::FileSystemSnapshotOptions;
pub use mount::Mount;
pub use progress::Progress;
pub use snapshot::Snapshot;
pub use source::Source;

use crate::agent::{self, Client};
use crate::fs::FileSystem;
use crate::hypervisor::CpuModel;
pub use crate::machine::Backend;
use crate::machine::{Ending, Machine};
use crate::oci::ImageConfig;
use crate::process::{Command, Defaults, Exec};

/// How much longer than the grace it was given a shutdown may take: killing, writing files out.
const SHUTDOWN_SLACK: Duration = Duration::from_secs(30);

/// How long the parts of a start took.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Timing {
    /// Finding the kernel, downloading and unpacking it if need be.
    pub fetch: Duration,
    /// Writing the initial file system, making the machine, laying the kernel into its RAM.
    pub load: Duration,
    /// From the first instruction until commands could run.
    pub boot: Duration,
    /// Whether the machine was restored from a snapshot of an earlier boot.
    pub restored: bool,
}

/// A running machine.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let instance = cc::Instance::new(cc::Source::busybox()?)?;
/// let out = instance.command("echo").arg("hello").output()?;
/// assert_eq!(out.stdout, b"hello\n");
/// # Ok(()) }
/// ```
///
/// Dropping an instance stops its machine. The blocking calls need no async runtime and may be made
/// inside one.
#[derive(Debug)]
pub struct Instance {
    machine: Machine,
    client: Arc<Client>,
    defaults: Arc<Defaults>,
    timing: Timing,
    lifetime: Option<Duration>,
    id: String,
    config: Option<ImageConfig>,
    files: FileSystem,
    /// Why it was not restored.
    booted: Option<String>,
    backend_reason: String,
    closed: AtomicBool,
    /// What the root started from, where that is known.
    origin: Option<fs_snapshot::Origin>,
    /// Held by who has the guest's processes stopped.
    freezing: Mutex<()>,
}

impl Instance {
    /// Starts a machine from `source` with the usual options. See [`InstanceBuilder::start`].
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn new(source: impl Into<Source>) -> Result<Self, Error> {
        Self::builder(source).start()
    }

    /// Options for a machine that starts from `source`.
    pub fn builder(source: impl Into<Source>) -> InstanceBuilder {
        InstanceBuilder::new(source.into())
    }

    fn from_parts(
        machine: Machine,
        client: Arc<Client>,
        defaults: Defaults,
        timing: Timing,
        lifetime: Option<Duration>,
        id: String,
        config: Option<ImageConfig>,
    ) -> Self {
        let closed = AtomicBool::new(false);
        let files = files::file_system(&machine, &client, &defaults);
        Self {
            machine,
            client,
            defaults: Arc::new(defaults),
            timing,
            lifetime,
            id,
            config,
            files,
            booted: None,
            backend_reason: String::new(),
            closed,
            origin: None,
            freezing: Mutex::new(()),
        }
    }

    /// A command to run in the machine. This corresponds to [`std::process::Command::new`].
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        Command::new(self.client.clone(), self.defaults.clone(), program)
    }

    /// The command that the image is made for: its entry point, with `args` or, if there are none, the image's default
    /// arguments. Where the image says nothing, `args` are the command, and `/bin/sh` is if there are none either.
    pub fn entrypoint_command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut words: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        if let Some(config) = &self.config {
            if words.is_empty() {
                words = config.cmd.iter().map(OsString::from).collect();
            }
            words.splice(..0, config.entrypoint.iter().map(OsString::from));
        }
        let mut words = words.into_iter();
        let program = words.next().unwrap_or_else(|| "/bin/sh".into());
        let mut command = self.command(program);
        command.args(words);
        command
    }

    /// What the image says about how its programs are run, if the machine runs from an image.
    pub fn image_config(&self) -> Option<&ImageConfig> {
        self.config.as_ref()
    }

    /// A name for this machine: 16 hexadecimal digits, different for each.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the machine runs on; never [`Backend::Auto`].
    pub fn backend(&self) -> Backend {
        self.machine.platform().backend
    }

    /// Why it runs on that, as a sentence without its full stop; for one restored from a [`Snapshot`] or cloned, the
    /// reason that its builder had.
    pub fn backend_reason(&self) -> &str {
        &self.backend_reason
    }

    /// What the guest's processors are.
    pub fn cpu_model(&self) -> CpuModel {
        self.machine.platform().options.model
    }

    /// How many instructions the software CPU has executed in KVM's stead, see
    /// [`InstanceBuilder::max_refused_instructions`].
    pub fn refused_instructions(&self) -> u64 {
        self.machine.opinions()
    }

    /// How long the parts of the start took.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// Why the machine was booted and not restored from the snapshot of an earlier boot, as a sentence without its full
    /// stop; `None` for one that was restored.
    pub fn boot_reason(&self) -> Option<&str> {
        self.booted.as_deref()
    }

    /// Guest instructions executed so far, where the backend counts them. Brought up to date
    /// whenever the processor leaves guest mode, so pause first for an exact figure.
    pub fn instructions(&self) -> Option<u64> {
        self.machine.instructions()
    }

    /// The end of the console's output: at most 16 KiB.
    pub fn console_tail(&self) -> String {
        self.machine.console().tail()
    }

    /// Whether the machine runs (or is paused).
    pub fn is_running(&self) -> bool {
        self.machine.ending().is_none()
    }

    /// Stops the machine's processors and its time until [`Instance::resume`]. What runs in it does
    /// not notice, but for the wall clock, and operations on it wait.
    ///
    /// # Errors
    /// [`Error::NotRunning`].
    pub fn pause(&self) -> Result<(), Error> {
        self.machine.pause();
        self.running()
    }

    /// Lets a paused machine run on; nothing if it is not paused.
    ///
    /// # Errors
    /// [`Error::NotRunning`].
    pub fn resume(&self) -> Result<(), Error> {
        self.machine.resume();
        self.running()
    }

    /// Waits until the machine ends. `Ok` if it was closed or turned itself off.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Panicked`], [`Error::Died`].
    pub fn wait(&self) -> Result<(), Error> {
        match self.machine.wait(None) {
            None | Some(Ending::Stopped | Ending::PowerOff) => Ok(()),
            Some(ending) => Err(self.error(ending)),
        }
    }

    /// Turns the machine off as its own `poweroff` would: SIGTERM to all processes, after `grace` SIGKILL
    /// to those that are left, file systems written out, power off. Does not wait for the grace to be
    /// over when nothing runs any more. A paused machine runs on for this. Returns when no thread of the
    /// machine is left; `close` and `drop`, in contrast, pull the plug.
    ///
    /// # Errors
    /// [`Error::AlreadyClosed`] and [`Error::NotRunning`] when it has ended before;
    /// [`Error::Timeout`], [`Error::Panicked`], [`Error::Died`] when that is how it ends now. A guest
    /// that takes 30 s longer than `grace` is stopped, which is [`Error::Died`].
    pub fn shutdown(&self, grace: Duration) -> Result<(), Error> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::AlreadyClosed);
        }
        self.running()?;
        self.machine.resume();
        let ending = std::thread::scope(|scope| {
            // A guest that does not listen must not hold up the caller, so another thread talks to it.
            let ask = || self.client.shutdown(agent::protocol::Ending::PowerOff, grace);
            let thread = std::thread::Builder::new().name("cc-shutdown".into()).spawn_scoped(scope, ask);
            let ending = match thread {
                Ok(_) => Ok(self.machine.wait(Some(grace.saturating_add(SHUTDOWN_SLACK)))),
                Err(source) => Err(Error::Host { what: "starting a thread", source }),
            };
            if ending.is_ok() {
                self.stop();
            }
            ending
        })?;
        match ending {
            Some(Ending::Stopped | Ending::PowerOff) => Ok(()),
            Some(ending) => Err(self.error(ending)),
            None => Err(Error::Died {
                what: "the guest did not turn itself off and was stopped".into(),
                console: self.console_tail(),
            }),
        }
    }

    /// Stops the machine. Returns when no thread of it is left.
    ///
    /// # Errors
    /// [`Error::AlreadyClosed`] the second time. A machine that had ended by itself is closed
    /// without an error; [`Instance::wait`] tells how it ended.
    pub fn close(&self) -> Result<(), Error> {
        if self.closed.swap(true, Ordering::SeqCst) {
            return Err(Error::AlreadyClosed);
        }
        self.stop();
        Ok(())
    }

    fn running(&self) -> Result<(), Error> {
        match self.machine.ending() {
            None => Ok(()),
            Some(ending) => Err(Error::NotRunning(ending.to_string())),
        }
    }

    fn error(&self, ending: Ending) -> Error {
        Error::from_ending(ending, self.console_tail(), self.lifetime)
    }

    fn stop(&self) {
        self.machine.stop(Ending::Stopped);
        self.client.join();
    }
}

impl Exec for Instance {
    fn command_named(&self, program: &OsStr) -> Command {
        Instance::command(self, program)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.stop();
    }
}
