//! The start of a machine: from the snapshot of an earlier boot if there is one, else by booting.
//!
//! The snapshot is taken when the agent answers and before it is given a root, so that it serves every source. It is
//! only ever a shortcut: whatever is wrong with it, the machine boots.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::builder::InstanceBuilder;
use super::choice;
use super::defaults::defaults;
use super::fs_snapshot::Origin;
use super::root::Root;
use super::source::Kind;
use super::{Error, Instance, Timing};
use crate::agent::{self, Client};
use crate::machine::boot::cmdline::{CommandLine, Console as KernelConsole};
use crate::machine::boot::initramfs;
use crate::machine::boot::loader::{self, Vmlinux};
use crate::machine::boot::provider::Kernel;
use crate::machine::snapshot::{self, Key, KeyBuilder, SnapshotError, Store};
use crate::machine::{
    Board, BoardConfig, Console, Ending, MAX_CPUS, Machine, MachineError, Platform, PowerSwitch, Processor,
};
use crate::memory::GuestRam;
use crate::sys::cache_dir;
use crate::virtio::fs::FsHost;
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
/// A restored agent that has not come back by then never will: the machine boots instead.
const RETURN: Duration = Duration::from_secs(20);
/// The same where the guest's kernel is emulated.
const SLOW_RETURN: Duration = Duration::from_secs(300);

/// How long a restored agent is waited for.
pub(super) fn patience(platform: Platform) -> Duration {
    if platform.options.traps { SLOW_RETURN } else { RETURN }
}

/// What boot and restore have in common.
struct Plan<'a> {
    builder: &'a mut InstanceBuilder,
    platform: Platform,
    kernel: &'a Kernel,
    root: &'a Root,
    memory: u64,
    cpus: u32,
    /// The kernel's command line.
    command_line: String,
    /// That of a boot on this platform, where it has to be another.
    for_booting: String,
}

/// A machine that runs, and where its agent will call.
pub(super) struct Running {
    pub(super) machine: Machine,
    listener: VsockListener,
}

pub(super) fn start(mut builder: InstanceBuilder) -> Result<Instance, Error> {
    if let Kind::Snapshot(snapshot) = &builder.source.kind {
        let snapshot = snapshot.clone();
        return snapshot.start(builder);
    }
    let (platform, backend_reason) = choice::platform(&builder)?;
    let memory = memory_bytes(builder.memory_mb)?;
    let cpus = builder.cpus;
    if !(1..=MAX_CPUS).contains(&cpus) {
        return Err(Error::Cpus { cpus, max: MAX_CPUS });
    }
    let defaults = defaults(builder.source.config(), &builder.overrides);
    let mut root = Root::new(&builder.source, &builder.mounts, builder.hostname.take(), &builder.limits)?;
    root.start_in(defaults.current_dir.as_deref());

    let begin = Instant::now();
    let kernel = builder.progress.during(|report| builder.provider.kernel(report))?;
    let fetch = begin.elapsed();
    let mut command_line = CommandLine::new(KernelConsole::Serial);
    command_line.dmesg = builder.dmesg;
    command_line.extra = std::mem::take(&mut builder.kernel_arguments);
    let for_booting = CommandLine { emulated: platform.options.traps, ..command_line.clone() }.build()?;
    let command_line = command_line.build()?;

    let snapshots = snapshots(&builder);
    let (lifetime, config) = (builder.timeout, builder.source.config().cloned());
    let origin = Origin::new(&builder.source, builder.provider.cache_dir().or_else(cache_dir::of_user));
    let mut plan = Plan {
        builder: &mut builder,
        platform,
        kernel: &kernel,
        root: &root,
        memory,
        cpus,
        command_line,
        for_booting,
    };
    let key = plan.key();
    let mut restored = match &snapshots {
        Ok(store) => plan.try_restore(store, &key)?,
        Err(reason) => Err((*reason).to_owned()),
    };
    if let (Err(reason), Ok(store), true) = (&restored, &snapshots, platform.options.traps) {
        tracing::debug!(reason, "the software CPU boots it");
        plan.boot_elsewhere(store, &key, lifetime)?;
        restored = plan.try_restore(store, &key)?;
    }
    let booted = restored.as_ref().err().cloned();
    let (machine, client, load, started) = match restored {
        Ok(done) => done,
        Err(reason) => {
            tracing::debug!(reason, "the machine boots");
            let begin = Instant::now();
            let running = plan.boot()?;
            let started = Instant::now();
            let client = running.client(None, lifetime)?;
            // A kernel that has booted on an emulating hypervisor knows features that no other host has.
            if let Ok(store) = &snapshots
                && !platform.options.traps
            {
                leave(store, &key, &running.machine);
            }
            (running.machine, client, started - begin, started)
        }
    };
    tell_end(&machine, &client);
    let was_restored = booted.is_none();
    root.enter(&client, was_restored).map_err(|e| fail(&machine, e, lifetime))?;
    let timing = Timing { fetch, load, boot: started.elapsed(), restored: was_restored };
    tracing::debug!(?timing, release = kernel.release, "machine started");
    let mut instance = Instance::from_parts(machine, client, defaults, timing, lifetime, root.id, config);
    (instance.booted, instance.origin) = (booted, origin);
    instance.backend_reason = backend_reason;
    Ok(instance)
}

/// Where snapshots of boots are, or why this machine does not use them.
fn snapshots(builder: &InstanceBuilder) -> Result<Store, &'static str> {
    if !builder.boot_snapshot {
        return Err("snapshots of boots are turned off");
    }
    if builder.dmesg || builder.console.is_some() {
        return Err("its boot is to be seen on the console");
    }
    if let Some(dir) = &builder.snapshot_dir {
        return Ok(Store::at(dir));
    }
    let cache = builder.provider.cache_dir().or_else(cache_dir::of_user);
    Ok(Store::at(cache.ok_or("there is no cache directory")?.join("snapshots")))
}

/// Why a snapshot of a boot is of no use, with all causes.
fn reason(e: &dyn std::error::Error) -> String {
    let mut text = format!("the snapshot of an earlier boot cannot be used: {e}");
    let mut next = e.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

/// Leaves a snapshot of the machine for later starts. It is of use to others only, so no failure is this machine's.
fn leave(store: &Store, key: &Key, machine: &Machine) {
    let begin = Instant::now();
    let result = store.draft().and_then(|draft| {
        snapshot::capture(machine, &draft)?;
        store.publish(key, draft)
    });
    match result {
        Ok(()) => tracing::debug!(time = ?begin.elapsed(), "snapshot of the boot taken"),
        Err(e) => tracing::warn!(error = &e as &dyn std::error::Error, "no snapshot of the boot"),
    }
}

/// Has everything that waits on the guest told why the machine ended.
pub(super) fn tell_end(machine: &Machine, client: &Arc<Client>) {
    let told = client.clone();
    machine.on_end(move |ending| {
        let kind = match ending {
            Ending::Timeout => std::io::ErrorKind::TimedOut,
            _ => std::io::ErrorKind::NotConnected,
        };
        told.set_cause(kind, ending.to_string());
    });
}

pub(super) fn fail(machine: &Machine, source: std::io::Error, lifetime: Option<Duration>) -> Error {
    match machine.wait(Some(Duration::ZERO)) {
        Some(ending) => Error::from_ending(ending, machine.console().tail(), lifetime),
        None => Error::Host { what: "connecting to the guest's agent", source },
    }
}

type Started = (Machine, Arc<Client>, Duration, Instant);

impl Plan<'_> {
    /// What makes this machine another machine, before it has a root.
    fn key(&self) -> Key {
        let kernel = match &self.kernel.vmlinux {
            Vmlinux::Bytes(bytes) => bytes.to_vec(),
            // A file that is changed has another time or length, or is another inode.
            Vmlinux::File(path) => match std::fs::metadata(path) {
                Ok(m) => format!("{} {} {:?}", path.display(), m.len(), m.modified().ok()).into_bytes(),
                Err(_) => Vec::new(),
            },
        };
        KeyBuilder::default()
            .part("kernel", &kernel)
            .part("release", self.kernel.release.as_bytes())
            .part("modules", MODULES.join(" ").as_bytes())
            .part("agent", agent::BINARY)
            .part("command line", self.command_line.as_bytes())
            .part("processor", self.platform.options.model.name().as_bytes())
            .part("memory", &self.memory.to_le_bytes())
            .part("processors", &self.cpus.to_le_bytes())
            .part("file systems", self.root.tags().join("\n").as_bytes())
            .build()
    }

    /// The machine from its snapshot, with an agent that answers, or why it has to boot; only the end of its lifetime is
    /// an error.
    fn try_restore(&mut self, store: &Store, key: &Key) -> Result<Result<Started, String>, Error> {
        let Some(place) = store.find(key) else {
            return Ok(Err(format!(
                "no earlier boot of this kernel with {} MiB, {} processors and {} file systems by this version is in {}",
                self.memory >> 20,
                self.cpus,
                self.root.tags().len(),
                store.dir().display()
            )));
        };
        let begin = Instant::now();
        let attempt = snapshot::restore(&place, self.memory, self.cpus).and_then(|restored| {
            let verified = begin.elapsed();
            let running = self.restore(restored)?;
            tracing::debug!(?verified, made = ?(begin.elapsed() - verified), "machine restored");
            Ok(running)
        });
        let running = match attempt {
            Ok(running) => running,
            Err(e) => {
                tracing::warn!(error = &e as &dyn std::error::Error, "snapshot of the boot not used");
                store.remove(key);
                return Ok(Err(reason(&e)));
            }
        };
        let (load, started) = (begin.elapsed(), Instant::now());
        match running.client(Some(patience(self.platform)), self.builder.timeout) {
            Ok(client) => {
                tracing::debug!(time = ?started.elapsed(), "agent is back");
                Ok(Ok((running.machine, client, load, started)))
            }
            // Its time was over; a boot would take longer.
            Err(e @ Error::Timeout(_)) => Err(e),
            Err(e) => {
                tracing::warn!(error = &e as &dyn std::error::Error, "restored machine does not answer");
                store.remove(key);
                Ok(Err(reason(&e)))
            }
        }
    }

    fn restore(&mut self, restored: snapshot::Restored) -> Result<Running, SnapshotError> {
        let root = self.root;
        let serve = |devices: &[FsHost]| {
            root.serve(devices);
            Ok(())
        };
        restore(self.builder, self.platform, restored, root.tags(), serve)
    }

    /// Leaves the snapshot of a boot on the software CPU, for a platform on which booting takes minutes.
    fn boot_elsewhere(&mut self, store: &Store, key: &Key, lifetime: Option<Duration>) -> Result<(), Error> {
        let there = (self.platform, self.for_booting.clone());
        self.platform = Platform::default().with_model(there.0.options.model);
        self.for_booting.clone_from(&self.command_line);
        let booted = self.boot().and_then(|running| {
            running.client(None, lifetime)?;
            leave(store, key, &running.machine);
            Ok(())
        });
        (self.platform, self.for_booting) = there;
        booted
    }

    fn boot(&mut self) -> Result<Running, Error> {
        let modules = self.kernel.modules.resolve(MODULES)?;
        let contents =
            initramfs::Contents { agent: agent::BINARY, release: &self.kernel.release, modules: &modules };
        let initramfs = initramfs::build(&contents)?;
        let ram = GuestRam::new(self.memory).map_err(MachineError::from)?;
        let (board, console, power) = board(self.builder, ram, self.cpus, self.root.tags())?;
        self.root.serve(board.file_systems());
        let state = loader::load(
            board.ram(),
            &loader::Boot {
                kernel: &self.kernel.vmlinux,
                initramfs: &initramfs,
                command_line: &self.for_booting,
                machine: board.description(),
            },
        )?;
        let listener = listen(&board)
            .map_err(|source| Error::Host { what: "listening for the guest's agent", source })?;
        let vcpus = [Some(Processor { state, lapic: None })];
        let lifetime = self.builder.timeout;
        let machine = Machine::start(board, self.platform, &vcpus, console, &power, lifetime, |_| Ok(()))?;
        Ok(Running { machine, listener })
    }
}

fn board(
    builder: &mut InstanceBuilder,
    ram: Arc<GuestRam>,
    cpus: u32,
    file_systems: Vec<String>,
) -> Result<(Board, Console, PowerSwitch), MachineError> {
    let console = Console::new();
    let power = PowerSwitch::default();
    let output = match builder.console.take() {
        None if builder.dmesg => Some(Box::new(std::io::stderr()) as Box<dyn Write + Send>),
        given => given,
    };
    let board = Board::new(BoardConfig {
        ram,
        cpus,
        guest_cid: GUEST_CID,
        serial: console.writer(output),
        console: Box::new(std::io::sink()),
        file_systems,
        power: power.callback(),
    })?;
    Ok((board, console, power))
}

/// Makes a machine of `restored` with these file systems, which `serve` puts behind their devices, and lets it run.
pub(super) fn restore(
    builder: &mut InstanceBuilder,
    platform: Platform,
    restored: snapshot::Restored,
    file_systems: Vec<String>,
    serve: impl FnOnce(&[FsHost]) -> std::io::Result<()>,
) -> Result<Running, SnapshotError> {
    let (board, console, power) = board(builder, restored.ram.clone(), restored.cpus(), file_systems)?;
    let listener = listen(&board).map_err(MachineError::Host)?;
    let vcpus = restored.vcpus().to_vec();
    let platform = platform.with_model(restored.model());
    let mut applied = Ok(());
    let prepare = |board: &Board| {
        serve(board.file_systems())?;
        applied = restored.apply(board);
        match applied {
            Ok(()) => Ok(()),
            Err(_) => Err(MachineError::Host(std::io::ErrorKind::InvalidData.into())),
        }
    };
    let started = Machine::start(board, platform, &vcpus, console, &power, builder.timeout, prepare);
    applied?;
    Ok(Running { machine: started?, listener })
}

/// The listener is there before the guest can connect.
fn listen(board: &Board) -> std::io::Result<VsockListener> {
    board.vsock().listen(AGENT_PORT)
}

impl Running {
    /// Waits for the agent, at most `timeout`, and greets it.
    pub(super) fn client(
        &self,
        timeout: Option<Duration>,
        lifetime: Option<Duration>,
    ) -> Result<Arc<Client>, Error> {
        let failed = |e| fail(&self.machine, e, lifetime);
        let stream = self.listener.accept(timeout).map_err(failed)?;
        let reader = stream.try_clone().map_err(failed)?;
        Client::connect(reader, stream, GREETING).map_err(failed)
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
