//! Snapshots of running machines, and clones.
//!
//! A snapshot is held in this process: its memory in a file without a name, which all machines that start from it map
//! copy-on-write, the rest beside it. It can be [saved](Snapshot::save) for others. Before it is taken the guest's processes are stopped; they go on afterwards, and
//! in each clone as soon as that has random numbers of its own and the right time.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::builder::InstanceBuilder;
use super::fs_snapshot::Origin;
use super::start::{self, Running};
use super::{Error, Instance, Timing, saved};
use crate::machine::snapshot::{self, SnapshotError};
use crate::memory::SavedRam;
use crate::oci::ImageConfig;
use crate::process::Defaults;
use crate::virtio::fs::Forked;

/// A machine as it was at a moment, with everything that ran in it. As a [`Source`](super::Source) it starts any number
/// of machines that go on from there. Cheap to clone.
///
/// In a machine that starts from it
/// - processes go on, with their memory, open files and working directories; what commands write to pipes of the first
///   machine's host goes nowhere;
/// - random numbers, the wall clock and the host name are its own;
/// - the file systems are copies: what one machine writes, no other sees, except in mounted directories of the host;
/// - connections to the host are gone, and programs that had any hear of it.
///
/// Memory that no machine has changed since is shared by all.
#[derive(Clone)]
pub struct Snapshot {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) ram: SavedRam,
    pub(super) state: Vec<u8>,
    pub(super) file_systems: Vec<(String, Option<Forked>)>,
    pub(super) defaults: Arc<Defaults>,
    pub(super) config: Option<ImageConfig>,
    pub(super) origin: Option<Origin>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("memory_mb", &self.memory_mb()).finish_non_exhaustive()
    }
}

impl Snapshot {
    /// RAM of the machines that start from it, in MiB.
    pub fn memory_mb(&self) -> u64 {
        self.inner.ram.size() >> 20
    }

    /// Writes it into the directory `to`, which must not exist, so that other processes can start machines from it with
    /// [`Snapshot::open`]. The directory has all that they need; layers of images are linked into it where the host's
    /// file system allows. Only host directories that the machine mounts or runs from are not in it: they must be where
    /// they were, and files in them that have changed read as `ESTALE` for programs that had them open.
    ///
    /// # Errors
    /// [`Error::Snapshot`]: the host's error, `AlreadyExists` among them. Nothing is left behind then.
    pub fn save(&self, to: impl AsRef<Path>) -> Result<(), Error> {
        saved::save(self, to.as_ref()).map_err(Error::Snapshot)
    }

    /// Opens what [`Snapshot::save`] has written. The directory may be removed while machines run from it, but must not
    /// be changed.
    ///
    /// # Errors
    /// [`Error::Snapshot`] when it is not there, is damaged, was written by a version with other formats, or needs host
    /// directories that are gone.
    pub fn open(from: impl AsRef<Path>) -> Result<Self, Error> {
        saved::open(from.as_ref()).map_err(Error::Snapshot)
    }

    /// Takes one of `instance`, whose processes are stopped.
    fn take(instance: &Instance) -> Result<Self, SnapshotError> {
        let machine = &instance.machine;
        let frozen = machine.freeze().ok_or(SnapshotError::NotReady("it has ended"))?;
        let board = machine.board();
        let (state, ram) = snapshot::copy(machine, &frozen)?;
        let mut file_systems = Vec::new();
        for (tag, fs) in board.file_system_tags().iter().zip(board.file_systems()) {
            let forked = fs.fork().map_err(|_| SnapshotError::NotReady("a file system cannot be copied"))?;
            file_systems.push((tag.clone(), forked));
        }
        let (defaults, config) = (instance.defaults.clone(), instance.config.clone());
        let origin = instance.origin.clone();
        Ok(Self { inner: Arc::new(Inner { ram, state, file_systems, defaults, config, origin }) })
    }

    /// Starts a machine from it.
    pub(super) fn start(&self, mut builder: InstanceBuilder) -> Result<Instance, Error> {
        if let Some(mount) = builder.mounts.first() {
            let reason = "a machine from a snapshot has the snapshot's mounts".to_owned();
            return Err(Error::Mount { tag: mount.tag.clone(), reason });
        }
        let begin = Instant::now();
        let (id, hostname) = super::root::identity(builder.hostname.take())?;
        let restored = snapshot::reopen(&self.inner.state, &self.inner.ram).map_err(Error::Snapshot)?;
        // The guest has the processor that it has.
        builder.cpu_model = Some(restored.model());
        let (platform, backend_reason) = super::choice::platform(&builder)?;
        let tags = self.inner.file_systems.iter().map(|(tag, _)| tag.clone()).collect();
        let serve = |hosts: &[crate::virtio::fs::FsHost]| {
            for (host, (_, forked)) in hosts.iter().zip(&self.inner.file_systems) {
                if let Some(forked) = forked {
                    host.serve_fork(forked).map_err(|e| std::io::Error::from_raw_os_error(e.raw()))?;
                }
            }
            Ok(())
        };
        let running =
            start::restore(&mut builder, platform, restored, tags, serve).map_err(Error::Snapshot)?;
        let (load, started) = (begin.elapsed(), Instant::now());
        let lifetime = builder.timeout;
        let client = running.client(Some(start::patience(platform)), lifetime)?;
        let Running { machine, .. } = running;
        start::tell_end(&machine, &client);
        super::root::renew(&client, Some(&hostname)).map_err(|e| start::fail(&machine, e, lifetime))?;
        let mut defaults = (*self.inner.defaults).clone();
        builder.overrides.apply(&mut defaults);
        let timing = Timing { fetch: Default::default(), load, boot: started.elapsed(), restored: true };
        tracing::debug!(?timing, "machine started from a snapshot");
        let config = self.inner.config.clone();
        let mut instance = Instance::from_parts(machine, client, defaults, timing, lifetime, id, config);
        instance.origin = self.inner.origin.clone();
        instance.backend_reason = backend_reason;
        Ok(instance)
    }
}

impl Instance {
    /// Takes a snapshot of the machine with everything that runs in it. The machine stands still meanwhile, some tens
    /// of milliseconds for each 100 MB that it uses, and goes on as before.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Snapshot`] when the host has no room for it.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        self.running()?;
        let _alone = self.freezing.lock().unwrap_or_else(PoisonError::into_inner);
        // The agent has to run to stop the processes.
        let paused = self.machine.is_paused();
        if paused {
            self.machine.resume();
        }
        let taken = match self.client.freeze() {
            Ok(()) => Snapshot::take(self).map_err(Error::Snapshot),
            Err(source) => Err(Error::Host { what: "stopping the guest's processes", source }),
        };
        let thawed = self.client.thaw();
        if paused {
            self.machine.pause();
        }
        let snapshot = taken.map_err(|e| self.running().err().unwrap_or(e))?;
        thawed.map_err(|source| Error::Host { what: "letting the guest's processes go on", source })?;
        Ok(snapshot)
    }

    /// Makes `n` machines that go on from what this one is now, see [`Snapshot`]. This one goes on too, and all handles
    /// (commands, their pipes) stay its own.
    ///
    /// # Errors
    /// As [`Instance::snapshot`], or those of starting a machine.
    pub fn fork(&self, n: usize) -> Result<Vec<Instance>, Error> {
        let snapshot = self.snapshot()?;
        (0..n).map(|_| Instance::builder(&snapshot).backend(self.backend()).start()).collect()
    }
}
