//! The options of a machine, and its start.

use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::defaults::Overrides;
use super::progress::{Progress, Sink};
use super::{Backend, Error, Instance, Mount, Source, start};
use crate::hypervisor::CpuModel;
use crate::machine::boot::provider::Provider;
use crate::vfs::Limits;

/// Options of a machine. Made by [`Instance::builder`].
#[must_use = "a builder does nothing until `start`"]
pub struct InstanceBuilder {
    pub(super) source: Source,
    pub(super) memory_mb: u64,
    pub(super) cpus: u32,
    pub(super) timeout: Option<Duration>,
    pub(super) dmesg: bool,
    pub(super) kernel_arguments: Vec<String>,
    pub(super) backend: Backend,
    pub(super) require_hardware: bool,
    pub(super) cpu_model: Option<CpuModel>,
    pub(super) opinions: u64,
    pub(super) console: Option<Box<dyn Write + Send>>,
    pub(super) provider: Provider,
    pub(super) progress: Sink,
    pub(super) hostname: Option<String>,
    pub(super) mounts: Vec<Mount>,
    pub(super) limits: Limits,
    pub(super) overrides: Overrides,
    pub(super) boot_snapshot: bool,
    pub(super) snapshot_dir: Option<PathBuf>,
}

impl std::fmt::Debug for InstanceBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InstanceBuilder")
            .field("source", &self.source)
            .field("memory_mb", &self.memory_mb)
            .field("cpus", &self.cpus)
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
            cpus: 1,
            timeout: None,
            dmesg: false,
            kernel_arguments: Vec::new(),
            backend: Backend::Auto,
            require_hardware: false,
            cpu_model: None,
            opinions: u64::MAX,
            console: None,
            provider: Provider::new(),
            progress: Sink::Terminal,
            hostname: None,
            mounts: Vec::new(),
            limits: Limits::default(),
            overrides: Overrides::default(),
            boot_snapshot: std::env::var_os("CC_BOOT_SNAPSHOT").is_none_or(|v| v != "never"),
            snapshot_dir: None,
        }
    }

    /// RAM of the machine in MiB; 256 unless said otherwise. Host memory is taken only as the guest
    /// touches it.
    pub fn memory_mb(mut self, mb: u64) -> Self {
        self.memory_mb = mb;
        self
    }

    /// Number of processors, 1 to 32; 1 unless said otherwise. Each is a thread of this process, so more than the host
    /// has are slower, not faster. A machine from a [`Snapshot`](super::Snapshot) has as many as that was taken of.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
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

    /// Runs on this backend. [`Backend::Auto`] unless said otherwise, which the environment variable `CC_BACKEND` may
    /// make another.
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// What the guest's processors are: unless said otherwise, the richest model that the backend has here. A snapshot
    /// can be restored wherever its machine's model is to be had; [`CpuModel::Minimal`] is nearly everywhere. One
    /// restored from a snapshot has the snapshot's.
    pub fn cpu_model(mut self, model: CpuModel) -> Self {
        self.cpu_model = Some(model);
        self
    }

    /// Where [`Backend::Kvm`] is insisted on and KVM refuses an instruction of the guest's kernel (it does where it has
    /// to emulate it), the software CPU executes that one instruction: at most `max` times, then the machine ends.
    /// Without limit unless said otherwise.
    pub fn max_refused_instructions(mut self, max: u64) -> Self {
        self.opinions = max;
        self
    }

    /// Refuses to run where hardware virtualization does not run a kernel at the processor's speed.
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

    /// Whether the machine may start from a snapshot that was taken after an earlier boot of the same kernel with the
    /// same options, and leave one. It may, unless said otherwise here or by `CC_BOOT_SNAPSHOT=never`. A machine whose
    /// console is looked at ([`InstanceBuilder::dmesg`], [`InstanceBuilder::console`]) always boots.
    pub fn boot_snapshot(mut self, on: bool) -> Self {
        self.boot_snapshot = on;
        self
    }

    /// Keeps snapshots of boots here instead of below the cache directory. Each takes some 100 MB; the eight used last
    /// are kept.
    pub fn snapshot_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.snapshot_dir = Some(path.into());
        self
    }

    /// Starts the machine and returns when commands can run in it.
    ///
    /// # Errors
    /// Any [`Error`]: no kernel to be had, options that cannot be met, a guest that panics, dies or
    /// outlives its timeout before it is ready.
    pub fn start(self) -> Result<Instance, Error> {
        start::start(self)
    }
}
