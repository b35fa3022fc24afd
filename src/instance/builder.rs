//! The options of a machine, and its start.

use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::defaults::{Overrides, defaults};
use super::progress::{Progress, Sink};
use super::root::Root;
use super::{Backend, Error, Instance, Mount, Source, Timing};
use crate::agent::{self, Client};
use crate::machine::boot::cmdline::{CommandLine, Console as KernelConsole};
use crate::machine::boot::provider::{Kernel, Provider};
use crate::machine::boot::{initramfs, loader};
use crate::machine::{Board, BoardConfig, Console, Ending, Machine, PowerSwitch};
use crate::vfs::Limits;
use crate::virtio::vsock::VsockListener;

/// The modules that every machine's kernel needs, where they are not built in.
const MODULES: &[&str] =
    &["virtio_mmio", "vmw_vsock_virtio_transport", "virtio_rng", "virtio_console", "virtiofs"];
/// The host's port that the agent connects to.
const AGENT_PORT: u32 = 1024;
/// Context ID of the guest. Each machine has sockets of its own, so all can have the same.
const GUEST_CID: u32 = 3;
/// How long an agent that has connected may take to greet.
const GREETING: Duration = Duration::from_secs(60);

/// Options of a machine. Made by [`Instance::builder`].
#[must_use = "a builder does nothing until `start`"]
pub struct InstanceBuilder {
    source: Source,
    memory_mb: u64,
    timeout: Option<Duration>,
    dmesg: bool,
    kernel_arguments: Vec<String>,
    backend: Backend,
    require_hardware: bool,
    console: Option<Box<dyn Write + Send>>,
    provider: Provider,
    progress: Sink,
    hostname: Option<String>,
    mounts: Vec<Mount>,
    limits: Limits,
    overrides: Overrides,
}

impl std::fmt::Debug for InstanceBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InstanceBuilder")
            .field("source", &self.source)
            .field("memory_mb", &self.memory_mb)
            .field("timeout", &self.timeout)
            .field("backend", &self.backend)
            .finish_non_exhaustive()
    }
}

impl InstanceBuilder {
    pub(super) fn new(source: Source) -> Self {
        Self {
            source,
            memory_mb: 256,
            timeout: None,
            dmesg: false,
            kernel_arguments: Vec::new(),
            backend: Backend::Auto,
            require_hardware: false,
            console: None,
            provider: Provider::new(),
            progress: Sink::Terminal,
            hostname: None,
            mounts: Vec::new(),
            limits: Limits::default(),
            overrides: Overrides::default(),
        }
    }

    /// RAM of the machine in MiB; 256 unless said otherwise. Host memory is taken only as the guest
    /// touches it.
    pub fn memory_mb(mut self, mb: u64) -> Self {
        self.memory_mb = mb;
        self
    }

    /// The longest the machine may live, counted from its start and not while it is paused. Then it
    /// is stopped whatever it does, and everything that waits on it fails with
    /// [`io::ErrorKind::TimedOut`](std::io::ErrorKind::TimedOut). No limit unless said otherwise.
    pub fn timeout(mut self, lifetime: Duration) -> Self {
        self.timeout = Some(lifetime);
        self
    }

    /// Has the kernel print all its messages to the console, which is standard error unless
    /// [`InstanceBuilder::console`] says otherwise.
    pub fn dmesg(mut self, on: bool) -> Self {
        self.dmesg = on;
        self
    }

    /// Writes the console's output (kernel messages) here, from a thread of the machine's. A writer
    /// that is slow loses output beyond 1 MiB; it never holds the guest up.
    pub fn console(mut self, writer: impl Write + Send + 'static) -> Self {
        self.console = Some(Box::new(writer));
        self
    }

    /// The guest's host name, at most 64 bytes. `cc-` and part of the instance's id unless said otherwise.
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.hostname = Some(name.into());
        self
    }

    /// The user of commands that do not name another, instead of the image's: `user`, `user:group`, names or numbers,
    /// looked up in the guest.
    pub fn user(mut self, user: impl AsRef<OsStr>) -> Self {
        self.overrides.user = Some(user.as_ref().to_owned());
        self
    }

    /// Sets an environment variable of all commands.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.overrides.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The directory that commands start in, instead of the image's. It is made if it is not there.
    pub fn current_dir(mut self, dir: impl AsRef<OsStr>) -> Self {
        self.overrides.current_dir = Some(dir.as_ref().to_owned());
        self
    }

    /// Adds a file system besides the root.
    pub fn mount(mut self, mount: Mount) -> Self {
        self.mounts.push(mount);
        self
    }

    /// Bounds of what the guest may write to its root, and again to each empty mount; see [`Limits`]. What is beyond
    /// is refused in the guest with `ENOSPC`.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Boots this kernel: a bzImage or vmlinux file, or a directory that holds one and its modules.
    /// Unless given here or in `CC_KERNEL`, a stock distribution kernel is fetched and cached.
    pub fn kernel(mut self, path: impl Into<PathBuf>) -> Self {
        self.provider = self.provider.with_kernel(path);
        self
    }

    /// Asks for a kernel version, a prefix of the release name such as `6.12`.
    pub fn kernel_version(mut self, version: impl Into<String>) -> Self {
        self.provider = self.provider.with_version(version);
        self
    }

    /// Adds an argument to the kernel's command line, after ours.
    pub fn kernel_argument(mut self, argument: impl Into<String>) -> Self {
        self.kernel_arguments.push(argument.into());
        self
    }

    /// Finds kernel and userland as `provider` says instead of the usual way. Resets what
    /// [`InstanceBuilder::kernel`] and its kin have set.
    pub fn provider(mut self, provider: Provider) -> Self {
        self.provider = provider;
        self
    }

    /// Runs on this backend. [`Backend::Auto`] unless said otherwise.
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// Refuses to run on the software CPU.
    pub fn require_hardware(mut self, on: bool) -> Self {
        self.require_hardware = on;
        self
    }

    /// Keeps kernels and userlands here. Unless given here or in `CC_CACHE_DIR`, they are kept in
    /// the user's cache directory.
    pub fn cache_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.provider = self.provider.with_cache_dir(path);
        self
    }

    /// Reports progress of downloads here instead of showing a bar on the terminal.
    pub fn progress(mut self, callback: impl Fn(Progress<'_>) + Send + Sync + 'static) -> Self {
        self.progress = Sink::Callback(Arc::new(callback));
        self
    }

    /// Starts the machine and returns when commands can run in it.
    ///
    /// # Errors
    /// Any [`Error`]: no kernel to be had, options that cannot be met, a guest that panics, dies or
    /// outlives its timeout before it is ready.
    pub fn start(mut self) -> Result<Instance, Error> {
        if self.require_hardware {
            return Err(Error::HypervisorUnavailable {
                reason: "this version runs on the software CPU only".into(),
            });
        }
        let memory = memory_bytes(self.memory_mb)?;
        let defaults = defaults(self.source.config(), &self.overrides);
        let mut root = Root::new(&self.source, &self.mounts, self.hostname.take(), &self.limits)?;
        root.start_in(defaults.current_dir.as_deref());

        let begin = Instant::now();
        let kernel = self.progress.during(|report| self.provider.kernel(report))?;
        let fetched = Instant::now();
        let (machine, listener) = self.machine(memory, &kernel, &root)?;
        let loaded = Instant::now();

        let fail = |machine: &Machine, source: std::io::Error| match machine.wait(Some(Duration::ZERO)) {
            Some(ending) => Error::from_ending(ending, machine.console().tail(), self.timeout),
            None => Error::Host { what: "connecting to the guest's agent", source },
        };
        let stream = listener.accept(None).map_err(|e| fail(&machine, e))?;
        let reader = stream.try_clone().map_err(|e| fail(&machine, e))?;
        let client = Client::connect(reader, stream, GREETING).map_err(|e| fail(&machine, e))?;
        let told = client.clone();
        machine.on_end(move |ending| {
            let kind = match ending {
                Ending::Timeout => std::io::ErrorKind::TimedOut,
                _ => std::io::ErrorKind::NotConnected,
            };
            told.set_cause(kind, ending.to_string());
        });
        root.enter(&client).map_err(|e| fail(&machine, e))?;
        let timing = Timing { fetch: fetched - begin, load: loaded - fetched, boot: loaded.elapsed() };
        tracing::debug!(?timing, release = kernel.release, "machine started");
        let config = self.source.config().cloned();
        Ok(Instance::from_parts(machine, client, defaults, timing, self.timeout, root.id, config))
    }

    /// Makes the machine and lets it run. The listener is there before the guest can connect.
    fn machine(
        &mut self,
        memory: u64,
        kernel: &Kernel,
        root: &Root,
    ) -> Result<(Machine, VsockListener), Error> {
        let modules = kernel.modules.resolve(MODULES)?;
        let contents =
            initramfs::Contents { agent: agent::BINARY, release: &kernel.release, modules: &modules };
        let initramfs = initramfs::build(&contents)?;
        let mut command_line = CommandLine::new(KernelConsole::Serial);
        command_line.dmesg = self.dmesg;
        command_line.extra = std::mem::take(&mut self.kernel_arguments);
        let command_line = command_line.build()?;

        let console = Console::new();
        let power = PowerSwitch::default();
        let output = match self.console.take() {
            None if self.dmesg => Some(Box::new(std::io::stderr()) as Box<dyn Write + Send>),
            given => given,
        };
        let board = Board::new(BoardConfig {
            memory,
            cpus: 1,
            guest_cid: GUEST_CID,
            serial: console.writer(output),
            console: Box::new(std::io::sink()),
            file_systems: root.tags(),
            power: power.callback(),
        })?;
        root.serve(board.file_systems());
        let state = loader::load(
            board.ram(),
            &loader::Boot {
                kernel: &kernel.vmlinux,
                initramfs: &initramfs,
                command_line: &command_line,
                machine: board.description(),
            },
        )?;
        let listener = board
            .vsock()
            .listen(AGENT_PORT)
            .map_err(|source| Error::Host { what: "listening for the guest's agent", source })?;
        let machine = Machine::start(board, &state, console, &power, self.timeout)?;
        Ok((machine, listener))
    }
}

fn memory_bytes(mb: u64) -> Result<u64, Error> {
    let refused = |reason: String| Error::Memory { mb, reason };
    if mb == 0 {
        return Err(refused("a machine needs some".into()));
    }
    let bytes = mb.checked_mul(1 << 20).ok_or_else(|| refused("that is beyond the address space".into()))?;
    match crate::sys::memory::total() {
        Some(total) if bytes > total => Err(refused(format!("the host has {} MiB", total >> 20))),
        _ => Ok(bytes),
    }
}
